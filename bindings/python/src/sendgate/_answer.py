"""``Answer``: what an application answers with, until somebody sends it.

An application or a middleware makes one, and returns it as its iterable (PEP 3333). A server of this package finds it
in the end and has the library send it. Everybody else, a middleware that compresses or a server that knows nothing of
it, iterates over it and gets the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sendgate._native import lib

from ._core import (
    _INT64_MAX,
    File,
    Request,
    Transfer,
    _error,
    _etag_flags,
    _Exchange,
    _int,
    _invalid,
    _latin1,
    _rep,
    _take,
)
from ._headers import _SERVERS_OWN
from ._headers import Headers as _HeaderList
from ._headers import rows as _rows
from ._types import Decision, ExchangeArguments, HeadForm, Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._types import FileArg, Header, Headers, Text

#: Bytes per item for those who iterate.
CHUNK = 65536

#: The methods whose answers may be less than all of the content.
SAFE = ("GET", "HEAD")
#: By these fields of a response an application tells a front server to send a file.
HANDS_OVER = frozenset(("x-accel-redirect", "x-lighttpd-send-file", "x-sendfile"))

_VALIDATORS = frozenset(("etag", "last-modified"))
#: What the library refuses a second line of.
_ONCE = frozenset(
    (
        "accept-ranges", "age", "content-disposition", "content-length", "content-location", "content-md5",
        "content-range", "content-type", "date", "etag", "expires", "last-modified", "location", "retry-after",
        "server",
    )
)  # fmt: skip
#: RFC 9110 8.8.3.
_ETAG = re.compile(r'[ \t]*(W/)?"[!#-~\x80-\xff]*"[ \t]*')


def check_names(owner: str, given: Iterable[str], known: Collection[str] = ExchangeArguments.__annotations__) -> None:
    """TypeError for an argument that doesn't exist: when it is given, and not with the first file that is sent."""
    for name in given:
        if name not in known:
            raise TypeError(f"{owner} got an unexpected keyword argument {name!r}")


def reason(status: int) -> str:
    """The status line's text without the version: "206 Partial Content"."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


def with_own(given: Any, own: tuple[Header, ...]) -> tuple[Any, ...]:
    """The application's fields and the server's own, such as Server, where the application doesn't say that itself."""
    given = _rows(given)
    names = {name.lower() for name, *_ in given}
    return (*given, *(field for field in own if field[0].lower() not in names))


class Answer:
    """A request, what answers it, and how. Sent once, or iterated once; ``close`` ends both.

    close: called once when the answer was sent, or will not be. The arguments are those of ``sendgate.respond``.
    """

    __slots__ = (
        "_close", "_exchange", "_left", "_transfer", "arguments", "decision", "file", "request", "start_response",
    )  # fmt: skip

    def __init__(
        self,
        request: Request | None,
        file: FileArg,
        close: Callable[[], object] | None = None,
        /,
        **arguments: Unpack[ExchangeArguments],
    ) -> None:
        self.request = request
        self.file = file
        self.arguments = arguments
        self._close = close
        self._exchange: _Exchange | None = None
        self._transfer: Transfer | None = None
        #: Bytes that are still to be iterated.
        self._left = 0
        #: What was decided, once ``begin`` was called.
        self.decision: Decision | None = None
        #: Who has to be told the head by the one who iterates over an answer that was not begun.
        self.start_response: Callable[[str, list[tuple[str, str]]], object] | None = None

    def exchange(self, fields: tuple[tuple[Text, Text], ...], close: bool, copy: bool) -> _Exchange:
        """For the library: with what the server adds to it."""
        arguments = self.arguments
        headers: Any = arguments.get("headers", ())
        if fields:
            headers = with_own(headers, fields)
        return _Exchange(
            self.request,
            self.file,
            **{
                **arguments,
                "headers": headers,
                "close": close or arguments.get("close", False),
                "copy": copy or arguments.get("copy", False),
            },
        )

    def begin(self) -> tuple[str, list[tuple[str, str]]]:
        """Decide now, for somebody who sends the head himself. What start_response wants to have."""
        arguments: ExchangeArguments = {**self.arguments, "head": HeadForm.CGI}
        exchange = self._exchange = _Exchange(self.request, self.file, **arguments)
        decision = self.decision = exchange.decide()
        exchange.c.head = HeadForm.NONE
        return reason(decision.status), list(decision.fields)

    def take(self) -> _Exchange:
        """The content that ``begin`` has described, for the library. Whoever takes it closes it."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            raise RuntimeError("begin() decides what is sent")
        return exchange

    def span(self) -> tuple[int, int] | None:
        """Offset within the file, and number of bytes, of the content that ``begin`` has described, sent or not (HEAD).
        None: more than one span.
        """
        decision, exchange = self.decision, self._exchange
        if decision is None or exchange is None:
            raise RuntimeError("begin() decides what is sent")
        if not decision.ranges:
            return exchange.start, decision.content_length
        if len(decision.ranges) > 1:
            return None
        offset, length = decision.ranges[0]
        return exchange.start + offset, length

    def fileno(self) -> int:
        """The descriptor of the content that ``begin`` has described; -1: it is in memory."""
        if self._exchange is None:
            raise RuntimeError("begin() decides what is sent")
        return self._exchange.fileno

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> bytes:
        transfer = self._transfer
        if transfer is None:
            if self.decision is None:
                head = self.begin()
                if self.start_response is not None:
                    self.start_response(*head)
            decision, exchange, self._exchange = self.decision, self._exchange, None
            if exchange is None or decision is None:
                raise StopIteration
            self._left = decision.body_length
            if self._left == 0:
                exchange.close()
                if decision.status in (204, 304):
                    # wsgiref says Content-Length: 0 where nothing at all is iterated (RFC 9110 8.6: it must not).
                    return b""
                raise StopIteration
            transfer = self._transfer = Transfer()
            transfer._begin(None, exchange)
        if self._left == 0:
            raise StopIteration
        chunk = bytearray(min(CHUNK, self._left))
        count = transfer.pull(chunk)
        self._left -= count
        return bytes(memoryview(chunk)[:count])

    def close(self) -> None:
        """It was sent, or will not be; again does nothing."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            transfer.close()
        close, self._close = self._close, None
        if close is not None:
            close()


