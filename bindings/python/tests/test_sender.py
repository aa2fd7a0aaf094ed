"""Responses in the background, on real files and sockets."""

from __future__ import annotations

import contextlib
import gc
import io
import mmap
import os
import re
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sendgate
from sendgate import Completion, Connection, Request, Sender
from support import Pipe, library_threads, split, tcp_pair, wait_until

BIG = 8 << 20  # more than a socket's buffers hold
#: What is far too long for anything here.
LONG = 30


@pytest.fixture
def sender() -> Iterator[Sender]:
    """A sender that is closed at the end."""
    with Sender() as sender:
        yield sender


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of 8 MiB."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(BIG))
    return path


def completions(sender: Sender, count: int = 1) -> list[Completion]:
    """Wait until that many have ended."""
    taken: list[Completion] = []
    deadline = time.monotonic() + LONG
    while len(taken) < count:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([sender], [], [], left)[0], f"{len(taken)} of {count} have ended"
        taken += sender.take()
    assert len(taken) == count
    return taken


def nothing_to_take(sender: Sender) -> bool:
    """Whether nothing has ended."""
    return not select.select([sender], [], [], 0)[0] and sender.take() == []


def receive(client: socket.socket, count: int) -> bytes:
    """Exactly that many bytes."""
    client.settimeout(LONG)
    data = bytearray()
    while len(data) < count:
        chunk = client.recv(min(1 << 20, count - len(data)))
        assert chunk, f"the end after {len(data)} of {count} bytes"
        data += chunk
    return bytes(data)


def reset(client: socket.socket) -> None:
    """Close so that the other end gets ECONNRESET."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# ---- Submit and take ----


def test_a_file_in_the_background(sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """submit returns at once, though nobody reads; take tells when the client has got it, with id, token and time."""
    server, client = pair
    token = object()
    started = time.monotonic()
    id = sender.submit(server, None, big, content_type="text/x", token=token)
    assert nothing_to_take(sender)
    pipe = Pipe(server, client)
    (completion,) = completions(sender)
    assert (completion.id, completion.error) == (id, None)
    assert completion.token is token
    assert 0 < completion.elapsed <= time.monotonic() - started
    result = completion.result
    assert (result.status, result.http_status, result.connection) == (0, 200, Connection.REUSABLE)
    assert result.body_sent == result.body_length == BIG
    received = pipe.received()
    status, fields, body = split(received)
    assert (status, fields["content-type"], body) == (200, "text/x", big.read_bytes())
    assert result.head_sent == len(received) - BIG
    assert nothing_to_take(sender)


@pytest.mark.parametrize("try_now", [False, True])
@pytest.mark.parametrize("length", [0, 100, 513, 20_000])
def test_a_head_of_ones_own(sender: Sender, pair: tuple[Any, Any], big: Path, length: int, try_now: bool) -> None:
    """Bytes as head are sent in its place, here or in the background, and may be gone once they were submitted."""
    server, client = pair
    server.setblocking(False)
    pipe = Pipe(server, client)
    for file in (b"small", big):
        submitted = sender.submit(server, None, file, head=b"h" * length, try_now=try_now)
        gc.collect()
        result = submitted if isinstance(submitted, sendgate.Result) else completions(sender)[0].result
        assert (result.status, result.head_sent, result.body_sent) == (0, length, result.body_length)
        assert isinstance(submitted, int) or file == b"small"
    assert pipe.received() == b"h" * length + b"small" + b"h" * length + big.read_bytes()


def test_one_after_another_on_a_connection(sender: Sender, pipe: Pipe, big: Path) -> None:
    """When a response has been reported, the next may go out on the same connection."""
    bodies = []
    for first in range(0, 5000, 1000):
        request = Request("GET", 11, [("Range", f"bytes={first}-{first + 999_999}")])
        sender.submit(pipe.server, request, big)
        (completion,) = completions(sender)
        assert (completion.result.http_status, completion.result.connection) == (206, Connection.REUSABLE)
        bodies.append(big.read_bytes()[first : first + 1_000_000])
    received = pipe.received()
    for body in bodies:
        head, _, received = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 206 ")
        assert received.startswith(body)
        received = received[len(body) :]
    assert received == b""


def test_socket_and_file_may_be_closed_at_once(sender: Sender, big: Path) -> None:
    """The library has duplicates, so that the numbers may mean something else before the response has left."""
    server, client = tcp_pair()
    file = os.open(big, os.O_RDONLY)
    sender.submit(server, None, file)
    os.close(file)
    server.close()
    other, stranger = tcp_pair()
    with client, other, stranger:
        assert split(client.makefile("rb").read())[2] == big.read_bytes()
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)
    completions(sender)


def test_nothing_of_a_path_is_left_open(sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """A path's descriptor is closed when submit returns: only the library's own are open meanwhile."""
    server, client = pair
    before = set(os.listdir("/proc/self/fd"))
    sender.submit(server, None, big)
    opened = set(os.listdir("/proc/self/fd")) - before
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in opened if os.path.lexists(f"/proc/self/fd/{fd}")]
    assert names.count(str(big)) == 1
    Pipe(server, client)
    completions(sender)
    assert not set(os.listdir("/proc/self/fd")) - before


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "mmap", "BytesIO", "File", "buffered"])
def test_what_can_be_sent(kind: str, sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """As for respond, and nobody but the sender needs to hold it meanwhile."""
    server, client = pair
    data = big.read_bytes()
    with contextlib.ExitStack() as stack:
        if kind in ("mmap", "buffered"):
            file: Any = stack.enter_context(big.open("rb"))
            if kind == "mmap":
                file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        elif kind == "File":
            directory = os.open(big.parent, os.O_RDONLY)
            stack.callback(os.close, directory)
            file = stack.enter_context(sendgate.open_beneath(directory, big.name))
        else:
            make: Any = {"BytesIO": io.BytesIO, "memoryview": memoryview, "bytearray": bytearray, "bytes": bytes}
            file = make[kind](bytes(bytearray(data)))
        sender.submit(server, None, file)
        del file
    gc.collect()
    # What was freed would be used for this.
    rubbish = [bytes(BIG) for _ in range(3)]
    pipe = Pipe(server, client)
    assert completions(sender)[0].error is None
    assert split(pipe.received())[2] == data
    del rubbish


@pytest.mark.parametrize("end", ["complete", "cancelled", "reset", "stop", "close"])
def test_memory_is_used_until_it_is_reported(end: str, pair: tuple[Any, Any]) -> None:
    """A bytearray can't be resized while it is sent, and can afterwards, however it ended."""
    server, client = pair
    body = bytearray(BIG)
    with Sender() as sender:
        id = sender.submit(server, None, body)
        with pytest.raises(BufferError):
            body += b"x"
        if end == "complete":
            receive(client, BIG)
            Pipe(server, client)
        elif end == "cancelled":
            sender.cancel(id)
        elif end == "reset":
            reset(client)
        elif end == "stop":
            sender.stop()
        if end == "close":
            sender.close()
        else:
            completions(sender)
        body += b"x"


