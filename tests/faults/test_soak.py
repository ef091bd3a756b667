"""Random harm, one after the other, for as long as one likes; the same seed does the same again."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from signal import SIGKILL, SIGTERM
from typing import NamedTuple

import pytest

import resources
from .conftest import Verify, all_is_acked, load
from .roles import wait_until_in_sync
from brokers import Brokers, free_ports
from conftest import Measured, Serve
from serving import ServeProcess
from waiting import eventually

_log = logging.getLogger("soak")

SERVERS = 2
WORKERS = 2
DEEDS = (
    *("kill broker", "stop broker", "restart broker"),
    *("kill server", "restart server", "kill worker"),
)


class Harm(NamedTuple):
    """What is done, to which broker or server by its number, and how many seconds it lasts where
    it has to be ended."""

    deed: str
    victim: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.deed} {self.victim}, {self.seconds:.1f} s"


def harms(seed: int) -> Iterator[Harm]:
    """The sequence that a seed stands for; it has no end."""
    chance = random.Random(seed)
    while True:
        deed = chance.choice(DEEDS)
        victim = chance.randrange(3 if deed.endswith("broker") else SERVERS)
        yield Harm(deed, victim, chance.uniform(0.5, 6))


class Scene:
    """Three brokers and the servers over them, to be harmed. `serve` starts a server at a port."""

    def __init__(
        self, brokers: Brokers, topics: list[str], serve: Callable[[int], ServeProcess]
    ) -> None:
        self._brokers = brokers
        self._topics = topics
        self._serve = serve
        # Not such as the system chooses: they have to be free when a server comes back.
        self._ports = free_ports(SERVERS)
        self.servers = [serve(port) for port in self._ports]

    def suffer(self, harm: Harm) -> None:
        """Does it, lets it last, and returns when all is as before."""
        deeds: dict[str, Callable[[Harm], None]] = {
            "kill broker": self._kill_broker,
            "stop broker": self._stop_broker,
            "restart broker": self._restart_broker,
            "kill server": self._kill_server,
            "restart server": self._restart_server,
            "kill worker": self._kill_worker,
        }
        deeds[harm.deed](harm)
        wait_until_in_sync(self._brokers, *self._topics)

    def _kill_broker(self, harm: Harm) -> None:
        self._brokers.kill(harm.victim)
        time.sleep(harm.seconds)
        self._brokers.restart(harm.victim)

    def _stop_broker(self, harm: Harm) -> None:
        self._brokers.pause(harm.victim)
        time.sleep(harm.seconds)
        self._brokers.resume(harm.victim)
        self._brokers.wait_until_registered()

    def _restart_broker(self, harm: Harm) -> None:
        self._brokers.terminate(harm.victim)
        self._brokers.restart(harm.victim)

    def _kill_server(self, harm: Harm) -> None:
        server = self.servers[harm.victim]
        for pid in (server.pid, *resources.children(server.pid)):
            os.kill(pid, SIGKILL)
        server.wait(60)
        time.sleep(harm.seconds)
        self._start_server(harm.victim)

    def _restart_server(self, harm: Harm) -> None:
        self.servers[harm.victim].signal(SIGTERM)
        assert self.servers[harm.victim].wait(60) == 0
        self._start_server(harm.victim)

    def _start_server(self, number: int) -> None:
        self.servers[number] = self._serve(self._ports[number])

    def _kill_worker(self, harm: Harm) -> None:
        server = self.servers[harm.victim]
        worker = min(resources.children(server.pid, "chatsvc.worker"))
        os.kill(worker, SIGKILL)
        up = [f'chatsvc_worker_up{{worker="{each}"}}' for each in range(WORKERS)]
        assert eventually(lambda: worker not in resources.children(server.pid), 60)
        assert eventually(lambda: all(server.metrics().get(each) == 1 for each in up), 60)


@pytest.mark.kafka
def test_nothing_is_lost_in_a_soak(
    brokers: Brokers,
    serve: Serve,
    topic_options: list[str],
    verify: Verify,
    measured: Measured,
    request: pytest.FixtureRequest,
) -> None:
    """Brokers, servers and workers fail at random under load for --soak-seconds: all is acked and
    delivered."""
    seed, seconds = (request.config.getoption(f"--soak-{each}") for each in ("seed", "seconds"))
    scene = Scene(
        brokers,
        [topic_options[1], topic_options[3]],
        lambda port: serve(brokers, "--workers", str(WORKERS), "--port", str(port)),
    )
    wait_until_in_sync(brokers, topic_options[1], topic_options[3])
    running = verify(scene.servers, "--duration", str(10 * seconds))
    began = time.monotonic()
    suffered = 0
    for harm in harms(seed):
        _log.info("%.0f s: %s", time.monotonic() - began, harm)
        scene.suffer(harm)
        suffered += 1
        if time.monotonic() > began + seconds:
            break
    load(scene.servers)
    verdict = all_is_acked(running)
    measured(f"seed {seed}, {suffered} harms in {time.monotonic() - began:.0f} s; {verdict}")
