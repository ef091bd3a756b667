"""What a page claims that can be looked up: links, paths, commands, targets, metrics, Python.

Each function takes a page's text and returns what is wrong in it, one line each.
"""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import yaml

from chatsvc.cli.main import main

ROOT = Path(__file__).parents[2]
PROGRAM = ".venv/bin/chatsvc"
_TOPS = ("chatsvc", "cli", "deploy", "docs", "examples", "protos", "tests")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n?)+", re.M)
_CODE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")


def bad_links(text: str, page: Path) -> Iterator[str]:
    """Relative links whose file, or whose heading in it, does not exist."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            yield f"{target}: not within the project"
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(text if file == page else file.read_text()):
            yield f"{target}: no such heading"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as MkDocs and code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w -]", "", each.lower()).strip().replace(" ", "-") for each in headings}


def bad_paths(text: str) -> Iterator[str]:
    """Files in backticks that are not there: by their path, or a module by its name alone."""
    modules = {path.name for top in _TOPS for path in (ROOT / top).rglob("*.py")}
    for code in _CODE.findall(_FENCE.sub("", text)):
        if re.fullmatch(rf"(?:{'|'.join(_TOPS)})/[\w./-]*", code) and not (ROOT / code).exists():
            yield f"{code}: no such file"
        elif re.fullmatch(r"\w+\.py", code) and code not in modules:
            yield f"{code}: no such module"


def bad_commands(text: str) -> Iterator[str]:
    """Commands that chatsvc, make, the brokers' script or docker compose would not take."""
    for line, whole in commands(text):
        words = shlex.split(line, comments=True)
        if words[0] in (PROGRAM, "chatsvc"):
            wrong = _bad_chatsvc(words[1:], whole)
        elif words[0] == "make":
            wrong = _bad_make(words[1:])
        elif words[0].startswith("python") and words[1:2] != ["-m"]:
            wrong = _bad_script(words[1:])
        elif words[:2] == ["docker", "compose"]:
            wrong = _bad_compose(words[2:])
        else:
            continue
        if wrong:
            yield f"{line}: {wrong}"


def commands(text: str) -> Iterator[tuple[str, bool]]:
    """Each command of the page, and whether it is one to type, in a block, rather than spoken of,
    which needs not all arguments."""
    blocks = [body for language, body in _FENCE.findall(text) if language in ("", "sh", "bash")]
    rest = _FENCE.sub("", text)
    blocks += [block for block in _INDENTED.findall(rest) if not block.lstrip().startswith("*")]
    lines = [(line.strip(), True) for block in blocks for line in block.splitlines()]
    lines += [(code.replace("\n", " "), False) for code in _CODE.findall(_INDENTED.sub("", rest))]
    for line, whole in lines:
        for part in re.split(r" \| | && ", line):
            command = re.sub(r" > \S+$", "", part.strip())
            if re.match(
                rf"(?:{re.escape(PROGRAM)}|chatsvc|make|python3?|docker compose) ", command
            ):
                yield command, whole


def _bad_chatsvc(words: list[str], whole: bool) -> str:
    command: click.Command = main
    parent = click.Context(main, info_name="chatsvc")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = command.get_command(parent, name)
        if found is None:
            return f"no command {name}"
        command = found
    if isinstance(command, click.Group):
        return ""
    try:
        command.make_context(command.name, words, parent)
    except click.exceptions.Exit:
        return ""
    except click.MissingParameter as error:
        return error.format_message() if whole else ""
    except click.ClickException as error:
        return error.format_message()
    return ""


def _bad_make(words: list[str]) -> str:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        if is_variable and f"$({name})" not in makefile and f'"$({name})"' not in makefile:
            return f"no variable {name}"
        if not is_variable and not re.search(rf"^{re.escape(name)}:", makefile, re.M):
            return f"no target {name}"
    return ""


def _bad_script(words: list[str]) -> str:
    script = ROOT / words[0]
    if not script.is_file():
        return "no such file"
    asked = subprocess.run(
        [sys.executable, str(script), *words[1:], "--help"], capture_output=True, text=True
    )
    return asked.stderr.strip().rsplit("\n", 1)[-1] if asked.returncode else ""


def _bad_compose(words: list[str]) -> str:
    file = words[words.index("-f") + 1] if "-f" in words else "deploy/docker-compose.yml"
    if not (ROOT / file).is_file():
        return f"no file {file}"
    services = yaml.safe_load((ROOT / file).read_text())["services"]
    if "exec" in words and words[words.index("exec") + 1] not in services:
        return f"no service {words[words.index('exec') + 1]}"
    return ""


def bad_metrics(text: str) -> Iterator[str]:
    """Names of metrics that docs/metrics.md does not have."""
    known = (ROOT / "docs" / "metrics.md").read_text()
    for name in set(re.findall(r"\bchatsvc_[a-z_]+\b", text)):
        if f"`{name}`" not in known:
            yield f"{name}: no such metric"


def bad_python(text: str) -> Iterator[str]:
    """Blocks of Python that do not parse, or import what is not there."""
    for language, body in _FENCE.findall(text):
        if language != "python":
            continue
        try:
            tree = ast.parse(body)
        except SyntaxError as error:
            yield str(error)
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                yield from (
                    f"{node.module} has no {each.name}"
                    for each in node.names
                    if not hasattr(module, each.name)
                )
