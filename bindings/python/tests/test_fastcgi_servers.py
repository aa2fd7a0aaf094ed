"""``sendgate.fastcgi`` behind nginx, lighttpd and Apache, by the configurations in examples/front-servers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import http.client
import os
import random
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import django_project
import rows
from fastcgi_fronts import HERE, KINDS, Fronted, Kind, different, fronted
from served_rows import SOCKET_ROWS, answers, as_served, complaints
from serving import descriptors
from support import wait_until

MIB = bytes(range(256)) * 4096


@pytest.fixture(scope="module", params=KINDS, ids=str)
def front(request: pytest.FixtureRequest) -> Iterator[Fronted]:
    """Each is started once."""
    kind: Kind = request.param
    with fronted(kind) as running:
        yield running


@contextlib.contextmanager
def connected(front: Fronted) -> Iterator[http.client.HTTPConnection]:
    """A client of the front server."""
    connection = http.client.HTTPConnection(*front.address, timeout=60)
    with contextlib.closing(connection):
        yield connection


def get(
    front: Fronted, target: str, method: str = "GET", body: Any = None, headers: Any = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own."""
    with connected(front) as connection:
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return response, response.read()


# ---- The document ----


def test_document(front: Fronted) -> None:
    """Its example: POST of JSON with a query; the handler is told what its own proxy would have told it."""
    body = b'{"a": "\xc3\xbc"}'
    response, answer = get(front, "/setup.py?a=1", "POST", body, {"Content-Type": "application/json"})
    assert (response.status, response.headers["Content-Type"], answer) == (200, "text/html", b"<html>foobar</html>\n")
    assert front.process.stdout is not None
    printed = [front.process.stdout.readline() for _ in range(3)]
    assert printed == [b"query: a=1\n", b"content type: application/json\n", b"stdin: " + body + b"\n"]


# ---- The rows ----


@pytest.mark.parametrize("row", SOCKET_ROWS, ids=str)
def test_row(row: rows.Row, front: Fronted) -> None:
    """What Files answers through a front server is what the row expects, and leaves the client's connection in step."""
    tag, (response,) = answers(row, front.address, front.folder / "files")
    # Without the date that is beside it.
    said = [complaint.partition(" (Date: ")[0] for complaint in complaints(as_served(row), response, tag)]
    assert said == different(row, front.kind)


# ---- Requests ----


def test_paths(front: Fronted) -> None:
    """An application at / has all of the path in PATH_INFO, decoded, with bytes that are no UTF-8."""
    response, body = get(front, "/a%20b/%C3%BC%2Fd/c?x=%20&y", headers={"X-Bytes": b"\xff\xfe"})
    assert body == b"\n/a b/\xc3\xbc/d/c\nx=%20&y\n\xff\xfe"
    assert response.headers["X-Uri"] == "/a%20b/%C3%BC%2Fd/c?x=%20&y"
    strange, body = get(front, "/%FF?%FE")
    if front.kind.name == "lighttpd":
        # It refuses paths that are no UTF-8.
        assert strange.status == 400
    else:
        assert body == b"\n/\xff\n%FE\n"
    assert response.headers["X-Keep"] == str(front.kind.keeps)


def test_messages(front: Fronted) -> None:
    """wsgi.errors is the front server's log."""
    get(front, "/")
    wait_until(lambda: "sendgate-test: a message" in front.error_log)


def test_fields_of_the_front_server(front: Fronted) -> None:
    """Date and Server are its own, once each."""
    response, _ = get(front, "/")
    for name in ("Date", "Server"):
        assert len(response.headers.get_all(name)) == 1


def test_a_long_head(front: Fronted) -> None:
    """One of 20000 bytes arrives."""
    response, body = get(front, "/?head=20")
    assert response.status == 200
    assert sum(len(value) for name, value in response.headers.items() if name.startswith("X-Long-")) == 20000
    assert body.startswith(b"\n/\n")


SIZES = (0, 1, 65535, 65536)


def test_a_thousand_requests(front: Fronted) -> None:
    """On connections that the clients keep, with bodies around the size of a record; nothing is left open."""
    contents = [random.Random(size).randbytes(size) for size in SIZES]

    def ask(seed: int) -> None:
        numbers = random.Random(seed)
        with connected(front) as connection:
            for _ in range(250):
                content = numbers.choice(contents)
                connection.request("POST", "/echo", content)
                assert connection.getresponse().read() == content

    ask(0)
    descriptors, threads = front.descriptors(), front.threads()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(ask, seed) for seed in range(1, 4)]:
            done.result()
    # A front server that keeps connections has one for each client.
    allowed = 4 if front.kind.keeps else 0
    wait_until(lambda: front.descriptors() <= descriptors + allowed)
    assert front.threads() == threads


def blocks(count: int) -> Iterator[bytes]:
    """A block of a mebibyte for each, none like another."""
    for number in range(count):
        yield number.to_bytes(4, "big") + MIB[4:]


