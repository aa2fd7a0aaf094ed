"""``sendgate.asyncio`` on asyncio's loop and on uvloop, with real sockets and TLS."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import gc
import inspect
import io
import mimetypes
import mmap
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import uvloop

import rows
import sendgate
import sendgate.asyncio
from sendgate import Completion, Connection, Request, Result, Sender
from support import Pipe, library_threads, split, tcp_pair, wait_until

BIG = 8 << 20  # more than a socket's buffers hold
#: What is far too long for anything here.
LONG = 30

Run = Callable[[Coroutine[Any, Any, Any]], Any]
RUNS: dict[str, Run] = {
    "asyncio": asyncio.run,
    "uvloop": uvloop.run,
    "debug": lambda main: asyncio.run(main, debug=True),
}
if sys.version_info >= (3, 12):

    async def eagerly(main: Coroutine[Any, Any, Any]) -> Any:
        """Tasks that begin in create_task."""
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        return await asyncio.create_task(main)

    RUNS["eager"] = lambda main: asyncio.run(eagerly(main))

#: For tests that run in asyncio's debug mode, and with eager tasks, as well.
in_every_way = pytest.mark.parametrize("run", list(RUNS), indirect=True)

# libuv's first loop opens a pipe that stays.
uvloop.run(asyncio.sleep(0))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine in a loop of its own, within a time, and has everything collected that the loop had."""

    def start(main: Coroutine[Any, Any, Any]) -> Any:
        async def within_a_time() -> Any:
            return await asyncio.wait_for(main, LONG)

        return RUNS[request.param](within_a_time())

    yield start
    gc.collect()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of 8 MiB."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(BIG))
    return path


class Streams:
    """A connection: the server's end as a StreamWriter, the client's as a socket."""

    def __init__(self, family: str = "tcp", buffer: int | None = None) -> None:
        self.server, self.client = tcp_pair() if family == "tcp" else socket.socketpair()
        if buffer is not None:
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

    async def __aenter__(self) -> Streams:
        self.reader, self.writer = await asyncio.open_connection(sock=self.server)
        self.transport: Any = self.writer.transport
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.transport.is_closing():
            self.transport.abort()
        self.client.close()
        # connection_lost, which closes the socket, comes one or two rounds later.
        for _turn in range(5):
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Close the server's end once its buffer is written."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def rest(self) -> bytes:
        """Close the server's end, and return all that the client gets until then."""
        reading = asyncio.ensure_future(asyncio.to_thread(read_all, self.client))
        await self.close()
        return await reading


def read_all(client: socket.socket) -> bytes:
    """Until the end."""
    client.settimeout(LONG)
    chunks = []
    while chunk := client.recv(1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def read_slowly(client: socket.socket, count: int) -> bytes:
    """So many bytes, with breaks."""
    client.settimeout(LONG)
    data = bytearray()
    while len(data) < count:
        chunk = client.recv(min(200_000, count - len(data)))
        assert chunk
        data += chunk
        time.sleep(0.001)
    return bytes(data)


async def begun(client: socket.socket) -> None:
    """Wait until something has arrived."""
    readable, _, _ = await asyncio.to_thread(select.select, [client], [], [], LONG)
    assert readable


def reset(client: socket.socket) -> None:
    """Close so that the other end gets ECONNRESET."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def watched(fd: int) -> bool:
    """Whether an epoll instance of this process watches the descriptor."""
    for entry in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            if f"tfd: {fd:8} " in entry.read_text():
                return True
    return False


# ---- The package ----


def test_asyncio_is_not_imported_unasked() -> None:
    """import sendgate stays fast."""
    program = "import sendgate, sys; sys.exit('asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=LONG)


def test_one_set_of_arguments() -> None:
    """What respond takes by keyword is what the others take, with the same defaults where they name it."""
    from sendgate import _types

    def named(function: Any, *more: str) -> dict[str, Any]:
        found = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY and p.name not in more}

    of_respond = named(sendgate.respond)
    assert set(of_respond) == set(_types.Arguments.__annotations__)
    watched = {name: of_respond[name] for name in ("timeout", "total_timeout", "min_rate")}
    assert set(of_respond) - set(watched) == set(_types.ExchangeArguments.__annotations__)
    assert named(sendgate.asyncio.respond, "sender") == watched
    assert named(Sender.submit, "token", "try_now") == watched
    with pytest.raises(TypeError, match="no_such_argument"):
        sendgate.decide(None, b"", no_such_argument=1)
    made = named(sendgate._core._Exchange)
    assert made == {name: of_respond[name] for name in made}
    assert set(made) == set(_types.ExchangeArguments.__annotations__)


def test_all_that_is_public_is_documented() -> None:
    """Every public name has a docstring."""
    assert set(sendgate.asyncio.__all__) == {"aclose", "respond"}
    for name in sendgate.asyncio.__all__:
        assert inspect.getdoc(getattr(sendgate.asyncio, name)), name


# ---- The rows of tests/cases ----


async def serve_rows(folder: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests for the files of a folder."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        while True:
            request = Request.from_head(await reader.readuntil(b"\r\n\r\n"))
            assert request is not None and request.target is not None
            content_type, _ = mimetypes.guess_type(request.target)
            with sendgate.open_beneath(directory, request.target.lstrip("/")) as file:
                result = await sendgate.asyncio.respond(writer, request, file, content_type=content_type)
            if result.connection is not Connection.REUSABLE:
                break
    except asyncio.IncompleteReadError:
        pass
    finally:
        os.close(directory)
        writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is served."""
    return tmp_path_factory.mktemp("folder")


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def port(request: pytest.FixtureRequest, folder: Path) -> Iterator[int]:
    """A server in a thread, for all rows."""
    ready: Any = []
    started = threading.Event()

    async def main() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve_rows(folder, reader, writer)

        stop = asyncio.Event()
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        # The loop's sender is there before the tests count descriptors.
        for end in (ends := socket.socketpair()):
            await sendgate.asyncio.respond(end, None, b"")
        for end in ends:
            end.close()
        ready.extend([server.sockets[0].getsockname()[1], asyncio.get_running_loop(), stop])
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=RUNS[request.param], args=[main()])
    thread.start()
    assert started.wait(LONG)
    port, loop, stop = ready
    yield port
    loop.call_soon_threadsafe(stop.set)
    thread.join(LONG)


