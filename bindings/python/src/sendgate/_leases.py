"""``Leases``: paths that lead to open files for some seconds, for servers that take nothing but paths.

``/proc/self/fd/N`` is such a path, and opens the file behind the descriptor, whatever has become of its name. But those
servers open it later, in another thread, and don't say when; if N was closed and is used again by then, they send
somebody else's file. So a path here leads through a symbolic link whose own name is never used again::

    /dev/shm/sendgate-abcdefgh/17/731      17 is a link to /proc/PID/fd, and 731 a descriptor

When its time is over the link is removed, and only some seconds later the descriptor is closed. Who comes too late
finds nothing; and never another file, whatever has been opened meanwhile.

One link serves all paths that are handed out within some seconds, and one descriptor all that lead to the same file, so
thousands of answers in a second with the same files cost next to nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import itertools
import os
import resource
import sys
import tempfile
import threading
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

    #: What tells a file, and what is in it, from all others.
    Identity: TypeAlias = "tuple[int, int, int, int, int]"

#: Seconds for which a link is the newest one. A path leads to its file for at least as long, and for at most twice
#: as long; the descriptor is closed after the same time once more.
PERIOD = 5.0
#: What it is at least, where too many files are asked for.
SHORTEST = 1.0
#: Of a descriptor's flags: what it may be used for.
_ACCESS = os.O_ACCMODE | getattr(os, "O_PATH", 0)


def make_directory() -> str:
    """A new directory that is nobody else's: in memory if that is possible, or where temporary files are."""
    try:
        return tempfile.mkdtemp(prefix="sendgate-", dir="/dev/shm")
    except OSError:
        return tempfile.mkdtemp(prefix="sendgate-")


