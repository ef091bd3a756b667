"""LogClient: reads stretches of a topic from Kafka."""

import logging
import time
from collections import OrderedDict, deque
from typing import NamedTuple

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from chatsvc import librdkafka, trace
from chatsvc.model import Record

PATIENCE_SECONDS = 2.0
"""After so long without a record a read is given up."""
MAX_LANES = 16
"""How many partitions are read on at once."""
MAX_BYTES_AHEAD = 8 * 1024 * 1024
OVERHEAD_BYTES = 300
BATCH_RECORDS = 512
"""How much is taken at once of what has come."""

_OF_A_PARTITION = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError._PARTITION_EOF})


class Stretch(NamedTuple):
    """The records of a partition from `start` up to before `end`, in order; fewer than offsets
    where some are no records. A `start` later than what was asked for: what was before is gone."""

    start: int
    end: int
    records: list[Record]


class _Lane:
    """A partition that is read on: `position` is the next offset, and `ahead` what has come, up to
    before offset `end`, and nobody has asked for yet. Of one that is not assigned nothing comes."""

    __slots__ = ("ahead", "end", "is_assigned", "position")

    def __init__(self, position: int) -> None:
        self.position = self.end = position
        self.ahead: deque[Message] = deque()
        self.is_assigned = False


class LogClient:
    """One consumer, which is made when it is needed first. It goes on in a partition where it was
    if what is asked for follows, and else begins anew: so each of some readers gets on that go
    through the log in different partitions. `read_ahead` is how many records of a partition it
    fetches beyond what was asked for, or some more. For one thread; all calls block."""

    def __init__(
        self, brokers: tuple[str, ...], client_id: str, topic: str, read_ahead: int
    ) -> None:
        self._topic = topic
        self._read_ahead = read_ahead
        errors = librdkafka.ErrorLog(logging.DEBUG)
        self._settings = librdkafka.settings(brokers, client_id, errors)
        self._settings |= librdkafka.reading(f"chatsvc-replay-{topic}")
        self._settings |= {
            "enable.partition.eof": True,
            "queued.min.messages": read_ahead,
            "queued.max.messages.kbytes": 2 * 1024,
            # A partition that is asked for anew waits until the broker has answered the last fetch.
            "fetch.wait.max.ms": 50,
        }
        self._client: KafkaConsumer | None = None
        # The partitions that are assigned, the one that was asked for last behind all others.
        self._lanes: OrderedDict[int, _Lane] = OrderedDict()
        self._bytes_ahead = 0

    def read(self, partition: int, start: int, end: int) -> Stretch | None:
        """The records from `start` up to before `end`, of which all must have been written; None if
        Kafka does not answer for PATIENCE_SECONDS."""
        client = self._opened()
        lane = self._lane(client, partition, start)
        records: list[Record] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while lane.position < end:
            if not lane.ahead:
                self._let_come(client, partition, lane)
                if not self._receive(client):
                    if time.monotonic() > deadline:
                        self._drop(client, partition)
                        return None
                    continue
                deadline = time.monotonic() + PATIENCE_SECONDS
            while lane.ahead and lane.position < end:
                error = lane.ahead[0].error()
                if error is None:
                    self._take(lane, end, records)
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    start = self._first(partition, start)
                    lane = self._begin(client, partition, start)
                else:
                    # The end when it was noted, which may be long ago: more may have come.
                    lane.position = max(lane.position, lane.ahead.popleft().offset() or 0)
        return Stretch(start, max(start, end), records)

    def _take(self, lane: _Lane, end: int, records: list[Record]) -> None:
        """Takes the next record if it is before `end`; else there is none before it."""
        offset = lane.ahead[0].offset() or 0
        if offset < end:
            taken = record(lane.ahead.popleft())
            self._bytes_ahead -= _size(taken.value)
            records.append(taken)
        lane.position = min(offset + 1, end)

    def _receive(self, client: KafkaConsumer) -> bool:
        """Waits for a moment and puts what has come where it belongs. Returns whether there was
        something."""
        message = client.poll(0.1)
        if message is None:
            return False
        for each in (message, *client.consume(BATCH_RECORDS, 0)):
            number = each.partition()
            assert number is not None  # all that a consumer gives is of one
            lane = self._lanes.get(number)
            error = each.error()
            if lane is not None and (error is None or error.code() in _OF_A_PARTITION):
                lane.ahead.append(each)
                if error is None:
                    lane.end = (each.offset() or 0) + 1
                    self._bytes_ahead += _size(each.value())
        if self._bytes_ahead > MAX_BYTES_AHEAD:
            self._hold(client)
        return True

    def _hold(self, client: KafkaConsumer) -> None:
        """Has nothing more come of partitions of which there is enough. To pause one would do the
        same, but when it is resumed librdkafka takes a second until something comes."""
        for number, lane in self._lanes.items():
            if len(lane.ahead) > self._read_ahead and lane.is_assigned:
                lane.is_assigned = False
                client.incremental_unassign([TopicPartition(self._topic, number)])

    def _lane(self, client: KafkaConsumer, partition: int, start: int) -> _Lane:
        """The partition, read on from `start`."""
        lane = self._lanes.get(partition)
        if lane is None or lane.position != start:
            return self._begin(client, partition, start)
        self._lanes.move_to_end(partition)
        return lane

    def _let_come(self, client: KafkaConsumer, partition: int, lane: _Lane) -> None:
        if not lane.is_assigned:
            lane.is_assigned = True
            client.incremental_assign([TopicPartition(self._topic, partition, lane.end)])

    def _begin(self, client: KafkaConsumer, partition: int, start: int) -> _Lane:
        if partition in self._lanes:
            self._drop(client, partition)
        elif len(self._lanes) >= MAX_LANES:
            self._drop(client, next(iter(self._lanes)))
        self._lanes[partition] = lane = _Lane(start)
        return lane

    def _drop(self, client: KafkaConsumer, partition: int) -> None:
        lane = self._lanes.pop(partition)
        self._bytes_ahead -= sum(_size(each.value()) for each in lane.ahead if not each.error())
        if lane.is_assigned:
            client.incremental_unassign([TopicPartition(self._topic, partition)])

    def _first(self, partition: int, start: int) -> int:
        """The offset of the first record that there is, from `start` on, which is not in the
        log."""
        low, high = self.bounds(partition)
        return min(max(start, low), high)

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

    def rest(self) -> None:
        """Lets go of what is read ahead."""
        self._lanes.clear()
        self._bytes_ahead = 0
        if self._client is not None:
            self._client.unassign()

    def close(self) -> None:
        """Closes the consumer, if there is one. Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None


def _size(value: bytes | None) -> int:
    """About what a record takes."""
    return OVERHEAD_BYTES + len(value or b"")


def record(message: Message) -> Record:
    """A message of librdkafka's that is no error."""
    kind, milliseconds = message.timestamp()
    return Record(
        message.partition() or 0,
        message.offset() or 0,
        message.value(),
        milliseconds,
        kind == 2,  # confluent_kafka.TIMESTAMP_LOG_APPEND_TIME
        trace.of_headers(headers) if (headers := message.headers()) else "",
    )
