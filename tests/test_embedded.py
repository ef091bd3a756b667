import socket

from confluent_kafka.admin import AdminClient, TopicMetadata

from chatsvc.embedded import EmbeddedBroker

from conftest import StartServer


def can_connect(address: str) -> bool:
    """Whether somebody listens at `host:port`."""
    host, _, port = address.rpartition(":")
    with socket.socket() as connection:
        connection.settimeout(5)
        return connection.connect_ex((host, int(port))) == 0


def topics(address: str) -> dict[str, TopicMetadata]:
    """The topics that a broker has."""
    return AdminClient({"bootstrap.servers": address}).list_topics(timeout=20).topics


def test_it_is_there_until_it_is_closed() -> None:
    """Listens on loopback after start, and on nothing after close, which may be called twice."""
    broker = EmbeddedBroker()
    (address,) = broker.start()
    assert address.startswith("127.0.0.1:")
    assert can_connect(address)
    broker.close()
    broker.close()
    assert not can_connect(address)


def test_close_before_start_does_nothing() -> None:
    """A broker that was never started can be closed."""
    EmbeddedBroker().close()


def test_a_topic_that_is_asked_for_exists() -> None:
    """Other clients see a topic that was made, with its partitions."""
    broker = EmbeddedBroker()
    (address,) = broker.start()
    broker.make_topic("chatting")
    assert len(topics(address)["chatting"].partitions) == 4
    broker.close()


def test_two_brokers_know_nothing_of_each_other() -> None:
    """Two servers without Kafka in one process do not share a chat."""
    brokers = [EmbeddedBroker(), EmbeddedBroker()]
    (first,), (second,) = [broker.start() for broker in brokers]
    assert first != second
    brokers[0].make_topic("chatting")
    assert "chatting" not in topics(second)
    for broker in brokers:
        broker.close()


def test_serve_without_kafka_has_its_topics(start_server: StartServer) -> None:
    """A server that is given no brokers starts one that has both of its topics."""
    _, listening = start_server()
    assert listening.embedded
    (address,) = listening.brokers
    assert {"chatting", "user-connections"} <= set(topics(address))
