import logging
from typing import NamedTuple

import pytest

from chatsvc.statistics import FAMILIES, Statistics


class Replicas(NamedTuple):
    replicas: list[int]
    isrs: list[int]


def shown(statistics: Statistics) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and labels."""
    return {
        family.name.removeprefix("chatsvc_kafka_"): {
            tuple(sample.labels.values()): sample.value for sample in family.samples
        }
        for family in statistics.collect()
    }


def test_families_are_there_before_anything_is_known() -> None:
    """A page has their names and texts from the start."""
    families = list(Statistics().collect())
    assert [family.name for family in families] == [family.name for family in FAMILIES]
    assert not any(family.samples for family in families)


STRANGE = ["", "[]", "{}", '{"brokers": {"x": {}}}', '{"brokers": 7}', "\ud800"]


@pytest.mark.parametrize("text", STRANGE)
def test_strange_statistics_do_no_harm(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raised would break the poll of the client: it says so in the log alone."""
    caplog.set_level(logging.DEBUG)
    statistics = Statistics()
    statistics.of("producer")(text)
    assert not any(family.samples for family in statistics.collect())
    assert "the statistics of the producer are strange" in caplog.text


def test_a_broker_that_is_gone_is_still_known() -> None:
    """One that should have records counts as known; who is alive and has nothing does too."""
    statistics = Statistics()
    statistics.note_listing("chatting", [1, 3, 4], {0: Replicas([1, 2, 3], [1, 3])})
    found = shown(statistics)
    assert found["brokers_up"] == {(): 3}
    assert found["brokers_known"] == {(): 4}
    assert found["in_sync_replicas"] == {("chatting", "0"): 2}


def test_nobody_answers() -> None:
    """Then no broker is up, and those that are known stay so."""
    statistics = Statistics()
    statistics.note_listing("chatting", [1, 2, 3], {0: Replicas([1, 2, 3], [1, 2, 3])})
    statistics.note_listing("user-connections", [], {})
    found = shown(statistics)
    assert found["brokers_up"] == {(): 0}
    assert found["brokers_known"] == {(): 3}
