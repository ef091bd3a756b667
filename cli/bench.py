"""`chatsvc bench`: a running server under load, and whether anything was lost."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from chatsvc.bench.chart import draw
from chatsvc.bench.crew import Crew
from chatsvc.bench.figures import Figures, json_of, table_of, text_of
from chatsvc.bench.run import Run
from chatsvc.bench.workload import Workload
from chatsvc.process import watch_signals

from .errors import EXIT_INTERRUPTED
from .escaping import json_line
from .options import servers_option


class Counts(click.ParamType[tuple[int, ...]]):
    """Numbers, comma separated."""

    name = "N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        texts = str(value).split(",")
        for text in texts:
            # isdecimal: not the signs, spaces and underscores that int() takes too.
            if not (text.isdecimal() and len(text) < 10):
                self.fail(f"{text!r} is not a number", param, ctx)
        return tuple(map(int, texts))


def _plot_path(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Refuses what could not be written, before there is something to write."""
    if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise click.BadParameter(f"{path} cannot be written")
    return path


@click.command()
@servers_option
@click.option(
    "--connections",
    type=Counts(),
    default="100",
    show_default=True,
    help="Clients that receive; with several numbers, a run for each.",
)
@click.option(
    "--rooms",
    type=int,
    default=Workload.rooms,
    show_default=True,
    help="Rooms that they are spread over, one each.",
)
@click.option(
    "--rate",
    type=float,
    default=Workload.rate,
    show_default=True,
    help="Messages a second, over all rooms.",
)
@click.option(
    "--size", type=int, default=Workload.size, show_default=True, help="Bytes of content."
)
@click.option(
    "--duration", type=float, default=Workload.duration, show_default=True, help="Seconds to send."
)
@click.option(
    "--senders",
    type=int,
    default=Workload.senders,
    show_default=True,
    help="Clients that send.",
)
@click.option(
    "--publish",
    type=click.Choice(["rpc", "stream"]),
    default=Workload.publish,
    show_default=True,
    help="A call for each message, one at a time a sender; or all through a stream.",
)
@click.option(
    "--processes",
    type=int,
    default=None,
    help="Processes that receive. [default: one for each 250 connections]",
)
@click.option(
    "--timeout",
    type=float,
    default=Workload.timeout,
    show_default=True,
    help="Seconds to wait, without any progress, for outcomes and the last deliveries.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_plot_path,
    metavar="FILE.svg",
    help="Draw a chart of the latencies.",
)
def bench(
    server: tuple[str, ...],
    connections: tuple[int, ...],
    processes: int | None,
    as_json: bool,
    plot: Path | None,
    **settings: Any,
) -> None:
    """Put load on a running server and see whether anything is lost.

    Latencies begin when a message was due, also if it was sent late. The exit code is 1 if a
    message was lost, duplicated, out of order, in the wrong room, or not confirmed.
    """
    if processes == 0:
        raise click.BadParameter("must be at least 1", param_hint="--processes")
    workloads = [
        Workload(servers=server, connections=each, processes=processes or 0, **settings)
        for each in connections
    ]
    crew = Crew()
    watch_signals(crew.interrupt, lambda number: os._exit(128 + number))
    runs = _measure(workloads, crew)
    _print(runs, as_json)
    if plot is not None:
        _draw(runs, plot)
    _conclude(runs)
    if crew.is_interrupted:
        raise click.exceptions.Exit(EXIT_INTERRUPTED)


def _measure(workloads: Sequence[Workload], crew: Crew) -> list[Figures]:
    """Runs one after the other, until one is interrupted."""
    runs: list[Figures] = []
    for workload in workloads:
        with _Bar() as bar:
            runs.append(Run(workload, crew, bar.show).measure())
        if runs[-1].warning:
            click.echo(f"Warning: {runs[-1].warning}", err=True)
        if crew.is_interrupted:
            break
    return runs


def _print(runs: Sequence[Figures], as_json: bool) -> None:
    if as_json:
        click.echo(json_line(json_of(runs)))
    else:
        click.echo(text_of(runs[0]) if len(runs) == 1 else table_of(runs))


def _draw(runs: Sequence[Figures], plot: Path) -> None:
    try:
        draw(runs, plot)
    except OSError as error:
        raise click.ClickException(f"{plot}: {error.strerror}") from error


def _conclude(runs: Sequence[Figures]) -> None:
    problems = [
        run.problem if len(runs) == 1 else f"{run.problem} ({run.connections:,} connections)"
        for run in runs
        if run.problem and not run.interrupted
    ]
    if problems:
        raise click.ClickException(f"Not all is well: {'; '.join(problems)}")


class _Bar(ExitStack):
    """Progress on stderr if that is a terminal; else nothing."""

    _label = ""
    _bar: Any = None

    def show(self, label: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if label != self._label:
            self.close()
            self._label = label
            self._bar = self.enter_context(
                click.progressbar(length=total, label=label, file=sys.stderr)
            )
        self._bar.update(done - self._bar.pos)
