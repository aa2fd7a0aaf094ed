"""``sendgate.gunicorn.GeventWorker``, apart from the others because it imports gevent."""

from __future__ import annotations

from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker as _GeventWorker

from ._core import _Exchange, _Sink
from ._gevent import respond
from .gunicorn import Body, _Worker


class GeventWorker(_Worker, _GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker. The greenlet waits for its response, which leaves by sendfile in the background."""

    def send(self, exchange: _Exchange, sock: Any, body: Body) -> None:
        """Send it. Others run meanwhile."""
        try:
            body.ended(respond(exchange, _Sink(sock, self._timeout)))
        except gevent.GreenletExit as killed:
            # graceful_timeout is over. gunicorn goes on to its log, and sees that the connection is to be closed.
            body.ended(killed.result)
