"""Heartbeats: the thread that looks after streams on which nothing happens."""

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Heartbeats:
    """Calls `beat` with the monotonic time every `interval` seconds. It must not block."""

    def __init__(self, beat: Callable[[float], None], interval: float) -> None:
        self._beat = beat
        self._interval = interval
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and waits for it. Idempotent; also before `start`."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self._beat(time.monotonic())
            except Exception:
                # A beat that fails must not be the last.
                _log.exception("a heartbeat failed")
