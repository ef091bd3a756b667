"""Servers that fail in the middle of a conversation: their clients go on elsewhere."""

import os
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals

import grpc
import pytest

from chatsvc.client import ChatClient, Event, Received
from chatsvc.errors import ChatError, ConnectionFailed

import resources
from .calls import Chat
from .conftest import CLIENTS, STREAMS, Verify, all_is_acked, load
from .machine import faketime
from .roles import wait_until_in_sync
from brokers import Brokers
from conftest import Measured, Serve
from serving import ServeProcess
from waiting import eventually

pytestmark = pytest.mark.kafka


def known(server: ServeProcess) -> tuple[float, float]:
    """How many servers and users a server knows of."""
    metrics = server.metrics()
    return metrics["chatsvc_servers_known"], metrics["chatsvc_users_known"]


@pytest.mark.parametrize("number", [SIGKILL, SIGTERM], ids=lambda number: number.name)
def test_a_server_that_ends_costs_nothing(
    brokers: Brokers, serve: Serve, verify: Verify, measured: Measured, number: Signals
) -> None:
    """Its clients go on at the other one where they were, which forgets it."""
    doomed, other = serve(brokers), serve(brokers)
    running = verify([doomed, other])
    assert eventually(lambda: known(other) == (2, CLIENTS), 60)
    assert eventually(lambda: doomed.metrics()["chatsvc_messages_delivered_total"] > 500, 60)
    doomed.signal(number)
    assert doomed.wait(60) == (0 if number is SIGTERM else -SIGKILL)
    load([other])
    assert eventually(lambda: known(other) == (1, CLIENTS), 60)
    verdict = all_is_acked(running)
    measured(str(verdict))
    assert verdict.reconnects >= CLIENTS / 2


def test_a_server_that_hangs_is_left(
    brokers: Brokers, serve: Serve, verify: Verify, measured: Measured
) -> None:
    """SIGSTOP, with which its connections stay open: its clients move to the other one. When it
    runs again it is as good as before."""
    hung, other = serve(brokers), serve(brokers)
    running = verify([hung, other])
    began = time.monotonic()
    hung.signal(SIGSTOP)
    assert eventually(lambda: other.metrics()[STREAMS] == CLIENTS, 120)
    measured(f"its clients are at the other server after {time.monotonic() - began:.0f} s")
    hung.signal(SIGCONT)
    load([hung, other])
    assert eventually(lambda: known(hung) == known(other) == (2, CLIENTS), 60)
    verdict = all_is_acked(running)
    measured(str(verdict))
    assert verdict.reconnects >= CLIENTS / 2


def test_a_worker_that_is_killed_costs_nothing(
    brokers: Brokers, serve: Serve, verify: Verify, measured: Measured
) -> None:
    """Its clients go on at the other worker or at the one that takes its place."""
    server = serve(brokers, "--workers", "2")
    running = verify([server])
    killed = min(resources.children(server.pid, "chatsvc.worker"))
    os.kill(killed, SIGKILL)
    workers = [f'chatsvc_worker_up{{worker="{each}"}}' for each in (0, 1)]
    assert eventually(lambda: killed not in resources.children(server.pid, "chatsvc.worker"))
    assert eventually(lambda: all(server.metrics()[each] == 1 for each in workers), 60)
    load([server])
    measured(str(all_is_acked(running)))


