"""Publisher, as ChatClient.post, against servers in this process."""

import threading
from collections.abc import Callable

import pytest
from test_client import Kafka, OpenClient, Serve, kafka, open_client, serve, server

from chatsvc.client import ChatClient, Received
from chatsvc.config import Config
from chatsvc.errors import ChatError, ClientClosed, SendFailed
from chatsvc.link import Link
from chatsvc.pb import chat_pb2
from chatsvc.publisher import UNDER_WAY, Publisher

from waiting import eventually

__all__ = ["kafka", "open_client", "serve", "server"]

WAIT = 20


class Outcomes:
    """What was told of each message, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ChatError | None]] = []

    def __call__(self, message_id: str, error: ChatError | None) -> None:
        self.told.append((message_id, error))

    @property
    def confirmed(self) -> list[str]:
        return [message_id for message_id, error in self.told if error is None]


def contents(client: ChatClient, count: int) -> list[str]:
    """The next messages that a client gets."""
    found: list[str] = []
    while len(found) < count:
        events = client.receive_all(WAIT)
        assert events, f"only {len(found)} came"
        found += [event.content for event in events if isinstance(event, Received)]
    return found


def test_posts_are_confirmed_and_arrive_in_order(server: str, open_client: OpenClient) -> None:
    """More messages than may be under way at once come once each, in the order posted."""
    ann, bob = open_client("ann", server), open_client("bob", server)
    wanted = [str(number) for number in range(2 * UNDER_WAY)]
    outcomes = Outcomes()
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.extend(contents(bob, len(wanted))))
    drain = threading.Thread(target=lambda: contents(ann, len(wanted)))
    reader.start()
    drain.start()
    ids = [ann.post(content, on_outcome=outcomes) for content in wanted]
    reader.join()
    drain.join()
    assert received == wanted
    assert eventually(lambda: outcomes.confirmed == ids)


def test_a_post_reaches_its_room(server: str) -> None:
    """Who subscribes to a room gets what is posted and sent there, with its name."""
    with ChatClient("bob", [server], rooms=["kitchen"]) as bob, ChatClient("ann", [server]) as ann:
        bob.connect()
        ann.connect()
        ann.post("not here")
        ann.post("posted", room="kitchen")
        first = bob.receive(WAIT)
        ann.send("sent", room="kitchen")
        second = bob.receive(WAIT)
    heard = [(each.content, each.room) for each in (first, second) if isinstance(each, Received)]
    assert heard == [("posted", "kitchen"), ("sent", "kitchen")]


@pytest.mark.parametrize(
    ("content", "room", "cause"),
    [("", "", "content"), ("x" * 5_000, "", "content"), ("x", "\n", "room")],
)
def test_a_bad_message_is_refused_at_once(
    server: str, open_client: OpenClient, content: str, room: str, cause: str
) -> None:
    """What breaks a rule is not even sent."""
    with pytest.raises(SendFailed, match=cause):
        open_client("ann", server).post(content, room=room)


def test_what_the_server_refuses_is_told_and_the_rest_goes_on(server: str) -> None:
    """One bad message among good ones gets its own error."""
    link = Link(server)
    publisher = Publisher("ann", lambda: link)
    outcomes = Outcomes()
    for name, content in (("1", "good"), ("2", ""), ("3", "good")):
        message = chat_pb2.Message(id="ann", content=content, message_id=name)
        publisher.post(message, outcomes)
    assert eventually(lambda: len(outcomes.told) == 3)
    publisher.close()
    link.close()
    assert outcomes.confirmed == ["1", "3"]
    assert "content: must not be empty" in str(outcomes.told[1][1])


def test_an_idle_stream_leaves_its_place_to_others(serve: Serve, open_client: OpenClient) -> None:
    """More clients than the server has streams for send one message each, without leaving."""
    _, address = serve(max_connections=50)
    limit = Config(max_connections=50).max_publish_streams
    clients = [open_client(f"u{number}", address) for number in range(limit + 2)]
    outcomes = Outcomes()
    for client in clients:
        client.post("hi", on_outcome=outcomes)
    assert eventually(lambda: len(outcomes.confirmed) == len(clients), 2 * WAIT)


def test_posts_outlive_their_server(kafka: Kafka, open_client: OpenClient) -> None:
    """What a stopped server has not confirmed is confirmed by the next one; who stays connected
    elsewhere gets everything, and for the first time in the order posted."""
    first, at_first = kafka.serve()
    _, at_second = kafka.serve()
    ann, bob = open_client("ann", at_first, at_second), open_client("bob", at_second)
    outcomes = Outcomes()
    wanted = [str(number) for number in range(1_500)]
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.extend(contents(bob, len(wanted))))
    drain = threading.Thread(target=lambda: drain_all(ann, stopped))
    stopped = threading.Event()
    reader.start()
    drain.start()
    posting = threading.Thread(
        target=lambda: [ann.post(content, on_outcome=outcomes) for content in wanted]
    )
    posting.start()
    assert eventually(lambda: len(outcomes.told) > 100)
    first.stop()
    posting.join()
    reader.join()
    assert eventually(lambda: len(outcomes.confirmed) == len(wanted), 2 * WAIT)
    stopped.set()
    drain.join()
    assert received == wanted


def drain_all(client: ChatClient, stopped: threading.Event) -> None:
    """Takes whatever comes."""
    while not stopped.is_set():
        client.receive_all(0.1)


def test_closing_tells_those_who_wait(serve: Serve, open_client: OpenClient) -> None:
    """Messages that are not confirmed when the client is closed are told so, once each."""
    server, address = serve()
    ann = open_client("ann", address)
    outcomes = Outcomes()
    server.stop()
    ids = [ann.post(str(number), on_outcome=outcomes) for number in range(10)]
    ann.close()
    assert [message_id for message_id, _ in outcomes.told] == ids
    assert all(isinstance(error, ClientClosed) for _, error in outcomes.told)
    with pytest.raises(ClientClosed):
        ann.post("late")


def test_a_post_waits_while_too_many_are_on_their_way(
    serve: Serve, open_client: OpenClient
) -> None:
    """Without a server, post() blocks beyond UNDER_WAY messages, and ends when it is closed."""
    server, address = serve()
    ann = open_client("ann", address)
    server.stop()
    for number in range(UNDER_WAY):
        ann.post(str(number))
    blocked = Blocked(lambda: ann.post("one more"))
    assert not blocked.ended.wait(0.2)
    ann.close()
    assert blocked.ended.wait(WAIT)
    assert isinstance(blocked.error, ClientClosed)


class Blocked:
    """A call in a thread, and what it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.ended = threading.Event()
        self.error: Exception | None = None
        self._call = call
        threading.Thread(target=self._run).start()

    def _run(self) -> None:
        try:
            self._call()
        except Exception as error:
            self.error = error
        self.ended.set()
