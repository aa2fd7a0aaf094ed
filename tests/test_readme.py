"""The examples in README.md run as they stand there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def example(language: str) -> str:
    """The one code block of that language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 1, f"{len(blocks)} blocks of {language}"
    return str(blocks[0])


def check(output: str) -> None:
    """Both examples ask for the first 15 and the last 7 bytes of README.md."""
    content = (ROOT / "README.md").read_text()
    assert "HTTP/1.1 206 Partial Content\r\n" in output
    assert "Content-Type: multipart/byteranges; boundary=" in output
    size = len(content.encode())
    assert f"Content-Range: bytes 0-14/{size}\r\n\r\n{content[:15]}\r\n--" in output
    assert f"Content-Range: bytes {size - 7}-{size - 1}/{size}\r\n\r\n{content[-7:]}\r\n--" in output


@pytest.mark.parametrize("compiler", ["cc", "clang"])
@pytest.mark.parametrize("library", ["target/release/libsendgate.a", "target/release/libsendgate.so"])
def test_c(compiler: str, library: str, tmp_path: Path) -> None:
    """The C example compiles without a warning, with the command that README names, and prints the two parts."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    subprocess.run(["make", "--no-print-directory", "-s", "lib"], cwd=ROOT, check=True)
    source = tmp_path / "app.c"
    source.write_text(example("c"))
    program = tmp_path / "app"
    warnings = ["-std=c99", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    rpath = f"-Wl,-rpath,{ROOT / 'target/release'}"
    libraries = [library, rpath, "-lpthread", "-ldl", "-lm"]
    subprocess.run([compiler, *warnings, "-Iinclude", source, *libraries, "-o", program], cwd=ROOT, check=True)
    done = subprocess.run([program], cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=30)
    output = done.stdout.decode()
    assert output.startswith("SENDGATE_OK, status 206, ")
    assert "connection reusable\n" in output
    check(output)


def test_python() -> None:
    """The Python example prints the two parts."""
    done = subprocess.run(
        [sys.executable, "-c", example("python")], cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=30
    )
    output = done.stdout.decode()
    assert re.match(r"206 \d+ REUSABLE\n", output)
    check(output)
