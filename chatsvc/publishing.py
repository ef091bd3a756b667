"""PublishStream: one client's stream of messages to send, and of their outcomes in order."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from chatsvc import frames
from chatsvc.errors import ChatError, ServerBusy
from chatsvc.model import Acked
from chatsvc.senders import Pulse, SenderPool

UNDER_WAY = 2_000
"""Messages of a stream that may wait for their outcomes; beyond it the stream is not read."""
RESULT_OUTCOMES = 500
"""Outcomes in one result: some 30 KiB."""
BUSY_SECONDS = 0.05
"""How long to wait, at most, before a full producer is asked again."""

Done = Callable[[Acked | ChatError], None]


class ResultStream(Protocol):
    """The transport of the results; the servicer has the one over gRPC."""

    def send(self, frame: bytes) -> None:
        """Sends one result. Blocks while the client's window is full."""

    def finish(self) -> None:
        """Ends the stream with OK, after all results."""

    def refuse(self, error: ChatError) -> None:
        """Ends the stream with the status for `error`."""

    def cut_off(self) -> None:
        """Cancels the stream; a blocked `send` returns."""


class _Slot:
    """A message in the order sent, and its outcome once there is one."""

    __slots__ = ("message_id", "outcome")

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.outcome: Acked | ChatError | None = None


class PublishStream:
    """Publishes messages as they are read, and has their outcomes sent in order by a pool.

    `publish` and `end` are called by the one thread that reads the stream; all else from any.
    """

    def __init__(self, results: ResultStream, pool: SenderPool, send_timeout: float) -> None:
        self._results = results
        self._pool = pool
        self._send_timeout = send_timeout
        # Guards all that follows; notified when outcomes have been sent and when it is over.
        self._changed = threading.Condition()
        self._slots: deque[_Slot] = deque()
        self._draining = False
        self._ended = False
        self._refusal: ChatError | None = None
        self._left = False

    def publish(self, message_id: str, send: Callable[[Done], None]) -> bool:
        """Takes the next message, for which `send` is called with whom to tell; what it raises is
        the outcome. Blocks while UNDER_WAY messages wait, and while the producer is full. Returns
        False once the stream is over."""
        slot = _Slot(message_id)
        with self._changed:
            self._changed.wait_for(lambda: len(self._slots) < UNDER_WAY or self._over())
            if self._over():
                return False
            self._slots.append(slot)

        def done(outcome: Acked | ChatError) -> None:
            self._settle(slot, outcome)

        while True:
            try:
                send(done)
                return True
            except ServerBusy:
                with self._changed:
                    if self._changed.wait_for(self._over, BUSY_SECONDS):
                        return False
            except ChatError as error:
                done(error)
                return True

    def end(self) -> None:
        """No more messages will come: the stream ends after the outcomes of those that have."""
        with self._changed:
            self._ended = True
        self._wake()

    def stop(self, error: ChatError) -> None:
        """Takes no more messages; the stream ends with `error` after the outcomes of those under
        way. Does not block."""
        with self._changed:
            self._refusal = error
            self._changed.notify_all()
        self._wake()

    def leave(self) -> None:
        """The stream is over: nobody waits for outcomes any more."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def _over(self) -> bool:
        return self._left or self._refusal is not None

    def _settle(self, slot: _Slot, outcome: Acked | ChatError) -> None:
        with self._changed:
            slot.outcome = outcome
            is_next = bool(self._slots) and self._slots[0].outcome is not None
        if is_next:
            self._wake()

    def _wake(self) -> None:
        with self._changed:
            if self._draining or self._left:
                return
            self._draining = True
        self._pool.ready([self])

    def drain(self, pulse: Pulse) -> bool:
        """Sends the outcomes that are known, as far as none before them is missing."""
        while settled := self._settled():
            pulse.beat()
            self._results.send(frames.result(settled))
        return False

    def _settled(self) -> list[tuple[str, Acked | ChatError]]:
        """The next outcomes; if there are none, the drain is over, and perhaps the stream."""
        settled: list[tuple[str, Acked | ChatError]] = []
        with self._changed:
            while self._slots and len(settled) < RESULT_OUTCOMES:
                outcome = self._slots[0].outcome
                if outcome is None or self._left:
                    break
                settled.append((self._slots.popleft().message_id, outcome))
            if settled:
                self._changed.notify_all()
                return settled
            self._draining = False
            finished = not self._slots and not self._left
            refusal = self._refusal if finished else None
            finished = finished and self._ended and refusal is None
            self._left = self._left or finished or refusal is not None
        if refusal is not None:
            self._results.refuse(refusal)
        elif finished:
            self._results.finish()
        return []

    def check_send(self, seconds: float, now: float) -> None:
        """A client that does not take its outcomes is cut off."""
        if seconds > self._send_timeout:
            self.cut_off()

    def cut_off(self) -> None:
        """Cancels the stream."""
        self._results.cut_off()
