"""LogClient: reads stretches of a topic from Kafka."""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from chatsvc import librdkafka
from chatsvc.model import Record

PATIENCE_SECONDS = 2.0
"""After so long without a record a read is given up."""


class Stretch(NamedTuple):
    """The records of a partition from `start` up to before `end`, in order; fewer than offsets
    where some are no records. A `start` later than what was asked for: what was before is gone."""

    start: int
    end: int
    records: list[Record]


class LogClient:
    """One consumer, which is made when it is needed first. It goes on reading where it was if what
    is asked for follows, and else begins anew. `read_ahead` is how many records it fetches beyond
    what was asked for. For one thread; all calls block."""

    def __init__(
        self, brokers: tuple[str, ...], client_id: str, topic: str, read_ahead: int
    ) -> None:
        self._topic = topic
        errors = librdkafka.ErrorLog(logging.DEBUG)
        self._settings = librdkafka.settings(brokers, client_id, errors)
        self._settings |= librdkafka.reading(f"chatsvc-replay-{topic}")
        self._settings |= {
            "enable.partition.eof": True,
            "queued.min.messages": read_ahead,
            "queued.max.messages.kbytes": 2 * 1024,
        }
        self._client: KafkaConsumer | None = None
        self._next: tuple[int, int] | None = None

    def read(self, partition: int, start: int, end: int) -> Stretch | None:
        """The records from `start` up to before `end`, of which all must have been written; None if
        Kafka does not answer for PATIENCE_SECONDS."""
        client = self._opened()
        if self._next != (partition, start):
            self._assign(client, partition, start)
        self._next = None
        position = start
        records: list[Record] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while position < end:
            message = client.poll(0.1)
            if message is None:
                if time.monotonic() > deadline:
                    return None
                continue
            deadline = time.monotonic() + PATIENCE_SECONDS
            for each in (message, *client.consume(end - position - 1, 0)):
                error = each.error()
                if error is None:
                    position = (each.offset() or 0) + 1
                    if position <= end:
                        records.append(record(each))
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    start = position = self._begin(client, partition, start)
                elif error.code() == KafkaError._PARTITION_EOF:
                    # The end when it was noted, which may be long ago: more may have come.
                    position = max(position, each.offset() or 0)
        if position == end:  # else a record behind the end was read, and is needed again
            self._next = (partition, end)
        return Stretch(start, max(start, end), records)

    def bounds(self, partition: int) -> tuple[int, int]:
        """The offset of the first record that Kafka keeps, and the one behind the last. Raises
        KafkaException."""
        target = TopicPartition(self._topic, partition)
        bounds: tuple[int, int] = self._opened().get_watermark_offsets(
            target, timeout=PATIENCE_SECONDS
        )
        return bounds

    def offsets_at(self, partitions: dict[int, int], time_ms: int) -> dict[int, int]:
        """Of each partition the offset of the first record from a time on, in milliseconds of Unix
        time; the given one where there is none. Raises KafkaException."""
        asked = [TopicPartition(self._topic, each, time_ms) for each in partitions]
        found = self._opened().offsets_for_times(asked, timeout=PATIENCE_SECONDS)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return partitions | {each.partition: each.offset for each in found if each.offset >= 0}

    def _opened(self) -> KafkaConsumer:
        if self._client is None:
            self._client = KafkaConsumer(self._settings)
        return self._client

    def _assign(self, client: KafkaConsumer, partition: int, offset: int) -> None:
        client.assign([TopicPartition(self._topic, partition, offset)])

    def _begin(self, client: KafkaConsumer, partition: int, start: int) -> int:
        """Reads from the first record that there is, since `start` is not in the log. Returns its
        offset."""
        low, high = self.bounds(partition)
        begin = min(max(start, low), high)
        self._assign(client, partition, begin)
        return begin

    def rest(self) -> None:
        """Lets go of what is read ahead."""
        self._next = None
        if self._client is not None:
            self._client.unassign()

    def close(self) -> None:
        """Closes the consumer, if there is one. Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None


OnRecords = Callable[[list[Record]], None]


def record(message: Message) -> Record:
    """A message of librdkafka's that is no error."""
    kind, milliseconds = message.timestamp()
    return Record(
        message.partition() or 0,
        message.offset() or 0,
        message.value(),
        milliseconds,
        kind == 2,  # confluent_kafka.TIMESTAMP_LOG_APPEND_TIME
    )
