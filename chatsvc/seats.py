"""Seats: how many streams there may be at once, in one process or in several together."""

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SLOT_BYTES = 8


class Seats:
    """The streams that one server may have at once. Thread-safe; does not block."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Guards the count; held for an addition only.
        self._lock = threading.Lock()
        self._taken = 0

    def take(self) -> bool:
        """Takes a seat. Returns False, and takes none, when all are taken."""
        with self._lock:
            if self._taken >= self.limit:
                return False
            self._taken += 1
            return True

    def give(self) -> None:
        """Gives one back that was taken."""
        with self._lock:
            self._taken -= 1


class SeatTable:
    """A file in memory with a slot for each process: how many seats it has taken.

    Whoever gets the descriptor `fileno` of it opens the file anew, so that its lock belongs to
    that process alone, and the kernel releases it when the process dies. Thread-safe; blocks
    while another process updates a slot.
    """

    def __init__(self, fileno: int) -> None:
        self._fd = os.open(f"/proc/self/fd/{fileno}", os.O_RDWR | os.O_CLOEXEC)
        self._memory = mmap.mmap(self._fd, 0)
        self._slots = memoryview(self._memory).cast("q")
        # Guards the slots among this process's threads; the file's lock, taken inside, does among
        # processes. Both are held for an addition only.
        self._lock = threading.Lock()

    @staticmethod
    def create(slots: int) -> int:
        """A new file with so many slots, all zero. Returns its descriptor, which the caller
        closes."""
        fileno = os.memfd_create("seats", os.MFD_CLOEXEC)
        os.ftruncate(fileno, slots * _SLOT_BYTES)
        return fileno

    def take(self, slot: int, limit: int) -> bool:
        """Adds one to a slot if all slots together stay within the limit."""
        with self._locked():
            if sum(self._slots) >= limit:
                return False
            self._slots[slot] += 1
            return True

    def give(self, slot: int) -> None:
        """Takes one off a slot."""
        with self._locked():
            self._slots[slot] -= 1

    def vacate(self, slot: int) -> None:
        """Frees all seats of a process that is gone."""
        with self._locked():
            self._slots[slot] = 0

    def close(self) -> None:
        """Forgets the file. Call it once, when nobody takes or gives any more."""
        self._slots.release()
        self._memory.close()
        os.close(self._fd)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)


class SharedSeats(Seats):
    """The seats of one of several processes that have `limit` of them together."""

    def __init__(self, limit: int, table: SeatTable, slot: int) -> None:
        super().__init__(limit)
        self._table = table
        self._slot = slot

    def take(self) -> bool:
        return self._table.take(self._slot, self.limit)

    def give(self) -> None:
        self._table.give(self._slot)
