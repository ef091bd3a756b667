"""Topic: a log in memory, of which every offset is known for what it is."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from random import Random

from chatsvc.entries import Entry, entry
from chatsvc.errors import InvalidRecord
from chatsvc.model import ChatMessage, Record
from chatsvc.records import decode_message, encode_message

ROOMS = ("", "tea", "coffee", "milk", "bread", "salt")
NO_MESSAGES = (None, b"\xff", b"[]", b'{"id": "ann"}', b'{"id": "ann", "content": 7}')
FIRST_MS = 1_700_000_000_000


class Topic:
    """Partitions of records, some of which are no messages. A message's content begins with its
    partition and offset. All that was ever appended is known, also what retention has deleted,
    which is what comes before `starts`."""

    def __init__(
        self, chance: Random, partitions: int, rooms: Sequence[str], sizes: Sequence[int]
    ) -> None:
        self._chance = chance
        self.rooms = rooms
        self._sizes = sizes
        self.starts: dict[int, int] = {}
        self.records: dict[int, list[Record]] = {}
        self.entries: dict[int, list[Entry | None]] = {}
        self._appended = 0
        # Of each partition the messages that are there, without their contents.
        self._said: dict[int, dict[tuple[str, str], ChatMessage]] = {}
        # Offsets of messages and of their repetitions.
        self._repeats: dict[int, list[tuple[int, int]]] = {}
        self._clock_ms = FIRST_MS
        for _ in range(partitions):
            self.grow()

    @property
    def ends(self) -> dict[int, int]:
        """Of each partition the offset of its next record."""
        return {number: len(records) for number, records in self.records.items()}

    def grow(self) -> None:
        """One more partition, which is empty."""
        new = len(self.records)
        self.starts[new] = 0
        self.records[new] = []
        self.entries[new] = []
        self._said[new] = {}
        self._repeats[new] = []

    def append(self) -> None:
        """One more record somewhere. Clocks of brokers differ, and two records of one partition
        may have the same time or, after a change of its leader, an earlier one."""
        chance = self._chance
        partition = chance.choice(list(self.records))
        offset = len(self.records[partition])
        self._clock_ms += chance.choice((0, 0, 1, 5))
        appended_ms = self._clock_ms + chance.choice((0, 0, 0, partition, -3))
        value = self._value(partition, offset)
        record = Record(partition, offset, value, appended_ms, True)
        self.records[partition].append(record)
        self.entries[partition].append(self._entry(record))

    def _entry(self, record: Record) -> Entry | None:
        """What readers are to be given of a record: of one message the first only."""
        try:
            message = decode_message(record.value)
        except InvalidRecord:
            return None
        said = self._said[record.partition]
        key = (message.user, message.message_id)
        if key in said:
            self._repeats[record.partition].append((_offset(said[key]), record.offset))
            return None
        said[key] = message
        return entry(record, message, FIRST_MS)

    def _value(self, partition: int, offset: int) -> bytes | None:
        chance = self._chance
        if chance.random() < 0.1:
            return chance.choice(NO_MESSAGES)
        kept = [
            message
            for message in self._said[partition].values()
            if _offset(message) >= self.starts[partition]
        ]
        if kept and chance.random() < 0.1:  # its sender did not know that it was written
            message = chance.choice(kept)
        else:
            self._appended += 1
            message = ChatMessage(
                user=chance.choice(("ann", "bob")),
                content=f"{partition}/{offset}/".ljust(chance.choice(self._sizes), "x"),
                sent_at="",
                room=chance.choice(self.rooms),
                message_id=f"m{self._appended}",
            )
        return encode_message(message)[1]

    def forget(self, partition: int, before: int) -> None:
        """Retention deletes what comes before an offset, but no first copy of a message before the
        second: there are ten minutes between them at most, and hours behind them."""
        while parted := [
            first for first, second in self._repeats[partition] if first < before <= second
        ]:
            before = min(parted)
        self.starts[partition] = max(self.starts[partition], before)

    def messages(
        self, rooms: Collection[str], partition: int, start: int, end: int
    ) -> Iterator[Entry]:
        """The messages of some rooms from offset `start` up to before `end`."""
        for each in self.entries[partition][start:end]:
            if each is not None and each.room in rooms:
                yield each

    def between(
        self, rooms: Collection[str], begin: Mapping[int, int], end: Mapping[int, int]
    ) -> Iterator[Entry]:
        """The messages of some rooms between two positions."""
        for partition, offset in end.items():
            yield from self.messages(rooms, partition, begin.get(partition, 0), offset)


def _offset(message: ChatMessage) -> int:
    """Where a message is first."""
    return int(message.content.split("/")[1])
