"""`chatsvc doctor` without real brokers: what it says, and that it never shows a traceback."""

import json
import resource
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from chatsvc.cli.main import main
from chatsvc.doctor import examination
from chatsvc.doctor.apiversions import NotKafka, release
from chatsvc.doctor.findings import fail, json_of, ok, text_of, warn

from sites import Site

NOBODY = "127.0.0.1:1"


def doctor(*arguments: str) -> Result:
    """Runs `chatsvc doctor`, which must never end by an exception of its own."""
    answer = CliRunner().invoke(main, ["doctor", "--timeout", "10", *arguments])
    assert answer.exception is None or isinstance(answer.exception, SystemExit)
    assert "Traceback" not in answer.output
    return answer


def findings(answer: Result) -> dict[str, list[tuple[str, str]]]:
    """Of each subject the levels and texts, from --json."""
    found: dict[str, list[tuple[str, str]]] = {}
    for each in json.loads(answer.stdout)["findings"]:
        assert bool(each["advice"]) == (each["level"] != "ok")
        found.setdefault(each["subject"], []).append((each["level"], each["text"]))
    return found


def test_lines_are_aligned() -> None:
    """Level, subject and text in columns, the advice under the text, and a sum at the end."""
    text = text_of(
        [ok("a", "fine"), warn("server x:1", "so so", "do this"), fail("b", "bad", "do that")]
    )
    assert text.splitlines() == [
        "ok    a           fine",
        "warn  server x:1  so so",
        "                  -> do this",
        "fail  b           bad",
        "                  -> do that",
        "",
        "1 failure, 1 warning.",
    ]


def test_nothing_is_wrong() -> None:
    """Then it says so, to people and to programs."""
    assert text_of([ok("a", "fine")]).endswith("\n\nAll is well.")
    assert json_of([ok("a", "fine")]) == {
        "ok": True,
        "failures": 0,
        "warnings": 0,
        "findings": [{"level": "ok", "subject": "a", "text": "fine", "advice": ""}],
    }


def test_two_servers_that_share_a_kafka(site: Site) -> None:
    """Both serve, and a message through each is delivered by both; exit code 0."""
    first, second = site.server()[1], site.server()[1]
    answer = doctor("--server", first, "--server", second, "--json")
    assert answer.exit_code == 0, answer.output
    found = findings(answer)
    for server in (first, second):
        assert found[f"server {server}"] == [("ok", "SERVING")]
        ((level, text),) = found[f"message {server}"]
        assert level == "ok"
        assert text.startswith("sent, and delivered by all 2 servers after ")
    assert [level for level, _ in found["kafka"]] == ["warn"]  # no brokers were named
    assert "clock" in found


def test_the_messages_are_for_nobody_else(site: Site) -> None:
    """Who is in the lobby, and who looks at its history, sees nothing of them."""
    _, address = site.server()
    stream = site.subscribe(address)
    assert doctor("--server", address).exit_code == 0
    site.publish(address, iter(["the first"]))
    contents = [each.content for delivery in _until(stream) for each in delivery.messages]
    assert contents == ["the first"]


def _until(stream: Iterator[object]) -> Iterator[object]:
    for delivery in stream:
        yield delivery
        if delivery.messages:  # type: ignore[attr-defined]
            return


def test_two_servers_that_do_not(site: Site, start_server: Callable[..., object]) -> None:
    """Servers of different Kafkas are found out by the message, and named."""
    _, first = site.server()
    _, listening = start_server()
    other = f"127.0.0.1:{listening.port}"
    answer = doctor("--server", first, "--server", other, "--timeout", "1", "--json")
    assert answer.exit_code == 1
    ((level, text),) = findings(answer)[f"message {first}"]
    assert level == "fail"
    assert f"not delivered by {other}" in text


