"""A front server in a few lines, which says exactly what a test wants it to; and servers for it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import tempfile
import termios
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from sendgate import fastcgi
from sendgate.fastcgi import RecordType
from support import wait_until

Address = Union[str, tuple[str, int]]  # noqa: UP007 - evaluated, so not yet in Python 3.9
Params = Union[Mapping[str, str], Iterable[tuple[bytes, bytes]]]  # noqa: UP007

GET = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/", "QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1"}


def begin(request_id: int = 1, keep: bool = False, role: int = 1) -> bytes:
    """A BEGIN_REQUEST record."""
    content = bytes((0, role, keep, 0, 0, 0, 0, 0))
    return fastcgi.pack_record(RecordType.BEGIN_REQUEST, request_id, content)


def params_records(params: Params, request_id: int = 1) -> bytes:
    """The stream of parameters, with its end."""
    encoded = fastcgi.encode_params(params)
    stream = fastcgi.pack_stream(RecordType.PARAMS, request_id, encoded)
    return stream + fastcgi.pack_record(RecordType.PARAMS, request_id)


def content_records(content: bytes, request_id: int = 1) -> bytes:
    """The stream of content, with its end."""
    stream = fastcgi.pack_stream(RecordType.STDIN, request_id, content)
    return stream + fastcgi.pack_record(RecordType.STDIN, request_id)


def request(params: Params = GET, content: bytes = b"", request_id: int = 1, keep: bool = False) -> bytes:
    """All that a front server sends for one."""
    return begin(request_id, keep) + params_records(params, request_id) + content_records(content, request_id)


@dataclass
class Answer:
    """What has come back."""

    stdout: bytes = b""
    stderr: bytes = b""
    #: Of END_REQUEST; None: it was not ended.
    protocol_status: int | None = None
    #: The types of the records, in their order.
    kinds: list[int] = field(default_factory=list)

    @property
    def fields(self) -> dict[str, str]:
        """The head."""
        head = self.stdout.partition(b"\r\n\r\n")[0].decode("latin-1")
        fields = {}
        for line in head.split("\r\n"):
            name, colon, value = line.partition(": ")
            assert colon and name.lower() not in fields, head
            fields[name.lower()] = value
        return fields

    @property
    def status(self) -> int:
        """200 if it doesn't say."""
        return int(self.fields.get("status", "200").split(" ")[0])

    @property
    def body(self) -> bytes:
        """What comes after the head."""
        if self.stdout.startswith(b"\r\n"):
            return self.stdout[2:]
        return self.stdout.partition(b"\r\n\r\n")[2]


class Front:
    """A connection to a server. A context manager."""

    def __init__(self, address: Address) -> None:
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(30)
            self.sock.connect(address)
        else:
            self.sock = socket.create_connection(address, timeout=30)
        self._data = b""

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(data)

    def send_and_wait(self, data: bytes) -> None:
        """Send it, and wait until the other end has read it."""
        self.sock.sendall(data)
        left = array.array("i", [0])

        def is_read() -> bool:
            fcntl.ioctl(self.sock, termios.TIOCOUTQ, left)
            return left[0] == 0

        wait_until(is_read)

    def record(self) -> fastcgi.Record | None:
        """The next one. None: the connection has ended."""
        while (unpacked := fastcgi.unpack_record(self._data)) is None:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                assert not self._data or self.may_break, f"ended within a record: {self._data[:100]!r}"
                return None
            self._data += data
        end, record = unpacked
        self._data = self._data[end:]
        return record

    #: Whether a record may be cut short.
    may_break = False

    def answer(self, request_id: int = 1) -> Answer:
        """Up to END_REQUEST, or to the end of the connection."""
        answer = Answer()
        pieces = {RecordType.STDOUT: [], RecordType.STDERR: []}
        while (record := self.record()) is not None:
            assert record.request_id == request_id
            answer.kinds.append(record.type)
            if record.type == RecordType.END_REQUEST:
                assert len(record.content) == 8 and record.content[:4] == bytes(4)
                answer.protocol_status = record.content[4]
                break
            pieces[RecordType(record.type)].append(record.content)
        answer.stdout = b"".join(pieces[RecordType.STDOUT])
        answer.stderr = b"".join(pieces[RecordType.STDERR])
        return answer

    def ask(self, params: Params = GET, content: bytes = b"", request_id: int = 1, keep: bool = False) -> Answer:
        """A request and its answer, which is ended properly."""
        self.send(request(params, content, request_id, keep))
        answer = self.answer(request_id)
        assert answer.protocol_status == 0, answer
        return answer

    def is_closed(self) -> bool:
        """Whether nothing more comes; waits for it."""
        return not self._data and self.sock.recv(1) == b""


def ask(address: Address, params: Params = GET, content: bytes = b"") -> Answer:
    """One request on a connection of its own, which is closed afterwards, and not reset."""
    with Front(address) as front:
        answer = front.ask(params, content)
        assert front.is_closed()
        return answer


@contextlib.contextmanager
def serving(served: Any, **options: Any) -> Iterator[str]:
    """A server in a thread, on a UNIX socket whose path this gives."""
    with tempfile.TemporaryDirectory(prefix="fastcgi-") as directory:
        path = str(Path(directory) / "socket")
        with fastcgi.Server(path, served, **options) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield path
            finally:
                server.shutdown()
                thread.join(60)
                assert not thread.is_alive()
