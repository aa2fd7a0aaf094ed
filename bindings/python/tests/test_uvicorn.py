"""sendgate.uvicorn: what is offered to applications, and what becomes of what they send by it, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import uvicorn

import sendgate.asgi
import sendgate.uvicorn
import support
from launching import launched
from support import request, traced, wait_until

HERE = Path(__file__).resolve().parent
OLD = 1_600_000_000
KINDS = [("HttpTools", "asyncio"), ("HttpTools", "uvloop"), ("H11", "asyncio"), ("H11", "uvloop")]
#: A file's fields, by which the head waits for the file.
VALIDATORS = [["last-modified", "Sun, 13 Sep 2020 12:26:40 GMT"], ["etag", '"x"']]
SIZES = {"empty.bin": 0, "a.bin": 1000, "b.bin": 65536, "c.bin": 3 << 20}
#: More than the buffers of a connection ever take (tcp_wmem, 4 MiB), so that a client that reads nothing is noticed.
HUGE, HUGE_SIZE = "huge.bin", 64 << 20


class Server:
    """A uvicorn in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], address: Any, log: Path, folder: Path) -> None:
        self.process = process
        self.address = address
        self.log_path = log
        self.folder = folder
        self.contents = {name: (folder / name).read_bytes() for name in SIZES}

    @property
    def log(self) -> str:
        """What it wrote."""
        return self.log_path.read_text()

    def connect(self, room: int | None = None) -> Client:
        """A connection; room: of its receive buffer."""
        sock = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        if room is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        sock.settimeout(60)
        sock.connect(self.address)
        return Client(sock)

    def ask(self, target: str, *fields: str, method: str = "GET", version: str = "1.1") -> tuple[bytes, bytes]:
        """One request on a connection of its own: head and body, up to the end of the connection."""
        with self.connect() as client:
            client.request(target, "Connection: close", *fields, method=method, version=version)
            head, _, body = client.rest(reset=True).partition(b"\r\n\r\n")
            return head, body

    def state(self) -> dict[str, Any]:
        """What the application says about its process."""
        return dict(json.loads(self.ask("/state")[1]))

    def stop(self) -> int:
        """Ask it to stop, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Client(support.Client):
    """One whose answers are framed by whatever the application and uvicorn have chosen."""

    def answer(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, fields in lower case, content."""
        answer = self.head()
        fields = {name: value.lower() for name, value in answer.fields.items()}
        content = b""
        if not head_only and answer.status not in (204, 304):
            chunked = fields.get("transfer-encoding") == "chunked"
            content = self.chunks() if chunked else self.read(int(fields["content-length"]))
        return answer.status, fields, content


