"""``FreezeMixin``: a response of Django of which some headers, or all of the content, can't be changed any more."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import django
from django.http import HttpResponse as DjangoHttpResponse
from django.http import StreamingHttpResponse as DjangoStreamingHttpResponse
from django.http.response import HttpResponseBase, ResponseHeaders

from ._adapters import check_hooks
from ._errors import frozen as frozen_error
from ._headers import mode

if TYPE_CHECKING:
    from ._headers import Mode

KNOWN = f"sendgate.django, which works with Django 4.2 to 6.1, not {django.get_version()},"
check_hooks(KNOWN, HttpResponseBase, "headers", "_handler_class", "_resource_closers", "make_bytes")
check_hooks(KNOWN, ResponseHeaders, "_store")
check_hooks(KNOWN, DjangoHttpResponse, "content")
# From 4.2 on a response that streams may be asynchronous.
check_hooks(KNOWN, DjangoStreamingHttpResponse, "_set_streaming_content", "__aiter__", "close")

#: What goes with the content, and is frozen with it; and so does Content-Length.
_OF_THE_CONTENT = (
    "Accept-Ranges", "Content-Encoding", "Content-Range", "ETag", "Last-Modified",
)  # fmt: skip
#: Where responses of Django, and those of this package, keep their content.
_CONTENT = ("_container", "_iterator", "_replaced", "file_to_stream", "is_async")

_MISSING: Any = object()


class _Store(dict[str, "tuple[str, str]"]):
    """Where ResponseHeaders keeps its fields, by name in lower case. All ways to change one lead here."""

    def __init__(
        self, items: Iterable[tuple[str, tuple[str, str]]] = (), frozen: frozenset[str] = frozenset(), owner: Any = None
    ) -> None:
        super().__init__(items)
        self.frozen = frozen
        #: The response; weak, so that one that is dropped is gone at once.
        self._owner = None if owner is None else weakref.ref(owner)

    def __reduce__(self) -> Any:
        return _Store, (list(self.items()), self.frozen)

    def _refuses(self, key: str, value: tuple[str, str] | None = None) -> bool:
        if key not in self.frozen:
            return False
        owner = None if self._owner is None else self._owner()
        if owner is not None:
            owner._refuse_header(key, value)
        return True

    def __setitem__(self, key: str, value: tuple[str, str]) -> None:
        if not self._refuses(key, value):
            super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        if not self._refuses(key):
            super().__delitem__(key)

    def pop(self, key: str, default: Any = _MISSING) -> Any:
        if self._refuses(key):
            return self.get(key, default) if default is not _MISSING else self[key]
        return super().pop(key) if default is _MISSING else super().pop(key, default)

    def popitem(self) -> tuple[str, tuple[str, str]]:
        for key in reversed(self):
            if not self._refuses(key):
                return key, super().pop(key)
        raise KeyError("popitem(): nothing is left that isn't frozen")

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self.get(key, default)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(other)
        return self

    def clear(self) -> None:
        for key in list(self):
            if not self._refuses(key):
                super().__delitem__(key)


class _Headers(ResponseHeaders):  # type: ignore[misc]
    """Django's own, but that a frozen absence can be read.

    Middleware that has been told that a field is there (see ``FreezeMixin.has_header``) reads it next, and must not
    fail because of that.
    """

    def __init__(self, store: _Store) -> None:
        self._store = store

    def __reduce__(self) -> Any:
        return _Headers, (self._store,)

    def __getitem__(self, key: str) -> str:
        name = key.lower()
        entry = self._store.get(name)
        if entry is not None:
            return entry[1]
        if name in self._store.frozen:
            return ""
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._store

    def get(self, key: str, default: Any = None) -> Any:
        """The value; default: it isn't there, frozen or not."""
        entry = self._store.get(key.lower())
        return default if entry is None else entry[1]


