"""``SiteHeads``, ``FileHeads``: answers with files, without making each head anew.

For applications on servers that write the head themselves, and want it as fields. What the answer is, the library
decides anew each time, after a fresh open and fstat; but the fields that go with a decision are the same as long as the
file is, so they are made once, and remembered. Not those of a file that was changed just now: its entity tag is weak,
and becomes a strong one without another change (RFC 9110 8.8.1).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sendgate._native import ffi, lib

from ._core import _DECISION, _EXCHANGE, _REP, _REQUEST, File, _headers, _new, _set_str
from ._site import _REMEMBERED, Known, Site, acceptable

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

    from ._site import Found
    from ._types import Headers

    #: Names and values, as servers want them.
    Fields: TypeAlias = "list[tuple[str, str]]"
    #: The same as an application gives them, for the library.
    Rows: TypeAlias = "tuple[tuple[str, bytes], ...]"
    #: Status and fields; a descriptor, which is open, and whoever gets this closes it; and which bytes of the file are
    #: the content, sent or not (HEAD): where they begin, and how many.
    Head: TypeAlias = "tuple[int, Fields, int, int, int]"
    #: Length and time of modification of a file.
    Version: TypeAlias = "tuple[int, int, int]"

#: Fields of a request that have a part in the decision, and what they are called in a sendgate_request.
CONDITIONS = {
    name: name.replace("-", "_")
    for name in ("if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "range")
}
# Looked up once: in the library they take longer than here.
_OK = lib.SENDGATE_OK
_ETAG_MAX = lib.SENDGATE_ETAG_MAX
_OUTSIDE = lib.SENDGATE_OPEN_OUTSIDE
_MAX_RANGES = 64
#: Files of an application's own of which something is remembered.
_REMEMBERED_FILES = 1000


#: What differs from one range to the next.
_OF_A_RANGE = ("Content-Length", "Content-Range")


class _Variant:
    """A file with the fields that are sent with it."""

    def __init__(self, path: bytes, fields: Headers) -> None:
        #: Beneath the folder, if it is in one.
        self.path = path
        self._keep: list[Any] = []
        self.headers, self.n_headers = _headers(fields, [], self._keep)
        #: Which version of the file there are heads for, and these by status; a 206 is without the fields of its range.
        self.made: tuple[Version, dict[int, Fields]] | None = None

    def remember(self, file: File, status: int, fields: Fields) -> None:
        """A head, if it is the same for as long as the file is."""
        version = _version(file._rep)
        if self.made is None or self.made[0] != version:
            if not _lasts(file, fields):
                return
            self.made = version, {}
        self.made[1][status] = [field for field in fields if status != 206 or field[0] not in _OF_A_RANGE]


class _Path:
    """What is remembered of a path."""

    def __init__(self, known: Known) -> None:
        self.known = known
        #: By the suffix of the file that is sent.
        self.variants: dict[bytes, _Variant] = {}


class _Structs:
    """What the library needs for one answer."""

    def __init__(self) -> None:
        self.request = _new(_REQUEST)
        self.rep = _new(_REP)
        self.tag = ffi.new("char[]", _ETAG_MAX)
        self.exchange = _new(_EXCHANGE)
        self.exchange.request = self.request
        self.decision = _new(_DECISION)
        self.ranges = ffi.new("sendgate_range[]", _MAX_RANGES)
        self.fd = ffi.new("int32_t *")
        self.errno = ffi.new("int32_t *")

    def open(self, site: Site, path: bytes) -> bool:
        """Open and fstat a file. False: whoever asks for it in the other way is told why it can't be."""
        flags = _OUTSIDE if site._outside else 0
        code = lib.sendgate_open(site._fd, path, flags, self.tag, _ETAG_MAX, self.fd, self.rep, self.errno)
        return bool(code == _OK)

    def answer(self, variant: _Variant, rep: Any, fd: int, method: str, given: Mapping[str, bytes]) -> Head | None:
        """The answer with a file that is open. None: the head isn't known."""
        version = _version(rep)
        made = variant.made
        if made is None or made[0] != version:
            return None
        heads, size = made[1], version[0]
        if not given:
            fields = heads.get(200)
            return None if fields is None else (200, fields, fd, 0, size)
        if not self._decide(variant, rep, method, given):
            return None
        status: int = self.decision.http_status
        fields = heads.get(status)
        if fields is None:
            return None
        if status != 206:
            return status, fields, fd, 0, size if status == 200 else 0
        offset: int = self.ranges[0].offset
        length: int = self.ranges[0].length
        values = (str(length), f"bytes {offset}-{offset + length - 1}/{size}")
        return 206, [*fields, *zip(_OF_A_RANGE, values)], fd, offset, length

    def _decide(self, variant: _Variant, rep: Any, method: str, given: Mapping[str, bytes]) -> bool:
        """False: the library refuses, or there are several ranges to send."""
        request, exchange, keep = self.request, self.exchange, list[Any]()
        try:
            if method != "GET":
                _set_str(request.method, method.encode("latin-1"), keep)
            for name, given_value in given.items():
                _set_str(getattr(request, CONDITIONS[name]), given_value, keep)
            exchange.rep = rep
            exchange.headers = variant.headers
            exchange.n_headers = variant.n_headers
            code = lib.sendgate_decide(exchange, self.ranges, _MAX_RANGES, self.decision)
            return bool(code == _OK and self.decision.n_ranges <= 1)
        finally:
            # What they point to ends here.
            for value in (request.method, *(getattr(request, CONDITIONS[name]) for name in given)):
                value.ptr, value.len = ffi.NULL, 0


