"""``python -m sendgate``: a real process, real sockets, curl where a user would use it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import Server, running_server, split

Serve = Callable[..., Server]
OLD = 784111777
CURL = shutil.which("curl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a little of everything."""
    root = tmp_path / "root"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("hello\n")
    (root / "sub" / "b.html").write_text("<p>b</p>")
    os.utime(root / "a.txt", (OLD, OLD))
    return root


# ---- Files ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.html", "text/html"),
        ("a.png", "image/png"),
        ("a.json", "application/json"),
        ("a.tar.gz", "application/gzip"),
        ("a.txt.gz", "application/gzip"),
        ("a.txt.xz", "application/x-xz"),
        ("a", "application/octet-stream"),
        ("a.unknown-type", "application/octet-stream"),
        ("A.PNG", "image/png"),
    ],
)
def test_media_types(serve: Serve, folder: Path, name: str, expected: str) -> None:
    """The type follows the name; text has a charset unless it can say its own; nothing is called a coding."""
    (folder / name).write_bytes(b"x")
    status, fields, _ = serve(folder).get("/" + name)
    assert (status, fields["content-type"]) == (200, expected)
    assert "content-encoding" not in fields


@pytest.mark.parametrize(
    "name", ["with space.txt", "ü.txt", "a%b?c#d.txt", "a&b<c>.txt", "a\\b.txt", "x:y.txt", "\udcff.txt"]
)
def test_names_of_all_kinds(serve: Serve, folder: Path, name: str) -> None:
    """A file is found under the link that the index gives it, whatever its name is."""
    raw = os.fsencode(folder) + b"/sub/" + os.fsencode(name)
    with open(raw, "wb") as file:
        file.write(b"found")
    server = serve(folder)
    index = server.get("/sub/")[2].decode("utf-8", "surrogateescape")
    links = re.findall(r'href="\./([^"]*)"', index)
    (link,) = (link for link in links if link not in ("b.html", "deep/"))
    assert server.get("/sub/" + link)[::2] == (200, b"found")


def test_empty_file(serve: Serve, folder: Path) -> None:
    """An empty file is a 200 of length 0, also when a range is asked for."""
    (folder / "empty").touch()
    server = serve(folder)
    for fields in ((), ("Range: bytes=0-",)):
        status, answer, body = server.get("/empty", *fields)
        assert (status, answer["content-length"], body) == (200, "0", b"")


def test_head(serve: Serve, folder: Path) -> None:
    """HEAD is the GET without its body, for files, indexes, redirects and errors."""
    server = serve(folder)
    for target in ("/a.txt", "/sub/", "/sub", "/missing"):
        got = server.get(target)
        head = server.get(target, method="HEAD")
        assert head[2] == b""
        assert got[2]
        assert head[0] == got[0]
        for fields in (got[1], head[1]):
            fields.pop("date")
        assert head[1] == got[1]


def test_a_hole_past_two_gigabytes(serve: Serve, folder: Path) -> None:
    """A range across 2^31 of a 3 GiB file, and its last byte."""
    with (folder / "big").open("wb") as file:
        file.truncate(3 << 30)
        file.seek((1 << 31) - 5)
        file.write(b"0123456789")
        file.seek((3 << 30) - 1)
        file.write(b"$")
    server = serve(folder)
    status, fields, body = server.get("/big", f"Range: bytes={(1 << 31) - 6}-{(1 << 31) + 5}")
    assert (status, body) == (206, b"\x000123456789\x00")
    assert fields["content-range"] == f"bytes {(1 << 31) - 6}-{(1 << 31) + 5}/{3 << 30}"
    assert server.get("/big", "Range: bytes=-1")[2] == b"$"
    assert server.get("/big", method="HEAD")[1]["content-length"] == str(3 << 30)


