"""RSGI (Granian): files by descriptor, conditions and ranges, on the server as it is.

    application = sendgate.rsgi.Files("static")             # an application that serves a folder
    protocol = sendgate.rsgi.Protocol(protocol, scope)      # in an application of yours: three more calls

The server takes bytes or a path, and opens the path later. Here a file is opened once: what is small and in the page
cache goes to the server as bytes, and of everything else it gets a path that leads to the open file, and never to
another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from sendgate._native import lib

from ._answer import _NOT_THERE, SAFE, Answer, open_file, own_file
from ._core import _INT64_MAX, File, Request, _error, _int, _invalid, _latin1, _take
from ._heads import CONDITIONS, FileHeads, SiteHeads
from ._leases import Leases, make_directory
from ._site import Mount
from .asyncio import _in_thread

if TYPE_CHECKING:
    from typing_extensions import TypeAlias, Unpack

    from ._heads import Fields, Rows
    from ._site import Found, SiteArguments

    #: What can't be answered at once: status, fields, and an answer that was begun.
    Rest: TypeAlias = "tuple[int, Fields, Answer]"
    Headers: TypeAlias = "Iterable[tuple[str, str]] | Mapping[str, str]"

__all__ = ["Files", "Protocol", "lent"]

#: Bytes that are handed over at once, if they are in the page cache. For a client that stalls Granian keeps 700 KiB of
#: what it reads from a path.
SMALL = 524288
#: Seconds in which the server has to begin with reading what is given to it by a pipe.
_PATIENCE = 10.0
#: Members of the server's protocol that are used here.
_HOOKS = ("response_empty", "response_bytes", "response_file", "response_file_range")
#: Classes that have them.
_known: set[type] = set()
_CONDITIONS = frozenset(CONDITIONS)
_NOTHING: Mapping[str, bytes] = {}
#: In place of a field that the server can't show, because it isn't ASCII: nothing of ours is equal to it. Dates and
#: ranges that nobody understands are left out (RFC 9110 13.1.3, 14.2).
_UNREADABLE = {"if-match": b'""', "if-none-match": b'""', "if-range": b'""'}

_leases = Leases()
_file_heads = FileHeads()
_tasks: set[asyncio.Task[None]] = set()


def lent() -> int:
    """How many descriptors are held for the server at the moment."""
    return len(_leases)


# ---- What the server is given ----


def _check(protocol: Any) -> None:
    """Refuse a protocol that can't be used here."""
    kind = type(protocol)
    missing = ", ".join(name for name in _HOOKS if not hasattr(protocol, name))
    if missing:
        raise TypeError(
            f"sendgate.rsgi doesn't know this protocol: {kind.__module__}.{kind.__qualname__} has no {missing}"
        )
    _known.add(kind)


def _hand_over(
    protocol: Any, status: int, fields: Fields, fd: int, offset: int, length: int, *, readable: bool = False
) -> bool:
    """Answer with a file's bytes, at least one. False: no path leads to them, and nothing was done.

    readable: it is known to be open for reading.
    """
    if length <= SMALL:
        block = _cached(fd, offset, length)
        if block is not None:
            protocol.response_bytes(status, fields, block)
            return True
    try:
        found = os.fstat(fd)
        path = _leases.path(fd, found, readable=readable)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise _error(lib.SENDGATE_ERR_IO, sys_errno=errno.EBADF) from None
        return False
    if offset == 0 and length == found.st_size:
        # It reads to the end of the file, and sends no more than Content-Length says.
        protocol.response_file(status, fields, path)
    else:
        protocol.response_file_range(status, fields, path, offset, offset + length)
    return True


def _cached(fd: int, offset: int, length: int) -> bytearray | None:
    """All of a content, if it takes no waiting to read it."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    block = bytearray(length)
    try:
        # A file system that doesn't know the flag says so (EOPNOTSUPP).
        complete = os.preadv(fd, [block], offset, os.RWF_NOWAIT) == length
    except OSError:
        return None
    return block if complete else None


def _begin(answer: Answer) -> tuple[int, Fields]:
    """Decide. Status and fields as the server wants them."""
    answer.begin()
    decision = answer.decision
    assert decision is not None
    return decision.status, [(name, _text(value)) for name, value in decision.fields]


def _text(value: str) -> str:
    """A field's value, in which a character stands for a byte: the server sends UTF-8."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return value


def _dated(answer: Answer, fields: Fields) -> Fields:
    """With a Date: the server's own may be a second behind a Last-Modified of just now (RFC 9110 8.8.2.1)."""
    exchange = answer._exchange
    assert exchange is not None
    return [*fields, ("Date", formatdate(exchange.c.now, usegmt=True))]


