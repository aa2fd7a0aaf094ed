"""The three calls of the RSGI proposal, on real sockets."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest

import sendgate
from sendgate import Connection, Request
from support import Pipe, split

DATA = os.urandom(100_000)
OLD = 784111777
TAG = f'"{OLD * 10**9:x}-{len(DATA):x}"'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 100 000 bytes from 1994."""
    path = tmp_path / "file.bin"
    path.write_bytes(DATA)
    os.utime(path, (OLD, OLD))
    return path


@pytest.fixture
def fd(path: Path) -> int:
    """A descriptor that the call takes over."""
    return os.open(path, os.O_RDONLY)


def assert_closed(fd: int) -> None:
    """The descriptor is gone. (Nothing was opened since, so the number can't have been reused.)"""
    with pytest.raises(OSError):
        os.fstat(fd)


def test_response_file_fd(pipe: Pipe, fd: int) -> None:
    """The whole file with the application's status and fields; the descriptor is closed."""
    result = sendgate.response_file_fd(200, [("X", "y"), ("Content-Type", "a/b")], fd, sock=pipe.server)
    assert_closed(fd)
    status, fields, body = split(pipe.received())
    assert (status, body) == (200, DATA)
    assert (fields["x"], fields["content-type"], fields["content-length"]) == ("y", "a/b", "100000")
    assert (result.http_status, result.connection, result.body_sent) == (200, Connection.REUSABLE, len(DATA))


def test_response_file_fd_leaves_decisions_to_the_application(pipe: Pipe, fd: int) -> None:
    """Conditions and ranges of the request are not evaluated."""
    request = Request("GET", 11, [("If-None-Match", "*"), ("Range", "bytes=0-0")])
    sendgate.response_file_fd(203, [], fd, sock=pipe.server, request=request)
    status, _, body = split(pipe.received())
    assert (status, body) == (203, DATA)


def test_request_tells_head_and_keep_alive(pipe: Pipe, fd: int) -> None:
    """HEAD has no body, and HTTP/1.0 closes."""
    result = sendgate.response_file_fd(200, [], fd, sock=pipe.server, request=Request("HEAD", 10))
    status, fields, body = split(pipe.received())
    assert (status, fields["content-length"], body) == (200, "100000", b"")
    assert result.connection is Connection.CLOSE


def test_response_file_fd_range(pipe: Pipe, fd: int) -> None:
    """The bytes from start to before end, and a Content-Range that says so."""
    sendgate.response_file_fd_range(206, [], fd, 1000, 51_000, sock=pipe.server)
    assert_closed(fd)
    status, fields, body = split(pipe.received())
    assert (status, body) == (206, DATA[1000:51_000])
    assert fields["content-range"] == "bytes 1000-50999/100000"


def test_response_file_fd_range_with_the_applications_content_range(pipe: Pipe, fd: int) -> None:
    """The application's own Content-Range is sent as it is."""
    sendgate.response_file_fd_range(206, [("Content-Range", "bytes 0-9/10")], fd, 5, 15, sock=pipe.server)
    _, fields, body = split(pipe.received())
    assert (fields["content-range"], body) == ("bytes 0-9/10", DATA[5:15])


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (0, 0), (-1, 5), (0, 2**63), (2**64, 2**64 + 1)])
def test_invalid_range(pipe: Pipe, fd: int, start: int, end: int) -> None:
    """start >= end, or a number out of range, is a ValueError; nothing is sent and the descriptor is closed."""
    with pytest.raises(ValueError):
        sendgate.response_file_fd_range(206, [], fd, start, end, sock=pipe.server)
    assert_closed(fd)
    assert pipe.received() == b""


def test_range_past_the_file(pipe: Pipe, fd: int) -> None:
    """An end past the file is TruncatedError with nothing sent."""
    with pytest.raises(sendgate.TruncatedError) as caught:
        sendgate.response_file_fd_range(206, [], fd, 0, len(DATA) + 1, sock=pipe.server)
    assert caught.value.connection is Connection.UNTOUCHED
    assert_closed(fd)
    assert pipe.received() == b""


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"headers": [("A", "b\r\nC: d")]}, sendgate.FieldError),
        ({"headers": [("A", "\u0142")]}, sendgate.FieldError),
        ({"headers": 5}, TypeError),
        ({"status": 99}, ValueError),
        ({"status": "200"}, TypeError),
        ({"sock": None}, TypeError),
        ({"request": "GET"}, TypeError),
        ({"timeout": 0}, ValueError),
    ],
    ids=str,
)
def test_the_descriptor_is_closed_by_every_failure(pipe: Pipe, fd: int, change: Any, error: type[Exception]) -> None:
    """Whatever is wrong, the descriptor is closed and nothing is sent."""
    arguments = {"status": 200, "headers": [], "sock": pipe.server, **change}
    with pytest.raises(error):
        sendgate.response_file_fd(fd=fd, **arguments)
    assert_closed(fd)
    assert pipe.received() == b""


@pytest.mark.parametrize(("bad", "error"), [(-1, ValueError), (True, TypeError), (1.5, TypeError), ("x", TypeError)])
def test_what_is_no_descriptor(pipe: Pipe, bad: Any, error: type[Exception]) -> None:
    """Anything but a descriptor is refused."""
    with pytest.raises(error):
        sendgate.response_file_fd(200, [], bad, sock=pipe.server)


def test_a_file_object_is_not_taken_over(pipe: Pipe, path: Path) -> None:
    """A file object would be closed behind its owner's back, so it is refused and stays open."""
    with path.open("rb") as file:
        with pytest.raises(TypeError, match="dup"):
            sendgate.response_file_fd(200, [], file, sock=pipe.server)  # type: ignore[arg-type]
        assert file.read(10) == DATA[:10]


