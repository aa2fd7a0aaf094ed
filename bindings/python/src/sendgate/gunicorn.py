"""gunicorn workers that send files by the library.

    gunicorn -k sendgate.gunicorn.ThreadWorker app:application

``SyncWorker``, ``ThreadWorker`` (gthread) and ``GeventWorker`` are gunicorn's own, but for what an application returns
as ``environ["wsgi.file_wrapper"](file)``, or by ``sendgate.wsgi``: that leaves in the background, by sendfile, and no
thread of the pool waits for a slow client. All other responses are gunicorn's.

A TLS connection is written to through its socket's send(), by the thread that has run the application.
``--no-sendfile`` is honoured.
"""

from __future__ import annotations

import select
import selectors
import ssl
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gunicorn.http.wsgi import Response
from gunicorn.workers.gthread import ThreadWorker as _ThreadWorker
from gunicorn.workers.sync import SyncWorker as _SyncWorker

from ._answer import Answer, reason
from ._core import _Exchange, _Sink
from ._errors import PeerClosedError, SendgateError
from ._sender import Sender
from ._types import Completion, Connection, Result
from .wsgi import Gateway

if TYPE_CHECKING:
    from .wsgi import Environ, StartResponse

#: Seconds in which a client has to take something. gunicorn itself has no such limit.
IDLE = 60

#: In the environ of a request whose response is still being sent: a _Pending.
_PENDING = "sendgate.pending"


class Body:
    """What gunicorn iterates over in the place of a file: sends it when the first item is asked for, and is empty."""

    def __init__(self, worker: Any, response: Response, answer: Answer, environ: Environ) -> None:
        self._worker = worker
        self._response = response
        self._answer: Answer | None = answer
        self._environ = environ
        self._begun = False
        self._in_flight = False

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        if not self._begun and self._answer is not None:
            self._begun = True
            self._send(self._answer)
        raise StopIteration

    def _send(self, answer: Answer) -> None:
        response = self._response
        close = response.must_close or response.req.should_close()
        exchange = answer.exchange((("Server", response.version),), close, not response.can_sendfile())
        sink = _Sink(response.sock, IDLE * 1000)
        try:
            if isinstance(response.sock, ssl.SSLSocket):
                try:
                    self.sent(exchange.respond(sink))
                finally:
                    exchange.close()
            else:
                # Python then waits for readiness by itself, where it reads what is left of the request, and the library
                # has a socket that doesn't block.
                response.sock.settimeout(IDLE)
                self._worker.send(exchange, sink, self)
        except SendgateError as error:
            if error.connection is not Connection.UNTOUCHED and error.result is not None:
                self.sent(error.result)
            raise

    def sent(self, result: Result) -> None:
        """Tell gunicorn what became of its response: for its log, and whether the connection stays."""
        response = self._response
        response.status = reason(result.http_status)
        response.status_code = result.http_status
        response.headers_sent = True
        response.response_length = result.body_length
        response.sent = result.body_sent
        if result.connection is not Connection.REUSABLE:
            response.force_close()

    def keep(self, pending: _Pending, memory: bool) -> None:
        """It goes on when gunicorn is done with it. memory: what is sent is needed until then."""
        self._in_flight = memory
        self._environ[_PENDING] = pending
        self._response.headers_sent = True
        self._response.response_length = 0

    def end(self, completion: Completion) -> bool:
        """It has ended. Whether the connection stays."""
        self.sent(completion.result)
        self._in_flight = False
        self.close()
        return not self._response.should_close()

    def close(self) -> None:
        """gunicorn is done with it."""
        if self._in_flight:
            return
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()


