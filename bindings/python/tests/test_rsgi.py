"""``sendgate.rsgi`` on a real Granian, and what it lends without one. The application is ``rsgi_application``."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import itertools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import pytest

import rows
from launching import serving
from sendgate import rsgi
from sendgate._leases import Leases
from served_rows import SOCKET_ROWS, answers, as_served, complaints
from serving import descriptors
from support import traced, wait_until

HERE = Path(__file__).resolve().parent
LOOPS = ("asyncio", "uvloop")
#: By name: what is read at once, and what is given as a path.
SIZES = {"empty": 0, "small": 10_000, "large": 700_001, "other": 700_001, "huge": 20_000_000}
#: Seconds: of what is lent.
PERIOD = 2.0
LONG_AGO = 784111777
CONTENT = {name: random.Random(name).randbytes(size) for name, size in SIZES.items()}


@dataclasses.dataclass
class Granian:
    """One that runs."""

    loop: str
    address: tuple[str, int]
    folder: Path
    #: The process in which the application is.
    worker: int

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.folder / "log").read_text()

    def ask(
        self, target: str, *fields: str, method: str = "GET", body: bytes = b"", version: str = "1.1"
    ) -> rows.Response:
        """One request, one answer, whose framing is checked; and then another on the same connection."""
        if body:
            fields = (*fields, f"Content-Length: {len(body)}")
        lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields]
        request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
        return rows.fetch(self.address, request, timeout=60, probe=rows.probe("/files/small"))

    def text(self, target: str) -> str:
        """The body of an answer that is 200."""
        response = self.ask(target)
        assert response.status == 200
        assert response.body is not None
        return response.body.decode()


def make_site(folder: Path) -> None:
    """What /site/ and /alone/ serve."""
    (folder / "sub").mkdir(parents=True)
    for name, text in {
        "index.html": "root", "sub/index.html": "sub", "404.html": "own 404", "page.txt": "page " * 1000,
        "\u00e4.txt": "\u00e4", "\ufffd.txt": "nobody knows", ".hidden": "hidden",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
        os.utime(folder / name, (LONG_AGO, LONG_AGO))
    packed = gzip.compress((folder / "page.txt").read_bytes())
    (folder / "page.txt.gz").write_bytes(packed)
    os.utime(folder / "page.txt.gz", (LONG_AGO + 1, LONG_AGO + 1))


@contextlib.contextmanager
def granian(loop: str, *options: str, limit: int | None = None, **environment: str) -> Iterator[Granian]:
    """Start it with the application, wait until it answers, and stop it at the end. limit: of its descriptors."""
    import resource

    with tempfile.TemporaryDirectory(prefix="sendgate-rsgi-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        for file, content in CONTENT.items():
            (folder / "files" / file).write_bytes(content)
            os.utime(folder / "files" / file, (LONG_AGO, LONG_AGO))
        make_site(folder / "files" / "site")
        shutil.copy(HERE / "rsgi_application.py", folder)

        def command(port: int) -> list[str]:
            words = ["--interface", "rsgi", "--loop", loop, "--port", str(port), *options]
            return [sys.executable, "-m", "granian", *words, "rsgi_application:application"]

        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

        given = {**os.environ, "SENDGATE_TEST_PERIOD": str(PERIOD), **environment}
        log = folder / "log"
        with serving(command, log, "/files/small", cwd=folder, env=given, preexec_fn=limited) as (address, _):
            # It is logged when the worker has been started, which may answer before that.
            spawned = re.compile(r"Spawning worker-1 with PID: (\d+)\n")
            wait_until(lambda: spawned.search(log.read_text()) is not None)
            found = spawned.search(log.read_text())
            assert found
            yield Granian(loop, address, folder, int(found[1]))


@pytest.fixture(scope="module", params=LOOPS)
def server(request: pytest.FixtureRequest) -> Iterator[Granian]:
    """One for each event loop."""
    with granian(request.param) as server:
        yield server


# ---- The rows ----

#: What the server makes of the answers to some rows, whatever the application says.
DIFFERENT = {
    # It shows only fields of ASCII, and of this one that it is there: it can't be known that the tag is in it.
    "inm-obs-text": ["status 200 instead of 304"],
    # It answers HTTP/1.0 with HTTP/1.0.
    **{row.name: ["version HTTP/1.0"] for row in SOCKET_ROWS if row.version == 10},
}


@pytest.mark.parametrize("row", SOCKET_ROWS, ids=str)
def test_row(row: rows.Row, server: Granian) -> None:
    """What Files answers is what the row expects, also when it is known by heart, and leaves the connection in step."""
    tag, both = answers(row, server.address, server.folder / "files", times=2)
    for response in both:
        assert complaints(as_served(row), response, tag) == DIFFERENT.get(row.name, [])


# ---- The document's decision tree ----

TAG = {name: f'"{LONG_AGO * 10**9:x}-{size:x}"' for name, size in SIZES.items()}
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sat, 05 Nov 1994 08:49:37 GMT"
AFTER = "Mon, 07 Nov 1994 08:49:37 GMT"
OWN_DATE = "Last-Modified=" + AFTER.replace(" ", "+")


@dataclasses.dataclass(frozen=True)
class Case:
    """A request by which /conditional is asked, and the answer."""

    name: str
    fields: tuple[str, ...]
    status: int
    span: tuple[int, int] | None = None
    #: What the application says, as a query.
    own: str = ""

    def __str__(self) -> str:
        return self.name


TREE = (
    Case("no condition", (), 200),
    Case("If-None-Match matches", ("If-None-Match: {tag}",), 304),
    Case("If-None-Match matches weakly", ("If-None-Match: W/{tag}",), 304),
    Case("If-None-Match matches in a list", ('If-None-Match: "a", {tag}',), 304),
    Case("If-None-Match: any", ("If-None-Match: *",), 304),
    Case("If-None-Match doesn't match", ('If-None-Match: "a"',), 200),
    Case("If-None-Match wins", ('If-None-Match: "a"', f"If-Modified-Since: {AFTER}"), 200),
    Case("If-Modified-Since, then", (f"If-Modified-Since: {DATE}",), 304),
    Case("If-Modified-Since, later", (f"If-Modified-Since: {AFTER}",), 304),
    Case("If-Modified-Since, before", (f"If-Modified-Since: {BEFORE}",), 200),
    Case("If-Modified-Since, no date", ("If-Modified-Since: today",), 200),
    Case("a range", ("Range: bytes=10-99",), 206, (10, 100)),
    Case("a range to the end", ("Range: bytes=100-",), 206, (100, -1)),
    Case("a suffix", ("Range: bytes=-7",), 206, (-7, -1)),
    Case("a range and If-None-Match", ("Range: bytes=10-99", "If-None-Match: {tag}"), 304),
    Case("no such range", ("Range: bytes=99999999-",), 416),
    Case("no range at all", ("Range: bytes=9-1",), 200),
    Case("another unit", ("Range: lines=1-9",), 200),
    Case("If-Range matches", ("Range: bytes=10-99", "If-Range: {tag}"), 206, (10, 100)),
    Case("If-Range doesn't match", ("Range: bytes=10-99", 'If-Range: "a"'), 200),
    Case("If-Range is weak", ("Range: bytes=10-99", "If-Range: W/{tag}"), 200),
    Case("If-Range with the date", ("Range: bytes=10-99", f"If-Range: {DATE}"), 206, (10, 100)),
    Case("If-Range with another date", ("Range: bytes=10-99", f"If-Range: {AFTER}"), 200),
    Case("the application's ETag", (), 200, own="ETag=%22mine%22"),
    Case("the application's ETag matches", ('If-None-Match: "mine"',), 304, own="ETag=%22mine%22"),
    Case("the file's doesn't then", ("If-None-Match: {tag}",), 200, own="ETag=%22mine%22"),
    Case("a range of the application's", ("Range: bytes=10-99", 'If-Range: "mine"'), 206, (10, 100), "ETag=%22mine%22"),
    Case("the application's date", (f"If-Modified-Since: {DATE}",), 200, own=OWN_DATE),
    Case("the application's date, then", (f"If-Modified-Since: {AFTER}",), 304, own=OWN_DATE),
    Case("the application's status", ("If-None-Match: {tag}", "Range: bytes=10-99"), 404, own="status=404"),
)  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("file", ["small", "large"])
@pytest.mark.parametrize("case", TREE, ids=str)
def test_decision_tree(case: Case, file: str, method: str, server: Granian) -> None:
    """The five outcomes, from one descriptor; the application's ETag and Last-Modified win."""
    fields = [field.format(tag=TAG[file]) for field in case.fields]
    # Twice: by then it may be known by heart.
    for _ in range(2):
        response = server.ask(f"/conditional/{file}?{case.own}", *fields, method=method)
        judge(response, case, file, method)


