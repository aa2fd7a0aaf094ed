"""Header fields, some of which are frozen: as a mapping, by the rows that all languages share, and in an answer."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import sendgate
from rows import tomllib
from sendgate import FieldError, FrozenError, Headers, Request, Rule
from support import split

CASES = tomllib.loads((Path(__file__).resolve().parents[3] / "tests" / "header_lists.toml").read_text())["case"]
CODINGS = {"frozen": FrozenError, "field": FieldError}


def change(headers: Headers, step: list[str]) -> None:
    """One step of a row."""
    what, name, *values = step
    if what == "set":
        headers[name] = values[0]
    elif what == "add":
        headers.add(name, values[0])
    elif what == "remove":
        headers.pop(name, None)
    else:
        assert what == "freeze"
        headers.freeze(name)


@pytest.mark.parametrize("mode", ["raise", "ignore"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_row(case: dict[str, Any], mode: Any) -> None:
    """A step that is refused leaves everything as it was; ignoring mode says so only of what is malformed."""
    headers = Headers(frozen=mode)
    for step in case["steps"]:
        arguments = {"set": 3, "add": 3}.get(step[0], 2)
        error = step[arguments] if len(step) > arguments else None
        before = list(headers.items())
        if error is None or (error == "frozen" and mode == "ignore"):
            change(headers, step[:arguments])
        else:
            with pytest.raises(CODINGS[error]) as caught:
                change(headers, step[:arguments])
            assert caught.value.name == f"SENDGATE_ERR_{error.upper()}"
        if error is not None:
            assert list(headers.items()) == before
    assert [list(line) for line in headers.items()] == case["lines"]
    assert all(headers.is_frozen(name) for name in case.get("frozen", []))
    assert not any(headers.is_frozen(name) for name in case.get("open", []))


def test_there_are_rows() -> None:
    """A file that is empty would pass."""
    assert len(CASES) > 10


# ---- A mapping ----


def test_names_in_any_case_and_lines_in_their_order() -> None:
    """It counts names, and lists lines."""
    headers = Headers([("Vary", "A"), ("X", "1"), ("vary", "B")])
    assert (headers["VARY"], headers.get_all("vary"), headers["x"]) == ("A, B", ["A", "B"], "1")
    assert (len(headers), list(headers), list(headers.values())) == (2, ["Vary", "X"], ["A, B", "1"])
    assert list(headers.items()) == [("Vary", "A"), ("X", "1"), ("vary", "B")]
    assert len(headers.items()) == 3
    assert ("Vary", "A") in headers.items()
    assert ("Vary", "A, B") not in headers.items()
    assert "vARY" in headers
    assert b"vARY" in headers
    assert "Y" not in headers
    assert 1 not in headers
    assert headers.get("Y") is None
    assert headers.get_all("Y") == []
    with pytest.raises(KeyError):
        headers["Y"]


def test_cookies_are_not_joined() -> None:
    """A cookie's own comma could not be told from the one between two (RFC 6265 3)."""
    headers = Headers([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    assert (headers["set-cookie"], headers.get_all("Set-Cookie")) == ("a=1", ["a=1", "b=2"])


def test_made_of_anything() -> None:
    """Pairs, mappings, bytes, another one."""
    expected = [("A", "1"), ("B", "\xfc")]
    assert list(Headers([("A", "1"), (b"B", b"\xfc")]).items()) == expected
    assert list(Headers({"A": "1", "B": "\xfc"}).items()) == expected
    assert list(Headers(Headers(expected)).items()) == expected
    assert list(Headers().items()) == []


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("A", "\u0100", FieldError),
        ("\xe4", "1", FieldError),
        ("", "1", FieldError),
        ("A\n", "1", FieldError),
        ("A", "1\n", FieldError),
        (b"A", b"\0", FieldError),
        ("A", 1, TypeError),
        (1, "A", TypeError),
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(name: Any, value: Any, error: type[Exception]) -> None:
    """By whatever way it comes, and nothing else of it is taken either."""
    headers = Headers({"B": "1"})
    for attempt in (
        lambda: Headers([(name, value)]),
        lambda: headers.__setitem__(name, value),
        lambda: headers.add(name, value),
        lambda: headers.update([("B", "2"), (name, value)]),
    ):
        with pytest.raises(error):
            attempt()
    assert list(headers.items()) == [("B", "1")]


def test_removing() -> None:
    """As a dict does it."""
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3")])
    assert headers.pop("A") == "1, 3"
    assert headers.pop("A", None) is None
    with pytest.raises(KeyError):
        headers.pop("A")
    with pytest.raises(KeyError):
        del headers["A"]
    del headers["b"]
    assert len(headers) == 0
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3")])
    assert headers.popitem() == ("A", "1, 3")
    headers.clear()
    assert list(headers.items()) == []
    with pytest.raises(KeyError):
        headers.popitem()


def test_updating() -> None:
    """Of each name that is given all lines, in the place of those that were there."""
    headers = Headers([("A", "1"), ("B", "2"), ("A", "3")])
    headers.update([("a", "4"), ("C", "5"), ("a", "6")], D="7")
    assert list(headers.items()) == [("a", "4"), ("a", "6"), ("B", "2"), ("C", "5"), ("D", "7")]
    headers.update({"B": "8"})
    headers.update(Headers([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))
    assert headers["B"] == "8"
    assert headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert headers.setdefault("B", "9") == "8"
    assert headers.setdefault("E", "9") == "9"
    assert headers["e"] == "9"


def test_equal() -> None:
    """The same lines of the same names; in whose order the names come doesn't matter."""
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3")])
    assert headers == Headers([("B", "2"), ("a", "1"), ("A", "3")])
    assert headers != Headers([("B", "2"), ("A", "3"), ("A", "1")])
    assert Headers({"A": "1"}) == {"a": "1"}
    assert Headers({"A": "1"}) != {"a": 1}
    assert Headers({"A": "1"}) != [("A", "1")]
    frozen = Headers({"A": "1"})
    frozen.freeze("A", "B")
    assert frozen == Headers({"A": "1"})
    with pytest.raises(TypeError):
        hash(headers)


def test_shown() -> None:
    """With what is frozen."""
    headers = Headers({"A": "1"})
    assert repr(headers) == "<sendgate.Headers [('A', '1')]>"
    headers.freeze("A", "Content-Encoding")
    assert repr(headers) == "<sendgate.Headers [('A', '1')], frozen: a, content-encoding>"


# ---- Frozen ----


def frozen(mode: Any = "raise") -> Headers:
    """A is there and frozen, B is frozen and isn't there, C isn't frozen."""
    headers = Headers([("A", "1"), ("C", "2")], frozen=mode)
    headers.freeze("a", b"B")
    return headers


CHANGES = {
    "set": lambda headers: headers.__setitem__("A", "1"),
    "set absent": lambda headers: headers.__setitem__("B", "1"),
    "add": lambda headers: headers.add("A", "1"),
    "del": lambda headers: headers.__delitem__("A"),
    "del absent": lambda headers: headers.__delitem__("B"),
    "pop": lambda headers: headers.pop("A"),
    "pop absent": lambda headers: headers.pop("B", None),
    "update": lambda headers: headers.update(A="1"),
    "update absent": lambda headers: headers.update([("b", "1")]),
    "setdefault absent": lambda headers: headers.setdefault("B", "1"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_what_is_frozen(what: str) -> None:
    """It is refused by an exception or by silence, and nothing has changed."""
    headers = frozen()
    with pytest.raises(FrozenError) as caught:
        CHANGES[what](headers)
    assert (caught.value.status, caught.value.name) == (-20, "SENDGATE_ERR_FROZEN")
    assert headers == Headers([("A", "1"), ("C", "2")])
    headers.frozen = "ignore"
    CHANGES[what](headers)
    assert headers == Headers([("A", "1"), ("C", "2")])


def test_changing_several_at_once() -> None:
    """All or nothing if it is an exception; the others, if it is silence."""
    headers = frozen()
    with pytest.raises(FrozenError):
        headers.clear()
    with pytest.raises(FrozenError):
        headers.update(C="3", A="3")
    assert headers == Headers([("A", "1"), ("C", "2")])
    headers.frozen = "ignore"
    headers.update(C="3", A="3", B="3")
    assert headers == Headers([("A", "1"), ("C", "3")])
    headers.clear()
    assert headers == Headers({"A": "1"})
    with pytest.raises(KeyError):
        headers.popitem()


def test_what_is_no_change() -> None:
    """Reading, freezing again, and a default that isn't needed."""
    headers = frozen()
    assert headers.setdefault("A", "9") == "1"
    headers.freeze("A", "B")
    assert headers.popitem() == ("C", "2")
    assert headers.is_frozen(b"a")
    assert not headers.is_frozen("C")


def test_copies_are_frozen_too() -> None:
    """And independent of each other."""
    for made in (frozen("ignore").copy(), copy.copy(frozen("ignore")), Headers(frozen("ignore"))):
        assert (made.frozen, made.is_frozen("A"), made.is_frozen("B")) == ("ignore", True, True)
    original = frozen()
    made = Headers(original, frozen="ignore")
    made["C"] = "3"
    made.freeze("C")
    assert (original["C"], original.is_frozen("C"), original.frozen, made.frozen) == ("2", False, "raise", "ignore")


def test_modes() -> None:
    """There are two."""
    with pytest.raises(ValueError, match="ignore"):
        Headers(frozen="warn")  # type: ignore[arg-type]
    headers = Headers()
    with pytest.raises(ValueError, match="raise"):
        headers.frozen = ""  # type: ignore[assignment]
    with pytest.raises(TypeError):
        Headers({}, "ignore")  # type: ignore[call-arg]


# ---- In an answer ----


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One that has validators."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    os.utime(path, (784111777, 784111777))
    return path


def decided(file: Any, headers: Any, *fields: tuple[str, str], **arguments: Any) -> tuple[int, Headers]:
    """Status and fields of an answer."""
    decision = sendgate.decide(Request("GET", 11, fields), file, headers=headers, **arguments)
    return decision.status, Headers(decision.fields)


def test_what_is_frozen_as_absent_is_not_made_by_the_library(file: Path) -> None:
    """Whichever field of its own that is."""
    names = ("ETag", "Last-Modified", "Accept-Ranges", "Content-Type")
    assert all(name in decided(file, (), content_type="a/b")[1] for name in names)
    headers = Headers()
    headers.freeze(*names)
    status, fields = decided(file, headers, ("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"), content_type="a/b")
    assert status == 200
    assert not [name for name in names if name in fields]
    # An argument that says the same, or something else, doesn't change it.
    for value in (False, 0):
        assert "Last-Modified" not in decided(file, headers, last_modified=value)[1]


def test_what_is_frozen_as_present_survives(file: Path) -> None:
    """A 304 drops what describes the content, unless it is frozen."""
    headers = Headers({"ETag": '"a"', "Content-Language": "de", "Content-Encoding": "gzip"})
    headers.freeze("content-language")
    status, fields = decided(file, headers, ("If-None-Match", '"a"'))
    assert status == 304
    assert "Content-Language" in fields
    assert "Content-Encoding" not in fields


def test_several_lines_that_are_frozen(file: Path) -> None:
    """All of them are sent."""
    headers = Headers([("Digest", "a=1"), ("Digest", "b=2"), ("ETag", '"a"')])
    headers.freeze("Digest", "ETag")
    status, fields = decided(file, headers, ("If-None-Match", '"a"'))
    assert (status, fields.get_all("Digest"), fields["ETag"]) == (304, ["a=1", "b=2"], '"a"')


def test_framing_is_the_librarys(file: Path) -> None:
    """What a response says of it isn't put to the library, nor that it says nothing."""
    headers = Headers({"Content-Length": "5", "Connection": "close", "Keep-Alive": "a=1"})
    headers.freeze("Content-Length", "Transfer-Encoding", "Content-Range")
    status, fields = decided(file, headers)
    assert (status, fields["Content-Length"], "Keep-Alive" in fields) == (200, "10", False)


def test_rules(file: Path) -> None:
    """What the library is told."""
    headers = Headers([("A", "1"), ("B", "2"), ("B", "3"), ("C", "4"), ("Content-Length", "5")])
    headers.freeze("A", "B", "D")
    assert headers.rows() == [
        ("A", "1", Rule.OVERRIDE | Rule.FROZEN),
        ("B", "2", Rule.APPEND | Rule.FROZEN),
        ("B", "3", Rule.APPEND | Rule.FROZEN),
        ("C", "4", Rule.OVERRIDE),
        ("d", "", Rule.REMOVE | Rule.FROZEN),
    ]


def test_everywhere_headers_are_taken(file: Path) -> None:
    """Answers on a socket, and the calls of the RSGI proposal."""
    headers = Headers([("Vary", "A"), ("Vary", "B"), ("X", "1")])
    headers.freeze("X", "ETag")
    for send in (
        lambda sock: sendgate.respond(sock, None, file, headers=headers),
        lambda sock: sendgate.response_file_conditional(200, headers, file, sock=sock),
        lambda sock: sendgate.response_file_fd(200, headers, os.open(file, os.O_RDONLY), sock=sock),
    ):
        server, client = socket.socketpair()
        with server, client:
            send(server)
            server.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                head, _, body = stream.read().partition(b"\r\n\r\n")
        assert body == b"0123456789"
        assert (head.count(b"Vary: "), head.count(b"X: 1")) == (2, 1)


def test_servers_add_their_own_fields(file: Path) -> None:
    """Where the application doesn't say that itself, or has frozen that it isn't said."""
    from sendgate._answer import Answer

    headers = Headers({"X": "1"})
    headers.freeze("Server")
    exchange = Answer(Request(), file, headers=headers).exchange((("Server", "a"), ("Via", "b")), False, False)
    try:
        fields = split(exchange.decide().head)[1]
    finally:
        exchange.close()
    assert (fields["x"], "server" in fields, fields["via"]) == ("1", False, "b")
