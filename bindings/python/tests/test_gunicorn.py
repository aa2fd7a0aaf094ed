"""The gunicorn workers: real gunicorn processes, asked over raw sockets."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

from launching import launched
from support import READS, moved, traced, wait_until

OURS = {name: f"sendgate.gunicorn.{name}" for name in ("SyncWorker", "ThreadWorker", "GeventWorker")}
#: Those that keep connections. gunicorn's sync worker closes each.
PERSISTENT = ("ThreadWorker", "GeventWorker")

ACCESS_LOG = ("--access-logformat", "%(m)s %(U)s %(s)s %(B)s", "--access-logfile")

each_worker = pytest.mark.parametrize("worker", OURS)
persistent_workers = pytest.mark.parametrize("worker", PERSISTENT)

#: More than sockets hold, and not a multiple of anything.
LENGTH = 24 * 2**20 + 12345
SMALL = b"".join(b"%07d\n" % number for number in range(1000))

#: What the servers run. It counts the files it has opened and those that were closed.
APPLICATION = '''
import io, mmap, os, pathlib, signal, time
import sendgate.gunicorn, sendgate.wsgi

HERE = pathlib.Path(__file__).parent
files = sendgate.wsgi.Files(HERE / "files", prefix="/files/")
closed = []
mapped = None


class Counted:
    """An open file, or what behaves like one, that knows how often it was closed."""

    def __init__(self, inner, kind):
        self.inner, self.kind = inner, kind
        if kind == "file":
            self.fileno = inner.fileno
        else:
            self.getbuffer = lambda: memoryview(inner) if kind == "mmap" else inner.getbuffer()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def close(self):
        closed.append(self.kind)
        self.inner.close()


def map_file(name):
    with open(HERE / "files" / name, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def open_(kind, name):
    if kind == "mmap":
        return map_file(name)
    if kind == "bytesio":
        return io.BytesIO((HERE / "files" / name).read_bytes())
    return open(HERE / "files" / name, "rb")


def text(start_response, body, *fields):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *fields])
    return [body]


def application(environ, start_response):
    global mapped
    path = environ["PATH_INFO"]
    wrapper = environ["wsgi.file_wrapper"]
    _, first, *rest = path.split("/")
    if first == "files":
        return files(environ, start_response)
    if first in ("file", "mmap", "bytesio"):
        file = Counted(open_(first, rest[0]), first)
        start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Server", "mine")])
        return wrapper(file, 4096)
    if first == "chunks":
        file = open_("file", rest[0])
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return iter(lambda: file.read(65536), b"")
    if first == "shared":
        mapped = mapped or map_file(rest[0])
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return wrapper(mapped)
    if first == "unmap":
        try:
            mapped.close()
        except BufferError as error:
            return text(start_response, f"BufferError: {error}".encode())
        return text(start_response, b"closed")
    if first == "closed":
        return text(start_response, " ".join(sorted(closed)).encode())
    if first == "error":
        raise RuntimeError("on purpose")
    if first == "refused":
        start_response("200 OK", [("X-Split", "a\\r\\nb: c")])
        return wrapper(Counted(open_("file", rest[0]), "file"))
    if first == "closes-badly":
        file = Counted(open_("file", rest[0]), "file")
        inner = file.inner
        def close():
            inner.close()
            raise RuntimeError("on purpose")
        file.inner = type("Inner", (), {"close": staticmethod(close)})()
        file.tell = inner.tell
        start_response("200 OK", [])
        return wrapper(file)
    return text(start_response, b"hello", ("X-Pid", str(os.getpid())))


def get_for_head(environ, start_response):
    """A middleware that knows only GET."""
    environ["REQUEST_METHOD"] = "GET"
    return application(environ, start_response)


def waits(environ, start_response):
    """Answers when it is told to."""
    (HERE / "waits").touch()
    while not (HERE / "go").exists():
        time.sleep(0.001)
    return text(start_response, environ["PATH_INFO"].encode())


def fields(path):
    """Of each file in a site, as an application may have it wrong."""
    if path == "bad":
        raise KeyError(path)
    return [("X-Name", "\u20ac" if path == "euro" else path)]


site = sendgate.wsgi.Files(HERE / "files", application=waits)
named = sendgate.wsgi.Files(HERE / "files", application=waits, headers=fields)


def closing(environ, start_response):
    """Says in standard output when what it has sent is closed."""
    result = application(environ, start_response)
    if not environ["PATH_INFO"].startswith("/mmap/"):
        return result
    inner = result.filelike
    def close():
        inner.inner.close()
        print("closed:", inner.kind, flush=True)
    inner.close = result._close = close
    return result


def slow(environ, start_response):
    """Takes longer than gunicorn's --timeout, and has something to send in between."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    def produce():
        for _ in range(7):
            time.sleep(1)
            yield b"piece\\n"
    return produce()


class Alarm(Exception):
    pass


def alarmed(environ, start_response):
    """A limit of the application's own for a response, as gunicorn's users make one for the sync worker."""
    def ring(*_):
        raise Alarm
    if environ["PATH_INFO"] == "/alarm/large":
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        environ["PATH_INFO"] = "/mmap/large"
    return application(environ, start_response)


def impatient(environ, start_response):
    """The same with gevent."""
    if environ["PATH_INFO"] == "/alarm/large":
        import gevent
        gevent.Timeout.start_new(0.3)
        environ["PATH_INFO"] = "/file/large"
    return application(environ, start_response)


class Impatient(sendgate.gunicorn.ThreadWorker):
    send_timeout = 1


class ImpatientSync(sendgate.gunicorn.SyncWorker):
    send_timeout = 1


class InterruptedSync(sendgate.gunicorn.SyncWorker):
    """Is told to quit while it sends: when the function of SENDGATE_TEST_INTERRUPTED has done its work."""

    def init_process(self):
        where, name = os.environ["SENDGATE_TEST_INTERRUPTED"].split(".")
        place = {"library": sendgate._sender, "sender": sendgate._sender.Sender}[where]
        if where == "library":
            library = place.lib

            class Library:
                def __getattr__(self, name):
                    return getattr(library, name)

            place.lib = place = Library()
        function = getattr(place, name)

        def interrupted(*arguments, **named):
            made = function(*arguments, **named)
            os.kill(os.getpid(), signal.SIGINT)
            return made

        setattr(place, name, interrupted)
        super().init_process()


