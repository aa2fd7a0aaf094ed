"""``sendgate.uvicorn.HttpTools``, apart from the other because it imports httptools."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .uvicorn import Protocol, check_uvicorn

check_uvicorn(HttpToolsProtocol, RequestResponseCycle)


class HttpTools(Protocol, HttpToolsProtocol):  # type: ignore[misc]
    """uvicorn's protocol that parses by httptools: ``uvicorn --http sendgate.uvicorn:HttpTools``."""

    def is_idle(self) -> bool:
        """Whether the next byte begins a request."""
        cycle = self.cycle
        if cycle is None:
            return self.scope is None
        # The scope is made when the first byte comes, the cycle when the head is complete.
        return cycle.response_complete and not cycle.more_body and self.scope is cycle.scope
