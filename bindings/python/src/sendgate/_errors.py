"""One exception for each thing that a caller would handle differently. ``_core`` makes them from status codes."""

from __future__ import annotations

from ._types import Connection, Result


class SendgateError(Exception):
    """Base of all errors that the library reports.

    ``status`` is the library's code (negative) and ``name`` its name in sendgate.h. ``errno`` is that of the
    system call that failed, or 0 (None for those that aren't an OSError). ``result`` is what happened up to
    then, or None if nothing was going to be sent. ``connection`` tells what may be done with the
    connection: if it is UNTOUCHED, no byte was written and another answer may be sent.

    Of what receives: ``received`` is how many bytes were taken from the socket, and ``stored`` how many of them are
    where they belong. The others, which a file did not take, are lost.
    """

    status: int
    name: str
    errno: int | None
    result: Result | None
    received: int = 0
    stored: int = 0

    def __init__(
        self, message: str, *, status: int = 0, name: str = "", errno: int = 0, result: Result | None = None
    ) -> None:
        if isinstance(self, OSError):
            # With two arguments an OSError sets errno and strerror.
            super().__init__(errno, message)
        else:
            super().__init__(message)
            self.errno = errno
        self.status = status
        self.name = name
        self.result = result

    @property
    def connection(self) -> Connection:
        """What became of the connection."""
        return Connection.UNTOUCHED if self.result is None else self.result.connection


class ArgumentError(SendgateError, ValueError):
    """An argument is out of range: a programming error. Nothing was sent."""


class FieldError(SendgateError, ValueError):
    """A field of the response was refused, and nothing was sent.

    CR, LF or NUL in it (response splitting), a name that is no token (RFC 9110 5.1), a malformed ETag, a second
    line of a field that may occur once, or a field that is the library's own: see Rule.
    """


class RequestError(SendgateError, ValueError):
    """Not a request head of HTTP/1, or one whose end is ambiguous: answer 400 and close (RFC 9112 2, 3, 6.3)."""


class NotRegularError(SendgateError):
    """The file is a directory (``errno`` is then EISDIR if it was opened by path), a FIFO, device or socket, or one
    of the kernel's own making whose length isn't known. Nothing was sent: answer 404 or 403.
    """


class FileChangedError(SendgateError):
    """The file was changed while it was sent, and ``check`` was asked for: close the connection."""


class TruncatedError(FileChangedError):
    """The file became shorter than the length announced, or content that is produced has ended before it: close the
    connection, so that the client notices.
    """


class ExcessError(SendgateError):
    """More content was produced than was announced: close the connection. What is too much wasn't sent."""


class FrozenError(SendgateError, RuntimeError):
    """A change of a frozen field, or of frozen content, was refused: everything is as it was."""


class IOFailedError(SendgateError, OSError):
    """A system call failed: ``errno`` tells. ``connection`` tells whether something was sent."""


class IncompleteError(SendgateError, EOFError):
    """The peer has ended before all that was asked for had come: ``received`` tells how much of it has."""


class PeerClosedError(SendgateError, ConnectionError):
    """The peer is gone (``errno`` EPIPE or ECONNRESET): close the connection. Usually not worth a log line."""


class ResponseTimeoutError(SendgateError, TimeoutError):
    """No progress within ``timeout``, slower than ``min_rate``, or not complete within ``total_timeout``: close the
    connection.
    """


class TransferCancelledError(SendgateError):
    """Ended by ``Sender.cancel``, ``stop`` or ``close``, or submitted to a sender that was stopped. ``connection``
    tells whether something was sent.
    """


class BlockingSocketError(SendgateError, ValueError):
    """A transfer needs a non-blocking socket (``setblocking(False)``): a programming error. Nothing was sent."""


class BusyError(SendgateError, RuntimeError):
    """The transfer is in use by another thread, or by the call that this one was made from; or ``max_in_flight`` of a
    ``Sender`` is reached: take, or answer 503.
    """


class ForkedError(SendgateError, RuntimeError):
    """The sender was made before a fork, and this is the child, which has no thread of it: make a new one here."""


class FastCGIError(SendgateError, ValueError):
    """What a front server has sent is no FastCGI, or against its rules: close the connection."""


class UnsupportedError(SendgateError, NotImplementedError):
    """Not in this build of the library, or not on this system."""


class OutOfMemoryError(SendgateError, MemoryError):
    """Out of memory."""


class InternalError(SendgateError, RuntimeError):
    """A bug in the library, contained, or a library that doesn't fit this package."""


# What this package refuses by itself, as the library would. The numbers are those of sendgate.h.


def truncated(announced: int, taken: int) -> TruncatedError:
    """Content has ended too early."""
    message = f"the content has ended after {taken} bytes, and {announced} were announced"
    return TruncatedError(message, status=-9, name="SENDGATE_ERR_TRUNCATED")


def excess(announced: int) -> ExcessError:
    """There is too much content."""
    return ExcessError(
        f"there is more content than the {announced} bytes that were announced", status=-21, name="SENDGATE_ERR_EXCESS"
    )


def bad_field(message: str) -> FieldError:
    """A field can't be sent."""
    return FieldError(message, status=-4, name="SENDGATE_ERR_FIELD")


def frozen(what: str) -> FrozenError:
    """Something was to be changed that must not be."""
    return FrozenError(f"{what} is frozen", status=-20, name="SENDGATE_ERR_FROZEN")
