"""A server that can no longer read what Kafka has sends its clients elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatsvc.client import ChatClient, Connected, Lost, Received
from chatsvc.model import ChatMessage
from chatsvc.records import encode_message
from chatsvc.subscription import GOING_AWAY
from chatsvc.topics import Topics

from brokers import Brokers
from conftest import Serve, StartServer
from serving import ServeProcess
from waiting import eventually

WAIT = 90
SERVING = health_pb2.HealthCheckResponse.SERVING


def status(server: ServeProcess) -> int:
    """What the health service says."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Brokers]:
    """A broker that forbids what it is told to, and nothing else. Its cluster's id is one of those,
    one in 64, that begin with a dash."""
    (tmp_path / "guarded").mkdir()
    (tmp_path / "guarded" / "cluster.id").write_text("-S7m-VQsQm-IbR62WL6OaQ")
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with Brokers(tmp_path / "guarded", count=1, properties=properties) as brokers:
        yield brokers


@pytest.mark.kafka
def test_a_server_that_may_not_read_sends_its_clients_away(
    guarded: Brokers, serve: Serve, topic_options: list[str]
) -> None:
    """It takes them in again once it may, and they miss nothing of what was sent meanwhile."""
    topic = topic_options[1]
    server = serve(guarded)
    admin = AdminClient({"bootstrap.servers": guarded.bootstrap})
    everybody = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
    rules = [
        AclBinding(*everybody, AclOperation.READ, AclPermissionType.DENY),
        AclBinding(*everybody, AclOperation.WRITE, AclPermissionType.ALLOW),
        AclBinding(*everybody, AclOperation.DESCRIBE, AclPermissionType.ALLOW),
    ]
    with ChatClient("ann", [server.address]) as ann:
        ann.connect()
        ann.send("before")
        assert isinstance(ann.receive(WAIT), Received)
        assert status(server) == SERVING
        for future in admin.create_acls(rules).values():
            future.result(WAIT)
        lost = ann.receive(WAIT)
        assert isinstance(lost, Lost)
        assert lost.cause == GOING_AWAY
        assert eventually(lambda: status(server) != SERVING, WAIT)
        ann_id = ann.post("meanwhile")
        anything = AclBindingFilter(
            ResourceType.TOPIC,
            topic,
            ResourcePatternType.LITERAL,
            None,
            None,
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        for deleted in admin.delete_acls([anything]).values():
            deleted.result(WAIT)
        assert eventually(lambda: status(server) == SERVING, WAIT)
        connected = ann.receive(WAIT)
        assert isinstance(connected, Connected)
        received = ann.receive(WAIT)
        assert isinstance(received, Received)
        assert received.message_id == ann_id
    assert "is read on" in server.stderr


@pytest.mark.kafka
def test_a_topic_that_is_made_anew_ends_the_server(
    brokers: Brokers, serve: Serve, topic_options: list[str]
) -> None:
    """One line says why: what it knows of the old one, and clients' cursors, say nothing of it."""
    topic = topic_options[1]
    server = serve(brokers)
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    with ChatClient("ann", [server.address]) as ann:
        ann.connect()
        ann.send("before")
        assert isinstance(ann.receive(WAIT), Received)
        for future in admin.delete_topics([topic]).values():
            future.result(WAIT)
        lost = ann.receive(WAIT)
        assert isinstance(lost, Lost)
        assert eventually(lambda: status(server) != SERVING, WAIT)
        Topics(tuple(brokers.addresses), "test", WAIT).create({topic: 2})
        assert server.wait(WAIT) == 1
    expected = (
        f"topic {topic} was deleted and made again while the server ran; start the server again"
    )
    assert server.stderr.splitlines()[-1] == expected
    assert "Traceback" not in server.stderr


@pytest.mark.kafka
def test_the_marker_of_a_transaction_is_no_message(
    brokers: Brokers, start_server: StartServer, topic_options: list[str]
) -> None:
    """A partition that ends with one has no more to read: the server keeps its clients, for longer
    than it may stand still where there is more."""
    server, listening = start_server(
        brokers=tuple(brokers.addresses),
        topic=topic_options[1],
        connections_topic=topic_options[3],
        feed_timeout=0.5,
        partitions_interval=0.2,
    )
    address = f"127.0.0.1:{listening.port}"
    producer = Producer({"bootstrap.servers": brokers.bootstrap, "transactional.id": "writer"})
    producer.init_transactions(WAIT)
    producer.begin_transaction()
    value = encode_message(ChatMessage("tool", "written in a transaction", ""))[1]
    producer.produce(topic_options[1], value, key=b"tool")
    with ChatClient("ann", [address]) as ann:
        ann.connect()
        producer.commit_transaction(WAIT)
        received = ann.receive(WAIT)
        assert isinstance(received, Received)
        assert received.content == "written in a transaction"
        assert ann.receive(4) is None
        ann.send("still here", timeout=WAIT)
        assert isinstance(ann.receive(WAIT), Received)
    assert server.health.is_serving
