"""Metrics: what a server counts, in Prometheus' terms.

Counts that many threads or every delivery touch are plain numbers of the parts that own them,
read when Prometheus asks; everything else is a metric of prometheus-client. Rates are PromQL's
work. No label has a user's name in it.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from chatsvc.errors import CloseReason

LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 60.0),
)


class Metrics:
    """All metrics of one server, on the given registry. Thread-safe, as prometheus-client is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        self.labels: dict[str, tuple[str, ...]] = {}
        """Of families with labels, their names: a family without samples does not tell."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            self.labels[f"chatsvc_{name}"] = labels
            return Counter(f"chatsvc_{name}", text, labels, registry=registry)

        def latencies(name: str, text: str) -> Latencies:
            counts = Latencies(f"chatsvc_{name}", text)
            registry.register(counts)
            return counts

        self.connections = counter("connections", "Streams opened since the start")
        self.connections_failed = counter(
            "connections_failed", "Streams refused at their start", "reason"
        )
        self.disconnects = counter("disconnects", "Streams ended", "reason")
        self.messages_received = counter("messages_received", "Chat messages read from Kafka")
        self.messages_dropped = counter(
            "messages_dropped", "Deliveries that a closed stream did not get any more", "reason"
        )
        self.messages_published = counter(
            "messages_published", "Messages of clients that all in-sync replicas have"
        )
        self.messages_duplicate = counter(
            "messages_duplicate",
            "Messages that repeat one by their id: requests that were not written, records in the "
            "log that were not delivered",
            "where",
        )
        self.message_latency = latencies(
            "message_latency_seconds", "From Kafka's append of a message to its fan-out here"
        )
        self.delivery_latency = Histogram(
            "chatsvc_delivery_latency_seconds",
            "From fan-out to handed to the transport, for one message in about 64",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.produce_latency = latencies(
            "produce_latency_seconds", "From queueing a record to the ack of all in-sync replicas"
        )
        self.publish_latency = SharedLatencies(
            "chatsvc_publish_latency_seconds",
            "From reading a message from its sender to sending the confirmation",
        )
        registry.register(self.publish_latency)
        self.produce_errors = counter("produce_errors", "Records not confirmed by Kafka", "code")
        self.rpc_errors = counter("rpc_errors", "Calls that ended in an error", "method", "code")
        self.records_invalid = counter(
            "records_invalid", "Records skipped because they are not ours", "topic", "reason"
        )
        self.records_lost = counter(
            "records_lost", "Records that retention removed before they were read", "topic"
        )
        self.labels["chatsvc_consumer_lag_messages"] = ("topic", "partition")
        self.consumer_lag = Gauge(
            "chatsvc_consumer_lag_messages",
            "Records of a partition that are not read yet",
            ("topic", "partition"),
            registry=registry,
        )
        for reason in CloseReason:
            self.disconnects.labels(reason.value)

    def observe(self, parts: Callable[[], Iterable[Metric]]) -> None:
        """Adds metrics that are made whenever Prometheus asks."""
        self.registry.register(_OnScrape(parts))


class Latencies(Collector):
    """A histogram that one thread writes, for what happens once a message: without
    prometheus-client's lock a bucket, an observation costs a tenth. A scrape reads it from another
    thread and may see an observation's bucket before its sum."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._counts = [0] * (len(LATENCY_BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one latency. Called by one thread only."""
        self._counts[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        bounds = [*map(str, LATENCY_BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class SharedLatencies(Latencies):
    """The same for several threads, each of which has some at once."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        # Guards the counts and the sum while they are written.
        self._lock = threading.Lock()

    def observe_all(self, latencies: Iterable[float]) -> None:
        """Counts some latencies, in seconds. Thread-safe."""
        with self._lock:
            for seconds in latencies:
                self.observe(seconds)


class _OnScrape(Collector):
    def __init__(self, parts: Callable[[], Iterable[Metric]]) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        yield from self._parts()


def gauge(name: str, text: str, value: float) -> Metric:
    """A gauge with its value now."""
    return GaugeMetricFamily(f"chatsvc_{name}", text, value)


def count(name: str, text: str, value: float) -> Metric:
    """A counter with its value now."""
    return CounterMetricFamily(f"chatsvc_{name}", text, value)