@pytest.mark.parametrize("row", [row for row in rows.load() if row.values_only is None], ids=str)
def test_row(row: rows.Row, folder: Path, port: int) -> None:
    """The answer is what the row expects, and leaves the connection in step."""
    path = rows.make_file(folder, row)
    try:
        tag = rows.file_tag(path)
        request = rows.build_request(row, f"/{path.name}", "localhost", tag)
        response = rows.fetch(("127.0.0.1", port), request, probe=rows.probe(f"/{path.name}"))
        rows.check(row, response, etag=tag)
    finally:
        path.unlink()


# ---- What can be answered on, and with what ----


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("target", ["writer", "transport", "blocking", "non-blocking", "descriptor"])
def test_targets(run: Run, target: str, family: str, big: Path) -> None:
    """A StreamWriter, a transport, or a socket; each gets every byte, and the task is not done before."""

    async def main() -> None:
        async with Streams(family) as streams:
            server, client = tcp_pair() if family == "tcp" else socket.socketpair()
            with server, client:
                server.setblocking(target == "blocking")
                given: Any = {"writer": streams.writer, "transport": streams.transport, "descriptor": server.fileno()}
                reader = client if target not in ("writer", "transport") else streams.client
                task = asyncio.ensure_future(
                    sendgate.asyncio.respond(given.get(target, server), None, big, content_type="text/x")
                )
                done, _ = await asyncio.wait({task}, timeout=0.05)
                assert not done
                data = await asyncio.to_thread(read_slowly, reader, BIG)
                result = await task
                assert (result.status, result.connection, result.body_sent) == (0, Connection.REUSABLE, BIG)
                if reader is client:
                    assert os.get_blocking(server.fileno()) is (target == "blocking")
                    server.close()
                    data += await asyncio.to_thread(read_all, client)
                else:
                    data += await streams.rest()
                assert len(data) == result.head_sent + BIG
                status, fields, body = split(data)
                assert (status, fields["content-type"], body) == (200, "text/x", big.read_bytes())

    run(main())


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "mmap", "BytesIO", "File", "int"])
def test_what_can_be_sent(run: Run, kind: str, big: Path) -> None:
    """As for respond; memory isn't copied."""

    async def main() -> None:
        with contextlib.ExitStack() as stack:
            data = big.read_bytes()
            if kind == "mmap":
                opened = stack.enter_context(big.open("rb"))
                file: Any = stack.enter_context(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
            elif kind == "int":
                file = stack.enter_context(big.open("rb")).fileno()
            elif kind == "File":
                directory = os.open(big.parent, os.O_RDONLY)
                stack.callback(os.close, directory)
                file = stack.enter_context(sendgate.open_beneath(directory, big.name))
            else:
                make: Any = {"BytesIO": io.BytesIO, "memoryview": memoryview, "bytearray": bytearray, "bytes": bytes}
                file = make[kind](data)
            async with Streams() as streams:
                reading = asyncio.ensure_future(asyncio.to_thread(read_all, streams.client))
                request = Request("GET", 11, [("Range", "bytes=1000-")])
                result = await sendgate.asyncio.respond(streams.writer, request, file, etag='"x"')
                assert result.http_status == 206
                if kind == "bytearray":
                    file += b"x"
                await streams.close()
                assert split(await reading)[2] == data[1000:]

    run(main())


@in_every_way
def test_small_answers_need_no_waiting(run: Run) -> None:
    """What is in memory and fits leaves in the loop's thread, before anything else runs."""

    async def main() -> None:
        async with Streams() as streams:
            for number in range(50):
                answer = sendgate.asyncio.respond(streams.writer, None, b"%d" % number)
                with pytest.raises(StopIteration) as stop:
                    answer.send(None)
                result = stop.value.value
                assert isinstance(result, Result)
                assert result.connection is Connection.REUSABLE
            received = await streams.rest()
            assert received.count(b"HTTP/1.1 200 OK") == 50
            assert received.endswith(b"\r\n\r\n49")

    run(main())


@in_every_way
def test_many_downloads_at_once(run: Run, tmp_path: Path) -> None:
    """200 clients of one server get 200 files, each its own."""
    # Some of them are more than leaves at once.
    bodies = [os.urandom((150_000 if number % 10 else 2_000_000) + number) for number in range(200)]
    for number, body in enumerate(bodies):
        (tmp_path / str(number)).write_bytes(body)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_rows(tmp_path, reader, writer)

    async def download(port: int, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % number)
        status, _, body = split(await reader.read())
        assert (status, body == bodies[number]) == (200, True), number
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=300)
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(download(port, number) for number in range(200)))
        server.close()

    run(main())


@in_every_way
def test_others_run_meanwhile(run: Run, big: Path) -> None:
    """A download to a client that doesn't read keeps neither the loop nor other downloads waiting."""

    async def main() -> None:
        async with Streams() as stalled, Streams() as other:
            task = asyncio.ensure_future(sendgate.asyncio.respond(stalled.writer, None, big))
            for _ in range(1000):
                await asyncio.sleep(0)
            pipe = Pipe(socket.socket(), other.client)
            result = await sendgate.asyncio.respond(other.writer, None, big)
            assert result.body_sent == BIG
            await other.close()
            assert split(await asyncio.to_thread(pipe.received))[2] == big.read_bytes()
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