class _Worker:
    """What the workers share: the application is called through here."""

    def load_wsgi(self) -> None:
        """Load the application."""
        super().load_wsgi()  # type: ignore[misc]
        self._application, self.wsgi = self.wsgi, self._call  # type: ignore[has-type]

    def _call(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        response = getattr(start_response, "__self__", None)
        # HTTP/2 has frames, and the uwsgi protocol leaves the framing to the front server.
        if type(response) is not Response or getattr(response.cfg, "protocol", "http") != "http":
            result: Iterable[bytes] = self._application(environ, start_response)
            return result
        gateway = Gateway(environ, start_response)
        result_or_answer = gateway.call(self._application)
        # gunicorn looks here to tell what it may send by itself.
        environ["wsgi.file_wrapper"] = gateway.wrapper
        if type(result_or_answer) is Answer:
            return Body(self, response, result_or_answer, environ)
        return result_or_answer


class SyncWorker(_Worker, _SyncWorker):  # type: ignore[misc]
    """gunicorn's sync worker. It waits for each client, but is not killed (--timeout) because one is slow."""

    def run(self) -> None:
        """Serve until told to stop."""
        with Sender(max_in_flight=1) as self._sender:
            super().run()

    def send(self, exchange: _Exchange, sink: _Sink, body: Body) -> None:
        """Send a file, and tell gunicorn's master once a second that this process is alive."""
        sender = self._sender
        given = sender._submit(exchange, sender._sink(sink, try_now=True), None)
        if isinstance(given, Result):
            body.sent(given)
            return
        ended = select.poll()
        ended.register(sender.fileno(), select.POLLIN)
        while not (completions := sender.take()):
            ended.poll(1000)
            self.notify()
        completion = completions[0]
        body.sent(completion.result)
        if completion.error is not None:
            raise completion.error


class _Pending:
    """A response that goes on while its thread serves others."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.begun = time.monotonic()
        #: What gunicorn would have logged when its thread was done.
        self.access: tuple[Any, Any, Environ, timedelta] | None = None
        #: Whether gunicorn would keep the connection.
        self.keep = False
        self.connection: Any = None
        self.completion: Completion | None = None


class _Log:
    """gunicorn's logger. A response that is still being sent gets its line when it has ended."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def access(self, response: Any, request: Any, environ: Environ, request_time: timedelta) -> None:
        """A line of the access log."""
        pending = environ.get(_PENDING)
        if pending is None:
            self._log.access(response, request, environ, request_time)
        else:
            pending.access = response, request, environ, request_time

    def ended(self, pending: _Pending) -> None:
        """The line that was put off."""
        if pending.access is not None:
            response, request, environ, request_time = pending.access
            request_time += timedelta(seconds=time.monotonic() - pending.begun)
            self._log.access(response, request, environ, request_time)


class _Ended:
    """What gunicorn takes for the future of a thread that is done."""

    def __init__(self, keep: bool) -> None:
        self._keep = keep

    def cancelled(self) -> bool:
        return False

    def result(self) -> bool:
        return self._keep


class ThreadWorker(_Worker, _ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread worker. A thread of the pool runs the application; then the file leaves in the background.

    The line in the access log, with the bytes that were sent, is written when the response has ended; the hook
    post_request runs before that. A stopping worker waits for the responses as long as graceful_timeout allows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log = _Log(self.log)
        self._thread = threading.local()

    def run(self) -> None:
        """Serve until told to stop."""
        with Sender(max_in_flight=self.cfg.worker_connections) as self._sender:
            self.poller.register(self._sender.fileno(), selectors.EVENT_READ, self._take)
            super().run()

    def handle(self, conn: Any) -> Any:
        """Serve one request, in a thread of the pool."""
        self._thread.pending = None
        result = super().handle(conn)
        pending: _Pending | None = self._thread.pending
        if pending is None:
            return result
        pending.keep = bool(result)
        return pending

    def send(self, exchange: _Exchange, sink: _Sink, body: Body) -> None:
        """Send a file, or what needs no waiting of it, and leave the rest to the sender."""
        sender = self._sender
        pending = _Pending(body)
        memory = exchange.memory is not None
        given = sender._submit(exchange, sender._sink(sink, try_now=True), pending)
        if isinstance(given, Result):
            body.sent(given)
        else:
            body.keep(pending, memory)
            self._thread.pending = pending

    def finish_request(self, conn: Any, fs: Any) -> None:
        """A thread of the pool is done with a request. In the main thread."""
        pending = None if fs.cancelled() or fs.exception() is not None else fs.result()
        if type(pending) is not _Pending:
            super().finish_request(conn, fs)
            return
        pending.connection = conn
        if pending.completion is not None:
            self._finish(pending, pending.completion)

    def _take(self, _: Any) -> None:
        """Responses have ended. In the main thread."""
        for completion in self._sender.take():
            pending: _Pending = completion.token
            pending.completion = completion
            # Otherwise its thread isn't done yet.
            if pending.connection is not None:
                self._finish(pending, completion)

    def _finish(self, pending: _Pending, completion: Completion) -> None:
        """What gunicorn would have done when the thread was done."""
        try:
            keep = pending.body.end(completion)
            self.log.ended(pending)
            error = completion.error
            if isinstance(error, PeerClosedError):
                self.log.debug("Ignoring connection epipe")
            elif error is not None:
                self.log.error("Error sending a file: %s", error)
        except Exception:
            self.log.exception("Error at the end of a response")
            keep = False
        super().finish_request(pending.connection, _Ended(pending.keep and keep))
