"""`chatsvc doctor` over real brokers, and what a server shows of them."""

import itertools
import json

import pytest
from click.testing import CliRunner
from confluent_kafka.admin import AdminClient, NewTopic

from chatsvc.cli.main import main

from brokers import Brokers
from conftest import Serve
from waiting import eventually

_numbers = itertools.count(1)

Found = dict[str, list[tuple[str, str]]]


def doctor(*arguments: str) -> tuple[int, Found]:
    """The exit code, and of each subject the levels and texts."""
    answer = CliRunner().invoke(main, ["doctor", "--json", "--timeout", "20", *arguments])
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.output
    found: Found = {}
    for each in json.loads(answer.stdout)["findings"]:
        found.setdefault(each["subject"], []).append((each["level"], each["text"]))
    return answer.exit_code, found


def levels(found: Found) -> set[str]:
    return {level for lines in found.values() for level, _ in lines}


def make_topic(brokers: Brokers, replicas: int, config: dict[str, str]) -> str:
    """A topic that somebody has made otherwise than chatsvc does."""
    topic = f"made-otherwise-{next(_numbers)}"
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    made = admin.create_topics([NewTopic(topic, 2, replicas, config=config)])
    made[topic].result(20)
    assert eventually(lambda: topic in admin.list_topics(timeout=20).topics)
    return topic


@pytest.mark.kafka
def test_all_is_well(brokers: Brokers, serve: Serve, topic_options: list[str]) -> None:
    """Three brokers, two servers: every line is ok, with versions, replicas, clock and messages."""
    first, second = serve(brokers), serve(brokers)
    servers = ("--server", first.address, "--server", second.address)
    code, found = doctor("--brokers", brokers.bootstrap, *servers, *topic_options)
    assert (code, levels(found)) == (0, {"ok"})
    for address in brokers.bootstrap.split(","):
        ((_, text),) = found[f"broker {address}"]
        assert text.startswith("Kafka 4.")
    assert found["cluster"] == [("ok", "3 brokers are alive")]
    assert [text for _, text in found[f"topic {topic_options[1]}"]] == [
        "2 partitions, replication factor 3, min.insync.replicas 2",
        "all replicas are in sync",
        "message.timestamp.type LogAppendTime",
    ]
    assert "from Kafka's" in found["clock"][0][1]


@pytest.mark.kafka
def test_a_broker_is_down(brokers: Brokers, serve: Serve, topic_options: list[str]) -> None:
    """It is named, also when only another one was asked for; its replicas are missed; messages
    pass. The server shows how many are up, and that replicas are missing."""
    server = serve(brokers)
    brokers.kill(1)
    addresses = brokers.bootstrap.split(",")
    try:

        def seen() -> bool:
            metrics = server.metrics()
            partition = f'{{partition="0",topic="{topic_options[1]}"}}'
            return (
                metrics.get("chatsvc_kafka_brokers_up") == 2
                and metrics["chatsvc_kafka_brokers_known"] == 3
                and metrics[f"chatsvc_kafka_in_sync_replicas{partition}"] == 2
            )

        assert eventually(seen, 60)
        code, found = doctor(
            *("--brokers", ",".join(addresses), "--server", server.address, *topic_options)
        )
    finally:
        brokers.start()
    assert code == 1
    assert found[f"broker {addresses[1]}"] == [("fail", "connection refused")]
    assert found[f"broker {addresses[0]}"][0][0] == "ok"
    assert found["cluster"][0][0] == "warn"
    assert ("warn", "partitions 0, 1 lack replicas") in found[f"topic {topic_options[1]}"]
    assert found[f"message {server.address}"][0][0] == "ok"


@pytest.mark.kafka
def test_brokers_that_were_not_named_are_looked_at(brokers: Brokers) -> None:
    """Clients are sent to the addresses that Kafka tells, whichever they were given."""
    addresses = brokers.bootstrap.split(",")
    _, found = doctor("--brokers", addresses[0])
    assert {f"broker {address}" for address in addresses} <= set(found)


@pytest.mark.kafka
def test_a_topic_that_is_not_there(brokers: Brokers) -> None:
    """A failure that names it."""
    code, found = doctor("--brokers", brokers.bootstrap, "--topic", "no-such-topic")
    assert code == 1
    assert found["topic no-such-topic"] == [("fail", "no such topic")]


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("replicas", "config", "level", "text"),
    [
        (1, {"message.timestamp.type": "LogAppendTime"}, "warn", "replication factor 1"),
        (3, {"min.insync.replicas": "1"}, "warn", "what one broker has alone is confirmed"),
        (3, {"message.timestamp.type": "CreateTime"}, "warn", "type CreateTime"),
        (3, {"cleanup.policy": "compact"}, "fail", "cleanup.policy compact"),
    ],
)
def test_a_topic_that_was_made_otherwise(
    brokers: Brokers, replicas: int, config: dict[str, str], level: str, text: str
) -> None:
    """What may lose messages is said, with what to do."""
    topic = make_topic(brokers, replicas, config)
    _, found = doctor("--brokers", brokers.bootstrap, "--topic", topic)
    lines = found[f"topic {topic}"]
    assert any(each == level and text in told for each, told in lines), lines
