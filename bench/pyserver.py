"""The asyncio servers that slow.py and stall.py measure: one process, one event loop, files of one directory.

    pyserver.py KIND LOOP DIR

KIND is one of SERVERS below, LOOP asyncio or uvloop. It listens on a port that the system picks and says
"listening on 127.0.0.1:PORT". Two lines on standard input are commands: from "begin" on it is recorded how late the
loop wakes a coroutine that asks for it every millisecond, and "end" writes all that to standard output as a list of
seconds in JSON. Not for use as a server: it trusts its clients.
"""

import asyncio
import functools
import io
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

PERIOD = 0.001
BACKLOG = 2048


class Jitter:
    """How late the event loop is, as a coroutine in it sees it."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.task: asyncio.Task[None] | None = None
        self.due = 0.0

    async def measure(self) -> None:
        """Ask again and again to be woken in a millisecond."""
        while True:
            self.due = time.monotonic() + PERIOD
            await asyncio.sleep(PERIOD)
            self.late.append(time.monotonic() - self.due)

    def command(self) -> None:
        """Do what a line on standard input says."""
        commands = os.read(sys.stdin.fileno(), 4096)
        if not commands:  # whoever started us is gone
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        for line in commands.splitlines():
            if line == b"begin":
                self.late = []
                self.task = asyncio.get_running_loop().create_task(self.measure())
            elif line == b"end" and self.task is not None:
                self.task.cancel()
                # One that should have been woken already counts as well.
                self.late.append(max(0.0, time.monotonic() - self.due))
                print(json.dumps([round(late, 7) for late in self.late]), flush=True)


class Host(asyncio.Protocol):
    """The least that is needed around an answer: keep-alive, one request at a time, the path as it is."""

    def __init__(self, answer: "Callable[[asyncio.Transport, bytes, Path], Coroutine[None, None, None]]", data: Path):
        self.send, self.data = answer, data
        self.received = b""
        self.answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when the head is whole and the answer before is done."""
        self.received += data
        self.next()

    def next(self) -> None:
        """Begin the next answer, if there is one to begin."""
        if self.answering is None and b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            path = self.data / head.split(b" ", 2)[1].decode().lstrip("/")
            self.answering = asyncio.get_running_loop().create_task(self.answer(head + b"\r\n\r\n", path))

    async def answer(self, head: bytes, path: Path) -> None:
        """One answer. What goes wrong when the client hangs up is of no interest; nothing else may go wrong."""
        try:
            await self.send(self.transport, head, path)
        except (OSError, asyncio.CancelledError):
            self.transport.abort()
        else:
            self.answering = None
            self.next()

    def connection_lost(self, exc: "Exception | None") -> None:
        """End the answer that is under way."""
        if self.answering is not None:
            self.answering.cancel()


@functools.cache
def opened(path: Path) -> io.FileIO:
    """Each file once for all who ask, as in a server that keeps its files open."""
    return open(path, "rb", buffering=0)


async def sendgate(listener: socket.socket, data: Path) -> None:
    """`sendgate.asyncio.respond`: the library's thread sends."""
    import sendgate
    import sendgate.asyncio

    async def answer(transport: asyncio.Transport, head: bytes, path: Path) -> None:
        file = opened(path).fileno()
        await sendgate.asyncio.respond(transport, sendgate.Request.from_head(head), file, timeout=3600)

    await host(listener, data, answer)


async def loop_sendfile(listener: socket.socket, data: Path) -> None:
    """`loop.sendfile`: the event loop's thread sends."""

    async def answer(transport: asyncio.Transport, head: bytes, path: Path) -> None:
        file = opened(path)
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % os.fstat(file.fileno()).st_size)
        await asyncio.get_running_loop().sendfile(transport, file, fallback=False)

    await host(listener, data, answer)


async def host(listener: socket.socket, data: Path, answer: Callable[..., Awaitable[None]]) -> None:
    """Serve with `Host`."""
    server = await asyncio.get_running_loop().create_server(lambda: Host(answer, data), sock=listener, backlog=BACKLOG)
    await server.serve_forever()


async def aiohttp(listener: socket.socket, data: Path) -> None:
    """aiohttp's FileResponse."""
    from aiohttp import web

    async def file(request: web.Request) -> web.FileResponse:
        return web.FileResponse(data / request.match_info["name"])

    app = web.Application()
    app.router.add_get("/{name}", file)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    await asyncio.Event().wait()


async def starlette(listener: socket.socket, data: Path) -> None:
    """Starlette's FileResponse under uvicorn."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse
    from starlette.routing import Route

    async def file(request: Request) -> FileResponse:
        return FileResponse(data / request.path_params["name"])

    config = uvicorn.Config(
        Starlette(routes=[Route("/{name}", file)]),
        lifespan="off",
        access_log=False,
        log_level="error",
        backlog=BACKLOG,
    )
    config.load()
    await uvicorn.Server(config).serve(sockets=[listener])


SERVERS = {"sendgate": sendgate, "loop.sendfile": loop_sendfile, "aiohttp": aiohttp, "starlette": starlette}


async def main(kind: str, data: Path) -> None:
    """Listen, say where, and serve until killed."""
    jitter = Jitter()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), jitter.command)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(BACKLOG)
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await SERVERS[kind](listener, data)


if __name__ == "__main__":
    kind, loop, data = sys.argv[1:]
    if loop == "uvloop":
        import uvloop

        event_loop = uvloop.new_event_loop()
    else:
        event_loop = asyncio.new_event_loop()
    asyncio.set_event_loop(event_loop)
    event_loop.run_until_complete(main(kind, Path(data)))
