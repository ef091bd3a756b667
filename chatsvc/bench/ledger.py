"""Ledger: which of the senders' numbered messages one receiver has been given."""

from collections.abc import Collection
from typing import Any


class Ledger:
    """Counts what arrives, message by message; keeps only the gaps. Not thread-safe.

    `delivered` counts first copies, `duplicated` further ones, and `out_of_order` first copies
    that came after one with a higher number of the same sender.
    """

    def __init__(self) -> None:
        self.delivered = 0
        self.duplicated = 0
        self.out_of_order = 0
        self._next: dict[int, int] = {}
        self._gaps: dict[int, list[range]] = {}

    def take(self, sender: int, sequence: int) -> None:
        """Notes an arrival."""
        following = self._next.get(sender, 0)
        if sequence >= following:
            if sequence > following:
                self._gaps.setdefault(sender, []).append(range(following, sequence))
            self._next[sender] = sequence + 1
            self.delivered += 1
        elif self._fill(sender, sequence):
            self.delivered += 1
            self.out_of_order += 1
        else:
            self.duplicated += 1

    def _fill(self, sender: int, sequence: int) -> bool:
        """Takes a message out of the gaps; returns whether it was missing."""
        gaps = self._gaps.get(sender, [])
        for index, gap in enumerate(gaps):
            if sequence in gap:
                halves = (range(gap.start, sequence), range(sequence + 1, gap.stop))
                gaps[index : index + 1] = filter(None, halves)
                return True
        return False

    def state(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "delivered": self.delivered,
            "duplicated": self.duplicated,
            "out_of_order": self.out_of_order,
            "next": list(self._next.items()),
            "gaps": [
                (sender, gap.start, gap.stop) for sender in self._gaps for gap in self._gaps[sender]
            ],
        }


def lost(state: dict[str, Any], sender: int, sent: int, unacked: Collection[int]) -> int:
    """How many of the messages 0 to `sent` of a sender a receiver has not been given, of those
    that the server has acknowledged; `state` is the receiver's."""
    following = dict(state["next"]).get(sender, 0)
    gaps = [range(start, stop) for of, start, stop in state["gaps"] if of == sender]
    gaps.append(range(following, sent))
    return sum(len(gap) - sum(number in gap for number in unacked) for gap in gaps)
