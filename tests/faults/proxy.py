"""A TCP proxy that is bad at giving back what a server answers."""

import contextlib
import enum
import socket
import threading
from collections.abc import Callable

CHUNK = 4_096


class Way(enum.Enum):
    """What becomes of a server's bytes."""

    OPEN = enum.auto()
    SLOW = enum.auto()
    """One a second is passed on."""
    CLOSED = enum.auto()
    """They are thrown away, and the connection stays open."""


class Proxy:
    """Passes connections on to a server on this machine, whose answers come by the way back.
    `close` ends the connections."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self._listener.getsockname()[1]}"
        # Guards all that follows; notified when any of it changes.
        self._changed = threading.Condition()
        self._back = Way.OPEN
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start("accept", self._accept)

    def turn(self, back: Way) -> None:
        """Changes the way back of all connections at once."""
        with self._changed:
            self._back = back
            self._changed.notify_all()

    def _start(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=f"proxy-{name}")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # until the listener is shut down
            while True:
                client, _ = self._listener.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        server = socket.socket()
        # What the client has not taken is to wait at the server, not here.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
        with self._changed:
            self._sockets += [client, server]
        try:
            server.connect(self._target)
        except OSError:
            client.shutdown(socket.SHUT_RDWR)
            return
        self._start("forth", lambda: self._pass(client, server, self._forth))
        self._start("back", lambda: self._pass(server, client, self._answer))

    def _pass(
        self,
        source: socket.socket,
        target: socket.socket,
        step: Callable[[socket.socket, socket.socket], bool],
    ) -> None:
        with contextlib.suppress(OSError):  # either may be reset
            while step(source, target):
                pass
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _forth(self, client: socket.socket, server: socket.socket) -> bool:
        chunk = client.recv(CHUNK)
        server.sendall(chunk)
        return bool(chunk)

    def _answer(self, server: socket.socket, client: socket.socket) -> bool:
        chunk = server.recv(1 if self._back is Way.SLOW else CHUNK)
        if self._back is not Way.CLOSED:
            client.sendall(chunk)
        with self._changed:
            self._changed.wait_for(lambda: self._back is not Way.SLOW or self._closed, timeout=1)
        return bool(chunk)

    def close(self) -> None:
        """Ends all connections and threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
