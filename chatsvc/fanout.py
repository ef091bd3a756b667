"""Fanout: from records of the chat topic to the outboxes of this server's clients."""

import logging
import time
from collections.abc import Callable, Mapping

from chatsvc.entries import Entry, entry
from chatsvc.errors import InvalidRecord
from chatsvc.hub import Hub
from chatsvc.model import Record
from chatsvc.tail import Tail

_log = logging.getLogger(__name__)

BATCH_MESSAGES = 64
BATCH_BYTES = 64 * 1024
"""How much is broadcast at once at most: little against an outbox."""


class Fanout:
    """Decodes and encodes each record once, appends it to the tail, and broadcasts all in the order
    read, in batches with the positions behind each.

    Called in the chat consumer's thread. Records that are not chat messages are counted and
    skipped. Whether anybody here is in a message's room is for the hub to tell when it is
    broadcast: somebody may come until then, and is promised what follows the last broadcast.
    """

    def __init__(
        self,
        hub: Hub,
        tail: Tail,
        *,
        count_received: Callable[[int], None],
        count_invalid: Callable[[str], None],
        observe_latency: Callable[[float], None],
    ) -> None:
        self._hub = hub
        self._tail = tail
        self._count_received = count_received
        self._count_invalid = count_invalid
        self._observe_latency = observe_latency
        self._positions: dict[int, int] = {}
        # What is broadcast next: rooms and encoded messages, and how many bytes these are.
        self._messages: list[tuple[str, bytes]] = []
        self._bytes = 0

    def on_positions(self, positions: Mapping[int, int]) -> None:
        """The consumer reads on from here, whatever it has read before."""
        self._positions = dict(positions)
        self._tail.begin(positions)
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
            message = entry(record, int(now * 1_000))
        except InvalidRecord as error:
            self._tail.advance(record.partition, record.offset + 1)
            self._count_invalid(error.reason)
            _log.debug(
                "Record skipped - Partition: %d, Offset: %d: %s",
                record.partition,
                record.offset,
                error,
            )
            return False
        self._tail.append(record.partition, message)
        self._observe_latency(max(0.0, now - message.appended_ms / 1_000))
        self._add(message)
        return True

    def _add(self, message: Entry) -> None:
        size = message.size
        if len(self._messages) == BATCH_MESSAGES or self._bytes + size > BATCH_BYTES:
            self._broadcast()
        self._messages.append((message.room, message.encoded))
        self._bytes += size

    def _broadcast(self) -> None:
        messages, self._messages = self._messages, []
        self._bytes = 0
        self._hub.broadcast(messages, dict(self._positions), time.monotonic())
