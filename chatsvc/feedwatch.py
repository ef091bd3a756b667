"""FeedWatch: notices when a server can no longer read what Kafka has.

A server that reads on over a hole, or not at all, while others do, must not keep its clients: they
would miss messages without knowing. While Kafka is away for everybody nobody is better off
elsewhere.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from chatsvc.errors import ChatError, FeedLost, KafkaUnreachable, TopicReplaced
from chatsvc.periodic import Periodic

_log = logging.getLogger(__name__)

STUCK = "nothing was read for too long, though there is more"
DENIED_SECONDS = 5.0
"""So long Kafka has to say that the topic cannot be read: a broker that has just started may know
less than it will."""
AWAY_SECONDS = 10.0
"""So long no broker may answer before the server says that it does not serve."""


class State(Protocol):
    """What Kafka says of the topic: chatsvc.topics has it."""

    @property
    def identity(self) -> bytes: ...

    @property
    def ends(self) -> Mapping[int, int]: ...


class FeedState:
    """What follows from positions and ends. Knows no clock and no Kafka."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        # Of each partition that is behind, where it stands and since when.
        self._behind: dict[int, tuple[int, float]] = {}

        # Up to where a partition has no record that could have been read.
        self._empty: dict[int, int] = {}

    def stuck(
        self, positions: Mapping[int, int], ends: Mapping[int, int], now: float
    ) -> list[tuple[int, int, int]]:
        """Given where the consumer is and where the log ended a moment before, the partitions that
        have not moved for the timeout though there seems to be more, each with both offsets."""
        found = []
        for partition, end in ends.items():
            position = positions.get(partition, 0)
            if max(position, self._empty.get(partition, 0)) >= end:
                self._behind.pop(partition, None)
                continue
            if self._behind.get(partition, (-1, 0.0))[0] != position:
                self._behind[partition] = (position, now)
            if now - self._behind[partition][1] >= self._timeout:
                found.append((partition, position, end))
        return found

    def note_empty(self, partition: int, end: int) -> None:
        """There is nothing to be read before an offset: the markers of a transaction, for
        instance, are no records."""
        self._empty[partition] = end


class FeedWatch(Periodic):
    """The thread that compares, every `interval` seconds, what the consumer has read with what
    Kafka has.

    `positions` tells what the consumer has read. `look` asks Kafka for the topic's identity and the
    ends of its partitions; it may block, returns None if some brokers answer but not those that
    know, and raises KafkaUnreachable if there is no answer, another ChatError if the answer is that
    the topic cannot be read. `has_records` reads a partition between two offsets and returns
    whether something is there, None if it cannot tell; it may block.

    `on_state` is told FeedLost when the server cannot read on, None when it can again; `on_reach`
    whether a broker answers; `on_replaced` that the topic is another one, which is the last thing
    that is told.
    """

    def __init__(
        self,
        positions: Callable[[], Mapping[int, int]],
        identity: bytes,
        topic: str,
        look: Callable[[], State | None],
        has_records: Callable[[int, int, int], bool | None],
        *,
        timeout: float,
        interval: float,
        denied_seconds: float = DENIED_SECONDS,
        on_state: Callable[[FeedLost | None], None],
        on_reach: Callable[[bool], None],
        on_replaced: Callable[[ChatError], None],
    ) -> None:
        super().__init__("feed-watch", interval, self._compare)
        self._positions = positions
        self._identity = identity
        self._topic = topic
        self._look = look
        self._has_records = has_records
        self._state = FeedState(timeout)
        self._denied_seconds = denied_seconds
        self._on_state = on_state
        self._on_reach = on_reach
        self._on_replaced = on_replaced
        self._lost = False
        self._reached_at = 0.0
        self._denied_at: float | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._reached_at = time.monotonic()
        super().start()

    def _compare(self) -> None:
        try:
            found = self._look()
        except KafkaUnreachable:
            self._on_reach(time.monotonic() - self._reached_at < AWAY_SECONDS)
            return
        except ChatError as error:
            self._deny(error, time.monotonic())
            return
        now = time.monotonic()
        self._reached_at, self._denied_at = now, None
        self._on_reach(True)
        if found is None:
            return
        if found.identity != self._identity:
            if not self.is_ending:
                self._on_replaced(TopicReplaced(self._topic))
            self.end()
            return
        stuck = self._state.stuck(self._positions(), found.ends, now)
        self._tell(None if all(self._is_empty(*each) for each in stuck) else FeedLost(STUCK))

    def _is_empty(self, partition: int, start: int, end: int) -> bool:
        """Whether there is nothing that the consumer could have read; as before if nobody knows."""
        has_records = self._has_records(partition, start, end)
        if has_records is False:
            self._state.note_empty(partition, end)
        return not self._lost if has_records is None else not has_records

    def _deny(self, error: ChatError, now: float) -> None:
        self._reached_at = now
        self._denied_at = now if self._denied_at is None else self._denied_at
        if now - self._denied_at >= self._denied_seconds:
            self._tell(FeedLost(str(error)))

    def _tell(self, lost: FeedLost | None) -> None:
        if self.is_ending or (lost is not None) == self._lost:
            return
        if lost is not None:
            _log.error("Topic %s cannot be read on: %s", self._topic, lost.cause)
        else:
            _log.warning("Topic %s is read on", self._topic)
        self._lost = lost is not None
        self._on_state(lost)
