"""Where nginx differs from the rows, and why, as README.md.

python tests/differential/report.py          prints it
python tests/differential/report.py --write  puts it into README.md beside this file
"""

from __future__ import annotations

import sys
from pathlib import Path

import nginx

import rows

README = Path(__file__).resolve().parent / "README.md"

INTRODUCTION = """\
# The rows against nginx

`pytest tests/differential` starts the installed nginx with its defaults on the files of the rows in
[tests/cases](../cases/README.md), sends it every request that can go over a socket, and compares status,
Content-Range and every byte of the body with what the row expects. Where nginx differs, the row has an `nginx`
entry with its answer and the reason. An answer that is neither the expected one nor the one in the entry fails, and
so does an entry that is no longer true.

This file is made from those entries by `python tests/differential/report.py --write`; a test compares it. The
entries were observed on nginx 1.22.1.
"""

OVERVIEW = """\
Of {compared} rows nginx answers {different} differently. That is no share of any traffic: a row is an edge, and one
habit decides many of them. Some break a rule of RFC 9110, others take the other of two ways that it allows: the
column "rule" below has the place.
"""


def _answer(row: rows.Row, due: dict[str, object]) -> str:
    text = str(due["status"])
    ranges = due.get("ranges")
    if row.method == "HEAD" or not isinstance(ranges, list) or not ranges:
        return text
    spans = [f"{first}-{last}" for first, last in ranges]
    if len(spans) > 4:
        spans = spans[:3] + [f"… {len(ranges)} parts"]
    return f"{text} {', '.join(spans)}"


def text(cases: list[rows.Row] | None = None) -> str:
    """README.md, from the rows as they are now."""
    cases = rows.load() if cases is None else cases
    compared = [row for row in cases if not row.values_only and not (row.nginx and "skip" in row.nginx)]
    by_reason: dict[str, list[rows.Row]] = {}
    for row in compared:
        if row.nginx:
            by_reason.setdefault(row.nginx["why"], []).append(row)
    different = sum(len(group) for group in by_reason.values())
    out = [INTRODUCTION, OVERVIEW.format(compared=len(compared), different=different)]
    out.append("| rows | nginx |\n| ---: | --- |")
    most_first = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    out += [f"| {len(group)} | {reason} |" for reason, group in most_first]
    out.append("")
    for reason, group in by_reason.items():
        out.append(f"## nginx {reason}\n")
        out.append("| row | rule | sendgate | nginx |\n| --- | --- | --- | --- |")
        for row in group:
            ours, theirs = _answer(row, nginx.expected(row)), _answer(row, nginx.exception(row))
            out.append(f"| `{row.name}` | {row.rule.replace('|', '&#124;')} | {ours} | {theirs} |")
        out.append("")
    skipped = [row for row in cases if row.nginx and "skip" in row.nginx]
    if skipped:
        out.append("## Not compared\n\n| row | why |\n| --- | --- |")
        out += [f"| `{row.name}` | {row.nginx['skip']} |" for row in skipped if row.nginx]
        out.append("")
    return "\n".join(out).rstrip("\n") + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(text())
    else:
        print(text(), end="")
