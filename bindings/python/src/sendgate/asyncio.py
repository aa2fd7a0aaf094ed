"""``respond`` for asyncio: files leave in the background, by sendfile, from any loop, uvloop's too.

    import sendgate.asyncio
    async def handle(reader, writer):
        request = sendgate.Request.from_head(await reader.readuntil(b"\\r\\n\\r\\n"))
        await sendgate.asyncio.respond(writer, request, "file.bin")

Each event loop has a ``Sender`` of its own, made when it is first needed. While it has something in flight the loop
watches the sender's descriptor, and nothing else: the sender has a duplicate of the socket, so nothing of the
transport's is registered twice, and no thread but the loop's runs Python.

A TLS connection is written to through its transport, with the file read in a worker thread: that is correct, but
copies.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import fcntl
import math
import os
import socket
import ssl
import sys
import termios
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sendgate._native import lib

from ._core import _TLS_RECORD, Request, Transfer, _error, _Exchange, _int, _milliseconds, _Sink
from ._errors import SendgateError
from ._sender import Sender
from ._types import Completion, Connection, FileArg, Result, Socket

if TYPE_CHECKING:
    from typing_extensions import TypeAlias, Unpack

    from ._types import ExchangeArguments

__all__ = ["aclose", "respond"]

#: What ``respond`` answers on.
Target: TypeAlias = "Socket | asyncio.BaseTransport | asyncio.StreamWriter"
_T = TypeVar("_T")

#: In flight on a loop's own sender. The server has limited its connections already, and where it hasn't,
#: descriptors run out first.
_MAX_IN_FLIGHT = 65536

#: Bytes that are read at once where the bytes go through Python.
_CHUNK = 64 << 10


async def respond(
    sock: Target,
    request: Request | None,
    file: FileArg,
    *,
    timeout: float = 60.0,
    total_timeout: float | None = None,
    min_rate: int = 0,
    sender: Sender | None = None,
    **arguments: Unpack[ExchangeArguments],
) -> Result:
    """Answer a request on a connection with a file, and return when the response is complete.

    sock: an asyncio transport, a StreamWriter, or a socket or descriptor that no transport has. What was written to a
    transport before goes first; its limits and protocol are as before afterwards. Until this returns, nothing else
    may be written to the connection.
    sender: one of yours, in place of the loop's own. What it reports is taken here, so it is for this loop alone, and
    nobody else takes from it; close it when the responses have ended.

    All else, and what it raises, is as in ``sendgate.respond``. A path is opened, and a file fstat'ed, in the loop's
    thread. If max_in_flight is reached, this waits. If the transport is closed meanwhile, the response still goes on
    to its end: cancel the task to end it.

    When the task is cancelled, the response is cut short, and CancelledError is raised as soon as no further byte is
    sent and memory is no longer used. Then close the connection (with TLS, by abort()), unless you know that nothing
    was sent.
    """
    pace = _Pace(timeout, total_timeout, min_rate)
    return await _respond(sock, lambda: _Exchange(request, file, **arguments), pace, sender)


async def _respond(sock: Target, make: Callable[[], _Exchange], pace: _Pace, sender: Sender | None = None) -> Result:
    """``respond``, with what make returns. It is called once, when it is its turn, and what it returns is closed."""
    transport: Any = getattr(sock, "transport", sock)
    if not hasattr(transport, "get_extra_info"):
        if isinstance(sock, ssl.SSLSocket):
            with _TlsSocket(sock, pace) as tls:
                return await _copy(tls.write, make)
        return await _submit(sender, _to(sock, make, pace))
    if not hasattr(transport, "write") or hasattr(transport, "sendto"):
        raise TypeError(f"a transport with a stream to write to is needed, not {type(transport).__name__}")
    try:
        connection = _Transport(transport, pace)
        # What is written past a transport that encrypts goes out in the clear.
        if connection.sock is None or connection.encrypts:
            return await _copy(connection.write, make)
        await connection.drain()
        result = await _submit(sender, _to(connection, make, pace))
    except _Cut as cut:
        raise cut.error(_NOTHING) from cut.__cause__
    return result._replace(connection=Connection.CLOSE) if connection.is_closing() else result


async def aclose(timeout: float = 0.0) -> None:
    """Close the running loop's own sender: wait that many seconds for what is in flight, and cancel the rest.

    For the end of a server. Without it the sender ends when its loop is collected. ``respond`` makes a new one.
    """
    loop = asyncio.get_running_loop()
    sender = _own.pop(loop, None)
    if sender is not None:
        # What ends meanwhile is taken in this thread, as always.
        await loop.run_in_executor(None, sender.stop, timeout)
        hub = _hub(loop, sender)
        while hub.in_flight:
            hub.take(sender)
        sender.close()


# ---- Sockets: a sender sends ----

#: The senders that nobody gave, by their loop.
_own: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Sender] = weakref.WeakKeyDictionary()
#: What is known of each sender that is used here.
_hubs: weakref.WeakKeyDictionary[Sender, _Hub] = weakref.WeakKeyDictionary()


def _forget() -> None:
    """A child made by fork has threads and descriptors of its own, once it needs them."""
    _own.clear()
    _hubs.clear()


os.register_at_fork(after_in_child=_forget)


class _Pending:
    """A response in flight, and the task that waits for it. The token of its submit."""

    __slots__ = ("completion", "hub", "waiter")

    def __init__(self, hub: _Hub) -> None:
        self.hub = hub
        self.completion: Completion | None = None
        self.waiter: asyncio.Future[None] | None = None

    def ended(self, completion: Completion) -> None:
        """The loop's thread has taken it."""
        self.completion = completion
        if self.waiter is not None:
            _set(self.waiter)