class _Heads:
    """What both have. Threads may share them."""

    def __init__(self) -> None:
        #: Those that no call uses at the moment.
        self._free: list[_Structs] = []

    def _structs(self) -> _Structs:
        try:
            return self._free.pop()
        except IndexError:
            return _Structs()


class FileHeads(_Heads):
    """Of files and fields of an application's own."""

    def __init__(self) -> None:
        super().__init__()
        self._variants: dict[tuple[Version, Rows], _Variant] = {}

    def find(self, file: File, rows: Rows, method: str, given: Mapping[str, bytes]) -> Head | None:
        """What answers a request with a file. The descriptor is the file's. None: that isn't known by heart.

        rows: the application's fields. given: those of the CONDITIONS that count.
        """
        variant = self._variants.get((_version(file._rep), rows))
        if variant is None:
            return None
        structs = self._structs()
        try:
            return structs.answer(variant, file._rep, file.fileno(), method, given)
        finally:
            self._free.append(structs)

    def remember(self, file: File, rows: Rows, status: int, fields: Fields, parts: int) -> None:
        """An answer that was made in the other way. fields: as the server gets them. parts: ranges."""
        if parts > 1:
            return
        key = _version(file._rep), rows
        variant = self._variants.get(key) or _Variant(b"", rows)
        variant.remember(file, status, fields)
        if variant.made is not None:
            if len(self._variants) >= _REMEMBERED_FILES:
                self._variants.clear()
            self._variants[key] = variant


class SiteHeads(_Heads):
    """Of one site's files."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site = site
        self._paths: dict[str, _Path] = {}

    def find(self, path: str, method: str, given: Mapping[str, bytes], accept_encoding: str | None) -> Head | None:
        """What answers a GET or a HEAD. None: that isn't known by heart.

        given: those of the CONDITIONS that the request has.
        """
        remembered = self._paths.get(path)
        if remembered is None or remembered.known.until < time.monotonic():
            return None
        suffix = _suffix(remembered.known, accept_encoding) if accept_encoding else b""
        variant = remembered.variants.get(suffix)
        if variant is None:
            return None
        structs = self._structs()
        try:
            if not structs.open(self._site, variant.path):
                return None
            fd: int = structs.fd[0]
            head = None
            try:
                head = structs.answer(variant, structs.rep, fd, method, given)
            finally:
                if head is None:
                    os.close(fd)
            return head
        finally:
            self._free.append(structs)

    def remember(
        self, path: str, found: Found, accept_encoding: str | None, status: int, fields: Fields, parts: int
    ) -> None:
        """An answer that was made in the other way. fields: as the server gets them. parts: ranges."""
        known, file = found.known, found.file
        if known is None or not isinstance(file, File) or parts > 1:
            return
        suffix = _suffix(known, accept_encoding)
        if found.fields != _fields(known, suffix):
            return  # another coding than the best, which is gone
        remembered = self._paths.get(path)
        if remembered is None or remembered.known is not known:
            if len(self._paths) >= _REMEMBERED:
                self._paths.clear()
            remembered = self._paths[path] = _Path(known)
        variant = remembered.variants.get(suffix)
        if variant is None:
            variant = remembered.variants[suffix] = _Variant(known.path + suffix, found.fields)
        variant.remember(file, status, fields)


def _lasts(file: File, fields: Fields) -> bool:
    """Whether a head says nothing that changes by itself."""
    tag = next((value for name, value in fields if name.lower() == "etag"), None)
    if tag is None:
        return False  # it can't be told, as of a 416
    if tag == file.etag:
        return True
    # The application's own. Last-Modified is never later than now (RFC 9110 8.8.2.1).
    return tag != "W/" + file.etag and file.mtime_ns // 10**9 + 1 < time.time()


def _version(rep: Any) -> Version:
    return rep.length, rep.mtime, rep.mtime_nsec


def _suffix(known: Known, accept_encoding: str | None) -> bytes:
    """That of the file which is sent."""
    if accept_encoding and known.codings:
        wanted = acceptable(accept_encoding, known.codings)
        if wanted:
            return wanted[0][1]
    return b""


def _fields(known: Known, suffix: bytes) -> tuple[tuple[str, str], ...]:
    """Those of that file."""
    return next((known.coded(coding) for coding in known.codings if coding[1] == suffix), known.fields)
