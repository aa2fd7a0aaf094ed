"""uvicorn with files that leave by sendfile, in the background, on asyncio and uvloop.

    uvicorn --http sendgate.uvicorn:HttpTools app:app

``HttpTools`` and ``H11`` are uvicorn's own protocols, but that they offer the application two extensions of ASGI, which
frameworks use by themselves: ``http.response.pathsend``, with offset and count ("ranges": True), and
``http.response.zerocopysend``. What an application sends by them, or by ``sendgate.asgi``, the library sends, on a
duplicate of the connection's socket. All other responses are uvicorn's.

TLS connections are not offered the extensions: what is written past uvicorn would leave unencrypted.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from sendgate._native import ffi, lib

from ._adapters import IDLE, check_hooks
from ._core import _error, _finish, _int, _milliseconds, _Sink
from ._errors import PeerClosedError, ResponseTimeoutError, TransferCancelledError
from ._fast_path import FastPath
from ._sender import _Reused
from ._types import Completion, Connection, Rule
from .asgi import BODY, PATHSEND, Body, Files
from .asyncio import _Cut, _hub, _own_sender, _Pace, _Pending, _submit, _Transport

if TYPE_CHECKING:
    from ._sender import Sender
    from ._types import Result
    from ._uvicorn_h11 import H11
    from ._uvicorn_httptools import HttpTools
    from .asgi import Application, Message, Receive, Scope, Send

__all__ = ["H11", "HttpTools"]

START = "http.response.start"
CONTENT = "http.response.body"
ZEROCOPYSEND = "http.response.zerocopysend"

#: Without waiting for the other end of a FIFO.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

#: The versions that have what is used.
WORKS_WITH = "0.36 to 0.54"

#: What is used of uvicorn's classes: methods, and attributes that __init__ sets.
_PROTOCOL = (
    "access_log", "access_logger", "app", "client", "config", "connection_lost", "connection_made", "cycle",
    "data_received", "flow", "handle_websocket_upgrade", "logger", "loop", "on_response_complete", "scheme", "scope",
    "send_400_response", "shutdown", "timeout_keep_alive_task", "transport",
)  # fmt: skip
_CYCLE = ("disconnected", "more_body", "response_complete", "response_started", "scope", "send", "transport")


def __getattr__(name: str) -> Any:
    # Each needs a parser that may not be installed.
    if name == "HttpTools":
        from ._uvicorn_httptools import HttpTools

        return HttpTools
    if name == "H11":
        from ._uvicorn_h11 import H11

        return H11
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def check_uvicorn(protocol: type, cycle: type) -> None:
    """ImportError if these classes of uvicorn's are not the ones that are known here."""
    known = f"sendgate.uvicorn, which works with uvicorn {WORKS_WITH}, not {uvicorn.__version__},"
    check_hooks(known, protocol, *_PROTOCOL)
    check_hooks(known, cycle, *_CYCLE)


class _Length(bytes):
    """Stands for so many bytes of content, and has none itself: what uvicorn makes of it is the framing alone."""

    length: int

    def __len__(self) -> int:
        return self.length


