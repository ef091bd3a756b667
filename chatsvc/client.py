"""ChatClient: a user's connection to the chat, for the command line, tests and programs.

It keeps one stream to one of its servers, goes on at another when that one is lost, and sends
messages until they are confirmed, always with the same message_id.
"""

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from itertools import cycle
from typing import Any, NamedTuple

import grpc

from chatsvc import rules, trace
from chatsvc.errors import ChatError, ClientClosed, ConnectionFailed, InvalidRequest, SendFailed
from chatsvc.link import Backoff, Link, asked_pause, cause, is_final, server_spoke
from chatsvc.model import LOBBY
from chatsvc.pb import chat_pb2
from chatsvc.publisher import OnOutcome, Publisher
from chatsvc.subscription import GOING_AWAY, Subscription

_log = logging.getLogger(__name__)

BUFFERED_EVENTS = 1_000
"""Events that wait for `receive`. When there are so many the stream is not read on, and once the
server's outbox is full too the server closes it as slow."""
REMEMBERED_IDS = 10_000
"""The newest messages, of which a second copy is not given out."""
SEND_SECONDS = 25.0
"""How long one attempt to send may take: longer than the server waits for Kafka."""
STABLE_SECONDS = 10.0
"""A stream that held so long resets the back-off."""


class Received(NamedTuple):
    """A message. `at` is when Kafka appended it; `own` whether its sender has this user's id;
    `room` is empty in the lobby; `missed` whether it came while there was no stream, `earlier`
    whether before there was one at all."""

    user: str
    content: str
    at: datetime
    message_id: str
    own: bool
    room: str = LOBBY
    missed: bool = False
    earlier: bool = False


class Connected(NamedTuple):
    """The server has registered the stream; `again` after a loss."""

    server: str
    server_id: str
    again: bool


class Lost(NamedTuple):
    """The stream is gone. The client looks for a server until it has one, and says Connected."""

    server: str
    cause: str


class Gone(NamedTuple):
    """What came meanwhile is partly lost: Kafka keeps it no longer. At most `records` messages, of
    all rooms; None if that is unknown, since the topic is another one."""

    records: int | None


Event = Received | Connected | Lost | Gone
OnEvents = Callable[[Sequence[Event]], None]


