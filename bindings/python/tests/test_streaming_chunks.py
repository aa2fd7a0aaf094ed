"""Content that is produced: read once, counted, and closed once, whoever closes it and when."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio

import sendgate
from sendgate import _errors as errors
from sendgate._chunks import AsyncChunks, Chunks
from sendgate._core import _error
from support import wait_until


class Source:
    """Content that tells how often it was begun and closed."""

    def __init__(self, *items: Any, error: Exception | None = None) -> None:
        self.items = items
        self.error = error
        self.events: list[str] = []
        self.thread: int | None = None

    def __iter__(self) -> Iterator[Any]:
        self.events.append("begun")
        return self._produce()

    def _produce(self) -> Iterator[Any]:
        try:
            yield from self.items
            if self.error is not None:
                raise self.error
        finally:
            self.events.append("finally")
            self.thread = threading.get_ident()

    def close(self) -> None:
        """Be closed."""
        self.events.append("closed")


class AsyncSource(Source):
    """The same, asynchronous."""

    __iter__ = None  # type: ignore[assignment]

    def __aiter__(self) -> AsyncIterator[Any]:
        self.events.append("begun")
        return self._aproduce()

    async def _aproduce(self) -> AsyncIterator[Any]:
        try:
            for item in self.items:
                await asyncio.sleep(0)
                yield item
            if self.error is not None:
                raise self.error
        finally:
            await asyncio.sleep(0)
            self.events.append("finally")

    async def aclose(self) -> None:
        """Be closed."""
        await asyncio.sleep(0)
        self.events.append("closed")

    close = None  # type: ignore[assignment]


ONCE = ["begun", "finally", "closed"]
BOTH = pytest.mark.parametrize("kind", [Source, AsyncSource])


def collect(content: Any, length: int | None = None) -> list[bytes]:
    """All of it, without an event loop."""
    return list(Chunks(content, length))


def acollect(content: Any, length: int | None = None) -> list[bytes]:
    """All of it, in one."""

    async def run() -> list[bytes]:
        return [chunk async for chunk in AsyncChunks(content, length)]

    return asyncio.run(run())


COLLECT = pytest.mark.parametrize("gather", [collect, acollect])


@BOTH
@COLLECT
def test_pieces_come_as_they_are_and_empty_ones_not_at_all(kind: Any, gather: Any) -> None:
    """They are neither joined nor split; what is bytes-like becomes bytes."""
    source = kind(b"one", b"", bytearray(b"two"), memoryview(b"three"))
    assert gather(source, 11) == [b"one", b"two", b"three"]
    assert source.events == ONCE


@BOTH
@COLLECT
@pytest.mark.parametrize(("length", "error"), [(5, sendgate.ExcessError), (7, sendgate.TruncatedError)])
def test_what_was_announced_is_enforced(kind: Any, gather: Any, length: int, error: type[Exception]) -> None:
    """More than that isn't handed out, and less is an error too; the source is closed before either is raised."""
    source = kind(b"123", b"456")
    with pytest.raises(error):
        gather(source, length)
    assert source.events == ONCE


def test_the_piece_that_is_too_much_is_not_handed_out() -> None:
    """What was handed out before counts."""
    chunks = Chunks(iter([b"123", b"456"]), 5)
    assert next(chunks) == b"123"
    with pytest.raises(sendgate.ExcessError) as caught:
        next(chunks)
    assert (caught.value.status, caught.value.name) == (-21, "SENDGATE_ERR_EXCESS")
    assert chunks.taken == 3
    assert list(chunks) == []


@BOTH
@COLLECT
@pytest.mark.parametrize(("item", "says"), [("text", r"encode\(\)"), (1, "list"), (None, "NoneType")])
def test_what_is_no_bytes_is_refused(kind: Any, gather: Any, item: Any, says: str) -> None:
    """The error says what to do."""
    source = kind(b"1", item)
    with pytest.raises(TypeError, match=says):
        gather(source)
    assert source.events == ONCE


@BOTH
@COLLECT
def test_an_error_of_the_producer_is_passed_on(kind: Any, gather: Any) -> None:
    """And what it was made of is closed."""
    source = kind(b"1", error=KeyError("x"))
    with pytest.raises(KeyError):
        gather(source)
    assert source.events == ONCE


def test_nothing_is_read_of_what_is_closed_at_once() -> None:
    """Closing is not reading; closing again is nothing."""
    source = Source(b"1")
    chunks = Chunks(source)
    chunks.close()
    chunks.close()
    assert list(chunks) == []
    assert source.events == ["closed"]


@BOTH
def test_closing_in_the_middle(kind: Any) -> None:
    """The generator's finally has run when close has returned."""
    source = kind(b"1", b"2")
    chunks = Chunks(source)
    assert next(chunks) == b"1"
    chunks.close()
    assert source.events == ONCE
    assert list(chunks) == []
    chunks.close()
    assert source.events == ONCE


