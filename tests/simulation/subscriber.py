"""Subscriber: a simulated client, which knows at any moment what it was to be given so far."""

from collections import defaultdict
from collections.abc import Mapping
from random import Random

from chatsvc.connection import Connection
from chatsvc.cursor import CursorFormat
from chatsvc.errors import ServerFull, ServerStopping
from chatsvc.pb import chat_pb2

from simulation.node import IDENTITY, Node
from simulation.session import Frame, Session, place
from simulation.topic import Topic
from simulation.turns import Turns

CURSORS = CursorFormat(IDENTITY)


class Subscriber:
    """One client, from stream to stream. `at` is of each partition the offset up to which it was
    given all of its rooms; it is checked frame by frame. A partition that is not there begins at
    its first record, some of which retention may have deleted without a word."""

    def __init__(self, user: str, rooms: frozenset[str], topic: Topic, *, batched: bool) -> None:
        self.user = user
        self.rooms = rooms
        self.batched = batched
        self._topic = topic
        self.at: dict[int, int] = {}
        self.cursor = b""
        self.node: Node | None = None
        self.session: Session | None = None
        self.connection: Connection | None = None
        self.is_active = False
        self.received = 0
        self.gaps = 0
        self.catch_ups = 0

    def __repr__(self) -> str:
        return self.user

    def connect(self, node: Node, turns: Turns, chance: Random) -> bool:
        """Opens a stream at a server, from its cursor on or from now on."""
        outbox = (node.limits.outbox_messages, node.limits.outbox_bytes)
        session = Session(
            self._topic, turns, chance, CURSORS, self.rooms, outbox, batched=self.batched
        )
        positions = node.cursors.decode(self.cursor) if self.cursor else None
        try:
            connection = node.hub.add(
                self.user, session, rooms=self.rooms, batched=self.batched, positions=positions
            )
        except ServerFull:
            assert len(node.hub) >= node.limits.seats, "a server that is not full refused"
            return False
        except ServerStopping:
            assert node.stopping
            return False
        node.added += 1
        node.pool.know(connection)
        node.sessions[connection] = session
        if not self.cursor:
            self.at = dict(node.hub.live())
        session.start(dict(self.at), node.hub.live, lambda: node.pool.drained_by.get(connection))
        self.node, self.session, self.connection = node, session, connection
        self.is_active = False
        return True

    def activate(self) -> None:
        """The server lets its senders have the connection."""
        assert self.node is not None
        assert self.connection is not None
        self.is_active = True
        self.node.hub.activate(self.connection)

    def read(self) -> bool:
        """Reads a frame, or the end. Returns whether there was one."""
        session = self.session
        if session is None:
            return False
        if session.buffer:
            self._take(session.buffer.popleft())
            return True
        if session.is_over or session.ended is not None:
            self.leave()
            return True
        return False

    def leave(self) -> None:
        """The stream is over, whatever has not been read."""
        assert self.node is not None
        assert self.session is not None
        assert self.connection is not None
        self.session.is_over = True
        self.node.over.append(self.connection)
        self.node = self.session = self.connection = None

    def _take(self, frame: Frame) -> None:
        message = frame.message
        if isinstance(message, chat_pb2.Message):
            partition, offset = place(message)
            # What it was to be given before this one is nothing.
            self._check([message], {}, self.at | {partition: offset + 1})
            return
        gaps: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for gap in message.gaps:
            gaps[gap.partition].append((gap.start, gap.end))
        self._check(message.messages, gaps, frame.cursor)
        self.cursor = message.cursor
        if message.caught_up:
            self.catch_ups += 1
            behind = {each for each, end in frame.live.items() if self.at.get(each, 0) < end}
            assert not behind, f"caught up, but not in partitions {behind}"

    def _check(
        self,
        messages: list[chat_pb2.Message],
        gaps: Mapping[int, list[tuple[int, int]]],
        cursor: Mapping[int, int],
    ) -> None:
        """The messages are those of its rooms up to `cursor`, but for the gaps, which are as large
        as what retention has deleted."""
        given: dict[int, list[int]] = defaultdict(list)
        for message in messages:
            partition, offset = place(message)
            assert message.room in self.rooms, f"a message of room {message.room!r}"
            given[partition].append(offset)
        for partition in {*given, *gaps, *cursor, *self.at}:
            self._check_partition(
                partition, given[partition], gaps.get(partition, []), cursor.get(partition, 0)
            )
        self.at = dict(cursor)
        self.received += len(messages)

    def _check_partition(
        self, partition: int, given: list[int], gaps: list[tuple[int, int]], end: int
    ) -> None:
        topic = self._topic
        at = self.at.get(partition, 0)
        expected: list[int] = []
        for first, last in gaps:
            expected += self._offsets(partition, at, first)
            assert at <= first < last <= topic.starts[partition], f"a gap {first} to {last}"
            at = last
            self.gaps += 1
        assert at <= end <= topic.ends[partition], f"a cursor from {at} to {end}"
        expected += self._offsets(partition, at, end)
        if not self.at.get(partition, 0):
            lost = max(len(expected) - len(given), 0)
            left = [each for each in expected[:lost] if each >= topic.starts[partition]]
            assert not left, f"partition {partition}: {left} of its first records were not given"
            expected = expected[lost:]
        assert given == expected, (
            f"partition {partition}: given {given} instead of {expected}, at {at}, to {end}"
        )

    def _offsets(self, partition: int, start: int, end: int) -> list[int]:
        return [each.offset for each in self._topic.messages(self.rooms, partition, start, end)]

    def check_level(self) -> None:
        """It has all of its rooms that there is, and was told so."""
        if self.session is None:
            return
        assert not self.session.catching_up, f"{self} was not told that it has caught up"
        for partition, end in self._topic.ends.items():
            start = self.at.get(partition, 0) or self._topic.starts[partition]
            missing = self._offsets(partition, start, end)
            assert not missing, f"{self} was forgotten: {missing} of partition {partition}"
