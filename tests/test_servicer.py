"""The RPCs over real gRPC: some over the servicer alone, the others over a whole server."""

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from chatsvc import metadata, rules
from chatsvc.archive import Archive
from chatsvc.config import Config
from chatsvc.cursor import CursorFormat
from chatsvc.duplicates import Duplicates
from chatsvc.embedded import EmbeddedBroker
from chatsvc.errors import ChatError, MessageTooLarge, PublishFailed, ServerBusy
from chatsvc.hub import Hub
from chatsvc.metrics import Metrics
from chatsvc.model import Acked
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.producer import Producer
from chatsvc.requests import RequestWatch
from chatsvc.seats import Seats
from chatsvc.senders import SenderPool
from chatsvc.server import Listening, Server, channel_options
from chatsvc.servicer import Pools, Publish, Servicer
from chatsvc.tail import Tail
from chatsvc.watchdog import Watchdog

from conftest import StartServer
from waiting import eventually

WAIT = 20
BOB = chat_pb2.Connect(user=chat_pb2.User(id="bob"), active=True)
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024)]
FILLER = "x" * 4_000
FILLERS = 100
"""So many messages of fillers are more than the small window and all buffers on the way hold."""


CURSORS = CursorFormat(b"the topic")


def append_at_once(
    key: bytes,
    value: bytes,
    done: Callable[[Acked | ChatError], None],
    timeout: float | None = 0,
    trace_id: str = "",
) -> None:
    """A publish that is confirmed before it returns."""
    done(Acked(0, 0, -1))


class Host:
    """A servicer on a port of its own, without Kafka: over a publish of the test's choice."""

    def __init__(self, publish: Publish, publish_timeout: float = 20.0) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self._watchdog = Watchdog()
        self._senders = SenderPool("sender", 2, self._watchdog.wake)
        self._replies = SenderPool("reply", 2, self._watchdog.wake)
        requests = RequestWatch(4, 5.0, self._watchdog.wake)
        self.hub = Hub(
            self._senders,
            seats=Seats(10),
            tail=Tail(1 << 20),
            cursors=CURSORS,
            fetch=lambda need, done: done(None),
            outbox_messages=100,
            outbox_bytes=100_000,
            send_timeout=10.0,
        )
        self._watchdog.add((self._senders.check, self._replies.check, requests.check))
        archive = Archive(
            self.hub.tail,
            lambda need, done: done(None),
            lambda positions, time_ms, done: done(None),
            lambda: self.hub.positions,
        )
        servicer = Servicer(
            "server-1",
            self.hub,
            publish,
            self._replies,
            requests,
            requests,
            CURSORS,
            Duplicates(),
            archive,
            self.metrics,
            Pools(*(ThreadPoolExecutor(1) for _ in Pools._fields)),
            send_timeout=10.0,
            publish_timeout=publish_timeout,
            max_publish_streams=1,
        )
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool, options=channel_options(Config()))
        self._server.add_generic_rpc_handlers(servicer.handlers())
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> "Host":
        self._watchdog.start()
        self._senders.start()
        self._replies.start()
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()
        self._replies.close(WAIT)
        self._senders.close(WAIT)
        self._watchdog.close()

    def errors(self, method: str, code: str = "INVALID_ARGUMENT") -> float:
        """How many calls were counted that ended so."""
        labels = {"method": method, "code": code}
        return self.metrics.registry.get_sample_value("chatsvc_rpc_errors_total", labels) or 0.0


def stub(channel: grpc.Channel) -> Any:
    return chat_pb2_grpc.BroadcastStub(channel)


def ended(stream: Any) -> grpc.RpcError:
    """The error that a stream ends in."""
    with pytest.raises(grpc.RpcError) as caught:
        deque(stream)
    return caught.value


def failed(answer: Any) -> grpc.RpcError:
    """The error that a call with one answer ends in."""
    error = answer.exception(2 * WAIT)
    assert isinstance(error, grpc.RpcError)
    return error


def raw_call(channel: grpc.Channel, method: str, raw: bytes) -> Any:
    """A call with bytes of the test's choice for its request."""
    return channel.unary_unary(f"/chat.Broadcast/{method}").future(raw, timeout=WAIT)


def pushback(error: Any) -> int | None:
    """How many milliseconds the server asks to wait; None if it does not."""
    values = dict(error.trailing_metadata()).get(metadata.RETRY_AFTER)
    return None if values is None else int(values)


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    """One field as protobuf encodes it: 0 is a number, 2 is bytes with their length."""
    length = bytes([len(payload)]) if wire_type == 2 else b""
    return bytes([number << 3 | wire_type]) + length + payload


@pytest.fixture
def host(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Host]:
    """A servicer that confirms at once; nothing may be logged with a traceback."""
    with Host(append_at_once) as host:
        yield host
    assert not [record for record in caplog.get_records("call") if record.exc_info]
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def channel(host: Host) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(host.address) as channel:
        yield channel


