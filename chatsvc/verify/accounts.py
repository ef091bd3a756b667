"""Accounts: what became of each message, and what each reader was given. No clock, no threads."""

import enum
from collections import Counter
from typing import NamedTuple

from chatsvc.client import Received
from chatsvc.verify.plan import Mark, Plan

KEPT_TEXTS = 20
"""Phantoms of a reader that are described; more are counted."""


class Fate(enum.IntEnum):
    """What became of a message."""

    PENDING = 0
    """It is on its way, as far as its writer knows."""
    ACKED = 1
    """All in-sync replicas have it."""
    REFUSED = 2
    """It was not written."""
    UNKNOWN = 3
    """It may be written or not."""
    UNSENT = 4
    """Its writer's client was closed before it took the message."""


class Pause(NamedTuple):
    """So many seconds without, and when that began."""

    seconds: float
    at: float


class Pauses:
    """The longest of some pauses; one at a time."""

    def __init__(self) -> None:
        self.longest = Pause(0.0, 0.0)
        self._began: float | None = None

    def begin(self, now: float) -> None:
        """A pause begins, unless it has begun before."""
        if self._began is None:
            self._began = now

    def end(self, now: float) -> None:
        """It ends, if it has begun."""
        if self._began is not None and now - self._began > self.longest.seconds:
            self.longest = Pause(now - self._began, self._began)
        self._began = None


class ReaderAccount:
    """What one reader was given.

    `seen` counts first copies, `missing` the acknowledged messages of which there was none yet.
    `late` are first copies after a higher number of the same writer. `copies` counts further
    copies, whether of the same record or of another one of the same message. `gaps` are the sizes
    of gaps that the reader was told of, None for an unknown one.
    """

    def __init__(self, writers: int) -> None:
        self.seen = 0
        self.missing = 0
        self.late: list[Mark] = []
        self.copies: Counter[Mark] = Counter()
        self.phantoms = 0
        self.phantom_texts: list[str] = []
        self.gaps: list[int | None] = []
        self.waits = Pauses()
        # By writer, for each number whether it was given.
        self._given = [bytearray() for _ in range(writers)]

    def has(self, mark: Mark) -> bool:
        """Whether it was given a message."""
        given = self._given[mark.writer]
        return mark.number < len(given) and bool(given[mark.number])

    def take(self, mark: Mark) -> bool:
        """Notes a message; returns whether it is a first copy."""
        if self.has(mark):
            self.copies[mark] += 1
            return False
        given = self._given[mark.writer]
        if mark.number < len(given):
            self.late.append(mark)
        else:
            given.extend(bytes(mark.number + 1 - len(given)))
        given[mark.number] = True
        self.seen += 1
        return True

    def take_phantom(self, text: str) -> None:
        """Notes a message that must not be."""
        self.phantoms += 1
        if len(self.phantom_texts) < KEPT_TEXTS:
            self.phantom_texts.append(text)


class Accounts:
    """The accounts of a run. All times are seconds since its start. Not thread-safe."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.readers = [ReaderAccount(plan.writers) for _ in range(plan.readers)]
        self.fates = [bytearray() for _ in range(plan.writers)]
        self.counts: Counter[Fate] = Counter()
        self.ack_pauses = Pauses()
        self._is_sending = True

    @property
    def sent(self) -> int:
        """Messages that were sent, whatever became of them."""
        return self.counts.total() - self.counts[Fate.UNSENT]

    @property
    def settled(self) -> int:
        """Messages that are on their way no more."""
        return self.sent - self.counts[Fate.PENDING]

    @property
    def seen(self) -> int:
        """First copies that readers were given, all together."""
        return sum(reader.seen for reader in self.readers)

    @property
    def missing(self) -> int:
        """First copies of acknowledged messages that readers have not been given."""
        return sum(reader.missing for reader in self.readers)

    def send(self, writer: int, now: float) -> Mark:
        """A writer is about to send its next message."""
        mark = Mark(writer, len(self.fates[writer]))
        self.fates[writer].append(Fate.PENDING)
        self.counts[Fate.PENDING] += 1
        self.ack_pauses.begin(now)
        return mark

    def settle(self, mark: Mark, fate: Fate, now: float) -> None:
        """What became of a message is known, once."""
        self.counts[Fate.PENDING] -= 1
        self.counts[fate] += 1
        self.fates[mark.writer][mark.number] = fate
        if fate is Fate.ACKED:
            self._owe(mark, now)
            self.ack_pauses.end(now)
            self.ack_pauses.begin(now)
        self._end_pause_of_acks(now)

    def _owe(self, mark: Mark, now: float) -> None:
        for reader in self.readers:
            if not reader.has(mark):
                reader.missing += 1
                reader.waits.begin(now)

    def end_sending(self, now: float) -> None:
        """No message will be sent any more."""
        self._is_sending = False
        self._end_pause_of_acks(now)

    def _end_pause_of_acks(self, now: float) -> None:
        if not (self._is_sending or self.counts[Fate.PENDING]):
            self.ack_pauses.end(now)

    def give(self, reader: int, message: Received, now: float) -> None:
        """A reader was given a message."""
        account = self.readers[reader]
        mark = self.plan.mark(message.message_id)
        if (problem := self._phantom(message, mark)) is not None:
            account.take_phantom(problem)
        elif mark is not None and account.take(mark):
            account.waits.end(now)
            account.missing -= self.fates[mark.writer][mark.number] == Fate.ACKED
            if account.missing:
                account.waits.begin(now)

    def _phantom(self, message: Received, mark: Mark | None) -> str | None:
        """Why a message must not be; None if it may."""
        plan = self.plan
        if message.room != plan.room_name:
            return f"{mark or 'a message'}, which is of another room"
        if mark is None:
            # In a room that was named, others may talk.
            return None if plan.room else "a message of somebody else"
        if mark.number >= len(self.fates[mark.writer]):
            return f"{mark}, which was never sent"
        if (message.user, message.content) != (plan.writer(mark.writer), plan.content(mark)):
            return f"{mark}, but not as it was sent"
        return None

    def tell_gap(self, reader: int, records: int | None) -> None:
        """A reader was told that so many messages are lost to it."""
        self.readers[reader].gaps.append(records)

    def close(self, now: float) -> None:
        """Nothing is waited for any more."""
        self.ack_pauses.end(now)
        for reader in self.readers:
            reader.waits.end(now)
