"""The RSGI application that ``test_rsgi`` runs in Granian: ``granian rsgi_application:application``.

It is loaded in the folder of the test, in which ``files`` is what it serves. What a request asks of it besides is said
by its query string.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from sendgate import rsgi
from sendgate._leases import Leases

HERE = Path.cwd()
FILES = HERE / "files"
#: So that a test need not wait long for the end of what is lent, and yet longer than a busy machine takes.
if "SENDGATE_TEST_PERIOD" in os.environ:
    rsgi._leases = Leases(float(os.environ["SENDGATE_TEST_PERIOD"]))


class Other:
    """What ``Files`` leaves to another application."""

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.proto == "ws":
            transport = await protocol.accept()
            message = await transport.receive()
            await transport.send_str("other: " + message.data)
            protocol.close()
            return
        protocol.response_str(200, [], f"other: {scope.method} {scope.path}")


class Application:
    """Answers by its methods: /NAME/... by the one of that name."""

    def __init__(self) -> None:
        self.files = rsgi.Files(FILES, prefix="/files/")
        self.site = rsgi.Files(
            FILES / "site",
            prefix="/site/",
            application=Other(),
            headers=[("X-Name", "\u00e9")],
            max_age=60,
            error_pages={404: "404.html"},
        )
        self.alone = rsgi.Files(FILES / "site", prefix="/alone/", error_pages={404: "404.html"})
        self.opened: asyncio.Event | None = None
        self.go: asyncio.Event | None = None
        self.churning = threading.Event()
        self.threads: list[threading.Thread] = []

    def __rsgi_init__(self, loop: Any) -> None:
        self.loop = type(loop).__module__

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        name = scope.path.split("/")[1]
        if name in ("files", "site", "alone"):
            await getattr(self, name).__rsgi__(scope, protocol)
            return
        query = dict(parse_qsl(scope.query_string))
        await getattr(self, name)(scope, rsgi.Protocol(protocol, scope), query)

    # ---- The three calls ----

    async def fd(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """All of a file, or bytes of it."""
        fd = os.open(FILES / scope.path.split("/")[2], os.O_RDONLY)
        headers = [("Content-Type", "application/octet-stream"), ("X-Two", "1"), ("X-Two", "é")]
        status = int(query.get("status", "200"))
        if "start" in query:
            protocol.response_file_fd_range(status, headers, fd, int(query["start"]), int(query["end"]))
        else:
            # As an application does that has used response_file.
            protocol.response_file_fd(status, [*headers, ("content-length", "5")], fd)

    async def conditional(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """As the document has it. The query is what the application says."""
        get = scope.headers.get
        protocol.response_file_conditional(
            int(query.pop("status", "200")),
            list(query.items()),
            str(FILES / scope.path.split("/")[2]),
            if_none_match=get("if-none-match"),
            if_modified_since=get("if-modified-since"),
            range_header=get("range"),
            if_range=get("if-range"),
        )

    async def document(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """As the document says that it is done today: open and fstat for the fields, and then a path."""
        path = FILES / scope.path.split("/")[2]
        os.lstat(path)
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            file.seek(0, os.SEEK_END)
            length = file.tell()
            file.seek(0)
        headers = [("ETag", f'"{status.st_mtime_ns:x}-{length:x}"'), ("Content-Length", str(length))]
        protocol.response_file(200, headers, str(path))

    async def thread(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """The call is made in a thread that has no event loop, and the headers are a dict."""
        asked = scope.headers.get("range")
        path = FILES / scope.path.split("/")[2]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(
            None, lambda: protocol.response_file_conditional(200, {"X-Name": "x"}, path, range_header=asked)
        )

    async def late(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """The server gets a path whose time is over."""
        paths = []
        for file in FILES / "large", HERE / "secret0":
            rsgi._leases.clear()
            rsgi._leases._next = 0  # the numbers again from the beginning
            fd = os.open(file, os.O_RDONLY)
            paths.append(Path(rsgi._leases.path(fd, os.fstat(fd))))
            os.close(fd)
        assert paths[0].name == paths[1].name
        protocol.response_file(200, [], str(paths[0]))

    async def refused(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """A call with something wrong: what it raises, and whether the descriptor is closed."""
        kind = query["file"]
        if kind == "directory":
            fd = os.open(FILES, os.O_RDONLY)
        elif kind == "pipe":
            fd, other = os.pipe()
            os.close(other)
        else:
            flags = {"readable": os.O_RDONLY, "writable": os.O_WRONLY, "path": os.O_PATH}[kind]
            fd = os.open(FILES / "small", flags)
        inode = os.fstat(fd).st_ino
        try:
            headers: Any = [("X", "y")]
            if query.get("headers") == "wrong":
                headers = 5
            if "start" in query:
                protocol.response_file_fd_range(200, headers, fd, int(query["start"]), int(query["end"]))
            else:
                protocol.response_file_fd(int(query.get("status", "200")), headers, fd)
            raised = None
        except Exception as error:
            raised = [each.__name__ for each in type(error).__mro__]
        try:
            closed = os.fstat(fd).st_ino != inode
        except OSError:
            closed = True
        answer = json.dumps({"raised": raised, "closed": closed})
        # Nothing was sent by then, or this would not be.
        protocol.response_str(200, [], answer)

    # ---- What happens between two steps ----

    async def held(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """Open, say so, and send when that is asked for."""
        fd = os.open(FILES / scope.path.split("/")[2], os.O_RDONLY)
        assert self.opened is not None and self.go is not None
        self.opened.set()
        await self.go.wait()
        if "start" in query:
            protocol.response_file_fd_range(206, [], fd, int(query["start"]), int(query["end"]))
        else:
            protocol.response_file_fd(200, [], fd)

    async def prepare(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """Before /held."""
        self.opened, self.go = asyncio.Event(), asyncio.Event()
        protocol.response_empty(204, [])

    async def wait(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """Until /held has opened its file."""
        assert self.opened is not None
        await self.opened.wait()
        protocol.response_empty(204, [])

    async def send(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """Let /held send."""
        assert self.go is not None
        self.go.set()
        protocol.response_empty(204, [])

    async def churn(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """Threads that open and close descriptors all the time; those of one lead to secrets."""
        if query["do"] == "start":
            self.churning.set()
            names = [os.devnull, *map(str, HERE.glob("secret*"))]
            self.threads = [threading.Thread(target=self._churn, args=(name,), daemon=True) for name in names]
            for thread in self.threads:
                thread.start()
        else:
            self.churning.clear()
            for thread in self.threads:
                thread.join()
        protocol.response_empty(204, [])

    def _churn(self, name: str) -> None:
        while self.churning.is_set():
            for fd in [os.open(name, os.O_RDONLY) for _ in range(40)]:
                os.close(fd)

    # ---- All else ----

    async def lent(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """How many descriptors are lent."""
        protocol.response_str(200, [], str(rsgi.lent()))

    async def clear(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """End at once all that is lent, for which a test would have to wait otherwise."""
        rsgi._leases.clear()
        protocol.response_empty(204, [])

    async def about(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """Which event loop this is, and how many descriptors are open."""
        protocol.response_str(200, [], json.dumps({"loop": self.loop, "open": len(os.listdir("/proc/self/fd"))}))

    async def echo(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """The request's content, by each way to it, and the answer by each way too."""
        if query["by"] == "call":
            protocol.response_bytes(200, [("X-Length", scope.headers["content-length"])], await protocol())
            return
        transport = protocol.response_stream(200, [])
        async for block in protocol:
            await transport.send_bytes(block)

    async def gone(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """Wait until the client has left."""
        assert self.opened is not None and self.go is not None
        self.opened.set()
        await protocol.client_disconnect()
        self.go.set()

    async def left(self, scope: Any, protocol: Any, query: dict[str, str]) -> None:
        """Until /gone has seen that."""
        assert self.go is not None
        await self.go.wait()
        protocol.response_empty(204, [])


application = Application()
