"""What all Kafka clients of a server have in common: settings, log, and words for errors."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError

log = logging.getLogger(__name__)

_WORDS = {
    KafkaError._TRANSPORT: "connection refused",
    KafkaError._ALL_BROKERS_DOWN: "all brokers are down",
    KafkaError._MSG_TIMED_OUT: "not confirmed in time",
    KafkaError._TIMED_OUT: "no answer in time",
    KafkaError._PURGE_QUEUE: "the server is stopping",
    KafkaError._PURGE_INFLIGHT: "the server is stopping",
    KafkaError._RESOLVE: "unknown host",
    KafkaError._UNKNOWN_PARTITION: "no such partition",
    KafkaError._UNKNOWN_TOPIC: "no such topic",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "no such topic",
    KafkaError.NOT_ENOUGH_REPLICAS: "not enough in-sync replicas",
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND: "not enough in-sync replicas",
}


def cause(error: KafkaError) -> str:
    """A short text for people, without addresses of brokers."""
    return _WORDS.get(error.code()) or error.str()[:200]


REPEAT_SECONDS = 30.0
"""How often an error that goes on is logged again."""


class ErrorLog:
    """A client's error callback: logs each kind of trouble with each broker once in a while.

    librdkafka recovers from all of them by itself but the fatal ones, for which `on_fatal` is
    called. Runs in whatever thread polls the client.
    """

    def __init__(self, level: int, on_fatal: Callable[[], None] = lambda: None) -> None:
        self._level = level
        self._on_fatal = on_fatal
        # Guards when each kind was logged last.
        self._lock = threading.Lock()
        self._logged: dict[str, float] = {}

    def __call__(self, error: KafkaError) -> None:
        if error.fatal():
            self._on_fatal()
        # The text begins with the broker's address where it is about one broker.
        about_one = error.code() == KafkaError._TRANSPORT
        where = error.str().split(": ")[0].split("/")[0] if about_one else ""
        line = f"Kafka{' broker ' + where if where else ''}: {cause(error)}"
        now = time.monotonic()
        with self._lock:
            if now - self._logged.get(line, -REPEAT_SECONDS) < REPEAT_SECONDS:
                return
            self._logged[line] = now
        log.log(self._level, "%s", line)


def settings(brokers: tuple[str, ...], client_id: str, errors: ErrorLog) -> dict[str, Any]:
    """Settings for every client of librdkafka.

    A broker that is paused or cut off does not reset its connections; the short socket timeout is
    what finds it, soon after Kafka has found another leader. librdkafka's own log is silenced:
    `errors` says the same once.
    """
    return {
        "bootstrap.servers": ",".join(brokers),
        "client.id": client_id,
        "socket.timeout.ms": 4_500,
        "socket.connection.setup.timeout.ms": 5_000,
        "socket.keepalive.enable": True,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        "retry.backoff.ms": 100,
        "retry.backoff.max.ms": 250,
        "enable.metrics.push": False,
        "log_level": 2,
        "logger": log,
        "error_cb": errors,
    }


STATISTICS_MS = 5_000
"""How often a client tells its statistics: about 10 KB of JSON."""

OnStatistics = Callable[[str], None]


def telling(on_statistics: OnStatistics | None) -> dict[str, Any]:
    """Settings for a client that tells its statistics, in the thread that polls it."""
    if on_statistics is None:
        return {}
    return {"statistics.interval.ms": STATISTICS_MS, "stats_cb": on_statistics}


def reading(group: str) -> dict[str, Any]:
    """Settings for every consumer, beside those for all clients. `group` is its group's name, which
    the library wants: assign() joins none and nothing is committed."""
    return {
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_uncommitted",
        "check.crcs": True,
        "fetch.error.backoff.ms": 100,
        # With the default of 1 s a full queue would make gaps of a second.
        "fetch.queue.backoff.ms": 10,
    }
