"""Django under ASGI: a small project, on uvicorn with our protocols, and on uvicorn and Daphne as they are, where files
are read.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import rows
from asked import check_all
from launching import serving
from serving import descriptors
from support import READS, moved, traced, wait_until

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SIZE = 300_000
CONTENT = rows.content(0, SIZE)
TAG = f'"{OLD * 10**9:x}-{SIZE:x}"'
GIB = 1 << 30
MIB = 1 << 20

PROJECT = {
    "settings.py": """
import os
from pathlib import Path

ALLOWED_HOSTS = ["*"]
SECRET_KEY = "x"
ROOT_URLCONF = "views"
INSTALLED_APPS = ["django.contrib.staticfiles"]
STATIC_URL = "/static/"
STATICFILES_DIRS = [Path(__file__).parent / "static"]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["stderr"], "level": "WARNING"}},
}
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
if os.environ.get("STACK") == "full":
    MIDDLEWARE += [
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        "views.synchronous",
    ]
""",
    "views.py": """
import asyncio, collections, gzip, io, json, threading
from pathlib import Path

from django.core import signals
from django.core.files import File
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path

FILES = Path(__file__).parent / "files"
closed = collections.Counter()
finished = collections.Counter()

def synchronous(get_response):
    # A middleware of long ago: all that is asynchronous waits for it in a thread.
    return lambda request: get_response(request)

signals.request_finished.connect(lambda **_: finished.update(["requests"]), weak=False)

class Opened(io.FileIO):
    # Closing a file may block, and Django sees to it that this isn't the event loop.
    def close(self):
        if not self.closed and threading.current_thread() is threading.main_thread():
            closed["in the loop"] += 1
        super().close()

class Watched(FileResponse):
    def close(self):
        closed[Path(getattr(self.file_to_stream, "name", "")).name] += 1
        super().close()

def file(request, name):
    response = Watched(Opened(FILES / name), as_attachment=True, filename="a.bin")
    response.set_cookie("one", "1")
    response.set_cookie("two", "2")
    return response

async def asynchronous(request):
    return FileResponse((FILES / "file.bin").open("rb"))

def tagged(request):
    headers = {"ETag": '"v1"', "Last-Modified": "Mon, 07 Nov 1994 08:49:37 GMT"}
    return FileResponse(FILES.joinpath("file.bin").open("rb"), headers=headers)

def memory(request):
    return FileResponse(io.BytesIO(FILES.joinpath("file.bin").read_bytes()), headers={"ETag": '"v1"'})

def begun(request):
    opened = FILES.joinpath("file.bin").open("rb")
    opened.read(1000)
    return FileResponse(opened)

def shorter(request):
    response = FileResponse(FILES.joinpath("file.bin").open("rb"))
    response.headers["Content-Length"] = "1000"
    return response

def own_headers(request):
    class Own(FileResponse):
        def set_headers(self, filelike):
            super().set_headers(filelike)
            self.headers["X-Own"] = "1"
            self.headers["Accept-Ranges"] = "none"

    return Own(File(FILES.joinpath("file.bin").open("rb")), content_type="text/x-own")

def compressed(request):
    return FileResponse(gzip.open(FILES / "file.bin.gz"))

def nested(request):
    return FileResponse(File(File(gzip.open(FILES / "file.bin.gz"))))

def replaced(request):
    response = FileResponse(FILES.joinpath("file.bin").open("rb"))
    response.streaming_content = iter([b"re", b"placed"])
    del response.headers["Content-Length"]
    return response

def teapot(request):
    return FileResponse(FILES.joinpath("file.bin").open("rb"), status=418)

def text(request):
    return HttpResponse("text", headers={"ETag": '"v1"'})

async def stream(request):
    async def parts():
        for part in (b"a", b"b"):
            yield part
            await asyncio.sleep(0)

    return StreamingHttpResponse(parts())

def counts(request):
    return HttpResponse(json.dumps({"closed": closed, "finished": finished["requests"]}))

