"""``Handler``: a request of a front server, answered by a method of a class."""

from __future__ import annotations

import socketserver
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._core import _Exchange
from ._errors import SendgateError
from ._fastcgi import RecordType, encode_params, request_from_params
from ._fastcgi_connection import BLOCK, Call, Connection, Content, is_harmless, log
from ._fastcgi_environ import make_environ
from ._types import Connection as Outcome
from ._types import HeadForm

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._types import ExchangeArguments, FileArg, Result, Text

#: How two variables are called by a proxy that takes them for any other field.
_ALSO = {"HTTP_CONTENT_TYPE": "CONTENT_TYPE", "HTTP_CONTENT_LENGTH": "CONTENT_LENGTH"}


class Params(dict[str, str]):
    """A request's parameters by name. Bytes that are no UTF-8 are there as surrogates ("surrogateescape").

    HTTP_CONTENT_TYPE and HTTP_CONTENT_LENGTH, which some proxies send, can be looked up (``params[name]``) where only
    CONTENT_TYPE and CONTENT_LENGTH have come, which is what RFC 3875 calls them.

    bytes() of it is the stream of PARAMS, str() the same as text.
    """

    def __init__(self, params: tuple[tuple[bytes, bytes], ...]) -> None:
        super().__init__(
            (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
            for name, value in params
        )
        self._params = params

    def __missing__(self, name: str) -> str:
        if name in _ALSO:
            return self[_ALSO[name]]
        raise KeyError(name)

    def __bytes__(self) -> bytes:
        return encode_params(self._params)

    def __str__(self) -> str:
        return bytes(self).decode("utf-8", "surrogateescape")


class Output:
    """STDOUT or STDERR of an answer: what is written leaves when there is enough of it, with ``flush``, or at the end.

    bytes() and str() of it are what has not left yet.
    """

    def __init__(self, call: Call, kind: RecordType) -> None:
        self._call = call
        self._kind = kind
        self._queued = bytearray() if kind is RecordType.STDOUT else call.errors

    def write(self, data: Text) -> int:
        """Queue text (as UTF-8) or bytes. Returns how many characters or bytes."""
        made = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        self._call.check()
        self._queued += made
        if len(self._queued) >= BLOCK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Send what is queued, and wait until it has left."""
        if self._kind is RecordType.STDERR:
            self._call.flush_errors()
        elif self._queued:
            self._call.write(self.take())

    def take(self) -> bytes:
        """What is queued, for somebody else to send."""
        queued = bytes(self._queued)
        self._queued.clear()
        return queued

    def writable(self) -> bool:
        """It is."""
        return True

    def __bytes__(self) -> bytes:
        return bytes(self._queued)

    def __str__(self) -> str:
        return bytes(self).decode("utf-8", "surrogateescape")


class Handler(socketserver.BaseRequestHandler):
    """Answers requests: make a subclass that defines ``handle``.

        class Hello(sendgate.fastcgi.Handler):
            def handle(self):
                self.send("Content-Type: text/plain\\r\\n\\r\\nhello\\n")

        sendgate.fastcgi.serve(Hello, "/run/hello.sock")

    There is one object for each request. It is made by ``serve`` or a ``Server``; a server of socketserver makes them,
    too, and its thread then answers all requests of a connection. An exception in ``handle`` is logged ("sendgate.
    fastcgi" in logging, and STDERR for the front server's log). The front server gets a 500 in the place of what was
    sent and hasn't left; if some has, the connection is closed, so that it notices.

    The head is what a CGI program writes (RFC 3875 6): fields, "Status: 404 Not Found" among them if it isn't 200, and
    an empty line. Leave Connection, Date and Server to the front server.

    Without a ``handle`` the object is a context manager: ``with Handler(connection) as request: request.send(...)``.
    The end of the block ends the answer, or an exception breaks it off; the connection is not closed.

    request: the connection, a socket. client_address: its other end, which is the front server; who has asked that is
    ``params["REMOTE_ADDR"]``. server: who has made it.
    """

    #: Seconds that a front server may stall within a request, where a server of socketserver has accepted it.
    timeout = 60.0

    def __init__(self, request: Any, client_address: Any = None, server: Any = None) -> None:
        given = isinstance(request, Call)
        connection = request.connection if given else Connection(request, self.timeout)
        self.request = connection.sock
        self.client_address = client_address
        self.server = server
        if given:
            self._begin(request)
            self._run()
        else:
            self._serve(connection)

    def _begin(self, call: Call) -> None:
        self._call = call
        self.params = Params(call.params)
        self._stdout = Output(call, RecordType.STDOUT)
        self._stderr = Output(call, RecordType.STDERR)

    def _serve(self, connection: Connection) -> None:
        """All that comes on a connection of which nobody else takes care."""
        own = type(self).handle is not Handler.handle
        try:
            self._begin(connection.accept())
        except SendgateError as error:
            if not own:
                raise
            if not is_harmless(error) or connection.begun:
                log.info("A front server's connection has failed: %s", error)
            return
        if own:
            self._run()
            call = self._call
            # Each further one is for an object of its own.
            while call.outcome is Outcome.REUSABLE:
                connection.next()
                try:
                    call = connection.accept()
                except SendgateError:
                    break
                type(self)(call, self.client_address, self.server)
            connection.linger()

    def _run(self) -> None:
        try:
            self.setup()
            try:
                self.handle()
            finally:
                self.finish()
            self.close()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    def _fail(self, error: BaseException) -> None:
        self._stdout.take()
        self._call.fail(error)

    # ---- What has come ----

    @property
    def request_id(self) -> int:
        """What the front server calls the request."""
        return self._call.request_id

    @property
    def keep_conn(self) -> bool:
        """Whether the front server keeps the connection."""
        return self._call.keep_conn

    @property
    def stdin(self) -> str:
        """All of the content that was not read before, as text. See ``self["stdin"]``."""
        return str(self._call.content)

    @property
    def environ(self) -> dict[str, Any]:
        """The parameters as in a WSGI environment: bytes as latin-1, PATH_INFO and the like always there. Made anew."""
        return make_environ(self._call.params)

    def __getitem__(self, name: str | RecordType) -> Content | Params | Output:
        """A stream by its name, in any case: "stdin", a binary file that is read from the connection as it is read
        here; "stdout" and "stderr", which can be written to; "params". bytes() and str() of each are what is in it.
        """
        key = name.name if isinstance(name, RecordType) else name.upper()
        if key == "STDIN":
            return self._call.content
        if key == "PARAMS":
            return self.params
        if key == "STDOUT":
            return self._stdout
        if key == "STDERR":
            return self._stderr
        raise KeyError(name)

    # ---- What is answered ----

    def send(self, data: Text, err: bool = False) -> None:
        """Queue text (as UTF-8) or bytes of the answer, its head first; err: a message for the front server's log.

        Up to 64 KiB are gathered, and leave with the end of the answer in one piece. Messages leave before what of the
        answer is still queued.
        """
        (self._stderr if err else self._stdout).write(data)

    def flush(self) -> None:
        """Send what is queued, and wait until it has left."""
        self._stderr.flush()
        self._stdout.flush()

    def respond(self, file: FileArg, **arguments: Unpack[ExchangeArguments]) -> Result:
        """Answer with a file or buffer: the library decides (200, 206, 304, 412, 416), and that ends the answer.

        The arguments are those of ``sendgate.respond``. What can't be sent at once is sent in the background, and the
        result tells what has happened up to now; memory is not to be changed then. RuntimeError: something was sent
        before. Raises what ``sendgate.respond`` does, and then another answer may be sent unless some has left.
        """
        if self._call.begun or bytes(self._stdout):
            raise RuntimeError("something was sent before: respond() makes all of the answer")
        request = request_from_params(self._call.params)
        return self._call.submit(self._call.exchange(file, request, **arguments))

    def send_file(self, file: FileArg, offset: int | None = None, length: int | None = None) -> Result:
        """What was sent before is the head, then comes the file, or a part of it, by sendfile; that ends the answer.

        Nothing is decided: the head has to say Content-Length, and so on. The rest is as for ``respond``.
        """
        self._call.check()
        head: HeadForm | bytes = bytes(self._stdout) or HeadForm.NONE
        exchange = _Exchange(
            self._call.asked,
            file,
            offset=offset,
            length=length,
            etag=False,
            last_modified=False,
            head=head,
        )
        self._stdout.take()
        return self._call.submit(exchange)

    def handle(self) -> None:
        """Answer. For a subclass."""

    def close(self) -> None:
        """The answer ends with what was sent; again does nothing."""
        call = self._call
        if call.outcome is None and not call.in_flight:
            call.end(self._stdout.take())

    def __enter__(self) -> Handler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._fail(error)
        if not self._call.keep_conn:
            self._call.connection.linger()
