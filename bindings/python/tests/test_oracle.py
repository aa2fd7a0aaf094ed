"""Random requests: the installed package against tests/oracle.py, which says the same slowly.

Request number n is the same in every run. ``SENDGATE_ORACLE_REQUESTS`` sets how many are tried (``make soak``).
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Callable, Optional, TypeVar

import pytest

import oracle
import rows
import sendgate

REQUESTS = int(os.environ.get("SENDGATE_ORACLE_REQUESTS", "20000"))

T = TypeVar("T")
Field = tuple[bytes, bytes]

# ---- Smallest reproductions ----


def smaller(sequence: bytes) -> Iterator[bytes]:
    """The sequence without a piece of it, large pieces first."""
    size = len(sequence)
    while size:
        for at in range(0, len(sequence) - size + 1, size):
            yield sequence[:at] + sequence[at + size :]
        size //= 2


def shrunk(case: T, simpler: Callable[[T], Iterator[T]], fails: Callable[[T], bool]) -> T:
    """A case that still fails, while none of the simpler ones does, or after a few thousand attempts."""
    attempts = 0
    while True:
        for candidate in simpler(case):
            attempts += 1
            if fails(candidate):
                case = candidate
                break
            if attempts > 5000:
                return case
        else:
            return case


def disagreement(number: int, least: object, package: object, oracle: object) -> str:
    """The message: the number alone makes the request again, and the rest is short enough for a bug report."""
    return f"they disagree on request {number}\nsmallest: {least!r}\npackage:  {package!r}\noracle:   {oracle!r}"


# ---- Decisions ----


@dataclass(frozen=True)
class Case:
    """What ``oracle.decide`` takes."""

    method: str
    fields: tuple[Field, ...]
    length: int
    mtime: int
    mtime_nsec: int
    now: int
    max_ranges: int

    def expected(self) -> tuple[int, list[oracle.Range]]:
        """What the oracle says."""
        return oracle.decide(
            self.method, list(self.fields), self.length, self.mtime, self.mtime_nsec, self.now, self.max_ranges
        )

    def got(self, fd: int) -> tuple[int, list[oracle.Range]]:
        """What the package says, for a file in memory that is made to be the case's."""
        mtime_ns = self.mtime * 10**9 + self.mtime_nsec
        os.ftruncate(fd, self.length)
        os.utime(fd, ns=(mtime_ns, mtime_ns))
        assert os.fstat(fd).st_mtime_ns == mtime_ns
        decision = sendgate.decide(
            sendgate.Request(self.method, 11, self.fields), fd, now=self.now, max_ranges=self.max_ranges
        )
        return decision.status, [(offset, offset + length - 1) for offset, length in decision.ranges]


def simpler_cases(case: Case) -> Iterator[Case]:
    """The case with one field less, or a piece less of one value."""
    for i, (name, value) in enumerate(case.fields):
        before, behind = case.fields[:i], case.fields[i + 1 :]
        yield replace(case, fields=before + behind)
        for less in smaller(value):
            yield replace(case, fields=(*before, (name, less), *behind))


#: Of the rows: real values of each field, every one there for a reason. {etag} stands for the current tag.
VALUES: dict[bytes, list[bytes]] = {
    name: sorted(
        {
            value.encode("latin-1")
            for row in rows.load()
            for key, value in row.request
            if key.encode("latin-1").lower() == name.lower()
        }
    )
    for name in (b"If-Match", b"If-None-Match", b"If-Modified-Since", b"If-Unmodified-Since", b"If-Range", b"Range")
}

CLOCKS = (
    1_700_000_000,  # 2023
    951_800_000,  # 29 February 2000
    2_524_600_000,  # the last hours of 2049: two digits of a year reach 2099, or 2100
    2_714_000_000,  # the first days of 2056
    4_102_400_000,  # the last hours of 2099
    1,
    253_402_300_799,  # the last second that a date can say
)
LENGTHS = (1000, 1000, 1000, 0, 1, 2, 10, 300, 2**32 + 5, 2**63 - 1)


def moment(dice: random.Random, modified: int, now: int) -> datetime:
    """A time that may make a difference: near the file's, near the clock's, near 50 years from it, or any."""
    near = dice.choice((modified, modified, modified, now, now + oracle.FIFTY_YEARS, dice.randrange(-(2**35), 2**37)))
    near += dice.choice((0, 0, 0, -1, 1, -86400, 86400, dice.randrange(-(10**6), 10**6)))
    # The years that can be written with four digits, with room for any time zone.
    near = min(max(near, -62_135_000_000), 253_402_000_000)
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=near)