class _Hub:
    """What a loop knows of a sender. It refers to neither, so that both go when nobody else needs them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sender: Sender) -> None:
        self.loop = weakref.ref(loop)
        self.in_flight = 0
        #: How many more may be submitted, and those who wait to be among them. A Semaphore refers to its loop.
        self._places = sender.max_in_flight
        self._queue: collections.deque[asyncio.Future[None]] = collections.deque()

    async def __aenter__(self) -> None:
        """Wait for one's turn, where the sender would say BusyError."""
        if self._places > 0:
            self._places -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except BaseException:
            if turn in self._queue:
                self._queue.remove(turn)
            elif not turn.cancelled():
                # It was one's turn, and the task was cancelled at the same time.
                await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        """Give one's place to the next, if there is one: so nobody who comes later gets it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._places += 1

    def take(self, sender: Sender) -> None:
        """Wake those whose responses have ended. Called by the loop when there are some."""
        for completion in sender.take():
            pending = completion.token
            # Another hub's tasks were destroyed with their loop.
            if isinstance(pending, _Pending) and pending.hub is self:
                self.in_flight -= 1
                self._tell(pending, completion)
        loop = self.loop()
        if self.in_flight == 0 and loop is not None:
            loop.remove_reader(sender.fileno())

    def _tell(self, pending: _Pending, completion: Completion) -> None:
        """Say so. What goes wrong in one of a server's own methods is nothing to the others."""
        try:
            pending.ended(completion)
        except Exception as error:
            loop = self.loop()
            if loop is not None:
                loop.call_exception_handler({"message": "Error at the end of a response", "exception": error})

    def watch(self, loop: asyncio.AbstractEventLoop, sender: Sender) -> None:
        """One more is in flight."""
        self.in_flight += 1
        if self.in_flight == 1:
            loop.add_reader(sender.fileno(), self.take, sender)

    async def ended(self, sender: Sender, pending: _Pending, id: int) -> Completion:
        """Wait until a response has ended; when the task is cancelled, until it has ended because of that."""
        loop = asyncio.get_running_loop()
        cancelled = None
        try:
            self.watch(loop, sender)
            while pending.completion is None:
                pending.waiter = loop.create_future()
                try:
                    await pending.waiter
                except asyncio.CancelledError as error:
                    # Waiting on is not for long: cancelling doesn't depend on the peer.
                    if cancelled is None:
                        sender.cancel(id)
                    cancelled = error
            if cancelled is not None:
                raise cancelled
            return pending.completion
        finally:
            # An exception refers to this frame.
            del cancelled
            if pending.completion is None:
                # The task is being destroyed.
                sender.cancel(id)


def _hub(loop: asyncio.AbstractEventLoop, sender: Sender) -> _Hub:
    """The sender's hub. RuntimeError if another loop has it."""
    hub = _hubs.get(sender)
    if hub is not None:
        other = hub.loop()
        if other is loop:
            return hub
        if other is not None and not other.is_closed():
            raise RuntimeError("the sender is used by another event loop")
    hub = _hubs[sender] = _Hub(loop, sender)
    return hub


def _own_sender(loop: asyncio.AbstractEventLoop) -> Sender:
    """The loop's own sender."""
    sender = _own.get(loop)
    if sender is None:
        sender = _own[loop] = Sender(max_in_flight=_MAX_IN_FLIGHT)
    return sender


