"""The package's calls on real files and sockets."""

from __future__ import annotations

import array
import contextlib
import email.message
import errno
import gc
import http.client
import inspect
import io
import mmap
import os
import re
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest

import sendgate
from sendgate import Connection, Request, Rule, Step
from support import Pipe, split, tcp_pair

DATA = bytes(range(256)) * 40  # 10240 bytes: head and body leave in one send
OLD = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of 10240 bytes from 1994."""
    path = tmp_path / "small.bin"
    path.write_bytes(DATA)
    os.utime(path, (OLD, OLD))
    return path


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of 8 MiB from 1994: more than a socket's buffers hold."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(8 << 20))
    os.utime(path, (OLD, OLD))
    return path


def step_to_end(transfer: sendgate.Transfer, sock: socket.socket, budget: int = 0) -> list[Step]:
    """Step as an event loop does. Returns what the steps said."""
    steps = []
    while True:
        step = transfer.step(budget)
        steps.append(step)
        if step is Step.DONE:
            return steps
        if step is Step.WANT_WRITE:
            assert select.select([], [sock], [], 20)[1], "never writable again"
        elif step is Step.WANT_READ:
            assert select.select([sock], [], [], 20)[0], "never readable again"


# ---- The library ----


def test_version_and_features() -> None:
    """The version is the library's, and the package has the same."""
    import importlib.metadata

    assert sendgate.__version__ == ".".join(map(str, sendgate.version())) == importlib.metadata.version("sendgate")
    assert sendgate.features() <= {"sendfile", "sender"}
    assert ("sendfile" in sendgate.features()) == sys.platform.startswith("linux")


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing checks version and layout, and says what doesn't fit."""
    from sendgate import _core

    with monkeypatch.context() as patch, pytest.raises(ImportError, match="found a library of version"):
        patch.setattr(_core, "version", lambda: (9, 9, 9))
        _core._check_library()
    with monkeypatch.context() as patch, pytest.raises(ImportError, match="structs of sendgate.h have sizes"):
        patch.setitem(_core._SIZES, "sendgate_rep", 8)
        _core._check_library()


def test_all_that_is_public_is_documented() -> None:
    """Every public name has a docstring, and so has every public method."""
    for name in sendgate.__all__:
        value = getattr(sendgate, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    assert inspect.getdoc(member), f"{name}.{key}"


# ---- Requests ----


def test_request_from_pairs() -> None:
    """Names in any case, str or bytes; the lines of one field become one value, in order."""
    request = Request("GET", 11, [("if-NONE-match", '"a"'), (b"If-None-Match", b'"\xe9"'), ("X", "y")])
    assert (request.method, request.version, request.has_body, request.target) == ("GET", 11, False, None)
    assert request.field("If-None-Match") == '"a", "\xe9"'
    assert request.field("range") is None
    with pytest.raises(KeyError):
        request.field("X")


@pytest.mark.parametrize(
    ("version", "known"), [(10, 10), (11, 11), ("HTTP/1.0", 10), ("HTTP/1.1", 11), ("HTTP/2", 11), ("HTTP/0.9", 10)]
)
def test_request_versions(version: Any, known: int) -> None:
    """A version is a number or the text; what a front server speaks counts as 1.1."""
    assert Request("GET", version).version == known


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("GET", 12), ValueError),
        (("G\u0142T",), sendgate.FieldError),
        (("GET", 11, [("Range", "\u0142")]), sendgate.FieldError),
        (("GET", 11, [("Range", 5)]), TypeError),
        (("GET", 11, [(None, "x")]), TypeError),
        ((None,), TypeError),
    ],
)
def test_request_refuses(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    """What can't be a request is an error of the kind that a caller expects."""
    with pytest.raises(error):
        Request(*arguments)


@pytest.mark.parametrize(
    ("fields", "has_body"),
    [
        ([], False),
        ([("Content-Length", "0")], False),
        ([("Content-Length", "5")], True),
        ([("Transfer-Encoding", "chunked")], True),
    ],
)
def test_request_content(fields: list[tuple[str, str]], has_body: bool) -> None:
    """Announced content is noticed, unless the caller says that it was read."""
    assert Request("POST", 11, fields).has_body is has_body
    assert Request("POST", 11, fields, has_body=False).has_body is False
    assert Request("POST", 11, fields, has_body=True).has_body is True


def test_request_from_environ() -> None:
    """A WSGI environment has the same fields under other names."""
    environ = {
        "REQUEST_METHOD": "HEAD",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "CONTENT_LENGTH": "",
        "HTTP_CONNECTION": "keep-alive",
        "HTTP_IF_NONE_MATCH": '"a", "\xe9"',
        "HTTP_IF_MODIFIED_SINCE": "x",
        "HTTP_IF_UNMODIFIED_SINCE": "y",
        "HTTP_IF_MATCH": "*",
        "HTTP_IF_RANGE": "z",
        "HTTP_RANGE": "bytes=0-9",
        "wsgi.input": object(),
    }
    request = Request.from_environ(environ)
    assert (request.method, request.version, request.has_body) == ("HEAD", 10, False)
    assert [request.field(name) for name in ("Connection", "If-None-Match", "If-Modified-Since")] == [
        "keep-alive",
        '"a", "\xe9"',
        "x",
    ]
    assert [request.field(name) for name in ("If-Unmodified-Since", "If-Match", "If-Range", "Range")] == [
        "y",
        "*",
        "z",
        "bytes=0-9",
    ]
    assert Request.from_environ({**environ, "CONTENT_LENGTH": "5"}).has_body
    assert Request.from_environ({**environ, "HTTP_TRANSFER_ENCODING": "chunked"}).has_body
    assert Request.from_environ({}).method == "GET"


def test_request_from_messages() -> None:
    """The header objects of http.client and email keep their duplicates."""
    raw = b'If-Match: "a"\r\nif-match: "b"\r\nRange: bytes=0-0\r\n\r\n'
    message = http.client.parse_headers(io.BytesIO(raw))
    assert Request("GET", 11, message).field("If-Match") == '"a", "b"'
    other = email.message.Message()
    other["If-Match"] = '"c"'
    assert Request("GET", 11, other).field("If-Match") == '"c"'
    assert Request("GET", 11, {"Range": "bytes=0-0"}).field("Range") == "bytes=0-0"


def test_request_from_head() -> None:
    """A head as received; what follows it is left alone, and the caller's buffer may be reused."""
    head = b'GET /a?b HTTP/1.1\r\nHost: x\r\nIf-Match: "a"\r\nIf-Match: "b"\r\nContent-Length: 3\r\n\r\n'
    buffer = bytearray(head + b"abcGET")
    request = Request.from_head(buffer)
    assert request is not None
    buffer[:] = b"x" * len(buffer)
    gc.collect()
    assert request.head_length == len(head)
    assert (request.method, request.target, request.version, request.has_body) == ("GET", "/a?b", 11, True)
    assert request.field("If-Match") == '"a", "b"'
    for end in range(len(head)):
        assert Request.from_head(head[:end]) is None, end


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", b"\x16\x03\x01 x y\r\n\r\n"],
)
def test_request_from_a_malformed_head(head: bytes) -> None:
    """What is no request head raises RequestError, which is a ValueError."""
    with pytest.raises(sendgate.RequestError) as caught:
        Request.from_head(head)
    assert isinstance(caught.value, ValueError)
    assert caught.value.name == "SENDGATE_ERR_REQUEST"


