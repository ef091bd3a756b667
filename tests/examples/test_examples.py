"""The clients of examples/ at real servers: what others copy must be right."""

import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from signal import SIGKILL, SIGTERM, Signals

import grpc
import pytest
from checkout import ROOT

from chatsvc.client import ChatClient, Received, send_once
from chatsvc.pb import chat_pb2, chat_pb2_grpc

from .conftest import LANGUAGES, Example
from .program import WAIT
from brokers import Brokers, free_ports
from conftest import Serve, StartServer
from faults.machine import needs
from waiting import eventually

pytestmark = [pytest.mark.examples, pytest.mark.timeout(600)]

SAID = {
    "go": "안녕하세요! Go입니다.",
    "python": "I am \N{SNAKE}, a family: 👨‍👩‍👧",
    "node": "반갑습니다 Node예요! \N{GRINNING FACE}",
}


def test_they_talk_with_each_other_and_with_python(serve: Serve, example: Example) -> None:
    """Each sees what all say in its room, once and in order, and nothing of another one; it ends
    when its input does."""
    server = serve(None).address
    programs = {each: example(each, server, "--room", "tea") for each in LANGUAGES}
    with ChatClient("python", [server], ["tea"]) as python:
        python.connect()
        for number, (user, content) in enumerate(SAID.items()):
            send_once("stranger", f"{number} in the lobby", [server])
            if user == "python":
                python.send(content, room="tea")
            else:
                programs[user].say(content)
            for program in programs.values():
                program.expect(f"{user}: {content}")
        heard = [python.receive(WAIT) for _ in SAID]
    assert [(each.user, each.content) for each in heard if isinstance(each, Received)] == [
        *SAID.items()
    ]
    for program in programs.values():
        assert program.finish() == 0, program.stderr
        assert program.lines == [f"{user}: {content}" for user, content in SAID.items()]


@pytest.mark.kafka
@pytest.mark.parametrize("number", [SIGKILL, SIGTERM], ids=lambda number: number.name)
def test_the_loss_of_a_server_costs_nothing(
    brokers: Brokers, serve: Serve, example: Example, number: Signals
) -> None:
    """While it is away the clients are given more to say, and more is said elsewhere. When there is
    one again at the same address, everybody has everything once, each sender's in order."""
    lost, other = serve(brokers), serve(brokers)
    programs = {each: example(each, lost.address) for each in LANGUAGES}
    with ChatClient("python", [other.address]) as python:
        python.connect()
        acked: list[str] = []

        def say(numbers: range) -> None:
            for program in programs.values():
                program.say(*map(str, numbers))
            for each in numbers:
                python.post(str(each), on_outcome=lambda acked_id, _: acked.append(acked_id))

        def heard_by_all(content: str) -> None:
            for program in programs.values():
                for user in SAID:
                    program.expect(f"{user}: {content}")

        say(range(1))
        heard_by_all("0")
        say(range(1, 50))
        programs["node"].expect("node: 10")
        lost.signal(number)
        lost.wait(WAIT)
        say(range(50, 100))
        assert eventually(lambda: len(acked) == 100, WAIT)
        serve(brokers, "--port", lost.address.rpartition(":")[2])
        say(range(100, 150))
        heard_by_all("149")
    for program in programs.values():
        assert program.finish() == 0, program.stderr
        heard = defaultdict(list)
        for line in program.lines:
            user, _, content = line.partition(": ")
            heard[user].append(content)
        assert heard == {user: [*map(str, range(150))] for user in SAID}


def test_they_go_when_they_are_asked_to(start_server: StartServer, example: Example) -> None:
    """And come back, with nothing missed: the server has to send none of them away."""
    server, listening = start_server(max_stream_age=1.0)
    address = f"127.0.0.1:{listening.port}"
    programs = [example(each, address) for each in LANGUAGES]

    def ended(reason: str) -> float:
        labels = {"reason": reason}
        value = server.metrics.registry.get_sample_value("chatsvc_disconnects_total", labels)
        return value or 0.0

    for word in map(str, range(8)):
        for program in programs:
            program.say(word)
        for program in programs:
            for user in LANGUAGES:
                program.expect(f"{user}: {word}")
        assert eventually(lambda word=word: ended("left") >= int(word), WAIT)
    assert ended("moved") == 0
    for program in programs:
        assert program.finish() == 0, program.stderr
        assert len(program.lines) == len(set(program.lines)) == 16


class Fickle(chat_pb2_grpc.ChatServicer):
    """A server that falls silent on a user's first stream after some heartbeats, and tells of a
    loss on the second. `asked` has what each of them began with."""

    def __init__(self) -> None:
        self.asked: dict[str, list[chat_pb2.SubscribeRequest]] = defaultdict(list)

    def Subscribe(  # noqa: N802
        self, requests: Iterator[chat_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[chat_pb2.Delivery]:
        request = next(requests)
        asked = self.asked[request.user.id]
        asked.append(request)
        left = threading.Event()
        context.add_callback(left.set)
        if len(asked) == 1:
            for beat in range(3):
                yield chat_pb2.Delivery(cursor=f"after {beat}".encode())
        else:
            gaps = [chat_pb2.Gap(partition=1, start=0, end=7)]
            yield chat_pb2.Delivery(gaps=gaps, cursor=b"after a gap")
        left.wait(2 * WAIT)


def test_a_silent_server_is_left(
    host: Callable[[chat_pb2_grpc.ChatServicer], str], example: Example
) -> None:
    """After two heartbeats that did not come; it goes on with the newest cursor."""
    server = Fickle()
    address = host(server)
    programs = {each: example(each, address) for each in LANGUAGES}
    for language, program in programs.items():
        program.expect_error("up to 7 messages are lost")
        first, second = server.asked[language]
        assert (first.last, first.cursor) == (20, b"")
        assert (second.last, second.cursor) == (0, b"after 2")
        assert program.finish() == 0


def test_what_is_refused_is_told(serve: Serve, example: Example, language: str) -> None:
    """A line that cannot be sent is told, and the next ones are sent."""
    program = example(language, serve(None).address)
    program.say("x" * 4_097, "and \x1b[31mred")
    program.expect(f"{language}: and  [31mred")
    assert program.finish() == 0
    told = program.stderr.strip().splitlines()
    assert len(told) == 1
    assert told[0].endswith("content: must be at most 4096 characters")


def test_a_client_that_is_refused_ends(serve: Serve, example: Example, language: str) -> None:
    """As one with no name."""
    program = example(language, serve(None).address, "--user", "")
    assert program.wait() == 1
    assert "user.id: must not be empty" in program.stderr


def test_a_server_that_comes_later_is_found(serve: Serve, example: Example) -> None:
    """Who starts before it is told so, and what was said until then is sent."""
    (port,) = free_ports(1)
    programs = {each: example(each, f"localhost:{port}") for each in LANGUAGES}
    for language, program in programs.items():
        program.say(f"{language} waits")
        program.expect_error("")
    serve(None, "--port", str(port))
    for program in programs.values():
        for language in LANGUAGES:
            program.expect(f"{language}: {language} waits")
        assert program.finish() == 0


def test_the_go_code_is_formatted() -> None:
    """As gofmt has it."""
    command = [needs("gofmt", "golang-go"), "-l", str(ROOT / "examples" / "go" / "main.go")]
    assert not subprocess.run(command, capture_output=True, check=True, timeout=WAIT).stdout
