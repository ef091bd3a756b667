"""Going on with a cursor over real brokers: from Kafka, past retention, and after the topic was
deleted."""

from typing import Any

import grpc
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from chatsvc.pb import chat_pb2, chat_pb2_grpc

from brokers import Brokers
from conftest import Serve
from serving import ServeProcess
from waiting import eventually

WAIT = 60


class Chat:
    """Calls to a server."""

    def __init__(self, server: ServeProcess) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(server.address, options=options)
        self._stub: Any = chat_pb2_grpc.ChatStub(self._channel)

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._channel.close()

    def subscribe(self, cursor: bytes = b"") -> Any:
        request = chat_pb2.SubscribeRequest(user=chat_pb2.User(id="ann"), cursor=cursor)
        return self._stub.Subscribe(request, timeout=2 * WAIT)

    def publish(self, first: int, last: int) -> None:
        """Sends numbers and waits until all are stored."""
        requests = (
            chat_pb2.PublishRequest(
                messages=[
                    chat_pb2.Message(id="bob", content=str(number))
                    for number in range(at, min(at + 500, last))
                ]
            )
            for at in range(first, last, 500)
        )
        results = list(self._stub.Publish(requests, timeout=WAIT))
        outcomes = [each.status for result in results for each in result.outcomes]
        assert outcomes == (last - first) * [chat_pb2.Outcome.COMMITTED]


def caught_up(stream: Any) -> tuple[list[int], list[Any], bytes]:
    """What was missed, the gaps before it, and the cursor behind it."""
    contents: list[int] = []
    gaps: list[Any] = []
    for delivery in stream:
        gaps += delivery.gaps
        contents += [int(each.content) for each in delivery.messages]
        if delivery.caught_up:
            return contents, gaps, delivery.cursor
    raise AssertionError("the stream ended")


def partition_of_all(admin: AdminClient, topic: str) -> int:
    """The one partition in which records are: those of one user are in one."""
    asked = {TopicPartition(topic, each): OffsetSpec.latest() for each in range(2)}
    ends = {
        each.partition: end.result(WAIT).offset for each, end in admin.list_offsets(asked).items()
    }
    (found,) = (partition for partition, end in ends.items() if end)
    return found


@pytest.mark.kafka
def test_a_new_server_has_what_was_missed_before_it_started(brokers: Brokers, serve: Serve) -> None:
    """None of it is in its memory, so all of it comes from Kafka: once each, in order."""
    with Chat(serve(brokers)) as chat:
        _, _, cursor = caught_up(chat.subscribe())
        chat.publish(0, 20_000)
    with Chat(serve(brokers)) as chat:
        stream = chat.subscribe(cursor)
        contents, gaps, _ = caught_up(stream)
        assert contents == list(range(20_000))
        assert not gaps
        chat.publish(20_000, 20_001)
        assert [each.content for each in next(stream).messages] == ["20000"]


@pytest.mark.kafka
def test_what_kafka_no_longer_keeps_is_named(
    brokers: Brokers, serve: Serve, topic_options: list[str]
) -> None:
    """The partition and the offsets of what is lost, then what there is."""
    with Chat(serve(brokers)) as chat:
        _, _, cursor = caught_up(chat.subscribe())
        chat.publish(0, 3_000)
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    with Chat(serve(brokers)) as chat:
        stream = chat.subscribe(cursor)
        first = next(delivery for delivery in stream if delivery.messages)
        stream.cancel()
        contents, _, _ = caught_up(chat.subscribe(first.cursor))
        assert contents == list(range(len(first.messages), 3_000))
        full = partition_of_all(admin, topic_options[1])
        kept = TopicPartition(topic_options[1], full, 1_000)
        for future in admin.delete_records([kept]).values():
            future.result(WAIT)
    with Chat(serve(brokers)) as chat:
        contents, gaps, _ = caught_up(chat.subscribe(cursor))
        assert contents == list(range(1_000, 3_000))
        assert [(gap.partition, gap.start, gap.end) for gap in gaps] == [(full, 0, 1_000)]


@pytest.mark.kafka
def test_a_topic_that_was_made_anew_is_another_one(
    brokers: Brokers, serve: Serve, topic_options: list[str]
) -> None:
    """Its offsets mean something else, so a cursor of the old one is refused."""
    server = serve(brokers)
    with Chat(server) as chat:
        _, _, cursor = caught_up(chat.subscribe())
    server.close()
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    for future in admin.delete_topics([topic_options[1]]).values():
        future.result(WAIT)
    assert eventually(lambda: topic_options[1] not in admin.list_topics(timeout=10).topics, WAIT)
    with Chat(serve(brokers)) as chat:
        with pytest.raises(grpc.RpcError) as refused:
            next(chat.subscribe(cursor))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith("cursor: ")
