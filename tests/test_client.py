"""ChatClient against servers in this process, over an in-process Kafka."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from chatsvc import metadata
from chatsvc.client import (
    BUFFERED_EVENTS,
    ChatClient,
    Connected,
    Event,
    Gone,
    Lost,
    Received,
    send_once,
)
from chatsvc.config import Config
from chatsvc.embedded import EmbeddedBroker
from chatsvc.errors import ClientClosed, CloseReason, ConnectionFailed, SendFailed
from chatsvc.link import Backoff
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.server import Listening, Server

from conftest import StartServer
from waiting import eventually

WAIT = 20
OpenClient = Callable[..., ChatClient]
Serve = Callable[..., tuple[Server, str]]
InThread = Callable[..., "Future[Any]"]


def address(listening: Listening) -> str:
    return f"127.0.0.1:{listening.port}"


def nobody() -> str:
    """An address that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


class Kafka:
    """One broker for several servers."""

    def __init__(self, start_server: StartServer) -> None:
        self._start_server = start_server
        self._broker = EmbeddedBroker()
        self.brokers = self._broker.start()
        for topic in (Config.topic, Config.connections_topic):
            self._broker.make_topic(topic)
        self._servers: list[Server] = []

    def serve(self, **settings: object) -> tuple[Server, str]:
        """A server and its address."""
        server, listening = self._start_server(
            **{"brokers": self.brokers, "stop_timeout": 1.5, **settings}
        )
        self._servers.append(server)
        return server, address(listening)

    def go_away(self) -> None:
        self._broker.close()

    def close(self) -> None:
        for server in self._servers:  # while there is a broker
            server.stop()
        self.go_away()


@pytest.fixture
def kafka(start_server: StartServer) -> Iterator[Kafka]:
    kafka = Kafka(start_server)
    yield kafka
    kafka.close()


@pytest.fixture
def serve(start_server: StartServer) -> Serve:
    """Starts servers with a broker of their own each, and tells their addresses."""

    def start(**settings: object) -> tuple[Server, str]:
        server, listening = start_server(**settings)
        return server, address(listening)

    return start


@pytest.fixture
def server(start_server: StartServer) -> str:
    """The address of a server."""
    return address(start_server(server_id="s")[1])


