"""``FastPath``: the answers are those of ``Files``, and what isn't the plain case is left to the server."""

from __future__ import annotations

import dataclasses
import gzip
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rows
from sendgate import Connection, Sender
from sendgate._fast_path import FastPath
from sendgate.wsgi import Files
from support import Pipe, split, tcp_pair

OLD = 784111777


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file."""
    (tmp_path / "a.txt").write_bytes(b"0123456789" * 100)
    os.utime(tmp_path / "a.txt", (OLD, OLD))
    return tmp_path


class Loop:
    """A server's loop, as far as a fast path needs one."""

    def __init__(self, folder: Path, prefix: str = "/", **options: Any) -> None:
        self.sender = Sender()
        self.files = Files(folder, prefix=prefix, **options)
        self.fast_path = FastPath(self.files._mount, self.sender, fields=(("Server", "test"),))

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.close()
        self.files.close()

    def answer(self, sock: socket.socket, data: bytes) -> Connection | None:
        """What became of the connection, when the answer has ended."""
        sock.setblocking(False)
        given = self.fast_path.answer(sock.fileno(), data, sock)
        if given is None or given[0] == 0:
            return None if given is None else given[1]
        assert select.select([self.sender], [], [], 20)[0]
        (completion,) = self.sender.take()
        assert completion.token is sock and completion.id == given[0]
        return completion.result.connection

    def ask(self, target: str, *fields: str, method: str = "GET") -> tuple[int, dict[str, str], bytes] | None:
        """Status, fields and body; None if it was declined."""
        pipe = Pipe(*tcp_pair())
        head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a", *fields]) + "\r\n\r\n"
        connection = self.answer(pipe.server, head.encode("latin-1"))
        received = pipe.received()
        pipe.client.close()
        if connection is None:
            assert received == b""
            return None
        return split(received)


@pytest.fixture
def loop(folder: Path) -> Iterator[Loop]:
    """A loop for the folder."""
    with Loop(folder) as loop:
        yield loop


@pytest.mark.parametrize("row", [row for row in rows.load() if row.values_only is None], ids=str)
def test_row(row: rows.Row, tmp_path: Path) -> None:
    """Each case is answered as everywhere else, and twice in a row, or declined because of its method or content."""
    path = rows.make_file(tmp_path, row)
    tag = rows.file_tag(path)
    request = rows.build_request(row, f"/{path.name}", "localhost", tag)
    fields = [[n, v + "; charset=utf-8" if v == "text/plain" else v] for n, v in row.expect.get("fields", [])]
    row = dataclasses.replace(row, expect={**row.expect, "fields": fields})
    with Loop(tmp_path) as loop:
        for _ in range(2):
            pipe = Pipe(*tcp_pair())
            connection = loop.answer(pipe.server, request)
            received = pipe.received()
            pipe.client.close()
            if connection is None:
                assert received == b""
                announced = {name.lower() for name, _ in row.request} & {"content-length", "transfer-encoding"}
                assert row.method not in ("GET", "HEAD") or row.body or announced
                continue
            response = rows.parse_response(received, row.method, request_version=row.version)
            rows.check(row, response, etag=tag)
            assert (connection is Connection.REUSABLE) == row.expect.get("keep_alive", row.version == 11)


def test_a_large_file_goes_on_in_the_background(loop: Loop, folder: Path) -> None:
    """What doesn't fit at once is the sender's."""
    content = os.urandom(5 << 20)
    (folder / "large.bin").write_bytes(content)
    answer = loop.ask("/large.bin")
    assert answer is not None and answer[2] == content and answer[1]["server"] == "test"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\nGET /a.txt HTTP/1.1\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET //a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x/../a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x/%2e%2e/a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a.txt%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /.hidden HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /folder HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a.txt HTTP/1.1\nHost: a\n\n",
        b"\r\nGET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\nX_Y: a\r\n\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\ncontent-length: 0\r\n\r\n",
        b"GET /a.txt HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
        b"GET /a.txt#b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a.txt\xe4 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"get /a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x00\xa5",
    ],
    ids=repr,
)
def test_what_isnt_plain_is_declined(loop: Loop, folder: Path, data: bytes) -> None:
    """Nothing is written, and the next request is served."""
    (folder / ".hidden").write_bytes(b"x")
    (folder / "folder").mkdir()
    server, client = tcp_pair()
    with server, client:
        assert loop.answer(server, data) is None
        assert loop.answer(server, b"GET /a.txt?x=1 HTTP/1.1\r\nHost: a\r\n\r\n") is Connection.REUSABLE
        client.settimeout(20)
        assert client.recv(12) == b"HTTP/1.1 200"


