"""Every server delivers everything, to everybody, once and in order."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL

import pytest
from click.testing import CliRunner

from chatsvc.cli.main import main
from chatsvc.client import ChatClient

from brokers import Brokers
from conftest import Measured, Serve
from ledger import Ledger
from serving import ServeProcess
from waiting import eventually


@pytest.mark.kafka
def test_two_servers_deliver_everything_to_everybody(brokers: Brokers, serve: Serve) -> None:
    """Ten clients on each of two servers receive 1,000 messages once each, in order."""
    addresses = [serve(brokers).address, serve(brokers).address]
    with Ledger() as ledger:
        for number, address in enumerate(addresses):
            ledger.listen((f"user-{number}-{each}" for each in range(10)), [address])
        with ThreadPoolExecutor(20) as pool:
            senders = [listener.client for listener in ledger.listeners]
            list(pool.map(lambda client: ledger.send(client, range(50)), senders))
        assert len(ledger.acked) == 1_000
        ledger.check()


def test_the_embedded_broker_delivers_everything(serve: Serve) -> None:
    """Ten clients of a server without Kafka receive 1,000 messages once each, in order."""
    address = serve(None).address
    with Ledger() as ledger:
        ledger.listen((f"user-{each}" for each in range(10)), [address])
        with ThreadPoolExecutor(10) as pool:
            senders = [listener.client for listener in ledger.listeners]
            list(pool.map(lambda client: ledger.send(client, range(100)), senders))
        assert len(ledger.acked) == 1_000
        ledger.check()


@pytest.mark.kafka
def test_partitions_added_under_traffic_are_read(
    brokers: Brokers, serve: Serve, topic_options: list[str]
) -> None:
    """Growing from 2 to 6 partitions while 12 users send loses nothing, and all six are used."""
    addresses = [serve(brokers).address, serve(brokers).address]
    grow = ["topics", "grow", "--partitions", "6", "--brokers", brokers.bootstrap, *topic_options]
    with Ledger() as ledger:
        for number, address in enumerate(addresses):
            ledger.listen((f"user-{number}-{each}" for each in range(6)), [address])
        growing = time.monotonic() + 1
        with ThreadPoolExecutor(12) as pool:
            # Long enough for the producers to learn of the new partitions and use them.
            until = growing + 14
            for listener in ledger.listeners:
                pool.submit(_send_until, ledger, listener.client, until).add_done_callback(
                    lambda future: future.result()
                )
            assert eventually(lambda: time.monotonic() > growing)
            grown = CliRunner().invoke(main, grow)
            assert grown.exit_code == 0, grown.output
        ledger.check()
    used = CliRunner().invoke(
        main, ["topics", "describe", "--brokers", brokers.bootstrap, *topic_options]
    )
    assert "6 partitions" in used.output


def _send_until(ledger: Ledger, client: ChatClient, until: float) -> None:
    for number in itertools.count():
        if time.monotonic() > until:
            return
        ledger.send(client, [number])
        time.sleep(0.05)  # the pace of the traffic, not a wait


@pytest.mark.kafka
def test_clients_of_a_killed_server_go_on_at_another(
    brokers: Brokers, serve: Serve, measured: Measured
) -> None:
    """After kill -9 of a server its clients are at the other one, and hear and are heard again;
    the other drops it and its users."""
    doomed, other = serve(brokers), serve(brokers)
    with Ledger() as ledger:
        ledger.listen((f"moving-{each}" for each in range(5)), [doomed.address, other.address])
        ledger.listen(["staying"], [other.address])
        assert eventually(lambda: _known(other) == (2, 6)), "registry"
        killed_at = time.monotonic()
        doomed.signal(SIGKILL)
        moving = ledger.listeners[:5]
        assert eventually(lambda: all(len(each.connected) == 2 for each in moving), 30)
        measured(f"clients live again after kill -9 of their server: {_since(killed_at)}")
        for listener in ledger.listeners:
            ledger.send(listener.client, range(5))
        ledger.check()
        assert eventually(lambda: _known(other) == (1, 6), 30), "registry"
        measured(f"registry drops the killed server: {_since(killed_at)}")


def _known(server: ServeProcess) -> tuple[float, float]:
    """How many servers and users a server knows of."""
    metrics = server.metrics()
    return metrics["chatsvc_servers_known"], metrics["chatsvc_users_known"]


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"
