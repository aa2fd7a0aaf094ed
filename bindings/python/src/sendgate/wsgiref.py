"""The standard library's wsgiref and http.server, with files sent by the library.

    from sendgate.wsgiref import make_server                 # in the place of wsgiref.simple_server
    from sendgate.wsgiref import SimpleHTTPRequestHandler    # in the place of http.server

All else that they do is as before. These servers wait for each client: put ``socketserver.ThreadingMixIn`` before
``WSGIServer``, or use ``ThreadingHTTPServer``, to serve several at once.
"""

from __future__ import annotations

import functools
import http.server
import os
import socketserver
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref import simple_server
from wsgiref.simple_server import WSGIServer

from ._adapters import deliver
from ._answer import Answer, _own, reason
from ._core import Request
from ._errors import NotRegularError, SendgateError
from ._types import Connection, Result
from .wsgi import Gateway

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .wsgi import Application, Environ, StartResponse

__all__ = ["ServerHandler", "SimpleHTTPRequestHandler", "WSGIRequestHandler", "WSGIServer", "make_server"]


class ServerHandler(simple_server.ServerHandler):
    """wsgiref's handler of one request. It closes the connection after each, as wsgiref does, and says so."""

    request_handler: http.server.BaseHTTPRequestHandler
    result: Any

    def run(self, application: Any) -> None:
        """Call the application, and send what it returns."""
        super().run(functools.partial(self._call, application))

    def _call(self, application: Application, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not self.client_is_modern():
            # HTTP/0.9 has no heads.
            return application(environ, start_response)
        return Gateway(environ, start_response).call(application)

    def result_is_file(self) -> bool:
        """Whether ``sendfile`` sends the result."""
        return type(self.result) is Answer

    def sendfile(self) -> bool:
        """Send head and body."""
        answer: Answer = self.result
        handler = self.request_handler
        self._flush()
        try:
            server = self.server_software
            deliver(answer, handler.connection, server, True, self._sent, timeout=handler.timeout)
        except SendgateError:
            if not self.headers_sent:
                raise  # and answered with 500
            self.log_exception(sys.exc_info())
        return True

    def _sent(self, result: Result) -> None:
        """For the log."""
        self.headers_sent = True
        self.status = reason(result.http_status)
        self.bytes_sent = result.body_sent


class WSGIRequestHandler(simple_server.WSGIRequestHandler):
    """wsgiref's handler of one connection."""

    def handle(self) -> None:
        """Handle the request: wsgiref's method, which names the class that it uses."""
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline = ""
            self.request_version = ""
            self.command = ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            return
        if not self.parse_request():
            return
        server: Any = self.server
        threads = isinstance(server, socketserver.ThreadingMixIn)
        handler = ServerHandler(
            self.rfile, self.wfile, self.get_stderr(), self.get_environ(), multithread=threads  # type: ignore[arg-type]
        )  # fmt: skip
        handler.request_handler = self
        handler.run(server.get_app())


def make_server(
    host: str,
    port: int,
    app: Application,
    server_class: type[WSGIServer] = WSGIServer,
    handler_class: type[simple_server.WSGIRequestHandler] = WSGIRequestHandler,
) -> WSGIServer:
    """wsgiref's make_server, with another handler_class."""
    return simple_server.make_server(host, port, app, server_class, handler_class)


class SimpleHTTPRequestHandler(http.server.SimpleHTTPRequestHandler):
    """http.server's handler for the files of a folder, with conditions, ranges and sendfile.

    What a subclass does counts: ``translate_path``, ``guess_type``, ``list_directory``, ``index_pages``,
    ``version_string``, ``log_request``, and fields that it adds in ``send_response`` or ``end_headers``. One that
    overrides ``copyfile`` or ``send_head`` sends files by itself.
    """

    #: What was given to send_header for a file, while that is asked for.
    _fields: list[tuple[str, str]] | None = None

    def send_head(self) -> Any:
        """Answer with the file, body included, and return None; all else is answered by http.server."""
        path = self._path() if self.request_version != "HTTP/0.9" else None
        if path is None or type(self).copyfile is not http.server.SimpleHTTPRequestHandler.copyfile:
            return super().send_head()
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (OSError, ValueError):
            self.send_error(HTTPStatus.NOT_FOUND, "File not found")
            return None
        try:
            self._send(fd, path)
        finally:
            os.close(fd)
        return None

    def _path(self) -> str | None:
        """The path of what send_head would open; None if there is nothing to open."""
        path = self.translate_path(self.path)
        if not os.path.isdir(path):
            return None if path.endswith("/") else path
        if not urlsplit(self.path).path.endswith("/"):
            return None
        for name in getattr(self, "index_pages", ("index.html", "index.htm")):
            index = os.path.join(path, name)
            if os.path.isfile(index):
                return index
        return None

    def _send(self, fd: int, path: str) -> None:
        fields = self._fields = []
        try:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", self.guess_type(path))
            self.end_headers()
        finally:
            self._fields = None
        answer = Answer(Request(self.command, self.request_version, self.headers.items()), fd, headers=_own(fields))
        self.wfile.flush()
        try:
            server = self.version_string()
            deliver(answer, self.connection, server, self.close_connection, self._sent, timeout=self.timeout)
        except NotRegularError:
            self.send_error(HTTPStatus.NOT_FOUND, "File not found")
        except SendgateError as error:
            self.log_error("%s", error)
            if error.connection is Connection.UNTOUCHED:
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _sent(self, result: Result) -> None:
        self.close_connection = result.connection is not Connection.REUSABLE
        self.log_request(result.http_status, result.body_sent)

    def send_response(self, code: int, message: str | None = None) -> None:
        """As http.server does; of a file's nothing is sent yet."""
        if self._fields is None:
            super().send_response(code, message)

    def send_header(self, keyword: str, value: str) -> None:
        """As http.server does; a file's are sent by the library."""
        if self._fields is None:
            super().send_header(keyword, value)
            return
        if keyword.lower() == "connection":
            self.close_connection = value.lower() == "close"
        self._fields.append((keyword, str(value)))

    def end_headers(self) -> None:
        """As http.server does; a file's are sent by the library."""
        if self._fields is None:
            super().end_headers()
