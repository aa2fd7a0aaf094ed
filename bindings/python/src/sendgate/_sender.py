"""``Sender``: responses sent in the background, on a thread of the library's own.

There are no locks here. What several threads change is a dict, one key at a time, and the C side is made to be
shared. So there is nothing that a fork could leave locked, and the C side looks by itself whether it is in the process
that made it.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from sendgate._native import ffi, lib

from ._core import (
    _EXCHANGE,
    _REP,
    _RESULT,
    _SINK,
    _check,
    _error,
    _Exchange,
    _finish,
    _int,
    _invalid,
    _milliseconds,
    _new,
    _result,
    _Sink,
    _Source,
    _type,
)
from ._types import Completion, FileArg, Result, Socket

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._core import Request
    from ._types import Arguments, ExchangeArguments

_OPTIONS = _type("sendgate_sender_options")
_COMPLETIONS = ffi.typeof("sendgate_completion[]")


class _Submitted:
    """What is kept of a response until it has been taken. Its id() is what the library knows it by."""

    __slots__ = ("memory", "token")

    def __init__(self, token: Any, memory: _Source | None) -> None:
        self.token = token
        #: What is being sent, if it is no file.
        self.memory = memory


class Sender:
    """Sends responses on one thread of its own, any number at once, so that no thread of yours waits for a slow client.

    The thread is the library's and runs no Python: it needs no interpreter lock. ``submit`` gives it a response and
    returns; ``take`` says how those ended that did, and ``fileno`` is readable when there are some::

        with sendgate.Sender() as sender:
            sender.submit(connection, request, "file.bin", token=connection)
            ...when sender is readable...
            for completion in sender.take():
                completion.token.close()

    max_in_flight: responses submitted and not yet taken, 1 to 16777216; one more is BusyError. turn_bytes: what one may
    send before the others have their turn.

    Threads may share it. Make it after a fork: in a child of the process that made it every call raises ForkedError.
    ``close``, leaving the context, or dropping it cancels what is in flight; ``stop`` can wait for it. For asyncio see
    ``sendgate.asyncio``.

    IOFailedError: no descriptors or threads left; it needs four descriptors. UnsupportedError: not on this system.
    """

    _handle: Any = None

    def __init__(self, *, max_in_flight: int = 1024, turn_bytes: int = 524288) -> None:
        options = _new(_OPTIONS)
        options.max_in_flight = _int(max_in_flight, 1, 1 << 24, "max_in_flight")
        options.turn_bytes = _int(turn_bytes, 1, 2**32 - 1, "turn_bytes")
        #: Those in flight by their id().
        self._submitted: dict[int, _Submitted] = {}
        self._max_in_flight = max_in_flight
        out = ffi.new("sendgate_sender **")
        sys_errno = ffi.new("int32_t *")
        status = lib.sendgate_sender_new(options, out, sys_errno)
        if status < 0:
            raise _error(status, sys_errno=sys_errno[0])
        # An argument is held during the call, so it is freed when the last call that uses it is over. It is in no
        # variable, which an exception's traceback would hold.
        self._handle = ffi.gc(out[0], lib.sendgate_sender_free)

    @property
    def max_in_flight(self) -> int:
        """How many responses may be submitted and not yet taken."""
        return self._max_in_flight

    @overload
    def submit(
        self,
        sock: Socket,
        request: Request | None,
        file: FileArg,
        *,
        token: Any = None,
        try_now: Literal[False] = False,
        **arguments: Unpack[Arguments],
    ) -> int: ...

    @overload
    def submit(
        self,
        sock: Socket,
        request: Request | None,
        file: FileArg,
        *,
        token: Any = None,
        try_now: bool,
        **arguments: Unpack[Arguments],
    ) -> int | Result: ...

    def submit(
        self,
        sock: Socket,
        request: Request | None,
        file: FileArg,
        *,
        timeout: float = 60.0,
        total_timeout: float | None = None,
        min_rate: int = 0,
        token: Any = None,
        try_now: bool = False,
        **arguments: Unpack[ExchangeArguments],
    ) -> int | Result:
        """Decide, hand the response over, and return its id. Never waits. The arguments are as in ``respond``.

        The connection gets its next byte from you when ``take`` has reported it, which happens once, with token, which
        is any object. Socket and file may be closed at once, because the library has duplicates of its own; memory is
        kept, and is not to be changed, until then. A blocking socket has O_NONBLOCK meanwhile.

        try_now: send here, without waiting for the socket or the disk, what can be sent so: up to 1 MiB of a file that
        is in the page cache, on a non-blocking socket (16 KiB on any), or 64 KiB of memory, or of a file with copy. If
        that completes it, its Result is returned, and it will not be reported.

        An exception means that it will not be reported. BusyError: max_in_flight are in flight; take some, or answer
        503. TransferCancelledError: the sender was stopped. ForkedError. IOFailedError with EMFILE: no descriptor left.
        TypeError: sock is a TLS socket. Otherwise as for ``respond``.
        """
        limits = _milliseconds(timeout, "timeout"), _milliseconds(total_timeout, "total_timeout"), min_rate
        sink = self._sink(_Sink(sock, *limits), try_now)
        given, result = self._submit(_Exchange(request, file, **arguments), sink, token)
        return given or result

    def _sink(self, sink: _Sink, try_now: bool) -> _Sink:
        """The sink, made fit for a submit."""
        self._use()
        if sink.tls is not None:
            raise TypeError(
                "a sender can't write to an ssl.SSLSocket: call sendgate.respond in a thread, or use sendgate.asyncio"
            )
        if try_now:
            sink.c.flags |= lib.SENDGATE_SINK_TRY_NOW
        return sink

    def _submit(self, exchange: _Exchange, sink: _Sink, token: Any) -> tuple[int, Result]:
        """Hand over what is closed here when the library no longer needs it.

        Returns its id, or 0 if it is complete, and what happened so far.
        """
        memory = exchange.memory
        submitted = _Submitted(token, memory)
        key = id(submitted)
        # Before the call, because another thread may take it before this one runs again.
        self._submitted[key] = submitted
        given = ffi.new("uint64_t *")
        try:
            result = _new(_RESULT)
            name = ffi.cast("void *", key)
            code = lib.sendgate_sender_submit(self._use(), exchange.c, sink.c, name, given, result)
            return int(given[0]), _finish(code, result, None)
        finally:
            # Asked of the library's output, because a signal handler may raise as soon as the call has returned. No id
            # is 0.
            pending = given[0] != 0
            if not pending:
                self._submitted.pop(key, None)
            if not pending or memory is None:
                exchange.close()

    def fileno(self) -> int:
        """Readable while ``take`` has something: for select, poll or an event loop. Don't read or close it."""
        fd = int(lib.sendgate_sender_fd(self._use()))
        if fd < 0:
            raise _error(lib.SENDGATE_ERR_FORKED)
        return fd

    def take(self, limit: int = 256) -> list[Completion]:
        """What has ended since the last call, at most limit, in the order in which it ended. Never waits."""
        # No more than that can have ended, and the array is zeroed each time.
        room = max(1, min(_int(limit, 1, 2**31 - 1, "limit"), len(self._submitted)))
        ended = ffi.new(_COMPLETIONS, room)
        count = ffi.new("size_t *")
        _check(lib.sendgate_sender_take(self._use(), ended, room, count))
        completions = (self._completion(ended[index]) for index in range(count[0]))
        return [completion for completion in completions if completion is not None]

    def _completion(self, c: Any) -> Completion | None:
        """What Python makes of it; None if the sender was closed meanwhile."""
        submitted = self._submitted.pop(int(ffi.cast("uintptr_t", c.token)), None)
        if submitted is None:
            return None
        if submitted.memory is not None:
            submitted.memory.close()
        result = _result(c)
        error = _error(result.status, sys_errno=c.sys_errno, result=result) if result.status < 0 else None
        return Completion(int(c.id), submitted.token, result, error, c.elapsed_ns / 1e9)

    def cancel(self, id: int) -> None:
        """End a response early. Does not wait for it: ``take`` reports it, with TransferCancelledError unless it has
        ended in another way before, and until then some bytes may still be sent. An id that has ended is harmless.
        """
        _check(lib.sendgate_sender_cancel(self._use(), _int(id, 0, 2**64 - 1, "id")))

    def stop(self, timeout: float = 0.0) -> bool:
        """Take no more, wait that many seconds for what is in flight, cancel the rest, and end the thread.

        Returns whether nothing had to be cancelled. What has ended can still be taken. Signal handlers run afterwards.
        """
        if not 0 <= timeout <= 4294967.0:
            raise _invalid(f"timeout must be 0 to 4294967 seconds, not {timeout}")
        status = lib.sendgate_sender_stop(self._use(), math.ceil(timeout * 1000))
        if status == lib.SENDGATE_ERR_TIMEOUT:
            return False
        _check(status)
        return True

    def close(self) -> None:
        """``stop``, and free it, with what was not taken; again does nothing. It closes no socket of yours."""
        handle = self._handle
        if handle is None:
            return
        # A child made by fork is told that the thread isn't there, which is as good.
        lib.sendgate_sender_stop(handle, 0)
        self._handle = None
        # Memory that nobody else has is let go of with it; a submit that is just being refused has its own still.
        self._submitted.clear()

    def _use(self) -> Any:
        """The handle. ValueError if it is closed."""
        handle = self._handle
        if handle is None:
            raise ValueError("the sender is closed")
        return handle

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The thread has to end before the memory that it sends goes away.
        self.close()