def digest(pieces: Iterator[bytes]) -> str:
    """Of all of them."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def test_large_uploads(front: Fronted) -> None:
    """100 MiB of known and of unknown length arrive whole, and need no memory."""
    due = digest(blocks(100))
    with connected(front) as connection:
        connection.request("POST", "/digest", blocks(100), {"Content-Length": str(100 << 20)})
        assert connection.getresponse().read().decode() == f"{100 << 20} {due} {100 << 20}"
        connection.request(
            "POST", "/digest", blocks(100), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
        )
        # nginx and lighttpd have all of it before they ask, and know its length then.
        known = None if front.kind.name == "apache" else 100 << 20
        assert connection.getresponse().read().decode() == f"{100 << 20} {due} {known}"
    assert front.peak_mib() < 150


def received(front: Fronted, target: str) -> tuple[int, str]:
    """Length and digest of an answer."""
    with connected(front) as connection:
        connection.request("GET", target)
        response = connection.getresponse()
        total, count = hashlib.sha256(), 0
        while piece := response.read(1 << 20):
            total.update(piece)
            count += len(piece)
        return count, total.hexdigest()


def test_large_answers(front: Fronted) -> None:
    """100 MiB of a file, and of what is produced with and without its length, need no memory either."""
    path = front.folder / "files" / "large"
    with path.open("wb") as file:
        file.writelines(blocks(100))
    assert received(front, "/files/large") == (100 << 20, digest(blocks(100)))
    due = 100 << 20, digest(MIB for _ in range(100))
    assert received(front, "/large?mib=100&length") == received(front, "/large?mib=100") == due
    assert front.peak_mib() < 150
    path.unlink()


def closes(front: Fronted, name: str) -> str:
    """A letter for each time that close() was called, as soon as there is one."""
    path = front.folder / f"{name}-closed"
    wait_until(lambda: path.exists() and path.read_text())
    return path.read_text()


def test_pieces_arrive_as_they_are_made(front: Fronted) -> None:
    """A piece is at the client before the next one is made."""
    with connected(front) as connection:
        (front.folder / "steps-0").touch()
        connection.request("GET", "/steps?name=steps&count=4")
        response = connection.getresponse()
        for number in range(1, 5):
            assert response.readline() == b"piece %d\n" % number
            (front.folder / f"steps-{number}").touch()
        assert response.read() == b""
    assert closes(front, "steps") == "x"


# ---- Clients that leave, and answers that fail ----


def leave(front: Fronted, target: str, count: int) -> None:
    """Ask, take so much of the answer, and go."""
    with socket.create_connection(front.address, timeout=60) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        while count > 0:
            count -= len(client.recv(65536))


def test_client_leaves(front: Fronted) -> None:
    """In the middle of an endless answer: close() is called, once."""
    leave(front, "/endless?name=endless", 1_000_000)
    assert closes(front, "endless") == "x"


def test_client_leaves_a_file(front: Fronted) -> None:
    """In the middle of a file: its descriptor is closed, and others are served."""
    path = front.folder / "files" / "left"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    get(front, "/")
    for _ in range(5):
        leave(front, "/files/left", 1_000_000)
    wait_until(lambda: str(path) not in descriptors(front.process.pid))
    path.unlink()
    assert get(front, "/")[0].status == 200


def outcome(front: Fronted, target: str, between: Any = None) -> str:
    """Whether a client notices that an answer is cut short: "noticed", "hangs", or "complete"."""
    with connected(front) as connection:
        connection.timeout = 20
        connection.request("GET", target)
        try:
            response = connection.getresponse()
            response.read(1000)
            if between is not None:
                between()
            while response.read(1 << 20):
                pass
        except (http.client.IncompleteRead, ConnectionResetError):
            return "noticed"
        except TimeoutError:
            return "hangs"
        left = response.length
        return "noticed" if left else "complete"


def test_truncated_file(front: Fronted) -> None:
    """A file that becomes shorter while it is sent."""
    path = front.folder / "files" / "shorter"
    with path.open("wb") as file:
        file.truncate(400 << 20)
    assert outcome(front, "/files/shorter", lambda: os.truncate(path, 200 << 20)) == "noticed"
    path.unlink()


def test_application_that_fails_in_the_middle(front: Fronted) -> None:
    """With a length that was announced, and without one."""
    assert outcome(front, "/fails?length") == "noticed"
    if front.kind.name == "lighttpd":
        # Of an answer that it hasn't begun to send it makes a complete one.
        assert outcome(front, "/fails?wait", (front.folder / "arrived").touch) == "noticed"
    else:
        assert outcome(front, "/fails") == "noticed"
    wait_until(lambda: "sendgate-test: it fails" in front.error_log)


# ---- After all that ----


def test_nothing_was_wrong_on_the_inside(front: Fronted) -> None:
    """Nothing but what the tests have provoked was logged."""
    provoked = ("ERROR:Error answering GET /fails", "ERROR:Error sending the answer to GET /files/shorter")
    logged = re.findall(r"^(?:ERROR:|CRITICAL:|Exception ).*", front.log, re.M)
    assert [line for line in logged if not line.startswith(provoked)] == []
    # The log has what is looked for.
    assert {line.partition("?")[0] for line in logged} == set(provoked)
    # nginx complains of its own children, and of what takes long.
    assert "[alert]" not in front.error_log and "[crit]" not in front.error_log


# ---- Servers of their own ----


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_stop(kind: Kind) -> None:
    """SIGTERM: the answer under way is completed, and the exit code is 0."""
    with fronted(kind) as front:
        with connected(front) as connection:
            (front.folder / "steps-0").touch()
            connection.request("GET", "/steps?name=steps&count=2")
            response = connection.getresponse()
            assert response.readline() == b"piece 1\n"
            front.process.terminate()
            (front.folder / "steps-1").touch()
            assert response.read() == b"piece 2\n"
        assert front.process.wait(30) == 0
        assert not (front.folder / "app.sock").exists()
        assert get(front, "/")[0].status in (502, 503)
        assert "Traceback" not in front.log


def test_a_long_head_by_default() -> None:
    """nginx takes one of 4 KiB; the example's fastcgi_buffer_size is for longer ones."""
    with fronted(Kind("nginx", without="fastcgi_b")) as front:
        assert get(front, "/?head=3")[0].status == 200
        assert get(front, "/?head=5")[0].status == 502


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_overloaded(kind: Kind) -> None:
    """What a client is told of one connection too many."""
    command = [sys.executable, "-u", HERE / "fastcgi_application.py", "{folder}", "1"]
    with fronted(kind, command) as front, contextlib.ExitStack() as stack:
        (front.folder / "steps-0").touch()

        def is_begun() -> bool:
            connection = stack.enter_context(connected(front))
            connection.request("GET", "/steps?name=steps&count=2")
            return connection.getresponse().status == 200

        # The front server may still have a connection for what was asked before.
        wait_until(is_begun)
        assert get(front, "/")[0].status == 503
        (front.folder / "steps-1").touch()


