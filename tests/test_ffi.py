"""The examples in other languages, which call the installed library without a binding of their own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import rows
from commands import need
from serving import BIG, Connection, make

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "ffi"


class Inetd(Connection):
    """A client, and a program whose standard input is the other end."""

    def __init__(self, command: list[str | Path], environment: dict[str, str]) -> None:
        self.socket, other = socket.socketpair()
        self.socket.settimeout(20)
        self.pending = b""
        with other:
            self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=subprocess.PIPE, env=environment)

    def end(self) -> None:
        """It has to close the connection, and to end without a complaint."""
        with pytest.raises(EOFError):
            self.more()
        assert self.process.communicate(timeout=20)[1] == b""
        assert self.process.returncode == 0


@pytest.fixture(params=["lua", "pl"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str | Path]:
    """A program, for the files in tmp_path / "site"."""
    site = tmp_path / "site"
    site.mkdir()
    if request.param == "lua":
        need("luajit", "luajit")
        return ["luajit", EXAMPLES / "inetd.lua", site]
    if subprocess.run(["perl", "-MFFI::Platypus", "-e1"], capture_output=True).returncode != 0:
        pytest.skip("FFI::Platypus is missing (Debian: apt-get install libffi-platypus-perl)")
    return ["perl", EXAMPLES / "inetd.pl", site]


@pytest.fixture
def client(command: list[str | Path], environment: dict[str, str]) -> Iterator[Inetd]:
    """Its client."""
    with Inetd(command, environment) as client:
        yield client
        client.process.kill()
        client.process.communicate()


def test_kept(client: Inetd, tmp_path: Path) -> None:
    """Whole files, ranges and conditions on one connection, and requests that come together; at last a close."""
    make(tmp_path / "site" / "a b.txt", rows.content(0, 1000))
    big = os.urandom(BIG)
    make(tmp_path / "site" / "big.bin", big)
    response = client.get("/a%20b.txt?x")
    assert (response.status, response.get("Content-Type"), response.body) == (200, "text/plain", rows.content(0, 1000))
    assert client.get("/big.bin").body == big
    assert client.get("/big.bin", "Range: bytes=10-19").body == big[10:20]
    assert client.get("/big.bin", f"If-None-Match: {response.get('ETag')}").status == 200
    assert client.get("/a%20b.txt", f"If-None-Match: {response.get('ETag')}").status == 304
    assert client.get("/a%20b.txt", method="HEAD").get("Content-Length") == "1000"
    client.socket.sendall(b"GET /a%20b.txt HTTP/1.1\r\nHost: x\r\nRange: bytes=-1\r\n\r\n" * 100)
    assert {client.answer().body for _ in range(100)} == {rows.content(999, 1)}
    assert client.get("/a%20b.txt", "Connection: close").body == rows.content(0, 1000)
    client.end()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /../outside HTTP/1.1", 404),
        ("GET /%00 HTTP/1.1", 404),
        ("GET /none HTTP/1.1", 404),
        ("POST /x HTTP/1.1", 405),
        ("nonsense", 400),
    ],
)
def test_refused(client: Inetd, tmp_path: Path, line: str, status: int) -> None:
    """What is no file, or no request; then the connection ends."""
    make(tmp_path / "outside", b"secret")
    client.send(line, "Host: x")
    assert client.answer().status == status
    client.end()


@pytest.mark.parametrize("fields", [b"", b"Host: x\r\n", b"Host"])
def test_half_a_request(client: Inetd, tmp_path: Path, fields: bytes) -> None:
    """The connection ends in the midst of a head: nothing is answered."""
    make(tmp_path / "site" / "a", b"a")
    client.socket.sendall(b"GET /a HTTP/1.1\r\n" + fields)
    client.socket.shutdown(socket.SHUT_WR)
    client.end()
    assert client.pending == b""


def test_usage(command: list[str | Path], environment: dict[str, str]) -> None:
    """Without a directory they say what they want."""
    done = subprocess.run(command[:-1], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    assert done.stderr == f"usage: {Path(command[1]).name} DIR\n"