def test_a_server_that_does_not_serve(site: Site) -> None:
    """It is a failure, and no message is sent through it; the others are looked at all the same."""
    leaving, first = site.server()
    _, second = site.server()
    leaving.health.leave()  # the first thing that a stop does
    answer = doctor("--server", first, "--server", second, "--json")
    assert answer.exit_code == 1
    found = findings(answer)
    assert found[f"server {first}"] == [("fail", "NOT_SERVING")]
    assert f"message {first}" not in found
    assert found[f"message {second}"][0][0] == "ok"


def test_nobody_is_there() -> None:
    """Each address is named with what is wrong; the text has what to do."""
    answer = doctor("--brokers", NOBODY, "--server", NOBODY)
    assert answer.exit_code == 1
    lines = answer.stdout.splitlines()
    for subject in ("broker", "server"):
        at = next(
            number
            for number, line in enumerate(lines)
            if line.startswith(f"fail  {subject} {NOBODY}  connection refused")
        )
        assert "-> start it" in lines[at + 1]
    assert lines[-1] == "2 failures, 1 warning."


@pytest.fixture(params=[b"", b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """Something else that listens: it closes, greets, answers, or says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def answer() -> None:
            listener.settimeout(0.1)
            while not over.is_set():
                try:
                    connection = listener.accept()[0]
                except TimeoutError:
                    continue
                if request.param is None:
                    held.append(connection)
                else:
                    with connection:
                        connection.settimeout(1)
                        connection.recv(4096)
                        connection.sendall(request.param)

        held: list[socket.socket] = []
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        thread.join()
        for connection in held:
            connection.close()


def test_something_else_speaks_there(stranger: str) -> None:
    """A port of something else is a failure in one line, as a broker and as a server."""
    answer = doctor("--brokers", stranger, "--server", stranger, "--timeout", "1", "--json")
    assert answer.exit_code == 1
    found = findings(answer)
    assert [level for level, _ in found[f"server {stranger}"]] == ["fail"]
    ((level, text),) = found[f"broker {stranger}"]
    assert level == "fail"
    assert text in ("what answers is no Kafka broker", "no answer in time")


def test_kafka_goes_away_below_a_server(site: Site) -> None:
    """The server serves on for a while; that nothing can be sent is found all the same."""
    _, address = site.server(publish_timeout=0.5)
    site.broker.close()
    answer = doctor("--server", address, "--timeout", "30", "--json")
    assert answer.exit_code == 1
    ((level, text),) = findings(answer)[f"message {address}"]
    assert level == "fail"
    assert "not confirmed in time" in text


def test_few_files_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do, and what such a server could take."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1_024, 1_024))
    finding = examination._files()
    assert finding.level.value == "warn"
    assert "--max-connections 768" in finding.advice


def test_a_bug_of_the_doctor_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks, the rest is looked at, and there is no traceback."""

    def broken(which: int) -> tuple[int, int]:
        raise ValueError("not so")

    monkeypatch.setattr(resource, "getrlimit", broken)
    found = findings(doctor("--server", NOBODY, "--json"))
    assert found["files"] == [("fail", "could not be examined: ValueError: not so")]
    assert f"server {NOBODY}" in found


def test_an_answer_that_is_cut_short_is_not_kafka() -> None:
    """No bytes make the question fail otherwise."""
    for answer in (b"\0\0\0\x06" + b"x" * 6, b"\0\0\0\x0a\0\0\x12\x67\0\0\x05xyz", b"\xff" * 8):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve(listener: socket.socket = listener, answer: bytes = answer) -> None:
                with listener.accept()[0] as connection:
                    connection.recv(4096)
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(NotKafka):
                release(f"127.0.0.1:{listener.getsockname()[1]}", 10)
            thread.join()


def test_what_is_no_address_is_refused() -> None:
    """One line and exit code 2, before anything is looked at."""
    for option in ("--brokers", "--server"):
        answer = doctor(option, "nonsense")
        assert answer.exit_code == 2
        assert len(answer.stderr.splitlines()) == 1
