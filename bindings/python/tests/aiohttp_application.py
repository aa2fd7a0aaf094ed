"""An application for ``test_aiohttp``. ``python aiohttp_application.py LOOP FOLDER [OPTION...]`` serves it.

It prints the port. Options: a certificate and its key for TLS, and "cancel" for handler_cancellation.
"""

from __future__ import annotations

import asyncio
import io
import logging
import mmap
import os
import resource
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

import sendgate
import sendgate.aiohttp
from sendgate.aiohttp import FileResponse

loop_name, folder, *options = sys.argv[1:]
FOLDER = Path(folder)
FILES = FOLDER / "files"
LIMITS = resource.getrlimit(resource.RLIMIT_NOFILE)

routes = web.RouteTableDef()
#: What was opened by handlers, by the path of the request.
opened: dict[str, Any] = {}


@routes.get("/file/{name:.*}")
async def file(request: web.Request) -> web.StreamResponse:
    """A file by its path."""
    return FileResponse(FILES / request.match_info["name"])


@routes.get("/stock/{name:.*}")
async def stock(request: web.Request) -> web.StreamResponse:
    """aiohttp's own."""
    return web.FileResponse(FILES / request.match_info["name"])


@routes.get("/hello")
async def hello(request: web.Request) -> web.StreamResponse:
    """No file."""
    return web.Response(text="hello")


@routes.get("/small-limits/{name}")
async def impatient(request: web.Request) -> web.StreamResponse:
    """A file for clients that take it at once."""
    return FileResponse(FILES / request.match_info["name"], timeout=0.3)


@routes.get("/cookie")
async def cookie(request: web.Request) -> web.StreamResponse:
    """A response that was changed before it is sent."""
    response = FileResponse(FILES / "plain.txt", headers={"X-Name": "\u00fc", "Link": "<a>"}, reason="Fine")
    response.headers.add("Link", "<b>")
    response.set_cookie("session", "1")
    return response


@routes.get("/own")
async def own(request: web.Request) -> web.StreamResponse:
    """Validators and a type of the application's."""
    headers = {"ETag": '"v1"', "Last-Modified": "Sat, 05 Nov 1994 00:00:00 GMT", "Content-Type": "text/x-own"}
    return FileResponse(FILES / "plain.txt", headers=headers)


@routes.get("/teapot")
async def teapot(request: web.Request) -> web.StreamResponse:
    """A status of the application's."""
    return FileResponse(FILES / "plain.txt", status=418)


@routes.get("/no-ranges")
async def no_ranges(request: web.Request) -> web.StreamResponse:
    """All or nothing."""
    return FileResponse(FILES / "plain.txt", headers={"Accept-Ranges": "none"})


@routes.get("/part")
async def part(request: web.Request) -> web.StreamResponse:
    """Some bytes, as if they were all."""
    return FileResponse(FILES / "plain.txt", offset=100, length=50, etag='"part"')


@routes.get("/post")
@routes.post("/post")
async def post(request: web.Request) -> web.StreamResponse:
    """For another method; its content is left unread."""
    return FileResponse(FILES / "plain.txt")


@routes.get("/compressed/{name}")
async def compressed(request: web.Request) -> web.StreamResponse:
    """What a middleware does that compresses everything."""
    response = FileResponse(FILES / request.match_info["name"])
    response.enable_compression()
    return response


@routes.get("/chunked/{name}")
async def chunked(request: web.Request) -> web.StreamResponse:
    """In chunks, for no reason."""
    response = FileResponse(FILES / request.match_info["name"])
    response.enable_chunked_encoding()
    return response


@routes.get("/uncompressed/{name}")
async def uncompressed(request: web.Request) -> web.StreamResponse:
    """Whatever is beside it."""
    return FileResponse(FILES / request.match_info["name"], precompressed=False)


@routes.get("/prepared")
async def prepared(request: web.Request) -> web.StreamResponse:
    """The handler sends it itself."""
    response = FileResponse(FILES / "plain.txt")
    assert not response.prepared
    await response.prepare(request)
    assert response.prepared
    return response


@routes.get("/raises")
async def raises(request: web.Request) -> web.StreamResponse:
    """The handler fails when it is sent."""
    await FileResponse(FILES / "plain.txt").prepare(request)
    raise RuntimeError("after the response")


@routes.get("/hurried/{name}")
async def hurried(request: web.Request) -> web.StreamResponse:
    """The handler has no time."""
    response = FileResponse(FILES / request.match_info["name"])
    try:
        await asyncio.wait_for(response.prepare(request), 0.3)
    except asyncio.TimeoutError:
        logging.info("the handler was cancelled")
        raise
    return response


