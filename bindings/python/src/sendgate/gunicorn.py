"""gunicorn workers that send files by the library.

    gunicorn -k sendgate.gunicorn.ThreadWorker app:application

``SyncWorker``, ``ThreadWorker`` (gthread) and ``GeventWorker`` are gunicorn's own, but for what an application returns
as ``environ["wsgi.file_wrapper"](file)``, or by ``sendgate.wsgi``: that leaves in the background, by sendfile, and no
thread of the pool waits for a slow client. All other responses are gunicorn's.

``--no-sendfile`` is honoured. Over TLS, ``ThreadWorker`` writes to the socket's own send(), in the thread that has run
the application; the others leave that to gunicorn, as all of them do with HTTP/2 and the uwsgi protocol.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import select
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import gunicorn
from gunicorn.glogging import Logger
from gunicorn.http.wsgi import Response
from gunicorn.workers.gthread import ThreadWorker as _ThreadWorker
from gunicorn.workers.sync import SyncWorker as _SyncWorker

from ._adapters import IDLE, wait
from ._answer import Answer, reason
from ._core import _Exchange, _milliseconds, _Sink
from ._errors import PeerClosedError, ResponseTimeoutError, SendgateError, TransferCancelledError
from ._fast_path import FastPath
from ._sender import Sender
from ._types import Completion, Connection, Result
from .wsgi import Files, Gateway, give

if TYPE_CHECKING:
    from ._gunicorn_gevent import GeventWorker
    from .wsgi import Environ, StartResponse

__all__ = ["GeventWorker", "SyncWorker", "ThreadWorker"]

#: Seconds and bytes for which a connection that is being closed is kept, for what its client still sends. gunicorn's.
LINGER_SECONDS = 2.0
LINGER_BYTES = 65536

#: The longest head that is answered without a thread of the pool.
FAST_PATH_BYTES = 4096

#: The versions that have what is used.
WORKS_WITH = "25.3 to 27.0"

#: What is used of gunicorn's classes: methods, and attributes that __init__ sets.
_USED: tuple[tuple[type, str], ...] = (
    (Response, "can_sendfile force_close should_close must_close headers headers_sent response_length sent sock req"),
    (_SyncWorker, "load_wsgi notify run"),
    (_ThreadWorker, "load_wsgi run handle handle_error finish_request murder_pending"),
    (_ThreadWorker, "on_client_socket_readable keepalived_conns"),
    (_ThreadWorker, "poller tpool method_queue nr_conns worker_connections"),
)


def _check_gunicorn() -> None:
    """Refuse a gunicorn that works in another way: its workers would not fail but answer in the wrong one."""
    missing = [
        f"{used.__module__}.{used.__name__}.{name}"
        for used, names in _USED
        for name in names.split()
        if not hasattr(used, name) and name not in used.__init__.__code__.co_names  # type: ignore[misc]
    ]
    finish = getattr(_ThreadWorker, "finish_request", None)
    if finish is not None and list(inspect.signature(finish).parameters) != ["self", "conn", "fs"]:
        missing.append(f"{_ThreadWorker.__module__}.{_ThreadWorker.__name__}.finish_request(self, conn, fs)")
    if missing:
        raise ImportError(
            f"sendgate.gunicorn works with gunicorn {WORKS_WITH}, not with {gunicorn.__version__}, which has no "
            + ", ".join(missing)
        )


_check_gunicorn()


def __getattr__(name: str) -> Any:
    # Only who asks for it needs gevent.
    if name == "GeventWorker":
        from ._gunicorn_gevent import GeventWorker

        return GeventWorker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Body:
    """What gunicorn iterates over in the place of an answer that the library sends: nothing."""

    def __init__(self, worker: _Worker, response: Response, answer: Answer, environ: Environ) -> None:
        self.response = response
        #: gunicorn's own, which its logger gets, too.
        self.environ = environ
        #: Whether the library still reads the application's memory.
        self.in_use = False
        self._worker = worker
        self._answer: Answer | None = answer

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        raise StopIteration

    def send(self, answer: Answer) -> None:
        """Have it sent. An exception means that no byte was, and that gunicorn is to answer 500."""
        response = self.response
        try:
            close = response.must_close or response.req.should_close()
            exchange = answer.exchange((("Server", response.version),), close, not response.can_sendfile())
            if self._worker.logs_fields:
                try:
                    response.headers = list(exchange.decide().fields)
                except BaseException:
                    exchange.close()
                    raise
            self._worker.send(exchange, response.sock, self)
        except BaseException as error:
            if isinstance(error, SendgateError) and error.result is not None and _is_connections(error):
                self.ended(error.result, error)
                return
            self.close()
            if isinstance(error, OSError):
                # gunicorn takes it for one of the connection's, and answers nothing.
                raise RuntimeError(f"can't send a file: {error}") from error
            raise

    def begun(self, result: Result) -> None:
        """Tell gunicorn what became of its response."""
        response = self.response
        response.status = reason(result.http_status)
        response.status_code = result.http_status
        response.headers_sent = True
        response.response_length = result.body_length
        response.sent = result.body_sent

    def ended(self, result: Result, error: SendgateError | None = None) -> None:
        """The same when it is complete or was cut short: then the connection is closed."""
        self.begun(result)
        if result.connection is not Connection.REUSABLE:
            self.response.force_close()
        if error is None:
            return
        log, request = self._worker.log, self.response.req
        if isinstance(error, PeerClosedError):
            log.debug("Ignoring connection epipe")
        elif isinstance(error, (ResponseTimeoutError, TransferCancelledError)):
            log.info("%s %s: %s", request.method, request.uri, error)
        else:
            log.error("Error sending a file for %s %s: %s", request.method, request.uri, error)

    def close(self) -> None:
        """Nobody needs it any more. gunicorn calls this, too early for memory that is still being sent."""
        if self.in_use:
            return
        answer, self._answer = self._answer, None
        try:
            if answer is not None:
                answer.close()
        except Exception:
            # gunicorn would cut the response short.
            request = self.response.req
            self._worker.log.exception("Error closing what was sent for %s %s", request.method, request.uri)


def _is_connections(error: SendgateError) -> bool:
    """Whether no other answer can be sent any more."""
    return error.connection is not Connection.UNTOUCHED or isinstance(error, (PeerClosedError, ResponseTimeoutError))


class _Worker:
    """What the workers share: the application is called through here."""

    #: Seconds in which a client has to take something, or else its connection is closed. gunicorn has no such limit.
    #: For another one make a subclass.
    send_timeout = IDLE

    #: Whether ``send`` can write to a TLS connection.
    _sends_tls = False
    #: Whether fields of the response are in the access log. Only then they are made known to gunicorn.
    logs_fields = False

    cfg: Any
    log: Any
    wsgi: Any

    @property
    def _timeout(self) -> int:
        return _milliseconds(self.send_timeout, "send_timeout")

    def load_wsgi(self) -> None:
        """Load the application."""
        super().load_wsgi()  # type: ignore[misc]
        self._application, self.wsgi = self.wsgi, self._call
        self.logs_fields = "}o" in self.cfg.access_log_format

    def _call(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        result = Gateway(environ, start_response).call(self._application)
        # One that was begun is for iteration.
        if type(result) is not Answer or result.decision is not None:
            # What is there anyway needs no time.
            return result if type(result) in (list, tuple) else self.blocks(result)
        response = getattr(start_response, "__self__", None)
        if self._can_send(response, result):
            body = Body(self, response, result, environ)
            body.send(result)
            return body
        try:
            return self.blocks(give(result, environ, start_response, None))
        except BaseException:
            result.close()
            raise

    def _can_send(self, response: Any, answer: Answer) -> bool:
        """Whether the bytes may go past gunicorn, or are to be framed or encrypted by it."""
        # A subclass speaks HTTP/2.
        if type(response) is not Response or response.cfg.protocol != "http":
            return False
        if response.cfg.is_ssl and not self._sends_tls:
            return False
        # A middleware that asks the application for a GET instead of a HEAD relies on it that gunicorn knows better.
        method = "GET" if answer.request is None else answer.request.method
        return bool((method == "HEAD") == (response.req.method == "HEAD"))

    def blocks(self, blocks: Iterable[bytes]) -> Iterable[bytes]:
        """What gunicorn is to send."""
        return blocks

    def send(self, exchange: _Exchange, sock: Any, body: Body) -> None:
        """Send it, or begin to, and tell body."""
        raise NotImplementedError


class _Notifying:
    """What gunicorn sends. Whenever some of it was sent, gunicorn's master learns that the worker lives."""

    def __init__(self, blocks: Any, worker: Any) -> None:
        self._blocks = iter(blocks)
        self._close = getattr(blocks, "close", None)
        self._worker = worker

    def __iter__(self) -> _Notifying:
        return self

    def __next__(self) -> bytes:
        self._worker.notify()
        block: bytes = next(self._blocks)
        return block

    def close(self) -> None:
        """It was sent, or will not be."""
        if self._close is not None:
            self._close()