def test_a_request_is_shared_by_threads(small: Path) -> None:
    """One Request and one file serve many threads at once."""
    request = Request("GET", 11, [("Range", "bytes=1-2"), ("If-Match", "*"), ("If-Match", "*")])
    answers: list[Any] = []

    def work() -> None:
        for _ in range(50):
            answers.append(sendgate.decide(request, small).status)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # "*, *" is no valid If-Match (RFC 9110 13.1.1), so the condition is false.
    assert answers == [412] * 400


# ---- decide ----


def test_decide_says_it_in_three_forms(small: Path) -> None:
    """Numbers, head bytes and head fields are one answer."""
    decision = sendgate.decide(
        Request("GET", 11, [("Range", "bytes=0-9,20-29")]), small, content_type="text/x", now=1700000000, seed=7
    )
    assert decision.status == 206
    assert decision.ranges == ((0, 10), (20, 10))
    assert decision.keep_alive is True
    fields = dict(decision.fields)
    assert fields["Content-Type"].startswith("multipart/byteranges; boundary=")
    assert int(fields["Content-Length"]) == decision.content_length == decision.body_length
    assert fields["Content-Type"].encode() in decision.head
    assert decision.head.startswith(b"HTTP/1.1 206 Partial Content\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\n")
    assert decision.head.endswith(b"\r\n\r\n")


def test_decide_for_cgi(small: Path) -> None:
    """A CGI head has a Status field, and neither Date nor Connection."""
    decision = sendgate.decide(None, small, head=sendgate.HeadForm.CGI, close=True)
    assert decision.head.startswith(b"Status: 200 OK\r\n")
    assert {"Date", "Connection"}.isdisjoint(name for name, _ in decision.fields)


def test_decide_with_a_head_of_any_size(small: Path) -> None:
    """Heads with many or long fields are whole."""
    headers = [(f"X-{i}", "v" * 1000) for i in range(100)]
    decision = sendgate.decide(None, small, headers=headers)
    assert [field for field in decision.fields if field[0].startswith("X-")] == headers
    assert len(decision.head) > 100_000
    assert decision.head.count(b"\r\nX-") == 100


def test_decide_makes_random_boundaries(small: Path) -> None:
    """Without a seed, no two multipart answers have the same boundary; with one, they have."""
    request = Request("GET", 11, [("Range", "bytes=0-0,2-2")])
    assert sendgate.decide(request, small).head != sendgate.decide(request, small).head
    first, second = (sendgate.decide(request, small, seed=5, now=1700000000) for _ in range(2))
    assert first == second


def test_header_rules(small: Path) -> None:
    """A field replaces the library's unless its rule says otherwise, and FROZEN survives a 304."""
    fields = dict(sendgate.decide(None, small, headers=[("ETag", '"mine"'), ("X", "y")]).fields)
    assert (fields["ETag"], fields["X"]) == ('"mine"', "y")
    fields = dict(sendgate.decide(None, small, headers=[("ETag", '"mine"', Rule.DEFAULT)]).fields)
    assert fields["ETag"].startswith(f'"{OLD * 10**9:x}-')
    assert "ETag" not in dict(sendgate.decide(None, small, headers=[("ETag", "", Rule.REMOVE)]).fields)
    cookies = [("Set-Cookie", "a=1", Rule.APPEND), ("Set-Cookie", "b=2", Rule.APPEND)]
    values = [value for name, value in sendgate.decide(None, small, headers=cookies).fields if name == "Set-Cookie"]
    assert values == ["a=1", "b=2"]
    request = Request("GET", 11, [("If-None-Match", "*")])
    frozen = [("Content-Disposition", "inline", Rule.OVERRIDE | Rule.FROZEN), ("Content-Language", "en")]
    decision = sendgate.decide(request, small, headers=frozen)
    assert decision.status == 304
    assert dict(decision.fields)["Content-Disposition"] == "inline"
    assert "Content-Language" not in dict(decision.fields)
    assert dict(sendgate.decide(None, small, headers={"A": "b"}).fields)["A"] == "b"


@pytest.mark.parametrize("row", [(), ("A",), ("A", "b", "c"), ("A", "b", -1), ("A", "b", 1 << 32), ("A", "b", 1, 2)])
def test_a_row_that_is_no_field(small: Path, row: tuple[Any, ...]) -> None:
    """The error says what one is."""
    with pytest.raises(TypeError, match="a field is a name and a value"):
        sendgate.decide(None, small, headers=[row])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "header",
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\0b"),
        ("X\r\nY", "a"),
        ("X Y", "a"),
        ("", "a"),
        ("X", "\u0142"),
        ("Content-Length", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
        ("ETag", "no quotes"),
    ],
)
def test_response_splitting_is_refused(header: tuple[str, str], small: Path, pair: tuple[Any, Any]) -> None:
    """A field that could end the head early, or lie about its end, is refused with nothing written."""
    server, client = pair
    for call in (lambda: sendgate.decide(None, small, headers=[header]),
                 lambda: sendgate.respond(server, None, small, headers=[header])):  # fmt: skip
        with pytest.raises(sendgate.FieldError) as caught:
            call()
        assert isinstance(caught.value, ValueError)
        assert caught.value.connection is Connection.UNTOUCHED
    with pytest.raises(sendgate.FieldError):
        sendgate.respond(server, None, small, content_type=header[0] + "\r\nX: y")
    server.close()
    assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("etag", "expected"),
    [(True, f'"{OLD * 10**9:x}-2800"'), (False, None), ('"own"', '"own"'), ('W/"own"', 'W/"own"')],
)
def test_etag_option(etag: Any, expected: str | None, small: Path) -> None:
    """The file's tag, none, or the caller's, which conditions are compared with."""
    assert dict(sendgate.decide(None, small, etag=etag).fields).get("ETag") == expected
    if expected:
        request = Request("GET", 11, [("If-None-Match", expected)])
        assert sendgate.decide(request, small, etag=etag).status == 304


def test_etag_of_more(small: Path) -> None:
    """Inode and status change time make the tag differ where time and size are equal."""
    tags = {
        dict(sendgate.decide(None, small, etag_inode=inode, etag_ctime=ctime).fields)["ETag"]
        for inode in (False, True)
        for ctime in (False, True)
    }
    assert len(tags) == 4
    assert dict(sendgate.decide(None, small, etag_inode=True).fields)["ETag"].endswith(f'-{small.stat().st_ino:x}"')


