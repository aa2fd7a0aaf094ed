"""Answer an HTTP request with a file: conditions (RFC 9110 section 13), ranges (section 14), sendfile.

``respond`` answers a request on a socket, ``decide`` only tells what the answer would be, ``Transfer`` sends step by
step from an event loop, and a ``Sender`` any number of responses in the background. ``sendgate.asyncio`` has a
``respond`` to await. ``python -m sendgate DIR`` serves a folder.

    import sendgate
    request = sendgate.Request.from_head(connection.recv(65536))
    result = sendgate.respond(connection, request, "index.html", content_type="text/html")
    if result.connection is not sendgate.Connection.REUSABLE:
        connection.close()

All calls into the library run without the interpreter lock. They need no locks of their own, except that a Transfer
is used by one thread at a time.
"""

from typing import TYPE_CHECKING, Any

from ._core import (
    File,
    Request,
    Responder,
    Transfer,
    __version__,
    decide,
    features,
    open_beneath,
    respond,
    response_file_conditional,
    response_file_fd,
    response_file_fd_range,
    version,
)
from ._errors import (
    ArgumentError,
    BlockingSocketError,
    BusyError,
    ExcessError,
    FastCGIError,
    FieldError,
    FileChangedError,
    ForkedError,
    FrozenError,
    IncompleteError,
    InternalError,
    IOFailedError,
    NotRegularError,
    OutOfMemoryError,
    PeerClosedError,
    RequestError,
    ResponseTimeoutError,
    SendgateError,
    TransferCancelledError,
    TruncatedError,
    UnsupportedError,
)
from ._headers import Headers
from ._receive import BufferPool, recv_file, recv_into
from ._sender import Sender
from ._stream import Stream
from ._types import Completion, Connection, Decision, Framing, HeadForm, Result, Rule, Step

if TYPE_CHECKING:
    from ._response import Response

__all__ = [
    "ArgumentError",
    "BlockingSocketError",
    "BufferPool",
    "BusyError",
    "Completion",
    "Connection",
    "Decision",
    "ExcessError",
    "FastCGIError",
    "FieldError",
    "File",
    "FileChangedError",
    "ForkedError",
    "FrozenError",
    "Framing",
    "HeadForm",
    "Headers",
    "IOFailedError",
    "IncompleteError",
    "InternalError",
    "NotRegularError",
    "OutOfMemoryError",
    "PeerClosedError",
    "Request",
    "RequestError",
    "Responder",
    "Response",
    "ResponseTimeoutError",
    "Result",
    "Rule",
    "SendgateError",
    "Sender",
    "Step",
    "Stream",
    "Transfer",
    "TransferCancelledError",
    "TruncatedError",
    "UnsupportedError",
    "__version__",
    "decide",
    "features",
    "open_beneath",
    "recv_file",
    "recv_into",
    "respond",
    "response_file_conditional",
    "response_file_fd",
    "response_file_fd_range",
    "version",
]


def __getattr__(name: str) -> Any:
    # Only who asks for it needs asyncio.
    if name == "Response":
        from ._response import Response

        return Response
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
