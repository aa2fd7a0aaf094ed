"""cheroot, with files sent by the library.

    server = cheroot.wsgi.Server(("0.0.0.0", 8070), application)
    server.gateway = sendgate.cheroot.Gateway

What an application returns as ``environ["wsgi.file_wrapper"](file)``, which cheroot itself doesn't have, or by
``sendgate.wsgi``, leaves by sendfile. A thread of the pool waits for the client. All other responses are cheroot's.
"""

from __future__ import annotations

import ssl
from typing import Any

from cheroot.server import HTTPRequest
from cheroot.wsgi import Gateway_10

from ._adapters import check_hooks, deliver
from ._answer import Answer, reason
from ._types import Connection, Result
from .wsgi import Gateway as _Gateway
from .wsgi import give

__all__ = ["Gateway"]

check_hooks("sendgate.cheroot", HTTPRequest, "ensure_headers_sent", "send_headers", "respond")
check_hooks("sendgate.cheroot", Gateway_10, "get_environ", "respond", "start_response", "write")


class Gateway(Gateway_10):
    """cheroot's gateway to a WSGI application."""

    def respond(self) -> None:
        """Answer the request."""
        req = self.req
        gateway = _Gateway(self.env, self.start_response)
        result: Any = gateway.call(req.server.wsgi_app)
        try:
            if type(result) is Answer:
                if _can_write_to(req.conn.socket):
                    self._send(result)
                    return
                result = give(result, self.env, self.start_response, None)
            for chunk in result:
                if not isinstance(chunk, bytes):
                    raise ValueError("WSGI Applications must yield bytes")
                if chunk:
                    self.write(chunk)
            req.ensure_headers_sent()
        finally:
            if hasattr(result, "close"):
                result.close()

    def _send(self, answer: Answer) -> None:
        req = self.req
        close = req.close_connection or not req.server.can_add_keepalive_connection
        if req.chunked_read:
            # What is left of it would be taken for the next request.
            close = close or not req.rfile.closed
        elif not close:
            req.rfile.read()
        server = req.server
        deliver(answer, req.conn.socket, server.server_name, close, self._sent, timeout=server.timeout)

    def _sent(self, result: Result) -> None:
        """Tell cheroot."""
        req = self.req
        req.sent_headers = True
        req.status = reason(result.http_status).encode()
        req.conn.wfile.bytes_written += result.head_sent + result.body_sent
        if result.connection is not Connection.REUSABLE:
            req.close_connection = True


def _can_write_to(sock: Any) -> bool:
    """Whether the library can: it knows the TLS of the standard library, but not pyOpenSSL's."""
    return isinstance(sock, ssl.SSLSocket) or not hasattr(sock, "do_handshake")
