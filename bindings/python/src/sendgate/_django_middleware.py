"""Middleware of Django for responses that stream: a cache that keeps what was sent, and gzip piece by piece."""

from __future__ import annotations

import copy
import logging
import secrets
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from django.http import FileResponse as DjangoFileResponse
from django.http import HttpResponse as DjangoHttpResponse
from django.middleware.cache import CacheMiddleware as DjangoCacheMiddleware
from django.middleware.cache import UpdateCacheMiddleware as DjangoUpdateCacheMiddleware
from django.middleware.gzip import GZipMiddleware as DjangoGZipMiddleware
from django.middleware.gzip import re_accepts_gzip
from django.middleware.http import ConditionalGetMiddleware as DjangoConditionalGetMiddleware
from django.utils.cache import patch_vary_headers
from django.utils.decorators import decorator_from_middleware_with_args

from ._adapters import check_hooks
from ._chunks import aclose_all
from ._django_freezing import KNOWN, FreezeMixin
from ._django_responses import HttpResponse, in_djangos_thread

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

check_hooks(KNOWN, DjangoUpdateCacheMiddleware, "_should_update_cache", "process_response")
check_hooks(KNOWN, DjangoGZipMiddleware, "max_random_bytes", "process_response")

_logger = logging.getLogger("django.request")


# ---- The cache ----


