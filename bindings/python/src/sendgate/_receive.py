"""Receiving: what a peer sends goes into a buffer or a file of the caller's, and nowhere else in between.

``recv_into`` and ``recv_file`` take a socket, ``read_into`` and ``receive_file`` the environ of a WSGI application. A
``BufferPool`` has buffers for them.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional

from sendgate._native import ffi, lib

from ._core import _INT64_MAX, _error, _int, _invalid, _milliseconds, _new, _type
from ._errors import BusyError, SendgateError

if TYPE_CHECKING:
    from typing_extensions import Buffer, TypeAlias

    from ._types import HasFileno, Socket

    #: timeout, total_timeout, min_rate.
    _Limits: TypeAlias = tuple[float, Optional[float], int]

_SOURCE = _type("sendgate_source")
_RECEIVED = _type("sendgate_received")

#: Bytes of a piece, where it takes pieces.
_PIECE = 65536

# ---- A pool of buffers ----


class BufferPool:
    """Buffers that are used again, at most count of them, of size bytes each.

        pool = sendgate.BufferPool(1 << 20, 8)
        with pool.get() as buffer:
            received = sendgate.recv_into(connection, buffer, length)

    A buffer is a memoryview of a bytearray, or, with shared, of an anonymous mmap, which processes that are forked
    later have too. It is made when it is first needed, and not cleared in between. At the end of the block it goes back
    to the pool, and using it raises ValueError. If something that was made of it is still there (a slice, an array) its
    content stays, and a new buffer takes its place in the pool.

    Threads may share a pool. Make it after a fork.
    """

    def __init__(self, size: int, count: int, *, shared: bool = False) -> None:
        self.size = _int(size, 1, _INT64_MAX, "size")
        self.count = _int(count, 1, 2**31 - 1, "count")
        self._shared = shared
        # The last that came back is the next that goes: its memory is in the processor's cache.
        self._free: list[bytearray | mmap.mmap] = []
        self._places = threading.Semaphore(count)

    def get(self, timeout: float | None = None) -> Lease:
        """A buffer, for a with block. If all are in use, waits for one, for timeout seconds (None: as long as it takes;
        0: not at all), and then raises BusyError.
        """
        if timeout is not None and timeout < 0:
            raise _invalid(f"timeout must not be negative, but is {timeout}")
        got = self._places.acquire(timeout=timeout) if timeout else self._places.acquire(blocking=timeout is None)
        if not got:
            message = f"all {self.count} buffers are in use"
            raise BusyError(message, status=lib.SENDGATE_ERR_BUSY, name="SENDGATE_ERR_BUSY")
        try:
            return Lease(self, self._take())
        except BaseException:
            self._places.release()
            raise

    def _take(self) -> bytearray | mmap.mmap:
        try:
            return self._free.pop()
        except IndexError:
            return mmap.mmap(-1, self.size) if self._shared else bytearray(self.size)

    def _give_back(self, memory: bytearray | mmap.mmap | None) -> None:
        if memory is not None:
            self._free.append(memory)
        self._places.release()


def _check_unused(memory: bytearray | mmap.mmap) -> None:
    """BufferError if anything still looks at it. Both tell when their size is to be changed, and here it isn't."""
    if isinstance(memory, bytearray):
        memory.append(memory.pop())
    else:
        # A Python that doesn't resize such mappings at all can't tell.
        with suppress(OSError, SystemError, ValueError):
            memory.resize(len(memory))


class Lease:
    """A buffer of a ``BufferPool`` that is in use."""

    def __init__(self, pool: BufferPool, memory: bytearray | mmap.mmap) -> None:
        self._pool = pool
        self._memory: bytearray | mmap.mmap | None = memory
        self._view = memoryview(memory)

    @property
    def buffer(self) -> memoryview:
        """The buffer."""
        return self._view

    def release(self) -> None:
        """Give it back; again does nothing."""
        memory, self._memory = self._memory, None
        if memory is None:
            return
        try:
            self._view.release()
            _check_unused(memory)
        except BufferError:
            self._pool._give_back(None)
        else:
            self._pool._give_back(memory)

    def __enter__(self) -> memoryview:
        return self._view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


