"""WSGI (PEP 3333): files, buffers, conditions and ranges for any application on any server.

    application = sendgate.wsgi.Files("static")            # an application that serves a folder
    application = sendgate.wsgi.Conditional(application)   # one of yours: what it sends by wsgi.file_wrapper gets ranges

Both work on every WSGI server. On those of this package (``sendgate.gunicorn``, ``sendgate.wsgiref``, ...) the library
sends head and body by itself, by sendfile where it can. Elsewhere they use the server's own wsgi.file_wrapper where
that sends the right bytes, and read the file where it doesn't.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._answer import Answer, as_given, conditional
from ._core import File, Request
from ._site import Site, redirect_target

if TYPE_CHECKING:
    from typing_extensions import TypeAlias, Unpack

    from ._site import Extra
    from ._types import ExchangeArguments, FileArg

    Environ: TypeAlias = dict[str, Any]
    StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
    Application: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

__all__ = ["Conditional", "FileWrapper", "Files"]

_SAFE = ("GET", "HEAD")

#: Bytes that are read at once, where an application doesn't say.
BLOCK_SIZE = 65536


class FileWrapper:
    """``wsgi.file_wrapper``, with the semantics of mod_wsgi.

    filelike: sent from its current position on, which is ``tell()`` and not where its descriptor happens to be:

    - a file: an object with ``fileno()`` and ``tell()`` (regular files only). Sent by sendfile.
    - a buffer: bytes, bytearray, memoryview, mmap, BytesIO, or anything else with the buffer protocol or a
      ``getbuffer()``. Sent without a copy. Not to be changed until ``close`` was called.
    - anything else with ``read()``, or an iterable of bytes: read block by block.

    Content-Length is added where the application gives none. Of a smaller one that many bytes are sent; a larger one
    is lowered to what there is, and that is reported in wsgi.errors. HEAD, 204 and 304 have no body.

    An iterable, for middleware and for servers that don't know it. block_size: bytes per item. ``close`` closes the
    filelike, if it has a ``close``, once.
    """

    def __init__(self, filelike: Any, block_size: int | None = None) -> None:
        self.filelike = filelike
        self.block_size = block_size or BLOCK_SIZE
        self._close: Callable[[], object] | None = getattr(filelike, "close", None)
        self._blocks: Iterator[bytes] | None = None

    def content(self) -> tuple[FileArg, int, int] | None:
        """What the library can send: file or buffer, where it begins, and its length from there. None: iterate."""
        return _content(self.filelike)

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        if self._blocks is None:
            self._blocks = _blocks(self.filelike, self.block_size)
        return next(self._blocks)

    def close(self) -> None:
        """Close the filelike; again does nothing."""
        close, self._close = self._close, None
        if close is not None:
            close()


def _content(filelike: Any) -> tuple[FileArg, int, int] | None:
    """See FileWrapper.content."""
    if isinstance(filelike, File):
        return filelike, 0, filelike.size
    buffer = _buffer(filelike)
    if buffer is not None:
        with memoryview(buffer) as view:
            length = view.nbytes
        start = min(_position(filelike) or 0, length)
        return buffer, start, length - start
    if not _is_plain(filelike):
        return None
    try:
        status = os.fstat(filelike.fileno())
        if not stat.S_ISREG(status.st_mode):
            return None
        if hasattr(filelike, "flush"):
            # What was written may still be in the object's own buffer.
            filelike.flush()
            status = os.fstat(filelike.fileno())
        position = _position(filelike)
    except (AttributeError, OSError, ValueError):
        return None
    return None if position is None else (filelike, position, max(0, status.st_size - position))


def _buffer(filelike: Any) -> Any:
    """Something with the buffer protocol, if its bytes are in memory; else None."""
    try:
        if hasattr(filelike, "getbuffer"):
            return filelike.getbuffer()
        with memoryview(filelike) as view:
            return filelike if view.c_contiguous else None
    except (TypeError, ValueError, BufferError):
        return None


def _position(filelike: Any) -> int | None:
    try:
        return int(filelike.tell())
    except (AttributeError, OSError, ValueError):
        return None


def _is_plain(filelike: Any) -> bool:
    """Whether its descriptor leads to the bytes that read() returns. A GzipFile has a descriptor too."""
    if isinstance(filelike, (io.BufferedReader, io.BufferedRandom)):
        filelike = filelike.raw
    return isinstance(filelike, io.FileIO) or (
        not isinstance(filelike, io.IOBase) and hasattr(filelike, "fileno") and hasattr(filelike, "tell")
    )


def _blocks(filelike: Any, size: int) -> Iterator[bytes]:
    """Its content from the current position on."""
    if hasattr(filelike, "read"):
        while block := filelike.read(size):
            yield block
    elif isinstance(filelike, Iterable) and _buffer(filelike) is None:
        yield from filelike
    else:
        with memoryview(filelike) as view, view.cast("B") as octets:
            for start in range(0, len(octets), size):
                yield bytes(octets[start : start + size])


# ---- Who answers ----


class Gateway:
    """One call of an application: stands between it and its caller until it is known what answers.

    It is the start_response that the application gets, and holds back what it is given. The caller is a server of
    this package, or ``Conditional``.
    """

    __slots__ = ("_conditional", "_given", "_start_response", "_write", "environ", "wrapper")

    def __init__(
        self, environ: Environ, start_response: StartResponse, conditional: ExchangeArguments | None = None
    ) -> None:
        self.environ = environ
        self._start_response = start_response
        #: With what arguments conditions and ranges are evaluated; None: they are not.
        self._conditional = conditional
        self._given: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Callable[[bytes], object] | None = None
        #: The caller's own.
        self.wrapper = environ.get("wsgi.file_wrapper")
        environ["wsgi.file_wrapper"] = FileWrapper

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """PEP 3333's start_response."""
        if self._write is not None:
            return self._start_response(status, headers, exc_info)
        if self._given is not None and exc_info is None:
            raise AssertionError("start_response was called a second time without exc_info")
        self._given = status, headers
        return self._late_write

    def _late_write(self, data: bytes) -> object:
        """PEP 3333's write, for applications of long ago."""
        return self.pass_on()(data)

    def pass_on(self) -> Callable[[bytes], object]:
        """Give the caller what was held back, and from now on all that comes. Returns the caller's write."""
        if self._write is None:
            # Without it the application is a generator, and calls start_response later.
            self._write = self._never if self._given is None else self._start_response(*self._given)
        return self._write

    @staticmethod
    def _never(_: bytes) -> object:
        raise AssertionError("write was called before start_response")

    def call(self, application: Application) -> Answer | Iterable[bytes]:
        """Call the application. An Answer that nobody has begun, or else an iterable, as from any application."""
        result = application(self.environ, self)
        try:
            answer = self._answer(result) if self._write is None else None
            if answer is None:
                self.pass_on()
        except BaseException:
            if hasattr(result, "close"):
                result.close()
            raise
        return result if answer is None else answer

    def _answer(self, result: Any) -> Answer | None:
        """What the library can send in the result's place."""
        if self._given is None:
            return result if type(result) is Answer else None
        status, headers = self._given
        if type(result) is Answer:
            # A middleware has seen the head, and may have changed it.
            span = result.span()
            return None if span is None else as_given(self.environ, status, headers, result.file, *span, result.close)
        wrapper = self._wrapper(result)
        content = None if wrapper is None else wrapper.content()
        if content is None:
            return None
        file, offset, length = content
        announced = content_length(headers)
        if announced is not None and announced > length:
            self.report(f"Content-Length is {announced}, but there are {length} bytes")
        elif announced is not None:
            length = announced
        close = getattr(result, "close", None)
        if self._is_conditional(status):
            arguments = self._conditional or {}
            return conditional(self.environ, headers, file, offset, length, close, arguments)
        return as_given(self.environ, status, headers, file, offset, length, close)

    def _is_conditional(self, status: str) -> bool:
        """Whether conditions and ranges are to be evaluated: what another method has done can't be undone."""
        return self._conditional is not None and status[:3] == "200" and self.environ["REQUEST_METHOD"] in _SAFE

    def _wrapper(self, result: Any) -> FileWrapper | None:
        """The result, if it can be sent as a file."""
        if type(result) is FileWrapper:
            return result
        if isinstance(result, io.IOBase):
            # An open file is an iterable too, of lines.
            return FileWrapper(result)
        if type(result) in (list, tuple) and len(result) == 1 and self._given is not None:
            status, headers = self._given
            names = {name.lower() for name, _ in headers}
            # The body that belongs to a HEAD isn't there.
            whole = content_length(headers) in (None, len(result[0]))
            if self._is_conditional(status) and whole and not names.isdisjoint(("etag", "last-modified")):
                return FileWrapper(result[0])
        return None

    def report(self, message: str) -> None:
        """To the server's log."""
        self.environ["wsgi.errors"].write(f"sendgate: {self.environ.get('PATH_INFO')}: {message}\n")


