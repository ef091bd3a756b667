import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc.errors import InvalidRecord
from chatsvc.model import ChatMessage, ConnectionEvent, Heartbeat
from chatsvc.records import (
    MAX_HEARTBEAT_BYTES,
    MAX_PARTS,
    MAX_VALUE_BYTES,
    USERS_PER_HEARTBEAT,
    decode_connection,
    decode_message,
    encode_event,
    encode_heartbeat,
    encode_message,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=50)
NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=50)
INT64 = st.integers(-(2**63), 2**63 - 1)
MESSAGES = st.builds(ChatMessage, NAME, NAME, TEXT, TEXT, TEXT)
EVENTS = st.builds(ConnectionEvent, NAME, NAME, st.booleans(), INT64, INT64)
HEARTBEATS = st.builds(
    Heartbeat,
    NAME,
    INT64,
    st.booleans(),
    st.dictionaries(TEXT, INT64),
    st.integers(0, 63),
    st.integers(64, MAX_PARTS),
) | st.builds(Heartbeat, NAME, INT64, st.booleans())

ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=True, allow_infinity=True)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        *("id", "user_id", "content", "timestamp", "room", "message_id", "server_id"),
        *("connected", "connections", "sequence", "heartbeat", "leaving", "users"),
        *("part", "parts"),
    ]
)
ANY_RECORD = st.dictionaries(KEYS, ANY_JSON | st.just(True)).map(json.dumps).map(str.encode)


def reason(value: bytes | None) -> tuple[str, str]:
    """Why `value` is neither a message nor a connection record."""
    with pytest.raises(InvalidRecord) as as_message:
        decode_message(value)
    with pytest.raises(InvalidRecord) as as_connection:
        decode_connection(value)
    return as_message.value.reason, as_connection.value.reason


@given(MESSAGES)
def test_a_message_comes_back(message: ChatMessage) -> None:
    """What is encoded is decoded to the same message."""
    assert decode_message(encode_message(message)[1]) == message


@given(EVENTS)
def test_an_event_comes_back(event: ConnectionEvent) -> None:
    """What is encoded is decoded to the same event."""
    assert decode_connection(encode_event(event)[1]) == event


@given(HEARTBEATS)
def test_a_heartbeat_comes_back(beat: Heartbeat) -> None:
    """What is encoded is decoded to the same heartbeat, without parts where it lists nobody."""
    assert decode_connection(encode_heartbeat(beat)[1]) == beat


def test_keys_keep_the_order_of_what_belongs_together() -> None:
    """Keys are the room or else the user, the user of an event, and the server of a heartbeat."""
    assert encode_message(ChatMessage("ann", "hi", ""))[0] == b"ann"
    assert encode_message(ChatMessage("ann", "hi", "", room="kitchen"))[0] == b"kitchen"
    assert encode_event(ConnectionEvent("ann", "s1", True, 1, 1))[0] == b"ann"
    assert encode_heartbeat(Heartbeat("s1", 1))[0] == b"s1"


def test_a_message_has_the_seeds_keys() -> None:
    """A lobby message without an id is exactly the seed's record."""
    _, value = encode_message(ChatMessage("ann", "hi", "2026-01-01T00:00:00Z"))
    assert json.loads(value) == {
        "id": "ann",
        "content": "hi",
        "timestamp": "2026-01-01T00:00:00Z",
        "user_id": "ann",
    }


def test_a_message_of_another_writer_is_read() -> None:
    """Only the sender and the content are needed; unknown keys are ignored."""
    value = b'{"user_id": "ann", "content": "hi", "colour": {"deep": [1, null]}}'
    assert decode_message(value) == ChatMessage("ann", "hi", "")


@pytest.mark.parametrize("connected", [True, False])
def test_the_seeds_event_counts_one_stream_or_none(connected: bool) -> None:
    """An event without a count means one stream when connected and none otherwise."""
    value = orjson.dumps({"user_id": "ann", "server_id": "s1", "connected": connected})
    assert decode_connection(value) == ConnectionEvent("ann", "s1", connected, int(connected), 0)


