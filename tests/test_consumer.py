"""The consumer over librdkafka's own in-process broker."""

import logging
import threading
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import Producer as KafkaProducer

from chatsvc.consumer import OnRecords, PartitionWatch, TopicConsumer
from chatsvc.embedded import EMBEDDED_FETCH_WAIT_MS, EmbeddedBroker
from chatsvc.errors import TopicFailed
from chatsvc.model import Record

from waiting import eventually

WAIT = 20
TOPIC = "chatting"
PARTITIONS = 4
MakeConsumer = Callable[..., TopicConsumer]


@pytest.fixture
def brokers() -> Iterator[tuple[str, ...]]:
    """The address of a broker that has the topic."""
    broker = EmbeddedBroker()
    addresses = broker.start()
    broker.make_topic(TOPIC)
    yield addresses
    broker.close()


class Writer:
    """Another Kafka client that writes."""

    def __init__(self, brokers: tuple[str, ...]) -> None:
        self._client = KafkaProducer({"bootstrap.servers": ",".join(brokers), "log_level": 0})

    def write(self, *values: str, partition: int = 0) -> None:
        """Returns when Kafka has all of them."""
        for value in values:
            self._client.produce(TOPIC, value.encode(), partition=partition)
        assert self._client.flush(WAIT) == 0


@pytest.fixture
def writer(brokers: tuple[str, ...]) -> Writer:
    return Writer(brokers)


class Reading:
    """What a consumer has read, by partition."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def __call__(self, records: list[Record]) -> None:
        self.records.extend(records)

    def values(self, partition: int = 0) -> list[str]:
        return [
            (record.value or b"").decode()
            for record in self.records
            if record.partition == partition
        ]


@pytest.fixture
def reading() -> Reading:
    return Reading()


@pytest.fixture
def make_consumer(brokers: tuple[str, ...]) -> Iterator[MakeConsumer]:
    """Makes consumers, which are closed after the test."""
    consumers: list[TopicConsumer] = []

    def make(
        on_records: OnRecords, kind: type[TopicConsumer] = TopicConsumer, **settings: object
    ) -> TopicConsumer:
        wait = {"fetch_wait_ms": EMBEDDED_FETCH_WAIT_MS}
        consumers.append(kind(brokers, "test", TOPIC, on_records, **(wait | settings)))  # type: ignore[arg-type]
        return consumers[-1]

    yield make
    for consumer in consumers:
        consumer.close()


def test_it_starts_at_the_end(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """Of all partitions, only what is written after start is read."""
    for partition in range(PARTITIONS):
        writer.write("old", partition=partition)
    consumer = make_consumer(reading)
    consumer.start(WAIT)
    assert consumer.wait_caught_up(0)
    for partition in range(PARTITIONS):
        writer.write("new", partition=partition)
    assert eventually(lambda: len(reading.records) >= PARTITIONS)
    assert [reading.values(each) for each in range(PARTITIONS)] == [["new"]] * PARTITIONS


def test_nothing_written_after_start_is_missed(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """Positions are fixed when start returns, not when the first fetch happens."""
    make_consumer(reading).start(WAIT)
    writer.write("at once")
    assert eventually(lambda: reading.values() == ["at once"])


def test_from_time_0_it_reads_everything(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """Whoever waits until it has caught up has seen all that was there at start."""
    numbers = [str(number) for number in range(1_500)]
    for partition in range(PARTITIONS):
        writer.write(*numbers, partition=partition)
    consumer = make_consumer(reading, since_ms=0)
    consumer.start(WAIT)
    assert consumer.wait_caught_up(WAIT)
    assert [reading.values(each) for each in range(PARTITIONS)] == [numbers] * PARTITIONS


def test_an_empty_topic_is_caught_up_with(make_consumer: MakeConsumer, reading: Reading) -> None:
    """Where nothing is to be read nothing is waited for."""
    consumer = make_consumer(reading, since_ms=0)
    consumer.start(WAIT)
    assert consumer.wait_caught_up(0)


def test_a_topic_is_not_caught_up_with_before_its_records_are_handled(
    make_consumer: MakeConsumer, writer: Writer
) -> None:
    """Read but not yet handled does not count."""
    writer.write("one")
    handled = threading.Event()
    consumer = make_consumer(lambda records: handled.wait(WAIT), since_ms=0)
    consumer.start(WAIT)
    assert not consumer.wait_caught_up(0.3)
    handled.set()
    assert consumer.wait_caught_up(WAIT)


def test_each_partition_is_read_in_order(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """All partitions arrive, each in its own order, with their places."""
    make_consumer(reading).start(WAIT)
    numbers = [str(number) for number in range(300)]
    for start in range(0, 300, 50):
        for partition in range(PARTITIONS):
            writer.write(*numbers[start : start + 50], partition=partition)
    assert eventually(lambda: len(reading.records) == 300 * PARTITIONS)
    for partition in range(PARTITIONS):
        assert reading.values(partition) == numbers
        offsets = [each.offset for each in reading.records if each.partition == partition]
        assert offsets == list(range(300))


def test_a_record_without_a_value_is_read(
    make_consumer: MakeConsumer, brokers: tuple[str, ...], reading: Reading
) -> None:
    """A tombstone of another tool arrives as no value."""
    make_consumer(reading).start(WAIT)
    client = KafkaProducer({"bootstrap.servers": ",".join(brokers), "log_level": 0})
    client.produce(TOPIC, key=b"bob", partition=0)
    client.flush(WAIT)
    assert eventually(lambda: [each.value for each in reading.records] == [None])


class TwoPartitionsAtFirst(TopicConsumer):
    """Sees two of the topic's partitions at start, as if the others came later."""

    def _resolve(self, client: KafkaConsumer, deadline: float) -> dict[int, int]:
        positions = super()._resolve(client, deadline)
        return {partition: positions[partition] for partition in (0, 1)}


