"""Periodic: a thread that does something again and again."""

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Periodic:
    """Calls `act` every `interval` seconds, the first time after one. What it raises is logged, and
    it is called again all the same."""

    def __init__(self, name: str, interval: float, act: Callable[[], object]) -> None:
        self._name = name
        self._interval = interval
        self._act = act
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def end(self) -> None:
        """`act` is not called again. Does not block; may be called by `act`."""
        self._closing.set()

    @property
    def is_ending(self) -> bool:
        """Whether it is not called again."""
        return self._closing.is_set()

    def close(self) -> None:
        """Ends the thread and waits for it, and so for `act`. Idempotent; also before `start`."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self._act()
            except Exception:
                # A call that fails must not be the last.
                _log.exception("%s failed", self._name)
