"""Streaming responses on real servers, as a client on a raw socket sees them.

That each piece arrives when it was produced is shown by a handshake and not by time: the producer makes a piece when
it is told to, and it is told when the piece before has been read by the client.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import asgi_servers
import fastcgi_fronts
import wsgi_servers
from streaming_application import BIG, piece
from support import Client

HERE = Path(__file__).resolve().parent

WSGI = (*wsgi_servers.OURS, *(server for server in wsgi_servers.STOCK if server not in wsgi_servers.OTHERS))
ASGI = (
    *asgi_servers.OURS,
    *(server for server in asgi_servers.OTHERS if server.name.split()[0] in ("uvicorn", "hypercorn")),
)

#: A responder behind nginx, which frames what it gets.
FASTCGI = wsgi_servers.Server("sendgate.fastcgi", lambda folder, place, port: [], ours=True)
#: Runs the application beside its channels.
RESPONDER = (
    f"cp {HERE}/streaming_application.py {{folder}} && cd {{folder}} && exec {sys.executable} -u -m sendgate"
    " fastcgi --socket {folder}/app.sock streaming_application:wsgi"
)

#: Those that send the head of a streaming response when it has none of its content yet.
EARLY = {
    *(server.name for server in ASGI),
    *(server.name for server in WSGI if "gunicorn" in server.name or "wsgiref" in server.name),
}
#: Those whose connection nobody can look at, so that pieces are made until writing one fails; and the one behind a
#: front server, which may pass on late that a client has left.
BLIND = {"waitress", FASTCGI.name}
#: How many MiB a server keeps of what a client doesn't take, where that is more than a few: 16 in waitress, which the
#: interpreter has in several copies.
KEPT = {"waitress": 64, "sendgate.waitress": 64}
#: Those that have sent a head when the content fails, however early that is.
HASTY = {"cheroot"}
#: Those that serve one client at a time, as they are started here: gunicorn without threads, gevent without its monkey
#: patching.
ALONE = {
    "wsgiref", "sendgate.wsgiref", "gunicorn sync", "sendgate.gunicorn.SyncWorker", "gunicorn gthread",
    "sendgate.gunicorn.ThreadWorker", "gevent.pywsgi", "sendgate.gevent",
}  # fmt: skip
#: Servers that speak HTTP/1.0: the end of the connection is the end of the content.
UNFRAMED = {"wsgiref", "sendgate.wsgiref"}

_names = itertools.count()


class Folder:
    """Where a server runs, and the channels are."""

    module = "asgi_application"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packages = path
        shutil.copy(HERE / "streaming_application.py", path)
        for name in ("wsgi", "asgi"):
            (path / f"{name}_application.py").write_text(f"from streaming_application import {name} as application\n")


class Running:
    """A server."""

    def __init__(
        self, server: wsgi_servers.Server | asgi_servers.Server, folder: Path, address: tuple[str, int], log: Path
    ) -> None:
        self.name = server.name
        self.is_asgi = isinstance(server, asgi_servers.Server)
        self.is_framed = self.name not in UNFRAMED
        self.persistent = getattr(server, "persistent", True)
        self.folder = folder
        self.log = log
        self._address = address

    def connect(self) -> Client:
        """A connection."""
        return Client(socket.create_connection(self._address, timeout=15))

    def get(self, target: str) -> bytes:
        """The content of one response."""
        with self.connect() as client:
            client.request(target, "Connection: close")
            return client.response().body


@pytest.fixture(scope="module", params=(*WSGI, *ASGI, FASTCGI), ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Each of the servers."""
    chosen = request.param
    if chosen is FASTCGI:
        kind = fastcgi_fronts.Kind("nginx", keeps=True)
        with fastcgi_fronts.fronted(kind, ["sh", "-c", RESPONDER]) as front:
            yield Running(chosen, front.folder, front.address, front.folder / "application.log")
        return
    # The path of a UNIX socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="sendgate-stream-") as directory:
        folder = Folder(Path(directory))
        module = asgi_servers if isinstance(chosen, asgi_servers.Server) else wsgi_servers
        with module.running(chosen, folder) as (address, log, *_):  # type: ignore[arg-type]
            yield Running(chosen, folder.path, address, log)


class Channel:
    """The end of a producer's channel that tells it what to do."""

    def __init__(self, server: Running) -> None:
        self.name = f"c{next(_names)}"
        self._path = server.folder / f"{self.name}.test"
        self._other = server.folder / f"{self.name}.application"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.settimeout(15)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._path.unlink()

    def tell(self, what: str) -> None:
        """Tell the producer."""
        self._socket.sendto(what.encode(), str(self._other))

    def hear(self) -> str:
        """What it says."""
        return self._socket.recv(100).decode()

    def is_silent(self) -> bool:
        """Whether it has said nothing."""
        return not select.select([self._socket], [], [], 0)[0]


def read_piece(client: Client, framing: dict[str, str]) -> bytes:
    """The next piece of content: a chunk of a chunked body, or as many bytes as it has to have."""
    if framing.get("transfer-encoding") != "chunked":
        return client.read(len(piece(1)))
    return client.chunk()


