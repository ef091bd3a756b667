"""Values to Kafka records and back; the only place that knows the JSON keys.

Chat records: key = user id (the lobby), value = the seed's
`{"id", "content", "timestamp", "user_id"}` with `"room"` and `"message_id"` when they are set.
Connection records: key = user id, value = the seed's `{"user_id", "server_id", "connected"}` with
`"connections"` and `"sequence"`; a heartbeat has the server id as key and `"heartbeat": true`.
Unknown keys are ignored. Records of any other shape raise InvalidRecord.
"""

from typing import Any

import orjson

from chatsvc.errors import InvalidRecord
from chatsvc.model import ChatMessage, ConnectionEvent, Heartbeat

MAX_VALUE_BYTES = 64 * 1024
MAX_HEARTBEAT_BYTES = 512 * 1024
USERS_PER_HEARTBEAT = 1_000
"""Users in one heartbeat record: with names of 64 bytes still far below Kafka's 1 MiB."""

MAX_PARTS = 128
"""Records of one listing: more than --max-connections users need."""


def encode_message(message: ChatMessage) -> tuple[bytes, bytes]:
    """The key and the value of a chat record."""
    value = {
        "id": message.user,
        "content": message.content,
        "timestamp": message.sent_at,
        "user_id": message.user,
    }
    if message.room:
        value["room"] = message.room
    if message.message_id:
        value["message_id"] = message.message_id
    return (message.room or message.user).encode(), orjson.dumps(value)


def decode_message(value: bytes | None) -> ChatMessage:
    """The message in a chat record's value. Raises InvalidRecord."""
    fields = _object(value, MAX_VALUE_BYTES)
    user = fields.get("id") or fields.get("user_id")
    content = fields.get("content")
    if not user or not content:
        raise InvalidRecord("missing_key")
    message = ChatMessage(
        user,
        content,
        fields.get("timestamp") or "",
        fields.get("room") or "",
        fields.get("message_id") or "",
    )
    for part in message:
        if type(part) is not str:
            raise InvalidRecord("wrong_type")
    return message


def encode_event(event: ConnectionEvent) -> tuple[bytes, bytes]:
    """The key and the value of a connection event."""
    return event.user.encode(), orjson.dumps(
        {
            "user_id": event.user,
            "server_id": event.server_id,
            "connected": event.connected,
            "connections": event.connections,
            "sequence": event.sequence,
        }
    )


def encode_heartbeat(beat: Heartbeat) -> tuple[bytes, bytes]:
    """The key and the value of a server's heartbeat."""
    value: dict[str, Any] = {
        "server_id": beat.server_id,
        "heartbeat": True,
        "sequence": beat.sequence,
    }
    if beat.leaving:
        value["leaving"] = True
    if beat.users is not None:
        value |= {"users": dict(beat.users), "part": beat.part, "parts": beat.parts}
    return beat.server_id.encode(), orjson.dumps(value)


def decode_connection(value: bytes | None) -> ConnectionEvent | Heartbeat:
    """What a connection record says. Raises InvalidRecord."""
    fields = _object(value, MAX_HEARTBEAT_BYTES)
    server_id = _typed(fields, "server_id", str, None)
    sequence = _typed(fields, "sequence", int, 0)
    if fields.get("heartbeat") is True:
        return _heartbeat(fields, server_id, sequence)
    connected = _typed(fields, "connected", bool, None)
    return ConnectionEvent(
        user=_typed(fields, "user_id", str, None),
        server_id=server_id,
        connected=connected,
        connections=_typed(fields, "connections", int, int(connected)),
        sequence=sequence,
    )


def _heartbeat(fields: dict[str, Any], server_id: str, sequence: int) -> Heartbeat:
    users = fields.get("users")
    if users is not None:
        users = _typed(fields, "users", dict, None)
        if not all(type(count) is int for count in users.values()):
            raise InvalidRecord("wrong_type")
    part = _typed(fields, "part", int, 0)
    parts = _typed(fields, "parts", int, 1)
    if not 0 <= part < parts <= MAX_PARTS:
        raise InvalidRecord("out_of_range")
    return Heartbeat(
        server_id=server_id,
        sequence=sequence,
        leaving=_typed(fields, "leaving", bool, False),
        users=users,
        part=part,
        parts=parts,
    )


def _object(value: bytes | None, limit: int) -> dict[str, Any]:
    if value is None:
        raise InvalidRecord("no_value")
    if len(value) > limit:
        raise InvalidRecord("too_large")
    try:
        fields = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InvalidRecord("not_json") from error
    if type(fields) is not dict:
        raise InvalidRecord("not_an_object")
    return fields


def _typed(fields: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = fields.get(key, default)
    if value is None:
        raise InvalidRecord("missing_key")
    if type(value) is not kind:
        raise InvalidRecord("wrong_type")
    return value
