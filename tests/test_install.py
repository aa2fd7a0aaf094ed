"""`make install` into a clean prefix: what a C program, pkg-config, CMake, Meson and man(1) find there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commands import need, need_history, run

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]  # type: ignore[index]

#: The README's example is C of any age, and C++.
README = ROOT / "README.md"
PROGRAM = re.findall(r"^```c\n(.*?)^```$", README.read_text(), re.M | re.S)[0]
ANSWERED = "SENDGATE_OK, status 206, "
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
C = ("c99", "c11", "c17", "c2x")
CXX = ("c++11", "c++14", "c++17", "c++20")


def test_what_is_installed(prefix: Path) -> None:
    """Names and links as for any library; the number in the SONAME is the one of the ABI."""
    library = prefix / "lib" / f"libsendgate.so.{VERSION}"
    assert library.is_file() and not library.is_symlink()
    major = VERSION.split(".")[0]
    assert os.readlink(prefix / "lib" / f"libsendgate.so.{major}") == library.name
    assert os.readlink(prefix / "lib/libsendgate.so") == f"libsendgate.so.{major}"
    assert f"[libsendgate.so.{major}]" in run("readelf", "-d", library)
    for name in ("lib/libsendgate.a", "lib/pkgconfig/sendgate.pc", "include/sendgate.h", "share/man/man7/sendgate.7"):
        assert (prefix / name).is_file()
    assert os.stat(library).st_mode & 0o777 == 0o755
    assert os.stat(prefix / "include/sendgate.h").st_mode & 0o777 == 0o644


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("compiler", "package"), [("gcc", "gcc"), ("clang", "clang"), ("g++", "g++"), ("clang++", "clang")]
)
def test_pkg_config(
    prefix: Path, environment: dict[str, str], tmp_path: Path, compiler: str, package: str, static: bool
) -> None:
    """A program in every C and C++ that the header is for, by pkg-config alone, shared and static."""
    need("pkg-config", "pkg-config")
    need(compiler, package)
    flags = run("pkg-config", *(["--static"] if static else []), "--cflags", "--libs", "sendgate", env=environment)
    assert run("pkg-config", "--modversion", "sendgate", env=environment).strip() == VERSION
    is_cxx = compiler.endswith("++")
    source = tmp_path / ("app.cc" if is_cxx else "app.c")
    source.write_text(PROGRAM)
    for standard in CXX if is_cxx else C:
        program = tmp_path / f"app-{standard}"
        more = ["-static"] if static else []
        run(compiler, f"-std={standard}", *WARNINGS, *more, source, *flags.split(), "-o", program)
        assert run(program, README, env=environment).startswith(ANSWERED)
        linked = run("readelf", "-d", program)
        assert ("libsendgate.so.0" in linked) is not static


def test_moved(prefix: Path, tmp_path: Path) -> None:
    """What was installed can be moved: pkg-config finds it where its file is now (--define-prefix)."""
    need("pkg-config", "pkg-config")
    moved = shutil.copytree(prefix, tmp_path / "moved", symlinks=True)
    environment = {**os.environ, "PKG_CONFIG_PATH": str(moved / "lib/pkgconfig")}
    flags = run("pkg-config", "--define-prefix", "--static", "--cflags", "--libs", "sendgate", env=environment)
    assert str(prefix) not in flags
    (tmp_path / "app.c").write_text(PROGRAM)
    run("cc", "-static", tmp_path / "app.c", *flags.split(), "-o", tmp_path / "app")
    assert run(tmp_path / "app", README).startswith(ANSWERED)


def test_cmake(prefix: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """find_package(sendgate), with the version that is there, and not with another."""
    need("cmake", "cmake")
    (tmp_path / "app.c").write_text(PROGRAM)
    for target in ("sendgate::sendgate", "sendgate::static"):
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.13)\nproject(app C)\nfind_package(sendgate 0.1 REQUIRED)\n"
            f"add_executable(app app.c)\ntarget_link_libraries(app PRIVATE {target})\n"
        )
        build = tmp_path / target.replace(":", "")
        run("cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
        run("cmake", "--build", build)
        assert run(build / "app", README).startswith(ANSWERED)
    for wanted in ("0.2", "1.0"):  # newer, another ABI
        text = (tmp_path / "CMakeLists.txt").read_text().replace("sendgate 0.1", f"sendgate {wanted}")
        (tmp_path / "CMakeLists.txt").write_text(text)
        failed = subprocess.run(
            ["cmake", "-S", tmp_path, "-B", tmp_path / "other", f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True
        )
        assert failed.returncode != 0
        (tmp_path / "CMakeLists.txt").write_text(text.replace(f"sendgate {wanted}", "sendgate 0.1"))


@pytest.fixture
def meson_project(tmp_path: Path) -> Path:
    """A Meson project with the wrap file, and for that the sources in an archive."""
    need_history()
    project = tmp_path / "project"
    shutil.copytree(ROOT / "packaging/meson", project / "subprojects")
    archive = run("make", "-s", "dist", cwd=ROOT).strip()
    shutil.copy(ROOT / archive, project / "subprojects/packagefiles")
    (project / "app.c").write_text(PROGRAM)
    return project


def meson_build(project: Path, options: str, environment: dict[str, str]) -> tuple[str, Path]:
    """What Meson says of a program that depends on sendgate, and the program."""
    (project / "meson.build").write_text(
        "project('app', 'c', default_options: ['c_std=c99', 'warning_level=3', 'werror=true'])\n"
        f"executable('app', 'app.c', dependencies: dependency('sendgate', version: '>=0.1'{options}))\n"
    )
    # meson and ninja are installed beside the interpreter that runs the tests.
    tools = Path(sys.executable).parent
    environment = {**environment, "PATH": f"{tools}:{environment['PATH']}"}
    build = project / "build"
    said = run(tools / "meson", "setup", build, "--wipe", cwd=project, env=environment)
    run(tools / "meson", "compile", "-C", build, cwd=project, env=environment)
    return said, build / "app"


def test_meson(prefix: Path, environment: dict[str, str], meson_project: Path) -> None:
    """dependency('sendgate') is what is installed, shared or static, whatever the wrap file offers."""
    need("pkg-config", "pkg-config")
    for options, is_shared in (("", True), (", static: true", False)):
        said, program = meson_build(meson_project, options, environment)
        assert f"dependency sendgate found: YES {VERSION}" in said
        assert run(program, README, env=environment).startswith(ANSWERED)
        assert ("libsendgate.so.0" in run("readelf", "-d", program)) is is_shared
    assert not list(meson_project.glob("subprojects/sendgate-*"))


def test_meson_fallback(meson_project: Path, tmp_path: Path) -> None:
    """dependency('sendgate') is built from the wrap file's archive where it is not installed."""
    environment = {**os.environ, "PKG_CONFIG_LIBDIR": str(tmp_path), "CMAKE_PREFIX_PATH": str(tmp_path)}
    said, program = meson_build(meson_project, "", environment)
    assert re.search(rf"Dependency sendgate .*from subproject .*sendgate-{VERSION} found: YES {VERSION}\n", said), said
    assert run(program, README).startswith(ANSWERED)
    assert "libsendgate" not in run("readelf", "-d", program)


