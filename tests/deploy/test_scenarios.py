"""What README and docs/getting-started.md tell to type, on a machine without docker: the make
targets, people at terminals, a broker that is lost, and more servers and partitions meanwhile."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGINT, SIGKILL

import pytest

from .compose import ROOT
from .conftest import Behind
from brokers import free_ports
from terminal import Terminal

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

WAIT = 120
GREETINGS = {
    "alice": "안녕하세요! Alice입니다.",
    "bob": "반갑습니다 Bob이에요!",
    "charlie": "안녕하세요 모두들~ Charlie입니다",
}

At = Callable[..., Terminal]


class Machine:
    """A checkout on a machine without docker, whose brokers are at ports and in a directory of the
    tests' own."""

    def __init__(self, directory: Path, kafka: Path) -> None:
        ports = free_ports(3)
        self.brokers = ",".join(f"localhost:{port}" for port in ports)
        self._kafka = kafka
        self._variables = [
            *(f"PYTHON={sys.executable}", f"VENV={sys.prefix}"),
            f"KAFKA_PORTS={','.join(map(str, ports))}",
            f"KAFKA_DIRECTORY={self._kafka}",
        ]
        docker = directory / "docker"
        docker.write_text("#!/bin/sh\nexit 1\n")
        docker.chmod(0o755)
        self.env = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}

    def make(self, target: str, *variables: str) -> list[str]:
        """The command; what is installed is taken as it is."""
        options = [
            "-C",
            str(ROOT),
            "--no-print-directory",
            "-o",
            "setup.cfg",
            "-o",
            "pyproject.toml",
        ]
        return ["make", *options, target, *self._variables, *variables]

    def made(self, target: str) -> str:
        """What a target says that succeeds."""
        return self._said(self.make(target))

    def chatsvc(self, *arguments: str) -> str:
        """What a command says that succeeds."""
        return self._said([f"{sys.prefix}/bin/chatsvc", *arguments])

    def pids(self) -> list[int]:
        """The processes of the brokers that are up, as `brokers.py status` shows them."""
        program = str(ROOT / "deploy" / "kafka" / "brokers.py")
        command = [sys.executable, program, "status", "--directory", str(self._kafka)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
        return [int(pid) for pid in re.findall(r" up, pid (\d+)$", said.stdout, re.MULTILINE)]

    def _said(self, command: list[str]) -> str:
        answer = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=WAIT, check=False
        )
        assert answer.returncode == 0, f"{' '.join(command)}: {answer.stdout}{answer.stderr}"
        return answer.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, log_directory: Path) -> Iterator[Machine]:
    """`make kafka-up` was typed, and `make kafka-down` is at the end."""
    made = Machine(tmp_path_factory.mktemp("machine"), log_directory / "machine")
    try:
        assert made.made("kafka-up") == f"Kafka is up: {made.brokers}\n"
        yield made
    finally:
        assert made.made("kafka-down") == "Kafka is down.\n"
    assert not made.pids()


@pytest.fixture
def at(machine: Machine) -> Iterator[At]:
    """Types a make command at a terminal of its own, which is closed after the test."""
    with ExitStack() as stack:

        def start(target: str, *variables: str, **env: str) -> Terminal:
            command = machine.make(target, *variables)
            return stack.enter_context(Terminal(command, env={**machine.env, **env}, columns=160))

        yield start


def serve(at: At, machine: Machine) -> tuple[str, Terminal]:
    """The address of a server that `make server` has started, and its terminal."""
    (port,) = free_ports(1)
    env = {"SERVER_PORT": str(port), "CHATSVC_SERVE_METRICS_PORT": "0"}
    terminal = at("server", f"BROKERS={machine.brokers}", **env)
    terminal.expect("Metrics: ", WAIT)
    return f"localhost:{port}", terminal


def join(at: At, name: str, server: str) -> Terminal:
    """The terminal of somebody who has connected by `make client`."""
    terminal = at("client", f"USER={name}", f"SERVER={server}")
    terminal.expect(f"Connected to server as user: {name}", WAIT)
    return terminal


