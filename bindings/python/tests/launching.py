"""Servers in processes of their own: one way to start them, to wait until they answer, and to stop them.

with serving(lambda port: [sys.executable, "-m", ..., str(port)], log) as (address, process):
    ...
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def launched(
    command: Sequence[str | Path], log: Path, *, stop: int = signal.SIGTERM, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """A process that writes into a log, or as the options say, which are Popen's. At the end it is sent the signal.

    Who doesn't end then is killed, and that is an error.
    """
    with log.open("w") as output:
        process = subprocess.Popen(command, **{"stdout": output, "stderr": output, **options})
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def serving(
    command: Callable[[int], Sequence[str | Path]], log: Path, target: str = "/next", **options: Any
) -> Iterator[tuple[tuple[str, int], subprocess.Popen[Any]]]:
    """A server from when it has answered for the target, whatever it says. Gives its address and its process.

    command: what serves on a port of 127.0.0.1; options: those of ``launched``.
    """
    # A socket that is bound, but doesn't listen, keeps the port for a server that sets SO_REUSEADDR, as all do.
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address = reserved.getsockname()
        with launched(command(address[1]), log, **options) as process:
            _wait(address, process, log, target)
            yield address, process


def _wait(address: tuple[str, int], process: subprocess.Popen[Any], log: Path, target: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            # Not only connected: Hypercorn on trio ends when a client leaves before it was accepted.
            with socket.create_connection(address, timeout=60) as client:
                client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                while client.recv(1 << 16):
                    pass
            return
        except ConnectionRefusedError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} doesn't answer: {log.read_text()}") from error
            time.sleep(0.01)
