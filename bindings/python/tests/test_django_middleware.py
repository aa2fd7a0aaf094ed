"""What middleware does to the views of examples/django, in every order, through Django's own handlers: within one
process, with a store in a thread.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import itertools
import os
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("django", reason="django is not installed: bindings/python/requirements-dev.txt")

from django.core.cache import cache
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import got_request_exception
from django.http import StreamingHttpResponse as DjangoStreamingHttpResponse
from django.test import RequestFactory, override_settings

import django_project
import sendgate.wsgi
from django_project import (
    COMMON,
    CONDITIONAL,
    ETAG,
    FETCH,
    GZIP,
    LAST_MODIFIED,
    OUR_CONDITIONAL,
    OUR_GZIP,
    OUR_UPDATE,
    UPDATE,
    Store,
)
from sendgate.django import (
    ConditionalGetMiddleware,
    GZipMiddleware,
    HttpResponse,
    StreamingHttpResponse,
    UpdateCacheMiddleware,
    cache_page,
    get_asgi_application,
)
from support import wait_until

PIECES = [b"a piece of the report, and more of it than is worth nothing\n" * 8, b"second\n", b"the third\n" * 40]
CONTENT = b"".join(PIECES)
OLD = 784111777


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """What the views have their content from."""
    file = tmp_path_factory.mktemp("django") / "file.txt"
    file.write_bytes(CONTENT)
    os.utime(file, (OLD, OLD))
    with Store(PIECES) as store:
        django_project.set_up(store.url, str(file))
        yield store


@pytest.fixture(autouse=True)
def raised(store: Store) -> Iterator[list[Any]]:
    """No request may raise anything anywhere, nor leave the store waiting. And each test has a cache of its own."""
    found: list[Any] = []

    def note(**arguments: Any) -> None:
        found.append(arguments)

    got_request_exception.connect(note)
    cache.clear()
    yield found
    got_request_exception.disconnect(note)
    cache.clear()
    # Its threads end when they notice.
    wait_until(lambda: store.connected == 0)
    assert found == []


# ---- Django's handlers ----


@dataclass
class Answer:
    """What a server would send."""

    status: int
    fields: dict[str, str]
    content: bytes

    @property
    def decoded(self) -> bytes:
        """The content without gzip."""
        return gzip.decompress(self.content) if self.fields.get("content-encoding") == "gzip" else self.content


def by_wsgi(application: Any, target: str, **fields: str) -> Answer:
    """One request."""
    environ = RequestFactory().get(target, headers={name.replace("_", "-"): value for name, value in fields.items()})
    head: list[Any] = []
    result = application(environ.environ, lambda *given: head.extend(given))
    try:
        content = b"".join(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    return Answer(int(head[0][:3]), {name.lower(): value for name, value in head[1]}, content)


async def by_asgi(application: Any, target: str, **fields: str) -> Answer:
    """The same."""
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    scope = {
        "type": "http", "method": "GET", "path": target, "headers": [(b"host", b"testserver"), *headers],
        "http_version": "1.1", "query_string": b"",
    }  # fmt: skip
    answer = Answer(0, {}, b"")
    messages = [{"type": "http.request"}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.fields = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            answer.content += message.get("body", b"")

    await application(scope, receive, send)
    return answer


# ---- Every order ----

#: By view: what arrives unchanged; None: it doesn't arrive at all.
FROZEN: dict[str, dict[str, str | None]] = {
    "text": {},
    "streamed": {},
    "large": {
        "etag": ETAG, "last-modified": LAST_MODIFIED, "cache-control": "no-cache", "content-encoding": None,
        "content-length": str(len(CONTENT)),
    },
    "large-cached-by-clients": {
        "etag": ETAG, "last-modified": LAST_MODIFIED, "cache-control": "max-age=3600", "content-encoding": None,
        "content-length": str(len(CONTENT)),
    },
    "large-compressed": {"etag": ETAG, "last-modified": LAST_MODIFIED, "cache-control": "no-cache"},
    "long": {"etag": None, "last-modified": None, "content-encoding": None},
    "long-not-compressed": {"content-encoding": None},
    "file": {
        "etag": f'"{OLD * 10**9:x}-{len(CONTENT):x}"', "last-modified": LAST_MODIFIED, "content-encoding": None,
        "content-length": str(len(CONTENT)), "accept-ranges": "bytes", "content-range": None,
    },
}  # fmt: skip


def orders(update: str) -> list[list[str]]:
    """All 120."""
    return [list(order) for order in itertools.permutations((update, GZIP, CONDITIONAL, COMMON, FETCH))]


def check(view: str, encoding: str, answer: Answer, order: list[str]) -> None:
    """One answer."""
    what = (view, encoding, order, answer.status, answer.fields)
    assert answer.status == 200, what
    assert answer.decoded == CONTENT, what
    for name, value in FROZEN[view].items():
        assert answer.fields.get(name) == value, (name, *what)
    if view not in ("text", "streamed"):
        # Compressed is what may be, if the client likes that, and there is a middleware.
        may_be = encoding == "gzip" and "content-encoding" not in FROZEN[view]
        assert (answer.fields.get("content-encoding") == "gzip") == may_be, what
    length = answer.fields.get("content-length")
    assert length in (None, str(len(answer.content))), what


@pytest.mark.parametrize("update", [UPDATE, OUR_UPDATE], ids=["stock", "ours"])
def test_every_order_under_wsgi(update: str, store: Store) -> None:
    """What is frozen survives all 120, the first time and from the cache, and all bytes are right."""
    for order in orders(update):
        cache.clear()
        with override_settings(MIDDLEWARE=order):
            application = WSGIHandler()
            for view, encoding, _ in itertools.product(FROZEN, ("", "gzip"), range(2 if update is OUR_UPDATE else 1)):
                check(view, encoding, by_wsgi(application, f"/{view}/", accept_encoding=encoding), order)


@pytest.mark.parametrize("handler", [ASGIHandler, get_asgi_application], ids=["stock", "ours"])
def test_every_order_under_asgi(handler: Callable[[], Any], store: Store) -> None:
    """The same."""

    async def try_all() -> None:
        for order in orders(OUR_UPDATE):
            cache.clear()
            with override_settings(MIDDLEWARE=order):
                application = handler()
                for view, encoding in itertools.product(FROZEN, ("", "gzip")):
                    check(view, encoding, await by_asgi(application, f"/{view}/", accept_encoding=encoding), order)

    asyncio.run(try_all())


def test_the_same_views_of_django_alone_are_spoiled(store: Store) -> None:
    """Or else all that would have shown nothing."""
    with override_settings(MIDDLEWARE=[UPDATE, GZIP, CONDITIONAL, COMMON, FETCH]):
        application = WSGIHandler()
        for view in ("large", "long", "long-not-compressed", "file"):
            answer = by_wsgi(application, f"/stock/{view}/", accept_encoding="gzip")
            assert answer.fields["content-encoding"] == "gzip" and "content-length" not in answer.fields
            assert answer.fields.get("etag") == ("W/" + ETAG if view == "large" else None)


@pytest.mark.parametrize("conditional", [CONDITIONAL, OUR_CONDITIONAL], ids=["stock", "ours"])
def test_a_condition_that_holds_closes_what_is_not_sent(conditional: str, store: Store) -> None:
    """ConditionalGetMiddleware answers 304 by itself: the store is hung up on at once."""
    if conditional is CONDITIONAL and sys.version_info < (3, 11):
        pytest.skip("before 3.11, frames of exceptions that Django has caught keep the response")
    for order in orders(OUR_UPDATE)[::7]:
        order[order.index(CONDITIONAL)] = conditional
        with override_settings(MIDDLEWARE=order):
            application = WSGIHandler()
            for view in ("large", "large-cached-by-clients", "large-compressed"):
                answer = by_wsgi(application, f"/{view}/", if_none_match=ETAG, accept_encoding="gzip")
                assert (answer.status, answer.content) == (304, b"")
                assert answer.fields["etag"] == ETAG
                # Its threads end when they notice.
                wait_until(lambda: store.connected == 0)


@pytest.mark.parametrize("make", [StreamingHttpResponse, DjangoStreamingHttpResponse])
def test_content_that_is_not_sent_is_closed_while_somebody_refers_to_it(make: Any, store: Store) -> None:
    """By this package's ConditionalGetMiddleware, of any response; and what is sent isn't."""
    middleware = ConditionalGetMiddleware(lambda request: None)
    for field, due in (({"If-None-Match": ETAG}, 304), ({"If-Match": '"other"'}, 412), ({}, 200)):
        closed = []

        class Content(list[bytes]):
            def close(self, closed: list[int] = closed) -> None:
                closed.append(1)

        response = make(Content([b"a"]), headers={"ETag": ETAG})
        answer = middleware.process_response(RequestFactory().get("/", headers=field), response)
        assert (answer.status_code, len(closed)) == (due, due != 200)
        assert not response.closed


def test_within_conditional(store: Store) -> None:
    """What is decided stays so, and what isn't gets conditions and ranges there."""
    with override_settings(MIDDLEWARE=[OUR_UPDATE, OUR_GZIP, CONDITIONAL, COMMON, FETCH]):
        application = sendgate.wsgi.Conditional(WSGIHandler())
        for view in ("file", "stock/file"):
            fields = {"accept_encoding": "gzip"} if view == "file" else {}
            answer = by_wsgi(application, f"/{view}/", range="bytes=10-19", **fields)
            assert (answer.status, answer.content) == (206, CONTENT[10:20])
            etag = answer.fields["etag"]
            assert by_wsgi(application, f"/{view}/", if_none_match=etag, **fields).status == 304
            answer = by_wsgi(application, f"/{view}/", range="bytes=10-19", if_range='"other"', **fields)
            assert (answer.status, answer.content) == (200, CONTENT)
            answer = by_wsgi(application, f"/{view}/", range="bytes=0-1,-1", **fields)
            assert answer.status == 206 and answer.fields["content-type"].startswith("multipart/byteranges")


