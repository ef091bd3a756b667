"""Stretches of a topic, over an embedded broker."""

from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from chatsvc.embedded import EmbeddedBroker
from chatsvc.logclient import MAX_BYTES_AHEAD, LogClient

PARTITIONS = 4
RECORDS = 1_500


@pytest.fixture
def brokers() -> Iterator[tuple[str, ...]]:
    broker = EmbeddedBroker()
    addresses = broker.start()
    broker.make_topic("topic")
    yield addresses
    broker.close()


@pytest.fixture
def client(brokers: tuple[str, ...]) -> Iterator[LogClient]:
    client = LogClient(brokers, "test", "topic", 100)
    yield client
    client.close()


def write(brokers: tuple[str, ...], partition: int, records: int, size: int = 10) -> None:
    """Writes the numbers from 0 on."""
    producer = Producer({"bootstrap.servers": ",".join(brokers)})
    for number in range(records):
        value = str(number).encode().ljust(size)
        producer.produce("topic", value, partition=partition)
        producer.poll(0)
    assert producer.flush(60) == 0


def numbers(client: LogClient, partition: int, start: int, end: int) -> list[int]:
    """What is read there; asks again, as its users do."""
    while (stretch := client.read(partition, start, end)) is None:
        pass
    assert stretch.end == end
    assert [record.offset for record in stretch.records] == [
        int(record.value or b"-1") for record in stretch.records
    ]
    return [record.offset for record in stretch.records]


def test_each_partition_is_read_on_where_it_was(
    client: LogClient, brokers: tuple[str, ...]
) -> None:
    """However the readers take turns, and however much has come that nobody has asked for yet:
    nothing is missing and nothing comes twice."""
    size = 3_000
    assert PARTITIONS * RECORDS * size > 2 * MAX_BYTES_AHEAD
    for partition in range(PARTITIONS):
        write(brokers, partition, RECORDS, size)
    for start in range(0, RECORDS, 300):
        for partition in range(PARTITIONS):
            assert numbers(client, partition, start, start + 300) == list(range(start, start + 300))
    assert numbers(client, 2, 700, 720) == list(range(700, 720))
    assert numbers(client, 2, 720, 1_000) == list(range(720, 1_000))


def test_what_was_read_ahead_is_not_needed_again(
    client: LogClient, brokers: tuple[str, ...]
) -> None:
    """A jump back or forth begins anew, also after a rest and after the end was reached."""
    write(brokers, 0, 1_000)
    assert numbers(client, 0, 0, 10) == list(range(10))
    assert numbers(client, 0, 900, 1_000) == list(range(900, 1_000))
    client.rest()
    assert numbers(client, 0, 5, 500) == list(range(5, 500))
    assert numbers(client, 0, 500, 500) == []
    assert numbers(client, 0, 500, 501) == [500]


def test_bounds_are_kafkas(client: LogClient, brokers: tuple[str, ...]) -> None:
    """The first offset and the one behind the last."""
    write(brokers, 1, 7)
    assert client.bounds(1) == (0, 7)
    assert client.bounds(0) == (0, 0)


def test_what_is_not_there_yet_is_not_waited_for_for_ever(client: LogClient) -> None:
    """The caller may have to end."""
    assert client.read(0, 0, 5) is None
