"""Responses as values: what their content is to those who change it, and what WSGI and ASGI get of it."""

from __future__ import annotations

import asyncio
import gzip
import io
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import sendgate
from sendgate import ExcessError, FieldError, FrozenError, Headers, Response, TruncatedError


class Produced:
    """An iterator that tells what became of it."""

    def __init__(self, *items: Any) -> None:
        self._items = iter(items)
        self.read = 0
        self.closed = 0

    def __iter__(self) -> Produced:
        return self

    def __next__(self) -> Any:
        item = next(self._items)
        self.read += 1
        return item

    def close(self) -> None:
        """Be closed."""
        self.closed += 1


class AsyncProduced(Produced):
    """The same, asynchronous."""

    __iter__ = None  # type: ignore[assignment]
    __next__ = None  # type: ignore[assignment]
    close = None  # type: ignore[assignment]

    def __aiter__(self) -> AsyncProduced:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)
        try:
            return Produced.__next__(self)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Be closed."""
        await asyncio.sleep(0)
        self.closed += 1


class PlainProduced(AsyncProduced):
    """The same, but that it is closed without waiting for it."""

    aclose = property()  # type: ignore[assignment]

    def close(self) -> None:
        """Be closed."""
        self.closed += 1


KINDS = pytest.mark.parametrize("kind", [Produced, AsyncProduced])


# ---- Asking ----


class Got:
    """What came of a call."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: list[bytes], trailers: Any = None) -> None:
        self.status = status
        self.headers = Headers(headers)
        self.chunks = [chunk for chunk in body if chunk]
        self.body = b"".join(body)
        self.trailers = trailers


