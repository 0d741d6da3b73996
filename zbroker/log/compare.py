"""Two copies of one log, offline: whether their batches are the same, byte for byte, where both have some.

Owns the rule that makes copies equal: over their common range of offsets, above the later log start, the same batches
stand in the same order. Where files begin and end may differ. Each copy is compacted for itself, and what that did is
marked in the batches (`COMPACTED`): a batch that is marked on one side may lack records there, and before it whole
batches may be missing; what both have is the same. Never changes a file, and repairs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from zbroker.errors import InvalidRecord, UnsupportedAttribute
from zbroker.log.inspect import Damage, ScannedBatch, scan_segment
from zbroker.log.segment import read_leniently
from zbroker.log.storage import Files
from zbroker.protocol.batch import COMPACTED, COMPRESSION_MASK, BatchHeader, decode_records


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
    mine, other = next(ours, None), next(theirs, None)
    same = 0
    while mine is not None or other is not None:
        if _is_missing(mine, other):
            mine = next(ours, None)
        elif _is_missing(other, mine):
            other = next(theirs, None)
        elif mine is None or other is None or not _equal(left, mine, right, other):
            return Comparison(first, end, same, _difference(mine, other))
        else:
            mine, other = next(ours, None), next(theirs, None)
            same += 1
    return Comparison(first, end, same)


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


def _is_missing(mine: _Placed | None, other: _Placed | None) -> bool:
    """Whether compaction took a batch on the other side, whose next batch says so."""
    if mine is None or other is None:
        return False
    header, following = mine.batch.header, other.batch.header
    return following.is_compacted and header.next_offset <= following.base_offset


def _equal(left: Copy, mine: _Placed, right: Copy, other: _Placed) -> bool:
    header, theirs = mine.batch.header, other.batch.header
    if header == theirs:
        return _bytes(left.files, mine) == _bytes(right.files, other)
    if not (header.is_compacted or theirs.is_compacted) or _kept(header) != _kept(theirs):
        return False
    if not (mine.batch.payload_intact and other.batch.payload_intact):
        return False
    try:
        rows = decode_records(_bytes(left.files, mine), 0, header)
        others = decode_records(_bytes(right.files, other), 0, theirs)
    except (InvalidRecord, UnsupportedAttribute):
        return False
    pairs = zip(rows, others, strict=True)
    return all(ours == their for ours, their in pairs if ours is not None and their is not None)


def _kept(header: BatchHeader) -> tuple[int, ...]:
    """What compaction leaves as it is in a batch."""
    return (
        header.base_offset, header.span, header.leader_epoch, header.append_time, header.base_timestamp,
        header.producer_id, header.producer_epoch, header.base_sequence,
        header.attributes & ~COMPRESSION_MASK, header.stamp_attributes & ~COMPACTED,
    )  # fmt: skip


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