def test_a_young_file_has_a_weak_tag(tmp_path: Path) -> None:
    """A file changed this very second may change again without a new time (RFC 9110 8.8.1)."""
    path = tmp_path / "new"
    path.write_bytes(b"x")
    decision = sendgate.decide(None, path)
    assert dict(decision.fields)["ETag"].startswith('W/"')
    later = sendgate.decide(None, path, now=int(time.time()) + 3)
    assert dict(later.fields)["ETag"].startswith('"')
    # Another Last-Modified doesn't make the tag any more trustworthy.
    assert dict(sendgate.decide(None, path, last_modified=OLD).fields)["ETag"].startswith('W/"')


def test_last_modified_option(small: Path) -> None:
    """The file's time, none, or the caller's: seconds or an aware datetime."""
    from datetime import datetime, timezone

    when = datetime(2001, 2, 3, 4, 5, 6, 789000, tzinfo=timezone.utc)
    text = "Sat, 03 Feb 2001 04:05:06 GMT"
    assert dict(sendgate.decide(None, small).fields)["Last-Modified"] == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert "Last-Modified" not in dict(sendgate.decide(None, small, last_modified=False).fields)
    for value in (when, when.timestamp(), int(when.timestamp())):
        assert dict(sendgate.decide(None, small, last_modified=value).fields)["Last-Modified"] == text
        request = Request("GET", 11, [("If-Modified-Since", text)])
        assert sendgate.decide(request, small, last_modified=value).status == 304
    with pytest.raises(ValueError, match="time zone"):
        sendgate.decide(None, small, last_modified=datetime(2001, 2, 3))


# ---- File arguments ----


def body_of(file: Any, **options: Any) -> bytes:
    """What is sent for a file argument."""
    server, client = tcp_pair()
    with server, client:
        sendgate.respond(server, None, file, **options)
        server.close()
        chunks = []
        while chunk := client.recv(1 << 16):
            chunks.append(chunk)
    status, fields, body = split(b"".join(chunks))
    assert status == 200
    assert int(fields["content-length"]) == len(body)
    return body


@pytest.mark.parametrize("kind", ["fd", "raw", "buffered", "str", "path"])
def test_files(kind: str, small: Path) -> None:
    """A descriptor, an object with one, or a path."""
    with contextlib.ExitStack() as stack:
        if kind == "fd":
            fd = os.open(small, os.O_RDONLY)
            stack.callback(os.close, fd)
            file: Any = fd
        elif kind == "raw":
            file = stack.enter_context(open(small, "rb", buffering=0))
        elif kind == "buffered":
            file = stack.enter_context(open(small, "rb"))
        else:
            file = str(small) if kind == "str" else small
        assert body_of(file) == DATA
        assert body_of(file, offset=10, length=5) == DATA[10:15]
        assert body_of(file, offset=len(DATA)) == b""
        with pytest.raises(ValueError, match="past the end"):
            sendgate.decide(None, file, offset=10, length=len(DATA))


def buffers() -> list[Any]:
    """Every kind of buffer that has DATA in it."""
    mapped = mmap.mmap(-1, len(DATA))
    mapped[:] = DATA
    return [
        DATA,
        bytearray(DATA),
        memoryview(DATA),
        mapped,
        array.array("B", DATA),
        array.array("I", DATA),
        io.BytesIO(DATA),
    ]


@pytest.mark.parametrize("buffer", buffers(), ids=lambda buffer: type(buffer).__name__)
def test_buffers(buffer: Any) -> None:
    """A buffer is sent like a file, and has no validators of its own."""
    assert body_of(buffer) == DATA
    assert body_of(buffer, offset=10, length=5) == DATA[10:15]
    assert body_of(buffer, offset=len(DATA)) == b""
    decision = sendgate.decide(Request("GET", 11, [("Range", "bytes=0-9")]), buffer)
    assert decision.ranges == ((0, 10),)
    assert {"ETag", "Last-Modified"}.isdisjoint(name for name, _ in decision.fields)
    decision = sendgate.decide(Request("GET", 11, [("If-None-Match", '"x"')]), buffer, etag='"x"')
    assert decision.status == 304


def test_empty_buffers() -> None:
    """Nothing at all can be sent, too."""
    for empty in (b"", bytearray(), io.BytesIO()):
        assert body_of(empty) == b""


def test_bytes_are_content_and_never_a_path(small: Path) -> None:
    """A path as bytes would be ambiguous, so it is what is sent."""
    assert body_of(os.fsencode(small)) == os.fsencode(small)


def test_the_position_is_that_of_tell(small: Path) -> None:
    """A buffered file that was read starts where the reader is, not where its descriptor is; neither is moved."""
    with small.open("rb") as file:
        file.read(10)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) > 10  # it read ahead
        assert body_of(file) == DATA[10:]
        assert file.tell() == 10
        assert file.read(5) == DATA[10:15]
        assert body_of(file, offset=0) == DATA
        file.seek(len(DATA) + 100)
        assert body_of(file) == b""
    with small.open("rb", buffering=0) as raw:
        raw.seek(7)
        assert body_of(raw) == DATA[7:]
        # A number says nothing about a position: it is the whole file.
        assert body_of(raw.fileno()) == DATA
        assert raw.tell() == 7
    stream = io.BytesIO(DATA)
    stream.seek(4)
    assert body_of(stream) == DATA[4:]


def test_a_buffer_is_locked_only_while_it_is_sent() -> None:
    """A bytearray can't be resized during a transfer, and can afterwards."""
    server, client = tcp_pair()
    with server, client, sendgate.Transfer() as transfer:
        server.setblocking(False)
        data = bytearray(4 << 20)
        transfer.start(server, None, data)
        while transfer.step() is not Step.WANT_WRITE:
            pass
        with pytest.raises(BufferError):
            data.append(0)
        received = 0
        total = transfer.result.body_length
        while transfer.step() is not Step.DONE:
            received += len(client.recv(1 << 20))
        data.append(0)
        assert total == 4 << 20
        data.pop()
        transfer.start(server, None, data)
        transfer.close()
        data.append(0)


@pytest.mark.parametrize("file", [None, 1.5, True, object(), [b"x"], io.StringIO("x")], ids=repr)
def test_what_is_no_file(file: Any) -> None:
    """A wrong kind of file is a TypeError that lists the right ones (or what its fileno() raises)."""
    with pytest.raises((TypeError, io.UnsupportedOperation)):
        sendgate.decide(None, file)


