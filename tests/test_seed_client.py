"""A client that was generated from the seed's proto talks to a chatsvc server unchanged."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import StartServer

SEED = Path(__file__).parent / "seed"

# A process of its own: two versions of package chat do not fit into one.
PROGRAM = """
import sys
import grpc
import seed_pb2, seed_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = seed_pb2_grpc.BroadcastStub(channel)
    user = seed_pb2.User(id="gopher", name="Gopher")
    stream = stub.CreateStream(seed_pb2.Connect(user=user, active=True), timeout=20)
    stream.initial_metadata()
    message = seed_pb2.Message(id="gopher", content="Hello World!")
    message.timestamp.GetCurrentTime()
    answer = stub.BroadcastMessage(message, timeout=20)
    assert answer == seed_pb2.Close()
    received = next(stream)
    assert (received.id, received.content) == ("gopher", "Hello World!")
    assert received.HasField("timestamp")
    try:
        stub.BroadcastMessage(seed_pb2.Message(id="gopher"), timeout=20)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
    stream.cancel()
"""


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Where the code generated from the seed's proto is."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SEED}", f"--python_out={tmp_path}"]
    command += [f"--grpc_python_out={tmp_path}", str(SEED / "seed.proto")]
    subprocess.run(command, check=True, timeout=60)
    return tmp_path


def test_the_seeds_client_works_unchanged(generated: Path, start_server: StartServer) -> None:
    """Streams, sends, receives its own message, and is told what is wrong with a bad one."""
    _, listening = start_server()
    command = [sys.executable, "-W", "error", "-c", PROGRAM, f"127.0.0.1:{listening.port}"]
    ran = subprocess.run(command, cwd=generated, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split(maxsplit=1) == [
        "INVALID_ARGUMENT",
        "content: must not be empty\n",
    ]
