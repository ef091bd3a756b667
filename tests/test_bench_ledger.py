"""The bench's accounts: what was lost, came twice or came late is found, and nothing else."""

import json
import random

import pytest

from chatsvc.bench.ledger import Ledger, lost


def given(*arrivals: tuple[int, int]) -> Ledger:
    """The ledger of a receiver that was given these: sender and sequence number."""
    ledger = Ledger()
    for sender, sequence in arrivals:
        ledger.take(sender, sequence)
    return ledger


def counts(ledger: Ledger) -> tuple[int, int, int]:
    return ledger.delivered, ledger.duplicated, ledger.out_of_order


def missing(ledger: Ledger, sent: int, *unacked: int, sender: int = 0) -> int:
    state = json.loads(json.dumps(ledger.state()))  # as the parent process gets it
    return lost(state, sender, sent, unacked)


def test_all_in_order_is_well() -> None:
    """Two senders whose messages alternate."""
    ledger = given((0, 0), (1, 0), (0, 1), (1, 1))
    assert counts(ledger) == (4, 0, 0)
    assert missing(ledger, 2) == missing(ledger, 2, sender=1) == 0


@pytest.mark.parametrize("hole", [0, 1, 2, 3])
def test_a_lost_message_is_found(hole: int) -> None:
    """The first, one in the middle, the last."""
    ledger = given(*((0, number) for number in range(4) if number != hole))
    assert missing(ledger, 4) == 1
    assert counts(ledger) == (3, 0, 0)


def test_nothing_given_is_all_lost() -> None:
    """A receiver that was given nothing of a sender."""
    assert missing(given((1, 0)), 5) == 5


def test_a_message_without_an_ack_is_not_lost() -> None:
    """It may arrive or not."""
    assert missing(given((0, 0), (0, 2)), 5, 1, 4) == 1
    assert missing(given((0, 0), (0, 1)), 2, 1) == 0


def test_a_second_copy_is_found() -> None:
    """At once, and of an older message."""
    assert counts(given((0, 0), (0, 0), (0, 1), (0, 2), (0, 0))) == (3, 2, 0)


def test_a_late_message_is_out_of_order_and_not_lost() -> None:
    """It is delivered, and a copy of it is one."""
    ledger = given((0, 0), (0, 4), (0, 2), (0, 2))
    assert counts(ledger) == (3, 1, 1)
    assert missing(ledger, 5) == 2


def test_senders_do_not_mix() -> None:
    """One's gap is not filled by another's message of the same number."""
    ledger = given((0, 1), (1, 0))
    assert counts(ledger) == (2, 0, 0)
    assert missing(ledger, 2) == 1
    assert missing(ledger, 1, sender=1) == 0


def test_any_order_adds_up() -> None:
    """Whatever is drawn, first copies and losses are together what was sent."""
    draw = random.Random(4711)
    for _ in range(200):
        arrivals = [draw.randrange(30) for _ in range(draw.randrange(60))]
        ledger = given(*((0, number) for number in arrivals))
        assert ledger.delivered == len(set(arrivals))
        assert ledger.duplicated == len(arrivals) - len(set(arrivals))
        assert missing(ledger, 30) == 30 - len(set(arrivals))
