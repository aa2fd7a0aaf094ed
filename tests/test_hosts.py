"""The servers in examples/hosts, and one by ctypes, on the library that is installed, with real clients."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import rows
from hosts import HOSTS, Host, need_library
from serving import BIG, MIB, Connection, Served, Server, make, resume_download, until

ROOT = Path(__file__).resolve().parent.parent
SMALL = rows.content(0, 1000)


@pytest.fixture(params=HOSTS, ids=str)
def host(request: pytest.FixtureRequest) -> Host:
    """Each of them."""
    chosen: Host = request.param
    need_library(chosen)
    return chosen


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory to serve, with something outside of it that must stay unseen."""
    make(tmp_path / "secret.txt", b"secret")
    site = tmp_path / "site"
    make(site / "small.txt", SMALL)
    make(site / "medium.bin", rows.content(0, 300_000))
    make(site / "with space+%.txt", b"odd name")
    make(site / "sub" / "index.html", b"<p>index")
    return site


@pytest.fixture(scope="session")
def big() -> bytes:
    """Content for a file that no socket buffer can hold."""
    return os.urandom(BIG)


@pytest.fixture(scope="module")
def end() -> Iterator[Callable[[Server], object]]:
    """Ends a server properly, while others are tested: CivetWeb takes up to two seconds for it."""

    def stop(server: Server) -> None:
        with server:
            assert server.stop() == ""

    ends: list[tuple[object, Future[None]]] = []
    with ThreadPoolExecutor() as threads:
        yield lambda server: ends.append((server.process.args, threads.submit(stop, server)))
    wrong = [f"{args}: {ended.exception()!r}" for args, ended in ends if ended.exception() is not None]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def server(
    host: Host, built: Path, environment: dict[str, str], site: Path, end: Callable[[Server], object]
) -> Iterator[Server]:
    """A host on `site`, with SIGPIPE at its default. It has to live to the end, and end properly."""
    program = built / host.name if host.header else ROOT / "examples" / host.name
    prefix = () if host.header else (sys.executable,)
    server = Server(str(program), site, prefix=prefix, environment=environment)
    try:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        ignored = int(status.split("SigIgn:\t")[1].split("\n")[0], 16)
        assert not (host.sigpipe and ignored & 1 << 12), "SIGPIPE is ignored"  # bit 12 is signal 13
        yield server
    finally:
        end(server)


def test_rows(host: Host, server: Served, site: Path) -> None:
    """tests/cases, over a socket; what the host does otherwise is in its table, and nothing else is."""
    wrong, tested, otherwise = [], 0, set()
    for row in rows.load():
        # Methods other than GET and HEAD are these servers' own business: see test_other_answers.
        if row.values_only or row.method not in ("GET", "HEAD"):
            continue
        if row.name in host.otherwise:
            otherwise.add(row.name)
            row = dataclasses.replace(row, expect={**row.expect, **host.otherwise[row.name]})
        content = rows.content_of(row)
        if content:  # Who reads it need not close the connection: see test_content_is_not_the_next_request.
            fields = [line for line in row.expect.get("fields", []) if line[0] != "Connection"]
            expect = {key: value for key, value in row.expect.items() if key != "keep_alive"}
            row = dataclasses.replace(row, expect={**expect, "fields": fields})
        path = rows.make_file(site, row)
        tag, target = rows.file_tag(path), "/" + path.name
        try:
            request = rows.build_request(row, target, "localhost", tag) + content
            if host.refuses_tabs and b"\t" in request:
                with Connection(server.address) as client:
                    client.socket.sendall(request)
                    assert client.head().status == 400, row.name
                continue
            response = rows.fetch(server.address, request, probe=rows.probe(target))
            if host.length_in_304 and response.status == 304:
                response.fields.remove(("Content-Length", str(row.length)))  # It has to be there.
            rows.check(row, response, etag=tag)
        except (rows.Mismatch, rows.ProtocolError) as error:
            wrong.append(f"{row.name}: {error}")
        finally:
            path.unlink()
        tested += 1
    assert not wrong, "\n".join(wrong)
    assert tested > 100
    assert otherwise == set(host.otherwise)


