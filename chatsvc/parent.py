"""What a process that a supervisor has started does beside its work: chatsvc.child's other side."""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from chatsvc import logs
from chatsvc.errors import ChatError
from chatsvc.process import limit_stacks, watch_signals

Report = Callable[[dict[str, Any]], None]
Work = Callable[[dict[str, Any], Report, threading.Event], None]
"""Given its settings, starts something, reports it, waits for the event, and stops it. May raise a
ChatError instead of reporting."""


def run(work: Work, *, until_signal: bool) -> None:
    """Runs `work` until SIGTERM, if `until_signal`, and until nobody holds the other end of stdin
    any more: whoever started this process is dead then. Exits with 1 if `work` raises; the
    supervisor is told why, in one line. Does nothing if there are no settings on stdin.

    Further signals do nothing: a service manager may signal each process, which is no reason to
    stop at once when the supervisor passes its own on.
    """
    limit_stacks()
    stopping = threading.Event()
    watch_signals(stopping.set if until_signal else lambda: None, lambda number: None)
    given, told = _take_pipes()
    line = os.fdopen(given, "rb", closefd=False).readline()
    if not line.endswith(b"\n"):
        return
    settings = json.loads(line)
    logs.configure(settings.pop("log_format"), settings.pop("log_level"))
    _watch(given, stopping)

    def report(fields: dict[str, Any]) -> None:
        try:
            os.write(told, json.dumps(fields).encode() + b"\n")
        except BrokenPipeError:  # nobody is there who would want to know
            stopping.set()

    try:
        work(settings, report, stopping)
    except ChatError as error:
        _fail(report, str(error))
    except Exception as error:  # a fault of ours: the supervisor tells it without a traceback
        _fail(report, f"{type(error).__name__}: {error}")


def _fail(report: Report, cause: str) -> None:
    report({"error": " ".join(cause.split())})
    sys.exit(1)


def _take_pipes() -> tuple[int, int]:
    """Copies of stdin and stdout for us alone. Whatever else reads gets nothing, and what it
    prints goes to stderr."""
    given, told = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return given, told


def _watch(given: int, stopping: threading.Event) -> None:
    def wait() -> None:
        while os.read(given, 1024):
            pass
        stopping.set()

    # It has no other end than the process's, so it must not keep that alive.
    threading.Thread(target=wait, name="parent", daemon=True).start()