# ---- Sockets ----


def _failed(
    status: int, received: int, stored: int, sys_errno: int = 0, cause: BaseException | None = None
) -> SendgateError:
    """The exception for a status, with what came before it."""
    error = _error(status, sys_errno=sys_errno)
    error.received = received
    error.stored = stored
    error.__cause__ = cause
    return error


class _TlsReader:
    """Takes bytes from an SSLSocket and gives them to the library."""

    __slots__ = ("error", "sock")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        #: What recv_into() raised that has no status code.
        self.error: BaseException | None = None

    def read(self, data: Any, room: int, length: Any) -> int:
        """The contract of sendgate_read_fn. Never raises."""
        try:
            # OpenSSL counts with an int.
            length[0] = self.sock.recv_into(ffi.buffer(data, min(room, 1 << 30)))
        except ssl.SSLWantReadError:
            return int(lib.SENDGATE_WANT_READ)
        except ssl.SSLWantWriteError:
            return int(lib.SENDGATE_WANT_WRITE)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            length[0] = 0
        except ConnectionError:
            return int(lib.SENDGATE_ERR_PEER_CLOSED)
        except BaseException as error:
            # An exception can't pass through C: it waits here until the library has returned.
            self.error = error
            return int(lib.SENDGATE_ERR_IO)
        return int(lib.SENDGATE_OK)


@ffi.callback("sendgate_read_fn", error=lib.SENDGATE_ERR_INTERNAL)  # type: ignore[untyped-decorator]
def _tls_read(user: Any, data: Any, room: int, length: Any) -> int:
    reader: _TlsReader = ffi.from_handle(user)
    return reader.read(data, room, length)


