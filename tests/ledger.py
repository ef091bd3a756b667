"""Who sent what, which of it was confirmed, and what each client saw: the claims of a chat."""

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from chatsvc.client import ChatClient, Connected, Lost, Received
from chatsvc.errors import ChatError, ClientClosed

from waiting import eventually

Mark = tuple[str, int]
"""A sender and the number of its message."""


class Listener:
    """A client and all that it has received, taken in by a thread of its own."""

    def __init__(self, user: str, servers: Sequence[str]) -> None:
        self.client = ChatClient(user, servers)
        self.connected: list[Connected] = [self.client.connect()]
        self.lost: list[Lost] = []
        self.seen: list[Mark] = []
        self.failure: ChatError | None = None
        self._thread = threading.Thread(target=self._run, name=f"listener-{user}")
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                event = self.client.receive()
            except ClientClosed:
                return
            except ChatError as error:
                self.failure = error
                return
            if isinstance(event, Received):
                self.seen.append((event.user, int(event.content.split()[0])))
            elif isinstance(event, Connected):
                self.connected.append(event)
            elif isinstance(event, Lost):
                self.lost.append(event)

    def close(self) -> None:
        self.client.close()
        self._thread.join()


class Ledger:
    """Listeners and senders over some servers; closes all of them at the end."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        # Guards the marks: senders are threads.
        self._lock = threading.Lock()
        self.acked: set[Mark] = set()
        self.tried: set[Mark] = set()

    def listen(self, users: Iterable[str], servers: Sequence[str]) -> None:
        """Connects users, each with a client of its own, at the first of `servers`."""
        with ThreadPoolExecutor(10) as pool:
            self.listeners += pool.map(lambda user: Listener(user, servers), users)

    def send(self, client: ChatClient, numbers: Iterable[int], *, timeout: float = 60) -> None:
        """Sends numbered messages one after the other and notes which were confirmed."""
        for number in numbers:
            mark = (client.user, number)
            with self._lock:
                self.tried.add(mark)
            client.send(f"{number} {'x' * 40}", timeout=timeout)
            with self._lock:
                self.acked.add(mark)

    def check(self, listeners: Sequence[Listener] | None = None, timeout: float = 60) -> None:
        """Asserts that each listener sees every confirmed message exactly once, in the order of
        each sender, and nothing that was not sent."""
        for listener in self.listeners if listeners is None else listeners:
            eventually(lambda one=listener: self.acked <= set(one.seen), timeout)
            seen = list(listener.seen)
            missing = self.acked - set(seen)
            twice = [mark for mark, count in Counter(seen).items() if count > 1]
            phantom = set(seen) - self.tried
            name = listener.client.user
            assert not missing, f"{name} misses {len(missing)}: {sorted(missing)[:5]}"
            assert not twice, f"{name} saw twice: {sorted(twice)[:5]}"
            assert not phantom, f"{name} saw what nobody sent: {sorted(phantom)[:5]}"
            for sender in {user for user, _ in seen}:
                numbers = [number for user, number in seen if user == sender]
                assert numbers == sorted(numbers), f"{name} saw {sender} out of order"

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