def script(*events: list[Any]) -> str:
    """The target that makes the application do this."""
    return "/?" + quote(json.dumps(events))


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files that all servers send."""
    folder = tmp_path_factory.mktemp("files")
    source = random.Random(5)
    for name, size in SIZES.items():
        (folder / name).write_bytes(source.randbytes(size))
        os.utime(folder / name, (OLD, OLD))
    with (folder / HUGE).open("wb") as file:
        file.truncate(HUGE_SIZE)
    return folder


@contextlib.contextmanager
def running(
    folder: Path,
    log: Path,
    protocol: str,
    loop: str = "asyncio",
    application: str = "application",
    *options: str,
) -> Iterator[Server]:
    """Run it until the end, and see that it stops as uvicorn does."""
    environment = {**os.environ, "SENDGATE_TEST_FILES": str(folder), "PYTHONPATH": path_with(HERE)}
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        fd = listener.fileno()
        command = [
            sys.executable, "-m", "uvicorn", "--fd", str(fd), "--http", protocol, "--loop", loop,
            "--timeout-keep-alive", "60", *options, f"uvicorn_application:{application}",
        ]  # fmt: skip
        with launched(command, log, stop=signal.SIGKILL, pass_fds=[fd], env=environment, cwd=folder) as process:
            server = Server(process, listener.getsockname(), log, folder)
            listener.close()
            # Answered when it listens, or refused when it has ended.
            server.ask("/state")
            yield server
            if process.poll() is None:
                assert server.stop() in (0, -signal.SIGTERM), server.log


def path_with(directory: Path) -> str:
    """PYTHONPATH with another directory."""
    return os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def server(
    request: pytest.FixtureRequest, contents: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One of each kind, with the application that does as it is told."""
    protocol, loop = request.param
    log = tmp_path_factory.mktemp("log") / "log"
    with running(contents, log, f"sendgate.uvicorn:{protocol}", loop) as made:
        made.protocol, made.loop = protocol, loop  # type: ignore[attr-defined]
        yield made


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def site(request: pytest.FixtureRequest, contents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same with sendgate.asgi.Files."""
    protocol, loop = request.param
    log = tmp_path_factory.mktemp("log") / "log"
    with running(contents, log, f"sendgate.uvicorn:{protocol}", loop, "files") as made:
        yield made


# ---- What is offered ----


def test_the_extensions_are_offered(server: Server) -> None:
    """Those that ASGI knows, with the keys of asgiref#538."""
    extensions = server.state()["extensions"]
    assert extensions["http.response.pathsend"] == {"ranges": True}
    assert extensions["http.response.zerocopysend"] == {}


@pytest.mark.parametrize(
    ("protocol", "offered"), [("sendgate.uvicorn:H11", False), ("uvicorn_application:Offering", True)]
)
def test_zerocopysend_is_not_offered_where_it_gets_lost(
    contents: Path, tmp_path: Path, protocol: str, offered: bool
) -> None:
    """Starlette's middleware doesn't pass it on. Whoever knows better makes a subclass."""
    with running(contents, tmp_path / "log", protocol, "asyncio", "beside_starlette") as server:
        extensions = server.state()["extensions"]
        assert ("http.response.zerocopysend" in extensions) is offered
        assert "http.response.pathsend" in extensions


def test_nothing_is_offered_over_tls(contents: Path, tmp_path: Path) -> None:
    """What is written past the TLS transport would leave in the clear. The content is right all the same."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", tmp_path / "key", "-out", tmp_path / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    import ssl

    options = ("--ssl-keyfile", str(tmp_path / "key"), "--ssl-certfile", str(tmp_path / "cert"))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def ask(server: Server, target: str) -> bytes:
        with socket.create_connection(server.address, 60) as sock, context.wrap_socket(sock) as tls:
            tls.sendall(request(target, "Connection: close"))
            return b"".join(iter(lambda: tls.recv(1 << 16), b""))

    for application in ("application", "files"):
        with contextlib.ExitStack() as stack:
            # The plain request that waits for the server is refused as no TLS.
            made = running(contents, tmp_path / "log", "sendgate.uvicorn:HttpTools", "asyncio", application, *options)
            server = stack.enter_context(made)
            if application == "application":
                assert b'"extensions": {}' in ask(server, "/state")
            else:
                assert ask(server, "/c.bin").endswith(server.contents["c.bin"])


# ---- What an application sends ----

#: Name, then what sends a file, and what sends the same by body events.
EVENTS: list[tuple[str, str, list[list[Any]], list[list[Any]], int]] = []
for _name, _size in SIZES.items():
    EVENTS += [
        (f"pathsend {_name}", _name, [["pathsend", _name, {}]], [["read", _name, 0, _size, False]], _size),
        (
            f"zerocopysend {_name}",
            _name,
            [["zerocopysend", _name, "object", {}]],
            [["read", _name, 0, _size, False]],
            _size,
        ),
    ]
EVENTS += [
    (
        "pathsend of a part",
        "c.bin",
        [["pathsend", "c.bin", {"offset": 5, "count": 100}]],
        [["read", "c.bin", 5, 100, False]],
        100,
    ),
    (
        "pathsend of the rest",
        "b.bin",
        [["pathsend", "b.bin", {"offset": 65000}]],
        [["read", "b.bin", 65000, 536, False]],
        536,
    ),
    (
        "zerocopysend of a descriptor's part",
        "c.bin",
        [["zerocopysend", "c.bin", "int", {"offset": 70000, "count": 200000}]],
        [["read", "c.bin", 70000, 200000, False]],
        200000,
    ),
    (
        "zerocopysend from where a descriptor is",
        "a.bin",
        [["zerocopysend", "a.bin", "int", {"seek": 300}]],
        [["read", "a.bin", 300, 700, False]],
        700,
    ),
    (
        "zerocopysend of a file that was read",
        "a.bin",
        [["zerocopysend", "a.bin", "buffered", {"seek": 300}]],
        [["read", "a.bin", 310, 690, False]],
        690,
    ),
    (
        "zerocopysend in parts, one behind the other",
        "c.bin",
        [["zerocopysend", "c.bin", "object", {"counts": [10, 100000, 5], "seek": 7}]],
        [["read", "c.bin", 7, 10, True], ["read", "c.bin", 17, 100000, True], ["read", "c.bin", 100017, 5, False]],
        100015,
    ),
    (
        "a body, a file, and a body",
        "b.bin",
        [["body", "before", True], ["zerocopysend", "b.bin", "int", {"more_body": True}], ["body", "after", False]],
        [["body", "before", True], ["read", "b.bin", 0, 65536, True], ["body", "after", False]],
        65547,
    ),
    (
        "a long body before a file",
        "c.bin",
        [["read", "c.bin", 0, 3 << 20, True], ["zerocopysend", "c.bin", "int", {"more_body": False}]],
        [["read", "c.bin", 0, 3 << 20, True], ["read", "c.bin", 0, 3 << 20, False]],
        6 << 20,
    ),
]


@pytest.mark.parametrize("fields", ["validators", "length", "chunked"])
@pytest.mark.parametrize(("method", "version"), [("GET", "1.1"), ("GET", "1.0"), ("HEAD", "1.1")])
def test_the_bytes_are_those_of_body_events(server: Server, fields: str, method: str, version: str) -> None:
    """Head, framing and content are what uvicorn makes of the same content in body events, to the byte."""
    for what, _, sent, plain, length in EVENTS:
        headers = [] if fields == "chunked" else [["content-length", str(length)]]
        headers += VALIDATORS if fields == "validators" else []
        if method == "HEAD" and len(sent) > 1:
            # uvicorn takes any number of bodies for a HEAD with a length, but counts them differently by parser.
            continue
        start = ["start", 200, headers]
        expected, got = (server.ask(script(start, *events), method=method, version=version) for events in (plain, sent))
        assert undated(got[0]) == undated(expected[0]), what
        assert got[1] == expected[1], what
        if fields != "chunked" and method == "GET":
            assert len(got[1]) == length, what


def undated(head: bytes) -> bytes:
    """A head without its date."""
    return re.sub(rb"(?i)\r\ndate: [^\r]*", b"", head)


def test_a_connection_goes_on(server: Server) -> None:
    """Requests one after the other on one connection, and all at once (RFC 9112 9.3.2)."""
    targets = []
    expected = []
    for name in ("a.bin", "c.bin", "empty.bin", "b.bin", "c.bin"):
        content = server.contents[name]
        for headers in ([["content-length", str(len(content))], *VALIDATORS], []):
            targets.append(script(["start", 200, headers], ["pathsend", name, {}]))
            expected.append(content)
        targets.append(script(["start", 200, [["content-length", "5"]]], ["body", "hello", False]))
        expected.append(b"hello")
    with server.connect() as client:
        for target, content in zip(targets, expected):
            client.request(target)
            assert client.answer()[2] == content
        client.sock.sendall(b"".join(map(request, targets)))
        for content in expected:
            assert client.answer()[2] == content


def test_the_log_has_the_line_that_it_has_without(server: Server) -> None:
    """The access log is written by uvicorn."""
    log = server.log
    for events in ([["pathsend", "a.bin", {}]], [["read", "a.bin", 0, 1000, False]]):
        server.ask(script(["start", 206, [["content-length", "1000"], *VALIDATORS]], *events))
    lines = [re.sub(r":\d+ -|\?\S+", "", line) for line in server.log[len(log) :].splitlines()]
    assert lines == ['INFO:     127.0.0.1 "GET / HTTP/1.1" 206 Partial Content'] * 2


def test_who_reads_slowly_gets_all_of_it_and_holds_up_nobody(server: Server) -> None:
    """Others are served meanwhile."""
    content = server.contents["c.bin"]
    target = script(["start", 200, [["content-length", str(3 << 20)], *VALIDATORS]], ["pathsend", "c.bin", {}])
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect(4096)) for _ in range(8)]
        for client in slow:
            client.request(target)
        for _ in range(3):
            assert server.ask(target)[1] == content
        for client in slow:
            assert client.answer()[2] == content


def test_what_is_in_the_transports_buffer_goes_first(server: Server) -> None:
    """The client begins to read when the file's turn has come."""
    content = server.contents["c.bin"]
    name = f"begun-{os.urandom(4).hex()}"
    events: list[list[Any]] = [["start", 200, []], *[["read", "c.bin", 0, 3 << 20, True]], ["touch", name]]
    with server.connect(4096) as client:
        client.request(script(*events, ["zerocopysend", "c.bin", "int", {"more_body": True}], ["body", "end", False]))
        wait_until((server.folder / name).exists)
        assert client.answer()[2] == content + content + b"end"


def test_a_client_that_leaves(server: Server) -> None:
    """What was sending for it ends, and nothing is left of it."""
    target = script(
        ["start", 200, [["content-length", str(3 << 20)], *VALIDATORS]], ["pathsend", "c.bin", {}], ["touch", "left"]
    )
    # What sends in the background has descriptors of its own, from the first time on.
    server.ask(target)
    (server.folder / "left").unlink()
    before, log = server.state(), server.log
    for how in ("reset", "close"):
        with server.connect(4096) as client:
            client.request(target)
            client.read(10)
            if how == "reset":
                client.reset()
        # The application isn't told by an exception: as with uvicorn's own events.
        wait_until((server.folder / "left").exists)
        (server.folder / "left").unlink()
    wait_until(lambda: server.state()["descriptors"] <= before["descriptors"])
    wait_until(lambda: server.state()["tasks"] <= before["tasks"])
    assert "Traceback" not in server.log[len(log) :]


def test_a_file_that_becomes_shorter_ends_the_connection(server: Server, tmp_path: Path) -> None:
    """The client can tell, and so can the log."""
    log = server.log
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    target = script(["start", 200, [["content-length", str(64 << 20)], *VALIDATORS]], ["pathsend", str(path), {}])
    with server.connect(4096) as client:
        client.request(target)
        client.read(1000)
        os.truncate(path, 1 << 20)
        rest = client.rest(reset=True)
        assert len(rest) < 64 << 20
    assert "TruncatedError" in server.log[len(log) :]


def test_what_cant_be_sent_is_an_error_before_the_head(server: Server, tmp_path: Path) -> None:
    """The client gets a 500, and the application what is wrong."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    head = ["start", 200, [["content-length", "1001"], *VALIDATORS]]
    for event, said in (
        (["pathsend", str(tmp_path / "missing"), {}], "FileNotFoundError"),
        (["pathsend", str(tmp_path / "fifo"), {}], "NotRegularError"),
        (["pathsend", str(tmp_path / "directory"), {}], "NotRegularError"),
        (["pathsend", "a.bin", {}], "it became shorter"),
        (["pathsend", "a.bin", {"offset": 10, "count": 1001}], "it became shorter"),
        (["pathsend", "a.bin", {"offset": -1}], "offset must be"),
        (["zerocopysend", "a.bin", "int", {"count": -5}], "count must be"),
    ):
        log = server.log
        with server.connect() as client:
            client.request(script(head, event))
            assert client.answer()[0] == 500, event
        assert said in server.log[len(log) :], event


@pytest.fixture
def huge(tmp_path: Path) -> str:
    """A file that no socket's buffers hold."""
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(64 << 20)
    return str(tmp_path / "huge")


@pytest.mark.parametrize("headers", ["counted", "chunked"])
@pytest.mark.parametrize("how", ["cancelled", "truncated"])
def test_nothing_follows_a_part_of_a_file(server: Server, huge: str, headers: str, how: str) -> None:
    """An application that goes on after the exception can't make it look like a whole response."""
    name = f"go-{os.urandom(4).hex()}"
    fields = [["content-length", str(64 << 20)], *VALIDATORS] if headers == "counted" else []
    file = ["zerocopysend", huge, "int", {"more_body": True}]
    cancelled = [["begin", file], ["await", name], ["cancel"]]
    events = cancelled if how == "cancelled" else [["swallow"], file]
    with server.connect(4096) as client:
        client.request(script(["start", 200, fields], *events, ["body", "" if fields else "end", False]))
        # Would be answered behind a whole one.
        client.request("/state", "Connection: close")
        head = client.read(1000)
        assert head.startswith(b"HTTP/1.1 200 ")
        if how == "cancelled":
            (server.folder / name).touch()
        else:
            os.truncate(huge, 1 << 20)
        rest = client.rest(reset=True)
        assert len(rest) < 64 << 20
        assert rest.strip(b"\0") == b""


def test_what_is_sent_at_the_same_time_waits_for_the_file(server: Server, huge: str) -> None:
    """As events of one response, of which none gets into the other."""
    name = f"go-{os.urandom(4).hex()}"
    file = ["zerocopysend", huge, "int", {"more_body": True}]
    with server.connect() as client:
        client.request(script(["start", 200, []], ["begin", file], ["await", name], ["body", "end", False], ["join"]))
        # Of the file, too.
        size, _, begun = client.read(1000).partition(b"\r\n\r\n")[2].partition(b"\r\n")
        (server.folder / name).touch()
        assert int(size, 16) == 64 << 20
        assert client.read((64 << 20) - len(begun)).strip(b"\0") == b""
        assert client.read(15) == b"\r\n3\r\nend\r\n0\r\n\r\n"


@pytest.mark.parametrize("what", ["garbage", "WebSocket"])
def test_what_uvicorn_answers_at_once_does_not_get_into_a_file(server: Server, huge: str, what: str) -> None:
    """The file is completed, and the connection closed."""
    target = script(["start", 200, [["content-length", str(64 << 20)], *VALIDATORS]], ["pathsend", huge, {}])
    with server.connect() as client:
        client.request(target)
        begun = client.read(1000).partition(b"\r\n\r\n")[2]
        if what == "garbage":
            client.sock.sendall(b"\1\2\3\r\n\r\n")
        else:
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
            client.request("/state", "Upgrade: websocket", "Connection: Upgrade", key, "Sec-WebSocket-Version: 13")
        # Nobody sees when the server has read it; but what comes later is for a connection that knows no more.
        server.state()
        assert client.read((64 << 20) - len(begun)).strip(b"\0") == b""
        assert b"200 OK" not in client.rest(reset=True)


def test_a_head_that_is_held_back_is_the_applications_message(server: Server) -> None:
    """Its headers may be readable once only, and the message may be used again."""
    for fields in (VALIDATORS, []):
        head, body = server.ask(script(["start once", 200, [["content-length", "2"], *fields]], ["body", "ab", False]))
        plain, _ = server.ask(script(["start", 200, [["content-length", "2"], *fields]], ["body", "ab", False]))
        assert undated(head) == undated(plain)
        assert body == b"ab"


def test_a_second_head_is_refused(server: Server) -> None:
    """As uvicorn refuses it, and what was sent before is as it was."""
    second = ["start", 200, [["content-length", "2"], *VALIDATORS]]
    for first in (["start", 200, [["content-length", "2"]]], second):
        _, body = server.ask(script(first, ["body", "a", True], ["swallow"], second, ["body", "b", False]))
        assert body == b"ab"
        assert "got 'http.response.start'" in (server.folder / "error").read_text()


@pytest.mark.parametrize("status", [204, 304])
def test_what_has_no_content_gets_none(server: Server, status: int) -> None:
    """A file after such a head would be taken for the next response (RFC 9112 6.3)."""
    for fields in ([], VALIDATORS):
        headers = [["content-length", "1000"], *fields]
        head, body = server.ask(script(["start", status, headers], ["pathsend", "a.bin", {}]))
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert body == b""


def test_what_an_application_returns_is_complained_about(server: Server) -> None:
    """As without."""
    log = server.log
    server.ask(script(["start", 200, []], ["body", "", False], ["return", 5]))
    wait_until(lambda: "ASGI callable should return None, but returned '5'." in server.log[len(log) :])


def test_a_file_that_grows_is_sent_as_announced(server: Server) -> None:
    """A log that is being written, say."""
    with server.connect() as client:
        client.request(script(["start", 200, [["content-length", "900"], *VALIDATORS]], ["pathsend", "a.bin", {}]))
        assert client.answer()[2] == server.contents["a.bin"][:900]
        client.request("/state")
        assert client.answer()[0] == 200


def test_more_than_the_head_says_is_refused(server: Server) -> None:
    """As uvicorn refuses it of body events."""
    for fields in ([], VALIDATORS):
        head, body = server.ask(
            script(
                ["start", 200, [["content-length", "900"], *fields]],
                ["swallow"],
                ["zerocopysend", "a.bin", "int", {"more_body": True}],
            )
        )
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b""
        assert "Content-Length" in (server.folder / "error").read_text()


def test_a_head_is_held_back_only_for_a_files_sake(server: Server) -> None:
    """Who sends a head without validators, and content later, has the head at once."""
    name = f"go-{os.urandom(4).hex()}"
    with server.connect() as client:
        client.request(script(["start", 200, [["content-length", "2"]]], ["await", name], ["body", "ab", False]))
        line = client.read(len(b"HTTP/1.1 200 OK"))
        assert line == b"HTTP/1.1 200 OK"
        (server.folder / name).touch()


def test_a_head_that_was_held_back_leaves_with_a_body(server: Server) -> None:
    """If it was no file after all."""
    start = ["start", 200, [["content-length", "4"], *VALIDATORS]]
    head, body = server.ask(script(start, ["body", "ab", True], ["body", "cd", False]))
    assert head.startswith(b"HTTP/1.1 200") and body == b"abcd"


# ---- System calls ----


def traced_lines(output: Path) -> list[str]:
    """The calls, without the threads' numbers."""
    lines = (line.split(None, 1)[1] for line in output.read_text().splitlines())
    return [line for line in lines if not line.startswith(("---", "+++"))]


@pytest.mark.parametrize("target", ["pathsend", "files"])
@pytest.mark.parametrize("protocol", ["HttpTools", "H11"])
def test_small_files_leave_with_their_head_and_large_ones_by_sendfile(
    contents: Path, tmp_path: Path, protocol: str, target: str
) -> None:
    """One call to open it, and one to send what is small (seen by strace)."""
    application = "application" if target == "pathsend" else "files"
    calls = "read,pread64,preadv2,readv,openat,openat2,sendto,sendmsg,sendfile,write,writev"
    with running(contents, tmp_path / "log", f"sendgate.uvicorn:{protocol}", "asyncio", application) as server:
        for name in ("a.bin", "c.bin"):
            events = script(["start", 200, [["content-length", str(SIZES[name])], *VALIDATORS]], ["pathsend", name, {}])
            url = events if target == "pathsend" else f"/{name}"
            with server.connect() as client:
                # What is only done once is done.
                client.request(url)
                client.answer()
                with traced(server.process.pid, calls, tmp_path / "calls"):
                    client.request(url)
                    assert client.answer()[2] == server.contents[name]
                seen = traced_lines(tmp_path / "calls")
            opened = [line for line in seen if name in line]
            assert len([line for line in opened if line.startswith("open")]) == 1, seen
            if name == "a.bin":
                assert len([line for line in seen if re.match(r"send|writev", line)]) == 1, seen
            else:
                assert any(line.startswith("sendfile(") for line in seen), seen
                # Single bytes tell what is in the page cache.
                assert not [line for line in opened if line.startswith(("read(", "pread64("))], seen


# ---- sendgate.asgi.Files ----


def test_files_are_sent_with_and_without_a_task(site: Server) -> None:
    """X-Forwarded-For is for uvicorn to look at, so that request takes its way: the answers are the same."""
    for name in ("a.bin", "b.bin", "c.bin", "empty.bin", "missing"):
        for field in ("A: b", "Range: bytes=5-99", "Range: bytes=0-1,-2", "If-None-Match: *", 'If-Match: "a"'):
            for method in ("GET", "HEAD"):
                quick = site.ask(f"/{name}", field, method=method)
                slow = site.ask(f"/{name}", "X-Forwarded-For: 127.0.0.1", field, method=method)
                assert sorted_head(quick[0]) == sorted_head(slow[0])
                if b"multipart" not in quick[0]:
                    assert quick[1] == slow[1]
                if field == "A: b" and method == "GET" and name in SIZES:
                    assert quick[1] == site.contents[name]


def sorted_head(head: bytes) -> list[str]:
    """Status line and fields in one form: uvicorn writes names in lower case."""
    head = re.sub(rb"boundary=\w+", b"boundary", undated(head))
    line, *fields = head.decode("latin-1").split("\r\n")
    return [line, *sorted(name.lower() + ": " + value for name, _, value in (f.partition(": ") for f in fields))]


def test_the_log_of_files_is_uvicorns(site: Server) -> None:
    """With and without a task."""
    log = site.log
    for fields in ((), ("X-Forwarded-For: 127.0.0.1",)):
        site.ask("/a%2Ebin?x=%41&y", *fields)
        site.ask("/c.bin", "Range: bytes=1-", *fields, method="HEAD", version="1.0")
    lines = [re.sub(r"127.0.0.1:\d+", "", line) for line in site.log[len(log) :].splitlines()]
    assert lines[:2] == lines[2:]
    assert '"GET /a.bin?x=%41&y HTTP/1.1" 200 OK' in lines[0]
    assert '"HEAD /c.bin HTTP/1.0"' in lines[1]


def test_files_in_any_order_and_in_any_pieces(site: Server) -> None:
    """Requests for files, for what isn't there and with content, whole, together, and byte by byte."""
    requests = [
        (request("/a.bin"), 200, site.contents["a.bin"]),
        (request("/missing"), 404, None),
        (request("/c.bin"), 200, site.contents["c.bin"]),
        (request("/a.bin", "Content-Length: 3", method="POST") + b"abc", 405, None),
        (request("/b.bin", "Range: bytes=1-5"), 206, site.contents["b.bin"][1:6]),
        (request("/empty.bin"), 200, b""),
    ]
    with site.connect() as client:
        for _ in range(2):
            for data, status, content in requests:
                client.sock.sendall(data)
                got = client.answer()
                assert got[0] == status and content in (None, got[2])
        client.sock.sendall(b"".join(data for data, _, _ in requests * 3))
        for _, status, content in requests * 3:
            got = client.answer()
            assert got[0] == status and content in (None, got[2])
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for data, status, content in requests:
            for index in range(len(data)):
                client.sock.sendall(data[index : index + 1])
            got = client.answer()
            assert got[0] == status and content in (None, got[2])


def test_files_for_a_client_of_long_ago(site: Server) -> None:
    """uvicorn closes after an answer to HTTP/1.0, also if it is asked not to."""
    with site.connect() as client:
        client.request("/a.bin", "Connection: keep-alive", version="1.0")
        assert client.rest(reset=True).endswith(site.contents["a.bin"])


def test_slow_clients_of_files(site: Server) -> None:
    """They get all of it, one request after the other, while others are served."""
    content = site.contents["c.bin"]
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(site.connect(4096)) for _ in range(8)]
        for client in slow:
            # The second one comes while the first is being sent.
            client.sock.sendall(request("/c.bin"))
            client.sock.sendall(request("/a.bin"))
        assert site.ask("/c.bin")[1] == content
        for client in slow:
            assert client.answer()[2] == content
            assert client.answer()[2] == site.contents["a.bin"]


