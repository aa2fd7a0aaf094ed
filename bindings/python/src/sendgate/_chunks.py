"""Content that is produced piece by piece: read once, counted, and closed once.

``Chunks`` is what a WSGI server iterates over, ``AsyncChunks`` what an ASGI application does; both take iterables of
either kind. They neither gather nor split: what comes out is what was produced, as soon as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import selectors
import sys
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ._errors import excess, truncated

if TYPE_CHECKING:
    from typing_extensions import TypeAlias

    #: What produces content.
    Producer: TypeAlias = "Iterable[bytes] | AsyncIterable[bytes]"

    _T = TypeVar("_T")
    #: Calls a function somewhere else, and returns what it returns.
    Run: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]

__all__ = ["AsyncChunks", "Chunks"]

_log = logging.getLogger(__name__)

_END: Any = object()


class _Count:
    """What is announced, and what has come of it."""

    __slots__ = ("length", "taken")

    def __init__(self, length: int | None) -> None:
        if length is not None and length < 0:
            raise ValueError(f"length must not be negative: {length}")
        self.length = length
        #: Bytes.
        self.taken = 0

    def take(self, item: Any) -> bytes:
        """The item as bytes. TypeError: it is something else. ExcessError: it is more than was announced."""
        if type(item) is not bytes:
            item = _as_bytes(item)
        taken = self.taken + len(item)
        if self.length is not None and taken > self.length:
            raise excess(self.length)
        self.taken = taken
        return item  # type: ignore[no-any-return]

    def end(self) -> None:
        """That was all. TruncatedError: it is less than was announced."""
        if self.length is not None and self.taken < self.length:
            raise truncated(self.length, self.taken)


def _as_bytes(item: Any) -> bytes:
    if isinstance(item, str):
        raise TypeError("content must be produced as bytes, not str: encode() each piece")
    if isinstance(item, int):
        raise TypeError("content must be produced as bytes, not int: put bytes into a list to send them as one piece")
    try:
        with memoryview(item) as view:
            return view.tobytes()
    except TypeError:
        raise TypeError(f"content must be produced as bytes, not {type(item).__name__}") from None


def _close(iterator: Any, content: Any) -> None:
    """Close what is iterated over, and then what it was made of: that isn't the same for a file or a queue."""
    try:
        if hasattr(iterator, "close"):
            iterator.close()
    finally:
        if content is not iterator and hasattr(content, "close"):
            content.close()


async def aclose_all(*layers: Any) -> None:
    """Close each of them once, in this order, as far as they can be closed, whatever the others raise. None is none."""
    async with contextlib.AsyncExitStack() as stack:
        for layer in reversed({id(layer): layer for layer in layers}.values()):
            if hasattr(layer, "aclose"):
                stack.push_async_callback(layer.aclose)
            elif hasattr(layer, "close"):
                stack.callback(layer.close)


class Chunks:
    """An iterator over content that is produced, which is read once.

    content: an iterable of bytes, or an asynchronous one, for which an event loop of its own runs during each
    ``next``. What it produces is handed on at once, empty pieces excepted. length: how many bytes were announced.

    Once it has ended, failed or was closed, content and its iterator have been closed, each once, if they can be. A
    ``close`` while another thread is in ``next`` closes as soon as that has its piece, which is dropped: a generator
    can't be closed while it runs.

    ExcessError: there is more than was announced; the piece that is too long isn't handed out. TruncatedError: there is
    less. TypeError: a piece isn't bytes.
    """

    def __init__(self, content: Producer, length: int | None = None) -> None:
        given: Any = content
        self._content = _Stepped(given) if hasattr(content, "__aiter__") else given
        self._iterator: Iterator[Any] | None = None
        self._count = _Count(length)
        self._lock = threading.Lock()
        self._running = False
        self._closing = False

    @property
    def taken(self) -> int:
        """Bytes that were handed out."""
        return self._count.taken

    @property
    def closed(self) -> bool:
        """Whether it has ended, failed or was closed."""
        return self._content is None

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            if self._running:
                raise ValueError("content is already being read")
            if self._closing:
                raise StopIteration
            self._running = True
        try:
            while True:
                item = self._next()
                if self._closing:
                    raise StopIteration
                if item:
                    return item
        except BaseException:
            self._closing = True
            raise
        finally:
            with self._lock:
                self._running = False
                closing = self._closing
            if closing:
                self._end()

    def _next(self) -> bytes:
        if self._iterator is None:
            self._iterator = iter(self._content)
        item = next(self._iterator, _END)
        if item is not _END:
            return self._count.take(item)
        if not self._closing:
            self._count.end()
        raise StopIteration

    def close(self) -> None:
        """Nothing more will be read; again does nothing."""
        if not self.stop():
            self._end()

    def stop(self) -> bool:
        """Close as soon as the piece has come that another thread is waiting for. False: none is."""
        with self._lock:
            if self._running:
                self._closing = True
            return self._running

    def _end(self) -> None:
        with self._lock:
            self._closing = True
            iterator, self._iterator = self._iterator, None
            content, self._content = self._content, None
        _close(iterator, content)