# ---- The cache ----


def cached(application: Any, view: str, store: Store, **fields: str) -> bool:
    """Whether the second of two requests is answered from the cache, and right."""
    by_wsgi(application, f"/{view}/", **fields)
    before = len(store.asked)
    again = by_wsgi(application, f"/{view}/", **fields)
    assert again.decoded == CONTENT
    return len(store.asked) == before


@pytest.fixture
def application(store: Store) -> Iterator[Any]:
    """The project with the middleware of this package."""
    with override_settings(MIDDLEWARE=[OUR_UPDATE, OUR_GZIP, CONDITIONAL, COMMON, FETCH]):
        yield WSGIHandler()


def test_what_was_streamed_comes_from_the_cache(application: Any, store: Store) -> None:
    """Unless the view forbids that, to all or to this server, or it is a file."""
    found = {view for view in FROZEN if cached(application, view, store)}
    # Nobody asks the store for a file.
    assert found - {"file"} == {"text", "streamed", "long", "long-not-compressed"}
    for view in ("streamed", "long"):
        answer = by_wsgi(application, f"/{view}/")
        assert int(answer.fields["age"]) < 60 and answer.fields["cache-control"] == "max-age=600"
        # Frozen content has no more headers than it had.
        assert answer.fields.get("content-length") == {"streamed": str(len(CONTENT)), "long": None}[view]


