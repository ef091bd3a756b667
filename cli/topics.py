"""`chatsvc topics`: create, describe and grow the topics by hand."""

import functools
from collections.abc import Callable
from typing import Any

import click

from chatsvc.config import Config
from chatsvc.server import default_partitions
from chatsvc.topics import TopicDescription, Topics

from .options import Brokers, connections_topic_option, topic_option

TIMEOUT_SECONDS = 10.0


@click.group()
def topics() -> None:
    """Create, describe and grow the topics."""


def _kafka_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that all three have, and hands them on as a Config."""

    @functools.wraps(command)
    def with_config(
        brokers: tuple[str, ...], topic: str, connections_topic: str, **more: Any
    ) -> None:
        config = Config(brokers=brokers, topic=topic, connections_topic=connections_topic)
        command(config, **more)

    for option in reversed(_OPTIONS):
        with_config = option(with_config)
    return with_config


_OPTIONS = (
    click.option(
        "--brokers",
        type=Brokers(),
        default="localhost:9092",
        show_default=True,
        envvar="KAFKA_BROKERS",
        show_envvar=True,
        help="Kafka brokers.",
    ),
    topic_option,
    connections_topic_option,
)


def _admin(config: Config) -> Topics:
    admin = Topics(config.brokers, "chatsvc-topics", TIMEOUT_SECONDS)
    admin.reach()
    return admin


@topics.command()
@click.option(
    "--replicas",
    type=click.IntRange(1, 100),
    help="Brokers that keep each message. [default: three, or as many as there are]",
)
@_kafka_options
def create(config: Config, replicas: int | None) -> None:
    """Create the topics that are missing."""
    admin = _admin(config)
    wanted = default_partitions(config)
    missing = admin.missing(wanted)
    for warning in admin.create(missing, replicas) if missing else ():
        click.echo(f"Warning: {warning}", err=True)
    for topic in wanted:
        click.echo(f"{topic}: {'created' if topic in missing else 'exists'}")


@topics.command()
@_kafka_options
def describe(config: Config) -> None:
    """Show partitions, leaders, replicas and settings."""
    admin = _admin(config)
    for topic in default_partitions(config):
        _show(admin.describe(topic))


def _show(description: TopicDescription) -> None:
    settings = "  ".join(f"{name}={value}" for name, value in description.config.items())
    click.echo(f"{description.topic}: {len(description.partitions)} partitions  {settings}")
    for partition in description.partitions:
        lagging = set(partition.replicas) - set(partition.in_sync)
        note = f"  not in sync: {_ids(lagging)}" if lagging else ""
        click.echo(
            f"  {partition.partition}: leader {partition.leader}  "
            f"replicas {_ids(partition.replicas)}{note}"
        )


def _ids(brokers: Any) -> str:
    return ",".join(map(str, sorted(brokers)))


@topics.command()
@click.option(
    "--partitions",
    type=click.IntRange(2, 10_000),
    required=True,
    help="How many the topic of the messages has afterwards.",
)
@_kafka_options
def grow(config: Config, partitions: int) -> None:
    """Add partitions to the topic of the messages, also while servers run."""
    _admin(config).grow(config.topic, partitions)
    click.echo(f"{config.topic}: {partitions} partitions")