urlpatterns = [
    path("file/<name>", file),
    *(path(view.__name__, view) for view in (
        asynchronous, tagged, memory, begun, shorter, own_headers, compressed, nested, replaced, teapot, text, stream,
        counts,
    )),
]
""",
    "ours.py": """
import os

from sendgate.django import get_asgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
application = get_asgi_application()
""",
    "development.py": """
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

import ours

application = ASGIStaticFilesHandler(ours.application)
""",
    "stock.py": """
import os

from django.core.asgi import get_asgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
application = get_asgi_application()
""",
    "ended.py": """
import asyncio, sys

import ours, views


async def main(how):
    async def receive():
        if messages:
            return messages.pop()
        # If two wait, what one of them receives isn't received by the other.
        waiting.append(asyncio.current_task())
        await asyncio.get_running_loop().create_future()

    async def send(message):
        if message["type"] == "http.response.body":
            if how == "raises":
                raise ArithmeticError
            sends.set()
            await asyncio.get_running_loop().create_future()

    messages = [{"type": "http.request"}]
    waiting = []
    sends = asyncio.Event()
    scope = {"type": "http", "method": "GET", "path": "/file/file.bin", "headers": [], "http_version": "1.1"}
    request = asyncio.ensure_future(ours.application(scope, receive, send))
    if how == "cancels":
        waits = asyncio.ensure_future(sends.wait())
        await asyncio.wait([waits, request], return_when=asyncio.FIRST_COMPLETED)
        assert sends.is_set() and not views.closed
        request.cancel()
    (result,) = await asyncio.gather(request, return_exceptions=True)
    print(type(result).__name__, len(waiting), dict(views.closed), views.finished["requests"])


asyncio.run(main(sys.argv[1]))
""",
}


@dataclass
class Running:
    """A server in its own process."""

    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    log: Path

    def get(self, target: str, method: str = "GET", version: str = "1.1", **fields: str) -> rows.Response:
        """One request, one well-formed answer, on a connection of its own that is used once more if it may be."""
        lines = [f"{method} {target} HTTP/{version}", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        probe = b"HEAD /text HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        return rows.fetch(self.address, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), timeout=60, probe=probe)

    def chunked(self, target: str, **fields: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request whose answer may come in chunks: status, fields, and content."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        connection.request("GET", target, headers={name.replace("_", "-"): value for name, value in fields.items()})
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def counts(self) -> tuple[dict[str, int], int]:
        """How often which file's response was closed, and how many requests have finished."""
        body = self.get("/counts").body
        assert body is not None
        counts = json.loads(body)
        return counts["closed"], counts["finished"]

    def opened(self, name: str) -> int:
        """How many descriptors of the file it has."""
        return sum(found.endswith("/" + name) for found in descriptors(self.process.pid))

    def memory(self, name: str) -> int:
        """Bytes, by a line of its status: VmHWM is the peak, RssAnon what it has taken for itself."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
        assert found is not None, status
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Django project."""
    for name in ("django", "uvicorn", "httptools", "uvloop", "daphne"):
        pytest.importorskip(name, reason=f"{name} is not installed: bindings/python/requirements-dev.txt")
    directory = tmp_path_factory.mktemp("django")
    for name, text in PROJECT.items():
        (directory / name).write_text(text)
    files = directory / "files"
    files.mkdir()
    (files / "file.bin").write_bytes(CONTENT)
    os.utime(files / "file.bin", (OLD, OLD))
    (files / "small.bin").write_bytes(CONTENT[:1000])
    (files / "once.bin").write_bytes(CONTENT)
    (files / "file.bin.gz").write_bytes(gzip.compress(CONTENT))
    for name, size in (("1GiB", GIB), ("64MiB", 64 * MIB), ("other", 64 * MIB)):
        with (files / name).open("wb") as file:
            for offset in marks(size):
                file.seek(offset)
                file.write(mark(offset))
            file.truncate(size)
    (directory / "static").mkdir()
    (directory / "static" / "style.css").write_text("a {}")
    return directory


