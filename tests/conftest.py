"""Fixtures for all tests, and the check that no test leaves a thread behind."""

import threading
from collections.abc import Callable, Iterator

import pytest

from chatsvc.config import Config
from chatsvc.server import Listening, Server

from waiting import eventually

StartServer = Callable[..., tuple[Server, Listening]]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fails a test after which threads run that did not run before."""
    before = set(threading.enumerate())
    yield

    def left() -> list[str]:
        return sorted(thread.name for thread in set(threading.enumerate()) - before)

    if not eventually(lambda: not left(), timeout=10):
        pytest.fail(f"threads left behind: {left()}")


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers on free ports in this process, by default with an embedded broker; they are
    stopped after the test."""
    servers: list[Server] = []

    def start(**settings: object) -> tuple[Server, Listening]:
        server = Server(Config(**{"port": 0, "metrics_port": 0, **settings}))  # type: ignore[arg-type]
        servers.append(server)
        return server, server.start()

    yield start
    for server in servers:
        server.stop()


Measured = Callable[[str], None]

_measurements: list[str] = []


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Notes a figure; all of them are shown after the tests."""

    def note(figure: str) -> None:
        _measurements.append(f"{request.node.name}: {figure}")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _measurements:
        terminalreporter.section("measured")
        for line in _measurements:
            terminalreporter.write_line(line)
