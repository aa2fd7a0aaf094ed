"""A view for each use case. What the store says of its content is what the client gets to know, whatever middleware is
there, and in whatever order.
"""

from django.conf import settings
from django.utils.http import http_date

from sendgate.django import FileResponse, HttpResponse, StreamingHttpResponse

from .remote import Stored, asynchronous


def text(request):
    """An iterator that may become a string: all middleware does with it what it does with others."""
    iterator = Stored("report")
    return HttpResponse(iterator)


def streamed(request):
    """An iterator whose pieces are sent as they are made. Middleware may compress them."""
    iterator = Stored("report")
    response = HttpResponse(iterator)
    response.streaming = True
    return response


async def streamed_async(request):
    """The same, asynchronous."""
    iterator = asynchronous("report")
    return StreamingHttpResponse(iterator)


def large(request):
    """A large file of the store, compressed already."""
    stored = Stored("archive")
    response = HttpResponse(content=stored, content_type=stored.content_type)
    response.streaming = True
    response["Content-Length"] = stored.content_length
    response["ETag"] = stored.etag
    response["Last-Modified"] = http_date(stored.last_modified)

    # Make sure our ETag and Last-Modified headers stay the same.
    response.freeze_header("ETag")
    response.freeze_header("Last-Modified")

    # Prevent compression.
    response.freeze_header("Content-Encoding")

    # Prevent caching.
    response["Cache-Control"] = "no-cache"
    response.freeze_header("Cache-Control")

    return response


def large_cached_by_clients(request):
    """The same, but that clients may keep it, and this server doesn't."""
    stored = Stored("archive")
    response = StreamingHttpResponse(stored, content_type=stored.content_type, length=int(stored.content_length))
    response["ETag"] = stored.etag
    response["Last-Modified"] = http_date(stored.last_modified)
    response["Cache-Control"] = "max-age=3600"
    response.freeze_header("ETag", "Last-Modified", "Content-Encoding", "Cache-Control")
    response.cache_on_server = False
    return response


def large_compressed(request):
    """A large file of the store, compressed on the fly."""
    stored = Stored("log")
    response = HttpResponse(content=stored, content_type=stored.content_type)
    response.streaming = True
    response["ETag"] = stored.etag
    response["Last-Modified"] = http_date(stored.last_modified)

    # Make sure our ETag and Last-Modified headers stay the same.
    response.freeze_header("ETag")
    response.freeze_header("Last-Modified")

    # Prevent caching.
    response["Cache-Control"] = "no-cache"
    response.freeze_header("Cache-Control")

    return response


def long(request):
    """A response that takes long, and must not time out."""
    iterator = Stored("report")
    response = HttpResponse(content=iterator)
    response.streaming = True
    response.freeze_content()
    return response


def long_not_compressed(request):
    """The same by a header: nothing but compression would hold pieces back."""
    iterator = Stored("report")
    response = HttpResponse(content=iterator)
    response.streaming = True

    # Prevent compression.
    response.freeze_header("Content-Encoding")

    return response


def file(request):
    """A file of this machine, with conditions and ranges."""
    return FileResponse(settings.FILE, request=request)
