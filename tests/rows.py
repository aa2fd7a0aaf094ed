"""The rows of tests/cases/*.toml: load them, make their files, ask a server, judge its answer.

Standard library only (``tomllib``, or the ``tomli`` package before Python 3.11), because every test of a
server's door shares this module by path. The format of the rows is in tests/cases/README.md.

Over a socket::

    for row in rows.load():
        if row.values_only:
            continue
        path = rows.make_file(directory, row)
        tag = rows.file_tag(path)
        request = rows.build_request(row, "/" + path.name, "localhost", tag)
        response = rows.fetch(("127.0.0.1", port), request, probe=rows.probe("/" + path.name))
        rows.check(row, response, etag=tag)

On values: join the head and the body that the engine made and hand them to ``parse_response``; with
only the head, ``parse_response(head, body_follows=False)``.

Text is ``str`` in which a character U+0000 to U+00FF stands for the byte of that number (latin-1), because
fields of HTTP are bytes and no encoding is known for them.
"""

from __future__ import annotations

import calendar
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CASES = Path(__file__).resolve().parent / "cases"

#: Files longer than this many bytes are made sparse: real bytes only where the row expects some.
SPARSE_ABOVE = 1 << 20

#: Seconds between a "future" file's modification time and the clock.
FUTURE = 86400

RULES = ("default", "override", "append", "remove")

#: Fields that RFC 9110 and RFC 9111 allow once per message.
SINGLETONS = (
    "age", "content-length", "content-location", "content-range", "content-type", "date", "etag", "expires",
    "last-modified", "location", "retry-after",
)  # fmt: skip

#: Over a socket a row with one of these needs a server whose application or clock the test controls.
NEEDS_VALUES = ("now", "status", "headers", "max_ranges", "close")

Range = tuple[int, int]
Address = Union[str, tuple[str, int]]  # noqa: UP007 - evaluated, so not yet in Python 3.9


class RowError(Exception):
    """A row breaks the rules of tests/cases/README.md. The message names file and row."""


class ProtocolError(Exception):
    """The bytes that arrived are not the one well-formed HTTP/1.1 response that was due."""


class Mismatch(AssertionError):
    """A well-formed response is not what the row expects. The message lists every difference."""


# ---- Rows ----


@dataclass(frozen=True)
class Row:
    """One case, with the defaults of tests/cases/README.md filled in."""

    name: str
    rule: str
    source: str  #: name of the TOML file
    method: str = "GET"
    version: int = 11
    request: tuple[tuple[str, str], ...] = ()  #: placeholders not yet expanded: see ``request_fields``
    length: int = 1000  #: of the file, in bytes
    mtime: int | str = 784111777  #: seconds since 1970, "now" or "future": see ``mtime_at``
    mtime_nsec: int = 123456789
    now: int = 1700000000
    content_type: str = "text/plain"
    status: int = 200  #: the application's own
    headers: tuple[tuple[str, str, str, bool], ...] = ()  #: name, value, one of RULES, frozen
    max_ranges: int = 64
    close: bool = False
    body: bool = False
    values_only: str | None = None
    nginx: dict[str, Any] | None = None
    expect: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def error(self) -> str | None:
        """FIELD or INVALID if the engine must refuse the exchange, else None."""
        return self.expect.get("error")

    @property
    def ranges(self) -> list[Range]:
        """The bytes expected in the body as (first, last), both inclusive; empty if not a 206."""
        return [(first, last) for first, last in self.expect.get("ranges", [])]

    def mtime_at(self, now: int) -> int:
        """The modification time in seconds since 1970, if the clock says ``now``."""
        if self.mtime == "now":
            return now
        if self.mtime == "future":
            return now + FUTURE
        assert isinstance(self.mtime, int)
        return self.mtime

    def request_fields(self, etag: str) -> list[tuple[bytes, bytes]]:
        """The request's field lines as bytes, with the placeholders standing for ``etag`` (strong, with quotes)."""
        opaque = etag[1:-1]
        return [
            (name.encode("latin-1"), value.replace("{etag}", etag).replace("{opaque}", opaque).encode("latin-1"))
            for name, value in self.request
        ]

    def part_type(self) -> str | None:
        """The Content-Type of a 200 for this row, which is also that of each part (RFC 9110 15.3.7.2)."""
        result: str | None = self.content_type
        for name, value, rule, _frozen in self.headers:
            if name.lower() == "content-type" and rule == "override":
                result = value
            elif name.lower() == "content-type" and rule == "remove":
                result = None
        return result