def content_length(headers: list[tuple[str, str]]) -> int | None:
    """What the application has announced. ValueError if that is no number."""
    for name, value in headers:
        if name.lower() == "content-length":
            if not (value.isascii() and value.isdigit()):
                raise ValueError(f"Content-Length is {value!r}")
            return int(value)
    return None


# ---- What answers ----


class Conditional:
    """Middleware: what an application sends by wsgi.file_wrapper is answered 206, 304, 412 or 416 where that is due.

        application = sendgate.wsgi.Conditional(application)

    Of GET and HEAD that the application answers with 200 and

    - ``environ["wsgi.file_wrapper"](file)``, an open file, or a ``FileWrapper``, or
    - one item of bytes and an ETag or a Last-Modified.

    Its own ETag, Last-Modified and other fields are sent and count in the decision (RFC 9110 13, 14); a file gets an
    ETag and a Last-Modified if it has none. All else passes through.

    max_ranges, etag_inode, etag_ctime, copy, check: as in ``sendgate.respond``.
    """

    def __init__(self, application: Application, **arguments: Unpack[ExchangeArguments]) -> None:
        self.application = application
        self._arguments = arguments

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The application, as PEP 3333 has it."""
        gateway = Gateway(environ, start_response, self._arguments)
        result = gateway.call(self.application)
        if type(result) is not Answer:
            return result
        return give(result, environ, start_response, gateway.wrapper)


class Files:
    """An application that serves a folder.

        application = sendgate.wsgi.Files("static", prefix="/static/", application=application)

    root: the folder. prefix: the part of the URL that stands for it. application: answers what isn't there, and every
    other method than GET and HEAD; without it that is 404 or 405.

    index: the file that answers for a directory, which is redirected to its URL with a slash; None: nothing does.
    headers: (name, value) pairs for each file, or a function that makes them from its path beneath root.
    max_age: seconds for Cache-Control; None: no such field. immutable: a regular expression that is searched for in a
    path, or a function of it: what it finds may be cached for a year, because its name changes with its content.
    content_types: by suffix (".ext"), before those of ``mimetypes``.
    precompressed: of a file with a .br, .zst or .gz beside it, not older than itself, the best that the client accepts is
    sent, with Vary (RFC 9110 8.4, 12.5.3); whether there is one is looked up once a second.
    error_pages: files beneath root by status, such as {404: "404.html"}.
    hidden: also what has a name that begins with a dot, outside of .well-known. follow_symlinks: also what symbolic
    links outside of root lead to.

    Each answer is made of one open and one fstat. OSError: root can't be opened.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        prefix: str = "/",
        application: Application | None = None,
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
        self._site = Site(
            root,
            index=index,
            headers=headers,
            max_age=max_age,
            immutable=immutable,
            content_types=content_types,
            precompressed=precompressed,
            error_pages=error_pages,
            hidden=hidden,
            follow_symlinks=follow_symlinks,
        )
        self._prefix = "/" + prefix.strip("/") + "/" if prefix.strip("/") else "/"
        self._application = application

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The application, as PEP 3333 has it."""
        path: str = environ.get("PATH_INFO", "") or "/"
        found = None
        if environ["REQUEST_METHOD"] not in _SAFE:
            if self._application is None:
                found = self._site.error(405, (("Allow", "GET, HEAD"),))
        elif path.startswith(self._prefix):
            try:
                found = self._site.find(path[len(self._prefix) :].encode("latin-1"), environ.get("HTTP_ACCEPT_ENCODING"))
            except IsADirectoryError:
                found = self._site.redirect(_url(environ, path))
        if found is None:
            if self._application is not None:
                return self._application(environ, start_response)
            found = self._site.error(404)
        answer = Answer(
            Request.from_environ(environ, has_body=False),
            found.file,
            found.close,
            status=found.status,
            content_type=found.content_type,
            headers=found.fields,
        )
        return give(answer, environ, start_response, environ.get("wsgi.file_wrapper"))

    def close(self) -> None:
        """Close the folder. Requests fail afterwards."""
        self._site.close()


def _url(environ: Environ, path: str) -> str:
    """The path of a directory's own URL, with the slash, and the query."""
    whole = (environ.get("SCRIPT_NAME", "") + path).encode("latin-1").strip(b"/")
    query = environ.get("QUERY_STRING", "")
    return redirect_target("/", whole, "?" + query if query else "")


