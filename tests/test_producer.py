"""The producer over librdkafka's own in-process broker."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from chatsvc.embedded import EmbeddedBroker
from chatsvc.errors import (
    ChatError,
    MessageTooLarge,
    PublishFailed,
    ServerBusy,
    ServerStopping,
)
from chatsvc.model import Acked
from chatsvc.producer import Producer

from waiting import eventually

WAIT = 20
TOPIC = "chatting"
Outcomes = list[Acked | ChatError]
MakeProducer = Callable[..., Producer]


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    """A broker that runs until the test closes it, at the latest until its end."""
    broker = EmbeddedBroker()
    yield broker
    broker.close()


@pytest.fixture
def brokers(broker: EmbeddedBroker) -> tuple[str, ...]:
    """The addresses of the broker, which has the topic."""
    addresses = broker.start()
    broker.make_topic(TOPIC)
    return addresses


@pytest.fixture
def make_producer(brokers: tuple[str, ...]) -> Iterator[MakeProducer]:
    """Starts producers, which are closed after the test."""
    producers: list[Producer] = []

    def make(publish_timeout: float = 20.0, **settings: object) -> Producer:
        producers.append(Producer(brokers, "test", publish_timeout, **settings))  # type: ignore[arg-type]
        producers[-1].start()
        return producers[-1]

    yield make
    for producer in producers:
        producer.close(0)


def publish(producer: Producer, count: int, timeout: float | None = None) -> list[Outcomes]:
    """Publishes numbers under one key and returns where each one's outcomes appear."""
    outcomes: list[Outcomes] = [[] for _ in range(count)]
    for number, own in enumerate(outcomes):
        producer.publish(TOPIC, b"bob", str(number).encode(), own.append, timeout)
    return outcomes


def settled(outcomes: list[Outcomes]) -> bool:
    return eventually(lambda: all(outcomes))


def headers(brokers: tuple[str, ...], outcomes: list[Outcomes]) -> list[object]:
    """The headers of the records with these outcomes, all of one partition, by another client."""
    places = [own[0] for own in outcomes]
    assert all(isinstance(place, Acked) for place in places)
    assert len({place.partition for place in places}) == 1
    reader = Consumer({"bootstrap.servers": ",".join(brokers), "group.id": "test"})
    reader.assign([TopicPartition(TOPIC, places[0].partition, 0)])
    read = {}
    while len(read) < len(places):
        record = reader.poll(WAIT)
        assert record is not None
        read[record.offset()] = record.headers()
    reader.close()
    return [read[place.offset] for place in places]


def stored(brokers: tuple[str, ...], place: Acked) -> tuple[bytes | None, bytes | None]:
    """The key and the value of the record at a place, read by another Kafka client."""
    reader = Consumer({"bootstrap.servers": ",".join(brokers), "group.id": "test"})
    reader.assign([TopicPartition(TOPIC, place.partition, place.offset)])
    record = reader.poll(WAIT)
    assert record is not None
    reader.close()
    return record.key(), record.value()


def test_an_ack_tells_where_the_record_is(
    make_producer: MakeProducer, brokers: tuple[str, ...]
) -> None:
    """Another client finds the record, with its key, at the place of the ack."""
    outcomes = publish(make_producer(), 3)
    assert settled(outcomes)
    place = outcomes[2][0]
    assert isinstance(place, Acked)
    assert stored(brokers, place) == (b"bob", b"2")


def test_records_of_one_key_keep_their_order(make_producer: MakeProducer) -> None:
    """They go into one partition, at growing offsets, in the order of the calls."""
    outcomes = publish(make_producer(), 200)
    assert settled(outcomes)
    places = [own[0] for own in outcomes]
    assert all(isinstance(place, Acked) for place in places)
    assert len({place.partition for place in places}) == 1
    assert [place.offset for place in places] == list(range(200))


def test_keys_are_spread_as_java_does(make_producer: MakeProducer) -> None:
    """A key goes into the partition that Kafka's own clients choose (murmur2), of four."""
    places: dict[bytes, Acked] = {}
    producer = make_producer()
    for key in (b"alice", b"bob", b"carol"):
        producer.publish(TOPIC, key, b"hi", lambda place, key=key: places.update({key: place}))
    assert eventually(lambda: len(places) == 3)
    assert {key: place.partition for key, place in places.items()} == {
        key: (murmur2(key) & 0x7FFFFFFF) % 4 for key in places
    }


