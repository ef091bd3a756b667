"""The loss of a broker in the middle of a conversation: a pause, and nothing else."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from confluent_kafka.admin import AdminClient

from chatsvc.pb import chat_pb2, chat_pb2_grpc

from brokers import Brokers
from conftest import Measured, Serve
from ledger import Ledger, Listener
from waiting import eventually


@contextmanager
def conversation(ledger: Ledger) -> Iterator[Callable[[], float]]:
    """Lets every listener send all the time; gives a function that tells the longest pause
    between two confirmed messages of one sender so far, in seconds."""
    stop = threading.Event()
    pauses: list[float] = [0.0]
    failures: list[BaseException] = []

    def talk(listener: Listener) -> None:
        number = 0
        try:
            while not stop.wait(0.02):
                began = time.monotonic()
                ledger.send(listener.client, [number])
                pauses.append(time.monotonic() - began)
                number += 1
        except BaseException as error:  # shown by the test's own thread
            failures.append(error)

    threads = [
        threading.Thread(target=talk, args=(each,), name=f"talk-{each.client.user}")
        for each in ledger.listeners
    ]
    for thread in threads:
        thread.start()
    try:
        yield lambda: max(pauses)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def _confirmed_more(ledger: Ledger, messages: int) -> bool:
    target = len(ledger.acked) + messages
    return eventually(lambda: len(ledger.acked) >= target, 60)


def _in_sync(brokers: Brokers, topic: str, node_id: int) -> bool:
    """Whether a broker has all of a topic's partitions in sync."""
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions.values()
    return all(node_id in partition.isrs for partition in partitions)


@pytest.mark.kafka
@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_lost_broker_costs_a_pause_and_no_message(
    brokers: Brokers, serve: Serve, topic_options: list[str], measured: Measured, fault: str
) -> None:
    """kill -9 or SIGSTOP of a broker: sending goes on, nobody misses a confirmed message or sees
    one twice, and the broker is used again when it is back."""
    addresses = [serve(brokers).address, serve(brokers).address]
    victim = 0
    with Ledger() as ledger:
        for number, address in enumerate(addresses):
            ledger.listen((f"user-{number}-{each}" for each in range(3)), [address])
        with conversation(ledger) as longest_pause:
            assert _confirmed_more(ledger, 100)
            getattr(brokers, fault)(victim)
            # Twice what is sent in the time that the cluster takes to notice.
            assert _confirmed_more(ledger, 300), "sending does not go on"
            measured(
                f"longest pause of a sender after {fault} of a broker: {longest_pause():.1f} s"
            )
            if fault == "kill":
                brokers.restart(victim)
            else:
                brokers.resume(victim)
                brokers.wait_until_registered()
            assert _confirmed_more(ledger, 100)
            assert eventually(lambda: _in_sync(brokers, topic_options[1], victim + 1), 60)
        ledger.check()
        assert not any(listener.lost for listener in ledger.listeners)


@pytest.mark.kafka
def test_sending_without_enough_brokers_is_refused_clearly(brokers: Brokers, serve: Serve) -> None:
    """With two of three brokers down a sender is told that it may send again, and why."""
    server = serve(brokers)
    with Ledger() as ledger:
        ledger.listen(["bob"], [server.address])
        ledger.send(ledger.listeners[0].client, [0])
        brokers.kill(1)
        brokers.kill(2)
        ledger.tried.add(("unsure", 0))
        refused = _refusal(server.address)
        brokers.start()
        ledger.send(ledger.listeners[0].client, [1])
        ledger.check()
    assert "same message_id" in refused


def _refusal(address: str) -> str:
    """What a client with a short deadline is told; its message may be written all the same."""
    with grpc.insecure_channel(address) as channel:
        stub = chat_pb2_grpc.BroadcastStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.BroadcastMessage(chat_pb2.Message(id="unsure", content="0 x"), timeout=6)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(refused.value.details())