# ---- What a transport still has to write ----


class Recorder(asyncio.Protocol):
    """Records what it is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.calls: list[str] = []

    def connection_made(self, transport: Any) -> None:
        """The first of all."""
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        """From the client."""
        self.received += data

    def pause_writing(self) -> None:
        """The buffer is full."""
        self.calls.append("pause")

    def resume_writing(self) -> None:
        """It isn't any more."""
        self.calls.append("resume")

    def eof_received(self) -> bool:
        """The client sends no more; the connection is to stay."""
        self.calls.append("eof")
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """The last of all."""
        self.calls.append("lost")


class BufferedRecorder(asyncio.BufferedProtocol):
    """The same, with a buffer of its own."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.calls: list[str] = []
        self.buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where to put the client's bytes."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        self.received += self.buffer[:nbytes]

    connection_made: Any = Recorder.connection_made
    pause_writing: Any = Recorder.pause_writing
    resume_writing: Any = Recorder.resume_writing
    eof_received: Any = Recorder.eof_received
    connection_lost: Any = Recorder.connection_lost


@pytest.mark.parametrize("limits", [None, (5000, 1000), (0, 0), (1 << 30, 0)], ids=str)
@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_what_was_written_before_goes_first(run: Run, kind: Any, limits: Any, big: Path) -> None:
    """The transport's buffer is flushed; its protocol, which hears everything meanwhile, and limits are as before."""
    before = os.urandom(10 << 20)

    async def main() -> None:
        server, client = tcp_pair()
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(kind, sock=server)
        if limits is not None:
            transport.set_write_buffer_limits(high=limits[0], low=limits[1])
        as_before = transport.get_write_buffer_limits()
        transport.write(before)
        assert transport.get_write_buffer_size() > 0
        task = asyncio.ensure_future(sendgate.asyncio.respond(transport, None, big, content_type="text/x"))
        client.sendall(b"next request")
        while protocol.received != b"next request":
            await asyncio.sleep(0.001)
        assert transport.get_write_buffer_size() > 0
        client.shutdown(socket.SHUT_WR)
        while "eof" not in protocol.calls:
            await asyncio.sleep(0.001)
        data = await asyncio.to_thread(read_slowly, client, len(before) + BIG)
        result = await task
        assert transport.get_protocol() is protocol
        assert transport.get_write_buffer_limits() == as_before
        assert transport.get_write_buffer_size() == 0
        transport.write(b"behind it")
        transport.close()
        data += await asyncio.to_thread(read_all, client)
        client.close()
        while "lost" not in protocol.calls:
            await asyncio.sleep(0)
        assert data.startswith(before + b"HTTP/1.1 200 OK\r\n")
        assert data.endswith(b"behind it")
        assert split(data[len(before) : -len(b"behind it")])[2] == big.read_bytes()
        assert result.connection is Connection.REUSABLE
        # Told to wait, and to go on: once each, in turns, and not left waiting.
        flow = [call for call in protocol.calls if call in ("pause", "resume")]
        assert flow == ["pause", "resume"] * (len(flow) // 2)
        assert protocol.calls.count("eof") == protocol.calls.count("lost") == protocol.calls.count("made") == 1

    run(main())


@in_every_way
def test_a_stream_writer_that_others_wait_for(run: Run, big: Path) -> None:
    """drain() of a StreamWriter and respond wait for the same buffer, and both go on."""
    before = os.urandom(10 << 20)

    async def main() -> None:
        async with Streams() as streams:
            streams.writer.write(before)
            draining = asyncio.ensure_future(streams.writer.drain())
            await asyncio.sleep(0)
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            data = await asyncio.to_thread(read_slowly, streams.client, len(before) + BIG)
            await draining
            await task
            data += await streams.rest()
            assert data.startswith(before)
            assert split(data[len(before) :])[2] == big.read_bytes()

    run(main())


@in_every_way
def test_cancelled_while_flushing(run: Run, big: Path) -> None:
    """Nothing of the answer is sent, what was written before still is, and the transport is as before."""
    before = os.urandom(10 << 20)

    async def main() -> None:
        async with Streams() as streams:
            protocol, limits = streams.transport.get_protocol(), streams.transport.get_write_buffer_limits()
            streams.writer.write(before)
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await asyncio.sleep(0)
            assert streams.transport.get_protocol() is not protocol
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert streams.transport.get_protocol() is protocol
            assert streams.transport.get_write_buffer_limits() == limits
            reading = asyncio.ensure_future(asyncio.to_thread(read_all, streams.client))
            await streams.writer.drain()
            await streams.close()
            assert await reading == before

    run(main())


@pytest.mark.parametrize("limit", [{"timeout": 0.2}, {"total_timeout": 0.2}, {"timeout": 0.2, "min_rate": 1 << 40}])
def test_peer_stalls_while_flushing(run: Run, limit: Any, big: Path) -> None:
    """The limits hold for that, too; nothing of the answer was sent."""

    async def main() -> None:
        async with Streams() as streams:
            protocol, limits = streams.transport.get_protocol(), streams.transport.get_write_buffer_limits()
            streams.writer.write(bytes(10 << 20))
            started = time.monotonic()
            with pytest.raises(sendgate.ResponseTimeoutError) as caught:
                await sendgate.asyncio.respond(streams.writer, None, big, **limit)
            assert time.monotonic() - started >= 0.2
            assert caught.value.connection is Connection.UNTOUCHED
            assert caught.value.errno == errno.ETIMEDOUT
            assert streams.transport.get_protocol() is protocol
            assert streams.transport.get_write_buffer_limits() == limits

    run(main())


@pytest.mark.parametrize("how", ["close", "abort", "reset"])
def test_closed_while_flushing(run: Run, how: str, big: Path) -> None:
    """PeerClosedError, and nothing of the answer is sent, whoever closed the connection."""
    before = os.urandom(10 << 20)

    async def main() -> None:
        async with Streams() as streams:
            streams.writer.write(before)
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await begun(streams.client)
            reading = None
            if how == "reset":
                reset(streams.client)
            elif how == "abort":
                streams.transport.abort()
            else:
                streams.transport.close()
                reading = asyncio.ensure_future(asyncio.to_thread(read_all, streams.client))
            with pytest.raises(sendgate.PeerClosedError) as caught:
                await task
            assert caught.value.connection is Connection.UNTOUCHED
            if reading is not None:
                assert await reading == before

    run(main())


def test_a_transport_that_is_closed(run: Run, big: Path) -> None:
    """PeerClosedError at once, for a number that may be another connection's soon."""

    async def main() -> None:
        async with Streams() as streams:
            streams.transport.close()
            for _ in range(3):
                with pytest.raises(sendgate.PeerClosedError) as caught:
                    await sendgate.asyncio.respond(streams.writer, None, big)
                assert caught.value.connection is Connection.UNTOUCHED
                await asyncio.sleep(0.001)
            assert await asyncio.to_thread(read_all, streams.client) == b""

    run(main())


def test_closed_while_waiting_for_room(run: Run, big: Path) -> None:
    """The answer doesn't go to another client, whose connection has got the number of the one that was closed."""

    async def main() -> None:
        with Sender(max_in_flight=1) as sender:
            async with Streams() as first, Streams() as second:
                one = asyncio.ensure_future(sendgate.asyncio.respond(first.writer, None, big, sender=sender))
                two = asyncio.ensure_future(sendgate.asyncio.respond(second.writer, None, b"secret", sender=sender))
                await asyncio.sleep(0)
                number = second.server.fileno()
                await second.close()
                pairs = []
                while not pairs or number not in (pairs[-1][0].fileno(), pairs[-1][1].fileno()):
                    pairs.append(socket.socketpair())
                one.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await one
                with pytest.raises(sendgate.PeerClosedError):
                    await two
                for end in [end for pair in pairs for end in pair]:
                    end.setblocking(False)
                    with pytest.raises(BlockingIOError):
                        end.recv(1)
                for end in [end for pair in pairs for end in pair]:
                    end.close()

    run(main())


@pytest.mark.parametrize("how", ["close", "abort"])
def test_closed_while_sending(run: Run, how: str, big: Path) -> None:
    """The answer goes on to its end, on the sender's own descriptor; then the connection is to be closed."""

    async def main() -> None:
        async with Streams() as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await begun(streams.client)
            getattr(streams.transport, how)()
            for _ in range(5):
                await asyncio.sleep(0)
            data = await asyncio.to_thread(read_all, streams.client)
            assert split(data)[2] == big.read_bytes()
            assert (await task).connection is Connection.CLOSE

    run(main())


# ---- How answers end ----


@in_every_way
@pytest.mark.parametrize("how", ["cancel", "twice", "wait_for"])
def test_cancelled(run: Run, how: str) -> None:
    """When CancelledError arrives no byte is sent any more, and memory is no longer used."""

    async def main() -> None:
        body = bytearray(os.urandom(BIG))
        async with Streams() as streams:
            answer = sendgate.asyncio.respond(streams.writer, None, body)
            if how == "wait_for":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(answer, 0.05)
            else:
                task = asyncio.ensure_future(answer)
                await begun(streams.client)
                with pytest.raises(BufferError):
                    body.append(0)
                task.cancel()
                if how == "twice":
                    await asyncio.sleep(0)
                    task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            whole = bytes(body)
            body.clear()
            # What was still to be sent would come behind this.
            streams.writer.write(b"END")
            data = await streams.rest()
            assert data.endswith(b"END")
            # A time-out may come before the first byte.
            received = split(data[:-3])[2] if data != b"END" or how != "wait_for" else b""
            assert len(received) < BIG
            assert whole.startswith(received)

    run(main())


def test_a_destroyed_task(run: Run) -> None:
    """A coroutine that is closed half-way ends its response, and the memory is let go of."""
    body = bytearray(BIG)

    async def main() -> None:
        async with Streams() as streams:
            answer = sendgate.asyncio.respond(streams.writer, None, body)
            answer.send(None)
            answer.close()
            while True:
                with contextlib.suppress(BufferError):
                    body.append(0)
                    break
                await asyncio.sleep(0.001)

    run(main())


@pytest.mark.parametrize(
    "limit", [{"timeout": 0.2}, {"total_timeout": 0.2}, {"timeout": 0.2, "min_rate": 1 << 40}], ids=str
)
def test_peer_stalls(run: Run, limit: Any, big: Path) -> None:
    """ResponseTimeoutError, as from respond."""

    async def main() -> None:
        async with Streams() as streams:
            with pytest.raises(sendgate.ResponseTimeoutError) as caught:
                await sendgate.asyncio.respond(streams.writer, None, big, **limit)
            assert caught.value.connection is Connection.BROKEN

    run(main())


def test_peer_resets(run: Run, big: Path) -> None:
    """PeerClosedError; what reads from the connection hears of it, too."""

    async def main() -> None:
        async with Streams() as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await asyncio.to_thread(read_slowly, streams.client, 1000)
            reset(streams.client)
            with pytest.raises(sendgate.PeerClosedError) as caught:
                await task
            assert caught.value.connection is Connection.BROKEN
            assert isinstance(caught.value, ConnectionError)
            with contextlib.suppress(ConnectionError):
                assert await streams.reader.read() == b""

    run(main())


@pytest.mark.parametrize("protocol", ["stream", "plain"])
def test_peer_closes_its_sending_side(run: Run, protocol: str, big: Path) -> None:
    """A client that has said all it wants to say still gets its answer, also if the transport is closed for that."""

    async def main() -> None:
        server, client = tcp_pair()
        if protocol == "stream":
            reader, writer = await asyncio.open_connection(sock=server)
            transport: Any = writer.transport
        else:
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=server)
        task = asyncio.ensure_future(sendgate.asyncio.respond(transport, None, big))
        await begun(client)
        client.shutdown(socket.SHUT_WR)
        if protocol == "stream":
            assert await reader.read() == b""
            assert not transport.is_closing()
        while protocol == "plain" and not transport.is_closing():
            await asyncio.sleep(0.001)
        data = await asyncio.to_thread(read_slowly, client, BIG)
        result = await task
        assert result.connection is (Connection.CLOSE if protocol == "plain" else Connection.REUSABLE)
        transport.close()
        data += await asyncio.to_thread(read_all, client)
        assert split(data)[2] == big.read_bytes()
        client.close()

    run(main())


