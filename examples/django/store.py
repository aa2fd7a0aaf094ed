"""A store of files, as others run it: ``python store.py PORT``.

/archive   10 MB that can't be compressed any more, with Content-Length, ETag and Last-Modified
/log       13 MB of text, with the same fields
/report    is made while it is sent: a line a second, for ten seconds
"""

import random
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LINES = b"".join(b"%07d" % number + b" a line of the log\n" for number in range(500_000))
ARCHIVE = random.Random(7581).randbytes(10_000_000)


class Handler(BaseHTTPRequestHandler):
    """Answers GET."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Send what the path names."""
        if self.path == "/archive":
            self.send(ARCHIVE, "application/gzip")
        elif self.path == "/log":
            self.send(LINES, "text/plain")
        elif self.path == "/report":
            self.report()
        else:
            self.send_error(404)

    def send(self, content, content_type):
        """Content that is there."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"v1"')
        self.send_header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
        self.end_headers()
        self.wfile.write(content)

    def report(self):
        """Content that isn't there yet."""
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(10):
            line = b"line %d of the report\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            time.sleep(1)
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
