"""The checker's verdict: each planted fault is found and named, and nothing else is."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc.client import Received
from chatsvc.verify.accounts import Accounts, Fate
from chatsvc.verify.plan import Mark, Plan
from chatsvc.verify.verdict import TOLD_VIOLATIONS, Verdict, json_of, judge, text_of

AT = datetime(2026, 1, 1, tzinfo=UTC)
FAULTS = ("lost", "duplicated", "reordered", "phantom", "gaps")


class Story:
    """What writers sent, with what became of it, and what readers were given."""

    def __init__(self, readers: int = 1, **settings: Any) -> None:
        self.plan = Plan(servers=("a:1",), writers=2, readers=readers, seed=1, **settings)
        self.accounts = Accounts(self.plan)

    def send(self, *fates: Fate, writer: int = 0) -> "Story":
        for fate in fates:
            self.accounts.settle(self.accounts.send(writer, 0.0), fate, 0.0)
        return self

    def acked(self, count: int, writer: int = 0) -> "Story":
        return self.send(*(Fate.ACKED,) * count, writer=writer)

    def give(self, *numbers: int, writer: int = 0, reader: int = 0) -> "Story":
        for number in numbers:
            self.give_altered(number, lambda message: message, writer=writer, reader=reader)
        return self

    def give_altered(
        self,
        number: int,
        alter: Callable[[Received], Received],
        *,
        writer: int = 0,
        reader: int = 0,
    ) -> "Story":
        plan, mark = self.plan, Mark(writer, number)
        message = Received(
            plan.writer(writer),
            plan.content(mark),
            AT,
            plan.message_id(mark),
            False,
            plan.room_name,
        )
        self.accounts.give(reader, alter(message), 0.0)
        return self

    def gap(self, records: int | None, reader: int = 0) -> "Story":
        self.accounts.tell_gap(reader, records)
        return self

    def verdict(self, interrupted: bool = False) -> Verdict:
        self.accounts.close(0.0)
        return judge(self.accounts, 0, interrupted)


def check(verdict: Verdict, *violations: str, **faults: int) -> None:
    """These are all faults and violations."""
    assert {name: getattr(verdict, name) for name in FAULTS} == dict.fromkeys(FAULTS, 0) | faults
    assert sorted(verdict.violations) == sorted(violations)
    assert verdict.ok == (not faults)


def test_all_once_and_in_order_is_well() -> None:
    """Two writers whose messages mix, at two readers."""
    story = Story(readers=2).acked(2, writer=0).acked(2, writer=1)
    for reader in range(2):
        story.give(0, writer=1, reader=reader).give(0, 1, reader=reader)
        story.give(1, writer=1, reader=reader)
    verdict = story.verdict()
    check(verdict)
    assert (verdict.sent, verdict.acked, verdict.seen) == (4, 4, 8)


@pytest.mark.parametrize("hole", [0, 1, 2])
def test_a_lost_message_is_found(hole: int) -> None:
    """The first, one in the middle, the last; at the reader that misses it."""
    story = Story(readers=2).acked(3).give(0, 1, 2, reader=0)
    story.give(*({0, 1, 2} - {hole}), reader=1)
    check(story.verdict(), f"reader 1 misses writer 0 number {hole}", lost=1)


def test_a_second_copy_is_found() -> None:
    """Of the newest message and of an older one."""
    check(
        Story().acked(2).give(0, 0, 1, 0, 1).verdict(),
        "reader 0 was given writer 0 number 0 3 times",
        "reader 0 was given writer 0 number 1 2 times",
        duplicated=3,
    )


def test_a_message_that_is_written_twice_is_a_duplicate() -> None:
    """Its sender did not know what had become of it: readers are given it once all the same."""

    def later(message: Received) -> Received:
        return message._replace(at=AT + timedelta(milliseconds=1))

    check(
        Story().acked(1).give(0).give_altered(0, later).verdict(),
        "reader 0 was given writer 0 number 0 2 times",
        duplicated=1,
    )


def test_disorder_is_found() -> None:
    """A first copy after a higher number of the same writer; not of another one."""
    story = Story().acked(3).acked(1, writer=1).give(0, 2, 1).give(0, writer=1)
    check(story.verdict(), "reader 0 was given writer 0 number 1 after a later one", reordered=1)


def test_what_nobody_sent_is_a_phantom() -> None:
    """Its number is above all that its writer has sent."""
    story = Story().acked(1).give(0, 1)
    check(
        story.verdict(),
        "reader 0 was given writer 0 number 1, which was never sent",
        phantom=1,
    )


@pytest.mark.parametrize(("field", "value"), [("content", "writer 0 number 0 "), ("user", "eve")])
def test_what_was_altered_is_a_phantom(field: str, value: str) -> None:
    """And the message that it should be is lost."""
    story = Story().acked(1)
    story.give_altered(0, lambda message: message._replace(**{field: value}))
    check(
        story.verdict(),
        "reader 0 was given writer 0 number 0, but not as it was sent",
        "reader 0 misses writer 0 number 0",
        phantom=1,
        lost=1,
    )


def test_a_message_of_another_room_is_a_phantom() -> None:
    """Though it was sent, and comes in its own room too."""
    story = Story().acked(1).give(0)
    story.give_altered(0, lambda message: message._replace(room="another"))
    check(
        story.verdict(),
        "reader 0 was given writer 0 number 0, which is of another room",
        phantom=1,
    )


def stranger(message: Received) -> Received:
    return message._replace(message_id="m-1", user="ann", content="hi")


def test_in_a_room_of_its_own_a_stranger_is_a_phantom() -> None:
    """Nobody else knows of it."""
    story = Story().acked(1).give(0).give_altered(0, stranger)
    check(story.verdict(), "reader 0 was given a message of somebody else", phantom=1)


def test_in_a_named_room_others_may_talk() -> None:
    """They are no affair of the run."""
    check(Story(room="tea").acked(1).give(0).give_altered(0, stranger).verdict())


@pytest.mark.parametrize(
    ("fate", "said"), [(Fate.REFUSED, "which was refused"), (Fate.UNSENT, "which was never sent")]
)
def test_what_is_not_written_must_not_be_seen(fate: Fate, said: str) -> None:
    """A server has said so, or no server has had it."""
    story = Story().send(Fate.ACKED, fate).give(0)
    check(story.verdict())
    story = Story().send(Fate.ACKED, fate).give(0, 1)
    check(story.verdict(), f"reader 0 was given writer 0 number 1, {said}", phantom=1)


def test_what_is_unknown_may_be_seen_or_not() -> None:
    """By some readers or all, and after what was sent later: nothing was promised."""
    story = Story(readers=2).send(Fate.ACKED, Fate.UNKNOWN, Fate.ACKED)
    story.give(0, 2, 1, reader=0).give(0, 2, reader=1)
    verdict = story.verdict()
    check(verdict)
    assert verdict.unknown == 1


def test_a_gap_explains_what_is_missing() -> None:
    """As many messages as it has, which are not lost then; at the reader that was told."""
    story = Story(readers=2).acked(5).give(0, 4, reader=0).give(0, 1, 4, reader=1)
    check(
        story.gap(3, reader=0).verdict(),
        "reader 0 was told of a gap of at most 3 messages",
        "reader 1 misses writer 0 number 2",
        "reader 1 misses writer 0 number 3",
        gaps=1,
        lost=2,
    )


def test_a_gap_explains_no_more_than_it_has() -> None:
    """The others are lost."""
    verdict = Story().acked(5).give(0, 4).gap(2).verdict()
    assert (verdict.gaps, verdict.lost) == (1, 1)


def test_a_gap_of_unknown_size_explains_all() -> None:
    """It is a violation by itself."""
    check(
        Story().acked(5).give(0, 4).gap(None).verdict(),
        "reader 0 was told of a gap of unknown size",
        gaps=1,
    )


def test_of_many_violations_some_of_each_kind_are_told() -> None:
    """The counts have all."""
    story = Story(readers=2).acked(300).send(Fate.REFUSED)
    story.give(*range(100), 110, 105, 105, 300, 301, reader=0).gap(1)
    verdict = story.verdict()
    assert len(verdict.violations) == TOLD_VIOLATIONS
    for words in ("reader 0 m", "reader 1 m", "times", "later", "refused", "never sent", "gap"):
        assert any(words in violation for violation in verdict.violations), words
    assert verdict.lost == 198 - 1 + 300


def test_a_run_that_shows_nothing_is_no_success() -> None:
    """Unless somebody wanted it so."""
    story = Story().send(Fate.UNKNOWN, Fate.REFUSED)
    assert story.verdict().problem == "nothing was acked"
    assert story.verdict(interrupted=True).ok


def naive(acked: set[int], arrivals: Sequence[int]) -> dict[str, int]:
    """What a reader with so many arrivals of acknowledged and unknown messages has against it."""
    firsts = list(dict.fromkeys(arrivals))
    late = [n for at, n in enumerate(firsts) if n in acked and any(m > n for m in firsts[:at])]
    return {
        "lost": len(acked - set(arrivals)),
        "duplicated": sum(Counter(arrivals).values()) - len(firsts),
        "reordered": len(late),
        "phantom": 0,
        "gaps": 0,
    }


@given(
    fates=st.lists(st.sampled_from([Fate.ACKED, Fate.UNKNOWN]), min_size=1, max_size=12),
    draws=st.lists(st.integers(0, 11), max_size=30),
)
def test_whatever_comes_is_counted_right(fates: list[Fate], draws: list[int]) -> None:
    """As by a definition that is slow and plain."""
    arrivals = [number for number in draws if number < len(fates)]
    verdict = Story().send(*fates).give(*arrivals).verdict()
    acked = {number for number, fate in enumerate(fates) if fate is Fate.ACKED}
    assert {name: getattr(verdict, name) for name in FAULTS} == naive(acked, arrivals)


def test_the_json_has_everything() -> None:
    """Pauses are objects, and `ok` is the verdict."""
    story = Story().acked(2).give(0)
    fields = json.loads(json.dumps(json_of(story.verdict())))
    assert fields["servers"] == ["a:1"]
    assert fields["longest_ack_pause"] == fields["longest_delivery_pause"]
    assert fields["longest_ack_pause"] == {"seconds": 0.0, "at": 0.0}
    assert fields["violations"] == ["reader 0 misses writer 0 number 1"]
    assert (fields["ok"], fields["interrupted"], fields["seed"]) == (False, False, 1)


def test_the_text_has_the_violations() -> None:
    """After the counts."""
    text = text_of(Story().acked(2).give(0).verdict())
    assert "2 sent, 2 acked, 0 refused, 0 unknown" in text
    assert "1 seen, 1 lost, 0 duplicated" in text
    assert text.endswith("\nreader 0 misses writer 0 number 1")
    assert text_of(Story().verdict(interrupted=True)).startswith("Interrupted before")