@given(st.binary() | ANY_RECORD)
def test_foreign_bytes_raise_nothing_but_invalid_record(value: bytes) -> None:
    """Whatever a record holds, it is decoded to values of the right types or refused."""
    with contextlib.suppress(InvalidRecord):
        assert all(type(part) is str for part in decode_message(value))
    try:
        decoded: Any = decode_connection(value)
    except InvalidRecord:
        return
    assert type(decoded.server_id) is str
    assert type(decoded.sequence) is int
    if isinstance(decoded, ConnectionEvent):
        assert type(decoded.user) is str
        assert type(decoded.connections) is int
    elif decoded.users is not None:
        assert all(type(count) is int for count in decoded.users.values())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "no_value"),
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"a": NaN}', "not_json"),
        (b'{"a": "\\ud800"}', "not_json"),
        (b"\xff\xfe", "not_json"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "not_json"),
        (b"[]", "not_an_object"),
        (b"{}", "missing_key"),
        (b" " * (MAX_HEARTBEAT_BYTES + 1), "too_large"),
    ],
)
def test_a_record_of_no_kind_is_refused(value: bytes | None, expected: str) -> None:
    """What is neither a message nor a connection record is refused with the reason."""
    assert reason(value) == (expected, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ["ann"], "content": "hi"},
        {"id": "ann", "content": 1},
        {"id": "ann", "content": "hi", "timestamp": 1},
        {"id": "ann", "content": "hi", "room": {"a": 1}},
        {"id": "ann", "content": "hi", "message_id": 7},
    ],
)
def test_a_message_with_wrong_types_is_refused(fields: dict[str, object]) -> None:
    """Every part of a message has to be text."""
    with pytest.raises(InvalidRecord, match="wrong_type"):
        decode_message(orjson.dumps(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"server_id": 1, "user_id": "ann", "connected": True},
        {"server_id": "s1", "user_id": 1, "connected": True},
        {"server_id": "s1", "user_id": "ann", "connected": 1},
        {"server_id": "s1", "user_id": "ann", "connected": True, "connections": 1.0},
        {"server_id": "s1", "user_id": "ann", "connected": True, "connections": True},
        {"server_id": "s1", "user_id": "ann", "connected": True, "sequence": "9"},
        {"server_id": "s1", "heartbeat": True, "users": ["ann"]},
        {"server_id": "s1", "heartbeat": True, "users": {"ann": True}},
        {"server_id": "s1", "heartbeat": True, "users": {"ann": 1.5}},
        {"server_id": "s1", "heartbeat": True, "leaving": 1},
        {"server_id": "s1", "heartbeat": True, "users": {}, "part": 0.0},
        {"server_id": "s1", "heartbeat": True, "users": {}, "parts": "1"},
    ],
)
def test_a_connection_record_with_wrong_types_is_refused(fields: dict[str, object]) -> None:
    """Counts and sequences are whole numbers, flags are flags, names are text."""
    with pytest.raises(InvalidRecord, match="wrong_type"):
        decode_connection(orjson.dumps(fields))


def test_a_number_beyond_64_bits_is_refused() -> None:
    """A count that no integer of ours can hold is a wrong type, not a crash."""
    value = b'{"server_id":"s","user_id":"u","connected":true,"connections":%d}' % 10**30
    with pytest.raises(InvalidRecord, match="wrong_type"):
        decode_connection(value)


def test_the_largest_message_of_a_client_fits() -> None:
    """The longest content, all of it characters that JSON escapes, is not too large to read."""
    message = ChatMessage('"' * 64, "\x01" * 4096, "", message_id='"' * 64)
    _, value = encode_message(message)
    assert len(value) <= MAX_VALUE_BYTES
    assert decode_message(value) == message


def test_the_largest_part_of_a_listing_fits() -> None:
    """A full part with the longest names, all of them escaped, is not too large to read."""
    users = {f"{number:04}{chr(34) * 60}": 100_000 for number in range(USERS_PER_HEARTBEAT)}
    _, value = encode_heartbeat(Heartbeat("s" * 64, 2**62, users=users))
    assert len(value) <= MAX_HEARTBEAT_BYTES
    decoded = decode_connection(value)
    assert isinstance(decoded, Heartbeat)
    assert decoded.users == users


@pytest.mark.parametrize(("part", "parts"), [(-1, 1), (1, 1), (0, 0), (0, MAX_PARTS + 1)])
def test_a_part_that_cannot_be_is_refused(part: int, parts: int) -> None:
    """A listing of endless parts would fill the memory of every server."""
    _, value = encode_heartbeat(Heartbeat("s1", 1, users={}, part=part, parts=parts))
    with pytest.raises(InvalidRecord):
        decode_connection(value)
