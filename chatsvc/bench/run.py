"""The course of a run: receivers connect, senders send, the last deliveries are waited for."""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from chatsvc.bench.crew import Crew, Interrupted, Member
from chatsvc.bench.figures import Figures, Second, latencies_of, settings_of
from chatsvc.bench.histogram import Histogram
from chatsvc.bench.ledger import lost
from chatsvc.bench.watch import ServerWatch
from chatsvc.bench.workload import NANOSECONDS, TICK_SECONDS, Workload

Progress = Callable[[str, int, int], None]
"""Told now and then what is waited for, how much of it is there, and of how much."""


class Run:
    """One run of a workload; `crew` is for one run at a time."""

    def __init__(self, workload: Workload, crew: Crew, progress: Progress) -> None:
        self._workload = workload
        self._crew = crew
        self._progress = progress
        self._receivers: list[Member] = []
        self._sender: Member | None = None
        self._watch: ServerWatch | None = None

    def measure(self) -> Figures:
        """Blocks until the run is over or the crew interrupted. Raises BenchFailed if it could
        not be made. No process is left either way."""
        interrupted = False
        try:
            self._connect()
            self._send()
            self._await_last()
        except Interrupted:
            interrupted = True
        finally:
            self._crew.stop()
        return self._figures(interrupted)

    def _start(self, program: str, **settings: object) -> Member:
        return self._crew.start(
            program, {"workload": dataclasses.asdict(self._workload), **settings}
        )

    def _connect(self) -> None:
        for first in range(self._workload.receiving_processes):
            self._receivers.append(self._start("receivers", first=first))
        connections = self._workload.connections
        while not self._crew.wait_for(lambda: self._sum("connected") == connections, TICK_SECONDS):
            self._progress("Connecting", self._sum("connected"), connections)

    def _sum(self, field: str) -> int:
        return sum(receiver.told.get(field, 0) for receiver in self._receivers)

    def _send(self) -> None:
        self._sender = sender = self._start("senders")
        self._crew.wait_for(lambda: "start_ns" in sender.told)
        self._crew.wait_for(
            lambda: False, max(0.0, sender.told["start_ns"] / NANOSECONDS - time.monotonic())
        )
        self._watch = ServerWatch(self._workload.servers)
        while not self._crew.wait_for(lambda: sender.final is not None, TICK_SECONDS):
            self._progress("Sending", sender.told.get("settled", 0), self._workload.messages)
            self._watch.sample()

    def _await_last(self) -> None:
        """Waits until all is delivered that was acknowledged, or nothing has come for too long."""
        assert self._watch is not None, "it was made before anything was sent"
        expected = self._expected()
        delivered, changed_at = -1, 0.0
        while not self._crew.wait_for(lambda: self._sum("delivered") >= expected, TICK_SECONDS):
            self._progress("Waiting for the last", self._sum("delivered"), expected)
            self._watch.sample()
            if self._sum("delivered") != delivered:
                delivered, changed_at = self._sum("delivered"), time.monotonic()
            elif time.monotonic() > changed_at + self._workload.timeout:
                return

    def _expected(self) -> int:
        return sum(
            (sent - len(unacked)) * self._workload.receivers_in(room)
            for _, room, sent, unacked in self._sent()["lanes"]
        )

    def _sent(self) -> dict[str, Any]:
        final = None if self._sender is None else self._sender.final
        return final or {
            "lanes": [],
            "refused": 0,
            "unknown": 0,
            "latencies": [],
            "last_ack_ns": 0,
            "reconnects": 0,
        }

    def _figures(self, interrupted: bool) -> Figures:
        workload, watch, sent = self._workload, self._watch, self._sent()
        received = [each.final for each in self._receivers if each.final is not None]
        states = [state for final in received for state in final["receivers"]]
        begun = sum(lane[2] for lane in sent["lanes"])
        acked = begun - sent["refused"] - sent["unknown"]
        delivered = sum(state["delivered"] for state in states)
        start_ns = 0 if self._sender is None else self._sender.told.get("start_ns", 0)
        # At the rate that was asked for, the last message is due a little before the end.
        least_seconds = 0.0 if interrupted else workload.duration
        last_ns = max((final["last_ns"] for final in received), default=0)
        seconds, latencies = _latencies(received, start_ns // NANOSECONDS)
        return Figures(
            **settings_of(workload),
            interrupted=interrupted,
            sent=begun,
            acked=acked,
            refused=sent["refused"],
            unknown=sent["unknown"],
            not_sent=workload.messages - begun,
            expected=self._expected(),
            delivered=delivered,
            # After an interruption what is missing was perhaps only on its way.
            lost=0 if interrupted else _lost(sent["lanes"], states),
            duplicated=sum(state["duplicated"] for state in states),
            out_of_order=sum(state["out_of_order"] for state in states),
            misrouted=sum(final["misrouted"] for final in received),
            reconnects=sent["reconnects"] + sum(final["reconnects"] for final in received),
            connect_seconds=self._connect_seconds(),
            sent_per_second=_rate(acked, sent["last_ack_ns"] - start_ns, least_seconds),
            deliveries_per_second=_rate(delivered, last_ns - start_ns, least_seconds),
            **latencies_of("latency", latencies),
            latency_max_ms=latencies.percentile_ms(100),
            **latencies_of("publish", Histogram(sent["latencies"])),
            server_peak_rss_bytes=None if watch is None else watch.peak_rss_bytes,
            server_cpu_percent=None if watch is None else watch.cpu_percent,
            seconds=seconds,
        )

    def _connect_seconds(self) -> float | None:
        told = [each.told for each in self._receivers if "at_ns" in each.told]
        if not told or self._sum("connected") < self._workload.connections:
            return None
        began_ns: int = min(each["began_ns"] for each in told)
        at_ns: int = max(each["at_ns"] for each in told)
        return round((at_ns - began_ns) / NANOSECONDS, 3)


def _rate(count: int, elapsed_ns: int, least_seconds: float) -> float:
    """How many a second."""
    return round(count / max(elapsed_ns / NANOSECONDS, least_seconds), 1) if count else 0.0


def _latencies(
    received: Sequence[dict[str, Any]], start: int
) -> tuple[tuple[Second, ...], Histogram]:
    """The latencies of all processes, for each second since the start and together."""
    by_second: defaultdict[int, Histogram] = defaultdict(Histogram)
    together = Histogram()
    for final in received:
        for second, pairs in final["seconds"]:
            histogram = Histogram(pairs)
            by_second[second - start].merge(histogram)
            together.merge(histogram)
    # A second without deliveries is one too.
    in_turn = [by_second[second] for second in range(max(by_second, default=-1) + 1)]
    seconds = (
        Second(second, each.total, *map(each.percentile_ms, (50, 95, 99)))
        for second, each in enumerate(in_turn)
    )
    return tuple(seconds), together


def _lost(lanes: Sequence[Any], states: Sequence[dict[str, Any]]) -> int:
    """How often an acknowledged message was not given to a receiver in its room."""
    in_room = defaultdict(list)
    for state in states:
        in_room[state["room"]].append(state)
    return sum(
        lost(state, sender, sent, unacked)
        for sender, room, sent, unacked in lanes
        for state in in_room[room]
    )