def date(dice: random.Random, modified: int, now: int) -> bytes:
    """A time in one of the three forms. (strftime would use the locale.)"""
    at = moment(dice, modified, now)
    if dice.random() < 0.05:
        day, month = dice.choice(((29, 2), (30, 2), (31, 4), (0, 1), (29, 2)))
    else:
        day, month = at.day, at.month
    name = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"][at.weekday()]
    long_name = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"][at.weekday()]
    named = oracle.MONTHS[month - 1].decode()
    time = f"{at.hour:02}:{at.minute:02}:{at.second:02}"
    return dice.choice(
        (
            f"{name}, {day:02} {named} {at.year:04} {time} GMT",
            f"{name}, {day:02} {named} {at.year:04} {time} GMT",
            f"{long_name}, {day:02}-{named}-{at.year % 100:02} {time} GMT",
            f"{name} {named} {day:{dice.choice((2, 2, 2, 1))}} {time} {at.year:04}",
        )
    ).encode()


def tags(dice: random.Random) -> bytes:
    """A list of entity tags."""
    some = (b"{etag}", b"W/{etag}", b'"x"', b'W/"x"', b'""', b'"a,b"', b"", b"*")
    weights = (3, 3, 3, 2, 1, 1, 1, 0.2)
    return dice.choice((b",", b", ", b" ,\t")).join(dice.choices(some, weights, k=dice.randint(1, 4)))