@pytest.fixture
def open_client(request: pytest.FixtureRequest) -> Iterator[OpenClient]:
    """Connects clients, which are closed after the test and before the servers are stopped."""
    for name in ("kafka", "server", "serve"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    with contextlib.ExitStack() as clients:

        def open_one(user: str, *servers: str) -> ChatClient:
            client = clients.enter_context(ChatClient(user, servers))
            client.connect()
            return client

        yield open_one


@pytest.fixture
def in_thread() -> Iterator[InThread]:
    """Runs calls in threads, which have ended by the end of the test."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def received(client: ChatClient) -> Received:
    event = client.receive(WAIT)
    assert isinstance(event, Received), event
    return event


def contents(client: ChatClient, count: int) -> list[str]:
    return [received(client).content for _ in range(count)]


# Connecting


def test_connect_tells_where(server: str) -> None:
    """A client knows the address and the id of its server."""
    with ChatClient("bob", [server]) as bob:
        assert bob.connect() == Connected(server, "s", again=False)


def test_nobody_there_is_connection_refused() -> None:
    """The seed's words for a server that is not up."""
    server = nobody()
    with ChatClient("bob", [server]) as bob:
        with pytest.raises(ConnectionFailed) as caught:
            bob.connect()
        assert str(caught.value) == f"Failed to connect to server: connection refused ({server})"


def test_the_second_server_is_tried(server: str) -> None:
    """A client with several servers takes the first that answers."""
    with ChatClient("bob", [nobody(), server]) as bob:
        assert bob.connect().server == server


def test_a_name_that_the_server_refuses_is_said(server: str) -> None:
    """What the server has against a user reaches whoever connects."""
    with ChatClient("\u202ebob", [server]) as bob:
        with pytest.raises(ConnectionFailed) as caught:
            bob.connect()
        assert caught.value.cause.startswith(
            "user.id: must not have control or invisible characters"
        )


def test_a_full_server_is_passed_by(serve: Serve, open_client: OpenClient) -> None:
    """When the first server has no place the client connects to the second."""
    _, full = serve(max_connections=1)
    _, other = serve()
    open_client("ann", full)
    with ChatClient("bob", [full, other]) as bob:
        assert bob.connect().server == other


def test_there_must_be_a_server() -> None:
    """A client without servers is a mistake of the program."""
    with pytest.raises(ValueError, match="at least one server"):
        ChatClient("bob", [])


# Receiving


def test_a_message_comes_with_all_there_is_to_know(server: str, open_client: OpenClient) -> None:
    """Sender, content, id, Kafka's time, and that it is not one's own."""
    bob = open_client("bob", server)
    sent = open_client("ann", server).send("안녕 👍")
    message = received(bob)
    assert message[:2] == ("ann", "안녕 👍")
    assert message.message_id == sent
    assert not message.own
    assert abs(datetime.now(UTC) - message.at) < timedelta(minutes=1)


def test_ones_own_messages_are_marked(server: str, open_client: OpenClient) -> None:
    """What the same user has sent, from wherever, is its own."""
    bob, elsewhere = open_client("bob", server), open_client("bob", server)
    elsewhere.send("hi")
    assert received(bob).own


def test_a_second_copy_is_not_given_out(server: str, open_client: OpenClient) -> None:
    """A message that was sent twice with one id is received once."""
    bob, ann = open_client("bob", server), open_client("ann", server)
    ann.send("hi", message_id="m-1")
    ann.send("hi", message_id="m-1")
    ann.send("bye")
    assert contents(bob, 2) == ["hi", "bye"]


def test_two_users_may_use_one_id(server: str, open_client: OpenClient) -> None:
    """Ids are each sender's own: the same one from another is another message."""
    bob, ann = open_client("bob", server), open_client("ann", server)
    ann.send("from ann", message_id="m-1")
    bob.send("from bob", message_id="m-1")
    assert contents(bob, 2) == ["from ann", "from bob"]


def test_receive_waits_no_longer_than_it_may(server: str, open_client: OpenClient) -> None:
    """Nothing within the timeout is None, and what comes later is not lost."""
    bob = open_client("bob", server)
    assert bob.receive(0.05) is None
    bob.send("hi")
    assert received(bob).content == "hi"


def test_receive_without_a_timeout_waits(
    server: str, open_client: OpenClient, in_thread: InThread
) -> None:
    """It returns when there is an event."""
    bob = open_client("bob", server)
    waiting = in_thread(bob.receive)
    bob.send("hi")
    assert waiting.result(WAIT).content == "hi"


def test_a_program_that_is_slow_to_receive_misses_nothing(
    server: str, open_client: OpenClient
) -> None:
    """More than the client keeps for it stays with the server meanwhile, in order."""
    bob, ann = open_client("bob", server), open_client("ann", server)
    count = BUFFERED_EVENTS + 500
    with ThreadPoolExecutor(8) as pool:
        sent = set(pool.map(ann.send, map(str, range(count))))
    assert {received(bob).message_id for _ in range(count)} == sent


def test_a_client_keeps_no_more_events_than_it_may(server: str, open_client: OpenClient) -> None:
    """Behind a program that does not receive, the stream is not read on."""
    bob, ann = open_client("bob", server), open_client("ann", server)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ann.send, map(str, range(BUFFERED_EVENTS + 100))))
    assert eventually(lambda: len(bob._events) == BUFFERED_EVENTS)
    ann.send("one more")
    assert not eventually(lambda: len(bob._events) > BUFFERED_EVENTS, 0.2)


# Going on at another server


def until_connected(client: ChatClient) -> list[Event]:
    """All events until the client is connected again."""
    events: list[Event] = []
    while not events or not isinstance(events[-1], Connected):
        event = client.receive(WAIT)
        assert event is not None
        events.append(event)
    return events


def test_a_client_goes_on_at_the_other_server(serve: Serve, open_client: OpenClient) -> None:
    """After its server has stopped it says Lost once and Connected once, and receives again."""
    first, first_address = serve(server_id="first")
    _, second_address = serve(server_id="second")
    bob = open_client("bob", first_address, second_address)
    first.stop()
    assert until_connected(bob) == [
        Lost(first_address, "the server is going away"),
        Connected(second_address, "second", again=True),
    ]
    assert bob.receive(WAIT) == Gone(None)  # it has a broker of its own
    open_client("ann", second_address).send("hi")
    assert received(bob).content == "hi"