def test_clients_of_files_that_leave(site: Server) -> None:
    """Nothing is left of them, and nobody complains."""
    descriptors = Path(f"/proc/{site.process.pid}/fd")
    site.ask("/c.bin")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        with site.connect(4096) as client:
            client.request("/c.bin")
            client.read(10)
    wait_until(lambda: len(list(descriptors.iterdir())) <= before)
    assert "Traceback" not in site.log


# ---- The end ----


@pytest.mark.parametrize(("protocol", "loop"), KINDS)
@pytest.mark.parametrize("application", ["application", "files"])
def test_a_server_that_stops_completes_its_responses(
    contents: Path, tmp_path: Path, protocol: str, loop: str, application: str
) -> None:
    """And closes idle connections at once."""
    target = script(["start", 200, [["content-length", str(3 << 20)], *VALIDATORS]], ["pathsend", "c.bin", {}])
    with running(contents, tmp_path / "log", f"sendgate.uvicorn:{protocol}", loop, application) as server:
        with server.connect(4096) as client, server.connect() as idle:
            idle.request("/state")
            idle.answer()
            client.request(target if application == "application" else "/c.bin")
            first = client.read(1000)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "Shutting down" in server.log)
            assert idle.rest(reset=True) == b""
            body = (first + client.rest(reset=True)).partition(b"\r\n\r\n")[2]
            assert body == server.contents["c.bin"]
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.log


