"""nginx, and a stream through one that says nothing while other tests run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
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
    """A stream of the seed's CreateStream, which has no heartbeats, through nginx to a server of
    its own, since a while."""

    def __init__(self, server: ServeProcess, nginx: Nginx) -> None:
        self.server = server
        self.nginx = nginx
        self._channel = grpc.insecure_channel(nginx.address)
        self._stub: Any = chat_pb2_grpc.BroadcastStub(self._channel)
        user = chat_pb2.User(id="patient", name="patient")
        self.stream = self._stub.CreateStream(chat_pb2.Connect(user=user, active=True))
        self.stream.initial_metadata()
        self._began = time.monotonic()

    def wait(self, seconds: float) -> float:
        """Waits until the stream is so old, and returns how old it is."""
        time.sleep(max(0.0, self._began + seconds - time.monotonic()))
        return time.monotonic() - self._began

    def send(self, content: str) -> None:
        """Sends to the stream's room on the same connection."""
        self._stub.BroadcastMessage(chat_pb2.Message(id="patient", content=content), timeout=60)

    def close(self) -> None:
        self.stream.cancel()
        self._channel.close()


@pytest.fixture(scope="package")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Idle]:
    """Begins as soon as a test of this package asks for it, so that another may wait for less."""
    directory = tmp_path_factory.mktemp("idle")
    server = ServeProcess.started(directory / "server")
    try:
        nginx = Nginx(directory, 3 * [server.address])
        try:
            stream = Idle(server, nginx)
            yield stream
            stream.close()
        finally:
            nginx.close()
    finally:
        server.close()
