"""Flask, Django and WhiteNoise: a small project of each, on gunicorn with our worker, on gunicorn as it is, and on the
standard library's wsgiref.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import rows
from asked import ASKED, check_all
from launching import serving
from support import READS, moved, traced, wait_until

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SIZE = 100_000
CONTENT = rows.content(0, SIZE)
TAG = f'"{OLD * 10**9:x}-{SIZE:x}"'

APPLICATION = '''
import datetime, io, os, sys
from pathlib import Path

import django, flask
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path
from whitenoise import WhiteNoise

import sendgate.flask
from sendgate.wsgi import Conditional

FILES = Path(__file__).parent / "files"
FILE = FILES / "file.bin"

# ---- Flask ----

class OwnResponse(flask.Response):
    """An application's own class of responses."""

app = flask.Flask(__name__, root_path=str(Path(__file__).parent), static_folder=None)
app.response_class = OwnResponse
closed = []

@app.after_request
def after(response):
    response.headers["X-After"] = type(response).__name__
    if flask.request.args.get("replace"):
        response.direct_passthrough = False
        response.set_data(b"replaced")
    return response

@app.get("/file")
def file():
    response = sendgate.flask.send_file("files/file.bin")
    response.call_on_close(lambda: closed.append(1))
    return response

@app.get("/closed")
def count():
    return str(len(closed))

@app.get("/attachment")
def attachment():
    return sendgate.flask.send_file(FILE, "text/x-own", True, "\\u00fc.bin", max_age=60)

@app.get("/opened")
def opened():
    file = FILE.open("rb")
    file.read(10)
    return sendgate.flask.send_file(file, download_name="a.txt")

@app.get("/memory")
def memory():
    when = datetime.datetime(1994, 11, 6, 8, 49, 37, tzinfo=datetime.timezone.utc)
    return sendgate.flask.send_file(io.BytesIO(FILE.read_bytes()), "text/plain", etag="v1", last_modified=when)

@app.get("/unconditional")
def unconditional():
    return sendgate.flask.send_file(FILE, conditional=False)

@app.get("/untagged")
def untagged():
    return sendgate.flask.send_file(FILE, etag=False)

@app.get("/teapot")
def teapot():
    response = sendgate.flask.send_file(FILE)
    response.status_code = 418
    return response

@app.get("/from/<path:name>")
def from_directory(name):
    directory = flask.request.args.get("directory", "files")
    return sendgate.flask.send_from_directory(directory, name, follow_symlinks="follow" in flask.request.args)

@app.get("/stock")
def stock():
    return flask.send_file(FILE)

# ---- Django ----

def django_file(request):
    return FileResponse(FILE.open("rb"), as_attachment=True, filename="a.bin")

def django_memory(request):
    return FileResponse(io.BytesIO(FILE.read_bytes()), headers={"ETag": '"v1"'})

def django_text(request):
    return HttpResponse("text", headers={"ETag": '"v1"'})

def django_stream(request):
    return StreamingHttpResponse(iter([b"a", b"b"]), headers={"ETag": '"v1"'})

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="x",
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "whitenoise.middleware.WhiteNoiseMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    WHITENOISE_ROOT=str(FILES),
    WHITENOISE_MAX_AGE=60,
)
urlpatterns = [
    path("file", django_file), path("memory", django_memory), path("text", django_text), path("stream", django_stream)
]

# ---- All of them ----

django_application = get_wsgi_application()
white = WhiteNoise(django_application, root=str(FILES), max_age=60)
APPLICATIONS = {
    "flask": app,
    "stock": Conditional(app, hide=True),
    "django": Conditional(django_application),
    "white": Conditional(white, hide=True),
    "middleware": Conditional(django_application, hide=True),
    "plain": white,
}

def application(environ, start_response):
    _, name, rest = environ["PATH_INFO"].split("/", 2)
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/" + name, "/" + rest
    return APPLICATIONS[name](environ, start_response)

