"""`chatsvc join`: talk and listen, in a pipe or (with `prompt`) at a terminal."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TextIO

import click

from chatsvc import rules
from chatsvc.client import ChatClient, Received
from chatsvc.errors import InvalidRequest

from .conversation import Conversation, Shown, line_of
from .escaping import json_line
from .options import room_option, servers_option

BACK_SECONDS = 30.0
"""How long to wait, at the end of the input, for the next of the own lines to come back."""
SHOWN_LAST = 20
"""So many messages of before are shown at a terminal."""
READ_BYTES = 64 * 1024
MAX_LINE_BYTES = 4 * (rules.MAX_CONTENT_CHARACTERS + 1)
"""However long a line is, so much of it is enough to see that it is too long."""


@click.command()
@click.argument("name")
@servers_option
@room_option
@click.option(
    "--last",
    type=click.IntRange(0, rules.MAX_LAST),
    default=None,
    help=f"Begin with the newest messages, so many. [default: {SHOWN_LAST} at a terminal, else 0]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each message.")
def join(name: str, server: tuple[str, ...], room: str, last: int | None, as_json: bool) -> None:
    """Join the chat as NAME.

    At a terminal, type a line and press Enter; /help lists the commands. In a pipe, each line of
    the input is a message, and at its end all of them are waited for until they have come back.
    """
    rules.check_name("NAME", name)
    rules.check_room("--room", room)
    at_prompt = _is_at_terminal() and not as_json
    if last is None:
        last = SHOWN_LAST if at_prompt else 0
    with Conversation(ChatClient(name, server, [room], last=last), room) as conversation:
        unconfirmed = _talk(conversation, name, as_json, at_prompt)
    if conversation.failure is not None:
        raise conversation.failure
    if unconfirmed:
        lines = "1 line was" if unconfirmed == 1 else f"{unconfirmed} lines were"
        raise click.ClickException(f"{lines} not confirmed and may be lost")
    if conversation.refused:
        raise click.exceptions.Exit(1)


def _talk(conversation: Conversation, name: str, as_json: bool, at_prompt: bool) -> int:
    """Talks until the end; returns how many lines are not confirmed then."""
    if at_prompt:
        from .prompt import Prompt  # a pipe need not wait for its imports

        Prompt(conversation, name).run()
        return conversation.unconfirmed
    pipe = _Pipe(conversation, Output(name, as_json))
    try:
        pipe.run()
    except BrokenPipeError:  # who reads has enough
        discard_stdout()
        raise click.exceptions.Exit(1 if pipe.unconfirmed else 0) from None
    return pipe.unconfirmed


def _is_at_terminal() -> bool:
    if sys.stdin is None or sys.stdout is None or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return sys.stdin.isatty() and sys.stdout.isatty()


def discard_stdout() -> None:
    """Keeps Python from failing once more when it flushes stdout at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Output:
    """Prints what is told, one line each and at once. With `as_json`, stdout has
    messages only and all else goes to stderr. Raises BrokenPipeError."""

    def __init__(self, name: str, as_json: bool) -> None:
        self._name = name
        self._as_json = as_json

    def show(self, events: Sequence[Shown]) -> None:
        for event in events:
            if not self._as_json:
                _write(sys.stdout, self._text(event))
            elif isinstance(event, Received):
                _write(sys.stdout, _json_of(event))
            else:
                _write(sys.stderr, self._text(event))

    def _text(self, event: Shown) -> str:
        return "".join(text for _, text in line_of(event, self._name))


def _write(stream: TextIO, line: str) -> None:
    # A terminal that is not UTF-8 gets what it has and names of the rest.
    encoding = stream.encoding or "utf-8"
    click.echo(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _json_of(message: Received) -> str:
    fields = message._asdict()
    at = message.at.isoformat(timespec="milliseconds")
    return json_line({**fields, "at": at.replace("+00:00", "Z")})


class _Lines:
    """Splits what is read into lines with their numbers. Of a line that is too long for a message
    only the beginning is kept."""

    def __init__(self) -> None:
        self._rest = b""
        self._number = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, str]]:
        """The lines that end in `data`, or with it if it is empty (the end)."""
        *ended, rest = (self._rest + data).split(b"\n")
        if not data and rest:
            ended, rest = [rest], b""
        self._rest = rest[:MAX_LINE_BYTES]
        for line in ended:
            self._number += 1
            yield self._number, line.removesuffix(b"\r").decode("utf-8", "surrogateescape")


class _Pipe:
    """Sends the lines of stdin in order, and at its end waits until they have come back."""

    def __init__(self, conversation: Conversation, output: Output) -> None:
        self._conversation = conversation
        self._show = output.show
        self._lines = _Lines()
        self._read_lines: deque[str] = deque()
        self._stdin = None if sys.stdin is None else sys.stdin.fileno()
        self._last_progress = time.monotonic()

    @property
    def unconfirmed(self) -> int:
        """How many lines have been read and not come back."""
        return self._conversation.unconfirmed + len(self._read_lines)

    def run(self) -> None:
        """Blocks until all is said and has come back, it is over, or there is no more progress."""
        conversation = self._conversation
        conversation.connect(self._show)
        while not (conversation.is_over or self._is_done()):
            stdin = None if self._read_lines else self._stdin
            if conversation.wait(self._seconds_left(), stdin):
                self._read()
            self._take()
            self._say()
        if conversation.interruptions:
            conversation.finish(self._show, after_signal=True)

    def _is_done(self) -> bool:
        if self._stdin is not None:
            return False
        return self.unconfirmed == 0 or self._seconds_left() == 0

    def _seconds_left(self) -> float | None:
        if self._stdin is not None:
            return None
        return max(0.0, self._last_progress + BACK_SECONDS - time.monotonic())

    def _read(self) -> None:
        assert self._stdin is not None, "it was waited for"
        try:
            data = os.read(self._stdin, READ_BYTES)
        except OSError:  # a terminal that is gone
            data = b""
        for number, text in self._lines.feed(data):
            self._check(number, text)
        if not data:
            self._stdin = None
            self._last_progress = time.monotonic()

    def _check(self, number: int, text: str) -> None:
        if not text:
            return
        try:
            rules.check_content(f"line {number}", text)
        except InvalidRequest as error:
            self._conversation.refused += 1
            click.echo(f"{error}; not sent", err=True)
        else:
            self._read_lines.append(text)

    def _take(self) -> None:
        before = self._conversation.unconfirmed
        self._show(self._conversation.take())
        if self._conversation.unconfirmed < before:
            self._last_progress = time.monotonic()

    def _say(self) -> None:
        while self._read_lines and self._conversation.has_room:
            self._conversation.say(self._read_lines.popleft())
