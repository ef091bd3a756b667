"""World: servers and clients over one log, and what happens to them, one step after another as a
seed decides."""

import itertools
from collections import deque
from collections.abc import Callable
from random import Random

from chatsvc import connection, fanout, hub
from chatsvc.hub import THE_LOBBY

from simulation.node import Clock, Limits, Node, Parts
from simulation.seeds import SEEDS
from simulation.subscriber import Subscriber
from simulation.topic import ROOMS, Topic
from simulation.turns import Turns

REAL = Parts()
STORMS = 12
STEPS = 400
LULL = 100
"""So many of the last steps bring no more records: who is forgotten then, nothing wakes."""
MAX_RECORDS = 2_000
SETTLED_AFTER = 1_500
"""Rounds after which what is still busy is never going to rest."""


class Wrong(AssertionError):
    """What was found, after which steps, and how to see it again."""


class World:
    """All of it. `run` raises Wrong at the first step after which something is wrong."""

    def __init__(self, seed: int, parts: Parts = REAL) -> None:
        self._seed = seed
        self.chance = chance = Random(seed)
        modules = (connection, fanout, hub) if chance.random() < 0.8 else ()
        self.turns = Turns(chance, modules, parts.suspects)
        self._clock = Clock(chance)
        self._parts = parts
        large = chance.random() < 0.1
        sizes = (10, 60_000) if large else (10, 10, 40)
        rooms = ROOMS[: chance.choice((3, 6))]
        self.topic = Topic(chance, chance.randint(1, 3), rooms, sizes)
        self._limits = Limits(
            seats=chance.choice((3, 100)),
            outbox_messages=chance.choice((1, 4, 12, 50)),
            outbox_bytes=400_000 if large else chance.choice((150, 600, 100_000)),
            tail_bytes=300_000 if large else chance.choice((1, 1_500, 6_000, 1_000_000)),
            chunk_records=chance.choice((8, 64, 64)),
            step_records=chance.choice((4, 16, 512)),
            read_records=chance.choice((3, 12, 60)),
            patience=chance.choice((0, 2, 10)),
        )
        self._most_nodes = chance.randint(1, 3)
        self._names = itertools.count()
        self.nodes: list[Node] = []
        self.subscribers: list[Subscriber] = []
        self.history: deque[str] = deque(maxlen=40)
        self._lull = False
        self._actions, self._weights = self._choices()

    def _choices(self) -> tuple[list[Callable[[], bool]], list[float]]:
        """What may happen, and how often with this seed."""
        pace = self.chance.choice((0.3, 1.0, 3.0))
        usual: dict[Callable[[], bool], float] = {
            self._give_turn: 60,
            self._append: 6 * pace,
            self._read: 20 * self.chance.choice((0.3, 1.0, 3.0)),
            self._answer: 5,
            self._connect: 8,
            self._activate: 8,
            self._leave: 1,
            self._remove: 4,
            self._forget: self.chance.choice((0.0, 0.5, 2.0)),
            self._grow: 0.1,
            self._learn: 1,
            self._watch: 0.5,
            self._wait: 0.1,
            self._stop: 0.5,
            self._kill: 0.05,
            self._start: 3,
        }
        return list(usual), list(itertools.accumulate(usual.values()))

    @property
    def steps(self) -> int:
        """How many there have been."""
        return self.turns.moment

    def run(self) -> None:
        """Storms, after each of which everything has to come to rest and be as it should."""
        try:
            self._subscribe()
            self._start()
            for _ in range(STORMS):
                for step in range(STEPS):
                    self._lull = step >= STEPS - LULL
                    self._step()
                self._settle()
            self._finish()
        except Exception as error:  # also what the core should not have raised
            raise Wrong(self._report(error)) from error
        finally:
            self.turns.close()

    def _report(self, error: Exception) -> str:
        steps = "\n  ".join(self.history)
        return (
            f"{type(error).__name__}: {error}\nafter {self.steps} steps, the last of which were\n"
            f"  {steps}\nAgain: {SEEDS}={self._seed} python -m pytest tests/simulation -k misses"
        )

    def _subscribe(self) -> None:
        chance = self.chance
        for number in range(chance.choice((3, 6, 10))):
            batched = chance.random() < 0.75
            rooms = (
                frozenset(chance.sample(self.topic.rooms, chance.randint(1, 2)))
                if batched
                else THE_LOBBY
            )
            user = f"user{number % 7}"  # some have several streams
            self.subscribers.append(Subscriber(user, rooms, self.topic, batched=batched))

    def _step(self) -> None:
        happens = False
        while not happens:
            (action,) = self.chance.choices(self._actions, cum_weights=self._weights)
            happens = action()
        self._check()

    def _check(self) -> None:
        self.turns.moment += 1
        for node in self.nodes:
            node.check()
        if self.steps % 32 == 0 and self.nodes:
            self.chance.choice(self.nodes).check_memory()

    def _note(self, *what: object) -> bool:
        self.history.append(" ".join(map(str, what)))
        return True

    # What may happen: each returns whether it did.

    def _give_turn(self) -> bool:
        ready = [task for node in self.nodes for task in node.runnable()]
        if not ready:
            return False
        task = self.chance.choice(ready)
        self._note("turn", task)
        self.turns.give(task)
        return True

    def _append(self) -> bool:
        if self._lull:
            return False
        room = MAX_RECORDS - sum(map(len, self.topic.records.values()))
        count = min(room, self.chance.choice((1, 1, 1, 1, 1, 10)))
        for _ in range(count):
            self.topic.append()
        return count > 0 and self._note("append", count)

    def _pick(self, connected: bool) -> Subscriber | None:
        found = [each for each in self.subscribers if (each.node is not None) == connected]
        return self.chance.choice(found) if found else None

    def _read(self) -> bool:
        subscriber = self._pick(connected=True)
        return subscriber is not None and subscriber.read() and self._note("read", subscriber)

    def _connect(self) -> bool:
        subscriber = self._pick(connected=False)
        if subscriber is None or not self.nodes:
            return False
        node = self.chance.choice(self.nodes)
        connected = subscriber.connect(node, self.turns, self.chance)
        return connected and self._note("connect", subscriber, node.name)

    def _activate(self) -> bool:
        waiting = [each for each in self.subscribers if each.node and not each.is_active]
        if not waiting:
            return False
        subscriber = self.chance.choice(waiting)
        subscriber.activate()
        return self._note("activate", subscriber)

    def _leave(self) -> bool:
        subscriber = self._pick(connected=True)
        if subscriber is None or not subscriber.is_active:
            return False
        subscriber.leave()
        return self._note("leave", subscriber)

    def _any_node(self) -> Node | None:
        return self.chance.choice(self.nodes) if self.nodes else None

    def _remove(self) -> bool:
        node = self._any_node()
        return node is not None and node.remove_one() and self._note("remove", node.name)

    def _answer(self) -> bool:
        node = self._any_node()
        return node is not None and node.reader.answer() and self._note("answer", node.name)

    def _forget(self) -> bool:
        """Retention: not of what a server is still to read of a partition that it knows."""
        partition = self.chance.choice(list(self.topic.records))
        limits = [node.read[partition] for node in self.nodes if partition in node.read]
        before = self.chance.randint(0, min(limits, default=self.topic.ends[partition]))
        if before <= self.topic.starts[partition]:
            return False
        self.topic.forget(partition, before)
        return self._note("forget", partition, "before", before)

    def _grow(self) -> bool:
        if len(self.topic.records) > 4:
            return False
        self.topic.grow()
        return self._note("grow")

    def _learn(self) -> bool:
        node = self._any_node()
        if node is None or node.known_partitions == len(self.topic.records):
            return False
        node.known_partitions = len(self.topic.records)
        return self._note("learn", node.name)

    def _watch(self) -> bool:
        node = self._any_node()
        if node is None:
            return False
        node.watch()
        return self._note("watch", node.name)

    def _wait(self) -> bool:
        self._clock.now += self.chance.choice((0.1, 3.0, 12.0))
        return self._note("wait")

    def _start(self) -> bool:
        return len(self.nodes) < self._most_nodes and self._note("start", self._new_node().name)

    def _new_node(self) -> Node:
        name = f"node{next(self._names)}"
        node = Node(
            name, self.topic, self.turns, self.chance, self._clock, self._limits, self._parts
        )
        self.nodes.append(node)
        return node

    def _stop(self) -> bool:
        """A server begins to stop, or goes on with it."""
        node = self._any_node()
        if node is None:
            return False
        if not node.stopping:
            node.stop()
        elif not node.reader.closing:
            node.reader.close()
        elif not node.sessions:
            self._retire(node)
        else:
            return False
        return self._note("stop", node.name)

    def _retire(self, node: Node) -> None:
        assert node.seats.taken == 0, "a seat was not given back"
        assert not node.hub.backlogs()
        self.turns.end(node.tasks)
        self.nodes.remove(node)

    def _kill(self) -> bool:
        node = self._any_node()
        if node is None:
            return False
        node.kill()
        self.nodes.remove(node)
        return self._note("kill", node.name)

    # The end of a storm.

    def _settle(self) -> None:
        """Lets all that is under way come to its end, and checks that nobody was forgotten."""
        self._note("settle")
        self.turns.hasty = True
        for node in self.nodes:
            node.known_partitions = len(self.topic.records)
        for _ in range(SETTLED_AFTER):
            if not self._calm():
                break
        else:
            raise AssertionError("somebody is busy for ever")
        for subscriber in self.subscribers:
            subscriber.check_level()
        for node in self.nodes:
            assert not any(node.hub.backlogs()), "a backlog that nobody sends"
            node.check_memory()
        self.turns.hasty = False

    def _calm(self) -> bool:
        """A round of all that leads to rest. Returns whether anything happened."""
        happened = [node.remove_one() for node in self.nodes for _ in list(node.over)]
        happened += [self._activate()]
        happened += [node.reader.answer() for node in self.nodes]
        happened += [self._give_turn() for _ in range(3)]
        happened += [each.read() for each in self.subscribers]
        for node in [each for each in self.nodes if each.stopping]:
            node.reader.close()
            if not (any(happened) or node.pool.queue or node.sessions):
                self._retire(node)
                return True
        self._check()
        return any(happened)

    def _finish(self) -> None:
        """Everybody comes back once more, and then the servers stop."""
        while (subscriber := self._pick(connected=False)) is not None:
            free = [each for each in self.nodes if len(each.hub) < each.limits.seats]
            node = self.chance.choice(free) if free else self._new_node()
            assert subscriber.connect(node, self.turns, self.chance)
        self._settle()
        for node in self.nodes:
            node.stop()
        self._settle()
        assert not self.nodes, "a server does not stop"
