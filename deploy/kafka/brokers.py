"""Real Kafka brokers on loopback, without docker.

The brokers are the ordinary ones of Apache Kafka: KRaft, each node a broker and a controller.
Tests use the class::

    with Brokers(tmp_path) as brokers:
        Producer({"bootstrap.servers": brokers.bootstrap})
        brokers.kill(brokers.controller())

and a developer the command, whose brokers stay until ``down``::

    python3 deploy/kafka/brokers.py up|status|down

Needs Linux, Java 17 or newer and, the first time, Maven to fetch the jars (44 MB). Only the
standard library is used, so that no environment has to exist before the brokers do.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import fcntl
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

__all__ = ["Brokers", "KafkaUnavailable"]

KAFKA_VERSION = "4.4.0"  # the same as in pom.xml and ../docker-compose.yml
JAVA_VERSION = 17  # what the brokers of Kafka 4 need at least
HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent

# Three brokers that start on two cores spend most of their time compiling, and so does the first
# minute of a test. Measured, from launch to the last broker registered, Java 17, 2 cores:
#   G1 6.7 s, serial GC 5.6 s, serial GC and the C1 compiler alone 3.4-4.4 s;
#   the last with an archive of the loaded classes (CDS) 2.6-3.4 s: not worth a training run.
# Processor time 13.6, 11.5, 7.0 and 5.5 s; formatting the directories of a new cluster adds 1.4 s.
JVM_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",  # no shared file in /tmp for each broker
    f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
)

POLL_SECONDS = 0.05  # between two looks at a broker that is not ready


class KafkaUnavailable(RuntimeError):
    """Kafka cannot run here, or did not come up; the text says why and what to do."""


# The software: Java and the jars


def find_java() -> str:
    """Return the path of a Java that is new enough, else raise KafkaUnavailable."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        place = "JAVA_HOME" if home else "PATH"
        raise KafkaUnavailable(
            f"java is missing in {place}: install a Java {JAVA_VERSION} runtime or newer."
        )
    answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', answer.stderr)
    if version is None or int(version[1]) < JAVA_VERSION:
        found = version[1] if version else "of unknown version"
        raise KafkaUnavailable(
            f"{java} is Java {found}: install a Java {JAVA_VERSION} runtime or newer."
        )
    return java


def find_jars() -> Path:
    """Return the directory of the jars; Maven fetches them when they are not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    libs = cache / "chatsvc" / f"kafka-{KAFKA_VERSION}" / "libs"
    if not libs.is_dir():
        _fetch_jars(libs)
    return libs


def _fetch_jars(libs: Path) -> None:
    """Fetch into a sibling and rename it: `libs` is whole or absent, whoever else fetches too."""
    mvn = shutil.which("mvn")
    if mvn is None:
        raise KafkaUnavailable(
            f"mvn is missing and {libs} holds no jars yet: install Maven, or copy the jars there."
        )
    libs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="libs-", dir=libs.parent) as sibling:
        fetched = Path(sibling, "libs")
        # -C: a jar with a wrong checksum is an error, not a warning
        command = [mvn, "-q", "-B", "-C", "-f", str(HERE / "pom.xml"), "package"]
        answer = subprocess.run(
            [*command, f"-Dlibs={fetched}"], capture_output=True, text=True, check=False
        )
        if answer.returncode != 0:
            reason = answer.stdout.strip() or answer.stderr.strip()
            raise KafkaUnavailable(f"Maven could not fetch Kafka {KAFKA_VERSION}: {reason}")
        try:
            fetched.rename(libs)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # another process was faster; its jars are the same


# The ports


def free_ports(count: int) -> list[int]:
    """Choose ports that nobody listens on.

    They lie below the range from which Linux takes the local ports of outgoing connections
    (32768 and up), because the port of a killed broker must still be free at its restart.
    """
    free: list[int] = []
    for port in random.sample(range(10_000, 32_768), k=5_000):
        if len(free) == count:
            return free
        if _is_free(port):
            free.append(port)
    raise KafkaUnavailable(f"{HOST} has no {count} free ports between 10000 and 32767.")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # as the brokers do: connections in TIME_WAIT do not make a port taken
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


# The protocol: two requests, enough to know that a broker is ready and who the controller is


def registered_brokers(port: int) -> set[int]:
    """Return the node ids that the broker on `port` knows as alive (Metadata, version 1)."""
    no_topics = struct.pack(">i", 0)
    answer = _ask(port, api_key=3, api_version=1, body=no_topics)
    (count,), at = struct.unpack_from(">i", answer, 4), 8
    node_ids = set()
    for _ in range(count):
        node_id, host_length = struct.unpack_from(">ih", answer, at)
        at += 6 + host_length + 4  # node id, length, host, port
        (rack_length,) = struct.unpack_from(">h", answer, at)
        at += 2 + max(rack_length, 0)  # null is -1
        node_ids.add(node_id)
    return node_ids


def active_controller(port: int) -> int | None:
    """Return the node id of the quorum's leader, None while there is none (DescribeQuorum)."""
    topic = b"__cluster_metadata"
    partition = b"\x02" + struct.pack(">i", 0) + b"\x00"  # compact array of one: length + 1
    body = b"\x00\x02" + bytes([len(topic) + 1]) + topic + partition + b"\x00\x00"
    answer = _ask(port, api_key=55, api_version=0, body=body)
    (error_code,) = struct.unpack_from(">h", answer, 5)
    if error_code != 0:
        return None
    # correlation id, tags, error, array, topic, array; then the partition
    partition_at = 4 + 1 + 2 + 1 + 1 + len(topic) + 1
    _, partition_error, leader_id = struct.unpack_from(">ihi", answer, partition_at)
    return leader_id if partition_error == 0 and leader_id > 0 else None


