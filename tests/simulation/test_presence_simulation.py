"""Who is where, as all servers tell it: the same, and the truth, once it is quiet."""

import pytest

from chatsvc.model import ConnectionEvent, Heartbeat
from chatsvc.presence import Presence

from simulation.presence import Gossip

SEEDS = range(25)

pytestmark = pytest.mark.simulation


class Deaf(Presence):
    """Takes no notice when a server leaves or falls silent."""

    def expire(self, now: float) -> list[str]:
        return []


class Unordered(Presence):
    """Takes what it reads last for what was written last."""

    def apply(self, record: ConnectionEvent | Heartbeat, heard_at: float) -> None:
        last = max((each.sequence for each in self.seen), default=0)
        self.seen.append(record)
        if isinstance(record, ConnectionEvent) and record.sequence < last:
            record = ConnectionEvent(
                record.user, record.server_id, record.connected, record.connections, last
            )
        super().apply(record, heard_at)

    def __init__(self, own_server_id: str, timeout: float) -> None:
        super().__init__(own_server_id, timeout)
        self.seen: list[ConnectionEvent | Heartbeat] = []


class Adding(Presence):
    """Lets a listing add to what is known, as if it were events."""

    def apply(self, record: ConnectionEvent | Heartbeat, heard_at: float) -> None:
        if isinstance(record, Heartbeat) and record.users is not None:
            for user, count in record.users.items():
                event = ConnectionEvent(user, record.server_id, True, count, record.sequence)
                super().apply(event, heard_at)
            record = Heartbeat(record.server_id, record.sequence)
        super().apply(record, heard_at)


def test_all_servers_agree_on_the_truth(seed: int) -> None:
    """In whatever order the partitions are read, and whoever has died or come back meanwhile."""
    Gossip(seed).run()


@pytest.mark.parametrize("fault", [Deaf, Unordered, Adding])
def test_a_planted_fault_is_found(fault: type[Presence]) -> None:
    """Among the seeds that are usually tried there is one that finds it."""

    def run() -> None:
        for seed in SEEDS:
            Gossip(seed, fault).run()

    with pytest.raises(AssertionError, match="takes"):
        run()
