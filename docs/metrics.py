"""Makes docs/metrics.md from the metrics that servers have, or tells whether it is up to date.

    python docs/metrics.py [--write]

Names, types and meanings are those that Prometheus reads from a server and from a supervisor of
workers; the alerts are those of deploy/alerts.yml.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.metrics_core import Metric

from chatsvc.config import Config
from chatsvc.server import Server
from chatsvc.statistics import FAMILIES
from chatsvc.workers import Supervisor

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metrics.md"
ALERTS = ROOT / "deploy" / "alerts.yml"

INTRODUCTION = """# Metrics

Made by `python docs/metrics.py --write`; a test holds it.

A server shows these at `/metrics` of its side port (`--metrics-port`, 9464), beside
`prometheus-client`'s own of the process (`process_*`: memory, processor time, open files) and of
Python (`python_*`: version, garbage collection). With `--workers` each sample has a label `worker`
too. A histogram has `_bucket`, `_sum` and `_count`. No label names a user, a room or an address:
`client` is `producer` or the topic that is read, `broker` is Kafka's number of a broker. Counters
count from the start of the process; rates are PromQL's work.
"""
HEAD = "| metric | type | unit | labels | meaning | alerts |\n|---|---|---|---|---|---|"

UNITS = (
    *(("seconds", "seconds"), ("bytes", "bytes"), ("rpc", "calls"), ("timeouts", "requests")),
    *(("worker_up", "0 or 1"), ("connected", "0 or 1"), ("restarts", "restarts")),
    *(("brokers", "brokers"), ("replicas", "brokers"), ("servers", "servers"), ("users", "users")),
    *(("threads", "threads"), ("messages", "messages"), ("duplicates", "messages")),
    *(("records", "records"), ("produce_errors", "records"), ("", "streams")),
)
"""What is counted, by a part of the name: the first that fits."""


def families() -> tuple[list[Metric], list[Metric], dict[str, tuple[str, ...]]]:
    """What a server has, what a supervisor has beside it, and the labels of both."""
    server = Server(Config(port=0, metrics_port=0))
    server.start()
    try:
        of_server = _ours(server.metrics.registry.collect())
        labels = dict(server.metrics.labels)
    finally:
        server.stop()
    labels |= {family.name: family.labels for family in FAMILIES}
    supervisor = Supervisor(Config(workers=2), "text", "error")
    of_supervisor = _ours(supervisor.registry.collect())
    supervisor.stop()
    labels |= {family.name: ("worker",) for family in of_supervisor}
    return of_server, of_supervisor, labels


def _ours(collected: Iterable[Metric]) -> list[Metric]:
    ours = [family for family in collected if family.name.startswith("chatsvc_")]
    return sorted(ours, key=lambda family: family.name)


def alerts(rules: str) -> dict[str, str]:
    """The expressions of the alerts in a file of Prometheus' rules, by their names, each with the
    recorded expressions that it uses."""
    found = []
    for rule in re.split(r"^ *- (?=(?:alert|record): )", rules, flags=re.M)[1:]:
        kind, name = rule.split("\n", 1)[0].split(": ")
        (text,) = re.findall(
            r"^ *expr:(.*?)(?=^ *(?:for|labels|annotations|- \w+):|\Z)", rule, re.M | re.S
        )
        found.append((kind, name.strip(), text))
    recorded = [(name, text) for kind, name, text in found if kind == "record"]
    return {
        alert: "\n".join((text, *(more for name, more in recorded if name in text)))
        for kind, alert, text in found
        if kind == "alert"
    }


def row(family: Metric, labels: tuple[str, ...], expressions: dict[str, str]) -> str:
    """A family's line of the table."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    used = rf"\b{name}(_bucket|_sum|_count)?\b"
    cells = (
        f"`{name}`",
        family.type,
        next(unit for part, unit in UNITS if part in family.name),
        ", ".join(f"`{label}`" for label in labels),
        family.documentation,
        ", ".join(alert for alert, text in expressions.items() if re.search(used, text)),
    )
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    of_server, of_supervisor, labels = families()
    expressions = alerts(ALERTS.read_text()) if ALERTS.exists() else {}

    def table(part: list[Metric]) -> str:
        rows = (row(family, labels.get(family.name, ()), expressions) for family in part)
        return "\n".join((HEAD, *rows))

    return (
        f"{INTRODUCTION}\n## A server\n\n{table(of_server)}\n\n"
        f"## A supervisor of workers, beside theirs\n\n{table(of_supervisor)}\n"
    )


def main() -> None:
    """Compares, and writes if asked to."""
    fresh = page()
    if PAGE.exists() and PAGE.read_text() == fresh:
        return
    if sys.argv[1:] != ["--write"]:
        sys.exit("docs/metrics.md is out of date: run python docs/metrics.py --write")
    PAGE.write_text(fresh)


if __name__ == "__main__":
    main()
