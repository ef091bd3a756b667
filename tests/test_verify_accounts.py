"""The checker's accounts while a run goes on: counts, and how long nothing came."""

from datetime import UTC, datetime

from chatsvc.client import Received
from chatsvc.verify.accounts import Accounts, Fate, Pause, Pauses
from chatsvc.verify.plan import Mark, Plan

AT = datetime(2026, 1, 1, tzinfo=UTC)


def accounts(readers: int = 1) -> Accounts:
    return Accounts(Plan(servers=("a:1",), writers=2, readers=readers, seed=1))


def received(plan: Plan, mark: Mark, at: datetime = AT) -> Received:
    """A message as its reader should be given it."""
    user, content = plan.writer(mark.writer), plan.content(mark)
    return Received(user, content, at, plan.message_id(mark), False, plan.room_name)


def give(accounts: Accounts, mark: Mark, now: float, reader: int = 0) -> None:
    accounts.give(reader, received(accounts.plan, mark), now)


def test_each_message_has_one_outcome() -> None:
    """Those that were not taken are not sent."""
    kept = accounts()
    marks = [kept.send(writer, 0) for writer in (0, 1, 0, 1, 0)]
    assert marks == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert (kept.sent, kept.settled) == (5, 0)
    for mark, fate in zip(
        marks, (Fate.ACKED, Fate.REFUSED, Fate.UNKNOWN, Fate.UNSENT), strict=False
    ):
        kept.settle(mark, fate, 1)
    assert (kept.sent, kept.settled) == (4, 3)
    assert [kept.counts[fate] for fate in Fate] == [1, 1, 1, 1, 1]


def test_what_is_acknowledged_is_missing_until_it_is_seen() -> None:
    """At each reader, whichever comes first."""
    kept = accounts(readers=2)
    early, late, refused = (kept.send(0, 0) for _ in range(3))
    give(kept, early, 1)
    kept.settle(early, Fate.ACKED, 2)
    assert kept.missing == 1
    kept.settle(late, Fate.ACKED, 2)
    kept.settle(refused, Fate.REFUSED, 2)
    assert kept.missing == 3
    give(kept, late, 3)
    give(kept, late, 3)
    assert (kept.missing, kept.seen) == (2, 2)
    for mark in (early, late):
        give(kept, mark, 4, reader=1)
    assert (kept.missing, kept.seen) == (0, 4)


def test_the_longest_pause_is_kept() -> None:
    """With the moment at which it began; an end without a beginning is none."""
    pauses = Pauses()
    pauses.end(100)
    for began, ended in ((1, 2), (3, 7), (8, 10)):
        pauses.begin(began)
        pauses.begin(began + 0.5)
        pauses.end(ended)
    assert pauses.longest == Pause(4, 3)


def test_acks_pause_from_one_to_the_next() -> None:
    """Whoever's they are; other outcomes are none."""
    kept = accounts()
    for number, (writer, ack) in enumerate([(0, 1.0), (1, 2.0), (0, 6.0), (1, 7.0)]):
        mark = kept.send(writer, 0.0)
        if number == 2:
            kept.settle(kept.send(1, 3.0), Fate.UNKNOWN, 4.0)
        kept.settle(mark, Fate.ACKED, ack)
    kept.end_sending(8.0)
    kept.close(100.0)
    assert kept.ack_pauses.longest == Pause(4.0, 2.0)


def test_acks_pause_until_the_last_outcome() -> None:
    """After the end of sending no ack is due unless a message is on its way."""
    kept = accounts()
    first, last = kept.send(0, 0.0), kept.send(0, 0.0)
    kept.settle(first, Fate.ACKED, 1.0)
    kept.end_sending(2.0)
    kept.settle(last, Fate.ACKED, 30.0)
    kept.close(100.0)
    assert kept.ack_pauses.longest == Pause(29.0, 1.0)


def test_a_run_without_acks_is_one_pause() -> None:
    """From the first message until its outcome was waited for no more."""
    kept = accounts()
    mark = kept.send(0, 1.0)
    kept.end_sending(5.0)
    kept.settle(mark, Fate.UNKNOWN, 20.0)
    kept.close(100.0)
    assert kept.ack_pauses.longest == Pause(19.0, 1.0)


def test_a_reader_pauses_while_something_is_there_for_it() -> None:
    """From an ack to the delivery, or between two; not while it has everything."""
    kept = accounts(readers=2)
    marks = [kept.send(0, 0.0) for _ in range(4)]
    for mark, ack, delivery in zip(
        marks, (1.0, 50.0, 50.5, 51.0), (1.5, 53.0, 57.0, 58.0), strict=True
    ):
        kept.settle(mark, Fate.ACKED, ack)
        give(kept, mark, ack, reader=1)
        if mark.number == 0:
            give(kept, mark, delivery)
    for mark, delivery in zip(marks[1:], (53.0, 57.0, 58.0), strict=True):
        give(kept, mark, delivery)
    kept.close(100.0)
    assert [reader.waits.longest for reader in kept.readers] == [Pause(4.0, 53.0), Pause(0.0, 0.0)]


def test_a_reader_that_is_given_nothing_more_pauses_to_the_end() -> None:
    """What it misses was waited for."""
    kept = accounts()
    kept.settle(kept.send(0, 0.0), Fate.ACKED, 1.0)
    kept.close(31.0)
    assert kept.readers[0].waits.longest == Pause(30.0, 1.0)