def wsgi(response: Any, *fields: tuple[str, str], method: str = "GET", **more: Any) -> Got:
    """As a WSGI server calls it."""
    environ = {"REQUEST_METHOD": method, "SERVER_PROTOCOL": "HTTP/1.1", "PATH_INFO": "/", "wsgi.input": io.BytesIO()}
    environ.update({"HTTP_" + name.upper().replace("-", "_"): value for name, value in fields})
    begun: list[Any] = []
    result = response({**environ, **more}, lambda status, headers: begun.append((status, headers)))
    try:
        body = list(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    ((status, headers),) = begun
    return Got(int(status[:3]), headers, body)


def scope(*fields: tuple[str, str], method: str = "GET", **more: Any) -> dict[str, Any]:
    """That of a request."""
    headers = [(name.lower().encode(), value.encode()) for name, value in fields]
    return {"type": "http", "http_version": "1.1", "method": method, "path": "/", "headers": headers, **more}


async def call(response: Any, asked: dict[str, Any]) -> Got:
    """As an ASGI server calls it."""
    messages: list[Any] = []
    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if not requests:
            await asyncio.get_running_loop().create_future()
        return requests.pop()

    async def send(message: Any) -> None:
        messages.append(message)

    await response(asked, receive, send)
    start, *rest = messages
    trailers = rest.pop() if rest[-1]["type"] == "http.response.trailers" else None
    assert [message.get("more_body") for message in rest] == [True] * (len(rest) - 1) + [False]
    headers = [(name.decode(), value.decode()) for name, value in start["headers"]]
    return Got(start["status"], headers, [message["body"] for message in rest], trailers)


def asgi(response: Any, *fields: tuple[str, str], method: str = "GET", **more: Any) -> Got:
    """The same, in an event loop of its own."""
    return asyncio.run(call(response, scope(*fields, method=method, **more)))


BOTH = pytest.mark.parametrize("ask", [wsgi, asgi])


# ---- Content, to those who change it ----


@KINDS
def test_content_is_captured_once(kind: Any) -> None:
    """An iterator is read when somebody asks, and closed; who asks again gets the same bytes."""
    produced = kind(b"1", b"2")
    response = Response(produced)
    assert response.content_iterator is produced
    assert response.content == b"12"
    assert response.content is response.content
    assert (produced.read, produced.closed) == (2, 1)
    assert response.content_iterator is None
    assert wsgi(response).body == b"12"
    assert wsgi(response).body == b"12"


@KINDS
def test_content_is_captured_in_an_event_loop(kind: Any) -> None:
    """Without stopping it."""
    produced = kind(b"1", b"2")

    async def run() -> None:
        response = Response(produced)
        assert await response.capture() == b"12"
        assert await response.capture() == response.content == b"12"

    asyncio.run(run())
    assert (produced.read, produced.closed) == (2, 1)


def test_capturing_keeps_to_what_was_announced() -> None:
    """It would be a response that is cut short otherwise."""
    with pytest.raises(TruncatedError):
        Response([b"1"], headers={"Content-Length": "2"}).content  # noqa: B018
    with pytest.raises(ExcessError):
        asyncio.run(Response([b"123"], headers={"Content-Length": "2"}).capture())


def test_streaming_content_cannot_be_asked_for() -> None:
    """Nor set: it is changed by an iterator around it."""
    produced = Produced(b"1")
    response = Response(produced, streaming=True)
    with pytest.raises(AttributeError, match="content_iterator"):
        response.content  # noqa: B018
    with pytest.raises(AttributeError, match="content_iterator"):
        response.content = b"2"
    with pytest.raises(AttributeError, match="content_iterator"):
        asyncio.run(response.capture())
    assert produced.read == 0
    response.streaming = False
    assert response.content == b"1"
    response.streaming = True
    with pytest.raises(AttributeError):
        response.content  # noqa: B018
    # The captured bytes are what there is to iterate over.
    assert list(response.content_iterator) == [b"1"]


@BOTH
def test_middleware_wraps_the_iterator(ask: Callable[..., Got]) -> None:
    """What it was given is read once, by the wrapper, and both are closed, the outer one first."""
    order: list[str] = []

    class Inner(Produced):
        def close(self) -> None:
            super().close()
            order.append("inner")

    produced = Inner(b"a", b"b")
    response = Response(produced, streaming=True)

    def upper(chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            for chunk in chunks:
                yield chunk.upper()
        finally:
            order.append("outer")

    response.content_iterator = upper(response.content_iterator)
    assert ask(response).chunks == [b"A", b"B"]
    assert order == ["outer", "inner"]
    assert (produced.read, produced.closed) == (2, 1)


@BOTH
@pytest.mark.parametrize("kind", [Produced, AsyncProduced, PlainProduced])
def test_each_iterator_is_closed_once(ask: Callable[..., Got], kind: Any) -> None:
    """The one that is read, and those that it has replaced."""
    inner, outer = kind(b"1"), kind(b"2")
    response = Response(inner, streaming=True)
    response.content_iterator = outer
    assert ask(response).body == b"2"
    assert (inner.closed, outer.closed) == (1, 1)


@BOTH
def test_an_iterator_is_never_read_twice(ask: Callable[..., Got]) -> None:
    """A second call is refused, and so is asking for the content."""
    response = Response(Produced(b"1"))
    assert ask(response).body == b"1"
    for attempt in (
        lambda: ask(response),
        lambda: response.content,
        lambda: response.content_iterator,
        lambda: setattr(response, "content_iterator", [b""]),
    ):
        with pytest.raises(RuntimeError, match="twice"):
            attempt()
    response.content = b"2"
    assert ask(response).body == b"2"


def test_a_call_that_is_refused_leaves_the_first_alone() -> None:
    """It is being sent."""
    produced = Produced(b"1", b"2")
    response = Response(produced)
    result = iter(response({"REQUEST_METHOD": "GET"}, lambda *_: None))
    assert next(result) == b"1"
    with pytest.raises(RuntimeError):
        wsgi(response)
    assert next(result) == b"2"
    assert produced.closed == 0
    result.close()  # type: ignore[attr-defined]
    assert produced.closed == 1


def test_content_of_every_kind(tmp_path: Path) -> None:
    """It can be read as bytes."""
    path = tmp_path / "a"
    path.write_bytes(b"content")
    directory = os.open(tmp_path, os.O_RDONLY)
    with path.open("rb") as mapped, mmap.mmap(mapped.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        for made in (
            lambda: b"content",
            lambda: "content",
            lambda: bytearray(b"content"),
            lambda: memoryview(b"content"),
            lambda: mapping,
            lambda: path,
            lambda: path.open("rb"),
            lambda: sendgate.open_beneath(directory, "a"),
            lambda: io.BytesIO(b"content"),
            lambda: [b"con", b"tent"],
            lambda: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"content"))),
        ):
            assert Response(made()).content == b"content"  # type: ignore[arg-type]
    os.close(directory)
    assert Response("\xfc").content == b"\xc3\xbc"
    for wrong in (None, 5):
        with pytest.raises(TypeError, match="content must be"):
            Response(wrong)  # type: ignore[arg-type]
    response = Response()
    for wrong in (b"1", "1", None):
        with pytest.raises(TypeError, match="iterable"):
            response.content_iterator = wrong


