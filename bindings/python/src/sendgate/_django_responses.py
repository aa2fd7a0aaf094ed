"""Responses of Django that middleware can't spoil: content in one piece, content that streams, and files."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync, sync_to_async
from django.http import FileResponse as DjangoFileResponse
from django.http import HttpResponse as DjangoHttpResponse
from django.http import StreamingHttpResponse as DjangoStreamingHttpResponse

from ._adapters import check_hooks
from ._answer import as_given, conditional, content_length, limited, may_be_less
from ._chunks import AsyncChunks, Chunks, aclose_all
from ._core import File, Request
from ._django_freezing import KNOWN, FreezeMixin
from .wsgi import _TRUSTED, BLOCK_SIZE, FileWrapper, _Window

if TYPE_CHECKING:
    from django.http import HttpRequest

    from ._answer import Answer

check_hooks(KNOWN, DjangoFileResponse, "set_headers")


_logger = logging.getLogger("django.request")


def in_djangos_thread(function: Callable[[], Any]) -> Awaitable[Any]:
    """Call it where Django calls what is synchronous: connections of its databases belong to a thread."""
    made: Awaitable[Any] = sync_to_async(function)()
    return made


# ---- Content that is read once ----


def _encoded(charset: str, piece: Any) -> bytes:
    """As Django's make_bytes, but that it doesn't hold the response, which would go round in a circle."""
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece)
    return (piece if isinstance(piece, str) else str(piece)).encode(charset)


class _Source:
    """What a response was given to iterate over. It, its iterator and what else belongs to it are closed once: at the
    latest when nobody refers to this any more, because ConditionalGetMiddleware answers by a response of its own, and
    drops the other without closing it.
    """

    def __init__(self, given: Any, *belongings: Any) -> None:
        self._iterator: Any = iter(given)
        owned = (self._iterator, *(() if given is self._iterator else (given,)), *belongings)
        # As they are now: Django puts the response's close into the place of a file's.
        self._closers = [each.close for each in owned if hasattr(each, "close")]

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def close(self) -> None:
        closers, self._closers, self._iterator = self._closers, [], iter(())
        with contextlib.ExitStack() as stack:
            for close in reversed(closers):
                stack.callback(close)

    def __del__(self) -> None:
        # When the interpreter ends, there may be no contextlib any more.
        try:  # noqa: SIM105
            self.close()
        except Exception:
            pass


class _AsyncSource:
    """The same of what is asynchronous."""

    def __init__(self, given: Any) -> None:
        self._given: Any = given
        self._iterator: Any = type(given).__aiter__(given)

    def __aiter__(self) -> _AsyncSource:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            raise StopAsyncIteration
        return await self._iterator.__anext__()

    async def aclose(self) -> None:
        given, self._given = self._given, None
        iterator, self._iterator = self._iterator, None
        await aclose_all(iterator, given)

    def close(self) -> None:
        """For a response that is closed, or dropped, before it was sent, wherever that is."""
        given = self._given
        # A generator that hasn't begun has nothing to close, and one that has is seen to by its event loop.
        if inspect.isasyncgen(given) or not (hasattr(given, "aclose") or hasattr(given, "close")):
            return
        try:
            task = asyncio.get_running_loop().create_task(self.aclose())
        except RuntimeError:
            # Where Django has put a thread around it, this is in its event loop.
            async_to_sync(self.aclose)()
        else:
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    def __del__(self) -> None:
        # When the interpreter ends, there may be no contextlib any more.
        try:  # noqa: SIM105
            self.close()
        except Exception:
            pass


#: A task that nobody refers to may be collected before it is done.
_closing: set[asyncio.Task[None]] = set()


class _Pieces:
    """Content as bytes."""

    def __init__(self, content: Any, charset: str) -> None:
        self._content = content
        self._encode = functools.partial(_encoded, charset)

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        return self._encode(next(self._content))

    def close(self) -> None:
        if hasattr(self._content, "close"):
            self._content.close()


class _AsyncPieces:
    """Asynchronous content as bytes."""

    def __init__(self, content: Any, charset: str) -> None:
        self._content = content
        self._encode = functools.partial(_encoded, charset)

    def __aiter__(self) -> _AsyncPieces:
        return self

    async def __anext__(self) -> bytes:
        return self._encode(await self._content.__anext__())

    async def aclose(self) -> None:
        await aclose_all(self._content)


class _Streaming(FreezeMixin):
    """What the responses below have in common: content that is iterated over, once.

    cache_on_server: whether ``UpdateCacheMiddleware`` of this package may keep the response; caches of clients, and in
    between, are told by Cache-Control as ever.
    """

    cache_on_server = True

    is_async = False
    file_to_stream: Any
    #: Content that nobody has read yet; None: there is none.
    _iterator: Any = None
    #: Whether somebody counts it who is further inside.
    _counted = False

    def __init__(self, *args: Any, length: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if length is not None:
            if length < 0:
                raise ValueError(f"length must not be negative: {length}")
            self.headers["Content-Length"] = str(length)

    def _set_streaming_content(self, value: Any) -> None:
        # Files are FileResponse's to handle, and what can't be iterated is Django's to refuse.
        if not hasattr(value, "read"):
            if hasattr(value, "__iter__"):
                value = _Source(value)
            elif hasattr(value, "__aiter__"):
                value = _AsyncSource(value)
        super()._set_streaming_content(value)
        if getattr(self, "file_to_stream", None) is value:
            # Django's iterator refers to the response, which would then stay until garbage is collected.
            self._iterator = _Source(iter(functools.partial(self.file_to_stream.read, BLOCK_SIZE), b""), value)

    @property
    def streaming_content(self) -> Any:
        """The content as an iterator over bytes, which can be read once, by whoever sends it. Middleware that changes
        the content puts another one in its place.

        As much as Content-Length says now, which middleware may remove: what is made of too little must not look
        complete.
        """
        # What holds the iterator holds the file that it reads from; and a file has the length that it has.
        content = self._pieces(self._iterator)
        length = self._announced() if getattr(self, "file_to_stream", None) is None else None
        return (AsyncChunks if self.is_async else Chunks)(content, length)

    @streaming_content.setter
    def streaming_content(self, value: Any) -> None:
        self._set_streaming_content(value)

    @property
    def content_iterator(self) -> Any:
        """The same as ``streaming_content``."""
        return self.streaming_content

    @content_iterator.setter
    def content_iterator(self, value: Any) -> None:
        self.streaming_content = value

    def __iter__(self) -> Iterator[bytes]:
        """The content, for who sends it: each piece as soon as it is there.

        As much as Content-Length says, if it is the view's content: ExcessError and TruncatedError end the connection.
        """
        return Chunks(self._take(), self._length())

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The same for an event loop. What isn't asynchronous is read in Django's thread, piece by piece."""
        return AsyncChunks(self._take(), self._length(), run=in_djangos_thread)

    def _take(self) -> Any:
        return self._pieces(self._iterator)

    def _pieces(self, content: Any) -> Any:
        """Content as bytes."""
        return (_AsyncPieces if self.is_async else _Pieces)(content, self.charset)

    def _announced(self) -> int | None:
        """How much there is to be, if that is known of this content, and nobody counts it yet."""
        # RFC 9110 8.6: a 304 may say how long a 200 would be.
        if self._counted or self._replaced or self.status_code in (204, 304) or "Content-Length" not in self:
            return None
        return content_length([("Content-Length", self.headers["Content-Length"])])

    def _length(self) -> int | None:
        """The same, for who counts it from now on."""
        length = self._announced()
        self._counted = self._counted or not self._replaced
        return length

    def _wrap_content(self, wrap: Callable[[Any], Any]) -> None:
        """Put into the content's place, even if that is frozen, an iterator over the same bytes. For this package."""
        inside = (AsyncChunks if self.is_async else Chunks)(self._take(), self._length())
        self._iterator = wrap(inside)
        close = getattr(self._iterator, "close", None)
        if close is not None:
            self._resource_closers.insert(0, close)


