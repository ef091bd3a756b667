import dataclasses
import re

import pytest

from chatsvc.config import Config, new_server_id
from chatsvc.errors import InvalidConfig


def test_the_defaults_are_valid() -> None:
    """A server needs no setting: the defaults pass their own checks."""
    assert Config().port == 8081


@pytest.mark.parametrize(
    ("option", "settings"),
    [
        ("--port", {"port": -1}),
        ("--port", {"port": 65_536}),
        ("--metrics-port", {"metrics_port": 65_536}),
        ("--metrics-port", {"port": 9000, "metrics_port": 9000}),
        ("--topic", {"topic": ""}),
        ("--topic", {"topic": "a b"}),
        ("--topic", {"topic": ".."}),
        ("--topic", {"topic": "x" * 250}),
        ("--topic", {"topic": "x\n"}),
        ("--connections-topic", {"connections_topic": "a/b"}),
        ("--connections-topic", {"topic": "same", "connections_topic": "same"}),
        ("--brokers", {"brokers": ("localhost",)}),
        ("--brokers", {"brokers": ("localhost:",)}),
        ("--brokers", {"brokers": (":9092",)}),
        ("--brokers", {"brokers": ("localhost:0",)}),
        ("--brokers", {"brokers": ("localhost:65536",)}),
        ("--brokers", {"brokers": ("localhost:9092", "kafka:x")}),
        ("--brokers", {"brokers": ("localhost:" + "1" * 5_000,)}),
        ("--max-connections", {"max_connections": 0}),
        ("--max-connections", {"max_connections": 100_001}),
        ("--workers", {"workers": 0}),
        ("--workers", {"workers": 65}),
        ("--server-id", {"server_id": ""}),
        ("--server-id", {"server_id": "x" * 65}),
        ("--server-id", {"server_id": "a\nb"}),
    ],
)
def test_a_bad_value_is_refused(option: str, settings: dict[str, object]) -> None:
    """A value that cannot work raises InvalidConfig, which names its option."""
    with pytest.raises(InvalidConfig) as raised:
        Config(**settings)  # type: ignore[arg-type]
    assert raised.value.option == option


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 0, "metrics_port": 0},
        {"port": 65_535, "metrics_port": 1},
        {"topic": "x" * 249, "connections_topic": "A.b_c-9"},
        {"brokers": ("localhost:1", "kafka-1.example.com:65535", "[::1]:9092")},
        {"max_connections": 1},
        {"max_connections": 100_000},
        {"workers": 1},
        {"workers": 64},
        {"server_id": "x" * 64},
    ],
)
def test_the_bounds_are_accepted(settings: dict[str, object]) -> None:
    """The least and the greatest value that a rule allows pass."""
    config = Config(**settings)  # type: ignore[arg-type]
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_config_does_not_change() -> None:
    """A setting cannot be changed once it has been checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().port = -1  # type: ignore[misc]


def test_server_ids_differ() -> None:
    """Servers that start in the same second have different ids of the seed's form."""
    ids = {new_server_id() for _ in range(20)}
    assert len(ids) > 1
    assert all(re.fullmatch(r"grpc-server-\d{10}-[0-9a-f]{4}", each) for each in ids)


@pytest.mark.parametrize("connections", [1, 999, 1_000, 100_000])
def test_everybody_may_connect_and_send_at_once(connections: int) -> None:
    """The limit of pending calls has room for a stream and a message of every client."""
    config = Config(max_connections=connections)
    assert config.max_pending_rpcs >= 2 * connections
    assert 1 <= config.rpc_threads <= 8


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_workers_share_the_streams_of_publish(workers: int) -> None:
    """Each has its part of them, but at least 8."""
    config = Config(max_connections=10_000, workers=workers)
    assert config.max_publish_streams == max(8, 128 // workers)
