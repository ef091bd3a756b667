"""The broker inside the process, for `chatsvc serve` without Kafka: everything ends with it."""

import logging

from confluent_kafka import Producer as KafkaProducer

from chatsvc import librdkafka

EMBEDDED_FETCH_WAIT_MS = 10
"""This broker looks at what has come only when a fetch begins or ends, so a message waits half of
this on average."""


class EmbeddedBroker:
    """librdkafka's in-process cluster: Kafka's real protocol on loopback, in memory.

    Topics come into being when they are asked for, with 4 partitions of at most 5 MiB; there is
    no administration.
    """

    def __init__(self) -> None:
        self._client: KafkaProducer | None = None

    def start(self) -> tuple[str, ...]:
        """Starts the broker and returns its address."""
        settings = librdkafka.settings(
            ("embedded",), "embedded", librdkafka.ErrorLog(logging.DEBUG)
        )
        self._client = KafkaProducer(settings | {"test.mock.num.brokers": 1})
        brokers = self._client.list_topics(timeout=5).brokers.values()
        return tuple(f"{broker.host}:{broker.port}" for broker in brokers)

    def make_topic(self, topic: str) -> None:
        """Makes a topic by asking for it."""
        assert self._client is not None  # start() comes first
        self._client.list_topics(topic, timeout=5)

    def close(self) -> None:
        """Ends the broker with all that it held. Idempotent."""
        self._client = None
