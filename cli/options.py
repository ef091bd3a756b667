"""Options and types that several commands share."""

import os
from typing import Any

import click

from chatsvc.config import MAX_WORKERS, Config
from chatsvc.model import LOBBY
from chatsvc.rules import is_address


class ServerAddress(click.ParamType[str]):
    """`HOST:PORT` of a chat server."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not is_address(text):
            self.fail(f"{text!r} is not HOST:PORT", param, ctx)
        return text


servers_option = click.option(
    "--server",
    "server",
    multiple=True,
    type=ServerAddress(),
    default=("localhost:8081",),
    show_default=True,
    help="A chat server; may be repeated, the next one is tried when one is lost.",
)


room_option = click.option("--room", default=LOBBY, help="A room by its name. [default: the lobby]")


class Brokers(click.ParamType[tuple[str, ...]]):
    """Kafka brokers, comma separated."""

    name = "HOST:PORT,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


class Workers(click.ParamType[int]):
    """How many processes; `auto` is one for each core that this one may run on."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "auto":
            return min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        # isdecimal: not the signs, spaces and underscores that int() takes too.
        if not (text.isdecimal() and len(text) < 4 and 1 <= int(text) <= MAX_WORKERS):
            self.fail(f"{text!r} is neither a number from 1 to {MAX_WORKERS} nor auto", param, ctx)
        return int(text)


topic_option = click.option(
    "--topic",
    default=Config.topic,
    show_default=True,
    envvar="KAFKA_TOPIC",
    show_envvar=True,
    help="Topic of the messages.",
)

connections_topic_option = click.option(
    "--connections-topic",
    default=Config.connections_topic,
    show_default=True,
    help="Topic of who is where.",
)
