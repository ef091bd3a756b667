"""SenderPool: the few threads that do what may block on a client."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

_log = logging.getLogger(__name__)

STUCK_SECONDS = 0.05
"""A sender whose one send takes longer is replaced while it waits."""
SPARE_PER_STUCK = 8
"""Senders that are started besides for each that is found stuck while items wait: who stops reading
seldom does so alone, and each of them would have to be waited for."""
MAX_SPARE = 64
"""How many of those there are at most at a time."""
TURN_SECONDS = 0.02
"""How long a sender stays with an item while others may wait."""
SLUGGISH_SECONDS = 0.001
"""An item that uses up a turn with sends that take longer on average goes to the slow lane."""
YIELD_SECONDS = 0.02
"""How long a send to one that is behind waits for those that are not."""
PACE_SECONDS = 0.0005
"""How long the fan-out of a message waits at most for items in the slow lane: whatever clients do,
2,000 messages a second are fanned out."""


class Pulse(Protocol):
    """What a drain tells the sender that runs it, and is told by it."""

    @property
    def takes_those_behind(self) -> bool:
        """Whether an item that is behind is to be drained here; else it asks for another turn."""

    def beat(self) -> float:
        """A send begins now, which is returned as monotonic time in seconds."""

    def sent(self, messages: int, fanned_out_at: float) -> None:
        """A batch has been sent."""


class Drainable(Protocol):
    """What a pool drains: a connection's outbox, or the answer to a call."""

    @property
    def is_behind(self) -> bool:
        """Whether it has so much to send that others should not wait for it."""

    def drain(self, pulse: Pulse) -> bool:
        """Sends what waits now and returns whether more has come meanwhile, for another turn.
        May block on the client, may not raise, is never run twice at once."""

    def check_send(self, seconds: float, now: float) -> None:
        """Called from the watchdog while one send of `drain` has been blocked for `seconds`."""

    def cut_off(self) -> None:
        """Called when `drain` has raised: nobody will drain it any more. Does not block."""


class Sender:
    """One thread of a pool and what it is doing; a Pulse."""

    def __init__(self, pool: "SenderPool", name: str) -> None:
        self._pool = pool
        self.item: Drainable | None = None
        self.since = 0.0
        self.messages = 0
        self.beats = 0
        self.replaced = False
        self.thread = threading.Thread(target=pool.run, args=(self,), name=name, daemon=True)

    @property
    def takes_those_behind(self) -> bool:
        return self._pool.takes_those_behind

    def beat(self) -> float:
        self._pool.give_way()
        self.beats += 1
        self.since = time.monotonic()
        return self.since

    def sent(self, messages: int, fanned_out_at: float) -> None:
        # One batch in 64 or so is enough for a histogram, and cheap enough for every stream.
        if (self.messages ^ (self.messages + messages)) >> 6:
            self._pool.observe_delivery(time.monotonic() - fanned_out_at)
        self.messages += messages


