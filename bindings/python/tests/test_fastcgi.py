"""``sendgate.fastcgi`` on values: records, parameters, and what a front server sends, cut anywhere."""

from __future__ import annotations

import inspect
import random

import pytest

from fastcgi_client import GET, begin, content_records, params_records, request
from sendgate import fastcgi
from sendgate.fastcgi import Event, EventType, Parser, ProtocolStatus, RecordType, Role

PARAMS = [(b"REQUEST_METHOD", b"POST"), (b"HTTP_X", b"\xff\xfe"), (b"LONG", b"v" * 300), (b"N" * 200, b"")]


def test_everything_public_is_documented() -> None:
    """Each name exists, and says what it is."""
    for name in fastcgi.__all__:
        assert inspect.getdoc(getattr(fastcgi, name)), name


def test_numbers() -> None:
    """Those of the specification (FastCGI 1.0, 8)."""
    assert [kind.name for kind in sorted(RecordType)] == (
        ["BEGIN_REQUEST", "ABORT_REQUEST", "END_REQUEST", "PARAMS", "STDIN", "STDOUT", "STDERR", "DATA"]
        + ["GET_VALUES", "GET_VALUES_RESULT", "UNKNOWN_TYPE"]
    )
    assert list(RecordType) == list(range(1, 12))
    assert [(role.name, role.value) for role in Role] == [("RESPONDER", 1), ("AUTHORIZER", 2), ("FILTER", 3)]
    assert [status.name for status in sorted(ProtocolStatus)] == (
        ["REQUEST_COMPLETE", "CANT_MPX_CONN", "OVERLOADED", "UNKNOWN_ROLE"]
    )
    assert list(ProtocolStatus) == [0, 1, 2, 3]


# ---- Records ----


@pytest.mark.parametrize("length", [0, 1, 7, 8, 65535])
@pytest.mark.parametrize("pad", [False, True])
def test_record(length: int, pad: bool) -> None:
    """What is packed is unpacked, wherever it stands; padded, it ends at a multiple of 8."""
    content = random.Random(length).randbytes(length)
    packed = fastcgi.pack_record(RecordType.STDOUT, 513, content, pad=pad)
    assert packed[:4] == b"\x01\x06\x02\x01"
    assert packed[8 : 8 + length] == content
    assert len(packed) % 8 == 0 if pad else len(packed) == length + 8
    assert fastcgi.unpack_record(b"abc" + packed + b"def", 3) == (3 + len(packed), (6, 513, content))
    for cut in {0, 1, 7, 8, len(packed) - 1} - {len(packed)}:
        assert fastcgi.unpack_record(packed[:cut]) is None


def test_records_out_of_range() -> None:
    """What doesn't fit into a record is refused."""
    for arguments in ((256, 1), (-1, 1), (1, 65536), (1, 1, bytes(65536))):
        with pytest.raises(ValueError, match="must be"):
            fastcgi.pack_record(*arguments)


def test_another_version() -> None:
    """FastCGI has one only."""
    with pytest.raises(fastcgi.FastCGIError):
        fastcgi.unpack_record(b"\x02" + fastcgi.pack_record(6, 1)[1:])


def test_stream() -> None:
    """As few records as possible, of at most 65535 bytes; the end isn't among them."""
    content = random.Random(0).randbytes(150_000)
    packed = fastcgi.pack_stream(RecordType.STDIN, 7, content)
    offset, pieces = 0, []
    while (unpacked := fastcgi.unpack_record(packed, offset)) is not None:
        offset, record = unpacked
        assert record[:2] == (5, 7)
        pieces.append(record.content)
    assert [len(piece) for piece in pieces] == [65535, 65535, 18930]
    assert b"".join(pieces) == content
    assert fastcgi.pack_stream(RecordType.STDIN, 7, b"") == b""


def test_end_request() -> None:
    """The end of a request, as the specification has it."""
    packed = fastcgi.pack_end_request(1, 0x01020304, ProtocolStatus.OVERLOADED)
    assert packed == b"\x01\x03\x00\x01\x00\x08\x00\x00\x01\x02\x03\x04\x02\x00\x00\x00"


# ---- Parameters ----


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 65535, 65536, 200_000])
def test_params(length: int) -> None:
    """Names and values of any length, in their order, twice the same name too (FastCGI 1.0, 3.4)."""
    pairs = [(b"a" * length, b"b"), (b"c", b"\xff" * length), (b"c", b"")]
    encoded = fastcgi.encode_params(pairs)
    width = 1 if length < 128 else 4
    assert len(encoded) == 2 * (length + 1 + width + 1) + 3
    assert fastcgi.decode_params(encoded) == pairs


def test_params_as_text() -> None:
    """A mapping of text is encoded as latin-1."""
    assert fastcgi.encode_params({"A": "ü"}) == b"\x01\x01A\xfc"
    with pytest.raises(ValueError, match="U\\+00FF"):
        fastcgi.encode_params({"A": "€"})


@pytest.mark.parametrize("data", [b"\x01", b"\x01\x05A", b"\x80\x00\x00", b"\xff\xff\xff\xff\xff\xff\xff\xffAA"])
def test_params_beyond_the_end(data: bytes) -> None:
    """A length that leads past the end is an error (CVE-2025-23016 was one that overflowed)."""
    with pytest.raises(fastcgi.FastCGIError):
        fastcgi.decode_params(data)