def test_a_refused_submit_uses_no_memory(sender: Sender, pair: tuple[Any, Any]) -> None:
    """After an exception nothing is kept, and nothing will be reported."""
    body = bytearray(100)
    with pytest.raises(sendgate.FieldError) as caught:
        sender.submit(pair[0], None, body, headers={"X": "a\r\nb"})
    assert caught.value.connection is Connection.UNTOUCHED
    body += b"x"
    with pytest.raises(ValueError):
        sender.submit(pair[0], None, body, offset=1000, length=1)
    body += b"x"
    assert nothing_to_take(sender)


def test_many_at_once(sender: Sender, tmp_path: Path) -> None:
    """200 clients get 200 files, each its own."""
    pipes, files = [], []
    for number in range(200):
        path = tmp_path / f"{number}"
        path.write_bytes(os.urandom(100_000 + number))
        files.append(path)
        pipes.append(Pipe(*tcp_pair()))
        sender.submit(pipes[number].server, None, path, token=number)
    assert sorted(completion.token for completion in completions(sender, 200)) == list(range(200))
    for pipe, path in zip(pipes, files):
        assert split(pipe.received())[2] == path.read_bytes()
        pipe.client.close()


def test_take_as_many_as_wanted(sender: Sender, pipe: Pipe) -> None:
    """take hands out at most limit, the oldest first, and the descriptor stays readable for the rest."""
    for number in range(5):
        sender.submit(pipe.server, None, b"x", token=number)
        assert select.select([sender], [], [], LONG)[0]
    assert sender.stop(LONG)
    tokens = [completion.token for completion in sender.take(2)]
    assert select.select([sender], [], [], 0)[0]
    tokens += [completion.token for completion in sender.take(2)]
    tokens += [completion.token for completion in sender.take(2)]
    assert tokens == [0, 1, 2, 3, 4]
    assert nothing_to_take(sender)
    with pytest.raises(ValueError):
        sender.take(0)


