"""Servers that tell each other who is where: what each writes is read by all, partition by
partition, at their own paces; some die."""

import itertools
from collections import deque
from collections.abc import Callable
from random import Random

from chatsvc.model import ConnectionEvent, Heartbeat
from chatsvc.presence import Presence
from chatsvc.registrar import BrokerClock

from simulation.seeds import SEEDS

TIMEOUT = 15.0
INTERVAL = 5.0
LOOK_BACK = 45.0
PARTITIONS = 3
USERS = ("ann", "bob", "cem", "dee")
MAX_NOTED = 4
STEPS = 600

Announced = ConnectionEvent | Heartbeat


class Log:
    """The topic of connections: of each partition the times and records."""

    def __init__(self) -> None:
        self.partitions: list[list[tuple[float, Announced]]] = [[] for _ in range(PARTITIONS)]

    def append(self, record: Announced, now: float) -> None:
        """Records of one user, and of one server's heartbeats, are in one partition."""
        key = record.user if isinstance(record, ConnectionEvent) else record.server_id
        self.partitions[sum(key.encode()) % PARTITIONS].append((now, record))


class Announcer:
    """One server: its users, what it has still to write, and what it has read of the others. It
    writes as a Registrar does."""

    def __init__(
        self, server_id: str, log: Log, now: float, chance: Random, presence: type[Presence]
    ) -> None:
        self.server_id = server_id
        self._log = log
        self._chance = chance
        self.users: dict[str, int] = {}
        self._changes: deque[tuple[str, int]] = deque()
        self._sequence = itertools.count(int(now * 1_000_000))
        self._next_beat = 0.0
        self._beats = 0
        self.presence = presence(server_id, TIMEOUT)
        self._clock = BrokerClock(horizon=INTERVAL + 1)
        # It reads what is younger than LOOK_BACK, which has a listing of each server.
        self._read = [
            sum(appended_at < now - LOOK_BACK for appended_at, _ in partition)
            for partition in log.partitions
        ]
        self._log.append(Heartbeat(server_id, next(self._sequence), users={}), now)

    def change(self) -> None:
        """A user comes or goes."""
        user = self._chance.choice(USERS)
        count = max(self.users.get(user, 0) + self._chance.choice((1, -1)), 0)
        if count != self.users.get(user, 0):
            self.users[user] = count
            self._changes.append((user, count))

    def write(self, now: float) -> bool:
        """Writes one thing that is to be written, if there is one."""
        if len(self._changes) > MAX_NOTED:
            self._changes.clear()
            self._beats = 0
            self._next_beat = now
        if self._changes:
            user, count = self._changes.popleft()
            sequence = next(self._sequence)
            event = ConnectionEvent(user, self.server_id, count > 0, count, sequence)
            self._log.append(event, now)
            return True
        if now < self._next_beat:
            return False
        self._beat(now)
        return True

    def _beat(self, now: float) -> None:
        if self._beats % 6 == 0:
            self.list_users(now)
        else:
            self._log.append(Heartbeat(self.server_id, next(self._sequence)), now)
        self._beats += 1
        self._next_beat = now + INTERVAL

    def list_users(self, now: float) -> None:
        """All users, in records of one or two each."""
        sequence = next(self._sequence)
        users = [(user, count) for user, count in self.users.items() if count]
        size = self._chance.randint(1, 2)
        starts = range(0, max(len(users), 1), size)
        for part, start in enumerate(starts):
            listed = dict(users[start : start + size])
            beat = Heartbeat(self.server_id, sequence, users=listed, part=part, parts=len(starts))
            self._log.append(beat, now)

    def leave(self, now: float) -> None:
        """Says that it stops, the last thing it writes."""
        self._log.append(Heartbeat(self.server_id, next(self._sequence), leaving=True), now)

    def read(self, now: float) -> bool:
        """Reads on in one partition. Returns whether there was something."""
        log = self._log.partitions
        behind = [each for each in range(PARTITIONS) if self._read[each] < len(log[each])]
        if not behind:
            return False
        partition = self._chance.choice(behind)
        start = self._read[partition]
        found = log[partition][start : start + self._chance.randint(1, 5)]
        self._read[partition] += len(found)
        for appended_at, record in found:
            self._clock.hear(appended_at, now)
            self.presence.apply(record, appended_at)
        return True

    def follow(self, log: Log) -> None:
        """Reads another log from its beginning."""
        self._log = log
        self._read = [0] * PARTITIONS

    def expire(self, now: float) -> None:
        """Drops who is silent."""
        self.presence.expire(self._clock.at(now))