def test_request_from_params() -> None:
    """Method, version and the fields that count."""
    pairs = [("REQUEST_METHOD", "HEAD"), ("SERVER_PROTOCOL", "HTTP/1.0"), ("HTTP_RANGE", "bytes=0-1")]
    pairs += [("HTTP_IF_NONE_MATCH", '"a", "b"'), ("CONTENT_LENGTH", "5")]
    made = fastcgi.request_from_params([(name.encode(), value.encode()) for name, value in pairs])
    assert (made.method, made.version) == ("HEAD", 10)
    assert made.field("range") == "bytes=0-1"
    assert made.field("if-none-match") == '"a", "b"'


# ---- The parser ----


def seen(parser: Parser, pieces: list[bytes]) -> list[Event]:
    """All events, with content put together."""
    events: list[Event] = []
    for piece in pieces:
        for event in parser.feed(piece):
            last = events[-1] if events else None
            if last is not None and last.type is event.type is EventType.STDIN and last.data and event.data:
                events[-1] = last._replace(data=last.data + event.data)
            else:
                events.append(event)
    return events


def wire() -> bytes:
    """All that may come with a request."""
    padded = fastcgi.pack_record(RecordType.PARAMS, 1, fastcgi.encode_params(PARAMS), pad=True)
    padded += fastcgi.pack_record(RecordType.PARAMS, 1)
    values = fastcgi.pack_record(9, 0, fastcgi.encode_params([(b"FCGI_MPXS_CONNS", b"")]))
    refused = begin(3, True, Role.FILTER)
    return (
        values
        + begin(keep=True)
        + padded
        + fastcgi.pack_record(RecordType.STDIN, 1, b"abc", pad=True)
        + content_records(b"def")
        + fastcgi.pack_record(77, 0, b"?")
        + refused
    )


def test_parser_at_every_cut() -> None:
    """However the bytes come, the events are the same."""
    stream = wire()
    whole = seen(Parser(), [stream])
    kinds = [EventType.REPLY, EventType.PARAMS, EventType.STDIN, EventType.STDIN, EventType.REPLY, EventType.REPLY]
    assert [event.type for event in whole] == kinds
    assert whole[1].params == tuple(PARAMS)
    assert (whole[1].request_id, whole[1].keep_conn) == (1, True)
    assert [event.data for event in whole if event.type is EventType.STDIN] == [b"abcdef", b""]
    second = request(GET, b"xyz", 2, keep=True)
    again: list[Event] = []
    for cut in range(1, len(stream)):
        parser = Parser()
        assert seen(parser, [stream[:cut], stream[cut:]]) == whole, cut
        parser.end()
        events = seen(parser, [second])
        again = again or events
        assert events == again
    assert [event.request_id for event in again] == [2, 2, 2]
    assert seen(Parser(), [bytes((byte,)) for byte in stream]) == whole


def test_replies() -> None:
    """What a front server asks for, what is unknown, and what is refused."""
    parser = Parser(max_connections=7, max_requests=9)
    asked = [(b"FCGI_MAX_CONNS", b""), (b"FCGI_MAX_REQS", b""), (b"FCGI_MPXS_CONNS", b""), (b"OTHER", b"")]
    (event,) = parser.feed(fastcgi.pack_record(RecordType.GET_VALUES, 0, fastcgi.encode_params(asked)))
    unpacked = fastcgi.unpack_record(event.data)
    assert unpacked is not None and unpacked[1][:2] == (RecordType.GET_VALUES_RESULT, 0)
    values = [(b"FCGI_MAX_CONNS", b"7"), (b"FCGI_MAX_REQS", b"9"), (b"FCGI_MPXS_CONNS", b"0")]
    assert fastcgi.decode_params(unpacked[1].content) == values
    (event,) = parser.feed(fastcgi.pack_record(99, 0))
    assert event.data == fastcgi.pack_record(RecordType.UNKNOWN_TYPE, 0, bytes((99, 0, 0, 0, 0, 0, 0, 0)))
    (event,) = parser.feed(begin(5, False, Role.AUTHORIZER))
    assert event.data == fastcgi.pack_end_request(5, 0, ProtocolStatus.UNKNOWN_ROLE)
    assert not event.keep_conn
    (event,) = parser.feed(begin(1, True) + params_records(GET))
    assert (event.type, event.request_id, event.keep_conn) == (EventType.PARAMS, 1, True)
    (event,) = parser.feed(begin(2, True))
    assert event.data == fastcgi.pack_end_request(2, 0, ProtocolStatus.CANT_MPX_CONN)
    (event,) = parser.feed(fastcgi.pack_record(RecordType.ABORT_REQUEST, 1))
    assert (event.type, event.request_id) == (EventType.ABORT, 1)


def test_too_many_params() -> None:
    """They are answered with 431, and the connection goes on."""
    parser = Parser(max_params=100)
    (event, *_) = parser.feed(begin(1, True) + params_records({"A": "x" * 200}))
    assert event.type is EventType.REPLY
    assert b"Status: 431 " in event.data and event.data.endswith(fastcgi.pack_end_request(1))
    (event,) = parser.feed(begin(1, True) + params_records({"A": "x"}))
    assert event.type is EventType.PARAMS


def test_no_fastcgi() -> None:
    """A client of HTTP that has come to the wrong port; and it stays an error."""
    parser = Parser()
    with pytest.raises(fastcgi.FastCGIError):
        parser.feed(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(fastcgi.FastCGIError):
        parser.feed(b"\x01")
