"""The part of the metadata log that is not applied yet, in memory: what its batches say, and who votes by them.

Owns the order and the bookkeeping, and how records stand in a batch. It is as long as the log is, from what is applied
to the log's end: whatever is appended there is added, whatever the log discards is cut. Never reads the log and never
applies a record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from zbroker.cluster.records import ClusterFormed, MetadataRecord, VotersChanged, decode, encode
from zbroker.protocol.batch import (
    CONTROL,
    BatchHeader,
    Buffer,
    EncodedRecord,
    decode_records,
    encode_batch,
    stamp,
)


class Entry(msgspec.Struct, frozen=True):
    """One batch: where it begins and ends, its size in bytes, its records."""

    base: int
    end: int
    size: int
    records: Sequence[MetadataRecord]


def encode_entry(
    records: Sequence[MetadataRecord], *, base: int, epoch: int, wall: int, append_time: int
) -> bytearray:
    """The batch of some records, stamped; a no-op where there are none."""
    rows: list[EncodedRecord | None] = [(0, None, encode(record), ()) for record in records]
    batch = encode_batch(
        rows or [(0, None, None, ())],
        base_timestamp=wall,
        max_timestamp=wall,
        attributes=0 if records else CONTROL,
    )
    stamp(batch, base_offset=base, append_time=append_time, leader_epoch=epoch)
    return batch


def decode_entry(chunk: Buffer, at: int, header: BatchHeader) -> Entry:
    """What a batch says.

    Raises:
        UnsupportedVersion: it has a record that this version does not know.
    """
    records: list[MetadataRecord] = []
    if not header.is_control:
        rows = decode_records(chunk, at, header)
        records = [decode(row[2]) for row in rows if row is not None]
    return Entry(header.base_offset, header.next_offset, header.size, records)


class Tail:
    """Batches that are in the log and are not applied.

    Attributes:
        end: where the last one ends; what is applied where there is none.
        voters: who votes by the newest of them that says so, None where none does.
    """

    def __init__(self, begin: int) -> None:
        self.end = begin
        self.voters: dict[str, str] | None = None
        self._begin = begin
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """A batch that was appended; one that is applied already changes nothing."""
        if entry.end <= self._begin:
            return
        assert entry.base == self.end, (entry.base, self.end)
        self._entries.append(entry)
        self.end = entry.end
        for record in entry.records:
            if isinstance(record, VotersChanged | ClusterFormed):
                self.voters = dict(record.voters)

    def cut(self, end: int) -> None:
        """The log ends at an offset now."""
        while self._entries and self._entries[-1].end > end:
            self._entries.pop()
        self._look()

    def take(self, committed: int) -> Entry | None:
        """The next batch, if all below an offset is committed and it is too."""
        if not self._entries or self._entries[0].end > committed:
            return None
        entry = self._entries.popleft()
        self._begin = entry.end
        if self.voters is not None:
            self._look()
        return entry

    def forward(self, offset: int) -> None:
        """All below an offset is applied, by other ways than `take`."""
        while self._entries and self._entries[0].end <= offset:
            self._entries.popleft()
        self._begin = max(self._begin, offset)
        self._look()

    def records(self) -> list[MetadataRecord]:
        """All of them, in order."""
        return [record for entry in self._entries for record in entry.records]

    def _look(self) -> None:
        self.end = self._entries[-1].end if self._entries else self._begin
        self.voters = None
        for record in self.records():
            if isinstance(record, VotersChanged | ClusterFormed):
                self.voters = dict(record.voters)