def _ask(port: int, *, api_key: int, api_version: int, body: bytes) -> bytes:
    """Return the answer without its length. Raise OSError when the broker does not answer."""
    client_id = b"chatsvc-brokers"
    header = struct.pack(">hhih", api_key, api_version, 0, len(client_id)) + client_id
    with socket.create_connection((HOST, port), timeout=2) as connection:
        connection.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
        (length,) = struct.unpack(">i", _receive(connection, 4))
        return _receive(connection, length)


def _receive(connection: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        chunk = connection.recv(length - len(received))
        if not chunk:
            raise ConnectionError("the broker closed the connection")
        received += chunk
    return bytes(received)


# The settings


def cluster_properties(count: int) -> dict[str, object]:
    """Return the settings that all brokers of a cluster of `count` share."""
    replicas = min(3, count)
    min_isr = 2 if count >= 3 else 1
    return {
        # the contract of chatsvc
        "num.partitions": 2,
        "default.replication.factor": replicas,
        "min.insync.replicas": min_isr,
        "log.message.timestamp.type": "LogAppendTime",
        "auto.create.topics.enable": "false",
        "unclean.leader.election.enable": "false",
        # a dead broker is noticed in 3 s, a dead controller in 1 s
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        "controller.quorum.fetch.timeout.ms": 1000,
        "controller.quorum.election.timeout.ms": 500,
        "controller.quorum.election.backoff.max.ms": 250,
        "controller.quorum.request.timeout.ms": 1000,
        "replica.fetch.backoff.ms": 200,
        # until one that follows is left behind: sooner than it is noticed to be dead
        "replica.lag.time.max.ms": 1500,
        # the coordinators, as small as they may be
        "group.initial.rebalance.delay.ms": 0,
        "group.coordinator.threads": 1,
        "group.coordinator.background.threads": 1,
        "offsets.topic.num.partitions": 3,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.segment.bytes": 1 << 20,
        "transaction.state.log.num.partitions": 3,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": min_isr,
        "transaction.state.log.segment.bytes": 1 << 20,
        "share.coordinator.threads": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": min_isr,
        # a small heap on two cores
        "num.network.threads": 2,
        "num.io.threads": 2,
        "num.recovery.threads.per.data.dir": 1,
        "background.threads": 2,
        "remote.log.reader.threads": 1,
        "log.index.size.max.bytes": 1 << 20,
        "log.cleaner.dedupe.buffer.size": 4 << 20,
        "log.cleaner.io.buffer.size": 1 << 16,
    }


# One process, one broker


class Process:
    """A running broker, held by a pidfd: a pid that was given to another is never signalled."""

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.paused = False
        self._child = child
        self._pidfd = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._pidfd)

    @classmethod
    def find(cls, pid_file: Path, argument: str) -> Process | None:
        """Return the process of `pid_file` if it lives and `argument` is on its command line."""
        try:
            process = cls(int(pid_file.read_text()))
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return None
        # after the pidfd was opened: from here on the pid cannot change hands unnoticed
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            if argument.encode() in command:
                return process
        return None

    def send(self, *signals: signal.Signals) -> None:
        """Send the signals in order; nothing happens when the process has ended."""
        for each in signals:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, each)

    def ended(self, timeout_seconds: float = 0.0) -> bool:
        """Wait for the end of the process, at most so long; reap it if it is a child."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(max(timeout_seconds, 0.0) * 1000):
            return False
        if self._child is not None:
            self._child.wait()
        return True


class Broker:
    """One node: its directory with the settings, the data, the log and the pid file."""

    def __init__(self, directory: Path, node_id: int, port: int, controller_port: int) -> None:
        self.node_id = node_id
        self.port = port
        self.controller_port = controller_port
        self.directory = directory / f"broker-{node_id}"
        self.data = self.directory / "data"
        self.properties_file = self.directory / "server.properties"
        self.log_file = self.directory / "kafka.log"
        self._process: Process | None = None

    @property
    def formatted(self) -> bool:
        """Whether the data directory belongs to a cluster."""
        return (self.data / "meta.properties").is_file()

    @property
    def closed(self) -> bool:
        """Whether the logs are closed; Kafka writes this mark last and removes it at its start."""
        return (self.data / ".kafka_cleanshutdown").is_file()

    @property
    def process(self) -> Process | None:
        """The process, None if it was not started or has ended."""
        process = self._process
        return None if process is None or process.ended() else process

    @property
    def answering(self) -> bool:
        """Whether the broker runs and is not paused."""
        process = self.process
        return process is not None and not process.paused

    def running(self) -> Process:
        """Return the process, else raise RuntimeError."""
        process = self.process
        if process is None:
            raise RuntimeError(f"Kafka broker {self.node_id} does not run.")
        return process

    def attach(self) -> None:
        """Take over the broker that an earlier process started in this directory, if it runs."""
        self._process = Process.find(self.directory / "pid", str(self.properties_file))

    def launch(self, command: Sequence[str]) -> None:
        """Start the process; it is not ready when this returns."""
        with self.log_file.open("ab") as log:
            child = subprocess.Popen(
                [*command, "kafka.Kafka", str(self.properties_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for us, not for the brokers
            )
        self._process = Process(child.pid, child)
        (self.directory / "pid").write_text(str(child.pid))

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the broker's log."""
        if not self.log_file.is_file():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])