def marks(size: int) -> list[int]:
    """Where a large file has bytes that can be told from others."""
    return [0, 65536 - 4, size // 2 - 1, size - 8]


def mark(offset: int) -> bytes:
    """These bytes."""
    return struct.pack("<Q", offset + 1)


@contextlib.contextmanager
def running(directory: Path, http: str, loop: str, application: str = "ours", **environ: str) -> Iterator[Running]:
    """uvicorn or Daphne with the project."""
    log = directory / "-".join(("log", http.replace(":", "."), loop, application, *environ.values()))

    def command(port: int) -> list[str]:
        words = ["uvicorn", "--http", http, "--loop", loop]
        if http == "daphne":
            words = ["daphne", "--bind", "127.0.0.1"]
        return [sys.executable, "-m", *words, "--port", str(port), f"{application}:application"]

    with serving(command, log, "/text", cwd=directory, env={**os.environ, **environ}) as (address, process):
        yield Running(process, address, log)


SERVERS = {
    "httptools-uvloop": ("httptools", "uvloop"),
    "h11-asyncio": ("h11", "asyncio"),
    "daphne": ("daphne", "twisted"),
    "sendgate-httptools-asyncio": ("sendgate.uvicorn:HttpTools", "asyncio"),
    "sendgate-httptools-uvloop": ("sendgate.uvicorn:HttpTools", "uvloop"),
    "sendgate-h11-asyncio": ("sendgate.uvicorn:H11", "asyncio"),
    "sendgate-h11-uvloop": ("sendgate.uvicorn:H11", "uvloop"),
}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, project: Path) -> Iterator[Running]:
    """Each of the servers, with few middlewares."""
    with running(project, *SERVERS[request.param]) as server:
        yield server
    # Nothing that was asked for is an error.
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


@pytest.fixture(scope="module", params=["httptools-uvloop", "sendgate-h11-asyncio"])
def full(request: pytest.FixtureRequest, project: Path) -> Iterator[Running]:
    """A server with all middlewares that touch what is sent."""
    with running(project, *SERVERS[request.param], STACK="full") as server:
        yield server
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


# ---- What is sent ----


def test_a_file_response(server: Running) -> None:
    """Conditions and ranges that Django has not, and all the fields that it has."""
    check_all(server, "/file/file.bin", CONTENT, TAG, DATE)
    for fields in ({}, {"Range": "bytes=0-0"}, {"Range": "bytes=0-0,2-2"}):
        response = server.get("/file/file.bin", **fields)
        assert response.get("Content-Disposition") == 'attachment; filename="a.bin"'
        assert response.get("X-Content-Type-Options") == "nosniff"
        assert [value.split(";")[0] for value in response.all("Set-Cookie")] == ["one=1", "two=2"]
    assert server.get("/file/file.bin").get("Content-Type") == "application/octet-stream"
    response = server.get("/file/small.bin")
    assert (response.body, response.get("Content-Length")) == (CONTENT[:1000], "1000")
    response = server.get("/file/file.bin", version="1.0")
    assert (response.status, response.body, response.keep_alive) == (200, CONTENT, False)


def test_an_asynchronous_view(server: Running) -> None:
    """Makes no difference."""
    check_all(server, "/asynchronous", CONTENT, TAG, DATE)


def test_validators_of_the_views_own(server: Running) -> None:
    """They win over the file's, and a buffer has no others."""
    check_all(server, "/tagged", CONTENT, '"v1"', "Mon, 07 Nov 1994 08:49:37 GMT")
    check_all(server, "/memory", CONTENT, '"v1"', None)


def test_what_the_file_response_says_is_sent(server: Running) -> None:
    """From the file's position on; no more than Content-Length; with what set_headers says; with its own status."""
    response = server.get("/begun")
    assert (response.get("Content-Length"), response.body) == (str(SIZE - 1000), CONTENT[1000:])
    assert server.get("/begun", Range="bytes=0-9").body == CONTENT[1000:1010]
    response = server.get("/shorter")
    assert (response.get("Content-Length"), response.body) == ("1000", CONTENT[:1000])
    response = server.get("/own_headers", Range="bytes=0-9")
    assert (response.status, response.body, response.get("X-Own")) == (200, CONTENT, "1")
    assert (response.get("Content-Type"), response.get("Accept-Ranges")) == ("text/x-own", "none")
    for fields in ({"Range": "bytes=0-9"}, {"If_None_Match": "*"}):
        response = server.get("/teapot", **fields)
        assert (response.status, response.body, response.get("ETag")) == (418, CONTENT, None)
    response = server.get("/file/file.bin", "POST", Range="bytes=0-9", Content_Length="0")
    assert (response.status, response.body) == (200, CONTENT)


