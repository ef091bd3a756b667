"""Three real brokers for the session, and servers as processes over topics of their own."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving import ServeProcess

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "kafka"))

from brokers import Brokers

Serve = Callable[..., ServeProcess]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """Three brokers that run as long as the session. Fails where they cannot start."""
    with Brokers(tmp_path_factory.mktemp("kafka")) as brokers:
        yield brokers


@pytest.fixture
def brokers(cluster: Brokers) -> Iterator[Brokers]:
    """The three brokers, all of them running before and after the test."""
    yield cluster
    for index in range(3):
        if cluster.running(index):
            cluster.resume(index)
    cluster.start()
    cluster.wait_until_registered()


@pytest.fixture
def topic_options() -> list[str]:
    """Options of `serve` for topics that no other test uses."""
    number = next(_numbers)
    return ["--topic", f"chatting-{number}", "--connections-topic", f"user-connections-{number}"]


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts server processes on free ports; they are ended after the test. Given brokers, the
    servers of a test share its topics."""
    servers: list[ServeProcess] = []

    def start(brokers: Brokers | None, *arguments: str) -> ServeProcess:
        options = list(arguments)
        if brokers is not None:
            options += ["--brokers", brokers.bootstrap, *request.getfixturevalue("topic_options")]
        server = ServeProcess.started(tmp_path / f"server-{len(servers)}", *options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()
