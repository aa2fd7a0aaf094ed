"""Each view at its name, and Django's own under stock/."""

from django.urls import include, path

from . import stock, views

NAMES = (
    "text", "streamed", "streamed_async", "large", "large_cached_by_clients", "large_compressed", "long",
    "long_not_compressed", "file",
)  # fmt: skip


def of(module):
    """A path for each view of a module."""
    return [path(name.replace("_", "-") + "/", getattr(module, name)) for name in NAMES]


urlpatterns = [*of(views), path("stock/", include(of(stock)))]
