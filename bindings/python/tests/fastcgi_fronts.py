"""nginx, lighttpd and Apache in front of a FastCGI server, by the configurations in examples/front-servers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from front_configurations import EXAMPLES, configured, load_modules, missing
from launching import launched, serving

HERE = Path(__file__).resolve().parent

#: What answers the document's own example, besides the application.
DOCUMENT = {
    "nginx": """location = /setup.py {{
            include /etc/nginx/fastcgi_params;
            fastcgi_pass unix:{folder}/document.sock;
        }}""",
    "lighttpd": """$HTTP["url"] == "/setup.py" {{
    fastcgi.server = ("/" => (("socket" => "{folder}/document.sock", "check-local" => "disable")))
}}""",
    "apache": 'ProxyPass "/setup.py" "unix:{folder}/document.sock|fcgi://document/"',
}

#: The example's keepalive pool, as its comment has it.
POOL = "upstream app {{ server unix:{folder}/app.sock; keepalive 16; }}"


@dataclass(frozen=True)
class Kind:
    """A front server, and whether it keeps its connections."""

    name: str
    keeps: bool = False
    #: What the lines of the example begin with that are left out.
    without: str = ""

    def __str__(self) -> str:
        return self.name + "-keep" * self.keeps

    def snippet(self, folder: Path) -> str:
        """The example."""
        text = (EXAMPLES / f"{self.name}-fastcgi.conf").read_text()
        assert "/run/app.sock" in text
        if self.name == "nginx" and self.keeps:
            passes = "    fastcgi_pass unix:/run/app.sock;"
            assert passes in text and 'fastcgi_pass app;" and "fastcgi_keep_conn on;"' in text
            text = text.replace(passes, "    fastcgi_pass app;\n    fastcgi_keep_conn on;")
        if self.name == "apache" and not self.keeps:
            assert " enablereuse=on" in text
            text = text.replace(" enablereuse=on", "")
        if self.without:
            lines = [line for line in text.splitlines() if not line.lstrip().startswith(self.without)]
            assert len(lines) < len(text.splitlines())
            text = "\n".join(lines)
        return text.replace("/run/app.sock", f"{folder}/app.sock")

    def command(self, folder: Path, port: int) -> list[str]:
        """Write its configuration, and return its command."""
        before = ""
        if self.name == "nginx" and self.keeps:
            before = POOL.format(folder=folder)
        if self.name == "apache":
            before = load_modules("env", "proxy_fcgi")
        more = DOCUMENT[self.name].format(folder=folder)
        return configured(self.name, folder / "front", port, self.snippet(folder), before, more)


KINDS = (
    Kind("nginx"),
    Kind("nginx", keeps=True),
    Kind("lighttpd"),
    Kind("apache"),
    Kind("apache", keeps=True),
)


@dataclass
class Fronted:
    """A front server with our server behind it."""

    kind: Kind
    address: tuple[str, int]
    folder: Path
    #: Ours.
    process: subprocess.Popen[Any]

    @property
    def log(self) -> str:
        """What our server has written."""
        return (self.folder / "application.log").read_text(errors="replace")

    @property
    def error_log(self) -> str:
        """The front server's."""
        return (self.folder / "front" / "error.log").read_text(errors="replace")

    def descriptors(self) -> int:
        """How many our server has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self) -> int:
        """How many our server has."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def peak_mib(self) -> int:
        """The most memory that our server has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) >> 10


@contextlib.contextmanager
def fronted(kind: Kind, command: Sequence[str | Path] | None = None, **options: Any) -> Iterator[Fronted]:
    """Both servers. command: what prints a line when it listens on FOLDER/app.sock, "{folder}" in it replaced."""
    reason = missing(kind.name)
    if reason is not None:
        pytest.skip(reason)
    # pytest's own directories are for this user alone, and Apache's is another.
    with tempfile.TemporaryDirectory(prefix="sendgate-fcgi-") as directory:
        folder = Path(directory).resolve()
        folder.chmod(0o755)
        (folder / "front").mkdir()
        (folder / "files").mkdir()
        command = command or [sys.executable, "-u", HERE / "fastcgi_application.py", "{folder}"]
        made = [str(part).replace("{folder}", str(folder)) for part in command]
        with launched(made, folder / "application.log", stdout=subprocess.PIPE, **options) as process:
            assert process.stdout.readline(), (folder / "application.log").read_text()
            log = folder / "front.log"
            with serving(lambda port: kind.command(folder, port), log, "/") as (address, _):
                yield Fronted(kind, address, folder, process)
