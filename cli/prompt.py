"""`chatsvc join` at a terminal: a prompt that messages do not tear.

The prompt is up all the time; what comes in is printed above it by the same thread.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import wcwidth
from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.renderer import CPR_Support, print_formatted_text
from prompt_toolkit.styles import Style

from chatsvc import rules
from chatsvc.errors import InvalidRequest

from .conversation import MAX_UNCONFIRMED, Conversation, Fragments, Shown, line_of
from .escaping import shown

HELP = (
    "/help      list the commands",
    "/quit      leave; so do Ctrl-D and Ctrl-C",
    "//text     send a text that begins with a slash: /text",
)

_INDENT = "  "
_STYLE = Style.from_dict(
    {
        "own": "ansigreen",
        "user": "ansicyan",
        "time": "ansibrightblack",
        "status": "ansiyellow",
        "problem": "ansired",
        "rprompt": "ansiyellow",
    }
)


class Prompt:
    """A user at a terminal. All of it runs in the main thread."""

    def __init__(self, conversation: Conversation, name: str) -> None:
        self._conversation = conversation
        self._name = name
        self._left_after_signal = False
        session: PromptSession[None] = PromptSession(
            f"[{shown(name)}] > ",
            rprompt=self._waiting,
            style=_STYLE,
            erase_when_done=True,
            enable_suspend=True,
        )
        # The prompt stays when a line is entered: it is not made anew, in which time the terminal
        # would show what is typed by itself.
        session.default_buffer.accept_handler = self._accept
        self._app = session.app
        # We need not know in which row the prompt is, and not every terminal would tell.
        self._app.renderer.cpr_support = CPR_Support.NOT_SUPPORTED

    def run(self) -> None:
        """Blocks until the user leaves, a signal comes or nothing more can come, and then for what
        is not confirmed. The terminal is as before, also after an error."""
        self._conversation.connect(self._show)
        if not self._conversation.is_over:
            with suppress(EOFError, KeyboardInterrupt):  # Ctrl-D and Ctrl-C, which are keys here
                # Signals are the conversation's, which wakes us.
                self._app.run(pre_run=self._attach, handle_sigint=False)
        self._conversation.finish(self._show, after_signal=self._left_after_signal)

    def _attach(self) -> None:
        asyncio.get_running_loop().add_reader(self._conversation, self._on_wake)
        self._on_wake()

    def _on_wake(self) -> None:
        if self._app.is_done or not self._app.is_running:
            return  # the event loop is ending; the rest is shown when the prompt is gone
        self._show(self._conversation.take())
        if self._conversation.is_over:
            self._left_after_signal = self._conversation.interruptions > 0
            self._app.exit()

    def _accept(self, buffer: Buffer) -> bool:
        """Takes an entered line; returns whether it stays at the prompt."""
        text = buffer.text
        if text.startswith("/") and not text.startswith("//"):
            self._obey(text.split()[0])
            return False
        if not text.strip():
            return False
        return not self._say(text.removeprefix("/"))

    def _obey(self, command: str) -> None:
        if command == "/quit":
            self._app.exit()
        elif command == "/help":
            for line in HELP:
                self._print([("class:status", line)])
        else:
            name = shown(command)
            self._complain(f"Unknown command {name}; /help lists them, /{name} sends it as text")

    def _say(self, text: str) -> bool:
        """Queues a text; returns whether that was possible."""
        try:
            rules.check_content("the message", text)
        except InvalidRequest as error:
            self._complain(f"Not sent: {error.field} {error.problem}")
            return False
        if not self._conversation.has_room:
            self._complain(f"Not sent: {MAX_UNCONFIRMED} lines wait already; try again later")
            return False
        self._conversation.say(text)
        return True

    def _waiting(self) -> str:
        """What stands at the right of the prompt while there is no server."""
        if self._conversation.is_connected:
            return ""
        waiting = self._conversation.unconfirmed
        return f"reconnecting, {waiting} waiting" if waiting else "reconnecting"

    def _complain(self, problem: str) -> None:
        self._print([("class:problem", problem)])

    def _show(self, events: Sequence[Shown]) -> None:
        if events:
            self._print(*(line_of(event, self._name) for event in events))

    def _print(self, *lines: Fragments) -> None:
        """Prints lines above the prompt, if it is up, without leaving the terminal's raw mode: in
        the other one the terminal would show what is typed meanwhile."""
        output = self._app.output
        if self._app.is_running:
            self._app.renderer.erase()
        columns = output.get_size().columns
        for line in lines:
            text = FormattedText([*wrapped(line, columns), ("", "\n")])
            print_formatted_text(output, text, _STYLE, color_depth=self._app.color_depth)
        if self._app.is_running:
            self._app.invalidate()


def wrapped(line: Fragments, columns: int) -> Fragments:
    """The line broken at `columns`, every row but the first indented: nobody's text can begin a
    row of its own and look like another line."""
    room = max(columns, len(_INDENT) + 2)
    column = 0
    rows: Fragments = []
    for style, text in line:
        pieces = []
        joins = False  # characters that make one emoji stay together
        for character in text:
            width = max(0, wcwidth.wcwidth(character))
            if column + width > room and width and not joins:
                pieces.append(f"\n{_INDENT}")
                column = len(_INDENT)
            pieces.append(character)
            column += width
            joins = character == "\u200d"
        rows.append((style, "".join(pieces)))
    return rows