def judge(response: rows.Response, case: Case, file: str, method: str) -> None:
    """Whether it is the right answer."""
    content, size = CONTENT[file], SIZES[file]
    if method == "HEAD" and case.status in (206, 416):
        # Ranges are defined for GET alone (RFC 9110 14.2).
        assert response.status == 200
        assert response.get("Content-Length") == str(size)
        return
    assert response.status == case.status
    sent = {200: content, 404: content, 304: b"", 416: b""}.get(case.status)
    if case.span is not None:
        first, last = (at % size if at < 0 else at for at in case.span)
        last += case.span[1] < 0
        sent = content[first:last]
        assert response.get("Content-Range") == f"bytes {first}-{last - 1}/{size}"
    assert sent is not None
    assert response.get("Content-Length") == (None if case.status == 304 else str(len(sent)))
    assert response.body == (b"" if method == "HEAD" else sent)
    if case.status == 416:
        assert response.get("Content-Range") == f"bytes */{size}"
    else:
        assert response.get("ETag") == ('"mine"' if "ETag" in case.own else TAG[file])
    if case.status in (200, 206):
        assert response.get("Last-Modified") == (AFTER if "Last-Modified" in case.own else DATE)
        assert response.get("Accept-Ranges") == "bytes"


def test_several_ranges(server: Granian) -> None:
    """They are answered as multipart/byteranges, as everywhere; what is large goes through a pipe."""
    asked = {"small": [(0, 9), (100, 199)], "huge": [(5, 9), (1000, 9_000_000), (12_000_000, 19_999_999)]}
    for (file, spans), target in itertools.product(asked.items(), ("/conditional/", "/files/")):
        ranges = ",".join(f"{first}-{last}" for first, last in spans)
        response = server.ask(target + file, f"Range: bytes={ranges}")
        assert response.status == 206
        parts = response.parts()
        assert [(part.first, part.last) for part in parts] == spans
        assert all(part.data == CONTENT[file][part.first : part.last + 1] for part in parts)