class ChatClient:
    """One user's stream of the messages of `rooms` (none: the lobby) at one of `servers`
    (`host:port` each), and the way to send to any room.

    `connect` is called once, first. All else may be called from any thread; `receive` from one at
    a time, and it has to be: a client whose events nobody takes does not notice the loss of its
    stream. To send only, use `send_once`.

    It begins with the newest `last` messages of the rooms, or with what came from the time `since`
    on, or behind a `cursor` of a stream or page of history; else with what is sent from now on.

    With `on_events`, `receive` is not used: that is called with one or more events, in order, in
    the client's own thread. It may `post`. It must not call `close`, nor block for long: nothing is
    read meanwhile, nor a lost stream replaced. If it raises, the client has failed, as after a
    refusal for good, and whatever sends is told so.

    With `remembered_ids` 0 every copy of a message is given out.
    """

    def __init__(
        self,
        user: str,
        servers: Sequence[str],
        rooms: Collection[str] = (),
        *,
        last: int = 0,
        since: datetime | None = None,
        cursor: bytes = b"",
        on_events: OnEvents | None = None,
        remembered_ids: int = REMEMBERED_IDS,
    ) -> None:
        if not servers:
            raise ValueError("at least one server is needed")
        self.user = user
        self._rooms = tuple(rooms)
        self._servers = tuple(servers)
        self._on_events = on_events
        self._remembered_ids = remembered_ids
        self._next_server = cycle(self._servers)
        # Where to begin, and where to go on; the client's thread alone uses them once that runs.
        self._first = _beginning(last, since)
        self._cursor = cursor
        self._missed = False
        self._backoff = Backoff()
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()
        # Guards all that follows; notified whenever any of it changes.
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._link: Link | None = None
        self._subscription: Subscription | None = None
        self._failure: ChatError | None = None
        self._closed = False
        self._publisher = Publisher(user, lambda: self._await_link(None))
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
        good, RuntimeError if events go to `on_events`."""
        events = self._take_events(timeout, 1)
        return events[0] if events else None

    def receive_all(self, timeout: float | None = None) -> list[Event]:
        """As `receive`, but returns all events that wait, at least one unless `timeout` seconds
        have passed."""
        return self._take_events(timeout, BUFFERED_EVENTS)

    def _take_events(self, timeout: float | None, most: int) -> list[Event]:
        if self._on_events is not None:
            raise RuntimeError("events go to on_events")
        with self._changed:
            self._changed.wait_for(
                lambda: self._events or self._closed or self._failure is not None, timeout
            )
            if self._closed:
                raise ClientClosed
            if self._failure is not None and not self._events:
                raise self._failure
            events = [self._events.popleft() for _ in range(min(most, len(self._events)))]
            self._changed.notify_all()
            return events

    def send(
        self,
        content: str,
        *,
        room: str = LOBBY,
        message_id: str | None = None,
        timeout: float | None = 30.0,
        trace_id: str = "",
    ) -> str:
        """Sends a message and blocks until all in-sync replicas have it; returns its id. By the
        `trace_id` the message is found in the debug logs of all servers, and in Kafka.

        Whatever may help is tried again with the same id until `timeout` seconds have passed
        (None: for ever), also at another server once the stream has moved there. Raises
        SendFailed, ConnectionFailed (no server in time), or ClientClosed.
        """
        message = _message(self.user, content, room, message_id)
        if trace_id and not trace.is_valid(trace_id):
            raise SendFailed("trace_id: must be 1 to 64 letters, digits, dots, _ and -")
        _deliver(message, _deadline(timeout), self._await_link, self._pause, trace_id=trace_id)
        return message.message_id

    def post(
        self,
        content: str,
        *,
        room: str = LOBBY,
        message_id: str | None = None,
        on_outcome: OnOutcome = lambda message_id, error: None,
    ) -> str:
        """Sends a message behind those posted before and returns its id without waiting for its
        confirmation: the way to send many. Blocks while 2,000 of this client's messages are on
        their way. Each is sent until it is confirmed or the client is closed, as by `send`; then
        `on_outcome` is called, in a thread of the client's, with the id and None or the error. It
        must not block for long. Raises SendFailed, ConnectionFailed or ClientClosed."""
        message = _message(self.user, content, room, message_id)
        self._publisher.post(message, on_outcome)
        return message.message_id

    def close(self) -> None:
        """Ends the stream and waits for the client's thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            link, subscription = self._link, self._subscription
        if subscription is not None:
            subscription.cancel()
        self._publisher.close()
        if self._thread.ident is not None:
            self._thread.join()
        if link is not None:
            link.close()

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self, server: str, *, again: bool) -> Connected:
        link = Link(server)
        try:
            with self._changed:
                if self._closed:
                    raise ClientClosed
                self._subscription = subscription = Subscription(link, self._request())
            registration = link.registered(subscription.call)
            subscription.begin(registration.heartbeat_seconds)
            with self._changed:
                if self._closed:  # close() has not seen this link
                    raise ClientClosed
                self._link = link
                self._changed.notify_all()
            self._cursor = registration.cursor or self._cursor
        except BaseException:
            link.close()
            raise
        return Connected(server, registration.server_id, again)

    def _request(self) -> chat_pb2.SubscribeRequest:
        request = chat_pb2.SubscribeRequest(
            user=chat_pb2.User(id=self.user, name=self.user), rooms=self._rooms, cursor=self._cursor
        )
        if not self._cursor:
            request.MergeFrom(self._first)
        return request

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
        subscription = self._subscription
        assert subscription is not None  # it was opened
        try:
            earlier = True
            for delivery in subscription.call:
                subscription.hear(delivery)
                if not self._put(list(self._events_of(delivery, earlier))):
                    break
                if delivery.cursor:
                    # Only now: a message that was not given out has to come again.
                    self._cursor = delivery.cursor
                earlier = earlier and not delivery.caught_up
                subscription.listen()
        except grpc.RpcError as error:
            return error
        return subscription.call

    def _events_of(self, delivery: chat_pb2.Delivery, earlier: bool) -> Iterator[Event]:
        """`earlier`: the server has not said yet that what comes is new."""
        if delivery.gaps:
            yield Gone(sum(gap.end - gap.start for gap in delivery.gaps))
        for message in delivery.messages:
            received = self._received(message)
            if received is not None:
                yield received._replace(
                    missed=earlier and self._missed, earlier=earlier and not self._missed
                )

    def _received(self, message: chat_pb2.Message) -> Received | None:
        """What to give out of a message; None of one that was given out before."""
        user, message_id = message.id, message.message_id
        if message_id:
            key = (user, message_id)
            if key in self._seen:
                return None
            self._seen[key] = None
            if len(self._seen) > self._remembered_ids:
                self._seen.popitem(last=False)
        own = user == self.user
        return Received(user, message.content, time_of(message), message_id, own, message.room)

    def _put(self, events: Sequence[Event]) -> bool:
        """Gives out events, as many as fit at once; returns whether somebody may want them."""
        if self._on_events is not None:
            if events and not self._closed:
                self._on_events(events)
            return not self._closed
        given = 0
        with self._changed:
            while given < len(events) and not self._closed:
                self._changed.wait_for(lambda: len(self._events) < BUFFERED_EVENTS or self._closed)
                fitting = BUFFERED_EVENTS - len(self._events)
                self._events.extend(events[given : given + fitting])
                given += fitting
                self._changed.notify_all()
            return not self._closed

    def _reopen(self, error: Any) -> bool:
        """Announces the loss and connects again; returns False if there is no more use."""
        with self._changed:
            link, self._link = self._link, None
        assert link is not None  # the stream that was lost ran on it
        assert self._subscription is not None  # as above
        ended_for = self._subscription.ended_for
        link.close()
        self._put([Lost(link.server, ended_for or cause(error, link.server))])
        gone: list[Event] = []
        self._missed = True
        # A server that goes away has given this client its own moment to come to another one.
        at_once = ended_for == GOING_AWAY
        while self._cursor_refused(error, gone) or not self._is_final(error):
            if not (at_once or self._pause(self._backoff.next(asked_pause(error)))):
                return False
            at_once = False
            try:
                connected = self._open(next(self._next_server), again=True)
            except ConnectionFailed:
                error = self._subscription.call
            except ClientClosed:
                return False
            else:
                return self._put([connected, *gone])
        return False

    def _cursor_refused(self, error: Any, gone: list[Event]) -> bool:
        """Whether it may be for the cursor that a server refused this client: of a topic that was
        made anew it knows nothing. Then it goes on without, which is an event."""
        if not self._cursor or error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            return False
        self._cursor = b""
        self._first = chat_pb2.SubscribeRequest()
        gone.append(Gone(None))
        return True

    def _is_final(self, error: Any) -> bool:
        if not is_final(error):
            return False
        with self._changed:
            self._failure = ConnectionFailed(cause(error), self._servers)
            self._changed.notify_all()
        return True

    def _pause(self, seconds: float) -> bool:
        """Waits; returns False as soon as the client is closed."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._closed, seconds)

    def _await_link(self, seconds: float | None) -> Link:
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
    room: str = LOBBY,
    message_id: str | None = None,
    timeout: float = 30.0,
) -> str:
    """Sends one message without a stream and blocks until it is confirmed; returns its id. Tries
    the servers in turn. Raises ConnectionFailed as soon as none of them is there, or SendFailed."""
    message = _message(user, content, room, message_id)
    links = [Link(server) for server in servers]
    turn = cycle(links)
    refusals: list[str] = []

    def next_link(seconds: float | None) -> Link:
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
    next_link: Callable[[float | None], Link],
    pause: Callable[[float], bool],
    on_refused: Callable[[str], None] = lambda cause: None,
    trace_id: str = "",
) -> None:
    """Publishes until confirmed. `on_refused` is told when there was no server to talk to."""
    backoff = Backoff()
    told = ""
    while True:
        link = next_link(_left(deadline))
        left = _left(deadline)
        try:
            patience = SEND_SECONDS if left is None else min(SEND_SECONDS, left)
            link.send(message, patience, trace_id)
            return
        except grpc.RpcError as error:
            left = _left(deadline)
            seconds = backoff.next(asked_pause(error))
            text = cause(error, link.server)
            # That the time is over says less than what a server has answered before.
            is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if is_final(error) or (left is not None and left <= seconds):
                text = told if is_late and told else text
                raise SendFailed(text, maybe_written=not is_final(error)) from error
            if server_spoke(error):
                told = text
            else:
                on_refused(text)
        except ValueError:  # the channel was closed under the call: the stream has moved
            seconds = backoff.next()
        if not pause(seconds):
            raise ClientClosed


def _beginning(last: int, since: datetime | None) -> chat_pb2.SubscribeRequest:
    """The fields of a request that say where to begin."""
    request = chat_pb2.SubscribeRequest(last=last)
    if since is not None:
        request.since.FromDatetime(since)
    return request


def time_of(message: chat_pb2.Message) -> datetime:
    """When Kafka appended a message."""
    try:
        return message.timestamp.ToDatetime(tzinfo=UTC)
    except ValueError:  # a server's message may have any number
        return datetime.fromtimestamp(0, UTC)


def _message(user: str, content: str, room: str, message_id: str | None) -> chat_pb2.Message:
    try:
        rules.check_content("content", content)
        rules.check_room("room", room)
        rules.check_message_id("message_id", message_id or "")
    except InvalidRequest as error:
        raise SendFailed(str(error)) from error
    message = chat_pb2.Message(
        id=user, content=content, room=room, message_id=message_id or secrets.token_hex(16)
    )
    message.timestamp.FromDatetime(datetime.now(UTC))
    return message


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
