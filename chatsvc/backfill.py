"""Backfill: what a server reads of the topic of messages before it serves.

A server that has started a second ago has to decide as all others do which records are duplicates,
and to give those who come back what they have missed from memory. So it reads the newest part of
the log first.
"""

import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

from confluent_kafka import KafkaException

from chatsvc import librdkafka
from chatsvc.duplicates import WINDOW_MS, Duplicates
from chatsvc.errors import TopicFailed
from chatsvc.fanout import Fanout
from chatsvc.logclient import LogClient

_log = logging.getLogger(__name__)

TAIL_RECORDS = 40_000
"""How many go to the tail, over all partitions: short ones fill its 16 MiB."""
STRETCH_RECORDS = 4_096
"""How many of a partition are read at once."""


class _Part(NamedTuple):
    """What is read of a partition: from `begin` up to before `end`."""

    begin: int
    end: int
    tail_from: int
    is_partial: bool


class Backfill:
    """Fills a fanout's window of ids and its tail. Used once; blocks."""

    def __init__(
        self, client: LogClient, topic: str, fanout: Fanout, duplicates: Duplicates, now_ms: int
    ) -> None:
        """`now_ms` is Kafka's time in milliseconds of Unix time."""
        self._client = client
        self._topic = topic
        self._fanout = fanout
        self._duplicates = duplicates
        self._now_ms = now_ms

    def run(self, positions: Mapping[int, int], timeout: float) -> None:
        """Reads what is before `positions`, where the fanout goes on then. Raises TopicFailed if
        nothing comes for `timeout` seconds."""
        began = time.monotonic()
        try:
            parts = self._parts(positions)
            partial = [each for each, part in parts.items() if part.is_partial]
            self._fanout.on_positions({each: parts[each].begin for each in parts}, partial)
            self._read(parts, timeout)
        except KafkaException as error:
            raise TopicFailed(self._topic, librdkafka.cause(error.args[0])) from error
        finally:
            self._client.close()
        for partition, part in parts.items():
            self._duplicates.expect_exact(partition, part.end)
        read = sum(part.end - part.begin for part in parts.values())
        if read:
            _log.info("Read %d records back in %.1f s", read, time.monotonic() - began)

    def _parts(self, positions: Mapping[int, int]) -> dict[int, _Part]:
        firsts = {each: self._client.bounds(each)[0] for each in positions}
        if all(firsts[each] >= end for each, end in positions.items()):
            return {each: _Part(end, end, end, False) for each, end in positions.items()}
        # A tail that begins within the last window needs the ids of the one before it.
        since = self._client.offsets_at(dict(positions), max(0, self._now_ms - 2 * WINDOW_MS))
        window = self._duplicates.new_window(len(positions))
        parts = {}
        for partition, end in positions.items():
            tail_from = end - TAIL_RECORDS // len(positions)
            begin = min(since[partition], tail_from - window.min_records)
            begin = max(begin, tail_from - window.max_records, firsts[partition])
            parts[partition] = _Part(
                begin, max(begin, end), tail_from, is_partial=begin > firsts[partition]
            )
        return parts

    def _read(self, parts: Mapping[int, _Part], timeout: float) -> None:
        """Reads the partitions in turn, so that the tail has the newest of all."""
        left = {each: part.begin for each, part in parts.items() if part.begin < part.end}
        deadline = time.monotonic() + timeout
        while left:
            for partition, position in list(left.items()):
                part = parts[partition]
                end = min(part.end, position + STRETCH_RECORDS)
                stretch = self._client.read(partition, position, end)
                if stretch is None:
                    if time.monotonic() > deadline:
                        raise TopicFailed(self._topic, "could not be read back in time")
                    continue
                self._fanout.fill(partition, stretch.records, stretch.end, part.tail_from)
                left[partition] = stretch.end
                deadline = time.monotonic() + timeout
            left = {each: at for each, at in left.items() if at < parts[each].end}
