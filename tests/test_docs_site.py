"""The documentation site: it is built without a warning, lacks nothing, leads nowhere else, and says what is so."""

from __future__ import annotations

import fnmatch
import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import rows
from commands import TARGET

ROOT = Path(__file__).resolve().parent.parent
SITE = TARGET / "site"
sys.path.insert(0, str(ROOT / "scripts"))

import c_header  # noqa: E402 - scripts is no package
import figures  # noqa: E402
import site_pages  # noqa: E402

#: Links that can't be followed from here have at least the form of those that lead somewhere.
FORMS = {
    "www.rfc-editor.org": r"/rfc/rfc(2046|2616|3875|5322|6265|6266|7233|9110|9111|9112|9530)"
    r"(#(section-\d+(\.\d+)*|appendix-[A-Z](\.\d+)*))?",
    "man7.org": r"/linux/man-pages/man[1-8]/[\w.]+\.[1-8]\.html",
    "github.com": r"/[\w.-]+/[\w.-]+(/(issues|pull)/\d+)?",
}


class Page(HTMLParser):
    """What a page has: anchors, links, what it loads, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """An element."""
        values = {name: value or "" for name, value in attributes}
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values["rel"] != "canonical":
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text += data


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    """All pages, by path, of a site that was built just now. A warning fails the build."""
    done = subprocess.run(["make", "--no-print-directory", "-s", "site"], cwd=ROOT, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("setup-python: ")]
    assert done.returncode == 0 and not said, done.stderr
    return {path: Page(path) for path in sorted(SITE.rglob("*.html"))}


def page(pages: dict[Path, Page], name: str) -> Page:
    """The page made from a document."""
    return pages[SITE / name.replace(".md", ".html")]


# ---- All of it is there, and nothing leads nowhere ----


def test_each_document_is_a_page(pages: dict[Path, Page]) -> None:
    """All of docs, and what else the start page lists; each can be reached from the start page."""
    start = page(pages, "docs/index.md")
    linked = {(start.path.parent / urlsplit(link).path).resolve() for link in start.links if ":" not in link}
    documents = [path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")]
    assert len(documents) > 20
    for name in [
        *map(str, documents),
        "ABI.md",
        "DESIGN.md",
        "CHANGELOG.md",
        "bench/README.md",
        "tests/cases/README.md",
    ]:
        assert page(pages, name).path in linked or name == "docs/index.md", name
    assert 'url=docs/index.html"' in (SITE / "index.html").read_text()


def test_links(pages: dict[Path, Page]) -> None:
    """Each link within the site leads to a file, and to an anchor in it."""
    checked = 0
    for each in pages.values():
        for link in [*each.links, *each.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (each.path.parent / unquote(parts.path)).resolve() if parts.path else each.path
            assert target.is_file(), f"{each.path.relative_to(SITE)}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].ids, f"{each.path.relative_to(SITE)}: {link}"
                checked += 1
    assert checked > 3000


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    """No script, style, font or picture of another host: the site can be read without a network."""
    for each in pages.values():
        assert each.loaded or each.path == SITE / "index.html"
        assert not [link for link in each.loaded if re.match(r"(https?:)?//", link)]
    for style in SITE.rglob("*.css"):
        assert not re.search(r"""(@import|url\()\s*['"]?(https?:)?//""", style.read_text()), style


def test_links_elsewhere(pages: dict[Path, Page]) -> None:
    """They are https, and those to hosts that are often linked to have the form of these."""
    links = {link for each in pages.values() for link in each.links if urlsplit(link).scheme}
    assert len(links) > 60
    for link in links:
        parts = urlsplit(link)
        assert parts.scheme == "https" and parts.hostname, link
        where = parts.path + (f"#{parts.fragment}" if parts.fragment else "")
        assert re.fullmatch(FORMS.get(parts.hostname, ".*"), where), link


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("docs/page.md", "# Page\n\n[start](index.md#pages)\n", ""),
        ("docs/page.md", "# Page\n\n[nothing](nothing.md)\n", "target not found: 'nothing.md'"),
        ("docs/page.md", "# Page\n\n[nothing](index.md#nothing)\n", "'nothing'"),
        ("docs/other.md", "# Other\n", "docs/other.md: no line of docs/index.md leads there"),
    ],
)
def test_a_mistake_fails(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    """A link to nothing, an anchor that isn't there, a page that the table of contents leaves out; and nothing else."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Start\n\n## Pages\n\n- [Page](page.md)\n")
    (tmp_path / "docs/page.md").write_text("# Page\n")
    (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-n", "-W", "-c", ROOT / "docs", tmp_path, tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode != 0) is bool(complaint), done.stderr
    assert complaint in done.stderr


# ---- The references ----


def test_c_reference(pages: dict[Path, Page]) -> None:
    """Every name of the header, each member of each struct, and since when there is each function."""
    reference = page(pages, "docs/c-reference.md")
    found = c_header.declarations(c_header.HEADER.read_text())
    assert len(found) > 150
    for each in found:
        assert f"c.{each.name}" in reference.ids, each.name
        for member, _ in c_header.members(each.code) if each.kind == "struct" else ():
            assert f"c.{each.name}.{re.findall(r'[a-z_]+', member)[-1]}" in reference.ids, member
    since = c_header.since()
    for version in set(since.values()):
        assert reference.text.count(f"Since version {version}.") == list(since.values()).count(version)
    assert not re.search(r",\s*\)", reference.text)


def test_a_name_without_a_group_fails() -> None:
    """A new noun in the header has to be put into a group, or into the pattern of one."""
    new = c_header.Declaration("Something new.", "void sendgate_novelty(void);")
    with pytest.raises(SystemExit, match="GROUPS"):
        c_header.grouped([new])


def test_python_reference(pages: dict[Path, Page]) -> None:
    """Every public name of every module, at one place."""
    reference = page(pages, "docs/python-reference.md")
    places: dict[int, list[str]] = {}
    for name in site_pages.MODULES:
        assert f"module-{name}" in reference.ids
        module = importlib.import_module(name)
        for each in module.__all__:
            if each != "__version__":
                places.setdefault(id(getattr(module, each)), []).append(f"{name}.{each}")
    assert len(places) > 100
    for names in places.values():
        assert [name in reference.ids for name in names].count(True) == 1, names


# ---- What is answered ----


def rules() -> list[tuple[str, set[str], str, list[str]]]:
    """The tables of docs/semantics.md: condition, statuses, sections, names of rows."""
    found = []
    for line in (ROOT / "docs/semantics.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []
        if len(cells) == 4 and cells[0] not in ("if", "---"):
            statuses = re.match(r"refused|\d{3}(?:, \d{3})*", cells[1])
            assert statuses, line
            found.append((cells[0], set(statuses[0].split(", ")), cells[2], re.findall(r"`([^`]+)`", cells[3])))
    return found


def test_each_rule_is_what_its_rows_show() -> None:
    """The statuses of a rule are those that its rows expect, and its sections are those that they name."""
    cases = {row.name: row for row in rows.load()}
    assert len(rules()) > 80
    for condition, statuses, sections, names in rules():
        shown = []
        for name in names:
            matched = fnmatch.filter(cases, name)
            assert matched, f"{condition}: no row is called {name}"
            shown += [cases[each] for each in matched]
        assert {"refused" if row.error else str(row.expect["status"]) for row in shown} == statuses, condition
        named = " ".join(row.rule for row in shown)
        for section in re.findall(r"\d+(?:\.\d+)+|(?<=RFC 911\d )\d+", sections):
            assert re.search(rf"(?<![\d.]){re.escape(section)}(?!\d)", named), f"{condition}: {section}"


def test_each_row_is_behind_a_rule(pages: dict[Path, Page]) -> None:
    """No row is left out, their number is right, and the site has a place for each."""
    cases = [row.name for row in rows.load()]
    patterns = [name for _, _, _, names in rules() for name in names]
    assert not [name for name in cases if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    assert f"There are {len(cases)} of" in " ".join((ROOT / "docs/semantics.md").read_text().split())
    assert {f"row-{name}" for name in cases} <= page(pages, "tests/cases/README.md").ids


# ---- Figures ----


def test_figures_are_those_recorded() -> None:
    """Tables and pictures of docs/performance.md are what README.md and bench/README.md say: make figures."""
    text = figures.PAGE.read_text()
    assert figures.page(text) == text, "run make figures"
    drawn = figures.pictures()
    assert {path.name: path.read_text() for path in figures.PICTURES.iterdir()} == drawn, "run make figures"
    assert re.findall(r"\]\(figures/([\w.]+)\)", text) == list(drawn)
    # What a server takes for hello-world stands between the tables.
    hello = r"(\w+) (\d+ us) (?:for hello-world|as `sendgate\.uvicorn:HttpTools`)"
    said = [re.findall(hello, " ".join(path.read_text().split())) for path in (figures.PAGE, ROOT / "README.md")]
    assert len(said[0]) == 4 and said[0] == said[1]


def test_a_picture_shows_the_figures() -> None:
    """Each mark is above the figure on the axis that the table has."""
    match = figures.TABLE.search(
        "| case | floor | ours |\n| --- | ---: | ---: |\n| 304 | 1.00 (3 us) | 3.00 (9 us) |\n"
    )
    assert match
    picture = figures.chart(figures.Table(match), (), "ratio")
    axis = {value: float(at) for at, value in re.findall(r'<text x="([\d.]+)"[^>]*>(\d)</text>', picture)}
    assert sorted(axis) == ["0", "1", "2", "3"]
    # The first of each kind is the legend's.
    ours, floor = re.findall(r'<circle cx="([\d.]+)"', picture), re.findall(r'<rect x="([\d.]+)"', picture)
    assert float(ours[1]) == axis["3"] and float(floor[1]) + 5 == axis["1"]
