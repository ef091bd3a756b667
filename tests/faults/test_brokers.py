"""Brokers that fail in the middle of a conversation: a pause, and nothing else."""

import time
from collections.abc import Callable

import pytest
from verifying import Verdict, VerifyProcess

from chatsvc.client import send_once

from .conftest import Verify
from .roles import controller, follower, leader, wait_until_in_sync
from brokers import Brokers
from conftest import Measured, Serve
from serving import ServeProcess

pytestmark = pytest.mark.kafka

AFTERWARDS = 2
"""Seconds of load after a fault, which has to be seen to be over."""


def load(servers: list[ServeProcess]) -> None:
    """Lets the load go on for a while, once each server has taken a message of ours."""
    for server in servers:
        send_once("probe", "after the fault", [server.address], timeout=60)
    time.sleep(AFTERWARDS)


@pytest.fixture
def servers(brokers: Brokers, serve: Serve, topic_options: list[str]) -> list[ServeProcess]:
    """Two servers over topics of which each broker has everything."""
    two = [serve(brokers), serve(brokers)]
    wait_until_in_sync(brokers, topic_options[1], topic_options[3])
    return two


def all_is_acked(verify: VerifyProcess) -> Verdict:
    """The verdict; besides, each message was acked in the end."""
    verdict = verify.finish()
    assert verdict.acked == verdict.sent, verdict.said
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
    running = verify(servers)
    victim = role(brokers, topic_options[1])
    getattr(brokers, fault)(victim)
    load(servers)
    brokers.restart(victim)
    wait_until_in_sync(brokers, topic_options[1])
    load(servers)
    measured(str(all_is_acked(running)))


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
    running = verify(servers)
    victim = role(brokers, topic_options[1])
    brokers.pause(victim)
    time.sleep(seconds)  # the fault itself
    brokers.resume(victim)
    brokers.wait_until_registered()
    wait_until_in_sync(brokers, topic_options[1])
    load(servers)
    measured(str(all_is_acked(running)))


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
    measured(str(all_is_acked(running)))


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
    measured(str(all_is_acked(running)))
