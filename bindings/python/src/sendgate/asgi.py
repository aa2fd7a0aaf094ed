"""ASGI 3: files, buffers, conditions and ranges for any application on any server.

    application = sendgate.asgi.Files("static")                             # an application that serves a folder
    application = sendgate.asgi.Conditional(application)                    # ranges of what yours sends by pathsend
    await sendgate.asgi.FileResponse("file.bin")(scope, receive, send)      # an answer of yours

All of them work on every ASGI server. On those of this package (``sendgate.uvicorn``) the library sends the content
by itself, by sendfile. Elsewhere it is read, in the background unless it is in the page cache: the extensions of other
servers send the wrong bytes on some event loops, or open a path that leads to another file by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from ._answer import (
    CHUNK,
    SAFE,
    Answer,
    check_names,
    conditional,
    has_validator,
    is_sound,
    is_whole,
    limited,
    may_be_less,
    of_fd,
    of_fd_range,
    of_path,
    open_file,
    own_file,
    without_content,
)
from ._chunks import trio_here
from ._core import File, Request
from ._errors import NotRegularError
from ._site import Mount, content_type
from .asyncio import _in_thread

if TYPE_CHECKING:
    from typing_extensions import TypeAlias, Unpack

    from ._site import SiteArguments
    from ._types import ExchangeArguments, FileArg, Headers, Text

    Scope: TypeAlias = MutableMapping[str, Any]
    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["Conditional", "FileResponse", "Files", "Protocol"]

_START = "http.response.start"
_CONTENT = "http.response.body"
PATHSEND = "http.response.pathsend"
_ZEROCOPYSEND = "http.response.zerocopysend"
#: The extension of this package's servers: the path of a pathsend may be a Body.
BODY = "sendgate.body"

#: Fields of a request that may make the answer shorter than all of the content.
_ASKS_FOR_LESS = frozenset(
    (b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"range")
)

#: Of the arguments of an answer those that still count when a middleware decides once more.
_KEPT = frozenset(("check", "copy", "etag", "last_modified", "max_ranges"))

_log = logging.getLogger(__name__)


class Body(str):
    """The path of a pathsend: what is left to send of an answer that was begun, all parts of a multipart included.

    Middleware passes it on like any other path. Whoever gets it in the end sends the answer, and closes it; if it
    gets lost on the way, so is the answer.
    """

    answer: Answer

    def __new__(cls, answer: Answer) -> Body:
        """For an answer with content."""
        fd = answer.fileno()
        self = super().__new__(cls, "" if fd < 0 else f"/proc/self/fd/{fd}")
        self.answer = answer
        return self

    def __del__(self) -> None:
        self.answer.close()


async def give(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer to the scope's request, and close it."""
    await _deliver(answer, _begin(answer), scope, receive, send)


def _begin(answer: Answer) -> dict[str, Any]:
    """Decide. Returns the head; an exception closes the answer."""
    try:
        _, fields = answer.begin()
    except BaseException:
        answer.close()
        raise
    assert answer.decision is not None
    return {"type": _START, "status": answer.decision.status, "headers": _encoded(fields)}


def _encoded(fields: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Fields as ASGI has them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]


