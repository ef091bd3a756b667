import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from chatsvc import frames
from chatsvc.connection import Connection
from chatsvc.cursor import CursorFormat
from chatsvc.duplicates import Duplicates
from chatsvc.entries import Entry
from chatsvc.errors import CloseReason, ServerFull, ServerStopping
from chatsvc.fanout import Fanout
from chatsvc.hub import THE_LOBBY, Hub
from chatsvc.model import LOBBY, ChatMessage, Record
from chatsvc.pb import chat_pb2
from chatsvc.records import encode_message
from chatsvc.seats import Seats
from chatsvc.senders import SenderPool
from chatsvc.tail import Tail
from chatsvc.watchdog import Watchdog

from waiting import eventually

CURSORS = CursorFormat(b"the topic")


class RecordingStream:
    """Takes every frame at once, and its end."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended: list[CloseReason] = []
        self.cancelled = threading.Event()

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def end(self, reason: CloseReason) -> None:
        self.ended.append(reason)

    def cancel(self) -> None:
        self.cancelled.set()


class StalledStream(RecordingStream):
    """Blocks in its first send until it is released or cancelled, as a client does that stops
    reading; records no more than that a transport would have taken."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.released = threading.Event()

    def send(self, frame: bytes) -> None:
        self.begun.set()
        self.released.wait(60)
        if not self.ended and not self.cancelled.is_set():
            super().send(frame)

    def cancel(self) -> None:
        super().cancel()
        self.released.set()


class SwitchingStream(RecordingStream):
    """Lets other threads run in each send, as a real one does."""

    def send(self, frame: bytes) -> None:
        time.sleep(0.00005)
        super().send(frame)


class MakeHub:
    """Makes a hub over running senders and a watchdog."""

    def __init__(self) -> None:
        self._watchdog = Watchdog(interval=0.01)
        self._senders: SenderPool | None = None

    def __call__(self, senders: int = 2, **settings: object) -> Hub:
        pool = SenderPool("sender", senders, self._watchdog.wake)
        defaults = {
            "seats": Seats(100),
            "tail": Tail(1 << 20),
            "cursors": CURSORS,
            "fetch": lambda need, done: pytest.fail(f"{need} is in the tail"),
            "outbox_messages": 100,
            "outbox_bytes": 100_000,
            "send_timeout": 20.0,
        }
        hub = Hub(pool, **(defaults | settings))  # type: ignore[arg-type]
        self._watchdog.add([pool.check, hub.check])
        self._watchdog.start()
        pool.start()
        self._senders = pool
        return hub

    def settled(self) -> bool:
        """Whether no sender does anything any more: all connections rest or have ended."""
        assert self._senders is not None
        return not self._senders.check(time.monotonic())

    def close(self) -> None:
        assert self._senders is None or self._senders.close(20)
        self._watchdog.close()


@pytest.fixture
def make_hub() -> Iterator[MakeHub]:
    """Makes one hub, whose threads are ended after the test."""
    make = MakeHub()
    yield make
    make.close()


def connect(hub: Hub, stream: RecordingStream, user: str = "ann") -> Connection:
    """A new connection that is drained from now on."""
    connection = hub.add(user, stream)
    hub.activate(connection)
    return connection


def broadcast(hub: Hub, *messages: bytes) -> None:
    """One batch of `messages`."""
    hub.broadcast([(LOBBY, message) for message in messages], {}, time.monotonic())


def numbers(first: int, last: int) -> list[bytes]:
    """Numbers as messages."""
    return [str(number).encode() for number in range(first, last)]


def test_everybody_gets_every_message_in_order(make_hub: MakeHub) -> None:
    """A broadcast reaches each connection once, in the order of the calls."""
    hub = make_hub(outbox_messages=1_000)
    streams = [RecordingStream() for _ in range(20)]
    for stream in streams:
        connect(hub, stream)
    for first in range(0, 300, 3):
        broadcast(hub, *numbers(first, first + 3))
    assert eventually(lambda: all(stream.sent == numbers(0, 300) for stream in streams))


def test_nothing_is_sent_before_activate(make_hub: MakeHub) -> None:
    """A connection gets what was broadcast since it was added, once it is activated."""
    hub = make_hub()
    stream, other = RecordingStream(), RecordingStream()
    broadcast(hub, b"before")
    connection = hub.add("ann", stream)
    connect(hub, other)
    broadcast(hub, b"1")
    assert eventually(lambda: other.sent == [b"1"])
    assert stream.sent == []
    hub.activate(connection)
    assert eventually(lambda: stream.sent == [b"1"])