@pytest.mark.parametrize("file", ["small", "huge"])
def test_from_a_thread(file: str, server: Granian) -> None:
    """An application may call from wherever it is."""
    response = server.ask(f"/thread/{file}")
    assert (response.status, response.get("X-Name"), response.body) == (200, "x", CONTENT[file])
    last = SIZES[file] - 1
    parts = server.ask(f"/thread/{file}", f"Range: bytes=0-5,100-{last}").parts()
    assert parts[1].data == CONTENT[file][100:]


def test_no_such_file(server: Granian) -> None:
    """404 with an empty body."""
    response = server.ask("/conditional/none?X=y")
    assert (response.status, response.body, response.get("X")) == (404, b"", None)


# ---- By descriptor ----


@pytest.mark.parametrize("file", SIZES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_all_of_a_descriptor(file: str, method: str, server: Granian) -> None:
    """Status and fields are the application's, and Content-Length is what is sent."""
    response = server.ask(f"/fd/{file}", method=method)
    assert response.status == 200
    assert response.get("Content-Length") == str(SIZES[file])
    assert response.body == (CONTENT[file] if method == "GET" else b"")
    assert response.all("X-Two") == ["1", "\u00c3\u00a9"]  # UTF-8, as the server sends every field
    assert response.get("Accept-Ranges") is None


@pytest.mark.parametrize("status", [204, 304])
def test_no_content(status: int, server: Granian) -> None:
    """What has no content by its status has none."""
    response = server.ask(f"/fd/large?status={status}")
    assert (response.status, response.body, response.get("Content-Length")) == (status, b"", None)


@pytest.mark.parametrize("file", ["small", "large", "huge"])
def test_bytes_of_a_descriptor(file: str, server: Granian) -> None:
    """The end is not in it, and Content-Range is added to a 206."""
    size = SIZES[file]
    for start, end in ((0, 1), (1, size), (0, size), (size - 1, size), (77, 9999)):
        response = server.ask(f"/fd/{file}?status=206&start={start}&end={end}")
        assert response.status == 206
        assert response.get("Content-Range") == f"bytes {start}-{end - 1}/{size}"
        assert response.body == CONTENT[file][start:end]
    assert server.ask(f"/fd/{file}?start=5&end=9").get("Content-Range") is None


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("file=readable&start=9&end=9", "ValueError"),
        ("file=readable&start=9&end=8", "ValueError"),
        ("file=readable&start=-1&end=8", "ValueError"),
        ("file=readable&start=0&end=10001", "TruncatedError"),
        ("file=readable&status=42", "ValueError"),
        ("file=readable&status=1000", "ValueError"),
        ("file=readable&headers=wrong", "TypeError"),
        ("file=directory", "NotRegularError"),
        ("file=pipe", "NotRegularError"),
        ("file=writable", "OSError"),
        ("file=path", "OSError"),
    ],
)
def test_refused(query: str, error: str, server: Granian) -> None:
    """An error is raised before anything is sent, and the descriptor is closed all the same."""
    found = json.loads(server.text(f"/refused?{query}"))
    assert error in found["raised"]
    assert found["closed"]


def test_a_descriptor_that_is_no_number() -> None:
    """It isn't taken over, so it is said at once."""
    with tempfile.TemporaryFile() as file:
        with pytest.raises(TypeError, match=r"os\.dup"):
            rsgi.Protocol(Recorder()).response_file_fd(200, [], file)  # type: ignore[arg-type]
        os.fstat(file.fileno())


# ---- One descriptor throughout ----


@pytest.mark.parametrize("query", ["", "?start=1&end=9000", "?start=1&end=700000"])
@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_the_file_that_was_opened_is_sent(query: str, how: str, server: Granian) -> None:
    """Whatever becomes of its name between the application's open and its answer."""
    path = server.folder / "files" / "held"
    path.write_bytes(CONTENT["large"])
    server.ask("/prepare")
    answers: list[rows.Response] = []
    asking = threading.Thread(target=lambda: answers.append(server.ask("/held/held" + query)))
    asking.start()
    server.ask("/wait")
    if how == "replaced":
        (server.folder / "new").write_bytes(CONTENT["other"])
        os.replace(server.folder / "new", path)
    else:
        path.unlink()
    server.ask("/send")
    asking.join(60)
    path.unlink(missing_ok=True)
    start, end = (1, int(query.rsplit("=", 1)[1])) if query else (0, SIZES["large"])
    assert answers[0].body == CONTENT["large"][start:end]


