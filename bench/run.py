#!/usr/bin/env python3
"""Compare file servers: CPU time per request and requests per second, as ratios to a hand-written floor.

Called by `make bench`. bench/README.md says what is measured and why. Standard library only.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from clients import Load, request_head
from network import CONGESTION, check_congestion, enter_network
from servers import (
    OUT,
    ROOT,
    Server,
    Unavailable,
    build,
    start_floor,
    start_go,
    start_nginx,
    start_nginx_cache,
    start_sendgate,
    two_processors,
)

KIB = 1024
FILES = {
    "304.bin": KIB,
    "1k.bin": KIB,
    "16k.bin": 16 * KIB,
    "64k.bin": 64 * KIB,
    "1m.bin": KIB * KIB,
    "r1k.bin": KIB * KIB,
    "r100k.bin": KIB * KIB,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of request. `length` is the Content-Length that must come (-1: not looked at), `body` the bytes."""

    name: str
    path: str
    requests: int  # of one measurement; chosen so that the floor takes some 0.3 s of CPU
    status: int
    length: int
    body: int
    method: str = "GET"
    range: str = ""
    conditional: bool = False

    def request(self, etag: str) -> bytes:
        """The request head, as a browser-like client would send it."""
        fields = []
        if self.range:
            fields.append(f"Range: bytes={self.range}")
        if self.conditional:
            fields.append(f"If-None-Match: {etag}")
        return request_head(self.method, self.path, *fields)


CASES = [
    Case("304", "/304.bin", 60000, 304, -1, 0, conditional=True),
    Case("HEAD", "/1m.bin", 60000, 200, KIB * KIB, 0, method="HEAD"),
    Case("200 1 KiB", "/1k.bin", 60000, 200, KIB, KIB),
    Case("200 16 KiB", "/16k.bin", 40000, 200, 16 * KIB, 16 * KIB),
    Case("200 64 KiB", "/64k.bin", 25000, 200, 64 * KIB, 64 * KIB),
    Case("200 1 MiB", "/1m.bin", 4000, 200, KIB * KIB, KIB * KIB),
    Case("206 1 KiB", "/r1k.bin", 60000, 206, KIB, KIB, range="500000-501023"),
    Case("206 100 KiB", "/r100k.bin", 20000, 206, 100 * KIB, 100 * KIB, range="500000-602399"),
]


SERVERS = {
    "floor": start_floor,
    "sendgate": start_sendgate,
    "nginx-cache": start_nginx_cache,
    "nginx": start_nginx,
    "go": start_go,
}


def check_answer(server: Server, case: Case, data: Path) -> str:
    """One request in full: status and every byte of the body must be right. Returns the entity tag."""

    def ask(request: bytes) -> tuple[str, bytes]:
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.settimeout(10)
            s.sendall(request)
            got = b""
            while b"\r\n\r\n" not in got or len(got.split(b"\r\n\r\n", 1)[1]) < case.body:
                piece = s.recv(1 << 20)
                if not piece:
                    break
                got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        return head.decode("latin-1"), body

    etag = '"none"'
    if case.conditional:
        head, _ = ask(dataclasses.replace(case, conditional=False).request(""))
        tags = [line for line in head.split("\r\n") if line.lower().startswith("etag:")]
        if tags:
            etag = tags[0].split(":", 1)[1].strip()
        elif server.name == "Go FileServer":
            etag = ""  # it makes no entity tags: the caller asks with If-Modified-Since
    head, body = ask(request_for(server, case, etag, data))
    first = int(case.range.split("-")[0]) if case.range else 0
    want = (data / case.path[1:]).read_bytes()[first : first + case.body]
    if not head.startswith(f"HTTP/1.1 {case.status} ") or body != want:
        raise SystemExit(f"{server.name}, {case.name}: wrong answer ({len(body)} bytes of body):\n{head}")
    return etag


def request_for(server: Server, case: Case, etag: str, data: Path) -> bytes:
    """The case's request, with the date as its condition for a server without entity tags."""
    request = case.request(etag)
    if case.conditional and not etag:
        when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime((data / case.path[1:]).stat().st_mtime))
        request = request.replace(b"If-None-Match: ", b"If-Modified-Since: " + when.encode())
    return request