_KINDS: dict[str, Any] = {
    "name": str, "rule": str, "method": str, "version": int, "request": list, "file": dict, "now": int,
    "content_type": str, "status": int, "headers": list, "max_ranges": int, "close": bool, "body": bool,
    "values_only": str, "nginx": dict, "expect": dict,
}  # fmt: skip
_FILE_KINDS: dict[str, Any] = {"length": int, "mtime": (int, str), "mtime_nsec": int}
_EXPECT_KINDS: dict[str, Any] = {
    "status": int, "ranges": list, "content_range": str, "content_length": int, "etag": str, "last_modified": str,
    "fields": list, "absent": list, "keep_alive": bool, "error": str,
}  # fmt: skip
_NGINX_KINDS: dict[str, Any] = {"status": int, "ranges": list, "content_range": str, "why": str, "skip": str}


def load(directory: str | os.PathLike[str] = CASES) -> list[Row]:
    """All rows of the directory's *.toml, in the order of file name and line.

    Raises RowError for an unknown key, a wrong type, a name that occurs twice, or a row that can't be judged.
    """
    result: list[Row] = []
    seen: dict[str, str] = {}
    for path in sorted(Path(directory).glob("*.toml")):
        with path.open("rb") as file:
            table = tomllib.load(file)
        if set(table) != {"case"}:
            raise RowError(f"{path.name}: only [[case]] tables are allowed, found {sorted(table)}")
        for case in table["case"]:
            row = _row(case, path.name)
            if row.name in seen:
                raise RowError(f"{path.name}: {row.name!r} is already in {seen[row.name]}")
            seen[row.name] = path.name
            result.append(row)
    if not result:
        raise RowError(f"no rows in {directory}")
    return result


