"""examples/hosts/libfcgi.c behind nginx, with kept connections and without: the tests of the other hosts."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import LIBFCGI, Host, need_library
from serving import MIB, Connection, Served, until

# What a front server needs, and what it does to answers, is also asked about sendgate.fastcgi.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bindings/python/tests"))
from fastcgi_fronts import Kind, different, fronted  # noqa: E402
from served_rows import SOCKET_ROWS, answers, as_served, complaints  # noqa: E402
from test_hosts import (  # noqa: E402, F401
    big,
    site,
    test_clients_that_leave,
    test_content_is_not_the_next_request,
    test_kept_alive,
    test_other_answers,
    test_pipelining,
    test_resumed_download,
    test_slow_reader_holds_nobody_up,
)


class Behind(Served):
    """The program, at the address of the front server."""

    #: Whether the front server keeps its connections, for as long as it likes.
    keeps = False

    def descriptors(self) -> list[str]:
        """What it has open, but for kept connections."""
        found = super().descriptors()
        return [name for name in found if not name.startswith("socket:")] if self.keeps else found


@pytest.fixture
def host() -> Host:
    """The one that is behind a front server."""
    need_library(LIBFCGI)
    return LIBFCGI


@pytest.fixture(params=[Kind("nginx"), Kind("nginx", keeps=True)], ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the front servers."""
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def server(host: Host, kind: Kind, built: Path, environment: dict[str, str], site: Path) -> Iterator[Served]:  # noqa: F811
    """The program on `site`. It has to live to the end, and end properly."""
    command = [built / host.name, "{folder}/app.sock", site]
    with fronted(kind, command, env=environment) as front:
        server = Behind(front.process, front.address)
        server.keeps = kind.keeps
        # The front server has been asked once, in order to see that it is there.
        until(lambda: kind.keeps or sum(name.startswith("socket:") for name in server.descriptors()) == 1)
        yield server
        assert front.process.poll() is None
        front.process.send_signal(signal.SIGTERM)
        assert front.process.wait(10) == 0
        assert front.log == ""


def test_rows(kind: Kind, server: Served, site: Path) -> None:  # noqa: F811
    """tests/cases, through the front server; nothing differs but what that does to answers, whoever gives them."""
    for row in SOCKET_ROWS:
        # Methods other than GET and HEAD are this server's own business: see test_other_answers.
        if row.method in ("GET", "HEAD"):
            tag, (response,) = answers(row, server.address, site, prefix="/")
            said = complaints(as_served(row, charset=False), response, tag)
            assert [re.sub(r" \(Date: .*", "", complaint) for complaint in said] == different(row, kind), row.name


def test_truncated_file(server: Served, site: Path) -> None:  # noqa: F811
    """A file that becomes shorter while it is sent, further on: the client notices, by the end of the connection.

    In the midst of a record, nginx without kept connections would leave the client waiting: sendgate.h,
    SENDGATE_SINK_FCGI_END_SHORT.
    """
    path = site / "sparse.bin"
    path.touch()
    os.truncate(path, 60 * MIB)
    with Connection(server.address, receive_buffer=4096) as client:
        client.send("GET /sparse.bin HTTP/1.1", "Host: localhost")
        assert client.head().get("Content-Length") == str(60 * MIB)
        os.truncate(path, 30 * MIB)
        received = 0
        while data := client.socket.recv(1 << 18):
            received += len(data)
        assert 29 * MIB < received <= 30 * MIB
