"""Completion in the shell, and the version."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chatsvc
from chatsvc.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PROGRAM = Path(sys.executable).with_name("chatsvc")


def complete(*words: str) -> set[str]:
    """What the shell is offered for the last of some words."""
    env = {
        **os.environ,
        "_CHATSVC_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    answer = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stderr) == (0, "")
    return {line.partition(",")[2] for line in answer.stdout.splitlines()}


def test_commands_are_completed() -> None:
    """All of them, or those that begin so."""
    assert complete("chatsvc", "") == set(COMMANDS)
    assert complete("chatsvc", "he") == {"health"}
    assert complete("chatsvc", "topics", "g") == {"grow"}


def test_options_are_completed() -> None:
    """Also of a command, and their values where these are a choice."""
    assert complete("chatsvc", "serve", "--metrics-") == {"--metrics-host", "--metrics-port"}
    assert complete("chatsvc", "serve", "--log-format", "j") == {"json"}


def test_the_documentation_says_how() -> None:
    """Its line for bash works: after it, bash completes the program by it."""
    page = (ROOT / "docs" / "getting-started.md").read_text()
    line = re.search(r"^(eval .*_CHATSVC_COMPLETE=bash_source.*)$", page, re.M)
    assert line is not None
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    answer = subprocess.run(
        ["bash", "-c", f"{line[1].replace('.venv/bin/chatsvc', 'chatsvc')}; complete -p chatsvc"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    assert "_chatsvc_completion" in answer.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    """What is to be evaluated asks the program by the right name."""
    env = {**os.environ, "_CHATSVC_COMPLETE": f"{shell}_source"}
    answer = subprocess.run([PROGRAM], env=env, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0
    assert f"_CHATSVC_COMPLETE={shell}_complete" in answer.stdout


def test_the_version_is_in_one_place() -> None:
    """The program and the package tell the one of chatsvc/__init__.py, which setup.cfg reads."""
    answer = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=60)
    assert answer.stdout == f"chatsvc, version {chatsvc.__version__}\n"
    assert "version = attr: chatsvc.__version__" in (ROOT / "setup.cfg").read_text()
