"""``sendgate.aiohttp`` on a real aiohttp, on asyncio's loop and on uvloop, as a client sees it.

The application is ``aiohttp_application``, in a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import inspect
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rows
from launching import launched
from served_rows import SOCKET_ROWS, answers, as_served, complaints
from serving import descriptors
from support import READS, Client, moved, traced, wait_until

pytest.importorskip("aiohttp", reason="aiohttp is not installed: bindings/python/requirements-dev.txt")

LOOPS = ("asyncio", "uvloop")
#: Seconds that are far too long for anything here.
LONG = 60

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
CONTENT = rows.content(0, 100_000)
TAG = f'"{OLD * 10**9:x}-{len(CONTENT):x}"'
TEXT = CONTENT[:1000] * 100  # can be compressed
BIG = rows.content(0, 24 << 20)  # more than a socket's buffers hold


@dataclasses.dataclass
class Running:
    """A server in its own process."""

    process: subprocess.Popen[str]
    port: int
    folder: Path
    log_path: Path
    #: How many descriptors of files and sockets it has without a connection.
    idle: int = 0

    @property
    def files(self) -> Path:
        """What is served."""
        return self.folder / "files"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.log_path.read_text()

    def get(self, target: str, method: str = "GET", **fields: str) -> rows.Response:
        """One request, one well-formed answer, after which the connection is still in step."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return rows.fetch(self.address, request, timeout=LONG, probe=rows.probe("/hello"))

    def connect(self, receive_buffer: int | None = None) -> Client:
        """A new connection. With a small buffer less is on its way to a client that doesn't read."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(LONG)
        try:
            sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return Client(sock)

    def count_idle(self, client: Client) -> None:
        """Over the only connection that there is."""
        # With what is made once.
        client.request("/file/plain.txt")
        client.response()
        self.idle = len(self.descriptors()) - 1

    def is_idle(self) -> bool:
        """Whether nothing is left of any connection."""
        return len(self.descriptors()) <= self.idle

    def descriptors(self) -> list[str]:
        """What it has open of files and sockets."""
        found = descriptors(self.process.pid)
        return [name for name in found if name.startswith((str(self.folder), "socket:"))]


@contextlib.contextmanager
def running(loop: str, folder: Path, log: Path, *options: str | Path) -> Iterator[Running]:
    """Start one, and stop it at the end."""
    application = Path(__file__).with_name("aiohttp_application.py")
    command = [sys.executable, application, loop, folder, *options]
    with launched(command, log, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Running(process, int(line), folder, log)


def write(path: Path, content: bytes, when: int = OLD) -> None:
    """A file of that time."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (when, when))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all servers send from."""
    folder = tmp_path_factory.mktemp("aiohttp")
    files = folder / "files"
    write(files / "plain.txt", CONTENT)
    write(files / "big", BIG)
    write(files / "both.txt", TEXT)
    write(files / "both.txt.gz", gzip.compress(TEXT, mtime=0))
    write(files / "both.txt.br", b"not really brotli, which nobody here reads")
    write(files / "stale.txt", TEXT)
    write(files / "stale.txt.gz", gzip.compress(TEXT, mtime=0), OLD - 1)
    write(files / "linked.txt", TEXT)
    (files / "linked.txt.gz").symlink_to("both.txt.gz")
    write(files / "folder" / "index.html", b"<p>index")
    write(files / "folder" / "\u00fc b.txt", b"odd name")
    write(files / ".hidden", b"hidden")
    write(files / "404.html", b"<p>the site's page")
    (files / "outside").symlink_to("../secret")
    write(folder / "secret", b"secret")
    os.mkfifo(files / "fifo")
    # A file that not even root may read.
    (files / "unreadable").symlink_to("/proc/sys/vm/compact_memory")
    return folder


