"""Every row that can go over a socket, against a real nginx.

nginx has to answer as the row expects of sendgate, or exactly as the row's ``nginx`` entry says. An entry that is
no longer true fails, so that the list of differences stays the truth. Run with: pytest tests/differential
"""

from __future__ import annotations

from collections.abc import Iterator

import nginx
import pytest
import report

import rows

ROWS = [row for row in rows.load() if not row.values_only]


@pytest.fixture(scope="module")
def server() -> Iterator[nginx.Nginx]:
    """nginx, once for all rows."""
    binary = nginx.executable()
    if binary is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    with nginx.Nginx(binary) as running:
        yield running


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_row(server: nginx.Nginx, row: rows.Row) -> None:
    """nginx answers as sendgate does, or as the row says."""
    if row.nginx and "skip" in row.nginx:
        pytest.skip(row.nginx["skip"])
    response = server.answer(row)
    as_expected = nginx.judge(row, response, nginx.expected(row))
    if row.nginx is None:
        assert not as_expected, "nginx differs, and the row does not say so: " + "; ".join(as_expected)
        return
    as_said = nginx.judge(row, response, nginx.exception(row))
    assert not as_said, "nginx differs, but not as the row says: " + "; ".join(as_said)
    assert as_expected, "nginx answers as expected: the row's nginx entry is no longer true"


def test_readme_is_current() -> None:
    """The table in README.md is what report.py makes of the rows."""
    assert report.README.read_text() == report.text(), "run: python tests/differential/report.py --write"
