"""Replay: brings one reader of the log from where it is to where the server is.

It knows no thread and no clock, reads nothing itself, and takes what has to come from Kafka as
chunks: whoever drives it fetches them.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from chatsvc.entries import MAX_MS, Entry
from chatsvc.model import Gap
from chatsvc.tail import NotInTail, Tail

STEP_MESSAGES = 1_000
"""How many messages of a partition one step takes at most."""
STEP_BYTES = 512 * 1024
"""How many bytes one step takes at most, if there is more than one message."""


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
    nothing follows up to the positions that the step was taken to."""

    elements: list[bytes]
    gaps: list[Gap]
    level: bool


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

    def __init__(self, rooms: Collection[str], positions: Mapping[int, int]) -> None:
        self._rooms = rooms
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
        return Step(elements, gaps, level)

    def _slice(self, partition: int, end: int, max_bytes: int, tail: Tail) -> _Slice | Need:
        start = self.positions.get(partition, 0)
        chunk = self._chunks.get(partition)
        covered = end
        if chunk is not None and start < chunk.end:
            covered = min(end, chunk.end)
            entries = [each for each in chunk.entries if start <= each.offset < covered]
        else:
            self._chunks.pop(partition, None)
            try:
                entries = tail.read(partition, start, end, STEP_MESSAGES + 1)
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
    """How many entries are within STEP_MESSAGES and `max_bytes`, at least one if there is one."""
    for count, each in enumerate(entries[:STEP_MESSAGES]):
        max_bytes -= len(each.element)
        if count and max_bytes < 0:
            return count
    return min(len(entries), STEP_MESSAGES)