def say(people: dict[str, Terminal], speaker: str, text: str) -> None:
    """Somebody says a line, which all of them see."""
    people[speaker].send_line(text)
    for name, terminal in people.items():
        terminal.expect(f"You: {text}" if name == speaker else f"{speaker}: {text}", WAIT)


def interrupt(server: Terminal) -> None:
    """Ctrl-C: the server ends as it should, and make as by a signal."""
    server.send(b"\x03")
    assert server.wait(WAIT) == -SIGINT
    assert server.output.rstrip().endswith("Stopped"), server.output


def test_three_people_lose_a_broker(machine: Machine, at: At) -> None:
    """They chat at one server, go on when a broker is killed, and when `make kafka-up` has started
    it again. All leave by /quit, and the server by Ctrl-C."""
    address, server = serve(at, machine)
    people = {name: join(at, name, address) for name in GREETINGS}
    for name, text in GREETINGS.items():
        say(people, name, text)
    os.kill(machine.pids()[1], SIGKILL)
    for name in people:
        say(people, name, f"{name} goes on without a broker")
    assert len(machine.pids()) == 2
    assert machine.made("kafka-up") == f"Kafka is up: {machine.brokers}\n"
    assert len(machine.pids()) == 3
    for name in people:
        say(people, name, f"{name} has it back")
    for terminal in people.values():
        said = re.findall(r"^(?:✓|📩).*$", terminal.screen(), re.MULTILINE)
        assert len(said) == 3 * len(people)
        terminal.send_line("/quit")
        assert terminal.wait(WAIT) == 0
    interrupt(server)


def test_ten_clients_under_load(machine: Machine, at: At) -> None:
    """Each sends ten messages a second and is given all of everybody's: nothing is lost."""
    address, _ = serve(at, machine)
    options = ("--connections", "10", "--senders", "10", "--rate", "100", "--duration", "5")
    said = machine.chatsvc("bench", "--server", address, *options)
    assert " 0 lost, 0 duplicated, 0 out of order, " in said


@pytest.mark.root
def test_servers_and_partitions_are_added_meanwhile(
    machine: Machine, at: At, behind: Behind
) -> None:
    """Two people at the first server, one at each that is added, one behind nginx: all see all,
    also when the topic has six partitions instead of two, which thirty writers use."""
    first, _ = serve(at, machine)
    people = {name: join(at, name, first) for name in ("alice", "bob")}
    say(people, "alice", "one server")
    more = [serve(at, machine)[0] for _ in range(2)]
    people |= {
        name: join(at, name, each) for name, each in zip(("carol", "dan"), more, strict=True)
    }
    people["erin"] = join(at, "erin", behind([first, *more]).address)
    for name in people:
        say(people, name, f"{name} sees three servers")
    topics = ("--brokers", machine.brokers)
    assert "chatting: 2 partitions" in machine.chatsvc("topics", "describe", *topics)
    machine.chatsvc("topics", "grow", "--partitions", "6", *topics)
    servers = [option for each in (first, *more) for option in ("--server", each)]
    options = ("--writers", "30", "--readers", "6", "--rate", "60", "--duration", "5")
    assert " 0 lost, 0 duplicated, 0 reordered, " in machine.chatsvc("verify", *servers, *options)
    assert "chatting: 6 partitions" in machine.chatsvc("topics", "describe", *topics)
    for name in people:
        say(people, name, f"{name} sees six partitions")


def test_messages_are_there_after_a_stop(machine: Machine, at: At) -> None:
    """`make kafka-down` keeps them: after `make kafka-up` a new server has what was said."""
    address, server = serve(at, machine)
    machine.chatsvc("send", "alice", "for tomorrow", "--server", address)
    interrupt(server)
    assert machine.made("kafka-down") == "Kafka is down.\n"
    assert machine.made("kafka-down") == "Kafka is not running.\n"
    assert machine.made("kafka-up") == f"Kafka is up: {machine.brokers}\n"
    address, _ = serve(at, machine)
    assert "alice: for tomorrow\n" in machine.chatsvc("history", "--server", address)
