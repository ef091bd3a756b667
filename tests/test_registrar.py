import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from chatsvc import registrar as module
from chatsvc.errors import ChatError, PublishFailed, ServerBusy, ServerStopping, TopicFailed
from chatsvc.model import Acked, ConnectionEvent, Heartbeat, Record
from chatsvc.presence import Presence
from chatsvc.records import USERS_PER_HEARTBEAT, decode_connection, encode_event, encode_heartbeat
from chatsvc.registrar import BrokerClock, Registrar

from waiting import eventually

INTERVAL = 0.05
HOUR = 3600.0


class Topic:
    """Keeps what is published and acks it, after refusing as many records as it is told to."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.readers: list[Callable[[list[Record]], None]] = []
        self.outcome: Acked | ChatError | None = Acked(0, 0, 1_700_000_000_000)
        self.refusals = 0

    def publish(self, key: bytes, value: bytes, done: Callable[[Acked | ChatError], None]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ServerBusy
        self.values.append(value)
        now_ms = time.time_ns() // 1_000_000
        for read in self.readers:
            read([Record(0, len(self.values), value, now_ms, True)])
        if self.outcome is not None:
            done(self.outcome)

    @property
    def events(self) -> list[tuple[str, int]]:
        """Users and their numbers of connections, as announced."""
        return [
            (each.user, each.connections)
            for each in self.announced()
            if isinstance(each, ConnectionEvent)
        ]

    @property
    def beats(self) -> list[Heartbeat]:
        return [each for each in self.announced() if isinstance(each, Heartbeat)]

    def announced(self) -> list[ConnectionEvent | Heartbeat]:
        return [decode_connection(value) for value in list(self.values)]


class Host:
    """A server as far as its registrar knows it."""

    def __init__(self, topic: Topic, server_id: str = "own", interval: float = HOUR) -> None:
        self.users: dict[str, int] = {}
        self.invalid: list[str] = []
        self.presence = Presence(server_id, timeout=HOUR if interval == HOUR else 10 * interval)
        self.registrar = Registrar(
            server_id,
            self.presence,
            topic.publish,
            lambda: dict(self.users),
            heartbeat_interval=interval,
            count_invalid=self.invalid.append,
        )

    def change(self, user: str, connections: int) -> None:
        """The hub's view and its note."""
        self.users[user] = connections
        self.registrar.note(user, connections)


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def make_host(topic: Topic) -> Iterator[Callable[..., Host]]:
    """Makes hosts whose registrars are closed after the test."""
    hosts: list[Host] = []

    def make(server_id: str = "own", interval: float = HOUR) -> Host:
        hosts.append(Host(topic, server_id, interval))
        return hosts[-1]

    yield make
    for host in hosts:
        host.registrar.close(20)


MakeHost = Callable[..., Host]


def record(value: bytes | None, appended_ms: int = -1, *, by_broker: bool = False) -> Record:
    """A record of the topic of connections."""
    return Record(0, 0, value, appended_ms, by_broker)


def test_changes_are_written_in_order(topic: Topic, make_host: MakeHost) -> None:
    """Each note becomes an event, in the order of the notes, with a growing sequence."""
    host = make_host()
    noted = [(f"user {number % 3}", number % 2) for number in range(50)]
    for user, connections in noted[:20]:
        host.registrar.note(user, connections)
    host.registrar.start()
    for user, connections in noted[20:]:
        host.registrar.note(user, connections)
    assert eventually(lambda: topic.events == noted)
    sequences = [each.sequence for each in topic.announced()]
    assert all(before < after for before, after in itertools.pairwise(sequences))


def test_a_refused_change_is_written_later(topic: Topic, make_host: MakeHost) -> None:
    """While the producer's queue is full nothing is lost, doubled or overtaken."""
    host = make_host()
    host.registrar.start()
    assert eventually(lambda: len(topic.beats) == 1)
    topic.refusals = 3
    host.registrar.note("ann", 1)
    host.registrar.note("ann", 0)
    assert eventually(lambda: topic.events == [("ann", 1), ("ann", 0)])


def test_a_refused_listing_is_written_later(topic: Topic, make_host: MakeHost) -> None:
    """The users are not left unlisted until the next listing because the queue was full once."""
    host = make_host()
    host.users = {f"user {number}": 1 for number in range(USERS_PER_HEARTBEAT + 1)}
    topic.refusals = 1
    host.registrar.start()
    assert eventually(lambda: len(topic.beats) == 2)
    assert [(each.part, each.parts) for each in topic.beats] == [(0, 2), (1, 2)]


