"""Reflection: what services there are and of which messages they are made, for tools that have not
got the proto.

Source: "GRPC Server Reflection Protocol", doc/server-reflection.md of gRPC.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from chatsvc.pb import chat_pb2

_HEALTH = "grpc.health.v1.Health"
# The services are described by the generated code, which has to be imported for that.
_DESCRIBED = tuple(f"chat.{name}" for name in chat_pb2.DESCRIPTOR.services_by_name)


class _Reflection:
    """The one method, in threads of a pool of its own: each stream keeps one for as long as its
    client likes, which must take none from the calls of the chat."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        # grpcio takes this pool for the method instead of the server's.
        self.experimental_thread_pool = pool
        names = (*_DESCRIBED, _HEALTH, reflection.SERVICE_NAME)
        self._servicer = reflection.ReflectionServicer(names)

    def __call__(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        answers: Iterator[Any] = self._servicer.ServerReflectionInfo(requests, context)
        return answers


def handler(pool: ThreadPoolExecutor) -> grpc.GenericRpcHandler:
    """What a grpc.Server has to register."""
    method = grpc.stream_stream_rpc_method_handler(
        _Reflection(pool),
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": method}
    )
