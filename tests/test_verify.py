"""`chatsvc verify` as a user, CI and the fault tests run it: against servers that are real ones."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatsvc import metadata
from chatsvc.pb import chat_pb2, chat_pb2_grpc

from serving import ServeProcess
from terminal import Terminal
from waiting import eventually

COMMAND = [sys.executable, "-m", "chatsvc.cli", "verify"]
RUNNING = "verify: running\n"
WAIT = 120

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a broker in memory, for all tests."""
    process = ServeProcess.started(tmp_path_factory.mktemp("server"))
    yield process.address
    process.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command, which is ended after the test."""
    started = []

    def start_one(*options: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run(*options: str) -> "subprocess.CompletedProcess[str]":
    """The command, to its end, without a traceback."""
    process = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=WAIT)
    assert "Traceback" not in process.stderr
    return process


def running(process: "subprocess.Popen[str]") -> None:
    """Waits until it says that it runs."""
    assert process.stderr is not None
    assert process.stderr.readline() == RUNNING


def nobody() -> str:
    """An address that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("publish", ["rpc", "stream", "both"])
def test_all_is_well(server: str, publish: str) -> None:
    """However it is sent: all acknowledged and seen by each reader, the figures as one object, and
    nothing on stderr but that it runs."""
    options = ("--writers", "2", "--readers", "3", "--rate", "40", "--duration", "1", "--seed", "7")
    process = run("--server", server, *options, "--publish", publish, "--json")
    assert (process.returncode, process.stderr) == (0, RUNNING)
    figures = json.loads(process.stdout)
    assert figures["ok"]
    assert figures["acked"] == figures["sent"] > 0
    assert figures["seen"] == 3 * figures["acked"]
    none = ("refused", "unknown", "lost", "duplicated", "reordered", "phantom")
    assert not any(figures[key] for key in (*none, "gaps", "reconnects", "interrupted"))
    assert figures["violations"] == []
    assert (figures["servers"], figures["seed"], figures["duration"]) == ([server], 7, 1.0)
    for pause in (figures["longest_ack_pause"], figures["longest_delivery_pause"]):
        assert set(pause) == {"seconds", "at"}
    assert figures["longest_ack_pause"]["seconds"] > 0


def test_the_figures_can_be_read(server: str) -> None:
    """Without --json they are some lines."""
    process = run("--server", server, "--rate", "20", "--duration", "1", "--room", "tea")
    assert (process.returncode, process.stderr) == (0, RUNNING)
    assert re.search(r"\b0 lost, 0 duplicated, 0 reordered, 0 phantom, 0 gaps\n", process.stdout)
    assert "room tea, seed " in process.stdout


def test_a_terminal_shows_progress(server: str) -> None:
    """A line on stderr, which is gone at the end."""
    command = [*COMMAND, "--server", server, "--duration", "3"]
    with Terminal(command, env={**os.environ, "TERM": "xterm"}) as terminal:
        terminal.expect("verify: running")
        terminal.expect(" seen, 0 reconnects")
        assert terminal.wait() == 0
        assert " seen, 0 lost" in terminal.screen()
        assert " seen, 0 reconnects" not in terminal.screen()


def test_one_server_of_two_is_enough_to_begin(server: str) -> None:
    """Clients whose first server is away are at the other one."""
    process = run("--server", nobody(), "--server", server, "--duration", "1", "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["acked"] > 0


def test_without_a_server_it_says_so() -> None:
    """In one line."""
    servers = nobody(), nobody()
    process = run("--server", servers[0], "--server", servers[1])
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("Failed to connect to server: connection refused (")
    assert process.stderr.count("\n") == 1
    assert all(each in process.stderr for each in servers)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rate", "-1"), "--rate: must be from 0.01 to 10000, not -1"),
        (("--writers", "0"), "--writers: must be from 1 to 100, not 0"),
        (("--publish", "fax"), "'fax' is not one of"),
        (("--room", "a\nb"), "--room: must not have control or invisible characters"),
        (("--server", "nowhere"), "'nowhere' is not HOST:PORT"),
    ],
)
def test_wrong_options_are_refused_at_once(options: tuple[str, ...], said: str) -> None:
    """In one line, before anything is tried."""
    process = run(*options)
    assert (process.returncode, process.stdout) == (2, "")
    assert said in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sending(server: str, start: Start, number: signal.Signals) -> None:
    """What is under way is waited for, so all that was acknowledged was seen."""
    process = start("--server", server, "--duration", "600", "--json")
    running(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=WAIT)
    assert (process.returncode, err) == (130, "")
    figures = json.loads(out)
    assert figures["interrupted"]
    assert figures["ok"]
    assert figures["acked"] == figures["sent"] > 0
    assert figures["seen"] == 4 * figures["acked"]


