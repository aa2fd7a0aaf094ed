"""A folder as the FastCGI server's application: its files take no thread of the pool, and are answered alike."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rows
from fastcgi_client import GET, Answer, Front, Params, ask, begin, content_records, params_records, request, serving
from sendgate import _fastcgi_server, fastcgi
from sendgate.wsgi import Files, FrontServer
from support import wait_until

OLD = 784111777
LENGTH = 30_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder, with something outside of it."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "empty").mkdir()
    (tmp_path / "secret.txt").write_bytes(b"secret")
    for name in ("a.txt", "with space.txt", ".hidden", "sub/index.html", "coded.txt"):
        (folder / name).write_bytes(b"0123456789" * 100)
    (folder / "coded.txt.gz").write_bytes(gzip.compress(b"0123456789" * 100))
    (folder / "link").symlink_to("../secret.txt")
    for path in (*folder.glob("*.*"), folder / "sub/index.html"):
        os.utime(path, (OLD, OLD), follow_symlinks=False)
    return folder


@pytest.fixture
def large(folder: Path) -> bytes:
    """A file that no socket buffer takes."""
    content = os.urandom(LENGTH)
    (folder / "large").write_bytes(content)
    return content


@contextlib.contextmanager
def serving_files(folder: Path, **options: Any) -> Iterator[str]:
    """A server of the folder. options: of the server."""
    with contextlib.closing(Files(folder)) as files, serving(files, **options) as path:
        yield path


@contextlib.contextmanager
def declining() -> Iterator[None]:
    """Meanwhile everything is for the pool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_fastcgi_server._Worker, "_send_file", lambda *_: False)
        yield


def both(files: Files, asked: list[tuple[Params, bytes]], **options: Any) -> Iterator[tuple[Answer, Answer, int]]:
    """Each request answered by the pool alone, and by a server as it is; and how many of the latter its pool got."""
    tasks = 0
    answer = _fastcgi_server.answer

    def counting(*arguments: Any) -> None:
        nonlocal tasks
        tasks += 1
        answer(*arguments)

    with contextlib.closing(files), pytest.MonkeyPatch.context() as patch:
        with declining(), serving(files, **options) as path:
            expected = [ask(path, *request) for request in asked]
        patch.setattr(_fastcgi_server, "answer", counting)
        with serving(files, **options) as path:
            for arguments, due in zip(asked, expected):
                before = tasks
                yield due, ask(path, *arguments), tasks - before


def same(answer: Answer) -> tuple[bytes, bytes, list[int]]:
    """What has to be the same of two: all but the boundary of a multipart."""
    boundary = re.search(rb"boundary=(\w+)", answer.stdout)
    stdout = answer.stdout.replace(boundary[1], b"BOUNDARY") if boundary else answer.stdout
    return stdout, answer.stderr, sorted(set(answer.kinds))


def params_of(path: str, fields: list[tuple[bytes, bytes]], method: str, version: int) -> list[tuple[bytes, bytes]]:
    """As nginx has them: a parameter for each line."""
    variables = {**GET, "PATH_INFO": path, "REQUEST_METHOD": method, "SERVER_PROTOCOL": f"HTTP/1.{version % 10}"}
    named = [(b"HTTP_" + name.upper().replace(b"-", b"_"), value) for name, value in fields]
    return [*((name.encode(), value.encode()) for name, value in variables.items()), *named]


def test_rows(folder: Path) -> None:
    """tests/cases: the same bytes as by the pool, and nearly all of them without it."""
    asked, names = [], []
    for row in rows.load():
        if row.values_only or row.method not in ("GET", "HEAD") or rows.content_of(row):
            continue
        if isinstance(row.mtime, str):
            continue  # the clock has a say in what is answered (RFC 9110 8.8.1, 8.8.2.1)
        path = rows.make_file(folder, row)
        fields = [line for line in row.request_fields(rows.file_tag(path)) if line[0].lower() != b"content-length"]
        asked.append((params_of("/" + path.name, fields, row.method, row.version), b""))
        names.append(row.name)
    tasks = 0
    for name, (expected, answer, given) in zip(names, both(Files(folder), asked)):
        assert same(answer) == same(expected), name
        tasks += given
    assert len(names) > 400
    assert 0 < tasks < 100