@pytest.fixture(scope="module", params=LOOPS)
def server(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for most tests, on each loop."""
    with running(request.param, folder, tmp_path_factory.mktemp("log") / "stderr") as server:
        with server.connect() as client:
            server.count_idle(client)
        yield server


# ---- The rows of tests/cases ----

#: What aiohttp does to the answers to some rows, whatever the response is.
DIFFERENCES = {
    "an HTTP/1.0 request is answered with HTTP/1.0": {
        row.name: "version HTTP/1.0" for row in SOCKET_ROWS if row.version == 10
    },
}


@pytest.mark.parametrize("prefix", ["/file/", "/static/"])
@pytest.mark.parametrize("row", SOCKET_ROWS, ids=str)
def test_row(row: rows.Row, server: Running, prefix: str) -> None:
    """The answer is what the row expects, and leaves the connection in step."""
    tag, (response,) = answers(row, server.address, server.files, prefix)
    due = [found[row.name] for found in DIFFERENCES.values() if row.name in found]
    assert complaints(as_served(row, charset=prefix == "/static/"), response, tag) == due


# ---- What is sent ----


def test_the_validators_of_precompressed_files(server: Running) -> None:
    """What the client wants is sent, with Vary and a tag of its own; so is what it doesn't want."""
    plain = server.get("/file/both.txt")
    zipped = server.get("/file/both.txt", Accept_Encoding="gzip")
    other = server.get("/file/both.txt", Accept_Encoding="gzip, br")
    assert plain.body == TEXT and gzip.decompress(zipped.body or b"") == TEXT
    assert [r.get("Content-Encoding") for r in (plain, zipped, other)] == [None, "gzip", "br"]
    assert {r.get("Vary") for r in (plain, zipped, other)} == {"Accept-Encoding"}
    assert {r.get("Content-Type") for r in (plain, zipped, other)} == {"text/plain"}
    assert len({r.get("ETag") for r in (plain, zipped, other)}) == 3
    tag = zipped.get("ETag") or ""
    assert server.get("/file/both.txt", Accept_Encoding="gzip", If_None_Match=tag).status == 304
    assert server.get("/file/both.txt", If_None_Match=tag).status == 200
    part = server.get("/file/both.txt", Accept_Encoding="gzip", Range="bytes=0-9", If_Range=tag)
    assert (part.status, part.body, part.get("Content-Encoding")) == (206, (zipped.body or b"")[:10], "gzip")


@pytest.mark.parametrize("accepted", ["gzip;q=0", "identity, gzip;q=0.5", "*;q=0", "gzipped"])
def test_a_coding_that_is_not_wanted(server: Running, accepted: str) -> None:
    """aiohttp's own sends gzip to whoever mentions it."""
    response = server.get("/file/both.txt", Accept_Encoding=accepted)
    assert (response.body, response.get("Content-Encoding")) == (TEXT, None)


@pytest.mark.parametrize("target", ["/file/stale.txt", "/file/linked.txt", "/uncompressed/both.txt", "/file/big"])
def test_a_coding_that_is_not_there(server: Running, target: str) -> None:
    """An older file, a link, one that isn't asked for, and none at all."""
    response = server.get(target, "HEAD", Accept_Encoding="gzip")
    assert (response.get("Content-Encoding"), response.get("Vary")) == (None, None)
    assert response.get("Content-Length") == str((server.files / target.split("/")[-1]).stat().st_size)


def test_what_aiohttp_compresses(server: Running) -> None:
    """enable_compression() is heeded: all of the content, with a weak tag, Vary, and no ranges."""
    with server.connect() as client:
        client.request("/compressed/plain.txt", "Accept-Encoding: gzip", "Range: bytes=0-9")
        answer = client.head()
        assert (answer.status, answer.fields["content-encoding"]) == (200, "gzip")
        assert (answer.fields["etag"], answer.fields["vary"]) == ("W/" + TAG, "Accept-Encoding")
        assert answer.fields["transfer-encoding"] == "chunked" and "accept-ranges" not in answer.fields
        assert gzip.decompress(client.chunks()) == CONTENT
        for method, fields, status in (("HEAD", (), 200), ("GET", (f"If-None-Match: {TAG}",), 304)):
            client.request("/compressed/plain.txt", "Accept-Encoding: gzip", *fields, method=method)
            answer = client.response(method)
            assert (answer.status, answer.fields["etag"]) == (status, "W/" + TAG)
            assert not {"content-length", "content-encoding", "transfer-encoding"} & answer.fields.keys()
        client.request("/compressed/plain.txt")
        assert client.response().body == CONTENT
        client.request("/compressed/missing", "Accept-Encoding: gzip")
        assert client.response().status == 404
        client.request("/compressed/both.txt", "Accept-Encoding: gzip", "Range: bytes=0-9")
        answer = client.response()
        assert (answer.status, answer.fields["content-encoding"]) == (206, "gzip")


def test_chunks(server: Running) -> None:
    """enable_chunked_encoding is heeded, and then there is no Content-Length (RFC 9112 6.2)."""
    with server.connect() as client:
        for name, fields, status, body in (
            ("plain.txt", (), 200, CONTENT),
            ("plain.txt", ("Range: bytes=10-19",), 206, CONTENT[10:20]),
            ("plain.txt", ("Range: bytes=99999999-",), 416, b""),
            ("plain.txt", ("If-None-Match: *",), 304, b""),
            ("missing", (), 404, b""),
        ):
            client.request("/chunked/" + name, *fields)
            answer = client.head()
            assert answer.status == status and "content-length" not in answer.fields
            assert answer.fields.get("transfer-encoding") == (None if status == 304 else "chunked")
            assert status == 304 or client.chunks() == body


def test_fields_of_the_application(server: Running) -> None:
    """Its validators and its type are sent, and count; cookies, lines and characters stay what they are."""
    response = server.get("/own")
    assert (response.get("ETag"), response.get("Content-Type")) == ('"v1"', "text/x-own")
    assert server.get("/own", If_None_Match='"v1"').status == 304
    assert server.get("/own", Range="bytes=0-9", If_Range='"v1"').status == 206
    assert server.get("/own", Range="bytes=0-9", If_Range=TAG).status == 200
    assert server.get("/own", If_Unmodified_Since="Fri, 04 Nov 1994 00:00:00 GMT").status == 412
    response = server.get("/cookie")
    assert response.head.startswith(b"HTTP/1.1 200 Fine\r\n")
    assert response.get("Set-Cookie") == "session=1; Path=/"
    assert response.all("Link") == ["<a>", "<b>"]
    assert (response.get("X-Name") or "").encode("latin-1") == "\u00fc".encode()
    assert server.get("/cookie", Range="bytes=0-0").head.startswith(b"HTTP/1.1 206 Partial Content\r\n")


def test_other_arguments(server: Running) -> None:
    """A status of the application's, no ranges, a part of a file."""
    response = server.get("/teapot", Range="bytes=0-9", If_None_Match="*")
    assert (response.status, response.body) == (418, CONTENT)
    response = server.get("/no-ranges", Range="bytes=0-9")
    assert (response.status, response.get("Accept-Ranges")) == (200, "none")
    assert server.get("/no-ranges", If_None_Match=TAG).status == 304
    response = server.get("/part", Range="bytes=-10")
    assert (response.body, response.get("Content-Range")) == (CONTENT[140:150], "bytes 40-49/50")


def test_another_method(server: Running) -> None:
    """What a POST has done can't be undone by a condition. Its content, left unread, doesn't get in the way."""
    with server.connect() as client:
        for _ in range(2):
            client.request("/post", "Content-Length: 7", "If-None-Match: *", "Range: bytes=0-0", method="POST")
            client.sock.sendall(b"1234567")
            answer = client.response()
            assert (answer.status, answer.body) == (200, CONTENT)


def test_signals(server: Running) -> None:
    """They see status and fields as they are sent, and may add to them; what would split the response is refused."""
    assert server.get("/file/plain.txt").get("X-Seen") == f"200 {len(CONTENT)}"
    assert server.get("/file/plain.txt", Range="bytes=0-9").get("X-Seen") == "206 10"
    assert server.get("/file/plain.txt", If_None_Match="*").get("X-Seen") == "304 None"
    assert server.get("/file/missing").get("X-Seen") == "404 0"
    with server.connect() as client:
        client.request("/split")
        answer = client.response()
        assert answer.status == 500 and b"b: c" not in answer.body


def test_what_cannot_be_sent(server: Running) -> None:
    """404, 403 and 503, as aiohttp has them, and no descriptors is not 404."""
    for name, status in (
        ("missing", 404), ("plain.txt/x", 404), ("x" * 300, 404), ("folder", 403), ("fifo", 403), ("unreadable", 403),
    ):  # fmt: skip
        response = server.get("/file/" + name)
        assert (response.status, response.body) == (status, b""), name
        with server.connect() as client:
            client.request("/stock/" + name)
            assert client.head().status == status, name
    assert server.get("/file/a%00b").status == 404
    assert server.get("/no-descriptors").status == 503
    assert server.get("/pipe").status == 403
    assert server.get("/file/plain.txt").status == 200


def test_handlers_that_send_it_themselves(server: Running) -> None:
    """prepare() sends all of it; what the library refuses, and what fails later, is the handler's to know."""
    with server.connect() as client:
        for _ in range(2):
            client.request("/prepared")
            assert client.response().body == CONTENT
        client.request("/refused")
        assert client.response().status == 500
    with server.connect() as client:
        client.request("/raises")
        assert client.response().body == CONTENT
        assert client.rest() == b""
    wait_until(lambda: "FieldError" in server.log and "after the response" in server.log)


# ---- Where it comes from ----


def test_open_files(server: Running) -> None:
    """An open file is sent from its position on, and closed; a descriptor is left open."""
    response = server.get("/opened", Range="bytes=0-9")
    assert (response.body, response.get("ETag"), response.get("Content-Type")) == (CONTENT[10:20], TAG, "text/plain")
    assert server.get("/state").body == b'{"closed": true}'
    assert server.get("/opened", "HEAD").status == 200
    assert server.get("/opened", If_None_Match=TAG).status == 304
    assert server.get("/state").body == b'{"closed": true}'
    assert server.get("/sendgate-file", Range="bytes=-1").body == CONTENT[-1:]
    assert server.get("/descriptor", Range="bytes=-1").body == CONTENT[-1:]
    wait_until(server.is_idle)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "BytesIO", "mmap"])
