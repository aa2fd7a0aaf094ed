"""A real nginx on the files of the rows, and what it is expected to answer."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import rows  # noqa: E402

CONFIG = """
daemon off;
worker_processes 1;
error_log {prefix}/error.log;
pid {prefix}/nginx.pid;
{user}
events {{ worker_connections 64; }}
http {{
    types {{ text/plain txt; text/html html; image/png png; }}
    access_log off;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    sendfile on;
    server {{
        listen unix:{prefix}/http;
        root {prefix}/files;
    }}
}}
"""


def executable() -> str | None:
    """nginx on the search path or where Debian puts it, None if it isn't installed."""
    return shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")


class Nginx:
    """One running nginx, with its files in a temporary directory and a UNIX socket as its address.

    A context manager; at the end the process is stopped and the directory removed.
    """

    def __init__(self, binary: str) -> None:
        # Not pytest's tmp_path, which can be longer than a UNIX address may be.
        self._directory = tempfile.TemporaryDirectory(prefix="rows-")
        self.prefix = Path(self._directory.name)
        self.files = self.prefix / "files"
        self.files.mkdir()
        self.address = str(self.prefix / "http")
        # The workers of a master that runs as root would be nobody, who can't enter the directory.
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        config = self.prefix / "nginx.conf"
        config.write_text(CONFIG.format(prefix=self.prefix, user=user))
        log = str(self.prefix / "error.log")
        self._process = subprocess.Popen([binary, "-p", str(self.prefix), "-e", log, "-c", str(config)])

    def __enter__(self) -> Nginx:
        deadline = time.monotonic() + 10
        while True:
            try:
                rows.connect(self.address).close()
                return self
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = self.prefix / "error.log"
                    text = log.read_text() if log.exists() else ""
                    self.__exit__()
                    raise RuntimeError(f"nginx does not answer: {error}\n{text}") from error
                time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)
        self._directory.cleanup()

    def answer(self, row: rows.Row) -> rows.Response:
        """Make the row's file, send the row's request, return what nginx answers."""
        path = rows.make_file(self.files, row)
        stat = path.stat()
        # nginx's tag has whole seconds: ngx_http_set_etag.
        tag = f'"{int(stat.st_mtime_ns // 10**9):x}-{stat.st_size:x}"'
        return rows.fetch(self.address, rows.build_request(row, "/" + path.name, "localhost", tag))


def judge(row: rows.Row, response: rows.Response, due: dict[str, Any]) -> list[str]:
    """Where the answer's status, ranges and Content-Range are not what is due. Other fields are nginx's own affair."""
    head = row.method == "HEAD"
    if head:
        due = {key: value for key, value in due.items() if key != "ranges"}
    whole = due["status"] == 200 and not head
    try:
        return rows.check_content(response, due, row.length, whole=whole, preamble=True)
    except rows.ProtocolError as error:
        return [str(error)]


def expected(row: rows.Row) -> dict[str, Any]:
    """Status, ranges and Content-Range that the row expects of sendgate."""
    return {key: row.expect[key] for key in ("status", "ranges", "content_range") if key in row.expect}


def exception(row: rows.Row) -> dict[str, Any]:
    """The same as the row's `nginx` entry says it."""
    assert row.nginx is not None
    due: dict[str, Any] = {key: row.nginx[key] for key in ("status", "ranges", "content_range") if key in row.nginx}
    if due["status"] == 206:
        due.setdefault("ranges", row.expect.get("ranges", []))
    return due
