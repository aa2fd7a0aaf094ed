"""Receiving into buffers and files: over real sockets, over TLS, and as uploads to WSGI servers."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import mmap
import os
import re
import resource
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.validate import validator

import pytest

import sendgate
import sendgate.wsgi
from support import tcp_pair, wait_until

MIB = 1 << 20
LENGTH = 3 * MIB + 17


@pytest.fixture(scope="session")
def content() -> bytes:
    """No two blocks of it are the same."""
    blocks = [hashlib.sha256(b"%d" % number).digest() * 32 for number in range(LENGTH // 1024 + 1)]
    return b"".join(blocks)[:LENGTH]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for the peer."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(params=["plain", "TLS"])
def connection(
    request: pytest.FixtureRequest, tmp_path: Path, certificate: tuple[Path, Path], pool: ThreadPoolExecutor
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(ours, the peer's), as they are and with TLS."""
    ours, peer = tcp_pair()
    if request.param == "TLS":
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(*certificate)
        client = ssl.create_default_context(cafile=str(certificate[0]))
        handshake = pool.submit(client.wrap_socket, peer, server_hostname="localhost")
        ours = server.wrap_socket(ours, server_side=True)
        peer = handshake.result(20)
    with ours, peer:
        yield ours, peer


def file_of(path: Path, size: int = 0) -> io.BufferedRandom:
    """A file of zeros, open for reading and writing."""
    path.touch()
    os.truncate(path, size)
    return path.open("r+b")


# ---- Buffers ----


@pytest.mark.parametrize("mode", [None, 0.0, 5.0])
def test_into_every_kind_of_buffer(
    connection: tuple[socket.socket, socket.socket],
    mode: float | None,
    tmp_path: Path,
    content: bytes,
    pool: ThreadPoolExecutor,
) -> None:
    """The bytes are there, nothing behind them is taken, and the socket's timeout is as it was."""
    ours, peer = connection
    peer.settimeout(20)
    with file_of(tmp_path / "mapped", LENGTH) as file, mmap.mmap(file.fileno(), 0) as mapped:
        buffers: list[Any] = [bytearray(LENGTH), mapped, memoryview(bytearray(LENGTH + 7))[7:]]
        for buffer in buffers:
            ours.settimeout(mode)
            sending = pool.submit(peer.sendall, content + b"behind")
            assert sendgate.recv_into(ours, buffer) == LENGTH
            assert ours.gettimeout() == mode
            assert bytes(buffer) == content
            sending.result(20)
            rest = bytearray(6)
            sendgate.recv_into(ours, rest)
            assert rest == b"behind"
        assert (tmp_path / "mapped").read_bytes() == content
    numbers = array.array("I", [0, 0, 0])
    peer.sendall(struct.pack("=3I", 1, 2, 3))
    assert sendgate.recv_into(ours, numbers) == 12
    assert list(numbers) == [1, 2, 3]


def test_nbytes_says_how_many(pair: tuple[socket.socket, socket.socket]) -> None:
    """Only the first part of the buffer is written to; 0 takes nothing."""
    ours, peer = pair
    peer.sendall(b"hello world")
    buffer = bytearray(b"-" * 10)
    assert sendgate.recv_into(ours, buffer, 5) == 5
    assert sendgate.recv_into(ours.fileno(), memoryview(buffer)[5:], 2) == 2
    assert sendgate.recv_into(ours, buffer, 0) == 0
    assert buffer == b"hello w---"
    assert ours.recv(100) == b"orld"


