import time

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatsvc.duplicates import Duplicates
from chatsvc.fanout import BATCH_MESSAGES, Fanout
from chatsvc.model import LOBBY, ChatMessage, Record
from chatsvc.pb import chat_pb2
from chatsvc.records import encode_message
from chatsvc.tail import NotInTail, Tail

INT64 = st.integers(-(2**63), 2**63 - 1)


class RecordingHub:
    """Keeps what is broadcast and the positions."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, bytes]]] = []
        self.cursors: list[dict[int, int]] = []
        self.interruptions: list[dict[int, int]] = []

    def interrupt(self, positions: dict[int, int]) -> None:
        self.interruptions.append(positions)

    def broadcast(
        self, messages: list[tuple[str, bytes]], positions: dict[int, int], now: float
    ) -> None:
        self.batches.append(messages)
        self.cursors.append(positions)


class Scene:
    """A fanout and what it told."""

    def __init__(self) -> None:
        self.hub = RecordingHub()
        self.tail = Tail(1 << 20)
        self.tail.begin({0: 0, 1: 0})
        self.duplicates = Duplicates()
        self.duplicates.begin({0: 0, 1: 0})
        self.repeated: list[int] = []
        self.received: list[int] = []
        self.invalid: list[str] = []
        self.latencies: list[float] = []
        self.fanout = Fanout(
            self.hub,  # type: ignore[arg-type]
            self.tail,
            self.duplicates,
            count_received=self.received.append,
            count_invalid=self.invalid.append,
            count_duplicate=lambda: self.repeated.append(1),
            observe_latency=self.latencies.append,
        )

    @property
    def messages(self) -> list[chat_pb2.Message]:
        """All that was broadcast, in order."""
        return [
            chat_pb2.Message.FromString(frame) for batch in self.hub.batches for _, frame in batch
        ]


def record(value: bytes | None, appended_ms: int = -1) -> Record:
    """A record of the chat topic."""
    return Record(0, 0, value, appended_ms, True)


def said(content: str, appended_ms: int = -1, room: str = "") -> Record:
    """A record of a message of Ann's."""
    return record(encode_message(ChatMessage("ann", content, "", room))[1], appended_ms)


def test_messages_are_broadcast_in_order() -> None:
    """One read becomes batches of at most BATCH_MESSAGES, in the order of the records."""
    scene = Scene()
    contents = [str(number) for number in range(2 * BATCH_MESSAGES + 1)]
    scene.fanout.on_records([said(content) for content in contents])
    assert [message.content for message in scene.messages] == contents
    assert [len(batch) for batch in scene.hub.batches] == [BATCH_MESSAGES, BATCH_MESSAGES, 1]
    assert scene.received == [len(contents)]


def test_records_that_are_not_messages_are_skipped() -> None:
    """What does not parse is counted by reason; the rest is delivered."""
    scene = Scene()
    bad = [record(None), record(b"\xff"), record(orjson.dumps({"id": "ann"}))]
    scene.fanout.on_records([*bad, said("hi")])
    assert [message.content for message in scene.messages] == ["hi"]
    assert scene.invalid == ["no_value", "not_json", "missing_key"]
    assert scene.received == [1]


def test_messages_are_broadcast_with_their_rooms() -> None:
    """All of them: who is there is for the hub to know, and may change until then."""
    scene = Scene()
    scene.fanout.on_records([said("1", room="r"), said("2", room="s"), said("3")])
    (batch,) = scene.hub.batches
    assert [room for room, _ in batch] == ["r", "s", LOBBY]


