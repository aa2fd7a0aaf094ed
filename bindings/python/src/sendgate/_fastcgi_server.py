"""``Server``: accepts front servers' connections, and has their requests answered by a pool of threads.

One thread, the one that calls ``serve_forever``, waits for all that has not begun, or goes on in the background: for
connections, for the parameters of requests, for kept connections, for answers that a ``Sender`` sends, and for those
who are to read the end of an answer. A thread of the pool has one request from the moment in which its parameters are
there, until all of its answer has left or is with the sender.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import queue
import resource
import selectors
import signal
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._core import _int, _invalid, _milliseconds
from ._errors import SendgateError
from ._fast_path import ParamsFastPath
from ._fastcgi import ProtocolStatus, RecordType, pack_end_request, pack_record
from ._fastcgi_connection import LINGER_BYTES, LINGER_SECONDS, Call, Connection, is_harmless, log
from ._fastcgi_handler import Handler
from ._fastcgi_processes import STOPPING, Processes
from ._fastcgi_wsgi import answer
from ._sender import Sender
from ._types import Connection as Outcome
from .wsgi import Files

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

    from .wsgi import Application

    #: A path, or host and port.
    Address: TypeAlias = "str | os.PathLike[str] | tuple[str, int]"
    Served: TypeAlias = "type[Handler] | Application"

#: Connections that are accepted in a row, before the others have their turn.
_ACCEPTED = 64
#: Seconds after which a listener is asked again, when no descriptor was left.
_EXHAUSTED = 0.05
#: The head for a request on one connection too many.
_OVERLOADED = b"Status: 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
#: The first descriptor that systemd hands over (sd_listen_fds(3)).
_FIRST_INHERITED = 3


class Server:
    """Answers the requests of front servers by a ``Handler`` or a WSGI application.

        sendgate.fastcgi.Server("/run/app.sock", application).serve_forever()

    address: the path of a UNIX socket, (host, port), or a socket that listens, which is the caller's to close. A socket
    that is left over at the path, to which nobody listens, is replaced; the path is removed by ``close``. Over TCP
    there is nothing that tells a front server from anybody else, so listen where nobody else comes.
    served: a subclass of ``Handler``, or a WSGI application.
    threads: requests that are answered at the same time in a process. One whose answer is a file, sent by the library,
    only counts until that is on its way.
    processes: above 1, ``serve_forever`` forks so many, which serve, and replaces those that die.
    timeout: seconds that a front server may stall in the middle of a request or an answer. A kept connection may be
    idle for as long as it likes, and holds no thread.
    max_params: bytes of a request's parameters; for one with more the answer is 431.
    max_connections: of each process; a request on another one is answered 503, and OVERLOADED. It is 1024, but never
    more than there are descriptors for: a quarter of RLIMIT_NOFILE, without the first 64.
    mode: permissions of the UNIX socket, such as 0o660; None: as the umask has it.
    graceful_timeout: seconds that requests under way have when the server is told to stop.

    OSError: it can't listen there.
    """

    def __init__(
        self,
        address: Address | socket.socket,
        served: Served,
        *,
        threads: int = 8,
        processes: int = 1,
        timeout: float = 60.0,
        max_params: int = 262144,
        max_connections: int | None = None,
        mode: int | None = None,
        backlog: int = 1024,
        graceful_timeout: float = 30.0,
    ) -> None:
        if not callable(served):
            raise TypeError(f"a Handler or a WSGI application is served, not {type(served).__name__}")
        self.threads = _int(threads, 1, 65535, "threads")
        self.processes = _int(processes, 1, 65535, "processes")
        _milliseconds(timeout, "timeout")
        self.timeout = timeout
        self.max_connections = _affordable(max_connections)
        self.max_params = _int(max_params, 1, 2**31 - 1, "max_params")
        if not 0 <= graceful_timeout <= 4294967.0:
            raise _invalid(f"graceful_timeout must be 0 to 4294967 seconds, not {graceful_timeout}")
        self.graceful_timeout = graceful_timeout
        self.served = served
        self._path: tuple[str, int, int] | None = None
        self._owns = not isinstance(address, socket.socket)
        #: Addresses of front servers; empty: any.
        self._allowed: frozenset[str] = frozenset()
        if isinstance(address, socket.socket):
            self.socket = address
        elif isinstance(address, tuple):
            self.socket = _listen_tcp(address, backlog)
        else:
            self.socket, self._path = _listen_unix(os.fspath(address), backlog, mode)
        #: Where it listens, as ``socket.getsockname`` says.
        self.server_address: Any = self.socket.getsockname()
        self._stopping = False
        self._alarm, self._bell = socket.socketpair()
        for end in (self._alarm, self._bell):
            end.setblocking(False)

    @classmethod
    def inherited(cls, served: Served, **options: Any) -> Server:
        """On a socket that who has started this process has opened: systemd (LISTEN_FDS and LISTEN_PID, of which the
        first is taken), or spawn-fcgi and its like (descriptor 0). ValueError: there is none. On TCP who is not among
        FCGI_WEB_SERVER_ADDRS, if that is set, is disconnected (FastCGI 1.0, 3.2).
        """
        fd = 0
        if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") not in ("", "0"):
            fd = _FIRST_INHERITED
        listener = _take_over(fd)
        if listener is None:
            raise ValueError(
                "no socket was inherited: neither LISTEN_FDS says so, nor is descriptor 0 one that listens"
            )
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        server = cls(listener, served, **options)
        server._owns = True
        addresses = os.environ.get("FCGI_WEB_SERVER_ADDRS", "").split(",")
        server._allowed = frozenset(address.strip() for address in addresses if address.strip())
        return server

    # ---- From outside ----

    def serve_forever(self) -> None:
        """Serve until ``shutdown`` is called.

        In the main thread, SIGTERM and SIGINT call it, too, unless the program has handlers for them: requests under
        way are answered, kept connections closed, and this returns. With ``processes`` that is done in each of them.
        """
        with self._signals():
            if self.processes == 1:
                _Worker(self).run()
            else:
                grace = self.graceful_timeout
                with Processes(self.processes, self._work, self._alarm, lambda: self._stopping, grace) as processes:
                    processes.watch()
                    self._deafen()

    def shutdown(self) -> None:
        """Have ``serve_forever`` return, as soon as the requests under way are answered. From any thread, or a signal
        handler; doesn't wait. Not to be taken back.
        """
        self._stopping = True
        with contextlib.suppress(OSError):
            self._bell.send(b"x")

    def close(self) -> None:
        """Don't listen any more, and remove the UNIX socket's path; again does nothing."""
        self._deafen()
        self._alarm.close()
        self._bell.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- Within ----

    def _hide(self) -> None:
        """Remove the UNIX socket's path."""
        path, self._path = self._path, None
        if path is not None:
            with _alone_in(os.path.dirname(path[0])), contextlib.suppress(OSError):
                # Somebody else may have taken the path meanwhile.
                status = os.stat(path[0], follow_symlinks=False)
                if (status.st_dev, status.st_ino) == path[1:]:
                    os.unlink(path[0])

    def _deafen(self) -> None:
        """Don't listen any more, but for a socket that is the caller's."""
        self._hide()
        if self._owns:
            self.socket.close()

    def _work(self, watched: int) -> None:
        """A child's life. It ends with its parent, of which it knows by a descriptor."""
        # The path is the parent's to remove. What rings there is shared.
        self._path = None
        self._alarm, self._bell = socket.socketpair()
        for end in (self._alarm, self._bell):
            end.setblocking(False)
        for number in STOPPING:
            signal.signal(number, lambda *_: self.shutdown())
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        _Worker(self, watched).run()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
                if signal.getsignal(number) is default:
                    before[number] = signal.signal(number, lambda *_: self.shutdown())
        # Python's own handler runs only when this thread does: it may just have begun to wait.
        fd = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False) if before else -1
        try:
            yield
        finally:
            if before:
                signal.set_wakeup_fd(fd)
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(served: Served, address: Address | socket.socket | None = None, **options: Any) -> None:
    """Serve a ``Handler`` or a WSGI application until SIGTERM or SIGINT. The arguments are those of ``Server``.

        sendgate.fastcgi.serve(application, "/run/app.sock")

    address None: on a socket that was inherited, see ``Server.inherited``.
    """
    made = Server.inherited(served, **options) if address is None else Server(address, served, **options)
    with made as server:
        server.serve_forever()


