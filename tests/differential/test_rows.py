"""tests/rows.py is the judge of every server's answers: here it is shown to see what is wrong with one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import nginx  # noqa: F401 - puts tests/ on the path
import pytest

import rows

TAG = '"ae1b981c3a4d715-3e8"'
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"

WHOLE = (
    f"HTTP/1.1 200 OK\r\nDate: {DATE}\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n"
    f"Last-Modified: {MODIFIED}\r\nETag: {TAG}\r\nAccept-Ranges: bytes\r\n\r\n"
).encode() + rows.content(0, 1000)

PARTIAL = (
    f"HTTP/1.1 206 Partial Content\r\nDate: {DATE}\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n"
    f"ETag: {TAG}\r\nAccept-Ranges: bytes\r\nContent-Range: bytes 5-14/1000\r\n\r\n"
).encode() + rows.content(5, 10)

PARTS = b"".join(
    [
        b"--XyZ\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-9/1000\r\n\r\n",
        rows.content(0, 10),
        b"\r\n--XyZ\r\nContent-Type: text/plain\r\nContent-Range: bytes 990-999/1000\r\n\r\n",
        rows.content(990, 10),
        b"\r\n--XyZ--\r\n",
    ]
)
MULTIPART = (
    f"HTTP/1.1 206 Partial Content\r\nDate: {DATE}\r\nContent-Type: multipart/byteranges; boundary=XyZ\r\n"
    f"Content-Length: {len(PARTS)}\r\nETag: {TAG}\r\nAccept-Ranges: bytes\r\n\r\n"
).encode() + PARTS

UNCHANGED = f"HTTP/1.1 304 Not Modified\r\nDate: {DATE}\r\nETag: {TAG}\r\n\r\n".encode()

UNSATISFIABLE = (
    f"HTTP/1.1 416 Range Not Satisfiable\r\nDate: {DATE}\r\nContent-Length: 0\r\nContent-Range: bytes */1000\r\n\r\n"
).encode()

GOOD = {
    "whole": (WHOLE, {"status": 200, "etag": "strong", "last_modified": MODIFIED, "absent": ["Content-Range"]}),
    "partial": (PARTIAL, {"status": 206, "ranges": [[5, 14]], "etag": TAG, "keep_alive": True}),
    "multipart": (MULTIPART, {"status": 206, "ranges": [[0, 9], [990, 999]]}),
    "unchanged": (UNCHANGED, {"status": 304, "etag": "strong", "last_modified": "none"}),
    "unsatisfiable": (UNSATISFIABLE, {"status": 416, "content_range": "bytes */1000", "etag": "none"}),
}

# What is replaced in a good answer, by what. Each must be noticed.
BAD = [
    ("whole", b"200 OK", b"204 No Content"),
    ("whole", b"HTTP/1.1", b"HTTP/1.0"),
    ("whole", b"HTTP/1.1 200 OK", b"HTTP/1.1 200"),
    ("whole", b"Content-Length: 1000", b"Content-Length: 999"),
    ("whole", b"Content-Length: 1000", b"Content-Length: 01000"),
    ("whole", b"Content-Length: 1000\r\n", b""),
    ("whole", b"Content-Length: 1000\r\n", b"Content-Length: 1000\r\nContent-Length: 1000\r\n"),
    ("whole", b"Content-Length: 1000\r\n", b"Content-Length: 1000\r\nTransfer-Encoding: chunked\r\n"),
    ("whole", f"Date: {DATE}\r\n".encode(), b""),
    ("whole", b"Tue, 14", b"Mon, 14"),
    ("whole", b"Date: ", b"Date : "),
    ("whole", b"Accept-Ranges: bytes\r\n", b""),
    ("whole", b"\r\nETag: ", b"\r\nETag: W/"),
    ("whole", b"3e8", b"3e9"),
    ("whole", b"\r\nETag: ", b'\r\nETag: "x"\r\nETag: '),
    ("whole", b"08:49:37", b"08:49:38"),
    ("whole", b"Accept-Ranges", b"Content-Range: bytes 0-999/1000\r\nAccept-Ranges"),
    ("whole", b"\r\nETag", b"\nETag"),
    ("whole", rows.content(500, 8), rows.content(501, 8)),
    ("partial", b"5-14/1000", b"6-15/1000"),
    ("partial", b"5-14/1000", b"5-14/1001"),
    ("partial", b"5-14/1000", b"5-14/*"),
    ("partial", b"5-14/1000", b"05-14/1000"),
    ("partial", b"Content-Range", b"X-Range"),
    ("partial", rows.content(5, 10), rows.content(6, 10)),
    ("partial", b"\r\nETag", b"\r\nContent-MD5: x\r\nETag"),
    ("partial", b"\r\nETag", b"\r\nConnection: close\r\nETag"),
    ("multipart", b"boundary=XyZ", b"boundary=XyA"),
    ("multipart", b"boundary=XyZ", b"boundary="),
    ("multipart", b"\r\n--XyZ--\r\n", b"\r\n--XyZ\r\n\r\n"),
    ("multipart", b"\r\n--XyZ--\r\n", b"\r\n--XyZ--\n\n"),
    ("multipart", b"990-999", b"989-998"),
    ("multipart", b"0-9/1000", b"0-8/1000"),
    ("multipart", b"0-9/1000", b"0-9/1001"),
    ("multipart", b"\r\n\r\n--XyZ\r\n", b"\r\n\r\n--XyA\r\n"),
    ("multipart", b"text/plain\r\nContent-Range: bytes 990", b"text/plain\r\nContent-Stage: bytes 990"),
    ("multipart", b"text/plain\r\nContent-Range: bytes 990", b"text/other\r\nContent-Range: bytes 990"),
    ("multipart", b"Accept-Ranges", b"Content-Range: bytes 0-9/1000\r\nAccept-Ranges"),
    ("multipart", rows.content(990, 10), rows.content(989, 10)),
    ("multipart", rows.content(0, 10), b"a--XyZ--bc"),
    ("unchanged", b"\r\nETag", b"\r\nContent-Length: 1000\r\nETag"),
    ("unchanged", b"\r\nETag", b"\r\nContent-Type: text/plain\r\nETag"),
    ("unchanged", b"\r\nETag", f"\r\nLast-Modified: {MODIFIED}\r\nETag".encode()),
    ("unchanged", b"\r\n\r\n", b"\r\n\r\nx"),
    ("unsatisfiable", b"*/1000", b"*/999"),
    ("unsatisfiable", b"Content-Length: 0\r\n", b""),
    ("unsatisfiable", b"\r\n\r\n", b"\r\nCache-Control: max-age=60\r\n\r\n"),
    ("unsatisfiable", b"\r\n\r\n", b"\r\nAccept-Ranges: bytes\r\n\r\n"),
]


def judge(kind: str, data: bytes) -> None:
    """Raises unless ``data`` is what is due."""
    row = rows.Row(name="x", rule="x", source="x", expect=dict(GOOD[kind][1]))
    rows.check(row, rows.parse_response(data), etag=TAG)


@pytest.mark.parametrize("kind", GOOD)
def test_good_answer(kind: str) -> None:
    """The answers that the bad ones are made from are accepted."""
    judge(kind, GOOD[kind][0])


@pytest.mark.parametrize(("kind", "old", "new"), BAD)
def test_bad_answer(kind: str, old: bytes, new: bytes) -> None:
    """One change makes the answer wrong."""
    good = GOOD[kind][0]
    assert good.count(old) >= 1
    with pytest.raises((rows.Mismatch, rows.ProtocolError)):
        judge(kind, good.replace(old, new, 1))


@pytest.mark.parametrize("kind", GOOD)
def test_every_cut_is_noticed(kind: str) -> None:
    """An answer that ends early anywhere is not a whole one."""
    good = GOOD[kind][0]
    for end in range(len(good)):
        with pytest.raises(rows.ProtocolError):
            rows.parse_response(good[:end])


@pytest.mark.parametrize(
    "text",
    [
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 200 }\nunknown = 1",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 200, unknown = 1 }",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 200 }\nfile = { size = 1 }",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = '200' }",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = true }",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 206 }",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 200, ranges = [[0, 1]] }",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { error = 'FIELD' }",
        "[[case]]\nname = 'a'\nexpect = { status = 200 }",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 200 }\nheaders = [['A', 'b', 'override']]",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 200 }\nvalues_only = 'x'\nheaders = [['A', 'b', 'set']]",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 200 }\nnginx = { status = 404 }",
        "[[case]]\nname = 'a'\nrule = 'b'\nexpect = { status = 200 }\n" * 2,
        "",
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, text: str) -> None:
    """A mistake in a row is an error, not a row that tests nothing."""
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(rows.RowError):
        rows.load(tmp_path)


def serve(script: Callable[[socket.socket], None]) -> tuple[str, int]:
    """The address of a server that lets ``script`` have the one connection that it takes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            connection.settimeout(10)
            script(connection)

    threading.Thread(target=run, daemon=True).start()
    address: tuple[str, int] = listener.getsockname()
    return address


