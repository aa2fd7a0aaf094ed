"""Other people's programs, run by the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Where make and cargo build.
TARGET = ROOT / (os.environ.get("CARGO_TARGET_DIR") or "target")


def run(*command: str | Path, **keywords: object) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **keywords)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def need(program: str, package: str) -> None:
    """Skip without that program."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian: apt-get install {package})")


def need_history() -> None:
    """Skip in an unpacked archive: git knows which files are the project's, and `make dist` takes them from it."""
    need("git", "git")
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