@pytest.mark.parametrize("kind", ["directory", "fifo", "pipe", "socket", "device"])
def test_what_is_not_a_regular_file(kind: str, tmp_path: Path) -> None:
    """NotRegularError, at once, with nothing sent."""
    with contextlib.ExitStack() as stack:
        file: Any
        if kind == "directory":
            file = tmp_path
        elif kind == "fifo":
            file = tmp_path / "fifo"
            os.mkfifo(file)
        elif kind == "pipe":
            file, other = os.pipe()
            stack.callback(os.close, file)
            stack.callback(os.close, other)
        elif kind == "socket":
            file = stack.enter_context(socket.socket())
        else:
            file = "/dev/zero"
        server, client = tcp_pair()
        with server, client:
            with pytest.raises(sendgate.NotRegularError) as caught:
                sendgate.respond(server, None, file)
            assert caught.value.connection is Connection.UNTOUCHED
            server.close()
            assert client.recv(1) == b""


def test_files_that_cannot_be_opened_or_read(tmp_path: Path) -> None:
    """The exceptions are those of open(), and OSError with errno for a bad descriptor."""
    with pytest.raises(FileNotFoundError):
        sendgate.decide(None, tmp_path / "missing")
    fd = os.open(tmp_path, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError) as caught:
        sendgate.decide(None, fd)
    assert caught.value.errno == errno.EBADF
    assert isinstance(caught.value, sendgate.IOFailedError)
    with pytest.raises(ValueError):
        sendgate.decide(None, -1)


def test_open_beneath(tmp_path: Path, small: Path) -> None:
    """A File knows what its one fstat said, and closes its descriptor."""
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with sendgate.open_beneath(directory, "small.bin") as file:
            assert (file.size, file.mtime_ns) == (len(DATA), OLD * 10**9)
            assert file.etag == f'"{OLD * 10**9:x}-2800"'
            assert body_of(file) == DATA
            assert body_of(file, offset=3, length=4) == DATA[3:7]
            # The length is that of the fstat: nothing of what is appended later is sent.
            with small.open("ab") as more:
                more.write(b"more")
            assert body_of(file) == DATA
            fd = file.fileno()
        with pytest.raises(OSError):
            os.fstat(fd)
        for use in (file.fileno, lambda: sendgate.decide(None, file)):
            with pytest.raises(ValueError, match="closed"):
                use()
        file.close()
        dropped = sendgate.open_beneath(directory, b"small.bin")
        fd = dropped.fileno()
        del dropped
        gc.collect()
        with pytest.raises(OSError):
            os.fstat(fd)
    finally:
        os.close(directory)


def test_open_beneath_stays_beneath(tmp_path: Path) -> None:
    """Neither dots nor links lead out, unless links are allowed to; every refusal has its exception."""
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (root / "file").write_text("file")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "within").symlink_to("inner/../file")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    directory = os.open(root, os.O_RDONLY)
    try:
        for path, number in (
            ("../secret", errno.EXDEV),
            ("inner/../../secret", errno.EXDEV),
            (str(tmp_path / "secret"), errno.EXDEV),
            ("out", errno.EXDEV),
            ("loop", errno.ELOOP),
            ("file/x", errno.ENOTDIR),
            ("x" * 300, errno.ENAMETOOLONG),
        ):
            with pytest.raises(OSError) as caught:
                sendgate.open_beneath(directory, path)
            assert (caught.value.errno, caught.value.filename) == (number, path)
        with pytest.raises(FileNotFoundError):
            sendgate.open_beneath(directory, "missing")
        with pytest.raises(sendgate.NotRegularError) as not_regular:
            sendgate.open_beneath(directory, "inner")
        assert not_regular.value.errno == errno.EISDIR
        with pytest.raises(sendgate.NotRegularError) as not_regular:
            sendgate.open_beneath(directory, "fifo")
        assert not_regular.value.errno != errno.EISDIR
        with pytest.raises(ValueError, match="NUL"):
            sendgate.open_beneath(directory, "file\0.txt")
        with sendgate.open_beneath(directory, "within") as file:
            assert file.size == 4
        with sendgate.open_beneath(directory, "out", outside=True) as file:
            assert file.size == 6
    finally:
        os.close(directory)


# ---- respond ----


def test_respond(pipe: Pipe, small: Path) -> None:
    """An answer with head and body, and a result that says so."""
    result = sendgate.respond(pipe.server, Request(), small, content_type="text/x", headers=[("X", "y")])
    received = pipe.received()
    status, fields, body = split(received)
    assert (status, fields["content-type"], fields["x"], body) == (200, "text/x", "y", DATA)
    head = len(received) - len(DATA)
    assert result == sendgate.Result(0, 200, Connection.REUSABLE, head, len(DATA), len(DATA))


@pytest.mark.parametrize("mode", ["blocking", "timeout", "non-blocking", "descriptor"])
@pytest.mark.parametrize("copy", [False, True])
def test_respond_on_every_kind_of_socket(pipe: Pipe, big: Path, mode: str, copy: bool) -> None:
    """Blocking or not, with a timeout of its own or not: all of it arrives, and the mode is as it was."""
    if mode == "timeout":
        pipe.server.settimeout(5)
    elif mode == "non-blocking":
        pipe.server.setblocking(False)
    before = (pipe.server.gettimeout(), os.get_blocking(pipe.server.fileno()))
    sock: Any = pipe.server.fileno() if mode == "descriptor" else pipe.server
    result = sendgate.respond(sock, None, big, copy=copy)
    assert (pipe.server.gettimeout(), os.get_blocking(pipe.server.fileno())) == before
    assert result.connection is Connection.REUSABLE
    assert split(pipe.received())[2] == big.read_bytes()


def test_respond_to_many_requests_on_one_connection(pipe: Pipe, small: Path) -> None:
    """Answers follow each other without a byte in between."""
    requests = [
        Request("GET", 11, [("Range", "bytes=0-9")]),
        Request("HEAD"),
        Request("GET", 11, [("If-None-Match", "*")]),
        Request("GET", 11, [("If-Match", '"x"')]),
        Request("GET", 11, [("Range", "bytes=99999-")]),
        Request("GET", 11, [("Range", "bytes=0-0,-1")]),
        Request(),
    ]
    results = [sendgate.respond(pipe.server, request, small) for request in requests]
    assert [result.http_status for result in results] == [206, 200, 304, 412, 416, 206, 200]
    assert all(result.connection is Connection.REUSABLE for result in results)
    received = pipe.received()
    assert len(received) == sum(result.head_sent + result.body_sent for result in results)
    assert [int(code) for code in re.findall(rb"HTTP/1.1 (\d+) ", received)] == [206, 200, 304, 412, 416, 206, 200]
    assert received.endswith(DATA)


