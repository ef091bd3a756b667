"""docker-compose.yml: each of its values is held against what takes it."""

import os
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.core import ParameterSource
from click.testing import CliRunner
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from chatsvc.cli.main import main
from chatsvc.cli.serve import serve
from chatsvc.config import Config

from . import compose
from .compose import DEPLOY, PROFILES, ROOT, Service
from brokers import Brokers, cluster_properties
from faults.machine import needs_root

SERVERS = ("chatsvc-1", "chatsvc-2", "chatsvc-3")
BROKERS = {"full": ("kafka-1", "kafka-2", "kafka-3"), "small": ("kafka-small",)}
INITS = {"full": "init-topics", "small": "init-topics-small"}
ONCE = set(INITS.values())
"""Services that end by themselves."""

every_profile = pytest.mark.parametrize("profile", PROFILES)
every_server = pytest.mark.parametrize("name", SERVERS)
every_broker = pytest.mark.parametrize(
    ("profile", "name"), [(profile, name) for profile in PROFILES for name in BROKERS[profile]]
)


def test_the_file_is_as_the_specification_wants_it() -> None:
    """The JSON schema of the compose specification accepts it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    answer = subprocess.run(
        [*command, str(compose.FILE)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout


def test_three_brokers_are_the_default() -> None:
    """`docker compose up` without a profile takes the one that .env names."""
    assert "COMPOSE_PROFILES=full" in (DEPLOY / ".env").read_text().splitlines()


@every_profile
def test_a_profile_has_all_parts(profile: str) -> None:
    """Its own brokers and topics, and what all profiles share."""
    shared = {*SERVERS, "nginx", "kafka-ui", "prometheus", "grafana"}
    assert set(compose.services(profile)) == {*BROKERS[profile], INITS[profile], *shared}


@pytest.mark.parametrize("name", list(compose.read()["services"]))
def test_a_service_is_confined(name: str) -> None:
    """No capability, no way to get one, a limit of memory and of processes, logs that end, a check
    of its health, an image that stays the same, and nothing for other machines."""
    service = compose.read()["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"]["options"]["max-size"]
    assert service["restart"] == ("on-failure:5" if name in ONCE else "unless-stopped")
    image, _, tag = service["image"].partition(":")
    assert tag == "local" if image == "chatsvc" else re.match(r"v?\d+\.\d+\.\d+", tag), tag
    assert has_healthcheck(service) or name in ONCE
    assert {address for address, _, _ in compose.published(service)} <= {"127.0.0.1"}
    if image in ("chatsvc", "nginx"):
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]


def has_healthcheck(service: Service) -> bool:
    own: dict[str, Any] = service.get("healthcheck", {})
    return "test" in own or ("disable" not in own and service["image"] == "chatsvc:local")


@every_profile
def test_services_start_in_order(profile: str) -> None:
    """Kafka, topics, servers, nginx: each waits for what it needs, by a condition that can be met,
    and for nothing that another profile has."""
    running = compose.services(profile)
    waits = {
        name: {
            needed: wait["condition"]
            for needed, wait in service.get("depends_on", {}).items()
            if needed in running or wait.get("required", True)
        }
        for name, service in running.items()
    }
    for conditions in waits.values():
        for needed, condition in conditions.items():
            once = condition == "service_completed_successfully"
            assert once == (needed in ONCE)
            assert once or (condition == "service_healthy" and has_healthcheck(running[needed]))
    assert set(waits[INITS[profile]]) == set(BROKERS[profile])
    for name in (*SERVERS, "kafka-ui"):
        assert set(waits[name]) == {INITS[profile]}
    assert set(waits["nginx"]) == set(SERVERS)


@every_profile
def test_an_image_is_built_once_and_before_it_is_used(profile: str) -> None:
    """By the service that makes the topics; servers take it and never look for it elsewhere."""
    built = {name for name, each in compose.services(profile).items() if "build" in each}
    assert built == {INITS[profile]}
    init = compose.services(profile)[INITS[profile]]
    context = (DEPLOY / init["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / init["build"]["dockerfile"]).is_file()
    for name in SERVERS:
        server = compose.services(profile)[name]
        assert (server["image"], server["pull_policy"]) == (init["image"], "never")


@every_profile
def test_files_and_volumes_exist(profile: str) -> None:
    """What is mounted is in deploy/, volumes have names, and who keeps something has one."""
    running = compose.services(profile)
    kept = [volume for service in running.values() for volume in compose.volumes(service)]
    assert len(kept) == len(set(kept))
    names = {volume.removesuffix(":ro") for volume in kept}
    assert names == {*BROKERS[profile], "prometheus", "grafana"}
    assert names <= set(compose.read()["volumes"])
    for service in running.values():
        assert all(path.exists() for path in compose.binds(service).values())


@every_profile
def test_ports_of_the_host_are_those_of_readme(profile: str) -> None:
    """Each has one owner, and README's table has them all."""
    owners = {
        outer: name
        for name, service in compose.services(profile).items()
        for _, outer, _ in compose.published(service)
    }
    assert len(owners) == sum(
        len(compose.published(service)) for service in compose.services(profile).values()
    )
    wanted = {8080: "kafka-ui", 8085: "nginx", 9090: "prometheus", 3000: "grafana"}
    wanted |= {8081 + number: name for number, name in enumerate(SERVERS)}
    wanted |= {9092 + number: name for number, name in enumerate(BROKERS[profile])}
    assert owners == wanted
    table = re.findall(r"^\| (\d+)(?:-(\d+))? \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    written = {port for first, last in table for port in range(int(first), int(last or first) + 1)}
    assert written >= set(owners)
    assert written == {8080, 8081, 8082, 8083, 8085, 9090, 9092, 9093, 9094, 3000}


def parsed(service: Service, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Config]:
    """What `chatsvc serve` takes a service's command and environment for: click's context and the
    settings."""
    for name in list(os.environ):
        if name.startswith(("CHATSVC_", "KAFKA_")) or name == "SERVER_PORT":
            monkeypatch.delenv(name)
    for name, value in compose.environment(service).items():
        monkeypatch.setenv(name, value)
    settings = {"auto_envvar_prefix": "CHATSVC_SERVE"}
    ctx = serve.make_context("serve", list(command_of(service)), **settings)
    others = ("config", "log_format", "log_level")
    return ctx, Config(**{name: each for name, each in ctx.params.items() if name not in others})


def command_of(service: Service) -> list[str]:
    """The arguments of `serve`, which the image has by itself."""
    if "command" in service:
        words: list[str] = service["command"]
    else:
        found = re.search(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
        assert found
        words = yaml.safe_load(found[1])
    assert words[0] == "serve"
    return words[1:]


@every_server
def test_serve_takes_every_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is unknown to it, and each has the effect that the file is for."""
    service = compose.services("full")[name]
    variables = compose.environment(service)
    ctx, config = parsed(service, monkeypatch)
    prefix = "CHATSVC_SERVE_"
    own = {"SERVER_PORT": "port", "KAFKA_BROKERS": "brokers", "KAFKA_TOPIC": "topic"}
    options = {own.get(each, each.removeprefix(prefix).lower()) for each in variables}
    from_environment = {
        option
        for option in ctx.params
        if ctx.get_parameter_source(option) is ParameterSource.ENVIRONMENT
    }
    from_image = {"host"}  # the Dockerfile's own command says it too, and is stronger
    assert from_environment | from_image == options
    assert config.host == config.metrics_host == "0.0.0.0"
    assert config.server_id == name
    assert [(config.port, config.port)] == [
        (outer, inner) for _, outer, inner in compose.published(service)
    ]


@every_server
def test_a_server_has_room_for_all_its_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pids_limit` counts threads: one a subscriber that sends heartbeats, and the others; so many
    streams fit into the files that it may open."""
    service = compose.services("full")[name]
    _, config = parsed(service, monkeypatch)
    threads = config.stream_threads + config.rpc_threads + config.max_publish_streams + 100
    assert service["pids_limit"] >= threads
    assert service["ulimits"]["nofile"] >= 2 * config.max_connections


def test_servers_keep_to_different_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their ports, which therefore differ also where each has an address of its own."""
    services = compose.services("full")
    ports = [parsed(services[name], monkeypatch)[1].port for name in SERVERS]
    assert ports == [8081, 8082, 8083]


def test_addresses_of_one_file_are_in_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx, Prometheus and Grafana find what they ask, under the names and ports that it has."""
    services = compose.services("full")
    configs = {name: parsed(services[name], monkeypatch)[1] for name in SERVERS}
    conf = (DEPLOY / "nginx.conf").read_text()
    upstream = re.findall(r"server (chatsvc-\d):(\d+)", conf)
    assert upstream == [(name, str(config.port)) for name, config in configs.items()]
    (listen,) = re.findall(r"listen (\d+) http2", conf)
    assert [int(listen)] == [inner for _, _, inner in compose.published(services["nginx"])]
    (status,) = re.findall(r"listen (127\.0\.0\.1:\d+);", conf)
    assert services["nginx"]["healthcheck"]["test"][-1] == f"http://{status}/healthz"
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]
    }
    assert targets["chatsvc"] == [f"{name}:{each.metrics_port}" for name, each in configs.items()]
    provisioning = compose.binds(services["grafana"])["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    for name in ("prometheus", "grafana", "kafka-ui"):
        check = urllib.parse.urlsplit(services[name]["healthcheck"]["test"][-1])
        assert [check.port] == [inner for _, _, inner in compose.published(services[name])]


def test_programs_find_their_files() -> None:
    """Prometheus its configuration and rules, Grafana the dashboards."""
    services = compose.services("full")
    prometheus = compose.binds(services["prometheus"])
    flags = dict(each[2:].split("=") for each in services["prometheus"]["command"])
    config = flags["config.file"]
    for rules in yaml.safe_load(prometheus[config].read_text())["rule_files"]:
        assert str(Path(config).with_name(rules)) in prometheus
    assert f"prometheus:{flags['storage.tsdb.path']}" in services["prometheus"]["volumes"]
    grafana = compose.binds(services["grafana"])
    provisioning = grafana["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/chatsvc.yml").read_text())["providers"]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (grafana[str(home.parent)] / home.name).is_file()


