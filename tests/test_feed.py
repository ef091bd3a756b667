import threading
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatsvc.feed import Feed, Overflow, Position
from chatsvc.frames import Batch, batch

MAX_MESSAGES = 6
MAX_BYTES = 40
READERS = st.sampled_from("abc")


class FeedMachine(RuleBasedStateMachine):
    """A feed beside a list of all batches there ever were and a set of who rests."""

    def __init__(self) -> None:
        super().__init__()
        self.feed: Feed[str] = Feed(MAX_MESSAGES, MAX_BYTES)
        self.batches: list[Batch] = []
        self.resting: set[str] = set()
        self.positions = dict.fromkeys("abc", self.feed.end)

    def kept_from(self) -> int:
        """The number of the oldest batch that the limits leave in the feed."""
        first = 0
        while first < len(self.batches) - 1:
            kept = self.batches[first:]
            messages = sum(len(each.messages) for each in kept)
            if messages <= MAX_MESSAGES and sum(each.size for each in kept) <= MAX_BYTES:
                break
            first += 1
        return first

    @rule(sizes=st.lists(st.integers(0, 15), min_size=1, max_size=4))
    def append(self, sizes: list[int]) -> None:
        """Returns exactly the readers that rested."""
        new = batch([b"x" * size for size in sizes], float(len(self.batches)))
        self.batches.append(new)
        assert self.feed.append(new) == self.resting
        self.resting = set()

    @rule(reader=READERS, limit=st.integers(1, 5), max_bytes=st.integers(1, 50))
    def read(self, reader: str, limit: int, max_bytes: int) -> None:
        """Returns what follows the position, in order, or tells that some of it is gone."""
        at = self.positions[reader]
        if at.batches < self.kept_from():
            with pytest.raises(Overflow):
                self.feed.read(at, limit, max_bytes)
            self.positions[reader] = self.feed.end
            return
        taken, self.positions[reader] = self.feed.read(at, limit, max_bytes)
        assert taken == self.batches[at.batches : at.batches + len(taken)]
        begun = [sum(len(each.messages) for each in taken[:count]) for count in range(len(taken))]
        assert all(messages < limit for messages in begun)
        assert len(taken) <= 1 or sum(each.size for each in taken) <= max_bytes
        rest = self.batches[at.batches + len(taken) :]
        if rest and taken:
            full = sum(len(each.messages) for each in taken) >= limit
            assert full or sum(each.size for each in [*taken, rest[0]]) > max_bytes

    @rule(reader=READERS)
    def rest(self, reader: str) -> None:
        """Works at the end only."""
        at_end = self.positions[reader].batches == len(self.batches)
        assert self.feed.rest(reader, self.positions[reader]) == at_end
        if at_end:
            self.resting.add(reader)

    @rule(reader=READERS)
    def rouse(self, reader: str) -> None:
        """Tells who rested, once."""
        assert self.feed.rouse(reader) == (reader in self.resting)
        self.resting.discard(reader)

    @precondition(lambda self: self.batches)
    @invariant()
    def tells_where_a_position_is(self) -> None:
        """Backlog and limits agree with the list of all batches."""
        for at in self.positions.values():
            behind = self.batches[at.batches :]
            messages = sum(len(each.messages) for each in behind)
            size = sum(each.size for each in behind)
            assert self.feed.backlog(at) == messages
            assert self.feed.has_overflowed(at) == (at.batches < self.kept_from())
            assert self.feed.nearly_overflows(at) == (
                messages > MAX_MESSAGES / 2 or size > MAX_BYTES / 2
            )
            assert self.feed.end == Position(
                len(self.batches), at.messages + messages, at.size + size
            )


FeedMachine.TestCase.settings = settings(max_examples=150, deadline=None)
TestFeedMachine = FeedMachine.TestCase


def one(text: str) -> Batch:
    """A batch of one message."""
    return batch([text.encode()], 0.0)


def test_the_newest_batch_stays_whatever_its_size() -> None:
    """A batch above both limits can still be read by who was at the end."""
    feed: Feed[str] = Feed(1, 1)
    start = feed.end
    feed.append(batch([b"long", b"longer"], 0.0))
    assert not feed.has_overflowed(start)
    taken, end = feed.read(start, 1, 1)
    assert [each.messages for each in taken] == [(b"long", b"longer")]
    assert end == feed.end


@pytest.mark.parametrize("behind", range(12))
def test_any_number_of_batches_is_read_in_order(behind: int) -> None:
    """A position a few or many batches back is answered with all that follow it."""
    feed: Feed[str] = Feed(100, 1_000)
    positions = []
    for number in range(12):
        positions.append(feed.end)
        feed.append(one(str(number)))
    taken, _ = feed.read(positions[behind], 100, 1_000)
    assert [each.messages[0] for each in taken] == [
        str(number).encode() for number in range(behind, 12)
    ]


def test_a_resting_reader_wakes_once_among_threads() -> None:
    """While threads append and rouse at once, each reader that rested is given back to one."""
    feed: Feed[int] = Feed(10, 1_000)
    readers = range(200)
    for reader in readers:
        assert feed.rest(reader, feed.end)
    woken: list[int] = []
    together = threading.Barrier(4)

    def rouse_all() -> None:
        together.wait()
        woken.extend([reader for reader in readers if feed.rouse(reader)])

    def append() -> None:
        together.wait()
        woken.extend(feed.append(one("x")))

    threads = [threading.Thread(target=each) for each in (rouse_all, rouse_all, append, append)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(woken) == Counter(readers)
