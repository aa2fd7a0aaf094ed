"""Files, FileResponse, Conditional and Protocol of sendgate.asgi on values: applications are called as a server calls
them, and what ASGI asks of an application is checked around them. Real servers are in the other files.
"""

# Small applications, and objects with the methods of others.
# ruff: noqa: D102, D103

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import rows
import sendgate
from sendgate._chunks import trio_here
from sendgate.asgi import BODY, Body, Conditional, FileResponse, Files, Protocol
from sendgate.wsgi import Conditional as WSGIConditional
from sendgate.wsgi import Protocol as WSGIProtocol
from served_rows import complaints, with_date

OLD = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
#: More than is read at once.
DATA = bytes(range(256)) * 1000
TAG = f'"{OLD * 10**9:x}-{len(DATA):x}"'

PATHSEND = "http.response.pathsend"
ZEROCOPYSEND = "http.response.zerocopysend"

Scope = dict[str, Any]
Message = dict[str, Any]
Application = Callable[..., Awaitable[None]]


# ---- Servers ----


class Reply:
    """What a server has been told."""

    def __init__(self) -> None:
        self.code = 0
        self.fields: list[tuple[str, str]] = []
        self.body = b""
        self.messages: list[str] = []
        self.complete = False

    def __getitem__(self, name: str) -> str | None:
        values = [value for key, value in self.fields if key == name.lower()]
        assert len(values) < 2, f"{name} twice"
        return values[0] if values else None


class Server:
    """One request to an application, as a server makes it."""

    #: What it offers.
    extensions: dict[str, Any] = {}

    def __init__(self, given: Scope) -> None:
        self.scope = {**given, "extensions": dict(self.extensions)}
        self.reply = Reply()
        #: Called with each message before it is taken.
        self.before: Callable[[Message], None] = lambda message: None
        self.gone = False

    async def receive(self) -> Message:
        if self.gone:
            return {"type": "http.disconnect"}
        await wait_for_ever()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.before(message)
        reply, kind = self.reply, message["type"]
        assert not reply.complete, f"{kind} after the end"
        reply.messages.append(kind)
        if kind == "http.response.start":
            assert not reply.code, "two heads"
            reply.code = message["status"]
            for name, value in message["headers"]:
                assert type(name) is type(value) is bytes and name == name.lower(), (name, value)
                reply.fields.append((name.decode("latin-1"), value.decode("latin-1")))
        else:
            assert reply.code, f"{kind} before the head"
            reply.body += self.content(message)
            reply.complete = not message.get("more_body", False)

    def content(self, message: Message) -> bytes:
        assert message["type"] == "http.response.body"
        assert type(message["body"]) is bytes
        return message["body"]

    async def run(self, application: Application) -> Reply:
        await application(self.scope, self.receive, self.send)
        assert self.reply.complete
        announced = self.reply["Content-Length"]
        if announced is not None and self.scope["method"] != "HEAD":
            assert len(self.reply.body) == int(announced)
        return self.reply


class Ours(Server):
    """It takes what the library sends, and what any application may send by its descriptor."""

    extensions = {PATHSEND: {"ranges": True}, ZEROCOPYSEND: {}, BODY: {}}

    def content(self, message: Message) -> bytes:
        if message["type"] == PATHSEND:
            body = message["path"]
            assert type(body) is Body, "a path that somebody else may have replaced"
            content = b"".join(body.answer)
            body.answer.close()
            return content
        if message["type"] == ZEROCOPYSEND:
            file, offset = message["file"], message.get("offset", 0)
            fd = file if isinstance(file, int) else file.fileno()
            return os.pread(fd, message.get("count", 1 << 30), offset)
        return super().content(message)


class Another(Server):
    """It has extensions of its own that are better not used."""

    extensions = {PATHSEND: {}, "another": {}}


async def wait_for_ever() -> None:
    if trio_here() is not None:
        await trio.sleep_forever()
    else:
        await asyncio.get_running_loop().create_future()


def request(target: str = "/", method: str = "GET", fields: dict[str, str] | None = None, root: str = "") -> Scope:
    """The scope of a request."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": root + path,
        "raw_path": (root + path).encode(),
        "root_path": root,
        "query_string": query.encode(),
        "headers": [
            (name.lower().replace("_", "-").encode(), value.encode("latin-1")) for name, value in (fields or {}).items()
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }


LIBRARIES: dict[str, Callable[..., Any]] = {"asyncio": lambda run, *args: asyncio.run(run(*args)), "trio": trio.run}
SERVERS = {"bytes only": Server, "ours": Ours, "another": Another}


def call(application: Application, given: Scope | None = None, server: type[Server] = Server) -> Reply:
    made = server(request() if given is None else given)
    return LIBRARIES["asyncio"](made.run, application)


def get(application: Application, target: str = "/", method: str = "GET", **fields: str) -> Reply:
    """One request; fields by their names with _ for -. What it gets is the same on every server."""
    replies = [call(application, request(target, method, fields), server) for server in SERVERS.values()]
    for reply in replies:
        fields_without_boundary = [
            [field for field in found.fields if "boundary" not in field[1]] for found in (replies[0], reply)
        ]
        assert fields_without_boundary[0] == fields_without_boundary[1]
        assert (reply.code, len(reply.body)) == (replies[0].code, len(replies[0].body))
        assert reply.body == replies[0].body or "multipart" in (reply["Content-Type"] or "")
    return replies[0]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What exceptions refer to is gone before descriptors are counted."""
    yield
    gc.collect()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 256 000 bytes, of long ago."""
    made = tmp_path / "file.bin"
    made.write_bytes(DATA)
    os.utime(made, (OLD, OLD))
    return made


def descriptors(path: Path) -> int:
    """How many of ours lead to a file."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}") == str(path)
        except OSError:
            continue  # that of the list itself
    return found


