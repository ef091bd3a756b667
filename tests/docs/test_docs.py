"""README and docs/: every command, link, file, port and name in them is real. Each check is
shown to find what it is for in a page that has it wrong."""

from collections.abc import Callable, Iterable

import pytest

from .claims import (
    alert_problems,
    code_problems,
    file_problems,
    link_problems,
    name_problems,
    nav_problems,
    option_problems,
    port_problems,
    port_table_problems,
    proto_problems,
    wire_problems,
)
from .commands import problems as command_problems
from .pages import DOCS, ROOT, Block, Page, all_pages, read

Check = Callable[[Page], Iterable[str]]

OF_EVERY_PAGE: tuple[Check, ...] = (
    *(code_problems, command_problems, file_problems, link_problems, name_problems),
    port_problems,
)
OF_ONE_PAGE: tuple[tuple[Check, str], ...] = (
    (alert_problems, "docs/operations.md"),
    (option_problems, "docs/operations.md"),
    (port_table_problems, "README.md"),
    (port_table_problems, "docs/operations.md"),
    (proto_problems, "docs/protocol.md"),
    (wire_problems, "docs/protocol.md"),
)


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
@pytest.mark.parametrize("check", OF_EVERY_PAGE, ids=lambda check: f"{check.__name__}")
def test_all_that_a_page_names_is_there(check: Check, page: Page) -> None:
    """Links, files, commands, options, ports, metrics, code."""
    assert list(check(page)) == []


@pytest.mark.parametrize(("check", "name"), OF_ONE_PAGE)
def test_a_page_is_complete_and_right(check: Check, name: str) -> None:
    """Its tables have all that there is, with its values, and nothing else."""
    assert list(check(read(ROOT / name))) == []


def test_the_site_has_every_page() -> None:
    """mkdocs.yml lists what is in docs/."""
    assert list(nav_problems((ROOT / "mkdocs.yml").read_text())) == []


WRONG = [
    (link_problems, "[a](nowhere.md)", "no file nowhere.md"),
    (link_problems, "[a](docs/concepts.md#nothing)", "no heading docs/concepts.md#nothing"),
    (link_problems, "# One\n\n[a](#two)", "no heading #two"),
    (file_problems, "See `chatsvc/nothing.py`.", "no file chatsvc/nothing.py"),
    (file_problems, "See `nothing.md`.", "no file nothing.md"),
    (file_problems, "See `nowhere/`.", "no file nowhere/"),
    (command_problems, "    chatsvc serve --prot 1", "No such option"),
    (command_problems, "    .venv/bin/chatsvc srve", "no command srve"),
    (command_problems, "    chatsvc topics shrink", "no command shrink"),
    (command_problems, "    chatsvc topics grow", "Missing"),
    (command_problems, "    chatsvc serve --port many", "not a valid integer"),
    (command_problems, "    echo hello | chatsvc joyn bob", "no command joyn"),
    (command_problems, "    chatsvc serve \\\n        --nothing", "No such option"),
    (command_problems, "```sh\nchatsvc health --sever a:1\n```", "No such option"),
    (command_problems, "    chatsvc join a --server nowhere", "is not HOST:PORT"),
    (
        command_problems,
        "    chatsvc serve --config a.toml\n\n```toml\n[serve]\na=1\n```",
        "no option",
    ),
    (command_problems, '    eval "$(A=b chatsvc nothing)"', "no command nothing"),
    (command_problems, "Run `chatsvc serve --nothing`.", "No such option"),
    (command_problems, "It is `serve --nothing`.", "No such option"),
    (command_problems, "    make nothing", "no target nothing"),
    (command_problems, "Say `make client NAME=alice`.", "NAME is not used"),
    (command_problems, "    make up SEED=2", "SEED is not used"),
    (command_problems, "    python3 deploy/kafka/brokers.py stop", "does not know stop"),
    (command_problems, "    python3 deploy/brokers.py up", "no file"),
    (command_problems, "    python -m pytest tests/nothing", "no file tests/nothing"),
    (command_problems, "    tox run -e nothing", "no environment nothing"),
    (command_problems, "    tox run -e py -- tests/nothing.py", "no file tests/nothing.py"),
    (command_problems, "    docker compose -f compose.yml up", "no file compose.yml"),
    (
        command_problems,
        "    docker compose -f deploy/docker-compose.yml exec apache sh",
        "no service apache",
    ),
    (
        command_problems,
        "    docker compose -f deploy/docker-compose.yml up --detach chatsvc-9",
        "no service chatsvc-9",
    ),
    (command_problems, "    frobnicate", "nobody knows frobnicate"),
    (code_problems, "```python\nif\n```", "invalid syntax"),
    (code_problems, "```python\nfrom chatsvc.client import Nothing\n```", "Nothing"),
    (code_problems, "```python\nimport chatsvc.nothing\n```", "chatsvc.nothing"),
    (code_problems, '```python\nChatClient("a", [], room="tea")\n```', "takes no room"),
    (code_problems, "```toml\n[serve]\nprot = 1\n```", "no setting prot"),
    (code_problems, "```\nwhat is this\n```", "no language"),
    (name_problems, "With `--nothing`.", "no option --nothing"),
    (name_problems, "See `chatsvc_nothing_total`.", "no metric chatsvc_nothing_total"),
    (name_problems, "Use `chatsvc.client.Nothing`.", "no chatsvc.client.Nothing"),
    (name_problems, "Use `ChatClient.sent(1)`.", "no ChatClient.sent"),
    (name_problems, "Use `ChatClient.send(1, trace=2)`.", "takes no trace"),
    (port_problems, "At localhost:8086.", "nothing listens on 8086"),
    (port_table_problems, "|port||\n|---|---|\n| 8090 | that |", "8090 is only in one"),
]


