"""A request's parameters as a WSGI or CGI environment (PEP 3333, RFC 3875 4.1)."""

from __future__ import annotations

from typing import Any

#: What has to be there, whatever a front server sends (PEP 3333).
_DEFAULTS = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
}


def make_environ(params: tuple[tuple[bytes, bytes], ...]) -> dict[str, Any]:
    """The variables, bytes as latin-1. Fields that came several times are joined (RFC 9110 5.3)."""
    given = {name.decode("latin-1"): value.decode("latin-1") for name, value in params}
    environ: dict[str, Any] = {**_DEFAULTS, **given}
    if len(given) < len(params):
        _join(environ, params)
    if "PATH_INFO" not in environ:
        # nginx with Debian's fastcgi_params, and Apache: all of the path is in SCRIPT_NAME, for there is no script
        # whose name they could tell from the rest.
        environ["PATH_INFO"], environ["SCRIPT_NAME"] = environ["SCRIPT_NAME"], ""
    elif environ["SCRIPT_NAME"] == "/":
        # An application that is mounted there begins every path with two slashes.
        environ["SCRIPT_NAME"] = ""
    if not environ.get("CONTENT_LENGTH"):
        environ.pop("CONTENT_LENGTH", None)
    if not environ.get("CONTENT_TYPE"):
        environ.pop("CONTENT_TYPE", None)
    return environ


def _join(environ: dict[str, Any], params: tuple[tuple[bytes, bytes], ...]) -> None:
    """nginx 1.22 sends a parameter for each line of a field."""
    lines: dict[str, list[str]] = {}
    for key, value in params:
        lines.setdefault(key.decode("latin-1"), []).append(value.decode("latin-1"))
    for name, values in lines.items():
        if len(values) > 1 and name.startswith("HTTP_"):
            environ[name] = ("; " if name == "HTTP_COOKIE" else ", ").join(values)


def scheme(environ: dict[str, Any]) -> str:
    """Of the URL: nginx and lighttpd say HTTPS if it is, all say REQUEST_SCHEME."""
    if environ.get("HTTPS", "").lower() in ("on", "1", "yes", "true", "https"):
        return "https"
    return "https" if environ.get("REQUEST_SCHEME") == "https" and "HTTPS" not in environ else "http"