class FreezeMixin(HttpResponseBase):  # type: ignore[misc]
    """For any class of responses: headers and content that middleware can't change.

        class TextResponse(FreezeMixin, TemplateResponse): ...

    frozen: what becomes of an attempt to change what is frozen, even to the same value. "ignore": nothing happens;
    Django's middleware changes headers unconditionally, and must not fail. "raise": FrozenError, to find out who does.
    The argument goes before the class's attribute of that name.
    """

    frozen: Mode = "ignore"

    status_code: int
    _fields: _Headers

    _content_frozen = False
    #: The content and its headers, as they were before the content was replaced for the last time.
    _before: tuple[dict[str, Any], dict[str, tuple[str, str]]] | None = None
    #: Whether there is other content now than the view has given.
    _replaced = False

    def __init__(self, *args: Any, frozen: Mode | None = None, **kwargs: Any) -> None:
        if frozen is not None:
            self.frozen = mode(frozen)
        super().__init__(*args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or one that a cache has kept: its headers are its own."""
        self.__dict__.update(state)
        store: Any = self._fields._store
        self._fields = _Headers(_Store(store.items(), store.frozen, self))
        # To close something is the original's.
        self._resource_closers: list[Any] = []

    # ---- Headers ----

    def freeze_header(self, *names: str) -> None:
        """What there is of these headers stays as it is; what there is not of them, nobody may add. Again does nothing.

        Of a header that is frozen while it is absent, ``has_header`` says that it is there: most middleware asks before
        it adds one, GZipMiddleware for Content-Encoding, and then leaves the response alone from the start.
        """
        self._fields._store.frozen |= {name.lower() for name in names}

    def header_is_frozen(self, name: str) -> bool:
        """Whether it was."""
        return name.lower() in self._fields._store.frozen

    def has_header(self, header: str) -> bool:
        """Whether nobody needs to add it: it is there, or it is frozen. ``in`` tells what is there."""
        return header in self.headers or self.header_is_frozen(header)

    def __contains__(self, header: object) -> bool:
        return header in self.headers

    @property
    def headers(self) -> _Headers:
        """As Django's. What is frozen stays when they are replaced as a whole."""
        return self._fields

    @headers.setter
    def headers(self, given: Mapping[str, str]) -> None:
        fresh = given if isinstance(given, ResponseHeaders) else ResponseHeaders(given)
        items: dict[str, tuple[str, str]] = dict(fresh._store)
        frozen: frozenset[str] = frozenset()
        if "_fields" in self.__dict__:
            store = self._fields._store
            frozen = store.frozen
            kept = {key: store[key] for key in frozen if key in store}
            for key in sorted(frozen):
                if items.pop(key, None) != kept.get(key):
                    self._refuse_header(key, None)
            items.update(kept)
        self._fields = _Headers(_Store(items.items(), frozen, self))

    def _refuse_header(self, key: str, value: tuple[str, str] | None) -> None:
        """Somebody wants to change a frozen header; value: what it shall be."""
        if self.frozen == "raise":
            raise frozen_error(key)
        if key == "content-encoding" and value is not None and value[1].lower() != "identity":
            # Who names a coding has put coded content into the place of the other, or is about to.
            self._restore()
        elif key == "content-length" and self._before is not None and self._fields._store.get(key, value) != value:
            # Who removes or changes the length has put longer or shorter content there.
            self._restore()

    # ---- Content ----

    def freeze_content(self) -> None:
        """Nobody may change the content, nor Content-Length, Content-Encoding, Content-Range, Accept-Ranges, ETag and
        Last-Modified. Content-Length is set before, unless it is there, of content that is.
        """
        later = not getattr(self, "is_rendered", True)
        if later:
            self.add_post_render_callback(FreezeMixin._freeze_length)
        else:
            self._freeze_length()
        self._content_frozen = True
        self.freeze_header(*_OF_THE_CONTENT)

    def _freeze_length(self) -> None:
        there = not self.streaming and getattr(self, "_iterator", None) is None
        # RFC 9110 8.6: a 304 would have that of another content.
        if there and self.status_code not in (204, 304) and "Content-Length" not in self.headers:
            self.headers["Content-Length"] = str(len(self.content))
        self.freeze_header("Content-Length")

    def content_is_frozen(self) -> bool:
        """Whether it was."""
        return self._content_frozen

    def _frozen_parts(self) -> Callable[[FreezeMixin], None]:
        """What freezes the same of another response as is frozen of this one now. For this package."""
        names, content, how = self._fields._store.frozen, self._content_frozen, self.frozen

        def freeze(other: FreezeMixin) -> None:
            other.frozen = how
            other.freeze_header(*names)
            other._content_frozen = content

        return freeze

    @property
    def content(self) -> Any:
        """As the class has it."""
        return super().content

    @content.setter
    def content(self, value: Any) -> None:
        if self._replaces_content():
            self._set_content(value)

    def _set_content(self, value: Any) -> None:
        super(FreezeMixin, type(self)).content.__set__(self, value)

    def write(self, content: Any) -> None:
        """As the class has it."""
        if self._replaces_content():
            super().write(content)

    def _set_streaming_content(self, value: Any) -> None:
        if self._replaces_content():
            super()._set_streaming_content(value)

    def _replaces_content(self) -> bool:
        """Somebody changes the content: whether that is allowed."""
        if "_container" not in self.__dict__ and "_iterator" not in self.__dict__:
            return True  # the first
        if not getattr(self, "is_rendered", True):
            return True  # it is this that was frozen
        if self._content_frozen:
            if self.frozen == "raise":
                raise frozen_error("the content")
            return False
        if self.header_is_frozen("Content-Encoding") or self.header_is_frozen("Content-Length"):
            self._before = self._state()
        self._replaced = True
        return True

    def _state(self) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
        kept = {name: self.__dict__[name] for name in _CONTENT if name in self.__dict__}
        if kept.get("_container") is not None:
            kept["_container"] = list(kept["_container"])  # write() makes it longer
        store = self._fields._store
        return kept, {key: store[key] for key in ("content-length", "etag") if key in store}

    def _restore(self) -> None:
        """Content that is coded without saying so would be wrong. What was there before comes back, and stays."""
        before, self._before = self._before, None
        if before is not None:
            content, headers = before
            for name in (*_CONTENT, "text"):
                self.__dict__.pop(name, None)
            self.__dict__.update(content)
            store = self._fields._store
            for key in ("content-length", "etag"):
                # Also what has become frozen in between: it was of the other content.
                dict.pop(store, key, None)
                if key in headers:
                    dict.__setitem__(store, key, headers[key])
        self.freeze_content()
