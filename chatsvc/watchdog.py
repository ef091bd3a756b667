"""Watchdog: the thread that notices what takes too long."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

_log = logging.getLogger(__name__)

Check = Callable[[float], bool]
"""Given the monotonic time, acts on what is late and returns whether there is more to watch.
Does not block."""


class Watchdog:
    """Calls its checks every `interval` seconds while any of them has something to watch, and
    waits without a timeout while none has.

    Checks are added before `start`. `wake` says that there is something to watch now; it may be
    called from any thread and costs next to nothing while the watchdog is awake.
    """

    def __init__(self, interval: float = 0.05) -> None:
        self._interval = interval
        self._checks: list[Check] = []
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def add(self, checks: Iterable[Check]) -> None:
        """Adds checks, before `start`."""
        self._checks.extend(checks)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Tells that there may be something to watch."""
        if not self._awake.is_set():
            self._awake.set()

    def close(self) -> None:
        """Ends the thread and waits for it. Idempotent; also before `start`."""
        self._closing.set()
        self._awake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._awake.wait()
            if self._closing.wait(self._interval):
                return
            # Cleared first: what begins during the checks sets it again and is seen next time.
            self._awake.clear()
            if self._closing.is_set():  # close() may have been what woke, between the two
                return
            if self._any_left(time.monotonic()):
                self._awake.set()

    def _any_left(self, now: float) -> bool:
        left = False
        for check in self._checks:
            try:
                left |= check(now)
            except Exception:
                # A check that fails must not end the watch over everything else.
                _log.exception("a watchdog check failed")
                left = True
        return left
