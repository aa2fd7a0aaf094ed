"""FileWrapper, Conditional and Files on values: applications are called as a server calls them, and PEP 3333 is checked
around them. Real servers are in the other files.
"""

# Small objects with the methods of others, and files that what is tested has to close.
# ruff: noqa: D102, D103, SIM115

from __future__ import annotations

import array
import bz2
import codecs
import gc
import gzip
import io
import mmap
import os
import re
import sys
import tempfile
import time
import wsgiref.util
import wsgiref.validate
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

import rows
import sendgate
from sendgate._answer import Answer
from sendgate.wsgi import Conditional, Files, FileWrapper, FrontServer, Gateway
from served_rows import complaints, with_date

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
DATA = bytes(range(256)) * 4

Environ = dict[str, Any]
Application = Callable[..., Iterable[bytes]]


# ---- A server ----


class Reply:
    """What a server has been told."""

    def __init__(self) -> None:
        self.status = ""
        self.fields: list[tuple[str, str]] = []
        self.body = b""
        self.errors = io.StringIO()
        self.result: Any = None

    @property
    def code(self) -> int:
        return int(self.status[:3])

    def __getitem__(self, name: str) -> str | None:
        values = [value for key, value in self.fields if key.lower() == name.lower()]
        assert len(values) < 2, f"{name} twice"
        return values[0] if values else None


def environ(target: str = "/", method: str = "GET", fields: dict[str, str] | None = None, script: str = "") -> Environ:
    """That of a request."""
    made: Environ = {}
    wsgiref.util.setup_testing_defaults(made)
    path, _, query = target.partition("?")
    made.update(REQUEST_METHOD=method, PATH_INFO=path, QUERY_STRING=query, SCRIPT_NAME=script)
    made["SERVER_PROTOCOL"] = "HTTP/1.1"
    made["wsgi.errors"] = io.StringIO()
    made.update({"HTTP_" + name.upper().replace("-", "_"): value for name, value in (fields or {}).items()})
    return made


