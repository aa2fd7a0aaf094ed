"""The rows of tests/cases on values: what ``decide`` says to them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import rows
import sendgate


def rules(row: rows.Row) -> list[tuple[bytes, bytes, int]]:
    """The application's fields as ``decide`` takes them."""
    return [
        (
            name.encode("latin-1"),
            value.encode("latin-1"),
            sendgate.Rule[rule.upper()] | (sendgate.Rule.FROZEN if frozen else 0),
        )
        for name, value, rule, frozen in row.headers
    ]


@pytest.fixture
def memory_file() -> Iterator[int]:
    """The descriptor of a file in memory, which may have any length and time."""
    fd = os.memfd_create("row")
    yield fd
    os.close(fd)


@pytest.mark.parametrize("row", rows.load(), ids=str)
def test_row(row: rows.Row, memory_file: int) -> None:
    """The decision, its head as bytes and its head as fields are what the row expects."""
    mtime_ns = row.mtime_at(row.now) * 10**9 + row.mtime_nsec
    if row.mtime_nsec >= 10**9:
        pytest.skip("a time of more than 999999999 nanoseconds can't be said in Python")
    os.ftruncate(memory_file, row.length)
    os.utime(memory_file, ns=(mtime_ns, mtime_ns))
    if os.fstat(memory_file).st_mtime_ns != mtime_ns:
        pytest.skip(f"the kernel can't store the modification time {mtime_ns} ns")
    tag = rows.entity_tag(mtime_ns, row.length)
    request = sendgate.Request(row.method, row.version, row.request_fields(tag), has_body=row.body or None)

    def decide() -> sendgate.Decision:
        return sendgate.decide(
            request,
            memory_file,
            headers=rules(row),
            content_type=row.content_type,
            status=row.status,
            max_ranges=row.max_ranges,
            close=row.close,
            now=row.now,
        )

    if row.error is not None:
        with pytest.raises(sendgate.SendgateError) as caught:
            decide()
        assert caught.value.name == f"SENDGATE_ERR_{row.error}"
        assert isinstance(caught.value, ValueError)
        return

    decision = decide()
    response = rows.parse_response(decision.head, row.method, request_version=row.version, body_follows=False)
    rows.check(row, response, etag=tag)
    # The three forms of the answer agree.
    assert decision.status == response.status
    assert decision.keep_alive == response.keep_alive
    assert list(decision.fields) == response.fields
    if row.status == 200:
        assert decision.ranges == tuple((first, last - first + 1) for first, last in row.ranges)
    announced = response.get("Content-Length")
    assert decision.content_length == int(announced or 0)
    empty = (
        row.method == "HEAD" or response.status in (204, 304) or (row.status == 200 and response.status in (412, 416))
    )
    assert decision.body_length == (0 if empty else decision.content_length)
