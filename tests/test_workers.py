"""`chatsvc serve --workers`: one port, several processes, as a user meets them."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from chatsvc import metadata
from chatsvc.cli.main import main
from chatsvc.client import send_once
from chatsvc.config import Config
from chatsvc.errors import BrokerLost, PortTaken
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.workers import Supervisor

import resources
from serving import ServeProcess
from waiting import eventually

LIMIT = 24
WAIT = 30


def own_children() -> list[int]:
    """The processes of a supervisor in this process."""
    own = os.getpid()
    return resources.children(own, "chatsvc.worker") + resources.children(own, "chatsvc.broker")


def workers(server: ServeProcess) -> list[int]:
    return resources.children(server.pid, "chatsvc.worker")


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def none_runs(pids: list[int]) -> bool:
    return not any(map(runs, pids))


class Stream:
    """A stream on a TCP connection of its own. `worker` is who serves it; None: refused."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, options=options)
        stub = chat_pb2_grpc.BroadcastStub(self._channel)
        user = chat_pb2.User(id="ann", name="ann")
        self._call = stub.CreateStream(chat_pb2.Connect(user=user, active=True), timeout=120)
        given = dict(self._call.initial_metadata())
        server_id = given.get(metadata.SERVER_ID)
        self.worker = server_id and server_id.rpartition("-w")[2]

    def next(self) -> str:
        content: str = next(self._call).content
        return content

    @property
    def is_over(self) -> bool:
        return not self._call.is_active()

    def error(self) -> Any:
        """The status that the stream ended with."""
        with pytest.raises(grpc.RpcError) as raised:
            next(self._call)
        return raised.value

    def close(self) -> None:
        self._channel.close()


OpenStreams = Callable[[int], list[Stream]]
Serve = Callable[..., ServeProcess]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """Two workers over an embedded broker, for all tests that leave both running."""
    process = ServeProcess.started(
        tmp_path_factory.mktemp("workers"),
        *("--workers", "2", "--max-connections", str(LIMIT), "--log-format", "json"),
    )
    yield process
    process.signal(signal.SIGTERM)
    process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server of the test's own, which is ready unless it is told otherwise."""
    with contextlib.ExitStack() as started:

        def start(*arguments: str, ready: bool = True) -> ServeProcess:
            ports = ("--port", "0", "--metrics-port", "0")
            server = ServeProcess(tmp_path, *ports, *arguments)
            started.callback(server.close)
            if ready:
                server.wait_ready()
            return server

        yield start


@pytest.fixture
def open_streams(server: ServeProcess) -> Iterator[OpenStreams]:
    """Opens streams, which are over for the server too before the next test."""
    streams: list[Stream] = []

    def open_some(count: int) -> list[Stream]:
        opened = [Stream(server.address) for _ in range(count)]
        streams.extend(opened)
        return opened

    yield open_some
    for stream in streams:
        stream.close()
    assert eventually(lambda: both_up(server) and sum(active(server).values()) == 0, WAIT)


def run(*arguments: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs `chatsvc` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "chatsvc.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(env or {})},
        check=False,
    )


def by_worker(server: ServeProcess, name: str) -> dict[str, float]:
    """The values of a metric of both workers."""
    samples = server.metrics()
    labelled = {worker: f'{name}{{worker="{worker}"}}' for worker in ("0", "1")}
    return {worker: samples[label] for worker, label in labelled.items() if label in samples}


def active(server: ServeProcess) -> dict[str, float]:
    return by_worker(server, "chatsvc_connections_active")


def restarts(server: ServeProcess) -> dict[str, float]:
    return by_worker(server, "chatsvc_worker_restarts_total")


def both_up(server: ServeProcess) -> bool:
    return by_worker(server, "chatsvc_worker_up") == {"0": 1, "1": 1}


def spread(streams: list[Stream]) -> Counter[str]:
    """How many streams each worker serves."""
    return Counter(stream.worker for stream in streams if stream.worker)