def test_replaced_while_sent(serve: Serve, folder: Path) -> None:
    """A download goes on with the file that it began with, though another has taken its name."""
    data = os.urandom(8 << 20)
    (folder / "file").write_bytes(data)
    server = serve(folder)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        first = connection.recv(1000)
        (folder / "new").write_bytes(b"new")
        (folder / "new").rename(folder / "file")
        rest = bytearray(first)
        while chunk := connection.recv(1 << 20):
            rest += chunk
    assert split(bytes(rest))[2] == data
    assert server.get("/file")[2] == b"new"


def test_truncated_while_sent(serve: Serve, folder: Path) -> None:
    """A download of a file that shrinks ends early, by a close; the log says why."""
    (folder / "file").write_bytes(b"x" * (32 << 20))
    server = serve(folder)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        received = len(connection.recv(1000))
        os.truncate(folder / "file", 20 << 20)
        while chunk := connection.recv(1 << 20):
            received += len(chunk)
    assert received < 21 << 20
    wait_for(lambda: "changed while it was sent" in server.log)
    assert re.search(r'"GET /file HTTP/1.1" 200 \d+\n', server.log)


# ---- The index ----


def test_index(serve: Serve, folder: Path) -> None:
    """Names sorted regardless of case, folders with a slash, sizes, dates; all escaped."""
    (folder / "B.txt").write_bytes(b"x" * 1234)
    os.utime(folder / "B.txt", (OLD, OLD))
    (folder / "<script>&.txt").touch()
    status, fields, body = serve(folder).get("/")
    page = body.decode()
    assert (status, fields["content-type"]) == (200, "text/html; charset=utf-8")
    names = re.findall(r'<tr><td><a href="[^"]*">(.*?)</a>', page)
    assert names == ["&lt;script&gt;&amp;.txt", "a.txt", "B.txt", "sub/"]
    assert "<script>" not in page
    assert 'href="./%3Cscript%3E%26.txt"' in page
    assert '<td class="n">1234</td><td>1994-11-06 08:49:37</td>' in page


def test_index_of_a_folder_within(serve: Serve, folder: Path) -> None:
    """A folder's index has a way up, and its title is escaped."""
    name = '"><script>'
    (folder / name / "x").mkdir(parents=True)
    server = serve(folder)
    page = server.get("/%22%3E%3Cscript%3E/")[2].decode()
    assert 'href="../"' in page
    assert "<script>" not in page
    assert "Index of /&quot;&gt;&lt;script&gt;/" in page


def test_index_leaves_out_what_is_not_served(serve: Serve, folder: Path, tmp_path: Path) -> None:
    """A FIFO, a link to nothing and a link that leads out are not in the index; a link within is."""
    (tmp_path / "secret").write_text("secret")
    os.mkfifo(folder / "fifo")
    (folder / "dangling").symlink_to("nothing")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "within").symlink_to("sub")
    names = re.findall(r'<tr><td><a href="\./([^"]*)"', serve(folder).get("/")[2].decode())
    assert names == ["a.txt", "sub/", "within/"]
    names = re.findall(r'<tr><td><a href="\./([^"]*)"', serve(folder, "--follow-symlinks").get("/")[2].decode())
    assert names == ["a.txt", "out", "sub/", "within/"]


@pytest.mark.parametrize("name", ["index.html", "index.htm"])
def test_index_file(serve: Serve, folder: Path, name: str) -> None:
    """A folder's own index is served in place of the list, with conditions and ranges."""
    (folder / "sub" / name).write_text("own index")
    server = serve(folder)
    status, fields, body = server.get("/sub/")
    assert (status, body, fields["content-type"]) == (200, b"own index", "text/html")
    assert server.get("/sub/", f"If-None-Match: {fields['etag']}")[0] == 304
    (folder / "sub" / "index.html").write_text("the first")
    assert server.get("/sub/")[2] == b"the first"


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/sub", "/sub/"),
        ("/sub?a=b&c=%20", "/sub/?a=b&c=%20"),
        ("/sub/deep", "/sub/deep/"),
        ("//sub", "/sub/"),
        ("///sub//deep", "/sub/deep/"),
        ("/./sub", "/sub/"),
        ("/x/../sub", "/sub/"),
        ("//sub/..%2fsub", "/sub/"),
        ("/%5cevil.example", "/%5Cevil.example/"),
        ('/sub?"<>', "/sub/?%22%3C%3E"),
        ("http://other.example/sub", "/sub/"),
    ],
)
def test_redirect(serve: Serve, folder: Path, target: str, location: str) -> None:
    """A folder without its slash is redirected on this server, its query kept; never to another host."""
    (folder / "\\evil.example").mkdir()
    status, fields, _ = serve(folder).get(target)
    assert (status, fields["location"]) == (301, location)


