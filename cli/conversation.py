"""What both ways to join have in common: the user's lines on their way, what comes in, and how it
reads.

Two threads talk to the client and put what happens into an inbox; all else runs in the main
thread, which waits for the inbox, the keyboard and signals at once.
"""

import os
import queue
import select
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, NamedTuple

from chatsvc.client import ChatClient, Connected, Gone, Lost, Received
from chatsvc.errors import ChatError, ClientClosed, SendFailed
from chatsvc.model import LOBBY

from .escaping import shown

MAX_UNCONFIRMED = 1_000
"""Lines that may be on their way at once, also those that are typed while no server is there."""
MAX_INBOX = 1_000
"""Events that wait for the screen; when there are so many, the client waits too."""
LEAVE_SECONDS = 5.0
"""How long leaving waits for lines that are not confirmed."""


class Refused(NamedTuple):
    """A line was refused for good and is not sent."""

    content: str
    cause: str


Shown = Received | Connected | Lost | Gone | Refused
"""What a user is told."""
Show = Callable[[Sequence[Shown]], None]


class _Stored(NamedTuple):
    """All in-sync replicas have a line; its way back through the server is still to come."""

    message_id: str
    at: datetime


class _NotStored(NamedTuple):
    """A line is refused for good."""

    message_id: str
    cause: str


class _Ended(NamedTuple):
    """The client is of no more use."""

    error: Exception


_Event = Received | Connected | Lost | Gone | _Stored | _NotStored | _Ended


class _Inbox:
    """A bounded queue from threads to the main thread, which waits for `fileno()` to be readable.

    `put` waits while it is full and drops what comes after `close`.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        # Guards the two below; notified when there is room, and by close.
        self._changed = threading.Condition()
        self._events: deque[_Event] = deque()
        self._closed = False

    def fileno(self) -> int:
        return self._reader

    def wake(self) -> None:
        """Makes `fileno()` readable. May be called by a signal handler."""
        with suppress(BlockingIOError):  # so full that it is readable anyway
            os.write(self._writer, b"\0")

    def put(self, event: _Event) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) < MAX_INBOX or self._closed)
            if not self._closed:
                self._events.append(event)
                self.wake()

    def take_all(self) -> list[_Event]:
        """Everything that waits. `fileno()` is readable again only for what comes later."""
        with suppress(BlockingIOError):
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        with self._changed:
            events = list(self._events)
            self._events.clear()
            self._changed.notify_all()
        return events

    def close(self) -> None:
        """Releases waiting threads; the pipe stays until `release`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def release(self) -> None:
        """Closes the pipe, once nothing can wake any more."""
        os.close(self._reader)
        os.close(self._writer)


class _Line:
    """One of the user's lines that has not come back. `losses` is how many streams had been lost
    when it was said."""

    def __init__(self, content: str, losses: int) -> None:
        self.content = content
        self.losses = losses
        self.stored_at: datetime | None = None


class _Lines:
    """The user's lines on their way: said, stored by Kafka, come back.

    A line that is stored when a stream is lost may have been on its way back through it, and the
    next stream begins behind it. Such a line is given out as come back at once, and its other copy,
    if there is one, is not.
    """

    def __init__(self, user: str) -> None:
        self._user = user
        self._lines: dict[str, _Line] = {}
        self._losses = 0
        self._given_out: set[str] = set()

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, message_id: str, content: str) -> None:
        self._lines[message_id] = _Line(content, self._losses)

    def refuse(self, message_id: str) -> str | None:
        """Forgets a line and returns its content; None if it has come back all the same."""
        line = self._lines.pop(message_id, None)
        return None if line is None else line.content

    def note_stored(self, message_id: str, at: datetime) -> list[Received]:
        """Kafka has a line. Returns what counts as come back now."""
        line = self._lines.get(message_id)
        if line is None:  # it came back first
            return []
        line.stored_at = at
        return self._give_out() if line.losses != self._losses else []

    def note_loss(self) -> list[Received]:
        """A stream is lost. Returns what counts as come back now."""
        self._losses += 1
        return self._give_out()

    def note_back(self, message_id: str) -> bool:
        """One of the user's messages has come. Returns whether it is new to the user."""
        self._lines.pop(message_id, None)
        is_new = message_id not in self._given_out
        self._given_out.discard(message_id)
        return is_new

    def _give_out(self) -> list[Received]:
        given = [
            Received(self._user, line.content, line.stored_at, message_id, own=True)
            for message_id, line in self._lines.items()
            if line.stored_at is not None
        ]
        for message in given:
            del self._lines[message.message_id]
            self._given_out.add(message.message_id)
        return given