def test_each_batch_has_the_cursor_behind_it() -> None:
    """A cursor counts all records up to the batch's last one, and none that comes later."""
    scene = Scene()
    scene.fanout.on_positions({0: 10, 1: 20, 2: 7})
    records = [
        said(str(number))._replace(partition=partition, offset=(10, 20)[partition] + number)
        for number in range(BATCH_MESSAGES // 2 + 1)
        for partition in (0, 1)
    ]
    scene.fanout.on_records([*records, record(None)._replace(partition=2, offset=7)])
    half = BATCH_MESSAGES // 2
    assert scene.hub.cursors == [
        {0: 10, 1: 20, 2: 7},
        {0: 10 + half, 1: 20 + half, 2: 7},
        {0: 11 + half, 1: 21 + half, 2: 8},
    ]


def test_positions_that_are_corrected_are_told() -> None:
    """New partitions, and positions that retention has overtaken, are in the next cursor."""
    scene = Scene()
    scene.fanout.on_positions({0: 10})
    scene.fanout.on_positions({0: 10, 1: 0})
    assert scene.hub.cursors[-1] == {0: 10, 1: 0}
    assert not scene.hub.interruptions
    scene.fanout.on_positions({0: 50, 1: 0})
    assert scene.hub.interruptions == [{0: 50, 1: 0}]


def repeated(user: str, message_id: str, offset: int) -> Record:
    """A record whose message has an id."""
    value = encode_message(ChatMessage(user, f"said at {offset}", "", LOBBY, message_id))[1]
    return Record(0, offset, value, 1_000 + offset, True)


def test_a_second_record_of_a_message_is_delivered_by_nobody() -> None:
    """Neither to who is here nor, from the tail, to who comes back; the position goes on."""
    scene = Scene()
    scene.fanout.on_records([repeated("ann", "one", 0), repeated("bob", "one", 1)])
    scene.fanout.on_records([repeated("ann", "one", 2), repeated("ann", "two", 3)])
    said = [message.content for message in scene.messages]
    assert said == ["said at 0", "said at 1", "said at 3"]
    assert [entry.offset for entry in scene.tail.read(0, 0, 4, 10)] == [0, 1, 3]
    assert scene.hub.cursors[-1] == {0: 4}
    assert len(scene.repeated) == 1
    assert scene.received == [2, 1]


def test_what_was_written_before_is_remembered_but_not_delivered() -> None:
    """What is filled in decides on what comes, and goes to the tail from where decisions are
    certain."""
    scene = Scene()
    scene.fanout.on_positions({0: 10}, partial=[0])
    early = [repeated("ann", str(offset), offset) for offset in range(10, 20)]
    scene.fanout.fill(0, early, 20, tail_from=10)
    scene.duplicates.expect_exact(0, 20)
    scene.fanout.fill(0, [repeated("ann", "20", 20)], 21, tail_from=10)
    scene.fanout.on_positions({0: 21})
    assert not scene.messages
    scene.fanout.on_records([repeated("ann", "15", 21), repeated("ann", "22", 22)])
    assert [message.content for message in scene.messages] == ["said at 22"]
    assert [entry.offset for entry in scene.tail.read(0, 20, 23, 10)] == [20, 22]
    with pytest.raises(NotInTail):
        scene.tail.read(0, 19, 23, 10)


def test_nothing_is_broadcast_for_nothing() -> None:
    """A read without a message moves the cursor and no more."""
    scene = Scene()
    scene.fanout.on_records([record(None)])
    assert scene.hub.batches == [[]]
    assert scene.hub.cursors == [{0: 1}]
    assert scene.received == [0]


def test_a_message_has_the_time_of_its_record() -> None:
    """The timestamp on the wire is when Kafka appended the record, and the latency runs from it."""
    scene = Scene()
    before = time.time()
    appended_ms = int(before * 1_000) - 5_000
    scene.fanout.on_records([said("hi", appended_ms)])
    (message,) = scene.messages
    assert message.timestamp.ToMilliseconds() == appended_ms
    assert 5.0 <= scene.latencies[0] <= time.time() - before + 5.1


def test_a_record_without_a_time_has_the_time_of_its_arrival() -> None:
    """Where Kafka tells no time, the message is as old as its fan-out."""
    scene = Scene()
    before_ms = int(time.time() * 1_000)
    scene.fanout.on_records([said("hi", -1)])
    (message,) = scene.messages
    assert before_ms <= message.timestamp.ToMilliseconds() <= time.time() * 1_000


def test_a_record_from_the_future_has_no_negative_latency() -> None:
    """A clock that is ahead of ours does not turn the histogram's sum back."""
    scene = Scene()
    scene.fanout.on_records([said("hi", int(time.time() * 1_000) + 10**9)])
    assert scene.latencies == [0.0]


@given(st.lists(st.tuples(st.none() | st.binary(), INT64)), INT64)
@example([], 253_402_300_800_000)
@example([(None, -1)], 2**63 - 1)
def test_no_record_keeps_another_from_delivery(
    foreign: list[tuple[bytes | None, int]], appended_ms: int
) -> None:
    """Whatever bytes and times come before it, a message is delivered, with a time that every
    protobuf library takes."""
    scene = Scene()
    records = [record(value, at) for value, at in foreign]
    scene.fanout.on_records([*records, said("hi", appended_ms)])
    (message,) = scene.messages
    assert message.content == "hi"
    message.timestamp.ToDatetime()