def test_closing_what_is_not_sent() -> None:
    """Content and all that is around it, once; a response of bytes can be sent all the same."""
    produced = Produced(b"1")
    outer = Produced(b"2")
    response = Response(produced)
    response.content_iterator = outer
    response.close()
    response.close()
    assert (produced.closed, outer.closed, produced.read) == (1, 1, 0)
    with pytest.raises(RuntimeError):
        wsgi(response)
    response = Response(b"1")
    response.close()
    assert wsgi(response).body == b"1"
    apart = AsyncProduced(b"1")
    response = Response(apart)  # type: ignore[arg-type]
    response.close()
    assert apart.closed == 1
    apart = AsyncProduced(b"1")
    asyncio.run(Response(apart).aclose())  # type: ignore[arg-type]
    assert apart.closed == 1


def test_replaced_content_is_closed_too() -> None:
    """With the response, not before: what has replaced it may read it."""
    produced = Produced(b"1")
    response = Response(produced)
    response.content = b"2"
    assert produced.closed == 0
    assert wsgi(response).body == b"2"
    assert produced.closed == 1


# ---- Status and fields ----


def test_content_types() -> None:
    """What is said wins over what is guessed."""
    assert Response("a").headers == {"Content-Type": "text/plain; charset=utf-8"}
    assert Response(Path("a.css"))["content-type"] == "text/css; charset=utf-8"
    assert Response(b"a").headers == {}
    assert Response("a", content_type="text/html")["Content-Type"] == "text/html"
    assert Response("a", headers={"Content-Type": "a/b"}, content_type="text/html")["Content-Type"] == "a/b"
    headers = Headers()
    headers.freeze("Content-Type")
    assert "Content-Type" not in Response("a", headers=headers, content_type="a/b")


def test_fields_by_name() -> None:
    """As the document writes them; numbers too."""
    response = Response()
    response["Content-Length"] = 5
    response["ETag"] = '"a"'
    assert ("etag" in response, response["content-length"]) == (True, "5")
    del response["Etag"]
    assert "etag" not in response
    response.freeze_header("ETag", "Content-Encoding")
    assert response.header_is_frozen("etag")
    assert not response.header_is_frozen("content-length")
    with pytest.raises(FrozenError):
        response["ETag"] = '"b"'


def test_the_headers_are_a_copy() -> None:
    """With what was frozen in it, and its mode, unless another is asked for."""
    given = Headers({"A": "1"}, frozen="ignore")
    given.freeze("A")
    response = Response(headers=given)
    response.headers["B"] = "2"
    assert "B" not in given
    assert (response.header_is_frozen("A"), response.headers.frozen) == (True, "ignore")
    assert Response(headers=given, frozen="raise").headers.frozen == "raise"


@pytest.mark.parametrize("status", [199, 1000])
def test_a_status_is_one(status: int) -> None:
    """200 to 999."""
    with pytest.raises(ValueError, match="status"):
        Response(b"", status)
    response = Response()
    with pytest.raises(ValueError, match="status"):
        response.status = status


def test_frozen_content() -> None:
    """Changes are refused, and reading is none."""
    response = Response([b"1"])
    response.freeze_content()
    assert response.content_is_frozen()
    with pytest.raises(FrozenError):
        response.content_iterator = [b"2"]
    with pytest.raises(FrozenError):
        response.content = b"2"
    # Nor can anybody say that it is compressed.
    with pytest.raises(FrozenError):
        response["Content-Encoding"] = "gzip"
    response.headers.frozen = "ignore"
    response.content_iterator = [b"2"]
    response["Content-Encoding"] = "gzip"
    assert response.content == b"1"
    response.content = b"2"
    got = wsgi(response)
    assert (got.body, "Content-Encoding" in got.headers) == (b"1", False)
    assert not Response().content_is_frozen()


