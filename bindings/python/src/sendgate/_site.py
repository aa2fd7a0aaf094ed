"""A folder as a web site: paths, media types, fields, precompressed files. What ``python -m sendgate`` and the
applications called ``Files`` share; nothing here knows how requests arrive or answers leave.

Text files get ``charset=utf-8``, as nearly all are; HTML and XML don't, because they can say so themselves and the
field would overrule them. Compressed files (.gz) are files of that type, not a coding of another, when they are asked
for by their own names.
"""

from __future__ import annotations

import errno
import functools
import html
import math
import mimetypes
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes, urlsplit

from ._answer import Answer, reason
from ._core import File, Request, open_beneath
from ._errors import NotRegularError

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

    from ._types import ExchangeArguments

    #: (name, value) pairs, or a function that makes them from a path beneath the root.
    Extra: TypeAlias = "Iterable[tuple[str, str]] | Callable[[str], Iterable[tuple[str, str]]]"
    #: A content coding, and what the names of such files end in.
    Coding: TypeAlias = "tuple[str, bytes]"

#: What a compressed file is, as http.server says; mimetypes calls it the coding of something else.
_COMPRESSED = {"gzip": "application/gzip", "compress": "application/octet-stream", "bzip2": "application/x-bzip2",
               "xz": "application/x-xz", "br": "application/octet-stream"}  # fmt: skip
#: Text formats that declare their own encoding.
_SELF_DECLARED = ("text/html", "text/xml")
#: Errors of opening that mean: not here. EXDEV and ELOOP are links that lead out, which are none of the client's
#: business.
NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EXDEV, errno.ELOOP, errno.EILSEQ, errno.EINVAL)


def status_of(error: OSError) -> int:
    """What a client is told of a file that can't be opened."""
    if error.errno in NOT_FOUND:
        return 404
    if error.errno in (errno.EACCES, errno.EPERM):
        return 403
    return 503 if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) else 500


#: Content codings (RFC 9110 8.4.1, RFC 7932, RFC 8878) and how files of them are named; the best comes first.
CODINGS = (("br", b".br"), ("zstd", b".zst"), ("gzip", b".gz"))

#: Seconds for which it is remembered which precompressed files there are.
_FRESH = 1.0
#: Paths of which something is remembered. More, and all is forgotten: a client can't fill memory with names.
_REMEMBERED = 10_000
#: A year, which is what "immutable" files are cached for (RFC 8246; WhiteNoise says ten, RFC 2616 said one).
_YEAR = 31536000


def content_type(name: str) -> str:
    """The media type for a file's name, with a charset where it has none of its own."""
    guess, coding = mimetypes.guess_type(name, strict=False)
    if coding:
        return _COMPRESSED.get(coding, "application/octet-stream")
    if guess is None:
        return "application/octet-stream"
    if guess.startswith("text/") and guess not in _SELF_DECLARED:
        return guess + "; charset=utf-8"
    return guess


def resolve(target: str) -> tuple[bytes, bool, str] | None:
    """A request target as a path beneath the root, whether it ends in a slash, and its query with the "?" (or "").

    The path is relative, decoded, and without ".", ".." and empty segments, as RFC 3986 5.2.4 removes them; "" is the
    root. None: not a target of GET (RFC 9112 3.2), or a NUL in it.
    """
    if not target.startswith("/"):
        # The absolute form, which servers must accept (RFC 9112 3.2.2).
        if not target.lower().startswith(("http://", "https://")):
            return None
        try:
            parts = urlsplit(target)
        except ValueError:
            return None
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    raw, mark, query = target.partition("?")
    path = unquote_to_bytes(raw.encode("latin-1"))
    if b"\0" in path:
        return None
    relative, is_directory = normalize(path)
    return relative, is_directory, mark + query


def normalize(path: bytes) -> tuple[bytes, bool]:
    """A decoded path as one beneath the root, and whether it names a directory.

    Relative, without ".", ".." and empty segments, as RFC 3986 5.2.4 removes them; "" is the root.
    """
    if b"//" not in path and b"/." not in path and not path.startswith(b"."):
        return path.strip(b"/"), path.endswith(b"/") or not path
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    return b"/".join(segments), path.rsplit(b"/", 1)[-1] in (b"", b".", b"..")


