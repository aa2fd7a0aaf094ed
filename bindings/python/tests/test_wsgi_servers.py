"""What is special to wsgiref, http.server, cheroot, waitress and gevent with files sent by the library.

What all WSGI servers have to do is in test_wsgi_matrix.py. The servers run in threads of this process.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import mmap
import os
import re
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable

import cheroot.ssl.builtin
import cheroot.ssl.pyopenssl
import cheroot.wsgi
import gevent
import gevent.event
import gevent.pool
import gevent.pywsgi
import gevent.ssl
import pytest
import waitress.trigger

import sendgate.cheroot
import sendgate.gevent
import sendgate.waitress
import sendgate.wsgi
import sendgate.wsgiref
from support import library_threads, split, wait_until

#: More than the buffers of two sockets take, so that a response is still being sent while its client doesn't read.
BIG = 64 << 20
CONTENT = b"0123456789" * 1000


class Tracked(io.FileIO):
    """A file that counts how often it is closed."""

    closes = 0

    def close(self) -> None:
        """Count."""
        self.closes += 1
        super().close()


class Application:
    """Answers by the path, and remembers what it opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Any] = []
        self.static = sendgate.wsgi.Files(folder, prefix="/static/")

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Choose by the path."""
        path = environ["PATH_INFO"]
        if path.startswith("/static/"):
            return self.static(environ, start_response)
        return getattr(self, path[1:].replace("-", "_"))(environ, start_response)

    def open(self, name: str) -> Any:
        """A file of the folder."""
        file = Tracked(self.folder / name)
        self.files.append(file)
        return file

    def hello(self, environ: dict[str, Any], start_response: Any) -> Any:
        """A response of the server's own."""
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [b"hello"]

    def file(self, environ: dict[str, Any], start_response: Any, *fields: tuple[str, str]) -> Any:
        """A file by the server's wrapper."""
        start_response("200 OK", [("Content-Type", "text/plain"), *fields])
        return environ["wsgi.file_wrapper"](self.open("file"))

    def big(self, environ: dict[str, Any], start_response: Any) -> Any:
        """One that doesn't fit into a socket's buffers."""
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](self.open("big"))

    def mapped(self, environ: dict[str, Any], start_response: Any) -> Any:
        """The same from memory."""
        with (self.folder / "big").open("rb") as file:
            self.files.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](self.files[-1])

    def unread(self, environ: dict[str, Any], start_response: Any) -> Any:
        """An answer to a request with a body."""
        return self.file(environ, start_response)

    def own_server(self, environ: dict[str, Any], start_response: Any) -> Any:
        """A Server field."""
        return self.file(environ, start_response, ("Server", "mine"))

    def bad_field(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Response splitting."""
        return self.file(environ, start_response, ("X-Name", "a\r\nX-Other: b"))

    def fails(self, environ: dict[str, Any], start_response: Any) -> Any:
        """An exception."""
        start_response("200 OK", [("Content-Type", "text/plain")])
        raise RuntimeError("the application fails")

    def wrapped(self, environ: dict[str, Any], start_response: Any) -> Any:
        """As a middleware does that looks at each item."""
        result = self.file(environ, start_response, ("Content-Length", str(len(CONTENT))))
        return Upper(result)


class Upper:
    """What such a middleware returns."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.close = result.close

    def __iter__(self) -> Iterator[bytes]:
        return (item.replace(b"0", b"O") for item in self.result)


@pytest.fixture
def application(tmp_path: Path) -> Iterator[Application]:
    """The application, and its files."""
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / "file.txt").write_bytes(CONTENT)
    with (tmp_path / "big").open("wb") as file:
        file.truncate(BIG)
    # Long ago, so that entity tags are strong.
    os.utime(tmp_path / "file.txt", (784111777, 784111777))
    application = Application(tmp_path)
    yield application
    application.static.close()


# ---- Servers ----

Address = tuple[str, int]
Start = Callable[..., "contextlib.AbstractContextManager[Address]"]


@contextlib.contextmanager
def in_thread(function: Callable[[], object]) -> Iterator[None]:
    """A thread that ends with the context."""
    thread = threading.Thread(target=function)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
        assert not thread.is_alive()


class ThreadingWSGIServer(socketserver.ThreadingMixIn, sendgate.wsgiref.WSGIServer):
    """As the standard library's documentation has it."""


class WaitingHTTPServer(ThreadingHTTPServer):
    """Ends when its connections have ended."""

    daemon_threads = False


@contextlib.contextmanager
def serving(server: Any, certificate: Any) -> Iterator[None]:
    """A server of the standard library's at work, with TLS if there is a certificate."""
    if certificate is not None:
        server.socket = tls_server(certificate).wrap_socket(server.socket, server_side=True)
    with in_thread(functools.partial(server.serve_forever, 0.01)):
        try:
            yield
        finally:
            server.shutdown()


