"""examples/streaming.py, by the three commands that it names."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launching import serving
from support import Client

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "wsgiref": lambda port: [sys.executable, "streaming.py", str(port)],
    "gunicorn": lambda port: [
        sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "8", "-b", f"127.0.0.1:{port}",
        "--no-control-socket", "streaming:wsgi",
    ],
    "uvicorn": lambda port: [sys.executable, "-m", "uvicorn", "--port", str(port), "streaming:asgi"],
}  # fmt: skip


@pytest.fixture(params=COMMANDS)
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Callable[[], Client], Path]]:
    """What connects to it, and its log."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    log = tmp_path / "log"
    with serving(COMMANDS[request.param], log, cwd=EXAMPLES, env=environment) as (address, _):
        yield lambda: Client(socket.create_connection(address, timeout=30)), log


def content(client: Client, fields: dict[str, str]) -> bytes:
    """All of it, however it is framed."""
    if "content-length" in fields:
        return client.read(int(fields["content-length"]))
    return client.chunks() if fields.get("transfer-encoding") == "chunked" else client.rest()


def test_the_example(running: tuple[Callable[[], Client], Path]) -> None:
    """A clock that ticks, a string with an entity tag, a stream with a length."""
    connect, log = running
    with connect() as client:
        client.request("/text")
        head = client.head()
        text = content(client, head.fields)
        assert text.count(b"\n") == 1000
    with connect() as client:
        client.request("/text", f"If-None-Match: {head.fields['etag']}")
        assert client.head().status == 304
    with connect() as client:
        client.request("/counted")
        head = client.head()
        assert (head.fields["content-length"], content(client, head.fields)) == (str(len(text)), text)
        assert "content-encoding" not in head.fields
    with connect() as client:
        client.request("/counted", 'If-None-Match: "2026-11-22"')
        assert client.head().status == 304
    with connect() as client:
        client.request("/clock")
        head = client.head()
        assert head.fields["cache-control"] == "no-store"
        for _ in range(2):
            tick = client.chunk() if "transfer-encoding" in head.fields else client.read(9)
            assert re.fullmatch(rb"\d\d:\d\d:\d\d\n", tick)
    # It ends with its next line, and then there is room for another client.
    with connect() as client:
        client.request("/")
        assert client.head().status == 404
    assert f"{len(text)} bytes were streamed" in log.read_text()