class Begun:
    """An answer whose head somebody else sends: nothing but an iterable."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.close = answer.close

    def __iter__(self) -> Answer:
        return self._answer


def _own(headers: list[Any]) -> list[Any]:
    """The application's fields, with or without rules, without those that are the server's."""
    return [row for row in headers if row[0].lower() not in _SERVERS_OWN]


def names(headers: list[Any]) -> set[str]:
    """The fields' names, in lower case."""
    return {row[0].lower() for row in headers}


def has_validator(headers: list[tuple[str, str]]) -> bool:
    """Whether something tells one version of the content from another (RFC 9110 8.8)."""
    return not _VALIDATORS.isdisjoint(names(headers))


def is_sound(status: int, headers: list[tuple[str, str]]) -> bool:
    """Whether the library takes these fields. If not, the server gets them as they are, and judges them itself."""
    given = [name.lower() for name, _ in headers]
    if status == 200 and "content-range" in given:
        return False  # a part, or all: it can't be told
    if len(set(given)) < len(given) and any(name in _ONCE and given.count(name) > 1 for name in given):
        return False
    return all(_ETAG.fullmatch(value) is not None for name, value in headers if name.lower() == "etag")


def content_length(headers: list[tuple[str, str]]) -> int | None:
    """What the application has announced. ValueError if that is no number."""
    for name, value in headers:
        if name.lower() == "content-length":
            if not (value.isascii() and value.isdigit()):
                raise ValueError(f"Content-Length is {value!r}")
            return int(value)
    return None


def may_be_less(method: str, status: int, headers: list[tuple[str, str]]) -> bool:
    """Whether conditions and ranges are to be evaluated of what an application answers.

    What another method has done can't be undone, and a front server evaluates them itself.
    """
    return status == 200 and method in SAFE and HANDS_OVER.isdisjoint(names(headers))


def is_whole(method: str, headers: list[tuple[str, str]], length: int) -> bool:
    """Whether so many bytes, which an application sends at once, are all of the content."""
    announced = content_length(headers)
    # The content that belongs to the answer to a HEAD may not be there.
    return announced == length or (announced is None and (length > 0 or method != "HEAD"))


def limited(headers: list[tuple[str, str]], length: int, report: Callable[[str], None]) -> int:
    """How many of a file's bytes are sent, by the Content-Length that the application gives."""
    announced = content_length(headers)
    if announced is not None and announced > length:
        report(f"Content-Length is {announced}, but there are {length} bytes")
        return length
    return length if announced is None else announced


def open_file(path: str | bytes | os.PathLike[str] | os.PathLike[bytes], arguments: ExchangeArguments) -> File:
    """The regular file at a path of the application's own; opened and fstat'ed once."""
    # Without O_NONBLOCK, opening a FIFO would wait for its other end.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    return own_file(fd, arguments)


def own_file(fd: int, arguments: ExchangeArguments) -> File:
    """A descriptor that is taken over, also by an exception."""
    try:
        flags = _etag_flags(arguments.get("etag_inode", False), arguments.get("etag_ctime", False))
        return File(fd, *_rep(fd, flags))
    except BaseException:
        # It may not have been open.
        with contextlib.suppress(OSError):
            os.close(fd)
        raise


# ---- Answers in the place of what an application has begun; request: one whose content it has read ----


def as_given(
    request: Request,
    status: int,
    headers: list[Any],
    file: FileArg,
    offset: int | None,
    length: int | None,
    close: Callable[[], object] | None,
    arguments: ExchangeArguments | None = None,
) -> Answer:
    """What the application has decided itself: nothing but the framing is the library's. Of the arguments those count
    that say how it is sent.
    """
    how = arguments or {}
    rows = _own(headers)
    given = names(headers)
    if "accept-ranges" not in given:
        rows.append(("Accept-Ranges", "", Rule.REMOVE))
    return Answer(
        request._full(),
        file,
        close,
        status=status,
        headers=rows,
        etag=False,
        # The library refuses to remove a field that it is given.
        last_modified="last-modified" in given,
        offset=offset,
        length=length,
        copy=how.get("copy", False),
        check=how.get("check", False),
    )