@contextlib.contextmanager
def run_wsgiref(application: Any, certificate: Any = None) -> Iterator[Address]:
    """One thread per connection."""
    server = sendgate.wsgiref.make_server("127.0.0.1", 0, application, ThreadingWSGIServer)
    with server, serving(server, certificate):
        yield ("127.0.0.1", server.server_port)


@contextlib.contextmanager
def run_cheroot(application: Any, certificate: Any = None, adapter: Any = None, threads: int = 4) -> Iterator[Address]:
    """A pool of threads."""
    server = cheroot.wsgi.Server(("127.0.0.1", 0), application, numthreads=threads, timeout=60, shutdown_timeout=20)
    server.gateway = sendgate.cheroot.Gateway
    server.stats["Enabled"] = True
    if certificate is not None:
        server.ssl_adapter = (adapter or cheroot.ssl.builtin.BuiltinSSLAdapter)(*map(str, certificate))
    server.prepare()
    with in_thread(server.serve):
        try:
            application.server = server
            yield server.bind_addr
        finally:
            # A thread that has just answered may be about to put its connection back, which has to be possible.
            wait_until(lambda: has_put_back(server))
            server.stop()


def has_put_back(server: Any) -> bool:
    """Whether none of cheroot's threads has a connection."""
    return all(thread.conn is None for thread in server.requests._threads)


@contextlib.contextmanager
def run_waitress(application: Any, **options: Any) -> Iterator[Address]:
    """One thread, besides the main loop."""
    server = sendgate.waitress.create_server(
        application, **{"host": "127.0.0.1", "port": 0, "threads": 1, "asyncore_loop_timeout": 0.01, **options}
    )
    application.server = server
    with in_thread(server.run):
        try:
            yield ("127.0.0.1", int(server.effective_port))
        finally:
            server.task_dispatcher.shutdown()
            # Its map is then empty when the connections are closed.
            in_loop(server.trigger, functools.partial(close_all, server))


def in_loop(trigger: Any, function: Callable[[], object]) -> None:
    """Have the thread of waitress's loop do something that may close the trigger.

    The loop can be at it before the trigger is pulled, if a task has just pulled it too.
    """
    pulled = threading.Event()

    def when_pulled() -> None:
        assert pulled.wait(60)
        function()

    trigger.pull_trigger(when_pulled)
    pulled.set()


def close_all(server: Any) -> None:
    """What ends the loop."""
    for channel in list(server.active_channels.values()):
        channel.handle_close()
    server.close()


@contextlib.contextmanager
def run_gevent(application: Any, certificate: Any = None) -> Iterator[Address]:
    """One hub."""
    tls = {}
    if certificate is not None:
        tls["ssl_context"] = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls["ssl_context"].load_cert_chain(*certificate)
    ready: Any = threading.Event()

    def run() -> None:
        hub: Any = gevent.get_hub()
        application.log = io.StringIO()
        handler, pool = sendgate.gevent.WSGIHandler, gevent.pool.Pool()
        server = gevent.pywsgi.WSGIServer(
            ("127.0.0.1", 0), application, spawn=pool, handler_class=handler, log=application.log, **tls
        )
        server.start()
        stop, stopped = hub.loop.async_(), gevent.event.Event()
        stop.start(stopped.set)
        ready.address, ready.stop = server.address, stop.send
        ready.set()
        stopped.wait()
        server.close()
        pool.kill(timeout=60)
        server.stop()
        stop.stop()
        stop.close()
        # The hub of a thread that has ended isn't collected.
        vars(hub).pop("_sendgate", None)
        # Sockets of gevent's can't be closed without their loop.
        gc.collect()
        hub.destroy(destroy_loop=True)

    with in_thread(run):
        assert ready.wait(60)
        try:
            yield ready.address
        finally:
            ready.stop()


ALL: dict[str, Start] = {
    "wsgiref": run_wsgiref, "cheroot": run_cheroot, "waitress": run_waitress, "gevent": run_gevent,
}  # fmt: skip
PERSISTENT = ("cheroot", "waitress", "gevent")
TLS = ("wsgiref", "cheroot", "gevent")


@pytest.fixture(params=ALL)
def address(request: pytest.FixtureRequest, application: Application) -> Iterator[Address]:
    """Where each of the servers listens."""
    with ALL[request.param](application) as address:
        yield address


@pytest.fixture(params=PERSISTENT)
def persistent(request: pytest.FixtureRequest, application: Application) -> Iterator[Address]:
    """Where each of the servers listens that keep connections."""
    with ALL[request.param](application) as address:
        yield address


