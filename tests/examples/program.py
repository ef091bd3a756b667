"""An example as a process of its own, with a pipe for its input."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from waiting import eventually

WAIT = 60


class Program:
    """Runs `command`; what it prints is in files under `directory`."""

    def __init__(self, directory: Path, command: Sequence[str]) -> None:
        directory.mkdir()
        self._out = directory / "stdout"
        self._err = directory / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=err)

    @property
    def lines(self) -> list[str]:
        """What it has printed, by lines that are whole."""
        return self._out.read_text().rpartition("\n")[0].splitlines()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def say(self, *lines: str) -> None:
        """Gives it lines of input."""
        assert self._process.stdin is not None  # it is a pipe
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self._process.stdin.flush()

    def expect(self, line: str) -> None:
        """Waits until it has printed a line."""
        printed = eventually(lambda: line in self.lines or self._process.poll() is not None, WAIT)
        assert printed, f"no {line!r} in the end, {self.lines[-20:]}: {self.stderr}"
        assert line in self.lines, f"ended before {line!r}: {self.stderr}"

    def expect_error(self, part: str) -> None:
        """Waits until a line on stderr has it."""
        assert eventually(lambda: "\n" in self.stderr and part in self.stderr, WAIT), self.stderr

    def finish(self) -> int:
        """Ends its input and returns the exit code."""
        assert self._process.stdin is not None  # it is a pipe
        self._process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        """Waits until it ends; returns the exit code."""
        return self._process.wait(WAIT)

    def close(self) -> None:
        """Ends the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None  # it is a pipe
        self._process.stdin.close()
