"""``Processes``: children that do the same work, and are replaced when they die."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger("sendgate.fastcgi")

#: What tells the parent, and its children, to end. Blocked when a child begins.
STOPPING = (signal.SIGTERM, signal.SIGINT)
#: Seconds: one that dies sooner is not replaced at once, for the next one will, too; and how long it takes until one is
#: tried again that couldn't be made.
_SOON = 1.0


class Processes:
    """So many children, each of which calls work(fd) and exits. fd is readable once the parent is no more.

    A context manager, at whose end they are told to end, and waited for.

    alarm: non-blocking, and readable when they may all have to end, or for any signal; stopping() tells. grace: seconds
    that they have for that; then they are killed.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int], None],
        alarm: socket.socket,
        stopping: Callable[[], bool],
        grace: float,
    ) -> None:
        self._count = count
        self._work = work
        self._alarm = alarm
        self._stopping = stopping
        self._grace = grace
        #: By the descriptor at whose other end the child is: its id, and when it was made.
        self._children: dict[int, tuple[int, float]] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Processes:
        self._watched, self._life = os.pipe()
        self._selector.register(self._alarm, selectors.EVENT_READ)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._selector:
            self._end()
        os.close(self._watched)
        os.close(self._life)

    def watch(self) -> None:
        """Make them, and replace those that die, until the alarm."""
        for _ in range(self._count):
            if self._make(time.monotonic()):
                return
        while not self._turn():
            pass

    def _turn(self) -> bool:
        """Wait for something to happen. True: they are all to end."""
        for key, _ in self._selector.select():
            if key.fileobj is self._alarm:
                if self._is_meant():
                    return True
                continue
            if self._make(self._bury(key.fd) + _SOON):
                return True
        return False

    def _make(self, at: float) -> bool:
        """Another one, at that time, or later if there can't be one then. True: they are all to end."""
        while True:
            # Nothing but the alarm matters meanwhile.
            while select.select([self._alarm], [], [], max(0.0, at - time.monotonic()))[0]:
                if self._is_meant():
                    return True
            try:
                self._fork()
                return False
            except OSError as error:
                log.error("Can't make a process: %s", error)
                at = time.monotonic() + _SOON

    def _is_meant(self) -> bool:
        """The alarm rings: whether that isn't for a signal of the application's own."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self._alarm.recv(4096)
        return self._stopping()

    def _fork(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        theirs, ours = os.pipe()
        # A child has handlers of its own before a signal reaches it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            process = os.fork()
            if process == 0:
                self._child(ours)
        except OSError:
            os.close(theirs)
            os.close(ours)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(ours)
        self._children[theirs] = process, time.monotonic()
        self._selector.register(theirs, selectors.EVENT_READ)

    def _child(self, ours: int) -> None:
        code = 1
        try:
            # This end stays open as long as this process lives, which is how its parent knows. What the application
            # executes doesn't inherit it, and what it forks closes it.
            held = [ours]
            os.register_at_fork(after_in_child=lambda: os.close(held.pop()) if held else None)
            os.close(self._life)
            for fd in self._children:
                os.close(fd)
            self._selector.close()
            self._work(self._watched)
            code = 0
        except BaseException:
            log.exception("A process has failed")
        finally:
            logging.shutdown()
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            # Nothing of what the parent would do at its end is to be done here.
            os._exit(code)

    def _bury(self, fd: int) -> float:
        """A child has ended. Returns when it was made."""
        process, made = self._children.pop(fd)
        self._selector.unregister(fd)
        os.close(fd)
        _, status = os.waitpid(process, 0)
        if status != 0:
            log.error("Process %d has ended: %s", process, _cause(status))
        return made

    def _end(self) -> None:
        deadline = time.monotonic() + self._grace + 1.0
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process, _ in self._children.values():
                os.kill(process, number)
            while self._children:
                left = deadline - time.monotonic()
                if number == signal.SIGTERM and left <= 0:
                    break
                for key, _ in self._selector.select(None if number == signal.SIGKILL else left):
                    if key.fileobj is self._alarm:
                        # It has been heard.
                        self._selector.unregister(self._alarm)
                    else:
                        self._bury(key.fd)


def _cause(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exit code {os.WEXITSTATUS(status)}"