def test_manual_pages(prefix: Path) -> None:
    """Each function has one, which says since when there is it; man(1) has nothing to say about any."""
    symbols = (ROOT / "tests/symbols.txt").read_text().splitlines()
    pages = prefix / "share/man/man3"
    for line in symbols:
        if not line.startswith("#"):
            since, name = line.split()
            page = (pages / f"{name}.3").read_text()
            assert f"Since version {since}." in page
            assert f"\n{name} \\- " in page.replace("\\_", "_")
            assert f"\\fB{name}\\fR" not in page.split(".SH SEE ALSO")[1]
    overview = (prefix / "share/man/man7/sendgate.7").read_text()
    assert all(f"\n.BR {line.split()[1]} (3)\n" in overview for line in symbols if not line.startswith("#"))
    need("groff", "groff-base")
    for page in [*pages.iterdir(), prefix / "share/man/man7/sendgate.7"]:
        done = subprocess.run(["groff", "-man", "-wall", "-Tutf8", "-z", page], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_uninstall(tmp_path: Path) -> None:
    """Takes away what was installed, and nothing else."""
    other = tmp_path / "prefix/lib/libother.so"
    other.parent.mkdir(parents=True)
    other.touch()
    for target in ("install", "uninstall"):
        run("make", "-s", target, f"PREFIX={tmp_path / 'prefix'}", cwd=ROOT)
    assert [path for path in (tmp_path / "prefix").rglob("*") if not path.is_dir()] == [other]


@pytest.mark.parametrize(
    ("places", "why"),
    [
        (("PREFIX=/a", "LIBDIR=/elsewhere/lib"), "/elsewhere/lib is not below"),
        (("PREFIX=a",), "PREFIX is a, which isn't absolute"),
        (("PREFIX=/a b",), "a space in /a b"),
    ],
)
def test_a_place_that_makes_no_sense(tmp_path: Path, places: tuple[str, ...], why: str) -> None:
    """Is refused with a word of why, before anything is written."""
    command = ["make", "-s", "install", *places, f"DESTDIR={tmp_path / 'a b'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert why in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_destination_with_a_space(tmp_path: Path) -> None:
    """Nobody looks there later, so it can be anywhere; and nothing else is removed."""
    other = tmp_path / "a/usr/lib/cmake/sendgate"
    other.mkdir(parents=True)
    stage = tmp_path / "a b"
    for target in ("install", "uninstall"):
        run("make", "-s", target, "PREFIX=/usr", f"DESTDIR={stage}", cwd=ROOT)
        assert (stage / "usr/include/sendgate.h").exists() is (target == "install")
    assert other.is_dir()
