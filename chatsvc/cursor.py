"""CursorFormat: where a client is in the topic, as bytes that only servers of that topic read.

A cursor is a version, a digest, and for each partition its number and the offset of its next
record, as varints. The digest is keyed with the topic's identity, which clients do not know: a
cursor that is damaged, made up, or of another topic, also of a deleted one of the same name, is
told from ours.
"""

import hashlib
import hmac
from collections.abc import Iterator, Mapping

from chatsvc.errors import InvalidRequest
from chatsvc.varint import encode_varint

_VERSION = 1
_DIGEST_BYTES = 8
MAX_CURSOR_BYTES = 16 * 1024
"""More than a thousand partitions need."""


class CursorFormat:
    """Encodes and decodes cursors of the topic that has the given identity, of any length."""

    def __init__(self, identity: bytes) -> None:
        self._key = hashlib.blake2b(identity, digest_size=32).digest()

    def encode(self, positions: Mapping[int, int]) -> bytes:
        """The cursor for partitions and the offsets of their next records."""
        body = b"".join(
            encode_varint(number)
            for partition in sorted(positions)
            for number in (partition, positions[partition])
        )
        return bytes((_VERSION,)) + self._digest(body) + body

    def decode(self, cursor: bytes) -> dict[int, int]:
        """Partitions and the offsets of their next records. Raises InvalidRequest."""
        if not cursor or cursor[0] != _VERSION or len(cursor) > MAX_CURSOR_BYTES:
            raise InvalidRequest("cursor", "is not one of this service")
        digest, body = cursor[1 : 1 + _DIGEST_BYTES], cursor[1 + _DIGEST_BYTES :]
        if not hmac.compare_digest(digest, self._digest(body)):
            raise InvalidRequest("cursor", "is damaged, or of another topic or one deleted since")
        numbers = list(_varints(body))
        return dict(zip(numbers[::2], numbers[1::2], strict=True))

    def _digest(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=_DIGEST_BYTES, key=self._key).digest()


def _varints(body: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in body:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
