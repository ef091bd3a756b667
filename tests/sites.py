"""Servers in this process over one embedded broker, and streams at them."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc

from chatsvc.config import Config
from chatsvc.embedded import EmbeddedBroker
from chatsvc.pb import chat_pb2, chat_pb2_grpc
from chatsvc.server import Server

WAIT = 30
ANN = chat_pb2.User(id="ann", name="ann")


class Site:
    """Servers over one embedded broker, and streams at them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.broker = EmbeddedBroker()
        stack.callback(self.broker.close)
        self.brokers = self.broker.start()
        for topic in (Config.topic, Config.connections_topic):
            self.broker.make_topic(topic)

    def server(self, **settings: Any) -> tuple[Server, str]:
        """One more server and its address."""
        config = Config(port=0, metrics_port=0, **settings)
        server = Server(config, embedded=self.brokers)
        self._stack.callback(server.stop)
        return server, f"127.0.0.1:{server.start().port}"

    def channel(self, address: str) -> grpc.Channel:
        """One more connection, until the end of the test."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        return self._stack.enter_context(grpc.insecure_channel(address, options=options))

    def chat(self, address: str) -> Any:
        return chat_pb2_grpc.ChatStub(self.channel(address))

    def subscribe(
        self,
        address: str,
        cursor: bytes = b"",
        rooms: tuple[str, ...] = (),
        chat: Any = None,
    ) -> Any:
        request = chat_pb2.SubscribeRequest(user=ANN, cursor=cursor, rooms=rooms)
        stream = (chat or self.chat(address)).Subscribe(iter([request]), timeout=2 * WAIT)
        stream.initial_metadata()
        return stream

    def publish(self, address: str, contents: Iterator[str], user: str = "bob") -> None:
        """Sends messages of one user and waits until all are stored."""
        texts = list(contents)
        requests = (
            chat_pb2.PublishRequest(
                messages=[chat_pb2.Message(id=user, content=text) for text in texts[at : at + 20]]
            )
            for at in range(0, len(texts), 20)
        )
        results = list(self.chat(address).Publish(requests, timeout=WAIT))
        assert sum(len(result.outcomes) for result in results) == len(texts)


def read_until(stream: Any, content: str) -> tuple[list[str], bytes, list[bool]]:
    """The contents up to one, the cursor behind them, and of each whether all that was missed had
    been delivered before."""
    contents: list[str] = []
    live: list[bool] = []
    caught_up = False
    for delivery in stream:
        contents += [each.content for each in delivery.messages]
        live += [caught_up] * len(delivery.messages)
        caught_up = caught_up or delivery.caught_up
        if content in contents:
            return contents, delivery.cursor, live
    raise AssertionError("the stream ended")


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last)]
