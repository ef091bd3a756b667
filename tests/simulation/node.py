"""Node: a simulated server. Its hub, connections, replays, feeds, tail, fan-out, cursors and seats
are the real ones; its senders, consumer and reader of the log are simulated."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from random import Random
from types import ModuleType
from typing import TypeVar

from chatsvc.connection import ALL, Connection
from chatsvc.cursor import CursorFormat
from chatsvc.duplicates import Duplicates
from chatsvc.errors import CloseReason
from chatsvc.fanout import Fanout
from chatsvc.feed import Feed, Position
from chatsvc.frames import Batch
from chatsvc.hub import Hub
from chatsvc.replay import Chunk, Need
from chatsvc.seats import Seats
from chatsvc.senders import STUCK_SECONDS, Drainable
from chatsvc.tail import OVERHEAD_BYTES, NotInTail, Tail

from simulation.session import SEND_TIMEOUT, Session
from simulation.topic import Topic
from simulation.turns import Task, Turns

T = TypeVar("T")
IDENTITY = b"the topic"


@dataclass(frozen=True)
class Parts:
    """What servers are made of; a test of the simulation itself puts a faulty one among them.
    `chunk` sees each chunk before it is handed out. Turns often end in `suspects`."""

    hub: type[Hub] = Hub
    tail: type[Tail] = Tail
    cursors: type[CursorFormat] = CursorFormat
    fanout: type[Fanout] = Fanout
    seats: type[Seats] = Seats
    chunk: Callable[[Chunk, Need], Chunk] = lambda chunk, need: chunk
    suspects: tuple[ModuleType, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a server holds, small enough that all of it overflows."""

    seats: int
    outbox_messages: int
    outbox_bytes: int
    tail_bytes: int
    chunk_records: int
    step_records: int
    read_records: int
    patience: int
    """How many turns a fan-out waits at most for senders that are behind."""