class Plain:
    """Asynchronous content whose iterator is closed without waiting for it. alone: it is its own iterator."""

    def __init__(self, alone: bool, events: list[str]) -> None:
        self._alone = alone
        self.events = events
        self._left = [b"1", b"2"]

    def __aiter__(self) -> Plain:
        return self if self._alone else Plain(True, self.events)

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)

    def close(self) -> None:
        """Be closed."""
        self.events.append("iterator" if self._alone else "content")


@pytest.mark.parametrize(("alone", "due"), [(True, ["iterator"]), (False, ["iterator", "content"])])
def test_asynchronous_content_that_is_closed_without_waiting(alone: bool, due: list[str]) -> None:
    """Each once: when it was read, in the middle, and unread."""

    async def begin(count: int) -> list[str]:
        content = Plain(alone, [])
        chunks = AsyncChunks(content)
        for _ in range(count):
            await chunks.__anext__()
        await chunks.aclose()
        return content.events

    for gather in (collect, acollect):
        content = Plain(alone, [])
        assert gather(content) == [b"1", b"2"]
        assert content.events == due
    for count in (1, 0):
        content = Plain(alone, [])
        chunks = Chunks(content)
        assert [next(chunks) for _ in range(count)] == [b"1"] * count
        chunks.close()
        assert content.events == asyncio.run(begin(count)) == (due if count else due[-1:])


def test_whatever_one_of_them_raises_all_are_closed() -> None:
    """The iterator and what it is made of; the error is passed on."""
    source = AsyncSource(b"1", b"2")

    class Wrong:
        """An iterator whose close fails."""

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            return b"1"

        async def aclose(self) -> None:
            raise KeyError

    source._aproduce = Wrong  # type: ignore[method-assign]

    async def run() -> None:
        chunks = AsyncChunks(source)
        assert await chunks.__anext__() == b"1"
        with pytest.raises(KeyError):
            await chunks.aclose()

    asyncio.run(run())
    assert source.events == ["begun", "closed"]


@pytest.mark.parametrize(
    "error",
    [errors.truncated(2, 1), errors.excess(1), errors.bad_field("x"), errors.frozen("x")],
    ids=lambda error: error.name,
)
def test_errors_are_those_of_the_library(error: sendgate.SendgateError) -> None:
    """What is found out here has the number and the name that it has there."""
    there = _error(error.status)
    assert (type(there), there.name, there.connection) == (type(error), error.name, error.connection)


def test_a_negative_length_is_refused() -> None:
    """It is a mistake of the caller's."""
    with pytest.raises(ValueError, match="negative"):
        Chunks([], -1)


class Held:
    """A generator that waits, inside of next, until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()
        self.left = ""

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield b"1"
            self.entered.set()
            assert self.release.wait(20)
            yield b"2"
            self.left = "read on"
        finally:
            self.left = self.left or "closed"
            self.ended.set()


def test_closing_while_another_thread_is_in_next() -> None:
    """A generator that runs can't be closed: it is as soon as it has its piece, which nobody gets."""
    held = Held()
    chunks = Chunks(held)
    assert next(chunks) == b"1"
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(next(chunks, None)))
    thread.start()
    assert held.entered.wait(20)
    with pytest.raises(ValueError, match="already"):
        next(chunks)
    chunks.close()
    assert not held.ended.is_set()
    held.release.set()
    thread.join(20)
    assert (got, held.left) == ([None], "closed")


# ---- Asynchronous content without an event loop ----


def test_asynchronous_content_has_one_task_and_one_context() -> None:
    """What it does with context variables and tasks of its own isn't cut up by stepping."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outer")
    seen: list[Any] = []

    async def produce() -> AsyncIterator[bytes]:
        seen.append(variable.get())
        variable.set("inner")
        task = asyncio.current_task()
        helper = asyncio.ensure_future(asyncio.sleep(60))
        try:
            yield b"1"
            seen.append(variable.get())
            seen.append(task is asyncio.current_task())
            yield b"2"
        finally:
            await asyncio.sleep(0)
            seen.append(helper.done())

    variable.set("caller's")
    chunks = Chunks(produce())
    assert [next(chunks), next(chunks)] == [b"1", b"2"]
    chunks.close()
    assert seen == ["caller's", "inner", True, False]
    assert variable.get() == "caller's"


def test_asynchronous_content_in_the_thread_of_an_event_loop() -> None:
    """It would stop that loop, so it is refused."""
    source = AsyncSource(b"1")

    async def run() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            list(Chunks(source))

    asyncio.run(run())


# ---- Content that isn't asynchronous in an event loop ----


def test_it_is_read_in_other_threads_with_one_context() -> None:
    """The loop's thread doesn't wait, and what a step sets the next one sees."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outer")
    seen: list[Any] = []

    def produce() -> Iterator[bytes]:
        seen.append((variable.get(), threading.get_ident()))
        variable.set("inner")
        yield b"1"
        seen.append((variable.get(), threading.get_ident()))

    async def run() -> None:
        variable.set("caller's")
        assert [chunk async for chunk in AsyncChunks(produce())] == [b"1"]
        assert variable.get() == "caller's"

    asyncio.run(run())
    assert [value for value, _ in seen] == ["caller's", "inner"]
    assert threading.get_ident() not in [thread for _, thread in seen]