def kill_worker_of(server: ServeProcess, streams: list[Stream]) -> str:
    """Kills a worker without warning and returns its number, once its streams are over."""
    os.kill(workers(server)[0], signal.SIGKILL)
    lost: list[Stream] = []

    def is_noticed() -> bool:
        lost[:] = [stream for stream in streams if stream.is_over]
        victims = {stream.worker for stream in lost}
        return len(victims) == 1 and len(lost) == spread(streams)[lost[0].worker or ""]

    assert eventually(is_noticed, WAIT)
    assert lost[0].worker
    return lost[0].worker


def test_says_that_it_is_ready_once(server: ServeProcess) -> None:
    """The lines are those of a single server, printed once."""
    lines = server.stdout.splitlines()
    assert lines[0] == "Embedded broker: messages are kept in memory and are gone at exit"
    assert lines[1].startswith("gRPC Server (grpc-server-")
    assert lines[2].startswith("Kafka Brokers: [127.0.0.1:")
    assert lines[3:5] == ["Kafka Topic: chatting", "Message Processor: Started (embedded)"]
    assert lines[5].startswith("Metrics: ")
    assert len(lines) == 6


def test_the_supervisor_has_neither_grpc_nor_kafka(server: ServeProcess) -> None:
    """Neither library is in its memory, while it is in a worker's."""
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    worker = Path(f"/proc/{workers(server)[0]}/maps").read_text()
    for library in ("cygrpc", "librdkafka"):
        assert library in worker
        assert library not in maps


def test_both_workers_get_connections(server: ServeProcess, open_streams: OpenStreams) -> None:
    """The kernel spreads clients over them, and one page shows how many each has."""
    streams = open_streams(LIMIT)
    assert active(server) == spread(streams)
    assert set(spread(streams)) == {"0", "1"}


def test_a_message_reaches_clients_of_both(server: ServeProcess, open_streams: OpenStreams) -> None:
    """Whichever worker takes it from its sender."""
    streams = open_streams(LIMIT)
    assert len(spread(streams)) == 2
    for number in range(4):
        send_once("bob", f"hello {number}", [server.address])
        assert {stream.next() for stream in streams} == {f"hello {number}"}


def test_each_worker_has_its_cpu(server: ServeProcess, serve: Serve) -> None:
    """One each, as far as there are enough, unless they are told not to."""
    pinned = [resources.cpus(pid) for pid in workers(server)]
    assert [len(cpus) for cpus in pinned] == [1, 1]
    assert len(set.union(*pinned)) == min(2, len(os.sched_getaffinity(0)))
    free = serve("--workers", "2", "--no-pin-cpu")
    assert [resources.cpus(pid) for pid in workers(free)] == 2 * [os.sched_getaffinity(0)]


