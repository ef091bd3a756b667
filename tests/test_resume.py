"""A subscription goes on where another one was, at any server: nothing is missed, nothing comes
twice, and the order stays."""

import itertools
import threading

import pytest

from chatsvc.client import ChatClient, Connected, Event, Received
from chatsvc.config import Config
from chatsvc.pb import chat_pb2

from sites import WAIT, Site, numbers, read_until
from waiting import eventually


@pytest.mark.parametrize("tail_bytes", [Config.tail_bytes, 1], ids=["tail", "kafka"])
def test_another_server_goes_on_where_one_was(site: Site, tail_bytes: int) -> None:
    """From its memory if that reaches back far enough, else from Kafka."""
    _, first = site.server()
    _, second = site.server(tail_bytes=tail_bytes)
    stream = site.subscribe(first)
    site.publish(first, iter(numbers(0, 10)))
    contents, cursor, _ = read_until(stream, "9")
    assert contents == numbers(0, 10)
    stream.cancel()
    site.publish(first, iter(numbers(10, 3_000)))
    resumed = site.subscribe(second, cursor)
    contents, cursor, live = read_until(resumed, "2999")
    assert contents == numbers(10, 3_000)
    assert not live[0]  # what this server had not read yet is new here
    site.publish(second, iter(["new"]))
    contents, _, live = read_until(resumed, "new")
    assert contents == ["new"]


def test_a_cursor_of_now_misses_nothing_and_repeats_nothing(site: Site) -> None:
    _, address = site.server()
    first = next(site.subscribe(address))
    assert first.caught_up
    site.publish(address, iter(["1"]))
    contents, cursor, _ = read_until(site.subscribe(address, first.cursor), "1")
    assert contents == ["1"]
    again = next(site.subscribe(address, cursor))
    assert (list(again.messages), again.caught_up) == ([], True)


def test_only_the_rooms_asked_for(site: Site) -> None:
    """A cursor is of the topic: it may be used for other rooms than it came from."""
    _, address = site.server()
    cursor = next(site.subscribe(address)).cursor
    chat = site.chat(address)
    messages = [
        chat_pb2.Message(id="bob", content=str(number), room=("", "tea", "jam")[number % 3])
        for number in range(300)
    ]
    list(chat.Publish(iter([chat_pb2.PublishRequest(messages=messages)]), timeout=WAIT))
    contents, _, _ = read_until(site.subscribe(address, cursor, ("tea",)), "298")
    assert contents == [str(number) for number in range(300) if number % 3 == 1]


def test_while_messages_come(site: Site) -> None:
    """Many resume, again and again, while others send at full speed."""
    _, address = site.server(tail_bytes=200_000)
    start = next(site.subscribe(address)).cursor
    senders = [f"sender{number}" for number in range(3)]
    count = 2_000

    def send(user: str) -> None:
        site.publish(address, (f"{user} {number}" for number in range(count)), user)

    threads = [threading.Thread(target=send, args=(user,)) for user in senders]
    for thread in threads:
        thread.start()
    chat = site.chat(address)
    try:
        for steps in (1, 3, 10):
            heard: list[str] = []
            cursor = start
            while len(heard) < count * len(senders):
                stream = site.subscribe(address, cursor, chat=chat)
                for delivery in itertools.islice(stream, steps):
                    heard += [each.content for each in delivery.messages]
                    cursor = delivery.cursor
                    if len(heard) >= count * len(senders):
                        break
                stream.cancel()
            for user in senders:
                mine = [each for each in heard if each.startswith(f"{user} ")]
                assert mine == [f"{user} {number}" for number in range(count)]
    finally:
        for thread in threads:
            thread.join()


def test_a_client_that_stops_reading_catches_up(site: Site) -> None:
    """It is not cut off for being behind: what the outbox does not hold comes from the log."""
    server, address = site.server(outbox_messages=20, tail_bytes=100_000)
    stream = site.subscribe(address)
    next(stream)
    contents = [f"{number} {'x' * 2_000}" for number in range(3_000)]  # more than windows hold
    site.publish(address, iter(contents))
    heard, _, _ = read_until(stream, contents[-1])
    assert heard == contents
    assert server.metrics.registry.get_sample_value(
        "chatsvc_disconnects_total", {"reason": "slow"}
    ) in (None, 0)


def test_a_client_moves_and_misses_nothing(site: Site) -> None:
    """ChatClient resumes by itself: what came meanwhile is marked, and nothing comes twice."""
    one, first = site.server()
    _, second = site.server()
    events: list[Event] = []
    with ChatClient("ann", [first, second], on_events=events.extend) as ann:
        ann.connect()
        site.publish(second, iter(numbers(0, 100)))
        assert eventually(lambda: len(events) == 100)
        one.stop()
        site.publish(second, iter(numbers(100, 200)))
        assert eventually(lambda: any(isinstance(event, Connected) for event in events), WAIT)
        site.publish(second, iter(["new"]))
        assert eventually(lambda: _contents(events)[-1:] == ["new"], WAIT)
    assert _contents(events) == [*numbers(0, 200), "new"]
    connected = next(at for at, event in enumerate(events) if isinstance(event, Connected))
    assert not any(event.missed for event in events[:connected] if isinstance(event, Received))
    assert isinstance(events[-1], Received)
    assert not events[-1].missed


def _contents(events: list[Event]) -> list[str]:
    return [event.content for event in events if isinstance(event, Received)]
