from collections.abc import Iterator
from pathlib import Path
from threading import Event

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from chatsvc.client import send_once
from chatsvc.pb import chat_pb2

from serving import ServeProcess
from sites import WAIT, Site


def test_a_tool_without_the_proto_learns_it(site: Site) -> None:
    """All services are listed, and their methods and messages are those of the proto."""
    _, address = site.server(reflection=True)
    database = ProtoReflectionDescriptorDatabase(site.channel(address))
    assert {"chat.Broadcast", "chat.Chat", "grpc.health.v1.Health"} <= set(database.get_services())
    pool = descriptor_pool.DescriptorPool(database)
    for name, service in chat_pb2.DESCRIPTOR.services_by_name.items():
        told = pool.FindServiceByName(f"chat.{name}")
        assert set(told.methods_by_name) == set(service.methods_by_name)
    message = pool.FindMessageTypeByName("chat.Message")
    assert set(message.fields_by_name) == set(chat_pb2.Message.DESCRIPTOR.fields_by_name)


def test_each_worker_tells(tmp_path: Path) -> None:
    """`serve --reflection` reaches the workers, whichever of them is asked."""
    server = ServeProcess.started(tmp_path, "--reflection", "--workers", "2")
    try:
        for _ in range(4):
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(server.address, options=options) as channel:
                services = ProtoReflectionDescriptorDatabase(channel).get_services()
            assert "chat.Chat" in services
    finally:
        server.close()


def test_without_the_option_nothing_is_told(site: Site) -> None:
    """It is off by default: the method is not there."""
    _, address = site.server()
    stub = reflection_pb2_grpc.ServerReflectionStub(site.channel(address))
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as raised:
        list(stub.ServerReflectionInfo(iter([request]), timeout=WAIT))
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_who_looks_takes_no_thread_from_the_chat(site: Site) -> None:
    """More streams of reflection than there are threads, none of which says anything, and
    messages are sent and delivered all the same."""
    _, address = site.server(reflection=True, max_connections=10)
    done = Event()

    def nothing() -> Iterator[object]:
        done.wait(WAIT)
        yield from ()

    stub = reflection_pb2_grpc.ServerReflectionStub(site.channel(address))
    looks = [stub.ServerReflectionInfo(nothing()) for _ in range(12)]
    try:
        site.publish(address, iter(["hello"]))
        assert send_once("ann", "hello", [address])
    finally:
        done.set()
        for look in looks:
            look.cancel()
