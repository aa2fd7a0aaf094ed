"""Connections and servers for the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from launching import launched


class Pipe:
    """The two ends of a connection, with a thread that collects what arrives at the client's."""

    def __init__(self, server: socket.socket, client: socket.socket) -> None:
        self.server = server
        self.client = client
        self._chunks: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                chunk = self.client.recv(1 << 16)
                if not chunk:
                    break
                self._chunks.append(chunk)

    def received(self) -> bytes:
        """Close the server's end, and return all that arrived."""
        self.server.close()
        self._thread.join(20)
        assert not self._thread.is_alive()
        return b"".join(self._chunks)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """(server, client), connected over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return server, client


def library_threads() -> set[str]:
    """The ids of the threads that senders have. One that has just begun is not among them at once, and one that has
    ended may be for a moment: see ``wait_until``.
    """
    found = set()
    for task in Path("/proc/self/task").iterdir():
        # It may end in between.
        with contextlib.suppress(OSError):
            if (task / "comm").read_text() == "sendgate\n":
                found.add(task.name)
    return found


def wait_until(condition: Callable[[], object]) -> None:
    """Until it is true; an AssertionError if that takes too long."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def split(response: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, fields by lower-case name, body."""
    head, _, body = response.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = {}
    for line in lines[1:]:
        name, _, value = line.partition(": ")
        assert name.lower() not in fields, f"{name} twice: {head!r}"
        fields[name.lower()] = value
    return int(lines[0].split(" ")[1]), fields, body


def request(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """The head of a request."""
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclasses.dataclass
class Answer:
    """A response that was read from a connection: its fields by lower-case name."""

    status: int
    fields: dict[str, str]
    body: bytes = b""


class Client:
    """One connection. A context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._stream = sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._stream.close()
        self.sock.close()

    def reset(self) -> None:
        """Leave, so that the server gets ECONNRESET."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def request(self, target: str, *fields: str, method: str = "GET", version: str = "1.1") -> None:
        """Send one."""
        self.sock.sendall(request(target, *fields, method=method, version=version))

    def head(self) -> Answer:
        """The head of the next response."""
        lines = []
        while (line := self._stream.readline()) not in (b"\r\n", b""):
            lines.append(line.decode("latin-1").rstrip("\r\n"))
        assert line, f"closed after {lines}"
        fields = dict(line.split(": ", 1) for line in lines[1:])
        return Answer(int(lines[0].split(" ")[1]), {name.lower(): value for name, value in fields.items()})

    def response(self, method: str = "GET") -> Answer:
        """The next response, which has a Content-Length."""
        answer = self.head()
        if method != "HEAD" and answer.status != 304:
            answer.body = self.read(int(answer.fields["content-length"]))
        return answer

    def chunk(self) -> bytes:
        """The next chunk of content in chunks; empty: that was the last."""
        data = self._stream.read(int(self._stream.readline(), 16))
        assert self._stream.readline() == b"\r\n"
        return data

    def chunks(self) -> bytes:
        """Content in chunks, to its end."""
        return b"".join(iter(self.chunk, b""))

    def read(self, count: int) -> bytes:
        """So many bytes, or fewer if the connection ends before."""
        return self._stream.read(count)

    def some(self, count: int) -> bytes:
        """What there is, and not more than so many bytes; empty: the connection has ended."""
        return self._stream.read1(count)

    def rest(self, reset: bool = False) -> bytes:
        """All up to the end of the connection, which may be a reset if that is said."""
        blocks = []
        with contextlib.suppress(ConnectionResetError) if reset else contextlib.nullcontext():
            while block := self._stream.read1(1 << 20):
                blocks.append(block)
        return b"".join(blocks)


class Server:
    """A ``python -m sendgate`` in its own process."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log_path = log
        self.url = f"http://127.0.0.1:{port}/"

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self.log_path.read_text()

    def raw(self, request: bytes) -> bytes:
        """Send bytes, end the sending side, and return everything until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            chunks = []
            while chunk := connection.recv(1 << 16):
                chunks.append(chunk)
        return b"".join(chunks)

    def get(self, target: str, *fields: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """One request, one answer."""
        return split(self.raw(request(target, "Connection: close", *fields, method=method)))


@contextlib.contextmanager
def running_server(directory: Path, log: Path, *options: str) -> Iterator[Server]:
    """Start the command, wait until it says where it is, and stop it at the end."""
    command = [sys.executable, "-m", "sendgate", str(directory), "--port", "0", *options]
    with launched(command, log, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        match = re.fullmatch(r"Serving .* at http://.*:(\d+)/\n", line)
        assert match, f"{line!r}: {log.read_text()}"
        yield Server(process, int(match[1]), log)


# ---- System calls ----


@contextlib.contextmanager
def traced(process: int, calls: str, output: Path) -> Iterator[None]:
    """The process's system calls, with the paths of descriptors."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    tracer = subprocess.Popen(
        [strace, "-f", "-y", "-s", "0", "-o", str(output), "-e", f"trace={calls}", "-p", str(process)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    with tracer.stderr as stderr:
        first = stderr.readline()
        if "attached" not in first:
            tracer.wait()
            pytest.skip(f"strace can't attach: {first.strip()}")
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(20)


READS = "read,pread64,readv,preadv,preadv2"


def moved(trace: Path, call: str, name: str) -> int:
    """The bytes of a file that calls of this kind have moved."""
    total = 0
    begun: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        thread, text = line.split(None, 1)
        # A call during which another thread had one is told in two lines.
        if text.endswith("<unfinished ...>"):
            begun[thread] = text
        elif text.startswith("<..."):
            text = begun.pop(thread, "") + text
        if match := re.match(rf"{call}\(.*\d+<[^>]*/files/{name}>.* = (\d+)", text):
            total += int(match[1])
    return total
