"""The group that all commands belong to."""

import importlib

import click

from chatsvc import __version__

from .errors import OneLineGroup

COMMANDS = ("bench", "doctor", "health", "history", "join", "send", "serve", "topics", "verify")
"""Each is the command of its name in the module of its name."""


class _LazyGroup(OneLineGroup):
    """Imports a command when it is asked for: what one needs takes others time and memory."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(
    cls=_LazyGroup,
    context_settings={"auto_envvar_prefix": "CHATSVC", "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="chatsvc")
def main() -> None:
    """Durable real-time chat over Kafka."""