def redirect_target(root: str, path: bytes, query: str) -> str:
    """A directory's own URL. root ends in a slash; query begins with "?" or is empty."""
    # Segment by segment, so that it can't begin with "//", which would name another host.
    return root + quote_from_bytes(path) + "/" + quote(query, safe="?=&;/:@!$'()*+,%~", encoding="latin-1")


def page(title: str, body: str) -> bytes:
    """A whole HTML page; title is escaped already. Names that are no UTF-8 keep their bytes."""
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        "<style>td,th{padding:0 1em;text-align:left}.n{text-align:right}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
    return page.encode("utf-8", "surrogateescape")


def error_page(status: int) -> bytes:
    """A short page that says no more than the status does."""
    title = reason(status)
    return page(title, f"<h1>{title}</h1>")


def redirect_page(location: str) -> bytes:
    """For those who don't follow it by themselves."""
    title = reason(301)
    link = html.escape(location)
    return page(title, f'<h1>{title}</h1>\n<p><a href="{link}">{link}</a></p>')


#: RFC 9110 12.4.2.
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


@functools.lru_cache(maxsize=64)
def acceptable(field: str, codings: tuple[Coding, ...]) -> tuple[Coding, ...]:
    """Those of the codings that a client wants by its Accept-Encoding, the best first (RFC 9110 12.5.3).

    The plain content is acceptable unless it is excluded; a coding is better only if it is wanted, and the plain
    content isn't wanted more.
    """
    wanted: dict[str, float] = {}
    for item in field.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                quality = float(parameter[2:]) if _QUALITY.fullmatch(parameter[2:]) else 0.0
        if name:
            wanted["gzip" if name == "x-gzip" else name] = quality
    rest = wanted.get("*", 0.0)
    identity = wanted.get("identity", 0.0)
    by_quality = [(wanted.get(coding[0], rest), coding) for coding in codings]
    by_quality.sort(key=lambda pair: -pair[0])
    return tuple(coding for quality, coding in by_quality if quality > 0 and quality >= identity)


def beside(
    path: bytes,
    mtime_ns: int,
    size: int,
    codings: tuple[Coding, ...] = CODINGS,
    *,
    directory: int | None = None,
    follow_symlinks: bool = False,
) -> tuple[Coding, ...]:
    """The codings of which there is a file beside this one: smaller, and not older than what it was made of."""
    found: dict[tuple[int, int], Coding] = {}
    for coding in codings:
        try:
            status = os.stat(path + coding[1], dir_fd=directory, follow_symlinks=follow_symlinks)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_mtime_ns >= mtime_ns and status.st_size < size:
            # RFC 9110 8.8.3: two codings must not have one entity tag, and it is made of these.
            found.setdefault((status.st_mtime_ns, status.st_size), coding)
    return tuple(found.values())


@dataclass
class Known:
    """What is remembered of a file."""

    #: Beneath the root.
    path: bytes
    content_type: str
    fields: tuple[tuple[str, str], ...]
    #: Codings of which there was a file, and until when that counts.
    codings: tuple[Coding, ...]
    until: float

    def coded(self, coding: Coding) -> tuple[tuple[str, str], ...]:
        """The fields of the file that has a coding."""
        return (*self.fields, ("Content-Encoding", coding[0]))


@dataclass
class Found:
    """An answer's content and fields."""

    status: int
    file: File | bytes
    content_type: str
    fields: tuple[tuple[str, str], ...] = ()
    #: What is remembered of it, if it is a file that was asked for.
    known: Known | None = None

    def close(self) -> None:
        """Close the file."""
        if isinstance(self.file, File):
            self.file.close()

    def answer(self, request: Callable[[], Request]) -> Answer:
        """The answer to a request; an exception closes the file."""
        arguments: ExchangeArguments = {"content_type": self.content_type, "headers": self.fields}
        if self.status != 200:
            # A page about an error has no validators of its own.
            arguments["status"], arguments["etag"], arguments["last_modified"] = self.status, False, False
        try:
            return Answer(request(), self.file, self.close, **arguments)
        except BaseException:
            self.close()
            raise


