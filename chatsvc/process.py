"""What a process that serves sets for itself: its CPU, open files, stacks, what signals do."""

import os
import resource
import signal
import threading
from collections.abc import Callable

OTHER_FILES = 256
"""Open files of a server beside those of its clients."""
THREAD_STACK_BYTES = 256 * 1024
"""Address space for the stack of each Python thread; the default is 8 MiB."""


def limit_stacks() -> None:
    """Gives the threads that start from here on small stacks."""
    threading.stack_size(THREAD_STACK_BYTES)


def pin_cpu(number: int) -> None:
    """Keeps Python's threads, and all that start from here on, on one of the CPUs that this one
    may run on: consecutive numbers are different CPUs as far as there are so many. Does nothing
    where the system has no such call.

    Few threads of ours run at once, for they share the interpreter's lock. On several CPUs each
    hand-over of it wakes a CPU that slept, which costs more than what is done then.
    """
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        for thread in threading.enumerate():
            if thread.native_id is not None:
                os.sched_setaffinity(thread.native_id, {cpus[number % len(cpus)]})


def raise_file_limit(connections: int) -> str | None:
    """Takes as many file descriptors as the system lets this process have; each client is one.
    Returns a warning if they are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < needed:
        return (
            f"only {soft} files may be open, too few for --max-connections {connections}; "
            "raise the limit (ulimit -n)"
        )
    return None


def watch_signals(first: Callable[[], None], again: Callable[[int], None]) -> None:
    """Has `first` called at the first SIGINT or SIGTERM, and `again` with the number of each that
    follows. Both are called in a thread of their own and must not block.

    The signals are blocked, in all threads that start from here on, and waited for by a thread:
    a handler could interrupt the very lock that it needs, and would not run while the main thread
    is in a long call.
    """
    numbers = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def wait() -> None:
        signal.sigwait(numbers)
        first()
        while True:
            again(signal.sigwait(numbers))

    # It has no other end than the process's, so it must not keep that alive.
    threading.Thread(target=wait, name="signals", daemon=True).start()
