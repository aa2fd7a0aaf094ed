"""``python -m sendgate fastcgi``, and servers that are told to stop, fork, or inherit their socket."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastcgi_client import GET, Address, Front, ask, request
from launching import launched
from support import wait_until

COMMAND = [sys.executable, "-m", "sendgate", "fastcgi"]

APPLICATION = """
import os, pathlib, subprocess, time
from sendgate.fastcgi import Handler

HERE = pathlib.Path(__file__).parent
taken = []

def wait():
    deadline = time.monotonic() + 40
    while not (HERE / "go-on").exists() and time.monotonic() < deadline:
        time.sleep(0.01)

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        (HERE / "begun").write_text("")
        wait()
    if path == "/leave-some":
        if os.fork() == 0:
            wait()
            os._exit(0)
        subprocess.Popen(["sh", "-c", "until [ -e go-on ]; do sleep 0.1; done"], close_fds=False)
    if path in ("/die", "/leave-some"):
        os._exit(7)
    if path == "/exhaust":
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
    if path == "/release":
        while taken:
            os.close(taken.pop())
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/inherited":
        return [subprocess.check_output(["ls", "-l", "/proc/self/fd"], close_fds=False)]
    return [b"%d %s" % (os.getpid(), str(environ["wsgi.multiprocess"]).encode())]

class Hello(Handler):
    def handle(self):
        self.send("\\r\\nhello")

class Namespace:
    application = staticmethod(application)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with an application in it."""
    (tmp_path / "served.py").write_text(APPLICATION)
    (tmp_path / "file.txt").write_text("a file")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def running(place: Path, *arguments: str) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """The command from when it says where it listens; gives the address."""
    with launched([*COMMAND, *arguments], place / "log", stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        match = re.fullmatch(r"Serving .* at (?:(.*):(\d+)|(.*))\n", line)
        assert match, f"{line!r}: {(place / 'log').read_text()}"
        yield match[3] or (match[1], int(match[2])), process
    assert process.returncode == 0, (place / "log").read_text()


@contextmanager
def limited(place: Path, descriptors: int, target: str) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """The same with so few descriptors; gives the address."""
    command = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *COMMAND, "--socket", "s", target]
    with launched(command, place / "log", stdout=subprocess.PIPE) as process:
        assert process.stdout.readline(), (place / "log").read_text()
        yield "s", process
    assert process.returncode == 0, (place / "log").read_text()


def get(path: str) -> dict[str, str]:
    """The parameters of a request."""
    return {**GET, "PATH_INFO": path}


def is_refused(address: Address) -> bool:
    """Whether nobody listens there."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        return sock.connect_ex(address) in (errno.ECONNREFUSED, errno.ENOENT)


