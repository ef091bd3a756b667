"""Entry: a message of the log, decoded and encoded once for all who will get it."""

from typing import NamedTuple

from chatsvc import frames
from chatsvc.model import ChatMessage, Record

MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, the last that a protobuf Timestamp can be."""


class Entry(NamedTuple):
    """A message and where it is in its partition. `element` is its encoding as an element of
    Delivery.messages, the last `size` bytes of which are a Message by itself. The time is Unix time
    in milliseconds."""

    offset: int
    appended_ms: int
    room: str
    element: bytes
    size: int

    @property
    def encoded(self) -> bytes:
        """The message by itself."""
        return self.element[len(self.element) - self.size :]


def entry(record: Record, message: ChatMessage, now_ms: int) -> Entry:
    """A record and the message in it; `now_ms` stands in for a time that no clock can have told."""
    appended_ms = record.appended_ms
    if not 0 <= appended_ms <= MAX_MS:
        appended_ms = now_ms
    encoded = frames.encode(message, appended_ms)
    return Entry(record.offset, appended_ms, message.room, frames.element(encoded), len(encoded))
