"""Journal: the accounts of a run while its clients' threads write them."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from chatsvc.client import Connected, Event, Gone, Received
from chatsvc.errors import ChatError, SendFailed
from chatsvc.verify.accounts import Accounts, Fate
from chatsvc.verify.plan import Mark, Plan
from chatsvc.verify.verdict import Verdict, judge


class Status(NamedTuple):
    """How far a run is; `running` once a message was acknowledged and each reader given one,
    `writing` is how many writers may still send."""

    sent: int
    acked: int
    settled: int
    seen: int
    missing: int
    reconnects: int
    running: bool
    writing: int


class Journal:
    """The accounts of a run with their times. Thread-safe; nothing but `wait_for` blocks."""

    def __init__(self, plan: Plan) -> None:
        # Guards all that follows; notified whenever any of it changes.
        self._changed = threading.Condition()
        self._accounts = Accounts(plan)
        self._began = time.monotonic()
        self._reconnects = 0
        self._writing = plan.writers

    def begin(self) -> None:
        """The run begins now."""
        with self._changed:
            self._began = time.monotonic()

    def _now(self) -> float:
        return time.monotonic() - self._began

    def send(self, writer: int) -> Mark:
        """The next message of a writer, which is about to send it."""
        with self._changed:
            return self._accounts.send(writer, self._now())

    def settle(self, mark: Mark, error: ChatError | None) -> None:
        """Notes what a client says of a message, once."""
        if error is None:
            fate = Fate.ACKED
        elif isinstance(error, SendFailed) and not error.maybe_written:
            fate = Fate.REFUSED
        else:
            fate = Fate.UNKNOWN
        self._settle(mark, fate)

    def withdraw(self, mark: Mark) -> None:
        """A client has not taken a message."""
        self._settle(mark, Fate.UNSENT)

    def _settle(self, mark: Mark, fate: Fate) -> None:
        with self._changed:
            self._accounts.settle(mark, fate, self._now())
            self._changed.notify_all()

    def end_writer(self) -> None:
        """A writer sends no more."""
        with self._changed:
            self._writing -= 1
            if not self._writing:
                self._accounts.end_sending(self._now())
            self._changed.notify_all()

    def note(self, reader: int, events: Sequence[Event]) -> None:
        """Notes what a reader's client tells."""
        with self._changed:
            for event in events:
                if isinstance(event, Received):
                    self._accounts.give(reader, event, self._now())
                elif isinstance(event, Gone):
                    self._accounts.tell_gap(reader, event.records)
            self._count(events)
            self._changed.notify_all()

    def note_writer(self, events: Sequence[Event]) -> None:
        """Notes what a writer's client tells."""
        with self._changed:
            self._count(events)

    def _count(self, events: Sequence[Event]) -> None:
        self._reconnects += sum(isinstance(event, Connected) for event in events)

    @property
    def status(self) -> Status:
        """How far the run is."""
        with self._changed:
            return self._status()

    def _status(self) -> Status:
        accounts = self._accounts
        acked = accounts.counts[Fate.ACKED]
        running = acked > 0 and all(reader.seen for reader in accounts.readers)
        return Status(
            accounts.sent,
            acked,
            accounts.settled,
            accounts.seen,
            accounts.missing,
            self._reconnects,
            running,
            self._writing,
        )

    def wait_for(self, condition: Callable[[Status], bool], seconds: float) -> bool:
        """Waits until it is so, at most so long; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self._status()), seconds)

    def close(self, interrupted: bool) -> Verdict:
        """Nothing is waited for any more: what the accounts show."""
        with self._changed:
            self._accounts.close(self._now())
            return judge(self._accounts, self._reconnects, interrupted)
