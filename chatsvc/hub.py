"""Hub: who is connected to this server, and the fan-out to them."""

import threading
from collections import Counter, deque
from collections.abc import Callable

from chatsvc.connection import Connection, Stream
from chatsvc.errors import CloseReason, ServerFull, ServerStopping
from chatsvc.feed import Feed
from chatsvc.frames import Batch
from chatsvc.senders import Drainable, SenderPool


class Hub:
    """The connections of this server and their feed.

    Thread-safe. `on_change` is called with a user's name and its new number of connections, in
    the order of the changes and under the hub's lock: it may do no more than take a note.
    `on_leave` is called once for each connection that was added, when its stream is over, with the
    reason and the number of messages that its client was not sent.
    """

    def __init__(
        self,
        senders: SenderPool,
        *,
        max_connections: int,
        outbox_messages: int,
        outbox_bytes: int,
        send_timeout: float,
        on_change: Callable[[str, int], None] = lambda user, count: None,
        on_leave: Callable[[CloseReason, int], None] = lambda reason, undelivered: None,
    ) -> None:
        self._senders = senders
        self._max_connections = max_connections
        self._send_timeout = send_timeout
        self._on_change = on_change
        self._on_leave = on_leave
        self._feed: Feed[Connection] = Feed(outbox_messages, outbox_bytes)
        # Guards all that follows; held for set and counter operations only.
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._users: Counter[str] = Counter()
        self._closing = False
        # Connections that were sent their end and whose streams are not over yet. Appended and
        # popped without a lock: a deque's own operations are atomic.
        self._ending: deque[Connection] = deque()

    def add(self, user: str, stream: Stream, *, batched: bool = False) -> Connection:
        """A new connection, which receives all that is broadcast from now on, once `activate`
        is called: a Delivery a frame with `batched`, else a Message. Raises ServerFull or
        ServerStopping."""
        with self._lock:
            if self._closing:
                raise ServerStopping
            if len(self._connections) >= self._max_connections:
                raise ServerFull(self._max_connections)
            connection = Connection(
                user,
                self._feed,
                stream,
                self._send_timeout,
                on_end=self._watch_end,
                batched=batched,
            )
            self._connections.add(connection)
            self._users[user] += 1
            self._on_change(user, self._users[user])
        return connection

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
            user = connection.user
            self._users[user] -= 1
            self._on_change(user, self._users[user])
            if not self._users[user]:
                del self._users[user]
        self._senders.wake_watchdog()
        assert connection.close_reason is not None  # leave() sets it
        self._on_leave(connection.close_reason, connection.backlog)
        return True

    def _watch_end(self, connection: Connection) -> None:
        self._ending.append(connection)
        self._senders.wake_watchdog()

    def broadcast(self, batch: Batch) -> None:
        """Puts a batch into every connection's outbox and returns.

        Waits only while the server's own senders are so far behind that a client which keeps up
        would overflow: Kafka holds the rest meanwhile.
        """
        self._senders.wait_while_behind(_nearly_overflows, len(batch.messages), self._send_timeout)
        self._senders.ready(self._feed.append(batch))

    def check(self, now: float) -> bool:
        """The watchdog's check: cuts off ended connections whose clients do not take the end."""
        for _ in range(len(self._ending)):
            connection = self._ending.popleft()
            if not connection.check_end(now):
                self._ending.append(connection)
        return bool(self._ending)

    def close(self, reason: CloseReason) -> None:
        """Closes every connection after what is in its outbox, and lets nobody in any more. Does
        not wait: the streams end in the senders. Idempotent."""
        with self._lock:
            self._closing = True
            connections = list(self._connections)
        self._senders.ready([each for each in connections if each.close(reason)])

    def users(self) -> dict[str, int]:
        """A copy of who is here, with how many connections."""
        with self._lock:
            return dict(self._users)

    def backlogs(self) -> list[int]:
        """Messages in each outbox."""
        with self._lock:
            connections = list(self._connections)
        return [connection.backlog for connection in connections]

    def __len__(self) -> int:
        return len(self._connections)


def _nearly_overflows(item: Drainable) -> bool:
    return isinstance(item, Connection) and item.nearly_overflows
