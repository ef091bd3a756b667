"""Replay over a simulated log: whatever happens between its steps, its reader gets what is in the
log from where it was, once and in order."""

import random
from bisect import bisect_left

import pytest

from chatsvc.entries import Entry
from chatsvc.model import Gap
from chatsvc.replay import (
    STEP_BYTES,
    STEP_RECORDS,
    Chunk,
    Need,
    Replay,
    SharedStep,
    SharedSteps,
)
from chatsvc.tail import OVERHEAD_BYTES, Tail

ROOMS = ("", "tea", "coffee")


class Log:
    """A log in memory with a tail of its newest messages, as a server has it. An element names its
    partition and offset."""

    def __init__(self, partitions: int = 1, tail_messages: int = 1_000_000) -> None:
        self.ends = dict.fromkeys(range(partitions), 0)
        self.starts = dict.fromkeys(range(partitions), 0)
        self.entries: dict[int, list[Entry]] = {each: [] for each in self.ends}
        self.tail = Tail(tail_messages * (OVERHEAD_BYTES + 10))
        self.tail.begin(self.ends)
        self.clock_ms = 0
        self.fetches = 0

    def append(self, partition: int = 0, room: str = "", *, message: bool = True) -> None:
        self.clock_ms += 1
        offset = self.ends[partition]
        self.ends[partition] += 1
        if message:
            element = f"{partition}/{offset}".encode().ljust(10)
            entry = Entry(offset, self.clock_ms, room, element, 0)
            self.entries[partition].append(entry)
            self.tail.extend([(partition, entry.offset + 1, entry)])
        else:
            self.tail.extend([(partition, offset + 1, None)])

    def grow(self) -> None:
        """One more partition, which is empty."""
        new = len(self.ends)
        self.starts[new] = self.ends[new] = 0
        self.entries[new] = []
        self.tail.begin({new: 0})

    def forget(self, partition: int, before: int) -> None:
        """Retention."""
        self.starts[partition] = max(self.starts[partition], before)

    def chunk(self, need: Need, limit: int) -> Chunk:
        """What Kafka has of what is needed."""
        self.fetches += 1
        start = max(need.start, self.starts[need.partition])
        end = max(start, min(need.end, start + limit))
        entries = self.entries[need.partition]
        first = bisect_left(entries, start, key=lambda each: each.offset)
        last = bisect_left(entries, end, key=lambda each: each.offset)
        return Chunk(need.partition, start, end, entries[first:last])


class Reader:
    """A replay with what it has given out."""

    def __init__(self, log: Log, positions: dict[int, int], rooms: tuple[str, ...] = ROOMS) -> None:
        self.log = log
        self.begin = positions
        self.rooms = rooms
        self.replay = Replay(frozenset(rooms), positions)
        self.elements: list[bytes] = []
        self.gaps: list[Gap] = []

    def step(self, chunk_records: int = 100) -> bool:
        """One step towards where the log is; returns whether it is level with that."""
        step = self.replay.step(dict(self.log.ends), self.log.tail)
        if isinstance(step, Need):
            self.replay.take(self.log.chunk(step, chunk_records))
            return False
        self.elements += step.elements
        self.gaps += step.gaps
        return step.level

    def finish(self) -> None:
        while not self.step():
            pass

    def check(self) -> None:
        """It has all that is in the log from where it began, but what the gaps name."""
        for partition, entries in self.log.entries.items():
            lost = {
                offset
                for gap in self.gaps
                if gap.partition == partition
                for offset in range(gap.start, gap.end)
            }
            expected = [
                each.element
                for each in entries
                if each.offset >= self.begin.get(partition, 0)
                and each.offset not in lost
                and each.room in self.rooms
            ]
            mine = [each for each in self.elements if each.startswith(b"%d/" % partition)]
            if partition not in self.begin:  # its oldest may be gone without a word
                kept = [each for each in entries if each.offset >= self.log.starts[partition]]
                least = [each.element for each in kept if each.room in self.rooms]
                assert len(mine) >= len(least)
                expected = expected[len(expected) - len(mine) :]
            assert mine == expected


def test_nothing_is_missed() -> None:
    log = Log()
    reader = Reader(log, {0: 0})
    assert reader.step()
    assert reader.elements == []


