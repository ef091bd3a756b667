"""Going on with a cursor over real brokers: from Kafka, past retention, and after the topic was
deleted."""

import time

import grpc
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from .calls import WAIT, Chat, caught_up
from brokers import Brokers
from conftest import Measured, Serve
from waiting import eventually


def partition_of_all(admin: AdminClient, topic: str) -> int:
    """The one partition in which records are: those of one user are in one."""
    asked = {TopicPartition(topic, each): OffsetSpec.latest() for each in range(2)}
    ends = {
        each.partition: end.result(WAIT).offset for each, end in admin.list_offsets(asked).items()
    }
    (found,) = (partition for partition, end in ends.items() if end)
    return found


@pytest.mark.kafka
def test_a_new_server_has_what_was_missed_before_it_started(
    brokers: Brokers, serve: Serve, measured: Measured
) -> None:
    """None of it is in its memory, so all of it comes from Kafka: once each, in order."""
    with Chat(serve(brokers).address) as chat:
        _, _, cursor = caught_up(chat.subscribe())
        chat.publish(0, 45_000)
    with Chat(serve(brokers).address) as chat:
        began = time.monotonic()
        stream = chat.subscribe(cursor)
        contents, gaps, _ = caught_up(stream)
        measured(f"20,000 missed messages in {time.monotonic() - began:.1f} s")
        assert contents == list(range(45_000))
        assert not gaps
        chat.publish(45_000, 45_001)
        assert [each.content for each in next(stream).messages] == ["45000"]


@pytest.mark.kafka
def test_what_kafka_no_longer_keeps_is_named(
    brokers: Brokers, serve: Serve, topic_options: list[str]
) -> None:
    """The partition and the offsets of what is lost, then what there is."""
    with Chat(serve(brokers).address) as chat:
        _, _, cursor = caught_up(chat.subscribe())
        chat.publish(0, 3_000)
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    with Chat(serve(brokers).address) as chat:
        stream = chat.subscribe(cursor)
        first = next(delivery for delivery in stream if delivery.messages)
        stream.cancel()
        contents, _, _ = caught_up(chat.subscribe(first.cursor))
        assert contents == list(range(len(first.messages), 3_000))
        full = partition_of_all(admin, topic_options[1])
        kept = TopicPartition(topic_options[1], full, 1_000)
        for future in admin.delete_records([kept]).values():
            future.result(WAIT)
    with Chat(serve(brokers).address) as chat:
        contents, gaps, _ = caught_up(chat.subscribe(cursor))
        assert contents == list(range(1_000, 3_000))
        assert [(gap.partition, gap.start, gap.end) for gap in gaps] == [(full, 0, 1_000)]


@pytest.mark.kafka
def test_a_topic_that_was_made_anew_is_another_one(
    brokers: Brokers, serve: Serve, topic_options: list[str]
) -> None:
    """Its offsets mean something else, so a cursor of the old one is refused."""
    server = serve(brokers)
    with Chat(server.address) as chat:
        _, _, cursor = caught_up(chat.subscribe())
    server.close()
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    for future in admin.delete_topics([topic_options[1]]).values():
        future.result(WAIT)
    assert eventually(lambda: topic_options[1] not in admin.list_topics(timeout=10).topics, WAIT)
    with Chat(serve(brokers).address) as chat:
        with pytest.raises(grpc.RpcError) as refused:
            next(chat.subscribe(cursor))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith("cursor: ")
