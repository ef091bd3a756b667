"""ApiVersions: the first question of every client of Kafka, which tells a broker from anything else
and how new it is; librdkafka asks it too, and keeps the answer to itself.

Sources: "Kafka protocol guide", ApiVersions version 3 (KIP-482, KIP-511, KIP-584);
org.apache.kafka.server.common.MetadataVersion.
"""

import socket
import struct
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_API_VERSIONS = 18
_VERSION = 3
_CORRELATION = 4711
_FINALIZED_FEATURES = 2
_MOST_BYTES = 1 << 20

_RELEASES = (
    *((31, "4.4"), (30, "4.3"), (28, "4.2"), (26, "4.1"), (22, "4.0")),
    *((21, "3.9"), (20, "3.8"), (15, "3.7")),
)
"""Since which metadata.version a release is out; of later ones no more than that can be told."""


class NotKafka(Exception):
    """What answers is something else."""


def release(address: str, timeout: float) -> str:
    """Asks the broker at `host:port` and returns what can be told of its version. Blocks at most
    about `timeout` seconds. Raises OSError if nobody answers in time, or NotKafka."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout) as connection:
        connection.sendall(_request())
        (size,) = struct.unpack(">i", _received(connection, 4))
        if not 6 <= size <= _MOST_BYTES:
            raise NotKafka
        answer = _received(connection, size)
    try:
        level = _metadata_version(_Reader(answer))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise NotKafka from error
    for least, name in _RELEASES:
        if level >= least:
            return f"Kafka {name} or newer, metadata.version {level}"
    return "Kafka of unknown version" if not level else f"Kafka, metadata.version {level}"


def _request() -> bytes:
    name = b"chatsvc"
    header = struct.pack(">hhih", _API_VERSIONS, _VERSION, _CORRELATION, len(name)) + name + b"\0"
    text = bytes([len(name) + 1]) + name  # a compact string: its length and one
    body = header + text + b"\x020" + b"\0"
    return struct.pack(">i", len(body)) + body


def _received(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise NotKafka
        parts += part
    return parts


def _metadata_version(answer: "_Reader") -> int:
    """The level of the feature that the cluster has agreed on, 0 if it is not told."""
    correlation, error = answer.take(">ih")
    if correlation != _CORRELATION:
        raise NotKafka
    if error:  # a broker that is too old for this version of the question answers in another form
        return 0
    answer.array(lambda: _api(answer))
    answer.take(">i")
    features: dict[str, int] = {}
    for _ in range(answer.varint()):
        tag, size = answer.varint(), answer.varint()
        if tag == _FINALIZED_FEATURES:
            features = dict(answer.array(lambda: _feature(answer)))
        else:
            answer.skip(size)
    return features.get("metadata.version", 0)


def _api(answer: "_Reader") -> None:
    answer.take(">hhh")
    answer.skip_tags()


def _feature(answer: "_Reader") -> tuple[str, int]:
    name = answer.text()
    most, _ = answer.take(">hh")
    answer.skip_tags()
    return name, most


class _Reader:
    """What is left of an answer. Raises struct.error or IndexError at its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def text(self) -> str:
        size = self.varint() - 1
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def array(self, element: Callable[[], T]) -> list[T]:
        # A compact array: its length and one.
        return [element() for _ in range(self.varint() - 1)]

    def skip(self, size: int) -> None:
        self._at += size

    def skip_tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            self.skip(self.varint())
