"""``sendgate.fastcgi.Handler`` and ``Server``, asked by a front server of the tests' own."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import resource
import socket
import socketserver
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sendgate
from fastcgi_client import GET, Front, ask, begin, content_records, params_records, request, serving
from sendgate import fastcgi
from sendgate._fastcgi_connection import Connection
from sendgate.fastcgi import Handler, ProtocolStatus, RecordType
from support import library_threads, wait_until

BIG = random.Random(1).randbytes(3_000_000)
FOUND = {**GET, "HTTP_RANGE": "bytes=1000000-1000009"}


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged to the tests' own output."""
    logger = logging.getLogger("sendgate.fastcgi")
    before, logger.propagate = logger.propagate, False
    yield
    logger.propagate = before


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file that no socket takes at once."""
    path = tmp_path / "big.bin"
    path.write_bytes(BIG)
    os.utime(path, (784111777, 784111777))
    return path


# ---- The document ----


class TestHandler(fastcgi.Handler):
    """As in the document, but for the lines, which go to the answer."""

    __test__ = False

    def handle(self) -> None:
        """Say what has come."""
        self.send("Content-type: text/html\r\n\r\n")
        self.send(f"query: {self.params['QUERY_STRING']}\n")
        self.send(f"content type: {self.params['HTTP_CONTENT_TYPE']}\n")
        self.send(f"stdin: {self.stdin}\n")
        self.send("<html>foobar</html>\n")


POST = {**GET, "REQUEST_METHOD": "POST", "QUERY_STRING": "a=1", "CONTENT_LENGTH": "4"}
ANSWER = b"query: a=1\ncontent type: application/json\nstdin: test\n<html>foobar</html>\n"


@pytest.mark.parametrize("name", ["HTTP_CONTENT_TYPE", "CONTENT_TYPE"])
def test_document(name: str) -> None:
    """The document's example, with the name that its proxy gives to a parameter, and with the one of RFC 3875."""
    with serving(TestHandler) as path:
        answer = ask(path, {**POST, name: "application/json"}, b"test")
    assert answer.fields == {"content-type": "text/html"}
    assert answer.body == ANSWER
    assert answer.kinds == [RecordType.STDOUT, RecordType.STDOUT, RecordType.END_REQUEST]


