#!/usr/bin/env python3
"""Thousands of clients that ask for a large file and never read: what each costs, and what the others notice.

Called by `make bench` and `make bench-slow`. bench/README.md says what is measured and why. Standard library only.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from clients import Load, request_head
from network import CONGESTION, check_congestion, enter_network, set_network
from quiet import Disturbance, Watch, undisturbed, wait
from servers import (
    OUT,
    ROOT,
    Server,
    Unavailable,
    build,
    start_nginx,
    start_python,
    start_sendgate,
    two_processors,
)

KIB = 1024
STALLED = 100 * KIB * KIB
PROBED = KIB
# Of each client's socket; the kernel takes twice that.
RECEIVE_BUFFER = 4 * KIB
# The most that a server's socket may hold, for every server alike: a real one would hold up to tcp_wmem's
# maximum of 4 MiB for each of these clients, which is the kernel's memory and not what is asked here.
SEND_BUFFER = 16 * KIB
# Descriptors that a server needs besides.
RESERVE = 500
WARMUP = 200
# Seconds that the clients have stalled already: some servers give up on them after 60.
PATIENCE = 10


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is measured: how it is started, and how many descriptors it takes for each download."""

    start: Callable[..., Server]
    descriptors: float


KINDS = {
    # The connection, and the sender's copy of it; all downloads share the file. A fifth is kept for other connections.
    "sendgate --offload": Kind(partial(start_sendgate, offload=True), 2.5),
    # The connection; all downloads share the file.
    "sendgate": Kind(start_sendgate, 1),
    # The connection, and the file.
    "nginx": Kind(partial(start_nginx, connections=20000), 2),
    # The connection, and the sender's copy of it; all downloads share the file.
    "sendgate.asyncio": Kind(partial(start_python, "sendgate", "asyncio"), 2),
    # The connection, and the file.
    "aiohttp, asyncio": Kind(partial(start_python, "aiohttp", "asyncio"), 2),
    "Starlette, asyncio": Kind(partial(start_python, "starlette", "asyncio"), 2),
    "Starlette, uvloop": Kind(partial(start_python, "starlette", "uvloop"), 2),
}


@dataclasses.dataclass
class Run:
    """One server, once: idle means a second process of the same server that has no stalled clients."""

    clients: int
    setup_s: float
    bytes_each: float
    cpu_stalled: float  # of one processor
    cpu_idle: float
    stalled_ns: list[float]
    idle_ns: list[float]
    gone: int
    disturbance: Disturbance  # while the requests were timed


def anonymous_memory(server: Server) -> int:
    """Bytes of its own that the server's processes have in memory: heap and stacks, but no files."""
    total = 0
    for pid in server.pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                total += int(line.split()[1]) * KIB
    return total


def measure(
    start: Callable[[], Server], clients: int, requests: int, quiet_s: float, patience: float, load_cpu: int
) -> Run:
    """All about one server."""
    wait(patience)
    busy = start()
    idle = None
    try:
        idle = start()
        for server in (busy, idle):
            check_congestion(server)

        def probe(count: int) -> tuple[dict, Disturbance]:
            ports = busy.port, idle.port
            load = Load(
                load_cpu,
                request_head("GET", "/1k.bin"),
                "probe",
                *ports,
                WARMUP,
                count,
                PROBED,
                CONGESTION,
                what=busy.name,
            )
            load.ready()
            watch = Watch(busy.cpu_ns, idle.cpu_ns, load.cpu_ns)
            times = load.go()
            seen = watch.seen()
            load.end()
            return times, seen

        # Once without stalled clients, so that what a server makes on first use is there.
        probe(WARMUP)
        before = anonymous_memory(busy)
        begun = time.monotonic()
        arguments = busy.port, clients, RECEIVE_BUFFER, STALLED, CONGESTION
        stalled = Load(load_cpu, request_head("GET", "/large.bin"), "stalled", *arguments, what=busy.name)
        stalled.ready()
        busy.wait_until_still()
        setup_s = time.monotonic() - begun
        bytes_each = (anonymous_memory(busy) - before) / clients
        cpu = busy.cpu_ns(), idle.cpu_ns()
        time.sleep(quiet_s)
        cpu_stalled, cpu_idle = (
            (after - before) / 1e9 / quiet_s for before, after in zip(cpu, (busy.cpu_ns(), idle.cpu_ns()))
        )
        times, disturbance = undisturbed(busy.name, min(patience, PATIENCE), lambda: probe(requests))
        gone = stalled.go()["gone"]
        stalled.end()
        return Run(clients, setup_s, bytes_each, cpu_stalled, cpu_idle, times["a"], times["b"], gone, disturbance)
    finally:
        busy.stop()
        if idle is not None:
            idle.stop()


