#!/usr/bin/env python3
"""Write the C declarations that cffi reads to ``target/header.h``.

maturin's cffi mode takes ``header.h`` in cargo's target directory if it is there. Otherwise it runs the cbindgen
that it was built with, which is another version than the pinned one, writes ``#include`` lines that cffi's parser
refuses, and would let the wheel differ from the committed header. So this comes before every build of the wheel,
and what cffi gets is include/sendgate.h, word for word, from the line behind "cffi: begin" to that
before "cffi: end".
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def declarations(header: str) -> str:
    """The text between the two marks of include/sendgate.h. Raises ValueError if one is missing."""
    lines = header.splitlines()
    begin = [i for i, line in enumerate(lines) if "cffi: begin" in line]
    end = [i for i, line in enumerate(lines) if "/* cffi: end" in line]
    if len(begin) != 1 or len(end) != 1 or begin[0] > end[0]:
        raise ValueError("include/sendgate.h: the marks 'cffi: begin' and 'cffi: end' are not there once, in order")
    return "\n".join(lines[begin[0] + 1 : end[0]]) + "\n"


def write(root: Path = ROOT) -> Path:
    """Write the file, if it would change, and return its path. CARGO_TARGET_DIR is honoured."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or root / "target")
    path = target / "header.h"
    text = declarations((root / "include" / "sendgate.h").read_text(encoding="utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    try:
        print(write())
    except (OSError, ValueError) as error:
        sys.exit(f"cffi_header: {error}")