class StreamingHttpResponse(_Streaming, DjangoStreamingHttpResponse):  # type: ignore[misc]
    """Django's StreamingHttpResponse, each piece of which is sent when it is made, on any server.

        response = StreamingHttpResponse(pieces, length=1 << 30, headers={"ETag": '"v1"'})
        response.freeze_header("ETag", "Content-Encoding")

    streaming_content: an iterable of bytes or str, or an asynchronous one. A synchronous one is read in a thread, piece
    by piece, under ASGI, and an asynchronous one in an event loop of its own under WSGI; Django would read all of it
    first. It is closed, if it can be, when it has ended, when the client leaves, or when the response isn't sent after
    all.

    length: bytes, for Content-Length. If there are more or fewer, the connection is broken, so that the client notices.

    frozen: see ``FreezeMixin``. All other arguments are Django's.
    """


class HttpResponse(_Streaming, DjangoHttpResponse):  # type: ignore[misc]
    """Django's HttpResponse, which may stream.

        response = HttpResponse(pieces)
        response.streaming = True

    content: as Django's. An iterable of bytes or str, also an asynchronous one, but for a list or a tuple, isn't read
    before that is necessary: by whoever asks for ``content``, which is then kept. If nobody does, and with
    ``streaming = True``, it is sent as it is made: see ``StreamingHttpResponse``. A response that streams has
    ``content_iterator`` in the place of ``content``.

    length: bytes, for Content-Length; of content that streams, the connection is broken if it is another number.

    frozen: see ``FreezeMixin``. All other arguments are Django's.
    """

    _streams = False

    #: Whether the iterator is over content that is there anyway.
    _is_there = False
    #: Why the content couldn't be read.
    _failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        if not self._streams:
            self._capture()
        state = self.__dict__.copy()
        # They may lead to an iterator, and are of no use to a copy.
        state.pop("_before", None)
        state["_resource_closers"] = []
        return state

    @property
    def streaming(self) -> bool:
        """Whether the content is sent as it is made. Can be set."""
        # Django's handlers set their class when all middleware has run: what none of it has read they need not either.
        return self._streams or (self._handler_class is not None and self._iterator is not None)

    @streaming.setter
    def streaming(self, value: bool) -> None:
        if value and self._iterator is None:
            self._iterator, self._is_there, self.is_async = _Source(self._container), True, False
        elif not value and self._is_there:
            self._iterator, self._is_there = None, False
        self._streams = bool(value)

    def _check_streaming(self) -> None:
        if not self._streams:
            raise AttributeError(f"this {type(self).__name__} doesn't stream: it has content")

    @property
    def streaming_content(self) -> Any:
        """The content as an iterator over bytes, which can be read once, by whoever sends it."""
        self._check_streaming()
        return super().streaming_content

    @streaming_content.setter
    def streaming_content(self, value: Any) -> None:
        self._check_streaming()
        self._set_streaming_content(value)

    def _set_streaming_content(self, value: Any) -> None:
        if self._replaces_content():
            self._hold(value)

    def _hold(self, value: Any) -> None:
        """An iterable, until somebody reads it."""
        self.is_async = not hasattr(value, "__iter__")
        self._is_there, self._failure = False, None
        self._iterator = (_AsyncSource if self.is_async else _Source)(value)
        self._resource_closers.append(self._iterator.close)

    @property
    def content(self) -> bytes:
        """All of the content. AttributeError: it streams."""
        if self._streams:
            raise AttributeError(f"this {type(self).__name__} streams: it has content_iterator in the place of content")
        self._capture()
        return b"".join(self._container)

    @content.setter
    def content(self, value: Any) -> None:
        if self._streams:
            raise AttributeError(f"this {type(self).__name__} streams: set content_iterator")
        if self._replaces_content():
            self._set_content(value)

    def _set_content(self, value: Any) -> None:
        iterable = hasattr(value, "__iter__") or hasattr(value, "__aiter__")
        self.__dict__.pop("text", None)
        if iterable and not isinstance(value, (bytes, memoryview, str, list, tuple)):
            self._container: list[bytes] = []
            self._hold(value)
        else:
            self._iterator, self._is_there, self._failure = None, False, None
            super()._set_content(value)

    def _capture(self) -> None:
        """Read what was not read yet."""
        if self._failure is not None:
            raise self._failure
        content, self._iterator = self._iterator, None
        if content is None:
            return
        pieces = self._pieces(content)
        with contextlib.suppress(ValueError):
            self._resource_closers.remove(content.close)
        try:
            # What isn't what was announced must not be sent as if it were.
            self._container = [b"".join(Chunks(pieces, self._length()))]
        except Exception as error:
            # It can't be read again, and isn't empty.
            self._failure = error
            raise

    def write(self, content: Any) -> None:
        """Add to the content."""
        if self._streams:
            raise AttributeError(f"this {type(self).__name__} streams: set content_iterator")
        self._capture()
        super().write(content)

    def __iter__(self) -> Iterator[bytes]:
        """See ``StreamingHttpResponse``."""
        if self.streaming:
            return super().__iter__()
        # Who isn't a handler may do so again.
        self._capture()
        return iter(self._container)