# ---- Where it listens ----


def _affordable(wanted: int | None) -> int:
    """For how many connections there are descriptors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each has two more for an answer in the background, where it and its file are duplicates. One more is for one that
    # is refused, and some for everything else.
    most = 1 << 20 if limit == resource.RLIM_INFINITY else max(1, (limit - 64) // 4)
    if wanted is None:
        return min(1024, most)
    if _int(wanted, 1, 1 << 20, "max_connections") > most:
        log.warning("max_connections is %d instead of %d: RLIMIT_NOFILE is %d", most, wanted, limit)
    return min(wanted, most)


def _take_over(fd: int) -> socket.socket | None:
    """The socket that listens there, which nobody inherits who is started from here. None: there is none."""
    try:
        listener = socket.socket(fileno=fd)
    except OSError:
        return None
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        return None
    if fd == 0:
        # Everybody inherits stdin: something else takes its place.
        made = listener.dup()
        listener.detach()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        return made
    listener.set_inheritable(False)
    return listener


def _listen_tcp(address: tuple[str, int], backlog: int) -> socket.socket:
    info = socket.getaddrinfo(*address[:2], type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(info[4], family=info[0], backlog=backlog)


def _listen_unix(path: str, backlog: int, mode: int | None) -> tuple[socket.socket, tuple[str, int, int] | None]:
    """A socket, and what it is in the file system: a path, and which file is there."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.startswith("\0"):
            listener.bind(path)
            listener.listen(backlog)
            return listener, None
        # What another server has bound looks like one that is left over, until it listens.
        with _alone_in(os.path.dirname(path)):
            try:
                listener.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_left_over(path):
                    raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
                os.unlink(path)
                listener.bind(path)
            if mode is not None:
                # Nobody can connect before it listens.
                os.chmod(path, mode)
            status = os.stat(path)
            listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    # The directory may be another one when it is removed.
    return listener, (os.path.abspath(path), status.st_dev, status.st_ino)