# The cluster


class Brokers:
    """A Kafka cluster of `count` brokers on 127.0.0.1, with its data in `directory`.

    Brokers are named by their index, 0 to count - 1; broker i has the node id i + 1. Methods may
    be called from any thread, but not two at the same time on the same broker. The brokers end
    with the process that started them, even if that is killed by SIGKILL.

    Every method that waits raises KafkaUnavailable at its deadline.

    :param directory: kept when the brokers stop; another Brokers of the same count and directory
        finds the data again, also on other ports
    :param ports: where clients connect, one a broker; the controllers then listen 10000 above.
        None chooses free ports now
    :param heap_mb: the Java heap of each broker; about 100 MB come on top of it
    :param properties: settings for server.properties, stronger than ours
    :param outlive: let the brokers live on when this process ends without `stop`
    """

    def __init__(
        self,
        directory: Path,
        ports: Sequence[int] | None = None,
        count: int = 3,
        heap_mb: int = 256,
        properties: Mapping[str, object] | None = None,
        outlive: bool = False,
    ) -> None:
        if ports is None:
            chosen = free_ports(2 * count)
            ports, controller_ports = chosen[:count], chosen[count:]
        else:
            controller_ports = [port + 10_000 for port in ports]
        if not len(ports) == len(set(ports)) == count > 0 or max(controller_ports) > 65_535:
            raise ValueError(f"{count} brokers need {count} different ports up to 55535.")
        self._directory = directory.resolve()
        self._brokers = [
            Broker(self._directory, i + 1, ports[i], controller_ports[i]) for i in range(count)
        ]
        self._heap_mb = heap_mb
        self._properties = {**cluster_properties(count), **(properties or {})}
        self._outlive = outlive
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def addresses(self) -> list[str]:
        """Where each broker listens, as host:port."""
        return [f"{HOST}:{broker.port}" for broker in self._brokers]

    @property
    def bootstrap(self) -> str:
        """The addresses as the clients' `bootstrap.servers` wants them."""
        return ",".join(self.addresses)

    def pid(self, i: int) -> int:
        """Return the process id of a running broker."""
        return self._brokers[i].running().pid

    def running(self, i: int) -> bool:
        """Tell whether the broker's process lives; a paused one does."""
        return self._brokers[i].process is not None

    def log_file(self, i: int) -> Path:
        """Return where the broker writes its warnings."""
        return self._brokers[i].log_file

    def __enter__(self) -> Brokers:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, deadline_seconds: float = 90.0) -> None:
        """Start the brokers that do not run and wait until all of them are registered.

        Idempotent. When it fails, or is interrupted, what it started is killed.
        """
        stopped = [broker for broker in self._brokers if broker.process is None]
        try:
            self._launch(stopped)
            self.wait_until_registered(deadline_seconds)
        except BaseException:
            for broker in stopped:
                self._end(broker, deadline=0.0)
            if stopped == self._brokers:
                self._unwatch()
            raise

    def stop(self, deadline_seconds: float = 15.0) -> None:
        """End the brokers with SIGTERM, with SIGKILL at the deadline. Idempotent.

        All data is on disk when this returns before the deadline.
        """
        deadline = time.monotonic() + deadline_seconds
        for broker in self._brokers:
            if broker.process is not None:
                broker.process.send(signal.SIGTERM, signal.SIGCONT)
        self._wait_until_closed(deadline)
        for broker in self._brokers:
            self._end(broker, deadline=0.0)
        self._unwatch()

    def terminate(self, i: int, deadline_seconds: float = 15.0) -> None:
        """End one broker with SIGTERM: it hands its partitions over first. Wait for its end."""
        broker = self._brokers[i]
        broker.running().send(signal.SIGTERM, signal.SIGCONT)
        self._end(broker, time.monotonic() + deadline_seconds)

    def kill(self, i: int) -> None:
        """End one broker with SIGKILL and wait for its end."""
        broker = self._brokers[i]
        broker.running()
        self._end(broker, deadline=0.0)

    def pause(self, i: int) -> None:
        """Stop one broker with SIGSTOP: its connections stay open and it does not answer."""
        process = self._brokers[i].running()
        process.send(signal.SIGSTOP)
        process.paused = True

    def resume(self, i: int) -> None:
        """Let a paused broker go on; `wait_until_registered` tells when it is a member again."""
        process = self._brokers[i].running()
        process.send(signal.SIGCONT)
        process.paused = False

    def restart(self, i: int, deadline_seconds: float = 90.0) -> None:
        """Start one broker again after `terminate` or `kill` and wait until it is registered.

        This needs a majority of the brokers: when more than that are down, `start` starts all.
        """
        broker = self._brokers[i]
        if broker.process is not None:
            raise RuntimeError(f"Kafka broker {broker.node_id} runs already.")
        self._launch([broker])
        self.wait_until_registered(deadline_seconds)

    def wait_until_registered(self, deadline_seconds: float = 90.0) -> None:
        """Wait until all brokers that run, except paused ones, know each other as alive."""
        deadline = time.monotonic() + deadline_seconds
        expected = [broker for broker in self._brokers if broker.answering]
        node_ids = {broker.node_id for broker in expected}
        for broker in expected:
            while not _knows(broker, node_ids):
                if broker.process is None:
                    raise KafkaUnavailable(_reason(broker, "ended while it started"))
                if time.monotonic() > deadline:
                    raise KafkaUnavailable(_reason(broker, f"is not up in {deadline_seconds:g} s"))
                time.sleep(POLL_SECONDS)

    def controller(self, deadline_seconds: float = 30.0) -> int:
        """Return the index of the broker whose controller is active; wait for an election."""
        deadline = time.monotonic() + deadline_seconds
        while time.monotonic() < deadline:
            for broker in self._brokers:
                leader = _controller_known_by(broker) if broker.answering else None
                # a broker may still name the one that has just ended
                if leader is not None and self._brokers[leader - 1].answering:
                    return leader - 1
            time.sleep(POLL_SECONDS)
        raise KafkaUnavailable(f"No Kafka controller was elected in {deadline_seconds:g} s.")

    def attach(self) -> None:
        """Take over brokers that an earlier process started in this directory and that still run.

        They must listen on the ports of this object.
        """
        for broker in self._brokers:
            broker.attach()

    def _launch(self, brokers: Sequence[Broker]) -> None:
        _check_ports(brokers)
        java, libs = find_java(), find_jars()
        command = [java, *JVM_FLAGS, "-cp", f"{libs}/*"]
        for broker in brokers:
            broker.directory.mkdir(parents=True, exist_ok=True)
            broker.properties_file.write_text(self._server_properties(broker))
        self._format([broker for broker in brokers if not broker.formatted], command)
        heap = [f"-Xms{self._heap_mb}m", f"-Xmx{self._heap_mb}m"]
        self._watch()
        for broker in brokers:
            broker.launch([*command[:1], *heap, *command[1:]])

    def _server_properties(self, broker: Broker) -> str:
        voters = (f"{each.node_id}@{HOST}:{each.controller_port}" for each in self._brokers)
        properties = {
            "process.roles": "broker,controller",
            "node.id": broker.node_id,
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{broker.port},"
            f"CONTROLLER://{HOST}:{broker.controller_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": broker.data,
            **self._properties,
        }
        return "".join(f"{name}={value}\n" for name, value in properties.items())

    def _format(self, brokers: Sequence[Broker], command: Sequence[str]) -> None:
        """Make data directories; all at once, since each one is a JVM that starts."""
        # With =, since one id in 64 begins with a dash, which would look like an option.
        cluster_id = f"--cluster-id={self._cluster_id()}"
        format_command = [*command, "kafka.tools.StorageTool", "format", cluster_id]
        with contextlib.ExitStack() as logs:
            tools = [
                subprocess.Popen(
                    [*format_command, "-c", str(broker.properties_file)],
                    stdout=logs.enter_context(broker.log_file.open("ab")),
                    stderr=subprocess.STDOUT,
                )
                for broker in brokers
            ]
        try:
            for broker, tool in zip(brokers, tools, strict=True):
                if tool.wait() != 0:
                    raise KafkaUnavailable(_reason(broker, "has no valid settings or directory"))
        except BaseException:
            for broker, tool in zip(brokers, tools, strict=True):
                tool.kill()
                tool.wait()
                shutil.rmtree(broker.data, ignore_errors=True)  # no half a directory next time
            raise

    def _cluster_id(self) -> str:
        file = self._directory / "cluster.id"
        if not file.exists():
            file.write_text(base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="))
        return file.read_text()

    def _wait_until_closed(self, deadline: float) -> None:
        """Wait until all brokers ended, but for a last one that has closed its logs.

        That one would wait 5 s for a successor as the leader of the quorum, which nobody can be.
        """
        while time.monotonic() < deadline:
            running = [broker for broker in self._brokers if broker.process is not None]
            if not running or (len(running) == 1 and running[0].closed):
                return
            time.sleep(POLL_SECONDS)

    def _end(self, broker: Broker, deadline: float) -> None:
        """Wait until the process has ended; kill it at the deadline."""
        process = broker.process
        if process is not None and not process.ended(deadline - time.monotonic()):
            process.send(signal.SIGKILL)
            process.ended(timeout_seconds=60.0)

    def _watch(self) -> None:
        """Start the guard, a process that kills the brokers when this one is gone.

        It waits for the end of a pipe that only this process holds open. PR_SET_PDEATHSIG would
        be shorter, but fires when the *thread* that started a broker ends.
        """
        if self._guard is not None or self._outlive:
            return
        directories = [str(broker.directory) for broker in self._brokers]
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, "guard", *directories],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _unwatch(self) -> None:
        if self._guard is not None:
            self._guard.communicate()
            self._guard = None