class SyncWorker(_Worker, _SyncWorker):  # type: ignore[misc]
    """gunicorn's sync worker. It waits for each client, but is not killed (--timeout) because one is slow, or because a
    response takes long of which there is a piece within that time.

    With --threads above 1 gunicorn takes its own gthread worker instead: ask for ``ThreadWorker``.
    """

    #: Made with the first answer, and after one that was broken off.
    _sender: Sender | None = None

    def run(self) -> None:
        """Serve until told to stop."""
        try:
            super().run()
        finally:
            if self._sender is not None:
                self._sender.close()

    def blocks(self, blocks: Iterable[bytes]) -> Iterable[bytes]:
        """An answer, for gunicorn to send."""
        return _Notifying(blocks, self)

    def send(self, exchange: _Exchange, sock: Any, body: Body) -> None:
        """Send it, and tell gunicorn's master once a second that this process is alive."""
        if self._sender is None:
            self._sender = Sender(max_in_flight=1)
        sender = self._sender
        try:
            sock.settimeout(self.send_timeout)
            given, result = sender._submit(exchange, sender._sink(_Sink(sock, self._timeout), try_now=True), None)
            if not given:
                body.ended(result)
                return
            body.begun(result)
            ended = select.poll()
            ended.register(sender.fileno(), select.POLLIN)
            while not (completions := sender.take()):
                ended.poll(1000)
                self.notify()
        except SendgateError:
            raise
        except BaseException:
            # A signal's handler raises anywhere, also before it is known what was submitted. The application's memory
            # has to be free before its close() is called; that doesn't depend on the client any more.
            self._sender = None
            sender.close()
            exchange.close()
            raise
        body.ended(completions[0].result, completions[0].error)


