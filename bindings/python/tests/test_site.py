"""A folder as a web site, on values: paths, media types, fields, precompressed files, what is remembered of them."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sendgate
from sendgate import _core, _site
from sendgate._site import CODINGS, Found, Site

OLD = 784111777


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file, and a file that has compressed forms."""
    made = tmp_path / "root"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("hello\n")
    (made / "sub" / "index.html").write_text("index")
    (made / "app.js").write_text("x" * 1000)
    for number, suffix in enumerate((".br", ".gz", ".zst")):
        (made / ("app.js" + suffix)).write_text("c" * (100 + number))
    for path in made.rglob("*.*"):
        os.utime(path, (OLD, OLD))
    return made


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What exceptions refer to is gone before descriptors are counted."""
    yield
    gc.collect()


def content(found: Found | None) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and fields of what was found; closes it."""
    assert found is not None
    data = found.file if isinstance(found.file, bytes) else os.pread(found.file.fileno(), 1 << 20, 0)
    found.close()
    fields = dict(found.fields)
    assert len(fields) == len(found.fields), "a field twice"
    return found.status, data, fields


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is looked up again at once."""
    monkeypatch.setattr(_site, "_FRESH", -1.0)


# ---- Paths ----


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", (b"", True)),
        (b"/", (b"", True)),
        (b"//", (b"", True)),
        (b"a", (b"a", False)),
        (b"a/", (b"a", True)),
        (b"/a/b", (b"a/b", False)),
        (b"a//b", (b"a/b", False)),
        (b"a/./b", (b"a/b", False)),
        (b"a/../b", (b"b", False)),
        (b"a/b/..", (b"a", True)),
        (b"a/.", (b"a", True)),
        (b".", (b"", True)),
        (b"./a", (b"a", False)),
        (b"..", (b"", True)),
        (b"../a", (b"a", False)),
        (b"../../../a", (b"a", False)),
        (b"a/../../b", (b"b", False)),
        (b"...", (b"...", False)),
        (b".a", (b".a", False)),
        (b"a/.b", (b"a/.b", False)),
        (b"a/..b/c", (b"a/..b/c", False)),
        (b"\xff/\\..", (b"\xff/\\..", False)),
    ],
)
def test_normalize(path: bytes, expected: tuple[bytes, bool]) -> None:
    """Empty segments, "." and ".." go as RFC 3986 5.2.4 has it, and never above the root; nothing else changes."""
    assert _site.normalize(path) == expected


def test_a_nul_is_a_bad_request(root: Path) -> None:
    """No file can have that name."""
    assert content(Site(root).find(b"a.txt\0.html", None))[0] == 400


def test_what_is_hidden(root: Path) -> None:
    """A name with a dot in front is not there, nor what is beneath it, but for .well-known and what was asked for."""
    for name in (".env", ".git/config", "sub/.htaccess", ".well-known/security.txt", ".well-known/.secret"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    for hidden in (False, True):
        site = Site(root, hidden=hidden)
        for name in (".env", ".git/config", "sub/.htaccess", ".well-known/.secret", "a/../.env", "./.env", ".git/"):
            found = site.find(name.encode(), None)
            assert (found is not None) == (hidden and not name.endswith("/")), name
            if found is not None:
                found.close()
        assert content(site.find(b".well-known/security.txt", None))[1] == b".well-known/security.txt"


def test_directories(root: Path) -> None:
    """An index answers at the URL with a slash; without one, or without an index, there is no redirect into nothing."""
    (root / "empty").mkdir()
    site = Site(root)
    assert content(site.find(b"sub/", None))[1] == b"index"
    with pytest.raises(IsADirectoryError) as caught:
        site.find(b"x/..//sub", None)
    assert caught.value.filename == "sub"
    assert site.find(b"empty", None) is None
    assert site.find(b"empty/", None) is None
    assert site.find(b"", None) is None
    assert site.find(b"a.txt/", None) is None
    site = Site(root, index=None)
    assert site.find(b"sub", None) is None
    assert site.find(b"sub/", None) is None


def test_links_that_lead_out(root: Path, tmp_path: Path) -> None:
    """They are not there, unless they are asked for; nor is a compressed form that is one."""
    (tmp_path / "secret").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "app.js.br").unlink()
    (root / "app.js.br").symlink_to(tmp_path / "secret")
    assert Site(root).find(b"out", None) is None
    # The next best is taken.
    assert content(Site(root).find(b"app.js", "br, gzip"))[2]["Content-Encoding"] == "gzip"
    site = Site(root, follow_symlinks=True)
    assert content(site.find(b"out", None))[1] == b"secret"
    assert content(site.find(b"app.js", "br, gzip"))[1] == b"secret"


def test_errors_of_opening(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may not be read is 403, out of descriptors 503, and what is broken is the server's to report."""
    site = Site(root)
    os.mkfifo(root / "fifo")
    assert content(site.find(b"fifo", None))[0] == 403
    assert site.find(b"x" * 300, None) is None

    def failing(number: int) -> Any:
        def open_beneath(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return open_beneath

    for number, status in ((errno.EACCES, 403), (errno.EMFILE, 503)):
        monkeypatch.setattr(_site, "open_beneath", failing(number))
        assert content(site.find(b"a.txt", None))[0] == status
    monkeypatch.setattr(_site, "open_beneath", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        site.find(b"a.txt", None)


def test_error_pages(root: Path) -> None:
    """The site's own page, of its own type; a short one where there is none, or it can't be opened."""
    (root / "404.txt").write_text("not here")
    site = Site(root, error_pages={404: "404.txt", 403: "missing.html"})
    found = site.error(404)
    assert found.content_type == "text/plain; charset=utf-8"
    assert content(found)[:2] == (404, b"not here")
    for status in (403, 405):
        found = site.error(status)
        assert found.content_type == "text/html; charset=utf-8"
        assert str(status).encode() in content(found)[1]


# ---- Fields ----


def test_cache_control(root: Path) -> None:
    """max_age is for all, immutable for what it finds, and a Cache-Control of one's own wins over both."""
    site = Site(root, max_age=60, immutable=r"\.js$")
    assert content(site.find(b"a.txt", None))[2]["Cache-Control"] == "public, max-age=60"
    assert content(site.find(b"app.js", None))[2]["Cache-Control"] == "public, max-age=31536000, immutable"
    site = Site(root, max_age=0, immutable=lambda path: path == "sub/index.html")
    assert content(site.find(b"sub/", None))[2]["Cache-Control"].endswith("immutable")
    assert content(site.find(b"app.js", None))[2]["Cache-Control"] == "public, max-age=0"
    site = Site(root, max_age=60, headers=[("cache-control", "no-store"), ("X-A", "b")])
    assert content(site.find(b"a.txt", None))[2] == {"cache-control": "no-store", "X-A": "b"}
    assert content(Site(root).find(b"a.txt", None))[2] == {}


def test_fields_by_path(root: Path) -> None:
    """A function gets the path beneath the root."""
    site = Site(root, headers=lambda path: [("X-Path", path)])
    assert content(site.find(b"/sub/", None))[2] == {"X-Path": "sub/index.html"}


def test_content_types(root: Path) -> None:
    """One's own come first, whatever the case of the name; a compressed form has the type of what it was made of."""
    (root / "A.TXT").touch()
    (root / "a.wasmx").touch()
    site = Site(root, content_types={".TXT": "text/x-mine", ".wasmx": "application/wasm"})
    for name, expected in (("a.txt", "text/x-mine"), ("A.TXT", "text/x-mine"), ("a.wasmx", "application/wasm")):
        found = site.find(name.encode(), None)
        assert found is not None and found.content_type == expected
        found.close()
    for path, expected in ((b"app.js", "text/javascript"), (b"app.js.gz", "application/gzip")):
        found = site.find(path, "gzip")
        assert found is not None and found.content_type.startswith(expected)
        found.close()


# ---- Compressed forms ----

ALL = tuple(coding for coding, _ in CODINGS)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("", ()),
        ("gzip", ("gzip",)),
        ("GZIP", ("gzip",)),
        ("x-gzip", ("gzip",)),
        ("gzip, deflate, br, zstd", ("br", "zstd", "gzip")),
        ("gzip;q=1.0, br;q=0.5", ("gzip", "br")),
        ("gzip ; q=0.5 , br; q=0.001", ("gzip", "br")),
        ("br;q=0", ()),
        ("br;q=0.000, *", ("zstd", "gzip")),
        ("*", ALL),
        ("*;q=0", ()),
        ("*;q=0, gzip", ("gzip",)),
        ("identity", ()),
        ("identity, gzip", ("gzip",)),
        ("identity;q=1, gzip;q=0.5", ()),
        ("identity;q=0.5, gzip", ("gzip",)),
        ("identity;q=0, *;q=0.1", ALL),
        ("br;q=1.5", ()),
        ("br;q=x", ()),
        ("br;q=", ()),
        ("br;q=0.1234", ()),
        ("br;level=5", ("br",)),
        (",,br,,", ("br",)),
        ("brx, xbr", ()),
    ],
)
def test_acceptable(field: str, expected: tuple[str, ...]) -> None:
    """Accept-Encoding as RFC 9110 12.5.3 has it; a quality that is none counts as 0."""
    assert tuple(coding for coding, _ in _site.acceptable(field, CODINGS)) == expected


