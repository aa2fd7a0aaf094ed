"""`examples/fastcgi.c`: behind a real nginx, and spoken to directly.

It is built with `make -f examples/examples.mk examples`, so the library that is tested is the current one.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rows
from serving import PROGRAMS, descriptors

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/differential"))
import nginx  # noqa: E402

LARGE = 300_000

BEGIN, ABORT, END, PARAMS, STDIN, STDOUT, GET_VALUES, GET_VALUES_RESULT = 1, 2, 3, 4, 5, 6, 9, 10


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """The program, of this library."""
    command = ["make", "-s", "-f", "examples/examples.mk", "examples"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is served."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "small.txt").write_bytes(b"0123456789")
    (folder / "empty").write_bytes(b"")
    (folder / "large.bin").write_bytes(bytes(index * 7 % 251 for index in range(LARGE)))
    for file in folder.iterdir():
        os.utime(file, (784111777, 784111777))
    return folder


def sockets(process: int) -> int:
    """How many it has."""
    return sum(name.startswith("socket:") for name in descriptors(process))


@contextlib.contextmanager
def running(where: str, folder: Path) -> Iterator[str]:
    """The program, and where it listens."""
    process = subprocess.Popen([PROGRAMS / "fastcgi", where, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        match = re.fullmatch(r"listening on (.*)\n", process.stdout.readline())
        assert match
        before = sockets(process.pid)
        yield match[1]
        assert process.poll() is None
        deadline = time.monotonic() + 10
        # A connection's end may be noticed a moment later.
        while sockets(process.pid) > before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def connect(where: str) -> socket.socket:
    """A connection to it."""
    host, _, port = where.rpartition(":")
    client = socket.create_connection((host, int(port)))
    client.settimeout(20)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def record(kind: int, content: bytes = b"", request: int = 1, padding: int = 0) -> bytes:
    """One record."""
    return struct.pack("!BBHHBx", 1, kind, request, len(content), padding) + content + bytes(padding)


def ask(path: str, keep: bool = True, **params: str) -> bytes:
    """A request for a file."""
    encoded = b""
    for name, value in {"REQUEST_METHOD": "GET", "SCRIPT_NAME": path, "QUERY_STRING": "", **params}.items():
        encoded += struct.pack("!BL", len(name), 0x80000000 | len(value)) + name.encode() + value.encode()
    begin = struct.pack("!HB5x", 1, keep)
    records = [
        record(BEGIN, begin),
        record(PARAMS, encoded, padding=3),
        record(PARAMS),
        record(STDIN, b"ignored", padding=1),
    ]
    return b"".join(records) + record(STDIN)


def receive(client: socket.socket, stop: int = END, times: int = 1) -> list[tuple[int, int, bytes]]:
    """Records up to the first, or a later one, of a kind: kind, request, content."""
    stream = client.makefile("rb")
    seen = []
    while sum(kind == stop for kind, _, _ in seen) < times:
        head = stream.read(8)
        assert len(head) == 8, "closed before the end"
        version, kind, request, length, padding = struct.unpack("!BBHHBx", head)
        assert version == 1
        seen.append((kind, request, stream.read(length)))
        stream.read(padding)
    return seen


def answer(client: socket.socket) -> tuple[bytes, bytes]:
    """Head and content of the answer, which ends as it should."""
    *content, last, end = receive(client)
    assert (last, end) == ((STDOUT, 1, b""), (END, 1, bytes(8)))
    assert all((kind, request) == (STDOUT, 1) and text for kind, request, text in content)
    head, _, body = b"".join(text for _, _, text in content).partition(b"\r\n\r\n")
    return head, body


def test_cut_at_every_byte(folder: Path) -> None:
    """A request in two pieces is the same request, wherever it is cut."""
    request = ask("/small.txt", HTTP_RANGE="bytes=2-4")
    with running("0", folder) as where, connect(where) as client:
        for cut in range(1, len(request)):
            client.sendall(request[:cut])
            if cut % 7 == 0:
                time.sleep(0.001)
            client.sendall(request[cut:])
            head, body = answer(client)
            assert head.startswith(b"Status: 206 Partial Content\r\n")
            assert body == b"234"


def test_large_files_leave_in_long_records(folder: Path) -> None:
    """A record holds 65535 bytes at most, of head and content."""
    with running("0", folder) as where, connect(where) as client:
        client.sendall(ask("/large.bin"))
        *content, _, _ = receive(client)
        assert [len(text) for _, _, text in content[:-1]] == [65535] * (len(content) - 1)
        body = b"".join(text for _, _, text in content).partition(b"\r\n\r\n")[2]
        assert body == (folder / "large.bin").read_bytes()


def test_connections_are_kept_if_that_is_asked_for(folder: Path) -> None:
    """And closed otherwise."""
    with running("0", folder) as where, connect(where) as client:
        for path, status in (("/small.txt", b"200"), ("/none", b"404"), ("/empty", b"200"), ("/../x", b"404")):
            client.sendall(ask(path))
            assert answer(client)[0].startswith(b"Status: " + status)
        client.sendall(ask("/small.txt", keep=False))
        assert answer(client)[1] == b"0123456789"
        assert client.recv(1) == b""


def test_an_answer_that_takes_waiting(folder: Path) -> None:
    """It is sent in the background as far as the socket doesn't take it at once, and the connection is kept."""
    (folder / "huge.bin").write_bytes(os.urandom(1 << 20) * 5)
    with running("0", folder) as where, connect(where) as client:
        for _ in range(3):
            client.sendall(ask("/huge.bin"))
            assert answer(client)[1] == (folder / "huge.bin").read_bytes()
            client.sendall(ask("/small.txt"))
            assert answer(client)[1] == b"0123456789"


