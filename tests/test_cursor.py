import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc.cursor import MAX_CURSOR_BYTES, CursorFormat
from chatsvc.errors import InvalidRequest

FORMAT = CursorFormat(b"cluster topic")
POSITIONS = st.dictionaries(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))


@given(POSITIONS)
def test_positions_come_back(positions: dict[int, int]) -> None:
    """Whatever partitions and offsets there are, a cursor tells them all."""
    assert FORMAT.decode(FORMAT.encode(positions)) == positions


@given(POSITIONS)
def test_equal_positions_make_equal_cursors(positions: dict[int, int]) -> None:
    """The order in which partitions became known is not in a cursor."""
    turned = dict(reversed(positions.items()))
    assert FORMAT.encode(turned) == FORMAT.encode(positions)


@given(POSITIONS, st.data())
def test_a_damaged_cursor_is_refused(positions: dict[int, int], data: st.DataObject) -> None:
    """One changed byte anywhere, or a piece that is missing, is noticed."""
    cursor = FORMAT.encode(positions)
    at = data.draw(st.integers(0, len(cursor) - 1))
    flipped = cursor[at] ^ data.draw(st.integers(1, 255))
    for damaged in (cursor[:at] + bytes([flipped]) + cursor[at + 1 :], cursor[:at], cursor + b"x"):
        with pytest.raises(InvalidRequest) as caught:
            FORMAT.decode(damaged)
        assert caught.value.field == "cursor"


@given(POSITIONS, st.binary(max_size=80).filter(lambda identity: identity != b"cluster topic"))
def test_a_cursor_of_another_topic_is_refused(positions: dict[int, int], identity: bytes) -> None:
    """Equal positions in another topic, also a later one of the same name, are not ours."""
    with pytest.raises(InvalidRequest, match="of another topic"):
        FORMAT.decode(CursorFormat(identity).encode(positions))


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_cursor(made_up: bytes) -> None:
    """Whatever a client makes up is refused and nothing else happens."""
    with pytest.raises(InvalidRequest):
        FORMAT.decode(made_up)


def test_a_cursor_has_a_bound() -> None:
    """A thousand partitions with large offsets fit; what is larger is refused unread."""
    assert len(FORMAT.encode(dict.fromkeys(range(1_000), 2**50))) < MAX_CURSOR_BYTES
    with pytest.raises(InvalidRequest):
        FORMAT.decode(b"\x01" + bytes(MAX_CURSOR_BYTES))
