"""aiohttp: files and buffers answered by the library, with all of RFC 9110's conditions and ranges.

    from sendgate.aiohttp import FileResponse                    # in the place of aiohttp.web.FileResponse
    app.add_routes([sendgate.aiohttp.static("/static", root)])   # in the place of app.router.add_static

The head is aiohttp's: signals see it and may change it, and cookies are in it. What it says of the content is the
library's, and the content leaves in the background, by sendfile, on asyncio and uvloop. A TLS connection is written to
through its transport: that is correct, but copies.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import aiohttp
from aiohttp import hdrs, web
from aiohttp.web_fileresponse import CONTENT_TYPES

from ._adapters import IDLE, check_hooks
from ._answer import SAFE, Answer, _own
from ._core import File, Request, _Exchange
from ._errors import NotRegularError, ResponseTimeoutError, SendgateError
from ._site import Mount, acceptable, beside, status_of
from ._types import Connection
from .asyncio import _in_thread, _Pace, _respond

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.typedefs import LooseHeaders
    from multidict import CIMultiDict
    from typing_extensions import Unpack

    from ._site import Coding, SiteArguments
    from ._types import ExchangeArguments, FileArg, LastModified

__all__ = ["FileResponse", "StaticResource", "static"]

#: The versions that have what is used.
WORKS_WITH = "3.10 to 3.14"
_KNOWN = f"sendgate.aiohttp, which works with aiohttp {WORKS_WITH}, not {aiohttp.__version__},"
check_hooks(_KNOWN, web.StreamResponse, "_write_headers")
check_hooks(_KNOWN, web.StaticResource, "_handle")

#: What aiohttp refuses in a head.
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class FileResponse(web.FileResponse):
    """``aiohttp.web.FileResponse``, with conditions and ranges evaluated by the library, several ranges too.

    path: a path, as aiohttp has it; or an open file, which is sent from its ``tell()`` on, and closed when the response
    has ended; or a ``sendgate.File``, likewise closed; or a descriptor or buffer, which stays yours, and is not to be
    closed or changed until ``prepare`` has returned.
    status, reason, headers: as aiohttp has them. Your ETag, Last-Modified and Content-Type are sent, and are what the
    request is compared with. "Accept-Ranges: none" is obeyed. With a status other than 200 no condition or range is
    evaluated. chunk_size isn't used.
    precompressed: unless it is False, of a path with a .br, .zst or .gz beside it, smaller and not older, the one that
    the client likes best is sent, with Vary. With an ETag of yours, or a part of a file, none is looked for.
    timeout, total_timeout, min_rate: the connection of a client that takes too little ends. These, and all others, are
    described at ``sendgate.respond``.

    A path that isn't there is answered with 404, and what may not be read or isn't a regular file with 403, as aiohttp
    does; if there are no descriptors left, with 503.
    """

    def __init__(
        self,
        path: FileArg,
        chunk_size: int = 0,
        status: int = 200,
        reason: str | None = None,
        headers: LooseHeaders | None = None,
        *,
        precompressed: bool = True,
        etag: bool | str = True,
        last_modified: LastModified = True,
        offset: int | None = None,
        length: int | None = None,
        etag_inode: bool = False,
        etag_ctime: bool = False,
        max_ranges: int = 64,
        copy: bool = False,
        check: bool = False,
        timeout: float = IDLE,
        total_timeout: float | None = None,
        min_rate: int = 0,
    ) -> None:
        # That of the class between makes a path of whatever it is given.
        web.StreamResponse.__init__(self, status=status, reason=reason, headers=headers)
        self._file = path
        self._precompressed = precompressed and etag is True and offset is None and length is None
        self._limits = timeout, total_timeout, min_rate
        self._arguments: ExchangeArguments = {
            "etag": etag,
            "last_modified": last_modified,
            "offset": offset,
            "length": length,
            "etag_inode": etag_inode,
            "etag_ctime": etag_ctime,
            "max_ranges": max_ranges,
            "copy": copy,
            "check": check,
        }
        #: aiohttp's, if there is content.
        self._writer: AbstractStreamWriter | None = None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Decide, and send all of it. aiohttp calls this, unless the handler has done so."""
        if self.prepared:
            return await web.StreamResponse.prepare(self, request)
        try:
            try:
                answer = self._open(request)
            except (OSError, NotRegularError) as error:
                status = 403 if isinstance(error, NotRegularError) else status_of(error)
                if status == 500:
                    raise
                self.set_status(status)
                if not self.chunked:
                    self.content_length = 0
                self._forbid_compression()
                return await web.StreamResponse.prepare(self, request)
            try:
                return await self._send(request, answer)
            finally:
                answer.close()
        finally:
            # An mmap has a close() too, but is a buffer, and so is a BytesIO.
            if hasattr(self._file, "fileno") and hasattr(self._file, "close") and not hasattr(self._file, "getbuffer"):
                self._file.close()

    def _open(self, request: web.BaseRequest) -> Answer:
        """What answers. Status and fields are set accordingly, unless an exception says that it can't be opened."""
        file: Any = self._file
        path = os.fsencode(file) if isinstance(file, (str, os.PathLike)) else None
        if path is not None and b"\0" in path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        fields = self.headers.copy()
        wanted = Request(request.method, 11 if request.version >= (1, 1) else 10, request.raw_headers, has_body=False)
        if request.method not in SAFE:
            # What another method has done can't be undone.
            wanted = wanted._full()
        elif fields.get(hdrs.ACCEPT_RANGES, "").strip().lower() == "none":
            wanted = wanted._unranged()
        if hdrs.CONTENT_TYPE not in fields:
            fields[hdrs.CONTENT_TYPE] = _content_type(file if path is not None else getattr(file, "name", None))
        if hdrs.CONTENT_ENCODING in fields:
            return self._decide(wanted, file, fields)
        if path is not None and self._precompressed and hdrs.ETAG not in fields:
            coding = _coding(path, request, fields)
            if coding is not None:
                coded = fields.copy()
                coded[hdrs.CONTENT_ENCODING] = coding[0]
                try:
                    return self._decide(wanted, os.fsdecode(path + coding[1]), coded)
                except (OSError, NotRegularError):
                    pass  # gone since
        if not self.compression:
            return self._decide(wanted, file, fields)
        # aiohttp compresses what it writes: then there are no ranges, and the bytes are not always the same.
        _vary(fields)
        answer = self._decide(wanted._unranged(), file, fields)
        self.headers.pop(hdrs.ACCEPT_RANGES, None)
        tag = self.headers.get(hdrs.ETAG, "W/")
        if not tag.startswith("W/"):
            self.headers[hdrs.ETAG] = "W/" + tag
        return answer

    def _decide(self, wanted: Request, file: FileArg, fields: CIMultiDict[str]) -> Answer:
        """The answer with a file and the application's fields."""
        own = [(name.encode(), value.encode()) for name, value in _own(list(fields.items()))]
        arguments: ExchangeArguments = {**self._arguments, "status": self.status, "headers": own}
        answer = Answer(wanted, file, **arguments)
        try:
            answer.begin()
        except BaseException:
            answer.close()
            raise
        decision = answer.decision
        assert decision is not None
        if decision.status != self.status:
            self.set_status(decision.status)
        kept = [(name, fields[name]) for name in (hdrs.CONNECTION, hdrs.KEEP_ALIVE) if name in fields]
        self.headers.clear()
        # The bytes of a field are UTF-8 to aiohttp.
        self.headers.extend((name, value.encode("latin-1").decode()) for name, value in decision.fields)
        self.headers.extend(kept)
        if self.chunked:
            # RFC 9112 6.2.
            self.headers.pop(hdrs.CONTENT_LENGTH, None)
        return answer

    async def _send(self, request: web.BaseRequest, answer: Answer) -> AbstractStreamWriter | None:
        """Head and content."""
        decision = answer.decision
        assert decision is not None
        if decision.body_length:
            self._writer = request.writer
        if hdrs.CONTENT_ENCODING in self.headers:
            self._forbid_compression()
        elif decision.body_length == 0:
            if self.compression and request.method == hdrs.METH_HEAD:
                # That of a GET isn't known.
                self.headers.pop(hdrs.CONTENT_LENGTH, None)
            self._forbid_compression()
        writer = await web.StreamResponse.prepare(self, request)
        if writer is None or decision.body_length == 0:
            return writer
        # The fields may have been changed by signals.
        head = _head(request.version, self.status, self.reason, self.headers)
        try:
            if self._is_compressed():
                while block := await _in_thread(next, answer, b""):
                    await self.write(block)
            else:
                await self._hand_over(request, answer, head)
        except BaseException as error:
            nothing_sent = isinstance(error, SendgateError) and error.connection is Connection.UNTOUCHED
            if not nothing_sent and request.transport is not None:
                # What was announced can't come any more, and nothing may follow, not even what the transport holds.
                request.transport.abort()
            if isinstance(error, ResponseTimeoutError):
                # To aiohttp a TimeoutError is the handler's. It knows what to do about a connection that is gone.
                raise ConnectionAbortedError(error.errno, str(error)) from error
            raise
        await web.StreamResponse.write_eof(self)
        return writer

    def _forbid_compression(self) -> None:
        """aiohttp would also compress what is compressed already, or empty."""
        if self.compression:
            self.enable_compression(web.ContentCoding.identity)

    def _is_compressed(self) -> bool:
        """Whether aiohttp compresses the content: then its length isn't known."""
        return self._writer is not None and self._writer.length is None

    async def _write_headers(self) -> None:
        """aiohttp's, for the end of its prepare. A head that content follows leaves with it."""
        if self._writer is None or self._is_compressed():
            await super()._write_headers()

    async def _hand_over(self, request: web.BaseRequest, answer: Answer, head: bytes) -> None:
        """Head and content, by the library."""
        if request.transport is None:
            raise ConnectionResetError("Connection lost")

        def make() -> _Exchange:
            exchange = answer.take()
            exchange.set_head(head)
            return exchange

        writer = request.writer
        try:
            result = await _respond(request.transport, make, _Pace(*self._limits))
        except SendgateError as error:
            if error.result is not None and error.connection is not Connection.UNTOUCHED:
                writer.output_size += error.result.head_sent + error.result.body_sent
                # For the access log. There is nothing left that aiohttp could write.
                await web.StreamResponse.write_eof(self)
            raise
        writer.output_size += result.head_sent + result.body_sent