def test_changes_are_told_in_order(make_hub: MakeHub) -> None:
    """Each add and remove tells the user's new number of connections."""
    changes: list[tuple[str, int]] = []
    hub = make_hub(on_change=lambda user, count: changes.append((user, count)))
    first = hub.add("ann", RecordingStream())
    second = hub.add("ann", RecordingStream())
    hub.add("bob", RecordingStream())
    assert hub.users() == {"ann": 2, "bob": 1}
    assert len(hub) == 3
    hub.remove(first)
    hub.remove(second)
    assert hub.users() == {"bob": 1}
    assert changes == [("ann", 1), ("ann", 2), ("bob", 1), ("ann", 1), ("ann", 0)]


def test_a_full_hub_refuses(make_hub: MakeHub) -> None:
    """Above the limit nobody is let in until somebody has left."""
    hub = make_hub(seats=Seats(1))
    connection = hub.add("ann", RecordingStream())
    with pytest.raises(ServerFull) as raised:
        hub.add("bob", RecordingStream())
    assert raised.value.limit == 1
    assert hub.users() == {"ann": 1}
    hub.remove(connection)
    hub.add("bob", RecordingStream())


def test_a_connection_is_removed_once(make_hub: MakeHub) -> None:
    """Removing it again changes and tells nothing."""
    left: list[tuple[CloseReason, int]] = []
    hub = make_hub(on_leave=lambda reason, undelivered: left.append((reason, undelivered)))
    connection = hub.add("ann", RecordingStream())
    broadcast(hub, b"1", b"2")
    assert hub.remove(connection)
    assert not hub.remove(connection)
    assert left == [(CloseReason.LEFT, 2)]
    assert len(hub) == 0


def test_a_removed_connection_gets_no_more(make_hub: MakeHub) -> None:
    """What is broadcast after a client has left is not sent to it."""
    hub = make_hub()
    gone, here = RecordingStream(), RecordingStream()
    connection = connect(hub, gone)
    connect(hub, here)
    broadcast(hub, b"1")
    assert eventually(lambda: gone.sent == here.sent == [b"1"])
    hub.remove(connection)
    broadcast(hub, b"2")
    assert eventually(lambda: here.sent == [b"1", b"2"])
    assert gone.sent == [b"1"]
    assert gone.ended == []


def test_stalled_clients_do_not_hold_up_others(make_hub: MakeHub) -> None:
    """More clients than senders may stop reading; everybody else goes on."""
    hub = make_hub(senders=2)
    stalled = [StalledStream() for _ in range(5)]
    for each in stalled:
        connect(hub, each)
    stream = RecordingStream()
    connect(hub, stream)
    for number in range(20):
        broadcast(hub, str(number).encode())
    assert eventually(lambda: stream.sent == numbers(0, 20))
    for each in stalled:
        each.released.set()
    assert eventually(lambda: all(each.sent == numbers(0, 20) for each in stalled))


def test_a_client_whose_outbox_overflows_is_closed_as_slow(make_hub: MakeHub) -> None:
    """A client that stops reading is ended as soon as its outbox is full, and nobody else."""
    hub = make_hub(outbox_messages=10)
    stalled, stream = StalledStream(), RecordingStream()
    connect(hub, stalled)
    connect(hub, stream)
    broadcast(hub, b"0")
    assert stalled.begun.wait(20)
    for number in range(1, 13):
        assert eventually(lambda sent=number: len(stream.sent) == sent)
        broadcast(hub, str(number).encode())
    assert eventually(lambda: stalled.ended == [CloseReason.SLOW])
    stalled.released.set()
    assert eventually(lambda: stream.sent == numbers(0, 13))
    assert stream.ended == []


def test_a_client_that_blocks_too_long_is_cut_off(make_hub: MakeHub) -> None:
    """After the send timeout the stream is ended as slow, and after another one cancelled."""
    hub = make_hub(send_timeout=0.05)
    stalled = StalledStream()
    connection = connect(hub, stalled)
    broadcast(hub, b"0")
    assert stalled.cancelled.wait(20)
    assert stalled.ended == [CloseReason.SLOW]
    assert hub.remove(connection)
    assert eventually(lambda: not hub.check(time.monotonic()))