class _Capture:
    """Takes the place of a transport while uvicorn writes what is to leave together with a file."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append


async def _nothing() -> None:
    pass


class _Sender:
    """The send of one request. Not a coroutine function itself, so that what is uvicorn's own costs no more."""

    #: The head of a response that may be a file's: it leaves with what comes next.
    _held: Message | None = None
    #: Of the head that was sent last.
    _status: Any = None
    #: Once there was a file: what is sent at the same time waits until all of it has left.
    _turn: asyncio.Lock | None = None

    def __init__(self, protocol: Protocol, send: Send) -> None:
        self._protocol = protocol
        #: uvicorn's.
        self._send = send

    @property
    def _cycle(self) -> Any:
        """uvicorn's request and response."""
        return self._send.__self__  # type: ignore[attr-defined]

    def __call__(self, message: Message) -> Awaitable[None]:
        """ASGI's send."""
        kind = message["type"]
        if kind == CONTENT and self._held is None and self._turn is None:
            return self._send(message)
        if kind == START and self._held is None:
            headers = message.get("headers", ())
            if type(headers) is not list:
                # It may be a generator.
                headers = list(headers)
                message = {**message, "headers": headers}
            self._status = message.get("status")
            if _may_be_a_file(headers) and not self._cycle.response_started:
                # The application may use the message again.
                self._held = {**message, "headers": headers.copy()}
                return _nothing()
        elif kind in (PATHSEND, ZEROCOPYSEND):
            self._turn = self._turn or asyncio.Lock()
            return self._file(message, self._turn)
        if self._turn is not None:
            return self._other(message, self._turn)
        return self._send(message) if self._held is None else self._both(message)

    async def _both(self, message: Message) -> None:
        """It is no file."""
        held, self._held = self._held, None
        if held is not None:
            await self._send(held)
        await self._send(message)

    async def _other(self, message: Message, turn: asyncio.Lock) -> None:
        """It is no file, but there was one."""
        async with turn:
            await self._both(message)

    async def _file(self, message: Message, turn: asyncio.Lock) -> None:
        """It is one: it leaves together with the head, if that has not left yet."""
        async with turn:
            await self._head_and_file(message)

    async def _head_and_file(self, message: Message) -> None:
        held, self._held = self._held, None
        content = _Content(message)
        try:
            if self._cycle.disconnected:
                return
            more = message["type"] == ZEROCOPYSEND and message.get("more_body", False)
            # Nothing may follow the head then (RFC 9110 6.4.1).
            if self._cycle.scope["method"] == "HEAD" or self._status in (204, 304):
                if held is not None:
                    await self._send(held)
            else:
                if held is not None and not more:
                    content.limit(_announced(held))
                if not await self._content(held, content):
                    return
            # What ends a response is uvicorn's.
            await self._send({"type": CONTENT, "body": b"", "more_body": more})
        finally:
            content.close()

    async def _content(self, held: Message | None, content: _Content) -> bool:
        """Whether the client has got it."""
        protocol, transport = self._protocol, self._cycle.transport
        behind = b""

        def submit(sender: Sender, pending: _Pending) -> tuple[int, Result]:
            nonlocal behind
            if transport.is_closing():
                raise _error(lib.SENDGATE_ERR_PEER_CLOSED)
            # Nothing else runs meanwhile, so that no one else's bytes get between.
            head = b"" if held is None else self._captured(held)
            try:
                framing = self._captured({"type": CONTENT, "body": content.length, "more_body": True})
            except BaseException:
                # More than was announced, say: the head has left by then, as with body events.
                transport.write(head)
                raise
            protocol.sending = True
            behind = framing[-2:]
            return content.submit(protocol, sender, pending, head + framing[:-2])

        try:
            if transport.get_write_buffer_size():
                await _Transport(transport, _Pace(protocol.send_timeout, None, 0)).drain()
            await _submit(None, submit)
        except (_Cut, PeerClosedError, ResponseTimeoutError, TransferCancelledError) as error:
            protocol.logger.debug("A client has left: %s", error)
            self._cut()
            return False
        except BaseException:
            # What uvicorn believes to have left has not, so nothing may follow, whatever the application does now.
            if protocol.sending:
                self._cut()
            raise
        finally:
            protocol.sending = False
        content.sent()
        if behind:
            transport.write(behind)
        return True

    def _cut(self) -> None:
        """End the connection."""
        self._cycle.disconnected = True
        self._cycle.transport.abort()

    def _captured(self, message: Message) -> bytes:
        """What uvicorn would write. It doesn't wait for anything, because nothing is in the transport's buffer."""
        cycle = self._cycle
        transport, cycle.transport = cycle.transport, _Capture()
        try:
            self._send(message).send(None)  # type: ignore[attr-defined]
        except StopIteration:
            return b"".join(cycle.transport.written)
        finally:
            cycle.transport = transport
        raise RuntimeError("uvicorn waits before it writes")


