#!/usr/bin/env python3
"""Copies the recorded figures into docs/performance.md, and draws them: figures.py, or make figures.

The figures are the tables in README.md and bench/README.md, as the benchmarks have printed them. A table in
docs/performance.md is the one there with the same heading, and the pictures in docs/figures are drawn from it. A test
compares all of them. Standard library only.
"""

from __future__ import annotations

import math
import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/performance.md"
PICTURES = ROOT / "docs/figures"
SOURCES = (ROOT / "README.md", ROOT / "bench/README.md")
TABLE = re.compile(r"^(\|.*\|)\n(\|[ :|-]+\|)\n((?:\|.*\|\n)+)", re.M)

#: A picture: the first words of its table's heading, columns to draw (none: all), and what the axis says.
CHARTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "cpu.svg": ("| case | floor |", (), "CPU time per request, as a ratio to the floor (less is better)"),
    "stalled.svg": (
        "| server | clients |",
        ("memory each",),
        "KiB of memory for each stalled download (less is better)",
    ),
    "loop.svg": (
        "| server, loop |",
        ("in the page cache", "from the disk"),
        "ms that the loop was held up, at most (left edge: 1 or less)",
    ),
    "wsgi.svg": ("| case | sendgate.wsgi.Files |", (), "us of CPU time per request (less is better)"),
    "asgi.svg": ("| case | sendgate.asgi.Files |", (), "us of CPU time per request (less is better)"),
    "rsgi.svg": ("| case | response_file |", (), "us of CPU time per request (less is better)"),
    "fastcgi.svg": (
        "| alone | sendgate |",
        ("sendgate", "libfcgi", "sendgate Python", "sendgate WSGI", "flup"),
        "CPU time per request, as a ratio to the C library's (less is better)",
    ),
}

#: Middle tones, which show on white and on black; marks of different shapes, for those who see no colours.
COLOURS = ("#d55e00", "#0f7fc4", "#00966d", "#c2619b", "#a8790a")
WIDTH, LEFT, LINE = 760, 240, 30


class Table:
    """A table of Markdown: heading, columns and rows, each cell as it stands there."""

    def __init__(self, match: re.Match[str]) -> None:
        self.text = match[0]
        self.heading = match[1]
        _, *self.columns = self._cells(match[1])
        self.rows = {line[0]: dict(zip(self.columns, line[1:])) for line in map(self._cells, match[3].splitlines())}

    @staticmethod
    def _cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("|").split("|")]


def tables() -> dict[str, Table]:
    """All recorded figures, by heading."""
    found = [Table(match) for source in SOURCES for match in TABLE.finditer(source.read_text())]
    return {table.heading: table for table in found}


def page(text: str) -> str:
    """docs/performance.md with the figures as they are recorded."""
    recorded = tables()

    def replacement(match: re.Match[str]) -> str:
        if match[1] not in recorded:
            raise SystemExit(
                f"{PAGE.name}: neither README.md nor bench/README.md has a table with the heading {match[1]}"
            )
        return recorded[match[1]].text

    return TABLE.sub(replacement, text)


def number(cell: str) -> float:
    """The first number of a cell."""
    match = re.search(r"[-+]?\d+(?:\.\d+)?", cell)
    assert match, cell
    return float(match[0])


def mark(series: int, x: float, y: float) -> str:
    """A disc, square, diamond, triangle or ring."""
    colour = COLOURS[series % len(COLOURS)]
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>',
        f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{colour}"/>',
        f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" fill="{colour}"/>',
        f'<path d="M{x:.1f} {y - 6:.1f}l7 12h-14z" fill="{colour}"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{colour}" stroke-width="2.5"/>',
    )
    return shapes[series % len(shapes)]


def scale(values: list[float]) -> tuple[bool, float, float, list[float]]:
    """Whether it is logarithmic, where it begins and ends, and what is marked on it."""
    if max(values) / max(min(values), 1) < 10:
        top = math.ceil(max(values))
        return False, 0, top, [float(tick) for tick in range(top + 1)]
    low = 10 ** math.floor(math.log10(max(min(values), 1)))
    ticks = [low * factor * 10**power for power in range(6) for factor in (1, 2, 5)]
    top = next(tick for tick in ticks if tick >= max(values))
    return True, low, top, [tick for tick in ticks if tick <= top]


def chart(table: Table, columns: tuple[str, ...], axis: str) -> str:
    """A dot for each figure: a line for each row of the table, a mark for each column."""
    shown = columns or tuple(table.columns)
    # What is compared with comes last, so that the first colour is sendgate's.
    shown = tuple(sorted(shown, key=lambda name: name == "floor"))
    values = [number(row[name]) for row in table.rows.values() for name in shown]
    is_logarithmic, low, top, ticks = scale(values)

    def x_of(value: float) -> float:
        part = math.log(max(value, low) / low) / math.log(top / low) if is_logarithmic else (value - low) / (top - low)
        return LEFT + part * (WIDTH - LEFT - 30)

    legend = 34 if len(shown) > 1 else 8
    height = legend + LINE * len(table.rows) + 56
    bottom = legend + LINE * len(table.rows) + 4
    out = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
    out += f"<title>{escape(axis)}</title>\n"
    out += "<style>text{font:14px system-ui,sans-serif;fill:#333}line{stroke:#8888;stroke-width:1}"
    out += "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>\n"
    x = 10.0
    for series, name in enumerate(shown if len(shown) > 1 else ()):
        out += f'{mark(series, x, 14)}<text x="{x + 12:.0f}" y="19">{escape(name)}</text>\n'
        x += 34 + 7.4 * len(name)
    for tick in ticks:
        at = f"{x_of(tick):.1f}"
        out += f'<line x1="{at}" x2="{at}" y1="{legend}" y2="{bottom}"/>'
        out += f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>\n'
    for line, (name, row) in enumerate(table.rows.items()):
        y = legend + LINE * line + LINE / 2
        out += f'<text x="{LEFT - 16}" y="{y + 5:.0f}" text-anchor="end">{escape(name.replace("`", ""))}</text>'
        # Later marks are drawn over earlier ones, and sendgate's is never hidden.
        for series, column in reversed(list(enumerate(shown))):
            out += mark(series, x_of(number(row[column])), y)
        out += "\n"
    middle = (LEFT + WIDTH - 30) / 2
    out += f'<text x="{middle:.0f}" y="{height - 12}" text-anchor="middle">{escape(axis)}</text>\n'
    return out + "</svg>\n"


def pictures() -> dict[str, str]:
    """All of them, by the name of the file."""
    recorded = tables()
    drawn = {}
    for name, (heading, columns, axis) in CHARTS.items():
        table = next(table for table in recorded.values() if table.heading.startswith(heading))
        drawn[name] = chart(table, columns, axis)
    return drawn


def main() -> None:
    """Write them."""
    PAGE.write_text(page(PAGE.read_text()))
    PICTURES.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (PICTURES / name).write_text(picture)


if __name__ == "__main__":
    main()