def test_a_burst_larger_than_the_outbox_closes_nobody(make_hub: MakeHub) -> None:
    """A client that reads as fast as it is sent to is never slow, whatever comes at once."""
    hub = make_hub(senders=4, outbox_messages=100)
    stream = SwitchingStream()
    connect(hub, stream)
    for first in range(0, 2_000, 10):
        broadcast(hub, *numbers(first, first + 10))
    assert eventually(lambda: len(stream.sent) == 2_000 or stream.ended)
    assert stream.ended == []
    assert stream.sent == numbers(0, 2_000)


def test_an_outbox_that_never_empties_keeps_no_sender(make_hub: MakeHub) -> None:
    """A client that more comes for with every send does not hold up who is behind it."""
    hub = make_hub(senders=1, outbox_messages=100_000, outbox_bytes=10**7)
    first_for_other = threading.Event()

    begun = threading.Event()

    class EndlessStream(RecordingStream):
        def send(self, frame: bytes) -> None:
            super().send(frame)
            begun.set()
            if len(self.sent) < 20_000 and not first_for_other.is_set():
                broadcast(hub, b"more")

    class OtherStream(RecordingStream):
        def send(self, frame: bytes) -> None:
            super().send(frame)
            first_for_other.set()

    endless, other = EndlessStream(), OtherStream()
    connect(hub, endless)
    broadcast(hub, b"first")
    assert begun.wait(20)
    connect(hub, other)
    assert first_for_other.wait(60)
    assert len(endless.sent) < 20_000


def test_a_client_that_reads_slowly_keeps_no_sender(make_hub: MakeHub) -> None:
    """A client that takes a little while for each of many messages does not hold up others."""
    hub = make_hub(senders=1, outbox_messages=10_000)
    begun, released = threading.Event(), threading.Event()

    class TricklingStream(RecordingStream):
        def send(self, frame: bytes) -> None:
            begun.set()
            released.wait(0.005)
            super().send(frame)

    trickling, other = TricklingStream(), RecordingStream()
    connect(hub, trickling)
    broadcast(hub, *numbers(0, 2_000))
    assert begun.wait(20)
    connect(hub, other)
    broadcast(hub, b"x")
    assert eventually(lambda: other.sent == [b"x"])
    assert len(trickling.sent) < 2_000
    released.set()
    assert eventually(lambda: len(trickling.sent) == 2_001)


def test_close_ends_everybody_after_their_messages(make_hub: MakeHub) -> None:
    """A shutdown sends what is in the outboxes, ends the streams, and lets nobody in."""
    hub = make_hub()
    stalled, idle, inactive = StalledStream(), RecordingStream(), RecordingStream()
    connect(hub, stalled)
    connect(hub, idle)
    waiting = hub.add("cy", inactive)
    broadcast(hub, b"0", b"1")
    assert stalled.begun.wait(20)
    hub.close(CloseReason.SHUTDOWN)
    hub.close(CloseReason.SHUTDOWN)
    with pytest.raises(ServerStopping):
        hub.add("bob", RecordingStream())
    hub.activate(waiting)
    stalled.released.set()
    for stream in (stalled, idle, inactive):
        assert eventually(lambda stream=stream: stream.ended == [CloseReason.SHUTDOWN])
        assert stream.sent == [b"0", b"1"]


def test_close_ends_who_rests(make_hub: MakeHub) -> None:
    """A stream that nothing waits for is ended too."""
    hub = make_hub()
    stream = RecordingStream()
    connect(hub, stream)
    assert eventually(make_hub.settled)
    hub.close(CloseReason.SHUTDOWN)
    assert eventually(lambda: stream.ended == [CloseReason.SHUTDOWN])


def test_backlogs_are_the_outboxes(make_hub: MakeHub) -> None:
    """Each connection's backlog counts the messages that no sender has taken."""
    hub = make_hub()
    hub.add("ann", RecordingStream())
    broadcast(hub, b"0", b"1")
    hub.add("bob", RecordingStream())
    assert sorted(hub.backlogs()) == [0, 2]


