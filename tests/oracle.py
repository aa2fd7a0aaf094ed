"""A second opinion: what RFC 9110 and RFC 9112 say about a request, written to be obviously right.

Nothing here is fast or clever: integers of any size (int() takes 4300 digits), regular expressions, dates from the
standard library. Nothing is taken from the library under test. Where the RFCs leave a choice, the docstring says what
sendgate documents.

``decide`` is the answer to the conditions and ranges of a request, ``parse_head`` the reading of a raw request head.
Fields are bytes, because HTTP knows no encoding for them. Standard library only.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from typing import NamedTuple, Optional, Union

Fields = list[tuple[bytes, bytes]]
Range = tuple[int, int]  #: first and last byte, both inclusive, counted from 0

#: Ranges in one field, and parts at any time while they are merged: with more, sendgate ignores Range, which RFC 9110
#: 14.2 allows (include/sendgate.h, max_ranges).
MAX_SPECS = 1024
MAX_PARTS = 64

#: 50 years of average length, in seconds: RFC 9110 5.6.7 doesn't say which 50.
FIFTY_YEARS = 50 * 31556952

OWS = b" \t"  #: optional white space, RFC 9110 5.6.3

# ---- Fields ----


def joined(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of a field, None if absent.

    RFC 9110 5.1: names in any case. 5.3: lines of one name are one value, joined with ", ". 5.5: white space
    around a value is no part of it.
    """
    values = [value.strip(OWS) for key, value in fields if key.lower() == name.lower()]
    return b", ".join(values) if values else None


# ---- Entity tags ----

#: RFC 9110 8.8.3. etagc is any visible character but the quote, and obs-text; "W/" is case-sensitive.
TAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'

#: RFC 9110 5.6.1.2: a list with any number of empty elements.
TAG_LIST = rb"[ \t]*(?:%b[ \t]*)?(?:,[ \t]*(?:%b[ \t]*)?)*" % (TAG, TAG)


def tag_list(value: bytes) -> list[bytes]:
    """The entity tags in a list (RFC 9110 8.8.3, 5.6.1); none if it isn't a list of entity tags."""
    return re.findall(TAG, value) if re.fullmatch(TAG_LIST, value) else []


def strongly_equal(a: bytes, b: bytes) -> bool:
    """RFC 9110 8.8.3.2: the same, and neither is weak."""
    return a == b and not a.startswith(b"W/")


def weakly_equal(a: bytes, b: bytes) -> bool:
    """RFC 9110 8.8.3.2: the same, weak or not."""
    return a.removeprefix(b"W/") == b.removeprefix(b"W/")


# ---- Dates ----

MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")

DAY_NAME = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
LONG_DAY_NAME = rb"(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
MONTH = b"(?P<month>" + b"|".join(MONTHS) + b")"
TIME = rb"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"

IMF_FIXDATE = rb"%b, (?P<day>[0-9]{2}) %b (?P<year>[0-9]{4}) %b GMT" % (DAY_NAME, MONTH, TIME)
RFC850_DATE = rb"%b, (?P<day>[0-9]{2})-%b-(?P<year>[0-9]{2}) %b GMT" % (LONG_DAY_NAME, MONTH, TIME)
ASCTIME_DATE = rb"%b %b (?P<day>[0-9]{2}| [0-9]) %b (?P<year>[0-9]{4})" % (DAY_NAME, MONTH, TIME)


