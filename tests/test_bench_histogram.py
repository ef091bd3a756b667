"""The bench's latencies: percentiles to three significant digits."""

import json

import pytest

from chatsvc.bench.histogram import Histogram


def of(*microseconds: int) -> Histogram:
    histogram = Histogram()
    for each in microseconds:
        histogram.add(each)
    return histogram


def test_percentiles_are_of_what_was_seen() -> None:
    """The least that so many of all do not exceed."""
    histogram = of(*range(1_000, 101_000, 1_000))
    percents = (1, 50, 95, 99, 100)
    assert [histogram.percentile_ms(each) for each in percents] == [1, 50, 95, 99, 100]


def test_a_lone_slow_one_shows_in_the_maximum_only() -> None:
    """One of a hundred."""
    histogram = of(*[2_000] * 99, 5_000_000)
    assert histogram.percentile_ms(99) == 2
    assert histogram.percentile_ms(100) == 5_000


@pytest.mark.parametrize(
    ("microseconds", "ms"),
    [(0, 0), (-5, 0), (999, 0.999), (1_234, 1.23), (9_999, 10), (123_456, 123)],
)
def test_three_digits_are_kept(microseconds: int, ms: float) -> None:
    """To the nearest; a clock's step back is no time at all."""
    assert of(microseconds).percentile_ms(50) == ms


def test_nothing_seen_has_no_percentile() -> None:
    """It is unknown, not zero."""
    assert of().percentile_ms(50) is None
    assert of().total == 0


def test_histograms_can_be_sent_and_merged() -> None:
    """As JSON, from several processes."""
    merged = of(1_000)
    merged.merge(Histogram(json.loads(json.dumps(of(1_000, 3_000).pairs()))))
    assert merged.total == 3
    assert merged.percentile_ms(50) == 1
    assert merged.percentile_ms(100) == 3
