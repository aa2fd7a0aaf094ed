"""What the types promise: checked by mypy, never run."""

from __future__ import annotations

import asyncio
import http.client
import io
import mmap
import pathlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, MutableMapping
from typing import Any

import sendgate
import sendgate.asgi
import sendgate.asyncio
import sendgate.starlette
import sendgate.wsgi


def requests(environ: dict[str, Any], message: http.client.HTTPMessage) -> None:
    """A request from everything that has header fields."""
    a: sendgate.Request = sendgate.Request()
    a = sendgate.Request("GET", 11, [("Range", "bytes=0-9"), (b"Range", b"bytes=0-9")])
    a = sendgate.Request(b"HEAD", "HTTP/1.0", {"Range": "bytes=0-9"}, has_body=False)
    a = sendgate.Request("GET", 11, message.items())
    a = sendgate.Request.from_environ(environ)
    a = sendgate.Request.from_scope(environ, has_body=False)
    b: sendgate.Request | None = sendgate.Request.from_head(b"")
    c: str | None = a.field("If-Match")
    d: int = a.head_length
    print(b, c, d)


def files(sock: socket.socket, tls: ssl.SSLSocket, mapped: mmap.mmap, path: pathlib.Path, binary: io.BytesIO) -> None:
    """Everything that can be sent, and everything that it can be sent on."""
    for file in (0, "a", path, binary, b"", bytearray(), memoryview(b""), mapped, io.FileIO("a")):
        sendgate.respond(sock, None, file)
    result: sendgate.Result = sendgate.respond(tls, None, "a", headers=[("A", "b"), (b"C", "d", sendgate.Rule.APPEND)])
    connection: sendgate.Connection = result.connection
    with sendgate.open_beneath(0, "a") as opened:
        sendgate.respond(7, sendgate.Request(), opened, headers={"A": "b"}, etag='"x"', last_modified=0, timeout=1.5)
    sendgate.respond(sock, None, "a", head=b"HTTP/1.1 200 OK\r\n\r\n")
    sendgate.respond(sock, None, "a", head="HTTP/1.1 200 OK\r\n\r\n")  # type: ignore[arg-type]
    sendgate.respond(sock, None, None)  # type: ignore[arg-type]
    sendgate.respond(sock, b"GET / HTTP/1.1\r\n\r\n", "a")  # type: ignore[arg-type]
    sendgate.respond(sock, None, "a", True)  # type: ignore[arg-type, call-arg]
    print(connection)


def decisions() -> None:
    """A decision's members."""
    decision = sendgate.decide(None, b"", head=sendgate.HeadForm.CGI, now=1, seed=2)
    a: tuple[tuple[int, int], ...] = decision.ranges
    b: tuple[tuple[str, str], ...] = decision.fields
    c: bytes = decision.head
    d: bool = decision.keep_alive
    print(a, b, c, d)


def transfers(sock: socket.socket) -> int:
    """A transfer, with a socket and without."""
    with sendgate.Transfer() as transfer:
        transfer.start(sock, None, "a", offset=1, length=2, check=True)
        step: sendgate.Step = transfer.step(budget=65536)
        transfer.start(None, None, "a")
        count: int = transfer.pull(bytearray(4096))
        transfer.pull(b"")  # type: ignore[arg-type]
        return count + step + transfer.result.body_sent


def senders(sock: socket.socket, now: bool) -> None:
    """A sender: an id, or with try_now perhaps a result."""
    with sendgate.Sender(max_in_flight=10, turn_bytes=65536) as sender:
        a: int = sender.submit(sock, None, "a", content_type="text/plain", timeout=1.5, min_rate=1000, token=sock)
        a = sender.submit(sock, None, b"", try_now=False)
        b: int | sendgate.Result = sender.submit(sock, sendgate.Request(), b"", try_now=True)
        b = sender.submit(sock, None, b"", try_now=now)
        a = sender.submit(sock, None, b"", try_now=True)  # type: ignore[assignment]
        sender.submit(sock, None, b"", sender=1)  # type: ignore[call-overload]
        sender.submit(sock, None, b"", timeout="1")  # type: ignore[call-overload]
        for completion in sender.take(limit=5):
            c: sendgate.SendgateError | None = completion.error
            d: sendgate.Result = completion.result
            e: float = completion.elapsed
            print(completion.id, completion.token.anything, c, d, e)
        sender.cancel(a)
        f: bool = sender.stop(timeout=1)
        print(b, f, sender.fileno(), sender.max_in_flight)


async def loops(writer: asyncio.StreamWriter, transport: asyncio.Transport, sock: socket.socket) -> None:
    """The respond to be awaited, on whatever a server has."""
    a: sendgate.Result = await sendgate.asyncio.respond(writer, None, "a", content_type="text/plain", timeout=1.5)
    a = await sendgate.asyncio.respond(transport, sendgate.Request(), b"", sender=sendgate.Sender())
    a = await sendgate.asyncio.respond(sock, None, 0)
    a = await sendgate.asyncio.respond(7, None, 0, min_rate=1000)
    await sendgate.asyncio.respond("a", None, 0)  # type: ignore[arg-type]
    await sendgate.asyncio.aclose(timeout=1)
    print(a)


