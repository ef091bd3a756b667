"""The HTTP proxies through which gRPC goes to a server: it takes them from the environment.

Source: "Environment variables", doc/environment_variables.md of gRPC, and trials.
"""

import os
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def way(server: str) -> str:
    """What to add to an error on the way to `host:port`: by which variable gRPC has asked a proxy
    for it. Empty if by none. The variable's value is left out, for it may have a password."""
    name = _first(_PROXIES)
    host = server.rpartition(":")[0].strip("[]").lower()
    exceptions = os.environ.get(_first(_EXCEPTIONS), "").split(",")
    # gRPC goes by itself where the value is something else.
    is_used = os.environ.get(name, "").lower().startswith("http://")
    if not is_used or any(_covers(each.strip().lower(), host) for each in exceptions):
        return ""
    return f", through the proxy of {name}"


def _first(names: Iterable[str]) -> str:
    """The first that is set, even to nothing: it hides those behind it."""
    return next((each for each in names if each in os.environ), "")


def _covers(exception: str, host: str) -> bool:
    """Whether an exception is a host's name or domain, or a network that has its address."""
    if exception and f".{host}".endswith(f".{exception.removeprefix('.')}"):
        return True
    try:
        return ip_address(host) in ip_network(exception, strict=False)
    except ValueError:
        return False
