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

import rows
from front_configurations import EXAMPLES, configured, load_modules, missing
from launching import launched, serving
from served_rows import SOCKET_ROWS

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


# ---- What they do to answers ----


@dataclass(frozen=True)
class Difference:
    """What a front server does to the answers to some rows, whatever is behind it."""

    why: str
    servers: tuple[str, ...]
    #: By the name of the row: all that the row's judge complains of.
    complaints: dict[str, list[str]]


DIFFERENCES = (
    Difference(
        "closes the connection of a client that names an option that it doesn't know",
        ("nginx",),
        {"conn-http11-other-token": ["keep_alive False instead of True"]},
    ),
    Difference(
        "refuses a second line of a field that may occur once, and takes If-Match and If-None-Match for such",
        ("nginx",),
        {
            **dict.fromkeys(
                (
                    "ims-two-lines", "ims-two-lines-one-garbage", "ius-two-lines", "inm-two-lines-star-second",
                    "inm-two-lines-second-malformed", "inm-two-lines-tag-across", "im-two-lines", "ifr-two-lines",
                    "ifr-two-lines-one-empty", "ifr-date-two-lines",
                ),
                ["status 400 instead of 200"],
            ),
            **dict.fromkeys(
                (
                    "inm-two-lines", "inm-two-lines-first-matches", "inm-two-lines-apart",
                    "inm-three-lines-one-empty",
                ),
                ["status 400 instead of 304"],
            ),
            "im-two-lines-none": ["status 400 instead of 412"],
        },
    ),
    Difference(
        "answers an HTTP/1.0 request with HTTP/1.0",
        ("lighttpd",),
        {
            row.name: ["version HTTP/1.0"]
            for row in SOCKET_ROWS
            if row.version == 10 and row.name != "conn-unread-body-http10-keep-alive"
        },
    ),
    Difference(
        "refuses a GET with content",
        ("lighttpd",),
        {
            **dict.fromkeys(
                (
                    "conn-unread-body", "conn-unread-body-http10-keep-alive", "conn-unread-body-of-known-length",
                    "conn-unread-chunked-body",
                ),
                ["status 400 instead of 200"],
            ),
            "conn-unread-body-not-modified": ["status 400 instead of 304"],
        },
    ),
    Difference(
        "passes only the first line of some fields, and refuses two of If-Modified-Since that differ",
        ("lighttpd",),
        {
            "ims-two-lines": ["status 304 instead of 200"],
            "ims-two-lines-one-garbage": ["status 400 instead of 200"],
            "inm-two-lines": ["status 200 instead of 304"],
            "inm-two-lines-apart": ["status 200 instead of 304"],
            "inm-two-lines-second-malformed": ["status 304 instead of 200"],
        },
    ),
    Difference(
        "doesn't pass a field whose value is empty",
        ("lighttpd",),
        {
            "prec-inm-empty-ims-exact": ["status 304 instead of 200"],
            "inm-three-lines-one-empty": ["status 200 instead of 304"],
            "im-empty-value": ["status 200 instead of 412"],
            "prec-im-empty-ius-ok": ["status 200 instead of 412"],
            "ifr-empty": ["status 206 instead of 200"],
            "ifr-two-lines-one-empty": ["status 206 instead of 200"],
        },
    ),
    Difference(
        "drops a Content-Length of 0 from the answer to a HEAD",
        ("apache",),
        dict.fromkeys(("ius-head", "head-empty-file", "head-im-mismatch"), ["Content-Length None instead of 0"]),
    ),
    Difference(
        "takes a Last-Modified of 1970 for none",
        ("apache",),
        dict.fromkeys(
            ("val-mtime-0", "val-mtime-1-nanosecond"),
            ["Last-Modified None instead of 'Thu, 01 Jan 1970 00:00:00 GMT'"],
        ),
    ),
)  # fmt: skip


def different(row: rows.Row, kind: Kind) -> list[str]:
    """What it has to say against it."""
    return [
        complaint
        for difference in DIFFERENCES
        if kind.name in difference.servers
        for complaint in difference.complaints.get(row.name, [])
    ]