@pytest.mark.parametrize("application", ["application", "files"])
def test_a_server_that_has_no_time_cuts_them_short(contents: Path, tmp_path: Path, application: str) -> None:
    """--timeout-graceful-shutdown: nobody waits for a client that takes nothing."""
    target = script(["start", 200, [["content-length", str(HUGE_SIZE)], *VALIDATORS]], ["pathsend", HUGE, {}])
    options = ("--timeout-graceful-shutdown", "1")
    made = running(contents, tmp_path / "log", "sendgate.uvicorn:HttpTools", "asyncio", application, *options)
    with made as server, server.connect(4096) as client:
        client.request(target if application == "application" else f"/{HUGE}")
        client.read(10)
        assert server.stop() in (0, -signal.SIGTERM)
        assert len(client.rest(reset=True)) < HUGE_SIZE


def test_an_idle_connection_is_closed_in_time(contents: Path, tmp_path: Path) -> None:
    """Also after answers that took no task; and not while one is being sent."""
    made = running(
        contents, tmp_path / "log", "sendgate.uvicorn:HttpTools", "asyncio", "files", "--timeout-keep-alive", "1"
    )
    with made as server, server.connect() as client, server.connect(4096) as slow:
        slow.request("/c.bin")
        client.request("/a.bin")
        client.answer()
        assert client.rest(reset=True) == b""
        assert slow.answer()[2] == server.contents["c.bin"]