# ---- At once, where that takes no waiting ----


def test_try_now(sender: Sender, pair: tuple[Any, Any]) -> None:
    """A small answer in memory is complete when submit returns, and isn't reported."""
    server, client = pair
    server.setblocking(False)
    result = sender.submit(server, Request("HEAD"), b"hello", try_now=True)
    assert isinstance(result, sendgate.Result)
    assert (result.http_status, result.body_sent) == (200, 0)
    result = sender.submit(server, None, b"hello", try_now=True)
    assert isinstance(result, sendgate.Result)
    assert (result.status, result.connection, result.body_sent) == (0, Connection.REUSABLE, 5)
    assert nothing_to_take(sender)
    server.close()
    assert client.makefile("rb").read().endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(("of_file", "limit"), [(True, 1 << 20), (False, 64 << 10)])
def test_try_now_has_a_limit(sender: Sender, pair: tuple[Any, Any], tmp_path: Path, of_file: bool, limit: int) -> None:
    """One byte more is the sender's, all of it. Up to it, what the socket takes leaves at once."""
    server, client = pair
    server.setblocking(False)
    pipe = Pipe(server, client)
    body = os.urandom(limit + 1)
    path = tmp_path / "file.bin"
    path.write_bytes(body)
    for length in (limit, limit + 1):
        file = path if of_file else body
        submitted = sender.submit(server, None, file, length=length, head=b"", try_now=True)
        if length > limit:
            assert isinstance(submitted, int)
        elif not of_file:  # of a file it depends on the reader, and on the file system
            assert isinstance(submitted, sendgate.Result)
        result = submitted if isinstance(submitted, sendgate.Result) else completions(sender)[0].result
        assert (result.status, result.body_sent) == (0, length)
    assert nothing_to_take(sender)
    assert pipe.received() == body[:limit] + body


def test_try_now_where_it_takes_waiting(sender: Sender, pair: tuple[Any, Any]) -> None:
    """What the socket doesn't take goes to the background, as one response."""
    server, client = pair
    server.setblocking(False)
    filled = 0
    # Where it is full, TCP moves what it has to the peer for a while yet.
    full = time.monotonic()
    while time.monotonic() - full < 0.5:
        try:
            filled += server.send(bytes(1 << 16))
            full = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    id = sender.submit(server, None, b"hello", try_now=True)
    assert isinstance(id, int)
    receive(client, filled)
    (completion,) = completions(sender)
    assert (completion.id, completion.error) == (id, None)
    server.close()
    assert client.makefile("rb").read().endswith(b"\r\n\r\nhello")


def test_try_now_to_a_peer_that_is_gone(sender: Sender, tmp_path: Path) -> None:
    """The error is raised, and not reported."""
    server, client = tcp_pair()
    server.setblocking(False)
    reset(client)
    assert select.select([server], [], [], LONG)[0]
    body = bytearray(10)
    with server, pytest.raises(sendgate.PeerClosedError):
        sender.submit(server, None, body, try_now=True)
    body += b"x"
    assert nothing_to_take(sender)


# ---- How responses end ----


