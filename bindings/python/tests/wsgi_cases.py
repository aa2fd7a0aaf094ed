"""The cases of the file_wrapper matrix: what an application gives to ``wsgi.file_wrapper``, and what has to arrive.

Servers import it from a ``wsgi_servers.Folder``, where the folder "files" is beside it, with what is sent, and the
folder "closed", where a case leaves a byte in the file NUMBER each time that its object is closed. The standard library
suffices.
"""

from __future__ import annotations

import functools
import gzip
import io
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

HERE = Path(__file__).resolve().parent
#: 1000 bytes, as many as in each of the other objects.
FILE = HERE / "files" / "thousand.bin"
BIG = HERE / "files" / "24MiB.bin"
ZIPPED = HERE / "files" / "thousand.gz"
LENGTH = 1000
BIG_LENGTH = 24 << 20

#: Called each time that an object is closed.
Note = Callable[[], None]


# ---- What is given to the wrapper ----


class File(io.BufferedReader):
    """A file as open() makes them."""

    def __init__(self, note: Note, path: Path = FILE, position: int = 0) -> None:
        super().__init__(io.FileIO(path))
        self.note = note
        self.seek(position)

    def close(self) -> None:
        """Close it, and note that."""
        super().close()
        self.note()


class Readable:
    """An object that has read() and close(), and nothing else."""

    def __init__(self, note: Note, data: bytes) -> None:
        self.note = note
        self.file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        return self.file.read(size)

    def close(self) -> None:
        """Close it, and note that."""
        self.file.close()
        self.note()


class Bytes(io.BytesIO):
    """A BytesIO."""

    def __init__(self, note: Note) -> None:
        super().__init__(FILE.read_bytes())
        self.note = note

    def close(self) -> None:
        """Close it, and note that."""
        super().close()
        self.note()


class Mapped(mmap.mmap):
    """A file in memory. Closing it fails while somebody has a pointer into it."""

    note: Note

    def close(self) -> None:
        """Close it, and note that."""
        super().close()
        self.note()


class Exposing(Readable):
    """An object that also gives its bytes away. What getbuffer() returns need not be a memoryview."""

    def __init__(self, note: Note, data: bytes) -> None:
        super().__init__(note, data)
        self._memory = mmap.mmap(-1, len(data))
        self._memory[:] = data

    def getbuffer(self) -> mmap.mmap:
        """As BytesIO's."""
        return self._memory

    def close(self) -> None:
        """Fails while somebody has a pointer into its memory."""
        self._memory.close()
        super().close()


class Zipped(gzip.GzipFile):
    """Its fileno() is that of the compressed file."""

    def __init__(self, note: Note) -> None:
        super().__init__(ZIPPED)
        self.note = note

    def close(self) -> None:
        """Close it, and note that."""
        super().close()
        self.note()


class Proxy:
    """An object around another, as tempfile and Django have them: its methods are found by __getattr__ only."""

    def __init__(self, note: Note, file: Any) -> None:
        self.note = note
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def close(self) -> None:
        """Close it, and note that."""
        self.file.close()
        self.note()


def read_before(note: Note) -> File:
    """A file of which 10 bytes were read, and its buffer has all: the descriptor stands at the end."""
    file = File(note)
    file.read(10)
    return file


def mapped(note: Note) -> Mapped:
    """The file, mapped."""
    with FILE.open("rb") as file:
        result = Mapped(file.fileno(), 0, access=mmap.ACCESS_READ)
    result.note = note
    return result


def just_written(note: Note) -> Proxy:
    """A temporary file that was written by the request itself."""
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed by whoever sends it
    file.write(FILE.read_bytes())
    file.seek(0)
    return Proxy(note, file)


def spooled(note: Note) -> Proxy:
    """A temporary file that is in memory until it is asked for a descriptor."""
    file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - as above
    file.write(FILE.read_bytes())
    file.seek(0)
    return Proxy(note, file)


def pipe(note: Note) -> Proxy:
    """A file with a descriptor, but not a regular one."""
    reading, writing = os.pipe()
    with open(writing, "wb") as file:
        file.write(FILE.read_bytes())
    return Proxy(note, open(reading, "rb"))


# ---- Middleware ----

Environ = dict
StartResponse = Callable[..., Callable[[bytes], object]]
Application = Callable[..., Iterable[bytes]]


