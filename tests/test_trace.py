"""The trace id of a message: what counts as one, and where it is found again."""

import logging

import grpc
import pytest
from confluent_kafka import Consumer, TopicPartition

from chatsvc import logs, trace
from chatsvc.client import ChatClient, Received, send_once
from chatsvc.errors import SendFailed
from chatsvc.pb import chat_pb2, chat_pb2_grpc

from sites import WAIT, Site
from waiting import eventually

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LONG = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("pairs", "trace_id"),
    [
        (None, ""),
        ([], ""),
        ([("user-agent", "grpc")], ""),
        ([("chatsvc-trace-id", "order-4711_a.b")], "order-4711_a.b"),
        ([("traceparent", PARENT)], LONG),
        ([("traceparent", PARENT), ("chatsvc-trace-id", "mine")], "mine"),
        ([("chatsvc-trace-id", "mine"), ("traceparent", PARENT)], "mine"),
        ([("chatsvc-trace-id", ""), ("traceparent", PARENT)], LONG),
        ([("chatsvc-trace-id", "two words")], ""),
        ([("chatsvc-trace-id", "x" * 65)], ""),
        ([("traceparent", PARENT.upper())], ""),
        ([("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01")], ""),
        ([("traceparent", f"01{PARENT[2:]}-what-comes-in-later-versions")], LONG),
        ([("traceparent", "00-4bf9")], ""),
    ],
)
def test_what_is_a_trace_id(pairs: list[tuple[str, str | bytes]] | None, trace_id: str) -> None:
    """Ours comes first, then W3C's; what is neither counts for nothing."""
    assert trace.of_metadata(pairs) == trace_id


@pytest.mark.parametrize(
    ("pairs", "trace_id"),
    [
        (None, ""),
        ([("other", b"x"), ("trace-id", b"t-1")], "t-1"),
        ([("trace-id", None)], ""),
        ([("trace-id", b"\xff\x00")], ""),
        ([("trace-id", b"a\nforged line")], ""),
        ([("trace-id", b"x" * 100_000)], ""),
    ],
)
def test_headers_of_others_are_not_trusted(pairs: object, trace_id: str) -> None:
    """Any Kafka tool may write them: nothing but a trace id gets into a log line."""
    assert trace.of_headers(pairs) == trace_id


def lines(caplog: pytest.LogCaptureFixture, trace_id: str) -> list[str]:
    """What the logs say of a message."""
    return [each.message for each in caplog.records if getattr(each, "trace_id", "") == trace_id]


def test_a_message_is_followed(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """From the call at one server to the record, and to the fan-out of both servers; what it says
    is in no line."""
    caplog.set_level(logging.DEBUG, "chatsvc")
    _, first = site.server()
    _, second = site.server()
    with ChatClient("ann", [first]) as ann, ChatClient("bob", [second]) as bob:
        ann.connect()
        bob.connect()
        ann.send("a secret", trace_id="t-1")
        assert isinstance(bob.receive(WAIT), Received)
        assert eventually(lambda: len(lines(caplog, "t-1")) == 3)
    found = sorted(lines(caplog, "t-1"))
    assert [line.split(" - ")[0] for line in found] == [
        "Message forwarded to local clients",
        "Message forwarded to local clients",
        "Message sent to Kafka",
    ]
    assert "a secret" not in caplog.text
    assert headers(site) == [[("trace-id", b"t-1")]]


def headers(site: Site) -> list[object]:
    """The headers of all chat records, as another Kafka client reads them."""
    reader = Consumer({"bootstrap.servers": ",".join(site.brokers), "group.id": "test"})
    topics = reader.list_topics("chatting", timeout=WAIT).topics["chatting"]
    places = [TopicPartition("chatting", each, 0) for each in topics.partitions]
    count = sum(reader.get_watermark_offsets(place, timeout=WAIT)[1] for place in places)
    reader.assign(places)
    read: list[object] = []
    while len(read) < count:
        record = reader.poll(WAIT)
        assert record is not None
        read.append(record.headers())
    reader.close()
    return read


def test_a_stream_may_be_followed(site: Site) -> None:
    """All messages of a stream of Publish have the trace id of its call, in W3C's form here."""
    _, address = site.server()
    messages = [chat_pb2.Message(id="bob", content=f"{number}") for number in range(3)]
    stub = chat_pb2_grpc.ChatStub(site.channel(address))
    request = chat_pb2.PublishRequest(messages=messages)
    keys = (("traceparent", PARENT),)
    assert len(list(stub.Publish(iter([request]), timeout=WAIT, metadata=keys))) >= 1
    assert headers(site) == [[("trace-id", LONG.encode())]] * 3


def test_without_a_trace_id_there_is_no_header(site: Site) -> None:
    """Also where a client sends one that is none: the message is sent all the same."""
    _, address = site.server()
    send_once("ann", "hi", [address])
    stub = chat_pb2_grpc.BroadcastStub(site.channel(address))
    keys = (("chatsvc-trace-id", "two words"),)
    stub.BroadcastMessage(chat_pb2.Message(id="bob", content="hi"), timeout=WAIT, metadata=keys)
    assert headers(site) == [None, None]


def test_a_refusal_is_found_by_the_trace_id(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The warning that a message could not be written mentions it."""
    _, address = site.server(publish_timeout=0.3)
    site.broker.close()
    stub = chat_pb2_grpc.BroadcastStub(site.channel(address))
    with pytest.raises(grpc.RpcError):
        stub.BroadcastMessage(
            chat_pb2.Message(id="bob", content="hi"),
            timeout=WAIT,
            metadata=(("chatsvc-trace-id", "t-2"),),
        )
    (line,) = lines(caplog, "t-2")
    assert line.startswith("Failed to send message to Kafka")


def test_a_client_refuses_what_is_no_trace_id(site: Site) -> None:
    """It would be left out in silence else."""
    _, address = site.server()
    with ChatClient("ann", [address]) as ann:
        ann.connect()
        with pytest.raises(SendFailed, match="trace_id"):
            ann.send("hi", trace_id="two words")


@pytest.mark.parametrize(
    ("form", "shown"), [("text", " INFO hello, Trace: t-1\n"), ("json", '"trace_id": "t-1"}\n')]
)
def test_log_lines_show_it(form: str, shown: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In both forms; a line without one is as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        logs.configure(form, "info")
        root.info("hello", extra=trace.extra("t-1"))
        root.info("hello", extra=trace.extra(""))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    first, second = capfd.readouterr().err.splitlines(keepends=True)
    assert first.endswith(shown)
    assert "race" not in second
