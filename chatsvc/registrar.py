"""Registrar: the thread that keeps Presence and the topic of connections in step.

It writes what changes on this server and its heartbeat, and clears servers that have gone
silent; what all servers write comes back through `on_records`.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from chatsvc.errors import ChatError, InvalidRecord, PublishFailed, TopicFailed
from chatsvc.model import Acked, ConnectionEvent, Heartbeat, Record
from chatsvc.presence import Presence
from chatsvc.records import (
    USERS_PER_HEARTBEAT,
    decode_connection,
    encode_event,
    encode_heartbeat,
)

_log = logging.getLogger(__name__)

BEATS_PER_LISTING = 6
"""Every so many heartbeats a server lists all its users."""
MAX_NOTED = 100_000
"""Changes that may wait to be written; when there are more, a listing replaces them."""


class Publish(Protocol):
    """Producer.publish, for one topic."""

    def __call__(
        self, key: bytes, value: bytes, done: Callable[[Acked | ChatError], None]
    ) -> None: ...


class BrokerClock:
    """Kafka's clock as far as its records tell, so that servers whose own clocks differ agree on
    who is silent. Goes on by itself for at most `horizon` seconds after the last record: a server
    that hears nothing at all, not even itself, knows nothing about the others."""

    def __init__(self, horizon: float) -> None:
        self._horizon = horizon
        self._heard = (0.0, 0.0)

    def hear(self, appended_at: float, now: float) -> None:
        """A record was appended at `appended_at` (Unix time, s) and read at monotonic `now`."""
        if appended_at > self._heard[0]:
            self._heard = (appended_at, now)

    def at(self, now: float) -> float:
        """Kafka's time at monotonic `now`."""
        appended_at, heard_at = self._heard
        return appended_at + min(now - heard_at, self._horizon)


class Registrar:
    """Announces this server and its users, and applies what all servers announce.

    `note` and `on_records` may be called from any thread; the former never blocks. `users` gives
    all users of this server with their numbers of connections.
    """

    def __init__(
        self,
        server_id: str,
        presence: Presence,
        publish: Publish,
        users: Callable[[], dict[str, int]],
        *,
        heartbeat_interval: float,
        count_invalid: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._server_id = server_id
        self._presence = presence
        self._publish = publish
        self._users = users
        self._interval = heartbeat_interval
        self._count_invalid = count_invalid
        self._clock = BrokerClock(horizon=heartbeat_interval + 1)
        # Starts with the time, in microseconds, so that a server that starts again under its old
        # id goes on above what it has written before.
        self._sequence = itertools.count(time.time_ns() // 1_000)
        self._changes: deque[tuple[str, int]] = deque()
        self._overflowed = False
        self._beats = 0
        self._next_beat = 0.0
        # Guards nothing but the wait: changes are a deque, whose operations are atomic.
        self._noted = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def introduce(self, timeout: float) -> int:
        """Writes the first heartbeat, waits for its ack, and returns Kafka's time then in
        milliseconds, or -1 where Kafka does not tell. Raises TopicFailed or PublishFailed."""
        answered = threading.Event()
        outcomes: list[Acked | ChatError] = []

        def done(outcome: Acked | ChatError) -> None:
            outcomes.append(outcome)
            answered.set()

        key, value = encode_heartbeat(Heartbeat(self._server_id, next(self._sequence), users={}))
        self._publish(key, value, done)
        if not answered.wait(timeout):
            raise PublishFailed("not confirmed in time", maybe_written=True)
        outcome = outcomes[0]
        if isinstance(outcome, PublishFailed):
            raise TopicFailed("of connections", outcome.cause)
        if isinstance(outcome, ChatError):
            raise outcome
        return outcome.appended_ms

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def note(self, user: str, connections: int) -> None:
        """A user has so many connections here now. Calls must come in the order of the changes."""
        if len(self._changes) >= MAX_NOTED:
            self._overflowed = True
        else:
            self._changes.append((user, connections))
        if not self._noted.is_set():
            self._noted.set()

    def on_records(self, records: list[Record]) -> None:
        """Applies records of the topic of connections."""
        now = time.monotonic()
        for record in records:
            try:
                announced = decode_connection(record.value)
            except InvalidRecord as error:
                self._count_invalid(error.reason)
                continue
            appended_at = record.appended_ms / 1_000 if record.by_broker else time.time()
            self._clock.hear(appended_at, now)
            self._presence.apply(announced, appended_at)
        self._noted.set()  # the next expiry may have moved

    def close(self, timeout: float) -> None:
        """Writes what is left and that this server leaves, ends the thread, and waits for it at
        most `timeout` seconds. Idempotent; also before `start`."""
        self._closing.set()
        self._noted.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._noted.wait(self._next_wait())
            self._noted.clear()
            try:
                self._keep_up()
            except Exception:
                # A server that falls silent is taken for dead, with all its users.
                _log.exception("announcing failed")
                self._closing.wait(0.5)
        self._write_changes()
        self._write(
            encode_heartbeat(Heartbeat(self._server_id, next(self._sequence), leaving=True))
        )

    def _keep_up(self) -> None:
        if not (self._write_changes() and self._beat_if_due()):
            # The producer's queue is full: try again when it may have drained.
            self._closing.wait(0.5)
            self._noted.set()
        self._expire()

    def _next_wait(self) -> float:
        now = time.monotonic()
        wait = self._next_beat - now
        expiry = self._presence.next_expiry()
        if expiry is not None:
            wait = min(wait, expiry - self._clock.at(now))
        # Not at once again for a clock that stands just before an expiry.
        return max(wait, 0.0 if expiry is None else 0.02)

    def _write_changes(self) -> bool:
        if self._overflowed:
            self._overflowed = False
            self._changes.clear()
            self._beats = 0  # the next heartbeat lists everybody
            self._next_beat = 0.0
        while self._changes:
            user, connections = self._changes[0]
            event = ConnectionEvent(
                user, self._server_id, connections > 0, connections, next(self._sequence)
            )
            if not self._write(encode_event(event)):
                return False
            self._changes.popleft()
        return True

    def _beat_if_due(self) -> bool:
        now = time.monotonic()
        if now < self._next_beat:
            return True
        listing = self._beats % BEATS_PER_LISTING == 0
        for beat in self._listing() if listing else [self._heartbeat()]:
            if not self._write(encode_heartbeat(beat)):
                return False
        self._beats += 1
        self._next_beat = now + self._interval
        return True

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(self._server_id, next(self._sequence))

    def _listing(self) -> list[Heartbeat]:
        sequence = next(self._sequence)
        users = list(self._users().items())
        starts = range(0, max(len(users), 1), USERS_PER_HEARTBEAT)
        return [
            Heartbeat(
                self._server_id,
                sequence,
                users=dict(users[start : start + USERS_PER_HEARTBEAT]),
                part=part,
                parts=len(starts),
            )
            for part, start in enumerate(starts)
        ]

    def _write(self, record: tuple[bytes, bytes]) -> bool:
        try:
            self._publish(*record, _log_failure)
        except ChatError as error:
            _log.debug("Presence could not be announced: %s", error)
            return False
        return True

    def _expire(self) -> None:
        for server_id in self._presence.expire(self._clock.at(time.monotonic())):
            _log.warning("Server %s has gone silent; its users are dropped", server_id)


def _log_failure(outcome: Acked | ChatError) -> None:
    if isinstance(outcome, ChatError):
        _log.debug("Presence could not be announced: %s", outcome)
