"""The use cases of examples/django on real servers, with each middleware, as a client sees them on its socket.

The store sends the next piece when the client has the last one, so nobody waits for a time to pass.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("django", reason="django is not installed: bindings/python/requirements-dev.txt")

import django

import django_table
import rows
from asked import check_all
from django_project import ETAG, EXAMPLE, LAST_MODIFIED, SERVERS, Feed, Reply, Running, running
from django_table import CONTENT, FILE, OURS, PIECES, TAG, VIEWS, judge
from launching import serving
from support import READS, moved, request, traced, wait_until

MIB = 1 << 20
GIB = 1 << 30
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "django.md"

STREAMING = ("gunicorn", "sendgate.gunicorn", "uvicorn", "sendgate.uvicorn")
ASGI = ("uvicorn", "sendgate.uvicorn")


@pytest.fixture(scope="module")
def feed() -> Iterator[Feed]:
    """What the views ask for content."""
    with Feed() as feed:
        yield feed


@dataclass
class Server(Running):
    """What ``asked`` asks."""

    def get(self, target: str, method: str = "GET", version: str = "1.1", **fields: str) -> rows.Response:
        """One request, one well-formed answer, on a connection of its own that is used once more if it may be."""
        lines = [f"{method} {target} HTTP/{version}", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        probe = b"HEAD /file/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        # wsgiref closes each connection, and doesn't say so.
        return rows.fetch(self.address, head, timeout=60, probe=None if self.name == "wsgiref" else probe)

    def closed(self, name: str) -> int:
        """How often what has this name was closed."""
        body = self.get("/counts/").body
        assert body is not None
        found: int = json.loads(body).get(name, 0)
        return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a file in it, and then the servers' logs."""
    files = tmp_path_factory.mktemp("django") / "files"
    files.mkdir()
    return files


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, directory: Path, feed: Feed) -> Iterator[Server]:
    """Each is started once."""
    with running(request.param, directory, feed.url, django_table.write_file(directory)) as started:
        yield Server(**vars(started))


def on(*names: str) -> pytest.MarkDecorator:
    """A test runs on these."""
    return pytest.mark.parametrize("server", names, indirect=True, scope="module")


@on(*STREAMING)
@pytest.mark.parametrize("stack", OURS)
@pytest.mark.parametrize("view", [*VIEWS, "long-not-compressed"])
def test_each_use_case(server: Server, feed: Feed, view: str, stack: str) -> None:
    """Bytes and headers are right, and each piece is there before the next one is made, with each middleware."""
    assert judge(server, feed, stack, view) == "right"


@on(*STREAMING)
@pytest.mark.parametrize("view", ["large", "large-cached-by-clients", "long", "long-not-compressed", "file"])
def test_what_is_frozen_with_djangos_own_middleware(server: Server, feed: Feed, view: str) -> None:
    """None of this package's is needed for that."""
    for stack in django_table.COLUMNS:
        assert judge(server, feed, stack, view) == "right"


@on("gunicorn", "uvicorn")
def test_the_tables_of_the_document(server: Server, feed: Feed) -> None:
    """What Django's views come to is what docs/django.md says."""
    document = DOCUMENT.read_text()
    section = re.search(rf"<!-- django_table\.py: {server.name} -->\n((?:\|.*\n)+)", document)
    assert section is not None, "docs/django.md has no table for this server"
    expected = section[1].splitlines()
    if django.VERSION >= (6, 1) and server.name == "gunicorn":
        # Its GZipMiddleware flushes, too.
        expected = [row if "asynch" in row else row.replace("late, ", "").replace("late", "right") for row in expected]
    cells = {
        (line[0], column): text
        for line in ([cell.strip() for cell in row.strip("|").split("|")] for row in expected[2:])
        for column, text in zip(django_table.COLUMNS, line[1:])
    }
    # What is expected late is late however long one waits. If it isn't, it has come by then: an answer of three pieces,
    # through all of the middleware, takes less.
    began = time.monotonic()
    assert judge(server, feed, "all five, three ours", "streamed") == "right"
    enough = max(0.1, 2 * (time.monotonic() - began))

    def patience(title: str, column: str) -> float:
        return enough if cells.get((title, column), "").startswith("late") else 20

    assert django_table.lines(server, feed, patience) == expected


# ---- The end ----