def test_a_killed_worker_is_started_again(server: ServeProcess, open_streams: OpenStreams) -> None:
    """It is counted and logged, the other one's clients notice nothing, and the port is served
    all the time."""
    before = restarts(server)
    streams = open_streams(LIMIT // 2)
    killed = kill_worker_of(server, streams)
    (other,) = {"0", "1"} - {killed}
    (during,) = open_streams(1)
    assert during.worker is not None
    assert eventually(lambda: both_up(server), WAIT)
    assert restarts(server) == {killed: before[killed] + 1, other: before[other]}
    send_once("bob", "still here", [server.address])
    assert {s.next() for s in streams if s.worker == other} == {"still here"}
    assert {s.error().code() for s in streams if s.worker == killed} == {
        grpc.StatusCode.UNAVAILABLE
    }
    end = f"Worker {killed} was killed by SIGKILL; it is started again in "
    assert [line for line in server.stderr.splitlines() if end in line]


def test_a_started_worker_takes_part_again(server: ServeProcess, open_streams: OpenStreams) -> None:
    """It gets connections of the same port, and messages from before are no trouble to it."""
    killed = kill_worker_of(server, open_streams(LIMIT // 2))
    assert eventually(lambda: both_up(server), WAIT)
    streams = open_streams(LIMIT // 2)
    assert killed in spread(streams)
    send_once("bob", "again", [server.address])
    assert {stream.next() for stream in streams} == {"again"}


def test_one_worker_that_is_ready_is_enough(server: ServeProcess) -> None:
    """The supervisor's port says that it is ready, and which worker does not answer."""
    assert eventually(lambda: server.ask("/readyz") == (200, "ok"), WAIT)
    assert server.ask("/healthz") == (200, "ok")
    stopped = workers(server)[1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        status, text = server.ask("/readyz")
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert status == 200
    assert re.fullmatch(r"ok; worker [01]: does not answer", text)
    assert eventually(lambda: server.ask("/readyz") == (200, "ok"), WAIT)


def test_the_limit_is_one_for_all(server: ServeProcess, open_streams: OpenStreams) -> None:
    """Exactly so many streams, whichever workers they are at, also after a worker was killed."""
    streams = open_streams(LIMIT)
    assert len(spread(streams)) == 2

    def assert_full() -> None:
        # So many that both workers refuse some.
        for refused in open_streams(10):
            assert refused.worker is None
            error = refused.error()
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details().startswith(f"server is full ({LIMIT} connections)")
            refused.close()  # each worker takes a quarter more connections than streams

    assert_full()
    killed = kill_worker_of(server, streams)
    lost = spread(streams)[killed]
    # The seats are free once the supervisor has noticed, and before the worker is back.
    again: list[Stream] = []
    assert eventually(lambda: again.extend(open_streams(1)) or again[-1].worker, WAIT)
    while len(spread(streams) + Counter()) and sum(bool(s.worker) for s in again) < lost:
        again += open_streams(1)
        assert again[-1].worker is not None
    assert_full()
    assert eventually(lambda: both_up(server), WAIT)
    assert_full()


def test_a_seat_that_is_left_is_free_for_all(
    server: ServeProcess, open_streams: OpenStreams
) -> None:
    """A client that leaves one worker makes room at the other."""
    streams = open_streams(LIMIT)
    leaver = streams[0]
    leaver.close()
    assert eventually(lambda: sum(active(server).values()) == LIMIT - 1)
    seen = set()
    for _ in range(40):
        (stream,) = open_streams(1)
        seen.add(stream.worker)
        stream.close()
        assert eventually(lambda: sum(active(server).values()) == LIMIT - 1)
        if len(seen) == 2:
            break
    assert seen == {"0", "1"}


@pytest.mark.parametrize("others", ["1", "2"])
def test_a_port_of_workers_is_taken(server: ServeProcess, others: str) -> None:
    """For a single server and for other workers: one line, exit 1."""
    port = server.address.split(":")[1]
    answer = run("serve", "--port", port, "--metrics-port", "0", "--workers", others)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == (
        f"Cannot listen on 127.0.0.1:{port}: address already in use or not of this machine. "
        "Stop what uses it or choose another with --port (0 takes a free one)\n"
    )
    assert both_up(server)


def test_workers_log_as_they_are_told(server: ServeProcess, open_streams: OpenStreams) -> None:
    """Every line of every process has the form of --log-format."""
    kill_worker_of(server, open_streams(LIMIT // 2))
    assert eventually(lambda: both_up(server), WAIT)
    lines = [json.loads(line) for line in server.stderr.splitlines()]
    assert {"chatsvc.workers"} <= {line["logger"] for line in lines}


def test_sigterm_stops_everything(serve: Serve) -> None:
    """Clients are told why, exit 0, the last line says so, no process is left."""
    server = serve("--workers", "2", "--log-level", "debug")
    processes = resources.children(server.pid)
    assert len(processes) == 3  # two workers and the broker
    stream = Stream(server.address)
    server.signal(signal.SIGTERM)
    error = stream.error()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "server is shutting down; connect to another one"
    assert server.wait() == 0
    assert server.stdout.splitlines()[-1] == "Stopped"
    assert none_runs(processes)
    assert "Traceback" not in server.stderr
    assert "not confirmed" not in server.stderr  # the broker was there to the end
    stream.close()


def test_a_signal_to_each_process_stops_them_as_gently(serve: Serve) -> None:
    """As a service manager sends it: that the supervisor passes its own on does no harm."""
    server = serve("--workers", "2")
    processes = resources.children(server.pid)
    stream = Stream(server.address)
    for pid in (*processes, server.pid):
        os.kill(pid, signal.SIGTERM)
    assert stream.error().details() == "server is shutting down; connect to another one"
    assert server.wait() == 0
    assert server.stdout.splitlines()[-1] == "Stopped"
    assert "WARNING" not in server.stderr
    assert none_runs(processes)
    stream.close()


def test_a_second_signal_kills_the_workers(serve: Serve) -> None:
    """Ctrl-C again while workers do not stop: 128 + 2 at once, no process is left."""
    server = serve("--workers", "2")
    processes = resources.children(server.pid)
    stuck = workers(server)
    for pid in stuck:
        os.kill(pid, signal.SIGSTOP)
    # A thread that is not stopped yet would take the signal, which then is not seen to wait.
    assert eventually(lambda: all(map(is_stopped, stuck)))
    server.signal(signal.SIGINT)
    assert eventually(lambda: all(map(is_asked, stuck)))
    assert server.exit_code is None
    server.signal(signal.SIGINT)
    assert server.wait() == 128 + signal.SIGINT
    assert eventually(lambda: none_runs(processes))


def is_stopped(pid: int) -> bool:
    """Whether every thread of a process has come to a stop."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rsplit(")", 1)[1].split()[0] == "T" for stat in stats)


def is_asked(pid: int) -> bool:
    """Whether SIGTERM waits for a stopped process."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = int(status.split("ShdPnd:")[1].split()[0], 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1)


def test_workers_do_not_outlive_a_killed_supervisor(serve: Serve) -> None:
    """They stop by themselves, gently, and then the broker does."""
    server = serve("--workers", "2")
    processes = resources.children(server.pid)
    stream = Stream(server.address)
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    assert stream.error().details() == "server is shutting down; connect to another one"
    assert eventually(lambda: none_runs(processes))
    assert "not confirmed" not in server.stderr
    stream.close()


def test_a_killed_broker_ends_it(serve: Serve) -> None:
    """Its messages are gone: the last line says so, exit 1, no process is left."""
    server = serve("--workers", "2")
    processes = resources.children(server.pid)
    (broker,) = resources.children(server.pid, "chatsvc.broker")
    os.kill(broker, signal.SIGKILL)
    assert server.wait(WAIT) == 1
    assert server.stderr.splitlines()[-1] == (
        "The embedded broker was killed by SIGKILL; its messages are gone. Start the server again"
    )
    assert "Stopped" not in server.stdout
    assert none_runs(processes)


def test_a_worker_that_cannot_start_is_one_line() -> None:
    """Its error is shown once, as that of a single server, exit 1."""
    answer = run(
        *("serve", "--workers", "2", "--port", "0", "--metrics-port", "0"),
        *("--brokers", "127.0.0.1:1"),
    )
    assert (answer.returncode, answer.stdout) == (1, "")
    shown = [line for line in answer.stderr.splitlines() if "Cannot reach Kafka" in line]
    assert shown == answer.stderr.splitlines()[-1:]
    assert shown[0].startswith("Cannot reach Kafka at 127.0.0.1:1: ")
    assert "make kafka-up" in shown[0]
    assert "Traceback" not in answer.stderr


def test_a_worker_that_is_killed_at_its_start_is_one_line(serve: Serve) -> None:
    """How it ended is told, exit 1, no process is left."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        brokers = f"127.0.0.1:{silent.getsockname()[1]}"
        server = serve("--workers", "2", "--brokers", brokers, ready=False)
        assert eventually(lambda: len(workers(server)) == 2)
        processes = workers(server)
        os.kill(processes[0], signal.SIGKILL)
        assert server.wait(WAIT) == 1
    assert re.fullmatch(r"Worker [01] was killed by SIGKILL at its start\n", server.stderr)
    assert server.stdout == ""
    assert none_runs(processes)


def test_auto_is_one_for_each_core(serve: Serve) -> None:
    """`--workers auto` takes as many as this process may use; one core needs no workers."""
    server = serve("--workers", "auto")
    cores = len(os.sched_getaffinity(0))
    assert len(workers(server)) == (cores if cores > 1 else 0)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("value", ["3", "auto"])
def test_the_number_may_come_from_elsewhere(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable and the file set it too."""
    configs: list[Config] = []

    class Recorder:
        def __init__(self, config: Config, log_format: str, log_level: str) -> None:
            configs.append(config)
            raise BrokerLost("is not needed")

    monkeypatch.setattr("chatsvc.cli.serve.Supervisor", Recorder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 4})
    file = tmp_path / "chat.toml"
    file.write_text(f"[serve]\nworkers = {json.dumps(value)}\n")
    CliRunner().invoke(main, ["serve", "--config", str(file)])
    CliRunner().invoke(main, ["serve"], env={"CHATSVC_SERVE_WORKERS": value})
    assert [config.workers for config in configs] == [3, 3]


@pytest.fixture
def supervise() -> Iterator[Callable[..., Supervisor]]:
    """Makes supervisors in this process, which are stopped after the test."""
    supervisors: list[Supervisor] = []

    def make(**settings: Any) -> Supervisor:
        defaults = {"port": 0, "metrics_port": 0, "workers": 2}
        supervisors.append(Supervisor(Config(**(defaults | settings)), "text", "info"))
        return supervisors[-1]

    yield make
    for supervisor in supervisors:
        supervisor.stop()


def test_a_worker_that_does_not_stop_is_killed(supervise: Callable[..., Supervisor]) -> None:
    """A stop ends although a process hangs, and nothing is left; stopping again does nothing."""
    supervisor = supervise(stop_timeout=1.0)
    assert supervisor.start() is not None
    processes = own_children()
    os.kill(resources.children(os.getpid(), "chatsvc.worker")[0], signal.SIGSTOP)
    supervisor.stop()
    assert none_runs(processes)
    supervisor.stop()


def test_kill_ends_what_does_not_stop(supervise: Callable[..., Supervisor]) -> None:
    """Processes that hang are gone at once, without the help of a stop."""
    supervisor = supervise()
    assert supervisor.start() is not None
    processes = own_children()
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    supervisor.ask_to_stop()
    supervisor.kill()
    assert eventually(lambda: none_runs(processes))


def test_stop_undoes_a_failed_start(supervise: Callable[..., Supervisor]) -> None:
    """What had started is gone when the port turns out to be taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        supervisor = supervise(port=taken.getsockname()[1])
        with pytest.raises(PortTaken):
            supervisor.start()
    supervisor.stop()
    assert not own_children()


def test_asked_to_stop_while_it_starts(supervise: Callable[..., Supervisor]) -> None:
    """`start` returns without a server, and `stop` ends what is under way."""
    supervisor = supervise()
    asker = threading.Thread(
        target=lambda: (
            eventually(lambda: resources.children(os.getpid(), "chatsvc.worker")),
            supervisor.ask_to_stop(),
        )
    )
    asker.start()
    assert supervisor.start() is None
    asker.join()
    processes = own_children()
    supervisor.stop()
    assert none_runs(processes)