class SiteArguments(TypedDict, total=False):
    """What a site is made of besides its folder, by keyword. ``sendgate.wsgi.Files`` says what each of them means."""

    index: str | None
    headers: Extra
    max_age: int | None
    immutable: str | Callable[[str], bool] | None
    content_types: Mapping[str, str] | None
    precompressed: bool
    error_pages: Mapping[int, str] | None
    hidden: bool
    follow_symlinks: bool


class Site:
    """Which file of a folder answers a path, and with what fields.

    root: the folder, opened now. The rest is described at ``sendgate.wsgi.Files``.
    """

    #: When the interpreter ends, names of modules go before what an application keeps in its own.
    _close_fd = staticmethod(os.close)

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        index: str | None = "index.html",
        headers: Extra = (),
        max_age: int | None = None,
        immutable: str | Callable[[str], bool] | None = None,
        content_types: Mapping[str, str] | None = None,
        precompressed: bool = True,
        error_pages: Mapping[int, str] | None = None,
        hidden: bool = False,
        follow_symlinks: bool = False,
    ) -> None:
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._index = None if index is None else os.fsencode(index)
        #: Whether it calls functions of the application's, which may belong where that runs.
        self.has_functions = callable(headers) or callable(immutable)
        self._headers = headers if callable(headers) else tuple(headers)
        self._max_age = max_age
        self._immutable = re.compile(immutable).search if isinstance(immutable, str) else immutable
        self._content_types = {suffix.lower(): value for suffix, value in (content_types or {}).items()}
        self._codings = CODINGS if precompressed else ()
        self._error_pages = {status: os.fsencode(path) for status, path in (error_pages or {}).items()}
        self._hidden = hidden
        self._outside = follow_symlinks
        self._known: dict[bytes, Known] = {}

    def close(self) -> None:
        """Close the folder; again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._close_fd(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()

    def find(self, path: bytes, accept_encoding: str | None) -> Found | None:
        """The file for a decoded path, or the error that answers it. None: there is none.

        IsADirectoryError: it is a directory with an index, but the path doesn't end in a slash. ``filename`` is the
        path to redirect to.
        """
        if self._fd < 0:
            raise ValueError("the folder is closed")
        located = self._locate(path)
        if located is None:
            return None
        relative, is_directory = located
        if b"\0" in relative:
            return self.error(400)
        # What a callable of the site's raises is its own mistake, and no error of opening.
        known = self._known.get(relative)
        file = None
        if known is None or known.until < time.monotonic():
            # Only of what exists something is remembered, so asking for other names doesn't fill memory.
            try:
                file = self._open(relative)
            except (OSError, NotRegularError) as error:
                return self._not_opened(error, relative, is_directory)
            try:
                known = self._know(relative, file)
            except BaseException:
                file.close()
                raise
        if accept_encoding and known.codings:
            for coding in acceptable(accept_encoding, known.codings):
                try:
                    compressed = self._open(relative + coding[1])
                except (OSError, NotRegularError):
                    continue  # gone since, or a link that leads out
                if file is not None:
                    file.close()
                return Found(200, compressed, known.content_type, known.coded(coding), known)
        try:
            return Found(200, file or self._open(relative), known.content_type, known.fields, known)
        except (OSError, NotRegularError) as error:
            return self._not_opened(error, relative, is_directory)

    def remembered(self, path: bytes) -> Known | None:
        """What is known of the file for a decoded path, without looking for it or calling anything."""
        located = self._locate(path)
        known = None if located is None else self._known.get(located[0])
        return None if known is None or known.until < time.monotonic() else known

    def _locate(self, path: bytes) -> tuple[bytes, bool] | None:
        """Where beneath the root a decoded path leads, and whether it ends in a slash. None: there can't be a file."""
        relative, is_directory = normalize(path)
        if not self._hidden and (relative.startswith(b".") or b"/." in relative) and not _well_known(relative):
            return None
        if is_directory:
            if self._index is None:
                return None
            relative = os.path.join(relative, self._index)
        return relative, is_directory

    def _not_opened(self, error: OSError | NotRegularError, relative: bytes, is_directory: bool) -> Found | None:
        """What answers for a file that can't be opened."""
        if isinstance(error, NotRegularError):
            if error.errno != errno.EISDIR:
                return self.error(403)
            if is_directory or not self.has_index(relative):
                return None
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(relative))
        status = status_of(error)
        if status == 500:
            raise error
        return None if status == 404 else self.error(status)

    def has_index(self, path: bytes) -> bool:
        """Whether something answers for a directory, so that it is worth a redirect."""
        if self._index is None:
            return False
        try:
            self._open(os.path.join(path, self._index)).close()
        except (OSError, NotRegularError):
            return False
        return True

    def error(self, status: int, fields: tuple[tuple[str, str], ...] = ()) -> Found:
        """The page for an error: the site's own, or a short one."""
        path = self._error_pages.get(status)
        if path is not None:
            try:
                return Found(status, self._open(path), self._content_type(path), fields)
            except (OSError, NotRegularError):
                # One that doesn't exist is no reason for another error.
                pass
        return Found(status, error_page(status), "text/html; charset=utf-8", fields)

    def redirect(self, location: str) -> Found:
        """To a directory's own URL."""
        return Found(301, redirect_page(location), "text/html; charset=utf-8", (("Location", location),))

    def _open(self, path: bytes) -> File:
        return open_beneath(self._fd, path, outside=self._outside)

    def _know(self, path: bytes, file: File) -> Known:
        """Look at all that doesn't depend on the request."""
        name = os.fsdecode(path)
        fields = list(self._headers(name) if callable(self._headers) else self._headers)
        if not any(field.lower() == "cache-control" for field, _ in fields):
            if self._immutable is not None and self._immutable(name):
                fields.append(("Cache-Control", f"public, max-age={_YEAR}, immutable"))
            elif self._max_age is not None:
                fields.append(("Cache-Control", f"public, max-age={self._max_age}"))
        codings = self._compressed(path, file)
        if codings:
            fields.append(("Vary", "Accept-Encoding"))
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        until = time.monotonic() + _FRESH if self._codings else math.inf
        known = Known(path, self._content_type(path), tuple(fields), codings, until)
        self._known[path] = known
        return known

    def _compressed(self, path: bytes, file: File) -> tuple[Coding, ...]:
        # Whether a link may be followed is known when it is opened.
        return beside(path, file.mtime_ns, file.size, self._codings, directory=self._fd, follow_symlinks=True)

    def _content_type(self, path: bytes) -> str:
        name = os.fsdecode(path)
        own = self._content_types.get(os.path.splitext(name)[1].lower())
        return content_type(name) if own is None else own