def test_buffers(server: Running, kind: str) -> None:
    """They are sent as files are, and an mmap can be sent again."""
    for _ in range(2):
        response = server.get(f"/memory/{kind}", Range="bytes=0-9,-10")
        assert [part.data for part in response.parts()] == [CONTENT[:10], CONTENT[-10:]]
        assert server.get(f"/memory/{kind}").body == CONTENT
        assert server.get(f"/memory/{kind}", If_None_Match='"v1"').status == 304


def test_replaced_after_it_was_opened(server: Running) -> None:
    """The one that was opened is sent, with its validators."""
    write(server.files / "replaced.txt", CONTENT)
    response = server.get("/replaced")
    assert (response.body, response.get("ETag")) == (CONTENT, TAG)
    assert server.get("/file/replaced.txt").body == b"new"


# ---- Folders ----


def test_static(server: Running) -> None:
    """Names are decoded, folders have an index, and what a site adds is there."""
    assert server.get("/static/plain.txt").get("Cache-Control") == "public, max-age=60"
    assert server.get("/static/plain.txt").get("Content-Type") == "text/plain; charset=utf-8"
    for target in (
        "/static/folder/%C3%BC%20b.txt",
        "/st%61tic/folder%2f%c3%bc%20b.txt",
        "/static//folder/x/../%C3%BC%20b.txt",
    ):
        assert server.get(target).body == b"odd name", target
    assert server.get("/static/folder/").body == b"<p>index"
    response = server.get("/static/folder?a=b%20c")
    assert (response.status, response.get("Location")) == (301, "/static/folder/?a=b%20c")
    assert server.get("/static/both.txt", Accept_Encoding="br").get("Content-Encoding") == "br"