class Clock:
    """The time of all servers, which goes on a little with each look at it."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self.now = 1_000.0

    def look(self) -> float:
        self.now += self._chance.choice((0.0, 0.0001, 0.03))
        return self.now


class Pool:
    """What a SenderPool is to a hub. Each drain is run by a thread of `turns`; there is always one
    more, as there is in a pool that replaces those that are stuck."""

    def __init__(
        self, name: str, turns: Turns, clock: Clock, chance: Random, patience: int
    ) -> None:
        self._name = name
        self._turns = turns
        self._clock = clock
        self._chance = chance
        self._patience = patience
        self._numbers: dict[Drainable, int] = {}
        self.queue: list[Drainable] = []
        # Which task drains an item; the newest, if one before is still on its way out.
        self.drained_by: dict[Drainable, Task] = {}
        self.tasks: list[Task] = []
        self.since: dict[Task, float] = {}

    def know(self, item: Drainable) -> None:
        """An item that may be handed over; they come in the order in which they are known, not in
        that of a set."""
        self._numbers[item] = len(self._numbers)

    def ready(self, items: Collection[Drainable]) -> None:
        for item in sorted(items, key=self._numbers.__getitem__):
            assert item not in self.queue, "a connection was handed over twice"
            self.queue.append(item)

    def wake_watchdog(self) -> None:
        """The watchdog of a simulated server looks when it likes."""

    def wait_while_behind(
        self, behind: Callable[[Drainable], bool], messages: int, timeout: float
    ) -> bool:
        for _ in range(self._chance.randint(0, self._patience)):
            if not any(map(behind, [*self.queue[:1], *self.drained_by])):
                return True
            self._turns.pause()
        return False

    def runnable(self) -> list[Task]:
        """The senders that are in a drain and may go on, and one that is free if there is work."""
        free = [each for each in self.tasks if each.ready == self._has_work]
        busy = [each for each in self.tasks if each not in free and each.ready()]
        if not self.queue:
            return busy
        if not free:
            task = self._turns.start(f"{self._name}-sender-{len(self.tasks)}", self._run)
            task.ready = self._has_work
            self.tasks.append(task)
            free = [task]
        return [*busy, free[0]]

    def _has_work(self) -> bool:
        return bool(self.queue)

    def _run(self) -> None:
        task = self._turns.current
        assert task is not None  # this runs in one
        while True:
            if self.queue:
                self._drain(self.queue.pop(self._chance.randrange(len(self.queue))), task)
            self._turns.pause(self._has_work)

    def _drain(self, item: Drainable, task: Task) -> None:
        self.drained_by[item] = task
        again = item.drain(_Pulse(self, item, task))
        if self.drained_by.get(item) is task:
            del self.drained_by[item]
        else:
            assert not again, "a connection that was handed over went on"
        if again:
            self.ready([item])

    def beat(self, item: Drainable, task: Task) -> float:
        assert self.drained_by.get(item) is task, "a connection is drained twice at once"
        self.since[task] = self._clock.look()
        if self._chance.random() < 0.15:
            self._turns.pause()
        return self.since[task]


class _Pulse:
    def __init__(self, pool: Pool, item: Drainable, task: Task) -> None:
        self._pool = pool
        self._item = item
        self._task = task

    takes_those_behind = True

    def beat(self) -> float:
        return self._pool.beat(self._item, self._task)

    def sent(self, messages: int, fanned_out_at: float) -> None:
        """A simulated sender counts nothing."""


class Reader:
    """What a LogReader is to a hub: answers requests when it is told to, in any order."""

    def __init__(self, topic: Topic, chance: Random, parts: Parts, chunk_records: int) -> None:
        self._topic = topic
        self._chance = chance
        self._parts = parts
        self._chunk_records = chunk_records
        self._kept: dict[tuple[int, int], Chunk] = {}
        self.requests: list[tuple[Need, Callable[[Chunk | None], None]]] = []
        self.closing = False

    def fetch(self, need: Need, done: Callable[[Chunk | None], None]) -> None:
        if self.closing:
            done(None)
        else:
            self.requests.append((need, done))

    def answer(self) -> bool:
        """Answers one of those who wait."""
        if not self.requests:
            return False
        need, done = self.requests.pop(self._chance.randrange(len(self.requests)))
        done(self._chunk(need))
        return True

    def close(self) -> None:
        self.closing = True
        while self.requests:
            self.requests.pop()[1](None)

    def _chunk(self, need: Need) -> Chunk:
        key = (need.partition, need.start // self._chunk_records)
        kept = self._kept.get(key)
        if kept is None or need.start >= kept.end:
            kept = self._kept[key] = self._parts.chunk(self._read(need), need)
        return kept

    def _read(self, need: Need) -> Chunk:
        """From a multiple of the chunk's size on, or where retention has left something."""
        topic, partition = self._topic, need.partition
        first = need.start - need.start % self._chunk_records
        limit = min(need.end, first + self._chunk_records)
        limit = self._chance.choice((limit, self._chance.randint(need.start + 1, limit)))
        start = max(first, min(topic.starts[partition], topic.ends[partition]))
        entries = [each for each in topic.entries[partition][start:limit] if each is not None]
        return Chunk(partition, start, max(start, limit), entries)


class CountedSeats(Seats):
    """Seats that tell how many are taken."""

    taken = 0

    def take(self) -> bool:
        taken = super().take()
        self.taken += taken
        return taken

    def give(self) -> None:
        super().give()
        self.taken -= 1


class WatchedHub(Hub):
    """A hub that tells when a connection begins to catch up."""

    def watch(self, pool: Pool, sessions: dict[Connection, Session], turns: Turns) -> None:
        self._pool, self._sessions, self._turns = pool, sessions, turns
        self.feeds: dict[int, Feed[Connection]] = {}
        self._nowhere: Feed[Connection] = Feed(1, 1)

    def live(self) -> Mapping[int, int]:
        """The positions behind all that was broadcast, whatever a faulty hub says."""
        return Hub.level(self, self._nowhere)[0]

    def level(self, feed: Feed[Connection]) -> tuple[Mapping[int, int], Position]:
        self.feeds[id(feed)] = feed
        for item, task in self._pool.drained_by.items():
            if task is self._turns.current:
                assert isinstance(item, Connection)
                if item in self._sessions:
                    self._sessions[item].catches_up(self.live())
        return super().level(feed)

    def interrupt(self, positions: Mapping[int, int]) -> None:
        for session in self._sessions.values():
            session.interrupted()
        super().interrupt(positions)


