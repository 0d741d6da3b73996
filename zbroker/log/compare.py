"""Two copies of one log, offline: whether their batches are the same, byte for byte, where both have some.

Owns the rule that makes copies equal: over their common range of offsets, above the later log start, the same batches
stand in the same order. Where files begin and end may differ. Never changes a file, and repairs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from zbroker.log.inspect import Damage, ScannedBatch, scan_segment
from zbroker.log.segment import read_leniently
from zbroker.log.storage import Files


class Copy(NamedTuple):
    """One copy: its segments' paths in order, and the range of offsets that it holds."""

    files: Files
    segments: Sequence[str]
    start: int
    end: int


class Difference(msgspec.Struct, frozen=True):
    """The first place where two copies part: each side's batch there, None where it has none."""

    offset: int
    left: ScannedBatch | None
    right: ScannedBatch | None

    @property
    def fields(self) -> list[str]:
        """Header fields in which the two batches differ; `payload` where their headers do not."""
        if self.left is None or self.right is None:
            return []
        ours, theirs = self.left.header, self.right.header
        named = [
            name for name in ours.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)
        ]
        return named or ["payload"]


class Comparison(msgspec.Struct, frozen=True):
    """What two copies have in common: offsets from `first` to before `next`, and how many batches were the same."""

    first: int
    next: int
    batches: int = 0
    difference: Difference | None = None


def compare(left: Copy, right: Copy) -> Comparison:
    """Reads both copies side by side, up to the first difference.

    A batch that begins before the later log start is left out: one side may have dropped what is before it.
    """
    first, end = max(left.start, right.start), min(left.end, right.end)
    if first >= end:
        return Comparison(first, first)
    ours, theirs = _batches(left, first, end), _batches(right, first, end)
    same = 0
    while True:
        mine, other = next(ours, None), next(theirs, None)
        if mine is None and other is None:
            return Comparison(first, end, same)
        if mine is None or other is None or not _equal(left, mine, right, other):
            return Comparison(first, end, same, _difference(mine, other))
        same += 1


class _Placed(NamedTuple):
    segment: str
    batch: ScannedBatch


def _batches(copy: Copy, first: int, end: int) -> Iterator[_Placed]:
    """The batches that begin in the range; what is damaged is passed over, so that it is missed on the other side."""
    for segment in copy.segments:
        for found in scan_segment(copy.files, segment):
            if isinstance(found, Damage) or found.header.base_offset < first:
                continue
            if found.header.base_offset >= end:
                return
            yield _Placed(segment, found)


def _equal(left: Copy, mine: _Placed, right: Copy, other: _Placed) -> bool:
    if mine.batch.header != other.batch.header:
        return False
    return _bytes(left.files, mine) == _bytes(right.files, other)


def _bytes(files: Files, placed: _Placed) -> bytes:
    batch = placed.batch
    return read_leniently(files, placed.segment, batch.position, batch.header.size)


def _difference(mine: _Placed | None, other: _Placed | None) -> Difference:
    """At the lower of two offsets the other side has nothing."""
    offset = min(placed.batch.header.base_offset for placed in (mine, other) if placed is not None)
    at = [
        placed.batch if placed is not None and placed.batch.header.base_offset == offset else None
        for placed in (mine, other)
    ]
    return Difference(offset, at[0], at[1])
