"""What the store has: content that is fetched while it is sent, and what the store says of it."""

import asyncio
import contextlib
import http.client
import socket
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.http import parse_http_date


class Stored:
    """An iterator over content of the store, each piece as soon as it has come. ``close`` hangs up."""

    def __init__(self, name):
        where = urlsplit(settings.STORE)
        self._connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
        self._connection.connect()
        self._socket = self._connection.sock
        self._connection.request("GET", "/" + name)
        self._answer = self._connection.getresponse()
        fields = self._answer.headers
        self.content_type = fields["Content-Type"]
        self.content_length = fields["Content-Length"]
        self.etag = fields["ETag"]
        self.last_modified = parse_http_date(fields["Last-Modified"]) if "Last-Modified" in fields else None

    def __iter__(self):
        return self

    def __next__(self):
        left = self._answer.length  # what is still to come, if the store has said how much that is
        piece = self._answer.read1(65536)
        if not piece:
            self.close()
            if left:
                raise http.client.IncompleteRead(b"", left)  # read1 doesn't say so
            raise StopIteration
        return piece

    def close(self):
        """Hang up. A store that is still sending notices that."""
        self._answer.close()
        self._connection.close()

    def hang_up(self):
        """Whoever is reading in another thread comes back at once. Doesn't wait for that."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


async def asynchronous(name):
    """The same for an event loop, which waits for nothing: neither for the store, nor for what reads from it to end."""
    stored = await asyncio.to_thread(Stored, name)
    try:
        while (piece := await asyncio.to_thread(next, stored, None)) is not None:
            yield piece
    finally:
        stored.hang_up()
        asyncio.get_running_loop().run_in_executor(None, stored.close)
