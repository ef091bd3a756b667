"""Crew: the processes of a run, and what they have told."""

import threading
import time
from collections.abc import Callable
from typing import Any

from chatsvc.child import Child
from chatsvc.errors import BenchFailed

STOP_SECONDS = 10.0
"""How long processes may take to close their clients; they are killed then."""


class Interrupted(Exception):
    """The user has had enough."""


class Member:
    """A process: `told` are the fields of its reports, newer ones over older ones; `ended` is how
    it ended. Both are changed with the crew's lock held."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.told: dict[str, Any] = {}
        self.ended = ""

    @property
    def final(self) -> dict[str, Any] | None:
        """The last report."""
        return self.told.get("final")

    @property
    def failure(self) -> str:
        """Why it has no last report; empty if it has or still may."""
        if "error" in self.told:
            return str(self.told["error"])
        return f"A process of the bench {self.ended}" if self.ended and not self.final else ""


class Crew:
    """Starts processes, reads their reports in a thread each, and stops them.

    `start`, `wait_for` and `stop` are called by one thread; `interrupt` by any.
    """

    def __init__(self) -> None:
        # Guards all that follows, and what members have told; notified when it changes.
        self._changed = threading.Condition()
        self._members: dict[Member, threading.Thread] = {}
        self._interrupted = False

    @property
    def is_interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._interrupted

    def interrupt(self) -> None:
        """Makes `wait_for` raise Interrupted, now and ever after. Does not block."""
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def start(self, module: str, settings: dict[str, Any]) -> Member:
        """Starts a process with a program of this package. Raises BenchFailed."""
        logs = {"log_format": "text", "log_level": "error"}
        try:
            member = Member(Child(f"chatsvc.bench.{module}", {**settings, **logs}))
        except OSError as error:
            raise BenchFailed(f"A process could not be started: {error.strerror}") from error
        thread = threading.Thread(
            target=self._read, args=(member,), name=f"bench-child-{member.child.pid}"
        )
        with self._changed:
            self._members[member] = thread
        thread.start()
        return member

    def _read(self, member: Member) -> None:
        while (report := member.child.report()) is not None:
            with self._changed:
                member.told |= report
                self._changed.notify_all()
        ended = member.child.wait()
        with self._changed:
            member.ended = ended
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Waits for something that members tell, and returns whether it is so. Raises
        Interrupted, or BenchFailed if one of them has failed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._interrupted or self._failure() or condition(), seconds
            )
            if self._interrupted:
                raise Interrupted
            if failure := self._failure():
                raise BenchFailed(failure)
            return condition()

    def _failure(self) -> str:
        return next(filter(None, (member.failure for member in self._members)), "")

    def stop(self) -> None:
        """Lets all members go, waits for their last reports, and kills those that are late.
        Idempotent."""
        with self._changed:
            members = dict(self._members)
            self._members.clear()
        for member in members:
            member.child.release()
        deadline = time.monotonic() + STOP_SECONDS
        for member, thread in members.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                member.child.kill()
        for thread in members.values():
            thread.join()
