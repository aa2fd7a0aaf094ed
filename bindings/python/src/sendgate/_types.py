"""Values that go in and come out. Numbers are those of sendgate.h; ``_core`` checks that on import."""

from __future__ import annotations

import enum
import mmap
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Buffer, TypeAlias

    from ._core import File
    from ._errors import SendgateError


class Connection(enum.IntEnum):
    """What became of the connection."""

    #: No byte was written: another answer may still be sent.
    UNTOUCHED = 0
    #: The response is complete: read the next request.
    REUSABLE = 1
    #: The response is complete: close the connection.
    CLOSE = 2
    #: The response was cut short, or is not finished yet: close the connection, and send nothing more.
    BROKEN = 3


class Step(enum.IntEnum):
    """What a transfer waits for. Only DONE is false, so ``while transfer.step(): ...`` ends with the response."""

    #: The response is complete.
    DONE = 0
    #: Step again when the socket is writable.
    WANT_WRITE = 1
    #: Step again when the socket is readable. Only TLS asks for this.
    WANT_READ = 2
    #: The budget is spent: step again, without waiting first.
    YIELD = 3


class Rule(enum.IntFlag):
    """Who wins if the library produces a field that the application gives too.

    Content-Range, Transfer-Encoding and Connection are the library's own: giving one raises FieldError.
    """

    #: The library's field, if it produces one.
    DEFAULT = 0
    #: The application's. An ETag or Last-Modified is then also what the request's conditions are compared with.
    OVERRIDE = 1
    #: Both are sent. FieldError for fields that may occur only once.
    APPEND = 2
    #: Neither is sent.
    REMOVE = 3
    #: A flag, with one of the others: sent even where a 304, 412 or 416 would drop it.
    FROZEN = 16


class HeadForm(enum.IntEnum):
    """How the head is written."""

    #: ``HTTP/1.1 206 Partial Content``.
    HTTP1 = 0
    #: ``Status: 206 Partial Content``, without Date and Connection: CGI and FastCGI (RFC 3875 6.3).
    CGI = 1
    #: No head: the caller sends it itself.
    NONE = 2


class Framing(enum.IntEnum):
    """How the client tells where the content ends (RFC 9112 6)."""

    #: No content follows, and no length is told: 204, 304, and HEAD of what nobody knows the length of.
    NONE = 0
    #: By Content-Length.
    LENGTH = 1
    #: By Transfer-Encoding: chunked.
    CHUNKED = 2
    #: By the end of the connection, or for HeadForm.CGI of the response.
    CLOSE = 3


class Decision(NamedTuple):
    """What the answer to a request is. Made by ``decide``."""

    #: 200, 206, 304, 412 or 416, or the application's own.
    status: int
    #: Whether the head allows reuse of the connection.
    keep_alive: bool
    #: The announced length in bytes, multipart framing included; 0 for 304.
    content_length: int
    #: Bytes after the head: 0 for HEAD, 304, 412 and 416.
    body_length: int
    #: (offset, length) in bytes of each part of a 206, in the order sent; two or more are multipart/byteranges.
    ranges: tuple[tuple[int, int], ...]
    #: The head as (name, value) pairs; characters up to U+00FF stand for bytes (latin-1). Empty if head was bytes.
    fields: tuple[tuple[str, str], ...]
    #: The head as bytes, status line and empty line included.
    head: bytes
    #: How the content is framed; LENGTH or NONE, but for a ``Stream`` of unknown length.
    framing: Framing


class Result(NamedTuple):
    """What happened to a response."""

    #: The library's code: 0 done, positive not finished yet, negative an error (then ``SendgateError`` was raised).
    status: int
    #: 200, 206, 304, 412, 416 or the application's own; 0 if nothing was decided.
    http_status: int
    #: What to do with the connection.
    connection: Connection
    #: Bytes of the head that were sent.
    head_sent: int
    #: Bytes after the head that were sent.
    body_sent: int
    #: Bytes after the head, all of them.
    body_length: int


class Completion(NamedTuple):
    """How a response ended that was given to a ``Sender``."""

    #: As ``submit`` returned it.
    id: int
    #: As given to ``submit``.
    token: Any
    #: What happened.
    result: Result
    #: None: it is complete. Otherwise what ``respond`` would have raised.
    error: SendgateError | None
    #: Seconds from ``submit`` to the end.
    elapsed: float


class HasFileno(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


Text: TypeAlias = "str | bytes"
#: (name, value) or (name, value, rule); str is encoded as latin-1. Without a rule: Rule.OVERRIDE.
Header: TypeAlias = "tuple[Text, Text] | tuple[Text, Text, int]"
Headers: TypeAlias = "Iterable[Header] | Mapping[str, str]"
#: A socket object or descriptor. ssl.SSLSocket is written to through its own send().
Socket: TypeAlias = "int | HasFileno"
#: What can be sent: see ``respond``.
FileArg: TypeAlias = "int | str | os.PathLike[str] | os.PathLike[bytes] | HasFileno | Buffer | mmap.mmap | File"
#: True: the file's. False: none. Otherwise this one: seconds since 1970, or an aware datetime.
LastModified: TypeAlias = "bool | int | float | datetime"


class ExchangeArguments(TypedDict, total=False):
    """What an answer is made of, by keyword. ``respond`` says what each of them means."""

    headers: Headers
    content_type: Text | None
    status: int
    etag: bool | str
    last_modified: LastModified
    offset: int | None
    length: int | None
    etag_inode: bool
    etag_ctime: bool
    max_ranges: int
    close: bool
    copy: bool
    check: bool
    head: HeadForm | bytes
    now: int | None
    seed: int


class Arguments(ExchangeArguments, total=False):
    """What ``respond`` takes by keyword, and everything else that sends and watches the time."""

    timeout: float
    total_timeout: float | None
    min_rate: int