def test_static_refuses(server: Running) -> None:
    """Nothing outside of the folder is sent, nothing hidden, and nothing that is no file."""
    for target in (
        "/static/missing", "/static/outside", "/static/../secret", "/static/%2e%2e/secret", "/static/..%2fsecret",
        "/static/.hidden", "/static/", "/static", "/static/folder%2f..%2f..%2fsecret", "/static/%ff",
        "/staticplain.txt",
    ):  # fmt: skip
        response = server.get(target)
        assert response.status == 404, target
        assert b"secret" not in (response.body or b"")
    assert server.get("/static/fifo").status == 403
    assert server.get("/static/a%00b").status == 400
    response = server.get("/static/plain.txt", "DELETE")
    assert (response.status, response.get("Allow")) == (405, "GET,HEAD")


def test_static_and_its_application(server: Running) -> None:
    """A middleware sees what isn't there, unless the site has a page for it; a part of another application works."""
    assert server.get("/page/missing").body == b"a middleware's page"
    response = server.get("/with-page/missing", If_None_Match="*")
    assert (response.status, response.body, response.get("ETag")) == (404, b"<p>the site's page", None)
    assert server.get("/with-page/.hidden").body == b"hidden"
    assert server.get("/inner/files/plain.txt", Range="bytes=0-9").body == CONTENT[:10]
    assert server.get("/inner/files/folder").get("Location") == "/inner/files/folder/"
    assert server.get("/inner/files/missing").status == 404
    assert server.get("/url").body == b"/static/folder/%C3%BC%20b.txt"


