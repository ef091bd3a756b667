"""Publisher: a client's messages on their way through Chat.Publish, many at once, each until it is
confirmed."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc

from chatsvc.errors import ChatError, ClientClosed, SendFailed
from chatsvc.link import Backoff, Link, asked_pause, cause, is_final
from chatsvc.pb import chat_pb2

_log = logging.getLogger(__name__)

UNDER_WAY = 2_000
"""Messages that may wait for their outcomes."""
REQUEST_MESSAGES = 200
REQUEST_BYTES = 32 * 1024
"""How much goes into one request at most; a server takes 64 KiB."""
IDLE_SECONDS = 0.5
"""A stream on which nothing is under way for so long is ended: the server keeps a thread for it."""

_KNOWN = frozenset(
    {chat_pb2.Outcome.COMMITTED, chat_pb2.Outcome.DUPLICATE, chat_pb2.Outcome.INVALID}
)

OnOutcome = Callable[[str, ChatError | None], None]
"""Called once with a message's id and None when all in-sync replicas have it, SendFailed when it
was refused for good, ClientClosed when nobody waits for it any more."""


class _Post(NamedTuple):
    message: chat_pb2.Message
    on_outcome: OnOutcome


class Publisher:
    """Sends messages in the order posted, over one stream after the other.

    What is not confirmed when a stream is lost is sent again on the next one, with the same
    message_id, before what was posted later. `next_link` blocks until there is a server to talk to
    and raises ChatError when there will be none. `post` and `close` may be called from any thread;
    outcomes are told in the publisher's own.
    """

    def __init__(self, name: str, next_link: Callable[[], Link]) -> None:
        self._next_link = next_link
        self._backoff = Backoff()
        # Guards all that follows; notified whenever any of it changes.
        self._changed = threading.Condition()
        self._waiting: deque[_Post] = deque()
        self._sent: deque[_Post] = deque()
        self._again: list[_Post] = []
        self._call: Any = None
        self._call_over = False
        self._failure: ChatError | None = None
        self._started = False
        self._thread = threading.Thread(target=self._run, name=f"publish-{name}", daemon=True)

    def post(self, message: chat_pb2.Message, on_outcome: OnOutcome) -> None:
        """Queues a message. Blocks while UNDER_WAY messages wait for their outcomes. Raises what
        has ended the publisher."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way() < UNDER_WAY or self._failure)
            if self._failure is not None:
                raise self._failure
            self._waiting.append(_Post(message, on_outcome))
            self._changed.notify_all()
            if not self._started:
                self._started = True
                self._thread.start()

    def _under_way(self) -> int:
        return len(self._waiting) + len(self._sent) + len(self._again)

    def close(self) -> None:
        """Ends the stream and the thread. Idempotent. Not to be called by `on_outcome`."""
        self._fail(ClientClosed())
        if self._started:
            self._thread.join()

    def _fail(self, failure: ChatError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()
            call = self._call
        if call is not None:
            call.cancel()

    def _run(self) -> None:
        try:
            while self._await_work():
                self._publish(self._next_link())
        except ChatError as error:
            self._fail(error)
        except Exception as error:
            # Whoever waits must learn that nothing will come, whatever went wrong here.
            _log.exception("a publisher's thread failed")
            self._fail(SendFailed(f"internal error: {error}", maybe_written=True))
        self._give_up()

    def _await_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._failure)
            return self._failure is None

    def _publish(self, link: Link) -> None:
        """Sends what waits over one stream, until that ends; what is left waits again then."""
        with self._changed:
            self._call_over = False
        pause = None
        try:
            call = link.publish(self._requests())
            with self._changed:
                self._call = call
            if self._failure is not None:  # a close that came before has not seen the call
                call.cancel()
            for result in call:
                for outcome in result.outcomes:
                    self._settle(outcome)
        except grpc.RpcError as error:
            if is_final(error):
                # What is under way may have been written all the same.
                raise SendFailed(cause(error), maybe_written=True) from error
            pause = self._backoff.next(asked_pause(error))
        except ValueError:  # the channel was closed: the client has moved to another server
            pause = self._backoff.next()
        finally:
            unconfirmed = self._collect()
        if pause is None and unconfirmed:
            pause = self._backoff.next()
        if pause is not None:
            with self._changed:
                self._changed.wait_for(lambda: self._failure, pause)

    def _collect(self) -> bool:
        """A stream is over: what it did not confirm is first to be sent again. Returns whether
        there is such."""
        with self._changed:
            unconfirmed = [*self._again, *self._sent]
            self._waiting.extendleft(reversed(unconfirmed))
            self._again.clear()
            self._sent.clear()
            self._call = None
            self._call_over = True
            self._changed.notify_all()
            return bool(unconfirmed)

    def _requests(self) -> Iterator[chat_pb2.PublishRequest]:
        """What waits, in batches; run by gRPC in a thread of its own. Ends the stream when nothing
        has been under way for a while, or a message has to be sent again."""
        while batch := self._next_batch():
            yield chat_pb2.PublishRequest(messages=[post.message for post in batch])

    def _next_batch(self) -> list[_Post]:
        batch: list[_Post] = []
        size = 0
        with self._changed:
            while not self._call_over and (self._again or not self._waiting):
                if self._again and not self._sent:
                    return []
                if not self._changed.wait(IDLE_SECONDS) and not self._sent:
                    return []
            if self._call_over:
                return []
            while self._waiting and len(batch) < REQUEST_MESSAGES:
                size += self._waiting[0].message.ByteSize()
                if batch and size > REQUEST_BYTES:
                    break
                batch.append(self._waiting.popleft())
            self._sent.extend(batch)
        return batch

    def _settle(self, outcome: chat_pb2.Outcome) -> None:
        is_known = outcome.status in _KNOWN
        with self._changed:
            post = self._sent.popleft()
            if not is_known:
                self._again.append(post)
            self._changed.notify_all()
        if is_known:
            self._backoff.reset()
            invalid = outcome.status == chat_pb2.Outcome.INVALID
            self._tell(post, SendFailed(outcome.detail) if invalid else None)

    def _tell(self, post: _Post, error: ChatError | None) -> None:
        try:
            post.on_outcome(post.message.message_id, error)
        except Exception:
            _log.exception("a callback for an outcome failed")

    def _give_up(self) -> None:
        with self._changed:
            left = [*self._again, *self._sent, *self._waiting]
            self._again.clear()
            self._sent.clear()
            self._waiting.clear()
            failure = self._failure or ClientClosed()
            self._changed.notify_all()
        for post in left:
            self._tell(post, failure)
