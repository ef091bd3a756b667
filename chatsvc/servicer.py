"""The RPCs, and the only place where errors become status codes.

Every method is registered as a stream of requests with a non-blocking handler, whatever it is in
the proto: on the wire that makes no difference. It lets our code run before the request has come,
answer from another thread when Kafka has acked, and keep no thread a stream.
"""

import logging
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Generic, NamedTuple, Protocol

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from chatsvc import frames, metadata, rules, trace
from chatsvc.archive import Archive
from chatsvc.connection import Connection
from chatsvc.cursor import CursorFormat
from chatsvc.duplicates import Duplicates
from chatsvc.duplicates import key as key_of
from chatsvc.errors import (
    ArchiveUnavailable,
    ChatError,
    CloseReason,
    FeedLost,
    InvalidRequest,
    MessageTooLarge,
    PublishFailed,
    ServerBusy,
    ServerFull,
    ServerStopping,
)
from chatsvc.hub import THE_LOBBY, Hub, Rooms
from chatsvc.metrics import Metrics
from chatsvc.model import Acked, ChatMessage, Duplicate
from chatsvc.pb import chat_pb2
from chatsvc.publishing import Done, PublishStream
from chatsvc.records import encode_message
from chatsvc.requests import M, Malformed, Parser, RequestWatch, wrong_type
from chatsvc.senders import Pulse, SenderPool

_log = logging.getLogger(__name__)


_Send = Callable[[bytes | None], None]

_STATUS: dict[type[ChatError], tuple[grpc.StatusCode, int | None]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, None),
    MessageTooLarge: (grpc.StatusCode.INVALID_ARGUMENT, None),
    ServerFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, 5_000),
    ServerBusy: (grpc.StatusCode.RESOURCE_EXHAUSTED, 1_000),
    ServerStopping: (grpc.StatusCode.UNAVAILABLE, 100),
    PublishFailed: (grpc.StatusCode.UNAVAILABLE, 1_000),
    FeedLost: (grpc.StatusCode.UNAVAILABLE, 100),
    ArchiveUnavailable: (grpc.StatusCode.UNAVAILABLE, 1_000),
}

_CLOSE_STATUS: dict[CloseReason, tuple[grpc.StatusCode, str, int]] = {
    CloseReason.SLOW: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "client is too slow: it did not read its messages in time; connect again",
        1_000,
    ),
    CloseReason.SHUTDOWN: (grpc.StatusCode.UNAVAILABLE, str(ServerStopping()), 100),
    CloseReason.GONE: (
        grpc.StatusCode.UNAVAILABLE,
        "client was not heard of for two heartbeats; connect again",
        100,
    ),
    CloseReason.MOVED: (
        grpc.StatusCode.UNAVAILABLE,
        "server asked the client to go elsewhere; connect to another one",
        100,
    ),
}

DEFAULT_PAGE = 50
"""Messages of a page of history, if the request does not say."""


class Publish(Protocol):
    """Producer.publish, for the chat topic."""

    def __call__(
        self,
        key: bytes,
        value: bytes,
        done: Callable[[Acked | ChatError], None],
        timeout: float | None = None,
        trace_id: str = "",
    ) -> None: ...


class _Call:
    """One RPC under way: how it is answered."""

    __slots__ = ("_method", "_metrics", "_send", "context")

    def __init__(
        self, method: str, metrics: Metrics, context: grpc.ServicerContext, send: _Send
    ) -> None:
        self._method = method
        self._metrics = metrics
        self._send = send
        self.context = context

    def send(self, frame: bytes) -> None:
        """Sends one message; blocks while the client's window is full."""
        self._send(frame)

    def finish(self) -> None:
        """Ends the call with OK."""
        self._send(None)

    def cut_off(self) -> None:
        """Cancels the call."""
        self.context.cancel()

    def refuse(self, error: ChatError) -> None:
        """Ends the call with the status for `error`."""
        code, retry_ms = _STATUS[type(error)]
        self.fail(code, str(error), retry_ms)

    def fail(self, code: grpc.StatusCode, details: str, retry_ms: int | None) -> None:
        """Ends the call with an error."""
        self._metrics.rpc_errors.labels(self._method, code.name).inc()
        self.context.set_code(code)
        self.context.set_details(details)
        if retry_ms is not None:
            self.context.set_trailing_metadata(((metadata.RETRY_AFTER, str(retry_ms)),))
        self._send(None)


