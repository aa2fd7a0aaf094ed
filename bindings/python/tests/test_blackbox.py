"""The rows of tests/cases over a socket, through ``python -m sendgate`` as it is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

import rows
from support import Server, running_server

SOCKET_ROWS = [row for row in rows.load() if row.values_only is None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is served."""
    return tmp_path_factory.mktemp("folder")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all rows."""
    with running_server(folder, tmp_path_factory.mktemp("log") / "stderr") as server:
        yield server


def test_there_are_rows() -> None:
    """Most of the rules can be seen from outside."""
    assert len(SOCKET_ROWS) >= 200


def with_charset(row: rows.Row) -> rows.Row:
    """The row as this server answers it: it says that text is UTF-8."""
    fields = row.expect.get("fields", [])
    named = [[name, value + "; charset=utf-8" if value == "text/plain" else value] for name, value in fields]
    return dataclasses.replace(row, expect={**row.expect, "fields": named})


@pytest.mark.parametrize("row", SOCKET_ROWS, ids=str)
def test_row(row: rows.Row, folder: Path, server: Server) -> None:
    """The answer is what the row expects, and leaves the connection in step."""
    path = rows.make_file(folder, row)
    try:
        tag = rows.file_tag(path)
        request = rows.build_request(row, f"/{path.name}", "localhost", tag)
        response = rows.fetch(("127.0.0.1", server.port), request, probe=rows.probe(f"/{path.name}"))
        rows.check(with_charset(row), response, etag=tag)
    finally:
        path.unlink()


def test_nothing_was_wrong_on_the_inside(server: Server) -> None:
    """The log has the answers, and no traceback."""
    assert "Traceback" not in server.log
    assert server.log.count('"') >= len(SOCKET_ROWS)
