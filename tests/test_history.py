"""The log read backwards, over a simulated one."""

import itertools
import random

import pytest

from chatsvc import frames
from chatsvc.archive import Archive
from chatsvc.cursor import CursorFormat
from chatsvc.entries import Entry
from chatsvc.errors import ArchiveUnavailable
from chatsvc.history import MAX_SCANNED, Backwards
from chatsvc.model import ChatMessage
from chatsvc.pb import chat_pb2
from chatsvc.replay import Chunk, Need
from chatsvc.tail import Tail

CHUNK = 512


class Log:
    """A topic, of which the tail has the newest part and chunks the rest."""

    def __init__(self, partitions: int = 2, tail_bytes: int = 1) -> None:
        self.entries: dict[int, list[Entry]] = {each: [] for each in range(partitions)}
        self.first = dict.fromkeys(range(partitions), 0)
        self.ends = dict.fromkeys(range(partitions), 0)
        self.tail = Tail(tail_bytes)
        self.tail.begin(self.ends)
        self.fetched = 0

    def say(self, partition: int, content: str, at_ms: int, room: str = "") -> None:
        encoded = frames.encode(ChatMessage("ann", content, "", room), at_ms)
        offset = self.ends[partition]
        entry = Entry(offset, at_ms, room, frames.element(encoded), len(encoded))
        self.entries[partition].append(entry)
        self.tail.extend([(partition, entry.offset + 1, entry)])
        self.ends[partition] += 1

    def skip(self, partition: int, offsets: int) -> None:
        """Records that are no messages."""
        self.ends[partition] += offsets
        self.tail.extend([(partition, self.ends[partition], None)])

    def expire(self, partition: int, first: int) -> None:
        self.first[partition] = first
        self.entries[partition] = [each for each in self.entries[partition] if each.offset >= first]

    def chunk(self, need: Need) -> Chunk:
        self.fetched += 1
        start = need.start // CHUNK * CHUNK
        end = min(need.end, start + CHUNK)
        begin = max(start, self.first[need.partition])
        entries = [each for each in self.entries[need.partition] if begin <= each.offset < end]
        return Chunk(need.partition, begin, max(begin, end), entries)

    def archive(self) -> Archive:
        return Archive(
            self.tail,
            lambda need, done: done(self.chunk(need)),
            lambda positions, time_ms, done: done(positions),
            lambda: dict(self.ends),
        )


def contents(elements: list[bytes]) -> list[str]:
    return [
        message.content for message in chat_pb2.Delivery.FromString(b"".join(elements)).messages
    ]


