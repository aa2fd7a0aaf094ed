"""Files handed over to nginx, lighttpd and Apache, by the configurations in examples/front-servers."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

import rows
from front_configurations import EXAMPLES, MODULES, configured, load_modules, missing
from launching import launched, serving

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SIZE = 200_000
CONTENT = rows.content(0, SIZE)
#: As the library makes it: nginx's has whole seconds, lighttpd's is a hash.
TAG = f'"{OLD * 10**9 + 123456789:x}-{SIZE:x}"'

APPLICATION = """
import json, sys
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

from sendgate.wsgi import Conditional, Files, FrontServer

HERE = Path(__file__).parent
FIELD, NAME = sys.argv[1:]
front = FrontServer(FIELD, {HERE / "files": NAME})
files = Files(HERE / "files", prefix="/files", front=front, headers=[("X-A", "b"), ("Cache-Control", "max-age=60")])
outside = Files(HERE / "outside", prefix="/outside", front=front)

def own(environ, start_response):
    fields = [("Content-Type", "text/x-own"), ("Content-Disposition", "attachment")]
    if environ["PATH_INFO"] == "/own/forged":
        start_response("200 OK", [*fields, (FIELD, NAME + "/large.bin")])
        return [b"forged"]
    start_response("200 OK", fields)
    return environ["wsgi.file_wrapper"]((HERE / "files" / "large.bin").open("rb"))

own_conditional = Conditional(own, front=front)
handed_over = []

def application(environ, start_response):
    def started(status, fields, exc_info=None):
        handed_over.extend(value for name, value in fields if name == FIELD)
        return start_response(status, fields, exc_info)

    path = environ["PATH_INFO"]
    if path == "/handed-over":
        start_response("200 OK", [("Content-Type", "application/json")])
        body, handed_over[:] = json.dumps(handed_over).encode(), []
        return [body]
    if path == "/forged":
        started("200 OK", [("Content-Type", "text/plain"), (FIELD, environ["QUERY_STRING"])])
        return [b""]
    if path.startswith("/own/"):
        return own_conditional(environ, started)
    return (outside if path.startswith("/outside/") else files)(environ, started)

class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