def test_nginx_knows_the_addresses_of_servers() -> None:
    """Those that the servers have, in the network that both are in, whatever CHATSVC_NET is."""
    services = compose.services("full")
    known = dict(each.split(":") for each in services["nginx"]["extra_hosts"])
    assert known == {
        name: services[name]["networks"]["servers"]["ipv4_address"] for name in SERVERS
    }
    (subnet,) = compose.read()["networks"]["servers"]["ipam"]["config"]
    assert all(subnet["subnet"] == f"{each.rpartition('.')[0]}.0/24" for each in known.values())
    assert "servers" in services["nginx"]["networks"]


@pytest.mark.root
def test_the_kernel_takes_the_settings_of_nginx() -> None:
    """Each is one of a network namespace, which docker may set for a container."""
    needs_root()
    settings = compose.services("full")["nginx"]["sysctls"]
    files = {f"/proc/sys/{name.replace('.', '/')}": value for name, value in settings.items()}
    lines = [f"echo {value} > {file}; cat {file}" for file, value in files.items()]
    answer = subprocess.run(
        ["unshare", "--net", "sh", "-ec", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == [str(value) for value in settings.values()]


@every_broker
def test_clients_reach_brokers(profile: str, name: str) -> None:
    """From the host at localhost, by the port that is published; from other services under the
    name that all brokers have, and then under the broker's own."""
    service = compose.services(profile)[name]
    properties = compose.kafka_properties(service)
    listeners = dict(each.split("://") for each in properties["listeners"].split(","))
    advertised = dict(each.split("://") for each in properties["advertised.listeners"].split(","))
    ((_, outer, inner),) = compose.published(service)
    assert (listeners["HOST"], advertised["HOST"]) == (f":{inner}", f"localhost:{outer}")
    assert advertised["PLAINTEXT"] == name + listeners["PLAINTEXT"]
    assert service["hostname"] == name
    assert service["networks"]["default"]["aliases"] == ["kafka"]
    inside = {
        compose.environment(each)[variable]
        for each in compose.services(profile).values()
        for variable in ("KAFKA_BROKERS", "KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS")
        if variable in compose.environment(each)
    }
    assert inside == {"kafka" + listeners["PLAINTEXT"]}
    voters = properties["controller.quorum.voters"].split(",")
    assert f"{properties['node.id']}@{name}{listeners['CONTROLLER']}" in voters
    assert len(voters) == len(BROKERS[profile])
    assert f"/{listeners['PLAINTEXT'][1:]}" in service["healthcheck"]["test"][-1]
    assert properties["log.dirs"] in service["volumes"][0]


OF_THE_PLACE = {
    *("node.id", "listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"),
    *("listener.security.protocol.map", "controller.listener.names"),
    *("inter.broker.listener.name", "process.roles"),
}
"""Properties of where a broker runs, which is elsewhere in a test."""


def decisions(service: Service) -> dict[str, str]:
    """The other properties of a broker."""
    properties = compose.kafka_properties(service)
    return {name: value for name, value in properties.items() if name not in OF_THE_PLACE}


@every_broker
def test_brokers_are_as_those_without_docker(profile: str, name: str) -> None:
    """Each setting is that of brokers.py."""
    natively = cluster_properties(len(BROKERS[profile]))
    service = compose.services(profile)[name]
    assert decisions(service) == {each: str(natively[each]) for each in decisions(service)}


@pytest.mark.kafka
def test_brokers_know_every_setting(cluster: Brokers) -> None:
    """A real one says that it has each of them, with this value."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    resource = ConfigResource(ResourceType.BROKER, "1")
    effective = admin.describe_configs([resource])[resource].result(60)
    for name in BROKERS["full"]:
        wanted = decisions(compose.services("full")[name])
        assert {each: effective[each].value for each in wanted if each in effective} == wanted
    assert effective["broker.session.timeout.ms"].value == "3000"
    assert effective["broker.heartbeat.interval.ms"].value == "500"
    assert effective["log.message.timestamp.type"].value == "LogAppendTime"


def init_topics(profile: str, brokers: Brokers, *topics: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command of the service that makes the topics, over other brokers."""
    service = compose.services(profile)[INITS[profile]]
    names = ("CHATSVC_TOPICS_CREATE_TOPIC", "CHATSVC_TOPICS_CREATE_CONNECTIONS_TOPIC")
    environment = {
        **os.environ,
        **compose.environment(service),
        **dict(zip(names, topics, strict=False)),
        "KAFKA_BROKERS": brokers.bootstrap,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [*service["entrypoint"], *service["command"]]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.kafka
def test_the_topics_are_made(cluster: Brokers, topic_options: list[str]) -> None:
    """On three brokers, two of which must have a message; making them again is no error."""
    for _ in range(2):
        made = init_topics("full", cluster, topic_options[1], topic_options[3])
        assert made.returncode == 0, made.stderr
        assert made.stdout.endswith("Topics created successfully!\n")
    command = ["topics", "describe", "--brokers", cluster.bootstrap, *topic_options]
    described = CliRunner().invoke(main, command).stdout
    assert described.count("min.insync.replicas=2") == 2
    assert described.count("message.timestamp.type=LogAppendTime") == 2
    assert f"{topic_options[1]}: 2 partitions" in described
    assert f"{topic_options[3]}: 3 partitions" in described
    assert described.count("replicas 1,2,3") == 5


@pytest.mark.kafka
def test_one_broker_runs_with_the_settings_of_the_small_profile(tmp_path: Path) -> None:
    """A real one starts with them and has its topics made; the number of replicas of the other
    profile is refused, instead of fewer being made in silence. Its cluster's id is one of those,
    one in 64, that begin with a dash."""
    (tmp_path / "cluster.id").write_text("-S7m-VQsQm-IbR62WL6OaQ")
    properties = decisions(compose.services("small")["kafka-small"])
    with Brokers(tmp_path, count=1, properties=properties) as broker:
        refused = init_topics("full", broker)
        assert refused.returncode == 1
        assert len(refused.stderr.splitlines()) == 1
        made = init_topics("small", broker)
        assert made.returncode == 0, made.stderr
        assert made.stdout.endswith("Topics created successfully!\n")
        described = CliRunner().invoke(main, ["topics", "describe", "--brokers", broker.bootstrap])
        assert described.stdout.startswith("chatting: 2 partitions")
        assert described.stdout.count("min.insync.replicas=1") == 2