@pytest.mark.parametrize(("check", "text", "problem"), WRONG)
def test_what_is_wrong_is_found(check: Check, text: str, problem: str) -> None:
    """In a page that has nothing else."""
    found = list(check(Page(ROOT / "README.md", text)))
    assert [each for each in found if problem in each], found


CHANGED = [
    (alert_problems, "operations", "### ServerDown", "### ServerUp", "no section ServerDown"),
    (alert_problems, "operations", "### ServerDown", "### ServerUp", "no alert ServerUp"),
    (alert_problems, "operations", "*critical, after 10 s.*", "*warning, at once.*", "UnderMinIsr"),
    (option_problems, "operations", "| `--host` |", "| `--hots` |", "--hots"),
    (option_problems, "operations", "| `8081` |", "| `8082` |", "--port is"),
    (option_problems, "operations", "| `KAFKA_TOPIC` |", "| `TOPIC` |", "--topic is"),
    (port_table_problems, "operations", "| 8080 |", "| 8070 |", "8070"),
    (port_table_problems, "operations", "| 9092-9094 |", "| 9092-9093 |", "9094"),
    (proto_problems, "protocol", "`since`", "`from`", "no SubscribeRequest.since"),
    (proto_problems, "protocol", "PublishResult", "Results", "no rpc Publish(stream"),
    (proto_problems, "protocol", "GoingAway", "", "no GoingAway"),
    (proto_problems, "protocol", "| `DUPLICATE` |", "| `TWICE` |", "no DUPLICATE"),
    (wire_problems, "protocol", "`traceparent`", "`traceparents`", "no traceparent"),
    (wire_problems, "protocol", "`leaving`", "`gone`", "user-connections: no leaving"),
    (wire_problems, "protocol", "1 to 4096 characters", "1 to 5000 characters", "4096, not"),
]


@pytest.mark.parametrize(("check", "page", "old", "new", "problem"), CHANGED)
def test_what_no_longer_fits_is_found(
    check: Check, page: str, old: str, new: str, problem: str
) -> None:
    """In the real page with one thing changed."""
    path = DOCS / f"{page}.md"
    changed = path.read_text().replace(old, new)
    assert changed != path.read_text()
    found = list(check(Page(path, changed)))
    assert [each for each in found if problem in each], found


def test_a_page_that_is_not_listed_is_found() -> None:
    """And one that is listed and not there."""
    text = (ROOT / "mkdocs.yml").read_text()
    found = list(nav_problems(text.replace("concepts.md", "ideas.md")))
    assert [each.split()[0] for each in found] == ["concepts.md", "ideas.md"]


def test_a_page_is_taken_apart() -> None:
    """Blocks with fences and without, code in the prose also over the end of a line, no block in a
    list, no link in code."""
    page = Page(
        ROOT / "README.md",
        "# A `title`, it is\n\nSay `two\nwords`.\n\n    make up\n\n    make down\n\n"
        "* a list\n    that goes on\n\n```text\n[a](b)\n```\n[c](d)\n",
    )
    assert page.blocks == [Block("sh", "make up\n\nmake down\n"), Block("text", "[a](b)")]
    assert page.spans == ["title", "two words"]
    assert page.links == ["d"]
    assert page.anchors == {"a-title-it-is"}