# ---- Connections ----


def test_pipelined(server: Running) -> None:
    """Many requests at once on one connection: each answer begins where the last one ends."""
    with server.connect() as client:
        for _ in range(3):
            client.request("/file/plain.txt")
            client.request("/file/plain.txt", method="HEAD")
            client.request("/hello")
            client.request("/file/big", "Range: bytes=1-9999999")
            client.request("/file/plain.txt", "If-None-Match: *")
            client.request("/file/plain.txt", "Range: bytes=5-")
        for _ in range(3):
            assert client.response().body == CONTENT
            assert client.response("HEAD").fields["content-length"] == str(len(CONTENT))
            assert client.response().body == b"hello"
            assert client.response().body == BIG[1:10_000_000]
            assert client.response().status == 304
            assert client.response().body == CONTENT[5:]


def test_http10(server: Running) -> None:
    """It ends with the response, or stays if the client wants that; and so with Connection: close."""
    for version, field, stays in (
        ("1.0", "X: y", False),
        ("1.0", "Connection: keep-alive", True),
        ("1.1", "Connection: close", False),
    ):
        with server.connect() as client:
            client.request("/file/plain.txt", field, version=version)
            answer = client.response()
            assert answer.body == CONTENT
            if stays:
                client.request("/file/plain.txt", version=version)
                assert client.response().body == CONTENT
            assert client.rest() == b""