class _Generation:
    """What is handed out by one link."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        #: Its path; "" as long as nobody needs it.
        self.link = ""
        self.descriptors: dict[Identity, int] = {}
        #: Those that were handed out.
        self.paths: dict[Identity, str] = {}


class Leases:
    """All that is lent. Threads may share it, with or without an event loop.

    The descriptors have numbers from half of the limit on (RLIMIT_NOFILE), of which they take half at most: others in
    the process need them too.
    """

    def __init__(self, period: float = PERIOD, shortest: float = SHORTEST) -> None:
        self._period = period
        self._shortest = shortest
        self._numbers = itertools.count(1)
        self._reset()
        _ALL.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._directory = ""
        self._current = _Generation()
        self._previous = _Generation()
        #: To which no path leads any more.
        self._ended: list[int] = []
        self._count = 0
        #: Where the search for a free number goes on.
        self._next = 0
        self._timer: threading.Timer | None = None

    def path(self, fd: int, status: os.stat_result, *, readable: bool = False) -> str:
        """A path that leads to an open file, of which an fstat has said this. readable: it is open for reading.

        OSError: there can be none. EMFILE: too many files are lent; EBADF: it isn't open for reading; EACCES and
        others: it can't be opened once more, there is no /proc, or no place for the link.
        """
        if not readable and fcntl.fcntl(fd, fcntl.F_GETFL) & _ACCESS not in (os.O_RDONLY, os.O_RDWR):
            raise OSError(errno.EBADF, "the file is not open for reading")
        # The inode's number alone is not enough everywhere: overlayfs may keep it when the content is copied.
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        current = self._current
        path = current.paths.get(identity)
        if path is not None and time.monotonic() - current.began < self._period:
            return path
        with self._lock:
            if time.monotonic() - self._current.began >= self._period:
                self._turn()
            number = self._current.descriptors.get(identity)
            if number is None:
                number = self._previous.descriptors.get(identity)
                if number is None:
                    number = self._lend(fd, status)
            path = f"{self._link()}/{number}"
            self._current.descriptors[identity] = number
            self._current.paths[identity] = path
            return path

    def __len__(self) -> int:
        """How many descriptors are held."""
        return self._count

    def clear(self) -> None:
        """End all at once: paths that were handed out lead nowhere."""
        with self._lock:
            for _ in range(3):
                self._turn()

    def _lend(self, fd: int, status: os.stat_result) -> int:
        """A descriptor of our own for the file."""
        try:
            number = self._duplicate(fd)
        except OSError as error:
            # Those that nobody has asked for lately go first.
            if error.errno != errno.EMFILE or time.monotonic() - self._current.began < self._shortest:
                raise
            self._turn()
            number = self._duplicate(fd)
        self._count += 1
        try:
            # Whether the file can be opened once more is a matter of its mode and of /proc.
            again = os.open(f"{self._link()}/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if not os.path.samestat(os.fstat(again), status):
                    raise OSError(errno.ENOENT, "/proc/self/fd leads to another file")
            finally:
                os.close(again)
            self._watch(self._period)
        except BaseException:
            self._close(number)
            raise
        return number

    def _duplicate(self, fd: int) -> int:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            soft = 1 << 20
        first = soft // 2
        if self._count >= soft // 4:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if not first <= self._next < soft:
            self._next = first
        try:
            number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self._next)
        except OSError:
            number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)
        self._next = number + 1
        return number

    def _close(self, number: int) -> None:
        self._count -= 1
        os.close(number)

    def _link(self) -> str:
        """The newest link, which is made if it isn't there yet."""
        current = self._current
        if not current.link:
            name = str(next(self._numbers))
            # What /proc/self/fd is, with one link less to follow.
            target = f"/proc/{os.readlink('/proc/self')}/fd"
            try:
                link = os.path.join(self._directory or self._make_directory(), name)
                os.symlink(target, link)
            except FileNotFoundError:
                # Somebody has cleaned up.
                link = os.path.join(self._make_directory(), name)
                os.symlink(target, link)
            current.link = link
        return current.link

    def _make_directory(self) -> str:
        self._directory = make_directory()
        _clear_at_exit()
        return self._directory

    def _turn(self) -> None:
        """The newest becomes the previous one, and the previous one ends."""
        ended, previous, current = self._ended, self._previous, self._current
        for number in ended:
            self._close(number)
        if previous.link:
            with contextlib.suppress(OSError):
                os.unlink(previous.link)
        kept = set(current.descriptors.values())
        self._ended = [number for number in previous.descriptors.values() if number not in kept]
        self._previous, self._current = current, _Generation()
        if not (self._count or current.link) and self._directory:
            with contextlib.suppress(OSError):
                os.rmdir(self._directory)
            self._directory = ""

    # ---- Time ----

    def _watch(self, delay: float) -> None:
        """See to it that what is lent ends, also if nothing is asked for any more."""
        if self._timer is None:
            # Not by an event loop's clock: there may be several, and one may be closed before.
            timer = threading.Timer(delay, self._tick)
            timer.daemon = True
            # At the interpreter's end there are no more threads; then `clear` comes.
            with contextlib.suppress(RuntimeError):
                timer.start()
                self._timer = timer

    def _tick(self) -> None:
        with self._lock:
            self._timer = None
            left = self._current.began + self._period - time.monotonic()
            if left <= 0:
                self._turn()
                left = self._period
            if self._count or self._previous.link or self._current.link:
                self._watch(left)

    def _forget(self) -> None:
        """In a process that was forked: close what was inherited. The links are the other's."""
        lent = {*self._current.descriptors.values(), *self._previous.descriptors.values(), *self._ended}
        for number in lent:
            os.close(number)
        self._reset()


_ALL: weakref.WeakSet[Leases] = weakref.WeakSet()
#: The process that will call `_clear_all` in its end.
_process = 0


def _clear_at_exit() -> None:
    global _process
    if _process == os.getpid():
        return
    _process = os.getpid()
    atexit.register(_clear_all)
    # A process that multiprocessing has forked ends without the other.
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _clear_all, exitpriority=0)


def _clear_all() -> None:
    for leases in list(_ALL):
        leases.clear()


def _forget_all() -> None:
    for leases in list(_ALL):
        leases._forget()


os.register_at_fork(after_in_child=_forget_all)
