"""The image: what the Dockerfile puts into it runs as the container is confined."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import compose, image
from .container import contained_chatsvc
from brokers import free_ports
from waiting import eventually

WAIT = 60


def user() -> int:
    """Who the image runs as."""
    return int(image.the("USER").split(":")[0])


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the image has, unpacked."""
    return image.wheel(tmp_path_factory.mktemp("image"))


@pytest.fixture
def running(app: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int, Path]]:
    """The image's own command, confined, on free ports and with the embedded broker: its process,
    port and output."""
    port, metrics = free_ports(2)
    out = tmp_path / "out"
    command = [*json.loads(image.the("CMD")), "--port", str(port), "--metrics-port", str(metrics)]
    with out.open("wb") as file:
        process = subprocess.Popen(
            contained_chatsvc(app, user(), *command), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        started = eventually(lambda: b"Metrics: " in out.read_bytes() or process.poll(), WAIT)
        assert started, out.read_text()
        assert process.poll() is None, out.read_text()
        yield process, port, out
    finally:
        process.kill()
        process.wait()


def test_the_base_stays_the_same() -> None:
    """Both stages are of one Python image, by a tag that says version and Debian."""
    bases = {rest.split()[0] for stage in image.stages() for word, rest in stage if word == "FROM"}
    (base,) = bases
    assert re.fullmatch(r"python:3\.1[1-9]-slim-[a-z]+", base)


def test_the_image_says_what_it_needs() -> None:
    """Its ports are the defaults of `serve`, its health is asked of the port that it has, and its
    user is nobody of the machine."""
    assert image.the("EXPOSE").split() == ["8081", "9464"]
    asked = json.loads(image.the("HEALTHCHECK").partition("CMD ")[2])
    assert asked[-1] == "exec chatsvc health --server localhost:${SERVER_PORT:-8081}"
    assert json.loads(image.the("ENTRYPOINT")) == ["chatsvc"]
    assert user() >= 10_000


@pytest.mark.root
def test_a_server_needs_no_right_and_writes_nothing(
    app: Path, running: tuple["subprocess.Popen[bytes]", int, Path]
) -> None:
    """As another user than root, without capabilities, on a read-only file system: it starts, its
    health check finds it, and SIGTERM ends it."""
    process, port, out = running
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert re.search(rf"^Uid:\s+{user()}\s", status, re.MULTILINE)
    for capabilities in ("CapEff", "CapPrm", "CapBnd"):
        assert re.search(rf"^{capabilities}:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    *shell, check = json.loads(image.the("HEALTHCHECK").partition("CMD ")[2])
    arguments = check.replace("${SERVER_PORT:-8081}", str(port)).split()[2:]
    assert shell == ["sh", "-c"]
    asked = contained_chatsvc(app, user(), *arguments)
    healthy = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n"), healthy.stderr
    process.terminate()
    assert process.wait(WAIT) == 0, out.read_text()
    unhealthy = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert unhealthy.returncode == 1


@pytest.mark.root
def test_the_topics_are_made_by_the_image(app: Path) -> None:
    """The entry point of the service that makes topics is a shell, which the image has; what it
    calls is a command of the image, with options that it knows."""
    service = compose.services("full")["init-topics"]
    assert service["entrypoint"][0] == "sh"
    arguments = service["command"][0].splitlines()[0].replace('"$REPLICAS"', "3").split()
    assert arguments[0] == "chatsvc"
    asked = contained_chatsvc(app, user(), *arguments[1:], "--help")
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