with make_server("127.0.0.1", 0, application, Server) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
"""


@dataclass(frozen=True)
class Kind:
    """A front server, and how it is told."""

    name: str
    field: str
    #: What it calls the folder; "" is the folder's own name.
    files: str = ""

    def __str__(self) -> str:
        return self.name


KINDS = (
    Kind("nginx", "X-Accel-Redirect", "/protected/"),
    Kind("lighttpd", "X-Sendfile"),
    Kind("apache", "X-Sendfile"),
)


@dataclass
class Front:
    """A running front server, with our application behind it."""

    kind: Kind
    address: tuple[str, int]
    behind: tuple[str, int]
    folder: Path

    def get(self, target: str, method: str = "GET", direct: bool = False, **fields: str) -> rows.Response:
        """One request, one well-formed answer; direct: from the application behind it."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return rows.fetch(self.behind if direct else self.address, head, timeout=60)

    def status(self, target: str, **fields: str) -> int:
        """Of an answer whose content may come in chunks."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        connection.request("GET", target, headers={name.replace("_", "-"): value for name, value in fields.items()})
        with contextlib.closing(connection), connection.getresponse() as response:
            response.read()
            return response.status

    def handed_over(self) -> list[str]:
        """What it was told since this was asked last."""
        names: list[str] = json.loads(self.get("/handed-over", direct=True).body or b"")
        return names

    def name(self, path: str) -> str:
        """What a file is called in the field."""
        return (self.kind.files or f"{self.folder}/files/") + path


def command_of(kind: Kind, folder: Path, behind: tuple[str, int], listening: int) -> list[str]:
    """Write its configuration, with the example in it, and return its command."""
    snippet = (EXAMPLES / f"{kind.name}.conf").read_text()
    assert snippet.count("/srv/files") >= 2 and snippet.count("8000") == 1
    snippet = snippet.replace("/srv/files", f"{folder}/files").replace("8000", str(behind[1]))
    before, more = "", ""
    if kind.name == "apache":
        before, more = load_modules("proxy_http", "xsendfile"), "EnableSendfile On"
    return configured(kind.name, folder / "front", listening, snippet, before, more)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    """The server with the application behind it, and a folder of files."""
    kind: Kind = request.param
    reason = missing(kind.name)
    if reason is not None:
        pytest.skip(reason)
    if kind.name == "apache" and not (MODULES / "mod_xsendfile.so").exists():
        pytest.skip("mod_xsendfile is not installed (Debian: apt-get install libapache2-mod-xsendfile)")
    with contextlib.ExitStack() as stack:
        # pytest's own directories are for this user alone, and Apache's is another.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sendgate-front-"))).resolve()
        folder.chmod(0o755)
        for name in ("files", "outside", "front"):
            (folder / name).mkdir()
        make_files(folder)
        (folder / "application.py").write_text(APPLICATION)
        command = [sys.executable, "application.py", kind.field, kind.files or f"{folder}/files"]
        log = folder / "application.log"
        process = stack.enter_context(launched(command, log, cwd=folder, stdout=subprocess.PIPE, text=True))
        line = process.stdout.readline()
        assert line, log.read_text()
        behind = ("127.0.0.1", int(line))
        address, _ = stack.enter_context(
            serving(lambda port: command_of(kind, folder, behind, port), folder / "front.log", "/")
        )
        yield Front(kind, address, behind, folder)


NAMES = ("a b.bin", "100%.bin", "a?b#c.bin", "ü.bin", "a+b&c=d.bin", "a..b.bin", "a\\b.bin", "x:y.bin", "%41.bin")


def make_files(folder: Path) -> None:
    """Large and small ones, compressed ones, and ones with names of all kinds."""
    files = folder / "files"
    for name in ("large.bin", "text.html", *NAMES):
        (files / name).write_bytes(CONTENT)
    (files / "small.bin").write_bytes(CONTENT[:1000])
    (files / "text.html.gz").write_bytes(gzip.compress(CONTENT)[:100_000])
    (folder / "outside" / "large.bin").write_bytes(CONTENT)
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(OLD * 10**9 + 123456789,) * 2)


def test_whole(front: Front) -> None:
    """The front server sends the file, with the type and the caching that the application says."""
    front.handed_over()
    for target in ("/files/large.bin", "/own/x"):
        for method in ("GET", "HEAD"):
            response = front.get(target, method)
            assert (response.status, response.get("Content-Length")) == (200, str(SIZE))
            assert response.body == (CONTENT if method == "GET" else b"")
            assert response.get("Last-Modified") == DATE
            assert response.get("Accept-Ranges") == "bytes"
            assert not response.all(front.kind.field), "the client sees what is not its business"
    assert front.handed_over() == [front.name("large.bin")] * 4
    assert front.get("/files/large.bin").get("Content-Type") == "application/octet-stream"
    assert front.get("/files/large.bin").get("Cache-Control") == "max-age=60"
    response = front.get("/own/x")
    assert response.get("Content-Type") == "text/x-own"
    assert response.get("Content-Disposition") == "attachment"


def test_ranges(front: Front) -> None:
    """Of one part, of several, and of none; the front server cuts them."""
    front.handed_over()
    target = "/files/large.bin"
    for asked, first, last in (("1000-1999", 1000, 1999), ("-1", SIZE - 1, SIZE - 1), ("199999-", SIZE - 1, SIZE - 1)):
        response = front.get(target, Range=f"bytes={asked}")
        assert (response.status, response.get("Content-Range")) == (206, f"bytes {first}-{last}/{SIZE}")
        assert response.body == CONTENT[first : last + 1]
    response = front.get(target, Range="bytes=0-9,100000-100009")
    assert response.status == 206
    assert [part.data for part in response.parts(preamble=True)] == [CONTENT[:10], CONTENT[100000:100010]]
    assert front.status(target, Range=f"bytes={SIZE}-") == 416
    assert len(front.handed_over()) == 5


def test_conditions(front: Front) -> None:
    """With the validators that the client has got from the front server."""
    target = "/files/large.bin"
    tag = front.get(target).get("ETag") or ""
    assert (tag == TAG) == (front.kind.name != "nginx")
    for asked, status in (
        ({"If_None_Match": tag}, 304),
        ({"If_None_Match": '"x"'}, 200),
        ({"If_Modified_Since": DATE}, 304),
        ({"If_Match": tag}, 200),
        ({"If_Range": tag, "Range": "bytes=0-9"}, 206),
        ({"If_Range": '"x"', "Range": "bytes=0-9"}, 200),
        ({"If_Range": DATE, "Range": "bytes=0-9"}, 206),
    ):
        response = front.get(target, **asked)
        assert response.status == status, (asked, response.head)
        assert response.body == {200: CONTENT, 206: CONTENT[:10], 304: b""}[status]


def test_if_match(front: Front) -> None:
    """nginx and Apache evaluate it; lighttpd doesn't, and nothing is lost by that for a GET."""
    for fields in ({"If_Match": '"x"'}, {"If_Unmodified_Since": "Sun, 06 Nov 1994 08:49:36 GMT"}):
        assert front.status("/files/large.bin", **fields) == (200 if front.kind.name == "lighttpd" else 412)


def test_what_is_lost(front: Front) -> None:
    """nginx keeps only some of the application's fields, and has validators of its own, with whole seconds."""
    response = front.get("/files/large.bin")
    direct = front.get("/files/large.bin", direct=True)
    assert direct.get("ETag") == TAG
    if front.kind.name == "nginx":
        assert response.get("ETag") == f'"{OLD:x}-{SIZE:x}"'
        assert response.get("X-A") is None
        # This one is in the example.
        assert front.get("/files/text.html").get("Vary") == "Accept-Encoding"
    else:
        assert response.get("ETag") == TAG
        assert response.get("X-A") == "b"