def _directly(protocol: Any, answer: Answer, status: int, fields: Fields) -> bool:
    """Give the server an answer that was begun, if that can be done at once."""
    decision, span = answer.decision, answer.span()
    assert decision is not None
    if decision.body_length == 0:
        protocol.response_empty(status, fields)
    elif answer.fileno() < 0:
        protocol.response_bytes(status, fields, b"".join(answer))
    else:
        return span is not None and _hand_over(protocol, status, fields, answer.fileno(), *span)
    return True


def _content(fd: int, close: Callable[[], object], offset: int, length: int) -> Answer:
    """An answer that is nothing but a file's bytes, and was begun. Closed with it, but not by an exception here."""
    answer = Answer(None, fd, close, offset=offset, length=length, etag=False, last_modified=False)
    answer.begin()
    return answer


def _by_heart(
    protocol: Any,
    method: str,
    close: Callable[[], object],
    status: int,
    fields: Fields,
    fd: int,
    offset: int,
    length: int,
) -> Rest | None:
    """Answer by a known head. What can't be done at once, which closes the file; or None, and whoever calls does."""
    if length == 0 or method == "HEAD":
        protocol.response_empty(status, fields)
    elif not _hand_over(protocol, status, fields, fd, offset, length, readable=True):
        return status, fields, _content(fd, close, offset, length)
    return None


class _Pipe:
    """A named pipe, as a path for what no other path leads to: the parts of several ranges, or a file that can't be
    opened once more. The server reads from it as fast as the client does; what it takes by ``response_stream`` it would
    pile up.

    protocol: is given the path, for more bytes than a pipe holds. OSError: it wasn't.
    """

    def __init__(self, protocol: Any, status: int, fields: Fields) -> None:
        self._directory = make_directory()
        self._path = os.path.join(self._directory, "content")
        self._reader = self._writer = -1
        self._written = 0
        try:
            os.mkfifo(self._path, 0o600)
            # With both ends open here, the server need not wait to open it.
            self._reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._writer = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            protocol.response_file(status, fields, self._path)
        except BaseException:
            self._close()
            raise

    async def send(self, answer: Answer) -> None:
        """Write what is left of an answer, until the client leaves, and close both."""
        try:
            while block := await _in_thread(next, answer, b""):
                with memoryview(block) as view:
                    await self._write(view)
        except (BrokenPipeError, asyncio.TimeoutError):
            pass
        finally:
            self._close()
            answer.close()

    async def _write(self, view: memoryview) -> None:
        start = 0
        while start < len(view):
            try:
                count = os.write(self._writer, view[start:])
            except BlockingIOError:
                if self._reader < 0:
                    await _writable(self._writer)
                    continue
                if self._in_pipe() == self._written:
                    await asyncio.wait_for(_writable(self._writer), _PATIENCE)
                # The server has read something. When it stops, that is an error from now on.
                self._close_reader()
            else:
                self._written += count
                start += count

    def _in_pipe(self) -> int:
        """How many bytes are there to be read."""
        count: int = struct.unpack("i", fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4)))[0]
        return count

    def _close_reader(self) -> None:
        fd, self._reader = self._reader, -1
        if fd >= 0:
            os.close(fd)
        directory, self._directory = self._directory, ""
        if directory:
            # Somebody may have cleaned up.
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    def _close(self) -> None:
        """Who reads finds the end, and who comes later nothing."""
        self._close_reader()
        fd, self._writer = self._writer, -1
        if fd >= 0:
            os.close(fd)


