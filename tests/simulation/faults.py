"""Faults that the simulation has to find: parts as they might be if somebody had got them wrong."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from chatsvc.connection import Connection, Stream
from chatsvc.cursor import CursorFormat
from chatsvc.entries import Entry
from chatsvc.feed import Feed, Position
from chatsvc.hub import THE_LOBBY, Hub, Rooms
from chatsvc.replay import Chunk, Need
from chatsvc.seats import Seats
from chatsvc.tail import Tail

from simulation.node import Parts

Level = tuple[Mapping[int, int], Position]


class SkippingTail(Tail):
    """Begins one entry too late."""

    def read(self, number: int, start: int, end: int, limit: int) -> list[Entry]:
        return super().read(number, start, end, limit)[1:]


class ShortTail(Tail):
    """Ends one offset too early."""

    def read(self, number: int, start: int, end: int, limit: int) -> list[Entry]:
        return super().read(number, start, end - 1, limit)


class LongTail(Tail):
    """Ends one offset too late, with what the feed brings too."""

    def read(self, number: int, start: int, end: int, limit: int) -> list[Entry]:
        return super().read(number, start, end + 1, limit)


class LargeTail(Tail):
    """Keeps more than it may."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(2 * max_bytes)


class EarlyEnd(Hub):
    """Hands over to the feed one batch before where the replay has come to."""

    def level(self, feed: Feed[Connection]) -> Level:
        live, end = super().level(feed)
        return live, end._replace(batches=max(end.batches - 1, 0))


class LateEnd(Hub):
    """Has the replay end one batch before where the feed is gone on with."""

    before: Mapping[int, int] = {}

    def broadcast(
        self, messages: Sequence[tuple[str, bytes]], positions: Mapping[int, int], now: float
    ) -> None:
        before, _ = self.level(Feed(1, 1))
        super().broadcast(messages, positions, now)
        self.before = before

    def level(self, feed: Feed[Connection]) -> Level:
        live, end = super().level(feed)
        return self.before or live, end


class TwoLooks(Hub):
    """Looks for positions and end one after the other, not at one moment."""

    def level(self, feed: Feed[Connection]) -> Level:
        live, _ = super().level(feed)
        return live, feed.end


class LateWait(Hub):
    """Does not see that more has come since a connection looked, before it begins to wait."""

    def level(self, feed: Feed[Connection]) -> Level:
        found = super().level(feed)
        return found  # noqa: RET504 (a line before which more may come)

    def wait(self, connection: Connection, live: Mapping[int, int]) -> None:
        super().wait(connection, super().level(Feed(1, 1))[0])


class FetchesTwice(Hub):
    """Asks twice for one chunk."""

    def fetch(self, need: Need, connection: Connection) -> None:
        super().fetch(need, connection)
        super().fetch(need, connection)


class ResumesLate(Hub):
    """Begins one offset behind a client's cursor."""

    def add(
        self,
        user: str,
        stream: Stream,
        *,
        rooms: Rooms = THE_LOBBY,
        batched: bool = False,
        positions: Mapping[int, int] | None = None,
    ) -> Connection:
        if positions is not None:
            positions = {partition: offset + 1 for partition, offset in positions.items()}
        return super().add(user, stream, rooms=rooms, batched=batched, positions=positions)


class SortsByRoom(Hub):
    """Broadcasts a read's messages room after room."""

    def broadcast(
        self, messages: Sequence[tuple[str, bytes]], positions: Mapping[int, int], now: float
    ) -> None:
        super().broadcast(sorted(messages, key=lambda each: each[0]), positions, now)


class AsksTooEarly(Hub):
    """Leaves out messages of rooms that nobody was in before it waited for its senders."""

    def broadcast(
        self, messages: Sequence[tuple[str, bytes]], positions: Mapping[int, int], now: float
    ) -> None:
        heard = [(room, encoded) for room, encoded in messages if self.has_room(room)]
        super().broadcast(heard, positions, now)


class CursorTooFar(CursorFormat):
    """Encodes a cursor of one offset too far."""

    def encode(self, positions: Mapping[int, int]) -> bytes:
        return super().encode({each: offset + 1 for each, offset in positions.items()})


class CursorTooShort(CursorFormat):
    """Encodes a cursor of one offset too few."""

    def encode(self, positions: Mapping[int, int]) -> bytes:
        return super().encode({each: max(offset - 1, 0) for each, offset in positions.items()})


class KeptSeats(Seats):
    """Does not take seats back."""

    def give(self) -> None:
        pass


def one_too_far(chunk: Chunk, need: Need) -> Chunk:
    """Claims to reach one offset further than it was read."""
    return chunk._replace(end=chunk.end + 1)


def one_too_few(chunk: Chunk, need: Need) -> Chunk:
    """Lacks its last message."""
    return chunk._replace(entries=chunk.entries[:-1])


def without_gap(chunk: Chunk, need: Need) -> Chunk:
    """Does not tell that what was asked for is deleted."""
    return chunk._replace(start=min(chunk.start, need.start))


def with_gap(chunk: Chunk, need: Need) -> Chunk:
    """Tells of one offset that it is deleted, which it is not."""
    return chunk._replace(start=max(chunk.start, need.start + 1))


Fault = type[Tail] | type[Hub] | type[CursorFormat] | type[Seats] | Callable[[Chunk, Need], Chunk]
FAULTS: Sequence[Fault] = (
    *(SkippingTail, ShortTail, LongTail, LargeTail),
    *(EarlyEnd, LateEnd, TwoLooks, LateWait, FetchesTwice, ResumesLate, SortsByRoom, AsksTooEarly),
    *(CursorTooFar, CursorTooShort, KeptSeats),
    *(one_too_far, one_too_few, without_gap, with_gap),
)


def planted(fault: Fault) -> Parts:
    """Servers with a fault."""
    parts = Parts(suspects=(sys.modules[__name__],))
    if not isinstance(fault, type):
        return replace(parts, chunk=fault)
    for name, part in (("tail", Tail), ("hub", Hub), ("cursors", CursorFormat), ("seats", Seats)):
        if issubclass(fault, part):
            return replace(parts, **{name: fault})
    raise TypeError(fault)
