"""Tail: the newest messages of each partition, kept in memory.

What a client that comes back, or one that is slow, has missed is mostly here: it takes no reader of
Kafka then, however many clients ask for it at once.
"""

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping

from chatsvc.entries import Entry

OVERHEAD_BYTES = 300
"""About what an entry takes beside its bytes."""


class NotInTail(Exception):
    """The tail does not reach back so far."""


class _Partition:
    """Entries in the order of their offsets, from `start` to `end` with nothing missing; offsets
    without an entry are not messages."""

    __slots__ = ("end", "entries", "forgotten", "offsets", "start")

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.offsets: list[int] = []
        self.entries: list[Entry] = []
        # How many of the first entries are forgotten: they leave the lists in one go.
        self.forgotten = 0

    def forget(self) -> Entry:
        """Forgets the oldest entry and returns it."""
        entry = self.entries[self.forgotten]
        self.start = entry.offset + 1
        self.forgotten += 1
        if self.forgotten > 1_000 and 2 * self.forgotten > len(self.entries):
            del self.offsets[: self.forgotten]
            del self.entries[: self.forgotten]
            self.forgotten = 0
        return entry


class Tail:
    """At most `max_bytes` of entries, the oldest are forgotten first; the newest one stays.

    One thread calls `begin`, `extend` and `skip`; the others may be called by any. No method blocks
    longer than list operations.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # Guards all that follows; held for list operations only.
        self._lock = threading.Lock()
        self._partitions: dict[int, _Partition] = {}
        # The partitions of all entries, oldest first.
        self._order: deque[int] = deque()
        self._bytes = 0

    def begin(self, positions: Mapping[int, int]) -> None:
        """The log is read on at these offsets. A partition that goes on where it was keeps its
        entries."""
        with self._lock:
            for number, position in positions.items():
                partition = self._partitions.get(number)
                if partition is not None and partition.end != position:
                    self._clear(number, partition)
                if number not in self._partitions:
                    self._partitions[number] = _Partition(position)

    def _clear(self, number: int, partition: _Partition) -> None:
        self._bytes -= sum(map(_size, partition.entries[partition.forgotten :]))
        self._order = deque(each for each in self._order if each != number)
        del self._partitions[number]

    def extend(self, read: Iterable[tuple[int, int, Entry | None]]) -> None:
        """What was read next: partitions, up to which offset each was, and the message before that
        offset if there is one."""
        with self._lock:
            for number, end, entry in read:
                partition = self._partitions[number]
                partition.end = end
                if entry is not None:
                    partition.offsets.append(entry.offset)
                    partition.entries.append(entry)
                    self._order.append(number)
                    self._bytes += _size(entry)
            while self._bytes > self._max_bytes and len(self._order) > 1:
                self._bytes -= _size(self._partitions[self._order.popleft()].forget())

    def skip(self, number: int, end: int) -> None:
        """A partition has been read up to `end` and what is before is not kept."""
        with self._lock:
            partition = self._partitions[number]
            assert not partition.entries, "what is kept has no holes"
            partition.start = partition.end = end

    def locate(self, time_ms: int) -> dict[int, int]:
        """Of each partition the offset of the first entry that is kept and was appended from a time
        on, in milliseconds of Unix time; the end where there is none."""
        with self._lock:
            return {
                number: next(
                    (
                        entry.offset
                        for entry in partition.entries[partition.forgotten :]
                        if entry.appended_ms >= time_ms
                    ),
                    partition.end,
                )
                for number, partition in self._partitions.items()
            }

    def read(self, number: int, start: int, end: int, limit: int) -> list[Entry]:
        """The first `limit` entries of a partition from offset `start` up to before `end`. Raises
        NotInTail."""
        with self._lock:
            partition = self._partitions.get(number)
            if partition is None or start < partition.start:
                raise NotInTail
            first = bisect_left(partition.offsets, start, partition.forgotten)
            last = bisect_left(partition.offsets, end, first)
            return partition.entries[first : min(last, first + limit)]


def _size(entry: Entry) -> int:
    return len(entry.element) + OVERHEAD_BYTES
