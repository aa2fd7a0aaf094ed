"""Django: responses that middleware can't spoil, middleware that doesn't spoil responses, and files under ASGI.

    from sendgate.django import FileResponse, HttpResponse, StreamingHttpResponse

in the place of those of ``django.http``: headers and content of theirs can be frozen, and content that streams is sent
as it is made, on every server, under WSGI and ASGI alike.

    from sendgate.django import get_asgi_application

in the place of that of ``django.core.asgi``, in a project's asgi.py: a FileResponse leaves by the library, with
conditions and ranges, and not by way of memory. Views and middleware stay as they are.

Django reads all of a file into memory before it sends the first byte of it, because it can't read files without
blocking its event loop. Here that is the server's to send, on those of this package (``sendgate.uvicorn``), or it is
read in the background, block by block, on any other.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import django
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler

from ._adapters import check_hooks
from ._answer import as_given, conditional, content_length, is_sound, limited, may_be_less
from ._core import Request
from ._django_freezing import KNOWN, FreezeMixin
from ._django_middleware import (
    CacheMiddleware,
    ConditionalGetMiddleware,
    GZipMiddleware,
    UpdateCacheMiddleware,
    cache_page,
)
from ._django_responses import FileResponse, HttpResponse, StreamingHttpResponse
from .asgi import give
from .wsgi import FileWrapper

if TYPE_CHECKING:
    from ._answer import Answer
    from .asgi import Application, Message, Receive, Scope, Send

__all__ = [
    "CacheMiddleware",
    "ConditionalGetMiddleware",
    "FileResponse",
    "FreezeMixin",
    "GZipMiddleware",
    "HttpResponse",
    "StreamingHttpResponse",
    "UpdateCacheMiddleware",
    "cache_page",
    "get_asgi_application",
]

check_hooks(KNOWN, ASGIHandler, "handle", "send_response")

#: Since 5.0 Django itself waits for the client to leave, as long as a response is sent, and cancels that then.
_WATCHES = hasattr(ASGIHandler, "listen_for_disconnect")

_logger = logging.getLogger("django.request")


def get_asgi_application() -> Application:
    """As ``django.core.asgi.get_asgi_application``: set Django up, and return the ASGI application."""
    django.setup(set_prefix=False)
    application: Application = _Handler()
    return application


class _Sending:
    """A request's send, by which Django hands the rest of the request on to where the response is sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        #: The response with a file, and who sends it.
        self.response: Any = None
        self.task: asyncio.Task[Any] | None = None
        #: Django has left the request.
        self.over = False

    async def __call__(self, message: Message) -> None:
        await self._send(message)

    async def receive(self) -> Message:
        """Wait for the client to leave, unless Django does: two can't wait for one message."""
        if _WATCHES:
            await asyncio.get_running_loop().create_future()
        return await self._receive()

    async def end(self) -> None:
        """Close the response if Django has not: before 5.0 its send_response does that, which wasn't called, and since
        then nobody does after an error.
        """
        self.over = True
        task = self.task
        if task is not None and task is not asyncio.current_task() and not task.done():
            # The server has cancelled the request, and Django leaves its own tasks running.
            task.cancel()
            await asyncio.wait([task])
        if self.response is not None and not self.response.closed:
            await sync_to_async(self._close)()

    def _close(self) -> None:
        # In the thread where Django does it, which may have done it just now.
        if not self.response.closed:
            self.response.close()


class _Handler(ASGIHandler):  # type: ignore[misc]
    """Django's own, but for what sends a file."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        sending = _Sending(scope, receive, send)
        try:
            await super().handle(scope, receive, sending)
        finally:
            await sending.end()

    async def send_response(self, response: Any, send: Send) -> None:
        """Send a response."""
        answer = _answer(response, send.scope) if isinstance(send, _Sending) else None
        if answer is None:
            await super().send_response(response, send)
            return
        assert isinstance(send, _Sending)
        send.response, send.task = response, asyncio.current_task()
        try:
            await give(answer, send.scope, send.receive, send)
        finally:
            if send.over:
                await send.end()


def _answer(response: Any, scope: Scope) -> Answer | None:
    """What the library can send in the response's place. None: it is no file, or a middleware has replaced it."""
    filelike = getattr(response, "file_to_stream", None)
    if filelike is None:
        return None
    headers = list(response.items())
    headers += [("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()]
    status = response.status_code
    if not is_sound(status, headers):
        return None
    content_length(headers)  # one that is none is an error
    request = Request.from_scope(scope, has_body=False)
    wrapper = FileWrapper(filelike)
    # It is closed with the response, and by Django.
    wrapper._close = None
    content = wrapper.content()
    if content is None:
        return None
    file, offset, length = content
    length = limited(headers, length, lambda text: _logger.warning("%s: %s", scope["path"], text))
    decided = getattr(response, "decided", False)
    if not decided and may_be_less(scope["method"], status, headers):
        return conditional(request, headers, file, offset, length, wrapper.close, {})
    return as_given(request, status, headers, file, offset, length, wrapper.close)