def test_shown() -> None:
    """What kind it is."""
    assert repr(Response()) == "<sendgate.Response 200, bytes>"
    assert repr(Response([], 404)) == "<sendgate.Response 404, not captured>"
    assert repr(Response([], streaming=True)) == "<sendgate.Response 200, streaming>"


# ---- Sent ----


@BOTH
@KINDS
def test_pieces_are_sent_as_they_are_produced(ask: Callable[..., Got], kind: Any) -> None:
    """Neither joined nor split; without a length the server frames them."""
    produced = kind(b"1", b"", b"23")
    got = ask(Response(produced, 404, {"X": "1"}))
    assert (got.status, got.headers, got.chunks) == (404, {"x": "1"}, [b"1", b"23"])
    assert produced.closed == 1


@BOTH
def test_bytes(ask: Callable[..., Got]) -> None:
    """With their length, whatever was said of it, unless it is frozen that nothing is said."""
    response = Response("a", 201, {"Content-Length": "7"})
    got = ask(response)
    assert (got.status, got.headers["Content-Length"], got.body) == (201, "1", b"a")
    assert "Accept-Ranges" not in got.headers
    response.freeze_header("Content-Length")
    with pytest.raises(TruncatedError):
        ask(response)
    response = Response(b"ab", headers={"Content-Length": "1"})
    response.freeze_header("Content-Length")
    with pytest.raises(ExcessError):
        ask(response)
    response = Response("a")
    response.freeze_header("Content-Length")
    got = ask(response)
    assert (got.body, "Content-Length" in got.headers) == (b"a", False)


@BOTH
def test_conditions_and_ranges_of_bytes(ask: Callable[..., Got]) -> None:
    """Where something tells one version from another; what is frozen survives."""
    headers = Headers({"ETag": '"a"', "Content-Language": "de"})
    headers.freeze("Content-Language")
    response = Response(b"0123456789", headers=headers)
    assert ask(response).headers["Accept-Ranges"] == "bytes"
    got = ask(response, ("If-None-Match", '"a"'))
    assert (got.status, got.headers["Content-Language"], got.body) == (304, "de", b"")
    got = ask(response, ("Range", "bytes=2-3"))
    assert (got.status, got.headers["Content-Range"], got.body) == (206, "bytes 2-3/10", b"23")
    assert ask(response, ("If-Match", '"b"')).status == 412
    assert ask(response, ("Range", "bytes=20-")).status == 416
    response["Accept-Ranges"] = "none"
    assert ask(response, ("Range", "bytes=2-3")).status == 200
    assert ask(Response(b"01"), ("Range", "bytes=1-")).status == 200
    assert ask(Response(b"01", 404, {"ETag": '"a"'}), ("If-None-Match", '"a"')).status == 404
    got = ask(response, method="HEAD")
    assert (got.headers["Content-Length"], got.body) == ("10", b"")