def test_ranges_while_descriptors_come_and_go(server: Granian) -> None:
    """300 answers, while threads open and close secret files all the time, are right; and then nothing is lent."""
    for number in range(3):
        (server.folder / f"secret{number}").write_bytes(b"SECRET! " * 100_000)
    server.ask("/clear")
    before = json.loads(server.text("/about"))["open"]
    answers: list[bool] = []

    def ask(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(50):
            file = source.choice(["large", "other", "huge"])
            start = source.randrange(SIZES[file] - 600_000)
            end = start + source.randrange(rsgi.SMALL + 1, 600_000)
            response = server.ask(f"/fd/{file}?status=206&start={start}&end={end}")
            answers.append((response.status, response.body) == (206, CONTENT[file][start:end]))

    server.ask("/churn?do=start")
    try:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        # One descriptor for each file, or two if it is lent again while its first one ends.
        assert 0 < int(server.text("/lent")) <= 6
    finally:
        server.ask("/churn?do=stop")
    assert answers == [True] * 300
    wait_until(lambda: server.text("/lent") == "0")
    assert json.loads(server.text("/about"))["open"] <= before


def test_an_open_that_comes_too_late_fails(server: Granian) -> None:
    """Also if the descriptor's number is that of another file by then."""
    (server.folder / "secret0").write_bytes(b"SECRET! " * 100_000)
    response = server.ask("/late")
    assert (response.status, response.body) == (404, b"Not found")


def test_more_files_than_can_be_lent() -> None:
    """With few descriptors allowed, each of many files asked for at once is answered right, through pipes."""
    with granian("asyncio", limit=160) as server:
        names = [f"file{number}" for number in range(60)]
        for number, name in enumerate(names):
            (server.folder / "files" / name).write_bytes(CONTENT["large"] + bytes([number]))
        for number, name in enumerate(names):
            for target in f"/files/{name}", f"/fd/{name}":
                assert server.ask(target).body == CONTENT["large"] + bytes([number])
        assert int(server.text("/lent")) <= 40
        assert "Traceback" not in server.log


# ---- System calls ----

#: Those that have to do with files, as systems call them.
CALLS = {
    **dict.fromkeys(("open", "openat", "openat2"), "open"),
    **dict.fromkeys(("stat", "lstat", "fstat", "newfstatat", "statx"), "stat"),
    **dict.fromkeys(("pread64", "preadv", "preadv2"), "pread"),
    **dict.fromkeys(("lseek", "fcntl", "read", "close"), ""),
}


def system_calls(server: Granian, name: str, target: str, *fields: str, status: int = 200) -> dict[str, int]:
    """How many of each kind have to do with the file in one answer, which is not the first of its kind."""
    for _ in range(2):
        assert server.ask(target, *fields).status == status
    trace = server.folder / "trace"
    with traced(server.worker, ",".join("?" + call for call in CALLS), trace):
        server.ask(target, *fields)
        server.text("/lent")  # by now the application has closed what it has opened
    counts: collections.Counter[str] = collections.Counter()
    begun: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        thread, text = line.split(None, 1)
        if text.endswith("<unfinished ...>"):
            begun[thread] = text
            continue
        if text.startswith("<..."):
            text = begun.pop(thread, "") + text
        if f"/files/{name}" in text:
            call = text.partition("(")[0]
            counts[CALLS[call] or call] += 1
    return dict(counts)


@pytest.mark.parametrize("target", ["/fd/traced", "/files/traced", "/conditional/traced"])
def test_system_calls_of_small_answers(target: str, server: Granian) -> None:
    """Open, fstat, and at most one read: once each. A path would be opened a second time, and read to its end."""
    path = server.folder / "files" / "traced"
    path.write_bytes(CONTENT["small"])
    os.utime(path, (LONG_AGO, LONG_AGO))
    before = system_calls(server, "traced", "/document/traced")
    assert before["open"] == 2
    assert before["stat"] >= 2
    assert before["lseek"] >= 2
    expected = {"open": 1, "stat": 1, "pread": 1, "close": 1}
    assert system_calls(server, "traced", target) == expected
    if target.startswith("/fd"):
        return
    assert system_calls(server, "traced", target, "Range: bytes=5-99", status=206) == expected
    tag = f"If-None-Match: {TAG['small']}"
    assert system_calls(server, "traced", target, tag, status=304) == {"open": 1, "stat": 1, "close": 1}


@pytest.mark.parametrize("target", ["/fd/traced", "/files/traced", "/conditional/traced"])
def test_system_calls_of_large_answers(target: str, server: Granian) -> None:
    """The application reads nothing. The server opens what is open already, and reads it."""
    path = server.folder / "files" / "traced"
    path.write_bytes(CONTENT["large"])
    os.utime(path, (LONG_AGO, LONG_AGO))
    found = system_calls(server, "traced", target)
    assert {call: found.get(call) for call in ("open", "stat", "pread", "lseek")} == {
        "open": 2, "stat": 2, "pread": None, "lseek": None,
    }  # fmt: skip
    assert found["read"] <= 2 + len(CONTENT["large"]) // 131072


# ---- A folder ----


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/", 200, "root"),
        ("/page.txt", 200, "page " * 1000),
        ("/page.txt?query", 200, "page " * 1000),
        ("/sub/../page.txt", 200, "page " * 1000),
        ("/sub/%2e%2E/page.txt", 200, "page " * 1000),
        ("//sub/./", 200, "sub"),
        ("/%C3%A4.txt", 200, "\u00e4"),
        ("/..%2f..%2fsmall", 404, "own 404"),
        ("/../../small", 404, "own 404"),
        ("/none", 404, "own 404"),
        ("/.hidden", 404, "own 404"),
        ("/%FF.txt", 404, "own 404"),
        ("/%EF%BF%BD.txt", 404, "own 404"),
        ("/%00", 400, None),
    ],
)
def test_paths(target: str, status: int, body: str | None, server: Granian) -> None:
    """A path is decoded once. What isn't UTF-8 reaches no file, as the server doesn't tell what it was."""
    for _ in range(2):
        response = server.ask("/alone" + target)
        assert response.status == status
        if body is not None:
            assert response.body == body.encode()


def test_a_directory_is_redirected_to(server: Granian) -> None:
    """With the query, and the bytes of its name."""
    for target, location in {
        "/site": "/site/",
        "/site/sub?a=%20b": "/site/sub/?a=%20b",
        "/site//sub": "/site/sub/",
    }.items():
        response = server.ask(target)
        assert (response.status, response.get("Location")) == (301, location)


