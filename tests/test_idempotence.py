"""A message that is sent twice is shown once, wherever and whenever."""

import threading
from typing import Any

import pytest

from chatsvc.client import ChatClient, Received
from chatsvc.duplicates import KEPT_DUPLICATES
from chatsvc.model import Acked, ChatMessage
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.producer import Producer
from chatsvc.records import encode_message

from sites import WAIT, Site, numbers, read_until

COMMITTED = chat_pb2.Outcome.COMMITTED
DUPLICATE = chat_pb2.Outcome.DUPLICATE


def message(content: str, message_id: str, user: str = "ann") -> chat_pb2.Message:
    return chat_pb2.Message(id=user, content=content, message_id=message_id)


def publish(site: Site, address: str, *messages: chat_pb2.Message) -> list[int]:
    """Sends messages through Publish and returns their outcomes."""
    request = chat_pb2.PublishRequest(messages=messages)
    results = site.chat(address).Publish(iter([request]), timeout=WAIT)
    return [outcome.status for result in results for outcome in result.outcomes]


def write(site: Site, *messages: tuple[str, str]) -> None:
    """Writes records to the log as servers do that have not read what others wrote: contents and
    ids of Ann's."""
    producer = Producer(site.brokers, "test", 10.0)
    producer.start()
    acks = threading.Semaphore(0)
    outcomes: list[Any] = []

    def done(outcome: Any) -> None:
        outcomes.append(outcome)
        acks.release()

    for content, message_id in messages:
        record = encode_message(ChatMessage("ann", content, "", "", message_id))
        producer.publish("chatting", *record, done)
    for _ in messages:
        assert acks.acquire(timeout=WAIT)
    producer.close(WAIT)
    assert all(isinstance(each, Acked) for each in outcomes)


def test_a_message_that_is_sent_again_is_not_written(site: Site) -> None:
    """Its sender is told so, by Publish and by BroadcastMessage, at every server."""
    _, first = site.server()
    _, second = site.server()
    here, there = site.subscribe(first), site.subscribe(second)
    assert publish(site, first, message("one", "1")) == [COMMITTED]
    read_until(here, "one")
    read_until(there, "one")
    assert publish(site, second, message("again", "1"), message("two", "2")) == [
        DUPLICATE,
        COMMITTED,
    ]
    stub = chat_pb2_grpc.BroadcastStub(site.channel(first))
    read_until(here, "two")
    assert stub.BroadcastMessage(message("again", "2"), timeout=WAIT).duplicate
    assert not stub.BroadcastMessage(message("three", "3"), timeout=WAIT).duplicate
    # Of another user the same id is another message, and without an id each is one.
    assert publish(site, first, message("bob's", "1", "bob")) == [COMMITTED]
    assert (
        publish(site, first, message("x", ""), message("x", ""), message("end", "4"))
        == [COMMITTED] * 3
    )
    contents, _, _ = read_until(there, "end")
    assert sorted(contents) == sorted(["two", "three", "bob's", "x", "x", "end"])


@pytest.mark.parametrize("tail_bytes", [16 << 20, 1], ids=["tail", "kafka"])
def test_a_message_that_is_written_twice_is_shown_once(site: Site, tail_bytes: int) -> None:
    """To who is here, who comes back, who asks for history, and at a server that started later."""
    _, first = site.server(tail_bytes=tail_bytes)
    here = site.subscribe(first)
    begin = next(here).cursor
    ids = [str(number // 2) for number in range(1_200)]
    write(site, *((f"{number}", ids[number]) for number in range(1_200)), ("end", "end"))
    expected = [*map(str, range(0, 1_200, 2)), "end"]
    contents, _, _ = read_until(here, "end")
    assert contents == expected
    _, later = site.server(tail_bytes=tail_bytes)
    for address in (first, later):
        contents, _, _ = read_until(site.subscribe(address, begin), "end")
        assert contents == expected
        request = chat_pb2.HistoryRequest(limit=1_000)
        page = site.chat(address).History(request, timeout=WAIT)
        assert [each.content for each in page.messages] == expected
        request.backwards = True
        page = site.chat(address).History(request, timeout=WAIT)
        assert [each.content for each in page.messages] == expected
        # The one that has just started knows what was written before it.
        assert publish(site, address, message("again", "7")) == [DUPLICATE]


def test_a_duplicate_a_thousand_messages_later_is_one(site: Site) -> None:
    """Also where the first is in a chunk of the log that was read long before."""
    _, address = site.server(tail_bytes=1)
    begin = next(site.subscribe(address)).cursor
    write(
        site,
        ("first", "id"),
        *((each, each) for each in numbers(0, 2_000)),
        ("second", "id"),
        ("end", "end"),
    )
    contents, _, _ = read_until(site.subscribe(address, begin), "end")
    assert contents == ["first", *numbers(0, 2_000), "end"]
    assert KEPT_DUPLICATES > 1


def test_a_client_that_does_not_know_sends_again(site: Site) -> None:
    """ChatClient's `send` is confirmed the second time too, and nobody sees it twice."""
    _, first = site.server()
    _, second = site.server()
    with ChatClient("ann", [first]) as ann, ChatClient("bob", [second], remembered_ids=0) as bob:
        ann.connect()
        bob.connect()
        assert ann.send("hello", message_id="once") == "once"
        assert isinstance(ann.receive(WAIT), Received)
        assert ann.send("hello", message_id="once") == "once"
        outcomes: list[object] = []
        told = threading.Event()

        def on_outcome(message_id: str, error: object) -> None:
            outcomes.append(error)
            told.set()

        ann.post("hello", message_id="once", on_outcome=on_outcome)
        assert told.wait(WAIT)
        assert outcomes == [None]
        ann.send("end")
        received = [bob.receive(WAIT), bob.receive(WAIT)]
        assert [each.content for each in received if isinstance(each, Received)] == ["hello", "end"]
