"""``sendgate.gunicorn.GeventWorker``, apart from the others because it imports gevent."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker as _GeventWorker

from ._core import _Exchange, _Sink
from ._errors import SendgateError
from ._gevent import respond
from ._types import Connection
from .gunicorn import Body, _Worker


class GeventWorker(_Worker, _GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker. The greenlet waits for its response, which leaves by sendfile in the background."""

    def send(self, exchange: _Exchange, sock: Any, body: Body) -> None:
        """Send it. Others run meanwhile."""
        try:
            body.ended(respond(exchange, _Sink(sock, self._timeout)))
        except SendgateError:
            raise
        except BaseException as error:
            # Killed, or a gevent.Timeout of the application's.
            result = getattr(error, "result", None)
            if result is None or result.connection is Connection.UNTOUCHED:
                raise
            body.ended(result)
            # Or gunicorn would write about it into the response.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            # Where graceful_timeout is over, gunicorn goes on to its log.
            if not isinstance(error, gevent.GreenletExit):
                raise
