"""`chatsvc serve` as a process of its own, as a user runs it."""

import http.client
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from waiting import eventually


class ServeProcess:
    """Starts `chatsvc serve` on free ports with more `arguments`, and its output in files under
    `directory`. `start` waits until it says that it is ready."""

    def __init__(self, directory: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._out = directory / "stdout"
        self._err = directory / "stderr"
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "chatsvc.cli", "serve", *arguments]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(env or {})},
            )

    @classmethod
    def started(
        cls, directory: Path, *arguments: str, env: dict[str, str] | None = None
    ) -> "ServeProcess":
        """A server on free ports that is ready."""
        process = cls(directory, "--port", "0", "--metrics-port", "0", *arguments, env=env)
        process.wait_ready()
        return process

    def wait_ready(self) -> None:
        """Waits for the last line that says so."""
        ready = eventually(lambda: "Metrics: " in self.stdout or self.exit_code is not None, 60)
        assert ready, f"not ready in time: {self.stdout}{self.stderr}"
        assert self.exit_code is None, f"ended: {self.stdout}{self.stderr}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def address(self) -> str:
        found = re.search(r"started at port :(\d+)", self.stdout)
        assert found, self.stdout
        return f"localhost:{found[1]}"

    @property
    def server_id(self) -> str:
        found = re.search(r"gRPC Server \(([^)]+)\)", self.stdout)
        assert found, self.stdout
        return found[1]

    @property
    def metrics_url(self) -> str:
        found = re.search(r"Metrics: (\S+)", self.stdout)
        assert found, self.stdout
        return found[1]

    def metrics(self) -> dict[str, float]:
        """A scrape: each sample's name, with its labels, and value."""
        with urllib.request.urlopen(self.metrics_url) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def ask(self, path: str) -> tuple[int, str]:
        """The status and the text of another page of the side port."""
        address = urlsplit(self.metrics_url).netloc
        connection = http.client.HTTPConnection(address, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode().strip()
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        """Waits for the end and returns the exit code."""
        return self._process.wait(timeout)

    def close(self) -> None:
        """Ends the process if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait()
