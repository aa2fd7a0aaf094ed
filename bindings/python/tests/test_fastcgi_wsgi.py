"""``sendgate.fastcgi`` in front of WSGI applications, asked by a front server of the tests' own."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable

import flask
import pytest

import sendgate.flask
import sendgate.wsgi
from fastcgi_client import GET, Front, ask, begin, params_records, request, serving
from sendgate import fastcgi
from sendgate._fastcgi_environ import make_environ, scheme
from sendgate.fastcgi import RecordType
from support import wait_until

Start = Callable[..., Callable[[bytes], object]]
BIG = random.Random(2).randbytes(3_000_000)
TEXT = [("Content-Type", "text/plain")]


# ---- The environment ----

#: What a front server sends, and what of it an application sees.
ENVIRONS = [
    # nginx with Debian's fastcgi_params
    ({"SCRIPT_NAME": "/a b", "DOCUMENT_URI": "/a b"}, {"SCRIPT_NAME": "", "PATH_INFO": "/a b"}),
    # nginx with fastcgi_split_path_info; Apache with proxy-fcgi-pathinfo
    ({"SCRIPT_NAME": "/app", "PATH_INFO": "/x"}, {"SCRIPT_NAME": "/app", "PATH_INFO": "/x"}),
    ({"SCRIPT_NAME": "/app", "PATH_INFO": ""}, {"SCRIPT_NAME": "/app", "PATH_INFO": ""}),
    # Apache
    ({"SCRIPT_NAME": "/x"}, {"SCRIPT_NAME": "", "PATH_INFO": "/x"}),
    # lighttpd without fix-root-scriptname
    ({"SCRIPT_NAME": "/", "PATH_INFO": "/x"}, {"SCRIPT_NAME": "", "PATH_INFO": "/x"}),
    ({"CONTENT_LENGTH": "", "CONTENT_TYPE": ""}, {"CONTENT_LENGTH": None, "CONTENT_TYPE": None}),
    ({"CONTENT_LENGTH": "0", "CONTENT_TYPE": "a/b"}, {"CONTENT_LENGTH": "0", "CONTENT_TYPE": "a/b"}),
    ({"HTTPS": "on"}, {"wsgi.url_scheme": "https"}),
    ({"HTTPS": "off", "REQUEST_SCHEME": "https"}, {"wsgi.url_scheme": "http"}),
    ({"HTTPS": "", "REQUEST_SCHEME": "http"}, {"wsgi.url_scheme": "http"}),
    ({"REQUEST_SCHEME": "https"}, {"wsgi.url_scheme": "https"}),
    ({"HTTP_X": "\xc3\xbc\xff"}, {"HTTP_X": "\xc3\xbc\xff", "wsgi.url_scheme": "http"}),
    ({}, {"REQUEST_METHOD": "GET", "QUERY_STRING": "", "SERVER_NAME": "localhost", "SERVER_PORT": "80"}),
]


@pytest.mark.parametrize(("params", "due"), ENVIRONS)
def test_environ(params: dict[str, str], due: dict[str, Any]) -> None:
    """The parameters, made good where front servers differ."""
    pairs = tuple((name.encode(), value.encode("latin-1")) for name, value in params.items())
    environ = make_environ(pairs)
    environ["wsgi.url_scheme"] = scheme(environ)
    assert {name: environ.get(name) for name in due} == due


def test_lines_of_a_field() -> None:
    """nginx sends a parameter for each: they are joined."""
    pairs = ((b"HTTP_X", b"1"), (b"HTTP_COOKIE", b"a=1"), (b"HTTP_X", b"2"), (b"HTTP_COOKIE", b"b=2"), (b"A", b"1"))
    environ = make_environ((*pairs, (b"A", b"2")))
    assert (environ["HTTP_X"], environ["HTTP_COOKIE"], environ["A"]) == ("1, 2", "a=1; b=2", "2")


def test_wsgi_variables() -> None:
    """Those of PEP 3333, of which the server knows whether they are so."""
    seen: list[dict[str, Any]] = []

    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        seen.append(dict(environ))
        environ["wsgi.errors"].writelines(["a message\n", "another\n"])
        start_response("200 OK", TEXT)
        return [environ["wsgi.input"].read(), environ["wsgi.input"].read(1)]

    for threads in (1, 2):
        with serving(application, threads=threads) as path:
            answer = ask(path, {**GET, "REQUEST_METHOD": "POST"}, b"content")
            assert (answer.body, answer.stderr) == (b"content", b"a message\nanother\n")
            assert answer.fields == {"status": "200 OK", "content-type": "text/plain", "content-length": "7"}
    assert [environ["wsgi.multithread"] for environ in seen] == [False, True]
    assert seen[0]["wsgi.multiprocess"] is False and seen[0]["wsgi.run_once"] is False
    assert seen[0]["wsgi.version"] == (1, 0)


# ---- Iterables ----


class Pieces:
    """An iterable that counts how often it was closed, and does what is due before each piece."""

    def __init__(self, pieces: Iterable[bytes], before: Callable[[int], object] = lambda number: None) -> None:
        self.closed = 0
        self.produced = 0
        self._pieces = iter(pieces)
        self._before = before

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._before(self.produced)
        piece = next(self._pieces)
        self.produced += 1
        return piece

    def close(self) -> None:
        """PEP 3333."""
        self.closed += 1


def returning(pieces: Any, *headers: tuple[str, str], status: str = "200 OK") -> Any:
    """An application."""

    def application(environ: dict[str, Any], start_response: Start) -> Any:
        start_response(status, [*TEXT, *headers])
        return pieces

    return application


def test_pieces_leave_as_they_are_made() -> None:
    """A piece has arrived before the next one is made; the first takes the head with it."""
    arrived = [threading.Event() for _ in range(4)]
    arrived[0].set()
    pieces = Pieces([b"one", b"", b"two", b"three"], lambda number: arrived[min(number, 1)].wait(20))
    waits = [0, 1, 1, 2]

    def before(number: int) -> None:
        assert arrived[([*waits, 3])[number]].wait(20)

    pieces._before = before
    with serving(returning(pieces)) as path, Front(path) as front:
        front.send(request())
        for number, due in enumerate((b"one", b"two", b"three")):
            record = front.record()
            assert record is not None and record.content.endswith(due)
            arrived[number + 1].set()
        assert front.answer().protocol_status == 0
    assert (pieces.closed, pieces.produced) == (1, 4)


@pytest.mark.parametrize("pieces", [[b"ab", b"cd"], (b"abcd",), iter([b"ab", b"", b"cd"])])
def test_content_length(pieces: Any) -> None:
    """Where all of it is known, it is announced; what is announced is what is sent."""
    with serving(returning(pieces)) as path:
        answer = ask(path)
    assert answer.body == b"abcd"
    assert answer.fields.get("content-length") == ("4" if isinstance(pieces, (list, tuple)) else None)


@pytest.mark.parametrize("kind", [list, Pieces])
def test_too_much_content(kind: Callable[[list[bytes]], Any]) -> None:
    """What is more than Content-Length says is cut off, and reported."""
    with serving(returning(kind([b"abc", b"def", b"ghi"]), ("Content-Length", "4"))) as path:
        answer = ask(path)
    assert answer.body == b"abcd"
    assert b"more content than Content-Length says" in answer.stderr


@pytest.mark.parametrize("kind", [list, Pieces])
def test_too_little_content(kind: Callable[[list[bytes]], Any], caplog: pytest.LogCaptureFixture) -> None:
    """The front server notices that something is missing: lighttpd by the missing end, nginx by the end."""
    for software, ended in (("lighttpd/1", None), ("nginx/1", 0)):
        with serving(returning(kind([b"abc"]), ("Content-Length", "4"))) as path, Front(path) as front:
            front.send(request({**GET, "SERVER_SOFTWARE": software}))
            answer = front.answer()
            assert front.is_closed()
        assert (answer.body, answer.protocol_status) == (b"abc", ended)
        assert b": 1 bytes less of content than Content-Length says" in answer.stderr
    assert "TruncatedError" in caplog.text


@pytest.mark.parametrize("kind", [list, Pieces])
def test_head(kind: Callable[[list[bytes]], Any]) -> None:
    """An answer to HEAD has no content, whatever the application produces; nor have 204 and 304."""
    with serving(returning(kind([b"abc"]), ("Content-Length", "3"))) as path:
        answer = ask(path, {**GET, "REQUEST_METHOD": "HEAD"})
        assert (answer.body, answer.fields["content-length"]) == (b"", "3")
    for status in ("204 No Content", "304 Not Modified"):
        with serving(returning(kind([]), status=status)) as path:
            answer = ask(path)
        assert (answer.stdout.count(b"\r\n\r\n"), answer.body, answer.fields["status"]) == (1, b"", status)


def test_fields_of_the_front_server() -> None:
    """Those between two servers are left out; so is a second Status."""
    given = [("Connection", "close"), ("Keep-Alive", "x"), ("Transfer-Encoding", "chunked"), ("Status", "404")]
    with serving(returning([b"x"], *given, ("Set-Cookie", "a"))) as path:
        answer = ask(path)
    assert list(answer.fields) == ["status", "content-type", "set-cookie", "content-length"]


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (("200 OK\r\nX: y", TEXT), "FieldError"),
        (("2000 OK", TEXT), "FieldError"),
        (("OK", TEXT), "ValueError"),
        (("200 OK", [("X", "y\r\nZ: z")]), "FieldError"),
        (("200 OK", [("X: y", "")]), "FieldError"),
    ],
)
def test_heads_that_are_refused(head: Any, error: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of an application's gets out of its field: 500, and the log says why."""

    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response(*head)
        return [b"x"]

    with serving(application) as path:
        assert ask(path).status == 500
    assert f"{error}: " in caplog.text


