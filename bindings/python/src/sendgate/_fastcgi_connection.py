"""A front server's connection, and the request on it that is being answered. Does I/O; ``_fastcgi`` doesn't."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import select
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sendgate._native import lib

from ._core import Channel, Request, _error, _Exchange, _milliseconds, _Sink
from ._errors import FastCGIError, PeerClosedError, ResponseTimeoutError, SendgateError
from ._fastcgi import Event, EventType, Parser, RecordType, pack_end_request, pack_record, pack_stream
from ._site import error_page
from ._stream import Stream
from ._types import Completion, HeadForm
from ._types import Connection as Outcome

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack

    from ._fast_path import ParamsFastPath
    from ._sender import Sender
    from ._types import ExchangeArguments, Result

#: Bytes that are read at once, and that are gathered before they are sent.
BLOCK = 65536
#: Bytes that nobody reads, and seconds, for which a connection that is being closed is kept; see ``Connection.part``.
LINGER_BYTES = 1 << 20
LINGER_SECONDS = 2.0

#: For an answer of which only the head is sent.
HEAD = Request("HEAD")
_LENGTH = re.compile(rb"^content-length:", re.IGNORECASE | re.MULTILINE)

log = logging.getLogger("sendgate.fastcgi")
# What goes wrong with a request is told to the front server, too: a process without a log has nothing on its stderr.
log.addHandler(logging.NullHandler())


class Connection:
    """What a front server has connected. Used by one thread at a time; the socket doesn't block."""

    def __init__(self, sock: socket.socket, timeout: float, sender: Sender | None = None, **limits: int) -> None:
        sock.setblocking(False)
        self.sock = sock
        #: The other end's address.
        self.peer: Any = None
        self.timeout = timeout
        self.idle_ms = _milliseconds(timeout, "timeout")
        #: What answers in the background; None: the thread that answers waits.
        self.sender = sender
        self.parser = Parser(**limits)
        #: The request that is being answered.
        self.call: Call | None = None
        #: Whether a request has been begun that isn't complete enough to be answered.
        self.begun = False
        #: Whether what comes is refused, because there is too much of it.
        self.refused = False
        #: Whether the front server has left, or has stopped in the middle of something.
        self.gone = False
        #: Whether nothing more is to be read, because a reply says that the connection is closed.
        self.ended = False
        self._replies = bytearray()

    def fileno(self) -> int:
        """The descriptor."""
        return self.sock.fileno()

    def receive(self) -> bool:
        """Take what is there, without waiting. False: nothing is. PeerClosedError, FastCGIError."""
        try:
            data = self.sock.recv(BLOCK, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            raise self.lost()
        self.begun = True
        for event in self.parser.feed(data):
            self._take(event)
        return True

    def _take(self, event: Event) -> None:
        if event.type is EventType.PARAMS:
            self.call = Call(self, event)
        elif event.type is EventType.REPLY:
            self._replies += event.data
            self.ended = self.ended or not event.keep_conn
            self.begun = event.request_id != 0
        elif self.call is not None:
            self.call.take(event)

    def accept(self) -> Call:
        """The next request, for a thread that has nothing else to do."""
        while self.call is None:
            if self.ended:
                raise self.lost()
            self.wait_for_more()
            self.reply(wait=True)
        return self.call

    def wait_for_more(self) -> None:
        """Take what comes, within the timeout."""
        while not self.receive():
            self._wait(select.POLLIN)

    def send(self, data: Buffer) -> None:
        """Send all of it, within the timeout for each part of it."""
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                try:
                    sent += self.sock.send(view[sent:], socket.MSG_NOSIGNAL)
                except (BlockingIOError, InterruptedError):
                    self._wait(select.POLLOUT)
                except OSError:
                    raise self.lost() from None

    @property
    def has_replies(self) -> bool:
        """Whether there is something for ``reply``."""
        return bool(self._replies)

    def reply(self, wait: bool) -> None:
        """Send what is to be said besides answers; not within a record of one."""
        if self._replies:
            replies, self._replies = self._replies, bytearray()
            if wait:
                self.send(replies)
                return
            try:
                # It is a handful of bytes. Who doesn't take them asks for more than is polite.
                sent = self.sock.send(replies, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except OSError:
                sent = 0
            if sent < len(replies):
                raise self.lost()

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self.sock, events)
        if not poll.poll(self.idle_ms):
            self.gone = True
            raise _error(lib.SENDGATE_ERR_TIMEOUT)

    def lost(self) -> SendgateError:
        """Nothing more can be said to the front server."""
        self.gone = True
        return _error(lib.SENDGATE_ERR_PEER_CLOSED)

    def next(self) -> None:
        """The request was answered: another one may come."""
        self.parser.end()
        self.call = None
        self.begun = False

    def has_unread(self) -> bool:
        """Whether the front server may still send something."""
        return self.call is not None and not self.call.complete

    def part(self) -> None:
        """Say that nothing more will be sent.

        What the front server has sent and nobody has read would make the kernel reset the connection when it is closed,
        and the answer might be lost: of a UNIX socket the other end can then read nothing more, of TCP it may be able
        to. So it has to be read, for a while.
        """
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def discard(self) -> int:
        """Read what nobody wants to have, without waiting. How many bytes; -1: there will be no more."""
        count = 0
        try:
            while count < LINGER_BYTES and (data := self.sock.recv(BLOCK, socket.MSG_DONTWAIT)):
                count += len(data)
        except (BlockingIOError, InterruptedError):
            return count
        except OSError:
            pass
        return -1

    def linger(self) -> None:
        """Before it is closed: part, and wait for the front server to do so too, if that is necessary."""
        if self.gone or not self.has_unread():
            return
        self.part()
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        end, left = time.monotonic() + LINGER_SECONDS, LINGER_BYTES
        while left > 0 and poll.poll(max(0.0, end - time.monotonic()) * 1000):
            count = self.discard()
            if count < 0:
                break
            left -= count

    def shut(self) -> None:
        """End it in both directions, also for a thread that waits for it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


class _Raw(io.RawIOBase):
    """The content of a request, as it comes."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._call.read_into(buffer)

    def readall(self) -> bytes:
        return b"".join(iter(self._call.read_piece, b""))


class Content(io.BufferedReader):
    """The content of a request: a binary file that is read from the connection as far as it is asked for.

    bytes() of it is all that is left of it, and str() the same as text (UTF-8, with surrogateescape); both can be asked
    for again.
    """

    def __init__(self, call: Call) -> None:
        super().__init__(_Raw(call))
        self._rest: bytes | None = None

    def __bytes__(self) -> bytes:
        if self._rest is None:
            self._rest = self.read()
        return self._rest

    def __str__(self) -> str:
        return bytes(self).decode("utf-8", "surrogateescape")


class Call:
    """A request that is being answered: its parameters, its content, and the way back."""

    def __init__(self, connection: Connection, event: Event) -> None:
        self.connection = connection
        self.params = event.params
        self.request_id = event.request_id
        self.keep_conn = event.keep_conn
        #: Whether no content is sent, and what says so to the library; None: nothing has to.
        self.is_head = self.param(b"REQUEST_METHOD") == b"HEAD"
        self.asked = HEAD if self.is_head else None
        #: Content that has come and was not read.
        self._pieces: deque[memoryview] = deque()
        #: Whether all of the content has come.
        self.complete = False
        #: Whether the front server doesn't want the answer any more.
        self.aborted = False
        #: Whether some of the answer has left.
        self.begun = False
        #: Whether its length was announced.
        self._announced = False
        #: What became of the connection; None: the answer has not ended.
        self.outcome: Outcome | None = None
        #: Whether it goes on in the background.
        self.in_flight = False
        #: How that has ended.
        self.completion: Completion | None = None
        #: Whether the thread that has answered is done with it.
        self.returned = False
        #: To be called once what is in flight has landed.
        self.landed: Callable[[], object] | None = None
        #: STDERR that has not left yet, and whether there was any.
        self._errors = bytearray()
        self._had_errors = False
        self._content: Content | None = None

    def param(self, name: bytes) -> bytes:
        """One of the parameters; b"" if it isn't there."""
        for key, value in self.params:
            if key == name:
                return value
        return b""

    # ---- What comes ----

    @property
    def content(self) -> Content:
        """The request's."""
        if self._content is None:
            self._content = Content(self)
        return self._content

    @property
    def input(self) -> io.BufferedIOBase:
        """The same, for those who only read. That of a request without content is a file that costs less."""
        return io.BytesIO() if self.complete and not self._pieces and self._content is None else self.content

    def take(self, event: Event) -> None:
        """Some of the content has come, or its end, or that of the request."""
        if event.type is EventType.ABORT:
            self.aborted = True
        elif event.data:
            self._pieces.append(memoryview(event.data))
        else:
            self.complete = True

    def read_into(self, buffer: Any) -> int:
        """Fill some of the buffer. 0: there is no more."""
        if not self._has_piece():
            return 0
        piece = self._pieces.popleft()
        count = min(len(buffer), len(piece))
        buffer[:count] = piece[:count]
        if count < len(piece):
            self._pieces.appendleft(piece[count:])
        return count

    def read_piece(self) -> bytes:
        """What has come, as it came. b"": there is no more."""
        return bytes(self._pieces.popleft()) if self._has_piece() else b""

    def _has_piece(self) -> bool:
        """Whether there is more, which may have to be waited for."""
        while not self._pieces:
            if self.complete or self.connection.call is not self:
                return False
            if self.aborted:
                raise _error(lib.SENDGATE_ERR_PEER_CLOSED)
            self.connection.wait_for_more()
        return True

    def look(self) -> None:
        """See whether the front server still wants the answer; PeerClosedError if it doesn't."""
        # As long as there is content that somebody may want to read, there would be too much to be kept.
        while self.complete and not self.aborted and self.connection.receive():
            pass
        if self.aborted:
            raise _error(lib.SENDGATE_ERR_PEER_CLOSED)

    # ---- What leaves ----

    def channel(self) -> Channel:
        """The place of the answer. How to tell a front server that it is cut short depends on it: see Channel."""
        short = not self.keep_conn and not self.param(b"SERVER_SOFTWARE").startswith(b"lighttpd")
        return Channel(self.connection.sock, self.request_id, keep_conn=self.keep_conn, ends_short=short)

    def report(self, text: str) -> None:
        """A line for the front server's log. It leaves before what follows."""
        if self.outcome is not None or self.in_flight:
            log.error("%s: %s", self.name, text.rstrip("\n"))
            return
        self._errors += text.encode("utf-8", "replace")
        if len(self._errors) >= BLOCK:
            self.flush_errors()

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self.param(b'REQUEST_METHOD').decode('latin-1')} {self.param(b'REQUEST_URI').decode('latin-1')}"

    def flush_errors(self) -> None:
        """What was reported leaves now."""
        if self._errors and self.outcome is None and not self.in_flight:
            errors = bytes(self._errors)
            self._errors.clear()
            self._had_errors = True
            self.connection.send(pack_stream(RecordType.STDERR, self.request_id, errors))

    @property
    def errors(self) -> bytearray:
        """What was reported and has not left."""
        return self._errors

    def write(self, data: Buffer) -> None:
        """Some of the answer, head included. Returns when it has left."""
        self.check()
        if not data:
            return
        self.prepare()
        content = bytes(data)
        if not self.begun:
            self._announced = _LENGTH.search(content) is not None
            self.begun = True
        self.connection.send(pack_stream(RecordType.STDOUT, self.request_id, content))

    def stream(self, head: bytes, status: int, length: int | None) -> Stream:
        """An answer piece by piece. Who makes it ends it, and says so by ``ended``."""
        self.check()
        self.prepare()
        timeout = self.connection.timeout
        self.begun, self._announced = True, length is not None
        return Stream(self.channel(), self.asked, length=length, head=head, status=status, timeout=timeout)

    def ended(self, outcome: Outcome) -> None:
        """That is what became of the connection."""
        self.outcome = outcome

    def submit(self, exchange: _Exchange, landed: Callable[[], object] | None = None) -> Result:
        """All of an answer, or all that is left of it.

        It is closed when the library no longer needs it, and then landed is called, in whatever thread; but not if
        there is an exception. SendgateError: if nothing has left, another answer may be sent.
        """
        try:
            self.check()
            self.prepare(last=True)
            sink = _Sink(self.channel(), self.connection.idle_ms)
            sender = self.connection.sender
        except BaseException:
            exchange.close()
            raise
        memory = exchange.memory is not None
        given = 0
        try:
            if sender is None:
                try:
                    result = exchange.respond(sink)
                finally:
                    exchange.close()
            else:
                # Before the submit: it may have landed before that returns.
                self.in_flight, self.landed = True, landed if memory else None
                try:
                    given, result = sender._submit(exchange, sender._sink(sink, try_now=True), self)
                finally:
                    if not given:
                        self.in_flight, self.landed = False, None
        except SendgateError as error:
            self._note(error)
            if error.connection is not Outcome.UNTOUCHED:
                self.begun, self.outcome = True, Outcome.BROKEN
            raise
        self.begun = True
        if not given:
            self.outcome = result.connection
        if landed is not None and not (given and memory):
            landed()
        return result

    def submit_file(self, files: ParamsFastPath) -> bool:
        """Have a folder's file sent, if that is what is asked for. False: it isn't, and nothing was done.

        For the thread that waits for requests. Where it can't go on without waiting, the sender goes on.
        """
        if not self.complete or self._pieces or self.aborted:
            return False
        params = dict(self.params)
        if len(params) < len(self.params) and _has_lines(self.params):
            return False
        given = files.answer(self.channel(), params, self)
        if given is None:
            return False
        self.begun = True
        if given[0] != 0:
            # No thread of the pool has it.
            self.in_flight = self.returned = True
            return True
        self.outcome = given[1]
        error = files.error
        if error is not None:
            self._note(error)
            self.fail(error)
        return True

    def _note(self, error: SendgateError) -> None:
        """What it means for the connection."""
        if isinstance(error, (PeerClosedError, ResponseTimeoutError)):
            self.connection.gone = True

    def end(self, rest: Buffer = b"") -> None:
        """That was all, with this."""
        self.submit(_Exchange(None, bytes(rest), etag=False, last_modified=False, head=HeadForm.NONE))

    def fail(self, error: BaseException) -> None:
        """What was to answer has failed. Tell whoever can be told."""
        if self.outcome is not None or self.in_flight:
            if not self._is_connections(error):
                log.error("Error sending the answer to %s", self.name, exc_info=error)
            return
        if self._is_connections(error):
            log.debug("%s: the front server has gone: %s", self.name, error)
            self._stop()
            return
        log.error("Error answering %s", self.name, exc_info=error)
        self.report("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        try:
            if self.begun:
                self._break_off()
            else:
                # A short page that says no more than the status does.
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                exchange = self.exchange(
                    error_page(status),
                    self.asked,
                    status=status,
                    content_type="text/html; charset=utf-8",
                    headers=[("Cache-Control", "no-store")],
                    etag=False,
                    last_modified=False,
                )
                self.submit(exchange)
        except SendgateError as second:
            log.debug("%s: %s", self.name, second)
            self.outcome = Outcome.BROKEN

    @staticmethod
    def exchange(file: Any, request: Request | None, **arguments: Unpack[ExchangeArguments]) -> _Exchange:
        """An answer with a head as CGI has it."""
        arguments.setdefault("head", HeadForm.CGI)
        return _Exchange(request, file, **arguments)

    def _is_connections(self, error: BaseException) -> bool:
        """Whether the application can't help it."""
        gone = self.connection.gone or self.aborted
        return (gone and isinstance(error, OSError)) or isinstance(error, FastCGIError)

    def _stop(self) -> None:
        """Nobody wants to have the answer."""
        self.outcome = Outcome.BROKEN
        if self.aborted and not self.connection.gone:
            # FastCGI 1.0, 5.4: the request is ended all the same. What was sent of it ends with a record.
            self.outcome = None
            try:
                self.end()
            except SendgateError:
                self.outcome = Outcome.BROKEN

    def _break_off(self) -> None:
        """The answer can't be completed, and the front server has to notice."""
        self.flush_errors()
        self.outcome = Outcome.BROKEN
        if self.param(b"SERVER_SOFTWARE").startswith(b"nginx"):
            # For nginx 1.22 the end of the connection is as good an end as a proper one, if it knows no length, and
            # with fastcgi_buffering off its client waits for what is missing if it does. Whatever it waits for, it
            # disconnects its client if there is a record of a version that doesn't exist.
            self.connection.send(bytes(8))
        elif self._announced and self.channel().ends_short:
            end = pack_record(RecordType.STDOUT, self.request_id) + pack_end_request(self.request_id)
            self.connection.send(end)

    def check(self) -> None:
        """RuntimeError: the answer has ended."""
        if self.outcome is not None or self.in_flight:
            raise RuntimeError("the request has been answered")

    def prepare(self, last: bool = False) -> None:
        """What has to leave before some of the answer does."""
        self.connection.reply(wait=True)
        self.flush_errors()
        if last and self._had_errors:
            self.connection.send(pack_record(RecordType.STDERR, self.request_id))


def _has_lines(params: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether a field came in several lines, which have to be joined."""
    fields = [name for name, _ in params if name.startswith(b"HTTP_")]
    return len(set(fields)) < len(fields)


def is_harmless(error: BaseException) -> bool:
    """Whether it is the front server's business, or that of its client, and not worth more than a line."""
    return isinstance(error, (PeerClosedError, ResponseTimeoutError, FastCGIError))
