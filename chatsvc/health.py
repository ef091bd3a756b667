"""Health: whether clients should come here, in gRPC's own terms, and how to ask that.

Source: "GRPC Health Checking Protocol", doc/health-checking.md of gRPC.
"""

import threading
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from chatsvc.errors import ConnectionFailed
from chatsvc.link import CHANNEL_OPTIONS, cause
from chatsvc.proxy import way

SERVICES = ("", "chat.Broadcast", "chat.Chat")
"""Each has the same status; the first is the server as a whole."""


class Health:
    """The health service. NOT_SERVING until `set_serving`, and for good after `leave`.
    Thread-safe. `reason` is why clients should not come, in one line; empty while they should."""

    def __init__(self) -> None:
        self._servicer = health.HealthServicer()
        # Guards the status and its reason.
        self._lock = threading.Lock()
        self._serving = False
        self._leaving = False
        self.reason = "the server is starting"
        self._tell()

    def add_to(self, server: grpc.Server) -> None:
        """Registers the service."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    @property
    def is_serving(self) -> bool:
        """Whether clients should come."""
        return not self.reason

    def set_serving(self) -> None:
        """Tells whoever asks, and whoever watches, that clients should come."""
        self._set("")

    def set_not_serving(self, reason: str) -> None:
        """Tells them that clients should not come."""
        self._set(reason)

    def leave(self) -> None:
        """NOT_SERVING, whatever comes."""
        with self._lock:
            self._leaving = True
            self.reason = "the server is stopping"
        self._servicer.enter_graceful_shutdown()

    def _set(self, reason: str) -> None:
        with self._lock:
            if self._leaving:
                return
            self.reason = reason
            if self._serving == bool(reason):
                self._serving = not reason
                self._tell()

    def _tell(self) -> None:
        status = health_pb2.HealthCheckResponse
        for service in SERVICES:
            self._servicer.set(service, status.SERVING if self._serving else status.NOT_SERVING)


def ask(server: str, timeout: float) -> str:
    """What the server at `host:port` says of itself, as gRPC's protocol has it: `SERVING` if
    clients should come. Blocks for at most `timeout` seconds. Raises ConnectionFailed."""
    with grpc.insecure_channel(server, options=CHANNEL_OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise ConnectionFailed(_cause(error, server), (server,)) from error
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _cause(error: Any, server: str) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer in time{way(server)}"
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return "what answers has no health service"
    return cause(error, server)