@pytest.mark.parametrize(
    ("request_", "close", "connection"),
    [
        (Request("GET", 10), False, Connection.CLOSE),
        (Request("GET", 10, [("Connection", "keep-alive")]), False, Connection.REUSABLE),
        (Request("GET", 11, [("Connection", "close")]), False, Connection.CLOSE),
        (Request("POST", 11, [("Content-Length", "5")]), False, Connection.CLOSE),
        (Request(), True, Connection.CLOSE),
        (None, False, Connection.REUSABLE),
    ],
)
def test_what_becomes_of_the_connection(
    pipe: Pipe, small: Path, request_: Request | None, close: bool, connection: Connection
) -> None:
    """The result says whether the next request may be read, and the head says the same."""
    result = sendgate.respond(pipe.server, request_, small, status=200, close=close)
    fields = split(pipe.received())[1]
    assert result.connection is connection
    assert (fields.get("connection") == "close") == (connection is Connection.CLOSE)


def test_a_status_of_the_applications_own(pipe: Pipe) -> None:
    """With any status but 200 neither conditions nor ranges are evaluated."""
    request = Request("GET", 11, [("Range", "bytes=0-0"), ("If-None-Match", "*")])
    result = sendgate.respond(pipe.server, request, b"not here", status=404)
    status, _, body = split(pipe.received())
    assert (result.http_status, status, body) == (404, 404, b"not here")


def test_body_only(pipe: Pipe, small: Path) -> None:
    """HeadForm.NONE leaves the head to the caller; now and seed make a separate decision agree."""
    request = Request("GET", 11, [("Range", "bytes=5-9")])
    decision = sendgate.decide(request, small)
    pipe.server.sendall(decision.head)
    result = sendgate.respond(pipe.server, request, small, head=sendgate.HeadForm.NONE)
    assert (result.head_sent, result.body_sent) == (0, 5)
    assert split(pipe.received())[2] == DATA[5:10]


def test_body_only_of_a_multipart(pipe: Pipe, small: Path) -> None:
    """With the same seed, the boundary that ``decide`` announces is the one that ``respond`` sends."""
    request = Request("GET", 11, [("Range", "bytes=0-1,5-9")])
    decision = sendgate.decide(request, small, now=1_700_000_000, seed=7)
    result = sendgate.respond(pipe.server, request, small, head=sendgate.HeadForm.NONE, now=1_700_000_000, seed=7)
    assert result.body_sent == decision.content_length
    boundary = dict(decision.fields)["Content-Type"].partition("boundary=")[2].encode()
    body = pipe.received()
    assert body.startswith(b"--" + boundary + b"\r\n")
    assert body.endswith(b"\r\n--" + boundary + b"--\r\n")


#: Shorter than what the library keeps without asking for memory, longer, longer than what it sends at once, and none.
MINE = [b"HTTP/1.1 299 Mine\r\nX: \xe9\r\n\r\n", b"m" * 513, b"m" * 20_000, b""]


@pytest.mark.parametrize("head", MINE, ids=len)
def test_a_head_of_ones_own(pipe: Pipe, small: Path, big: Path, head: bytes) -> None:
    """Bytes are sent as they are in the head's place, before files and memory; they count as the head."""
    for file in (small, big, DATA):
        result = sendgate.respond(pipe.server, None, file, head=head)
        length = len(file) if isinstance(file, bytes) else file.stat().st_size
        assert (result.head_sent, result.body_sent, result.http_status) == (len(head), length, 200)
    assert pipe.received() == head + DATA + head + big.read_bytes() + head + DATA


def test_a_head_of_ones_own_decides_nothing(pipe: Pipe, small: Path) -> None:
    """Which bytes follow it, and what becomes of the connection, is decided from the request as ever."""
    head = MINE[0]
    for request, body, connection in (
        (Request("HEAD"), b"", Connection.REUSABLE),
        (Request("GET", 11, {"If-None-Match": "*"}), b"", Connection.REUSABLE),
        (Request("GET", 11, {"Range": "bytes=5-9"}), DATA[5:10], Connection.REUSABLE),
        (Request("GET", 10), DATA, Connection.CLOSE),
    ):
        decision = sendgate.decide(request, small, head=head)
        assert (decision.head, decision.fields, decision.body_length) == (head, (), len(body))
        assert decision.keep_alive == (connection is Connection.REUSABLE)
        result = sendgate.respond(pipe.server, request, small, head=head)
        assert (result.body_sent, result.connection) == (len(body), connection)
        assert result.http_status == decision.status
    assert pipe.received() == head + head + head + DATA[5:10] + head + DATA


@pytest.mark.parametrize("head", MINE, ids=len)
def test_a_transfer_with_a_head_of_ones_own(pair: tuple[Any, Any], small: Path, big: Path, head: bytes) -> None:
    """Stepped and pulled; the bytes may be gone once it was started."""
    server, client = pair
    server.setblocking(False)
    pipe = Pipe(server, client)
    with sendgate.Transfer() as transfer:
        for file in (small, big):
            transfer.start(server, None, file, head=bytes(bytearray(head)))
            gc.collect()
            step_to_end(transfer, server)
            assert (transfer.result.head_sent, transfer.result.body_sent) == (len(head), file.stat().st_size)
        transfer.start(None, None, small, head=head)
        pulled, buffer = b"", bytearray(7000)
        while count := transfer.pull(buffer):
            pulled += buffer[:count]
    assert pulled == head + DATA
    assert pipe.received() == head + DATA + head + big.read_bytes()


def test_a_multipart_with_a_head_of_ones_own(pipe: Pipe, small: Path) -> None:
    """With the same seed, the boundary in a head that was made of a decision is the one in the body."""
    request = Request("GET", 11, [("Range", "bytes=0-1,5-9")])
    decision = sendgate.decide(request, small, now=1_700_000_000, seed=7)
    content_type = dict(decision.fields)["Content-Type"]
    head = f"HTTP/1.1 206 Mine\r\nContent-Type: {content_type}\r\n\r\n".encode()
    sendgate.respond(pipe.server, request, small, head=head, now=1_700_000_000, seed=7)
    status, _, body = split(pipe.received())
    assert status == 206
    assert len(body) == decision.content_length
    assert body.startswith(b"--" + content_type.partition("boundary=")[2].encode() + b"\r\n")


@pytest.mark.parametrize(
    "options",
    [
        {"status": 199},
        {"status": 1000},
        {"head": "HTTP/1.1 200 OK"},
        {"head": bytearray(b"HTTP/1.1 200 OK")},
        {"max_ranges": 0},
        {"max_ranges": 65},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": 1e12},
        {"total_timeout": 0},
        {"offset": -1},
        {"length": -1},
        {"offset": 2**63},
        {"now": 2**63},
        {"head": 7},
    ],
    ids=str,
)
def test_wrong_values(options: dict[str, Any], pair: tuple[Any, Any], small: Path) -> None:
    """An argument out of its range is a ValueError, and nothing is sent."""
    server, client = pair
    with pytest.raises(ValueError):
        sendgate.respond(server, None, small, **options)
    server.close()
    assert client.recv(1) == b""