@pytest.mark.parametrize("keep", [False, True])
def test_document_under_socketserver(keep: bool, tmp_path: Path) -> None:
    """The class works under the standard library's servers, several requests on a connection too."""
    path = os.path.relpath(tmp_path / "s")
    with socketserver.UnixStreamServer(path, TestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with Front(path) as front:
            for _ in range(1 + keep):
                assert front.ask({**POST, "CONTENT_TYPE": "application/json"}, b"test", keep=keep).body == ANSWER
            if not keep:
                assert front.is_closed()
        thread.join(20)
        assert not thread.is_alive()


def test_unread_content_under_socketserver(tmp_path: Path) -> None:
    """The answer arrives although nobody has read the content."""

    class Deaf(Handler):
        def handle(self) -> None:
            self.send("Status: 413\r\n\r\n")

    path = os.path.relpath(tmp_path / "s")
    with socketserver.UnixStreamServer(path, Deaf) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with Front(path) as front:
            front.send(begin() + params_records(GET) + fastcgi.pack_stream(RecordType.STDIN, 1, bytes(100_000)))
            answer = front.answer()
            assert front.is_closed()
        thread.join(20)
    assert (answer.status, answer.protocol_status) == (413, 0)


def test_every_cut() -> None:
    """A request in two pieces, of which the second comes when the first was read, cut at every byte."""
    params = {"REQUEST_METHOD": "POST", "QUERY_STRING": "a=1", "CONTENT_TYPE": "application/json"}
    sent = request(params, b"test", keep=True)
    with serving(TestHandler) as path, Front(path) as front:
        for cut in range(1, len(sent)):
            front.send_and_wait(sent[:cut])
            front.send(sent[cut:])
            answer = front.answer()
            assert (answer.body, answer.protocol_status) == (ANSWER, 0), cut


def test_byte_by_byte() -> None:
    """And in as many pieces as it has bytes."""
    params = {"REQUEST_METHOD": "POST", "QUERY_STRING": "a=1", "CONTENT_TYPE": "application/json"}
    with serving(TestHandler) as path, Front(path) as front:
        for byte in request(params, b"test"):
            front.send_and_wait(bytes((byte,)))
        assert front.answer().body == ANSWER


# ---- What has come ----


def test_params() -> None:
    """Bytes that are no UTF-8 survive, as text, as bytes, and in the environ."""

    class Echo(Handler):
        def handle(self) -> None:
            value = self.params["HTTP_X"]
            assert isinstance(self.params, dict)
            assert value == "ü\udcff"
            assert self.environ["HTTP_X"] == "\xc3\xbc\xff"
            assert bytes(self["params"]) == fastcgi.encode_params(pairs)
            assert str(self["PARAMS"]) == bytes(self["params"]).decode("utf-8", "surrogateescape")
            assert "HTTP_CONTENT_TYPE" not in self.params
            with pytest.raises(KeyError):
                self.params["HTTP_Y"]
            with pytest.raises(KeyError):
                self["other"]
            self.send("\r\n")
            self.send(value)

    pairs = [(b"REQUEST_METHOD", b"GET"), (b"HTTP_X", b"\xc3\xbc\xff")]
    with serving(Echo) as path:
        assert ask(path, pairs).stdout == b"\r\n\xc3\xbc\xff"


def test_content_as_text() -> None:
    """All of it, as often as it is asked for, under any name."""

    class Echo(Handler):
        def handle(self) -> None:
            assert self["stdin"].read(2) == b"ab"
            assert self.stdin == "c\udcff"
            assert (str(self["StdIn"]), bytes(self[RecordType.STDIN])) == ("c\udcff", b"c\xff")
            assert self["stdin"].read() == b""
            self.send(b"\r\n" + bytes(self["stdin"]))

    with serving(Echo) as path:
        assert ask(path, POST, b"abc\xff").stdout == b"\r\nc\xff"


def test_content_is_read_as_it_comes() -> None:
    """A handler has the beginning before the end was sent, in lines, in pieces, and into a buffer."""

    class Reader(Handler):
        def handle(self) -> None:
            stdin = self["stdin"]
            assert stdin.readline() == b"one\n"
            self.send("\r\n1")
            self.flush()
            assert next(iter(stdin)) == b"two\n"
            self.send("2")
            self.flush()
            buffer = bytearray(5)
            assert stdin.readinto(buffer) == 5
            self.send(b"3" + buffer)
            assert stdin.read(1) == stdin.readline() == b""

    with serving(Reader) as path, Front(path) as front:
        front.send(begin() + params_records(POST) + fastcgi.pack_record(RecordType.STDIN, 1, b"one\n"))
        assert front.record().content == b"\r\n1"
        front.send(fastcgi.pack_record(RecordType.STDIN, 1, b"two\n"))
        assert front.record().content == b"2"
        front.send(content_records(b"three"))
        assert front.answer().stdout == b"3three"


def test_large_content() -> None:
    """Both ways, many records, without having it in memory."""

    class Echo(Handler):
        def handle(self) -> None:
            self.send("\r\n")
            while piece := self["stdin"].read(100_000):
                self.send(piece)

    pieces = [random.Random(seed).randbytes(1 << 20) for seed in range(32)]
    with serving(Echo) as path, Front(path) as front:

        def feed() -> None:
            front.send(begin() + params_records(POST))
            for piece in pieces:
                front.send(fastcgi.pack_stream(RecordType.STDIN, 1, piece))
            front.send(content_records(b""))

        thread = threading.Thread(target=feed)
        thread.start()
        answer = front.answer()
        thread.join()
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(b"".join(pieces)).digest()
    assert answer.protocol_status == 0


# ---- What is answered ----


def test_messages_come_first() -> None:
    """STDERR leaves before what of STDOUT is queued; both can be looked at until they have left, and written to."""

    class Two(Handler):
        def handle(self) -> None:
            self.send("\r\nfirst ")
            self.send("message 1\n", err=True)
            self["STDERR"].write(b"message 2\n")
            assert (str(self["stdout"]), bytes(self["stderr"])) == ("\r\nfirst ", b"message 1\nmessage 2\n")
            self.flush()
            assert (str(self["stdout"]), str(self["stderr"])) == ("", "")
            print("second", file=self["stdout"], end="")
            self.send("message 3\n", err=True)

    with serving(Two) as path:
        answer = ask(path)
    assert answer.stdout == b"\r\nfirst second"
    assert answer.stderr == b"message 1\nmessage 2\nmessage 3\n"
    assert answer.kinds == [7, 6, 7, 7, 6, 6, 3]


def test_large_answer() -> None:
    """It leaves while it is made, and arrives as it was sent."""

    class Large(Handler):
        def handle(self) -> None:
            self.send("\r\n")
            for start in range(0, len(BIG), 10_000):
                self.send(BIG[start : start + 10_000])
                assert len(bytes(self["stdout"])) < 65536

    with serving(Large) as path:
        assert ask(path).stdout == b"\r\n" + BIG


def test_respond(big: Path) -> None:
    """The library decides: all of it, a part, or nothing; also of what is in memory."""

    class Files(Handler):
        def handle(self) -> None:
            if self.params["PATH_INFO"] == "/memory":
                result = self.respond(memoryview(BIG), etag='"m"', content_type="text/plain")
            else:
                result = self.respond(big, headers=[("X-A", "b")])
            assert result.http_status in (200, 206, 304)
            for late in (lambda: self.send("x"), lambda: self.respond(big), lambda: self.send_file(big)):
                with pytest.raises(RuntimeError):
                    late()

    with serving(Files) as path:
        whole = ask(path)
        part = ask(path, FOUND)
        tag = whole.fields["etag"]
        unchanged = ask(path, {**GET, "HTTP_IF_NONE_MATCH": tag})
        memory = ask(path, {**GET, "PATH_INFO": "/memory"})
        head = ask(path, {**GET, "REQUEST_METHOD": "HEAD"})
    assert (whole.status, whole.body, whole.fields["x-a"]) == (200, BIG, "b")
    assert not {"date", "server", "connection"} & set(whole.fields)
    assert (part.status, part.body) == (206, BIG[1_000_000:1_000_010])
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert (memory.fields["etag"], memory.body) == ('"m"', BIG)
    assert (head.body, head.fields["content-length"]) == (b"", "3000000")


def test_respond_after_something_was_sent(big: Path) -> None:
    """Its head would be in the middle of the answer."""

    class Late(Handler):
        def handle(self) -> None:
            self.send("\r\n")
            with pytest.raises(RuntimeError, match="sent before"):
                self.respond(big)

    with serving(Late) as path:
        assert ask(path).stdout == b"\r\n"


def test_respond_again(big: Path) -> None:
    """As long as nothing has left, another answer may be sent."""

    class Second(Handler):
        def handle(self) -> None:
            with pytest.raises(sendgate.FieldError):
                self.respond(big, headers=[("A", "b\r\nc")])
            with pytest.raises(FileNotFoundError):
                self.respond("/nonexistent")
            self.respond(b"second", status=404)

    with serving(Second) as path:
        answer = ask(path)
    assert (answer.status, answer.body) == (404, b"second")


@pytest.mark.parametrize("flush", [False, True])
def test_send_file(big: Path, flush: bool) -> None:
    """What was sent is the head, and then comes a part of the file."""

    class Part(Handler):
        def handle(self) -> None:
            self.send("Content-Length: 2000000\r\n\r\n")
            if flush:
                self.flush()
            with big.open("rb") as file:
                self.send_file(file, 500_000, 2_000_000)

    with serving(Part) as path:
        answer = ask(path)
        assert ask(path, {**GET, "REQUEST_METHOD": "HEAD"}).body == b""
    assert answer.fields == {"content-length": "2000000"}
    assert answer.body == BIG[500_000:2_500_000]


def test_a_slow_reader_holds_no_thread(big: Path) -> None:
    """With a single thread, and a file that nobody reads, others are served; and all of it arrives in the end."""
    held = []

    class Files(Handler):
        def handle(self) -> None:
            held.append(self.respond(memoryview(BIG) if self.params["PATH_INFO"] == "/memory" else big))

    with serving(Files, threads=1) as path, Front(path) as slow, Front(path) as memory:
        # In this order.
        slow.send_and_wait(request())
        memory.send_and_wait(request({**GET, "PATH_INFO": "/memory"}))
        for _ in range(3):
            assert ask(path, FOUND).body == BIG[1_000_000:1_000_010]
        assert slow.answer().body == memory.answer().body == BIG
        assert slow.is_closed() and memory.is_closed()
    assert held[0].connection is sendgate.Connection.BROKEN, "it was sent at once"


def test_context_manager() -> None:
    """Without a handle(), a block answers; and an exception in it breaks the answer off."""
    ours, theirs = socket.socketpair()
    front = Front.__new__(Front)
    front.sock, front._data = theirs, b""
    with ours, theirs:
        theirs.sendall(request({**GET, "QUERY_STRING": "x"}, keep=True))
        with Handler(ours) as handler:
            assert (handler.params["QUERY_STRING"], handler.request_id, handler.keep_conn) == ("x", 1, True)
            handler.send("\r\nhello")
        assert front.answer().stdout == b"\r\nhello"
        theirs.sendall(request(request_id=7))
        with pytest.raises(ZeroDivisionError), Handler(ours) as handler:
            handler.send("\r\n")
            raise ZeroDivisionError
        assert front.answer(7).status == 500
        theirs.close()
        with pytest.raises(sendgate.PeerClosedError):
            Handler(ours)


# ---- What goes wrong ----


def test_exception(caplog: pytest.LogCaptureFixture) -> None:
    """500 in the place of what has not left, and a traceback to both logs."""

    class Wrong(Handler):
        def handle(self) -> None:
            self.send("\r\nall is well")
            raise ZeroDivisionError("oops")

    with serving(Wrong) as path:
        answer = ask(path, {**GET, "REQUEST_URI": "/wrong"})
    assert answer.status == 500
    assert b"all is well" not in answer.stdout and b"oops" not in answer.stdout
    assert b"ZeroDivisionError: oops" in answer.stderr
    assert "Error answering GET /wrong" in caplog.text and "ZeroDivisionError: oops" in caplog.text


@pytest.mark.parametrize(
    ("software", "keep", "length"),
    [
        ("nginx/1.22.1", False, True),
        ("nginx/1.22.1", False, False),
        ("nginx/1.22.1", True, True),
        ("lighttpd/1.4.69", False, True),
    ],
)
def test_exception_in_the_middle(software: str, keep: bool, length: bool, quiet: None) -> None:
    """The connection ends, in the way in which the front server notices that something is missing."""

    class Wrong(Handler):
        def handle(self) -> None:
            self.send("Content-Length: 10\r\n\r\n12" if length else "\r\n12")
            self.flush()
            raise ZeroDivisionError

    with serving(Wrong) as path, Front(path) as front:
        front.send(request({**GET, "SERVER_SOFTWARE": software}, keep=keep))
        if software.startswith("nginx"):
            # By nothing else than a record that FastCGI doesn't have.
            with pytest.raises(fastcgi.FastCGIError):
                front.answer()
            return
        answer = front.answer()
        assert front.is_closed()
    assert answer.body == b"12"
    assert answer.protocol_status != 0


@pytest.mark.parametrize("keep", [False, True])
def test_truncated_file(tmp_path: Path, keep: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A file that becomes shorter while it is sent: the answer is broken, not waited for."""
    path_of_file = tmp_path / "file"
    path_of_file.write_bytes(BIG)

    class Files(Handler):
        def handle(self) -> None:
            self.respond(path_of_file)

    with serving(Files) as path, Front(path) as front:
        front.may_break = True
        front.send(request({**GET, "SERVER_SOFTWARE": "nginx/1"}, keep=keep))
        first = front.record()
        assert first is not None
        os.truncate(path_of_file, 1_000_000)
        answer = front.answer()
        assert len(first.content + answer.stdout) < len(BIG)
        # Without its end it has ended with the connection.
        assert keep or front.is_closed()
    assert (answer.protocol_status == 0) == (not keep)
    assert "shorter than the length announced" in caplog.text


def test_front_server_leaves() -> None:
    """In the middle of content, and of an answer: the handler gets an OSError, and nobody else notices."""
    seen = []

    class Patient(Handler):
        def handle(self) -> None:
            try:
                if self.params["PATH_INFO"] == "/in":
                    self["stdin"].read()
                while True:
                    self.send(bytes(100_000))
            except BaseException as error:
                seen.append(error)
                raise

    with serving(Patient) as path:
        for where in ("/in", "/out"):
            with Front(path) as front:
                front.send(begin() + params_records({**GET, "PATH_INFO": where}))
                if where == "/out":
                    assert front.record() is not None
        wait_until(lambda: len(seen) == 2)
    assert all(isinstance(error, sendgate.PeerClosedError) for error in seen)


def test_abort() -> None:
    """A request that is aborted is ended, and the connection stays."""
    seen = []

    class Patient(Handler):
        def handle(self) -> None:
            if self.params["PATH_INFO"] == "/abort":
                with pytest.raises(sendgate.PeerClosedError) as error:
                    self["stdin"].read()
                seen.append(1)
                raise error.value
            self.send("\r\nhello")

    with serving(Patient) as path, Front(path) as front:
        front.send(begin(keep=True) + params_records({**GET, "PATH_INFO": "/abort"}))
        front.send(fastcgi.pack_record(RecordType.ABORT_REQUEST, 1))
        answer = front.answer()
        assert (answer.stdout, answer.protocol_status, seen) == (b"", 0, [1])
        assert front.ask(keep=True).body == b"hello"


# ---- The protocol ----


def test_requests_that_are_refused() -> None:
    """Other roles, a second request at the same time, and too many parameters; the connection stays."""
    go_on = threading.Event()

    class Slow(Handler):
        def handle(self) -> None:
            self["stdin"].read()
            assert go_on.wait(20)
            self.send("\r\nhello")

    with serving(Slow, max_params=1000) as path, Front(path) as front:
        front.send(begin(5, keep=True, role=3))
        assert front.answer(5).protocol_status == ProtocolStatus.UNKNOWN_ROLE
        front.send(begin(6, keep=True) + params_records({"A": "b" * 2000}, 6) + content_records(b"", 6))
        answer = front.answer(6)
        assert (answer.status, answer.protocol_status) == (431, 0)
        front.send(begin(1, keep=True) + params_records(GET) + begin(2, keep=True) + content_records(b""))
        go_on.set()
        assert front.answer(2).protocol_status == ProtocolStatus.CANT_MPX_CONN
        assert front.answer(1).body == b"hello"
        assert front.ask(keep=True, request_id=65535).body == b"hello"


def test_values() -> None:
    """A front server may ask what it may do."""
    with serving(TestHandler, max_connections=3) as path, Front(path) as front:
        asked = fastcgi.encode_params({"FCGI_MAX_CONNS": "", "FCGI_MPXS_CONNS": ""})
        front.send(fastcgi.pack_record(RecordType.GET_VALUES, 0, asked))
        record = front.record()
        assert record is not None and record.type == RecordType.GET_VALUES_RESULT
        values = dict(fastcgi.decode_params(record.content))
        assert values == {b"FCGI_MAX_CONNS": b"3", b"FCGI_MPXS_CONNS": b"0"}
        assert front.ask({**POST, "CONTENT_TYPE": "application/json"}, b"test").body == ANSWER


def test_no_fastcgi(caplog: pytest.LogCaptureFixture) -> None:
    """Who speaks something else is disconnected."""
    with serving(TestHandler) as path, Front(path) as front:
        front.send(b"GET / HTTP/1.1\r\n\r\n")
        assert front.is_closed()
    assert "A front server's connection has failed" in caplog.text


# ---- The server ----


def test_kept_connections_hold_no_thread() -> None:
    """With a single thread, many of them are served in turn."""
    with serving(TestHandler, threads=1) as path, contextlib.ExitStack() as stack:
        fronts = [stack.enter_context(Front(path)) for _ in range(20)]
        for _ in range(3):
            for front in fronts:
                answer = front.ask({**POST, "CONTENT_TYPE": "application/json"}, b"test", keep=True)
                assert answer.body == ANSWER


def test_overloaded() -> None:
    """One connection too many is told so, as soon as it asks for something."""
    with serving(TestHandler, max_connections=2) as path:
        with Front(path) as first, Front(path) as second, Front(path) as third:
            for front in (first, second):
                front.ask({**POST, "CONTENT_TYPE": "a"}, keep=True)
            third.send(request(keep=True))
            answer = third.answer()
            assert (answer.status, answer.protocol_status) == (503, ProtocolStatus.OVERLOADED)
            assert third.is_closed()
        wait_until(lambda: ask_status(path) == 0)


def ask_status(path: str) -> int | None:
    """How a request on a connection of its own ends."""
    with Front(path) as front:
        front.send(request({**POST, "CONTENT_TYPE": "a"}))
        return front.answer().protocol_status


def test_who_stalls_is_disconnected() -> None:
    """In the middle of the parameters and of the content, also of a second request; but not between two."""
    with serving(TestHandler, timeout=1.5) as path, Front(path) as kept, Front(path) as front, Front(path) as third:
        kept.ask({**POST, "CONTENT_TYPE": "a"}, keep=True)
        front.send(begin() + params_records(GET)[:-1])
        third.send(begin() + params_records({**GET, "HTTP_CONTENT_TYPE": "a"}))
        assert front.is_closed() and third.answer().protocol_status is None
        assert kept.ask({**POST, "CONTENT_TYPE": "a"}, keep=True).protocol_status == 0
        kept.send(begin(keep=True))
        assert kept.is_closed()


def test_unread_content() -> None:
    """An answer isn't lost because its request's content was not read, kept connection or not."""

    class Deaf(Handler):
        def handle(self) -> None:
            self.send("Status: 413\r\n\r\n")

    content = bytes(1_000_000)
    with serving(Deaf) as path:
        for _ in range(20):
            # More than is read with the parameters, and less than a socket takes: not reset when it is closed.
            assert ask(path, GET, content[:150_000]).status == 413
        for keep in (False, True):
            with Front(path) as front:
                front.send(begin(keep=keep) + params_records(GET))
                assert front.answer().status == 413
                with contextlib.suppress(BrokenPipeError):
                    # It may have given up by now.
                    front.send(content_records(content))
                if keep:
                    assert front.ask(keep=keep).status == 413
                else:
                    assert front.is_closed()


def test_tcp() -> None:
    """The same on a port, with a socket of the caller's."""
    with socket.create_server(("127.0.0.1", 0)) as listener, fastcgi.Server(listener, TestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        answer = ask(server.server_address, {**POST, "CONTENT_TYPE": "application/json"}, b"test")
        server.shutdown()
        thread.join(20)
        assert answer.body == ANSWER
    with fastcgi.Server(("127.0.0.1", 0), TestHandler) as server:
        assert server.server_address[1] > 0


def test_unix_socket(tmp_path: Path) -> None:
    """Permissions; one that was left over is replaced, one in use is not, nor a file; and it is removed at the end."""
    path = tmp_path / "socket"
    with fastcgi.Server(path, TestHandler, mode=0o640):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        with pytest.raises(OSError, match="in use"):
            fastcgi.Server(path, TestHandler)
        assert path.exists()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    with fastcgi.Server(path, TestHandler):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    with pytest.raises(OSError, match="in use"):
        fastcgi.Server(path, TestHandler)
    assert path.read_text() == "somebody else's"


def test_servers_that_begin_at_once(tmp_path: Path) -> None:
    """One replaces the socket that was left over, and is reached there; the others are told that it is in use."""
    path = str(tmp_path / "socket")
    barrier = threading.Barrier(4)
    made: list[fastcgi.Server] = []

    def make() -> None:
        barrier.wait(20)
        with contextlib.suppress(OSError):
            made.append(fastcgi.Server(path, TestHandler))

    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(path)
        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(made) == 1
        with Front(path), made.pop() as server:
            server.socket.accept()[0].close()


def test_descriptors_and_max_connections(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There are no more connections than descriptors; who has asked for more is told so."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1064, before[1]))
    try:
        for asked, due in ((None, 250), (100, 100), (250, 250)):
            with fastcgi.Server(tmp_path / "s", TestHandler, max_connections=asked) as server:
                assert server.max_connections == due
        assert not caplog.records
        with fastcgi.Server(tmp_path / "s", TestHandler, max_connections=251) as server:
            assert server.max_connections == 250
        assert "max_connections is 250 instead of 251: RLIMIT_NOFILE is 1064" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_arguments(tmp_path: Path) -> None:
    """What makes no sense is refused before anything is bound."""
    path = tmp_path / "socket"
    for options in ({"threads": 0}, {"processes": 0}, {"timeout": 0}, {"max_params": 0}, {"graceful_timeout": -1}):
        with pytest.raises(ValueError, match="must be"):
            fastcgi.Server(path, TestHandler, **options)
    with pytest.raises(TypeError):
        fastcgi.Server(path, "application")  # type: ignore[arg-type]
    assert not path.exists()


def test_graceful_stop(tmp_path: Path) -> None:
    """What is under way is answered; kept connections are closed; threads and descriptors are gone."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Handler):
        def handle(self) -> None:
            if self.params["PATH_INFO"] == "/slow":
                begun.set()
                assert go_on.wait(20)
            self.send("\r\nhello")

    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    library = library_threads()
    path = str(tmp_path / "s")
    with fastcgi.Server(path, Slow) as server, Front(path) as idle, Front(path) as slow:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        idle.ask(keep=True)
        slow.send(request({**GET, "PATH_INFO": "/slow"}, keep=True))
        assert begun.wait(20)
        server.shutdown()
        assert idle.is_closed()
        assert thread.is_alive()
        go_on.set()
        assert slow.answer().body == b"hello"
        assert slow.is_closed()
        thread.join(20)
        assert not thread.is_alive()
    wait_until(lambda: threading.active_count() <= threads)
    wait_until(lambda: library_threads() <= library)
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_stop_while_a_thread_keeps_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request on it, which has come meanwhile, is answered once."""
    kept, stopped = threading.Event(), threading.Event()
    free = Connection.next

    def slowly(connection: Connection) -> None:
        free(connection)
        if not kept.is_set():
            kept.set()
            assert stopped.wait(20)

    monkeypatch.setattr(Connection, "next", slowly)
    asked = []

    class Reader(Handler):
        def handle(self) -> None:
            asked.append(self.request_id)
            self.send(f"\r\n{self.stdin}")

    with fastcgi.Server(tmp_path / "s", Reader) as server, Front(str(tmp_path / "s")) as front:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        front.ask(keep=True)
        assert kept.wait(20)
        front.send(begin(2, keep=True) + params_records(GET, 2))
        server.shutdown()
        # So that it would be seen if the server didn't wait for the thread.
        time.sleep(0.1)
        stopped.set()
        wait_until(lambda: asked == [1, 2])
        front.send(content_records(b"hello", 2))
        assert front.answer(2).body == b"hello"
        assert front.is_closed()
        thread.join(20)
    assert asked == [1, 2]


def test_stop_that_is_not_waited_for(tmp_path: Path) -> None:
    """After graceful_timeout a connection is over, but its descriptor is the thread's that still answers."""
    calls, errors = [], []
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Handler):
        def handle(self) -> None:
            calls.append(self.request)
            begun.set()
            assert go_on.wait(20)
            try:
                self["stdin"].read()
            except OSError as error:
                errors.append(error)
                raise

    path = str(tmp_path / "s")
    with fastcgi.Server(path, Slow, threads=1, graceful_timeout=0) as server, Front(path) as front, Front(path) as late:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        front.send(begin() + params_records(GET))
        assert begun.wait(20)
        late.send_and_wait(request())
        server.shutdown()
        assert front.is_closed() and late.is_closed()
        thread.join(20)
        assert calls[0].fileno() >= 0
        go_on.set()
        wait_until(lambda: not any(thread.name.startswith("sendgate.fastcgi") for thread in threading.enumerate()))
        assert calls[0].fileno() == -1
    assert [type(error) for error in errors] == [sendgate.PeerClosedError]
    # What nobody waits for any more isn't asked for.
    assert len(calls) == 1