def test_other_answers(host: Host, server: Served, site: Path) -> None:
    """Names as they are encoded, what is not there, what isn't allowed, what is outside."""
    assert server.get(host.odd).body == b"odd name"
    if host.absolute:
        assert server.get(f"http://localhost:{server.address[1]}/small.txt").body == SMALL
    assert server.get("/sub/").body == b"<p>index"
    for target, location in (("/sub", "./sub/"), ("/sub?x=1&y=2", "./sub/?x=1&y=2")):
        response = server.get(target)
        assert (response.status, response.get("Location")) == (301, location)
    (site / "odd" / "index.html").mkdir(parents=True)
    assert server.get("/odd/").status == 404
    assert server.get("/none").status == 404
    (site / "link").symlink_to("../secret.txt")
    for target in ("/../secret.txt", "/%2e%2e/secret.txt", "/sub/../../secret.txt", "/link", "/%2fetc/passwd"):
        response = server.get(target)
        assert response.status in (400, 403, 404), target
        assert b"secret" not in (response.body or b"")
    response = server.get("/small.txt", method="DELETE")
    assert (response.status, response.get("Allow")) == (405, "GET, HEAD")


def test_targets_that_are_none(server: Served) -> None:
    """Are refused, or found nowhere; the server goes on, and says nothing to standard error."""
    for target in ("http://[x/", "/%zz", "/%00", "*"):
        with Connection(server.address) as client:
            client.send(f"GET {target} HTTP/1.1", "Host: localhost")
            with contextlib.suppress(EOFError, ConnectionResetError):
                assert client.head().status in (400, 403, 404), target
    assert server.get("/small.txt").body == SMALL