async def _writable(fd: int) -> None:
    """Wait until a descriptor takes something."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_writer(fd, wake)
    try:
        await future
    finally:
        loop.remove_writer(fd)


def _in_background(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it to its end, whatever becomes of the application's task."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        # The application has called from a thread of its own.
        threading.Thread(target=asyncio.run, args=(coroutine,), daemon=True).start()
        return
    task = loop.create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


# ---- The three calls ----


class Protocol:
    """The server's protocol of HTTP, with the three calls of the proposal (granian#816).

        async def application(scope, protocol):
            protocol = sendgate.rsgi.Protocol(protocol, scope)
            protocol.response_file_conditional(200, [], "file.bin", range_header=scope.headers.get("range"))

    Everything else is the server's own. scope: that of the request, whose method tells HEAD; without it the server
    leaves the content out of an answer to HEAD, for which it was prepared in vain.

    Each call returns when the server has the answer, before it is sent. TypeError: a protocol that isn't known here.
    """

    __slots__ = ("_protocol", "_scope")

    def __init__(self, protocol: Any, scope: Any = None) -> None:
        if type(protocol) not in _known:
            _check(protocol)
        self._protocol = protocol
        self._scope = scope

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def __call__(self) -> Any:
        """The content of the request, to be awaited."""
        return self._protocol()

    def __aiter__(self) -> Any:
        return self._protocol.__aiter__()

    def response_file_fd(self, status: int, headers: Headers, fd: int) -> None:
        """Answer with all of a file, as the application says.

        Status and headers are sent as given, with Content-Length added. Takes fd over: it is closed when it isn't
        needed any more, and by every exception, so pass an os.dup() to keep yours. NotRegularError; OSError if it isn't
        open for reading, or there are no descriptors left; then nothing was sent.
        """
        file = own_file(_take(fd), {})
        self._span(status, headers, file, 0, file.size)

    def response_file_fd_range(self, status: int, headers: Headers, fd: int, start: int, end: int) -> None:
        """As ``response_file_fd``, with the bytes from start to before end only.

        ValueError: start >= end. TruncatedError: end is past the file. Then nothing was sent. A 206 without a
        Content-Range of yours gets one.
        """
        file = own_file(_take(fd), {})
        try:
            _int(start, 0, _INT64_MAX, "start")
            _int(end, 0, _INT64_MAX, "end")
            if start >= end:
                raise _invalid(f"invalid range: start {start} is not below end {end}")
            if end > file.size:
                raise _error(lib.SENDGATE_ERR_TRUNCATED)
        except BaseException:
            file.close()
            raise
        self._span(status, headers, file, start, end)

    def response_file_conditional(
        self,
        status: int,
        headers: Headers,
        file_path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        if_none_match: str | None = None,
        if_modified_since: str | None = None,
        range_header: str | None = None,
        if_range: str | None = None,
    ) -> None:
        """Open the file at a path, fstat it once, decide and answer from the same descriptor: 200, 206, 304 or 416.

        The conditions are these four values of the request's fields. ETag, Last-Modified and Accept-Ranges are added
        unless headers has them: an ETag or Last-Modified of yours wins, also in the comparison. Several ranges are
        answered as multipart/byteranges. A file that isn't there or may not be read is answered 404 with an empty body.
        status is that of the full answer; with any but 200 nothing is evaluated.

        FieldError, NotRegularError, OSError if it can't be opened for another reason; then nothing was sent.
        """
        _int(status, 200, 999, "status")
        # The server sends UTF-8, and the library takes it as it is.
        rows = tuple((name, value.encode()) for name, value in _fields(headers))
        given = {
            "if-none-match": if_none_match,
            "if-modified-since": if_modified_since,
            "range": range_header,
            "if-range": if_range,
        }
        conditions = {name: _latin1(value, name) for name, value in given.items() if value is not None}
        try:
            file = open_file(file_path, {})
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            self._protocol.response_empty(404, [])
            return
        method = self._method()
        evaluated = status == 200 and method in SAFE
        rest = None
        try:
            head = _file_heads.find(file, rows, method, conditions) if evaluated else None
            if head is not None:
                rest = _by_heart(self._protocol, method, file.close, *head)
            else:
                request = Request(method, fields=conditions.items(), has_body=False)
                rest = self._decide(
                    Answer(request, file, file.close, status=status, headers=rows), file, rows, evaluated
                )
        finally:
            if rest is None:
                file.close()
        if rest is not None:
            self._read(*rest)

    def _decide(self, answer: Answer, file: File, rows: Rows, evaluated: bool) -> Rest | None:
        """Answer with what isn't known by heart. What can't be done at once."""
        rest = None
        try:
            status, fields = _begin(answer)
            decision = answer.decision
            assert decision is not None
            if evaluated:
                _file_heads.remember(file, rows, status, fields, len(decision.ranges))
            fields = _dated(answer, fields)
            if not _directly(self._protocol, answer, status, fields):
                rest = status, fields, answer
            return rest
        finally:
            if rest is None:
                answer.close()

    def _method(self) -> str:
        return "GET" if self._scope is None else self._scope.method

    def _span(self, status: int, headers: Headers, file: File, start: int, end: int) -> None:
        """Answer with bytes of a file, and close it."""
        rest = None
        try:
            _int(status, 200, 999, "status")
            length = end - start
            fields = _fields(headers)
            if status not in (204, 304):
                fields.append(("Content-Length", str(length)))
            if status == 206 and length and not any(name.lower() == "content-range" for name, _ in fields):
                fields.append(("Content-Range", f"bytes {start}-{end - 1}/{file.size}"))
            if length == 0 or status in (204, 205, 304) or self._method() == "HEAD":
                self._protocol.response_empty(status, fields)
            elif not _hand_over(self._protocol, status, fields, file.fileno(), start, length):
                rest = status, fields, _content(file.fileno(), file.close, start, length)
        finally:
            if rest is None:
                file.close()
        if rest is not None:
            self._read(*rest)

    def _read(self, status: int, fields: Fields, answer: Answer) -> None:
        """Answer with what no path leads to. Takes over an answer that was begun."""
        pipe = None
        try:
            assert answer.decision is not None
            if answer.decision.body_length <= SMALL:
                self._protocol.response_bytes(status, fields, b"".join(answer))
            else:
                pipe = _Pipe(self._protocol, status, fields)
        finally:
            if pipe is None:
                answer.close()
        if pipe is not None:
            _in_background(pipe.send(answer))


def _fields(headers: Headers) -> Fields:
    """The application's, but for what the server says of the content (RFC 9112 6)."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [(name, value) for name, value in pairs if name.lower() not in ("content-length", "transfer-encoding")]