def test_methods(server: Granian) -> None:
    """Without another application there are no others than GET and HEAD."""
    response = server.ask("/alone/page.txt", method="POST", body=b"content")
    assert (response.status, response.get("Allow")) == (405, "GET, HEAD")
    assert server.ask("/site/page.txt", method="POST", body=b"content").body == b"other: POST /site/page.txt"
    assert server.ask("/site/none").body == b"other: GET /site/none"
    assert server.ask("/site/%FF.txt").body == "other: GET /site/\ufffd.txt".encode()


@pytest.mark.parametrize("length", ["page.txt", "index.html"])
def test_head(length: str, server: Granian) -> None:
    """As a GET, without the content."""
    answers = [server.ask(f"/site/{length}", method=method) for method in ("GET", "HEAD", "GET", "HEAD")]
    heads = [[field for field in answer.fields if field[0].lower() != "date"] for answer in answers]
    assert all(sorted(head) == sorted(heads[0]) for head in heads)
    assert [answer.body for answer in answers[1::2]] == [b"", b""]


def test_fields(server: Granian) -> None:
    """The site's own are sent with each file, in UTF-8 as the server sends all fields."""
    for _ in range(2):
        response = server.ask("/site/page.txt")
        assert response.get("X-Name") == "\u00e9".encode().decode("latin-1")
        assert response.get("Cache-Control") == "public, max-age=60"
        assert response.get("Content-Type") == "text/plain; charset=utf-8"
        assert response.get("Vary") == "Accept-Encoding"
        assert len(response.all("Date")) == 1


@pytest.mark.parametrize("accepted", [("Accept-Encoding: br, gzip",), ("Accept-Encoding: br", "Accept-Encoding: gzip")])
def test_precompressed(accepted: tuple[str, ...], server: Granian) -> None:
    """The file beside it is sent to who accepts it, in all the forms of an answer, and has a tag of its own."""
    plain, packed = server.ask("/site/page.txt"), server.ask("/site/page.txt", *accepted)
    for _ in range(2):
        assert gzip.decompress(packed.body or b"") == plain.body
        assert packed.get("Content-Encoding") == "gzip"
        tag = packed.get("ETag")
        assert tag is not None
        assert tag != plain.get("ETag")
        assert server.ask("/site/page.txt", *accepted, f"If-None-Match: {tag}").status == 304
        assert server.ask("/site/page.txt", f"If-None-Match: {tag}").status == 200
        part = server.ask("/site/page.txt", *accepted, "Range: bytes=3-9")
        assert (part.status, part.body) == (206, (packed.body or b"")[3:10])
        packed = server.ask("/site/page.txt", *accepted)


def test_a_file_that_changes(server: Granian) -> None:
    """What is remembered of it is not used any more: each answer is of one version."""
    path = server.folder / "files" / "changing"
    for number in range(20):
        new = server.folder / "new"
        new.write_bytes(b"%d" % number * (number + 1))
        os.utime(new, (LONG_AGO + number, LONG_AGO + number))
        os.replace(new, path)
        tag = rows.file_tag(path)
        for _ in range(2):
            response = server.ask("/files/changing")
            assert (response.get("ETag"), response.body) == (tag, b"%d" % number * (number + 1))
            assert server.ask("/files/changing", f"If-None-Match: {tag}").status == 304
            assert server.ask("/files/changing", "Range: bytes=0-0", f"If-Range: {tag}").status == 206


def test_a_young_file(server: Granian) -> None:
    """Its tag is weak at first, and becomes strong without another change of the file."""
    path = server.folder / "files" / "young"
    path.write_bytes(b"young")
    tag = rows.file_tag(path)
    seen = []

    def is_strong() -> bool:
        seen.append(server.ask("/files/young").get("ETag"))
        return seen[-1] == tag

    wait_until(is_strong)
    assert seen[0] == f"W/{tag}"
    assert set(seen) == {tag, f"W/{tag}"}


