"""Brokers that fail in the middle of a conversation: a pause, and nothing else."""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from chatsvc.cli.main import main

from .calls import Chat, caught_up, contents_until
from .conftest import Verify, all_is_acked, load
from .machine import full, small_disk
from .roles import controller, follower, leader, wait_until_in_sync
from brokers import Brokers
from conftest import Measured, Serve
from serving import ServeProcess
from verifying import Verdict, VerifyProcess
from waiting import eventually

MOVED_ROOM = "growing"
"""By its hash it is in partition 1 of two, and 5 of six."""
LED_ROOM = "led"
"""By its hash it is in partition 0 of two, whose leader `leader` names."""

pytestmark = pytest.mark.kafka


@pytest.fixture
def servers(brokers: Brokers, serve: Serve, topic_options: list[str]) -> list[ServeProcess]:
    """Two servers over topics of which each broker has everything."""
    two = [serve(brokers), serve(brokers)]
    wait_until_in_sync(brokers, topic_options[1], topic_options[3])
    return two


def only_a_pause(verify: VerifyProcess) -> Verdict:
    """The verdict; besides, each message was acked in the end and no client had to move."""
    verdict = all_is_acked(verify)
    assert not verdict.reconnects, verdict.said
    return verdict


Role = Callable[[Brokers, str], int]


@pytest.mark.parametrize("role", [leader, follower, controller], ids=lambda role: role.__name__)
@pytest.mark.parametrize("fault", ["terminate", "kill"])
def test_a_broker_that_ends_costs_a_pause(
    brokers: Brokers,
    servers: list[ServeProcess],
    topic_options: list[str],
    verify: Verify,
    measured: Measured,
    fault: str,
    role: Role,
) -> None:
    """SIGTERM or SIGKILL of a broker, whatever it is for, and its return: every message is acked
    and delivered, and the broker is used again."""
    running = verify(servers, "--room", LED_ROOM)
    victim = role(brokers, topic_options[1])
    getattr(brokers, fault)(victim)
    load(servers)
    brokers.restart(victim)
    wait_until_in_sync(brokers, topic_options[1])
    load(servers)
    measured(str(only_a_pause(running)))


@pytest.mark.parametrize(("seconds", "role"), [(5, leader), (30, leader)], ids=["5s", "30s"])
def test_a_broker_that_hangs_costs_a_pause(
    brokers: Brokers,
    servers: list[ServeProcess],
    topic_options: list[str],
    verify: Verify,
    measured: Measured,
    seconds: int,
    role: Role,
) -> None:
    """SIGSTOP of a leader, whose connections stay open, and SIGCONT: the same."""
    running = verify(servers, "--room", LED_ROOM)
    victim = role(brokers, topic_options[1])
    brokers.pause(victim)
    time.sleep(seconds)  # the fault itself
    brokers.resume(victim)
    brokers.wait_until_registered()
    wait_until_in_sync(brokers, topic_options[1])
    load(servers)
    measured(str(only_a_pause(running)))


def test_a_rolling_restart_costs_pauses(
    brokers: Brokers,
    servers: list[ServeProcess],
    topic_options: list[str],
    verify: Verify,
    measured: Measured,
) -> None:
    """Each broker ends and comes back, one after the other, as an upgrade does it."""
    running = verify(servers)
    for broker in range(3):
        brokers.terminate(broker)
        brokers.restart(broker)
        wait_until_in_sync(brokers, topic_options[1], topic_options[3])
    load(servers)
    measured(str(only_a_pause(running)))


def test_all_brokers_at_once_cost_a_pause(
    brokers: Brokers,
    servers: list[ServeProcess],
    topic_options: list[str],
    verify: Verify,
    measured: Measured,
) -> None:
    """SIGKILL of all three: what was acked is in their logs, and the rest is sent again."""
    running = verify(servers)
    for broker in range(3):
        brokers.kill(broker)
    brokers.start()
    load(servers)
    measured(str(only_a_pause(running)))


