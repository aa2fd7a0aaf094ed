"""Starlette, FastAPI and ServeStatic for test_asgi_frameworks.py: what is the frameworks' own, and with the drop-ins of
sendgate.starlette.

    /ours/...       the drop-ins, in Starlette
    /fastapi/...    both, in FastAPI
    /stock/...      nothing but Starlette's own
    /white/...      ServeStatic
    /stacked/X/...  the application X of these with GZipMiddleware and BaseHTTPMiddleware around it
    /turned/X/...   in the other order
    /upgraded/X/... the application X inside of sendgate.asgi.Conditional, which hides what was asked for
    /all/X/...      with all that around it

The files are in the folder "files" of the one that the server was started in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fastapi
import fastapi.responses
import fastapi.staticfiles
import starlette.responses
import starlette.staticfiles
from servestatic import ServeStaticASGI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount, Route, WebSocketRoute

import sendgate
from sendgate.asgi import Conditional
from sendgate.starlette import FileResponse, StaticFiles

FILES = Path("files").resolve()
FILE = FILES / "file.bin"

ran: list[str] = []


# ---- The drop-ins ----


def file(request: Any) -> FileResponse:
    """A file, with all that may be said of it."""
    response = FileResponse(
        FILE, headers={"Cache-Control": "no-cache"}, background=BackgroundTask(ran.append, request.method)
    )
    response.headers["X-A"] = "b"
    response.set_cookie("a", "b")
    response.set_cookie("c", "d")
    return response


def count(request: Any) -> starlette.responses.Response:
    """How often the background task has run."""
    return starlette.responses.PlainTextResponse(str(len(ran)))


def attachment(request: Any) -> FileResponse:
    """Starlette's arguments."""
    return FileResponse(FILE, 200, None, "text/x-own", None, "\u00fc.bin", os.stat(FILE))


def inline(request: Any) -> FileResponse:
    """And the last of them."""
    return FileResponse(str(FILE), filename="a.txt", content_disposition_type="inline", etag='"own"', max_ranges=1)


def opened(request: Any) -> FileResponse:
    """An open file, from where it stands."""
    opened = FILE.open("rb")
    opened.read(10)
    return FileResponse(opened)


def handle(request: Any) -> FileResponse:
    """A file of the library's."""
    directory = os.open(FILES, os.O_RDONLY)
    try:
        return FileResponse(sendgate.open_beneath(directory, "file.bin"), media_type="text/plain")
    finally:
        os.close(directory)


def teapot(request: Any) -> FileResponse:
    """A status of one's own."""
    return FileResponse(FILE, status_code=418)


def missing(request: Any) -> FileResponse:
    """A file that isn't there, or is none."""
    return FileResponse(FILES / request.path_params["name"])


async def denied(websocket: Any) -> None:
    """A file as the refusal of a WebSocket."""
    await websocket.send_denial_response(FileResponse(FILE, status_code=403))


class Marked(StaticFiles):
    """One that replaces the hooks."""

    def lookup_path(self, path: str) -> Any:
        """Another file for a name."""
        return super().lookup_path("file.bin" if path == "alias" else path)

    def file_response(self, *args: Any, **kwargs: Any) -> starlette.responses.Response:
        """A field for each file."""
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "max-age=60"
        return response

    async def get_response(self, path: str, scope: Any) -> starlette.responses.Response:
        """And one for each answer."""
        response = await super().get_response(path, scope)
        response.headers["X-Marked"] = "yes"
        return response


class Raced(StaticFiles):
    """One whose file is replaced by a link that leads out, after it was looked up."""

    def lookup_path(self, path: str) -> Any:
        """Look it up."""
        found = super().lookup_path(path)
        os.symlink("../starlette_application.py", FILES / "link")
        os.replace(FILES / "link", FILES / path)
        return found


ours = Starlette(
    routes=[
        Route("/file", file, methods=["GET", "HEAD", "POST"]), Route("/count", count),
        Route("/attachment", attachment), Route("/inline", inline), Route("/opened", opened), Route("/handle", handle),
        Route("/teapot", teapot), Route("/missing/{name}", missing), WebSocketRoute("/denied", denied),
        Mount("/static", StaticFiles(directory="files")), Mount("/html", StaticFiles(directory="files", html=True)),
        Mount("/linked", StaticFiles(directory="files", follow_symlink=True)),
        Mount("/marked", Marked(directory="files")), Mount("/one", FileResponse(FILE)),
        Mount("/raced", Raced(directory="files")), Mount("/packed", StaticFiles(packages=[("packed", "data")])),
    ]
)  # fmt: skip

# ---- Stock ----

stock = Starlette(
    routes=[
        Route("/file", lambda request: starlette.responses.FileResponse(FILE)),
        Mount("/static", starlette.staticfiles.StaticFiles(directory="files")),
        Mount("/html", starlette.staticfiles.StaticFiles(directory="files", html=True)),
    ]
)

# ---- FastAPI ----

fast = fastapi.FastAPI()


@fast.api_route("/file", methods=["GET", "HEAD"])
def fast_file() -> fastapi.responses.FileResponse:
    """FastAPI's own."""
    return fastapi.responses.FileResponse(FILE)


@fast.api_route("/ours", methods=["GET", "HEAD"], response_class=FileResponse)
async def fast_ours() -> Any:
    """A path that FastAPI makes a response of."""
    return FILE


@fast.api_route("/returned", methods=["GET", "HEAD"])
def fast_returned() -> FileResponse:
    """A response that is returned."""
    return FileResponse(FILE)


fast.mount("/static", fastapi.staticfiles.StaticFiles(directory="files"))

# ---- All of them ----


class Stamp(BaseHTTPMiddleware):
    """A middleware as many write it."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        """Add a field."""
        response = await call_next(request)
        response.headers["X-Stamp"] = "yes"
        return response


white = ServeStaticASGI(Starlette(), root=str(FILES))
APPLICATIONS: dict[str, Any] = {"ours": ours, "stock": stock, "fastapi": fast, "white": white}


def prefixed(applications: dict[str, Any]) -> Any:
    """Chooses by the first segment of the path."""

    async def choose(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await ours(scope, receive, send)
            return
        name, _, rest = scope["path"][1:].partition("/")
        inner = {**scope, "path": "/" + rest, "raw_path": ("/" + rest).encode()}
        await applications.get(name, ours)(inner, receive, send)

    return choose


application = prefixed(
    {
        **APPLICATIONS,
        "stacked": prefixed({name: Stamp(GZipMiddleware(app)) for name, app in APPLICATIONS.items()}),
        "turned": prefixed({name: GZipMiddleware(Stamp(app)) for name, app in APPLICATIONS.items()}),
        "upgraded": prefixed({name: Conditional(app, hide=True) for name, app in APPLICATIONS.items()}),
        "all": prefixed(
            {name: Conditional(Stamp(GZipMiddleware(Stamp(app))), hide=True) for name, app in APPLICATIONS.items()}
        ),
    }
)
