"""Topics: look whether Kafka is there, and create, describe and grow topics."""

import logging
import socket
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without __all__
    AclOperation,
    AdminClient,
    BrokerMetadata,
    ClusterMetadata,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from chatsvc import librdkafka
from chatsvc.errors import KafkaUnreachable, TopicFailed

T = TypeVar("T")

_log = logging.getLogger(__name__)

REPLICATION = 3
MIN_IN_SYNC = 2
ASK_AGAIN_SECONDS = 0.1
CONNECT_SECONDS = 1.0
_DENIALS = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART})
SHOWN_CONFIG = ("min.insync.replicas", "message.timestamp.type", "retention.ms", "cleanup.policy")


@dataclass(frozen=True)
class PartitionDescription:
    """One partition and the ids of the brokers that have it."""

    partition: int
    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True)
class TopicDescription:
    """A topic as Kafka has it."""

    topic: str
    partitions: tuple[PartitionDescription, ...]
    config: dict[str, str]


@dataclass(frozen=True)
class TopicState:
    """What tells a topic from a later one of its name, and of each partition the offset behind its
    last record."""

    identity: bytes
    ends: dict[int, int]


class Topics:
    """Administers topics. All calls block for at most `timeout` seconds each."""

    def __init__(self, brokers: tuple[str, ...], client_id: str, timeout: float) -> None:
        self._brokers = brokers
        self._timeout = timeout
        errors = librdkafka.ErrorLog(logging.DEBUG)
        self._client = AdminClient(librdkafka.settings(brokers, client_id, errors))

    def reach(self) -> int:
        """Returns how many brokers there are. Raises KafkaUnreachable if none answers."""
        return len(self._metadata().brokers)

    def brokers(self) -> dict[int, str]:
        """The brokers that are alive, by their ids, and the addresses to which they send clients.
        Raises KafkaUnreachable."""
        return {each.id: f"{each.host}:{each.port}" for each in self._metadata().brokers.values()}

    def _metadata(self) -> ClusterMetadata:
        try:
            return self._client.list_topics(timeout=self._timeout)
        except KafkaException as error:
            cause = librdkafka.cause(error.args[0])
            raise KafkaUnreachable(self._brokers, cause) from error

    def missing(self, topics: dict[str, int]) -> dict[str, int]:
        """Of topics with their numbers of partitions, those that do not exist. Raises
        KafkaUnreachable."""
        known = self._metadata().topics
        return {topic: count for topic, count in topics.items() if topic not in known}

    def create(self, topics: dict[str, int], replicas: int | None = None) -> list[str]:
        """Creates topics with so many partitions each, on `replicas` brokers or else on three if
        there are so many, with LogAppendTime. One that exists meanwhile is left alone. Returns
        warnings for people. Raises TopicFailed, also if there are fewer brokers than `replicas`,
        or KafkaUnreachable."""
        replicas = replicas or min(REPLICATION, self.reach())
        config = {
            "min.insync.replicas": str(MIN_IN_SYNC if replicas >= REPLICATION else 1),
            "message.timestamp.type": "LogAppendTime",
        }
        wanted = [
            NewTopic(topic, count, replicas, config=config) for topic, count in topics.items()
        ]
        for topic, future in self._client.create_topics(wanted).items():
            try:
                self._wait(topic, future)
            except TopicFailed as error:
                if _code(error) != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        if replicas >= REPLICATION:
            return []
        return [
            f"{', '.join(topics)} created with replication factor {replicas} and "
            "min.insync.replicas 1, which is for fewer than three brokers: "
            "losing one may lose messages"
        ]

    def describe(self, topic: str) -> TopicDescription:
        """What Kafka says of a topic. Raises TopicFailed or KafkaUnreachable."""
        metadata = self._metadata().topics.get(topic)
        if metadata is None or metadata.error is not None:
            raise TopicFailed(topic, "no such topic; make it with topics create")
        resource = ConfigResource(ResourceType.TOPIC, topic)
        config = self._wait(topic, self._client.describe_configs([resource])[resource])
        return TopicDescription(
            topic,
            tuple(
                PartitionDescription(each.id, each.leader, tuple(each.replicas), tuple(each.isrs))
                for each in sorted(metadata.partitions.values(), key=lambda each: each.id)
            ),
            {name: config[name].value for name in SHOWN_CONFIG if name in config},
        )

    def identity(self, topic: str) -> bytes:
        """What tells a topic from all others, also from a later one of the same name. Waits for
        a topic that the broker asked has not heard of yet: what is created through one broker is
        at the others a moment later. Raises TopicFailed or KafkaUnreachable."""
        metadata = self._metadata()
        if (metadata.cluster_id or "").startswith("mockCluster"):
            # librdkafka's own, which knows no administration and forgets its topics when it ends.
            # Its id is where it is in memory, where the next one may be too; so the ports count.
            return f"{metadata.cluster_id} {','.join(sorted(self._brokers))}".encode()
        return _identity(metadata, self._await_topic(topic))

    def state(self, topic: str) -> TopicState | None:
        """What a topic is like now; None while a broker is down that would have to be asked. Raises
        TopicFailed if Kafka says that it is not there or may not be read, and KafkaUnreachable for
        all else, which may pass."""
        try:
            return self._state(topic)
        except TopicFailed as error:
            if _code(error) in _DENIALS:
                raise
            raise KafkaUnreachable(self._brokers, error.cause) from error

    def _state(self, topic: str) -> TopicState | None:
        metadata = self._metadata()
        if not all(map(_listens, _asked(metadata, topic))):
            return None
        described = self._describe(topic, include_authorized_operations=True)
        operations = described.authorized_operations
        if operations and AclOperation.READ not in operations:
            denied = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            raise TopicFailed(topic, "not authorized to read it") from KafkaException(denied)
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # the library has no type
        asked = {TopicPartition(topic, each.id): latest for each in described.partitions}
        found = self._client.list_offsets(asked, request_timeout=self._timeout)
        ends = {each.partition: self._wait(topic, found[each]).offset for each in found}
        return TopicState(_identity(metadata, described), ends)

    def _await_topic(self, topic: str) -> Any:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return self._describe(topic)
            except TopicFailed as error:
                unknown = _code(error) == KafkaError.UNKNOWN_TOPIC_OR_PART
                if not unknown or time.monotonic() > deadline:
                    raise
                time.sleep(ASK_AGAIN_SECONDS)  # Kafka tells nobody: it has to be asked

    def _describe(self, topic: str, **options: Any) -> Any:
        asked = self._client.describe_topics(
            TopicCollection([topic]), request_timeout=self._timeout, **options
        )
        return self._wait(topic, asked[topic])

    def grow(self, topic: str, partitions: int) -> None:
        """Raises the number of a topic's partitions. Raises TopicFailed, also if it has more."""
        futures = self._client.create_partitions([NewPartitions(topic, partitions)])
        self._wait(topic, futures[topic])

    def _wait(self, topic: str, future: "Future[T]") -> T:
        try:
            return future.result(self._timeout)
        except KafkaException as error:
            raise TopicFailed(topic, librdkafka.cause(error.args[0])) from error
        except TimeoutError as error:
            raise TopicFailed(topic, "no answer in time") from error


def _asked(metadata: ClusterMetadata, topic: str) -> list[BrokerMetadata | None]:
    """The brokers that an administrator's questions about a topic go to; None for one that is not
    alive."""
    partitions = metadata.topics[topic].partitions if topic in metadata.topics else {}
    ids = {metadata.controller_id, *(each.leader for each in partitions.values())}
    return [metadata.brokers.get(each) for each in ids]


def _listens(broker: BrokerMetadata | None) -> bool:
    """Whether a broker takes a connection. With librdkafka 2.16 an administrator's question to one
    that refuses it keeps two threads busy with nothing but connecting until its time is over,
    whatever reconnect.backoff.ms says."""
    if broker is None:
        return False
    try:
        with socket.create_connection((broker.host, broker.port), CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _identity(metadata: ClusterMetadata, described: Any) -> bytes:
    return f"{metadata.cluster_id or ''} {described.topic_id}".encode()


def _code(error: TopicFailed) -> int | None:
    """Kafka's code of a failure; None of one that Kafka has not answered."""
    kafka = error.__cause__
    return kafka.args[0].code() if isinstance(kafka, KafkaException) else None
