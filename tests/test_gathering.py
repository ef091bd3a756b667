import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from chatsvc.gathering import Gathering
from chatsvc.metrics import Metrics
from chatsvc.sideport import Readiness, SidePort

Serve = Callable[..., str]

READY = Readiness(True, "ok")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Shows registries on ports of their own."""
    ports: list[SidePort] = []

    def serve(registry: CollectorRegistry, readiness: Readiness = READY) -> str:
        ports.append(SidePort(registry, "127.0.0.1", 0, lambda: readiness))
        return ports[-1].start()

    yield serve
    for port in ports:
        port.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A page that never comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"


@pytest.fixture
def nobody() -> str:
    """A page of nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"


def gathered(urls: Mapping[str, str | None], timeout: float = 20) -> CollectorRegistry:
    """A registry that gathers pages."""
    registry = CollectorRegistry()
    registry.register(Gathering(lambda: urls, timeout))
    return registry


def worker(serve: Serve, received: int) -> str:
    """A worker's page."""
    metrics = Metrics(CollectorRegistry())
    metrics.messages_received.inc(received)
    metrics.rpc_errors.labels("CreateStream", 'a "b"\n').inc()
    metrics.message_latency.observe(0.02)
    return serve(metrics.registry)


def test_every_sample_has_its_worker(serve: Serve) -> None:
    """What workers count is apart by the label, with the labels that it had before."""
    registry = gathered({"0": worker(serve, 3), "1": worker(serve, 4)})
    for name, received in (("0", 3), ("1", 4)):
        own = {"worker": name}
        value = registry.get_sample_value
        assert value("chatsvc_messages_received_total", own) == received
        assert value("chatsvc_message_latency_seconds_bucket", own | {"le": "0.025"}) == 1
        labels = own | {"method": "CreateStream", "code": 'a "b"\n'}
        assert value("chatsvc_rpc_errors_total", labels) == 1
        assert value("chatsvc_worker_up", own) == 1


def test_the_own_process_is_there_too(serve: Serve) -> None:
    """The process that gathers is one more worker in the families of processes."""
    registry = gathered({"0": worker(serve, 0)})
    for name in ("0", "supervisor"):
        assert registry.get_sample_value("process_resident_memory_bytes", {"worker": name})


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_the_page_is_one_that_prometheus_reads(serve: Serve, accept: str) -> None:
    """Each family is there once with its type and help text, in both of its formats."""
    url = serve(gathered({"0": worker(serve, 3), "1": worker(serve, 4)}))
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=20) as answer:
        page = answer.read().decode()
    typed = [line for line in page.splitlines() if line.startswith("# TYPE ")]
    assert len(typed) == len({line.split()[2] for line in typed})
    if "openmetrics" in accept:  # its parser is strict
        families = list(text_string_to_metric_families(page))
        assert all(family.documentation and family.type != "unknown" for family in families)


def test_a_worker_that_does_not_answer_is_left_out(serve: Serve, silent: str, nobody: str) -> None:
    """One that hangs, one that is gone and one that has not started yet: shown as not up, and the
    others' samples are there."""
    registry = gathered({"0": worker(serve, 3), "1": silent, "2": nobody, "3": None}, timeout=1)
    families = {family.name: family.samples for family in registry.collect()}
    up = {sample.labels["worker"]: sample.value for sample in families["chatsvc_worker_up"]}
    assert up == {"0": 1, "1": 0, "2": 0, "3": 0}
    received = families["chatsvc_messages_received"]
    assert {sample.labels["worker"] for sample in received} == {"0"}


def test_a_page_of_something_else_is_left_out(serve: Serve) -> None:
    """What is not a page of metrics does not spoil the others."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n<html>\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        registry = gathered({"0": worker(serve, 3), "1": url})
        assert registry.get_sample_value("chatsvc_worker_up", {"worker": "1"}) == 0
        thread.join()


def readiness(urls: Mapping[str, str | None]) -> Readiness:
    return Gathering(lambda: urls, 1).readiness()


def test_all_are_ready(serve: Serve) -> None:
    """Nothing is said of workers that are ready."""
    url = serve(CollectorRegistry())
    assert readiness({"0": url, "1": url}) == (True, "ok")


def test_one_that_is_ready_is_enough(serve: Serve, silent: str, nobody: str) -> None:
    """The others are named with the reason: what they say, or that they say nothing."""
    away = serve(CollectorRegistry(), Readiness(False, "no Kafka broker answers"))
    ready = serve(CollectorRegistry())
    assert readiness({"0": away, "1": ready, "2": silent, "3": nobody, "4": None}) == (
        True,
        "ok; worker 0: no Kafka broker answers; worker 2: does not answer; "
        "worker 3: does not answer; worker 4: is starting",
    )


def test_without_one_that_is_ready_it_is_not_ready(serve: Serve) -> None:
    """Clients should not come where no worker takes them."""
    away = serve(CollectorRegistry(), Readiness(False, "the server is stopping"))
    assert readiness({"0": away, "1": None}) == (
        False,
        "worker 0: the server is stopping; worker 1: is starting",
    )