def _row(case: dict[str, Any], source: str) -> Row:
    where = f"{source}: {case.get('name', case)!r}"

    def need(condition: object, message: str) -> None:
        if not condition:
            raise RowError(f"{where}: {message}")

    def typed(table: dict[str, Any], kinds: dict[str, Any], what: str) -> None:
        for key, value in table.items():
            need(key in kinds, f"unknown key {key!r} in {what}")
            # bool is a subclass of int, and `status = true` is not a number.
            good = isinstance(value, kinds[key]) and (kinds[key] is bool or not isinstance(value, bool))
            need(good, f"{what}: {key} has the wrong type")

    def pairs(value: list[Any], width: int, what: str) -> None:
        for entry in value:
            good = isinstance(entry, list) and len(entry) == width and all(isinstance(text, str) for text in entry)
            need(good, f"{what}: {entry!r} is not {width} strings")
            need(all(ord(c) < 256 for text in entry for c in text), f"{what}: {entry!r} has a character above U+00FF")

    def ranges(value: list[Any]) -> None:
        for entry in value:
            good = isinstance(entry, list) and len(entry) == 2 and all(type(n) is int for n in entry)
            need(good and 0 <= entry[0] <= entry[1], f"ranges: {entry!r} is not [first, last]")

    typed(case, _KINDS, "the row")
    for key in ("name", "rule", "expect"):
        need(case.get(key), f"{key} is missing")
    need(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", case["name"]), "a name is lower-case words joined with -")

    file = case.get("file", {})
    typed(file, _FILE_KINDS, "file")
    mtime = file.get("mtime", Row.mtime)
    need(isinstance(mtime, int) or mtime in ("now", "future"), f"mtime {mtime!r}")
    need(file.get("length", 0) >= 0, "length below 0")

    expect = case["expect"]
    typed(expect, _EXPECT_KINDS, "expect")
    if "error" in expect:
        need(expect["error"] in ("FIELD", "INVALID"), f"error {expect['error']!r}")
        need(len(expect) == 1, "with error nothing else can be expected")
        need("values_only" in case, "a refused exchange can't be seen over a socket: say so in values_only")
    else:
        need("status" in expect, "expect has neither status nor error")
        need((expect["status"] == 206) == ("ranges" in expect), "ranges are given for 206, and only then")
    ranges(expect.get("ranges", []))
    pairs(expect.get("fields", []), 2, "expect.fields")
    need(all(isinstance(name, str) for name in expect.get("absent", [])), "expect.absent is a list of names")

    pairs(case.get("request", []), 2, "request")
    pairs(case.get("headers", []), 3, "headers")
    headers = []
    for name, value, rule in case.get("headers", []):
        kind, plus, flag = rule.partition("+")
        need(kind in RULES and (not plus or flag == "frozen"), f"headers: unknown rule {rule!r}")
        headers.append((name, value, kind, bool(plus)))

    need(case.get("version", 11) in (10, 11), "version is 10 or 11")
    for key in NEEDS_VALUES:
        need(key not in case or "values_only" in case, f"{key} can't be set over a socket: say so in values_only")
    need(case.get("values_only") != "", "values_only is a sentence")

    nginx = case.get("nginx")
    if nginx is not None:
        typed(nginx, _NGINX_KINDS, "nginx")
        need("values_only" not in case, "values_only rows never reach nginx")
        need(nginx.get("why") if "status" in nginx else set(nginx) == {"skip"}, "nginx needs status and why, or skip")
        ranges(nginx.get("ranges", []))

    length = file.get("length", Row.length)
    big_body = expect.get("status") == 200 and case.get("method", "GET") != "HEAD" and length > SPARSE_ABOVE
    need("values_only" in case or not big_body, "a whole file above 1 MiB is too much for a row over a socket")
    return Row(
        source=source,
        request=tuple((name, value) for name, value in case.get("request", [])),
        length=length,
        mtime=mtime,
        mtime_nsec=file.get("mtime_nsec", Row.mtime_nsec),
        headers=tuple(headers),
        **{key: value for key, value in case.items() if key not in ("request", "file", "headers")},
    )


# ---- Files ----


def content(first: int, length: int) -> bytes:
    """``length`` bytes of every row's file, from offset ``first`` on.

    Block k of 32 bytes is the SHA-256 of the number k, so no two places look alike and a wrong offset shows.
    """
    start = first // 32
    stop = (first + length + 31) // 32
    blocks = b"".join(hashlib.sha256(b"%d" % k).digest() for k in range(start, stop))
    return blocks[first - start * 32 :][:length]


_SUFFIXES = {"text/plain": ".txt", "text/html": ".html", "application/octet-stream": ".bin", "image/png": ".png"}


def make_file(directory: str | os.PathLike[str], row: Row) -> Path:
    """Make the row's file, named after the row, with its length, content and modification time; return its path.

    "now" and "future" are taken from the clock, so call this right before the request. A file above SPARSE_ABOVE
    is sparse, with real bytes only around the ranges that the row expects.
    """
    path = Path(directory) / (row.name + _SUFFIXES.get(row.content_type, ""))
    with path.open("wb") as file:
        if row.length <= SPARSE_ABOVE:
            file.write(content(0, row.length))
        else:
            file.truncate(row.length)
            for first, last in row.ranges:
                start, stop = max(0, first - 64), min(row.length, last + 65)
                file.seek(start)
                file.write(content(start, stop - start))
    mtime_ns = row.mtime_at(int(time.time())) * 10**9 + row.mtime_nsec
    os.utime(path, ns=(mtime_ns, mtime_ns))
    if os.stat(path).st_mtime_ns != mtime_ns:
        raise RowError(f"{row.name}: the file system can't store the modification time {mtime_ns} ns")
    return path


def entity_tag(mtime_ns: int, length: int) -> str:
    """The strong form of the tag that sendgate gives a file, with its quotes."""
    return f'"{mtime_ns:x}-{length:x}"'


def file_tag(path: str | os.PathLike[str]) -> str:
    """``entity_tag`` of a file that exists."""
    stat = os.stat(path)
    return entity_tag(stat.st_mtime_ns, stat.st_size)


# ---- Requests and responses ----


def build_request(row: Row, target: str, host: str, etag: str) -> bytes:
    """The row's request head. ``etag`` is the file's tag in the server's own words, strong, with quotes.

    A row with ``body`` announces 5 bytes of content. They are not in the result and need not be sent: whether the
    connection is reused is decided from the head, and content on its way to a socket that is being closed
    could make the kernel throw the answer away (RFC 9112 9.6).
    """
    lines = [f"{row.method} {target} HTTP/{row.version // 10}.{row.version % 10}".encode("latin-1")]
    lines.append(b"Host: " + host.encode("latin-1"))
    lines += [name + b": " + value for name, value in row.request_fields(etag)]
    if row.body:
        lines.append(b"Content-Length: 5")
    return b"\r\n".join(lines) + b"\r\n\r\n"


#: Content that a request announces by its fields.
_CONTENT = {
    "conn-unread-chunked-body": b"5\r\nHello\r\n0\r\n\r\n",
    "conn-unread-body-of-known-length": b"1234567",
}


def content_of(row: Row) -> bytes:
    """What follows the head of the row's request. ``build_request`` leaves it out; a server may want to have it before
    it answers.
    """
    return _CONTENT.get(row.name, b"12345" if row.body else b"")


def probe(target: str, host: str = "localhost") -> bytes:
    """A second request for ``fetch``, which shows that the first answer left the connection in step."""
    return f"HEAD {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1")


