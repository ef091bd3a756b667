"""FeedWatch: notices when a server can no longer read what Kafka has.

A server that reads on over a hole, or not at all, while others do, must not keep its clients: they
would miss messages without knowing. While Kafka is away for everybody nobody is better off
elsewhere.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from chatsvc.errors import ChatError, FeedLost, KafkaUnreachable, TopicReplaced

_log = logging.getLogger(__name__)

AWAY_SECONDS = 10.0
"""So long no broker may answer before the server says that it does not serve."""
ERROR_SECONDS = 10.0
"""For so long an error of the consumer's counts that nothing was read since."""


class Feed(Protocol):
    """The consumer of messages: what it has read."""

    def positions(self) -> Mapping[int, int]:
        """Of each partition the next offset."""

    def denied(self) -> tuple[float, str] | None:
        """When Kafka refused to let it read on, monotonic, and why; None if it has not, or it has
        read on since."""


class FeedState:
    """What follows from positions and ends. Knows no clock and no Kafka."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        # Of each partition that is behind, where it stands and since when.
        self._behind: dict[int, tuple[int, float]] = {}

    def stuck(self, positions: Mapping[int, int], ends: Mapping[int, int], now: float) -> bool:
        """Given where the consumer is and where the log ended a moment before, whether some
        partition has not moved for the timeout though there is more."""
        for partition, end in ends.items():
            position = positions.get(partition, 0)
            if position >= end:
                self._behind.pop(partition, None)
            elif self._behind.get(partition, (-1, 0.0))[0] != position:
                self._behind[partition] = (position, now)
        return any(now - since >= self._timeout for _, since in self._behind.values())


class FeedWatch:
    """The thread that compares, every `interval` seconds, what the consumer has read with what
    Kafka has.

    `look` asks Kafka for the topic's identity and the ends of its partitions; it may block, and
    raises a ChatError. `on_state` is told FeedLost when the server cannot read on, None when it can
    again; `on_reach` whether a broker answers; `on_replaced` that the topic is another one, which
    is the last thing that is told.
    """

    def __init__(
        self,
        feed: Feed,
        identity: bytes,
        topic: str,
        look: Callable[[], tuple[bytes, Mapping[int, int]]],
        *,
        timeout: float,
        interval: float,
        on_state: Callable[[FeedLost | None], None],
        on_reach: Callable[[bool], None],
        on_replaced: Callable[[ChatError], None],
    ) -> None:
        self._feed = feed
        self._identity = identity
        self._topic = topic
        self._look = look
        self._state = FeedState(timeout)
        self._interval = interval
        self._on_state = on_state
        self._on_reach = on_reach
        self._on_replaced = on_replaced
        self._lost = False
        self._reached_at = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed-watch", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._reached_at = time.monotonic()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and waits for it: at most as long as `look` takes. Idempotent; also
        before `start`."""
        self._closing.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                if not self._compare():
                    return
            except Exception:
                # A comparison that fails must not be the last.
                _log.exception("watching topic %s failed", self._topic)

    def _compare(self) -> bool:
        """Returns False if there is no more use."""
        try:
            identity, ends = self._look()
        except KafkaUnreachable:
            self._on_reach(time.monotonic() - self._reached_at < AWAY_SECONDS)
            return True
        except ChatError as error:
            self._tell(FeedLost(str(error)))
            return True
        now = time.monotonic()
        self._reached_at = now
        self._on_reach(True)
        if identity != self._identity:
            if not self._closing.is_set():
                self._on_replaced(TopicReplaced(self._topic))
            return False
        self._tell(self._judge(ends, now))
        return True

    def _judge(self, ends: Mapping[int, int], now: float) -> FeedLost | None:
        if self._state.stuck(self._feed.positions(), ends, now):
            return FeedLost("nothing was read for too long, though there is more")
        denied = self._feed.denied()
        if denied is not None and (self._lost or now - denied[0] < ERROR_SECONDS):
            return FeedLost(denied[1])
        return None

    def _tell(self, lost: FeedLost | None) -> None:
        if self._closing.is_set() or (lost is None and not self._lost):
            return
        if lost is not None and not self._lost:
            _log.error("Topic %s: %s", self._topic, lost.cause)
        elif lost is None:
            _log.warning("Topic %s is read on", self._topic)
        self._lost = lost is not None
        self._on_state(lost)
