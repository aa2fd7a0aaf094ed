"""The project of examples/django on a server, with several handlers of Django: a request chooses its middleware by the
field X-Stack, and has a few more views.

``python -m django_application PORT`` serves it by wsgiref.
"""

from __future__ import annotations

import asyncio
import collections
import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.asgi import get_asgi_application as get_stock_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import include, path

from django_project import STACKS
from sendgate.django import FileResponse, StreamingHttpResponse, get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django.setup()

BLOCK = bytes(range(256)) * 256

#: By the name of what was sent: how often it was closed.
closed: collections.Counter[str] = collections.Counter()


class Blocks:
    """So many bytes, which aren't kept anywhere."""

    def __init__(self, size: int) -> None:
        self._blocks = size // len(BLOCK)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._blocks == 0:
            raise StopIteration
        self._blocks -= 1
        return BLOCK


def blocks(request: HttpRequest, size: int) -> StreamingHttpResponse:
    """Content that is made while it is sent."""
    return StreamingHttpResponse(Blocks(size))


async def async_blocks(request: HttpRequest, size: int) -> StreamingHttpResponse:
    """The same, asynchronous."""

    async def generate() -> AsyncIterator[bytes]:
        for block in Blocks(size):
            yield block

    return StreamingHttpResponse(generate())


async def waiting(request: HttpRequest) -> StreamingHttpResponse:
    """A piece, and then nothing for a long time."""

    async def generate() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.sleep(3600)
        finally:
            closed[request.GET.get("name", "")] += 1

    return StreamingHttpResponse(generate())


def announced(request: HttpRequest, length: int) -> StreamingHttpResponse:
    """Four bytes, of which something else is said."""
    return StreamingHttpResponse(iter([b"ab", b"cd"]), length=length)


def plain_file(request: HttpRequest) -> FileResponse:
    """A file that is decided later, if at all."""
    return FileResponse(settings.FILE)


def sparse_file(request: HttpRequest) -> FileResponse:
    """One that is large."""
    return FileResponse(Path(settings.FILE).with_name("sparse"))


def table(request: HttpRequest) -> StreamingHttpResponse:
    """Rows of a database, whose connection may be used by no other thread."""
    database = sqlite3.connect(":memory:")

    def generate() -> Iterator[str]:
        try:
            for (number,) in database.execute("VALUES (1), (2), (3)"):
                yield f"{number}\n"
        finally:
            database.close()

    return StreamingHttpResponse(generate())


def counts(request: HttpRequest) -> JsonResponse:
    """What was closed."""
    response = JsonResponse(closed)
    response["Content-Length"] = str(len(response.content))
    return response


urlpatterns = [
    path("", include("mysite.urls")),
    path("blocks/<int:size>/", blocks),
    path("async-blocks/<int:size>/", async_blocks),
    path("announced/<int:length>/", announced),
    path("waiting/", waiting),
    path("plain-file/", plain_file),
    path("sparse-file/", sparse_file),
    path("table/", table),
    path("counts/", counts),
]
settings.ROOT_URLCONF = __name__


def _each(get_application: Any) -> dict[str, Any]:
    """A handler for each stack: it loads its middleware when it is made."""
    found = {}
    for name, middleware in STACKS.items():
        settings.MIDDLEWARE = middleware
        found[name] = get_application()
    return found


_wsgi, _asgi, _stock_asgi = map(_each, (get_wsgi_application, get_asgi_application, get_stock_asgi_application))


def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    """The WSGI application."""
    return _wsgi[environ.get("HTTP_X_STACK", "no middleware")](environ, start_response)


def _stack(scope: dict[str, Any]) -> str:
    return str(dict(scope["headers"]).get(b"x-stack", b"no middleware").decode())


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application, by this package."""
    if scope["type"] == "http":
        await _asgi[_stack(scope)](scope, receive, send)


async def stock_asgi(scope: Any, receive: Any, send: Any) -> None:
    """The same, by Django."""
    if scope["type"] == "http":
        await _stock_asgi[_stack(scope)](scope, receive, send)


if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", int(sys.argv[1]), wsgi).serve_forever()
