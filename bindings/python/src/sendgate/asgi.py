"""ASGI 3: files, buffers, conditions and ranges for any application on any server.

    application = sendgate.asgi.Files("static")                             # an application that serves a folder
    await sendgate.asgi.FileResponse("file.bin")(scope, receive, send)      # an answer of yours
    application = sendgate.asgi.Conditional(application)                    # ranges of what yours sends by pathsend

All of them work on every ASGI server. On those of this package (``sendgate.uvicorn``) the library sends the content
by itself, by sendfile. Elsewhere it is read, in the background unless it is in the page cache: the extensions of other
servers send the wrong bytes on some event loops, or open a path that leads to another file by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from ._answer import CHUNK, Answer
from ._core import Request
from ._site import Mount, content_type
from .asyncio import _in_thread

if TYPE_CHECKING:
    from typing_extensions import TypeAlias, Unpack

    from ._site import SiteArguments
    from ._types import ExchangeArguments, FileArg

    Scope: TypeAlias = MutableMapping[str, Any]
    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["FileResponse", "Files"]

PATHSEND = "http.response.pathsend"
#: The extension of this package's servers: the path of a pathsend may be a Body.
BODY = "sendgate.body"


class Body(str):
    """The path of a pathsend: what is left to send of an answer that was begun, all parts of a multipart included.

    Middleware passes it on like any other path. Whoever gets it in the end sends the answer, and closes it; if it
    gets lost on the way, so is the answer.
    """

    answer: Answer

    def __new__(cls, answer: Answer) -> Body:
        """For an answer with content."""
        fileno = getattr(answer.file, "fileno", None)
        self = super().__new__(cls, "" if fileno is None else f"/proc/self/fd/{fileno()}")
        self.answer = answer
        return self

    def __del__(self) -> None:
        self.answer.close()


async def give(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an answer to the scope's request, and close it."""
    try:
        answer.begin()
        decision = answer.decision
        assert decision is not None
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in decision.fields]
        await send({"type": "http.response.start", "status": decision.status, "headers": headers})
        if decision.body_length == 0:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif BODY in (scope.get("extensions") or ()):
            # From here on it is the body's: a middleware may pass on what it is sent when this is over.
            body, answer = Body(answer), None  # type: ignore[assignment]
            await send({"type": PATHSEND, "path": body})
        else:
            await _read(answer, decision.body_length, receive, send)
    finally:
        if answer is not None:
            answer.close()


# ---- Servers that only take bytes ----


async def _read(answer: Answer, length: int, receive: Receive, send: Send) -> None:
    """Send an answer's content in blocks. A client that leaves ends it."""
    block = _cached(answer, length)
    if block is not None:
        await send({"type": "http.response.body", "body": block, "more_body": False})
    elif _in_trio():
        await _read_in_trio(answer, length, receive, send)
    else:
        watch = asyncio.ensure_future(_gone(receive))
        try:
            await _blocks(answer, length, send, lambda: _in_thread(next, answer), watch.done)
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await watch


async def _read_in_trio(answer: Answer, length: int, receive: Receive, send: Send) -> None:
    """The same on trio, which Hypercorn can run on."""
    import trio

    left = trio.Event()

    async def watch() -> None:
        await _gone(receive)
        left.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await _blocks(answer, length, send, lambda: trio.to_thread.run_sync(next, answer), left.is_set)
        nursery.cancel_scope.cancel()


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
        await send({"type": "http.response.body", "body": block, "more_body": left > 0})


async def _gone(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


def _cached(answer: Answer, length: int) -> bytes | None:
    """All of a small content, if it takes no waiting to read it."""
    span = answer.span() if length <= CHUNK else None
    if span is None:
        return None
    if isinstance(answer.file, (bytes, bytearray, memoryview)):
        with memoryview(answer.file) as view:
            return bytes(view.cast("B")[span[0] : span[0] + length])
    fileno = getattr(answer.file, "fileno", None)
    if fileno is None or not hasattr(os, "RWF_NOWAIT"):
        return None
    block = bytearray(length)
    try:
        # A file system that doesn't know the flag says so (EOPNOTSUPP).
        complete = os.preadv(fileno(), [block], span[0], os.RWF_NOWAIT) == length
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
        self.file = file
        self.arguments = arguments
        if isinstance(file, (str, os.PathLike)) and arguments.get("content_type") is None:
            self.arguments = {**arguments, "content_type": content_type(os.fsdecode(file))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await give(Answer(Request.from_scope(scope, has_body=False), self.file, **self.arguments), scope, receive, send)


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
    # Servers decode the path as UTF-8, and what is none is lost.
    whole = unquote_to_bytes(raw.partition(b"?")[0]) if "\ufffd" in path and raw else path.encode("utf-8")
    place = base.encode("utf-8")
    return (whole[len(place) :] if whole.startswith(place) else whole), place


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