async def _submit(sender: Sender | None, submit: Callable[[Sender, _Pending], tuple[int, Result]]) -> Result:
    """The answer on a socket: now, if it takes no waiting, or in the background.

    submit: is called when it is its turn, and does what Sender._submit does. sender: None is the loop's own.
    """
    loop = asyncio.get_running_loop()
    if sender is None:
        sender = _own_sender(loop)
    hub = _hub(loop, sender)
    async with hub:
        pending = _Pending(hub)
        id, result = submit(sender, pending)
        if id == 0:
            return result
        completion = await hub.ended(sender, pending, id)
    if completion.error is not None:
        raise completion.error
    return completion.result


def _to(sock: Any, make: Callable[[], _Exchange], pace: _Pace) -> Callable[[Sender, _Pending], tuple[int, Result]]:
    """What ``_submit`` calls, for what make returns."""

    def submit(sender: Sender, pending: _Pending) -> tuple[int, Result]:
        limits = _milliseconds(pace.idle, "timeout"), _milliseconds(pace.rest(), "total_timeout"), pace.min_rate
        target = sock.open_socket() if isinstance(sock, _Transport) else sock
        sink = sender._sink(_Sink(target, *limits), try_now=True)
        return sender._submit(make(), sink, pending)

    return submit


# ---- What Python writes ----


class _Cut(Exception):
    """Why a response ends early. Its cause is what a socket said, if it said something."""

    def __init__(self, status: int) -> None:
        self.status = status

    def error(self, result: Result) -> SendgateError:
        """As it is raised, if that is what happened up to then."""
        cause = self.__cause__
        sys_errno = errno.EPIPE if self.status == lib.SENDGATE_ERR_PEER_CLOSED else 0
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):
            sys_errno = cause.errno or sys_errno
        return _error(self.status, sys_errno=sys_errno, result=result._replace(status=self.status))


_NOTHING = Result(0, 0, Connection.UNTOUCHED, 0, 0, 0)


class _Pace:
    """timeout, total_timeout and min_rate, as a sender understands them: src/deadline.rs."""

    def __init__(self, timeout: float, total_timeout: float | None, min_rate: int) -> None:
        _milliseconds(timeout, "timeout")
        _milliseconds(total_timeout, "total_timeout")
        self.idle = timeout
        self.min_rate = _int(min_rate, 0, 2**64 - 1, "min_rate")
        now = time.monotonic()
        self._end = math.inf if total_timeout is None else now + total_timeout
        self._progress = now
        self._taken: int | None = None
        #: When the period began over which the rate is counted, and what was taken then.
        self._period = (now, 0)

    def rest(self) -> float | None:
        """What is left of total_timeout; a moment, if nothing is."""
        return None if self._end == math.inf else max(0.001, self._end - time.monotonic())

    def wait(self, taken: int) -> float:
        """How many seconds to wait before asking again, if the peer has taken so many bytes, counted from anywhere."""
        now = time.monotonic()
        if self._taken is None:
            self._period = (now, taken)
        if self._taken is None or taken > self._taken:
            self._taken, self._progress = taken, now
        until = min(self._progress + self.idle, self._end)
        begun, before = self._period
        if self.min_rate and now >= begun + self.idle:
            if taken - before < self.min_rate * (now - begun):
                raise _Cut(lib.SENDGATE_ERR_TIMEOUT)
            self._period = (now, taken)
        if now >= until:
            raise _Cut(lib.SENDGATE_ERR_TIMEOUT)
        return max(0.001, min(until - now, self.idle / 4))


def _taken(sock: Any, given: int) -> int:
    """Bytes that the peer has taken, counted from anywhere. given: bytes that the kernel has got, for those sockets
    where it only counts what it still holds.
    """
    with contextlib.suppress(OSError, AttributeError):
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        if len(info) == 128:
            # tcpi_bytes_acked, since Linux 4.1.
            return int.from_bytes(info[120:], sys.byteorder)
    with contextlib.suppress(OSError, AttributeError):
        return given - int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return given


