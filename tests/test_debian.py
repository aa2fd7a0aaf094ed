"""`make deb`: the packages are installed into a Debian of their own, used there, and removed again.

That is a directory with the few packages that dpkg itself needs, copied with their part of dpkg's database from the
system that the tests run on.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from commands import need, run

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]  # type: ignore[index]
README = ROOT / "README.md"
PROGRAM = re.findall(r"^```c\n(.*?)^```$", README.read_text(), re.M | re.S)[0]
NAMES = ("libsendgate0", "libsendgate-dev")
FUNCTIONS = [
    line.split()[1] for line in (ROOT / "tests/symbols.txt").read_text().splitlines() if not line.startswith("#")
]

#: What dpkg calls, and what of theirs a trigger of ours wakes.
BASE = ("coreutils", "dash", "diffutils", "dpkg", "libc-bin", "tar")
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"


@pytest.fixture(scope="module")
def packages() -> dict[str, Path]:
    """Each package's file, by its name."""
    need("dh", "debhelper")
    need("dpkg-buildpackage", "dpkg-dev")
    made = {Path(path).name.split("_")[0]: ROOT / path for path in run("make", "-s", "deb", cwd=ROOT).splitlines()}
    assert sorted(made) == sorted(NAMES)
    return made


def with_dependencies(names: tuple[str, ...]) -> set[str]:
    """These packages and what they need, as it is installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        needed = run("dpkg-query", "-W", "-f", "${Pre-Depends}, ${Depends}", name)
        for clause in filter(None, needed.split(", ")):
            for alternative in clause.split(" | "):
                other = re.sub(r"[:(].*", "", alternative).strip()
                status = ["dpkg-query", "-W", "-f", "${db:Status-Status}", other]
                if subprocess.run(status, capture_output=True, text=True).stdout.startswith("installed"):
                    waiting.append(other)
                    break
    return found


def copy_package(name: str, root: Path) -> None:
    """Put the files of an installed package there, and its part of dpkg's database."""
    for listed in run("dpkg-query", "-L", name).splitlines():
        path = Path(listed)
        if not path.is_absolute() or not os.path.lexists(path):
            continue  # a word on a diversion, or what this system leaves out, documentation for instance
        to = root / str(path.parent.resolve() / path.name).lstrip("/")
        if path.is_dir() and not path.is_symlink():
            to.mkdir(parents=True, exist_ok=True)
        elif not os.path.lexists(to):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to, follow_symlinks=False)
    database = root / "var/lib/dpkg"
    with (database / "status").open("a") as status:
        status.write(run("dpkg-query", "-s", name).rstrip() + "\n\n")
    for path in Path("/var/lib/dpkg/info").glob(f"{name}[.:]*"):
        shutil.copy2(path, database / "info")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A system with no more than dpkg and the C library."""
    if subprocess.run([CHROOT, "/", "true"], capture_output=True).returncode != 0:
        pytest.skip("only root may install packages and change to another root directory")
    root = tmp_path_factory.mktemp("root")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            (root / os.readlink(f"/{name}").lstrip("/")).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(os.readlink(f"/{name}"))
    for name in ("var/lib/dpkg/info", "var/lib/dpkg/triggers", "var/lib/dpkg/updates", "var/log", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    for name in sorted(with_dependencies(BASE)):
        copy_package(name, root)
    # How files are named, and who is woken by which trigger. Of ours there is one: libc-bin makes the loader's cache.
    for name in ("info/format", "triggers/ldconfig"):
        shutil.copy2(f"/var/lib/dpkg/{name}", root / "var/lib/dpkg" / name)
    inside(root, "ldconfig")
    assert inside(root, "dpkg", "--audit") == ""
    return root


def inside(root: Path, *command: str) -> str:
    """What a command prints there."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    return run(CHROOT, root, *command, env=environment)


def files(root: Path) -> dict[str, bytes]:
    """All that is there, with content, but dpkg's own records, the loader's cache, and what the tests bring along."""
    changing = re.compile(r"var/lib/dpkg/|var/log/|var/cache/ldconfig/|etc/ld\.so\.cache$|tmp/")
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        content = os.readlink(path).encode() if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        if not changing.match(name):
            found[name] = content
    return found


def test_control_files(packages: dict[str, Path]) -> None:
    """What is needed, and what the loader's cache, and programs that are packaged, are told."""

    def field(package: str, name: str) -> str:
        return run("dpkg-deb", "-f", packages[package], name).strip()

    for package in NAMES:
        assert field(package, "Version").rpartition("-")[0] == VERSION
        assert field(package, "Multi-Arch") == "same"
    needed = field("libsendgate0", "Depends").split(", ")
    assert [re.fullmatch(r"(\S+) \(>= [\d.]+\)", dependency)[1] for dependency in needed] == ["libc6", "libgcc-s1"]  # type: ignore[index]
    assert field("libsendgate-dev", "Depends") == f"libsendgate0 (= {field('libsendgate0', 'Version')})"
    assert run("dpkg-deb", "-I", packages["libsendgate0"], "triggers").splitlines()[-1] == "activate-noawait ldconfig"
    symbols = run("dpkg-deb", "-I", packages["libsendgate0"], "symbols").splitlines()
    assert symbols[0] == "libsendgate.so.0 libsendgate0 #MINVER#"
    assert [line.split("@")[0].strip() for line in symbols[1:]] == sorted(FUNCTIONS)


