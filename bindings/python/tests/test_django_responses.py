"""``sendgate.django``: responses whose headers and content middleware can't change, within one process."""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import io
import os
import pickle
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import sendgate

pytest.importorskip("django", reason="django is not installed: bindings/python/requirements-dev.txt")

from django import http
from django.core.handlers.wsgi import WSGIRequest
from django.middleware.gzip import GZipMiddleware as DjangoGZipMiddleware
from django.template.backends.django import DjangoTemplates
from django.template.response import SimpleTemplateResponse
from django.test import RequestFactory
from django.utils.cache import get_conditional_response, patch_response_headers, patch_vary_headers

import django_project
from sendgate.django import FileResponse, FreezeMixin, GZipMiddleware, HttpResponse, StreamingHttpResponse

django_project.set_up()

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def made(**arguments: Any) -> HttpResponse:
    """A response with two headers."""
    return HttpResponse(b"content", headers={"ETag": '"a"', "X-Open": "1"}, **arguments)


# ---- Headers ----

CHANGES: dict[str, Callable[[Any], object]] = {
    "set": lambda r: r.__setitem__("etag", "x"),
    "set the same": lambda r: r.__setitem__("ETag", '"a"'),
    "delete": lambda r: r.__delitem__("ETag"),
    "headers set": lambda r: r.headers.__setitem__("ETag", "x"),
    "headers delete": lambda r: r.headers.__delitem__("ETag"),
    "headers pop": lambda r: r.headers.pop("ETAG"),
    "headers pop with a default": lambda r: r.headers.pop("ETag", None),
    "setdefault of what is absent": lambda r: r.setdefault("Content-Encoding", "br"),
    "headers setdefault of what is absent": lambda r: r.headers.setdefault("Content-Encoding", "br"),
    "set what is absent": lambda r: r.__setitem__("Content-Encoding", "br"),
    "delete what is absent": lambda r: r.__delitem__("Content-Encoding"),
    "pop what is absent": lambda r: r.headers.pop("Content-Encoding", None),
    "store set": lambda r: r.headers._store.__setitem__("etag", ("ETag", "x")),
    "store delete": lambda r: r.headers._store.__delitem__("etag"),
    "store pop": lambda r: r.headers._store.pop("etag"),
    "store update": lambda r: r.headers._store.update({"etag": ("ETag", "x")}),
    "store update in place": lambda r: r.headers._store.__ior__({"etag": ("ETag", "x")}),
    "store setdefault": lambda r: r.headers._store.setdefault("content-encoding", ("Content-Encoding", "x")),
    "store clear": lambda r: r.headers._store.clear(),
    "all replaced": lambda r: setattr(r, "headers", {"ETag": "x", "X-Open": "1", "Content-Encoding": "br"}),
    "all replaced without": lambda r: setattr(r, "headers", {"X-Open": "1"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_frozen_header_stays(name: str) -> None:
    """Whichever way it is changed, with the content, and nothing is raised."""
    response = made()
    response.freeze_header("ETag", "Content-Encoding")
    CHANGES[name](response)
    assert response["ETag"] == '"a"' and response.headers["etag"] == '"a"'
    assert response.get("Content-Encoding") is None
    assert b"Content-Encoding" not in response.serialize_headers()
    assert response.content == b"content"


@pytest.mark.parametrize("name", CHANGES)
def test_a_frozen_header_raises_if_that_is_asked_for(name: str) -> None:
    """Even if it would change nothing, and everything is as it was."""
    response = made(frozen="raise")
    response.freeze_header("ETag", "Content-Encoding")
    before = response.items()
    with pytest.raises(sendgate.FrozenError):
        CHANGES[name](response)
    assert list(response.items()) == list(before)


def test_all_other_headers_can_be_changed() -> None:
    """And so can cookies."""
    response = made(frozen="raise")
    response.freeze_header("ETag")
    response["X-Open"] = "2"
    response.headers["X-New"] = "3"
    response.headers._store.popitem()
    response.set_cookie("a", "b")
    assert dict(response.items()) == {"Content-Type": "text/html; charset=utf-8", "ETag": '"a"', "X-Open": "2"}
    assert response.cookies["a"].value == "b"


def test_replacing_all_headers_replaces_those_that_are_not_frozen() -> None:
    """In both modes."""
    for mode in ("ignore", "raise"):
        response = made(frozen=mode)
        response.freeze_header("ETag", "Content-Encoding")
        response.headers = {"etag": '"a"', "X-Other": "1"} if mode == "ignore" else {"ETag": '"a"', "X-Other": "1"}
        assert dict(response.items()) == {"ETag": '"a"', "X-Other": "1"}
        assert response.header_is_frozen("etag")


def test_who_asks_is_told_that_a_frozen_absence_is_there() -> None:
    """has_header says so, in the name of who would add it; in tells what is there, and reading doesn't fail."""
    response = made()
    response.freeze_header("Content-Encoding", "Vary", "Cache-Control", "Expires", "Last-Modified")
    assert response.has_header("content-encoding") and response.has_header("ETag")
    assert not response.has_header("X-Other")
    assert "Content-Encoding" not in response and "Content-Encoding" not in response.headers
    assert response["Content-Encoding"] == "" and response.get("Content-Encoding", "none") == "none"
    with pytest.raises(KeyError):
        response["X-Other"]
    # What Django does with a header that it was told is there.
    patch_vary_headers(response, ["Cookie"])
    patch_response_headers(response, 60)
    not_modified = get_conditional_response(request("/", HTTP_IF_NONE_MATCH='"a"'), etag='"a"', response=response)
    assert dict(not_modified.items()) == {"ETag": '"a"'}


def test_is_frozen_is_asked_in_any_case() -> None:
    """Of names that were frozen, and of no others."""
    response = made()
    assert not response.header_is_frozen("ETag") and not response.content_is_frozen()
    response.freeze_header("eTAG")
    assert response.header_is_frozen("ETag") and not response.header_is_frozen("X-Open")


def test_a_mode_that_does_not_exist() -> None:
    """Refused at once."""
    with pytest.raises(ValueError, match="'raise' or 'ignore'"):
        made(frozen="perhaps")


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_copy_is_frozen_too(how: Callable[[Any], Any]) -> None:
    """As a cache keeps it, and nothing that is done to it changes the original."""
    response = made()
    response.freeze_header("ETag", "Content-Encoding")
    response.freeze_content()
    twin = how(response)
    twin["ETag"] = "x"
    twin["Content-Encoding"] = "br"
    twin["X-Open"] = "2"
    twin.content = b"other"
    assert dict(twin.items()) == {**dict(response.items()), "X-Open": "2"}
    assert response["X-Open"] == "1"
    assert twin.content == b"content" and twin.content_is_frozen()


def test_a_copy_of_headers() -> None:
    """Nor can a frozen header be got at by way of one."""
    response = made()
    response.freeze_header("ETag")
    for headers in (copy.copy(response.headers), response.headers.copy(), copy.deepcopy(response.headers)):
        headers["ETag"] = "x"
    assert response["ETag"] == '"a"'


def test_the_mixin_is_for_any_response() -> None:
    """A template's content is frozen before it was made, too."""

    class Page(FreezeMixin, SimpleTemplateResponse):
        """A response of Django's that this module knows nothing of."""

    options = {"autoescape": True, "libraries": {}}
    engine = DjangoTemplates({"NAME": "one", "DIRS": [], "APP_DIRS": False, "OPTIONS": options})
    page = Page(engine.from_string("Hello {{ name }}"), {"name": "World"})
    page.freeze_content()
    assert page.content_is_frozen()
    page.render()
    page.content = b"other"
    page.write(b"other")
    assert (page.content, page["Content-Length"]) == (b"Hello World", "11")


def test_the_mixin_with_json() -> None:
    """One that is made at once, and one that streams and is Django's."""

    class Json(FreezeMixin, http.JsonResponse):
        """Of Django."""

    class Stream(FreezeMixin, http.StreamingHttpResponse):
        """Of Django."""

    response, stream = Json({"a": 1}, frozen="ignore"), Stream([b"a"])
    for each in (response, stream):
        each.freeze_content()
    response.content = b"other"
    stream.streaming_content = [b"other"]
    assert (response.content, response["Content-Length"], b"".join(stream)) == (b'{"a": 1}', "8", b"a")


# ---- Content ----


def test_frozen_content_stays() -> None:
    """With the headers that go with it, and a Content-Length."""
    response = HttpResponse(b"content", headers={"ETag": '"a"', "Last-Modified": DATE})
    response.freeze_content()
    response.content = b"other"
    response.write(b"more")
    response.writelines([b"more"])
    for name in ("Content-Length", "Content-Encoding", "Content-Range", "Accept-Ranges", "ETag", "Last-Modified"):
        assert response.header_is_frozen(name)
        response[name] = "1"
    response["X-Open"] = "1"
    assert response.content == b"content"
    assert dict(response.items()) == {
        "Content-Type": "text/html; charset=utf-8", "Content-Length": "7", "ETag": '"a"', "Last-Modified": DATE,
        "X-Open": "1",
    }  # fmt: skip


def test_frozen_content_that_streams() -> None:
    """Is what the view gave, and no Content-Length is made up for it."""
    response = StreamingHttpResponse(iter([b"a", b"b"]))
    response.freeze_content()
    response.streaming_content = iter([b"other"])
    response.content_iterator = iter([b"other"])
    response["Content-Length"] = "5"
    assert list(response) == [b"a", b"b"] and "Content-Length" not in response


def test_freezing_reads_no_iterator() -> None:
    """Whether it streams may be said later."""
    iterator = Watched(b"a", b"b")
    response = HttpResponse(iterator)
    response.freeze_content()
    response.content = b"other"
    assert iterator.made == 0 and "Content-Length" not in response
    response.streaming = True
    assert list(response) == [b"a", b"b"]


@pytest.mark.parametrize("status", [204, 304])
def test_freezing_no_content_adds_no_length(status: int) -> None:
    """RFC 9110 8.6."""
    response = HttpResponse(status=status)
    response.freeze_content()
    assert "Content-Length" not in response


def test_frozen_content_raises_if_that_is_asked_for() -> None:
    """Of both kinds."""
    response = HttpResponse(b"content", frozen="raise")
    response.freeze_content()
    with pytest.raises(sendgate.FrozenError):
        response.content = b"other"
    with pytest.raises(sendgate.FrozenError):
        response.write(b"other")
    stream = StreamingHttpResponse([b"content"], frozen="raise")
    stream.freeze_content()
    with pytest.raises(sendgate.FrozenError):
        stream.streaming_content = [b"other"]
    assert response.content == b"".join(stream) == b"content"


def compress_first(response: Any) -> None:
    """Middleware that asks nobody: content, Content-Length, ETag, Content-Encoding, as Django's."""
    if response.streaming:
        # Lazily, as middleware has to: what was read can't come back.
        response.streaming_content = map(gzip.compress, response.streaming_content)
        del response["Content-Length"]
    else:
        response.content = gzip.compress(response.content)
        response["Content-Length"] = str(len(response.content))
    response["ETag"] = "W/" + response["ETag"]
    response["Content-Encoding"] = "gzip"


def name_first(response: Any) -> None:
    """The same the other way round, by a length of its own."""
    response["Content-Encoding"] = "gzip"
    if response.streaming:
        response.streaming_content = iter([b"zipped"])
        del response["Content-Length"]
    else:
        response.content = b"zipped"
        response["Content-Length"] = "6"
    response["ETag"] = "W/" + response["ETag"]


def compress_lazily(response: Any) -> None:
    """The same with an iterator, which is content too."""
    if response.streaming:
        compress_first(response)
    else:
        response.content = map(gzip.compress, [response.content])
        response["Content-Length"] = "27"
        response["ETag"] = "W/" + response["ETag"]
        response["Content-Encoding"] = "gzip"


@pytest.mark.parametrize("compress", [compress_first, name_first, compress_lazily])
@pytest.mark.parametrize("streaming", [False, True])
def test_content_that_was_coded_without_asking_comes_back(compress: Callable[[Any], None], streaming: bool) -> None:
    """Coded content whose Content-Encoding is refused would be wrong: all is as it was, and stays so."""
    headers = {"ETag": '"a"', "Content-Length": "7"}
    if streaming:
        response: Any = StreamingHttpResponse([b"con", b"tent"], headers=headers)
    else:
        response = HttpResponse(b"content", headers=headers)
    response.freeze_header("Content-Encoding")
    compress(response)
    assert b"".join(response) == b"content"
    assert (response["ETag"], response["Content-Length"]) == ('"a"', "7")
    assert "Content-Encoding" not in response and response.content_is_frozen()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_content_of_another_length_than_the_frozen_one_does_not_stay(ours: bool, streaming: bool) -> None:
    """GZipMiddleware removes the length, or changes it, which is refused: so the content comes back."""
    content = b"content " * 100
    response = HttpResponse(iter([content]) if streaming else content, length=800)
    response.streaming = streaming
    response.freeze_header("Content-Length")
    request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
    made = (GZipMiddleware if ours else DjangoGZipMiddleware)(lambda request: None).process_response(request, response)
    assert (b"".join(made), made["Content-Length"]) == (content, "800")
    assert "Content-Encoding" not in made


def test_nothing_is_compressed_that_caches_would_give_to_everybody() -> None:
    """Where Vary is frozen without Accept-Encoding."""
    request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
    for vary, coding in ((None, None), ("Cookie", None), ("*", "gzip"), ("Cookie, accept-encoding", "gzip")):
        response = StreamingHttpResponse([b"content"], headers={} if vary is None else {"Vary": vary})
        response.freeze_header("Vary")
        made = GZipMiddleware(lambda request: None).process_response(request, response)
        assert made.get("Content-Encoding") == coding


def test_what_middleware_has_made_before_is_not_lost() -> None:
    """Only the last replacement is undone: that of who has coded it."""
    response = HttpResponse(b"content", headers={"ETag": '"a"'})
    response.freeze_header("Content-Encoding")
    response.content = b"changed content"
    response["ETag"] = '"b"'
    compress_first(response)
    assert (response.content, response["ETag"]) == (b"changed content", '"b"')
    assert response["Content-Length"] == "15"


def test_identity_is_no_coding() -> None:
    """Refused, but nothing was coded."""
    response = HttpResponse(b"content")
    response.freeze_header("Content-Encoding")
    response.content = b"changed"
    response["Content-Encoding"] = "identity"
    assert response.content == b"changed" and not response.content_is_frozen()


# ---- Streaming ----


class Watched:
    """An iterable of pieces that knows what was made of it."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces = iter(pieces)
        self.closed = 0
        self.made = 0
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.threads.add(threading.get_ident())
        piece = next(self._pieces)
        self.made += 1
        return piece

    def close(self) -> None:
        """Count it."""
        self.closed += 1


class WatchedAsync:
    """The same, asynchronous."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces = iter(pieces)
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Count it."""
        self.closed += 1


def test_an_iterator_is_content_when_somebody_asks_for_it() -> None:
    """It is read once, then, and closed."""
    iterator = Watched("a", b"b", 3)
    response = HttpResponse(iterator)
    assert not response.streaming and iterator.made == 0
    assert response.content == response.content == response.getvalue() == b"ab3"
    assert (iterator.made, iterator.closed, response.tell()) == (3, 1, 3)
    response.write("c")
    assert list(response) == [b"ab3", b"c"]
    response.close()
    assert iterator.closed == 1


def test_writing_reads_what_is_there() -> None:
    """And adds to it."""
    response = HttpResponse(iter([b"a"]))
    response.write(b"b")
    assert response.content == b"ab"
    response.content = [b"c", "d"]
    assert response.content == b"cd" and response.text == "cd"
    response.content = "e"
    assert response.content == b"e"


def test_an_asynchronous_iterator_is_content_too() -> None:
    """For a middleware that asks for content."""
    iterator = WatchedAsync("a", b"b")
    response = HttpResponse(iterator)
    assert response.content == b"ab" and iterator.closed == 1


def test_what_nobody_has_read_is_streamed_by_the_handler() -> None:
    """It sets its class when all middleware has run."""
    response = HttpResponse(Watched(b"a", b"b"))
    response._handler_class = object
    assert response.streaming
    assert list(response) == [b"a", b"b"]
    assert not HttpResponse(b"a").streaming


def test_who_is_no_handler_may_iterate_again() -> None:
    """Over what doesn't stream, as over a response of Django's; and streaming may be turned off again."""
    response = HttpResponse(Watched(b"a", b"b"))
    assert list(response) == list(response) == [b"ab"] and response.content == b"ab"
    response.streaming = True
    response.streaming = False
    assert response.content == b"ab"
    assert list(StreamingHttpResponse([bytearray(b"a"), memoryview(b"b")])) == [b"a", b"b"]


def test_a_response_that_streams_has_no_content() -> None:
    """It has content_iterator instead."""
    iterator = Watched(b"a", "b")
    response = HttpResponse(iterator)
    response.streaming = True
    for forbidden in (lambda: response.content, lambda: setattr(response, "content", b""), lambda: response.write(b"")):
        with pytest.raises(AttributeError):
            forbidden()
    assert iterator.made == 0
    response.content_iterator = (piece.upper() for piece in response.content_iterator)
    assert list(response) == [b"A", b"B"] and list(response) == []


def test_content_that_is_there_can_be_streamed() -> None:
    """By who says so; and a response that doesn't stream has no iterator."""
    response = HttpResponse(b"content")
    with pytest.raises(AttributeError):
        response.content_iterator  # noqa: B018
    with pytest.raises(AttributeError):
        response.streaming_content = [b"x"]
    response.streaming = True
    assert b"".join(response.content_iterator) == b"content"


def test_content_that_could_not_be_read_is_not_empty() -> None:
    """Who asks again is told again."""

    def fails() -> Iterator[bytes]:
        yield b"some"
        raise ZeroDivisionError

    response = HttpResponse(fails())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            _ = response.content
    with pytest.raises(ZeroDivisionError):
        pickle.dumps(response)
    response.content = b"other"
    assert response.content == b"other"


def test_content_that_is_there_is_still_there_when_it_does_not_stream_after_all() -> None:
    """Also when somebody has looked at its first piece."""
    response = HttpResponse(iter([b"a", b"b"]))
    assert response.content == b"ab"
    response.streaming = True
    assert next(iter(response.content_iterator)) == b"ab"
    response.streaming = False
    assert response.content == b"ab"


def test_what_a_cache_keeps_has_no_iterator_of_before() -> None:
    """Of content that was replaced before anybody had read it."""

    def produce() -> Iterator[bytes]:
        yield b"a"

    response = HttpResponse(produce())
    response.freeze_header("Content-Encoding")
    response.content = b"other"
    assert pickle.loads(pickle.dumps(response)).content == b"other"


def test_a_304_may_say_how_long_a_200_would_be() -> None:
    """RFC 9110 8.6."""
    assert list(StreamingHttpResponse((), status=304, length=100)) == []


@pytest.mark.parametrize("make", [StreamingHttpResponse, HttpResponse])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_made_of_too_little_does_not_look_complete(make: Any, asynchronous: bool) -> None:
    """A middleware that wraps the content, and removes the Content-Length that it had."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"too little"

    response = make(pieces() if asynchronous else iter([b"too little"]), length=11)
    response.streaming = True
    inner = response.streaming_content
    ends = []

    async def around_async() -> AsyncIterator[bytes]:
        async for piece in inner:
            yield piece.upper()
        ends.append("as if that were all")

    def around() -> Iterator[bytes]:
        for piece in inner:
            yield piece.upper()
        ends.append("as if that were all")

    response.streaming_content = around_async() if asynchronous else around()
    del response["Content-Length"]
    with pytest.raises(sendgate.TruncatedError):
        list(response)
    assert ends == []


def test_each_piece_is_handed_on_before_the_next_is_made() -> None:
    """Under WSGI."""
    for make in (StreamingHttpResponse, HttpResponse):
        iterator = Watched(b"a", b"b")
        response = make(iterator)
        response.streaming = True
        pieces = iter(response)
        assert (next(pieces), iterator.made) == (b"a", 1)
        assert (next(pieces), iterator.made) == (b"b", 2)
        assert next(pieces, None) is None and iterator.closed == 1
        response.close()
        assert iterator.closed == 1


def test_each_piece_of_what_is_synchronous_comes_from_a_thread() -> None:
    """Under ASGI, one by one."""
    iterator = Watched("ä", b"b")
    response = StreamingHttpResponse(iterator, content_type="text/plain; charset=latin-1")

    async def read() -> list[tuple[bytes, int]]:
        return [(piece, iterator.made) async for piece in response]

    assert asyncio.run(read()) == [(b"\xe4", 1), (b"b", 2)]
    assert iterator.threads and threading.get_ident() not in iterator.threads and iterator.closed == 1


def test_each_piece_of_what_is_asynchronous() -> None:
    """Under both."""

    async def read(response: Any) -> list[bytes]:
        return [piece async for piece in response]

    for make in (StreamingHttpResponse, HttpResponse):
        for iterate in (list, lambda response: asyncio.run(read(response))):
            iterator = WatchedAsync("a", b"b")
            response = make(iterator)
            response.streaming = True
            assert response.is_async
            assert iterate(response) == [b"a", b"b"] and iterator.closed == 1


@pytest.mark.parametrize("make", [StreamingHttpResponse, HttpResponse])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("pieces", "error"), [((b"abc",), sendgate.TruncatedError), ((b"ab", b"cde"), sendgate.ExcessError)]
)
def test_a_length_is_kept_or_the_connection_broken(
    make: Any, asynchronous: bool, pieces: tuple[bytes, ...], error: type[Exception]
) -> None:
    """No byte too much is handed out."""

    async def generate() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def read(response: Any, into: list[bytes]) -> None:
        async for piece in response:
            into.append(piece)

    response = make(generate() if asynchronous else iter(pieces), length=4)
    response.streaming = True
    assert response["Content-Length"] == "4"
    got: list[bytes] = []
    with pytest.raises(error):
        if asynchronous:
            asyncio.run(read(response, got))
        else:
            got.extend(response)
    assert got in ([], [b"abc"], [b"ab"])


def test_a_length_is_kept_by_what_is_read_first_too() -> None:
    """Who asks for content that isn't what was announced gets the error, and so a 500 is answered."""
    response = HttpResponse(iter([b"abc"]), length=4)
    with pytest.raises(sendgate.TruncatedError):
        response.content  # noqa: B018
    assert HttpResponse(iter([b"abc"]), length=3).content == b"abc"


def test_a_length_that_is_a_header() -> None:
    """Counts as well, unless the content is somebody else's by now."""
    response = StreamingHttpResponse([b"abc"])
    response["Content-Length"] = "4"
    with pytest.raises(sendgate.TruncatedError):
        list(response)
    response = StreamingHttpResponse([b"abc"], length=4)
    response.streaming_content = [b"ab"]
    assert list(response) == [b"ab"]
    with pytest.raises(ValueError):
        StreamingHttpResponse([], length=-1)


def test_dropping_a_response_closes_its_iterator() -> None:
    """ConditionalGetMiddleware does so, and never closes it."""
    gc.disable()
    try:
        for make in (StreamingHttpResponse, HttpResponse):
            for replace in (False, True):
                iterator: Any = Watched(b"a")
                response = make(iterator, headers={"ETag": '"a"'})
                response.streaming = True
                if replace:
                    response.streaming_content = (piece for piece in response.streaming_content)
                other = get_conditional_response(request("/", HTTP_IF_NONE_MATCH='"a"'), '"a"', None, response)
                assert other.status_code == 304 and iterator.closed == 0
                del response
                assert iterator.closed == 1
        iterator = WatchedAsync(b"a")
        make(iterator)
        assert iterator.closed == 1
    finally:
        gc.enable()


def test_content_outlives_the_response_it_was_taken_from() -> None:
    """A middleware may put it into another one."""
    iterator = Watched(b"a", b"b")
    other = StreamingHttpResponse(StreamingHttpResponse(iterator).streaming_content)
    gc.collect()
    assert list(other) == [b"a", b"b"]
    assert list(StreamingHttpResponse(Watched(b"c"))) == [b"c"]


def test_no_warning_is_given_for_the_other_kind_of_iterator() -> None:
    """Django warns, because it reads all of it first."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(StreamingHttpResponse(WatchedAsync(b"a")))
    assert not caught


def test_what_is_no_iterable_is_refused() -> None:
    """As by Django."""
    with pytest.raises(TypeError):
        StreamingHttpResponse(5)


# ---- Files ----


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 100 bytes that is old enough for a strong tag."""
    made = tmp_path / "file.txt"
    made.write_bytes(bytes(range(100)))
    os.utime(made, (OLD, OLD))
    return made


def request(target: str = "/", method: str = "GET", **fields: Any) -> WSGIRequest:
    """What a view gets."""
    return RequestFactory().generic(method, target, **fields)


def opened(path: Path, kind: str) -> Any:
    """What a view may give to a FileResponse."""
    if kind == "path":
        return path
    if kind == "str":
        return str(path)
    if kind == "open file":
        return path.open("rb")
    if kind == "unbuffered":
        return path.open("rb", buffering=0)
    if kind == "BytesIO":
        return io.BytesIO(path.read_bytes())
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        return sendgate.open_beneath(directory, path.name)
    finally:
        os.close(directory)


KINDS = ["path", "str", "open file", "unbuffered", "BytesIO", "sendgate.File"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_full(kind: str, path: Path) -> None:
    """With a request and without, its fields frozen with one."""
    for asked in (None, request()):
        response = FileResponse(opened(path, kind), request=asked, filename="a.txt", as_attachment=True)
        assert (response.status_code, b"".join(response)) == (200, bytes(range(100)))
        assert response["Content-Length"] == "100" and response["Content-Type"] == "text/plain"
        assert response["Content-Disposition"] == 'attachment; filename="a.txt"'
        assert response.content_is_frozen() is response.decided is (asked is not None)
        assert ("ETag" in response) is (asked is not None and kind != "BytesIO")
        response.close()
        assert response.closed


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "status", "content"),
    [
        ({"HTTP_RANGE": "bytes=10-19"}, 206, bytes(range(10, 20))),
        ({"HTTP_RANGE": "bytes=-1"}, 206, b"\x63"),
        ({"HTTP_RANGE": "bytes=100-"}, 416, b""),
        ({"HTTP_RANGE": "lines=1-2"}, 200, bytes(range(100))),
        ({"HTTP_RANGE": "bytes=0-0", "HTTP_IF_RANGE": '"b"'}, 200, bytes(range(100))),
        ({"HTTP_RANGE": "bytes=0-0", "HTTP_IF_RANGE": '"a"'}, 206, b"\0"),
        ({"HTTP_IF_NONE_MATCH": 'W/"a"'}, 304, b""),
        ({"HTTP_IF_MATCH": '"b"'}, 412, b""),
        ({"HTTP_IF_MODIFIED_SINCE": DATE}, 304, b""),
    ],
)
def test_a_request_is_answered_at_once(
    kind: str, path: Path, fields: dict[str, str], status: int, content: bytes, read: bool
) -> None:
    """By the validators of the view's own; and no descriptor stays open, read or not."""
    headers = {"ETag": '"a"', "Last-Modified": DATE}
    response = FileResponse(opened(path, kind), request=request(**fields), headers=headers)
    assert response.status_code == status
    if status == 206:
        assert response["Content-Length"] == str(len(content))
        assert response["Content-Range"].endswith("/100")
    response["Content-Range"] = response["Content-Encoding"] = response["ETag"] = "x"
    assert "Content-Encoding" not in response and response.get("ETag") in (None, '"a"')
    if read:
        assert b"".join(response) == content
        response.close()


@pytest.mark.parametrize("kind", KINDS)
def test_several_ranges(kind: str, path: Path) -> None:
    """Parts, and the boundary can't be lost."""
    response = FileResponse(opened(path, kind), request=request(HTTP_RANGE="bytes=0-1,-2"))
    response["Content-Type"] = "text/plain"
    body = b"".join(response)
    boundary = response["Content-Type"].removeprefix("multipart/byteranges; boundary=")
    assert body.count(boundary.encode()) == 3 and b"\r\n\r\n\x00\x01\r\n" in body
    assert len(body) == int(response["Content-Length"])
    response.close()


def test_a_head_has_the_length_and_no_content(path: Path) -> None:
    """RFC 9110 9.3.2."""
    response = FileResponse(path, request=request(method="HEAD"))
    assert (response["Content-Length"], b"".join(response)) == ("100", b"")
    response.close()


def test_other_methods_get_all_of_it(path: Path) -> None:
    """What they have done can't be undone."""
    response = FileResponse(path, request=request(method="POST", HTTP_RANGE="bytes=0-0"), status=201)
    assert (response.status_code, b"".join(response)) == (201, bytes(range(100)))
    response.close()


def test_a_file_begins_at_its_position(path: Path) -> None:
    """Ranges count from there."""
    for asked, content in ((None, bytes(range(50, 100))), (request(HTTP_RANGE="bytes=0-1"), b"\x32\x33")):
        file = path.open("rb")
        file.seek(50)
        response = FileResponse(file, request=asked)
        assert b"".join(response) == content
        response.close()
        assert file.closed


def test_a_view_can_turn_ranges_off(path: Path) -> None:
    """By Accept-Ranges."""
    response = FileResponse(path, request=request(HTTP_RANGE="bytes=0-0"), headers={"Accept-Ranges": "none"})
    assert response.status_code == 200 and response["Accept-Ranges"] == "none"
    response.close()


def test_no_more_of_a_file_than_content_length(path: Path) -> None:
    """As by the adapters; and one that has become shorter is noticed."""
    response = FileResponse(path)
    response["Content-Length"] = "10"
    assert b"".join(response) == bytes(range(10))
    response.close()
    response = FileResponse(path)
    os.truncate(path, 99)
    with pytest.raises(sendgate.TruncatedError):
        list(response)
    response.close()


def test_what_the_library_cannot_send_is_sent_in_full(path: Path) -> None:
    """With a request, too."""
    zipped = path.with_suffix(".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    for content in (gzip.GzipFile(zipped), [path.read_bytes()]):
        response = FileResponse(content, request=request(HTTP_RANGE="bytes=0-0"))
        assert (response.status_code, b"".join(response)) == (200, bytes(range(100)))
        assert not response.decided and not response.content_is_frozen()
        response.close()


def test_a_tag_that_is_none_is_refused_with_its_file_closed(path: Path) -> None:
    """The view's own mistake."""
    file = path.open("rb")
    with pytest.raises(sendgate.FieldError):
        FileResponse(file, request=request(), headers={"ETag": "a"})
    assert file.closed


def test_a_file_that_is_not_there() -> None:
    """As by open()."""
    with pytest.raises(FileNotFoundError):
        FileResponse("/nowhere/at/all", request=request())


def test_a_dropped_file_is_closed(path: Path) -> None:
    """With no ResourceWarning, which would be an error here, decided or not."""
    for asked in (None, request(), request(HTTP_RANGE="bytes=0-1"), request(HTTP_RANGE="bytes=0-1,3-4")):
        for kind in KINDS:
            FileResponse(opened(path, kind), request=asked)


def test_whose_wrapper_is_believed(path: Path) -> None:
    """Where the server's own file wrapper sends exactly what it is to, it gets the file; elsewhere it is read."""
    from wsgiref.util import FileWrapper as Another

    from gunicorn.http.wsgi import FileWrapper

    from sendgate.wsgi import FileWrapper as Ours

    for wrapper, believed in ((FileWrapper, True), (Ours, True), (Another, False)):
        fields: dict[str, Any] = {"HTTP_RANGE": "bytes=10-19", "wsgi.file_wrapper": wrapper}
        response = FileResponse(path, request=request(**fields))
        assert (response.file_to_stream is not None) is believed
        if believed:
            assert response.file_to_stream.tell() == 10
        assert b"".join(response) == bytes(range(10, 20))
        response.close()


def test_the_names_of_the_module() -> None:
    """Responses are Django's, so that who asks for the class is told so."""
    assert issubclass(HttpResponse, http.HttpResponse)
    assert issubclass(StreamingHttpResponse, http.StreamingHttpResponse)
    assert issubclass(FileResponse, http.FileResponse)
