"""Verdict: what the accounts of a run show, for people and as JSON."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any

from chatsvc.verify.accounts import Accounts, Fate, Pause, ReaderAccount
from chatsvc.verify.plan import Mark

TOLD_VIOLATIONS = 20
"""Violations that are told one by one; the counts have all of them."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The settings and the outcome of a run; the names are keys of the JSON, beside `ok`.

    `seen`, `lost` and the counts after it are of all readers together. `duplicated` are messages
    that were delivered again, also where a sender that did not know what had become of one has sent
    it again, as it should.
    """

    servers: tuple[str, ...]
    room: str
    seed: int
    writers: int
    readers: int
    duration: float
    sent: int
    acked: int
    refused: int
    unknown: int
    seen: int
    lost: int
    duplicated: int
    reordered: int
    phantom: int
    gaps: int
    reconnects: int
    longest_ack_pause: Pause
    longest_delivery_pause: Pause
    violations: tuple[str, ...]
    interrupted: bool

    @property
    def problem(self) -> str:
        """The counts of what must not be; empty if there is nothing."""
        counts = ("lost", "duplicated", "reordered", "phantom", "gaps")
        problem = ", ".join(
            f"{getattr(self, name):,} {name}" for name in counts if getattr(self, name)
        )
        # What shows nothing is no success.
        return problem or ("" if self.acked or self.interrupted else "nothing was acked")

    @property
    def ok(self) -> bool:
        """Whether everything is as promised."""
        return not self.problem


def judge(accounts: Accounts, reconnects: int, interrupted: bool) -> Verdict:
    """What the accounts of a run that is over show."""
    plan, counts, readers = accounts.plan, accounts.counts, accounts.readers
    judged = [_Judged(number, accounts) for number in range(len(readers))]
    kinds = chain.from_iterable(each.violations for each in judged)
    # In turn, so that each reader and each kind is among those that are told.
    violations = filter(None, chain.from_iterable(zip_longest(*kinds)))
    return Verdict(
        servers=plan.servers,
        room=plan.room_name,
        seed=plan.seed,
        writers=plan.writers,
        readers=plan.readers,
        duration=plan.duration,
        sent=accounts.sent,
        acked=counts[Fate.ACKED],
        refused=counts[Fate.REFUSED],
        unknown=counts[Fate.UNKNOWN],
        seen=accounts.seen,
        lost=sum(each.lost for each in judged),
        duplicated=sum(reader.copies.total() for reader in readers),
        reordered=sum(len(each.reordered) for each in judged),
        phantom=sum(each.phantoms for each in judged),
        gaps=sum(len(reader.gaps) for reader in readers),
        reconnects=reconnects,
        longest_ack_pause=_rounded(accounts.ack_pauses.longest),
        longest_delivery_pause=_rounded(max(reader.waits.longest for reader in readers)),
        violations=tuple(islice(violations, TOLD_VIOLATIONS)),
        interrupted=interrupted,
    )


class _Judged:
    """What one reader's account shows beside those of the writers."""

    def __init__(self, number: int, accounts: Accounts) -> None:
        self._name = f"reader {number}"
        self._account = account = accounts.readers[number]
        self._fates = accounts.fates
        # One with an unknown outcome may come at any time: its writer has gone on without it.
        self.reordered = [each for each in account.late if self._fate(each) is not Fate.UNKNOWN]
        self.refused = self._seen_with(Fate.REFUSED)
        self.unsent = self._seen_with(Fate.UNSENT)
        self.phantoms = account.phantoms + len(self.refused) + len(self.unsent)
        self.lost = max(0, account.missing - _explained(account))

    def _fate(self, mark: Mark) -> Fate:
        return Fate(self._fates[mark.writer][mark.number])

    def _with_fate(self, fate: Fate) -> Iterator[Mark]:
        for writer, fates in enumerate(self._fates):
            number = fates.find(fate)
            while number >= 0:
                yield Mark(writer, number)
                number = fates.find(fate, number + 1)

    def _seen_with(self, fate: Fate) -> list[Mark]:
        return [mark for mark in self._with_fate(fate) if self._account.has(mark)]

    def _missing(self) -> Iterator[Mark]:
        if self._account.missing:
            for mark in self._with_fate(Fate.ACKED):
                if not self._account.has(mark):
                    yield mark

    @property
    def violations(self) -> Iterator[Iterator[str]]:
        """All that it tells against the chat, each kind by itself."""
        name, account = self._name, self._account
        yield (f"{name} misses {mark}" for mark in islice(self._missing(), self.lost))
        yield (f"{name} was given {mark} {1 + n} times" for mark, n in account.copies.items())
        yield (f"{name} was given {mark} after a later one" for mark in self.reordered)
        yield (f"{name} was given {mark}, which was refused" for mark in self.refused)
        yield (f"{name} was given {mark}, which was never sent" for mark in self.unsent)
        yield (f"{name} was given {text}" for text in account.phantom_texts)
        yield (f"{name} was told of a gap of {_size(gap)}" for gap in account.gaps)


def _explained(account: ReaderAccount) -> int:
    """How many missing messages the gaps account for that the reader was told of."""
    return sum(account.missing if gap is None else gap for gap in account.gaps)


def _size(gap: int | None) -> str:
    return "unknown size" if gap is None else f"at most {gap:,} messages"


def _rounded(pause: Pause) -> Pause:
    return Pause(round(pause.seconds, 3), round(pause.at, 3))


def json_of(verdict: Verdict) -> dict[str, Any]:
    """One object."""
    fields = {**dataclasses.asdict(verdict), "ok": verdict.ok}
    pauses = {key: value._asdict() for key, value in fields.items() if isinstance(value, Pause)}
    return fields | pauses


def text_of(verdict: Verdict) -> str:
    """Some lines, and the violations."""
    ack, delivery = verdict.longest_ack_pause, verdict.longest_delivery_pause
    lines = (
        f"Servers   {', '.join(verdict.servers)}; {verdict.reconnects:,} reconnects",
        f"Writers   {verdict.writers}: {verdict.sent:,} sent, "
        f"{verdict.acked:,} acked, {verdict.refused:,} refused, {verdict.unknown:,} unknown",
        f"Readers   {verdict.readers}: {verdict.seen:,} seen, {verdict.lost:,} lost, "
        f"{verdict.duplicated:,} duplicated, {verdict.reordered:,} reordered, "
        f"{verdict.phantom:,} phantom, {verdict.gaps:,} gaps",
        f"Pauses    acks {_text(ack)}, deliveries {_text(delivery)}",
        f"Run       {verdict.duration:g} s, room {verdict.room}, seed {verdict.seed}",
        *verdict.violations,
    )
    interrupted = "Interrupted before all was sent:\n" if verdict.interrupted else ""
    return interrupted + "\n".join(lines)


def _text(pause: Pause) -> str:
    return f"{pause.seconds:.2f} s (from {pause.at:.2f} s on)"