async def _deliver(answer: Answer, start: Message | None, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the head, if it hasn't been sent, and the content of an answer that was begun, and close it."""
    try:
        assert answer.decision is not None
        length = answer.decision.body_length
        if start is not None:
            await send(start)
        if length == 0:
            await send({"type": _CONTENT, "body": b"", "more_body": False})
        elif BODY in (scope.get("extensions") or ()):
            # From here on it is the body's: a middleware may pass on what it is sent when this is over.
            body, answer = Body(answer), None  # type: ignore[assignment]
            await send({"type": PATHSEND, "path": body})
        else:
            await _read(answer, length, receive, send)
    finally:
        if answer is not None:
            answer.close()


# ---- Servers that only take bytes ----


async def _read(answer: Answer, length: int, receive: Receive, send: Send) -> None:
    """Send an answer's content in blocks. A client that leaves ends it."""
    block = _cached(answer, length)
    if block is not None:
        await send({"type": _CONTENT, "body": block, "more_body": False})
    elif trio_here() is not None:
        await _read_in_trio(answer, length, receive, send)
    else:
        left = asyncio.Event()
        watch = asyncio.ensure_future(_watch(receive, left.set))
        try:
            await _blocks(answer, length, send, lambda: _in_thread(next, answer), left.is_set)
        finally:
            watch.cancel()
            await asyncio.wait({watch})


async def _read_in_trio(answer: Answer, length: int, receive: Receive, send: Send) -> None:
    """The same on trio, which Hypercorn can run on."""
    import trio

    left = trio.Event()
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, receive, left.set)
        try:
            await _blocks(answer, length, send, lambda: trio.to_thread.run_sync(next, answer), left.is_set)
        except Exception as error:
            failed = error  # and no group of exceptions
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _blocks(
    answer: Answer,
    left: int,
    send: Send,
    read: Callable[[], Awaitable[bytes]],
    has_left: Callable[[], bool],
) -> None:
    while left > 0 and not has_left():
        block = await read()
        left -= len(block)
        await send({"type": _CONTENT, "body": block, "more_body": left > 0})


async def _watch(receive: Receive, left: Callable[[], object]) -> None:
    """Call left() when the client has left. If nothing is heard of it, by a receive that fails or only repeats itself,
    the content is sent all the same.
    """
    with contextlib.suppress(Exception):
        is_over = False
        while (message := await receive())["type"] != "http.disconnect":
            if is_over:
                return
            is_over = not message.get("more_body", False)
        left()


def _cached(answer: Answer, length: int) -> bytes | None:
    """All of the content, if it is small or bytes anyway, and takes no waiting to read."""
    span = answer.span()
    if span is None:
        return None
    if isinstance(answer.file, bytes):
        return answer.file[span[0] : span[0] + length]
    if length > CHUNK:
        return None
    fd = answer.fileno()
    if fd < 0:
        return next(answer)
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    block = bytearray(length)
    try:
        # A file system that doesn't know the flag says so (EOPNOTSUPP).
        complete = os.preadv(fd, [block], span[0], os.RWF_NOWAIT) == length
    except OSError:
        return None
    return bytes(block) if complete else None


# ---- Applications ----


