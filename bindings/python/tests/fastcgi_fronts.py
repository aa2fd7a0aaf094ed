"""nginx, lighttpd and Apache in front of a FastCGI server, by the configurations in examples/front-servers."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launching import launched, serving

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[2] / "examples" / "front-servers"
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"
MODULES = Path("/usr/lib/apache2/modules")

NGINX = """
daemon off;
worker_processes 1;
error_log {place}/error.log;
pid {place}/pid;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    {before}
    server {{
        listen 127.0.0.1:{port};
        location = /setup.py {{
            include /etc/nginx/fastcgi_params;
            fastcgi_pass unix:{folder}/document.sock;
        }}
        include {snippet};
    }}
}}
"""

LIGHTTPD = """
server.document-root = "{place}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{place}/error.log"
server.upload-dirs = ("{place}")
include "{snippet}"
$HTTP["url"] == "/setup.py" {{
    fastcgi.server = ("/" => (("socket" => "{folder}/document.sock", "check-local" => "disable")))
}}
"""

APACHE = """
ServerName localhost
ServerRoot {place}
DefaultRuntimeDir {place}
PidFile {place}/pid
ErrorLog {place}/error.log
{user}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule env_module {modules}/mod_env.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_fcgi_module {modules}/mod_proxy_fcgi.so
StartServers 1
ServerLimit 1
ThreadsPerChild 32
MaxRequestWorkers 32
# So long does a client wait for the rest of an answer that was cut short.
KeepAliveTimeout 1
Listen 127.0.0.1:{port}
ProxyPass "/setup.py" "unix:{folder}/document.sock|fcgi://document/"
Include {snippet}
"""

#: The example's keepalive pool, as its comment has it.
POOL = "upstream app {{ server unix:{folder}/app.sock; keepalive 16; }}"


@dataclass(frozen=True)
class Kind:
    """A front server, and whether it keeps its connections."""

    name: str
    keeps: bool = False

    def __str__(self) -> str:
        return self.name + "-keep" * self.keeps

    def missing(self) -> str | None:
        """Why it can't be started."""
        binary = {"apache": "apache2"}.get(self.name, self.name)
        if shutil.which(binary, path=PATH) is None:
            return f"{binary} is not installed: scripts/setup-system.sh"
        return None

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
        return text.replace("/run/app.sock", f"{folder}/app.sock")

    def command(self, folder: Path, port: int) -> Sequence[str | Path]:
        """Write its configuration, and return its command."""
        place = folder / "front"
        snippet, config = place / "snippet.conf", place / "front.conf"
        snippet.write_text(self.snippet(folder))
        user = ""
        if os.geteuid() == 0:
            # nginx's workers would be nobody, and Apache serves nothing as root.
            user = {"nginx": f"user {getpass.getuser()};", "apache": "User www-data\nGroup www-data"}.get(self.name, "")
        template = {"nginx": NGINX, "lighttpd": LIGHTTPD, "apache": APACHE}[self.name]
        before = POOL.format(folder=folder) if self.keeps else ""
        config.write_text(
            template.format(
                place=place, folder=folder, port=port, snippet=snippet, modules=MODULES, user=user, before=before
            )
        )
        command = {
            "nginx": ["nginx", "-e", place / "error.log", "-c", config],
            "lighttpd": ["lighttpd", "-D", "-f", config],
            "apache": ["apache2", "-D", "FOREGROUND", "-f", config],
        }[self.name]
        binary = shutil.which(str(command[0]), path=PATH)
        assert binary is not None
        return [binary, *command[1:]]


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
    reason = kind.missing()
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
