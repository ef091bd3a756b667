"""The import direction of the package, held over the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import those of earlier rows, and its row's neighbours that stand before it.
LAYERS = (
    ("errors", "model", "metadata", "varint", "listening", "logs", "process", "periodic"),
    ("trace", "rules", "config", "records", "frames", "cursor", "entries", "presence"),
    ("tail", "replay", "history", "archive", "duplicates"),
    ("feed", "watchdog", "memory", "senders", "connection", "seats"),
    ("hub", "fanout", "registrar", "publishing", "feedwatch"),
    ("librdkafka", "rounds", "producer", "logclient", "consumer", "reader", "backfill"),
    ("topics", "embedded"),
    ("metrics", "statistics", "sideport", "requests", "servicer"),
    ("proxy", "link", "health", "reflection", "pages", "subscription", "publisher", "client"),
    ("server",),
    ("parent", "worker", "broker"),
    ("child", "reservation", "gathering", "workers"),
    ("bench.workload", "bench.ledger", "bench.histogram", "bench.receivers", "bench.senders"),
    ("bench.crew", "bench.watch", "bench.figures", "bench.chart", "bench.run"),
    ("doctor.findings", "doctor.apiversions", "doctor.kafka", "doctor.servers"),
    ("doctor.examination",),
    ("verify.plan", "verify.accounts", "verify.verdict"),
    ("verify.journal", "verify.writer", "verify.run"),
)
ORDER = [module for layer in LAYERS for module in layer]

MAY_IMPORT = {
    "confluent_kafka": {
        *("librdkafka", "producer", "logclient", "consumer", "reader", "backfill"),
        *("topics", "embedded"),
    },
    "grpc": {
        "health",
        "reflection",
        "requests",
        "servicer",
        "link",
        "pages",
        "publisher",
        "client",
        "server",
    },
    "prometheus_client": {"metrics", "statistics", "sideport", "server", "gathering", "workers"},
    "orjson": {"records", "statistics"},
    "psutil": {"bench.watch"},
    "pygal": {"bench.chart"},
    "click": set(),
    "prompt_toolkit": set(),
}


def _modules() -> list[Path]:
    package = ROOT / "chatsvc"
    paths = [
        path
        for name in (".", "bench", "doctor", "verify")
        for path in (package / name).glob("*.py")
    ]
    return sorted(path for path in paths if path.stem != "__init__")


def _name(path: Path) -> str:
    """The dotted name of a module, without that of the package."""
    return ".".join(path.relative_to(ROOT / "chatsvc").with_suffix("").parts)


def _imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or "cli" in path.parts, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place() -> None:
    """The layers name all modules, and no module that is not there."""
    assert sorted(ORDER) == sorted(map(_name, _modules()))


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_go_one_way(path: Path) -> None:
    """A module imports only modules that come before it."""
    own = {name.removeprefix("chatsvc.") for name in _imported(path)} & set(ORDER)
    late = [name for name in own if ORDER.index(name) >= ORDER.index(_name(path))]
    assert not late


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_each_library_is_known_where_it_belongs(path: Path) -> None:
    """Kafka, gRPC, Prometheus and click are each known to a few modules only."""
    for library in {name.split(".")[0] for name in _imported(path)} & set(MAY_IMPORT):
        assert _name(path) in MAY_IMPORT[library], f"{_name(path)} imports {library}"


def test_the_package_does_not_know_its_command_line() -> None:
    """Nothing in chatsvc imports chatsvc.cli."""
    assert not [
        path.stem
        for path in _modules()
        if any(f"{name}.".startswith("chatsvc.cli.") for name in _imported(path))
    ]


def test_only_public_names_of_grpc_are_used() -> None:
    """No module reaches into grpc's private modules or attributes."""
    for path in [*_modules(), *(ROOT / "cli").glob("*.py")]:
        text = path.read_text()
        assert "grpc._" not in text, path
        assert not [name for name in _imported(path) if name.startswith("grpc._")], path