class StumblingStream(RecordingStream):
    """Stalls now and then, for a moment that `dice` chooses, and notes two sends at once."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice
        self._sending = threading.Lock()
        self.overlapped = False

    def send(self, frame: bytes) -> None:
        if not self._sending.acquire(blocking=False):
            self.overlapped = True
            return
        if self._dice.random() < 0.002:
            time.sleep(0.08)
        super().send(frame)
        self._sending.release()


def churn(hub: Hub, dice: random.Random, streams: list[StumblingStream]) -> None:
    """Clients that come and go."""
    here: list[Connection] = []
    for _ in range(100):
        if here and dice.random() < 0.5:
            hub.remove(here.pop(dice.randrange(len(here))))
        else:
            streams.append(StumblingStream(random.Random(dice.random())))
            here.append(connect(hub, streams[-1], f"guest {dice.randrange(5)}"))
    for connection in here:
        hub.remove(connection)


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("seed", range(3))
def test_nobody_misses_a_message_in_a_storm(make_hub: MakeHub, seed: int) -> None:
    """While clients come, stall and go and two threads broadcast, who stays gets every message
    once and in one order, and the shutdown ends every stream."""
    hub = make_hub(senders=3, outbox_messages=2_000)
    stayed = [StumblingStream(random.Random(f"{seed}.{each}")) for each in range(8)]
    connections = [connect(hub, stream) for stream in stayed]
    guests: list[StumblingStream] = []

    def broadcast_all(name: str) -> None:
        for number in range(200):
            broadcast(hub, f"{name}{number}".encode())

    threads = [threading.Thread(target=broadcast_all, args=(name,)) for name in "ab"]
    threads += [
        threading.Thread(target=churn, args=(hub, random.Random(f"{seed}/{each}"), guests))
        for each in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    hub.close(CloseReason.SHUTDOWN)
    assert eventually(lambda: all(stream.ended == [CloseReason.SHUTDOWN] for stream in stayed))
    for name in "ab":
        own = [frame for frame in stayed[0].sent if frame.startswith(name.encode())]
        assert own == [f"{name}{number}".encode() for number in range(200)]
    assert all(stream.sent == stayed[0].sent for stream in stayed)
    assert not any(stream.overlapped for stream in stayed + guests)
    for connection in connections:
        assert hub.remove(connection)
    assert (len(hub), hub.users()) == (0, {})


# Rooms and cursors


def deliveries(stream: RecordingStream) -> list[tuple[list[str], dict[int, int]]]:
    """What a stream of Deliveries got: the contents and the positions of each."""
    parsed = [chat_pb2.Delivery.FromString(frame) for frame in stream.sent]
    return [
        ([each.content for each in delivery.messages], CURSORS.decode(delivery.cursor))
        for delivery in parsed
    ]


class Log:
    """A log of one partition that a hub's server reads."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.end = 0
        hub.tail.begin({0: 0})
        hub.broadcast([], {0: 0}, 0.0)

    def append(self, *messages: tuple[str, str]) -> None:
        """Messages, each a room and a content, that are read at once."""
        batch: list[tuple[str, bytes]] = []
        for room, content in messages:
            encoded = chat_pb2.Message(content=content).SerializeToString()
            element = frames.element(encoded)
            entry = Entry(self.end, self.end, room, element, len(encoded))
            self.end += 1
            self.hub.tail.extend([(0, self.end, entry)])
            batch.append((room, encoded))
        self.hub.broadcast(batch, {0: self.end}, 0.0)


def test_a_batch_of_several_rooms_reaches_each_by_its_rooms(make_hub: MakeHub) -> None:
    """Who is in some rooms gets those messages in one Delivery with the cursor of the batch."""
    hub = make_hub()
    log = Log(hub)
    streams = [RecordingStream() for _ in range(3)]
    for stream, rooms in zip(streams, ("a", "ab", "c"), strict=True):
        hub.activate(hub.add("ann", stream, rooms=frozenset(rooms), batched=True))
    assert eventually(lambda: all(deliveries(stream) == [([], {0: 0})] for stream in streams))
    log.append(("a", "1"), ("a", "2"), ("b", "3"))
    log.append(("b", "4"))

    def heard() -> list[list[str]]:
        return [
            [content for contents, _ in deliveries(stream) for content in contents]
            for stream in streams
        ]

    assert eventually(lambda: heard() == [["1", "2"], ["1", "2", "3", "4"], []])
    assert [deliveries(stream)[-1][1] for stream in streams[:2]] == [{0: 3}, {0: 4}]


