"""`chatsvc health`: whether a server takes clients."""

import click

from chatsvc.health import ask

from .options import ServerAddress


@click.command()
@click.option(
    "--server",
    type=ServerAddress(),
    default="localhost:8081",
    show_default=True,
    help="The server to ask.",
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="Seconds."
)
def health(server: str, timeout: float) -> None:
    """Ask a server whether clients should come: for health checks of containers and scripts.

    Prints SERVING and exits with 0 if they should, else with 1.
    """
    status = ask(server, timeout)
    click.echo(status)
    if status != "SERVING":
        raise click.exceptions.Exit(1)
