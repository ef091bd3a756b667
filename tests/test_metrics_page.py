"""docs/metrics.md: that it tells what a server shows."""

import re
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