class Hidden:
    """What a middleware returns that wants to look at each item: the wrapper can't be seen in it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner

    def close(self) -> None:
        """PEP 3333: middleware has to pass it on."""
        self._inner.close()


def hiding(application: Application, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Middleware that returns another iterable."""
    return Hidden(application(environ, start_response))


def adding(application: Application, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Middleware that adds a field."""

    def add(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        return start_response(status, [*headers, ("X-Added", "by middleware")], exc_info)

    return application(environ, add)


def generating(application: Application, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """A generator: start_response is called only when the first item is asked for."""
    result = application(environ, start_response)
    try:
        yield from result
    finally:
        result.close()  # type: ignore[attr-defined]


# ---- The cases ----


@dataclass(frozen=True)
class Case:
    """One row of the matrix: what the application does, and what has to arrive."""

    name: str
    #: Makes the object.
    make: Callable[[Note], Any]
    #: Content-Length that the application gives.
    announced: int | None = LENGTH
    #: What arrives: bytes [first, last) of the file.
    first: int = 0
    last: int = LENGTH
    #: Whether a server can know how much that is before it has read all, so that there has to be a Content-Length.
    sized: bool = True
    status: str = "200 OK"
    method: str = "GET"
    path: Path = FILE
    #: Whether the object has a close().
    closes: bool = True
    middleware: Callable[..., Iterable[bytes]] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def slug(self) -> str:
        """The name in a URL and in a test's name."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name).split()).lower()

    def application(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """As applications do it, also where there is no wsgi.file_wrapper (PEP 3333)."""
        note = functools.partial(note_close, int(environ["QUERY_STRING"]))
        headers = [("Content-Type", "application/octet-stream")]
        if self.announced is not None:
            headers.append(("Content-Length", str(self.announced)))
        if self.status.startswith("206"):
            headers.append(("Content-Range", f"bytes {self.first}-{self.last - 1}/{LENGTH}"))
        start_response(self.status, headers)
        result: Iterable[bytes] = environ.get("wsgi.file_wrapper", FileWrapper)(self.make(note), 8192)
        return result

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The application with its middleware."""
        if self.middleware is None:
            return self.application(environ, start_response)
        return self.middleware(self.application, environ, start_response)


def at(position: int) -> Callable[[Note], File]:
    """The file, standing there."""
    return lambda note: File(note, FILE, position)


def readable(note: Note) -> Readable:
    """The file's content, without the file."""
    return Readable(note, FILE.read_bytes())


CASES = (
    Case("offset 0, CL=1000", at(0)),
    Case("seek(100), CL=900", at(100), 900, 100),
    Case("seek(100), CL=50", at(100), 50, 100, 150),
    Case("CL=1500, the file has 1000", at(0), 1500),
    Case("no CL", at(0), None),
    Case("no CL, seek(100)", at(100), None, 100),
    Case("read(10) first", read_before, 990, 10),
    Case("206, seek(200), CL=100", at(200), 100, 200, 300, status="206 Partial Content"),
    Case("HEAD", at(0), method="HEAD"),
    Case("304", at(0), status="304 Not Modified"),
    Case("24 MiB", lambda note: File(note, BIG), BIG_LENGTH, last=BIG_LENGTH, path=BIG),
    Case("hidden by middleware", at(0), middleware=hiding),
    Case("field added by middleware", at(0), middleware=adding),
    Case("called by a generator", at(0), middleware=generating),
    Case("read() only", readable),
    Case("read() only, CL=50", readable, 50, 0, 50),
    Case("read() only, no CL", readable, None, sized=False),
    Case("read() only, HEAD", readable, method="HEAD"),
    Case("pipe", pipe),
    Case("GzipFile", Zipped),
    Case("temporary file just written", just_written),
    Case("SpooledTemporaryFile", spooled),
    Case("BytesIO, seek(100)", lambda note: _sought(Bytes(note)), 900, 100),
    Case("mmap", mapped),
    Case("mmap, seek(100), CL=50", lambda note: _sought(mapped(note)), 50, 100, 150),
    Case("read() and getbuffer()", lambda note: Exposing(note, FILE.read_bytes())),
    Case("bytearray", lambda _: bytearray(FILE.read_bytes()), closes=False),
    Case("memoryview", lambda _: memoryview(FILE.read_bytes()), closes=False),
)
BY_SLUG = {case.slug: case for case in CASES}


def _sought(file: Any) -> Any:
    file.seek(100)
    return file


def note_close(number: int) -> None:
    """A byte more in the request's file."""
    fd = os.open(HERE / "closed" / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(fd, b".")
    finally:
        os.close(fd)