def call(application: Application, given: Environ | None = None, checked: bool = True) -> Reply:
    """Call an application as a server does, with PEP 3333's validator in between."""
    given = environ() if given is None else given
    reply = Reply()
    reply.errors = given["wsgi.errors"]

    def write(data: bytes) -> None:
        reply.body += data

    def start_response(status: str, fields: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info and reply.body:
            raise exc_info[1].with_traceback(exc_info[2])
        assert exc_info or not reply.status, "start_response twice"
        reply.status, reply.fields = status, list(fields)
        return write

    reply.result = (wsgiref.validate.validator(application) if checked else application)(given, start_response)
    try:
        for item in reply.result:
            assert reply.status, "an item before start_response"
            reply.body += item
    finally:
        if hasattr(reply.result, "close"):
            reply.result.close()
    return reply


def get(application: Application, target: str = "/", method: str = "GET", **fields: str) -> Reply:
    """One request; fields by their names with _ for -."""
    return call(application, environ(target, method, fields))


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What exceptions refer to is gone before descriptors are counted."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def empty_answers_need_no_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator wants a Content-Type in an empty 412, which neither PEP 3333 nor HTTP does."""
    check = wsgiref.validate.check_content_type

    def check_content_type(status: str, headers: list[tuple[str, str]]) -> None:
        if ("Content-Length", "0") not in headers:
            check(status, headers)

    monkeypatch.setattr(wsgiref.validate, "check_content_type", check_content_type)


class Closing:
    """Something to send that counts how often it was closed."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.closed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def close(self) -> None:
        self.closed += 1
        self.inner.close()


def sending(filelike: Any, *fields: tuple[str, str], status: str = "200 OK") -> Application:
    """An application that returns what its server wraps."""

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "text/plain"), *fields])
        wrapped: Iterable[bytes] = given["wsgi.file_wrapper"](filelike)
        return wrapped

    return application


def returning(result: Any, *fields: tuple[str, str], status: str = "200 OK") -> Application:
    """An application that returns this."""

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "text/plain"), *fields])
        returned: Iterable[bytes] = result
        return returned

    return application


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 1024 bytes, of long ago."""
    made = tmp_path / "file.bin"
    made.write_bytes(DATA)
    os.utime(made, (OLD, OLD))
    return made


TAG = f'"{OLD * 10**9:x}-{len(DATA):x}"'


# ---- FileWrapper ----


class GetBuffer:
    """Neither a buffer nor a file, but it has one."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer

    def getbuffer(self) -> Any:
        return self._buffer

    def close(self) -> None:
        self._buffer = None


def at(filelike: Any, position: int) -> Any:
    filelike.seek(position)
    return filelike


def after_reading(path: Path) -> Any:
    """Buffered: its descriptor is ahead of what was read."""
    file = path.open("rb")
    assert file.read(10) == DATA[:10]
    return file


def mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def unwritten(path: Path) -> Any:
    """Some of its content is in its own buffer."""
    file = path.open("r+b")
    file.seek(0, 2)
    file.write(b"more")
    file.seek(1020)
    return file


def temporary(mode: str) -> Any:
    file = tempfile.NamedTemporaryFile(mode)
    file.write(DATA if "b" in mode else "text")
    file.seek(0)
    return file


#: What the library can send: how it is made, where it begins, how long it is.
SENT: dict[str, tuple[Callable[[Path], Any], int, int]] = {
    "file": (lambda path: path.open("rb"), 0, 1024),
    "raw file": (lambda path: open(path, "rb", buffering=0), 0, 1024),
    "file at 100": (lambda path: at(path.open("rb"), 100), 100, 924),
    "file behind its end": (lambda path: at(path.open("rb"), 5000), 1024, 0),
    "file that was read": (after_reading, 10, 1014),
    "file that was written to": (unwritten, 1020, 8),
    "tempfile": (lambda path: temporary("w+b"), 0, 1024),
    "bytes": (lambda path: DATA, 0, 1024),
    "empty bytes": (lambda path: b"", 0, 0),
    "bytearray": (lambda path: bytearray(DATA), 0, 1024),
    "memoryview": (lambda path: memoryview(DATA)[10:20], 0, 10),
    "array of ints": (lambda path: array.array("i", range(5)), 0, 20),
    "BytesIO": (lambda path: io.BytesIO(DATA), 0, 1024),
    "BytesIO at 100": (lambda path: at(io.BytesIO(DATA), 100), 100, 924),
    "BytesIO behind its end": (lambda path: at(io.BytesIO(DATA), 5000), 1024, 0),
    "mmap": (mapped, 0, 1024),
    "mmap at 100": (lambda path: at(mapped(path), 100), 100, 924),
    "getbuffer": (lambda path: GetBuffer(memoryview(DATA)), 0, 1024),
    "getbuffer that returns bytes": (lambda path: GetBuffer(DATA), 0, 1024),
    "getbuffer that returns an mmap": (lambda path: GetBuffer(mapped(path)), 0, 1024),
}


def content_of(kind: str) -> bytes:
    """What arrives of it."""
    _, start, length = SENT[kind]
    if kind == "array of ints":
        return array.array("i", range(5)).tobytes()
    return (DATA[10:20] if kind == "memoryview" else DATA + b"more")[start : start + length]


class Reading(io.BufferedReader):
    """Its bytes aren't those of its descriptor."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size).swapcase()


class Around:
    """An object before a file, as Django's are."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class Liar:
    """Its descriptor is none."""

    def __init__(self, fd: Any) -> None:
        self.fd = fd
        self._blocks = iter([b"ab", b"c"])

    def fileno(self) -> Any:
        return self.fd

    def tell(self) -> int:
        return 0

    def read(self, _: int) -> bytes:
        return next(self._blocks, b"")


def zipped(path: Path) -> str:
    name = f"{path}.gz"
    with gzip.open(name, "wb") as file:
        file.write(b"abc")
    return name


def pipe() -> Any:
    read, write = os.pipe()
    os.write(write, b"abc")
    os.close(write)
    return open(read, "rb")


class NoSeek(io.RawIOBase):
    """Only to be read."""

    def __init__(self) -> None:
        self._inner = io.BytesIO(b"abc")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._inner.readinto(buffer)


#: What is read: how it is made. Its content is "abc".
READ: dict[str, Callable[[Path], Any]] = {
    "gzip": lambda path: gzip.open(zipped(path)),
    "bz2": lambda path: bz2.open(io.BytesIO(bz2.compress(b"abc"))),
    "object around gzip": lambda path: Around(gzip.open(zipped(path))),
    "object around such an object": lambda path: Around(Around(gzip.open(zipped(path)))),
    "derived class that reads otherwise": lambda path: swapped(),
    "recoder": lambda path: codecs.EncodedFile(io.BytesIO(b"abc"), "utf-8", "latin-1"),
    "pipe": lambda path: pipe(),
    "no seek": lambda path: io.BufferedReader(NoSeek()),
    "descriptor -1": lambda path: Liar(-1),
    "descriptor that is text": lambda path: Liar("1"),
    "descriptor that is not open": lambda path: Liar(10**6),
    "list": lambda path: [b"a", b"", b"bc"],
    "generator": lambda path: (block for block in (b"ab", b"c")),
    "not contiguous": lambda path: memoryview(b"a_b_c_")[::2],
}


def swapped() -> Any:
    fd = os.memfd_create("swapped")
    os.write(fd, b"ABC")
    os.lseek(fd, 0, 0)
    return Reading(io.FileIO(fd, "r"))


@pytest.mark.parametrize("kind", SENT)
def test_what_the_library_sends(path: Path, kind: str) -> None:
    """Files and buffers from their position on, with their length; iterating gives the same bytes."""
    make, start, length = SENT[kind]
    wrapper = FileWrapper(make(path), 100)
    content = wrapper.content()
    assert content is not None and content[1:] == (start, length)
    items = list(wrapper)
    assert b"".join(items) == content_of(kind)
    assert all(0 < len(item) <= 100 for item in items)
    wrapper.close()


@pytest.mark.parametrize("kind", READ)
def test_what_is_read(path: Path, kind: str) -> None:
    """An object whose descriptor doesn't lead to its content, or that has none, is read, whatever it says."""
    wrapper = FileWrapper(READ[kind](path))
    assert wrapper.content() is None
    assert b"".join(wrapper) == b"abc"
    wrapper.close()


@pytest.mark.parametrize("make", [lambda path: path.open(), lambda _: io.StringIO("text"), lambda _: temporary("w+")])
def test_text(path: Path, make: Callable[[Path], Any]) -> None:
    """A file opened as text is an error that says what to do."""
    path.write_text("text")
    wrapper = FileWrapper(make(path))
    assert wrapper.content() is None
    with pytest.raises(TypeError, match="'rb'"):
        next(wrapper)
    wrapper.close()


def test_a_wrapper_closes_once() -> None:
    """And works without something to close."""
    file = Closing(io.BytesIO(DATA))
    wrapper = FileWrapper(file)
    wrapper.close()
    wrapper.close()
    assert file.closed == 1
    FileWrapper([b""]).close()


# ---- Conditional: whole answers ----


@pytest.mark.parametrize("kind", SENT)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_whole(path: Path, kind: str, method: str) -> None:
    """Whatever is wrapped arrives from its position on, with Content-Length, and is closed; HEAD is that without it."""
    make, _, length = SENT[kind]
    made = make(path)
    # A buffer can't have an object around it: then it is none.
    is_buffer = not hasattr(made, "close") or isinstance(made, mmap.mmap)
    file = made if is_buffer else Closing(made)
    reply = get(Conditional(sending(file)), method=method)
    assert (reply.code, reply["Content-Length"]) == (200, str(length))
    assert reply.body == (b"" if method == "HEAD" else content_of(kind))
    if isinstance(file, Closing):
        assert file.closed == 1
    elif hasattr(file, "closed"):
        assert file.closed


@pytest.mark.parametrize("kind", READ)
def test_whole_by_reading(path: Path, kind: str) -> None:
    """What can only be read is passed to the server, without Content-Length."""
    reply = get(Conditional(sending(READ[kind](path))))
    assert (reply.code, reply["Content-Length"], reply.body) == (200, None, b"abc")


@pytest.mark.parametrize("announced", [0, 1, 1023, 1024])
def test_a_content_length_that_is_smaller(path: Path, announced: int) -> None:
    """Of a file that many bytes are sent, and ranges are those of what is sent."""
    application = Conditional(sending(path.open("rb"), ("Content-Length", str(announced))))
    reply = get(application, range="bytes=-1") if announced == 1023 else get(application)
    if announced == 1023:
        assert (reply.code, reply["Content-Range"], reply.body) == (206, "bytes 1022-1022/1023", DATA[1022:1023])
    else:
        assert (reply["Content-Length"], reply.body) == (str(announced), DATA[:announced])
    assert reply.errors.getvalue() == ""


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_content_length_that_is_larger(path: Path, method: str) -> None:
    """It is lowered to what there is, and that is reported."""
    reply = get(Conditional(sending(path.open("rb"), ("content-length", "1500"))), "/x", method)
    assert (reply["Content-Length"], reply.body) == ("1024", DATA)
    assert reply.errors.getvalue() == "sendgate: /x: Content-Length is 1500, but there are 1024 bytes\n"


@pytest.mark.parametrize("announced", ["", "-1", "+5", "5.0", "0x10", " 5", "abc", "٣", "1_0"])
def test_a_content_length_that_is_none(path: Path, announced: str) -> None:
    """The application is at fault: the server hears of it before anything was sent, and the file is closed."""
    file = Closing(path.open("rb"))
    with pytest.raises(ValueError, match="Content-Length"):
        call(Conditional(sending(file, ("Content-Length", announced))), checked=False)
    assert file.closed == 1


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_status_without_content(path: Path, status: str) -> None:
    """Nothing is sent of a file that is returned with it."""
    file = Closing(path.open("rb"))

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(status, [])
        wrapped: Iterable[bytes] = given["wsgi.file_wrapper"](file)
        return wrapped

    reply = get(Conditional(application))
    assert (reply.code, reply.body, reply["Content-Length"], file.closed) == (int(status[:3]), b"", None, 1)


def test_other_statuses_are_as_given(path: Path) -> None:
    """Neither conditions nor ranges, nor validators of ours; a 206 of the application's own stays what it is."""
    application = Conditional(sending(at(path.open("rb"), 24), ("Allow", "GET"), status="405 Method Not Allowed"))
    reply = get(application, range="bytes=0-0", if_none_match="*")
    assert (reply.code, reply.body) == (405, DATA[24:])
    assert [name for name, _ in reply.fields] == ["Content-Type", "Content-Length", "Allow"]
    fields = [("Content-Range", "bytes 24-1023/1024"), ("ETag", '"a"'), ("Content-Length", "1000")]
    reply = get(
        Conditional(sending(at(path.open("rb"), 24), *fields, status="206 Partial Content")), range="bytes=24-1023"
    )
    assert (reply.code, reply.body) == (206, DATA[24:])
    assert {*fields} <= {*reply.fields}


def test_an_open_file_is_returned(path: Path) -> None:
    """An application may return the file itself: as an iterable it would give lines."""
    reply = get(Conditional(returning(path.open("rb"))), range="bytes=0-1")
    assert (reply.code, reply.body) == (206, DATA[:2])
    reply = get(Conditional(returning(io.BytesIO(DATA))), range="bytes=0-1")
    assert (reply.code, reply.body) == (206, DATA[:2])


# ---- Conditional: conditions and ranges ----


def test_a_file_gets_validators_and_ranges(path: Path) -> None:
    """Of an application that knows nothing of them."""

    def ask(**fields: str) -> Reply:
        return get(Conditional(sending(path.open("rb"))), **fields)

    reply = ask()
    assert (reply["ETag"], reply["Last-Modified"], reply["Accept-Ranges"]) == (TAG, DATE, "bytes")
    reply = ask(range="bytes=100-199")
    assert (reply.code, reply.body, reply["Content-Range"]) == (206, DATA[100:200], "bytes 100-199/1024")
    reply = ask(range="bytes=0-0,-1")
    assert reply.code == 206
    assert reply["Content-Type"].startswith("multipart/byteranges; boundary=")  # type: ignore[union-attr]
    assert len(reply.body) == int(reply["Content-Length"] or 0)
    for fields, code in (
        ({"if_none_match": TAG}, 304),
        ({"if_none_match": "W/" + TAG}, 304),
        ({"if_modified_since": DATE}, 304),
        ({"if_match": '"x"'}, 412),
        ({"if_unmodified_since": "Sun, 06 Nov 1994 08:49:36 GMT"}, 412),
        ({"range": "bytes=1024-"}, 416),
    ):
        reply = ask(**fields)
        assert (reply.code, reply.body) == (code, b"")
    assert ask(range="bytes=0-0", if_range=TAG).code == 206
    assert ask(range="bytes=0-0", if_range='"x"').body == DATA
    assert ask(range="bytes=0-0", if_range=DATE).code == 206
    assert get(Conditional(sending(path.open("rb"))), method="POST", if_match='"x"').body == DATA


def test_own_validators_count(path: Path) -> None:
    """An ETag and a Last-Modified of the application's are sent, and are what conditions are compared with."""
    fields = ("ETag", 'W/"v1"'), ("Last-Modified", "Mon, 07 Nov 1994 08:49:37 GMT")

    def ask(**asked: str) -> Reply:
        return get(Conditional(sending(path.open("rb"), *fields)), **asked)

    reply = ask()
    assert (reply["ETag"], reply["Last-Modified"]) == (fields[0][1], fields[1][1])
    assert ask(if_none_match='"v1"').code == 304
    assert ask(if_none_match=TAG).code == 200
    assert ask(if_modified_since=DATE).code == 200
    assert ask(if_match='W/"v1"').code == 412


def test_options(path: Path) -> None:
    """The arguments of ``respond`` apply to all that is sent."""
    application = Conditional(sending(path.open("rb")), max_ranges=1, etag=False)
    reply = get(application, range="bytes=0-0,2-2")
    assert (reply.code, reply["ETag"], reply.body) == (200, None, DATA)


def test_how_it_is_sent_counts_in_any_case(path: Path) -> None:
    """copy and check of a middleware and of what is inside are not forgotten where nothing is evaluated."""
    changed = Adding(Conditional(sending(path.open("rb")), check=True))
    not_found = sending(path.open("rb"), status="404 Not Found")
    for application, gateway in (
        (changed, Gateway(environ(), lambda *_: None)),
        (not_found, Gateway(environ(), lambda *_: None, {"check": True})),
    ):
        answer = gateway.call(application)
        assert type(answer) is Answer
        assert answer.arguments["check"]
        answer.close()


def test_accept_ranges_none(path: Path) -> None:
    """An application that wants no ranges gets conditions only."""

    def ask(**fields: str) -> Reply:
        return get(Conditional(sending(path.open("rb"), ("Accept-Ranges", "none"))), **fields)

    reply = ask(range="bytes=0-0")
    assert (reply.code, reply["Accept-Ranges"], reply.body) == (200, "none", DATA)
    assert ask(if_none_match=TAG).code == 304


def test_fields_of_all_kinds_arrive(path: Path) -> None:
    """Several lines of one name, and those of the application's that aren't the server's affair."""
    fields = [("Set-Cookie", "a=b"), ("Set-Cookie", "c=d"), ("X-A", "\xe4"), ("Cache-Control", "no-cache")]
    reply = get(Conditional(sending(path.open("rb"), *fields)), range="bytes=0-0")
    assert [field for field in reply.fields if field in fields] == fields


@pytest.mark.parametrize("etag", ["abc", '"abc', "", "W/abc", '"a b"', '"a", "b"'])
def test_a_malformed_entity_tag(path: Path, etag: str) -> None:
    """It goes to the server as it is, which judges it, and nothing is decided by it."""
    reply = get(Conditional(sending(path.open("rb"), ("ETag", etag))), if_none_match=etag, range="bytes=0-0")
    assert (reply.code, reply["ETag"], reply.body) == (200, etag, DATA)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_content_range_of_the_applications_own(path: Path, method: str) -> None:
    """With status 200 it can't be told what is a part of what: passed on as it is."""
    field = ("Content-Range", "bytes 0-9/20")
    for application in (sending(path.open("rb"), field), returning([DATA], field, ("ETag", '"v"'))):
        reply = get(Conditional(application), method=method, range="bytes=0-0", if_none_match="*")
        assert (reply.code, reply["Content-Range"], reply.body) == (200, field[1], DATA)


def test_a_field_given_twice(path: Path) -> None:
    """Of those that may occur once it makes the answer ambiguous: passed on as it is."""
    fields = ("Expires", "0"), ("Expires", "1")
    reply = get(Conditional(sending(path.open("rb"), *fields)), range="bytes=0-0")
    assert (reply.code, reply.body) == (200, DATA)
    assert [field for field in reply.fields if field[0] == "Expires"] == list(fields)


def test_one_item_of_bytes() -> None:
    """With a validator it is as good as a file; without one it is left alone, and so is one that isn't all of it."""
    validator = ("ETag", '"v"')
    for result in ([DATA], (DATA,)):
        assert get(Conditional(returning(result, validator)), range="bytes=1-2").body == DATA[1:3]
    assert get(Conditional(returning([DATA])), range="bytes=1-2").body == DATA
    reply = get(Conditional(returning([DATA[:512], DATA[512:]], validator)), range="bytes=1-2")
    assert (reply.code, reply.body) == (200, DATA)
    reply = get(Conditional(returning([b""], validator, ("Content-Length", "1024"))), method="HEAD")
    assert (reply.code, reply["Content-Length"]) == (200, "1024")
    reply = get(Conditional(returning([b""], validator)), method="HEAD")
    assert (reply.code, reply["Content-Length"]) == (200, None)


class Blocks:
    """An iterable that nobody can see through."""

    def __init__(self, *blocks: bytes) -> None:
        self.blocks = blocks
        self.begun = False
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        yield from self.blocks

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"if_none_match": '"v"'}, 304),
        ({"if_none_match": '"x"'}, 200),
        ({"if_match": '"x"'}, 412),
        ({"if_modified_since": DATE}, 304),
        ({"range": "bytes=0-0"}, 200),
        ({"range": "bytes=99-"}, 200),
        ({"range": "bytes=99-", "if_match": '"v"'}, 200),
        ({}, 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditions_of_any_content(asked: dict[str, str], code: int, method: str) -> None:
    """Validators are enough for a 304 or a 412: nothing is made of content that isn't sent. It has no ranges."""
    content = Blocks(b"a", b"bc") if method == "GET" else Blocks()
    fields = ("ETag", '"v"'), ("Last-Modified", DATE), ("Content-Length", "3")
    reply = get(Conditional(returning(content, *fields)), method=method, **asked)
    assert (reply.code, content.closed) == (code, 1)
    assert content.begun == (code == 200)
    assert reply.body == (b"abc" if code == 200 and method == "GET" else b"")
    assert reply["Content-Length"] == {200: "3", 304: None, 412: "0"}[code]


def test_content_without_validators_is_left_alone() -> None:
    """So is what another method has done, and a status of its own."""
    asked = {"if_none_match": "*", "if_modified_since": DATE}
    assert get(Conditional(returning(Blocks(b"a"))), **asked).code == 200
    tag = ("ETag", '"v"')
    assert get(Conditional(returning(Blocks(b"a"), tag)), method="POST", **asked).code == 200
    assert get(Conditional(returning(Blocks(b"a"), tag, status="404 Not Found")), **asked).code == 404


def test_what_is_handed_to_a_front_server_is_left_alone() -> None:
    """It evaluates conditions itself, against validators of its own."""
    application = returning([b""], ("X-Accel-Redirect", "/x"), ("ETag", '"v"'))
    reply = get(Conditional(application), if_match='"x"', range="bytes=5-")
    assert (reply.code, reply["X-Accel-Redirect"]) == (200, "/x")


def test_hide(path: Path) -> None:
    """The application answers in full, because it doesn't see what was asked for; whoever is around it does."""
    seen: list[dict[str, str]] = []
    asked = {"range": "bytes=0-0", "if_none_match": '"x"', "if_range": TAG, "if_modified_since": DATE}
    asked |= {"if_match": TAG, "if_unmodified_since": DATE, "accept": "*/*"}

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append({key: value for key, value in given.items() if key.startswith(("HTTP_IF", "HTTP_R", "HTTP_AC"))})
        return sending(path.open("rb"))(given, start_response)

    given = environ("/a", fields=asked)
    assert call(Conditional(application, hide=True), given).code == 206
    assert given["HTTP_RANGE"] == "bytes=0-0"
    call(Conditional(application, hide=lambda given: given["PATH_INFO"] == "/b"), environ("/a", fields=asked))
    call(Conditional(application, hide=lambda given: given["PATH_INFO"] == "/b"), environ("/b", fields=asked))
    call(Conditional(application, hide=True), environ("/a", "PUT", asked))
    assert [len(fields) for fields in seen] == [1, 7, 1, 7]


# ---- PEP 3333 ----


def test_the_file_wrapper_is_ours_during_the_call_only(path: Path) -> None:
    """gunicorn looks there afterwards, to tell what it may send by its descriptor."""
    seen = []

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        seen.append(given["wsgi.file_wrapper"])
        return sending(gzip.open(zipped(path)))(given, start_response)

    given = environ()
    own = given["wsgi.file_wrapper"] = wsgiref.util.FileWrapper
    assert call(Conditional(application), given).body == b"abc"
    assert given["wsgi.file_wrapper"] is own
    del given["wsgi.file_wrapper"]
    assert call(Conditional(application), given).body == b"abc"
    assert "wsgi.file_wrapper" not in given
    assert seen == [FileWrapper, FileWrapper]


def test_write(path: Path) -> None:
    """What an application writes comes before what it returns, which is then not ours to send."""

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/plain"), ("ETag", '"v"')])
        write(b"first ")
        write(b"second ")
        wrapped: Iterable[bytes] = given["wsgi.file_wrapper"](path.open("rb"))
        return wrapped

    reply = get(Conditional(application), if_none_match='"v"')
    assert (reply.code, reply.body) == (200, b"first second " + DATA)


@pytest.mark.parametrize("announced", [5, 6, 8, 9, 20])
def test_write_and_content_length(path: Path, announced: int) -> None:
    """What was written counts; what is returned is cut to the rest."""

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(announced))])(b"first ")
        wrapped: Iterable[bytes] = given["wsgi.file_wrapper"]([b"ab", b"c"])
        return wrapped

    assert get(Conditional(application)).body == b"first abc"[: max(6, announced)]


