"""``python -m sendgate``: serve a folder, in the place of ``python -m http.server``.

The classes are those of the standard library's http.server. Request heads are parsed and answers are made by
the library; here is what a file server adds: paths, types, the index of a directory, the log.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import html
import os
import posixpath
import socket
import socketserver
import stat
import sys
import time
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote_from_bytes

from . import __version__
from ._core import File, Request, open_beneath, respond
from ._errors import FileChangedError, NotRegularError, PeerClosedError, RequestError, SendgateError
from ._site import content_type, error_page, page, redirect_page, redirect_target, resolve, status_of
from ._types import Connection, FileArg, Result

#: Longest request head, in bytes. RFC 9112 3 recommends at least 8000 for the request line alone.
MAX_HEAD = 65536
#: Bytes of content that nobody reads, and seconds, that are waited for before closing: see ``_linger``.
LINGER_BYTES = 1 << 20
LINGER_SECONDS = 2.0

_INDEX = (b"index.html", b"index.htm")


class Handler(BaseHTTPRequestHandler):
    """One connection: reads requests and answers them until it is closed."""

    protocol_version = "HTTP/1.1"
    server_version = "sendgate/" + __version__
    server: DirectoryServer
    #: Seconds that a connection may be idle between requests, or stall within one.
    timeout = 60
    #: The library sends head and body together, so nothing is gained by waiting for more.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Prepare for the first request."""
        super().setup()
        self.requestline = ""
        self.request_version = "HTTP/1.1"
        self.command = ""
        self._request: Request | None = None
        self._unread = False

    def handle(self) -> None:
        """Answer requests until the connection is to be closed."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError, socket.timeout):
            return
        if self._unread:
            self._linger()

    def handle_one_request(self) -> None:
        """Read one request and answer it."""
        self.close_connection = True
        self._request = None
        self.requestline = ""
        head = self._read_head()
        if not head:
            return
        try:
            self._request = Request.from_head(head)
        except RequestError:
            self._request = None
        line = head.lstrip(b"\r\n").split(b"\n", 1)[0]
        self.requestline = line.rstrip(b"\r").decode("latin-1")
        if self._request is None:
            self._unread = True
            too_long = len(head) >= MAX_HEAD
            self._error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_long else HTTPStatus.BAD_REQUEST)
            return
        self.command = self._request.method
        self._unread = self._request.has_body
        if self.command not in ("GET", "HEAD"):
            self._error(HTTPStatus.METHOD_NOT_ALLOWED, [("Allow", "GET, HEAD")])
            return
        self._answer(self._request.target or "")

    def _read_head(self) -> bytes:
        """The bytes up to and including the empty line, or MAX_HEAD of them; b"" if the client closed or was idle."""
        lines: list[bytes] = []
        room = MAX_HEAD
        try:
            while room > 0:
                line = self.rfile.readline(room)
                if not line:
                    return b""
                room -= len(line)
                # RFC 9112 2.2: empty lines before a request are ignored.
                if line in (b"\r\n", b"\n"):
                    if lines:
                        lines.append(line)
                        break
                    continue
                lines.append(line)
        except (TimeoutError, socket.timeout):
            # Silence between requests is nothing; a head that stops half-way is worth a line.
            if lines:
                self.log_error("request timed out")
            return b""
        return b"".join(lines)

    def _linger(self) -> None:
        """Let the client read the answer before the connection goes.

        Closing a socket with unread content in it makes the kernel send a reset, and the client may then lose the
        answer that it has not read yet (RFC 9112 9.6).
        """
        end = time.monotonic() + LINGER_SECONDS
        left = LINGER_BYTES
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and time.monotonic() < end:
                self.connection.settimeout(max(0.01, end - time.monotonic()))
                data = self.connection.recv(65536)
                if not data:
                    break
                left -= len(data)

    # ---- Answers ----

    def _send(
        self,
        file: FileArg,
        media_type: str | None,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Answer with a file or bytes, log it, and note whether the connection stays."""
        failure = ""
        result: Result | None = None
        try:
            result = respond(
                self.connection,
                self._request,
                file,
                status=status,
                headers=[("Server", self.server_version), *headers],
                content_type=media_type,
                # Without a request there is no telling where the next one begins.
                close=self._request is None,
                timeout=self.timeout,
            )
        except PeerClosedError as error:
            result = error.result
        except SendgateError as error:
            result = error.result
            if error.connection is Connection.UNTOUCHED and status != HTTPStatus.INTERNAL_SERVER_ERROR:
                # A file that the kernel makes up, say: nothing was sent, so the client can still be told.
                self.log_error("%r: %s", self.requestline, error)
                self._error(HTTPStatus.INTERNAL_SERVER_ERROR)
                return
            failure = f"{self.requestline!r}: {error}"
            if isinstance(error, FileChangedError):
                failure += " (the file was changed while it was sent)"
        self.close_connection = result is None or result.connection is not Connection.REUSABLE
        if result is not None:
            self.log_request(result.http_status or "-", result.body_sent)
        if failure:
            self.log_error("%s", failure)

    def _error(self, status: HTTPStatus, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answer with a short page that says no more than the status does."""
        self._send(error_page(status), "text/html; charset=utf-8", status, headers)

    def _answer(self, target: str) -> None:
        resolved = resolve(target)
        if resolved is None:
            self._error(HTTPStatus.BAD_REQUEST)
            return
        path, is_directory, query = resolved
        if is_directory:
            self._directory(path)
            return
        try:
            with self._open(path) as file:
                self._send(file, content_type(os.fsdecode(path)))
        except NotRegularError as error:
            if error.errno == errno.EISDIR:
                location = redirect_target("/", path, query)
                self._send(redirect_page(location), "text/html; charset=utf-8", 301, [("Location", location)])
            else:
                self._error(HTTPStatus.FORBIDDEN)
        except OSError as error:
            self._cannot_open(error)

    def _cannot_open(self, error: OSError) -> None:
        status = HTTPStatus(status_of(error))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log_error("%r: %s", self.requestline, error)
        self._error(status)

    def _open(self, path: bytes) -> File:
        return open_beneath(self.server.root_fd, path, outside=self.server.follow_symlinks)

    def _directory(self, path: bytes) -> None:
        """Answer with the directory's index.html or index.htm, else with a list of what is in it."""
        for name in _INDEX:
            try:
                with self._open(posixpath.join(path, name)) as file:
                    self._send(file, content_type(os.fsdecode(name)))
                    return
            except NotRegularError:
                continue
            except OSError as error:
                if error.errno != errno.ENOENT:
                    self._cannot_open(error)
                    return
        try:
            fd = self._open_directory(path)
        except OSError as error:
            self._cannot_open(error)
            return
        try:
            body = self._listing(path, fd)
        except OSError as error:
            self._cannot_open(error)
            return
        finally:
            os.close(fd)
        self._send(body, "text/html; charset=utf-8")

    def _open_directory(self, path: bytes) -> int:
        """The directory's descriptor. OSError if it isn't one, or is not beneath the root."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(path or b".", flags, dir_fd=self.server.root_fd)
        # What was opened is what is checked, so a link swapped in meanwhile makes no difference.
        if not self.server.follow_symlinks and not _is_beneath(_path_of(fd, path), _path_of(self.server.root_fd, b".")):
            os.close(fd)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return fd

    def _listing(self, path: bytes, fd: int) -> bytes:
        """An HTML page with names, sizes and dates of a directory's content."""
        title = html.escape("/" + os.fsdecode(path) + ("/" if path else ""))
        here = _path_of(fd, path)
        root = _path_of(self.server.root_fd, b".")
        rows = []
        with os.scandir(fd) as entries:
            for entry in entries:
                row = self._row(entry, here, root)
                if row is not None:
                    rows.append(row)
        rows.sort()
        lines = ['<tr><td><a href="../">../</a></td><td></td><td></td></tr>'] if path else []
        lines += [row[-1] for row in rows]
        table = (
            "<table>\n<tr><th>Name</th><th>Size</th><th>Modified (UTC)</th></tr>\n" + "\n".join(lines) + "\n</table>"
        )
        return page(f"Index of {title}", f"<h1>Index of {title}</h1>\n{table}")

    def _row(self, entry: os.DirEntry[str], here: bytes, root: bytes) -> tuple[str, str, str] | None:
        """Sort keys and a line of the table, or None for what would not be served anyway."""
        name = entry.name
        try:
            if entry.is_symlink() and not self.server.follow_symlinks:
                real = os.path.realpath(os.path.join(here, os.fsencode(name)))
                if not _is_beneath(real, root):
                    return None
            info = entry.stat()
        except OSError:
            return None  # removed meanwhile, a link to nothing, or not ours to see
        if stat.S_ISDIR(info.st_mode):
            slash, size = "/", "-"
        elif stat.S_ISREG(info.st_mode):
            slash, size = "", str(info.st_size)
        else:
            return None
        modified = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(info.st_mtime))
        # "./" because a name may have a colon, which would look like a scheme.
        href = "./" + quote_from_bytes(os.fsencode(name)) + slash
        text = html.escape(name + slash)
        line = f'<tr><td><a href="{href}">{text}</a></td><td class="n">{size}</td><td>{modified}</td></tr>'
        return name.lower(), name, line

    # ---- The log ----

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """One line per answer: the request line, the status, and the bytes of the body that were sent."""
        self.log_message('"%s" %s %s', self.requestline, str(int(code)) if isinstance(code, int) else code, str(size))

    def log_message(self, format: str, *args: Any) -> None:
        """Write a line to stderr, with what could disturb a terminal escaped, as http.server does since 3.11."""
        text = "".join(
            c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in format % args
        )
        sys.stderr.write(f"{self.address_string()} - - [{self.log_date_time_string()}] {text}\n")