REQUESTS: list[tuple[dict[str, str], bytes, bool]] = [
    # Parameters besides GET's, content, and whether the pool is spared.
    ({"PATH_INFO": "/a.txt"}, b"", True),
    ({"PATH_INFO": "/a.txt", "REQUEST_METHOD": "HEAD"}, b"", True),
    ({"PATH_INFO": "/a.txt", "SERVER_PROTOCOL": "HTTP/1.0", "HTTP_RANGE": "bytes=0-1"}, b"", True),
    ({"PATH_INFO": "/a.txt", "SERVER_PROTOCOL": "HTTP/2.0", "HTTP_RANGE": "bytes=0-1,5-6"}, b"", True),
    ({"PATH_INFO": "/a.txt", "HTTP_CONNECTION": "close"}, b"", True),
    ({"PATH_INFO": "/a.txt", "HTTP_TRANSFER_ENCODING": "chunked"}, b"", True),
    ({"PATH_INFO": "/a.txt", "HTTP_RANGE": "bytes=5000-"}, b"", True),
    ({"PATH_INFO": "/a.txt", "HTTP_IF_MATCH": '"x"'}, b"", True),
    ({"PATH_INFO": "/a.txt", "HTTP_IF_MODIFIED_SINCE": "Sun, 06 Nov 1994 08:49:37 GMT"}, b"", True),
    ({"PATH_INFO": "/a.txt", "CONTENT_LENGTH": "", "CONTENT_TYPE": ""}, b"", True),
    ({"PATH_INFO": "/with space.txt", "SCRIPT_NAME": "/app"}, b"", True),
    ({"PATH_INFO": "/sub/"}, b"", True),
    ({"PATH_INFO": "/coded.txt"}, b"", True),
    ({"PATH_INFO": "/coded.txt", "HTTP_ACCEPT_ENCODING": "br, gzip"}, b"", True),
    ({"PATH_INFO": "/coded.txt", "HTTP_ACCEPT_ENCODING": "gzip;q=0"}, b"", True),
    ({"PATH_INFO": "/coded.txt", "HTTP_ACCEPT_ENCODING": ""}, b"", True),
    ({"PATH_INFO": "/coded.txt.gz"}, b"", True),
    ({"PATH_INFO": "/a.txt", "CONTENT_LENGTH": "3"}, b"abc", False),
    ({"PATH_INFO": "/a.txt", "REQUEST_METHOD": "POST"}, b"abc", False),
    ({"PATH_INFO": "/a.txt", "REQUEST_METHOD": "get"}, b"", False),
    ({"PATH_INFO": "/sub"}, b"", False),
    ({"PATH_INFO": "/sub", "SCRIPT_NAME": "/app", "QUERY_STRING": "x=1"}, b"", False),
    ({"PATH_INFO": "/empty/"}, b"", False),
    ({"PATH_INFO": "/"}, b"", False),
    ({"PATH_INFO": ""}, b"", False),
    ({"PATH_INFO": "a.txt"}, b"", False),
    ({"PATH_INFO": "//a.txt"}, b"", False),
    ({"PATH_INFO": "/none"}, b"", False),
    ({"PATH_INFO": "/.hidden"}, b"", False),
    ({"PATH_INFO": "/link"}, b"", False),
    ({"PATH_INFO": "/../secret.txt"}, b"", False),
    ({"PATH_INFO": "/sub/../a.txt"}, b"", False),
    ({"PATH_INFO": "/a.txt\0"}, b"", False),
    ({"PATH_INFO": "/%61.txt"}, b"", False),
]


def test_requests(folder: Path) -> None:
    """What is asked for in other ways: the same bytes, and the pool has what isn't a plain request for a file."""
    asked: list[tuple[Params, bytes]] = [({**GET, **params}, content) for params, content, _ in REQUESTS]
    for (params, _, spared), (expected, answer, given) in zip(REQUESTS, both(Files(folder), asked)):
        assert same(answer) == same(expected), params
        assert given == (0 if spared else 1), params


def test_where_the_path_is(folder: Path) -> None:
    """Without PATH_INFO it is SCRIPT_NAME; and beneath a prefix."""
    script = {name: value for name, value in GET.items() if name != "PATH_INFO"}
    asked: list[tuple[Params, bytes]] = [
        ({**script, "SCRIPT_NAME": "/a.txt"}, b""),
        ({**script, "SCRIPT_NAME": "/static/a.txt"}, b""),
        ({"REQUEST_METHOD": "GET"}, b""),
        ({}, b""),
    ]
    for prefix, statuses in (("/", [200, 404, 404, 404]), ("/static/", [404, 200, 404, 404])):
        answers = list(both(Files(folder, prefix=prefix), asked))
        assert [answer.status for _, answer, _ in answers] == statuses
        assert [given for _, _, given in answers] == [0 if status == 200 else 1 for status in statuses]
        assert [same(answer) for _, answer, _ in answers] == [same(expected) for expected, _, _ in answers]