class _Origin:
    """A socket to receive from, and the time that it may take.

    The standard library's sockets are read by the library, without the interpreter lock. All others have a way of their
    own to wait (gevent's let the others run meanwhile), so they are read by their own recv_into().
    """

    __slots__ = ("_handle", "_limits", "_sock", "_tls", "_try_now", "c", "received")

    def __init__(
        self, sock: Socket, timeout: float, total_timeout: float | None, min_rate: int, try_now: bool = False
    ) -> None:
        source = _new(_SOURCE)
        source.idle_timeout_ms = _milliseconds(timeout, "timeout")
        source.total_timeout_ms = _milliseconds(total_timeout, "total_timeout")
        source.min_rate = _int(min_rate, 0, 2**64 - 1, "min_rate")
        source.flags = lib.SENDGATE_SOURCE_TRY_NOW if try_now else 0
        self._tls: _TlsReader | None = None
        self._limits = timeout, total_timeout, min_rate
        self._try_now = try_now
        self._sock = sock
        #: Bytes that were taken from it, whatever exception has come.
        self.received = 0
        self.c: Any = source
        if isinstance(sock, int):
            source.fd = _int(sock, 0, 2**31 - 1, "a socket's descriptor")
        elif type(sock).__module__ not in ("socket", "_socket", "ssl") and hasattr(sock, "recv_into"):
            self.c = None
        elif isinstance(sock, ssl.SSLSocket):
            self._tls = _TlsReader(sock)
            self._handle = ffi.new_handle(self._tls)
            source.read = _tls_read
            source.user = self._handle
            source.fd = sock.fileno()
        elif hasattr(sock, "fileno"):
            source.fd = _int(sock.fileno(), 0, 2**31 - 1, "a socket's descriptor (is it closed?)")
        else:
            raise TypeError(f"sock must be a socket or a descriptor, not {type(sock).__name__}")

    def to_memory(self, view: memoryview) -> int:
        """Fill the view, which is one of bytes. How many came: fewer only with try_now."""
        if self.c is None:
            return self._by_itself(view)
        with ffi.from_buffer("uint8_t[]", view, require_writable=True) as memory, self._unblocked():
            got = _new(_RECEIVED)
            status = lib.sendgate_receive(self.c, memory, len(memory), got)
        return self._finish(status, got)

    def to_file(self, fd: int, offset: int, length: int) -> int:
        """The same, with length bytes that go to a file."""
        if self.c is None:
            return _pieces(self._by_itself, fd, offset, length)
        got = _new(_RECEIVED)
        with self._unblocked():
            status = lib.sendgate_receive_file(self.c, fd, offset, length, got)
        return self._finish(status, got)

    @contextmanager
    def _unblocked(self) -> Iterator[None]:
        """An SSLSocket doesn't wait in its own recv_into() meanwhile: the library waits, within its timeouts."""
        sock = None if self._tls is None else self._tls.sock
        before = 0.0 if sock is None else sock.gettimeout()
        if sock is None or before == 0.0:
            yield
            return
        sock.settimeout(0.0)
        try:
            yield
        finally:
            # A closed socket has no mode to restore.
            if sock.fileno() >= 0:
                sock.settimeout(before)

    def _finish(self, status: int, got: Any) -> int:
        received = int(got.received)
        self.received += received
        if status >= 0:
            return received
        cause = None
        if self._tls is not None and self._tls.error is not None:
            cause, self._tls.error = self._tls.error, None
            if not isinstance(cause, Exception):
                raise cause
        raise _failed(status, received, int(got.stored), got.sys_errno, cause)

    def _by_itself(self, view: memoryview) -> int:
        """The same as sendgate_receive, by the socket's own method."""
        sock: Any = self._sock
        timeout, total_timeout, min_rate = self._limits
        now = time.monotonic()
        end = None if total_timeout is None else now + total_timeout
        period, counted = now, 0
        done = 0
        before = sock.gettimeout()
        try:
            while done < len(view):
                if self._try_now:
                    sock.settimeout(0.0)
                else:
                    sock.settimeout(timeout if end is None else max(min(timeout, end - now), 0.001))
                with view[done:] as rest:
                    count = sock.recv_into(rest)
                if count == 0:
                    raise _failed(lib.SENDGATE_ERR_INCOMPLETE, done, done)
                done += count
                self.received += count
                now = time.monotonic()
                too_slow = min_rate and now - period >= timeout and done - counted < min_rate * (now - period)
                if done < len(view) and not self._try_now and (too_slow or (end is not None and now >= end)):
                    raise _failed(lib.SENDGATE_ERR_TIMEOUT, done, done)
                if now - period >= timeout:
                    period, counted = now, done
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not self._try_now:
                raise
        except ConnectionError as error:
            raise _failed(lib.SENDGATE_ERR_PEER_CLOSED, done, done, error.errno or 0, error) from error
        except (socket.timeout, TimeoutError) as error:
            if isinstance(error, SendgateError):
                raise
            raise _failed(lib.SENDGATE_ERR_TIMEOUT, done, done, 0, error) from error
        finally:
            sock.settimeout(before)
        return done


def _store(fd: int, piece: memoryview, offset: int, before: int) -> int:
    """Write all of it. before: how many bytes were stored before that, for the exception."""
    stored = 0
    while stored < len(piece):
        try:
            stored += os.pwrite(fd, piece[stored:], offset + stored)
        except OSError as error:
            number = error.errno or errno.EIO
            raise _failed(lib.SENDGATE_ERR_IO, before + len(piece), before + stored, number, error) from error
    return stored


