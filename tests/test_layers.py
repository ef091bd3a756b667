"""The import direction of the package, held over the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import those of earlier rows, and its row's neighbours that stand before it.
LAYERS = (
    ("errors", "model", "metadata", "varint", "listening", "logs", "process"),
    ("rules", "config", "records", "frames", "cursor", "presence"),
    ("feed", "watchdog", "memory", "senders", "connection", "seats"),
    ("hub", "fanout", "registrar", "publishing"),
    ("librdkafka", "rounds", "producer", "consumer", "topics", "embedded"),
    ("metrics", "requests", "servicer", "link", "publisher", "client"),
    ("server",),
    ("parent", "worker", "broker"),
    ("child", "reservation", "gathering", "workers"),
)
ORDER = [module for layer in LAYERS for module in layer]

MAY_IMPORT = {
    "confluent_kafka": {"librdkafka", "producer", "consumer", "topics", "embedded"},
    "grpc": {"requests", "servicer", "link", "publisher", "client", "server"},
    "prometheus_client": {"metrics", "server", "gathering", "workers"},
    "orjson": {"records"},
    "click": set(),
    "prompt_toolkit": set(),
}


def _modules() -> list[Path]:
    return sorted(path for path in (ROOT / "chatsvc").glob("*.py") if path.stem != "__init__")


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
    assert sorted(ORDER) == [path.stem for path in _modules()]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_imports_go_one_way(path: Path) -> None:
    """A module imports only modules that come before it."""
    own = {
        name.split(".")[1]
        for name in _imported(path)
        if name.startswith("chatsvc.") and name.split(".")[1] in ORDER
    }
    late = [name for name in own if ORDER.index(name) >= ORDER.index(path.stem)]
    assert not late


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_each_library_is_known_where_it_belongs(path: Path) -> None:
    """Kafka, gRPC, Prometheus and click are each known to a few modules only."""
    for library in {name.split(".")[0] for name in _imported(path)} & set(MAY_IMPORT):
        assert path.stem in MAY_IMPORT[library], f"{path.stem} imports {library}"


def test_the_package_does_not_know_its_command_line() -> None:
    """Nothing in chatsvc imports chatsvc.cli."""
    assert not [
        path.stem for path in _modules() if any("chatsvc.cli" in name for name in _imported(path))
    ]


def test_only_public_names_of_grpc_are_used() -> None:
    """No module reaches into grpc's private modules or attributes."""
    for path in [*_modules(), *(ROOT / "cli").glob("*.py")]:
        text = path.read_text()
        assert "grpc._" not in text, path
        assert not [name for name in _imported(path) if name.startswith("grpc._")], path