def test_a_second_signal_ends_it_at_once(tmp_path: Path, start: Start) -> None:
    """Though outcomes are still waited for."""
    paused = ServeProcess.started(tmp_path)
    try:
        process = start("--server", paused.address, "--duration", "600", "--send-timeout", "3600")
        running(process)
        paused.signal(signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        # Until the first has been taken the second would not be a second one.
        assert eventually(lambda: not _pending(process.pid, signal.SIGINT))
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
    finally:
        paused.close()


def _pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a process to take it."""
    found = re.search(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return bool(int(found[1], 16) >> (number - 1) & 1)


def test_messages_that_are_gone_with_their_broker_are_gaps(tmp_path: Path, start: Start) -> None:
    """After kill -9 of the only server another one is in its place, with a broker of its own: each
    client comes back, each reader is told of a gap, and that is no success."""
    doomed = ServeProcess.started(tmp_path / "doomed")
    port = doomed.address.rpartition(":")[2]
    process = start("--server", doomed.address, "--duration", "5", "--settle", "8", "--json")
    running(process)
    doomed.signal(signal.SIGKILL)
    doomed.close()
    other = ServeProcess(tmp_path / "other", "--port", port, "--metrics-port", "0")
    try:
        out, err = process.communicate(timeout=WAIT)
    finally:
        other.close()
    assert process.returncode == 1
    assert err.startswith("Not all is well: ")
    assert "4 gaps" in err
    figures = json.loads(out)
    assert (figures["gaps"], figures["lost"], figures["phantom"]) == (4, 0, 0)
    assert figures["reconnects"] >= 4 + 4
    assert "reader 3 was told of a gap of unknown size" in figures["violations"]
    assert figures["longest_ack_pause"]["seconds"] > 0.1
    assert figures["longest_ack_pause"]["at"] < 5


def test_what_becomes_of_messages_without_a_server_is_unknown(tmp_path: Path, start: Start) -> None:
    """It is given up in time, and no fault by itself."""
    doomed = ServeProcess.started(tmp_path)
    options = ("--duration", "4", "--send-timeout", "1", "--settle", "1", "--json")
    process = start("--server", doomed.address, *options)
    running(process)
    doomed.signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=WAIT)
    doomed.close()
    figures = json.loads(out)
    assert figures["unknown"] > 0
    assert figures["sent"] == figures["acked"] + figures["unknown"]
    faults = ("lost", "duplicated", "reordered", "phantom", "gaps")
    # What was acknowledged in the last moment may be lost with this broker.
    assert {name for name in faults if figures[name]} <= {"lost"}


class Faulty(chat_pb2_grpc.ChatServicer, chat_pb2_grpc.BroadcastServicer):
    """A server that loses the fourth message, gives out the sixth twice, the eighth after the ninth
    and the tenth altered, and refuses the twelfth but delivers it."""

    def __init__(self) -> None:
        self._streams: list[queue.Queue[chat_pb2.Message]] = []
        self._held: list[chat_pb2.Message] = []

    def Subscribe(  # noqa: N802
        self, requests: Iterator[chat_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[chat_pb2.Delivery]:
        request = next(requests)
        messages: queue.Queue[chat_pb2.Message] = queue.Queue(1_000)
        over = chat_pb2.Message()
        context.add_callback(lambda: messages.put(over))
        if not request.rooms[0].endswith("-writers"):
            self._streams.append(messages)
        context.send_initial_metadata(((metadata.SERVER_ID, "faulty"),))
        while (message := messages.get()) is not over:
            yield chat_pb2.Delivery(messages=[message])

    def BroadcastMessage(  # noqa: N802
        self, request: chat_pb2.Message, context: grpc.ServicerContext
    ) -> chat_pb2.Close:
        number = int(request.message_id.rpartition("-")[2])
        if number == 9:
            request.content += "!"
        if number == 7:
            self._held.append(request)
        elif number != 3:
            self._deliver(request)
        if number == 5:
            self._deliver(request)
        if number == 8:
            self._deliver(self._held.pop())
        if number == 11:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return chat_pb2.Close()

    def _deliver(self, message: chat_pb2.Message) -> None:
        for stream in self._streams:
            stream.put(message)


@pytest.fixture
def faulty() -> Iterator[str]:
    """The address of such a server."""
    servicer = Faulty()
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        chat_pb2_grpc.add_ChatServicer_to_server(servicer, server)
        chat_pb2_grpc.add_BroadcastServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0).wait()


def test_a_faulty_server_is_found_out(faulty: str) -> None:
    """Each fault, at each of the two readers; copies of one message too, which clients hide."""
    options = ("--writers", "1", "--readers", "2", "--publish", "rpc", "--settle", "1")
    process = run("--server", faulty, *options, "--rate", "20", "--duration", "1.5", "--json")
    assert process.returncode == 1
    assert process.stderr == (
        f"{RUNNING}Not all is well: 4 lost, 2 duplicated, 2 reordered, 4 phantom\n"
    )
    figures: dict[str, Any] = json.loads(process.stdout)
    assert not figures["ok"]
    assert figures["refused"] == 1
    said = {
        "misses writer 0 number 3",
        "misses writer 0 number 9",
        "was given writer 0 number 5 2 times",
        "was given writer 0 number 7 after a later one",
        "was given writer 0 number 9, but not as it was sent",
        "was given writer 0 number 11, which was refused",
    }
    assert set(figures["violations"]) == {f"reader {n} {each}" for n in range(2) for each in said}
