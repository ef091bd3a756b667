"""prometheus.yml, alerts.yml and the dashboard: a real Prometheus over real servers and brokers.
Each alert is caused and fires. The tests follow each other: what one causes stays."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple

import grpc
import pytest
import yaml
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from chatsvc.model import ChatMessage
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.records import encode_message

from .compose import DEPLOY
from .conftest import Idle
from .prometheus import Prometheus
from brokers import Brokers
from conftest import Measured
from faults.calls import Chat
from faults.machine import needs
from serving import ServeProcess
from verifying import VerifyProcess
from waiting import eventually

pytestmark = pytest.mark.kafka

WAIT = 90
TOPIC, CONNECTIONS_TOPIC = "watched", "watched-connections"
SEATS = 20
FLOOD = 50_000
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/chatsvc.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}
STAGES = {rule["labels"]["stage"] for rule in RULES if "record" in rule}

caused: set[str] = set()
"""The alerts that fired."""


class Watched(NamedTuple):
    """Servers that a Prometheus scrapes."""

    prometheus: Prometheus
    busy: ServeProcess
    doomed: ServeProcess
    small: ServeProcess
    """Takes few streams."""


def instance(server: ServeProcess) -> str:
    """What Prometheus calls it."""
    return server.metrics_url.split("/")[2]


@pytest.fixture(scope="module")
def watched(cluster: Brokers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Three servers with load, over a topic that only two brokers have: the loss of one of them is
    too few."""
    directory = tmp_path_factory.mktemp("watched")
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    config = {"message.timestamp.type": "LogAppendTime", "min.insync.replicas": "2"}
    wanted = [
        NewTopic(TOPIC, 2, replica_assignment=[[1, 2], [2, 1]], config=config),
        NewTopic(CONNECTIONS_TOPIC, 3, 3, config=config),
    ]
    for future in admin.create_topics(wanted).values():
        future.result(WAIT)
    options = ["--brokers", cluster.bootstrap, "--topic", TOPIC]
    options += ["--connections-topic", CONNECTIONS_TOPIC]
    with ExitStack() as stack:

        def serve(name: str, *more: str) -> ServeProcess:
            server = ServeProcess.started(directory / name, *options, *more)
            stack.callback(server.close)
            return server

        servers = serve("busy"), serve("doomed"), serve("small", "--max-connections", str(SEATS))
        prometheus = Prometheus(directory, [instance(server) for server in servers])
        stack.callback(prometheus.close)
        load = VerifyProcess(directory / "load", [servers[0].address], "--rate", "20")
        stack.callback(load.close)
        load.running()
        yield Watched(prometheus, *servers)


def fires(watched: Watched, name: str, *servers: ServeProcess) -> None:
    """Waits for an alert for these servers."""
    wanted = {instance(server) for server in servers}
    fired = eventually(lambda: wanted <= watched.prometheus.firing().get(name, set()), WAIT)
    assert fired, f"{name} does not fire for {wanted}: {watched.prometheus.firing()}"
    caused.add(name)


def ends(watched: Watched, name: str) -> None:
    """Waits for the end of an alert."""
    assert eventually(lambda: name not in watched.prometheus.firing(), WAIT)


