from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc.model import ConnectionEvent, Heartbeat
from chatsvc.presence import Presence

Announced = ConnectionEvent | Heartbeat
TIMEOUT = 15.0
USERS = ("ann", "bob", "cy")


def event(user: str, connections: int, sequence: int, server: str = "s1") -> ConnectionEvent:
    """What a server writes when a user's streams change."""
    return ConnectionEvent(user, server, connections > 0, connections, sequence)


def listing(sequence: int, part: int = 0, parts: int = 1, **users: int) -> Heartbeat:
    """A heartbeat of s1 that lists its users, or a part of them."""
    return Heartbeat("s1", sequence, users=users, part=part, parts=parts)


def leaving(sequence: int) -> Heartbeat:
    """The last heartbeat of s1."""
    return Heartbeat("s1", sequence, leaving=True)


def table(records: Sequence[Announced]) -> dict[str, dict[str, int]]:
    """Who is where after `records` were read in this order."""
    presence = Presence("own", TIMEOUT)
    for record in records:
        presence.apply(record, 0.0)
    return presence.servers()


def key(record: Announced) -> str:
    """The Kafka key of a record; records of one key keep their order."""
    return record.user if isinstance(record, ConnectionEvent) else f"server {record.server_id}"


@st.composite
def histories(draw: st.DrawFn) -> list[Announced]:
    """What one server writes: events, listings in parts, and now and then it leaves or is killed
    and comes back under its id."""
    written: list[Announced] = [listing(1)]
    users: dict[str, int] = {}
    sequence = 2
    for step in draw(st.lists(st.sampled_from([*USERS, *USERS, "list", "leave", "kill"]))):
        if step == "list":
            parts = [{user: users[user]} for user in sorted(users) if users[user]] or [{}]
            written += [
                listing(sequence, number, len(parts), **part) for number, part in enumerate(parts)
            ]
        elif step == "leave":
            written.append(leaving(sequence))
        elif step != "kill":
            users[step] = draw(st.integers(0, 3))
            written.append(event(step, users[step], sequence))
        if step in ("leave", "kill"):
            users.clear()
            sequence += 1
            written.append(listing(sequence))
        sequence += 1
    return written


@st.composite
def two_orders(draw: st.DrawFn) -> tuple[list[Announced], list[Announced]]:
    """A history as it was written, and as it is read from partitions at different paces."""
    written = draw(histories())
    queues: dict[str, list[Announced]] = {}
    for record in written:
        queues.setdefault(key(record), []).append(record)
    read: list[Announced] = []
    while queues:
        name = draw(st.sampled_from(sorted(queues)))
        read.append(queues[name].pop(0))
        if not queues[name]:
            del queues[name]
    return written, read


@given(two_orders())
def test_the_pace_of_partitions_does_not_matter(
    orders: tuple[list[Announced], list[Announced]],
) -> None:
    """However the partitions are interleaved, the table ends the same."""
    written, read = orders
    assert table(read) == table(written)


@given(histories(), st.data())
def test_reading_again_changes_nothing(written: list[Announced], data: st.DataObject) -> None:
    """Records that are read once more, from some point on, leave the table as it was."""
    first = data.draw(st.integers(0, len(written)))
    last = data.draw(st.integers(first, len(written)))
    assert table([*written, *written[first:last]]) == table(written)


@given(histories())
def test_the_table_is_what_was_written_last(written: list[Announced]) -> None:
    """Read in order, each user has the count of its last event since the server's last start."""
    expected: dict[str, int] = {}
    for record in written:
        if isinstance(record, ConnectionEvent):
            expected[record.user] = record.connections
        elif record.leaving or not record.users:
            expected.clear()
    here = {user: count for user, count in expected.items() if count}
    assert table(written) == {"s1": here}


def test_events_say_who_is_where() -> None:
    """Users are found on each server that they are connected to."""
    presence = Presence("s1", TIMEOUT)
    presence.apply(event("ann", 1, 1, "s1"), 0.0)
    presence.apply(event("ann", 2, 1, "s2"), 0.0)
    presence.apply(event("bob", 1, 2, "s2"), 0.0)
    assert presence.servers() == {"s1": {"ann": 1}, "s2": {"ann": 2, "bob": 1}}
    assert presence.where("ann") == {"s1", "s2"}
    assert presence.where("nobody") == set()


def test_the_seeds_events_are_read_in_order() -> None:
    """Events without a sequence count as they come."""
    assert table([event("ann", 1, 0), event("ann", 0, 0)]) == {"s1": {}}
    assert table([event("ann", 0, 0), event("ann", 1, 0)]) == {"s1": {"ann": 1}}


def test_an_older_listing_does_not_bring_a_user_back() -> None:
    """A listing from before a user left does not undo the leave that was read first."""
    assert table([event("ann", 0, 5), listing(4, ann=1)]) == {"s1": {}}


def test_an_older_event_does_not_undo_a_listing() -> None:
    """An event from before a listing says nothing about a user whom the listing does not have."""
    assert table([listing(6), event("ann", 1, 5)]) == {"s1": {}}


