"""``sendgate.uvicorn.H11``, apart from the other because it imports h11."""

from __future__ import annotations

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from .uvicorn import Protocol, check_uvicorn

check_uvicorn(H11Protocol, RequestResponseCycle)


class H11(Protocol, H11Protocol):  # type: ignore[misc]
    """uvicorn's protocol that parses by h11, in Python: ``uvicorn --http sendgate.uvicorn:H11``."""

    def is_idle(self) -> bool:
        """Whether the next byte begins a request."""
        conn = self.conn
        return conn.our_state is h11.IDLE and conn.their_state is h11.IDLE and not conn.trailing_data[0]
