#!/usr/bin/env python3
"""Compare FastCGI responders that serve files: CPU time per request, alone and behind nginx.

Called by `make bench` and `make bench-fastcgi`. bench/README.md says what is measured and why. Standard library only.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from clients import Load
from network import CONGESTION, check_congestion, enter_network
from run import CASES, Case, check_answer, make_files, request_for, table
from servers import CFLAGS, OUT, ROOT, Server, Unavailable, build, start_nginx, two_processors

HERE = Path(__file__).resolve().parent
PYTHON = OUT / "venv" / "bin" / "python"
NAMES = ("304", "200 1 KiB", "200 64 KiB", "200 1 MiB")
BEGIN, END, PARAMS, STDIN, STDOUT = 1, 3, 4, 5, 6

#: What nginx is told to send, and what the client sends in its place: Debian's fastcgi_params.
FIELDS = {
    "QUERY_STRING": ("$query_string", ""),
    "REQUEST_METHOD": ("$request_method", "GET"),
    "CONTENT_TYPE": ("$content_type", ""),
    "CONTENT_LENGTH": ("$content_length", ""),
    "SCRIPT_NAME": ("$fastcgi_script_name", "{path}"),
    "REQUEST_URI": ("$request_uri", "{path}"),
    "DOCUMENT_URI": ("$document_uri", "{path}"),
    "DOCUMENT_ROOT": ("$document_root", "/usr/share/nginx/html"),
    "SERVER_PROTOCOL": ("$server_protocol", "HTTP/1.1"),
    "REQUEST_SCHEME": ("$scheme", "http"),
    "GATEWAY_INTERFACE": ("CGI/1.1", "CGI/1.1"),
    "SERVER_SOFTWARE": ("nginx/$nginx_version", "nginx/1.22.1"),
    "REMOTE_ADDR": ("$remote_addr", "127.0.0.1"),
    "REMOTE_PORT": ("$remote_port", "40000"),
    "SERVER_ADDR": ("$server_addr", "127.0.0.1"),
    "SERVER_PORT": ("$server_port", "8000"),
    "SERVER_NAME": ("$server_name", "localhost"),
    "REDIRECT_STATUS": ("200", "200"),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A responder to measure: the command for a socket and a folder, and how it is spoken to."""

    command: Callable[[Path, Path], list[str]]
    scale: float  # of run.py's numbers of requests
    kept: bool = True  # its connections


def example(path: Path, data: Path) -> list[str]:
    """The C example on libsendgate, which `make examples` builds."""
    exe = ROOT / "target" / "examples" / "fastcgi"
    if not exe.exists():
        raise Unavailable(f"{exe.relative_to(ROOT)} is not built: run `make examples`")
    return [str(exe), str(path), str(data)]


def libfcgi(path: Path, data: Path) -> list[str]:
    """fcgi_libfcgi.c."""
    if not Path("/usr/include/fcgiapp.h").exists():
        raise Unavailable("libfcgi is not installed (Debian: libfcgi-dev)")
    source, exe = HERE / "fcgi_libfcgi.c", OUT / "fcgi_libfcgi"
    subprocess.run(
        [os.environ.get("CC", "cc"), *CFLAGS, str(source), "-o", str(exe), "-lfcgi", "-lpthread"], check=True
    )
    return [str(exe), str(path), str(data)]


def installed(package: str) -> None:
    """Refuse unless setup-peers.sh has installed it."""
    if not (OUT / "venv" / f".{package}").exists():
        raise Unavailable(f"{package} is not installed: run `make bench-peers`")


def gateway(what: str) -> Callable[[Path, Path], list[str]]:
    """`python -m sendgate fastcgi`, with its own file server or with an application."""

    def command(path: Path, data: Path) -> list[str]:
        installed("sendgate")
        return [str(PYTHON), "-m", "sendgate", "fastcgi", "--socket", str(path), what or str(data)]

    return command


def peer(package: str) -> Callable[[Path, Path], list[str]]:
    """One of fcgiapps.py."""

    def command(path: Path, data: Path) -> list[str]:
        installed(package)
        # Isolated: the folder of fcgiapps.py has a fastcgi.py too, this one.
        return [str(PYTHON), "-I", str(HERE / "fcgiapps.py"), package, str(path), str(data)]

    return command


