"""Archive: answers what is asked about older messages, a call at a time."""

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Generic, NamedTuple, TypeVar

from chatsvc.errors import ArchiveUnavailable
from chatsvc.history import MAX_BYTES, Backwards
from chatsvc.model import Gap
from chatsvc.replay import Chunk, Need, Replay
from chatsvc.tail import Tail

T = TypeVar("T")

PATIENCE_SECONDS = 10.0
"""How long to wait for Kafka in one call."""
MAX_STEPS = 200
"""How many steps forwards a call takes at most, of up to 1,000 records each."""

Fetch = Callable[[Need, Callable[[Chunk | None], None]], None]
"""LogReader.fetch."""
Locate = Callable[[Mapping[int, int], int, Callable[[Mapping[int, int] | None], None]], None]
"""LogReader.locate."""


class Page(NamedTuple):
    """Messages as elements of Delivery.messages, oldest first, and the positions around them; `end`
    if there is nothing more in the direction asked for."""

    elements: list[bytes]
    before: Mapping[int, int]
    after: Mapping[int, int]
    end: bool
    gaps: list[Gap]


class Archive:
    """What Kafka keeps, read in pages. Thread-safe; all calls block while Kafka is asked, for a
    bounded number of records, and raise ArchiveUnavailable if it does not answer.

    `live` gives the positions up to which this server has read.
    """

    def __init__(
        self, tail: Tail, fetch: Fetch, locate: Locate, live: Callable[[], Mapping[int, int]]
    ) -> None:
        self._tail = tail
        self._fetch = fetch
        self._locate = locate
        self._live = live

    def since(self, time_ms: int) -> Mapping[int, int]:
        """The positions of what was appended from a time on, in milliseconds of Unix time."""
        live = self._live()
        answer: _Answer[Mapping[int, int]] = _Answer()
        self._locate(live, time_ms, answer.give)
        # Kafka's end may be further than this server has read.
        return {each: min(at, live[each]) for each, at in answer.wait().items()}

    def newest(self, rooms: Collection[str], count: int) -> Mapping[int, int]:
        """The positions before the newest `count` messages of some rooms, or before all of them."""
        backwards = Backwards(rooms, self._live(), count, only_positions=True)
        self._search(backwards)
        return backwards.positions

    def before(
        self, rooms: Collection[str], positions: Mapping[int, int] | None, limit: int
    ) -> Page:
        """The newest messages of some rooms that are before `positions` (None: all that there are),
        `limit` at most."""
        after = self._live() if positions is None else positions
        backwards = Backwards(rooms, after, limit)
        self._search(backwards)
        at_beginning = backwards.is_at_beginning
        return Page(backwards.elements, backwards.positions, after, at_beginning, [])

    def _search(self, backwards: Backwards) -> None:
        while (need := backwards.step(self._tail)) is not None:
            backwards.take(self._chunk(need))

    def after(
        self, rooms: Collection[str], positions: Mapping[int, int] | None, limit: int
    ) -> Page:
        """The messages that follow `positions` (None: the first that Kafka has)."""
        replay = Replay(rooms, positions or {})
        before = dict(replay.positions)
        live = self._live()
        elements: list[bytes] = []
        gaps: list[Gap] = []
        level = False
        for _ in range(MAX_STEPS):
            size = sum(map(len, elements))
            if level or len(elements) >= limit or size > MAX_BYTES // 2:
                break
            step = replay.step(live, self._tail, limit - len(elements))
            while isinstance(step, Need):
                replay.take(self._chunk(step))
                step = replay.step(live, self._tail, limit - len(elements))
            elements += step.elements
            gaps += step.gaps
            level = step.level
        return Page(elements, before, replay.positions, level, gaps)

    def _chunk(self, need: Need) -> Chunk:
        answer: _Answer[Chunk] = _Answer()
        self._fetch(need, answer.give)
        return answer.wait()


class _Answer(Generic[T]):
    """What another thread gives once and one waits for."""

    def __init__(self) -> None:
        self._given = threading.Event()
        self._answer: T | None = None

    def give(self, answer: T | None) -> None:
        self._answer = answer
        self._given.set()

    def wait(self) -> T:
        self._given.wait(PATIENCE_SECONDS)
        if self._answer is None:
            raise ArchiveUnavailable
        return self._answer
