"""The applications that python.py measures: each serves the folder that SENDGATE_BENCH_DATA names.

Loaded by gunicorn, uvicorn and Granian as pyapps:NAME; only what is asked for is imported. WhiteNoise and ServeStatic
look at all files when they start, which is their way; the others look at a file when it is asked for.
"""

import os
from typing import Any

DATA = os.environ["SENDGATE_BENCH_DATA"]


def _hello() -> Any:
    def hello(environ: dict, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "12")])
        return [b"Hello world\n"]

    return hello


def _files() -> Any:
    import sendgate.wsgi

    return sendgate.wsgi.Files(DATA)


def _conditional() -> Any:
    import sendgate.wsgi

    def application(environ: dict, start_response: Any) -> Any:
        file = open(DATA + environ["PATH_INFO"], "rb")  # noqa: SIM115 - the server closes it
        start_response("200 OK", [("Content-Type", "application/octet-stream")])
        return environ["wsgi.file_wrapper"](file)

    return sendgate.wsgi.Conditional(application)


def _missing(environ: dict, start_response: Any) -> list[bytes]:
    start_response("404 Not Found", [("Content-Length", "0")])
    return []


def _whitenoise() -> Any:
    from whitenoise import WhiteNoise

    return WhiteNoise(_missing, root=DATA)


def _servestatic() -> Any:
    from servestatic import ServeStatic

    return ServeStatic(_missing, root=DATA)


def _werkzeug() -> Any:
    from werkzeug.utils import send_from_directory

    def application(environ: dict, start_response: Any) -> Any:
        return send_from_directory(DATA, environ["PATH_INFO"][1:], environ)(environ, start_response)

    return application


def _asgi_hello() -> Any:
    async def hello(scope: dict, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"12")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"Hello world\n"})

    return hello


def _asgi_files() -> Any:
    import sendgate.asgi

    return sendgate.asgi.Files(DATA)


def _asgi_mounted() -> Any:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    import sendgate.asgi

    return Starlette(routes=[Mount("/", sendgate.asgi.Files(DATA))])


def _starlette() -> Any:
    from starlette.staticfiles import StaticFiles

    return StaticFiles(directory=DATA)


def _rsgi_hello() -> Any:
    async def hello(scope: Any, protocol: Any) -> None:
        protocol.response_bytes(200, [("content-type", "text/plain")], b"Hello world\n")

    return hello


def _rsgi_bare() -> Any:
    # What is asked for is known beforehand: nothing is opened, decided or parsed in Python.
    ranges = {"/r1k.bin": (500000, 501024), "/r100k.bin": (500000, 602400)}
    content_type = ("content-type", "application/octet-stream")
    lengths = {f"/{entry.name}": str(entry.stat().st_size) for entry in os.scandir(DATA)}

    async def application(scope: Any, protocol: Any) -> None:
        path = scope.path
        if path in ranges:
            start, end = ranges[path]
            headers = [content_type, ("content-length", str(end - start))]
            protocol.response_file_range(206, headers, DATA + path, start, end)
        elif path == "/304.bin" and "if-none-match" in scope.headers:
            protocol.response_empty(304, [("etag", '"a"')])
        else:
            headers = [content_type, ("content-length", lengths[path]), ("etag", '"a"')]
            protocol.response_file(200, headers, DATA + path)

    return application


def _rsgi_files() -> Any:
    import sendgate.rsgi

    return sendgate.rsgi.Files(DATA)


def _rsgi_protocol() -> Any:
    import sendgate.rsgi

    async def application(scope: Any, protocol: Any) -> None:
        given = scope.headers.get
        headers = [("content-type", "application/octet-stream")]
        sendgate.rsgi.Protocol(protocol, scope).response_file_conditional(
            200, headers, DATA + scope.path, given("if-none-match"), given("if-modified-since"), given("range")
        )

    return application


def __getattr__(name: str) -> Any:
    return globals()[f"_{name}"]()