def head(connection: socket.socket) -> None:
    """Read one request head."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096)


REQUEST = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSING = WHOLE.replace(b"Accept-Ranges", b"Connection: close\r\nAccept-Ranges")


def test_fetch_in_small_pieces() -> None:
    """An answer may arrive byte by byte."""

    def script(connection: socket.socket) -> None:
        head(connection)
        for k in range(len(CLOSING)):
            connection.sendall(CLOSING[k : k + 1])

    assert rows.fetch(serve(script), REQUEST).body == rows.content(0, 1000)


def test_fetch_notices_a_short_body() -> None:
    """The connection ends before the body does."""

    def script(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(CLOSING[:-1])

    with pytest.raises(rows.ProtocolError, match="closed after 999 of 1000"):
        rows.fetch(serve(script), REQUEST)


def test_fetch_notices_bytes_after_the_answer() -> None:
    """Something follows although a close was announced."""

    def script(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(CLOSING + b"x")

    with pytest.raises(rows.ProtocolError, match="bytes after the answer"):
        rows.fetch(serve(script), REQUEST)


def test_fetch_notices_that_no_close_follows() -> None:
    """A close was announced, and the server waits for more."""
    done = threading.Event()

    def script(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(CLOSING)
        done.wait(10)

    with pytest.raises(rows.ProtocolError, match="in time"):
        rows.fetch(serve(script), REQUEST, timeout=0.2)
    done.set()


def test_fetch_notices_a_close_that_was_not_announced() -> None:
    """Reuse was announced, and the second request finds the connection closed."""

    def script(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(WHOLE)

    with pytest.raises(rows.ProtocolError, match="reuse was announced"):
        rows.fetch(serve(script), REQUEST, probe=rows.probe("/x"))


def test_fetch_notices_a_body_after_head() -> None:
    """The answer to HEAD brings the content along, which the next answer would be read from."""

    def script(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(CLOSING)

    with pytest.raises(rows.ProtocolError, match="bytes after the answer"):
        rows.fetch(serve(script), REQUEST.replace(b"GET", b"HEAD"))
