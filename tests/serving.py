"""A server in C as a process, and a client that keeps its connection: what the tests of the examples share."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows
from commands import TARGET

PROGRAMS = TARGET / "examples"
MIB = 1 << 20
OLD = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT: old enough for strong entity tags
BIG = 20 * MIB
START_SECONDS = 60  # for a server to say where it listens, under Valgrind too


def descriptors(process: int) -> list[str]:
    """What it has open."""
    names = []
    for entry in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed in the meantime
            names.append(os.readlink(entry))
    return sorted(names)


class Served:
    """What answers at an address, and the process of ours that does."""

    def __init__(self, process: subprocess.Popen[Any], address: tuple[str, int]) -> None:
        self.process = process
        self.address = address

    def descriptors(self) -> list[str]:
        """What it has open."""
        return descriptors(self.process.pid)

    def processor_time(self) -> float:
        """Seconds that it has used."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, target: str, *fields: str, method: str = "GET", version: str = "1.1") -> rows.Response:
        """One request on a connection of its own; everything about the answer's framing is checked."""
        lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields]
        probe = rows.probe("/small.txt")
        return rows.fetch(self.address, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), probe=probe)


class Server(Served):
    """A running example. `program`: its name, or its path. `prefix` is a command to run it under (strace, valgrind).
    `directory` is what it takes behind its port.
    """

    def __init__(
        self,
        program: str,
        directory: Path | str,
        *options: str,
        prefix: tuple[str, ...] = (),
        max_files: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))  # type: ignore[arg-type]

        process = subprocess.Popen(
            [*prefix, str(PROGRAMS / program), *options, "0", str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Not where there are threads: what runs between fork and exec could wait for their locks.
            preexec_fn=None if max_files is None else limit,
            env=environment,
        )
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        line = process.stdout.readline().decode() if readable else ""
        match = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", line)
        if not match:
            process.kill()
            raise AssertionError(f"{program} said {line!r}; {process.communicate()[1].decode()}")
        super().__init__(process, ("127.0.0.1", int(match[1])))

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End it as Ctrl-C does: its exit status must be 0. Returns what it wrote to standard error."""
        pid = self.process.pid
        if self.process.args[0] == "strace":  # type: ignore[index]
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        os.kill(pid, number)
        error = self.process.communicate(timeout=30)[1].decode()
        assert self.process.returncode == 0, (self.process.returncode, error)
        return error

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


class Connection:
    """A client that keeps its connection and reads one answer after the other."""

    def __init__(self, address: tuple[str, int], receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(20)
        self.socket.connect(address)
        self.pending = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *lines: str) -> None:
        """Send lines and the empty line that ends a head."""
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def get(self, target: str, *fields: str, method: str = "GET") -> rows.Response:
        """One request and its answer."""
        self.send(f"{method} {target} HTTP/1.1", "Host: localhost", *fields)
        return self.answer(method)

    def more(self) -> None:
        """Receive once; EOFError at the end of the stream."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise EOFError(f"closed; {len(self.pending)} bytes are left")
        self.pending += data

    def head(self) -> rows.Response:
        """The next answer's head."""
        while b"\r\n\r\n" not in self.pending:
            self.more()
        head, mark, self.pending = self.pending.partition(b"\r\n\r\n")
        return rows.parse_response(head + mark, body_follows=False)

    def answer(self, method: str = "GET") -> rows.Response:
        """The next answer; what has come behind it stays in `pending`."""
        response = self.head()
        length = 0 if method == "HEAD" or response.status == 304 else int(response.get("Content-Length") or "0")
        chunks, got = [self.pending], len(self.pending)
        while got < length:
            data = self.socket.recv(1 << 18)
            if not data:
                raise EOFError(f"closed after {got} of {length} bytes")
            chunks.append(data)
            got += len(data)
        data = b"".join(chunks)
        response.body, self.pending = data[:length], data[length:]
        return response

    def reset(self) -> None:
        """Close with a reset instead of an orderly end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def make(path: Path, data: bytes, mtime: int = OLD) -> Path:
    """Write a file with that modification time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))
    return path


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Ask again and again until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def resume_download(server: Served, site: Path, content: bytes) -> None:
    """Cut off, then continued with Range and If-Range: together every byte once; and all of it if it has changed."""
    path = make(site / "big.bin", content)
    with Connection(server.address) as client:
        client.send("GET /big.bin HTTP/1.1", "Host: localhost")
        tag = client.head().get("ETag")
        while len(client.pending) < 3 * MIB:
            client.more()
        have = client.pending
        client.reset()
    response = server.get("/big.bin", f"Range: bytes={len(have)}-", f"If-Range: {tag}")
    assert response.status == 206
    assert have + (response.body or b"") == content
    os.utime(path, (OLD + 5, OLD + 5))
    assert server.get("/big.bin", f"Range: bytes={len(have)}-", f"If-Range: {tag}").status == 200