@contextlib.contextmanager
def _alone_in(directory: str) -> Iterator[None]:
    """Meanwhile no other server makes or removes a socket in this directory."""
    with contextlib.ExitStack() as stack:
        # Who can't have the lock, for it may not read the directory, does without.
        with contextlib.suppress(OSError):
            fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Another thread may fork meanwhile, and then it isn't gone with the descriptor.
            stack.callback(fcntl.flock, fd, fcntl.LOCK_UN)
        yield


def _is_left_over(path: str) -> bool:
    """Whether it is a socket to which nobody listens."""
    if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False


# ---- A process that serves ----


class _Worker:
    """Serves, in one process."""

    def __init__(self, server: Server, watched: int = -1) -> None:
        self._server = server
        self._watched = watched
        served = server.served
        self._handler = served if isinstance(served, type) and issubclass(served, Handler) else None
        self._application: Any = served
        #: For a connection's parser.
        self._limits = {
            "max_params": server.max_params,
            "max_connections": server.max_connections,
            "max_requests": server.max_connections,
        }
        # It is shared, and may be gone when its turn comes.
        server.socket.setblocking(False)
        self._selector = selectors.DefaultSelector()
        #: Whether one thread may register what another one already waits with: epoll(7) allows that, poll(2) doesn't.
        self._is_shared = isinstance(self._selector, getattr(selectors, "EpollSelector", ()))
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        #: Requests that threads are done with.
        self._done: deque[Call] = deque()
        #: For a thread that gives a connection back: it doesn't while the server stops.
        self._lock = threading.Lock()
        self._ended = False
        #: All connections, and when those are to be closed that are in the middle of a request, or part. Both kinds
        #: wait equally long, so that the first is due first.
        self._connections: set[Connection] = set()
        self._due: dict[Connection, float] = {}
        self._parting: dict[Connection, tuple[float, int]] = {}
        self._listens = False
        self._listen_again = 0.0
        #: Whether the last connection couldn't be accepted.
        self._exhausted = False
        self._stop_at: float | None = None
        #: For an application that is a folder: its files take no thread of the pool.
        self._files: ParamsFastPath | None = None

    def run(self) -> None:
        """Until the server is told to stop, and a little longer."""
        server = self._server
        # Those that are refused have a place, too.
        sender = Sender(max_in_flight=2 * server.max_connections + _ACCEPTED)
        threads = [
            threading.Thread(target=self._serve, name=f"sendgate.fastcgi-{number}", daemon=True)
            for number in range(server.threads)
        ]
        with self._selector, sender:
            self._sender = sender
            served = server.served
            if type(served) is Files and served._front is None:
                idle_ms = _milliseconds(server.timeout, "timeout")
                self._files = ParamsFastPath(served._mount, sender, idle_ms=idle_ms)
            self._selector.register(server._alarm, selectors.EVENT_READ, self._wake)
            self._selector.register(sender.fileno(), selectors.EVENT_READ, self._take)
            if self._watched >= 0:
                self._selector.register(self._watched, selectors.EVENT_READ, self._orphaned)
            self._listen()
            for thread in threads:
                thread.start()
            try:
                while not self._is_over():
                    for key, _ in self._selector.select(self._patience()):
                        key.data()
                    self._look_after()
            finally:
                for _ in threads:
                    self._tasks.put(None)
                self._end()
                end = time.monotonic() + 0.5
                for thread in threads:
                    thread.join(max(0.0, end - time.monotonic()))

    def _is_over(self) -> bool:
        if self._server._stopping and self._stop_at is None:
            self._stop()
        if self._stop_at is None:
            return False
        return not self._connections or time.monotonic() >= self._stop_at

    def _stop(self) -> None:
        with self._lock:
            # From now on no thread has a connection waited for.
            self._stop_at = time.monotonic() + self._server.graceful_timeout
        self._server._hide()
        # Those that were told they are connected.
        while self._listens and self._accept():
            pass
        if self._listens:
            self._deafen()
        self._listen_again = 0.0
        self._server._deafen()
        for connection in list(self._connections):
            if connection.call is None and connection not in self._parting:
                self._readable(connection)
        self._close_idle()

    def _close_idle(self) -> None:
        for connection in list(self._connections):
            if connection.call is None and not connection.begun and connection not in self._parting:
                self._close(connection)

    def _end(self) -> None:
        """Close all connections. One that a thread still uses is shut down, and the thread closes it: its descriptor's
        number may be somebody else's as soon as it is closed.
        """
        with self._lock:
            self._ended = True
            for call in self._done:
                call.returned = True
            for connection in self._connections:
                if connection.call is None or connection.call.returned or connection in self._parting:
                    connection.close()
                else:
                    connection.shut()

    def _patience(self) -> float | None:
        """Seconds until something is to be done of which no descriptor tells."""
        due = [self._stop_at] if self._stop_at is not None else []
        if self._due:
            due.append(next(iter(self._due.values())))
        if self._parting:
            due.append(next(iter(self._parting.values()))[0])
        if self._listen_again:
            due.append(self._listen_again)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _look_after(self) -> None:
        """Close what has waited too long."""
        now = time.monotonic()
        if self._stop_at is not None:
            self._close_idle()
        while self._due and next(iter(self._due.values())) <= now:
            connection = next(iter(self._due))
            log.info("A front server has stalled within a request")
            self._close(connection)
        while self._parting and next(iter(self._parting.values()))[0] <= now:
            self._close(next(iter(self._parting)))
        if self._listen_again and self._listen_again <= now:
            self._listen_again = 0.0
            self._listen()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self._server._alarm.recv(4096)
        while self._done:
            self._returned(self._done.popleft())

    def _orphaned(self) -> None:
        """The process that has made this one is no more."""
        self._selector.unregister(self._watched)
        self._server._stopping = True

    # ---- Connections ----

    def _listen(self) -> None:
        self._selector.register(self._server.socket, selectors.EVENT_READ, self._accept)
        self._listens = True

    def _deafen(self) -> None:
        self._selector.unregister(self._server.socket)
        self._listens = False

    def _accept(self) -> bool:
        """Accept some. Whether there may be more."""
        server = self._server
        for _ in range(_ACCEPTED):
            if len(self._connections) >= 2 * server.max_connections:
                # Let them wait in the queue.
                self._pause()
                return False
            try:
                sock, peer = server.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                # As a rule there is no descriptor left. It is said once, however long it lasts.
                if not self._exhausted:
                    log.error("Can't accept a connection: %s", error)
                self._exhausted = True
                self._pause()
                return False
            self._exhausted = False
            if server._allowed and sock.family != socket.AF_UNIX and peer[0] not in server._allowed:
                log.warning("A connection from %s is refused", peer[0])
                sock.close()
                continue
            try:
                if sock.family != socket.AF_UNIX:
                    # Pieces that are produced one by one leave at once.
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    # A kept one may be idle for long, and the other host may be gone.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection = Connection(sock, server.timeout, self._sender, **self._limits)
            except (OSError, SendgateError) as error:
                log.error("Can't take a connection: %s", error)
                sock.close()
                continue
            connection.refused = len(self._connections) >= server.max_connections
            connection.peer = peer
            self._connections.add(connection)
            self._due[connection] = time.monotonic() + server.timeout
            # More often than not its request is there already.
            if self._progress(connection):
                self._await(connection)
        return True

    def _pause(self) -> None:
        if self._listens:
            self._deafen()
            self._listen_again = time.monotonic() + _EXHAUSTED

    def _await(self, connection: Connection) -> None:
        """Wait for a request."""
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._readable(connection))

    def _readable(self, connection: Connection) -> None:
        if self._progress(connection) and connection.begun and connection not in self._due:
            self._due[connection] = time.monotonic() + self._server.timeout

    def _progress(self, connection: Connection) -> bool:
        """Take what has come. Whether more has to be waited for."""
        try:
            connection.receive()
            connection.reply(wait=False)
        except SendgateError as error:
            if not is_harmless(error) or (connection.begun and not connection.gone):
                log.warning("A front server's connection has failed: %s", error)
            self._close(connection)
            return False
        call = connection.call
        if call is None and not connection.ended:
            return True
        if call is not None and not connection.refused and self._send_file(call):
            return self._after_file(call)
        self._ignore(connection)
        if call is None:
            self._part(connection)
        elif connection.refused:
            self._refuse(connection, call)
        else:
            self._tasks.put(lambda: self._answer(call))
        return False

    def _send_file(self, call: Call) -> bool:
        """Have it sent, if it is a file that is asked for. False: the pool answers."""
        if self._files is None:
            return False
        try:
            if not call.complete:
                # Where a front server says separately that there is no content, that has come meanwhile.
                call.connection.receive()
                call.connection.reply(wait=False)
            return call.submit_file(self._files)
        except Exception as error:
            log.debug("Not without the pool: %s", error)
            return False

    def _after_file(self, call: Call) -> bool:
        """The connection, after a request that was answered without the pool. Whether it is still waited for."""
        connection = call.connection
        if call.outcome is Outcome.REUSABLE and self._stop_at is None:
            connection.next()
            self._due.pop(connection, None)
            return True
        self._ignore(connection)
        if not call.in_flight:
            self._release(call)
        return False

    def _refuse(self, connection: Connection, call: Call) -> None:
        # Apache doesn't look at the protocol's status, and makes an empty 200 of an answer without a head.
        answer = pack_record(RecordType.STDOUT, call.request_id, _OVERLOADED)
        answer += pack_record(RecordType.STDOUT, call.request_id)
        answer += pack_end_request(call.request_id, 0, ProtocolStatus.OVERLOADED)
        with contextlib.suppress(OSError):
            connection.sock.send(answer, socket.MSG_NOSIGNAL)
        self._part(connection)

    def _part(self, connection: Connection) -> None:
        """Close it when the front server has seen that it is closed."""
        connection.part()
        self._parting[connection] = time.monotonic() + LINGER_SECONDS, LINGER_BYTES
        try:
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._discard(connection))
        except (OSError, ValueError):
            self._close(connection)
            return
        self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        if connection not in self._parting:
            # It was closed since it was found to be readable.
            return
        due, left = self._parting[connection]
        count = connection.discard()
        left -= count
        if count < 0 or left <= 0:
            self._close(connection)
        else:
            # In its old place.
            self._parting[connection] = due, left

    def _ignore(self, connection: Connection) -> None:
        """Wait for nothing more of it."""
        self._due.pop(connection, None)
        # It may not have been waited for.
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)

    def _close(self, connection: Connection) -> None:
        self._ignore(connection)
        self._parting.pop(connection, None)
        self._connections.discard(connection)
        connection.close()

    # ---- Requests ----

    def _serve(self) -> None:
        """A thread of the pool."""
        while (task := self._tasks.get()) is not None:
            task()
            # It may have nothing to do for long, and would keep the request.
            del task

    def _answer(self, call: Call) -> None:
        if self._ended:
            # It has waited in vain.
            self._give_back(call)
            return
        server = self._server
        try:
            if self._handler is not None:
                # All that is done is done by its constructor.
                self._handler(call, call.connection.peer, server)
            else:
                answer(call, self._application, server.threads > 1, server.processes > 1)
        except BaseException as error:
            try:
                call.fail(error)
            except BaseException:
                log.exception("Error in an error")
                call.outcome = call.outcome or Outcome.BROKEN
        self._give_back(call)

    def _give_back(self, call: Call) -> None:
        """This thread is done with it."""
        with self._lock:
            if self._ended:
                call.connection.close()
                return
            if self._keep(call):
                return
            self._done.append(call)
        with contextlib.suppress(OSError):
            # If it is full, it rings all the same.
            self._server._bell.send(b"x")

    def _keep(self, call: Call) -> bool:
        """Have a kept connection waited for straight from here, which saves the other thread's turn. False: it is for
        that one to do.
        """
        connection = call.connection
        if call.in_flight or call.outcome is not Outcome.REUSABLE or connection.gone or connection.has_replies:
            return False
        if self._stop_at is not None or not self._is_shared:
            return False
        connection.next()
        try:
            self._await(connection)
        except OSError as error:
            log.error("Can't keep a connection: %s", error)
            connection.gone = True
            return False
        return True

    def _take(self) -> None:
        """Answers have ended that went on in the background."""
        for completion in self._sender.take():
            call: Call = completion.token
            call.completion = completion
            # Otherwise its thread isn't done yet.
            if call.returned:
                self._returned(call)

    def _returned(self, call: Call) -> None:
        call.returned = True
        completion = call.completion
        if call.in_flight and completion is None:
            return
        if completion is not None:
            call.in_flight, call.completion = False, None
            call.outcome = completion.result.connection
            if completion.error is not None:
                connection = call.connection
                connection.gone = connection.gone or is_harmless(completion.error)
                call.fail(completion.error)
            landed, call.landed = call.landed, None
            if landed is not None:
                # The application's own close() runs where the application does.
                call.returned = False
                self._tasks.put(lambda: self._land(call, landed))
                return
        self._release(call)

    def _land(self, call: Call, landed: Callable[[], object]) -> None:
        try:
            landed()
        except Exception:
            log.exception("Error closing what was sent for %s", call.name)
        self._give_back(call)

    def _release(self, call: Call) -> None:
        """The connection is free."""
        connection = call.connection
        if connection.gone:
            self._close(connection)
        elif call.outcome is not Outcome.REUSABLE or self._stop_at is not None:
            if call.complete:
                self._close(connection)
            else:
                self._part(connection)
        else:
            connection.next()
            try:
                connection.reply(wait=False)
            except SendgateError:
                self._close(connection)
                return
            self._await(connection)
