"""ServerWatch: the memory and processor time of a server on this machine."""

import ipaddress
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import psutil


class ServerWatch:
    """Watches all processes of the servers at some addresses, from its making to the last
    `sample`. Finds nothing, and tells so by None, where they are on other machines or another
    user's. Not thread-safe."""

    def __init__(self, servers: Sequence[str]) -> None:
        """Looks for them; may look up host names."""
        self._processes: list[psutil.Process] = []
        with suppress(psutil.Error, OSError):
            self._processes = sorted(_processes(servers), key=lambda process: process.pid)
        self._peak = 0
        self._first = self._cpu_seconds()
        self._last = dict(self._first)
        self._began = self._ended = time.monotonic()

    def sample(self) -> None:
        """Notes what they use now."""
        self._last |= self._cpu_seconds()
        self._ended = time.monotonic()

    def _cpu_seconds(self) -> dict[int, float]:
        rss = 0
        seconds = {}
        for process in self._processes:
            with suppress(psutil.Error), process.oneshot():  # it may have ended
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
                rss += process.memory_info().rss
        self._peak = max(self._peak, rss)
        return seconds

    @property
    def peak_rss_bytes(self) -> int | None:
        """The most that they had in memory together."""
        return self._peak or None

    @property
    def cpu_percent(self) -> float | None:
        """Their mean use in percent of one core."""
        if not self._first or self._ended == self._began:
            return None
        used = sum(self._last[pid] - first for pid, first in self._first.items())
        return round(100 * used / (self._ended - self._began), 1)


def _processes(servers: Sequence[str]) -> set[psutil.Process]:
    """Who listens, and beside a worker its supervisor with all that it has started."""
    addresses = (each.rpartition(":") for each in servers)
    ports = {(int(port),) for host, _, port in addresses if _is_local(host)}
    listening = {
        psutil.Process(each.pid)
        for each in (psutil.net_connections("tcp") if ports else ())
        if each.pid and each.status == psutil.CONN_LISTEN and each.laddr[1:2] in ports
    }
    found = set(listening)
    for process in listening:
        supervisor = process.parent() if "chatsvc.worker" in process.cmdline() else None
        if supervisor is not None:
            found |= {supervisor, *supervisor.children()}
    return found


def _is_local(host: str) -> bool:
    own = {each.address for all_of in psutil.net_if_addrs().values() for each in all_of}
    return any(ipaddress.ip_address(each).is_loopback or each in own for each in _addresses(host))


def _addresses(host: str) -> Iterator[str]:
    for *_, address in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM):
        yield str(address[0]).partition("%")[0]
