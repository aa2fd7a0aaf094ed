#!/usr/bin/env python3
"""Compare Python file servers: CPU time per request, and how much of it a server takes for hello-world already.

Called by `make bench` and `make bench-python`. bench/README.md says what is measured and why. Standard library only.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from network import CONGESTION, check_congestion, enter_network
from run import CASES, Case, check_answer, make_files, measure, request_for
from servers import OUT, ROOT, Server, Unavailable, build, start_inherited, start_on_port, two_processors

#: A Python server takes some twenty times as long as the floor, for which run.py's numbers are made.
SCALE = 1 / 12
HELLO = Case("hello", "/hello", 60000, 200, 12, 12)
NAMES = ("304", "200 1 KiB", "200 64 KiB", "200 1 MiB", "206 1 KiB", "206 100 KiB")

#: By interface: name, kind in pyapps.py, and what runs it.
SERVERS = {
    "wsgi": {
        "Files": ("files", "gunicorn sendgate.gunicorn.ThreadWorker"),
        "Conditional": ("conditional", "gunicorn sendgate.gunicorn.ThreadWorker"),
        "WhiteNoise": ("whitenoise", "gunicorn gthread"),
        "ServeStatic": ("servestatic", "gunicorn gthread"),
        "Werkzeug": ("werkzeug", "gunicorn gthread"),
        "Starlette": ("starlette", "uvicorn httptools"),
    },
    "asgi": {
        "Files": ("asgi_files", "uvicorn sendgate.uvicorn:HttpTools"),
        "Files mounted": ("asgi_mounted", "uvicorn sendgate.uvicorn:HttpTools"),
        "Starlette on sendgate": ("starlette", "uvicorn sendgate.uvicorn:HttpTools"),
        "Starlette": ("starlette", "uvicorn httptools"),
        "Files on stock": ("asgi_files", "uvicorn httptools"),
    },
    "rsgi": {
        "response_file": ("rsgi_bare", "granian uvloop"),
        "Files": ("rsgi_files", "granian uvloop"),
        "Protocol": ("rsgi_protocol", "granian uvloop"),
        "response_file, asyncio": ("rsgi_bare", "granian asyncio"),
        "Files, asyncio": ("rsgi_files", "granian asyncio"),
    },
}
#: What each kind needs.
PACKAGES = {
    "files": "sendgate", "conditional": "sendgate", "asgi_files": "sendgate", "asgi_mounted": "sendgate",
    "hello": "gunicorn", "asgi_hello": "uvicorn", "rsgi_hello": "granian", "rsgi_bare": "granian",
    "rsgi_files": "sendgate", "rsgi_protocol": "sendgate",
}  # fmt: skip
#: The kind that says hello, by server.
HELLOS = {"gunicorn": "hello", "uvicorn": "asgi_hello", "granian": "rsgi_hello"}


def start(name: str, kind: str, runner: str, data: Path, cpus: set[int]) -> Server:
    """One of pyapps.py, on gunicorn with one worker of four threads, on uvicorn with uvloop, or on Granian."""
    python = OUT / "venv" / "bin" / "python"
    server, how = runner.split()
    for needed in (PACKAGES.get(kind, kind), server):
        if not (OUT / "venv" / f".{needed}").exists():
            raise Unavailable(f"{needed} is not installed: run `make bench-peers`")
    begin = start_inherited
    if server == "granian":
        begin = start_on_port  # takes no socket
        command = [python, "-m", "granian", "--interface", "rsgi", "--port", "{port}", "--loop", how]
        command += ["--log-level", "warning"]
    elif server == "uvicorn":
        begin = start_on_port  # of a socket that it is given it believes that it is a UNIX one, and sets no TCP_NODELAY
        command = [python, "-m", "uvicorn", "--port", "{port}", "--http", how, "--loop", "uvloop"]
        command += ["--no-access-log", "--log-level", "warning"]
    else:
        command = [python, "-m", "gunicorn", "-b", "fd://{fd}", "-k", how, "--threads", "4", "--keep-alive", "60"]
        command += ["--log-level", "warning"]
    here = Path(__file__).resolve().parent
    environment = {"SENDGATE_BENCH_DATA": str(data), "PYTHONPATH": str(here)}
    return begin(name, [*map(str, command), f"pyapps:{kind}"], cpus, environment)


def measured(server: Server, case: Case, data: Path, cpu: int, connections: int, scale: float) -> float:
    """Microseconds of CPU per request."""
    request = request_for(server, case, check_answer(server, case, data), data)
    return measure(server, case, request, cpu, connections, scale)[0] / 1000


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measurements per case and server (default 5)")
    parser.add_argument("--connections", type=int, default=8, help="keep-alive connections (default 8)")
    parser.add_argument("--cases", help="comma-separated beginnings of case names, such as 304,206")
    parser.add_argument("--interface", choices=SERVERS, default="wsgi", help="of the applications (default wsgi)")
    parser.add_argument("--servers", help="comma-separated: " + "; ".join(map(",".join, SERVERS.values())))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests (default 1)")
    args = parser.parse_args()
    cases = [c for c in CASES if c.name in NAMES]
    cases = [c for c in cases if not args.cases or any(c.name.startswith(p.strip()) for p in args.cases.split(","))]
    servers = SERVERS[args.interface]
    wanted = args.servers.split(",") if args.servers else list(servers)
    if not cases or not set(wanted) <= set(servers):
        parser.error("no such case or server")
    server_cpu, load_cpu = two_processors()
    OUT.mkdir(parents=True, exist_ok=True)
    build("load")
    enter_network()
    scale = args.scale * SCALE
    runs: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="sendgate-bench-") as tmp:
        data = Path(tmp) / "data"
        make_files(data)
        (data / "hello").write_bytes(b"Hello world\n")
        starts = {name: partial(start, name, *servers[name], data, {server_cpu}) for name in wanted}
        # What a server needs for any answer at all.
        for runner in dict.fromkeys(servers[name][1] for name in wanted):
            hello = HELLOS[runner.split()[0]]
            starts[f"hello, {runner}"] = partial(start, f"hello, {runner}", hello, runner, data, {server_cpu})
        for n in range(args.rounds):
            print(f"round {n + 1} of {args.rounds}", file=sys.stderr)
            for name in list(starts):
                try:
                    server = starts[name]()
                except Unavailable as reason:
                    print(f"skipped {name}: {reason}", file=sys.stderr)
                    del starts[name]
                    continue
                try:
                    check_congestion(server)
                    for case in [HELLO] if name.startswith("hello") else cases:
                        value = measured(server, case, data, load_cpu, args.connections, scale)
                        runs.setdefault(name, {}).setdefault(case.name, []).append(value)
                finally:
                    server.stop()
    medians = {name: {case: statistics.median(v) for case, v in of.items()} for name, of in runs.items()}
    print("CPU time per request (median)\n")
    shown = [name for name in wanted if name in medians]
    print("| case | " + " | ".join(shown) + " |\n| --- |" + " ---: |" * len(shown))
    for case in cases:
        print(f"| {case.name} | " + " | ".join(f"{medians[name][case.name]:.0f} us" for name in shown) + " |")
    hellos = {name: of["hello"] for name, of in medians.items() if name.startswith("hello")}
    print("\n" + "; ".join(f"{name}: {value:.0f} us" for name, value in hellos.items()))
    record = {"kernel": os.uname().release, "congestion": CONGESTION, "cpu_us": runs}
    every = OUT / f"python-{args.interface}.json"
    every.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nEvery single measurement: {every.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
