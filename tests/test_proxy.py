"""Proxies of the environment, of which errors tell: gRPC itself goes to one, or past it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import grpc
import pytest

from chatsvc.proxy import way

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
NOBODY = "localhost:1"


class Refusing(BaseHTTPRequestHandler):
    """A proxy that lets nobody through, as many are for ports that are not the web's."""

    def do_CONNECT(self) -> None:
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def proxy() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever, name="proxy")
        thread.start()
        yield f"http://ann:secret@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("server", "names", "exceptions", "asked"),
    [
        (NOBODY, ["http_proxy"], {}, "http_proxy"),
        (NOBODY, ["http_proxy", "https_proxy"], {}, "https_proxy"),
        (NOBODY, ["http_proxy", "https_proxy", "grpc_proxy"], {}, "grpc_proxy"),
        (NOBODY, ["http_proxy"], {"grpc_proxy": ""}, ""),
        (NOBODY, [], {"http_proxy": "127.0.0.1:1"}, ""),
        (NOBODY, ["HTTP_PROXY"], {}, ""),
        (NOBODY, ["http_proxy"], {"no_proxy": "example.org, LocalHost"}, ""),
        (NOBODY, ["http_proxy"], {"no_grpc_proxy": ".localhost"}, ""),
        (NOBODY, ["http_proxy"], {"no_grpc_proxy": "", "no_proxy": "localhost"}, "http_proxy"),
        (NOBODY, ["http_proxy"], {"no_proxy": "host,*,127.0.0.0/8"}, "http_proxy"),
        ("a.localhost:1", ["http_proxy"], {"no_proxy": "localhost"}, ""),
        ("127.0.0.1:1", ["http_proxy"], {"no_proxy": "127.0.0.0/8"}, ""),
        ("[::1]:1", ["http_proxy"], {"no_proxy": "::1"}, ""),
        ("[::1]:1", ["http_proxy"], {"no_proxy": "10.0.0.0/8"}, "http_proxy"),
    ],
)
def test_it_is_told_where_grpc_asks_one(
    monkeypatch: pytest.MonkeyPatch,
    proxy: str,
    server: str,
    names: list[str],
    exceptions: dict[str, str],
    asked: str,
) -> None:
    """And nowhere else."""
    for name, value in {**dict.fromkeys(names, proxy), **exceptions}.items():
        monkeypatch.setenv(name, value)
    with grpc.insecure_channel(server, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        error = channel.unary_unary("/chat.Chat/Nothing").future(b"", timeout=60).exception()
    assert isinstance(error, grpc.RpcError)
    assert ("HTTP proxy returned" in error.details()) == bool(asked)
    assert way(server) == (f", through the proxy of {asked}" if asked else "")


@pytest.mark.parametrize(
    "command",
    [
        ["join", "bob", "--server", NOBODY],
        ["send", "bob", "hello", "--server", NOBODY],
        ["history", "--server", NOBODY],
        ["health", "--server", NOBODY],
        ["bench", "--server", NOBODY],
        ["verify", "--server", NOBODY],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("is_there", [True, False])
def test_who_fails_behind_one_is_told_so(proxy: str, command: list[str], is_there: bool) -> None:
    """In one line, which does not have its password; also where the proxy is gone."""
    value, what = (
        (proxy, "refused") if is_there else ("http://ann:secret@127.0.0.1:1", "connection refused")
    )
    answer = subprocess.run(
        [sys.executable, "-m", "chatsvc.cli", *command],
        env={**os.environ, "http_proxy": value},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 1
    assert answer.stderr == (
        f"Failed to connect to server: {what}, through the proxy of http_proxy ({NOBODY})\n"
    )
