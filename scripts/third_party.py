#!/usr/bin/env python3
"""Write ``THIRD-PARTY.txt``: the licences and copyright notices of all that is linked into the library.

Those are the crates that Cargo.lock names, and the standard library of the Rust that builds it. Both may be others at
the next build, so the file is made by the build, from what that build uses, and not committed.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULE = "=" * 80
OPENING = """\
sendgate's shared library contains, besides its own code, the following. Each part comes with its licence and copyright
notices.
"""


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def crates() -> list[dict[str, str]]:
    """The crates that are linked in: no build script, no development dependency, nothing for another system."""
    host = re.search(r"^host: (.*)$", output("rustc", "-vV"), re.M)
    assert host, "rustc -vV names no host"
    platform = ("--locked", "--filter-platform", host[1])
    metadata = json.loads(output("cargo", "metadata", "--format-version=1", *platform))
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    linked, waiting = set(), [metadata["resolve"]["root"]]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in linked:
                linked.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    return sorted((package for package in metadata["packages"] if package["id"] in linked), key=lambda it: it["name"])


def notices(crate: dict[str, str]) -> str:
    """A crate's name, version and licence, and the text of each file that it has about them."""
    files = [
        path
        for path in sorted(Path(crate["manifest_path"]).parent.iterdir())
        if path.is_file() and re.match(r"LICEN[CS]E|COPYING|COPYRIGHT|NOTICE", path.name, re.I)
    ]
    if not files:
        raise ValueError(f"{crate['name']} {crate['version']} has no licence file")
    texts = [f"--- {path.name}\n\n{path.read_text(encoding='utf-8').strip()}\n" for path in files]
    return f"{crate['name']} {crate['version']}\nLicense: {crate['license']}\n\n" + "\n".join(texts)


def standard_library() -> str:
    """What Rust says of its standard library, without the HTML. A distribution's Rust may come without it."""
    path = Path(output("rustc", "--print", "sysroot").strip()) / "share/doc/rust/COPYRIGHT-library.html"
    if not path.is_file():
        return (
            "The Rust Standard Library\nLicense: MIT OR Apache-2.0\nCopyright: The Rust Project Developers (see"
            " https://thanks.rust-lang.org)\n"
        )
    text = re.sub(r"<(style|title|script).*?</\1>|<[^>]+>", "", path.read_text(encoding="utf-8"), flags=re.S)
    lines = [line.rstrip() for line in html.unescape(text).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def write() -> Path:
    """Write the file, and return its path."""
    parts = [OPENING, *(notices(crate) for crate in crates()), standard_library()]
    path = ROOT / "THIRD-PARTY.txt"
    # In one step: others may be reading it.
    made = path.with_name(f"{path.name}.{os.getpid()}")
    made.write_text(f"\n{RULE}\n\n".join(parts), encoding="utf-8")
    made.replace(path)
    return path


if __name__ == "__main__":
    try:
        print(write())
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"third_party: {error}")