def test_a_response_of_django_is_kept_too(application: Any, store: Store) -> None:
    """If it streams: this middleware asks for nothing that Django's own don't have."""
    assert cached(application, "stock/streamed", store)
    assert cached(application, "stock/large-cached-by-clients", store)
    assert not cached(application, "stock/large", store)


def test_what_is_kept_varies(application: Any, store: Store) -> None:
    """By what middleware further inside has said."""
    for encoding in ("gzip", "br"):
        assert cached(application, "streamed", store, accept_encoding=encoding)
    for encoding in ("gzip", "br"):
        answer = by_wsgi(application, "/streamed/", accept_encoding=encoding)
        assert answer.decoded == CONTENT
        assert (answer.fields.get("content-encoding") == "gzip") is (encoding == "gzip")
    # Who has authorized himself doesn't see what others do.
    before = len(store.asked)
    by_wsgi(application, "/long/", authorization="Basic eDp5")
    by_wsgi(application, "/long/")
    assert len(store.asked) == before + 2


def test_headers_are_kept_as_they_were_there(store: Store) -> None:
    """What is further outside changes them later, and does so again with the one from the cache."""
    with override_settings(MIDDLEWARE=[OUR_CONDITIONAL, OUR_GZIP, OUR_UPDATE, FETCH]):
        application = WSGIHandler()
        for _ in range(2):
            answer = by_wsgi(application, "/streamed/", accept_encoding="gzip")
            assert answer.fields["content-encoding"] == "gzip" and answer.decoded == CONTENT
        assert "content-encoding" not in by_wsgi(application, "/streamed/").fields


def streaming(make: Any, content: Any, update: UpdateCacheMiddleware, **arguments: Any) -> Any:
    """A response as it leaves the middleware, and its request."""
    request = RequestFactory().get("/")
    request._cache_update_cache = True
    response = make(content, **arguments)
    return update.process_response(request, response)


