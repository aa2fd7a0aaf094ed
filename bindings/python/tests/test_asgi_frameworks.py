"""Starlette, FastAPI and ServeStatic: their own files on servers of ours and others, and the drop-ins of
sendgate.starlette. The applications are in ``starlette_application``.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rows
from asgi_servers import OTHERS, OURS, Folder, Server, running
from asked import check_all
from serving import descriptors
from support import READS, moved, traced, wait_until

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SIZE = 300_000
#: It can be compressed.
CONTENT = rows.content(0, 1000) * 300
TAG = f'"{OLD * 10**9:x}-{SIZE:x}"'

#: Each parser, each loop.
NAMES = (
    "sendgate.uvicorn.HttpTools uvloop", "sendgate.uvicorn.H11 asyncio", "uvicorn httptools uvloop", "hypercorn trio",
)  # fmt: skip
SERVERS = [server for server in (*OURS, *OTHERS) if server.name in NAMES]


@dataclasses.dataclass
class Running:
    """A server that runs."""

    server: Server
    address: tuple[str, int]
    log: Path
    process: int

    def get(self, target: str, method: str = "GET", **fields: str) -> rows.Response:
        """One request on a connection of its own; fields by their names with _ for -. The answer's coding is undone."""
        client = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            client.request(method, target, headers={name.replace("_", "-"): text for name, text in fields.items()})
            response = client.getresponse()
            body = response.read()
        finally:
            client.close()
        coding = response.getheader("Content-Encoding")
        if coding is not None and method != "HEAD":
            assert coding == "gzip"
            body = gzip.decompress(body)
        received = response.getheaders(), body, bytes(response.headers)
        return rows.Response("HTTP/1.1", response.status, response.reason, *received)


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server with all of the applications in it."""
    with Folder("starlette_application") as folder:
        for name in ("file.bin", "index.html", "404.html", "sub/index.html"):
            path = folder.files / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(CONTENT if name == "file.bin" else name.encode())
            os.utime(path, (OLD, OLD))
        for name in ("packed/__init__.py", "packed/data/a.txt"):
            (folder.path / name).parent.mkdir(exist_ok=True)
            (folder.path / name).write_text("packed")
        (folder.files / "inside").symlink_to("file.bin")
        (folder.files / "outside").symlink_to("../starlette_application.py")
        with running(request.param, folder) as (address, log, process):
            # ServeStatic refuses to start where there is one.
            os.mkfifo(folder.files / "fifo")
            yield Running(request.param, address, log, process)


only_ours = pytest.mark.parametrize("server", [server for server in SERVERS if server.ours], ids=str, indirect=True)

# ---- The drop-ins ----

DROP_INS = (
    "/ours/file", "/ours/static/file.bin", "/ours/html/file.bin", "/ours/one/", "/fastapi/ours", "/fastapi/returned",
)  # fmt: skip


def test_an_argument_that_does_not_exist() -> None:
    """It is said at once, as Starlette does, and not with the first file that is sent."""
    from sendgate.starlette import FileResponse, StaticFiles

    arguments: Any = {"show_index": True}
    with pytest.raises(TypeError, match="FileResponse got an unexpected keyword argument 'show_index'"):
        FileResponse("file", **arguments)
    with pytest.raises(TypeError, match="StaticFiles got an unexpected keyword argument 'show_index'"):
        StaticFiles(directory="/", **arguments)


@pytest.mark.parametrize(("limit", "expected"), [(1, 200), (2, 206), (100, 206)])
def test_max_ranges_of_a_derived_class(tmp_path: Path, limit: int, expected: int) -> None:
    """As Starlette has it, whose own is 100: that is more than the library takes, and no error."""
    from sendgate.starlette import FileResponse

    class Derived(FileResponse):
        max_ranges = limit

    (tmp_path / "file").write_bytes(CONTENT)
    heads: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        heads.extend([message["status"]] if "status" in message else [])

    scope = {"type": "http", "method": "GET", "headers": [(b"range", b"bytes=0-0,2-2")]}
    asyncio.run(Derived(tmp_path / "file")(scope, receive, send))
    assert heads == [expected]


@pytest.mark.parametrize("target", DROP_INS)
def test_drop_ins(server: Running, target: str) -> None:
    """Everything is right, by itself and below Starlette's middleware; of several ranges, too."""
    check_all(server, target, CONTENT, TAG, DATE)
    check_all(server, "/stacked" + target, CONTENT, TAG, DATE)
    check_all(server, "/turned" + target, CONTENT, TAG, DATE, Accept_Encoding="gzip")
    check_all(server, "/all" + target, CONTENT, TAG, DATE)