def percentile(values: list[float], part: float) -> float:
    """The smallest value that is not below that part of them."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def spread(values: list[float], form: str) -> str:
    """The median, and what it lies between."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def size(value: float) -> str:
    """Bytes, in KiB."""
    return f"{value / KIB:.1f} KiB"


def table(runs: dict[str, list[Run]]) -> str:
    """A Markdown table of the medians over the rounds."""
    lines = [
        "| server | clients | memory per stalled download | CPU while nothing moves, stalled / idle "
        "| p50 idle | p50 stalled | p99 idle | p99 stalled | p99, ratio |",
        "| --- |" + " ---: |" * 8,
    ]
    for name, of_server in runs.items():
        cells = [name, f"{of_server[0].clients:,}".replace(",", " ")]
        cells.append(size(statistics.median(r.bytes_each for r in of_server)))
        stalled, idle = (statistics.median(getattr(r, what) for r in of_server) for what in ("cpu_stalled", "cpu_idle"))
        cells.append(f"{stalled:.2%} / {idle:.2%}")
        for part in (0.5, 0.99):
            for what in ("idle_ns", "stalled_ns"):
                median = statistics.median(percentile(getattr(r, what), part) for r in of_server)
                cells.append(f"{median / 1000:.0f} us")
        cells.append(spread([percentile(r.stalled_ns, 0.99) / percentile(r.idle_ns, 0.99) for r in of_server], ".2f"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def raise_limit(clients: int) -> int:
    """As many open files as that many clients can need, for us and those we start. Returns what is allowed."""
    wanted = int(clients * max(kind.descriptors for kind in KINDS.values())) + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each server is measured (default 3)")
    parser.add_argument("--clients", type=int, default=10000, help="that stall (default 10000)")
    parser.add_argument("--requests", type=int, default=3000, help="timed at each of the two servers (default 3000)")
    parser.add_argument("--quiet", type=float, default=16, help="seconds in which nothing moves (default 16)")
    parser.add_argument("--patience", type=float, default=10, help="seconds to wait for other processes (default 10)")
    parser.add_argument("--servers", help="comma-separated beginnings of names, such as sendgate,nginx")
    args = parser.parse_args()
    wanted = [k for k in KINDS if not args.servers or any(k.startswith(p) for p in args.servers.split(","))]
    if not wanted:
        parser.error("no such server")

    server_cpu, load_cpu = two_processors()
    OUT.mkdir(parents=True, exist_ok=True)
    build("stalled")
    build("probe")
    limit = raise_limit(args.clients)
    if enter_network():
        set_network("ipv4/tcp_wmem", f"4096 {SEND_BUFFER} {SEND_BUFFER}")
        set_network("ipv4/ip_local_port_range", "1024 65535")
    runs: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory(prefix="sendgate-bench-") as tmp:
        work = Path(tmp)
        work.chmod(0o755)
        data = work / "data"
        data.mkdir()
        (data / "1k.bin").write_bytes(os.urandom(PROBED))
        (data / "large.bin").touch()
        os.truncate(data / "large.bin", STALLED)
        for n in range(args.rounds):
            print(f"round {n + 1} of {args.rounds}", file=sys.stderr)
            for name in list(wanted):
                clients = min(args.clients, int((limit - RESERVE) / KINDS[name].descriptors))
                if clients < args.clients:
                    print(f"{name}: {clients} clients, as no more than {limit} open files are allowed", file=sys.stderr)
                try:
                    run = measure(
                        partial(KINDS[name].start, data=data, work=work, cpus={server_cpu}),
                        clients,
                        args.requests,
                        args.quiet,
                        args.patience,
                        load_cpu,
                    )
                except Unavailable as reason:
                    print(f"skipped {name}: {reason}", file=sys.stderr)
                    wanted.remove(name)
                    continue
                if run.gone:
                    print(f"{name}: {run.gone} clients were hung up on while they stalled", file=sys.stderr)
                print(f"{name}: stalled after {run.setup_s:.1f} s", file=sys.stderr)
                runs.setdefault(name, []).append(run)
    if not runs:
        raise SystemExit("no server to measure")
    print(table(runs))
    record = {name: [dataclasses.asdict(run) for run in of_server] for name, of_server in runs.items()}
    (OUT / "slow.json").write_text(json.dumps({"kernel": os.uname().release, "runs": record}) + "\n")
    print(f"\nEvery single measurement: {(OUT / 'slow.json').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