def test_what_is_no_plain_file_is_djangos(server: Running) -> None:
    """A descriptor that doesn't lead to what read() returns, replaced content, text, an asynchronous generator."""
    for target in ("/compressed", "/nested"):
        response = server.get(target, Range="bytes=0-9", Connection="close")
        assert response.status == 200, target
        assert (response.body, response.get("ETag")) == (CONTENT, None), target
    for target, body in (("/replaced", b"replaced"), ("/stream", b"ab")):
        status, fields, content = server.chunked(target, Range="bytes=0-0")
        assert (status, fields["Transfer-Encoding"], content) == (200, "chunked", body)
    response = server.get("/text", If_None_Match='"v1"')
    assert (response.status, response.body) == (200, b"text")


def test_middleware_that_changes_the_content(full: Running) -> None:
    """What GZipMiddleware has compressed is sent compressed. ConditionalGetMiddleware decides the same as we."""
    check_all(full, "/file/file.bin", CONTENT, TAG, DATE)
    check_all(full, "/memory", CONTENT, '"v1"', None)
    check_all(full, "/asynchronous", CONTENT, TAG, DATE)
    for target in ("/file/file.bin", "/asynchronous", "/memory"):
        status, fields, content = full.chunked(target, Accept_Encoding="gzip", Range="bytes=0-9")
        assert (status, fields["Content-Encoding"]) == (200, "gzip"), target
        assert gzip.decompress(content) == CONTENT, target


def test_static_files_in_development(project: Path) -> None:
    """Django's own handler for them works around ours, whose files still have ranges."""
    with running(project, *SERVERS["sendgate-httptools-uvloop"], application="development") as server:
        assert server.chunked("/static/style.css")[::2] == (200, b"a {}")
        assert server.chunked("/static/none")[0] == 404
        check_all(server, "/file/file.bin", CONTENT, TAG, DATE)


@pytest.mark.parametrize("server", ["sendgate-httptools-uvloop", "sendgate-h11-asyncio"], indirect=True)
def test_files_leave_by_sendfile(server: Running, tmp_path: Path) -> None:
    """On a server of ours nothing of a file is read, but for single bytes that tell whether it is in memory (seen by
    strace).
    """
    trace = tmp_path / "trace"
    with traced(server.process.pid, f"sendfile,{READS}", trace):
        assert server.get("/file/file.bin", Range="bytes=1000-260999").body == CONTENT[1000:261000]
        assert server.get("/file/file.bin", Range="bytes=0-99999,200000-").status == 206
    assert moved(trace, "sendfile", "file.bin") == 260_000 + 100_000 + 100_000
    assert moved(trace, f"(?:{READS.replace(',', '|')})", "file.bin") < 100


# ---- Connections ----


def test_requests_in_one_packet(server: Running) -> None:
    """Are answered in their order, on one connection."""
    asked = [("GET", "bytes=0-4"), ("HEAD", "bytes=0-4"), ("GET", "bytes=100-299999"), ("GET", "bytes=400000-")]
    heads = [f"{method} /file/file.bin HTTP/1.1\r\nHost: x\r\nRange: {value}\r\n" for method, value in asked]
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(("\r\n".join(heads) + "Connection: close\r\n\r\n").encode())
        with connection.makefile("rb") as stream:
            answers = []
            for method, _ in asked:
                status = stream.readline()
                fields = http.client.parse_headers(stream)
                length = 0 if method == "HEAD" else int(fields["Content-Length"])
                answers.append((int(status.split()[1]), stream.read(length)))
            assert stream.read() == b""
    assert answers == [(206, CONTENT[:5]), (200, b""), (206, CONTENT[100:]), (416, b"")]


