"""What runs inside of each server of ``test_streaming``, by WSGI and by ASGI.

    /held/NAME          a streaming response, each piece of which is made when the other end of a channel says so
    /async/NAME         the same, produced asynchronously
    /counted/NAME       the same as /held with a Content-Length of five pieces
    /lazy/NAME          the same as /held, but not marked as streaming
    /short, /long       fewer and more bytes than Content-Length says
    /failing            a producer that fails before its first piece, not marked as streaming
    /big                1 GiB, in pieces of 64 KiB
    /process            the number of this process
    /next               a response like any other

A channel is two UNIX datagram sockets beside this file, NAME.test and NAME.application. The producer says "begun",
"made N" before each piece, and "closed" when it is finalized; it is told "go", "end" or "fail". Under ASGI "left" is
said when the server has told the application that the client has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import sendgate

HERE = Path(__file__).resolve().parent
BIG = 1 << 30
BLOCK = bytes(65536)


def piece(number: int) -> bytes:
    """One that is produced."""
    return b"this is piece %3d\n" % number


class Channel:
    """The producer's end."""

    def __init__(self, name: str) -> None:
        self._path = HERE / f"{name}.application"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self._path))
        self.socket.connect(str(HERE / f"{name}.test"))
        self.number = 0
        self.tell("begun")

    def tell(self, what: str) -> None:
        """Say something."""
        self.socket.send(what.encode())

    def obey(self, command: bytes) -> bytes | None:
        """The next piece; None: there is no more."""
        if command == b"fail":
            raise RuntimeError("as it has to")
        if command == b"end":
            return None
        self.number += 1
        self.tell(f"made {self.number}")
        return piece(self.number)

    def close(self) -> None:
        """Say that it is over."""
        self.tell("closed")
        self.socket.close()
        self._path.unlink()


def held(name: str) -> Iterator[bytes]:
    """Pieces on demand."""
    channel = Channel(name)
    try:
        while (made := channel.obey(channel.socket.recv(100))) is not None:
            yield made
    finally:
        channel.close()


async def asynchronous(name: str) -> AsyncIterator[bytes]:
    """The same, in the event loop."""
    channel = Channel(name)
    channel.socket.setblocking(False)
    trio = sys.modules.get("trio")
    in_trio = trio is not None and trio.lowlevel.in_trio_run()
    try:
        while True:
            if in_trio:
                assert trio is not None
                await trio.lowlevel.wait_readable(channel.socket)
                command = channel.socket.recv(100)
            else:
                command = await asyncio.get_running_loop().sock_recv(channel.socket, 100)
            made = channel.obey(command)
            if made is None:
                return
            yield made
    finally:
        channel.close()


def failing() -> Iterator[bytes]:
    """Nothing comes of it."""
    raise RuntimeError("as it has to")
    yield b""


def respond(path: str) -> sendgate.Response:
    """The response to a path."""
    _, kind, *rest = path.split("/")
    name = rest[0] if rest else ""
    pieces = [piece(1), piece(2)]
    length = len(pieces[0])
    if kind == "held":
        return sendgate.Response(held(name), streaming=True)
    if kind == "async":
        return sendgate.Response(asynchronous(name), streaming=True)
    if kind == "counted":
        return sendgate.Response(held(name), headers={"Content-Length": str(5 * length)}, streaming=True)
    if kind == "lazy":
        return sendgate.Response(held(name))
    if kind == "short":
        return sendgate.Response(iter(pieces), headers={"Content-Length": str(3 * length)})
    if kind == "long":
        return sendgate.Response(iter(pieces), headers={"Content-Length": str(2 * length - 1)})
    if kind == "failing":
        return sendgate.Response(failing())
    if kind == "big":
        return sendgate.Response((BLOCK for _ in range(BIG // len(BLOCK))), streaming=True)
    if kind == "process":
        return sendgate.Response(str(os.getpid()))
    return sendgate.Response("next")


def wsgi(environ: Any, start_response: Any) -> Any:
    """The WSGI application."""
    response = respond(environ["PATH_INFO"])
    # nginx in front of it keeps nothing back.
    response["X-Accel-Buffering"] = "no"
    return response(environ, start_response)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def watched() -> Any:
        message = await receive()
        if message["type"] == "http.disconnect":
            left(scope["path"])
        return message

    sent: Awaitable[None] = respond(scope["path"])(scope, watched, send)
    await sent


def left(path: str) -> None:
    """Tell the other end of a channel that the server knows that the client has left."""
    name = HERE / (path.rsplit("/", 1)[1] + ".test")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(b"left", str(name))
