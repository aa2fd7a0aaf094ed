"""``FastPath``, ``ParamsFastPath``: answer a request for a file of a folder straight from the bytes of its head, or
from the parameters of a FastCGI request.

For the thread in which a server waits for requests. What a static file's answer needs is known before the server has
made a request, an environment and a response of those bytes; so nothing of that is made: one parse, one open with its
fstat, and one submit, with structs that are made once. Only requests of the plainest form are answered, on which all
parsers agree; everything else is declined, and goes the server's own way.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from sendgate._native import ffi, lib

from ._answer import with_own
from ._core import _ENVIRON_KEYS, _REQUEST, Request, _error, _headers, _new, _set_str
from ._sender import Sender, _Reused
from ._site import _REMEMBERED, Known, Mount, acceptable
from ._types import Connection, HeadForm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import TypeAlias

    from ._core import Channel
    from ._errors import SendgateError
    from ._site import Coding
    from ._types import Header

    #: A path as it was asked for, and the suffix of the file beside it that is sent instead.
    Key: TypeAlias = "tuple[bytes, bytes]"

#: What the If- fields and Range of a head take that has them in several lines.
_SCRATCH = 4096
#: A head that nobody could read in another way, and in which nothing is asked for but a file (RFC 9112 2.2, 3, 5).
_PLAIN = re.compile(
    rb"(?-i:GET|HEAD) /[a-z0-9._~!$&'()*+,;=:@%/?-]* (?-i:HTTP)/1\.[01]\r\n"
    rb"(?:(?!content-|expect:|transfer-encoding:|upgrade:)[a-z0-9-]+:[\t -~\x80-\xff]*\r\n)+\r\n",
    re.IGNORECASE,
)
_ACCEPT_ENCODING = re.compile(rb"\naccept-encoding:[ \t]*([^\r\n]*)", re.IGNORECASE)
#: Between the two no segment is empty, "." or "..", or begins with a dot.
_UNUSUAL = re.compile(rb"//|/\.|\0")


class _Prepared:
    """What can be said of a file's answer before there is a request."""

    def __init__(self, key: Key, known: Known, path: bytes, fields: tuple[Header, ...]) -> None:
        self.key = key
        self.known = known
        #: Beneath the folder.
        self.path = path
        self._keep: list[Any] = []
        self.headers, self.n_headers = _headers(fields, [], self._keep)
        self._type = ffi.new("sendgate_str *")
        _set_str(self._type, known.content_type.encode("latin-1"), self._keep)
        self.content_type = self._type[0]


class _FastPath:
    """One folder's, for one thread. fields: the server's own. idle_ms, copy: as in the sink and the
    representation.
    """

    def __init__(
        self,
        mount: Mount,
        sender: Sender,
        *,
        fields: tuple[Header, ...] = (),
        idle_ms: int = 60000,
        copy: bool = False,
    ) -> None:
        self._site = site = mount.site
        self._prefix = mount.prefix
        self.sender = sender
        self._fields = fields
        self._open_flags = lib.SENDGATE_OPEN_OUTSIDE if site._outside else 0
        self._rep_flags = lib.SENDGATE_REP_COPY if copy else 0
        self._prepared: dict[Key, _Prepared] = {}
        self._tag = ffi.new("char[]", lib.SENDGATE_ETAG_MAX)
        self._fd = ffi.new("int32_t *")
        self._errno = ffi.new("int32_t *")
        self._reused = _Reused(idle_ms)

    def _submit(self, fd: int, prepared: _Prepared, token: Any) -> tuple[int, Connection] | None:
        """Open the file, and have it sent. See ``answer``."""
        reused, opened = self._reused, self._fd
        rep = reused.rep
        code = lib.sendgate_open(
            self._site._fd,
            prepared.path,
            self._open_flags,
            self._tag,
            lib.SENDGATE_ETAG_MAX,
            opened,
            rep,
            self._errno,
        )
        if code != lib.SENDGATE_OK:
            # Removed, or no descriptors are left: the server says what there is to say.
            self._prepared.pop(prepared.key, None)
            return None
        try:
            rep.content_type = prepared.content_type
            rep.flags |= self._rep_flags
            reused.exchange.headers = prepared.headers
            reused.exchange.n_headers = prepared.n_headers
            reused.sink.fd = fd
            id, code = reused.submit(self.sender, token)
        finally:
            # Nothing was written to it, and the answer is on its way.
            with contextlib.suppress(OSError):
                os.close(opened[0])
        connection = Connection(reused.result.connection)
        return None if code < 0 and connection is Connection.UNTOUCHED else (id, connection)

    @property
    def http_status(self) -> int:
        """Of the last answer."""
        return int(self._reused.result.http_status)

    @property
    def error(self) -> SendgateError | None:
        """Of the last answer."""
        result = self._reused.result
        return _error(result.status, sys_errno=result.sys_errno) if result.status < 0 else None

    def _path(self, asked: bytes) -> bytes:
        """What was asked for, decoded."""
        raise NotImplementedError

    def _find(self, asked: bytes) -> _Prepared | None:
        """What is known of the file that a path means; None if there is none."""
        prepared = self._prepared.get((asked, b""))
        if prepared is None or prepared.known.until < time.monotonic():
            return self._prepare(asked)
        return prepared

    def _wanted(self, asked: bytes, plain: _Prepared, accept_encoding: str) -> _Prepared:
        """That file, or the one beside it that the client likes better."""
        wanted = acceptable(accept_encoding, plain.known.codings)
        return self._coded(asked, plain.known, wanted[0]) if wanted else plain

    def _prepare(self, asked: bytes) -> _Prepared | None:
        """Look for the file as ``Files`` would, and remember what was found."""
        path = self._path(asked)
        if not path.startswith(self._prefix) or _UNUSUAL.search(path):
            return None
        known = self._know(path[len(self._prefix) :])
        return None if known is None else self._remember((asked, b""), known, known.path, known.fields)

    def _know(self, path: bytes) -> Known | None:
        """What ``Files`` knows of a path beneath the folder."""
        known = self._site.remembered(path)
        # The application's own functions are called where the server calls the application.
        if known is not None or self._site.has_functions:
            return known
        try:
            found = self._site.find(path, None)
        except OSError:
            return None  # a directory without its slash, say
        if found is None:
            return None
        found.close()
        return found.known

    def _coded(self, asked: bytes, known: Known, coding: Coding) -> _Prepared:
        """The file beside it."""
        prepared = self._prepared.get((asked, coding[1]))
        if prepared is not None and prepared.known is known:
            return prepared
        return self._remember((asked, coding[1]), known, known.path + coding[1], known.coded(coding))

    def _remember(self, key: Key, known: Known, path: bytes, fields: tuple[tuple[str, str], ...]) -> _Prepared:
        if len(self._prepared) >= _REMEMBERED:
            self._prepared.clear()
        prepared = self._prepared[key] = _Prepared(key, known, path, with_own(fields, self._fields))
        return prepared