def __getattr__(name):
    if name != "ImpatientGevent":
        raise AttributeError(name)

    class ImpatientGevent(sendgate.gunicorn.GeventWorker):
        send_timeout = 1

    return ImpatientGevent
'''


# ---- Servers and clients ----


class Gunicorn:
    """A gunicorn with its workers."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.port = 0
        self.context: ssl.SSLContext | None = None

    @property
    def log(self) -> str:
        """The error log."""
        path = self.directory / "errors"
        return path.read_text() if path.exists() else ""

    @property
    def access(self) -> list[str]:
        """The lines of the access log."""
        path = self.directory / "access"
        return path.read_text().splitlines() if path.exists() else []

    def connect(self, receive_buffer: int | None = None) -> Client:
        """A new connection. With a small buffer less is on its way to a client that doesn't read."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", self.port))
        return Client(sock if self.context is None else self.context.wrap_socket(sock, server_hostname="localhost"))

    def get(self, target: str, *fields: str, method: str = "GET") -> Response:
        """One request on a connection of its own."""
        with self.connect() as client:
            client.request(target, "Connection: close", *fields, method=method)
            return client.response(method)

    def worker(self) -> int:
        """The process that answers."""
        return int(self.get("/hello").fields["x-pid"])

    def stop(self) -> int:
        """SIGTERM. Returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Response:
    """A status, fields by lower-case name, and a body."""

    def __init__(self, head: bytes, body: bytes = b"") -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.protocol, status, _ = lines[0].split(" ", 2)
        self.status = int(status)
        pairs = [line.split(": ", 1) for line in lines[1:]]
        self.fields = {name.lower(): value for name, value in pairs}
        assert len(self.fields) == len(pairs), f"a field twice: {lines}"
        self.body = body

    @property
    def length(self) -> int:
        """As announced."""
        return int(self.fields.get("content-length", 0))


class Client:
    """One connection. A context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def request(
        self, target: str, *fields: str, method: str = "GET", version: str = "HTTP/1.1", body: bytes = b""
    ) -> None:
        """Send one."""
        lines = [f"{method} {target} {version}", "Host: localhost", *fields]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)

    def head(self) -> Response:
        """The head of the next response."""
        while b"\r\n\r\n" not in self._buffer:
            data = self.sock.recv(65536)
            assert data, f"closed after {self._buffer!r}"
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return Response(head)

    def read(self, length: int) -> bytes:
        """So many bytes, or fewer if the connection ends before."""
        chunks = [self._buffer[:length]]
        self._buffer = self._buffer[length:]
        missing = length - len(chunks[0])
        while missing and (data := self.sock.recv(min(missing, 1 << 20))):
            chunks.append(data)
            missing -= len(data)
        return b"".join(chunks)

    def rest(self) -> bytes:
        """What comes until the end of the connection."""
        return self.read(1 << 40)

    def response(self, method: str = "GET") -> Response:
        """The next response with its body."""
        response = self.head()
        if method != "HEAD" and response.status != 304:
            response.body = self.read(response.length)
            assert len(response.body) == response.length
        return response

    def stalled(self, target: str, *fields: str) -> Response:
        """Ask for something large, and read nothing but its head."""
        self.request(target, *fields)
        return self.head()


Start = Callable[..., Gunicorn]


@pytest.fixture(scope="session")
def content() -> bytes:
    """No two blocks of it are the same."""
    blocks = [hashlib.sha256(b"%d" % number).digest() * 32 for number in range(LENGTH // 1024 + 1)]
    return b"".join(blocks)[:LENGTH]


@pytest.fixture
def start(tmp_path: Path, content: bytes) -> Iterator[Start]:
    """Starts gunicorns that end with the test."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "small").write_bytes(SMALL)
    # Long ago, so that its entity tag doesn't become strong between two requests.
    os.utime(tmp_path / "files" / "small", (784111777, 784111777))
    (tmp_path / "files" / "large").write_bytes(content)
    (tmp_path / "app.py").write_text(APPLICATION)
    with contextlib.ExitStack() as stack:

        def begin(
            worker: str, *options: str, application: str = "app:application", access_log: bool = True
        ) -> Gunicorn:
            directory = tmp_path / f"gunicorn{len(os.listdir(tmp_path))}"
            directory.mkdir()
            if access_log:
                options = (*ACCESS_LOG, str(directory / "access"), *options)
            return stack.enter_context(running(directory, tmp_path, OURS.get(worker, worker), application, *options))

        yield begin


@contextlib.contextmanager
def running(directory: Path, chdir: Path, worker: str, application: str, *options: str) -> Iterator[Gunicorn]:
    """One gunicorn."""
    command = [
        sys.executable, "-m", "gunicorn", "--worker-class", worker, "--bind", "127.0.0.1:0", "--no-control-socket",
        "--worker-tmp-dir", str(directory), "--error-logfile", str(directory / "errors"), "--log-level", "debug",
        "--timeout", "120", "--keep-alive", "60", "--chdir", str(chdir), *options, application,
    ]  # fmt: skip
    output = directory / "output"
    # A master that is told to be quick takes its workers with it.
    with launched(command, output, stop=signal.SIGQUIT) as process:
        server = Gunicorn(process, directory)
        wait_until(lambda: process.poll() is not None or "Listening at" in server.log)
        match = re.search(r"Listening at: https?://127\.0\.0\.1:(\d+)", server.log)
        assert match, server.log + output.read_text()
        server.port = int(match[1])
        yield server
    # gunicorn's handler raises SystemExit also in a worker that is ending already, which Python and gevent print.
    printed = re.sub(r"(?s)Traceback(?:(?!Traceback).)*?\nSystemExit: 0\n", "", output.read_text())
    assert "Traceback" not in printed, printed


# ---- HTTP ----


@each_worker
def test_what_is_sent(start: Start, content: bytes, worker: str) -> None:
    """Files, mmaps and BytesIO arrive with their length, small and large, with gunicorn's fields, each once."""
    server = start(worker)
    for name, body in (("small", SMALL), ("large", content)):
        for kind in ("file", "mmap", "bytesio"):
            response = server.get(f"/{kind}/{name}")
            assert (response.status, response.length) == (200, len(body))
            assert response.body == body, f"{kind} {name}"
            assert response.fields["server"] == "mine"
            assert response.fields["connection"] == "close"
            assert response.fields["date"].endswith("GMT")
            assert "accept-ranges" not in response.fields


@each_worker
def test_ranges_and_conditions(start: Start, content: bytes, worker: str) -> None:
    """An application of sendgate.wsgi answers 206, 304 and 416."""
    server = start(worker)
    whole = server.get("/files/large")
    assert whole.body == content
    assert whole.fields["server"] == "gunicorn"
    part = server.get("/files/large", "Range: bytes=1000-20000000")
    assert (part.status, part.body) == (206, content[1000:20000001])
    parts = server.get("/files/small", "Range: bytes=0-9,100-109")
    assert parts.status == 206
    assert SMALL[100:110] in parts.body
    assert server.get("/files/large", f"If-None-Match: {whole.fields['etag']}").status == 304
    assert server.get("/files/large", f"Range: bytes={LENGTH}-").status == 416
    assert server.get("/files/none").status == 404


@persistent_workers
def test_a_connection_is_kept(start: Start, content: bytes, worker: str) -> None:
    """Responses of the library and of gunicorn follow each other on one connection, also if they took long."""
    server = start(worker)
    with server.connect() as client:
        for _ in range(2):
            for target, body in (("/file/small", SMALL), ("/mmap/large", content), ("/hello", b"hello"),
                                 ("/file/large", content), ("/files/small", SMALL)):  # fmt: skip
                client.request(target)
                response = client.response()
                assert (response.status, response.body) == (200, body)
                assert response.fields.get("connection") in (None, "keep-alive")


@persistent_workers
def test_pipelining(start: Start, content: bytes, worker: str) -> None:
    """Requests that were sent at once are answered in their order."""
    server = start(worker)
    with server.connect() as client:
        targets = [("GET", "/file/large"), ("HEAD", "/file/large"), ("GET", "/hello"), ("GET", "/mmap/large"),
                   ("GET", "/file/small"), ("GET", "/chunks/small")]  # fmt: skip
        requests = [f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n" for method, target in targets]
        client.sock.sendall("".join(requests).encode())
        bodies = [client.response(method).body for method, _ in targets[:-1]]
        assert bodies == [content, b"", b"hello", content, SMALL]
        assert client.head().fields["transfer-encoding"] == "chunked"


@each_worker
def test_http_1_0(start: Start, content: bytes, worker: str) -> None:
    """HTTP/1.0 closes the connection, unless its client and the worker want to keep it."""
    server = start(worker)
    with server.connect() as client:
        client.request("/file/large", version="HTTP/1.0")
        assert client.response().body == content
        assert client.rest() == b""
    with server.connect() as client:
        client.request("/file/large", "Connection: keep-alive", version="HTTP/1.0")
        response = client.response()
        assert response.body == content
        if worker in PERSISTENT:
            assert response.fields["connection"] == "keep-alive"
            client.request("/file/small", version="HTTP/1.0")
            assert client.response().body == SMALL
        assert client.rest() == b""


@each_worker
def test_head(start: Start, worker: str) -> None:
    """HEAD has the length, and no body: the next response follows."""
    server = start(worker)
    for target, length in (("/file/large", LENGTH), ("/mmap/small", len(SMALL)), ("/files/small", len(SMALL))):
        with server.connect() as client:
            client.request(target, method="HEAD")
            assert client.response("HEAD").length == length
            if worker in PERSISTENT:
                client.request("/hello")
                assert client.response().body == b"hello"


@each_worker
def test_a_middleware_that_makes_head_a_get(start: Start, worker: str) -> None:
    """What decides is the method that the client has sent."""
    server = start(worker, application="app:get_for_head")
    with server.connect() as client:
        client.request("/file/small", "Connection: close", method="HEAD")
        assert client.head().length == len(SMALL)
        assert client.rest() == b""


@persistent_workers
def test_a_body_that_nobody_reads(start: Start, content: bytes, worker: str) -> None:
    """A request's content that the application leaves is not taken for the next request."""
    server = start(worker)
    body = b"GET /error HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    for target, expected in (("/file/small", SMALL), ("/file/large", content)):
        with server.connect() as client:
            client.request(target, f"Content-Length: {len(body)}", method="POST", body=body)
            assert client.response().body == expected
            client.request(target, "Transfer-Encoding: chunked", method="POST", body=b"5\r\nhello\r\n0\r\n\r\n")
            assert client.response().body == expected
            client.request("/hello")
            assert client.response().body == b"hello"


@persistent_workers
def test_a_malformed_body_does_not_spoil_the_response(start: Start, content: bytes, worker: str) -> None:
    """gunicorn notices that the rest of the request is malformed while the file is being sent. It closes afterwards."""
    server = start(worker)
    with server.connect(receive_buffer=65536) as client:
        body = b"5\r\nhello\r\nNONSENSE\r\n\r\n"
        client.request("/file/large", "Transfer-Encoding: chunked", method="POST", body=body)
        response = client.response()
        assert response.body == content
        # gevent's worker reads it afterwards, and may say so.
        rest = client.rest()
        assert rest == b"" or (worker == "GeventWorker" and rest.startswith(b"HTTP/1.1 400")), rest
    assert server.get("/hello").body == b"hello"


# ---- What goes wrong ----


@each_worker
def test_errors_before_the_first_byte_are_500(start: Start, worker: str) -> None:
    """The application raises, or has a field that the library refuses: 500, one line in the access log, file closed."""
    server = start(worker)
    for lines, target in enumerate(("/error", "/refused/small"), start=1):
        assert server.get(target).status == 500
        wait_until(lambda lines=lines: len(server.access) == lines)
    assert server.get("/closed").body == b"file"
    # gunicorn's own line for an error has no path.
    assert server.access[:2] == ["GET None 500 0"] * 2
    assert "on purpose" in server.log
    assert "FieldError" in server.log


@each_worker
def test_a_file_that_becomes_shorter(start: Start, tmp_path: Path, content: bytes, worker: str) -> None:
    """The connection ends before the announced length is reached, the log says why, and the worker goes on."""
    server = start(worker)
    with server.connect(receive_buffer=65536) as client:
        response = client.stalled("/file/large")
        os.truncate(tmp_path / "files" / "large", 1 << 20)
        body = client.rest()
        assert response.length == LENGTH
        assert len(body) < LENGTH
        # What was cut off was perhaps on its way already, by reference: then it arrives as zeros.
        assert body[: 1 << 20] == content[: 1 << 20]
    wait_until(lambda: "Error sending a file for GET /file/large" in server.log)
    wait_until(lambda: len(server.access) == 1)
    assert 0 < int(server.access[0].split()[3]) < LENGTH
    assert server.get("/closed").body == b"file"


@each_worker
def test_a_client_that_leaves(start: Start, worker: str) -> None:
    """The access log has what was sent, the file is closed, and nothing of it is an error."""
    server = start(worker)
    for lines, kind in enumerate(("file", "mmap"), start=1):
        with server.connect(receive_buffer=65536) as client:
            client.stalled(f"/{kind}/large")
            client.read(100_000)
        wait_until(lambda lines=lines: len(server.access) == lines)
    for line, kind in zip(server.access, ("file", "mmap")):
        match = re.fullmatch(rf"GET /{kind}/large 200 (\d+)", line)
        assert match, line
        assert 100_000 <= int(match[1]) < LENGTH
    wait_until(lambda: server.get("/closed").body == b"file mmap")
    assert "[ERROR]" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("worker", ["app.Impatient", "app.ImpatientSync", "app.ImpatientGevent"])
def test_a_client_that_takes_nothing(start: Start, worker: str) -> None:
    """Its connection is closed after send_timeout; the log has what was sent, and no traceback."""
    server = start(worker)
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/file/large")
        wait_until(lambda: len(server.access) == 1)
        assert 0 < int(server.access[0].split()[3]) < LENGTH
        assert len(client.rest()) < LENGTH
    assert "[ERROR]" not in server.log
    assert re.search(r"\[INFO\] GET /file/large: ", server.log), server.log
    assert server.get("/hello").body == b"hello"


@each_worker
def test_a_file_is_closed_once(start: Start, worker: str) -> None:
    """Whatever the response was, the application's close() is called once for each."""
    server = start(worker)
    for kind in ("file", "mmap", "bytesio"):
        server.get(f"/{kind}/small")
        server.get(f"/{kind}/large")
        server.get(f"/{kind}/large", method="HEAD")
    expected = sorted(["file", "mmap", "bytesio"] * 3)
    # That of memory is called when the client has got it all.
    wait_until(lambda: len(server.get("/closed").body.split()) >= 9)
    assert server.get("/closed").body.decode().split() == expected


@each_worker
def test_close_fails(start: Start, content: bytes, worker: str) -> None:
    """A close() that raises is in the log, and the response is complete."""
    server = start(worker)
    assert server.get("/closes-badly/large").body == content
    wait_until(lambda: "Error closing what was sent for GET /closes-badly/large" in server.log)


@persistent_workers
def test_unmapping_what_is_being_sent(start: Start, content: bytes, worker: str) -> None:
    """mmap.close() is a BufferError as long as a client has not got all of it, and possible afterwards."""
    server = start(worker)
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/shared/large")
        refused = server.get("/unmap").body
        assert refused.startswith(b"BufferError: cannot close exported pointers exist"), refused
        assert client.read(LENGTH) == content
        wait_until(lambda: server.get("/unmap").body == b"closed")


# ---- gunicorn's own ----


@each_worker
def test_the_access_log(start: Start, content: bytes, worker: str) -> None:
    """Method, status, bytes of the body that were sent, and fields of the response."""
    server = start(
        worker, "--access-logformat", '%(m)s %(U)s %(s)s %(B)s %({content-length}o)s %({x-none}o)s "%({host}i)s" %(T)s'
    )
    etag = server.get("/files/small").fields["etag"]
    asked: list[tuple[str, str, tuple[str, ...], str]] = [
        ("GET", "/file/small", (), f"200 {len(SMALL)} {len(SMALL)}"),
        ("GET", "/file/large", (), f"200 {LENGTH} {LENGTH}"),
        ("GET", "/mmap/large", (), f"200 {LENGTH} {LENGTH}"),
        ("HEAD", "/file/large", (), f"200 0 {LENGTH}"),
        ("GET", "/files/large", ("Range: bytes=0-9",), "206 10 10"),
        ("GET", "/files/small", (f"If-None-Match: {etag}",), "304 0 -"),
        ("GET", "/hello", (), "200 5 5"),
    ]
    expected = [f"GET /files/small 200 {len(SMALL)} {len(SMALL)}"]
    for method, target, fields, said in asked:
        # A line is written after the response: the next request could overtake it.
        wait_until(lambda: len(server.access) == len(expected))
        server.get(target, *fields, method=method)
        expected.append(f"{method} {target} {said}")
    wait_until(lambda: len(server.access) == len(expected))
    for line, begin in zip(server.access, expected):
        assert re.fullmatch(re.escape(begin) + r' - "localhost" \d+', line), line
    assert "Traceback" not in server.log


@each_worker
def test_hooks(start: Start, tmp_path: Path, worker: str) -> None:
    """pre_request and post_request run once for each request, and see the status."""
    hooks = tmp_path / "hooks"
    config = tmp_path / "config.py"
    config.write_text(
        "def note(*words):\n"
        f"    with open({str(hooks)!r}, 'a') as file:\n"
        "        print(*words, file=file)\n"
        "def pre_request(worker, req):\n"
        "    note('pre', req.path)\n"
        "def post_request(worker, req, environ, resp):\n"
        "    note('post', req.path, resp.status, resp.status_code)\n"
    )
    server = start(worker, "--config", str(config))
    server.get("/files/large", "Range: bytes=0-")
    # The second one runs after the response: the next request could overtake it.
    wait_until(lambda: hooks.read_text().count("\n") == 2)
    server.get("/file/small")
    wait_until(lambda: hooks.read_text().count("\n") == 4)
    assert hooks.read_text().splitlines() == [
        "pre /files/large", "post /files/large 206 Partial Content 206",
        "pre /file/small", "post /file/small 200 OK 200",
    ]  # fmt: skip


@each_worker
def test_tls(start: Start, content: bytes, certificate: tuple[Path, Path], worker: str) -> None:
    """The same bytes arrive over TLS, and connections are kept."""
    server = start(worker, "--certfile", str(certificate[0]), "--keyfile", str(certificate[1]))
    server.context = ssl.create_default_context(cafile=str(certificate[0]))
    for target, body in (("/file/large", content), ("/mmap/large", content), ("/bytesio/small", SMALL)):
        assert server.get(target).body == body
    assert server.get("/files/large", "Range: bytes=5-20000000").body == content[5:20000001]
    assert server.get("/file/large", method="HEAD").length == LENGTH
    if worker in PERSISTENT:
        with server.connect() as client:
            for target, body in (("/files/large", content), ("/hello", b"hello"), ("/file/small", SMALL)):
                client.request(target)
                assert client.response().body == body
    expected = b"bytesio file file file mmap" if worker in PERSISTENT else b"bytesio file file mmap"
    wait_until(lambda: server.get("/closed").body == expected)
    assert f"GET /file/large 200 {LENGTH}" in server.access
    assert "[ERROR]" not in server.log


@persistent_workers
def test_tls_does_not_hold_up_the_others(
    start: Start, content: bytes, certificate: tuple[Path, Path], worker: str
) -> None:
    """While a client of a TLS download stalls, another is answered: by another thread, or another greenlet."""
    threads = ("--threads", "2") if worker == "ThreadWorker" else ()
    server = start(worker, "--certfile", str(certificate[0]), "--keyfile", str(certificate[1]), *threads)
    server.context = ssl.create_default_context(cafile=str(certificate[0]))
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/file/large")
        assert server.get("/hello").body == b"hello"
        assert client.read(LENGTH) == content


@each_worker
def test_the_uwsgi_protocol(start: Start, content: bytes, worker: str) -> None:
    """What a front server asks in another protocol is framed by gunicorn."""
    server = start(worker, "--protocol", "uwsgi")
    for path, body in (("/file/large", content), ("/mmap/small", SMALL)):
        variables = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "REQUEST_URI": path, "SERVER_PROTOCOL": "HTTP/1.1"}
        words = [word.encode() for pair in variables.items() for word in pair]
        packed = b"".join(struct.pack("<H", len(word)) + word for word in words)
        with server.connect() as client:
            client.sock.sendall(struct.pack("<BHB", 0, len(packed), 0) + packed)
            assert client.response().body == body


@persistent_workers
def test_http_2(start: Start, content: bytes, worker: str) -> None:
    """Several responses at once are framed by gunicorn."""
    server = start(worker, "--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge")
    expected = {1: ("/file/large", content), 3: ("/mmap/small", SMALL), 5: ("/files/small", SMALL)}
    received = dict.fromkeys(expected, b"")
    connection = H2Connection()
    connection.initiate_connection()
    with server.connect() as client:
        for stream, (path, _) in expected.items():
            fields = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "localhost")]
            connection.send_headers(stream, fields, end_stream=True)
        unfinished = set(expected)
        while unfinished:
            client.sock.sendall(connection.data_to_send())
            data = client.sock.recv(1 << 20)
            assert data, unfinished
            for event in connection.receive_data(data):
                if isinstance(event, DataReceived):
                    received[event.stream_id] += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, StreamEnded):
                    unfinished.remove(event.stream_id)
    assert received == {stream: body for stream, (_, body) in expected.items()}


# ---- Slow clients ----


@pytest.fixture
def sparse(tmp_path: Path, start: Start) -> int:
    """The length of the file "sparse", of which nothing is on the disk."""
    with (tmp_path / "files" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    return 1 << 30


@contextlib.contextmanager
def stalled_downloads(server: Gunicorn) -> Iterator[list[Client]]:
    """Eight clients that have asked for a GiB and read nothing."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for client in clients:
            client.request("/file/sparse", "Connection: close")
        yield clients


def test_stock_gthread_answers_nobody_during_a_download(start: Start, sparse: int) -> None:
    """The demonstration's first half: one thread, eight stalled downloads, and a request that is not answered."""
    server = start("gthread", "--threads", "1")
    assert server.get("/hello").body == b"hello"
    with stalled_downloads(server) as clients:
        # One has the thread, and the others wait for it.
        clients[0].head()
        with server.connect() as client:
            client.sock.settimeout(2)
            client.request("/hello")
            with pytest.raises(socket.timeout):
                client.head()
    # They have left.
    assert server.get("/hello").body == b"hello"


def test_downloads_do_not_hold_up_a_thread(start: Start, sparse: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The demonstration's second half: all eight have begun, others are answered, and SIGTERM ends it."""
    server = start("ThreadWorker", "--threads", "1", "--graceful-timeout", "2")
    with stalled_downloads(server) as clients:
        for client in clients:
            assert client.head().length == sparse
        times = []
        with server.connect() as client:
            for _ in range(51):
                begun = time.perf_counter()
                client.request("/hello")
                assert client.response().body == b"hello"
                times.append(time.perf_counter() - begun)
        with capsys.disabled():
            print(f" hello: median {statistics.median(times) * 1e3:.2f} ms, at most {max(times) * 1e3:.2f} ms", end="")
        assert server.stop() == 0
    assert "Traceback" not in server.log


@pytest.mark.parametrize("worker", PERSISTENT)
def test_slow_clients_get_everything(start: Start, content: bytes, worker: str) -> None:
    """Several read at their own pace, from files and from memory, and others are answered meanwhile."""
    server = start(worker, *(("--threads", "1") if worker == "ThreadWorker" else ()))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect(receive_buffer=65536)) for _ in range(4)]
        for client, target in zip(clients, ("/file/large", "/mmap/large", "/files/large", "/bytesio/large")):
            client.stalled(target)
        received = [b""] * len(clients)
        for begin in range(0, LENGTH, 5_000_000):
            length = min(LENGTH - begin, 5_000_000)
            received = [before + client.read(length) for before, client in zip(received, clients)]
            assert server.get("/hello").body == b"hello"
        assert all(body == content for body in received)


def test_closing_does_not_hold_up_the_main_thread(start: Start) -> None:
    """gunicorn's main thread waits 2 s for a client to close its end, one after the other; this one doesn't."""
    server = start("ThreadWorker", "--threads", "1")
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(server.connect())
            client.request("/file/small", "Connection: close")
            assert client.response().body == SMALL
            assert client.rest() == b""
        with server.connect() as client:
            client.sock.settimeout(30)
            client.request("/hello")
            assert client.response().body == b"hello"


def test_the_end_is_not_lost_by_what_comes_after_it(start: Start, content: bytes) -> None:
    """A client that goes on sending after its last request still gets the whole response, and no reset."""
    server = start("ThreadWorker")
    with server.connect(receive_buffer=65536) as client:
        client.request("/file/large", "Connection: close")
        response = client.head()
        assert client.read(1_000_000) == content[:1_000_000]
        client.sock.sendall(b"GET / HTTP/1.1\r\n" * 100)
        assert response.length == LENGTH
        assert client.rest() == content[1_000_000:]


def test_the_sync_worker_is_not_killed_for_a_slow_client(start: Start, content: bytes) -> None:
    """gunicorn's master kills workers that are silent for --timeout: one that sends is not."""
    server = start("SyncWorker", "--timeout", "4")
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/file/large")
        # There is nothing else to wait for: this is about time that passes.
        time.sleep(9)
        assert client.read(LENGTH) == content
    assert "WORKER TIMEOUT" not in server.log


def test_the_sync_worker_is_not_killed_for_a_long_response(start: Start) -> None:
    """Of which there is a piece from time to time."""
    server = start("SyncWorker", "--timeout", "4", application="app:slow")
    with server.connect() as client:
        client.request("/", "Connection: close")
        body = client.rest()
    assert body.count(b"piece\n") == 7
    assert body.endswith(b"0\r\n\r\n")
    assert "WORKER TIMEOUT" not in server.log


# ---- Stopping ----


@each_worker
def test_sigterm_lets_downloads_end(start: Start, content: bytes, worker: str) -> None:
    """What was being sent when gunicorn was told to stop is sent to its end."""
    server = start(worker)
    with contextlib.ExitStack() as stack:
        targets = ("/file/large", "/mmap/large") if worker in PERSISTENT else ("/file/large",)
        clients = [stack.enter_context(server.connect(receive_buffer=65536)) for _ in targets]
        for client, target in zip(clients, targets):
            client.stalled(target, "Connection: close")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in server.log)
        for client in clients:
            assert client.read(LENGTH) == content
    assert server.process.wait(60) == 0
    assert sorted(server.access) == [f"GET {target} 200 {LENGTH}" for target in targets]


@each_worker
def test_sigint_cuts_downloads_short(start: Start, worker: str) -> None:
    """gunicorn ends at once, and the application's memory is free when its close() is called."""
    server = start(worker)
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/mmap/large")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert len(client.rest()) < LENGTH
    assert "Error closing" not in server.log


@pytest.mark.parametrize("where", ["sender._sink", "library.sendgate_sender_submit", "library.sendgate_sender_take"])
def test_sigint_while_it_sends(start: Start, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Wherever the signal's handler raises, the memory is free when its close() is called."""
    monkeypatch.setenv("SENDGATE_TEST_INTERRUPTED", where)
    server = start("app.InterruptedSync")
    with server.connect(receive_buffer=65536) as client:
        client.request("/mmap/large")
        wait_until(lambda: "Worker exiting" in server.log)
        assert len(client.rest()) < LENGTH
    assert "Error closing" not in server.log


@each_worker
def test_a_worker_is_replaced(start: Start, content: bytes, worker: str) -> None:
    """SIGHUP, with a download in flight: the new worker answers, and the old one loses no byte."""
    server = start(worker)
    old = server.worker()
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/file/large", "Connection: close")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.worker() != old)
        assert client.read(LENGTH) == content
    wait_until(lambda: f"Worker exiting (pid: {old})" in server.log)
    assert f"GET /file/large 200 {LENGTH}" in server.access


@persistent_workers
def test_max_requests(start: Start, content: bytes, worker: str) -> None:
    """The worker that has answered enough ends when its downloads have."""
    server = start(worker, "--max-requests", "3")
    old = server.worker()
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/file/large")
        assert server.worker() == old
        wait_until(lambda: "Autorestarting worker" in server.log)
        assert client.read(LENGTH) == content
    # gevent's worker looks once a second whether it is to end.
    wait_until(lambda: server.worker() != old)
    assert f"GET /file/large 200 {LENGTH}" in server.access


@persistent_workers
def test_graceful_timeout_cuts_downloads_short(start: Start, worker: str) -> None:
    """The access log has what was sent until then."""
    server = start(worker, "--graceful-timeout", "1")
    old = server.worker()
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/mmap/large")
        # Unlike SIGTERM, this leaves the time to write the log: gunicorn kills what is late.
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any("/mmap/large" in line for line in server.access))
        assert len(client.rest()) < LENGTH
    line = next(line for line in server.access if "/mmap/large" in line)
    assert re.fullmatch(r"GET /mmap/large 200 \d+", line)
    assert 0 < int(line.split()[3]) < LENGTH
    wait_until(lambda: f"Worker exiting (pid: {old})" in server.log)
    # While it ends, gevent would tell of a signal that its master passes on.
    wait_until(lambda: not Path(f"/proc/{old}").exists())
    assert "[ERROR]" not in server.log


def test_memory_is_let_go_of_when_graceful_timeout_is_over(start: Start) -> None:
    """close() is called once, whatever happens."""
    server = start("ThreadWorker", "--graceful-timeout", "1", application="app:closing")
    worker = server.worker()
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/mmap/large")
        # Of the worker alone: gunicorn's master kills those that have not ended after the same time.
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: "closed: mmap" in (server.directory / "output").read_text())
    wait_until(lambda: server.worker() != worker)
    assert (server.directory / "output").read_text().count("closed") == 1


def test_an_alarm_ends_a_response_and_not_the_sync_worker(start: Start, content: bytes) -> None:
    """Its sender serves the next one."""
    server = start("SyncWorker", application="app:alarmed")
    for _ in range(2):
        before = server.log.count("Alarm")
        with server.connect(receive_buffer=65536) as client:
            client.stalled("/alarm/large")
            wait_until(lambda before=before: server.log.count("Alarm") > before)
            assert len(client.rest()) < LENGTH
        assert server.get("/file/large").body == content


def test_a_timeout_of_gevents_writes_nothing_into_a_response(start: Start, content: bytes) -> None:
    """What has arrived is the file's, and the connection ends early."""
    server = start("GeventWorker", application="app:impatient")
    with server.connect(receive_buffer=65536) as client:
        client.stalled("/alarm/large")
        wait_until(lambda: "seconds" in server.log)
        received = client.rest()
        assert len(received) < LENGTH and content.startswith(received)
    assert server.get("/file/large").body == content


# ---- Files without a thread of the pool ----


@contextlib.contextmanager
def occupied(server: Gunicorn, directory: Path) -> Iterator[Client]:
    """A connection that is kept, and then another has the only thread."""
    with server.connect() as client, server.connect() as other:
        client.request("/small")
        assert client.response().body == SMALL
        other.request("/none")
        wait_until(lambda: (directory / "waits").exists())
        yield client
        (directory / "go").touch()
        assert other.response().body == b"/none"


@pytest.fixture
def start_site(start: Start) -> Start:
    """Starts gunicorns that serve files, with one thread. Nobody wants to know of requests."""
    return functools.partial(start, "ThreadWorker", "--threads", "1", application="app:site", access_log=False)


def test_files_need_no_thread(start_site: Start, tmp_path: Path, content: bytes) -> None:
    """While the only thread waits, a connection that was kept gets files, small and large, ranges and conditions."""
    server = start_site()
    with occupied(server, tmp_path) as client:
        client.request("/small")
        response = client.response()
        assert (response.status, response.body) == (200, SMALL)
        assert response.fields["server"] == "gunicorn" and response.fields["content-type"]
        client.request("/small", f"If-None-Match: {response.fields['etag']}")
        assert client.response().status == 304
        client.request("/small", "Range: bytes=8-15")
        assert client.response().body == SMALL[8:16]
        client.request("/small", method="HEAD")
        assert client.response("HEAD").length == len(SMALL)
        client.request("/large")
        assert client.response().body == content
        client.request("/large", "Range: bytes=-1000000", "Connection: close")
        response = client.response()
        assert response.body == content[-1000000:] and response.fields["connection"] == "close"
        assert client.rest() == b""


def test_the_answer_is_the_same_with_a_thread_and_without(start_site: Start) -> None:
    """All but the date."""
    server = start_site()
    for fields in ((), ("Range: bytes=0-9",), ("If-None-Match: *",), ("Range: bytes=9999999-",)):
        with server.connect() as client:
            heads = []
            for _ in range(2):
                client.request("/small", *fields)
                response = client.response()
                heads.append((response.status, sorted({**response.fields, "date": ""}.items()), response.body))
            assert heads[0] == heads[1]


def test_what_needs_a_thread_gets_one(start_site: Start, tmp_path: Path) -> None:
    """Another method, content, what isn't there, two requests at once, half a request: all on one connection."""
    (tmp_path / "go").touch()
    server = start_site()
    with server.connect() as client:
        for _ in range(2):
            client.request("/small")
            assert client.response().body == SMALL
            client.request("/small", "Content-Length: 5", method="POST", body=b"12345")
            assert client.response().body == b"/small"
            client.request("/small", "Content-Length: 5", body=b"12345")
            assert client.response().body == SMALL
            client.request("/none")
            assert client.response().body == b"/none"
            client.sock.sendall(b"GET /small HTTP/1.1\r\nHost: a\r\n\r\nGET /none HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().body == SMALL
            assert client.response().body == b"/none"
            client.sock.sendall(b"GET /small HTTP/1.1\r\n")
            client.sock.sendall(b"Host: a\r\n\r\n")
            assert client.response().body == SMALL
            client.request("/small", "X: " + "x" * 6000)
            assert client.response().body == SMALL


def test_slow_clients_and_those_that_leave_without_a_thread(start_site: Start, tmp_path: Path, content: bytes) -> None:
    """The main thread waits for neither, and the next request on the connection is served."""
    server = start_site()
    with contextlib.ExitStack() as stack:
        slow = stack.enter_context(server.connect(receive_buffer=65536))
        leaving = [stack.enter_context(server.connect(receive_buffer=65536)) for _ in range(3)]
        for client in (slow, *leaving):
            client.request("/small")
            assert client.response().body == SMALL
        with occupied(server, tmp_path) as client:
            for other in (slow, *leaving):
                other.stalled("/large")
            for other in leaving:
                other.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                other.sock.close()
            client.request("/small")
            assert client.response().body == SMALL
            assert slow.read(LENGTH) == content
            slow.request("/small")
            assert slow.response().body == SMALL
        assert server.stop() == 0
    assert "Traceback" not in server.log


def test_requests_without_a_thread_count(start_site: Start) -> None:
    """--max-requests replaces the worker, and SIGTERM ends a download in time."""
    server = start_site("--max-requests", "5")
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    old = ""
    with server.connect() as client:
        for _ in range(5):
            client.request("/small")
            response = client.response()
            old = old or children.read_text().split()[0]
        assert response.fields["connection"] == "close"
    wait_until(lambda: "Autorestarting worker" in server.log and old not in children.read_text().split())
    assert server.get("/small").body == SMALL


def test_sigterm_lets_downloads_without_a_thread_end(start_site: Start, content: bytes) -> None:
    """The connection is then closed."""
    server = start_site()
    with server.connect(receive_buffer=65536) as client:
        client.request("/small")
        client.response()
        client.stalled("/large")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in server.log)
        assert client.read(LENGTH) == content
        assert server.process.wait(60) == 0


#: Heads on which gunicorn has an opinion, or that have to mean the same.
HEADS = {
    "plain": b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/1.0": b"GET /small HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "no host": b"GET /small HTTP/1.1\r\nAccept: a\r\n\r\n",
    "two hosts": b"GET /small HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a strange host": b"GET /small HTTP/1.1\r\nHost: a b/c\r\n\r\n",
    "many fields": b"GET /small HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 100 + b"\r\n",
    "a long field": b"GET /small HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 3000 + b"\r\n\r\n",
    "an underscore": b"GET /small HTTP/1.1\r\nHost: a\r\nX_Y: a\r\n\r\n",
    "a control byte": b"GET /small HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n",
    "bytes above 127": b"GET /small?\xe4 HTTP/1.1\r\nHost: a\r\nX: \xe4\r\n\r\n",
    "two types": b"GET /small HTTP/1.1\r\nHost: a\r\nContent-Type: a\r\nContent-Type: b\r\n\r\n",
    "two lengths": b"GET /small HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "an expectation": b"GET /small HTTP/1.1\r\nHost: a\r\nExpect: foo\r\n\r\n",
    "two schemes": b"GET /small HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n\r\n",
    "a scheme": b"GET /small HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n",
    "a fragment": b"GET /small#x HTTP/1.1\r\nHost: a\r\n\r\n",
    "bare LF": b"GET /small HTTP/1.1\nHost: a\n\n",
    "a space before the colon": b"GET /small HTTP/1.1\r\nHost : a\r\n\r\n",
    "a folded line": b"GET /small HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
    "an encoded name": b"GET /%73mall HTTP/1.1\r\nHost: a\r\n\r\n",
    "two slashes": b"GET //small HTTP/1.1\r\nHost: a\r\n\r\n",
    "dots": b"GET /./x/../small HTTP/1.1\r\nHost: a\r\n\r\n",
    "another version": b"GET /small HTTP/1.2\r\nHost: a\r\n\r\n",
    "a forwarded path": b"GET /small HTTP/1.1\r\nHost: a\r\nPath-Info: /none\r\nScript-Name: /x\r\n\r\n",
}
#: The same where the application has a function for each file.
NAMED_HEADS = {
    "a function": b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n",
    "an application's mistake": b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n",
    "a field that can't be sent": b"GET /euro HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize(
    ("heads", "application", "options"),
    [
        (HEADS, "app:site", ()),
        (HEADS, "app:site", ("--limit-request-field_size", "100")),
        (NAMED_HEADS, "app:named", ()),
    ],
    ids=["", "limit", "named"],
)
def test_each_head_means_the_same_with_a_thread_and_without(
    start_site: Start, tmp_path: Path, heads: dict[str, bytes], application: str, options: tuple[str, ...]
) -> None:
    """As a first request it is gunicorn's, and as a second perhaps not. The worker survives all."""
    for name in ("bad", "euro"):
        (tmp_path / "files" / name).write_bytes(b"x")
        os.utime(tmp_path / "files" / name, (784111777, 784111777))
    (tmp_path / "go").touch()
    server = start_site(*options, application=application)

    def ask(data: bytes, *, second: bool) -> object:
        with server.connect() as client:
            if second:
                client.request("/small")
                client.response()
            client.sock.sendall(data)
            response = client.response()
            return response.status, response.body, sorted({**response.fields, "date": ""}.items())

    for what, data in heads.items():
        assert ask(data, second=False) == ask(data, second=True), what
    assert "Worker exiting" not in server.log


def test_a_second_request_behind_a_first_half_is_in_its_place(start_site: Start, tmp_path: Path) -> None:
    """Bytes that gunicorn has read already come first."""
    (tmp_path / "go").touch()
    server = start_site()
    with server.connect() as client:
        client.request("/small")
        client.response()
        client.sock.sendall(b"GET /small HTTP/1.1\r\nHost: a\r\n\r\nGET /one HT")
        assert client.response().body == SMALL
        client.sock.sendall(b"TP/1.1\r\nHost: a\r\n\r\nGET /small HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response().body == b"/one"
        assert client.response().body == SMALL


@pytest.mark.parametrize("log", [True, False], ids=["log", "hook"])
def test_who_wants_to_know_of_requests_does(start: Start, tmp_path: Path, log: bool) -> None:
    """With an access log or a hook each request takes gunicorn's way."""
    hook = "def post_request(worker, request, environ, response):\n    worker.log.info('hook %s', request.path)\n"
    (tmp_path / "hooks.py").write_text(hook)
    options = () if log else ("--config", str(tmp_path / "hooks.py"))
    server = start("ThreadWorker", *options, application="app:site", access_log=log)
    with server.connect() as client:
        for _ in range(3):
            client.request("/small")
            assert client.response().body == SMALL
    wait_until(lambda: len(server.access) == 3 if log else server.log.count("hook /small") == 3)


# ---- System calls ----


@each_worker
def test_files_leave_by_sendfile(start: Start, content: bytes, tmp_path: Path, worker: str) -> None:
    """A large file is not read, but for single bytes that tell whether it is in memory (seen by strace)."""
    server = start(worker)
    trace = tmp_path / "trace"
    with traced(server.worker(), f"sendfile,{READS}", trace):
        assert server.get("/file/large").body == content
    assert moved(trace, "sendfile", "large") > LENGTH - 100_000
    assert moved(trace, r"p?readv?\w*", "large") < 100_000


@each_worker
def test_no_sendfile(start: Start, content: bytes, tmp_path: Path, worker: str) -> None:
    """--no-sendfile is honoured (seen by strace)."""
    server = start(worker, "--no-sendfile")
    trace = tmp_path / "trace"
    with traced(server.worker(), f"sendfile,{READS}", trace):
        assert server.get("/file/large").body == content
    assert moved(trace, "sendfile", "large") == 0
    assert moved(trace, r"p?readv?\w*", "large") >= LENGTH


def test_an_mmap_is_sent_without_a_copy(start: Start, content: bytes, tmp_path: Path) -> None:
    """64 MiB of mapped file: the right bytes under a slow reader, no read(2) of it, and no memory of its size."""
    server = start("ThreadWorker", "--threads", "1")
    length = 64 << 20
    whole = (content * 3)[:length]
    (tmp_path / "files" / "mapped").write_bytes(whole)
    process = server.worker()

    def anonymous() -> int:
        return int(re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) << 10  # type: ignore[index]

    trace = tmp_path / "trace"
    with traced(process, f"sendfile,{READS}", trace), server.connect(receive_buffer=65536) as client:
        before = most = anonymous()
        assert client.stalled("/shared/mapped").length == length
        assert server.get("/unmap").body.startswith(b"BufferError")
        for begin in range(0, length, 1 << 20):
            assert client.read(1 << 20) == whole[begin : begin + (1 << 20)]
            most = max(most, anonymous())
    assert most - before < 8 << 20, f"from {before} to {most}"
    assert moved(trace, r"p?readv?\w*", "mapped") == 0
    assert moved(trace, "sendfile", "mapped") == 0
    # It was traced at all.
    assert "read(" in trace.read_text()


# ---- What is imported ----


def python(code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_gevent_is_imported_for_its_worker_only() -> None:
    """gunicorn looks for the name in the module; whoever takes another worker doesn't need gevent."""
    done = python(
        "import sys, sendgate.gunicorn\n"
        "assert 'gevent' not in sys.modules\n"
        "assert not hasattr(sendgate.gunicorn, 'Other')\n"
        "from gunicorn.util import load_class\n"
        "print(load_class('sendgate.gunicorn.GeventWorker').__name__, 'gevent' in sys.modules)\n"
    )
    assert done.stdout == "GeventWorker True\n", done.stderr


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("del ThreadWorker.murder_pending", "ThreadWorker.murder_pending"),
        ("ThreadWorker.finish_request = lambda self, fs: None", "ThreadWorker.finish_request(self, conn, fs)"),
        ("del Response.can_sendfile", "Response.can_sendfile"),
        ("ThreadWorker.__init__ = lambda self: None", "ThreadWorker.method_queue"),
    ],
)
def test_another_gunicorn_is_refused(change: str, missing: str) -> None:
    """If what the workers build upon isn't there, the import says so, and what would work."""
    done = python(
        "from gunicorn.http.wsgi import Response\n"
        "from gunicorn.workers.gthread import ThreadWorker\n"
        f"{change}\n"
        "import sendgate.gunicorn\n"
    )
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ImportError: sendgate.gunicorn works with gunicorn "), done.stderr
    assert missing in message
