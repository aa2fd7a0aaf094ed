"""ASGI servers for the tests: how each one is started, in a process of its own, with ``asgi_application`` in it.

    with Folder() as folder, running(server, folder) as (address, log, process):
        ...

Ours are uvicorn with this package's protocols. On the others the files are read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launching import serving
from wsgi_servers import KEEP_ALIVE

HERE = Path(__file__).resolve().parent


class Folder:
    """A temporary directory with what the servers send, "files", and an application's module. A context manager."""

    def __init__(self, module: str = "asgi_application") -> None:
        self.module = module
        self._directory = tempfile.TemporaryDirectory(prefix="sendgate-asgi-")
        self.path = Path(self._directory.name)
        self.files = self.path / "files"

    def __enter__(self) -> Folder:
        self.files.mkdir()
        shutil.copy(HERE / f"{self.module}.py", self.path)
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()


@dataclass(frozen=True)
class Server:
    """One way to run an ASGI application."""

    name: str
    #: What runs it, as words behind "python -m"; {port} is where. The application's name is added.
    command: str
    #: Whether the package's protocol is in it.
    ours: bool = False
    #: Whether it waits for a client that reads slowly. If not, it keeps all that it is sent in memory.
    waits: bool = True
    #: Whether it ends the connection if the application fails after it has begun. If not, the client waits for ever.
    cuts: bool = True

    def __str__(self) -> str:
        return self.name


def _uvicorn(name: str, http: str, loop: str, ours: bool = False) -> Server:
    options = f"--http {http} --loop {loop} --timeout-keep-alive {KEEP_ALIVE}"
    return Server(name, f"uvicorn --host 127.0.0.1 --port {{port}} {options}", ours)


def _corn(name: str, worker: str) -> Server:
    options = f"--worker-class {worker} --keep-alive {KEEP_ALIVE} --graceful-timeout 0"
    options += " --access-logfile - --error-logfile -"
    # Anycorn has no process of its own for the application if there are no workers, and Hypercorn neither.
    return Server(f"{name} {worker}", f"{name} --bind 127.0.0.1:{{port}} --workers 0 {options}")


OURS = tuple(
    _uvicorn(f"sendgate.uvicorn.{protocol} {loop}", f"sendgate.uvicorn:{protocol}", loop, ours=True)
    for protocol in ("HttpTools", "H11")
    for loop in ("asyncio", "uvloop")
)

OTHERS = (
    *(
        _uvicorn(f"uvicorn {http} {loop}", http, loop)
        for http in ("httptools", "h11")
        for loop in ("asyncio", "uvloop")
    ),
    _corn("hypercorn", "asyncio"),
    _corn("hypercorn", "uvloop"),
    _corn("hypercorn", "trio"),
    _corn("anycorn", "asyncio"),
    _corn("anycorn", "trio"),
    # Its own checker of applications ends by the exception, so that none is answered 500 from then on.
    Server("daphne", "daphne --bind 127.0.0.1 --port {port}", waits=False, cuts=False),
    Server("granian", "granian --interface asgi --host 127.0.0.1 --port {port} --access-log"),
)


@contextlib.contextmanager
def running(server: Server, folder: Folder) -> Iterator[tuple[tuple[str, int], Path, int]]:
    """Start it, wait until it answers, and stop it at the end. Gives its address, its log and its process."""

    def command(port: int) -> list[str]:
        return [sys.executable, "-m", *server.command.format(port=port).split(), f"{folder.module}:application"]

    log = Path(tempfile.mkdtemp(prefix="server-", dir=folder.path)) / "log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with serving(command, log, cwd=folder.path, env=environment) as (address, process):
        yield address, log, process.pid
