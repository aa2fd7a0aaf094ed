"""FastCGI as the library has it: a connection's bytes to events, records and parameters to bytes and back."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sendgate._native import ffi, lib

from ._core import _NULL, _PACKED, _REQUEST, Request, _check, _fields, _int, _new, _type

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._types import Text


class RecordType(enum.IntEnum):
    """What a record is (FastCGI 1.0, 8)."""

    BEGIN_REQUEST = 1
    ABORT_REQUEST = 2
    END_REQUEST = 3
    PARAMS = 4
    STDIN = 5
    STDOUT = 6
    STDERR = 7
    DATA = 8
    GET_VALUES = 9
    GET_VALUES_RESULT = 10
    UNKNOWN_TYPE = 11


class Role(enum.IntEnum):
    """What a front server wants of an application (FastCGI 1.0, 6). Only a Responder is served here."""

    RESPONDER = 1
    AUTHORIZER = 2
    FILTER = 3


class ProtocolStatus(enum.IntEnum):
    """How a request ended (FastCGI 1.0, 5.5)."""

    REQUEST_COMPLETE = 0
    CANT_MPX_CONN = 1
    OVERLOADED = 2
    UNKNOWN_ROLE = 3


class EventType(enum.IntEnum):
    """What has come on a connection."""

    #: A request has begun, and these are all of its parameters.
    PARAMS = 1
    #: Some of its content; an empty one is its end.
    STDIN = 2
    #: The front server doesn't want the answer any more: stop, and end the request.
    ABORT = 3
    #: Bytes that have to be sent before anything that follows, and not within an answer's record.
    REPLY = 4


class Event(NamedTuple):
    """What has come on a connection."""

    type: EventType
    #: Of the request that is under way; 0: there is none.
    request_id: int
    #: Whether the connection is to be kept afterwards.
    keep_conn: bool
    #: PARAMS: (name, value), as they came.
    params: tuple[tuple[bytes, bytes], ...]
    #: STDIN: content. REPLY: what has to be sent.
    data: bytes


class Record(NamedTuple):
    """One record."""

    #: A RecordType, or a number that is none.
    type: int
    request_id: int
    content: bytes


_EVENT = _type("sendgate_fcgi_event")
_OPTIONS = _type("sendgate_fcgi_options")
_TYPES = {kind.value: kind for kind in EventType}


class Parser:
    """One connection of a front server, as far as it has been read: takes the bytes that come, cut anywhere, and tells
    what they are. Does no I/O.

        for event in parser.feed(connection.recv(65536)): ...

    One request at a time: a second one that is begun before the first is over is refused with CANT_MPX_CONN.

    max_params: bytes of a request's parameters; one with more is answered with 431. max_connections, max_requests: what
    a front server is told that asks (FastCGI 1.0, 4.1).
    """

    def __init__(self, *, max_params: int = 262144, max_connections: int = 1, max_requests: int = 1) -> None:
        options = _new(_OPTIONS)
        options.max_params = _int(max_params, 1, 2**31 - 1, "max_params")
        options.max_connections = _int(max_connections, 1, 2**31 - 1, "max_connections")
        options.max_requests = _int(max_requests, 1, 2**31 - 1, "max_requests")
        out = ffi.new("sendgate_fcgi **")
        _check(lib.sendgate_fcgi_new(options, out))
        self._handle: Any = ffi.gc(out[0], lib.sendgate_fcgi_free)
        self._event = _new(_EVENT)
        self._used = ffi.new("size_t *")

    def feed(self, data: Buffer) -> list[Event]:
        """What these bytes complete, in the order in which it has come. FastCGIError: close the connection."""
        events = []
        event, used = self._event, self._used
        with ffi.from_buffer("uint8_t[]", data) as view:
            at, length = 0, len(view)
            while at < length:
                code = _check(lib.sendgate_fcgi_feed(self._handle, view + at, length - at, used, event))
                at += used[0]
                if code != lib.SENDGATE_WANT_READ:
                    params = _params(event) if event.n_params else ()
                    kept = bool(event.keep_conn)
                    events.append(Event(_TYPES[event.kind], event.request_id, kept, params, _bytes(event.data)))
        return events

    def end(self) -> None:
        """The answer to the request was sent: another one may begin. What still comes of its content is skipped."""
        _check(lib.sendgate_fcgi_end(self._handle))


_FIELD = _PACKED["sendgate_field"]
_FIELD_SIZE = struct.calcsize(_FIELD)


def _params(event: Any) -> tuple[tuple[bytes, bytes], ...]:
    """The parameters. They lie in one block, in this order, as they came: so one copy of it is cheaper than one of each
    name and value.
    """
    count: int = event.n_params
    fields = struct.unpack(_FIELD * count, ffi.buffer(event.params, count * _FIELD_SIZE))
    first, last = fields[0], fields[-2] + fields[-1]
    block = bytes(ffi.buffer(ffi.cast("char *", first), last - first))
    return tuple(
        [
            (block[name - first : name - first + name_length], block[value - first : value - first + value_length])
            for name, name_length, value, value_length in zip(fields[::4], fields[1::4], fields[2::4], fields[3::4])
        ]
    )


def _bytes(value: Any) -> bytes:
    return bytes(ffi.buffer(value.ptr, value.len)) if value.len else b""


def request_from_params(params: Iterable[tuple[bytes, bytes]]) -> Request:
    """The request that an answer depends on, of the parameters of a FastCGI request, or a CGI program's environment
    (RFC 3875 4.1): REQUEST_METHOD, SERVER_PROTOCOL, and HTTP_ and a field's name.
    """
    keep: list[Any] = []
    fields, count = _fields(params, keep)
    request = _new(_REQUEST)
    _check(lib.sendgate_request_from_params(request, fields, count))
    return Request._of(request, keep)


# ---- Records and parameters ----


def pack_record(type: int, request_id: int, content: bytes = b"", *, pad: bool = False) -> bytes:
    """A record. content: at most 65535 bytes. pad: so that it ends at a multiple of 8."""
    _int(type, 0, 255, "type")
    _int(request_id, 0, 65535, "request_id")
    _int(len(content), 0, 65535, "the length of content")
    head = ffi.new("uint8_t[8]")
    padding = ffi.new("uint32_t *") if pad else _NULL
    _check(lib.sendgate_fcgi_header(head, type, request_id, len(content), padding))
    return bytes(ffi.buffer(head)) + content + bytes(padding[0] if pad else 0)


def pack_stream(type: int, request_id: int, content: bytes) -> bytes:
    """As many records as content needs; none if it is empty."""
    pieces = range(0, len(content), 65535)
    return b"".join(pack_record(type, request_id, content[start : start + 65535]) for start in pieces)


def unpack_record(data: bytes, offset: int = 0) -> tuple[int, Record] | None:
    """The record that begins at offset, and where the next one begins. None: it is not complete.

    FastCGIError: its version isn't 1.
    """
    if len(data) - offset < 8:
        return None
    version, kind, id_high, id_low, high, low, padding, _ = data[offset : offset + 8]
    if version != 1:
        _check(lib.SENDGATE_ERR_FASTCGI)
    start, length = offset + 8, high << 8 | low
    end = start + length + padding
    if end > len(data):
        return None
    return end, Record(kind, id_high << 8 | id_low, bytes(data[start : start + length]))


def pack_end_request(
    request_id: int, app_status: int = 0, protocol_status: int = ProtocolStatus.REQUEST_COMPLETE
) -> bytes:
    """An END_REQUEST record."""
    record = ffi.new("uint8_t[16]")
    _int(request_id, 0, 65535, "request_id")
    _int(app_status, 0, 2**32 - 1, "app_status")
    _int(protocol_status, 0, 255, "protocol_status")
    _check(lib.sendgate_fcgi_end_request(record, request_id, app_status, protocol_status))
    return bytes(ffi.buffer(record))


def encode_params(params: Iterable[tuple[Text, Text]] | Mapping[str, str]) -> bytes:
    """Name-value pairs as a stream of PARAMS has them (FastCGI 1.0, 3.4). str is encoded as latin-1."""
    keep: list[Any] = []
    fields, count = _fields(params, keep)
    needed = ffi.new("size_t *")
    _check_room(lib.sendgate_fcgi_encode_params(fields, count, _NULL, 0, needed))
    room = ffi.new("uint8_t[]", needed[0])
    _check(lib.sendgate_fcgi_encode_params(fields, count, room, needed[0], needed))
    return bytes(ffi.buffer(room, needed[0]))


def decode_params(data: bytes) -> list[tuple[bytes, bytes]]:
    """The other way. FastCGIError: a length leads past the end."""
    view = ffi.from_buffer("uint8_t[]", data)
    count = ffi.new("size_t *")
    _check_room(lib.sendgate_fcgi_decode_params(view, len(data), _NULL, 0, count))
    fields = ffi.new("sendgate_field[]", count[0])
    _check(lib.sendgate_fcgi_decode_params(view, len(data), fields, count[0], count))
    return [(_bytes(field.name), _bytes(field.value)) for field in fields]


def _check_room(status: int) -> None:
    """That there is no room is what was to be found out."""
    if status != lib.SENDGATE_ERR_NO_SPACE:
        _check(status)