def _knows(broker: Broker, node_ids: set[int]) -> bool:
    try:
        return node_ids <= registered_brokers(broker.port)
    except (OSError, struct.error):
        return False


def _controller_known_by(broker: Broker) -> int | None:
    try:
        return active_controller(broker.port)
    except (OSError, struct.error):
        return None


def _reason(broker: Broker, event: str) -> str:
    return f"Kafka broker {broker.node_id} {event}. The end of {broker.log_file}:\n" + (
        broker.log_tail() or "(nothing)"
    )


def _check_ports(brokers: Sequence[Broker]) -> None:
    for broker in brokers:
        for port in (broker.port, broker.controller_port):
            if not _is_free(port):
                raise KafkaUnavailable(
                    f"Port {port} of {HOST} is taken: end what listens there or choose other ports."
                )


# The command


def up(directory: Path, ports: Sequence[int], heap_mb: int) -> None:
    """Start brokers that stay, unless they run already."""
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        started = _started_ports(directory)
        if started and len(started) != len(ports):
            raise KafkaUnavailable(f"{directory} holds the data of {len(started)} brokers.")
        brokers = Brokers(directory, ports, len(ports), heap_mb, outlive=True)
        brokers.attach()
        running = [i for i in range(len(ports)) if brokers.running(i)]
        if running and started != list(ports):
            raise KafkaUnavailable(f"Kafka runs on {_localhost(started)}: stop it with down first.")
        brokers.start()
    already = " already" if len(running) == len(ports) else ""
    print(f"Kafka is up{already}: {_localhost(ports)}")