@pytest.mark.parametrize(
    "arguments",
    [
        {"status": "200"},
        {"status": True},
        {"request": b"GET / HTTP/1.1\r\n\r\n"},
        {"sock": None},
        {"sock": "socket"},
        {"headers": [("A", 5)]},
        {"content_type": 5},
        {"offset": 1.5},
    ],
    ids=str,
)
def test_wrong_types(arguments: dict[str, Any], pair: tuple[Any, Any], small: Path) -> None:
    """An argument of the wrong type is a TypeError, and nothing is sent."""
    server, client = pair
    options = {"sock": server, "request": None, **arguments}
    with pytest.raises(TypeError):
        sendgate.respond(options.pop("sock"), options.pop("request"), small, **options)
    server.close()
    assert client.recv(1) == b""


def test_a_closed_socket(small: Path) -> None:
    """A socket that was closed has no descriptor, which is said."""
    server, client = tcp_pair()
    client.close()
    server.close()
    with pytest.raises(ValueError, match="closed"):
        sendgate.respond(server, None, small)


def test_what_is_no_socket(small: Path, tmp_path: Path) -> None:
    """A descriptor of a file is an I/O error with its errno, not a garbled file."""
    with (tmp_path / "other").open("wb") as other:
        with pytest.raises(sendgate.IOFailedError) as caught:
            sendgate.respond(other.fileno(), None, small)
        assert caught.value.errno == errno.ENOTSOCK
        assert isinstance(caught.value, OSError)
    assert (tmp_path / "other").read_bytes() == b""


# ---- Failures ----


def reset(sock: socket.socket) -> None:
    """Close so that the peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def take_and_reset(sock: socket.socket) -> None:
    """Leave when something has come."""
    sock.recv(1)
    reset(sock)


@pytest.mark.parametrize("copy", [False, True])
def test_peer_gone(pair: tuple[Any, Any], big: Path, copy: bool) -> None:
    """PeerClosedError, a ConnectionError with EPIPE or ECONNRESET; the connection is broken."""
    server, client = pair
    leaving = threading.Thread(target=take_and_reset, args=[client])
    leaving.start()
    with pytest.raises(sendgate.PeerClosedError) as caught:
        sendgate.respond(server, None, big, copy=copy)
    leaving.join()
    error = caught.value
    assert isinstance(error, ConnectionError)
    assert error.errno in (errno.EPIPE, errno.ECONNRESET)
    assert error.result is not None
    assert error.connection is error.result.connection is Connection.BROKEN
    assert error.result.body_sent < error.result.body_length == 8 << 20
    assert error.name == "SENDGATE_ERR_PEER_CLOSED"
    assert str(error)


def test_peer_gone_with_sigpipe_at_its_default(small: Path, big: Path) -> None:
    """No SIGPIPE is raised even in a process that would die of it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for file in (small, big):
                server, client = socket.socketpair()
                client.close()
                try:
                    sendgate.respond(server, None, file)
                except sendgate.PeerClosedError:
                    code = 0
                else:
                    code = 2
                    break
                server.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_progress(pair: tuple[Any, Any], big: Path) -> None:
    """ResponseTimeoutError, a TimeoutError, when the client takes nothing for so long."""
    server, _client = pair
    started = time.monotonic()
    with pytest.raises(sendgate.ResponseTimeoutError) as caught:
        sendgate.respond(server, None, big, timeout=0.2)
    assert 0.2 <= time.monotonic() - started < 5
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.connection is Connection.BROKEN


def test_too_slow_in_total(pair: tuple[Any, Any], big: Path) -> None:
    """total_timeout ends a response that trickles, however often it makes progress."""
    server, client = pair
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            with contextlib.suppress(OSError):
                client.recv(1024)

    thread = threading.Thread(target=trickle)
    thread.start()
    started = time.monotonic()
    with pytest.raises(sendgate.ResponseTimeoutError):
        sendgate.respond(server, None, big, timeout=30, total_timeout=0.4)
    assert 0.4 <= time.monotonic() - started < 5
    stop.set()
    thread.join()


def test_file_truncated_while_sent(big: Path) -> None:
    """TruncatedError, which is a FileChangedError; never invented bytes, never a hang."""
    server, client = socket.socketpair()
    with server, client, big.open("r+b") as file, sendgate.Transfer() as transfer:
        server.setblocking(False)
        transfer.start(server, None, file.fileno())
        assert transfer.step() is Step.WANT_WRITE
        sent = transfer.result.body_sent
        file.truncate(sent + 1000)
        received = len(client.recv(1 << 24))
        with pytest.raises(sendgate.TruncatedError) as caught:
            while True:
                transfer.step()
                with contextlib.suppress(BlockingIOError):
                    received += len(client.recv(1 << 24, socket.MSG_DONTWAIT))
        assert isinstance(caught.value, sendgate.FileChangedError)
        assert caught.value.connection is Connection.BROKEN
        assert caught.value.result is not None
        assert caught.value.result.body_sent == sent + 1000
        with pytest.raises(sendgate.TruncatedError):
            transfer.step()


def test_file_changed_while_sent(big: Path) -> None:
    """With check, a change of time or size between steps is a FileChangedError."""
    server, client = socket.socketpair()
    with server, client, sendgate.Transfer() as transfer:
        server.setblocking(False)
        transfer.start(server, None, big, check=True)
        assert transfer.step() is Step.WANT_WRITE
        os.utime(big, (OLD + 1, OLD + 1))
        client.recv(1 << 24)
        with pytest.raises(sendgate.FileChangedError) as caught:
            transfer.step()
        assert not isinstance(caught.value, sendgate.TruncatedError)
        assert caught.value.connection is Connection.BROKEN


def test_every_code_has_its_exception() -> None:
    """Each error code of the header makes an exception of its own kind, with name and sentence."""
    from sendgate._native import lib

    from sendgate import _core

    codes = {name: getattr(lib, name) for name in dir(lib) if name.startswith("SENDGATE_ERR_")}
    assert set(codes.values()) == set(_core._EXCEPTIONS)
    for name, code in codes.items():
        error = _core._error(code)
        assert (error.name, error.status) == (name, code)
        assert str(error)
        assert type(error) is not sendgate.SendgateError
        assert type(error).__name__ in sendgate.__all__
    assert type(_core._error(-9999)) is sendgate.SendgateError


# ---- Transfers ----


@pytest.mark.parametrize("budget", [0, 100_000])
@pytest.mark.parametrize("source", ["file", "memory"])
def test_transfer(pipe: Pipe, big: Path, budget: int, source: str) -> None:
    """Steps of any budget add up to the answer, and the transfer can be used again."""
    pipe.server.setblocking(False)
    data = big.read_bytes()
    with sendgate.Transfer() as transfer:
        heads = 0
        for _ in range(2):
            transfer.start(pipe.server, None, data if source == "memory" else big)
            steps = step_to_end(transfer, pipe.server, budget)
            assert transfer.step() is Step.DONE
            assert transfer.result.body_sent == len(data)
            assert transfer.result.connection is Connection.REUSABLE
            heads += transfer.result.head_sent
            assert (Step.YIELD in steps) == (budget > 0)
    received = pipe.received()
    assert len(received) == 2 * len(data) + heads
    assert received.count(data) == 2


