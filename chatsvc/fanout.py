"""Fanout: from records of the chat topic to the outboxes of this server's clients."""

import logging
import time
from collections.abc import Callable, Mapping

from chatsvc import frames
from chatsvc.cursor import CursorFormat
from chatsvc.errors import InvalidRecord
from chatsvc.hub import Hub
from chatsvc.model import Record
from chatsvc.records import decode_message

_log = logging.getLogger(__name__)

BATCH_MESSAGES = 64
BATCH_BYTES = 64 * 1024
"""How much is broadcast at once at most: little against an outbox."""

MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, the last that a protobuf Timestamp can be."""


class Fanout:
    """Decodes and encodes each record once, and broadcasts them in the order read, in batches with
    the cursor behind each.

    Called in the chat consumer's thread. Records that are not chat messages are counted and
    skipped, and messages of rooms that nobody here is in are skipped.
    """

    def __init__(
        self,
        hub: Hub,
        cursors: CursorFormat,
        *,
        count_received: Callable[[int], None],
        count_invalid: Callable[[str], None],
        observe_latency: Callable[[float], None],
    ) -> None:
        self._hub = hub
        self._cursors = cursors
        self._count_received = count_received
        self._count_invalid = count_invalid
        self._observe_latency = observe_latency
        self._positions: dict[int, int] = {}
        # What is broadcast next: encoded messages by room, and how much that is.
        self._rooms: dict[str, list[bytes]] = {}
        self._messages = 0
        self._bytes = 0

    def on_positions(self, positions: Mapping[int, int]) -> None:
        """The consumer reads on from here, whatever it has read before."""
        self._positions = dict(positions)
        self._broadcast()

    def on_records(self, records: list[Record]) -> None:
        """Hands a read's messages to every connection. Waits only as Hub.broadcast does."""
        now = time.time()
        received = 0
        for record in records:
            received += self._take(record, now)
            self._positions[record.partition] = record.offset + 1
        self._broadcast()
        self._count_received(received)
        _log.debug("%d messages successfully forwarded to local clients", received)

    def _take(self, record: Record, now: float) -> bool:
        """Encodes a record for the next batch. Returns whether it is a message."""
        try:
            message = decode_message(record.value)
        except InvalidRecord as error:
            self._count_invalid(error.reason)
            _log.debug(
                "Record skipped - Partition: %d, Offset: %d: %s",
                record.partition,
                record.offset,
                error,
            )
            return False
        appended_ms = record.appended_ms
        if not 0 <= appended_ms <= MAX_MS:  # unknown, or no time at all
            appended_ms = int(now * 1_000)
        self._observe_latency(max(0.0, now - appended_ms / 1_000))
        if self._hub.has_room(message.room):
            self._add(message.room, frames.encode(message, appended_ms))
        return True

    def _add(self, room: str, encoded: bytes) -> None:
        if self._messages == BATCH_MESSAGES or self._bytes + len(encoded) > BATCH_BYTES:
            self._broadcast()
        self._rooms.setdefault(room, []).append(encoded)
        self._messages += 1
        self._bytes += len(encoded)

    def _broadcast(self) -> None:
        rooms, self._rooms = self._rooms, {}
        self._messages = self._bytes = 0
        cursor = frames.cursor(self._cursors.encode(self._positions))
        self._hub.broadcast(rooms, cursor, time.monotonic())
