"""Feed: the recent batches of some rooms, which their connections read by position.

A connection's outbox is the part of the feed behind its position. All connections share the
batches, so a thousand that are behind by the same messages hold them once, and a fan-out costs
nothing for a connection that is already behind. The feed keeps as much as one outbox may hold; a
connection whose position is no longer in it has overflowed.
"""

import threading
from collections import deque
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from chatsvc import frames
from chatsvc.frames import Batch

R = TypeVar("R", bound=Hashable)

KEPT_JOINS = 4
"""Readers come in waves, one after each append, so few joins serve most of them."""


class Position(NamedTuple):
    """A place between two batches: how many batches, messages and bytes came before it."""

    batches: int
    messages: int
    size: int


class Overflow(Exception):
    """The position is older than the feed: what follows it is no longer there."""


class Feed(Generic[R]):
    """Batches in arrival order, at most `max_messages` and `max_bytes` of them (the newest one
    stays whatever its size), and the readers `R` that rest at its end.

    Thread-safe; no method blocks longer than a list operation.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        # Guards all that follows; held for list operations only.
        self._lock = threading.Lock()
        self._batches: deque[Batch] = deque()
        self._start = self._end = Position(0, 0, 0)
        self._resting: set[R] = set()
        # The newest joins, by the batches before and up to their end: readers that are behind by
        # the same batches share one.
        self._joined: dict[tuple[int, int], bytes] = {}

    @property
    def end(self) -> Position:
        """The position behind the newest batch."""
        return self._end

    def append(self, batch: Batch) -> set[R]:
        """Adds the newest batch, forgets the oldest over the limits, and returns who rested at
        the end: each of them has something to read now, and rests no longer."""
        with self._lock:
            self._batches.append(batch)
            self._end = _after(self._end, batch)
            while len(self._batches) > 1 and self._over_limits():
                self._start = _after(self._start, self._batches.popleft())
            woken = self._resting
            self._resting = set()
            return woken

    def interrupt(self) -> set[R]:
        """What is appended next does not follow what was appended before: every reader that is
        here has overflowed. Returns who rested at the end, and rests no longer."""
        with self._lock:
            self._batches.clear()
            self._start = self._end = self._end._replace(batches=self._end.batches + 1)
            woken = self._resting
            self._resting = set()
            return woken

    def _over_limits(self) -> bool:
        return (
            self._end.messages - self._start.messages > self._max_messages
            or self._end.size - self._start.size > self._max_bytes
        )

    def read(
        self, position: Position, max_messages: int, max_bytes: int
    ) -> tuple[list[Batch], Position]:
        """The batches that follow `position`, as many as begin within `max_messages` and end within
        `max_bytes`, at least one if there is one, and the position behind them. Raises Overflow if
        the feed no longer reaches back so far."""
        taken: list[Batch] = []
        with self._lock:
            following = self._end.batches - position.batches
            if following > len(self._batches):
                raise Overflow
            # From the right, where most readers are: a deque is quick near its ends.
            for index in range(-following, 0):
                batch = self._batches[index]
                max_bytes -= batch.size
                if taken and (max_messages <= 0 or max_bytes < 0):
                    break
                taken.append(batch)
                max_messages -= len(batch.messages)
        for batch in taken:
            position = _after(position, batch)
        return taken, position

    def join(self, batches: list[Batch], end: Position) -> bytes:
        """Batches that `read` gave, up to `end`, as one Delivery, which all readers that ask for
        the same share."""
        key = (end.batches - len(batches), end.batches)
        joined = self._joined.get(key)
        if joined is None:
            joined = frames.join(batches)
            with self._lock:
                while len(self._joined) >= KEPT_JOINS:
                    del self._joined[next(iter(self._joined))]
                self._joined[key] = joined
        return joined

    def has_overflowed(self, position: Position) -> bool:
        """Whether what follows `position` is partly gone."""
        return position.batches < self._start.batches

    def nearly_overflows(self, position: Position) -> bool:
        """Whether more than half of what the feed may hold follows `position`."""
        return (
            2 * (self._end.messages - position.messages) > self._max_messages
            or 2 * (self._end.size - position.size) > self._max_bytes
        )

    def backlog(self, position: Position) -> int:
        """How many messages follow `position`."""
        return self._end.messages - position.messages

    def rest(self, reader: R, position: Position) -> bool:
        """If nothing follows `position`, keeps `reader` until the next append and returns True."""
        with self._lock:
            if position.batches != self._end.batches:
                return False
            self._resting.add(reader)
            return True

    def rouse(self, reader: R) -> bool:
        """Lets `reader` rest no longer; returns whether it did."""
        with self._lock:
            if reader not in self._resting:
                return False
            self._resting.remove(reader)
            return True


def _after(position: Position, batch: Batch) -> Position:
    return Position(
        position.batches + 1,
        position.messages + len(batch.messages),
        position.size + batch.size,
    )
