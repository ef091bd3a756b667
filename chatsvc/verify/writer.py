"""Writer: a client that sends numbered messages, and notes what becomes of each."""

import random
import threading
import time

from chatsvc.client import ChatClient
from chatsvc.errors import ChatError, ClientClosed
from chatsvc.verify.journal import Journal
from chatsvc.verify.plan import Mark, Plan


class Writer:
    """Sends one message after the other at its share of the rate, or slower if it is held up: what
    it has not sent meanwhile it does not send later."""

    def __init__(self, plan: Plan, number: int, journal: Journal) -> None:
        self._plan = plan
        self._number = number
        self._journal = journal
        self._random = random.Random(f"{plan.seed} {number}")
        self.client = ChatClient(
            plan.writer(number),
            plan.servers_for(number),
            [plan.writers_room],
            on_events=journal.note_writer,
        )

    def run(self, began: float, stopping: threading.Event) -> None:
        """Sends until the time is up, `stopping` is set, or the client closed. Blocks."""
        pause = self._plan.writers / self._plan.rate
        end = began + self._plan.duration
        due = began + self._number / self._plan.rate
        try:
            while due < end and not stopping.wait(max(0.0, due - time.monotonic())):
                if not self._send():
                    return
                due = max(due + pause * self._random.uniform(0.5, 1.5), time.monotonic())
        finally:
            self._journal.end_writer()

    def _send(self) -> bool:
        """Sends a message; returns whether there is use in another one."""
        mark = self._journal.send(self._number)
        if self._plan.is_stream(self._number):
            return self._post(mark)
        plan = self._plan
        try:
            self.client.send(
                plan.content(mark),
                room=plan.room_name,
                message_id=plan.message_id(mark),
                timeout=plan.send_timeout,
            )
        except ChatError as error:
            self._journal.settle(mark, error)
            return not isinstance(error, ClientClosed)
        self._journal.settle(mark, None)
        return True

    def _post(self, mark: Mark) -> bool:
        plan = self._plan
        try:
            self.client.post(
                plan.content(mark),
                room=plan.room_name,
                message_id=plan.message_id(mark),
                on_outcome=lambda message_id, error: self._journal.settle(mark, error),
            )
        except ChatError:  # it will take no other one either
            self._journal.withdraw(mark)
            return False
        return True
