"""The course of a run: all connect, writers send, and what is missing is waited for."""

import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from chatsvc.client import ChatClient
from chatsvc.verify.journal import Journal, Status
from chatsvc.verify.plan import Plan
from chatsvc.verify.verdict import Verdict
from chatsvc.verify.writer import Writer

TICK_SECONDS = 1.0
"""The pause between two reports of progress."""
AT_ONCE = 8
"""Clients that connect, or are closed, at the same time."""

Progress = Callable[[Status], None]


class Run:
    """One run of a plan. `on_progress` is told about once a second how far it is, and at once when
    it is running. `interrupt` may be called from any thread."""

    def __init__(self, plan: Plan, on_progress: Progress) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self._journal = Journal(plan)
        self._stopping = threading.Event()
        self._was_running = False

    @property
    def is_interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._stopping.is_set()

    def interrupt(self) -> None:
        """Has writers send no more; what is under way is waited for. Does not block."""
        self._stopping.set()

    def measure(self) -> Verdict:
        """Blocks until the run is over. Raises ConnectionFailed if it could not begin. No client is
        left open either way."""
        plan, journal = self._plan, self._journal
        readers = [
            ChatClient(
                plan.reader(number),
                plan.servers_for(number),
                [plan.room_name],
                on_events=partial(journal.note, number),
                remembered_ids=0,
            )
            for number in range(plan.readers)
        ]
        writers = [Writer(plan, number, journal) for number in range(plan.writers)]
        with ExitStack() as clients:
            clients.callback(_all, (reader.close for reader in readers))
            clients.callback(_all, (writer.client.close for writer in writers))
            _all(reader.connect for reader in readers)
            _all(writer.client.connect for writer in writers)
            self._write(writers)
            self._await(lambda now: not now.missing, lambda now: now.seen, plan.settle)
        return journal.close(self.is_interrupted)

    def _write(self, writers: list[Writer]) -> None:
        """Has writers send, and waits for the outcomes."""
        journal = self._journal
        journal.begin()
        began = time.monotonic()
        with ThreadPoolExecutor(len(writers), "verify-writer") as pool, ExitStack() as clients:
            # Before the pool waits for its threads, some of which only that frees.
            clients.callback(_all, (writer.client.close for writer in writers))
            running = [pool.submit(writer.run, began, self._stopping) for writer in writers]
            end = began + self._plan.duration
            self._await(
                lambda now: not now.writing or self.is_interrupted or time.monotonic() > end,
                lambda now: now.sent,
                math.inf,
            )
            self._await(
                lambda now: not now.writing and now.settled == now.sent,
                lambda now: now.settled,
                self._plan.send_timeout,
            )
        for future in running:
            future.result()  # it may have failed by a fault of ours

    def _await(
        self,
        is_over: Callable[[Status], bool],
        progress: Callable[[Status], int],
        patience: float,
    ) -> None:
        """Waits until it is over, or `progress` has not changed for `patience` seconds."""
        reached, changed_at = -1, 0.0
        while not self._is_over_soon(is_over):
            now = time.monotonic()
            status = self._journal.status
            self._on_progress(status)
            if progress(status) != reached:
                reached, changed_at = progress(status), now
            elif now > changed_at + patience:
                return
        self._on_progress(self._journal.status)

    def _is_over_soon(self, is_over: Callable[[Status], bool]) -> bool:
        """Waits a while, but not once there is news."""
        self._journal.wait_for(
            lambda now: is_over(now) or (now.running and not self._was_running), TICK_SECONDS
        )
        status = self._journal.status
        self._was_running = status.running
        return is_over(status)


def _all(actions: Iterable[Callable[[], object]]) -> None:
    """Does all of it, some at once. Raises the first error."""
    with ThreadPoolExecutor(AT_ONCE, "verify-client") as pool:
        list(pool.map(lambda action: action(), actions))