# ---- Beneath the folder, and nowhere else ----


@pytest.mark.parametrize(
    "target",
    [
        "/../secret",
        "/..%2fsecret",
        "/%2e%2e/secret",
        "/sub/../../secret",
        "/sub/%2e%2e%2f%2e%2e%2fsecret",
        "/..\\secret",
        "/%2f{tmp}/secret",
        "//{tmp}/secret",
        "/out",
        "/out/",
        "/outdir/secret",
        "/outdir/",
        "/a.txt/",
        "/a.txt/x",
        "/missing",
        "/missing/",
        "/" + "x" * 300,
        "/" + "x/" * 3000,
    ],
)
def test_what_is_not_there(serve: Serve, folder: Path, tmp_path: Path, target: str) -> None:
    """Whatever the path says, what isn't beneath the folder is not found."""
    (tmp_path / "secret").write_text("secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "outdir").symlink_to(tmp_path)
    status, _, body = serve(folder).get(target.format(tmp=tmp_path))
    assert status == 404
    assert b"secret" not in body


def test_links(serve: Serve, folder: Path, tmp_path: Path) -> None:
    """A link within is followed; one that leads out only if asked for, and then folders too."""
    (tmp_path / "secret").write_text("secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "outdir").symlink_to(tmp_path)
    (folder / "within").symlink_to("a.txt")
    (folder / "withindir").symlink_to("sub")
    server = serve(folder)
    assert server.get("/within")[2] == b"hello\n"
    assert server.get("/withindir/b.html")[2] == b"<p>b</p>"
    assert server.get("/withindir/")[0] == 200
    server = serve(folder, "--follow-symlinks")
    assert server.get("/out")[2] == b"secret"
    assert server.get("/outdir/secret")[2] == b"secret"
    assert b"secret" in server.get("/outdir/")[2]
    assert server.get("/../secret")[0] == 404


def test_a_link_swapped_in(folder: Path, tmp_path: Path) -> None:
    """A folder that became a link leading out, between the search for its index and its opening, is refused."""
    from sendgate import _server

    (folder / "outdir").symlink_to(tmp_path)
    (folder / "within").symlink_to("sub")
    with _server.DirectoryServer(("127.0.0.1", 0), str(folder)) as server:
        handler = _server.Handler.__new__(_server.Handler)
        handler.server = server
        with pytest.raises(OSError, match="cross-device"):
            handler._open_directory(b"outdir")
        os.close(handler._open_directory(b"within"))
        os.close(handler._open_directory(b""))


def test_a_served_link_to_the_folder(serve: Serve, folder: Path, tmp_path: Path) -> None:
    """The folder itself may be named by a link."""
    (tmp_path / "link").symlink_to(folder)
    server = serve(tmp_path / "link")
    assert server.get("/a.txt")[2] == b"hello\n"
    assert server.get("/sub/")[0] == 200


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_what_is_no_file_does_not_hang(serve: Serve, folder: Path, kind: str) -> None:
    """A FIFO or a socket is refused at once."""
    if kind == "fifo":
        os.mkfifo(folder / "special")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(folder, os.O_RDONLY)
            listener.bind(f"/proc/self/fd/{here}/special")  # short enough for a socket's name
            os.close(here)
    server = serve(folder)
    started = time.monotonic()
    assert server.get("/special")[0] in (403, 404, 500)
    assert time.monotonic() - started < 5


def test_unreadable_file(serve: Serve, folder: Path) -> None:
    """What may not be read is 403 (root may read it)."""
    (folder / "a.txt").chmod(0)
    assert serve(folder).get("/a.txt")[0] == (200 if os.geteuid() == 0 else 403)


# ---- Requests ----


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "BREW"])
def test_other_methods(serve: Serve, folder: Path, method: str) -> None:
    """405 with Allow, and the connection stays usable if nothing was announced."""
    server = serve(folder)
    answer = server.raw(f"{method} /a.txt HTTP/1.1\r\nHost: x\r\n\r\nGET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"405", b"200"]
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n X: folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET a.txt HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_bad_requests(serve: Serve, folder: Path, request_: bytes) -> None:
    """400, once; nothing behind a malformed head is taken for a request."""
    server = serve(folder)
    answer = server.raw(request_)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"400"]
    wait_for(lambda: " 400 " in server.log)
    assert "Traceback" not in server.log


