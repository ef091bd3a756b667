import contextlib
import urllib.request
from collections.abc import Iterable, Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from chatsvc import metrics as metric
from chatsvc.errors import CloseReason
from chatsvc.metrics import Metrics
from chatsvc.sideport import Readiness, SidePort

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@contextlib.contextmanager
def shown(metrics: Metrics) -> Iterator[str]:
    """The URL of a port that shows `metrics`."""
    port = SidePort(metrics.registry, "127.0.0.1", 0, lambda: Readiness(True, "ok"))
    try:
        yield port.start()
    finally:
        port.close()


def scrape(url: str) -> list[Metric]:
    """The metrics as Prometheus would read them."""
    with urllib.request.urlopen(url, timeout=20) as response:
        return list(text_string_to_metric_families(response.read().decode()))


def samples(url: str) -> Samples:
    """Values by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in scrape(url)
        for sample in family.samples
    }


def test_what_is_counted_is_shown(metrics: Metrics) -> None:
    """Counters, gauges and histograms are on the page with their names, labels and values."""
    metrics.messages_received.inc(3)
    metrics.rpc_errors.labels("CreateStream", "RESOURCE_EXHAUSTED").inc()
    metrics.consumer_lag.labels("chatting", 1).set(7)
    metrics.message_latency.observe(0.02)
    with shown(metrics) as url:
        found = samples(url)
    assert found["chatsvc_messages_received_total", ()] == 3
    labels = (("code", "RESOURCE_EXHAUSTED"), ("method", "CreateStream"))
    assert found["chatsvc_rpc_errors_total", labels] == 1
    lag = (("partition", "1"), ("topic", "chatting"))
    assert found["chatsvc_consumer_lag_messages", lag] == 7
    assert found["chatsvc_message_latency_seconds_bucket", (("le", "0.01"),)] == 0
    assert found["chatsvc_message_latency_seconds_bucket", (("le", "0.025"),)] == 1


def test_every_reason_is_there_from_the_start(metrics: Metrics) -> None:
    """A rate over disconnects works before the first one: each reason begins at zero."""
    with shown(metrics) as url:
        found = samples(url)
    for reason in CloseReason:
        assert found["chatsvc_disconnects_total", (("reason", reason.value),)] == 0


def test_numbers_of_parts_are_read_at_each_scrape(metrics: Metrics) -> None:
    """What `observe` adds is asked anew whenever Prometheus asks."""
    asked: list[bool] = []

    def parts() -> Iterable[Metric]:
        asked.append(True)
        yield metric.gauge("connections_active", "Streams open now", len(asked))
        yield metric.count("messages_delivered", "Messages sent", 10 * len(asked))

    metrics.observe(parts)
    with shown(metrics) as url:
        samples(url)
        before = len(asked)
        found = samples(url)
    assert len(asked) == before + 1
    assert found["chatsvc_connections_active", ()] == len(asked)
    assert found["chatsvc_messages_delivered_total", ()] == 10 * len(asked)


def test_every_metric_has_a_type_and_a_help_text(metrics: Metrics) -> None:
    """Ours begin with chatsvc_ and explain themselves; the process's own are there too."""
    with shown(metrics) as url:
        families = scrape(url)
    assert all(family.documentation and family.type != "unknown" for family in families)
    names = {family.name for family in families}
    assert {"process_resident_memory_bytes", "python_info", "python_gc_collections"} <= names
    ours = {name for name in names if not name.startswith(("process_", "python_"))}
    assert ours
    assert all(name.startswith("chatsvc_") for name in ours)


def test_registries_are_apart(metrics: Metrics) -> None:
    """Two servers in one process count for themselves."""
    other = Metrics(CollectorRegistry())
    other.messages_received.inc()
    with shown(metrics) as url:
        assert samples(url)["chatsvc_messages_received_total", ()] == 0