FLASK = """
import flask
import sendgate.flask, sendgate.wsgi

application = flask.Flask(__name__)
application.wsgi_app = sendgate.wsgi.Conditional(application.wsgi_app)

@application.route("/file")
def file():
    return flask.send_file({path!r}, conditional=False)

@application.route("/upload", methods=["POST"])
def upload():
    return f"{{flask.request.script_root}} {{len(flask.request.get_data())}} {{flask.request.args['x']}}"
"""


def test_flask(tmp_path: Path) -> None:
    """A Flask application by the command: files by ranges and conditions, uploads, queries."""
    path = tmp_path / "file.bin"
    path.write_bytes(MIB)
    (tmp_path / "served.py").write_text(FLASK.format(path=str(path)))
    command = [sys.executable, "-u", "-m", "sendgate", "fastcgi", "--socket", "{folder}/app.sock", "--mode", "666"]
    command.append("served:application")
    with fronted(Kind("nginx", keeps=True), command, cwd=tmp_path) as front:
        response, body = get(front, "/file")
        assert (response.status, body) == (200, MIB)
        tag = {"If-None-Match": response.headers["ETag"]}
        assert get(front, "/file", headers=tag)[0].status == 304
        response, body = get(front, "/file", headers={"Range": "bytes=1000-1999,-5"})
        assert response.status == 206 and MIB[1000:2000] in body
        assert get(front, "/upload?x=%C3%BC", "POST", bytes(200_000))[1].decode() == " 200000 ü"
        assert get(front, "/nothing")[0].status == 404
        assert "Traceback" not in front.log


def test_django(tmp_path: Path) -> None:
    """The project of examples/django by the command: its files, its streams, and its uploads."""
    path = tmp_path / "file.bin"
    path.write_bytes(MIB)
    os.utime(path, (784111777, 784111777))
    pieces = [b"a line\n" * 1000] * 10
    command = [sys.executable, "-u", "-m", "sendgate", "fastcgi", "--socket", "{folder}/app.sock", "--mode", "666"]
    command.append("mysite.wsgi:application")
    with django_project.Store(pieces) as store:
        environment = {**os.environ, "STORE": store.url, "FILE": str(path), "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        kind = Kind("nginx", keeps=True)
        with fronted(kind, command, cwd=django_project.EXAMPLE, env=environment) as front:
            response, body = get(front, "/file/")
            assert (response.status, body) == (200, MIB)
            tag = {"If-None-Match": response.headers["ETag"]}
            assert get(front, "/file/", headers=tag)[0].status == 304
            response, body = get(front, "/file/", headers={"Range": "bytes=-5"})
            assert (response.status, body) == (206, MIB[-5:])
            for target in ("/streamed/", "/streamed-async/", "/text/"):
                response, body = get(front, target)
                assert (response.status, body) == (200, b"".join(pieces)), target
            response, body = get(front, "/large/")
            assert response.headers["ETag"] == django_project.ETAG
            assert (response.status, body) == (200, b"".join(pieces))
            assert "Traceback" not in front.log