def _well_known(path: bytes) -> bool:
    """RFC 8615."""
    return path.startswith(b".well-known/") and b"/." not in path


class Mount:
    """A site at a prefix of an application's paths: what the applications called ``Files`` share."""

    def __init__(self, root: str | os.PathLike[str], prefix: str, site: SiteArguments) -> None:
        self.site = Site(root, **site)
        name = os.fsencode(prefix.strip("/"))
        #: With a slash at both ends.
        self.prefix = b"/" + name + b"/" if name else b"/"

    def find(
        self, method: str, path: bytes, base: bytes, query: str, accept_encoding: str | None, *, alone: bool
    ) -> Found | None:
        """What answers a request; None: another application does.

        path: decoded, beneath base, which is where the application itself is. alone: there is no other application,
        so that this is never None.
        """
        found = None
        is_root = path + b"/" == self.prefix
        if is_root or path.startswith(self.prefix):
            if method not in ("GET", "HEAD"):
                return self.site.error(405, (("Allow", "GET, HEAD"),)) if alone else None
            if is_root and (path or base[-1:] not in (b"", b"/")):
                # The folder's own URL without its slash: a link in its index would lead elsewhere.
                found = self._redirect(base, b"", query) if self.site.has_index(b"") else None
            else:
                try:
                    found = self.site.find(path[len(self.prefix) :], accept_encoding)
                except IsADirectoryError as error:
                    found = self._redirect(base, os.fsencode(error.filename), query)
        return self.site.error(404) if found is None and alone else found

    def _redirect(self, base: bytes, relative: bytes, query: str) -> Found:
        """To a directory's own URL: with the slash, and the query."""
        path = (base + self.prefix + relative).strip(b"/")
        return self.site.redirect(redirect_target("/", path, "?" + query if query else ""))