class _Stepped:
    """Asynchronous content, to be iterated without an event loop around it.

    All of it runs in one task of an event loop of its own, which stands still between two pieces.
    """

    def __init__(self, content: AsyncIterable[bytes]) -> None:
        self._content = content
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        #: What the task waits for before it goes on, and what it has produced.
        self._resume: asyncio.Future[None] | None = None
        self._produced: asyncio.Future[Any] | None = None

    def __iter__(self) -> _Stepped:
        return self

    def __next__(self) -> Any:
        if self._loop is None:
            if _is_running():
                raise RuntimeError("asynchronous content can't be iterated synchronously in an event loop's thread")
            self._loop = _new_loop()
            self._task = self._loop.create_task(self._produce())
        assert self._task is not None
        self._produced = self._loop.create_future()
        if self._resume is not None:
            self._resume.set_result(None)
        self._loop.run_until_complete(
            asyncio.wait({self._task, self._produced}, return_when=asyncio.FIRST_COMPLETED),
        )
        if self._produced.done():
            return self._produced.result()
        self._task.result()
        raise StopIteration

    async def _produce(self) -> None:
        loop = asyncio.get_running_loop()
        iterator = None
        try:
            iterator = aiter_(self._content)
            async for item in iterator:
                assert self._produced is not None
                self._resume = loop.create_future()
                self._produced.set_result(item)
                await self._resume
        finally:
            await aclose_all(iterator, self._content)

    def close(self) -> None:
        """Close the content, within its event loop, and then that."""
        loop, self._loop = self._loop, None
        if loop is None:
            # A generator that was not begun has nothing to close.
            if self._task is not None or inspect.isasyncgen(self._content):
                return
            if not hasattr(self._content, "aclose"):
                _close(None, self._content)
                return
            if _is_running():
                raise RuntimeError("asynchronous content can't be closed synchronously in an event loop's thread")
            loop = _new_loop()
        try:
            loop.run_until_complete(self._wind_up(loop))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    async def _wind_up(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._task is None:
            await aclose_all(self._content)
            return
        if self._task.done():
            # What it ended with, ``next`` has said.
            error = None
        else:
            self._task.cancel()
            await asyncio.wait({self._task})
            error = None if self._task.cancelled() else self._task.exception()
        # As asyncio.run does.
        others = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if error is not None:
            raise error


def _new_loop() -> asyncio.AbstractEventLoop:
    """An event loop, which with gevent isn't the only one in its thread."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("selectors"):
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(_cooperative(selectors.DefaultSelector()))


def _cooperative(selector: selectors.BaseSelector) -> selectors.BaseSelector:
    """What asyncio keeps for a thread it keeps for all greenlets in it. When this one waits, the others get a clean
    thread, and then it gets back what it had.
    """
    select = selector.select

    def wait(timeout: float | None = None) -> Any:
        loop, hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        asyncio._set_running_loop(None)
        sys.set_asyncgen_hooks(None, None)
        try:
            return select(timeout)
        finally:
            asyncio._set_running_loop(loop)
            sys.set_asyncgen_hooks(*hooks)

    selector.select = wait  # type: ignore[method-assign]
    return selector


def _is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def aiter_(content: Any) -> Any:
    """aiter() of Python 3.10."""
    return type(content).__aiter__(content)


# ---- For an event loop ----


def run_in_thread(function: Callable[[], _T]) -> Awaitable[_T]:
    """Call it in a worker thread of asyncio, or of trio. Who is cancelled doesn't wait for it: it goes on."""
    trio = trio_here()
    if trio is not None:
        made: Awaitable[_T] = trio.to_thread.run_sync(function, abandon_on_cancel=True)
        return made
    return asyncio.get_running_loop().run_in_executor(None, function)


def trio_here() -> Any:
    """The module, if it is trio that runs the current task; else None."""
    trio = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_run() else None


def _shielded() -> contextlib.AbstractContextManager[Any]:
    """Within it a task of trio can wait although it was cancelled. Those of asyncio can anyway."""
    trio = trio_here()
    return contextlib.nullcontext() if trio is None else trio.CancelScope(shield=True)


class AsyncChunks:
    """The same for an event loop, asyncio's or trio's: content that isn't asynchronous is read in a worker thread.

    run: calls a function in that thread; without it that is any of the event loop's own. All calls see the context
    variables of who has called first, and what the content makes of them.

    A task that is cancelled, or calls ``aclose``, doesn't wait for a thread in which the content is being produced, for
    that can't be interrupted; the content is closed there as soon as it has produced its next piece, which is dropped.
    """

    def __init__(self, content: Producer, length: int | None = None, *, run: Run = run_in_thread) -> None:
        is_async = hasattr(content, "__aiter__")
        self._run = run
        self._chunks = None if is_async else Chunks(content, length)
        self._content: Any = content if is_async else None
        self._iterator: Any = None
        self._count = _Count(length)
        self._running = False
        self._closing = False
        self._context: contextvars.Context | None = None
        #: Whether nobody waits any more for what goes on in the thread.
        self._left = False

    @property
    def taken(self) -> int:
        """Bytes that were handed out."""
        return self._count.taken if self._chunks is None else self._chunks.taken

    def __aiter__(self) -> AsyncChunks:
        return self

    async def __anext__(self) -> bytes:
        if self._chunks is not None:
            return await self._next_from_thread(self._chunks)
        if self._running:
            raise RuntimeError("content is already being read")
        if self._closing:
            raise StopAsyncIteration
        self._running = True
        try:
            while True:
                item = await self._next()
                if self._closing:
                    raise StopAsyncIteration
                if item:
                    return item
        except BaseException:
            self._closing = True
            raise
        finally:
            self._running = False
            if self._closing:
                await self._end()

    async def _next(self) -> bytes:
        if self._iterator is None:
            self._iterator = aiter_(self._content)
        try:
            item = await self._iterator.__anext__()
        except StopAsyncIteration:
            item = _END
        if item is not _END:
            return self._count.take(item)
        if not self._closing:
            self._count.end()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Nothing more will be read; again does nothing."""
        self._closing = True
        if self._chunks is not None:
            await self._close_in_thread(self._chunks)
        elif not self._running:
            await self._end()

    async def _end(self) -> None:
        iterator, self._iterator = self._iterator, None
        content, self._content = self._content, None
        await aclose_all(iterator, content)

    # ---- In a thread, which is left alone as soon as its task is: what it does last is to close ----

    async def _next_from_thread(self, chunks: Chunks) -> bytes:
        try:
            # A StopIteration can't pass through a future.
            item: bytes | None = await self._run(self._bound(functools.partial(next, chunks, None)))
        except GeneratorExit:
            # The task is being destroyed, and can't wait for anything.
            self._left = True
            chunks.close()
            raise
        except BaseException:
            await self._close_in_thread(chunks)
            raise
        if item is None:
            raise StopAsyncIteration
        return item

    async def _close_in_thread(self, chunks: Chunks) -> None:
        self._left = chunks.stop()
        if self._left or chunks.closed:
            return
        try:
            with _shielded():
                await self._run(self._bound(chunks.close, copied=True))
        finally:
            # There may be no threads any more.
            chunks.close()

    def _bound(self, function: Callable[[], Any], copied: bool = False) -> Callable[[], Any]:
        if self._context is None:
            self._context = contextvars.copy_context()
        # A thread that has not come to the content yet may be in the context, and another can't enter it then.
        context = self._context.copy() if copied else self._context
        return functools.partial(self._call, context, function)

    def _call(self, context: contextvars.Context, function: Callable[[], Any]) -> Any:
        try:
            return context.run(function)
        except Exception:
            if self._left:
                _log.exception("Error in content that nobody waits for any more")
            raise
