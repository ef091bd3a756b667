"""A process at a terminal, as a user sees it: a real pseudo-terminal with a screen."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import pyte

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # control sequences: colours, the cursor, modes
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles
    r"|\x1b[ -/]*[0-~]"
)

# The process gets the terminal as its controlling one, as a shell would give it: only then do
# Ctrl-C and a change of size make signals. A program of its own, as forking a process with threads
# and going on in Python is not safe.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios;"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """Runs `argv` at a terminal of its own.

    A thread reads what the process writes, and answers as a terminal does, until the process has
    ended or `close` is called. All methods that wait have a deadline and fail with what is on the
    screen.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        columns: int = 100,
        rows: int = 30,
    ) -> None:
        self._raw = b""
        self._ended = False
        # Guards the two above and the screen; notified when they change.
        self._changed = threading.Condition()
        self._screen = pyte.Screen(columns, rows)
        self._screen.write_process_input = lambda data: self.send(data.encode())
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        self._stop_reader, self._stop_writer = os.pipe()
        self._set_size(columns, rows)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TAKE_TERMINAL, *argv],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                env=_environment(env or {}),
            )
        finally:
            os.close(slave)
        self._thread = threading.Thread(target=self._read, name="terminal")
        self._thread.start()

    @property
    def output(self) -> str:
        """All that the process has written, and the echo, without escape sequences."""
        with self._changed:
            return _ESCAPES.sub("", self._raw.decode(errors="replace")).replace("\r", "")

    @property
    def raw(self) -> bytes:
        """All that the process has written, as it is."""
        with self._changed:
            return self._raw

    def screen(self) -> str:
        """What is on the screen now, without blanks at the ends of rows and of the screen."""
        with self._changed:
            return "\n".join(row.rstrip() for row in self._screen.display).rstrip()

    def expect(self, text: str, timeout: float = 20) -> None:
        """Waits until the process has written `text`; also what it wrote before counts."""
        self._wait_for(lambda: text in self.output, f"{text!r} in the output", timeout)

    def expect_screen(self, text: str, timeout: float = 20) -> None:
        """Waits until `text` is on the screen. It may span rows, which end with a newline."""
        self._wait_for(lambda: text in self.screen(), f"{text!r} on the screen", timeout)

    def expect_last_row(self, text: str, timeout: float = 20) -> None:
        """Waits until the last row with anything in it is `text`."""
        self._wait_for(
            lambda: self.screen().rpartition("\n")[2] == text, f"{text!r} as last row", timeout
        )

    def send_line(self, text: str) -> None:
        """Types `text` and Enter."""
        self.send(text.encode() + b"\r")

    def send(self, keys: bytes) -> None:
        """Types `keys`: Ctrl-C is b"\\x03", Ctrl-D b"\\x04"."""
        while keys:
            keys = keys[os.write(self._master, keys) :]

    def resize(self, columns: int, rows: int) -> None:
        """Changes the size of the terminal, of which the process gets a signal."""
        with self._changed:
            self._screen.resize(rows, columns)
        self._set_size(columns, rows)

    def signal(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed by itself, as it does for a shell."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def wait(self, timeout: float = 20) -> int:
        """Waits for the end of the process and its output; returns the exit code."""
        self._wait_for(lambda: self._ended, "the end of the process", timeout)
        return self._process.wait(timeout)

    def close(self) -> None:
        """Ends the process if it still runs, and the thread. Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._thread.is_alive():
            os.write(self._stop_writer, b"\0")
            self._thread.join()
        for descriptor in (self._master, self._stop_reader, self._stop_writer):
            if descriptor >= 0:
                os.close(descriptor)
        self._master = self._stop_reader = self._stop_writer = -1

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read(self) -> None:
        while True:
            readable, _, _ = select.select([self._master, self._stop_reader], [], [])
            data = b"" if self._stop_reader in readable else _read_some(self._master)
            with self._changed:
                self._raw += data
                self._stream.feed(data)
                self._ended = not data
                self._changed.notify_all()
            if not data:
                return

    def _wait_for(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0 or (self._ended and not condition()):
                    raise AssertionError(
                        f"{'the process ended' if self._ended else f'{timeout} s passed'} "
                        f"without {what}; the screen:\n{self.screen()}"
                    )
                self._changed.wait(left)

    def _set_size(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    given = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    return {**given, "TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **more}


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # Linux says so when the last process that has the terminal is gone
        return b""
