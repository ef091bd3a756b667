"""Plan: what a run of the checker sends, and what each of its messages looks like."""

import re
import secrets
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from chatsvc import rules
from chatsvc.config import check_range
from chatsvc.errors import InvalidConfig

MAX_PADDING = 1_000
"""Characters by which contents differ in size."""
MAX_DELIVERIES = 10_000_000
"""Messages times readers: what each reader has been given is kept, in a byte a message."""


class Mark(NamedTuple):
    """A message: `number` counts those of its writer, from 0."""

    writer: int
    number: int

    def __str__(self) -> str:
        return f"writer {self.writer} number {self.number}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of one run. Raises InvalidConfig, which names the option, or InvalidRequest.

    `rate` is in messages a second, of all writers together. `send_timeout` is how many seconds a
    writer tries one message, `settle` how many without any progress what is missing is waited
    for. Without a `room` it is one of the run's own. `seed` decides sizes and times; `run` is in
    all names, so that no message is taken for one of another run.
    """

    servers: tuple[str, ...]
    writers: int = 4
    readers: int = 4
    rate: float = 100.0
    duration: float = 10.0
    room: str = ""
    publish: str = "both"
    send_timeout: float = 30.0
    settle: float = 30.0
    seed: int = field(default_factory=lambda: secrets.randbelow(2**32))
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    def __post_init__(self) -> None:
        check_range("--writers", self.writers, 1, 100)
        check_range("--readers", self.readers, 1, 100)
        check_range("--rate", self.rate, 0.01, 10_000)
        check_range("--duration", self.duration, 0.1, 7 * 86_400)
        check_range("--send-timeout", self.send_timeout, 0.1, 3_600)
        check_range("--settle", self.settle, 0.1, 3_600)
        if self.publish not in ("rpc", "stream", "both"):
            raise InvalidConfig("--publish", "must be rpc, stream or both")
        if self.rate * self.duration * self.readers > MAX_DELIVERIES:
            raise InvalidConfig(
                "--duration",
                f"with --rate and --readers must give at most {MAX_DELIVERIES} deliveries",
            )
        rules.check_room("--room", self.room)

    @property
    def room_name(self) -> str:
        """Where writers write to and readers read."""
        return self.room or f"verify-{self.run}"

    @property
    def writers_room(self) -> str:
        """Where writers are, who need no deliveries; nobody talks there."""
        return f"verify-{self.run}-writers"

    def writer(self, number: int) -> str:
        """The user id of a writer."""
        return f"verify-{self.run}-w{number}"

    def reader(self, number: int) -> str:
        """The user id of a reader."""
        return f"verify-{self.run}-r{number}"

    def is_stream(self, writer: int) -> bool:
        """Whether a writer sends through a stream; of both, the second half of the writers do."""
        return self.publish == "stream" or (self.publish == "both" and 2 * writer >= self.writers)

    def servers_for(self, number: int) -> tuple[str, ...]:
        """All servers, beginning with another one for each client in turn."""
        first = number % len(self.servers)
        return self.servers[first:] + self.servers[:first]

    def message_id(self, mark: Mark) -> str:
        """The id of a message."""
        return f"{self.run}-{mark.writer}-{mark.number}"

    def content(self, mark: Mark) -> str:
        """The content of a message, always the same: what it is, and padding of any size."""
        digest = blake2b(f"{self.seed} {mark}".encode(), digest_size=32)
        size = int.from_bytes(digest.digest()[:4], "big") % (MAX_PADDING + 1)
        letters = digest.hexdigest()
        return f"{mark} {(letters * (size // len(letters) + 1))[:size]}"

    def mark(self, message_id: str) -> Mark | None:
        """The message that has an id; None if it is none of this run."""
        found = re.fullmatch(rf"{self.run}-([0-9]{{1,9}})-([0-9]{{1,9}})", message_id)
        if found is None or int(found[1]) >= self.writers:
            return None
        return Mark(int(found[1]), int(found[2]))
