"""`chatsvc serve` as a user meets it: what it prints, what ends it, and what it says when it
cannot start."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatsvc.cli.main import main
from chatsvc.client import ChatClient, Lost, Received, send_once
from chatsvc.config import Config
from chatsvc.errors import KafkaUnreachable

import resources
from serving import ServeProcess
from waiting import eventually


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServeProcess]:
    """A server with an embedded broker that logs everything."""
    process = ServeProcess.started(tmp_path, "--log-level", "debug")
    yield process
    process.close()


def run(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Runs `chatsvc` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "chatsvc.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin", **env},
        check=False,
    )


def test_says_that_it_is_ready_in_the_words_of_the_seed(server: ServeProcess) -> None:
    """The lines that others grep for, in order, once the server can be used."""
    lines = server.stdout.splitlines()
    assert lines[0] == "Embedded broker: messages are kept in memory and are gone at exit"
    assert re.fullmatch(
        r"gRPC Server \(grpc-server-\d{10}-[0-9a-f]{4}\) started at port :\d+", lines[1]
    )
    assert re.fullmatch(r"Kafka Brokers: \[127\.0\.0\.1:\d+\]", lines[2])
    assert lines[3] == "Kafka Topic: chatting"
    assert lines[4] == "Message Processor: Started (embedded)"
    assert re.fullmatch(r"Metrics: http://127\.0\.0\.1:\d+/metrics", lines[5])


def test_logs_in_the_words_of_the_seed(server: ServeProcess) -> None:
    """Who connected, and where a message went, but never what it says."""
    with ChatClient("bob", [server.address]) as bob:
        bob.connect()
        bob.send("a secret")
        assert isinstance(bob.receive(20), Received)
    assert f"User bob connected to server {server.server_id}" in server.stderr
    sent = r"Message sent to Kafka - Topic: chatting, Partition: \d, Offset: \d"
    assert re.search(sent, server.stderr)
    assert "a secret" not in server.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(server: ServeProcess, number: signal.Signals) -> None:
    """SIGINT and SIGTERM: clients are told why, exit 0, nothing but log lines on stderr."""
    with ChatClient("bob", [server.address]) as bob:
        bob.connect()
        server.signal(number)
        lost = bob.receive(20)
        assert isinstance(lost, Lost)
        assert lost.cause == "the server is going away"
        assert server.wait() == 0
    assert server.stdout.splitlines()[-1] == "Stopped"
    assert "Traceback" not in server.stderr


def test_it_keeps_to_one_cpu(server: ServeProcess, tmp_path: Path) -> None:
    """With all its threads, unless it is told not to."""
    assert len(resources.cpus(server.pid)) == 1
    other = ServeProcess.started(tmp_path / "other", "--no-pin-cpu")
    try:
        assert resources.cpus(other.pid) == os.sched_getaffinity(0)
    finally:
        other.close()


def test_a_second_signal_ends_it_at_once(server: ServeProcess) -> None:
    """Whoever does not want to wait for a clean end need not."""
    server.signal(signal.SIGSTOP)  # both signals are there when it goes on
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGINT)
    server.signal(signal.SIGCONT)
    assert server.wait() in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_a_taken_port_is_one_line(server: ServeProcess) -> None:
    """It names the address and what to do, exit 1."""
    port = server.address.split(":")[1]
    answer = run("serve", "--port", port, "--metrics-port", "0")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == (
        f"Cannot listen on 127.0.0.1:{port}: address already in use or not of this machine. "
        "Stop what uses it or choose another with --port (0 takes a free one)\n"
    )


def test_a_taken_metrics_port_is_one_line() -> None:
    """The same for the side port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = run("serve", "--port", "0", "--metrics-port", str(port))
    assert answer.returncode == 1
    assert answer.stderr == (
        f"Cannot listen on 127.0.0.1:{port}: Address already in use. "
        "Stop what uses it or choose another with --metrics-port (0 takes a free one)\n"
    )