@dataclass(frozen=True)
class Part:
    """One part of a multipart/byteranges body."""

    first: int
    last: int
    complete: int  #: length of the whole representation
    fields: list[tuple[str, str]]
    data: bytes


@dataclass
class Response:
    """One response. ``body`` is None if only the head is known."""

    version: str  #: "HTTP/1.1"
    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes | None
    head: bytes  #: as received, for messages
    request_version: int = 11  #: of the request it answers: 10 or 11
    asked: int | None = None  #: when the request was sent, in seconds since 1970, where that is known

    def all(self, name: str) -> list[str]:
        """The values of all lines with this name, in order."""
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """The value of the one line with this name, None if there is none. Several lines: ProtocolError."""
        values = self.all(name)
        if len(values) > 1:
            raise ProtocolError(f"{len(values)} lines of {name}: {values}")
        return values[0] if values else None

    @property
    def keep_alive(self) -> bool:
        """Whether the head lets the client reuse the connection (RFC 9112 9.3)."""
        options = [option.strip().lower() for value in self.all("Connection") for option in value.split(",")]
        if "close" in options:
            return False
        return self.request_version == 11 or "keep-alive" in options

    def content_range(self) -> tuple[int, int, int] | None:
        """(first, last, complete length) of Content-Range, None if there is none or it says ``*``."""
        value = self.get("Content-Range")
        if value is None or value.startswith("bytes */"):
            return None
        return _content_range(value)

    def parts(self, *, preamble: bool = False) -> list[Part]:
        """The parts of a multipart/byteranges body, read as strictly as sendgate writes them.

        preamble: allow the empty line before the first boundary that RFC 2046 5.1.1 allows and nginx sends.
        """
        assert self.body is not None, "needs the body"
        media = re.fullmatch(
            r"multipart/byteranges; ?boundary=(\"?)([0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-])\1",
            self.get("Content-Type") or "",
        )
        if not media:
            raise ProtocolError(f"not multipart/byteranges with a boundary: {self.get('Content-Type')!r}")
        boundary = b"--" + media[2].encode("latin-1")
        rest = self.body
        if preamble and rest.startswith(b"\r\n"):
            rest = rest[2:]
        parts = []
        while rest.startswith(boundary + b"\r\n"):
            head, empty, rest = rest[len(boundary) + 2 :].partition(b"\r\n\r\n")
            if not empty:
                raise ProtocolError("a part's head has no end")
            fields = _fields(head.split(b"\r\n"))
            values = [value for name, value in fields if name.lower() == "content-range"]
            if len(values) != 1:
                raise ProtocolError(f"a part has {len(values)} Content-Range: {head!r}")
            first, last, complete = _content_range(values[0])
            length = last - first + 1
            data, rest = rest[:length], rest[length:]
            if not rest.startswith(b"\r\n"):
                raise ProtocolError(f"{values[0]}: {len(data)} bytes, and no CRLF after them but {rest[:8]!r}")
            if boundary in data:
                raise ProtocolError(f"the boundary {media[2]} occurs in the content")
            rest = rest[2:]
            parts.append(Part(first, last, complete, fields, data))
        if rest != boundary + b"--\r\n":
            raise ProtocolError(f"after {len(parts)} parts: {rest[:100]!r} instead of the closing boundary")
        if not parts:
            raise ProtocolError("a multipart body without parts (RFC 2046 5.1 wants at least one)")
        return parts


