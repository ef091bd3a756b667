"""`chatsvc history`, and how `join` begins, as their users run them."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from chatsvc.cli.conversation import line_of
from chatsvc.client import ChatClient, Received

from conftest import StartServer
from terminal import Terminal

CHATSVC = [sys.executable, "-m", "chatsvc.cli"]
WAIT = 60


@pytest.fixture
def address(start_server: StartServer) -> Iterator[str]:
    """A server at which alice has said 30 lines, and one in another room."""
    _, listening = start_server()
    where = f"localhost:{listening.port}"
    with ChatClient("alice", [where]) as alice:
        alice.connect()
        for number in range(30):
            alice.send(f"line {number}")
        alice.send("\x1b[2Jtea", room="tea")
        for _ in range(30):
            assert isinstance(alice.receive(WAIT), Received)
        yield where


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHATSVC, *arguments], capture_output=True, text=True, timeout=WAIT, check=False
    )


def contents(output: str) -> list[str]:
    return [line.partition("alice: ")[2] for line in output.splitlines()]


def lines(first: int, last: int) -> list[str]:
    return [f"line {number}" for number in range(first, last)]


def test_the_last_messages_are_printed(address: str) -> None:
    """Twenty if nothing else is said, oldest first."""
    result = run("history", "--server", address)
    assert result.returncode == 0
    assert result.stderr == ""
    assert contents(result.stdout) == lines(10, 30)
    assert contents(run("history", "--server", address, "--last", "3").stdout) == lines(27, 30)
    assert run("history", "--server", address, "--last", "0").stdout == ""


def test_all_from_a_time_on(address: str) -> None:
    """Ago, or as a time; nothing if there was nothing."""
    assert contents(run("history", "--server", address, "--since", "10m").stdout) == lines(0, 30)
    time = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    assert contents(run("history", "--server", address, "--since", time).stdout) == lines(0, 30)
    later = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    assert run("history", "--server", address, "--since", later).stdout == ""


def test_a_room_as_json(address: str) -> None:
    """One object a line; what a terminal would obey is escaped."""
    result = run("history", "--server", address, "--room", "tea", "--json")
    (message,) = map(json.loads, result.stdout.splitlines())
    assert (message["user"], message["content"], message["room"]) == ("alice", "\x1b[2Jtea", "tea")
    assert message["earlier"] is True
    assert "\x1b" not in run("history", "--server", address, "--room", "tea").stdout


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--since", "yesterday"), "'yesterday' is neither like 90s, 10m, 2h or 7d nor like"),
        (("--since", "10m", "--last", "5"), "--last and --since exclude each other"),
        (("--room", "a\nb"), "--room: must not have control or invisible characters (U+000A)"),
        (("--last", "-1"), "-1 is not in the range"),
    ],
)
def test_a_wrong_option_is_one_line(options: tuple[str, ...], problem: str) -> None:
    result = run("history", *options)
    assert result.returncode == 2
    assert problem in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_no_server_is_one_line() -> None:
    result = run("history", "--server", "localhost:1")
    assert result.returncode == 1
    assert result.stderr == "Failed to connect to server: connection refused (localhost:1)\n"


def test_follow_goes_on_with_what_is_new(address: str) -> None:
    """Behind the last page without a gap, until Ctrl-C."""
    command = [*CHATSVC, "history", "--server", address, "--last", "2", "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        with ChatClient("bob", [address]) as bob:
            bob.connect()
            seen = [json.loads(following.stdout.readline())["content"] for _ in range(2)]
            assert seen == lines(28, 30)
            bob.send("new")
            assert json.loads(following.stdout.readline())["content"] == "new"
        following.send_signal(signal.SIGINT)
        assert following.wait(WAIT) == 0


def test_join_begins_with_the_last_twenty(address: str) -> None:
    """At a terminal; in a pipe it begins with nothing, unless it is asked to."""
    terminal = Terminal([*CHATSVC, "join", "bob", "--server", address])
    try:
        terminal.expect_screen("alice: line 29")
        terminal.expect_screen("alice: line 10")
        assert "line 9" not in terminal.screen()
    finally:
        terminal.close()
    joined = subprocess.run(
        [*CHATSVC, "join", "bob", "--server", address, "--last", "2"],
        input="hello\n",
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=True,
    )
    assert [line.partition(": ")[2] for line in joined.stdout.splitlines()[1:]] == [
        "line 28",
        "line 29",
        "hello",
    ]


def test_another_day_is_told_with_the_time() -> None:
    """Of what was said before; what comes now is of today."""
    then = datetime(2024, 1, 19, 11, 15, 30, tzinfo=UTC)
    message = Received("alice", "hi", then, "1", own=False, earlier=True)
    assert "[2024-01-" in "".join(text for _, text in line_of(message, "bob"))
    live = message._replace(earlier=False)
    assert "2024" not in "".join(text for _, text in line_of(live, "bob"))