def murmur2(key: bytes) -> int:
    """Kafka's hash of a key, after org.apache.kafka.common.utils.Utils.murmur2."""
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    hashed = 0x9747B28C ^ len(key)
    whole = len(key) - len(key) % 4
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        hashed = hashed * factor & mask ^ word
    if len(key) % 4:
        hashed = (hashed ^ int.from_bytes(key[whole:], "little")) * factor & mask
    hashed = (hashed ^ hashed >> 13) * factor & mask
    return hashed ^ hashed >> 15


def test_acks_are_measured(make_producer: MakeProducer) -> None:
    """Each ack's seconds are reported once."""
    seconds: list[float] = []
    outcomes = publish(make_producer(observe_ack=seconds.append), 5)
    assert settled(outcomes)
    assert len(seconds) == 5
    assert all(0 <= each < WAIT for each in seconds)


def test_a_broker_that_is_away_is_an_error(
    broker: EmbeddedBroker, make_producer: MakeProducer
) -> None:
    """After the publish timeout its outcome is told to be unknown, and the error counted; the
    record is tried on until that is of no more use."""
    errors: list[str] = []
    producer = make_producer(0.5, keep_seconds=1.5, count_error=errors.append)
    broker.close()
    outcomes = publish(producer, 2)
    assert settled(outcomes)
    assert all(isinstance(own[0], PublishFailed) and own[0].maybe_written for own in outcomes)
    assert errors == ["deadline", "deadline"]
    assert len(producer) == 2
    assert eventually(lambda: not len(producer))
    assert errors[2:] == ["_MSG_TIMED_OUT", "_MSG_TIMED_OUT"]
    assert all(len(own) == 1 for own in outcomes)


def test_a_short_deadline_is_kept(broker: EmbeddedBroker, make_producer: MakeProducer) -> None:
    """An outcome comes at the caller's deadline, before librdkafka gives up, and says that the
    record may be written yet."""
    producer = make_producer(1_000.0)
    broker.close()
    (outcome,) = publish(producer, 1, timeout=0.2)
    assert eventually(lambda: outcome)
    assert isinstance(outcome[0], PublishFailed)
    assert outcome[0].maybe_written
    assert len(producer) == 1


def test_short_deadlines_end_in_their_order(
    broker: EmbeddedBroker, make_producer: MakeProducer
) -> None:
    """A later record with an earlier deadline is answered first."""
    producer = make_producer(1_000.0)
    broker.close()
    order: list[str] = []
    producer.publish(TOPIC, b"bob", b"", lambda _: order.append("late"), 0.6)
    producer.publish(TOPIC, b"bob", b"", lambda _: order.append("early"), 0.1)
    assert eventually(lambda: len(order) == 2)
    assert order == ["early", "late"]


def test_an_answer_at_the_deadline_is_the_only_one(
    broker: EmbeddedBroker, make_producer: MakeProducer
) -> None:
    """What librdkafka says later of the same record is not passed on."""
    errors: list[str] = []
    producer = make_producer(0.5, keep_seconds=0.5, count_error=errors.append)
    broker.close()
    (outcome,) = publish(producer, 1, timeout=0.1)
    assert eventually(lambda: "_MSG_TIMED_OUT" in errors)
    assert len(outcome) == 1


def test_an_ack_before_the_deadline_is_the_only_answer(
    broker: EmbeddedBroker, make_producer: MakeProducer
) -> None:
    """The deadline of a record that was acked in time passes unnoticed."""
    producer = make_producer()
    assert settled(publish(producer, 1))  # connected now
    (acked,) = publish(producer, 1, timeout=1.0)
    assert eventually(lambda: acked)
    broker.close()
    (later,) = publish(producer, 1, timeout=1.0)
    assert eventually(lambda: later)
    assert [type(each) for each in (*acked, *later)] == [Acked, PublishFailed]


def test_a_closed_producer_takes_nothing(make_producer: MakeProducer) -> None:
    """After close, publish raises and the callback is not called."""
    producer = make_producer()
    producer.close(WAIT)
    with pytest.raises(ServerStopping):
        publish(producer, 1)


