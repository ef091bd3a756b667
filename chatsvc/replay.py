"""Replay: brings one reader of the log from where it is to where the server is.

It knows no thread and no clock, reads nothing itself, and takes what has to come from Kafka as
chunks: whoever drives it fetches them.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from chatsvc.entries import MAX_MS, Entry
from chatsvc.model import Gap
from chatsvc.tail import NotInTail, Tail

STEP_RECORDS = 512
"""How many offsets of a partition one step takes at most, up to a multiple of it: so replays that
begin at different offsets soon take the same steps."""
STEP_BYTES = 512 * 1024
"""How many bytes one step takes at most, if there is more than one message."""
KEPT_STEPS = 64
"""How many steps are kept for others, of 60 to 100 KB mostly."""


class Chunk(NamedTuple):
    """All messages of a partition from `start` up to before `end`. A `start` later than what was
    asked for means that what was before is lost to retention."""

    partition: int
    start: int
    end: int
    entries: Sequence[Entry]


class Need(NamedTuple):
    """A chunk that `start` is in, of which what is before `end` is of use, has to come from Kafka;
    as far as `end`, or the end of such chunks, if it is to be `whole`."""

    partition: int
    start: int
    end: int
    whole: bool = False


class Step(NamedTuple):
    """What is next: elements of Delivery.messages, and gaps before them. `level` tells that
    nothing follows up to the positions that the step was taken to, `shared` that every replay of
    the same rooms takes the same step from the same positions, also later."""

    elements: list[bytes]
    gaps: list[Gap]
    level: bool
    shared: bool


Place = tuple[Collection[str], tuple[tuple[int, int], ...]]
"""Rooms and positions: what a step depends on."""


class SharedStep(NamedTuple):
    """A step that another has taken: its Delivery, how many messages that has, and what is next."""

    frame: bytes
    messages: int
    positions: Mapping[int, int]


class SharedSteps:
    """The newest steps that were taken, for whoever is at the same place. A thousand clients that
    lose a server at the same moment are all at nearly the same. Thread-safe; does not block."""

    def __init__(self) -> None:
        # Guards the steps; the oldest first.
        self._lock = threading.Lock()
        self._steps: OrderedDict[Place, SharedStep] = OrderedDict()

    def find(self, place: Place | None) -> SharedStep | None:
        """The step from a place, if somebody has just taken it."""
        if place is None:
            return None
        with self._lock:
            return self._steps.get(place)

    def keep(self, place: Place | None, step: SharedStep) -> None:
        """Keeps a step for others, if they may be at its place."""
        if place is None:
            return
        with self._lock:
            self._steps[place] = step
            while len(self._steps) > KEPT_STEPS:
                self._steps.popitem(last=False)


class _Slice(NamedTuple):
    """Messages of a partition, which has no others before offset `end`; `whole` if it is not to be
    read on there. Where a clock went back, `times` have the latest time before instead."""

    partition: int
    entries: Sequence[Entry]
    times: Sequence[int]
    end: int
    whole: bool


class Replay:
    """One reader: its rooms, and of each partition the offset of the next record. A partition that
    it does not know begins at its first record, since it came later. Used by one thread at a
    time."""

    def __init__(
        self,
        rooms: Collection[str],
        positions: Mapping[int, int],
        step_records: int = STEP_RECORDS,
    ) -> None:
        self._rooms = rooms
        self._step_records = step_records
        self.positions = dict(positions)
        self._chunks: dict[int, Chunk] = {}
        self._gaps: list[Gap] = []

    def take(self, chunk: Chunk) -> None:
        """A chunk that `step` has asked for."""
        # Of a partition that it did not know nothing is missed.
        start = self.positions.get(chunk.partition, chunk.start)
        if start < chunk.start:
            self._gaps.append(Gap(chunk.partition, start, chunk.start))
        self.positions[chunk.partition] = max(start, chunk.start)
        self._chunks[chunk.partition] = chunk

    def is_ahead(self, live: Mapping[int, int]) -> bool:
        """Whether it has been further, at another server, than this one is."""
        return any(live.get(each, 0) < mine for each, mine in self.positions.items())

    @property
    def place(self) -> Place | None:
        """What its next step depends on; None if it has a gap to tell with it, which others at the
        same positions have not."""
        return None if self._gaps else (self._rooms, tuple(sorted(self.positions.items())))

    def follow(self, step: SharedStep) -> None:
        """Takes a step that another has taken from the same place."""
        self.positions = dict(step.positions)

    def behind(self, live: Mapping[int, int]) -> int:
        """How many offsets are left up to the positions `live`."""
        return sum(max(0, end - self.positions.get(each, 0)) for each, end in live.items())

    def step(self, live: Mapping[int, int], tail: Tail, limit: int | None = None) -> Step | Need:
        """Moves on towards the positions `live`, by at most `limit` messages: in the order of each
        partition, and between them in that of time."""
        behind = {each: end for each, end in live.items() if self.positions.get(each, 0) < end}
        slices: list[_Slice] = []
        size = 0
        for partition, end in behind.items():
            if size > STEP_BYTES:  # large messages: the other partitions' turn is the next
                break
            found = self._slice(partition, end, STEP_BYTES // len(behind), tail)
            if isinstance(found, Need):
                return found
            slices.append(found)
            size += sum(len(each.element) for each in found.entries)
        entries = self._advance(slices, limit)
        elements = [each.element for each in entries if each.room in self._rooms]
        level = all(self.positions.get(each, 0) >= end for each, end in behind.items())
        gaps, self._gaps = self._gaps, []
        # Where nothing depends on how far the log goes now.
        inner = len(slices) == len(live) and not any(each.whole for each in slices)
        return Step(elements, gaps, level, inner and limit is None and not gaps)

    def _slice(self, partition: int, end: int, max_bytes: int, tail: Tail) -> _Slice | Need:
        start = self.positions.get(partition, 0)
        chunk = self._chunks.get(partition)
        covered = min(end, (start // self._step_records + 1) * self._step_records)
        if chunk is not None and start < chunk.end:
            covered = min(covered, chunk.end)
            entries = [each for each in chunk.entries if start <= each.offset < covered]
        else:
            self._chunks.pop(partition, None)
            try:
                entries = tail.read(partition, start, covered, self._step_records)
            except NotInTail:
                return Need(partition, start, end)
        fitting = _fitting(entries, max_bytes)
        if fitting < len(entries):
            covered = entries[fitting].offset
        taken = entries[:fitting]
        times = list(accumulate((each.appended_ms for each in taken), max))
        return _Slice(partition, taken, times, covered, covered >= end)

    def _advance(self, slices: Sequence[_Slice], limit: int | None) -> list[Entry]:
        """Takes what is not later than where one of the slices breaks off."""
        broken_off = [each.times[-1] for each in slices if each.times and not each.whole]
        horizon = min(broken_off, default=MAX_MS)
        counts = [bisect_right(each.times, horizon) for each in slices]
        places = [
            (time, number, index)
            for number, each in enumerate(slices)
            for index, time in enumerate(each.times[: counts[number]])
        ]
        if len(slices) > 1:
            places.sort()
        taken = [slices[number].entries[index] for _, number, index in places]
        if limit is not None:
            kept = self._within(taken, limit)
            for _, number, _ in places[kept:]:
                counts[number] -= 1
            del taken[kept:]
        for each, count in zip(slices, counts, strict=True):
            whole = count == len(each.entries)
            self.positions[each.partition] = each.end if whole else each.entries[count].offset
        return taken

    def _within(self, entries: Sequence[Entry], limit: int) -> int:
        """How many entries there are before more than `limit` are of the rooms."""
        for count, each in enumerate(entries):
            limit -= each.room in self._rooms
            if limit < 0:
                return count
        return len(entries)


def _fitting(entries: Sequence[Entry], max_bytes: int) -> int:
    """How many entries are within `max_bytes`, at least one if there is one."""
    for count, each in enumerate(entries):
        max_bytes -= len(each.element)
        if count and max_bytes < 0:
            return count
    return len(entries)
