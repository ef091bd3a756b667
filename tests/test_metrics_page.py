"""docs/metrics.md: that it tells what a server shows."""

import re
import runpy
import subprocess
import sys
import urllib.request
from pathlib import Path

from conftest import StartServer

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metrics.md"
LABEL = re.compile(r'[{,](\w+)="')


def test_the_page_is_up_to_date() -> None:
    """It is what the script makes of the registry and the alerts."""
    answer = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "metrics.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


def rows() -> dict[str, tuple[str, ...]]:
    """The cells of each metric's line."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    split = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]
    return {cells[0].strip("`"): cells[1:] for cells in split}


def test_every_sample_is_explained(start_server: StartServer) -> None:
    """What Prometheus reads from a server is on the page, with its type, meaning and labels."""
    _, listening = start_server()
    with urllib.request.urlopen(listening.metrics_url, timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    told = rows()
    samples = [line for line in lines if line.startswith("chatsvc_") and "_created" not in line]
    assert samples
    for sample in samples:
        name = re.split(r"[{ ]", sample)[0]
        histogram = re.sub(r"_(bucket|sum|count)$", "", name)
        kind, _, labels, meaning, _ = (*told.get(name, told.get(histogram, ())), "")[:5]
        assert kind in ("counter", "gauge", "histogram")
        assert meaning
        assert {f"`{label}`" for label in LABEL.findall(sample)} - {"`le`"} <= set(
            labels.split(", ")
        )


def test_no_label_names_anybody() -> None:
    """Users, rooms, messages and addresses are not for Prometheus."""
    named = {label.strip("`") for cells in rows().values() for label in cells[2].split(", ")}
    assert named - {""} == {
        *("broker", "client", "code", "method", "partition", "reason", "topic", "where", "worker")
    }


RULES = """
groups:
  - name: recorded
    rules:
      - record: chatsvc:latency:p95
        expr: |
          histogram_quantile(0.95, rate(chatsvc_message_latency_seconds_bucket[1m]))
      - record: chatsvc:latency:p95
        labels: {stage: delivery}
        expr: rate(chatsvc_delivery_latency_seconds_sum[1m])
  - name: alerts
    rules:
      - alert: Late
        expr: chatsvc:latency:p95 > 1
        for: 15s
        annotations:
          summary: "not chatsvc_users_known"
      - alert: Refused
        expr: |
          sum(increase(chatsvc_produce_errors_total[1m])) > 0
        labels: {severity: warning}
"""


def test_alerts_are_found_by_what_they_ask() -> None:
    """Their expressions count, and those that are recorded for them, but no other text."""
    alerts = runpy.run_path(str(ROOT / "docs" / "metrics.py"))["alerts"](RULES)
    assert set(alerts) == {"Late", "Refused"}
    assert "chatsvc_message_latency_seconds_bucket" in alerts["Late"]
    assert "chatsvc_delivery_latency_seconds_sum" in alerts["Late"]
    assert "users_known" not in alerts["Late"]
    assert "chatsvc_produce_errors_total" in alerts["Refused"]