BAD_NAMES = {
    "empty": ("", "must not be empty"),
    "blank": (" \u3000", "must not be empty"),
    "65 bytes": ("x" * 65, "must be at most 64 bytes"),
    "66 bytes in 22 characters": ("가" * 22, "must be at most 64 bytes"),
    "line break": ("bob\nann", "must not have control or invisible characters (U+000A)"),
    "escape": ("\x1b[2Jbob", "must not have control or invisible characters (U+001B)"),
    "NUL": ("bob\0", "must not have control or invisible characters (U+0000)"),
    "C1 control": ("bob\x9b", "must not have control or invisible characters (U+009B)"),
    "line separator": ("bob\u2028", "must not have control or invisible characters (U+2028)"),
    "bidi override": ("\u202ebob", "must not have control or invisible characters (U+202E)"),
    "bidi isolate": ("bob\u2066", "must not have control or invisible characters (U+2066)"),
}


@pytest.mark.parametrize(("name", "problem"), BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_bad_user_gets_no_stream(
    name: str, problem: str, host: Host, channel: grpc.Channel
) -> None:
    """CreateStream names the field and what is wrong with it, and lets nobody in."""
    connect = chat_pb2.Connect(user=chat_pb2.User(id=name))
    error = ended(stub(channel).CreateStream(connect, timeout=WAIT))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"user.id: {problem}"
    assert pushback(error) is None
    assert host.errors("CreateStream") == 1
    assert not len(host.hub)


@pytest.mark.parametrize(("name", "problem"), BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_bad_user_sends_nothing(
    name: str, problem: str, host: Host, channel: grpc.Channel
) -> None:
    """BroadcastMessage holds senders' names to the same rules."""
    message = chat_pb2.Message(id=name, content="hi")
    error = failed(stub(channel).BroadcastMessage.future(message, timeout=WAIT))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"id: {problem}"
    assert host.errors("BroadcastMessage") == 1


LATE = Timestamp(seconds=253_402_300_800)
NO_NANOS = Timestamp(seconds=1, nanos=-1)
BAD_MESSAGES = {
    "no content": ({"content": ""}, "content: must not be empty"),
    "4,097 characters": ({"content": "x" * 4_097}, "content: must be at most 4096 characters"),
    "65 bytes of message_id": (
        {"message_id": "m" * 65},
        "message_id: must be at most 64 bytes",
    ),
    "66 bytes of message_id in 22 characters": (
        {"message_id": "가" * 22},
        "message_id: must be at most 64 bytes",
    ),
    "control character in message_id": (
        {"message_id": "m\n"},
        "message_id: must not have control characters",
    ),
    "65 bytes of room": ({"room": "r" * 65}, "room: must be at most 64 bytes"),
    "invisible character in room": (
        {"room": "kit\u200bchen"},
        "room: must not have control or invisible characters (U+200B)",
    ),
    "year 10000": ({"timestamp": LATE}, "timestamp: is out of range"),
    "negative nanoseconds": ({"timestamp": NO_NANOS}, "timestamp: is out of range"),
}


@pytest.mark.parametrize(("fields", "details"), BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_a_bad_message_is_refused(
    fields: dict[str, Any], details: str, host: Host, channel: grpc.Channel
) -> None:
    """BroadcastMessage names the field that breaks a rule, and does not ask to try again."""
    message = chat_pb2.Message(**{"id": "bob", "content": "hi", **fields})
    error = failed(stub(channel).BroadcastMessage.future(message, timeout=WAIT))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == details
    assert pushback(error) is None
    assert host.errors("BroadcastMessage") == 1


@pytest.mark.parametrize("character", ["x", "가", "👍"], ids=["ascii", "korean", "emoji"])
def test_the_longest_content_passes(character: str, channel: grpc.Channel) -> None:
    """4,096 characters are taken, however many bytes they are."""
    content = character * rules.MAX_CONTENT_CHARACTERS
    message = chat_pb2.Message(id="bob", content=content, message_id="m" * 64)
    assert stub(channel).BroadcastMessage(message, timeout=WAIT) == chat_pb2.Close()


NOT_UTF8 = b"a\xff"
HELLO = field(1, 2, b"bob") + field(2, 2, b"hi")
BAD_BYTES = {
    "id is not UTF-8": ("BroadcastMessage", field(1, 2, NOT_UTF8), "id: "),
    "content is not UTF-8": ("BroadcastMessage", field(2, 2, NOT_UTF8), "content: "),
    "room is not UTF-8": ("BroadcastMessage", HELLO + field(4, 2, NOT_UTF8), "room: "),
    "message_id is not UTF-8": (
        "BroadcastMessage",
        HELLO + field(5, 2, NOT_UTF8),
        "message_id: ",
    ),
    "half a surrogate pair": ("BroadcastMessage", field(2, 2, b"\xed\xa0\x80"), "content: "),
    "user.id is not UTF-8": ("CreateStream", field(1, 2, field(1, 2, NOT_UTF8)), "user.id: "),
    "user.name is not UTF-8": ("CreateStream", field(1, 2, field(2, 2, NOT_UTF8)), "user.name: "),
    "content is a number": ("BroadcastMessage", HELLO[:5] + field(2, 0, b"\x05"), "content: has"),
    "id is a number": ("BroadcastMessage", field(1, 0, b"\x05"), "id: has the wrong type"),
    "user is a number": ("CreateStream", field(1, 0, b"\x05"), "user.id: "),
    "truncated message": ("BroadcastMessage", HELLO[:-1], "request: "),
    "truncated connect": ("CreateStream", BOB.SerializeToString()[:-4], "request: "),
    "truncated timestamp": ("BroadcastMessage", HELLO + field(3, 2, b"\x08"), "request: "),
    "no protobuf": ("BroadcastMessage", b"\xff\xff\xff", "request: "),
    "nothing to send": ("BroadcastMessage", b"", "id: must not be empty"),
    "nobody to connect": ("CreateStream", b"", "user.id: must not be empty"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "raw", "details"), BAD_BYTES.values(), ids=BAD_BYTES)
def test_bytes_that_are_no_request_are_refused(
    method: str, raw: bytes, details: str, host: Host, channel: grpc.Channel
) -> None:
    """Whatever does not parse names the field at fault and is no internal error."""
    error = failed(raw_call(channel, method, raw))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(details)
    assert host.errors(method) == 1


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=st.binary(max_size=60) | st.binary(max_size=30).map(HELLO.__add__))
def test_no_bytes_are_an_internal_error(channel: grpc.Channel, raw: bytes) -> None:
    """Any bytes are a message or an invalid argument."""
    call = raw_call(channel, "BroadcastMessage", raw)
    assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("method", ["CreateStream", "BroadcastMessage"])
def test_a_call_without_a_request_is_refused(
    method: str, host: Host, channel: grpc.Channel
) -> None:
    """A client that ends its side without a request is told so."""
    error = ended(channel.stream_stream(f"/chat.Broadcast/{method}")(iter(()), timeout=WAIT))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "request: is missing"
    assert host.errors(method) == 1


def test_a_request_over_64_kib_is_not_read(channel: grpc.Channel) -> None:
    """gRPC refuses it before it is parsed."""
    error = failed(raw_call(channel, "BroadcastMessage", bytes(64 * 1_024 + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    """What the service does not have is refused by name."""
    assert failed(raw_call(channel, "Shout", b"")).code() is grpc.StatusCode.UNIMPLEMENTED


class Publisher:
    """A publish that is confirmed when the test says so."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.value = b""
        self.timeout: float | None = None

    def __call__(
        self,
        key: bytes,
        value: bytes,
        done: Callable[[Acked | ChatError], None],
        timeout: float | None = None,
        trace_id: str = "",
    ) -> None:
        self.value, self.done, self.timeout = value, done, timeout
        self.called.set()


HI = chat_pb2.Message(id="bob", content="hi", message_id="m-1")


@contextlib.contextmanager
def publishing(
    publish: Publish, message: chat_pb2.Message = HI, timeout: float | None = WAIT
) -> Iterator[tuple[Host, Any]]:
    """A servicer over `publish`, and the answer to one message."""
    with Host(publish) as host, grpc.insecure_channel(host.address) as channel:
        yield host, stub(channel).BroadcastMessage.future(message, timeout=timeout)


def test_the_answer_waits_for_the_ack() -> None:
    """BroadcastMessage answers when Kafka has confirmed, not before."""
    publish = Publisher()
    with publishing(publish) as (_, answer):
        assert publish.called.wait(WAIT)
        assert not answer.done()
        publish.done(Acked(0, 7, -1))
        assert answer.result() == chat_pb2.Close()


def test_many_wait_for_acks_at_once() -> None:
    """A message that waits for Kafka keeps no thread: more wait than there are threads."""
    waiting: list[Callable[[Acked | ChatError], None]] = []

    def publish(
        key: bytes,
        value: bytes,
        done: Callable[[Acked | ChatError], None],
        timeout: float = 0,
        trace_id: str = "",
    ) -> None:
        waiting.append(done)

    with Host(publish) as host, grpc.insecure_channel(host.address) as channel:
        answers = [stub(channel).BroadcastMessage.future(HI, timeout=WAIT) for _ in range(20)]
        assert eventually(lambda: len(waiting) == 20)
        for done in waiting:
            done(Acked(0, 0, -1))
        assert all(answer.result() == chat_pb2.Close() for answer in answers)


def test_kafka_is_given_less_time_than_the_client_has() -> None:
    """A publish ends before the client's deadline, so that the client hears how."""
    publish = Publisher()
    with publishing(publish, timeout=5) as (_, answer):
        assert publish.called.wait(WAIT)
        assert publish.timeout is not None
        assert 3 < publish.timeout < 4.6
        answer.cancel()


@pytest.mark.parametrize("timeout", [None, 1_000])
def test_a_patient_client_waits_no_longer_than_the_server(timeout: float | None) -> None:
    """Without a deadline, or a late one, the server's own limit holds."""
    publish = Publisher()
    with publishing(publish, timeout=timeout) as (_, answer):
        assert publish.called.wait(WAIT)
        assert publish.timeout == 20.0
        answer.cancel()


REFUSALS = {
    "busy": (ServerBusy(), "RESOURCE_EXHAUSTED", 1_000),
    "not written": (PublishFailed("no", maybe_written=False), "UNAVAILABLE", 1_000),
    "maybe written": (PublishFailed("late", maybe_written=True), "UNAVAILABLE", 1_000),
    "too large": (MessageTooLarge(), "INVALID_ARGUMENT", None),
}


@pytest.mark.parametrize(("failure", "code", "retry"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("at", ["once", "length"])
def test_a_failed_publish_is_a_status(
    failure: ChatError, code: str, retry: int | None, at: str
) -> None:
    """A refusal, at once or after a while, reaches the client in words, with when to try again."""

    def publish(
        key: bytes,
        value: bytes,
        done: Callable[[Acked | ChatError], None],
        timeout: float = 0,
        trace_id: str = "",
    ) -> None:
        if at == "once":
            raise failure
        done(failure)

    with publishing(publish) as (host, answer):
        error = failed(answer)
        assert error.code().name == code
        assert error.details() == str(failure)
        assert pushback(error) == retry
        assert host.errors("BroadcastMessage", code) == 1


def test_an_internal_error_shows_only_its_number(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a number and nothing of the exception; the log has both."""

    def publish(*_: object, **__: object) -> None:
        raise RuntimeError("the secret of kafka-01")

    with publishing(publish) as (host, answer):
        error = failed(answer)
        assert error.code() is grpc.StatusCode.INTERNAL
        words, _, number = error.details().rpartition(" ")
        assert words == "internal error"
        assert "secret" not in error.debug_error_string()
        assert host.errors("BroadcastMessage", "INTERNAL") == 1
    (record,) = [each for each in caplog.records if each.exc_info]
    assert f"(error {number})" in record.message
    assert "the secret of kafka-01" in caplog.text


def test_a_client_that_left_does_not_miss_the_ack(host: Host) -> None:
    """An ack for a call that was cancelled meanwhile harms nothing."""
    publish = Publisher()
    with publishing(publish) as (other, answer):
        assert publish.called.wait(WAIT)
        answer.cancel()
        publish.done(Acked(0, 0, -1))
        published = other.metrics.messages_published
        assert eventually(lambda: published._value.get() == 1)


# Over a whole server


def target(listening: Listening) -> str:
    return f"127.0.0.1:{listening.port}"


def active(server: Server) -> float | None:
    """How many streams the server counts."""
    return server.metrics.registry.get_sample_value("chatsvc_connections_active")


def registered(stream: Any) -> str:
    """The id of the server that has registered the stream."""
    return dict(stream.initial_metadata())[metadata.SERVER_ID]


class Chat:
    """A channel to a server, and what a client does over it."""

    def __init__(self, address: str, options: list[tuple[str, int]] | None = None) -> None:
        local = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        self.channel = grpc.insecure_channel(address, options=[*(options or []), *local])
        self._stub = stub(self.channel)

    def join(self, user: str = "bob") -> Any:
        """A stream that the server has registered."""
        connect = chat_pb2.Connect(user=chat_pb2.User(id=user), active=True)
        stream = self._stub.CreateStream(connect, timeout=2 * WAIT)
        stream.initial_metadata()
        return stream

    def send(self, content: str, **fields: Any) -> None:
        message = chat_pb2.Message(**{"id": "ann", "content": content, **fields})
        self._stub.BroadcastMessage(message, timeout=WAIT)

    def send_later(self, content: str, timeout: float | None = None) -> Any:
        message = chat_pb2.Message(id="ann", content=content)
        return self._stub.BroadcastMessage.future(message, timeout=timeout)

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.channel.close()


@pytest.fixture
def open_chat() -> Iterator[Callable[..., Chat]]:
    """Opens channels, which are closed after the test and before the servers are stopped."""
    with contextlib.ExitStack() as chats:
        yield lambda *arguments: chats.enter_context(Chat(*arguments))


OpenChat = Callable[..., Chat]


def test_a_registered_stream_names_its_server(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """Initial metadata carries the server's id, before any message."""
    _, listening = start_server(server_id="server-7")
    assert registered(open_chat(target(listening)).join()) == "server-7"


def test_nothing_is_missed_after_registration(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """A message sent as soon as the stream is registered arrives, time after time."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    for number in range(20):
        stream = chat.join()
        chat.send(f"{number}")
        assert next(stream).content == f"{number}"
        stream.cancel()


def test_messages_from_before_are_not_delivered(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """A stream begins where it was registered."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    first = chat.join()
    chat.send("before")
    next(first)
    second = chat.join()
    chat.send("after")
    assert next(second).content == "after"


def test_a_message_arrives_as_it_was_sent(start_server: StartServer, open_chat: OpenChat) -> None:
    """Sender, content and message_id are kept; the room is the lobby."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    stream = chat.join()
    content = "안녕 👍\n\x1b[31m"
    chat.send(content, id="앤", message_id="m-1")
    received = next(stream)
    assert (received.id, received.content, received.message_id) == ("앤", content, "m-1")
    assert received.room == ""


def test_a_message_without_an_id_gets_one(start_server: StartServer, open_chat: OpenChat) -> None:
    """The server makes a message_id where the sender gave none, another for each message."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    stream = chat.join()
    chat.send("one")
    chat.send("two")
    ids = {next(stream).message_id, next(stream).message_id}
    assert len(ids) == 2
    assert all(ids)


def test_the_senders_clock_is_not_shown(start_server: StartServer, open_chat: OpenChat) -> None:
    """A delivered timestamp is the record's, whatever the sender's clock says."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    stream = chat.join()
    chat.send("hi", timestamp=Timestamp(seconds=1))
    at = next(stream).timestamp.ToDatetime(tzinfo=UTC)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)


def test_streams_keep_no_threads(start_server: StartServer, open_chat: OpenChat) -> None:
    """Several times more streams than RPC threads are served at once, and messages still sent:
    grpcio honours experimental_non_blocking."""
    server, listening = start_server(max_connections=100)
    chat = open_chat(target(listening))
    streams = [chat.join(f"user-{number}") for number in range(20)]
    assert active(server) == 20 > Config(max_connections=100).rpc_threads
    chat.send("hi")
    assert [next(stream).content for stream in streams] == ["hi"] * 20


def test_a_full_server_says_when_to_come_back(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """The stream over the limit is refused with a pause, and leaves the others alone."""
    server, listening = start_server(max_connections=2)
    chat = open_chat(target(listening))
    streams = [chat.join(), chat.join()]
    error = ended(chat.join())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "server is full (2 connections); try another one or later"
    assert pushback(error) == 5_000
    labels = {"reason": "full"}
    failed = "chatsvc_connections_failed_total"
    assert server.metrics.registry.get_sample_value(failed, labels) == 1
    chat.send("hi")
    assert [next(stream).content for stream in streams] == ["hi", "hi"]


def test_a_freed_place_is_usable_again(start_server: StartServer, open_chat: OpenChat) -> None:
    """When a client cancels, somebody else gets in."""
    server, listening = start_server(max_connections=1)
    chat = open_chat(target(listening))
    first = chat.join("ann")
    assert active(server) == 1
    first.cancel()
    assert eventually(lambda: active(server) == 0)
    second = chat.join("bob")
    chat.send("hi")
    assert next(second).content == "hi"


def test_one_user_may_have_two_streams(start_server: StartServer, open_chat: OpenChat) -> None:
    """Both get every message, and the user stays until the second has left."""
    server, listening = start_server(server_id="s")
    chat = open_chat(target(listening))
    streams = [chat.join("bob"), chat.join("bob")]
    assert eventually(lambda: server.presence.servers() == {"s": {"bob": 2}})
    chat.send("hi")
    assert [next(stream).content for stream in streams] == ["hi", "hi"]
    streams[0].cancel()
    assert eventually(lambda: server.presence.servers() == {"s": {"bob": 1}})
    chat.send("still here")
    assert next(streams[1]).content == "still here"


def test_a_client_that_leaves_is_forgotten(start_server: StartServer, open_chat: OpenChat) -> None:
    """A cancelled stream frees its place and takes its user from the presence."""
    server, listening = start_server(server_id="s")
    chat = open_chat(target(listening))
    stream = chat.join("bob")
    assert eventually(lambda: server.presence.where("bob") == {"s"})
    stream.cancel()
    assert eventually(lambda: not server.presence.where("bob"))
    assert active(server) == 0
    left = server.metrics.registry.get_sample_value("chatsvc_disconnects_total", {"reason": "left"})
    assert left == 1


def test_a_lost_connection_frees_its_streams(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """A client whose connection closes leaves with all its streams."""
    server, listening = start_server()
    chat = open_chat(target(listening))
    streams = [chat.join(), chat.join()]
    assert active(server) == len(streams)
    chat.channel.close()
    assert eventually(lambda: active(server) == 0)


def stall(listening: Listening, open_chat: OpenChat) -> Any:
    """A stream that is not read while more than fits is sent."""
    stalled = open_chat(target(listening), SMALL_WINDOW).join("stalled")
    chat = open_chat(target(listening))
    for number in range(FILLERS):
        chat.send(f"{number} {FILLER}")
    return stalled


def numbers(stream: Any) -> Iterator[int]:
    for message in stream:
        yield int(message.content.split()[0])


def test_a_stalled_reader_is_closed_as_slow(start_server: StartServer, open_chat: OpenChat) -> None:
    """A client that does not read for the send timeout gets what was sent, then is told why."""
    server, listening = start_server(send_timeout=1.0)
    stalled = stall(listening, open_chat)
    slow = {"reason": "slow"}
    errors = {"method": "CreateStream", "code": "RESOURCE_EXHAUSTED"}
    sample = server.metrics.registry.get_sample_value
    assert eventually(lambda: sample("chatsvc_rpc_errors_total", errors) == 1)
    received = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(numbers(stalled))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "client is too slow" in caught.value.details()
    assert pushback(caught.value) == 1_000
    assert eventually(lambda: sample("chatsvc_disconnects_total", slow) == 1)


def test_what_a_slow_reader_gets_has_no_gap(start_server: StartServer, open_chat: OpenChat) -> None:
    """Up to its end a stream that is closed as slow brings every message in order; what it does
    not bring is counted as dropped."""
    server, listening = start_server(send_timeout=1.0)
    stalled = stall(listening, open_chat)
    sample = server.metrics.registry.get_sample_value
    errors = {"method": "CreateStream", "code": "RESOURCE_EXHAUSTED"}
    assert eventually(lambda: sample("chatsvc_rpc_errors_total", errors) == 1)
    received: list[int] = []
    with contextlib.suppress(grpc.RpcError):
        received.extend(numbers(stalled))
    assert received == list(range(len(received)))
    assert len(received) < FILLERS
    assert eventually(lambda: sample("chatsvc_messages_dropped_total", {"reason": "slow"}))


def test_a_stalled_reader_costs_the_others_nothing(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """While one client does not read, another gets everything in order."""
    _, listening = start_server(send_timeout=1.0)
    stalled = open_chat(target(listening), SMALL_WINDOW).join("stalled")
    chat = open_chat(target(listening))
    got = numbers(chat.join("reader"))
    for number in range(FILLERS):
        chat.send(f"{number} {FILLER}")
        assert next(got) == number
    assert ended(stalled).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_outbox_that_overflows_closes_the_stream(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """More messages behind than an outbox holds end a stream long before the send timeout, also
    while one send is stuck."""
    server, listening = start_server(outbox_messages=20, send_timeout=1_000.0)
    stalled = stall(listening, open_chat)
    errors = {"method": "CreateStream", "code": "RESOURCE_EXHAUSTED"}
    sample = server.metrics.registry.get_sample_value
    assert eventually(lambda: sample("chatsvc_rpc_errors_total", errors) == 1)
    error = ended(stalled)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "client is too slow" in error.details()


def test_a_reader_that_never_reads_is_cut_off(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """Its place is free again although it does not even take its end."""
    server, listening = start_server(send_timeout=1.0, max_connections=1)
    stalled = stall(listening, open_chat)
    assert eventually(lambda: active(server) == 0)
    another = open_chat(target(listening)).join("another")
    assert active(server) == 1
    for stream in (stalled, another):
        stream.cancel()


# Kafka away


Away = Callable[..., tuple[Server, Listening]]


@pytest.fixture
def start_without_kafka(start_server: StartServer) -> Away:
    """Starts a server whose only broker is gone from then on."""

    def start(**config: object) -> tuple[Server, Listening]:
        broker = EmbeddedBroker()
        brokers = broker.start()
        for topic in (Config.topic, Config.connections_topic):
            broker.make_topic(topic)
        settings = {"brokers": brokers, "stop_timeout": 1.5, **config}
        server, listening = start_server(**settings)
        broker.close()
        return server, listening

    return start


def test_without_kafka_a_client_hears_it_in_time(
    start_without_kafka: Away, open_chat: OpenChat
) -> None:
    """Before its own deadline a client is told that the same id may be sent again."""
    _, listening = start_without_kafka()
    error = failed(open_chat(target(listening)).send_later("hi", timeout=1))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details().startswith("Failed to send message to Kafka: ")
    assert "send it again with the same message_id" in error.details()
    assert pushback(error) == 1_000


def test_without_kafka_a_patient_client_hears_it_too(
    start_without_kafka: Away, open_chat: OpenChat
) -> None:
    """A client without a deadline is answered when the publish timeout is over."""
    _, listening = start_without_kafka(publish_timeout=1.0)
    error = failed(open_chat(target(listening)).send_later("hi"))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "send it again with the same message_id" in error.details()


def test_a_stop_answers_those_who_wait_for_kafka(
    start_without_kafka: Away, open_chat: OpenChat
) -> None:
    """Messages that Kafka has not confirmed are refused with a status, not cut off."""
    server, listening = start_without_kafka(stop_timeout=3.2)
    chat = open_chat(target(listening))
    answers = [chat.send_later(f"{number}") for number in range(10)]
    late = failed(chat.send_later("probe", timeout=0.5))  # those before it are with Kafka now
    assert late.code() is grpc.StatusCode.UNAVAILABLE
    server.stop()
    errors = [failed(answer) for answer in answers]
    assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}
    assert all("same message_id" in error.details() for error in errors)
    assert all(pushback(error) is not None for error in errors)


def test_a_full_producer_refuses_at_once() -> None:
    """When as much waits for Kafka as may, the next message is refused and not written."""
    broker = EmbeddedBroker()
    brokers = broker.start()
    producer = Producer(brokers, "test", 20.0)
    producer.start()
    broker.close()

    def publish(
        key: bytes,
        value: bytes,
        done: Callable[[Acked | ChatError], None],
        timeout: float,
        trace_id: str = "",
    ) -> None:
        producer.publish("chatting", key, value, done, timeout)

    with contextlib.suppress(ServerBusy):
        while True:
            publish(b"filler", b"", lambda outcome: None, WAIT)
    with publishing(publish) as (_, answer):
        error = failed(answer)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "nothing was written" in error.details()
        assert pushback(error) == 1_000
    producer.close(0)


# Subscribing


def subscribe(chat: Chat, **fields: Any) -> Any:
    """A subscription that the server has registered, or refused."""
    request = chat_pb2.SubscribeRequest(user=chat_pb2.User(id="bob"), **fields)
    stream = chat_pb2_grpc.ChatStub(chat.channel).Subscribe(iter([request]), timeout=2 * WAIT)
    stream.initial_metadata()
    return stream


def test_a_subscription_gets_everything_in_deliveries(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """What is sent after registration comes once and in order, however it is batched."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    stream = subscribe(chat, rooms=[""])
    for number in range(50):
        chat.send(str(number))
    contents: list[str] = []
    while len(contents) < 50:
        contents += [message.content for message in next(stream).messages]
    assert contents == [str(number) for number in range(50)]


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"rooms": ["kitchen", "r\n"]}, "rooms"),
        ({"rooms": list(map(str, range(65)))}, "rooms"),
        ({"cursor": b"x"}, "cursor"),
    ],
)
def test_a_bad_subscription_is_refused(
    start_server: StartServer, open_chat: OpenChat, fields: dict[str, Any], at_fault: str
) -> None:
    """Bad rooms and cursors are refused rather than ignored: nobody believes to have what he
    asked."""
    server, listening = start_server()
    error = ended(subscribe(open_chat(target(listening)), **fields))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"{at_fault}: ")
    refused = server.metrics.registry.get_sample_value(
        "chatsvc_connections_failed_total", {"reason": "invalid"}
    )
    assert refused == 1


def test_a_subscription_begins_with_a_cursor(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """Before any message has come, a client knows where it is."""
    _, listening = start_server()
    first = next(subscribe(open_chat(target(listening))))
    assert first.cursor
    assert not first.messages


def test_rooms_are_heard_by_who_is_in_them(start_server: StartServer, open_chat: OpenChat) -> None:
    """Each subscription gets the messages of its rooms, in order, each with its room's name; the
    seed's streams get the lobby's."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    connect = chat_pb2.Connect(user=chat_pb2.User(id="seed"))
    seeds = stub(chat.channel).CreateStream(connect, timeout=2 * WAIT)
    seeds.initial_metadata()
    rooms = [["kitchen"], ["garden", "kitchen"], [""], ["", "garden"]]
    streams = [subscribe(chat, rooms=each) for each in rooms]
    sent = [("", "1"), ("kitchen", "2"), ("garden", "3"), ("cellar", "4"), ("kitchen", "5")]
    for room, content in [*sent, ("kitchen", "end"), ("garden", "end"), ("", "end")]:
        message = chat_pb2.Message(id="bob", room=room, content=content)
        stub(chat.channel).BroadcastMessage(message, timeout=WAIT)
    for wanted, stream in zip(rooms, streams, strict=True):
        heard: dict[str, list[str]] = {room: [] for room in wanted}
        while not all("end" in contents for contents in heard.values()):
            for each in next(stream).messages:
                heard[each.room].append(each.content)
        assert heard == {
            room: [*(content for there, content in sent if there == room), "end"] for room in wanted
        }
    assert [next(seeds).content for _ in range(2)] == ["1", "end"]


# Publishing in batches


def batches(*sizes: int, user: str = "ann") -> Iterator[Any]:
    """Requests with so many numbered messages each."""
    number = 0
    for size in sizes:
        messages = []
        for _ in range(size):
            messages.append(chat_pb2.Message(id=user, content=str(number), message_id=f"m{number}"))
            number += 1
        yield chat_pb2.PublishRequest(messages=messages)


def outcomes(results: Any) -> list[tuple[str, int]]:
    """The ids and statuses of all outcomes, until the stream ends."""
    return [(each.message_id, each.status) for result in results for each in result.outcomes]


def test_published_messages_get_outcomes_in_order(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """Thousands of messages in batches are confirmed one by one and delivered in order."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    stream = subscribe(chat)
    results = chat_pb2_grpc.ChatStub(chat.channel).Publish(batches(*[100] * 40), timeout=2 * WAIT)
    committed = chat_pb2.Outcome.COMMITTED
    assert outcomes(results) == [(f"m{number}", committed) for number in range(4_000)]
    contents: list[str] = []
    while len(contents) < 4_000:
        contents += [message.content for message in next(stream).messages]
    assert contents == [str(number) for number in range(4_000)]


def test_a_bad_message_has_its_own_outcome(start_server: StartServer, open_chat: OpenChat) -> None:
    """One message that breaks a rule is refused by name; those around it are committed."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    good, bad = batches(1), chat_pb2.Message(id="ann", message_id="bad")
    request = chat_pb2.PublishRequest(messages=[*next(good).messages, bad])
    results = chat_pb2_grpc.ChatStub(chat.channel).Publish(iter([request]), timeout=2 * WAIT)
    (result,) = [each for each in results if each.outcomes][-1:]
    assert result.outcomes[-1].message_id == "bad"
    assert result.outcomes[-1].status == chat_pb2.Outcome.INVALID
    assert result.outcomes[-1].detail == "content: must not be empty"


def test_a_message_without_an_id_is_told_it(start_server: StartServer, open_chat: OpenChat) -> None:
    """The id that the server makes comes back in the outcome."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    request = chat_pb2.PublishRequest(messages=[chat_pb2.Message(id="ann", content="hi")])
    results = chat_pb2_grpc.ChatStub(chat.channel).Publish(iter([request]), timeout=2 * WAIT)
    ((message_id, status),) = outcomes(results)
    assert len(message_id) == 32
    assert status == chat_pb2.Outcome.COMMITTED


def test_a_request_that_does_not_parse_ends_the_stream_after_the_outcomes(
    start_server: StartServer, open_chat: OpenChat
) -> None:
    """What was sent before rubbish is answered; then the stream says what is wrong."""
    _, listening = start_server()
    chat = open_chat(target(listening))
    publish = chat.channel.stream_stream("/chat.Chat/Publish")
    good = next(batches(3)).SerializeToString()
    results = publish(iter([good, b"\xff"]), timeout=2 * WAIT)
    seen: list[Any] = []
    with pytest.raises(grpc.RpcError) as refused:
        seen.extend(chat_pb2.PublishResult.FromString(raw) for raw in results)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stop_answers_what_is_under_way(start_server: StartServer, open_chat: OpenChat) -> None:
    """A publisher that goes on and on gets its outcomes and then UNAVAILABLE."""
    server, listening = start_server()
    chat = open_chat(target(listening))
    over = threading.Event()

    def endless() -> Iterator[Any]:
        yield next(batches(10))
        over.wait(2 * WAIT)

    results = chat_pb2_grpc.ChatStub(chat.channel).Publish(endless(), timeout=2 * WAIT)
    first = [each.status for each in next(results).outcomes]
    server.stop()
    with pytest.raises(grpc.RpcError) as ended_by:
        first.extend(each.status for result in results for each in result.outcomes)
    over.set()
    assert ended_by.value.code() is grpc.StatusCode.UNAVAILABLE
    assert first == [chat_pb2.Outcome.COMMITTED] * len(first)


def test_publish_streams_are_limited(start_server: StartServer, open_chat: OpenChat) -> None:
    """Each has a thread, so one more than there may be is refused at once; a place comes free."""
    _, listening = start_server(max_connections=10)
    chat = open_chat(target(listening))
    over = threading.Event()
    publish = chat_pb2_grpc.ChatStub(chat.channel).Publish
    first = next(batches(1))

    def open_stream() -> Any:
        return publish(itertools.chain([first], iter(over.wait, True)), timeout=2 * WAIT)

    streams = [open_stream() for _ in range(8)]
    for each in streams:
        assert len(next(each).outcomes) == 1
    with pytest.raises(grpc.RpcError) as refused:
        next(open_stream())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    over.set()
    for each in streams:
        assert outcomes(each) == []
    assert len(outcomes(publish(batches(1), timeout=2 * WAIT))) == 1
