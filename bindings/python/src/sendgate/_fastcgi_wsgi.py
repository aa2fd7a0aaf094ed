"""A request of a front server, answered by a WSGI application (PEP 3333)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ._answer import Answer, content_length
from ._core import _Exchange
from ._errors import PeerClosedError, ResponseTimeoutError, SendgateError, bad_field
from ._fastcgi_connection import BLOCK, Call
from ._fastcgi_environ import make_environ, scheme
from ._headers import _ENDS_LINE, _TOKEN
from ._stream import Stream
from ._types import Connection as Outcome
from ._types import HeadForm
from .wsgi import FileWrapper, Gateway

if TYPE_CHECKING:
    from .wsgi import Application, Environ

#: What the front server says (PEP 3333: hop-by-hop), and what only means something to it.
_NOT_OURS = frozenset(("connection", "keep-alive", "proxy-connection", "status", "transfer-encoding"))


class Errors:
    """wsgi.errors: the front server's log."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def write(self, text: str) -> int:
        """It leaves with the answer, or with ``flush``."""
        self._call.report(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """All of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send what was written."""
        self._call.flush_errors()


class _Response:
    """What an application answers, from start_response on."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._given: tuple[str, list[tuple[str, str]]] | None = None
        self._stream: Stream | None = None
        #: Bytes that were announced, and those that may still be sent of them.
        self._length: int | None = None
        self._left = 0
        #: Whether there was more.
        self.exceeded = False

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """PEP 3333's start_response."""
        if exc_info is not None:
            try:
                if self._stream is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._given is not None:
            raise AssertionError("start_response was called a second time without exc_info")
        self._given = status, list(headers)
        return self.write

    def write(self, data: bytes) -> None:
        """Some of the content is on its way when this returns. With the first of it goes the head."""
        if not isinstance(data, bytes):
            raise TypeError(f"a WSGI application has to produce bytes, not {type(data).__name__}")
        if self._stream is None:
            self._begin()
        assert self._stream is not None
        if self._length is not None:
            data = self._cut(data, self._left)
            self._left -= len(data)
        with _Watched(self._call):
            self._call.flush_errors()
            self._stream.write(data)

    def _cut(self, data: bytes, room: int) -> bytes:
        if len(data) <= room:
            return data
        if not self.exceeded and not self._call.is_head:
            self.exceeded = True
            self._call.report(f"sendgate: {self._call.name}: more content than Content-Length says was cut off\n")
        return data[:room]

    def _begin(self) -> None:
        head, status = self._head()
        self._left = self._length or 0
        self._stream = self._call.stream(head, status, self._length)

    def send(self, content: bytes) -> None:
        """All of it, unless something was written before."""
        if self._stream is not None:
            self.write(content)
            self.end()
            return
        head, status = self._head(None if self._call.is_head and not content else len(content))
        if self._length is not None:
            content = self._cut(content, self._length)
        if self._length is not None and self._length > len(content) and not self._call.is_head and status != 304:
            self._stream = self._call.stream(head, status, self._length)
            self._left = self._length
            self.write(content)
            self.end()
            return
        asked = self._call.asked
        self._call.submit(_Exchange(asked, content, status=status, head=head, etag=False, last_modified=False))

    def end(self) -> None:
        """No more of it."""
        stream = self._stream
        if stream is None:
            self.send(b"")
            return
        call = self._call
        if self._left and not call.is_head:
            call.report(f"sendgate: {call.name}: {self._left} bytes less of content than Content-Length says\n")
        with _Watched(call):
            call.prepare(last=True)
            call.ended(stream.end().connection)

    def close(self) -> None:
        """Nothing more will be sent."""
        if self._stream is not None:
            self._stream.close()

    def _head(self, length: int | None = None) -> tuple[bytes, int]:
        """As CGI has it (RFC 3875 6.3). length: of the content, for an application that doesn't say it."""
        if self._given is None:
            raise AssertionError("the application has not called start_response")
        status, headers = self._given
        if not re.match(r"[1-9]\d\d( |$)", status) or _ENDS_LINE.search(status):
            raise bad_field(f"a status is three digits and a reason, not {status!r}")
        code = int(status[:3])
        self._length = content_length(headers)
        lines = [f"Status: {status}"]
        for name, value in headers:
            if name.lower() in _NOT_OURS:
                continue
            if not _TOKEN.fullmatch(name) or _ENDS_LINE.search(value):
                raise bad_field(f"a field can't be sent: {name!r}: {value!r}")
            lines.append(f"{name}: {value}")
        if code == 204 or code == 304:
            self._length = 0 if code == 204 else self._length
        elif self._length is None and length is not None:
            self._length = length
            lines.append(f"Content-Length: {length}")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("latin-1"), code


class _Watched:
    """Tells the request what its stream has met. After an error, the library has ended it as well as can be."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SendgateError):
            self._call.ended(Outcome.BROKEN)
            if isinstance(error, (PeerClosedError, ResponseTimeoutError)):
                self._call.connection.gone = True


def answer(call: Call, application: Application, multithread: bool, multiprocess: bool) -> None:
    """Have the application answer. Raises what it raises, and what sending does."""
    environ = _environ(call, multithread, multiprocess)
    response = _Response(call)
    gateway = Gateway(environ, response.start)
    result: Any = gateway.call(application)
    if type(result) is Answer:
        _submit(call, result)
        return
    try:
        _send(call, response, result)
    finally:
        # PEP 3333: at the end, and also if there is no one left to send it to.
        try:
            if hasattr(result, "close"):
                result.close()
        finally:
            response.close()


def _environ(call: Call, multithread: bool, multiprocess: bool) -> Environ:
    environ = make_environ(call.params)
    environ.update(
        {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": scheme(environ),
            "wsgi.input": call.input,
            # It ends where the content does, whether or not there is a CONTENT_LENGTH.
            "wsgi.input_terminated": True,
            "wsgi.errors": Errors(call),
            "wsgi.multithread": multithread,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
        }
    )
    return environ


def _submit(call: Call, answer: Answer) -> None:
    """A file, or whatever else the library sends by itself."""
    try:
        exchange = answer.exchange((), False, False)
        exchange.c.head = HeadForm.CGI
        call.submit(exchange, answer.close)
    except BaseException:
        answer.close()
        raise


def _send(call: Call, response: _Response, result: Any) -> None:
    if type(result) in (list, tuple) and sum(map(len, result)) <= BLOCK and all(type(p) is bytes for p in result):
        response.send(b"".join(result))
        return
    for piece in result:
        if not piece and isinstance(piece, bytes):
            continue
        call.look()
        response.write(piece)
        if response.exceeded:
            # Whoever produces more than he has said may do so for ever.
            break
    response.end()
