"""``Lane``: answers a request for a file of a folder straight from the bytes of its head.

For the thread in which a server waits for requests. What a static file's answer needs is known before the server has
made a request, an environment and a response of those bytes; so nothing of that is made: one parse, one open with its
fstat, and one submit, with structs that are made once. Whatever isn't the plain case is declined, and goes the server's
own way, with the same answer.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from sendgate._native import ffi, lib

from ._core import _EXCHANGE, _REP, _REQUEST, _RESULT, _SINK, _headers, _new, _set_str
from ._sender import Sender, _Submitted
from ._site import _FRESH, _REMEMBERED, Site, acceptable
from ._types import Connection

if TYPE_CHECKING:
    from ._site import Coding
    from ._types import Text

#: What the If- fields and Range of a head take that has them in several lines.
_SCRATCH = 4096
_ACCEPT_ENCODING = re.compile(rb"\naccept-encoding:[ \t]*([^\r\n]*)", re.IGNORECASE)
#: Between the two no segment is empty, "." or "..", or begins with a dot.
_UNUSUAL = re.compile(rb"//|/\.|\0")


class _Prepared:
    """What can be said of a file's answer before there is a request."""

    def __init__(
        self, path: bytes, content_type: str, fields: tuple[tuple[str, str], ...], own: tuple[tuple[Text, Text], ...]
    ) -> None:
        #: Beneath the folder.
        self.path = path
        self.content_type = content_type
        #: Without the server's own.
        self.fields = fields
        self._keep: list[Any] = []
        given = {name.lower() for name, _ in fields}
        rows = (*fields, *(field for field in own if field[0].lower() not in given))
        self.headers, self.n_headers = _headers(rows, [], self._keep)
        self._type = ffi.new("sendgate_str *")
        _set_str(self._type, content_type.encode("latin-1"), self._keep)
        self.c_type = self._type[0]
        #: Of which there is a file, too.
        self.codings: tuple[Coding, ...] = ()
        self.until = time.monotonic() + _FRESH


class Lane:
    """One folder's, for one thread.

    prefix: the path that stands for the folder, with a slash at both ends. fields: the server's own. idle_ms, copy: as
    in the sink and the representation.
    """

    def __init__(
        self,
        site: Site,
        prefix: str,
        sender: Sender,
        *,
        fields: tuple[tuple[Text, Text], ...] = (),
        idle_ms: int = 60000,
        copy: bool = False,
    ) -> None:
        self._site = site
        self._prefix = prefix.encode("latin-1")
        self._sender = sender
        self._fields = fields
        self._open_flags = lib.SENDGATE_OPEN_OUTSIDE if site._outside else 0
        self._rep_flags = lib.SENDGATE_REP_COPY if copy else 0
        #: By path as it was asked for, and by that and an Accept-Encoding.
        self._known: dict[bytes | tuple[bytes, bytes], _Prepared] = {}
        self._request = _new(_REQUEST)
        self._scratch = ffi.new("char[]", _SCRATCH)
        self._needed = ffi.new("size_t *")
        self._length = ffi.new("size_t *")
        self._tag = ffi.new("char[]", lib.SENDGATE_ETAG_MAX)
        self._fd = ffi.new("int32_t *")
        self._errno = ffi.new("int32_t *")
        self._rep = _new(_REP)
        self._exchange = _new(_EXCHANGE)
        self._exchange.request = self._request
        self._exchange.rep = self._rep
        self._sink = _new(_SINK)
        self._sink.idle_timeout_ms = idle_ms
        self._sink.flags = lib.SENDGATE_SINK_TRY_NOW
        self._id = ffi.new("uint64_t *")
        self._result = _new(_RESULT)

    def answer(self, fd: int, data: bytes, token: Any) -> tuple[int, Connection] | None:
        """Answer what these bytes ask for, on a non-blocking socket.

        Returns the submit's id, or 0 if the answer has ended, and what became of the connection. None: declined, and
        nothing was done.
        """
        request, length = self._request, self._length
        head = ffi.from_buffer(data)
        code = lib.sendgate_request_from_head(request, head, len(data), self._scratch, _SCRATCH, self._needed, length)
        # Content, and what follows the head, is for the server to read.
        if code != lib.SENDGATE_OK or length[0] != len(data) or request.flags & lib.SENDGATE_REQUEST_HAS_BODY:
            return None
        if ffi.buffer(request.method.ptr, request.method.len)[:] not in (b"GET", b"HEAD"):
            return None
        path = ffi.buffer(request.target.ptr, request.target.len)[:].partition(b"?")[0]
        prepared = self._prepared(path, data)
        if prepared is None:
            return None
        rep, opened = self._rep, self._fd
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
            self._known.pop(path, None)
            return None
        try:
            rep.content_type = prepared.c_type
            rep.flags |= self._rep_flags
            self._exchange.headers = prepared.headers
            self._exchange.n_headers = prepared.n_headers
            self._sink.fd = fd
            return self._submit(token)
        finally:
            os.close(opened[0])

    def _submit(self, token: Any) -> tuple[int, Connection] | None:
        """What Sender._submit does, with the structs that there are."""
        sender, given, result = self._sender, self._id, self._result
        submitted = _Submitted(token, None)
        key = id(submitted)
        sender._submitted[key] = submitted
        given[0] = 0
        name = ffi.cast("void *", key)
        code = lib.sendgate_sender_submit(sender._use(), self._exchange, self._sink, name, given, result)
        if given[0] == 0:
            del sender._submitted[key]
            if code < 0 and result.connection == Connection.UNTOUCHED:
                return None
        return given[0], Connection(result.connection)

    def _prepared(self, path: bytes, data: bytes) -> _Prepared | None:
        """What is known of the file that a path means; None if there is none."""
        prepared = self._known.get(path)
        if prepared is None or prepared.until < time.monotonic():
            prepared = self._prepare(path)
            if prepared is None:
                return None
        if prepared.codings:
            field = _ACCEPT_ENCODING.search(data)
            if field is not None:
                return self._coded(path, prepared, field[1])
        return prepared

    def _prepare(self, asked: bytes) -> _Prepared | None:
        """Look for the file as ``Files`` would, and remember what was found."""
        self._known.pop(asked, None)
        path = unquote_to_bytes(asked)
        if not path.startswith(self._prefix) or _UNUSUAL.search(path):
            return None
        path = path[len(self._prefix) :]
        try:
            found = self._site.find(path, None)
        except OSError:
            return None
        if found is None:
            return None
        found.close()
        if found.status != 200:
            return None
        if not path or path.endswith(b"/"):
            path += self._site._index or b""
        known = self._site._known.get(path)
        prepared = _Prepared(path, found.content_type, found.fields, self._fields)
        prepared.codings = () if known is None else known.codings
        return self._remember(asked, prepared)

    def _coded(self, asked: bytes, plain: _Prepared, accept: bytes) -> _Prepared:
        """The file beside it that a client wants rather, if there is one."""
        coded = self._known.get((asked, accept))
        if coded is not None and coded.until >= plain.until:
            return coded
        wanted = acceptable(accept.decode("latin-1"), plain.codings)
        if not wanted:
            return plain
        name, suffix = wanted[0]
        fields = (*plain.fields, ("Content-Encoding", name))
        coded = _Prepared(plain.path + suffix, plain.content_type, fields, self._fields)
        return self._remember((asked, accept), coded)

    def _remember(self, key: bytes | tuple[bytes, bytes], prepared: _Prepared) -> _Prepared:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = prepared
        return prepared
