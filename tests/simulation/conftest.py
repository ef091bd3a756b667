"""The seeds of a simulation, and a CPU for it."""

import os
from collections.abc import Iterator

import pytest

from simulation import seeds


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", seeds.chosen())


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
