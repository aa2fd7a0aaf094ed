"""The project of examples/django for the tests: within this process, on servers, and with a store whose content a test
sends.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launching import serving

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[2] / "examples" / "django"

#: The middleware whose order is tried.
UPDATE = "django.middleware.cache.UpdateCacheMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"
CONDITIONAL = "django.middleware.http.ConditionalGetMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"
FETCH = "django.middleware.cache.FetchFromCacheMiddleware"
OUR_UPDATE = "sendgate.django.UpdateCacheMiddleware"
OUR_GZIP = "sendgate.django.GZipMiddleware"
OUR_CONDITIONAL = "sendgate.django.ConditionalGetMiddleware"

ETAG = '"store-1"'
LAST_MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"


def set_up(store: str = "http://127.0.0.1:9", file: str = __file__) -> None:
    """Make the project importable, and Django know it."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    import django
    from django.conf import settings

    os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
    django.setup()
    # Servers that other tests start have settings of their own.
    del os.environ["DJANGO_SETTINGS_MODULE"]
    settings.STORE, settings.FILE = store, file


class Store:
    """In a thread, a store that has all its content at once. A context manager."""

    def __init__(self, pieces: list[bytes]) -> None:
        content = b"".join(pieces)
        length = [("Content-Length", str(len(content)))]
        validators = [("ETag", ETAG), ("Last-Modified", LAST_MODIFIED)]
        #: Requests that were answered.
        self.asked: list[str] = []
        #: Connections that are open. Each has a thread.
        self.connected = 0
        self._lock = threading.Lock()
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # The last ACK of a request would wait for the answer, and that for the ACK.
            disable_nagle_algorithm = True

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def do_GET(self) -> None:
                store.asked.append(self.path)
                self.send_response(200)
                known = self.path != "/report"
                self.send_header("Content-Type", "application/gzip" if self.path == "/archive" else "text/plain")
                for name, value in [*length, *validators] if known else [("Transfer-Encoding", "chunked")]:
                    self.send_header(name, value)
                self.end_headers()
                if known:
                    self.wfile.write(content)
                else:
                    self.wfile.write(b"".join(map(_chunk, pieces)) + b"0\r\n\r\n")

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def process_request(self, request: Any, client_address: Any) -> None:
                with store._lock:
                    store.connected += 1
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                super().shutdown_request(request)
                with store._lock:
                    store.connected -= 1

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Store:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


class Feed:
    """A store of one request at a time, which sends what the test says, when it says so. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connection: socket.socket | None = None
        self._known = False

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._listener.close()

    def accept(self, length: int) -> str:
        """The next request, for content of so many bytes; what has a name of its own is begun. Returns the name."""
        self.hang_up()
        connection = self._connection = self._listener.accept()[0]
        connection.settimeout(20)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = b""
        while b"\r\n\r\n" not in request:
            received = connection.recv(65536)
            assert received, request
            request += received
        name = request.split(b" ")[1].decode()
        self._known = name != "/report"
        fields = ["Content-Type: text/plain", "Connection: close"]
        if self._known:
            fields += [f"Content-Length: {length}", f"ETag: {ETAG}", f"Last-Modified: {LAST_MODIFIED}"]
        else:
            fields += ["Transfer-Encoding: chunked"]
        connection.sendall(("HTTP/1.1 200 OK\r\n" + "\r\n".join(fields) + "\r\n\r\n").encode())
        return name

    def send(self, piece: bytes) -> None:
        """The next piece."""
        assert self._connection is not None
        self._connection.sendall(piece if self._known else _chunk(piece))

    def end(self) -> None:
        """That was all."""
        assert self._connection is not None
        if not self._known:
            self._connection.sendall(b"0\r\n\r\n")
        self.hang_up()

    def was_left(self) -> bool:
        """Whether who has asked hangs up; False: not within 20 s."""
        assert self._connection is not None
        try:
            return self._connection.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def hang_up(self) -> None:
        """Whatever was sent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# ---- What a client sees ----


