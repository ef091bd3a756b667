"""nginx.conf: a real nginx over real servers and brokers, while things happen to them."""

import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any

import grpc
import pytest

from chatsvc.client import send_once
from chatsvc.metadata import SERVER_ID
from chatsvc.pb import chat_pb2

from .conftest import Behind, Idle
from .nginx import Nginx
from brokers import Brokers
from conftest import Measured, Serve
from faults.calls import Chat
from faults.conftest import CLIENTS, Verify, load
from faults.conftest import STREAMS as OPEN
from serving import ServeProcess
from waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.root]

STREAMS = 12
IDLE_SECONDS = 190
"""More than three of the minutes after which nginx ends a stream by itself."""


@pytest.fixture(autouse=True)
def time_goes_by(idle: Idle) -> None:
    """The idle stream is idle beside all tests of this module."""


@pytest.fixture
def servers(brokers: Brokers, serve: Serve) -> list[ServeProcess]:
    """Three that share topics."""
    return [serve(brokers) for _ in range(3)]


@pytest.fixture
def nginx(servers: list[ServeProcess], behind: Behind) -> Nginx:
    return behind([server.address for server in servers])


class Probe:
    """A stream without a client's cleverness, which is read and ends as it ends."""

    def __init__(self, address: str, stack: ExitStack, pool: ThreadPoolExecutor) -> None:
        self._stream: Any = stack.enter_context(Chat(address)).subscribe()
        stack.callback(self._stream.cancel)
        self.server_id = str(dict(self._stream.initial_metadata())[SERVER_ID])
        self._end = pool.submit(self._read)

    def _read(self) -> str:
        try:
            deque(self._stream, maxlen=0)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"

    @property
    def ended(self) -> bool:
        return self._end.done()

    def end(self) -> str:
        """What the stream has ended with, once it has."""
        return self._end.result(60)


@pytest.fixture
def probes(nginx: Nginx) -> Iterator[list[Probe]]:
    """Streams through nginx, each on a connection of its own."""
    with ThreadPoolExecutor(STREAMS) as pool, ExitStack() as stack:
        yield [Probe(nginx.address, stack, pool) for _ in range(STREAMS)]


def at(probes: list[Probe], server: ServeProcess) -> list[Probe]:
    return [each for each in probes if each.server_id == server.server_id]


def tell(measured: Measured, what: str, began: float, ended: list[Probe]) -> None:
    """Notes what streams have ended with."""
    seen = Counter(each.end() for each in ended)
    told = "; ".join(f"{count} streams {status}" for status, count in seen.items())
    measured(f"{what} after {time.monotonic() - began:.1f} s: {told}")


