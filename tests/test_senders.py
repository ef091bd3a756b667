import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from chatsvc.senders import (
    MAX_SPARE,
    SPARE_PER_STUCK,
    STUCK_SECONDS,
    YIELD_SECONDS,
    Drainable,
    Pulse,
    SenderPool,
)

from waiting import eventually

MakePool = Callable[..., SenderPool]


def nothing() -> None:
    """Wakes no watchdog: these tests call `check` themselves."""


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """Makes pools that are started, and closed after the test."""
    pools: list[SenderPool] = []

    def make(size: int, wake: Callable[[], None] = nothing, **settings: object) -> SenderPool:
        pools.append(SenderPool("s", size, wake, **settings))  # type: ignore[arg-type]
        pools[-1].start()
        return pools[-1]

    yield make
    for pool in pools:
        assert pool.close(20)


class Item:
    """Is drained at once."""

    is_behind = False

    def __init__(self, messages: int = 0) -> None:
        self.messages = messages
        self.drained = threading.Event()
        self.checks: list[float] = []
        self.is_cut_off = False

    def drain(self, pulse: Pulse) -> bool:
        pulse.beat()
        if self.messages:
            pulse.sent(self.messages, pulse.beat())
        self.drained.set()
        return False

    def check_send(self, seconds: float, now: float) -> None:
        self.checks.append(seconds)

    def cut_off(self) -> None:
        self.is_cut_off = True


class StalledItem(Item):
    """Keeps its sender until it is released."""

    def __init__(self, messages: int = 0) -> None:
        super().__init__(messages)
        self.begun = threading.Event()
        self.released = threading.Event()

    def drain(self, pulse: Pulse) -> bool:
        pulse.beat()
        self.begun.set()
        assert self.released.wait(60)
        return super().drain(pulse)


class Late(float):
    """A time at which, once somebody reckons with it, `happen` happens first."""

    happen: Callable[[], object]

    def __sub__(self, other: float) -> float:
        self.happen()
        return float(self) - other


def later() -> float:
    """A time at which what runs now is stuck."""
    return time.monotonic() + 2 * STUCK_SECONDS


def stalled_in(pool: SenderPool) -> StalledItem:
    """An item that a sender of `pool` is blocked on."""
    item = StalledItem()
    pool.ready([item])
    assert item.begun.wait(20)
    return item


def never(item: Drainable) -> bool:
    """No item is behind."""
    return False


def always(item: Drainable) -> bool:
    """Every item is behind."""
    return True


def test_every_item_is_drained_once(make_pool: MakePool) -> None:
    """Items handed over one by one or many at once are each drained one time."""
    pool = make_pool(3)
    items = [Item(messages=1) for _ in range(100)]
    pool.ready(items[:60])
    for item in items[60:]:
        pool.ready([item])
    assert all(item.drained.wait(20) for item in items)
    assert eventually(lambda: pool.messages_sent == 100)


def test_the_oldest_item_comes_first(make_pool: MakePool) -> None:
    """One sender drains in the order in which items became ready."""
    pool = make_pool(1)
    order: list[int] = []

    class Numbered(Item):
        is_behind = False

        def drain(self, pulse: Pulse) -> bool:
            order.append(self.messages)
            return super().drain(pulse)

    stalled = stalled_in(pool)
    items = [Numbered(number) for number in range(20)]
    pool.ready(items)
    stalled.released.set()
    assert items[-1].drained.wait(20)
    assert order == list(range(20))


def test_no_items_wake_nobody(make_pool: MakePool) -> None:
    """A fan-out that finds nobody resting does not wake the watchdog."""
    wakes: list[bool] = []
    pool = make_pool(1, lambda: wakes.append(True))
    pool.ready([])
    assert wakes == []


def test_a_stuck_sender_is_replaced(make_pool: MakePool) -> None:
    """While an item blocks the only sender, another one drains the rest; then one is left."""
    pool = make_pool(1)
    stalled, waiting = stalled_in(pool), Item()
    pool.ready([waiting])
    assert pool.check(later())
    assert waiting.drained.wait(20)
    assert pool.threads == 2
    stalled.released.set()
    assert eventually(lambda: pool.threads == 1)


