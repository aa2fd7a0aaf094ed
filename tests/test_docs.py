"""The examples in docs/ run as they stand there, relative links lead somewhere, and no public name is missing.

A block of code is named after its language: "```c serve.c". Its program runs in a directory that the document's sh
blocks have made, and has to print exactly the "```text" block behind it, where "..." stands for anything within a line.
A block named *.h is a file for the others. A sh block with a text block behind it is run as well, after the others: it
starts the programs that have no text block of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import sendgate
from commands import TARGET

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
LIBRARY = TARGET / "release"
#: Any block: what stands behind the backquotes, what is in it, and the text block that follows.
BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$(?:\n\n```text\n((?:.*\n)*?)```$)?", re.M)


@dataclass(frozen=True)
class Block:
    """A block of code, and what it has to print."""

    document: Path
    language: str
    name: str
    code: str
    output: str | None

    def __str__(self) -> str:
        return f"{self.document.stem}-{self.name}"


def blocks(document: Path) -> list[Block]:
    """All blocks of a document but its text. A block without a name is an error: nothing would run it."""
    found = []
    for label, code, output in BLOCK.findall(document.read_text()):
        if label != "text":
            language, _, name = label.partition(" ")
            assert language in ("c", "python", "sh"), f"{document.name}: a block of {label!r}"
            assert name, f"{document.name}: a block of {language} has no name:\n{code}"
            found.append(Block(document, language, name, code, output or None))
    return found


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
SESSIONS = [block for block in BLOCKS if block.language == "sh" and block.output]


def is_started(block: Block) -> bool:
    """Whether it is for a session of its document to run it."""
    name = re.compile(rf"(?<![\w.]){re.escape(Path(block.name).stem)}(?!\w)")
    return block.output is None and any(
        name.search(session.code) for session in SESSIONS if session.document == block.document
    )


STARTED = [block for block in BLOCKS if block.language != "sh" and is_started(block)]
PROGRAMS = [
    block
    for block in BLOCKS
    if (block.language != "sh" or block in SESSIONS) and not block.name.endswith(".h") and block not in STARTED
]


def markdown_files() -> list[Path]:
    """Those of the repository: not what was built or installed."""
    found: list[Path] = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in ("target", "node_modules") and not name.startswith(".")]
        found += [Path(folder, file) for file in files if file.endswith(".md")]
    return sorted(found)


def prose(document: Path) -> str:
    """A document without its blocks of code, whose brackets are no links."""
    return BLOCK.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """What GitHub calls the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def environment() -> dict[str, str]:
    """Finds the shared library and what is installed beside Python, and prints what it prints in English."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(LIBRARY), "LC_ALL": "C.UTF-8"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """For each document a directory, as its sh blocks leave it, with its headers in it."""
    subprocess.run(["make", "--no-print-directory", "-s", "lib"], cwd=ROOT, check=True)
    made = {}
    for document in DOCUMENTS:
        made[document] = place = tmp_path_factory.mktemp(document.stem)
        for block in blocks(document):
            if block.language == "sh" and block not in SESSIONS:
                subprocess.run(["sh", "-eu", "-c", block.code], cwd=place, check=True, timeout=30)
            elif block.name.endswith(".h"):
                (place / block.name).write_text(block.code)
    for block in STARTED:
        if block.language == "c":
            build(block, made[block.document])
        else:
            (made[block.document] / block.name).write_text(block.code)
    return made


def build(block: Block, place: Path) -> Path:
    """Compile a C program without a warning."""
    source, program = place / block.name, place / Path(block.name).stem
    source.write_text(block.code)
    libraries = [f"-L{LIBRARY}", "-lsendgate"]
    if "<openssl/" in block.code:
        found = subprocess.run(["cc", "-E", "-x", "c", "-"], input=b"#include <openssl/ssl.h>\n", capture_output=True)
        if found.returncode != 0:
            pytest.skip("OpenSSL's headers are not installed (Debian: libssl-dev)")
        libraries += ["-lssl", "-lcrypto"]
    warnings = ["-std=c99", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    done = subprocess.run(
        ["cc", *warnings, f"-I{ROOT / 'include'}", f"-I{place}", source, *libraries, "-o", program],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return program


def pattern(output: str) -> str:
    """A regular expression for what a text block says."""
    return "[^\n]+".join(re.escape(part) for part in output.split("..."))


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_example(block: Block, places: dict[Path, Path]) -> None:
    """The program ends well and prints what the document says, no more and no less."""
    assert block.output, "no text block behind it says what it prints"
    place = places[block.document]
    if "certificate.pem" in block.code and shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    if "curl " in block.code and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if block.language == "sh":
        command = ["sh", "-eu", "-c", block.code]
    elif block.language == "c":
        command = [build(block, place)]
    else:
        (place / block.name).write_text(block.code)
        command = [sys.executable, "-W", "error", block.name]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, timeout=30)
    output, errors = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, f"exit {done.returncode}\n{output}{errors}"
    assert re.fullmatch(pattern(block.output), output), f"{output}\n--- instead of\n{block.output}\n{errors}"


def test_there_are_examples() -> None:
    """Both documents have some, under names of their own: a broken regular expression finds none."""
    names = [(block.document, block.name) for block in BLOCKS]
    assert len(set(names)) == len(names)
    for document in DOCUMENTS:
        assert document.read_text().count("\n```") == 2 * len(BLOCK.findall(document.read_text())) + 2 * sum(
            1 for block in blocks(document) if block.output
        )
    assert {document.name for document, _ in names} >= {"c.md", "python.md"}
    assert len(PROGRAMS) > 15


def test_output_is_compared() -> None:
    """The comparison is of all of the output; only "..." gives way, and only within a line."""
    assert re.fullmatch(pattern("a: ...\nb\n"), "a: 1\nb\n")
    for wrong in ("a: 1\n", "a: \nb\n", "a: 1\n2\nb\n", "a: 1\nb\nc\n", "x: 1\nb\n", ""):
        assert not re.fullmatch(pattern("a: ...\nb\n"), wrong)


@pytest.mark.parametrize("document", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links(document: Path) -> None:
    """Relative links lead to files that exist, and to headings that they have."""
    # What is code in a line is no link either: environ["wsgi.file_wrapper"](file).
    text = re.sub(r"`[^`\n]+`", "", prose(document))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{link}: no such file"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


def test_lines_of_the_hosts() -> None:
    """What docs/hosts.md quotes are lines of the examples."""
    examples = ROOT / "examples"
    files = [*examples.glob("hosts/*.c"), examples / "fileserver_ctypes.py"]
    known = {line.strip() for file in files for line in file.read_text().splitlines()}
    quoted = re.findall(r"^ {4,}(\S.*)$", (ROOT / "docs" / "hosts.md").read_text(), re.M)
    assert len(quoted) > 10
    assert [line for line in quoted if line not in known] == []


def words(name: str) -> set[str]:
    """The words of a document: no name is found as a part of another."""
    return set(re.findall(r"\w+", (ROOT / "docs" / name).read_text()))


def test_every_c_function_is_mentioned() -> None:
    """docs/c.md names every function of the header, and every status code."""
    header = (ROOT / "include" / "sendgate.h").read_text()
    functions = set(re.findall(r"\b(sendgate_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.S)))
    codes = set(re.findall(r"#define (SENDGATE_(?:OK|WANT_\w+|YIELD|ERR_\w+|CONN_\w+|RULE_\w+)) ", header))
    assert len(functions) > 15 and len(codes) > 20
    assert not (functions | codes) - words("c.md")


def test_every_python_name_is_mentioned() -> None:
    """docs/python.md names everything that the package exports."""
    assert len(sendgate.__all__) > 20
    assert not set(sendgate.__all__) - words("python.md")


def test_every_option_is_mentioned() -> None:
    """docs/python.md names every option of the command."""
    command = [sys.executable, "-m", "sendgate", "--help"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=30)
    options = set(re.findall(r"--[a-z-]+", done.stdout))
    assert {"--bind", "--port"} < options
    text = (ROOT / "docs" / "python.md").read_text()
    assert not [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)]
