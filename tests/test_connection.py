import pytest

from chatsvc import frames
from chatsvc.connection import Connection
from chatsvc.errors import CloseReason
from chatsvc.feed import Feed, Position
from chatsvc.frames import Batch, batch
from chatsvc.model import ChatMessage
from chatsvc.pb import chat_pb2

SEND_TIMEOUT = 10.0
OUTBOX_MESSAGES = 200


class RecordingStream:
    """Takes every frame at once."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended: list[CloseReason] = []
        self.cancelled = 0

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def end(self, reason: CloseReason) -> None:
        self.ended.append(reason)

    def cancel(self) -> None:
        self.cancelled += 1


class CountingPulse:
    """A sender that notes what it is told."""

    def __init__(self) -> None:
        self.beats = 0
        self.batches: list[tuple[int, float]] = []

    takes_those_behind = True

    def beat(self) -> float:
        self.beats += 1
        return 100.0

    def sent(self, messages: int, fanned_out_at: float) -> None:
        self.batches.append((messages, fanned_out_at))


class InterruptedFeed(Feed[Connection]):
    """Runs `interruption` just before a reader comes to rest, as another thread might."""

    def rest(self, reader: Connection, position: Position) -> bool:
        self.interruption()
        return super().rest(reader, position)

    def interruption(self) -> None:
        """Nothing, unless a test sets it."""


class InterruptedRead(InterruptedFeed):
    """Runs `interruption` just after a reader has found nothing, once, and not before its rest."""

    def read(
        self, position: Position, max_messages: int, max_bytes: int
    ) -> tuple[list[Batch], Position]:
        found = super().read(position, max_messages, max_bytes)
        if not found[0]:
            interruption, self.interruption = self.interruption, lambda: None  # type: ignore[method-assign]
            interruption()
        return found


class InterruptedStream(RecordingStream):
    """Runs `interruption` inside of the first send, as another thread might."""

    def send(self, frame: bytes) -> None:
        super().send(frame)
        if len(self.sent) == 1:
            self.interruption()

    def interruption(self) -> None:
        """Nothing, unless a test sets it."""


class Scene:
    """One connection over a feed, and what became of it."""

    def __init__(
        self,
        stream: RecordingStream | None = None,
        feed: Feed[Connection] | None = None,
        *,
        batched: bool = False,
    ) -> None:
        self.feed = feed or Feed(OUTBOX_MESSAGES, 10_000)
        self.stream = stream or RecordingStream()
        self.pulse = CountingPulse()
        self.on_end: list[Connection] = []
        self.connection = Connection(
            "ann", self.feed, self.stream, SEND_TIMEOUT, self.on_end.append, batched=batched
        )

    def append(self, *messages: bytes) -> set[Connection]:
        return self.feed.append(batch(messages, 7.0))

    def drain(self) -> None:
        """Drains as a pool does: until the connection has nothing more to do."""
        while self.connection.drain(self.pulse):
            pass


def numbered(first: int, last: int) -> Batch:
    """A batch of numbers as text."""
    return batch([str(number).encode() for number in range(first, last)], 7.0)


def test_messages_are_sent_in_order() -> None:
    """All batches of the outbox are sent, message by message, oldest first."""
    scene = Scene()
    for first in range(0, OUTBOX_MESSAGES, 10):
        scene.feed.append(numbered(first, first + 10))
    scene.drain()
    assert scene.stream.sent == [str(number).encode() for number in range(OUTBOX_MESSAGES)]
    assert scene.connection.backlog == 0


def test_messages_from_before_are_not_sent() -> None:
    """A connection begins at the end of the feed."""
    feed: Feed[Connection] = Feed(10, 100)
    feed.append(batch([b"old"], 0.0))
    scene = Scene(feed=feed)
    scene.append(b"new")
    scene.drain()
    assert scene.stream.sent == [b"new"]


def test_a_drained_connection_rests() -> None:
    """The append after a drain gives the connection back, the one after that does not."""
    scene = Scene()
    scene.drain()
    assert scene.append(b"1") == {scene.connection}
    assert scene.append(b"2") == set()
    scene.drain()
    assert scene.append(b"3") == {scene.connection}


def test_the_pulse_is_told_of_every_send() -> None:
    """A beat comes before each send, and each batch is reported with its time."""
    scene = Scene()
    scene.append(b"1", b"2")
    scene.append(b"3")
    scene.drain()
    assert scene.pulse.beats == 1 + 3  # the turn, and each send
    assert scene.pulse.batches == [(2, 7.0), (1, 7.0)]


def test_an_overflow_ends_the_stream_as_slow() -> None:
    """When the feed has forgotten what comes next, nothing more is sent."""
    scene = Scene()
    for _ in range(OUTBOX_MESSAGES + 1):
        scene.append(b"x")
    scene.drain()
    assert scene.stream.sent == []
    assert scene.stream.ended == [CloseReason.SLOW]
    assert scene.on_end == [scene.connection]


def test_nearly_overflows_is_more_than_half() -> None:
    """An outbox that is half full does not nearly overflow, one message more does."""
    scene = Scene()
    scene.feed.append(numbered(0, OUTBOX_MESSAGES // 2))
    assert not scene.connection.nearly_overflows
    scene.append(b"x")
    assert scene.connection.nearly_overflows


def test_close_sends_what_is_in_the_outbox() -> None:
    """A connection that is closed for a shutdown gets its messages first, then the end."""
    scene = Scene()
    scene.append(b"1", b"2")
    assert not scene.connection.close(CloseReason.SHUTDOWN)
    scene.drain()
    assert scene.stream.sent == [b"1", b"2"]
    assert scene.stream.ended == [CloseReason.SHUTDOWN]
    assert scene.connection.close_reason is CloseReason.SHUTDOWN


def test_close_asks_for_a_sender_once() -> None:
    """Closing a resting connection says that it needs a sender; closing it again does not."""
    scene = Scene()
    scene.drain()
    assert scene.connection.close(CloseReason.SHUTDOWN)
    assert not scene.connection.close(CloseReason.SHUTDOWN)
    scene.drain()
    assert scene.stream.ended == [CloseReason.SHUTDOWN]


def test_a_closed_connection_does_not_rest() -> None:
    """A connection that has ended is not given back by an append."""
    scene = Scene()
    scene.connection.close(CloseReason.SHUTDOWN)
    scene.drain()
    assert scene.append(b"late") == set()


def test_a_close_just_before_the_rest_is_not_missed() -> None:
    """Who closes then finds nobody resting, so the drain itself ends the stream."""
    feed = InterruptedFeed(10, 100)
    scene = Scene(feed=feed)
    asked: list[bool] = []

    def close() -> None:
        asked.append(scene.connection.close(CloseReason.SHUTDOWN))

    feed.interruption = close  # type: ignore[method-assign]
    scene.drain()
    assert asked[0] is False
    assert scene.stream.ended == [CloseReason.SHUTDOWN]


def test_a_close_just_after_the_last_append_is_after_it() -> None:
    """What was appended before the close is sent, also if a drain had just found nothing."""
    feed = InterruptedRead(10, 100)
    scene = Scene(feed=feed)

    def append_and_close() -> None:
        scene.append(b"last")
        scene.connection.close(CloseReason.SHUTDOWN)

    feed.interruption = append_and_close  # type: ignore[method-assign]
    scene.drain()
    assert (scene.stream.sent, scene.stream.ended) == ([b"last"], [CloseReason.SHUTDOWN])


def test_a_leave_just_before_the_rest_is_not_missed() -> None:
    """A connection that has left while its drain came to rest does not stay in the feed."""
    feed = InterruptedFeed(10, 100)
    scene = Scene(feed=feed)
    feed.interruption = scene.connection.leave  # type: ignore[method-assign]
    scene.drain()
    assert scene.append(b"x") == set()
    assert scene.stream.ended == []


def test_nothing_is_sent_after_leave() -> None:
    """A stream that is over gets neither messages nor an end."""
    scene = Scene()
    scene.append(b"1")
    scene.connection.leave()
    scene.drain()
    assert (scene.stream.sent, scene.stream.ended) == ([], [])
    assert scene.connection.close_reason is CloseReason.LEFT


def test_leave_takes_a_resting_connection_from_the_feed() -> None:
    """The feed does not keep a connection that has left."""
    scene = Scene()
    scene.drain()
    scene.connection.leave()
    assert scene.append(b"x") == set()


def test_leave_keeps_the_reason_of_the_close() -> None:
    """A stream that ends because the server closed it has not left by itself."""
    scene = Scene()
    scene.connection.close(CloseReason.SHUTDOWN)
    scene.connection.leave()
    assert scene.connection.close_reason is CloseReason.SHUTDOWN


def test_a_connection_that_has_left_is_not_closed() -> None:
    """A shutdown that comes after the client has gone changes nothing."""
    scene = Scene()
    scene.drain()
    scene.connection.leave()
    assert not scene.connection.close(CloseReason.SHUTDOWN)
    assert scene.connection.close_reason is CloseReason.LEFT


def test_a_turn_stops_when_the_stream_is_over() -> None:
    """What is left of a turn is neither sent nor counted once the client has gone."""
    stream = InterruptedStream()
    scene = Scene(stream)
    stream.interruption = scene.connection.leave  # type: ignore[method-assign]
    scene.append(b"1", b"2", b"3")
    scene.drain()
    assert stream.sent == [b"1"]
    assert sum(messages for messages, _ in scene.pulse.batches) <= 1


@pytest.mark.parametrize("shutting_down", [False, True])
def test_a_send_that_takes_too_long_ends_as_slow(shutting_down: bool) -> None:
    """A client that blocks one send beyond the timeout is slow, also during a shutdown."""
    scene = Scene()
    if shutting_down:
        scene.connection.close(CloseReason.SHUTDOWN)
    scene.connection.check_send(SEND_TIMEOUT, 50.0)
    assert scene.stream.ended == []
    scene.connection.check_send(SEND_TIMEOUT + 0.1, 50.0)
    assert scene.stream.ended == [CloseReason.SLOW]
    assert scene.connection.close_reason is CloseReason.SLOW


def test_an_overflow_during_a_send_ends_as_slow() -> None:
    """A blocked client whose outbox overflows meanwhile does not get the rest of the timeout."""
    stream = InterruptedStream()
    scene = Scene(stream)

    def stall() -> None:
        for _ in range(OUTBOX_MESSAGES):
            scene.append(b"x")
        scene.connection.check_send(1.0, 50.0)
        assert stream.ended == []
        scene.append(b"one more")
        scene.connection.check_send(1.0, 50.0)
        assert stream.ended == [CloseReason.SLOW]

    stream.interruption = stall  # type: ignore[method-assign]
    scene.append(b"first")
    scene.drain()
    assert stream.sent == [b"first"]


def test_a_stream_is_ended_once() -> None:
    """The watchdog and a drain may both find that a connection is slow; the end is sent once."""
    scene = Scene()
    scene.connection.check_send(SEND_TIMEOUT + 1, 50.0)
    scene.connection.check_send(SEND_TIMEOUT + 2, 51.0)
    scene.drain()
    assert scene.stream.ended == [CloseReason.SLOW]
    assert scene.on_end == [scene.connection]


def test_a_client_that_does_not_take_the_end_is_cut_off() -> None:
    """The stream is cancelled when it is not over one more send timeout after the close."""
    scene = Scene()
    scene.connection.check_send(SEND_TIMEOUT + 1, 50.0)
    assert not scene.connection.check_end(50.0 + SEND_TIMEOUT)
    assert scene.stream.cancelled == 0
    assert not scene.connection.check_end(50.1 + SEND_TIMEOUT)
    assert scene.stream.cancelled == 1


def test_a_stream_that_is_over_is_not_cut_off() -> None:
    """Once the client has taken the end there is nothing to watch."""
    scene = Scene()
    scene.connection.check_send(SEND_TIMEOUT + 1, 50.0)
    scene.connection.leave()
    assert scene.connection.check_end(1_000.0)
    assert scene.stream.cancelled == 0


def test_a_batched_connection_sends_all_that_waits_as_one() -> None:
    """A frame is a Delivery of everything in the outbox, and counts its messages."""
    scene = Scene(batched=True)
    texts = [str(number) for number in range(OUTBOX_MESSAGES)]
    for start in range(0, OUTBOX_MESSAGES, 10):
        scene.append(
            *(frames.encode(ChatMessage("a", text, ""), 0) for text in texts[start : start + 10])
        )
    assert scene.connection.backlog == OUTBOX_MESSAGES
    scene.drain()
    (frame,) = scene.stream.sent
    delivery = chat_pb2.Delivery.FromString(frame)
    assert [message.content for message in delivery.messages] == texts
    assert scene.pulse.batches == [(OUTBOX_MESSAGES, 7.0)]
    assert scene.connection.backlog == 0


def test_connections_that_are_behind_by_the_same_share_a_frame() -> None:
    """A thousand clients that lag by the same messages do not hold a thousand copies of them."""
    feed: Feed[Connection] = Feed(OUTBOX_MESSAGES, 10_000)
    scenes = [Scene(feed=feed, batched=True) for _ in range(3)]
    for _ in range(5):
        scenes[0].append(b"x")
    for scene in scenes:
        scene.drain()
    first, *others = [scene.stream.sent[0] for scene in scenes]
    assert all(frame is first for frame in others)


def test_what_was_taken_and_not_sent_is_in_the_backlog() -> None:
    """Messages that a turn began to send and the end cut off count as not sent."""
    stream = InterruptedStream()
    scene = Scene(stream)
    stream.interruption = scene.connection.leave  # type: ignore[method-assign]
    scene.append(b"1", b"2", b"3")
    scene.drain()
    assert scene.connection.backlog == 2