def test_the_files_are_valid() -> None:
    """By Prometheus' own judgement."""
    promtool = needs("promtool", "prometheus")
    answer = subprocess.run(
        [promtool, "check", "config", str(DEPLOY / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert f"{len(ALERTS) + len(STAGES)} rules found" in answer.stdout


def test_alerts_wait_as_long_as_they_say(tmp_path: Path) -> None:
    """With the times that the tests below shorten: what passes in time alerts nobody, and what
    stays does."""
    promtool = needs("promtool", "prometheus")
    tests = Path(__file__).with_name("alerts_test.yml")
    # The paths of its rules are relative to it.
    copy = tmp_path / tests.name
    copy.write_text(tests.read_text().replace("alerts.yml", str(DEPLOY / "alerts.yml"), 1))
    answer = subprocess.run(
        [promtool, "test", "rules", str(copy)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    tested = {
        each["alertname"]
        for test in yaml.safe_load(tests.read_text())["tests"]
        for each in test["alert_rule_test"]
        if each["exp_alerts"]
    }
    assert tested == ALERTS


def test_nothing_fires_while_all_is_well(idle: Idle, watched: Watched) -> None:
    """With load, once the first messages are out of the window."""
    prometheus = watched.prometheus
    assert eventually(lambda: len(prometheus.query('up{job="chatsvc"} == 1')) == 3, WAIT)
    busy = f'chatsvc:latency_seconds:p95{{instance="{instance(watched.busy)}"}} < 0.25'
    assert eventually(lambda: stages(prometheus.query(busy)) == STAGES, WAIT)
    assert eventually(lambda: not prometheus.firing(), WAIT)


def stages(samples: list[dict[str, Any]]) -> set[str]:
    return {sample["metric"]["stage"] for sample in samples}


@pytest.fixture(scope="module")
def crowd(watched: Watched) -> Iterator[None]:
    """All streams but one that the small server takes."""
    with ExitStack() as stack:
        chat = stack.enter_context(Chat(watched.small.address))
        for _ in range(SEATS - 1):
            stream = chat.subscribe()
            stream.initial_metadata()
            stack.callback(stream.cancel)
        yield


def test_a_server_that_is_nearly_full(watched: Watched, crowd: None) -> None:
    """NearlyFull, for that server."""
    fires(watched, "NearlyFull", watched.small)
    assert watched.prometheus.firing()["NearlyFull"] == {instance(watched.small)}


def test_more_than_servers_can_do(cluster: Brokers, watched: Watched) -> None:
    """ConsumerLag and LatencyOverGoal, while more is written to Kafka than a server reads; and
    SlowClients, for one that reads nothing is given up."""
    producer = Producer({"bootstrap.servers": cluster.bootstrap})
    key, value = encode_message(ChatMessage("flood", "x" * 200, "2026-11-24T00:00:00Z"))

    def write_more() -> bool:
        """Keeps the server busy; tells whether both alerts fire for it."""
        if behind(watched.busy) < FLOOD:
            for _ in range(FLOOD):
                producer.produce(TOPIC, value, key)
            producer.flush(WAIT)
        firing = watched.prometheus.firing()
        late = ("ConsumerLag", "LatencyOverGoal")
        return all(instance(watched.busy) in firing.get(each, ()) for each in late)

    with stopped_reader(watched.busy.address):
        assert eventually(write_more, WAIT), watched.prometheus.firing()
        caused.update(("ConsumerLag", "LatencyOverGoal"))
        fires(watched, "SlowClients", watched.busy)
    ends(watched, "ConsumerLag")


def behind(server: ServeProcess) -> float:
    """How many messages a server has not read yet."""
    lag = f'chatsvc_consumer_lag_messages{{partition="%d",topic="{TOPIC}"}}'
    metrics = server.metrics()
    return max(metrics.get(lag % partition, 0) for partition in (0, 1))


@contextmanager
def stopped_reader(address: str) -> Iterator[None]:
    """A stream of the lobby that nobody reads."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub: Any = chat_pb2_grpc.BroadcastStub(channel)
        user = chat_pb2.User(id="asleep", name="asleep")
        stream = stub.CreateStream(chat_pb2.Connect(user=user, active=True))
        stream.initial_metadata()
        yield
        stream.cancel()


def test_a_server_that_is_gone(watched: Watched) -> None:
    """ServerDown, for that server."""
    watched.doomed.signal(SIGKILL)
    fires(watched, "ServerDown", watched.doomed)
    assert watched.prometheus.firing()["ServerDown"] == {instance(watched.doomed)}


def test_a_broker_that_is_gone(brokers: Brokers, watched: Watched, measured: Measured) -> None:
    """BrokerDown, and, since it is one of the two that have the topic, UnderMinIsr and
    ProduceErrors; all is well when it is back."""
    began = time.monotonic()
    victim = 0 if brokers.controller() else 1
    brokers.kill(victim)
    fires(watched, "BrokerDown", watched.busy, watched.small)
    measured(f"BrokerDown after {time.monotonic() - began:.0f} s")
    fires(watched, "UnderMinIsr", watched.busy)
    measured(f"UnderMinIsr after {time.monotonic() - began:.0f} s")
    fires(watched, "ProduceErrors", watched.busy)
    measured(f"ProduceErrors after {time.monotonic() - began:.0f} s")
    brokers.restart(victim)
    for name in ("BrokerDown", "UnderMinIsr", "ProduceErrors"):
        ends(watched, name)


def test_each_alert_was_caused() -> None:
    """None is there that no test has seen."""
    assert caused == ALERTS


def queries() -> list[tuple[str, str]]:
    """The panels and queries of the dashboard."""
    return [
        (panel["title"], target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def test_every_query_of_the_dashboard_has_data(watched: Watched, crowd: None) -> None:
    """Under load, and after all that was done to the servers."""
    (variable,) = DASHBOARD["templating"]["list"]
    label, match = "instance", 'up{job="chatsvc"}'
    assert variable["query"]["query"] == f"label_values({match}, {label})"
    assert len(watched.prometheus.labels(label, match)) == 3
    empty = {}
    for title, expression in queries():
        asked = expression.replace("$__rate_interval", "1m").replace("$instance", ".+")
        assert "$" not in asked
        if not eventually(lambda asked=asked: watched.prometheus.query(asked), 10):
            empty[title] = asked
    assert not empty


def test_the_dashboard_is_whole() -> None:
    """Its panels have their own ids and places, say what they show and in which unit, and ask the
    source that is provisioned."""
    sources = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    uid = sources["datasources"][0]["uid"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    for panel in panels:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "state-timeline"
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {uid}