def test_file_that_becomes_shorter(run: Run, big: Path) -> None:
    """TruncatedError, and the client doesn't get a complete answer."""

    async def main() -> None:
        async with Streams() as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await begun(streams.client)
            os.truncate(big, 1000)
            reading = asyncio.ensure_future(asyncio.to_thread(read_all, streams.client))
            with pytest.raises(sendgate.TruncatedError) as caught:
                await task
            assert caught.value.connection is Connection.BROKEN
            await streams.close()
            assert len(await reading) < BIG

    run(main())


def test_wrong_arguments(run: Run, big: Path) -> None:
    """What respond raises for them, with nothing sent; the connection may have another answer."""

    class Foreign:
        """A TLS socket that we don't know."""

        def __init__(self, sock: socket.socket) -> None:
            self.fileno = sock.fileno

        def do_handshake(self) -> None:
            raise AssertionError

    async def main() -> None:
        async with Streams() as streams:
            respond: Any = sendgate.asyncio.respond
            for kind, arguments in [
                (sendgate.FieldError, {"headers": {"X": "a\r\nb"}}),
                (ValueError, {"timeout": 0}),
                (ValueError, {"total_timeout": -1}),
                (ValueError, {"min_rate": -1}),
                (ValueError, {"offset": 1, "length": BIG}),
                (TypeError, {"nonsense": 1}),
            ]:
                with pytest.raises(kind):
                    await respond(streams.writer, None, big, **arguments)
            for target in (None, "x", Foreign(streams.server)):
                with pytest.raises(TypeError):
                    await respond(target, None, big)
            with pytest.raises(TypeError):
                await respond(streams.writer, None, None)
            with pytest.raises(FileNotFoundError):
                await respond(streams.writer, None, "nothing")
            with pytest.raises(sendgate.NotRegularError):
                await respond(streams.writer, None, big.parent)
            datagrams, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
            )
            with pytest.raises(TypeError):
                await respond(datagrams, None, big)
            datagrams.close()
            await respond(streams.writer, None, b"after all")
            assert split(await streams.rest())[2] == b"after all"

    run(main())


