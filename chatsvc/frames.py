"""Values to encoded protobuf, once for everybody; the only place that makes frames.

A Batch is what one read of Kafka brought for one room. Every stream of that room sends the same
bytes objects; nothing is encoded or copied a connection.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from chatsvc.errors import ChatError, InvalidRequest, MessageTooLarge
from chatsvc.model import Acked, ChatMessage
from chatsvc.pb import chat_pb2

CLOSE = chat_pb2.Close().SerializeToString()
"""The answer to BroadcastMessage."""


_MESSAGES_TAG = bytes((chat_pb2.Delivery.MESSAGES_FIELD_NUMBER << 3 | 2,))


class Batch(NamedTuple):
    """Encoded messages of one room in order, each by itself and all as a Delivery. `size` is the
    Delivery's bytes, `fanned_out_at` the monotonic time at which this server handed them to its
    streams."""

    messages: tuple[bytes, ...]
    delivery: bytes
    size: int
    fanned_out_at: float


def encode(message: ChatMessage, appended_ms: int) -> bytes:
    """A wire Message whose timestamp is the time of the record, in milliseconds of Unix time."""
    seconds, milliseconds = divmod(appended_ms, 1_000)
    return chat_pb2.Message(
        id=message.user,
        content=message.content,
        timestamp=Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000),
        room=message.room,
        message_id=message.message_id,
    ).SerializeToString()


def batch(messages: Sequence[bytes], fanned_out_at: float) -> Batch:
    """A batch of encoded messages."""
    delivery = b"".join(part for message in messages for part in _entry(message))
    return Batch(tuple(messages), delivery, len(delivery), fanned_out_at)


def join(deliveries: Iterable[bytes]) -> bytes:
    """Deliveries as one: in protobuf, what is repeated goes on and the last of the rest wins."""
    return b"".join(deliveries)


def result(outcomes: Iterable[tuple[str, Acked | ChatError]]) -> bytes:
    """A PublishResult for messages' ids and what became of each."""
    return chat_pb2.PublishResult(
        outcomes=[_outcome(message_id, outcome) for message_id, outcome in outcomes]
    ).SerializeToString()


def _outcome(message_id: str, outcome: Acked | ChatError) -> chat_pb2.Outcome:
    if isinstance(outcome, Acked):
        return chat_pb2.Outcome(message_id=message_id, status=chat_pb2.Outcome.COMMITTED)
    invalid = isinstance(outcome, InvalidRequest | MessageTooLarge)
    status = chat_pb2.Outcome.INVALID if invalid else chat_pb2.Outcome.UNCONFIRMED
    return chat_pb2.Outcome(message_id=message_id, status=status, detail=str(outcome))


def _entry(message: bytes) -> tuple[bytes, bytes, bytes]:
    """A message as an element of Delivery.messages: its tag, its length and itself."""
    return _MESSAGES_TAG, _varint(len(message)), message


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