if __name__ == "__main__":
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIServer, make_server

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    make_server("127.0.0.1", int(sys.argv[1]), application, Server).serve_forever()
'''

SERVERS = {
    "sendgate.gunicorn": "-m gunicorn -k sendgate.gunicorn.ThreadWorker",
    "gunicorn": "-m gunicorn -k gthread",
    "wsgiref": "application.py {port}",
}
GUNICORN = " --bind 127.0.0.1:{port} --threads 4 --no-control-socket --worker-tmp-dir . application:application"


@dataclass
class Running:
    """A server in its own process."""

    process: subprocess.Popen[str]
    address: tuple[str, int]

    def get(self, target: str, method: str = "GET", **fields: str) -> rows.Response:
        """One request, one well-formed answer."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        return rows.fetch(self.address, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), timeout=60)


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with all of the applications in it."""
    for name in ("flask", "django", "whitenoise", "gunicorn"):
        pytest.importorskip(name, reason=f"{name} is not installed: bindings/python/requirements-dev.txt")
    directory = tmp_path_factory.mktemp("frameworks")
    (directory / "application.py").write_text(APPLICATION)
    files = directory / "files"
    files.mkdir()
    (files / "file.bin").write_bytes(CONTENT)
    os.utime(files / "file.bin", (OLD, OLD))
    (files / "inside").symlink_to("file.bin")
    (files / "outside").symlink_to("../application.py")
    words = SERVERS[request.param]
    if "gunicorn" in words:
        words += GUNICORN

    def command(port: int) -> list[str]:
        return [sys.executable, *words.format(port=port).split()]

    with serving(command, directory / "log", "/django/text", cwd=directory) as (address, process):
        yield Running(process, address)


# ---- Flask ----


def test_send_file(server: Running) -> None:
    """A path, with the file's validators; the response is one of the application's class, and is closed once each."""
    check_all(server, "/flask/file", CONTENT, TAG, DATE)
    response = server.get("/flask/file")
    assert response.get("X-After") == "OwnResponse"
    assert response.get("Content-Type") == "application/octet-stream"
    assert response.get("Content-Disposition") == "inline; filename=file.bin"
    assert response.get("Cache-Control") == "no-cache"
    # On our worker the client may have all of it before the response is closed.
    wait_until(lambda: server.get("/flask/closed").body == str(len(ASKED) + 1).encode())


def test_send_file_arguments(server: Running) -> None:
    """They mean what they mean to Flask's."""
    check_all(server, "/flask/attachment", CONTENT, TAG, DATE)
    response = server.get("/flask/attachment", Range="bytes=0-0")
    assert response.get("Content-Type") == "text/x-own; charset=utf-8"
    assert response.get("Content-Disposition") == "attachment; filename=u.bin; filename*=UTF-8''%C3%BC.bin"
    assert response.get("Cache-Control") == "public, max-age=60"
    response = server.get("/flask/opened")
    assert (response.body, response.get("ETag")) == (CONTENT[10:], TAG)
    assert response.get("Content-Type") == "text/plain; charset=utf-8"
    check_all(server, "/flask/memory", CONTENT, '"v1"', DATE)
    check_all(server, "/flask/untagged", CONTENT, None, DATE)
    response = server.get("/flask/unconditional", Range="bytes=0-0", If_None_Match="*")
    assert (response.status, response.body, response.get("ETag")) == (200, CONTENT, None)


def test_a_response_that_was_changed(server: Running) -> None:
    """A status of its own is sent as it is, and other content instead of the file."""
    response = server.get("/flask/teapot", Range="bytes=0-0", If_None_Match="*")
    assert (response.status, response.body) == (418, CONTENT)
    response = server.get("/flask/file?replace=1")
    assert (response.status, response.body) == (200, b"replaced")


def test_send_from_directory(server: Running) -> None:
    """What a client names is sent, if it is beneath the directory."""
    check_all(server, "/flask/from/file.bin", CONTENT, TAG, DATE)
    assert server.get("/flask/from/inside").body == CONTENT
    for name in ("missing", "outside", "../application.py", "%2e%2e/application.py", "a%00b", ".", "x" * 300, "/etc"):
        assert server.get("/flask/from/" + name).status in (404, 308), name
    assert server.get("/flask/from/outside?follow").body.startswith(b"\nimport")
    assert server.get("/flask/from/file.bin?directory=not-made-yet").status == 404


def test_flasks_own_send_file(server: Running) -> None:
    """Unmodified, it is asked for all of the file, and Conditional does the rest; the validators are Flask's."""
    tag = server.get("/stock/stock").get("ETag")
    assert tag is not None and tag != TAG
    check_all(server, "/stock/stock", CONTENT, tag, DATE)


# ---- Django ----


def test_file_response(server: Running) -> None:
    """Django's own, unmodified: it knows nothing of conditions and ranges."""
    check_all(server, "/django/file", CONTENT, TAG, DATE)
    response = server.get("/django/file", Range="bytes=0-0")
    assert response.get("Content-Disposition") == 'attachment; filename="a.bin"'
    assert response.get("X-Content-Type-Options") == "nosniff"
    check_all(server, "/django/memory", CONTENT, '"v1"', None)


def test_other_responses(server: Running) -> None:
    """With an ETag they get conditions, and no ranges."""
    for target, body in (("/django/text", b"text"), ("/django/stream", b"ab")):
        # Some servers send these in chunks.
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        connection.request("GET", target, headers={"Range": "bytes=0-0", "Connection": "close"})
        whole = connection.getresponse()
        assert (whole.status, whole.read()) == (200, body)
        connection.close()
        for method in ("GET", "HEAD"):
            response = server.get(target, method, If_None_Match='"v1"')
            assert (response.status, response.get("ETag")) == (304, '"v1"')
            assert server.get(target, method, If_Match='"x"').status == 412


# ---- WhiteNoise ----


@pytest.mark.parametrize("target", ["/white/file.bin", "/middleware/file.bin"])
def test_whitenoise(server: Running, target: str) -> None:
    """Unmodified, behind Conditional, by itself and in Django: everything is right, with its own validators."""
    tag = server.get(target).get("ETag")
    assert tag is not None
    check_all(server, target, CONTENT, tag, DATE)
    assert server.get(target).get("Cache-Control") == "max-age=60, public"


def test_whitenoise_alone(server: Running) -> None:
    """What is wrong without Conditional, so that the test above shows something."""
    tag = server.get("/plain/file.bin").get("ETag") or ""
    assert server.get("/plain/file.bin", If_None_Match="W/" + tag).status == 200
    assert server.get("/plain/file.bin", If_Match='"x"').status == 200
    assert server.get("/plain/file.bin", Range="bytes=0-9", If_Range='"x"').status == 206


@pytest.mark.parametrize("target", ["/white/file.bin", "/middleware/file.bin", "/flask/file", "/django/file"])
@pytest.mark.parametrize("server", ["sendgate.gunicorn"], indirect=True)
def test_ranges_leave_by_sendfile(server: Running, tmp_path: Path, target: str) -> None:
    """On a server of ours nothing of the file is read, but for single bytes that tell whether it is in memory (seen by
    strace).
    """
    (worker,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    trace = tmp_path / "calls"
    with traced(int(worker), f"sendfile,{READS}", trace):
        assert server.get(target, Range="bytes=1000-60999").body == CONTENT[1000:61000]
    assert moved(trace, "sendfile", "file.bin") == 60_000
    assert moved(trace, f"(?:{READS.replace(',', '|')})", "file.bin") < 100
