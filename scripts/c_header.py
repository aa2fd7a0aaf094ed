"""Reads include/sendgate.h: its declarations, each with its comment, for all that is written from them.

That is the manual pages (manpages.py), and the reference on the documentation site (site_pages.py). Standard library
only.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "include/sendgate.h"
#: Status codes, which have a page of their own.
STATUS = re.compile(r"SENDGATE_(OK|ERR_|WANT_|YIELD|EMPTY|PENDING)")
COMMENT = re.compile(r"/\*\*\n(.*?) \*/\n", re.S)


def version() -> str:
    """The library's version."""
    text = (ROOT / "Cargo.toml").read_text()
    match = re.search(r'^version = "(.*)"$', text, re.M)
    assert match
    return match[1]


def since() -> dict[str, str]:
    """The version that introduced each function."""
    lines = (ROOT / "tests/symbols.txt").read_text().splitlines()
    return {name: number for number, name in (line.split() for line in lines if line and line[0] != "#")}


def prose(comment: str) -> list[str]:
    """The paragraphs of a comment."""
    lines = [line.strip().removeprefix("*").strip() for line in comment.splitlines()]
    return [" ".join(paragraph.split("\n")) for paragraph in "\n".join(lines).strip().split("\n\n")]


class Declaration:
    """A function, struct, type or constant, with its comment."""

    def __init__(self, comment: str, code: str) -> None:
        self.paragraphs = prose(comment)
        self.code = code.rstrip()
        match = (
            re.match(r"#define (\w+)", code)
            or re.match(r"typedef struct (\w+)", code)
            or re.match(r"typedef .*\(\*(\w+)\)", code)
            or re.match(r"typedef \w+ (\w+);", code)
            or re.search(r"\b(sendgate_\w+)\(", code)
        )
        assert match, code
        self.name = match[1]
        is_callback = re.match(r"typedef .*\(\*", code)
        self.kind = (
            "constant"
            if code.startswith("#define")
            else "struct"
            if re.match(r"typedef struct \w+ \{", code)
            else "opaque"
            if code.startswith("typedef struct")
            else "callback"
            if is_callback
            else "type"
            if code.startswith("typedef")
            else "function"
        )

    @property
    def summary(self) -> str:
        """The first sentence, as one that follows a dash."""
        sentence = re.split(r"(?<=[.:;])\s", self.paragraphs[0])[0].rstrip(".:;")
        if sentence.count("(") > sentence.count(")"):
            sentence = sentence[: sentence.rindex("(")].rstrip()
        return sentence[0].lower() + sentence[1:] if not sentence.startswith(("SENDGATE", "HTTP")) else sentence

    @property
    def value(self) -> str:
        """A constant's."""
        return self.code.split(None, 2)[2]


def declarations(header: str) -> list[Declaration]:
    """All that has a comment, in the header's order."""
    body = header.split("/* cffi: begin", 1)[1].split("/* cffi: end", 1)[0]
    found = []
    for match in COMMENT.finditer(body):
        rest = body[match.end() :]
        if rest.startswith(" "):
            continue  # a member's
        if rest.startswith("#define"):
            code = rest.split("\n", 1)[0]
        elif re.match(r"typedef struct \w+ \{", rest):
            code = rest.split("\n}", 1)[0] + "\n}" + rest.split("\n}", 1)[1].split(";", 1)[0] + ";"
        else:
            code = rest.split(";", 1)[0] + ";"
        found.append(Declaration(match[1], code))
    return found


def members(code: str) -> list[tuple[str, list[str]]]:
    """A struct's members, each with its comment."""
    found = []
    for match in re.finditer(r" {4}/\*\*\n(.*?) {4} \*/\n {4}([^;]*);", code, re.S):
        found.append((" ".join(match[2].split()), prose(match[1])))
    return found


def mentioned(declaration: Declaration, pages: dict[str, Declaration]) -> list[str]:
    """What else a declaration names, of those that have a page."""
    names = re.findall(r"\bsendgate_\w+", declaration.code + " ".join(declaration.paragraphs))
    return sorted({name for name in names if name in pages and name != declaration.name})


def rules(header: str) -> list[tuple[str, str]]:
    """The first page: a word, and the rule for it that holds for everything."""
    page = header.split("/* sendgate.h - ", 1)[1].split(" */", 1)[0]
    found = []
    for match in re.finditer(r"^ \*  ([A-Z]\w+) +(.*?)(?=^ \*  [A-Z]|\Z)", page, re.S | re.M):
        words = " ".join(line.strip().removeprefix("*").strip() for line in match[2].splitlines())
        found.append((match[1], words.strip()))
    return found


#: What belongs together, in the order in which a reader needs it: a title, and the names as a regular expression.
GROUPS = (
    ("Version", r"SENDGATE_(VERSION|FEATURE)_\w+|sendgate_(version|features)"),
    ("Status codes", STATUS.pattern + r"\w*|sendgate_status(_\w+)?"),
    ("Requests", r"sendgate_(str|field|request\w*)|SENDGATE_REQUEST_\w+"),
    ("Files and other representations", r"sendgate_(rep\w*|open)|SENDGATE_(REP|ETAG|OPEN)_\w+"),
    ("The answer", r"sendgate_(header|exchange|range|decision|decide|head_\w+)|SENDGATE_(RULE|HEAD|FRAMING)_\w+"),
    ("Lists of fields", r"sendgate_headers\w*"),
    ("Where it is sent, and what came of it", r"sendgate_(sink|write_fn|result)|SENDGATE_(SINK|CONN)_\w+"),
    ("Answering in one call", r"sendgate_respond(_fd)?|sendgate_response_file_\w+"),
    ("Answering step by step", r"sendgate_transfer\w*"),
    ("Answering in the background", r"sendgate_(sender\w*|completion|ready_fn)"),
    ("Content that is produced while it is sent", r"sendgate_stream\w*"),
    ("Receiving content", r"sendgate_(source|read_fn|receive\w*)|SENDGATE_SOURCE_\w+"),
    ("FastCGI", r"sendgate_fcgi\w*|SENDGATE_FCGI_\w+"),
)
#: In each group: what there is, then what can be said, then what can be done.
KINDS = ("opaque", "struct", "callback", "type", "constant", "function")


def grouped(found: list[Declaration]) -> list[tuple[str, list[Declaration]]]:
    """All declarations by group. One that no group's expression matches, or more than one, is an error."""
    groups: dict[str, list[Declaration]] = {title: [] for title, _ in GROUPS}
    for each in found:
        titles = [title for title, names in GROUPS if re.fullmatch(names, each.name)]
        if len(titles) != 1:
            raise SystemExit(f"{each.name} is in {len(titles)} groups: see GROUPS in scripts/c_header.py")
        groups[titles[0]].append(each)
    return [(title, sorted(members, key=lambda each: KINDS.index(each.kind))) for title, members in groups.items()]
