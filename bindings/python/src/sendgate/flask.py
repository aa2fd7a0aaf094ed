"""Flask: files answered by the library, with all of RFC 9110's conditions and ranges.

    from sendgate.flask import send_file, send_from_directory

in the place of those of ``flask``. They take the same arguments, and return a response as those do: its fields and its
status may be changed before it is sent, and after-request functions see it. What is decided when it is sent, on any
WSGI server, is whether that is all of the file, a part of it, or a 304. On the servers of this package it leaves by
sendfile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

from flask import Response, current_app
from werkzeug.exceptions import NotFound
from werkzeug.utils import send_file as _send_file

from ._answer import Answer
from ._core import File, open_beneath
from ._errors import NotRegularError
from ._site import NOT_FOUND
from .wsgi import FileWrapper, Gateway, send

if TYPE_CHECKING:
    from ._types import ExchangeArguments
    from .wsgi import Environ, StartResponse

__all__ = ["send_file", "send_from_directory"]


class _FileResponse(Response):
    """A response whose content the library sends, unless somebody has put another one in its place."""

    _file: FileWrapper | None = None
    #: With what arguments conditions and ranges are evaluated; None: they are not.
    _arguments: ExchangeArguments | None = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._file is None or self.response is not self._file:
            return super().__call__(environ, start_response)
        gateway = Gateway(environ, start_response, self._arguments)
        answer = gateway.call(self._whole)
        return send(answer, environ, start_response, gateway.wrapper) if type(answer) is Answer else answer

    def _whole(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """PEP 3333, with the file as it is: also for HEAD, where Werkzeug would leave it out."""
        start_response(self.status, self.get_wsgi_headers(environ).to_wsgi_list())
        file = self._file
        if file is None:
            return []
        # Werkzeug runs what was given to call_on_close when the response is closed, and closes the file with it.
        sent = FileWrapper(file.filelike, file.block_size)
        sent._close = self.close
        return sent


#: By the application's own class of responses, the class that sends files so.
_CLASSES: dict[type[Response], type[_FileResponse]] = {Response: _FileResponse}


def _response_class(base: type[Response]) -> type[_FileResponse]:
    made = _CLASSES.get(base)
    if made is None:
        made = _CLASSES[base] = type(base.__name__, (_FileResponse, base), {})
    return made


def send_file(
    path_or_file: str | os.PathLike[str] | IO[bytes] | File,
    mimetype: str | None = None,
    as_attachment: bool = False,
    download_name: str | None = None,
    conditional: bool = True,
    etag: bool | str = True,
    last_modified: datetime | float | None = None,
    max_age: int | Callable[[str | None], int | None] | None = None,
) -> Response:
    """As ``flask.send_file``: a response with a file.

    path_or_file: a path, relative to the application's root_path, which must not be a client's choice; a file opened in
    binary mode; or a ``sendgate.File``. It is sent from its position on, and closed. etag: True is the library's own,
    of a file; last_modified: None is the file's. conditional=False: conditions and ranges are not evaluated, and
    nothing of the library's is added. All other arguments, and what they raise, are Flask's.
    """
    if not isinstance(path_or_file, (str, os.PathLike)):
        return _response(
            path_or_file, None, mimetype, as_attachment, download_name, conditional, etag, last_modified, max_age
        )
    path = os.path.join(current_app.root_path, path_or_file)
    return _response(
        open(path, "rb", buffering=0),
        path,
        mimetype,
        as_attachment,
        download_name,
        conditional,
        etag,
        last_modified,
        max_age,
    )


def send_from_directory(
    directory: str | os.PathLike[str],
    path: str | os.PathLike[str],
    mimetype: str | None = None,
    as_attachment: bool = False,
    download_name: str | None = None,
    conditional: bool = True,
    etag: bool | str = True,
    last_modified: datetime | float | None = None,
    max_age: int | Callable[[str | None], int | None] | None = None,
    *,
    follow_symlinks: bool = False,
) -> Response:
    """As ``flask.send_from_directory``: a response with a file beneath a directory, whose path a client may choose.

    NotFound (404): there is none, it is no regular file, or the path leads out of the directory; so does a symbolic
    link, unless follow_symlinks allows that.
    """
    place = -1
    try:
        place = os.open(os.path.join(current_app.root_path, directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        file = open_beneath(place, path, outside=follow_symlinks)
    except OSError as error:
        if error.errno not in NOT_FOUND:
            raise
        raise NotFound from None
    except (NotRegularError, ValueError):
        raise NotFound from None
    finally:
        if place >= 0:
            os.close(place)
    return _response(
        file, os.fspath(path), mimetype, as_attachment, download_name, conditional, etag, last_modified, max_age
    )


def _response(
    file: Any,
    path: str | None,
    mimetype: str | None,
    as_attachment: bool,
    download_name: str | None,
    conditional: bool,
    etag: bool | str,
    last_modified: datetime | float | None,
    max_age: int | Callable[[str | None], int | None] | None,
) -> Response:
    """The response that Werkzeug makes, with our file in it. An exception closes a file that has a path."""
    try:
        if max_age is None:
            max_age = current_app.get_send_file_max_age
        response = _send_file(
            file,
            {},
            mimetype,
            as_attachment,
            os.path.basename(path) if download_name is None and path is not None else download_name,
            conditional=False,
            etag=etag if isinstance(etag, str) else False,
            last_modified=last_modified,
            max_age=max_age(path) if callable(max_age) else max_age,
            response_class=_response_class(current_app.response_class),
        )
    except BaseException:
        if path is not None:
            file.close()
        raise
    assert isinstance(response, _FileResponse)
    # What Werkzeug would have iterated over.
    response.response = response._file = FileWrapper(file)
    if conditional:
        response._arguments = {"etag": bool(etag)}
    return response
