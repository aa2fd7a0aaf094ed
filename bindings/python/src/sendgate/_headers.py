"""``Headers``: the fields of a response, of which some can be frozen."""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ._errors import bad_field, frozen
from ._types import Rule

if TYPE_CHECKING:
    from typing_extensions import Literal, TypeAlias

    from ._types import Text

    #: Whether a change of what is frozen is refused by an exception, or by silence.
    Mode: TypeAlias = Literal["raise", "ignore"]
    Fields: TypeAlias = "Iterable[tuple[Text, Text]] | Mapping[Text, Text] | Mapping[str, str] | Headers"

    _T = TypeVar("_T")
    _Line: TypeAlias = tuple[str, str, str]

#: RFC 9110 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: What ends a line, for somebody (RFC 9110 5.5).
_ENDS_LINE = re.compile(r"[\r\n\0]")

#: What the server says, whatever the application thinks of it (PEP 3333: hop-by-hop; RFC 9112 6).
_SERVERS_OWN = frozenset(("connection", "content-length", "keep-alive", "transfer-encoding"))

_MISSING: Any = object()


def _text(value: Text, what: str) -> str:
    """Characters up to U+00FF, each of which stands for its byte."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError(f"{what} must be str or bytes, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise bad_field(f"{what} has a character above U+00FF: {value!r}") from None
    return value


def _name(value: Text) -> str:
    name = _text(value, "a field name")
    if _TOKEN.fullmatch(name) is None:
        raise bad_field(f"a field name must be a token: {name!r}")
    return name


def _value(value: Text) -> str:
    text = _text(value, "a field value")
    if _ENDS_LINE.search(text) is not None:
        raise bad_field(f"a field value can't contain CR, LF or NUL: {text!r}")
    return text


def mode(value: str) -> Mode:
    """One of the two, or a ValueError."""
    if value not in ("raise", "ignore"):
        raise ValueError(f"frozen must be 'raise' or 'ignore', not {value!r}")
    return value  # type: ignore[return-value]


class _Lines(ItemsView[str, str]):
    """Every line, where a name may occur more than once."""

    def __init__(self, headers: Headers) -> None:
        super().__init__(headers)
        self._headers = headers

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, value) for _, name, value in self._headers._lines)

    def __len__(self) -> int:
        return len(self._headers._lines)

    def __contains__(self, item: object) -> bool:
        return any(item == line for line in self)


class Headers(MutableMapping[str, str]):
    """Header fields in their order; names in any case (RFC 9110 5.1), and of one name more than one line.

        headers = sendgate.Headers({"ETag": '"v1"'})
        headers.freeze("ETag", "Content-Encoding")
        headers["Content-Encoding"] = "gzip"   # FrozenError

    A mapping of each name to its value: ``headers[name]`` joins several lines by ", " (RFC 9110 5.3), but for those of
    Set-Cookie, which can't be joined, and of which it is the first. ``items()`` are all lines, and ``get_all(name)``
    those of one name. ``headers[name] = value`` puts one line into the place of all of them, ``add`` adds one.

    ``freeze`` keeps lines as they are, and an absence too. frozen: what a change of a frozen field does, even one to
    the same value: "raise" FrozenError, or "ignore" it, and do nothing. Either way everything is as it was. The
    attribute can be set. Equal are those with the same lines; that they are frozen doesn't count.

    fields: (name, value) pairs, or a mapping; of another Headers also what is frozen, and its mode if there is none
    here. str, in which a character up to U+00FF stands for a byte, or bytes. FieldError, which is a ValueError, is
    raised at once, and first: a name that is no token, or CR, LF or NUL in a value.
    """

    __slots__ = ("_frozen", "_lines", "_mode")

    def __init__(self, fields: Fields = (), *, frozen: Mode | None = None) -> None:
        #: Name in lower case, name, value.
        self._lines: list[_Line] = []
        #: Names in lower case.
        self._frozen: set[str] = set()
        self._mode: Mode = "raise"
        if isinstance(fields, Headers):
            self._lines = list(fields._lines)
            self._frozen = set(fields._frozen)
            self._mode = fields._mode
        else:
            self._lines = _lines(fields)
        if frozen is not None:
            self.frozen = frozen

    # ---- Freezing ----

    @property
    def frozen(self) -> Mode:
        """What a change of a frozen field does: "raise" or "ignore"."""
        return self._mode

    @frozen.setter
    def frozen(self, value: Mode) -> None:
        self._mode = mode(value)

    def freeze(self, *names: Text) -> None:
        """What there is of these names stays, and what there isn't of them stays away. Again does nothing."""
        self._frozen.update([_name(name).lower() for name in names])

    def is_frozen(self, name: Text) -> bool:
        """Whether it was frozen."""
        return _text(name, "a field name").lower() in self._frozen

    def _refuses(self, key: str, name: str) -> bool:
        """Whether nothing may be done to it; FrozenError, if that is to be said."""
        if key not in self._frozen:
            return False
        if self._mode == "raise":
            raise frozen(name)
        return True

    # ---- Reading ----

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        # RFC 6265 3: a cookie's comma can't be told from one between two.
        return values[0] if name.lower() == "set-cookie" else ", ".join(values)

    def get_all(self, name: str) -> list[str]:
        """The values of all lines of a name; empty: there is none."""
        key = _text(name, "a field name").lower()
        return [value for known, _, value in self._lines if known == key]

    def __contains__(self, name: object) -> bool:
        if isinstance(name, bytes):
            name = name.decode("latin-1")
        if not isinstance(name, str):
            return False
        key = name.lower()
        return any(known == key for known, _, _ in self._lines)

    def __iter__(self) -> Iterator[str]:
        # The first of each, and in a dict that is the one that stays.
        names: dict[str, str] = {}
        for key, name, _ in self._lines:
            names.setdefault(key, name)
        return iter(names.values())

    def __len__(self) -> int:
        return len({key for key, _, _ in self._lines})

    def items(self) -> ItemsView[str, str]:
        """Every line."""
        return _Lines(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Mapping):
            try:
                other = other if isinstance(other, Headers) else Headers(other)
            except (TypeError, ValueError):
                return False
            return _by_name(self) == _by_name(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        lines = [(name, value) for _, name, value in self._lines]
        frozen = f", frozen: {', '.join(sorted(self._frozen))}" if self._frozen else ""
        return f"<sendgate.Headers {lines!r}{frozen}>"

    # ---- Changing ----

    def __setitem__(self, name: Text, value: Text) -> None:
        line = _line(name, value)
        if not self._refuses(line[0], line[1]):
            self._replace(line[0], [line])

    def add(self, name: Text, value: Text) -> None:
        """One more line, behind all others."""
        line = _line(name, value)
        if not self._refuses(line[0], line[1]):
            self._lines.append(line)

    def __delitem__(self, name: Text) -> None:
        key = self._key(name)
        if not self._refuses(key, _text(name, "")):
            if key not in self:
                raise KeyError(name)
            self._replace(key, [])

    @overload
    def pop(self, name: str, /) -> str: ...
    @overload
    def pop(self, name: str, default: str, /) -> str: ...
    @overload
    def pop(self, name: str, default: _T, /) -> str | _T: ...
    def pop(self, name: str, default: Any = _MISSING, /) -> Any:
        """Remove all lines of a name, and return what ``headers[name]`` was. KeyError: none, and no default."""
        key = self._key(name)
        refused = self._refuses(key, name)
        value = self.get(name, default)
        if value is _MISSING:
            raise KeyError(name)
        if not refused:
            self._replace(key, [])
        return value

    def popitem(self) -> tuple[str, str]:
        """Remove a name that isn't frozen, and return it with its value. KeyError: there is none."""
        for name in self:
            if name.lower() not in self._frozen:
                return name, self.pop(name)
        raise KeyError("there is no field that can be removed")

    def clear(self) -> None:
        """Remove all lines; of those that are frozen none."""
        for key, name, _ in self._lines:
            self._refuses(key, name)
        self._lines = [line for line in self._lines if line[0] in self._frozen]

    def setdefault(self, name: str, default: Text = "") -> str:
        """The value, if there is one, or else set this one, and return it."""
        if name not in self:
            self[name] = default
        return self.get(name, _text(default, "a field value"))

    def update(self, fields: Fields = (), /, **named: Text) -> None:  # type: ignore[override]
        """Replace the lines of each name that is given by all that are given of it. An exception changes nothing."""
        given: dict[str, list[_Line]] = {}
        for line in [*_lines(fields), *_lines(named)]:
            given.setdefault(line[0], []).append(line)
        for key in [key for key, lines in given.items() if self._refuses(key, lines[0][1])]:
            del given[key]
        for key, lines in given.items():
            self._replace(key, lines)

    def copy(self) -> Headers:
        """The same lines, of which the same are frozen, in the same mode."""
        return Headers(self)

    __copy__ = copy

    def _key(self, name: Text) -> str:
        return _name(name).lower()

    def _replace(self, key: str, lines: list[_Line]) -> None:
        """Put these where the first line of that name was, and in the place of all; if there was none, at the end."""
        at = next((at for at, line in enumerate(self._lines) if line[0] == key), len(self._lines))
        rest = [line for line in self._lines if line[0] != key]
        self._lines = rest[:at] + lines + rest[at:]

    # ---- For the library ----

    def rows(self) -> list[tuple[str, str, int]]:
        """The fields with their rules, without those that are the library's own."""
        count: dict[str, int] = {}
        for key, _, _ in self._lines:
            count[key] = count.get(key, 0) + 1
        made: list[tuple[str, str, int]] = []
        for key, name, value in self._lines:
            if key not in _SERVERS_OWN:
                frozen = key in self._frozen
                rule = (
                    Rule.OVERRIDE if not frozen else (Rule.OVERRIDE if count[key] == 1 else Rule.APPEND) | Rule.FROZEN
                )
                made.append((name, value, rule))
        # That which part it is isn't said can't be asked for.
        absent = self._frozen - count.keys() - _SERVERS_OWN - {"content-range"}
        return made + [(key, "", Rule.REMOVE | Rule.FROZEN) for key in sorted(absent)]


def rows(headers: Any) -> list[Any]:
    """Fields that an application gives, as the library takes them: (name, value) or (name, value, rule)."""
    if isinstance(headers, Headers):
        return list(headers.rows())
    return list(headers.items() if hasattr(headers, "items") else headers)


def _line(name: Text, value: Text) -> _Line:
    checked = _name(name)
    return checked.lower(), checked, _value(value)


def _lines(fields: Any) -> list[_Line]:
    return [_line(name, value) for name, value in (fields.items() if hasattr(fields, "items") else fields)]


def _by_name(headers: Headers) -> dict[str, list[str]]:
    """What counts: the order of lines counts within one name (RFC 9110 5.3)."""
    made: dict[str, list[str]] = {}
    for key, _, value in headers._lines:
        made.setdefault(key, []).append(value)
    return made
