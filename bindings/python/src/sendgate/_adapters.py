"""What the adapters for WSGI servers share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._core import _Exchange, _Sink
from ._errors import PeerClosedError, ResponseTimeoutError
from ._types import Connection

if TYPE_CHECKING:
    from ._answer import Answer
    from ._types import Result

#: Seconds in which a client has to take something, where the server has no such limit.
IDLE = 60.0


def check_hooks(module: str, owner: type, *names: str) -> None:
    """ImportError if a server's class has no such members: then it is of a version that isn't known here."""
    init = getattr(owner.__init__, "__code__", None)  # type: ignore[misc]
    set_there = init.co_names if init is not None else ()
    missing = ", ".join(name for name in names if not (hasattr(owner, name) or name in set_there))
    if missing:
        raise ImportError(
            f"{module} doesn't know this version: {owner.__module__}.{owner.__qualname__} has no {missing}"
        )


def server_field(server: str | None) -> tuple[tuple[str, str], ...]:
    """What a server adds; an Answer leaves it out where the application names the server."""
    return (("Server", server),) if server else ()


def wait(exchange: _Exchange, sink: _Sink) -> Result:
    """Send it; this thread waits."""
    try:
        return exchange.respond(sink)
    finally:
        exchange.close()


def deliver(
    answer: Answer,
    sock: Any,
    server: str | None,
    close: bool,
    sent: Callable[[Result], None],
    *,
    timeout: float | None = None,
    respond: Callable[[_Exchange, _Sink], Result] = wait,
) -> None:
    """Send an answer, and call sent() with what became of it. server: for the field of that name.

    That a client has left or stalled is no error: its log line tells how much it took. Any other is raised, with
    sent() called before if something had left already; if not, another answer can be sent.
    """
    sink = _Sink(sock, math.ceil((timeout or IDLE) * 1000))
    try:
        result = respond(answer.exchange(server_field(server), close, False), sink)
    except BaseException as error:
        # An exception that has ended a greenlet has one too.
        happened: Result | None = getattr(error, "result", None)
        gone = isinstance(error, (PeerClosedError, ResponseTimeoutError))
        if happened is not None and (gone or happened.connection is not Connection.UNTOUCHED):
            sent(happened)
            if gone:
                return
        raise
    sent(result)
