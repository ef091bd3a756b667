"""Many clients in one process that read a room, whose messages' ids end with writer and number.

    python audience.py HOST:PORT ROOM PROCESS CLIENTS SECONDS

Prints "connected" once all are. Then it reads a number from stdin: how many messages there are in
the room. When every client has been given so many, or after SECONDS, it prints one JSON object:
over all clients how many first copies were given out, how many messages not, how many again and how
many after a later one of their writer, how many streams were lost, and of each client the longest
time from one delivery to the next, in seconds.

It stands for many other machines, so servers and brokers of this one come before it: else so many
threads leave a broker without CPU until the others take it for dead. For that it has to be started
in a session of its own.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chatsvc.bench.ledger import Ledger
from chatsvc.client import ChatClient, Event, Lost, Received
from chatsvc.process import pin_cpu

sys.path.insert(0, str(Path(__file__).parents[1]))

from waiting import eventually

AT_ONCE = 8


class Reader:
    """A client that hides no second copy, and what it was given; noted in its own thread."""

    def __init__(self, user: str, address: str, room: str) -> None:
        self.ledger = Ledger()
        self.losses = 0
        self.longest = 0.0
        self._given_at: float | None = None
        self.client = ChatClient(user, [address], [room], on_events=self._take, remembered_ids=0)

    def _take(self, events: Sequence[Event]) -> None:
        now = time.monotonic()
        received = [each for each in events if isinstance(each, Received)]
        self.losses += sum(isinstance(each, Lost) for each in events)
        for message in received:
            _, writer, number = message.message_id.split("-")
            self.ledger.take(int(writer), int(number))
        if received:
            self.longest = max(self.longest, now - (self._given_at or now))
            self._given_at = now


def audience(
    address: str, room: str, process: int, clients: int, seconds: float
) -> dict[str, object]:
    readers = [Reader(f"reader-{process}-{number}", address, room) for number in range(clients)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda each: each.client.connect(), readers))
        print("connected", flush=True)
        messages = int(sys.stdin.readline())
        eventually(lambda: all(each.ledger.delivered >= messages for each in readers), seconds)
        list(pool.map(lambda each: each.client.close(), readers))
    ledgers = [each.ledger for each in readers]
    return {
        "seen": sum(each.delivered for each in ledgers),
        "lost": sum(messages - each.delivered for each in ledgers),
        "twice": sum(each.duplicated for each in ledgers),
        "disorder": sum(each.out_of_order for each in ledgers),
        "reconnects": sum(each.losses for each in readers),
        "longest": [each.longest for each in readers],
    }


def come_last() -> None:
    """Leaves the CPU to all others: between sessions Linux goes by their groups' niceness."""
    os.nice(19)
    group = Path("/proc/self/autogroup")
    if group.exists():
        group.write_text("19")


if __name__ == "__main__":
    server, of_room, number, count, limit = sys.argv[1:]
    come_last()
    pin_cpu(int(number))
    print(json.dumps(audience(server, of_room, int(number), int(count), float(limit))))