def down(directory: Path) -> None:
    """Stop the brokers that `up` started; the data stays."""
    ports = _started_ports(directory)
    if not ports:
        print("Kafka is not running.")
        return
    with _locked(directory):
        brokers = Brokers(directory, ports, len(ports), outlive=True)
        brokers.attach()
        running = any(brokers.running(i) for i in range(len(ports)))
        brokers.stop()
    print("Kafka is down." if running else "Kafka is not running.")


def status(directory: Path) -> None:
    """Print a line for each broker; raise KafkaUnavailable unless all are up."""
    ports = _started_ports(directory)
    if not ports:
        raise KafkaUnavailable("Kafka is not running.")
    brokers = Brokers(directory, ports, len(ports), outlive=True)
    brokers.attach()
    states = [_state(brokers, i, port) for i, port in enumerate(ports)]
    for port, state in zip(ports, states, strict=True):
        print(f"localhost:{port} {state}")
    ready = sum(state.startswith("up") for state in states)
    if ready < len(ports):
        raise KafkaUnavailable(f"{ready} of {len(ports)} brokers are up.")


def _state(brokers: Brokers, i: int, port: int) -> str:
    if not brokers.running(i):
        return "down"
    try:
        registered_brokers(port)
    except OSError:
        return f"does not answer, pid {brokers.pid(i)}, log {brokers.log_file(i)}"
    return f"up, pid {brokers.pid(i)}"


