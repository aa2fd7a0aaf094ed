"""What runs inside of each server of ``wsgi_servers``, beside ``wsgi_cases``.

    /plain/CASE?NUMBER        the case, as any application would do it
    /conditional/CASE?NUMBER  the same inside of sendgate.wsgi.Conditional
    /files/NAME               sendgate.wsgi.Files on the folder "files"
    /next                     a response like any other
    /about                    what the server says it is

All of it is for any server; ``wsgi_matrix`` and ``test_wsgi_matrix`` ask.
"""

from __future__ import annotations

from collections.abc import Iterable

import sendgate.wsgi
from wsgi_cases import BY_SLUG, HERE, Environ, StartResponse


def plain(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The case that the path names."""
    return BY_SLUG[environ["PATH_INFO"].rsplit("/", 1)[1]](environ, start_response)


def text(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """A response like any other."""
    body = b"next"
    if environ["PATH_INFO"] == "/about":
        body = environ["SERVER_SOFTWARE"].encode() if "SERVER_SOFTWARE" in environ else environ["uwsgi.version"]
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


conditional = sendgate.wsgi.Conditional(plain)
files = sendgate.wsgi.Files(HERE / "files", prefix="/files/")


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Chooses by the path."""
    path = environ["PATH_INFO"]
    for prefix, chosen in (("/plain/", plain), ("/conditional/", conditional), ("/files/", files)):
        if path.startswith(prefix):
            return chosen(environ, start_response)
    return text(environ, start_response)