def test_lintian(packages: dict[str, Path]) -> None:
    """Nothing to object to, but that no bug of Debian's asks for the packages."""
    need("lintian", "lintian")
    options = ("--fail-on", "error,warning", "--suppress-tags", "initial-upload-closes-no-bugs", "--allow-root")
    run("lintian", *options, *packages.values())


def test_installed_used_and_removed(packages: dict[str, Path], root: Path, tmp_path: Path) -> None:
    """Programs find the library, dpkg finds every file as it was, and nothing is left behind."""
    before = files(root)
    assert "libsendgate" not in inside(root, "ldconfig", "-p")
    for package in packages.values():
        shutil.copy(package, root / "tmp")
    inside(root, "dpkg", "--install", *(f"/tmp/{package.name}" for package in packages.values()))
    assert inside(root, "dpkg", "--audit", *NAMES) == ""
    triplet = run("dpkg-architecture", "-qDEB_HOST_MULTIARCH").strip()
    library = f"/usr/lib/{triplet}"
    assert "\tlibsendgate.so.0 (" in inside(root, "ldconfig", "-p")

    owned = {package: set(inside(root, "dpkg", "-L", package).split()) for package in NAMES}
    added = {f"/{name}" for name in set(files(root)) - set(before)}
    assert added <= owned["libsendgate0"] | owned["libsendgate-dev"]
    runtime = {f"{library}/libsendgate.so.0", f"{library}/libsendgate.so.{VERSION}"}
    development = {
        "/usr/include/sendgate.h",
        "/usr/share/man/man7/sendgate.7.gz",
        *(f"/usr/share/man/man3/{name}.3.gz" for name in FUNCTIONS),
        *(f"{library}/{name}" for name in ("libsendgate.a", "libsendgate.so", "pkgconfig/sendgate.pc")),
        *(f"{library}/cmake/sendgate/{name}" for name in ("sendgate-config.cmake", "sendgate-config-version.cmake")),
    }
    assert runtime <= owned["libsendgate0"] and not runtime & owned["libsendgate-dev"]
    assert development <= owned["libsendgate-dev"] and not development & owned["libsendgate0"]
    for name in sorted(added):
        path = root / name[1:]
        if path.is_file() and not path.is_symlink():
            content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
            assert str(ROOT).encode() not in content, name
    doc = root / "usr/share/doc/libsendgate0"
    assert "other MIO contributors" in gzip.decompress((doc / "THIRD-PARTY.txt.gz").read_bytes()).decode()
    granted = (ROOT / "LICENSE-MIT").read_text().partition("\nPermission is hereby")[2].split()
    assert " ".join(granted) in " ".join((doc / "copyright").read_text().replace("\n .\n", "\n").split())

    assert inside(root, "dpkg", "--verify", *NAMES) == ""
    header = root / "usr/include/sendgate.h"
    content = header.read_bytes()
    header.write_bytes(content + b"\n")
    changed = subprocess.run([CHROOT, root, "dpkg", "--verify", *NAMES], capture_output=True, text=True).stdout
    assert changed.split() == ["??5??????", "/usr/include/sendgate.h"]
    header.write_bytes(content)

    (tmp_path / "app.c").write_text(PROGRAM)
    environment = {
        **os.environ,
        "PKG_CONFIG_SYSROOT_DIR": str(root),
        "PKG_CONFIG_LIBDIR": f"{root}{library}/pkgconfig",
        "PKG_CONFIG_ALLOW_SYSTEM_CFLAGS": "1",
        "PKG_CONFIG_ALLOW_SYSTEM_LIBS": "1",
    }
    shutil.copy(README, root / "tmp")
    for kind in ([], ["--static"]):
        flags = run("pkg-config", *kind, "--cflags", "--libs", "sendgate", env=environment).split()
        run("cc", "-std=c99", *(["-static"] if kind else []), tmp_path / "app.c", *flags, "-o", root / "tmp/app")
        assert inside(root, "/tmp/app", "/tmp/README.md").startswith("SENDGATE_OK, status 206, ")
        if not kind:
            # What a package of this program would depend on.
            unpacked = "debian/libsendgate0"
            command = ("dpkg-shlibdeps", "-O", f"-S{unpacked}", f"-l{unpacked}{library}", root / "tmp/app")
            assert f"libsendgate0 (>= {VERSION})" in run(*command, cwd=ROOT / "target/deb/sendgate")

    inside(root, "dpkg", "--purge", *NAMES)
    assert "libsendgate" not in inside(root, "ldconfig", "-p")
    assert files(root) == before
