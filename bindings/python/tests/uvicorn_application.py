"""An ASGI application that does what its query says: a list of events, in JSON. For test_uvicorn.py.

    ["start", status, [[name, value], ...]]     ["body", text, more_body]
    ["start once", ...]                         the same, with headers that can be read once; the message is cleared
    ["return", value]
    ["pathsend", file, {keys}]                  ["zerocopysend", file, how, {keys}]     how: int, object, buffered
    ["read", file, offset, count, more_body]    what of a file the others send, by a body event
    ["touch", file]                             the test sees that the application has come this far
    ["await", file]                             wait until there is such a file
    ["swallow"]                                 what the next event raises is written into the file "error"
    ["begin", event]                            do it in a task
    ["cancel"] ["join"]                         cancel that, and wait for it; only wait for it

The files are in the folder that SENDGATE_TEST_FILES names.
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sendgate.asgi

ROOT = Path(os.environ.get("SENDGATE_TEST_FILES", "."))

files = sendgate.asgi.Files(ROOT)


async def application(scope: Any, receive: Any, send: Any) -> Any:
    """See above."""
    if scope["type"] != "http":
        raise RuntimeError("nothing but HTTP")
    if scope["path"] == "/state":
        await _state(scope, send)
        return None
    swallow = False
    begun: asyncio.Task[None] | None = None
    for kind, *arguments in json.loads(unquote(scope["query_string"].decode())):
        if kind == "swallow":
            swallow = True
            continue
        if kind == "return":
            return arguments[0]
        if kind == "begin":
            begun = asyncio.ensure_future(_do(arguments[0][0], arguments[0][1:], send))
            continue
        if kind in ("cancel", "join"):
            assert begun is not None
            if kind == "cancel":
                begun.cancel()
            await asyncio.wait({begun})
            continue
        try:
            await _do(kind, arguments, send)
        except Exception:
            if not swallow:
                raise
            (ROOT / "error").write_text(traceback.format_exc())
        swallow = False
    return None


async def _state(scope: Any, send: Any) -> None:
    state = {
        "extensions": scope.get("extensions", {}),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
    }
    body = json.dumps(state).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def _do(kind: str, arguments: list[Any], send: Any) -> None:
    if kind == "start":
        status, fields = arguments
        headers = [(name.encode(), value.encode()) for name, value in fields]
        await send({"type": "http.response.start", "status": status, "headers": headers})
    elif kind == "start once":
        status, fields = arguments
        message = {
            "type": "http.response.start",
            "status": status,
            "headers": ((name.encode(), value.encode()) for name, value in fields),
        }
        await send(message)
        message.clear()
    elif kind == "body":
        text, more = arguments
        await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
    elif kind == "read":
        name, offset, count, more = arguments
        content = (ROOT / name).read_bytes()[offset : offset + count]
        await send({"type": "http.response.body", "body": content, "more_body": more})
    elif kind == "pathsend":
        name, keys = arguments
        await send({"type": "http.response.pathsend", "path": str(ROOT / name), **keys})
    elif kind == "zerocopysend":
        await _zerocopysend(*arguments, send)
    elif kind == "touch":
        (ROOT / arguments[0]).touch()
    elif kind == "await":
        while not (ROOT / arguments[0]).exists():
            await asyncio.sleep(0.005)
    else:
        raise ValueError(kind)


async def _zerocopysend(name: str, how: str, keys: dict[str, Any], send: Any) -> None:
    """One file for one event, or for several with the count and position of each."""
    counts = keys.pop("counts", None)
    seek = keys.pop("seek", 0)
    with open(ROOT / name, "rb", buffering=-1 if how == "buffered" else 0) as file:
        file.seek(seek)
        if how == "buffered":
            # Now it is ahead of where it says it is.
            seek += len(file.read(10))
        given = file.fileno() if how == "int" else file
        if counts is None:
            await send({"type": "http.response.zerocopysend", "file": given, **keys})
            return
        for index, count in enumerate(counts):
            more = index < len(counts) - 1
            await send({"type": "http.response.zerocopysend", "file": given, "count": count, "more_body": more})
            seek += count
            assert file.tell() == seek


#: Protocols of one's own, which uvicorn finds here by name.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "Copying": {"copy": True},
    "Impatient": {"send_timeout": 0.3},
    "Offering": {"zerocopysend": True},
}


def __getattr__(name: str) -> Any:
    if name == "beside_starlette":
        import starlette.middleware.base  # noqa: F401 - it is there

        return application
    if name not in PROTOCOLS:
        raise AttributeError(name)
    from sendgate.uvicorn import HttpTools

    return type(name, (HttpTools,), PROTOCOLS[name])
