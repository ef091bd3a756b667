import logging

import pytest

from chatsvc.memory import LEFT_STREAMS, MemoryTrim


class Streams:
    """How many streams a server has."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        return self.count


def crowd_left(stayed: int = 0) -> tuple[MemoryTrim, Streams]:
    """A trim that has seen a crowd leave at second 100, all but some."""
    streams = Streams()
    trim = MemoryTrim(streams, quiet=5.0)
    streams.count = LEFT_STREAMS + stayed
    assert not trim.check(0.0)
    streams.count = stayed
    assert trim.check(100.0)
    return trim, streams


def test_nothing_to_watch_without_streams() -> None:
    """A server that has had no streams lets the watchdog sleep."""
    assert not MemoryTrim(Streams()).check(1_000.0)


def test_a_few_leaving_are_not_worth_a_trim() -> None:
    """One less than LEFT_STREAMS gone is not waited for."""
    streams = Streams()
    trim = MemoryTrim(streams)
    streams.count = LEFT_STREAMS
    trim.check(0.0)
    streams.count = 1
    assert not trim.check(1_000.0)


def test_memory_is_given_back_once_it_is_quiet() -> None:
    """Watches on for the quiet time after a crowd has left, then trims and has no more to do."""
    trim, _ = crowd_left(stayed=3)
    assert trim.check(104.9)
    assert not trim.check(105.0)


def test_a_change_starts_the_quiet_time_again() -> None:
    """Nothing is trimmed while streams come and go."""
    trim, streams = crowd_left()
    streams.count = 1
    assert trim.check(104.0) is False  # one less than LEFT_STREAMS below the peak
    streams.count = 0
    assert trim.check(104.5)
    assert trim.check(109.4)
    assert not trim.check(109.5)


def test_each_crowd_is_trimmed_once(caplog: pytest.LogCaptureFixture) -> None:
    """After a trim the count starts again from those that are there."""
    caplog.set_level(logging.DEBUG)
    trim, streams = crowd_left()
    assert not trim.check(105.0)
    assert not trim.check(200.0)
    assert len(caplog.messages) == 1
    streams.count = LEFT_STREAMS
    assert not trim.check(300.0)
    streams.count = 0
    assert trim.check(301.0)
    assert not trim.check(306.0)
    assert len(caplog.messages) == 2