def test_requests_are_counted(contents: Path, tmp_path: Path) -> None:
    """--limit-max-requests, which no request without a task escapes."""
    made = running(
        contents, tmp_path / "log", "sendgate.uvicorn:HttpTools", "asyncio", "files", "--limit-max-requests", "10"
    )
    with made as server:
        with server.connect() as client:
            # One was asked when it started.
            for _ in range(9):
                client.request("/a.bin")
                client.answer()
        assert server.process.wait(60) == 0
        assert "Maximum request limit of 10 exceeded" in server.log


@pytest.mark.parametrize("application", ["application", "files"])
def test_a_client_that_takes_nothing_loses_its_connection(contents: Path, tmp_path: Path, application: str) -> None:
    """After send_timeout seconds, which is for a subclass to choose."""
    target = script(["start", 200, [["content-length", str(HUGE_SIZE)], *VALIDATORS]], ["pathsend", HUGE, {}])
    made = running(contents, tmp_path / "log", "uvicorn_application:Impatient", "asyncio", application)
    with made as server:
        descriptors = Path(f"/proc/{server.process.pid}/fd")

        def sockets() -> int:
            return sum(link(each).startswith("socket:") for each in descriptors.iterdir())

        before = sockets()
        with server.connect(4096) as client:
            client.request(target if application == "application" else f"/{HUGE}")
            client.read(10)
            wait_until(lambda: sockets() <= before)
            assert len(client.rest(reset=True)) < HUGE_SIZE