def test_without_enough_brokers_sending_is_refused_and_reading_goes_on(
    brokers: Brokers,
    servers: list[ServeProcess],
    topic_options: list[str],
    verify: Verify,
    measured: Measured,
) -> None:
    """With two of three down, each attempt to send is answered in its time, with what to do; who
    joins or comes back reads what is there. When they are back all goes on."""
    running = verify(servers, "--send-timeout", "5")
    with Chat(servers[0].address) as chat, Chat(servers[1].address) as other:
        _, _, cursor = caught_up(chat.subscribe())
        chat.publish(0, 50)
        for each in (chat, other):  # an ack does not say that either server has read it yet
            assert contents_until(each.subscribe(cursor), "49")
        brokers.kill(1)
        brokers.kill(2)
        with ThreadPoolExecutor(4) as pool:
            attempts = [
                pool.submit(each.refusal, "hello?", f"attempt-{number}", room="unsure", timeout=5)
                for number, each in enumerate((chat, other, chat, other))
            ]
        for attempt in attempts:
            assert attempt.result().code() is grpc.StatusCode.UNAVAILABLE
            assert "send it again with the same message_id" in attempt.result().details()
        assert all(server.ask("/readyz")[0] == 200 for server in servers)
        for each in (chat, other):
            assert caught_up(each.subscribe(cursor))[:2] == (list(range(50)), [])
            assert caught_up(each.subscribe())[:2] == ([], [])
        brokers.start()
        wait_until_in_sync(brokers, topic_options[1])
        load(servers)
    verdict = running.finish()
    measured(str(verdict))
    assert not verdict.reconnects


@pytest.mark.root
def test_a_full_disk_costs_a_pause(
    serve: Serve, topic_options: list[str], verify: Verify, measured: Measured, log_directory: Path
) -> None:
    """The leader of a partition cannot write any more, ends, and comes back when there is room."""
    with ExitStack() as stack:
        kafka = log_directory / "full"
        disk = kafka / "broker-1" / "data"
        stack.enter_context(small_disk(disk, mebibytes=8))
        brokers = stack.enter_context(Brokers(kafka))
        servers = [serve(brokers), serve(brokers)]
        stack.callback(lambda: [server.close() for server in servers])
        wait_until_in_sync(brokers, topic_options[1], topic_options[3])
        running = verify(servers)
        with full(disk):
            assert eventually(lambda: not brokers.running(0), 60)
            load(servers)
        brokers.restart(0)
        wait_until_in_sync(brokers, topic_options[1])
        load(servers)
        measured(str(only_a_pause(running)))


def test_partitions_added_under_load_are_read(
    brokers: Brokers,
    servers: list[ServeProcess],
    topic_options: list[str],
    verify: Verify,
    measured: Measured,
) -> None:
    """From 2 partitions to 6: a room moves to a new one, which is written to, and read from its
    first record."""
    running = verify(servers, "--writers", "12", "--publish", "rpc", "--room", MOVED_ROOM)
    options = ["--partitions", "6", "--brokers", brokers.bootstrap, *topic_options]
    grown = CliRunner().invoke(main, ["topics", "grow", *options])
    assert grown.exit_code == 0, grown.output
    new = [TopicPartition(topic_options[1], each) for each in range(2, 6)]
    admin = AdminClient({"bootstrap.servers": brokers.bootstrap})
    assert eventually(lambda: records(admin, new) > 100, 60), "the new partitions are not used"
    load(servers)
    measured(f"{records(admin, new)} records in new partitions; {only_a_pause(running)}")


def records(admin: AdminClient, partitions: list[TopicPartition]) -> int:
    """How many records there are in some partitions; none while one of them has no leader yet."""
    ends = admin.list_offsets(dict.fromkeys(partitions, OffsetSpec.latest()))
    with contextlib.suppress(KafkaException):
        return sum(end.result(60).offset for end in ends.values())
    return 0
