"""WSGI (PEP 3333): files, buffers, conditions and ranges for any application on any server.

    application = sendgate.wsgi.Files("static")            # an application that serves a folder
    application = sendgate.wsgi.Conditional(application)   # ranges of what yours sends by wsgi.file_wrapper

Both work on every WSGI server. On those of this package (``sendgate.gunicorn``, ``sendgate.wsgiref``, ...) the library
sends head and body by itself, by sendfile where it can. Elsewhere they use the server's own wsgi.file_wrapper where
that sends the right bytes, and read the file where it doesn't.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

from ._answer import (
    HANDS_OVER,
    SAFE,
    Answer,
    Begun,
    as_given,
    check_names,
    conditional,
    content_length,
    has_validator,
    is_sound,
    is_whole,
    limited,
    may_be_less,
    names,
    of_fd,
    of_fd_range,
    of_path,
    without_content,
)
from ._core import File, Request
from ._receive import read_into, receive_file
from ._site import Mount

if TYPE_CHECKING:
    from typing_extensions import TypeAlias, Unpack

    from ._site import SiteArguments
    from ._types import ExchangeArguments, FileArg, Headers, Text

    Environ: TypeAlias = dict[str, Any]
    StartResponse: TypeAlias = Callable[..., Callable[[bytes], object]]
    Application: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

__all__ = ["Conditional", "FileWrapper", "Files", "FrontServer", "Protocol", "read_into", "receive_file"]

#: In an environ: a middleware hands over to the front server.
_FRONT = "sendgate.front"
#: Fields of a request that may make the answer shorter than all of the content.
_ASKS_FOR_LESS = (
    "HTTP_IF_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_IF_RANGE", "HTTP_IF_UNMODIFIED_SINCE",
    "HTTP_RANGE",
)  # fmt: skip

#: Bytes that are read at once, where an application doesn't say.
BLOCK_SIZE = 65536


class FileWrapper:
    """``wsgi.file_wrapper``, with the semantics of mod_wsgi.

    filelike: sent from its current position on, which is ``tell()`` and not where its descriptor happens to be:

    - a file: an object with ``fileno()`` and ``tell()``, if its descriptor is that of a regular file and leads to the
      bytes that ``read()`` returns. Sent by sendfile.
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
        self._view: memoryview | None = None
        #: Bytes that may still be iterated; None: all that there are.
        self._left: int | None = None

    def content(self) -> tuple[FileArg, int, int] | None:
        """What the library can send: file or buffer, where it begins, and its length from there. None: iterate.

        Valid until ``close``.
        """
        filelike = self.filelike
        if isinstance(filelike, File):
            return filelike, 0, filelike.size
        if isinstance(filelike, (codecs.StreamRecoder, codecs.StreamReaderWriter)):
            return None
        buffer = _buffer(filelike)
        if buffer is None:
            return _file(filelike)
        if buffer is not filelike and isinstance(buffer, memoryview):
            self._view = buffer
        with memoryview(buffer) as view:
            length = view.nbytes
        start = min(_position(filelike) or 0, length)
        return buffer, start, length - start

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        if self._left == 0:
            raise StopIteration
        if self._blocks is None:
            self._blocks = _blocks(self.filelike, self.block_size)
        block = next(self._blocks)
        if self._left is not None:
            block = block[: self._left]
            self._left -= len(block)
        return block

    def limit(self, length: int) -> None:
        """Whoever iterates gets no more than so many bytes."""
        self._left = length

    def close(self) -> None:
        """Close the filelike; again does nothing."""
        view, self._view = self._view, None
        if view is not None:
            # A BytesIO refuses to be closed as long as somebody looks at its bytes.
            view.release()
        close, self._close = self._close, None
        if close is not None:
            close()


def _buffer(filelike: Any) -> Any:
    """Something with the buffer protocol, if its bytes are in memory; else None."""
    try:
        made = filelike.getbuffer() if hasattr(filelike, "getbuffer") else filelike
        with memoryview(made) as view:
            return made if view.c_contiguous else None
    except (TypeError, ValueError, BufferError):
        return None


