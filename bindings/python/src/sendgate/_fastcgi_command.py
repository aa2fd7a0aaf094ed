"""``python -m sendgate fastcgi``: serve a folder, or a WSGI application, to a front server."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from typing import Any

from ._fastcgi_server import Server
from .wsgi import Files


class _Unusable(Exception):
    """What can't be served, as a sentence."""


def main(arguments: list[str]) -> int:
    """Run the command. Returns the exit code: 0 after SIGTERM or Ctrl-C, 1 if the server can't start."""
    parser = argparse.ArgumentParser(
        prog="python -m sendgate fastcgi",
        description="Serve a folder, a WSGI application, or a sendgate.fastcgi.Handler, to nginx, lighttpd or Apache.",
    )
    parser.add_argument("target", metavar="DIR|MODULE:NAME", help="the folder; or what to import, and its name there")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", "-s", metavar="PATH", help="listen on a UNIX socket")
    where.add_argument(
        "--bind", "-b", metavar="HOST:PORT", type=_address, help="listen on TCP; port 0 for any free one"
    )
    where.add_argument(
        "--inherited", action="store_true",
        help="listen on the socket that systemd (LISTEN_FDS) or spawn-fcgi (descriptor 0) has opened",
    )  # fmt: skip
    parser.add_argument(
        "--mode", metavar="OCTAL", type=lambda text: int(text, 8),
        help="permissions of the UNIX socket, such as 660 (default: as the umask has it)",
    )  # fmt: skip
    parser.add_argument("--threads", metavar="N", type=_count, default=8, help="of each process (default: 8)")
    parser.add_argument("--processes", metavar="N", type=_count, default=1, help="(default: 1)")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=60.0,
        help="that the front server may stall within a request (default: 60)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    more: dict[str, Any] = {name: getattr(options, name) for name in ("threads", "processes", "timeout", "mode")}
    address: Any = options.socket or options.bind
    try:
        served = _load(options.target)
        made = Server.inherited(served, **more) if options.inherited else Server(address, served, **more)
    except (_Unusable, ValueError) as error:
        print(f"sendgate: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"sendgate: cannot listen on {_shown(address)}: {error.strerror}", file=sys.stderr)
        return 1
    with made as server:
        print(f"Serving {options.target} at {_shown(server.server_address)}", flush=True)
        server.serve_forever()
    return 0


def _load(target: str) -> Any:
    """What is to be served. _Unusable."""
    if os.path.isdir(target):
        try:
            return Files(target)
        except OSError as error:
            raise _Unusable(f"cannot serve {target}: {error.strerror}") from None
    module, colon, path = target.partition(":")
    if not colon:
        raise _Unusable(f"cannot serve {target}: there is no such folder, and MODULE:NAME has a colon")
    # As python -m does.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # One that the application needs is another matter.
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise _Unusable(f"cannot serve {target}: there is no module {error.name}") from None
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise _Unusable(f"cannot serve {target}: {module} has no {path}") from None
    if not callable(found):
        raise _Unusable(f"cannot serve {target}: it is no application, but of type {type(found).__name__}")
    return found


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError("1 to 65535")
    return number


def _shown(address: Any) -> str:
    if isinstance(address, tuple):
        return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    return os.fsdecode(address)
