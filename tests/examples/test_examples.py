"""The clients in examples/, built as their first lines say, at a real server."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import checkout
import pytest

from chatsvc.client import ChatClient

import resources
from serving import ServeProcess
from waiting import eventually

TEXTS = ["안녕하세요", "a \N{ROCKET}", 'with "quotes"']

pytestmark = pytest.mark.timeout(600)  # what is built the first time is fetched and compiled


def run(*command: str, cwd: Path) -> None:
    """Runs a command of a build; what it says is shown if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, "GOTOOLCHAIN": "local"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is in git of examples/ and protos/."""
    tree = tmp_path_factory.mktemp("tree")
    checkout.copy(tree, "examples", "protos")
    return tree


@pytest.fixture(scope="module")
def go(tree: Path) -> list[str]:
    """The client in Go."""
    directory = tree / "examples" / "go"
    run("go", "generate", cwd=directory)
    run("go", "vet", ".", cwd=directory)
    run("go", "build", "-o", "chat", ".", cwd=directory)
    return [str(directory / "chat")]


@pytest.fixture(scope="module")
def node(tree: Path) -> list[str]:
    """The client in JavaScript."""
    directory = tree / "examples" / "node"
    run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", cwd=directory)
    return ["node", str(directory / "chat.js")]


class Example:
    """An example that runs; its output goes to files."""

    def __init__(self, command: list[str], server: str, user: str, directory: Path) -> None:
        self._out = directory / f"{user}.out"
        self._err = directory / f"{user}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [*command, "--server", server, "--user", user],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
            )

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines()

    @property
    def errors(self) -> list[str]:
        return self._err.read_text().splitlines()

    def said_by(self, user: str) -> list[str]:
        return [line for line in self.lines if line.startswith(f"{user}: ")]

    def say(self, *texts: str) -> None:
        assert self._process.stdin
        self._process.stdin.write("".join(f"{text}\n" for text in texts).encode())
        self._process.stdin.flush()

    def end(self) -> int:
        """Ends its input, and waits for it."""
        assert self._process.stdin
        self._process.stdin.close()
        return self._process.wait(60)

    def __enter__(self) -> "Example":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServeProcess]:
    """Two workers, which may be killed, over a broker that stays."""
    process = ServeProcess.started(tmp_path / "server", "--workers", "2")
    try:
        yield process
    finally:
        process.close()


def present(server: ServeProcess) -> float:
    """How many streams the server has."""
    found = server.metrics().items()
    return sum(value for name, value in found if name.startswith("chatsvc_connections_active"))


def has_lines(example: Example, count: int) -> bool:
    return len(example.lines) == count


def printed(user: str, text: str) -> str:
    quoted = text.replace('"', '\\"')
    return f'{user}: "{quoted}"'


def test_they_talk(go: list[str], node: list[str], server: ServeProcess, tmp_path: Path) -> None:
    """What one says all print, once and in order; each ends with its input, when all is sent."""
    with ExitStack() as stack:
        examples = [
            stack.enter_context(Example(command, server.address, user, tmp_path))
            for command, user in ((go, "gopher"), (node, "nodey"))
        ]
        assert eventually(lambda: present(server) == 2, 60), [each.errors for each in examples]
        with ChatClient("ann", [server.address]) as ann:
            ann.connect()
            for text in TEXTS:
                ann.send(text)
        for example in examples:
            example.say(*TEXTS)
        for example in examples:
            assert eventually(partial(has_lines, example, 9), 60), example.lines
            for user in ("ann", "gopher", "nodey"):
                assert example.said_by(user) == [printed(user, text) for text in TEXTS]
        for example in examples:
            example.say("the last", "x" * 5_000)
            assert example.end() == 0
            (error,) = example.errors
            assert re.fullmatch("not sent: .*at most 4096 characters.*", error)
        with ChatClient("bob", [server.address], last=2) as bob:
            bob.connect()
            last = [event.content for event in iter(lambda: bob.receive(20), None)][:2]
        assert last == ["the last", "the last"]


def test_they_miss_nothing(
    go: list[str], node: list[str], server: ServeProcess, tmp_path: Path
) -> None:
    """Their server is killed while somebody talks, and again: they go on where they were."""
    with ExitStack() as stack:
        examples = [
            stack.enter_context(Example(command, server.address, user, tmp_path))
            for command, user in ((go, "gopher"), (node, "nodey"))
        ]
        assert eventually(lambda: present(server) == 2, 60), [each.errors for each in examples]
        ann = stack.enter_context(ChatClient("ann", [server.address]))
        ann.connect()
        sent = 0
        for _ in range(2):
            for worker in resources.children(server.pid, "chatsvc.worker"):
                os.kill(worker, signal.SIGKILL)
                for number in range(sent, sent + 5):
                    ann.send(str(number))
                sent += 5
                assert eventually(partial(all_up, server), 60)
        for example in examples:
            example.say("here")
        wanted = [printed("ann", str(number)) for number in range(sent)]
        for example in examples:
            assert eventually(partial(has_all, example, sent), 60), example.lines
            assert example.said_by("ann") == wanted
            assert not example.errors


def all_up(server: ServeProcess) -> bool:
    """Whether both workers serve."""
    samples = server.metrics()
    return all(samples.get(f'chatsvc_worker_up{{worker="{number}"}}') for number in (0, 1))


def has_all(example: Example, sent: int) -> bool:
    """Whether it has what was sent, and what the two have said in the end."""
    own = [*example.said_by("gopher"), *example.said_by("nodey")]
    return len(example.said_by("ann")) >= sent and len(own) >= 2


@pytest.mark.parametrize("language", ["go", "node"])
def test_no_server_is_told(language: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In a line, and the exit code says so."""
    with Example(request.getfixturevalue(language), "localhost:1", "x", tmp_path) as example:
        assert eventually(lambda: example.errors, 60)
        (line,) = example.errors
        assert re.search(r"refused|ECONNREFUSED|No connection established", line)
        assert example.end() == 1