def test_transfer_keeps_to_its_budget(pipe: Pipe, big: Path) -> None:
    """No step sends more than it was allowed to, the head included."""
    pipe.server.setblocking(False)
    with sendgate.Transfer() as transfer:
        for source in (big, big.read_bytes()):
            transfer.start(pipe.server, None, source, length=500_000)
            before = 0
            while transfer.step(10_000):
                sent = transfer.result.head_sent + transfer.result.body_sent
                assert sent - before <= 10_000
                before = sent


def test_transfer_pulled_and_stepped_by_mistake(small: Path) -> None:
    """The wrong one of pull and step is refused, and the transfer goes on."""
    server, client = tcp_pair()
    server.setblocking(False)
    with server, client, sendgate.Transfer() as transfer:
        transfer.start(server, None, small)
        with pytest.raises(ValueError):
            transfer.pull(bytearray(10))
        step_to_end(transfer, server)
        transfer.start(None, None, small)
        with pytest.raises(ValueError):
            transfer.step()
        assert transfer.pull(bytearray(1 << 16)) > len(DATA)


def test_transfer_result_on_the_way(pair: tuple[Any, Any], big: Path) -> None:
    """Before the first byte the connection is untouched, before the last it is broken."""
    server, _ = pair
    server.setblocking(False)
    with sendgate.Transfer() as transfer:
        transfer.start(server, None, big)
        assert transfer.result.connection is Connection.UNTOUCHED
        assert transfer.step() is Step.WANT_WRITE
        result = transfer.result
        assert result.connection is Connection.BROKEN
        assert 0 < result.body_sent < result.body_length


def test_transfer_needs_a_nonblocking_socket(pair: tuple[Any, Any], small: Path) -> None:
    """A blocking socket would block the event loop, so it is refused."""
    with sendgate.Transfer() as transfer, pytest.raises(sendgate.BlockingSocketError):
        transfer.start(pair[0], None, small)


def test_transfer_that_was_not_started() -> None:
    """Steps need a start, and nothing works after close."""
    transfer = sendgate.Transfer()
    with pytest.raises(ValueError):
        transfer.step()
    with pytest.raises(ValueError):
        transfer.pull(bytearray(10))
    transfer.close()
    transfer.close()
    for use in (transfer.step, lambda: transfer.start(None, None, b""), lambda: transfer.pull(bytearray(1))):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_pull(small: Path, size: int) -> None:
    """The bytes of the answer in buffers of any size: head and body, then nothing."""
    with sendgate.Transfer() as transfer:
        transfer.start(None, Request("GET", 11, [("Range", "bytes=0-999")]), small)
        buffer = bytearray(size)
        received = bytearray()
        while count := transfer.pull(buffer):
            received += buffer[:count]
        assert transfer.pull(buffer) == 0
        status, _, body = split(bytes(received))
        assert (status, body) == (206, DATA[:1000])
        result = transfer.result
        assert result.head_sent + result.body_sent == len(received)
        assert result.connection is Connection.REUSABLE


def test_pull_needs_a_writable_buffer(small: Path) -> None:
    """A read-only buffer is a TypeError, an empty one a ValueError; the transfer goes on."""
    with sendgate.Transfer() as transfer:
        transfer.start(None, None, small)
        with pytest.raises((TypeError, BufferError)):
            transfer.pull(b"xxxx")  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            transfer.pull(bytearray())
        assert transfer.pull(bytearray(1 << 16)) > len(DATA)


def test_transfer_in_use(big: Path) -> None:
    """A second call at the same time, here from inside the first, is BusyError."""
    server, client = tcp_pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with server, client, sendgate.Transfer() as transfer:

        class Reentrant(ssl.SSLSocket):
            def send(self, data: Any, flags: int = 0) -> int:
                transfer.step()
                return 0

        context.sslsocket_class = Reentrant
        server.setblocking(False)
        with context.wrap_socket(server, server_side=True, do_handshake_on_connect=False) as tls:
            transfer.start(tls, None, big)
            with pytest.raises(sendgate.SendgateError) as caught:
                transfer.step()
            assert isinstance(caught.value.__cause__, sendgate.BusyError)


def test_file_is_closed_when_done(pipe: Pipe, small: Path) -> None:
    """A path's descriptor is open from start to the end of the response, and no longer."""
    pipe.server.setblocking(False)
    before = len(os.listdir("/proc/self/fd"))
    with sendgate.Transfer() as transfer:
        transfer.start(pipe.server, None, small)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        transfer.start(pipe.server, None, small)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        step_to_end(transfer, pipe.server)
        assert len(os.listdir("/proc/self/fd")) == before
        transfer.start(pipe.server, None, small)
    assert len(os.listdir("/proc/self/fd")) == before


def test_dropped_transfers_are_freed(small: Path) -> None:
    """A transfer that nobody closed leaves neither its file nor its memory behind."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        sendgate.Transfer().start(None, None, small)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- Threads and processes ----


def test_calls_release_the_interpreter(pair: tuple[Any, Any], big: Path) -> None:
    """While one thread waits for its client, others run."""
    server, client = pair
    thread = threading.Thread(target=lambda: sendgate.respond(server, None, big))
    thread.start()
    started = time.monotonic()
    counted = sum(range(100_000))
    assert counted and time.monotonic() - started < 5
    assert thread.is_alive()
    received = 0
    while received < 8 << 20:
        received += len(client.recv(1 << 20))
    thread.join(20)
    assert not thread.is_alive()


def test_many_threads_one_file(big: Path) -> None:
    """One descriptor serves many connections at once, each with its own range."""
    data = big.read_bytes()
    failures: list[Any] = []
    with big.open("rb") as file:

        def work(number: int) -> None:
            server, client = tcp_pair()
            pipe = Pipe(server, client)
            first = number * 1000
            request = Request("GET", 11, [("Range", f"bytes={first}-{first + 999_999}")])
            sendgate.respond(server, request, file.fileno())
            body = split(pipe.received())[2]
            client.close()
            if body != data[first : first + 1_000_000]:
                failures.append(number)

        threads = [threading.Thread(target=work, args=[number]) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert failures == []


def test_fork(small: Path) -> None:
    """A child made by fork uses the library on its own, transfers included."""
    with sendgate.Transfer() as transfer:
        transfer.start(None, None, small)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                pulled = transfer.pull(bytearray(1 << 16))
                ok = pulled > len(DATA) and sendgate.decide(None, small).status == 200
                code = 0 if ok else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert transfer.pull(bytearray(1 << 16)) > len(DATA)


# ---- TLS ----


class Tls:
    """A TLS connection, with a client that reads all the time, or only when told to."""

    def __init__(self, certificate: tuple[Path, Path], *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        context.maximum_version = version
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        server, client = tcp_pair()
        result: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: result.append(trust.wrap_socket(client, server_hostname="localhost")))
        thread.start()
        self.server = context.wrap_socket(server, server_side=True)
        thread.join(20)
        self.client = result[0]


@pytest.mark.parametrize("mode", ["blocking", "timeout", "non-blocking"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_tls(certificate: tuple[Path, Path], big: Path, mode: str, version: ssl.TLSVersion) -> None:
    """An ssl.SSLSocket gets its bytes encrypted, whatever its mode, which is as it was afterwards."""
    tls = Tls(certificate, version=version)
    pipe = Pipe(tls.server, tls.client)
    if mode == "timeout":
        tls.server.settimeout(5)
    elif mode == "non-blocking":
        tls.server.setblocking(False)
    before = tls.server.gettimeout()
    for _ in range(3):
        result = sendgate.respond(tls.server, None, big)
        assert result.connection is Connection.REUSABLE
    assert tls.server.gettimeout() == before
    received = pipe.received()
    tls.client.close()
    assert received.count(big.read_bytes()) == 3


@pytest.mark.parametrize("budget", [0, 1000, 100_000])
def test_tls_transfer(certificate: tuple[Path, Path], big: Path, budget: int) -> None:
    """Steps with any budget; OpenSSL's rule that a retry offers as much as before is kept."""
    tls = Tls(certificate)
    pipe = Pipe(tls.server, tls.client)
    tls.server.setblocking(False)
    with sendgate.Transfer() as transfer:
        transfer.start(tls.server, Request("GET", 11, [("Range", "bytes=0-3999999")]), big)
        step_to_end(transfer, tls.server, budget)
    assert split(pipe.received())[2] == big.read_bytes()[:4_000_000]
    tls.client.close()