def test_messages_of_several_rooms_keep_the_order_of_the_log(make_hub: MakeHub) -> None:
    """Who is in several rooms gets what was read at once in one order, not room after room."""
    hub = make_hub()
    log = Log(hub)
    stream = RecordingStream()
    hub.activate(hub.add("ann", stream, rooms=frozenset("ab"), batched=True))
    log.append(("b", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("a", "5"))

    def heard() -> list[str]:
        return [content for contents, _ in deliveries(stream) for content in contents]

    assert eventually(lambda: len(heard()) == 4)
    assert heard() == ["1", "2", "3", "5"]


def test_who_comes_between_a_read_and_its_broadcast_misses_nothing(make_hub: MakeHub) -> None:
    """Also if nobody was in that room when it was read: the first cursor is before it."""
    hub = make_hub()
    stream = RecordingStream()

    def come(reason: str) -> None:
        hub.activate(hub.add("ann", stream, rooms=frozenset(("tea",)), batched=True))
        assert eventually(lambda: deliveries(stream) == [([], {0: 0})])

    fanout = Fanout(
        hub,
        hub.tail,
        Duplicates(),
        count_received=lambda messages: None,
        count_invalid=come,
        count_duplicate=lambda: None,
        observe_latency=lambda seconds: None,
    )
    fanout.on_positions({0: 0})
    value = encode_message(ChatMessage("bob", "hi", "", "tea"))[1]
    fanout.on_records([Record(0, 0, value, 0, True), Record(0, 1, None, 0, True)])
    assert eventually(lambda: deliveries(stream)[-1:] == [(["hi"], {0: 2})])


def test_a_subscriber_is_greeted_with_the_newest_cursor(make_hub: MakeHub) -> None:
    """The first Delivery says where the stream begins, also behind messages of other rooms."""
    hub = make_hub()
    Log(hub).append(("other", "1"))
    stream = RecordingStream()
    hub.activate(hub.add("ann", stream, batched=True))
    assert eventually(lambda: deliveries(stream) == [([], {0: 1})])


def test_a_subscriber_that_is_far_behind_catches_up(make_hub: MakeHub) -> None:
    """What its outbox does not hold any more it gets from the log, once and in order, and then it
    goes on; nobody closes it."""
    hub = make_hub(outbox_messages=10)
    log = Log(hub)
    stream = StalledStream()
    hub.activate(hub.add("ann", stream, batched=True))
    assert stream.begun.wait(20)
    for number in range(100):
        log.append((LOBBY, str(number)))
    stream.released.set()

    def heard() -> list[str]:
        return [content for contents, _ in deliveries(stream) for content in contents]

    assert eventually(lambda: heard() == [str(number) for number in range(100)])
    log.append((LOBBY, "new"))
    assert eventually(lambda: heard()[-1] == "new")
    assert deliveries(stream)[-1] == (["new"], {0: 101})
    assert not stream.ended


def test_a_subscriber_that_has_been_further_waits(make_hub: MakeHub) -> None:
    """At a server that has read less than another one: nothing comes twice, nothing is missed."""
    hub = make_hub()
    log = Log(hub)
    stream = RecordingStream()
    hub.activate(hub.add("ann", stream, batched=True, positions={0: 2}))
    for number in range(4):
        log.append((LOBBY, str(number)))
    assert eventually(lambda: [each for got, _ in deliveries(stream) for each in got] == ["2", "3"])


def test_who_waits_for_the_log_is_closed_with_the_others(make_hub: MakeHub) -> None:
    """Whether its chunk is still to come or it has been further than this server."""
    asked: list[Callable[[None], None]] = []
    hub = make_hub(fetch=lambda need, done: asked.append(done))
    log = Log(hub)
    log.hub.tail.begin({0: 5})
    hub.broadcast([], {0: 5}, 0.0)
    behind, ahead = RecordingStream(), RecordingStream()
    hub.activate(hub.add("ann", behind, batched=True, positions={0: 1}))
    hub.activate(hub.add("bob", ahead, batched=True, positions={0: 9}))
    assert eventually(lambda: bool(asked))
    hub.close(CloseReason.SHUTDOWN)
    asked.pop()(None)
    assert eventually(lambda: behind.ended == ahead.ended == [CloseReason.SHUTDOWN])


def test_a_room_is_there_while_somebody_is_in_it(make_hub: MakeHub) -> None:
    """Rooms come with their first connection and go with their last."""
    hub = make_hub()
    both = hub.add("ann", RecordingStream(), rooms=frozenset(("a", "b")))
    one = hub.add("bob", RecordingStream(), rooms=frozenset(("a",)))
    assert [hub.has_room(room) for room in ("a", "b", LOBBY)] == [True, True, False]
    hub.remove(both)
    assert [hub.has_room(room) for room in ("a", "b", LOBBY)] == [True, False, False]
    hub.remove(one)
    assert not hub.has_room("a")
    hub.add("cem", RecordingStream(), rooms=THE_LOBBY)
    assert hub.has_room(LOBBY)
