"""WSGI servers for the tests: how each one is started, in a process of its own, with ``wsgi_application`` in it.

    with Folder() as folder, running(server, folder) as address:
        ...

Ours are those for which the package has an adapter. Stock ones are the same without it, and mod_wsgi and uWSGI, which
are written in C and have none.

``python wsgi_servers.py NAME PORT`` is the process of those that have no command of their own.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import importlib.metadata
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launching import serving

HERE = Path(__file__).resolve().parent

#: Seconds for which a server waits for the next request: more than any test takes on a busy machine.
KEEP_ALIVE = 60

#: Where Debian's packages put things.
APACHE_MODULES = Path("/usr/lib/apache2/modules")
PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin"


class Folder:
    """A temporary directory with what the servers send, the application, and what Debian's own Python imports.

    Whoever a server runs as can enter it, which pytest's directories don't allow. A context manager.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="sendgate-wsgi-")
        self.path = Path(self._directory.name)
        self.path.chmod(0o755)
        self.files = self.path / "files"
        self.closed = self.path / "closed"
        #: Here is only sendgate, as it is installed: its wheel is for every Python.
        self.packages = self.path / "packages"

    def __enter__(self) -> Folder:
        import sendgate
        from wsgi_cases import BIG, BIG_LENGTH, FILE, LENGTH, ZIPPED

        self.files.mkdir()
        source = random.Random(3333)
        content = source.randbytes(LENGTH)
        (self.files / FILE.name).write_bytes(content)
        (self.files / ZIPPED.name).write_bytes(gzip.compress(content))
        (self.files / BIG.name).write_bytes(source.randbytes(BIG_LENGTH))
        self.closed.mkdir()
        self.closed.chmod(0o777)
        for name in ("wsgi_application.py", "wsgi_cases.py"):
            shutil.copy(HERE / name, self.path)
        shutil.copytree(Path(sendgate.__file__).parent, self.packages / "sendgate")
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()


@dataclass(frozen=True)
class Server:
    """One way to run a WSGI application."""

    name: str
    #: The command that serves on a port of 127.0.0.1; it may write files into its directory.
    command: Callable[[Folder, Path, int], list[str | Path]]
    #: Whether the package's adapter is in it.
    ours: bool = False
    #: Whether it keeps connections.
    persistent: bool = True
    #: The command that it needs, if it isn't installed with what the tests need of PyPI.
    needs: str = ""

    def __str__(self) -> str:
        return self.name

    def missing(self) -> str | None:
        """Why it can't be run here."""
        if self.needs == "apache2":
            if shutil.which("apache2", path=PATH) is None or not (APACHE_MODULES / "mod_wsgi.so").exists():
                return "Apache or mod_wsgi is not installed: scripts/setup-system.sh"
        elif self.needs == "uwsgi" and shutil.which("uwsgi", path=PATH) is None:
            return "uWSGI is not installed: scripts/setup-system.sh"
        return None


# ---- How they are started ----


def _gunicorn(worker: str) -> Callable[[Folder, Path, int], list[str | Path]]:
    def command(folder: Folder, directory: Path, port: int) -> list[str | Path]:
        return [
            sys.executable, "-m", "gunicorn", "--worker-class", worker, "--bind", f"127.0.0.1:{port}",
            "--keep-alive", str(KEEP_ALIVE), "--timeout", "120", "--no-control-socket", "--worker-tmp-dir", directory,
            "--access-logfile", "-", "wsgi_application:application",
        ]  # fmt: skip

    return command


def _python(name: str) -> Callable[[Folder, Path, int], list[str | Path]]:
    def command(folder: Folder, directory: Path, port: int) -> list[str | Path]:
        return [sys.executable, Path(__file__), name, str(port)]

    return command


_APACHE = """
ServerName localhost
ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/pid
ErrorLog /dev/stderr
{user}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {modules}/mod_wsgi.so
StartServers 1
ServerLimit 1
ThreadsPerChild 8
MaxRequestWorkers 8
Listen 127.0.0.1:{port}
KeepAliveTimeout {keep_alive}
MaxKeepAliveRequests 0
EnableSendfile On
# Apache would apply Range by itself to what the application answers in full.
MaxRanges none
WSGIChunkedRequest On
WSGIEnableSendfile On
WSGIScriptAlias / {directory}/application.wsgi
<Directory {directory}>
    Require all granted
</Directory>
"""

_EMBEDDED = """
WSGIPythonPath {path}
"""

_DAEMON = """
WSGIRestrictEmbedded On
WSGISocketPrefix {directory}/socket
WSGIDaemonProcess sendgate processes=1 threads=4 python-path={path}
WSGIProcessGroup sendgate
"""


def _apache(mode: str) -> Callable[[Folder, Path, int], list[str | Path]]:
    def command(folder: Folder, directory: Path, port: int) -> list[str | Path]:
        (directory / "application.wsgi").write_text("from wsgi_application import application\n")
        config = (_APACHE + mode).format(
            directory=directory,
            modules=APACHE_MODULES,
            port=port,
            keep_alive=KEEP_ALIVE,
            path=f"{folder.packages}:{folder.path}",
            # Apache refuses to serve as root.
            user="User www-data\nGroup www-data" if os.geteuid() == 0 else "",
        )
        (directory / "apache.conf").write_text(config)
        return ["apache2", "-d", directory, "-f", directory / "apache.conf", "-D", "FOREGROUND"]

    return command