# ---- A folder ----


class Files:
    """An application that serves a folder.

        application = sendgate.rsgi.Files("static", prefix="/static/", application=application)

    application: answers what isn't there, every other method than GET and HEAD, and WebSockets; without it that is
    404, 405, and a refusal. All other arguments are those of ``sendgate.wsgi.Files``, but for front.

    Each answer is made of one open, in the event loop's thread. root is opened once. OSError: it can't be.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        prefix: str = "/",
        application: Any = None,
        **site: Unpack[SiteArguments],
    ) -> None:
        self._mount = Mount(root, prefix, site)
        self._heads = SiteHeads(self._mount.site)
        self._application = application

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """The application's own."""
        if hasattr(self._application, "__rsgi_init__"):
            self._application.__rsgi_init__(loop)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """The application's own."""
        if hasattr(self._application, "__rsgi_del__"):
            self._application.__rsgi_del__(loop)

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """The application."""
        if scope.proto != "http":
            if self._application is None:
                protocol.close(404)
            else:
                await self._other(scope, protocol)
            return
        if type(protocol) not in _known:
            _check(protocol)
        method: str = scope.method
        path: str = scope.path
        fields = scope.headers
        names = fields.keys()
        given = _NOTHING if _CONDITIONS.isdisjoint(names) else _conditions(fields, names)
        accept_encoding = ", ".join(fields.get_all("accept-encoding")) if "accept-encoding" in names else None
        if method in SAFE:
            head = self._heads.find(path, method, given, accept_encoding)
            if head is not None:
                fd, rest = head[2], None
                try:
                    rest = _by_heart(protocol, method, lambda: os.close(fd), *head)
                finally:
                    if rest is None:
                        os.close(fd)
                if rest is not None:
                    await self._read(protocol, *rest)
                return
        found = self._find(method, path, scope.query_string, accept_encoding)
        if found is None:
            await self._other(scope, protocol)
            return
        version = 10 if scope.http_version == "1" else 11
        answer = found.answer(lambda: Request(method, version, given.items(), has_body=False))
        try:
            status, head_fields = _begin(answer)
            decision = answer.decision
            assert decision is not None
            self._heads.remember(path, found, accept_encoding, status, head_fields, len(decision.ranges))
            head_fields = _dated(answer, head_fields)
            if not _directly(protocol, answer, status, head_fields):
                await self._read(protocol, status, head_fields, answer)
        finally:
            answer.close()

    def _find(self, method: str, path: str, query: str, accept_encoding: str | None) -> Found | None:
        """What answers; None: the other application."""
        alone = self._application is None
        if "\ufffd" in path:
            # The server decodes the path, and puts this in the place of what is no UTF-8: nobody knows what it was.
            return self._mount.site.error(404) if alone else None
        return self._mount.find(method, path.encode(), b"", query, accept_encoding, alone=alone)

    async def _other(self, scope: Any, protocol: Any) -> None:
        await getattr(self._application, "__rsgi__", self._application)(scope, protocol)

    async def _read(self, protocol: Any, status: int, fields: Fields, answer: Answer) -> None:
        """Answer with what no path leads to. Takes over an answer that was begun."""
        try:
            assert answer.decision is not None
            if answer.decision.body_length <= SMALL:
                protocol.response_bytes(status, fields, await _in_thread(b"".join, answer))
                return
            try:
                pipe = _Pipe(protocol, status, fields)
            except OSError:
                page = self._mount.site.error(503, (("Retry-After", "1"),)).answer(lambda: Request(has_body=False))
                protocol.response_bytes(*_begin(page), b"".join(page))
                page.close()
            else:
                await pipe.send(answer)
        finally:
            answer.close()

    def close(self) -> None:
        """Close the folder. Requests fail afterwards."""
        self._mount.site.close()


def _conditions(fields: Any, names: list[str]) -> dict[str, bytes]:
    """Those of the request's fields that have a part in the decision, the lines of each joined."""
    given = {}
    for name in _CONDITIONS.intersection(names):
        lines: list[str] = fields.get_all(name)
        if lines:
            given[name] = ", ".join(lines).encode("latin-1")
        elif name in _UNREADABLE:
            given[name] = _UNREADABLE[name]
    return given
