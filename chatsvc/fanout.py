"""Fanout: from records of the chat topic to the outboxes of this server's clients."""

import logging
import time
from collections.abc import Callable, Iterator

from chatsvc import frames
from chatsvc.errors import InvalidRecord
from chatsvc.hub import Hub
from chatsvc.model import Record
from chatsvc.records import decode_message

_log = logging.getLogger(__name__)

BATCH_MESSAGES = 64
BATCH_BYTES = 64 * 1024
"""How much is in a batch at most: little against an outbox."""

MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, the last that a protobuf Timestamp can be."""


class Fanout:
    """Decodes and encodes each record once, and broadcasts them in batches in the order read.

    Called in the chat consumer's thread. Records that are not chat messages are counted and
    skipped, those of rooms too: no room but the lobby is served yet.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        count_received: Callable[[int], None],
        count_invalid: Callable[[str], None],
        observe_latency: Callable[[float], None],
    ) -> None:
        self._hub = hub
        self._count_received = count_received
        self._count_invalid = count_invalid
        self._observe_latency = observe_latency

    def on_records(self, records: list[Record]) -> None:
        """Hands a read's messages to every connection. Waits only as Hub.broadcast does."""
        now = time.time()
        encoded = list(self._encoded(records, now))
        for messages in _batches(encoded):
            self._hub.broadcast(frames.batch(messages, time.monotonic()))
        self._count_received(len(encoded))
        _log.debug("%d messages successfully forwarded to local clients", len(encoded))

    def _encoded(self, records: list[Record], now: float) -> Iterator[bytes]:
        for record in records:
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
                continue
            if message.room:
                self._count_invalid("room")
                continue
            appended_ms = record.appended_ms
            if not 0 <= appended_ms <= MAX_MS:  # unknown, or no time at all
                appended_ms = int(now * 1_000)
            self._observe_latency(max(0.0, now - appended_ms / 1_000))
            yield frames.encode(message, appended_ms)


def _batches(encoded: list[bytes]) -> Iterator[list[bytes]]:
    """Splits messages into batches within the limits; one that is too large comes alone."""
    batch: list[bytes] = []
    size = 0
    for message in encoded:
        size += len(message)
        if batch and (len(batch) >= BATCH_MESSAGES or size > BATCH_BYTES):
            yield batch
            batch, size = [], len(message)
        batch.append(message)
    if batch:
        yield batch
