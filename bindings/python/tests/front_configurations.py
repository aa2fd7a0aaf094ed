"""Front servers of Debian, each configured for one test's folder with a snippet from examples/front-servers."""

from __future__ import annotations

import getpass
import os
import shutil
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "front-servers"
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
    types {{ text/html html; }}
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    sendfile on;
    {before}
    server {{
        listen 127.0.0.1:{port};
        {more}
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
{more}
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
LoadModule proxy_module {modules}/mod_proxy.so
{before}
StartServers 1
ServerLimit 1
ThreadsPerChild 32
MaxRequestWorkers 32
# So long does a client wait for the rest of an answer that was cut short.
KeepAliveTimeout 1
Listen 127.0.0.1:{port}
{more}
Include {snippet}
"""

#: By the server's name: its configuration, and its command before the file's name.
SERVERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nginx": (NGINX, ("nginx", "-e", "{place}/error.log", "-c")),
    "lighttpd": (LIGHTTPD, ("lighttpd", "-D", "-f")),
    "apache": (APACHE, ("apache2", "-D", "FOREGROUND", "-f")),
}


def missing(name: str) -> str | None:
    """Why it can't be started."""
    binary = SERVERS[name][1][0]
    if shutil.which(binary, path=PATH) is None:
        return f"{binary} is not installed: scripts/setup-system.sh"
    return None


def load_modules(*names: str) -> str:
    """Apache's lines for these."""
    return "\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in names)


def configured(name: str, place: Path, port: int, snippet: str, before: str = "", more: str = "") -> list[str]:
    """Write its configuration to the folder place, and return its command.

    before: what stands outside of nginx's server, or with Apache's modules. more: what stands beside the snippet.
    """
    (place / "snippet.conf").write_text(snippet)
    user = ""
    if os.geteuid() == 0:
        # nginx's workers would be nobody, and Apache serves nothing as root.
        user = {"nginx": f"user {getpass.getuser()};", "apache": "User www-data\nGroup www-data"}.get(name, "")
    template, command = SERVERS[name]
    config = place / "front.conf"
    config.write_text(
        template.format(
            place=place,
            port=port,
            snippet=place / "snippet.conf",
            modules=MODULES,
            user=user,
            before=before,
            more=more,
        )
    )
    binary = shutil.which(command[0], path=PATH)
    assert binary is not None
    return [binary, *(part.format(place=place) for part in command[1:]), str(config)]