def simple(sock: socket.socket) -> None:
    """The three calls, as functions and with the proposal's signatures."""
    sendgate.response_file_fd(200, [("A", "b")], 3, sock=sock)
    sendgate.response_file_fd_range(206, [], 3, 0, 10, sock=sock, request=sendgate.Request())
    sendgate.response_file_conditional(200, [], "a", if_none_match='"x"', range="bytes=0-", sock=sock)
    sendgate.response_file_fd(200, [], 3)  # type: ignore[call-arg]
    protocol = sendgate.Responder(sock)
    protocol.response_file_fd(200, [("A", "b")], 3)
    protocol.response_file_fd_range(200, [], 3, 0, 10)
    protocol.response_file_conditional(200, [], "a", if_none_match=None, range_header=None)


async def asgi(scope: sendgate.asgi.Scope, receive: sendgate.asgi.Receive, send: sendgate.asgi.Send) -> None:
    """Applications, and what is around them."""
    files = sendgate.asgi.Files("a", prefix="/b", max_age=1, application=asgi)
    application: sendgate.asgi.Application = sendgate.asgi.Conditional(files, hide=lambda scope: True, max_ranges=1)
    application = sendgate.asgi.Conditional(application, hide=True, check=True)
    await sendgate.asgi.FileResponse(b"a", etag='"x"', headers={"A": "b"})(scope, receive, send)
    await sendgate.asgi.Protocol(scope, receive, send).response_file_fd(200, [("A", "b")], 3)
    sendgate.asgi.FileResponse(None)  # type: ignore[arg-type]
    sendgate.asgi.Files("a", front=None)  # type: ignore[call-arg]
    sendgate.starlette.FileResponse(pathlib.Path("a"), 200, {"A": "b"}, filename="c", etag='"x"', max_ranges=1)
    sendgate.starlette.FileResponse(io.FileIO("a"))
    sendgate.starlette.StaticFiles(directory="a", html=True, check=True)
    await application(scope, receive, send)


def fields(sock: socket.socket) -> None:
    """Lists of fields, which are mappings, and are taken wherever fields are."""
    headers = sendgate.Headers({"A": "b"}, frozen="ignore")
    headers = sendgate.Headers([("A", "b"), (b"C", b"d")])
    headers = sendgate.Headers(headers)
    headers.freeze("A", b"C")
    headers["A"] = b"bytes"
    headers.add("A", "b")
    headers.update({"A": "b"}, C="d")
    mapping: MutableMapping[str, str] = headers
    a: str = headers["A"]
    b: list[str] = headers.get_all("A")
    c: bool = headers.is_frozen("A")
    d: str | None = headers.pop("A", None)
    e: str | None = headers.get("A")
    headers["A"] = 5  # type: ignore[assignment]
    headers.frozen = "no"  # type: ignore[assignment]
    sendgate.Headers({}, "raise")  # type: ignore[call-arg]
    sendgate.respond(sock, None, "a", headers=headers)
    sendgate.Responder(sock).response_file_fd(200, headers, 3)
    print(mapping, a, b, c, d, e)


def responses(
    environ: sendgate.wsgi.Environ, start_response: sendgate.wsgi.StartResponse, produced: Iterator[bytes]
) -> Iterable[bytes]:
    """Everything that can be content, and a call by WSGI."""
    for content in ("a", b"a", bytearray(), pathlib.Path("a"), io.BytesIO(), [b"a"]):
        sendgate.Response(content)
    response = sendgate.Response(produced, 200, {"A": "b"}, content_type="a/b", streaming=True, frozen="ignore")
    response.content_iterator = (piece.upper() for piece in response.content_iterator)
    response.freeze_header("ETag", "Last-Modified")
    response.freeze_content()
    response["Content-Length"] = 5
    response.content = b"a"
    a: bytes = response.content
    b: bool = response.header_is_frozen("ETag") or response.content_is_frozen() or response.streaming
    c: sendgate.Headers = response.headers
    sendgate.Response(None)  # type: ignore[arg-type]
    sendgate.Response(["a"])  # type: ignore[list-item]
    print(a, b, c)
    return response(environ, start_response)


async def streams(
    scope: sendgate.asgi.Scope, receive: sendgate.asgi.Receive, send: sendgate.asgi.Send, produced: AsyncIterator[bytes]
) -> None:
    """The same by ASGI."""
    response = sendgate.Response(produced, streaming=True, trailers={"Digest": "a=b"})
    await response(scope, receive, send)
    a: bytes = await response.capture()
    await response.aclose()
    print(a)


def errors() -> None:
    """What an error tells."""
    try:
        sendgate.respond(0, None, "a")
    except sendgate.PeerClosedError as error:
        a: sendgate.Connection = error.connection
        b: sendgate.Result | None = error.result
        c: int = error.status
        print(a, b, c, error.errno)
