"""What pages say of files, ports, names and options, held against what it is about."""

import ast
import importlib
import inspect
import re
import tomllib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import click
import yaml
from google.protobuf.descriptor import Descriptor

from chatsvc import cursor, metadata, records, rules, server
from chatsvc.cli.main import main
from chatsvc.cli.serve import serve
from chatsvc.client import ChatClient
from chatsvc.config import Config
from chatsvc.model import ChatMessage, ConnectionEvent, Heartbeat
from chatsvc.pages import Pages
from chatsvc.pb import chat_pb2
from chatsvc.trace import HEADER

from .pages import DOCS, LANGUAGES, ROOT, Page, files, rows

_FILE = re.compile(r"\.?[\w-][\w.-]*(/[\w.-]+)*/?")
_SUFFIXES = (
    *(".cfg", ".conf", ".env", ".ini", ".json", ".md", ".proto", ".py", ".pyi", ".svg"),
    *(".toml", ".txt", ".xml", ".yml"),
)
_CLASSES = {"ChatClient": ChatClient, "Pages": Pages}


def link_problems(page: Page) -> Iterator[str]:
    """Links to files and headings that are not there."""
    for link in page.links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        if target != page.path and not target.is_file():
            yield f"{page.name}: no file {link}"
        elif anchor and anchor not in _page(target, page).anchors:
            yield f"{page.name}: no heading {link}"


def _page(path: Any, page: Page) -> Page:
    return page if path == page.path else Page(path, path.read_text())


def file_problems(page: Page) -> Iterator[str]:
    """Files that are named and not there. A name may leave out the folders that it is in."""
    known = files()
    ends = {f"/{name}" for name in known}
    for span in page.spans:
        looks_like_one = "/" in span.rstrip("/") or span.endswith(("/", *_SUFFIXES))
        if not (_FILE.fullmatch(span) and looks_like_one):
            continue
        name = span.rstrip("/")
        in_it = any(each.startswith(f"{name}/") for each in known)
        if not (in_it or any(each.endswith(f"/{name}") for each in ends)):
            yield f"{page.name}: no file {span}"


def port_problems(page: Page) -> Iterator[str]:
    """Ports of this machine that nothing listens on, by the compose file, the defaults, and the
    commands of the page."""
    known = {*compose_ports(), Config.port, Config.metrics_port}
    known |= {int(port) for port in re.findall(r"--(?:metrics-)?port (\d+)", page.text)}
    for port in re.findall(r"(?:localhost|127\.0\.0\.1):(\d+)", page.text):
        if int(port) not in known:
            yield f"{page.name}: nothing listens on {port}"


def port_table_problems(page: Page) -> Iterator[str]:
    """A table of ports that is not that of the compose file."""
    numbers = [re.fullmatch(r"(\d+)(?:-(\d+))?", row[0]) for row in rows(page.text)]
    written = {
        port
        for found in numbers
        if found is not None and len(found[1]) == 4
        for port in range(int(found[1]), int(found[2] or found[1]) + 1)
    }
    for port in sorted(written ^ compose_ports()):
        yield f"{page.name}: {port} is only in one of the table and the compose file"


def compose_ports() -> set[int]:
    """What the compose file publishes."""
    compose = yaml.safe_load((ROOT / "deploy/docker-compose.yml").read_text())
    services = compose["services"].values()
    ports = [each for service in services for each in service.get("ports", [])]
    return {int(each.split(":")[1]) for each in ports}


def code_problems(page: Page) -> Iterator[str]:
    """Blocks of no known language; Python that is none, or imports what is not there; settings
    that serve does not have."""
    for language, text in page.blocks:
        if language not in LANGUAGES:
            yield f"{page.name}: a block of {language or 'no language'}"
        elif language == "python":
            yield from (f"{page.name}: {problem}" for problem in _of_python(text))
        elif language == "toml":
            known = {name.name for name in serve.params}
            for key in tomllib.loads(text)["serve"]:
                if key.replace("-", "_") not in known:
                    yield f"{page.name}: serve has no setting {key}"


