"""Fanout: from records of the chat topic to the outboxes of this server's clients."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from chatsvc import trace
from chatsvc.duplicates import Duplicates
from chatsvc.duplicates import key as key_of
from chatsvc.entries import Entry, entry
from chatsvc.errors import InvalidRecord
from chatsvc.hub import Hub
from chatsvc.model import ChatMessage, Record
from chatsvc.records import decode_message
from chatsvc.tail import Tail

_log = logging.getLogger(__name__)

BATCH_MESSAGES = 64
BATCH_BYTES = 64 * 1024
"""How much is broadcast at once at most: little against an outbox."""


class Fanout:
    """Decodes and encodes each record once, appends it to the tail, and broadcasts all in the order
    read, in batches with the positions behind each.

    Called in the chat consumer's thread. Records that are not chat messages and those that repeat
    one are counted and skipped. Whether anybody here is in a message's room is for the hub to tell
    when it is broadcast: somebody may come until then, and is promised what follows the last
    broadcast.
    """

    def __init__(
        self,
        hub: Hub,
        tail: Tail,
        duplicates: Duplicates,
        *,
        count_received: Callable[[int], None],
        count_invalid: Callable[[str], None],
        count_duplicate: Callable[[], None],
        observe_latency: Callable[[float], None],
    ) -> None:
        self._hub = hub
        self._tail = tail
        self._duplicates = duplicates
        self._count_received = count_received
        self._count_invalid = count_invalid
        self._count_duplicate = count_duplicate
        self._observe_latency = observe_latency
        self._positions: dict[int, int] = {}
        # What is broadcast next: rooms and encoded messages, and how many bytes these are.
        self._messages: list[tuple[str, bytes]] = []
        self._bytes = 0
        # What goes into the tail before that.
        self._read: list[tuple[int, int, Entry | None]] = []

    def on_positions(self, positions: Mapping[int, int], partial: Collection[int] = ()) -> None:
        """The consumer reads on from here, whatever it has read before. Of the partitions in
        `partial` there are earlier records."""
        hole = any(positions.get(each, at) != at for each, at in self._positions.items())
        self._positions = dict(positions)
        self._tail.begin(positions)
        self._duplicates.begin(positions, partial)
        if hole:
            self._hub.interrupt(dict(positions))
        else:
            self._broadcast()

    def fill(self, partition: int, records: Sequence[Record], end: int, tail_from: int) -> None:
        """Takes in the next records up to `end`, which were written before this server serves:
        nobody waits for them. Those from `tail_from` on go into the tail once it is certain which
        of them are duplicates."""
        now_ms = int(time.time() * 1_000)
        for record in records:
            message = self._message(record)
            if record.offset < tail_from or not self._duplicates.is_exact(partition):
                self._tail.skip(partition, record.offset + 1)
            elif message is not None:
                self._read.append((partition, record.offset + 1, entry(record, message, now_ms)))
        self._read.append((partition, end, None))
        self._extend_tail()
        self._positions[partition] = end
        self._duplicates.advance(self._positions)

    def on_records(self, records: list[Record]) -> None:
        """Hands a read's messages to every connection. Waits only as Hub.broadcast does."""
        now = time.time()
        received = 0
        for record in records:
            received += self._take(record, now)
            self._positions[record.partition] = record.offset + 1
        self._duplicates.advance(self._positions)
        self._broadcast()
        self._count_received(received)
        _log.debug("%d messages successfully forwarded to local clients", received)

    def _take(self, record: Record, now: float) -> bool:
        """Encodes a record for the next batch. Returns whether it is a message that is new."""
        message = self._message(record)
        if message is None:
            self._read.append((record.partition, record.offset + 1, None))
            return False
        encoded = entry(record, message, int(now * 1_000))
        if record.trace_id:
            _log.debug(
                "Message forwarded to local clients - Partition: %d, Offset: %d",
                record.partition,
                record.offset,
                extra=trace.extra(record.trace_id),
            )
        self._observe_latency(max(0.0, now - encoded.appended_ms / 1_000))
        self._add(encoded)
        self._read.append((record.partition, record.offset + 1, encoded))
        return True

    def _message(self, record: Record) -> ChatMessage | None:
        """The message in a record, if there is one, and it is not a duplicate."""
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
            return None
        if message.message_id and self._duplicates.note(
            record.partition,
            record.offset,
            record.appended_ms,
            key_of(message.user, message.message_id),
        ):
            self._count_duplicate()
            return None
        return message

    def _add(self, message: Entry) -> None:
        size = message.size
        if len(self._messages) == BATCH_MESSAGES or self._bytes + size > BATCH_BYTES:
            self._broadcast()
        self._messages.append((message.room, message.encoded))
        self._bytes += size

    def _broadcast(self) -> None:
        messages, self._messages = self._messages, []
        self._bytes = 0
        self._extend_tail()
        self._hub.broadcast(messages, dict(self._positions), time.monotonic())

    def _extend_tail(self) -> None:
        read, self._read = self._read, []
        self._tail.extend(read)