def test_no_kafka_is_one_line() -> None:
    """It names the brokers and what to do, exit 1."""
    answer = run("serve", "--port", "0", "--metrics-port", "0", "--brokers", "127.0.0.1:1")
    assert (answer.returncode, answer.stdout) == (1, "")
    lines = answer.stderr.splitlines()
    assert lines[-1].startswith("Cannot reach Kafka at 127.0.0.1:1: ")
    assert "make kafka-up" in lines[-1]
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--prot", "1"), "--port"),
        (("--port", "65536"), "--port"),
        (("--port", "many"), "many"),
        (("--brokers", "localhost"), "localhost"),
        (("--topic", "a topic"), "--topic"),
        (("--topic", "user-connections"), "--connections-topic"),
        (("--max-connections", "0"), "--max-connections"),
        (("--workers", "0"), "'0' is neither a number from 1 to 64 nor auto"),
        (("--workers", "65"), "--workers"),
        (("--workers", "x"), "--workers"),
        (("--workers", "2", "--server-id", "x" * 62), "--server-id"),
        (("--log-level", "loud"), "loud"),
        (("--config", "/nowhere.toml"), "/nowhere.toml"),
        (("more",), "more"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: tuple[str, ...], named: str) -> None:
    """Exit 2 and one line that names what is wrong."""
    answer = run("serve", "--metrics-port", "0", *arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1
    assert named in answer.stderr


class Built(Exception):
    """Ends a command when it has made its settings."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The settings that `serve` makes; it goes no further."""
    configs: list[Config] = []

    class Recorder:
        def __init__(self, config: Config, **_: object) -> None:
            configs.append(config)
            raise KafkaUnreachable(("recorder",), "that is enough")

    monkeypatch.setattr("chatsvc.server.Server", Recorder)
    return configs


def test_the_order_of_precedence(built: list[Config], tmp_path: Path) -> None:
    """Command line, own variable, CHATSVC_ variable, file, default: each beats what follows."""
    file = tmp_path / "chat.toml"
    file.write_text(
        '[serve]\nport = 1\ntopic = "file"\nmax-connections = 11\nmetrics-port = 12\n'
        'brokers = ["one:1", "two:2"]\n'
    )
    env = {
        "SERVER_PORT": "2",
        "CHATSVC_SERVE_PORT": "3",
        "KAFKA_TOPIC": "own",
        "CHATSVC_SERVE_TOPIC": "general",
        "CHATSVC_SERVE_MAX_CONNECTIONS": "13",
    }
    CliRunner().invoke(main, ["serve", "--config", str(file), "--port", "4"], env=env)
    (config,) = built
    assert (config.port, config.topic) == (4, "own")
    assert (config.max_connections, config.metrics_port) == (13, 12)
    assert config.brokers == ("one:1", "two:2")
    assert config.connections_topic == "user-connections"


def test_own_variables(built: list[Config]) -> None:
    """SERVER_PORT, KAFKA_BROKERS and KAFKA_TOPIC, as the seed has them."""
    env = {"SERVER_PORT": "9000", "KAFKA_BROKERS": "one:1, two:2", "KAFKA_TOPIC": "talk"}
    CliRunner().invoke(main, ["serve"], env=env)
    (config,) = built
    assert (config.port, config.brokers, config.topic) == (9_000, ("one:1", "two:2"), "talk")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[serve]\nprot = 1\n", "'prot'"),
        ("[serve\n", "not TOML"),
        ("serve = 1\n", "not a section"),
        ('[serve]\nport = "x"\n', "--port"),
    ],
)
def test_a_wrong_file_is_named(text: str, named: str, tmp_path: Path) -> None:
    """Exit 2 and what is wrong with the file."""
    file = tmp_path / "chat.toml"
    file.write_text(text)
    result = CliRunner().invoke(main, ["serve", "--config", str(file)])
    assert result.exit_code == 2
    assert named in result.stderr


def test_json_logs_are_one_object_a_line(tmp_path: Path) -> None:
    """--log-format json."""
    server = ServeProcess.started(tmp_path, "--log-format", "json", "--log-level", "debug")
    try:
        send_once("bob", "hello", [server.address])
        assert eventually(lambda: "Message sent" in server.stderr)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        lines = [json.loads(line) for line in server.stderr.splitlines()]
    finally:
        server.close()
    assert {"time", "level", "logger", "thread", "message"} <= lines[0].keys()


def test_help_tells_the_order_of_precedence() -> None:
    """--help says where options come from."""
    result = CliRunner().invoke(main, ["serve", "--help"])
    assert result.exit_code == 0
    assert "the command line; its own environment" in " ".join(result.output.split())


def test_version() -> None:
    """--version names the program and its version."""
    assert re.fullmatch(r"chatsvc, version \d+\.\d+\.\d+\n", run("--version").stdout)


def test_send(server: ServeProcess) -> None:
    """`chatsvc send` joins its words, and exits once they are confirmed."""
    with ChatClient("bob", [server.address]) as bob:
        bob.connect()
        answer = run("send", "alice", "--server", server.address, "Hello", "World!")
        assert (answer.returncode, answer.stderr) == (0, "")
        received = bob.receive(20)
        assert isinstance(received, Received)
        assert (received.user, received.content) == ("alice", "Hello World!")


def test_send_to_nobody() -> None:
    """No server: one line, exit 1."""
    answer = run("send", "alice", "--server", "localhost:1", "hello")
    assert answer.returncode == 1
    assert answer.stderr == "Failed to connect to server: connection refused (localhost:1)\n"
