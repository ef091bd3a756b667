import logging
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from chatsvc.watchdog import Watchdog

from waiting import eventually


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(interval=0.001)
    yield watchdog
    watchdog.close()


class Watched:
    """Something to watch while `left` is true; counts how often it is looked at."""

    def __init__(self, *, left: bool) -> None:
        self.left = left
        self.checks = 0

    def check(self, now: float) -> bool:
        self.checks += 1
        return self.left


def test_nothing_is_checked_before_a_wake(watchdog: Watchdog) -> None:
    """A watchdog that nobody wakes waits, and can be closed."""
    watched = Watched(left=True)
    watchdog.add([watched.check])
    watchdog.start()
    watchdog.close()
    assert watched.checks == 0


def test_a_wake_checks_until_nothing_is_left(watchdog: Watchdog) -> None:
    """One wake is enough for as long as there is something to watch."""
    watched = Watched(left=True)
    watchdog.add([watched.check])
    watchdog.start()
    watchdog.wake()
    assert eventually(lambda: watched.checks > 5)


def test_it_parks_when_nothing_is_left(watchdog: Watchdog) -> None:
    """Each wake costs one round of checks when there is nothing to watch."""
    watched = Watched(left=False)
    watchdog.add([watched.check])
    watchdog.start()
    for round_number in range(1, 4):
        watchdog.wake()
        assert eventually(lambda expected=round_number: watched.checks >= expected)
        assert watched.checks == round_number


def test_every_check_is_asked(watchdog: Watchdog) -> None:
    """A check that has something to watch does not hide the ones behind it."""
    first, second = Watched(left=True), Watched(left=True)
    watchdog.add([first.check])
    watchdog.add([second.check])
    watchdog.start()
    watchdog.wake()
    assert eventually(lambda: second.checks > 2)


def test_a_wake_during_the_checks_is_not_lost(watchdog: Watchdog) -> None:
    """What begins after its check has looked is seen in the next round."""
    rounds: list[bool] = []
    seen = threading.Event()

    def check(now: float) -> bool:
        rounds.append(True)
        if len(rounds) == 1:
            watchdog.wake()
            return False
        seen.set()
        return False

    watchdog.add([check])
    watchdog.start()
    watchdog.wake()
    assert seen.wait(20)


def test_a_failing_check_is_logged_and_tried_again(
    watchdog: Watchdog, caplog: pytest.LogCaptureFixture
) -> None:
    """A check that raises ends neither the watch nor the other checks."""
    other = Watched(left=False)
    failures: list[bool] = []

    def failing(now: float) -> bool:
        failures.append(True)
        if len(failures) < 3:
            raise RuntimeError("broken")
        return False

    watchdog.add([failing, other.check])
    watchdog.start()
    with caplog.at_level(logging.ERROR):
        watchdog.wake()
        assert eventually(lambda: other.checks == 3)
    assert [record.message for record in caplog.records] == ["a watchdog check failed"] * 2


def test_close_is_idempotent_and_works_before_start() -> None:
    """A watchdog that never started, or is closed already, can be closed."""
    watchdog = Watchdog()
    watchdog.close()
    watchdog.close()


class InterruptedEvent(threading.Event):
    """Runs `interruption` just before it is cleared, and notes who sets it."""

    interruption: Callable[[], None]
    setters: list[threading.Thread]

    def clear(self) -> None:
        self.interruption()
        super().clear()

    def set(self) -> None:
        super().set()
        self.setters.append(threading.current_thread())


def test_a_close_just_before_the_checks_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog does not park when it is closed between its look at that and its checks."""
    events = SimpleNamespace(Event=InterruptedEvent, Thread=threading.Thread)
    monkeypatch.setattr("chatsvc.watchdog.threading", events)
    watchdog = Watchdog(interval=0.001)
    closer = threading.Thread(target=watchdog.close)
    begun = threading.Event()

    def close() -> None:
        if not begun.is_set():
            closer.start()
            begun.set()
            assert eventually(lambda: InterruptedEvent.setters.count(closer) == 2)

    monkeypatch.setattr(InterruptedEvent, "interruption", staticmethod(close), raising=False)
    monkeypatch.setattr(InterruptedEvent, "setters", [], raising=False)
    watchdog.start()
    watchdog.wake()
    assert begun.wait(20)
    closer.join(5)
    missed = closer.is_alive()
    watchdog.wake()  # a watchdog that missed it ends now
    closer.join(20)
    assert not missed


def test_a_close_at_the_wrong_moment_ends_it() -> None:
    """A close that comes between the wait and the clearing of the wake-up is not lost."""
    for _ in range(2_000):
        watchdog = Watchdog(interval=0.0)
        watchdog.start()
        watchdog.wake()
        watchdog.close()
