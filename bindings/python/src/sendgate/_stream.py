"""``Stream``: a response on a socket whose content is produced while it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sendgate._native import ffi, lib

from ._core import (
    _NULL,
    _RESULT,
    Request,
    _check,
    _Collector,
    _error,
    _Exchange,
    _fields,
    _finish,
    _Handle,
    _milliseconds,
    _new,
    _Produced,
    _result,
    _Sink,
    _Unblocked,
)
from ._types import Decision, HeadForm, Result, Step

if TYPE_CHECKING:
    from datetime import datetime

    from typing_extensions import Buffer

    from ._types import Headers, Socket, Text


class Stream(_Handle):
    """A response on a socket whose content is produced while it is sent.

        with sendgate.Stream(connection, request, content_type="text/plain") as stream:
            for piece in pieces:
                stream.write(piece)

    Each piece is on its way to the client when ``write`` returns; the first takes the head with it. Leaving the context
    ends the response; leaving it by an exception cuts it short, so close the connection, which is how the client
    notices.

    length: bytes of all of the content, if that is known: it is announced, and what is written has to be so many.
    Otherwise it is sent in chunks, to HTTP/1.0 up to the end of the connection.
    etag (with its quotes), last_modified (seconds since 1970, or an aware datetime): 304 and 412 are answered by them.
    What is written then is discarded, as for HEAD; ``decision`` tells.
    seekable: any part of the content can be produced, so ranges are answered (206, 416): see ``next``.
    wait: False never waits for the socket; see ``write``. Then call ``end`` before the context is left, which can't
    wait either: BlockingSocketError if it would have to.
    timeout, total_timeout, min_rate: as in ``respond``. What passes between two calls doesn't count for timeout and
    min_rate; total_timeout counts from here to the end. All else is as in ``respond``, too.

    Used by one thread at a time: BusyError otherwise. ``close`` frees it, and closes no socket. Raises what ``respond``
    raises; after an error every further call raises the same.
    """

    _what = "stream"

    def __init__(
        self,
        sock: Socket | _Collector,
        request: Request | None,
        *,
        length: int | None = None,
        seekable: bool = False,
        headers: Headers = (),
        content_type: Text | None = None,
        status: int = 200,
        etag: str | None = None,
        last_modified: float | datetime | None = None,
        max_ranges: int = 64,
        close: bool = False,
        head: HeadForm | bytes = HeadForm.HTTP1,
        wait: bool = True,
        timeout: float = 60.0,
        total_timeout: float | None = None,
        min_rate: int = 0,
        now: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._result = _new(_RESULT)
        self._waits = Step.DONE
        total = _milliseconds(total_timeout, "total_timeout")
        self._sink = _Sink(sock, _milliseconds(timeout, "timeout"), total, min_rate)
        if not wait:
            self._sink.c.flags |= lib.SENDGATE_SINK_TRY_NOW
        if not wait and self._sink.tls is not None and self._sink.tls.sock.gettimeout() != 0.0:
            # Its send() would wait, whatever the descriptor's mode is.
            raise _error(lib.SENDGATE_ERR_BLOCKING)
        exchange = _Exchange(
            request,
            _Produced(length, seekable),
            headers=headers,
            content_type=content_type,
            status=status,
            etag=False if etag is None else etag,
            # A stream has no date of its own that would have to be left out.
            last_modified=True if last_modified is None else last_modified,
            max_ranges=max_ranges,
            close=close,
            head=head,
            now=now,
            seed=seed,
        )
        try:
            #: What the answer is.
            self.decision: Decision = exchange.decide()
            out = ffi.new("sendgate_stream **")
            _check(lib.sendgate_stream_new(out))
            self._handle = ffi.gc(out[0], lib.sendgate_stream_free)
            # It keeps the head, and nothing of what it was made of.
            _check(lib.sendgate_stream_start(self._handle, exchange.c, self._sink.c, _NULL))
        finally:
            exchange.close()

    def next(self) -> tuple[int, int | None]:
        """Which bytes of the content are to be written next: where they begin, and how many they are. 0: none any more,
        or none at all. None: up to the end, wherever that is.

        Several ranges come one after the other; a write may go on from one to the next.
        """
        self._enter()
        try:
            out = ffi.new("sendgate_range *")
            _check(lib.sendgate_stream_next(self._handle, out))
            length = int(out.length)
            return int(out.offset), None if length == 2**64 - 1 else length
        finally:
            self._lock.release()

    def write(self, data: Buffer) -> int:
        """Send the next bytes of the content; b"" sends the head, if it hasn't been sent. Returns how many were taken.

        That is all of them, unless wait is False: then ``waits_for`` tells whether something is left, and what to wait
        for before the rest of the same bytes is written, which may be b"".

        ExcessError: more than length; nothing of them was sent.
        """
        self._enter()
        try:
            written = ffi.new("size_t *")
            with ffi.from_buffer(data) as view, _Unblocked(self._sink):
                code = lib.sendgate_stream_write(
                    self._handle, ffi.cast("const uint8_t *", view), len(view), written, self._result
                )
            _finish(code, self._result, self._sink)
            self._waits = Step(code)
            return int(written[0])
        finally:
            self._lock.release()

    def end(self, trailers: Iterable[tuple[Text, Text]] | Mapping[str, str] = ()) -> Result:
        """No more content. Returns what happened, and what to do with the connection.

        trailers: sent behind content in chunks, and dropped otherwise, as any recipient may do (RFC 9110 6.5.1).
        FieldError: one that is malformed, or that has to be known before the content; the stream is as before.
        With wait=False, call it again, as long as ``waits_for`` says so.

        TruncatedError: less content than length.
        """
        self._enter()
        try:
            keep: list[Any] = []
            fields, count = _fields(trailers, keep)
            with _Unblocked(self._sink):
                code = lib.sendgate_stream_end(self._handle, fields, count, self._result)
            result = _finish(code, self._result, self._sink)
            self._waits = Step(code)
            return result
        finally:
            self._lock.release()

    @property
    def waits_for(self) -> Step:
        """DONE: nothing is left of what was written. Otherwise what to wait for before the rest can be written."""
        return self._waits

    @property
    def result(self) -> Result:
        """What happened so far."""
        return _result(self._result)

    def close(self) -> None:
        """Free it; again does nothing. A response that wasn't ended stays cut short."""
        self._enter(closing=True)
        try:
            self._free()
        finally:
            self._lock.release()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._handle is not None:
                self.end()
                if self._waits is not Step.DONE:
                    raise _error(lib.SENDGATE_ERR_BLOCKING, result=self.result)
        finally:
            self.close()
