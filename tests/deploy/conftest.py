"""nginx, and a stream through one that says nothing while other tests run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from chatsvc.pb import chat_pb2, chat_pb2_grpc

from .nginx import Nginx
from faults.conftest import verify
from serving import ServeProcess

__all__ = ["verify"]

Behind = Callable[[list[str]], Nginx]


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    """Starts nginx in front of three servers; it is ended after the test."""
    started: list[Nginx] = []

    def start(servers: list[str]) -> Nginx:
        started.append(Nginx(tmp_path, servers))
        return started[-1]

    yield start
    for nginx in started:
        nginx.close()


class Idle:
    """A stream of the seed's CreateStream, which has no heartbeats, and one of Publish, through
    nginx to a server of their own; both are silent."""

    def __init__(self, server: ServeProcess, nginx: Nginx) -> None:
        self.server = server
        self._channel = grpc.insecure_channel(nginx.address)
        self._broadcast: Any = chat_pb2_grpc.BroadcastStub(self._channel)
        user = chat_pb2.User(id="patient", name="patient")
        self.stream = self._broadcast.CreateStream(chat_pb2.Connect(user=user, active=True))
        self.stream.initial_metadata()
        self._requests: SimpleQueue[chat_pb2.PublishRequest | None] = SimpleQueue()
        chat: Any = chat_pb2_grpc.ChatStub(self._channel)
        self._results = chat.Publish(iter(self._requests.get, None))
        assert self.publish("hello") == chat_pb2.Outcome.COMMITTED
        self._began = time.monotonic()

    def wait(self, seconds: float) -> float:
        """Waits until both have been silent for so long, and returns for how long."""
        time.sleep(max(0.0, self._began + seconds - time.monotonic()))
        return time.monotonic() - self._began

    def send(self, content: str) -> None:
        """Sends to the first stream's room, by a call."""
        message = chat_pb2.Message(id="patient", content=content)
        self._broadcast.BroadcastMessage(message, timeout=60)

    def publish(self, *contents: str) -> int:
        """Sends to another room by the second stream; returns what became of all of them."""
        messages = [chat_pb2.Message(id="patient", content=each, room="x") for each in contents]
        self._requests.put(chat_pb2.PublishRequest(messages=messages))
        (status,) = {outcome.status for outcome in next(self._results).outcomes}
        return int(status)

    def close(self) -> None:
        self._requests.put(None)
        self._channel.close()


@pytest.fixture(scope="package")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Idle]:
    """Begins as soon as a test of this package asks for it, so that another may wait for less."""
    directory = tmp_path_factory.mktemp("idle")
    server = ServeProcess.started(directory / "server")
    try:
        nginx = Nginx(directory, 3 * [server.address])
        try:
            streams = Idle(server, nginx)
            yield streams
            streams.close()
        finally:
            nginx.close()
    finally:
        server.close()
