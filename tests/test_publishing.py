"""PublishStream over a pool, with results that are kept instead of sent."""

import threading
from collections.abc import Iterator

import pytest

from chatsvc.errors import ChatError, InvalidRequest, ServerBusy, ServerStopping
from chatsvc.model import Acked
from chatsvc.pb import chat_pb2
from chatsvc.publishing import UNDER_WAY, Done, PublishStream
from chatsvc.senders import SenderPool

from waiting import eventually

WAIT = 20
ACK = Acked(0, 0, -1)


class Results:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.outcomes: list[chat_pb2.Outcome] = []
        self.end: ChatError | str | None = None

    def send(self, frame: bytes) -> None:
        self.outcomes.extend(chat_pb2.PublishResult.FromString(frame).outcomes)

    def finish(self) -> None:
        self.end = "finished"

    def refuse(self, error: ChatError) -> None:
        self.end = error

    def cut_off(self) -> None:
        self.end = "cut off"

    @property
    def ids(self) -> list[str]:
        return [outcome.message_id for outcome in self.outcomes]


class Kafka:
    """Takes messages and acks them when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Done] = []

    def send(self, done: Done) -> None:
        self.waiting.append(done)

    def ack(self, *numbers: int) -> None:
        for number in numbers:
            self.waiting[number](ACK)


@pytest.fixture
def results() -> Results:
    return Results()


@pytest.fixture
def stream(results: Results) -> Iterator[PublishStream]:
    pool = SenderPool("reply", 2, wake_watchdog=lambda: None)
    pool.start()
    yield PublishStream(results, pool, send_timeout=WAIT)
    pool.close(WAIT)


def test_outcomes_wait_for_those_before_them(stream: PublishStream, results: Results) -> None:
    """Acks in any order give outcomes in the order sent."""
    kafka = Kafka()
    assert stream.publish([(name, kafka.send) for name in "abc"])
    kafka.ack(2, 1)
    kafka.ack(0)
    assert eventually(lambda: results.ids == ["a", "b", "c"])


def test_every_outcome_is_sent_whenever_it_comes(stream: PublishStream, results: Results) -> None:
    """Acks that race with the sending of those before them are never forgotten."""
    kafka = Kafka()
    count = 5_000
    for first in range(0, count, 10):
        assert stream.publish([(str(first + each), kafka.send) for each in range(10)])
        kafka.ack(*range(first, first + 10))
    stream.end()
    assert eventually(lambda: results.end == "finished")
    assert results.ids == [str(number) for number in range(count)]


def test_acks_are_measured(results: Results) -> None:
    """What is committed is measured when it is told, what is refused is not."""
    measured: list[float] = []
    pool = SenderPool("reply", 1, wake_watchdog=lambda: None)
    stream = PublishStream(results, pool, WAIT, measured.extend)

    def refuse(done: Done) -> None:
        raise InvalidRequest("content", "is bad")

    stream.publish([("good", lambda done: done(ACK)), ("bad", refuse)])
    pool.start()
    assert eventually(lambda: len(results.outcomes) == 2)
    assert pool.close(WAIT)
    assert len(measured) == 1
    assert 0 <= measured[0] < WAIT


def test_publish_waits_while_too_many_are_under_way(
    stream: PublishStream, results: Results
) -> None:
    """Beyond UNDER_WAY messages the reader waits until outcomes have been sent."""
    kafka = Kafka()
    stream.publish([(str(number), kafka.send) for number in range(UNDER_WAY)])
    thread = threading.Thread(target=stream.publish, args=([("more", kafka.send)],))
    thread.start()
    kafka.ack(*range(1, UNDER_WAY))
    assert len(kafka.waiting) == UNDER_WAY
    kafka.ack(0)
    thread.join(WAIT)
    assert len(kafka.waiting) == UNDER_WAY + 1


def test_a_stop_while_the_producer_is_full_leaves_nothing_open(
    stream: PublishStream, results: Results
) -> None:
    """A message that waits for room when the server stops was not written; its outcome says that it
    is not confirmed, and the stream ends."""
    asked = threading.Event()

    def busy(done: Done) -> None:
        asked.set()
        raise ServerBusy

    more: list[bool] = []
    thread = threading.Thread(target=lambda: more.append(stream.publish([("waits", busy)])))
    thread.start()
    assert asked.wait(WAIT)
    stream.stop(ServerStopping())
    thread.join(WAIT)
    assert more == [False]
    assert eventually(lambda: isinstance(results.end, ServerStopping))
    assert [outcome.status for outcome in results.outcomes] == [chat_pb2.Outcome.UNCONFIRMED]


def test_nothing_is_taken_once_the_stream_is_over(stream: PublishStream, results: Results) -> None:
    """After leave() messages are not sent any more."""
    kafka = Kafka()
    stream.leave()
    assert not stream.publish([("late", kafka.send)])
    assert kafka.waiting == []
