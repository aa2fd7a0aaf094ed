"""Starlette and FastAPI: files answered by the library, with all of RFC 9110's conditions and ranges.

    from sendgate.starlette import FileResponse, StaticFiles

in the place of those of ``starlette.responses``, ``starlette.staticfiles`` and ``fastapi``. They are derived from them
and take the same arguments. What is decided when the response is sent, from one open and one fstat, is whether that is
all of the file, one part or several, or a 304, 412 or 416. On ``sendgate.uvicorn`` it leaves by sendfile, below
Starlette's own middleware too; elsewhere it is read in the background.

Nothing private of Starlette's is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any, TypedDict

from starlette import responses, staticfiles
from starlette.exceptions import HTTPException

from ._adapters import check_hooks
from ._answer import SAFE, Answer, as_given, check_names, conditional, open_file
from ._core import File, Request, open_beneath
from ._errors import NotRegularError
from ._site import NOT_FOUND
from .asgi import give

if TYPE_CHECKING:
    from starlette.background import BackgroundTask
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send
    from typing_extensions import Unpack

    from ._types import ExchangeArguments, LastModified

__all__ = ["FileResponse", "StaticFiles"]

# What is replaced here, and has to be what Starlette calls.
check_hooks("sendgate.starlette", responses.FileResponse, "__call__", "init_headers", "set_stat_headers")
check_hooks("sendgate.starlette", staticfiles.StaticFiles, "file_response", "get_response", "lookup_path")


#: The most that the library takes. Starlette's own has 100.
_MAX_RANGES = 64


class FileArguments(TypedDict, total=False):
    """What ``sendgate.respond`` takes besides what Starlette has an argument for."""

    etag: bool | str
    last_modified: LastModified
    offset: int | None
    length: int | None
    etag_inode: bool
    etag_ctime: bool
    max_ranges: int
    copy: bool
    check: bool


class FileResponse(responses.FileResponse):
    """As ``starlette.responses.FileResponse``: a response with a file.

    path: a path; or a file that is open in binary mode or a ``sendgate.File``, which is sent from its position on, and
    closed when the response has been sent. Fields that are set on the response are sent, and an ETag or Last-Modified
    among them counts in the decision; with another status_code than 200 nothing is evaluated, and there are no
    validators but those.

    stat_result isn't needed: the file is asked when it is open. So its ETag, its Last-Modified and its Content-Length
    aren't in ``headers`` before the response is sent. etag, last_modified, offset, length, etag_inode, etag_ctime,
    max_ranges, copy, check: as in ``sendgate.respond``.

    RuntimeError, before anything was sent: the file doesn't exist, or isn't a regular one.
    """

    max_ranges = _MAX_RANGES

    def __init__(
        self,
        path: str | os.PathLike[str] | IO[bytes] | File,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
        filename: str | None = None,
        stat_result: os.stat_result | None = None,
        content_disposition_type: str = "attachment",
        **arguments: Unpack[FileArguments],
    ) -> None:
        check_names("FileResponse", arguments, FileArguments.__annotations__)
        self._file = None if isinstance(path, (str, os.PathLike)) else path
        name: Any = path if self._file is None else getattr(path, "name", "")
        super().__init__(
            # An open file may have a number for a name, or none.
            name if isinstance(name, (str, os.PathLike)) else "",
            status_code,
            headers,
            media_type,
            background,
            filename,
            stat_result,
            content_disposition_type,
        )
        given: Any = {"max_ranges": min(self.max_ranges, _MAX_RANGES), **arguments}
        self._arguments: ExchangeArguments = given

    def set_stat_headers(self, stat_result: os.stat_result) -> None:
        """Starlette's. The fields come from the file that is sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and run the background task."""
        if scope["type"] == "websocket":
            # It refuses the handshake.
            scope = {**scope, "type": "http", "method": "GET", "headers": [], "extensions": {}}
            send = _denying(send)
        await give(self._answer(Request.from_scope(scope, has_body=False)), scope, receive, send)
        if self.background is not None:
            await self.background()

    def _answer(self, request: Request) -> Answer:
        file: Any = self._file
        if file is None:
            try:
                file = self._open()
            except (OSError, NotRegularError) as error:
                raise self._not_opened(error) from error
        close = getattr(file, "close", None)
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.raw_headers]
        span = self._arguments.get("offset"), self._arguments.get("length")
        if self.status_code != 200:
            return as_given(request, self.status_code, fields, file, *span, close, self._arguments)
        if request.method not in SAFE:
            request = request._full()
        return conditional(request, fields, file, *span, close, self._arguments)

    def _open(self) -> File:
        return open_file(self.path, self._arguments)

    def _not_opened(self, error: Exception) -> Exception:
        """What is raised for a file that can't be sent, in Starlette's words where it has some."""
        if isinstance(error, FileNotFoundError):
            return RuntimeError(f"File at path {self.path} does not exist.")
        if isinstance(error, NotRegularError):
            return RuntimeError(f"File at path {self.path} is not a file.")
        return error


def _denying(send: Send) -> Send:
    """For the refusal of a WebSocket, which has messages of its own."""

    async def denying(message: Message) -> None:
        await send({**message, "type": "websocket." + message["type"]})

    return denying


class _StaticFile(FileResponse):
    """A file that was there, and beneath one of these directories, a moment ago."""

    directories: Iterable[str | os.PathLike[str]] = ()

    def _open(self) -> File:
        path = os.fspath(self.path)
        for directory in self.directories:
            root = os.path.join(os.path.realpath(directory), "")
            if path.startswith(root):
                place = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    given = self._arguments
                    inode, ctime = given.get("etag_inode", False), given.get("etag_ctime", False)
                    return open_beneath(place, path[len(root) :], etag_inode=inode, etag_ctime=ctime)
                finally:
                    os.close(place)
        return super()._open()

    def _not_opened(self, error: Exception) -> Exception:
        if isinstance(error, PermissionError):
            return HTTPException(401)  # as StaticFiles has it
        if isinstance(error, NotRegularError) or (isinstance(error, OSError) and error.errno in NOT_FOUND):
            return HTTPException(404)
        return error


class StaticFiles(staticfiles.StaticFiles):
    """As ``starlette.staticfiles.StaticFiles``: an application that serves directories.

    A derived class may replace lookup_path, file_response and get_response as one of Starlette's; what they return is
    evaluated when it is sent, so is_not_modified isn't called. etag, etag_inode, etag_ctime, last_modified, max_ranges,
    copy, check: as in ``sendgate.respond``, for each file.
    """

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        packages: list[str | tuple[str, str]] | None = None,
        html: bool = False,
        check_dir: bool = True,
        follow_symlink: bool = False,
        **arguments: Unpack[FileArguments],
    ) -> None:
        check_names("StaticFiles", arguments, FileArguments.__annotations__)
        super().__init__(
            directory=directory, packages=packages, html=html, check_dir=check_dir, follow_symlink=follow_symlink
        )
        self._arguments = arguments

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The response with a file."""
        return self._response(full_path, status_code)

    def _response(self, path: str | os.PathLike[str], status_code: int) -> Response:
        response = _StaticFile(path, status_code, **self._arguments)
        if not self.follow_symlink:
            # A link that is put in the file's place by now doesn't lead out either.
            response.directories = self.all_directories
        return response

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The response to a request."""
        response = await super().get_response(path, scope)
        if type(response) is responses.FileResponse:
            # The page for what isn't there, which Starlette makes by itself.
            return self._response(response.path, response.status_code)
        return response