def test_a_response_is_closed_once(server: Running) -> None:
    """Whatever is sent of it, and Django says that the request has finished."""
    _, finished = server.counts()
    for fields in ({}, {"Range": "bytes=0-0,2-2"}, {"If_None_Match": "*"}, {"Range": "bytes=400000-"}):
        server.get("/file/once.bin", Connection="close", **fields)
    server.get("/file/once.bin", "HEAD", Connection="close")
    # The client may have all of it before that, and it is counted before it is closed.
    wait_until(lambda: server.counts()[0].get("once.bin", 0) >= 5)
    wait_until(lambda: server.counts()[1] > finished + 5)
    wait_until(lambda: server.opened("once.bin") == 0)
    closed, _ = server.counts()
    assert closed["once.bin"] == 5
    assert "in the loop" not in closed


def test_a_client_that_leaves(server: Running) -> None:
    """In the middle of a file: it is closed at once, and once."""
    before = server.counts()[0].get("other", 0)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    connection.settimeout(60)
    connection.connect(server.address)
    connection.sendall(b"GET /file/other HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert server.opened("other") >= 1
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: server.opened("other") == 0)
    wait_until(lambda: server.counts()[0]["other"] > before)
    assert server.counts()[0]["other"] == before + 1


@pytest.mark.parametrize(("how", "error"), [("cancels", "CancelledError"), ("raises", "ArithmeticError")])
def test_a_request_that_the_server_ends(project: Path, how: str, error: str) -> None:
    """Its response is closed too, once."""
    command = [sys.executable, "ended.py", how]
    result = subprocess.run(command, cwd=project, timeout=60, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == (f"{error} 1 {{'file.bin': 1}} 1\n", "")


def test_another_django(project: Path) -> None:
    """One that has not what is used is refused, and it is said which has."""
    code = "from django.core.handlers.asgi import ASGIHandler as A; del A.send_response; import sendgate.django"
    result = subprocess.run([sys.executable, "-c", code], cwd=project, timeout=60, capture_output=True, text=True)
    assert re.search(r"ImportError: .* works with Django 4\.2 to 6\.1, .* no send_response", result.stderr)


# ---- Memory ----


def download(server: Running, name: str, size: int) -> int:
    """Get all of a large file, and look at its marks. Returns the most that the server had of its own meanwhile."""
    window = bytearray(MIB)
    expected = {offset + index: byte for offset in marks(size) for index, byte in enumerate(mark(offset))}
    seen: dict[int, int] = {}
    most = 0
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    connection.request("GET", "/file/" + name)
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Content-Length")) == (200, str(size))
    position = 0
    sampled = 0
    while count := answer.readinto(window):
        for offset in expected:
            if position <= offset < position + count:
                seen[offset] = window[offset - position]
        position += count
        if position >= sampled:
            most = max(most, server.memory("RssAnon"))
            sampled += 16 * MIB
    connection.close()
    assert (position, seen) == (size, expected)
    return most


@pytest.mark.parametrize("name", ["httptools-uvloop", "sendgate-httptools-uvloop", "sendgate-h11-asyncio"])
def test_memory(project: Path, name: str) -> None:
    """A file of 1 GiB takes less than 4 MiB more of it than a small one."""
    with running(project, *SERVERS[name]) as server:
        # Threads, caches: what the first requests need.
        for _ in range(8):
            assert server.get("/file/file.bin").body == CONTENT
        peak, own = server.memory("VmHWM"), server.memory("RssAnon")
        most = download(server, "1GiB", GIB)
        grown = server.memory("VmHWM") - peak, most - own
        assert max(grown) < 4 * MIB, grown


def test_memory_of_stock_django(project: Path) -> None:
    """It reads all of a file, so that the test above shows something."""
    with running(project, *SERVERS["httptools-uvloop"], application="stock") as server:
        for _ in range(8):
            assert server.get("/file/file.bin", Connection="close").body == CONTENT
        peak = server.memory("VmHWM")
        download(server, "64MiB", 64 * MIB)
        assert server.memory("VmHWM") - peak >= 56 * MIB
