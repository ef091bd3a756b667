"""Hub: who is connected to this server, to which rooms, and the fan-out to them.

Connections to the same rooms share a feed. A connection to several rooms is not one to several
feeds, so it has one position, one order and one cursor whatever rooms it is in.
"""

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from chatsvc import frames
from chatsvc.connection import Connection, Stream
from chatsvc.cursor import CursorFormat
from chatsvc.errors import ChatError, CloseReason, ServerFull, ServerStopping
from chatsvc.feed import Feed, Position
from chatsvc.frames import Batch, batch
from chatsvc.model import LOBBY
from chatsvc.replay import STEP_RECORDS, Chunk, Need, Replay, SharedSteps
from chatsvc.seats import Seats
from chatsvc.senders import Drainable, SenderPool
from chatsvc.tail import Tail

Rooms = frozenset[str]
THE_LOBBY: Rooms = frozenset((LOBBY,))

AWAY_SECONDS = 10.0
"""How long a client may take to go that was asked to at its age."""
AWAY_PACE_SECONDS = 0.002
"""Between two of those that are asked to go all together: elsewhere they come at this rate."""


class Hub:
    """The connections of this server and their feeds.

    Thread-safe. A batched connection reads what it has missed from `tail`, or from chunks of the
    log that `fetch` is asked for. `on_change` is called with a user's name and its new number of
    connections, in the order of the changes and under the hub's lock: it may do no more than take a
    note. `on_leave` is called once for each connection that was added, when its stream is over,
    with the reason and the number of messages that its client was not sent.

    Something is sent to each batched connection at least every `heartbeat_seconds`, and one whose
    client has said that it would do the same, and was silent for twice as long, is cut off. With
    `max_age_seconds` above 0, clients are asked to go elsewhere when they have been here for so
    long, or up to a tenth less or more.
    """

    def __init__(
        self,
        senders: SenderPool,
        *,
        seats: Seats,
        tail: Tail,
        cursors: CursorFormat,
        fetch: Callable[[Need, Callable[[Chunk | None], None]], None],
        outbox_messages: int,
        outbox_bytes: int,
        send_timeout: float,
        step_records: int = STEP_RECORDS,
        heartbeat_seconds: float = 15.0,
        max_age_seconds: float = 0.0,
        on_change: Callable[[str, int], None] = lambda user, count: None,
        on_leave: Callable[[CloseReason, int], None] = lambda reason, undelivered: None,
    ) -> None:
        self._senders = senders
        self._seats = seats
        self.tail = tail
        self.steps = SharedSteps()
        self._cursors = cursors
        self._fetch = fetch
        self._send_timeout = send_timeout
        self._step_records = step_records
        self._heartbeat_seconds = heartbeat_seconds
        self._max_age_seconds = max_age_seconds
        self._on_change = on_change
        self._on_leave = on_leave
        self._outbox_messages = outbox_messages
        self._outbox_bytes = outbox_bytes
        # Guards all that follows; held for set and list operations, to make a batch of bytes, and
        # to take a seat, in memory that workers share.
        self._lock = threading.Lock()
        # Notified when the last connection leaves.
        self._emptied = threading.Condition(self._lock)
        self._connections: set[Connection] = set()
        self._feeds: dict[Rooms, _SharedFeed] = {}
        # Of each room the feeds that it goes to. The tuples are replaced, never changed.
        self._feeds_of: dict[str, tuple[_SharedFeed, ...]] = {}
        # Of each partition the offset behind all that was broadcast. Replaced, never changed.
        self._positions: Mapping[int, int] = {}
        # Connections that wait until more has been broadcast.
        self._waiting: set[Connection] = set()
        self._users: Counter[str] = Counter()
        # Why nobody is let in, if so.
        self._refusal: ChatError | None = None
        self._closing = False
        # Connections that were sent their end and whose streams are not over yet. Appended and
        # popped without a lock: a deque's own operations are atomic.
        self._ending: deque[Connection] = deque()

    def add(
        self,
        user: str,
        stream: Stream,
        *,
        rooms: Rooms = THE_LOBBY,
        batched: bool = False,
        positions: Mapping[int, int] | None = None,
    ) -> Connection:
        """A new connection, which receives all that is broadcast to `rooms` from now on, once
        `activate` is called: a Delivery a frame with `batched`, else a Message. A batched one
        receives what has come since `positions` before; its first Delivery has a cursor. Raises
        ServerFull, or what `refuse` was given."""
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if not self._seats.take():
                raise ServerFull(self._seats.limit)
            connection = Connection(
                user,
                self._join(rooms).feed,
                stream,
                self._send_timeout,
                on_end=self._watch_end,
                rooms=rooms,
                batched=batched,
                past=self if batched else None,
                replay=self._first_replay(rooms, positions) if batched else None,
            )
            if batched and self._max_age_seconds:
                age = self._max_age_seconds * random.uniform(0.9, 1.1)
                connection.away_at = time.monotonic() + age
            self._connections.add(connection)
            self._users[user] += 1
            self._on_change(user, self._users[user])
        return connection

    def _first_replay(self, rooms: Rooms, positions: Mapping[int, int] | None) -> Replay:
        return self.replay(rooms, self._positions if positions is None else positions)

    def replay(self, rooms: Rooms, positions: Mapping[int, int]) -> Replay:
        """Brings a connection to these rooms level from some positions."""
        return Replay(rooms, positions, self._step_records)

    def activate(self, connection: Connection) -> None:
        """Lets senders drain the connection from now on."""
        self._senders.ready([connection])

    def remove(self, connection: Connection) -> bool:
        """Forgets a connection whose stream is over. Returns whether it was there."""
        connection.leave()
        with self._lock:
            if connection not in self._connections:
                return False
            self._connections.remove(connection)
            self._waiting.discard(connection)
            self._part(connection.rooms)
            user = connection.user
            self._users[user] -= 1
            self._on_change(user, self._users[user])
            if not self._users[user]:
                del self._users[user]
            if not self._connections:
                self._emptied.notify_all()
        self._seats.give()
        self._senders.wake_watchdog()
        assert connection.close_reason is not None  # leave() sets it
        self._on_leave(connection.close_reason, connection.backlog)
        return True

    def _watch_end(self, connection: Connection) -> None:
        self._ending.append(connection)
        self._senders.wake_watchdog()

    def _join(self, rooms: Rooms) -> "_SharedFeed":
        """The feed of exactly these rooms, with one more member."""
        shared = self._feeds.get(rooms)
        if shared is None:
            shared = _SharedFeed(rooms, Feed(self._outbox_messages, self._outbox_bytes))
            self._feeds[rooms] = shared
            for room in rooms:
                self._feeds_of[room] = (*self._feeds_of.get(room, ()), shared)
        shared.members += 1
        return shared

    def _part(self, rooms: Rooms) -> None:
        """One member less; a feed without any is forgotten."""
        shared = self._feeds[rooms]
        shared.members -= 1
        if shared.members:
            return
        del self._feeds[rooms]
        for room in rooms:
            left = tuple(each for each in self._feeds_of[room] if each is not shared)
            if left:
                self._feeds_of[room] = left
            else:
                del self._feeds_of[room]

    def has_room(self, room: str) -> bool:
        """Whether anybody here is in a room now."""
        return room in self._feeds_of

    def broadcast(
        self, messages: Sequence[tuple[str, bytes]], positions: Mapping[int, int], now: float
    ) -> None:
        """Puts encoded messages, each with its room, into the outboxes of who is there, in their
        order, and returns. `positions` are of each partition the offset behind them; the tail has
        all that is before. They also move those on who are in none of these rooms. Called by one
        thread, which does not change `positions` any more.

        Waits only while the server's own senders are so far behind that a client which keeps up
        would overflow: Kafka holds the rest meanwhile.
        """
        heard = sum(self.has_room(room) for room, _ in messages)
        if heard:
            self._senders.wait_while_behind(_nearly_overflows, heard, self._send_timeout)
        cursor = self.cursor(positions)
        rooms = {room for room, _ in messages}
        woken: set[Connection] = set()
        with self._lock:
            batches: dict[Rooms, Batch] = {}
            for shared in {each for room in rooms for each in self._feeds_of.get(room, ())}:
                # Feeds for which the same rooms bring something share the batch.
                brought = shared.rooms & rooms
                if brought not in batches:
                    joined = [encoded for room, encoded in messages if room in brought]
                    batches[brought] = batch(joined, now, cursor, positions)
                woken |= shared.feed.append(batches[brought])
            self._positions = positions
            woken |= self._waiting
            self._waiting = set()
        self._senders.ready(woken)

    def interrupt(self, positions: Mapping[int, int]) -> None:
        """The log is read on elsewhere than where it was read to. Who can catch up does so from
        where it is, and is told what is lost; all others are closed. Called by the thread that
        calls `broadcast`."""
        with self._lock:
            woken = {each for shared in self._feeds.values() for each in shared.feed.interrupt()}
            woken |= self._waiting
            self._waiting = set()
            self._positions = positions
        self._senders.ready(woken)

    @property
    def positions(self) -> Mapping[int, int]:
        """Of each partition the offset behind all that was broadcast."""
        return self._positions

    @property
    def heartbeat_seconds(self) -> float:
        """How often something is sent to each batched connection at least."""
        return self._heartbeat_seconds

    def level(self, feed: Feed[Connection]) -> tuple[Mapping[int, int], Position]:
        """The positions behind all that was broadcast, and the end of a feed at that moment."""
        with self._lock:
            return self._positions, feed.end

    def cursor(self, positions: Mapping[int, int]) -> bytes:
        """A Delivery that says where to go on."""
        return frames.cursor(self._cursors.encode(positions))

    def fetch(self, need: Need, connection: Connection) -> None:
        """Gives a connection what it needs of the log and hands it to a sender, later."""

        def fetched(chunk: Chunk | None) -> None:
            connection.take_chunk(chunk)
            self._senders.ready([connection])

        self._fetch(need, fetched)

    def wait(self, connection: Connection, live: Mapping[int, int]) -> None:
        """Hands a connection to a sender when more than up to `live` has been broadcast."""
        with self._lock:
            if self._positions is live and not self._closing:
                self._waiting.add(connection)
                return
        self._senders.ready([connection])

    def check(self, now: float) -> bool:
        """The watchdog's check: cuts off ended connections whose clients do not take the end."""
        for _ in range(len(self._ending)):
            connection = self._ending.popleft()
            if not connection.check_end(now):
                self._ending.append(connection)
        return bool(self._ending)

    def beat(self, now: float) -> None:
        """Called now and then: has heartbeats sent where nothing else was for a while, and parts
        with clients that are gone, or have been here for long enough. Does not block."""
        with self._lock:
            connections = list(self._connections)
        # Not all at once: those that were sent the same message would be due together.
        ready = [each for each in connections if self._is_due(each, now)]
        self._senders.ready(ready)

    def _is_due(self, connection: Connection, now: float) -> bool:
        """Whether a sender has to take a connection."""
        if connection.is_silent(now, 2 * self._heartbeat_seconds):
            connection.close(CloseReason.GONE)
            connection.cut_off()
            return False
        if connection.away_at and now > connection.away_at:
            return self._part_with(connection, now)
        return connection.beat(now, self._heartbeat_seconds * random.uniform(0.85, 0.95))

    def _part_with(self, connection: Connection, now: float) -> bool:
        """The second time, for a client that has not gone, the stream is ended."""
        if connection.asked_away:
            connection.away_at = 0.0
            return connection.close(CloseReason.MOVED)
        connection.away_at = now + AWAY_SECONDS
        return connection.send_away(0)

    def refuse(self, refusal: ChatError | None) -> None:
        """Lets nobody in from now on, who is told why; None: lets them in again."""
        with self._lock:
            if not self._closing:
                self._refusal = refusal

    def send_away(self, spread_seconds: float, reason: CloseReason) -> float:
        """Asks the clients here to go elsewhere, each at another time, `spread_seconds` at most or
        less if they are few; those that cannot be asked are closed for `reason`. Returns the
        seconds until the last should go. Does not block."""
        with self._lock:
            connections = list(self._connections)
        spread = min(spread_seconds, AWAY_PACE_SECONDS * len(connections))
        self._senders.ready(
            [
                each
                for each in connections
                if (
                    each.send_away(int(random.uniform(0, spread) * 1_000))
                    if each.is_batched
                    else each.close(reason)
                )
            ]
        )
        return spread

    def wait_empty(self, timeout: float) -> bool:
        """Blocks until nobody is here, at most `timeout` seconds. Returns whether it is so."""
        with self._lock:
            return self._emptied.wait_for(lambda: not self._connections, timeout)

    def close(self, reason: CloseReason) -> None:
        """Closes every connection after what is in its outbox, and lets nobody in any more. Does
        not wait: the streams end in the senders. Idempotent."""
        self.refuse(ServerStopping())
        with self._lock:
            self._closing = True
            connections = list(self._connections)
            waiting, self._waiting = self._waiting, set()
        ready = {each for each in connections if each.close(reason)}
        self._senders.ready(ready | waiting)

    def users(self) -> dict[str, int]:
        """A copy of who is here, with how many connections."""
        with self._lock:
            return dict(self._users)

    def backlogs(self) -> list[int]:
        """Messages in each outbox."""
        with self._lock:
            connections = list(self._connections)
        return [connection.backlog for connection in connections]

    def replays(self) -> int:
        """How many connections catch up from the log."""
        with self._lock:
            connections = list(self._connections)
        return sum(connection.catches_up for connection in connections)

    def __len__(self) -> int:
        return len(self._connections)


class _SharedFeed:
    """A feed, its rooms, and how many connections have it."""

    __slots__ = ("feed", "members", "rooms")

    def __init__(self, rooms: Rooms, feed: Feed[Connection]) -> None:
        self.rooms = rooms
        self.feed = feed
        self.members = 0


def _nearly_overflows(item: Drainable) -> bool:
    return isinstance(item, Connection) and item.nearly_overflows
