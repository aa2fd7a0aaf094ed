"""waitress, with files sent by the library.

    from sendgate.waitress import serve    # in the place of "from waitress import serve"
    serve(application, listen="*:8080")

What an application returns as ``environ["wsgi.file_wrapper"](file)``, or by ``sendgate.wsgi``, leaves in the
background, by sendfile. No thread of the pool waits for it, nor does the main loop, for the client or for the disk.
All other responses are waitress's.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import waitress
import waitress.runner
from waitress import wasyncore
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.server import create_server as _create_server
from waitress.task import WSGITask

from ._adapters import server_field
from ._answer import Answer
from ._core import _Sink
from ._errors import PeerClosedError, ResponseTimeoutError, SendgateError
from ._sender import Sender
from ._types import Completion, Connection
from .wsgi import Gateway

if TYPE_CHECKING:
    from .wsgi import Application, Environ, StartResponse

__all__ = ["create_server", "serve"]

#: How a channel flushes its buffers is waitress's own affair.
_KNOWN = "3"

if importlib.metadata.version("waitress").split(".")[0] != _KNOWN:
    raise ImportError(f"sendgate.waitress knows waitress {_KNOWN}, not {importlib.metadata.version('waitress')}")

#: In the environ: the task that runs the application.
_TASK = "sendgate.task"


def serve(application: Application, **kw: Any) -> None:
    """waitress.serve, with files sent by the library."""
    waitress.serve(application, _server=create_server, **kw)


def create_server(application: Application, map: dict[int, Any] | None = None, **kw: Any) -> Any:
    """waitress.create_server, with files sent by the library."""
    map = {} if map is None else map
    server = _create_server(application, map, **kw)
    sender = Sender(max_in_flight=65536)
    for dispatcher in map.values():
        # The map may have another server in it.
        if isinstance(dispatcher, BaseWSGIServer) and dispatcher.channel_class is not _Channel:
            dispatcher.channel_class = _Channel
            dispatcher.application = _Application(dispatcher.application)
            dispatcher.sendgate_sender = sender
    _Completions(sender, map)
    return server


class _Application:
    """Stands between waitress and the application."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        task: _Task = environ.pop(_TASK)
        result = Gateway(environ, start_response).call(self._application)
        return task.answer(result) if type(result) is Answer else result


class _Task(WSGITask):  # type: ignore[misc]
    """A request that a thread of the pool answers."""

    def get_environment(self) -> Environ:
        environ: Environ = super().get_environment()
        environ[_TASK] = self
        # For those who want to know whether the client is still there.
        environ["sendgate.socket"] = self.channel.socket
        return environ

    def answer(self, answer: Answer) -> _Body:
        """What waitress queues for it. The head is in it, so waitress is told that the head is out."""
        try:
            body = _Body(answer, self.channel)
        except BaseException:
            answer.close()
            raise
        self.complete = self.wrote_header = True
        self.close_on_finish = not body.keep_alive
        return body


class _Body(ReadOnlyFileBasedBuffer):  # type: ignore[misc]
    """An answer in a channel's queue. For waitress it has one byte, and that is gone when all of the answer is.

    Used with the channel's lock held, or by the main thread while there is no task.
    """

    def __init__(self, answer: Answer, channel: _Channel) -> None:
        self._answer = answer
        self._exchange = answer.exchange(server_field(channel.adj.ident), False, False)
        try:
            # Now, because if a field is bad, there can still be another answer.
            self.keep_alive = self._exchange.decide().keep_alive
        except BaseException:
            self._exchange.close()
            raise
        self._sender: Sender = channel.server.sendgate_sender
        self._id = 0
        self._closed = False
        self.remain = 1
        self.in_flight = False
        #: How it has ended.
        self.connection: Connection | None = None

    def prepare(self, size: int | None = None) -> int:
        return self.remain

    def get(self, numbytes: int = -1, skip: bool = False) -> _Body:
        return self

    def skip(self, numbytes: int, allow_prune: bool = False) -> None:
        self.remain -= numbytes

    def send(self, channel: _Channel) -> None:
        """Send what takes no waiting, and leave the rest to the sender."""
        sender = self._sender
        sink = sender._sink(_Sink(channel.socket, channel.adj.channel_timeout * 1000), try_now=True)
        self.connection = Connection.BROKEN
        self._id, result = sender._submit(self._exchange, sink, (channel, self))
        self.in_flight = self._id != 0
        self.connection = None if self.in_flight else result.connection

    def end(self, completion: Completion) -> None:
        """It has ended."""
        self.in_flight = False
        self.connection = completion.result.connection
        if self._closed:
            self.close()

    def close(self) -> None:
        self._closed = True
        if self.in_flight:
            # What is sent is needed until that has ended.
            self._sender.cancel(self._id)
            return
        self._exchange.close()
        self._answer.close()


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection."""

    task_class = _Task

    def _is_sending(self) -> bool:
        """Whether the sender is at work: nothing is to be done here until it is done."""
        first = self.outbufs[0]
        return type(first) is _Body and first.in_flight

    @property
    def last_activity(self) -> float:
        """For waitress, which closes idle channels. The sender does so by itself."""
        return time.time() if self._is_sending() else self._last_activity

    @last_activity.setter
    def last_activity(self, seconds: float) -> None:
        self._last_activity = seconds

    def writable(self) -> bool:
        """Whether the main loop is to wait until something can be written."""
        return bool(self.will_close or (not self._is_sending() and super().writable()))

    def send(self, data: Any, do_close: bool = True) -> int:
        """Send something, and return how many bytes of it are out."""
        if type(data) is not _Body:
            sent: int = super().send(data, do_close)
            return sent
        if data.connection is None and not data.in_flight:
            try:
                data.send(self)
            except SendgateError as error:
                self._fail(error)
        return int(data.connection in (Connection.REUSABLE, Connection.CLOSE))

    def ended(self, body: _Body, completion: Completion) -> None:
        """A response has ended. In the main thread."""
        with self.outbuf_lock:
            body.end(completion)
        self.last_activity = time.time()
        if self.connected:
            if completion.error is not None:
                self._fail(completion.error)
            self.handle_write()

    def _fail(self, error: SendgateError) -> None:
        if not isinstance(error, (PeerClosedError, ResponseTimeoutError)):
            self.logger.error("Error sending a file: %s", error)
        self.will_close = True


class _Completions(wasyncore.dispatcher):  # type: ignore[misc]
    """Tells channels that their responses have ended. In the main loop."""

    def __init__(self, sender: Sender, map: dict[int, Any]) -> None:
        super().__init__(map=map)
        self._sender = sender
        self._fileno = sender.fileno()
        self.add_channel()

    def readable(self) -> bool:
        # The loop ends when nothing is left in its map.
        if not self._sender._submitted and all(isinstance(other, _Completions) for other in self._map.values()):
            self.close()
            return False
        return True

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        for completion in self._sender.take():
            channel, body = completion.token
            try:
                channel.ended(body, completion)
            except Exception:
                self.logger.exception("Unexpected error at the end of a response")
                channel.handle_close()

    def close(self) -> None:
        super().close()
        self._sender.close()


if __name__ == "__main__":
    # waitress-serve.
    sys.exit(waitress.runner.run(_serve=serve))
