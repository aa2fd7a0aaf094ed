"""The application behind front servers: ``python fastcgi_application.py PLACE [MAX_CONNECTIONS]``.

PLACE/app.sock: a WSGI application by sendgate.fastcgi. PLACE/document.sock: the document's handler, under socketserver,
as the document has it. What happens is noted in files of PLACE.
"""

from __future__ import annotations

import hashlib
import logging
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import sendgate.wsgi
from sendgate import fastcgi

PLACE = Path(sys.argv[1])
TEXT = [("Content-Type", "application/octet-stream")]
MIB = bytes(range(256)) * 4096


class TestHandler(fastcgi.Handler):
    """The document's."""

    def handle(self) -> None:
        """Tell, and answer."""
        print("query:", self.params["QUERY_STRING"])
        print("content type:", self.params["HTTP_CONTENT_TYPE"])
        print("stdin:", self.stdin)
        self.send("Content-type: text/html\r\n\r\n<html>foobar</html>\n")


class Steps:
    """Produces a piece whenever the test says so, and notes that it was closed."""

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._done = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._done == self._count:
            raise StopIteration
        go_on = PLACE / f"{self._name}-{self._done}"
        while not go_on.exists():
            time.sleep(0.002)
        self._done += 1
        return b"piece %d\n" % self._done

    def close(self) -> None:
        """PEP 3333."""
        with (PLACE / f"{self._name}-closed").open("a") as file:
            file.write("x")


class Endless(Steps):
    """Produces as fast as somebody takes it."""

    def __next__(self) -> bytes:
        return MIB[:65536]


files = sendgate.wsgi.Files(PLACE / "files", prefix="/files/")


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """What the path says."""
    path = environ["PATH_INFO"]
    if path.startswith("/files/"):
        return files(environ, start_response)
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"], keep_blank_values=True).items()}
    stdin = environ["wsgi.input"]
    # What only the server knows.
    keep = environ["wsgi.errors"]._call.keep_conn
    head = [*TEXT, ("X-Keep", str(keep)), ("X-Uri", environ["REQUEST_URI"])]
    if path == "/echo":
        body = stdin.read()
        start_response("200 OK", [*head, ("Content-Length", str(len(body)))])
        return [body]
    if path == "/digest":
        digest, length = hashlib.sha256(), 0
        while piece := stdin.read(65536):
            digest.update(piece)
            length += len(piece)
        start_response("200 OK", head)
        return [f"{length} {digest.hexdigest()} {environ.get('CONTENT_LENGTH')}".encode()]
    if path == "/large":
        count = int(query["mib"])
        length = [("Content-Length", str(count << 20))] if "length" in query else []
        start_response("200 OK", [*head, *length])
        return (MIB for _ in range(count))
    if path == "/steps":
        # nginx's own field; the others don't mind.
        start_response("200 OK", [*head, ("X-Accel-Buffering", "no")])
        return Steps(query["name"], int(query["count"]))
    if path == "/endless":
        start_response("200 OK", head)
        return Endless(query["name"], 0)
    if path == "/fails":
        start_response("200 OK", [*head, ("Content-Length", "100000")] if "length" in query else head)
        return fail("wait" in query)
    if "head" in query:
        # So many thousand bytes, in lines that no front server finds too long.
        head += [(f"X-Long-{number}", "x" * 1000) for number in range(int(query["head"]))]
    start_response("200 OK", head)
    shown = [environ.get(name, "") for name in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "HTTP_X_BYTES")]
    environ["wsgi.errors"].write("sendgate-test: a message\n")
    return ["\n".join(shown).encode("latin-1")]


def fail(wait: bool) -> Iterator[bytes]:
    """Some content, and then none, if need be as soon as the test has got some."""
    yield MIB[:50000]
    while wait and not (PLACE / "arrived").exists():
        time.sleep(0.002)
    raise RuntimeError("sendgate-test: it fails")


class DocumentServer(socketserver.ThreadingUnixStreamServer):
    """As in the document, but that a front server may connect twice."""

    daemon_threads = True


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s:%(message)s")
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else None
    with DocumentServer(str(PLACE / "document.sock"), TestHandler) as document:
        (PLACE / "document.sock").chmod(0o777)
        threading.Thread(target=document.serve_forever, daemon=True).start()
        with fastcgi.Server(PLACE / "app.sock", application, mode=0o777, max_connections=limit) as server:
            print("ready", flush=True)
            server.serve_forever()
        document.shutdown()