def day_number(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01. A day that the month doesn't have is counted on from its first.

    The standard library knows the years 1 to 9999; the calendar repeats after 400 years of 146097 days.
    """
    cycles, year_of_cycle = divmod(year - 1, 400)
    first = datetime.date(year_of_cycle + 1, month, 1).toordinal() - datetime.date(1970, 1, 1).toordinal()
    return cycles * 146097 + first + day - 1


def is_day(year: int, month: int, day: int) -> bool:
    """Whether the month has that day."""
    following = (year, month + 1) if month < 12 else (year + 1, 1)
    return 1 <= day <= day_number(*following, 1) - day_number(year, month, 1)


def full_year(two_digits: int, month: int, day: int, time: int, now: int) -> int:
    """The year of an RFC 850 date: the last with these digits in which it isn't over 50 years ahead (RFC 9110 5.6.7).

    time: seconds of the day. now: seconds since 1970.
    """
    year = 1970 + now // 31556952 + 200
    while year % 100 != two_digits or day_number(year, month, day) * 86400 + time > now + FIFTY_YEARS:
        year -= 1
    return year


def http_date(value: bytes, now: int) -> int | None:
    """Seconds since 1970 of an HTTP-date in any of its three forms, None for anything else (RFC 9110 5.6.7).

    Case-sensitive, with all digits; second 60 is a leap second. The day's name need not be the right one.
    """
    match = re.fullmatch(IMF_FIXDATE, value) or re.fullmatch(ASCTIME_DATE, value)
    rfc850 = re.fullmatch(RFC850_DATE, value)
    match = match or rfc850
    if not match:
        return None
    year, day, hour, minute, second = (int(match[name]) for name in ("year", "day", "hour", "minute", "second"))
    month = MONTHS.index(match["month"]) + 1
    time = hour * 3600 + minute * 60 + second
    if rfc850:
        year = full_year(year, month, day, time, now)
    if not is_day(year, month, day) or hour > 23 or minute > 59 or second > 60:
        return None
    return day_number(year, month, day) * 86400 + time


# ---- Ranges ----


def runs(ranges: Iterable[Range]) -> list[Range]:
    """The unbroken runs of bytes that the ranges cover together, in ascending order."""
    result: list[Range] = []
    for first, last in sorted(set(ranges)):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result


def merged(ranges: list[Range]) -> list[Range]:
    """The parts to send: overlapping and adjacent ranges become one, in the place of the first of them.

    RFC 9110 15.3.7.2 lets a server coalesce, and wants the order of the request otherwise.
    """

    def place(run: Range) -> int:
        return min(i for i, (first, _) in enumerate(ranges) if run[0] <= first <= run[1])

    return sorted(runs(ranges), key=place)


def byte_ranges(value: bytes, length: int, max_ranges: int) -> list[Range] | None:
    """The parts that a Range field asks for: none if no byte of it exists, None if it is to be ignored.

    RFC 9110 14.1.1, 14.1.2, 14.2. Ignored: another unit, a mistake anywhere, an empty representation (14.4 has no
    Content-Range for it), and, as 14.2 allows, more ranges or parts than MAX_SPECS, MAX_PARTS, ``max_ranges``.
    """
    if value[:6].lower() != b"bytes=" or length == 0:
        return None
    specs = [spec.strip(OWS) for spec in value[6:].split(b",")]
    specs = [spec for spec in specs if spec]
    if not 1 <= len(specs) <= MAX_SPECS:
        return None
    ranges = []
    for spec in specs:
        match = re.fullmatch(rb"([0-9]*)-([0-9]*)", spec)
        if not match or spec == b"-":
            return None
        if not match[1]:
            first, last = max(0, length - int(match[2])), length - 1
        else:
            first, last = int(match[1]), int(match[2] or length)
            if match[2] and last < first:
                return None
            last = min(last, length - 1)
        if first < length:
            ranges.append((first, last))
    if len(ranges) > MAX_PARTS and any(len(runs(ranges[:k])) > MAX_PARTS for k in range(len(ranges) + 1)):
        return None
    return merged(ranges) if len(runs(ranges)) <= max_ranges else None


# ---- The decision ----


def is_fresh(mtime_ns: int, now: int) -> bool:
    """Whether the file may change again without its modification time telling (RFC 9110 8.8.1, 8.8.2.2).

    sendgate: for one second, or two where the time has no fraction (include/sendgate.h, ETAG_FROM_MTIME).
    """
    return now * 10**9 - mtime_ns < (1 if mtime_ns % 10**9 else 2) * 10**9


def entity_tag(mtime_ns: int, length: int, now: int) -> bytes:
    """The file's current tag: hexadecimal nanoseconds and length, weak while it is fresh (RFC 9110 8.8.1)."""
    return b'%s"%b-%b"' % (b"W/" if is_fresh(mtime_ns, now) else b"", b"%x" % mtime_ns, b"%x" % length)


def last_modified(mtime: int, now: int) -> int | None:
    """The file's date in seconds since 1970: never after now (RFC 9110 8.8.2.1), none before 1970 or after 9999."""
    return min(mtime, now) if 0 <= mtime < day_number(10000, 1, 1) * 86400 else None


def decide(
    method: str, fields: Fields, length: int, mtime: int, mtime_nsec: int, now: int, max_ranges: int
) -> tuple[int, list[Range]]:
    """Status and, for 206, the ranges to send: RFC 9110 13.2.2, step by step.

    For a file of ``length`` bytes, changed ``mtime`` seconds and ``mtime_nsec`` nanoseconds after 1970, at ``now``
    seconds. ``max_ranges``: more parts than that are answered with the whole file.
    """
    mtime_ns = mtime * 10**9 + mtime_nsec
    tag, modified = entity_tag(mtime_ns, length, now), last_modified(mtime, now)
    if_match, if_none_match, if_modified_since, if_unmodified_since, if_range, range_ = (
        joined(fields, name)
        for name in (b"If-Match", b"If-None-Match", b"If-Modified-Since", b"If-Unmodified-Since", b"If-Range", b"Range")
    )

    # 13.2.1: methods that neither select nor change a representation.
    if method in ("CONNECT", "OPTIONS", "TRACE"):
        return 200, []

    # Step 1: If-Match (13.1.1), strong comparison.
    if if_match is not None:
        if if_match != b"*" and not any(strongly_equal(tag, other) for other in tag_list(if_match)):
            return 412, []
    # Step 2: If-Unmodified-Since (13.1.4), only without If-Match. Ignored unless both dates exist.
    elif if_unmodified_since is not None:
        date = http_date(if_unmodified_since, now)
        if date is not None and modified is not None and modified > date:
            return 412, []

    # Step 3: If-None-Match (13.1.2), weak comparison.
    if if_none_match is not None:
        if if_none_match == b"*" or any(weakly_equal(tag, other) for other in tag_list(if_none_match)):
            return (304 if method in ("GET", "HEAD") else 412), []
    # Step 4: If-Modified-Since (13.1.3), only without If-None-Match. Ignored unless both dates exist.
    elif if_modified_since is not None and method in ("GET", "HEAD"):
        date = http_date(if_modified_since, now)
        if date is not None and modified is not None and modified <= date:
            return 304, []

    # Step 5: Range, which only GET has (14.2), unless If-Range (13.1.5) says otherwise.
    if method != "GET" or range_ is None:
        return 200, []
    if if_range is not None and not if_range_holds(if_range, tag, modified, is_fresh(mtime_ns, now), now):
        return 200, []
    ranges = byte_ranges(range_, length, max_ranges)
    if ranges is None:
        return 200, []
    return (206, ranges) if ranges else (416, [])


def if_range_holds(value: bytes, tag: bytes, modified: int | None, fresh: bool, now: int) -> bool:
    """RFC 9110 13.1.5: one strong tag that is the file's, or exactly its date, if that is a strong validator."""
    if re.fullmatch(TAG, value):
        return strongly_equal(tag, value)
    date = http_date(value, now)
    return date is not None and date == modified and not fresh


# ---- Request heads ----

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  #: RFC 9110 5.6.2

#: RFC 9112 3: single spaces. 3.2: sendgate takes any target without white space and control characters; what it means
#: is the server's to say. RFC 9112 2.3, RFC 9110 2.5: HTTP/1.1 stands for every later minor version.
REQUEST_LINE = rb"(?P<method>%b) (?P<target>[^\x00-\x20\x7f]+) HTTP/1\.(?P<minor>[0-9])" % TOKEN

#: RFC 9112 5, 5.1: no white space before the colon; 5.2: no folding. RFC 9110 5.5: no CR, LF or NUL in a value.
FIELD_LINE = rb"(?P<name>%b):(?P<value>[^\r\n\0]*)" % TOKEN

#: What may still become a field line, or the empty line at the end.
FIELD_LINE_BEGUN = rb"(?:%b(?::[^\r\n\0]*\r?)?|\r?)" % TOKEN

#: The fields that a Request keeps.
KEPT = ("Connection", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range", "Range")


class Head(NamedTuple):
    """What is to be known of a request head."""

    method: bytes
    target: bytes
    version: int  #: 10 or 11
    length: int  #: of the head, in bytes
    has_body: bool  #: whether it announces content
    fields: dict[str, Optional[bytes]]  # noqa: UP045 - evaluated, so not yet in Python 3.9


#: "incomplete": more bytes are needed. "malformed": it is to be answered with a 400.
Verdict = Union[Head, str]  # noqa: UP007 - evaluated, so not yet in Python 3.9


def parse_head(data: bytes) -> Verdict:
    """Read a raw request head (RFC 9112 sections 2, 3, 5, 6.3).

    A choice of sendgate's: a field line is judged as soon as nothing that follows could make it valid, the request
    line when its end is there, and what concerns the whole head when that is complete. Of Host only the bytes are
    looked at.
    """
    # RFC 9112 2.2: a line ends with CRLF, or a lone LF. What is behind the last LF is the begin of a line.
    *lines, begun = data.split(b"\n")
    lengths = [len(line) + 1 for line in lines]
    lines = [line.removesuffix(b"\r") for line in lines]

    # 2.2: empty lines before the request line are ignored.
    start = 0
    while start < len(lines) and not lines[start]:
        start += 1
    if start == len(lines):
        return "incomplete"
    request = re.fullmatch(REQUEST_LINE, lines[start])
    if not request:
        return "malformed"

    fields: Fields = []
    end = start + 1
    while end < len(lines) and lines[end]:
        match = re.fullmatch(FIELD_LINE, lines[end])
        if not match:
            return "malformed"
        fields.append((match["name"], match["value"].strip(OWS)))
        if not lengths_agree(fields):
            return "malformed"
        # 3.2: a Host that is no uri-host and port (RFC 3986 3.2.2).
        name, value = fields[-1]
        if name.lower() == b"host" and not re.fullmatch(rb"[-\w.~!$&'()*+,;=:%\[\]]*", value, re.ASCII):
            return "malformed"
        end += 1
    if end == len(lines):
        return "incomplete" if re.fullmatch(FIELD_LINE_BEGUN, begun) else "malformed"

    version = 10 if request["minor"] == b"0" else 11
    names = [name.lower() for name, _ in fields]
    coded, measured = b"transfer-encoding" in names, b"content-length" in names
    # 3.2: one Host, which only HTTP/1.0 may leave out. 6.1, 6.3: both framings may be an attack, and HTTP/1.0 knows
    # no transfer coding.
    if names.count(b"host") > 1 or (version == 11 and b"host" not in names):
        return "malformed"
    if coded and (measured or version == 10):
        return "malformed"
    # 6.3: the last coding has to be chunked.
    codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
    if coded and codings[-1].split(b",")[-1].strip(OWS).lower() != b"chunked":
        return "malformed"
    return Head(
        method=request["method"],
        target=request["target"],
        version=version,
        length=sum(lengths[: end + 1]),
        has_body=coded or any(int(value) > 0 for name, value in fields if name.lower() == b"content-length"),
        fields={name: joined(fields, name.encode()) for name in KEPT},
    )


def lengths_agree(fields: Fields) -> bool:
    """RFC 9112 6.3: Content-Length is one number, or the same one several times. (Written the same, for sendgate.)"""
    values = {value for name, value in fields if name.lower() == b"content-length"}
    return len(values) <= 1 and all(re.fullmatch(rb"[0-9]+", value) for value in values)
