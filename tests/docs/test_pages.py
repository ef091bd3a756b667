"""What README and the documentation say is so: links, paths, commands, options, ports, names."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from chatsvc import rules
from chatsvc.cli.serve import serve
from chatsvc.config import Config
from chatsvc.pb import chat_pb2
from chatsvc.server import MAX_MESSAGE_BYTES
from docs.prose import (
    ROOT,
    bad_commands,
    bad_links,
    bad_metrics,
    bad_paths,
    bad_python,
    commands,
)

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *DOCS]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the project, and to a heading in it."""
    assert not list(bad_links(page.read_text(), page))


@each_page
@pytest.mark.parametrize("check", [bad_paths, bad_commands, bad_metrics, bad_python])
def test_what_a_page_names_is_there(check: Any, page: Path) -> None:
    """Files; commands, which are taken with their options by the program that they name; metrics;
    and Python, which parses and imports what there is."""
    assert not list(check(page.read_text()))


@pytest.mark.parametrize(
    ("check", "text", "said"),
    [
        (bad_paths, "see `deploy/nowhere.conf`", "deploy/nowhere.conf: no such file"),
        (bad_paths, "see `nowhere.py`", "nowhere.py: no such module"),
        (bad_commands, "`chatsvc sing`", "no command sing"),
        (bad_commands, "    .venv/bin/chatsvc serve --prot 1\n", "No such option"),
        (bad_commands, "`chatsvc serve --port x`", "not a valid integer"),
        (bad_commands, "```sh\nx | chatsvc topics grow --brokers a:1\n```\n", "--partitions"),
        (bad_commands, "`make tea`", "no target tea"),
        (bad_commands, "`make client CUP=1`", "no variable CUP"),
        (bad_commands, "`python3 deploy/kafka/brokers.py start 2`", "invalid choice"),
        (bad_commands, "`docker compose -f deploy/x.yml up`", "no file deploy/x.yml"),
        (
            bad_commands,
            "`docker compose -f deploy/docker-compose.yml exec tea sh`",
            "no service tea",
        ),
        (bad_metrics, "`chatsvc_tea_total`", "chatsvc_tea_total: no such metric"),
        (bad_python, "```python\nfrom chatsvc.client import Tea\n```\n", "has no Tea"),
        (bad_python, "```python\nwith:\n```\n", "invalid syntax"),
    ],
)
def test_what_is_wrong_is_found(check: Any, text: str, said: str) -> None:
    """The checks above see what they are there to see."""
    (found,) = check(text)
    assert said in found


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("nowhere.md", "no such file"),
        ("docs/concepts.md#tea", "no such heading"),
        ("#tea", "no such heading"),
        ("ftp:x", "not within"),
    ],
)
def test_a_broken_link_is_found(link: str, said: str) -> None:
    """In this page and in others."""
    (found,) = bad_links(f"# One\n[x]({link})", ROOT / "README.md")
    assert said in found


def test_commands_are_found() -> None:
    """A page without any would pass: README's are seen."""
    found = [line for line, _ in commands((ROOT / "README.md").read_text())]
    assert {"make server", "make test", "make kafka-up"} <= set(found)
    assert len([each for each in found if "chatsvc" in each]) > 10


def test_every_page_is_in_the_navigation() -> None:
    """And nothing that is not there."""
    settings = (ROOT / "mkdocs.yml").read_text().split("theme:")[0]
    listed = [page for entry in yaml.safe_load(settings)["nav"] for page in entry.values()]
    assert sorted(listed) == [page.name for page in DOCS]


def table(page: str, first: str) -> dict[str, list[str]]:
    """The rows of the table of a page of docs/ whose head begins with `first`, by their first
    cell, without backticks."""
    text = (ROOT / page).read_text()
    (body,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    rows = [
        [cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in body.splitlines()
    ]
    return {row[0]: row[1:] for row in rows}


def test_every_option_is_told_with_its_default() -> None:
    """And its variable, as the command has them."""
    told = table("docs/operations.md", "option")
    options = {each.opts[0]: each for each in serve.params if isinstance(each, click.Option)}
    assert set(told) == set(options)
    config = Config()
    for name, (variable, default, _) in told.items():
        own = options[name].envvar
        assert variable == (own if isinstance(own, str) else "")
        field = name.removeprefix("--").replace("-", "_")
        value = getattr(config, field, None)
        if isinstance(value, bool):
            assert default == ("on" if value else "off")
        elif isinstance(value, int | float):
            assert default.split(":")[0] == f"{value:g}"
        elif isinstance(value, str) and field != "server_id":
            assert default == value


def test_ports_are_those_of_the_compose_file() -> None:
    """Each port that it opens is told, and no other."""
    services = yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text())["services"]
    opened = {
        int(mapping.split(":")[1])
        for service in services.values()
        for mapping in service.get("ports", ())
    }
    told: set[int] = set()
    for ports in table("docs/operations.md", "port"):
        first, _, last = ports.partition("-")
        told |= set(range(int(first), int(last or first) + 1))
    assert told == opened


def test_every_alert_is_explained() -> None:
    """Under its name, and nothing else is there."""
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())
    alerts = {
        rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    }
    text = (ROOT / "docs" / "operations.md").read_text().split("\n## Alerts\n")[1]
    assert set(re.findall(r"^### (\w+)$", text.split("\n## ")[0], re.M)) == alerts


def test_the_protocol_is_told_in_full() -> None:
    """Every call, message, field of what is delivered and published, and status is mentioned."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    file = chat_pb2.DESCRIPTOR
    names = {
        f"{service.name}.{method.name}"
        for service in file.services_by_name.values()
        for method in service.methods
    }
    names |= set(file.message_types_by_name)
    for message in ("Delivery", "Gap", "Outcome", "HistoryPage", "SubscribeRequest"):
        names |= set(file.message_types_by_name[message].fields_by_name)
    names |= {
        value.name
        for message in file.message_types_by_name.values()
        for enum in message.enum_types
        for value in enum.values
    }
    missing = {name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)}
    assert not missing


def test_the_numbers_of_the_protocol_are_the_servers() -> None:
    """Limits that the page tells are those that are checked."""
    limits = table("docs/protocol.md", "what")
    assert f"1 to {rules.MAX_NAME_BYTES} bytes" in limits["User.id, Message.id (the sender)"][0]
    assert f"1 to {rules.MAX_CONTENT_CHARACTERS:,} characters" == limits["Message.content"][0]
    assert f"at most {rules.MAX_MESSAGE_ID_BYTES} bytes" in limits["Message.message_id"][0]
    assert f"{MAX_MESSAGE_BYTES // 1024} KiB" == limits["a request"][0]
    assert f"{rules.MAX_LAST:,}" == limits["SubscribeRequest.last"][0]
    assert limits["HistoryRequest.limit"][0].startswith(f"{rules.MAX_PAGE:,};")
    assert f"at most {rules.MAX_ROOMS} in" in limits["Message.room, SubscribeRequest.rooms"][0]
