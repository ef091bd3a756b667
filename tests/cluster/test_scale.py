"""A thousand streams at one server: everything arrives, and everything is given back."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatsvc.client import ChatClient
from chatsvc.config import Config

import resources
from brokers import Brokers
from conftest import Measured, Serve
from waiting import eventually

RPC_THREADS = Config().rpc_threads + 4
"""Pools that grow as they are used, and stay: ours, and gRPC's own."""
KAFKA_FILES = 15
"""Connections to brokers that librdkafka opens and closes as it likes."""
CROWD = Path(__file__).parents[1] / "crowd.py"


@contextmanager
def crowd(address: str, streams: int, messages: int) -> Iterator["subprocess.Popen[str]"]:
    """A process with so many streams, all of them registered."""
    command = [sys.executable, str(CROWD), address, str(streams), str(messages), "150"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            yield process
        finally:
            process.kill()


def verdict(process: "subprocess.Popen[str]") -> dict[str, object]:
    """What a crowd says at its end."""
    out, _ = process.communicate(timeout=170)
    result: dict[str, object] = json.loads(out)
    return result


def talk(address: str, messages: int, rate: float, padding: int = 0) -> None:
    """Sends numbered messages with their times and `padding` more characters, `rate` a second."""
    with ChatClient("talker", [address]) as client:
        client.connect()
        began = time.monotonic()
        for number in range(messages):
            client.send(f"{number} {time.time()} " + "x" * padding)
            time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))


@pytest.mark.kafka
def test_a_thousand_streams(brokers: Brokers, serve: Serve, measured: Measured) -> None:
    """1,000 streams receive 20 msg/s for 5 s whole and in order, without a thread each; when they
    leave, threads and files return to base and memory towards it."""
    server = serve(brokers)
    talk(server.address, 5, 20)
    base = resources.of(server.pid)
    with crowd(server.address, 1_000, 100) as listening:
        idle = resources.of(server.pid)
        assert resources.connections(server.address) == 1_000
        began = time.monotonic()
        talk(server.address, 100, 20)
        result = verdict(listening)
        end = resources.of(server.pid)
        seconds = time.monotonic() - began
    measured(f"base {base}; 1,000 idle streams {idle}; after 100,000 deliveries {end}")
    measured(
        f"CPU {100 * (end.cpu_seconds - idle.cpu_seconds) / seconds:.0f} % of a core; {result}"
    )
    assert (result["complete"], result["twice"], result["disorder"]) == (1_000, 0, 0)
    assert idle.threads < base.threads + RPC_THREADS + 10
    assert eventually(lambda: resources.connections(server.address) == 0, 30)
    assert eventually(lambda: resources.of(server.pid).files <= base.files + KAFKA_FILES, 30)
    assert eventually(lambda: resources.of(server.pid).threads <= base.threads + RPC_THREADS, 30)
    # Half of what the streams took, at the least: Python and gRPC keep some for the next ones.
    half = (base.rss_mib + end.rss_mib) / 2
    assert eventually(lambda: resources.of(server.pid).rss_mib < half, 30)
    measured(f"after they have left {resources.of(server.pid)}")
