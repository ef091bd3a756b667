"""LogReader: fetches chunks of the log from Kafka for replays and history, in a few threads."""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from confluent_kafka import KafkaException

from chatsvc import librdkafka
from chatsvc.duplicates import WINDOW_MS, Duplicates, Window
from chatsvc.duplicates import key as key_of
from chatsvc.entries import entry
from chatsvc.errors import InvalidRecord
from chatsvc.logclient import LogClient
from chatsvc.model import ChatMessage, Record
from chatsvc.records import decode_message
from chatsvc.replay import Chunk, Need

_log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK_RECORDS = 512
"""How many offsets a chunk has; chunks begin at multiples of it, so that readers share them."""
KEPT_CHUNKS = 32
KEPT_WINDOWS = 2
"""Ids before a chunk of the old log, for whoever goes on there: some megabytes each."""
LOOK_BACK_RECORDS = 4_096
"""How many are read at once of what is before a chunk."""
IDLE_SECONDS = 1.0
"""After so long without a request nothing is read ahead any more."""
RETRY_SECONDS = 0.5
READERS = 2

Done = Callable[[Chunk | None], None]
"""Called once with what was fetched, in a reader's thread or that of `close`; None: there is
nobody to fetch any more. It must not block and not raise."""


class LogReader:
    """Reads a topic for whoever asks, oldest request of a partition first, without the duplicates.
    Who reads asks for one chunk at a time, so all of them get on alike. Thread-safe."""

    def __init__(
        self, brokers: tuple[str, ...], client_id: str, topic: str, duplicates: Duplicates
    ) -> None:
        self._topic = topic
        self._duplicates = duplicates
        self._new_client = partial(LogClient, brokers, client_id, topic, 4 * CHUNK_RECORDS)
        # One for each thread, so that a partition is read on by the one that has read it before. As
        # long as there are connections and calls that wait: each has one request here at most.
        self._requests: list[queue.SimpleQueue[_Request[Any] | None]] = [
            queue.SimpleQueue() for _ in range(READERS)
        ]
        # Guards what follows.
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Chunk] = OrderedDict()
        # By partition and offset, the ids of what is before it.
        self._windows: OrderedDict[tuple[int, int], Window] = OrderedDict()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run, args=(requests,), name=f"log-reader-{number}", daemon=True
            )
            for number, requests in enumerate(self._requests)
        ]

    def start(self) -> None:
        """Starts the threads. Does not wait for a broker."""
        for thread in self._threads:
            thread.start()

    def fetch(self, need: Need, done: Done) -> None:
        """Has the chunk fetched that `need.start` is in. Does not block."""
        self._ask(need.partition, _Request(partial(self._chunk, need), done))

    def locate(
        self,
        positions: Mapping[int, int],
        time_ms: int,
        done: Callable[[Mapping[int, int] | None], None],
    ) -> None:
        """Has looked up, of each partition, the first record from a time on, in milliseconds of
        Unix time; `positions` are for where there is none. Does not block; `done` is as for
        `fetch`."""
        self._ask(0, _Request(lambda client: client.offsets_at(dict(positions), time_ms), done))

    def _ask(self, partition: int, request: "_Request[T]") -> None:
        with self._lock:
            if not self._closing.is_set():
                self._requests[partition % READERS].put(request)
                return
        request.done(None)

    def close(self) -> None:
        """Answers all who wait and ends the threads. Idempotent."""
        with self._lock:
            closing = self._closing.is_set()
            self._closing.set()
        if closing:
            return
        for requests in self._requests:
            requests.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, requests: "_Requests") -> None:
        client = self._new_client()
        try:
            while (request := _next_of(requests, client)) is not None:
                request.done(self._answer(client, request))
        finally:
            client.close()

    def _answer(self, client: LogClient, request: "_Request[T]") -> T | None:
        """What was asked for, however long it takes; None if the reader closes before."""
        while not self._closing.is_set():
            try:
                found = request.work(client)
            except KafkaException as error:
                _log.debug("Topic %s: %s", self._topic, librdkafka.cause(error.args[0]))
                self._closing.wait(RETRY_SECONDS)
            except Exception:
                # Whatever one request brought, the next must be answered all the same.
                _log.exception("fetching from topic %s failed", self._topic)
                self._closing.wait(RETRY_SECONDS)
            else:
                if found is not None:
                    return found
        return None

    def _chunk(self, need: Need, client: LogClient) -> Chunk | None:
        """From the multiple of CHUNK_RECORDS before `need.start` on, not further than `need.end`;
        None if Kafka does not answer."""
        number = need.start // CHUNK_RECORDS
        key = (need.partition, number)
        start = number * CHUNK_RECORDS
        end = min(need.end, start + CHUNK_RECORDS)
        with self._lock:
            chunk = self._kept.get(key)
        if chunk is not None and chunk.end >= (end if need.whole else need.start + 1):
            return chunk
        chunk = self._fetch(client, need.partition, start, end)
        if chunk is not None:
            self._keep(key, chunk)
        return chunk

    def _keep(self, key: tuple[int, int], chunk: Chunk) -> None:
        with self._lock:
            self._kept[key] = chunk
            self._kept.move_to_end(key)
            if len(self._kept) > KEPT_CHUNKS:
                self._kept.popitem(last=False)

    def _fetch(self, client: LogClient, partition: int, start: int, end: int) -> Chunk | None:
        stretch = client.read(partition, start, end)
        if stretch is None:
            return None
        found = _messages(stretch.records)
        repeated = self._duplicates.between(partition, start, end)
        if repeated is None:
            window = self._window(client, partition, start, found)
            if window is None:
                return None
            repeated = tuple(_duplicates(window, found))
            self._learn(partition, start, end, repeated, window)
        now_ms = int(time.time() * 1_000)
        entries = [
            entry(record, message, now_ms)
            for record, message in found
            if record.offset not in repeated
        ]
        return Chunk(partition, stretch.start, stretch.end, entries)

    def _window(
        self, client: LogClient, partition: int, start: int, found: "list[_Found]"
    ) -> Window | None:
        """The ids of what is before `start`; None if Kafka does not answer. What `found` has is
        where it begins."""
        with self._lock:
            window = self._windows.pop((partition, start), None)
        if window is None and found:
            window = self._look_back(client, partition, start, found[0][0].appended_ms)
        elif window is None:
            window = self._duplicates.new_window()  # nothing to decide on
        return window

    def _look_back(
        self, client: LogClient, partition: int, start: int, appended_ms: int
    ) -> Window | None:
        window = self._duplicates.new_window()
        since = client.offsets_at({partition: start}, max(0, appended_ms - WINDOW_MS))[partition]
        first, _ = client.bounds(partition)
        begin = min(since, start - window.min_records)
        position = max(begin, start - window.max_records, first)
        while position < start and not self._closing.is_set():
            stretch = client.read(partition, position, min(start, position + LOOK_BACK_RECORDS))
            if stretch is None:
                return None
            _duplicates(window, _messages(stretch.records))
            position = stretch.end
        return window

    def _learn(
        self, partition: int, start: int, end: int, repeated: tuple[int, ...], window: Window
    ) -> None:
        if end - start == CHUNK_RECORDS:
            self._duplicates.learn(partition, start, end, repeated)
            with self._lock:
                self._windows[partition, end] = window
                if len(self._windows) > KEPT_WINDOWS:
                    self._windows.popitem(last=False)


_Found = tuple[Record, ChatMessage]


class _Request(NamedTuple, Generic[T]):
    """What a reader's thread does with its client, and who is told what came of it. None: try
    again."""

    work: Callable[[LogClient], T | None]
    done: Callable[[T | None], None]


_Requests = queue.SimpleQueue[_Request[Any] | None]


def _next_of(requests: _Requests, client: LogClient) -> _Request[Any] | None:
    try:
        return requests.get(timeout=IDLE_SECONDS)
    except queue.Empty:
        client.rest()
        return requests.get()


def _messages(records: "list[Record]") -> "list[_Found]":
    """The records that are messages."""
    found = []
    for record in records:
        try:
            found.append((record, decode_message(record.value)))
        except InvalidRecord:
            continue
    return found


def _duplicates(window: Window, found: "list[_Found]") -> list[int]:
    """The offsets of those that repeat one before them; all of them go into the window."""
    return [
        record.offset
        for record, message in found
        if message.message_id
        and window.note(record.offset, record.appended_ms, key_of(message.user, message.message_id))
    ]
