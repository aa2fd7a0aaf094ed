"""What the tests share: real sockets, and real servers in their own processes. The installed wheel is tested."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import sendgate
from support import Pipe, Server, running_server, tcp_pair

SOURCE = Path(__file__).resolve().parents[1] / "src"


def pytest_report_header(config: pytest.Config) -> str:
    return f"sendgate {sendgate.__version__} from {Path(sendgate.__file__).parent}"


def pytest_configure(config: pytest.Config) -> None:
    if SOURCE in Path(sendgate.__file__).resolve().parents:
        raise pytest.UsageError(f"{sendgate.__file__} is the source: install the wheel (scripts/setup-python.sh --dev)")
    # A shell has what it starts in the background ignore it, and the servers under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Warnings are errors here; other tests that run with this configuration decide for themselves.
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("error"))


def pytest_collection_finish() -> None:
    """Take the tests themselves, which are many, away from the garbage collector: some tests call it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaked_descriptors() -> Iterator[None]:
    """Every test leaves as many descriptors open as it found."""
    before = len(open_descriptors())
    yield
    assert len(open_descriptors()) <= before, "descriptors leaked"


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(server, client), connected, with nobody reading."""
    server, client = tcp_pair() if request.param == "tcp" else socket.socketpair()
    with server, client:
        yield server, client


@pytest.fixture
def pipe(pair: tuple[socket.socket, socket.socket]) -> Pipe:
    """A connection whose client reads all the time."""
    return Pipe(*pair)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(directory: Path, *options: str) -> Server:
            log = tmp_path / f"log{len(os.listdir(tmp_path))}"
            return stack.enter_context(running_server(directory, log, *options))

        yield start


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key, made by openssl."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    arguments: list[Any] = ["-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-days", "2", "-nodes"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *arguments],
        check=True,
        capture_output=True,
    )
    return certificate, key