@routes.get("/refused")
async def refused(request: web.Request) -> web.StreamResponse:
    """What the library doesn't take, told to the handler."""
    await FileResponse(FILES / "plain.txt", headers={"ETag": "no quotes"}).prepare(request)
    raise AssertionError("it was taken")


@routes.get("/split")
async def split(request: web.Request) -> web.StreamResponse:
    """A signal adds what would split the response."""
    request["split"] = True
    response = FileResponse(FILES / "plain.txt")
    await response.prepare(request)
    raise AssertionError("it was sent")


@routes.get("/opened")
async def from_opened(request: web.Request) -> web.StreamResponse:
    """An open file, from where it is."""
    opened["file"] = (FILES / "plain.txt").open("rb")
    opened["file"].read(10)
    return FileResponse(opened["file"])


@routes.get("/sendgate-file")
async def from_file(request: web.Request) -> web.StreamResponse:
    """A File."""
    directory = os.open(FILES, os.O_RDONLY)
    try:
        return FileResponse(sendgate.open_beneath(directory, "plain.txt"))
    finally:
        os.close(directory)


@routes.get("/descriptor")
async def from_descriptor(request: web.Request) -> web.StreamResponse:
    """A descriptor, which stays the handler's."""
    with (FILES / "plain.txt").open("rb") as file:
        response = FileResponse(file.fileno(), headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        os.fstat(file.fileno())
    return response


@routes.get("/pipe")
async def from_pipe(request: web.Request) -> web.StreamResponse:
    """What has no length."""
    ends = os.pipe()
    try:
        response = FileResponse(ends[0])
        await response.prepare(request)
    finally:
        for end in ends:
            os.close(end)
    return response


@routes.get("/memory/{kind}")
async def from_memory(request: web.Request) -> web.StreamResponse:
    """A buffer, which stays the handler's."""
    content = (FILES / "plain.txt").read_bytes()
    buffer: Any
    if request.match_info["kind"] == "mmap":
        buffer = opened.get("mmap")
        if buffer is None:
            buffer = opened["mmap"] = mmap.mmap(-1, len(content))
            buffer[:] = content
    else:
        buffer = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview, "BytesIO": io.BytesIO}[
            request.match_info["kind"]
        ](content)
    return FileResponse(buffer, headers={"ETag": '"v1"'})


@routes.get("/state")
async def state(request: web.Request) -> web.StreamResponse:
    """What became of the file that was opened."""
    return web.json_response({"closed": opened["file"].closed})


@routes.get("/url")
async def url(request: web.Request) -> web.StreamResponse:
    """The URL of a file."""
    return web.Response(text=str(request.app.router["static"].url_for(filename="folder/\u00fc b.txt")))


@routes.get("/no-descriptors")
async def no_descriptors(request: web.Request) -> web.StreamResponse:
    """From here to the head none can be made."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, LIMITS[1]))
    return FileResponse(FILES / "plain.txt")


@routes.get("/replaced")
async def replaced(request: web.Request) -> web.StreamResponse:
    """The signal puts another file in its place."""
    request["replace"] = True
    return FileResponse(FILES / "replaced.txt")


async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
    """A signal that looks at the head, and adds to it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, LIMITS)
    response.headers["X-Seen"] = f"{response.status} {response.headers.get('Content-Length')}"
    if "split" in request and response.status == 200:
        response.headers["X-Split"] = "a\r\nb: c"
    if "replace" in request:
        (FILES / "new.txt").write_bytes(b"new")
        os.replace(FILES / "new.txt", FILES / "replaced.txt")


@web.middleware
async def pages(request: web.Request, handler: Any) -> web.StreamResponse:
    """A middleware with a page of its own for what isn't there."""
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPNotFound:
        if not request.path.startswith("/page/"):
            raise
        return web.Response(status=404, text="a middleware's page")
    return response


def site(prefix: str, **arguments: Any) -> web.AbstractRouteDef:
    """The folder at a prefix."""
    return sendgate.aiohttp.static(prefix, FILES, **arguments)


def application() -> web.Application:
    """All of it."""
    app = web.Application(middlewares=[pages])
    app.on_response_prepare.append(on_prepare)
    app.add_routes(routes)
    app.add_routes(
        [
            site("/static/", name="static", max_age=60),
            site("/page"),
            site("/with-page", hidden=True, error_pages={404: "404.html"}),
        ]
    )
    app.router.add_static("/stock-static", FILES)
    inner = web.Application()
    inner.add_routes([site("/files")])
    app.add_subapp("/inner", inner)
    return app


def main() -> None:
    """Serve it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    context = None
    if "cancel" not in options and options:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*options)
    if loop_name == "uvloop":
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    web.run_app(
        application(),
        sock=listener,
        ssl_context=context,
        access_log_format="%r %s %b",
        handler_cancellation="cancel" in options,
        print=None,
    )


if __name__ == "__main__":
    main()
