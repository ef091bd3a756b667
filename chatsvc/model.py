"""The values that travel between the parts: frozen, without behaviour of their own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

LOBBY = ""
"""The room that everybody is in who names none; the only one that the seed has."""


class ChatMessage(NamedTuple):
    """One chat message.

    `sent_at` is the sender's clock as RFC 3339 text and is kept in the record only; what clients
    see is the record's append time. `room` is empty in the lobby.
    """

    user: str
    content: str
    sent_at: str
    room: str = ""
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """A user's streams on one server have changed.

    `connections` is how many that user has there after the change, so that applying an event
    twice changes nothing. `sequence` grows with every record of the same server.
    """

    user: str
    server_id: str
    connected: bool
    connections: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A server is alive, or leaving.

    Now and then it lists all its users with their streams, in `parts` records of the same
    `sequence`; `users` is None in the beats between.
    """

    server_id: str
    sequence: int
    leaving: bool = False
    users: Mapping[str, int] | None = None
    part: int = 0
    parts: int = 1


class Acked(NamedTuple):
    """Where all in-sync replicas have a message. `appended_ms` is Kafka's clock, -1 if unknown."""

    partition: int
    offset: int
    appended_ms: int


class Duplicate(NamedTuple):
    """A message was in the log already, sent before with the same message_id."""


class Gap(NamedTuple):
    """The records of a partition from offset `start` up to before `end` are lost."""

    partition: int
    start: int
    end: int


class Record(NamedTuple):
    """What was read from a topic. `appended_ms` is Kafka's clock where the topic has
    LogAppendTime, else the writer's (`by_broker` tells), in milliseconds of Unix time. `trace_id`
    is empty but for a message that is followed."""

    partition: int
    offset: int
    value: bytes | None
    appended_ms: int
    by_broker: bool
    trace_id: str = ""