def test_too_long_a_head(serve: Serve, folder: Path) -> None:
    """A head of more than 64 KiB is refused and not read to its end, however long it is."""
    server = serve(folder)
    answer = server.raw(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000 + b"\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"431"]
    assert server.get("/a.txt", "X: " + "x" * 60_000)[0] == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("framing", ["Content-Length: 300000", "Transfer-Encoding: chunked"])
def test_unread_content(serve: Serve, folder: Path, method: str, framing: str) -> None:
    """A request with content is answered, and then closed; the content is never taken for a request."""
    server = serve(folder)
    request = f"{method} /a.txt HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode()
    content = b"GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n" * 9000
    answer = server.raw(request + content[:300_000])
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200" if method == "GET" else b"405"]
    assert b"\r\nConnection: close\r\n" in answer


def test_a_client_that_is_still_sending(serve: Serve, folder: Path) -> None:
    """Content that comes after the answer meets no reset, which could cost the client the answer (RFC 9112 9.6)."""
    server = serve(folder)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /a.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n")
        answer = bytearray()
        while chunk := connection.recv(1 << 16):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 405 ")
        for _ in range(4):
            connection.sendall(b"x" * 100_000)
            time.sleep(0.01)  # a reset would need a moment to arrive


def test_expect_continue(serve: Serve, folder: Path) -> None:
    """Who waits for a 100 gets the final answer at once (RFC 9110 10.1.1)."""
    server = serve(folder)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /a.txt HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 405"


def test_pipelining(serve: Serve, folder: Path) -> None:
    """Requests in one segment are answered in their order, HEAD without a body."""
    requests = [
        ("GET", ""),
        ("HEAD", ""),
        ("GET", "Range: bytes=1-3\r\n"),
        ("GET", "If-None-Match: *\r\n"),
        ("GET", ""),
    ]
    raw = "".join(f"{method} /a.txt HTTP/1.1\r\nHost: x\r\n{field}\r\n" for method, field in requests)
    answer = serve(folder).raw(raw.encode() * 20)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"200", b"206", b"304", b"200"] * 20
    bodies = re.findall(rb"\r\n\r\n(.*?)(?=HTTP/1.1|\Z)", answer, re.DOTALL)
    assert bodies == [b"hello\n", b"", b"ell", b"", b"hello\n"] * 20


def test_a_request_byte_by_byte(serve: Serve, folder: Path) -> None:
    """A head that arrives in pieces is whole in the end; empty lines before it are nothing."""
    server = serve(folder)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\r\n\r\nGET /a.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
            connection.send(bytes([byte]))
        answer = bytearray()
        while chunk := connection.recv(1 << 16):
            answer += chunk
    assert split(bytes(answer))[2] == b"hello\n"


