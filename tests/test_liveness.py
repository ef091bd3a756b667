"""Both sides of a subscription notice when the other one is gone, or wants it to be."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatsvc import metadata
from chatsvc.client import ChatClient, Connected, Lost, Received
from chatsvc.link import Link
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.subscription import GOING_AWAY, SILENT, Subscription

from conftest import StartServer
from sites import Site, numbers, read_until
from waiting import eventually

WAIT = 60
BEAT = 0.4

ANN = chat_pb2.SubscribeRequest(user=chat_pb2.User(id="ann"))


class Speech:
    """The requests of a subscriber, who says more when it is told to, and ends at the end."""

    def __init__(self) -> None:
        self._word = threading.Semaphore(0)
        self._over = False

    def say(self) -> None:
        self._word.release()

    def end(self) -> None:
        self._over = True
        self._word.release()

    def __iter__(self) -> Iterator[chat_pb2.SubscribeRequest]:
        yield ANN
        while self._word.acquire() and not self._over:
            yield chat_pb2.SubscribeRequest()


@pytest.fixture
def speech() -> Iterator[Speech]:
    speech = Speech()
    yield speech
    speech.end()


@pytest.fixture
def chat_of() -> Iterator[Callable[[str], Any]]:
    """Stubs of servers."""
    channels: list[grpc.Channel] = []

    def stub(address: str) -> Any:
        channels.append(grpc.insecure_channel(address))
        return chat_pb2_grpc.ChatStub(channels[-1])

    yield stub
    for channel in channels:
        channel.close()


def test_a_quiet_stream_has_heartbeats(start_server: StartServer, chat_of: Any) -> None:
    """Deliveries without a message, each with a cursor; the server tells how often."""
    _, listening = start_server(stream_heartbeat=BEAT)
    stream = chat_of(f"127.0.0.1:{listening.port}").Subscribe(iter([ANN]), timeout=WAIT)
    keys = dict(stream.initial_metadata())
    assert keys[metadata.HEARTBEAT] == str(int(BEAT * 1_000))
    for _ in range(5):
        delivery = next(stream)
        assert delivery.cursor
        assert not delivery.messages
    stream.cancel()


def test_a_heartbeat_has_the_newest_cursor(site: Site) -> None:
    """Also when what has come was for others: whoever resumes there looks at none of it again."""
    _, address = site.server(stream_heartbeat=BEAT)
    stream = site.subscribe(address, rooms=("tea",))
    first = next(stream)
    site.publish(address, iter(numbers(0, 50)))
    _, other = site.server(tail_bytes=1)
    assert eventually(lambda: next(stream).cursor != first.cursor)
    cursor = next(stream).cursor
    site.publish(address, iter(["last"]))
    contents, _, _ = read_until(site.subscribe(other, cursor), "last")
    assert contents == ["last"]


def test_a_client_that_falls_silent_is_parted_with(
    start_server: StartServer, chat_of: Any, speech: Speech
) -> None:
    """After two intervals without a word, though its connection stands."""
    server, listening = start_server(stream_heartbeat=BEAT)
    stream = chat_of(f"127.0.0.1:{listening.port}").Subscribe(iter(speech), timeout=WAIT)
    stream.initial_metadata()
    for _ in range(8):  # more than two intervals, in each of which it says something
        next(stream)
        speech.say()
    assert len(server._hub) == 1
    with pytest.raises(grpc.RpcError):
        list(stream)
    assert stream.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert eventually(lambda: not server._hub)
    registry = server.metrics.registry
    gone = {"reason": "gone"}
    assert registry.get_sample_value("chatsvc_disconnects_total", gone) == 1


def test_a_client_that_ends_its_side_need_not_say_more(
    start_server: StartServer, chat_of: Any
) -> None:
    """As one whose call has a single request: TCP and gRPC's pings are left to find its end."""
    server, listening = start_server(stream_heartbeat=BEAT)
    stream = chat_of(f"127.0.0.1:{listening.port}").Subscribe(iter([ANN]), timeout=WAIT)
    for _ in range(8):
        next(stream)
    assert len(server._hub) == 1
    stream.cancel()


def test_a_chat_client_says_that_it_is_there(start_server: StartServer) -> None:
    """Nothing is lost in many intervals in which nothing happens."""
    _, listening = start_server(stream_heartbeat=0.2)
    with ChatClient("ann", [f"127.0.0.1:{listening.port}"]) as client:
        client.connect()
        assert client.receive(timeout=3) is None


