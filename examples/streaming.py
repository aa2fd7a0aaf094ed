"""Responses that are produced while they are sent, with sendgate.Response, by WSGI and by ASGI.

python streaming.py 8000                                       # wsgiref, one client at a time
gunicorn -k gthread --threads 8 -b 127.0.0.1:8000 streaming:wsgi
uvicorn --port 8000 streaming:asgi

curl -N http://127.0.0.1:8000/clock      the time, each second, until you leave
curl -i http://127.0.0.1:8000/text       an iterator that a middleware reads as a string
curl -i http://127.0.0.1:8000/counted    a stream of known length, with an entity tag
"""

import asyncio
import hashlib
import sys
import time

import sendgate

LINES = 1000
LENGTH = LINES * len("line 0000\n")


def tick():
    """A line of the clock."""
    return time.strftime("%H:%M:%S\n").encode()


def clock():
    """The time, each second. Whoever leaves ends it with its next line."""
    try:
        while True:
            yield tick()
            time.sleep(1)
    finally:
        print("a client of the clock has left", flush=True)


async def asynchronous_clock():
    """The same, for ASGI: whoever leaves ends it at once, and no thread waits."""
    try:
        while True:
            yield tick()
            await asyncio.sleep(1)
    finally:
        print("a client of the clock has left", flush=True)


def lines():
    """Some content, in pieces."""
    for number in range(LINES):
        yield b"line %04d\n" % number


def respond(path, clock):
    """The response to a path: what a framework calls a view."""
    if path == "/clock":
        response = sendgate.Response(clock(), content_type="text/plain", streaming=True)
        # Nobody gathers lines to compress them, and no cache waits for the end.
        response.freeze_header("Content-Encoding")
        response["Cache-Control"] = "no-store"
        response.freeze_header("Cache-Control")
        return response
    if path == "/text":
        return sendgate.Response(lines(), content_type="text/plain")
    if path == "/counted":
        response = sendgate.Response(lines(), content_type="text/plain", streaming=True)
        response["Content-Length"] = LENGTH
        response["ETag"] = '"2026-11-22"'
        response.freeze_header("ETag", "Content-Encoding")
        return response
    return sendgate.Response("/clock /text /counted\n", 404)


def tag(response):
    """A middleware: makes an entity tag of all of the content, where there is such a thing."""
    if not response.streaming and response.status == 200 and not response.header_is_frozen("ETag"):
        response["ETag"] = f'"{hashlib.sha256(response.content).hexdigest()[:16]}"'
    return response


def count(response):
    """Another one: counts the bytes that a streaming response has, as they go by."""
    if response.streaming and not response.content_is_frozen() and not hasattr(response.content_iterator, "__aiter__"):
        response.content_iterator = counted(response.content_iterator)
    return response


def counted(chunks):
    """The chunks, and how many bytes they were."""
    total = 0
    try:
        for chunk in chunks:
            total += len(chunk)
            yield chunk
    finally:
        print(f"{total} bytes were streamed", flush=True)


def wsgi(environ, start_response):
    """The WSGI application."""
    return count(tag(respond(environ["PATH_INFO"], clock)))(environ, start_response)


async def asgi(scope, receive, send):
    """The ASGI application."""
    if scope["type"] == "http":
        await count(tag(respond(scope["path"], asynchronous_clock)))(scope, receive, send)


if __name__ == "__main__":
    from sendgate.wsgiref import make_server

    with make_server("127.0.0.1", int(sys.argv[1]), wsgi) as server:
        server.serve_forever()