def test_the_best_form(root: Path) -> None:
    """That which the client likes best, with Vary also on the plain file; ours decides where it doesn't care."""
    site = Site(root)
    for accept, coding, length in (
        ("gzip, deflate, br, zstd", "br", 100),
        ("gzip, zstd", "zstd", 102),
        ("gzip", "gzip", 101),
        ("br;q=0.1, gzip", "gzip", 101),
        ("deflate", None, 1000),
        (None, None, 1000),
        ("", None, 1000),
    ):
        status, data, fields = content(site.find(b"app.js", accept))
        assert (status, len(data), fields.get("Content-Encoding")) == (200, length, coding), accept
        assert fields["Vary"] == "Accept-Encoding"
    assert "Vary" not in content(site.find(b"a.txt", "gzip"))[2]
    _, data, fields = content(Site(root, precompressed=False).find(b"app.js", "gzip"))
    assert (len(data), fields) == (1000, {})


def test_each_form_has_its_own_validators(root: Path) -> None:
    """Two forms never share an entity tag: one with another's time and length is left out (RFC 9110 8.8.3)."""
    (root / "app.js.gz").write_text("g" * 100)  # as long as the .br
    os.utime(root / "app.js.gz", (OLD, OLD))
    site = Site(root)
    tags = set()
    for accept in ("br", "zstd", None):
        found = site.find(b"app.js", accept)
        assert found is not None and isinstance(found.file, sendgate.File)
        tags.add(found.file.etag)
        found.close()
    assert len(tags) == 3
    assert "Content-Encoding" not in content(site.find(b"app.js", "gzip"))[2]