def _started_ports(directory: Path) -> list[int]:
    """Return the ports of the brokers that were last started in the directory."""
    files = sorted(directory.glob("broker-*/server.properties"))
    pattern = re.compile(r"^listeners=PLAINTEXT://\S+?:(\d+),", re.MULTILINE)
    listeners = (pattern.search(file.read_text()) for file in files)
    return [int(listener[1]) for listener in listeners if listener]


def _localhost(ports: Sequence[int]) -> str:
    return ",".join(f"localhost:{port}" for port in ports)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one command at a time work on the directory; the others wait."""
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def guard(directories: Sequence[Path]) -> None:
    """Kill the brokers of the directories when standard input ends (see `Brokers._watch`)."""
    sys.stdin.buffer.read()
    for directory in directories:
        process = Process.find(directory / "pid", str(directory / "server.properties"))
        if process is not None:
            process.send(signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.command == "up":
            up(options.directory.resolve(), options.ports, options.heap_mb)
        elif options.command == "down":
            down(options.directory.resolve())
        elif options.command == "status":
            status(options.directory.resolve())
        else:
            guard(options.directories)
    except (KafkaUnavailable, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run Kafka brokers on loopback, without docker.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{up,down,status}")
    for name, purpose in (
        ("up", "start the brokers and wait until they are ready"),
        ("down", "stop the brokers; the data stays"),
        ("status", "tell which brokers run"),
    ):
        command = commands.add_parser(name, help=purpose)
        command.add_argument("--directory", type=Path, default=Path(".kafka"))
        if name == "up":
            command.add_argument("--ports", type=_ports, default=[9092, 9093, 9094])
            command.add_argument("--heap-mb", type=int, default=512)
    commands.add_parser("guard").add_argument("directories", type=Path, nargs="+")
    return parser


def _ports(text: str) -> list[int]:
    if re.fullmatch(r"\d+(,\d+)*", text) is None:
        raise argparse.ArgumentTypeError("give port numbers with commas, such as 9092,9093,9094")
    return [int(port) for port in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