def test_what_is_served(place: Path) -> None:
    """A folder, an application, an attribute of something, and a handler; on a UNIX socket and on TCP."""
    for target, body in ((".", b"a file"), ("served:Hello", b"hello")):
        with running(place, "--socket", "s", "--mode", "600", target) as (address, _):
            assert ask(address, get("/file.txt")).body == body
            assert Path("s").stat().st_mode & 0o777 == 0o600
        assert not Path("s").exists()
    for target in ("served:application", "served:Namespace.application"):
        with running(place, "--bind", "127.0.0.1:0", target) as (address, process):
            assert ask(address, get("/")).body == b"%d False" % process.pid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--socket", "s", "nowhere"], "there is no such folder, and MODULE:NAME has a colon"),
        (["--socket", "s", "nowhere:x"], "there is no module nowhere"),
        (["--socket", "s", "served:nothing"], "served has no nothing"),
        (["--socket", "s", "served:HERE"], "it is no application, but of type PosixPath"),
        (["--socket", "no/s", "."], "cannot listen on no/s: No such file or directory"),
        (["--socket", "served.py", "."], "cannot listen on served.py: Address already in use"),
        (["--inherited", "."], "no socket was inherited"),
        (["--socket", "s", "--timeout", "0", "."], "timeout must be above 0"),
    ],
)
def test_errors(place: Path, arguments: list[str], message: str) -> None:
    """One line that says what is wrong."""
    done = subprocess.run([*COMMAND, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.startswith("sendgate: ") and done.stderr.count("\n") == 1
    assert (place / "served.py").exists()


@pytest.mark.parametrize(
    "arguments", [["."], ["--socket", "s"], ["--bind", "x", "."], ["--socket", "s", "--inherited"]]
)
def test_usage(place: Path, arguments: list[str]) -> None:
    """As argparse has it."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "usage:" in done.stderr


@pytest.mark.parametrize(
    ("where", "processes", "stop"),
    [
        (("--socket", "s"), "1", signal.SIGTERM),
        (("--socket", "s"), "2", signal.SIGINT),
        (("--bind", "127.0.0.1:0"), "1", signal.SIGINT),
        (("--bind", "127.0.0.1:0"), "2", signal.SIGTERM),
    ],
)
def test_stop(place: Path, where: tuple[str, str], processes: str, stop: signal.Signals) -> None:
    """Nobody can connect any more, a request under way is answered, a kept connection closed; the exit code is 0."""
    with running(place, *where, "--processes", processes, "served:application") as (address, process):  # noqa: SIM117
        with Front(address) as slow, Front(address) as idle:
            assert idle.ask(get("/"), keep=True).body.endswith(b"False" if processes == "1" else b"True")
            slow.send(request(get("/slow"), keep=True))
            wait_until((place / "begun").exists)
            process.send_signal(stop)
            assert idle.is_closed()
            wait_until(lambda: is_refused(address))
            assert not Path("s").exists()
            assert process.poll() is None
            (place / "go-on").touch()
            assert slow.answer().protocol_status == 0
            assert slow.is_closed()
            process.wait(30)
    assert "Traceback" not in (place / "log").read_text()


def two(address: Address) -> set[int]:
    """The processes that were seen first."""
    seen: set[int] = set()
    wait_until(lambda: seen.add(int(ask(address, get("/")).body.split()[0])) or len(seen) == 2)
    return seen


def test_processes(place: Path) -> None:
    """Each serves; one that dies is replaced, and says so; they end with their parent."""
    with running(place, "--socket", "s", "--processes", "2", "served:application") as (address, process):
        before = two(address)
        assert process.pid not in before
        with Front(address) as front:
            front.send(request(get("/die")))
            assert front.is_closed()
        children = two(address)
        assert len(children & before) == 1
        assert "has ended: exit code 7" in (place / "log").read_text()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_a_process_that_leaves_others_behind(place: Path) -> None:
    """It is replaced although what it has forked and executed lives on."""
    with running(place, "--socket", "s", "--processes", "2", "served:application") as (address, _):
        with Front(address) as front:
            front.send(request(get("/leave-some")))
            wait_until(lambda: "has ended: exit code 7" in (place / "log").read_text())
        (place / "go-on").touch()


def test_a_process_that_cannot_be_made(place: Path) -> None:
    """There is another try, as long as it takes; the others serve meanwhile."""
    with running(place, "--socket", "s", "--processes", "2", "served:application") as (address, process):
        before = two(address)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
        with Front(address) as front:
            front.send(request(get("/die")))
            assert front.is_closed()
        wait_until(lambda: "Can't make a process: [Errno 24]" in (place / "log").read_text())
        assert int(ask(address, get("/")).body.split()[0]) in before
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        assert len(two(address) & before) == 1


def test_orphans(place: Path) -> None:
    """Children whose parent was killed end as well."""
    log = place / "log"
    with log.open("w") as output:
        arguments = ["--socket", "s", "--processes", "2", "served:application"]
        with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=output, text=True) as process:
            assert process.stdout is not None and process.stdout.readline()
            child = int(ask("s", get("/")).body.split()[0])
            process.kill()
            # The pipe ends when nobody has it any more.
            assert process.stdout.read() == ""
    wait_until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())


# ---- Descriptors ----


def test_without_descriptors(place: Path) -> None:
    """Who connects waits until there are some; that is said once. A stop is one all the same."""
    log = place / "log"
    with limited(place, 96, "served:application") as (address, process):  # noqa: SIM117
        with Front(address) as kept, Front(address) as slow:
            kept.ask(get("/exhaust"), keep=True)
            with Front(address) as late:
                late.send(request(get("/")))
                wait_until(lambda: "Can't accept a connection: [Errno 24]" in log.read_text())
                # It is tried again meanwhile.
                time.sleep(0.2)
                kept.ask(get("/release"), keep=True)
                assert late.answer().protocol_status == 0
            assert log.read_text().count("Can't accept") == 1
            slow.send(request(get("/slow")))
            wait_until((place / "begun").exists)
            kept.ask(get("/exhaust"), keep=True)
            process.terminate()
            assert kept.is_closed()
            before = cpu_time(process)
            time.sleep(0.3)
            assert cpu_time(process) - before < 0.1
            (place / "go-on").touch()
            assert slow.answer().protocol_status == 0
            process.wait(30)
    assert "Traceback" not in log.read_text()


def cpu_time(process: subprocess.Popen[bytes]) -> float:
    """Seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_few_descriptors(place: Path) -> None:
    """A connection that is accepted has as many as its answer needs; others are refused."""
    with (place / "large").open("wb") as file:
        file.truncate(1 << 30)
    with limited(place, 128, ".") as (address, _), ExitStack() as stack:
        fronts = [stack.enter_context(Front(address)) for _ in range(32)]
        for front in fronts:
            front.send(request(get("/large")))
        first = [front.record() for front in fronts]
        heads = [record.content for record in first if record is not None]
        assert sum(b"Content-Length: 1073741824" in head for head in heads) == 16
        assert sum(head.startswith(b"Status: 503 ") for head in heads) == 16
    assert (place / "log").read_text() == ""


@pytest.mark.parametrize("fd", [0, 3])
def test_what_is_inherited_is_not_passed_on(place: Path, fd: int) -> None:
    """What the application starts has no socket of the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with inheriting(place, listener, fd):
            found = ask(listener.getsockname(), get("/inherited")).body.decode()
        assert "socket:" not in found and found.count(" -> ") >= 3, found


# ---- Sockets of others ----


def test_inherited_descriptor_0(place: Path) -> None:
    """As spawn-fcgi starts a program."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen()
        with launched(
            [*COMMAND, "--inherited", "served:application"], place / "log", stdin=listener, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"Serving served:application at s\n"
            assert ask("s", get("/")).body == b"%d False" % process.pid
        assert process.returncode == 0
        assert Path("s").exists(), "it is not ours"


@pytest.mark.parametrize(("addresses", "welcome"), [("127.0.0.1", True), ("10.0.0.1, 127.0.0.1", True), ("::1", False)])
def test_addresses_of_front_servers(place: Path, addresses: str, welcome: bool) -> None:
    """Others are disconnected (FastCGI 1.0, 3.2)."""
    environment = {**os.environ, "FCGI_WEB_SERVER_ADDRS": addresses}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "env": environment}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options["stdin"] = listener
        with launched([*COMMAND, "--inherited", "served:application"], place / "log", **options) as process:
            assert process.stdout.readline()
            with Front(listener.getsockname()) as front:
                front.send(request(get("/")))
                assert (front.answer().protocol_status == 0) == welcome
        assert ("A connection from 127.0.0.1 is refused" in (place / "log").read_text()) != welcome


@contextmanager
def inheriting(place: Path, listener: socket.socket, fd: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command with a socket, as spawn-fcgi starts a program (0), or systemd a service (3)."""
    # What sets LISTEN_PID has to become the process that reads it.
    start = "import os, sys; os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
    start += "fd = int(sys.argv[1]); os.dup2(fd, 3); os.close(fd); "
    start += "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    before = [sys.executable, "-c", start, str(listener.fileno())] if fd == 3 else COMMAND[:1]
    command = [*before, *COMMAND[1:], "--inherited", "served:application"]
    how: dict[str, Any] = {"stdin": listener}
    if fd == 3:
        how = {"stdin": subprocess.DEVNULL, "pass_fds": [listener.fileno()]}
    with launched(command, place / "log", **how) as process:
        yield process
    assert process.returncode == 0, (place / "log").read_text()


def test_inherited_from_systemd(place: Path) -> None:
    """As systemd starts a service when somebody connects (sd_listen_fds(3)): the request waits in the socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Who connects when one has ended waits for the next one.
        for _ in range(2):
            with Front(listener.getsockname()) as front:
                front.send(request(get("/")))
                with inheriting(place, listener, 3) as process:
                    assert front.answer().body == b"%d False" % process.pid
