import http.client
import socket
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from chatsvc.errors import PortTaken
from chatsvc.sideport import Readiness, SidePort

from conftest import StartServer
from waiting import eventually

READY = Readiness(True, "ok")


class Port:
    """A side port whose readiness the test sets, and what is asked of it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        Gauge("answer", "Of all questions", registry=registry).set(42)
        self.readiness = READY
        self.port = SidePort(registry, host, 0, lambda: self.readiness)
        self.address = address_of(self.port.start())

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        return ask(self.address, path, method)


def address_of(url: str) -> str:
    return url.removeprefix("http://").removesuffix("/metrics")


def ask(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    """The status and the body of an answer."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.port.close()


def test_metrics_are_at_their_path(port: Port) -> None:
    """What the registry has, also with a query as Prometheus may send it."""
    for path in ("/metrics", "/metrics?name[]=answer"):
        status, page = port.ask(path)
        assert status == 200
        assert "answer 42.0" in page.splitlines()


def test_a_process_that_answers_lives(port: Port) -> None:
    """/healthz is 200 whatever the readiness: a restart would help nobody."""
    port.readiness = Readiness(False, "no Kafka broker answers")
    assert port.ask("/healthz") == (200, "ok\n")


def test_readiness_is_asked_each_time(port: Port) -> None:
    """/readyz is 200 while ready, and else 503 with the reason in one line."""
    assert port.ask("/readyz") == (200, "ok\n")
    port.readiness = Readiness(False, "no Kafka broker answers")
    assert port.ask("/readyz") == (503, "no Kafka broker answers\n")
    port.readiness = READY
    assert port.ask("/readyz", "HEAD") == (200, "")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metric", "/healthz/x", "/favicon.ico"])
def test_there_is_nothing_else(port: Port, path: str) -> None:
    """Any other path is 404, and says what there is."""
    status, text = port.ask(path)
    assert status == 404
    assert "/readyz" in text


def test_one_that_says_nothing_holds_up_nobody(port: Port) -> None:
    """A client that connects and sends no request has a thread of its own."""
    host, number = port.address.split(":")
    with socket.create_connection((host, int(number))):
        assert port.ask("/healthz") == (200, "ok\n")


def test_a_taken_port_is_told() -> None:
    """A port in use raises PortTaken with the option that changes it, and close does nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        port = SidePort(CollectorRegistry(), "127.0.0.1", number, lambda: READY)
        with pytest.raises(PortTaken) as raised:
            port.start()
        port.close()
    assert raised.value.option == "--metrics-port"
    assert raised.value.address == f"127.0.0.1:{number}"


def test_an_unknown_host_is_told() -> None:
    """An address that is not of this machine raises PortTaken."""
    with pytest.raises(PortTaken):
        SidePort(CollectorRegistry(), "192.0.2.1", 0, lambda: READY).start()


def test_an_address_of_ipv6() -> None:
    """It is listened on, and its URL can be used."""
    port = Port("::1")
    assert port.address.startswith("[::1]:")
    assert port.ask("/healthz") == (200, "ok\n")
    port.port.close()


def test_close_frees_the_port(port: Port) -> None:
    """After close nobody listens, and closing again does nothing."""
    port.port.close()
    port.port.close()
    with pytest.raises(ConnectionRefusedError):
        port.ask("/metrics")


def test_close_works_before_start() -> None:
    """A port that never listened can be closed."""
    SidePort(CollectorRegistry(), "127.0.0.1", 0, lambda: READY).close()


def test_a_server_is_ready_when_it_has_started(start_server: StartServer) -> None:
    """As its health service says."""
    _, listening = start_server()
    assert ask(address_of(listening.metrics_url), "/readyz") == (200, "ok\n")


def test_a_server_that_stops_is_not_ready(start_server: StartServer) -> None:
    """While its clients leave, load balancers are told to send nobody any more."""
    server, listening = start_server()
    server.health.leave()  # the first thing that a stop does; the last is to close the side port
    address = address_of(listening.metrics_url)
    assert eventually(lambda: ask(address, "/readyz") == (503, "the server is stopping\n"))