def test_what_comes_twice(folder: Path) -> None:
    """nginx has a parameter for each line of a field: all of them count, which is for the pool to see to. Of others, as
    nginx sends them if a configuration says so twice, the last one counts.
    """
    tag = rows.file_tag(folder / "a.txt").encode()
    given = {**GET, "PATH_INFO": "/none", "SERVER_PROTOCOL": "HTTP/1.0"}
    once = [(name.encode(), value.encode()) for name, value in given.items()]
    lines = [(b"PATH_INFO", b"/a.txt"), (b"HTTP_IF_NONE_MATCH", tag), (b"HTTP_IF_NONE_MATCH", b'"x"')]
    others = [(b"PATH_INFO", b"/a.txt"), (b"SERVER_PROTOCOL", b"HTTP/1.1"), (b"HTTP_RANGE", b"bytes=0-1")]
    asked: list[tuple[Params, bytes]] = [([*once, *lines], b""), ([*once, *others], b"")]
    answers = list(both(Files(folder), asked))
    assert [(answer.status, tasks) for _, answer, tasks in answers] == [(304, 1), (206, 0)]
    assert [same(answer) for _, answer, _ in answers] == [same(expected) for expected, _, _ in answers]


def test_who_gets_files_otherwise(folder: Path) -> None:
    """From a front server that sends them by itself; and what isn't there, from another application."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"another"]

    front = FrontServer("X-Accel-Redirect", {folder: "/protected/"}, threshold=0)
    with contextlib.closing(Files(folder, front=front)) as files, serving(files) as path:
        assert ask(path, {**GET, "PATH_INFO": "/a.txt"}).fields["x-accel-redirect"] == "/protected/a.txt"
    with contextlib.closing(Files(folder, application=application)) as files, serving(files) as path:
        assert ask(path, {**GET, "PATH_INFO": "/none"}).body == b"another"
        assert len(ask(path, {**GET, "PATH_INFO": "/a.txt"}).body) == 1000


def test_functions_of_the_application(folder: Path) -> None:
    """They are called where an application is: in a thread of the pool. What they have said is remembered."""
    called = []

    def headers(name: str) -> list[tuple[str, str]]:
        called.append((name, threading.current_thread().name))
        return [("X-Name", name)]

    asked: list[tuple[Params, bytes]] = [({**GET, "PATH_INFO": "/a.txt"}, b"")] * 3
    for kind in ({"headers": headers}, {"immutable": lambda name: bool(headers(name))}):
        called.clear()
        tasks = 0
        for expected, answer, given in both(Files(folder, precompressed=False, **kind), asked):  # type: ignore[arg-type]
            assert same(answer) == same(expected)
            tasks += given
        assert tasks == 0  # the first server's pool had asked
        with contextlib.closing(Files(folder, **kind)) as files, serving(files) as path:  # type: ignore[arg-type]
            assert ask(path, *asked[0]).status == 200
        assert len(called) == 2
        assert all(name == "a.txt" and thread.startswith("sendgate.fastcgi-") for name, thread in called)


def test_a_file_that_cannot_be_closed(folder: Path, large: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is on its way: there is no other one."""

    def close(fd: int) -> None:
        os.close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("sendgate._fast_path.os", SimpleNamespace(close=close))
    with serving_files(folder) as path, Front(path) as front:
        for _ in range(3):
            assert len(front.ask({**GET, "PATH_INFO": "/a.txt"}, keep=True).body) == 1000
            assert front.ask({**GET, "PATH_INFO": "/large"}, keep=True).body == large


