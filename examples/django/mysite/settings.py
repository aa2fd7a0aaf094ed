"""Three classes of the middleware are those of this package, which have what streams in mind; the rest is Django's."""

import os

ALLOWED_HOSTS = ["*"]
SECRET_KEY = "an example"
ROOT_URLCONF = "mysite.urls"
MIDDLEWARE = [
    "sendgate.django.UpdateCacheMiddleware",
    "sendgate.django.GZipMiddleware",
    "sendgate.django.ConditionalGetMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
]
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
USE_TZ = True
TIME_ZONE = "UTC"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["stderr"], "level": "WARNING"}},
}

#: Where ``store.py`` is.
STORE = os.environ.get("STORE", "http://127.0.0.1:9000")
#: What the view ``file`` sends.
FILE = os.environ.get("FILE", __file__)
