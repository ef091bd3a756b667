"""Link: a client's channel to one server, and what the errors of its calls mean."""

import random
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc

from chatsvc import metadata
from chatsvc.errors import ConnectionFailed
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.proxy import way

CONNECT_SECONDS = 5.0
"""How long one attempt to connect may take."""

CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # How much may be on its way, instead of a ping now and then that finds out how much that should
    # be: a server with many quiet clients would do little else than answer them.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    # A connection of its own for each client, and no memory of earlier failures to connect.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1_000)),
]

_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class Registration(NamedTuple):
    """What a server tells of a stream that it has registered: its id, how often something comes at
    least, if it says so, and the cursor of where the stream begins."""

    server_id: str
    heartbeat_seconds: float | None
    cursor: bytes


class Link:
    """A channel to one server. Thread-safe."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._channel = grpc.insecure_channel(server, options=CHANNEL_OPTIONS)
        stub: Any = chat_pb2_grpc.BroadcastStub  # generated without types
        self._stub = stub(self._channel)
        stub = chat_pb2_grpc.ChatStub
        self._chat_stub = stub(self._channel)

    def subscribe(self, requests: Iterator[chat_pb2.SubscribeRequest]) -> Any:
        """Starts a stream of Deliveries, which `registered` waits for."""
        return self._chat_stub.Subscribe(requests)

    def registered(self, call: Any) -> "Registration":
        """Blocks until the server has registered the stream. Raises ConnectionFailed."""
        timer = threading.Timer(CONNECT_SECONDS, call.cancel)
        timer.name = "chat-connect"
        timer.start()
        try:
            keys = dict(call.initial_metadata() or ())
            if metadata.SERVER_ID not in keys:
                call.code()  # a refusal, or until the timer: not a server of ours
        finally:
            timer.cancel()
            timer.join()
        if metadata.SERVER_ID in keys:
            beat_ms = keys.get(metadata.HEARTBEAT, "")
            seconds = int(beat_ms) / 1_000 if beat_ms.isdecimal() else None
            return Registration(keys[metadata.SERVER_ID], seconds, keys.get(metadata.CURSOR, b""))
        if call.code() is grpc.StatusCode.CANCELLED:
            text = f"no answer in time{way(self.server)}"
        else:
            text = cause(call, self.server)
        raise ConnectionFailed(text, (self.server,))

    def send(self, message: chat_pb2.Message, timeout: float, trace_id: str = "") -> None:
        """Sends a message and blocks until it is confirmed. Raises grpc.RpcError, or ValueError
        after `close`."""
        keys = ((metadata.TRACE, trace_id),) if trace_id else None
        self._stub.BroadcastMessage(message, timeout=timeout, metadata=keys)

    def history(self, request: chat_pb2.HistoryRequest, timeout: float) -> chat_pb2.HistoryPage:
        """Asks for a page and blocks until it is there. Raises grpc.RpcError, or ValueError after
        `close`."""
        page: chat_pb2.HistoryPage = self._chat_stub.History(request, timeout=timeout)
        return page

    def publish(self, requests: Iterator[chat_pb2.PublishRequest]) -> Any:
        """Starts a stream of messages, whose results can be iterated over. Raises ValueError after
        `close`."""
        return self._chat_stub.Publish(requests)

    def close(self) -> None:
        """Ends all that runs on the channel."""
        self._channel.close()


class Backoff:
    """Full jitter: each pause is random between 0 and a ceiling that doubles from `first` to
    `most` seconds. Source: "Exponential Backoff And Jitter", AWS Architecture Blog."""

    def __init__(self, first: float = 0.2, most: float = 5.0) -> None:
        self._first = first
        self._most = most
        self._failures = 0

    def next(self, at_least: float = 0.0) -> float:
        """Seconds to wait now."""
        ceiling = min(self._most, self._first * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        return at_least + random.uniform(0, ceiling)

    def reset(self) -> None:
        """The next pause is a first one."""
        self._failures = 0


# What an error says; `Any` since grpc's errors and calls share these methods and no type.


def is_final(error: Any) -> bool:
    """Whether trying again cannot help."""
    return error.code() in _FINAL


def asked_pause(error: Any) -> float:
    """Seconds that the server asked to wait."""
    for key, value in error.trailing_metadata() or ():
        if key == metadata.RETRY_AFTER and value.isdecimal():
            return int(value) / 1_000
    return 0.0


def server_spoke(error: Any) -> bool:
    """Whether the status came from a server of ours, not from the way there."""
    keys = {key for key, _ in error.trailing_metadata() or ()}
    return is_final(error) or metadata.RETRY_AFTER in keys


def cause(error: Any, server: str = "") -> str:
    """What went wrong, for people; on the way to `server`, if that is given, also through which
    proxy."""
    details = error.details() or ""
    if server_spoke(error) or error.code() is not grpc.StatusCode.UNAVAILABLE:
        return details or str(error.code().name).lower().replace("_", " ")
    for text, words in _TRANSPORT_WORDS:
        if text in details:
            return f"{words}{way(server)}"
    return "connection lost"


_TRANSPORT_WORDS = (
    ("Connection refused", "connection refused"),
    ("DNS resolution failed", "unknown host"),
    ("Domain name not found", "unknown host"),
    ("HTTP proxy returned", "refused"),
    ("Failed parsing HTTP/2", "what answers is no gRPC server"),
    ("Network is unreachable", "network unreachable"),
    ("No route to host", "no route to host"),
    ("imed out", "no answer in time"),
)
