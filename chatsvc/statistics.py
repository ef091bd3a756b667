"""Statistics: what Kafka and its clients tell of themselves, as metrics.

Source: STATISTICS.md of librdkafka.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import orjson
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

_log = logging.getLogger(__name__)

PRODUCER = "producer"
_MICROSECONDS = 1_000_000
_MILLISECONDS = 1_000


class _Family(NamedTuple):
    """A metric of each client, or of each of its brokers."""

    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    name: str
    text: str
    labels: tuple[str, ...]


_OF_CLIENT = ("client",)
_OF_BROKER = ("client", "broker")

CONNECTED = _Family(
    GaugeMetricFamily,
    "chatsvc_kafka_connected",
    "Whether a client of Kafka has a connection to a broker; it makes those that it needs",
    _OF_BROKER,
)
RTT = _Family(
    GaugeMetricFamily,
    "chatsvc_kafka_rtt_seconds",
    "Time in which a broker answers the producer, 99th percentile of the last seconds",
    _OF_BROKER,
)
THROTTLE = _Family(
    GaugeMetricFamily,
    "chatsvc_kafka_throttle_seconds",
    "Longest delay that a broker's quota has caused in the last seconds",
    _OF_BROKER,
)
TIMEOUTS = _Family(
    CounterMetricFamily,
    "chatsvc_kafka_request_timeouts",
    "Requests that a broker did not answer in time",
    _OF_BROKER,
)
RECORDS = _Family(
    GaugeMetricFamily,
    "chatsvc_kafka_queue_records",
    "Records in a client of Kafka: to be sent or confirmed, or fetched and not read yet",
    _OF_CLIENT,
)
BYTES = _Family(
    GaugeMetricFamily,
    "chatsvc_kafka_queue_bytes",
    "The size of the records in a client of Kafka",
    _OF_CLIENT,
)
# Not from librdkafka's statistics: they tell nothing of a broker that no client needs, and forget
# one that Kafka has given up.
UP = _Family(
    GaugeMetricFamily, "chatsvc_kafka_brokers_up", "Brokers that are alive; 0 if none answers", ()
)
KNOWN = _Family(
    GaugeMetricFamily,
    "chatsvc_kafka_brokers_known",
    "Brokers that are alive or should have records of the topics",
    (),
)
IN_SYNC = _Family(
    GaugeMetricFamily,
    "chatsvc_kafka_in_sync_replicas",
    "Brokers that have all records of a partition",
    ("topic", "partition"),
)
FAMILIES = (UP, KNOWN, IN_SYNC, CONNECTED, RTT, THROTTLE, TIMEOUTS, RECORDS, BYTES)

_Values = list[tuple[_Family, tuple[str, ...], float]]


class Partition(Protocol):
    """What confluent_kafka.admin.PartitionMetadata tells."""

    replicas: list[int]
    isrs: list[int]


class Statistics:
    """The newest statistics of each client of a server, and what the newest listings told of
    brokers and replicas. Thread-safe: each part is replaced at once, by the one thread that has it
    anew."""

    def __init__(self) -> None:
        self._newest: dict[str, _Values] = {}
        self._alive: frozenset[int] | None = None
        self._partitions: dict[str, dict[int, tuple[frozenset[int], int]]] = {}

    def note_listing(
        self, topic: str, brokers: Iterable[int], partitions: Mapping[int, Partition]
    ) -> None:
        """Takes the ids of the brokers that are alive, none if nobody answered, and who has, and
        who should have, each partition of a topic, none if that was not told."""
        self._alive = frozenset(brokers)
        if partitions:
            self._partitions[topic] = {
                number: (frozenset(each.replicas), len(each.isrs))
                for number, each in partitions.items()
            }

    def of(self, client: str) -> Callable[[str], None]:
        """What a client calls with its statistics. It does not raise: that would pass through the
        poll of the client, which has other things to do."""

        def take(text: str) -> None:
            try:
                self._newest[client] = list(_values(client, orjson.loads(text)))
            except Exception:
                _log.debug("the statistics of the %s are strange", client, exc_info=True)

        return take

    def collect(self) -> Iterator[Metric]:
        """All families, without samples until the first statistics have come."""
        families = {
            family: family.kind(family.name, family.text, labels=family.labels)
            for family in FAMILIES
        }
        for values in (*list(self._newest.values()), self._listed()):
            for family, labels, value in values:
                families[family].add_metric(labels, value)
        yield from families.values()

    def _listed(self) -> _Values:
        alive = self._alive
        if alive is None:
            return []
        topics = list(self._partitions.items())
        wanted = [replicas for _, each in topics for replicas, _ in each.values()]
        return [
            (UP, (), len(alive)),
            (KNOWN, (), len(alive.union(*wanted))),
            *(
                (IN_SYNC, (topic, str(number)), in_sync)
                for topic, partitions in topics
                for number, (_, in_sync) in partitions.items()
            ),
        ]


def _values(client: str, told: dict[str, Any]) -> _Values:
    values: _Values = [
        value
        for broker in told["brokers"].values()
        if broker["nodeid"] >= 0  # else an address whose broker is not known yet
        for value in _of_broker(client, broker)
    ]
    queues = list(_fetched(told["topics"].values()))
    records = told["msg_cnt"] + sum(partition["fetchq_cnt"] for partition in queues)
    size = told["msg_size"] + sum(partition["fetchq_size"] for partition in queues)
    return [*values, (RECORDS, (client,), records), (BYTES, (client,), size)]


def _of_broker(client: str, broker: dict[str, Any]) -> _Values:
    labels = (client, str(broker["nodeid"]))
    values: _Values = [
        (CONNECTED, labels, float(broker["state"] in ("UP", "UPDATE"))),
        (THROTTLE, labels, broker["throttle"]["max"] / _MILLISECONDS),
        (TIMEOUTS, labels, broker["req_timeouts"]),
    ]
    if client == PRODUCER and broker["rtt"]["cnt"]:  # a fetch is answered when there is something
        values.append((RTT, labels, broker["rtt"]["p99"] / _MICROSECONDS))
    return values


def _fetched(topics: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (partition for topic in topics for partition in topic["partitions"].values())