def test_the_first_beat_lists_everybody(topic: Topic, make_host: MakeHost) -> None:
    """A listing has all users, in parts of one sequence that are small enough for a record."""
    host = make_host()
    host.users = {f"user {number}": 1 for number in range(2 * USERS_PER_HEARTBEAT + 1)}
    host.registrar.start()
    assert eventually(lambda: len(topic.beats) == 3)
    beats = topic.beats
    assert [(each.part, each.parts) for each in beats] == [(0, 3), (1, 3), (2, 3)]
    assert len({each.sequence for each in beats}) == 1
    assert {user: 1 for each in beats for user in each.users or {}} == host.users
    assert max(len(each.users or {}) for each in beats) == USERS_PER_HEARTBEAT


def test_some_beats_list_and_others_do_not(topic: Topic, make_host: MakeHost) -> None:
    """One of BEATS_PER_LISTING heartbeats lists the users, also when there are none."""
    host = make_host(interval=0.001)
    host.registrar.start()
    assert eventually(lambda: len(topic.beats) > 2 * module.BEATS_PER_LISTING)
    listed = [each.users is not None for each in topic.beats]
    assert listed[: 2 * module.BEATS_PER_LISTING] == 2 * [
        True,
        *[False] * (module.BEATS_PER_LISTING - 1),
    ]


