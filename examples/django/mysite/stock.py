"""The same views with nothing but Django: what middleware makes of them is in docs/django.md."""

from django.conf import settings
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.utils.http import http_date

from .remote import Stored, asynchronous


def text(request):
    """An iterator that may become a string."""
    return HttpResponse(Stored("report"))


def streamed(request):
    """An iterator whose pieces are to be sent as they are made."""
    return StreamingHttpResponse(Stored("report"))


async def streamed_async(request):
    """The same, asynchronous."""
    return StreamingHttpResponse(asynchronous("report"))


def large(request):
    """A large file of the store, compressed already."""
    stored = Stored("archive")
    response = StreamingHttpResponse(stored, content_type=stored.content_type)
    response["Content-Length"] = stored.content_length
    response["ETag"] = stored.etag
    response["Last-Modified"] = http_date(stored.last_modified)
    response["Cache-Control"] = "no-cache"
    return response


def large_cached_by_clients(request):
    """The same, but that clients may keep it."""
    response = large(request)
    response["Cache-Control"] = "max-age=3600"
    return response


def large_compressed(request):
    """A large file of the store, compressed on the fly."""
    stored = Stored("log")
    response = StreamingHttpResponse(stored, content_type=stored.content_type)
    response["ETag"] = stored.etag
    response["Last-Modified"] = http_date(stored.last_modified)
    response["Cache-Control"] = "no-cache"
    return response


def long(request):
    """A response that takes long, and must not time out."""
    return StreamingHttpResponse(Stored("report"))


def long_not_compressed(request):
    """Django has nothing to say that with."""
    return StreamingHttpResponse(Stored("report"))


def file(request):
    """A file of this machine."""
    return FileResponse(open(settings.FILE, "rb"))