def test_a_mistake_in_the_application(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A function of the site's that raises: a 500, and a traceback in the log."""

    def wrong(name: str) -> list[tuple[str, str]]:
        raise RuntimeError("on purpose")

    with contextlib.closing(Files(folder, headers=wrong)) as files, serving(files) as path:
        assert ask(path, {**GET, "PATH_INFO": "/a.txt"}).status == 500
    assert "on purpose" in caplog.text


# ---- Connections ----


def test_kept(folder: Path) -> None:
    """Files and other answers in turn on one connection, many times; then one that isn't to be kept."""
    with serving_files(folder) as path, Front(path) as front:
        for _ in range(50):
            for target, status in (("/a.txt", 200), ("/sub/", 200), ("/none", 404), ("/a.txt", 200)):
                assert front.ask({**GET, "PATH_INFO": target}, keep=True).status == status
        assert front.ask({**GET, "PATH_INFO": "/a.txt"}).status == 200
        assert front.is_closed()


def test_a_kept_connection_may_be_idle(folder: Path) -> None:
    """However long; one that says nothing from the beginning, or stops within a request, is closed."""
    with serving_files(folder, timeout=1.5) as path, Front(path) as kept, Front(path) as silent, Front(path) as half:
        assert kept.ask({**GET, "PATH_INFO": "/a.txt"}, keep=True).status == 200
        assert half.ask({**GET, "PATH_INFO": "/a.txt"}, keep=True).status == 200
        half.send(begin(keep=True))
        assert silent.is_closed() and half.is_closed()
        time.sleep(2)
        assert kept.ask({**GET, "PATH_INFO": "/a.txt"}).status == 200


def test_pieces(folder: Path) -> None:
    """A request that comes byte by byte, and one whose end of content comes late."""
    params = {**GET, "PATH_INFO": "/a.txt"}
    with serving_files(folder) as path, Front(path) as front:
        for at in request(params, keep=True):
            front.send(bytes((at,)))
        assert front.answer().status == 200
        front.send_and_wait(begin(keep=True) + params_records(params))
        front.send(content_records(b""))
        assert front.answer().status == 200
        front.send(request(params, request_id=2) + request(params, request_id=2))
        assert front.answer(2).status == 200


def test_slow_ones(folder: Path, large: bytes) -> None:
    """What a front server doesn't take goes on in the background, also on a connection that is kept."""
    params = {**GET, "PATH_INFO": "/large"}
    with serving_files(folder, threads=1) as path, contextlib.ExitStack() as stack:
        fronts = [stack.enter_context(Front(path)) for _ in range(5)]
        for front in fronts:
            front.send(request(params, keep=True))
        for _ in range(10):
            assert ask(path, {**GET, "PATH_INFO": "/a.txt"}).status == 200
        for front in fronts:
            assert front.answer().body == large
            assert front.ask({**GET, "PATH_INFO": "/a.txt"}, keep=True).status == 200


def test_a_file_that_becomes_shorter(folder: Path, large: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Its connection is closed without an end, and the log has a line."""
    with serving_files(folder) as path, Front(path) as front:
        front.may_break = True
        front.send(request({**GET, "PATH_INFO": "/large"}, keep=True))
        first = front.record()
        assert first is not None
        os.truncate(folder / "large", 1 << 20)
        answer = front.answer()
        assert answer.protocol_status is None
        assert len(first.content + answer.stdout) < LENGTH
        wait_until(lambda: "Error sending the answer to" in caplog.text)
        assert ask(path, {**GET, "PATH_INFO": "/a.txt"}).status == 200


def test_those_that_leave(folder: Path, large: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Before the answer, and in the midst of it: nothing is left of them, and it is no error."""
    with serving_files(folder) as path:
        assert ask(path, {**GET, "PATH_INFO": "/a.txt"}).status == 200
        before = len(os.listdir("/proc/self/fd"))
        for target in ("/a.txt", "/large"):
            for _ in range(20):
                with Front(path) as front:
                    front.send(request({**GET, "PATH_INFO": target}))
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert not caplog.records


def test_stop(folder: Path, tmp_path: Path, large: bytes) -> None:
    """What is on its way arrives; kept connections that are idle are closed."""
    path = str(tmp_path / "socket")
    with contextlib.closing(Files(folder)) as files, fastcgi.Server(path, files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with Front(path) as idle, Front(path) as busy:
            assert idle.ask({**GET, "PATH_INFO": "/a.txt"}, keep=True).status == 200
            busy.send(request({**GET, "PATH_INFO": "/large"}, keep=True))
            wait_until(lambda: busy.sock.recv(1, socket.MSG_PEEK))
            server.shutdown()
            assert idle.is_closed()
            assert busy.answer().body == large
            assert busy.is_closed()
        thread.join(20)
        assert not thread.is_alive()


def test_too_many_connections(folder: Path) -> None:
    """One too many is told so, also if it asks for a file."""
    with serving_files(folder, max_connections=1) as path, Front(path) as first:
        assert first.ask({**GET, "PATH_INFO": "/a.txt"}, keep=True).status == 200
        with Front(path) as second:
            second.send(request({**GET, "PATH_INFO": "/a.txt"}))
            answer = second.answer()
            assert (answer.status, answer.protocol_status) == (503, fastcgi.ProtocolStatus.OVERLOADED)