def _file(filelike: Any) -> tuple[FileArg, int, int] | None:
    """See FileWrapper.content."""
    try:
        if not _is_plain(filelike):
            return None
        if hasattr(filelike, "flush"):
            # What was written may still be in the object's own buffer.
            filelike.flush()
        status = os.fstat(filelike.fileno())
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    position = _position(filelike)
    if position is None or not stat.S_ISREG(status.st_mode):
        return None
    start = min(position, status.st_size)
    return filelike, start, status.st_size - start


def _position(filelike: Any) -> int | None:
    try:
        return int(filelike.tell())
    except (AttributeError, OSError, ValueError):
        return None


def _is_plain(filelike: Any) -> bool:
    """Whether its descriptor leads to the bytes that read() returns: a GzipFile has a descriptor too."""
    if isinstance(filelike, io.IOBase):
        if isinstance(filelike, (io.BufferedReader, io.BufferedRandom)):
            # Nor is it plain if a class derived from it reads in its own way.
            same = type(filelike).read in (io.BufferedReader.read, io.BufferedRandom.read)
            return same and _is_plain(filelike.raw)
        return isinstance(filelike, io.FileIO) and type(filelike).read is io.FileIO.read
    if not (hasattr(filelike, "fileno") and hasattr(filelike, "tell")):
        return False
    # tempfile's and Django's objects stand before another one, which may be anything, and of their own kind too.
    inner = getattr(filelike, "file", None)
    return inner is None or (inner is not filelike and _is_plain(inner))


def _blocks(filelike: Any, size: int) -> Iterator[bytes]:
    """Its content from the current position on."""
    if hasattr(filelike, "read"):
        while block := filelike.read(size):
            if isinstance(block, str):
                raise TypeError("the file was opened as text: open it with mode 'rb'")
            yield block
        return
    buffer = _buffer(filelike)
    if buffer is None and not isinstance(filelike, memoryview):
        yield from filelike
        return
    with memoryview(filelike if buffer is None else buffer) as view:
        # What isn't contiguous has to be copied as a whole.
        content = memoryview(view.tobytes()) if buffer is None else view.cast("B")
        with content:
            for start in range(0, len(content), size):
                yield bytes(content[start : start + size])


# ---- Who answers ----