def test_a_producer_that_was_not_started_takes_nothing() -> None:
    """Before start, publish raises, close does nothing, and there is nothing on its way."""
    producer = Producer(("127.0.0.1:1",), "test", 20.0)
    with pytest.raises(ServerStopping):
        publish(producer, 1)
    assert len(producer) == 0
    assert producer.count_partitions(TOPIC, 1) == 0
    assert producer.close(1) == 0


def test_close_waits_for_what_is_on_its_way(make_producer: MakeProducer) -> None:
    """Records that were just published are acked by close, and none is refused."""
    producer = make_producer()
    outcomes = publish(producer, 100)
    assert producer.close(WAIT) == 0
    assert all(isinstance(own[0], Acked) for own in outcomes)


def test_close_refuses_what_is_left(broker: EmbeddedBroker, make_producer: MakeProducer) -> None:
    """Without a broker every waiting record is refused once, and close tells how many."""
    producer = make_producer()
    broker.close()
    outcomes = publish(producer, 10)
    assert producer.close(0.1) == 10
    assert [len(own) for own in outcomes] == [1] * 10
    assert all(isinstance(own[0], PublishFailed) for own in outcomes)
    assert producer.close(0.1) == 0
    assert [len(own) for own in outcomes] == [1] * 10


def test_close_does_not_answer_twice(broker: EmbeddedBroker, make_producer: MakeProducer) -> None:
    """A record that was refused at its own deadline is not refused again by close."""
    producer = make_producer()
    broker.close()
    outcomes = publish(producer, 3, timeout=0.0)
    assert settled(outcomes)
    producer.close(0.1)
    assert [len(own) for own in outcomes] == [1, 1, 1]


def test_giving_up_refuses_what_waits(broker: EmbeddedBroker, make_producer: MakeProducer) -> None:
    """Records that wait for Kafka are refused now, each once, and later ones are still taken."""
    producer = make_producer()
    broker.close()
    outcomes = publish(producer, 10)
    producer.give_up()
    assert settled(outcomes)
    assert all(isinstance(own[0], PublishFailed) for own in outcomes)
    publish(producer, 1)
    assert len(producer) == 1


def test_what_waits_in_the_queue_may_have_been_written(
    broker: EmbeddedBroker, make_producer: MakeProducer
) -> None:
    """A record that is refused while it is queued may be there for another try: nobody is told
    that it is not in the log."""
    producer = make_producer()
    broker.close()
    assert eventually(lambda: producer.count_partitions(TOPIC, 0.1) == 0)
    (outcome,) = publish(producer, 1)
    producer.give_up()
    assert eventually(lambda: outcome)
    assert isinstance(outcome[0], PublishFailed)
    assert outcome[0].maybe_written


@pytest.mark.parametrize("size", [1_000_001, 5_000_000])
def test_a_record_that_is_too_large_is_refused(make_producer: MakeProducer, size: int) -> None:
    """More than Kafka takes is refused at once, and the producer goes on."""
    producer = make_producer()
    outcome: Outcomes = []
    with pytest.raises(MessageTooLarge):
        producer.publish(TOPIC, b"bob", bytes(size), outcome.append)
    outcomes = publish(producer, 1)
    assert settled(outcomes)
    assert isinstance(outcomes[0][0], Acked)
    assert not outcome


def test_a_full_queue_refuses(broker: EmbeddedBroker, make_producer: MakeProducer) -> None:
    """When as much waits as may, publish raises, and the callback is not called."""
    errors: list[str] = []
    producer = make_producer(count_error=errors.append)
    broker.close()
    outcomes = publish(producer, 20_000)
    refused: Outcomes = []
    with pytest.raises(ServerBusy):
        producer.publish(TOPIC, b"bob", b"one more", refused.append)
    assert errors == ["_QUEUE_FULL"]
    producer.give_up()
    assert settled(outcomes)
    assert not refused


def test_who_is_refused_takes_no_other_with_him(
    broker: EmbeddedBroker, make_producer: MakeProducer
) -> None:
    """Also when it is time for a round just then: those that wait for it are handed over."""
    producer = make_producer(1.0, keep_seconds=1.0)
    broker.close()
    outcomes = publish(producer, 20_000)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        with pytest.raises(ServerBusy):
            producer.publish(TOPIC, b"bob", b"one more", refusing)
    assert settled(outcomes)
    assert eventually(lambda: not len(producer), 60)


