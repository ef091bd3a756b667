"""`chatsvc topics`: create, describe and grow the topics by hand."""

from typing import Any

import click

from chatsvc.config import Config
from chatsvc.server import default_partitions
from chatsvc.topics import TopicDescription, Topics

from .options import Brokers

TIMEOUT_SECONDS = 10.0


@click.group()
@click.option(
    "--brokers",
    type=Brokers(),
    default="localhost:9092",
    show_default=True,
    envvar="KAFKA_BROKERS",
    show_envvar=True,
    help="Kafka brokers.",
)
@click.option(
    "--topic",
    default=Config.topic,
    show_default=True,
    envvar="KAFKA_TOPIC",
    show_envvar=True,
    help="Topic of the messages.",
)
@click.option(
    "--connections-topic",
    default=Config.connections_topic,
    show_default=True,
    help="Topic of who is where.",
)
@click.pass_context
def topics(ctx: click.Context, /, **settings: Any) -> None:
    """Create, describe and grow the topics."""
    ctx.obj = Config(**settings)


def _admin(config: Config) -> Topics:
    admin = Topics(config.brokers, "chatsvc-topics", TIMEOUT_SECONDS)
    admin.reach()
    return admin


@topics.command()
@click.pass_obj
def create(config: Config) -> None:
    """Create the topics that are missing, on three brokers if there are three."""
    admin = _admin(config)
    wanted = default_partitions(config)
    missing = admin.missing(wanted)
    for warning in admin.create(missing) if missing else ():
        click.echo(f"Warning: {warning}", err=True)
    for topic in wanted:
        click.echo(f"{topic}: {'created' if topic in missing else 'exists'}")


@topics.command()
@click.pass_obj
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
@click.pass_obj
def grow(config: Config, partitions: int) -> None:
    """Add partitions to the topic of the messages, also while servers run."""
    _admin(config).grow(config.topic, partitions)
    click.echo(f"{config.topic}: {partitions} partitions")