def _may_be_a_file(headers: list[Any]) -> bool:
    """Whether it is the head of a response whose length is known, and that tells one version from another."""
    names = [header[0] for header in headers]
    return b"content-length" in names and (b"etag" in names or b"last-modified" in names or b"accept-ranges" in names)


def _announced(message: Message) -> int:
    """The Content-Length of a head that has one."""
    return next(int(value) for name, value in message["headers"] if name == b"content-length")


class _Content:
    """What a pathsend or zerocopysend sends."""

    def __init__(self, message: Message) -> None:
        self._body: Body | None = None
        self._owned = -1
        self._rewind: Callable[[int], object] | None = None
        self.length = _Length()
        offset: int | None = message.get("offset")
        file: Any
        if message["type"] == PATHSEND:
            file = message["path"]
            if type(file) is Body:
                self._body = file
                self.length.length = file.answer.decision.body_length  # type: ignore[union-attr]
                return
            self._fd = self._owned = os.open(file, _OPEN_FLAGS)
            offset = offset or 0
        else:
            file = message["file"]
            self._fd = file if isinstance(file, int) else file.fileno()
            if offset is None:
                # From where it stands, and it stands behind that afterwards.
                self._rewind = file.seek if hasattr(file, "seek") else lambda place: os.lseek(file, place, os.SEEK_SET)
                offset = file.tell() if hasattr(file, "tell") else os.lseek(file, 0, os.SEEK_CUR)
        try:
            self._measure(offset, message.get("count"))
        except BaseException:
            self.close()
            raise

    def _measure(self, offset: int, count: int | None) -> None:
        """How many bytes there are to send, of those that there are."""
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise _error(lib.SENDGATE_ERR_NOT_REGULAR)
        rest = max(0, status.st_size - _int(offset, 0, 2**63 - 1, "offset"))
        self._offset = offset
        self.length.length = rest if count is None else _int(count, 0, 2**63 - 1, "count")
        if len(self.length) > rest:
            raise _short(rest, len(self.length))

    def limit(self, announced: int) -> None:
        """Send no more than the head says: a file may grow after its length was asked for."""
        if len(self.length) < announced:
            raise _short(len(self.length), announced)
        if self._body is None:
            self.length.length = announced

    def submit(self, protocol: Protocol, sender: Sender, token: _Pending, head: bytes) -> tuple[int, Result]:
        """What Sender._submit does."""
        if self._body is not None:
            exchange = self._body.answer.take()
            exchange.set_head(head)
            if protocol.copy:
                exchange.c.rep.flags |= lib.SENDGATE_REP_COPY
            sink = _Sink(protocol.fd, protocol.idle_ms)
            return sender._submit(exchange, sender._sink(sink, try_now=True), token)
        reused = _reused.get(sender)
        if reused is None:
            reused = _reused[sender] = _Reused(0)
            reused.exchange.head = lib.SENDGATE_HEAD_GIVEN
            reused.rep.kind = lib.SENDGATE_REP_FILE
        exchange, rep, sink = reused.exchange, reused.rep, reused.sink
        text = ffi.from_buffer(head)
        exchange.head_text.ptr, exchange.head_text.len = text, len(head)
        rep.fd, rep.offset, rep.length = self._fd, self._offset, len(self.length)
        rep.flags = lib.SENDGATE_REP_COPY if protocol.copy else 0
        sink.fd, sink.idle_timeout_ms = protocol.fd, protocol.idle_ms
        id, code = reused.submit(sender, token)
        return id, _finish(code, reused.result, None)

    def sent(self) -> None:
        """All of it has left."""
        if self._rewind is not None:
            self._rewind(self._offset + len(self.length))

    def close(self) -> None:
        """It was sent, or will not be."""
        owned, self._owned = self._owned, -1
        if owned >= 0:
            os.close(owned)
        if self._body is not None:
            self._body.answer.close()


