"""Reservation: a port that several processes listen on and nobody else."""

import errno
import socket
from contextlib import ExitStack

from chatsvc.errors import PortTaken

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What a name's address gives that this machine lacks: ::1 of localhost, often."""


class Reservation:
    """Keeps a port for processes that listen on it with SO_REUSEPORT, also while none does.

    SO_REUSEPORT lets in every process of the user that sets it, so who may use the port is
    decided without it: a socket that listens is refused where anybody else has the port, and is
    let in beside connections of the past that are in TIME_WAIT. Under it a second socket is bound,
    which keeps the port and, since it never listens, gets none of its connections.
    """

    def __init__(self) -> None:
        self._kept = ExitStack()

    def reserve(self, host: str, port: int) -> int:
        """Reserves a port on all addresses of a host; 0 takes a free one. Returns the port.
        Raises PortTaken."""
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            reserved, missing = False, None
            for family, address in dict.fromkeys((each[0], each[4]) for each in found):
                try:
                    port = self._keep(family, address[0], port)
                    reserved = True
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
                    missing = error
            if missing is not None and not reserved:
                raise missing
        except (OSError, UnicodeError) as error:  # an unknown host too
            self.close()
            cause = "address already in use or not of this machine"
            raise PortTaken("--port", shown, cause) from error
        return port

    def _keep(self, family: socket.AddressFamily, host: str | int, port: int) -> int:
        with socket.socket(family) as claim:
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _open_for_both(claim)
            claim.bind((host, port))
            claim.listen(1)
            address = claim.getsockname()
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            kept = self._kept.enter_context(socket.socket(family))
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _open_for_both(kept)
            kept.bind(address)
            # From now on nobody gets past it by this option alone.
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        reserved: int = address[1]
        return reserved

    def close(self) -> None:
        """Gives the port up. Idempotent; also before `reserve`."""
        self._kept.close()


def _open_for_both(sock: socket.socket) -> None:
    """Makes :: mean all addresses, IPv4 too, as gRPC does."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