def _path_of(fd: int, fallback: bytes) -> bytes:
    """Where an open directory is."""
    try:
        return os.readlink(b"/proc/self/fd/%d" % fd)
    except OSError:  # no procfs
        return os.path.realpath(fallback)


def _is_beneath(path: bytes, root: bytes) -> bool:
    return path == root or path.startswith(root.rstrip(b"/") + b"/")


class DirectoryServer(ThreadingHTTPServer):
    """A server of one folder, with a thread per connection."""

    daemon_threads = True
    #: As many as the kernel lets wait: a browser opens several at once, and so do load tests.
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], directory: str, *, follow_symlinks: bool = False) -> None:
        """Open the folder and the port. OSError with ``filename`` set if it is the folder that can't be opened."""
        info = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = info[0]
        self.follow_symlinks = follow_symlinks
        self.root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            super().__init__(info[4], Handler)  # type: ignore[arg-type]
        except BaseException:
            # Where binding fails, the base class has called server_close() already.
            self._close_root()
            raise

    def server_bind(self) -> None:
        """Bind without asking for the host's name, which can take seconds, and which nothing here needs."""
        if self.address_family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                # "::" is every address, of both versions.
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection. Out of descriptors, it stays in the queue, and asking again at once would spin."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.05)
            raise

    def server_close(self) -> None:
        """Close the port and the folder."""
        super().server_close()
        self._close_root()

    def _close_root(self) -> None:
        fd, self.root_fd = self.root_fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def url(self) -> str:
        """Where to reach it."""
        host, port = self.server_address[0], self.server_address[1]
        return f"http://[{host}]:{port}/" if self.address_family == socket.AF_INET6 else f"http://{host}:{port}/"  # type: ignore[str-bytes-safe]


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port is 0 to 65535")
    return number


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0 after Ctrl-C, 1 if the server can't start."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["fastcgi"]:
        from ._fastcgi_command import main as fastcgi

        return fastcgi(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m sendgate",
        description="Serve a folder over HTTP, with conditional and range requests. Ctrl-C ends it.",
        epilog="python -m sendgate fastcgi --help: serve a folder or an application to nginx, lighttpd or Apache. "
        "(A folder of that name is ./fastcgi.)",
    )
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", default=".", help="the folder (default: the current one)"
    )
    parser.add_argument(
        "--bind", "-b", metavar="ADDR", default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, which other machines can't reach; 0.0.0.0 or :: for all)",
    )  # fmt: skip
    parser.add_argument(
        "--port", "-p", metavar="N", type=_port, default=8000, help="port, 0 for any free one (default: 8000)"
    )
    parser.add_argument(
        "--follow-symlinks", action="store_true", help="also serve what symbolic links outside of DIR lead to"
    )
    parser.add_argument("--version", action="version", version=f"sendgate {__version__}")
    options = parser.parse_args(arguments)

    try:
        server = DirectoryServer(
            (options.bind, options.port), options.directory, follow_symlinks=options.follow_symlinks
        )
    except socket.gaierror as error:
        print(f"sendgate: cannot listen on {options.bind}: {error.strerror}", file=sys.stderr)
        return 1
    except OSError as error:
        what = f"serve {error.filename}" if error.filename else f"listen on {options.bind} port {options.port}"
        print(f"sendgate: cannot {what}: {error.strerror}", file=sys.stderr)
        return 1
    with server:
        try:
            print(f"Serving {options.directory} at {server.url}", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nInterrupted, exiting.", file=sys.stderr)
    return 0