class FileResponse(_Streaming, DjangoFileResponse):  # type: ignore[misc]
    """Django's FileResponse, whose headers and bytes are decided when it is made.

        return FileResponse("numbers.txt", request=request)

    streaming_content: an open file, at whose position it begins, a path, a ``sendgate.File``, which is taken over, or a
    BytesIO; or an iterable, as for ``StreamingHttpResponse``. as_attachment, filename: as Django's.

    request: the one that is answered. Of GET and HEAD, conditions and ranges are evaluated by what one fstat says of
    the open file and by the headers, at once: the response is the 200, 206, 304, 412 or 416 (RFC 9110 13, 14), and its
    content is frozen, with ETag, Last-Modified, Content-Length, Content-Range, Accept-Ranges and Content-Encoding. So
    validators of the view's own are among the arguments: ``headers={"ETag": ...}``. "Accept-Ranges: none" there turns
    ranges off. Without a request, the response is all of the file; ``sendgate.wsgi.Conditional`` and
    ``get_asgi_application`` of this module decide later. What is neither a plain file nor a buffer, such as
    ``gzip.open``, is sent in full in any case.

    length, frozen: as for ``StreamingHttpResponse``. All other arguments are Django's.
    """

    cache_on_server = False

    status_code: int
    file_to_stream: Any

    #: Whether conditions and ranges have been evaluated.
    decided = False

    def __init__(
        self, streaming_content: Any = (), *args: Any, request: HttpRequest | None = None, **kwargs: Any
    ) -> None:
        opened = _opened(streaming_content)
        try:
            super().__init__(opened, *args, **kwargs)
            if request is not None:
                self._decide(request)
        except BaseException:
            if hasattr(opened, "close"):
                opened.close()
            raise

    def _take(self) -> Any:
        if self.file_to_stream is None or self.decided or "Content-Length" not in self.headers:
            return super()._take()
        # Of a file, as by the adapters of this package, no more is sent than Content-Length says.
        wrapper = FileWrapper(self.file_to_stream)
        wrapper._close = None
        wrapper.limit(int(self.headers["Content-Length"]))
        return wrapper

    def _decide(self, request: HttpRequest) -> None:
        file = self.file_to_stream
        wrapper = FileWrapper(file)
        # It is closed with the response.
        wrapper._close = None
        content = None if file is None else wrapper.content()
        if content is None:
            return
        headers = list(self.items())
        there, offset, length = content
        length = limited(headers, length, _report)
        decide = may_be_less(request.method, self.status_code, headers)
        answer = (
            conditional(_asked(request), headers, there, offset, length, wrapper.close, {})
            if decide
            else as_given(_asked(request), self.status_code, headers, there, offset, length, wrapper.close)
        )
        status, fields = answer.begin()
        self.status_code = int(status[:3])
        self.headers = dict(fields)
        self.file_to_stream = self._window(answer, request)
        # The answer first, because a BytesIO can't be closed as long as somebody looks into it.
        self._iterator = _Source(answer, self.file_to_stream, self._iterator)
        self._resource_closers = [self._iterator.close]
        self._counted = self.decided = True
        self.freeze_content()
        if answer.span() is None:
            # It says where the parts begin.
            self.freeze_header("Content-Type")

    def _window(self, answer: Answer, request: HttpRequest) -> _Window | None:
        """For wsgi.file_wrapper, what is left to be sent; None: it has to be read."""
        span, decision = answer.span(), answer.decision
        if span is None or decision is None or decision.body_length == 0 or answer.fileno() < 0:
            return None
        wrapper = request.META.get("wsgi.file_wrapper")
        if wrapper is not None and wrapper is not FileWrapper and wrapper.__module__ not in _TRUSTED:
            return None
        return _Opened(answer.fileno(), span[0], _nothing)


class _Opened(_Window):
    """A file that this module has opened, and sees to."""

    def __del__(self) -> None:
        # Not what Django has put into its place.
        _Window.close(self)


def _opened(content: Any) -> Any:
    if isinstance(content, (str, os.PathLike)):
        return open(content, "rb")  # noqa: SIM115 - closed with the response
    if isinstance(content, File):
        return _Opened(content.fileno(), 0, content.close)
    return content


def _asked(request: HttpRequest) -> Request:
    """What the library needs to know of the request."""
    if hasattr(request, "scope"):
        return Request.from_scope(request.scope, has_body=False)
    return Request.from_environ(request.META, has_body=False)


def _report(text: str) -> None:
    _logger.warning("%s", text)


def _nothing() -> None:
    pass
