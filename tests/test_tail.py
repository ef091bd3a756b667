import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc.entries import Entry
from chatsvc.tail import OVERHEAD_BYTES, NotInTail, Tail

ALL = 1_000_000


def entry(offset: int, size: int = 10) -> Entry:
    return Entry(offset, 1_000 + offset, "", bytes(size), size)


def offsets(entries: list[Entry]) -> list[int]:
    return [each.offset for each in entries]


def filled(*numbers: int, start: int = 0, max_bytes: int = 1 << 20) -> Tail:
    """A tail of partition 0 with messages at some offsets."""
    tail = Tail(max_bytes)
    tail.begin({0: start})
    for number in numbers:
        tail.extend([(0, number + 1, entry(number))])
    return tail


def test_gives_what_is_asked_for() -> None:
    """From the first offset up to before the last, whatever offsets have no message."""
    tail = filled(5, 6, 9, 10, start=5)
    assert offsets(tail.read(0, 5, ALL, ALL)) == [5, 6, 9, 10]
    assert offsets(tail.read(0, 6, 10, ALL)) == [6, 9]
    assert offsets(tail.read(0, 7, 9, ALL)) == []
    assert offsets(tail.read(0, 8, ALL, 1)) == [9]


def test_does_not_know_what_was_before_it() -> None:
    """Nor another partition: there may have been messages."""
    tail = filled(5, start=5)
    for partition, start in ((0, 4), (1, 5)):
        with pytest.raises(NotInTail):
            tail.read(partition, start, ALL, ALL)


def test_forgets_the_oldest_of_all_partitions() -> None:
    """When there is too much; it knows from where on it has all."""
    tail = Tail(3 * (OVERHEAD_BYTES + 10))
    tail.begin({0: 0, 1: 0})
    for offset in range(2):
        tail.extend([(0, offset + 1, entry(offset))])
        tail.extend([(1, offset + 1, entry(offset))])
    with pytest.raises(NotInTail):
        tail.read(0, 0, ALL, ALL)
    assert offsets(tail.read(0, 1, ALL, ALL)) == [1]
    assert offsets(tail.read(1, 0, ALL, ALL)) == [0, 1]


def test_keeps_the_newest_whatever_its_size() -> None:
    tail = filled(max_bytes=100)
    tail.extend([(0, 1, entry(0, 1_000))])
    tail.extend([(0, 2, entry(1, 1_000))])
    assert offsets(tail.read(0, 1, ALL, ALL)) == [1]


def test_a_partition_that_is_read_elsewhere_begins_anew() -> None:
    """What was before a hole is not given out as if there were none; others keep what they have."""
    tail = Tail(1 << 20)
    tail.begin({0: 0, 1: 0})
    tail.extend([(0, 1, entry(0))])
    tail.extend([(1, 1, entry(0))])
    tail.begin({0: 7, 1: 1})
    with pytest.raises(NotInTail):
        tail.read(0, 0, ALL, ALL)
    assert tail.read(0, 7, ALL, ALL) == []
    assert offsets(tail.read(1, 0, ALL, ALL)) == [0]


def test_what_is_no_message_is_passed() -> None:
    """A partition that is read on where it was begins nothing anew."""
    tail = filled(0)
    tail.extend([(0, 5, None)])
    tail.begin({0: 5})
    tail.extend([(0, 6, entry(5))])
    assert offsets(tail.read(0, 0, ALL, ALL)) == [0, 5]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=3_000),
    st.integers(0, 3_000),
    st.integers(1, 50),
)
def test_is_the_end_of_the_log(steps: list[tuple[int, int]], start: int, kept: int) -> None:
    """Whatever is appended, a read gives exactly what the log has there, or nothing at all."""
    tail = Tail(kept * (OVERHEAD_BYTES + 10))
    log: dict[int, list[int]] = {0: [], 1: [], 2: []}
    ends = dict.fromkeys(log, 0)
    tail.begin(ends)
    for partition, step in steps:
        offset = ends[partition] + step - 1
        tail.extend([(partition, offset + 1, entry(offset))])
        log[partition].append(offset)
        ends[partition] = offset + 1
    for partition, there in log.items():
        try:
            found = offsets(tail.read(partition, start, ALL, ALL))
        except NotInTail:
            assert len(steps) > kept
        else:
            assert found == [each for each in there if each >= start]
    assert sum(len(_held(tail, partition, end)) for partition, end in ends.items()) <= max(1, kept)


def _held(tail: Tail, partition: int, end: int) -> list[Entry]:
    """All that a tail has of a partition."""
    for start in range(end + 1):
        try:
            return tail.read(partition, start, ALL, ALL)
        except NotInTail:
            continue
    return []


def test_a_time_is_located() -> None:
    """At the first entry from then on; at the end of a partition that has none."""
    tail = Tail(1 << 20)
    tail.begin({0: 0, 1: 5})
    for offset in range(5):
        tail.extend([(0, offset + 1, entry(offset))])
    assert tail.locate(1_002) == {0: 2, 1: 5}
    assert tail.locate(0) == {0: 0, 1: 5}
    assert tail.locate(1_005) == {0: 5, 1: 5}