def _uwsgi(folder: Folder, directory: Path, port: int) -> list[str | Path]:
    return [
        "uwsgi", "--plugin", "python3", "--http-socket", f"127.0.0.1:{port}", "--need-app", "--die-on-term",
        # It closes each connection and doesn't say so, and has no Date (RFC 9110 6.6.1).
        "--add-header", "Connection: close", "--route-run", "addheader:Date: ${httptime[]}", "--buffer-size", "65535",
        "--pythonpath", folder.packages, "--pythonpath", folder.path, "--module", "wsgi_application:application",
    ]  # fmt: skip


def _wsgiref(application: Any, port: int, ours: bool) -> None:
    if ours:
        from sendgate.wsgiref import make_server
    else:
        from wsgiref.simple_server import make_server
    make_server("127.0.0.1", port, application).serve_forever()


def _cheroot(application: Any, port: int, ours: bool) -> None:
    from cheroot.wsgi import Server

    server = Server(("127.0.0.1", port), application, timeout=KEEP_ALIVE)
    if ours:
        from sendgate.cheroot import Gateway

        server.gateway = Gateway
    server.start()


def _waitress(application: Any, port: int, ours: bool) -> None:
    if ours:
        from sendgate.waitress import serve
    else:
        from waitress import serve
    serve(application, host="127.0.0.1", port=port)


def _gevent(application: Any, port: int, ours: bool) -> None:
    from gevent.pywsgi import WSGIHandler, WSGIServer

    if ours:
        from sendgate.gevent import WSGIHandler  # noqa: F811 - the one changed line
    WSGIServer(("127.0.0.1", port), application, handler_class=WSGIHandler).serve_forever()


_IN_PYTHON: dict[str, Callable[[Any, int, bool], None]] = {
    "wsgiref": _wsgiref, "cheroot": _cheroot, "waitress": _waitress, "gevent": _gevent,
}  # fmt: skip

OURS = (
    Server("sendgate.gunicorn.SyncWorker", _gunicorn("sendgate.gunicorn.SyncWorker"), ours=True, persistent=False),
    Server("sendgate.gunicorn.ThreadWorker", _gunicorn("sendgate.gunicorn.ThreadWorker"), ours=True),
    Server("sendgate.gunicorn.GeventWorker", _gunicorn("sendgate.gunicorn.GeventWorker"), ours=True),
    Server("sendgate.wsgiref", _python("sendgate.wsgiref"), ours=True, persistent=False),
    Server("sendgate.cheroot", _python("sendgate.cheroot"), ours=True),
    Server("sendgate.waitress", _python("sendgate.waitress"), ours=True),
    Server("sendgate.gevent", _python("sendgate.gevent"), ours=True),
)

#: Those for which there is no adapter.
OTHERS = (
    Server("mod_wsgi embedded", _apache(_EMBEDDED), needs="apache2"),
    Server("mod_wsgi daemon", _apache(_DAEMON), needs="apache2"),
    Server("uWSGI", _uwsgi, needs="uwsgi", persistent=False),
)

STOCK = (
    Server("gunicorn sync", _gunicorn("sync"), persistent=False),
    Server("gunicorn gthread", _gunicorn("gthread")),
    Server("gunicorn gevent", _gunicorn("gevent")),
    Server("wsgiref", _python("wsgiref"), persistent=False),
    Server("cheroot", _python("cheroot")),
    Server("waitress", _python("waitress")),
    Server("gevent.pywsgi", _python("gevent")),
    *OTHERS,
)


# ---- Running one ----


@contextlib.contextmanager
def running(server: Server, folder: Folder) -> Iterator[tuple[tuple[str, int], Path]]:
    """Start it, wait until it answers, and stop it at the end. Gives its address and its log."""
    directory = Path(tempfile.mkdtemp(prefix="server-", dir=folder.path))
    directory.chmod(0o755)
    log = directory / "log"
    environment = {**os.environ, "PATH": PATH}
    command = functools.partial(server.command, folder, directory)
    with serving(command, log, cwd=folder.path, env=environment) as (address, _):
        yield address, log


def version(server: Server, about: str) -> str:
    """For the head of a table. about: what the server says it is."""
    distribution = server.name.split(".")[0].split(" ")[0]
    if server.needs:
        return about
    if distribution == "wsgiref":
        return f"Python {sys.version.split()[0]}"
    return importlib.metadata.version(distribution)


if __name__ == "__main__":
    # The application of the folder, and not the one beside this file.
    sys.path[0] = os.getcwd()
    from wsgi_application import application

    name, port = sys.argv[1:]
    _IN_PYTHON[name.removeprefix("sendgate.")](application, int(port), name.startswith("sendgate."))
