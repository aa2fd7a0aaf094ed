"""``Response``: status, fields and content, of which some can be frozen, as a WSGI and an ASGI application.

Content that is an iterator is read once. With ``streaming`` each piece is sent as soon as it is produced, and nobody
can ask for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import io
import mmap
import os
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Union, overload

from ._answer import (
    CHUNK,
    Answer,
    as_given,
    conditional,
    content_length,
    has_validator,
    is_sound,
    may_be_less,
    open_file,
    reason,
    without_content,
)
from ._chunks import AsyncChunks, Chunks, aclose_all, aiter_, trio_here
from ._core import File, Request, _Collector, _Exchange, _int, _Produced
from ._errors import bad_field, excess, frozen, truncated
from ._headers import Headers
from ._site import content_type as _type_of
from ._stream import Stream
from ._types import HeadForm
from .asgi import _CONTENT, _START, _encoded, _watch, give
from .wsgi import FileWrapper, send

if TYPE_CHECKING:
    from typing import Protocol

    from typing_extensions import TypeAlias

    from ._chunks import Producer
    from ._headers import Fields, Mode
    from ._types import Text
    from .asgi import Message, Receive, Scope, Send
    from .wsgi import Environ, StartResponse

    #: What a response can have as its content.
    Content: TypeAlias = Union[
        str, bytes, bytearray, memoryview, mmap.mmap, os.PathLike[str], File, io.IOBase, "Readable", Producer
    ]

    class Readable(Protocol):
        """Anything with a read()."""

        def read(self, size: int, /) -> bytes:
            """So many bytes, or what there is."""
            ...


__all__ = ["Response"]

_TRAILERS = "http.response.trailers"


class _Layers:
    """An iterator that was put around others. To close it is to close all of them, the outermost first."""

    def __init__(self, iterator: Any, inner: list[Any]) -> None:
        self._iterator = iterator
        self._all = [iterator, *reversed(inner)]

    def close(self) -> None:
        """Close them."""
        with contextlib.ExitStack() as stack:
            for layer in reversed(self._all):
                if hasattr(layer, "close"):
                    stack.callback(layer.close)

    def _begun(self, iterator: Any) -> Any:
        """Who iterates closes the iterator himself."""
        self._all = [layer for layer in self._all if layer is not iterator]
        return iterator


class _Sync(_Layers):
    def __iter__(self) -> Iterator[bytes]:
        return self._begun(iter(self._iterator))  # type: ignore[no-any-return]


class _Async(_Layers):
    def __aiter__(self) -> Any:
        return self._begun(aiter_(self._iterator))

    async def aclose(self) -> None:
        """Close them."""
        await aclose_all(*self._all)


def _layers(iterator: Any, inner: list[Any]) -> Any:
    if not inner:
        return iterator
    return (_Async if hasattr(iterator, "__aiter__") else _Sync)(iterator, inner)


class Response:
    """A response, made by an application, changed by its middleware, and sent by calling it, as WSGI or as ASGI does.

        response = sendgate.Response(produce(), content_type="text/plain", streaming=True)
        response.freeze_header("Content-Encoding")       # nobody compresses it
        return response(environ, start_response)         # or: await response(scope, receive, send)

    content:

    - bytes, or anything like it; str is encoded as UTF-8. Conditions and ranges are evaluated if there is an ETag or a
      Last-Modified.
    - a file: a path (``pathlib.Path``), a ``File``, or an open binary file, from its position on. Sent as
      ``sendgate.asgi.FileResponse`` and ``wsgi.file_wrapper`` do it, with conditions, ranges, and sendfile.
    - another object with ``read()``. If it can ``seek()`` and Content-Length is given, which counts from its position
      on, and an ETag or a Last-Modified, only the ranges that are asked for are read.
    - an iterable of bytes, synchronous or asynchronous, which is read once, when the response is sent, and closed. With
      an ETag or a Last-Modified conditions are evaluated: a 304, a 412 and the answer to HEAD don't read it. If
      Content-Length is given, then ExcessError and TruncatedError are raised where that isn't what comes.

    status: 200 to 999. headers: as for ``Headers``; a copy of them is ``headers``. content_type: the Content-Type,
    unless headers have one; without it str is text/plain, and a path what its name says.

    streaming: content is sent in the pieces in which it is produced, each of them at once, and is never gathered:
    ``content`` raises. The head is sent before the first of them, as far as the server does that. Otherwise the head
    waits for the first piece, so that a producer that fails at once is answered 500.

    trailers: fields that are sent behind content that is iterated, in an attribute of that name, which the producer may
    still change. Only on ASGI servers that have ``http.response.trailers``; all others leave them out.

    frozen: what a change of something frozen does: "raise" FrozenError, or "ignore" it. None: as headers have it.

    A call reads content that isn't bytes or a path; a second one is a RuntimeError. Until it was called, ``close``
    closes the content.
    """

    def __init__(
        self,
        content: Content = b"",
        status: int = 200,
        headers: Fields = (),
        *,
        content_type: Text | None = None,
        streaming: bool = False,
        trailers: Fields | None = None,
        frozen: Mode | None = None,
    ) -> None:
        self.status = status
        #: The fields: a ``Headers``.
        self.headers = Headers(headers, frozen=frozen)
        #: Those that follow the content: a ``Headers``, or None.
        self.trailers: Headers | None = None if trailers is None else Headers(trailers)
        self._streaming = bool(streaming)
        self._content_is_frozen = False
        #: Whether the iterator knows what Content-Length was.
        self._is_counted = False
        # What content there is: one of these.
        self._bytes: bytes | None = None
        self._file: Any = None
        self._iterator: Any = None
        #: What is read of the file, once somebody has asked for an iterator.
        self._blocks: Chunks | None = None
        #: What was replaced, and is perhaps within what has replaced it.
        self._inner: list[Any] = []
        #: Whether it was read, or is being read.
        self._taken = False
        self._reading: Chunks | None = None
        if content_type is None:
            if isinstance(content, str):
                content_type = "text/plain; charset=utf-8"
            elif isinstance(content, os.PathLike):
                content_type = _type_of(os.fsdecode(content))
        self._put(content)
        if content_type is not None and "Content-Type" not in self.headers:
            self._set_type(content_type)

    def _set_type(self, value: Text) -> None:
        if not self.headers.is_frozen("Content-Type"):
            self.headers["Content-Type"] = value

    def __repr__(self) -> str:
        kind = "streaming" if self._streaming else "bytes" if self._bytes is not None else "not captured"
        return f"<sendgate.Response {self._status}, {kind}>"

    # ---- Status and fields ----

    @property
    def status(self) -> int:
        """200 to 999."""
        return self._status

    @status.setter
    def status(self, value: int) -> None:
        self._status = _int(value, 200, 999, "status")

    def __getitem__(self, name: str) -> str:
        return self.headers[name]

    def __setitem__(self, name: str, value: Text | int) -> None:
        self.headers[name] = str(value) if isinstance(value, int) else value

    def __delitem__(self, name: str) -> None:
        del self.headers[name]

    def __contains__(self, name: object) -> bool:
        return name in self.headers

    def freeze_header(self, *names: Text) -> None:
        """What there is of these fields stays, and what there isn't of them stays away."""
        self.headers.freeze(*names)

    def header_is_frozen(self, name: Text) -> bool:
        """Whether it was frozen."""
        return self.headers.is_frozen(name)

    # ---- Content ----

    @property
    def streaming(self) -> bool:
        """Whether content is sent piece by piece, and can't be asked for."""
        return self._streaming

    @streaming.setter
    def streaming(self, value: bool) -> None:
        self._streaming = bool(value)

    @property
    def content(self) -> bytes:
        """All of the content. That of an iterator or a file is captured when it is first asked for, and is bytes then.

        AttributeError: the response is streaming; see ``content_iterator``. RuntimeError: the content was sent already,
        or is asynchronous and this is an event loop's thread: then await ``capture``.
        """
        self._refuse_streaming()
        if self._bytes is None:
            chunks = self._capture(Chunks)
            self._captured(list(chunks))
        assert self._bytes is not None
        return self._bytes

    @content.setter
    def content(self, value: Content) -> None:
        self._refuse_streaming()
        if not self._refuses():
            self._replace(value)

    async def capture(self) -> bytes:
        """The same as ``content``, without waiting for it in the event loop's thread."""
        self._refuse_streaming()
        if self._bytes is None:
            chunks = self._capture(AsyncChunks)
            self._captured([chunk async for chunk in chunks])
        return self.content

    def _refuse_streaming(self) -> None:
        if self._streaming:
            raise AttributeError("a streaming response has no content: use content_iterator, and wrap it to change it")

    def _capture(self, kind: Any) -> Any:
        content = self._produced()
        return kind(content, content_length(list(self.headers.items())) if self._file is None else None)

    def _captured(self, chunks: list[bytes]) -> None:
        self._forget()
        self._bytes = b"".join(chunks)
        self._taken = False

    @property
    def content_iterator(self) -> Any:
        """What the content is read from: the iterable that it was given as, or blocks of the file. None: it is bytes,
        and the response isn't streaming. To change the content, set it to an iterator around this one.

        RuntimeError: it was read already.
        """
        if self._bytes is not None:
            if not self._streaming:
                return None
            self._iterator, self._bytes = Chunks((self._bytes,)), None
        self._refuse_taken()
        if self._file is not None:
            if self._blocks is None:
                self._blocks = Chunks(_blocks(self._file))
            return self._blocks
        announced = content_length(list(self.headers.items()))
        if announced is not None and not self._is_counted and self._iterator is not None:
            # Who wraps it removes the length. What is made of too little must not look complete all the same.
            is_async = hasattr(self._iterator, "__aiter__")
            self._iterator = (AsyncChunks if is_async else Chunks)(self._iterator, announced)
            self._is_counted = True
        return self._iterator

    @content_iterator.setter
    def content_iterator(self, value: Producer) -> None:
        self._refuse_taken()
        if not self._refuses():
            if not (hasattr(value, "__iter__") or hasattr(value, "__aiter__")) or isinstance(value, (bytes, str)):
                raise TypeError(f"content_iterator must be an iterable of bytes, not {type(value).__name__}")
            self._replace(value)

    def freeze_content(self) -> None:
        """Nobody changes the content any more, nor says of it that it is compressed."""
        self._content_is_frozen = True
        self.headers.freeze("Content-Encoding")

    def content_is_frozen(self) -> bool:
        """Whether it was frozen."""
        return self._content_is_frozen

    def _refuses(self) -> bool:
        if self._content_is_frozen and self.headers.frozen == "raise":
            raise frozen("the content")
        return self._content_is_frozen

    def _refuse_taken(self) -> None:
        begun = (layer.taken or layer.closed for layer in (self._blocks, self._iterator) if isinstance(layer, Chunks))
        if self._taken or any(begun):
            raise RuntimeError("the content was read already, and can't be read twice")

    def _put(self, content: Any) -> None:
        if isinstance(content, str):
            self._bytes = content.encode()
        elif isinstance(content, (bytes, bytearray, memoryview)):
            self._bytes = bytes(content)
        elif isinstance(content, (os.PathLike, File, mmap.mmap)) or callable(getattr(content, "read", None)):
            self._file = content
        elif hasattr(content, "__iter__") or hasattr(content, "__aiter__"):
            self._iterator = content
        else:
            raise TypeError(f"content must be bytes, str, a file or an iterable of bytes, not {type(content).__name__}")

    def _replace(self, content: Any) -> None:
        self._is_counted = False
        for layer in (self._file, self._blocks, self._iterator):
            if layer is not None:
                self._inner.append(layer)
        self._forget()
        self._taken = False
        self._put(content)

    def _forget(self) -> None:
        self._bytes = self._file = self._iterator = self._blocks = None

    def _produced(self) -> Any:
        """The content, to be read. RuntimeError: it was read before."""
        self._refuse_taken()
        if self._bytes is not None:
            return _layers((self._bytes,), self._let_go())
        content = self._iterator if self._file is None else _blocks(self._file)
        return _layers(content, self._let_go())

    def _let_go(self) -> list[Any]:
        """Whoever reads the content closes it, with all that is within."""
        self._taken = self._bytes is None and not isinstance(self._file, os.PathLike)
        inner, self._inner = self._inner, []
        return [*inner, *(layer for layer in (self._file, self._blocks) if layer is not None)]

    def _unread(self) -> Any:
        """What nobody reads any more, to be closed."""
        content = () if self._iterator is None or self._taken else self._iterator
        return _layers(content, self._inner if self._taken else self._let_go())

    def close(self) -> None:
        """Close the content, if it is still to be read; again does nothing. Who sends the response does so too."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
        Chunks(self._unread()).close()

    async def aclose(self) -> None:
        """The same, in an event loop, for asynchronous content."""
        unread = self._unread()
        if unread != ():
            await AsyncChunks(unread).aclose()

    # ---- Sending ----

    @overload
    def __call__(self, environ: Environ, start_response: StartResponse, /) -> Iterable[bytes]: ...
    @overload
    def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Awaitable[None]: ...
    def __call__(self, *call: Any) -> Any:
        """Send it, as PEP 3333 or as ASGI has it. Changes of fields afterwards come too late."""
        return self._by_asgi(*call) if len(call) == 3 else self._by_wsgi(*call)

    def _by_wsgi(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = Request.from_environ(environ, has_body=False)
        # Before anything is closed, for another call may be reading.
        self._refuse_taken()
        try:
            made = _Sent(self, request, False, self.close)
            if made.answer is not None:
                return send(made.answer, environ, start_response, environ.get("wsgi.file_wrapper"))
            if made.content is not None:
                self._reading = Chunks(made.content, made.length)
            start_response(reason(made.status), made.fields)
        except BaseException:
            self.close()
            raise
        if self._reading is not None:
            return _Body(self._reading, self, environ)
        self.close()
        # Not an empty list, which wsgiref would call Content-Length: 0.
        return iter((b"",)) if made.whole is None else [made.whole]

    async def _by_asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request.from_scope(scope, has_body=False)
        has_trailers = self.trailers is not None and _TRAILERS in (scope.get("extensions") or ())
        self._refuse_taken()
        try:
            made = _Sent(self, request, has_trailers, None)
            if made.answer is not None:
                await give(made.answer, scope, receive, send)
                return
            start: Message = {"type": _START, "status": made.status, "headers": _encoded(made.fields)}
            if made.content is None:
                await send(start)
                await send({"type": _CONTENT, "body": made.whole or b"", "more_body": False})
                return
            if has_trailers:
                start["trailers"] = True
            chunks = AsyncChunks(made.content, made.length)
            await _until_left(functools.partial(self._stream, chunks, start, send), receive)
        finally:
            await self.aclose()

    async def _stream(self, chunks: AsyncChunks, start: Message, send: Send, ends: Callable[[], object]) -> None:
        """Send head and content. ends: is called when there is no more of it."""
        held: Message | None = start
        try:
            if self._streaming:
                held = None
                await send(start)
                # Servers may keep the head until there is content.
                await send({"type": _CONTENT, "body": b"", "more_body": True})
            async for chunk in chunks:
                if held is not None:
                    held = None
                    await send(start)
                await send({"type": _CONTENT, "body": chunk, "more_body": True})
        finally:
            await chunks.aclose()
        ends()
        if held is not None:
            await send(held)
        await send({"type": _CONTENT, "body": b"", "more_body": False})
        if "trailers" in start and self.trailers is not None:
            await send({"type": _TRAILERS, "headers": _encoded(self.trailers.items()), "more_trailers": False})


class _Watched:
    """Work that is cancelled when the client leaves, up to its end."""

    def __init__(self) -> None:
        #: What cancels it; None: it is at its end. Servers say that the client has left while they take the last of
        #: it, and who interrupts Hypercorn then keeps it from closing the connection.
        self.cancel: Callable[[], object] | None = None
        self.left = False

    def ends(self) -> None:
        """Nothing is to be cancelled any more."""
        self.cancel = None

    def leave(self) -> None:
        """The client has left."""
        if self.cancel is not None:
            self.left = True
            self.cancel()


async def _until_left(work: Callable[[Callable[[], object]], Awaitable[None]], receive: Receive) -> None:
    """Do it, unless the client leaves: then it is cancelled, and that is no error."""
    trio = trio_here()
    if trio is not None:
        await _until_left_in_trio(work, receive, trio)
        return
    watched = _Watched()
    working = asyncio.ensure_future(work(watched.ends))
    watched.cancel = working.cancel
    watching = asyncio.ensure_future(_watch(receive, watched.leave))
    try:
        await asyncio.wait({working})
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait({working, watching})
        error = None if working.cancelled() else working.exception()
    if error is not None:
        raise error
    if not watched.left:
        # It may have been cancelled from within.
        working.result()


async def _until_left_in_trio(
    work: Callable[[Callable[[], object]], Awaitable[None]], receive: Receive, trio: Any
) -> None:
    watched = _Watched()
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        watched.cancel = nursery.cancel_scope.cancel
        nursery.start_soon(_watch, receive, watched.leave)
        try:
            await work(watched.ends)
        except Exception as error:
            failed = error  # and no group of exceptions
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


class _Sent:
    """What a response is to a request: an answer of the library's, or a head and what is still to be produced."""

    def __init__(
        self, response: Response, request: Request, has_trailers: bool, close: Callable[[], object] | None
    ) -> None:
        self.answer: Answer | None = None
        self.status = response.status
        self.fields = list(response.headers.items())
        #: None: there is none, for the request or the status doesn't want it. The response's own is to be closed then.
        self.content: Any = None
        #: How much of it.
        self.length: int | None = None
        #: The content, if it is bytes that need no decision.
        self.whole: bytes | None = None
        self._response = response
        self._request = request
        self._rows = response.headers.rows()
        #: What closes content that isn't read, unless the caller does that himself.
        self._close = close
        if not is_sound(self.status, self.fields):
            raise bad_field("the response has a field twice that may be there once, or one that is malformed")
        self._decide(content_length(self.fields), has_trailers)

    def _decide(self, announced: int | None, has_trailers: bool) -> None:
        response, request = self._response, self._request
        is_unknown = announced is None and response.headers.is_frozen("Content-Length")
        may_be_less_ = may_be_less(request.method, self.status, self.fields)
        if not (is_unknown or has_trailers or self._is_only_a_head(announced)):
            if self._by_the_library(may_be_less_, announced):
                return
            if self._by_seeking(may_be_less_, announced):
                return
        if may_be_less_ and self._without_content():
            return
        if request.method != "HEAD" and self.status not in (204, 304):
            self.content, self.length = response._produced(), announced

    def _is_only_a_head(self, announced: int | None) -> bool:
        """Whether the content that belongs to the answer to a HEAD isn't there."""
        return self._request.method == "HEAD" and self._response._bytes == b"" and bool(announced)

    def _by_the_library(self, may_be_less: bool, announced: int | None) -> bool:
        """Content that is there: bytes or a file."""
        response = self._response
        if response._iterator is not None:
            return False
        close: Callable[[], object] = response.close
        if response._bytes is not None:
            file: Any = response._bytes
            offset, length = 0, len(file)
            may_be_less = may_be_less and has_validator(self.fields)
            if not may_be_less and self.status not in (204, 304):
                self._take_bytes(file, announced)
                return True
        elif isinstance(response._file, os.PathLike):
            file = open_file(response._file, {})
            offset, length = 0, file.size
            closing = contextlib.ExitStack()
            closing.callback(close)
            closing.callback(file.close)
            close = closing.close
        else:
            wrapper = FileWrapper(response._file)
            content = wrapper.content()
            if content is None:
                return False
            # It is closed with the response, which is when it was sent.
            wrapper._close = response.close
            close = wrapper.close
            file, offset, length = content
        try:
            self._check_frozen(announced, length)
            self.answer = self._answer(file, offset, length, close, may_be_less)
        except BaseException:
            close()
            raise
        return True

    def _take_bytes(self, content: bytes, announced: int | None) -> None:
        """Content that is sent as it is: the library would say no more than its length."""
        self._check_frozen(announced, len(content))
        if announced != len(content):
            self.fields = [(name, value) for name, value in self.fields if name.lower() != "content-length"]
            self.fields.append(("Content-Length", str(len(content))))
        if self._request.method != "HEAD":
            self.whole = content

    def _check_frozen(self, announced: int | None, length: int) -> None:
        """A Content-Length that is frozen can't be corrected."""
        if announced is not None and announced != length and self._response.headers.is_frozen("Content-Length"):
            raise excess(announced) if announced < length else truncated(announced, length)

    def _answer(self, file: Any, offset: int, length: int, close: Callable[[], object], may_be_less: bool) -> Answer:
        if may_be_less:
            return conditional(self._request, self._rows, file, offset, length, close, {})
        return as_given(self._request, self.status, self._rows, file, offset, length, close)

    def _without_content(self) -> bool:
        """304 or 412, which the validators are enough for."""
        # A validator that is frozen as absent is a row, too, but no field.
        if has_validator(self.fields):
            self.answer = without_content(self._request, self._rows, self._close, {})
        return self.answer is not None

    def _by_seeking(self, may_be_less: bool, announced: int | None) -> bool:
        """A range of something that isn't a file, but knows how to get to one place of many."""
        file = self._response._file
        if not may_be_less or announced is None or not has_validator(self.fields) or not _is_seekable(file):
            return False
        accepts = self._response.headers.get("Accept-Ranges", "").strip().lower() != "none"
        request = self._request if accepts else self._request._unranged()
        exchange = _Exchange(request, _Produced(announced, True), headers=self._rows, head=HeadForm.CGI)
        try:
            decision = exchange.decide()
            seed, now = int(exchange.c.seed), int(exchange.c.now)
        finally:
            exchange.close()
        self.status, self.fields = decision.status, list(decision.fields)
        if decision.body_length:
            how = {"length": announced, "headers": self._rows, "seed": seed, "now": now}
            blocks = _parts(file, file.tell(), request, how)
            self.content, self.length = _layers(blocks, self._response._let_go()), decision.body_length
        return True


