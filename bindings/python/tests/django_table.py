"""What middleware does to each use case on a server, as a client sees it.

    python bindings/python/tests/django_table.py

prints the tables of docs/django.md: views of Django alone, and a line for those of this package.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests"))
from django_project import ETAG, LAST_MODIFIED, STACKS, Feed, Reply, Running, running  # noqa: E402

#: Each can be compressed, and is too small for a compressor to give anything of it away by itself.
PIECES = [b"".join(b"%d:%d " % (piece, number) for number in range(100)) for piece in range(3)]
CONTENT = b"".join(PIECES)
#: What the view ``file`` sends, which is old enough for a strong tag, and its tag.
FILE = CONTENT * 100
OLD = 784111777
TAG = f'"{OLD * 10**9:x}-{len(FILE):x}"'

#: The use cases by view, as the tables call them.
VIEWS = {
    "text": "iterator as a string",
    "streamed": "streamed iterator",
    "streamed-async": "the same, asynchronous",
    "large": "large file of a store",
    "large-cached-by-clients": "the same, cached by clients",
    "large-compressed": "the same, compressed on the fly",
    "long": "long response",
    "file": "file of this machine, Range",
}
#: Those of Django, each alone, and all.
COLUMNS = ("no middleware", "UpdateCache", "GZip", "ConditionalGet", "Common", "FetchFromCache", "all five")
#: The same, with those of this package in the place of three of them.
OURS = (
    "no middleware", "our UpdateCache", "our GZip", "our ConditionalGet", "Common", "FetchFromCache",
    "all five, three ours",
)  # fmt: skip

#: What is to arrive unchanged; None: it must not arrive.
_FIELDS: dict[str, dict[str, str | None]] = {
    "large": {"etag": ETAG, "last-modified": LAST_MODIFIED, "cache-control": "no-cache", "content-encoding": None},
    "large-cached-by-clients": {
        "etag": ETAG, "last-modified": LAST_MODIFIED, "cache-control": "max-age=3600", "content-encoding": None,
    },
    "large-compressed": {"etag": ETAG, "last-modified": LAST_MODIFIED, "cache-control": "no-cache"},
    "long": {"content-encoding": None},
    "long-not-compressed": {"content-encoding": None},
}  # fmt: skip
_WORDS = {
    "etag": "ETag",
    "last-modified": "Last-Modified",
    "cache-control": "Cache-Control",
    "content-encoding": "gzip",
}

#: What is cached under one URL isn't asked for a second time.
_numbers = itertools.count()


def judge(server: Running, feed: Feed, stack: str, view: str, patience: float = 20) -> str:
    """ "right", or what is wrong with the answer: what has changed or got lost of it, and "late", if a piece doesn't
    come before the store sends the next one. patience: seconds until it is known that it doesn't.
    """
    assert stack in STACKS, stack
    name = view.removeprefix("stock/")
    if name == "file":
        return _judge_file(server, stack, view)
    wrong = []
    target = f"/{view}/?{next(_numbers)}"
    with Reply(server.address, target, "Accept-Encoding: gzip", f"X-Stack: {stack}") as reply:
        feed.accept(len(CONTENT))
        arrived = 0
        for piece in PIECES:
            feed.send(piece)
            arrived += len(piece)
            # A string is sent as a whole.
            if name != "text" and not wrong and not reply.has(arrived, patience):
                wrong.append("late")
        feed.end()
        if reply.rest() != CONTENT or reply.status != 200:
            return "wrong content"
        for field, value in _FIELDS.get(name, {}).items():
            if reply.fields.get(field) != value:
                wrong.append(_WORDS[field])
        whole = reply.fields.get("content-length") == str(len(CONTENT))
        if name in ("large", "large-cached-by-clients") and not whole:
            wrong.append("length")
        return ", ".join(wrong) or "right"


def _judge_file(server: Running, stack: str, view: str) -> str:
    wrong = []
    fields = ("Accept-Encoding: gzip", "Range: bytes=10-109", f"X-Stack: {stack}")
    with Reply(server.address, f"/{view}/", *fields) as reply:
        content = reply.rest()
        assert content in (FILE, FILE[10:110])
        if reply.status != 206 or reply.sent != 100 or content != FILE[10:110]:
            wrong.append("whole")
        if reply.fields.get("etag") != TAG:
            wrong.append("no ETag")
        if "content-encoding" in reply.fields:
            wrong.append("gzip")
    return ", ".join(wrong) or "right"


def write_file(directory: Path) -> Path:
    """What the view ``file`` sends."""
    file = directory / "file.txt"
    file.write_bytes(FILE)
    os.utime(file, (OLD, OLD))
    return file


def lines(server: Running, feed: Feed, patience: Callable[[str, str], float]) -> list[str]:
    """A table. patience: see ``judge``, by use case and column."""
    made = [
        "| | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " --- |" * len(COLUMNS),
    ]
    for view, title in VIEWS.items():
        found = [judge(server, feed, stack, "stock/" + view, patience(title, stack)) for stack in COLUMNS]
        made.append(f"| {title} | " + " | ".join(found) + " |")
    ours = []
    for stack in OURS:
        found = sorted({judge(server, feed, stack, view) for view in (*VIEWS, "long-not-compressed")})
        ours.append("; ".join(found))
    made.append("| **each, by sendgate.django** | " + " | ".join(ours) + " |")
    return made


def main() -> None:
    """Print both."""
    with tempfile.TemporaryDirectory() as name, Feed() as feed:
        directory = Path(name)
        file = write_file(directory)
        for server in ("gunicorn", "uvicorn"):
            with running(server, directory, feed.url, file) as started:
                print(server, *lines(started, feed, lambda title, stack: 1), sep="\n")


if __name__ == "__main__":
    main()