def link(path: Path) -> str:
    """What it leads to, if it still is there."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


@pytest.mark.parametrize("application", ["application", "files"])
def test_without_sendfile(contents: Path, tmp_path: Path, application: str) -> None:
    """copy, in a subclass."""
    target = script(["start", 200, [["content-length", str(3 << 20)], *VALIDATORS]], ["pathsend", "c.bin", {}])
    with running(contents, tmp_path / "log", "uvicorn_application:Copying", "asyncio", application) as server:
        with traced(server.process.pid, "sendfile", tmp_path / "calls"):
            assert server.ask(target if application == "application" else "/c.bin")[1] == server.contents["c.bin"]
        assert traced_lines(tmp_path / "calls") == []


def test_a_unix_socket(contents: Path, tmp_path: Path) -> None:
    """As behind a front server."""
    path = str(tmp_path / "socket")
    command = [
        sys.executable, "-m", "uvicorn", "--uds", path, "--http", "sendgate.uvicorn:HttpTools",
        "uvicorn_application:files",
    ]  # fmt: skip
    environment = {**os.environ, "SENDGATE_TEST_FILES": str(contents), "PYTHONPATH": path_with(HERE)}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            wait_until(lambda: "Uvicorn running" in (tmp_path / "log").read_text())
            server = Server(process, path, tmp_path / "log", contents)
            for name in ("a.bin", "c.bin"):
                assert server.ask(f"/{name}")[1] == server.contents[name]
            assert server.stop() in (0, -signal.SIGTERM)
        finally:
            process.kill()


def test_several_processes(contents: Path, tmp_path: Path) -> None:
    """--workers: the class is found by its name."""
    made = running(contents, tmp_path / "log", "sendgate.uvicorn:H11", "asyncio", "files", "--workers", "2")
    with made as server:
        for _ in range(4):
            assert server.ask("/c.bin")[1] == server.contents["c.bin"]


def test_under_gunicorn(contents: Path, tmp_path: Path) -> None:
    """A worker of uvicorn's with the protocol, as docs/uvicorn.md has it."""
    (tmp_path / "worker.py").write_text(
        "from uvicorn_worker import UvicornWorker\n"
        "class Worker(UvicornWorker):\n"
        '    CONFIG_KWARGS = {**UvicornWorker.CONFIG_KWARGS, "http": "sendgate.uvicorn:HttpTools"}\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "log").open("wb") as log:
        command = [
            sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "-k", "worker.Worker",
            "--no-control-socket", "uvicorn_application:application",
        ]  # fmt: skip
        environment = {
            **os.environ, "SENDGATE_TEST_FILES": str(contents), "PYTHONPATH": path_with(HERE) + f":{tmp_path}",
        }  # fmt: skip
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=log, stderr=log, pass_fds=[listener.fileno()]
        )
        address = listener.getsockname()
    try:
        server = Server(process, address, tmp_path / "log", contents)
        assert server.state()["extensions"]["http.response.pathsend"] == {"ranges": True}
        target = script(["start", 200, [["content-length", str(3 << 20)], *VALIDATORS]], ["pathsend", "c.bin", {}])
        assert server.ask(target)[1] == server.contents["c.bin"]
        assert server.stop() == 0
    finally:
        process.kill()
        process.wait()