def _head(version: tuple[int, int], status: int, reason: str, headers: CIMultiDict[str]) -> bytes:
    """A response's head, as aiohttp writes it."""
    lines = [f"HTTP/{version[0]}.{version[1]} {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if _CONTROLS.search("".join(lines)) is not None:
        raise ValueError("a field of the response has a control character")
    return "\r\n".join([*lines, "\r\n"]).encode()


def _content_type(name: Any) -> str:
    """As aiohttp guesses it."""
    # Since Python 3.13 guess_type is for URLs.
    guess = getattr(CONTENT_TYPES, "guess_file_type", CONTENT_TYPES.guess_type)
    return (isinstance(name, (str, os.PathLike)) and guess(os.fsdecode(name))[0]) or "application/octet-stream"


def _coding(path: bytes, request: web.BaseRequest, fields: CIMultiDict[str]) -> Coding | None:
    """The coding in which a file is sent, if one is beside it. Vary is set if there is a choice."""
    plain = os.stat(path)
    there = beside(path, plain.st_mtime_ns, plain.st_size) if stat.S_ISREG(plain.st_mode) else ()
    if not there:
        return None
    _vary(fields)
    return next(iter(acceptable(_accepted(request), there)), None)


def _accepted(request: web.BaseRequest) -> str:
    return ", ".join(request.headers.getall(hdrs.ACCEPT_ENCODING, ()))


def _vary(fields: CIMultiDict[str]) -> None:
    """The answer depends on Accept-Encoding."""
    names = {name.strip().lower() for line in fields.getall(hdrs.VARY, ()) for name in line.split(",")}
    if names.isdisjoint(("*", "accept-encoding")):
        fields.add(hdrs.VARY, hdrs.ACCEPT_ENCODING)


# ---- Folders ----


class StaticResource(web.StaticResource):
    """What ``static`` registers: ``aiohttp.web.StaticResource``, with the files of a ``sendgate.wsgi.Files``."""

    def __init__(
        self,
        prefix: str,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        expect_handler: Any = None,
        append_version: bool = False,
        **site: Unpack[SiteArguments],
    ) -> None:
        super().__init__(
            prefix,
            directory,
            name=name,
            expect_handler=expect_handler,
            follow_symlinks=site.get("follow_symlinks", False),
            append_version=append_version,
        )
        #: Where the application is that this is a part of.
        self._base = b""
        self._mount = Mount(self.get_info()["directory"], os.fsdecode(unquote_to_bytes(self.canonical)), site)

    def add_prefix(self, prefix: str) -> None:
        """For ``Application.add_subapp``."""
        super().add_prefix(prefix)
        self._base = unquote_to_bytes(prefix) + self._base

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        url = request.rel_url
        # What is no UTF-8 is lost where aiohttp has decoded it.
        path = unquote_to_bytes(url.raw_path.encode("utf-8", "surrogateescape"))
        found = None
        if path.startswith(self._base):
            found = self._mount.find(
                request.method,
                path[len(self._base) :],
                self._base,
                url.raw_query_string.encode("utf-8", "surrogateescape").decode("latin-1"),
                _accepted(request),
                alone=False,
            )
        if found is None:
            found = self._mount.site.error(404)
            if not isinstance(found.file, File):
                # The site has no page for it; a middleware may have one.
                raise web.HTTPNotFound
        # A page about an error has no validators.
        own = found.status == 200
        headers = [*found.fields, (hdrs.CONTENT_TYPE, found.content_type)]
        return FileResponse(found.file, status=found.status, headers=headers, etag=own, last_modified=own)


class _Static(web.AbstractRouteDef):
    def __init__(self, prefix: str, path: str | os.PathLike[str], arguments: dict[str, Any]) -> None:
        self.prefix = prefix
        self.path = path
        self.arguments = arguments

    def __repr__(self) -> str:
        return f"<sendgate.aiohttp.static {self.prefix} -> {self.path}>"

    def register(self, router: web.UrlDispatcher) -> list[web.AbstractRoute]:
        resource = StaticResource(self.prefix.removesuffix("/"), self.path, **self.arguments)
        router.register_resource(resource)
        return list(resource)


def static(
    prefix: str,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    expect_handler: Any = None,
    append_version: bool = False,
    **site: Unpack[SiteArguments],
) -> web.AbstractRouteDef:
    """A folder, for ``add_routes``: what ``aiohttp.web.static`` is, with the files answered by the library.

        app.add_routes([sendgate.aiohttp.static("/static", "static", max_age=60)])

    name, expect_handler, append_version: as for ``aiohttp.web.static``. All others are those of
    ``sendgate.wsgi.Files``. Each answer is made of one open and one fstat, in the event loop's thread.
    What isn't there is ``web.HTTPNotFound``, unless error_pages has a page for 404.
    """
    arguments = {"name": name, "expect_handler": expect_handler, "append_version": append_version, **site}
    return _Static(prefix, path, arguments)
