"""What ``wsgi.file_wrapper`` and ``sendgate.wsgi.Files`` answer on every WSGI server, as a client sees it.

How the servers are started is in ``wsgi_servers``, the cases of the wrapper in ``wsgi_cases``, and how an answer to one
is judged in ``wsgi_matrix``, which prints what servers do without this package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import rows
import wsgi_matrix
from served_rows import SOCKET_ROWS, answers, as_served, complaints
from wsgi_cases import CASES, Case
from wsgi_servers import OTHERS, OURS, STOCK, Folder, Server, running

SERVERS = (*OURS, *OTHERS, *(server for server in STOCK if server not in OTHERS))


@dataclasses.dataclass
class Running:
    """A server that runs."""

    server: Server
    address: tuple[str, int]
    log: Path


@pytest.fixture(scope="module")
def folder() -> Iterator[Folder]:
    """What all servers send from."""
    with Folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def running_server(request: pytest.FixtureRequest, folder: Folder) -> Iterator[Running]:
    """Each server is started once."""
    server: Server = request.param
    reason = server.missing()
    if reason is not None:
        pytest.skip(reason)
    with running(server, folder) as (address, log):
        yield Running(server, address, log)


def on(servers: Iterable[Server]) -> pytest.MarkDecorator:
    """A test runs on these."""
    return pytest.mark.parametrize("running_server", servers, ids=str, indirect=True)


on_all_servers = on(SERVERS)
on_persistent_servers = on([server for server in SERVERS if server.persistent])
on_the_servers_of_files = on([*OURS, *OTHERS])


# ---- The matrix ----


def prefix_of(server: Server) -> str:
    """Ours need no middleware."""
    return "plain" if server.ours else "conditional"


@on_all_servers
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_file_wrapper(case: Case, running_server: Running, folder: Folder) -> None:
    """The right bytes arrive, framed by Content-Length, the connection stays in step, and the object is closed once.

    On a server of ours with any application; on the others, if the application is in Conditional.
    """
    prefix = prefix_of(running_server.server)
    number = next(wsgi_matrix.numbers)
    verdict = wsgi_matrix.ask(running_server.address, case, folder, prefix, number)
    assert not verdict.wrong
    if case.sized:
        assert not verdict.framing
    if case.closes:
        assert wsgi_matrix.closes(folder, number) == 1


@on_persistent_servers
def test_pipelined(running_server: Running, folder: Folder) -> None:
    """Many requests at once on one connection: each answer begins where the last one ends."""
    found = wsgi_matrix.ask_all_at_once(running_server.address, folder, prefix_of(running_server.server))
    assert found == {case.name: [] for case in CASES}


# ---- The rows ----


@dataclasses.dataclass(frozen=True)
class Difference:
    """What a server does to the answers to some rows, whatever the application says."""

    why: str
    servers: tuple[str, ...]
    #: By the name of the row: all that the row's judge complains of.
    complaints: dict[str, str]


DIFFERENCES = (
    Difference(
        "joins the lines of a field by a comma without a space, so that the halves of a tag become one",
        ("gunicorn", "wsgiref", "gevent"),
        {"inm-two-lines-tag-across": "status 304 instead of 200"},
    ),
    Difference(
        "passes only the last line of a field that it doesn't know to be a list",
        ("cheroot",),
        {
            "ims-two-lines": "status 304 instead of 200",
            "ims-two-lines-one-garbage": "status 304 instead of 200",
            "ius-two-lines": "status 412 instead of 200",
            "ifr-two-lines": "status 206 instead of 200",
            "ifr-date-two-lines": "status 206 instead of 200",
            "rng-bad-two-lines": "status 206 instead of 200",
            "rng-bad-two-lines-same": "status 206 instead of 200",
            "rng-two-lines-joined": "status 200 instead of 206",
        },
    ),
    Difference(
        "drops a Content-Length of 0 from the answer to a HEAD",
        ("mod_wsgi",),
        {
            "ius-head": "Content-Length None instead of 0",
            "head-empty-file": "Content-Length None instead of 0",
            "head-im-mismatch": "Content-Length None instead of 0",
        },
    ),
    Difference(
        "answers an HTTP/1.0 request with HTTP/1.0",
        ("uWSGI",),
        {row.name: "version HTTP/1.0" for row in SOCKET_ROWS if row.version == 10},
    ),
)


@on_the_servers_of_files
@pytest.mark.parametrize("row", SOCKET_ROWS, ids=str)
def test_row(row: rows.Row, running_server: Running, folder: Folder) -> None:
    """What Files answers is what the row expects, and leaves the connection in step."""
    server = running_server.server
    tag, (response,) = answers(row, running_server.address, folder.files)
    assert complaints(as_served(row, server.persistent), response, tag) == different(row, server)


def different(row: rows.Row, server: Server) -> list[str]:
    """What it has to say against it."""
    name = server.name.removeprefix("sendgate.")
    return [
        difference.complaints[row.name]
        for difference in DIFFERENCES
        if name.startswith(difference.servers) and row.name in difference.complaints
    ]


# ---- After all that ----


@on_all_servers
def test_nothing_was_wrong_on_the_inside(running_server: Running, folder: Folder) -> None:
    """No server has logged a traceback, and nothing was closed again later."""
    assert "Traceback" not in running_server.log.read_text()
    assert {path.stat().st_size for path in folder.closed.iterdir()} <= {1}