# ---- Servers in threads ----


@contextlib.contextmanager
def in_thread(application: Any, protocol: Any, *, server: Any = uvicorn.Server, **options: Any) -> Iterator[Any]:
    """The address of a server that this process runs, with a loop of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(application, http=protocol, loop="asyncio", lifespan="off", log_config=None, **options)
        made = server(config)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: made.started)
            yield listener.getsockname()
        finally:
            made.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("protocol", ["HttpTools", "H11"])
def test_a_connection_is_freed_when_it_is_lost(contents: Path, protocol: str) -> None:
    """Without the garbage collector, as uvicorn's own."""
    made = []

    class Remembered(getattr(sendgate.uvicorn, protocol)):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            made.append(weakref.ref(self))

    async def hello(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})

    for application in (hello, sendgate.asgi.Files(contents)):
        with in_thread(application, Remembered) as address:
            gc.disable()
            try:
                ask_in_thread(address, "/a.bin")
                wait_until(lambda: made[-1]() is None)
            finally:
                gc.enable()
    del application
    gc.collect()


def test_two_servers_with_one_application(contents: Path) -> None:
    """Each has its own fields, also if they share a loop."""
    others: list[uvicorn.Server] = []

    class Both(uvicorn.Server):
        async def serve(self, sockets: list[socket.socket] | None = None) -> None:
            """This one, and the other."""
            await asyncio.gather(super().serve(sockets), others[0].serve([listener]))

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "should_exit":
                others[0].should_exit = value

    files = sendgate.asgi.Files(contents)
    kept: Any = {"http": sendgate.uvicorn.HttpTools, "loop": "asyncio", "lifespan": "off", "log_config": None}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        others.append(uvicorn.Server(uvicorn.Config(files, headers=[("X-Server", "other")], **kept)))
        with in_thread(files, sendgate.uvicorn.HttpTools, server=Both, headers=[("X-Server", "one")]) as address:
            wait_until(lambda: others[0].started)
            for _ in range(2):
                for where, name in ((address, "one"), (listener.getsockname(), "other")):
                    status, fields, _ = ask_in_thread(where, "/a.bin")
                    assert (status, fields["x-server"]) == (200, name)
    others.clear()
    del files
    gc.collect()


