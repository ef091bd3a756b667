import logging

import pytest
from confluent_kafka import KafkaError
from confluent_kafka import Producer as KafkaProducer

from chatsvc import librdkafka

LOG = "chatsvc.librdkafka"


def refused(broker: str) -> KafkaError:
    """A broker that is not there, as librdkafka says it."""
    text = f"{broker}/bootstrap: Connect to ipv4#{broker} failed: Connection refused"
    return KafkaError(KafkaError._TRANSPORT, text)


def test_common_causes_have_plain_words() -> None:
    """The errors that people meet read like the seed's."""
    assert librdkafka.cause(refused("127.0.0.1:9092")) == "connection refused"
    assert librdkafka.cause(KafkaError(KafkaError._MSG_TIMED_OUT)) == "not confirmed in time"
    assert librdkafka.cause(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)) == "no such topic"


def test_other_causes_keep_librdkafkas_words() -> None:
    """An error without words of ours says what librdkafka says, but not at any length."""
    assert librdkafka.cause(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "denied")) == "denied"
    assert len(librdkafka.cause(KafkaError(KafkaError._FAIL, "x" * 10_000))) == 200


def test_an_error_that_goes_on_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """librdkafka reports a missing broker at every attempt; the log has it once a broker."""
    caplog.set_level(logging.WARNING, LOG)
    log = librdkafka.ErrorLog(logging.WARNING)
    for _ in range(3):
        log(refused("127.0.0.1:9092"))
        log(refused("127.0.0.1:9093"))
    assert caplog.messages == [
        "Kafka broker 127.0.0.1:9092: connection refused",
        "Kafka broker 127.0.0.1:9093: connection refused",
    ]


def test_only_a_fatal_error_is_fatal() -> None:
    """The callback for fatal errors is called for those alone, each time."""
    calls: list[str] = []
    log = librdkafka.ErrorLog(logging.DEBUG, lambda: calls.append("fatal"))
    log(refused("127.0.0.1:9092"))
    assert not calls
    for _ in range(2):
        log(KafkaError(KafkaError._FATAL, "out of order", True))
    assert calls == ["fatal", "fatal"]


def test_librdkafka_takes_the_settings() -> None:
    """Every common setting exists and has a value that librdkafka accepts."""
    errors = librdkafka.ErrorLog(logging.DEBUG)
    settings = librdkafka.settings(("127.0.0.1:1", "127.0.0.1:2"), "server-1", errors)
    assert settings["bootstrap.servers"] == "127.0.0.1:1,127.0.0.1:2"
    KafkaProducer(settings)
