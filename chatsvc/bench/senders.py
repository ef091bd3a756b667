"""The program of the process that sends, each message when it is due or as soon after as it can."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from chatsvc import parent
from chatsvc.bench.histogram import Histogram
from chatsvc.bench.workload import GRACE_SECONDS, NANOSECONDS, TICK_SECONDS, Mark, Workload
from chatsvc.client import ChatClient, Event, Lost
from chatsvc.errors import ChatError, ClientClosed, SendFailed

SOON_NS = NANOSECONDS // 20
"""What the threads need to be ready for the first message."""


class _Outcomes:
    """What has become of the messages of all senders. Thread-safe."""

    def __init__(self) -> None:
        # Guards all that follows; notified whenever any of it changes.
        self._changed = threading.Condition()
        self._sent: Counter[tuple[int, int]] = Counter()
        self._pending: set[tuple[int, int, int]] = set()
        self._refused: set[tuple[int, int, int]] = set()
        self._unknown: set[tuple[int, int, int]] = set()
        self._latencies = Histogram()
        self._sending = 0
        self._last_ack_ns = 0
        self.reconnects = 0

    def begin(self, senders: int) -> None:
        """So many threads are about to send."""
        with self._changed:
            self._sending = senders

    def end(self) -> None:
        """A thread sends no more."""
        with self._changed:
            self._sending -= 1
            self._changed.notify_all()

    def sending(self, sender: int, room: int) -> int:
        """Counts a message that is about to be sent; returns its sequence number."""
        with self._changed:
            sequence = self._sent[sender, room]
            self._sent[sender, room] += 1
            self._pending.add((sender, room, sequence))
            return sequence

    def settle(self, mark: Mark, room: int, message_id: str, error: ChatError | None) -> None:
        """Notes what a client says of a message, `message_id`."""
        now_ns = time.monotonic_ns()
        key = (mark.sender, room, mark.sequence)
        with self._changed:
            self._pending.discard(key)
            if error is None:
                self._latencies.add((now_ns - mark.due_ns) // 1_000)
                self._last_ack_ns = max(self._last_ack_ns, now_ns)
            elif isinstance(error, SendFailed) and not error.maybe_written:
                self._refused.add(key)
            else:
                self._unknown.add(key)
            self._changed.notify_all()

    def not_sent(self, mark: Mark, room: int) -> None:
        """The client was closed before it took the message, the sender's last."""
        with self._changed:
            self._pending.discard((mark.sender, room, mark.sequence))
            self._sent[mark.sender, room] -= 1

    def count_losses(self, events: Sequence[Event]) -> None:
        with self._changed:
            self.reconnects += sum(isinstance(event, Lost) for event in events)

    @property
    def settled(self) -> int:
        with self._changed:
            return self._sent.total() - len(self._pending)

    def wait(self, seconds: float) -> bool:
        """Waits until all is sent and has its outcome; returns whether it is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._sending or self._pending), seconds)

    def final(self) -> dict[str, Any]:
        with self._changed:
            unacked: dict[tuple[int, int], list[int]] = {}
            for sender, room, sequence in self._pending | self._unknown | self._refused:
                unacked.setdefault((sender, room), []).append(sequence)
            return {
                "lanes": [
                    (*lane, sent, unacked.get(lane, [])) for lane, sent in self._sent.items()
                ],
                "refused": len(self._refused),
                "unknown": len(self._pending | self._unknown),
                "latencies": self._latencies.pairs(),
                "last_ack_ns": self._last_ack_ns,
                "reconnects": self.reconnects,
            }


class _Sender:
    """A client that sends every message whose number is its own modulo the senders."""

    def __init__(self, workload: Workload, number: int, outcomes: _Outcomes) -> None:
        self._workload = workload
        self._number = number
        self._outcomes = outcomes
        self.client = ChatClient(
            workload.user("s", number),
            workload.servers_for(number),
            [f"{workload.room(0)}-senders"],  # nobody talks there
            on_events=outcomes.count_losses,
        )

    def run(self, start_ns: int, stopping: threading.Event) -> None:
        """Sends until the last is sent, it is too late for more, or the client is closed."""
        workload = self._workload
        too_late_ns = start_ns + int((workload.duration + GRACE_SECONDS) * NANOSECONDS)
        try:
            for message in range(self._number, workload.messages, workload.senders):
                due_ns = start_ns + int(message / workload.rate * NANOSECONDS)
                early_ns = due_ns - time.monotonic_ns()
                if early_ns > 0 and stopping.wait(early_ns / NANOSECONDS):
                    return
                if due_ns - early_ns > too_late_ns or not self._send(message, due_ns):
                    return
        finally:
            self._outcomes.end()

    def _send(self, message: int, due_ns: int) -> bool:
        """Sends a message; returns whether there is use in another one."""
        workload = self._workload
        room = message % workload.rooms
        mark = Mark(self._number, self._outcomes.sending(self._number, room), due_ns)
        settle = partial(self._outcomes.settle, mark, room)
        content, name = mark.content(workload.size), workload.room(room)
        if workload.publish == "stream":
            try:
                self.client.post(content, room=name, on_outcome=settle)
            except ChatError:  # it will take no other one either
                self._outcomes.not_sent(mark, room)
                return False
            return True
        try:
            settle(self.client.send(content, room=name, timeout=workload.timeout), None)
        except ChatError as error:
            settle("", error)
            return not isinstance(error, ClientClosed)
        return True


def _send(settings: dict[str, Any], report: parent.Report, stopping: threading.Event) -> None:
    workload = Workload.from_json(settings["workload"])
    outcomes = _Outcomes()
    senders = [_Sender(workload, number, outcomes) for number in range(workload.senders)]
    with ThreadPoolExecutor(workload.senders, "bench-sender") as pool, ExitStack() as clients:
        # Before the pool waits for its threads, some of which only that frees.
        for sender in senders:
            clients.callback(sender.client.close)
        list(pool.map(lambda each: each.client.connect(), senders))
        # A whole second, so that the receivers count the same seconds.
        start_ns = ((time.monotonic_ns() + SOON_NS) // NANOSECONDS + 1) * NANOSECONDS
        report({"start_ns": start_ns})
        outcomes.begin(len(senders))
        running = [pool.submit(sender.run, start_ns, stopping) for sender in senders]
        _await_outcomes(workload, outcomes, start_ns, report, stopping)
    for future in running:
        future.result()  # it may have failed by a fault of ours
    report({"final": outcomes.final()})


def _await_outcomes(
    workload: Workload,
    outcomes: _Outcomes,
    start_ns: int,
    report: parent.Report,
    stopping: threading.Event,
) -> None:
    """Waits for the last outcome, or until there was none for too long after the end."""
    end = start_ns / NANOSECONDS + workload.duration + GRACE_SECONDS
    settled, changed_at = 0, end
    while not outcomes.wait(TICK_SECONDS) and not stopping.is_set():
        report({"settled": outcomes.settled})
        now = time.monotonic()
        if outcomes.settled != settled:
            settled, changed_at = outcomes.settled, max(now, end)
        elif now > changed_at + workload.timeout:
            return


if __name__ == "__main__":
    parent.run(_send, until_signal=False)