class _Reused:
    """Submits one response after the other with structs that are made once. For one thread; nothing is kept of one.

    What differs is for the caller to set. idle_ms: see the sink. It doesn't refer to a sender, so that who keeps one
    for each sender keeps no sender alive.
    """

    __slots__ = ("_id", "exchange", "rep", "result", "sink")

    def __init__(self, idle_ms: int) -> None:
        self.rep = _new(_REP)
        self.exchange = _new(_EXCHANGE)
        self.exchange.rep = self.rep
        self.sink = _new(_SINK)
        self.sink.idle_timeout_ms = idle_ms
        self.sink.flags = lib.SENDGATE_SINK_TRY_NOW
        self._id = ffi.new("uint64_t *")
        #: Of the last one.
        self.result = _new(_RESULT)

    def submit(self, sender: Sender, token: Any) -> tuple[int, int]:
        """What Sender._submit does, with the status code for a result."""
        given = self._id
        submitted = _Submitted(token, None)
        key = id(submitted)
        sender._submitted[key] = submitted
        given[0] = 0
        try:
            name = ffi.cast("void *", key)
            code = lib.sendgate_sender_submit(sender._use(), self.exchange, self.sink, name, given, self.result)
            return given[0], code
        finally:
            if given[0] == 0:
                sender._submitted.pop(key, None)
