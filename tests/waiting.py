"""Waiting for a condition, with a deadline that a slow machine keeps."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], timeout: float = 20) -> bool:
    """Returns whether `condition` has become true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