class _Announced:
    """For Django's middleware, a response whose content comes later: it sets the headers, and learns the key."""

    streaming = False

    def __init__(self, response: HttpResponseBase, status_code: int) -> None:
        self._response = response
        self.status_code = status_code
        #: Keeps a response under that key; None: Django has decided against it.
        self.keep: Callable[[Any], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def render(self) -> None:
        """Never called: that there is one tells Django to wait for the content."""

    def add_post_render_callback(self, callback: Callable[[Any], object]) -> None:
        """By it Django says what is to be done then."""
        self.keep = callback


class _Capture:
    """What has been sent of a response, to be kept when that was all of it."""

    def __init__(self, response: HttpResponseBase, keep: Callable[[Any], object], limit: int) -> None:
        self._keep: Callable[[Any], object] | None = keep
        self._limit = limit
        self._pieces: list[bytes] = []
        #: Bytes.
        self._length = 0
        # Middleware further outside goes on changing the headers of the other.
        self._made = _without_content(response)
        self._freeze = response._frozen_parts() if isinstance(response, FreezeMixin) else _nothing
        announced = response.get("Content-Length", "")
        self._announced = int(announced) if announced.isascii() and announced.isdigit() else None

    def take(self, piece: bytes) -> None:
        """It was sent."""
        self._length += len(piece)
        if self._length > self._limit:
            self.drop()
        elif self._keep is not None:
            self._pieces.append(piece)

    def end(self) -> None:
        """That was all."""
        keep, self._keep = self._keep, None
        if keep is None or self._announced not in (None, self._length):
            return
        response = self._made
        response.content = b"".join(self._pieces)
        self._freeze(response)
        # Not if it was frozen as absent.
        if not response.has_header("Content-Length"):
            response.headers["Content-Length"] = str(self._length)
        try:
            keep(response)
        except Exception:
            # The response has left, and is right.
            _logger.exception("A response that was sent could not be kept in the cache")

    def drop(self) -> None:
        """It is too much, or something went wrong."""
        self._keep = None
        self._pieces = []


def _without_content(response: HttpResponseBase) -> Any:
    """A response that doesn't stream with the same headers, none of them frozen yet."""
    kind = HttpResponse if isinstance(response, FreezeMixin) else DjangoHttpResponse
    made = kind(status=response.status_code, reason=response._reason_phrase, charset=response._charset)
    del made.headers["Content-Type"]
    for name, value in response.items():
        made.headers[name] = value
    made.cookies = copy.copy(response.cookies)
    return made


def _nothing(_: object) -> None:
    pass


class _Tee:
    """Content as it is sent, and captured."""

    def __init__(self, content: Any, capture: _Capture) -> None:
        self._content = content
        self._capture = capture

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece: bytes = next(self._content)
        except StopIteration:
            self._capture.end()
            raise
        except BaseException:
            self._capture.drop()
            raise
        self._capture.take(piece)
        return piece

    def close(self) -> None:
        self._capture.drop()
        if hasattr(self._content, "close"):
            self._content.close()


class _AsyncTee:
    """The same of asynchronous content."""

    def __init__(self, content: Any, capture: _Capture) -> None:
        self._content = content
        self._capture = capture

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece: bytes = await self._content.__anext__()
        except StopAsyncIteration:
            await in_djangos_thread(self._capture.end)
            raise
        except BaseException:
            self._capture.drop()
            raise
        self._capture.take(piece)
        return piece

    async def aclose(self) -> None:
        self._capture.drop()
        await aclose_all(self._content)


class UpdateCacheMiddleware(DjangoUpdateCacheMiddleware):  # type: ignore[misc]
    """Django's UpdateCacheMiddleware, which keeps responses that stream, too.

    When all of one has been sent, without an error and to a client that has stayed, it is kept as one that doesn't
    stream, with the headers that it has had here, frozen ones too: ``FetchFromCacheMiddleware`` of Django finds it.
    Django's rules decide whether and for how long, as of any other response, and set Expires and Cache-Control before
    it is sent.

    Not kept are those of more than ``stream_limit`` bytes, files (``FileResponse``), which lie somewhere already, and
    responses whose ``cache_on_server`` is false. The headers of the last are set as those of all others, so clients
    may keep them.
    """

    #: Bytes of content, up to which one that streams is kept in memory as it is sent, and then in the cache.
    stream_limit = 1 << 20

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Set the cache when the response has been sent, if it streams, or else now."""
        if isinstance(response, DjangoFileResponse) or not self._should_update_cache(request, response):
            return response
        if not getattr(response, "cache_on_server", True):
            if response.status_code in (200, 304):
                # Of a 304 Django sets the headers, and keeps nothing.
                super().process_response(request, _Announced(response, 304))
            return response
        if not response.streaming:
            return super().process_response(request, response)
        if response.status_code == 200:
            announced = _Announced(response, 200)
            super().process_response(request, announced)
            if announced.keep is not None:
                self._capture(response, announced.keep)
        return response

    def _capture(self, response: Any, keep: Callable[[Any], object]) -> None:
        capture = _Capture(response, keep, self.stream_limit)
        tee = _AsyncTee if response.is_async else _Tee
        if hasattr(response, "_wrap_content"):
            response._wrap_content(lambda content: tee(content, capture))
        else:
            response.streaming_content = tee(response.streaming_content, capture)


class CacheMiddleware(UpdateCacheMiddleware, DjangoCacheMiddleware):  # type: ignore[misc]
    """Django's CacheMiddleware, with ``UpdateCacheMiddleware`` of this package in it."""


def cache_page(timeout: float | None, *, cache: str | None = None, key_prefix: str | None = None) -> Any:
    """Django's decorator of that name, for views whose responses may stream."""
    return decorator_from_middleware_with_args(CacheMiddleware)(
        page_timeout=timeout, cache_alias=cache, key_prefix=key_prefix
    )


# ---- Conditions ----


class ConditionalGetMiddleware(DjangoConditionalGetMiddleware):  # type: ignore[misc]
    """Django's ConditionalGetMiddleware, which closes the content that it doesn't send after all.

    Without it, content of a response of this package is closed when nobody refers to that any more. That is at once on
    CPython from 3.11 on; on others, garbage has to be collected before.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Answer 304 or 412 in the response's place, if that is due."""
        answer = super().process_response(request, response)
        if answer is not response:
            for close in response._resource_closers:
                try:
                    close()
                except Exception:
                    # The other answer is right all the same.
                    _logger.exception("A response that isn't sent could not be closed")
        return answer


# ---- Compression ----


class _Compressor:
    """A member of gzip (RFC 1952 2.3), all of whose output so far can be decoded after each piece.

    1f 8b 08 FLG 00 00 00 00 00 ff [name 00]   deflate...   CRC32 (4 bytes)   length (4 bytes)
    """

    def __init__(self, max_random_bytes: int) -> None:
        # As Django's: content that an attacker has a part in can't be guessed by its length ("Heal the Breach").
        name = b"a" * secrets.randbelow(max_random_bytes) if max_random_bytes else b""
        self._head = b"\x1f\x8b\x08%c\0\0\0\0\0\xff" % (8 if name else 0) + (name + b"\0" if name else b"")
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._crc = 0
        #: Bytes.
        self._length = 0

    def take(self, piece: bytes) -> bytes:
        head, self._head = self._head, b""
        self._crc = zlib.crc32(piece, self._crc)
        self._length += len(piece)
        # RFC 1951 3.2.4: an empty block without compression ends at a byte, so nothing of the piece stays behind.
        return head + self._deflate.compress(piece) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._head + self._deflate.flush() + struct.pack("<II", self._crc, self._length & 0xFFFFFFFF)


def _compressed(content: Any, compressor: _Compressor) -> Iterator[bytes]:
    for piece in content:
        yield compressor.take(piece)
    yield compressor.end()


async def _acompressed(content: Any, compressor: _Compressor) -> AsyncIterator[bytes]:
    async for piece in content:
        yield compressor.take(piece)
    yield compressor.end()


class GZipMiddleware(DjangoGZipMiddleware):  # type: ignore[misc]
    """Django's GZipMiddleware, from which each piece of a response that streams comes as soon as it was made.

    That of Django 5.2 keeps what is synchronous until there is enough to compress well, and makes of each asynchronous
    piece a member of its own (RFC 1952 2.2), of which some clients decode only the first; that of 6.0 keeps both, and
    that of 6.1 flushes. This one flushes one member after each piece, which costs 5 bytes or more each time. A part of
    something (206) isn't compressed.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Compress the response, if that is allowed, and the client likes it."""
        if not response.streaming:
            return super().process_response(request, response)
        if response.has_header("Content-Encoding") or response.get("Content-Range"):
            return response
        patch_vary_headers(response, ("Accept-Encoding",))
        if not re_accepts_gzip.search(request.META.get("HTTP_ACCEPT_ENCODING", "")):
            return response
        if not {"accept-encoding", "*"} & {name.strip().lower() for name in response.get("Vary", "").split(",")}:
            return response  # it is frozen, and caches would give this to everybody
        compressor = _Compressor(self.max_random_bytes)
        make = _acompressed if response.is_async else _compressed
        response.streaming_content = make(response.streaming_content, compressor)
        del response.headers["Content-Length"]
        # RFC 9110 8.8.1: as Django's; other bytes can't have the same strong tag.
        etag = response.get("ETag")
        if etag and etag.startswith('"'):
            response.headers["ETag"] = "W/" + etag
        response.headers["Content-Encoding"] = "gzip"
        return response
