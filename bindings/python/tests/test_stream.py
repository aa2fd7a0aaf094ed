"""``Stream`` on real sockets: content that is produced while it is sent, as a client sees it."""

from __future__ import annotations

import array
import contextlib
import dataclasses
import mmap
import select
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import rows
import sendgate
from sendgate import Connection, Framing, HeadForm, Request, Step, Stream
from support import Pipe, split, tcp_pair

LENGTH = 10_000
DATA = bytes((n ^ (n >> 8) * 7) & 255 for n in range(LENGTH))
ETAG = '"tag"'
PIECES = [b"one", b"two, two", DATA[:5000], b"\r\n0\r\n\r\n", b"end"]
Pair = Callable[[], "tuple[socket.socket, socket.socket]"]


@pytest.fixture(params=[socket.socketpair, tcp_pair], ids=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(server, client), connected."""
    make: Pair = request.param
    server, client = make()
    client.settimeout(20)
    with server, client:
        yield server, client


@pytest.fixture
def open_pipe() -> Iterator[Callable[[], Pipe]]:
    """Makes connections whose client collects what arrives."""
    made = []

    def open_one() -> Pipe:
        made.append(Pipe(*socket.socketpair()))
        return made[-1]

    yield open_one
    for pipe in made:
        pipe.received()
        pipe.client.close()


def get(*fields: tuple[str, str], method: str = "GET", version: int = 11) -> Request:
    """A request."""
    return Request(method, version, fields)


def has_nothing(client: socket.socket) -> bool:
    """Whether nothing is there to be read now."""
    decrypted = client.pending() if isinstance(client, ssl.SSLSocket) else 0
    return not decrypted and not select.select([client], [], [], 0)[0]


def read(client: socket.socket, count: int) -> bytes:
    """Just so many bytes, and nothing is behind them now."""
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        assert piece, f"closed after {data!r}"
        data += piece
    assert has_nothing(client)
    return data


def read_head(client: socket.socket) -> bytes:
    """Up to the empty line, and no further."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, f"closed after {data!r}"
        data += byte
    return data


def dechunk(body: bytes) -> tuple[list[bytes], bytes]:
    """The chunks, and what stands behind the last: trailers and the empty line."""
    chunks = []
    while True:
        size, end, body = body.partition(b"\r\n")
        assert end and size == b"%x" % int(size, 16), size
        if size == b"0":
            return chunks, body
        chunk, end, body = body[: int(size, 16)], body[int(size, 16) :][:2], body[int(size, 16) + 2 :]
        assert end == b"\r\n"
        chunks.append(chunk)


def fill(stream: Stream, data: bytes, size: int = 997) -> None:
    """Writes what is asked for, until nothing is."""
    while (wanted := stream.next())[1] != 0:
        offset, length = wanted
        left = len(data) - offset if length is None else length
        if left == 0:
            return
        piece = data[offset : offset + min(size, left)]
        assert stream.write(piece) == len(piece)
        assert stream.waits_for is Step.DONE


# ---- Every way in which content ends ----


@dataclasses.dataclass(frozen=True)
class Shape:
    """A request to a stream, and how it is answered."""

    name: str
    framing: Framing
    status: int = 200
    length: int | None = None
    seekable: bool = False
    fields: tuple[tuple[str, str], ...] = ()
    method: str = "GET"
    version: int = 11
    own_status: int = 200
    content: bytes = DATA
    connection: Connection = Connection.REUSABLE

    def __str__(self) -> str:
        return self.name


SHAPES = [
    Shape("counted", Framing.LENGTH, length=LENGTH),
    Shape("empty", Framing.LENGTH, length=0, content=b""),
    Shape("counted-http10", Framing.LENGTH, length=LENGTH, version=10, connection=Connection.CLOSE),
    Shape("counted-head", Framing.LENGTH, length=LENGTH, method="HEAD", content=b""),
    Shape("counted-304", Framing.NONE, 304, length=LENGTH, fields=(("If-None-Match", ETAG),), content=b""),
    Shape("counted-412", Framing.LENGTH, 412, length=LENGTH, fields=(("If-Match", '"x"'),), content=b""),
    Shape("counted-not-seekable", Framing.LENGTH, length=LENGTH, fields=(("Range", "bytes=0-9"),)),
    Shape("counted-404", Framing.LENGTH, 404, length=LENGTH, own_status=404, fields=(("If-None-Match", ETAG),)),
    Shape("range", Framing.LENGTH, 206, LENGTH, True, (("Range", "bytes=500-1999"),), content=DATA[500:2000]),
    Shape("416", Framing.LENGTH, 416, LENGTH, True, (("Range", "bytes=10000-"),), content=b""),
    Shape("chunked", Framing.CHUNKED),
    Shape("chunked-range", Framing.CHUNKED, fields=(("Range", "bytes=0-9"),)),
    Shape("close", Framing.CLOSE, version=10, connection=Connection.CLOSE),
    Shape("head", Framing.NONE, method="HEAD", content=b""),
    Shape("304", Framing.NONE, 304, fields=(("If-None-Match", "*"),), content=b""),
    Shape("412", Framing.LENGTH, 412, fields=(("If-Match", '"x"'),), content=b""),
    Shape("204", Framing.NONE, 204, own_status=204, content=b""),
    Shape("500", Framing.CHUNKED, 500, own_status=500),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_framing(pair: tuple[socket.socket, socket.socket], shape: Shape) -> None:
    """Head, content and outcome are what the decision tells, whatever the content is asked for."""
    pipe = Pipe(*pair)
    with Stream(
        pipe.server,
        get(*shape.fields, method=shape.method, version=shape.version),
        length=shape.length,
        seekable=shape.seekable,
        etag=ETAG,
        last_modified=784111777,
        status=shape.own_status,
    ) as stream:
        assert stream.decision.status == shape.status
        assert stream.decision.framing is shape.framing
        fill(stream, DATA)
        result = stream.end()
        assert result == stream.result
    assert result.connection is shape.connection
    assert result.http_status == shape.status
    assert result.body_sent == result.body_length == len(shape.content)
    status, fields, body = split(pipe.received())
    assert status == shape.status
    assert fields.get("transfer-encoding") == ("chunked" if shape.framing is Framing.CHUNKED else None)
    assert ("content-length" in fields) == (shape.framing is Framing.LENGTH)
    assert fields.get("accept-ranges") == ("bytes" if shape.seekable and status in (200, 206) else None)
    if shape.framing is Framing.CHUNKED:
        chunks, behind = dechunk(body)
        assert {len(chunk) for chunk in chunks[:-1]} == {997} and behind == b"\r\n"
        body = b"".join(chunks)
    elif shape.framing is Framing.LENGTH:
        expected = LENGTH if shape.method == "HEAD" else len(shape.content)
        assert fields["content-length"] == str(expected)
    assert body == shape.content


def test_several_ranges(open_pipe: Callable[[], Pipe]) -> None:
    """They are asked for one after the other; a write may go on from one to the next."""
    bodies = []
    for size in (7, 100, 1505):
        pipe = open_pipe()
        request = get(("Range", "bytes=9000-9999,5-9,2000-2499"))
        with Stream(pipe.server, request, length=LENGTH, seekable=True, seed=1) as stream:
            assert stream.decision.ranges == ((9000, 1000), (5, 5), (2000, 500))
            wanted = DATA[9000:] + DATA[5:10] + DATA[2000:2500]
            for at in range(0, len(wanted), size):
                stream.write(wanted[at : at + size])
            assert stream.next()[1] == 0
        _, fields, body = split(pipe.received())
        assert len(body) == int(fields["content-length"])
        bodies.append(body)
    boundary = fields["content-type"].partition("boundary=")[2].encode()
    expected = b""
    for first, last in ((9000, 9999), (5, 9), (2000, 2499)):
        expected += b"\r\n--%b\r\nContent-Range: bytes %d-%d/10000\r\n\r\n" % (boundary, first, last)
        expected += DATA[first : last + 1]
    assert bodies == [expected[2:] + b"\r\n--" + boundary + b"--\r\n"] * 3


def test_heads_of_others(open_pipe: Callable[[], Pipe]) -> None:
    """A head as bytes, CGI's, or none: content is framed as the decision says."""
    for head, before in ((HeadForm.NONE, b""), (b"HTTP/1.1 200 Mine\r\n\r\n", b"HTTP/1.1 200 Mine\r\n\r\n")):
        pipe = open_pipe()
        with Stream(pipe.server, get(), head=head) as stream:
            assert stream.decision.framing is Framing.CHUNKED
            stream.write(b"abc")
        assert pipe.received() == before + b"3\r\nabc\r\n0\r\n\r\n"
    pipe = open_pipe()
    with Stream(pipe.server, get(), head=HeadForm.CGI) as stream:
        assert stream.decision.framing is Framing.CLOSE
        stream.write(b"abc")
    received = pipe.received()
    assert received.startswith(b"Status: 200 OK\r\n") and received.endswith(b"\r\n\r\nabc")
    assert b"Transfer-Encoding" not in received


@pytest.mark.parametrize("row", [row for row in rows.load() if row.length <= 100_000], ids=str)
def test_row_as_memory(open_pipe: Callable[[], Pipe], row: rows.Row) -> None:
    """A stream that can seek, and is given what it asks for, sends the same bytes as memory does."""
    content = (DATA * (row.length // LENGTH + 1))[: row.length]
    tag = rows.entity_tag(784111777 * 10**9, row.length)
    arguments: dict[str, Any] = {
        "headers": [
            (
                name.encode("latin-1"),
                value.encode("latin-1"),
                sendgate.Rule[rule.upper()] | (sendgate.Rule.FROZEN if frozen else 0),
            )
            for name, value, rule, frozen in row.headers
        ],
        "content_type": row.content_type,
        "status": row.status,
        "max_ranges": row.max_ranges,
        "close": row.close,
        "now": row.now,
        "seed": 1,
        "etag": tag,
        "last_modified": 784111777,
    }
    request = Request(row.method, row.version, row.request_fields(tag), has_body=row.body or None)
    memory, produced = open_pipe(), open_pipe()
    result: sendgate.Result | None
    try:
        result = sendgate.respond(memory.server, request, content, **arguments)
    except sendgate.SendgateError as error:
        with pytest.raises(type(error)):
            Stream(produced.server, request, length=row.length, seekable=True, **arguments)
        result = None
    else:
        with Stream(produced.server, request, length=row.length, seekable=True, **arguments) as stream:
            fill(stream, content, 100)
            assert stream.end() == result
    sent = memory.received()
    assert bool(sent) == (result is not None)
    assert produced.received() == sent


# ---- When it arrives ----


@pytest.mark.parametrize("nodelay", [False, True], ids=["nagle", "nodelay"])
@pytest.mark.parametrize("blocking", [False, True], ids=["non-blocking", "blocking"])
def test_each_piece_is_there_before_the_next_is_made(blocking: bool, nodelay: bool) -> None:
    """What was written can be read as a whole, while nothing else exists yet. The socket's options stay."""
    server, client = tcp_pair()
    with server, client:
        client.settimeout(20)
        server.setblocking(blocking)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        with Stream(server, get()) as stream:
            assert stream.write(b"") == 0
            assert b"Transfer-Encoding: chunked" in read_head(client)
            for piece in PIECES:
                stream.write(piece)
                framed = b"%x\r\n%b\r\n" % (len(piece), piece)
                assert read(client, len(framed)) == framed
                assert stream.result.connection is Connection.BROKEN
        assert read(client, 5) == b"0\r\n\r\n"
        assert bool(server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
        assert server.getblocking() is blocking


def test_the_first_piece_takes_the_head_with_it(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nothing is sent before."""
    server, client = pair
    stream = Stream(server, get(), length=3)
    assert has_nothing(client)
    assert stream.result.connection is Connection.UNTOUCHED
    stream.write(b"abc")
    received = client.recv(1000)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n") and received.endswith(b"\r\n\r\nabc")
    assert stream.end().connection is Connection.REUSABLE
    stream.close()


def test_one_response_after_the_other(pair: tuple[socket.socket, socket.socket]) -> None:
    """On one connection, of every kind that leaves it reusable."""
    pipe = Pipe(*pair)
    expected = b""
    for n in range(20):
        with Stream(pipe.server, get(), length=4 if n % 2 else None, now=1_700_000_000) as stream:
            stream.write(b"%04d" % n)
            head = stream.decision.head
        expected += head + (b"%04d" if n % 2 else b"4\r\n%04d\r\n0\r\n\r\n") % n
    assert pipe.received() == expected


def test_any_buffer(open_pipe: Callable[[], Pipe]) -> None:
    """Pieces are bytes, or whatever has contiguous bytes; all else is a TypeError or BufferError that harms nothing."""
    pipe = open_pipe()
    anonymous = mmap.mmap(-1, 4)
    anonymous[:] = b"mmap"
    with Stream(pipe.server, get()) as stream:
        for piece in (b"bytes", bytearray(b"array"), memoryview(b"view"), array.array("I", [0, 1]), anonymous):
            assert stream.write(piece) == memoryview(piece).nbytes
        for wrong in ("text", 5, None, [b"a"]):
            with pytest.raises(TypeError):
                stream.write(wrong)  # type: ignore[arg-type]
        with pytest.raises((BufferError, ValueError)):
            stream.write(memoryview(b"abcdef")[::2])
    anonymous.close()
    chunks, _ = dechunk(split(pipe.received())[2])
    assert chunks == [b"bytes", b"array", b"view", struct.pack("II", 0, 1), b"mmap"]


# ---- Trailers ----


def test_trailers(open_pipe: Callable[[], Pipe]) -> None:
    """Behind chunks as pairs or a mapping; where there is no place for them they are dropped."""
    pairs = [("Content-Digest", "x"), (b"X-Bytes", b"\xff")]
    for trailers, lines in ((pairs, b"Content-Digest: x\r\nX-Bytes: \xff\r\n"), ({"A": "b"}, b"A: b\r\n"), ((), b"")):
        pipe = open_pipe()
        with Stream(pipe.server, get()) as stream:
            stream.write(b"x")
            stream.end(trailers)  # type: ignore[arg-type]
        assert dechunk(split(pipe.received())[2]) == ([b"x"], lines + b"\r\n")
        pipe = open_pipe()
        with Stream(pipe.server, get(), length=1) as stream:
            stream.write(b"x")
            stream.end(trailers)  # type: ignore[arg-type]
        assert split(pipe.received())[2] == b"x"


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Set-Cookie", "Trailer", "a b", ""])
def test_refused_trailers(open_pipe: Callable[[], Pipe], name: str) -> None:
    """What has to be known before the content, or is malformed, is refused; the stream is as before."""
    pipe = open_pipe()
    with Stream(pipe.server, get()) as stream:
        stream.write(b"x")
        with pytest.raises(sendgate.FieldError):
            stream.end([("A", "b"), (name, "1")])
        with pytest.raises(sendgate.FieldError):
            stream.end({"A": "b\r\nC: d"})
        stream.write(b"y")
        assert stream.end({"A": "b"}).connection is Connection.REUSABLE
    assert dechunk(split(pipe.received())[2]) == ([b"x", b"y"], b"A: b\r\n\r\n")


# ---- What goes wrong ----


@pytest.mark.parametrize("before", [0, 5, 10])
def test_more_than_was_announced(open_pipe: Callable[[], Pipe], before: int) -> None:
    """ExcessError, nothing of it is sent, and nothing is any more."""
    pipe = open_pipe()
    stream = Stream(pipe.server, get(), length=10)
    if before:
        stream.write(DATA[:before])
    with pytest.raises(sendgate.ExcessError) as caught:
        stream.write(DATA[before:11])
    assert caught.value.result is not None
    assert caught.value.result.connection is (Connection.BROKEN if before else Connection.UNTOUCHED)
    for again in (lambda: stream.write(b"x"), stream.end):
        with pytest.raises(sendgate.ExcessError):
            again()
    stream.close()
    assert (pipe.received().partition(b"\r\n\r\n")[2]) == DATA[:before]


def test_less_than_was_announced(open_pipe: Callable[[], Pipe]) -> None:
    """TruncatedError, also from the end of the context; an answer that nobody has seen can be another one."""
    pipe = open_pipe()
    with pytest.raises(sendgate.TruncatedError) as caught, Stream(pipe.server, get(), length=10) as stream:
        stream.write(b"123456789")
    assert caught.value.result is not None and caught.value.result.connection is Connection.BROKEN
    pipe = open_pipe()
    with pytest.raises(sendgate.TruncatedError) as caught, Stream(pipe.server, get(), length=10):
        pass
    assert caught.value.result is not None and caught.value.result.connection is Connection.UNTOUCHED
    sendgate.respond(pipe.server, get(), b"failed", status=500)
    assert split(pipe.received())[::2] == (500, b"failed")


def test_a_producer_that_fails(open_pipe: Callable[[], Pipe]) -> None:
    """Its exception leaves the context, and the response stays cut short."""
    pipe = open_pipe()
    with pytest.raises(ZeroDivisionError), Stream(pipe.server, get()) as stream:
        stream.write(b"x")
        stream.write(b"%d" % (1 // 0))
    with pytest.raises(ValueError, match="closed"):
        stream.write(b"y")
    assert pipe.received().endswith(b"\r\n\r\n1\r\nx\r\n")


@pytest.mark.parametrize("wait", [True, False])
def test_a_client_that_left(pair: tuple[socket.socket, socket.socket], wait: bool) -> None:
    """PeerClosedError, and no signal; every further call says the same."""
    server, client = pair
    stream = Stream(server, get(), wait=wait)
    stream.write(b"x")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    with pytest.raises(sendgate.PeerClosedError) as caught:
        while True:
            stream.write(DATA)
    assert isinstance(caught.value, ConnectionError) and caught.value.errno
    assert caught.value.result is not None and caught.value.result.connection is Connection.BROKEN
    for again in (lambda: stream.write(b"x"), stream.end):
        with pytest.raises(sendgate.PeerClosedError):
            again()
    stream.close()


@pytest.mark.parametrize("arguments", [{"timeout": 0.2}, {"total_timeout": 0.2}, {"timeout": 0.2, "min_rate": 10**9}])
@pytest.mark.parametrize("blocking", [False, True], ids=["non-blocking", "blocking"])
def test_a_client_that_does_not_read(
    pair: tuple[socket.socket, socket.socket], blocking: bool, arguments: dict[str, Any]
) -> None:
    """ResponseTimeoutError; the mode of the socket is as it was."""
    server, _ = pair
    server.setblocking(blocking)
    begun = time.monotonic()
    stream = Stream(server, get(), **arguments)
    with pytest.raises(sendgate.ResponseTimeoutError) as caught:
        while True:
            stream.write(DATA * 100)
    assert 0.15 < time.monotonic() - begun < 10
    assert caught.value.result is not None and caught.value.result.connection is Connection.BROKEN
    assert server.getblocking() is blocking
    stream.close()


def test_arguments() -> None:
    """What can't be is refused at once, and nothing is sent."""
    server, client = socket.socketpair()
    with server, client:
        wrong: list[tuple[dict[str, Any], type[Exception]]] = [
            ({"seekable": True}, sendgate.ArgumentError),
            ({"length": -1}, ValueError),
            ({"length": 2**63}, ValueError),
            ({"status": 99}, sendgate.ArgumentError),
            ({"etag": "x"}, sendgate.FieldError),
            ({"headers": [("Content-Length", "5")]}, sendgate.FieldError),
            ({"headers": [("Content-Length", "5")], "length": 6}, sendgate.FieldError),
            ({"headers": [("Transfer-Encoding", "chunked")]}, sendgate.FieldError),
            ({"timeout": -1}, ValueError),
            ({"total_timeout": -1}, ValueError),
            ({"min_rate": -1}, ValueError),
        ]
        for arguments, error in wrong:
            with pytest.raises(error):
                Stream(server, get(), **arguments)
        with pytest.raises(TypeError):
            Stream("socket", get())  # type: ignore[arg-type]
        assert has_nothing(client)


# ---- Without waiting ----


@pytest.mark.parametrize("length", [None, 3_000_000])
@pytest.mark.parametrize("blocking", [False, True], ids=["non-blocking", "blocking"])
def test_without_waiting(pair: tuple[socket.socket, socket.socket], blocking: bool, length: int | None) -> None:
    """What the socket doesn't take is written again, until nothing is left of it; then the end, in the same way."""
    server, client = pair
    server.setblocking(blocking)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    data = DATA * 300
    received = bytearray()
    stream = Stream(server, get(), length=length, wait=False, timeout=0.001, total_timeout=0.001)
    waited = 0

    def take() -> None:
        """Wait until the socket takes bytes again, as an event loop would, with a client that reads."""
        nonlocal waited
        waited += 1
        while not (ready := select.select([client], [server], [], 20))[1]:
            assert ready[0], "never writable again"
            received.extend(client.recv(100_000))

    for at in range(0, len(data), 1_000_000):
        rest = memoryview(data)[at : at + 1_000_000]
        while True:
            rest = rest[stream.write(rest) :]
            if stream.waits_for is Step.DONE:
                break
            assert stream.waits_for is Step.WANT_WRITE
            assert stream.result.connection is Connection.BROKEN
            take()
        assert not rest
    while stream.end({"X-End": "yes"}).status != Step.DONE:
        assert stream.waits_for is Step.WANT_WRITE
        take()
    assert stream.waits_for is Step.DONE
    assert waited > 2
    assert stream.result.connection is Connection.REUSABLE
    stream.close()
    server.close()
    while piece := client.recv(1 << 20):
        received.extend(piece)
    _, _, body = split(bytes(received))
    if length is None:
        chunks, behind = dechunk(body)
        assert [len(chunk) for chunk in chunks] == [1_000_000] * 3
        assert behind == b"X-End: yes\r\n\r\n"
        body = b"".join(chunks)
    assert body == data


def test_an_end_within_a_chunk(pair: tuple[socket.socket, socket.socket]) -> None:
    """What was announced has to be written: TruncatedError."""
    stream = Stream(pair[0], get(), wait=False)
    while stream.waits_for is Step.DONE:
        taken = stream.write(DATA * 100)
    assert taken < len(DATA * 100)
    with pytest.raises(sendgate.TruncatedError):
        stream.end()
    stream.close()


def test_a_context_without_waiting_is_not_left_in_silence() -> None:
    """Where the end has to wait, leaving the context raises instead of cutting the response short."""
    server, client = socket.socketpair()
    with server, client:
        server.setblocking(False)
        with pytest.raises(sendgate.BlockingSocketError) as caught, Stream(server, get(), wait=False) as stream:
            stream.write(b"x")
            with contextlib.suppress(BlockingIOError):
                while True:
                    server.send(b"in the way of the last chunk")
        assert caught.value.result is not None
        assert caught.value.result.connection is Connection.BROKEN


# ---- TLS ----


class Tls:
    """A server's and a client's end of a TLS connection."""

    def __init__(self, certificate: tuple[Path, Path]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        trust = ssl.create_default_context(cafile=str(certificate[0]))
        server, client = tcp_pair()
        result: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: result.append(trust.wrap_socket(client, server_hostname="localhost")))
        thread.start()
        self.server = context.wrap_socket(server, server_side=True)
        thread.join(20)
        self.client = result[0]
        self.client.settimeout(20)

    def __enter__(self) -> Tls:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.client.close()


@pytest.mark.parametrize("mode", [None, 5.0, 0.0], ids=["blocking", "timeout", "non-blocking"])
def test_tls(certificate: tuple[Path, Path], mode: float | None) -> None:
    """Each piece can be decrypted before the next is made; the socket's mode is as it was."""
    with Tls(certificate) as tls:
        tls.server.settimeout(mode)
        with Stream(tls.server, get()) as stream:
            stream.write(b"")
            read_head(tls.client)
            for piece in PIECES:
                stream.write(piece)
                framed = b"%x\r\n%b\r\n" % (len(piece), piece)
                assert read(tls.client, len(framed)) == framed
            assert stream.end({"A": "b"}).connection is Connection.REUSABLE
        assert read(tls.client, 11) == b"0\r\nA: b\r\n\r\n"
        assert tls.server.gettimeout() == mode


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("length", [None, 2_000_000])
def test_tls_with_much_content(certificate: tuple[Path, Path], length: int | None, wait: bool) -> None:
    """More than a record, and than the socket takes."""
    with Tls(certificate) as tls:
        tls.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        if not wait:
            tls.server.setblocking(False)
        # Without waiting the client reads once there is something to wait for.
        pipe = Pipe(tls.server, tls.client) if wait else None
        data = DATA * 200
        with Stream(tls.server, get(), length=length, wait=wait) as stream:
            rest = memoryview(data)
            while True:
                rest = rest[stream.write(rest) :]
                if stream.waits_for is Step.DONE:
                    break
                assert not wait
                pipe = pipe or Pipe(tls.server, tls.client)
                assert select.select([], [tls.server], [], 20)[1]
            assert not rest
            while stream.end().status != Step.DONE:
                assert select.select([], [tls.server], [], 20)[1]
        assert pipe is not None
        body = split(pipe.received())[2]
        if length is None:
            chunks, behind = dechunk(body)
            assert len(chunks) == 1 and behind == b"\r\n"
            body = chunks[0]
        assert body == data


def test_tls_that_would_wait(certificate: tuple[Path, Path]) -> None:
    """wait=False needs a socket whose own send() doesn't wait."""
    with Tls(certificate) as tls:
        for timeout in (None, 1.0):
            tls.server.settimeout(timeout)
            with pytest.raises(sendgate.BlockingSocketError):
                Stream(tls.server, get(), wait=False)


def test_tls_client_that_left(certificate: tuple[Path, Path]) -> None:
    """PeerClosedError, as without TLS."""
    with Tls(certificate) as tls:
        stream = Stream(tls.server, get())
        stream.write(b"x")
        tls.client.close()
        with pytest.raises(sendgate.PeerClosedError):
            while True:
                stream.write(DATA)
        stream.close()


# ---- Handles ----


def test_close() -> None:
    """Again does nothing; what comes after it is a ValueError; the socket stays open."""
    server, client = socket.socketpair()
    with server, client:
        stream = Stream(server, get(), length=1)
        stream.close()
        stream.close()
        for call in (stream.next, lambda: stream.write(b"x"), stream.end):
            with pytest.raises(ValueError, match="closed"):
                call()
        assert stream.decision.status == 200
        server.sendall(b"still open")
        assert client.recv(100) == b"still open"
        # A context that is left has no second end.
        with Stream(server, get(), length=1) as stream:
            stream.write(b"x")
            stream.close()


def test_after_the_end() -> None:
    """Ending again says the same; writing is an ArgumentError."""
    server, client = socket.socketpair()
    with server, client, Stream(server, get(), length=1) as stream:
        stream.write(b"x")
        result = stream.end()
        assert stream.end() == stream.end({"A": "b"}) == result
        for call in (stream.next, lambda: stream.write(b"")):
            with pytest.raises(sendgate.ArgumentError):
                call()


def test_nothing_is_left(certificate: tuple[Path, Path], pair: tuple[socket.socket, socket.socket]) -> None:
    """One that is dropped goes away at once, with all that it holds; the socket is not closed by that."""
    with Tls(certificate) as tls:
        for sock in (pair[0], tls.server):
            stream = Stream(sock, get(), headers=[("X", "y")])
            stream.write(b"x")
            gone = weakref.ref(stream)
            del stream
            assert gone() is None
            assert sock.fileno() >= 0


def test_two_threads(pair: tuple[socket.socket, socket.socket]) -> None:
    """While one waits for the client, others run, and a second call is a BusyError that harms nothing."""
    server, client = pair
    stream = Stream(server, get(), length=20_000_000)
    data = DATA * 2000
    written: list[int] = []
    thread = threading.Thread(target=lambda: written.append(stream.write(data)))
    thread.start()
    received = bytearray(client.recv(1))  # it has begun, and can't be through
    for call in (lambda: stream.write(b"x"), stream.next, stream.end, stream.close):
        with pytest.raises(sendgate.BusyError):
            call()
    while len(received) < len(data):
        received += client.recv(1 << 20)
    thread.join(20)
    assert written == [len(data)]
    stream.end()
    stream.close()
    server.close()
    while piece := client.recv(1 << 20):
        received += piece
    assert split(bytes(received))[2] == data


# ---- Fields ----


def test_frozen_fields(open_pipe: Callable[[], Pipe]) -> None:
    """A frozen absence of the entity tag means no 304; a frozen field is sent with any answer."""
    matches = get(("If-None-Match", ETAG))
    for frozen in (False, True):
        headers = sendgate.Headers([("Content-Language", "de")])
        if frozen:
            headers.freeze("ETag")
            headers.freeze("Content-Language")
        pipe = open_pipe()
        with Stream(pipe.server, matches, headers=headers, etag=ETAG) as stream:
            assert stream.decision.status == (200 if frozen else 304)
            stream.write(b"x")
        status, fields, _ = split(pipe.received())
        assert (status, fields.get("etag")) == ((200, None) if frozen else (304, ETAG))
        assert fields.get("content-language") == ("de" if frozen else None)
        # Content-Language is dropped from a 412, unless it is frozen.
        pipe = open_pipe()
        with Stream(pipe.server, get(("If-Match", '"x"')), headers=headers, length=1) as stream:
            assert stream.decision.status == 412
            stream.write(b"x")
        assert split(pipe.received())[1].get("content-language") == ("de" if frozen else None)