class _Pending:
    """A response that goes on while its thread serves others."""

    def __init__(self, body: Body) -> None:
        self.body = body
        #: gunicorn's connection, once its thread is done with it.
        self.connection: Any = None
        #: Whether gunicorn would keep it.
        self.keep = False
        #: How the response has ended.
        self.completion: Completion | None = None
        #: What gunicorn would have logged when its thread was done, and when that was.
        self.access: tuple[Any, Any, Environ, timedelta] | None = None
        self.accessed = 0.0


#: In the environ of a request whose response is still being sent: a _Pending.
_PENDING = "sendgate.pending"


class _Log:
    """gunicorn's logger. A response that is still being sent gets its line when it has ended."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def access(self, response: Any, request: Any, environ: Environ, request_time: timedelta) -> None:
        """A line of the access log."""
        pending: _Pending | None = environ.pop(_PENDING, None)
        if pending is None:
            self._log.access(response, request, environ, request_time)
        else:
            pending.access = response, request, environ, request_time
            pending.accessed = time.monotonic()

    def is_silent(self) -> bool:
        """Whether nobody is told of requests: neither a log nor statsd."""
        return type(self._log) is Logger and not self._log.access_log_enabled

    def ended(self, pending: _Pending) -> None:
        """The line that was put off."""
        if pending.access is None:
            return
        response, request, environ, request_time = pending.access
        request_time += timedelta(seconds=time.monotonic() - pending.accessed)
        try:
            self._log.access(response, request, environ, request_time)
        except Exception:
            self._log.exception("Error in the access log")


class _Kept:
    """What gunicorn takes for the future of a thread that is done, and wants to keep the connection."""

    @staticmethod
    def cancelled() -> bool:
        return False

    @staticmethod
    def result() -> bool:
        return True


class ThreadWorker(_Worker, _ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread worker. A thread of the pool runs the application; then the file leaves in the background.

    The line in the access log, with the bytes that were sent, is written when the response has ended; the hook
    post_request runs before that. A stopping worker waits for the responses as long as graceful_timeout allows.

    The main thread waits for no client either, when it closes a connection. If the application is
    ``sendgate.wsgi.Files``, and neither a log nor a hook wants to know of requests, it also answers those for files on
    connections that were kept.
    """

    _sends_tls = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log = _Log(self.log)
        self._thread = threading.local()
        #: Connections that were shut down, in the order in which they are closed at the latest.
        self._parting: deque[Any] = deque()
        self._fast_path: FastPath | None = None

    def run(self) -> None:
        """Serve until told to stop."""
        # gunicorn looks at the number of connections before it accepts one from each listener.
        with Sender(max_in_flight=self.worker_connections + len(self.sockets)) as self._sender:
            self.poller.register(self._sender.fileno(), selectors.EVENT_READ, self._take)
            self._fast_path = self._make_fast_path()
            super().run()
            # What took longer than graceful_timeout.
            self._sender.stop()
            while completions := self._sender.take():
                for completion in completions:
                    if type(completion.token) is _Pending:
                        body = completion.token.body
                        body.ended(completion.result, completion.error)
                        self.log.ended(completion.token)
                        body.in_use = False
                        body.close()

    # ---- In a thread of the pool ----

    def handle(self, conn: Any) -> Any:
        """Serve one request."""
        self._thread.pending = None
        result = super().handle(conn)
        pending: _Pending | None = self._thread.pending
        # The thread may have nothing to do for long, and would keep the request.
        self._thread.pending = None
        if pending is None:
            return result
        pending.keep = bool(result)
        return pending

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Any) -> None:
        """Answer a request that can't be served."""
        if getattr(self._thread, "pending", None) is None:
            super().handle_error(req, client, addr, exc)
        else:
            # The rest of a request is malformed, while the response to it is being sent.
            self.log.debug("Closing connection. %s", exc)

    def send(self, exchange: _Exchange, sock: Any, body: Body) -> None:
        """Send what needs no waiting, and leave the rest to the sender."""
        if isinstance(sock, ssl.SSLSocket):
            body.ended(wait(exchange, _Sink(sock, self._timeout)))
            return
        # Python then waits for readiness by itself, where gunicorn reads what is left of the request, and the library
        # has a socket that doesn't block.
        sock.settimeout(self.send_timeout)
        pending = _Pending(body)
        memory = exchange.memory is not None
        sender = self._sender
        given, result = sender._submit(exchange, sender._sink(_Sink(sock, self._timeout), try_now=True), pending)
        if not given:
            body.ended(result)
            return
        body.begun(result)
        body.in_use = memory
        body.environ[_PENDING] = pending
        self._thread.pending = pending

    # ---- In the main thread ----

    def finish_request(self, conn: Any, fs: Any) -> None:
        """A thread of the pool is done with a request."""
        outcome = None if fs.cancelled() or fs.exception() is not None else fs.result()
        if type(outcome) is _Pending:
            outcome.connection = conn
            if outcome.completion is not None:
                self._finish(outcome, outcome.completion)
        elif outcome is False:
            self._part(conn)
        else:
            super().finish_request(conn, fs)

    def _take(self, _: Any) -> None:
        """Responses have ended."""
        for completion in self._sender.take():
            if type(completion.token) is not _Pending:
                self._answered(completion.token, completion.result.connection)
                continue
            pending: _Pending = completion.token
            pending.completion = completion
            # Otherwise its thread isn't done yet.
            if pending.connection is not None:
                self._finish(pending, completion)

    def _finish(self, pending: _Pending, completion: Completion) -> None:
        """What gunicorn would have done when the thread was done."""
        body = pending.body
        body.ended(completion.result, completion.error)
        self.log.ended(pending)
        if not body.in_use:
            self._release(pending)
            return
        # The application's own close() runs where the application does.
        body.in_use = False
        closed = self.tpool.submit(body.close)
        closed.add_done_callback(lambda _: self.method_queue.defer(self._release, pending))

    def _release(self, pending: _Pending) -> None:
        """The connection is free."""
        conn = pending.connection
        if pending.completion is not None and pending.completion.error is not None:
            self.nr_conns -= 1
            conn.close()
        elif pending.keep and not pending.body.response.should_close():
            super().finish_request(conn, _Kept)
        else:
            self._part(conn)

    def _make_fast_path(self) -> FastPath | None:
        """For an application that is ``Files``. None if something of gunicorn's wants to see each request."""
        files, cfg = self._application, self.cfg
        if type(files) is not Files or files._front is not None or not self.log.is_silent():
            return None
        if cfg.is_ssl or cfg.protocol != "http" or "h2" in cfg.http_protocols or "SCRIPT_NAME" in os.environ:
            return None
        hooks = (cfg.settings[name] for name in ("pre_request", "post_request"))
        if any(hook.get() is not hook.default for hook in hooks):
            return None
        # The limits that gunicorn has for a line and for a field are limits for all of them here.
        limits = (FAST_PATH_BYTES, cfg.limit_request_line, cfg.limit_request_field_size)
        self._longest = min(limit for limit in limits if limit)
        self._most_fields = cfg.limit_request_fields
        self._schemes = re.compile(
            "|".join(f"\n{re.escape(name)}:" for name in cfg.secure_scheme_headers).encode("latin-1") or b"(?!)",
            re.IGNORECASE,
        )
        fields = (("Server", gunicorn.SERVER),)
        return FastPath(files._mount, self._sender, fields=fields, idle_ms=self._timeout, copy=not cfg.sendfile)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """A client goes on with a connection that was kept."""
        # What gunicorn does about a last request, it does.
        last = not self.alive or self.nr + 1 >= self.max_requests
        if last or self._fast_path is None or not self._is_answered(self._fast_path, conn):
            super().on_client_socket_readable(conn, client)

    def _is_answered(self, fast_path: FastPath, conn: Any) -> bool:
        """Whether it was a request for a file, which needs no thread of the pool."""
        if conn.parser.unreader.buf.getvalue():
            # A request has begun already.
            return False
        try:
            data = conn.sock.recv(self._longest)
        except OSError:
            return False
        given = None
        # gunicorn refuses some heads that are plain: with too many fields, or with two opinions about the scheme.
        if data.count(b"\n") - 2 <= self._most_fields and len(self._schemes.findall(data)) < 2:
            try:
                given = fast_path.answer(conn.sock.fileno(), data, conn)
            except Exception as error:
                # A mistake in the application's own functions, say: gunicorn's way ends in its log.
                self.log.debug("Fast path: %s", error)
        if given is None:
            conn.parser.unreader.unread(data)
            return False
        self.nr += 1
        self.keepalived_conns.remove(conn)
        id, connection = given
        if id == 0 and connection is Connection.REUSABLE:
            conn.set_timeout()
            self.keepalived_conns.append(conn)
        else:
            self.poller.unregister(conn.sock)
            if id == 0:
                self._answered(conn, connection)
        return True

    def _answered(self, conn: Any, connection: Connection) -> None:
        """A response without a thread of the pool has ended, and gunicorn knows nothing of the connection."""
        if connection is Connection.REUSABLE:
            super().finish_request(conn, _Kept)
        elif connection is Connection.CLOSE:
            self._part(conn)
        else:
            self.nr_conns -= 1
            conn.close()

    def _part(self, conn: Any) -> None:
        """Close a connection as gunicorn does, who would wait for its client: if what the client still sends met a
        closed socket, it would get a reset in place of the end of the response (RFC 9112 9.6).
        """
        conn.room = LINGER_BYTES
        conn.timeout = time.monotonic() + LINGER_SECONDS
        self._parting.append(conn)
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._discard(conn))
        except (OSError, ValueError):
            self._parted(conn)
        else:
            self._discard(conn)

    def _discard(self, conn: Any) -> None:
        """What a client sends that was already told that nobody listens."""
        try:
            while conn.room > 0 and (data := conn.sock.recv(LINGER_BYTES)):
                conn.room -= len(data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._parted(conn)

    def _parted(self, conn: Any) -> None:
        """Nothing is waited for any more."""
        self._parting.remove(conn)
        with contextlib.suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Close what has waited too long; gunicorn calls this each second or more often."""
        super().murder_pending()
        now = time.monotonic()
        while self._parting and self._parting[0].timeout <= now:
            self._parted(self._parting[0])