def test_file_response(server: Running) -> None:
    """Fields, cookies and the background task are those of any response."""
    before = int(server.get("/ours/count").body)
    for asked, status in (({}, 200), ({"Range": "bytes=0-0"}, 206), ({"If_None_Match": TAG}, 304)):
        answer = server.get("/ours/file", **asked)
        assert (answer.status, answer.get("X-A"), answer.get("Cache-Control")) == (status, "b", "no-cache")
        cookies = answer.all("Set-Cookie")
        assert [cookie.split(";")[0] for cookie in cookies] == ["a=b", "c=d"]
    wait_until(lambda: int(server.get("/ours/count").body) == before + 3)
    answer = server.get("/ours/file", "POST", Range="bytes=0-0", If_None_Match="*")
    assert (answer.status, answer.body) == (200, CONTENT)


def test_file_response_arguments(server: Running) -> None:
    """They mean what they mean to Starlette's."""
    answer = server.get("/ours/attachment", Range="bytes=0-0")
    assert answer.get("Content-Type") == "text/x-own; charset=utf-8"
    assert answer.get("Content-Disposition") == "attachment; filename*=utf-8''%C3%BC.bin"
    assert answer.get("ETag") == TAG
    answer = server.get("/ours/inline", Range="bytes=0-0,2-2")
    assert (answer.status, answer.get("ETag"), answer.body) == (200, '"own"', CONTENT)
    assert (answer.get("Content-Type"), answer.get("Content-Disposition")) == (
        "text/plain; charset=utf-8", 'inline; filename="a.txt"',
    )  # fmt: skip
    answer = server.get("/ours/opened")
    assert (answer.body, answer.get("ETag"), answer.get("Content-Type")) == (
        CONTENT[10:],
        TAG,
        "application/octet-stream",
    )
    assert server.get("/ours/opened", Range="bytes=0-4").body == CONTENT[10:15]
    assert server.get("/ours/handle", Range="bytes=-5").body == CONTENT[-5:]
    answer = server.get("/ours/teapot", Range="bytes=0-0", If_None_Match="*")
    assert (answer.status, answer.body, answer.get("ETag")) == (418, CONTENT, None)


def test_nothing_stays_open(server: Running) -> None:
    """Whatever was asked for, files are closed."""
    for target in ("/ours/opened", "/ours/handle", "/ours/file", "/all/ours/static/file.bin"):
        for asked in ({}, {"If_None_Match": TAG}, {"Range": "bytes=0-0,2-2"}, {"Range": "bytes=300000-"}):
            server.get(target, **asked)

    def opened() -> list[str]:
        return [name for name in descriptors(server.process) if name.endswith("file.bin")]

    wait_until(lambda: opened() == [])


def test_files_that_cannot_be_sent(server: Running) -> None:
    """Starlette's errors, before anything was sent."""
    for name, message in (("missing", "does not exist"), ("fifo", "is not a file"), ("sub", "is not a file")):
        assert server.get("/ours/missing/" + name).status == 500
        said = f"/{name} {message}."
        wait_until(lambda said=said: said in server.log.read_text())


def test_a_websocket_is_refused_with_a_file(server: Running) -> None:
    """As with any response of Starlette's."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = (
        "GET /ours/denied HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(head.encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, response.read()) == (403, CONTENT)
        response.close()


def test_static_files(server: Running) -> None:
    """What isn't there, what leads out, methods, and the pages of html, are as in Starlette's own."""
    for place in ("static", "html"):
        targets = [f"/{place}/{name}" for name in (
            "missing", "outside", "../starlette_application.py", "%2e%2e/starlette_application.py", "a%00b", "fifo",
            "x" * 300, "sub", "sub/", "", "inside", "index.html",
        )]  # fmt: skip
        for target in targets:
            mine, theirs = server.get("/ours" + target), server.get("/stock" + target)
            assert (mine.status, mine.get("Location"), mine.body) == (
                theirs.status, (theirs.get("Location") or "").replace("/stock", "/ours") or None, theirs.body,
            ), target  # fmt: skip
    assert server.get("/ours/html/sub/").body == b"sub/index.html"
    answer = server.get("/ours/html/missing", Range="bytes=0-0", If_None_Match="*")
    assert (answer.status, answer.body, answer.get("Content-Type")) == (404, b"404.html", "text/html; charset=utf-8")
    answer = server.get("/ours/static/file.bin", "POST")
    assert (answer.status, answer.get("Allow")) == (405, "GET, HEAD")
    assert server.get("/ours/linked/outside").status == 200
    assert server.get("/ours/packed/a.txt", Range="bytes=0-1").body == b"pa"


def test_a_file_that_is_replaced_by_a_link(server: Running) -> None:
    """It was beneath the directory when it was looked up, and isn't any more when it is opened."""
    Path(f"/proc/{server.process}/cwd/files/victim").write_text("content")
    assert server.get("/ours/raced/victim").status == 404