def test_a_dup_keeps_the_file(pipe: Pipe, path: Path) -> None:
    """The proposal's way to keep one's own descriptor."""
    with path.open("rb") as file:
        sendgate.response_file_fd(200, [], os.dup(file.fileno()), sock=pipe.server)
        assert file.read(10) == DATA[:10]
    assert split(pipe.received())[2] == DATA


@pytest.mark.parametrize(
    ("conditions", "status", "body"),
    [
        ({}, 200, DATA),
        ({"if_none_match": TAG}, 304, b""),
        ({"if_none_match": '"other"'}, 200, DATA),
        ({"if_modified_since": "Sun, 06 Nov 1994 08:49:37 GMT"}, 304, b""),
        ({"if_modified_since": "Sun, 06 Nov 1994 08:49:36 GMT"}, 200, DATA),
        ({"if_none_match": '"other"', "if_modified_since": "Sun, 06 Nov 1994 08:49:37 GMT"}, 200, DATA),
        ({"range": "bytes=10-19"}, 206, DATA[10:20]),
        ({"range": "bytes=100000-"}, 416, b""),
        ({"range": "nonsense"}, 200, DATA),
        ({"range": "bytes=10-19", "if_range": TAG}, 206, DATA[10:20]),
        ({"range": "bytes=10-19", "if_range": '"other"'}, 200, DATA),
        ({"range": b"bytes=10-19", "if_range": "Sun, 06 Nov 1994 08:49:37 GMT"}, 206, DATA[10:20]),
    ],
    ids=str,
)
def test_response_file_conditional(
    pipe: Pipe, path: Path, conditions: dict[str, Any], status: int, body: bytes
) -> None:
    """The five outcomes of the proposal's decision tree, and the file's own validators."""
    result = sendgate.response_file_conditional(200, [("Cache-Control", "x")], path, sock=pipe.server, **conditions)
    got, fields, received = split(pipe.received())
    assert (got, received) == (status, body)
    assert result.http_status == status
    if status in (200, 206, 304):
        assert fields["etag"] == TAG
        assert fields["cache-control"] == "x"
    if status == 416:
        assert fields["content-range"] == "bytes */100000"


def test_conditional_uses_the_applications_validators(pipe: Pipe, path: Path) -> None:
    """An ETag of the application's wins, also in the comparison."""
    headers = [("ETag", '"mine"')]
    for tag in ('"mine"', TAG):
        sendgate.response_file_conditional(200, headers, path, tag, sock=pipe.server)
    received = pipe.received()
    assert re.findall(rb"HTTP/1.1 (\d+) ", received)[:2] == [b"304", b"200"]
    assert received.count(b'ETag: "mine"\r\n') == 2


def test_conditional_ignores_the_conditions_of_the_request(pipe: Pipe, path: Path) -> None:
    """Only the four arguments count; the request tells the method."""
    request = Request("HEAD", 11, [("If-None-Match", "*")])
    result = sendgate.response_file_conditional(200, [], path, sock=pipe.server, request=request)
    assert (result.http_status, result.body_sent) == (200, 0)
    assert split(pipe.received())[1]["content-length"] == "100000"


def test_conditional_missing_file(pipe: Pipe, tmp_path: Path) -> None:
    """A file that can't be opened is answered 404 with an empty body."""
    result = sendgate.response_file_conditional(200, [], tmp_path / "missing", sock=pipe.server)
    status, _, body = split(pipe.received())
    assert (result.http_status, status, body) == (404, 404, b"")
    assert result.connection is Connection.REUSABLE


@pytest.mark.parametrize("argument", ["file", "if_none_match", "range"])
def test_nul_is_refused(pipe: Pipe, path: Path, argument: str) -> None:
    """What C would cut off at a NUL is refused."""
    arguments = {"file": path, argument: "a\0b"}
    with pytest.raises(ValueError, match="NUL"):
        sendgate.response_file_conditional(200, [], sock=pipe.server, **arguments)  # type: ignore[arg-type]
    assert pipe.received() == b""


def test_responder_has_the_proposals_signatures(pipe: Pipe, path: Path) -> None:
    """Names and order of the arguments are the proposal's."""
    expected = {
        "response_file_fd": ["status", "headers", "fd"],
        "response_file_fd_range": ["status", "headers", "fd", "start", "end"],
        "response_file_conditional": [
            "status", "headers", "file_path", "if_none_match", "if_modified_since", "range_header", "if_range",
        ],
    }  # fmt: skip
    protocol = sendgate.Responder(pipe.server, Request())
    for name, arguments in expected.items():
        assert list(inspect.signature(getattr(protocol, name)).parameters) == arguments
    protocol.response_file_fd(200, [], os.open(path, os.O_RDONLY))
    protocol.response_file_fd_range(206, [], os.open(path, os.O_RDONLY), 0, 10)
    protocol.response_file_conditional(200, [], str(path), if_none_match=TAG, range_header="bytes=0-0")
    protocol.response_file_conditional(200, [], str(path), None, None, "bytes=-1", None)
    with pytest.raises(ValueError):
        protocol.response_file_fd_range(206, [], os.open(path, os.O_RDONLY), 10, 10)
    received = pipe.received()
    # The file's random bytes might look like a status line, so they are taken out.
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", received.replace(DATA, b""))
    assert statuses == [b"200", b"206", b"304", b"206"]
    assert received.endswith(DATA[-1:])