def measure(
    server: Server, case: Case, request: bytes, cpu: int, connections: int, scale: float
) -> tuple[float, float]:
    """(CPU ns per request, requests per second) of one run."""
    requests = max(int(case.requests * scale), connections * 4)
    load = Load(
        cpu,
        request,
        "load",
        server.port,
        connections,
        requests // 5,
        requests,
        case.status,
        case.length,
        case.body,
        CONGESTION,
        what=f"{server.name}, {case.name}",
    )
    load.ready()
    before = server.cpu_ns()
    result = load.go()
    after = server.cpu_ns()
    load.end()
    return (after - before) / result["requests"], result["requests"] / result["seconds"]


def make_files(data: Path) -> None:
    """Make the files that are served: random bytes, and a modification time long ago."""
    data.mkdir()
    block = os.urandom(64 * KIB)
    for name, size in FILES.items():
        (data / name).write_bytes((block * (size // len(block) + 1))[:size])
        os.utime(data / name, (784111777, 784111777))  # long ago: entity tags are strong


def table(
    cases: list[Case], servers: list[Server], runs: dict, what: int, title: str, base: str, corner: str = "case"
) -> str:
    """A Markdown table of the median over the rounds of each round's ratio to the base server."""
    lines = [
        f"{title}",
        "",
        f"| {corner} | " + " | ".join(s.name for s in servers) + " |",
        "| --- |" + " ---: |" * len(servers),
    ]
    for case in cases:
        cells = []
        for server in servers:
            values = [r[what] for r in runs[case.name][server.name]]
            bases = [r[what] for r in runs[case.name][base]]
            ratios = [v / b for v, b in zip(values, bases)]
            median = statistics.median(values)
            absolute = f"{median / 1000:.2f} us" if what == 0 else f"{median:,.0f}/s"
            cells.append(f"{statistics.median(ratios):.2f} ({absolute})")
        lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds of a quarter of the requests")
    parser.add_argument("--rounds", type=int, help="measurements per case and server (default 7)")
    parser.add_argument("--connections", type=int, default=8, help="keep-alive connections (default 8)")
    parser.add_argument("--cases", help="comma-separated beginnings of case names, such as 304,206")
    parser.add_argument("--servers", help=f"comma-separated, of {','.join(SERVERS)}; the first is the base")
    args = parser.parse_args()
    rounds = args.rounds or (3 if args.quick else 7)
    scale = 0.25 if args.quick else 1.0
    cases = [c for c in CASES if not args.cases or any(c.name.startswith(p.strip()) for p in args.cases.split(","))]
    wanted = args.servers.split(",") if args.servers else list(SERVERS)
    if not cases or not set(wanted) <= set(SERVERS):
        parser.error("no such case or server")
    server_cpu, load_cpu = two_processors()
    OUT.mkdir(parents=True, exist_ok=True)
    build("load")
    enter_network()
    servers: list[Server] = []
    runs: dict = {c.name: {} for c in cases}
    with tempfile.TemporaryDirectory(prefix="sendgate-bench-") as tmp:
        work = Path(tmp)
        work.chmod(0o755)
        data = work / "data"
        make_files(data)
        try:
            for name in wanted:
                try:
                    servers.append(SERVERS[name](data, work, {server_cpu}))
                except Unavailable as reason:
                    print(f"skipped {name}: {reason}", file=sys.stderr)
            if not servers:
                raise SystemExit("no server to measure")
            requests = {}
            for server in servers:
                check_congestion(server)
                for case in cases:
                    requests[server.name, case.name] = request_for(server, case, check_answer(server, case, data), data)
            for n in range(rounds):
                print(f"round {n + 1} of {rounds}", file=sys.stderr)
                for case in cases:
                    for server in servers:
                        result = measure(
                            server, case, requests[server.name, case.name], load_cpu, args.connections, scale
                        )
                        runs[case.name].setdefault(server.name, []).append(result)
        finally:
            for server in servers:
                server.stop()

    base = servers[0].name
    print(table(cases, servers, runs, 0, f"CPU time per request, ratio to {base} (median)", base))
    print()
    print(table(cases, servers, runs, 1, f"Requests per second, ratio to {base} (median)", base))
    record = {
        "rounds": rounds,
        "connections": args.connections,
        "congestion": CONGESTION,
        "kernel": os.uname().release,
        "cpu_ns_and_rate": runs,
    }
    (OUT / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nEvery single measurement: {(OUT / 'result.json').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