def _of_python(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"{error.msg}: {error.text}"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (f"no {name}" for name in names if not _exists(name))
        elif isinstance(node, ast.Import):
            yield from (f"no {alias.name}" for alias in node.names if not _exists(alias.name))
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[str]:
    """Arguments that ChatClient and Pages, or their methods, do not take."""
    path = ast.unparse(node.func).split(".")
    if path[0] not in _CLASSES:
        return
    found: Any = _CLASSES[path[0]]
    for name in path[1:]:
        found = getattr(found, name, None)
    if found is None:
        yield f"no {'.'.join(path)}"
        return
    taken = inspect.signature(found).parameters
    yield from (
        f"{'.'.join(path)} takes no {each.arg}" for each in node.keywords if each.arg not in taken
    )


def _exists(dotted: str) -> bool:
    """Whether a module, or what is in one, is there."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            with warnings.catch_warnings():
                # Of pygal's finder, an old one, when nobody else finds a module.
                warnings.simplefilter("ignore", ImportWarning)
                found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def name_problems(page: Page) -> Iterator[str]:
    """Names of options, metrics and Python that are not there."""
    options = set(_options(main, main.make_context("chatsvc", [], resilient_parsing=True)))
    metrics = (DOCS / "metrics.md").read_text()
    for span in page.spans:
        if re.match(r"--[a-z]", span) and span.split()[0] not in options | _FOREIGN_OPTIONS:
            yield f"{page.name}: no option {span}"
        elif re.fullmatch(r"chatsvc_\w+", span) and f"`{span}`" not in metrics:
            yield f"{page.name}: no metric {span}"
        elif re.match(r"chatsvc(\.\w+)+$", span) and not _exists(span):
            yield f"{page.name}: no {span}"
        elif re.match(rf"({'|'.join(_CLASSES)})\b.*\)$", span):
            yield from (f"{page.name}: {problem}" for problem in _of_python(span))


_FOREIGN_OPTIONS = {"--profile"}
"""Of docker compose."""


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, name
            yield from _options(inner, click.Context(inner, context, name))
    for each in command.get_params(context):
        yield from (*each.opts, *each.secondary_opts)


def option_problems(page: Page) -> Iterator[str]:
    """Lines of the table of options that are not as serve has them."""
    wanted = {each.opts[0]: (_variable(each), _default(each)) for each in serve.params}
    table = [row for row in rows(page.section("Options")) if row[0].startswith("`--")]
    written = {row[0].strip("`"): (row[1].strip("`"), row[2].strip("`")) for row in table}
    for option in sorted(wanted.keys() | written.keys()):
        if wanted.get(option) != written.get(option):
            yield f"{option} is {wanted.get(option)}, not {written.get(option)}"


def _variable(option: click.Parameter) -> str:
    assert option.name is not None
    return str(option.envvar or f"CHATSVC_SERVE_{option.name.upper()}")


def _default(option: click.Parameter) -> str:
    context = click.Context(serve, info_name="serve")
    default = option.get_default(context)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if isinstance(default, str | int) else ""  # click has a mark for none


def alert_problems(page: Page) -> Iterator[str]:
    """Alerts without a section that begins with how bad they are and how long they wait, and
    sections without an alert."""
    groups = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"]
    found = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    for rule in found:
        severity = rule["labels"]["severity"]
        begin = f"\n\n*{severity}, {_wait(rule.get('for', ''))}.* "
        text = page.section(rule["alert"])
        if not text.startswith(begin) or "\n* " not in text:
            yield f"no section {rule['alert']}, or it does not begin with {begin.strip()}"
    sections = re.findall(r"^### (.+)$", page.section("Alerts"), re.MULTILINE)
    yield from (f"no alert {name}" for name in set(sections) - {rule["alert"] for rule in found})


def _wait(time: str) -> str:
    if not time:
        return "at once"
    return f"after {time[:-1]} {'min' if time.endswith('m') else time[-1]}"


def proto_problems(page: Page) -> Iterator[str]:
    """Services, methods, messages, fields and values of chat.proto that are not there: of a message
    with its own table, the fields are its lines."""
    file = chat_pb2.DESCRIPTOR
    words = [*file.services_by_name]
    for service in file.services_by_name.values():
        words += [
            f"rpc {each.name}({_stream(each.client_streaming)}{each.input_type.name}) "
            f"returns ({_stream(each.server_streaming)}{each.output_type.name})"
            for each in service.methods
        ]
    yield from (f"no {each}" for each in words if each not in page.text)
    for message in _messages(file.message_types_by_name.values()):
        yield from _of_message(message, page)


def _stream(streaming: bool) -> str:
    return "stream " if streaming else ""


def _messages(messages: Iterable[Descriptor]) -> Iterator[Descriptor]:
    for each in messages:
        yield each
        yield from _messages(each.nested_types)


def _of_message(message: Descriptor, page: Page) -> Iterator[str]:
    if not re.search(rf"\b{message.name}\b", page.text):
        yield f"no {message.name}"
    text = page.text
    if f"| field of {message.name} |" in text:
        text = text.split(f"| field of {message.name} |")[1].split("\n\n")[0]
    for field in message.fields:
        if not re.search(rf"`(\w+\.)?{field.name}`", text):
            yield f"no {message.name}.{field.name}"
    for enum in message.enum_types:
        for value in enum.values:
            if f"| `{value.name}` |" not in page.text:
                yield f"no {value.name}"


def wire_problems(page: Page) -> Iterator[str]:
    """Metadata and keys of records that are not there, and limits that are others."""
    keys = [value for name, value in vars(metadata).items() if name.isupper()]
    yield from (f"no {key}" for key in (*keys, HEADER) if f"`{key}`" not in page.text)
    for topic, written in _records():
        section = page.section(topic)
        yield from (f"{topic}: no {key}" for key in written if f"`{key}`" not in section)
    table = page.text.partition("| what | limit |")[2].partition("\n\n")[0]
    told = dict(row for row in rows(table) if len(row) == 2)
    for what, limit in _LIMITS.items():
        numbers = re.findall(r"\d+", told.get(what, ""))
        if str(limit) not in numbers:
            yield f"{what}: {limit}, not {told.get(what)}"


_CHANNEL = dict(server.channel_options(Config()))
_LIMITS = {
    "a request, and a message of a request": server.MAX_MESSAGE_BYTES,
    "a user's id, a room's name": rules.MAX_NAME_BYTES,
    "`content`": rules.MAX_CONTENT_CHARACTERS,
    "`message_id`": rules.MAX_MESSAGE_ID_BYTES,
    "`rooms`": rules.MAX_ROOMS,
    "`last`": rules.MAX_LAST,
    "`limit`": rules.MAX_PAGE,
    "a cursor": cursor.MAX_CURSOR_BYTES,
    "metadata of a call": _CHANNEL["grpc.max_metadata_size"],
    "calls at once on a connection": _CHANNEL["grpc.max_concurrent_streams"],
}


def _records() -> list[tuple[str, list[str]]]:
    """The topics, and the keys of what is written to them."""
    message = ChatMessage("alice", "hello", "2026-11-24T10:00:00Z", "tea", "1")
    event = ConnectionEvent("alice", "server", connected=True, connections=1, sequence=1)
    beat = Heartbeat("server", 1, leaving=True, users={"alice": 1})
    people = (records.encode_event(event), records.encode_heartbeat(beat))
    return [
        (Config.topic, _keys(records.encode_message(message)[1])),
        (Config.connections_topic, [key for _, value in people for key in _keys(value)]),
    ]


def _keys(value: bytes) -> list[str]:
    found: dict[str, Any] = yaml.safe_load(value)
    return list(found)


def nav_problems(text: str) -> Iterator[str]:
    """Pages that the site does not list, and those that it lists and that are not there."""
    listed = {path for entry in yaml.safe_load(text)["nav"] for path in entry.values()}
    there = {path.name for path in DOCS.glob("*.md")}
    yield from (f"{name} is only in one of docs/ and nav" for name in sorted(listed ^ there))