# ---- Applications ----


def events(*messages: Message, status: int = 200, headers: Any = ()) -> Application:
    """An application that sends these after a head."""
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": fields})
        for message in messages:
            await send(dict(message))

    return application


def pathsend(path: Path, *headers: tuple[str, str], status: int = 200, **keys: Any) -> Application:
    return events({"type": PATHSEND, "path": str(path), **keys}, status=status, headers=headers)


def content(*blocks: bytes) -> list[Message]:
    return [
        {"type": "http.response.body", "body": block, "more_body": number < len(blocks)}
        for number, block in enumerate(blocks, 1)
    ]


# ---- FileResponse ----


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("asked", "code", "body"),
    [
        ({}, 200, DATA),
        ({"range": "bytes=100-199"}, 206, DATA[100:200]),
        ({"range": "bytes=100-199999"}, 206, DATA[100:200_000]),
        ({"range": "bytes=0-0,-100000"}, 206, None),
        ({"if_none_match": TAG}, 304, b""),
        ({"if_match": '"x"'}, 412, b""),
        ({"range": "bytes=256000-"}, 416, b""),
    ],
    ids=["whole", "part", "large part", "parts", "not modified", "precondition failed", "out of range"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_file_response(
    path: Path, library: str, server: str, asked: dict[str, str], code: int, body: bytes | None, method: str
) -> None:
    """The right bytes on every kind of server and event loop, and nothing is open afterwards."""
    made = SERVERS[server](request("/", method, asked))
    reply = LIBRARIES[library](made.run, FileResponse(path))
    if method == "HEAD" and code in (206, 416):
        code = 200  # RFC 9110 14.2
    assert reply.code == code
    if method == "HEAD":
        assert reply.body == b""
    elif body is not None:
        assert reply.body == body
    else:
        assert reply.body.count(DATA[-100_000:]) == 1
        assert len(reply.body) == int(reply["Content-Length"] or 0)
    if code in (200, 206):
        assert (reply["ETag"], reply["Last-Modified"]) == (TAG, DATE)
        assert method == "GET" or reply["Content-Length"] == str(len(DATA))
    assert descriptors(path) == 0
    assert ("http.response.pathsend" in reply.messages) == (server == "ours" and reply.body != b"")


@pytest.mark.parametrize("kind", ["fd", "file", "str", "File", "bytes", "bytearray", "memoryview"])
def test_what_file_response_sends(path: Path, kind: str) -> None:
    """What ``respond`` takes; what isn't a path is the caller's to close."""
    directory = os.open(path.parent, os.O_RDONLY)
    opened = sendgate.open_beneath(directory, path.name)
    with path.open("rb") as file, opened:
        made: Any = {
            "fd": file.fileno(), "file": file, "str": str(path), "File": opened, "bytes": DATA,
            "bytearray": bytearray(DATA), "memoryview": memoryview(DATA),
        }[kind]  # fmt: skip
        for asked, expected in (({}, DATA), ({"range": "bytes=10-"}, DATA[10:]), ({"range": "bytes=5-9"}, DATA[5:10])):
            for server in SERVERS.values():
                reply = call(FileResponse(made), request(fields=asked), server)
                assert reply.body == expected
        assert file.read(4) == DATA[:4]
    os.close(directory)


def test_file_response_from_where_a_file_stands(path: Path) -> None:
    with path.open("rb") as file:
        file.read(10)
        assert call(FileResponse(file)).body == DATA[10:]
        assert call(FileResponse(file), server=Ours).body == DATA[10:]
        assert file.tell() == 10


def test_file_response_content_type(path: Path, tmp_path: Path) -> None:
    """That of the path's name, unless there is another."""
    assert get(FileResponse(path))["Content-Type"] == "application/octet-stream"
    assert get(FileResponse(path, content_type="a/b"))["Content-Type"] == "a/b"
    assert get(FileResponse(b"", headers=[("X-A", "b")]))["Content-Type"] is None


@pytest.mark.parametrize("server", SERVERS)
def test_a_file_that_cannot_be_opened(tmp_path: Path, server: str) -> None:
    """The server hears of it before anything was sent."""
    os.mkfifo(tmp_path / "fifo")
    for name, error in (("missing", FileNotFoundError), ("fifo", sendgate.NotRegularError), ("", Exception)):
        made = SERVERS[server](request())
        with pytest.raises(error):
            asyncio.run(made.run(FileResponse(tmp_path / name)))
        assert made.reply.messages == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_file_that_shrinks(path: Path, library: str) -> None:
    """It ends by an exception, so that the server cuts the connection; the file is closed."""
    made = Server(request())

    def shrink(message: Message) -> None:
        if message["type"] == "http.response.start":
            os.truncate(path, 100_000)

    made.before = shrink
    with pytest.raises(sendgate.TruncatedError):
        LIBRARIES[library](made.run, FileResponse(path))
    assert not made.reply.complete
    assert made.reply.body == DATA[: len(made.reply.body)]
    assert descriptors(path) == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_client_that_leaves(path: Path, library: str) -> None:
    """Reading ends at the next block."""
    with path.open("ab") as file:
        file.truncate(1 << 30)
    made = Server(request())
    made.gone = True
    with pytest.raises(AssertionError):
        LIBRARIES[library](made.run, FileResponse(path))
    assert len(made.reply.body) <= 10 * 65536
    assert descriptors(path) == 0


def test_a_scope_without_a_version(path: Path) -> None:
    """That of a WebSocket need not have one, and those of applications' own tests have none: it is 1.1."""
    given = request(fields={"range": "bytes=0-0"})
    del given["http_version"]
    assert call(FileResponse(path), given).code == 206


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("answers", [[], [{"type": "http.request", "body": b"", "more_body": False}] * 3])
def test_a_receive_that_tells_nothing(path: Path, library: str, answers: list[Message]) -> None:
    """One that fails, or says the same again and again, as those of tests and middleware do, is no client that leaves:
    all of the content is sent, and no more is asked for than could be told.
    """
    made = Server(request())
    given = iter(answers)

    async def receive() -> Message:
        return next(given)

    async def run() -> None:
        await FileResponse(path)(made.scope, receive, made.send)

    LIBRARIES[library](run)
    assert made.reply.complete
    assert made.reply.body == DATA
    assert len(list(given)) == max(len(answers) - 2, 0)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_server_that_fails(path: Path, library: str, at: int) -> None:
    """What its send raises is raised, and the file is closed."""
    made = Server(request())

    def fail(message: Message) -> None:
        if len(made.reply.messages) == at:
            raise KeyError("failed")

    made.before = fail
    with pytest.raises(KeyError, match="failed"):
        LIBRARIES[library](made.run, FileResponse(path))
    assert descriptors(path) == 0


@pytest.mark.parametrize("server", [Server, Ours])
@pytest.mark.parametrize("sends", ["FileResponse", "pathsend", "pathsend of another status"])
def test_cancelled(path: Path, server: type[Server], sends: str) -> None:
    """A task that is cancelled while the server takes its time leaves nothing open."""
    application: Any = FileResponse(path)
    if sends != "FileResponse":
        application = Conditional(pathsend(path, status=200 if sends == "pathsend" else 404))

    async def run() -> None:
        made = server(request())
        waiting = asyncio.Event()

        async def send(message: Message) -> None:
            if message["type"] != "http.response.start":
                waiting.set()
                await wait_for_ever()

        task = asyncio.ensure_future(application(made.scope, made.receive, send))
        await waiting.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(run())
    # An exception refers to the frames that it has passed, until it is forgotten.
    gc.collect()
    assert descriptors(path) == 0


def test_a_body_that_gets_lost(path: Path) -> None:
    """A middleware that doesn't pass on the message closes the file all the same."""

    async def run() -> None:
        made = Ours(request())

        async def send(message: Message) -> None:
            pass

        await FileResponse(path)(made.scope, made.receive, send)

    asyncio.run(run())
    assert descriptors(path) == 0


def test_a_body_that_is_sent_later(path: Path) -> None:
    """A middleware may keep the message, and pass it on when the application has returned."""
    kept: list[Message] = []

    async def run() -> None:
        made = Ours(request(fields={"range": "bytes=0-9,20-29"}))

        async def send(message: Message) -> None:
            kept.append(message)

        await FileResponse(path)(made.scope, made.receive, send)
        for message in kept:
            await made.send(message)
        assert DATA[20:30] in made.reply.body

    asyncio.run(run())
    kept.clear()
    assert descriptors(path) == 0


# ---- Files ----


#: Whether a connection is kept is the server's affair.
ROWS = [row for row in rows.load() if row.values_only is None and "keep_alive" not in row.expect]


def given_by(row: rows.Row, target: str, tag: str) -> Scope:
    given = request(target, row.method)
    given["http_version"] = f"1.{row.version - 10}"
    given["headers"] = [(name.lower(), value.strip(b" \t")) for name, value in row.request_fields(tag)]
    if row.body:
        given["headers"].append((b"content-length", b"5"))
    return given


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(tmp_path: Path, row: rows.Row) -> None:
    """The rows of tests/cases, by ASGI alone: Files, and Conditional around a pathsend of all of it."""
    file = rows.make_file(tmp_path, row)
    tag = rows.file_tag(file)
    files = Files(tmp_path, content_types={file.suffix: row.content_type} if file.suffix else {})
    wrapped = Conditional(pathsend(file, ("Content-Type", row.content_type)))
    asked = int(time.time())
    for server in (Server, Ours):
        reply = call(files, given_by(row, "/" + file.name, tag), server)
        # Methods are the application's to allow; those of the rows are the library's to understand.
        if row.method in ("GET", "HEAD"):
            for each in (reply, call(wrapped, given_by(row, "/", tag), server)):
                response = with_date(row, f"{each.code} X", each.fields, each.body, asked)
                assert complaints(row, response, tag) == []
        else:
            assert (reply.code, reply["Allow"]) == (405, "GET, HEAD")
    files.close()


@pytest.fixture
def root(path: Path) -> Path:
    """A folder with a little of everything."""
    made = path.parent / "root"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("hello\n")
    (made / "a.txt.gz").write_text("gzip")
    (made / "ü.txt").write_text("umlaut")
    (made / os.fsdecode(b"\xff.txt")).write_text("no text")
    (made / "sub" / "index.html").write_text("index")
    for file in made.rglob("*.*"):
        os.utime(file, (OLD, OLD))
    return made


async def fallback(scope: Scope, receive: Any, send: Any) -> None:
    """Says that it was asked."""
    if scope["type"] == "http":
        await events(*content(f"{scope['method']} {scope['path']}".encode()))(scope, receive, send)
    else:
        scope["asked"] = True


def test_files(root: Path) -> None:
    """A folder, mounted or not, with a prefix or not."""
    files = Files(root, max_age=60)
    reply = get(files, "/a.txt")
    assert (reply.code, reply.body, reply["Content-Type"]) == (200, b"hello\n", "text/plain; charset=utf-8")
    assert (reply["Cache-Control"], reply["Vary"]) == ("public, max-age=60", "Accept-Encoding")
    assert get(files, "/a.txt", accept_encoding="gzip").body == b"gzip"
    assert get(files, "/missing").code == get(files, "/").code == 404
    assert get(files, "/a.txt", "POST").code == 405
    assert get(files, "/sub?a=b")["Location"] == "/sub/?a=b"
    assert get(files, "/sub/").body == b"index"
    mounted = call(files, request("/sub?x", root="/app"))
    assert (mounted.code, mounted["Location"]) == (301, "/app/sub/?x")
    assert call(files, request("/a.txt", root="/app")).body == b"hello\n"
    prefixed = Files(root, prefix="/static", application=fallback)
    assert get(prefixed, "/static/a.txt").body == b"hello\n"
    assert get(prefixed, "/static/missing").body == b"GET /static/missing"
    assert get(prefixed, "/static/a.txt", "POST").body == b"POST /static/a.txt"


def test_paths_of_all_kinds(root: Path) -> None:
    """As servers give them: decoded as UTF-8, with the bytes beside them where that has lost something."""
    files = Files(root)
    assert call(files, {**request(), "path": "/ü.txt", "raw_path": b"/%C3%BC.txt"}).body == b"umlaut"
    assert call(files, {**request(), "path": "/\ufffd.txt", "raw_path": b"/%FF.txt?x"}).body == b"no text"
    without = request()
    del without["raw_path"]
    assert call(files, {**without, "path": "/a.txt"}).body == b"hello\n"
    assert call(files, {**without, "path": "/\ufffd.txt"}).code == 404
    # A middleware has changed the path: the one that was asked for doesn't count.
    assert call(files, {**request(), "path": "/not/\ufffd.txt", "raw_path": b"/%FF.txt"}).code == 404
    assert call(files, {**request(), "path": "/a\0b"}).code == 400
    assert call(files, {**request(), "path": "/../file.bin"}).code == 404


@pytest.mark.parametrize(
    ("place", "asked", "code", "location"),
    [
        ("/mount", "/mount", 301, "/mount/"),
        ("/mount", "/mount/", 200, None),
        ("/mount", "/a.txt", 200, None),  # servers differ in whether the path has it
        ("/mount", "/mounted/a.txt", 404, None),
        ("/a", "/a.txt", 200, None),
        ("/mount/", "/mount", 301, "/mount/"),
        ("/mount/", "/mount/", 200, None),
        ("/mount/", "/mount/sub", 301, "/mount/sub/"),
        ("/", "/", 200, None),
        ("/", "/sub", 301, "/sub/"),
    ],
)
def test_places(root: Path, place: str, asked: str, code: int, location: str | None) -> None:
    """root_path with and without a slash at its end; a redirect never leads to itself, nor to another host."""
    (root / "index.html").write_text("home")
    reply = call(Files(root), {**request(asked), "root_path": place})
    assert (reply.code, reply["Location"]) == (code, location)


def test_what_is_not_http(root: Path) -> None:
    """Files alone starts and stops with its server, and refuses a WebSocket; otherwise the application is asked."""
    sent: list[str] = []
    given = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}, {"type": "websocket.connect"}])

    async def receive() -> Message:
        return next(given)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    files = Files(root)
    asyncio.run(files({"type": "lifespan"}, receive, send))
    asyncio.run(files({"type": "websocket"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
    for made in (Files(root, application=fallback), Conditional(fallback)):
        scope: Scope = {"type": "lifespan"}
        asyncio.run(made(scope, receive, send))
        assert scope["asked"]


def test_closed(root: Path) -> None:
    files = Files(root)
    files.close()
    with pytest.raises(ValueError, match="closed"):
        call(files, request("/a.txt"))


# ---- Conditional ----


ASKED: list[tuple[dict[str, str], int, bytes | None]] = [
    ({}, 200, DATA),
    ({"range": "bytes=100-199"}, 206, DATA[100:200]),
    ({"range": "bytes=0-0,-100000"}, 206, None),
    ({"if_none_match": "{tag}"}, 304, b""),
    ({"if_none_match": "W/{tag}"}, 304, b""),
    ({"if_none_match": '"x"', "range": "bytes=-1"}, 206, DATA[-1:]),
    ({"if_match": '"x"'}, 412, b""),
    ({"range": "bytes=256000-"}, 416, b""),
    ({"range": "bytes=0-0", "if_range": "{tag}"}, 206, DATA[:1]),
    ({"range": "bytes=0-0", "if_range": '"x"'}, 200, DATA),
]


def check_all(application: Application, tag: str, date: str | None) -> None:
    """Ask all that, and compare with what RFC 9110 has."""
    for asked, code, body in ASKED:
        fields = {name: value.format(tag=tag) for name, value in asked.items()}
        reply = get(application, **fields)
        assert (reply.code, body) == (code, reply.body if body is not None else None), asked
        if code in (200, 206):
            assert (reply["ETag"], reply["Last-Modified"], reply["Accept-Ranges"]) == (tag, date, "bytes")
        reply = get(application, "/", "HEAD", **fields)
        assert (reply.code, reply.body) == (code if code in (304, 412) else 200, b""), asked


def zerocopysend(path: Path, *headers: tuple[str, str], **keys: Any) -> Application:
    """An application that closes its file as soon as it may."""

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        with path.open("rb") as file:
            await events({"type": ZEROCOPYSEND, "file": file, **keys}, headers=headers)(scope, receive, send)

    return application


def test_whole_files(path: Path) -> None:
    """They get validators, conditions and ranges, whichever way they are sent, also twice."""
    check_all(Conditional(pathsend(path)), TAG, DATE)
    check_all(Conditional(Conditional(pathsend(path))), TAG, DATE)
    check_all(Conditional(pathsend(path, ("Content-Length", str(len(DATA))))), TAG, DATE)
    check_all(Conditional(zerocopysend(path)), TAG, DATE)
    check_all(Conditional(zerocopysend(path, offset=0, count=len(DATA), more_body=False)), TAG, DATE)
    check_all(Conditional(zerocopysend(path, ("ETag", '"own"'))), '"own"', DATE)
    assert descriptors(path) == 0


@pytest.mark.parametrize("hide", [False, True])
def test_answers_of_ours(path: Path, hide: bool) -> None:
    """They may be decided once more, also if they haven't seen what was asked for, with the same outcome."""
    check_all(Conditional(FileResponse(path), hide=hide), TAG, DATE)
    check_all(Conditional(Conditional(FileResponse(path)), hide=hide), TAG, DATE)
    check_all(Conditional(FileResponse(DATA, etag='"own"'), hide=hide), '"own"', None)
    with path.open("rb") as file:
        check_all(Conditional(FileResponse(file.fileno(), etag='"own"'), hide=hide), '"own"', DATE)
    reply = get(Conditional(FileResponse(path, etag=False, last_modified=False, max_ranges=1), hide=hide))
    assert (reply["ETag"], reply["Last-Modified"]) == (None, None)
    reply = get(Conditional(FileResponse(path, max_ranges=1), hide=hide), range="bytes=0-0,2-2")
    assert (reply.code, reply.body) == (200, DATA)
    reply = get(Conditional(FileResponse(path, status=404), hide=hide), range="bytes=0-0")
    assert (reply.code, reply.body) == (404, DATA)
    assert descriptors(path) == 0


def test_hide(path: Path) -> None:
    """The application answers in full, because it doesn't see what was asked for; whoever is around it does."""
    seen: list[set[bytes]] = []
    asked = {"range": "bytes=0-0", "if_none_match": '"x"', "if_range": TAG, "if_modified_since": DATE}
    asked |= {"if_match": TAG, "if_unmodified_since": DATE, "accept": "*/*"}

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        seen.append({name for name, _ in scope["headers"]})
        await pathsend(path)(scope, receive, send)

    given = request("/a", fields=asked)
    before = {**given, "headers": list(given["headers"])}
    assert call(Conditional(application, hide=True), given).code == 206
    assert given == before
    call(Conditional(application, hide=lambda scope: scope["path"] == "/b"), request("/a", fields=asked))
    call(Conditional(application, hide=lambda scope: scope["path"] == "/b"), request("/b", fields=asked))
    call(Conditional(application, hide=True), request("/a", "PUT", asked))
    assert [len(names) for names in seen] == [1, 7, 1, 7]


def test_what_the_application_is_offered(path: Path) -> None:
    """pathsend with ranges, on every server, beside what the server has; but not what middleware may lose."""
    for server in SERVERS.values():
        scopes: list[Scope] = []

        async def application(scope: Scope, receive: Any, send: Any, scopes: Any = scopes) -> None:
            scopes.append(scope)
            await pathsend(path)(scope, receive, send)

        made = server(request())
        asyncio.run(made.run(Conditional(application)))
        assert scopes[0]["extensions"][PATHSEND] == {"ranges": True}
        assert ZEROCOPYSEND not in scopes[0]["extensions"]
        assert ("another" in scopes[0]["extensions"]) == (server is Another)
        assert made.scope["extensions"] == server.extensions


def test_one_body_event() -> None:
    """With a validator it is as good as a file; without one it is left alone, and so is one that isn't all of it."""
    validator = ("ETag", '"v"')
    check_all(Conditional(events(*content(DATA), headers=[validator])), '"v"', None)
    check_all(Conditional(events(*content(DATA), headers=[validator, ("Content-Length", "256000")])), '"v"', None)
    assert get(Conditional(events(*content(DATA))), range="bytes=1-2").body == DATA
    reply = get(Conditional(events(*content(b""), headers=[validator, ("Content-Length", "9")])), "/", "HEAD")
    assert (reply.code, reply["Content-Length"]) == (200, "9")
    reply = get(Conditional(events(*content(b""), headers=[validator])), "/", "HEAD")
    assert (reply.code, reply["Content-Length"]) == (200, None)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"if_none_match": '"v"'}, 304),
        ({"if_none_match": '"x"'}, 200),
        ({"if_match": '"x"'}, 412),
        ({"if_modified_since": DATE}, 304),
        ({"range": "bytes=0-0"}, 200),
        ({"range": "bytes=99-", "if_match": '"v"'}, 200),
        ({}, 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditions_of_any_content(asked: dict[str, str], code: int, method: str) -> None:
    """Validators are enough for a 304 or a 412: the rest of the content goes nowhere. It has no ranges."""
    fields = ("ETag", '"v"'), ("Last-Modified", DATE), ("Content-Length", "3")
    blocks = content(b"a", b"bc") if method == "GET" else content(b"")
    reply = get(Conditional(events(*blocks, headers=fields)), "/", method, **asked)
    assert reply.code == code
    assert reply.body == (b"abc" if code == 200 and method == "GET" else b"")
    assert reply["Content-Length"] == {200: "3", 304: None, 412: "0"}[code]


def test_parts_of_files(path: Path) -> None:
    """What is only a part of a file passes with the application's head, and gets conditions by its own validators."""
    part = {"offset": 10, "count": 20}
    fields = ("Content-Length", "20"), ("ETag", '"v"')
    for make, servers in ((pathsend, list(SERVERS.values())), (zerocopysend, [Ours])):
        for server in servers:
            application = Conditional(make(path, *fields, **part))
            reply = call(application, request(fields={"range": "bytes=0-0"}), server)
            assert (reply.code, reply.body, reply["ETag"]) == (200, DATA[10:30], '"v"')
            assert call(application, request(fields={"if_match": '"x"'}), server).code == 412
    reply = get(Conditional(pathsend(path, ("Content-Range", "bytes 10-29/256000"), status=206, **part)))
    assert (reply.code, reply.body, reply["Content-Length"]) == (206, DATA[10:30], "20")
    assert get(Conditional(pathsend(path, offset=255_990))).body == DATA[-10:]
    assert get(Conditional(pathsend(path, offset=256_001, count=5))).body == b""
    assert descriptors(path) == 0


def test_other_statuses_and_methods_are_as_given(path: Path) -> None:
    """Neither conditions nor ranges, nor validators of ours; but the file is sent, on any server."""
    asked = {"range": "bytes=0-0", "if_none_match": "*"}
    reply = get(Conditional(pathsend(path, ("X-A", "b"), status=404)), **asked)
    assert (reply.code, reply.body, reply.fields) == (404, DATA, [("x-a", "b"), ("content-length", "256000")])
    reply = get(Conditional(pathsend(path, ("ETag", '"v"'))), "/", "POST", **asked)
    assert (reply.code, reply.body, reply["ETag"]) == (200, DATA, '"v"')
    assert get(Conditional(pathsend(path, status=404)), "/", "HEAD")["Content-Length"] == "256000"
    for status in (204, 304):
        reply = get(Conditional(pathsend(path, status=status)))
        assert (reply.code, reply.body, reply["Content-Length"]) == (status, b"", None)
    tag = ("ETag", '"v"')
    assert get(Conditional(events(*content(b"a"), headers=[tag])), "/", "POST", **asked).body == b"a"
    assert get(Conditional(events(*content(b"a"), headers=[tag], status=404)), **asked).code == 404
    assert get(Conditional(events(*content(b"a"))), **asked).code == 200


def test_what_is_handed_to_a_front_server_is_left_alone() -> None:
    """It evaluates conditions itself, against validators of its own."""
    application = events(*content(b""), headers=[("X-Accel-Redirect", "/x"), ("ETag", '"v"')])
    reply = get(Conditional(application), if_match='"x"', range="bytes=5-")
    assert (reply.code, reply["X-Accel-Redirect"]) == (200, "/x")


@pytest.mark.parametrize("made", [Conditional, WSGIConditional, FileResponse])
def test_an_argument_that_does_not_exist(made: Any) -> None:
    """It is said at once, and not with the first file that is sent."""
    with pytest.raises(TypeError, match=f"{made.__name__} got an unexpected keyword argument 'hidden'"):
        made(fallback, hidden=True)


def test_options(path: Path) -> None:
    """The arguments of ``respond`` apply to all that is sent; "Accept-Ranges: none" is obeyed."""
    reply = get(Conditional(pathsend(path), max_ranges=1, etag=False), range="bytes=0-0,2-2")
    assert (reply.code, reply["ETag"], reply.body) == (200, None, DATA)
    reply = get(Conditional(pathsend(path), etag_inode=True))
    assert reply["ETag"] not in (None, TAG)
    reply = get(Conditional(pathsend(path, ("Accept-Ranges", "none"))), range="bytes=0-0")
    assert (reply.code, reply["Accept-Ranges"], reply.body) == (200, "none", DATA)


def test_fields_of_all_kinds_arrive(path: Path) -> None:
    """Several lines of one name, and Connection, which is for the application to say in ASGI."""
    fields = [("set-cookie", "a=b"), ("set-cookie", "c=d"), ("x-a", "\xe4"), ("connection", "close")]
    reply = get(Conditional(pathsend(path, *fields)), range="bytes=0-0")
    assert reply.code == 206
    assert [field for field in reply.fields if field in fields] == fields


@pytest.mark.parametrize("etag", ["abc", '"abc', "", "W/abc", '"a b"', '"a", "b"'])
def test_a_malformed_entity_tag(path: Path, etag: str) -> None:
    """It goes to the server as it is, which judges it, and nothing is decided by it; but the file is sent."""
    reply = get(Conditional(pathsend(path, ("ETag", etag))), if_none_match=etag, range="bytes=0-0")
    assert (reply.code, reply["ETag"], reply.body, reply["Accept-Ranges"]) == (200, etag, DATA, None)
    reply = get(Conditional(events(*content(b"a"), headers=[("ETag", etag)])), if_none_match=etag)
    assert (reply.code, reply["ETag"], reply.body) == (200, etag, b"a")


def test_a_content_range_of_the_applications_own(path: Path) -> None:
    """With status 200 it can't be told what is a part of what: passed on as it is."""
    field = ("content-range", "bytes 0-9/20")
    for application in (pathsend(path, field), events(*content(DATA), headers=[field, ("etag", '"v"')])):
        reply = get(Conditional(application), range="bytes=0-0", if_none_match="*")
        assert (reply.code, reply["Content-Range"], reply.body) == (200, field[1], DATA)


@pytest.mark.parametrize("fields", [("X-A", "a\r\nb"), ("X A", "b")])
def test_refused_fields(path: Path, fields: tuple[str, str]) -> None:
    """What would split the response never gets to the server, and the file is closed."""
    made = Server(request())
    with pytest.raises(sendgate.FieldError):
        asyncio.run(made.run(Conditional(pathsend(path, fields))))
    assert made.reply.messages == []
    assert descriptors(path) == 0


@pytest.mark.parametrize("announced", [0, 1, 255_999])
def test_a_content_length_that_is_smaller(path: Path, announced: int) -> None:
    """Of a file that many bytes are sent, and ranges are those of what is sent."""
    for status in (200, 404):
        reply = get(Conditional(pathsend(path, ("Content-Length", str(announced)), status=status)))
        assert (reply["Content-Length"], reply.body) == (str(announced), DATA[:announced])
    if announced > 1:
        reply = get(Conditional(pathsend(path, ("Content-Length", str(announced)))), range="bytes=-1")
        assert reply["Content-Range"] == f"bytes {announced - 1}-{announced - 1}/{announced}"


@pytest.mark.parametrize("status", [200, 404])
def test_a_content_length_that_is_larger(path: Path, status: int, caplog: pytest.LogCaptureFixture) -> None:
    """It is lowered to what there is, and that is logged."""
    with caplog.at_level(logging.WARNING, "sendgate.asgi"):
        reply = call(Conditional(pathsend(path, ("Content-Length", "256001"), status=status)), request("/x"))
    assert (reply["Content-Length"], reply.body) == ("256000", DATA)
    assert [record.getMessage() for record in caplog.records] == [
        "/x: Content-Length is 256001, but there are 256000 bytes"
    ]


@pytest.mark.parametrize("announced", ["", "-1", "5.0", "abc", "1_0"])
def test_a_content_length_that_is_none(path: Path, announced: str) -> None:
    """The application is at fault: the server hears of it before anything was sent, and the file is closed."""
    made = Server(request())
    with pytest.raises(ValueError, match="Content-Length"):
        asyncio.run(made.run(Conditional(pathsend(path, ("Content-Length", announced)))))
    assert made.reply.messages == []
    assert descriptors(path) == 0


@pytest.mark.parametrize("server", SERVERS)
def test_a_path_that_cannot_be_opened(tmp_path: Path, server: str) -> None:
    """Nothing was sent, so that the server can answer 500, or the application something else."""
    made = SERVERS[server](request())
    with pytest.raises(FileNotFoundError):
        asyncio.run(made.run(Conditional(pathsend(tmp_path / "missing"))))
    assert made.reply.messages == []

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        with pytest.raises(FileNotFoundError):
            await pathsend(tmp_path / "missing")(scope, receive, send)

    made = SERVERS[server](request())
    with pytest.raises(AssertionError):
        asyncio.run(made.run(Conditional(application)))
    # The head that the application has sent, and nothing else: as without the middleware.
    assert made.reply.messages == ["http.response.start"]


def test_the_file_is_opened_once(path: Path) -> None:
    """One that is put in its place afterwards is not seen."""
    made = Ours(request())

    def replace(message: Message) -> None:
        if message["type"] == "http.response.start":
            (path.parent / "new").write_bytes(b"x" * len(DATA))
            os.rename(path.parent / "new", path)

    made.before = replace
    assert asyncio.run(made.run(Conditional(pathsend(path)))).body == DATA


def test_a_stream_passes_event_by_event() -> None:
    """The head waits for the first event of the content and no longer; that of text/event-stream doesn't wait."""
    for fields, expected in (
        ([("ETag", '"v"')], [0, 2, 3, 4]),
        ([], [0, 2, 3, 4]),
        ([("Content-Type", "text/event-stream; charset=utf-8")], [1, 2, 3, 4]),
    ):
        made = Server(request(fields={"if_none_match": '"x"'}))
        seen: list[int] = []

        async def application(
            scope: Scope, receive: Any, send: Any, made: Any = made, seen: Any = seen, fields: Any = fields
        ) -> None:
            head = [(name.lower().encode(), value.encode()) for name, value in fields]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            seen.append(len(made.reply.messages))
            for message in content(b"a", b"b", b"c"):
                await send(message)
                seen.append(len(made.reply.messages))

        assert asyncio.run(made.run(Conditional(application))).body == b"abc"
        assert seen == expected


def test_other_messages_pass() -> None:
    """Hints before the head, trailers behind the content, in the order in which they come."""
    made = Server(request(fields={"if_none_match": '"v"'}))
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message["type"])

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.early_hint", "links": []})
        head = {"type": "http.response.start", "status": 200, "headers": [(b"etag", b'"v"')], "trailers": True}
        await send(head)
        for message in content(b"a", b"b"):
            await send(message)
        await send({"type": "http.response.trailers", "headers": []})

    asyncio.run(Conditional(application)(made.scope, made.receive, send))
    assert sent == [
        "http.response.early_hint", "http.response.start", "http.response.body", "http.response.body",
        "http.response.trailers",
    ]  # fmt: skip


def test_trailers_behind_a_file(path: Path) -> None:
    """A file that is followed by trailers is sent as it is, without a Content-Length."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": PATHSEND, "path": str(path)})
        await send({"type": "http.response.trailers", "headers": []})

    made = Server(request(fields={"range": "bytes=0-0"}))
    asyncio.run(Conditional(application)(made.scope, made.receive, send))
    assert sent[0] == {"type": "http.response.start", "status": 200, "headers": [], "trailers": True}
    assert b"".join(message["body"] for message in sent[1:-1]) == DATA
    assert sent[-1]["type"] == "http.response.trailers"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_application_that_fails(after: int) -> None:
    """Its exception is the server's, which has been told what it would have been, but no head without content."""
    messages = [{"type": "http.response.start", "status": 200, "headers": []}, *content(b"a", b"b")]

    async def application(scope: Scope, receive: Any, send: Any) -> None:
        for message in messages[:after]:
            await send(message)
        raise KeyError("failed")

    made = Server(request())
    with pytest.raises(KeyError, match="failed"):
        asyncio.run(made.run(Conditional(application)))
    assert len(made.reply.messages) == (2 if after == 2 else 0)


def test_an_application_that_sends_no_content() -> None:
    """The server hears of its head, and of nothing else."""
    made = Server(request())
    with pytest.raises(AssertionError):
        asyncio.run(made.run(Conditional(events())))
    assert made.reply.messages == ["http.response.start"]
    made = Server(request())
    with pytest.raises(AssertionError, match="two heads"):
        asyncio.run(made.run(Conditional(events({"type": "http.response.start", "status": 200, "headers": []}))))


# ---- Protocol ----


def test_the_proposals_signatures() -> None:
    """Names and order of the arguments are those of Responder's methods, on ASGI and on WSGI."""
    for protocol in (Protocol, WSGIProtocol):
        for name in ("response_file_fd", "response_file_fd_range", "response_file_conditional"):
            expected = list(inspect.signature(getattr(sendgate.Responder, name)).parameters)
            assert list(inspect.signature(getattr(protocol, name)).parameters) == expected


def by_asgi(name: str, *arguments: Any, method: str = "GET", fields: dict[str, str] | None = None) -> Reply:
    async def application(scope: Scope, receive: Any, send: Any) -> None:
        await getattr(Protocol(scope, receive, send), name)(*arguments)

    return call(application, request("/", method, fields))


def by_ours(name: str, *arguments: Any, method: str = "GET", fields: dict[str, str] | None = None) -> Reply:
    async def application(scope: Scope, receive: Any, send: Any) -> None:
        await getattr(Protocol(scope, receive, send), name)(*arguments)

    return call(application, request("/", method, fields), Ours)


def by_wsgi(name: str, *arguments: Any, method: str = "GET", fields: dict[str, str] | None = None) -> Reply:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "SERVER_PROTOCOL": "HTTP/1.1"}
    environ |= {"HTTP_" + key.upper(): value for key, value in (fields or {}).items()}
    reply = Reply()

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        reply.code, reply.fields = int(status[:3]), [(key.lower(), value) for key, value in headers]

    result: Any = getattr(WSGIProtocol(environ, start_response), name)(*arguments)
    try:
        reply.body = b"".join(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    return reply


doors = pytest.mark.parametrize("door", [by_asgi, by_ours, by_wsgi])


@doors
def test_response_file_fd(path: Path, door: Any) -> None:
    """All of the file with the application's status and fields; nothing is evaluated, and the descriptor is closed."""
    asked = {"range": "bytes=0-0", "if_none_match": "*"}
    for status in (200, 203):
        fd = os.open(path, os.O_RDONLY)
        reply = door("response_file_fd", status, [("X", "y"), ("Content-Type", "a/b")], fd, fields=asked)
        assert (reply.code, reply.body) == (status, DATA)
        assert sorted(reply.fields) == [("content-length", "256000"), ("content-type", "a/b"), ("x", "y")]
    reply = door("response_file_fd", 200, {"ETag": '"v"'}, os.open(path, os.O_RDONLY), method="HEAD")
    assert (reply["Content-Length"], reply["ETag"], reply.body) == ("256000", '"v"', b"")
    assert descriptors(path) == 0


@doors
def test_response_file_fd_range(path: Path, door: Any) -> None:
    """The bytes from start to before end, and a Content-Range that says so, unless the application does."""

    def ask(*arguments: Any) -> Reply:
        status, headers, *span = arguments
        return door("response_file_fd_range", status, headers, os.open(path, os.O_RDONLY), *span)

    reply = ask(206, [], 1000, 151_000)
    assert (reply.code, reply.body, reply["Content-Range"]) == (206, DATA[1000:151_000], "bytes 1000-150999/256000")
    reply = ask(206, [("Content-Range", "bytes 0-9/10")], 5, 15)
    assert (reply["Content-Range"], reply.body) == ("bytes 0-9/10", DATA[5:15])
    reply = ask(200, [], 5, 15)
    assert (reply["Content-Range"], reply.body) == (None, DATA[5:15])
    for start, end in ((5, 5), (6, 5), (0, 0), (-1, 5), (0, 2**63)):
        with pytest.raises(ValueError):
            ask(206, [], start, end)
    with pytest.raises(sendgate.TruncatedError) as caught:
        ask(206, [], 0, len(DATA) + 1)
    assert caught.value.connection is sendgate.Connection.UNTOUCHED
    del caught
    assert descriptors(path) == 0


@doors
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((200, [("A", "b\r\nC: d")]), sendgate.FieldError),
        ((200, [("A", "\u0142")]), sendgate.FieldError),
        ((200, 5), TypeError),
        ((99, []), ValueError),
        (("200", []), TypeError),
    ],
    ids=str,
)
def test_the_descriptor_is_closed_by_every_failure(path: Path, door: Any, arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        door("response_file_fd", *arguments, os.open(path, os.O_RDONLY))
    assert descriptors(path) == 0


@doors
@pytest.mark.parametrize(("bad", "error"), [(-1, ValueError), (True, TypeError), ("x", TypeError), (10**6, OSError)])
def test_what_is_no_descriptor(door: Any, bad: Any, error: Any) -> None:
    with pytest.raises(error):
        door("response_file_fd", 200, [], bad)


@doors
def test_response_file_conditional(path: Path, door: Any) -> None:
    """The five outcomes of the proposal's decision tree, by the four arguments alone."""
    for asked, code, body in (
        ((), 200, DATA),
        ((TAG,), 304, b""),
        (('"x"', DATE), 200, DATA),
        ((None, DATE), 304, b""),
        ((None, None, "bytes=10-19"), 206, DATA[10:20]),
        ((None, None, b"bytes=10-19", TAG), 206, DATA[10:20]),
        ((None, None, "bytes=10-19", '"x"'), 200, DATA),
        ((None, None, "bytes=256000-"), 416, b""),
    ):
        headers, others = [("Cache-Control", "x")], {"if_none_match": "*", "range": "bytes=0-0"}
        reply = door("response_file_conditional", 200, headers, path, *asked, fields=others)
        assert (reply.code, reply.body) == (code, body)
        assert reply["ETag"] == (None if code == 416 else TAG)
    reply = door("response_file_conditional", 200, [("ETag", '"own"')], str(path), '"own"')
    assert (reply.code, reply["ETag"]) == (304, '"own"')
    reply = door("response_file_conditional", 200, [("X", "y")], path.parent / "missing")
    assert (reply.code, reply.body, reply["Content-Length"], reply["X"]) == (404, b"", "0", None)
    for bad in ("a\0b", b"a\0b"):
        with pytest.raises(ValueError, match="NUL"):
            door("response_file_conditional", 200, [], bad)
        with pytest.raises(ValueError, match="NUL"):
            door("response_file_conditional", 200, [], path, bad)
    with pytest.raises(sendgate.NotRegularError):
        door("response_file_conditional", 200, [], path.parent)
    assert descriptors(path) == 0