class Node:
    """One server: `read` is of each partition the offset that its consumer reads next."""

    def __init__(
        self,
        name: str,
        topic: Topic,
        turns: Turns,
        chance: Random,
        clock: Clock,
        limits: Limits,
        parts: Parts,
    ) -> None:
        self.name = name
        self.limits = limits
        self.turns = turns
        self.clock = clock
        self.topic = topic
        self._chance = chance
        self.sessions: dict[Connection, Session] = {}
        self.pool = Pool(name, turns, clock, chance, limits.patience)
        self.reader = Reader(topic, chance, parts, limits.chunk_records)
        self.tail = parts.tail(limits.tail_bytes)
        self.cursors = parts.cursors(IDENTITY)
        self.seats = _mixed(CountedSeats, parts.seats)(limits.seats)
        self.left: list[CloseReason] = []
        self.users: dict[str, int] = {}
        self.hub = _mixed(WatchedHub, parts.hub)(
            self.pool,  # type: ignore[arg-type]
            seats=self.seats,
            tail=self.tail,
            cursors=self.cursors,
            fetch=self.reader.fetch,
            outbox_messages=limits.outbox_messages,
            outbox_bytes=limits.outbox_bytes,
            send_timeout=SEND_TIMEOUT,
            step_records=limits.step_records,
            on_change=self._count_user,
            on_leave=lambda reason, undelivered: self.left.append(reason),
        )
        self.hub.watch(self.pool, self.sessions, turns)
        self.fanout = parts.fanout(
            self.hub,
            self.tail,
            Duplicates(),
            count_received=lambda messages: turns.pause(),
            count_invalid=lambda reason: None,
            count_duplicate=lambda: None,
            observe_latency=self._pause_now_and_then,
        )
        self.read = {
            each: end if chance.random() < 0.7 else chance.randint(topic.starts[each], end)
            for each, end in topic.ends.items()
        }
        self.known_partitions = len(self.read)
        self.added = 0
        # Connections whose streams are over, of which the hub has not been told.
        self.over: list[Connection] = []
        self.stopping = False
        self._read_back()
        self.fanout.on_positions(self.read)
        self.consumer = turns.start(f"{name}-consumer", self._consume)
        self.consumer.ready = self.is_behind

    def _read_back(self) -> None:
        """Takes in what is before the place where it begins, as a server does before it serves."""
        self.fanout.on_positions(dict.fromkeys(self.read, 0))
        for partition, end in self.read.items():
            records = self.topic.records[partition][:end]
            tail_from = self._chance.choice((0, max(0, end - 3), end))
            self.fanout.fill(partition, records, end, tail_from)

    def _count_user(self, user: str, count: int) -> None:
        self.users[user] = count

    def _pause_now_and_then(self, seconds: float) -> None:
        if self._chance.random() < 0.1:
            self.turns.pause()

    @property
    def tasks(self) -> list[Task]:
        """All threads of this server."""
        return [self.consumer, *self.pool.tasks]

    def runnable(self) -> list[Task]:
        """Those that have something to do."""
        senders = self.pool.runnable()
        return [self.consumer, *senders] if self.consumer.ready() else senders

    def is_behind(self) -> bool:
        """Whether there is something to read."""
        return len(self.read) < self.known_partitions or any(
            offset < len(self.topic.records[each]) for each, offset in self.read.items()
        )

    def _consume(self) -> None:
        while True:
            if not self._reposition():
                records = self._next_records()
                if records:
                    self.fanout.on_records(records)
            self.turns.pause(self.is_behind)

    def _reposition(self) -> bool:
        """Reads new partitions from their first record, which retention may have deleted."""
        new = {each: 0 for each in range(self.known_partitions) if each not in self.read}
        gone = {each: start for each, start in self.topic.starts.items() if each in self.read}
        gone = {each: start for each, start in gone.items() if self.read[each] < start}
        if new or gone:
            self.read |= new | gone
            self.fanout.on_positions(self.read)
        return bool(new or gone)

    def _next_records(self) -> list[object]:
        """What one read brings: of some partitions some records, in any order of partitions."""
        records: list[object] = []
        for _ in range(self._chance.randint(1, 4)):
            partition = self._chance.choice(list(self.read))
            start = self.read[partition]
            end = start + self._chance.randint(1, self.limits.read_records)
            found = self.topic.records[partition][start:end]
            self.read[partition] += len(found)
            records += found
        return records

    def remove_one(self) -> bool:
        """The hub learns of one stream that it is over."""
        if not self.over:
            return False
        connection = self.over.pop(self._chance.randrange(len(self.over)))
        assert self.hub.remove(connection), "a connection was not there"
        assert not self.hub.remove(connection)
        del self.sessions[connection]
        return True

    def stop(self) -> None:
        """Stops as by SIGTERM; its streams end when what is in their outboxes has been sent."""
        self.stopping = True
        for session in self.sessions.values():
            session.owed = self.hub.live()
        self.hub.close(CloseReason.SHUTDOWN)

    def watch(self) -> None:
        """The watchdog's look at senders that are stuck and at streams that do not end."""
        for item, task in list(self.pool.drained_by.items()):
            seconds = self.clock.now - self.pool.since.get(task, self.clock.now)
            if seconds > STUCK_SECONDS:
                assert isinstance(item, Connection)
                if item in self.sessions and seconds > SEND_TIMEOUT:
                    self.sessions[item].timed_out = True
                item.check_send(seconds, self.clock.now)
        self.hub.check(self.clock.now)

    def kill(self) -> None:
        """All that it did ends where it is."""
        self.stopping = True
        self.turns.end(self.tasks)
        for session in self.sessions.values():
            session.is_over = True

    def check(self) -> None:
        """What is true at any moment."""
        assert self.seats.taken == len(self.hub) == len(self.sessions), "seats are not connections"
        assert self.hub.users() == {user: count for user, count in self.users.items() if count}
        assert len(self.left) + len(self.sessions) == self.added, "a leave was not told once"

    def check_memory(self) -> None:
        """Feeds and tail are within their limits, unless what they hold is one thing."""
        for feed in self.hub.feeds.values():
            batches = _batches(feed)
            messages = sum(len(each.messages) for each in batches)
            size = sum(each.size for each in batches)
            assert len(batches) <= 1 or (
                messages <= self.limits.outbox_messages and size <= self.limits.outbox_bytes
            ), "a feed is too large"
        kept = [entry for each in self.read for entry in _kept(self.tail, each, self.read[each])]
        size = sum(len(each.element) + OVERHEAD_BYTES for each in kept)
        assert len(kept) <= 1 or size <= self.limits.tail_bytes, "the tail is too large"


def _batches(feed: Feed[Connection]) -> list[Batch]:
    """All that a feed has."""
    end = feed.end.batches
    start = _first(end, lambda each: not feed.has_overflowed(Position(each, 0, 0)))
    return feed.read(Position(start, 0, 0), ALL, ALL)[0]


def _kept(tail: Tail, partition: int, end: int) -> list[object]:
    """All that a tail has of a partition."""

    def reaches(start: int) -> bool:
        try:
            Tail.read(tail, partition, start, start, 0)
        except NotInTail:
            return False
        return True

    if not reaches(end):
        return []
    return list(Tail.read(tail, partition, _first(end, reaches), end, ALL))


def _first(end: int, true: Callable[[int], bool]) -> int:
    """The first number from which on something is true; it is at `end`."""
    start = 0
    while start < end:
        middle = (start + end) // 2
        if true(middle):
            end = middle
        else:
            start = middle + 1
    return start


def _mixed(watched: type[T], part: type) -> type[T]:
    """A part that is watched also if it is a faulty one."""
    return type(watched.__name__, (watched, part), {}) if part not in watched.__mro__ else watched