def ask_in_thread(address: Any, target: str) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own."""
    with socket.create_connection(address, 60) as sock:
        client = Client(sock)
        client.request(target)
        with client:
            return client.answer()


@pytest.mark.parametrize("application", ["application", "files"])
def test_nothing_is_left_of_a_loop_that_has_ended(contents: Path, application: str) -> None:
    """Neither its thread nor its descriptors."""

    async def pathsend(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.pathsend", "path": str(contents / "a.bin")})

    threads = Path("/proc/self/task")
    before = len(list(threads.iterdir()))
    app: Any = pathsend if application == "application" else sendgate.asgi.Files(contents)
    with in_thread(app, sendgate.uvicorn.HttpTools) as address:
        assert ask_in_thread(address, "/a.bin")[2] == (contents / "a.bin").read_bytes()
    del app
    gc.collect()
    wait_until(lambda: len(list(threads.iterdir())) <= before)


# ---- Versions ----


def test_a_version_that_is_not_known_is_refused() -> None:
    """By what is missing in it."""

    class Protocol:
        def __init__(self) -> None:
            self.app = None

    with pytest.raises(ImportError, match=r"sendgate.uvicorn, which works with uvicorn .*Protocol has no access_log"):
        sendgate.uvicorn.check_uvicorn(Protocol, Protocol)


@pytest.mark.parametrize(("name", "needed"), [("HttpTools", "httptools"), ("H11", "h11")])
def test_each_needs_its_own_parser_only(name: str, needed: str) -> None:
    """The other one may be missing; the one that is needed is named."""
    other = "h11" if needed == "httptools" else "httptools"
    code = f"""
import sys
sys.modules[{other!r}] = None
import sendgate.uvicorn
sendgate.uvicorn.{name}
del sys.modules["sendgate._uvicorn_{needed}"], sys.modules["uvicorn.protocols.http.{needed}_impl"]
sys.modules[{needed!r}] = None
try:
    sendgate.uvicorn.{name}
except ImportError as error:
    print(error)
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert needed in printed


def test_no_other_name() -> None:
    """A name that is nearly right."""
    module: types.ModuleType = importlib.import_module("sendgate.uvicorn")
    with pytest.raises(AttributeError, match="has no attribute 'Httptools'"):
        module.Httptools  # noqa: B018