def test_a_stuck_sender_is_replaced_once(make_pool: MakePool) -> None:
    """Looking again at a sender that is stuck starts no more threads."""
    pool = make_pool(1)
    stalled = stalled_in(pool)
    for _ in range(3):
        pool.check(later())
    assert pool.threads == 2
    stalled.released.set()


def begun(stalled: list[StalledItem]) -> int:
    return sum(each.begun.is_set() for each in stalled)


def test_many_that_are_stuck_together_hold_nobody_up_for_long(make_pool: MakePool) -> None:
    """Each look finds many times as many as the one before, so fifty are passed by in two. All
    threads but one end when there is nothing to do."""
    pool = make_pool(1)
    stalled, waiting = [StalledItem() for _ in range(50)], Item()
    pool.ready([*stalled, waiting])
    for passed_by in (1, 1 + 1 + SPARE_PER_STUCK):
        assert eventually(lambda passed_by=passed_by: begun(stalled) == passed_by)
        assert not waiting.drained.is_set()
        pool.check(later())
    assert waiting.drained.wait(20)
    for each in stalled:
        each.released.set()
    assert eventually(lambda: pool.threads == 1)
    pool.ready([again := Item()])
    assert again.drained.wait(20)


def test_spare_senders_are_bounded(make_pool: MakePool) -> None:
    """However many are stuck and wait, there are MAX_SPARE besides one for each stuck one."""
    pool = make_pool(1)
    stalled = [StalledItem() for _ in range(2 * MAX_SPARE)]
    pool.ready(stalled)
    for passed_by in (1, 1 + 1 + SPARE_PER_STUCK):
        assert eventually(lambda passed_by=passed_by: begun(stalled) == passed_by)
        pool.check(later())
    replaced = 1 + 1 + SPARE_PER_STUCK
    assert pool.threads == replaced + 1 + MAX_SPARE
    assert eventually(lambda: begun(stalled) == pool.threads)
    for each in stalled:
        each.released.set()
    assert eventually(lambda: pool.threads == 1)


def test_a_busy_sender_is_not_replaced(make_pool: MakePool) -> None:
    """A send that has just begun keeps its sender, and its item is not asked."""
    pool = make_pool(1)
    stalled = stalled_in(pool)
    assert pool.check(time.monotonic())
    assert pool.threads == 1
    assert stalled.checks == []
    stalled.released.set()


def test_a_stuck_item_is_told_for_how_long(make_pool: MakePool) -> None:
    """Each check tells a stuck item how long its send has been blocked, and no other item."""
    pool = make_pool(2)
    stalled, idle = stalled_in(pool), Item()
    pool.ready([idle])
    assert idle.drained.wait(20)
    assert eventually(lambda: pool.check(later()))
    assert stalled.checks[0] > STUCK_SECONDS
    assert idle.checks == []
    stalled.released.set()


def test_an_idle_pool_has_nothing_to_watch(make_pool: MakePool) -> None:
    """The watchdog may park once everything has been drained."""
    pool = make_pool(2)
    item = Item()
    pool.ready([item])
    assert item.drained.wait(20)
    assert eventually(lambda: not pool.check(later()))


def test_what_waits_is_watched(make_pool: MakePool) -> None:
    """The watchdog does not park while items wait for a sender."""
    pool = SenderPool("s", 1, nothing)
    pool.ready([Item()])
    assert pool.check(time.monotonic())


def test_a_sender_wakes_the_watchdog_itself(make_pool: MakePool) -> None:
    """A watchdog that looked between an item's being taken and its being seen as drained is
    woken again: the sender tells once the item can be seen."""
    seen: list[tuple[str, bool]] = []

    def wake() -> None:
        seen.append((threading.current_thread().name, pool.check(0.0)))

    pool = SenderPool("s", 1, wake)
    pool.start()
    stalled = stalled_in(pool)
    try:
        assert ("s-1", True) in seen
    finally:
        stalled.released.set()
        pool.close(20)