@on(*STREAMING)
@pytest.mark.parametrize("view", ["large", "large-cached-by-clients", "large-compressed"])
def test_a_condition_that_holds(server: Server, feed: Feed, view: str) -> None:
    """304 by ConditionalGetMiddleware, and the store is hung up on before it has sent anything."""
    fields = (f"If-None-Match: {ETAG}", "X-Stack: all five, three ours")
    with Reply(server.address, f"/{view}/", *fields) as reply:
        feed.accept(len(CONTENT))
        reply.head()
        assert feed.was_left()
    feed.hang_up()
    assert (reply.status, reply.fields["etag"], reply.sent) == (304, ETAG, 0)


@on(*STREAMING)
@pytest.mark.parametrize("stack", ["no middleware", "all five, three ours"])
@pytest.mark.parametrize("view", ["streamed", "large", "long"])
def test_a_client_that_leaves(server: Server, feed: Feed, view: str, stack: str) -> None:
    """The iterator is closed: the store is hung up on, while it goes on sending."""
    reply = Reply(server.address, f"/{view}/?{stack[:2]}", f"X-Stack: {stack}")
    feed.accept(1 << 30)
    feed.send(PIECES[0])
    assert reply.has(len(PIECES[0]))
    reply.leave()
    with pytest.raises(ConnectionError):
        while True:
            feed.send(PIECES[1])
    feed.hang_up()


@on(*ASGI)
@pytest.mark.parametrize("stack", ["no middleware", "all five, three ours"])
def test_a_client_that_leaves_while_nothing_is_made(server: Server, stack: str) -> None:
    """Under ASGI an asynchronous iterator is closed at once."""
    name = f"{server.name} {stack}".replace(" ", "-").replace(",", "")
    with Reply(server.address, f"/waiting/?name={name}", f"X-Stack: {stack}", "Accept-Encoding: gzip") as reply:
        assert reply.has(len(b"first")) and server.closed(name) == 0
    wait_until(lambda: server.closed(name) == 1)


@on(*STREAMING)
@pytest.mark.parametrize("length", [3, 5])
def test_another_length_than_announced(server: Server, length: int) -> None:
    """The connection is broken, so the client notices, and the log says why."""
    with Reply(server.address, f"/announced/{length}/") as reply, pytest.raises(ConnectionError):
        reply.rest()
    assert reply.fields["content-length"] == str(length) and reply.sent < length
    with Reply(server.address, "/announced/4/") as reply:
        assert reply.rest() == b"abcd"
    error = "ExcessError" if length == 3 else "TruncatedError"
    wait_until(lambda: error in server.log.read_text())


@on(*STREAMING)
@pytest.mark.parametrize("stack", ["all five", "all five, three ours"])
@pytest.mark.parametrize("view", ["blocks", "async-blocks"])
def test_memory_is_flat(server: Server, view: str, stack: str) -> None:
    """While 1 GiB passes through all five."""
    with Reply(server.address, f"/{view}/1048576/", f"X-Stack: {stack}") as reply:
        reply.rest()
    before = most = server.memory()
    received, looked = 0, 0
    with socket.create_connection(server.address, timeout=60) as client:
        client.sendall(request(f"/{view}/{GIB}/", "Connection: close", f"X-Stack: {stack}"))
        while data := client.recv(1 << 20):
            received += len(data)
            if received - looked > 32 * MIB:
                looked = received
                most = max(most, server.memory())
    assert received > GIB
    assert most - before < 16 * MIB


@on(*STREAMING)
def test_content_from_a_database(server: Server) -> None:
    """It is read in the thread where the view was, piece by piece, or the connection would refuse it."""
    for stack in ("no middleware", "all five", "all five, three ours"):
        with Reply(server.address, "/table/", f"X-Stack: {stack}", "Accept-Encoding: gzip") as reply:
            assert reply.rest() == b"1\n2\n3\n"


# ---- Files ----


@on(*SERVERS)
def test_a_file_without_a_request(server: Server) -> None:
    """In full, compressed if a middleware does that, and with ranges where a server of this package is ASGI's."""
    for stack in ("no middleware", "all five", "all five, three ours"):
        fields = (f"X-Stack: {stack}", "Accept-Encoding: gzip", "Range: bytes=10-19")
        with Reply(server.address, "/plain-file/", *fields) as reply:
            if stack == "no middleware" and server.name == "sendgate.uvicorn":
                assert (reply.rest(), reply.status) == (FILE[10:20], 206)
                continue
            assert reply.rest() == FILE
            assert (reply.fields.get("content-encoding") == "gzip") is (stack != "no middleware")


