"""History: the log read backwards.

As chatsvc.replay, which reads it forwards, it knows no thread and no clock and reads nothing
itself: whoever drives it fetches the chunks.
"""

from collections.abc import Collection, Mapping
from itertools import accumulate

from chatsvc.entries import Entry
from chatsvc.replay import Chunk, Need
from chatsvc.tail import NotInTail, Tail

SCAN_RECORDS = 512
"""How many offsets of a partition are looked through at once."""
MAX_SCANNED = 100_000
"""How many in all: messages of a quiet room may be far apart."""
MAX_BYTES = 1024 * 1024
"""How much is taken, if there is more than one message; gRPC's clients take 4 MiB."""


class _Part:
    """A partition: all from `bottom` on is looked through, and `found` are the messages of it, in
    order and with their times, that are not taken yet. `is_empty`: nothing is before `bottom`."""

    __slots__ = ("bottom", "found", "is_empty")

    def __init__(self, position: int) -> None:
        self.bottom = position
        self.found: list[tuple[int, Entry]] = []
        self.is_empty = position <= 0

    @property
    def position(self) -> int:
        """Before which nothing is taken yet."""
        return self.found[-1][1].offset + 1 if self.found else self.bottom


class Backwards:
    """The newest `limit` messages of some rooms that are before some positions. A partition that
    these do not know is left out. With `only_positions` the messages themselves are not wanted,
    and may have any size. For one thread at a time."""

    def __init__(
        self,
        rooms: Collection[str],
        positions: Mapping[int, int],
        limit: int,
        only_positions: bool = False,
    ) -> None:
        self._rooms = rooms
        self._left = limit
        self._keeps = not only_positions
        self._parts = {each: _Part(position) for each, position in positions.items()}
        self._taken: list[bytes] = []
        self._bytes = 0
        self._scanned = 0

    @property
    def elements(self) -> list[bytes]:
        """What was taken, as elements of Delivery.messages, oldest first."""
        return self._taken[::-1]

    @property
    def positions(self) -> dict[int, int]:
        """The places before all that was taken."""
        return {each: part.position for each, part in self._parts.items()}

    @property
    def is_at_beginning(self) -> bool:
        """Whether nothing is before the positions."""
        return not any(part.found or not part.is_empty for part in self._parts.values())

    def step(self, tail: Tail) -> Need | None:
        """Goes on as far as it can; what is needed then, None at the end: all is taken that was
        asked for, or that there is, or the search has gone far enough."""
        while self._left > 0 and self._bytes < MAX_BYTES:
            for number, part in self._parts.items():
                while not (part.found or part.is_empty):
                    if self._scanned >= MAX_SCANNED:
                        return None
                    need = self._scan(number, part, tail)
                    if need is not None:
                        return need
            if not self._take_newest():
                return None
        return None

    def _scan(self, number: int, part: _Part, tail: Tail) -> Need | None:
        start = (part.bottom - 1) // SCAN_RECORDS * SCAN_RECORDS
        try:
            entries = tail.read(number, start, part.bottom, SCAN_RECORDS)
        except NotInTail:
            return Need(number, start, part.bottom, whole=True)
        self._look_through(part, start, entries)
        return None

    def take(self, chunk: Chunk) -> None:
        """A chunk that `step` has asked for."""
        part = self._parts[chunk.partition]
        asked = (part.bottom - 1) // SCAN_RECORDS * SCAN_RECORDS
        if chunk.start > asked:
            part.is_empty = True
        entries = [each for each in chunk.entries if asked <= each.offset < part.bottom]
        self._look_through(part, asked, entries)

    def _look_through(self, part: _Part, start: int, entries: Collection[Entry]) -> None:
        self._scanned += part.bottom - start
        part.bottom = start
        part.is_empty = part.is_empty or start == 0
        found = [each for each in entries if each.room in self._rooms]
        # No time is later than one behind it: clocks may go back, and the order of a partition
        # stands.
        times = list(accumulate((each.appended_ms for each in reversed(found)), min))
        part.found = list(zip(reversed(times), found, strict=True))

    def _take_newest(self) -> bool:
        """Takes the newest of what is found. Returns False if there is nothing."""
        parts = [(part.found[-1][0], number) for number, part in self._parts.items() if part.found]
        if not parts:
            return False
        _, newest = max(parts)
        _, entry = self._parts[newest].found.pop()
        self._left -= 1
        if self._keeps:
            self._taken.append(entry.element)
            self._bytes += len(entry.element)
        return True