def test_a_replaced_sender_leaves_no_item_behind(make_pool: MakePool) -> None:
    """A sender that is replaced just after it got free passes on the wake-up that it gets."""
    pool = make_pool(1)
    stalled = stalled_in(pool)
    late = Late(later())

    def get_free() -> None:
        stalled.released.set()
        assert eventually(lambda: not pool.check(0.0))
        nudge = Item()
        pool.ready([nudge])
        assert nudge.drained.wait(20)

    late.happen = get_free
    pool.check(late)
    for _ in range(5):
        item = Item()
        pool.ready([item])
        assert item.drained.wait(20)


def test_a_pool_survives_a_thread_that_cannot_start(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no more threads, a stuck sender comes back to the pool."""
    pool = make_pool(1)
    stalled, after = stalled_in(pool), Item()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert pool.check(later())
    stalled.released.set()
    pool.ready([after])
    assert after.drained.wait(20)


def test_a_drain_that_raises_costs_no_sender(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in one item is logged, and its sender goes on with the next."""
    pool = make_pool(1)

    class BrokenItem(Item):
        is_behind = False

        def drain(self, pulse: Pulse) -> bool:
            raise RuntimeError("broken")

    item, broken = Item(), BrokenItem()
    with caplog.at_level(logging.ERROR):
        pool.ready([broken, item])
        assert item.drained.wait(20)
    assert broken.is_cut_off
    assert [record.message for record in caplog.records] == ["sending to a client failed"]


def test_messages_of_senders_that_ended_are_counted(make_pool: MakePool) -> None:
    """What a replaced sender has sent stays in the count."""
    pool = make_pool(1)
    stalled = StalledItem(messages=5)
    pool.ready([stalled])
    assert stalled.begun.wait(20)
    pool.check(later())
    stalled.released.set()
    assert eventually(lambda: pool.threads == 1)
    assert pool.messages_sent == 5


def test_a_sample_of_deliveries_is_observed(make_pool: MakePool) -> None:
    """The time to deliver is observed once for about every 64 messages."""
    observed: list[float] = []
    pool = make_pool(1, observe_delivery=observed.append)
    pool.ready([Item(messages=1) for _ in range(640)])
    assert eventually(lambda: pool.messages_sent == 640)
    assert len(observed) == 10
    assert all(seconds >= 0 for seconds in observed)


def test_nobody_waits_while_nothing_is_behind(make_pool: MakePool) -> None:
    """Neither an empty queue nor an item that keeps up makes the fan-out wait."""
    pool = make_pool(1)
    assert pool.wait_while_behind(always, 1, 20)
    stalled = stalled_in(pool)
    pool.ready([Item()])
    assert pool.wait_while_behind(never, 1, 20)
    stalled.released.set()


def test_waiting_ends_when_the_item_is_taken(make_pool: MakePool) -> None:
    """The fan-out goes on once the item that was behind has got a sender."""
    pool = make_pool(1)
    stalled, behind = stalled_in(pool), Item()
    pool.ready([behind])

    def is_behind(item: Drainable) -> bool:
        stalled.released.set()
        return item is behind

    assert pool.wait_while_behind(is_behind, 1, 20)
    assert behind.drained.wait(20)


def test_waiting_ends_when_the_item_is_taken_meanwhile(make_pool: MakePool) -> None:
    """An item that is taken between the look at it and the wait is not waited for."""
    pool = make_pool(1)
    stalled, behind = stalled_in(pool), Item()
    pool.ready([behind])

    def is_behind(item: Drainable) -> bool:
        if item is behind:
            stalled.released.set()
            behind.drained.wait(0.5)  # until then the sender may come as far as it can
        return item is behind

    assert pool.wait_while_behind(is_behind, 1, 20)


def test_waiting_ends_at_its_timeout(make_pool: MakePool) -> None:
    """The fan-out does not wait for ever for senders that do not come."""
    pool = make_pool(1)
    stalled = stalled_in(pool)
    pool.ready([Item()])
    assert not pool.wait_while_behind(always, 1, 0.01)
    stalled.released.set()


def test_waiting_ends_when_the_pool_closes(make_pool: MakePool) -> None:
    """Closing wakes who waits for a sender."""
    pool = make_pool(1)
    stalled = stalled_in(pool)
    pool.ready([Item()])
    waiting = threading.Event()
    outcomes: list[bool] = []

    def is_behind(item: Drainable) -> bool:
        waiting.set()
        return True

    waiter = threading.Thread(
        target=lambda: outcomes.append(pool.wait_while_behind(is_behind, 1, 600))
    )
    waiter.start()
    assert waiting.wait(20)
    assert not pool.close(0)
    waiter.join(20)
    assert outcomes == [False]
    stalled.released.set()


def test_close_drains_what_is_ready(make_pool: MakePool) -> None:
    """What was handed over before the close is drained before the senders end."""
    pool = make_pool(2)
    stalled = [stalled_in(pool), stalled_in(pool)]
    items = [Item() for _ in range(50)]
    pool.ready(items)
    assert not pool.close(0)
    for each in stalled:
        each.released.set()
    assert pool.close(20)
    assert all(item.drained.is_set() for item in items)
    assert pool.threads == 0


def test_close_is_idempotent_and_works_before_start() -> None:
    """A pool that never started, or is closed already, can be closed."""
    pool = SenderPool("s", 2, nothing)
    assert pool.close(0)
    assert pool.close(0)


class TurnItem(Item):
    """Takes two turns, and `seconds` for the one send of each; notes which threads drain it."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.threads: list[str] = []

    def drain(self, pulse: Pulse) -> bool:
        self.threads.append(threading.current_thread().name)
        pulse.beat()
        threading.Event().wait(self._seconds)
        if len(self.threads) == 2:
            self.drained.set()
        return len(self.threads) < 2


def test_slow_items_go_on_in_their_own_lane(make_pool: MakePool) -> None:
    """An item whose sends are slow takes its next turns from other threads than the rest."""
    slow_lane = SenderPool("lane", 1, nothing)
    slow_lane.start()
    try:
        pool = make_pool(1, slow_lane=slow_lane)
        slow = TurnItem(0.02)
        pool.ready([slow])
        assert slow.drained.wait(20)
        assert slow.threads == ["s-1", "lane-1"]
    finally:
        assert slow_lane.close(20)


class BehindItem(Item):
    """Is behind for some turns; notes which threads drain it."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self._turns = turns
        self.threads: list[str] = []

    @property
    def is_behind(self) -> bool:  # type: ignore[override]
        return self._turns > 0

    def drain(self, pulse: Pulse) -> bool:
        self.threads.append(threading.current_thread().name.rpartition("-")[0])
        if self.is_behind and not pulse.takes_those_behind:
            return True
        pulse.beat()
        self._turns -= 1
        if self._turns < 0:
            self.drained.set()
        return self._turns >= 0


def test_those_behind_go_on_in_their_own_lane(make_pool: MakePool) -> None:
    """And come back when they no longer are."""
    lane = SenderPool("lane", 1, nothing)
    lane.start()
    try:
        pool = make_pool(1, behind_lane=lane)
        item = BehindItem(3)
        pool.ready([item])
        assert item.drained.wait(20)
        assert item.threads == ["s", "lane", "lane", "lane", "s"]
    finally:
        assert lane.close(20)


def test_those_behind_give_way(make_pool: MakePool) -> None:
    """Nothing is sent to them while an item of the others is being drained, for a while; then
    something is."""
    lane = SenderPool("lane", 1, nothing)
    lane.start()
    try:
        pool = make_pool(1, behind_lane=lane)
        busy = StalledItem()
        pool.ready([busy])
        assert busy.begun.wait(20)
        item = BehindItem(1)
        began = time.monotonic()
        lane.ready([item])
        assert eventually(lambda: not item.is_behind)
        assert time.monotonic() - began >= YIELD_SECONDS
        busy.released.set()
        assert item.drained.wait(20)
    finally:
        assert lane.close(20)