@BOTH
@pytest.mark.parametrize("opened", [False, True])
def test_files(ask: Callable[..., Got], opened: bool, tmp_path: Path) -> None:
    """Their validators come of one fstat; a frozen absence keeps them away. A path can be sent again."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789")
    os.utime(path, (784111777, 784111777))

    def made() -> Response:
        return Response(path.open("rb") if opened else path)

    response = made()
    got = ask(response, ("Range", "bytes=-2"))
    assert (got.status, got.body, got.headers["Last-Modified"]) == (206, b"89", "Sun, 06 Nov 1994 08:49:37 GMT")
    assert "ETag" in got.headers
    if opened:
        with pytest.raises(RuntimeError):
            ask(response)
        response = made()
    response.freeze_header("ETag", "Last-Modified")
    got = ask(response, ("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"))
    assert (got.status, got.body) == (200, b"0123456789")
    assert "ETag" not in got.headers
    assert "Last-Modified" not in got.headers
    assert got.headers.get("Content-Type") == (None if opened else "text/plain; charset=utf-8")
    response = made()
    response.content_iterator = (chunk[::-1] for chunk in response.content_iterator)
    got = ask(response)
    assert (got.body, "ETag" in got.headers) == (b"9876543210", False)
    response = made()
    # Asking for the iterator isn't reading.
    assert response.content_iterator is response.content_iterator
    assert ask(response, ("Range", "bytes=0-0")).body == b"0"
    response = made()
    next(response.content_iterator)
    with pytest.raises(RuntimeError):
        ask(response)
    response.close()


@BOTH
def test_a_file_that_is_not_there(ask: Callable[..., Got], tmp_path: Path) -> None:
    """Nothing was begun."""
    with pytest.raises(FileNotFoundError):
        ask(Response(tmp_path / "nothing"))
    with pytest.raises(sendgate.NotRegularError):
        ask(Response(tmp_path))


class Remote:
    """An object of a store: no descriptor, but it can seek."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)
        self.read_bytes = 0
        self.closed = False

    def read(self, size: int) -> bytes:
        """So many bytes."""
        block = self._content.read(size)
        self.read_bytes += len(block)
        return block

    def seek(self, offset: int) -> int:
        """Go there."""
        return self._content.seek(offset)

    def tell(self) -> int:
        """Where it is."""
        return self._content.tell()

    def close(self) -> None:
        """Be closed."""
        self.closed = True


@BOTH
@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=100000-", 206, b"x" * 99999 + b"y", "bytes 100000-199999/200000"),
        ("bytes=-1", 206, b"y", "bytes 199999-199999/200000"),
        ("bytes=300000-", 416, b"", "bytes */200000"),
        ("pages=1", 200, b"x" * 199999 + b"y", None),
    ],
)
def test_ranges_by_seeking(
    ask: Callable[..., Got], asked: str, status: int, body: bytes, content_range: str | None
) -> None:
    """Only what is asked for is read, counted from where the object stands."""
    remote = Remote(b"before" + b"x" * 199999 + b"y")
    remote.seek(6)
    response = Response(remote, headers={"ETag": '"a"', "Content-Length": "200000"})
    got = ask(response, ("Range", asked))
    assert (got.status, got.body, got.headers.get("Content-Range")) == (status, body, content_range)
    assert got.headers["Content-Length"] == str(len(body))
    assert (remote.read_bytes, remote.closed) == (len(body), True)


@BOTH
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_made_of_too_little_does_not_look_complete(ask: Callable[..., Got], streaming: bool) -> None:
    """A middleware that wraps the content, and removes the Content-Length that it had."""
    response = Response(iter([b"too little"]), headers={"Content-Length": "11"}, streaming=streaming)
    inner, ends = response.content_iterator, []

    def around() -> Iterator[bytes]:
        for piece in inner:
            yield piece.upper()
        ends.append("as if that were all")

    response.content_iterator = around()
    del response.headers["Content-Length"]
    with pytest.raises(TruncatedError):
        ask(response)
    assert ends == []


def test_content_of_which_some_was_taken_is_not_the_rest() -> None:
    """Bytes that were to be streamed, and then not."""
    response = Response(b"abc")
    response.streaming = True
    assert next(iter(response.content_iterator)) == b"abc"
    response.streaming = False
    with pytest.raises(RuntimeError):
        _ = response.content


@BOTH
def test_several_ranges_by_seeking(ask: Callable[..., Got]) -> None:
    """The same bytes as of content that is in memory, but for the boundary; only what is asked for is read."""
    content = bytes(range(256)) * 1000
    headers = {"ETag": '"a"', "Content-Length": str(len(content)), "Content-Type": "a/b"}
    asked = ("Range", "bytes=5-9,200000-,70000-150000")
    remote = Remote(content)
    got, whole = (ask(Response(each, headers=headers), asked) for each in (remote, content))
    assert (got.status, remote.closed) == (206, True)
    assert remote.read_bytes == 5 + 56000 + 80001
    ours, theirs = (each.headers["Content-Type"].partition("boundary=")[2].encode() for each in (got, whole))
    assert got.body.replace(ours, b"") == whole.body.replace(theirs, b"")
    assert got.headers["Content-Length"] == str(len(got.body)) == whole.headers["Content-Length"]
    remote = Remote(content[:100000])
    with pytest.raises(TruncatedError):
        ask(Response(remote, headers=headers), asked)
    assert remote.closed


