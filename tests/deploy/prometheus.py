"""Prometheus with deploy/prometheus.yml and deploy/alerts.yml."""

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from .compose import DEPLOY
from brokers import free_ports
from faults.machine import needs
from waiting import eventually

FASTER = {
    "scrape_interval: 5s": "scrape_interval: 1s",
    "scrape_timeout: 4s": "scrape_timeout: 1s",
    "evaluation_interval: 5s": "evaluation_interval: 1s",
    "[1m]": "[10s]",
    "[5m]": "[20s]",
    "offset 1m": "offset 10s",
    "for: 10s": "for: 1s",
    "for: 15s": "for: 1s",
    "for: 30s": "for: 1s",
    "for: 1m": "for: 1s",
}
"""What is shortened of the files, so that a test need not wait for minutes. With the times as they
are, alerts_test.yml has the alerts."""


class Prometheus:
    """A Prometheus that scrapes the servers with these metrics addresses, and itself. The files
    differ from those in deploy/ in the addresses and in FASTER."""

    def __init__(self, directory: Path, servers: list[str]) -> None:
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        text = _faster((DEPLOY / "prometheus.yml").read_text())
        written = re.findall(r"chatsvc-\d:9464", text)
        assert len(written) == len(servers)
        for name, address in zip(written, servers, strict=True):
            text = text.replace(name, address)
        assert "localhost:9090" in text
        config = directory / "prometheus.yml"
        config.write_text(text.replace("localhost:9090", f"127.0.0.1:{port}"))
        (directory / "alerts.yml").write_text(_faster((DEPLOY / "alerts.yml").read_text()))
        self._log = directory / "log"
        command = [
            needs("prometheus", "prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        up = eventually(lambda: self._process.poll() is not None or self._is_ready(), 60)
        assert up, f"Prometheus is not up: {self.log}"
        assert self._process.poll() is None, f"Prometheus has ended: {self.log}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of a query now, each with its labels."""
        found: list[dict[str, Any]] = self._ask("query", query=expression)["result"]
        return found

    def labels(self, name: str, match: str) -> list[str]:
        """The values of a label in the series that match."""
        found: list[str] = self._ask(f"label/{name}/values", **{"match[]": match})
        return found

    def firing(self) -> dict[str, set[str]]:
        """The alerts that fire, and for which servers."""
        found: dict[str, set[str]] = {}
        for alert in self._ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                labels = alert["labels"]
                found.setdefault(labels["alertname"], set()).add(labels["instance"])
        return found

    def _ask(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def close(self) -> None:
        """Ends Prometheus."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(60)


def _faster(text: str) -> str:
    for written, shorter in FASTER.items():
        text = text.replace(written, shorter)
    return text
