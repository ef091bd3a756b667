"""Turns: threads of which one runs at a time, as far as the seed says.

The code under test is synchronous and blocks in a client's stream, so what is to be interleaved has
to be threads. The test's own thread decides whose turn it is; a turn lasts until the thread calls
`pause`, which the simulated streams and the like do, or until so many lines of the core have run.
"""

import sys
import threading
from collections.abc import Callable, Collection
from random import Random
from types import CodeType, FrameType, ModuleType
from typing import Any

PATIENCE_SECONDS = 60.0
"""A turn that takes longer waits for a lock that a thread holds whose turn it is not."""

ODDS = (0.0, 0.01, 0.1)
"""How likely a turn ends before a line of some function; each function has one of these."""
SUSPECTED = (0.3,)
HELD = 0.3
"""How often a thread is then left where it is, for up to HELD_STEPS steps."""
HELD_STEPS = 60
HASTE = 50
"""How often a turn that is to be long goes on where it might end."""

CALLS = 1_000_000
"""More calls than any turn has that comes to an end."""


class Over(BaseException):
    """Raised in a thread that is to do no more, as if its process had been killed."""


class Task:
    """One thread. `ready` tells whether it makes sense to give it a turn."""

    def __init__(self, name: str, run: Callable[["Task"], None]) -> None:
        # Held unless this thread has been given a turn that it has not taken.
        self.turn = threading.Lock()
        self.turn.acquire()
        self.thread = threading.Thread(target=run, args=(self,), name=name, daemon=True)
        self.ready: Callable[[], bool] = always
        self.is_over = False
        self.is_done = False
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return self.thread.name


def always() -> bool:
    """Whether a thread that waits for nothing may go on."""
    return True


class Turns:
    """The threads, and whose turn it is: `current`, None for the test's own.

    A turn may also end between any two lines of `modules`, with some functions often, with others
    seldom or never, as the seed has it; in `suspects` it does so often. But functions that take a
    lock run as a whole.
    """

    def __init__(
        self, chance: Random, modules: Collection[ModuleType], suspects: Collection[ModuleType]
    ) -> None:
        self._chance = chance
        self._files = {each.__file__: ODDS for each in modules}
        self._files |= {each.__file__: SUSPECTED for each in suspects}
        # How likely it is that a turn ends before a line of a function.
        self._odds: dict[CodeType, float] = {}
        self._own_turn = threading.Lock()  # likewise, the test's
        self._own_turn.acquire()
        self._tasks: list[Task] = []
        self.current: Task | None = None
        self.hasty = False
        """Whether a turn goes on where it might end, up to HASTE times."""
        self._haste = 0
        self._calls = 0
        self.moment = 0
        """How many steps there have been; the test counts them."""
        self.given = 0

    def start(self, name: str, run: Callable[[], None]) -> Task:
        """A new thread, which has had no turn yet."""
        task = Task(name, lambda task: self._run(task, run))
        self._tasks.append(task)
        task.thread.start()
        return task

    def give(self, task: Task) -> None:
        """Gives a thread a turn and returns after it. Raises what it has raised."""
        self.given += 1
        self._haste = HASTE
        self._calls = 0
        self.current = task
        task.turn.release()
        if not self._own_turn.acquire(timeout=PATIENCE_SECONDS):
            raise AssertionError(f"{task} waits for something that another thread has")
        self.current = None
        if task.error is not None:
            error, task.error = task.error, None
            raise error

    def pause(self, until: Callable[[], bool] = always) -> None:
        """Ends the turn of the thread that calls it; the next one makes sense once `until` is
        true. Does nothing in the test's own thread."""
        task = self.current
        if task is None:
            return
        if self.hasty and self._haste > 0 and until():
            self._haste -= 1
            return
        task.ready = until
        self._own_turn.release()
        task.turn.acquire()
        if task.is_over:
            raise Over

    def _sooner_or_later(self) -> Callable[[], bool]:
        """Now and then long enough that much happens meanwhile."""
        if self._chance.random() > HELD:
            return always
        moment = self.moment + self._chance.randint(1, HELD_STEPS)
        return lambda: self.hasty or self.moment >= moment

    def end(self, tasks: Collection[Task]) -> None:
        """Ends threads where they are."""
        for task in tasks:
            if not task.is_done:
                task.is_over = True
                self.give(task)
            task.thread.join()
            self._tasks.remove(task)

    def close(self) -> None:
        """Ends all threads."""
        self.end(list(self._tasks))

    def _run(self, task: Task, run: Callable[[], None]) -> None:
        task.turn.acquire()
        try:
            if not task.is_over:
                sys.settrace(self._trace_call)
                run()
        except Over:
            pass
        except BaseException as error:  # whatever it is, `give` raises it in the test
            task.error = error
        finally:
            sys.settrace(None)
            task.is_done = True
            self._own_turn.release()

    def _trace_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._calls += 1
        if self._calls > CALLS:
            raise AssertionError("a turn does not end")
        code = frame.f_code
        odds = self._odds.get(code)
        if odds is None:
            odds = self._odds[code] = self._choose(code)
        return self._trace_line if odds else None

    def _choose(self, code: CodeType) -> float:
        """How likely a turn ends before a line of this function."""
        # Nothing is drawn for others: which of them are called depends on what is cached.
        if code.co_filename not in self._files:
            return 0.0
        # Where a lock is taken, a pause might keep it from all others; so it might in a
        # comprehension, which is a function of its own to Python 3.11.
        whole = "_lock" in code.co_names or not code.co_name.isidentifier()
        return 0.0 if whole else self._chance.choice(self._files[code.co_filename])

    def _trace_line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and self._chance.random() < self._odds[frame.f_code]:
            self.pause(self._sooner_or_later())
        return self._trace_line