def test_a_client_waits_for_its_server_to_return(serve: Serve, open_client: OpenClient) -> None:
    """A client with one server looks for it until it is there again, and says Lost once."""
    server, where = serve()
    bob = open_client("bob", where)
    server.stop()
    assert isinstance(bob.receive(WAIT), Lost)
    assert bob.receive(0.5) is None
    serve(port=int(where.rpartition(":")[2]), server_id="again")
    assert bob.receive(WAIT) == Connected(where, "again", again=True)


def test_a_slow_client_hears_why_it_was_cut_off(serve: Serve, open_client: OpenClient) -> None:
    """The cause of a loss is the server's own sentence."""
    server, where = serve()
    bob = open_client("bob", where)
    server._hub.close(CloseReason.SLOW)  # as an overflow would, in a moment
    event = bob.receive(WAIT)
    assert isinstance(event, Lost)
    assert event.cause.startswith("client is too slow")


class Refusing(chat_pb2_grpc.ChatServicer):
    """A server that lets nobody in, for good."""

    def Subscribe(  # noqa: N802
        self, requests: Iterator[chat_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Any:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "bob is banned")


class Dropping(chat_pb2_grpc.ChatServicer):
    """A server that takes anybody and loses him when it is told to."""

    def __init__(self, *keys: tuple[str, str]) -> None:
        self._keys = keys
        self.drop = threading.Event()

    def Subscribe(  # noqa: N802
        self, requests: Iterator[chat_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[chat_pb2.Delivery]:
        context.add_callback(self.drop.set)
        context.send_initial_metadata(self._keys)
        self.drop.wait(WAIT)
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield chat_pb2.Delivery()


def test_a_refusal_for_good_ends_the_search(
    host: Callable[[chat_pb2_grpc.ChatServicer], str],
) -> None:
    """A client that is refused where it wants to go on says so to receivers and senders."""
    dropping = Dropping((metadata.SERVER_ID, "dropping"))
    with ChatClient("bob", [host(dropping), host(Refusing())]) as bob:
        bob.connect()
        dropping.drop.set()
        assert isinstance(bob.receive(WAIT), Lost)
        for call in (bob.receive, lambda: bob.send("hi")):
            with pytest.raises(ConnectionFailed) as caught:
                call()
            assert caught.value.cause == "bob is banned"


def test_a_foreign_server_is_not_waited_for(
    host: Callable[[chat_pb2_grpc.ChatServicer], str],
) -> None:
    """A server that opens the stream but is none of ours is no answer."""
    with ChatClient("bob", [host(Dropping(("another", "service")))]) as bob:
        with pytest.raises(ConnectionFailed) as caught:
            bob.connect()
        assert caught.value.cause == "no answer in time"


# Events to a function


def test_events_go_to_a_function(serve: Serve) -> None:
    """All that receive would give reaches it, in order, the loss and the return too."""
    server, where = serve()
    events: list[Event] = []
    with ChatClient("bob", [where], on_events=events.extend) as bob:
        bob.connect()
        sent = [bob.send(text) for text in ("one", "two")]
        assert eventually(lambda: len(events) == 2)
        server.stop()
        assert eventually(lambda: len(events) == 3)
        serve(port=int(where.rpartition(":")[2]), server_id="again")
        assert eventually(lambda: len(events) == 5)
    assert [event.message_id for event in events[:2] if isinstance(event, Received)] == sent
    assert isinstance(events[2], Lost)
    assert events[3:] == [Connected(where, "again", again=True), Gone(None)]


def test_receive_is_not_for_a_client_with_a_function(server: str) -> None:
    """Nothing would ever come, so it is a mistake of the program."""
    with ChatClient("bob", [server], on_events=lambda events: None) as bob:
        bob.connect()
        with pytest.raises(RuntimeError, match="on_events"):
            bob.receive(0)


def test_the_function_may_answer(server: str, open_client: OpenClient) -> None:
    """A program can post in it."""

    def answer(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Received) and not event.own:
                bot.post(f"re: {event.content}")

    ann = open_client("ann", server)
    with ChatClient("bot", [server], on_events=answer) as bot:
        bot.connect()
        ann.send("hi")
        assert contents(ann, 2) == ["hi", "re: hi"]


def test_a_function_that_raises_ends_the_client(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who sends hears why, instead of a client that lives on without events."""

    def fail(events: Sequence[Event]) -> None:
        raise ValueError("full")

    with ChatClient("bob", [server], on_events=fail) as bob:
        bob.connect()
        bob.send("hi")
        assert eventually(lambda: "the client's thread failed" in caplog.text)
        with pytest.raises(ConnectionFailed, match="internal error: full"):
            bob.send("more", timeout=WAIT)


# Sending


@pytest.mark.parametrize("content", ["x" * 70_000, "\udc80"])
def test_what_cannot_be_sent_is_not_tried(
    server: str, open_client: OpenClient, content: str
) -> None:
    """Content that no server takes is refused here, whatever the timeout."""
    with pytest.raises(SendFailed) as caught:
        open_client("bob", server).send(content, timeout=None)
    assert "content: must be" in str(caught.value)


def test_a_message_that_the_server_refuses_is_not_tried_again(
    server: str, open_client: OpenClient
) -> None:
    """What cannot get better fails at once, with the server's reason."""
    bob = open_client("bob", server)
    with pytest.raises(SendFailed) as caught:
        bob.send("", timeout=None)
    assert str(caught.value) == "Failed to send message: content: must not be empty"
    assert not caught.value.maybe_written


def test_a_message_that_is_not_confirmed_in_time_fails(
    kafka: Kafka, open_client: OpenClient
) -> None:
    """Without Kafka a send ends at its timeout and says why."""
    _, where = kafka.serve()
    bob = open_client("bob", where)
    kafka.go_away()
    with pytest.raises(SendFailed) as caught:
        bob.send("hi", timeout=1)
    assert caught.value.maybe_written


def test_a_send_survives_a_restart(
    kafka: Kafka, open_client: OpenClient, in_thread: InThread
) -> None:
    """A message that is sent while the server is down is delivered when it is up, once."""
    _, elsewhere = kafka.serve()
    server, where = kafka.serve()
    bob, ann = open_client("bob", elsewhere), open_client("ann", where)
    server.stop()
    sending = in_thread(ann.send, "hi")
    assert isinstance(ann.receive(WAIT), Lost)
    kafka.serve(port=int(where.rpartition(":")[2]))
    assert sending.result(WAIT)
    ann.send("bye")
    assert contents(bob, 2) == ["hi", "bye"]


def test_what_waits_in_a_server_that_stops_is_sent_again(
    kafka: Kafka, open_client: OpenClient, in_thread: InThread
) -> None:
    """A message that one server could not get confirmed goes to the next with the same id."""
    away = EmbeddedBroker()
    brokers = away.start()
    for topic in (Config.topic, Config.connections_topic):
        away.make_topic(topic)
    stuck, where = kafka.serve(brokers=brokers)
    away.close()
    _, other = kafka.serve()
    bob, ann = open_client("bob", other), open_client("ann", where, other)
    sending = in_thread(ann.send, "hi", message_id="m-1")
    with pytest.raises(SendFailed):
        ann.send("probe", timeout=0.5)  # what came before it is with the server now
    stuck.stop()
    assert sending.result(WAIT) == "m-1"
    assert received(bob).message_id == "m-1"


def test_a_message_keeps_its_id(server: str, open_client: OpenClient) -> None:
    """The id that send is given, or makes, is the one that arrives."""
    bob = open_client("bob", server)
    assert bob.send("hi", message_id="m-1") == "m-1"
    made = bob.send("hi")
    assert [received(bob).message_id for _ in range(2)] == ["m-1", made]


# Closing


def test_close_ends_a_receive(server: str, open_client: OpenClient, in_thread: InThread) -> None:
    """A thread that waits for an event is told that the client is closed."""
    bob = open_client("bob", server)
    waiting = in_thread(bob.receive)
    bob.close()
    assert isinstance(waiting.exception(WAIT), ClientClosed)


def test_close_ends_a_send(kafka: Kafka, open_client: OpenClient, in_thread: InThread) -> None:
    """A thread that waits for a confirmation is told that the client is closed."""
    _, where = kafka.serve()
    bob = open_client("bob", where)
    kafka.go_away()
    waiting = in_thread(bob.send, "hi", timeout=None)
    with pytest.raises(SendFailed):
        bob.send("probe", timeout=0.5)
    assert not waiting.done()
    bob.close()
    assert isinstance(waiting.exception(WAIT), ClientClosed)


def test_close_ends_the_search_for_a_server(
    serve: Serve, open_client: OpenClient, in_thread: InThread
) -> None:
    """A client that has lost its server can be closed, and senders that wait hear it."""
    server, where = serve()
    bob = open_client("bob", where)
    server.stop()
    assert isinstance(bob.receive(WAIT), Lost)
    waiting = in_thread(bob.send, "hi", timeout=None)
    bob.close()
    assert isinstance(waiting.exception(WAIT), ClientClosed)


def test_a_closed_client_does_nothing_more(server: str, open_client: OpenClient) -> None:
    """After close, and a second one, receive and send raise, whatever had arrived."""
    bob = open_client("bob", server)
    bob.send("hi")
    bob.close()
    bob.close()
    with pytest.raises(ClientClosed):
        bob.receive()
    with pytest.raises(ClientClosed):
        bob.send("hi")


def test_a_client_that_is_closed_leaves_the_server(serve: Serve, open_client: OpenClient) -> None:
    """The server forgets its user."""
    server, where = serve(server_id="s")
    bob = open_client("bob", where)
    assert eventually(lambda: server.presence.where("bob") == {"s"})
    bob.close()
    assert eventually(lambda: not server.presence.where("bob"))


def test_a_client_that_never_connected_can_be_closed() -> None:
    """Close before connect does nothing, and connect after it raises."""
    bob = ChatClient("bob", [nobody()])
    bob.close()
    with pytest.raises(ClientClosed):
        bob.connect()


# One message without a stream


def test_one_message_needs_no_stream(server: str, open_client: OpenClient) -> None:
    """send_once delivers and returns the id."""
    bob = open_client("bob", server)
    sent = send_once("ann", "hi", [server])
    message = received(bob)
    assert (message.user, message.content, message.message_id) == ("ann", "hi", sent)


def test_one_message_takes_the_server_that_is_there(server: str, open_client: OpenClient) -> None:
    """A server that is not up is passed by."""
    bob = open_client("bob", server)
    assert send_once("ann", "hi", [nobody(), server], message_id="m-1") == "m-1"
    assert received(bob).content == "hi"


def test_one_message_fails_when_nobody_is_there() -> None:
    """As soon as no server is up it says so, not after its timeout."""
    with pytest.raises(ConnectionFailed, match="connection refused"):
        send_once("ann", "hi", [nobody(), nobody()], timeout=1_000)


def test_one_bad_message_fails_at_once(server: str) -> None:
    """The server's reason is told, and no other server is tried."""
    with pytest.raises(SendFailed, match="content: must not be empty"):
        send_once("ann", "", [server, nobody()], timeout=1_000)


def test_one_message_without_kafka_fails_in_time(kafka: Kafka) -> None:
    """A server that is up but cannot get it confirmed is tried again, not taken for one that is
    not there."""
    _, where = kafka.serve(publish_timeout=0.3)
    kafka.go_away()
    with pytest.raises(SendFailed, match="not confirmed in time"):
        send_once("ann", "hi", [where], timeout=3.5)


# Pauses


def test_pauses_grow_to_a_limit() -> None:
    """Each pause is somewhere below a ceiling that doubles up to the most."""
    backoff = Backoff(first=1.0, most=4.0)
    for ceiling in (1.0, 2.0, 4.0, 4.0, 4.0):
        assert 0 <= backoff.next() <= ceiling


def test_pauses_differ() -> None:
    """Clients that were lost together do not come back together."""
    assert len({Backoff().next() for _ in range(20)}) == 20


def test_a_server_may_ask_for_a_longer_pause() -> None:
    """What it asks for comes on top."""
    assert 7.0 <= Backoff(first=1.0).next(at_least=7.0) <= 8.0


def test_a_stable_stream_resets_the_pauses() -> None:
    """After a reset the first pause is short again."""
    backoff = Backoff(first=0.001, most=1_000.0)
    for _ in range(20):
        backoff.next()
    backoff.reset()
    assert backoff.next() <= 0.001
