import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from chatsvc.seats import Seats, SeatTable, SharedSeats

LIMIT = 100

TAKE_ALL = """
import sys
from chatsvc.seats import SeatTable, SharedSeats
seats = SharedSeats(int(sys.argv[3]), SeatTable(int(sys.argv[1])), int(sys.argv[2]))
sys.stdin.read(1)
taken = 0
while seats.take():
    taken += 1
print(taken, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def table() -> Iterator[int]:
    """The descriptor of a table for three processes."""
    fileno = SeatTable.create(3)
    yield fileno
    os.close(fileno)


class Taker:
    """A process that takes as many seats as it gets, once it is told to."""

    def __init__(self, table: int, slot: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKE_ALL, str(table), str(slot), str(LIMIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[table],
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def go(self) -> None:
        self._stdin.write(b"!")
        self._stdin.flush()

    def taken(self) -> int:
        return int(self._stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_no_more_than_the_limit() -> None:
    """A seat above the limit is refused until one is given back."""
    seats = Seats(2)
    assert [seats.take() for _ in range(3)] == [True, True, False]
    seats.give()
    assert [seats.take(), seats.take()] == [True, False]


@pytest.mark.parametrize("shared", [False, True])
def test_threads_take_exactly_the_limit(shared: bool, table: int) -> None:
    """However many threads take at once, the limit is what they get."""
    seats = SharedSeats(LIMIT, opened := SeatTable(table), 1) if shared else Seats(LIMIT)
    taken: list[bool] = []
    threads = [
        threading.Thread(target=lambda: taken.extend([seats.take() for _ in range(50)]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken.count(True) == LIMIT
    if shared:
        opened.close()


def test_processes_take_exactly_the_limit(table: int) -> None:
    """However many processes take at once, the limit is what they get together."""
    takers = [Taker(table, slot) for slot in range(3)]
    for taker in takers:
        taker.go()
    assert sum(taker.taken() for taker in takers) == LIMIT
    for taker in takers:
        taker.kill()


def test_a_dead_process_has_no_seats(table: int) -> None:
    """What a killed process had is free once its slot is vacated; others keep theirs."""
    mine = SeatTable(table)
    seats = SharedSeats(LIMIT, mine, 0)
    assert seats.take()
    taker = Taker(table, 1)
    taker.go()
    assert taker.taken() == LIMIT - 1
    taker.kill()
    assert not seats.take()
    mine.vacate(1)
    assert sum(seats.take() for _ in range(LIMIT)) == LIMIT - 1
    mine.close()


def test_a_process_that_dies_with_the_lock_stops_nobody(table: int) -> None:
    """The kernel releases the lock of a process that was killed while it held it, although
    others have the descriptor that it came from."""
    code = (
        "import sys; from chatsvc.seats import SeatTable; import os, fcntl;"
        "table = SeatTable(int(sys.argv[1]));"
        "locked = table._locked(); locked.__enter__(); print('locked', flush=True);"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(table)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[table],
    )
    assert holder.stdout
    assert holder.stdout.readline() == b"locked\n"
    with open(f"/proc/self/fd/{table}", "rb") as probe, pytest.raises(BlockingIOError):
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
    holder.kill()
    holder.communicate()
    opened = SeatTable(table)
    assert opened.take(0, 1)
    opened.close()