def test_tls_with_a_slow_reader(certificate: tuple[Path, Path], big: Path) -> None:
    """A record that the socket took half of is completed later, not sent again."""
    tls = Tls(certificate)
    tls.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    tls.server.setblocking(False)
    tls.client.setblocking(False)
    received = bytearray()
    wanted = 0
    with sendgate.Transfer() as transfer:
        transfer.start(tls.server, None, big, length=1_000_000)
        while step := transfer.step(30_000):
            if step is Step.WANT_WRITE:
                wanted += 1
                # Half a record is nothing yet for the reader.
                with contextlib.suppress(ssl.SSLWantReadError):
                    received += tls.client.recv(5000)
    assert wanted > 3
    tls.client.setblocking(True)
    tls.server.close()
    while chunk := tls.client.recv(1 << 16):
        received += chunk
    tls.client.close()
    assert split(bytes(received))[2] == big.read_bytes()[:1_000_000]


def test_tls_with_changing_budgets(certificate: tuple[Path, Path], big: Path) -> None:
    """A step that may send less than the one before, which was cut short in a record, breaks nothing."""
    tls = Tls(certificate)
    tls.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
    tls.server.setblocking(False)
    tls.client.setblocking(False)
    received = bytearray()
    budgets = [30_000, 1000, 7, 50_000, 16_384, 1, 16_385]
    turn = wanted = 0
    with sendgate.Transfer() as transfer:
        transfer.start(tls.server, None, big, length=600_000)
        while step := transfer.step(budgets[turn % len(budgets)]):
            turn += 1
            if step is Step.WANT_WRITE:
                wanted += 1
                with contextlib.suppress(ssl.SSLWantReadError):
                    received += tls.client.recv(5000)
        assert transfer.result.body_sent == 600_000
    assert wanted > 3
    tls.client.setblocking(True)
    tls.server.close()
    while chunk := tls.client.recv(1 << 16):
        received += chunk
    tls.client.close()
    assert split(bytes(received))[2] == big.read_bytes()[:600_000]


def test_tls_timeout_is_the_calls(certificate: tuple[Path, Path], big: Path) -> None:
    """The call's timeout counts, not the socket's own longer one."""
    tls = Tls(certificate)
    with tls.server, tls.client:
        tls.server.settimeout(30)
        started = time.monotonic()
        with pytest.raises(sendgate.ResponseTimeoutError):
            sendgate.respond(tls.server, None, big, timeout=0.3)
        assert time.monotonic() - started < 5
        assert tls.server.gettimeout() == 30


def test_tls_peer_is_too_slow(certificate: tuple[Path, Path], big: Path) -> None:
    """min_rate holds for TLS, too: a client that reads all the time, but not fast enough, is given up."""
    tls = Tls(certificate)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            tls.client.recv(1000)

    thread = threading.Thread(target=drip)
    thread.start()
    with tls.server, tls.client:
        with pytest.raises(sendgate.ResponseTimeoutError):
            sendgate.respond(tls.server, None, big, timeout=0.4, min_rate=1 << 30)
        stop.set()
        thread.join(20)


def test_tls_peer_gone(certificate: tuple[Path, Path], big: Path) -> None:
    """PeerClosedError, as on a plain socket."""
    tls = Tls(certificate)
    with tls.server:
        leaving = threading.Thread(target=take_and_reset, args=[tls.client])
        leaving.start()
        with pytest.raises(sendgate.PeerClosedError) as caught:
            sendgate.respond(tls.server, None, big)
        leaving.join()
        assert caught.value.connection is Connection.BROKEN


def test_tls_transfer_needs_a_nonblocking_socket(certificate: tuple[Path, Path], small: Path) -> None:
    """A TLS socket's own send() would wait."""
    tls = Tls(certificate)
    with tls.server, tls.client, sendgate.Transfer() as transfer, pytest.raises(sendgate.BlockingSocketError):
        transfer.start(tls.server, None, small)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_exception_in_a_tls_socket(error: BaseException, small: Path) -> None:
    """What send() raises comes out: an error as the cause, an interrupt as itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    class Failing(ssl.SSLSocket):
        def send(self, data: Any, flags: int = 0) -> int:
            raise error

    context.sslsocket_class = Failing
    server, client = tcp_pair()
    with server, client, context.wrap_socket(server, server_side=True, do_handshake_on_connect=False) as tls:
        expected: Any = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else sendgate.IOFailedError
        with pytest.raises(expected) as caught:
            sendgate.respond(tls, None, small)
        assert error in (caught.value, caught.value.__cause__)


def test_other_tls_sockets_are_refused(small: Path) -> None:
    """Writing to the descriptor of a TLS object that we don't know would send the file unencrypted."""

    class Foreign:
        def __init__(self, sock: socket.socket) -> None:
            self.fileno: Callable[[], int] = sock.fileno

        def do_handshake(self) -> None:
            raise AssertionError

    server, client = tcp_pair()
    with server, client, pytest.raises(TypeError, match="SSLSocket"):
        sendgate.respond(Foreign(server), None, small)