class _Stream:
    """A connection's transport over a call."""

    __slots__ = ("_call", "send")

    def __init__(self, call: _Call) -> None:
        self._call = call
        self.send = call.send

    def end(self, reason: CloseReason) -> None:
        self._call.fail(*_CLOSE_STATUS[reason])

    def cancel(self) -> None:
        self._call.cut_off()


class _Reply:
    """The answer to one BroadcastMessage, sent from a pool of its own once Kafka has spoken."""

    __slots__ = ("_began", "_call", "_metrics", "_outcome", "_pool", "_timeout", "_trace_id")

    is_behind = False

    def __init__(
        self,
        call: _Call,
        pool: SenderPool,
        metrics: Metrics,
        send_timeout: float,
        trace_id: str,
    ) -> None:
        self._call = call
        self._pool = pool
        self._metrics = metrics
        self._timeout = send_timeout
        self._trace_id = trace_id
        self._began = time.monotonic()
        self._outcome: Acked | Duplicate | ChatError | None = None

    def done(self, outcome: Acked | Duplicate | ChatError) -> None:
        """The producer's callback."""
        self._outcome = outcome
        self._pool.ready([self])

    def drain(self, pulse: Pulse) -> bool:
        if isinstance(self._outcome, Acked):
            self._metrics.messages_published.inc()
            self._call.send(frames.CLOSE)
            self._call.finish()
            self._metrics.publish_latency.observe_all([time.monotonic() - self._began])
        elif isinstance(self._outcome, Duplicate):
            self._call.send(frames.CLOSE_DUPLICATE)
            self._call.finish()
        else:
            assert self._outcome is not None  # done() comes first
            _log.warning("%s", self._outcome, extra=trace.extra(self._trace_id))
            self._call.refuse(self._outcome)
        return False

    def check_send(self, seconds: float, now: float) -> None:
        if seconds > self._timeout:
            self.cut_off()

    def cut_off(self) -> None:
        self._call.cut_off()


class _Behavior(Generic[M]):
    """What grpcio calls for a method, in a pool thread: reads the request, runs the method, and
    turns what it raises into a status."""

    # grpcio hands such a handler a function that sends, and frees the thread when it returns.
    experimental_non_blocking = True

    def __init__(
        self,
        method: str,
        parser: Parser[M],
        run: Callable[[M, _Call], None],
        requests: RequestWatch,
        metrics: Metrics,
    ) -> None:
        self._method = method
        self._parser = parser
        self._run = run
        self._requests = requests
        self._metrics = metrics

    def __call__(
        self, requests: Iterator[M | Malformed], context: grpc.ServicerContext, send: _Send
    ) -> None:
        call = _Call(self._method, self._metrics, context, send)
        with _errors_answered(self._method, call):
            self._run(self._parser.parsed(self._requests.first(requests, context)), call)


class _PooledBehavior:
    """The same for a method that reads its requests one after the other, or that blocks, in a
    thread of a pool of its own."""

    experimental_non_blocking = True

    def __init__(
        self,
        method: str,
        run: Callable[[Iterator[Any], _Call], None],
        pool: ThreadPoolExecutor,
        metrics: Metrics,
    ) -> None:
        # grpcio takes this pool for the method instead of the server's.
        self.experimental_thread_pool = pool
        self._method = method
        self._run = run
        self._metrics = metrics

    def __call__(self, requests: Iterator[Any], context: grpc.ServicerContext, send: _Send) -> None:
        call = _Call(self._method, self._metrics, context, send)
        with _errors_answered(self._method, call):
            self._run(requests, call)


class Pools(NamedTuple):
    """Threads for the methods that keep one: `publish` and `subscribe` while a client may send
    something, `history` while Kafka is asked."""

    publish: ThreadPoolExecutor
    subscribe: ThreadPoolExecutor
    history: ThreadPoolExecutor


