"""Session: one stream between a simulated client and a server, from the server's side what a
connection sends through, from the client's what it reads from."""

from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from typing import NamedTuple

from chatsvc.cursor import CursorFormat
from chatsvc.errors import CloseReason
from chatsvc.pb import chat_pb2

from simulation.topic import Topic
from simulation.turns import Task, Turns

SEND_TIMEOUT = 10.0


class Frame(NamedTuple):
    """What was sent; of a Delivery also its cursor. `live` is what the server had broadcast when
    the step was taken that ends a catch-up."""

    message: chat_pb2.Delivery | chat_pb2.Message
    cursor: Mapping[int, int]
    live: Mapping[int, int]


class Session:
    """A stream with room for `window` frames that the client has not read. It is checked here that
    a connection catches up when it has to, and says so once."""

    def __init__(
        self,
        topic: Topic,
        turns: Turns,
        chance: Random,
        cursors: CursorFormat,
        rooms: frozenset[str],
        outbox: tuple[int, int],
        *,
        batched: bool,
    ) -> None:
        self._topic = topic
        self._turns = turns
        self._chance = chance
        self._cursors = cursors
        self.rooms = rooms
        self._outbox = outbox
        self.batched = batched
        self.window = chance.randint(1, 3)
        self.buffer: deque[Frame] = deque()
        self._live: Callable[[], Mapping[int, int]] = dict
        self._sender: Callable[[], Task | None] = lambda: None
        self.is_over = False
        self.ended: CloseReason | None = None
        self.timed_out = False
        self.owed: Mapping[int, int] = {}
        """What had been broadcast when the server began to stop."""
        self._sent: Mapping[int, int] = {}
        self.catching_up = batched
        self._interrupted = False
        self._level: Mapping[int, int] = {}

    def start(
        self,
        begin: Mapping[int, int],
        live: Callable[[], Mapping[int, int]],
        sender: Callable[[], Task | None],
    ) -> None:
        """It begins at these positions; `live` tells what the server has broadcast, `sender` who
        drains the connection."""
        self._sender = sender
        self._sent = begin
        self._live = live

    def catches_up(self, live: Mapping[int, int]) -> None:
        """The connection takes a step of a replay towards where the server is now."""
        if not (self.catching_up or self.is_over or self._interrupted):
            self._check_overflow()
        self._interrupted = False
        self.catching_up = self.batched
        self._level = live

    def interrupted(self) -> None:
        """Something is lost on the way to its server: it catches up, or is closed if it cannot."""
        self._interrupted = True

    def _check_overflow(self) -> None:
        """More than an outbox may hold has been broadcast and not sent."""
        waiting = list(self._topic.between(self.rooms, self._sent, self._live()))
        size = sum(len(each.element) for each in waiting)
        assert len(waiting) > self._outbox[0] or size > self._outbox[1], (
            f"an outbox of {len(waiting)} messages was dropped"
        )

    def send(self, frame: bytes) -> None:
        """A stream's send; when it blocks, the client has not read, or it is somebody else's
        turn."""
        if self._chance.random() < 0.3:
            self._turns.pause()
        if len(self.buffer) >= self.window:
            self._turns.pause(self._may_return)
        assert self._sender() is self._turns.current, "a connection is drained twice at once"
        if self.is_over or self.ended is not None:
            return
        if self.batched:
            self._send_delivery(chat_pb2.Delivery.FromString(frame))
        else:
            message = chat_pb2.Message.FromString(frame)
            partition, offset = place(message)
            self._sent = {**self._sent, partition: offset + 1}
            self.buffer.append(Frame(message, {}, {}))
        if self._chance.random() < 0.1:
            self._turns.pause()
            assert self._sender() is self._turns.current, "a connection is drained twice at once"

    def _may_return(self) -> bool:
        return self.is_over or self.ended is not None or len(self.buffer) < self.window

    def _send_delivery(self, delivery: chat_pb2.Delivery) -> None:
        cursor = self._cursors.decode(delivery.cursor)
        if delivery.caught_up:
            assert self.catching_up, "caught_up was said twice"
            self.catching_up = False
        self._sent = cursor
        self.buffer.append(Frame(delivery, cursor, self._level))

    def end(self, reason: CloseReason) -> None:
        assert self.ended is None, "a stream was ended twice"
        self.ended = reason
        if self.is_over or self.timed_out or self.catching_up or self._interrupted:
            return
        if reason is CloseReason.SLOW:
            assert not self.batched, "a subscription that reads was closed as slow"
            self._check_overflow()
        elif any(self._topic.between(self.rooms, self._begin(), self.owed)):
            assert self.batched, "a stream was ended before its outbox was empty"
            self._check_overflow()

    def _begin(self) -> dict[int, int]:
        """Where what is to be sent begins: of a new partition at the first record that is left."""
        return {
            each: self._sent.get(each, 0) or start for each, start in self._topic.starts.items()
        }

    def cancel(self) -> None:
        self.is_over = True


def place(message: chat_pb2.Message) -> tuple[int, int]:
    """The partition and offset that a message tells."""
    partition, offset, _ = message.content.split("/", 2)
    return int(partition), int(offset)
