"""Duplicates: which records repeat a message that is in the log before them.

A message that is sent again because its sender does not know what became of it may be written
twice. The first record wins. That is decided from the log alone, by each reader of it for itself: a
record is a duplicate if its partition has another one of the same user and message_id before it,
within a window that depends on nothing but the log. So every server decides alike, whenever it has
started.

Messages of one id are in one partition unless partitions were added between two attempts.
"""

import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from hashlib import blake2b

WINDOW_MS = 10 * 60 * 1_000
"""An id is remembered for so long, by Kafka's clock, ..."""
MIN_IDS = 100_000
"""... and while so few records have come since, in all partitions together, ..."""
MAX_IDS = 500_000
"""... but no longer than until so many have: some 65 MB. At more than 800 messages a second the
window is shorter than ten minutes."""
BLOCK_RECORDS = 1_024
"""Ids are forgotten by blocks of so many offsets."""
KEPT_VERDICTS = 20_000
"""Stretches of the old log whose duplicates are known; one without any takes 200 bytes."""
KEPT_DUPLICATES = 100_000


def key(user: str, message_id: str) -> bytes:
    """What stands for a user's message: 16 bytes, so that no two are taken for one."""
    return blake2b(f"{len(user)}:{user}{message_id}".encode(), digest_size=16).digest()