def test_what_was_missed_comes_from_the_tail() -> None:
    log = Log(partitions=2)
    for offset in range(10):
        log.append(offset % 2)
    reader = Reader(log, {0: 2, 1: 5})
    assert reader.step()
    reader.check()
    assert len(reader.elements) == 3
    assert log.fetches == 0


def test_only_rooms_asked_for() -> None:
    log = Log()
    for room in ("", "tea", "coffee", "tea"):
        log.append(room=room)
    reader = Reader(log, {0: 0}, rooms=("tea",))
    reader.finish()
    reader.check()
    assert len(reader.elements) == 2


def test_what_the_tail_has_forgotten_comes_from_kafka() -> None:
    """In chunks, until the tail reaches back far enough."""
    log = Log(tail_messages=50)
    for _ in range(1_000):
        log.append()
    reader = Reader(log, {0: 100})
    reader.finish()
    reader.check()
    assert 9 <= log.fetches <= 10


def test_what_retention_has_deleted_is_named_once() -> None:
    log = Log(tail_messages=1)
    for _ in range(300):
        log.append()
    log.forget(0, 120)
    reader = Reader(log, {0: 20})
    reader.finish()
    reader.check()
    assert reader.gaps == [Gap(0, 20, 120)]


def test_all_may_be_deleted() -> None:
    log = Log(tail_messages=1)
    for _ in range(3):
        log.append()
    log.tail.begin({0: 10})
    log.ends[0] = 10
    log.forget(0, 10)
    reader = Reader(log, {0: 1})
    reader.finish()
    assert reader.gaps == [Gap(0, 1, 10)]
    assert reader.replay.positions == {0: 10}


def test_a_partition_that_came_later_is_read_from_its_first_record() -> None:
    """Which is no gap, though retention has deleted some of it."""
    log = Log(tail_messages=1)
    log.append()
    log.grow()
    for _ in range(5):
        log.append(1)
    log.forget(1, 2)
    reader = Reader(log, {0: 1})
    reader.finish()
    reader.check()
    assert reader.gaps == []
    assert len(reader.elements) == 3


def test_partitions_are_merged_by_time() -> None:
    """Also where one has much more than a step takes."""
    log = Log(partitions=3)
    for number in range(5 * STEP_RECORDS):
        log.append(number % 7 % 3)
    times = {each.element: each.appended_ms for part in log.entries.values() for each in part}
    reader = Reader(log, dict.fromkeys(range(3), 0))
    reader.finish()
    reader.check()
    assert [times[each] for each in reader.elements] == sorted(times.values())


def test_a_clock_that_goes_back_does_not_change_the_order_of_a_partition() -> None:
    """Merged by time, the messages of a partition still come as they are in the log."""
    log = Log(partitions=2)
    for number in range(20):
        log.clock_ms = 1_000 - 7 * number
        log.append(number % 2)
    reader = Reader(log, {0: 0, 1: 0})
    reader.finish()
    reader.check()
    assert len(reader.elements) == 20


def test_a_clock_that_goes_back_holds_nobody_up() -> None:
    """A chunk may end with a message that is older than all before it."""
    log = Log(tail_messages=1)
    for clock_ms in (100, 90, 80, 200, 10, 5):
        log.clock_ms = clock_ms
        log.append()
    reader = Reader(log, {0: 0})
    for _ in range(6):
        if reader.step(chunk_records=2):
            break
    reader.check()


def test_a_step_is_small() -> None:
    """In messages and in bytes, but never nothing."""
    log = Log()
    for offset in range(3):
        entry = Entry(offset, offset, "", bytes(STEP_BYTES), 0)
        log.tail.extend([(0, entry.offset + 1, entry)])
        log.ends[0] += 1
    replay = Replay(frozenset(ROOMS), {0: 0})
    for left in (2, 1, 0):
        step = replay.step(log.ends, log.tail)
        assert not isinstance(step, Need)
        assert len(step.elements) == 1
        assert step.level == (not left)