def test_new_partitions_are_read_from_their_first_record(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """What was written to a partition before it was noticed is read, and later records too."""
    consumer = make_consumer(reading, TwoPartitionsAtFirst)
    for partition in range(PARTITIONS):
        writer.write("early", partition=partition)
    consumer.start(WAIT)
    consumer.expect_partitions(PARTITIONS)
    assert eventually(lambda: len(reading.records) >= 2)
    writer.write("late", partition=0)
    writer.write("late", partition=3)
    assert eventually(lambda: len(reading.records) >= 4)
    expected = [["late"], [], ["early"], ["early", "late"]]
    assert [reading.values(each) for each in range(PARTITIONS)] == expected


def test_fewer_partitions_change_nothing(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """A broker that knows less than was known before is not believed."""
    consumer = make_consumer(reading, TwoPartitionsAtFirst)
    consumer.start(WAIT)
    consumer.expect_partitions(PARTITIONS)
    consumer.expect_partitions(1)
    writer.write("hi", partition=3)
    assert eventually(lambda: reading.values(3) == ["hi"])


def test_a_watch_passes_on_how_many_partitions_there_are(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """The partitions that a listing shows are read soon after."""
    consumer = make_consumer(reading, TwoPartitionsAtFirst)
    consumer.start(WAIT)
    watch = PartitionWatch((consumer,), lambda topic, timeout: PARTITIONS, 0.01)
    watch.start()
    writer.write("hi", partition=3)
    assert eventually(lambda: reading.values(3) == ["hi"])
    watch.close()


def test_a_failing_handler_does_not_end_the_reading(
    make_consumer: MakeConsumer, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    """What one read brought may be lost to a bug; the next is handled, and the bug logged."""
    values: list[bytes | None] = []

    def handle(records: list[Record]) -> None:
        if records[0].value == b"bad":
            raise RuntimeError("a bug")
        values.extend(record.value for record in records)

    make_consumer(handle).start(WAIT)
    writer.write("bad")
    assert eventually(lambda: "a bug" in caplog.text)
    writer.write("good")
    assert eventually(lambda: values == [b"good"])


def test_how_far_it_is_behind_is_reported(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """Each partition's lag is told again and again; none is left when all has been read."""
    reports: list[tuple[int, int]] = []
    consumer = make_consumer(reading, report_lag=lambda *report: reports.append(report))
    consumer.start(WAIT)
    assert eventually(lambda: {partition for partition, _ in reports} == set(range(PARTITIONS)))
    writer.write("hi")
    assert eventually(lambda: reading.values() == ["hi"])
    reports.clear()
    assert eventually(lambda: (0, 0) in reports)
    assert {lag for _, lag in reports} == {0}


def test_what_waits_to_be_read_is_its_lag(make_consumer: MakeConsumer, writer: Writer) -> None:
    """While the handler is busy, records that are written count as lag."""
    lags: list[int] = []
    release = threading.Event()
    calls: list[int] = []

    def handle(records: list[Record]) -> None:
        calls.append(len(records))
        if len(calls) == 1:
            release.wait(WAIT)

    def report(partition: int, lag: int) -> None:
        if partition == 0:
            lags.append(lag)

    consumer = make_consumer(handle, report_lag=report)
    consumer.start(WAIT)
    writer.write("first")
    assert eventually(lambda: calls)
    writer.write(*["more"] * 5_000)
    lags.clear()
    release.set()
    assert eventually(lambda: lags)
    assert eventually(lambda: sum(calls) == 5_001)
    assert eventually(lambda: lags[-1] == 0)


def test_a_closed_consumer_reads_no_more(
    make_consumer: MakeConsumer, writer: Writer, reading: Reading
) -> None:
    """After close nothing is handled; a second close does nothing."""
    consumer = make_consumer(reading)
    consumer.start(WAIT)
    writer.write("before")
    assert eventually(lambda: reading.values() == ["before"])
    consumer.close()
    consumer.close()
    writer.write("after")
    other = Reading()
    make_consumer(other, since_ms=0).start(WAIT)
    assert eventually(lambda: other.values() == ["before", "after"])
    assert reading.values() == ["before"]


def test_close_before_start_does_nothing(make_consumer: MakeConsumer, reading: Reading) -> None:
    """A consumer that was never started can be closed."""
    make_consumer(reading).close()


def test_a_watch_can_be_closed_any_time() -> None:
    """Before start, and twice after it, in the middle of a long interval."""
    PartitionWatch((), lambda topic, timeout: 0, 1_000).close()
    watch = PartitionWatch((), lambda topic, timeout: 0, 1_000)
    watch.start()
    watch.close()
    watch.close()


def test_without_a_broker_it_does_not_start(reading: Reading) -> None:
    """Start raises with the topic and the cause, and close is still safe."""
    consumer = TopicConsumer(("127.0.0.1:1",), "test", TOPIC, reading)
    with pytest.raises(TopicFailed, match=r"^topic chatting: ") as caught:
        consumer.start(0.3)
    assert caught.value.topic == TOPIC
    consumer.close()


def test_brokers_that_go_away_are_no_noise(
    reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer whose broker is gone neither raises nor warns, and closes as always."""
    caplog.set_level(logging.DEBUG)
    broker = EmbeddedBroker()
    brokers = broker.start()
    broker.make_topic(TOPIC)
    consumer = TopicConsumer(brokers, "test", TOPIC, reading)
    consumer.start(WAIT)
    broker.close()
    assert eventually(lambda: "connection refused" in caplog.text)
    consumer.close()
    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]


def test_a_failing_handler_hides_no_end(make_consumer: MakeConsumer, writer: Writer) -> None:
    """Whoever waits for the consumer to have caught up is told, also after a bug."""
    for number in range(4):
        writer.write(str(number))

    def fail(records: list[Record]) -> None:
        raise RuntimeError("a bug")

    consumer = make_consumer(fail, since_ms=0)
    consumer.start(WAIT)
    assert consumer.wait_caught_up(20)
