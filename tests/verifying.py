"""`chatsvc verify` as a process of its own beside a test: load, and a verdict on it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from waiting import eventually

READERS = 4
DEFAULTS = (
    *("--writers", "4", "--readers", str(READERS), "--publish", "both", "--seed", "1"),
    *("--rate", "80", "--duration", "600", "--send-timeout", "90", "--settle", "60"),
)


class Pause(NamedTuple):
    """The longest time without an ack, or without a delivery; both in seconds, `at` since the
    start."""

    seconds: float
    at: float


class Verdict:
    """What `verify --json` says: its counts by their names."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said
        self.sent: int = said["sent"]
        self.acked: int = said["acked"]
        self.reconnects: int = said["reconnects"]
        self.ack_pause = Pause(**said["longest_ack_pause"])
        self.delivery_pause = Pause(**said["longest_delivery_pause"])

    def __str__(self) -> str:
        said = self.said
        return (
            f"{self.ack_pause.seconds:.1f} s without an ack, "
            f"{self.delivery_pause.seconds:.1f} s without a delivery; {self.acked} of {self.sent} "
            f"acked, {said['seen']} seen by {READERS} readers, {said['lost']} lost, "
            f"{said['duplicated']} twice, {said['reordered']} out of order, "
            f"{self.reconnects} reconnects"
        )


class VerifyProcess:
    """Four writers and four readers, spread over some servers, that go on until `finish`.

    `running` waits until all of them are connected and a message was acked. What `options` say
    is stronger than the defaults, by which a message is tried for as long as a test may take.
    `before` is a command that runs another one.
    """

    def __init__(
        self, directory: Path, addresses: Iterable[str], *options: str, before: Sequence[str] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._out = directory / "stdout"
        self._err = directory / "stderr"
        command = [sys.executable, "-m", "chatsvc.cli", "verify", "--json", *DEFAULTS, *options]
        command += [option for each in addresses for option in ("--server", each)]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [*before, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def running(self) -> "VerifyProcess":
        """Waits until messages come and go."""
        running = eventually(
            lambda: "verify: running" in self._err.read_text() or self._ended, timeout=60
        )
        assert running, f"verify does not run: {self._err.read_text()}"
        assert not self._ended, f"verify has ended: {self._err.read_text()}"
        return self

    @property
    def _ended(self) -> bool:
        return self._process.poll() is not None

    def finish(self) -> Verdict:
        """Has the writers stop, waits until the readers have all that was acked, or nothing has
        come for long, and asserts that no message was lost, delivered twice, out of order or by
        nobody, and that no reader was told of a gap."""
        assert not self._ended, f"verify has ended: {self._err.read_text()}"
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=150)
        said = self._out.read_text()
        assert said, f"no verdict: {self._err.read_text()}"
        verdict = Verdict(json.loads(said))
        assert verdict.said["ok"], verdict.said
        assert verdict.acked, verdict.said
        return verdict

    def close(self) -> None:
        """Ends the process if it still runs."""
        if not self._ended:
            self._process.kill()
        self._process.wait()