def _content_range(value: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"bytes (0|[1-9][0-9]*)-(0|[1-9][0-9]*)/([1-9][0-9]*)", value)
    if not match:
        raise ProtocolError(f"malformed Content-Range {value!r}")
    first, last, complete = (int(number) for number in match.groups())
    if not first <= last < complete:
        raise ProtocolError(f"impossible Content-Range {value!r}")
    return first, last, complete


_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _fields(lines: Iterable[bytes]) -> list[tuple[str, str]]:
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(rb"[\r\n\0]", value):
            raise ProtocolError(f"malformed field line {line!r}")
        fields.append((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")))
    return fields


def _parse_head(head: bytes, request_version: int) -> Response:
    """``head`` ends with its empty line."""
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    status = re.fullmatch(rb"(HTTP/1\.[01]) ([2-9][0-9][0-9]) ([\t -~\x80-\xff]*)", lines[0])
    if not status:
        raise ProtocolError(f"malformed status line {lines[0]!r}")
    fields = _fields(lines[1:])
    return Response(
        status[1].decode(), int(status[2]), status[3].decode("latin-1"), fields, None, head, request_version
    )


def _body_length(response: Response, method: str) -> int:
    """Bytes after the head, by RFC 9112 6.3. Every response here has to announce them."""
    if response.all("Transfer-Encoding"):
        raise ProtocolError("Transfer-Encoding, though the length is known")
    announced = response.get("Content-Length")
    if announced is not None and not re.fullmatch(r"0|[1-9][0-9]*", announced):
        raise ProtocolError(f"malformed Content-Length {announced!r}")
    if method == "HEAD" or response.status in (204, 304):
        return 0
    if announced is None:
        raise ProtocolError(f"{response.status} without Content-Length")
    return int(announced)


def parse_response(
    data: bytes, method: str = "GET", *, request_version: int = 11, body_follows: bool = True
) -> Response:
    """One whole response from its bytes. Too few bytes or too many: ProtocolError.

    body_follows: False if ``data`` is the head alone; then ``body`` is None and isn't checked later.
    """
    head, empty, rest = data.partition(b"\r\n\r\n")
    if not empty:
        raise ProtocolError(f"the head has no end: {data!r}")
    response = _parse_head(head + empty, request_version)
    if not body_follows:
        if rest:
            raise ProtocolError(f"{len(rest)} bytes after the head")
        return response
    length = _body_length(response, method)
    if len(rest) != length:
        raise ProtocolError(f"{len(rest)} bytes after the head instead of {length}\n{response.head!r}")
    response.body = rest
    return response


class _Reader:
    """Takes exactly what is asked for from a socket, and knows what is left."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline
        self.pending = b""

    def _receive(self) -> bytes:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ProtocolError(f"no complete answer in time; so far {self.pending[:200]!r}")
        self.connection.settimeout(left)
        try:
            return self.connection.recv(1 << 16)
        except socket.timeout as error:  # noqa: UP041 - a class of its own before Python 3.10
            raise ProtocolError(f"no complete answer in time; so far {self.pending[:200]!r}") from error

    def until(self, mark: bytes) -> bytes:
        while mark not in self.pending:
            more = self._receive()
            if not more:
                raise ProtocolError(f"closed inside the head: {self.pending!r}")
            self.pending += more
        cut = self.pending.index(mark) + len(mark)
        result, self.pending = self.pending[:cut], self.pending[cut:]
        return result

    def exactly(self, length: int) -> bytes:
        chunks, got = [self.pending], len(self.pending)
        while got < length:
            more = self._receive()
            if not more:
                raise ProtocolError(f"closed after {got} of {length} bytes of the body")
            chunks.append(more)
            got += len(more)
        data = b"".join(chunks)
        self.pending = data[length:]
        return data[:length]

    def end(self) -> None:
        """The peer must close without another byte."""
        try:
            rest = self.pending or self._receive()
        except ConnectionResetError:
            return  # the close of a server that left request content unread
        if rest:
            raise ProtocolError(f"bytes after the answer: {rest[:200]!r}")


def connect(address: Address, timeout: float = 10) -> socket.socket:
    """A connection to (host, port), or to the UNIX socket with this path."""
    if isinstance(address, str):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        connection.connect(address)
        return connection
    return socket.create_connection(address, timeout=timeout)


def fetch(address: Address, request: bytes, *, timeout: float = 10, probe: bytes | None = None) -> Response:
    """Send one request head, return the one response. Everything about its framing is checked.

    An announced close must come, with no byte before it. If reuse was announced and ``probe`` (a HEAD) is given, it
    is sent on the same connection and must be answered properly, which shows that neither side is out of step.
    timeout: seconds for all of it. Raises ProtocolError.
    """
    method, _, version = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    with connect(address, timeout) as connection:
        reader = _Reader(connection, time.monotonic() + timeout)
        asked = int(time.time())
        connection.sendall(request)
        response = _parse_head(reader.until(b"\r\n\r\n"), 10 if version == "HTTP/1.0" else 11)
        response.asked = asked
        response.body = reader.exactly(_body_length(response, method))
        if reader.pending:
            raise ProtocolError(f"bytes after the answer: {reader.pending[:200]!r}\n{response.head!r}")
        if not response.keep_alive:
            reader.end()
        elif probe is not None:
            try:
                connection.sendall(probe)
                second = _parse_head(reader.until(b"\r\n\r\n"), 11)
                reader.exactly(_body_length(second, "HEAD"))
                if not second.keep_alive:
                    reader.end()
            except (ProtocolError, OSError) as error:
                raise ProtocolError(f"reuse was announced, but the second request failed: {error}") from error
    return response


# ---- Judging ----

_IMF = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d\d) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) (\d{4}) "
    r"(\d\d):(\d\d):(\d\d) GMT"
)


def parse_date(value: str) -> int | None:
    """Seconds since 1970 of an IMF-fixdate whose weekday is right, else None. (No locale, unlike strptime.)"""
    match = _IMF.fullmatch(value)
    if not match:
        return None
    month = "JanFebMarAprMayJunJulAugSepOctNovDec".index(match[3]) // 3 + 1
    day, year, hour, minute, second = (int(match[k]) for k in (2, 4, 5, 6, 7))
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    again = time.gmtime(seconds)
    weekday = "MonTueWedThuFriSatSun"[again.tm_wday * 3 :][:3]
    good = again[:6] == (year, month, day, hour, minute, second) and weekday == match[1]
    return seconds if good else None


def check_content(
    response: Response, expect: dict[str, Any], length: int, *, whole: bool, preamble: bool = False
) -> list[str]:
    """Status, Content-Range and bytes: what every server has to agree on. Returns the differences.

    expect: ``status``, and ``ranges`` and ``content_range`` if they are to be looked at. length: of the file.
    whole: the body of an answer other than 206 is the file (False: it is the server's own and isn't looked at).
    preamble: see ``Response.parts``. The method was GET, or ``response.body`` is empty or None.
    """
    wrong: list[str] = []
    if response.status != expect["status"]:
        wrong.append(f"status {response.status} instead of {expect['status']}")
        return wrong
    if "content_range" in expect and response.get("Content-Range") != expect["content_range"]:
        wrong.append(f"Content-Range {response.get('Content-Range')!r} instead of {expect['content_range']!r}")
    ranges = [(first, last) for first, last in expect.get("ranges", [])]
    if len(ranges) == 1 and response.body is not None:
        first, last = ranges[0]
        if "content_range" not in expect and response.content_range() != (first, last, length):
            wrong.append(f"Content-Range {response.get('Content-Range')!r} instead of bytes {first}-{last}/{length}")
        if response.body != content(first, last - first + 1):
            wrong.append(f"{len(response.body)} bytes of body that are not bytes {first}-{last} of the file")
    elif len(ranges) > 1:
        # RFC 9110 15.3.7.2: MUST NOT in the head of several parts.
        if response.all("Content-Range"):
            wrong.append(f"Content-Range {response.all('Content-Range')} in the head of a multipart")
        if response.body is not None:
            parts = response.parts(preamble=preamble)
            got = [(part.first, part.last) for part in parts]
            if got != ranges:
                wrong.append(f"parts {got} instead of {ranges}")
            for part in parts:
                if part.complete != length or part.data != content(part.first, part.last - part.first + 1):
                    wrong.append(f"part {part.first}-{part.last}/{part.complete}: wrong bytes or length")
    elif whole and response.body is not None and response.body != content(0, length):
        wrong.append(f"{len(response.body)} bytes of body that are not the file's {length}")
    return wrong


def check(row: Row, response: Response, *, etag: str | None = None) -> None:
    """Raise Mismatch unless this is the answer that the row expects from sendgate.

    Besides ``expect``, what holds for every answer is checked: Date, framing, the rules for empty bodies, the fields
    that a 304, 412 or 416 must not have, Accept-Ranges. etag: the file's current tag, strong form; without it
    "strong" and "weak" are only checked in form.
    """
    assert row.error is None, f"{row.name}: the engine has to refuse this row, there is no response"
    try:
        wrong = _differences(row, response, etag)
    except ProtocolError as error:
        wrong = [str(error)]
    if wrong:
        raise Mismatch(
            f"{row.source}: {row.name} ({row.rule})\n"
            + "".join(f"  - {line}\n" for line in wrong)
            + f"  request: {row.method} HTTP/{row.version / 10} {[list(line) for line in row.request]}\n"
            + "  answer:\n"
            + "".join(f"    {line}\n" for line in response.head.decode("latin-1").rstrip().split("\r\n"))
        )


def _differences(row: Row, response: Response, etag: str | None) -> list[str]:
    expect, status = row.expect, response.status
    own = row.status != 200
    empty = row.method == "HEAD" or status in (204, 304) or (not own and status in (412, 416))
    wrong = check_content(response, expect, row.length, whole=not empty and expect["status"] != 206)
    if status != expect["status"]:
        return wrong

    if response.version != "HTTP/1.1":  # RFC 9112 2.3: the server's own version, also to an HTTP/1.0 request
        wrong.append(f"version {response.version}")
    if empty and response.body:
        wrong.append(f"{len(response.body)} bytes of body, must be empty")
    for name in SINGLETONS:
        if len(response.all(name)) > 1:
            wrong.append(f"{len(response.all(name))} lines of {name}")
    date = response.get("Date")
    named = {name.lower(): (value, rule, frozen) for name, value, rule, frozen in row.headers}
    if "date" not in named and (date is None or parse_date(date) is None):  # RFC 9110 6.6.1
        wrong.append(f"Date {date!r}")

    wrong += _framing(row, response, own)
    wrong += _dropped(response, own, named)
    wrong += _validators(expect, response, etag, date)

    for name in {name.lower(): name for name, _ in expect.get("fields", [])}.values():
        values = [value for key, value in expect["fields"] if key.lower() == name.lower()]
        if response.all(name) != values:
            wrong.append(f"{name}: {response.all(name)} instead of {values}")
    for name in expect.get("absent", []):
        if response.all(name):
            wrong.append(f"{name}: {response.all(name)}, must be absent")
    if "keep_alive" in expect and response.keep_alive != expect["keep_alive"]:
        wrong.append(f"keep_alive {response.keep_alive} instead of {expect['keep_alive']}")
    return wrong


def _framing(row: Row, response: Response, own: bool) -> list[str]:
    """Content-Length, Accept-Ranges, the type of parts."""
    wrong = []
    expect, status = row.expect, response.status
    announced = response.get("Content-Length")
    if "content_length" in expect:
        due: int | None = expect["content_length"]
    elif status in (204, 304):
        due = None  # RFC 9110 8.6: MUST NOT for 204; ours leaves it out of a 304
    elif not own and status in (412, 416):
        due = 0
    elif len(row.ranges) == 1:
        due = row.ranges[0][1] - row.ranges[0][0] + 1
    elif row.ranges:
        due = int(announced or -1)  # several parts: fetch and parse_response have compared it with the body
    else:
        due = row.length
    if announced != (None if due is None else str(due)):
        wrong.append(f"Content-Length {announced} instead of {due}")

    if not any(name.lower() == "accept-ranges" for name, _, _, _ in row.headers):
        offered = not own and status in (200, 206) and row.method in ("GET", "HEAD")
        if response.all("Accept-Ranges") != (["bytes"] if offered else []):
            wrong.append(f"Accept-Ranges: {response.all('Accept-Ranges')}")

    if len(row.ranges) > 1 and response.body is not None:
        for part in response.parts():
            types = [value for name, value in part.fields if name.lower() == "content-type"]
            # RFC 9110 15.3.7.2. A server may add a charset to the type that the row asks for.
            base = [value.split(";")[0] for value in types]
            if base != ([] if row.part_type() is None else [row.part_type()]):
                wrong.append(f"part {part.first}-{part.last}: Content-Type {types} instead of {row.part_type()}")
            others = {name.lower() for name, _ in part.fields} - {"content-type", "content-range"}
            if others:
                wrong.append(f"part {part.first}-{part.last}: also {sorted(others)}")
    return wrong


_DROPPED = {
    304: (
        "content-type", "content-encoding", "content-language", "content-length", "content-range",
        "content-disposition", "content-md5", "content-digest", "repr-digest", "digest", "accept-ranges",
    ),
    412: (
        "content-type", "content-encoding", "content-language", "content-location", "content-range",
        "content-disposition", "content-md5", "content-digest", "repr-digest", "digest", "etag", "last-modified",
        "cache-control", "expires", "accept-ranges",
    ),
    206: ("content-md5", "content-digest"),
}  # fmt: skip
_DROPPED[416] = tuple(name for name in _DROPPED[412] if name != "content-range")


def _dropped(response: Response, own: bool, named: dict[str, tuple[str, str, bool]]) -> list[str]:
    """What an answer without the representation must not say about it, unless the application froze it."""
    if own:
        return []
    wrong = []
    for name in _DROPPED.get(response.status, ()):
        frozen = name in named and named[name][2]
        if response.all(name) and not frozen:
            wrong.append(f"{name} in a {response.status}")
    # RFC 9110 15.4.5: no metadata beyond what a cache needs.
    frozen = "last-modified" in named and named["last-modified"][2]
    if response.status == 304 and response.all("ETag") and response.all("Last-Modified") and not frozen:
        wrong.append("Last-Modified beside an ETag in a 304")
    return wrong


def _validators(expect: dict[str, Any], response: Response, etag: str | None, date: str | None) -> list[str]:
    wrong = []
    tag, due = response.get("ETag"), expect.get("etag")
    if due == "none":
        good = tag is None
    elif due == "strong":
        good = tag is not None and tag == etag if etag else bool(re.fullmatch(r'"[0-9a-f-]+"', tag or ""))
    elif due == "weak":
        good = tag == f"W/{etag}" if etag else bool(re.fullmatch(r'W/"[0-9a-f-]+"', tag or ""))
    else:
        good = due is None or tag == due
    if not good:
        wrong.append(f"ETag {tag!r} instead of {due} (file: {etag})")

    modified, due = response.get("Last-Modified"), expect.get("last_modified")
    if due is not None and modified != {"none": None, "date": date}.get(due, due):
        wrong.append(f"Last-Modified {modified!r} instead of {due!r} (Date: {date})")
    return wrong