def byte_ranges(dice: random.Random, length: int) -> bytes:
    """Ranges around the beginning, the end and the limits, now and then a great many."""

    def number() -> int:
        around = dice.choice((0, 0, 10, length, length // 2, 2**63, 2**64))
        return max(0, around + dice.randint(-12, 12))

    def spec() -> str:
        first, kind = number(), dice.random()
        if kind < 0.2:
            return f"{first}-"
        if kind < 0.4:
            return f"-{dice.choice((0, 1, 5, first))}"
        return f"{first}-{max(0, first + dice.choice((0, 0, 1, 2, 5, 5, number(), -1 if kind > 0.98 else 0)))}"

    kind = dice.random()
    if kind < 0.03:  # about as many parts as there may be, apart or just not, in any order
        step = dice.choice((2, 2, 3))
        specs = [f"{i * step}-{i * step + dice.choice((0, 0, 0, 1))}" for i in range(dice.choice((62, 64, 65, 66, 70)))]
        if dice.random() < 0.5:
            dice.shuffle(specs)
        if dice.random() < 0.5:
            specs.append("0-")
    elif kind < 0.035:  # about as many ranges as there may be
        specs = [dice.choice(("0-0", "1-2", "-1")) for _ in range(dice.choice((1023, 1024, 1025)))]
    else:
        specs = [spec() for _ in range(dice.choice((1, 1, 1, 2, 3, 4, 8)))]
    return b"bytes=" + dice.choice(("," if len(specs) > 9 else ", ", ",", " ,\t,")).join(specs).encode()


def mutated(dice: random.Random, value: bytes, alphabet: bytes, most: int) -> bytes:
    """The value with a few bytes inserted, deleted, replaced."""
    result = bytearray(value)
    for _ in range(dice.randint(1, most)):
        at, byte, kind = dice.randrange(len(result) + 1), dice.choice(alphabet), dice.random()
        if kind < 0.4:
            result.insert(at, byte)
        elif kind < 0.7:
            del result[at : at + 1]
        else:
            result[at : at + 1] = bytes([byte])
    return bytes(result)


def random_case(number: int) -> Case:
    """Request number ``number``."""
    dice = random.Random(number)
    now = dice.choice((CLOCKS[0], CLOCKS[0], dice.choice(CLOCKS)))
    old = (784111777, 123456789)
    mtime, mtime_nsec = dice.choice(
        (old, old, old, (now, 5), (now - 1, 0), (now - 1, 5), (now - 2, 0), (now + 500, 5), (0, 0), (-1, 0), (-1, 5))
    )
    # A file's time has nanoseconds in 64 bits on the way through Python.
    mtime = min(mtime, 2**63 // 10**9 - 1)
    length = dice.choice(LENGTHS)
    tag = oracle.entity_tag(mtime * 10**9 + mtime_nsec, length, 2**62)
    fields: list[Field] = []
    for name, pool in VALUES.items():
        if dice.random() > (0.8 if name == b"Range" else 0.15):
            continue
        for _ in range(1 if dice.random() < 0.93 else 2):
            if dice.random() < 0.3:
                value = dice.choice(pool)
            elif name == b"Range":
                value = byte_ranges(dice, length)
            elif name in (b"If-Match", b"If-None-Match") or (name == b"If-Range" and dice.random() < 0.5):
                value = dice.choice((b"{etag}", b"*", tags(dice), tags(dice)))
            else:
                value = date(dice, mtime, now)
            value = value.replace(b"{etag}", tag).replace(b"{opaque}", tag[1:-1])
            if dice.random() < 0.2:
                value = mutated(dice, value, b'0123456789 ,-="W/*\t:GMTx\xff\x7f\0\x0b\r', 3)
            fields.append((dice.choice((name, name, name.lower(), name.upper())), value))
    dice.shuffle(fields)
    return Case(
        method=dice.choice(("GET",) * 12 + ("HEAD", "HEAD", "POST", "PUT", "OPTIONS", "get")),
        fields=tuple(fields),
        length=length,
        mtime=mtime,
        mtime_nsec=mtime_nsec,
        now=now,
        max_ranges=dice.choice((64, 64, 64, 1, 2, 5)),
    )


def kind_of(answer: tuple[int, list[oracle.Range]]) -> str:
    """The answer's class, for counting."""
    status, ranges = answer
    return f"{status} with several ranges" if len(ranges) > 1 else str(status)


def test_decisions() -> None:
    """The package decides as the oracle does, and each kind of answer occurs often enough to mean something."""
    seen: Counter[str] = Counter()
    fd = os.memfd_create("oracle")
    try:
        for number in range(REQUESTS):
            case = random_case(number)
            expected = case.expected()
            seen[kind_of(expected)] += 1
            if case.got(fd) != expected:
                least = shrunk(case, simpler_cases, lambda case: case.got(fd) != case.expected())
                pytest.fail(disagreement(number, least, least.got(fd), least.expected()))
    finally:
        os.close(fd)
    for kind in ("200", "206", "206 with several ranges", "304", "412", "416"):
        assert seen[kind] >= REQUESTS // 100, seen


# ---- Heads ----

FIRST_LINES = (
    (b"GET / HTTP/1.1",) * 5
    + (b"GET /a?b HTTP/1.0", b"HEAD http://a/b HTTP/1.1", b"OPTIONS * HTTP/1.1", b"PUT /\xc3\xa4 HTTP/1.2")
    + (b"M-SEARCH * HTTP/1.9", b"GET / HTTP/2.0", b"GET /", b"GET  / HTTP/1.1", b"get / http/1.1")
)
FIELD_NAMES = (
    *(name.encode() for name in oracle.KEPT),
    b"Content-Length", b"Content-Length", b"Transfer-Encoding", b"Host", b"Accept", b"X", b"If-Ranges", b"If-Natch",
    b"!#$%&'*+-.^_`|~09azAZ",
)  # fmt: skip
FIELD_VALUES = (
    b"",
    b"0",
    b"00",
    b"5",
    b"05",
    b"5, 5",
    b"chunked",
    b"gzip, Chunked",
    b"[::1]:80",
    b"close",
    b'"a"',
    b"bytes=0-9",
    b"a" * 40,
    b"\xe4\t\x01",
    b"\x0ba\x0c",
)


def random_head(number: int) -> bytes:
    """Bytes number ``number``: a head, mostly damaged, with something behind it."""
    dice = random.Random(number)
    lines = [dice.choice(FIRST_LINES)] + [b"Host: a"] * dice.choices((0, 1, 2), (1, 12, 1))[0]
    for _ in range(dice.randrange(5)):
        space = dice.choice((b" ", b" ", b"", b"\t", b"  "))
        name, value = dice.choice(FIELD_NAMES), dice.choice(FIELD_VALUES)
        lines.append(dice.choice((name, name, name.lower(), name.upper())) + b":" + space + value)
        if dice.random() < 0.1:
            lines.append(lines[-1])
    kind = dice.random()
    ends = [b"\r\n" if kind < 0.7 else b"\n" if kind < 0.8 else dice.choice((b"\r\n", b"\n")) for _ in lines]
    head = b"".join(line + end for line, end in zip(lines, ends))
    head = dice.choice((b"", b"", b"", b"\r\n", b"\n\r\n")) + head + dice.choice((b"\r\n", b"\n"))
    head += dice.choice((b"", b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\xff"))
    if dice.random() < 0.1:  # one bit
        at = dice.randrange(len(head))
        head = head[:at] + bytes([head[at] ^ 1 << dice.randrange(8)]) + head[at + 1 :]
    if dice.random() < 0.5:
        head = mutated(dice, head, b"\r\n\r\n\r\n \t:\0\x01\x7f\xff,/H1a", 3)
    if dice.random() < 0.2:
        head = head[: dice.randrange(len(head))]
    return head


def read(data: bytes) -> oracle.Verdict:
    """What the package makes of the bytes, in the oracle's words."""
    try:
        request = sendgate.Request.from_head(data)
    except sendgate.RequestError:
        return "malformed"
    if request is None:
        return "incomplete"

    def raw(text: Optional[str]) -> Optional[bytes]:  # noqa: UP045
        return None if text is None else text.encode("latin-1")

    return oracle.Head(
        method=request.method.encode("latin-1"),
        target=raw(request.target) or b"",
        version=request.version,
        length=request.head_length,
        has_body=request.has_body,
        fields={name: raw(request.field(name)) for name in oracle.KEPT},
    )


def test_heads() -> None:
    """A request head is read as the oracle reads it: the same verdict and, if accepted, the same contents."""
    seen: Counter[str] = Counter()
    for number in range(REQUESTS):
        data = random_head(number)
        expected = oracle.parse_head(data)
        seen[expected if isinstance(expected, str) else "accepted"] += 1
        if read(data) != expected:
            least = shrunk(data, smaller, lambda data: read(data) != oracle.parse_head(data))
            pytest.fail(disagreement(number, least, read(least), oracle.parse_head(least)))
    for verdict in ("incomplete", "malformed", "accepted"):
        assert seen[verdict] >= REQUESTS // 10, seen
