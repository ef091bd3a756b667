"""deploy/docker-compose.yml as docker compose reads it."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILE = DEPLOY / "docker-compose.yml"
PROFILES = ("full", "small")

Service = dict[str, Any]

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+):-([^}]*)\})")


def read() -> dict[str, Any]:
    """The whole file, with the defaults of its variables."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    resolved: dict[str, Any] = _resolve(found)
    return resolved


def _resolve(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _resolve(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolve(each) for each in node]
    if isinstance(node, str):
        return _VARIABLE.sub(lambda found: found[1] or found[3], node)
    return node


def services(profile: str) -> dict[str, Service]:
    """The services that run with a profile."""
    return {
        name: service
        for name, service in read()["services"].items()
        if profile in service.get("profiles", [profile])
    }


def environment(service: Service) -> dict[str, str]:
    """What a service has in its environment: its files, and stronger than those its own."""
    files = [DEPLOY / service["env_file"]] if "env_file" in service else []
    lines = [line for file in files for line in file.read_text().splitlines()]
    found = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return found | {key: str(value) for key, value in service.get("environment", {}).items()}


def published(service: Service) -> list[tuple[str, int, int]]:
    """The address and port of the host and the container's port, of each port."""
    ports = [each.rsplit(":", 2) for each in service.get("ports", [])]
    return [(address, int(outer), int(inner)) for address, outer, inner in ports]


def binds(service: Service) -> dict[str, Path]:
    """Where a service has which file or directory of deploy/."""
    volumes = [each.split(":") for each in service.get("volumes", [])]
    return {
        target: (DEPLOY / source).resolve()
        for source, target, *_ in volumes
        if source.startswith(".")
    }


def volumes(service: Service) -> list[str]:
    """The named volumes of a service."""
    sources = [each.split(":")[0] for each in service.get("volumes", [])]
    return [each for each in sources if not each.startswith(".")]


def kafka_properties(service: Service) -> dict[str, str]:
    """What the image makes of the environment: KAFKA_A_B is the property a.b, but for what is
    for its own scripts."""
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment(service).items()
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
    }