KINDS = {
    "sendgate": Kind(example, 1 / 2),
    "sendgate unkept": Kind(example, 1 / 4, kept=False),
    "libfcgi": Kind(libfcgi, 1 / 4),
    "sendgate Python": Kind(gateway(""), 1 / 20),
    "sendgate WSGI": Kind(gateway("fcgiapps:application"), 1 / 20),
    "flup": Kind(peer("flup"), 1 / 30),
    "fastcgi unkept": Kind(peer("fastcgi"), 1 / 120, kept=False),
}
NGINX = "nginx static"


@dataclasses.dataclass
class Responder(Server):
    """A server at a UNIX socket."""

    path: Path
    how: str  # fcgi_load's word for it


def record(kind: int, content: bytes = b"", padding: int = 0) -> bytes:
    """One record of request 1."""
    return struct.pack("!BBHHBx", 1, kind, 1, len(content), padding) + content + bytes(padding)


def fastcgi_request(case: Case, etag: str, keep: bool) -> bytes:
    """The case's request, as nginx sends it."""
    params = {name: value.format(path=case.path) for name, (_, value) in FIELDS.items()}
    params |= {"HTTP_HOST": "127.0.0.1", "HTTP_USER_AGENT": "load", "HTTP_ACCEPT": "*/*"}
    if case.conditional and etag:
        params["HTTP_IF_NONE_MATCH"] = etag
    assert all(len(text) < 128 for pair in params.items() for text in pair)
    encoded = b"".join(bytes([len(name), len(value)]) + f"{name}{value}".encode() for name, value in params.items())
    begin = struct.pack("!HB5x", 1, keep)
    return record(BEGIN, begin) + record(PARAMS, encoded, -len(encoded) % 8) + record(PARAMS) + record(STDIN)


def ask(responder: Responder, request: bytes, body: int) -> bytes:
    """Head and content of the answer to one request, in HTTP as much content as is expected."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(responder.path))
        client.sendall(request)
        stream = client.makefile("rb")
        if responder.how == "http":
            head = b"".join(iter(stream.readline, b"\r\n")) + b"\r\n"
            return head + stream.read(body)
        answer = b""
        while True:
            header = stream.read(8)
            if len(header) < 8:
                raise SystemExit(f"{responder.name}: closed before the end of an answer")
            _, kind, _, length, padding = struct.unpack("!BBHHBx", header)
            content = stream.read(length + padding)[:length]
            if kind == END:
                return answer
            if kind != STDOUT:
                raise SystemExit(f"{responder.name}: a record of type {kind}: {content!r}")
            answer += content


def direct_request(responder: Responder, case: Case, data: Path) -> tuple[bytes, int]:
    """The case's request for this responder, and the length of its answer, every byte of which was looked at."""

    def request(etag: str) -> bytes:
        if responder.how == "http":
            return case.request(etag)
        return fastcgi_request(case, etag, responder.how == "kept")

    etag = ""
    if case.conditional:
        head = ask(responder, request('"none"'), 0).partition(b"\r\n\r\n")[0].decode()
        etag = next(line.split(":", 1)[1].strip() for line in head.split("\r\n") if line.lower().startswith("etag:"))
    answer = ask(responder, request(etag), case.body)
    head, _, body = answer.partition(b"\r\n\r\n")
    want = (data / case.path[1:]).read_bytes()[: case.body]
    if not head.startswith(begins(responder, case)) or body != want:
        raise SystemExit(f"{responder.name}, {case.name}: wrong answer ({len(body)} bytes of body):\n{head!r}")
    return request(etag), len(answer)


def begins(responder: Responder, case: Case) -> bytes:
    """What the answer's head begins with."""
    return f"{'HTTP/1.1' if responder.how == 'http' else 'Status:'} {case.status}".encode()


