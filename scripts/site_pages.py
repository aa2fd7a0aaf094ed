"""A Sphinx extension: what the documentation site (make site) has besides the Markdown that GitHub shows.

A line `<!-- site: NAME -->` in a document stands for a part that is written here, out of what the repository has
already: the header's comments, the package's docstrings, the rows of tests/cases. GitHub shows nothing in its place.
The table of contents is the list of links in docs/index.md.
"""

from __future__ import annotations

import ast
import enum
import fnmatch
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from c_header import HEADER, ROOT, Declaration, declarations, grouped, members, rules, since
from sphinx.writers.html5 import HTML5Translator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INDEX = "docs/index"
#: Of the package, in the order of the reference: what everybody needs, interfaces, servers, frameworks.
MODULES = (
    "sendgate", "sendgate.asyncio", "sendgate.wsgi", "sendgate.asgi", "sendgate.rsgi", "sendgate.fastcgi",
    "sendgate.gunicorn", "sendgate.uvicorn", "sendgate.wsgiref", "sendgate.cheroot", "sendgate.waitress",
    "sendgate.gevent", "sendgate.aiohttp", "sendgate.starlette", "sendgate.flask", "sendgate.django",
)  # fmt: skip
#: Markdown's punctuation, which a backslash takes the meaning of.
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>#|~$])")
_RFC = re.compile(r"RFC (\d{4,5})(?:(?: sections?)? ((?:\d+|[A-Z]\.\d+)(?:\.\d+)*)((?:, \d+(?:\.\d+)*)*))?(?![\w])")
#: What has no links in it: code, links, headings, comments.
_OPAQUE = re.compile(r"(^```[\s\S]*?^```$|`[^`\n]+`|\[[^\]]*\]\([^)]*\)|^#.*$|<!--[\s\S]*?-->)", re.M)


class SiteError(Exception):
    """The documents don't fit together. The message says what to do."""