def give(answer: Answer, environ: Environ, start_response: StartResponse, wrapper: Any) -> Iterable[bytes]:
    """Return an answer from an application: undecided to a server of this package, begun to all others.

    wrapper: the server's own wsgi.file_wrapper.
    """
    if type(start_response) is Gateway:
        return answer
    status, fields = answer.begin()
    start_response(status, fields)
    return _by_wrapper(answer, environ, wrapper) or answer


class _Window(io.FileIO):
    """What a server's own wrapper gets: a file of its own, at the right position. Closing it ends the answer."""

    def __init__(self, fd: int, offset: int, close: Callable[[], None]) -> None:
        super().__init__(os.dup(fd), "rb")
        # Both positions are the same for a FileIO: gunicorn asks for the one of the descriptor.
        self.seek(offset)
        self._then = close

    def close(self) -> None:
        super().close()
        self._then()


def _by_wrapper(answer: Answer, environ: Environ, wrapper: Any) -> Iterable[bytes] | None:
    """The server's own wrapper with what is left to send, if it is known to send exactly that."""
    span = answer.span()
    if span is None or answer.decision is None or answer.decision.body_length == 0:
        return None
    fileno = getattr(answer.file, "fileno", None)
    if fileno is None:
        return None
    offset, length = span
    module = getattr(wrapper, "__module__", "")
    # These stop where Content-Length says; wsgiref's goes on to the end of the file.
    trusted = "mod_wsgi.version" in environ or module in ("gunicorn.http.wsgi", "waitress.buffers")
    if not trusted and not (module == "wsgiref.util" and os.fstat(fileno()).st_size == offset + length):
        return None
    made: Iterable[bytes] = wrapper(_Window(fileno(), offset, answer.close), BLOCK_SIZE)
    return made