@BOTH
def test_seeking_needs_to_know(ask: Callable[..., Got]) -> None:
    """The length, and that it is the same version; and conditions read nothing."""
    for headers in ({"ETag": '"a"'}, {"Content-Length": "10"}):
        remote = Remote(b"0123456789")
        got = ask(Response(remote, headers=headers), ("Range", "bytes=1-"))
        assert (got.status, got.body, remote.closed) == (200, b"0123456789", True)
    headers = {"ETag": '"a"', "Content-Length": "10"}
    for method, field, status in (("GET", ("If-None-Match", '"a"'), 304), ("HEAD", ("X", ""), 200)):
        remote = Remote(b"0123456789")
        got = ask(Response(remote, headers=headers), field, method=method)
        assert (got.status, got.body, remote.read_bytes, remote.closed) == (status, b"", 0, True)
    remote = Remote(b"0123")
    with pytest.raises(TruncatedError):
        ask(Response(remote, headers=headers), ("Range", "bytes=2-"))
    assert remote.closed
    remote = Remote(b"0123456789")
    got = ask(Response(remote, headers={**headers, "Accept-Ranges": "none"}), ("Range", "bytes=2-"))
    assert got.status == 200


@BOTH
@KINDS
def test_an_iterator_that_is_not_needed(ask: Callable[..., Got], kind: Any) -> None:
    """It is closed, and not read: for HEAD, a condition, a status without content."""
    headers = {"ETag": '"a"', "Content-Length": "1"}
    for method, field, given, status in (
        ("HEAD", ("X", ""), 200, 200),
        ("GET", ("If-None-Match", '"a"'), 200, 304),
        ("GET", ("If-Match", '"b"'), 200, 412),
        ("GET", ("X", ""), 204, 204),
        ("GET", ("X", ""), 304, 304),
    ):
        produced = kind(b"1")
        got = ask(Response(produced, given, headers), field, method=method)
        assert (got.status, got.body, produced.read, produced.closed) == (status, b"", 0, 1)
        if method == "HEAD":
            assert got.headers["Content-Length"] == "1"
    produced = kind(b"1")
    got = ask(Response(produced, headers=headers), ("If-None-Match", '"b"'), ("Range", "bytes=0-0"))
    assert (got.status, got.body, produced.closed) == (200, b"1", 1)


@BOTH
@KINDS
@pytest.mark.parametrize(("announced", "error"), [("1", ExcessError), ("3", TruncatedError)])
def test_what_was_announced_is_enforced(ask: Callable[..., Got], kind: Any, announced: str, error: Any) -> None:
    """By an exception, so that the server breaks the connection."""
    produced = kind(b"1", b"2")
    with pytest.raises(error):
        ask(Response(produced, headers={"Content-Length": announced}))
    assert produced.closed == 1


@BOTH
@pytest.mark.parametrize(
    "headers",
    [
        [("ETag", "unquoted")],
        [("Content-Type", "a/b"), ("Content-Type", "c/d")],
        [("Content-Range", "bytes 0-0/1")],
    ],
)
def test_fields_that_make_no_sense_are_refused_each_time(ask: Callable[..., Got], headers: Any) -> None:
    """And not only when a request happens to make the library look."""
    for content in (b"1", Produced(b"1")):
        with pytest.raises(FieldError):
            ask(Response(content, headers=headers))
        assert content == b"1" or content.closed == 1
    with pytest.raises(ValueError, match="Content-Length"):
        ask(Response([b"1"], headers={"Content-Length": "one"}))


@BOTH
def test_a_part_that_the_application_has_made(ask: Callable[..., Got]) -> None:
    """Its status and its Content-Range are the application's."""
    got = ask(Response([b"1"], 206, {"Content-Range": "bytes 0-0/2"}))
    assert (got.status, got.headers["Content-Range"]) == (206, "bytes 0-0/2")


@BOTH
def test_the_head_of_content_that_is_not_there(ask: Callable[..., Got]) -> None:
    """An application may know the length of what it would send."""
    got = ask(Response(b"", headers={"Content-Length": "5"}), method="HEAD")
    assert (got.headers["Content-Length"], got.body) == ("5", b"")