def test_a_reader_that_has_been_further_is_told_from_others() -> None:
    """At a server that has read more than this one."""
    log = Log(partitions=2)
    log.append(0)
    replay = Replay(frozenset(ROOMS), {0: 5, 1: 0})
    assert replay.is_ahead(log.ends)
    assert not Replay(frozenset(ROOMS), {0: 1}).is_ahead(log.ends)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_meanwhile(seed: int) -> None:
    """The log goes on, grows partitions and loses its oldest records between any two steps."""
    chance = random.Random(seed)
    log = Log(chance.randint(1, 4), tail_messages=chance.choice((1, 20, 10_000)))

    def happen(times: int) -> None:
        for _ in range(times):
            what = chance.random()
            partition = chance.randrange(len(log.ends))
            if what < 0.002:
                log.grow()
            elif what < 0.02:
                log.forget(partition, chance.randint(0, log.ends[partition]))
            else:
                log.append(partition, chance.choice(ROOMS), message=chance.random() < 0.9)

    happen(chance.randint(0, 3_000))
    positions = {each: chance.randint(0, end) for each, end in log.ends.items() if end}
    reader = Reader(log, positions, rooms=tuple(chance.sample(ROOMS, 2)))
    for _ in range(50):
        reader.step(chance.randint(1, 500))
        happen(chance.randint(0, 30))
    reader.finish()
    reader.check()
    assert reader.replay.positions == {each: end for each, end in log.ends.items() if end}


def places(log: Log, start: int, tail_positions: dict[int, int]) -> list[tuple[object, bool]]:
    """Where the steps of a replay begin, and whether others take the same from there."""
    replay = Replay(frozenset(ROOMS), dict.fromkeys(log.ends, start))
    found = []
    while True:
        place = replay.place
        step = replay.step(tail_positions, log.tail)
        assert not isinstance(step, Need)
        found.append((place, step.shared))
        if step.level:
            return found


def test_replays_that_begin_near_each_other_soon_take_the_same_steps() -> None:
    """From the second step on all places are the same, and only what depends on how far the log
    goes is for one alone."""
    log = Log(partitions=2)
    for number in range(10 * STEP_RECORDS):
        log.append(number % 2, room=ROOMS[number % 3])
    ends = dict(log.ends)
    one, other = places(log, 3, ends), places(log, 40, ends)
    assert [place for place, _ in one][1:] == [place for place, _ in other][1:]
    assert all(shared for _, shared in one[:-3])
    assert not one[-1][1]


def test_who_follows_a_shared_step_is_given_what_he_would_have_been() -> None:
    """Whoever takes it, and whenever: the log has grown since."""
    log = Log(partitions=3)
    for number in range(6 * STEP_RECORDS):
        log.append(number % 3)
    steps = SharedSteps()

    def read_all(start: int) -> list[bytes]:
        replay = Replay(frozenset(ROOMS), dict.fromkeys(log.ends, start))
        frames: list[bytes] = []
        while True:
            place = replay.place
            shared = steps.find(place)
            if shared is not None:
                replay.follow(shared)
                frames.append(shared.frame)
                continue
            step = replay.step(log.ends, log.tail)
            assert not isinstance(step, Need)
            frames.append(b"".join(step.elements))
            if step.shared:
                steps.keep(place, SharedStep(frames[-1], 0, dict(replay.positions)))
            if step.level:
                return frames

    first = b"".join(read_all(7))
    assert b"".join(read_all(7)) == first
    log.append(0)
    assert b"".join(read_all(7)).startswith(first)
    assert len(b"".join(read_all(0))) > len(first)


def test_a_gap_is_for_the_one_who_has_it() -> None:
    """Another one at the same place may have missed less."""
    log = Log()
    for _ in range(3 * STEP_RECORDS):
        log.append()
    replay = Replay(frozenset(ROOMS), {0: 5})
    replay.take(Chunk(0, 100, STEP_RECORDS, log.entries[0][100:STEP_RECORDS]))
    steps = SharedSteps()
    steps.keep(Replay(frozenset(ROOMS), {0: 100}).place, SharedStep(b"without", 0, {0: 512}))
    assert replay.positions == {0: 100}
    assert steps.find(replay.place) is None
    step = replay.step(log.ends, log.tail)
    assert not isinstance(step, Need)
    assert step.gaps
    assert not step.shared
