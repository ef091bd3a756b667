"""`chatsvc send`: one message."""

import click

from chatsvc import rules
from chatsvc.client import send_once

from .options import room_option, servers_option


@click.command()
@click.argument("name")
@click.argument("text", nargs=-1, required=True)
@servers_option
@room_option
def send(name: str, text: tuple[str, ...], server: tuple[str, ...], room: str) -> None:
    """Send TEXT as NAME and exit once all in-sync replicas have it."""
    content = " ".join(text)
    rules.check_name("NAME", name)
    rules.check_content("TEXT", content)
    rules.check_room("--room", room)
    send_once(name, content, server, room=room)
