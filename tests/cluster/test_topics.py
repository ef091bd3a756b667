"""The topics: how they are created, what is in them, and who learns what from them."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from signal import SIGTERM

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from chatsvc.cli.main import main
from chatsvc.client import ChatClient
from chatsvc.errors import TopicFailed
from chatsvc.topics import Topics, TopicState

from brokers import Brokers
from conftest import Serve
from serving import ServeProcess
from waiting import eventually


def topics(brokers: Brokers, options: list[str], *command: str) -> Result:
    """Runs `chatsvc topics`."""
    arguments = ["topics", *command, "--brokers", brokers.bootstrap, *options]
    return CliRunner().invoke(main, arguments)


def records(brokers: Brokers, topic: str) -> list[tuple[str, dict[str, object]]]:
    """All keys and values of a topic now, as any Kafka tool reads them."""
    consumer = Consumer({"bootstrap.servers": brokers.bootstrap, "group.id": "records"})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = {
            each: consumer.get_watermark_offsets(TopicPartition(topic, each), timeout=10)[1]
            for each in partitions
        }
        consumer.assign([TopicPartition(topic, each, 0) for each in partitions])
        return list(_read(consumer, sum(ends.values())))
    finally:
        consumer.close()


def _read(consumer: Consumer, count: int) -> Iterator[tuple[str, dict[str, object]]]:
    deadline = time.monotonic() + 20
    while count and time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is not None and message.error() is None:
            count -= 1
            yield message.key().decode(), json.loads(message.value())


@pytest.mark.kafka
def test_missing_topics_are_created_to_last(
    brokers: Brokers, serve: Serve, topic_options: list[str]
) -> None:
    """`serve` creates both on three brokers, two of which must have a message."""
    serve(brokers)
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    for topic, count in ((topic_options[1], 2), (topic_options[3], 3)):
        partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
        assert len(partitions) == count
        assert all(len(partition.replicas) == 3 for partition in partitions.values())
        resource = ConfigResource(ResourceType.TOPIC, topic)
        config = admin.describe_configs([resource])[resource].result(10)
        assert config["min.insync.replicas"].value == "2"
        assert config["message.timestamp.type"].value == "LogAppendTime"


@pytest.mark.kafka
def test_topics_by_hand(brokers: Brokers, topic_options: list[str]) -> None:
    """create makes what is missing, describe shows it, grow adds partitions and refuses less."""
    created = topics(brokers, topic_options, "create")
    assert created.exit_code == 0
    assert created.stdout == f"{topic_options[1]}: created\n{topic_options[3]}: created\n"
    again = topics(brokers, topic_options, "create")
    assert again.stdout == f"{topic_options[1]}: exists\n{topic_options[3]}: exists\n"
    assert topics(brokers, topic_options, "grow", "--partitions", "6").exit_code == 0
    assert eventually(
        lambda: (
            f"{topic_options[1]}: 6 partitions" in topics(brokers, topic_options, "describe").stdout
        )
    )
    less = topics(brokers, topic_options, "grow", "--partitions", "3")
    assert less.exit_code == 1
    assert less.stderr.startswith(f"topic {topic_options[1]}: ")
    assert len(less.stderr.splitlines()) == 1


@pytest.mark.kafka
def test_a_topic_that_a_broker_has_not_heard_of_yet(
    brokers: Brokers, topic_options: list[str]
) -> None:
    """Its identity is waited for, since it may have been created a moment ago; the identity of
    one that nobody creates is asked for in vain, within the time-out."""
    topic = topic_options[1]
    admin = Topics(tuple(brokers.bootstrap.split(",")), "test", 10.0)
    with ThreadPoolExecutor(1) as pool:
        identity = pool.submit(admin.identity, topic)
        assert not wait([identity], 0.5).done
        admin.create({topic: 1})
        assert identity.result(10) == admin.identity(topic)
    hasty = Topics(tuple(brokers.bootstrap.split(",")), "test", 1.0)
    with pytest.raises(TopicFailed, match="no such topic"):
        hasty.identity(f"{topic}-never")


@pytest.mark.kafka
def test_a_broker_that_is_down_is_not_asked(brokers: Brokers, topic_options: list[str]) -> None:
    """Nobody knows the state of a topic then, until it is back."""
    topic = topic_options[1]
    admin = Topics(tuple(brokers.bootstrap.split(",")), "test", 10.0)
    admin.create({topic: 2})
    identity = admin.identity(topic)
    (leader, *_) = (each.leader for each in admin.describe(topic).partitions)
    brokers.kill(leader - 1)
    brokers.kill(leader % 3)  # without it the others would choose another leader
    assert admin.state(topic) is None
    brokers.start()
    assert eventually(lambda: admin.state(topic) == TopicState(identity, {0: 0, 1: 0}), 60)


@pytest.mark.kafka
def test_too_few_brokers_are_warned_of(tmp_path: Path) -> None:
    """With one broker the topics have one replica, and the operator is told what that means."""
    with Brokers(tmp_path / "kafka", count=1) as one:
        server = ServeProcess.started(tmp_path / "server", "--brokers", one.bootstrap)
        try:
            assert "Warning: chatting, user-connections created with replication factor 1" in (
                server.stderr
            )
        finally:
            server.close()


@pytest.mark.kafka
def test_records_are_the_seeds(brokers: Brokers, serve: Serve, topic_options: list[str]) -> None:
    """Messages and connections are in Kafka under the seed's keys, for any other tool to read."""
    server = serve(brokers)
    with ChatClient("bob", [server.address]) as bob:
        bob.connect()
        message_id = bob.send("hello")
    assert eventually(lambda: server.metrics()["chatsvc_connections_active"] == 0)
    ((key, value),) = records(brokers, topic_options[1])
    assert (key, value["id"], value["user_id"]) == ("bob", "bob", "bob")
    assert (value["content"], value["message_id"]) == ("hello", message_id)
    assert "timestamp" in value

    def connections() -> list[object]:
        events = [value for key, value in records(brokers, topic_options[3]) if key == "bob"]
        assert all(value["server_id"] == server.server_id for value in events)
        return [value["connected"] for value in events]

    assert eventually(lambda: connections() == [True, False])


@pytest.mark.kafka
def test_a_new_server_knows_who_is_on_the_others(brokers: Brokers, serve: Serve) -> None:
    """When a server says that it is ready it knows the other one and its user."""
    first = serve(brokers)
    with ChatClient("bob", [first.address]) as bob:
        bob.connect()
        assert eventually(lambda: first.metrics()["chatsvc_users_known"] == 1)
        metrics = serve(brokers).metrics()
        assert metrics["chatsvc_servers_known"] == 2
        assert metrics["chatsvc_users_known"] == 1


@pytest.mark.kafka
def test_a_server_that_leaves_is_known_to_have_left(brokers: Brokers, serve: Serve) -> None:
    """A stop is announced; nobody waits for the silence."""
    first, second = serve(brokers), serve(brokers)
    assert eventually(lambda: first.metrics()["chatsvc_servers_known"] == 2)
    second.signal(SIGTERM)
    assert second.wait() == 0
    assert eventually(lambda: first.metrics()["chatsvc_servers_known"] == 1, 10)