def _check_file(fd: int, end: int) -> None:
    """Refuse what the library refuses before it takes anything: what can't be written to at an offset, and an end
    beyond RLIMIT_FSIZE.
    """
    source, got = _new(_SOURCE), _new(_RECEIVED)
    # No bytes are asked for, so nothing is read from this.
    source.fd = fd
    status = lib.sendgate_receive_file(source, fd, end, 0, got)
    if status < 0:
        raise _failed(status, 0, 0, got.sys_errno)


def _pieces(fill: Callable[[memoryview], int], fd: int, offset: int, length: int | None) -> int:
    """Put what comes into a file, piece by piece, until there are length bytes or fill gives fewer than it could."""
    _check_file(fd, offset + (length or 0))
    done = 0
    buffer = memoryview(bytearray(_PIECE if length is None else min(length, _PIECE)))
    while length is None or done < length:
        with buffer[: None if length is None else length - done] as piece:
            try:
                count = fill(piece)
            except SendgateError as error:
                error.stored = done + _store(fd, piece[: error.received], offset + done, done)
                error.received += done
                raise
            done += _store(fd, piece[:count], offset + done, done)
            if count < len(piece):
                break
    return done


def _octets(buffer: Buffer) -> memoryview:
    """Its bytes, to be written to."""
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(f"buffer must be a writable buffer, not {type(buffer).__name__}") from None
    if view.readonly:
        raise TypeError(f"buffer must be writable, and this {type(buffer).__name__} isn't")
    return view.cast("B")


def recv_into(
    sock: Socket,
    buffer: Buffer,
    nbytes: int | None = None,
    *,
    timeout: float = 60.0,
    total_timeout: float | None = None,
    min_rate: int = 0,
    try_now: bool = False,
) -> int:
    """Receive exactly nbytes (None: as many as there is room for) into the buffer, and return how many that is.

    sock: a stream socket, blocking or not, or its descriptor. A socket of the standard library is read by the library,
    which has no interpreter lock meanwhile; an ssl.SSLSocket or another kind of socket, such as gevent's, by its own
    recv_into().
    buffer: anything writable: bytearray, memoryview, mmap, array. The bytes go there and nowhere else. It can't be
    resized or closed meanwhile.
    timeout: seconds in which nothing comes. total_timeout: for all of it. min_rate: bytes per second that have to come
    in each period of timeout.
    try_now: take what is there, and don't wait for more: then fewer may be returned, and the next call, with the rest
    of the buffer, is due when the socket is readable.

    IncompleteError: the peer has ended before. PeerClosedError, ResponseTimeoutError, IOFailedError. Each has
    ``received``: so many bytes are in the buffer. Nothing behind nbytes is taken. Signal handlers run after the call.
    """
    with _octets(buffer) as view:
        length = len(view) if nbytes is None else _int(nbytes, 0, len(view), "nbytes")
        with view[:length] as place:
            return _Origin(sock, timeout, total_timeout, min_rate, try_now).to_memory(place)


def _file(file: int | HasFileno, offset: int | None) -> tuple[int, int]:
    """The descriptor, and where to begin."""
    if isinstance(file, int):
        return _int(file, 0, 2**31 - 1, "a file descriptor"), _int(offset or 0, 0, _INT64_MAX, "offset")
    if not hasattr(file, "fileno"):
        raise TypeError(f"file must be a descriptor or an object with fileno(), not {type(file).__name__}")
    try:
        fd = file.fileno()
    except io.UnsupportedOperation:
        raise TypeError(f"file must have a descriptor, and this {type(file).__name__} has none") from None
    if hasattr(file, "flush"):
        # What was written before it.
        file.flush()
    if offset is None:
        offset = int(file.tell()) if hasattr(file, "tell") else 0
    return fd, _int(offset, 0, _INT64_MAX, "offset")