@on("gunicorn", "uvicorn", "sendgate.uvicorn")
def test_memory_is_flat_for_a_file(server: Server, directory: Path) -> None:
    """Django's FileResponse is read into memory under ASGI."""
    with (directory / "sparse").open("wb") as file:
        file.truncate(GIB)
    before = most = server.memory()
    with Reply(server.address, "/sparse-file/", "X-Stack: ConditionalGet") as reply:
        for marks in range(0, GIB, 64 * MIB):
            assert reply.skip(marks)
            most = max(most, server.memory())
        assert reply.skip(GIB)
    assert most - before < 16 * MIB


@on(*SERVERS)
@pytest.mark.parametrize("stack", ["no middleware", "GZip", "all five", "all five, three ours"])
def test_a_file_with_conditions_and_ranges(server: Server, stack: str) -> None:
    """As by RFC 9110, on every server, whatever the client accepts."""
    check_all(server, "/file/", FILE, TAG, LAST_MODIFIED, X_Stack=stack, Accept_Encoding="gzip")


@on("sendgate.gunicorn", "sendgate.uvicorn")
@pytest.mark.parametrize("fields", [{}, {"Range": "bytes=1000-99999"}])
@pytest.mark.parametrize("stack", ["no middleware", "all five"])
def test_a_file_leaves_by_sendfile(
    server: Server, stack: str, fields: dict[str, str], directory: Path, tmp_path: Path
) -> None:
    """On the servers of this package, parts too, and it isn't read."""
    trace = tmp_path / "trace"
    workers = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    with traced(int((workers or [server.process.pid])[0]), f"sendfile,{READS}", trace):
        answer = server.get("/file/", X_Stack=stack, Accept_Encoding="gzip", **fields)
    assert answer.body == (FILE[1000:100_000] if fields else FILE)
    assert moved(trace, "sendfile", "file.txt") == len(answer.body)
    # It looks whether the file's pages are in memory, by a byte of each.
    assert sum(moved(trace, read, "file.txt") for read in READS.split(",")) < 16


# ---- After all that ----


@on(*SERVERS)
def test_nothing_was_wrong_on_the_inside(server: Server) -> None:
    """The logs have no other errors than those that tests have asked for."""
    log = server.log.read_text()
    errors = {line.split(":")[0] for line in log.splitlines() if re.match(r"[\w.]+(Error|Exception|Warning):", line)}
    assert errors <= {"sendgate._errors.ExcessError", "sendgate._errors.TruncatedError"}
    assert "ignored in" not in log


# ---- The example as it is ----


@pytest.mark.parametrize(
    "words",
    [
        "gunicorn --worker-class sendgate.gunicorn.ThreadWorker --no-control-socket -b 127.0.0.1:{port} mysite.wsgi",
        "uvicorn --http sendgate.uvicorn:HttpTools mysite.asgi:application --port {port}",
    ],
    ids=["gunicorn", "uvicorn"],
)
def test_the_example(words: str, tmp_path: Path) -> None:
    """With its own store and its own settings, by the commands that it names."""
    environment = {name: value for name, value in os.environ.items() if name not in ("STORE", "FILE")}

    def python(*arguments: str) -> Callable[[int], list[str]]:
        return lambda port: [sys.executable, *(word.format(port=port) for word in arguments)]

    with contextlib.ExitStack() as stack:
        start = functools.partial(serving, cwd=EXAMPLE)
        (_, port), _ = stack.enter_context(start(python("store.py", "{port}"), tmp_path / "store", env=environment))
        environment["STORE"] = f"http://127.0.0.1:{port}"
        command = python("-m", *words.split())
        address, _ = stack.enter_context(start(command, tmp_path / "log", "/none", env=environment))
        with Reply(address, "/large/", "Accept-Encoding: gzip") as reply:
            assert len(reply.rest()) == reply.sent == 10_000_000
            assert reply.fields["etag"] == '"v1"'
        with Reply(address, "/large-compressed/", "Accept-Encoding: gzip") as reply:
            assert reply.rest().count(b"a line of the log\n") == 500_000
            assert reply.fields["etag"] == '"v1"' and reply.sent < 5_000_000
        with Reply(address, "/long/", "Accept-Encoding: gzip") as reply:
            # The next one is made a second later.
            assert reply.has(1) and reply.content.startswith(b"line 0 of the report\n") and not reply.complete
        with Reply(address, "/file/", "Range: bytes=0-2") as reply:
            assert (reply.rest(), reply.status) == (b'"""', 206)
