"""The servers in examples/hosts, and what each of them does by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Host:
    """One of them."""

    name: str
    #: A header of the library that it is on, and the Debian package. Both empty: it is a script.
    header: str = ""
    package: str = ""
    #: SIGPIPE is at its default: the library doesn't see to it.
    sigpipe: bool = True
    #: A name with a space, a "+" and a "%", which is how much of it has to be encoded.
    odd: str = "/with%20space+%25.txt?x=1"
    #: A target in absolute form (RFC 9112 3.2.2) gets to the example.
    absolute: bool = True
    #: Rows that it answers otherwise, before sendgate is asked: the row's name, and what is expected instead.
    otherwise: dict[str, dict[str, object]] = field(default_factory=dict)
    #: A tab in a field, which RFC 9110 5.5 allows, is 400.
    refuses_tabs: bool = False
    #: It sends the file's Content-Length with a 304 too, as RFC 9110 8.6 allows.
    length_in_304: bool = False

    def __str__(self) -> str:
        return self.name


HOSTS = (
    Host(
        "civetweb",
        "civetweb.h",
        "libcivetweb-dev",
        sigpipe=False,
        # It keeps a connection only if that is all that the field says, and the example says so beforehand.
        otherwise={
            name: {"keep_alive": False, "fields": [["Connection", "close"]]}
            for name in (
                "conn-http11-other-token",
                "conn-http11-empty",
                "conn-http11-te",
                "conn-http10-keep-alive-in-list",
            )
        },
        refuses_tabs=True,
    ),
    # Its own answers raise the signal, so the example ignores it.
    Host("evhttp", "event2/http.h", "libevent-dev", sigpipe=False),
    Host(
        "lws",
        "libwebsockets.h",
        "libwebsockets-dev",
        sigpipe=False,
        # Its parser takes a "+" for a space, as in a form.
        odd="/with%20space%2B%25.txt?x=1",
        absolute=False,
        # It keeps a connection of HTTP/1.0 for the whole value "keep-alive" alone, and is announced to.
        otherwise={"conn-http10-keep-alive-in-list": {"keep_alive": False, "fields": [["Connection", "close"]]}},
    ),
    Host(
        "microhttpd",
        "microhttpd.h",
        "libmicrohttpd-dev",
        # It writes that field itself.
        otherwise={
            name: {"fields": [["Connection", "Keep-Alive"]]}
            for name in (
                "conn-http10-keep-alive",
                "conn-http10-keep-alive-capitals",
                "conn-http10-keep-alive-in-list",
            )
        },
        length_in_304=True,
    ),
    Host("fileserver_ctypes.py", sigpipe=False),
)

#: Behind front servers: test_hosts_fastcgi.py.
LIBFCGI = Host("libfcgi", "fcgiapp.h", "libfcgi-dev")


def need_library(host: Host) -> None:
    """Skip without the library that it is on."""
    if not Path("/usr/include", host.header).exists():
        pytest.skip(f"{host.header} is missing (Debian: apt-get install {host.package})")