class Conversation:
    """A user in the chat, who sends to `room`. Used with `with`, and by the main thread only.

    `say` queues a line, `take` returns what has happened. A line counts as unconfirmed until it
    has come back, or, when the stream for its way back is lost, until Kafka has it.
    """

    def __init__(self, client: ChatClient, room: str = LOBBY) -> None:
        self._client = client
        self._room = room
        self._inbox = _Inbox()
        self._lines = _Lines(client.user)
        self._outgoing: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        # Guards how many lines the client has been given to post and has not told the outcome of.
        self._lock = threading.Lock()
        self._posted = 0
        self.has_joined = False
        """Whether a server has registered the stream once."""
        self.is_connected = False
        self.refused = 0
        """How many lines were refused for good."""
        self.interruptions = 0
        """How many SIGINT and SIGTERM have come."""
        self.failure: Exception | None = None
        """Why nothing more will come: a server's refusal of this user, usually."""
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._threads = [
            threading.Thread(target=self._receive, name="join-receive"),
            threading.Thread(target=self._send, name="join-send"),
        ]

    def __enter__(self) -> "Conversation":
        """Takes over SIGINT and SIGTERM and starts to connect, without waiting for it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous_handlers[number] = signal.signal(number, self._on_signal)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Closes the client, ends the threads and gives the signals back."""
        self._inbox.close()
        self._outgoing.put(None)
        self._client.close()
        for thread in self._threads:
            thread.join()
        for number, previous in self._previous_handlers.items():
            # A Ctrl-C while Python shuts down must not print a traceback.
            is_of_python = previous is signal.default_int_handler
            signal.signal(number, signal.SIG_DFL if is_of_python else previous)
        self._inbox.release()

    @property
    def is_over(self) -> bool:
        """Whether to leave: nothing more will come, or a signal has."""
        return self.failure is not None or self.interruptions > 0

    @property
    def unconfirmed(self) -> int:
        """How many of the user's lines are on their way."""
        return len(self._lines)

    @property
    def has_room(self) -> bool:
        """Whether `say` may be called."""
        return len(self._lines) < MAX_UNCONFIRMED

    def say(self, content: str) -> None:
        """Queues a line, which is sent after those before it, once. Only while there is room."""
        assert self.has_room, "the caller asks before"
        message_id = uuid.uuid4().hex
        self._lines.add(message_id, content)
        self._outgoing.put((message_id, content))

    def fileno(self) -> int:
        """Readable when there is something to `take`, or a signal has come."""
        return self._inbox.fileno()

    def take(self) -> list[Shown]:
        """What has happened since the last call, in order."""
        return [told for event in self._inbox.take_all() for told in self._apply(event)]

    def wait(self, timeout: float | None = None, stdin: int | None = None) -> bool:
        """Waits until there is something to `take`, a signal has come, `stdin` can be read or
        `timeout` seconds have passed; returns whether `stdin` can be read."""
        watched = [self.fileno()] if stdin is None else [self.fileno(), stdin]
        readable, _, _ = select.select(watched, [], [], timeout)
        return stdin in readable

    def connect(self, show: Show) -> None:
        """Blocks until the server has registered the stream, or it is over."""
        while not (self.has_joined or self.is_over):
            self.wait()
            show(self.take())

    def finish(self, show: Show, *, after_signal: bool) -> None:
        """Waits for lines that are not confirmed, until LEAVE_SECONDS have passed or a signal comes
        (another one, `after_signal`), which may have been while the terminal was restored."""
        deadline = time.monotonic() + LEAVE_SECONDS
        show(self.take())
        while self.unconfirmed and self.failure is None and self.interruptions <= after_signal:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.wait(left)
            show(self.take())

    def _apply(self, event: _Event) -> Sequence[Shown]:
        """Notes what an event means; returns what to show of it."""
        match event:
            case Received(own=True, message_id=message_id):
                return [event] if self._lines.note_back(message_id) else []
            case Received() | Gone():
                return [event]
            case Connected():
                self.has_joined = self.is_connected = True
                return [event]
            case Lost():
                self.is_connected = False
                return [event, *self._lines.note_loss()]
            case _Stored(message_id, at):
                return self._lines.note_stored(message_id, at)
            case _NotStored(message_id, cause):
                return self._refuse(message_id, cause)
            case _Ended(error):
                self.failure = error
                return []

    def _refuse(self, message_id: str, cause: str) -> Sequence[Shown]:
        content = self._lines.refuse(message_id)
        if content is None:
            return []
        self.refused += 1
        return [Refused(content, cause)]

    def _receive(self) -> None:
        """The thread that connects, and then hands on what the client receives."""
        try:
            self._inbox.put(self._client.connect())
            while True:
                event = self._client.receive()
                assert event is not None, "without a timeout there always is one"
                self._inbox.put(event)
        except ClientClosed:
            return
        except Exception as error:  # what is a bug is raised in the main thread, too
            self._inbox.put(_Ended(error))

    def _send(self) -> None:
        """The thread that sends the lines, many at once, each until it is confirmed."""
        try:
            while line := self._outgoing.get():
                if self._outgoing.empty() and not self._posted:
                    self._send_alone(*line)
                else:
                    self._post(*line)
        except ChatError:  # closed, or refused for good, which the other thread reports
            return
        except Exception as error:
            self._inbox.put(_Ended(error))

    def _send_alone(self, message_id: str, content: str) -> None:
        """Sends a line while no other waits: what a person types needs no stream of messages."""
        try:
            self._client.send(content, room=self._room, message_id=message_id, timeout=None)
        except SendFailed as error:
            self._tell(message_id, error)
        else:
            self._tell(message_id, None)

    def _post(self, message_id: str, content: str) -> None:
        with self._lock:
            self._posted += 1
        self._client.post(content, room=self._room, message_id=message_id, on_outcome=self._settle)

    def _settle(self, message_id: str, error: ChatError | None) -> None:
        """Called by the client with what became of a line that was posted."""
        with self._lock:
            self._posted -= 1
        self._tell(message_id, error)

    def _tell(self, message_id: str, error: ChatError | None) -> None:
        if error is None:
            self._inbox.put(_Stored(message_id, datetime.now(UTC)))
        elif isinstance(error, SendFailed):
            self._inbox.put(_NotStored(message_id, error.cause))
        # Else the client is closed, or refused for good, which the other thread reports.

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interruptions += 1
        self._inbox.wake()
        if self.interruptions > 1:
            signal.signal(number, signal.SIG_DFL)  # a third one ends us whatever we wait for