def test_the_hooks_of_static_files(server: Running) -> None:
    """A class derived from it replaces them as one derived from Starlette's."""
    for target in ("/ours/marked/file.bin", "/ours/marked/alias"):
        for asked, status in (({}, 200), ({"Range": "bytes=0-0"}, 206), ({"If_None_Match": TAG}, 304)):
            answer = server.get(target, **asked)
            assert (answer.status, answer.get("Cache-Control"), answer.get("X-Marked")) == (status, "max-age=60", "yes")


# ---- What is the frameworks' own ----

UNMODIFIED = ("/stock/file", "/stock/static/file.bin", "/fastapi/file", "/fastapi/static/file.bin", "/white/file.bin")


@pytest.mark.parametrize("target", UNMODIFIED)
def test_unmodified(server: Running, target: str) -> None:
    """The right bytes, also below two middlewares in any order, and nothing is compressed twice."""
    for place in ("", "/stacked", "/turned"):
        for asked in ({}, {"Accept_Encoding": "gzip"}):
            answer = server.get(place + target, **asked)
            assert (answer.status, answer.body) == (200, CONTENT), place
            assert answer.get("X-Stamp") == ("yes" if place else None)
            if server.server.ours:
                assert answer.get("Content-Encoding") is None
        assert server.get(place + target, "HEAD").get("Content-Length") == str(SIZE)
        answer = server.get(place + target, Range="bytes=1000-1999")
        assert (answer.status, answer.body) == (206, CONTENT[1000:2000])


@pytest.mark.parametrize("target", UNMODIFIED)
def test_unmodified_but_for_a_middleware(server: Running, target: str) -> None:
    """With Conditional around it everything is right, with the framework's own validators."""
    tag = server.get(target).get("ETag")
    assert tag is not None and tag != TAG
    check_all(server, "/upgraded" + target, CONTENT, tag, DATE)
    check_all(server, "/all" + target, CONTENT, tag, DATE)


def test_unmodified_alone(server: Running) -> None:
    """What is wrong without it, so that the test above shows something."""
    for target in UNMODIFIED:
        assert server.get(target, If_Match='"x"').status == 200
    assert server.get("/white/file.bin", Range="bytes=0-9", If_Range='"x"').status == 206
    assert server.get("/stock/file", Range="lines=0-1").status == 400


# ---- How it leaves ----


def calls(server: Running, trace: Path, target: str, **fields: str) -> tuple[int, int]:
    """Bytes of the file that leave by sendfile, and that are read."""
    with traced(server.process, f"sendfile,{READS}", trace):
        server.get(target, **fields)
    return moved(trace, "sendfile", "file.bin"), moved(trace, f"(?:{READS.replace(',', '|')})", "file.bin")


@only_ours
@pytest.mark.parametrize("target", [*DROP_INS[:2], *UNMODIFIED])
def test_files_leave_by_sendfile(server: Running, tmp_path: Path, target: str) -> None:
    """Also below middleware; but for single bytes that tell whether it is in memory, nothing is read (strace)."""
    for number, place in enumerate(("", "/stacked", "/turned", "/upgraded", "/all")):
        sent, read = calls(server, tmp_path / str(number), place + target, Accept_Encoding="gzip")
        assert sent == SIZE and read < 100, place
    for place in ("/upgraded", "/all"):
        sent, read = calls(server, tmp_path / ("range" + place[1:]), place + target, Range="bytes=1000-298999")
        assert sent == 298_000 and read < 100, place


def test_nothing_was_wrong_on_the_inside(server: Running) -> None:
    """No server has logged an error but those that were made."""
    log = server.log.read_text()
    for sign in ("never retrieved", "never awaited", "was destroyed", "StopIteration", "ResourceWarning"):
        assert sign not in log


def test_other_servers_are_not_taken_for_ours(server: Running, tmp_path: Path) -> None:
    """What the tests above say of sendfile depends on the server."""
    sent, read = calls(server, tmp_path / "trace", "/stock/file")
    assert (sent > 0) == server.server.ours
    assert (read > SIZE // 2) == (not server.server.ours)
