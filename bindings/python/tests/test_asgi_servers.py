"""What sendgate.asgi answers on real ASGI servers, as a client sees it: Files, and Conditional around an application
and around Starlette's own StaticFiles.

How the servers are started is in ``asgi_servers``, and what runs inside of them in ``asgi_application``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

import rows
from asgi_servers import OTHERS, OURS, Folder, Server, running
from asked import check_all
from served_rows import SOCKET_ROWS, answers, as_served, complaints
from serving import descriptors
from support import READS, moved, traced, wait_until

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SIZE = 300_000
CONTENT = rows.content(0, SIZE)
TAG = f'"{OLD * 10**9:x}-{SIZE:x}"'

#: More than any buffer on the way takes.
BIG = 64 << 20


@dataclasses.dataclass
class Running:
    """A server that runs."""

    server: Server
    address: tuple[str, int]
    log: Path
    process: int

    def get(self, target: str, method: str = "GET", **fields: str) -> rows.Response:
        """One request, one well-formed answer, after which the connection stays, and is in step."""
        response = rows.fetch(self.address, head(target, method, **fields), timeout=60, probe=rows.probe(target))
        assert response.keep_alive, response.head
        return response

    def processes(self) -> list[int]:
        """It and its children."""
        found = [self.process]
        for process in found:
            for task in Path(f"/proc/{process}/task").iterdir():
                with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def opened(self, path: Path) -> int:
        """How many of its descriptors lead to a file."""
        return sum(descriptors(process).count(str(path)) for process in self.processes())

    def peak(self) -> int:
        """Bytes of memory that it has had at most since ``forget_peak``."""
        total = 0
        for process in self.processes():
            match = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
            total += int(match[1]) << 10 if match else 0
        return total

    def forget_peak(self) -> None:
        """Begin anew."""
        for process in self.processes():
            Path(f"/proc/{process}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def folder() -> Iterator[Folder]:
    """What all servers send from."""
    with Folder() as folder:
        path = folder.files / "file.bin"
        path.write_bytes(CONTENT)
        os.utime(path, (OLD, OLD))
        with (folder.files / "big.bin").open("wb") as file:
            file.truncate(BIG)
        yield folder


@pytest.fixture(scope="module")
def running_server(request: pytest.FixtureRequest, folder: Folder) -> Iterator[Running]:
    """Each server is started once."""
    server: Server = request.param
    with running(server, folder) as (address, log, process):
        yield Running(server, address, log, process)


def on(servers: Iterable[Server]) -> pytest.MarkDecorator:
    """A test runs on these."""
    return pytest.mark.parametrize("running_server", servers, ids=str, indirect=True)


on_all_servers = on([*OURS, *OTHERS])
on_servers_that_cut = on([server for server in (*OURS, *OTHERS) if server.cuts])
on_the_servers_of_rows = on([*OURS, *(server for server in OTHERS if server.name == "hypercorn asyncio")])


def head(target: str, method: str = "GET", version: int = 11, **fields: str) -> bytes:
    """A request; fields by their names with _ for -."""
    lines = [f"{method} {target} HTTP/1.{version - 10}", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


# ---- Answers ----


@on_all_servers
@pytest.mark.parametrize("place", ["files", "pathsend", "static"])
def test_answers(running_server: Running, place: str) -> None:
    """The right bytes in the right framing, and the connection stays in step, whoever has made the answer."""
    target = f"/{place}/file.bin"
    tag = running_server.get(target).get("ETag")
    assert tag is not None and (tag == TAG) == (place != "static")
    check_all(running_server, target, CONTENT, tag, DATE)


@on_all_servers
def test_pipelined(running_server: Running) -> None:
    """Many requests at once on one connection: each answer begins where the last one ends."""
    asked = [
        ("/files/file.bin", "GET", {}, 200), ("/files/file.bin", "HEAD", {}, 200),
        ("/pathsend/file.bin", "GET", {"Range": "bytes=5-9"}, 206), ("/next", "GET", {}, 200),
        ("/static/file.bin", "GET", {"Range": "bytes=100000-"}, 206),
        ("/files/file.bin", "GET", {"If_None_Match": "*"}, 304), ("/files/missing", "GET", {}, 404),
        ("/files/file.bin", "GET", {"Connection": "close"}, 200),
    ]  # fmt: skip
    with rows.connect(running_server.address, 60) as connection:
        reader = rows._Reader(connection, time.monotonic() + 60)
        connection.sendall(b"".join(head(target, method, **fields) for target, method, fields, _ in asked))
        for target, method, fields, status in asked:
            response = rows.parse_response(reader.until(b"\r\n\r\n"), method, body_follows=False)
            body = reader.exactly(rows._body_length(response, method))
            assert response.status == status, (target, method, fields)
            if status == 200 and method == "GET" and target != "/next":
                assert body == CONTENT
        reader.end()


@on_all_servers
def test_http_1_0(running_server: Running) -> None:
    """All of it, or a part, and the connection ends unless that is announced otherwise."""
    for place in ("files", "pathsend", "static"):
        request = head(f"/{place}/file.bin", version=10)
        assert rows.fetch(running_server.address, request, timeout=60).body == CONTENT
        request = head(f"/{place}/file.bin", version=10, Range="bytes=5-9")
        response = rows.fetch(running_server.address, request, timeout=60)
        assert (response.status, response.body) == (206, CONTENT[5:10])


@on_all_servers
@pytest.mark.parametrize("place", ["files", "pathsend", "static"])
def test_a_client_that_takes_its_time_and_leaves(running_server: Running, folder: Folder, place: str) -> None:
    """Meanwhile others are served, the file isn't in memory, and in the end it isn't open either."""
    path = folder.files / "big.bin"
    running_server.forget_peak()
    before = running_server.peak()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.settimeout(60)
        client.connect(running_server.address)
        client.sendall(head(f"/{place}/big.bin", Range="bytes=1-"))
        taken = 0
        while taken < 1 << 20:
            taken += len(client.recv(1 << 16))
        for _ in range(30):
            assert rows.fetch(running_server.address, head("/next"), timeout=60).body == b"next"
        if running_server.server.waits:
            assert running_server.opened(path) >= 1
            assert running_server.peak() - before < BIG // 4
        # A client that leaves so has its last word: RST.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: running_server.opened(path) == 0)


@on_servers_that_cut
def test_a_file_that_shrinks(running_server: Running, folder: Folder) -> None:
    """The connection ends before all that was announced has come, and nothing else comes instead."""
    path = folder.files / "shrinking.bin"
    path.write_bytes(CONTENT)
    with rows.connect(running_server.address, 60) as connection:
        reader = rows._Reader(connection, time.monotonic() + 60)
        connection.sendall(head("/shrinking/shrinking.bin") + head("/next"))
        response = rows.parse_response(reader.until(b"\r\n\r\n"), body_follows=False)
        assert response.get("Content-Length") == str(SIZE)
        received = reader.pending
        with contextlib.suppress(ConnectionResetError):
            while block := connection.recv(1 << 16):
                received += block
    assert len(received) < SIZE
    assert received == CONTENT[: len(received)]
    wait_until(lambda: running_server.opened(path) == 0)


@on_all_servers
def test_a_file_that_is_not_there(running_server: Running) -> None:
    """A pathsend of it is an error of the application's: 500, and not half a response."""
    for target in ("/failing", "/pathsend/missing"):
        client = http.client.HTTPConnection(*running_server.address, timeout=60)
        with contextlib.closing(client):
            client.request("GET", target, headers={"Connection": "close"})
            response = client.getresponse()
            assert (response.status, response.getheader("ETag")) == (500, None)
            response.read()