class Gateway:
    """One call of an application: stands between it and its caller until it is known what answers.

    It is the start_response that the application gets, and holds back what it is given. The caller is a server of
    this package, or ``Conditional``.
    """

    __slots__ = ("_conditional", "_given", "_start_response", "_write", "_written", "environ", "refused", "wrapper")

    def __init__(
        self, environ: Environ, start_response: StartResponse, conditional: ExchangeArguments | None = None
    ) -> None:
        self.environ = environ
        self._start_response = start_response
        #: With what arguments conditions and ranges are evaluated; None: they are not.
        self._conditional = conditional
        self._given: tuple[str, list[tuple[str, str]]] | None = None
        self._write: Callable[[bytes], object] | None = None
        #: Bytes.
        self._written = 0
        #: Fields, in lower case, that are not for the application to send.
        self.refused: frozenset[str] = frozenset()
        #: The caller's own.
        self.wrapper = environ.get("wsgi.file_wrapper")

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """PEP 3333's start_response."""
        if self.refused:
            headers = self._allowed(headers)
        if self._write is not None:
            return self._start_response(status, headers, exc_info)
        if self._given is not None and exc_info is None:
            raise AssertionError("start_response was called a second time without exc_info")
        self._given = status, headers
        return self._late_write

    def _late_write(self, data: bytes) -> object:
        """PEP 3333's write, for applications of long ago."""
        self._written += len(data)
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
        environ = self.environ
        environ["wsgi.file_wrapper"] = FileWrapper
        try:
            result = application(environ, self)
        finally:
            # A server may look here to tell what it can send by itself.
            if self.wrapper is None:
                environ.pop("wsgi.file_wrapper", None)
            else:
                environ["wsgi.file_wrapper"] = self.wrapper
        try:
            answer = self._answer(result) if self._write is None else None
            if answer is None:
                if type(result) is FileWrapper and self._given is not None:
                    self._limit(result, *self._given)
                self.pass_on()
        except BaseException:
            if hasattr(result, "close"):
                result.close()
            raise
        if answer is not None:
            return answer
        # One in several parts whose head a middleware has seen.
        return Begun(result) if type(result) is Answer else result

    def _answer(self, result: Any) -> Answer | None:
        """What the library can send in the result's place."""
        if self._given is None:
            return result if type(result) is Answer else None
        status, headers = self._given
        code = int(status[:3])
        if not is_sound(code, headers):
            return None
        if type(result) is Answer:
            # A middleware has seen the head, and may have changed it.
            span = result.span()
            if span is None:
                return None
            return as_given(self._request(), code, headers, result.file, *span, result.close, result.arguments)
        content_length(headers)  # one that is none is an error, whatever is returned
        method = self.environ["REQUEST_METHOD"]
        arguments = self._conditional if may_be_less(method, code, headers) else None
        wrapper = _wrapper(result) or (None if arguments is None else _one_item(result, method, headers))
        content = None if wrapper is None else wrapper.content()
        if wrapper is None or content is None:
            if arguments is None:
                return None
            return without_content(self._request(), headers, getattr(result, "close", None), arguments)
        file, offset, length = content
        length = limited(headers, length, self.report)
        if arguments is None:
            return as_given(self._request(), code, headers, file, offset, length, wrapper.close, self._conditional)
        return conditional(self._request(), headers, file, offset, length, wrapper.close, arguments)

    def _request(self) -> Request:
        return Request.from_environ(self.environ, has_body=False)

    def _limit(self, wrapper: FileWrapper, status: str, headers: list[tuple[str, str]]) -> None:
        """Not all servers see to it that no more is sent than the head says."""
        announced = content_length(headers)
        if self.environ["REQUEST_METHOD"] == "HEAD" or status[:3] in ("204", "304"):
            wrapper.limit(0)
        elif announced is not None:
            wrapper.limit(max(0, announced - self._written))

    def _allowed(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The fields without those that are refused."""
        if self.refused.isdisjoint(names(headers)):
            return headers
        self.report("the application may not send " + ", ".join(sorted(self.refused & names(headers))))
        return [(name, value) for name, value in headers if name.lower() not in self.refused]

    def report(self, message: str) -> None:
        """To the server's log."""
        self.environ["wsgi.errors"].write(f"sendgate: {self.environ.get('PATH_INFO')}: {message}\n")


def _wrapper(result: Any) -> FileWrapper | None:
    """The result, if it is a file."""
    if type(result) is FileWrapper:
        return result
    # An open file is an iterable too, of lines.
    return FileWrapper(result) if isinstance(result, io.IOBase) else None


def _one_item(result: Any, method: str, headers: list[tuple[str, str]]) -> FileWrapper | None:
    """The result, if it is all of the content in one piece, and something tells one version from another."""
    if type(result) not in (list, tuple) or len(result) != 1 or type(result[0]) is not bytes:
        return None
    whole = is_whole(method, headers, len(result[0]))
    return FileWrapper(result[0]) if whole and has_validator(headers) else None


# ---- What answers ----


class FrontServer:
    """A server in front of the application that sends files itself, if it is told by a field of the response.

        sendgate.wsgi.FrontServer("X-Accel-Redirect", {"/srv/files": "/protected/"})   # nginx
        sendgate.wsgi.FrontServer("X-Sendfile", {"/srv/files": "/srv/files"})          # Apache, lighttpd

    field: "X-Accel-Redirect", "X-Sendfile" or "X-LIGHTTPD-send-file". mapping: directories, and what the front server
    calls them: the beginning of a URL for X-Accel-Redirect, a directory for the others. What isn't beneath one of them
    isn't handed over. threshold: nor is a file of fewer bytes.

    What the front server is told comes from the open file: it is the name under which the kernel knows it, links
    resolved, if it still is that file. Nothing of the request, and nothing that the application calls the file, gets
    into it. Conditions and ranges are then the front server's.
    """

    def __init__(
        self, field: str, mapping: Mapping[str | os.PathLike[str], str], *, threshold: int = BLOCK_SIZE
    ) -> None:
        if field.lower() not in HANDS_OVER:
            raise ValueError(f"field must be X-Accel-Redirect, X-Sendfile or X-LIGHTTPD-send-file, not {field!r}")
        self.field = field
        self.threshold = threshold
        self._is_url = field.lower() == "x-accel-redirect"
        mapped = [
            (os.fsencode(os.path.realpath(directory)).rstrip(b"/") + b"/", os.fsencode(name).rstrip(b"/") + b"/")
            for directory, name in mapping.items()
        ]
        #: The longest first, because it knows better.
        self._mapping = sorted(mapped, key=lambda pair: -len(pair[0]))

    def name(self, fd: int) -> str | None:
        """What the front server calls an open file; None: it can't have it."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size < self.threshold:
            return None
        try:
            path = os.readlink(b"/proc/self/fd/%d" % fd)
            there = os.stat(path, follow_symlinks=False)
        except OSError:
            return None  # no procfs; or the file has no name any more, or had never one
        if not os.path.samestat(status, there):
            return None
        for directory, name in self._mapping:
            if path.startswith(directory):
                name += path[len(directory) :]
                if self._is_url:
                    return quote_from_bytes(name)
                return name.decode("latin-1") if _is_literal(name) else None
        return None

    def take(self, answer: Answer, environ: Environ, start_response: StartResponse) -> bool:
        """Hand over an answer, if that is possible: then it is closed."""
        if environ["REQUEST_METHOD"] not in SAFE or answer.arguments.get("status", 200) != 200:
            return False
        fileno = getattr(answer.file, "fileno", None)
        fd = -1 if fileno is None else fileno()
        name = self.name(fd) if fd >= 0 else None
        if name is None:
            return False
        request = Request.from_environ(environ, has_body=False)
        whole = Answer(request._full(), answer.file, **answer.arguments)
        try:
            status, fields = whole.begin()
            if whole.span() != (0, os.fstat(fd).st_size):
                return False  # the front server would send all of the file
        finally:
            whole.close()
        if "content-encoding" in names(fields):
            return False  # nginx and mod_xsendfile drop that
        # Apache doesn't say Accept-Ranges by itself.
        dropped = ("Accept-Ranges", "Content-Length") if self._is_url else ("Content-Length",)
        fields = [(name, value) for name, value in fields if name not in dropped]
        answer.close()
        start_response(status, [*fields, (self.field, name), ("Content-Length", "0")])
        return True


def _is_literal(name: bytes) -> bool:
    """Whether a path means the same to who decodes %XX in it (lighttpd) and who doesn't (mod_xsendfile 0.12)."""
    try:
        # lighttpd answers 502 to what is no UTF-8.
        text = name.decode()
    except UnicodeDecodeError:
        return False
    return "%" not in text and text.isprintable() and text == text.strip()


class Conditional:
    """Middleware: what an application sends by wsgi.file_wrapper is answered 206, 304, 412 or 416 where that is due.

        application = sendgate.wsgi.Conditional(application)

    Of GET and HEAD that the application answers with 200 and

    - ``environ["wsgi.file_wrapper"](file)``, an open file, or a ``FileWrapper``: conditions and ranges,
    - one item of bytes and an ETag or a Last-Modified: likewise,
    - anything else and an ETag or a Last-Modified: conditions, so 304 and 412.

    Its own ETag, Last-Modified and other fields are sent and count in the decision (RFC 9110 13, 14); a file gets an
    ETag and a Last-Modified if it has none. "Accept-Ranges: none" is obeyed. All else passes through: also what has
    fields that the library would refuse, such as an ETag without its quotes.

    hide: Range and the If- fields are hidden from the application, which then answers in full. For those that evaluate
    them wrongly themselves, such as WhiteNoise; or a function that says so of an environ.
    front: a ``FrontServer`` that gets whole files to send. The field that tells it is then refused to the application.
    max_ranges, etag_inode, etag_ctime, copy, check: as in ``sendgate.respond``.
    """

    def __init__(
        self,
        application: Application,
        *,
        hide: bool | Callable[[Environ], bool] = False,
        front: FrontServer | None = None,
        **arguments: Unpack[ExchangeArguments],
    ) -> None:
        self.application = application
        self._hide = hide
        self._front = front
        check_names("Conditional", arguments)
        self._arguments = arguments

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The application, as PEP 3333 has it."""
        gateway = Gateway(environ, start_response, self._arguments)
        front = _front(environ, self._front)
        if self._front is not None:
            gateway.refused = HANDS_OVER
            environ[_FRONT] = True
        hide = self._hide(environ) if callable(self._hide) else self._hide
        answer = gateway.call(self._hidden if hide and environ["REQUEST_METHOD"] in SAFE else self.application)
        if type(answer) is not Answer:
            return answer
        return send(answer, environ, start_response, gateway.wrapper, front)

    def _hidden(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The application, which doesn't know that anything but all of it was asked for."""
        hidden = {key: environ.pop(key) for key in _ASKS_FOR_LESS if key in environ}
        try:
            return self.application(environ, start_response)
        finally:
            environ.update(hidden)


class Files:
    """An application that serves a folder.

        application = sendgate.wsgi.Files("static", prefix="/static/", application=application)

    root: the folder. prefix: the part of the URL that stands for it. application: answers what isn't there, and every
    other method than GET and HEAD; without it that is 404 or 405.

    index: the file that answers for a directory, which is redirected to its URL with a slash, if it isn't to be
    index.html; None: nothing does.
    headers: (name, value) pairs for each file, or a function that makes them from its path beneath root.
    max_age: seconds for Cache-Control; None: no such field. immutable: a regular expression that is searched for in a
    path, or a function of it: what it finds may be cached for a year, because its name changes with its content.
    content_types: by suffix (".ext"), before those of ``mimetypes``.
    precompressed: unless it is False, of a file with a .br, .zst or .gz beside it, smaller and not older than itself,
    the one that the client likes best is sent, with Vary (RFC 9110 8.4, 12.5.3); whether there is one is looked up once
    a second.
    error_pages: files beneath root by status (400, 403, 404, 405, 503), such as {404: "404.html"}.
    hidden: also what has a name that begins with a dot, outside of .well-known. follow_symlinks: also what symbolic
    links outside of root lead to. front: a ``FrontServer`` that gets files to send.

    Each answer is made of one open and one fstat. root is opened once: what is put in its place later isn't seen.
    OSError: it can't be opened.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        prefix: str = "/",
        application: Application | None = None,
        front: FrontServer | None = None,
        **site: Unpack[SiteArguments],
    ) -> None:
        self._mount = Mount(root, prefix, site)
        self._application = application
        self._front = front

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The application, as PEP 3333 has it."""
        found = self._mount.find(
            environ["REQUEST_METHOD"],
            # As PATH_INFO has it: bytes as latin-1.
            environ.get("PATH_INFO", "").encode("latin-1"),
            environ.get("SCRIPT_NAME", "").encode("latin-1"),
            environ.get("QUERY_STRING", ""),
            environ.get("HTTP_ACCEPT_ENCODING"),
            alone=self._application is None,
        )
        if found is None:
            assert self._application is not None
            return self._application(environ, start_response)
        answer = found.answer(lambda: Request.from_environ(environ, has_body=False))
        return send(answer, environ, start_response, environ.get("wsgi.file_wrapper"), _front(environ, self._front))

    def close(self) -> None:
        """Close the folder. Requests fail afterwards."""
        self._mount.site.close()


class Protocol:
    """The three calls of the RSGI proposal for a WSGI application: each returns what the application has to return.

        return sendgate.wsgi.Protocol(environ, start_response).response_file_fd(200, [("Content-Type", "a/b")], fd)

    They have the arguments, the ownership and the errors of the methods of ``sendgate.Responder``, but that errors of
    sending are the server's.
    """

    __slots__ = ("_environ", "_start_response")

    def __init__(self, environ: Environ, start_response: StartResponse) -> None:
        self._environ = environ
        self._start_response = start_response

    def response_file_fd(self, status: int, headers: Headers, fd: int) -> Iterable[bytes]:
        """All of a file, as the application says. Takes fd over."""
        return self._send(of_fd(self._request(), status, headers, fd))

    def response_file_fd_range(self, status: int, headers: Headers, fd: int, start: int, end: int) -> Iterable[bytes]:
        """The bytes from start to before end. Takes fd over. ValueError unless start < end; TruncatedError: end is
        past the file.
        """
        return self._send(of_fd_range(self._request(), status, headers, fd, start, end))

    def response_file_conditional(
        self,
        status: int,
        headers: Headers,
        file_path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        if_none_match: Text | None = None,
        if_modified_since: Text | None = None,
        range_header: Text | None = None,
        if_range: Text | None = None,
    ) -> Iterable[bytes]:
        """200, 206, 304 or 416 by these conditions, from one open and one fstat; 404 if there is no such file."""
        conditions = if_none_match, if_modified_since, range_header, if_range
        return self._send(of_path(self._request(), status, headers, file_path, *conditions))

    def _request(self) -> Request:
        return Request.from_environ(self._environ, has_body=False)

    def _send(self, answer: Answer) -> Iterable[bytes]:
        return send(answer, self._environ, self._start_response, self._environ.get("wsgi.file_wrapper"))


def _front(environ: Environ, front: FrontServer | None) -> FrontServer | None:
    """The front server to hand over to: a middleware around this one, which refuses the field, does that itself."""
    return None if _FRONT in environ else front


def send(
    answer: Answer, environ: Environ, start_response: StartResponse, wrapper: Any, front: FrontServer | None = None
) -> Iterable[bytes]:
    """Return an answer from an application: by the front server, or else by this one. An exception closes it."""
    try:
        if front is not None and front.take(answer, environ, start_response):
            return []
        return give(answer, environ, start_response, wrapper)
    except BaseException:
        answer.close()
        raise


def give(answer: Answer, environ: Environ, start_response: StartResponse, wrapper: Any) -> Iterable[bytes]:
    """Return an answer from an application: undecided to a server of this package, begun to all others.

    wrapper: the server's own wsgi.file_wrapper.
    """
    if type(start_response) is Gateway:
        # In case a middleware wraps the answer, and so iterates over it.
        answer.start_response = start_response
        return answer
    start_response(*answer.begin())
    made = _by_wrapper(answer, wrapper)
    return answer if made is None else made


class _Window(io.FileIO):
    """What a server's own wrapper gets: a file of its own, at the right position. Closing it ends the answer."""

    def __init__(self, fd: int, offset: int, close: Callable[[], None]) -> None:
        self._then = close
        super().__init__(os.dup(fd), "rb")
        # Both positions are the same for a FileIO: gunicorn asks for the one of the descriptor.
        self.seek(offset)

    def close(self) -> None:
        super().close()
        self._then()


#: Whose wrappers begin where they should and stop where Content-Length says. wsgiref's goes on to the end of the file,
#: and gains nothing; uWSGI's begins at the file's beginning.
_TRUSTED = ("gunicorn.http.wsgi", "mod_wsgi", "waitress.buffers")


def _by_wrapper(answer: Answer, wrapper: Any) -> Iterable[bytes] | None:
    """The server's own wrapper with what is left to send, if it is known to send exactly that."""
    span = answer.span()
    if span is None or answer.decision is None or answer.decision.body_length == 0:
        return None
    fileno = getattr(answer.file, "fileno", None)
    if fileno is None:
        return None
    if getattr(wrapper, "__module__", None) not in _TRUSTED:
        return None
    made: Iterable[bytes] = wrapper(_Window(fileno(), span[0], answer.close), BLOCK_SIZE)
    return made
