"""The epoch table: which leader epoch begins at which offset.

Owns the rule that epochs never fall along a log, and the answer to "where did this epoch end" on which replicas
agree before one of them truncates (KIP-101, KIP-279, KIP-320). Epochs without records are kept: a follower that
forgot one would take part in the wrong history. Never touches a file.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import msgspec

from zbroker.log import envelope

MAGIC = b"ZBEP"
_decode = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode


class EpochTable:
    """Entries of (epoch, start offset): epochs rise from entry to entry, start offsets never fall."""

    __slots__ = ("entries",)

    def __init__(self, entries: list[tuple[int, int]] | None = None) -> None:
        self.entries: list[tuple[int, int]] = entries if entries is not None else []

    @property
    def last_epoch(self) -> int:
        """The newest epoch, -1 where there is none."""
        return self.entries[-1][0] if self.entries else -1

    def assign(self, epoch: int, offset: int) -> None:
        """A new epoch begins at an offset, which is the log's end."""
        if self.entries:
            last, start = self.entries[-1]
            assert epoch > last, f"epoch {epoch} after {last}"
            assert offset >= start, f"epoch {epoch} at {offset} after {last} at {start}"
        self.entries.append((epoch, offset))

    def observe(self, epoch: int, offset: int) -> None:
        """What a batch header on disk says, in the log's order; entries that contradict it go."""
        entries = self.entries
        at = bisect_right(entries, offset, key=_start)
        while at and entries[at - 1][0] > epoch:
            at -= 1
            del entries[at]
        if not at or entries[at - 1][0] < epoch:
            while at < len(entries) and entries[at][0] <= epoch:
                del entries[at]
            entries.insert(at, (epoch, offset))

    def epoch_at(self, offset: int) -> int:
        """The epoch of the record at an offset, -1 where none is known."""
        at = bisect_right(self.entries, offset, key=_start)
        return self.entries[at - 1][0] if at else -1

    def end_of(self, epoch: int, log_end: int) -> tuple[int, int]:
        """The largest epoch at or below the one asked for, and the offset at which it ends.

        (-1, the first known start) where the table has none so old.
        """
        at = bisect_right(self.entries, epoch, key=_epoch)
        end = self.entries[at][1] if at < len(self.entries) else log_end
        return (self.entries[at - 1][0] if at else -1), end

    def truncate(self, offset: int) -> None:
        """Forgets the epochs that begin at or after an offset: they belong to what is discarded."""
        while self.entries and self.entries[-1][1] >= offset:
            self.entries.pop()

    def clamp(self, end: int) -> None:
        """Keeps epochs whose records were lost in a crash, as beginning at the log's end."""
        self.entries = [(epoch, min(start, end)) for epoch, start in self.entries]

    def encode(self) -> bytes:
        """The epoch file's bytes."""
        return envelope.seal(MAGIC, msgspec.msgpack.encode(self.entries))


def decode(body: bytes) -> EpochTable | None:
    """The table in an envelope's body, None where it makes no sense."""
    try:
        entries = _decode(body)
    except msgspec.MsgspecError:
        return None
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(entries))
    return EpochTable(entries) if rising else None


def _start(entry: tuple[int, int]) -> int:
    return entry[1]


def _epoch(entry: tuple[int, int]) -> int:
    return entry[0]
