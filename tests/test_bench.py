"""`chatsvc bench` as a user runs it: a server and the bench's processes are real ones."""

import dataclasses
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from chatsvc import metadata
from chatsvc.bench.chart import draw
from chatsvc.bench.crew import Crew
from chatsvc.bench.figures import Figures, Second, json_of, table_of, text_of
from chatsvc.bench.run import Run
from chatsvc.bench.workload import Mark, Workload
from chatsvc.errors import BenchFailed
from chatsvc.pb import chat_pb2, chat_pb2_grpc

from serving import ServeProcess
from terminal import Terminal
from waiting import eventually

COMMAND = [sys.executable, "-m", "chatsvc.cli", "bench"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A server with a broker in memory, for all tests."""
    process = ServeProcess.started(tmp_path_factory.mktemp("server"))
    yield process
    process.close()


def run(server: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """The command, to its end; it has not left a process behind, nor shown a traceback."""
    process = subprocess.run(
        [*COMMAND, "--server", server, *options], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in process.stderr
    assert not processes()
    return process


def measured(server: str, *options: str) -> dict[str, Any]:
    """The figures of a run in which all went well."""
    process = run(server, "--json", *options)
    assert process.returncode == 0, process.stderr
    figures: dict[str, Any] = json.loads(process.stdout)
    return figures


def processes() -> list[psutil.Process]:
    """The bench's processes of this test's session that run."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("chatsvc.bench" in argument for argument in process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has just ended
            continue
    return found


def check_complete(figures: dict[str, Any], due: int, receivers: float) -> None:
    """All that was sent arrived once, in order, at so many receivers each."""
    assert figures["due"] == due == figures["sent"] + figures["not_sent"]
    assert figures["acked"] == figures["sent"] > 0
    assert figures["delivered"] == figures["expected"]
    assert figures["expected"] == pytest.approx(figures["sent"] * receivers)
    broken = ("lost", "duplicated", "out_of_order", "misrouted", "refused", "unknown", "reconnects")
    assert not any(figures[key] for key in broken)
    assert sum(second["deliveries"] for second in figures["seconds"]) == figures["delivered"]
    assert 0 < figures["publish_p50_ms"] <= figures["publish_p99_ms"]
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p99_ms"] <= figures["latency_max_ms"]


def links(path: Path) -> list[str]:
    """What the parts of an SVG refer to."""
    return [
        value
        for each in ET.parse(path).getroot().iter()
        for name, value in each.items()
        if name.endswith(("href", "src"))
    ]


@pytest.mark.parametrize("publish", ["rpc", "stream"])
def test_nothing_is_lost(server: ServeProcess, publish: str) -> None:
    """Twenty receivers in two processes are given all, however it is sent."""
    options = ("--connections", "20", "--processes", "2", "--rate", "60", "--duration", "1")
    figures = measured(server.address, *options, "--publish", publish)
    check_complete(figures, due=60, receivers=20)
    assert figures["server_peak_rss_bytes"] > 20 * 2**20
    assert figures["server_cpu_percent"] > 0
    assert not figures["interrupted"]


def test_rooms_have_their_own_messages(server: ServeProcess) -> None:
    """Of four receivers two are in the first of three rooms, so some messages have two."""
    options = ("--connections", "4", "--rooms", "3", "--rate", "60", "--duration", "1")
    figures = measured(server.address, *options, "--size", "30")
    receivers = figures["expected"] / figures["sent"]
    assert 1 < receivers < 2
    check_complete(figures, due=60, receivers=receivers)


def test_the_figures_can_be_read(server: ServeProcess) -> None:
    """Without --json they are text, and nothing is on stderr."""
    process = run(server.address, "--connections", "2", "--rate", "5", "--duration", "1")
    assert process.returncode == 0, process.stderr
    assert "messages/s of 100 bytes for 1 s by 4 senders (rpc) in 1 room at" in process.stdout
    assert "0 lost, 0 duplicated, 0 out of order" in process.stdout


def test_more_than_can_be_sent_is_a_warning(server: ServeProcess) -> None:
    """What was due and not sent is told, and is no loss."""
    options = ("--connections", "2", "--senders", "1", "--rate", "100000", "--duration", "0.5")
    process = run(server.address, *options, "--json")
    assert process.returncode == 0, process.stderr
    check_complete(json.loads(process.stdout), due=50_000, receivers=2)
    assert " of 50,000 due messages were sent: the rate was not kept\n" in process.stderr
    assert process.stderr.startswith("Warning: ")


def texts(path: Path) -> list[str]:
    return [str(each.text) for each in ET.parse(path).getroot().iter(f"{SVG}text")]


def test_one_run_is_drawn_over_time(server: ServeProcess, tmp_path: Path) -> None:
    """Its percentiles and deliveries, in an SVG that needs nothing from elsewhere."""
    plot = tmp_path / "one.svg"
    options = ("--connections", "2", "--rate", "10", "--duration", "2", "--plot", str(plot))
    assert run(server.address, *options).returncode == 0
    assert {"P50", "P95", "P99", "deliveries/s", "second"} <= set(texts(plot))
    assert not [value for value in links(plot) if "//" in value]


def test_several_runs_are_a_table_and_a_chart(server: ServeProcess, tmp_path: Path) -> None:
    """A row, and a place on the x axis, for each number of connections."""
    plot = tmp_path / "all.svg"
    options = ("--connections", "1,20", "--rate", "10", "--duration", "1", "--plot", str(plot))
    process = run(server.address, *options)
    assert process.returncode == 0, process.stderr
    _, head, *rows = process.stdout.splitlines()
    assert head.split()[:4] == ["connections", "sent", "delivered", "lost"]
    assert [row.split()[0] for row in rows] == ["1", "20"]
    assert {"P50", "P95", "P99", "connections", "1", "20"} <= set(texts(plot))


# When something is wrong


def test_a_server_that_is_away_is_told() -> None:
    """In one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    process = run(address, "--connections", "20")
    assert process.returncode == 1
    assert process.stderr == f"Failed to connect to server: connection refused ({address})\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", "3"), "--size: must be from 30 to 4096, not 3"),
        (("--connections", "10,0"), "--connections: must be from 1 to 100000, not 0"),
        (("--connections", "ten"), "'ten' is not a number"),
        (("--processes", "0"), "must be at least 1"),
        (("--plot", "/nonexistent/x.svg"), "/nonexistent/x.svg cannot be written"),
    ],
)
def test_wrong_options_are_refused_at_once(options: tuple[str, ...], said: str) -> None:
    """In one line, before anything is tried: there is no such server."""
    process = run("localhost:1", *options)
    assert process.returncode == 2
    assert said in process.stderr
    assert process.stderr.count("\n") == 1
    assert not process.stdout


class Faulty(chat_pb2_grpc.ChatServicer, chat_pb2_grpc.BroadcastServicer):
    """A server that acknowledges all messages and loses the fourth, gives out the sixth twice, the
    eighth after the ninth, and the tenth in another room."""

    def __init__(self) -> None:
        self._streams: list[queue.Queue[chat_pb2.Message]] = []
        self._held: list[chat_pb2.Message] = []

    def Subscribe(  # noqa: N802
        self, requests: Iterator[chat_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[chat_pb2.Delivery]:
        messages: queue.Queue[chat_pb2.Message] = queue.Queue(1_000)
        over = chat_pb2.Message()
        context.add_callback(lambda: messages.put(over))
        request = next(requests)
        if not request.user.id.partition("-s")[2].isdecimal():  # a receiver's
            self._streams.append(messages)
        context.send_initial_metadata(((metadata.SERVER_ID, "faulty"),))
        while (message := messages.get()) is not over:
            yield chat_pb2.Delivery(messages=[message])

    def BroadcastMessage(  # noqa: N802
        self, request: chat_pb2.Message, context: grpc.ServicerContext
    ) -> chat_pb2.Close:
        sequence = Mark.read(request.content).sequence
        if sequence == 9:
            request.room = "another"
        if sequence == 7:
            self._held.append(request)
        elif sequence != 3:
            self._deliver(request)
        if sequence == 5:
            copy = chat_pb2.Message()
            copy.CopyFrom(request)
            copy.message_id = "another"
            self._deliver(copy)
        if sequence == 8:
            self._deliver(self._held.pop())
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
    """Each fault, at each of the two receivers, and the command fails."""
    options = ("--connections", "2", "--senders", "1", "--rate", "20", "--duration", "1")
    process = run(faulty, *options, "--timeout", "1", "--json")
    assert process.returncode == 1
    assert process.stderr.endswith(
        "Not all is well: 4 lost, 2 duplicated, 2 out of order, 2 of another room\n"
    )
    figures = json.loads(process.stdout)
    faults = ("lost", "duplicated", "out_of_order", "misrouted")
    assert [figures[fault] for fault in faults] == [4, 2, 2, 2]
    assert figures["delivered"] == figures["expected"] - 4


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
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


def test_ctrl_c_stops_it(server: ServeProcess, start: Callable[..., Any]) -> None:
    """In the middle of a long run: the counts so far, and no process is left."""
    options = ("--connections", "4", "--rate", "50", "--duration", "600")
    process = start("--server", server.address, *options, "--json")
    sending = lambda: any("chatsvc.bench.senders" in each.cmdline() for each in processes())  # noqa: E731
    assert eventually(sending)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    figures = json.loads(out)
    assert figures["interrupted"]
    assert figures["due"] == 30_000 == figures["sent"] + figures["not_sent"]
    assert not processes()


def test_a_killed_bench_takes_its_processes_along(
    server: ServeProcess, start: Callable[..., Any]
) -> None:
    """They have lost whom they work for."""
    process = start("--server", server.address, "--connections", "4", "--duration", "600")
    children: list[psutil.Process] = []

    def all_run() -> bool:
        children[:] = psutil.Process(process.pid).children()
        return len(children) == 2

    assert eventually(all_run)
    process.kill()
    assert eventually(lambda: not any(child.is_running() for child in children))


def workload(server: str, **settings: Any) -> Workload:
    return Workload(servers=(server,), timeout=1, **{"connections": 2, "rate": 50, **settings})


def at_first(phase: str, action: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A listener to the progress that does something once something is done in a phase."""
    left = [action]

    def progress(label: str, done: int, total: int) -> None:
        if left and label == phase and done:
            left.pop()()

    return progress


def test_a_server_that_dies_is_no_success(tmp_path: Path) -> None:
    """What was acknowledged and not delivered is lost; what was under way has no known outcome."""
    dying = ServeProcess.started(tmp_path)
    try:
        progress = at_first("Sending", lambda: dying.signal(signal.SIGKILL))
        figures = Run(workload(dying.address, duration=3), Crew(), progress).measure()
    finally:
        dying.close()
    assert 0 < figures.acked < figures.due
    assert figures.unknown
    assert f"{figures.unknown} with unknown outcome" in figures.problem
    assert figures.reconnects == 2 + 4
    assert figures.expected - figures.delivered <= figures.lost + figures.unknown * 2


def test_a_process_that_dies_fails_the_run(server: ServeProcess) -> None:
    """In one line, and the others are stopped."""

    def kill_one() -> None:
        processes()[0].kill()

    crew = Crew()
    with pytest.raises(BenchFailed, match=r"^A process of the bench was killed by SIGKILL$"):
        Run(workload(server.address, duration=60), crew, at_first("Sending", kill_one)).measure()
    assert not processes()


def test_a_process_that_does_not_stop_is_killed(
    server: ServeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it hangs in."""
    monkeypatch.setattr("chatsvc.bench.crew.STOP_SECONDS", 0.2)
    crew = Crew()
    settings = dataclasses.asdict(workload(server.address))
    stuck = crew.start("receivers", {"workload": settings, "first": 0})
    crew.wait_for(lambda: "delivered" in stuck.told)
    os.kill(stuck.child.pid, signal.SIGSTOP)
    crew.stop()
    assert stuck.failure == "A process of the bench was killed by SIGKILL"


def test_an_interrupted_crew_starts_nothing_more(server: ServeProcess) -> None:
    """An interruption that comes between two runs ends the second at its beginning."""
    crew = Crew()
    crew.interrupt()
    figures = Run(workload(server.address), crew, lambda *what: None).measure()
    assert (figures.interrupted, figures.sent) == (True, 0)
    assert not processes()


def test_a_terminal_shows_progress(server: ServeProcess) -> None:
    """A bar a phase on stderr, and then the figures."""
    command = [*COMMAND, "--server", server.address]
    options = ["--connections", "2", "--rate", "20", "--duration", "2"]
    with Terminal([*command, *options], env={**os.environ, "TERM": "xterm"}) as terminal:
        terminal.expect("Sending")
        terminal.expect("Deliveries  80 expected")


# Figures


def figures(**changed: Any) -> Figures:
    """Those of a run in which all went well."""
    names = Figures.__dataclass_fields__
    well: dict[str, Any] = {name: 0 for name in names if names[name].type in ("int", int, float)}
    well |= {name: None for name in names if name not in well}
    well |= {"run": "r", "servers": ("a:1",), "publish": "rpc", "interrupted": False, "seconds": ()}
    return Figures(**{**well, "due": 10, "sent": 10, "acked": 10, **changed})


@pytest.mark.parametrize(
    ("count", "said"),
    [
        ("lost", "1 lost"),
        ("duplicated", "1 duplicated"),
        ("out_of_order", "1 out of order"),
        ("misrouted", "1 of another room"),
        ("unknown", "1 with unknown outcome"),
    ],
)
def test_each_fault_is_a_problem(count: str, said: str) -> None:
    """Even one of it."""
    assert not figures().problem
    assert figures(**{count: 1}).problem == said


def test_a_refused_message_is_no_problem_of_delivery() -> None:
    """The server has said so, so nothing was promised."""
    assert not figures(refused=1, acked=9).problem


def test_a_run_without_figures_can_be_shown(tmp_path: Path) -> None:
    """One that was interrupted at its beginning."""
    nothing = figures(connections=1, sent=0, acked=0, interrupted=True)
    assert text_of(nothing).startswith("Interrupted; the counts so far:")
    assert table_of([nothing, nothing]).endswith("The last run was interrupted.")
    draw([nothing], tmp_path / "one.svg")
    draw([nothing, nothing], tmp_path / "two.svg")
    assert [texts(tmp_path / name) for name in ("one.svg", "two.svg")]


def test_a_long_run_can_be_read_from_its_chart(tmp_path: Path) -> None:
    """Some of its seconds are named, in full, the first and the last among them."""
    seconds = tuple(Second(number, 10, 1.0, 2.0, 3.0) for number in range(1_000))
    draw([figures(seconds=seconds)], tmp_path / "long.svg")
    named = [text for text in texts(tmp_path / "long.svg") if text.isdecimal()]
    assert {"0", "999"} <= set(named)
    assert len(named) < 40


def test_several_runs_are_one_object() -> None:
    """A list of what one run would be."""
    one = json_of([figures()])
    assert json_of([figures(), figures()]) == {"runs": [one, one]}