@on(OURS)
@pytest.mark.parametrize("place", ["files", "pathsend", "static"])
def test_parts_leave_by_sendfile(running_server: Running, tmp_path: Path, place: str) -> None:
    """On a server of ours nothing of the file is read, but for single bytes that tell whether it is in memory (seen by
    strace).
    """
    trace = tmp_path / "calls"
    with traced(running_server.process, f"sendfile,{READS}", trace):
        request = head(f"/{place}/file.bin", Range="bytes=1000-250999", Connection="close")
        assert rows.fetch(running_server.address, request, timeout=60).body == CONTENT[1000:251_000]
    assert moved(trace, "sendfile", "file.bin") == 250_000
    assert moved(trace, f"(?:{READS.replace(',', '|')})", "file.bin") < 100


# ---- HTTP/2 ----


@on([server for server in OTHERS if server.name.startswith("hypercorn")])
def test_http_2(running_server: Running) -> None:
    """Several requests at once on one connection, on a server that speaks it."""
    asked: dict[int, tuple[list[tuple[str, str]], str, bytes]] = {}
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    for fields, status, body in (
        ([], "200", CONTENT),
        ([("range", "bytes=5-9")], "206", CONTENT[5:10]),
        ([("range", "bytes=100000-")], "206", CONTENT[100_000:]),
        ([("if-none-match", TAG)], "304", b""),
        ([("if-match", '"x"')], "412", b""),
    ):
        stream = client.get_next_available_stream_id()
        asked[stream] = fields, status, body
        names = [(":method", "GET"), (":path", "/files/file.bin"), (":scheme", "http"), (":authority", "localhost")]
        client.send_headers(stream, [*names, *fields], end_stream=True)
    answers: dict[int, tuple[str, bytes]] = {}
    ended = 0
    with rows.connect(running_server.address, 60) as connection:
        while ended < len(asked):
            connection.sendall(client.data_to_send())
            for event in client.receive_data(connection.recv(1 << 16)):
                if isinstance(event, h2.events.ResponseReceived):
                    answers[event.stream_id] = dict(event.headers)[":status"], b""
                elif isinstance(event, h2.events.DataReceived):
                    status, body = answers[event.stream_id]
                    answers[event.stream_id] = status, body + event.data
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    ended += 1
                else:
                    assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event
    assert answers == {stream: (status, body) for stream, (_, status, body) in asked.items()}


# ---- The rows ----


@on_the_servers_of_rows
@pytest.mark.parametrize("row", SOCKET_ROWS, ids=str)
def test_row(row: rows.Row, running_server: Running, folder: Folder) -> None:
    """What Files answers is what the row expects, and leaves the connection in step."""
    tag, (response,) = answers(row, running_server.address, folder.files)
    assert complaints(as_served(row), response, tag) == []


# ---- After all that ----


@on_all_servers
def test_nothing_was_wrong_on_the_inside(running_server: Running) -> None:
    """No server has logged an error but those that were made."""
    log = running_server.log.read_text()
    for sign in ("never retrieved", "never awaited", "was destroyed", "StopIteration", "ResourceWarning"):
        assert sign not in log