def kept() -> Any:
    """The response that the cache has for "/"."""
    from django.middleware.cache import FetchFromCacheMiddleware

    return FetchFromCacheMiddleware(lambda request: None).process_request(RequestFactory().get("/"))


async def generate(*pieces: bytes) -> AsyncIterator[bytes]:
    """Asynchronous content."""
    for piece in pieces:
        yield piece


async def read(response: Any) -> list[bytes]:
    """All of it."""
    return [piece async for piece in response]


@pytest.fixture
def update(store: Store) -> UpdateCacheMiddleware:
    """The middleware alone."""
    return UpdateCacheMiddleware(lambda request: None)


@pytest.mark.parametrize("make", [StreamingHttpResponse, DjangoStreamingHttpResponse])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_pieces_are_handed_on_while_they_are_captured(
    make: Any, asynchronous: bool, update: UpdateCacheMiddleware
) -> None:
    """And nothing is kept before the end."""
    made = []

    def pieces() -> Iterator[bytes]:
        for piece in (b"a", b"b"):
            made.append(piece)
            yield piece

    async def apieces() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    async def check_async(response: Any) -> None:
        expected = []
        async for piece in response:
            expected.append(piece)
            assert made == expected and kept() is None

    response = streaming(make, apieces() if asynchronous else pieces(), update)
    if asynchronous:
        asyncio.run(check_async(response))
    else:
        for count, _ in enumerate(response, 1):
            assert len(made) == count and kept() is None
    found = kept()
    assert not found.streaming and found.content == b"ab"
    assert found["Content-Length"] == "2"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_did_not_end_well_is_not_kept(asynchronous: bool, update: UpdateCacheMiddleware) -> None:
    """A client that left, an error, too little, too much for the cache."""

    def failing() -> Iterator[bytes]:
        yield b"a"
        raise ArithmeticError

    async def afailing() -> AsyncIterator[bytes]:
        yield b"a"
        raise ArithmeticError

    async def leave(response: Any) -> None:
        pieces = response.__aiter__()
        await pieces.__anext__()
        await pieces.aclose()

    def given(*pieces: bytes) -> Any:
        return generate(*pieces) if asynchronous else iter(pieces)

    def take(response: Any) -> Any:
        return asyncio.run(read(response)) if asynchronous else list(response)

    left = streaming(StreamingHttpResponse, given(b"a", b"b"), update)
    if asynchronous:
        asyncio.run(leave(left))
    else:
        next(iter(left))
        left.close()
    assert kept() is None
    with pytest.raises(ArithmeticError):
        take(streaming(StreamingHttpResponse, afailing() if asynchronous else failing(), update))
    assert kept() is None
    with pytest.raises(Exception, match="announced"):
        take(streaming(StreamingHttpResponse, given(b"a"), update, length=2))
    assert kept() is None
    headers = {"Content-Length": "2"}
    take(streaming(DjangoStreamingHttpResponse, given(b"a"), update, headers=headers))
    assert kept() is None
    update.stream_limit = 2
    assert take(streaming(StreamingHttpResponse, given(b"ab", b"c"), update)) == [b"ab", b"c"]
    assert kept() is None
    assert take(streaming(StreamingHttpResponse, given(b"ab"), update)) == [b"ab"]
    assert kept().content == b"ab"


def test_what_is_frozen_is_kept_frozen(update: UpdateCacheMiddleware) -> None:
    """So that middleware can't spoil it the next time."""
    for make in (StreamingHttpResponse, HttpResponse):
        cache.clear()
        request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
        request._cache_update_cache = True
        response = make([CONTENT], headers={"ETag": '"a"'})
        response.streaming = True
        response.set_cookie("a", "b")
        response.freeze_header("ETag", "Content-Encoding", "X-None")
        if make is StreamingHttpResponse:
            response.freeze_content()
        assert b"".join(update.process_response(request, response)) == CONTENT
        found = kept()
        assert isinstance(found, HttpResponse) and found.cookies["a"].value == "b"
        found = GZipMiddleware(lambda request: None).process_response(request, found)
        found["ETag"] = found["X-None"] = "x"
        if make is StreamingHttpResponse:
            found.content = b"x"
        assert (found.content, found["ETag"]) == (CONTENT, '"a"')
        assert "Content-Encoding" not in found and "X-None" not in found


