"""What any representation is asked for, and what RFC 9110 has for the answers, whoever makes them."""

from __future__ import annotations

from typing import Any

#: A method, fields by their names with _ for -, and what is due: the status, and of a 206 which bytes.
ASKED: list[tuple[str, dict[str, str], int, list[slice]]] = [
    ("GET", {}, 200, []),
    ("HEAD", {}, 200, []),
    ("GET", {"Range": "bytes=1000-1999"}, 206, [slice(1000, 2000)]),
    ("GET", {"Range": "bytes=1000-"}, 206, [slice(1000, None)]),
    ("GET", {"Range": "bytes=-1"}, 206, [slice(-1, None)]),
    ("GET", {"Range": "bytes=0-0,-50000"}, 206, [slice(0, 1), slice(-50_000, None)]),
    ("GET", {"Range": "bytes={size}-"}, 416, []),
    ("GET", {"Range": "lines=0-1"}, 200, []),
    ("HEAD", {"Range": "bytes=0-0"}, 200, []),
    ("GET", {"Range": "bytes=0-0", "If_Range": "{tag}"}, 206, [slice(0, 1)]),
    ("GET", {"Range": "bytes=0-0", "If_Range": '"x"'}, 200, []),
    ("GET", {"Range": "bytes=0-0", "If_Range": "Sun, 06 Nov 1994 08:49:36 GMT"}, 200, []),
    ("GET", {"If_None_Match": "{tag}"}, 304, []),
    ("GET", {"If_None_Match": 'W/{tag}, "x"'}, 304, []),
    ("GET", {"If_None_Match": '"x"', "If_Modified_Since": "{date}"}, 200, []),
    ("HEAD", {"If_None_Match": "{tag}"}, 304, []),
    ("GET", {"If_Match": '"x"'}, 412, []),
    ("GET", {"If_Match": "{tag}"}, 200, []),
]


def check_all(server: Any, target: str, content: bytes, tag: str | None, date: str | None, **always: str) -> None:
    """Ask the server's method ``get`` all that, with what is always asked for, and compare.

    It answers as ``rows.Response`` does. tag, date: the representation's own; without a tag what needs one is left out.
    """
    for method, fields, status, spans in ASKED:
        if tag is None and "{tag}" in "".join(fields.values()):
            continue
        given = {"tag": tag, "size": len(content), "date": date or "Sun, 06 Nov 1994 08:49:37 GMT"}
        asked = {name: value.format(**given) for name, value in fields.items()}
        response = server.get(target, method, **asked, **always)
        what = (target, method, asked, response.head)
        assert response.status == status, what
        assert (response.get("ETag"), response.get("Last-Modified")) == {
            200: (tag, date), 206: (tag, date), 304: (tag, None), 412: (None, None), 416: (None, None),
        }[status], what  # fmt: skip
        if status in (200, 206) and method == "GET":
            # A head alone may be the application's own.
            assert response.get("Accept-Ranges") == "bytes", what
        if status == 200:
            assert response.body == (b"" if method == "HEAD" else content), what
            if response.get("Content-Encoding") is None:
                assert response.get("Content-Length") == str(len(content)), what
        elif status == 206:
            due = [(*span.indices(len(content))[:2], len(content), content[span]) for span in spans]
            if len(spans) == 1:
                got = [(*response.content_range(), response.body)]
            else:
                assert not response.all("Content-Range"), what
                got = [(part.first, part.last, part.complete, part.data) for part in response.parts()]
            assert [(first, last + 1, size, data) for first, last, size, data in got] == due, what
        else:
            assert not response.body, what
