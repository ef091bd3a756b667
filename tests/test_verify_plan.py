"""What a run of the checker sends: options that make sense, and messages that can be told apart."""

from typing import Any

import pytest

from chatsvc import rules
from chatsvc.errors import InvalidConfig, InvalidRequest
from chatsvc.verify.plan import MAX_PADDING, Mark, Plan


def plan(**settings: Any) -> Plan:
    return Plan(**{"servers": ("a:1", "b:2", "c:3"), "seed": 1, **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"writers": 0}, "--writers: must be from 1 to 100, not 0"),
        ({"readers": 101}, "--readers: must be from 1 to 100, not 101"),
        ({"rate": -1.0}, "--rate: must be from 0.01 to 10000, not -1"),
        ({"rate": float("nan")}, "--rate: must be from 0.01 to 10000, not nan"),
        ({"duration": 0.0}, "--duration: must be from 0.1 to 604800, not 0"),
        ({"send_timeout": 0.0}, "--send-timeout: must be from 0.1 to 3600, not 0"),
        ({"settle": -1.0}, "--settle: must be from 0.1 to 3600, not -1"),
        ({"publish": "fax"}, "--publish: must be rpc, stream or both"),
        (
            {"rate": 1_000.0, "duration": 3_000.0},
            "--duration: with --rate and --readers must give at most 10000000 deliveries",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    """The option is named."""
    with pytest.raises(InvalidConfig) as raised:
        plan(**settings)
    assert str(raised.value) == said


def test_a_room_must_be_a_name() -> None:
    """As everywhere."""
    with pytest.raises(InvalidRequest, match="--room"):
        plan(room="a\nb")


def test_clients_are_spread_and_know_all_servers() -> None:
    """Each begins at the next one."""
    assert plan().servers_for(4) == ("b:2", "c:3", "a:1")


@pytest.mark.parametrize(
    ("publish", "writers", "streams"),
    [("rpc", 2, []), ("stream", 2, [0, 1]), ("both", 4, [2, 3]), ("both", 1, [])],
)
def test_writers_use_either_way(publish: str, writers: int, streams: list[int]) -> None:
    """Of both, half of them each."""
    planned = plan(publish=publish, writers=writers)
    assert [each for each in range(writers) if planned.is_stream(each)] == streams


def test_contents_differ_and_can_be_made_again() -> None:
    """Of many sizes, all of which may be sent, and others with another seed."""
    marks = [Mark(writer, number) for writer in range(4) for number in range(200)]
    contents = [plan().content(mark) for mark in marks]
    assert len(set(contents)) == len(marks)
    assert contents == [plan().content(mark) for mark in marks]
    assert contents != [plan(seed=2).content(mark) for mark in marks]
    sizes = {len(content) for content in contents}
    assert min(sizes) < 100
    assert max(sizes) > MAX_PADDING - 100
    for content in contents:
        rules.check_content("content", content)


def test_a_message_is_known_by_its_id() -> None:
    """One of this run."""
    first, second = plan(), plan()
    assert first.mark(first.message_id(Mark(3, 17))) == Mark(3, 17)
    assert second.mark(first.message_id(Mark(3, 17))) is None
    assert first.mark(first.message_id(Mark(4, 0))) is None
    assert first.mark("") is None


def test_a_run_has_names_of_its_own() -> None:
    """Unless the room is named."""
    first, second = plan(), plan()
    assert first.room_name != second.room_name
    assert first.writer(0) != second.writer(0)
    assert plan(room="tea").room_name == "tea"