@contextlib.contextmanager
def begun(server: Running, kind: str, count: int = 0) -> Iterator[tuple[Channel, Client, dict[str, str]]]:
    """A response of which the client has read head and so many pieces, each before the next one was made."""
    with Channel(server) as channel, server.connect() as client:
        client.request(f"/{kind}/{channel.name}")
        assert channel.hear() == "begun"
        fields = client.head().fields if server.name in EARLY and kind != "lazy" else None
        for number in range(1, count + 1):
            assert channel.is_silent()
            channel.tell("go")
            assert channel.hear() == f"made {number}"
            fields = client.head().fields if fields is None else fields
            assert read_piece(client, fields) == piece(number)
        yield channel, client, fields or {}


KINDS = pytest.mark.parametrize("kind", ["held", "async", "counted", "lazy"])


@KINDS
def test_each_piece_is_there_before_the_next_is_made(server: Running, kind: str) -> None:
    """And the connection is kept when the response is complete."""
    with begun(server, kind, 5) as (channel, client, fields):
        channel.tell("end")
        assert channel.hear() == "closed"
        if kind == "counted":
            assert fields["content-length"] == str(5 * len(piece(1)))
        elif server.is_framed:
            assert fields["transfer-encoding"] == "chunked"
            assert client.chunks() == b""
        # waitress closes behind content of unknown length.
        if not server.is_framed or not server.persistent or fields.get("connection") == "close":
            assert client.rest() == b""
        else:
            client.request("/next")
            assert client.response().body == b"next"


@pytest.mark.parametrize("kind", ["held", "async"])
def test_several_at_once(server: Running, kind: str) -> None:
    """Producers don't wait for each other, on servers that don't; with gevent they share a thread."""
    if server.name in ALONE:
        pytest.skip("it serves one client at a time")
    with begun(server, kind, 1) as first, begun(server, kind, 2) as second:
        for (channel, client, fields), number in ((first, 2), (second, 3), (first, 3)):
            channel.tell("go")
            assert channel.hear() == f"made {number}"
            assert read_piece(client, fields) == piece(number)
        for channel, _, _ in (first, second):
            channel.tell("end")
            assert channel.hear() == "closed"


@pytest.mark.parametrize("kind", ["held", "async"])
def test_a_client_that_leaves_closes_the_iterator(server: Running, kind: str) -> None:
    """Under ASGI at once, while it waits, if it can be interrupted; else with the piece that is being made."""
    before = len(server.log.read_text())
    with begun(server, kind, 1) as (channel, client, _):
        client.close()
        if server.is_asgi:
            assert channel.hear() == "left"
        made = 1
        interrupted = server.is_asgi and kind == "async"
        while (heard := channel.hear() if interrupted else asked(channel)) != "closed":
            made += 1
            assert heard == f"made {made}"
            assert not interrupted
            assert made == 2 or server.name in BLIND
        log = server.log.read_text()
    # It happens all the time.
    assert "Traceback" not in log[before:]
    assert server.get("/next") == b"next"


def asked(channel: Channel) -> str:
    """What the producer says when it is told to go on, if it is still there."""
    with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
        if channel.is_silent():
            channel.tell("go")
    return channel.hear()


def test_a_producer_that_fails_breaks_the_connection(server: Running) -> None:
    """The client sees that something is missing."""
    with begun(server, "held", 2) as (channel, client, fields):
        channel.tell("fail")
        assert channel.hear() == "closed"
        rest = client.rest(reset=True)
        assert rest == b""
        assert server.is_framed == (fields.get("transfer-encoding") == "chunked")
    assert "as it has to" in server.log.read_text()


def test_a_producer_that_fails_at_once_is_answered_500(server: Running) -> None:
    """Unless the response is streaming, the head waits for the first piece."""
    with server.connect() as client:
        client.request("/failing")
        head = client.head()
        if server.name in HASTY:
            assert (head.status, client.rest()) == (200, b"")
        else:
            assert head.status == 500


@pytest.mark.parametrize(("kind", "pieces"), [("short", 2), ("long", 1)])
def test_a_wrong_length_breaks_the_connection(server: Running, kind: str, pieces: int) -> None:
    """Too little, and then nothing, and never too much."""
    with server.connect() as client:
        client.request(f"/{kind}")
        due = b"".join(map(piece, range(1, pieces + 1)))
        if server.name == FASTCGI.name:
            # nginx disconnects its client at once: what it has not passed on by then is lost, the head included.
            _, _, body = client.rest(reset=True).partition(b"\r\n\r\n")
            assert due.startswith(body)
            return
        head = client.head()
        assert (head.status, client.rest(reset=True)) == (200, due)
        assert len(due) < int(head.fields["content-length"])


def anonymous(process: int) -> int:
    """Bytes of memory that a process has for itself."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def test_memory_does_not_grow_with_what_is_sent(server: Running) -> None:
    """1 GiB goes through less than 8 MiB, or what the server keeps by itself."""
    process = int(server.get("/process"))
    with server.connect() as client:
        client.request("/big", "Connection: close")
        client.head()
        step = 16 << 20
        taken = len(client.read(step))
        before = most = anonymous(process)
        looked = taken
        while data := client.some(1 << 20):
            taken += len(data)
            if taken - looked >= step:
                looked = taken
                most = max(most, anonymous(process))
        assert taken >= BIG
        assert most - before < KEPT.get(server.name, 8) << 20
