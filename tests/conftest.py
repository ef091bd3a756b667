"""Fixtures for all tests, and the check that no test leaves a thread behind."""

import contextlib
import itertools
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from chatsvc.config import Config
from chatsvc.pb import chat_pb2_grpc
from chatsvc.server import Listening, Server

from serving import ServeProcess
from sites import Site
from waiting import eventually

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy" / "kafka"))

from brokers import Brokers

MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30

StartServer = Callable[..., tuple[Server, Listening]]
Serve = Callable[..., ServeProcess]
Measured = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    soak = parser.getgroup("soak", "random faults")
    soak.addoption("--soak-seconds", type=float, default=60, help="how long (default: 60)")
    soak.addoption("--soak-seed", type=int, default=1, help="which ones (default: 1)")


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


_topic_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def log_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where brokers keep their logs: in memory, if there is room. Their elections and starts wait
    for the disk at each step, and one that has to sync hundreds of small files takes seconds."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        with tempfile.TemporaryDirectory(prefix="chatsvc-kafka-", dir=MEMORY) as directory:
            yield Path(directory)
    else:
        yield tmp_path_factory.mktemp("kafka")


@pytest.fixture(scope="session")
def cluster(log_directory: Path) -> Iterator[Brokers]:
    """Three brokers that run as long as the session. Fails where they cannot start."""
    with Brokers(log_directory / "cluster") as brokers:
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
    number = next(_topic_numbers)
    return ["--topic", f"chatting-{number}", "--connections-topic", f"user-connections-{number}"]


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts server processes on free ports; they are ended after the test. Given brokers, the
    servers of a test share its topics."""
    servers: list[ServeProcess] = []

    def start(
        brokers: Brokers | None, *arguments: str, env: dict[str, str] | None = None
    ) -> ServeProcess:
        options = list(arguments)
        if brokers is not None:
            options += ["--brokers", brokers.bootstrap, *request.getfixturevalue("topic_options")]
        server = ServeProcess.started(tmp_path / f"server-{len(servers)}", *options, env=env)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Notes a figure; all of them are shown after the tests."""

    def note(figure: str) -> None:
        request.node.user_properties.append(("measured", figure))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [each for kind in terminalreporter.stats.values() for each in kind]
    figures = [
        f"{report.nodeid.rpartition('::')[2]}: {figure}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, figure in report.user_properties
        if name == "measured"
    ]
    if figures:
        terminalreporter.section("measured")
        for line in figures:
            terminalreporter.write_line(line)
