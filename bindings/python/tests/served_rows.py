"""The rows of tests/cases as an application answers them that is called ``Files``, whatever server it runs on."""

from __future__ import annotations

import dataclasses
import re
import time
from email.utils import formatdate
from pathlib import Path

import rows

SOCKET_ROWS = [row for row in rows.load() if row.values_only is None]


def answers(
    row: rows.Row, address: rows.Address, files: Path, prefix: str = "/files/", times: int = 1
) -> tuple[str, list[rows.Response]]:
    """The tag of the row's file, and the answers to its request. Each has left its connection in step.

    files: the folder in which the file is for so long, and which is served below prefix.
    """
    while True:
        began = int(time.time())
        path = rows.make_file(files, row)
        try:
            tag = rows.file_tag(path)
            target = prefix + path.name
            request = rows.build_request(row, target, "localhost", tag) + rows.content_of(row)
            responses = [rows.fetch(address, request, timeout=60, probe=rows.probe(target)) for _ in range(times)]
        finally:
            path.unlink()
        # A file is new for a second or two, in which this may have been held up.
        if row.mtime != "now" or time.time() < began + 2:
            return tag, responses


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


def with_date(row: rows.Row, status: str, fields: list[tuple[str, str]], body: bytes, asked: int) -> rows.Response:
    """The response that a server makes of an application's, with a Date of its own.

    asked: when the application was called, in seconds since 1970.
    """
    head = [f"HTTP/1.1 {status}", f"Date: {formatdate(usegmt=True)}", *(f"{name}: {value}" for name, value in fields)]
    received = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
    response = rows.parse_response(received, row.method, request_version=row.version)
    response.asked = asked
    return response


def complaints(row: rows.Row, response: rows.Response, tag: str) -> list[str]:
    """What the judge says against the answer of a server that adds the Date.

    It has looked at the clock at another moment, some of them up to a second before. So a Last-Modified that is to be
    Date (RFC 9110 8.8.2.1) has to be of the time between the request and now; time(2) is some milliseconds late.
    """
    if row.expect.get("last_modified") == "date":
        modified = response.get("Last-Modified")
        seconds = rows.parse_date(modified or "")
        if seconds is not None and response.asked is not None and response.asked - 1 <= seconds <= time.time():
            row = dataclasses.replace(row, expect={**row.expect, "last_modified": modified})
    try:
        rows.check(row, response, etag=tag)
    except rows.Mismatch as mismatch:
        return re.findall("^  - (.*)$", str(mismatch), re.MULTILINE)
    return []
