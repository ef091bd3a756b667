"""Child: a process that a supervisor starts and waits for; its own side is chatsvc.parent."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any


class Child:
    """A running `python -m MODULE` in a process group of its own.

    It has its settings on its stdin, which stays open as long as this process lives, and tells
    what became of its start, and what else there is to tell, on its stdout; its stderr is ours.
    `report`, any number of times, and `wait` are called by one thread, in this order, and `wait`
    must be; the rest is thread-safe.
    """

    def __init__(
        self, module: str, settings: Mapping[str, Any], inherited: Sequence[int] = ()
    ) -> None:
        """Starts it, with the descriptors in `inherited` under the same numbers. Raises OSError."""
        # -P: what is in the working directory must not take the place of our modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=inherited,
            process_group=0,
        )
        self.pid = self._process.pid
        # Guards the descriptor: no signal may go by it once the process has been waited for.
        self._lock = threading.Lock()
        self._pidfd = os.pidfd_open(self.pid)
        self._write(settings)

    def _write(self, settings: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None  # it is a pipe
        with suppress(BrokenPipeError):  # it is gone, which wait() tells
            self._process.stdin.write(json.dumps(settings).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def lifeline(self) -> int:
        """The descriptor that keeps the child alive: it stops when nobody has it any more. Not
        after `release`, nor after `wait`."""
        assert self._process.stdin is not None  # it is a pipe
        return self._process.stdin.fileno()

    def report(self) -> dict[str, Any] | None:
        """Waits for the next that the child tells; None if it ends without."""
        assert self._process.stdout is not None  # it is a pipe
        line = self._process.stdout.readline()
        with suppress(ValueError):  # it was killed in the middle of the line
            report = json.loads(line)
            return report if isinstance(report, dict) else None
        return None

    def wait(self) -> str:
        """Waits for the end of the process, and tells how it ended as the end of a sentence."""
        # Without reaping, so that the pidfd is closed while the process still has its id.
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        with self._lock:
            os.close(self._pidfd)
            self._pidfd = -1
        code = self._process.wait()
        self.release()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if code >= 0:
            return f"ended with exit status {code}"
        return f"was killed by {_name(-code)}"

    def terminate(self) -> None:
        """Asks the process to stop, by SIGTERM. Idempotent."""
        with self._lock:
            self._send(signal.SIGTERM)

    def release(self) -> None:
        """Lets go of the lifeline: the process stops if nobody else holds it. Idempotent."""
        assert self._process.stdin is not None  # it is a pipe
        with suppress(BrokenPipeError):  # settings that it did not read
            self._process.stdin.close()

    def kill(self) -> None:
        """Ends the process by SIGKILL. Idempotent."""
        with self._lock:
            self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, number)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