@pytest.mark.parametrize("tail_bytes", [1, 1 << 24], ids=["kafka", "tail"])
def test_pages_backwards_are_the_log_in_order(tail_bytes: int) -> None:
    """All pages together, put in order, are all messages, each once, merged by time."""
    log = Log(tail_bytes=tail_bytes)
    for number in range(2_000):
        log.say(number % 3 % 2, str(number), 1_000 + number // 2)
    archive = log.archive()
    pages, positions = [], None
    while True:
        page = archive.before([""], positions, 70)
        pages.append(contents(page.elements))
        assert len(page.elements) <= 70
        positions = page.before
        if page.end:
            break
    together = list(itertools.chain.from_iterable(reversed(pages)))
    assert sorted(map(int, together)) == list(range(2_000))
    for partition in (0, 1):
        mine = [int(each) for each in together if int(each) % 3 % 2 == partition]
        assert mine == sorted(mine)
    assert all(abs(int(each) - place) <= 2 for place, each in enumerate(together))


def test_forwards_goes_on_where_backwards_began() -> None:
    """`after` of a page is where the next one begins, and `before` where the page itself does."""
    log = Log()
    for number in range(3_000):
        log.say(number % 2, str(number), number)
    archive = log.archive()
    newest = archive.before([""], None, 100)
    older = archive.before([""], newest.before, 100)
    assert contents(older.elements) == [str(number) for number in range(2_800, 2_900)]
    again = archive.after([""], older.before, 100)
    assert contents(again.elements) == contents(older.elements)
    assert again.after == older.after == newest.before
    following = archive.after([""], again.after, 1_000)
    assert contents(following.elements) == contents(newest.elements)
    assert following.end
    assert not again.end


def test_forwards_from_the_first_message() -> None:
    """Without a place to begin it is the first that Kafka has; what it has no more is no gap."""
    log = Log()
    for number in range(1_000):
        log.say(0, str(number), number)
    log.expire(0, 600)
    page = log.archive().after([""], None, 10)
    assert contents(page.elements) == [str(number) for number in range(600, 610)]
    assert not page.gaps
    behind = log.archive().after([""], {0: 100}, 10)
    assert [tuple(gap) for gap in behind.gaps] == [(0, 100, 600)]


def test_backwards_ends_where_retention_does() -> None:
    """What Kafka keeps is given out, and the end is told."""
    log = Log(1)
    for number in range(1_000):
        log.say(0, str(number), number)
    log.expire(0, 700)
    page = log.archive().before([""], None, 1_000)
    assert contents(page.elements) == [str(number) for number in range(700, 1_000)]
    assert page.end


def test_a_room_is_found_among_others() -> None:
    """Only its messages, however far they are apart; records that are none are passed over."""
    log = Log(1)
    for number in range(5_000):
        log.say(0, str(number), number, "r" if number % 500 == 0 else "")
        if number % 100 == 0:
            log.skip(0, 3)
    page = log.archive().before(["r"], None, 3)
    assert contents(page.elements) == ["3500", "4000", "4500"]
    assert not page.end


def test_a_call_reads_only_so_much() -> None:
    """A search that finds nothing stops, and the next goes on there."""
    log = Log(1)
    log.say(0, "far", 0, "r")
    log.skip(0, 3 * MAX_SCANNED)
    archive = log.archive()
    page = archive.before(["r"], None, 1)
    calls = 1
    assert not page.elements
    while not (page.elements or page.end):
        page = archive.before(["r"], page.before, 1)
        calls += 1
    assert contents(page.elements) == ["far"]
    assert calls == 3


def test_clocks_that_go_back_leave_the_order_of_a_partition() -> None:
    """Forwards and backwards, whatever times the records have."""
    order = random.Random(7)
    log = Log()
    for number in range(1_500):
        log.say(number % 2, str(number), 10_000 + order.randrange(500))
    archive = log.archive()
    for page in (archive.before([""], None, 1_500), archive.after([""], None, 1_500)):
        said = list(map(int, contents(page.elements)))
        assert sorted(said) == list(range(1_500))
        for partition in (0, 1):
            mine = [each for each in said if each % 2 == partition]
            assert mine == sorted(mine)


@pytest.mark.parametrize("length", [10, 10_000])
def test_the_newest_messages_are_as_many_as_were_asked_for(length: int) -> None:
    """Where a subscription begins that asks for the last ones: whatever size they have."""
    log = Log()
    for number in range(1_000):
        log.say(number % 2, "x" * length, number)
    positions = log.archive().newest([""], 700)
    assert sum(log.ends[each] - positions[each] for each in log.ends) == 700


def test_large_messages_make_short_pages() -> None:
    """A page is within what clients of gRPC take, 4 MiB."""
    log = Log(1)
    for number in range(500):
        log.say(0, str(number) + "한" * 4_000, number)
    for page in (log.archive().before([""], None, 500), log.archive().after([""], None, 500)):
        assert 20 < len(page.elements) < 500
        assert sum(map(len, page.elements)) < 3 << 20
        assert not page.end


def test_pages_fit_into_cursors() -> None:
    """Positions of a page are what cursors have."""
    log = Log()
    log.say(1, "x", 5)
    page = log.archive().before([""], None, 5)
    cursors = CursorFormat(b"t")
    assert cursors.decode(cursors.encode(page.before)) == {0: 0, 1: 0}
    assert cursors.decode(cursors.encode(page.after)) == {0: 0, 1: 1}


def test_a_reader_that_closes_is_an_error() -> None:
    """Whoever asks is told that there is no answer."""
    log = Log(1)
    log.say(0, "x", 1)
    log.say(0, "y", 1)
    archive = Archive(
        log.tail,
        lambda need, done: done(None),
        lambda positions, time_ms, done: done(None),
        lambda: dict(log.ends),
    )
    with pytest.raises(ArchiveUnavailable):
        archive.before([""], None, 5)
    with pytest.raises(ArchiveUnavailable):
        archive.since(5)


def test_nothing_is_at_the_beginning() -> None:
    """An empty topic, or a place before all."""
    assert Backwards([""], {}, 5).is_at_beginning
    assert Backwards([""], {0: 0}, 5).is_at_beginning
    assert not Backwards([""], {0: 1}, 5).is_at_beginning