@BOTH
def test_frozen_fields_are_sent_as_they_are(ask: Callable[..., Got]) -> None:
    """Several lines too, and with a 304."""
    headers = Headers([("Content-Language", "de"), ("Vary", "A"), ("Vary", "B"), ("ETag", '"a"')])
    headers.freeze("Content-Language", "Vary", "Content-Encoding")
    assert ask(Response([b"1"], headers=headers)).headers.get_all("Vary") == ["A", "B"]
    got = ask(Response([b"1"], headers=headers), ("If-None-Match", '"a"'))
    assert (got.status, got.headers["Content-Language"], got.headers.get_all("Vary")) == (304, "de", ["A", "B"])


# ---- WSGI ----


def test_the_head_is_sent_early_if_it_is_streaming() -> None:
    """Several servers send it when they get the first item, even if that is empty."""
    for streaming, first in ((True, b""), (False, b"1")):
        result = iter(Response([b"1"], streaming=streaming)({"REQUEST_METHOD": "GET"}, lambda *_: None))
        assert next(result) == first
        result.close()  # type: ignore[attr-defined]


def test_a_server_that_refuses_the_head() -> None:
    """The content is closed."""
    produced = Produced(b"1")

    def refuse(*_: Any) -> Any:
        raise KeyError

    with pytest.raises(KeyError):
        Response(produced)({"REQUEST_METHOD": "GET"}, refuse)
    assert produced.closed == 1


def test_what_becomes_of_the_connection_is_looked_at() -> None:
    """When the next piece is there, and the client is not: it isn't handed on, and the iterator is closed."""
    for key in ("gunicorn.socket", "wsgi.input"):
        ours, client = socket.socketpair()
        with ours, client, ours.makefile("rb") as stream:
            produced = Produced(b"1", b"2", b"3")
            environ = {"REQUEST_METHOD": "GET", key: stream if key == "wsgi.input" else ours}
            result = iter(Response(produced)(environ, lambda *_: None))
            client.sendall(b"what it sends doesn't matter")
            assert next(result) == b"1"
            client.close()
            with pytest.raises(BrokenPipeError):
                next(result)
            assert (produced.read, produced.closed) == (2, 1)


def test_the_look_that_a_server_offers() -> None:
    """waitress has a function for it, and an exception, which isn't in the log."""
    from waitress.channel import ClientDisconnected

    left = []
    environ = {"REQUEST_METHOD": "GET", "waitress.client_disconnected": lambda: bool(left)}
    result = iter(Response([b"1", b"2"])(environ, lambda *_: None))
    assert next(result) == b"1"
    left.append(1)
    with pytest.raises(ClientDisconnected):
        next(result)


# ---- ASGI ----


def test_the_head_waits_for_the_first_piece_unless_it_is_streaming() -> None:
    """A producer that fails at once can then be answered 500."""

    def fail() -> Iterator[bytes]:
        raise KeyError
        yield b""

    async def run(streaming: bool) -> list[Any]:
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        async def receive() -> Any:
            await asyncio.sleep(60)

        with pytest.raises(KeyError):
            await Response(fail(), streaming=streaming)(scope(), receive, send)
        return [(message["type"], message.get("body")) for message in messages]

    assert asyncio.run(run(False)) == []
    assert asyncio.run(run(True)) == [("http.response.start", None), ("http.response.body", b"")]


def test_trailers() -> None:
    """Where the server has them; the producer may set them as late as it likes."""
    extensions = {"http.response.trailers": {}}
    response = Response(trailers={"A": "1"})
    assert response.trailers is not None

    def produce() -> Iterator[bytes]:
        yield b"1"
        response.trailers["Digest"] = "a=b"

    response.content_iterator = produce()
    got = asgi(response, extensions=extensions)
    assert got.trailers["headers"] == [(b"a", b"1"), (b"digest", b"a=b")]
    assert asgi(Response(b"1", trailers={"A": "1"})).trailers is None
    assert asgi(Response(b"1", trailers={"A": "1"}), extensions=extensions).trailers["headers"] == [(b"a", b"1")]
    assert wsgi(Response(b"1", trailers={"A": "1"})).body == b"1"


