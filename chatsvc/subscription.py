"""Subscription: a client's side of one stream of Deliveries, and what it says on it."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from chatsvc.link import Link
from chatsvc.pb import chat_pb2

GOING_AWAY = "the server is going away"
SILENT = "nothing was heard of the server for too long"


class Subscription:
    """One call of Subscribe on a link.

    gRPC runs `_requests` in a thread of its own: it says now and then that this client is there,
    notices when the server is not, and ends the stream when the server has asked to. The rest is
    used by one thread, but for `cancel`.

    A heartbeat of the server is answered, and only while it sends messages instead does this side
    speak by itself: a server with many clients that it has just woken is still awake for them.
    """

    def __init__(
        self,
        link: Link,
        request: chat_pb2.SubscribeRequest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._clock = clock
        # Guards all that follows; notified whenever any of it changes.
        self._changed = threading.Condition()
        self._heartbeat_seconds: float | None = None
        self._heard_at = self._clock()
        self._speak_at = math.inf
        self._leave_at: float | None = None
        self._over = False
        self.ended_for = ""
        """Why this side ended the stream; empty if it did not, or was asked to by `cancel`."""
        self.call: Any = link.subscribe(self._requests())
        if not self.call.add_callback(self._note_over):
            self._note_over()

    def begin(self, heartbeat_seconds: float | None) -> None:
        """The stream is registered, and something comes so often at least; None: that is not
        known."""
        with self._changed:
            self._heard_at = self._clock()
            self._heartbeat_seconds = heartbeat_seconds
            if heartbeat_seconds is not None:
                self._speak_at = self._heard_at + heartbeat_seconds
            self._changed.notify_all()

    def hear(self, delivery: chat_pb2.Delivery) -> None:
        """Takes note of what has come. Nothing more is expected until `listen`."""
        with self._changed:
            self._heard_at = math.inf
            if not delivery.messages and self._is_to_speak_soon():
                self._speak_at = self._clock()
                self._changed.notify_all()
            if delivery.HasField("going_away") and self._leave_at is None:
                self._leave_at = self._clock() + delivery.going_away.delay_ms / 1_000
                self._changed.notify_all()

    def listen(self) -> None:
        """What has come is dealt with: the next is waited for."""
        with self._changed:
            self._heard_at = self._clock()

    def cancel(self) -> None:
        """Ends the stream. Thread-safe."""
        self.call.cancel()

    def _note_over(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _requests(self) -> Iterator[chat_pb2.SubscribeRequest]:
        yield self._request
        while self._await_heartbeat():
            yield chat_pb2.SubscribeRequest()

    def _is_to_speak_soon(self) -> bool:
        seconds = self._heartbeat_seconds
        return seconds is not None and self._speak_at - self._clock() < seconds / 2

    def _await_heartbeat(self) -> bool:
        """Waits until it is time to say something; returns False if there is no more use."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._heartbeat_seconds is not None)
            seconds = self._heartbeat_seconds or 0.0
            while not self._over:
                now = self._clock()
                if now - self._heard_at > 2 * seconds:
                    self.ended_for = SILENT
                elif self._leave_at is not None and now >= self._leave_at:
                    self.ended_for = GOING_AWAY
                elif now >= self._speak_at:
                    self._speak_at = now + seconds
                    return True
                else:
                    silent_at = self._heard_at + 2 * seconds
                    leave_at = math.inf if self._leave_at is None else self._leave_at
                    # Looked at again when something was dealt with, at the latest in `seconds`.
                    self._changed.wait(min(self._speak_at, silent_at, leave_at) - now)
                    continue
                break
            over = self._over
        if not over:
            self.call.cancel()
        return False