def _short(there: int, announced: int) -> RuntimeError:
    return RuntimeError(f"the file has {there} bytes to send, but {announced} were announced: it became shorter")


#: What submits files, by sender.
_reused: WeakKeyDictionary[Sender, _Reused] = WeakKeyDictionary()


_WITHOUT_ZEROCOPYSEND: dict[str, dict[str, bool]] = {PATHSEND: {"ranges": True}, BODY: {}}
_EXTENSIONS: dict[str, dict[str, bool]] = {**_WITHOUT_ZEROCOPYSEND, ZEROCOPYSEND: {}}


class _Application:
    """Stands between a connection and its application."""

    __slots__ = ("_application", "_protocol")

    def __init__(self, protocol: Protocol, application: Application) -> None:
        self._protocol = protocol
        self._application = application

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Offer the extensions. Not a coroutine function itself, so that it costs no more than it must."""
        offers, modules = self._protocol.zerocopysend, sys.modules
        if offers is None:
            offers = "starlette.middleware.base" not in modules and "starlette.middleware.gzip" not in modules
        offered = _EXTENSIONS if offers else _WITHOUT_ZEROCOPYSEND
        scope["extensions"] = {**scope["extensions"], **offered} if "extensions" in scope else offered.copy()
        return self._application(scope, receive, _Sender(self._protocol, send))


class _Answering(_Pending):
    """A response that the protocol has sent without its application, and that isn't complete yet."""

    __slots__ = ("protocol",)

    def __init__(self, hub: Any, protocol: Protocol) -> None:
        super().__init__(hub)
        self.protocol = protocol

    def ended(self, completion: Completion) -> None:
        """The loop's thread has taken it."""
        self.protocol.answered(completion.result.connection)