@contextmanager
def _errors_answered(method: str, call: _Call) -> Iterator[None]:
    """Turns what a method raises into a status."""
    try:
        yield
    except grpc.RpcError:
        raise  # the call is over; grpcio knows its own error and says nothing
    except ChatError as error:
        call.refuse(error)
    except Exception:
        number = uuid.uuid4().hex[:8]
        _log.exception("%s failed (error %s)", method, number)
        call.fail(grpc.StatusCode.INTERNAL, f"internal error {number}", None)


class Servicer:
    """The methods of the services Broadcast and Chat over a hub and a producer's `publish`."""

    def __init__(
        self,
        server_id: str,
        hub: Hub,
        publish: Publish,
        replies: SenderPool,
        requests: RequestWatch,
        stream_requests: RequestWatch,
        cursors: CursorFormat,
        duplicates: Duplicates,
        archive: Archive,
        metrics: Metrics,
        pools: Pools,
        *,
        send_timeout: float,
        publish_timeout: float,
        max_publish_streams: int,
    ) -> None:
        self._server_id = server_id
        self._hub = hub
        self._publish = publish
        self._replies = replies
        self._requests = requests
        self._stream_requests = stream_requests
        self._cursors = cursors
        self._duplicates = duplicates
        self._archive = archive
        self._metrics = metrics
        self._send_timeout = send_timeout
        self._publish_timeout = publish_timeout
        self._pools = pools
        self._max_publish_streams = max_publish_streams
        # Guards the two below.
        self._lock = threading.Lock()
        self._publish_streams: set[PublishStream] = set()
        self._stopping = False

    def stop(self) -> None:
        """Ends the streams of Publish after the outcomes of what is under way."""
        with self._lock:
            self._stopping = True
            streams = list(self._publish_streams)
        for stream in streams:
            stream.stop(ServerStopping())

    @property
    def publish_streams(self) -> int:
        """Streams of Publish that are open."""
        return len(self._publish_streams)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc.Server has to register."""
        broadcast = {
            "CreateStream": self._handler("CreateStream", chat_pb2.Connect, self._create_stream),
            "BroadcastMessage": self._handler(
                "BroadcastMessage", chat_pb2.Message, self._broadcast_message
            ),
        }
        chat = {
            "Subscribe": self._pooled(
                "Subscribe", chat_pb2.SubscribeRequest, self._subscribe, self._pools.subscribe
            ),
            "Publish": self._pooled(
                "Publish", chat_pb2.PublishRequest, self._publish_all, self._pools.publish
            ),
            "History": self._pooled(
                "History", chat_pb2.HistoryRequest, self._history, self._pools.history
            ),
        }
        return [
            grpc.method_handlers_generic_handler("chat.Broadcast", broadcast),
            grpc.method_handlers_generic_handler("chat.Chat", chat),
        ]

    def _handler(self, method: str, kind: type[M], run: Callable[[M, _Call], None]) -> Any:
        parser = Parser(kind)
        behavior = _Behavior(method, parser, run, self._requests, self._metrics)
        return grpc.stream_stream_rpc_method_handler(behavior, request_deserializer=parser)

    def _pooled(
        self,
        method: str,
        kind: type[M],
        run: Callable[[Iterator[Any], _Call], None],
        pool: ThreadPoolExecutor,
    ) -> Any:
        behavior = _PooledBehavior(method, run, pool, self._metrics)
        return grpc.stream_stream_rpc_method_handler(behavior, request_deserializer=Parser(kind))

    def _create_stream(self, request: chat_pb2.Connect, call: _Call) -> None:
        with self._counted_refusals():
            self._register(request.user.id, THE_LOBBY, call, batched=False)

    def _subscribe(self, requests: Iterator[Any], call: _Call) -> None:
        with self._counted_refusals():
            request: chat_pb2.SubscribeRequest = Parser.parsed(
                self._stream_requests.first(requests, call.context)
            )
            rules.check_name("user.id", request.user.id)
            rooms = _rooms(request.rooms)
            connection = self._register(
                request.user.id, rooms, call, batched=True, positions=self._start(request, rooms)
            )
        if connection is None:
            return
        connection.hear(time.monotonic())
        for _ in requests:
            connection.hear(time.monotonic())
        connection.hear_no_more()

    def _start(self, request: chat_pb2.SubscribeRequest, rooms: Rooms) -> Mapping[int, int] | None:
        """The positions where a subscription begins; None: what is newest. Blocks while Kafka is
        asked for them."""
        _check_one_of(request, ("cursor", "since", "last"))
        if request.cursor:
            return self._cursors.decode(request.cursor)
        if request.HasField("since"):
            return self._archive.since(_milliseconds("since", request.since))
        if request.last:
            rules.check_count("last", request.last, rules.MAX_LAST)
            return self._archive.newest(rooms, request.last)
        return None

    def _history(self, requests: Iterator[Any], call: _Call) -> None:
        request: chat_pb2.HistoryRequest = Parser.parsed(
            self._stream_requests.first(requests, call.context)
        )
        rooms = _rooms(request.rooms)
        _check_one_of(request, ("cursor", "since"))
        rules.check_count("limit", request.limit, rules.MAX_PAGE)
        positions: Mapping[int, int] | None = None
        if request.cursor:
            positions = self._cursors.decode(request.cursor)
        elif request.HasField("since"):
            positions = self._archive.since(_milliseconds("since", request.since))
        read = self._archive.before if request.backwards else self._archive.after
        page = read(rooms, positions, request.limit or DEFAULT_PAGE)
        encode = self._cursors.encode
        call.send(
            frames.page(page.elements, encode(page.before), encode(page.after), page.end, page.gaps)
        )
        call.finish()

    @contextmanager
    def _counted_refusals(self) -> Iterator[None]:
        try:
            yield
        except ChatError as error:
            self._metrics.connections_failed.labels(_REFUSALS[type(error)]).inc()
            raise

    def _register(
        self,
        user: str,
        rooms: Rooms,
        call: _Call,
        *,
        batched: bool,
        positions: Mapping[int, int] | None = None,
    ) -> Connection | None:
        """Makes the call a connection; None if it is over already. Raises InvalidRequest,
        ServerFull, ServerStopping or FeedLost."""
        rules.check_name("user.id", user)
        connection = self._hub.add(
            user, _Stream(call), rooms=rooms, batched=batched, positions=positions
        )
        # From here on the callback, which runs once when the call is over, cleans up.
        if not call.context.add_callback(partial(self._hub.remove, connection)):
            self._hub.remove(connection)
            return None
        self._metrics.connections.inc()
        keys: list[tuple[str, str | bytes]] = [(metadata.SERVER_ID, self._server_id)]
        if batched:
            keys.append((metadata.HEARTBEAT, str(int(self._hub.heartbeat_seconds * 1_000))))
            keys.append((metadata.CURSOR, self._cursors.encode(connection.start)))
        call.context.send_initial_metadata(tuple(keys))
        _log.info("User %s connected to server %s", connection.user, self._server_id)
        self._hub.activate(connection)
        return connection

    def _broadcast_message(self, request: chat_pb2.Message, call: _Call) -> None:
        message = _checked(request)
        trace_id = trace.of_metadata(call.context.invocation_metadata())
        reply = _Reply(call, self._replies, self._metrics, self._send_timeout, trace_id)
        if self._is_duplicate(request):
            reply.done(Duplicate())
            return
        key, value = encode_message(message)
        # The answer has to arrive before the client's own deadline, or it learns nothing.
        remaining = call.context.time_remaining()
        timeout = min(self._publish_timeout, remaining - min(0.5, remaining / 5))
        self._publish(key, value, reply.done, timeout, trace_id)

    def _publish_all(self, requests: Iterator[Any], call: _Call) -> None:
        stream = PublishStream(call, self._replies, self._send_timeout, self._observe_acks)
        with self._lock:
            if self._stopping:
                raise ServerStopping
            if len(self._publish_streams) >= self._max_publish_streams:
                raise ServerFull(self._max_publish_streams)
            self._publish_streams.add(stream)
        if not call.context.add_callback(partial(self._forget, stream)):
            self._forget(stream)
            return
        trace_id = trace.of_metadata(call.context.invocation_metadata())
        for request in requests:
            try:
                messages = Parser.parsed(request).messages
            except InvalidRequest as error:
                stream.stop(error)
                return
            for message in messages:
                message.message_id = message.message_id or secrets.token_hex(16)
            if not stream.publish(
                [
                    (message.message_id, partial(self._publish_one, message, trace_id))
                    for message in messages
                ]
            ):
                return
        stream.end()

    def _observe_acks(self, seconds: Sequence[float]) -> None:
        self._metrics.messages_published.inc(len(seconds))
        self._metrics.publish_latency.observe_all(seconds)

    def _forget(self, stream: PublishStream) -> None:
        stream.leave()
        with self._lock:
            self._publish_streams.discard(stream)

    def _publish_one(self, message: chat_pb2.Message, trace_id: str, done: Done) -> None:
        checked = _checked(message)
        if self._is_duplicate(message):
            done(Duplicate())
        else:
            self._publish(*encode_message(checked), done, trace_id=trace_id)

    def _is_duplicate(self, message: chat_pb2.Message) -> bool:
        """Whether the log has the message by its id. It may be there all the same: then whoever
        reads the log leaves the second record out."""
        if not message.message_id:
            return False
        duplicate = self._duplicates.has(key_of(message.id, message.message_id))
        if duplicate:
            self._metrics.messages_duplicate.labels("request").inc()
        return duplicate


_REFUSALS: dict[type[ChatError], str] = {
    InvalidRequest: "invalid",
    ServerFull: "full",
    ServerStopping: "stopping",
    FeedLost: "feed_lost",
    ArchiveUnavailable: "kafka",
}


def _rooms(names: Collection[str]) -> Rooms:
    """The rooms that a request names. Raises InvalidRequest."""
    rules.check_rooms("rooms", names)
    return frozenset(names) or THE_LOBBY


def _check_one_of(request: Any, fields: Sequence[str]) -> None:
    """Raises InvalidRequest if more than one of these fields is set."""
    given = [field.name for field, _ in request.ListFields() if field.name in fields]
    if len(given) > 1:
        raise InvalidRequest(given[1], f"must not be there beside {given[0]}")


def _milliseconds(field: str, time: Timestamp) -> int:
    """A time as milliseconds of Unix time, 0 if it is before that. Raises InvalidRequest."""
    if not (-62_135_596_800 <= time.seconds <= 253_402_300_799 and 0 <= time.nanos < 1_000_000_000):
        raise InvalidRequest(field, "is out of range")
    return max(0, time.seconds * 1_000 + time.nanos // 1_000_000)


def _checked(request: chat_pb2.Message) -> ChatMessage:
    """The message that a request asks to send. Raises InvalidRequest."""
    try:
        rules.check_name("id", request.id)
        rules.check_content("content", request.content)
        rules.check_message_id("message_id", request.message_id)
        rules.check_room("room", request.room)
    except InvalidRequest as error:
        number = chat_pb2.Message.DESCRIPTOR.fields_by_name[error.field].number
        if wrong_type(request, number):
            raise InvalidRequest(error.field, "has the wrong type") from error
        raise
    return ChatMessage(
        request.id,
        request.content,
        _sent_at(request),
        request.room,
        request.message_id or secrets.token_hex(16),
    )


def _sent_at(request: chat_pb2.Message) -> str:
    if not request.HasField("timestamp"):
        return datetime.now(UTC).isoformat(timespec="milliseconds")
    try:
        seconds, nanos = request.timestamp.seconds, request.timestamp.nanos
        if not 0 <= nanos < 1_000_000_000:
            raise ValueError(nanos)
        return f"{_second(seconds)}.{nanos:09}Z"
    except ValueError as error:
        raise InvalidRequest("timestamp", "is out of range") from error


@lru_cache(16)
def _second(seconds: int) -> str:
    """Unix time as RFC 3339, to the second; senders' clocks mostly agree on it. Raises ValueError
    outside of the years 1 to 9999."""
    return Timestamp(seconds=seconds).ToJsonString()[:-1]
