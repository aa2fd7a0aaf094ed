#!/usr/bin/env python3
"""Writes a manual page for each function and struct of include/sendgate.h, and one for the whole: manpages.py DIR

The text is the header's own comments, so there is one place to keep it right. Standard library only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from c_header import HEADER, STATUS, Declaration, declarations, members, mentioned, rules, since, version


def escape(text: str) -> str:
    """Text as mdoc(7) and man(7) want it."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def emphasise(text: str) -> str:
    """Names in bold: of functions, types and constants."""
    return re.sub(r"\b((?:sendgate|SENDGATE)_\w+)", r"\\fB\1\\fR", escape(text))


def title(name: str, section: int) -> str:
    """How a page begins."""
    return f'.TH {name.upper()} {section} "" "sendgate {version()}" "sendgate"\n'


def text(paragraphs: list[str]) -> str:
    """Paragraphs."""
    return "\n.PP\n".join(emphasise(paragraph) for paragraph in paragraphs) + "\n"


def page(declaration: Declaration, pages: dict[str, Declaration], introduced: dict[str, str]) -> str:
    """The page of a function or a type."""
    out = title(declaration.name, 3)
    out += f".SH NAME\n{escape(declaration.name)} \\- {escape(declaration.summary)}\n"
    out += ".SH LIBRARY\nsendgate (\\fIlibsendgate\\fR, \\fI\\-lsendgate\\fR)\n"
    out += ".SH SYNOPSIS\n.nf\n.B #include <sendgate.h>\n.PP\n"
    synopsis = re.sub(r" {4}/\*\*.*?\*/\n", "", declaration.code, flags=re.S)
    out += "\n".join(escape(line) for line in synopsis.splitlines()) + "\n.fi\n"
    out += ".SH DESCRIPTION\n" + text(declaration.paragraphs)
    if declaration.kind == "struct":
        out += ".SH MEMBERS\n"
        for member, paragraphs in members(declaration.code):
            out += f".TP\n.B {escape(member)}\n" + "\n.IP\n".join(emphasise(p) for p in paragraphs) + "\n"
    if re.match(r"sendgate_status\b", declaration.code):
        out += ".SH RETURN VALUE\n0 is done, negative an error, positive not finished yet: "
        out += "see \\fBsendgate_status\\fR(3).\n"
    if declaration.name in introduced:
        out += f".SH HISTORY\nSince version {introduced[declaration.name]}.\n"
    related = [f"\\fB{escape(name)}\\fR(3)" for name in mentioned(declaration, pages)]
    out += ".SH SEE ALSO\n" + ",\n".join([*related, "\\fBsendgate\\fR(7)"]) + "\n"
    return out


def constants(found: list[Declaration]) -> str:
    """A list of constants."""
    out = ""
    for constant in found:
        if constant.kind == "constant":
            out += f'.TP\n.BR {constant.name} " ({constant.value})"\n'
            out += "\n.IP\n".join(emphasise(paragraph) for paragraph in constant.paragraphs) + "\n"
    return out


def overview(header: str, found: list[Declaration]) -> str:
    """sendgate(7): the rules that hold for everything, and what there is."""
    out = title("sendgate", 7)
    out += ".SH NAME\nsendgate \\- answer an HTTP request with a file: conditions, ranges, sendfile\n"
    out += ".SH SYNOPSIS\n.nf\n.B #include <sendgate.h>\n.PP\n"
    out += "cc app.c $(pkg\\-config \\-\\-cflags \\-\\-libs sendgate)\n.fi\n"
    out += ".SH DESCRIPTION\nThese rules hold for everything unless a page says otherwise.\n"
    for word, rule in rules(header):
        out += f".TP\n.B {word}\n{emphasise(rule)}\n"
    for heading, kinds in (("FUNCTIONS", ("function",)), ("TYPES", ("struct", "opaque", "callback", "type"))):
        out += f".SH {heading}\n"
        for declaration in found:
            if declaration.kind in kinds:
                out += f".TP\n.BR {escape(declaration.name)} (3)\n{escape(declaration.summary)}\n"
    out += ".SH CONSTANTS\n" + constants([each for each in found if not STATUS.match(each.name)])
    out += ".SH SEE ALSO\n\\fBsendgate_status\\fR(3), \\fBsendfile\\fR(2), RFC 9110, RFC 9112\n"
    return out


def main() -> None:
    """Write all pages."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    header = HEADER.read_text()
    found = declarations(header)
    pages = {each.name: each for each in found if each.kind != "constant"}
    introduced = since()
    written = set()
    for each in pages.values():
        content = page(each, pages, introduced)
        if each.name == "sendgate_status":
            codes = [constant for constant in found if STATUS.match(constant.name)]
            content = content.replace(".SH SEE ALSO", ".SH CODES\n" + constants(codes) + ".SH SEE ALSO")
        (target / f"{each.name}.3").write_text(content)
        written.add(f"{each.name}.3")
    (target / "sendgate.7").write_text(overview(header, found))
    for stale in target.iterdir():
        if stale.name not in written | {"sendgate.7"}:
            stale.unlink()


if __name__ == "__main__":
    main()
