"""Producer: writes records to Kafka and tells when all in-sync replicas have them."""

import heapq
import itertools
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as KafkaProducer
from confluent_kafka.admin import PartitionMetadata  # type: ignore[attr-defined]  # as in topics.py

from chatsvc import librdkafka, trace
from chatsvc.errors import (
    ChatError,
    MessageTooLarge,
    PublishFailed,
    ServerBusy,
    ServerStopping,
)
from chatsvc.model import Acked
from chatsvc.rounds import PAUSE_SECONDS, Round, Rounds

_log = logging.getLogger(__name__)

Done = Callable[[Acked | ChatError], None]
"""Called once with the outcome, in the producer's thread: it must not block and not raise."""

OnListing = Callable[[str, Iterable[int], Mapping[int, PartitionMetadata]], None]
"""Called with a topic, the ids of the brokers that are alive, none if nobody answered, and the
topic's partitions, none if they are unknown."""

# All others may follow an attempt that was written and whose answer was lost, also those that speak
# of a queue: a record that is tried again waits there too.
_NEVER_WRITTEN = frozenset(
    {
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)


MAX_RECORDS = 20_000
MAX_BYTES = 32 * 1024 * 1024
"""How much may wait for Kafka; more is refused."""
KEEP_SECONDS = 120.0
"""For so long a record is tried on whose outcome was told to be unknown."""
MAX_RECORD_BYTES = 1_000_000
"""How large a record may be; brokers take 1 MiB, with what the protocol adds."""


class _Pending:
    """A record on its way, and who waits for it."""

    __slots__ = ("_producer", "done", "key", "produced_at", "round", "topic", "trace_id", "value")

    def __init__(
        self,
        producer: "Producer",
        topic: str,
        key: bytes,
        value: bytes,
        done: Done,
        trace_id: str,
    ) -> None:
        self._producer = producer
        self.topic = topic
        self.key = key
        self.value = value
        self.trace_id = trace_id
        self.done: Done | None = done
        self.round: Round | None = None
        self.produced_at = time.monotonic()

    def take(self) -> Done | None:
        """Who waits; None from the second call on. Only the producer's thread calls it."""
        done, self.done = self.done, None
        return done

    def delivered(self, error: KafkaError | None, message: Message | None) -> None:
        """librdkafka's callback."""
        self._producer.settle(self, error, message)


class Producer:
    """An idempotent producer with acks=all and its poll thread.

    `publish` may be called from any thread. After `publish_timeout` seconds an outcome is told to
    be unknown; the record is tried for another `keep_seconds`. `observe_ack` gets the seconds from
    `publish` to each ack, `count_error` the name of each error, `on_listing` what
    `count_partitions` was told.
    """

    def __init__(
        self,
        brokers: tuple[str, ...],
        client_id: str,
        publish_timeout: float,
        *,
        keep_seconds: float = KEEP_SECONDS,
        observe_ack: Callable[[float], None] = lambda seconds: None,
        count_error: Callable[[str], None] = lambda name: None,
        on_statistics: librdkafka.OnStatistics | None = None,
        on_listing: OnListing = lambda topic, brokers, partitions: None,
    ) -> None:
        # The producer speaks for all clients of a server: they see the same brokers fail.
        errors = librdkafka.ErrorLog(logging.WARNING, self._on_fatal)
        self._settings = librdkafka.settings(brokers, client_id, errors)
        self._settings |= _settings(publish_timeout + keep_seconds)
        self._settings |= librdkafka.telling(on_statistics)
        self._on_listing = on_listing
        self._publish_timeout = publish_timeout
        self._observe_ack = observe_ack
        self._count_error = count_error
        self._client: KafkaProducer | None = None
        self._fatal = False
        self._closing = threading.Event()
        # Guards the records that wait for the next round, the rounds under way, how much is on its
        # way in all, and by when outcomes are due: all in the order of `publish`, as they have the
        # same time, and those that have less by themselves.
        self._lock = threading.Lock()
        self._waiting: list[_Pending] = []
        self._rounds = Rounds()
        self._records = 0
        self._bytes = 0
        # What librdkafka did not take; the producer's thread tells it.
        self._refused: deque[tuple[_Pending, KafkaError]] = deque()
        self._due: deque[_Pending] = deque()
        self._deadlines: list[tuple[float, int, _Pending]] = []
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)

    def start(self) -> None:
        """Creates the client and starts its thread. Does not wait for a broker."""
        self._client = KafkaProducer(self._settings)
        self._thread.start()

    def publish(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        done: Done,
        timeout: float | None = None,
        trace_id: str = "",
    ) -> None:
        """Queues a record. `done` is called with where it is, once all in-sync replicas have it,
        or with the error, after `timeout` seconds at the latest. A `trace_id` goes with it as a
        header.

        Does not block. Raises ServerBusy when too much is on its way, ServerStopping after `close`,
        or MessageTooLarge; then `done` is not called.
        """
        size = len(key) + len(value)
        if size > MAX_RECORD_BYTES:
            self._count_error("MSG_SIZE_TOO_LARGE")
            raise MessageTooLarge
        pending = _Pending(self, topic, key, value, done, trace_id)
        with self._lock:
            client = self._client
            if client is None or self._closing.is_set():
                raise ServerStopping
            full = self._records >= MAX_RECORDS or self._bytes + size > MAX_BYTES
            if not full:
                self._records += 1
                self._bytes += size
                self._waiting.append(pending)
                self._due.append(pending)
                if timeout is not None and timeout < self._publish_timeout:
                    entry = (pending.produced_at + timeout, next(self._numbers), pending)
                    heapq.heappush(self._deadlines, entry)
            batch = self._next_round()
        self._hand_over(client, batch)
        if full:
            self._count_error("_QUEUE_FULL")
            raise ServerBusy

    def _next_round(self) -> list[_Pending]:
        """What waits, as a new round, if it is time for one. Called under the lock."""
        now = time.monotonic()
        if not self._waiting or not self._rounds.may_begin(now):
            return []
        return self._begin_round(now)

    def _begin_round(self, now: float) -> list[_Pending]:
        batch, self._waiting = self._waiting, []
        begun = self._rounds.begin(now, len(batch))
        for pending in batch:
            pending.round = begun
        return batch

    def _hand_over(self, client: KafkaProducer, batch: list[_Pending]) -> None:
        """Gives a round to librdkafka. What it does not take has its outcome at once."""
        if not batch:
            return
        by_topic = defaultdict(list)
        for pending in batch:
            by_topic[pending.topic].append(pending)
        for topic, records in by_topic.items():
            if any(each.trace_id for each in records):
                self._produce_apart(client, topic, records)
            else:
                self._produce(client, topic, records)
        round_ = batch[0].round
        assert round_ is not None  # _begin_round() has set it
        round_.handed_over = True

    def _produce_apart(self, client: KafkaProducer, topic: str, records: list[_Pending]) -> None:
        """As `_produce`, where some have headers, which the call for many does not take. All calls
        append to the same queues of partitions, so the order is that of the records."""
        for has_trace, run in itertools.groupby(records, lambda each: bool(each.trace_id)):
            if not has_trace:
                self._produce(client, topic, list(run))
                continue
            for each in run:
                self._produce_traced(client, topic, each)

    def _produce_traced(self, client: KafkaProducer, topic: str, pending: _Pending) -> None:
        try:
            client.produce(
                topic,
                pending.value,
                pending.key,
                on_delivery=pending.delivered,
                headers=trace.headers(pending.trace_id),
            )
        except KafkaException as error:
            self._refused.append((pending, error.args[0]))
        except BufferError:
            self._refused.append((pending, KafkaError(KafkaError._QUEUE_FULL)))

    def _produce(self, client: KafkaProducer, topic: str, records: list[_Pending]) -> None:
        messages: list[dict[str, Any]] = [
            {"value": each.value, "key": each.key, "callback": each.delivered} for each in records
        ]
        try:
            client.produce_batch(topic, messages)
        except KafkaException as error:
            self._refused.extend((each, error.args[0]) for each in records)
            return
        for pending, message in zip(records, messages, strict=True):
            if "_error" in message:  # librdkafka notes there what it did not take
                self._refused.append((pending, message["_error"]))

    def count_partitions(self, topic: str, timeout: float) -> int:
        """Asks Kafka how many partitions a topic has; 0 if that cannot be told within `timeout`
        seconds. Blocks; thread-safe."""
        client = self._client
        if client is None:
            return 0
        try:
            metadata = client.list_topics(topic, timeout=timeout)
        except KafkaException as error:
            _log.debug("Partitions of %s could not be listed: %s", topic, error)
            self._on_listing(topic, (), {})
            return 0
        listed = metadata.topics[topic]
        partitions = listed.partitions if listed.error is None else {}
        self._on_listing(topic, metadata.brokers, partitions)
        return len(partitions)

    def __len__(self) -> int:
        """Records on their way."""
        return self._records

    def give_up(self) -> None:
        """Refuses all records on their way; their callbacks run soon, in the producer's thread."""
        self._refuse_waiting()
        client = self._client
        if client is not None:
            client.purge()

    def _refuse_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        error = KafkaError(KafkaError._PURGE_QUEUE)
        self._refused.extend((pending, error) for pending in waiting)

    def close(self, timeout: float) -> int:
        """Waits at most `timeout` seconds for what is on its way, refuses the rest, and ends the
        thread. Returns how many were refused. Idempotent; also before `start`."""
        if self._client is None:
            return 0
        with self._lock:
            self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        client, self._client = self._client, None
        with self._lock:
            batch = self._begin_round(time.monotonic()) if self._waiting else []
        self._hand_over(client, batch)
        left = client.flush(timeout)
        if left:
            client.purge()
            client.flush(1)
        self._settle_refused()
        return left

    def _run(self) -> None:
        while not self._closing.is_set():
            client = self._client
            assert client is not None  # close() joins this thread before it lets go of the client
            try:
                # Below 200 ms the wait is one call of librdkafka; longer ones are sliced.
                client.poll(PAUSE_SECONDS if self._waiting else 0.1)
                self._settle_refused()
                with self._lock:
                    batch = self._next_round()
                self._hand_over(client, batch)
                self._refuse_overdue(time.monotonic())
            except Exception:
                # A bug in one callback must not take the answers of all others.
                _log.exception("a producer's callback failed")
            if self._fatal:
                self._replace_client(client)

    def _settle_refused(self) -> None:
        while self._refused:
            pending, error = self._refused.popleft()
            self.settle(pending, error, None)

    def settle(self, pending: _Pending, error: KafkaError | None, message: Message | None) -> None:
        """What became of a record. Called once for each, in the producer's thread."""
        with self._lock:
            self._records -= 1
            self._bytes -= len(pending.key) + len(pending.value)
            pending.key = pending.value = b""  # it may stay in `_due` for a while
            if pending.round is not None:
                self._rounds.settle(pending.round)
        done = pending.take()
        if error is not None or message is None:
            assert error is not None  # librdkafka gives one of the two
            failure = self._failure(error)
            if done is not None:
                done(failure)
            return
        self._observe_ack(time.monotonic() - pending.produced_at)
        acked = Acked(message.partition() or 0, message.offset() or 0, _appended_ms(message))
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "Message sent to Kafka - Topic: %s, Partition: %d, Offset: %d",
                message.topic(),
                acked.partition,
                acked.offset,
                extra=trace.extra(pending.trace_id),
            )
        if done is not None:
            done(acked)

    def _refuse_overdue(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            with self._lock:
                _, _, pending = heapq.heappop(self._deadlines)
            self._tell_overdue(pending)
        long_ago = now - self._publish_timeout
        while self._due and (self._due[0].done is None or self._due[0].produced_at <= long_ago):
            self._tell_overdue(self._due.popleft())

    def _tell_overdue(self, pending: _Pending) -> None:
        """The record stays where it is: what was published after it may not be written before it,
        and a sender that sends it again is found out by its id."""
        done = pending.take()
        if done is not None:
            self._count_error("deadline")
            done(PublishFailed("not confirmed in time", maybe_written=True))

    def _failure(self, error: KafkaError) -> ChatError:
        self._count_error(error.name())
        if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
            return MessageTooLarge()
        return PublishFailed(
            librdkafka.cause(error), maybe_written=error.code() not in _NEVER_WRITTEN
        )

    def _on_fatal(self) -> None:
        # Runs in the poll thread; the client must not be replaced inside its own callback.
        self._fatal = True

    def _replace_client(self, broken: KafkaProducer) -> None:
        """After a fatal error librdkafka's client refuses all; a new one goes on."""
        _log.error("Kafka producer failed for good and is replaced")
        self._count_error("fatal")
        self._fatal = False
        with self._lock:
            self._client = KafkaProducer(self._settings)
        broken.purge()
        broken.flush(1)


def _settings(delivery_timeout: float) -> dict[str, Any]:
    return {
        "enable.idempotence": True,
        "acks": "all",
        "delivery.timeout.ms": int(delivery_timeout * 1_000),
        "request.timeout.ms": 4_000,
        # As long as a round may take to be handed over, so that it is one request a partition.
        "linger.ms": 1,
        "compression.type": "lz4",
        # Java's hash, so that any Kafka tool puts a key into the same partition.
        "partitioner": "murmur2_random",
        # Never reached: MAX_RECORDS and MAX_BYTES are.
        "queue.buffering.max.messages": 2 * MAX_RECORDS,
        "queue.buffering.max.kbytes": 2 * MAX_BYTES // 1024,
        "message.max.bytes": MAX_RECORD_BYTES + 1_024,
        "allow.auto.create.topics": False,
        "topic.metadata.refresh.interval.ms": 10_000,
    }


def _appended_ms(message: Message) -> int:
    kind, milliseconds = message.timestamp()
    # librdkafka's own mock broker reports an append time of 1,234 ms; no clock is that early.
    return milliseconds if kind and milliseconds > 1_000_000_000_000 else -1