def refusing(outcome: Acked | ChatError) -> None:
    """Is called for no record that was refused."""
    raise AssertionError


def test_rounds_keep_the_order(make_producer: MakeProducer) -> None:
    """Records that one thread publishes under one key while others are under way, in many rounds,
    are in the log in that order."""
    outcomes = publish(make_producer(), 5_000)
    assert settled(outcomes)
    offsets = [own[0].offset for own in outcomes if isinstance(own[0], Acked)]
    assert len(offsets) == 5_000
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("every", [1, 2, 7])
def test_traced_records_keep_their_place(
    make_producer: MakeProducer, brokers: tuple[str, ...], every: int
) -> None:
    """Those with a trace id have it as a header, the others have none, and all of one key are in
    the log in the order of the calls, in whatever rounds they were."""
    producer = make_producer()
    outcomes: list[Outcomes] = [[] for _ in range(2_000)]
    for number, own in enumerate(outcomes):
        trace_id = f"t-{number}" if number % every == 0 else ""
        producer.publish(TOPIC, b"bob", b"x", own.append, trace_id=trace_id)
    assert settled(outcomes)
    offsets = [own[0].offset for own in outcomes if isinstance(own[0], Acked)]
    assert offsets == list(range(2_000))
    assert headers(brokers, outcomes) == [
        [("trace-id", b"t-%d" % number)] if number % every == 0 else None for number in range(2_000)
    ]


def test_a_traced_record_that_librdkafka_refuses(make_producer: MakeProducer) -> None:
    """It has its own outcome, as one without a trace id."""
    producer = make_producer()
    bad: Outcomes = []
    producer.publish("x" * 1_000, b"bob", b"", bad.append, trace_id="t")
    assert eventually(lambda: bad)
    assert isinstance(bad[0], PublishFailed)
    assert len(producer) == 0


def test_a_record_that_librdkafka_refuses_takes_no_other_with_it(
    make_producer: MakeProducer,
) -> None:
    """One that cannot even be queued has its own outcome, and those around it are acked."""
    producer = make_producer()
    bad: Outcomes = []
    before = publish(producer, 50)
    producer.publish("x" * 1_000, b"bob", b"", bad.append)
    after = publish(producer, 50)
    assert settled([*before, bad, *after])
    assert isinstance(bad[0], PublishFailed)
    assert all(isinstance(own[0], Acked) for own in (*before, *after))
    assert len(producer) == 0


def test_records_that_wait_for_a_round_are_sent_by_close(make_producer: MakeProducer) -> None:
    """What was taken while a round was under way is not forgotten when the producer stops."""
    producer = make_producer()
    outcomes = publish(producer, 3_000)
    assert producer.close(WAIT) == 0
    assert all(isinstance(own[0], Acked) for own in outcomes)
    assert len(producer) == 0


def test_partitions_are_counted(make_producer: MakeProducer) -> None:
    """As many as the topic has."""
    assert make_producer().count_partitions(TOPIC, WAIT) == 4


def test_partitions_cannot_be_counted_without_a_broker(
    broker: EmbeddedBroker, make_producer: MakeProducer
) -> None:
    """No answer in time counts as unknown, not as an error."""
    producer = make_producer()
    broker.close()
    assert eventually(lambda: producer.count_partitions("another", 0.1) == 0)


def test_publish_is_for_any_thread(make_producer: MakeProducer) -> None:
    """Records of several threads are each acked once."""
    producer = make_producer()
    outcomes: list[list[Outcomes]] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(publish(producer, 100, timeout=WAIT - 1)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [own for each in outcomes for own in each]
    assert settled(everything)
    assert len({(own[0].partition, own[0].offset) for own in everything}) == 500
    assert {len(own) for own in everything} == {1}


def test_a_client_that_failed_for_good_is_replaced(make_producer: MakeProducer) -> None:
    """After librdkafka's fatal error the next records are written by a new client."""
    errors: list[str] = []
    producer = make_producer(count_error=errors.append)
    assert settled(publish(producer, 1))
    failed = producer._client
    producer._on_fatal()  # no client of Python can make librdkafka fail so
    assert eventually(lambda: producer._client is not failed)
    assert "fatal" in errors
    outcomes = publish(producer, 3)
    assert settled(outcomes)
    assert all(isinstance(own[0], Acked) for own in outcomes)