def test_a_response_that_this_server_does_not_keep(update: UpdateCacheMiddleware) -> None:
    """Streaming or not; its headers tell clients the same as all others."""
    for make in (HttpResponse, StreamingHttpResponse):
        request = RequestFactory().get("/")
        request._cache_update_cache = True
        response = make([b"content"])
        response.cache_on_server = False
        response = update.process_response(request, response)
        assert b"".join(response) == b"content" and kept() is None
        assert response["Cache-Control"] == "max-age=600" and "Expires" in response
        assert cache._cache == {}
    request._cache_update_cache = False
    response = HttpResponse(b"content")
    assert update.process_response(request, response) is response and "Expires" not in response


def test_what_cannot_be_kept_is_sent_nevertheless(
    update: UpdateCacheMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that fails is for the log."""

    class Failing:
        def set(self, key: str, *_: Any) -> None:
            if "cache_page" in key:
                raise ConnectionError("the cache is gone")

    class Update(UpdateCacheMiddleware):
        cache = Failing()

    response = streaming(StreamingHttpResponse, [b"a"], Update(lambda request: None))
    assert list(response) == [b"a"]
    assert "could not be kept" in caplog.text and "the cache is gone" in caplog.text


def test_cache_page(store: Store) -> None:
    """The decorator for one view."""
    calls = []

    @cache_page(60)
    def view(request: Any) -> Any:
        calls.append(request)
        return StreamingHttpResponse(iter([b"a", b"b"]))

    for _ in range(3):
        response = view(RequestFactory().get("/decorated"))
        assert b"".join(response) == b"ab" and response["Cache-Control"] == "max-age=60"
    assert len(calls) == 1


# ---- Compression ----


@pytest.mark.parametrize("make", [StreamingHttpResponse, DjangoStreamingHttpResponse])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_piece_can_be_decoded_when_it_comes(make: Any, asynchronous: bool, store: Store) -> None:
    """All of them one member, so that every client can."""
    request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
    headers = {"ETag": '"a"', "Content-Length": str(len(CONTENT))}
    response = make(generate(*PIECES) if asynchronous else iter(PIECES), headers=headers)
    response = GZipMiddleware(lambda request: None).process_response(request, response)
    assert response["Content-Encoding"] == "gzip" and response["ETag"] == 'W/"a"'
    assert response["Vary"] == "Accept-Encoding" and "Content-Length" not in response
    decoder = zlib.decompressobj(31)
    pieces = asyncio.run(read(response)) if asynchronous else list(response)
    assert [decoder.decompress(piece) for piece in pieces] == [*PIECES, b""]
    assert decoder.eof and not decoder.unused_data
    # It checks length and CRC, too.
    assert gzip.decompress(b"".join(pieces)) == CONTENT


def test_compressing_nothing_and_no_random_bytes(store: Store) -> None:
    """An empty member; and a derived class may go without the random name."""

    class Plain(GZipMiddleware):
        max_random_bytes = 0

    request = RequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
    for middleware in (GZipMiddleware, Plain):
        for content in ([], PIECES):
            response = middleware(lambda request: None).process_response(request, StreamingHttpResponse(content))
            assert gzip.decompress(b"".join(response)) == b"".join(content)
    heads = {
        len(b"".join(GZipMiddleware(lambda request: None).process_response(request, StreamingHttpResponse([b"a"]))))
        for _ in range(100)
    }
    assert len(heads) > 10


def test_what_is_not_compressed(store: Store) -> None:
    """Something that was, something frozen, a part, and what the client doesn't like; Django compresses the rest."""
    middleware = GZipMiddleware(lambda request: None)
    accepts, other = (RequestFactory().get("/", headers={"Accept-Encoding": value}) for value in ("gzip", "br"))

    def encoding(request: Any, response: Any) -> str | None:
        found: str | None = middleware.process_response(request, response).get("Content-Encoding")
        return found

    assert encoding(accepts, StreamingHttpResponse([CONTENT], headers={"Content-Encoding": "br"})) == "br"
    assert encoding(accepts, StreamingHttpResponse([CONTENT], headers={"Content-Range": "bytes 0-1/2"})) is None
    assert encoding(other, StreamingHttpResponse([CONTENT])) is None
    frozen = StreamingHttpResponse([CONTENT])
    frozen.freeze_content()
    assert encoding(accepts, frozen) is None
    assert encoding(accepts, HttpResponse(CONTENT)) == "gzip"
    assert encoding(accepts, HttpResponse(io.BytesIO(b"short"))) is None
