#!/usr/bin/env python3
"""How long downloads hold up an asyncio event loop: a hundred at once, and a coroutine that wants to run all the time.

Called by `make bench` and `make bench-stall`. bench/README.md says what is measured and why. Standard library only.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from clients import Load, request_head
from network import CONGESTION, check_congestion, enter_network
from quiet import Disturbance, Watch, undisturbed
from servers import OUT, ROOT, Server, Unavailable, build, start_python, two_processors

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclasses.dataclass
class Window:
    """What was seen in a few seconds."""

    late_s: list[float]  # how late the loop woke the coroutine, each time
    bytes_per_s: float
    least: int  # bytes of the client that got least
    most: int
    cpu: float  # of one processor, that the server used
    disturbance: Disturbance

    def longest_ms(self) -> float:
        """The longest that the loop was held up."""
        return max(self.late_s) * 1000

    def p999_ms(self) -> float:
        """One time in a thousand it was held up for longer than this."""
        return sorted(self.late_s)[int(len(self.late_s) * 0.999)] * 1000


def command(server: Server, line: str) -> None:
    """Tell pyserver.py something."""
    server.process.stdin.write(line + "\n")
    server.process.stdin.flush()


class Downloads:
    """The file, and those who read it."""

    def __init__(self, file: Path, size: int, small: Path, clients: int, load_cpu: int) -> None:
        self.file, self.size, self.small, self.clients, self.load_cpu = file, size, small, clients, load_cpu

    def window(self, start: Callable[[], Server], how: str, seconds: float) -> tuple[Window, Disturbance]:
        """Watch the loop of a new server for some seconds; how: idle, warm or cold.

        A new one each time, because some read on for minutes for clients that have hung up.
        """
        server = start()
        load = None
        try:
            check_congestion(server)
            self.make_used(server)
            if how != "idle":
                self.prepare(how)
                head = request_head("GET", f"/{self.file.name}")
                arguments = server.port, self.clients, seconds, self.size, CONGESTION
                load = Load(self.load_cpu, head, "drain", *arguments, what=server.name)
                load.ready()
            watch = Watch(server.cpu_ns, *([load.cpu_ns] if load else []))
            begun, before = time.monotonic(), server.cpu_ns()
            command(server, "begin")
            if load:
                result = load.go()
            else:
                time.sleep(seconds)
                result = {"seconds": seconds, "bytes": 0, "least": 0, "most": 0}
            command(server, "end")
            late = json.loads(server.process.stdout.readline())
            cpu = (server.cpu_ns() - before) / 1e9 / (time.monotonic() - begun)
            seen = watch.seen()
        finally:
            server.kill()
            if load:
                load.end()
        rate = result["bytes"] / result["seconds"]
        return Window(late, rate, result["least"], result["most"], cpu, seen), seen

    def make_used(self, server: Server) -> None:
        """Let it do what it does on first use: imports, threads, a sender."""
        size = self.small.stat().st_size
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), 10) as client:
                client.sendall(request_head("GET", f"/{self.small.name}"))
                left, head = size, b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(65536) or self.gave_up(server)
                left -= len(head) - head.index(b"\r\n\r\n") - 4
                while left > 0:
                    left -= len(client.recv(65536) or self.gave_up(server))

    @staticmethod
    def gave_up(server: Server) -> NoReturn:
        """The connection ended too early."""
        raise SystemExit(f"{server.name} closed the connection in the middle of an answer")

    def prepare(self, how: str) -> None:
        """Put all of the file into the page cache, or none of it."""
        fd = os.open(self.file, os.O_RDONLY)
        if how == "cold":
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            at = 0
            while at < self.size:
                at += len(os.pread(fd, MIB, at))
        os.close(fd)


def make_file(file: Path, size: int) -> None:
    """A file with content: of one with a hole instead, nothing would ever have to come from the disk."""
    if file.exists() and file.stat().st_size == size:
        return
    block = os.urandom(MIB)
    with open(file, "wb") as out:
        for _ in range(size // MIB):
            out.write(block)
        # What isn't on the disk yet can't be dropped from the page cache.
        os.fsync(out.fileno())


def differences(rounds: list[dict[str, Window]], how: str, what: str) -> str:
    """The median over the rounds of what it was more than when idle, and what it lies between."""
    values = [getattr(r[how], what)() - getattr(r["idle"], what)() for r in rounds]
    return f"{statistics.median(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})"


def table(rounds: dict[str, list[dict[str, Window]]]) -> str:
    """A Markdown table of the medians over the rounds."""
    lines = [
        "| server, loop | idle: longest | warm: longest | p99.9 | sent | cold: longest | p99.9 | sent |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, of_server in rounds.items():
        cells = [name, f"{statistics.median(r['idle'].longest_ms() for r in of_server):.1f} ms"]
        for how in ("warm", "cold"):
            cells.append(differences(of_server, how, "longest_ms"))
            cells.append(differences(of_server, how, "p999_ms"))
            cells.append(f"{statistics.median(r[how].bytes_per_s for r in of_server) / GIB:.2f} GiB/s")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    servers = {
        f"{name}, {loop}": partial(start_python, kind, loop)
        for name, kind, loops in (
            ("sendgate.asyncio", "sendgate", ("asyncio", "uvloop")),
            # uvloop 0.23 has none: NotImplementedError.
            ("loop.sendfile", "loop.sendfile", ("asyncio",)),
            ("aiohttp FileResponse", "aiohttp", ("asyncio", "uvloop")),
            ("Starlette FileResponse", "starlette", ("asyncio", "uvloop")),
        )
        for loop in loops
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each server is measured (default 3)")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (default 4)")
    parser.add_argument("--clients", type=int, default=100, help="that download at once (default 100)")
    parser.add_argument("--size", type=int, default=1024, help="of the file, in MiB (default 1024)")
    parser.add_argument("--servers", help="comma-separated beginnings of names, such as send,aio")
    parser.add_argument("--patience", type=float, default=10, help="seconds to wait for other processes (default 10)")
    parser.add_argument("--both", action="store_true", help="let the server also use the processor of the clients")
    args = parser.parse_args()
    wanted = [s for s in servers if not args.servers or any(s.startswith(p) for p in args.servers.split(","))]
    if not wanted:
        parser.error("no such server")

    server_cpu, load_cpu = two_processors()
    cpus = {server_cpu, load_cpu} if args.both else {server_cpu}
    OUT.mkdir(parents=True, exist_ok=True)
    build("drain")
    enter_network()
    rounds: dict[str, list[dict[str, Window]]] = {}
    # Not in a temporary directory, which may be in memory. Its content is the same for the next time.
    data = OUT / "files"
    data.mkdir(exist_ok=True)
    (data / "1k.bin").write_bytes(bytes(1024))
    # More than is sent without waiting.
    small = data / "some.bin"
    small.write_bytes(bytes(2 * MIB))
    downloads = Downloads(data / "large.bin", args.size * MIB, small, args.clients, load_cpu)
    make_file(downloads.file, downloads.size)
    with tempfile.TemporaryDirectory(prefix="sendgate-bench-") as tmp:
        for n in range(args.rounds):
            print(f"round {n + 1} of {args.rounds}", file=sys.stderr)
            for name in list(wanted):
                start = partial(servers[name], data=data, work=Path(tmp), cpus=cpus)
                try:
                    windows = {
                        how: undisturbed(
                            f"{name}, {how}", args.patience, partial(downloads.window, start, how, args.seconds)
                        )[0]
                        for how in ("idle", "warm", "cold")
                    }
                except Unavailable as reason:
                    print(f"skipped {name}: {reason}", file=sys.stderr)
                    wanted.remove(name)
                    continue
                rounds.setdefault(name, []).append(windows)
    if not rounds:
        raise SystemExit("no server to measure")
    print("How late the event loop was, in ms more than when idle: median over the rounds (least to most)\n")
    print(table(rounds))
    record = {name: [{how: dataclasses.asdict(w) for how, w in r.items()} for r in of] for name, of in rounds.items()}
    (OUT / "stall.json").write_text(json.dumps({"kernel": os.uname().release, "rounds": record}) + "\n")
    print(f"\nEvery single measurement: {(OUT / 'stall.json').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