def test_too_many_changes_become_a_listing(
    topic: Topic, make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When more changes wait than are kept, the users are listed instead."""
    monkeypatch.setattr(module, "MAX_NOTED", 3)
    host = make_host()
    host.registrar.start()
    assert eventually(lambda: len(topic.beats) == 1)
    topic.refusals = 1
    for number in range(10):
        host.change(f"user {number}", 1)
    assert eventually(lambda: len(topic.beats) == 2)
    assert topic.beats[1].users == host.users


def test_a_close_says_that_the_server_leaves(topic: Topic, make_host: MakeHost) -> None:
    """What was noted before the close is written, and the leave comes last."""
    host = make_host()
    host.registrar.start()
    assert eventually(lambda: len(topic.beats) == 1)
    topic.refusals = 1
    host.registrar.note("ann", 0)
    assert eventually(lambda: topic.refusals == 0)
    host.registrar.close(20)
    host.registrar.close(20)
    assert topic.events == [("ann", 0)]
    last = topic.announced()[-1]
    assert isinstance(last, Heartbeat)
    assert last.leaving


def test_close_works_before_start(topic: Topic, make_host: MakeHost) -> None:
    """A registrar that never started writes nothing when it is closed."""
    make_host().registrar.close(20)
    assert topic.values == []


def test_servers_see_each_other_come_and_go(topic: Topic, make_host: MakeHost) -> None:
    """What one server announces is in the table of the other, until it leaves."""
    here, there = make_host("here"), make_host("there")
    topic.readers += [here.registrar.on_records, there.registrar.on_records]
    here.registrar.start()
    there.registrar.start()
    there.change("ann", 2)
    assert eventually(lambda: here.presence.servers() == {"here": {}, "there": {"ann": 2}})
    there.registrar.close(20)
    assert here.presence.servers() == {"here": {}}


def test_a_server_that_restarts_under_its_id_is_seen(topic: Topic, make_host: MakeHost) -> None:
    """A return before the old server has expired is in every table, its own too."""
    here, first = make_host("here"), make_host("there")
    topic.readers += [here.registrar.on_records, first.registrar.on_records]
    for host in (here, first):
        host.registrar.start()
    first.registrar.close(20)
    second = make_host("there")
    topic.readers.append(second.registrar.on_records)
    for value in topic.values:
        second.registrar.on_records([record(value)])
    second.registrar.introduce(20)
    second.registrar.start()
    second.change("ann", 1)
    for host in (here, second):
        assert eventually(lambda host=host: host.presence.where("ann") == {"there"})


def test_a_restart_counts_on_after_a_busy_life(topic: Topic, make_host: MakeHost) -> None:
    """The sequence of a new server is above the old one's, however much that one wrote."""
    first = make_host("there")
    for _ in range(20_000):
        first.registrar.note("ann", 1)
    first.registrar.start()
    assert eventually(lambda: len(topic.values) > 20_000)
    first.registrar.close(20)
    second = make_host("there")
    second.registrar.introduce(20)
    *_, last, new = topic.announced()
    assert new.sequence > last.sequence


def test_silent_servers_are_dropped(
    topic: Topic, make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that stops writing without a word is gone after the timeout; the own one stays."""
    host = make_host(interval=INTERVAL)
    topic.readers.append(host.registrar.on_records)
    host.registrar.start()
    _, value = encode_event(ConnectionEvent("ann", "other", True, 1, 1))
    host.registrar.on_records([record(value, time.time_ns() // 1_000_000, by_broker=True)])
    assert host.presence.where("ann") == {"other"}
    assert eventually(lambda: host.presence.servers() == {"own": {}})
    assert "Server other has gone silent; its users are dropped" in caplog.messages


def test_records_that_are_not_ours_are_counted(make_host: MakeHost) -> None:
    """A record that does not parse is counted by its reason, and the next one is applied."""
    host = make_host()
    _, value = encode_event(ConnectionEvent("ann", "other", True, 1, 1))
    host.registrar.on_records([record(None), record(b"{"), record(b"[]"), record(value)])
    assert host.invalid == ["no_value", "not_json", "not_an_object"]
    assert host.presence.where("ann") == {"other"}


def test_an_introduction_returns_kafkas_time(topic: Topic, make_host: MakeHost) -> None:
    """The first heartbeat lists nobody and tells Kafka's time."""
    assert make_host().registrar.introduce(20) == 1_700_000_000_000
    (beat,) = topic.beats
    assert beat.users == {}


@pytest.mark.parametrize(
    ("outcome", "raised"),
    [
        (None, PublishFailed),
        (PublishFailed("away", maybe_written=False), TopicFailed),
        (ServerStopping(), ServerStopping),
    ],
)
def test_an_introduction_may_fail(
    topic: Topic, make_host: MakeHost, outcome: ChatError | None, raised: type[ChatError]
) -> None:
    """A heartbeat that is not confirmed, or refused, raises."""
    topic.outcome = outcome
    with pytest.raises(raised):
        make_host().registrar.introduce(0.01)


def test_the_clock_follows_kafkas() -> None:
    """Between records the clock goes on by itself, for as long as its horizon."""
    clock = BrokerClock(horizon=6.0)
    clock.hear(1_000.0, now=50.0)
    assert clock.at(53.0) == 1_003.0
    assert clock.at(56.0) == clock.at(99.0) == 1_006.0


def test_the_clock_does_not_go_back_for_an_older_record() -> None:
    """A record that was appended before the newest one known says nothing about now."""
    clock = BrokerClock(horizon=6.0)
    clock.hear(1_000.0, now=50.0)
    clock.hear(900.0, now=51.0)
    assert clock.at(52.0) == 1_002.0


def test_a_server_that_hears_nothing_drops_nobody(make_host: MakeHost) -> None:
    """Without a record since, no more than the horizon seems to have passed."""
    host = make_host()
    _, value = encode_heartbeat(Heartbeat("other", 1))
    long_ago = time.time_ns() // 1_000_000 - 10**9
    host.registrar.on_records([record(value, long_ago, by_broker=True)])
    host.registrar.start()
    host.change("ann", 1)
    host.registrar.close(20)
    assert "other" in host.presence.servers()


def test_a_change_during_a_heartbeat_is_not_missed(topic: Topic, make_host: MakeHost) -> None:
    """What is noted after the changes were written is written without waiting for more."""
    host = make_host()
    noted = iter([("ann", 1)])

    def note_once(records: list[Record]) -> None:
        for change in noted:
            host.registrar.note(*change)

    topic.readers.append(note_once)
    host.registrar.start()
    assert eventually(lambda: topic.events == [("ann", 1)])


def test_notes_of_many_threads_are_all_written(topic: Topic, make_host: MakeHost) -> None:
    """No note is lost between the writer's look and its wait."""
    host = make_host()
    host.registrar.start()

    def note_all(name: str) -> None:
        for number in range(300):
            host.registrar.note(name, number)

    threads = [threading.Thread(target=note_all, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert eventually(lambda: len(topic.events) == 900)
    assert [each for each in topic.events if each[0] == "a"] == [("a", n) for n in range(300)]