def test_a_slow_client_holds_up_nobody(server: Running) -> None:
    """Others are answered while it reads nothing, and it gets every byte in the end."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect(receive_buffer=8192)) for _ in range(8)]
        for client in slow:
            client.request("/file/big")
            client.head()
        for _ in range(20):
            assert server.get("/file/plain.txt").body == CONTENT
        for client in slow:
            assert client.read(len(BIG)) == BIG
            client.request("/hello")
            assert client.response().body == b"hello"


@pytest.mark.parametrize("options", [(), ("cancel",)], ids=["", "handler_cancellation"])
@pytest.mark.parametrize("loop", LOOPS)
def test_clients_that_leave(folder: Path, tmp_path: Path, loop: str, options: tuple[str, ...]) -> None:
    """Nothing stays open of their files and connections, and only what aiohttp logs of its own is logged."""
    with running(loop, folder, tmp_path / "log", *options) as server:
        with server.connect() as client:
            server.count_idle(client)
        for leave in (Client.reset, Client.close):
            clients = [server.connect(receive_buffer=8192) for _ in range(4)]
            for client in clients:
                client.request("/file/big")
                client.head()
            for client in clients:
                leave(client)
            wait_until(server.is_idle)
        assert server.get("/file/plain.txt").body == CONTENT
    assert "Traceback" not in server.log


def test_a_client_that_takes_nothing(server: Running) -> None:
    """Its connection ends; the access log tells how much it took, and there is no traceback."""
    with server.connect(receive_buffer=8192) as client:
        client.request("/small-limits/big")
        client.head()
        wait_until(lambda: "GET /small-limits/big HTTP/1.1 200 " in server.log)
        sent = int(server.log.split("GET /small-limits/big HTTP/1.1 200 ")[-1].split("\n")[0])
        got = client.rest()
        assert 0 < len(got) <= sent < len(BIG) and got == BIG[: len(got)]
    wait_until(server.is_idle)


def test_a_client_that_has_said_all(server: Running) -> None:
    """It closes its side of the connection in mid-response, and gets the rest."""
    with server.connect(receive_buffer=8192) as client:
        client.request("/file/big")
        client.head()
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == BIG
    wait_until(server.is_idle)


def test_a_handler_that_is_cancelled(server: Running) -> None:
    """In mid-response: what has begun can't be completed by anything else, so the connection is closed."""
    with server.connect(receive_buffer=8192) as client:
        client.request("/hurried/big")
        client.head()
        wait_until(lambda: "the handler was cancelled" in server.log)
        got = client.rest()
        assert len(got) < len(BIG) and got == BIG[: len(got)]
    wait_until(server.is_idle)


def test_the_access_log(server: Running) -> None:
    """Status and bytes, head included, as aiohttp counts them."""
    for target, fields in (("/file/plain.txt?a", {}), ("/file/plain.txt?b", {"Range": "bytes=0-9"})):
        response = server.get(target, **fields)
        line = f"GET {target} HTTP/1.1 {response.status} {len(response.head) + len(response.body or b'')}\n"
        wait_until(lambda line=line: line in server.log)
    response = server.get("/file/plain.txt?c", "HEAD")
    wait_until(lambda: f"HEAD /file/plain.txt?c HTTP/1.1 200 {len(response.head)}\n" in server.log)


def test_a_file_that_becomes_shorter(server: Running) -> None:
    """The connection is closed, so that the client notices, and the log says why."""
    path = server.files / "shrinks"
    write(path, BIG)
    try:
        with server.connect(receive_buffer=8192) as client:
            client.request("/file/shrinks")
            client.head()
            os.truncate(path, 4096)
            assert len(client.rest()) < len(BIG)
        wait_until(lambda: "TruncatedError" in server.log)
    finally:
        path.unlink()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_graceful_stop(folder: Path, tmp_path: Path, loop: str) -> None:
    """SIGTERM during a download: it goes on to its end."""
    with running(loop, folder, tmp_path / "log") as server, server.connect(receive_buffer=8192) as client:
        client.request("/file/big")
        assert client.head().status == 200
        server.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                server.connect().close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refused)
        assert client.rest() == BIG
        assert server.process.wait(LONG) == 0
    assert "Traceback" not in server.log


