"""`chatsvc doctor`: what is wrong with Kafka, the servers or this machine."""

import click

from chatsvc.config import Config
from chatsvc.doctor.examination import Patient, examine
from chatsvc.doctor.findings import has_failed, json_of, text_of

from .escaping import json_line
from .options import Brokers, connections_topic_option, servers_option, topic_option


@click.command()
@click.option(
    "--brokers",
    type=Brokers(),
    default="",
    envvar="KAFKA_BROKERS",
    show_envvar=True,
    help="Kafka brokers to look at, each by its address.",
)
@servers_option
@topic_option
@connections_topic_option
@click.option(
    "--timeout",
    type=click.FloatRange(0, 60, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds that each look may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(
    brokers: tuple[str, ...],
    server: tuple[str, ...],
    topic: str,
    connections_topic: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Look at Kafka, the servers and this machine, and say what is wrong and what to do.

    A message is sent through every server named, in a room of its own. Each line is ok, warn or
    fail; the exit code is 1 if there is any fail.
    """
    Config(brokers=brokers, topic=topic, connections_topic=connections_topic)  # checks them
    findings = examine(
        Patient(
            brokers=brokers,
            topic=topic,
            connections_topic=connections_topic,
            servers=tuple(dict.fromkeys(server)),
            timeout=timeout,
        )
    )
    click.echo(json_line(json_of(findings)) if as_json else text_of(findings))
    if has_failed(findings):
        raise click.exceptions.Exit(1)