class Gossip:
    """Some servers, and what happens to them as a seed decides."""

    def __init__(self, seed: int, presence: type[Presence] = Presence) -> None:
        self._seed = seed
        self._chance = Random(seed)
        self._presence = presence
        self._log = Log()
        self._now = 1_700_000_000.0
        self._servers: dict[str, Announcer] = {}
        self._names = itertools.count()

    def run(self) -> None:
        """Three times everything at once, and then quiet."""
        self._start()
        for _ in range(3):
            for _ in range(STEPS):
                self._step()
            self._compare()
            self._quiet()

    def _step(self) -> None:
        choices: dict[Callable[[], object], float] = {
            self._wait: 3,
            self._start: 0.15,
            self._stop: 0.05,
            self._kill: 0.05,
            self._restart: 0.05,
            lambda: self._any().change(): 6,
            lambda: self._any().write(self._now): 10,
            lambda: self._any().read(self._now): 12,
            lambda: self._any().expire(self._now): 1,
        }
        (happen,) = self._chance.choices(list(choices), list(choices.values()))
        happen()

    def _any(self) -> Announcer:
        return self._chance.choice(list(self._servers.values()))

    def _wait(self) -> None:
        self._now += self._chance.choice((0.001, 0.1, 1.0))

    def _start(self) -> None:
        if len(self._servers) < 4:
            self._begin(f"s{next(self._names)}")

    def _begin(self, server_id: str) -> None:
        self._servers[server_id] = Announcer(
            server_id, self._log, self._now, self._chance, self._presence
        )

    def _stop(self) -> None:
        if len(self._servers) > 1:
            leaver = self._any()
            while leaver.write(self._now):
                pass
            leaver.leave(self._now)
            del self._servers[leaver.server_id]

    def _kill(self) -> None:
        if len(self._servers) > 1:
            del self._servers[self._any().server_id]

    def _restart(self) -> None:
        """A server dies and comes back under its id, which has written less than its clock."""
        server_id = self._any().server_id
        self._now += 1.0
        self._begin(server_id)

    def _compare(self) -> None:
        """Tables of the same records are the same, whatever was read first."""
        one, other = self._table(), self._table()
        assert one == other, self._report(f"one takes {one} for what another takes for {other}")

    def _table(self) -> dict[str, dict[str, int]]:
        """What one makes of all that was ever written who drops nobody."""
        reader = Announcer("reader", Log(), self._now, self._chance, self._presence)
        reader.follow(self._log)
        while reader.read(self._now):
            pass
        return reader.presence.servers()

    def _report(self, problem: str) -> str:
        again = f"{SEEDS}={self._seed} python -m pytest tests/simulation -k agree"
        return f"{problem}\nAgain: {again}"

    def _quiet(self) -> None:
        """No user comes or goes; all is written and read, and who is silent is dropped."""
        for _ in range(int(3 * TIMEOUT / INTERVAL)):
            self._now += INTERVAL
            for server in self._servers.values():
                while server.write(self._now):
                    pass
            self._read_all()
        truth = {
            server_id: {user: count for user, count in server.users.items() if count}
            for server_id, server in self._servers.items()
        }
        for server_id, server in self._servers.items():
            found = server.presence.servers()
            assert found == truth, self._report(f"{server_id} takes {found} for {truth}")

    def _read_all(self) -> None:
        behind = list(self._servers.values())
        while behind:
            server = self._chance.choice(behind)
            if not server.read(self._now):
                server.expire(self._now)
                behind.remove(server)
