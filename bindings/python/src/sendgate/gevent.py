"""gevent's WSGI server, with files sent by the library.

    server = gevent.pywsgi.WSGIServer(("", 8088), application, handler_class=sendgate.gevent.WSGIHandler)

What an application returns as ``environ["wsgi.file_wrapper"](file)``, which gevent itself doesn't have, or by
``sendgate.wsgi``, leaves in the background, by sendfile: one greenlet waits for it, and neither a slow client nor a
slow disk holds up the others. All other responses are gevent's. Over TLS the bytes are read from the file and written
by gevent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gevent import pywsgi

from . import _gevent
from ._adapters import check_hooks, deliver
from ._answer import Answer, reason
from ._types import Connection, Result
from .wsgi import Gateway, give

if TYPE_CHECKING:
    from .wsgi import Application, Environ, StartResponse

__all__ = ["WSGIHandler"]

check_hooks("sendgate.gevent", pywsgi.WSGIHandler, "run_application", "process_result", "_orig_status")


class WSGIHandler(pywsgi.WSGIHandler):  # type: ignore[misc]
    """gevent's handler of one connection."""

    application: Any

    def run_application(self) -> None:
        """Call the application, and send what it returns."""
        self.application = functools.partial(self._call, self.application)
        super().run_application()

    def _call(self, application: Application, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        gateway = Gateway(environ, start_response)
        result = gateway.call(application)
        if type(result) is Answer and hasattr(self.socket, "do_handshake"):
            return give(result, environ, start_response, None)
        return result

    def process_result(self) -> None:
        """Send what the application has returned."""
        answer: Any = self.result
        # One that was begun is for iteration.
        if type(answer) is not Answer or answer.decision is not None:
            super().process_result()
            return
        deliver(answer, self.socket, None, self.close_connection, self._sent, respond=_gevent.respond)

    def _sent(self, result: Result) -> None:
        """Tell gevent: for its log, and whether the connection stays."""
        self._orig_status = reason(result.http_status)
        self.status = self._orig_status.encode()
        self.code = result.http_status
        self.headers_sent = True
        # With the head, as gevent counts.
        self.response_length = result.head_sent + result.body_sent
        if result.connection is not Connection.REUSABLE:
            self.close_connection = True
