"""Load with a verdict, beside which tests do harm."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from verifying import VerifyProcess

from serving import ServeProcess

Verify = Callable[..., VerifyProcess]


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
