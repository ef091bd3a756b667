"""Load with a verdict, beside which tests do harm."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from verifying import Verdict, VerifyProcess

from chatsvc.client import send_once

from serving import ServeProcess

Verify = Callable[..., VerifyProcess]

AFTERWARDS = 2
"""Seconds of load after a fault, which has to be seen to be over."""


def load(servers: list[ServeProcess]) -> None:
    """Lets the load go on for a while, once each server has taken a message of ours."""
    for server in servers:
        send_once("probe", "after the fault", [server.address], timeout=60)
    time.sleep(AFTERWARDS)


def all_is_acked(verify: VerifyProcess) -> Verdict:
    """The verdict; besides, each message was acked in the end."""
    verdict = verify.finish()
    assert verdict.acked == verdict.sent, verdict.said
    return verdict


@pytest.fixture
def verify(tmp_path: Path) -> Iterator[Verify]:
    """Starts `chatsvc verify` at servers with more options; returns once it runs. It is ended
    after the test."""
    processes: list[VerifyProcess] = []

    def start(servers: list[ServeProcess], *options: str) -> VerifyProcess:
        directory = tmp_path / f"verify-{len(processes)}"
        process = VerifyProcess(directory, [each.address for each in servers], *options)
        processes.append(process)
        return process.running()

    yield start
    for process in processes:
        process.close()