class Leaving:
    """A client that leaves when it is told to, in asyncio or trio."""

    def __init__(self, event: Any) -> None:
        self.left = event
        self.sent: list[bytes] = []

    async def receive(self) -> Any:
        """The end of the connection."""
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Leave when the first piece has come."""
        if message.get("body"):
            self.sent.append(message["body"])
            self.left.set()


def test_a_client_that_leaves_ends_asynchronous_content() -> None:
    """At once: while it waits for what would be the next piece."""
    events: list[str] = []

    async def produce() -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            events.append("closed")

    async def run() -> None:
        client = Leaving(asyncio.Event())
        await Response(produce())(scope(), client.receive, client.send)
        assert (client.sent, events) == ([b"1"], ["closed"])

    asyncio.run(run())


def test_a_client_that_leaves_ends_asynchronous_content_in_trio() -> None:
    """The same."""
    events: list[str] = []

    async def produce() -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await trio.sleep(60)
        finally:
            events.append("closed")

    async def run() -> None:
        client = Leaving(trio.Event())
        await Response(produce())(scope(), client.receive, client.send)
        assert (client.sent, events) == ([b"1"], ["closed"])

    trio.run(run)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_client_that_leaves_ends_content_that_waits_in_a_thread(library: str) -> None:
    """The application is done at once, and the content closed as soon as its thread has come back."""
    entered, release, closed = threading.Event(), threading.Event(), threading.Event()

    def produce() -> Iterator[bytes]:
        try:
            yield b"1"
            entered.set()
            assert release.wait(20)
            yield b"2"
        finally:
            closed.set()

    async def run() -> None:
        sent = []

        async def receive() -> Any:
            if library == "trio":
                await trio.to_thread.run_sync(entered.wait, 20)
            else:
                await asyncio.get_running_loop().run_in_executor(None, entered.wait, 20)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("body"))

        await Response(produce())(scope(), receive, send)
        assert sent == [None, b"1"]
        assert not closed.is_set()
        release.set()

    if library == "trio":
        trio.run(run)
    else:
        asyncio.run(run())
    assert closed.wait(20)


def test_a_server_that_cancels() -> None:
    """The content is closed, and the cancellation goes on."""
    produced = AsyncProduced(*[b"1"] * 1000000)

    async def run() -> None:
        begun = asyncio.Event()

        async def send(_: Any) -> None:
            begun.set()
            await asyncio.sleep(60)

        async def receive() -> Any:
            await asyncio.sleep(60)

        task = asyncio.ensure_future(Response(produced)(scope(), receive, send))  # type: ignore[arg-type]
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (produced.read, produced.closed) == (1, 1)

    asyncio.run(run())


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_server_that_says_so_while_it_takes_the_last_message(library: str) -> None:
    """It isn't interrupted: Hypercorn would not close the connection."""
    taken: list[bool] = []

    async def run(event: Any, sleep: Any) -> None:
        ended = event()

        async def receive() -> Any:
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("more_body") is False:
                ended.set()
                for _ in range(10):
                    await sleep(0)
                taken.append(True)

        await Response([b"1"], streaming=True)(scope(), receive, send)

    if library == "trio":
        trio.run(run, trio.Event, trio.sleep)
    else:
        asyncio.run(run(asyncio.Event, asyncio.sleep))
    assert taken == [True]


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_an_error_of_the_producer_is_the_servers(library: str) -> None:
    """As it is, and not in a group."""

    async def produce() -> AsyncIterator[bytes]:
        yield b"1"
        raise KeyError("as it has to")

    async def run(event: Any) -> None:
        async def send(_: Any) -> None:
            pass

        with pytest.raises(KeyError):
            await Response(produce())(scope(), event().wait, send)

    if library == "trio":
        trio.run(run, trio.Event)
    else:
        asyncio.run(run(asyncio.Event))


def test_importing_the_package_does_not_import_asyncio() -> None:
    """Only who asks for a Response needs it."""
    program = "import sys, sendgate; assert 'asyncio' not in sys.modules; sendgate.Response"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="Nothing"):
        sendgate.Nothing  # type: ignore[attr-defined]  # noqa: B018