# ---- Loops and senders ----


def test_the_loop_watches_only_while_something_is_in_flight(run: Run, big: Path) -> None:
    """An idle sender costs the loop nothing."""

    async def main() -> None:
        with Sender() as sender:
            for _ in range(3):
                async with Streams() as streams:
                    task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big, sender=sender))
                    while not watched(sender.fileno()):
                        await asyncio.sleep(0.001)
                    await asyncio.to_thread(read_slowly, streams.client, BIG)
                    await task
                    while watched(sender.fileno()):
                        await asyncio.sleep(0.001)

    run(main())


def test_the_sender_ends_with_its_loop(run: Run, big: Path) -> None:
    """Nobody has to close it: its thread and its descriptors are gone when the loop is."""
    others, before = library_threads(), len(os.listdir("/proc/self/fd"))
    threads: set[str] = set()

    async def main() -> None:
        async with Streams() as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await asyncio.to_thread(wait_until, lambda: library_threads() - others)
            threads.update(library_threads() - others)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())
    gc.collect()
    wait_until(lambda: not library_threads() & threads)
    assert len(os.listdir("/proc/self/fd")) == before


@in_every_way
def test_a_loop_that_ends_with_answers_in_flight(run: Run) -> None:
    """The tasks are cancelled, as always, and each of them ends its response."""
    body = bytearray(BIG)
    pairs = [socket.socketpair() for _ in range(5)]

    async def main() -> list[asyncio.Future[Result]]:
        tasks = [asyncio.ensure_future(sendgate.asyncio.respond(server, None, body)) for server, _ in pairs]
        await asyncio.sleep(0)
        return tasks

    tasks = run(main())
    assert [task.cancelled() for task in tasks] == [True] * 5
    body.append(0)
    for end in [end for pair in pairs for end in pair]:
        end.close()