Fragments = list[tuple[str, str]]
"""One line for the user: pieces of text, each with the name of its style."""


def line_of(event: Shown, name: str) -> Fragments:
    """How an event reads to the user `name`, with nothing in it that a terminal obeys."""
    match event:
        case Received(own=True):
            return [
                ("class:own", "✓ "),
                ("class:time", _time_of(event)),
                ("class:own", " You"),
                ("", f": {shown(event.content)}"),
            ]
        case Received():
            return [
                ("", "📩 "),
                ("class:time", _time_of(event)),
                ("class:user", f" {shown(event.user)}"),
                ("", f": {shown(event.content)}"),
            ]
        case Connected(again=True):
            return [("class:status", f"Connected again to server {event.server}")]
        case Connected():
            return [("class:status", f"Connected to server as user: {shown(name)}")]
        case Lost():
            cause = shown(event.cause.partition(";")[0])  # what to do about it, we do
            return [("class:status", f"Connection lost: {cause}; reconnecting ...")]
        case Gone(records):
            return [("class:problem", _loss(records))]
        case Refused():
            text = f"Not sent: {shown(event.cause)}: {shown(event.content)}"
            return [("class:problem", text)]


def _loss(records: int | None) -> str:
    if records is None:
        return "The topic is a new one: there is nothing before this"
    return f"Up to {records} messages that came meanwhile are gone: Kafka kept them no longer"


def _time_of(message: Received) -> str:
    of_before = message.missed or message.earlier
    return f"[{_clock(message.at, of_before)}{', missed' if message.missed else ''}]"


def _clock(at: datetime, of_before: bool) -> str:
    """A time of this machine's zone; with the day if it may be another than today, and is."""
    try:
        local = at.astimezone()
        another_day = of_before and local.date() != datetime.now().astimezone().date()
        return local.strftime("%Y-%m-%d %H:%M:%S" if another_day else "%H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a record's time may be any number
        return "--:--:--"