def test_raw_bytes_in_fields(serve: Serve, folder: Path) -> None:
    """Field values reach the library as the bytes they are, 0x80 to 0xFF and 0x85 included, on several lines."""
    server = serve(folder)
    tag = server.get("/a.txt")[1]["etag"]
    others = '"\x85\xe9\xff", "\x1c"'
    assert server.get("/a.txt", f"If-None-Match: {others.replace(chr(0x1C), '')}", f"If-None-Match: {tag}")[0] == 304


def test_http10(serve: Serve, folder: Path) -> None:
    """HTTP/1.0 without Host is answered and closed, or kept if it asks for that."""
    server = serve(folder)
    assert split(server.raw(b"GET /a.txt HTTP/1.0\r\n\r\n"))[::2] == (200, b"hello\n")
    twice = server.raw(b"GET /a.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)
    assert twice.count(b"hello\n") == 2
    assert twice.count(b"Connection: keep-alive\r\n") == 2
    assert server.raw(b"GET /a.txt HTTP/1.0\r\n\r\n" * 2).count(b"hello\n") == 1


# ---- Connections ----


def test_many_connections_at_once(serve: Serve, folder: Path) -> None:
    """200 clients that connect before any of them sends are all answered."""
    server = serve(folder)
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(200)]
    for connection in connections:
        connection.sendall(b"GET /a.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for connection in connections:
        with connection:
            assert connection.recv(12) == b"HTTP/1.1 200"


def test_stalled_downloads_do_not_hold_others(serve: Serve, folder: Path) -> None:
    """Clients that stop reading keep nobody else waiting, and their going away is no error worth a traceback."""
    (folder / "big").write_bytes(b"x" * (16 << 20))
    server = serve(folder)
    stalled = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(20)]
    for connection in stalled:
        connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
    started = time.monotonic()
    assert server.get("/a.txt")[0] == 200
    assert time.monotonic() - started < 2
    for connection in stalled:
        connection.close()
    wait_for(lambda: server.log.count('"GET /big HTTP/1.1" 200 ') == 20)
    assert "Traceback" not in server.log