def test_a_listing_that_is_read_again_brings_nobody_back() -> None:
    """A listing counts only if it is newer than the one that the table is made of."""
    records = [listing(4, ann=1), event("ann", 0, 5), listing(6), listing(4, ann=1)]
    assert table(records) == {"s1": {}}


def test_a_listing_replaces_only_what_is_older() -> None:
    """Who is not listed has gone, unless an event after the listing says otherwise."""
    records = [event("ann", 1, 1), event("bob", 1, 9), listing(5, cy=2)]
    assert table(records) == {"s1": {"bob": 1, "cy": 2}}


def test_a_listing_in_parts_counts_when_it_is_whole() -> None:
    """Before its last part a listing changes nothing."""
    parts = [listing(5, 0, 2, ann=1), listing(5, 1, 2, bob=1)]
    before = event("cy", 1, 1)
    assert table([before, parts[0]]) == {"s1": {"cy": 1}}
    assert table([before, *parts]) == {"s1": {"ann": 1, "bob": 1}}


@pytest.mark.parametrize(
    "parts",
    [
        [listing(5, 1, 3, bob=1), listing(5, 2, 3, cy=1)],
        [listing(5, 0, 3, ann=1), listing(5, 2, 3, cy=1)],
        [listing(5, 0, 3, ann=1), listing(5, 2, 3, cy=1), listing(5, 2, 3, cy=1)],
        [listing(5, 0, 2, ann=1), listing(6, 1, 2, bob=1)],
        [listing(5, -1, 1, ann=1)],
    ],
)
def test_a_listing_with_a_part_missing_is_ignored(parts: list[Heartbeat]) -> None:
    """A listing that is not whole neither adds nor removes anybody."""
    assert table([event("dan", 1, 1), *parts]) == {"s1": {"dan": 1}}


def test_counts_below_one_are_nobody() -> None:
    """A negative count, which no server of ours writes, is no connection."""
    assert table([event("ann", -5, 1), listing(2, bob=-1, cy=0)]) == {"s1": {}}


def test_a_server_that_leaves_is_gone_with_its_users() -> None:
    """Also what it wrote before and is read later brings nobody back."""
    assert table([event("ann", 1, 1), leaving(3), event("bob", 1, 2)]) == {}


def test_a_server_may_come_back_under_its_id() -> None:
    """A restart that is read before the old one has expired is seen, with its users."""
    assert table([leaving(3), listing(4), event("ann", 1, 5)]) == {"s1": {"ann": 1}}


def test_what_a_server_wrote_before_it_left_does_not_touch_its_return() -> None:
    """Records from before the leave that are read after the return add and remove nobody."""
    for back in (listing(4), Heartbeat("s1", 4)):
        records = [leaving(3), back, event("ann", 1, 5), event("bob", 1, 2)]
        assert table(records) == {"s1": {"ann": 1}}


def test_silent_servers_expire() -> None:
    """A server that was not heard of for the timeout is dropped and named."""
    presence = Presence("own", TIMEOUT)
    presence.apply(event("ann", 1, 1), 100.0)
    assert presence.next_expiry() == 100.0 + TIMEOUT
    assert presence.expire(99.9 + TIMEOUT) == []
    assert presence.expire(100.0 + TIMEOUT) == ["s1"]
    assert presence.servers() == {}
    assert presence.next_expiry() is None


def test_any_record_keeps_a_server_alive() -> None:
    """A heartbeat moves the expiry; one that is read late does not move it back."""
    presence = Presence("own", TIMEOUT)
    presence.apply(event("ann", 1, 1), 100.0)
    presence.apply(Heartbeat("s1", 2), 110.0)
    presence.apply(Heartbeat("s1", 3), 105.0)
    assert presence.next_expiry() == 110.0 + TIMEOUT


def test_a_server_that_has_left_expires_quietly() -> None:
    """A leave is forgotten after the timeout and not reported as silence."""
    presence = Presence("own", TIMEOUT)
    presence.apply(leaving(1), 0.0)
    assert presence.expire(TIMEOUT) == []
    assert presence.next_expiry() is None


def test_a_server_that_came_back_is_missed_again() -> None:
    """The silence of a server that had left and returned is reported."""
    presence = Presence("own", TIMEOUT)
    presence.apply(leaving(1), 0.0)
    presence.apply(Heartbeat("s1", 2), 1.0)
    assert presence.expire(1.0 + TIMEOUT) == ["s1"]


@given(st.lists(st.tuples(st.sampled_from(["s1", "s2", "own"]), st.floats(0, 1e9))))
def test_the_own_server_never_expires(heard: list[tuple[str, float]]) -> None:
    """Whoever is silent and whatever the time, this server stays in its table."""
    presence = Presence("own", TIMEOUT)
    presence.apply(event("ann", 1, 1, "own"), 0.0)
    for server_id, at in heard:
        presence.apply(Heartbeat(server_id, 2), at)
    assert "own" not in presence.expire(1e12)
    assert presence.servers() == {"own": {"ann": 1}}
