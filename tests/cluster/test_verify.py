"""The checker over real brokers: what is promised holds while a server dies."""

import json
import subprocess
import sys
from signal import SIGKILL

import pytest

from .conftest import Serve
from brokers import Brokers
from conftest import Measured

pytestmark = pytest.mark.kafka


def test_nothing_is_lost_when_a_server_is_killed(
    brokers: Brokers, serve: Serve, measured: Measured
) -> None:
    """kill -9 of one of two servers: half of the clients go on at the other one, and every reader
    is given all that was acknowledged, once and in order."""
    doomed, other = serve(brokers), serve(brokers)
    servers = ("--server", doomed.address, "--server", other.address)
    command = [sys.executable, "-m", "chatsvc.cli", "verify", *servers, "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "verify: running\n"
        doomed.signal(SIGKILL)
        out, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (0, ""), out
    figures = json.loads(out)
    assert figures["ok"]
    assert figures["seen"] >= 4 * figures["acked"] > 0
    assert figures["reconnects"] >= 2 + 2
    acks, deliveries = figures["longest_ack_pause"], figures["longest_delivery_pause"]
    measured(f"after kill -9 of a server: {acks['seconds']:.1f} s without an ack, ")
    measured(f"after kill -9 of a server: {deliveries['seconds']:.1f} s until a reader goes on")
