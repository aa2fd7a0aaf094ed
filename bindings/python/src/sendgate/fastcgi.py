"""FastCGI: answers the requests of nginx, lighttpd, Apache and other front servers (FastCGI 1.0, the Responder).

    sendgate.fastcgi.serve(application, "/run/app.sock")     # any WSGI application, Django's and Flask's too

    class Hello(sendgate.fastcgi.Handler):                    # or without WSGI
        def handle(self):
            self.send("Content-Type: text/plain\\r\\n\\r\\nhello\\n")

    sendgate.fastcgi.serve(Hello, ("127.0.0.1", 9000))

Files leave by sendfile within the records of FastCGI, in the background, with conditions and ranges answered by the
library. ``Server`` has the options. ``python -m sendgate fastcgi`` does the same from the command line.

The rest is for programs that speak FastCGI by themselves: ``Parser`` takes what comes on a connection, ``Channel`` is
the place of an answer on it, for ``sendgate.respond`` and all else that takes a socket, and ``pack_record`` and its
neighbours make and read single records.
"""

from ._core import Channel
from ._errors import FastCGIError
from ._fastcgi import (
    Event,
    EventType,
    Parser,
    ProtocolStatus,
    Record,
    RecordType,
    Role,
    decode_params,
    encode_params,
    pack_end_request,
    pack_record,
    pack_stream,
    request_from_params,
    unpack_record,
)
from ._fastcgi_connection import Content
from ._fastcgi_handler import Handler, Output, Params
from ._fastcgi_server import Server, serve

__all__ = [
    "Channel",
    "Content",
    "Event",
    "EventType",
    "FastCGIError",
    "Handler",
    "Output",
    "Params",
    "Parser",
    "ProtocolStatus",
    "Record",
    "RecordType",
    "Role",
    "Server",
    "decode_params",
    "encode_params",
    "pack_end_request",
    "pack_record",
    "pack_stream",
    "request_from_params",
    "serve",
    "unpack_record",
]