class FileResponse:
    """An answer with a file, as an ASGI application: conditions and ranges are evaluated when it is called.

        await sendgate.asgi.FileResponse("file.bin", headers=[("Cache-Control", "no-cache")])(scope, receive, send)

    file and arguments: as in ``sendgate.respond``, except that a file with a path gets the content_type of its name if
    there is no other. A path is opened when it is called, which may be done again; anything else is sent once, and
    stays yours to close. OSError, NotRegularError: then nothing was sent.
    """

    def __init__(self, file: FileArg, **arguments: Unpack[ExchangeArguments]) -> None:
        check_names("FileResponse", arguments)
        self.file = file
        self.arguments = arguments
        if isinstance(file, (str, os.PathLike)) and arguments.get("content_type") is None:
            self.arguments = {**arguments, "content_type": content_type(os.fsdecode(file))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await give(Answer(Request.from_scope(scope, has_body=False), self.file, **self.arguments), scope, receive, send)


class Protocol:
    """The three calls of the RSGI proposal for an ASGI application, to be awaited.

        await sendgate.asgi.Protocol(scope, receive, send).response_file_fd(200, [("Content-Type", "a/b")], fd)

    They have the arguments, the ownership and the errors of the methods of ``sendgate.Responder``, but that a client
    that leaves is no error.
    """

    __slots__ = ("_channel", "_request")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._channel = scope, receive, send
        self._request = Request.from_scope(scope, has_body=False)

    async def response_file_fd(self, status: int, headers: Headers, fd: int) -> None:
        """All of a file, as the application says. Takes fd over."""
        await give(of_fd(self._request, status, headers, fd), *self._channel)

    async def response_file_fd_range(self, status: int, headers: Headers, fd: int, start: int, end: int) -> None:
        """The bytes from start to before end. Takes fd over. ValueError unless start < end; TruncatedError: end is
        past the file. Nothing was sent then.
        """
        await give(of_fd_range(self._request, status, headers, fd, start, end), *self._channel)

    async def response_file_conditional(
        self,
        status: int,
        headers: Headers,
        file_path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        if_none_match: Text | None = None,
        if_modified_since: Text | None = None,
        range_header: Text | None = None,
        if_range: Text | None = None,
    ) -> None:
        """200, 206, 304 or 416 by these conditions, from one open and one fstat; 404 if there is no such file."""
        conditions = if_none_match, if_modified_since, range_header, if_range
        await give(of_path(self._request, status, headers, file_path, *conditions), *self._channel)


class Files:
    """An application that serves a folder.

        application = sendgate.asgi.Files("static", prefix="/static/", application=application)

    application: answers what isn't there, every other method than GET and HEAD, WebSockets, and lifespan; without it
    that is 404, 405, and a refusal. All other arguments are those of ``sendgate.wsgi.Files``, but for front.

    Each answer is made of one open and one fstat, in the event loop's thread. OSError: root can't be opened.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        prefix: str = "/",
        application: Application | None = None,
        **site: Unpack[SiteArguments],
    ) -> None:
        self._mount = Mount(root, prefix, site)
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application."""
        if scope["type"] != "http":
            await (self._application or _nothing_but_http)(scope, receive, send)
            return
        path, base = _path(scope)
        found = self._mount.find(
            scope["method"],
            path,
            base,
            scope.get("query_string", b"").decode("latin-1"),
            _field(scope, b"accept-encoding"),
            alone=self._application is None,
        )
        if found is None:
            assert self._application is not None
            await self._application(scope, receive, send)
            return
        await give(found.answer(lambda: Request.from_scope(scope, has_body=False)), scope, receive, send)

    def close(self) -> None:
        """Close the folder. Requests fail afterwards."""
        self._mount.site.close()


def _path(scope: Scope) -> tuple[bytes, bytes]:
    """The bytes of the path beneath the place where the application is mounted, and of that place."""
    path: str = scope["path"]
    base: str = scope.get("root_path", "")
    raw: bytes | None = scope.get("raw_path")
    whole = path.encode("utf-8", "surrogateescape")
    if "\ufffd" in path and raw:
        # Servers decode the path as UTF-8, and what is none is lost.
        given = unquote_to_bytes(raw.partition(b"?")[0])
        # A middleware may have changed the path, and not this one.
        if given.decode("utf-8", "replace") == path:
            whole = given
    place = base.rstrip("/").encode("utf-8", "surrogateescape")
    return (whole[len(place) :] if (whole + b"/").startswith(place + b"/") else whole), place


def _field(scope: Scope, name: bytes) -> str | None:
    """A field of the request, its lines joined."""
    lines = [value for key, value in scope["headers"] if key == name]
    return b", ".join(lines).decode("latin-1") if lines else None


async def _nothing_but_http(scope: Scope, receive: Receive, send: Send) -> None:
    """For a server that starts and stops applications, or a client that asks for a WebSocket."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close"})
    elif scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return


# ---- Middleware ----


class Conditional:
    """Middleware: what an application sends by pathsend is answered 206, 304, 412 or 416 where that is due.

        application = sendgate.asgi.Conditional(application)

    Of GET and HEAD that the application answers with 200 and

    - ``http.response.pathsend`` without offset and count, or an answer of ``sendgate.asgi``: conditions and ranges,
    - all of a file by one ``http.response.zerocopysend``, or all of the content in one ``http.response.body`` and an
      ETag or a Last-Modified: likewise,
    - anything else and an ETag or a Last-Modified: conditions, so 304 and 412.

    Its own ETag, Last-Modified and other fields are sent and count in the decision (RFC 9110 13, 14); a file gets an
    ETag and a Last-Modified if it has none. "Accept-Ranges: none" is obeyed. All else passes through: also what has
    fields that the library would refuse, such as an ETag without its quotes.

    pathsend, with offset and count, is offered to the application on every server, and zerocopysend on none, because
    Starlette's middleware loses it. A path is opened once, before anything is sent: OSError and NotRegularError are the
    application's then, and the server's if it doesn't catch them.
    A head waits for the first event of its content, as ASGI asks of servers; that of text/event-stream doesn't.

    hide: Range and the If- fields are hidden from the application, which then answers in full. For those that evaluate
    them wrongly themselves, such as ServeStatic and Starlette; or a function that says so of a scope.
    max_ranges, etag_inode, etag_ctime, copy, check: as in ``sendgate.respond``.
    """

    def __init__(
        self,
        application: Application,
        *,
        hide: bool | Callable[[Scope], bool] = False,
        **arguments: Unpack[ExchangeArguments],
    ) -> None:
        check_names("Conditional", arguments)
        self.application = application
        self._hide = hide
        self._arguments = arguments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, as ASGI has it."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        extensions = {**(scope.get("extensions") or {}), PATHSEND: {"ranges": True}, BODY: {}}
        # Starlette's middleware loses those messages.
        extensions.pop(_ZEROCOPYSEND, None)
        seen: Scope = {**scope, "extensions": extensions}
        hide = self._hide(scope) if callable(self._hide) else self._hide
        if hide and scope["method"] in SAFE:
            seen["headers"] = [field for field in scope["headers"] if field[0].lower() not in _ASKS_FOR_LESS]
        gateway = _Gateway(scope, receive, send, self._arguments)
        await self.application(seen, receive, gateway)
        await gateway.pass_on()


class _Gateway:
    """The send that an application gets: it holds back the head until it is known what answers."""

    __slots__ = ("_answered", "_arguments", "_begun", "_channel", "_held", "_scope", "_send")

    def __init__(self, scope: Scope, receive: Receive, send: Send, arguments: ExchangeArguments) -> None:
        self._scope = scope
        self._send = send
        self._channel = scope, receive, send
        self._arguments = arguments
        self._held: Message | None = None
        #: Whether a head has been sent, and whether it is that of an answer in the place of the application's.
        self._begun = False
        self._answered = False

    async def __call__(self, message: Message) -> None:
        """ASGI's send."""
        kind = message["type"]
        if self._answered:
            return  # what is left of content that isn't sent
        if kind == _START and self._held is None and not self._begun:
            self._held = {**message, "headers": list(message.get("headers", ()))}
            if _is_stream(self._held):
                await self.pass_on()
        elif kind == PATHSEND:
            await self._pathsend(message)
        elif self._held is None or not await self._instead(message):
            await self.pass_on()
            await self._send(message)

    async def pass_on(self) -> None:
        """Send the head, if it is held back."""
        held, self._held = self._held, None
        if held is not None:
            self._begun = True
            await self._send(held)

    async def _pathsend(self, message: Message) -> None:
        path = message["path"]
        if isinstance(path, Body):
            answer = self._again(path)
            if answer is not None:
                await self._give(answer)
                return
            await self.pass_on()
            if BODY in (self._scope.get("extensions") or ()):
                await self._send(message)
            else:
                await _deliver(path.answer, None, *self._channel)
            return
        fields = _fields(self._held)
        if (message.get("offset") or message.get("count") is not None) and await self._instead(message):
            return
        file = open_file(path, self._arguments)
        try:
            offset, count = min(message.get("offset") or 0, file.size), message.get("count")
            rest = file.size - offset
            length = limited(fields, rest if count is None else min(count, rest), self._report)
            if offset == 0 and count is None and self._may_be_less(fields):
                answer = conditional(self._request(), fields, file, 0, length, file.close, self._arguments)
            else:
                answer = None
        except BaseException:
            file.close()
            raise
        if answer is None:
            await self._give_as_it_is(file, offset, length)
        else:
            await self._give(answer)

    async def _instead(self, message: Message) -> bool:
        """Send another answer, if one is due in the place of what has begun."""
        fields, kind = _fields(self._held), message["type"]
        if kind not in (_CONTENT, PATHSEND, _ZEROCOPYSEND) or not self._may_be_less(fields):
            return False
        answer = None
        if kind == _CONTENT:
            answer = self._of_bytes(message, fields)
        elif kind == _ZEROCOPYSEND:
            answer = self._of_file(message, fields)
        if answer is None:
            answer = without_content(self._request(), fields, None, self._arguments)
        if answer is not None:
            await self._give(answer)
        return answer is not None

    def _of_bytes(self, message: Message, fields: list[tuple[str, str]]) -> Answer | None:
        """If it is all of the content, and something tells one version from another."""
        body = message.get("body", b"")
        if message.get("more_body") or type(body) is not bytes or not has_validator(fields):
            return None
        if not is_whole(self._scope["method"], fields, len(body)):
            return None
        return conditional(self._request(), fields, body, 0, len(body), None, self._arguments)

    def _of_file(self, message: Message, fields: list[tuple[str, str]]) -> Answer | None:
        """If it is all of a file."""
        given: Any = message["file"]
        offset, count = message.get("offset"), message.get("count")
        if message.get("more_body") or (_position(given) if offset is None else offset) != 0:
            return None
        try:
            # The application closes its own as soon as this has returned.
            file = own_file(os.dup(given if isinstance(given, int) else given.fileno()), self._arguments)
        except NotRegularError:
            return None
        try:
            if count not in (None, file.size):
                file.close()
                return None
            length = limited(fields, file.size, self._report)
            return conditional(self._request(), fields, file, 0, length, file.close, self._arguments)
        except BaseException:
            file.close()
            raise

    def _again(self, body: Body) -> Answer | None:
        """The answer that a body belongs to, decided once more, if that makes a difference: it may not have been told
        what was asked for.
        """
        inner = body.answer
        fields = _fields(self._held)
        span = inner.span()
        if span is None or inner.decision is None or inner.decision.ranges or not self._may_be_less(fields):
            return None
        file: Any = inner.file if inner.fileno() < 0 or isinstance(inner.file, File) else inner.fileno()
        kept: Any = {name: value for name, value in inner.arguments.items() if name in _KEPT}
        # Nobody else closes the inner answer as long as there is its body.
        close = functools.partial(_close, body)
        return conditional(self._request(), fields, file, *span, close, {**self._arguments, **kept})

    async def _give(self, answer: Answer) -> None:
        """Send it in the place of the application's."""
        held = self._held
        assert held is not None
        own = [(name, value) for name, value in held["headers"] if name.lower() == b"connection"]
        start = _begin(answer)
        start["headers"] += own
        self._held, self._begun, self._answered = None, True, True
        await _deliver(answer, start, *self._channel)

    async def _give_as_it_is(self, file: File, offset: int, length: int) -> None:
        """Send a file as the application has said: with its head, if that hasn't been sent."""
        held = self._held
        status = 200 if held is None else int(held["status"])
        how = self._arguments
        answer = Answer(
            self._request()._full(),
            file,
            file.close,
            status=status if status in (204, 304) else 200,
            etag=False,
            last_modified=False,
            offset=offset,
            length=length,
            copy=how.get("copy", False),
            check=how.get("check", False),
        )
        _begin(answer)
        # Trailers follow content that is framed by chunks.
        if held is not None and status not in (204, 304) and not held.get("trailers"):
            _announce(held["headers"], length)
        self._held, self._begun = None, True
        await _deliver(answer, held, *self._channel)

    def _may_be_less(self, fields: list[tuple[str, str]]) -> bool:
        held = self._held
        return (
            held is not None
            and not held.get("trailers")
            and may_be_less(self._scope["method"], held["status"], fields)
            and is_sound(held["status"], fields)
        )

    def _request(self) -> Request:
        return Request.from_scope(self._scope, has_body=False)

    def _report(self, text: str) -> None:
        _log.warning("%s: %s", self._scope["path"], text)


def _fields(start: Message | None) -> list[tuple[str, str]]:
    """Those of a head, as text."""
    headers = () if start is None else start["headers"]
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _announce(headers: list[tuple[bytes, bytes]], length: int) -> None:
    """Make that the Content-Length, unless the application frames its content itself."""
    given = {name.lower(): value for name, value in headers}
    if b"transfer-encoding" not in given and given.get(b"content-length") != b"%d" % length:
        headers[:] = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        headers.append((b"content-length", b"%d" % length))


def _is_stream(start: Message) -> bool:
    """Whether its head tells the client something before there is any content."""
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in start["headers"]
    )


def _position(file: Any) -> int:
    """Where a file stands."""
    return int(file.tell()) if hasattr(file, "tell") else os.lseek(file, 0, os.SEEK_CUR)


def _close(body: Body) -> None:
    body.answer.close()
