"""The program of a process that receives: many clients, each with its ledger."""

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

from chatsvc import parent
from chatsvc.bench.histogram import Histogram
from chatsvc.bench.ledger import Ledger
from chatsvc.bench.workload import NANOSECONDS, TICK_SECONDS, Mark, Workload
from chatsvc.client import ChatClient, Event, Lost, Received
from chatsvc.errors import BenchFailed
from chatsvc.process import pin_cpu, raise_file_limit

CONNECTING = 8
"""Clients of a process that connect at once."""


class _Latencies:
    """The latencies of all clients of this process, by the second of their arrival. Thread-safe."""

    def __init__(self) -> None:
        self.last_ns = 0
        # Guards all of it.
        self._lock = threading.Lock()
        self._seconds: defaultdict[int, Histogram] = defaultdict(Histogram)

    def add(self, due_times: Sequence[int], now_ns: int) -> None:
        with self._lock:
            self.last_ns = max(self.last_ns, now_ns)
            histogram = self._seconds[now_ns // NANOSECONDS]
            for due_ns in due_times:
                histogram.add((now_ns - due_ns) // 1_000)

    def by_second(self) -> list[tuple[int, list[tuple[int, int]]]]:
        with self._lock:
            return [(second, each.pairs()) for second, each in sorted(self._seconds.items())]


class _Receiver:
    """A client in a room. All it is given is noted in the client's thread."""

    def __init__(self, workload: Workload, number: int, latencies: _Latencies) -> None:
        self.room = number % workload.rooms
        self.ledger = Ledger()
        self.reconnects = 0
        self.misrouted = 0
        self._room_name = workload.room(self.room)
        self._latencies = latencies
        self.client = ChatClient(
            workload.user("r", number),
            workload.servers_for(number),
            [self._room_name],
            on_events=self._take,
        )

    def _take(self, events: Sequence[Event]) -> None:
        now_ns = time.monotonic_ns()
        due_times = []
        for event in events:
            if isinstance(event, Lost):
                self.reconnects += 1
            elif isinstance(event, Received) and event.room != self._room_name:
                self.misrouted += 1
            elif isinstance(event, Received) and (mark := _mark(event)):
                self.ledger.take(mark.sender, mark.sequence)
                due_times.append(mark.due_ns)
        if due_times:
            self._latencies.add(due_times, now_ns)


def _mark(message: Received) -> Mark | None:
    try:
        return Mark.read(message.content)
    except ValueError:  # somebody else talks in the room
        return None


def _receive(settings: dict[str, Any], report: parent.Report, stopping: threading.Event) -> None:
    workload = Workload.from_json(settings["workload"])
    numbers = range(settings["first"], workload.connections, workload.receiving_processes)
    if raise_file_limit(len(numbers)) is not None:
        raise BenchFailed(
            f"too few files may be open for {len(numbers)} connections a process; "
            "raise the limit (ulimit -n) or --processes"
        )
    # As a server does: it nearly halves what 1,000 clients that wake up one by one cost.
    pin_cpu(settings["first"])
    latencies = _Latencies()
    receivers = [_Receiver(workload, number, latencies) for number in numbers]
    with ThreadPoolExecutor(CONNECTING, "bench-connect") as pool:
        try:
            _connect(pool, receivers, report, stopping)
            while not stopping.wait(TICK_SECONDS):
                report({"delivered": sum(each.ledger.delivered for each in receivers)})
        finally:
            _close(receivers)  # then the counts change no more, and nobody tries to connect
    report(
        {
            "final": {
                "receivers": [{"room": each.room, **each.ledger.state()} for each in receivers],
                "reconnects": sum(each.reconnects for each in receivers),
                "misrouted": sum(each.misrouted for each in receivers),
                "seconds": latencies.by_second(),
                "last_ns": latencies.last_ns,
            }
        }
    )


def _close(receivers: Sequence[_Receiver]) -> None:
    with ThreadPoolExecutor(CONNECTING, "bench-close") as pool:  # each waits for its thread
        list(pool.map(lambda each: each.client.close(), receivers))


def _connect(
    pool: ThreadPoolExecutor,
    receivers: Sequence[_Receiver],
    report: parent.Report,
    stopping: threading.Event,
) -> None:
    """Connects all and reports how many are, until it is to stop. Raises ConnectionFailed."""
    began_ns = time.monotonic_ns()
    waiting: set[Future[Any]] = {pool.submit(each.client.connect) for each in receivers}
    try:
        while waiting and not stopping.is_set():
            done, waiting = wait(waiting, TICK_SECONDS, FIRST_EXCEPTION)
            for future in done:
                future.result()
            connected = len(receivers) - len(waiting)
            report({"connected": connected, "began_ns": began_ns, "at_ns": time.monotonic_ns()})
    finally:
        for future in waiting:
            future.cancel()


if __name__ == "__main__":
    parent.run(_receive, until_signal=False)