def _is_seekable(file: Any) -> bool:
    if not all(hasattr(file, name) for name in ("read", "seek", "tell")):
        return False
    return bool(file.seekable()) if hasattr(file, "seekable") else True


def _blocks(file: Any) -> Iterator[bytes]:
    """All of a file from its position on."""
    if isinstance(file, os.PathLike):
        with open(file, "rb") as opened:
            yield from _blocks(opened)
    elif isinstance(file, File):
        offset = 0
        while block := os.pread(file.fileno(), CHUNK, offset):
            offset += len(block)
            yield block
    elif hasattr(file, "read"):
        # What there is: a pipe's read() waits for more.
        read = getattr(file, "read1", file.read)
        while block := read(CHUNK):
            yield block


def _parts(file: Any, start: int, request: Request, how: dict[str, Any]) -> Iterator[bytes]:
    """What a request wants of it, and around several parts what frames them."""
    collector = _Collector()
    stream = Stream(collector, request, seekable=True, head=HeadForm.NONE, **how)
    with contextlib.closing(stream):
        while True:
            offset, length = stream.next()
            if not length:
                break
            file.seek(start + offset)
            while length > 0 and (block := file.read(min(CHUNK, length))):
                length -= len(block)
                stream.write(block)
                yield collector.take()
            if length > 0:
                return  # who counts notices