def recv_file(
    sock: Socket,
    file: int | HasFileno,
    length: int,
    offset: int | None = None,
    *,
    timeout: float = 60.0,
    total_timeout: float | None = None,
    min_rate: int = 0,
    try_now: bool = False,
) -> int:
    """As ``recv_into``, with length bytes that go to a regular file, which is open for writing: by splice, without
    passing through this process, if they come from a plain socket and are many.

    file: a descriptor, or an object with fileno(). offset: where in the file; None: at the object's tell(), or at the
    beginning. Its position is not moved, so what was received can be read from there.

    IOFailedError (an OSError): ENOSPC, EFBIG and the like too. ``received`` is how many bytes were taken from the
    socket, ``stored`` how many of them are in the file: the others are lost. NotRegularError: not a regular file.
    """
    origin = _Origin(sock, timeout, total_timeout, min_rate, try_now)
    fd, start = _file(file, offset)
    return origin.to_file(fd, start, _int(length, 0, _INT64_MAX - start, "length"))


# ---- WSGI ----

#: In the environ: how many bytes of the content these functions have taken.
_TAKEN = "sendgate.taken"


def read_into(
    environ: dict[str, Any],
    buffer: Buffer,
    *,
    timeout: float = 60.0,
    total_timeout: float | None = None,
    min_rate: int = 0,
) -> int:
    """Read content of a WSGI request into the buffer: as much as there is room for, or all that is left.

        content = bytearray(int(environ["CONTENT_LENGTH"]))
        sendgate.wsgi.read_into(environ, content)

    Returns how many bytes that is; 0 at the end. The buffer is as in ``recv_into``: an mmap of a file will do.

    Works on every WSGI server. With gunicorn the bytes go from the socket straight into the buffer, unless they come in
    chunks, and the timeouts are those of ``recv_into``; elsewhere by the readinto() of wsgi.input, or in pieces by its
    read(), and it is for the server to give up. Where a server doesn't end the content by itself
    (wsgi.input_terminated) only these functions are to read it, because they count what Content-Length announces.

    IncompleteError: the client has ended before that. All else is as in ``recv_into``.
    """
    left = _left(environ)
    with _octets(buffer) as view, view[: len(view) if left is None else left] as place:
        return _read(environ, place, left is not None, (timeout, total_timeout, min_rate))


def receive_file(
    environ: dict[str, Any],
    file: int | HasFileno,
    length: int | None = None,
    offset: int | None = None,
    *,
    timeout: float = 60.0,
    total_timeout: float | None = None,
    min_rate: int = 0,
) -> int:
    """Read content of a WSGI request into a file: all that is left of it, or at most length bytes.

        with tempfile.TemporaryFile() as file:
            sendgate.wsgi.receive_file(environ, file)

    Returns how many bytes that is. A client that sends chunks doesn't say how many there will be: give a length, so
    that it can't fill the disk. file and offset are as in ``recv_file``: the position is not moved. What ``read_into``
    says of servers holds here too; with gunicorn and a plain socket the bytes go from the socket to the file by splice.

    IncompleteError: the client has ended before Content-Length. All else is as in ``recv_file``.
    """
    fd, start = _file(file, offset)
    left = _left(environ)
    limits = timeout, total_timeout, min_rate
    most = left
    if length is not None:
        length = _int(length, 0, _INT64_MAX - start, "length")
        most = length if left is None else min(left, length)
    direct = _direct(environ)
    if direct is not None and most is not None:
        bound = most
        return _count(lambda: direct.to_file(fd, start, bound, limits), environ, direct)
    return _pieces(lambda place: _read(environ, place, left is not None, limits), fd, start, most)


def _left(environ: dict[str, Any]) -> int | None:
    """Bytes of content that are left; None: the server will say when it ends."""
    direct = _direct(environ)
    if direct is not None:
        return direct.left
    announced = environ.get("CONTENT_LENGTH")
    if announced:
        return max(0, int(announced) - int(environ.get(_TAKEN, 0)))
    return None if environ.get("wsgi.input_terminated") else 0


def _count(receive: Callable[[], int], environ: dict[str, Any], direct: _Direct) -> int:
    """What is received, counted, be it all or not."""
    before = direct.left
    try:
        return receive()
    finally:
        _add_taken(environ, before - direct.left)