class _Relay:
    """Stands in for a transport's protocol, forwards everything to it, and notices when the buffer has been written."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self._changed: asyncio.Future[None] | None = None

    async def change(self, seconds: float) -> None:
        """Wait so long for something to happen."""
        self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._changed}, timeout=seconds)

    def _change(self) -> None:
        if self._changed is not None:
            _set(self._changed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.protocol, name)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.protocol.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._change()
        self.protocol.connection_lost(error)

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self._change()
        self.protocol.resume_writing()

    def eof_received(self) -> bool | None:
        keep_open: bool | None = self.protocol.eof_received()
        return keep_open


class _StreamRelay(_Relay, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.protocol.data_received(data)


class _BufferRelay(_Relay, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint: int) -> Any:
        return self.protocol.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.protocol.buffer_updated(nbytes)


class _Transport:
    """Writes to a transport, and waits for its buffer. Raises _Cut if it is closed, or gets closed."""

    def __init__(self, transport: Any, pace: _Pace) -> None:
        self._transport = transport
        self._pace = pace
        self._written = 0
        self._check()
        self.sock = transport.get_extra_info("socket")
        self.encrypts = any(transport.get_extra_info(name) is not None for name in ("ssl_object", "sslcontext"))

    def is_closing(self) -> bool:
        """Whether it is or gets closed."""
        try:
            self._transport.get_write_buffer_size()
        except AttributeError:
            # A TLS transport of Python 3.10 that has lost its connection, and doesn't say so.
            return True
        return bool(self._transport.is_closing())

    def _check(self) -> None:
        if self.is_closing():
            raise _Cut(lib.SENDGATE_ERR_PEER_CLOSED)

    def open_socket(self) -> Any:
        """The socket, to be used at once: when the transport has closed it, its number may be another client's."""
        self._check()
        return self.sock

    async def write(self, data: memoryview) -> None:
        """Write, and wait until it has been passed on."""
        self._check()
        self._transport.write(data)
        self._written += len(data)
        await self.drain()

    async def drain(self) -> None:
        """Wait until the transport's own buffer is empty."""
        self._check()
        transport = self._transport
        if transport.get_write_buffer_size() == 0:
            return
        protocol = transport.get_protocol()
        buffered = hasattr(protocol, "get_buffer") and not isinstance(protocol, asyncio.Protocol)
        relay = (_BufferRelay if buffered else _StreamRelay)(protocol)
        low, high = transport.get_write_buffer_limits()
        transport.set_protocol(relay)
        try:
            # So resuming is told when it is empty; not only to us, but also to whoever else wants to write there.
            transport.set_write_buffer_limits(high=0)
            while not self.is_closing() and (size := transport.get_write_buffer_size()):
                await relay.change(self._pace.wait(_taken(self.sock, self._written - size)))
        finally:
            if transport.get_protocol() is relay:
                transport.set_protocol(protocol)
            if not self.is_closing() and transport.get_write_buffer_limits() == (0, 0):
                transport.set_write_buffer_limits(high=high, low=low)
        self._check()


class _TlsSocket:
    """Writes to an ssl.SSLSocket. Its send() is called in the loop's thread, as the owner's recv() is."""

    def __init__(self, sock: ssl.SSLSocket, pace: _Pace) -> None:
        self._sock = sock
        self._pace = pace
        self._written = 0

    def __enter__(self) -> _TlsSocket:
        self._before = self._sock.gettimeout()
        # Waited on in its place, so that the owner's callbacks stay.
        self._fd = os.dup(self._sock.fileno())
        self._sock.settimeout(0.0)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        if self._sock.fileno() >= 0:
            self._sock.settimeout(self._before)

    async def write(self, data: memoryview) -> None:
        """Send all of it."""
        while data:
            try:
                # After it had to wait the same bytes again, as OpenSSL wants it.
                count = self._sock.send(data[:_TLS_RECORD])
            except ssl.SSLWantWriteError:
                await self._wait("writer")
            except ssl.SSLWantReadError:
                await self._wait("reader")
            except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
                raise _Cut(lib.SENDGATE_ERR_PEER_CLOSED) from error
            except OSError as error:
                raise _Cut(lib.SENDGATE_ERR_IO) from error
            else:
                self._written += count
                data = data[count:]

    async def _wait(self, what: str) -> None:
        """Until the socket is ready for "reader" or "writer", or it is time to look at the limits again."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        seconds = self._pace.wait(_taken(self._sock, self._written))
        getattr(loop, f"add_{what}")(self._fd, _set, ready)
        try:
            await asyncio.wait({ready}, timeout=seconds)
        finally:
            getattr(loop, f"remove_{what}")(self._fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _copy(write: Callable[[memoryview], Awaitable[None]], make: Callable[[], _Exchange]) -> Result:
    """The answer in pieces, for a connection that only Python can write to."""
    with Transfer() as transfer:
        transfer._begin(None, make())
        while True:
            # A new one each time: whoever it is given to may keep it.
            buffer = bytearray(_CHUNK)
            count = await _in_thread(transfer.pull, buffer)
            if count == 0:
                return transfer.result
            try:
                await write(memoryview(buffer)[:count])
            except _Cut as cut:
                raise cut.error(transfer.result._replace(connection=Connection.BROKEN)) from cut.__cause__


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call it in a worker thread. If the task is cancelled, wait for it still: it uses what is the caller's."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    cancelled = None
    try:
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            # Looked at, or the loop would complain that nobody did.
            future.exception()
            raise cancelled
        return future.result()
    finally:
        del cancelled