def test_a_clock_that_jumps_changes_nothing(
    brokers: Brokers, serve: Serve, verify: Verify, measured: Measured, tmp_path: Path
) -> None:
    """The clock of one of two servers leaps two hours ahead: both still know each other and all
    users, nothing of the load is lost, and messages have Kafka's time."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    wrong, right = serve(brokers, env=faketime(clock)), serve(brokers)
    running = verify([wrong, right])
    assert eventually(lambda: known(wrong) == known(right) == (2, CLIENTS), 60)
    clock.write_text("+2h")
    load([wrong, right])
    with Chat(wrong.address) as chat:
        stream = chat.subscribe()
        next(stream)
        chat.send("what time is it?", "question")
        message = next(each for delivery in stream for each in delivery.messages)
        assert abs(message.timestamp.ToSeconds() - time.time()) < 3_600
        stream.cancel()
    load([wrong, right])
    assert known(wrong)[0] == known(right)[0] == 2
    measured(str(all_is_acked(running)))


def test_a_server_without_file_descriptors_keeps_its_clients(
    brokers: Brokers, serve: Serve, verify: Verify, measured: Measured
) -> None:
    """When it can accept no more connections, who comes is told so and is at another server; those
    that it has notice nothing. It takes new ones as soon as it can."""
    short, other = serve(brokers), serve(brokers)
    running = verify([short, other])
    enough = resource.prlimit(short.pid, resource.RLIMIT_NOFILE)
    few = resources.of(short.pid).files + 4
    resource.prlimit(short.pid, resource.RLIMIT_NOFILE, (few, enough[1]))
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(ChatClient(f"crowd-{each}", [short.address])) for each in range(12)
        ]
        with ThreadPoolExecutor(12) as pool:
            refused = [each for each in pool.map(refusal, crowd) if each]
        assert refused
        assert all("no answer in time" in each for each in refused)
        elsewhere = stack.enter_context(ChatClient("ann", [short.address, other.address]))
        assert elsewhere.connect().server == other.address
        load([other])
        resource.prlimit(short.pid, resource.RLIMIT_NOFILE, enough)
        load([short])
    verdict = all_is_acked(running)
    measured(f"{len(refused)} of 12 clients refused; {verdict}")
    assert not verdict.reconnects


def refusal(client: ChatClient) -> str | None:
    """Why a client cannot connect; None if it has."""
    try:
        client.connect()
    except ConnectionFailed as error:
        return str(error)
    return None


def test_a_full_queue_is_told_and_emptied(
    brokers: Brokers, serve: Serve, topic_options: list[str], measured: Measured
) -> None:
    """While all brokers hang, streams fill what a server has room for; then it refuses what comes
    in calls and reads the streams no further. When Kafka is back all of it is delivered."""
    server = serve(brokers)
    wait_until_in_sync(brokers, topic_options[1], topic_options[3])
    content = 4_000 * "\N{HANGUL SYLLABLE HAN}"
    posted = 3_000
    with ExitStack() as stack:
        inbox = Inbox()
        reader = stack.enter_context(ChatClient("ann", [server.address], on_events=inbox.take))
        reader.connect()
        writers = [stack.enter_context(ChatClient(f"w{i}", [server.address])) for i in range(2)]
        for writer in writers:
            writer.connect()
        chat = stack.enter_context(Chat(server.address))
        for broker in range(3):
            brokers.pause(broker)
        outcomes: list[ChatError | None] = []
        for number in range(posted):
            writers[number % 2].post(
                f"{number} {content}", on_outcome=lambda _, error: outcomes.append(error)
            )
        full = 'chatsvc_produce_errors_total{code="_QUEUE_FULL"}'
        assert eventually(lambda: server.metrics().get(full), 60)
        refused = chat.refusal(content, "refused")
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details().startswith("too many messages wait for Kafka; nothing was written")
        began = time.monotonic()
        for broker in range(3):
            brokers.resume(broker)
        assert eventually(lambda: len(outcomes) == posted, 90)
        measured(f"all confirmed {time.monotonic() - began:.1f} s after Kafka is back")
        assert outcomes == posted * [None]
        chat.send("last", "last")
        # Its partition may be ahead of theirs.
        assert eventually(lambda: len(inbox.seen) > posted, 60)
    for number, writer in enumerate(("w0", "w1")):
        seen = [int(word) for user, word in inbox.seen if user == writer]
        assert seen == list(range(number, posted, 2))
    assert [word for user, word in inbox.seen if user == "bob"] == ["last"]


class Inbox:
    """The senders and first words of what a client is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def take(self, events: Sequence[Event]) -> None:
        self.seen += [
            (each.user, each.content.split()[0]) for each in events if isinstance(each, Received)
        ]
