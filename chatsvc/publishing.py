"""PublishStream: one client's stream of messages to send, and of their outcomes in order."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from chatsvc import frames
from chatsvc.errors import ChatError, ServerBusy
from chatsvc.model import Acked, Duplicate
from chatsvc.senders import Pulse, SenderPool

UNDER_WAY = 2_000
"""Messages of a stream that may wait for their outcomes; beyond it the stream is not read."""
RESULT_OUTCOMES = 500
"""Outcomes in one result: some 30 KiB."""
BUSY_SECONDS = 0.05
"""How long to wait, at most, before a full producer is asked again."""

Done = Callable[[Acked | Duplicate | ChatError], None]
Send = Callable[[Done], None]
"""Sends one message; it is given whom to tell. What it raises is the outcome."""


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

    __slots__ = ("_stream", "began", "message_id", "outcome")

    def __init__(self, stream: "PublishStream", message_id: str) -> None:
        self._stream = stream
        self.message_id = message_id
        self.began = time.monotonic()
        self.outcome: Acked | Duplicate | ChatError | None = None

    def settle(self, outcome: Acked | Duplicate | ChatError) -> None:
        self.outcome = outcome
        self._stream.note_settled()


class PublishStream:
    """Publishes messages as they are read, and has their outcomes sent in order by a pool.

    `publish` and `end` are called by the one thread that reads the stream; all else from any.
    `observe_acks` gets, of each message that a result tells to be committed, the seconds since it
    was read.
    """

    is_behind = False
    """For the pool: there is never much."""

    def __init__(
        self,
        results: ResultStream,
        pool: SenderPool,
        send_timeout: float,
        observe_acks: Callable[[Sequence[float]], None] = lambda seconds: None,
    ) -> None:
        self._results = results
        self._pool = pool
        self._send_timeout = send_timeout
        self._observe_acks = observe_acks
        # Appended by the reading thread and popped by the draining one, without a lock.
        self._slots: deque[_Slot] = deque()
        # Guards all that follows; notified when outcomes have been sent and when it is over.
        self._changed = threading.Condition()
        self._draining = False
        self._ended = False
        self._refusal: ChatError | None = None
        self._left = False

    def publish(self, messages: Sequence[tuple[str, Send]]) -> bool:
        """Takes the next messages, by their ids. Blocks while UNDER_WAY messages wait for their
        outcomes, and while the producer is full. Returns False once the stream is over."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._slots) < UNDER_WAY or self._over())
        return all(self._publish_one(message_id, send) for message_id, send in messages)

    def _publish_one(self, message_id: str, send: Send) -> bool:
        if self._over():
            return False
        slot = _Slot(self, message_id)
        self._slots.append(slot)
        while True:
            try:
                send(slot.settle)
                return True
            except ServerBusy as error:
                with self._changed:
                    over = self._changed.wait_for(self._over, BUSY_SECONDS)
                if over:
                    slot.settle(error)
                    return False
            except ChatError as error:
                slot.settle(error)
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

    def note_settled(self) -> None:
        """A message has its outcome. Does not block; called once a message."""
        # Mostly a drain is under way already; it looks once more after it has cleared the flag.
        if not self._draining and self._next_is_settled():
            self._wake()

    def _next_is_settled(self) -> bool:
        try:
            return self._slots[0].outcome is not None
        except IndexError:
            return False

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
            self._results.send(
                frames.result([(slot.message_id, outcome) for slot, outcome in settled])
            )
            now = time.monotonic()
            self._observe_acks(
                [now - slot.began for slot, outcome in settled if type(outcome) is Acked]
            )
        with self._changed:
            self._draining = False
            finished = self._is_finished()
            refusal = self._refusal if finished else None
            self._left = self._left or finished
        if refusal is not None:
            self._results.refuse(refusal)
        elif finished:
            self._results.finish()
        elif self._next_is_settled():
            self._wake()
        return False

    def _is_finished(self) -> bool:
        over = self._ended or self._refusal is not None
        return over and not self._slots and not self._left

    def _settled(self) -> list[tuple[_Slot, Acked | Duplicate | ChatError]]:
        """The next outcomes that are known; none once the stream is over."""
        settled: list[tuple[_Slot, Acked | Duplicate | ChatError]] = []
        slots = self._slots
        while slots and len(settled) < RESULT_OUTCOMES and not self._left:
            outcome = slots[0].outcome
            if outcome is None:
                break
            settled.append((slots.popleft(), outcome))
        if settled:
            with self._changed:
                self._changed.notify_all()
        return settled

    def check_send(self, seconds: float, now: float) -> None:
        """A client that does not take its outcomes is cut off."""
        if seconds > self._send_timeout:
            self.cut_off()

    def cut_off(self) -> None:
        """Cancels the stream."""
        self._results.cut_off()