def escape(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return _PUNCTUATION.sub(r"\\\1", text)


def _section(rfc: str, number: str) -> str:
    where = f"appendix-{number}" if number[0].isalpha() else f"section-{number}"
    return f"https://www.rfc-editor.org/rfc/rfc{rfc}#{where}"


def rfc_links(text: str) -> str:
    """The same Markdown with a link for each "RFC 9110 13.1.2, 8.8.3.2"."""

    def link(match: re.Match[str]) -> str:
        rfc, first, more = match.groups()
        if not first:
            return f"[{match[0]}](https://www.rfc-editor.org/rfc/rfc{rfc})"
        shown = match[0][: len(match[0]) - len(more)]
        links = [f"[{shown}]({_section(rfc, first)})"]
        return ", ".join(links + [f"[{number}]({_section(rfc, number)})" for number in more.split(", ")[1:]])

    return _RFC.sub(link, text)


# ---- The C reference ----


def _c_text(paragraphs: list[str], known: dict[str, Declaration]) -> str:
    """A comment as Markdown, with links for the names in it."""

    def name(match: re.Match[str]) -> str:
        text = match[0].strip("`")
        found = known.get(text)
        if found is None:
            return f"`{text}`"
        role = {"function": "func", "constant": "macro", "struct": "struct"}.get(found.kind, "type")
        return f"{{c:{role}}}`{text}`"

    parts = []
    for paragraph in paragraphs:
        text, end = "", 0
        for match in re.finditer(r"`[^`]+`|\b(?:sendgate|SENDGATE)_\w+|(?<!\w)_[A-Za-z]\w+", paragraph):
            text += rfc_links(escape(paragraph[end : match.start()])) + name(match)
            end = match.end()
        parts.append(text + rfc_links(escape(paragraph[end:])))
    return "\n\n".join(parts)


def _directive(kind: str, signature: str, content: str, fence: str = "```") -> str:
    return f"{fence}{{c:{kind}}} {' '.join(signature.split())}\n\n{content}\n{fence}\n\n"


def _c_declaration(each: Declaration, known: dict[str, Declaration], introduced: dict[str, str]) -> str:
    text = _c_text(each.paragraphs, known)
    # In C a struct's name needs the word; here all of them have the typedef as well, and it reads better without.
    signature = re.sub(r"\bstruct (sendgate_)", r"\1", each.code.rstrip(";"))
    if each.kind == "constant":
        return _directive("macro", each.name, f"`{each.value}`: {text}")
    if each.kind == "function":
        return _directive("function", signature, f"{text}\n\n*Since version {introduced[each.name]}.*")
    if each.kind != "struct":
        words = each.name if each.kind == "opaque" else signature.removeprefix("typedef ")
        return _directive("type", words, text)
    for code, paragraphs in members(each.code):
        code = re.sub(r"\bstruct (sendgate_)", r"\1", code)
        text += "\n\n" + _directive("member", code, _c_text(paragraphs, known)).rstrip()
    return _directive("struct", each.name, text, "````")


def c_reference() -> str:
    """All of include/sendgate.h."""
    header = HEADER.read_text()
    found = declarations(header)
    known = {each.name: each for each in found}
    introduced = since()
    out = "## Rules that hold for everything\n\n"
    for word, rule in rules(header):
        out += f"- **{word}**: {_c_text([rule], known)}\n"
    for title, group in grouped(found):
        out += f"\n## {title}\n\n"
        for each in group:
            out += _c_declaration(each, known, introduced)
    return out


# ---- The Python reference ----


def python_reference() -> str:
    """All modules of the package that have a name of their own, and the types that their signatures name."""
    package = Path(importlib.import_module("sendgate").__file__ or "").parent
    here = {f"sendgate.{path.stem}" for path in package.glob("[a-z]*.py")} | {"sendgate"}
    if here != set(MODULES):
        raise SiteError(f"MODULES in scripts/site_pages.py: {sorted(here ^ set(MODULES))} is in one place only")
    out, described = "", set()
    for name in MODULES:
        module = importlib.import_module(name)
        again = []
        for each in module.__all__:
            # Some are imported when they are first asked for; autodoc only looks at what is there.
            found = getattr(module, each)
            setattr(module, each, found)
            if id(found) in described:
                again.append(each)
            described.add(id(found))
        out += f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n"
        out += f"   :exclude-members: {', '.join(again)}\n```\n\n" if again else "```\n\n"
    return out + _types(package)


def _types(package: Path) -> str:
    """Aliases and dictionaries of arguments: they are there for type checkers only, so autodoc can't see them."""
    out = "## Types in signatures\n\nThese are for type checkers and for this page; a program can't import them.\n\n"
    for path in (package / "_types.py", package / "_site.py"):
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias" and node.value:
                above = lines[node.lineno - 2]
                comment = above.removeprefix("#:").strip() if above.startswith("#:") else ""
                value = f"`{ast.literal_eval(node.value)}`."
                out += _alias("data", ast.unparse(node.target), f"{escape(comment)} {value}".strip())
            elif isinstance(node, ast.ClassDef) and "total" in [keyword.arg for keyword in node.keywords]:
                base = ast.unparse(node.bases[0])
                found = [each for each in node.body if isinstance(each, ast.AnnAssign)]
                content = escape((ast.get_docstring(node) or "").replace("``", "")) + "\n\n"
                if base != "TypedDict":
                    content += f"- all of {{py:class}}`{base}`\n"
                content += "".join(
                    f"- `{ast.unparse(each.target)}: {ast.unparse(each.annotation)}`\n" for each in found
                )
                out += _alias("class", node.name, content.rstrip())
    return out


def _alias(kind: str, name: str, content: str) -> str:
    return f"```{{py:{kind}}} {name}\n:module:\n\n{content}\n```\n\n"


def _public() -> dict[str, str]:
    """What a docstring may call by a short name, and its full one."""
    found: dict[str, str] = {}
    for module in reversed(MODULES):
        names = importlib.import_module(module).__all__
        found.update({name: f"{module}.{name}" for name in names if not name.startswith("__")})
        found[module] = module
    return found


def signature(app: Any, what: str, name: str, obj: Any, options: Any, arguments: str, returned: str) -> Any:
    """None for what the package makes itself: exceptions and members of enumerations."""
    is_enumeration = isinstance(obj, type) and issubclass(obj, enum.Enum)
    return ("", returned) if what == "exception" or is_enumeration else None


def docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """reStructuredText out of a docstring, which is written for help(): indented examples, names between backquotes."""
    known = _public()
    out: list[str] = []
    in_example, last = False, ""
    for line in lines:
        if line and not line.startswith("    "):
            in_example, last = False, line
        elif line and not in_example and not last.startswith("- ") and not (out and out[-1]):
            if not last.endswith("::"):
                out += [".. code-block:: python", ""]
            in_example = True
        out.append(line if in_example else _restructured(line, known, name))
    lines[:] = out


def _restructured(line: str, known: dict[str, str], here: str) -> str:
    """A line with links for names, and without a meaning of its other characters."""
    parts = re.split(r"(``.+?``)", line)
    for i, part in enumerate(parts):
        full = known.get(part.strip("`").removesuffix("()"))
        if i % 2 == 0:
            parts[i] = re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", part)
        elif full and full != here:
            parts[i] = f":py:obj:`~{full}`"
    return "".join(parts)


# ---- The rows of tests/cases ----


def _rows() -> list[tuple[str, str, list[tuple[str, list[dict[str, Any]]]]]]:
    """Of each file: its stem, its first comment, and its sections, each a title with its rows."""
    files = []
    for path in sorted((ROOT / "tests/cases").glob("*.toml")):
        text = path.read_text()
        rows = iter(tomllib.loads(text)["case"])
        introduction = []
        for line in text.splitlines():
            if not line.startswith("#") or line.startswith("# ----"):
                break
            introduction.append(line.removeprefix("#").strip())
        sections: list[tuple[str, list[dict[str, Any]]]] = [("", [])]
        for line in text.splitlines():
            if match := re.fullmatch(r"# ---- (.*) ----", line):
                sections.append((match[1], []))
            elif line == "[[case]]":
                sections[-1][1].append(next(rows))
        files.append((path.stem, " ".join(introduction), [each for each in sections if each[1]]))
    return files


def _code(text: str) -> str:
    """Code in a cell of a table."""
    shown = "".join(c if c.isprintable() and c < "\x7f" else c.encode("unicode_escape").decode() for c in text)
    fence = "``" if "`" in shown else "`"
    return (
        f"{fence} {shown} {fence}".replace("|", "\\|") if "`" in shown else f"{fence}{shown}{fence}".replace("|", "\\|")
    )


def _asked(row: dict[str, Any]) -> str:
    fields = row.get("request", [])
    parts = [] if row.get("method", "GET") == "GET" and fields else [row.get("method", "GET")]
    parts += [f"{name}: {value}" if value else f"{name}:" for name, value in fields]
    shown = [_code(part if len(part) < 100 else f"{part[:80]}...") for part in parts]
    return "<br>".join(shown[:6] + (["..."] if len(shown) > 6 else []))


def _answered(row: dict[str, Any]) -> str:
    expect = row["expect"]
    if "error" in expect:
        return f"{{c:macro}}`SENDGATE_ERR_{expect['error']}`"
    ranges = [f"{first}-{last}" for first, last in expect.get("ranges", [])]
    shown = ", ".join(ranges[:4] + (["..."] if len(ranges) > 4 else []))
    return f"{expect['status']}" + (f": {shown}" if shown else "")


def rows() -> str:
    """Tables of all rows, with an anchor for each."""
    out = ""
    for stem, introduction, sections in _rows():
        out += f"\n## {stem}.toml\n\n{rfc_links(escape(introduction))}\n\n"
        for title, found in sections:
            if title:
                out += f"### {rfc_links(escape(title))}\n\n"
            out += "| row | asked | answered | why |\n| --- | --- | --- | --- |\n"
            for row in found:
                name = f'<span id="row-{row["name"]}"></span>`{row["name"]}`'
                out += f"| {name} | {_asked(row)} | {_answered(row)} | {rfc_links(escape(row['rule']))} |\n"
            out += "\n"
    return out


def _row_links(text: str) -> str:
    """A link for each name of rows; one with an asterisk leads to the first of them."""
    names = [row["name"] for _, _, sections in _rows() for _, found in sections for row in found]

    def link(match: re.Match[str]) -> str:
        first = next(iter(fnmatch.filter(names, match[1])), None)
        where = f"../tests/cases/README.html#row-{first}"
        return f'<a href="{where}"><code>{escape(match[1])}</code></a>' if first else match[0]

    return re.sub(r"`([a-z][\w*-]+)`", link, text)


# ---- The table of contents ----


def contents(text: str, documents: set[str]) -> str:
    """The pages that docs/index.md links to, by heading. A document that it leaves out is an error."""
    out, listed = "", set()
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        pages = re.findall(r"^- \[[^\]]+\]\(([^)#\s]+)\.md\)", body, re.M)
        if pages:
            out += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n"
        listed |= {str((ROOT / INDEX).parent.joinpath(page).resolve().relative_to(ROOT)) for page in pages}
    if missing := documents - listed - {INDEX}:
        names = ", ".join(f"{name}.md" for name in sorted(missing))
        raise SiteError(
            f"{names}: no line of docs/index.md leads there. Add one to the list under the heading it is for"
        )
    return out


# ---- Sphinx ----

PARTS = {"c-reference": c_reference, "python-reference": python_reference, "rows": rows}


def source_read(app: Any, docname: str, source: list[str]) -> None:
    """What Sphinx reads, out of what GitHub shows."""
    text = source[0]
    # A block of code that has a name shows it.
    text = re.sub(r"^```(c|python|sh) (\S+)$", r"```{code-block} \1\n:caption: \2\n", text, flags=re.M)
    if docname == INDEX:
        text += contents(text, set(app.env.found_docs))
    if docname == "docs/semantics":
        text = _row_links(text)
    parts = _OPAQUE.split(text)
    text = "".join(part if i % 2 else rfc_links(part) for i, part in enumerate(parts))
    source[0] = re.sub(r"^<!-- site: ([\w-]+) -->$", lambda match: PARTS[match[1]](), text, flags=re.M)


def start_page(app: Any, exception: Exception | None) -> None:
    """The site's own index.html: the documents lie as they do in the repository, the first of them in docs."""
    if exception is None:
        where = f"{INDEX}.html"
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={where}"><a href="{where}">sendgate</a>\n'
        (Path(app.outdir) / "index.html").write_text(page)


class Translator(HTML5Translator):
    """HTML in which a signature can be copied."""

    def depart_desc_parameterlist(self, node: Any) -> None:
        """Where each parameter has a line, Sphinx before 8.2 writes a comma behind the last too."""
        if self.body[-2:] == [",", "</dd>\n"]:
            del self.body[-2]
        super().depart_desc_parameterlist(node)


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.set_translator("html", Translator)
    app.connect("source-read", source_read)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("build-finished", start_page)
    return {"parallel_read_safe": True}
