"""Load with a verdict, beside which tests do harm."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from chatsvc.client import send_once

from serving import ServeProcess
from verifying import Verdict, VerifyProcess

Verify = Callable[..., VerifyProcess]

CLIENTS = 8
"""Those of a verify, all of which have a stream."""
STREAMS = "chatsvc_connections_active"
AFTERWARDS = 2
"""Seconds of load after a fault, which has to be seen to be over."""


def address_of(server: ServeProcess | str) -> str:
    return server if isinstance(server, str) else server.address


def load(servers: Iterable[ServeProcess | str]) -> None:
    """Lets the load go on for a while, once each server has taken a message of ours."""
    for server in servers:
        send_once("probe", "0 after the fault", [address_of(server)], timeout=60)
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

    def start(
        servers: Iterable[ServeProcess | str], *options: str, before: Sequence[str] = ()
    ) -> VerifyProcess:
        directory = tmp_path / f"verify-{len(processes)}"
        process = VerifyProcess(directory, map(address_of, servers), *options, before=before)
        processes.append(process)
        return process.running()

    yield start
    for process in processes:
        process.close()