def test_cancel(sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """A cancelled response is reported as such; no byte of it comes later, and the others go on."""
    server, client = pair
    id = sender.submit(server, None, big, token="first")
    other, reader = tcp_pair()
    pipe = Pipe(other, reader)
    sender.submit(other, None, big, token="second")
    sender.cancel(id)
    sender.cancel(12345)
    ended = {completion.token: completion for completion in completions(sender, 2)}
    error = ended["first"].error
    assert isinstance(error, sendgate.TransferCancelledError)
    assert (error.name, error.result) == ("SENDGATE_ERR_CANCELLED", ended["first"].result)
    sent = ended["first"].result.head_sent + ended["first"].result.body_sent
    assert sent < BIG
    assert error.connection is (Connection.BROKEN if sent else Connection.UNTOUCHED)
    assert ended["second"].error is None
    assert split(pipe.received())[2] == big.read_bytes()
    server.close()
    assert len(client.makefile("rb").read()) == sent
    sender.cancel(id)
    reader.close()


def test_peer_resets(sender: Sender, big: Path) -> None:
    """PeerClosedError with errno, reported, not raised."""
    server, client = tcp_pair()
    with server:
        sender.submit(server, None, big)
        receive(client, 1000)
        reset(client)
        (completion,) = completions(sender)
        assert isinstance(completion.error, sendgate.PeerClosedError)
        assert isinstance(completion.error, ConnectionError)
        assert completion.error.errno in (32, 104)
        assert completion.result.connection is Connection.BROKEN


def test_peer_closes_its_sending_side(sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """A client that has said all it wants to say still gets its answer."""
    server, client = pair
    client.shutdown(socket.SHUT_WR)
    sender.submit(server, None, big)
    pipe = Pipe(server, client)
    assert completions(sender)[0].error is None
    assert split(pipe.received())[2] == big.read_bytes()


@pytest.mark.parametrize("limit", [{"timeout": 0.2}, {"total_timeout": 0.2}])
def test_peer_stalls(limit: Any, sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """ResponseTimeoutError, not before the time."""
    sender.submit(pair[0], None, big, **limit)
    (completion,) = completions(sender)
    assert isinstance(completion.error, sendgate.ResponseTimeoutError)
    assert completion.elapsed >= 0.2
    assert completion.result.connection is Connection.BROKEN


def drip(client: socket.socket, stop: threading.Event) -> None:
    """Read 1000 bytes each 50 ms: always progress, but slow."""
    while not stop.wait(0.05):
        client.recv(1000)


@pytest.mark.parametrize("call", ["respond", "submit"])
def test_peer_is_too_slow(call: str, sender: Sender, big: Path) -> None:
    """Who takes less than min_rate is given up, though there is progress; who takes enough is not."""
    server, client = socket.socketpair()
    stop = threading.Event()
    thread = threading.Thread(target=drip, args=[client, stop])
    thread.start()
    try:
        with server, client:
            if call == "submit":
                sender.submit(server, None, big, timeout=0.4, min_rate=1_000_000)
                error: Any = completions(sender)[0].error
            else:
                with pytest.raises(sendgate.ResponseTimeoutError) as caught:
                    sendgate.respond(server, None, big, timeout=0.4, min_rate=1_000_000)
                error = caught.value
            stop.set()
            thread.join(LONG)
            assert isinstance(error, sendgate.ResponseTimeoutError)
            with pytest.raises(ValueError):
                sendgate.respond(server, None, big, min_rate=-1)
    finally:
        stop.set()
        thread.join(LONG)
    server, client = socket.socketpair()
    with server, client:
        pipe = Pipe(server, client)
        sender.submit(server, None, big, timeout=5, min_rate=1000)
        assert completions(sender)[0].error is None
        assert split(pipe.received())[2] == big.read_bytes()


def test_file_that_becomes_shorter(sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """TruncatedError, and the client doesn't get a complete response."""
    server, client = pair
    sender.submit(server, None, big)
    assert select.select([client], [], [], LONG)[0]
    os.truncate(big, 1000)
    pipe = Pipe(server, client)
    (completion,) = completions(sender)
    assert isinstance(completion.error, sendgate.TruncatedError)
    assert completion.result.connection is Connection.BROKEN
    assert len(pipe.received()) < BIG


def test_no_more_than_max_in_flight(pair: tuple[Any, Any], big: Path) -> None:
    """BusyError until one has been taken."""
    server, client = pair
    with Sender(max_in_flight=2) as sender:
        assert sender.max_in_flight == 2
        other, idle = tcp_pair()
        with other, idle:
            sender.submit(server, None, big)
            second = sender.submit(other, None, big)
            body = bytearray(10)
            with pytest.raises(sendgate.BusyError) as caught:
                sender.submit(other, None, body)
            assert caught.value.connection is Connection.UNTOUCHED
            body += b"x"
            sender.cancel(second)
            assert select.select([sender], [], [], LONG)[0]
            with pytest.raises(sendgate.BusyError):
                sender.submit(other, None, body)
            completions(sender)
            sender.submit(server, None, body)


def test_stop_waits(sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """What is in flight may end in peace, and is still to be taken; nothing new is taken on."""
    server, client = pair
    sender.submit(server, None, big)
    pipe = Pipe(server, client)
    assert sender.stop(LONG) is True
    with pytest.raises(sendgate.TransferCancelledError) as caught:
        sender.submit(server, None, b"x")
    assert caught.value.connection is Connection.UNTOUCHED
    assert completions(sender)[0].error is None
    assert split(pipe.received())[2] == big.read_bytes()
    assert sender.stop() is True


def test_stop_cuts_short(sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """After the timeout the rest is cancelled, and reported."""
    sender.submit(pair[0], None, big)
    started = time.monotonic()
    assert sender.stop(0.2) is False
    assert 0.2 <= time.monotonic() - started < LONG
    assert isinstance(completions(sender)[0].error, sendgate.TransferCancelledError)
    with pytest.raises(ValueError):
        sender.stop(-1)


def test_close_ends_a_stop_that_waits(sender: Sender, pipe: Pipe, big: Path) -> None:
    """Whoever waits for what is in flight is told that it was cut short."""
    other, idle = tcp_pair()
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(sender.stop(10 * LONG)))
    with other, idle:
        sender.submit(other, None, big)
        waiting.start()
        # What is submitted is refused as soon as the other thread is in stop.
        with pytest.raises(sendgate.TransferCancelledError):
            while True:
                sender.submit(pipe.server, None, b"x")
                completions(sender)
        assert answers == []
        sender.close()
        waiting.join(LONG)
    assert answers == [False]


# ---- The sender itself ----


def test_closed(pair: tuple[Any, Any]) -> None:
    """Leaving the context closes it; then nothing works but closing it again."""
    before = library_threads()
    with Sender() as sender:
        wait_until(lambda: library_threads() - before)
        thread = library_threads() - before
    wait_until(lambda: not library_threads() & thread)
    sender.close()
    for use in (
        sender.fileno,
        sender.take,
        sender.stop,
        lambda: sender.cancel(1),
        lambda: sender.submit(pair[0], None, b""),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_dropped(pair: tuple[Any, Any], big: Path) -> None:
    """A sender that nobody closed ends when it is collected, with what is in flight: thread, descriptors, memory."""
    server, client = pair
    others, before = library_threads(), len(os.listdir("/proc/self/fd"))
    body = bytearray(BIG)
    sender = Sender()
    sender.submit(server, None, body)
    other, idle = tcp_pair()
    with other, idle:
        # Through a cycle, so that only the collector finds it.
        sender.submit(other, None, big, token=sender)
        wait_until(lambda: library_threads() - others)
        thread = library_threads() - others
        del sender
        gc.collect()
    wait_until(lambda: not library_threads() & thread)
    assert len(os.listdir("/proc/self/fd")) == before
    body += b"x"
    server.close()
    assert len(client.makefile("rb").read()) < BIG


@pytest.mark.parametrize(
    "options",
    [{"max_in_flight": 0}, {"max_in_flight": (1 << 24) + 1}, {"turn_bytes": 0}, {"turn_bytes": 1 << 32}],
)
def test_limits_of_the_options(options: dict[str, int]) -> None:
    """What can't be is refused, and nothing is left of it."""
    with pytest.raises(ValueError):
        Sender(**options)
    Sender(max_in_flight=1, turn_bytes=1).close()


def test_arguments_of_a_wrong_type(sender: Sender, pair: tuple[Any, Any]) -> None:
    """TypeError, as everywhere; a path that isn't there raises what open() raises."""
    with pytest.raises(TypeError):
        sender.submit(pair[0], b"GET", b"x")  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        sender.submit(pair[0], None, None)  # type: ignore[call-overload]
    with pytest.raises(FileNotFoundError):
        sender.submit(pair[0], None, "nothing")
    with pytest.raises(TypeError):
        sender.cancel("1")  # type: ignore[arg-type]
    assert nothing_to_take(sender)


def test_no_descriptors_left(pair: tuple[Any, Any], big: Path) -> None:
    """IOFailedError with EMFILE says that it can't be made, and that nothing was sent."""
    import resource

    with Sender() as sender, big.open("rb") as file:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 1, hard))
        try:
            with pytest.raises(sendgate.IOFailedError) as caught:
                Sender()
            with pytest.raises(sendgate.IOFailedError) as refused:
                sender.submit(pair[0], None, file)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.errno == refused.value.errno == 24
        assert refused.value.connection is Connection.UNTOUCHED
        assert nothing_to_take(sender)


def test_tls_sockets_are_refused(sender: Sender) -> None:
    """The thread can't encrypt, and the message says what can."""
    server, client = tcp_pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with client, context.wrap_socket(server, server_side=True, do_handshake_on_connect=False) as tls:
        with pytest.raises(TypeError, match=r"respond in a thread, or use sendgate\.asyncio"):
            sender.submit(tls, None, b"x")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


# ---- Threads ----


def test_threads_share_a_sender(tmp_path: Path) -> None:
    """Any of them submits, cancels and takes; each response is reported once."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(300_000))
    failures: list[Any] = []
    seen: list[Any] = []
    ready = threading.Semaphore(0)

    def work(number: int, sender: Sender) -> None:
        try:
            for turn in range(25):
                server, client = tcp_pair()
                with client:
                    pipe = Pipe(server, client)
                    body: Any = path if turn % 2 else bytearray(path.read_bytes())
                    id = sender.submit(server, None, body, token=(number, turn))
                    if turn % 5 == 4:
                        sender.cancel(id)
                    seen.extend(sender.take(3))
                    server.close()
                    pipe.received()
        except BaseException as error:
            failures.append(error)
        finally:
            ready.release()

    with Sender() as sender:
        workers = [threading.Thread(target=work, args=[number, sender]) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(LONG)
        assert sender.stop(LONG)
        while taken := sender.take():
            seen += taken
    assert failures == []
    assert sorted(completion.token for completion in seen) == [(a, b) for a in range(8) for b in range(25)]
    for completion in seen:
        assert completion.error is None or isinstance(completion.error, sendgate.TransferCancelledError)


def test_closed_while_threads_use_it() -> None:
    """A sender that is closed under the hands of others tells them so, and crashes nobody."""
    unexpected: list[Any] = []
    body = os.urandom(40_000)

    def work(sender: Sender, begun: threading.Event) -> None:
        server, client = socket.socketpair()
        with server, client:
            server.setblocking(False)
            pipe = Pipe(server, client)
            try:
                while True:
                    answer = sender.submit(server, None, bytearray(body), try_now=True)
                    begun.set()
                    sender.take()
                    sender.fileno()
                    if isinstance(answer, int):
                        sender.cancel(answer)
            except (sendgate.TransferCancelledError, sendgate.BusyError):
                pass
            except ValueError as error:
                if "closed" not in str(error):
                    unexpected.append(error)
            except BaseException as error:
                unexpected.append(error)
            pipe.received()

    for _ in range(20):
        sender = Sender()
        events = [threading.Event() for _ in range(4)]
        workers = [threading.Thread(target=work, args=[sender, event]) for event in events]
        for worker in workers:
            worker.start()
        for event in events:
            assert event.wait(LONG)
        sender.close()
        for worker in workers:
            worker.join(LONG)
            assert not worker.is_alive()
    assert unexpected == []


CLIENT = """
import socket, sys, time
client = socket.socket(fileno=int(sys.argv[1]))
time.sleep(max(0, float(sys.stdin.readline()) - time.monotonic()))
begun, received = time.monotonic(), 0
while received < int(sys.argv[2]):
    received += len(client.recv(1 << 20))
print(begun, time.monotonic())
"""


def hold_the_interpreter(length: int) -> float:
    """Match a regular expression that takes twice as long for each character: all in one call, which doesn't let
    another thread run. Returns how many seconds that took.
    """
    begun = time.monotonic()
    assert re.match("(a|a)*b", "a" * length) is None
    return time.monotonic() - begun


def test_no_interpreter_is_needed(sender: Sender, tmp_path: Path) -> None:
    """A download goes on, from its first byte to its last, while no thread of Python can run."""
    path = tmp_path / "50 MiB"
    path.write_bytes(os.urandom(50 << 20))
    length = 16
    while hold_the_interpreter(length) < 0.5:
        length += 1
    # Where others use the processors too it takes longer.
    attempts = []
    for longer in range(1, 5):
        since, begun, ended, until = download_meanwhile(sender, path, length + longer)
        if until - since > 0.3 and since < begun < ended < until:
            return
        attempts.append((since, begun, ended, until))
    pytest.fail(f"held since, begun, ended, held until: {attempts}")


def download_meanwhile(sender: Sender, path: Path, length: int) -> tuple[float, float, float, float]:
    """Hold the interpreter while another process downloads the file. Returns since when no other thread of Python
    ran, when the download began and ended, and when another thread ran again.
    """
    ticks: list[float] = []
    running, stop = threading.Event(), threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks.append(time.monotonic())
            running.set()
        ticks.append(time.monotonic())

    server, client = tcp_pair()
    command = [sys.executable, "-c", CLIENT, str(client.fileno()), str(path.stat().st_size)]
    with server, client, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[client.fileno()]
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        ticker = threading.Thread(target=tick)
        ticker.start()
        sender.submit(server, None, path)
        assert running.wait(LONG)
        # The client begins when the interpreter is held.
        process.stdin.write(f"{time.monotonic() + 0.1}\n")
        process.stdin.flush()
        hold_the_interpreter(length)
        stop.set()
        ticker.join(LONG)
        (completion,) = completions(sender)
        begun, ended = map(float, process.stdout.readline().split())
    assert completion.error is None
    _, since, until = max((after - before, before, after) for before, after in zip(ticks, ticks[1:]))
    return since, begun, ended, until


# ---- Fork, and the end of the process ----


def in_child(work: Any) -> None:
    """Run it in a child made by fork. It has to return True, in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() is True else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + LONG
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    assert os.waitstatus_to_exitcode(status) == 0


def all_forked(sender: Sender, sock: socket.socket) -> bool:
    """Whether every call says that this is another process."""
    for use in (
        sender.fileno,
        sender.take,
        sender.stop,
        lambda: sender.cancel(1),
        lambda: sender.submit(sock, None, bytearray(10)),
    ):
        try:
            use()
            return False
        except sendgate.ForkedError as error:
            if error.name != "SENDGATE_ERR_FORKED":
                return False
    return True


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["close", "drop", "new"])
def test_fork(how: str, sender: Sender, pair: tuple[Any, Any], big: Path) -> None:
    """In a child each call is ForkedError, letting go of the sender neither hangs nor hurts, and a new one works."""
    server, client = pair
    body = bytearray(BIG)
    sender.submit(server, None, body)
    other, idle = tcp_pair()
    mine = Sender()
    with other, idle:
        mine.submit(other, None, big)

        def work() -> bool:
            nonlocal mine
            if not (all_forked(sender, server) and all_forked(mine, server)):
                return False
            if how == "close":
                mine.close()
                mine.close()
            elif how == "drop":
                del mine
                gc.collect()
            else:
                with Sender() as new:
                    ours, theirs = socket.socketpair()
                    new.submit(ours, None, b"hello")
                    ours.close()
                    return theirs.makefile("rb").read().endswith(b"hello")
            return True

        in_child(work)
        mine.close()
    pipe = Pipe(server, client)
    assert completions(sender)[0].error is None
    assert split(pipe.received())[2] == bytes(BIG)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_fork_while_threads_use_it(sender: Sender) -> None:
    """Whatever another thread was doing at that moment, nothing hangs in the child."""
    stop = threading.Event()

    def work() -> None:
        server, client = socket.socketpair()
        with server, client:
            pipe = Pipe(server, client)
            while not stop.is_set():
                with contextlib.suppress(sendgate.BusyError):
                    sender.submit(server, None, bytearray(1000))
                sender.take()
            pipe.received()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(10):
            # A pipe of its own: the workers' threads don't exist in the child.
            ours, theirs = socket.socketpair()
            with ours, theirs:

                def check(ours: socket.socket = ours) -> bool:
                    forked = all_forked(sender, ours)
                    sender.close()
                    return forked

                in_child(check)
    finally:
        stop.set()
        for worker in workers:
            worker.join(LONG)


@pytest.mark.parametrize("how", ["global", "cycle", "thread"])
def test_the_process_ends_meanwhile(how: str) -> None:
    """A process that ends with responses in flight ends quietly."""
    program = """
import socket, sys, threading, sendgate
ours = [end.detach() for end in socket.socketpair()][0]
sender = sendgate.Sender()
sender.submit(ours, None, bytearray(8 << 20), token=sender if sys.argv[1] == "cycle" else None)
def work():
    for _ in range(1000):
        sender.submit(ours, None, bytearray(8 << 20))
if sys.argv[1] == "thread":
    threading.Thread(target=work, daemon=True).start()
print("end")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, how], capture_output=True, text=True, timeout=LONG
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