class Reply:
    """A response on a connection of its own, which is read while it comes."""

    def __init__(self, address: tuple[str, int], target: str, *fields: str) -> None:
        self._socket = socket.create_connection(address, timeout=20)
        lines = [f"GET {target} HTTP/1.1", "Host: localhost", *fields]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._raw = b""
        #: Content as it is decoded so far: without chunks, and without gzip.
        self.content = b""
        self.status = 0
        self.fields: dict[str, str] = {}
        #: Bytes of content as they were sent, without chunks.
        self.sent = 0
        self.complete = False
        self._gzip: Any = None
        self._chunked = False

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def leave(self) -> None:
        """Close it."""
        self._socket.close()

    def _more(self, timeout: float) -> bool:
        """Receive something. False: it takes longer; ConnectionError: it ends before it may."""
        self._socket.settimeout(timeout)
        try:
            received = self._socket.recv(1 << 18)
        except TimeoutError:
            return False
        if not received and self.status != 0 and not self._chunked and "content-length" not in self.fields:
            self.complete = True
            return True
        if not received:
            raise ConnectionError(f"ended after {self.content[-100:]!r}")
        self._raw += received
        if self.status == 0 and b"\r\n\r\n" in self._raw:
            self._head()
        if self.status != 0:
            self._decode()
        return True

    def _head(self) -> None:
        head, _, self._raw = self._raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        gzipped = self.fields.get("content-encoding") == "gzip"
        self._gzip = zlib.decompressobj(31) if gzipped else None
        self._chunked = self.fields.get("transfer-encoding") == "chunked"

    def _decode(self) -> None:
        if not self._chunked:
            data, self._raw = self._raw, b""
            self._take(data)
            length = self.fields.get("content-length")
            if length is not None:
                assert self.sent <= int(length), "too much"
                self.complete = self.sent == int(length)
            return
        while match := re.match(rb"([0-9a-fA-F]+)\r\n", self._raw):
            size, start = int(match[1], 16), match.end()
            if len(self._raw) < start + size + 2:
                break
            self._take(self._raw[start : start + size])
            self._raw = self._raw[start + size + 2 :]
            self.complete = size == 0

    def _take(self, data: bytes) -> None:
        self.sent += len(data)
        if self._gzip is None:
            self.content += data
            return
        while data:
            self.content += self._gzip.decompress(data)
            data = self._gzip.unused_data
            if data:
                # Each piece may be a member of its own (RFC 1952 2.2).
                self._gzip = zlib.decompressobj(31)

    def head(self) -> None:
        """Wait for it."""
        while self.status == 0:
            assert self._more(20), "no head"

    def has(self, count: int, timeout: float = 20) -> bool:
        """Wait until so many bytes of content are there."""
        while len(self.content) < count:
            if not self._more(timeout):
                return False
        return True

    def skip(self, count: int) -> bool:
        """Wait until so many bytes have been sent, and keep none."""
        while self.sent < count:
            self.content = b""
            if not self._more(20):
                return False
        return True

    def rest(self) -> bytes:
        """Wait for all of it."""
        while not self.complete:
            assert self._more(20), "it doesn't end"
        return self.content


# ---- Servers ----

#: Middleware by the name that a request chooses it by.
STACKS = {
    "no middleware": [],
    "UpdateCache": [UPDATE],
    "GZip": [GZIP],
    "ConditionalGet": [CONDITIONAL],
    "Common": [COMMON],
    "FetchFromCache": [FETCH],
    "all five": [UPDATE, GZIP, CONDITIONAL, COMMON, FETCH],
    "our UpdateCache": [OUR_UPDATE],
    "our GZip": [OUR_GZIP],
    "our ConditionalGet": [OUR_CONDITIONAL],
    "all five, three ours": [OUR_UPDATE, OUR_GZIP, OUR_CONDITIONAL, COMMON, FETCH],
}


def _gunicorn(worker: str) -> str:
    return f"gunicorn --bind 127.0.0.1:{{port}} --no-control-socket --worker-class {worker} django_application:wsgi"


#: What runs the project, behind "python -m".
SERVERS = {
    "gunicorn": _gunicorn("gthread --threads 4"),
    "sendgate.gunicorn": _gunicorn("sendgate.gunicorn.ThreadWorker"),
    "uvicorn": "uvicorn --port {port} django_application:stock_asgi",
    "sendgate.uvicorn": "uvicorn --port {port} --http sendgate.uvicorn:HttpTools django_application:asgi",
    # Files only: wsgiref has no threads, and Waitress keeps what is little.
    "wsgiref": "django_application {port}",
    "waitress": "waitress --listen 127.0.0.1:{port} django_application:wsgi",
}


@dataclass
class Running:
    """A server with the project, in its own process."""

    name: str
    address: tuple[str, int]
    process: subprocess.Popen[Any]
    log: Path

    def memory(self) -> int:
        """Bytes that its processes have for themselves."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = 0
        for process in (self.process.pid, *map(int, children)):
            status = Path(f"/proc/{process}/status").read_text()
            match = re.search(r"^RssAnon:\s*(\d+) kB$", status, re.MULTILINE)
            assert match is not None, status
            found += int(match[1]) * 1024
        return found


@contextlib.contextmanager
def running(server: str, directory: Path, store: str, file: Path) -> Iterator[Running]:
    """Start it, wait until it answers, and stop it at the end."""
    log = directory / f"log {server}"
    path = [str(EXAMPLE), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "STORE": store, "FILE": str(file)}

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", *SERVERS[server].format(port=port).split()]

    with serving(command, log, "/none", cwd=directory, env=environment) as (address, process):
        yield Running(server, address, process, log)