def test_small_files_are_sent_from_behind(front: Front) -> None:
    """With the library's validators, conditions and ranges."""
    front.handed_over()
    response = front.get("/files/small.bin")
    tag = f'"{OLD * 10**9 + 123456789:x}-3e8"'
    assert (response.body, response.get("ETag"), response.get("X-A")) == (CONTENT[:1000], tag, "b")
    assert front.get("/files/small.bin", Range="bytes=1-2").body == CONTENT[1:3]
    assert front.get("/files/small.bin", If_None_Match=tag).status == 304
    assert front.status("/files/small.bin", If_Match='"x"') == 412
    assert front.handed_over() == []


def test_compressed_files(front: Front) -> None:
    """nginx and Apache would drop Content-Encoding, so these come from behind."""
    front.handed_over()
    response = front.get("/files/text.html", Accept_Encoding="gzip")
    assert (response.get("Content-Encoding"), response.get("Vary")) == ("gzip", "Accept-Encoding")
    assert response.get("Content-Type") == "text/html"
    assert response.body == (front.folder / "files" / "text.html.gz").read_bytes()
    assert front.handed_over() == []


@pytest.mark.parametrize("name", NAMES)
def test_names_of_all_kinds(front: Front, name: str) -> None:
    """The file that was asked for is the one that is sent."""
    path = front.folder / "files" / name
    marked = name.encode() + CONTENT[len(name.encode()) :]
    path.write_bytes(marked)
    front.handed_over()
    assert front.get("/files/" + quote(name)).body == marked
    if front.kind.name == "nginx":
        assert front.handed_over() == [front.name(quote(name))]
    else:
        assert len(front.handed_over()) == ("%" not in name)


def test_names_that_are_no_utf8(front: Front) -> None:
    """They arrive as well, unless the front server refuses such requests, as lighttpd does."""
    with open(os.fsencode(front.folder) + b"/files/\xff.bin", "wb") as file:
        file.write(CONTENT)
    if front.kind.name == "lighttpd":
        assert front.status("/files/%FF.bin") == 400
    else:
        assert front.get("/files/%FF.bin").body == CONTENT


def test_a_range_of_a_file_that_grew(front: Front) -> None:
    """The front server opens the file again: what it finds then is what it sends, whole and consistent."""
    path = front.folder / "files" / "growing.bin"
    path.write_bytes(CONTENT)
    assert front.get("/files/growing.bin").body == CONTENT
    path.write_bytes(CONTENT + b"more")
    response = front.get("/files/growing.bin", Range="bytes=-4")
    assert (response.body, response.get("Content-Range")) == (b"more", f"bytes {SIZE}-{SIZE + 3}/{SIZE + 4}")


# ---- Nobody else says what is sent ----


def test_files_outside_of_the_mapping(front: Front) -> None:
    """They are sent from behind: the front server has no name for them."""
    front.handed_over()
    assert front.get("/outside/large.bin").body == CONTENT
    assert front.handed_over() == []


def test_what_a_client_sends(front: Front) -> None:
    """The field in a request, and those by which others choose a mapping, change nothing."""
    front.handed_over()
    fields = {"X_Accel_Redirect": "/protected/small.bin", "X_Sendfile": "/etc/passwd", "X_Accel_Mapping": "/=/etc/"}
    assert front.get("/files/large.bin", **fields, X_Sendfile_Type="X-Sendfile").body == CONTENT
    assert front.handed_over() == [front.name("large.bin")]
    if front.kind.files:
        # The internal location isn't there for clients.
        assert front.status("/protected/large.bin") == 404


def test_what_the_application_sends(front: Front) -> None:
    """Conditional with a FrontServer refuses the field."""
    front.handed_over()
    assert front.get("/own/forged").body == b"forged"
    assert front.handed_over() == []


def test_what_is_not_configured(front: Front) -> None:
    """Nothing but what is beneath the directory of the example is ever sent, whatever the field says."""
    front.handed_over()
    names = ["/etc/passwd", "/protected/../../etc/passwd", "/protected/%2e%2e/outside/large.bin"]
    names += [f"{front.folder}/outside/large.bin", f"{front.folder}/files/../outside/large.bin"]
    for name in names:
        assert front.status(f"/forged?{name}") in (403, 404, 500, 502), name
    assert len(front.handed_over()) == len(names)
    # A link that was put there since the WSGI server has looked.
    (front.folder / "files" / "out.bin").symlink_to("../outside/large.bin")
    assert front.status("/forged?" + front.name("out.bin")) == (403 if front.kind.name == "nginx" else 200)
