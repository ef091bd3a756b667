"""Rounds: which records are handed to librdkafka together, and when the next ones may follow.

A lone record goes at once, and while a round is under way all others wait together for the next.
Rounds grow with the load by themselves. More at once would not be faster: an idempotent producer
sends nothing to a partition while five records or more are under way there, and if more are due
librdkafka's thread for that broker spins meanwhile. Where brokers share the machine, they answer
the later the more it spins. Source: rd_kafka_toppar_producer_serve() and
rd_kafka_msgq_allow_wakeup_at() of librdkafka 2.16.
"""

AWAY_SECONDS = 0.5
"""After so long a broker is taken to be away: the records of others do not wait for it."""
PAUSE_SECONDS = 0.02
"""Between two rounds then."""


class Round:
    """Records that are handed over together. `handed_over` once they are there, `left` how many
    have no outcome yet. Times are monotonic, in seconds."""

    __slots__ = ("began", "handed_over", "left")

    def __init__(self, began: float, records: int) -> None:
        self.began = began
        self.handed_over = False
        self.left = records


class Rounds:
    """The rounds that are under way. Not thread-safe; does not block."""

    def __init__(self) -> None:
        self._under_way: dict[Round, None] = {}

    def may_begin(self, now: float) -> bool:
        """Whether a round may begin now."""
        if not self._under_way:
            return True
        newest = next(reversed(self._under_way))
        oldest = next(iter(self._under_way))
        return (
            newest.handed_over
            and now - newest.began > PAUSE_SECONDS
            and now - oldest.began > AWAY_SECONDS
        )

    def begin(self, now: float, records: int) -> Round:
        """A new round of one record or more."""
        begun = Round(now, records)
        self._under_way[begun] = None
        return begun

    def settle(self, round_: Round) -> None:
        """One of a round's records has its outcome; with the last one the round is over."""
        round_.left -= 1
        if not round_.left:
            del self._under_way[round_]