@in_every_way
def test_room_is_waited_for(run: Run, tmp_path: Path) -> None:
    """More answers than a sender may have in flight wait for their turn, in order; none fails."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2_000_000))  # more than leaves at once

    async def main() -> None:
        ended: list[int] = []

        async def one(number: int, streams: Streams, sender: Sender) -> None:
            await sendgate.asyncio.respond(streams.writer, None, path, sender=sender)
            ended.append(number)

        async with contextlib.AsyncExitStack() as stack:
            sender = stack.enter_context(Sender(max_in_flight=1))
            streams = [await stack.enter_async_context(Streams()) for _ in range(20)]
            tasks = [asyncio.ensure_future(one(number, each, sender)) for number, each in enumerate(streams)]
            await asyncio.sleep(0)
            # Who gives up waiting has no place taken away from others.
            tasks[5].cancel()
            reading = [asyncio.ensure_future(asyncio.to_thread(read_all, each.client)) for each in streams]
            await asyncio.gather(*tasks, return_exceptions=True)
            assert ended == [number for number in range(20) if number != 5]
            for each in streams:
                await each.close()
            for number, data in enumerate(await asyncio.gather(*reading)):
                assert number == 5 or split(data)[2] == path.read_bytes()

    run(main())


def test_what_fails_at_the_end_of_a_response_fails_alone(run: Run, tmp_path: Path) -> None:
    """A server's own method, say: the others in flight are told all the same."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2_000_000))  # more than leaves at once

    class Failing(sendgate.asyncio._Pending):
        def ended(self, completion: Completion) -> None:
            raise ValueError("not mine")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        errors: list[Any] = []
        loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
        async with Streams() as bad, Streams() as good:
            with Sender() as sender:
                hub = sendgate.asyncio._hub(loop, sender)
                sock = bad.writer.get_extra_info("socket")
                assert sender.submit(sock, None, path, token=Failing(hub))
                hub.watch(loop, sender)
                answer = asyncio.ensure_future(sendgate.asyncio.respond(good.writer, None, path, sender=sender))
                reading = [asyncio.ensure_future(asyncio.to_thread(read_all, each.client)) for each in (bad, good)]
                assert (await answer).body_sent == 2_000_000
                while not errors:
                    await asyncio.sleep(0)
                assert [type(error) for error in errors] == [ValueError]
            for each in (bad, good):
                await each.close()
            for data in await asyncio.gather(*reading):
                assert split(data)[2] == path.read_bytes()

    run(main())


def test_a_turn_is_not_lost(run: Run) -> None:
    """If those who wait are cancelled at the very moment at which it is their turn, it is the next one's."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with Sender(max_in_flight=1) as sender:
            hub = sendgate.asyncio._Hub(loop, sender)
            await hub.__aenter__()
            first, second, third = (asyncio.ensure_future(hub.__aenter__()) for _ in range(3))
            await asyncio.sleep(0)
            first.cancel()
            await hub.__aexit__()
            second.cancel()
            await third
            assert (first.cancelled(), second.cancelled()) == (True, True)
            fourth = asyncio.ensure_future(hub.__aenter__())
            await asyncio.sleep(0)
            assert not fourth.done()
            await hub.__aexit__()
            await fourth

    run(main())


def test_a_sender_is_for_one_loop(run: Run, big: Path) -> None:
    """Another loop is refused a sender until the first is closed, because each would take what is the other's."""
    sender = Sender()
    pairs = []
    abandoned = []

    async def main() -> None:
        async with Streams() as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big, sender=sender))

            async def other() -> None:
                async with Streams() as others:
                    with pytest.raises(RuntimeError, match="another event loop"):
                        await sendgate.asyncio.respond(others.writer, None, b"x", sender=sender)

            await begun(streams.client)
            await asyncio.to_thread(asyncio.run, other())
            data = await asyncio.to_thread(read_slowly, streams.client, BIG)
            await task
            assert split(data + await streams.rest())[2] == big.read_bytes()
        # It is still in flight when the loop is closed, and of no interest to the next.
        pairs.append(socket.socketpair())
        abandoned.append(sendgate.asyncio.respond(pairs[-1][0], None, big, sender=sender))
        abandoned[-1].send(None)

    for _ in range(3):
        run(main())
        abandoned[-1].close()
        gc.collect()
    sender.close()
    for end in [end for pair in pairs for end in pair]:
        end.close()


@in_every_way
def test_aclose(run: Run, big: Path) -> None:
    """It cancels what is in flight, and the next answer has a new sender."""

    async def main() -> None:
        await sendgate.asyncio.aclose()
        before = library_threads()
        async with Streams() as streams, Streams() as others:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await begun(streams.client)
            threads = library_threads() - before
            assert threads
            await sendgate.asyncio.aclose()
            wait_until(lambda: not library_threads() & threads)
            with pytest.raises(sendgate.TransferCancelledError) as caught:
                await task
            assert caught.value.connection is Connection.BROKEN
            await sendgate.asyncio.respond(others.writer, None, b"again")
            assert split(await others.rest())[2] == b"again"

    run(main())


