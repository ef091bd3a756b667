"""Clients and networks that fail: nobody else notices, and who comes back has everything."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest

from chatsvc.client import ChatClient

from .conftest import CLIENTS, STREAMS, Verify, all_is_acked, load
from .network import Network
from .proxy import Proxy, Way
from brokers import Brokers
from cluster.test_scale import verdict
from conftest import Measured, Serve
from ledger import Listener
from waiting import eventually

pytestmark = pytest.mark.kafka

CROWD = 1_000


@pytest.mark.root
def test_a_half_open_connection_is_noticed(
    brokers: Brokers, serve: Serve, verify: Verify, measured: Measured
) -> None:
    """The network swallows all packets between a server and its clients: they are at the other one
    before long, and the server gives up theirs."""
    with Network() as network:
        far, near = (serve(brokers, "--host", address) for address in network.near)
        addresses = [
            f"{address}:{server.address.rpartition(':')[2]}"
            for address, server in zip(network.near, (far, near), strict=True)
        ]
        running = verify(addresses, before=network.client)
        began = time.monotonic()
        network.cut(network.near[0])
        assert eventually(lambda: near.metrics()[STREAMS] == CLIENTS, 120)
        measured(f"its clients are at the other server after {time.monotonic() - began:.0f} s")
        assert eventually(lambda: far.metrics()[STREAMS] == 0, 120)
        measured(f"the server has given them up after {time.monotonic() - began:.0f} s")
        network.heal(network.near[0])
        load(addresses)
        verdict = all_is_acked(running)
        measured(str(verdict))
        assert verdict.reconnects >= CLIENTS / 2


def test_clients_that_hardly_read_harm_nobody(
    brokers: Brokers, serve: Serve, verify: Verify, measured: Measured, tmp_path: Path
) -> None:
    """One reads a byte a second, one is stopped, until the server has given up both: all others
    get everything meanwhile, and the two do when they read again."""
    server = serve(brokers)
    running = verify([server])
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(server.address))
        slow = Listener("slow", [proxy.address])
        stack.callback(slow.close)
        stopped, lines = stack.enter_context(joined("stopped", server.address, tmp_path))
        assert eventually(lambda: server.metrics()[STREAMS] == CLIENTS + 2, 60)
        proxy.turn(Way.SLOW)
        stopped.send_signal(SIGSTOP)
        began = time.monotonic()
        with ChatClient("talker", [server.address]) as talker:
            talker.connect()
            for number in range(200):
                talker.send(f"{number} {'x' * 4_000}")
        assert eventually(lambda: server.metrics()[STREAMS] == CLIENTS, 90)
        measured(f"both are given up after {time.monotonic() - began:.0f} s")
        load([server.address])
        proxy.turn(Way.OPEN)
        stopped.send_signal(SIGCONT)
        everything = [("talker", number) for number in range(200)]
        assert eventually(lambda: of_talker(slow.seen) == everything, 90)
        assert eventually(lambda: of_talker(seen_in(lines)) == everything, 90)
    verdict = all_is_acked(running)
    measured(str(verdict))
    assert not verdict.reconnects


@contextmanager
def joined(
    name: str, address: str, directory: Path
) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A client in a process of its own, and the file that its messages are in."""
    lines = directory / "lines"
    command = [sys.executable, "-m", "chatsvc.cli", "join", name, "--server", address, "--json"]
    with (
        lines.open("wb") as out,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL
        ) as process,
    ):
        try:
            yield process, lines
        finally:
            process.kill()


def seen_in(lines: Path) -> list[tuple[str, int]]:
    """Senders and numbers of the messages that a client has printed."""
    messages = [
        json.loads(line)
        for line in lines.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    return [(each["user"], int(each["content"].split()[0])) for each in messages]


def of_talker(seen: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [each for each in seen if each[0] == "talker"]


def test_a_thousand_clients_come_back_at_once(
    brokers: Brokers, serve: Serve, measured: Measured
) -> None:
    """Their server is killed in the middle of a conversation: all are at the other one in the same
    moment, and each has every message once, in order."""
    doomed, other = serve(brokers), serve(brokers)
    program = Path(__file__).with_name("stampede.py")
    addresses = f"{doomed.address},{other.address}"
    command = [sys.executable, str(program), addresses, str(CROWD), "100", "150"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            assert doomed.metrics()[STREAMS] == CROWD
            with ChatClient("talker", [other.address]) as talker:
                talker.connect()
                for number in range(100):
                    talker.send(f"{number} {time.time()}")
                    if number == 30:
                        doomed.signal(SIGKILL)
                    time.sleep(0.05)  # the pace of the conversation
            result = verdict(process)
        finally:
            process.kill()
    measured(str(result))
    assert (result["lost"], result["complete"]) == (CROWD, CROWD)
    assert (result["twice"], result["disorder"]) == (0, 0)