def test_kept_alive(server: Served) -> None:
    """Many requests over one connection, of every kind; HTTP/1.0 closes unless asked not to."""
    before = server.descriptors()
    with Connection(server.address) as client:
        for _ in range(20):
            assert client.get("/small.txt").body == SMALL
            assert client.get("/medium.bin").body == rows.content(0, 300_000)
            assert client.get("/small.txt", "Range: bytes=10-19").body == rows.content(10, 10)
            assert len(client.get("/small.txt", "Range: bytes=0-1,10-11").parts()) == 2
            assert client.get("/small.txt", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT").status == 304
            assert client.get("/small.txt", 'If-Match: "x"').status == 412
            assert client.get("/small.txt", "Range: bytes=5000-").status == 416
            assert client.get("/medium.bin", method="HEAD").get("Content-Length") == "300000"
            assert client.get("/none").status == 404
    until(lambda: server.descriptors() == before)
    assert not server.get("/small.txt", version="1.0").keep_alive
    assert server.get("/small.txt", "Connection: close").keep_alive is False


def test_pipelining(server: Served) -> None:
    """Requests in one segment: all are answered, in order, whatever their size; then those behind a download."""
    end = "\r\nHost: localhost\r\n\r\n"
    with Connection(server.address) as client:
        for first, body in (("small.txt", SMALL), ("medium.bin", rows.content(0, 300_000))):
            requests = f"GET /{first} HTTP/1.1{end}HEAD /medium.bin HTTP/1.1{end}GET /sub/ HTTP/1.1{end}"
            client.socket.sendall(requests.encode())
            assert client.answer().body == body
            assert client.answer("HEAD").get("Content-Length") == "300000"
            assert client.answer().body == b"<p>index"
        count = 200
        client.socket.sendall(f"GET /small.txt HTTP/1.1\r\nRange: bytes=0-9{end}".encode() * count)
        for _ in range(count):
            assert client.answer().body == rows.content(0, 10)


def test_slow_reader_holds_nobody_up(server: Served, site: Path, big: bytes) -> None:
    """While some clients don't read, others are answered; then they get every byte, and the next answer."""
    make(site / "big.bin", big)
    clients = [Connection(server.address, receive_buffer=4096) for _ in range(3)]
    for client in clients:
        client.send("GET /big.bin HTTP/1.1", "Host: localhost")
        client.more()
    for _ in range(20):
        assert server.get("/small.txt").body == SMALL
    for client in clients:
        client.send("GET /small.txt HTTP/1.1", "Host: localhost")

    def read(client: Connection) -> bool:
        with client:
            return client.answer().body == big and client.answer().body == SMALL

    with ThreadPoolExecutor() as threads:
        assert all(threads.map(read, clients))


def test_waiting_costs_no_time(server: Served, site: Path, big: bytes) -> None:
    """While a client doesn't read, though it has sent its next request, or the end, the server does nothing."""
    make(site / "big.bin", big)
    with contextlib.ExitStack() as open_ones:
        pipelined, ended = (open_ones.enter_context(Connection(server.address, receive_buffer=4096)) for _ in range(2))
        for client in (pipelined, ended):
            client.send("GET /big.bin HTTP/1.1", "Host: localhost")
            client.more()
        pipelined.send("GET /small.txt HTTP/1.1", "Host: localhost")
        ended.socket.shutdown(socket.SHUT_WR)
        assert server.get("/small.txt").body == SMALL
        before = server.processor_time()
        time.sleep(1)  # of which a server that polls in vain gets more, also where others are busy
        assert server.processor_time() - before < 0.1


def test_clients_that_leave(server: Served, site: Path, big: bytes) -> None:
    """In the middle of a download, by a reset or properly: no signal ends the server, and nothing stays open."""
    make(site / "big.bin", big)
    before = server.descriptors()
    for ranges in ([], ["Range: bytes=0-9999999,10000002-"]):
        for orderly in (False, True):
            clients = []
            for _ in range(5):
                client = Connection(server.address, receive_buffer=4096)
                client.send("GET /big.bin HTTP/1.1", "Host: localhost", *ranges)
                client.more()
                clients.append(client)
            for client in clients:
                client.socket.close() if orderly else client.reset()
            assert server.get("/small.txt").status == 200
    until(lambda: server.descriptors() == before)


def test_clients_that_leave_at_once(server: Served) -> None:
    """Before the answer has begun."""
    before = server.descriptors()
    for _ in range(300):
        client = Connection(server.address)
        client.send("GET /small.txt HTTP/1.1", "Host: localhost")
        client.reset()
    assert server.get("/small.txt").status == 200
    until(lambda: server.descriptors() == before)


def test_truncated_file(server: Served, site: Path, big: bytes) -> None:
    """A file that becomes shorter while it is sent: the client notices, by the end of the connection."""
    path = make(site / "big.bin", big)
    for ranges in ([], ["Range: bytes=0-1,5-20000000"]):
        make(path, big)
        with Connection(server.address, receive_buffer=4096) as client:
            client.send("GET /big.bin HTTP/1.1", "Host: localhost", *ranges)
            length = int(client.head().get("Content-Length") or 0)
            assert length > BIG - MIB
            os.truncate(path, MIB)
            with pytest.raises((EOFError, ConnectionResetError)):
                while True:
                    client.more()
            assert len(client.pending) < length
    assert server.get("/small.txt").status == 200


def test_resumed_download(server: Served, site: Path, big: bytes) -> None:
    """Cut off, then continued."""
    resume_download(server, site, big)


def test_content_is_not_the_next_request(server: Served) -> None:
    """Content behind a GET is never read as a request, and the connection stays in step or is closed."""
    smuggled = "GET /medium.bin HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Connection(server.address) as client:
        client.send("GET /small.txt HTTP/1.1", "Host: localhost", f"Content-Length: {len(smuggled)}")
        client.socket.sendall(smuggled.encode())
        response = client.answer()
        assert (response.status, response.body) == (200, SMALL)
        if response.keep_alive:
            assert client.get("/sub/").body == b"<p>index"
        with contextlib.suppress(OSError):  # reset: a host may close while there is unread content
            client.socket.shutdown(socket.SHUT_WR)
        with pytest.raises((EOFError, ConnectionResetError)):
            client.more()