def test_a_file_that_goes_away_is_declined_and_one_that_is_replaced_is_seen(loop: Loop, folder: Path) -> None:
    """What is remembered of a path is not its content."""
    first = loop.ask("/a.txt")
    assert first is not None and first[2] == b"0123456789" * 100
    (folder / "b").write_bytes(b"other")
    os.replace(folder / "b", folder / "a.txt")
    second = loop.ask("/a.txt")
    assert second is not None and second[2] == b"other" and second[1]["etag"] != first[1]["etag"]
    (folder / "c").write_bytes(b"stays")
    assert loop.ask("/c") is not None
    os.unlink(folder / "a.txt")
    assert loop.ask("/a.txt") is None
    assert loop.ask("/a.txt") is None
    assert list(loop.fast_path._prepared) == [(b"/c", b"")]


def test_functions_of_the_application_are_for_the_server_to_call(folder: Path) -> None:
    """It may have threads for that. What they have said counts as long as it does for Files."""
    called = []

    def headers(name: str) -> list[tuple[str, str]]:
        called.append(name)
        return [("X-Name", name)]

    with Loop(folder, headers=headers, precompressed=False) as loop:
        assert loop.ask("/a.txt") is None and called == []
        found = loop.files._mount.site.find(b"a.txt", None)
        assert found is not None
        found.close()
        answer = loop.ask("/a.txt")
        assert answer is not None and answer[1]["x-name"] == "a.txt"
        assert called == ["a.txt"]


def test_a_prefix_an_index_and_a_name_that_is_encoded(folder: Path) -> None:
    """Paths mean what they mean to Files."""
    (folder / "index.html").write_bytes(b"index")
    (folder / "a b.txt").write_bytes(b"space")
    with Loop(folder, "/static/") as loop:
        assert loop.ask("/a.txt") is None
        assert loop.ask("/staticx/a.txt") is None
        for target, content in (("/static/", b"index"), ("/static/a%20b.txt", b"space"), ("/static/?q", b"index")):
            answer = loop.ask(target)
            assert answer is not None and answer[0] == 200 and answer[2] == content, target


def test_a_compressed_file_is_for_those_who_accept_it(loop: Loop, folder: Path) -> None:
    """With Vary for all, and conditions about the one that is sent."""
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"0123456789" * 100))
    plain = loop.ask("/a.txt")
    assert plain is not None and plain[1]["vary"] == "Accept-Encoding" and "content-encoding" not in plain[1]
    for accept in ("gzip", "br;q=0.1, GZIP", "*"):
        coded = loop.ask("/a.txt", f"Accept-Encoding: {accept}")
        assert coded is not None and coded[1]["content-encoding"] == "gzip", accept
        assert gzip.decompress(coded[2]) == b"0123456789" * 100
        assert coded[1]["vary"] == "Accept-Encoding" and coded[1]["etag"] != plain[1]["etag"]
    for accept in ("br", "gzip;q=0", "identity, gzip;q=0.5"):
        other = loop.ask("/a.txt", f"accept-encoding:{accept}")
        assert other is not None and "content-encoding" not in other[1], accept


def test_what_is_remembered_is_bounded_by_the_files(loop: Loop, folder: Path) -> None:
    """Neither queries nor what a client accepts are kept."""
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"0123456789" * 100))
    for number in range(50):
        assert loop.ask(f"/a.txt?{number}", f"Accept-Encoding: gzip, x{number}") is not None
        assert loop.ask(f"/none{number}") is None
    assert len(loop.fast_path._prepared) <= 2


def test_two_fields_that_say_what_is_accepted_are_declined(loop: Loop, folder: Path) -> None:
    """They are one list, which others put together."""
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"0123456789" * 100))
    assert loop.ask("/a.txt", "Accept-Encoding: br", "Accept-Encoding: gzip") is None


def test_no_descriptor_is_left(loop: Loop, folder: Path) -> None:
    """Each answer closes what it opened, declined or not."""
    loop.ask("/a.txt")
    before = len(os.listdir("/proc/self/fd"))
    for target in ("/a.txt", "/none", "/a.txt", "/"):
        loop.ask(target, "If-None-Match: *")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_client_that_is_gone(loop: Loop) -> None:
    """Is no exception: the server closes the connection."""
    server, client = tcp_pair()
    with server:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        request = b"GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n"
        assert loop.answer(server, request) in (Connection.BROKEN, Connection.UNTOUCHED, None)
