"""The same message in the log twice: each server delivers it once."""

import grpc
import pytest

from .calls import Chat, contents_until
from .proxy import Proxy, Way
from brokers import Brokers
from conftest import Serve

pytestmark = pytest.mark.kafka


def test_what_two_servers_have_written_is_delivered_once(brokers: Brokers, serve: Serve) -> None:
    """A sender that has moved sends again what the other server has written already: readers of
    both are given it once, live and when they come back."""
    with Chat(serve(brokers).address) as one, Chat(serve(brokers).address) as other:
        streams = [one.subscribe(), other.subscribe()]
        cursors = [next(stream).cursor for stream in streams]
        one.send("hello", "id-1")
        other.send("hello", "id-1")
        one.send("the end", "id-2")
        for stream in streams:
            assert contents_until(stream, "the end") == ["hello", "the end"]
        for chat, cursor in zip((one, other), cursors, strict=True):
            resumed = chat.subscribe(cursor)
            assert contents_until(resumed, "the end") == ["hello", "the end"]


def test_a_repeat_is_not_replayed_by_a_new_server(brokers: Brokers, serve: Serve) -> None:
    """A server that has started after both records delivers one of them, too."""
    with Chat(serve(brokers).address) as one, Chat(serve(brokers).address) as other:
        cursor = next(one.subscribe()).cursor
        one.send("hello", "id-1")
        other.send("hello", "id-1")
        one.send("the end", "id-2")
    with Chat(serve(brokers).address) as new:
        resumed = new.subscribe(cursor)
        assert contents_until(resumed, "the end") == ["hello", "the end"]


def test_a_retry_of_what_was_written_is_delivered_once(brokers: Brokers, serve: Serve) -> None:
    """The answer to a sender is lost on its way, so it sends again in vain."""
    server = serve(brokers)
    with (
        Proxy(server.address) as proxy,
        Chat(proxy.address) as sender,
        Chat(server.address) as reader,
    ):
        stream = reader.subscribe()
        next(stream)
        sender.send("before", "id-1")
        proxy.turn(Way.CLOSED)
        unanswered = sender.refusal("hello", "id-2", timeout=3)
        assert unanswered.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert contents_until(stream, "hello") == ["before", "hello"]
        reader.send("hello", "id-2")
        reader.send("the end", "id-3")
        assert contents_until(stream, "the end") == ["the end"]
