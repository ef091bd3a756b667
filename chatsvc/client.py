"""ChatClient: a user's connection to the chat, for the command line, tests and programs.

It keeps one stream to one of its servers, goes on at another when that one is lost, and sends
messages until they are confirmed, always with the same message_id.
"""

import logging
import random
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import cycle
from typing import Any, NamedTuple

import grpc

from chatsvc import metadata, rules
from chatsvc.errors import ChatError, ClientClosed, ConnectionFailed, InvalidRequest, SendFailed
from chatsvc.pb import chat_pb2, chat_pb2_grpc

_log = logging.getLogger(__name__)

BUFFERED_EVENTS = 1_000
"""Events that wait for `receive`. When there are so many the stream is not read on, and once the
server's outbox is full too the server closes it as slow."""
REMEMBERED_IDS = 10_000
"""The newest messages, of which a second copy is not given out."""
CONNECT_SECONDS = 5.0
"""How long one attempt to connect may take."""
SEND_SECONDS = 25.0
"""How long one attempt to send may take: longer than the server waits for Kafka."""
STABLE_SECONDS = 10.0
"""A stream that held so long resets the back-off."""


class Received(NamedTuple):
    """A message. `at` is when Kafka appended it; `own` whether its sender has this user's id."""

    user: str
    content: str
    at: datetime
    message_id: str
    own: bool


class Connected(NamedTuple):
    """The server has registered the stream; `again` after a loss."""

    server: str
    server_id: str
    again: bool


class Lost(NamedTuple):
    """The stream is gone. The client looks for a server until it has one, and says Connected."""

    server: str
    cause: str


Event = Received | Connected | Lost

_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

_CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A connection of its own for each client, and no memory of earlier failures to connect.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1_000)),
]


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


