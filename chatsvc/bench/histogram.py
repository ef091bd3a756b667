"""Histogram: how often which latency was seen, to three significant digits."""

from collections import Counter
from collections.abc import Iterable


class Histogram:
    """Counts of microseconds. Not thread-safe."""

    def __init__(self, counts: Iterable[tuple[int, int]] = ()) -> None:
        self._counts = Counter(dict(counts))

    def add(self, microseconds: int, times: int = 1) -> None:
        """Notes a latency; one below zero counts as zero."""
        self._counts[_rounded(max(0, microseconds))] += times

    def merge(self, other: "Histogram") -> None:
        """Adds what another one has counted."""
        self._counts.update(other._counts)

    @property
    def total(self) -> int:
        """How many latencies there are."""
        return self._counts.total()

    def percentile_ms(self, percent: float) -> float | None:
        """The least latency in milliseconds that `percent` of all do not exceed; None if there
        are none."""
        rank = percent / 100 * self.total
        seen = 0
        for microseconds, times in sorted(self._counts.items()):
            seen += times
            if seen >= rank:
                return microseconds / 1_000
        return None

    def pairs(self) -> list[tuple[int, int]]:
        """Latencies in microseconds with their counts, for JSON and the constructor."""
        return list(self._counts.items())


def _rounded(value: int) -> int:
    if value < 1_000:
        return value
    unit: int = 10 ** (len(str(value)) - 3)
    return (value + unit // 2) // unit * unit