class FastPath(_FastPath):
    """For a server of HTTP."""

    def __init__(self, mount: Mount, sender: Sender, **arguments: Any) -> None:
        super().__init__(mount, sender, **arguments)
        self._request = _new(_REQUEST)
        self._scratch = ffi.new("char[]", _SCRATCH)
        self._needed = ffi.new("size_t *")
        self._length = ffi.new("size_t *")
        self._reused.exchange.request = self._request

    def answer(self, fd: int, data: bytes, token: Any) -> tuple[int, Connection] | None:
        """Answer what these bytes ask for, on a non-blocking socket.

        Returns the submit's id, or 0 if the answer has ended, and what became of the connection. None: declined, and
        nothing was done.
        """
        if _PLAIN.fullmatch(data) is None:
            return None
        request, length = self._request, self._length
        head = ffi.from_buffer(data)
        code = lib.sendgate_request_from_head(request, head, len(data), self._scratch, _SCRATCH, self._needed, length)
        if code != lib.SENDGATE_OK or length[0] != len(data):
            return None
        asked = ffi.buffer(request.target.ptr, request.target.len)[:].partition(b"?")[0]
        prepared = self._find(asked)
        if prepared is not None and prepared.known.codings:
            accepted = _ACCEPT_ENCODING.findall(data)
            if len(accepted) > 1:
                return None
            if accepted:
                prepared = self._wanted(asked, prepared, accepted[0].decode("latin-1"))
        return None if prepared is None else self._submit(fd, prepared, token)

    def _path(self, asked: bytes) -> bytes:
        return unquote_to_bytes(asked)


#: The fields that count, as a front server calls them.
_PARAMS = tuple((key.encode(), name) for key, name in _ENVIRON_KEYS)


class ParamsFastPath(_FastPath):
    """For a FastCGI server."""

    def __init__(self, mount: Mount, sender: Sender, **arguments: Any) -> None:
        super().__init__(mount, sender, **arguments)
        self._reused.exchange.head = HeadForm.CGI

    def answer(self, channel: Channel, params: Mapping[bytes, bytes], token: Any) -> tuple[int, Connection] | None:
        """Answer a request without content. Returns what ``FastPath.answer`` does."""
        method = params.get(b"REQUEST_METHOD")
        if method not in (b"GET", b"HEAD"):
            return None
        # See make_environ.
        path = params[b"PATH_INFO"] if b"PATH_INFO" in params else params.get(b"SCRIPT_NAME", b"")
        prepared = self._find(path)
        if prepared is None:
            return None
        if prepared.known.codings:
            prepared = self._wanted(path, prepared, params.get(b"HTTP_ACCEPT_ENCODING", b"").decode("latin-1"))
        # Not request_from_params, which makes an array of what it is given: as a rule there is no field that counts.
        lines = [(name, params[key]) for key, name in _PARAMS if key in params]
        version = params.get(b"SERVER_PROTOCOL", b"HTTP/1.1").decode("latin-1")
        request = Request(method, version, lines, has_body=False)
        reused = self._reused
        # For as long as this call takes.
        reused.exchange.request = request._c
        reused.sink.fcgi_request_id = channel.request_id
        reused.sink.flags = lib.SENDGATE_SINK_TRY_NOW | channel._flags
        return self._submit(channel.fileno(), prepared, token)

    def _path(self, asked: bytes) -> bytes:
        return asked
