"""Which broker is what for a topic, by Kafka's own word."""

from confluent_kafka.admin import AdminClient, PartitionMetadata

from brokers import Brokers
from waiting import eventually

WAIT = 60


def client(brokers: Brokers) -> AdminClient:
    return AdminClient({"bootstrap.servers": brokers.bootstrap})


def partitions(admin: AdminClient, topic: str) -> list[PartitionMetadata]:
    """What the brokers that run know of a topic's partitions."""
    return list(admin.list_topics(topic, timeout=WAIT).topics[topic].partitions.values())


def leader(brokers: Brokers, topic: str) -> int:
    """The index of the broker that leads partition 0."""
    return int(partitions(client(brokers), topic)[0].leader) - 1


def follower(brokers: Brokers, topic: str) -> int:
    """A broker that leads no partition of a topic; of three there is one, for a topic has two."""
    leaders = {each.leader - 1 for each in partitions(client(brokers), topic)}
    return min({0, 1, 2} - leaders)


def controller(brokers: Brokers, topic: str) -> int:
    """The broker whose controller is active."""
    return brokers.controller()


def wait_until_in_sync(brokers: Brokers, *topics: str) -> None:
    """Waits until all three brokers have all of some topics in sync: then any one may fail."""

    admin = client(brokers)

    def in_sync() -> bool:
        return all(len(each.isrs) == 3 for topic in topics for each in partitions(admin, topic))

    assert eventually(in_sync, WAIT), "the brokers are not in sync"
