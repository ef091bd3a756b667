"""Values to encoded protobuf, once for everybody; the only place that makes frames.

A Batch is what one read of Kafka brought for one room. Every stream of that room sends the same
bytes objects; nothing is encoded or copied a connection.
"""

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from chatsvc.model import ChatMessage
from chatsvc.pb import chat_pb2

CLOSE = chat_pb2.Close().SerializeToString()
"""The answer to BroadcastMessage."""


class Batch(NamedTuple):
    """Encoded messages of one room in order. `size` is their bytes, `fanned_out_at` the
    monotonic time at which this server handed them to its streams."""

    messages: tuple[bytes, ...]
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
    return Batch(tuple(messages), sum(map(len, messages)), fanned_out_at)
