"""An upgrade under load: every server, or every broker, is restarted in turn behind nginx."""

import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from signal import SIGTERM

import pytest

from chatsvc.client import ChatClient
from chatsvc.errors import ChatError, SendFailed

from .conftest import Behind
from brokers import Brokers, free_ports
from conftest import Measured, Serve
from faults.roles import wait_until_in_sync
from serving import ServeProcess
from waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.root, pytest.mark.timeout(400)]

CLIENTS = 300
PROCESSES = 2
WRITERS = 4
BURST = 10
BURSTS = 5
"""Messages of a writer at once, and how often a second: 200 msg/s. One by one they would be 60,000
frames a second for all clients, which two cores cannot do beside the brokers."""
ROOM = "rolling"
PROGRAM = Path(__file__).with_name("audience.py")
WAIT = 120
BEFORE_AND_AFTER = 2
"""Seconds of load."""

Readers = list["subprocess.Popen[str]"]


class Site:
    """Three servers, which can be restarted at their ports, and nginx before them."""

    def __init__(self, start: Callable[[int], ServeProcess], behind: Behind) -> None:
        self._start = start
        # Not such as the system chooses: they have to be free when a server comes back.
        self._ports = free_ports(3)
        self.servers = [start(port) for port in self._ports]
        self.nginx = behind([server.address for server in self.servers])

    def restart(self, number: int) -> None:
        """Ends a server and starts one in its place, as an upgrade does it."""
        self.servers[number].signal(SIGTERM)
        assert self.servers[number].wait(60) == 0
        self.servers[number] = server = self._start(self._ports[number])
        assert eventually(lambda: server.ask("/readyz")[0] == 200, 60)


@pytest.fixture
def site(brokers: Brokers, serve: Serve, behind: Behind, topic_options: list[str]) -> Site:
    made = Site(lambda port: serve(brokers, "--port", str(port)), behind)
    wait_until_in_sync(brokers, topic_options[1], topic_options[3])
    return made


@contextmanager
def audience(address: str) -> Iterator[Readers]:
    """Clients that are all connected, in some processes."""
    with ExitStack() as stack:
        readers: Readers = []
        for number in range(PROCESSES):
            command = [sys.executable, str(PROGRAM), address, ROOM, str(number)]
            command += [str(CLIENTS // PROCESSES), str(WAIT)]
            reader = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            readers.append(stack.enter_context(reader))
            stack.callback(reader.kill)
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "connected\n"
        yield readers


class Traffic:
    """Writers that send until `stop`, in a thread of its own."""

    def __init__(self, address: str) -> None:
        self._clients = [ChatClient(f"writer-{each}", [address], ["x"]) for each in range(WRITERS)]
        self._stopping = threading.Event()
        self.sent = 0
        # Of all messages; writers' threads append.
        self._outcomes: list[tuple[float, ChatError | None]] = []
        self._thread = threading.Thread(target=self._run, name="traffic")

    def __enter__(self) -> "Traffic":
        for client in self._clients:
            client.connect()
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        for client in self._clients:
            client.close()
        self._thread.join()

    def _run(self) -> None:
        for burst in itertools.count():
            due = self._began + burst / BURSTS
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                return
            for writer, client in enumerate(self._clients):
                for number in range(burst * BURST, (burst + 1) * BURST):
                    self.sent += 1
                    client.post(
                        "x" * 100,
                        room=ROOM,
                        message_id=f"rolling-{writer}-{number}",
                        on_outcome=self._note,
                    )

    def _note(self, message_id: str, error: ChatError | None) -> None:
        self._outcomes.append((time.monotonic(), error))

    def stop(self) -> str:
        """Sends no more and waits for all outcomes, which have to be acks; tells them."""
        self._stopping.set()
        self._thread.join()
        rate = self.sent / (time.monotonic() - self._began)
        eventually(lambda: len(self._outcomes) == self.sent, WAIT)
        outcomes = list(self._outcomes)
        errors = [error for _, error in outcomes if error is not None]
        refused = sum(isinstance(each, SendFailed) and not each.maybe_written for each in errors)
        unknown = self.sent - len(outcomes) + len(errors) - refused
        acks = [self._began, *(at for at, error in outcomes if error is None)]
        pause = max(later - earlier for earlier, later in pairwise(sorted(acks)))
        told = (
            f"{rate:.0f} msg/s, {len(acks) - 1} acked, {refused} refused, {unknown} unknown, "
            f"{pause:.2f} s without an ack"
        )
        assert len(acks) - 1 == self.sent, told
        return told


def check(readers: Readers, messages: int) -> str:
    """Asserts that each client was given each message once, in the order of its writer."""
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write(f"{messages}\n")
        reader.stdin.flush()
    said = [json.loads(reader.communicate(timeout=WAIT + 60)[0]) for reader in readers]
    seen, lost, twice, disorder, reconnects = (
        sum(each[key] for each in said)
        for key in ("seen", "lost", "twice", "disorder", "reconnects")
    )
    away = sorted(longest for each in said for longest in each["longest"])
    told = (
        f"{CLIENTS} clients: {seen} seen, {lost} lost, {twice} twice, {disorder} out of order, "
        f"{reconnects} reconnects; longest time without a delivery P50 "
        f"{statistics.median(away):.2f}, P95 {away[int(0.95 * len(away))]:.2f}, "
        f"max {away[-1]:.2f} s"
    )
    assert (seen, lost, twice, disorder) == (CLIENTS * messages, 0, 0, 0), told
    return told


def restart_servers(site: Site, brokers: Brokers, topics: list[str]) -> None:
    for number in range(3):
        site.restart(number)


def restart_brokers(site: Site, brokers: Brokers, topics: list[str]) -> None:
    for number in range(3):
        brokers.terminate(number)
        brokers.restart(number)
        wait_until_in_sync(brokers, *topics)


@pytest.mark.parametrize("restart", [restart_servers, restart_brokers], ids=["servers", "brokers"])
def test_a_rolling_restart_loses_nothing(
    site: Site,
    brokers: Brokers,
    topic_options: list[str],
    measured: Measured,
    restart: Callable[[Site, Brokers, list[str]], None],
) -> None:
    """Each ends and is back before the next one does, under 200 msg/s and 300 clients: all messages
    are acked, and every client is given every one once, in the order of its writer. nginx always
    has a server for who comes."""
    address = site.nginx.address
    with audience(address) as readers, Traffic(address) as traffic:
        time.sleep(BEFORE_AND_AFTER)
        began = time.monotonic()
        restart(site, brokers, [topic_options[1], topic_options[3]])
        measured(f"all restarted after {time.monotonic() - began:.0f} s")
        time.sleep(BEFORE_AND_AFTER)
        measured(traffic.stop())
        measured(check(readers, traffic.sent))
    assert "no live upstreams" not in site.nginx.log
