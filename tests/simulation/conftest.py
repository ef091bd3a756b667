"""The seeds of a simulation, and a CPU for it."""

import os
from collections.abc import Iterator

import pytest

from simulation.world import SEEDS

USUAL = "0-24"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first, _, last = os.environ.get(SEEDS, USUAL).partition("-")
        metafunc.parametrize("seed", range(int(first), int(last or first) + 1))


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    """Keeps the test's threads on one CPU: they take turns, which another CPU would have to be
    woken for."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)
