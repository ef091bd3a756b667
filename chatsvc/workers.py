"""Supervisor: several servers on one port, each a process of its own.

It imports neither gRPC nor Kafka's client: it must stay small, and outlive what they may do.
"""

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter

from chatsvc.child import Child
from chatsvc.config import Config
from chatsvc.errors import BrokerLost, ChatError, WorkerFailed
from chatsvc.gathering import Gathering
from chatsvc.listening import Listening
from chatsvc.reservation import Reservation
from chatsvc.seats import SeatTable
from chatsvc.sideport import SidePort

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
STEADY_SECONDS = 10.0
"""A worker that ran so long is started again after the first pause."""
KILL_SECONDS = 3.0
"""How much longer than a server's own `stop_timeout` a worker may take to stop."""


class Supervisor:
    """`config.workers` servers that share the port, the limit of streams and, without Kafka, an
    embedded broker; a worker that ends is started again.

    `start`, `wait` and `stop` are called by one thread, in this order; `stop` also after a failed
    start. `ask_to_stop` and `kill` may be called by any thread.
    """

    def __init__(self, config: Config, log_format: str, log_level: str) -> None:
        """Raises InvalidConfig if the server id has no room for a worker's number."""
        self._config = config
        self._logs = {"log_format": log_format, "log_level": log_level}
        self._configs = [
            dataclasses.replace(
                config,
                server_id=f"{config.server_id}-w{slot}",
                metrics_host="127.0.0.1",
                metrics_port=0,
            )
            for slot in range(config.workers)
        ]
        self._reservation = Reservation()
        self.registry = registry = CollectorRegistry()
        gathering = Gathering(self._metrics_urls)
        self._metrics_port = SidePort(
            registry, config.metrics_host, config.metrics_port, gathering.readiness
        )
        self._restarts = Counter(
            "chatsvc_worker_restarts",
            "Workers started again after their end",
            ("worker",),
            registry=registry,
        )
        for slot in range(config.workers):
            self._restarts.labels(str(slot))
        registry.register(gathering)
        self._seats_fd = SeatTable.create(config.workers)
        self._seats = SeatTable(self._seats_fd)
        self._broker_thread = threading.Thread(target=self._run_broker, name="broker")
        self._worker_threads = [
            threading.Thread(target=self._run_worker, args=(slot,), name=f"worker-{slot}")
            for slot in range(config.workers)
        ]
        # Guards all that follows; notified when any of it changes.
        self._changed = threading.Condition()
        self._stopping = False
        self._started = False
        self._failure: ChatError | None = None
        self._broker: Child | None = None
        self._brokers: tuple[str, ...] = ()
        # What workers inherit. The broker's lifeline is among it, so that it outlives them all.
        self._inherited = [self._seats_fd]
        self._workers: dict[int, Child] = {}
        self._listening: dict[int, Listening] = {}
        self._first_reports: dict[int, Listening] = {}

    def start(self) -> Listening | None:
        """Starts everything and returns when all workers listen; None if it was asked to stop
        before. Blocks for seconds.

        Raises PortTaken, WorkerFailed or BrokerLost.
        """
        config = self._config
        metrics_url = self._metrics_port.start()
        port = self._reservation.reserve(config.host, config.port)
        self._configs = [dataclasses.replace(each, port=port) for each in self._configs]
        if not config.brokers:
            self._broker_thread.start()
            if not self._wait(lambda: bool(self._brokers)):
                return None
        for thread in self._worker_threads:
            thread.start()
        if not self._wait(lambda: self._started):
            return None
        with self._changed:
            # Who has ended meanwhile is started again, and told nothing else than the others.
            workers = list(self._first_reports.values())
        # All of them warn of the same things, but for topics, which one of them has created.
        warnings = dict.fromkeys(warning for worker in workers for warning in worker.warnings)
        return dataclasses.replace(
            workers[0], port=port, metrics_url=metrics_url, warnings=tuple(warnings)
        )

    def wait(self) -> None:
        """Waits until it is asked to stop. Raises BrokerLost if the embedded broker ends before."""
        self._wait(lambda: False)

    def ask_to_stop(self) -> None:
        """Makes `start` and `wait` return. Does not block."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stops the workers, then the broker, and gives the port up; what has not ended some
        seconds after `stop_timeout` is killed, and so is at once a worker that does not listen
        yet. Idempotent."""
        self.ask_to_stop()
        with self._changed:
            workers = [(worker, slot in self._listening) for slot, worker in self._workers.items()]
        for worker, is_listening in workers:
            if is_listening:
                worker.terminate()
            else:  # it has no clients, and would try to reach Kafka before it looks
                worker.kill()
        self._join(self._worker_threads, self._config.stop_timeout + KILL_SECONDS)
        with self._changed:
            broker, inherited = self._broker, self._inherited
            self._inherited = []
        for fileno in inherited:
            os.close(fileno)
        if broker is not None:  # last, for workers have messages to confirm while they stop
            broker.release()
        self._join([self._broker_thread], KILL_SECONDS)
        self._metrics_port.close()
        self._reservation.close()
        if inherited:
            self._seats.close()

    def kill(self) -> None:
        """Kills what runs, and waits for nothing."""
        with self._changed:
            broker = [] if self._broker is None else [self._broker]
            children = [*self._workers.values(), *broker]
        for child in children:
            child.kill()

    def _join(self, threads: list[threading.Thread], seconds: float) -> None:
        """Waits for the threads of processes, and kills those that are late."""
        running = [thread for thread in threads if thread.ident is not None]
        deadline = time.monotonic() + seconds
        for thread in running:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in running):
            _log.warning("Not all processes have stopped in time; they are killed")
            self.kill()
        for thread in running:
            thread.join()

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition; returns False if it was asked to stop before. Raises what has
        failed."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._stopping)
            if self._failure is not None:
                raise self._failure
            return condition()

    def _fail(self, error: ChatError) -> None:
        """Ends everything, but for an end that has begun. Called with the lock held."""
        if not self._stopping:
            self._failure = error
            self._stopping = True
            self._changed.notify_all()

    def _run_broker(self) -> None:
        topics = [self._config.topic, self._config.connections_topic]
        try:
            broker = Child("chatsvc.broker", {"topics": topics, **self._logs})
        except OSError as error:
            with self._changed:
                self._fail(BrokerLost(f"could not be started: {error.strerror}"))
            return
        with self._changed:
            self._broker = broker
            if self._stopping:
                broker.release()
            else:
                self._inherited.append(os.dup(broker.lifeline))
        report = broker.report()
        if report is not None and "brokers" in report:
            with self._changed:
                self._brokers = tuple(report["brokers"])
                self._changed.notify_all()
        how = broker.wait()
        if report is not None and "error" in report:
            how = f"could not start: {report['error']}"
        with self._changed:
            self._broker = None
            self._fail(BrokerLost(how))

    def _run_worker(self, slot: int) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            end = self._run_once(slot)
            with self._changed:
                if not self._started:
                    self._fail(WorkerFailed(end.error or f"Worker {slot} {end.how} at its start"))
                if self._stopping:
                    return
            if time.monotonic() - began >= STEADY_SECONDS:
                pause = FIRST_PAUSE
            _log.warning("Worker %d %s; it is started again in %.1f s", slot, end, pause)
            with self._changed:
                if self._changed.wait_for(lambda: self._stopping, pause):
                    return
            self._restarts.labels(str(slot)).inc()
            pause = min(2 * pause, LONGEST_PAUSE)

    def _run_once(self, slot: int) -> "_End":
        """Runs a worker to its end, and returns how it ended."""
        try:
            worker = Child("chatsvc.worker", self._settings(slot), self._inherited)
        except OSError as error:
            return _End("could not be started", error.strerror)
        with self._changed:
            self._workers[slot] = worker
            if self._stopping:
                worker.kill()
        _log.debug("Worker %d is process %d", slot, worker.pid)
        report = worker.report()
        if report is not None and "error" not in report:
            self._note_listening(slot, _listening(report))
        how = worker.wait()
        # Before anybody can take its place: what it had is free again.
        self._seats.vacate(slot)
        with self._changed:
            del self._workers[slot]
            self._listening.pop(slot, None)
        return _End(how, (report or {}).get("error"))

    def _settings(self, slot: int) -> dict[str, Any]:
        return {
            "config": dataclasses.asdict(self._configs[slot]),
            "slot": slot,
            "seats": self._seats_fd,
            "embedded": self._brokers,
            **self._logs,
        }

    def _note_listening(self, slot: int, listening: Listening) -> None:
        with self._changed:
            self._listening[slot] = listening
            if not self._started and len(self._listening) == self._config.workers:
                self._started = True
                self._first_reports = dict(self._listening)
                self._changed.notify_all()

    def _metrics_urls(self) -> dict[str, str | None]:
        with self._changed:
            urls = {slot: each.metrics_url for slot, each in self._listening.items()}
        return {str(slot): urls.get(slot) for slot in range(self._config.workers)}


class _End(NamedTuple):
    """How a worker ended; `error` is why it could not start, in its own words."""

    how: str
    error: str | None = None

    def __str__(self) -> str:
        return self.how if self.error is None else f"could not start: {self.error}"


def _listening(report: dict[str, Any]) -> Listening:
    return Listening(
        port=report["port"],
        metrics_url=report["metrics_url"],
        brokers=tuple(report["brokers"]),
        embedded=report["embedded"],
        warnings=tuple(report["warnings"]),
    )
