"""Seeds: which ones the tests of the simulations run with."""

import os

SEEDS = "SIMULATION_SEEDS"
"""The environment's variable that names others than usual: one, or the first and the last."""
USUAL = "0-24"


def chosen() -> range:
    """The seeds to run with."""
    first, _, last = os.environ.get(SEEDS, USUAL).partition("-")
    return range(int(first), int(last or first) + 1)