class Listener(chat_pb2_grpc.ChatServicer):
    """A server that notes each word of a client, and says nothing itself."""

    def __init__(self) -> None:
        self.words: queue.SimpleQueue[chat_pb2.SubscribeRequest | None] = queue.SimpleQueue()

    def Subscribe(  # noqa: N802
        self, requests: Iterator[chat_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[chat_pb2.Delivery]:
        with contextlib.suppress(Exception):  # that the client has gone
            for request in requests:
                self.words.put(request)
        self.words.put(None)
        yield from ()


def test_a_heartbeat_is_answered(host: Any) -> None:
    """If the client has said nothing for half of the time: so it seldom wakes the server by itself,
    and does not say more than it has to."""
    seconds = 0.0
    server = Listener()
    link = Link(host(server))
    subscription = Subscription(link, ANN, lambda: seconds)
    assert server.words.get(timeout=WAIT) == ANN
    subscription.begin(60)
    for beat, is_answered in ((10, False), (41, True), (50, False), (80, True)):
        seconds = beat
        subscription.hear(chat_pb2.Delivery())
        subscription.listen()
        if is_answered:
            assert server.words.get(timeout=WAIT) == chat_pb2.SubscribeRequest()
        else:
            with pytest.raises(queue.Empty):
                server.words.get(timeout=0.5)
    subscription.cancel()
    assert server.words.get(timeout=WAIT) is None
    link.close()


class Mute(chat_pb2_grpc.ChatServicer):
    """A server that registers anybody and then says nothing: as one behind a connection that has
    gone without a word."""

    def Subscribe(  # noqa: N802
        self, requests: Iterator[chat_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[chat_pb2.Delivery]:
        over = threading.Event()
        context.add_callback(over.set)
        context.send_initial_metadata(((metadata.SERVER_ID, "mute"), (metadata.HEARTBEAT, "300")))
        over.wait(WAIT)
        yield chat_pb2.Delivery()


def test_a_chat_client_leaves_a_silent_server(start_server: StartServer, host: Any) -> None:
    """It is at another one then, and a message reaches it."""
    _, listening = start_server()
    good = f"127.0.0.1:{listening.port}"
    with ChatClient("ann", [host(Mute()), good]) as client:
        assert client.connect().server_id == "mute"
        lost = client.receive(WAIT)
        assert isinstance(lost, Lost)
        assert lost.cause == SILENT
        assert isinstance(client.receive(WAIT), Connected)
        client.send("here")
        assert isinstance(client.receive(WAIT), Received)


def test_a_client_that_takes_its_time_is_not_parted_with(start_server: StartServer) -> None:
    """Whoever does not call `receive` for long still is there, and finds the server there."""
    _, listening = start_server(stream_heartbeat=0.2, outbox_messages=50)
    address = f"127.0.0.1:{listening.port}"
    with ChatClient("ann", [address]) as client, ChatClient("bob", [address]) as sender:
        client.connect()
        sender.connect()
        for number in range(1_500):  # more than wait for `receive`
            sender.post(str(number))
        assert sender.receive(WAIT) is not None
        threading.Event().wait(2)  # nobody receives for ten intervals
        received: list[str] = []
        while len(received) < 1_500:
            event = client.receive(WAIT)
            assert isinstance(event, Received)
            received.append(event.content)
        assert received == numbers(0, 1_500)


def test_a_server_that_stops_asks_clients_to_go_first(site: Site) -> None:
    """Its health says that it does not serve, its streams live until their clients go, and nothing
    is missed."""
    server, first = site.server()
    _, second = site.server()
    stream = site.subscribe(first)
    next(stream)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    delivery = next(each for each in stream if each.HasField("going_away"))
    assert delivery.going_away.delay_ms < 5_000
    with pytest.raises(grpc.RpcError) as refused:
        next(site.subscribe(first))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    site.publish(second, iter(["meanwhile"]))
    contents, cursor, _ = read_until(stream, "meanwhile")
    assert contents == ["meanwhile"]
    stream.cancel()
    site.publish(second, iter(["later"]))
    contents, _, _ = read_until(site.subscribe(second, cursor), "later")
    assert contents == ["later"]
    stopping.join()


def test_clients_of_a_server_that_stops_miss_nothing(site: Site) -> None:
    """Ten clients, each at its own moment, while somebody sends all the time."""
    server, first = site.server()
    _, second = site.server()
    clients = [ChatClient(f"user-{number}", [first, second]) for number in range(10)]
    for client in clients:
        client.connect()
    with ChatClient("sender", [second]) as sender:
        sender.connect()
        for number in range(100):
            sender.post(str(number))
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        for number in range(100, 1_000):
            sender.send(str(number)) if number % 100 == 0 else sender.post(str(number))
        stopping.join()
        for client in clients:
            received: list[str] = []
            lost: list[Lost] = []
            while len(received) < 1_000:
                event = client.receive(WAIT)
                if isinstance(event, Received):
                    received.append(event.content)
                elif isinstance(event, Lost):
                    lost.append(event)
            assert sorted(map(int, received)) == list(range(1_000))
            assert [each.cause for each in lost] == [GOING_AWAY]
    for client in clients:
        client.close()


def test_an_old_stream_is_asked_to_connect_again(site: Site) -> None:
    """And misses nothing of what is sent meanwhile. Who does not go is parted with."""
    _, address = site.server(max_stream_age=1.0)
    with ChatClient("ann", [address]) as client, ChatClient("bob", [address]) as sender:
        client.connect()
        sender.connect()
        received: list[str] = []
        moves = 0
        sent = 0
        while moves < 3:
            sender.send(str(sent))
            sent += 1
            while (event := client.receive(0.05)) is not None:
                if isinstance(event, Received):
                    received.append(event.content)
                elif isinstance(event, Lost):
                    assert event.cause == GOING_AWAY
                    moves += 1
        while len(received) < sent:
            event = client.receive(WAIT)
            if isinstance(event, Received):
                received.append(event.content)
        assert received == numbers(0, sent)


def test_health_tells_whether_to_come(site: Site) -> None:
    """SERVING once clients can connect, NOT_SERVING while the server stops."""
    server, address = site.server()
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watched: list[int] = []
        call = stub.Watch(health_pb2.HealthCheckRequest(service="chat.Chat"), timeout=WAIT)
        watched.append(next(call).status)
        server.stop()
        watched.append(next(call).status)
    status = health_pb2.HealthCheckResponse
    assert watched == [status.SERVING, status.NOT_SERVING]


class Proxy(chat_pb2_grpc.ChatServicer):
    """A proxy as nginx is one: its connections on both sides are its own, so it answers gRPC's
    pings by itself. Once it is cut, it forwards nothing any more, and nobody is told."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._cut = threading.Event()
        self._over = threading.Event()

    def cut(self) -> None:
        self._cut.set()

    def end(self) -> None:
        self._over.set()

    def Subscribe(  # noqa: N802
        self, requests: Iterator[chat_pb2.SubscribeRequest], context: grpc.ServicerContext
    ) -> Iterator[chat_pb2.Delivery]:
        call = self._backend.Subscribe(self._until_cut(requests))
        context.send_initial_metadata(tuple(call.initial_metadata()))
        for delivery in call:
            if self._cut.is_set():
                break
            yield delivery
        self._over.wait(WAIT)

    def _until_cut(
        self, requests: Iterator[chat_pb2.SubscribeRequest]
    ) -> Iterator[chat_pb2.SubscribeRequest]:
        for request in requests:
            if self._cut.is_set():
                break
            yield request
        self._over.wait(WAIT)  # its connection to the server stands


def test_who_vanishes_behind_a_proxy_is_noticed(
    start_server: StartServer, chat_of: Any, host: Any
) -> None:
    """By the server, which frees the stream, and by the client, which comes back another way:
    though to both the proxy is there all the time."""
    server, listening = start_server(stream_heartbeat=BEAT)
    good = f"127.0.0.1:{listening.port}"
    proxy = Proxy(chat_of(good))
    try:
        with ChatClient("ann", [host(proxy), good]) as ann:
            ann.connect()
            assert ann.receive(8 * BEAT) is None  # heartbeats pass in both directions
            assert len(server._hub) == 1
            proxy.cut()
            lost = ann.receive(WAIT)
            assert isinstance(lost, Lost)
            assert lost.cause == SILENT
            assert isinstance(ann.receive(WAIT), Connected)
            gone = {"reason": "gone"}
            registry = server.metrics.registry
            assert eventually(
                lambda: registry.get_sample_value("chatsvc_disconnects_total", gone) == 1
            )
            assert len(server._hub) == 1
    finally:
        proxy.end()
