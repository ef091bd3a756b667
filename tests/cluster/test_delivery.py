"""Every server delivers everything, to everybody, once and in order."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from brokers import Brokers
from conftest import Serve
from ledger import Ledger


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
