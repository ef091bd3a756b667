"""Commands in the documentation, each held against what would take it. None is run."""

import ast
import configparser
import io
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import click
import yaml

from chatsvc.cli.main import COMMANDS, main

from .pages import ROOT, Page

_VALUES = {"N": "2", "SECONDS": "2", "...": "localhost:9092"}
"""What stands in the prose for a value."""
_CHOICE = re.compile(r"\b(\w+)\|\w+\b")
"""Where one of several stands in the prose."""
_HARMLESS = {"echo", "source"}


def problems(page: Page) -> list[str]:
    """What is wrong with the commands of a page."""
    scripts = [(block.text, True) for block in page.blocks if block.language == "sh"]
    spans = [(_CHOICE.sub(r"\1", span), False) for span in page.spans if _is_command(span)]
    return [
        f"{page.name}: {' '.join(words)}: {problem}"
        for text, whole in [*scripts, *spans]
        for words in simple_commands(text)
        if (problem := _problem(words, page, whole))
    ]


def _is_command(span: str) -> bool:
    first, _, rest = span.partition(" ")
    return (Path(first).name in _PROGRAMS and bool(rest)) or (
        first in COMMANDS and rest.startswith("--")
    )


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a script, without variables before it and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in (*lexer, ";"):
            if set(word) <= set("|;&"):
                yield from _without_surroundings(words)
                words = []
            else:
                words.append(word)


def _without_surroundings(words: list[str]) -> Iterator[list[str]]:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    for number, word in enumerate(words):
        if set(word) <= set("<>"):
            words = words[:number]
            break
    if not words:
        return
    inner = re.fullmatch(r"\$\((.*)\)", words[-1]) if words[0] == "eval" else None
    if inner is not None:
        yield from simple_commands(inner[1])
    else:
        yield words


def _problem(words: list[str], page: Page, whole: bool) -> str:
    """What is wrong with one command; empty if nothing is. One that is not `whole` is in the prose,
    where what it needs may be left out."""
    if words[0] in COMMANDS and not whole:
        words = ["chatsvc", *words]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "chatsvc":
        return _of_chatsvc(arguments, page, whole)
    if program in _HARMLESS:
        return ""
    if program not in _PROGRAMS:
        return f"nobody knows {program}"
    return _PROGRAMS[program](arguments)


def _of_chatsvc(arguments: list[str], page: Page, whole: bool) -> str:
    if not whole:
        arguments = [_VALUES.get(each, each) for each in arguments]
    with tempfile.TemporaryDirectory() as directory:
        if "--config" in arguments[:-1]:
            path = Path(directory) / "config.toml"
            path.write_text("\n".join(each.text for each in page.blocks if each.language == "toml"))
            arguments[arguments.index("--config") + 1] = str(path)
        return parse(arguments, whole)


def parse(arguments: list[str], whole: bool = True) -> str:
    """What chatsvc's own command line says of arguments; empty if it takes them."""
    command: click.Command = main
    context = click.Context(main, info_name="chatsvc")
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        found = command.get_command(context, name)
        if found is None:
            return f"no command {name}"
        command, context = found, click.Context(found, context, name)
    if isinstance(command, click.Group) and not arguments:
        return ""
    try:
        with redirect_stdout(io.StringIO()):
            command.make_context(context.info_name, list(arguments), parent=context.parent)
    except click.exceptions.Exit:  # --help and the like
        return ""
    except click.MissingParameter as error:
        return error.format_message() if whole else ""
    except click.ClickException as error:
        return error.format_message()
    return ""


def _of_make(arguments: list[str]) -> str:
    makefile = (ROOT / "Makefile").read_text()
    rules = dict(re.findall(r"^([\w-]+):(?!=)((?:.*\n)(?:\t.*\n)*)", makefile, re.MULTILINE))
    targets = [each for each in arguments if "=" not in each]
    unknown = [each for each in targets if each not in rules]
    if unknown:
        return f"no target {unknown[0]}"
    used = "".join(rules[each] for each in targets)
    names = [each.partition("=")[0] for each in arguments if "=" in each]
    unused = [name for name in names if f"$({name})" not in used]
    return f"{unused[0]} is not used" if unused else ""


def _of_docker(arguments: list[str]) -> str:
    if arguments[:1] != ["compose"] or len(arguments) == 1:
        return ""
    options = [place for place, each in enumerate(arguments) if each in ("-f", "--file")]
    path = arguments[options[0] + 1] if options else "docker-compose.yml"
    if not (ROOT / path).is_file():
        return f"no file {path}"
    rest = arguments[options[0] + 2 :]
    words = [each for each in rest if not each.startswith("-")]
    services = words[1:2] if words[:1] in (["exec"], ["run"]) else words[1:]
    known = yaml.safe_load((ROOT / path).read_text())["services"]
    unknown = [each for each in services if each not in known]
    return f"no service {unknown[0]}" if unknown else ""


def _of_python(arguments: list[str]) -> str:
    if arguments[0] == "-m":
        return _missing(arguments[2:])
    path = ROOT / arguments[0]
    if not path.is_file():
        return f"no file {arguments[0]}"
    constants = [each for each in ast.walk(ast.parse(path.read_text())) if hasattr(each, "value")]
    known = {each.value for each in constants if isinstance(each, ast.Constant)}
    unknown = [each for each in arguments[1:] if each not in known]
    return f"{arguments[0]} does not know {unknown[0]}" if unknown else ""


def _of_tox(arguments: list[str]) -> str:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "tox.ini")
    known = {*settings["tox"]["env_list"].replace(" ", "").split(",")}
    if "-e" in arguments:
        name = arguments[arguments.index("-e") + 1]
        if name not in known:
            return f"no environment {name}"
    return _missing(arguments)


def _missing(arguments: list[str]) -> str:
    paths = [each.partition("::")[0] for each in arguments if re.match(r"[a-z]+/", each)]
    missing = [each for each in paths if not (ROOT / each).exists()]
    return f"no file {missing[0]}" if missing else ""


_PROGRAMS: dict[str, Callable[[list[str]], str]] = {
    "chatsvc": lambda arguments: "",  # has its own way
    "docker": _of_docker,
    "make": _of_make,
    "python": _of_python,
    "python3": _of_python,
    "tox": _of_tox,
}