def tls_server(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    """For the server's side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


# ---- Clients ----


class Client:
    """A connection on which answers are read one by one."""

    def __init__(self, address: Address, *, tls: bool = False, buffer: int = 0) -> None:
        self.sock: Any = socket.socket()
        self.sock.settimeout(60)
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.connect(address)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock)
        self.file = self.sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def ask(self, target: str, *fields: str, method: str = "GET", version: str = "1.1", body: bytes = b"") -> None:
        """Send a request."""
        lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + body)

    def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of an answer."""
        lines = []
        while (line := self.file.readline()) not in (b"\r\n", b""):
            lines.append(line)
        status, fields, _ = split(b"".join(lines).rstrip(b"\r\n") + b"\r\n\r\n")
        return status, fields

    def answer(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Read an answer."""
        status, fields = self.head()
        if method == "HEAD" or status == 304:
            return status, fields, b""
        return status, fields, self.file.read(int(fields["content-length"]))

    def get(self, target: str, *fields: str, **arguments: Any) -> tuple[int, dict[str, str], bytes]:
        """One request, one answer."""
        self.ask(target, *fields, **arguments)
        return self.answer(arguments.get("method", "GET"))

    def ended(self) -> bool:
        """Whether there is nothing more to come. Waits for that."""
        return self.file.read() == b""

    def reset(self) -> None:
        """Leave at once."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.sock.close()


def get(address: Address, target: str, *fields: str, **arguments: Any) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    with Client(address) as client:
        return client.get(target, *fields, **arguments)


# ---- All of them ----


def test_a_connection_serves_answers_of_every_kind_one_after_the_other(persistent: Address) -> None:
    """200, 304, 206, multipart, HEAD, 404, a file of the wrapper and a response of the server's own."""
    with Client(persistent) as client:
        status, fields, body = client.get("/static/file.txt")
        assert (status, body) == (200, CONTENT)
        tag = fields["etag"]
        for _ in range(2):
            assert client.get("/static/file.txt", f"If-None-Match: {tag}")[::2] == (304, b"")
            status, fields, body = client.get("/static/file.txt", "Range: bytes=10-19")
            assert (status, fields["content-range"], body) == (206, "bytes 10-19/10000", b"0123456789")
            status, fields, body = client.get("/static/file.txt", "Range: bytes=0-1,-2")
            assert status == 206
            assert fields["content-type"].startswith("multipart/byteranges; boundary=")
            assert body.count(b"Content-Range: bytes ") == 2
            status, fields, _ = client.get("/static/file.txt", method="HEAD")
            assert (status, fields["content-length"]) == (200, "10000")
            assert client.get("/static/none")[0] == 404
            assert client.get("/static/file.txt", "If-Match: none")[0] == 412
            assert client.get("/static/file.txt", "Range: bytes=10000-")[0] == 416
            assert client.get("/file")[::2] == (200, CONTENT)
            assert client.get("/hello")[::2] == (200, b"hello")


def test_pipelined_requests_are_answered_in_their_order(persistent: Address) -> None:
    """Files, responses of the server's own, and a big file between them."""
    targets = ["/hello", "/file", "/hello", "/static/file.txt", "/big", "/hello", "/file"]
    with Client(persistent) as client:
        client.sock.sendall(b"".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for target in targets))
        for target in targets:
            status, _, body = client.answer()
            assert status == 200
            if target == "/big":
                assert body == bytes(BIG)
            else:
                assert body == (b"hello" if target == "/hello" else CONTENT), target


def test_an_http_1_0_client_keeps_its_connection_if_it_asks_for_that(persistent: Address) -> None:
    """And only then."""
    with Client(persistent) as client:
        for target in ("/file", "/static/file.txt", "/file"):
            status, fields, body = client.get(target, "Connection: Keep-Alive", version="1.0")
            assert (status, fields["connection"].lower(), body) == (200, "keep-alive", CONTENT)
        status, fields, body = client.get("/file", version="1.0")
        assert (status, body) == (200, CONTENT)
        assert fields.get("connection", "close") == "close"
        assert client.ended()


def test_the_connection_is_closed_if_the_client_asks_for_that(address: Address) -> None:
    """The answer says so."""
    with Client(address) as client:
        status, fields, body = client.get("/file", "Connection: close")
        assert (status, fields["connection"], body) == (200, "close", CONTENT)
        assert client.ended()


def test_a_request_body_that_nobody_reads_is_no_request(persistent: Address) -> None:
    """It is read by the server, or the connection ends."""
    body = b"GET /fails HTTP/1.1\r\nHost: x\r\n\r\n"
    with Client(persistent) as client:
        status, fields, content = client.get("/unread", f"Content-Length: {len(body)}", method="POST", body=body)
        assert (status, content) == (200, CONTENT)
        if fields.get("connection") != "close":
            assert client.get("/hello")[::2] == (200, b"hello")


def test_what_middleware_iterates_over_are_the_same_bytes(address: Address, application: Application) -> None:
    """The file is closed once then, too."""
    assert get(address, "/wrapped")[::2] == (200, CONTENT.replace(b"0", b"O"))
    wait_until(lambda: application.files[0].closes == 1)


def test_a_file_is_closed_once(address: Address, application: Application) -> None:
    """After it was sent, and after a HEAD."""
    assert get(address, "/file")[2] == CONTENT
    assert get(address, "/file", method="HEAD")[1]["content-length"] == str(len(CONTENT))
    for file in application.files:
        wait_until(lambda file=file: file.closes == 1)
    assert get(address, "/hello")[0] == 200
    assert [file.closes for file in application.files] == [1, 1]


def test_the_server_names_itself_unless_the_application_does(address: Address) -> None:
    """In one field."""
    ours, theirs = get(address, "/file")[1].get("server"), get(address, "/hello")[1].get("server")
    assert ours == theirs
    assert get(address, "/own-server")[1]["server"] == "mine"


def test_others_are_served_while_clients_are_slow(address: Address, application: Application) -> None:
    """Then the slow ones get all of it. waitress has one thread here, gevent one hub."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Client(address, buffer=8192)) for _ in range(3)]
        for client in slow:
            client.ask("/big")
            assert client.head()[0] == 200
        assert get(address, "/hello")[2] == b"hello"
        assert get(address, "/file")[2] == CONTENT
        assert [file.closed for file in application.files[:3]] == [False] * 3
        for client in slow:
            assert client.file.read(BIG) == bytes(BIG)
    wait_until(lambda: all(file.closes == 1 for file in application.files))


def test_a_client_that_leaves_ends_its_response_only(address: Address, application: Application) -> None:
    """The file is closed, and the server goes on."""
    client = Client(address, buffer=8192)
    client.ask("/big")
    assert client.head()[0] == 200
    client.reset()
    wait_until(lambda: application.files[0].closes == 1)
    assert get(address, "/file")[2] == CONTENT


def test_a_file_that_becomes_shorter_ends_its_connection(
    address: Address, application: Application, capfd: pytest.CaptureFixture[str]
) -> None:
    """So that the client notices. Nothing else follows on it."""
    with Client(address, buffer=8192) as client:
        client.ask("/big")
        status, fields = client.head()
        assert (status, fields["content-length"]) == (200, str(BIG))
        os.truncate(application.folder / "big", BIG // 2)
        try:
            received = client.file.read()
        except ConnectionResetError:
            # It had something unread, or the file was cut where it was being sent.
            received = b""
        assert len(received) < BIG
        assert not received.strip(b"\0")
    wait_until(lambda: application.files[0].closes == 1)
    assert get(address, "/file")[2] == CONTENT


@pytest.mark.parametrize("target", ["/fails", "/bad-field"])
def test_an_application_that_fails_is_answered_500(address: Address, application: Application, target: str) -> None:
    """With nothing of what it has said before, and with its file closed."""
    status, fields, _ = get(address, target, "Connection: close")
    assert status == 500
    assert "x-name" not in fields
    assert "x-other" not in fields
    for file in application.files:
        wait_until(lambda file=file: file.closes == 1)
    assert get(address, "/hello")[0] == 200


@pytest.mark.parametrize("name", TLS)
def test_tls(name: str, application: Application, certificate: tuple[Path, Path]) -> None:
    """The same over TLS, a big file to a slow client too."""
    with ALL[name](application, certificate) as address:
        with Client(address, tls=True) as client:
            status, fields, body = client.get("/static/file.txt", "Range: bytes=10-19")
            assert (status, body) == (206, b"0123456789")
        with Client(address, tls=True) as client:
            assert client.get("/static/file.txt", f"If-None-Match: {fields['etag']}")[0] == 304
        with Client(address, tls=True) as client:
            status, fields, _ = client.get("/file", method="HEAD")
            assert (status, fields["content-length"]) == (200, "10000")
        with Client(address, tls=True, buffer=8192) as client:
            client.ask("/big")
            assert client.head()[0] == 200
            with Client(address, tls=True) as other:
                assert other.get("/hello")[2] == b"hello"
            assert client.file.read(BIG) == bytes(BIG)
    for file in application.files:
        assert file.closes == 1


# ---- wsgiref ----


def test_wsgiref_closes_after_each_answer_and_says_so(application: Application) -> None:
    """As wsgiref always does."""
    with run_wsgiref(application) as address, Client(address) as client:
        status, fields, body = client.get("/file", "Connection: keep-alive")
        assert (status, fields["connection"], body) == (200, "close", CONTENT)
        assert client.ended()


def test_wsgiref_logs_what_was_sent(application: Application, capfd: pytest.CaptureFixture[str]) -> None:
    """The bytes of the body, also if the client has left."""
    with run_wsgiref(application) as address:
        _, fields, _ = get(address, "/static/file.txt")
        get(address, "/static/file.txt", f"If-None-Match: {fields['etag']}")
        get(address, "/static/file.txt", "Range: bytes=10-19")
        get(address, "/static/file.txt", method="HEAD")
        client = Client(address, buffer=8192)
        client.ask("/big")
        client.head()
        client.reset()
        wait_until(lambda: application.files[0].closes == 1)
    # Each is written by a thread of its own, when its client has all.
    log = sorted(re.sub(r".*] ", "", line) for line in capfd.readouterr().err.splitlines())
    assert log[1:] == [
        '"GET /static/file.txt HTTP/1.1" 200 10000',
        '"GET /static/file.txt HTTP/1.1" 206 10',
        '"GET /static/file.txt HTTP/1.1" 304 0',
        '"HEAD /static/file.txt HTTP/1.1" 200 0',
    ]
    first = re.fullmatch(r'"GET /big HTTP/1.1" 200 (\d+)', log[0])
    assert first, log
    assert int(first[1]) < BIG


def test_wsgiref_reports_a_file_that_became_shorter(
    application: Application, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the exception, and with a line that says how much was sent."""
    with run_wsgiref(application) as address, Client(address, buffer=8192) as client:
        client.ask("/big")
        client.head()
        os.truncate(application.folder / "big", BIG // 2)
        with contextlib.suppress(ConnectionResetError):
            client.file.read()
        wait_until(lambda: application.files[0].closes == 1)
    log = capfd.readouterr().err
    assert "sendgate._errors.TruncatedError" in log
    assert re.search(r'"GET /big HTTP/1.1" 200 \d+\n', log)


def test_wsgiref_answers_http_0_9_without_a_head(application: Application) -> None:
    """As it does without the library."""
    with run_wsgiref(application) as address, Client(address) as client:
        client.sock.sendall(b"GET /file\r\n\r\n")
        assert client.file.read() == CONTENT


@pytest.mark.parametrize("threads", [True, False])
def test_wsgiref_says_whether_there_are_threads(tmp_path: Path, threads: bool) -> None:
    """wsgi.multithread."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "1")])
        return [b"1" if environ["wsgi.multithread"] else b"0"]

    kind = ThreadingWSGIServer if threads else sendgate.wsgiref.WSGIServer
    make_server = sendgate.wsgiref.make_server
    with make_server("127.0.0.1", 0, application, kind) as server, in_thread(server.handle_request):
        assert get(("127.0.0.1", server.server_port), "/")[2] == (b"1" if threads else b"0")


# ---- http.server ----


class Handler(sendgate.wsgiref.SimpleHTTPRequestHandler):
    """What applications do with http.server's."""

    protocol_version = "HTTP/1.1"
    extensions_map = {**sendgate.wsgiref.SimpleHTTPRequestHandler.extensions_map, ".txt": "text/x-own"}
    timeout = 60
    lines: list[str] = []

    def end_headers(self) -> None:
        """Add a field."""
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def translate_path(self, path: str) -> str:
        """Have names of its own."""
        return super().translate_path(path.replace("/alias/", "/"))

    def version_string(self) -> str:
        """Be somebody."""
        return "own/1.0"

    def log_message(self, format: str, *args: Any) -> None:
        """Collect the lines."""
        self.lines.append(format % args)


@contextlib.contextmanager
def run_http_server(folder: Path, handler: type[Any] = Handler, certificate: Any = None) -> Iterator[Address]:
    """One thread per connection."""
    handler.lines = []
    made = functools.partial(handler, directory=str(folder))
    with WaitingHTTPServer(("127.0.0.1", 0), made) as server, serving(server, certificate):
        yield ("127.0.0.1", server.server_port)


@pytest.fixture
def folder(application: Application) -> Path:
    """What http.server serves."""
    folder = application.folder
    (folder / "site").mkdir()
    (folder / "site" / "index.html").write_bytes(b"<p>index</p>")
    (folder / "list").mkdir()
    (folder / "list" / "name").touch()
    os.mkfifo(folder / "fifo")
    return folder


def test_http_server_answers_conditions_and_ranges_and_keeps_what_the_handler_does(folder: Path) -> None:
    """Its own fields, types and paths, on one connection."""
    with run_http_server(folder) as address, Client(address) as client:
        status, fields, body = client.get("/alias/file.txt")
        assert (status, body) == (200, CONTENT)
        assert fields["content-type"] == "text/x-own"
        assert fields["access-control-allow-origin"] == "*"
        assert fields["server"] == "own/1.0"
        assert fields["accept-ranges"] == "bytes"
        assert fields["last-modified"] == "Sun, 06 Nov 1994 08:49:37 GMT"
        for condition in (f"If-None-Match: {fields['etag']}", f"If-Modified-Since: {fields['last-modified']}"):
            status, answer, _ = client.get("/file.txt", condition)
            assert status == 304
            assert answer["etag"] == fields["etag"]
        assert client.get("/file.txt", "If-Match: none")[0] == 412
        assert client.get("/file.txt", "Range: bytes=10000-")[0] == 416
        status, answer, body = client.get("/file.txt", "Range: bytes=10-19")
        assert (status, body, answer["access-control-allow-origin"]) == (206, b"0123456789", "*")
        status, answer, body = client.get("/file.txt", "Range: bytes=0-1,-2")
        assert (status, body.count(b"Content-Type: text/x-own")) == (206, 2)
        status, answer, _ = client.get("/file.txt", method="HEAD")
        assert (status, answer["content-length"]) == (200, "10000")
        status, answer, body = client.get("/site/")
        assert (status, answer["content-type"], body) == (200, "text/html", b"<p>index</p>")
        assert client.get("/site/", "Range: bytes=3-7")[2] == b"index"
        # What is http.server's.
        status, answer, body = client.get("/list/")
        assert (status, answer["access-control-allow-origin"]) == (200, "*")
        assert b">name</a>" in body
        status, answer, _ = client.get("/list")
        assert (status, answer["location"]) == (301, "/list/")
    assert Handler.lines[:3] == [
        '"GET /alias/file.txt HTTP/1.1" 200 10000',
        '"GET /file.txt HTTP/1.1" 304 0',
        '"GET /file.txt HTTP/1.1" 304 0',
    ]
    assert Handler.lines[5] == '"GET /file.txt HTTP/1.1" 206 10'


@pytest.mark.parametrize("target", ["/none", "/none/", "/file.txt/", "/fifo", "/a%00b", "/../etc/passwd"])
def test_http_server_has_no_such_file(folder: Path, target: str) -> None:
    """404, without waiting for the other end of a FIFO."""
    with run_http_server(folder) as address:
        assert get(address, target)[0] == 404


def test_http_server_sends_http_1_0_as_it_is_by_default(folder: Path) -> None:
    """One answer per connection, and none of the handler's classes changed."""
    with run_http_server(folder, type("Plain", (sendgate.wsgiref.SimpleHTTPRequestHandler,), {
        "log_message": lambda *_: None,
    })) as address, Client(address) as client:  # fmt: skip
        status, fields, body = client.get("/file.txt", "Connection: keep-alive")
        assert (status, fields["connection"], body) == (200, "close", CONTENT)
        assert client.ended()


def test_http_server_leaves_files_to_a_handler_with_a_copyfile_of_its_own(folder: Path) -> None:
    """Whose content isn't the file's."""

    class Shouting(Handler):
        def copyfile(self, source: Any, outputfile: Any) -> None:
            outputfile.write(source.read().replace(b"0", b"O"))

    with run_http_server(folder, Shouting) as address:
        assert get(address, "/file.txt", "Connection: close")[::2] == (200, CONTENT.replace(b"0", b"O"))


def test_http_server_answers_500_for_a_field_that_is_none(folder: Path) -> None:
    """Nothing of the file is sent, and the log says why."""

    class Splitting(Handler):
        def guess_type(self, path: Any) -> str:
            return "text/plain\r\nX-Other: b"

    with run_http_server(folder, Splitting) as address:
        status, fields, _ = get(address, "/file.txt", "Connection: close")
    assert status == 500
    assert "x-other" not in fields
    assert any("A response field" in line for line in Splitting.lines)


def test_http_server_speaks_tls(folder: Path, certificate: tuple[Path, Path]) -> None:
    """With what http.server needs for it: a wrapped socket."""
    with run_http_server(folder, certificate=certificate) as address, Client(address, tls=True) as client:
        assert client.get("/file.txt", "Range: bytes=10-19")[::2] == (206, b"0123456789")
        assert client.get("/big")[2] == bytes(BIG)


def test_http_server_closes_after_a_file_that_became_shorter(folder: Path) -> None:
    """And after a client that leaves; both are logged with the bytes that were sent."""
    with run_http_server(folder) as address:
        with Client(address, buffer=8192) as client:
            client.ask("/big")
            client.head()
            os.truncate(folder / "big", BIG // 2)
            with contextlib.suppress(ConnectionResetError):
                assert len(client.file.read()) < BIG
        wait_until(lambda: any("200" in line for line in Handler.lines))
        client = Client(address, buffer=8192)
        client.ask("/big")
        client.head()
        client.reset()
        wait_until(lambda: len([line for line in Handler.lines if "200" in line]) == 2)
        assert get(address, "/file.txt")[2] == CONTENT
    assert all(int(line.split()[-1]) < BIG for line in Handler.lines if '"GET /big' in line)


# ---- cheroot ----


def test_cheroot_counts_what_was_sent(application: Application) -> None:
    """In the statistics, as for its own responses."""
    with run_cheroot(application) as address:
        with Client(address) as client:
            client.get("/file", "Connection: close")
            assert client.ended()
        statistics = application.server.stats["Worker Threads"]
        written = lambda: sum(thread["Bytes Written"](thread) for thread in statistics.values())  # noqa: E731
        # What a thread has counted, it counts twice for a moment.
        wait_until(lambda: has_put_back(application.server))
        assert written() > len(CONTENT)
        assert written() < len(CONTENT) + 1000


def test_cheroot_closes_a_connection_with_a_chunked_body_that_nobody_reads(application: Application) -> None:
    """What is left of it isn't the next request."""
    body = b"1f\r\nGET /fails HTTP/1.1\r\nHost: x\r\n\r\n\r\n0\r\n\r\n"
    with run_cheroot(application) as address, Client(address) as client:
        status, fields, _ = client.get("/unread", "Transfer-Encoding: chunked", method="POST", body=body)
        assert (status, fields["connection"]) == (200, "close")
        with contextlib.suppress(ConnectionResetError):
            assert client.ended()


def test_cheroot_with_pyopenssl_writes_by_itself(application: Application, certificate: tuple[Path, Path]) -> None:
    """Whose sockets the library doesn't know."""
    with warnings.catch_warnings():
        # cheroot calls something that pyOpenSSL advises against.
        warnings.simplefilter("ignore", DeprecationWarning)
        adapter = cheroot.ssl.pyopenssl.pyOpenSSLAdapter
        with run_cheroot(application, certificate, adapter) as address, Client(address, tls=True) as client:
            assert client.get("/static/file.txt", "Range: bytes=10-19")[::2] == (206, b"0123456789")
            assert client.get("/file")[::2] == (200, CONTENT)
            assert client.get("/hello")[2] == b"hello"
    assert [file.closes for file in application.files] == [1]


# ---- waitress ----


def test_waitress_serves_on_several_sockets(application: Application) -> None:
    """Each gets the application, and all of them one sender."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    server: Any = sendgate.waitress.create_server(application, sockets=listeners, asyncore_loop_timeout=0.01)
    with in_thread(server.run):
        try:
            for listener in listeners:
                assert get(listener.getsockname(), "/file")[2] == CONTENT
        finally:
            trigger = next(one for one in server.map.values() if isinstance(one, waitress.trigger.trigger))
            in_loop(trigger, server.close)


def test_two_waitress_servers_have_one_loop(application: Application) -> None:
    """Each of them sends, and the loop ends when both are closed."""
    loop: dict[int, Any] = {}
    options = {"host": "127.0.0.1", "port": 0, "asyncore_loop_timeout": 0.01}
    servers = [sendgate.waitress.create_server(application, loop, **options) for _ in range(2)]
    with in_thread(servers[0].run):
        try:
            for server in servers:
                assert get(("127.0.0.1", int(server.effective_port)), "/file")[2] == CONTENT
        finally:
            for server in servers:
                server.task_dispatcher.shutdown()
                in_loop(server.trigger, server.close)


def test_waitress_keeps_a_connection_whose_file_is_being_sent(application: Application) -> None:
    """Its maintenance closes idle ones by the time of what it has sent itself."""
    with run_waitress(application) as address, Client(address, buffer=8192) as client:
        client.ask("/big")
        client.head()
        server = application.server
        (channel,) = server.active_channels.values()
        wait_until(lambda: not channel.requests and server.task_dispatcher.active_count == 0)
        passed = threading.Event()

        def long_after() -> None:
            channel.last_activity = 0
            server.maintenance(time.time())
            passed.set()

        server.trigger.pull_trigger(long_after)
        assert passed.wait(60)
        assert client.file.read(BIG) == bytes(BIG)
        wait_until(lambda: not channel._is_sending())
        server.trigger.pull_trigger(long_after)
        assert client.ended()


def test_waitress_closes_a_connection_while_its_memory_is_sent(application: Application) -> None:
    """The application's memory is let go of when nothing is sent from it any more."""
    with run_waitress(application) as address, Client(address, buffer=8192) as client:
        client.ask("/mapped")
        client.head()
    assert application.files[0].closed


def test_waitress_ends_when_it_is_closed_and_everything_is_sent(application: Application) -> None:
    """run() then returns, as it does without the library, and nothing of the sender is left."""
    threads = library_threads()
    server: Any = sendgate.waitress.create_server(application, host="127.0.0.1", port=0, asyncore_loop_timeout=0.01)
    with in_thread(server.run), Client(("127.0.0.1", int(server.effective_port)), buffer=8192) as client:
        client.ask("/big")
        client.head()
        (channel,) = server.active_channels.values()
        wait_until(lambda: not channel.requests)
        server.task_dispatcher.shutdown()
        in_loop(server.trigger, server.close)
        assert client.file.read(BIG) == bytes(BIG)
    wait_until(lambda: library_threads() <= threads)


def test_waitress_serve_has_a_command_line(application: Application, tmp_path: Path) -> None:
    """python -m sendgate.waitress is waitress-serve."""
    (tmp_path / "served.py").write_text("import sendgate.wsgi\napplication = sendgate.wsgi.Files('.')\n")
    command = [sys.executable, "-m", "sendgate.waitress", "--listen=127.0.0.1:0", "served:application"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = None
            while found is None:
                line = server.stderr.readline()
                assert line, "it has ended"
                found = re.search(r"Serving on http://127.0.0.1:(\d+)", line)
            assert get(("127.0.0.1", int(found[1])), "/file.txt", "Range: bytes=10-19")[2] == b"0123456789"
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
        finally:
            server.kill()


def test_an_unknown_waitress_is_refused(tmp_path: Path) -> None:
    """At once, and not in the middle of a response."""
    metadata = tmp_path / "waitress-4.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: waitress\nVersion: 4.0\n")
    code = "import sendgate.waitress"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.endswith("ImportError: sendgate.waitress knows waitress 3, not 4.0\n")


def test_an_unknown_version_of_another_server_is_refused() -> None:
    """By what is missing from it."""
    from sendgate._adapters import check_hooks

    check_hooks("sendgate.gevent", gevent.pywsgi.WSGIHandler, "process_result")
    with pytest.raises(ImportError, match="sendgate.gevent doesn't know .*WSGIHandler has no nothing, none"):
        check_hooks("sendgate.gevent", gevent.pywsgi.WSGIHandler, "nothing", "process_result", "none")


# ---- gevent ----


def test_gevent_logs_what_was_sent(application: Application) -> None:
    """With the heads, as it counts its own."""
    with run_gevent(application) as address:
        with Client(address) as client:
            client.ask("/static/file.txt", "Range: bytes=10-19", "Connection: close")
            received = client.file.read()
        client = Client(address, buffer=8192)
        client.ask("/big")
        client.head()
        client.reset()
        wait_until(lambda: application.files[0].closes == 1)
    first, second = application.log.getvalue().splitlines()
    assert f'"GET /static/file.txt HTTP/1.1" 206 {len(received)} ' in first
    found = re.search(r'"GET /big HTTP/1.1" 200 (\d+) ', second)
    assert found, second
    assert int(found[1]) < BIG


def test_gevent_lets_go_of_memory_before_the_application_closes_it(application: Application) -> None:
    """Also when the server is stopped, and the greenlet that sends it killed."""
    with contextlib.ExitStack() as stack:
        with run_gevent(application) as address:
            clients = [stack.enter_context(Client(address, buffer=8192)) for _ in range(3)]
            for client in clients:
                client.ask("/mapped")
                client.head()
        assert [file.closed for file in application.files] == [True] * 3
        for client in clients:
            # Nothing follows on what was cut short: gevent answers 500 where it believes that nothing was sent.
            received = client.file.read()
            assert len(received) < BIG
            assert not received.strip(b"\0")
    log = application.log.getvalue().splitlines()
    assert all(re.search(r'"GET /mapped HTTP/1.1" 200 [1-9]\d+ ', line) for line in log), log


_FORKED = """
import os, signal
import gevent, gevent.event, gevent.fileobject, gevent.os, gevent.pywsgi
import sendgate.gevent, sendgate.wsgi

application, handler = sendgate.wsgi.Files("."), sendgate.gevent.WSGIHandler
server = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), application, handler_class=handler, log=None)
server.start()
print(server.server_port, flush=True)
stdin = gevent.fileobject.FileObjectPosix(0, "rb")
assert stdin.readline() == b"fork\\n"
server.stop_accepting()
child = gevent.os.fork()
if child == 0:
    server.start_accepting()
    print("forked", flush=True)
    gevent.event.Event().wait()
stdin.readline()
os.kill(child, signal.SIGKILL)
"""


def test_gevent_sends_in_a_child_that_was_forked_while_a_response_was_being_sent(
    application: Application, tmp_path: Path
) -> None:
    """The child has a sender of its own, and the parent's response goes on."""
    command = [sys.executable, "-c", _FORKED]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        address = ("127.0.0.1", int(server.stdout.readline()))
        with Client(address, buffer=8192) as before:
            before.ask("/big")
            assert before.head()[0] == 200
            server.stdin.write("fork\n")
            server.stdin.flush()
            assert server.stdout.readline() == "forked\n"
            with Client(address, buffer=8192) as after:
                after.ask("/big")
                assert after.head()[0] == 200
                assert get(address, "/file.txt")[2] == CONTENT
                assert after.file.read(BIG) == bytes(BIG)
            assert before.file.read(BIG) == bytes(BIG)
        server.stdin.close()
    assert server.returncode == 0
