"""How what goes wrong reaches the user: one line on stderr and an exit code, never a traceback."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from chatsvc.errors import ChatError, InvalidConfig, InvalidRequest

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class OneLineGroup(click.Group):
    """A group whose commands may raise any ChatError. All errors are shown in one line; the exit
    code is 2 for what the user wrote, 1 for the rest."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            # Without standalone mode, click returns the code of ctx.exit().
            code = super().main(args, *rest, **extra)
        except (InvalidConfig, InvalidRequest) as error:
            _exit(EXIT_USAGE, str(error))
        except ChatError as error:
            _exit(EXIT_FAILED, str(error))
        except click.UsageError as error:
            _exit(EXIT_USAGE, _usage(error))
        except click.ClickException as error:
            _exit(error.exit_code, error.format_message())
        except (click.Abort, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


def _usage(error: click.UsageError) -> str:
    message = error.format_message()
    if error.ctx is None:
        return message
    return f"{message} (try '{error.ctx.command_path} --help')"


def _exit(code: int, message: str) -> None:
    click.echo(" ".join(message.split()), err=True)
    sys.exit(code)
