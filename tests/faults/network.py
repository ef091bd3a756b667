"""A network of the test's own, between servers on this machine and clients in another namespace,
in which packets can vanish."""

import os
from contextlib import suppress

from .machine import needs, needs_root, run

NEAR = 2
"""Addresses of this machine that clients can reach."""


class Network:
    """Network namespaces of clients and of a router between them and this machine.

    The router forwards, or it drops all packets from and to one of the addresses `near`, so that
    neither side hears anything, not even of an error: a half-open connection. `client` is before a
    command to run it where the clients are. The addresses are of a range for tests of networks
    (RFC 2544), chosen by the process id.
    """

    def __init__(self) -> None:
        needs_root()
        ip = needs("ip", "iproute2")
        pid = os.getpid()
        net = f"198.{18 + pid // 4_096 % 2}.{pid // 16 % 256}"
        first = pid % 16 * 16
        self.near = [f"{net}.{first + 1 + each}" for each in range(NEAR)]
        self._router, self._clients = f"chat-r{pid}", f"chat-c{pid}"
        self._link = f"chat{pid}"
        self._ip = ip
        self.client = (ip, "netns", "exec", self._clients)
        router, far, clients = (f"{net}.{first + each}" for each in (9, 13, 14))
        try:
            self._build(router, far, clients)
        except BaseException:
            self.close()
            raise

    def _build(self, router: str, far: str, clients: str) -> None:
        """this machine `near` -- `router` [router namespace] `far` -- `clients` [namespace]"""
        for namespace in (self._router, self._clients):
            self._run("netns", "add", namespace)
        self._run("link", "add", self._link, "type", "veth", "peer", "near", "netns", self._router)
        self._inside(self._router, "link", "add", "far", "type", "veth", "peer", "far1")
        self._inside(self._router, "link", "set", "far1", "netns", self._clients, "name", "up0")
        self._inside(self._router, "address", "add", f"{router}/32", "dev", "near")
        self._inside(self._router, "address", "add", f"{far}/32", "dev", "far")
        self._inside(self._clients, "address", "add", f"{clients}/32", "dev", "up0")
        for address in self.near:
            self._run("address", "add", f"{address}/32", "dev", self._link)
        self._run("link", "set", self._link, "up")
        for namespace, link in (
            (self._router, "near"),
            (self._router, "far"),
            (self._clients, "up0"),
        ):
            self._inside(namespace, "link", "set", link, "up")
        self._run("route", "add", clients, "dev", self._link, "src", self.near[0])
        for address in self.near:
            self._inside(self._router, "route", "add", address, "dev", "near")
        self._inside(self._router, "route", "add", clients, "dev", "far")
        self._inside(self._clients, "route", "add", "default", "dev", "up0")
        # Each side answers for what is behind it.
        forward = "for each in ip_forward conf/near/proxy_arp conf/far/proxy_arp; do"
        forward += " echo 1 > /proc/sys/net/ipv4/$each; done"
        run(self._ip, "netns", "exec", self._router, "sh", "-c", forward)

    def _run(self, *arguments: str) -> None:
        run(self._ip, *arguments)

    def _inside(self, namespace: str, *arguments: str) -> None:
        run(self._ip, "-n", namespace, *arguments)

    def cut(self, address: str) -> None:
        """From now on all packets from and to one of the addresses are dropped."""
        for direction in ("from", "to"):
            self._inside(self._router, "rule", "add", direction, address, "blackhole")

    def heal(self, address: str) -> None:
        """Ends that."""
        for direction in ("from", "to"):
            self._inside(self._router, "rule", "delete", direction, address, "blackhole")

    def close(self) -> None:
        """Takes the network away."""
        for arguments in (
            ("link", "delete", self._link),
            ("netns", "delete", self._clients),
            ("netns", "delete", self._router),
        ):
            with suppress(AssertionError):  # it may have never been made
                self._run(*arguments)

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
