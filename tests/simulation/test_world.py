"""Servers and clients over one log: whatever happens, each client is given what it was promised."""

import pytest

from simulation.world import World

pytestmark = pytest.mark.simulation


def test_nobody_misses_anything(seed: int) -> None:
    """Each message of a client's rooms comes once and in the order of its partition, whichever
    servers the client was at; what is lost is named; nobody is forgotten; limits hold."""
    World(seed).run()


def test_a_seed_always_does_the_same() -> None:
    """A seed that found something finds it again."""

    def outcome(seed: int) -> list[object]:
        world = World(seed)
        world.run()
        given = [(each.at, each.received) for each in world.subscribers]
        return [world.steps, world.turns.given, given, *world.history]

    assert outcome(3) == outcome(3) != outcome(4)


def test_the_storms_are_worth_it() -> None:
    """What the simulation is for does happen: catching up, gaps, several servers, all at once."""
    worlds = [World(seed) for seed in range(8)]
    for world in worlds:
        world.run()
    subscribers = [each for world in worlds for each in world.subscribers]
    assert sum(each.received for each in subscribers) > 1_000
    assert sum(each.catch_ups for each in subscribers) > 100
    assert sum(each.gaps for each in subscribers) > 5