def start_responder(name: str, kind: Kind, work: Path, data: Path, cpus: set[int]) -> Responder:
    """Start it, and wait until it has answered once."""
    path = work / f"{len(list(work.iterdir()))}.sock"
    command = kind.command(path, data)
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "SENDGATE_BENCH_DATA": str(data), "PYTHONPATH": str(HERE)},
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    responder = Responder(name, process, 0, [process.pid], path, "kept" if kind.kept else "closed")
    deadline = time.monotonic() + 30
    while True:
        try:
            direct_request(responder, CASES[0], data)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise Unavailable("it did not start") from None
            time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    responder.pids += map(int, children)
    return responder


def timed(load: Load, *clocks: Callable[[], int]) -> list[float]:
    """Let it work: nanoseconds per request by each of the clocks."""
    load.ready()
    before = [clock() for clock in clocks]
    requests = load.go()["requests"]
    spent = [(clock() - was) / requests for clock, was in zip(clocks, before)]
    load.end()
    return spent


def upstreams(responders: list[Responder], ports: list[int]) -> str:
    """What nginx has to be told to speak FastCGI to each of them, on a port for each."""
    text = ""
    for n, (responder, port) in enumerate(zip(responders, ports)):
        kept = responder.how == "kept"
        text += f"""
            upstream u{n} {{ server unix:{responder.path}; {"keepalive 16;" if kept else ""} }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    fastcgi_pass u{n};
                    fastcgi_keep_conn {"on" if kept else "off"};
                    fastcgi_buffers 16 64k;
                    fastcgi_buffer_size 64k;
                    fastcgi_busy_buffers_size 128k;
                    fastcgi_max_temp_file_size 0;
                    {" ".join(f"fastcgi_param {name} {value};" for name, (value, _) in FIELDS.items())}
                }}
            }}"""
    return text