def test_idle_connections_are_closed(folder: Path) -> None:
    """A connection on which nothing comes is closed after the handler's timeout, with or without half a head."""
    script = (
        "import sys\nfrom sendgate import _server\n_server.Handler.timeout = 0.3\n"
        f"server = _server.DirectoryServer(('127.0.0.1', 0), {str(folder)!r})\n"
        "print(server.server_address[1], flush=True)\nserver.serve_forever()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        port = int(process.stdout.readline())
        for start in (b"", b"GET / HT", b"GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n"):
            started = time.monotonic()
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(start)
                while connection.recv(1 << 16):
                    pass
                assert 0.2 < time.monotonic() - started < 10
    finally:
        process.terminate()
        errors = process.communicate()[1]
    assert "Traceback" not in errors


def test_descriptors_are_given_back(serve: Serve, folder: Path) -> None:
    """After thousands of answers of every kind the process has as many descriptors as before."""
    (folder / "big").write_bytes(b"x" * (4 << 20))
    server = serve(folder)

    def count() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    server.get("/a.txt")
    before = count()
    targets = ("/a.txt", "/", "/sub", "/sub/", "/missing", "/../x", "/a.txt/")
    pipelined = "".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n" for target in targets * 50)
    for _ in range(4):
        server.raw(pipelined.encode())
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(10)
    wait_for(lambda: count() <= before)


def test_one_open_and_one_fstat(folder: Path, tmp_path: Path) -> None:
    """A file is opened once and fstat'ed once, and a large one leaves by sendfile (seen by strace)."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    (folder / "big").write_bytes(b"x" * 1_000_000)
    with running_server(folder, tmp_path / "stderr") as server:
        server.get("/a.txt")
        trace = tmp_path / "trace"
        tracer = subprocess.Popen(
            [strace, "-f", "-o", str(trace), "-e", "trace=%file,fstat,newfstatat,statx,sendfile,sendto",
             "-p", str(server.process.pid)], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert tracer.stderr is not None
        first = tracer.stderr.readline()
        if "attached" not in first:
            tracer.wait()
            tracer.stderr.close()
            pytest.skip(f"strace can't attach: {first.strip()}")
        server.get("/big")
        tracer.send_signal(signal.SIGINT)
        tracer.wait(20)
        tracer.stderr.close()
    calls = trace.read_text()
    opened = re.findall(r'open(?:at2?)?\([^"]*"([^"]*)"', calls)
    assert opened.count("big") == 1, calls
    number = re.search(r'openat2?\([^"]*"big".* = (\d+)', calls)
    assert number, calls
    looked = re.findall(rf"(?:fstat|newfstatat|statx)\({number[1]},", calls)
    assert len(looked) == 1, calls
    assert not re.search(r'stat[^(]*\([^"]*"big"', calls), calls
    assert "sendfile(" in calls


# ---- The command ----


def test_the_log(serve: Serve, folder: Path) -> None:
    """One line per answer: address, date, request line, status, and the bytes of the body that were sent."""
    server = serve(folder)
    server.get("/a.txt")
    server.get("/a.txt", "Range: bytes=0-2")
    server.get("/a.txt", method="HEAD")
    server.get("/a.txt", "If-None-Match: *")
    wait_for(lambda: server.log.count("\n") == 4)
    lines = server.log.splitlines()
    assert [line.split('"')[2].strip() for line in lines] == ["200 6", "206 3", "200 0", "304 0"]
    for line in lines:
        assert re.fullmatch(
            r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4} \d\d:\d\d:\d\d\] "(GET|HEAD) /a\.txt HTTP/1\.1" \d+ \d+', line
        )


def test_the_log_cannot_be_forged(serve: Serve, folder: Path) -> None:
    """Control characters of a request line, and what could move a terminal's cursor, are escaped."""
    server = serve(folder)
    server.raw(b"GET /\x1b[2J\xc2\x9b\\n HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_for(lambda: server.log.count("\n") >= 1)
    assert "\x1b" not in server.log
    assert "\x9b" not in server.log
    assert server.log.count("\n") == 1
    assert "\\x1b[2J" in server.log


@pytest.mark.parametrize("idle", [False, True], ids=["idle", "in the middle of a download"])
def test_ctrl_c(folder: Path, tmp_path: Path, idle: bool) -> None:
    """Ctrl-C ends it with exit code 0 and no traceback, also while something is being sent."""
    (folder / "big").write_bytes(b"x" * (16 << 20))
    with running_server(folder, tmp_path / "stderr") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            if not idle:
                connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(12) == b"HTTP/1.1 200"
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(20) == 0
        assert "Traceback" not in server.log
        assert "Interrupted" in server.log


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command with these arguments, until it ends."""
    command = [sys.executable, "-m", "sendgate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, **options)


def test_port_in_use(folder: Path) -> None:
    """One line that says so, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = run(str(folder), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"sendgate: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/missing"], "sendgate: cannot serve {tmp}/missing: No such file or directory\n"),
        (["{tmp}/root/a.txt"], "sendgate: cannot serve {tmp}/root/a.txt: Not a directory\n"),
        (
            ["--bind", "192.0.2.1", "{tmp}"],
            "sendgate: cannot listen on 192.0.2.1 port 0: Cannot assign requested address\n",
        ),
        (["--bind", "no such host", "{tmp}"], "sendgate: cannot listen on no such host: "),
    ],
)
def test_what_cannot_be_served(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    """A folder or address that can't be used is one clear line, and exit code 1."""
    done = run("--port", "0", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith(message.format(tmp=tmp_path))
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_what_is_no_port(port: str) -> None:
    """A usage error, as argparse makes it."""
    done = run(f"--port={port}")
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_version_option() -> None:
    """--version says which."""
    import sendgate

    assert run("--version").stdout == f"sendgate {sendgate.__version__}\n"


def test_current_directory(folder: Path) -> None:
    """Without an argument the current directory is served."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sendgate", "-p", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1].rstrip("/\n"))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"GET /a.txt HTTP/1.0\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
    finally:
        process.terminate()
        process.communicate()


def test_ipv6(folder: Path) -> None:
    """An IPv6 address is bound, and written with brackets."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    process = subprocess.Popen(
        [sys.executable, "-m", "sendgate", str(folder), "--bind", "::1", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        match = re.search(r"at http://\[::1\]:(\d+)/$", process.stdout.readline())
        assert match
        with socket.create_connection(("::1", int(match[1])), timeout=20) as connection:
            connection.sendall(b"GET /a.txt HTTP/1.0\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
    finally:
        process.terminate()
        process.communicate()


# ---- With curl ----


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run curl."""
    if CURL is None:
        pytest.skip("curl is not installed (Debian: apt-get install curl)")
    return subprocess.run([CURL, "-sS", "--max-time", "20", *arguments], capture_output=True, timeout=30, check=False)


def test_curl_resumes(serve: Serve, folder: Path, tmp_path: Path) -> None:
    """An interrupted download is completed by ``curl -C -``, and a complete one stays as it is."""
    data = os.urandom(5_000_000)
    (folder / "file").write_bytes(data)
    server = serve(folder)
    partial = tmp_path / "download"
    partial.write_bytes(data[:1_234_567])
    assert curl("-C", "-", "-o", str(partial), server.url + "file").returncode == 0
    assert partial.read_bytes() == data
    wait_for(lambda: " 206 3765433\n" in server.log)


def test_curl_interrupted_for_real(serve: Serve, folder: Path, tmp_path: Path) -> None:
    """A slow download is killed half-way and resumed."""
    data = os.urandom(40_000_000)
    (folder / "file").write_bytes(data)
    server = serve(folder)
    target = tmp_path / "download"
    first = curl("--limit-rate", "4000k", "--max-time", "1", "-o", str(target), server.url + "file")
    assert first.returncode == 28  # timed out
    assert 0 < target.stat().st_size < len(data)
    assert curl("-C", "-", "-o", str(target), server.url + "file").returncode == 0
    assert target.read_bytes() == data


def test_curl_parts(serve: Serve, folder: Path) -> None:
    """Ranges, heads, conditions and old versions, as a user asks for them."""
    server = serve(folder)
    url = server.url + "a.txt"
    assert curl("-r", "0-99", url).stdout == b"hello\n"
    assert curl("-r", "1-2", url).stdout == b"el"
    parts = curl("-r", "0-0,-1", url).stdout
    assert re.findall(rb"Content-Range: bytes (\S+)\r\n\r\n(.)", parts, re.DOTALL) == [
        (b"0-0/6", b"h"),
        (b"5-5/6", b"\n"),
    ]
    assert b"\r\nContent-Length: 6\r\n" in curl("-I", url).stdout
    assert curl("--http1.0", url).stdout == b"hello\n"
    etag = server.get("/a.txt")[1]["etag"]
    assert curl("-w", "%{http_code}", "-H", f"If-None-Match: {etag}", url).stdout == b"304"
    assert curl("-w", "%{http_code}", "-z", "Sun, 06 Nov 1994 08:49:37 GMT", url).stdout == b"304"
    assert curl("-L", "-w", "%{http_code}", "-o", "/dev/null", server.url + "sub").stdout == b"200"


def test_threads_of_curl(serve: Serve, folder: Path) -> None:
    """Many downloads of one file at once are all whole."""
    data = os.urandom(2_000_000)
    (folder / "file").write_bytes(data)
    server = serve(folder)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(server.get("/file")[2] == data)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [True] * 16


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Poll until it holds: the log and the descriptors of another process change a little after its answer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.01)
