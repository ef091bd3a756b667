"""Presence: which servers are alive and who is on them, from what they write to Kafka.

Pure: no I/O, no clock. Every server reads the same records and so keeps the same table.
"""

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from chatsvc.model import ConnectionEvent, Heartbeat


class _Claim(NamedTuple):
    """How many connections a user has on a server, by the record with this sequence. Claims of
    none are kept until a listing that is newer, lest an older one bring the user back."""

    connections: int
    sequence: int


@dataclass(slots=True)
class _Server:
    """What is known of a server. `newest` is the highest sequence seen of it, `left` the one with
    which it said that it leaves, `listed` that of the listing which the claims are made of."""

    heard_at: float
    newest: int = -1
    left: int = -1
    listed: int = -1
    claims: dict[str, _Claim] = field(default_factory=dict)
    listing: dict[str, int] = field(default_factory=dict)
    listing_sequence: int = -1
    listing_parts: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether it has left and not come back under its id."""
        return self.newest <= self.left


class Presence:
    """The servers that were heard of within `timeout` seconds, and their users.

    Times are seconds on a clock of the caller's choice, the same for all calls. Thread-safe;
    never blocks.
    """

    def __init__(self, own_server_id: str, timeout: float) -> None:
        self._own_server_id = own_server_id
        self._timeout = timeout
        # Guards the table; held for dictionary operations only.
        self._lock = threading.Lock()
        self._servers: dict[str, _Server] = {}

    def apply(self, record: ConnectionEvent | Heartbeat, heard_at: float) -> None:
        """Takes in what a server wrote at `heard_at`. A record applied twice changes nothing."""
        with self._lock:
            server = self._servers.setdefault(record.server_id, _Server(heard_at))
            if record.sequence <= server.left:
                return  # from before it left, and read from another partition later
            server.heard_at = max(server.heard_at, heard_at)
            server.newest = max(server.newest, record.sequence)
            if isinstance(record, ConnectionEvent):
                _apply_event(server, record)
            elif record.leaving:
                server.left = record.sequence
                server.claims = _newer(server, record.sequence)
            elif record.users is not None:
                _apply_listing(server, record)

    def expire(self, now: float) -> list[str]:
        """Drops the servers that were last heard of `timeout` seconds ago, with their users, and
        returns the ids of those that had not said that they leave. Never drops the own one."""
        with self._lock:
            silent = [
                server_id
                for server_id, server in self._servers.items()
                if server_id != self._own_server_id and now - server.heard_at >= self._timeout
            ]
            dropped = [(server_id, self._servers.pop(server_id)) for server_id in silent]
        return [server_id for server_id, server in dropped if not server.is_gone]

    def next_expiry(self) -> float | None:
        """When the next server expires if it stays silent; None if there is no other one."""
        with self._lock:
            heard = [
                server.heard_at
                for server_id, server in self._servers.items()
                if server_id != self._own_server_id
            ]
        return min(heard) + self._timeout if heard else None

    def servers(self) -> dict[str, dict[str, int]]:
        """Each known server's users with their numbers of connections."""
        with self._lock:
            return {
                server_id: {
                    user: claim.connections
                    for user, claim in server.claims.items()
                    if claim.connections > 0
                }
                for server_id, server in self._servers.items()
                if not server.is_gone
            }

    def where(self, user: str) -> set[str]:
        """The ids of the servers that `user` is connected to."""
        return {server_id for server_id, users in self.servers().items() if user in users}


def _newer(server: _Server, sequence: int) -> dict[str, _Claim]:
    return {user: claim for user, claim in server.claims.items() if claim.sequence > sequence}


def _apply_event(server: _Server, event: ConnectionEvent) -> None:
    if event.sequence <= server.listed:
        return
    known = server.claims.get(event.user)
    # The seed's records have no sequence; the newest read wins among those.
    if known is None or event.sequence >= known.sequence:
        server.claims[event.user] = _Claim(max(event.connections, 0), event.sequence)


def _apply_listing(server: _Server, beat: Heartbeat) -> None:
    """Collects the parts of a listing; the last one replaces all claims that are not newer."""
    assert beat.users is not None  # apply() has looked
    if beat.sequence <= server.listed:
        return
    if beat.part == 0:
        server.listing, server.listing_sequence, server.listing_parts = {}, beat.sequence, 0
    if beat.sequence != server.listing_sequence or beat.part != server.listing_parts:
        return  # a part is missing: the next listing will be whole
    server.listing.update(beat.users)
    server.listing_parts += 1
    if server.listing_parts < beat.parts:
        return
    listed = {user: _Claim(count, beat.sequence) for user, count in server.listing.items()}
    server.claims = listed | _newer(server, beat.sequence)
    server.listed = beat.sequence
    server.listing, server.listing_sequence = {}, -1