# ---- WSGI ----


class _Body:
    """What a WSGI server iterates over. It looks for the client before each piece."""

    def __init__(self, chunks: Chunks, response: Response, environ: Environ) -> None:
        self._chunks = chunks
        self._response = response
        self._has_left = _watcher(environ)
        # What servers know as nothing to speak of, and middleware as content that isn't complete.
        self._gone: Exception = BrokenPipeError(errno.EPIPE, "the client has left")
        if "waitress.client_disconnected" in environ and "waitress.channel" in sys.modules:
            self._gone = sys.modules["waitress.channel"].ClientDisconnected()
        # gunicorn and wsgiref send the head when they get anything.
        self._is_first = response.streaming

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        if self._is_first:
            self._is_first = False
            return b""
        chunk = next(self._chunks)
        if self._has_left():
            self.close()
            raise self._gone
        return chunk

    def close(self) -> None:
        """PEP 3333's."""
        self._chunks.close()
        self._response.close()


def _watcher(environ: Environ) -> Callable[[], bool]:
    """What tells whether the client has left, or at least has ended its side of the connection."""
    disconnected = environ.get("waitress.client_disconnected")
    fd = _descriptor(environ)
    if fd < 0 or not hasattr(select, "POLLRDHUP"):
        return disconnected or (lambda: False)
    poll = _poll()()
    poll.register(fd, select.POLLRDHUP)
    return lambda: bool(poll.poll(0))


def _descriptor(environ: Environ) -> int:
    """That of the connection; -1: nobody knows."""
    for key in ("gunicorn.socket", "sendgate.socket", "werkzeug.socket"):
        if hasattr(environ.get(key), "fileno"):
            return int(environ[key].fileno())
    # wsgiref's is the connection itself, cheroot's and gevent's read from it.
    stream: Any = environ.get("wsgi.input")
    for _ in range(4):
        raw = getattr(stream, "raw", None)
        if isinstance(raw, socket.SocketIO):
            return raw.fileno()
        stream = getattr(stream, "rfile", None)
    return -1


def _poll() -> Any:
    """select.poll. gevent's own puts another in its place, which doesn't know POLLRDHUP."""
    monkey = sys.modules.get("gevent.monkey")
    return select.poll if monkey is None else monkey.get_original("select", "poll")
