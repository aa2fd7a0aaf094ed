"""The library as `make install` leaves it, and the servers in examples/hosts, built against that."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from commands import need, run
from hosts import HOSTS, LIBFCGI

ROOT = Path(__file__).resolve().parent.parent

# The make that runs the tests has a jobserver, of which the makes that the tests run would complain.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is installed, by way of a DESTDIR, as a package is."""
    stage = tmp_path_factory.mktemp("stage")
    prefix = tmp_path_factory.mktemp("installed") / "prefix"
    run("make", "-s", "install", f"PREFIX={prefix}", f"DESTDIR={stage}", cwd=ROOT)
    shutil.move(str(stage) + str(prefix), prefix)
    # Nothing else was written, and nothing knows of the DESTDIR.
    assert not [path for path in stage.rglob("*") if not path.is_dir()]
    for path in prefix.rglob("*"):
        if path.suffix in (".pc", ".cmake"):
            assert str(stage) not in path.read_text()
    return prefix


@pytest.fixture(scope="session")
def environment(prefix: Path) -> dict[str, str]:
    """With which pkg-config finds it, and a program its library."""
    found = {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig"), "LD_LIBRARY_PATH": str(prefix / "lib")}
    return {**os.environ, **found}


@pytest.fixture(scope="session")
def built(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of those that can be built here."""
    need("pkg-config", "pkg-config")
    out = tmp_path_factory.mktemp("hosts")
    hosts = [host for host in (*HOSTS, LIBFCGI) if host.header]
    names = [host.name for host in hosts if Path("/usr/include", host.header).exists()]
    # With sanitizers: a library may free what a callback was given, which only shows by chance otherwise.
    compiler = "CC=cc -fsanitize=address,undefined -fno-sanitize-recover=all"
    run("make", "-s", "-C", ROOT / "examples/hosts", f"OUT={out}", compiler, *names, env=environment)
    return out