@pytest.mark.parametrize(
    ("method", "announced", "body"), [("GET", "2", b"ab"), ("GET", "9", b"abc"), ("HEAD", "3", b"")]
)
def test_what_is_iterated_is_cut(method: str, announced: str, body: bytes) -> None:
    """No server sends more of it than the head says."""
    reply = get(Conditional(sending(iter([b"a", b"bc"]), ("Content-Length", announced))), method=method)
    assert (reply["Content-Length"], reply.body) == (announced, body)


def test_start_response_comes_late() -> None:
    """A generator calls it with its first item."""

    def application(given: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("ETag", '"v"')])
        yield b"a"
        yield b"b"

    assert get(Conditional(application), if_none_match='"v"').body == b"ab"


def test_exc_info_before_anything_was_sent(path: Path) -> None:
    """The second head replaces the first."""

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            raise RuntimeError
        except RuntimeError:
            start_response("500 Error", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"sorry"]

    reply = get(Conditional(application))
    assert (reply.status, reply.body) == ("500 Error", b"sorry")


def test_exc_info_while_iterating() -> None:
    """The server decides: before the first byte the head is replaced, after it the exception goes on."""

    def application(given: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        if given["PATH_INFO"] == "/after":
            yield b"x"
        try:
            raise RuntimeError("in the middle")
        except RuntimeError:
            start_response("500 Error", [("Content-Type", "text/plain")], sys.exc_info())
            yield b"sorry"

    assert get(Conditional(application), "/before").status == "500 Error"
    with pytest.raises(RuntimeError, match="in the middle"):
        get(Conditional(application), "/after")


def test_start_response_twice() -> None:
    """Without exc_info that is an error in the application."""

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    with pytest.raises(AssertionError, match="second time"):
        call(Conditional(application), checked=False)


def test_an_application_that_fails() -> None:
    """Its exception is the server's, which has been told nothing."""

    def application(given: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        raise RuntimeError("failed")

    given, begun = environ(), []
    given["wsgi.file_wrapper"] = wsgiref.util.FileWrapper
    with pytest.raises(RuntimeError, match="failed"):
        Conditional(application)(given, lambda *_: begun.append(1))
    assert not begun
    assert given["wsgi.file_wrapper"] is wsgiref.util.FileWrapper


def test_a_validator_inside(path: Path) -> None:
    """What the application sees of us is as PEP 3333 has it; the validator hides the file, which is then iterated."""
    file = Closing(path.open("rb"))
    reply = get(Conditional(wsgiref.validate.validator(sending(file, ("ETag", '"v"')))), range="bytes=0-0")
    assert (reply.code, reply.body, file.closed) == (200, DATA, 1)
    reply = get(Conditional(wsgiref.validate.validator(returning([DATA], ("ETag", '"v"')))), if_none_match='"v"')
    assert reply.code == 304


@pytest.mark.parametrize("field", [("X-A", "a\r\nb"), ("X A", "b")])
def test_refused_fields(path: Path, field: tuple[str, str]) -> None:
    """What would split the response never gets to the server, and the file is closed."""
    file = Closing(path.open("rb"))
    with pytest.raises(sendgate.FieldError):
        call(Conditional(sending(file, field)), checked=False)
    assert file.closed == 1


def test_a_server_that_refuses(path: Path) -> None:
    """Its start_response may raise: then the file is closed too."""

    def start_response(*_: object) -> None:
        raise RuntimeError("refused")

    for application in (sending, returning):
        file = Closing(path.open("rb"))
        with pytest.raises(RuntimeError, match="refused"):
            Conditional(application(file))(environ(), start_response)
        assert file.closed == 1


def test_a_file_that_shrinks(path: Path) -> None:
    """Iterating ends by an exception, so that the server closes the connection, and the file is closed."""
    file = Closing(path.open("rb"))
    result = Conditional(sending(file))(environ(), lambda *_: None)
    os.truncate(path, 10)
    with pytest.raises(sendgate.TruncatedError):
        for _ in result:
            pass
    result.close()  # type: ignore[attr-defined]
    result.close()  # type: ignore[attr-defined]
    assert file.closed == 1


def test_closed_before_it_is_sent(path: Path) -> None:
    """A server whose client is gone closes what it hasn't iterated over, or not to its end."""
    for items in (0, 1):
        file = Closing(path.open("rb"))
        result: Any = Conditional(sending(file))(environ(), lambda *_: None)
        for _ in range(items):
            next(iter(result))
        result.close()
        assert file.closed == 1


def test_a_buffer_is_free_afterwards() -> None:
    """A bytearray can be resized and an mmap closed when the answer is closed; not before."""
    content = bytearray(DATA * 200)
    result: Any = Conditional(sending(content))(environ(), lambda *_: None)
    next(iter(result))
    with pytest.raises(BufferError):
        content.append(0)
    result.close()
    content.append(0)


# ---- Around and inside ----


class Wrapping:
    """A middleware that puts its own iterable around the application's, as those that count and measure do."""

    def __init__(self, application: Application) -> None:
        self.application = application

    def __call__(self, given: Environ, start_response: Any) -> Iterable[bytes]:
        result = self.application(given, start_response)
        try:
            yield from result
        finally:
            if hasattr(result, "close"):
                result.close()


class Holding(Wrapping):
    """The same, but it calls the application at once."""

    def __call__(self, given: Environ, start_response: Any) -> Iterable[bytes]:
        result: Any = self.application(given, start_response)

        class Held:
            def __iter__(self) -> Iterator[bytes]:
                yield from result

            def close(self) -> None:
                if hasattr(result, "close"):
                    result.close()

        return Held()


class Adding(Wrapping):
    """A middleware that adds a field."""

    def __call__(self, given: Environ, start_response: Any) -> Iterable[bytes]:
        def started(status: str, fields: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [*fields, ("X-Added", "yes")], exc_info)

        return self.application(given, started)


class Server(Wrapping):
    """What a server of this package does with an application, but that it iterates over the answer in the end."""

    def __call__(self, given: Environ, start_response: Any) -> Iterable[bytes]:
        result = Gateway(given, start_response).call(self.application)
        if type(result) is Answer:
            start_response(*result.begin())
        return result


@pytest.mark.parametrize("middleware", [Wrapping, Holding, Adding, Conditional, lambda inner: Adding(Holding(inner))])
@pytest.mark.parametrize("server", [Server, Conditional, lambda application: application])
@pytest.mark.parametrize(
    ("asked", "code", "body"),
    [
        ({}, 200, DATA),
        ({"range": "bytes=1-2"}, 206, DATA[1:3]),
        ({"if_none_match": TAG}, 304, b""),
        ({"range": "bytes=0-0,2-2"}, 206, None),
        ({"range": "bytes=5000-"}, 416, b""),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_middleware_between(
    path: Path, middleware: Any, server: Any, asked: dict[str, str], code: int, body: bytes | None, method: str
) -> None:
    """Whatever a middleware does with an answer that nobody has sent yet, the same bytes arrive."""
    for inner in (Conditional(sending(path.open("rb"))), Files(path.parent)):
        reply = get(server(middleware(inner)), "/file.bin", method, **asked)
        if method == "HEAD":
            # RFC 9110 14.2: ranges are of GET only.
            expected, content = (code if code == 304 else 200), b""
        else:
            expected, content = code, reply.body if body is None else body
        assert (reply.code, reply.body) == (expected, content)
        if body is None and method == "GET":
            assert len(reply.body) == int(reply["Content-Length"] or 0) > 200
        if middleware is Adding:
            assert reply["X-Added"] == "yes"


def test_gunicorns_own_wrapper(path: Path) -> None:
    """On gunicorn's own workers a part of a file is returned as its FileWrapper, at the right position."""
    theirs = pytest.importorskip("gunicorn.http.wsgi", reason="gunicorn is not installed").FileWrapper
    for asked, position, length in (({}, 0, 1024), ({"range": "bytes=100-199"}, 100, 100)):
        given = environ(fields=asked)
        given["wsgi.file_wrapper"] = theirs
        file = Closing(path.open("rb"))
        fields: list[tuple[str, str]] = []
        result: Any = Conditional(sending(file))(given, lambda _, sent, fields=fields: fields.extend(sent))
        assert type(result) is theirs
        assert os.lseek(result.filelike.fileno(), 0, os.SEEK_CUR) == result.filelike.tell() == position
        assert ("Content-Length", str(length)) in fields
        assert file.closed == 0
        result.close()
        result.close()
        assert file.closed == 1
    # Several parts, and nothing at all, aren't a part of a file.
    for asked, some in (({"range": "bytes=0-0,2-2"}, True), ({"if_none_match": TAG}, False)):
        given = environ(fields=asked)
        given["wsgi.file_wrapper"] = theirs
        result = Conditional(sending(path.open("rb")))(given, lambda *_: None)
        assert type(result) is Answer
        assert bool(b"".join(result)) == some
        result.close()


# ---- Files ----


@pytest.fixture
def root(path: Path) -> Path:
    """A folder with a little of everything."""
    made = path.parent / "root"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("hello\n")
    (made / "a.txt.gz").write_text("gzip")
    (made / "sub" / "index.html").write_text("index")
    for file in made.rglob("*.*"):
        os.utime(file, (OLD, OLD))
    return made


def fallback(given: Environ, start_response: Any) -> Iterable[bytes]:
    """Says that it was asked."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{given['REQUEST_METHOD']} {given['SCRIPT_NAME']}|{given['PATH_INFO']}".encode("latin-1")]


#: Whether a connection is kept is the server's affair.
ROWS = [row for row in rows.load() if row.values_only is None and "keep_alive" not in row.expect]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(tmp_path: Path, row: rows.Row) -> None:
    """The rows of tests/cases, by PEP 3333 alone."""
    file = rows.make_file(tmp_path, row)
    tag = rows.file_tag(file)
    given = environ("/" + file.name, row.method)
    given["SERVER_PROTOCOL"] = f"HTTP/1.{row.version - 10}"
    lines: dict[str, list[str]] = {}
    for name, value in row.request_fields(tag):
        key = "HTTP_" + name.decode().upper().replace("-", "_")
        lines.setdefault(key, []).append(value.decode("latin-1").strip(" \t"))
    given.update({key: ", ".join(values) for key, values in lines.items()})
    if row.body:
        given["CONTENT_LENGTH"] = "5"
    with_type = {file.suffix: row.content_type} if file.suffix else {}
    files = Files(tmp_path, content_types=with_type)
    # Methods are the application's to allow; those of the rows are the library's to understand.
    asked = int(time.time())
    reply = call(files, given, checked=False)
    files.close()
    if row.method not in ("GET", "HEAD"):
        assert (reply.code, reply["Allow"]) == (405, "GET, HEAD")
        return
    assert complaints(row, with_date(row, reply.status, reply.fields, reply.body, asked), tag) == []


def test_prefix(root: Path) -> None:
    """Only what is beneath it is looked for; it is as the client writes it, slashes or not."""
    for prefix in ("/static/", "static", "/static"):
        files = Files(root, prefix=prefix)
        assert get(files, "/static/a.txt").body == b"hello\n"
        assert get(files, "/a.txt").code == get(files, "/staticx/a.txt").code == get(files, "/").code == 404
    files = Files(root, prefix="/dateien für alle/")
    assert get(files, "/dateien für alle/a.txt".encode().decode("latin-1")).code == 200


def test_redirects(root: Path) -> None:
    """To the directory's own URL, on this server, with the query; also of the folder itself, where it is mounted."""
    files = Files(root, prefix="/static")
    reply = get(files, "/static/sub?a=b&c=%20")
    assert (reply.code, reply["Location"]) == (301, "/static/sub/?a=b&c=%20")
    assert b'href="/static/sub/?a=b&amp;c=%20"' in reply.body
    assert call(files, environ("/static/x/..//sub", script="/app"))["Location"] == "/app/static/sub/"
    assert get(files, "/static").code == 404  # it has no index
    (root / "index.html").write_text("index")
    assert get(files, "/static")["Location"] == "/static/"
    assert call(Files(root), environ("", script="/app"))["Location"] == "/app/"
    assert call(Files(root), environ("", script="//evil.example"), checked=False)["Location"] == "/evil.example/"
    assert call(Files(root), environ("", script="")).body == b"index"
    # That would lead to no host at all.
    assert call(Files(root), environ("", script="/"), checked=False).body == b"index"
    (root / "\\evil.example").mkdir()
    (root / "\\evil.example" / "index.html").touch()
    assert get(Files(root), "//\\evil.example")["Location"] == "/%5Cevil.example/"


def test_fallback(root: Path) -> None:
    """The application gets what isn't there and all other methods, with an environ that nobody has touched."""
    files = Files(root, prefix="/static/", application=fallback)
    assert get(files, "/static/a.txt").body == b"hello\n"
    for target in ("/static/missing", "/static/", "/static", "/other", "/static/sub/x/"):
        assert get(files, target).body == f"GET |{target}".encode()
    assert get(files, "/static/a.txt", "POST").body == b"POST |/static/a.txt"
    given = environ("/static/missing")
    before = dict(given)
    call(files, given, checked=False)
    assert given == before


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
def test_other_methods(root: Path, method: str) -> None:
    """405 with what is allowed; where nothing of ours is, 404."""
    files = Files(root, prefix="/static")
    for target in ("/static/a.txt", "/static/missing"):
        reply = call(files, environ(target, method), checked=False)
        assert (reply.code, reply["Allow"]) == (405, "GET, HEAD")
    assert call(files, environ("/other", method), checked=False).code == 404


def test_error_pages(root: Path) -> None:
    """The site's own, without validators: a page about an error is no version of anything. HEAD is without it."""
    (root / "404.html").write_text("not here")
    files = Files(root, error_pages={404: "404.html"})
    reply = get(files, "/missing", if_none_match="*", range="bytes=0-0")
    assert (reply.code, reply.body, reply["ETag"], reply["Last-Modified"]) == (404, b"not here", None, None)
    assert reply["Content-Type"] == "text/html"
    reply = get(files, "/missing", "HEAD")
    assert (reply.code, reply.body, reply["Content-Length"]) == (404, b"", "8")
    assert b"400 Bad Request" in get(files, "/a\0b").body


def test_compressed(root: Path) -> None:
    """Each form is a representation: its own validators, ranges of its own bytes, Vary in the 304 too."""
    files = Files(root)
    plain = get(files, "/a.txt")
    reply = get(files, "/a.txt", accept_encoding="gzip")
    assert (reply.body, reply["Content-Encoding"], reply["Vary"]) == (b"gzip", "gzip", "Accept-Encoding")
    assert reply["Content-Type"] == plain["Content-Type"] == "text/plain; charset=utf-8"
    assert reply["ETag"] != plain["ETag"]
    assert plain["Vary"] == "Accept-Encoding"
    assert get(files, "/a.txt", accept_encoding="gzip", range="bytes=-2").body == b"ip"
    tag = reply["ETag"] or ""
    again = get(files, "/a.txt", accept_encoding="gzip", if_none_match=tag)
    assert (again.code, again["Vary"]) == (304, "Accept-Encoding")
    assert get(files, "/a.txt", if_none_match=tag).code == 200
    assert get(files, "/a.txt", range="bytes=0-0", if_range=tag).body == b"hello\n"


def test_added_fields(root: Path) -> None:
    """They go with files, in a 304 only those that a cache wants, and replace the library's."""
    files = Files(root, headers=[("X-A", "b"), ("Content-Language", "en"), ("ETag", '"own"')], max_age=60)
    reply = get(files, "/a.txt")
    assert (reply["X-A"], reply["Content-Language"], reply["ETag"]) == ("b", "en", '"own"')
    reply = get(files, "/a.txt", if_none_match='"own"')
    assert (reply.code, reply["X-A"], reply["Content-Language"]) == (304, "b", None)
    assert reply["Cache-Control"] == "public, max-age=60"
    assert get(files, "/missing")["X-A"] is None


def test_files_that_cannot_be_answered(root: Path) -> None:
    """A field of one's own that is refused is an exception for the server, and closes the file."""
    files = Files(root, headers=[("X A", "b")])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(sendgate.FieldError) as caught:
        get(files, "/a.txt")
    assert caught.value.__traceback__ is not None
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_behind_the_server(root: Path) -> None:
    """A server of this package gets the answer undecided, with nothing opened that it would not close."""
    files = Files(root)
    given = environ("/a.txt")
    result = Gateway(given, lambda *_: None).call(files)
    assert type(result) is Answer
    assert result.decision is None
    result.close()
    with pytest.raises(ValueError, match="closed"):
        result.file.fileno()  # type: ignore[union-attr]


# ---- Front servers ----


@pytest.fixture
def nginx(root: Path) -> FrontServer:
    return FrontServer("X-Accel-Redirect", {root: "/protected"}, threshold=5)


def test_handing_over(root: Path, nginx: FrontServer) -> None:
    """The front server gets a name and our fields; it answers conditions and ranges, so nothing is decided here."""
    files = Files(root, front=nginx, headers=[("X-A", "b")])
    for method, asked in (("GET", {}), ("HEAD", {}), ("GET", {"range": "bytes=0-0", "if_match": '"theirs"'})):
        reply = get(files, "/a.txt", method, **asked)
        assert (reply.code, reply["X-Accel-Redirect"], reply.body) == (200, "/protected/a.txt", b"")
        assert (reply["Content-Length"], reply["Accept-Ranges"], reply["X-A"]) == ("0", None, "b")
        assert (reply["Last-Modified"], reply["Content-Type"]) == (DATE, "text/plain; charset=utf-8")
    assert get(files, "/missing").code == 404
    assert get(files, "/sub")["X-Accel-Redirect"] is None
    assert get(files, "/sub/")["X-Accel-Redirect"] == "/protected/sub/index.html"


def test_below_the_threshold(root: Path) -> None:
    """A small file is sent from here, with all that belongs to it."""
    files = Files(root, front=FrontServer("X-Sendfile", {root: root.as_posix()}, threshold=6))
    assert get(files, "/a.txt")["X-Sendfile"] == f"{root}/a.txt"
    reply = get(files, "/sub/", range="bytes=1-2")
    assert (reply.code, reply.body, reply["X-Sendfile"]) == (206, b"nd", None)


#: Names, and whether they mean the same decoded or not.
NAMES = {
    "a b.txt": True, "a?b#.txt": True, "ü.txt": True, "a..b.txt": True, "a\\b.txt": True, "a+b.txt": True,
    "100%.txt": False, "%41.txt": False, "line\nbreak.txt": False, "a\x7fb.txt": False, "a.txt ": False,
    "\udcff.txt": False,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_in_the_field(root: Path, nginx: FrontServer, name: str) -> None:
    """nginx decodes its URL. Some X-Sendfile decode their path and some don't, so they get what means the same to both.

    Whatever a file is called, the field is one line.
    """
    raw = os.fsencode(name)
    with open(os.fsencode(root) + b"/" + raw, "wb") as file:
        file.write(b"content")
    given = environ()
    given["PATH_INFO"] = "/" + raw.decode("latin-1")
    field = call(Files(root, front=nginx), dict(given))["X-Accel-Redirect"]
    assert field is not None and re.fullmatch(r"/protected/[!-~]+", field) and "?" not in field
    assert unquote_to_bytes(field) == b"/protected/" + raw
    front = FrontServer("X-Sendfile", {root: "/srv"}, threshold=0)
    reply = call(Files(root, front=front), given)
    if NAMES[name]:
        assert reply["X-Sendfile"] == "/srv/" + raw.decode("latin-1")
    else:
        assert (reply["X-Sendfile"], reply.body) == (None, b"content")


def test_the_open_file_is_what_is_named(root: Path, tmp_path: Path) -> None:
    """Links are resolved; and what lies outside of all mapped directories is sent from here."""
    (root / "link").symlink_to("a.txt")
    (tmp_path / "outside.txt").write_text("outside")
    (root / "out").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "alias").symlink_to(root)
    mapping = {tmp_path / "alias": "/all/", root / "sub": "/sub/"}
    files = Files(root, follow_symlinks=True, front=FrontServer("X-Accel-Redirect", mapping, threshold=0))
    assert get(files, "/link")["X-Accel-Redirect"] == "/all/a.txt"
    assert get(files, "/sub/")["X-Accel-Redirect"] == "/sub/index.html"  # the longest directory
    reply = get(files, "/out")
    assert (reply["X-Accel-Redirect"], reply.body) == (None, b"outside")
    # A directory whose name only begins alike is another one.
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "x").write_text("x")
    front = FrontServer("X-Accel-Redirect", {root: "/all/"}, threshold=0)
    assert get(Files(tmp_path / "root2", front=front), "/x")["X-Accel-Redirect"] is None


def test_a_file_without_a_name(root: Path, nginx: FrontServer) -> None:
    """One that was removed or replaced after it was opened can't be had by name."""
    file = (root / "a.txt").open("rb")
    assert nginx.name(file.fileno()) == "/protected/a.txt"
    (root / "new").write_text("another")
    (root / "new").rename(root / "a.txt")
    (root / "a.txt (deleted)").write_text("a trap")
    assert nginx.name(file.fileno()) is None
    file.close()
    with tempfile.TemporaryFile(dir=root) as file:
        file.write(DATA)
        file.flush()
        assert nginx.name(file.fileno()) is None


@pytest.mark.parametrize("field", ["X-Accel-Redirect", "X-Sendfile"])
def test_a_compressed_form_stays_here(root: Path, field: str) -> None:
    """nginx and Apache would drop Content-Encoding."""
    (root / "a.txt").write_text("x" * 100)
    os.utime(root / "a.txt", (OLD, OLD))
    front = FrontServer(field, {root: "/protected/"}, threshold=0)
    reply = get(Files(root, front=front), "/a.txt", accept_encoding="gzip")
    assert (reply.body, reply["Content-Encoding"], reply[field]) == (b"gzip", "gzip", None)


def test_conditional_hands_over(root: Path, nginx: FrontServer) -> None:
    """A whole file that the application wraps, closed when that is done; no part of one, no buffer, no other status."""
    target = root / "a.txt"
    file = Closing(target.open("rb"))
    reply = get(Conditional(sending(file, ("X-A", "b"), ("ETag", '"own"')), front=nginx), if_match='"theirs"')
    assert (reply["X-Accel-Redirect"], reply["X-A"], reply["ETag"]) == ("/protected/a.txt", "b", '"own"')
    assert file.closed == 1
    for application, body in (
        (sending(at(target.open("rb"), 1)), b"ello\n"),
        (sending(target.open("rb"), ("Content-Length", "5")), b"hello"),
        (sending(target.open("rb"), status="404 Not Found"), b"hello\n"),
        (sending(b"bytes "), b"bytes "),
    ):
        reply = get(Conditional(application, front=nginx))
        assert (reply["X-Accel-Redirect"], reply.body) == (None, body)
    reply = get(Conditional(sending(target.open("rb")), front=nginx), method="POST")
    assert (reply["X-Accel-Redirect"], reply.body) == (None, b"hello\n")


@pytest.mark.parametrize("field", ["X-Accel-Redirect", "x-sendfile", "X-LIGHTTPD-send-file"])
def test_the_field_is_refused_to_the_application(root: Path, nginx: FrontServer, field: str) -> None:
    """With a FrontServer it alone says what is sent; without one the application may do as it likes."""
    given = (field, "/etc/passwd")
    reply = get(Conditional(returning([b"body"], given), front=nginx), "/x")
    assert (reply[field], reply.body) == (None, b"body")
    assert reply.errors.getvalue() == f"sendgate: /x: the application may not send {field.lower()}\n"
    reply = get(Conditional(sending((root / "a.txt").open("rb"), given), front=nginx))
    assert [name for name, _ in reply.fields if name.lower() in ("x-accel-redirect", field.lower())] == [
        "X-Accel-Redirect"
    ]
    assert reply["X-Accel-Redirect"] == "/protected/a.txt"

    def late(_: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), given])
        yield b"body"

    assert get(Conditional(late, front=nginx))[field] is None
    assert get(Conditional(returning([b"body"], given)))[field] == "/etc/passwd"


def test_what_a_client_says_has_no_say(root: Path, nginx: FrontServer) -> None:
    """Fields by which others let a client choose the mapping are not looked at."""
    asked = {
        "x_accel_mapping": "/=/etc/",
        "x_sendfile_type": "X-Sendfile",
        "x_accel_redirect": "/x",
        "x_sendfile": "/x",
    }
    for files in (Files(root), Files(root, front=nginx)):
        plain, reply = get(files, "/a.txt"), get(files, "/a.txt", **asked)
        assert (reply.fields, reply.body) == (plain.fields, plain.body)


@pytest.mark.parametrize("middleware", [lambda inner: inner, Wrapping, Holding, Adding])
def test_a_front_server_twice(root: Path, nginx: FrontServer, middleware: Any) -> None:
    """Files within a Conditional, both with a front server: handed over or sent, never lost."""
    reply = get(Conditional(middleware(Files(root, front=nginx)), front=nginx), "/a.txt")
    handed_over = reply["X-Accel-Redirect"] == "/protected/a.txt"
    assert handed_over != (reply.body == b"hello\n")
    assert handed_over == (middleware not in (Wrapping, Holding))


def test_a_field_that_is_none() -> None:
    """A typing error would otherwise show a file's path to clients."""
    with pytest.raises(ValueError, match="X-Accel-Redirect"):
        FrontServer("X-Accel-Redirekt", {})
