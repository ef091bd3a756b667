"""Workload: what a run of the bench sends, and to whom."""

import secrets
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chatsvc.config import check_range
from chatsvc.errors import InvalidConfig
from chatsvc.rules import MAX_CONTENT_CHARACTERS

CONNECTIONS_PER_PROCESS = 250
"""Receiving clients in one process: what each costs grpcio grows with how many there are."""
GRACE_SECONDS = 1.0
"""How long after the duration messages that are late are still sent."""
TICK_SECONDS = 0.25
"""The pause between two reports of progress."""
NANOSECONDS = 1_000_000_000

_HEADER = "{:03x} {:08x} {:016x} "
HEADER_CHARACTERS = len(_HEADER.format(0, 0, 0))


class Mark(NamedTuple):
    """What a message says of itself: `sequence` counts what its sender sends to its room, and
    `due_ns` is the monotonic time at which it should have been sent."""

    sender: int
    sequence: int
    due_ns: int

    def content(self, size: int) -> str:
        """The mark as text of `size` characters."""
        return _HEADER.format(*self).ljust(size, "x")

    @classmethod
    def read(cls, content: str) -> "Mark":
        """The mark of a content. Raises ValueError if it has none."""
        sender, sequence, due_ns = content[:HEADER_CHARACTERS].split()
        return cls(int(sender, 16), int(sequence, 16), int(due_ns, 16))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The settings of one run. Raises InvalidConfig, which names the option.

    `rate` is in messages a second over all rooms, `size` in bytes of content. `timeout` is how
    many seconds without any progress outcomes and deliveries are waited for. `processes` is 0 for
    as many as `connections` need.
    """

    servers: tuple[str, ...]
    connections: int = 100
    rooms: int = 1
    rate: float = 100.0
    size: int = 100
    duration: float = 10.0
    senders: int = 4
    publish: str = "rpc"
    processes: int = 0
    timeout: float = 10.0
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        check_range("--connections", self.connections, 1, 100_000)
        check_range("--rooms", self.rooms, 1, self.connections, " (--connections)")
        check_range("--rate", self.rate, 0.01, 1_000_000)
        check_range("--size", self.size, HEADER_CHARACTERS, MAX_CONTENT_CHARACTERS)
        check_range("--duration", self.duration, 0.1, 3_600)
        check_range("--senders", self.senders, 1, 1_000)
        check_range("--processes", self.processes, 0, min(64, self.connections))
        check_range("--timeout", self.timeout, 0.1, 3_600)
        if self.publish not in ("rpc", "stream"):
            raise InvalidConfig("--publish", "must be rpc or stream")
        if not self.messages:
            raise InvalidConfig("--rate", f"gives no message in {self.duration:g} seconds")

    @property
    def messages(self) -> int:
        """How many messages are due."""
        return round(self.rate * self.duration)

    @property
    def receiving_processes(self) -> int:
        """How many processes receive."""
        return self.processes or min(64, -(-self.connections // CONNECTIONS_PER_PROCESS))

    def room(self, number: int) -> str:
        """The name of a room, the run's own."""
        return f"bench-{self.run}-{number}"

    def user(self, role: str, number: int) -> str:
        """The id of a receiver or a sender."""
        return f"bench-{self.run}-{role}{number}"

    def receivers_in(self, room: int) -> int:
        """How many receivers are in a room: receiver i is in room i modulo `rooms`."""
        return len(range(room, self.connections, self.rooms))

    def servers_for(self, number: int) -> tuple[str, ...]:
        """All servers, beginning with another one for each client in turn."""
        first = number % len(self.servers)
        return self.servers[first:] + self.servers[:first]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Workload":
        """The workload whose fields came as JSON."""
        return cls(**{**fields, "servers": tuple(fields["servers"])})
