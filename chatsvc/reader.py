"""LogReader: fetches chunks of the log from Kafka for replays, in a few threads."""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, Message, TopicPartition

from chatsvc import librdkafka
from chatsvc.consumer import record
from chatsvc.entries import Entry, entry
from chatsvc.errors import InvalidRecord
from chatsvc.replay import Chunk, Need

_log = logging.getLogger(__name__)

CHUNK_RECORDS = 512
"""How many offsets a chunk has; chunks begin at multiples of it, so that readers share them."""
KEPT_CHUNKS = 32
IDLE_SECONDS = 1.0
"""After so long without a request nothing is read ahead any more."""
READERS = 2
PATIENCE_SECONDS = 2.0
"""After so long without a record a fetch begins anew."""

Done = Callable[[Chunk | None], None]
"""Called once with what was fetched, in a reader's thread or that of `close`; None: there is
nobody to fetch any more. It must not block and not raise."""


class LogReader:
    """Reads a topic for whoever asks, oldest request first. One reader asks for one chunk at a
    time, so all of them get on alike. Thread-safe."""

    def __init__(self, brokers: tuple[str, ...], client_id: str, topic: str) -> None:
        self._topic = topic
        errors = librdkafka.ErrorLog(logging.DEBUG)
        self._settings = librdkafka.settings(brokers, client_id, errors) | _settings(topic)
        # As long as there are connections that wait: each has one request here at most.
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        # Guards what follows.
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Chunk] = OrderedDict()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"log-reader-{number}", daemon=True)
            for number in range(READERS)
        ]

    def start(self) -> None:
        """Starts the threads. Does not wait for a broker."""
        for thread in self._threads:
            thread.start()

    def fetch(self, need: Need, done: Done) -> None:
        """Has the chunk fetched that `need.start` is in. Does not block."""
        with self._lock:
            if not self._closing:
                self._requests.put(_Request(need, done))
                return
        done(None)

    def close(self) -> None:
        """Answers all who wait and ends the threads. Idempotent."""
        with self._lock:
            closing, self._closing = self._closing, True
        if closing:
            return
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self) -> None:
        client = _Client(self._settings, self._topic)
        try:
            while (request := self._next_request(client)) is not None:
                request.done(self._chunk(client, request.need))
        finally:
            client.close()

    def _next_request(self, client: "_Client") -> "_Request | None":
        try:
            return self._requests.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            client.rest()
            return self._requests.get()

    def _chunk(self, client: "_Client", need: Need) -> Chunk | None:
        """What is needed, however long it takes; None if the reader closes before."""
        key = (need.partition, need.start // CHUNK_RECORDS)
        while not self._closing:
            with self._lock:
                chunk = self._kept.get(key)
            if chunk is not None and need.start < chunk.end:
                return chunk
            try:
                chunk = client.fetch(need)
            except Exception:
                # Whatever one chunk brought, the next must be fetched all the same.
                _log.exception("fetching from topic %s failed", self._topic)
            if chunk is not None:
                self._keep(key, chunk)
                return chunk
        return None

    def _keep(self, key: tuple[int, int], chunk: Chunk) -> None:
        with self._lock:
            self._kept[key] = chunk
            self._kept.move_to_end(key)
            if len(self._kept) > KEPT_CHUNKS:
                self._kept.popitem(last=False)


class _Request(NamedTuple):
    need: Need
    done: Done


class _Client:
    """One thread's consumer, which is made when it is needed first. It goes on reading where it
    was if what is asked for follows, and else begins anew."""

    def __init__(self, settings: dict[str, Any], topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._client: KafkaConsumer | None = None
        self._next: tuple[int, int] | None = None

    def fetch(self, need: Need) -> Chunk | None:
        """A chunk from the multiple of CHUNK_RECORDS before `need.start` on, not further than
        `need.end`; None if Kafka does not answer within PATIENCE_SECONDS."""
        if self._client is None:
            self._client = KafkaConsumer(self._settings)
        client = self._client
        partition = need.partition
        start = need.start - need.start % CHUNK_RECORDS
        limit = min(need.end, start + CHUNK_RECORDS)
        if self._next != (partition, start):
            self._assign(client, partition, start)
        self._next = None
        position = start
        entries: list[Entry] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while position < limit:
            message = client.poll(0.1)
            if message is None:
                if time.monotonic() > deadline:
                    return None
                continue
            for each in (message, *client.consume(limit - position - 1, 0)):
                error = each.error()
                if error is None:
                    position = (each.offset() or 0) + 1
                    if position <= limit:
                        entries += _entries(each)
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                    start = position = self._begin(client, partition, start)
                elif error.code() == KafkaError._PARTITION_EOF:
                    # The end when it was noted, which may be long ago: more may have come.
                    position = max(position, each.offset() or 0)
        if position == limit:  # else a record behind the limit was read, and is needed again
            self._next = (partition, limit)
        return Chunk(partition, start, max(start, limit), entries)

    def _assign(self, client: KafkaConsumer, partition: int, offset: int) -> None:
        client.assign([TopicPartition(self._topic, partition, offset)])

    def _begin(self, client: KafkaConsumer, partition: int, start: int) -> int:
        """Reads from the first record that there is, since `start` is not in the log. Returns its
        offset."""
        low, high = client.get_watermark_offsets(
            TopicPartition(self._topic, partition), timeout=PATIENCE_SECONDS
        )
        begin = min(max(start, low), high)
        self._assign(client, partition, begin)
        return begin

    def rest(self) -> None:
        """Lets go of what is read ahead: nothing has been asked for a while."""
        self._next = None
        if self._client is not None:
            self._client.unassign()

    def close(self) -> None:
        """Closes the consumer, if there is one."""
        if self._client is not None:
            self._client.close()


def _entries(message: Message) -> list[Entry]:
    """The entry in a message of librdkafka's, if it has one."""
    try:
        return [entry(record(message), int(time.time() * 1_000))]
    except InvalidRecord:
        return []


def _settings(topic: str) -> dict[str, object]:
    return {
        **librdkafka.reading(f"chatsvc-replay-{topic}"),
        "enable.partition.eof": True,
        # What is read ahead for a reader that may not come again.
        "queued.min.messages": 4 * CHUNK_RECORDS,
        "queued.max.messages.kbytes": 2 * 1024,
    }