def test_the_caller_can_say_where() -> None:
    """Django has a thread of its own for what isn't asynchronous."""
    source, called = Source(b"1", b"2"), []

    async def here(function: Any) -> Any:
        called.append(function)
        return function()

    async def run() -> None:
        chunks = AsyncChunks(source, run=here)
        assert await chunks.__anext__() == b"1"
        await chunks.aclose()
        await chunks.aclose()

    asyncio.run(run())
    assert (source.events, len(called)) == (ONCE, 2)
    assert source.thread == threading.get_ident()


def test_a_task_that_is_cancelled_does_not_wait_for_the_thread() -> None:
    """The thread closes the content when it has come out of it."""
    held = Held()

    async def run() -> None:
        async def consume() -> None:
            chunks = AsyncChunks(held)
            try:
                async for _ in chunks:
                    pass
            finally:
                await chunks.aclose()

        task = asyncio.ensure_future(consume())
        await asyncio.get_running_loop().run_in_executor(None, held.entered.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not held.ended.is_set()
        held.release.set()
        # Before the event loop ends, which waits for its threads.
        await asyncio.get_running_loop().run_in_executor(None, held.ended.wait, 20)

    asyncio.run(run())
    assert held.left == "closed"


def test_the_same_in_trio() -> None:
    """Hypercorn can run on it."""
    held = Held()

    async def run() -> None:
        async def consume() -> None:
            chunks = AsyncChunks(held)
            try:
                async for _ in chunks:
                    pass
            finally:
                await chunks.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            await trio.to_thread.run_sync(held.entered.wait, 20)
            nursery.cancel_scope.cancel()
        assert not held.ended.is_set()
        held.release.set()

    trio.run(run)
    assert held.ended.wait(20)
    assert held.left == "closed"


def test_closing_between_two_pieces_in_trio_runs_in_a_thread_all_the_same() -> None:
    """Also in a task that was cancelled."""
    source = Source(b"1", b"2")

    async def run() -> None:
        with trio.CancelScope() as scope:
            chunks = AsyncChunks(source)
            try:
                assert await chunks.__anext__() == b"1"
                scope.cancel()
                await trio.sleep_forever()
            finally:
                await chunks.aclose()

    trio.run(run)
    assert source.events == ONCE
    assert source.thread != threading.get_ident()


def test_a_cancelled_task_closes_in_a_thread() -> None:
    """One that was not reading just then."""
    source = Source(b"1", b"2")

    async def run() -> None:
        async def consume() -> None:
            chunks = AsyncChunks(source)
            try:
                assert await chunks.__anext__() == b"1"
                reading.set()
                await asyncio.sleep(60)
            finally:
                await chunks.aclose()

        reading = asyncio.Event()
        task = asyncio.ensure_future(consume())
        await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.events == ONCE

    asyncio.run(run())
    assert source.thread != threading.get_ident()


def test_closing_by_another_task_while_one_reads() -> None:
    """The reader's iteration ends."""
    held = Held()

    async def run() -> None:
        chunks = AsyncChunks(held)
        loop = asyncio.get_running_loop()

        async def consume() -> list[bytes]:
            return [chunk async for chunk in chunks]

        task = asyncio.ensure_future(consume())
        await loop.run_in_executor(None, held.entered.wait, 20)
        await chunks.aclose()
        held.release.set()
        assert await task == [b"1"]

    asyncio.run(run())
    assert held.left == "closed"


def test_an_error_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It would be lost otherwise."""
    entered, release = threading.Event(), threading.Event()

    def produce() -> Iterator[bytes]:
        entered.set()
        assert release.wait(20)
        raise KeyError("lost")
        yield b""

    async def run() -> None:
        chunks = AsyncChunks(produce())
        task = asyncio.ensure_future(chunks.__anext__())
        await asyncio.get_running_loop().run_in_executor(None, entered.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        while not caplog.records:
            await asyncio.sleep(0.001)

    asyncio.run(run())
    assert "nobody waits" in caplog.text
    assert "KeyError" in caplog.text


def test_asynchronous_content_is_finalized_when_its_task_is_cancelled() -> None:
    """Its finally may wait, and is waited for."""
    events: list[str] = []

    async def produce() -> AsyncIterator[bytes]:
        try:
            yield b"1"
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            events.append("finally")

    async def run() -> None:
        chunks = AsyncChunks(produce())
        assert await chunks.__anext__() == b"1"
        task = asyncio.ensure_future(chunks.__anext__())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == ["finally"]
        await chunks.aclose()

    asyncio.run(run())
    assert events == ["finally"]


def test_a_destroyed_task_leaves_nothing_open() -> None:
    """The event loop is gone before the content is: it is closed all the same."""
    source = Source(b"1", b"2")
    chunks = AsyncChunks(source)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(chunks.__anext__()) == b"1"
    waiting = chunks.__anext__()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    waiting.close()
    closing = chunks.aclose()
    with pytest.raises(RuntimeError):
        closing.send(None)
    wait_until(lambda: source.events == ONCE)
