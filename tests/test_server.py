"""A server as a whole: start, stop, and what it takes from Kafka."""

import logging
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from confluent_kafka import Producer as KafkaProducer
from grpc._cython import cygrpc

from chatsvc import link, metadata
from chatsvc.client import ChatClient, Received, send_once
from chatsvc.config import Config
from chatsvc.embedded import EmbeddedBroker
from chatsvc.errors import KafkaUnreachable, PortTaken
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.server import Listening, Server, channel_options

from conftest import StartServer
from waiting import eventually

WAIT = 20
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024)]


def address(listening: Listening) -> str:
    return f"127.0.0.1:{listening.port}"


def is_free(port: int) -> bool:
    """Whether nobody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def scrape(listening: Listening) -> str:
    with urllib.request.urlopen(listening.metrics_url, timeout=WAIT) as answer:
        return str(answer.read().decode())


# Start


def test_a_taken_port_is_named(start_server: StartServer, taken: int) -> None:
    """A server whose port is taken says which, and how to choose another."""
    with pytest.raises(PortTaken) as caught:
        start_server(port=taken)
    assert caught.value.option == "--port"
    assert str(caught.value).startswith(f"Cannot listen on 127.0.0.1:{taken}: ")


def test_two_servers_do_not_share_a_port(start_server: StartServer) -> None:
    """A second server on the port of a first one fails, it does not take half of its clients."""
    _, listening = start_server()
    with pytest.raises(PortTaken):
        start_server(port=listening.port)


def test_a_taken_metrics_port_is_named(start_server: StartServer, taken: int) -> None:
    """The side port is told apart from the port."""
    with pytest.raises(PortTaken) as caught:
        start_server(metrics_port=taken)
    assert caught.value.option == "--metrics-port"


def test_a_failed_start_is_undone(taken: int) -> None:
    """When the last step fails nothing of the others is left: no thread, no port."""
    metrics_port = free_port()
    before = set(threading.enumerate())
    server = Server(Config(port=taken, metrics_port=metrics_port))
    with pytest.raises(PortTaken):
        server.start()
    assert is_free(metrics_port)
    assert not set(threading.enumerate()) - before
    server.stop()


def test_without_kafka_there_is_no_start(start_server: StartServer) -> None:
    """A broker that nobody listens at is named, with what to do."""
    port = free_port()
    with pytest.raises(KafkaUnreachable) as caught:
        start_server(brokers=(f"127.0.0.1:{port}",), kafka_timeout=0.5)
    assert f"Cannot reach Kafka at 127.0.0.1:{port}: connection refused" in str(caught.value)


def test_a_server_may_have_an_address_of_ipv6(start_server: StartServer) -> None:
    """A host with colons is listened on and can be connected to."""
    _, listening = start_server(host="::1")
    with ChatClient("bob", [f"[::1]:{listening.port}"]) as bob:
        assert bob.connect().server_id


# Stop


def test_a_stop_frees_everything(start_server: StartServer) -> None:
    """Ports, threads and descriptors are as before; a second stop does nothing."""

    def come_and_go() -> Listening:
        server, listening = start_server()
        with ChatClient("bob", [address(listening)]) as bob:
            bob.connect()
            bob.send("hi")
        server.stop()
        server.stop()
        return listening

    come_and_go()  # what is loaded once has been loaded
    threads, descriptors = set(threading.enumerate()), open_files()
    assert is_free(come_and_go().port)
    assert not set(threading.enumerate()) - threads
    assert eventually(lambda: open_files() <= descriptors)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_stop_before_start_does_nothing() -> None:
    """A server that was not started can be stopped."""
    Server(Config(port=0, metrics_port=0)).stop()


def join(listening: Listening, options: list[tuple[str, int]]) -> tuple[grpc.Channel, Any]:
    """A stream that is registered, and its channel."""
    channel = grpc.insecure_channel(address(listening), options=options)
    connect = chat_pb2.Connect(user=chat_pb2.User(id="bob"), active=True)
    stream = chat_pb2_grpc.BroadcastStub(channel).CreateStream(connect, timeout=2 * WAIT)
    stream.initial_metadata()
    return channel, stream


def test_a_stop_ends_streams_with_a_status(start_server: StartServer) -> None:
    """A client is told that the server stops and how soon to look for another."""
    server, listening = start_server()
    channel, stream = join(listening, [])
    server.stop()
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "server is shutting down; connect to another one"
    assert dict(caught.value.trailing_metadata())[metadata.RETRY_AFTER] == "100"
    channel.close()


def test_a_stop_delivers_what_is_in_the_outboxes(start_server: StartServer) -> None:
    """A client that is behind gets all there is while the server stops, and then the status."""
    server, listening = start_server()
    channel, stream = join(listening, SMALL_WINDOW)
    stub = chat_pb2_grpc.BroadcastStub(channel)
    sent = [f"{number} {'x' * 4_000}" for number in range(100)]
    for content in sent:
        stub.BroadcastMessage(chat_pb2.Message(id="ann", content=content), timeout=WAIT)
    sample = server.metrics.registry.get_sample_value
    # What Kafka has and the server has not read yet is in no outbox.
    assert eventually(lambda: sample("chatsvc_messages_received_total") == len(sent))
    assert sample("chatsvc_outbox_depth_messages")
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    assert eventually(lambda: is_free(listening.port))
    received = []
    with pytest.raises(grpc.RpcError) as caught:  # noqa: PT012  # it is raised by the last one
        for message in stream:
            received.append(message.content)
    assert received == sent
    assert "server is shutting down" in caught.value.details()
    stopping.join()
    channel.close()


def test_a_client_that_does_not_read_does_not_stop_a_stop(start_server: StartServer) -> None:
    """What a client does not take in time is cut off, and the server ends."""
    server, listening = start_server(stop_timeout=2.0)
    channel, stream = join(listening, SMALL_WINDOW)
    stub = chat_pb2_grpc.BroadcastStub(channel)
    for _ in range(100):
        message = chat_pb2.Message(id="ann", content="x" * 4_000)
        stub.BroadcastMessage(message, timeout=WAIT)
    server.stop()
    assert is_free(listening.port)
    channel.close()
    assert not stream.is_active()


def test_a_server_that_leaves_says_so(start_server: StartServer) -> None:
    """The others forget a stopped server and its users at once."""
    broker = EmbeddedBroker()
    brokers = broker.start()
    for topic in (Config.topic, Config.connections_topic):
        broker.make_topic(topic)
    first, listening = start_server(server_id="first", brokers=brokers)
    second, _ = start_server(server_id="second", brokers=brokers, server_timeout=1_000.0)
    with ChatClient("bob", [address(listening)]) as bob:
        bob.connect()
        assert eventually(lambda: second.presence.where("bob") == {"first"})
        first.stop()
        assert eventually(lambda: set(second.presence.servers()) == {"second"})
    second.stop()
    broker.close()


# Kafka


class Tool:
    """Another Kafka tool that writes to the chat topic."""

    def __init__(self, listening: Listening) -> None:
        brokers = ",".join(listening.brokers)
        self._client = KafkaProducer({"bootstrap.servers": brokers, "log_level": 0})

    def write(self, value: bytes | None, partition: int = 0) -> None:
        self._client.produce("chatting", value, key=b"gopher", partition=partition)
        assert self._client.flush(WAIT) == 0


def received(bob: ChatClient) -> Received:
    event = bob.receive(WAIT)
    assert isinstance(event, Received)
    return event


SEEDS_RECORD = {
    "id": "gopher",
    "content": "Hello World!",
    "timestamp": "2024-01-19T20:15:30.123456789+09:00",
    "user_id": "gopher",
}


def test_a_record_of_the_seed_is_delivered(start_server: StartServer) -> None:
    """What the Go server writes, without room and message_id, reaches our clients."""
    _, listening = start_server()
    with ChatClient("bob", [address(listening)]) as bob:
        bob.connect()
        Tool(listening).write(orjson.dumps(SEEDS_RECORD))
        message = received(bob)
    assert (message.user, message.content, message.message_id) == ("gopher", "Hello World!", "")


STRANGE = {
    "not_json": b"\xff\x00rubbish",
    "not_an_object": b"[1, 2]",
    "missing_key": b'{"price": 7}',
    "wrong_type": b'{"id": "gopher", "content": 7}',
    "too_large": orjson.dumps({**SEEDS_RECORD, "content": "x" * 900_000}),
    "no_value": None,
}


def test_strange_records_are_counted_and_skipped(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The good record behind them arrives first, and nothing is louder than a count."""
    server, listening = start_server()
    with ChatClient("bob", [address(listening)]) as bob:
        bob.connect()
        tool = Tool(listening)
        for value in STRANGE.values():
            tool.write(value)
        tool.write(orjson.dumps(SEEDS_RECORD))
        assert received(bob).content == "Hello World!"
    sample = server.metrics.registry.get_sample_value
    counts = {
        reason: sample("chatsvc_records_invalid_total", {"topic": "chatting", "reason": reason})
        for reason in STRANGE
    }
    assert counts == dict.fromkeys(STRANGE, 1.0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_every_partition_is_delivered(start_server: StartServer) -> None:
    """Whichever partition another tool writes to, clients get it."""
    _, listening = start_server()
    with ChatClient("bob", [address(listening)]) as bob:
        bob.connect()
        tool = Tool(listening)
        for partition in range(4):
            tool.write(orjson.dumps({**SEEDS_RECORD, "content": f"{partition}"}), partition)
        assert {received(bob).content for _ in range(4)} == {"0", "1", "2", "3"}


# Names that nobody would miss if they were wrong

OPTIONS = [name for name, _ in channel_options(Config())]
CLIENT_OPTIONS = [name for name, _ in link.CHANNEL_OPTIONS]


@pytest.mark.parametrize("name", sorted({*OPTIONS, *CLIENT_OPTIONS}))
def test_grpc_knows_the_channel_option(name: str) -> None:
    """The name is in gRPC's binary, which ignores others silently."""
    assert name.encode() + b"\0" in Path(cygrpc.__file__).read_bytes()


METRICS = [
    "connections_active",
    "connections_limit",
    "replays_active",
    "publish_streams_active",
    "duplicates_remembered",
    "publish_latency_seconds",
    "kafka_brokers_up",
    "kafka_brokers_known",
    "kafka_in_sync_replicas",
    "kafka_connected",
    "kafka_rtt_seconds",
    "kafka_throttle_seconds",
    "kafka_request_timeouts_total",
    "kafka_queue_records",
    "kafka_queue_bytes",
    "connections_total",
    "connections_failed_total",
    "disconnects_total",
    "messages_received_total",
    "messages_published_total",
    "messages_delivered_total",
    "messages_dropped_total",
    "message_latency_seconds",
    "delivery_latency_seconds",
    "produce_latency_seconds",
    "produce_errors_total",
    "rpc_errors_total",
    "records_invalid_total",
    "records_lost_total",
    "consumer_lag_messages",
    "outbox_depth_messages",
    "outbox_depth_max_messages",
    "sender_threads",
    "servers_known",
    "users_known",
]


def test_a_scrape_has_every_metric(start_server: StartServer) -> None:
    """The side port shows the names that dashboards are built on, and the process's own."""
    _, listening = start_server()
    text = scrape(listening)
    missing = [name for name in METRICS if f"# HELP chatsvc_{name} " not in text]
    assert not missing
    assert "process_resident_memory_bytes " in text


def test_a_scrape_counts_what_happened(start_server: StartServer) -> None:
    """One client that sends one message is one of each."""
    server, listening = start_server()
    with ChatClient("bob", [address(listening)]) as bob:
        bob.connect()
        bob.send("hi")
        received(bob)
        assert eventually(lambda: server.presence.where("bob"))
        shown = scrape(listening).splitlines()
    for name in ("connections_active", "connections_total", "messages_received_total"):
        assert f"chatsvc_{name} 1.0" in shown
    for name in ("messages_published_total", "messages_delivered_total", "users_known"):
        assert f"chatsvc_{name} 1.0" in shown
    assert "chatsvc_message_latency_seconds_count 1.0" in shown


def test_a_sender_waits_as_long_as_is_shown(start_server: StartServer) -> None:
    """Each message that was confirmed is in the histogram once, by call and by stream; one that
    was refused is not."""
    server, listening = start_server()
    with ChatClient("bob", [address(listening)]) as bob:
        bob.connect()
        bob.send("by a call")
        outcomes: list[Any] = []
        for _ in range(5):
            bob.post("by a stream", on_outcome=lambda *outcome: outcomes.append(outcome))
        assert eventually(lambda: len(outcomes) == 5)
        with grpc.insecure_channel(address(listening)) as channel:
            stub = chat_pb2_grpc.BroadcastStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.BroadcastMessage(chat_pb2.Message(id="bob"), timeout=WAIT)
    sample = server.metrics.registry.get_sample_value
    assert sample("chatsvc_messages_published_total") == 6
    assert eventually(lambda: sample("chatsvc_publish_latency_seconds_count") == 6)
    assert 0 < (sample("chatsvc_publish_latency_seconds_sum") or 0) < 6 * WAIT


def test_kafka_is_shown(start_server: StartServer) -> None:
    """The embedded broker is up, in sync, connected to and answers, as its clients tell."""
    server, listening = start_server(partitions_interval=0.1)
    send_once("bob", "hi", [address(listening)])
    sample = server.metrics.registry.get_sample_value
    broker = {"client": "producer", "broker": "1"}
    assert eventually(lambda: sample("chatsvc_kafka_connected", broker) == 1)
    assert eventually(lambda: sample("chatsvc_kafka_rtt_seconds", broker))
    assert sample("chatsvc_kafka_request_timeouts_total", broker) == 0
    for client in ("producer", "chatting", "user-connections"):
        queue = {"client": client}
        assert eventually(lambda q=queue: sample("chatsvc_kafka_queue_records", q) == 0)
    assert sample("chatsvc_kafka_brokers_up") == 1
    assert sample("chatsvc_kafka_brokers_known") == 1
    partition = {"topic": "chatting", "partition": "0"}
    assert sample("chatsvc_kafka_in_sync_replicas", partition) == 1


def test_what_is_open_is_shown(start_server: StartServer) -> None:
    """The limit of streams, streams of Publish, and the messages whose repetition is noticed."""
    server, listening = start_server(max_connections=7)
    with ChatClient("bob", [address(listening)]) as bob:
        bob.connect()
        bob.post("hi")
        received(bob)
        sample = server.metrics.registry.get_sample_value
        assert sample("chatsvc_connections_limit") == 7
        assert sample("chatsvc_publish_streams_active") == 1
        assert sample("chatsvc_duplicates_remembered") == 1
        assert eventually(lambda: sample("chatsvc_replays_active") == 0)
        assert eventually(lambda: sample("chatsvc_publish_streams_active") == 0)


def test_no_metric_names_a_user(start_server: StartServer) -> None:
    """Labels are few and known: who is connected is not for Prometheus."""
    _, listening = start_server()
    with ChatClient("bob-the-user", [address(listening)]) as bob:
        bob.connect()
        bob.send("hi")
        received(bob)
        assert "bob-the-user" not in scrape(listening)
