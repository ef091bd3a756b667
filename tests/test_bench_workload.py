"""The bench's settings and what its messages carry."""

import dataclasses
import json

import pytest

from chatsvc.bench.workload import HEADER_CHARACTERS, Mark, Workload
from chatsvc.errors import InvalidConfig


def workload(**settings: object) -> Workload:
    return Workload(servers=("a:1", "b:2", "c:3"), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [HEADER_CHARACTERS, 100, 4_096])
def test_a_mark_survives(size: int) -> None:
    """It is read as it was written, in content of exactly the size, the greatest of all too."""
    for mark in (Mark(0, 0, 0), Mark(999, 3_600_000_000, 2**63)):
        content = mark.content(size)
        assert len(content) == size
        assert Mark.read(content) == mark


@pytest.mark.parametrize("content", ["", "hi", "hi all of you in this nice room", "x" * 100])
def test_what_people_write_has_no_mark(content: str) -> None:
    """It cannot be taken for a message of the bench."""
    with pytest.raises(ValueError):  # noqa: PT011  # whichever part of it is wrong
        Mark.read(content)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("connections", 0),
        ("rooms", 101),
        ("rate", 0),
        ("rate", float("nan")),
        ("size", HEADER_CHARACTERS - 1),
        ("size", 4_097),
        ("duration", float("inf")),
        ("senders", 0),
        ("processes", 101),
        ("timeout", 0),
        ("publish", "pigeon"),
    ],
)
def test_a_setting_out_of_range_is_named(option: str, value: object) -> None:
    """By its option."""
    with pytest.raises(InvalidConfig, match=f"^--{option}: must be"):
        workload(**{option: value})


def test_a_load_of_nothing_is_refused() -> None:
    """A rate at which no message would be due."""
    with pytest.raises(InvalidConfig, match="gives no message in 1 seconds"):
        workload(rate=0.1, duration=1)


def test_receivers_are_spread_evenly() -> None:
    """Over rooms, which together have all of them, and over servers."""
    spread = workload(connections=10, rooms=3)
    assert [spread.receivers_in(room) for room in range(3)] == [4, 3, 3]
    assert [spread.servers_for(number)[0] for number in range(4)] == ["a:1", "b:2", "c:3", "a:1"]
    assert sorted(spread.servers_for(1)) == sorted(spread.servers)


@pytest.mark.parametrize(
    ("connections", "processes"), [(1, 1), (250, 1), (251, 2), (1_000, 4), (100_000, 64)]
)
def test_processes_follow_the_connections(connections: int, processes: int) -> None:
    """One for each 250, but no more than a machine can be expected to have use for."""
    assert workload(connections=connections).receiving_processes == processes


def test_runs_do_not_meet() -> None:
    """Rooms and users are a run's own."""
    one, other = workload(), workload()
    assert one.room(0) != other.room(0)
    assert one.user("r", 0) != other.user("r", 0)


def test_a_process_gets_the_same_workload() -> None:
    """Also through JSON."""
    one = workload(rooms=2)
    assert Workload.from_json(json.loads(json.dumps(dataclasses.asdict(one)))) == one