@pytest.mark.parametrize("loop", LOOPS)
def test_tls(folder: Path, tmp_path: Path, certificate: tuple[Path, Path], loop: str) -> None:
    """The same bytes, encrypted, with keep-alive, parts and clients that leave."""
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with running(loop, folder, tmp_path / "log", *certificate) as server:

        def connect() -> Client:
            return Client(context.wrap_socket(server.connect().sock, server_hostname="localhost"))

        with connect() as client:
            server.count_idle(client)
            for _ in range(2):
                client.request("/file/big")
                assert client.response().body == BIG
                client.request("/static/plain.txt", "Range: bytes=0-9,-10")
                answer = client.response()
                assert answer.status == 206 and CONTENT[:10] in answer.body and CONTENT[-10:] in answer.body
                client.request("/file/plain.txt", "If-None-Match: *")
                assert client.response().status == 304
        for _ in range(4):
            client = connect()
            client.request("/file/big")
            client.head()
            client.reset()
        wait_until(server.is_idle)
    assert "Traceback" not in server.log


# ---- System calls ----


@pytest.mark.parametrize("target", ["/file/big", "/static/big"])
def test_files_leave_by_sendfile(server: Running, tmp_path: Path, target: str) -> None:
    """A large file is not read, but for single bytes that tell whether it is in memory (seen by strace)."""
    trace = tmp_path / "trace"
    with traced(server.process.pid, f"sendfile,{READS}", trace):
        assert server.get(target).body == BIG
        assert server.get(target, Range="bytes=1000000-9999999").body == BIG[1_000_000:10_000_000]
    assert moved(trace, "sendfile", "big") > len(BIG) + 9_000_000 - 200_000
    assert moved(trace, r"p?readv?\w*", "big") < 200_000


def test_head_and_content_leave_together(server: Running, tmp_path: Path) -> None:
    """What is small takes one call to open it, and one to send it (seen by strace)."""
    small = server.files / "small.txt"
    write(small, CONTENT[:1000])
    trace = tmp_path / "trace"
    with traced(server.process.pid, "openat,openat2,send,sendto,sendmsg,write,writev", trace):
        for target in ("/file/small.txt", "/static/small.txt"):
            assert server.get(target).body == CONTENT[:1000]
    calls = trace.read_text()
    assert len(re.findall(r"open.*small\.txt\"", calls)) == 2
    sent = [int(count) for count in re.findall(r"(?:send\w*|writev?)\(\d+<(?:socket|TCP).* = (\d+)\n", calls)]
    # The answer, and that to rows.probe.
    assert len(sent) == 4 and sent[0] > 1000 and sent[2] > 1000


# ---- The module ----


def test_takes_what_aiohttps_takes() -> None:
    """The same arguments in the same order, and those of respond that make sense."""
    from aiohttp import web

    from sendgate import _types
    from sendgate.aiohttp import FileResponse, StaticResource

    own, theirs = (
        list(inspect.signature(made).parameters.values())[1:]
        for made in (FileResponse.__init__, web.FileResponse.__init__)
    )
    assert [p.name for p in own[: len(theirs)]] == [p.name for p in theirs]
    others = {"headers", "content_type", "status", "close", "head", "now", "seed"}
    assert {p.name for p in own[len(theirs) :]} == set(_types.Arguments.__annotations__) - others | {"precompressed"}
    assert issubclass(FileResponse, web.FileResponse) and issubclass(StaticResource, web.StaticResource)


@pytest.mark.parametrize("missing", ["StreamResponse._write_headers", "StaticResource._handle"])
def test_another_aiohttp_is_refused(missing: str) -> None:
    """One that is built in another way is an ImportError that says what is missing, and which works."""
    owner, name = missing.split(".")
    program = f"from aiohttp import web; web.{owner} = type({owner!r}, (), {{}}); import sendgate.aiohttp"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG)
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and message.startswith("ImportError: sendgate.aiohttp, which works with aiohttp ")
    assert message.endswith("has no " + name)


def test_nothing_else_was_wrong_on_the_inside(server: Running) -> None:
    """The log has no traceback but those of the tests above."""
    found = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception)): ", server.log, re.MULTILINE)
    assert set(found) <= {"FieldError", "RuntimeError", "ValueError", "TruncatedError"}