def test_two_requests_at_once(folder: Path) -> None:
    """The second is answered too, after the first, where that took no waiting."""
    with running("0", folder) as where, connect(where) as client:
        client.sendall(ask("/small.txt") + ask("/none"))
        first, last, end, *second = receive(client, times=2)
        assert first[2].endswith(b"\r\n\r\n0123456789")
        assert second[0][2].startswith(b"Status: 404") and second[0][2].endswith(b"\r\n\r\nNot found\n")
        assert [last, end] == second[1:] == [(STDOUT, 1, b""), (END, 1, bytes(8))]


def test_what_a_responder_does_not_do(folder: Path) -> None:
    """Other roles and second requests are refused, and questions answered."""
    with running("0", folder) as where, connect(where) as client:
        client.sendall(record(BEGIN, struct.pack("!HB5x", 2, 1)))
        assert receive(client) == [(END, 1, bytes([0, 0, 0, 0, 3, 0, 0, 0]))]
        client.sendall(record(GET_VALUES, b"\x0f\0FCGI_MPXS_CONNS", 0))
        assert receive(client, GET_VALUES_RESULT) == [(GET_VALUES_RESULT, 0, b"\x0f\x01FCGI_MPXS_CONNS0")]
        request = ask("/small.txt")
        client.sendall(request[:16] + record(BEGIN, struct.pack("!HB5x", 1, 1), 2))
        assert receive(client) == [(END, 2, bytes([0, 0, 0, 0, 1, 0, 0, 0]))]
        client.sendall(request[16:])
        assert answer(client)[1] == b"0123456789"
    with running("0", folder) as where, connect(where) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(1) == b""


def test_a_front_server_that_leaves(folder: Path) -> None:
    """In mid-request, in mid-answer, by a reset: nothing is left of it, and the next one is served."""
    (folder / "huge.bin").touch()
    os.truncate(folder / "huge.bin", 64 << 20)
    with running("0", folder) as where:
        for request in (ask("/small.txt")[:30], ask("/huge.bin"), record(BEGIN, struct.pack("!HB5x", 1, 1))):
            for reset in (False, True):
                with connect(where) as client:
                    client.sendall(request)
                    if reset:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with connect(where) as client:
            client.sendall(ask("/small.txt"))
            assert answer(client)[1] == b"0123456789"


@pytest.mark.parametrize("keep", [False, True])
def test_behind_nginx(folder: Path, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole files, ranges and conditions, with and without kept connections."""
    binary = nginx.executable()
    if binary is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    with running("0", folder) as where:
        upstream = f"upstream app {{ server {where}; {'keepalive 4;' if keep else ''} }}"
        location = "location / { fastcgi_pass app; include /etc/nginx/fastcgi_params;"
        location += " fastcgi_keep_conn on; }" if keep else " }"
        config = nginx.CONFIG.replace("root {prefix}/files;", location.replace("{", "{{").replace("}", "}}"))
        config = config.replace("http {{", "http {{ " + upstream.replace("{", "{{").replace("}", "}}"), 1)
        monkeypatch.setattr(nginx, "CONFIG", config)
        with nginx.Nginx(binary) as front:

            def get(path: str, *fields: str, method: str = "GET") -> rows.Response:
                lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *fields, "", ""]
                return rows.fetch(front.address, "\r\n".join(lines).encode())

            for _ in range(3):
                large = get("/large.bin")
                assert (large.status, len(large.body)) == (200, LARGE)
                assert large.body == (folder / "large.bin").read_bytes()
                part = get("/large.bin", "Range: bytes=100000-199999")
                assert (part.status, part.body) == (206, large.body[100000:200000])
            small = get("/small.txt")
            [tag] = small.all("ETag")
            assert (small.status, small.body) == (200, b"0123456789")
            assert get("/small.txt", f"If-None-Match: {tag}").status == 304
            assert get("/small.txt", 'If-Match: "other"').status == 412
            assert get("/small.txt", "Range: bytes=10-").status == 416
            assert get("/small.txt", "Range: bytes=0-0,-1").status == 206
            assert get("/small.txt", method="HEAD").body == b""
            assert get("/none").status == 404


def test_signals_end_it(folder: Path) -> None:
    """It has no handler, so SIGTERM ends it, as for any small program."""
    process = subprocess.Popen([PROGRAMS / "fastcgi", "0", str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