@pytest.mark.parametrize("what", ["older", "longer", "as long", "directory", "dangling"])
def test_forms_that_do_not_count(root: Path, what: str) -> None:
    """A compressed form older than the file is of another content, and one that isn't smaller is of no use."""
    form = root / "app.js.br"
    if what == "older":
        os.utime(form, ns=(OLD * 10**9 - 1, OLD * 10**9 - 1))
    elif what in ("longer", "as long"):
        form.write_text("c" * (1001 if what == "longer" else 1000))
    else:
        form.unlink()
        if what == "directory":
            form.mkdir()
        else:
            form.symlink_to("nothing")
    assert content(Site(root).find(b"app.js", "br"))[2] == {"Vary": "Accept-Encoding"}


@pytest.mark.usefixtures("forgetful")
def test_forms_come_and_go(root: Path) -> None:
    """One that appears, disappears or becomes too old is noticed when what is remembered is looked up again."""
    site = Site(root)
    form = root / "a.txt.gz"

    def coding() -> str | None:
        return content(site.find(b"a.txt", "gzip"))[2].get("Content-Encoding")

    assert coding() is None
    form.write_text("c")
    assert coding() == "gzip"
    os.utime(form, (OLD - 1, OLD - 1))
    assert coding() is None
    os.utime(form, (OLD, OLD))
    assert coding() == "gzip"
    os.utime(root / "a.txt", (OLD + 1, OLD + 1))
    assert coding() is None
    os.utime(form, None)
    assert coding() == "gzip"
    form.unlink()
    assert coding() is None
    assert "Vary" not in content(site.find(b"a.txt", "gzip"))[2]


def test_what_is_remembered_and_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the second a form that is gone is replaced by the next best, and a file that is gone is not found."""
    monkeypatch.setattr(_site, "_FRESH", 1e6)
    site = Site(root)
    assert content(site.find(b"app.js", "br, gzip"))[2]["Content-Encoding"] == "br"
    (root / "app.js.br").unlink()
    assert content(site.find(b"app.js", "br, gzip"))[2]["Content-Encoding"] == "gzip"
    (root / "app.js.gz").unlink()
    assert content(site.find(b"app.js", "br, gzip"))[1] == b"x" * 1000
    (root / "app.js").unlink()
    assert site.find(b"app.js", "br, gzip") is None


def test_names_that_do_not_exist_are_not_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a client can't fill memory with them; and what exists is limited too."""
    monkeypatch.setattr(_site, "_REMEMBERED", 2)
    site = Site(root)
    for number in range(10):
        assert site.find(b"nothing%d" % number, "gzip") is None
    assert not site._known
    for name in (b"a.txt", b"app.js", b"sub/index.html", b"app.js.gz"):
        content(site.find(name, None))
        assert len(site._known) <= 2


def test_nothing_stays_open(root: Path) -> None:
    """A file whose fields can't be made is closed, and so is the folder when the site is."""

    def broken(path: str) -> list[tuple[str, str]]:
        raise RuntimeError(path)

    site = Site(root, headers=broken)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RuntimeError, match=r"a\.txt") as caught:
        site.find(b"a.txt", None)
    # The traceback, which refers to the file, is still alive.
    assert caught.value.__traceback__ is not None
    assert len(os.listdir("/proc/self/fd")) == before
    site.close()
    site.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(ValueError, match="closed"):
        site.find(b"a.txt", None)


def test_the_end_of_the_interpreter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules' names may be gone when an application's site and files are collected: that is no error then."""
    before = len(os.listdir("/proc/self/fd"))
    site = Site(root)
    found = site.find(b"a.txt", None)
    assert found is not None
    with monkeypatch.context() as end:
        end.setattr(_site, "os", None)
        end.setattr(_core, "os", None)
        found.close()
        site.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, PermissionError, KeyError])
def test_a_mistake_in_a_callable_is_the_sites(root: Path, error: type[Exception]) -> None:
    """And no answer of 400, 403 or 404 to a client that has made none. Nothing stays open."""

    def wrong(_: str) -> list[tuple[str, str]]:
        raise error

    site = Site(root, headers=wrong)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with pytest.raises(error):
            site.find(b"a.txt", None)
    assert len(os.listdir("/proc/self/fd")) == before
    site.close()


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """It is said at once, not with each request."""
    with pytest.raises(FileNotFoundError):
        Site(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Site(tmp_path / "file")