class _Block:
    """The ids of some consecutive records, and when the newest was appended."""

    __slots__ = ("keys", "newest_ms", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: list[bytes] = []
        self.newest_ms = 0


class Window:
    """The ids of one partition's newest records, of `partitions` that there are. Used by one
    thread, but for `has`."""

    def __init__(self, partitions: int) -> None:
        blocks = BLOCK_RECORDS * max(1, partitions)
        self._min_blocks = -(-MIN_IDS // blocks)
        self._max_blocks = max(self._min_blocks, MAX_IDS // blocks)
        # Each id with the number of the newest block that has it.
        self._ids: dict[bytes, int] = {}
        self._blocks: deque[_Block] = deque()
        self.is_exact = False
        """Whether some ids are forgotten: whatever was written before the first record that it was
        given would be, too."""

    @property
    def min_records(self) -> int:
        """How far back it reaches at least."""
        return (self._min_blocks + 1) * BLOCK_RECORDS

    @property
    def max_records(self) -> int:
        """How far back it reaches at most."""
        return (self._max_blocks + 1) * BLOCK_RECORDS

    def note(self, offset: int, appended_ms: int, key: bytes) -> bool:
        """Takes in the next record and returns whether it is a duplicate."""
        if not self._blocks or self._blocks[-1].number != offset // BLOCK_RECORDS:
            self._begin(_Block(offset // BLOCK_RECORDS), appended_ms)
        block = self._blocks[-1]
        block.newest_ms = appended_ms
        block.keys.append(key)
        duplicate = key in self._ids
        self._ids[key] = block.number
        return duplicate

    def _begin(self, block: _Block, appended_ms: int) -> None:
        while self._blocks and self._is_old(self._blocks[0], block.number, appended_ms):
            self._forget(self._blocks.popleft())
            self.is_exact = True
        self._blocks.append(block)

    def _is_old(self, oldest: _Block, number: int, appended_ms: int) -> bool:
        blocks = number - oldest.number
        late = oldest.newest_ms < appended_ms - WINDOW_MS
        return blocks > self._max_blocks or (late and blocks > self._min_blocks)

    def _forget(self, block: _Block) -> None:
        ids = self._ids
        for key in block.keys:
            if ids.get(key) == block.number:
                del ids[key]

    def has(self, key: bytes) -> bool:
        """Whether a record with this id is in the window. For any thread."""
        return key in self._ids

    def __len__(self) -> int:
        return len(self._ids)


class _Live:
    """A partition as the server reads on in it."""

    __slots__ = ("duplicates", "end", "exact_from", "window")

    def __init__(self, start: int, partitions: int, *, exact: bool) -> None:
        self.window = Window(partitions)
        self.end = start
        self.exact_from = start if exact else None
        # The offsets of duplicates from `exact_from` on.
        self.duplicates = array("q")


class Duplicates:
    """What a server knows of duplicates: of all that it reads as it comes, and of stretches of the
    old log that somebody asked for.

    The one thread that reads on calls `begin`, `note`, `advance` and `expect_exact`; all else may
    be called by any. Nothing blocks longer than dictionary operations.
    """

    def __init__(self) -> None:
        self._partitions: dict[int, _Live] = {}
        # Guards what follows, and `duplicates` and `exact_from` of each partition.
        self._lock = threading.Lock()
        # By partition, start and end the offsets of duplicates in between; the oldest first.
        self._verdicts: OrderedDict[tuple[int, int, int], tuple[int, ...]] = OrderedDict()

    def begin(self, positions: Mapping[int, int], partial: Collection[int] = ()) -> None:
        """The log is read on at `positions`; a partition that goes on where it was keeps its ids.
        Of those in `partial` there are earlier records, which are not known."""
        partitions = dict(self._partitions)
        for number, position in positions.items():
            known = partitions.get(number)
            if known is None or known.end != position:
                partitions[number] = _Live(position, len(positions), exact=number not in partial)
        self._partitions = partitions

    def note(self, partition: int, offset: int, appended_ms: int, key: bytes) -> bool:
        """Takes in the next record that has an id and returns whether it is a duplicate."""
        live = self._partitions[partition]
        duplicate = live.window.note(offset, appended_ms, key)
        if live.exact_from is None and live.window.is_exact:
            self.expect_exact(partition, offset)
        if duplicate and live.exact_from is not None:
            self._remember(live, offset)
        return duplicate

    def expect_exact(self, partition: int, offset: int) -> None:
        """All ids are known that decisions on records from `offset` on need."""
        live = self._partitions[partition]
        with self._lock:
            if live.exact_from is None:
                live.exact_from = offset

    def is_exact(self, partition: int) -> bool:
        """Whether decisions on this partition are what every other server decides."""
        return self._partitions[partition].exact_from is not None

    def _remember(self, live: _Live, offset: int) -> None:
        with self._lock:
            live.duplicates.append(offset)
            if len(live.duplicates) > KEPT_DUPLICATES:
                live.exact_from = live.duplicates.pop(0) + 1

    def advance(self, positions: Mapping[int, int]) -> None:
        """Partitions have been read up to these offsets."""
        for partition, end in positions.items():
            self._partitions[partition].end = end

    def has(self, key: bytes) -> bool:
        """Whether the log has a message with this id, as far as this server has read and
        remembers. For any thread."""
        return any(live.window.has(key) for live in self._partitions.values())

    def __len__(self) -> int:
        """How many ids are remembered."""
        return sum(len(live.window) for live in self._partitions.values())

    def new_window(self, partitions: int = 0) -> Window:
        """A window for a stretch of the log, of so many partitions or of as many as there are."""
        return Window(partitions or len(self._partitions))

    def between(self, partition: int, start: int, end: int) -> tuple[int, ...] | None:
        """The offsets of duplicates from `start` up to before `end`; None if that is not known."""
        live = self._partitions.get(partition)
        with self._lock:
            if live is not None and live.exact_from is not None and start >= live.exact_from:
                first = bisect_left(live.duplicates, start)
                return tuple(live.duplicates[first : bisect_left(live.duplicates, end, first)])
            return self._verdicts.get((partition, start, end))

    def learn(self, partition: int, start: int, end: int, offsets: tuple[int, ...]) -> None:
        """Keeps what was found out of a stretch of the old log."""
        with self._lock:
            self._verdicts[partition, start, end] = offsets
            while len(self._verdicts) > KEPT_VERDICTS:
                self._verdicts.popitem(last=False)
