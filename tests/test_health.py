"""Whether a server takes clients, as `chatsvc health` tells it."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatsvc.health import SERVICES, Health

from conftest import StartServer
from sites import Site

WAIT = 60


def run(server: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chatsvc.cli", "health", "--server", server, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


@pytest.fixture
def mute() -> Iterator[str]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"localhost:{listener.getsockname()[1]}"


def test_a_server_that_takes_clients(start_server: StartServer) -> None:
    _, listening = start_server()
    result = run(f"localhost:{listening.port}")
    assert (result.returncode, result.stdout, result.stderr) == (0, "SERVING\n", "")


def test_a_server_that_takes_none(start_server: StartServer) -> None:
    """It is there, and says so."""
    server, listening = start_server()
    server.health.leave()
    result = run(f"localhost:{listening.port}")
    assert (result.returncode, result.stdout, result.stderr) == (1, "NOT_SERVING\n", "")


def test_no_server() -> None:
    result = run("localhost:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Failed to connect to server: connection refused (localhost:1)\n"


def test_something_else_at_the_port(mute: str) -> None:
    """It is not waited for for ever."""
    result = run(mute, "--timeout", "0.5")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Failed to connect to server: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def web() -> Iterator[str]:
    """A server of web pages, which knows nothing of gRPC."""

    class Silent(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_of_web_pages(web: str) -> None:
    """It is said what is wrong with the port."""
    result = run(web)
    assert result.returncode == 1
    assert result.stderr == (
        f"Failed to connect to server: what answers is no gRPC server ({web})\n"
    )


def test_a_server_without_health() -> None:
    """gRPC, but not a server of ours."""
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        address = f"localhost:{server.add_insecure_port('localhost:0')}"
        server.start()
        result = run(address)
        server.stop(0).wait()
    assert result.returncode == 1
    assert "what answers has no health service" in result.stderr


def test_a_server_that_says_nothing_in_time(mute: str) -> None:
    """That is what is said of it."""
    assert "no answer in time" in run(mute, "--timeout", "0.5").stderr


@pytest.mark.parametrize("service", SERVICES)
def test_each_service_has_the_status(site: Site, service: str) -> None:
    """A load balancer may ask for the service that it routes to."""
    _, address = site.server()
    stub = health_pb2_grpc.HealthStub(site.channel(address))
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_why_clients_should_not_come() -> None:
    """There is a reason as long as they should not, and none while they should."""
    status = Health()
    assert status.reason == "the server is starting"
    status.set_serving()
    assert status.reason == ""
    status.set_not_serving("no Kafka broker answers")
    assert status.reason == "no Kafka broker answers"


def test_who_leaves_does_not_come_back() -> None:
    """Whatever is told of Kafka while the server stops."""
    status = Health()
    status.leave()
    status.set_serving()
    assert status.reason == "the server is stopping"
