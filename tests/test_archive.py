"""Older messages, asked for at a real server."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from chatsvc.client import ChatClient, Connected, Received
from chatsvc.errors import ConnectionFailed
from chatsvc.pages import Pages
from chatsvc.pb import chat_pb2

from sites import ANN, WAIT, Site, numbers, read_until
from waiting import eventually


def request(**fields: Any) -> chat_pb2.HistoryRequest:
    return chat_pb2.HistoryRequest(**fields)


def contents(page: chat_pb2.HistoryPage) -> list[str]:
    return [message.content for message in page.messages]


@pytest.fixture
def address(site: Site) -> str:
    """A server at which 3,000 numbers were said by one user, and little by others in a room."""
    _, address = site.server()
    stream = site.subscribe(address)
    site.publish(address, iter(numbers(0, 3_000)))
    read_until(stream, "2999")
    return address


def test_pages_both_ways_and_then_live(site: Site, address: str) -> None:
    """Backwards from the newest, forwards again, and on with a subscription: nothing is missing and
    nothing twice."""
    chat = site.chat(address)
    newest = chat.History(request(backwards=True, limit=100), timeout=WAIT)
    assert contents(newest) == numbers(2_900, 3_000)
    assert not newest.end
    older = chat.History(request(backwards=True, cursor=newest.before), timeout=WAIT)
    assert contents(older) == numbers(2_850, 2_900)
    again = chat.History(request(cursor=older.before, limit=60), timeout=WAIT)
    assert contents(again) == numbers(2_850, 2_910)
    site.publish(address, iter(["new"]))
    live, _, _ = read_until(site.subscribe(address, again.after), "new")
    assert live == [*numbers(2_910, 3_000), "new"]


def test_a_page_from_a_time_on(site: Site, address: str) -> None:
    """All from then on, which is nothing if that is now."""
    time.sleep(0.01)  # the messages' times are of whole milliseconds
    now = Timestamp()
    now.GetCurrentTime()
    chat = site.chat(address)
    page = chat.History(request(since=now), timeout=WAIT)
    assert page.end
    assert not page.messages
    page = chat.History(request(since=Timestamp(seconds=1), limit=10), timeout=WAIT)
    assert contents(page) == numbers(0, 10)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limit": 1_001}, "limit"),
        ({"cursor": b"x"}, "cursor"),
        ({"cursor": b"x", "since": Timestamp(seconds=1)}, "since"),
        ({"since": Timestamp(seconds=1 << 60)}, "since"),
        ({"rooms": ["\n"]}, "rooms"),
    ],
)
def test_a_bad_request_names_what_is_wrong(
    site: Site, address: str, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        site.chat(address).History(request(**fields), timeout=WAIT)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"last": 10_001}, "last"),
        ({"last": 5, "cursor": b"x"}, "last"),
        ({"since": Timestamp(nanos=-1)}, "since"),
    ],
)
def test_a_bad_beginning_names_what_is_wrong(
    site: Site, address: str, fields: dict[str, Any], field: str
) -> None:
    stream = site.chat(address).Subscribe(
        iter([chat_pb2.SubscribeRequest(user=ANN, **fields)]), timeout=WAIT
    )
    with pytest.raises(grpc.RpcError) as refused:
        next(stream)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(f"{field}: ")


def test_a_subscription_begins_with_the_last_messages(site: Site, address: str) -> None:
    """As many as it asks for, then `caught_up`, then what is new."""
    asked = chat_pb2.SubscribeRequest(user=ANN, last=7)
    stream = site.chat(address).Subscribe(iter([asked]), timeout=WAIT)
    assert [message.content for message in next(stream).messages] == numbers(2_993, 3_000)
    site.publish(address, iter(["new"]))
    live, _, _ = read_until(stream, "new")
    assert live == ["new"]


def test_a_client_begins_where_it_is_told_to(site: Site, address: str) -> None:
    """With the last messages, from a time on, or behind a cursor; these came earlier."""
    with ChatClient("ann", [address], last=3) as client:
        client.connect()
        events = [client.receive(WAIT) for _ in range(3)]
        assert [(each.content, each.earlier) for each in events if isinstance(each, Received)] == [
            (content, True) for content in numbers(2_997, 3_000)
        ]
        client.send("now")
        last = client.receive(WAIT)
        assert isinstance(last, Received)
        assert (last.content, last.earlier, last.missed) == ("now", False, False)
    since = datetime.now(UTC) - timedelta(hours=1)
    with ChatClient("ann", [address], since=since) as client:
        client.connect()
        first = client.receive(WAIT)
        assert isinstance(first, Received)
        assert first.content == "0"
    with Pages([address]) as pages:
        cursor = pages.newest(5)[0].before
    with ChatClient("ann", [address], cursor=cursor) as client:
        client.connect()
        first = client.receive(WAIT)
        assert isinstance(first, Received)
        assert first.content == "2996"


def test_a_stream_that_is_lost_before_its_first_delivery_goes_on(site: Site, host: Any) -> None:
    """The server tells the cursor with the registration."""
    _, address = site.server()
    keys = dict(site.subscribe(address).initial_metadata())
    stream = site.subscribe(address, keys["chatsvc-cursor-bin"])
    site.publish(address, iter(["first"]))
    assert read_until(stream, "first")[0] == ["first"]


def test_pages_of_many_messages(site: Site, address: str) -> None:
    """More than fit into a page, from either end; from another server if one is away."""
    with Pages(["127.0.0.1:1", address]) as pages:
        newest = [each for page in pages.newest(2_500) for each in contents(page)]
        assert newest == numbers(500, 3_000)
        everything = [
            each
            for page in pages.since(datetime(2020, 1, 1, tzinfo=UTC))
            for each in contents(page)
        ]
        assert everything == numbers(0, 3_000)
        assert [contents(page) for page in pages.newest(0)] != []
    with Pages(["127.0.0.1:1"]) as pages, pytest.raises(ConnectionFailed):
        pages.newest(1)


def test_history_of_a_room(site: Site) -> None:
    """Only what was said there."""
    _, address = site.server()
    with ChatClient("ann", [address], ["tea", ""]) as client:
        assert isinstance(client.connect(), Connected)
        for number in range(40):
            client.send(str(number), room="tea" if number % 4 == 0 else "")
        assert eventually(lambda: client.receive(WAIT).content == "39")  # type: ignore[union-attr]
    with Pages([address], ["tea"]) as pages:
        assert contents(pages.newest(4)[0]) == ["24", "28", "32", "36"]