def test_a_file_that_shrinks_while_it_is_sent(server: Granian) -> None:
    """The client notices: the connection ends before what was announced has come."""
    path = server.folder / "files" / "shrinking"
    path.write_bytes(CONTENT["huge"])
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(b"GET /files/shrinking HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = connection.recv(1024)
        os.truncate(path, 1000)
        while block := connection.recv(1 << 16):
            received += block
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: 20000000" in head
    assert len(body) < SIZES["huge"]
    assert body == CONTENT["huge"][: len(body)]


def test_clients_that_leave(server: Granian) -> None:
    """Nothing is held for them, whichever way the content goes: by a path, or by a pipe."""
    server.ask("/clear")
    before = json.loads(server.text("/about"))["open"]
    for fields in (b"", b"Range: bytes=5-9,1000-19000000\r\n"):
        for _ in range(5):
            with socket.create_connection(server.address, timeout=60) as connection:
                connection.sendall(b"GET /files/huge HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n")
                connection.recv(1024)
    server.ask("/clear")
    wait_until(lambda: json.loads(server.text("/about"))["open"] <= before)


def test_a_slow_client_takes_no_memory(server: Granian) -> None:
    """Several ranges are sent as the client takes them, and others are answered meanwhile."""
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /files/huge HTTP/1.1\r\nHost: localhost\r\nRange: bytes=5-9,1000-19999999\r\n\r\n")
        connection.recv(1024)
        grown = [memory(server.worker)]
        for _ in range(20):
            assert server.ask("/files/small").status == 200
            grown.append(memory(server.worker))
        assert max(grown) - min(grown) < 8 << 20


def memory(process: int) -> int:
    """Its own, in bytes."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def test_several_threads() -> None:
    """Granian's runtime with several threads, and its own implementation of tasks."""
    options = ("--runtime-threads", "2", "--runtime-mode", "mt", "--task-impl", "rust")
    with granian("asyncio", *options) as server:
        asked = [
            ("/files/small", "small"),
            ("/files/large", "large"),
            ("/fd/huge", "huge"),
            ("/conditional/other", "other"),
        ]
        wrong = []

        def ask(seed: int) -> None:
            for target, name in random.Random(seed).choices(asked, k=20):
                if server.ask(target).body != CONTENT[name]:
                    wrong.append(target)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert wrong == []
        parts = server.ask("/files/huge", "Range: bytes=5-9,1000-9000000").parts()
        assert parts[1].data == CONTENT["huge"][1000:9000001]


def test_the_access_log() -> None:
    """It has the status of each answer. Then the protocol is one of Granian's that is written in Python."""
    with granian("asyncio", "--access-log", "--access-log-fmt", "%(method)s %(path)s %(status)d.") as server:
        server.ask("/files/small", "Range: bytes=0-9")
        server.ask("/conditional/large", f"If-None-Match: {TAG['large']}")
        server.ask("/files/none")
        server.ask("/fd/large")
        lines = ["/files/small 206.", "/conditional/large 304.", "/files/none 404.", "/fd/large 200."]
        wait_until(lambda: all(f"GET {line}" in server.log for line in lines))


def test_nothing_is_left_behind() -> None:
    """When the server is stopped, also if something is lent."""
    before = set(Path("/dev/shm").glob("sendgate-*"))
    with granian("asyncio") as server:
        server.ask("/files/large")
        mine = [path for path in Path("/dev/shm").glob("sendgate-*") if path not in before]
        assert mine
        assert any(name.endswith("/files/large") for name in descriptors(server.worker))
    assert not any(path.exists() for path in mine)


def test_http2(server: Granian) -> None:
    """The same answers, several at a time on one connection."""
    asked = {"/files/small": "small", "/files/large": "large", "/fd/huge": "huge", "/conditional/other": "other"}
    several = ("/files/huge", ("range", "bytes=5-9,1000-9000000"))
    client = h2.connection.H2Connection()
    client.initiate_connection()
    streams = {}
    for target, *fields in (*((target,) for target in asked), several):
        number = client.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", target)]
        client.send_headers(number, [*head, *fields], end_stream=True)
        streams[number] = target
    heads: dict[int, dict[bytes, bytes]] = {}
    bodies = {number: bytearray() for number in streams}
    left = set(streams)
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(client.data_to_send())
        while left:
            for event in client.receive_data(connection.recv(1 << 16)):
                if isinstance(event, h2.events.ResponseReceived):
                    heads[event.stream_id] = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    left.remove(event.stream_id)
                else:
                    assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated))
            connection.sendall(client.data_to_send())
    for number, target in streams.items():
        assert heads[number][b"content-length"] == b"%d" % len(bodies[number])
        if target in asked:
            assert heads[number][b":status"] == b"200"
            assert bytes(bodies[number]) == CONTENT[asked[target]]
        else:
            assert heads[number][b":status"] == b"206"
            assert CONTENT["huge"][1000:9000001] in bodies[number]


def test_websockets(server: Granian) -> None:
    """They are the other application's, and refused if there is none."""

    def connect(target: str) -> tuple[socket.socket, bytes]:
        connection = socket.create_connection(server.address, timeout=60)
        fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\nSec-WebSocket-Key: {'a' * 22}==\r\n\r\n".encode()
        )
        return connection, connection.recv(65536)

    connection, answer = connect("/alone/page.txt")
    with connection:
        assert answer.startswith(b"HTTP/1.1 404 ")
    connection, answer = connect("/site/page.txt")
    with connection:
        assert answer.startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"\x81\x85\0\0\0\0Hello")  # text, 5 bytes, masked by nothing
        # Whether the frame that closes comes along with it is a matter of time.
        assert connection.recv(14, socket.MSG_WAITALL) == b"\x81\x0cother: Hello"


def test_nothing_was_wrong_on_the_inside(server: Granian) -> None:
    """Nothing has raised an exception that nobody caught."""
    assert "Traceback" not in server.log
    assert "panicked" not in server.log


# ---- What else an application sees ----


