"""The servers as the doctor sees them: their health, and a message through each."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from chatsvc import health
from chatsvc.client import ChatClient, Received
from chatsvc.doctor.findings import Finding, fail, ok, warn
from chatsvc.errors import ChatError, ConnectionFailed

CLOCK_SECONDS = 1.0
"""So far Kafka's clock may be from this machine's."""


def examine_health(server: str, timeout: float) -> Finding:
    """Whether a server is there and wants clients."""
    subject = f"server {server}"
    try:
        status = health.ask(server, timeout)
    except ConnectionFailed as error:
        return fail(subject, error.cause, "start it (chatsvc serve), or name another (--server)")
    if status == "SERVING":
        return ok(subject, status)
    return fail(subject, status, "ask its side port for /readyz, which says why")


class Exchange:
    """A message sent through each server, in a room of its own, which all of them have to deliver.

    The times of these messages are compared with this machine's clock: nothing else has to be
    written to learn Kafka's. Used by one thread; all calls block.
    """

    def __init__(self, servers: Sequence[str], timeout: float) -> None:
        self._servers = servers
        self._timeout = timeout
        self._user = f"doctor-{secrets.token_hex(4)}"
        self._clients: dict[str, ChatClient] = {}
        # Of each message that came back: when it was sent, appended, and there; Unix time.
        self._times: list[tuple[float, float, float]] = []

    def examine(self) -> Iterator[Finding]:
        """One finding for each server."""
        with ExitStack() as open_clients:
            for server in self._servers:
                # The name of the user is that of the room: nobody else is in it.
                client = open_clients.enter_context(ChatClient(self._user, [server], [self._user]))
                try:
                    client.connect()
                except ConnectionFailed as error:
                    yield fail(f"message {server}", error.cause, "look into the server's log")
                else:
                    self._clients[server] = client
            for server, client in self._clients.items():
                yield self._send(server, client)

    def _send(self, server: str, client: ChatClient) -> Finding:
        subject = f"message {server}"
        sent, began = time.time(), time.monotonic()
        try:
            message_id = client.send("chatsvc doctor", room=self._user, timeout=self._timeout)
        except ChatError as error:
            cause = getattr(error, "cause", str(error))
            return fail(subject, cause, "see what is said of Kafka; look into the server's log")
        deadline = time.monotonic() + self._timeout
        blind = [
            other
            for other, reader in self._clients.items()
            if not self._is_seen(reader, message_id, sent, deadline)
        ]
        if blind:
            return fail(
                subject,
                f"sent, and not delivered by {', '.join(blind)} within {self._timeout:g} s",
                "these servers must have the same Kafka and --topic; look into their logs",
            )
        milliseconds = (time.monotonic() - began) * 1_000
        readers = len(self._clients)
        where = "it" if readers == 1 else f"all {readers} servers"
        return ok(subject, f"sent, and delivered by {where} after {milliseconds:.0f} ms")

    def _is_seen(self, reader: ChatClient, message_id: str, sent: float, deadline: float) -> bool:
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = reader.receive(left)
            except ChatError:
                return False
            if isinstance(event, Received) and event.message_id == message_id:
                self._times.append((sent, event.at.timestamp(), time.time()))
                return True
        return False

    def examine_clock(self) -> Finding:
        """Kafka's clock against this machine's, by the messages of `examine`."""
        subject = "clock"
        if not self._times:
            return warn(
                subject,
                "not compared with Kafka's, since no message came back",
                "set right what failed, and ask again",
            )
        # The append was between sending and receiving; what is outside of that is the clocks'.
        sent, appended, came = min(self._times, key=lambda times: times[2] - times[0])
        ahead = max(0.0, appended - came) - max(0.0, sent - appended)
        if abs(ahead) <= CLOCK_SECONDS:
            return ok(subject, f"at most {came - sent + abs(ahead):.3f} s from Kafka's")
        return warn(
            subject,
            f"Kafka's is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's",
            "set the clocks of all machines by NTP",
        )
