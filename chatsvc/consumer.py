"""TopicConsumer: one thread that reads every partition of a topic, without a consumer group."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from chatsvc import librdkafka
from chatsvc.errors import TopicFailed
from chatsvc.logclient import record
from chatsvc.model import Record
from chatsvc.periodic import Periodic

_log = logging.getLogger(__name__)

BATCH_RECORDS = 512
_LAG_INTERVAL = 1.0

OnRecords = Callable[[list[Record]], None]
"""Called in the consumer's thread with what one read brought, in the order of each partition."""
OnPositions = Callable[[Mapping[int, int]], None]
"""Called with each partition's next offset when they do not follow from the records read: once
before the consumer's thread starts, and in that thread when partitions are new or a position is no
longer in the log."""


class TopicConsumer:
    """Reads all partitions of `topic` from positions that `start` resolves.

    With `since_ms` None these are the ends of the partitions; with a Unix time in milliseconds the
    first records from then on (0: all there are). Partitions that come later are read from their
    first record. A broker answers a fetch after `fetch_wait_ms` when it has nothing; real ones
    answer at once when something comes, librdkafka's own does not.

    `before_reading` is called by `start` with where it will begin; it may block and raise what
    `start` raises. `report_lag` gets a partition and how many records it is behind, about once a
    second; `count_gap` the number of records that were lost to retention before they were read.
    """

    def __init__(
        self,
        brokers: tuple[str, ...],
        client_id: str,
        topic: str,
        on_records: OnRecords,
        *,
        since_ms: int | None = None,
        fetch_wait_ms: int = 500,
        on_positions: OnPositions = lambda positions: None,
        before_reading: OnPositions = lambda positions: None,
        report_lag: Callable[[int, int], None] = lambda partition, lag: None,
        count_gap: Callable[[int], None] = lambda records: None,
        on_statistics: librdkafka.OnStatistics | None = None,
    ) -> None:
        self.topic = topic
        errors = librdkafka.ErrorLog(logging.DEBUG)
        self._settings = librdkafka.settings(brokers, client_id, errors)
        self._settings |= _settings(client_id, topic)
        self._settings |= librdkafka.telling(on_statistics)
        self._settings["fetch.wait.max.ms"] = fetch_wait_ms
        self._settings["enable.partition.eof"] = since_ms is not None
        self._on_records = on_records
        self._on_positions = on_positions
        self._before_reading = before_reading
        self._since_ms = since_ms
        self._report_lag = report_lag
        self._count_gap = count_gap
        self._client: KafkaConsumer | None = None
        # Partition -> next offset. Written by this consumer's thread alone once it runs.
        self._positions: dict[int, int] = {}
        self._behind: set[int] = set()
        self._caught_up = threading.Event()
        self._known_partitions = 0
        self._lag_due = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"consumer-{topic}", daemon=True)

    def start(self, timeout: float) -> None:
        """Resolves where to begin and starts the thread; blocks at most about `timeout` seconds.
        Raises TopicFailed."""
        client = KafkaConsumer(self._settings)
        try:
            self._positions = self._resolve(client, time.monotonic() + timeout)
            self._before_reading(self._positions)
            client.incremental_assign(self._assignment(self._positions))
        except (KafkaException, TopicFailed) as error:
            client.close()
            if isinstance(error, TopicFailed):
                raise
            raise TopicFailed(self.topic, librdkafka.cause(error.args[0])) from error
        self._known_partitions = len(self._positions)
        self._client = client
        self._on_positions(self._positions)
        if not self._behind:
            self._caught_up.set()
        self._thread.start()

    def _resolve(self, client: KafkaConsumer, deadline: float) -> dict[int, int]:
        def left() -> float:
            return max(0.1, deadline - time.monotonic())

        metadata = client.list_topics(self.topic, timeout=left()).topics[self.topic]
        if metadata.error is not None:
            raise TopicFailed(self.topic, librdkafka.cause(metadata.error))
        bounds = {
            partition: client.get_watermark_offsets(
                TopicPartition(self.topic, partition), timeout=left()
            )
            for partition in metadata.partitions
        }
        positions = {partition: high for partition, (_, high) in bounds.items()}
        if self._since_ms == 0:
            positions = {partition: low for partition, (low, _) in bounds.items()}
        elif self._since_ms is not None:
            asked = self._assignment(dict.fromkeys(bounds, self._since_ms))
            for found in client.offsets_for_times(asked, timeout=left()):
                if found.error is None and found.offset >= 0:
                    positions[found.partition] = found.offset
        self._behind = {each for each, (_, high) in bounds.items() if positions[each] < high}
        return positions

    def _assignment(self, positions: dict[int, int]) -> list[TopicPartition]:
        return [TopicPartition(self.topic, each, offset) for each, offset in positions.items()]

    def positions(self) -> Mapping[int, int]:
        """Of each partition the next offset. Thread-safe."""
        return dict(self._positions)

    def wait_caught_up(self, timeout: float) -> bool:
        """Blocks until all that was there at `start` has been handled. Returns whether it has."""
        return self._caught_up.wait(timeout)

    def expect_partitions(self, partitions: int) -> None:
        """The topic has so many partitions now: the thread reads new ones from their first
        record. Thread-safe."""
        # Brokers that have just started may know fewer; partitions never go away.
        self._known_partitions = max(self._known_partitions, partitions)

    def close(self) -> None:
        """Ends the thread, which closes its client, and waits for it. Idempotent."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        client = self._client
        assert client is not None  # start() sets it before it starts this thread
        while not self._closing.is_set():
            try:
                self._read_once(client)
            except Exception:
                # Whatever one read brought, the next must be read all the same.
                _log.exception("reading topic %s failed", self.topic)
        client.close()

    def _read_once(self, client: KafkaConsumer) -> None:
        if len(self._positions) < self._known_partitions:
            self._assign_new(client)
        first = client.poll(0.1)
        if first is not None:
            # consume(n, t) waits for n or for t; this way what is there comes at once.
            self._handle(client, [first, *client.consume(BATCH_RECORDS - 1, 0)])
        now = time.monotonic()
        if now >= self._lag_due:
            self._lag_due = now + _LAG_INTERVAL
            self._report_lags(client)

    def _assign_new(self, client: KafkaConsumer) -> None:
        new = {each: 0 for each in range(self._known_partitions) if each not in self._positions}
        client.incremental_assign(self._assignment(new))
        self._positions |= new
        self._on_positions(self._positions)
        _log.info("Topic %s has %d partitions now", self.topic, self._known_partitions)

    def _handle(self, client: KafkaConsumer, messages: Sequence[Message]) -> None:
        records = []
        ends = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(record(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                ends.append(message.partition())
            else:
                self._handle_error(client, message, error)
        for each in records:
            self._positions[each.partition] = each.offset + 1
        try:
            if records:
                self._on_records(records)
        finally:  # librdkafka tells an end once; a bug in the handler must not hide it
            if ends and self._behind:
                self._behind.difference_update(ends)
                if not self._behind:
                    self._caught_up.set()

    def _handle_error(self, client: KafkaConsumer, message: Message, error: KafkaError) -> None:
        partition = message.partition()
        if error.code() == KafkaError._AUTO_OFFSET_RESET and partition is not None:
            self._reposition(client, partition)
        else:
            _log.warning("Reading topic %s: %s", self.topic, librdkafka.cause(error))

    def _reposition(self, client: KafkaConsumer, partition: int) -> None:
        """The position is not in the log: goes on at the nearest one that is, and says so."""
        position = self._positions.get(partition, 0)
        target = TopicPartition(self.topic, partition)
        low, high = client.get_watermark_offsets(target, timeout=5)
        nearest = min(max(position, low), high)
        _log.error(
            "Topic %s, partition %d: offset %d is gone, reading on at %d",
            self.topic,
            partition,
            position,
            nearest,
        )
        self._count_gap(max(0, nearest - position))
        client.incremental_unassign([target])
        client.incremental_assign([TopicPartition(self.topic, partition, nearest)])
        self._positions[partition] = nearest
        self._on_positions(self._positions)

    def _report_lags(self, client: KafkaConsumer) -> None:
        for partition, position in self._positions.items():
            _, high = client.get_watermark_offsets(
                TopicPartition(self.topic, partition), cached=True
            )
            self._report_lag(partition, max(0, high - position))


class PartitionWatch(Periodic):
    """The thread that looks for new partitions of the consumers' topics every `interval`
    seconds. Asking takes a round trip, or a timeout while brokers are away; the consumers' own
    threads read meanwhile.

    `count_partitions` gets a topic and a timeout and returns how many partitions it has, 0 if
    unknown. It must not ask the consumers' own clients: with librdkafka 2.16, Consumer.list_topics
    never returns while another thread is in poll().
    """

    def __init__(
        self,
        consumers: Sequence[TopicConsumer],
        count_partitions: Callable[[str, float], int],
        interval: float,
    ) -> None:
        super().__init__("partition-watch", interval, self._look)
        self._consumers = consumers
        self._count_partitions = count_partitions

    def _look(self) -> None:
        for consumer in self._consumers:
            consumer.expect_partitions(self._count_partitions(consumer.topic, 1.0))


def _settings(client_id: str, topic: str) -> dict[str, object]:
    return {
        **librdkafka.reading(f"chatsvc-{client_id}-{topic}"),
        # A smaller queue than the default 64 MiB.
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 8 * 1024,
    }
