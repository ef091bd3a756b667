"""All settings of a server with their defaults, checked when they are made.

Nothing here reads the environment or a file: the command line does that.
"""

import os
import re
import time
from dataclasses import dataclass, field

from chatsvc.errors import InvalidConfig
from chatsvc.rules import is_address

MAX_WORKERS = 64


def new_server_id() -> str:
    """The seed's form, `grpc-server-<unix time>`, with four hex digits so that two that start in
    the same second differ."""
    return f"grpc-server-{int(time.time())}-{os.urandom(2).hex()}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one server. Times are in seconds, sizes in bytes.

    Raises InvalidConfig, which names the option, for a value that cannot work.
    """

    host: str = "127.0.0.1"
    port: int = 8081
    brokers: tuple[str, ...] = ()
    """`host:port` of some Kafka brokers; none: an embedded broker that keeps nothing."""
    topic: str = "chatting"
    connections_topic: str = "user-connections"
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464
    server_id: str = field(default_factory=new_server_id)
    max_connections: int = 10_000
    """Streams at once, on all workers together."""
    workers: int = 1
    """Processes that share the port; in a worker's own settings, how many there are."""
    pin_cpu: bool = True
    """Whether each process keeps to one CPU. Servers with consecutive ports take different ones,
    and so do workers."""

    reflection: bool = False
    """Whether clients may ask what services there are, and of which messages they are made."""

    outbox_messages: int = 1_000
    outbox_bytes: int = 1024 * 1024
    """A stream whose client is further behind than either is closed as slow."""
    tail_bytes: int = 16 * 1024 * 1024
    """The newest messages that are kept in memory, for clients that come back or are behind."""
    senders: int = 4
    """Threads that drain outboxes while no client is stuck."""
    send_timeout: float = 10.0
    """How long one send to a client may take."""
    stream_heartbeat: float = 15.0
    """A subscriber is sent something at least so often, and one that said it would do the same and
    was silent for twice as long is taken to be gone."""
    max_stream_age: float = 0.0
    """After about so long a subscriber is asked to connect again, so that the load evens out after
    servers were added; 0: never."""
    feed_timeout: float = 30.0
    """A server that has not read on for so long, though there is more to read, sends its clients to
    others."""
    request_timeout: float = 5.0
    """How long a client may take to send a request after it has opened the call."""
    publish_timeout: float = 20.0
    """How long Kafka may take to confirm a message."""
    kafka_timeout: float = 8.0
    """How long to look for a broker at start."""
    heartbeat_interval: float = 5.0
    server_timeout: float = 15.0
    """A server that is not heard of for so long is dropped with its users."""
    partitions_interval: float = 3.0
    """How often partitions are listed, so that new ones are found."""
    stop_timeout: float = 8.0
    """How long a stop may take in all before what is left is cut off."""

    def __post_init__(self) -> None:
        self._check_port("--port", self.port)
        self._check_port("--metrics-port", self.metrics_port)
        if self.port and self.port == self.metrics_port:
            raise InvalidConfig("--metrics-port", f"is the same as --port ({self.port})")
        _check_topic("--topic", self.topic)
        _check_topic("--connections-topic", self.connections_topic)
        if self.topic == self.connections_topic:
            raise InvalidConfig("--connections-topic", "must differ from --topic")
        for broker in self.brokers:
            _check_broker(broker)
        if not 1 <= self.max_connections <= 100_000:
            raise InvalidConfig("--max-connections", "must be between 1 and 100000")
        if not 1 <= self.workers <= MAX_WORKERS:
            raise InvalidConfig("--workers", f"must be between 1 and {MAX_WORKERS}")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise InvalidConfig(name, "must be above 0")
        if self.max_stream_age < 0 or 0 < self.max_stream_age < 1:
            raise InvalidConfig("--max-stream-age", "must be 0 (off) or at least 1 second")
        if self.server_timeout <= self.heartbeat_interval:
            raise InvalidConfig("server_timeout", "must be above heartbeat_interval")
        if not self.server_id or len(self.server_id) > 64 or not self.server_id.isprintable():
            raise InvalidConfig("--server-id", "must be 1 to 64 printable characters")

    @staticmethod
    def _check_port(option: str, port: int) -> None:
        if not 0 <= port <= 65_535:
            raise InvalidConfig(option, f"{port} is not a port (0 to 65535)")

    @property
    def rpc_threads(self) -> int:
        """Threads that run the synchronous part of calls: reading the request, checking it, and
        handing it on. No call keeps one while it waits for Kafka or for messages."""
        return 4 if self.max_connections < 1_000 else 8

    @property
    def max_publish_streams(self) -> int:
        """Streams of Publish at once in a process. Each has a thread that reads it, so they are
        few."""
        return max(8, min(128, self.max_connections // 10) // self.workers)

    @property
    def stream_threads(self) -> int:
        """Threads at most that read what subscribers send: one for each that sends heartbeats, and
        some to take in new ones."""
        return self.max_connections + 16

    @property
    def max_pending_rpcs(self) -> int:
        """Calls that may wait for one of `rpc_threads` at once: everybody connecting in the same
        moment, and as many senders. Above it, RESOURCE_EXHAUSTED."""
        return 2 * self.max_connections + self.rpc_threads + self.max_publish_streams


_POSITIVE = (
    *(
        "outbox_messages",
        "outbox_bytes",
        "tail_bytes",
        "senders",
        "send_timeout",
        "request_timeout",
        "stream_heartbeat",
        "feed_timeout",
    ),
    *("publish_timeout", "kafka_timeout", "heartbeat_interval", "partitions_interval"),
    "stop_timeout",
)


def _check_topic(option: str, topic: str) -> None:
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", topic) or topic in (".", ".."):
        raise InvalidConfig(option, f"{topic!r} is not a Kafka topic name (letters, digits, . _ -)")


def _check_broker(broker: str) -> None:
    if not is_address(broker):
        raise InvalidConfig("--brokers", f"{broker!r} is not HOST:PORT")


def check_range(option: str, value: float, least: float, most: float, what: str = "") -> None:
    """Raises InvalidConfig unless `value` is a number from `least` to `most`; `what` tells where
    `most` comes from."""
    if not least <= value <= most:  # false for nan too
        raise InvalidConfig(option, f"must be from {least:g} to {most:.15g}{what}, not {value:g}")
