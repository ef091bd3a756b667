"""`chatsvc join` as its users run it: at a terminal, and in pipes, against a server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo

import pytest

from chatsvc import rules
from chatsvc.cli import conversation
from chatsvc.cli.conversation import MAX_UNCONFIRMED, Conversation, line_of
from chatsvc.cli.prompt import wrapped
from chatsvc.client import ChatClient, Connected, Lost, Received

from conftest import StartServer
from terminal import Terminal
from waiting import eventually

JOIN = [sys.executable, "-m", "chatsvc.cli", "join"]
CLOCK = r"\[\d\d:\d\d:\d\d\]"
AT = datetime(2024, 1, 19, 11, 15, 30, tzinfo=UTC)

Join = Callable[..., Terminal]


@pytest.fixture
def address(start_server: StartServer) -> str:
    """Where a server is."""
    _, listening = start_server()
    return f"localhost:{listening.port}"


@pytest.fixture
def join(address: str) -> Iterator[Join]:
    """Joins at terminals of 100 columns, and waits for the prompt."""
    terminals: list[Terminal] = []

    def start(name: str, server: str = address, **settings: object) -> Terminal:
        terminal = Terminal([*JOIN, name, "--server", server], **settings)  # type: ignore[arg-type]
        terminals.append(terminal)
        terminal.expect_screen(f"[{name}] >")
        return terminal

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def alice(address: str) -> Iterator[ChatClient]:
    """Somebody else in the chat."""
    with ChatClient("alice", [address]) as client:
        client.connect()
        yield client


def pipe(
    stdin: bytes, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs `join` with all of its input, until it ends."""
    return subprocess.run(
        [*JOIN, *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )


def row(terminal: Terminal, pattern: str) -> bool:
    """Whether one row of the screen is as `pattern`."""
    return any(re.fullmatch(pattern, line) for line in terminal.screen().splitlines())


def contents(client: ChatClient, last: str) -> list[str]:
    """What `client` receives up to `last`."""
    received: list[str] = []
    while last not in received:
        event = client.receive(timeout=20)
        assert event is not None, f"{last!r} did not come after {received}"
        if isinstance(event, Received):
            received.append(event.content)
    return received


# At a terminal


def test_join_says_as_whom(join: Join) -> None:
    bob = join("bob")
    assert bob.screen().splitlines() == ["Connected to server as user: bob", "[bob] >"]


def test_own_line_is_shown_once_it_has_come_back(join: Join) -> None:
    """It takes the place of the typed line."""
    bob = join("bob")
    bob.send_line("Hello World!")
    bob.expect_screen("You: Hello World!")
    bob.expect_last_row("[bob] >")
    _, message, _ = bob.screen().splitlines()
    assert re.fullmatch(rf"✓ {CLOCK} You: Hello World!", message)


def test_line_of_another_is_shown(join: Join, alice: ChatClient) -> None:
    bob = join("bob")
    alice.send("Hello World!")
    bob.expect_screen("alice: Hello World!")
    assert row(bob, rf"📩 {CLOCK} alice: Hello World!")


def test_time_is_local(join: Join, alice: ChatClient) -> None:
    """The clock is that of the user's time zone."""
    bob = join("bob", env={"TZ": "XXX-5:30"})
    alice.send("what time is it")
    bob.expect_screen("what time is it")
    event = alice.receive(timeout=20)
    assert isinstance(event, Received)
    seconds = (event.at.timestamp() + 5.5 * 3600) % 86_400
    clock = f"{int(seconds // 3600):02}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02}"
    assert f"📩 [{clock}] alice: what time is it" in bob.screen()


def test_half_typed_line_is_not_torn(join: Join, alice: ChatClient) -> None:
    """Messages come above it; it stays whole and is sent whole."""
    bob = join("bob")
    bob.send(b"half typed")
    bob.expect_last_row("[bob] > half typed")
    for number in range(20):
        alice.send(f"message {number}")
    bob.expect_screen("message 19")
    bob.expect_last_row("[bob] > half typed")
    assert bob.screen().count("half typed") == 1
    bob.send_line(" and whole")
    bob.expect_screen("You: half typed and whole")


def test_typing_while_messages_pour_in(join: Join, alice: ChatClient) -> None:
    """No key is lost and nothing typed is left between the messages."""
    bob = join("bob", rows=200)
    for number in range(60):
        bob.send(b"x")
        alice.send(f"message {number}")
    bob.expect_screen("message 59")
    bob.expect_last_row(f"[bob] > {'x' * 60}")
    rows = bob.screen().splitlines()
    assert len(rows) == 62
    assert all(re.fullmatch(rf"📩 {CLOCK} alice: message \d+", line) for line in rows[1:-1])


def test_korean_and_emoji_are_typed_and_shown(join: Join) -> None:
    bob = join("영희")
    bob.send("안녕하세요 😀".encode())
    bob.expect_last_row("[영희] > 안녕하세요 😀")
    bob.send(b"\x7f\x7f!\r")
    bob.expect_screen("You: 안녕하세요!")
    assert row(bob, rf"✓ {CLOCK} You: 안녕하세요!")


def test_line_before_comes_again_with_arrow_up(join: Join) -> None:
    bob = join("bob")
    bob.send_line("again")
    bob.expect_screen("You: again")
    bob.send(b"\x1b[A")
    bob.expect_last_row("[bob] > again")


def test_long_line_is_indented_where_it_breaks(join: Join, alice: ChatClient) -> None:
    """Nobody's text can begin a row and look like a line of one's own."""
    bob = join("bob", columns=40)
    head = len("📩 [20:15:30] alice: ") + 1
    alice.send("x" * (40 - head) + "✓ [20:15:30] You: I agree")
    bob.expect_screen("\n  ✓ [20:15:30] You: I agree\n")


def test_narrower_terminal_is_used(join: Join, alice: ChatClient) -> None:
    """Lines break where the terminal ends now."""
    bob = join("bob")
    bob.resize(30, 30)
    alice.send("a" * 60)
    bob.expect_screen("alice: aaaaaaaaa\n  aaaaaaaa")


def test_escape_sequences_of_others_are_shown(join: Join, alice: ChatClient) -> None:
    bob = join("bob")
    alice.send("\x1b[2J\x1b]0;owned\x07\r✓ You: yes\u202e\nno")
    bob.expect_screen("alice: ␛[2J␛]0;owned␇␍✓ You: yes\\u202e⏎no")
    assert bob.screen().startswith("Connected")


def test_name_of_another_can_not_forge(join: Join, address: str) -> None:
    """Whatever the name, a line of another begins as such."""
    bob = join("bob")
    with ChatClient("You", [address]) as forger:
        forger.connect()
        forger.send("I agree")
    bob.expect_screen("You: I agree")
    assert row(bob, rf"📩 {CLOCK} You: I agree")


def test_help_lists_commands(join: Join) -> None:
    bob = join("bob")
    bob.send_line("/help")
    for command in ("/help ", "/quit ", "//text "):
        bob.expect_screen(f"\n{command}")


def test_unknown_command_is_not_sent(join: Join, alice: ChatClient) -> None:
    bob = join("bob")
    bob.send_line("/qiut now")
    bob.expect_screen("Unknown command /qiut; /help lists them, //qiut sends it as text")
    bob.send_line("after")
    assert contents(alice, "after") == ["after"]


def test_double_slash_sends_text_with_one(join: Join, alice: ChatClient) -> None:
    bob = join("bob")
    bob.send_line("//quit is a command")
    assert contents(alice, "/quit is a command")


def test_blank_lines_are_not_sent(join: Join, alice: ChatClient) -> None:
    bob = join("bob")
    for line in ("", "   ", "text"):
        bob.send_line(line)
    assert contents(alice, "text") == ["text"]


def test_too_long_line_is_refused_and_kept(join: Join) -> None:
    """It stays at the prompt, where it can be cut."""
    bob = join("bob", rows=60)
    bob.send(b"x" * (rules.MAX_CONTENT_CHARACTERS + 1))
    bob.send(b"\r")
    bob.expect_screen("Not sent: the message must be at most 4096 characters")
    bob.send(b"\x7f\r")
    bob.expect("You: xxx")
    bob.expect_last_row("[bob] >")


@pytest.mark.parametrize("keys", [b"/quit\r", b"\x04", b"\x03"], ids=["quit", "ctrl-d", "ctrl-c"])
def test_keys_leave(join: Join, keys: bytes) -> None:
    """The exit code is 0 and the terminal is as it was, without the prompt."""
    bob = join("bob")
    assert not bob.echoes
    bob.send(keys)
    assert bob.wait() == 0
    assert bob.echoes
    assert bob.screen() == "Connected to server as user: bob"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave(join: Join, number: signal.Signals) -> None:
    """So they do while a line is half typed."""
    bob = join("bob")
    bob.send(b"half typed")
    bob.expect_last_row("[bob] > half typed")
    bob.signal(number)
    assert bob.wait() == 0
    assert bob.echoes
    assert bob.screen() == "Connected to server as user: bob"


def test_interrupt_while_connecting_is_quiet() -> None:
    """A server that does not answer does not hold the user."""
    with socket.create_server(("localhost", 0)) as silent:
        server = f"localhost:{silent.getsockname()[1]}"
        with Terminal([*JOIN, "bob", "--server", server]) as bob:
            with silent.accept()[0]:  # the client is as far as that, and waits
                bob.send(b"\x03")
                assert bob.wait(timeout=4) == 0
            assert bob.output in ("", "^C")


def test_no_colours_when_not_wanted(join: Join) -> None:
    bob = join("bob", env={"NO_COLOR": "1"})
    bob.send_line("plain")
    bob.expect_screen("You: plain")
    assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", bob.raw)


def test_colours_at_a_terminal(join: Join) -> None:
    bob = join("bob")
    bob.send_line("green")
    bob.expect_screen("You: green")
    assert re.search(rb"\x1b\[[0-9;]*32m", bob.raw)


def test_paste_of_several_lines_is_one_message(join: Join, alice: ChatClient) -> None:
    """As the terminal tells it apart from typing."""
    bob = join("bob")
    bob.send(b"\x1b[200~one\ntwo\x1b[201~\r")
    assert contents(alice, "one\ntwo")
    bob.expect_screen("You: one⏎two")


# When the server goes


def test_server_comes_back(join: Join, address: str, start_server: StartServer) -> None:
    """The loss and the return are said once each; what is typed between is sent then, in order."""
    first, listening = start_server()
    bob = join("bob", f"localhost:{listening.port}")
    first.stop()
    bob.expect_screen("Connection lost: the server is going away; reconnecting ...")
    bob.send_line("typed meanwhile")
    bob.send_line("and more")
    bob.expect_screen("reconnecting, 2 waiting")
    start_server(port=listening.port)
    bob.expect_screen("You: and more")
    bob.expect_last_row("[bob] >")
    assert [re.sub(CLOCK, "[]", line) for line in bob.screen().splitlines()] == [
        "Connected to server as user: bob",
        "Connection lost: the server is going away; reconnecting ...",
        f"Connected again to server localhost:{listening.port}",
        "The topic is a new one: there is nothing before this",
        "✓ [] You: typed meanwhile",
        "✓ [] You: and more",
        "[bob] >",
    ]


def test_next_server_is_tried(address: str, start_server: StartServer) -> None:
    """With several, the chat goes on at another one."""
    first, listening = start_server()
    servers = ["--server", f"localhost:{listening.port}", "--server", address]
    with Terminal([*JOIN, "bob", *servers]) as bob:
        bob.expect_screen("[bob] >")
        first.stop()
        bob.expect_screen(f"Connected again to server {address}")


def test_leaving_tells_what_is_not_confirmed(
    join: Join, address: str, start_server: StartServer
) -> None:
    """A second Ctrl-C does not wait for it."""
    server, listening = start_server()
    bob = join("bob", f"localhost:{listening.port}")
    server.stop()
    bob.expect_screen("Connection lost")
    bob.send_line("never sent")
    bob.expect_screen("reconnecting, 1 waiting")
    bob.send(b"\x03")
    assert eventually(lambda: bob.echoes)  # the prompt is gone, the wait has begun
    bob.send(b"\x03")
    assert bob.wait(timeout=4) == 1
    assert "1 line was not confirmed and may be lost" in bob.screen()


def test_lines_that_wait_are_bounded(join: Join, address: str, start_server: StartServer) -> None:
    """What is too much stays at the prompt."""
    server, listening = start_server()
    bob = join("bob", f"localhost:{listening.port}", rows=5)
    server.stop()
    bob.expect("Connection lost")
    for number in range(MAX_UNCONFIRMED):
        bob.send_line(str(number))
    bob.expect_screen(f"reconnecting, {MAX_UNCONFIRMED} waiting", timeout=60)
    bob.send_line("too much")
    bob.expect_screen(f"Not sent: {MAX_UNCONFIRMED} lines wait already; try again later")
    bob.expect_screen("[bob] > too much")


def test_leaving_waits_for_what_is_on_its_way(join: Join, alice: ChatClient) -> None:
    """A line that is typed right before the end is sent and shown."""
    bob = join("bob")
    bob.send(b"last words\r\x04")
    assert bob.wait() == 0
    assert row(bob, rf"✓ {CLOCK} You: last words")
    assert contents(alice, "last words")


def test_no_server_is_one_line() -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
    result = pipe(b"", "bob", "--server", f"localhost:{port}")
    assert result.returncode == 1
    assert result.stdout == b""
    message = f"Failed to connect to server: connection refused (localhost:{port})\n"
    assert result.stderr.decode() == message


def test_bad_name_is_refused_before_connecting() -> None:
    result = pipe(b"", "b\x1bob", "--server", "localhost:1")
    assert result.returncode == 2
    assert result.stderr == b"NAME: must not have control or invisible characters (U+001B)\n"


# In a pipe


def test_pipe_sends_lines_in_order_and_ends(address: str) -> None:
    """It ends by itself once the last line has come back; empty lines are not sent."""
    lines = [f"줄 {number}" for number in range(200)]
    result = pipe("\n\n".join(lines).encode(), "bob", "--server", address)
    assert (result.returncode, result.stderr) == (0, b"")
    status, *shown = result.stdout.decode().splitlines()
    assert status == "Connected to server as user: bob"
    assert [re.sub(CLOCK, "[]", line) for line in shown] == [f"✓ [] You: {x}" for x in lines]


def test_pipe_with_more_lines_than_may_wait(address: str, alice: ChatClient) -> None:
    """What is read waits for room; nothing is lost."""
    lines = [str(number) for number in range(MAX_UNCONFIRMED + 200)]
    result = pipe("\n".join(lines).encode(), "bob", "--server", address)
    assert result.returncode == 0
    assert contents(alice, lines[-1]) == lines


def test_pipe_sends_slashes_as_they_are(address: str, alice: ChatClient) -> None:
    assert pipe(b"/quit\n//x\n/end\n", "bob", "--server", address).returncode == 0
    assert contents(alice, "/end") == ["/quit", "//x", "/end"]


def test_pipe_names_lines_that_it_can_not_send(address: str, alice: ChatClient) -> None:
    """The others are sent."""
    lines = [b"first", b"x" * 100_000, b"bad \xff", b"", "한".encode() * 4096, b"last"]
    result = pipe(b"\r\n".join(lines), "bob", "--server", address)
    assert result.returncode == 1
    assert result.stderr.decode().splitlines() == [
        "line 2: must be at most 4096 characters; not sent",
        "line 3: must be valid Unicode text; not sent",
    ]
    assert contents(alice, "last") == ["first", "한" * 4096, "last"]


def test_pipe_ends_quietly_when_its_reader_does(address: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            [*JOIN, "bob", "--server", address],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_pipe(address: str, number: signal.Signals) -> None:
    """Also while its input is open."""
    with subprocess.Popen(
        [*JOIN, "bob", "--server", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as bob:
        assert bob.stdout is not None
        assert bob.stderr is not None
        assert bob.stdout.readline() == b"Connected to server as user: bob\n"
        bob.send_signal(number)
        assert bob.wait(20) == 0
        assert bob.stderr.read() == b""


def test_output_that_is_no_terminal_is_a_pipe(address: str, alice: ChatClient) -> None:
    """Typed lines are text then, without a prompt."""
    command = f"{' '.join(JOIN)} bob --server {address} | cat"
    with Terminal(["sh", "-c", command]) as bob:
        bob.expect("Connected to server as user: bob")
        bob.send(b"/help\n")
        bob.expect("You: /help")
        bob.send(b"\x04")
        assert bob.wait() == 0
        assert "[bob]" not in bob.output
        assert b"\x1b" not in bob.raw


def test_terminal_that_is_not_utf8_gets_names(address: str) -> None:
    result = pipe("안녕\n".encode(), "bob", "--server", address, env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert rb"You: \uc548\ub155" in result.stdout


# Rooms


def test_a_room_is_joined_and_sent_to(address: str, alice: ChatClient) -> None:
    """With --room, join and send talk there and nowhere else."""
    with ChatClient("carol", [address], ["kitchen"]) as carol:
        carol.connect()
        result = pipe(b"from join\n", "bob", "--room", "kitchen", "--server", address)
        assert (result.returncode, b"You: from join" in result.stdout) == (0, True)
        send = [
            sys.executable,
            "-m",
            "chatsvc.cli",
            "send",
            "bob",
            "from",
            "send",
            "--room",
            "kitchen",
            "--server",
            address,
        ]
        subprocess.run(send, check=True, timeout=60)
        heard = [carol.receive(20) for _ in range(2)]
    assert [each.content for each in heard if isinstance(each, Received)] == [
        "from join",
        "from send",
    ]
    assert alice.receive(0) is None


def test_a_bad_room_is_a_usage_error(address: str) -> None:
    result = pipe(b"", "bob", "--room", "kit\nchen", "--server", address)
    assert result.returncode == 2
    assert result.stderr.startswith(b"--room: must not have control")


# As JSON


def test_json_has_one_object_for_each_message(address: str) -> None:
    """What is no message is on stderr."""
    started = datetime.now(UTC)
    result = pipe("하나\ntwo\x1b\u202e\x9b\n".encode(), "bob", "--json", "--server", address)
    assert result.returncode == 0
    assert result.stderr == b"Connected to server as user: bob\n"
    first, second = map(json.loads, result.stdout.decode().splitlines())
    assert list(first) == [
        "user",
        "content",
        "at",
        "message_id",
        "own",
        "room",
        "missed",
        "earlier",
    ]
    assert (first["user"], first["content"], first["own"]) == ("bob", "하나", True)
    assert second["content"] == "two\x1b\u202e\x9b"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["at"])
    assert abs((datetime.fromisoformat(first["at"]) - started).total_seconds()) < 60
    assert "\\u001b\\u202e\\u009b" in result.stdout.decode()


def test_json_is_written_at_once(address: str, alice: ChatClient) -> None:
    """A program that reads it need not wait for the next message."""
    with subprocess.Popen(
        [*JOIN, "bob", "--json", "--server", address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as bob:
        assert bob.stdin is not None
        assert bob.stdout is not None
        assert bob.stderr is not None
        bob.stderr.readline()
        message_id = alice.send("hello")
        message = json.loads(bob.stdout.readline())
        assert (message["user"], message["content"]) == ("alice", "hello")
        assert (message["message_id"], message["own"]) == (message_id, False)
        bob.stdin.close()
        assert bob.wait(20) == 0


def test_json_at_a_terminal_has_no_prompt(address: str) -> None:
    with Terminal([*JOIN, "bob", "--json", "--server", address]) as bob:
        bob.expect("Connected to server as user: bob")
        bob.send(b"typed\n\x04")
        assert bob.wait() == 0
        assert '"content": "typed"' in bob.output
        assert "[bob]" not in bob.output


# The user's lines, when streams are lost


def _lines() -> conversation._Lines:
    lines = conversation._Lines("bob")
    lines.add("1", "text")
    return lines


def test_line_on_its_way_back_through_a_lost_stream_counts_as_back() -> None:
    """Kafka has it, and no other stream will bring it."""
    lines = _lines()
    assert lines.note_stored("1", AT) == []
    assert lines.note_loss() == [Received("bob", "text", AT, "1", own=True)]
    assert len(lines) == 0
    assert not lines.note_back("1")  # it came all the same: not shown twice


def test_line_that_kafka_has_only_after_the_loss_counts_as_back() -> None:
    lines = _lines()
    assert lines.note_loss() == []
    assert lines.note_stored("1", AT) == [Received("bob", "text", AT, "1", own=True)]


def test_line_is_back_before_its_sender_knows_that_kafka_has_it() -> None:
    """Nothing is left of it."""
    lines = _lines()
    assert lines.note_back("1")
    assert lines.note_stored("1", AT) == []
    assert lines.note_loss() == []
    assert len(lines) == 0


def test_line_that_is_said_after_a_loss_waits_for_its_way_back() -> None:
    lines = conversation._Lines("bob")
    lines.note_loss()
    lines.add("1", "text")
    assert lines.note_stored("1", AT) == []
    assert len(lines) == 1


# How events read


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Connected("s:1", "grpc-server-1", False), "Connected to server as user: bob"),
        (Connected("s:1", "grpc-server-1", True), "Connected again to server s:1"),
        (Lost("s:1", "server is full; go"), "Connection lost: server is full; reconnecting ..."),
        (conversation.Refused("x\n", "too large"), "Not sent: too large: x⏎"),
    ],
)
def test_events_read(event: conversation.Shown, expected: str) -> None:
    """In one line, and without what the server advises other clients to do."""
    assert "".join(text for _, text in line_of(event, "bob")) == expected


def test_time_that_no_clock_shows() -> None:
    """A record may have any time, also one that is none in the user's time zone."""

    class Nowhere(datetime):
        def astimezone(self, tz: tzinfo | None = None) -> "Nowhere":
            raise OverflowError

    event = Received("alice", "x", Nowhere(9999, 12, 31, tzinfo=UTC), "", False)
    assert "".join(text for _, text in line_of(event, "bob")) == "📩 [--:--:--] alice: x"


def test_wide_characters_are_not_cut_in_two() -> None:
    """A row ends before a character that does not fit."""
    ((_, text),) = wrapped([("", "가나다라마")], columns=7)
    assert text == "가나다\n  라마"


def test_emoji_of_several_is_not_broken() -> None:
    family = "\u200d".join("👨👩👧")
    ((_, text),) = wrapped([("", f"ab{family}")], columns=4)
    assert text == f"ab{family}"


def test_conversation_gives_signals_back() -> None:
    """Python's own handler is not among them: it would print a traceback at the very end."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with Conversation(ChatClient("bob", ["localhost:1"])):
            assert signal.getsignal(signal.SIGTERM) is not handlers[1]
        assert signal.getsignal(signal.SIGTERM) is handlers[1]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, handlers[0])
