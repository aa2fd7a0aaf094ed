"""``Answer``: what an application answers with, until somebody sends it.

An application or a middleware makes one, and returns it as its iterable (PEP 3333). A server of this package finds it
in the end and has the library send it. Everybody else, a middleware that compresses or a server that knows nothing of
it, iterates over it and gets the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ._core import _Exchange, Request, Transfer
from ._types import Decision, HeadForm, Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._types import ExchangeArguments, FileArg, Text

#: Bytes per item for those who iterate.
CHUNK = 65536

#: (name, value), as WSGI has them.
Fields = "list[tuple[str, str]]"

#: What the server says, whatever the application thinks of it (PEP 3333: hop-by-hop; RFC 9112 6).
_SERVERS_OWN = frozenset(("connection", "content-length", "keep-alive", "transfer-encoding"))


def reason(status: int) -> str:
    """The status line's text without the version: "206 Partial Content"."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


class Answer:
    """A request, what answers it, and how. Sent once, or iterated once; ``close`` ends both.

    close: called once when the answer was sent, or will not be. The arguments are those of ``sendgate.respond``.
    """

    __slots__ = ("_close", "_exchange", "_transfer", "arguments", "decision", "file", "request")

    def __init__(
        self,
        request: Request | None,
        file: FileArg,
        close: Callable[[], object] | None = None,
        **arguments: Unpack[ExchangeArguments],
    ) -> None:
        self.request = request
        self.file = file
        self.arguments = arguments
        self._close = close
        self._exchange: _Exchange | None = None
        self._transfer: Transfer | None = None
        #: What was decided, once ``begin`` was called.
        self.decision: Decision | None = None

    def exchange(self, fields: tuple[tuple[Text, Text], ...], close: bool, copy: bool) -> _Exchange:
        """For the library: with what the server adds to it."""
        arguments = self.arguments
        headers: Any = arguments.get("headers", ())
        return _Exchange(
            self.request,
            self.file,
            **{
                **arguments,
                "headers": (*headers, *fields),
                "close": close or arguments.get("close", False),
                "copy": copy or arguments.get("copy", False),
            },
        )

    def begin(self) -> tuple[str, list[tuple[str, str]]]:
        """Decide now, for somebody who sends the head himself. What start_response wants to have."""
        exchange = self._exchange = _Exchange(self.request, self.file, **{**self.arguments, "head": HeadForm.CGI})
        decision = self.decision = exchange.decide()
        exchange.c.head = HeadForm.NONE
        return reason(decision.status), list(decision.fields)

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

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> bytes:
        transfer = self._transfer
        if transfer is None:
            if self.decision is None:
                self.begin()
            transfer = self._transfer = Transfer()
            exchange, self._exchange = self._exchange, None
            if exchange is None:
                raise StopIteration
            transfer._begin(None, exchange)
        chunk = bytearray(CHUNK)
        count = transfer.pull(chunk)
        if count == 0:
            raise StopIteration
        return bytes(memoryview(chunk)[:count])

    def close(self) -> None:
        """It was sent, or will not be; again does nothing."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
        if self._transfer is not None:
            self._transfer.close()
        close, self._close = self._close, None
        if close is not None:
            close()


def _own(headers: list[tuple[str, str]]) -> list[Any]:
    """The application's fields, without those that are the server's."""
    return [(name, value) for name, value in headers if name.lower() not in _SERVERS_OWN]


def as_given(
    environ: dict[str, Any],
    status: str,
    headers: list[tuple[str, str]],
    file: FileArg,
    offset: int,
    length: int,
    close: Callable[[], object] | None,
) -> Answer:
    """What the application has decided itself: nothing but the framing is the library's."""
    rows = _own(headers)
    if not any(name.lower() == "accept-ranges" for name, _ in rows):
        rows.append(("Accept-Ranges", "", Rule.REMOVE))
    return Answer(
        Request.from_environ(environ, has_body=False, conditions=False),
        file,
        close,
        status=int(status[:3]),
        headers=rows,
        etag=False,
        last_modified=False,
        offset=offset,
        length=length,
    )


def conditional(
    environ: dict[str, Any],
    headers: list[tuple[str, str]],
    file: FileArg,
    offset: int,
    length: int,
    close: Callable[[], object] | None,
    arguments: ExchangeArguments,
) -> Answer:
    """What the application would send in full: whether it has to be is the library's to decide."""
    return Answer(
        Request.from_environ(environ, has_body=False),
        file,
        close,
        **{**arguments, "headers": _own(headers), "offset": offset, "length": length},
    )
