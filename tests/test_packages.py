"""`make wheel` and `make sdist`: what is in them, and that what they install works where there is no checkout.

The tests of the bindings that take a few seconds run on both, each in a virtual environment of its own.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import platform
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from commands import need, need_history, run

ROOT = Path(__file__).resolve().parent.parent
BINDINGS = ROOT / "bindings/python"
VERSION = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]  # type: ignore[index]
LIBRARY = "sendgate/_native/lib_native.so"
INFO = f"sendgate-{VERSION}.dist-info"
MACHINE = platform.machine()
LICENSES = ("LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY.txt")

#: The oldest glibc that the wheel is for.
GLIBC = (2, 17)
#: What std looks for, and does without: they have no version, and a loader that doesn't find them leaves them NULL.
WEAK = {"gettid", "statx"}
#: What may be linked to besides: parts of glibc.
LOADERS = {"aarch64": "ld-linux-aarch64.so.1", "x86_64": "ld-linux-x86-64.so.2"}
LIBRARIES = {"libc.so.6", "libdl.so.2", "libpthread.so.0", LOADERS.get(MACHINE)}


def pin(package: str) -> str:
    """The version of a package that the project works with: a==1.0."""
    for name in ("build", "dev"):
        found = re.search(rf"^{package}==.*$", (BINDINGS / f"requirements-{name}.txt").read_text(), re.M)
        if found:
            return found[0]
    raise AssertionError(f"{package} has no pin")


@pytest.fixture(scope="module")
def wheel() -> Path:
    """Where make says that it is."""
    return ROOT / run("make", "-s", "wheel", cwd=ROOT).strip()


@pytest.fixture(scope="module")
def sdist() -> Path:
    """Where make says that it is."""
    return ROOT / run("make", "-s", "sdist", cwd=ROOT).strip()


@pytest.fixture(scope="module")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's shared library."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(LIBRARY, tmp_path_factory.mktemp("library")))


def virtual_environment(place: Path, *packages: str) -> Path:
    """The interpreter of a new virtual environment in which nothing but pytest and these packages is installed."""
    run(sys.executable, "-m", "venv", place)
    python = place / "bin/python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:", *packages)
    return python


def without_rust(tmp_path: Path) -> dict[str, str]:
    """An environment with no program, so no Rust and no compiler, but openssl, by which the tests make keys."""
    programs = tmp_path / "bin"
    programs.mkdir()
    need("openssl", "openssl")
    (programs / "openssl").symlink_to(str(shutil.which("openssl")))
    return {"PATH": str(programs), "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}


def check_installed(python: Path, environment: dict[str, str], *names: str) -> None:
    """Run these tests on what is installed beside an interpreter."""
    tests = [BINDINGS / f"tests/test_{name}.py" for name in names]
    printed = run(python, "-m", "pytest", "-p", "no:cacheprovider", *tests, cwd=ROOT, env=environment)
    assert f"sendgate {VERSION} from {python.parent.parent}/lib" in printed
    assert int(re.findall(r"(\d+) passed", printed)[-1]) > 500


def check_metadata(text: str) -> Metadata:
    """As strict as PyPI."""
    metadata = Metadata.from_email(text, validate=True)
    assert (metadata.name, str(metadata.version)) == ("sendgate", VERSION)
    assert str(metadata.requires_python) == ">=3.9"
    assert [str(requirement) for requirement in metadata.requires_dist or []] == ["cffi>=1.15"]
    assert metadata.license_expression == "MIT OR Apache-2.0"
    assert sorted(metadata.license_files or []) == sorted(LICENSES)
    assert metadata.description_content_type == "text/markdown; charset=UTF-8; variant=GFM"
    assert (metadata.description or "").strip() == (BINDINGS / "README.md").read_text().strip()
    return metadata


def check_licenses(texts: dict[str, str]) -> None:
    """Ours, and those of all that is linked in, in the versions that are."""
    assert sorted(texts) == sorted(LICENSES)
    for name in ("LICENSE-APACHE", "LICENSE-MIT"):
        assert texts[name] == (ROOT / name).read_text()
    others = texts["THIRD-PARTY.txt"]
    tree = run("cargo", "tree", "--locked", "--edges=normal", "--prefix=none", cwd=ROOT)
    crates = {tuple(line.split()[:2]) for line in tree.splitlines() if not line.startswith("sendgate ")}
    assert len(crates) >= 2
    for name, version in crates:
        assert f"\n{name} {version.removeprefix('v')}\nLicense: " in others
    for owner in ("Carl Lerche and other MIO contributors", "The Rust Project Developers", "Unicode, Inc"):
        assert owner in others
    assert len(re.findall(r"Permission is hereby granted, free of charge", others)) > len(crates)


def test_wheel_files(wheel: Path) -> None:
    """RECORD has the digest of every file, the tag is that of the file name, the licences are there."""
    platforms = (f"manylinux2014_{MACHINE}", f"manylinux_2_17_{MACHINE}")
    assert wheel.name == f"sendgate-{VERSION}-py3-none-{'.'.join(platforms)}.whl"
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert len(content) == len(archive.namelist())
    record = {row[0]: row[1:] for row in csv.reader(io.StringIO(content[f"{INFO}/RECORD"].decode()))}
    assert sorted(record) == sorted(content)
    assert record.pop(f"{INFO}/RECORD") == ["", ""]
    for name, (digest, size) in record.items():
        expected = base64.urlsafe_b64encode(hashlib.sha256(content[name]).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={expected}", len(content[name])), name
    tags = re.findall(r"^Tag: (.*)$", content[f"{INFO}/WHEEL"].decode(), re.M)
    assert sorted(tags) == [f"py3-none-{name}" for name in platforms]
    assert "Root-Is-Purelib: false\n" in content[f"{INFO}/WHEEL"].decode()
    check_metadata(content[f"{INFO}/METADATA"].decode())
    inside = f"{INFO}/licenses/"
    check_licenses({name[len(inside) :]: text.decode() for name, text in content.items() if name.startswith(inside)})
    # The package's own files and no others.
    sources = {f"sendgate/{path.name}" for path in (BINDINGS / "src/sendgate").iterdir() if path.is_file()}
    made = {f"sendgate/_native/{name}" for name in ("__init__.py", "ffi.py", "lib_native.so")}
    assert {name for name in content if not name.startswith(INFO)} == sources | made


def test_wheel_names_no_place(wheel: Path) -> None:
    """Nothing in it tells where it was built."""
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    cargo = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    # Without the system's own, which Rust's standard library names, too.
    places = {str(place).encode() for place in (ROOT, Path.home(), cargo, sys.prefix, sys.base_prefix)}
    places -= {b"/", b"/usr"}
    found = {(name, place) for name, data in content.items() for place in places if place + b"/" in data}
    assert not found
    assert b"library/std/src/" in content[LIBRARY], "panics name no source: the search above finds nothing in any case"


def test_wheel_needs_an_old_glibc_only(wheel: Path, library: Path) -> None:
    """Every symbol has a version that the oldest glibc has. Those without a version may be missing.

    auditwheel alone doesn't do: a symbol that came later has no version at all if one links for an older glibc.
    """
    shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    assert f'consistent with the following platform tag: "manylinux_{GLIBC[0]}_{GLIBC[1]}_{MACHINE}"' in shown
    symbols = [line.split() for line in run("readelf", "--dyn-syms", "-W", library).splitlines() if " UND " in line]
    names = {(symbol[7], symbol[4]) for symbol in symbols if len(symbol) > 7}
    assert len(names) > 50
    for name, binding in names:
        versioned = re.fullmatch(r"\w+@GLIBC_([\d.]+)", name)
        if versioned:
            assert tuple(int(number) for number in versioned[1].split(".")) <= GLIBC, name
        else:
            assert binding == "WEAK" and name in WEAK, name
    dynamic = run("readelf", "-d", "-W", library)
    assert set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)) <= LIBRARIES
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_wheel_exports(library: Path) -> None:
    """The functions of the ABI, and no others."""
    listed = {line.split()[1] for line in (ROOT / "tests/symbols.txt").read_text().splitlines() if line[:1] != "#"}
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    assert exported == listed


def test_wheel_works(wheel: Path, tmp_path: Path) -> None:
    """Without Rust, a compiler, or any other program."""
    python = virtual_environment(tmp_path / "venv", pin("cffi"), pin("pytest"))
    environment = without_rust(tmp_path)
    run(python, "-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check", wheel, env=environment)
    run(python, "-m", "pip", "check", "--disable-pip-version-check", env=environment)
    check_installed(python, environment, "core", "cases", "blackbox", "ctypes")
    assert run(tmp_path / "venv/bin/sendgate", "--help", env=environment).startswith("usage: ")


def test_sdist_files(sdist: Path) -> None:
    """The sources, as they are in the checkout, and what it takes to build them; neither tests nor what was built."""
    need_history()
    top = f"sendgate-{VERSION}"
    assert sdist.name == f"{top}.tar.gz"
    with tarfile.open(sdist) as archive:
        assert all(member.isfile() for member in archive)
        content = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    check_metadata(content.pop(f"{top}/PKG-INFO").decode())
    check_licenses({name: content[f"{top}/{name}"].decode() for name in LICENSES})
    del content[f"{top}/THIRD-PARTY.txt"]
    # Without the benchmark, which isn't there.
    manifest = content.pop(f"{top}/Cargo.toml").decode()
    assert set(manifest.splitlines()) < set((ROOT / "Cargo.toml").read_text().splitlines())
    for name, data in content.items():
        assert data == (ROOT / name.removeprefix(f"{top}/")).read_bytes(), name
    tracked = run("git", "ls-files", "src", "include", "bindings/python/src", cwd=ROOT).splitlines()
    others = [
        "Cargo.lock",
        "build.rs",
        "pyproject.toml",
        "bindings/python/build_backend.py",
        "bindings/python/README.md",
    ]
    assert len(tracked) > 80
    assert {f"{top}/{name}" for name in (*tracked, *others)} <= set(content)
    assert not [name for name in content if "/tests/" in name or "__pycache__" in name or "/_native/" in name]


def test_sdist_builds(sdist: Path, tmp_path: Path) -> None:
    """pip makes a wheel of it and installs that: with cargo, what pyproject.toml asks for, and no checkout."""
    requirements = [pin("maturin"), pin("cffi")]
    assert all(f'"{requirement}",\n' in (ROOT / "pyproject.toml").read_text() for requirement in requirements)
    python = virtual_environment(tmp_path / "venv", *requirements, pin("pytest"))
    moved = shutil.copy(sdist, tmp_path)
    # Built from nothing: a target directory of its own.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("CARGO_", "PYTHON", "VIRTUAL"))
    }
    environment["CARGO_TARGET_DIR"] = str(tmp_path / "target")
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    if "CARGO_HOME" in os.environ:
        environment["CARGO_HOME"] = os.environ["CARGO_HOME"]
    options = ("-q", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", *options, moved, cwd=tmp_path, env=environment)
    installed = next((tmp_path / "venv/lib").glob(f"python*/site-packages/{INFO}"))
    check_metadata((installed / "METADATA").read_text())
    check_licenses({path.name: path.read_text() for path in (installed / "licenses").iterdir()})
    check_installed(python, without_rust(tmp_path), "cases", "ctypes")
