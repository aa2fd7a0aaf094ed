"""A file server in Python without the ``sendgate`` package: the standard library, and ctypes for the C library.

    python3 fileserver_ctypes.py PORT DIR        serves DIR on 127.0.0.1:PORT; port 0 lets the system pick

SENDGATE_LIBRARY names the library if it isn't where the system looks for libraries. One thread for each connection;
ctypes releases the interpreter's lock while sendgate_respond_fd sends, so a slow client holds nobody else up.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import http
import http.server
import mimetypes
import os
import signal
import socketserver
import sys
import urllib.parse

CONN_UNTOUCHED, CONN_REUSABLE = 0, 1
TIMEOUT_SECONDS = 60

#: For a file that can't be opened, by errno. Others: there is none, or it isn't beneath the directory.
STATUS = {
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EIO: 500,
    errno.EMFILE: 503,
    errno.ENFILE: 503,
    errno.ENOMEM: 503,
}

sendgate = ctypes.CDLL(os.environ.get("SENDGATE_LIBRARY", "libsendgate.so.0"))


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS  # for the client to send something
    directory = -1  # a descriptor: whose files are served

    def do_GET(self) -> None:
        """A file, or what there is to say about it."""
        try:
            target = urllib.parse.urlsplit(self.path)
        except ValueError:
            return self.say(400)
        path = urllib.parse.unquote_to_bytes(target.path).lstrip(b"/")
        if path.endswith(b"/") or not path:
            path += b"index.html"
        if b"\0" in path:
            return self.say(400)
        file, error = ctypes.c_int32(-1), ctypes.c_int32()
        opened = sendgate.sendgate_open(self.directory, path, 0, None, 0, ctypes.byref(file), None, ctypes.byref(error))
        if error.value == errno.EISDIR and not target.path.endswith("/"):
            query = "?" + target.query if target.query else ""
            return self.say(301, Location="./" + target.path.rpartition("/")[2] + "/" + query)
        if opened != 0:
            return self.say(STATUS.get(error.value, 404))
        try:
            content_type, encoding = mimetypes.guess_type(os.fsdecode(path))
            return self.send_file(file.value, content_type if encoding is None else None)
        finally:
            os.close(file.value)

    do_HEAD = do_GET

    def send_file(self, file: int, content_type: str | None) -> None:
        """Head and content, or as much of it as the request's fields want."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        connection = ctypes.c_uint32()
        status = sendgate.sendgate_respond_fd(
            self.connection.fileno(),
            file,
            self.command.encode(),
            11 if self.request_version == "HTTP/1.1" else 10,
            lines.encode("latin-1"),
            f"Content-Type: {content_type or 'application/octet-stream'}\r\n".encode(),
            TIMEOUT_SECONDS * 1000,
            None,
            ctypes.byref(connection),
            None,
        )
        self.close_connection = connection.value != CONN_REUSABLE
        if status != 0 and connection.value == CONN_UNTOUCHED:
            self.close_connection = True
            self.say(400)

    def say(self, status: int, **fields: str) -> None:
        """An answer without a file."""
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # it would be taken for the next request
        content = f"{status} {http.HTTPStatus(status).phrase}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close" if self.close_connection else "keep-alive")
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self) -> None:
        """Other methods."""
        self.say(405, Allow="GET, HEAD")

    do_DELETE = do_OPTIONS = do_PATCH = do_POST = do_PUT = refuse

    def handle(self) -> None:
        """A client may leave whenever it likes."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


class Server(socketserver.ThreadingTCPServer):
    """One thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Serve until SIGTERM."""
    if len(sys.argv) != 3:
        sys.exit("usage: fileserver_ctypes.py PORT DIR")
    Handler.directory = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with Server(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        print(f"listening on 127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