def test_aclose_waits(run: Run, big: Path) -> None:
    """What is in flight may end in peace."""

    async def main() -> None:
        async with Streams() as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(sendgate.asyncio.aclose(LONG))
            await begun(streams.client)
            assert not closing.done()
            data = await asyncio.to_thread(read_slowly, streams.client, BIG)
            assert (await task).body_sent == BIG
            await closing
            assert split(data + await streams.rest())[2] == big.read_bytes()

    run(main())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_fork(run: Run, big: Path) -> None:
    """A child has a sender of its own, and the parent's answer goes on."""

    async def answer(file: Any) -> bytes:
        async with Streams() as streams:
            reading = asyncio.ensure_future(asyncio.to_thread(read_all, streams.client))
            await sendgate.asyncio.respond(streams.writer, None, file)
            await streams.close()
            return split(await reading)[2]

    def child() -> None:
        code = 1
        try:
            signal.alarm(LONG)
            code = 0 if asyncio.run(answer(big)) == big.read_bytes() else 2
        finally:
            os._exit(code)

    async def main() -> None:
        async with Streams() as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            await begun(streams.client)
            # In a thread, where no loop runs.
            context: list[int] = []

            def fork() -> None:
                pid = os.fork()
                if pid == 0:
                    child()
                context.append(pid)

            await asyncio.to_thread(fork)
            status = (await asyncio.to_thread(os.waitpid, context[0], 0))[1]
            assert os.waitstatus_to_exitcode(status) == 0
            data = await asyncio.to_thread(read_slowly, streams.client, BIG)
            await task
            assert split(data + await streams.rest())[2] == big.read_bytes()

    run(main())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_fork_with_a_loop_that_has_a_sender(new_loop: Any, big: Path) -> None:
    """A child that goes on with the parent's loop has a sender of its own."""
    loop = new_loop()

    async def answer() -> bool:
        async with Streams() as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big))
            data = await asyncio.to_thread(read_slowly, streams.client, BIG)
            await task
            return split(data + await streams.rest())[2] == big.read_bytes()

    assert loop.run_until_complete(answer())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(LONG)
            # The parent's threads don't exist here.
            loop.set_default_executor(concurrent.futures.ThreadPoolExecutor())
            code = 0 if loop.run_until_complete(answer()) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    del loop
    gc.collect()


# ---- TLS ----


class TlsStreams(Streams):
    """A TLS connection: the server's end as a StreamWriter, the client's as a socket."""

    def __init__(self, certificate: tuple[Path, Path], buffer: int | None = None) -> None:
        super().__init__(buffer=buffer)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*certificate)
        self.trust = ssl.create_default_context(cafile=str(certificate[0]))

    async def __aenter__(self) -> TlsStreams:
        loop = asyncio.get_running_loop()
        plain = self.client
        handshake = asyncio.ensure_future(
            asyncio.to_thread(self.trust.wrap_socket, plain, server_hostname="localhost", suppress_ragged_eofs=False)
        )
        self.reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self.reader)
        self.transport, _ = await loop.connect_accepted_socket(lambda: protocol, self.server, ssl=self.context)
        self.writer = asyncio.StreamWriter(self.transport, protocol, self.reader, loop)
        self.client = await handshake
        return self


class TlsSocket:
    """A TLS connection of sockets."""

    def __init__(self, certificate: tuple[Path, Path], buffer: int | None = None) -> None:
        streams = TlsStreams(certificate, buffer)
        self.client: Any = None

        def handshake() -> None:
            self.client = streams.trust.wrap_socket(streams.client, server_hostname="localhost")

        thread = threading.Thread(target=handshake)
        thread.start()
        self.server = streams.context.wrap_socket(streams.server, server_side=True)
        thread.join(LONG)

    def __enter__(self) -> TlsSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.client.close()


@in_every_way
@pytest.mark.parametrize("kind", ["path", "memory"])
def test_tls(run: Run, certificate: tuple[Path, Path], kind: str, big: Path) -> None:
    """A TLS transport gets every byte in order, encrypted; its protocol and limits are as before."""

    async def main() -> None:
        async with TlsStreams(certificate) as streams:
            protocol, limits = streams.transport.get_protocol(), streams.transport.get_write_buffer_limits()
            reading = asyncio.ensure_future(asyncio.to_thread(read_all, streams.client))
            streams.writer.write(b"before")
            file: Any = big if kind == "path" else bytearray(big.read_bytes())
            result = await sendgate.asyncio.respond(streams.writer, None, file, content_type="text/x")
            assert (result.connection, result.body_sent) == (Connection.REUSABLE, BIG)
            assert streams.transport.get_protocol() is protocol
            assert streams.transport.get_write_buffer_limits() == limits
            if kind == "memory":
                file += b"x"
            result = await sendgate.asyncio.respond(streams.writer, Request("HEAD"), big)
            assert (result.connection, result.body_sent) == (Connection.REUSABLE, 0)
            streams.writer.write(b"behind")
            streams.writer.close()
            data = await reading
            assert data.startswith(b"beforeHTTP/1.1 200 OK\r\n") and data.endswith(b"\r\n\r\nbehind")
            assert data[data.index(b"\r\n\r\n") + 4 :].startswith(big.read_bytes())

    run(main())


def test_tls_with_a_slow_reader(run: Run, certificate: tuple[Path, Path], big: Path) -> None:
    """Only a little is read ahead of a client that takes little; others run meanwhile."""

    async def main() -> None:
        async with TlsStreams(certificate, buffer=20_000) as streams:
            task = asyncio.ensure_future(sendgate.asyncio.respond(streams.writer, None, big, length=3_000_000))
            for _ in range(200):
                await asyncio.sleep(0.0005)
            assert not task.done()
            assert streams.transport.get_write_buffer_size() < 300_000
            data = await asyncio.to_thread(read_slowly, streams.client, 3_000_000)
            await task
            reading = asyncio.ensure_future(asyncio.to_thread(read_all, streams.client))
            streams.writer.close()
            assert split(data + await reading)[2] == big.read_bytes()[:3_000_000]

    run(main())


def test_tls_client_that_is_slow(run: Run, certificate: tuple[Path, Path], big: Path) -> None:
    """A client that takes something in each timeout has not stalled, whatever the buffers do."""
    stop = threading.Event()

    def drip(client: socket.socket) -> None:
        # Slower than that, and the kernel's announcements of room, of 128 KiB, come too seldom for the limit.
        while not stop.wait(0.02):
            client.recv(20_000)

    async def main() -> None:
        async with TlsStreams(certificate, buffer=50_000) as streams:
            dripping = asyncio.ensure_future(asyncio.to_thread(drip, streams.client))
            answer = sendgate.asyncio.respond(streams.writer, None, big, timeout=1, min_rate=20_000)
            task = asyncio.ensure_future(answer)
            done, _ = await asyncio.wait({task}, timeout=3.5)
            stop.set()
            await dripping
            assert not done, task
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


