"""Which records repeat a message, decided from the log alone."""

import pytest

from chatsvc.duplicates import BLOCK_RECORDS, MAX_IDS, MIN_IDS, WINDOW_MS, Duplicates, Window, key

MINUTE_MS = 60_000


def filled(window: Window, start: int, end: int, at_ms: int) -> None:
    """Gives a window records with ids of their own."""
    for offset in range(start, end):
        assert not window.note(offset, at_ms, key("ann", str(offset)))


def test_a_key_is_of_a_user_and_an_id() -> None:
    """Nothing that is split otherwise gives the same one."""
    assert key("ann", "1") == key("ann", "1")
    assert len({key("ann", "1"), key("an", "n1"), key("bob", "1"), key("ann", "2")}) == 4


def test_the_first_record_wins() -> None:
    """Each later one with its id is a duplicate, also of one that was one itself."""
    window = Window(2)
    assert [window.note(offset, 1, key("ann", "1")) for offset in range(3)] == [False, True, True]


def test_an_id_is_remembered_for_ten_minutes() -> None:
    """However many records come meanwhile, up to MAX_IDS over all partitions."""
    window = Window(1)
    window.note(0, 0, key("ann", "again"))
    filled(window, 1, MAX_IDS - 2 * BLOCK_RECORDS, WINDOW_MS - 1)
    assert window.note(MAX_IDS, WINDOW_MS - 1, key("ann", "again"))


def test_an_id_is_remembered_for_a_hundred_thousand_records() -> None:
    """However long they take to come."""
    window = Window(1)
    window.note(0, 0, key("ann", "again"))
    filled(window, 1, MIN_IDS, 60 * MINUTE_MS)
    assert window.note(MIN_IDS, 600 * MINUTE_MS, key("ann", "again"))


def test_an_id_that_is_old_enough_is_forgotten() -> None:
    """After ten minutes and so many records: memory is bounded, and the record is a new message."""
    window = Window(1)
    window.note(0, 0, key("ann", "again"))
    filled(window, 1, BLOCK_RECORDS, 0)
    end = MIN_IDS + 3 * BLOCK_RECORDS
    filled(window, BLOCK_RECORDS, end, 60 * MINUTE_MS)
    assert window.is_exact
    assert not window.note(end, 60 * MINUTE_MS, key("ann", "again"))
    assert len(window) <= window.min_records + BLOCK_RECORDS


@pytest.mark.parametrize("partitions", [1, 2, 12, 1_000])
def test_memory_is_bounded_at_any_rate(partitions: int) -> None:
    """All partitions together keep little more than MAX_IDS, or two blocks each."""
    window = Window(partitions)
    assert partitions * (window.max_records - BLOCK_RECORDS) <= max(
        MAX_IDS, partitions * BLOCK_RECORDS
    )
    filled(window, 0, window.max_records + 3 * BLOCK_RECORDS, 5)
    assert len(window) <= window.max_records


def test_an_id_that_came_again_is_remembered_from_then_on() -> None:
    """A decision looks back over one window, not to the first record of all."""
    window = Window(1)
    window.note(0, 0, key("ann", "again"))
    half = MIN_IDS // 2
    filled(window, 1, half, 0)
    assert window.note(half, 0, key("ann", "again"))
    filled(window, half + 1, half + MIN_IDS, 60 * MINUTE_MS)
    assert window.note(half + MIN_IDS, 60 * MINUTE_MS, key("ann", "again"))


def test_who_has_read_one_window_decides_as_who_has_read_all() -> None:
    """Two readers that begin at different offsets agree, once a window is behind each."""
    one, other = Window(1), Window(1)
    periods = (MIN_IDS // 3, MIN_IDS + 5 * BLOCK_RECORDS)  # within a window, and beyond it
    ids = [
        key("ann", f"{offset % 2} {offset % periods[offset % 2]}") for offset in range(3 * MIN_IDS)
    ]
    at = [offset * 30 for offset in range(3 * MIN_IDS)]  # 33 a second: 20,000 in ten minutes
    begin = MIN_IDS + 777
    decided = [one.note(offset, at[offset], each) for offset, each in enumerate(ids)]
    later = [other.note(offset, at[offset], ids[offset]) for offset in range(begin, len(ids))]
    exact = other.min_records + BLOCK_RECORDS
    assert decided[begin + exact :] == later[exact:]
    assert any(decided[begin + exact :])
    assert not all(decided[begin + exact :])


def test_what_is_known_of_a_stretch() -> None:
    """A partition that is read from its beginning knows all; one in the middle from where it is
    exact; what was learnt of the rest is known too."""
    duplicates = Duplicates()
    duplicates.begin({0: 0, 1: 50}, partial=[1])
    for offset in range(4):
        duplicates.note(0, offset, 1, key("ann", str(offset // 2)))
    assert duplicates.between(0, 0, 4) == (1, 3)
    assert duplicates.between(0, 2, 4) == (3,)
    assert duplicates.between(1, 50, 60) is None
    duplicates.expect_exact(1, 60)
    assert duplicates.between(1, 50, 60) is None
    assert duplicates.between(1, 60, 70) == ()
    duplicates.learn(1, 50, 60, (55,))
    assert duplicates.between(1, 50, 60) == (55,)
    assert duplicates.between(2, 0, 10) is None


def test_a_partition_that_begins_elsewhere_forgets() -> None:
    """One that goes on where it was keeps its ids."""
    duplicates = Duplicates()
    duplicates.begin({0: 0})
    duplicates.note(0, 0, 1, key("ann", "1"))
    duplicates.advance({0: 1})
    duplicates.begin({0: 1})
    assert duplicates.has(key("ann", "1"))
    assert duplicates.note(0, 1, 1, key("ann", "1"))
    duplicates.begin({0: 9})
    assert not duplicates.has(key("ann", "1"))
