"""Fixtures for all tests, and the check that no test leaves a thread behind."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from chatsvc.config import Config
from chatsvc.pb import chat_pb2_grpc
from chatsvc.server import Listening, Server

from sites import Site
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


@pytest.fixture
def site() -> Iterator[Site]:
    """Servers in this process that share an embedded broker."""
    with contextlib.ExitStack() as stack:
        yield Site(stack)


@pytest.fixture
def host() -> Iterator[Callable[[chat_pb2_grpc.ChatServicer], str]]:
    """Runs other servers of the service than chatsvc's."""
    with contextlib.ExitStack() as running:

        def run(servicer: chat_pb2_grpc.ChatServicer) -> str:
            pool = running.enter_context(ThreadPoolExecutor(4))
            server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
            chat_pb2_grpc.add_ChatServicer_to_server(servicer, server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            running.callback(lambda: server.stop(0).wait())
            return f"127.0.0.1:{port}"

        yield run


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
