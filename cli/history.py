"""`chatsvc history`: what was said before."""

import re
import secrets
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from chatsvc import rules
from chatsvc.client import ChatClient, Connected, Gone, Received, time_of
from chatsvc.pages import Page, Pages

from .conversation import Conversation, Shown
from .join import Output, discard_stdout
from .options import room_option, servers_option

DEFAULT_LAST = 20
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Since(click.ParamType[datetime]):
    """How long ago (`90s`, `10m`, `2h`, `7d`), or a time as ISO 8601 has it; without an offset it
    is of this machine's time zone."""

    name = "10m|TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value)
        ago = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
        try:
            if ago:
                seconds = int(ago[1]) * _UNITS[ago[2]]
                return datetime.now(UTC) - timedelta(seconds=seconds)
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{text!r} is neither like 90s, 10m, 2h or 7d nor like 2026-11-24T10:15", param, ctx
            )


@click.command()
@servers_option
@room_option
@click.option(
    "--last",
    type=click.IntRange(0, 1_000_000),
    default=None,
    help=f"The newest messages, so many. [default: {DEFAULT_LAST}, unless --since]",
)
@click.option("--since", type=Since(), default=None, help="All from then on.")
@click.option("--follow", is_flag=True, help="Go on with what is new, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each message.")
def history(
    server: tuple[str, ...],
    room: str,
    last: int | None,
    since: datetime | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Print what was said before, oldest first."""
    rules.check_room("--room", room)
    if last is not None and since is not None:
        raise click.UsageError("--last and --since exclude each other")
    output = Output("", as_json)
    try:
        cursor = _print_pages(output, server, room, last, since)
        if follow:
            _follow(output, server, room, cursor)
    except BrokenPipeError:  # who reads has enough
        discard_stdout()


def _print_pages(
    output: Output,
    servers: tuple[str, ...],
    room: str,
    last: int | None,
    since: datetime | None,
) -> bytes:
    """Returns the cursor of where to go on."""
    cursor = b""
    with Pages(servers, [room]) as pages:
        found: Iterable[Page] = (
            pages.newest(DEFAULT_LAST if last is None else last)
            if since is None
            else pages.since(since)
        )
        for page in found:
            messages = page.messages if last != 0 else ()
            output.show([Gone(gap.end - gap.start) for gap in page.gaps])
            output.show([_received(message) for message in messages])
            cursor = page.after
    return cursor


def _received(message: Any) -> Received:
    return Received(
        message.id,
        message.content,
        time_of(message),
        message.message_id,
        own=False,
        room=message.room,
        earlier=True,
    )


def _is_begin(event: Shown) -> bool:
    """Whether it is of no interest that it has begun."""
    return isinstance(event, Connected) and not event.again


def _follow(output: Output, servers: tuple[str, ...], room: str, cursor: bytes) -> None:
    name = f"history-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        client = ChatClient(name, servers, [room], cursor=cursor)
        conversation = stack.enter_context(Conversation(client, room))
        while not conversation.is_over:
            conversation.wait()
            shown = conversation.take()
            output.show([each for each in shown if not _is_begin(each)])
        if conversation.failure is not None:
            raise conversation.failure
