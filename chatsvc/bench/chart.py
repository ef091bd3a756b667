"""The chart of a bench: latencies over time, or over the number of connections."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pygal

from chatsvc.bench.figures import Figures

PERCENTILES = ("p50", "p95", "p99")


def draw(runs: Sequence[Figures], path: Path) -> None:
    """Writes an SVG that needs nothing from elsewhere. Raises OSError."""
    chart = _over_time(runs[0]) if len(runs) == 1 else _over_connections(runs)
    chart.no_data_text = "nothing was delivered"
    path.write_bytes(chart.render())


def _over_time(run: Figures) -> Any:
    chart = pygal.Line(
        js=[],
        include_x_axis=True,  # latencies from zero
        title=f"{run.connections:,} connections, {run.rate_per_second:g} messages/s",
        x_title="second",
        y_title="latency in ms; deliveries/s on the right",
        x_labels=[str(each.second) for each in run.seconds],
        x_labels_major_count=10,
        truncate_label=-1,
        show_minor_x_labels=False,
    )
    for name in PERCENTILES:
        chart.add(name.upper(), [getattr(each, f"{name}_ms") for each in run.seconds])
    if run.seconds:  # pygal fails at a second axis without values
        chart.add("deliveries/s", [each.deliveries for each in run.seconds], secondary=True)
    return chart


def _over_connections(runs: Sequence[Figures]) -> Any:
    # pygal has logarithms for the y axis only; here x is one.
    chart = pygal.XY(
        js=[],
        include_x_axis=True,  # latencies from zero
        title=f"{runs[0].rate_per_second:g} messages/s",
        x_title="connections",
        y_title="latency in ms",
        x_labels=[
            {"value": math.log10(run.connections), "label": f"{run.connections:,}"} for run in runs
        ],
        x_value_formatter=lambda x: f"{10**x:,.0f}",
    )
    for name in PERCENTILES:
        points = ((run.connections, getattr(run, f"latency_{name}_ms")) for run in runs)
        chart.add(name.upper(), [(math.log10(x), y) for x, y in points if y is not None])
    return chart
