"""Clients that behave badly cost themselves their stream, and nobody else anything."""

import contextlib
import socket
import threading

import grpc
import pytest

from chatsvc.pb import chat_pb2, chat_pb2_grpc

import resources
from .test_scale import KAFKA_FILES, RPC_THREADS, crowd, talk, verdict
from brokers import Brokers
from conftest import Measured, Serve
from waiting import eventually

LISTENERS = 100
PADDING = 4_000
"""Characters that fill the window of a client that does not read."""
MESSAGES = 100
SLOW = 'chatsvc_rpc_errors_total{code="RESOURCE_EXHAUSTED",method="CreateStream"}'
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024)]


def _connect(user: str) -> chat_pb2.Connect:
    return chat_pb2.Connect(user=chat_pb2.User(id=user), active=True)


class Babble:
    """Streams that are opened and cancelled in the middle, again and again."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="babble")
        self.cancelled = 0

    def _run(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            stub = chat_pb2_grpc.BroadcastStub(channel)
            while not self._stop.is_set():
                call = stub.CreateStream(_connect("fickle"))
                next(call)
                call.cancel()
                self.cancelled += 1

    def __enter__(self) -> "Babble":
        self._thread.start()
        return self

    def stop(self) -> None:
        """To be called while messages still arrive, which end the last wait for one."""
        self._stop.set()

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()


@pytest.mark.kafka
def test_bad_clients_disturb_nobody(brokers: Brokers, serve: Serve, measured: Measured) -> None:
    """One client stops reading, one never speaks HTTP/2, one opens calls and sends no request,
    one cancels all the time: a hundred others receive everything, and all is given back."""
    server = serve(brokers)
    address = server.address
    talk(address, 5, 20)
    base = resources.of(server.pid)
    with crowd(address, LISTENERS, MESSAGES) as listening:
        talk(address, MESSAGES, 50, padding=PADDING)
        measured(f"P99 alone: {verdict(listening)['latency_ms']}")
    host, port = address.split(":")
    with (
        grpc.insecure_channel(address, options=SMALL_WINDOW) as stalled_channel,
        socket.create_connection((host, int(port))) as silent,
        grpc.insecure_channel(address) as mute_channel,
    ):
        over = threading.Event()
        stalled = chat_pb2_grpc.BroadcastStub(stalled_channel).CreateStream(_connect("stalled"))
        stalled.initial_metadata()
        open_calls = mute_channel.stream_stream("/chat.Broadcast/BroadcastMessage")
        mute = [open_calls(iter(over.wait, True)) for _ in range(20)]
        with crowd(address, LISTENERS, MESSAGES) as listening, Babble(address) as babble:
            talk(address, MESSAGES, 50, padding=PADDING)
            babble.stop()
            talk(address, 1, 50)
            result = verdict(listening)
        assert eventually(lambda: all(call.done() for call in mute), 30)
        over.set()
        measured(f"P99 beside bad clients: {result['latency_ms']}; {babble.cancelled} cancelled")
        assert (result["complete"], result["twice"], result["disorder"]) == (LISTENERS, 0, 0)
        assert all(call.code() is grpc.StatusCode.CANCELLED for call in mute)
        assert eventually(lambda: server.metrics().get(SLOW) == 1, 60)
        assert _end(stalled) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert _closed_by_server(silent)
    assert eventually(lambda: resources.connections(address) == 0, 60)
    assert eventually(lambda: resources.of(server.pid).files <= base.files + KAFKA_FILES, 60)
    assert eventually(lambda: resources.of(server.pid).threads <= base.threads + RPC_THREADS, 60)


def _closed_by_server(connection: socket.socket) -> bool:
    connection.settimeout(60)
    while connection.recv(65_536):
        pass
    return True


def _end(call: grpc.Call) -> grpc.StatusCode:
    """Reads what a stream still has and returns its status."""
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
    return call.code()
