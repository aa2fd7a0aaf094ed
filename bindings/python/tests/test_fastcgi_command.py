"""``python -m sendgate fastcgi``, and servers that are told to stop, fork, or inherit their socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastcgi_client import GET, Front, ask, request
from launching import launched
from support import wait_until

COMMAND = [sys.executable, "-m", "sendgate", "fastcgi"]

APPLICATION = """
import os, pathlib, time
from sendgate.fastcgi import Handler

HERE = pathlib.Path(__file__).parent

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        (HERE / "begun").write_text("")
        while not (HERE / "go-on").exists():
            time.sleep(0.01)
    if path == "/die":
        os._exit(7)
    start_response("200 OK", [("Content-Type", "text/plain")])
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


def get(path: str) -> dict[str, str]:
    """The parameters of a request."""
    return {**GET, "PATH_INFO": path}


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


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_stop(place: Path, processes: str, stop: signal.Signals) -> None:
    """A request under way is answered, a kept connection closed, and the exit code is 0."""
    with running(place, "--socket", "s", "--processes", processes, "served:application") as (address, process):  # noqa: SIM117
        with Front(address) as slow, Front(address) as idle:
            assert idle.ask(get("/"), keep=True).body.endswith(b"False" if processes == "1" else b"True")
            slow.send(request(get("/slow"), keep=True))
            wait_until((place / "begun").exists)
            process.send_signal(stop)
            assert idle.is_closed()
            assert process.poll() is None
            (place / "go-on").touch()
            assert slow.answer().protocol_status == 0
            assert slow.is_closed()
            process.wait(30)
    assert "Traceback" not in (place / "log").read_text()
    assert not Path("s").exists()


def test_processes(place: Path) -> None:
    """Each serves; one that dies is replaced, and says so; they end with their parent."""
    with running(place, "--socket", "s", "--processes", "2", "served:application") as (address, process):

        def serving() -> set[int]:
            """The two that were seen first."""
            seen: set[int] = set()
            wait_until(lambda: seen.add(int(ask(address, get("/")).body.split()[0])) or len(seen) == 2)
            return seen

        before = serving()
        assert process.pid not in before
        with Front(address) as front:
            front.send(request(get("/die")))
            assert front.is_closed()
        children = serving()
        assert len(children & before) == 1
        assert "has ended: exit code 7" in (place / "log").read_text()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


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


def test_inherited_from_systemd(place: Path) -> None:
    """As systemd starts a service when somebody connects (sd_listen_fds(3)): the request waits in the socket."""
    # What sets LISTEN_PID has to become the process that reads it.
    start = "import os, sys; os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
    start += "os.dup2(int(sys.argv[1]), 3); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    with socket.create_server(("127.0.0.1", 0)) as listener, Front(listener.getsockname()) as front:
        front.send(request(get("/")))
        listener.set_inheritable(True)
        command = [
            sys.executable,
            "-c",
            start,
            str(listener.fileno()),
            *COMMAND[1:],
            "--inherited",
            "served:application",
        ]
        with launched(command, place / "log", stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()]) as process:
            assert front.answer().body == b"%d False" % process.pid
        assert process.returncode == 0