def _add_taken(environ: dict[str, Any], count: int) -> None:
    environ[_TAKEN] = environ.get(_TAKEN, 0) + count


def _read(environ: dict[str, Any], place: memoryview, announced: bool, limits: _Limits) -> int:
    """Fill the place, or as much of it as there is content. announced: there has to be so much."""
    direct = _direct(environ)
    if direct is not None and announced:
        return _count(lambda: direct.to_memory(place, limits), environ, direct)
    return _read_input(environ, place, announced)


def _read_input(environ: dict[str, Any], place: memoryview, announced: bool) -> int:
    """The same, from any wsgi.input."""
    content = environ["wsgi.input"]
    readinto = getattr(content, "readinto", None)
    done = 0
    while done < len(place):
        with place[done:] as rest:
            if readinto is not None:
                count = readinto(rest) or 0
            else:
                piece = content.read(min(len(rest), _PIECE))
                count = len(piece)
                rest[:count] = piece
        if count == 0:
            if announced:
                raise _failed(lib.SENDGATE_ERR_INCOMPLETE, done, done)
            break
        done += count
        # One by one: the next may raise anything.
        _add_taken(environ, count)
    return done


class _Direct:
    """The content of a request on gunicorn: what its parser holds, and then the socket.

    gunicorn's reader counts what is left of Content-Length, and finds the next request behind it. That is kept right.
    """

    __slots__ = ("_body", "_reader", "_unreader")

    def __init__(self, body: Any, reader: Any, unreader: Any) -> None:
        self._body = body
        self._reader = reader
        self._unreader = unreader

    @property
    def left(self) -> int:
        """Bytes that nobody has read."""
        return int(self._body.buf.tell() + self._reader.length)

    def to_memory(self, place: memoryview, limits: _Limits) -> int:
        """Fill the place."""
        origin = _Origin(self._unreader.sock, *limits)
        done = 0
        while piece := self._held(len(place) - done):
            place[done : done + len(piece)] = piece
            done += len(piece)
        with place[done:] as rest:
            return self._receive(origin, done, lambda: origin.to_memory(rest))

    def to_file(self, fd: int, offset: int, length: int, limits: _Limits) -> int:
        """Put so many bytes into a file."""
        origin = _Origin(self._unreader.sock, *limits)
        _check_file(fd, offset + length)
        done = 0
        while piece := self._held(length - done):
            done += _store(fd, memoryview(piece), offset + done, done)
        return self._receive(origin, done, lambda: origin.to_file(fd, offset + done, length - done))

    def _held(self, most: int) -> bytes:
        """Some of what was read from the socket before; b"" if that is nothing."""
        held = self._body.buf.tell()
        if held:
            piece: bytes = self._body.read(min(held, most))
        else:
            piece = self._reader.read(min(len(self._unreader.buf.getvalue()), most))
        return piece

    def _receive(self, origin: _Origin, before: int, receive: Callable[[], int]) -> int:
        """Take the rest from the socket. before: bytes that were there already. How many it is in all."""
        try:
            return before + receive()
        except SendgateError as error:
            error.received += before
            error.stored += before
            raise
        finally:
            self._reader.length -= origin.received


def _direct(environ: dict[str, Any]) -> _Direct | None:
    """The content, if it is gunicorn's and of a known length, and nobody has put something of his own in between."""
    bodies, unreaders = sys.modules.get("gunicorn.http.body"), sys.modules.get("gunicorn.http.unreader")
    if bodies is None or unreaders is None:
        return None
    body = environ["wsgi.input"]
    if type(body) is not bodies.Body or type(body.reader) is not bodies.LengthReader:
        return None
    unreader = body.reader.unreader
    return _Direct(body, body.reader, unreader) if type(unreader) is unreaders.SocketUnreader else None
