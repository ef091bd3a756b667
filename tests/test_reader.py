"""Chunks of the log, without the duplicates, over an embedded broker."""

import random
import threading
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from chatsvc.duplicates import Duplicates
from chatsvc.embedded import EmbeddedBroker
from chatsvc.model import ChatMessage
from chatsvc.reader import CHUNK_RECORDS, LogReader
from chatsvc.records import encode_message
from chatsvc.replay import Chunk, Need

WAIT = 60
RECORDS = 6 * CHUNK_RECORDS


@pytest.fixture(scope="module")
def brokers() -> Iterator[tuple[str, ...]]:
    """A broker with a partition of numbers: each third repeats one before it, near or far, each
    seventh is no message, and each eleventh has no id."""
    broker = EmbeddedBroker()
    addresses = broker.start()
    broker.make_topic("topic")
    producer = Producer({"bootstrap.servers": ",".join(addresses)})
    for offset in range(RECORDS):
        producer.produce("topic", _value(offset), partition=0)
        producer.poll(0)
    assert producer.flush(WAIT) == 0
    yield addresses
    broker.close()


def _said(offset: int) -> int:
    """Which message is at an offset, by the offset of its first record."""
    chance = random.Random(offset)
    while offset and offset % 3 == 0:
        offset = chance.randrange(offset)
    return offset


def _value(offset: int) -> bytes:
    if offset % 7 == 6:
        return b"no message"
    message_id = "" if offset % 11 == 10 else str(_said(offset))
    return encode_message(ChatMessage("ann", str(offset), "", "", message_id))[1]


def _expected() -> list[int]:
    """The offsets that readers are to be given."""
    given, seen = [], set()
    for offset in range(RECORDS):
        if offset % 7 == 6:
            continue
        if offset % 11 != 10:
            if _said(offset) in seen:
                continue
            seen.add(_said(offset))
        given.append(offset)
    return given


@pytest.fixture
def reader(brokers: tuple[str, ...]) -> Iterator[LogReader]:
    """One that has seen nothing of the log as it came."""
    duplicates = Duplicates()
    duplicates.begin({0: RECORDS}, partial=[0])
    reader = LogReader(brokers, "test", "topic", duplicates)
    reader.start()
    yield reader
    reader.close()


def fetch(reader: LogReader, start: int) -> Chunk:
    answered = threading.Event()
    chunks: list[Chunk | None] = []

    def done(chunk: Chunk | None) -> None:
        chunks.append(chunk)
        answered.set()

    reader.fetch(Need(0, start, RECORDS), done)
    assert answered.wait(WAIT)
    assert chunks[0] is not None
    return chunks[0]


@pytest.mark.parametrize("order", ["forwards", "backwards", "mixed"])
def test_old_chunks_are_judged_by_what_is_before_them(reader: LogReader, order: str) -> None:
    """In whatever order they are asked for, once and again: the first record of a message is given
    out, no other."""
    starts = list(range(0, RECORDS, CHUNK_RECORDS)) * 2
    if order == "backwards":
        starts.reverse()
    elif order == "mixed":
        random.Random(1).shuffle(starts)
    given: dict[int, list[int]] = {}
    for start in starts:
        chunk = fetch(reader, start)
        assert (chunk.start, chunk.end) == (start, start + CHUNK_RECORDS)
        offsets = [entry.offset for entry in chunk.entries]
        assert given.setdefault(start, offsets) == offsets
    together = [offset for start in sorted(given) for offset in given[start]]
    assert together == _expected()


def test_who_asks_after_the_end_is_answered(brokers: tuple[str, ...]) -> None:
    """With nothing: a reader that is closed fetches no more."""
    reader = LogReader(brokers, "test", "topic", Duplicates())
    reader.start()
    reader.close()
    answers: list[Chunk | None] = []
    reader.fetch(Need(0, 0, 10), answers.append)
    assert answers == [None]
