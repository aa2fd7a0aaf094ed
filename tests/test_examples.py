"""The C examples over real sockets: `examples/fileserver.c` in depth, `hello.c`, `offload.c` and `stream.c` in brief.

They are built here with `make -f examples/examples.mk examples`, so the library that is tested is the current one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rows
from serving import BIG, MIB, OLD, PROGRAMS, Connection, Server, make, resume_download, until

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """The examples, built from the sources as they are now."""
    subprocess.run(["make", "-s", "-f", "examples/examples.mk", "examples"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def big() -> bytes:
    """Content for a file that no socket buffer can hold."""
    return os.urandom(BIG)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory to serve, with something outside it that must stay unseen."""
    make(tmp_path / "secret.txt", b"secret")
    site = tmp_path / "site"
    make(site / "small.txt", rows.content(0, 1000))
    make(site / "medium.bin", rows.content(0, 100_000))
    make(site / "empty.html", b"")
    make(site / "with space+%.TXT", b"odd name")
    make(site / "sub" / "index.html", b"<p>index")
    (site / "bare").mkdir()
    return site


@pytest.fixture(params=[(), ("--offload",)], ids=["loop", "offload"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The file server's options: it sends in its own loop, or leaves that to a background sender."""
    chosen: tuple[str, ...] = request.param
    return chosen


@pytest.fixture
def server(site: Path, options: tuple[str, ...]) -> Iterator[Server]:
    """A file server on `site`, which must also end properly."""
    with Server("fileserver", site, *options) as server:
        yield server
        server.stop()


@pytest.fixture
def offloading(site: Path) -> Iterator[Server]:
    """A file server on `site` with a background sender."""
    with Server("fileserver", site, "--offload") as server:
        yield server
        server.stop()


# ---- HTTP ----


def test_rows(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Every rule that can be seen over a socket holds here too."""
    wrong = []
    tested = 0
    with Server("fileserver", tmp_path, *options) as server:
        for row in rows.load():
            # Methods other than GET and HEAD are this server's own business: see test_other_methods.
            if row.values_only or row.method not in ("GET", "HEAD"):
                continue
            path = rows.make_file(tmp_path, row)
            tag = rows.file_tag(path)
            target = "/" + path.name
            request = rows.build_request(row, target, "localhost", tag)
            try:
                rows.check(row, rows.fetch(server.address, request, probe=rows.probe(target)), etag=tag)
            except (rows.Mismatch, rows.ProtocolError) as error:
                wrong.append(f"{row.name}: {error}")
            tested += 1
            path.unlink()
        server.stop()
    assert tested > 0
    assert not wrong, "\n".join(wrong)


def test_whole_files(server: Server, site: Path) -> None:
    """200 with the right bytes, type and length, on one connection."""
    with Connection(server.address) as client:
        for name, kind in (
            ("small.txt", "text/plain"),
            ("medium.bin", "application/octet-stream"),
            ("empty.html", "text/html"),
        ):
            for _ in range(3):
                response = client.get("/" + name)
                assert (response.status, response.body) == (200, (site / name).read_bytes())
                assert response.get("Content-Type") == kind
                assert response.get("ETag") == rows.file_tag(site / name)


def test_targets(server: Server) -> None:
    """Percent-encoding is decoded, the query ignored, the absolute form understood."""
    for target in (
        "/small.txt?a=/b",
        "/%73mall%2etxt",
        "//small.txt",
        "http://localhost/small.txt",
        "/sub/../small.txt",
    ):
        assert server.get(target).body == rows.content(0, 1000), target
    assert server.get("/with%20space+%25.TXT").body == b"odd name"
    assert server.get("/with%20space+%25.TXT").get("Content-Type") == "text/plain"
    for target in ("/%", "/%4", "/%zz", "/a%00b", "*", "small.txt"):
        assert server.get(target).status == 400, target
    for target in ("/none", "/small.txt/", "/small.txt/x", "/" + "a" * 300, "/" + "a/" * 2500):
        assert server.get(target).status == 404, target


def test_directories(server: Server) -> None:
    """A directory is its index.html or nothing; without "/" at its end the client is sent there."""
    assert server.get("/sub/").body == b"<p>index"
    assert server.get("/bare/").status == 404
    assert server.get("/").status == 404
    for target, location in (
        ("/sub", "./sub/"),
        ("/sub?x=/1", "./sub/?x=/1"),
        ("/sub/../%73ub", "./%73ub/"),
        ("//sub", "./sub/"),
    ):
        response = server.get(target)
        assert (response.status, response.get("Location")) == (301, location)


def test_targets_without_a_path(server: Server, site: Path) -> None:
    """A query is no path; what would be the index can be a directory, which is found nowhere else."""
    assert server.get("http://localhost?x=/small.txt").status == 404
    (site / "index.html").mkdir()
    assert server.get("/").status == 404


def test_outside_is_unseen(server: Server, site: Path) -> None:
    """Neither dots nor symbolic links lead out of the directory, and nothing but files is served."""
    (site / "link-out").symlink_to("../secret.txt")
    (site / "link-absolute").symlink_to(site / "small.txt")
    (site / "link-dir").symlink_to("..")
    (site / "link-in").symlink_to("sub/index.html")
    os.mkfifo(site / "fifo")
    for target in (
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/sub/../../secret.txt",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/link-out",
        "/link-absolute",
        "/link-dir/secret.txt",
        "/fifo",
    ):
        begin = time.monotonic()
        response = server.get(target)
        assert response.status == 404, target
        assert b"secret" not in (response.body or b"")
        assert time.monotonic() - begin < 5
    assert server.get("/link-in").body == b"<p>index"


def test_no_permission(server: Server, site: Path) -> None:
    """A file that may not be read is 403."""
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    make(site / "closed.txt", b"x").chmod(0)
    assert server.get("/closed.txt").status == 403


def test_other_methods(server: Server) -> None:
    """405 with Allow; an announced body closes the connection, and the answer still arrives."""
    response = server.get("/small.txt", method="DELETE")
    assert (response.status, response.get("Allow"), response.keep_alive) == (405, "GET, HEAD", True)
    with Connection(server.address) as client:
        client.send("POST /small.txt HTTP/1.1", "Host: localhost", "Content-Length: 300000")
        client.socket.sendall(b"x" * 300_000)
        response = client.answer()
        assert (response.status, response.keep_alive) == (405, False)
        assert client.socket.recv(1) == b""  # an orderly end: a reset would raise


def test_body_is_not_the_next_request(server: Server) -> None:
    """Content behind a GET is never read as a request."""
    with Connection(server.address) as client:
        smuggled = "GET /medium.bin HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.send("GET /small.txt HTTP/1.1", "Host: localhost", f"Content-Length: {len(smuggled)}")
        client.socket.sendall(smuggled.encode())
        response = client.answer()
        assert (response.status, response.body, response.keep_alive) == (200, rows.content(0, 1000), False)
        with pytest.raises(EOFError):
            client.more()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /small.txt HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET /small.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /small.txt HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20000 + b"\r\n\r\n", 431),
        (b"GET /small.txt HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 3000 + b"\r\n", 431),
    ],
)
def test_bad_requests(server: Server, request_bytes: bytes, status: int) -> None:
    """400 or 431, then a close; the answer is not lost although part of the request was not read."""
    with Connection(server.address) as client:
        client.socket.sendall(request_bytes)
        response = client.answer()
        assert (response.status, response.keep_alive) == (status, False)
        assert client.socket.recv(1) == b""
    assert server.get("/small.txt").status == 200


def test_http10(server: Server) -> None:
    """HTTP/1.0 closes unless asked not to."""
    assert not server.get("/small.txt", version="1.0").keep_alive
    assert server.get("/small.txt", "Connection: keep-alive", version="1.0").keep_alive


# ---- The connection ----


def test_pipelining(server: Server) -> None:
    """GET, HEAD, GET in one segment: three answers in order, whatever their size."""
    lines = "\r\nHost: localhost\r\n\r\n"
    for first in ("small.txt", "medium.bin"):
        with Connection(server.address) as client:
            requests = f"GET /{first} HTTP/1.1{lines}HEAD /medium.bin HTTP/1.1{lines}GET /sub/ HTTP/1.1{lines}"
            client.socket.sendall(requests.encode())
            assert client.answer().body == rows.content(0, 1000 if first == "small.txt" else 100_000)
            assert client.answer("HEAD").get("Content-Length") == "100000"
            assert client.answer().body == b"<p>index"


def test_many_pipelined(server: Server) -> None:
    """More requests than the buffer holds, all sent before the first answer is read; then half-closed."""
    with Connection(server.address) as client:
        count = 2000
        request = b"GET /small.txt HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-9\r\n\r\n"

        def send_all() -> None:
            client.socket.sendall(request * count)
            client.socket.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send_all)
        sender.start()
        for _ in range(count):
            response = client.answer()
            assert (response.status, response.body) == (206, rows.content(0, 10))
        sender.join()
        assert client.socket.recv(1) == b""


def test_head_byte_by_byte(server: Server) -> None:
    """A head that comes in single bytes is answered once, at its end."""
    with Connection(server.address) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in b"GET /small.txt HTTP/1.1\r\nHost: localhost\r\nRange: bytes=5-6\r\n\r\n":
                assert not client.pending
                client.socket.sendall(bytes([byte]))
            response = client.answer()
            assert (response.status, response.body) == (206, rows.content(5, 2))


def test_half_close(server: Server, site: Path, big: bytes) -> None:
    """A client that shuts its side after the request gets its whole answer, however long that takes."""
    make(site / "big.bin", big)
    for name, content in (("small.txt", rows.content(0, 1000)), ("big.bin", big)):
        with Connection(server.address) as client:
            client.send(f"GET /{name} HTTP/1.1", "Host: localhost")
            client.socket.shutdown(socket.SHUT_WR)
            assert client.answer().body == content
            assert client.socket.recv(1) == b""


def test_slow_reader_holds_nobody_up(server: Server, site: Path, big: bytes) -> None:
    """While one client does not read its 20 MiB, the others are answered; then it gets every byte."""
    make(site / "big.bin", big)
    with Connection(server.address, receive_buffer=4096) as slow:
        slow.send("GET /big.bin HTTP/1.1", "Host: localhost")
        slow.more()
        for _ in range(50):
            assert server.get("/small.txt").body == rows.content(0, 1000)
        # A second request while the first answer is stuck waits for its turn.
        slow.send("GET /small.txt HTTP/1.1", "Host: localhost")
        assert server.get("/medium.bin").status == 200
        assert slow.answer().body == big
        assert slow.answer().body == rows.content(0, 1000)


def test_reset_in_the_middle(server: Server, site: Path, big: bytes) -> None:
    """Clients that vanish cost nothing: no signal, no stuck server, no descriptor kept."""
    make(site / "big.bin", big)
    begin = server.descriptors()
    for orderly in (False, True):
        clients = []
        for _ in range(20):
            client = Connection(server.address, receive_buffer=4096)
            client.send("GET /big.bin HTTP/1.1", "Host: localhost")
            client.more()
            clients.append(client)
        for client in clients:
            client.socket.close() if orderly else client.reset()
        assert server.get("/small.txt").status == 200
        # Long before the time for clients that don't read is over.
        until(lambda: not [name for name in server.descriptors() if name not in begin and "/site/" not in name])


def test_descriptors_are_closed(server: Server, site: Path, big: bytes) -> None:
    """Whatever the answer: what was opened for it is closed, all but the files that are kept open for a while."""
    make(site / "big.bin", big)
    begin = server.descriptors()
    for _ in range(3):
        for name in ("small.txt", "medium.bin", "big.bin", "none", "%zz"):
            for fields in ([], ["Range: bytes=10-99999"], ["Range: bytes=1-2,50000-99999"], ['If-Match: "x"']):
                for method in ("GET", "HEAD", "PUT"):
                    server.get("/" + name, *fields, method=method)
    kept = [str(site / name) for name in ("small.txt", "medium.bin", "big.bin")]
    until(lambda: server.descriptors() == sorted(begin + kept))


def test_pipelined_behind_a_download(server: Server, site: Path, big: bytes) -> None:
    """Requests that come while a large file is sent are answered after it, in order, large and small."""
    make(site / "big.bin", big)
    with Connection(server.address, receive_buffer=4096) as client:
        client.send("GET /big.bin HTTP/1.1", "Host: localhost")
        client.more()  # so that the next ones find it under way
        for target, method in (("/big.bin", "HEAD"), ("/small.txt", "GET"), ("/big.bin", "GET"), ("/none", "GET")):
            client.send(f"{method} {target} HTTP/1.1", "Host: localhost")
        client.send("GET /medium.bin HTTP/1.1", "Host: localhost", "Range: bytes=5-9", "Connection: close")
        client.send("GET /small.txt HTTP/1.1", "Host: localhost")  # behind the end
        assert client.answer().body == big
        assert client.answer("HEAD").get("Content-Length") == str(BIG)
        assert client.answer().body == rows.content(0, 1000)
        assert client.answer().body == big
        assert client.answer().status == 404
        response = client.answer()
        assert (response.body, response.keep_alive) == (rows.content(5, 5), False)
        assert client.socket.recv(1) == b""


def test_truncated_file(server: Server, site: Path, big: bytes) -> None:
    """A file that shrinks while it is sent ends the connection short of the announced length."""
    path = make(site / "big.bin", big)
    with Connection(server.address, receive_buffer=4096) as client:
        client.send("GET /big.bin HTTP/1.1", "Host: localhost")
        assert client.head().get("Content-Length") == str(BIG)
        os.truncate(path, MIB)
        with pytest.raises(EOFError):
            while True:
                client.more()
        assert len(client.pending) < BIG
    assert server.get("/small.txt").status == 200


def test_resumed_download(server: Server, site: Path, big: bytes) -> None:
    """Cut off, then continued."""
    resume_download(server, site, big)


def test_parallel(server: Server, site: Path, big: bytes) -> None:
    """20 clients at once, each with its own mix."""
    make(site / "big.bin", big)
    wrong: list[str] = []

    def client(number: int) -> None:
        try:
            with Connection(server.address) as connection:
                for turn in range(5):
                    first = (number * 5 + turn) * 100_000
                    part = connection.get("/big.bin", f"Range: bytes={first}-{first + 1500_000 - 1}")
                    if part.body != big[first : first + 1500_000]:
                        wrong.append(f"client {number}: wrong range at {first}")
                    if connection.get("/small.txt").body != rows.content(0, 1000):
                        wrong.append(f"client {number}: wrong small file")
        except Exception as error:
            wrong.append(f"client {number}: {error!r}")

    threads = [threading.Thread(target=client, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- Files that change ----


def test_replaced_file_is_noticed(server: Server, site: Path) -> None:
    """Renamed over: old or new while in doubt, each whole; the new one after about a second. Removed: 404."""
    before, after = b"a" * 1000, b"b" * 2000
    make(site / "page.html", before)
    assert server.get("/page.html").body == before
    make(site / "page.new", after, OLD + 1).rename(site / "page.html")
    begin = time.monotonic()

    def is_new() -> bool:
        response = server.get("/page.html")
        assert response.body in (before, after)
        new = response.body == after
        assert response.get("ETag") == rows.entity_tag((OLD + new) * 10**9, 2000 if new else 1000)
        return new

    until(is_new)
    assert time.monotonic() - begin < 5
    (site / "page.html").unlink()
    until(lambda: server.get("/page.html").status == 404)


def test_rewritten_file_is_noticed_at_once(server: Server, site: Path) -> None:
    """Written in place: the next request already sees the new length, tag and bytes."""
    for n in range(1, 20):
        make(site / "log.txt", b"x" * n, OLD + n)
        response = server.get("/log.txt")
        assert response.body == b"x" * n
        assert response.get("ETag") == rows.entity_tag((OLD + n) * 10**9, n)


def test_missing_file_is_not_remembered(server: Server, site: Path) -> None:
    """404 turns into 200 as soon as the file is there."""
    assert server.get("/late.txt").status == 404
    make(site / "late.txt", b"here")
    assert server.get("/late.txt").body == b"here"


# ---- The process ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it(site: Path, big: bytes, number: int) -> None:
    """Ends with status 0 though connections are open and a response is under way."""
    make(site / "big.bin", big)
    with Server("fileserver", site) as server, Connection(server.address) as idle, Connection(server.address) as busy:
        assert idle.get("/small.txt").status == 200
        busy.send("GET /big.bin HTTP/1.1", "Host: localhost")
        busy.more()
        assert server.stop(number) == ""


def test_descriptors_exhausted(site: Path, options: tuple[str, ...]) -> None:
    """Out of descriptors it neither dies nor spins nor forgets the clients that wait."""
    with Server("fileserver", site, *options, max_files=24) as server:
        clients = [Connection(server.address) for _ in range(40)]
        assert clients[0].get("/small.txt").status in (200, 503)
        ticks = Path(f"/proc/{server.process.pid}/stat").read_text().split()[13:15]
        time.sleep(1.5)  # the time that is measured
        after = Path(f"/proc/{server.process.pid}/stat").read_text().split()[13:15]
        used = (sum(map(int, after)) - sum(map(int, ticks))) / os.sysconf("SC_CLK_TCK")
        assert used < 0.3, f"{used} s of CPU in 1.5 s with nothing to do"
        for client in clients[:30]:
            client.socket.close()
        for client in clients[30:]:
            assert client.get("/small.txt").body == rows.content(0, 1000)
            client.socket.close()
        assert server.stop() == ""


def test_bad_arguments(site: Path) -> None:
    """A clear error and a status other than 0."""
    right = ["0", str(site)]
    wrong = [[], ["0"], ["x", str(site)], ["70000", str(site)], ["0", str(site / "none")]]
    for arguments in [*wrong, *(["--offload", *rest] for rest in wrong), ["--of", *right], [*right, "--offload"]]:
        done = subprocess.run([str(PROGRAMS / "fileserver"), *arguments], capture_output=True, timeout=10)
        assert done.returncode != 0 and done.stderr, arguments
    with Server("fileserver", site) as server:
        arguments = [str(server.address[1]), str(site)]
        done = subprocess.run([str(PROGRAMS / "fileserver"), *arguments], capture_output=True, timeout=10)
        assert done.returncode == 1 and b"in use" in done.stderr


def strace_works() -> bool:
    """Whether strace is there and may trace."""
    return shutil.which("strace") is not None and subprocess.run(["strace", "-o", "/dev/null", "true"]).returncode == 0


def test_system_calls(site: Path, tmp_path: Path) -> None:
    """Steady state, besides epoll_wait and recv: the calls that examples/fileserver.c promises, and no others."""
    if not strace_works():
        pytest.skip("strace is not installed, or not permitted here")
    make(site / "edge.bin", rows.content(0, 16384))
    log = tmp_path / "strace"
    tag = rows.file_tag(site / "small.txt")
    one, few, many = ["fstat", "sendto"], ["fstat", "pread64", "sendto"], ["fstat", "sendto", "sendfile"]
    asked = [
        ("304", "GET", "/small.txt", [f"If-None-Match: {tag}"], one),
        ("head", "HEAD", "/medium.bin", [], one),
        ("412", "GET", "/small.txt", ['If-Match: "x"'], one),
        ("416", "GET", "/small.txt", ["Range: bytes=5000-"], one),
        # The pread makes sure that the file is empty: procfs says so of files that are not.
        ("empty", "GET", "/empty.html", [], few),
        ("200", "GET", "/small.txt", [], few),
        ("edge", "GET", "/edge.bin", [], few),
        ("206", "GET", "/medium.bin", ["Range: bytes=50000-50999"], few),
        ("large", "GET", "/medium.bin", [], many),
        ("206large", "GET", "/medium.bin", ["Range: bytes=1000-90000"], many),
    ]
    with Server("fileserver", site, prefix=("strace", "-f", "-s", "100", "-o", str(log))) as server:
        with Connection(server.address) as client:
            for name, method, path, fields, _ in asked:
                for turn in range(3):
                    client.get(f"{path}?{name}-{turn}", *fields, method=method)
        server.stop()

    calls: dict[str, list[str]] = {}
    current: list[str] = []
    for line in log.read_text().splitlines():
        call = re.sub(r"^\d+ +", "", line)
        name = call.split("(")[0]
        if name == "recvfrom":
            target = re.search(r"\?([0-9a-z]+-\d) HTTP", call)
            current = calls.setdefault(target[1], []) if target else []
        elif name == "newfstatat" and ', "", ' in call:
            current.append("fstat")  # what some C libraries make of it
        elif name in ("newfstatat", "stat", "statx"):
            pass  # at most once a second per file: which file the path means
        elif name != "epoll_wait":
            current.append(name)
    for name, _, _, _, want in asked:
        # The first one opens the file.
        assert [calls[f"{name}-1"], calls[f"{name}-2"]] == [want, want], name


def test_offload_system_calls(site: Path, tmp_path: Path) -> None:
    """Steady state with a sender: what is not large is sent by the loop and costs the thread nothing; of what is the
    loop sends nothing, and the thread does nothing but send it and say so."""
    if not strace_works():
        pytest.skip("strace is not installed, or not permitted here")
    log = tmp_path / "strace"
    small, medium, large = ("/small.txt", 1000), ("/medium.bin", 100_000), ("/large.bin", MIB + 1)
    make(site / "large.bin", rows.content(0, large[1]))
    tag = rows.file_tag(site / "small.txt")
    with Server("fileserver", site, "--offload", prefix=("strace", "-f", "-s", "100", "-o", str(log))) as server:
        with Connection(server.address) as client:
            for turn in range(3):
                for path, length in (small, medium, large):
                    assert client.get(f"{path}?{length}-{turn}").body == rows.content(0, length)
                assert client.get(f"/small.txt?304-{turn}", f"If-None-Match: {tag}").status == 304
            # Received after the completion of the one before was taken.
            client.get("/small.txt?last")
        server.stop()

    calls: dict[str, tuple[list[str], list[str]]] = {}
    loop, thread = calls.setdefault("before", ([], []))
    main = None
    for line in log.read_text().splitlines():
        # A call during which the other thread made one stands in two lines, and what was received in the second.
        match = re.match(r"(\d+) +(\w+\(|<\.\.\. recvfrom resumed>)(.*)", line)
        if not match:
            continue
        pid, name, rest = match[1], match[2].rstrip("("), match[3]
        main = main or pid
        if "recvfrom" in name:
            target = re.search(r"\?([0-9a-z-]+) HTTP", rest)
            if target:
                loop, thread = calls.setdefault(target[1], ([], []))
        elif name in ("epoll_wait", "futex", "sched_yield"):
            pass  # as it comes: the processor is offered to others after half a millisecond, which is soon under strace
        elif name == "newfstatat" and ', "", ' in rest:
            loop.append("fstat")
        elif name in ("newfstatat", "stat", "statx"):
            pass  # at most once a second per file: which file the path means
        elif name not in ("preadv2", "getsockopt", "setsockopt"):  # what is in the page cache, and TCP_CORK
            (loop if pid == main else thread).append(name)
    for turn in (1, 2):  # the first ones open the files
        assert calls[f"304-{turn}"] == (["fstat", "sendto"], [])
        assert calls[f"1000-{turn}"] == (["fstat", "pread64", "sendto"], [])
        loop, thread = calls[f"100000-{turn}"]
        assert loop == ["fstat", "fcntl", "sendto", "sendfile"] and not thread, (loop, thread)
        loop, thread = calls[f"{large[1]}-{turn}"]
        assert set(loop) <= {"fstat", "fcntl", "write", "read"}, loop
        assert [name for name in loop if name in ("fstat", "read")] == ["fstat", "read"]
        assert loop.count("write") <= 1
        assert thread[:2] == ["sendto", "sendfile"], thread
        assert [name for name in thread[2:] if name != "sendfile"] == ["close", "close", "write"], thread


def test_valgrind(site: Path, big: bytes, options: tuple[str, ...]) -> None:
    """No invalid access, no leak, no descriptor left, also with connections in every state at the end."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    make(site / "big.bin", big)
    check = ("valgrind", "--leak-check=full", "--errors-for-leak-kinds=all", "--error-exitcode=9", "--track-fds=yes")
    with Server("fileserver", site, *options, prefix=check) as server:
        assert server.get("/small.txt").status == 200
        assert server.get("/small.txt", "Range: bytes=0-1,5-6").status == 206
        assert server.get("/medium.bin", "Range: bytes=0-49999,60000-99999").status == 206
        assert server.get("/big.bin", "Range: bytes=5-6000000").body == big[5:6000001]
        for target in ("/none", "/sub", "/%zz", "/../secret.txt"):
            assert server.get(target).status != 200
        vanished = Connection(server.address)
        vanished.send("GET /big.bin HTTP/1.1", "Host: localhost")
        vanished.more()
        vanished.reset()
        with Connection(server.address) as lingering:
            lingering.socket.sendall(b"nonsense\r\n\r\n")
            assert lingering.answer().status == 400
            with Connection(server.address) as partial, Connection(server.address) as busy:
                partial.socket.sendall(b"GET /small")
                busy.send("GET /big.bin HTTP/1.1", "Host: localhost")
                busy.more()
                assert server.get("/small.txt").status == 200
                report = server.stop()
    # The three standard streams are all that is open.
    assert re.search(r"FILE DESCRIPTORS: (\d+) open \(\1 std\)|FILE DESCRIPTORS: 3 open", report), report
    assert "ERROR SUMMARY: 0 errors" in report


# ---- A background sender ----


def stalled(server: Server, count: int) -> list[Connection]:
    """Clients that have asked for /big.bin, and have stopped reading it."""
    clients = []
    for _ in range(count):
        client = Connection(server.address, receive_buffer=4096)
        client.send("GET /big.bin HTTP/1.1", "Host: localhost")
        assert client.head().status == 200
        clients.append(client)
    return clients


def test_offload_stalled_clients_hold_nobody_up(offloading: Server, site: Path, big: bytes) -> None:
    """With 200 downloads that stand still, others are answered, small and large; then all 200 could go on."""
    make(site / "big.bin", big)
    clients = stalled(offloading, 200)
    for _ in range(20):
        assert offloading.get("/small.txt").body == rows.content(0, 1000)
        assert offloading.get("/medium.bin").body == rows.content(0, 100_000)
    assert offloading.get("/big.bin").body == big
    for client in clients:
        client.more()
        client.more()
        client.socket.close()


def test_offload_full(site: Path, big: bytes) -> None:
    """With as many downloads as the sender takes, one more is answered 503, and can ask again when one has ended. What
    needs no place is answered all the time."""
    make(site / "big.bin", big)
    with Server("fileserver", site, "--offload", max_files=120) as server:
        clients = stalled(server, 120 * 2 // 5)
        with Connection(server.address) as late:
            for _ in range(3):
                response = late.get("/big.bin")
                assert (response.status, response.keep_alive) == (503, True)
                assert int(response.get("Retry-After") or "0") > 0
                assert late.get("/small.txt").body == rows.content(0, 1000)
                assert late.get("/big.bin", method="HEAD").status == 200
            clients.pop().reset()
            # More than leaves at once, which needs a place.
            until(lambda: late.get("/big.bin", f"Range: bytes=0-{MIB}").status == 206)
            assert late.get("/big.bin").body == big
        for client in clients:
            client.reset()
        assert server.stop() == ""


def stop_seconds() -> int:
    """How long the file server waits for downloads when it is told to end."""
    source = (ROOT / "examples" / "fileserver.c").read_text()
    return int(re.findall(r"STOP_SECONDS = (\d+)", source)[0])


def refuses(address: tuple[str, int]) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as client:
        return client.connect_ex(address) == errno.ECONNREFUSED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_offload_signal_lets_downloads_end(site: Path, big: bytes, number: int) -> None:
    """Told to end, the server refuses new clients, completes what it is sending, answers nothing else, and is gone."""
    make(site / "big.bin", big)
    with Server("fileserver", site, "--offload") as server:
        clients = [Connection(server.address) for _ in range(3)]
        for client in clients:
            client.send("GET /big.bin HTTP/1.1", "Host: localhost")
            client.more()
            client.send("GET /small.txt HTTP/1.1", "Host: localhost")
        begin = time.monotonic()
        server.process.send_signal(number)
        until(lambda: refuses(server.address))

        def read(client: Connection) -> str:
            right = client.answer().body == big
            return f"{right}, then {client.socket.recv(1)!r}"  # an orderly end: a reset would raise

        with ThreadPoolExecutor(len(clients)) as threads:
            assert list(threads.map(read, clients)) == ["True, then b''"] * len(clients)
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - begin < stop_seconds()


def test_offload_signal_and_a_client_that_does_not_read(site: Path, big: bytes) -> None:
    """Told to end, the server waits for a stalled client, but only as long as it says."""
    make(site / "big.bin", big)
    with Server("fileserver", site, "--offload") as server:
        [client] = stalled(server, 1)
        begin = time.monotonic()
        assert server.stop() == ""
        assert stop_seconds() - 0.1 < time.monotonic() - begin < stop_seconds() + 5
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                client.more()
        assert len(client.pending) < BIG
        client.socket.close()


# ---- hello ----


def test_hello(site: Path) -> None:
    """The README's example answers conditions and ranges, and stays within its directory."""
    with Server("hello", site) as server:
        response = server.get("/small.txt")
        assert (response.status, response.body, response.keep_alive) == (200, rows.content(0, 1000), False)
        assert server.get("/small.txt", "Range: bytes=-10").body == rows.content(990, 10)
        assert server.get("/small.txt", f"If-None-Match: {response.get('ETag')}").status == 304
        assert server.get("/medium.bin").body == rows.content(0, 100_000)
        for target in ("/none", "/../secret.txt", "/sub"):
            assert server.get(target).status == 404


# ---- offload ----


def test_offload_example(site: Path, big: bytes) -> None:
    """The small example of a sender in a foreign loop: pipelined, resumed, half-closed and refused requests."""
    make(site / "big.bin", big)
    with Server("offload", site) as server:
        begin = server.descriptors()
        with Connection(server.address) as client:
            for target in ("/small.txt?x", "/big.bin", "/none", "/medium.bin"):
                client.send(f"GET {target} HTTP/1.1", "Host: localhost")
            client.send("HEAD /big.bin HTTP/1.1", "Host: localhost")
            assert client.answer().body == rows.content(0, 1000)
            assert client.answer().body == big
            response = client.answer()
            assert (response.status, response.body, response.keep_alive) == (404, b"Not found\n", True)
            assert client.answer().body == rows.content(0, 100_000)
            assert client.answer("HEAD").get("Content-Length") == str(BIG)
            part = client.get("/big.bin", f"Range: bytes={BIG - 5}-")
            assert (part.status, part.body) == (206, big[-5:])
            client.send("GET /big.bin HTTP/1.1", "Host: localhost")
            client.socket.shutdown(socket.SHUT_WR)
            assert client.answer().body == big
            assert client.socket.recv(1) == b""
        assert server.get("/small.txt", version="1.0").body == rows.content(0, 1000)
        for outside in ("/../secret.txt", "//etc/passwd", "/sub"):
            assert server.get(outside).status == 404
        for refused in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 9000):
            with Connection(server.address) as client:
                client.socket.sendall(refused)
                with pytest.raises((EOFError, ConnectionResetError)):
                    client.more()
        until(lambda: server.descriptors() == begin)


def test_offload_example_does_not_wait(site: Path, big: bytes) -> None:
    """Clients that stall, send half a request, or vanish hold nobody up; nor does a signal end the server."""
    make(site / "big.bin", big)
    with Server("offload", site) as server:
        ignored = re.findall(r"SigIgn:\s+(\w+)", Path(f"/proc/{server.process.pid}/status").read_text())
        assert not int(ignored[0], 16) & 1 << (signal.SIGPIPE - 1)  # otherwise there is nothing to see
        begin = server.descriptors()
        clients = stalled(server, 50)
        with Connection(server.address) as half:
            half.socket.sendall(b"GET /small")
            for client in clients[::2]:
                client.reset()
            assert server.get("/medium.bin").body == rows.content(0, 100_000)
            assert server.get("/big.bin").body == big
            half.socket.sendall(b".txt HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert half.answer().body == rows.content(0, 1000)
        for client in clients[1::2]:
            client.socket.close()
        until(lambda: server.descriptors() == begin)


# ---- stream ----


@pytest.fixture(scope="module")
def streaming() -> Iterator[Server]:
    """The streaming server, whose clock ticks every half second."""
    with Server("stream", "500") as server:
        yield server


class ChunkReader(Connection):
    """A client that reads content in chunks, one at a time."""

    def line(self) -> bytes:
        """Up to the next line's end."""
        while b"\r\n" not in self.pending:
            self.more()
        line, _, self.pending = self.pending.partition(b"\r\n")
        return line

    def chunk(self) -> bytes:
        """The next chunk; b"" is the last, and trailers follow."""
        size = int(self.line(), 16)
        if size == 0:
            return b""
        while len(self.pending) < size + 2:
            self.more()
        data, end, self.pending = self.pending[:size], self.pending[size : size + 2], self.pending[size + 2 :]
        assert end == b"\r\n"
        return data

    def chunks(self) -> tuple[list[bytes], list[bytes]]:
        """All chunks, and all trailers."""
        chunks = list(iter(self.chunk, b""))
        return chunks, list(iter(self.line, b""))


def primes() -> bytes:
    """What /primes has to say."""
    composite = bytearray(1000000)
    for n in range(2, 1000):
        if not composite[n]:
            composite[n * n :: n] = b"\1" * len(range(n * n, 1000000, n))
    return b"".join(b"%d\n" % n for n in range(2, 1000000) if not composite[n])


def table(first: int, last: int) -> bytes:
    """These bytes of /table, both included."""
    rows = b"".join(b"row %011d\n" % row for row in range(first // 16, last // 16 + 1))
    return rows[first % 16 :][: last - first + 1]


def test_stream_each_chunk_is_there_before_the_next_is_made(streaming: Server) -> None:
    """A line of the clock has come before the time that the next one tells."""
    attempts = []
    # Where others use the processors too, we may be those who are late.
    for _ in range(5):
        with ChunkReader(streaming.address) as client:
            client.send("GET /clock HTTP/1.1", "Host: localhost")
            assert client.head().get("Transfer-Encoding") == "chunked"
            came, in_time = 0.0, []
            for _ in range(4):
                made = float(client.chunk())
                in_time.append(came < made and client.pending == b"")
                came = time.time()
        if all(in_time):
            return
        attempts.append(in_time)
    pytest.fail(f"whether each was there in time: {attempts}")


def test_stream_ends_when_its_client_leaves(streaming: Server) -> None:
    """The clock stops for a client that has gone, and its connection is closed."""
    until(lambda: len([name for name in streaming.descriptors() if name.startswith("socket:")]) == 1)
    for leave in (Connection.reset, lambda client: client.socket.close()):
        client = ChunkReader(streaming.address)
        client.send("GET /clock HTTP/1.1", "Host: localhost")
        client.head()
        client.chunk()
        assert len([name for name in streaming.descriptors() if name.startswith("socket:")]) == 2
        leave(client)
        until(lambda: len([name for name in streaming.descriptors() if name.startswith("socket:")]) == 1)


def test_stream_chunks_and_trailers(streaming: Server) -> None:
    """Content of unknown length is in chunks, with trailers behind it, and the connection goes on."""
    with ChunkReader(streaming.address) as client:
        for _ in range(2):
            client.send("GET /primes HTTP/1.1", "Host: localhost", "Range: bytes=0-9")
            head = client.head()
            assert (head.status, head.get("Content-Length"), head.get("Accept-Ranges")) == (200, None, None)
            chunks, trailers = client.chunks()
            assert b"".join(chunks) == primes() and len(chunks) > 10
            assert trailers == [b"Prime-Count: 78498"]
        # It has no content now: nothing is in the way of the next answer.
        assert client.get("/primes", 'If-None-Match: "primes"').status == 304
        head = client.get("/clock", method="HEAD")
        assert (head.status, head.get("Content-Length"), head.get("Transfer-Encoding")) == (200, None, None)
        assert client.get("/nothing").status == 404
        assert client.pending == b""


def test_stream_http10(streaming: Server) -> None:
    """HTTP/1.0 doesn't know chunks: the content ends with the connection."""
    with Connection(streaming.address) as client:
        client.send("GET /primes HTTP/1.0", "Connection: keep-alive")
        head = client.head()
        assert (head.get("Transfer-Encoding"), head.get("Content-Length")) == (None, None)
        with pytest.raises(EOFError):
            while True:
                client.more()
        assert client.pending == primes()


def test_stream_of_a_known_length(streaming: Server) -> None:
    """It is announced, and pipelined answers follow each other."""
    squares = b"".join(b"%9d\n" % (n * n) for n in range(1, 10001))
    with Connection(streaming.address) as client:
        for _ in range(3):
            client.send("GET /squares HTTP/1.1", "Host: localhost", "Range: bytes=0-9")
        for _ in range(3):
            answer = client.answer()
            assert (answer.status, answer.get("Accept-Ranges"), answer.body) == (200, None, squares)
        assert client.get("/squares", "If-None-Match: *").status == 304


@pytest.mark.parametrize(
    ("first", "last"), [(0, 0), (5, 20), (30, 200000), (4294967290, 4294967310), (15999990000, 15999999999)]
)
def test_stream_ranges(streaming: Server, first: int, last: int) -> None:
    """Any part of what exists nowhere is made when it is asked for."""
    with Connection(streaming.address) as client:
        answer = client.get("/table", f"Range: bytes={first}-{last}", 'If-Range: "table"')
        assert answer.status == 206
        assert answer.get("Content-Range") == f"bytes {first}-{last}/16000000000"
        assert answer.body == table(first, last)


def test_stream_several_ranges(streaming: Server) -> None:
    """One behind the other, as multipart/byteranges; and none of them, or none at all."""
    with Connection(streaming.address) as client:
        answer = client.get("/table", "Range: bytes=100-8191,7000000000-7000000099,-5")
        assert answer.status == 206
        boundary = (answer.get("Content-Type") or "").partition("boundary=")[2].encode()
        wanted = [(100, 8191), (7000000000, 7000000099), (15999999995, 15999999999)]
        body = b""
        for first, last in wanted:
            body += b"\r\n--" + boundary + b"\r\nContent-Type: text/plain\r\n"
            body += b"Content-Range: bytes %d-%d/16000000000\r\n\r\n" % (first, last) + table(first, last)
        assert answer.body == body[2:] + b"\r\n--" + boundary + b"--\r\n"
        answer = client.get("/table", "Range: bytes=16000000000-")
        assert (answer.status, answer.get("Content-Range")) == (416, "bytes */16000000000")
        answer = client.get("/table", method="HEAD")
        assert (answer.status, answer.get("Content-Length")) == (200, "16000000000")
        assert client.pending == b""
