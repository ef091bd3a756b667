"""Three people at three terminals."""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from brokers import Brokers
from conftest import Serve
from terminal import Terminal

SAID = {
    "alice": "안녕하세요! Alice입니다.",
    "bob": "반갑습니다 Bob이에요!",
    "charlie": "안녕하세요 모두들~ Charlie입니다",
}


@contextmanager
def joined(names: list[str], addresses: list[str]) -> Iterator[dict[str, Terminal]]:
    """A terminal for each name in which `chatsvc join` has connected."""
    with ExitStack() as stack:
        terminals = {}
        for name, address in zip(names, addresses, strict=True):
            command = [sys.executable, "-m", "chatsvc.cli", "join", name, "--server", address]
            terminals[name] = Terminal(command)
            stack.callback(terminals[name].close)
        for name, terminal in terminals.items():
            terminal.expect(f"Connected to server as user: {name}")
        yield terminals


def talk(addresses: list[str]) -> None:
    """Each says a line once the others have seen the one before, and all leave by /quit."""
    with joined(list(SAID), addresses) as terminals:
        for speaker, text in SAID.items():
            terminals[speaker].send_line(text)
            for name, terminal in terminals.items():
                terminal.expect(f"You: {text}" if name == speaker else f"{speaker}: {text}")
        for name, terminal in terminals.items():
            _check_screen(name, terminal)
            terminal.send_line("/quit")
            assert terminal.wait(20) == 0


def _check_screen(name: str, terminal: Terminal) -> None:
    """The lines are there once each, in the order said, in the seed's form."""
    shown = [line for line in terminal.screen().splitlines() if line.startswith(("✓", "📩"))]
    said = [
        f"✓ [time] You: {text}" if speaker == name else f"📩 [time] {speaker}: {text}"
        for speaker, text in SAID.items()
    ]
    assert [re.sub(r"\[\d\d:\d\d:\d\d\]", "[time]", line) for line in shown] == said


@pytest.mark.kafka
def test_three_people_on_three_brokers(brokers: Brokers, serve: Serve) -> None:
    """The Korean scenario, with people at two servers."""
    first, second = serve(brokers), serve(brokers)
    talk([first.address, second.address, first.address])


def test_three_people_on_the_embedded_broker(serve: Serve) -> None:
    """The same without Kafka."""
    talk([serve(None).address] * 3)
