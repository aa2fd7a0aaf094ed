"""The flat call, with ctypes and nothing else: no struct, no cffi."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest

import sendgate
from support import Pipe, split

DATA = os.urandom(50_000)
OLD = 784111777
OK, ERR_INVALID, ERR_IO, ERR_FIELD, ERR_NOT_REGULAR = 0, -1, -6, -4, -10
UNTOUCHED, REUSABLE, CLOSE = 0, 1, 2


@pytest.fixture(scope="module")
def library() -> Any:
    """The shared library inside the installed package."""
    (path,) = (Path(sendgate.__file__).parent / "_native").glob("*.so")
    return ctypes.CDLL(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file from 1994."""
    path = tmp_path / "file.bin"
    path.write_bytes(DATA)
    os.utime(path, (OLD, OLD))
    return path


def call(library: Any, sock: int, fd: int, *, method: bytes | None = None, version: int = 0,
         request: bytes | None = None, response: bytes | None = None) -> tuple[int, int, int, int]:  # fmt: skip
    """(status, http_status, connection, body_sent)."""
    http_status = ctypes.c_uint32()
    connection = ctypes.c_uint32()
    body_sent = ctypes.c_uint64()
    status = library.sendgate_respond_fd(
        sock, fd, method, version, request, response, 5000,
        ctypes.byref(http_status), ctypes.byref(connection), ctypes.byref(body_sent),
    )  # fmt: skip
    return status, http_status.value, connection.value, body_sent.value


def test_whole_file(library: Any, pipe: Pipe, path: Path) -> None:
    """Socket and file are all that is needed; both stay open."""
    with path.open("rb") as file:
        assert call(library, pipe.server.fileno(), file.fileno()) == (OK, 200, REUSABLE, len(DATA))
        assert file.read() == DATA
    status, fields, body = split(pipe.received())
    assert (status, body, fields["content-length"]) == (200, DATA, str(len(DATA)))


@pytest.mark.parametrize(
    ("arguments", "status", "connection", "body"),
    [
        ({"request": b"Range: bytes=0-9\r\n"}, 206, REUSABLE, DATA[:10]),
        ({"request": b"Host: x\r\nRANGE:bytes=0-9\r\nX: y\r\n"}, 206, REUSABLE, DATA[:10]),
        ({"request": b"If-None-Match: *\r\n"}, 304, REUSABLE, b""),
        ({"request": b'If-Match: "x"\r\n'}, 412, REUSABLE, b""),
        ({"request": b"Range: bytes=999999-\r\n"}, 416, REUSABLE, b""),
        ({"request": b"Connection: close\r\n"}, 200, CLOSE, DATA),
        ({"request": b"Content-Length: 5\r\n"}, 200, CLOSE, DATA),
        ({"method": b"HEAD"}, 200, REUSABLE, b""),
        ({"version": 10}, 200, CLOSE, DATA),
        ({"request": b"", "response": b"", "method": b""}, 200, REUSABLE, DATA),
    ],
    ids=str,
)
def test_request_headers(
    library: Any, pipe: Pipe, path: Path, arguments: Any, status: int, connection: int, body: bytes
) -> None:
    """Header lines as received decide; others are ignored; NULL and "" are absent."""
    fd = os.open(path, os.O_RDONLY)
    assert call(library, pipe.server.fileno(), fd, **arguments) == (OK, status, connection, len(body))
    os.close(fd)
    assert split(pipe.received())[::2] == (status, body)


def test_response_headers(library: Any, pipe: Pipe, path: Path) -> None:
    """Response lines replace the library's own, also in the comparison."""
    fd = os.open(path, os.O_RDONLY)
    response = b'ETag: "mine"\r\nContent-Type: a/b\r\n'
    call(library, pipe.server.fileno(), fd, response=response)
    os.close(fd)
    _, fields, _ = split(pipe.received())
    assert (fields["etag"], fields["content-type"]) == ('"mine"', "a/b")


@pytest.mark.parametrize(
    "response", [b"X: a\rb\r\n", b"X Y: a\r\n", b": a\r\n", b"name\r\n", b"X: a\r\n\r\nbody"], ids=repr
)
def test_response_splitting(library: Any, pipe: Pipe, path: Path, response: bytes) -> None:
    """A line that is no field, or an empty one that would end the head, is refused with nothing written."""
    with path.open("rb") as file:
        status, _, connection, _ = call(library, pipe.server.fileno(), file.fileno(), response=response)
    assert (status, connection) == (ERR_FIELD, UNTOUCHED)
    assert pipe.received() == b""


def test_outputs_may_be_null(library: Any, pipe: Pipe, path: Path) -> None:
    """Whoever doesn't care passes NULL."""
    fd = os.open(path, os.O_RDONLY)
    assert library.sendgate_respond_fd(pipe.server.fileno(), fd, None, 0, None, None, 0, None, None, None) == OK
    os.close(fd)
    assert split(pipe.received())[2] == DATA


def test_errors(library: Any, pipe: Pipe, path: Path, tmp_path: Path) -> None:
    """Codes for what is no file, and nothing is sent."""
    directory = os.open(tmp_path, os.O_RDONLY)
    assert call(library, pipe.server.fileno(), directory)[0] == ERR_NOT_REGULAR
    os.close(directory)
    assert call(library, pipe.server.fileno(), directory)[0] == ERR_IO
    fd = os.open(path, os.O_RDONLY)
    assert call(library, pipe.server.fileno(), fd, version=12)[0] == ERR_INVALID
    os.close(fd)
    assert pipe.received() == b""
