"""The servers that the benchmarks measure: how each is started, stopped and looked at."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench"
CFLAGS = ["-std=c99", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]


class Unavailable(Exception):
    """A server that can't be measured here; the message says why."""


def cpu_ns(pid: int) -> int:
    """CPU time that a process has used so far, in nanoseconds. All its threads count, ended ones too."""
    # The clock id that clock_getcpuclockid(3) makes of a process number on Linux.
    return time.clock_gettime_ns((~pid << 3) | 2)


@dataclasses.dataclass
class Server:
    """A running server: its address, and the processes whose CPU time counts."""

    name: str
    process: subprocess.Popen
    port: int
    pids: list[int]

    def cpu_ns(self) -> int:
        """CPU time used so far by all its processes, in nanoseconds."""
        return sum(map(cpu_ns, self.pids))

    def wait_until_still(self) -> None:
        """Wait until it does nothing any more."""
        deadline = time.monotonic() + 60
        before = self.cpu_ns()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            after = self.cpu_ns()
            # Some wake up now and then though nothing happens: uvicorn ten times a second.
            if after - before < 10e6:
                return
            before = after
        raise SystemExit(f"{self.name} is still busy after a minute in which it had nothing to do")

    def stop(self) -> None:
        """End it, by force if it would first wait for its clients."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


def two_processors() -> tuple[int, int]:
    """One for the servers, one for the load."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise SystemExit("two processors are needed: one for the server, one for the load generator")
    return cpus[0], cpus[1]


def build(source: str) -> Path:
    """Compile bench/SOURCE.c if it, or the header, is newer than its program."""
    src, header, exe = ROOT / "bench" / f"{source}.c", ROOT / "bench" / "client.h", OUT / source
    if not exe.exists() or exe.stat().st_mtime < max(src.stat().st_mtime, header.stat().st_mtime):
        subprocess.run([os.environ.get("CC", "cc"), *CFLAGS, str(src), "-o", str(exe)], check=True)
    return exe


def start(name: str, command: list[str], cpus: set[int], env: dict[str, str] | None = None) -> Server:
    """Start a server that prints "listening on ADDRESS:PORT" first."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        process.kill()
        raise SystemExit(f"{name} did not start: {line!r}")
    return Server(name, process, int(line.rsplit(":", 1)[1]), [process.pid])


def start_inherited(name: str, command: list[str], cpus: set[int], env: dict[str, str]) -> Server:
    """Start a server that is given its listening socket: "{fd}" in the command is its number.

    Whatever processes it has when it has answered once are measured.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        process = subprocess.Popen(
            [part.replace("{fd}", str(fd)) for part in command],
            pass_fds=[fd],
            env={**os.environ, **env},
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
    return _answering(name, process, port)


def start_on_port(name: str, command: list[str], cpus: set[int], env: dict[str, str]) -> Server:
    """Start a server that has to be told a port: "{port}" in the command is its number.

    Whatever processes it has when it has answered once are measured.
    """
    # A socket that is bound, but doesn't listen, keeps the port for a server that sets SO_REUSEADDR.
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            env={**os.environ, **env},
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise SystemExit(f"{name} did not start") from None
                time.sleep(0.02)
    return _answering(name, process, port)


def _answering(name: str, process: subprocess.Popen, port: int) -> Server:
    """Wait until it has answered."""
    try:
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(b"HEAD /1k.bin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            if not client.recv(4096):
                raise SystemExit(f"{name} did not answer")
    except OSError as error:
        process.kill()
        raise SystemExit(f"{name} did not start: {error}") from None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return Server(name, process, port, [process.pid, *map(int, children)])


def start_floor(data: Path, work: Path, cpus: set[int]) -> Server:
    """floor.c."""
    return start("floor", [str(build("floor")), "0", str(data)], cpus)


def start_sendgate(data: Path, work: Path, cpus: set[int], offload: bool = False) -> Server:
    """The C example server on libsendgate, which `make examples` builds. offload: its files leave in the background."""
    exe = ROOT / "target" / "examples" / "fileserver"
    if not exe.exists():
        raise Unavailable(f"{exe.relative_to(ROOT)} is not built: run `make examples`")
    arguments = ["--offload"] if offload else []
    return start("sendgate --offload" if offload else "sendgate", [str(exe), *arguments, "0", str(data)], cpus)


def start_go(data: Path, work: Path, cpus: set[int]) -> Server:
    """Go's http.FileServer on one processor."""
    if shutil.which("go") is None:
        raise Unavailable("go is not installed (Debian: golang-go)")
    exe = OUT / "gofileserver"
    subprocess.run(
        ["go", "build", "-o", str(exe), "."],
        cwd=ROOT / "bench" / "gofileserver",
        check=True,
        env={**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"},
    )
    return start("Go FileServer", [str(exe), "0", str(data)], cpus, {"GOMAXPROCS": "1"})


def start_python(kind: str, loop: str, data: Path, work: Path, cpus: set[int]) -> Server:
    """pyserver.py, in the venv that setup-peers.sh makes."""
    needs = {"sendgate": ["sendgate"], "aiohttp": ["aiohttp"], "starlette": ["starlette", "uvicorn", "httptools"]}
    python = OUT / "venv" / "bin" / "python"
    for package in needs.get(kind, []) + (["uvloop"] if loop == "uvloop" else []):
        if not (OUT / "venv" / f".{package}").exists():
            raise Unavailable(f"{package} is not installed: run `make bench-peers`")
    module = Path(__file__).with_name("pyserver.py")
    return start(f"{kind}, {loop}", [str(python), str(module), kind, loop, str(data)], cpus)


def start_nginx(
    data: Path, work: Path, cpus: set[int], cache: bool = False, connections: int = 1024, http: str = ""
) -> Server:
    """Nginx with one worker, whose CPU time counts together with its master's. http: more of its configuration."""
    exe = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if exe is None:
        raise Unavailable("nginx is not installed (Debian: nginx-light)")
    with socket.socket() as probe:  # nginx can't tell which port the system picked; ours alone in this namespace
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = work / f"nginx-{port}"
    home.mkdir()
    (home / "nginx.conf").write_text(f"""
        user root;
        daemon off;
        worker_processes 1;
        pid {home}/pid;
        error_log {home}/error.log;
        events {{ worker_connections {connections}; }}
        http {{
            access_log off;
            sendfile on;
            tcp_nopush on;
            keepalive_requests 1000000000;
            keepalive_timeout 3600;
            send_timeout 3600;
            {"open_file_cache max=1000 inactive=60s;" if cache else ""}
            client_body_temp_path {home}/body;
            proxy_temp_path {home}/proxy;
            fastcgi_temp_path {home}/fastcgi;
            uwsgi_temp_path {home}/uwsgi;
            scgi_temp_path {home}/scgi;
            server {{ listen 127.0.0.1:{port}; root {data}; }}
            {http}
        }}
    """)
    process = subprocess.Popen(
        [exe, "-p", str(home), "-c", str(home / "nginx.conf"), "-e", str(home / "error.log")],
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    deadline = time.monotonic() + 10
    while True:
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if workers:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("nginx did not start: " + (home / "error.log").read_text())
        time.sleep(0.01)
    return Server("nginx, cache" if cache else "nginx", process, port, [process.pid, *map(int, workers)])


def start_nginx_cache(data: Path, work: Path, cpus: set[int]) -> Server:
    """Nginx with open_file_cache."""
    return start_nginx(data, work, cpus, cache=True)
