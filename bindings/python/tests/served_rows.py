"""The rows of tests/cases as an application answers them that is called ``Files``, whatever server it runs on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import rows

SOCKET_ROWS = [row for row in rows.load() if row.values_only is None]


def answers(
    row: rows.Row, address: rows.Address, files: Path, prefix: str = "/files/", times: int = 1
) -> tuple[str, list[rows.Response]]:
    """The tag of the row's file, and the answers to its request. Each has left its connection in step.

    files: the folder in which the file is for so long, and which is served below prefix.
    """
    path = rows.make_file(files, row)
    try:
        tag = rows.file_tag(path)
        target = prefix + path.name
        request = rows.build_request(row, target, "localhost", tag) + rows.content_of(row)
        return tag, [rows.fetch(address, request, timeout=60, probe=rows.probe(target)) for _ in range(times)]
    finally:
        path.unlink()


def as_served(row: rows.Row, persistent: bool = True, charset: bool = True) -> rows.Row:
    """The row as Files answers it on a server that keeps connections, or not.

    charset: whether it says that text is UTF-8. Whether the connection stays is not the application's affair: the
    server reads what the application leaves unread, and need not keep HTTP/1.0 connections. What it announces has to
    be so all the same.
    """
    expect = dict(row.expect)
    text = "text/plain; charset=utf-8" if charset else "text/plain"
    expect["fields"] = [
        [name, text if value == "text/plain" else value]
        for name, value in row.expect.get("fields", [])
        if name != "Connection"
    ]
    expect["absent"] = [name for name in row.expect.get("absent", []) if name != "Connection"]
    if row.version == 10 or rows.content_of(row):
        expect.pop("keep_alive", None)
    elif not persistent and "keep_alive" in expect:
        expect["keep_alive"] = False
    return dataclasses.replace(row, expect=expect)


def complaints(row: rows.Row, response: rows.Response, tag: str) -> list[str]:
    """What the judge says against the answer."""
    try:
        rows.check(row, response, etag=tag)
    except rows.Mismatch as mismatch:
        return re.findall("^  - (.*)$", str(mismatch), re.MULTILINE)
    return []
