"""Calls the library: arguments to C structs, status codes to exceptions. Only ``_sender`` does so too, with these.

What C borrows has to live as long as C may look at it. Each object here that owns a struct therefore also owns a
list, ``_keep``, of whatever the struct's pointers point to.
"""

from __future__ import annotations

import errno
import io
import math
import os
import secrets
import ssl
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from email.utils import formatdate
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sendgate._native import ffi, lib

from . import _errors
from ._headers import Headers as _HeaderList
from ._headers import rows as _rows
from ._types import (
    Connection,
    Decision,
    FileArg,
    Framing,
    Headers,
    HeadForm,
    LastModified,
    Result,
    Rule,
    Socket,
    Step,
    Text,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._types import ExchangeArguments

# ---- The library that was loaded ----

#: Bytes of each struct that this module was written for, where pointers have 8 bytes.
_SIZES = {
    "sendgate_str": 16,
    "sendgate_request": 160,
    "sendgate_field": 32,
    "sendgate_rep": 88,
    "sendgate_header": 40,
    "sendgate_exchange": 88,
    "sendgate_range": 16,
    "sendgate_decision": 48,
    "sendgate_sink": 56,
    "sendgate_result": 48,
    "sendgate_source": 48,
    "sendgate_received": 32,
    "sendgate_sender_options": 32,
    "sendgate_completion": 64,
    "sendgate_fcgi_options": 24,
    "sendgate_fcgi_event": 56,
}
#: Those of which there are arrays, as ``struct`` has them.
_PACKED = {"sendgate_field": "PNPN", "sendgate_header": "PNPNII"}


def version() -> tuple[int, int, int]:
    """The loaded library's version: (major, minor, patch)."""
    packed = int(lib.sendgate_version())
    return packed >> 16, packed >> 8 & 0xFF, packed & 0xFF


def features() -> frozenset[str]:
    """What the loaded library can do: "sendfile" if files leave by a copy inside the kernel, "sender" if there is a
    ``Sender``.
    """
    bits = int(lib.sendgate_features())
    known = {"sendfile": lib.SENDGATE_FEATURE_SENDFILE, "sender": lib.SENDGATE_FEATURE_SENDER}
    return frozenset(name for name, bit in known.items() if bits & bit)


def _check_library() -> None:
    """Refuse a library or a description of it that this module wasn't written for.

    Out-of-line ABI mode trusts its description, so a mismatch would show as memory corruption.
    """
    described = (lib.SENDGATE_VERSION_MAJOR, lib.SENDGATE_VERSION_MINOR, lib.SENDGATE_VERSION_PATCH)
    if version() != described:
        raise ImportError(f"sendgate {'.'.join(map(str, described))} found a library of version {__version__}")
    sizes = {name: ffi.sizeof(name) for name in _SIZES}
    packed = {name: struct.calcsize(layout) for name, layout in _PACKED.items()}
    if (struct.calcsize("P") == 8 and sizes != _SIZES) or packed.items() - sizes.items():
        raise ImportError(f"sendgate: the structs of sendgate.h have sizes {sizes}, this package expects {_SIZES}")
    for enumeration, prefix in ((Connection, "CONN"), (Framing, "FRAMING"), (HeadForm, "HEAD"), (Rule, "RULE")):
        for member in enumeration:
            if getattr(lib, f"SENDGATE_{prefix}_{member.name}") != member.value:
                raise ImportError(f"sendgate: {enumeration.__name__}.{member.name} differs from sendgate.h")


__version__ = ".".join(map(str, version()))
_check_library()

_NULL = ffi.NULL
_INT64_MAX = 2**63 - 1

# ---- Status codes to exceptions ----

_EXCEPTIONS: dict[int, type[_errors.SendgateError]] = {
    lib.SENDGATE_ERR_INVALID: _errors.ArgumentError,
    lib.SENDGATE_ERR_SIZE: _errors.InternalError,
    lib.SENDGATE_ERR_NO_SPACE: _errors.InternalError,
    lib.SENDGATE_ERR_FIELD: _errors.FieldError,
    lib.SENDGATE_ERR_NO_MEMORY: _errors.OutOfMemoryError,
    lib.SENDGATE_ERR_IO: _errors.IOFailedError,
    lib.SENDGATE_ERR_PEER_CLOSED: _errors.PeerClosedError,
    lib.SENDGATE_ERR_TIMEOUT: _errors.ResponseTimeoutError,
    lib.SENDGATE_ERR_TRUNCATED: _errors.TruncatedError,
    lib.SENDGATE_ERR_NOT_REGULAR: _errors.NotRegularError,
    lib.SENDGATE_ERR_BLOCKING: _errors.BlockingSocketError,
    lib.SENDGATE_ERR_BUSY: _errors.BusyError,
    lib.SENDGATE_ERR_CANCELLED: _errors.TransferCancelledError,
    lib.SENDGATE_ERR_UNSUPPORTED: _errors.UnsupportedError,
    lib.SENDGATE_ERR_INTERNAL: _errors.InternalError,
    lib.SENDGATE_ERR_CHANGED: _errors.FileChangedError,
    lib.SENDGATE_ERR_REQUEST: _errors.RequestError,
    lib.SENDGATE_ERR_FORKED: _errors.ForkedError,
    lib.SENDGATE_ERR_INCOMPLETE: _errors.IncompleteError,
    lib.SENDGATE_ERR_FROZEN: _errors.FrozenError,
    lib.SENDGATE_ERR_EXCESS: _errors.ExcessError,
    lib.SENDGATE_ERR_FASTCGI: _errors.FastCGIError,
}


def _error(status: int, *, sys_errno: int = 0, result: Result | None = None) -> _errors.SendgateError:
    """The exception for a negative status. The only place that makes one."""
    kind = _EXCEPTIONS.get(status, _errors.SendgateError)
    message = ffi.string(lib.sendgate_status_message(status)).decode()
    name = ffi.string(lib.sendgate_status_name(status)).decode()
    if kind is _errors.ResponseTimeoutError:
        sys_errno = sys_errno or errno.ETIMEDOUT
    elif kind is _errors.IOFailedError and sys_errno:
        message = f"{message.rstrip('.')}: {os.strerror(sys_errno)}"
    return kind(message, status=status, name=name, errno=sys_errno, result=result)


def _check(status: int) -> int:
    """The status if it is no error, else the exception for it."""
    if status < 0:
        raise _error(status)
    return status


def _invalid(message: str) -> _errors.ArgumentError:
    """What this module refuses before the library sees it."""
    return _errors.ArgumentError(message, status=lib.SENDGATE_ERR_INVALID, name="SENDGATE_ERR_INVALID")


# ---- Structs ----


def _type(name: str) -> tuple[Any, int]:
    """What ``_new`` needs to make a struct: looked up once, because asking by name costs as much as the struct."""
    return ffi.typeof(f"{name} *"), ffi.sizeof(name)


_REQUEST = _type("sendgate_request")
_REP = _type("sendgate_rep")
_EXCHANGE = _type("sendgate_exchange")
_SINK = _type("sendgate_sink")
_RESULT = _type("sendgate_result")
_DECISION = _type("sendgate_decision")


def _new(kind: tuple[Any, int]) -> Any:
    """A zeroed struct with its size set."""
    made = ffi.new(kind[0])
    made.size = kind[1]
    return made


# ---- Values ----


def _latin1(value: Text, what: str) -> bytes:
    """Bytes of a field: HTTP has no encoding, and latin-1 maps each character up to U+00FF to its byte."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError:
            raise _errors.FieldError(
                f"{what} has a character above U+00FF: {value!r}",
                status=lib.SENDGATE_ERR_FIELD,
                name="SENDGATE_ERR_FIELD",
            ) from None
    raise TypeError(f"{what} must be str or bytes, not {type(value).__name__}")


def _set_str(target: Any, value: bytes, keep: list[Any]) -> None:
    """Point a sendgate_str at the bytes, without a copy."""
    borrowed = ffi.from_buffer(value)
    keep.append(borrowed)
    target.ptr = borrowed
    target.len = len(value)


def _array(kind: str, rows: list[Any], keep: list[Any]) -> Any:
    """An array of structs that begin with a name and a value; the rows have these as bytes, and the other members.

    Packed, because setting one member after the other takes twice as long.
    """
    block = ffi.from_buffer(b"".join([text for row in rows for text in row[:2]]))
    at = int(ffi.cast("uintptr_t", block))
    members: list[int] = []
    for name, value, *others in rows:
        middle = at + len(name)
        members += (at, len(name), middle, len(value), *others)
        at = middle + len(value)
    array = ffi.from_buffer(kind + "[]", struct.pack(_PACKED[kind] * len(rows), *members))
    keep += (block, array)
    return array


def _get_str(value: Any) -> str | None:
    """The text of a sendgate_str, None if it is absent."""
    return None if value.ptr == _NULL else bytes(ffi.buffer(value.ptr, value.len)).decode("latin-1")


def _int(value: int, low: int, high: int, what: str) -> int:
    """The number, if it is one and within its range."""
    if type(value) is int and low <= value <= high:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if not low <= value <= high:
        raise _invalid(f"{what} must be {low} to {high}, not {value}")
    return value


def _milliseconds(seconds: float | None, what: str) -> int:
    """A timeout as the sink wants it; None, which only the total may be, is 0: no limit."""
    if seconds is None:
        return 0
    if not 0 < seconds <= 4294967.0:
        raise _invalid(f"{what} must be above 0 and at most 4294967 seconds, not {seconds}")
    return math.ceil(seconds * 1000)


# ---- Requests ----

#: The fields that sendgate_request_from_fields looks at. The others are left out here because making a C
#: struct for each of a browser's 15 fields costs more than the whole decision.
_CONSULTED = frozenset(
    (
        b"connection",
        b"content-length",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
        b"transfer-encoding",
    )
)
_ENVIRON_KEYS = tuple(
    ("HTTP_" + name.decode().upper().replace("-", "_"), name) for name in sorted(_CONSULTED - {b"content-length"})
)
#: RFC 9110 13.1.1 to 13.1.4, as the struct names them.
_PRECONDITIONS = ("if_match", "if_modified_since", "if_none_match", "if_unmodified_since")


class Request:
    """What the answer depends on: method, version, and the request's fields. Immutable, so threads may share it.

    method: case-sensitive (RFC 9110 9.1). version: 10 or 11 for HTTP/1.0 and HTTP/1.1, or the text ("HTTP/1.1").
    fields: (name, value) pairs, str or bytes, or an object with such ``items()``: a dict, or the Message of
    http.client and email. The lines of one field are joined with ", " (RFC 9110 5.3). has_body: whether content was
    announced that has not been read, so that the connection can't be reused; None: as the fields say.

    FieldError: a character above U+00FF. ArgumentError (ValueError): another version.
    """

    __slots__ = ("_c", "_has_fields", "_head_length", "_keep")

    _c: Any
    #: Whether there may be any of those that count.
    _has_fields: bool

    def __init__(
        self,
        method: Text = "GET",
        version: int | str = 11,
        fields: Iterable[tuple[Text, Text]] | Mapping[str, str] = (),
        *,
        has_body: bool | None = None,
    ) -> None:
        if isinstance(version, str):
            # A front server may speak HTTP/2: what it passes on behaves like 1.1.
            version = 10 if version in ("HTTP/1.0", "HTTP/0.9") else 11
        pairs: Any = fields.items() if hasattr(fields, "items") else fields
        lines = []
        for name, value in pairs:
            name = _latin1(name, "a field name")
            if name.lower() in _CONSULTED:
                lines.append((name, _latin1(value, "a field value")))
        self._fill(_latin1(method, "the method"), version, lines, has_body)

    def _fill(self, method: bytes, version: int, lines: list[tuple[bytes, bytes]], has_body: bool | None) -> None:
        if version not in (10, 11):
            raise _invalid(f"the version must be 10 or 11, not {version!r}")
        keep: list[Any] = []
        request = _new(_REQUEST)
        request.version = version
        if method != b"GET":
            _set_str(request.method, method, keep)
        if lines:
            fields = _array("sendgate_field", lines, keep)
            needed = ffi.new("size_t *")
            scratch = _NULL
            status = lib.sendgate_request_from_fields(request, fields, len(lines), scratch, 0, needed)
            if status == lib.SENDGATE_ERR_NO_SPACE:
                scratch = ffi.new("char[]", needed[0])
                status = lib.sendgate_request_from_fields(request, fields, len(lines), scratch, needed[0], needed)
                keep.append(scratch)
            _check(status)
        if has_body is not None:
            request.flags = lib.SENDGATE_REQUEST_HAS_BODY if has_body else 0
        self._c = request
        self._keep = keep
        self._head_length = 0
        self._has_fields = bool(lines)

    @classmethod
    def from_environ(cls, environ: Mapping[str, Any], *, has_body: bool | None = None) -> Request:
        """From a WSGI or CGI environment (PEP 3333, RFC 3875).

        Without CONTENT_LENGTH and HTTP_TRANSFER_ENCODING nothing was announced. If your application has read the
        content, pass has_body=False.
        """
        lines = [(name, _latin1(value, key)) for key, name in _ENVIRON_KEYS if (value := environ.get(key)) is not None]
        # CGI servers set CONTENT_LENGTH to "" if there is none.
        if environ.get("CONTENT_LENGTH"):
            lines.append((b"content-length", _latin1(environ["CONTENT_LENGTH"], "CONTENT_LENGTH")))
        request = cls.__new__(cls)
        protocol = environ.get("SERVER_PROTOCOL", "HTTP/1.1")
        version = 10 if protocol in ("HTTP/1.0", "HTTP/0.9") else 11
        request._fill(_latin1(environ.get("REQUEST_METHOD", "GET"), "REQUEST_METHOD"), version, lines, has_body)
        return request

    @classmethod
    def from_head(cls, head: bytes | bytearray | memoryview) -> Request | None:
        """From the bytes of a request head as received, request line included. What follows the head is not looked
        at.

        None: there is no empty line yet, so read more and call again. RequestError: malformed, or ambiguous about
        where it ends (RFC 9112 2, 3, 5, 6.3).
        """
        # A copy, because the struct borrows it and the caller will reuse a receive buffer.
        data = ffi.from_buffer(bytes(head))
        request = _new(_REQUEST)
        needed = ffi.new("size_t *")
        length = ffi.new("size_t *")
        scratch = _NULL
        status = lib.sendgate_request_from_head(request, data, len(data), scratch, 0, needed, length)
        if status == lib.SENDGATE_ERR_NO_SPACE:
            scratch = ffi.new("char[]", needed[0])
            status = lib.sendgate_request_from_head(request, data, len(data), scratch, needed[0], needed, length)
        if _check(status) == lib.SENDGATE_WANT_READ:
            return None
        return cls._of(request, [data, scratch], int(length[0]))

    @classmethod
    def _of(cls, c: Any, keep: list[Any], head_length: int = 0) -> Request:
        """One that was filled elsewhere."""
        self = cls.__new__(cls)
        self._c = c
        self._keep = keep
        self._head_length = head_length
        self._has_fields = True
        return self

    @property
    def method(self) -> str:
        """The method."""
        return _get_str(self._c.method) or "GET"

    @property
    def version(self) -> int:
        """10 or 11."""
        return int(self._c.version)

    @property
    def target(self) -> str | None:
        """The request target as received, bytes as latin-1; only ``from_head`` knows it."""
        return _get_str(self._c.target)

    @property
    def head_length(self) -> int:
        """For ``from_head``: where the head ends, in bytes. Content or the next request begin there. Otherwise 0."""
        return self._head_length

    @property
    def has_body(self) -> bool:
        """Whether content was announced that has not been read."""
        return bool(self._c.flags & lib.SENDGATE_REQUEST_HAS_BODY)

    def field(self, name: str) -> str | None:
        """The value of one of the fields that count, its lines joined, bytes as latin-1; None if absent.

        Connection, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since, If-Range and Range are known, in
        any case; KeyError for another.
        """
        key = name.lower().replace("-", "_")
        if key not in ("connection", "range") and not key.startswith("if_"):
            raise KeyError(name)
        try:
            return _get_str(getattr(self._c, key))
        except AttributeError:
            raise KeyError(name) from None

    @classmethod
    def from_scope(cls, scope: Mapping[str, Any], *, has_body: bool | None = None) -> Request:
        """From the scope of an ASGI application. If yours has read the content, pass has_body=False."""
        version = scope.get("http_version", "1.1")
        return cls(scope["method"], "HTTP/" + version, scope["headers"], has_body=has_body)

    def _without(self, *fields: str) -> Request:
        """The same, as if it had not these fields."""
        if not self._has_fields:
            return self
        c = ffi.new(_REQUEST[0], self._c[0])
        for name in fields:
            value = getattr(c, name)
            value.ptr, value.len = _NULL, 0
        return Request._of(c, [self], self._head_length)

    def _unranged(self) -> Request:
        """The same, but for all of the content."""
        return self._without("range", "if_range")

    def _full(self) -> Request:
        """The same, without any condition."""
        return self._without("range", "if_range", *_PRECONDITIONS)

    def _is_conditional(self) -> bool:
        """Whether the answer may be a 304 or a 412."""
        return self._has_fields and any(getattr(self._c, name).ptr != _NULL for name in _PRECONDITIONS)

    def __repr__(self) -> str:
        return f"<sendgate.Request {self.method} HTTP/{self.version / 10}>"


# ---- Files ----


def _rep(fd: int, flags: int) -> tuple[Any, Any]:
    """One fstat: the representation that is the whole file, and the buffer of its entity tag."""
    rep = _new(_REP)
    tag = ffi.new("char[]", lib.SENDGATE_ETAG_MAX)
    sys_errno = ffi.new("int32_t *")
    status = lib.sendgate_rep_from_fd(rep, fd, flags, tag, lib.SENDGATE_ETAG_MAX, sys_errno)
    if status < 0:
        raise _error(status, sys_errno=sys_errno[0])
    return rep, tag


def _etag_flags(inode: bool, ctime: bool) -> int:
    return (lib.SENDGATE_ETAG_INODE if inode else 0) | (lib.SENDGATE_ETAG_CTIME if ctime else 0)


class File:
    """A regular file, open for reading, with what one fstat said about it. ``open_beneath`` makes it.

    Passing it to ``respond`` neither opens nor fstats the file again. It owns its descriptor: close it, use it as
    a context manager, or leave it to be collected. Threads may share it.
    """

    __slots__ = ("_fd", "_rep", "_tag")

    #: When the interpreter ends, names of modules go before what an application keeps in its own.
    _close_fd = staticmethod(os.close)

    def __init__(self, fd: int, rep: Any, tag: Any) -> None:
        self._fd = fd
        self._rep = rep
        self._tag = tag

    def fileno(self) -> int:
        """The descriptor. ValueError if closed."""
        if self._fd < 0:
            raise ValueError("the file is closed")
        return self._fd

    @property
    def size(self) -> int:
        """Number of bytes."""
        return int(self._rep.length)

    @property
    def mtime_ns(self) -> int:
        """Time of modification in nanoseconds since 1970."""
        return int(self._rep.mtime) * 10**9 + int(self._rep.mtime_nsec)

    @property
    def etag(self) -> str:
        """The entity tag with its quotes, in its strong form."""
        return _get_str(self._rep.etag) or ""

    def close(self) -> None:
        """Close the descriptor; again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._close_fd(fd)

    def __enter__(self) -> File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def open_beneath(
    directory_fd: int,
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    *,
    outside: bool = False,
    etag_inode: bool = False,
    etag_ctime: bool = False,
) -> File:
    """Open a regular file beneath a directory, and fstat it, once. Never waits, whatever the path names.

    path is relative and already percent-decoded. Neither ".." nor a symbolic link leads out of the directory, unless
    ``outside`` allows links to. directory_fd is borrowed. etag_inode, etag_ctime: see ``respond``.

    OSError with errno ENOENT, ENOTDIR, EACCES, ..., and EXDEV or ELOOP if the path leads out; FileNotFoundError and
    its like are raised as such. NotRegularError: a directory (errno EISDIR), FIFO, device or socket. ValueError: a
    NUL in path.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("a path can't contain NUL")
    rep = _new(_REP)
    tag = ffi.new("char[]", lib.SENDGATE_ETAG_MAX)
    fd = ffi.new("int32_t *", -1)
    sys_errno = ffi.new("int32_t *")
    flags = _etag_flags(etag_inode, etag_ctime) | (lib.SENDGATE_OPEN_OUTSIDE if outside else 0)
    status = lib.sendgate_open(directory_fd, raw, flags, tag, lib.SENDGATE_ETAG_MAX, fd, rep, sys_errno)
    if status == lib.SENDGATE_ERR_IO:
        # OSError itself picks FileNotFoundError, PermissionError, ...
        raise OSError(sys_errno[0], os.strerror(sys_errno[0]), os.fsdecode(raw))
    if status < 0:
        raise _error(status, sys_errno=sys_errno[0])
    return File(int(fd[0]), rep, tag)


class _Produced:
    """What a stream has in the place of a file: content of so many bytes (None: nobody knows how many) that is produced
    while it is sent.
    """

    __slots__ = ("length", "seekable")

    def __init__(self, length: int | None, seekable: bool) -> None:
        if seekable and length is None:
            raise _invalid("a stream whose parts are to be sent needs a length")
        self.length = None if length is None else _int(length, 0, _INT64_MAX, "length")
        self.seekable = seekable

    def rep(self) -> Any:
        rep = _new(_REP)
        rep.kind = lib.SENDGATE_REP_STREAM
        rep.fd = -1
        rep.length = self.length or 0
        rep.flags = lib.SENDGATE_REP_SEEKABLE if self.seekable else 0
        if self.length is None:
            rep.flags |= lib.SENDGATE_REP_UNSIZED
        return rep


class _Source:
    """A file argument as the library wants it. ``close`` ends what it borrowed or opened."""

    __slots__ = ("_keep", "_owned", "_view", "rep", "start")

    rep: Any
    #: Where it begins within the file or buffer.
    start: int

    def __init__(
        self, file: FileArg | _Produced, offset: int | None, length: int | None, etag_inode: bool, etag_ctime: bool
    ) -> None:
        self._owned = -1
        self._view: Any = None
        self._keep: list[Any] = []
        if isinstance(file, _Produced):
            self.rep, self.start = file.rep(), 0
            return
        try:
            start = self._open(file, _etag_flags(etag_inode, etag_ctime))
            self._cut(start if offset is None else _int(offset, 0, _INT64_MAX, "offset"), length)
        except BaseException:
            self.close()
            raise

    def _open(self, file: FileArg, flags: int) -> int:
        """Fill rep for all of the file, and return the position at which it begins by default."""
        if isinstance(file, File):
            file.fileno()
            self.rep = ffi.new("sendgate_rep *", file._rep[0])
            # The file may outlive its object: the caller closes it when the response is done.
            self._keep += [file, file._tag]
            return 0
        if isinstance(file, int) and not isinstance(file, bool):
            self._stat(_int(file, 0, 2**31 - 1, "a file descriptor"), flags)
            return 0
        if isinstance(file, (str, os.PathLike)):
            # Without O_NONBLOCK, opening a FIFO would wait for its other end.
            self._owned = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            self._stat(self._owned, flags)
            return 0
        if hasattr(file, "fileno"):
            try:
                fd = file.fileno()
            except io.UnsupportedOperation:
                if not isinstance(file, io.BytesIO):
                    raise
                self._memory(file.getbuffer())
                return file.tell()
            self._stat(fd, flags)
            self._keep.append(file)
            # tell(), not the descriptor's position: a buffered file that was read is ahead of what was read from it.
            return int(file.tell()) if hasattr(file, "tell") else 0
        self._memory(file)
        return 0

    def _stat(self, fd: int, flags: int) -> None:
        self.rep, tag = _rep(fd, flags)
        self._keep.append(tag)

    def _memory(self, file: Any) -> None:
        try:
            view = ffi.from_buffer(file)
        except TypeError:
            raise TypeError(
                "file must be a descriptor, a path (str or PathLike), an object with fileno(), or a buffer (bytes, "
                f"bytearray, memoryview, mmap), not {type(file).__name__}"
            ) from None
        rep = _new(_REP)
        rep.kind = lib.SENDGATE_REP_MEMORY
        rep.fd = -1
        rep.memory = view
        rep.length = len(view)
        self.rep = rep
        self._view = view

    def _cut(self, start: int, length: int | None) -> None:
        """Make rep the bytes from start on, length of them."""
        rep = self.rep
        rest = int(rep.length) - start
        if length is None:
            # A position behind the end of the file is an empty rest, as for read().
            length = max(0, rest)
        elif _int(length, 0, _INT64_MAX, "length") > rest:
            raise _invalid(f"offset {start} and length {length} lead past the end at {rep.length}")
        rep.length = length
        self.start = start
        if rep.kind == lib.SENDGATE_REP_MEMORY:
            rep.memory = ffi.cast("const char *", rep.memory) + min(start, len(self._view))
        else:
            rep.offset = start

    def close(self) -> None:
        """Close what was opened here, and let go of a buffer, so that a bytearray can be resized again."""
        fd, self._owned = self._owned, -1
        if fd >= 0:
            os.close(fd)
        view, self._view = self._view, None
        if view is not None:
            ffi.release(view)
        self._keep.clear()

    def __del__(self) -> None:
        # A transfer that was dropped half-way.
        self.close()


# ---- Exchanges ----


def _headers(headers: Headers, extra: list[tuple[bytes, bytes, int]], keep: list[Any]) -> tuple[Any, int]:
    """An array of sendgate_header, and its length."""
    rows = _rows(headers)
    if extra and not (isinstance(headers, _HeaderList) and headers.is_frozen(extra[0][0])):
        rows += extra
    if not rows:
        return _NULL, 0
    try:
        made = [
            (_latin1(row[0], "a field name"), _latin1(row[1], "a field value"), *(row[2:] or (Rule.OVERRIDE,)), 0)
            for row in rows
        ]
        return _array("sendgate_header", made, keep), len(made)
    except (IndexError, struct.error):
        raise TypeError("a field is a name and a value, and may have a Rule") from None


def _last_modified(value: LastModified) -> list[tuple[bytes, bytes, int]]:
    """The header that makes the library use another date than the file's, or none.

    Not the representation's own time: that says how far the entity tag, which is made from it, can be trusted.
    """
    if value is True:
        return []
    if value is False:
        return [(b"Last-Modified", b"", Rule.REMOVE)]
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise _invalid("last_modified: a datetime needs a time zone")
        value = value.timestamp()
    return [(b"Last-Modified", formatdate(math.floor(value), usegmt=True).encode(), Rule.OVERRIDE)]


class _Exchange:
    """A sendgate_exchange and all that it points to."""

    __slots__ = ("_keep", "_source", "c")

    def __init__(
        self,
        request: Request | None,
        file: FileArg | _Produced,
        *,
        headers: Headers = (),
        content_type: Text | None = None,
        status: int = 200,
        etag: bool | str = True,
        last_modified: LastModified = True,
        offset: int | None = None,
        length: int | None = None,
        etag_inode: bool = False,
        etag_ctime: bool = False,
        max_ranges: int = 64,
        close: bool = False,
        copy: bool = False,
        check: bool = False,
        head: HeadForm | bytes = HeadForm.HTTP1,
        now: int | None = None,
        seed: int = 0,
    ) -> None:
        if request is not None and not isinstance(request, Request):
            raise TypeError(f"request must be a sendgate.Request or None, not {type(request).__name__}")
        keep: list[Any] = [request]
        exchange = _new(_EXCHANGE)
        exchange.headers, exchange.n_headers = _headers(headers, _last_modified(last_modified), keep)
        exchange.http_status = _int(status, 200, 999, "status")
        exchange.max_ranges = _int(max_ranges, 1, 64, "max_ranges")
        exchange.now = 0 if now is None else _int(now, -_INT64_MAX, _INT64_MAX, "now")
        exchange.seed = _int(seed, 0, 2**64 - 1, "seed")
        if not isinstance(head, bytes):
            exchange.head = head if type(head) is HeadForm else HeadForm(head)
        exchange.head_flags = lib.SENDGATE_HEAD_CLOSE if close else 0
        if request is not None:
            exchange.request = request._c
        own_type = None if content_type is None else _latin1(content_type, "content_type")
        own_tag = _latin1(etag, "etag") if isinstance(etag, (str, bytes)) else None

        # Last, because from here on there is something to close.
        source = _Source(file, offset, length, etag_inode, etag_ctime)
        rep = source.rep
        if own_type is not None:
            _set_str(rep.content_type, own_type, keep)
        if own_tag is not None:
            rep.flags &= ~lib.SENDGATE_REP_ETAG_FROM_MTIME
            _set_str(rep.etag, own_tag, keep)
        elif not etag:
            rep.flags &= ~lib.SENDGATE_REP_ETAG_FROM_MTIME
            rep.etag.ptr = _NULL
            rep.etag.len = 0
        if copy:
            rep.flags |= lib.SENDGATE_REP_COPY
        if check:
            rep.flags |= lib.SENDGATE_REP_CHECK
        exchange.rep = rep
        self.c = exchange
        self._keep = keep
        self._source = source
        if isinstance(head, bytes):
            self.set_head(head)

    def set_head(self, head: bytes) -> None:
        """These bytes are sent in the head's place."""
        self.c.head = lib.SENDGATE_HEAD_GIVEN
        _set_str(self.c.head_text, head, self._keep)

    def decide(self) -> Decision:
        """What the answer will be. From now on the clock and the boundary are the same in everything made of it."""
        c = self.c
        c.now = c.now or int(time.time())
        c.seed = c.seed or secrets.randbits(64) or 1
        decision = _new(_DECISION)
        ranges = ffi.new("sendgate_range[]", c.max_ranges)
        _check(lib.sendgate_decide(c, ranges, c.max_ranges, decision))
        return Decision(
            status=int(decision.http_status),
            keep_alive=bool(decision.keep_alive),
            content_length=int(decision.content_length),
            body_length=int(decision.body_length),
            ranges=tuple((int(r.offset), int(r.length)) for r in ranges[0 : decision.n_ranges]),
            fields=() if c.head == lib.SENDGATE_HEAD_GIVEN else _head_fields(c),
            head=b"" if c.head == lib.SENDGATE_HEAD_NONE else _head_bytes(c),
            framing=Framing(decision.framing),
        )

    def respond(self, sink: _Sink) -> Result:
        """Send it, and wait until it is sent."""
        result = _new(_RESULT)
        with _Unblocked(sink):
            code = lib.sendgate_respond(self.c, sink.c, result)
        return _finish(code, result, sink)

    def close(self) -> None:
        """The library no longer looks at anything."""
        self._source.close()
        self._keep.clear()

    @property
    def start(self) -> int:
        """Where the representation begins within the file or buffer."""
        return self._source.start

    @property
    def fileno(self) -> int:
        """The file's descriptor; -1: it is memory."""
        return int(self._source.rep.fd)

    @property
    def memory(self) -> _Source | None:
        """The source, if it is memory: the one thing here that the library looks at after a submit."""
        return self._source if self._source.rep.kind == lib.SENDGATE_REP_MEMORY else None


# ---- Sinks ----

#: One TLS record (RFC 8446 5.1). send() of an SSLSocket reports progress only when all it was given is taken.
_TLS_RECORD = 16384


class _TlsWriter:
    """Takes bytes from the library and gives them to an SSLSocket."""

    __slots__ = ("_ahead", "_pending", "error", "sock")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        #: What send() raised that has no status code.
        self.error: BaseException | None = None
        #: What OpenSSL has encrypted and couldn't send: it has to be offered again, and no less of it ("bad write
        #: retry"), while a smaller budget may make the library offer less.
        self._pending = b""
        #: Bytes of those that were sent in the end, and that the library hasn't offered again yet.
        self._ahead = 0

    def write(self, data: Any, length: int, written: Any) -> int:
        """The contract of sendgate_write_fn. Never raises."""
        if self._ahead == 0:
            offer = self._pending or ffi.buffer(data, min(length, _TLS_RECORD))
            try:
                self._ahead = self.sock.send(offer)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as want:
                self._pending = bytes(offer)
                reading = isinstance(want, ssl.SSLWantReadError)
                return int(lib.SENDGATE_WANT_READ if reading else lib.SENDGATE_WANT_WRITE)
            except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return int(lib.SENDGATE_ERR_PEER_CLOSED)
            except BaseException as error:
                # An exception can't pass through C: it waits here until the library has returned.
                self.error = error
                return int(lib.SENDGATE_ERR_IO)
            self._pending = b""
        taken = min(length, self._ahead)
        self._ahead -= taken
        written[0] = taken
        return int(lib.SENDGATE_OK)


class _Collector:
    """In the place of a socket: keeps the bytes for somebody else to send."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: Any, length: int, written: Any) -> int:
        """The contract of sendgate_write_fn."""
        self._bytes += ffi.buffer(data, length)
        written[0] = length
        return int(lib.SENDGATE_OK)

    def take(self) -> bytes:
        """What has come since the last time."""
        taken, self._bytes = bytes(self._bytes), bytearray()
        return taken


@ffi.callback("sendgate_write_fn", error=lib.SENDGATE_ERR_INTERNAL)  # type: ignore[untyped-decorator]
def _write(user: Any, data: Any, length: int, written: Any) -> int:
    writer: _TlsWriter | _Collector = ffi.from_handle(user)
    return writer.write(data, length, written)


class Channel:
    """The place of one answer on a FastCGI connection: what ``respond``, ``Transfer.start``, ``Sender.submit`` and
    ``Stream`` take in the place of a socket. The answer is sent in STDOUT records, and ended with END_REQUEST; its head
    is to be HeadForm.CGI.

    sock: the connection, borrowed. request_id: 1 to 65535, as the front server has sent it. keep_conn: it has asked to
    keep the connection, so a complete answer leaves it REUSABLE.
    ends_short: content that turns out to be shorter than announced is ended properly, if it ends between two records:
    for nginx without kept connections, which waits for the end and notices what is missing. lighttpd, and nginx with
    kept connections, notice that only if the connection is closed without it. TruncatedError is raised either way.
    """

    __slots__ = ("ends_short", "keep_conn", "request_id", "sock")

    def __init__(self, sock: Any, request_id: int, *, keep_conn: bool = False, ends_short: bool = False) -> None:
        self.sock = sock
        self.request_id = _int(request_id, 1, 65535, "request_id")
        self.keep_conn = keep_conn
        self.ends_short = ends_short

    @property
    def _flags(self) -> int:
        """As the sink wants them."""
        keep = lib.SENDGATE_SINK_FCGI_KEEP if self.keep_conn else 0
        return int(keep | (lib.SENDGATE_SINK_FCGI_END_SHORT if self.ends_short else 0))

    def fileno(self) -> int:
        """The connection's descriptor."""
        return int(self.sock if isinstance(self.sock, int) else self.sock.fileno())


class _Sink:
    """A sendgate_sink and what it points to."""

    __slots__ = ("_handle", "c", "tls")

    def __init__(self, sock: Socket | _Collector, timeout: int = 0, total_timeout: int = 0, min_rate: int = 0) -> None:
        sink = _new(_SINK)
        sink.idle_timeout_ms = timeout
        sink.total_timeout_ms = total_timeout
        sink.min_rate = _int(min_rate, 0, 2**64 - 1, "min_rate")
        self.tls: _TlsWriter | None = None
        if isinstance(sock, int):
            sink.fd = _int(sock, 0, 2**31 - 1, "a socket's descriptor")
        elif isinstance(sock, _Collector):
            self._handle = ffi.new_handle(sock)
            sink.write = _write
            sink.user = self._handle
            sink.fd = -1
        elif isinstance(sock, ssl.SSLSocket):
            self.tls = _TlsWriter(sock)
            self._handle = ffi.new_handle(self.tls)
            sink.write = _write
            sink.user = self._handle
            sink.fd = sock.fileno()
        elif hasattr(sock, "do_handshake"):
            # It has a descriptor, but what is written there would go out unencrypted.
            raise TypeError(f"of TLS sockets only ssl.SSLSocket is supported, not {type(sock).__name__}")
        elif hasattr(sock, "fileno"):
            sink.fd = _int(sock.fileno(), 0, 2**31 - 1, "a socket's descriptor (is it closed?)")
            if isinstance(sock, Channel):
                sink.fcgi_request_id = sock.request_id
                sink.flags = sock._flags
        else:
            raise TypeError(f"sock must be a socket or a descriptor, not {type(sock).__name__}")
        self.c = sink


class _Unblocked:
    """An SSLSocket doesn't wait in its own send() meanwhile: the library waits, within its timeouts."""

    __slots__ = ("_before", "_sock")

    def __init__(self, sink: _Sink) -> None:
        self._sock = None if sink.tls is None else sink.tls.sock
        self._before: float | None = 0.0

    def __enter__(self) -> None:
        if self._sock is not None:
            self._before = self._sock.gettimeout()
            if self._before != 0.0:
                self._sock.settimeout(0.0)

    def __exit__(self, *_: object) -> None:
        # A closed socket has no mode to restore.
        if self._sock is not None and self._before != 0.0 and self._sock.fileno() >= 0:
            self._sock.settimeout(self._before)


# ---- Results ----

#: By number, which is faster than calling the enumeration.
_CONNECTIONS = tuple(Connection)


def _result(c: Any) -> Result:
    return Result(
        int(c.status),
        int(c.http_status),
        _CONNECTIONS[c.connection],
        int(c.head_sent),
        int(c.body_sent),
        int(c.body_length),
    )


def _finish(status: int, c: Any, sink: _Sink | None) -> Result:
    """The result, or the exception for the status."""
    result = _result(c)
    if status < 0:
        error = _error(status, sys_errno=c.sys_errno, result=result)
        if sink is not None and sink.tls is not None and sink.tls.error is not None:
            cause, sink.tls.error = sink.tls.error, None
            if not isinstance(cause, Exception):
                raise cause
            raise error from cause
        raise error
    return result


# ---- What the package does ----


def decide(
    request: Request | None,
    file: FileArg,
    **arguments: Unpack[ExchangeArguments],
) -> Decision:
    """What the answer to a request is, without sending it (RFC 9110 13.2.2 and 14.2).

    For a server that writes the response itself. A file is fstat'ed, and nothing of it is read. head is the form of
    ``Decision.head`` and ``fields``; if it is bytes, these are ``Decision.head``, and there are no ``fields``. now is
    the clock in seconds since 1970 (None: read it). seed makes the boundary of a multipart answer (0: random). All else
    is as in ``respond``.

    FieldError, NotRegularError, ArgumentError (ValueError), OSError if a path can't be opened.
    """
    exchange = _Exchange(request, file, **arguments)
    try:
        return exchange.decide()
    finally:
        exchange.close()


def _head_bytes(exchange: Any, room: int = 1024) -> bytes:
    """The head. A longer one than room is asked for again."""
    buffer = ffi.new("char[]", room)
    needed = ffi.new("size_t *")
    status = lib.sendgate_head_bytes(exchange, buffer, room, needed)
    if status == lib.SENDGATE_ERR_NO_SPACE and needed[0] > room:
        return _head_bytes(exchange, needed[0])
    _check(status)
    return bytes(ffi.buffer(buffer, needed[0]))


def _head_fields(exchange: Any, count: int = 24, room: int = 1024) -> tuple[tuple[str, str], ...]:
    """The head's fields. More of them than count, or more bytes than room, are asked for again."""
    fields = ffi.new("sendgate_field[]", count)
    scratch = ffi.new("char[]", room)
    n_fields = ffi.new("size_t *")
    needed = ffi.new("size_t *")
    status = lib.sendgate_head_fields(exchange, fields, count, scratch, room, n_fields, needed)
    if status == lib.SENDGATE_ERR_NO_SPACE and (n_fields[0] > count or needed[0] > room):
        return _head_fields(exchange, max(count, n_fields[0]), max(room, needed[0]))
    _check(status)
    return tuple((_get_str(f.name) or "", _get_str(f.value) or "") for f in fields[0 : n_fields[0]])


def respond(
    sock: Socket,
    request: Request | None,
    file: FileArg,
    *,
    headers: Headers = (),
    content_type: Text | None = None,
    status: int = 200,
    etag: bool | str = True,
    last_modified: LastModified = True,
    offset: int | None = None,
    length: int | None = None,
    etag_inode: bool = False,
    etag_ctime: bool = False,
    max_ranges: int = 64,
    close: bool = False,
    copy: bool = False,
    check: bool = False,
    head: HeadForm | bytes = HeadForm.HTTP1,
    timeout: float = 60.0,
    total_timeout: float | None = None,
    min_rate: int = 0,
    now: int | None = None,
    seed: int = 0,
) -> Result:
    """Answer a request on a socket with a file, and return when the response is complete (RFC 9110 13, 14).

    sock: a stream socket, TCP or UNIX, blocking or not, with or without a timeout of its own, or its descriptor.
    Borrowed; its mode and options are as before afterwards. Bytes to an ssl.SSLSocket go through its own send().
    request: None is a plain GET of HTTP/1.1.
    file: a descriptor (int; the whole file), an object with fileno() (from its tell() on), a path (str or PathLike;
    opened and closed here), a ``File``, or a buffer (bytes, bytearray, memoryview, mmap, BytesIO; not copied, and not
    to be changed meanwhile). bytes are content, never a path. Descriptors are borrowed, and their position is neither
    used nor moved.
    offset, length: send these bytes of it, as if they were all there is.

    headers: (name, value) or (name, value, Rule); your field replaces the library's unless the rule says otherwise.
    status: your own, 200 to 999; with any but 200 neither conditions nor ranges are evaluated.
    etag: True: "<mtime in ns, hex>-<size, hex>", weak while the file is too young to trust its time (RFC 9110 8.8.1);
    False: none; or your own with its quotes. It is the file's, whatever offset and length are: if one URL may be
    answered with several spans, give each its own. etag_inode and etag_ctime add these to the file's, which then
    differs between the servers of a cluster. last_modified: True: the file's; False: none; or your own. A buffer has
    neither.
    max_ranges: more parts than that (1 to 64) and all of it is sent. close: announce Connection: close. copy: through
    memory instead of sendfile, for files that are rewritten in place. check: fstat before each step, FileChangedError
    if it changed.
    head: HeadForm.NONE sends the body only; bytes are sent as they are in the head's place, and have to say what is
    decided here.
    timeout: seconds without progress; total_timeout: for all of the response. min_rate: bytes per second that the peer
    has to take in each period of timeout. Bytes in the socket's own buffer have not been taken yet.
    now: the clock in seconds since 1970, for Date and validators; None reads it. seed: makes the boundary of a
    multipart answer; 0 is random. If ``decide`` makes the head and this the body, give both the same now and seed.

    Raises PeerClosedError, ResponseTimeoutError, TruncatedError, FileChangedError, NotRegularError, FieldError,
    IOFailedError, OSError if a path can't be opened, ValueError and TypeError for wrong arguments. The ``connection``
    of each SendgateError tells whether another answer may still be sent. Signal handlers run after the call.
    """
    sink = _Sink(sock, _milliseconds(timeout, "timeout"), _milliseconds(total_timeout, "total_timeout"), min_rate)
    exchange = _Exchange(
        request,
        file,
        headers=headers,
        content_type=content_type,
        status=status,
        etag=etag,
        last_modified=last_modified,
        offset=offset,
        length=length,
        etag_inode=etag_inode,
        etag_ctime=etag_ctime,
        max_ranges=max_ranges,
        close=close,
        copy=copy,
        check=check,
        head=head,
        now=now,
        seed=seed,
    )
    try:
        return exchange.respond(sink)
    finally:
        exchange.close()


class _Handle:
    """A handle of the library's, which is used by one thread at a time, and freed once."""

    #: What it is called.
    _what = "handle"

    def __init__(self, handle: Any = None) -> None:
        self._handle = handle
        self._lock = threading.Lock()

    def _enter(self, closing: bool = False) -> None:
        """Exclusive use, until ``_lock`` is released."""
        if not self._lock.acquire(blocking=False):
            raise _error(lib.SENDGATE_ERR_BUSY)
        if self._handle is None and not closing:
            self._lock.release()
            raise ValueError(f"the {self._what} is closed")

    def _free(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)


class Transfer(_Handle):
    """A response in progress, for a caller with an event loop. Make one per connection and reuse it.

    Start it, then step until it is done::

        transfer.start(sock, request, "file.bin")
        while step := transfer.step():
            ...wait as the step says...

    Used by one thread at a time: BusyError otherwise. After an error every further step raises the same, until
    the next start. ``close``, or leaving the context, frees it; neither closes the socket.
    """

    _what = "transfer"

    def __init__(self) -> None:
        out = ffi.new("sendgate_transfer **")
        _check(lib.sendgate_transfer_new(out))
        super().__init__(ffi.gc(out[0], lib.sendgate_transfer_free))
        self._c = _new(_RESULT)
        self._exchange: _Exchange | None = None
        self._sink: _Sink | None = None

    def start(
        self,
        sock: Socket | None,
        request: Request | None,
        file: FileArg,
        **arguments: Unpack[ExchangeArguments],
    ) -> None:
        """Decide, and get ready to send; nothing is written yet. Ends whatever was in progress.

        sock must be non-blocking (BlockingSocketError), or None if ``pull`` will be used. It is borrowed until the
        response is done, and so is file. The rest, and what it raises, is as in ``respond``; after an exception the
        transfer is idle.
        """
        self._enter()
        try:
            self._end()
            self._begin(sock, _Exchange(request, file, **arguments))
        finally:
            self._lock.release()

    def _begin(self, sock: Socket | None, exchange: _Exchange) -> None:
        """Get ready to send this; it is closed when the library no longer needs it."""
        try:
            sink = None if sock is None else _Sink(sock)
            if sink is not None and sink.tls is not None and sink.tls.sock.gettimeout() != 0.0:
                # Its send() would wait, whatever the descriptor's mode is.
                raise _error(lib.SENDGATE_ERR_BLOCKING)
            _check(lib.sendgate_transfer_start(self._handle, exchange.c, _NULL if sink is None else sink.c))
        except BaseException:
            exchange.close()
            raise
        self._exchange = exchange
        self._sink = sink
        self._c = _new(_RESULT)

    def step(self, budget: int = 0) -> Step:
        """Send at most budget bytes (0: until the socket takes no more), and say what to wait for.

        Raises what ``respond`` raises, but for timeouts, which are the caller's. ArgumentError: not started.
        """
        self._enter()
        try:
            code = lib.sendgate_transfer_step(self._handle, _int(budget, 0, 2**64 - 1, "budget"), self._c)
            self._let_go(code)
            _finish(code, self._c, self._sink)
            return Step(code)
        finally:
            self._lock.release()

    def pull(self, buffer: bytearray | memoryview) -> int:
        """Instead of a step, for a caller that writes the bytes itself: put the next ones into a writable buffer.

        Returns how many; 0 only at the end. The transfer was started with sock None. Bytes put there count as sent.
        ArgumentError: not started so, or no room in buffer. TypeError: not writable.
        """
        self._enter()
        try:
            with ffi.from_buffer("uint8_t[]", buffer, require_writable=True) as room:
                if len(room) == 0:
                    raise _invalid("there is no room in the buffer")
                length = ffi.new("size_t *")
                code = lib.sendgate_transfer_pull(self._handle, room, len(room), length, self._c)
            self._let_go(code)
            _finish(code, self._c, None)
            return int(length[0])
        finally:
            self._lock.release()

    @property
    def result(self) -> Result:
        """What happened so far."""
        return _result(self._c)

    def close(self) -> None:
        """Free the transfer; again does nothing. A response that is not done stays cut short."""
        self._enter(closing=True)
        try:
            self._end()
            self._free()
        finally:
            self._lock.release()

    def _let_go(self, code: int) -> None:
        """Once the response is done or has failed, the library no longer looks at what it borrowed."""
        done = code == lib.SENDGATE_OK or (code < 0 and code != lib.SENDGATE_ERR_INVALID)
        if done and self._exchange is not None:
            self._exchange.close()

    def _end(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = self._sink = None

    def __enter__(self) -> Transfer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# ---- The three calls of the RSGI proposal ----


def _fields(headers: Headers, keep: list[Any]) -> tuple[Any, int]:
    """An array of sendgate_field, and its length."""
    pairs: Any = headers.items() if hasattr(headers, "items") else headers
    rows = [(_latin1(name, "a field name"), _latin1(value, "a field value")) for name, value in pairs]
    if not rows:
        return _NULL, 0
    return _array("sendgate_field", rows, keep), len(rows)


def _request(request: Request | None) -> Any:
    if request is None:
        return _NULL
    if not isinstance(request, Request):
        raise TypeError(f"request must be a sendgate.Request or None, not {type(request).__name__}")
    return request._c


class _Simple:
    """What the three calls have in common."""

    __slots__ = ("args", "keep", "sink")

    def __init__(
        self,
        status: int,
        headers: Headers,
        sock: Socket,
        request: Request | None,
        timeout: float,
        total_timeout: float | None,
    ) -> None:
        self.keep: list[Any] = [request]
        self.sink = _Sink(sock, _milliseconds(timeout, "timeout"), _milliseconds(total_timeout, "total_timeout"))
        _int(status, 200, 999, "status")
        self.args = (self.sink.c, _request(request), status, *_fields(headers, self.keep))

    def call(self, function: Any, *rest: Any) -> Result:
        result = _new(_RESULT)
        with _Unblocked(self.sink):
            code = function(*self.args, *rest, result)
        return _finish(code, result, self.sink)


def _take(fd: int) -> int:
    """A descriptor that is taken over. TypeError for anything but an int, which then isn't closed."""
    if isinstance(fd, bool) or not isinstance(fd, int):
        raise TypeError(
            f"fd must be an int, not {type(fd).__name__}: the descriptor is taken over, so pass an os.dup()"
        )
    if not 0 <= fd < 2**31:
        raise _invalid(f"fd must be 0 to 2147483647, not {fd}")
    return fd


def response_file_fd(
    status: int,
    headers: Headers,
    fd: int,
    *,
    sock: Socket,
    request: Request | None = None,
    timeout: float = 60.0,
    total_timeout: float | None = None,
) -> Result:
    """Answer on sock with all of a file, as the application says.

    Status and headers are sent as given, with Content-Length added. No condition or range is evaluated; request only
    tells HEAD and whether the connection may be reused. Takes fd over: it is closed before this returns, also by an
    exception, so pass an os.dup() to keep yours. Timeouts and exceptions as in ``respond``.
    """
    _take(fd)
    try:
        call = _Simple(status, headers, sock, request, timeout, total_timeout)
    except BaseException:
        os.close(fd)
        raise
    return call.call(lib.sendgate_response_file_fd, fd)


def response_file_fd_range(
    status: int,
    headers: Headers,
    fd: int,
    start: int,
    end: int,
    *,
    sock: Socket,
    request: Request | None = None,
    timeout: float = 60.0,
    total_timeout: float | None = None,
) -> Result:
    """As ``response_file_fd``, with the bytes from start to before end only.

    ValueError: start >= end. TruncatedError, with nothing sent: end is past the file. A 206 without a Content-Range
    of yours gets one. Takes fd over: it is closed before this returns, also by an exception.
    """
    _take(fd)
    try:
        _int(start, 0, _INT64_MAX, "start")
        _int(end, 0, _INT64_MAX, "end")
        if start >= end:
            raise _invalid(f"invalid range: start {start} is not below end {end}")
        call = _Simple(status, headers, sock, request, timeout, total_timeout)
    except BaseException:
        os.close(fd)
        raise
    return call.call(lib.sendgate_response_file_fd_range, fd, start, end)


def _c_string(value: Text | None, what: str) -> Any:
    """A NUL-terminated copy; None is NULL."""
    if value is None:
        return _NULL
    raw = _latin1(value, what)
    if b"\0" in raw:
        raise _invalid(f"{what} can't contain NUL")
    return ffi.new("char[]", raw)


def response_file_conditional(
    status: int,
    headers: Headers,
    file: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    if_none_match: Text | None = None,
    if_modified_since: Text | None = None,
    range: Text | None = None,
    if_range: Text | None = None,
    *,
    sock: Socket,
    request: Request | None = None,
    timeout: float = 60.0,
    total_timeout: float | None = None,
) -> Result:
    """Open the file at a path, fstat it once, decide and answer from the same descriptor: 200, 206, 304 or 416.

    The conditions are these four values of the request's fields; those in request are ignored. ETag, Last-Modified
    and Accept-Ranges are added unless headers has them: an ETag or Last-Modified of yours wins, also in the
    comparison. A file that can't be opened is answered 404 with an empty body. status is that of the full answer;
    with any but 200 nothing is evaluated. Timeouts and exceptions as in ``respond``.
    """
    path = os.fsencode(file)
    if b"\0" in path:
        raise ValueError("a path can't contain NUL")
    call = _Simple(status, headers, sock, request, timeout, total_timeout)
    return call.call(
        lib.sendgate_response_file_conditional,
        ffi.new("char[]", path),
        _c_string(if_none_match, "if_none_match"),
        _c_string(if_modified_since, "if_modified_since"),
        _c_string(range, "range"),
        _c_string(if_range, "if_range"),
    )


class Responder:
    """The three calls as methods with the signatures of the RSGI proposal, bound to a socket and a request."""

    __slots__ = ("_request", "_sock", "_timeout", "_total_timeout")

    def __init__(
        self,
        sock: Socket,
        request: Request | None = None,
        *,
        timeout: float = 60.0,
        total_timeout: float | None = None,
    ) -> None:
        self._sock = sock
        self._request = request
        self._timeout = timeout
        self._total_timeout = total_timeout

    def response_file_fd(self, status: int, headers: Headers, fd: int) -> Result:
        """See the function of that name. Takes fd over."""
        return response_file_fd(
            status,
            headers,
            fd,
            sock=self._sock,
            request=self._request,
            timeout=self._timeout,
            total_timeout=self._total_timeout,
        )

    def response_file_fd_range(self, status: int, headers: Headers, fd: int, start: int, end: int) -> Result:
        """See the function of that name. Takes fd over. end is exclusive; ValueError unless start < end."""
        return response_file_fd_range(
            status,
            headers,
            fd,
            start,
            end,
            sock=self._sock,
            request=self._request,
            timeout=self._timeout,
            total_timeout=self._total_timeout,
        )

    def response_file_conditional(
        self,
        status: int,
        headers: Headers,
        file_path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        if_none_match: Text | None = None,
        if_modified_since: Text | None = None,
        range_header: Text | None = None,
        if_range: Text | None = None,
    ) -> Result:
        """See the function of that name."""
        return response_file_conditional(
            status,
            headers,
            file_path,
            if_none_match,
            if_modified_since,
            range_header,
            if_range,
            sock=self._sock,
            request=self._request,
            timeout=self._timeout,
            total_timeout=self._total_timeout,
        )
