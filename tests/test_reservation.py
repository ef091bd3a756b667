import contextlib
import socket
from collections.abc import Iterator

import pytest

from chatsvc.errors import PortTaken
from chatsvc.reservation import Reservation


@pytest.fixture
def reservation() -> Iterator[Reservation]:
    reservation = Reservation()
    yield reservation
    reservation.close()


def listen(port: int) -> socket.socket:
    """Listens as a worker does."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def test_workers_share_a_reserved_port(reservation: Reservation) -> None:
    """Several sockets may listen on it, and get all of its connections."""
    port = reservation.reserve("127.0.0.1", 0)
    with listen(port) as one, listen(port) as other:
        for listener in (one, other):
            listener.setblocking(False)
        with contextlib.ExitStack() as clients:
            for _ in range(40):
                clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            accepted = []
            for listener in (one, other):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        accepted.append(clients.enter_context(listener.accept()[0]))
            assert len(accepted) == 40


@pytest.mark.parametrize("listens", [False, True])
def test_another_reservation_is_refused(reservation: Reservation, listens: bool) -> None:
    """Before, and while, a worker listens."""
    port = reservation.reserve("127.0.0.1", 0)
    with contextlib.ExitStack() as workers:
        if listens:
            workers.enter_context(listen(port))
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(PortTaken) as raised:
                Reservation().reserve(host, port)
            assert (raised.value.option, raised.value.address) == ("--port", f"{host}:{port}")


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_of_somebody_else_is_refused(option: int, reservation: Reservation) -> None:
    """One that listens, though it would share."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortTaken):
            reservation.reserve("127.0.0.1", other.getsockname()[1])


def test_nobody_else_may_bind_a_reserved_port(reservation: Reservation) -> None:
    """A program that wants it for itself is refused, though no worker listens."""
    port = reservation.reserve("127.0.0.1", 0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_connections_of_the_past_do_not_matter(reservation: Reservation) -> None:
    """A port whose last user has closed its connections, which are in TIME_WAIT, is free."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))  # they are there
    assert reservation.reserve("127.0.0.1", port) == port


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "::", "::1"])
def test_close_frees_the_port(host: str, reservation: Reservation) -> None:
    """After close, which may be called twice, it can be reserved again, on any address."""
    port = reservation.reserve(host, 0)
    reservation.close()
    reservation.close()
    other = Reservation()
    assert other.reserve(host, port) == port
    other.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_unknown_host_is_told(host: str, reservation: Reservation) -> None:
    """An address that is not of this machine raises PortTaken, and so does a name of nothing."""
    with pytest.raises(PortTaken):
        reservation.reserve(host, 0)
