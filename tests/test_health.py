"""Whether a server takes clients, as `chatsvc health` tells it."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from conftest import StartServer

WAIT = 60


def run(server: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chatsvc.cli", "health", "--server", server, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


@pytest.fixture
def mute() -> Iterator[str]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"localhost:{listener.getsockname()[1]}"


def test_a_server_that_takes_clients(start_server: StartServer) -> None:
    _, listening = start_server()
    result = run(f"localhost:{listening.port}")
    assert (result.returncode, result.stdout, result.stderr) == (0, "SERVING\n", "")


def test_a_server_that_takes_none(start_server: StartServer) -> None:
    """It is there, and says so."""
    server, listening = start_server()
    server.health.leave()
    result = run(f"localhost:{listening.port}")
    assert (result.returncode, result.stdout, result.stderr) == (1, "NOT_SERVING\n", "")


def test_no_server() -> None:
    result = run("localhost:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Failed to connect to server: connection refused (localhost:1)\n"


def test_something_else_at_the_port(mute: str) -> None:
    """It is not waited for for ever."""
    result = run(mute, "--timeout", "0.5")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Failed to connect to server: ")
    assert len(result.stderr.splitlines()) == 1
