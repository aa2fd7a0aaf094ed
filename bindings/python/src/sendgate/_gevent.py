"""Responses that only one greenlet waits for, while they are sent in the background."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import gevent
from gevent.event import AsyncResult

from ._core import _Exchange, _Sink
from ._errors import ForkedError
from ._sender import Sender
from ._types import Completion, Result

#: The server has limited its connections already, and where it hasn't, descriptors run out first.
_MAX_IN_FLIGHT = 65536


class _Background:
    """A hub's sender. While something is in flight the hub watches its descriptor."""

    def __init__(self, hub: Any) -> None:
        self.process = os.getpid()
        self._sender = Sender(max_in_flight=_MAX_IN_FLIGHT)
        self._watcher = hub.loop.io(self._sender.fileno(), 1)
        self._in_flight = 0

    def respond(self, exchange: _Exchange, sink: _Sink) -> Result:
        sender = self._sender
        waiter = AsyncResult()
        given, result = sender._submit(exchange, sender._sink(sink, try_now=True), waiter)
        if not given:
            return result
        self._in_flight += 1
        if self._in_flight == 1:
            self._watcher.start(self._take)
        try:
            completion: Completion = waiter.get()
        except BaseException as error:
            # The greenlet is killed, or its time is over. What is sent is needed until that has ended, which doesn't
            # depend on the client any more.
            sender.cancel(given)
            while not waiter.ready():
                with contextlib.suppress(gevent.GreenletExit, gevent.Timeout):
                    waiter.wait()
            # As a SendgateError has it, for the log.
            error.result = waiter.get().result  # type: ignore[attr-defined]
            raise
        if completion.error is not None:
            raise completion.error
        return completion.result

    def _take(self) -> None:
        """Wake those whose responses have ended. Called by the hub."""
        try:
            ended = self._sender.take()
        except ForkedError:
            # They are the parent's.
            self._watcher.stop()
            return
        for completion in ended:
            completion.token.set(completion)
        self._in_flight -= len(ended)
        if self._in_flight == 0:
            self._watcher.stop()


def respond(exchange: _Exchange, sink: _Sink) -> Result:
    """Send it; this greenlet waits, and the hub serves others. The exchange is closed when it is no longer needed."""
    hub: Any = gevent.get_hub()
    background = getattr(hub, "_sendgate", None)
    if background is None or background.process != os.getpid():
        background = hub._sendgate = _Background(hub)
    return background.respond(exchange, sink)