def test_streams_are_spread_evenly(servers: list[ServeProcess], probes: list[Probe]) -> None:
    """Each server gets a third of them, for each stream stays."""
    assert [len(at(probes, server)) for server in servers] == 3 * [STREAMS // 3]


def test_a_reload_costs_a_reconnect(
    nginx: Nginx, probes: list[Probe], verify: Verify, measured: Measured
) -> None:
    """`nginx -s reload` under traffic: old streams are served on and then cut, and who goes on by
    cursor has lost nothing. New ones find the new workers at once, and no old worker stays."""
    running = verify([nginx.address])
    old = nginx.workers()
    began = time.monotonic()
    nginx.reload()
    assert eventually(lambda: nginx.workers() - old, 60)
    send_once("ann", "0 at once", [nginx.address], timeout=60)
    measured(f"a message is taken {time.monotonic() - began:.1f} s after the reload")
    assert eventually(lambda: all(each.ended for each in probes), 60)
    tell(measured, "old streams end", began, probes)
    assert eventually(lambda: not nginx.workers() & old, 60)
    load([nginx.address])
    verdict = running.finish()
    measured(str(verdict))
    assert verdict.reconnects >= CLIENTS


@pytest.mark.parametrize("number", [SIGKILL, SIGTERM], ids=["killed", "drained"])
def test_a_server_that_ends_costs_its_clients_a_reconnect(
    nginx: Nginx,
    servers: list[ServeProcess],
    probes: list[Probe],
    verify: Verify,
    brokers: Brokers,
    serve: Serve,
    measured: Measured,
    number: Signals,
) -> None:
    """They are at the others, at the same address, and have lost nothing; nobody else notices. When
    it is back, nginx sends clients there again."""
    running = verify([nginx.address])
    doomed, *others = servers
    began = time.monotonic()
    doomed.signal(number)
    assert eventually(lambda: all(each.ended for each in at(probes, doomed)), 60)
    tell(measured, "its streams end", began, at(probes, doomed))
    doomed.wait(60)
    load([nginx.address])
    assert not [each for server in others for each in at(probes, server) if each.ended]
    back = serve(brokers, "--port", doomed.address.rpartition(":")[2])
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        assert eventually(lambda: Probe(nginx.address, stack, pool).server_id == back.server_id, 60)
    load([nginx.address])
    verdict = running.finish()
    measured(str(verdict))
    assert 1 <= verdict.reconnects <= CLIENTS


def streams(servers: list[ServeProcess]) -> float:
    """How many they have in all."""
    return sum(server.metrics()[OPEN] for server in servers)


@pytest.mark.timeout(300)
def test_a_server_that_hangs_is_left(
    nginx: Nginx, servers: list[ServeProcess], verify: Verify, measured: Measured
) -> None:
    """SIGSTOP, which nginx cannot tell: the kernel takes connections still. Its clients hear
    nothing and come back, until they are at another server."""
    running = verify([nginx.address])
    hung = next(server for server in servers if server.metrics()[OPEN])
    others = [server for server in servers if server is not hung]
    began = time.monotonic()
    hung.signal(SIGSTOP)
    assert eventually(lambda: streams(others) == CLIENTS, 150)
    measured(f"its clients are at the other servers after {time.monotonic() - began:.0f} s")
    hung.signal(SIGCONT)
    load([nginx.address])
    measured(str(running.finish()))


def test_a_client_that_hangs_is_noticed(
    nginx: Nginx, servers: list[ServeProcess], measured: Measured
) -> None:
    """nginx keeps its stream and answers the server's pings, but there are no heartbeats."""
    command = [sys.executable, "-m", "chatsvc.cli", "join", "zoe", "--server", nginx.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as client:
        try:
            assert eventually(lambda: streams(servers) == 1, 60)
            began = time.monotonic()
            client.send_signal(SIGSTOP)
            assert eventually(lambda: streams(servers) == 0, 120)
            measured(f"its stream is freed after {time.monotonic() - began:.0f} s")
        finally:
            client.kill()
    gone = 'chatsvc_disconnects_total{reason="gone"}'
    assert sum(server.metrics().get(gone, 0) for server in servers) == 1


def test_who_comes_when_no_server_is_there_is_told_so(
    nginx: Nginx, servers: list[ServeProcess], probes: list[Probe], measured: Measured
) -> None:
    """As gRPC says it: UNAVAILABLE, which means to try again, and a client that does is served as
    soon as one is there again."""
    for server in servers:
        server.signal(SIGKILL)
        server.wait(60)
    assert eventually(lambda: all(each.ended for each in probes), 60)
    tell(measured, "streams end", time.monotonic(), probes)
    with Chat(nginx.address) as chat:
        error = chat.refusal("hello?", "one")
        measured(f"{error.code().name}: {error.details()}")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "no chat server answers"


@pytest.mark.timeout(600)
def test_quiet_streams_are_left_alone(idle: Idle, measured: Measured) -> None:
    """Without a message or a heartbeat for more than three minutes, three times of what nginx
    gives them by default, both are still there. A stream of Publish may carry more than the
    megabyte that nginx takes for a request by default."""
    silence = idle.wait(IDLE_SECONDS)
    assert not idle.stream.done()
    idle.send("still there?")
    assert next(idle.stream).content == "still there?"
    for _ in range(30):
        assert idle.publish(*15 * ["x" * 4_000]) == chat_pb2.Outcome.COMMITTED
    measured(f"messages in both directions after {silence:.0f} s of silence")
    assert idle.server.metrics()["chatsvc_connections_total"] == 1