class SenderPool:
    """Drains the items that are ready, each by one of `size` threads, oldest first.

    A sender that is blocked in one send for longer than STUCK_SECONDS is replaced by a fresh
    one for as long as it is, so clients that do not read take no thread from those that do.
    There is at most one such thread a stuck item; and while items wait, SPARE_PER_STUCK more for
    as long as they do, since clients that stop reading often do so together: a hundred of them
    hold the others up for two or three looks of the watchdog, not for a hundred. An item that uses
    up its turn because its sends are slow, if not stuck, goes on in the pool `slow_lane`, so that
    a few clients that read a little all the time keep neither senders nor the fan-out from the
    others. One that is behind goes on in the pool `behind_lane`, which hands it back when it no
    longer is, and which sends only while nobody waits here, or after YIELD_SECONDS.

    `observe_delivery` gets the seconds from fan-out to sent, for a sample of the batches.
    """

    def __init__(
        self,
        name: str,
        size: int,
        wake_watchdog: Callable[[], None],
        observe_delivery: Callable[[float], None] = lambda _: None,
        slow_lane: "SenderPool | None" = None,
        behind_lane: "SenderPool | None" = None,
    ) -> None:
        self.observe_delivery = observe_delivery
        self._name = name
        self._slow_lane = slow_lane
        self._behind_lane = behind_lane
        # Of a lane for those behind: the pool that it serves.
        self._served: SenderPool | None = None
        if behind_lane is not None:
            behind_lane._served = self
        self._size = size
        self.wake_watchdog = wake_watchdog
        # Appended and popped without a lock: a deque's own operations are atomic.
        self._ready: deque[Drainable] = deque()
        # Guards the senders and the counts below; `_work` is notified when items are ready or the
        # pool closes, `_turned` when an item is taken while somebody waits for that.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._turned = threading.Condition(self._lock)
        self._senders: set[Sender] = set()
        # How many of them are more than `size`, not counting the replaced ones.
        self._spare = 0
        self._started = 0
        self._retired_messages = 0
        self._awaiting_turn = 0
        self._closing = False

    def start(self) -> None:
        """Starts the threads."""
        with self._lock:
            fresh = [self._new_sender() for _ in range(self._size)]
        for sender in fresh:
            sender.thread.start()

    def _new_sender(self) -> Sender:
        self._started += 1
        sender = Sender(self, f"{self._name}-{self._started}")
        self._senders.add(sender)
        return sender

    def ready(self, items: Collection[Drainable]) -> None:
        """Hands items over to be drained, each of which must not be here already. Does not
        block."""
        if not items:
            return
        self._ready.extend(items)
        with self._lock:
            self._work.notify(len(items))
        self.wake_watchdog()

    def wait_while_behind(
        self, behind: Callable[[Drainable], bool], messages: int, timeout: float
    ) -> bool:
        """Blocks, before `messages` more are fanned out, while the item that has waited longest
        for a sender is `behind`, or one that is being drained, at most `timeout` seconds; for
        items in the slow lane at most PACE_SECONDS a message. Returns whether none is behind but
        in the slow lane.

        This waits for the server's own threads: an item that keeps a sender in one send for
        STUCK_SECONDS, or uses up its turn with slow sends, is not waited for any longer.
        """
        level = self._wait_while_behind(behind, timeout)
        if self._slow_lane is not None:
            self._slow_lane._wait_while_behind(behind, PACE_SECONDS * messages)
        return level

    def _wait_while_behind(self, behind: Callable[[Drainable], bool], timeout: float) -> bool:
        return self._wait_while(lambda: self._any_behind(behind), timeout)

    def _wait_while(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Blocks while something is so that changes when an item is taken or left, at most
        `timeout` seconds. Returns whether it is so no longer."""
        deadline = time.monotonic() + timeout
        with self._lock:
            # Before the look, so that an item that is taken after it is told.
            self._awaiting_turn += 1
            try:
                while condition():
                    left = deadline - time.monotonic()
                    if self._closing or left <= 0:
                        return False
                    self._turned.wait(min(TURN_SECONDS, left))
            finally:
                self._awaiting_turn -= 1
        return True

    @property
    def takes_those_behind(self) -> bool:
        """Whether items that are behind are drained here."""
        return self._behind_lane is None

    def give_way(self) -> None:
        """Of a lane for those behind: waits while others have something to send, at most
        YIELD_SECONDS."""
        if self._served is not None:
            self._served._wait_while(self._served._is_busy, YIELD_SECONDS)

    def _is_busy(self) -> bool:
        """Whether an item waits or is being drained, but for those that are stuck."""
        return bool(self._ready) or any(
            sender.item is not None and not sender.replaced for sender in self._senders
        )

    def _any_behind(self, behind: Callable[[Drainable], bool]) -> bool:
        try:
            if behind(self._ready[0]):
                return True
        except IndexError:  # nothing waits
            pass
        return any(
            sender.item is not None and not sender.replaced and behind(sender.item)
            for sender in self._senders
        )

    def run(self, sender: Sender) -> None:
        """A sender's thread."""
        while not sender.replaced:
            try:
                item = self._ready.popleft()
            except IndexError:
                if not self._wait_for_work():
                    break
                continue
            if self._awaiting_turn:
                with self._lock:
                    self._turned.notify_all()
            began, sender.beats = sender.beat(), 0
            sender.item = item
            # A watchdog that looked between the two had nothing to watch.
            self.wake_watchdog()
            if self._drained(item, sender):
                turn = max(TURN_SECONDS, SLUGGISH_SECONDS * sender.beats)
                self._again(item, sluggish=time.monotonic() - began > turn)
            sender.item = None
            if self._awaiting_turn:
                with self._lock:
                    self._turned.notify_all()
        with self._lock:
            self._senders.discard(sender)
            self._retired_messages += sender.messages
            if self._ready:  # it may have taken a wake-up that was meant for these
                self._work.notify()

    def _again(self, item: Drainable, sluggish: bool) -> None:
        """Lets an item wait for another turn; somebody takes it, at the latest this sender."""
        if self._behind_lane is not None and item.is_behind:
            self._behind_lane.ready([item])
        elif self._served is not None and not item.is_behind:
            self._served.ready([item])
        elif sluggish and self._slow_lane is not None:
            self._slow_lane.ready([item])
        else:
            self._ready.append(item)

    def _drained(self, item: Drainable, sender: Sender) -> bool:
        try:
            return item.drain(sender)
        except Exception:
            # A bug in one stream must not take the thread from all others.
            _log.exception("sending to a client failed")
            item.cut_off()
            return False

    def _wait_for_work(self) -> bool:
        with self._lock:
            while not self._ready:
                if self._closing:
                    return False
                if self._spare:
                    self._spare -= 1
                    return False
                self._work.wait()
        return True

    def check(self, now: float) -> bool:
        """The watchdog's check: replaces stuck senders and tells what they drain."""
        with self._lock:
            senders = list(self._senders)
        busy, replaced = False, 0
        for sender in senders:
            item, seconds = sender.item, now - sender.since
            if item is None:
                continue
            busy = True
            if seconds > STUCK_SECONDS:
                replaced += self._replace(sender)
                item.check_send(seconds, now)
        self._add_spare(min(SPARE_PER_STUCK * replaced, len(self._ready)))
        return busy or bool(self._ready)

    def _replace(self, sender: Sender) -> bool:
        """Starts another one instead, unless that has happened."""
        with self._lock:
            if sender.replaced or self._closing:
                return False
            sender.replaced = self._start_another()
            return sender.replaced

    def _add_spare(self, count: int) -> None:
        with self._lock:
            for _ in range(count):
                if self._closing or self._spare == MAX_SPARE or not self._start_another():
                    return
                self._spare += 1

    def _start_another(self) -> bool:
        fresh = self._new_sender()
        try:
            fresh.thread.start()
        except RuntimeError as error:  # no more threads: a stuck one stays as it is
            _log.warning("A sender could not be started: %s", error)
            self._senders.discard(fresh)
            return False
        return True

    @property
    def threads(self) -> int:
        """How many threads there are, stuck ones included."""
        return len(self._senders)

    @property
    def messages_sent(self) -> int:
        """Messages sent since the start, by all senders."""
        with self._lock:
            return self._retired_messages + sum(sender.messages for sender in self._senders)

    def close(self, timeout: float) -> bool:
        """Lets the senders drain what is ready, ends them and waits at most `timeout` seconds.
        Returns whether all have ended; those that have not are blocked on a client. Idempotent."""
        with self._lock:
            self._closing = True
            self._work.notify_all()
            self._turned.notify_all()
            senders = list(self._senders)
        deadline = time.monotonic() + timeout
        for sender in senders:
            if sender.thread.ident is not None:
                sender.thread.join(max(0.0, deadline - time.monotonic()))
        return not any(sender.thread.is_alive() for sender in senders)