@pytest.mark.parametrize(
    "limit", [{"timeout": 0.2}, {"total_timeout": 0.2}, {"timeout": 0.2, "min_rate": 1 << 40}], ids=str
)
@pytest.mark.parametrize("kind", ["transport", "socket"])
def test_tls_peer_stalls(run: Run, certificate: tuple[Path, Path], kind: str, limit: Any, big: Path) -> None:
    """ResponseTimeoutError, as without TLS."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if kind == "transport":
                target: Any = (await stack.enter_async_context(TlsStreams(certificate))).writer
            else:
                target = stack.enter_context(TlsSocket(certificate)).server
            started = time.monotonic()
            with pytest.raises(sendgate.ResponseTimeoutError) as caught:
                await sendgate.asyncio.respond(target, None, big, **limit)
            assert time.monotonic() - started >= 0.2
            assert caught.value.connection is Connection.BROKEN
            assert caught.value.errno == errno.ETIMEDOUT

    run(main())


@pytest.mark.parametrize("kind", ["transport", "socket"])
def test_tls_peer_resets(run: Run, certificate: tuple[Path, Path], kind: str, big: Path) -> None:
    """PeerClosedError, as without TLS."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if kind == "transport":
                streams = await stack.enter_async_context(TlsStreams(certificate))
                target: Any = streams.writer
                client = streams.client
            else:
                pair = stack.enter_context(TlsSocket(certificate))
                target, client = pair.server, pair.client
            task = asyncio.ensure_future(sendgate.asyncio.respond(target, None, big))
            await asyncio.to_thread(read_slowly, client, 1000)
            reset(client)
            with pytest.raises(sendgate.PeerClosedError) as caught:
                await task
            assert caught.value.connection is Connection.BROKEN
            assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)

    run(main())


@pytest.mark.parametrize("kind", ["transport", "socket"])
def test_tls_cancelled(run: Run, certificate: tuple[Path, Path], kind: str) -> None:
    """Memory is no longer used when CancelledError arrives, and the connection is as before."""

    async def main() -> None:
        body = bytearray(BIG)
        async with contextlib.AsyncExitStack() as stack:
            if kind == "transport":
                streams = await stack.enter_async_context(TlsStreams(certificate))
                target: Any = streams.writer
                protocol, limits = streams.transport.get_protocol(), streams.transport.get_write_buffer_limits()
            else:
                target = stack.enter_context(TlsSocket(certificate)).server
                target.settimeout(7)
            for seconds in (0, 0.001, 0.05):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(sendgate.asyncio.respond(target, None, body), seconds)
                body.append(0)
            if kind == "transport":
                assert streams.transport.get_protocol() is protocol
                assert streams.transport.get_write_buffer_limits() == limits
            else:
                assert target.gettimeout() == 7

    run(main())


def test_tls_file_that_is_too_short_from_the_start(run: Run, certificate: tuple[Path, Path], big: Path) -> None:
    """As long as nothing was written, another answer may be."""

    async def main() -> None:
        directory = os.open(big.parent, os.O_RDONLY)
        async with TlsStreams(certificate) as streams:
            with sendgate.open_beneath(directory, big.name) as file:
                os.truncate(big, 0)
                with pytest.raises(sendgate.TruncatedError) as caught:
                    await sendgate.asyncio.respond(streams.writer, None, file)
                assert caught.value.connection is Connection.UNTOUCHED
                await sendgate.asyncio.respond(streams.writer, None, b"sorry", status=500)
            reading = asyncio.ensure_future(asyncio.to_thread(read_all, streams.client))
            streams.writer.close()
            status, _, body = split(await reading)
            assert (status, body) == (500, b"sorry")
        os.close(directory)

    run(main())


@pytest.mark.parametrize("mode", [None, 0.0, 5.0])
def test_tls_sockets(run: Run, certificate: tuple[Path, Path], mode: float | None, big: Path) -> None:
    """An ssl.SSLSocket gets every byte, whatever its mode, which is as it was afterwards; others run meanwhile."""

    async def main() -> None:
        with TlsSocket(certificate, buffer=50_000) as pair:
            pair.server.settimeout(mode)
            task = asyncio.ensure_future(sendgate.asyncio.respond(pair.server, None, big, length=1_000_000))
            for _ in range(100):
                await asyncio.sleep(0.0005)
            assert not task.done()
            data = await asyncio.to_thread(read_slowly, pair.client, 1_000_000)
            result = await task
            assert (result.connection, result.body_sent) == (Connection.REUSABLE, 1_000_000)
            assert pair.server.gettimeout() == mode
            pair.server.close()
            assert split(data + await asyncio.to_thread(read_all, pair.client))[2] == big.read_bytes()[:1_000_000]

    run(main())


def test_a_transport_without_a_socket(run: Run, big: Path, tmp_path: Path) -> None:
    """What has no socket is written to through the transport: here, the input of another process."""
    out = tmp_path / "out"

    async def main() -> None:
        with out.open("wb") as file:
            process = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, stdout=file)
        assert process.stdin is not None
        result = await sendgate.asyncio.respond(process.stdin, None, big)
        assert result.body_sent == BIG
        process.stdin.close()
        assert await process.wait() == 0

    run(main())
    assert split(out.read_bytes())[2] == big.read_bytes()