class _Link:
    """A channel to one server."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._channel = grpc.insecure_channel(server, options=_CHANNEL_OPTIONS)
        stub: Any = chat_pb2_grpc.BroadcastStub  # generated without types
        self._stub = stub(self._channel)
        stub = chat_pb2_grpc.ChatStub
        self._chat_stub = stub(self._channel)

    def open_stream(self, user: str) -> Any:
        """Starts a stream, which `registered` waits for."""
        request = chat_pb2.SubscribeRequest(user=chat_pb2.User(id=user, name=user))
        return self._chat_stub.Subscribe(request)

    def registered(self, call: Any) -> str:
        """Blocks until the server has registered the stream and returns the server's id. Raises
        ConnectionFailed."""
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
            return str(keys[metadata.SERVER_ID])
        cause = "no answer in time" if call.code() is grpc.StatusCode.CANCELLED else _cause(call)
        raise ConnectionFailed(cause, (self.server,))

    def publish(self, message: chat_pb2.Message, timeout: float) -> None:
        """Sends a message and blocks until it is confirmed. Raises grpc.RpcError."""
        self._stub.BroadcastMessage(message, timeout=timeout)

    def close(self) -> None:
        """Ends all that runs on the channel."""
        self._channel.close()


class ChatClient:
    """One user's stream at one of `servers` (`host:port` each), and the way to send.

    `connect` is called once, first. All else may be called from any thread; `receive` from one at
    a time, and it has to be: a client whose events nobody takes does not notice the loss of its
    stream. To send only, use `send_once`.
    """

    def __init__(self, user: str, servers: Sequence[str]) -> None:
        if not servers:
            raise ValueError("at least one server is needed")
        self.user = user
        self._servers = tuple(servers)
        self._next_server = cycle(self._servers)
        self._backoff = Backoff()
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        # Guards all that follows; notified whenever any of it changes.
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._link: _Link | None = None
        self._call: Any = None
        self._failure: ChatError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"chat-{user}", daemon=True)

    def connect(self) -> Connected:
        """Opens the stream and blocks until a server has registered it. Tries each server once.
        Raises ConnectionFailed with what the last one said."""
        cause = ""
        for _ in self._servers:
            try:
                connected = self._open(next(self._next_server), again=False)
            except ConnectionFailed as error:
                cause = error.cause
            else:
                with self._changed:
                    if not self._closed:
                        self._thread.start()
                return connected
        raise ConnectionFailed(cause, self._servers)

    def receive(self, timeout: float | None = None) -> Event | None:
        """The next event in order; None if there is none within `timeout` seconds. Raises
        ClientClosed after `close`, ConnectionFailed once a server has refused this client for
        good."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._events or self._closed or self._failure is not None, timeout
            )
            if self._closed:
                raise ClientClosed
            if self._events:
                event = self._events.popleft()
                self._changed.notify_all()
                return event
            if self._failure is not None:
                raise self._failure
            return None

    def send(
        self, content: str, *, message_id: str | None = None, timeout: float | None = 30.0
    ) -> str:
        """Sends a message and blocks until all in-sync replicas have it; returns its id.

        Whatever may help is tried again with the same id until `timeout` seconds have passed
        (None: for ever), also at another server once the stream has moved there. Raises
        SendFailed, ConnectionFailed (no server in time), or ClientClosed.
        """
        message = _message(self.user, content, message_id)
        _deliver(message, _deadline(timeout), self._await_link, self._pause)
        return message.message_id

    def close(self) -> None:
        """Ends the stream and waits for the client's thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            link, call = self._link, self._call
        if call is not None:
            call.cancel()
        if self._thread.ident is not None:
            self._thread.join()
        if link is not None:
            link.close()

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self, server: str, *, again: bool) -> Connected:
        link = _Link(server)
        try:
            with self._changed:
                if self._closed:
                    raise ClientClosed
                self._call = call = link.open_stream(self.user)
            server_id = link.registered(call)
            with self._changed:
                if self._closed:  # close() has not seen this link
                    raise ClientClosed
                self._link = link
                self._changed.notify_all()
        except BaseException:
            link.close()
            raise
        return Connected(server, server_id, again)

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:
            # Whoever waits must learn that nothing will come, whatever went wrong here.
            _log.exception("the client's thread failed")
            with self._changed:
                self._failure = ConnectionFailed(f"internal error: {error}", self._servers)
                self._changed.notify_all()

    def _follow(self) -> None:
        """Reads one stream after the other until the client is closed or refused."""
        while True:
            opened_at = time.monotonic()
            error = self._read_stream()
            if self._closed:
                return
            if time.monotonic() - opened_at > STABLE_SECONDS:
                self._backoff.reset()
            if not self._reopen(error):
                return

    def _read_stream(self) -> Any:
        """Takes messages until the stream ends; returns what ended it."""
        try:
            for delivery in self._call:
                if not all(map(self._take, delivery.messages)):
                    break
        except grpc.RpcError as error:
            return error
        return self._call

    def _take(self, message: chat_pb2.Message) -> bool:
        if message.message_id:
            key = (message.id, message.message_id)
            if key in self._seen:
                return True
            self._seen[key] = None
            if len(self._seen) > REMEMBERED_IDS:
                self._seen.popitem(last=False)
        own = message.id == self.user
        return self._put(
            Received(message.id, message.content, _time(message), message.message_id, own)
        )

    def _put(self, event: Event) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) < BUFFERED_EVENTS or self._closed)
            self._events.append(event)
            self._changed.notify_all()
            return not self._closed

    def _reopen(self, error: Any) -> bool:
        """Announces the loss and connects again; returns False if there is no more use."""
        with self._changed:
            link, self._link = self._link, None
        assert link is not None  # the stream that was lost ran on it
        link.close()
        self._put(Lost(link.server, _cause(error)))
        while not self._is_final(error):
            if not self._pause(self._backoff.next(_asked_pause(error))):
                return False
            try:
                connected = self._open(next(self._next_server), again=True)
            except ConnectionFailed:
                error = self._call
            except ClientClosed:
                return False
            else:
                return self._put(connected)
        return False

    def _is_final(self, error: Any) -> bool:
        if error.code() not in _FINAL:
            return False
        with self._changed:
            self._failure = ConnectionFailed(_cause(error), self._servers)
            self._changed.notify_all()
        return True

    def _pause(self, seconds: float) -> bool:
        """Waits; returns False as soon as the client is closed."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._closed, seconds)

    def _await_link(self, seconds: float | None) -> _Link:
        with self._changed:
            self._changed.wait_for(
                lambda: self._link or self._closed or self._failure is not None, seconds
            )
            if self._closed:
                raise ClientClosed
            if self._failure is not None:
                raise self._failure
            if self._link is None:
                raise ConnectionFailed("no server answered in time", self._servers)
            return self._link


