"""The FastCGI servers of Python's that fastcgi.py measures sendgate against: `fcgiapps.py fastcgi|flup SOCKET DIR`.

`application` serves the folder that SENDGATE_BENCH_DATA names to flup, and to sendgate's gateway the same. All of them
make an entity tag and compare it, as little as one can do, and leave the rest to the library.
"""

import os
import sys
from typing import Any
from wsgiref.util import FileWrapper


def _tag(file: Any) -> tuple[str, str]:
    about = os.fstat(file.fileno())
    return f'"{about.st_mtime_ns:x}-{about.st_size:x}"', str(about.st_size)


def application(environ: dict, start_response: Any) -> Any:
    """The WSGI application."""
    # Which of them has the path depends on the gateway.
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    file = open(os.environ["SENDGATE_BENCH_DATA"] + path, "rb")  # noqa: SIM115 - the server closes it
    tag, length = _tag(file)
    if environ.get("HTTP_IF_NONE_MATCH") == tag:
        file.close()
        start_response("304 Not Modified", [("ETag", tag)])
        return []
    start_response("200 OK", [("ETag", tag), ("Content-Length", length), ("Content-Type", "application/octet-stream")])
    return environ.get("wsgi.file_wrapper", FileWrapper)(file, 65536)


def _flup(path: str, folder: str) -> None:
    from flup.server.fcgi import WSGIServer

    os.environ["SENDGATE_BENCH_DATA"] = folder
    # Threads for all connections from the start: with fewer, one that comes while they are all being given out waits
    # until another ends, which kept ones don't.
    WSGIServer(application, bindAddress=path, minSpare=32, maxSpare=32).run()


def _fastcgi(path: str, folder: str) -> None:
    from socketserver import UnixStreamServer

    from fastcgi.core import FcgiHandler

    class Handler(FcgiHandler):
        def handle(self) -> None:
            with open(folder + self.environ["SCRIPT_NAME"], "rb") as file:
                tag, length = _tag(file)
                if self.environ.get("HTTP_IF_NONE_MATCH") == tag:
                    self.write(f"Status: 304 Not Modified\r\nETag: {tag}\r\n\r\n".encode())
                    return
                head = f"Status: 200 OK\r\nETag: {tag}\r\nContent-Length: {length}\r\n"
                self.write(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
                self.write(file.read())

    UnixStreamServer.request_queue_size = 128
    UnixStreamServer(path, Handler).serve_forever()


if __name__ == "__main__":
    {"flup": _flup, "fastcgi": _fastcgi}[sys.argv[1]](*sys.argv[2:])
