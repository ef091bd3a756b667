"""The clients of examples/, built as their first lines tell, and running ones."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import checkout
import pytest

from .program import Program
from faults.machine import needs

LANGUAGES = ("go", "node")

Example = Callable[..., Program]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The command of each example, built in a copy of the tree. What they need is fetched by Go and
    npm, which keep it."""
    tree = tmp_path_factory.mktemp("tree")
    checkout.copy(tree, "protos", "examples")
    protoc = tree / "bin" / "protoc"
    protoc.parent.mkdir()
    protoc.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
    protoc.chmod(0o755)
    go, npm = needs("go", "golang-go"), needs("npm", "npm")
    in_go, in_node = tree / "examples" / "go", tree / "examples" / "node"
    _run(in_go, "env", f"PATH={protoc.parent}:{os.environ['PATH']}", go, "generate")
    _run(in_go, go, "build", "-o", "chat", ".")
    _run(in_node, npm, "install", "--prefer-offline", "--no-audit", "--no-fund")
    return {
        "go": [str(in_go / "chat")],
        "node": [needs("node", "nodejs"), str(in_node / "chat.js")],
    }


def _run(directory: Path, *command: str) -> None:
    answer = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stdout}{answer.stderr}"


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    """Each one in turn."""
    return str(request.param)


@pytest.fixture
def example(tmp_path: Path, built: dict[str, list[str]]) -> Iterator[Example]:
    """Starts the example of a language, whose user has its name; it is ended after the test."""
    programs: list[Program] = []

    def start(language: str, server: str, *options: str) -> Program:
        command: Sequence[str] = [*built[language], "--server", server, "--user", language]
        programs.append(Program(tmp_path / f"example-{len(programs)}", [*command, *options]))
        return programs[-1]

    yield start
    for program in programs:
        program.close()