def test_the_rest_of_the_protocol_is_the_servers(server: Granian) -> None:
    """Content is read, streams are sent, and a client that leaves is noticed."""
    content = CONTENT["large"]
    assert server.ask("/echo?by=call", method="POST", body=content).body == content
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(b"POST /echo?by=parts HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert received.endswith(b"\r\n\r\n" + content)
    server.ask("/prepare")
    with socket.create_connection(server.address, timeout=60) as connection:
        connection.sendall(b"GET /gone HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.ask("/wait")
    assert server.ask("/left").status == 204


class Recorder:
    """A protocol that notes which call it gets."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("response_"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))


def test_a_protocol_of_another_kind_is_refused() -> None:
    """By a message that names what is missing."""

    class Old:
        def response_empty(self) -> None: ...
        def response_bytes(self) -> None: ...

    with pytest.raises(TypeError, match=r"Old has no response_file, response_file_range"):
        rsgi.Protocol(Old())
    assert rsgi.Protocol(Recorder()).response_empty is not None


def test_it_is_imported_without_granian() -> None:
    """The server is there already, where it is used."""
    code = "import sys, sendgate.rsgi; sys.exit('granian' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- What is lent ----


@pytest.fixture
def leases() -> Iterator[Leases]:
    """Some that only end when they are told to."""
    leases = Leases(period=3600)
    yield leases
    leases.clear()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Any]:
    """An open file."""
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        yield file


def lend(leases: Leases, fd: int) -> str:
    """A path for a descriptor."""
    return leases.path(fd, os.fstat(fd))


def test_a_path_leads_to_the_open_file(leases: Leases, file: Any) -> None:
    """Also if the descriptor is closed, the file removed, and another is in its place."""
    path = lend(leases, file.fileno())
    file.close()
    name = Path(file.name)
    name.unlink()
    name.write_bytes(b"another")
    assert Path(path).read_bytes() == b"content"
    assert len(leases) == 1


def test_one_descriptor_for_each_file(leases: Leases, file: Any, tmp_path: Path) -> None:
    """However often it is lent, and by which descriptor; a file that was changed is another one."""
    (tmp_path / "other").write_bytes(b"other")
    with open(file.name, "rb") as again, (tmp_path / "other").open("rb") as other:
        assert len({lend(leases, each.fileno()) for each in (file, again, file)}) == 1
        lend(leases, other.fileno())
        assert len(leases) == 2
        os.utime(file.name, (1, 1))
        lend(leases, file.fileno())
        assert len(leases) == 3


def test_the_end(leases: Leases, file: Any) -> None:
    """After two turns no path leads anywhere, after three nothing is held, and nothing is left in the file system."""
    path = lend(leases, file.fileno())
    directory = Path(path).parents[1]
    leases._turn()
    assert Path(path).read_bytes() == b"content"
    leases._turn()
    assert not os.path.lexists(Path(path).parent)
    assert len(leases) == 1
    leases._turn()
    assert len(leases) == 0
    leases._turn()
    assert not directory.exists()


def test_what_is_used_goes_on(leases: Leases, file: Any) -> None:
    """By the same descriptor, under another name."""
    paths = []
    for _ in range(5):
        paths.append(lend(leases, file.fileno()))
        leases._turn()
    assert len({Path(path).name for path in paths}) == 1
    assert len(set(paths)) == 5
    assert [os.path.exists(path) for path in paths] == [False, False, False, False, True]
    assert len(leases) == 1


def test_who_comes_too_late_finds_nothing(leases: Leases, file: Any, tmp_path: Path) -> None:
    """Whatever is opened by then, and whatever numbers it gets: a name is never used again."""
    (tmp_path / "secret").write_bytes(b"secret")
    old: list[str] = []
    with (tmp_path / "secret").open("rb") as secret:
        for _ in range(100):
            numbers = []
            for each, content in (file, b"content"), (secret, b"secret"):
                leases._next = 0  # the numbers again from the beginning
                old.append(lend(leases, each.fileno()))
                numbers.append(Path(old[-1]).name)
                assert Path(old[-1]).read_bytes() == content
                assert not any(map(os.path.exists, old[:-1]))
                leases.clear()
            assert numbers[0] == numbers[1]


def test_it_ends_by_itself(file: Any) -> None:
    """Without an event loop, and although nothing is asked for any more."""
    leases = Leases(period=0.05)
    path = lend(leases, file.fileno())
    wait_until(lambda: len(leases) == 0)
    assert not os.path.exists(path)
    wait_until(lambda: not Path(path).parents[1].exists())


def test_a_path_lasts(file: Any) -> None:
    """At least for as long as is promised, whenever in a period it is handed out."""
    leases = Leases(period=0.2)
    for _ in range(5):
        began = time.monotonic()
        path = lend(leases, file.fileno())
        wait_until(lambda: not os.path.exists(path))  # noqa: B023 - it is called here
        assert time.monotonic() - began >= 0.2
    leases.clear()


def test_how_many_can_be_lent(tmp_path: Path) -> None:
    """A quarter of the descriptors that the process may have, with numbers from the middle on; then EMFILE."""
    code = f"""if True:
        import errno, os, resource
        from sendgate._leases import Leases
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        leases, numbers = Leases(3600, shortest=3600), []
        try:
            for number in range(1000):
                fd = os.open({str(tmp_path)!r} + f"/{{number}}", os.O_RDWR | os.O_CREAT)
                numbers.append(int(leases.path(fd, os.fstat(fd)).rsplit("/", 1)[1]))
                os.close(fd)
        except OSError as error:
            assert error.errno == errno.EMFILE, error
        assert len(numbers) == len(set(numbers)) == len(leases) == 50, numbers
        assert min(numbers) >= 100, numbers
        leases._shortest = 0
        for _ in range(3):
            try:
                leases.path(fd, os.fstat(fd))
            except OSError:
                pass
        assert len(leases) == 1, len(leases)
        leases.clear()
        os.close(fd)
        """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_PATH])
def test_a_descriptor_that_cannot_be_read_from(flags: int, leases: Leases, file: Any) -> None:
    """It can't be lent either, though the file could be opened again."""
    fd = os.open(file.name, flags)
    try:
        with pytest.raises(OSError, match="not open for reading"):
            lend(leases, fd)
    finally:
        os.close(fd)
    assert len(leases) == 0


def test_a_file_that_may_not_be_opened_again(tmp_path: Path) -> None:
    """Its descriptor can't be lent; the answer is right all the same."""
    code = f"""if True:
        import asyncio, errno, os
        import concurrent.futures.thread  # not everybody may read Python's own files
        from sendgate import rsgi
        from sendgate._leases import Leases
        content = os.urandom(700_000)
        path = {str(tmp_path / "closed")!r}
        with open(path, "wb") as file:
            file.write(content)
        fd = os.open(path, os.O_RDONLY)
        os.chmod(path, 0)
        if os.geteuid() == 0:
            os.seteuid(65534)
        leases = Leases(3600)
        try:
            leases.path(fd, os.fstat(fd))
            raise SystemExit("it was lent")
        except OSError as error:
            assert error.errno == errno.EACCES, error
        assert len(leases) == 0

        class Protocol:
            def response_empty(self, *_): raise SystemExit("empty")
            def response_bytes(self, *_): raise SystemExit("bytes")
            def response_file_range(self, *_): raise SystemExit("range")
            def response_file(self, status, headers, path):
                self.headers = headers
                self.reading = asyncio.get_running_loop().run_in_executor(None, lambda: open(path, "rb").read())

        async def main():
            protocol = Protocol()
            rsgi.Protocol(protocol).response_file_fd(200, [], fd)
            assert await protocol.reading == content
            assert protocol.headers == [("Content-Length", "700000")], protocol.headers

        asyncio.run(main())
        leases.clear()
        """
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_when_there_are_no_descriptors_left(tmp_path: Path) -> None:
    """Files answers 503, and Protocol raises an OSError, so that the application can."""
    code = f"""if True:
        import errno, os, resource
        from sendgate import _leases, rsgi
        root = {str(tmp_path / "root")!r}
        place = {str(tmp_path / "place")!r}
        os.mkdir(root)
        os.mkdir(place)
        made = iter(range(100))

        def make_directory():
            directory = place + "/" + str(next(made))
            os.mkdir(directory)
            return directory

        _leases.make_directory = rsgi.make_directory = make_directory
        with open(root + "/large", "wb") as file:
            file.write(bytes(700_000))
        os.utime(root + "/large", (1, 1))

        class Fields(dict):
            pass

        class Scope:
            proto, method, path, query_string, http_version, headers = "http", "GET", "/large", "", "1.1", Fields()

        class Protocol:
            def response_empty(self, *arguments): self.call = arguments
            response_bytes = response_file = response_file_range = response_empty

        def answer(files):
            protocol = Protocol()
            coroutine = files.__rsgi__(Scope, protocol)
            try:
                coroutine.send(None)
            except StopIteration:
                pass
            return protocol.call

        files = rsgi.Files(root, precompressed=False)
        assert answer(files)[0] == 200
        assert len(rsgi._leases) == 1
        rsgi._leases.clear()
        # One more can be opened.
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, 4096))
        for _ in range(2):
            status, fields, body = answer(files)
            assert (status, dict(fields)["Retry-After"]) == (503, "1"), status
        protocol = Protocol()
        try:
            rsgi.Protocol(protocol).response_file_fd(200, [], os.open(root + "/large", os.O_RDONLY))
            raise SystemExit("nothing was raised")
        except OSError as error:
            assert error.errno == errno.EMFILE, error
        assert not hasattr(protocol, "call")
        assert not os.listdir(place)
        assert os.open(os.devnull, os.O_RDONLY) == lowest
        """
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_memfd_is_lent(leases: Leases) -> None:
    """It has never had a name."""
    fd = os.memfd_create("content")
    try:
        os.write(fd, b"content")
        assert Path(lend(leases, fd)).read_bytes() == b"content"
    finally:
        os.close(fd)


def test_a_process_that_is_forked_lends_anew(leases: Leases, file: Any) -> None:
    """It closes what it has inherited, and what the other one has handed out goes on."""
    path = lend(leases, file.fileno())
    number = int(Path(path).name)
    child = os.fork()
    if child == 0:
        wrong = 1
        try:
            assert len(leases) == 0
            assert not os.path.exists(f"/proc/self/fd/{number}")
            mine = lend(leases, file.fileno())
            assert Path(mine).parents[1] != Path(path).parents[1]
            assert Path(mine).read_bytes() == b"content"
            leases.clear()
            wrong = 0
        finally:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert Path(path).read_bytes() == b"content"


def test_somebody_cleans_up(leases: Leases, file: Any) -> None:
    """Then there is a new place."""
    path = lend(leases, file.fileno())
    shutil.rmtree(Path(path).parents[1])
    leases._turn()
    assert Path(lend(leases, file.fileno())).read_bytes() == b"content"


def test_threads_share_what_is_lent(tmp_path: Path) -> None:
    """With short periods each path still leads to its own file."""
    files = []
    for number in range(8):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
        files.append((tmp_path / str(number)).open("rb"))
    leases = Leases(period=0.02)
    wrong: list[bytes] = []

    def work(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(500):
            number = source.randrange(8)
            with contextlib.suppress(FileNotFoundError), open(lend(leases, files[number].fileno()), "rb") as file:
                if (content := file.read()) != b"%d" % number:
                    wrong.append(content)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    leases.clear()
    assert len(leases) == 0
    for file in files:
        file.close()
