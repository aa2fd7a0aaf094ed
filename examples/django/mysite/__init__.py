"""Responses that middleware can't spoil: a project of Django, with a view for each use case.

    pip install sendgate django gunicorn uvicorn httptools uvloop
    cd examples/django
    python store.py 9000 &                                             # where the content comes from
    gunicorn --worker-class sendgate.gunicorn.ThreadWorker mysite.wsgi # or: gunicorn --threads 8 mysite.wsgi
    uvicorn --http sendgate.uvicorn:HttpTools mysite.asgi:application  # or: uvicorn mysite.asgi:application
    curl --no-buffer --compressed --include http://127.0.0.1:8000/long/

``views`` has the use cases, and ``stock`` the same without freezing, by nothing but Django, under /stock/: with curl as
above, /stock/long/ doesn't come second by second, and /stock/large/ has an ETag that isn't the store's. (What the
server may keep comes from its cache the second time, at once; it forgets when it is started again.)

``settings`` has the middleware that spoils them, with the classes of this package in it that don't; ``remote``
fetches content from ``store.py``, which stands for a service of somebody else's.
"""
