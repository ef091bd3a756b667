"""Values to encoded protobuf, once for everybody; the only place that makes frames.

A Batch is what one read of Kafka brought for one room. Every stream of that room sends the same
bytes objects; nothing is encoded or copied a connection.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from chatsvc.errors import ChatError, InvalidRequest, MessageTooLarge
from chatsvc.model import Acked, ChatMessage, Duplicate, Gap
from chatsvc.pb import chat_pb2
from chatsvc.varint import encode_varint

CLOSE = chat_pb2.Close().SerializeToString()
"""The answer to BroadcastMessage when the message is written."""
CLOSE_DUPLICATE = chat_pb2.Close(duplicate=True).SerializeToString()
"""The answer when it was there already."""


_MESSAGES_TAG = bytes((chat_pb2.Delivery.MESSAGES_FIELD_NUMBER << 3 | 2,))
# An element of HistoryPage.messages has the same tag.
assert chat_pb2.HistoryPage.MESSAGES_FIELD_NUMBER == chat_pb2.Delivery.MESSAGES_FIELD_NUMBER
_CURSOR_TAG = bytes((chat_pb2.Delivery.CURSOR_FIELD_NUMBER << 3 | 2,))


class Batch(NamedTuple):
    """Encoded messages in order, each by itself and all as a Delivery.

    `cursor` is a Delivery too, which has nothing but where to go on after them; several batches
    need it once; `positions` are the same, of each partition the next offset. `size` is the
    delivery's bytes, `fanned_out_at` the monotonic time at which this
    server handed them to its streams.
    """

    messages: tuple[bytes, ...]
    delivery: bytes
    cursor: bytes
    size: int
    fanned_out_at: float
    positions: Mapping[int, int] = MappingProxyType({})


def encode(message: ChatMessage, appended_ms: int) -> bytes:
    """A wire Message whose timestamp is the time of the record, in milliseconds of Unix time."""
    encoded: bytes = chat_pb2.Message(
        id=message.user,
        content=message.content,
        room=message.room,
        message_id=message.message_id,
    ).SerializeToString()
    return encoded + _timestamp(appended_ms)


@lru_cache(16)
def _timestamp(appended_ms: int) -> bytes:
    """A Message with a timestamp alone, to be joined to one without. Under load many messages have
    the same one."""
    seconds, milliseconds = divmod(appended_ms, 1_000)
    timestamp = Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000)
    encoded: bytes = chat_pb2.Message(timestamp=timestamp).SerializeToString()
    return encoded


def batch(
    messages: Sequence[bytes],
    fanned_out_at: float,
    cursor: bytes = b"",
    positions: Mapping[int, int] = MappingProxyType({}),
) -> Batch:
    """A batch of encoded messages and the Delivery that `cursor` made for the positions behind
    them."""
    delivery = b"".join(map(element, messages))
    return Batch(tuple(messages), delivery, cursor, len(delivery), fanned_out_at, positions)


def cursor(encoded: bytes) -> bytes:
    """A Delivery that has nothing but a cursor."""
    return _CURSOR_TAG + encode_varint(len(encoded)) + encoded


def going_away(delay_ms: int) -> bytes:
    """A Delivery that asks its client to go elsewhere after so many milliseconds."""
    encoded: bytes = chat_pb2.Delivery(
        going_away=chat_pb2.GoingAway(delay_ms=delay_ms)
    ).SerializeToString()
    return encoded


def replayed(
    elements: Sequence[bytes], gaps: Iterable[Gap], cursor: bytes, *, caught_up: bool
) -> bytes:
    """Elements of Delivery.messages as a Delivery, with what is lost before them and the Delivery
    that `cursor` made for what is behind them."""
    rest = chat_pb2.Delivery(gaps=_gaps(gaps), caught_up=caught_up)
    return b"".join([*elements, rest.SerializeToString(), cursor])


def page(
    elements: Sequence[bytes], before: bytes, after: bytes, end: bool, gaps: Iterable[Gap]
) -> bytes:
    """Elements of Delivery.messages as a HistoryPage, with the cursors around them."""
    rest = chat_pb2.HistoryPage(before=before, after=after, end=end, gaps=_gaps(gaps))
    return b"".join([*elements, rest.SerializeToString()])


def _gaps(gaps: Iterable[Gap]) -> list[chat_pb2.Gap]:
    return [chat_pb2.Gap(partition=gap.partition, start=gap.start, end=gap.end) for gap in gaps]


def join(batches: Sequence[Batch]) -> bytes:
    """Batches as one Delivery, with the cursor of the last: in protobuf, what is repeated goes on
    and the last of the rest wins."""
    return b"".join([*(each.delivery for each in batches), batches[-1].cursor])


def result(outcomes: Iterable[tuple[str, Acked | Duplicate | ChatError]]) -> bytes:
    """A PublishResult for messages' ids and what became of each."""
    return chat_pb2.PublishResult(
        outcomes=[_outcome(message_id, outcome) for message_id, outcome in outcomes]
    ).SerializeToString()


def _outcome(message_id: str, outcome: Acked | Duplicate | ChatError) -> chat_pb2.Outcome:
    if isinstance(outcome, Acked):
        return chat_pb2.Outcome(message_id=message_id, status=chat_pb2.Outcome.COMMITTED)
    if isinstance(outcome, Duplicate):
        return chat_pb2.Outcome(message_id=message_id, status=chat_pb2.Outcome.DUPLICATE)
    invalid = isinstance(outcome, InvalidRequest | MessageTooLarge)
    status = chat_pb2.Outcome.INVALID if invalid else chat_pb2.Outcome.UNCONFIRMED
    return chat_pb2.Outcome(message_id=message_id, status=status, detail=str(outcome))


def element(message: bytes) -> bytes:
    """An encoded message as an element of Delivery.messages: its tag, its length and itself."""
    return _MESSAGES_TAG + encode_varint(len(message)) + message