def conditional(
    request: Request,
    headers: list[Any],
    file: FileArg,
    offset: int | None,
    length: int | None,
    close: Callable[[], object] | None,
    arguments: ExchangeArguments,
) -> Answer:
    """What the application would send in full: whether it has to be is the library's to decide."""
    given = {row[0].lower(): row[1] for row in headers}
    if given.get("accept-ranges", "").strip().lower() == "none":
        request = request._unranged()
    made: ExchangeArguments = {**arguments, "headers": _own(headers), "offset": offset, "length": length}
    if "last-modified" in given:
        made["last_modified"] = True  # its own
    return Answer(request, file, close, **made)


def without_content(
    request: Request,
    headers: list[Any],
    close: Callable[[], object] | None,
    arguments: ExchangeArguments,
) -> Answer | None:
    """304 or 412, which the application's validators are enough for. None: it is neither."""
    if not (request._is_conditional() and has_validator(headers)):
        return None
    made: ExchangeArguments = {**arguments, "headers": _own(headers), "last_modified": True}
    answer = Answer(request._unranged(), b"", close, **made)
    exchange = answer.exchange((), False, False)
    try:
        return answer if exchange.decide().status in (304, 412) else None
    finally:
        exchange.close()


# ---- The three calls of the RSGI proposal, for those who have no socket ----

#: Errors of opening that say that there is no such file for the client.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)


def _pairs(headers: Headers) -> list[Any]:
    if isinstance(headers, _HeaderList):
        return list(headers.rows())
    pairs: Any = headers.items() if hasattr(headers, "items") else headers
    return [(name, value) for name, value in pairs]


def of_fd(request: Request, status: int, headers: Headers, fd: int) -> Answer:
    """``response_file_fd``: all of a file, as the application says. Takes fd over, also by an exception."""
    file = own_file(_take(fd), {})
    try:
        return _of_span(request, status, _pairs(headers), file, 0, file.size)
    except BaseException:
        file.close()
        raise


def of_fd_range(request: Request, status: int, headers: Headers, fd: int, start: int, end: int) -> Answer:
    """``response_file_fd_range``: the bytes from start to before end. Takes fd over, also by an exception."""
    file = own_file(_take(fd), {})
    try:
        _int(start, 0, _INT64_MAX, "start")
        _int(end, 0, _INT64_MAX, "end")
        if start >= end:
            raise _invalid(f"invalid range: start {start} is not below end {end}")
        if end > file.size:
            raise _error(lib.SENDGATE_ERR_TRUNCATED)
        rows = _pairs(headers)
        if status == 206 and "content-range" not in _names(rows):
            rows.append(("Content-Range", f"bytes {start}-{end - 1}/{file.size}"))
        return _of_span(request, status, rows, file, start, end - start)
    except BaseException:
        file.close()
        raise


def _of_span(request: Request, status: int, rows: list[Any], file: File, offset: int, length: int) -> Answer:
    given = _names(rows)
    if "accept-ranges" not in given:
        rows.append(("Accept-Ranges", "", Rule.REMOVE))
    return Answer(
        request._full(),
        file,
        file.close,
        status=_int(status, 200, 999, "status"),
        headers=rows,
        etag=False,
        # The library refuses to remove a field that it is given.
        last_modified="last-modified" in given,
        offset=offset,
        length=length,
    )


def _names(rows: list[Any]) -> set[str]:
    return {_latin1(name, "a field name").decode("latin-1").lower() for name, *_ in rows}


def of_path(
    request: Request,
    status: int,
    headers: Headers,
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    if_none_match: Text | None,
    if_modified_since: Text | None,
    range: Text | None,
    if_range: Text | None,
) -> Answer:
    """``response_file_conditional``: the file at a path, by these conditions and not those of the request."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("a path can't contain NUL")
    fields = []
    for name, value in (
        ("If-None-Match", if_none_match),
        ("If-Modified-Since", if_modified_since),
        ("Range", range),
        ("If-Range", if_range),
    ):
        if value is not None:
            fields.append((name, _latin1(value, name)))
            if b"\0" in fields[-1][1]:
                raise _invalid(f"{name} can't contain NUL")
    asked = Request(request.method, request.version, fields, has_body=request.has_body)
    rows = _pairs(headers)
    _int(status, 200, 999, "status")
    try:
        file = open_file(raw, {})
    except OSError as error:
        if error.errno not in _NOT_THERE:
            # Not the file's fault: caches must not learn that it is gone.
            raise _error(lib.SENDGATE_ERR_IO, sys_errno=error.errno or 0) from None
        return Answer(request._full(), b"", status=404, etag=False, last_modified=False)
    return Answer(asked, file, file.close, status=status, headers=rows)
