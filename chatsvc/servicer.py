"""The RPCs, and the only place where errors become status codes.

Every method is registered as a stream of requests with a non-blocking handler, whatever it is in
the proto: on the wire that makes no difference. It lets our code run before the request has come,
answer from another thread when Kafka has acked, and keep no thread a stream.
"""

import logging
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Generic, Protocol

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from chatsvc import frames, metadata, rules
from chatsvc.cursor import CursorFormat
from chatsvc.errors import (
    ChatError,
    CloseReason,
    InvalidRequest,
    MessageTooLarge,
    PublishFailed,
    ServerBusy,
    ServerFull,
    ServerStopping,
)
from chatsvc.hub import THE_LOBBY, Hub, Rooms
from chatsvc.metrics import Metrics
from chatsvc.model import Acked, ChatMessage
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
}

_CLOSE_STATUS: dict[CloseReason, tuple[grpc.StatusCode, str, int]] = {
    CloseReason.SLOW: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "client is too slow: it did not read its messages in time; connect again",
        1_000,
    ),
    CloseReason.SHUTDOWN: (grpc.StatusCode.UNAVAILABLE, str(ServerStopping()), 100),
}


class Publish(Protocol):
    """Producer.publish, for the chat topic."""

    def __call__(
        self,
        key: bytes,
        value: bytes,
        done: Callable[[Acked | ChatError], None],
        timeout: float | None = None,
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

    __slots__ = ("_call", "_metrics", "_outcome", "_pool", "_timeout")

    def __init__(
        self, call: _Call, pool: SenderPool, metrics: Metrics, send_timeout: float
    ) -> None:
        self._call = call
        self._pool = pool
        self._metrics = metrics
        self._timeout = send_timeout
        self._outcome: Acked | ChatError | None = None

    def done(self, outcome: Acked | ChatError) -> None:
        """The producer's callback."""
        self._outcome = outcome
        self._pool.ready([self])

    def drain(self, pulse: Pulse) -> bool:
        if isinstance(self._outcome, Acked):
            self._metrics.messages_published.inc()
            self._call.send(frames.CLOSE)
            self._call.finish()
        else:
            assert self._outcome is not None  # done() comes first
            _log.warning("%s", self._outcome)
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


class _PublishBehavior:
    """The same for Publish, which reads its requests one after the other in a thread of a pool of
    its own."""

    experimental_non_blocking = True

    def __init__(
        self,
        run: Callable[[Iterator[Any], _Call], None],
        pool: ThreadPoolExecutor,
        metrics: Metrics,
    ) -> None:
        # grpcio takes this pool for the method instead of the server's.
        self.experimental_thread_pool = pool
        self._run = run
        self._metrics = metrics

    def __call__(self, requests: Iterator[Any], context: grpc.ServicerContext, send: _Send) -> None:
        call = _Call("Publish", self._metrics, context, send)
        with _errors_answered("Publish", call):
            self._run(requests, call)


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
        cursors: CursorFormat,
        metrics: Metrics,
        publish_pool: ThreadPoolExecutor,
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
        self._cursors = cursors
        self._metrics = metrics
        self._send_timeout = send_timeout
        self._publish_timeout = publish_timeout
        self._publish_pool = publish_pool
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

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc.Server has to register."""
        broadcast = {
            "CreateStream": self._handler("CreateStream", chat_pb2.Connect, self._create_stream),
            "BroadcastMessage": self._handler(
                "BroadcastMessage", chat_pb2.Message, self._broadcast_message
            ),
        }
        publish = _PublishBehavior(self._publish_all, self._publish_pool, self._metrics)
        chat = {
            "Subscribe": self._handler("Subscribe", chat_pb2.SubscribeRequest, self._subscribe),
            "Publish": grpc.stream_stream_rpc_method_handler(
                publish, request_deserializer=Parser(chat_pb2.PublishRequest)
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

    def _create_stream(self, request: chat_pb2.Connect, call: _Call) -> None:
        with self._counted_refusals():
            self._register(request.user.id, THE_LOBBY, call, batched=False)

    def _subscribe(self, request: chat_pb2.SubscribeRequest, call: _Call) -> None:
        with self._counted_refusals():
            rules.check_rooms("rooms", request.rooms)
            positions = self._cursors.decode(request.cursor) if request.cursor else None
            rooms = frozenset(request.rooms) or THE_LOBBY
            self._register(request.user.id, rooms, call, batched=True, positions=positions)

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
    ) -> None:
        """Makes the call a connection. Raises InvalidRequest, ServerFull or ServerStopping."""
        rules.check_name("user.id", user)
        connection = self._hub.add(
            user, _Stream(call), rooms=rooms, batched=batched, positions=positions
        )
        # From here on the callback, which runs once when the call is over, cleans up.
        if not call.context.add_callback(partial(self._hub.remove, connection)):
            self._hub.remove(connection)
            return
        self._metrics.connections.inc()
        call.context.send_initial_metadata(((metadata.SERVER_ID, self._server_id),))
        _log.info("User %s connected to server %s", connection.user, self._server_id)
        self._hub.activate(connection)

    def _broadcast_message(self, request: chat_pb2.Message, call: _Call) -> None:
        message = _checked(request)
        reply = _Reply(call, self._replies, self._metrics, self._send_timeout)
        key, value = encode_message(message)
        # The answer has to arrive before the client's own deadline, or it learns nothing.
        remaining = call.context.time_remaining()
        timeout = min(self._publish_timeout, remaining - min(0.5, remaining / 5))
        self._publish(key, value, reply.done, timeout)

    def _publish_all(self, requests: Iterator[Any], call: _Call) -> None:
        count_acked = self._metrics.messages_published.inc
        stream = PublishStream(call, self._replies, self._send_timeout, count_acked)
        with self._lock:
            if self._stopping:
                raise ServerStopping
            if len(self._publish_streams) >= self._max_publish_streams:
                raise ServerFull(self._max_publish_streams)
            self._publish_streams.add(stream)
        if not call.context.add_callback(partial(self._forget, stream)):
            self._forget(stream)
            return
        for request in requests:
            try:
                messages = Parser.parsed(request).messages
            except InvalidRequest as error:
                stream.stop(error)
                return
            for message in messages:
                message.message_id = message.message_id or secrets.token_hex(16)
            if not stream.publish(
                [(message.message_id, partial(self._publish_one, message)) for message in messages]
            ):
                return
        stream.end()

    def _forget(self, stream: PublishStream) -> None:
        stream.leave()
        with self._lock:
            self._publish_streams.discard(stream)

    def _publish_one(self, message: chat_pb2.Message, done: Done) -> None:
        self._publish(*encode_message(_checked(message)), done)


_REFUSALS: dict[type[ChatError], str] = {
    InvalidRequest: "invalid",
    ServerFull: "full",
    ServerStopping: "stopping",
}


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
