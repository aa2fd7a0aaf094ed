"""The file_wrapper matrix: asks a server for each case of ``wsgi_cases``, and judges what arrives.

    python bindings/python/tests/wsgi_matrix.py

prints the table of docs/wsgi-servers.md: stock servers, without anything of ours.
"""

from __future__ import annotations

import itertools
import re
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests"))
import rows  # noqa: E402
from wsgi_cases import CASES, Case, adding  # noqa: E402
from wsgi_servers import STOCK, Folder, Server, running, version  # noqa: E402

Address = tuple[str, int]

#: Each request has a number of its own, under which the application notes that its object was closed.
numbers = itertools.count(1)

_NEXT = b"GET /next HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class Verdict:
    """What a client sees of an answer."""

    #: What is wrong with it.
    wrong: list[str] = field(default_factory=list)
    #: By what the body's end is known, if not by Content-Length: "chunked", "until close".
    framing: str = ""

    def __str__(self) -> str:
        if self.wrong:
            return "**" + ", ".join(self.wrong) + "**"
        return f"ok ({self.framing})" if self.framing else "ok"


class _Stream:
    """What arrives on a connection, until a deadline."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self.connection = connection
        self.deadline = time.monotonic() + timeout
        self.pending = bytearray()
        self.ended = False

    def _receive(self) -> None:
        self.connection.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            data = self.connection.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        self.ended = not data
        self.pending += data

    def _take(self, count: int) -> bytes:
        result = bytes(self.pending[:count])
        del self.pending[:count]
        return result

    def until(self, mark: bytes) -> bytes:
        """Up to and with the mark; less only if the connection ends."""
        while mark not in self.pending and not self.ended:
            self._receive()
        cut = self.pending.find(mark)
        return self._take(len(self.pending) if cut < 0 else cut + len(mark))

    def exactly(self, count: int) -> bytes:
        """So many bytes; less only if the connection ends."""
        while len(self.pending) < count and not self.ended:
            self._receive()
        return self._take(count)

    def rest(self) -> bytes:
        """All until the connection ends."""
        while not self.ended:
            self._receive()
        return self._take(len(self.pending))

    def chunked(self) -> bytes:
        """A body (RFC 9112 7.1)."""
        body = bytearray()
        while length := int(self.until(b"\r\n") or b"0", 16):
            body += self.exactly(length)
            self.until(b"\r\n")
        self.until(b"\r\n")
        return bytes(body)


def ask(address: Address, case: Case, folder: Folder, prefix: str, number: int, timeout: float = 30) -> Verdict:
    """One case, and a second request on the same connection if that stays."""
    verdict = Verdict()
    with socket.create_connection(address, timeout=timeout) as connection:
        stream = _Stream(connection, timeout)
        connection.sendall(_request(case, prefix, number))
        try:
            response = _judge(stream, case, folder, verdict)
            if response is not None:
                _after(stream, response, verdict.wrong)
        except TimeoutError:
            verdict.wrong.append("waits for ever")
    return verdict


def ask_all_at_once(address: Address, folder: Folder, prefix: str, timeout: float = 60) -> dict[str, list[str]]:
    """All cases on one connection, without waiting for the answers (RFC 9112 9.3.2). What is wrong, by case.

    Where the server says that it closes the connection, the rest is asked on another one.
    """
    found: dict[str, list[str]] = {}
    while left := [case for case in CASES if case.name not in found]:
        with socket.create_connection(address, timeout=timeout) as connection:
            stream = _Stream(connection, timeout)
            connection.sendall(b"".join(_request(case, prefix, next(numbers)) for case in left))
            for case in left:
                verdict = Verdict()
                response = _judge(stream, case, folder, verdict)
                found[case.name] = verdict.wrong
                if response is None or verdict.wrong:
                    return found
                if not response.keep_alive:
                    break
            else:
                connection.sendall(_NEXT)
            rest = stream.rest()
            if (b"\r\n\r\nnext" in rest) != response.keep_alive:
                found["the end"] = [repr(rest)]
    return found


def _request(case: Case, prefix: str, number: int) -> bytes:
    return f"{case.method} /{prefix}/{case.slug}?{number} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def _judge(stream: _Stream, case: Case, folder: Folder, verdict: Verdict) -> rows.Response | None:
    """Take one answer. Returns it if anything can be said of what comes after it."""
    content = (folder.files / case.path.name).read_bytes()[case.first : case.last]
    wrong = verdict.wrong
    head = stream.until(b"\r\n\r\n")
    if not head:
        wrong.append("no answer")
        return None
    response = rows.parse_response(head, case.method, body_follows=False)
    if response.status != int(case.status[:3]):
        wrong.append(str(response.status))
        return None
    if case.middleware is adding and not response.get("X-Added"):
        wrong.append("the field is lost")
    announced = response.get("Content-Length")
    if case.method == "HEAD" or response.status == 304:
        # A 304 may leave it out (RFC 9110 8.6).
        if announced != str(len(content)) and not (response.status == 304 and announced is None):
            wrong.append(f"Content-Length {announced}")
        return response
    if response.get("Transfer-Encoding") == "chunked":
        verdict.framing = "chunked"
        body = stream.chunked()
    elif announced is not None:
        body = stream.exactly(int(announced))
    else:
        verdict.framing = "until close"
        body = stream.rest()
    if body and body != content[: len(body)]:
        wrong.append("wrong bytes")
    elif announced is not None and len(body) < int(announced):
        wrong.append(f"{len(body)} bytes of {announced}, closed")
        return None
    elif len(body) != len(content):
        wrong.append(f"{len(body)} bytes instead of {len(content)}")
    return response


def _after(stream: _Stream, response: rows.Response, wrong: list[str]) -> None:
    """The connection ends, or the next request is answered on it, and there is nothing in between."""
    keeps = response.keep_alive and (response.version == "HTTP/1.1" or response.get("Connection") is not None)
    if keeps and not stream.ended:
        try:
            stream.connection.sendall(_NEXT)
        except OSError:
            stream.ended = True
    rest = stream.rest()
    found = re.search(rb"HTTP/1\.[01] 200 .*\r\n\r\nnext\Z", rest, re.DOTALL) if keeps else None
    surplus = found.start() if found else len(rest)
    if surplus:
        wrong.append(f"+{surplus} bytes")
    if keeps and not found:
        wrong.append("the next request fails")


def closes(folder: Folder, number: int, timeout: float = 30) -> int:
    """How often the request's object was closed. Waits until it is at least once."""
    path = folder.closed / str(number)
    deadline = time.monotonic() + timeout
    while True:
        count = path.stat().st_size if path.exists() else 0
        if count or time.monotonic() > deadline:
            return count
        time.sleep(0.002)


def cell(address: Address, case: Case, folder: Folder) -> str:
    """For the table, of a server without anything of ours."""
    number = next(numbers)
    verdict = ask(address, case, folder, "plain", number, timeout=3)
    if case.closes and "500" not in verdict.wrong:
        count = closes(folder, number, timeout=1)
        if count != 1:
            verdict.wrong.append("not closed" if count == 0 else f"closed {count} times")
    return str(verdict)


def about(address: Address) -> str:
    """What the server says it is to an application."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(_NEXT.replace(b"/next", b"/about"))
        return _Stream(connection, 30).rest().partition(b"\r\n\r\n")[2].decode()


def table(servers: tuple[Server, ...]) -> str:
    """In Markdown."""
    names = ["case"]
    lines: list[list[str]] = [[case.name] for case in CASES]
    with Folder() as folder:
        for server in servers:
            reason = server.missing()
            if reason is not None:
                print(reason, file=sys.stderr)
                continue
            with running(server, folder) as (address, _):
                names.append(f"{server.name} ({version(server, about(address))})")
                for line, case in zip(lines, CASES):
                    line.append(cell(address, case, folder))
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, ["---"] * len(names), *lines])


if __name__ == "__main__":
    print(table(STOCK))
