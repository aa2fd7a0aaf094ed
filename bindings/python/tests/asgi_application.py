"""What runs inside of each server of ``asgi_servers``.

    /files/NAME         sendgate.asgi.Files on the folder "files"
    /pathsend/NAME      an application's pathsend of the file, inside of sendgate.asgi.Conditional
    /static/NAME        Starlette's own StaticFiles, inside of sendgate.asgi.Conditional, which hides what was asked for
    /shrinking/NAME     sendgate.asgi.FileResponse with the file, which becomes shorter as soon as something was sent
    /failing            an application that fails before it has sent anything
    /next               a response like any other

The folder is the one that the server was started in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from starlette.staticfiles import StaticFiles

import sendgate.asgi

FOLDER = Path("files").resolve()


async def pathsend(scope: Any, receive: Any, send: Any) -> None:
    """One that knows nothing of conditions and ranges."""
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.pathsend", "path": str(FOLDER / scope["path"].rsplit("/", 1)[1])})


async def shrinking(scope: Any, receive: Any, send: Any) -> None:
    """One whose file is rewritten at the wrong moment."""
    path = FOLDER / scope["path"].rsplit("/", 1)[1]

    async def shrink(message: Any) -> None:
        await send(message)
        # Some servers wait with the head until there is content; on ours all of it is one message.
        if message.get("more_body") or sendgate.asgi.BODY in (scope.get("extensions") or ()):
            os.truncate(path, 1000)

    await sendgate.asgi.FileResponse(path)(scope, receive, shrink)


async def text(scope: Any, receive: Any, send: Any) -> None:
    """A response like any other."""
    if scope["path"] == "/failing":
        raise RuntimeError("as it has to")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"next", "more_body": False})


files = sendgate.asgi.Files(FOLDER, prefix="/files/")
conditional = sendgate.asgi.Conditional(pathsend)
static = sendgate.asgi.Conditional(StaticFiles(directory=FOLDER), hide=True)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Chooses by the path."""
    if scope["type"] == "lifespan":
        await files(scope, receive, send)
        return
    path = scope["path"]
    if path.startswith("/static/"):
        scope = {**scope, "root_path": "/static"}
    for prefix, chosen in (
        ("/files/", files), ("/pathsend/", conditional), ("/static/", static), ("/shrinking/", shrinking),
    ):  # fmt: skip
        if path.startswith(prefix):
            await chosen(scope, receive, send)
            return
    await text(scope, receive, send)