class Protocol:
    """What the protocols share. The other base is uvicorn's."""

    # Not in the dict: with more than 30 entries each connection would have its own keys (CPython's key-sharing).
    __slots__ = ("_answering", "_fast_path", "_inner", "_last", "fd", "idle_ms", "sending")

    #: Seconds in which a client has to take something, or else its connection is closed. uvicorn has no such limit.
    #: For another one make a subclass.
    send_timeout = IDLE
    #: Whether files go through memory: for file systems on which sendfile doesn't work.
    copy = False
    #: Whether zerocopysend is offered. It always can be sent. None: unless Starlette's middleware is there, which
    #: passes on pathsend, but answers 500 to zerocopysend or drops it; and ServeStatic prefers what is lost then.
    zerocopysend: bool | None = None

    loop: asyncio.AbstractEventLoop
    app: Any
    config: Any
    transport: Any
    flow: Any
    logger: Any
    access_log: bool
    access_logger: Any
    scheme: str
    client: Any

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._inner = self.app
        self._fast_path: FastPath | None = None
        #: Whether a response is being sent without the application, and whether the connection ends with it.
        self._answering = False
        self._last = False
        #: Whether a file of the application's is being sent.
        self.sending = False

    def is_idle(self) -> bool:
        """Whether the next byte begins a request."""
        raise NotImplementedError

    def connection_made(self, transport: Any) -> None:
        """asyncio's."""
        super().connection_made(transport)  # type: ignore[misc]
        sock = transport.get_extra_info("socket")
        if self.scheme == "http" and sock is not None:
            self.app = _Application(self, self._inner)
            self.fd = sock.fileno()
            self.idle_ms = _milliseconds(self.send_timeout, "send_timeout")
            self._fast_path = self._make_fast_path()

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        if self._fast_path is None or not self._is_answered(self._fast_path, data):
            super().data_received(data)  # type: ignore[misc]

    def shutdown(self) -> None:
        """uvicorn's: the server stops."""
        if self._answering:
            self._last = True
        else:
            super().shutdown()  # type: ignore[misc]

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's."""
        super().connection_lost(error)  # type: ignore[misc]
        # So that nothing waits for the garbage collector.
        self.app = self._inner

    def send_400_response(self, message: str) -> None:
        """uvicorn's: what the client sends is no request."""
        if self.sending:
            self._close_behind_file()
        else:
            super().send_400_response(message)  # type: ignore[misc]

    def handle_websocket_upgrade(self, *event: Any) -> None:
        """uvicorn's, which doesn't wait for the response to the request before."""
        if self.sending:
            self._close_behind_file()
        else:
            super().handle_websocket_upgrade(*event)  # type: ignore[misc]

    def _close_behind_file(self) -> None:
        """Close instead of writing what would get between the bytes of a file: that still has a socket of its own."""
        self.transport.close()

    # ---- An application that is sendgate.asgi.Files ----

    def _make_fast_path(self) -> FastPath | None:
        """For an application that is ``Files``. None if something of uvicorn's wants to see each request."""
        config, application = self.config, self._inner
        if type(application) is ProxyHeadersMiddleware:
            application = application.app
        if type(application) is not Files or config.root_path or config.limit_concurrency is not None:
            return None
        sender = _own_sender(self.loop)
        made = _fast_paths.get(config)
        if made is None or made.sender is not sender:
            own = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in config.encoded_headers]
            fields: Any = own if config.date_header else [*own, ("Date", "", Rule.REMOVE)]
            made = FastPath(application._mount, sender, fields=tuple(fields), idle_ms=self.idle_ms, copy=self.copy)
            _fast_paths[config] = made
        return made

    def _is_answered(self, fast_path: FastPath, data: bytes) -> bool:
        """Whether it was a request for a file, which needs no task."""
        if self.transport.get_write_buffer_size() or not self.is_idle():
            return False
        if self.access_log and b"\nx-forwarded-for:" in data.lower():
            # Who asks is for uvicorn to find out.
            return False
        if b" HTTP/1.0\r\n" in data:
            # uvicorn never keeps such a connection, even if it is asked to.
            return False
        hub = _hub(self.loop, fast_path.sender)
        try:
            given = fast_path.answer(self.fd, data, _Answering(hub, self))
        except Exception as error:
            # A mistake in the application's own functions, say: uvicorn's way ends in its log.
            self.logger.debug("Fast path: %s", error)
            return False
        if given is None:
            return False
        id, connection = given
        if self.access_log:
            self._log(data, fast_path.http_status)
        if id == 0:
            self.answered(connection)
        else:
            self._answering = True
            self.flow.pause_reading()
            self._stop_timer()
            hub.watch(self.loop, fast_path.sender)
        return True

    def answered(self, connection: Connection) -> None:
        """The response has ended."""
        self._answering = False
        if connection is Connection.REUSABLE and not self._last:
            self.on_response_complete()
        elif connection in (Connection.REUSABLE, Connection.CLOSE):
            self.transport.close()
            self.on_response_complete()
        else:
            self.transport.abort()

    if TYPE_CHECKING:

        def on_response_complete(self) -> None:
            """uvicorn's."""

    timeout_keep_alive_task: Any

    def _stop_timer(self) -> None:
        """The connection isn't idle any more."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _log(self, data: bytes, status: int) -> None:
        """uvicorn's line in the access log."""
        method, target, version = data[: data.index(b"\r\n")].split(b" ")
        path, _, query = target.partition(b"?")
        scope: Any = {"client": self.client, "path": unquote(path.decode("ascii")), "query_string": query}
        self.access_logger.info(
            '%s - "%s %s HTTP/%s" %d',
            get_client_addr(scope),
            method.decode(),
            get_path_with_query_string(scope),
            version[5:].decode(),
            status,
        )


#: By the server's configuration, which the fields of the answers depend on.
_fast_paths: WeakKeyDictionary[uvicorn.Config, FastPath] = WeakKeyDictionary()
