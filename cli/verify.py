"""`chatsvc verify`: whether running servers keep what is promised, whatever happens to them."""

import os
import sys
from typing import Any

import click

from chatsvc.process import watch_signals
from chatsvc.verify.journal import Status
from chatsvc.verify.plan import Plan
from chatsvc.verify.run import Run
from chatsvc.verify.verdict import json_of, text_of

from .errors import EXIT_INTERRUPTED
from .escaping import json_line
from .options import servers_option


@click.command()
@servers_option
@click.option(
    "--writers", type=int, default=Plan.writers, show_default=True, help="Clients that send."
)
@click.option(
    "--readers", type=int, default=Plan.readers, show_default=True, help="Clients that record."
)
@click.option(
    "--rate",
    type=float,
    default=Plan.rate,
    show_default=True,
    help="Messages a second, of all writers together.",
)
@click.option(
    "--duration", type=float, default=Plan.duration, show_default=True, help="Seconds to send."
)
@click.option("--room", default=Plan.room, help="A room by its name. [default: one of the run's]")
@click.option(
    "--publish",
    type=click.Choice(["rpc", "stream", "both"]),
    default=Plan.publish,
    show_default=True,
    help="A call for each message, one at a time a writer; or all through a stream; or half of the "
    "writers each.",
)
@click.option(
    "--send-timeout",
    type=float,
    default=Plan.send_timeout,
    show_default=True,
    help="Seconds that a writer tries one message before its outcome is unknown.",
)
@click.option(
    "--settle",
    type=float,
    default=Plan.settle,
    show_default=True,
    help="Seconds without any progress before what is missing is lost.",
)
@click.option("--seed", type=int, help="What sizes and times are drawn from. [default: any]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(server: tuple[str, ...], seed: int | None, as_json: bool, **settings: Any) -> None:
    """Send numbered messages over several servers and check what readers are given.

    Says "verify: running" on stderr when it is time to break something. The exit code is 1 if a
    message was lost, duplicated, out of order or never sent, or a reader was told of a gap.
    """
    if seed is not None:
        settings["seed"] = seed
    display = _Display(is_shown=not as_json and sys.stderr.isatty())
    run = Run(Plan(servers=server, **settings), display.show)
    watch_signals(run.interrupt, lambda number: os._exit(128 + number))
    try:
        verdict = run.measure()
    finally:
        display.clear()
    click.echo(json_line(json_of(verdict)) if as_json else text_of(verdict))
    if verdict.interrupted:
        raise click.exceptions.Exit(EXIT_INTERRUPTED)
    if not verdict.ok:
        raise click.ClickException(f"Not all is well: {verdict.problem}")


class _Display:
    """What stderr is told during a run: that it is running, and if `is_shown` how far it is."""

    def __init__(self, is_shown: bool) -> None:
        self._is_shown = is_shown
        self._has_run = False

    def show(self, status: Status) -> None:
        if status.running and not self._has_run:
            self._has_run = True
            self.clear()
            click.echo("verify: running", err=True)
        if self._is_shown:
            self.clear()
            click.echo(
                f"{status.sent:,} sent, {status.acked:,} acked, {status.seen:,} seen, "
                f"{status.reconnects:,} reconnects",
                err=True,
                nl=False,
            )

    def clear(self) -> None:
        """Takes the line away that shows how far it is."""
        if self._is_shown:
            click.echo("\r\x1b[K", err=True, nl=False)