def send_once(
    user: str,
    content: str,
    servers: Sequence[str],
    *,
    message_id: str | None = None,
    timeout: float = 30.0,
) -> str:
    """Sends one message without a stream and blocks until it is confirmed; returns its id. Tries
    the servers in turn. Raises ConnectionFailed as soon as none of them is there, or SendFailed."""
    message = _message(user, content, message_id)
    links = [_Link(server) for server in servers]
    turn = cycle(links)
    refusals: list[str] = []

    def next_link(seconds: float | None) -> _Link:
        if len(refusals) >= len(links):
            raise ConnectionFailed(refusals[-1], tuple(servers))
        return next(turn)

    def pause(seconds: float) -> bool:
        return not threading.Event().wait(seconds)

    try:
        _deliver(message, _deadline(timeout), next_link, pause, on_refused=refusals.append)
    finally:
        for link in links:
            link.close()
    return message.message_id


def _deliver(
    message: chat_pb2.Message,
    deadline: float | None,
    next_link: Callable[[float | None], _Link],
    pause: Callable[[float], bool],
    on_refused: Callable[[str], None] = lambda cause: None,
) -> None:
    """Publishes until confirmed. `on_refused` is told when there was no server to talk to."""
    backoff = Backoff()
    while True:
        link = next_link(_left(deadline))
        left = _left(deadline)
        try:
            link.publish(message, SEND_SECONDS if left is None else min(SEND_SECONDS, left))
            return
        except grpc.RpcError as error:
            left = _left(deadline)
            seconds = backoff.next(_asked_pause(error))
            if error.code() in _FINAL or (left is not None and left <= seconds):
                raise SendFailed(_cause(error)) from error
            if not _server_spoke(error):
                on_refused(_cause(error))
        except ValueError:  # the channel was closed under the call: the stream has moved
            seconds = backoff.next()
        if not pause(seconds):
            raise ClientClosed


def _time(message: chat_pb2.Message) -> datetime:
    try:
        return message.timestamp.ToDatetime(tzinfo=UTC)
    except ValueError:  # a server's message may have any number
        return datetime.fromtimestamp(0, UTC)


def _message(user: str, content: str, message_id: str | None) -> chat_pb2.Message:
    try:
        rules.check_content("content", content)
    except InvalidRequest as error:
        raise SendFailed(str(error)) from error
    message = chat_pb2.Message(id=user, content=content, message_id=message_id or uuid.uuid4().hex)
    message.timestamp.FromDatetime(datetime.now(UTC))
    return message


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _asked_pause(error: Any) -> float:
    """Seconds that the server asked to wait."""
    for key, value in error.trailing_metadata() or ():
        if key == metadata.RETRY_AFTER and value.isdecimal():
            return int(value) / 1_000
    return 0.0


def _server_spoke(error: Any) -> bool:
    """Whether the status came from a server of ours, not from the way there."""
    keys = {key for key, _ in error.trailing_metadata() or ()}
    return error.code() in _FINAL or metadata.RETRY_AFTER in keys


def _cause(error: Any) -> str:
    """What went wrong, for people."""
    details = error.details() or ""
    if _server_spoke(error) or error.code() is not grpc.StatusCode.UNAVAILABLE:
        return details or str(error.code().name).lower().replace("_", " ")
    for text, words in _TRANSPORT_WORDS:
        if text in details:
            return words
    return "connection lost"


_TRANSPORT_WORDS = (
    ("Connection refused", "connection refused"),
    ("DNS resolution failed", "unknown host"),
    ("Domain name not found", "unknown host"),
    ("Network is unreachable", "network unreachable"),
    ("No route to host", "no route to host"),
    ("imed out", "no answer in time"),
)