def free_ports(n: int) -> list[int]:
    """Ports for nginx, which can't tell which the system picked; ours alone in this network."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Bench:
    """One run: what the command line asks for."""

    def __init__(self, args: argparse.Namespace, cases: list[Case], data: Path, cpus: tuple[int, int]) -> None:
        self.args, self.cases, self.data = args, cases, data
        self.server_cpu, self.load_cpu = cpus

    def numbers(self, case: Case, name: str) -> tuple[int, int, int]:
        """Connections, requests that aren't counted, and those that are."""
        scale = KINDS[name].scale if name in KINDS else 1 / 2
        requests = max(int(case.requests * scale * self.args.scale), self.args.connections * 4)
        return self.args.connections, requests // 5, requests

    def rounds(self, what: str, measure: Callable[[Case, Server], list[float]], servers: list) -> dict:
        """By case and server: what each round has measured."""
        runs: dict = {case.name: {server.name: [] for server in servers} for case in self.cases}
        for n in range(self.args.rounds):
            print(f"{what}: round {n + 1} of {self.args.rounds}", file=sys.stderr)
            for case in self.cases:
                for server in servers:
                    runs[case.name][server.name].append(measure(case, server))
        return runs

    def alone(self, responders: list[Responder], work: Path) -> dict:
        """Each responder spoken to in FastCGI, and nginx with its files in HTTP, at UNIX sockets."""
        path, servers, nginx = work / "static.sock", [*responders], None
        try:
            nginx = start_nginx(
                self.data, work, {self.server_cpu}, http=f"server {{ listen unix:{path}; root {self.data}; }}"
            )
            servers.append(Responder(NGINX, nginx.process, 0, nginx.pids, path, "http"))
        except Unavailable as reason:
            print(f"skipped {NGINX}: {reason}", file=sys.stderr)
        try:
            requests = {(s.name, c.name): direct_request(s, c, self.data) for s in servers for c in self.cases}

            def measure(case: Case, server: Responder) -> list[float]:
                request, length = requests[server.name, case.name]
                numbers, what = self.numbers(case, server.name), f"{server.name}, {case.name}"
                arguments = [server.path, *numbers, server.how, begins(server, case).decode(), length]
                request = b"%d\n%b" % (len(request), request)
                return timed(Load(self.load_cpu, request, "fcgi_load", *arguments, what=what), server.cpu_ns)

            return self.rounds("alone", measure, servers)
        finally:
            if nginx:
                nginx.stop()

    def behind(self, responders: list[Responder], work: Path) -> dict:
        """Each responder behind nginx, and nginx with its files, asked in HTTP over TCP: both together, and nginx."""
        ports = free_ports(len(responders))
        nginx = start_nginx(self.data, work, {self.server_cpu}, http=upstreams(responders, ports))
        try:
            servers = [Server(r.name, nginx.process, port, nginx.pids + r.pids) for r, port in zip(responders, ports)]
            servers.append(dataclasses.replace(nginx, name=NGINX))
            requests = {}
            for server in servers:
                check_congestion(server)
                for case in self.cases:
                    etag = check_answer(server, case, self.data)
                    requests[server.name, case.name] = request_for(server, case, etag, self.data)

            def measure(case: Case, server: Server) -> list[float]:
                what = f"{server.name} behind nginx, {case.name}"
                arguments = [*self.numbers(case, server.name), case.status, case.length, case.body, CONGESTION]
                request = requests[server.name, case.name]
                load = Load(self.load_cpu, request, "load", server.port, *arguments, what=what)
                return timed(load, server.cpu_ns, nginx.cpu_ns)

            return self.rounds("behind nginx", measure, servers)
        finally:
            nginx.stop()


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements per case and responder (default 5)")
    parser.add_argument("--connections", type=int, default=8, help="of the client (default 8)")
    parser.add_argument("--cases", help="comma-separated beginnings of case names, such as 304,200")
    parser.add_argument("--servers", help=f"comma-separated, of {','.join(KINDS)}; the first is the base")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests (default 1)")
    args = parser.parse_args()
    cases = [c for c in CASES if c.name in NAMES]
    cases = [c for c in cases if not args.cases or any(c.name.startswith(p.strip()) for p in args.cases.split(","))]
    wanted = args.servers.split(",") if args.servers else list(KINDS)
    if not cases or not set(wanted) <= set(KINDS):
        parser.error("no such case or server")
    cpus = two_processors()
    OUT.mkdir(parents=True, exist_ok=True)
    build("load")
    build("fcgi_load")
    enter_network()
    responders: list[Responder] = []
    with tempfile.TemporaryDirectory(prefix="sendgate-bench-") as tmp:
        work = Path(tmp)
        work.chmod(0o755)
        data = work / "data"
        make_files(data)
        bench = Bench(args, cases, data, cpus)
        try:
            for name in wanted:
                try:
                    responders.append(start_responder(name, KINDS[name], work, data, {cpus[0]}))
                except Unavailable as reason:
                    print(f"skipped {name}: {reason}", file=sys.stderr)
            if not responders:
                raise SystemExit("no responder to measure")
            alone = bench.alone(responders, work)
            behind = None
            try:
                behind = bench.behind(responders, work)
            except Unavailable as reason:
                print(f"skipped what is behind nginx: {reason}", file=sys.stderr)
        finally:
            for responder in responders:
                responder.kill()  # flup would wait for its clients, and nothing is left to be done well
    base = responders[0].name
    for corner, what, runs in (("alone", "the responder", alone), ("behind nginx", "responder and nginx", behind)):
        if runs:
            shown = [Server(name, None, 0, []) for name in runs[cases[0].name]]
            title = f"CPU time per request, ratio to {base} (median): {what}"
            print(table(cases, shown, runs, 0, title, base, corner) + "\n")
    if behind:
        names = list(behind[cases[0].name])
        print("| of which nginx | " + " | ".join(names) + " |\n| --- |" + " ---: |" * len(names))
        for case in cases:
            medians = [statistics.median(nginx for _, nginx in behind[case.name][name]) for name in names]
            print(f"| {case.name} | " + " | ".join(f"{median / 1000:.2f} us" for median in medians) + " |")
    every = OUT / "fastcgi.json"
    kernel = {"kernel": os.uname().release, "congestion": CONGESTION, "connections": args.connections}
    every.write_text(json.dumps({**kernel, "alone_ns": alone, "behind_ns": behind}, indent=1) + "\n")
    print(f"\nEvery single measurement: {every.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
