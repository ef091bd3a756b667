"""The group that all commands belong to."""

import click

from chatsvc import __version__

from .errors import OneLineGroup
from .join import join
from .send import send
from .serve import serve
from .topics import topics


@click.group(
    cls=OneLineGroup,
    context_settings={"auto_envvar_prefix": "CHATSVC", "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="chatsvc")
def main() -> None:
    """Durable real-time chat over Kafka."""


for command in (serve, join, send, topics):
    main.add_command(command)
