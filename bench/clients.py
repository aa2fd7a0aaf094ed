"""The programs in C that play the clients: load.c, stalled.c, probe.c, drain.c."""

import json
import os
import subprocess

from servers import OUT, cpu_ns


def request_head(method: str, path: str, *fields: str) -> bytes:
    """The head of a request, as a browser-like client would send it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "User-Agent: load", "Accept: */*", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Load:
    """One of them at work: it gets a request, says when it is ready, and goes on when it is told to."""

    def __init__(self, cpu: int, request: bytes, program: str, *arguments: object, what: str) -> None:
        self.what = what
        self.process = subprocess.Popen(
            [str(OUT / program), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
        )
        self.process.stdin.write(request)
        self.process.stdin.flush()

    def line(self) -> bytes:
        """What it says next."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.what}: the load generator gave up")
        return line

    def ready(self) -> None:
        """Wait until all is set up."""
        if (line := self.line()) != b"ready\n":
            raise SystemExit(f"{self.what}: the load generator says {line!r}")

    def go(self) -> dict:
        """Let it do what it is for. What it found."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return json.loads(self.line())

    def end(self) -> None:
        """Wait until it is gone."""
        self.process.stdin.close()
        if self.process.wait() != 0:
            raise SystemExit(f"{self.what}: the load generator failed")

    def cpu_ns(self) -> int:
        """CPU time that it has used so far, in nanoseconds."""
        return cpu_ns(self.process.pid)
