"""What is derived from segments, built again: indexes, producers' state, ranges of damage.

Owns how the headers of a log lead to everything else that a log keeps; recovery, truncation and readers share it.
Runs inside requests; reads, and never changes a file.
"""

from __future__ import annotations

from collections.abc import Iterator

from zbroker.log import envelope, names, producers
from zbroker.log import index as indexes
from zbroker.log.index import Index
from zbroker.log.producers import ProducerTable, Snapshot
from zbroker.log.segment import Bounds, Gap, Segment, scan
from zbroker.log.storage import Files
from zbroker.protocol.batch import BatchHeader

UNSAVED = -2
"""Instead of a snapshot's offset: the producers' state is in no snapshot, and is rebuilt from headers."""


def index_until(files: Files, folder: str, segment: Segment, position: int, interval: int) -> Index:
    """A segment's index up to a position: its file where that is good, else built from the headers."""
    body = envelope.load(files, names.path(folder, segment.base, names.INDEX), indexes.MAGIC)
    index = None if body is None else indexes.decode(body)
    if index is not None and index.base == segment.base and index.covered >= position:
        index.cut(position, index.max_timestamp)
        return index
    return build_index(files, folder, segment.base, position, interval)


def build_index(files: Files, folder: str, base: int, end: int, interval: int) -> Index:
    """A segment's index from its headers, damage stepped over."""
    index = Index(base, interval)
    path = names.path(folder, base, names.LOG)
    for found in scan(files, path, 0, end, Bounds(base), payloads=False):
        if isinstance(found, Gap):
            index.skip(found.until)
            continue
        position, header = found
        index.add(header.base_offset, position, header.size, header.latest_timestamp)
    index.covered = end
    return index


def load_snapshot(files: Files, folder: str, offset: int) -> Snapshot | None:
    """The producer snapshot at an offset, None where it is missing or damaged."""
    if offset < 0:
        return None
    body = envelope.load(files, names.path(folder, offset, names.PRODUCERS), producers.MAGIC)
    snapshot = None if body is None else producers.decode(body)
    return snapshot if snapshot is not None and snapshot.offset == offset else None


def newest_snapshot(files: Files, folder: str, offsets: list[int], limit: int) -> Snapshot | None:
    """The newest whole producer snapshot at or below an offset."""
    for offset in sorted(offsets, reverse=True):
        if offset <= limit and (found := load_snapshot(files, folder, offset)) is not None:
            return found
    return None


def rebuild_producers(
    files: Files, folder: str, segments: list[Segment], offsets: list[int], end: int, expiry: int
) -> tuple[ProducerTable, int]:
    """The producers' state at an offset, from the best snapshot and the headers behind it.

    Returns:
        The table, and the snapshot's offset where the table is exactly that snapshot, -1 where it is empty,
        `UNSAVED` where no snapshot says what it does.
    """
    table = ProducerTable(expiry)
    snapshot = newest_snapshot(files, folder, offsets, end)
    if snapshot is not None:
        table.restore(snapshot)
    begin = -1 if snapshot is None else snapshot.offset
    changes = table.changes
    for header in headers(files, folder, segments, begin, end):
        table.settled = header.base_offset
        table.append(header)
    table.settled = end
    return table, begin if changes == table.changes else UNSAVED


def headers(
    files: Files, folder: str, segments: list[Segment], begin: int, end: int
) -> Iterator[BatchHeader]:
    """The headers of all batches from one offset to before another, damage stepped over."""
    for segment in segments:
        if segment.end <= begin or segment.base >= end:
            continue
        path = names.path(folder, segment.base, names.LOG)
        if files.size(path) < 0:
            continue
        for found in scan(files, path, 0, segment.size, Bounds(segment.base), payloads=False):
            if isinstance(found, Gap):
                continue
            header = found[1]
            if header.base_offset >= end:
                return
            if header.base_offset >= begin:
                yield header


def merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that touch or overlap made one.

    >>> merge([(5, 7), (0, 2), (6, 9)])
    [(0, 2), (5, 9)]
    """
    merged: list[tuple[int, int]] = []
    for first, behind in sorted(ranges):
        if first >= behind:
            continue
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(behind, merged[-1][1]))
        else:
            merged.append((first, behind))
    return merged