def test_start_response() -> None:
    """Late, in a generator; again, with exc_info; and with write(), of long ago."""

    def late(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("201 Created", TEXT)
        yield b"late"

    def again(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response("200 OK", TEXT)
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as error:
            start_response("503 Unavailable", TEXT, (type(error), error, error.__traceback__))
        return [b"again"]

    def write(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        out = start_response("200 OK", TEXT)
        out(b"wri")
        out(b"tt")
        return [b"en"]

    for application, status, body in ((late, 201, b"late"), (again, 503, b"again"), (write, 200, b"written")):
        with serving(application) as path:
            answer = ask(path)
        assert (answer.status, answer.body) == (status, body)


def test_applications_that_are_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """500 where nothing has left yet."""

    def raises(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response("200 OK", TEXT)
        raise ZeroDivisionError

    def silent(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        return [b"x"]

    def twice(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response("200 OK", TEXT)
        start_response("200 OK", TEXT)
        return []

    def text(environ: dict[str, Any], start_response: Start) -> list[str]:
        start_response("200 OK", TEXT)
        return ["text"]

    for application in (raises, silent, twice, text):
        with serving(application) as path:
            answer = ask(path)
        assert answer.status == 500, application
        assert b"Traceback" in answer.stderr


def test_exception_in_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    """The connection ends without the end of the request, and close() is called."""

    def failing(number: int) -> None:
        if number == 1:
            raise ZeroDivisionError

    pieces = Pieces([b"one", b"two"], failing)
    with serving(returning(pieces)) as path, Front(path) as front:
        front.send(request())
        answer = front.answer()
        assert front.is_closed()
    assert (answer.body, answer.protocol_status, pieces.closed) == (b"one", None, 1)


@pytest.mark.parametrize("abort", [False, True])
def test_front_server_leaves(abort: bool) -> None:
    """close() is called at the next piece, also of an endless answer; an aborted request is ended."""
    asked, left = threading.Event(), threading.Event()

    def before(number: int) -> None:
        if number == 1:
            asked.set()
            assert left.wait(20)

    pieces = Pieces(iter(lambda: b"piece", None), before)
    with serving(returning(pieces)) as path:
        with Front(path) as front:
            front.send(request(keep=True))
            record = front.record()
            assert record is not None and record.content.endswith(b"piece")
            assert asked.wait(20)
            if abort:
                front.send(fastcgi.pack_record(RecordType.ABORT_REQUEST, 1))
                left.set()
                assert front.answer().protocol_status == 0
        left.set()
        wait_until(lambda: pieces.closed)
    assert (pieces.closed, pieces.produced) == (1, 2)


# ---- What the library sends ----


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file that no socket takes at once."""
    path = tmp_path / "big.bin"
    path.write_bytes(BIG)
    return path


RANGE = {**GET, "HTTP_RANGE": "bytes=-10"}


def test_file_wrapper(big: Path) -> None:
    """A file leaves in the background, and ranges of it by Conditional."""

    def application(environ: dict[str, Any], start_response: Start) -> Any:
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](big.open("rb"))

    for served, status in ((application, 200), (sendgate.wsgi.Conditional(application), 206)):
        with serving(served, threads=1) as path, Front(path) as slow:
            slow.send(request())
            part = ask(path, RANGE)
            assert (part.status, part.body) == (status, BIG[-10:] if status == 206 else BIG)
            assert slow.answer().body == BIG


def test_memory_is_closed_when_it_has_left(big: Path) -> None:
    """close() of what is in memory is called after the last byte of it, in a thread of the pool."""
    closed = threading.Event()

    class File:
        def getbuffer(self) -> memoryview:
            return memoryview(BIG)

        def read(self, size: int) -> bytes:
            raise AssertionError("it is sent without a copy")

        def close(self) -> None:
            assert threading.current_thread().name.startswith("sendgate.fastcgi")
            closed.set()

    def application(environ: dict[str, Any], start_response: Start) -> Any:
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](File())

    with serving(application) as path, Front(path) as front:
        front.send(request(keep=True))
        record = front.record()
        assert record is not None
        assert not closed.is_set()
        answer = front.answer()
        assert record.content.partition(b"\r\n\r\n")[2] + answer.stdout == BIG
        assert closed.wait(20)


def test_files(big: Path) -> None:
    """A folder: whole, part, not there; and by Flask."""
    application = flask.Flask(__name__)

    @application.route("/<name>")
    def send(name: str) -> Any:
        return flask.send_file(big.parent / name, conditional=False)

    application.wsgi_app = sendgate.wsgi.Conditional(application.wsgi_app)  # type: ignore[method-assign]
    for served in (sendgate.wsgi.Files(big.parent), application):
        with serving(served) as path:
            target = {"PATH_INFO": "/big.bin"}
            whole, part = ask(path, {**GET, **target}), ask(path, {**RANGE, **target})
            assert (whole.status, whole.body) == (200, BIG)
            assert (part.status, part.body) == (206, BIG[-10:])
            unchanged = ask(path, {**GET, **target, "HTTP_IF_NONE_MATCH": whole.fields["etag"]})
            assert unchanged.status == 304


def test_upload_of_unknown_length() -> None:
    """Without CONTENT_LENGTH, content ends where it ends: for Flask too."""
    application = flask.Flask(__name__)

    @application.route("/", methods=["POST"])
    def receive() -> bytes:
        return b"%d" % len(flask.request.get_data())

    params = {**GET, "REQUEST_METHOD": "POST", "HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    with serving(application) as path:
        assert ask(path, params, bytes(200_000)).body == b"200000"


def test_content_that_ends_too_early(caplog: pytest.LogCaptureFixture) -> None:
    """The front server has left: an OSError for the application, as of any connection, and no line in the log."""
    seen: list[type] = []

    def application(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        try:
            return [environ["wsgi.input"].read()]
        except OSError as error:
            seen.append(type(error))
            raise

    with serving(application) as path:
        with Front(path) as front:
            front.send(begin() + params_records(GET) + fastcgi.pack_record(RecordType.STDIN, 1, b"abc"))
        wait_until(lambda: seen)
    assert seen == [sendgate.PeerClosedError]
    assert not caplog.records
