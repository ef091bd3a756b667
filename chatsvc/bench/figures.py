"""Figures: what a run has shown, for people and as JSON."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from chatsvc.bench.histogram import Histogram
from chatsvc.bench.workload import Workload


class Second(NamedTuple):
    """What was delivered in one second of a run."""

    second: int
    deliveries: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The settings and the outcome of a run; the names are the keys of the JSON.

    Latencies begin when a message was due: `latency_…` end when a receiver was given it,
    `publish_…` when the server acknowledged it. None is what was not measured.
    """

    run: str
    servers: tuple[str, ...]
    connections: int
    rooms: int
    rate_per_second: float
    size_bytes: int
    duration_seconds: float
    senders: int
    publish: str
    processes: int
    interrupted: bool
    due: int
    sent: int
    acked: int
    refused: int
    unknown: int
    not_sent: int
    expected: int
    delivered: int
    lost: int
    duplicated: int
    out_of_order: int
    misrouted: int
    reconnects: int
    connect_seconds: float | None
    sent_per_second: float
    deliveries_per_second: float
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    latency_max_ms: float | None
    publish_p50_ms: float | None
    publish_p95_ms: float | None
    publish_p99_ms: float | None
    server_peak_rss_bytes: int | None
    server_cpu_percent: float | None
    seconds: tuple[Second, ...]

    @property
    def problem(self) -> str:
        """The counts of what must not be; empty if there is nothing."""
        counts = {
            "lost": self.lost,
            "duplicated": self.duplicated,
            "out of order": self.out_of_order,
            "of another room": self.misrouted,
            "with unknown outcome": self.unknown,
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)

    @property
    def warning(self) -> str:
        """That the load was less than was asked for; else empty."""
        if self.interrupted or self.sent == self.due:
            return ""
        return f"{self.sent:,} of {self.due:,} due messages were sent: the rate was not kept"


def settings_of(workload: Workload) -> dict[str, Any]:
    """The figures that are known beforehand."""
    return {
        "run": workload.run,
        "servers": workload.servers,
        "connections": workload.connections,
        "rooms": workload.rooms,
        "rate_per_second": workload.rate,
        "size_bytes": workload.size,
        "duration_seconds": workload.duration,
        "senders": workload.senders,
        "publish": workload.publish,
        "processes": workload.receiving_processes,
        "due": workload.messages,
    }


def latencies_of(name: str, histogram: Histogram) -> dict[str, Any]:
    """A histogram's percentiles under their keys."""
    return {f"{name}_p{percent}_ms": histogram.percentile_ms(percent) for percent in (50, 95, 99)}


def json_of(runs: Sequence[Figures]) -> dict[str, Any]:
    """One object: the figures of the run, or `runs` of several."""
    objects = [
        {**dataclasses.asdict(run), "seconds": [second._asdict() for second in run.seconds]}
        for run in runs
    ]
    return objects[0] if len(objects) == 1 else {"runs": objects}


def text_of(run: Figures) -> str:
    """A run in some lines."""
    interrupted = "Interrupted; the counts so far:\n" if run.interrupted else ""
    connected = "" if run.connect_seconds is None else f" in {run.connect_seconds:.2f} s"
    lines = (
        _settings_line(run),
        f"Connected   {run.connections:,}{connected}; {run.reconnects:,} reconnects",
        f"Messages    {run.sent:,} sent ({run.acked:,} acked), {run.refused:,} refused, "
        f"{run.unknown:,} unknown, {run.not_sent:,} not sent in time",
        f"Deliveries  {run.expected:,} expected, {run.delivered:,} delivered, {run.lost:,} lost, "
        f"{run.duplicated:,} duplicated, {run.out_of_order:,} out of order, "
        f"{run.misrouted:,} of another room",
        f"Rates       {run.sent_per_second:,} sent/s, {run.deliveries_per_second:,} deliveries/s",
        f"Latency     P50 {_ms(run.latency_p50_ms)}, P95 {_ms(run.latency_p95_ms)}, "
        f"P99 {_ms(run.latency_p99_ms)}, max {_ms(run.latency_max_ms)} ms (due to delivered)",
        f"Publish     P50 {_ms(run.publish_p50_ms)}, P95 {_ms(run.publish_p95_ms)}, "
        f"P99 {_ms(run.publish_p99_ms)} ms (due to acked)",
        *_server_line(run),
    )
    return interrupted + "\n".join(lines)


def _settings_line(run: Figures) -> str:
    return (
        f"{run.rate_per_second:g} messages/s of {run.size_bytes} bytes for "
        f"{run.duration_seconds:g} s by {run.senders} senders ({run.publish}) in {run.rooms} "
        f"room{'s' * (run.rooms > 1)} at {', '.join(run.servers)}"
    )


def _server_line(run: Figures) -> list[str]:
    if run.server_peak_rss_bytes is None:
        return []
    mebibytes = run.server_peak_rss_bytes / 2**20
    cpu = "" if run.server_cpu_percent is None else f", {run.server_cpu_percent:.0f} % of a core"
    return [f"Server      {mebibytes:.0f} MiB at most{cpu}"]


def table_of(runs: Sequence[Figures]) -> str:
    """Several runs, a row each."""
    head: tuple[str, ...] = ("connections", "sent", "delivered", "lost", "dup.", "disorder")
    head += ("deliveries/s", "P50 ms", "P95 ms", "P99 ms", "max ms", "connect s", "MiB", "CPU %")
    rows = [head, *map(_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.rjust, row, widths)) for row in rows)
    interrupted = "\nThe last run was interrupted." * runs[-1].interrupted
    return "\n".join((_settings_line(runs[0]), *lines)) + interrupted


def _row(run: Figures) -> tuple[str, ...]:
    rss = run.server_peak_rss_bytes
    latencies = (run.latency_p50_ms, run.latency_p95_ms, run.latency_p99_ms, run.latency_max_ms)
    counts = (run.connections, run.sent, run.delivered, run.lost, run.duplicated, run.out_of_order)
    return (
        *(f"{count:,}" for count in counts),
        f"{run.deliveries_per_second:,}",
        *map(_ms, latencies),
        "-" if run.connect_seconds is None else f"{run.connect_seconds:.2f}",
        "-" if rss is None else f"{rss / 2**20:.0f}",
        "-" if run.server_cpu_percent is None else f"{run.server_cpu_percent:.0f}",
    )


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