def test_arguments_are_checked(pair: tuple[socket.socket, socket.socket]) -> None:
    """What is no writable buffer, no socket or no number is refused before anything is taken."""
    ours, peer = pair
    peer.sendall(b"x")
    for buffer in (b"bytes", memoryview(b"bytes"), "text", 5):
        with pytest.raises(TypeError):
            sendgate.recv_into(ours, buffer)  # type: ignore[arg-type]
    for arguments in ({"nbytes": 6}, {"nbytes": -1}, {"timeout": 0}, {"total_timeout": -1.0}, {"min_rate": -1}):
        with pytest.raises(sendgate.ArgumentError):
            sendgate.recv_into(ours, bytearray(5), **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        sendgate.recv_into("socket", bytearray(5))  # type: ignore[arg-type]
    with pytest.raises(sendgate.ArgumentError):
        sendgate.recv_into(-1, bytearray(5))
    for file in ("path", io.BytesIO(), True):
        with pytest.raises(TypeError):
            sendgate.recv_file(ours, file, 1)  # type: ignore[arg-type]
    with tempfile.TemporaryFile() as file:
        for length, offset in ((-1, 0), (1, -1), (2**63, 0)):
            with pytest.raises(sendgate.ArgumentError):
                sendgate.recv_file(ours, file, length, offset)
    assert ours.recv(100) == b"x"


def test_a_buffer_in_use_is_not_resized(pair: tuple[socket.socket, socket.socket]) -> None:
    """Closing or resizing it meanwhile is an error of who does it, and afterwards it can be done again."""
    ours, peer = pair
    with mmap.mmap(-1, 4096) as mapped:
        for buffer, change in ((bytearray(10), bytearray.clear), (mapped, mmap.mmap.close)):
            with ThreadPoolExecutor(1) as pool:
                receiving = pool.submit(sendgate.recv_into, ours, buffer, 10)  # type: ignore[arg-type]
                peer.sendall(b"12345")
                # Taken by the call that waits for the rest.
                wait_until(lambda buffer=buffer: buffer[:5] == b"12345")
                with pytest.raises(BufferError):
                    change(buffer)  # type: ignore[operator]
                peer.sendall(b"67890")
                assert receiving.result(20) == 10
            change(buffer)  # type: ignore[operator]


def test_nothing_is_allocated_for_the_content(pair: tuple[socket.socket, socket.socket]) -> None:
    """64 MiB arrive in an mmap without as much as a piece of them in Python's memory."""
    ours, peer = pair
    length = 64 * MIB
    block = hashlib.sha256(b"block").digest() * (MIB // 32)

    def send() -> None:
        for _ in range(64):
            peer.sendall(block)

    with mmap.mmap(-1, length) as mapped, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        tracemalloc.start()
        try:
            assert sendgate.recv_into(ours, mapped) == length
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        sending.result(20)
        assert peak < 200_000
        assert all(mapped[start : start + MIB] == block for start in range(0, length, MIB))


def test_other_threads_run_meanwhile(pair: tuple[socket.socket, socket.socket]) -> None:
    """A call that waits has no interpreter lock: the thread that sends what it waits for can run."""
    ours, peer = pair
    buffer = bytearray(1)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(sendgate.recv_into, ours, buffer)
        peer.sendall(b"x")
        assert receiving.result(20) == 1


# ---- Bytes that don't come ----


def test_an_early_end_is_an_error(connection: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    """IncompleteError is an EOFError, and tells how many bytes came; they are in their place."""
    ours, peer = connection
    peer.sendall(b"hello")
    peer.shutdown(socket.SHUT_WR)
    buffer = bytearray(10)
    with pytest.raises(sendgate.IncompleteError) as caught:
        sendgate.recv_into(ours, buffer)
    assert isinstance(caught.value, EOFError)
    assert caught.value.name == "SENDGATE_ERR_INCOMPLETE"
    assert caught.value.connection is sendgate.Connection.UNTOUCHED
    assert (caught.value.received, caught.value.stored) == (5, 5)
    assert buffer == b"hello\0\0\0\0\0"
    with tempfile.TemporaryFile() as file, pytest.raises(sendgate.IncompleteError) as caught:
        sendgate.recv_file(ours, file, 10)
    assert caught.value.received == 0


def test_a_reset_is_an_error() -> None:
    """PeerClosedError is a ConnectionError with its errno."""
    ours, peer = tcp_pair()
    with ours, peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(sendgate.PeerClosedError) as caught:
            sendgate.recv_into(ours, bytearray(5))
        assert caught.value.errno == errno.ECONNRESET


def test_timeouts(connection: tuple[socket.socket, socket.socket]) -> None:
    """A peer that is silent, one that takes too long in all, and one below the least rate; the socket is as it was."""
    ours, peer = connection
    ours.settimeout(17.0)
    peer.sendall(b"hello")
    buffer = bytearray(10)
    start = time.monotonic()
    with pytest.raises(sendgate.ResponseTimeoutError) as caught:
        sendgate.recv_into(ours, buffer, timeout=0.2)
    assert time.monotonic() - start >= 0.19
    assert (caught.value.received, bytes(buffer[:5])) == (5, b"hello")
    assert isinstance(caught.value, TimeoutError)
    assert ours.gettimeout() == 17.0

    stop = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not stop.wait(0.005):
                peer.sendall(b"x")

    with ThreadPoolExecutor(1) as pool:
        trickling = pool.submit(trickle)
        try:
            for limits in ({"total_timeout": 0.2}, {"timeout": 0.3, "min_rate": 1_000_000}):
                assert select.select([ours], [], [], 20)[0]
                with pytest.raises(sendgate.ResponseTimeoutError) as caught:
                    sendgate.recv_into(ours, bytearray(MIB), **limits)  # type: ignore[arg-type]
                assert 0 < caught.value.received < MIB
            # A byte now and then is enough if nothing more is asked for.
            assert sendgate.recv_into(ours, bytearray(20), timeout=30, min_rate=1) == 20
        finally:
            stop.set()
        trickling.result(20)


def test_without_waiting(connection: tuple[socket.socket, socket.socket], tmp_path: Path, content: bytes) -> None:
    """With try_now a call takes what is there, and an event loop goes on with the rest, for memory and for files."""
    ours, peer = connection
    buffer = bytearray(LENGTH)
    assert sendgate.recv_into(ours, buffer, try_now=True) == 0
    with file_of(tmp_path / "file") as file, ThreadPoolExecutor(1) as pool:
        assert sendgate.recv_file(ours, file, 10, try_now=True) == 0
        sending = pool.submit(peer.sendall, content * 2)
        with memoryview(buffer) as view:
            done = 0
            while done < LENGTH:
                done += sendgate.recv_into(ours, view[done:], try_now=True)
                if done < LENGTH:
                    select.select([ours], [], [], 20)
        assert buffer == content
        done = 0
        while done < LENGTH:
            done += sendgate.recv_file(ours, file, LENGTH - done, done, try_now=True)
            if done < LENGTH:
                select.select([ours], [], [], 20)
        sending.result(20)
        assert file.read() == content


# ---- Files ----


@pytest.mark.parametrize("length", [0, 1, 5000, 524287, LENGTH])
def test_into_a_file(
    connection: tuple[socket.socket, socket.socket],
    length: int,
    tmp_path: Path,
    content: bytes,
    pool: ThreadPoolExecutor,
) -> None:
    """From the object's position on, behind what was written before; the position stays, so the content can be read."""
    ours, peer = connection
    sending = pool.submit(peer.sendall, content[:length] * 2 + b"behind")
    with file_of(tmp_path / "file") as file:
        file.write(b"before")  # still in the object's buffer
        assert sendgate.recv_file(ours, file, length, timeout=20) == length
        assert file.tell() == 6
        assert file.read() == content[:length]
        # By descriptor and offset.
        assert sendgate.recv_file(ours, file.fileno(), length, 6) == length
        file.seek(0)
        assert file.read() == b"before" + content[:length]
    sending.result(20)
    rest = bytearray(6)
    assert sendgate.recv_into(ours, rest) == 6
    assert rest == b"behind"


def test_files_that_are_refused(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    """Read-only, appending, too long, not regular: found before a byte is taken, and no SIGXFSZ."""
    ours, peer = pair
    peer.sendall(b"hello")
    (tmp_path / "file").touch()

    def refused(file: Any, length: int = 5) -> sendgate.SendgateError:
        with pytest.raises(sendgate.SendgateError) as caught:
            sendgate.recv_file(ours, file, length, 0)
        assert caught.value.received == 0
        assert ours.recv(100, socket.MSG_PEEK) == b"hello"
        return caught.value

    with (tmp_path / "file").open("rb") as file:
        assert refused(file).errno == errno.EBADF
    with (tmp_path / "file").open("ab") as file:
        assert refused(file).errno == errno.EINVAL
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        assert isinstance(refused(directory), sendgate.NotRegularError)
    finally:
        os.close(directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, hard))
    try:
        with (tmp_path / "file").open("r+b") as file:
            assert refused(file).errno == errno.EFBIG
            assert sendgate.recv_file(ours, file, 4, 0) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


class OwnSocket(socket.socket):
    """A socket with a recv_into() of its own, which raises at the call of this number."""

    raises: Exception | None = None
    at = 0

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As the base class's."""
        self.at -= 1
        if self.raises is not None and self.at == 0:
            raise self.raises
        return super().recv_into(buffer, nbytes, flags)


def unwritable(path: Path) -> Iterator[tuple[int, type[sendgate.SendgateError], int]]:
    """Descriptors of files that nothing can be written to at an offset, and what says so."""
    path.write_bytes(b"0123456789")
    reading, writing = os.pipe()
    opened = [os.open(path, flags) for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND)]
    try:
        yield opened[0], sendgate.IOFailedError, errno.EBADF
        yield opened[1], sendgate.IOFailedError, errno.EINVAL
        yield writing, sendgate.NotRegularError, errno.ESPIPE
    finally:
        for fd in (reading, writing, *opened):
            os.close(fd)
    assert path.read_bytes() == b"0123456789"


def test_files_are_refused_with_every_kind_of_socket(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    """Those that are read by their own recv_into() too: nothing is taken, and nothing is written."""
    ours, peer = pair
    peer.sendall(b"hello")
    with OwnSocket(fileno=os.dup(ours.fileno())) as own:
        for file, kind, number in unwritable(tmp_path / "file"):
            with pytest.raises(kind) as caught:
                sendgate.recv_file(own, file, 5, 0)
            assert (caught.value.errno, caught.value.received, caught.value.stored) == (number, 0, 0)
        assert own.recv(100) == b"hello"


@pytest.mark.parametrize("length", [100_000, LENGTH])
def test_a_file_that_fails_tells_how_much_it_has(
    pair: tuple[socket.socket, socket.socket], length: int, content: bytes
) -> None:
    """received is what was taken, stored what is in the file, and the rest is still there to be read."""
    ours, peer = pair
    file = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        os.truncate(file, length // 2)
        # As a full disk: what would make it longer fails.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(peer.sendall, content[:length])
            with pytest.raises(sendgate.IOFailedError) as caught:
                sendgate.recv_file(ours, file, length)
            error = caught.value
            assert error.errno == errno.EPERM
            assert error.stored <= length // 2 < error.received
            assert os.pread(file, length, 0)[: error.stored] == content[: error.stored]
            rest = bytearray(length - error.received)
            assert sendgate.recv_into(ours, rest) == len(rest)
            assert rest == content[error.received : length]
            sending.result(20)
    finally:
        os.close(file)


# ---- Other sockets ----

GEVENT = """
    import gevent.monkey
    gevent.monkey.patch_all()
    import os, socket, ssl, sys, tempfile
    import gevent
    import sendgate

    assert type(socket.socket()).__module__.startswith("gevent")
    content = os.urandom(3 << 20)
    ours, peer = socket.socketpair()
    ours.settimeout(17)
    others = []
    gevent.spawn(peer.sendall, content * 2 + b"hello")
    buffer = bytearray(len(content))
    assert sendgate.recv_into(ours, buffer) == len(content) and buffer == content
    with tempfile.TemporaryFile() as file:
        file.write(b"before")
        assert sendgate.recv_file(ours, file, len(content)) == len(content)
        assert file.read() == content
    # Others run while it waits, and its time is limited.
    gevent.spawn(others.append, "ran")
    for limits in {"timeout": 0.1}, {"total_timeout": 0.1}:
        try:
            sendgate.recv_into(ours, buffer, 10, **limits)
        except sendgate.ResponseTimeoutError as error:
            assert error.received in (0, 5)
    assert others == ["ran"] and buffer[:5] == b"hello"
    assert ours.gettimeout() == 17
    assert sendgate.recv_into(ours, buffer, 10, try_now=True) == 0
    peer.sendall(b"end")
    peer.close()
    with tempfile.TemporaryFile() as file:
        try:
            sendgate.recv_file(ours, file, 10)
        except sendgate.IncompleteError as error:
            assert (error.received, error.stored, file.read()) == (3, 3, b"end")
    print("done")
"""


def test_gevent_sockets_let_others_run(tmp_path: Path) -> None:
    """A socket with a way of its own to wait is read by its own recv_into, within the same limits."""
    pytest.importorskip("gevent")
    command = [sys.executable, "-c", textwrap.dedent(GEVENT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# ---- Pools ----


@pytest.mark.parametrize("shared", [False, True])
def test_a_pool_lends_its_buffers_again(shared: bool) -> None:
    """At most count of them exist, each for one at a time; a returned one can't be used any more."""
    pool = sendgate.BufferPool(100, 2, shared=shared)
    with pool.get() as first, pool.get() as second:
        assert len(first) == len(second) == 100
        first[:5] = b"first"
        for timeout in (0, 0.01):
            with pytest.raises(sendgate.BusyError):
                pool.get(timeout)
    with pytest.raises(ValueError, match="released"):
        first[0]
    with pool.get(0) as again, pool.get(0) as other:
        # Not cleared: a buffer is the same as before.
        assert {bytes(again[:5]), bytes(other[:5])} == {b"first", bytes(5)}


def test_a_pool_waits_for_a_buffer() -> None:
    """A get waits until another thread gives one back."""
    pool = sendgate.BufferPool(10, 1)
    lease = pool.get()
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(lambda: pool.get(20).release())
        lease.release()
        lease.release()  # does nothing
        waiting.result(20)
    with pool.get(0), pytest.raises(sendgate.BusyError):
        pool.get(0)
    # One that was dropped comes back as well.
    pool.get(0)
    pool.get(0).release()


def test_many_threads_share_a_pool() -> None:
    """No buffer is with two threads at a time, and none is lost."""
    pool = sendgate.BufferPool(8, 3)

    def use(number: int) -> None:
        for turn in range(200):
            with pool.get(20) as buffer:
                buffer[:] = mine = struct.pack("=II", number, turn)
                time.sleep(0)
                assert buffer == mine

    with ThreadPoolExecutor(8) as executor:
        for done in [executor.submit(use, number) for number in range(8)]:
            done.result(60)
    leases = [pool.get(0) for _ in range(3)]
    for lease in leases:
        lease.release()


@pytest.mark.parametrize("shared", [False, True])
def test_a_buffer_that_is_still_looked_at_leaves_the_pool(shared: bool) -> None:
    """Whoever has made something of it keeps its bytes: the next gets another buffer."""
    pool = sendgate.BufferPool(4, 1, shared=shared)
    for make in (lambda buffer: buffer[1:], (ctypes.c_char * 4).from_buffer, memoryview):
        with pool.get(0) as buffer:
            buffer[:] = b"kept"
            kept = make(buffer)  # type: ignore[operator]
        with pool.get(0) as other:
            other[:] = b"next"
        assert bytes(kept) in (b"kept", b"ept")
        del kept
        with pool.get(0) as again:
            assert again == b"next"


SHARED = """
    import os, socket, sendgate
    ours, peer = socket.socketpair()
    with sendgate.BufferPool(5, 1, shared=True).get() as buffer:
        child = os.fork()
        if child == 0:
            sendgate.recv_into(ours, buffer)
            os._exit(0)
        peer.sendall(b"hello")
        assert os.waitpid(child, 0)[1] == 0
        print(bytes(buffer))
"""


def test_a_shared_buffer_is_shared_with_children() -> None:
    """What a forked child receives is seen by its parent."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SHARED)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "b'hello'\n"), done.stderr


def test_pool_arguments() -> None:
    """Sizes and numbers below 1, and negative timeouts, are refused."""
    for arguments in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(sendgate.ArgumentError):
            sendgate.BufferPool(*arguments)
    with pytest.raises(sendgate.ArgumentError):
        sendgate.BufferPool(1, 1).get(-1)


# ---- WSGI ----

APPLICATION = '''
    import hashlib, json, mmap, tempfile, threading, tracemalloc

    import sendgate
    import sendgate.wsgi

    pool = sendgate.BufferPool(10007, 4)


    def upload(environ, way):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        digest = hashlib.sha256()
        if way == "mmap":
            with tempfile.TemporaryFile() as file:
                file.truncate(length + 1)
                with mmap.mmap(file.fileno(), length + 1) as mapped:
                    received = sendgate.wsgi.read_into(environ, mapped)
                    with memoryview(mapped) as view:
                        digest.update(view[:received])
        elif way == "file":
            with tempfile.TemporaryFile() as file:
                received = sendgate.wsgi.receive_file(environ, file)
                while piece := file.read(65536):
                    digest.update(piece)
        elif way == "parts":
            with tempfile.TemporaryFile() as file:
                received = sendgate.wsgi.receive_file(environ, file, 5)
                received += sendgate.wsgi.receive_file(environ, file, 100000, received)
                received += sendgate.wsgi.receive_file(environ, file, offset=received)
                digest.update(file.read())
        else:
            received = 0
            if way == "mixed":
                first = environ["wsgi.input"].readline() + environ["wsgi.input"].read(10)
                digest.update(first)
                received = len(first)
            with pool.get() as buffer:
                while count := sendgate.wsgi.read_into(environ, buffer, total_timeout=60):
                    digest.update(buffer[:count])
                    received += count
        return {"received": received, "digest": digest.hexdigest()}


    def application(environ, start_response):
        way = environ["PATH_INFO"].strip("/")
        counted, _, way = way.rpartition("/")
        if counted:
            return give(start_response, count(environ, way))
        measure = way == "mmap"
        if measure:
            tracemalloc.start()
        try:
            answer = upload(environ, way)
            if measure:
                answer["peak"] = tracemalloc.get_traced_memory()[1]
        except sendgate.SendgateError as error:
            answer = {"error": type(error).__name__, "received": error.received, "stored": error.stored}
        finally:
            if measure:
                tracemalloc.stop()
        return give(start_response, answer)


    def give(start_response, answer):
        body = json.dumps(answer).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


    def count(environ, way):
        """The upload, and how much of it gunicorn has read from the socket meanwhile."""
        from gunicorn.http.unreader import SocketUnreader

        original, lengths = SocketUnreader.chunk, []

        def chunk(self, *size):
            data = original(self, *size)
            lengths.append(len(data))
            return data

        SocketUnreader.chunk = chunk
        try:
            return {**upload(environ, way), "by_gunicorn": sum(lengths)}
        finally:
            SocketUnreader.chunk = original
'''

SERVERS = {
    "sync": "gunicorn -k sync",
    "SyncWorker": "gunicorn -k sendgate.gunicorn.SyncWorker",
    "ThreadWorker": "gunicorn -k sendgate.gunicorn.ThreadWorker",
    "GeventWorker": "gunicorn -k sendgate.gunicorn.GeventWorker",
    "TLS": "gunicorn -k sendgate.gunicorn.ThreadWorker --certfile {certificate} --keyfile {key}",
    "waitress": "waitress --listen 127.0.0.1:0",
    "wsgiref": "",
    "validator": "",
}
#: Those that have chunks, and give them to the application as they were before they were cut.
CHUNKS = [name for name in SERVERS if name not in ("wsgiref", "validator")]
#: Those where the bytes come from the socket.
DIRECT = [name for name in SERVERS if name not in ("wsgiref", "validator", "waitress")]


class Upload:
    """A WSGI server, and how to send it content."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None = None) -> None:
        self._address = address
        self._context = context

    def connect(self) -> socket.socket:
        """A new connection."""
        sock = socket.create_connection(self._address, timeout=60)
        return sock if self._context is None else self._context.wrap_socket(sock, server_hostname="localhost")

    def head(self, way: str, *fields: str) -> bytes:
        """Of a request."""
        return "\r\n".join((f"POST /{way} HTTP/1.1", "Host: localhost", *fields, "", "")).encode()

    def answer(self, sock: socket.socket) -> dict[str, Any]:
        """What the application has answered; the next answer may follow."""
        received = b""
        while b"\r\n\r\n" not in received:
            data = sock.recv(1)
            assert data, received
            received += data
        found = re.search(rb"content-length: (\d+)", received, re.I)
        assert received.split(b" ")[1] == b"200" and found, received
        body = b""
        while len(body) < int(found[1]):
            body += sock.recv(int(found[1]) - len(body))
        answer: dict[str, Any] = json.loads(body)
        return answer

    def __call__(self, way: str, *pieces: bytes, fields: tuple[str, ...] = ()) -> dict[str, Any]:
        """Send it all, with its length unless the fields say otherwise."""
        fields = fields or (f"Content-Length: {sum(map(len, pieces))}",)
        with self.connect() as sock:
            sock.sendall(self.head(way, *fields, "Connection: close"))
            for piece in pieces:
                sock.sendall(piece)
            return self.answer(sock)


@contextlib.contextmanager
def in_this_process(application: Any) -> Iterator[tuple[str, int]]:
    """wsgiref, with a thread for its server."""
    handler = type("Quiet", (WSGIRequestHandler,), {"log_message": lambda *_: None})
    with make_server("127.0.0.1", 0, application, WSGIServer, handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join(20)


@contextlib.contextmanager
def in_a_process(command: str, directory: Path) -> Iterator[tuple[str, int]]:
    """gunicorn or waitress."""
    module, *options = command.split()
    if module == "gunicorn":
        options += ["-b", "127.0.0.1:0", "--chdir", str(directory), "--worker-tmp-dir", str(directory)]
        options += ["--no-control-socket", "--keep-alive", "60"]
    log = directory / "log"
    with log.open("w") as output:
        command_line = [sys.executable, "-m", module, *options, "uploads:application"]
        process = subprocess.Popen(command_line, cwd=directory, stdout=output, stderr=output)
    try:
        address = re.compile(r"(?:Listening at: https?|Serving on http)://127\.0\.0\.1:(\d+)")
        wait_until(lambda: process.poll() is not None or address.search(log.read_text()))
        found = address.search(log.read_text())
        assert found, log.read_text()
        yield "127.0.0.1", int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert "Traceback" not in log.read_text(), log.read_text()


@contextlib.contextmanager
def running(name: str, directory: Path, certificate: tuple[Path, Path]) -> Iterator[Upload]:
    """One of SERVERS."""
    source = textwrap.dedent(APPLICATION)
    (directory / "uploads.py").write_text(source)
    if SERVERS[name]:
        pytest.importorskip(SERVERS[name].split()[0])
        if name == "GeventWorker":
            pytest.importorskip("gevent")
        command = SERVERS[name].format(certificate=certificate[0], key=certificate[1])
        context = ssl.create_default_context(cafile=str(certificate[0])) if name == "TLS" else None
        with in_a_process(command, directory) as address:
            yield Upload(address, context)
    else:
        names: dict[str, Any] = {}
        exec(source, names)
        application = names["application"]
        with in_this_process(validator(application) if name == "validator" else application) as address:
            yield Upload(address)


@pytest.fixture(params=SERVERS)
def uploads(
    request: pytest.FixtureRequest, tmp_path: Path, certificate: tuple[Path, Path]
) -> Iterator[tuple[str, Upload]]:
    """Each server with its name."""
    with running(request.param, tmp_path, certificate) as upload:
        yield request.param, upload


def chunked(content: bytes) -> Iterator[bytes]:
    """In chunks of different lengths (RFC 9112 7.1)."""
    start, length = 0, 1
    while start < len(content):
        piece = content[start : start + length]
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
        start, length = start + length, min(length * 3, 200_000)
    yield b"0\r\n\r\n"


def test_uploads(uploads: tuple[str, Upload], content: bytes) -> None:
    """Every length in every way: the right bytes; what comes early, and what comes in chunks; and an early end."""
    name, upload = uploads
    for way in ("mmap", "file", "pieces", "parts"):
        for length in (0, 1, 5, 9000, LENGTH):
            want = {"received": length, "digest": hashlib.sha256(content[:length]).hexdigest()}
            answer = upload(way, content[:length])
            answer.pop("peak", None)
            assert answer == want, (way, length)
            if name in CHUNKS and way != "mmap":
                answer = upload(way, *chunked(content[:length]), fields=("Transfer-Encoding: chunked",))
                assert answer == want, (way, length, "in chunks")
    if name in DIRECT:
        want = {"received": LENGTH, "digest": hashlib.sha256(content).hexdigest()}
        assert upload("mixed", content) == want
        # Waitress reads all of a request before it calls the application.
    if name != "waitress":
        for way in ("mmap", "file"):
            for length in (0, 5, 200_000):
                with upload.connect() as sock:
                    sock.sendall(upload.head(way, f"Content-Length: {length + 1}") + content[:length])
                    sock.shutdown(socket.SHUT_WR)
                    if name == "TLS":
                        continue  # Nothing can be read from an SSLSocket that was shut down.
                    answer = upload.answer(sock)
                    assert answer == {"error": "IncompleteError", "received": length, "stored": length}


def test_64_mib_into_a_mapping(uploads: tuple[str, Upload]) -> None:
    """The right bytes, and memory that is flat: what there is besides the mapping is less than a piece of it."""
    name, upload = uploads
    block = hashlib.sha256(b"block").digest() * (MIB // 32)
    digest = hashlib.sha256()
    for _ in range(64):
        digest.update(block)
    answer = upload("mmap", *[block] * 64)
    assert (answer["received"], answer["digest"]) == (64 * MIB, digest.hexdigest())
    assert answer["peak"] < 1_000_000, name


@pytest.mark.parametrize("name", DIRECT)
def test_content_bypasses_gunicorn(name: str, tmp_path: Path, certificate: tuple[Path, Path], content: bytes) -> None:
    """What gunicorn has not read with the head goes from the socket into the buffer or the file; chunks can't."""
    with running(name, tmp_path, certificate) as upload:
        for way in ("mmap", "file"):
            head = upload.head(f"counted/{way}", f"Content-Length: {LENGTH}", "Connection: close")
            with upload.connect() as sock:
                sock.sendall(head + content[:100])
                sock.sendall(content[100:])
                answer = upload.answer(sock)
            assert (answer["received"], answer["by_gunicorn"]) == (LENGTH, 0)
            assert answer["digest"] == hashlib.sha256(content).hexdigest()
        answer = upload("counted/file", *chunked(content), fields=("Transfer-Encoding: chunked",))
        # But for what came with the head.
        assert answer["received"] == LENGTH
        assert answer["by_gunicorn"] > LENGTH // 2


def test_the_next_request_is_found(tmp_path: Path, certificate: tuple[Path, Path], content: bytes) -> None:
    """Requests that follow each other at once on one connection are not mixed up with the content of those before."""
    with running("ThreadWorker", tmp_path, certificate) as upload, upload.connect() as sock:
        ways = [
            ("mmap", 1),
            ("file", 9000),
            ("pieces", 100),
            ("file", LENGTH),
            ("mmap", 0),
            ("mixed", 300_000),
            ("file", 5),
        ]
        with ThreadPoolExecutor(1) as pool:
            requests = [upload.head(way, f"Content-Length: {length}") + content[:length] for way, length in ways]
            sending = pool.submit(sock.sendall, b"".join(requests))
            for way, length in ways:
                answer = upload.answer(sock)
                assert answer["received"] == length, way
                assert answer["digest"] == hashlib.sha256(content[:length]).hexdigest(), way
            sending.result(20)


class Pieces:
    """A wsgi.input with no more than PEP 3333 asks for, which gives less than it could."""

    def __init__(self, content: bytes) -> None:
        self._stream = io.BytesIO(content)
        self.largest = 0

    def read(self, size: int) -> bytes:
        """As PEP 3333 has it."""
        self.largest = max(self.largest, size)
        return self._stream.read(min(size, 1000))


def test_any_input(content: bytes) -> None:
    """Without readinto() the pieces are bounded, Content-Length is not read past, and nothing is read where there is no
    content.
    """
    source = Pieces(content)
    environ: dict[str, Any] = {"wsgi.input": source, "CONTENT_LENGTH": "2000000"}
    buffer = bytearray(1_500_000)
    assert sendgate.wsgi.read_into(environ, buffer) == 1_500_000
    assert buffer == content[:1_500_000]
    with tempfile.TemporaryFile() as file:
        assert sendgate.wsgi.receive_file(environ, file) == 500_000
        assert file.read() == content[1_500_000:2_000_000]
        assert sendgate.wsgi.receive_file(environ, file) == sendgate.wsgi.read_into(environ, buffer) == 0
    assert source.largest <= 65536
    assert source.read(1000) == content[2_000_000:2_001_000]

    for more in ({}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "0", "wsgi.input_terminated": True}):
        assert sendgate.wsgi.read_into({"wsgi.input": Pieces(b"x"), **more}, buffer) == 0
    # Ends by itself, and nothing says when.
    environ = {"wsgi.input": io.BytesIO(b"hello"), "wsgi.input_terminated": True}
    assert [sendgate.wsgi.read_into(environ, buffer) for _ in range(2)] == [5, 0]
    assert buffer[:5] == b"hello"
    environ = {"wsgi.input": Pieces(b"hello"), "CONTENT_LENGTH": "10"}
    with tempfile.TemporaryFile() as file, pytest.raises(sendgate.IncompleteError) as caught:
        sendgate.wsgi.receive_file(environ, file)
    assert (caught.value.received, caught.value.stored) == (5, 5)


def test_a_full_disk_in_an_upload(content: bytes) -> None:
    """As of sockets: stored says what the file has."""
    file = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        os.truncate(file, 81920)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        environ = {"wsgi.input": io.BytesIO(content), "CONTENT_LENGTH": str(LENGTH)}
        with pytest.raises(sendgate.IOFailedError) as caught:
            sendgate.wsgi.receive_file(environ, file)
        assert caught.value.errno == errno.EPERM
        assert (caught.value.received, caught.value.stored) == (131072, 81920)
        assert os.pread(file, 100_000, 0) == content[:81920]
    finally:
        os.close(file)


class Held:
    """Content of ten bytes on gunicorn: half of it was read with the head, the rest is in the socket."""

    def __init__(self, ours: socket.socket) -> None:
        from gunicorn.http.body import Body, LengthReader
        from gunicorn.http.unreader import SocketUnreader

        self.sock = OwnSocket(fileno=os.dup(ours.fileno()))
        unreader = SocketUnreader(self.sock)
        unreader.unread(b"HELLO")
        self.reader = LengthReader(unreader, 10)
        self.environ: dict[str, Any] = {"wsgi.input": Body(self.reader), "CONTENT_LENGTH": "10"}


def test_nothing_is_taken_for_a_file_that_is_refused(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    """Neither from a wsgi.input, nor what gunicorn holds: the application can still take it for something else."""
    ours, peer = pair
    peer.sendall(b"WORLD")
    held = Held(ours)
    inputs = [{"wsgi.input": io.BytesIO(b"HELLOWORLD"), "CONTENT_LENGTH": "10"}, held.environ]
    with held.sock:
        for environ in inputs:
            for file, kind, number in unwritable(tmp_path / "file"):
                with pytest.raises(kind) as caught:
                    sendgate.wsgi.receive_file(environ, file, offset=0)
                assert (caught.value.errno, caught.value.received, caught.value.stored) == (number, 0, 0)
            # Neither for arguments that are refused.
            buffer = bytearray(10)
            if environ is held.environ:
                with pytest.raises(sendgate.ArgumentError):
                    sendgate.wsgi.read_into(environ, buffer, timeout=-1)
            assert environ.get("sendgate.taken", 0) == 0
            assert sendgate.wsgi.read_into(environ, buffer) == 10
            assert buffer == b"HELLOWORLD"


class Stop(Exception):
    """Of another library's, as gevent.Timeout is."""


@pytest.mark.parametrize("error", [Stop(), OSError(errno.EIO, "I/O error")])
@pytest.mark.parametrize("way", ["buffer", "file"])
def test_what_was_taken_is_known_whatever_is_raised(
    pair: tuple[socket.socket, socket.socket], way: str, error: Exception
) -> None:
    """gunicorn goes on to the next request behind the content, also if an exception has interrupted reading it."""
    ours, peer = pair
    peer.sendall(b"WO")
    held = Held(ours)
    held.sock.raises, held.sock.at = error, 2
    with held.sock, tempfile.TemporaryFile() as file:
        with pytest.raises(type(error)):
            if way == "file":
                sendgate.wsgi.receive_file(held.environ, file)
            else:
                sendgate.wsgi.read_into(held.environ, bytearray(10))
        assert (held.reader.length, held.environ["sendgate.taken"]) == (3, 7)
        peer.sendall(b"RLDGET / HTTP/1.1")
        rest = bytearray(10)
        assert sendgate.wsgi.read_into(held.environ, rest) == 3
        assert rest[:3] == b"RLD"
        assert ours.recv(100) == b"GET / HTTP/1.1"


def test_what_was_taken_from_any_input_is_known(content: bytes) -> None:
    """The same for a wsgi.input of another server."""

    class Failing(Pieces):
        def read(self, size: int) -> bytes:
            piece = super().read(size)
            if self._stream.tell() > 5000:
                raise Stop
            return piece

    environ = {"wsgi.input": Failing(content), "CONTENT_LENGTH": "10000"}
    with pytest.raises(Stop):
        sendgate.wsgi.read_into(environ, bytearray(10000))
    assert environ["sendgate.taken"] == 5000
