"""One compaction of a log: which records stay, and the new segments that hold them. Works in slices, off the reactor.

Owns the decision whether a record stays, and everything that is derived for the new files. First the keys of what is
not compacted yet are read into a map, key to newest offset, as far as the map's memory reaches; then all segments are
gone through, from the log's start to there, and written anew with what stays:

- the newest record of each key, as far as the map knows, and every record without a key;
- a tombstone until its grace is over;
- control batches, and batches that are malformed inside: as they are;
- of the last batches of each producer the headers, by which duplicates are known;
- of the last batch of a new segment the header, so that the segment ends where it ended.

A removed record is nil in its batch; a batch of which nothing stays goes, and the next one says so (`COMPACTED`). What
is known at an offset is the same in the old files and the new: whoever reads sees the newest value of each key in both.

A segment with damage in it is left alone, in its own file. Never removes a file: `Exchange` puts the new ones in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from zbroker.errors import InvalidRecord, UnsupportedAttribute
from zbroker.log import envelope, names
from zbroker.log.checkpoint import SegmentRow
from zbroker.log.index import Index
from zbroker.log.rebuild import rebuild_producers
from zbroker.log.segment import Bounds, Gap, Segment, header_at, read_leniently, scan
from zbroker.log.storage import Files, Request
from zbroker.protocol import thinning
from zbroker.protocol.batch import (
    HEADER_SIZE,
    BatchHeader,
    Buffer,
    payload_intact,
    read_header,
)

KEYS_MAX = 48 << 20
"""Bytes of memory that the map of keys takes at most, unless a single batch has more; the rest is for the next time."""
KEY_COST = 150
"""About what an entry of the map takes beyond the key's own bytes."""
SHARDS = 64
"""Parts of the map: each grows, and goes, on its own, for that keeps the interpreter."""
SLICE = 1 << 20
"""Bytes of log that one request goes through."""
WRITE_SIZE = 1 << 20
CHUNK = 256 << 10


class Source(msgspec.Struct, frozen=True):
    """A sealed segment as it was when the compaction began."""

    base: int
    size: int
    end: int
    last_append_time: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a compaction is about.

    Attributes:
        sources: the sealed segments from the log's first on; all is committed.
        point: all below it was compacted before.
        graves: tombstones below it go.
        snapshots: offsets of producer snapshots, for who wrote last; None: no producer is idempotent.
        segment_size, index_interval, producer_expiry: the log's settings.
    """

    sources: list[Source]
    point: int
    graves: int
    snapshots: list[int] | None
    segment_size: int
    index_interval: int
    producer_expiry: int
    keys_max: int = KEYS_MAX


class Output(msgspec.Struct):
    """A new segment: flushed, under a temporary name."""

    row: SegmentRow
    sources: list[int]
    end: int
    index: Index


class Tally(msgspec.Struct):
    """What a compaction came to. Bytes and records; `tombstones` are those that are left below `point`.

    Attributes:
        point: all below it is compacted now.
        reached: what lies beyond waits for the next time, also where less is compacted for damage.
        damaged: ranges of offsets that were found to be unreadable.
    """

    point: int
    reached: int
    read: int = 0
    written: int = 0
    removed: int = 0
    tombstones: int = 0
    damaged: list[tuple[int, int]] = []


class _Damaged(Exception):
    """There is something in a segment that is no batch of it."""


class Run:
    """One compaction under way; only one request at a time works on it.

    Attributes:
        tally: what it has come to so far.
        ready: a new segment that waits to be put in place; `step` does nothing until `placed`.
        done: there is nothing left to do.
    """

    def __init__(self, folder: str, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally(plan.point, plan.point)
        self.ready: Output | None = None
        self.done = False
        self._folder = folder
        self._newest: list[dict[bytes, int]] = [{} for _ in range(SHARDS)]
        self._remembered: set[int] = set()
        self._work: Iterator[int] | None = None
        self._capped = 1 << 62
        self._writing: _Writing | None = None
        self._given_up = False

    def step(self, files: Files, budget: int = SLICE) -> None:
        """Goes through so many bytes of log, or up to the next segment that is ready.

        Raises:
            OSError: a segment is gone, or the disk is full; nothing of the log has changed.
            StorageFailed: a flush failed.
        """
        if self._given_up:
            self._given_up, self._work, self.ready = False, self._clear_away(files), None
        elif self._work is None:
            self._work = self._steps(files)
        while self.ready is None and budget > 0:
            size = next(self._work, None)
            if size is None:
                self.done = True
                return
            budget -= size

    def placed(self) -> None:
        """The new segment is in place."""
        assert self.ready is not None
        self.ready = None

    def give_up(self) -> None:
        """Nothing more is to come of it: what is left for `step` is to clear away."""
        self._given_up = True

    def _steps(self, files: Files) -> Iterator[int]:
        """All of it; yields how many bytes were gone through since the last time."""
        plan = self.plan
        if plan.snapshots is not None and plan.sources:
            self._remembered = self._who_wrote_last(files)
            yield 0
        yield from self._map(files)
        for source in plan.sources:
            if source.base < self.tally.reached:
                yield from self._compact(files, source)
        yield from self._finish(files)
        self.tally.point = min(self.tally.point, self._capped)
        yield from self._forget()

    def _forget(self) -> Iterator[int]:
        """Lets the map go, a piece at a time: at once it would keep the interpreter for too long."""
        for shard in self._newest:
            shard.clear()
            yield SLICE // SHARDS

    def _clear_away(self, files: Files) -> Iterator[int]:
        yield from self._forget()
        for source in self.plan.sources:
            with contextlib.suppress(FileNotFoundError):
                files.remove(names.path(self._folder, source.base, names.LOG) + names.TEMPORARY)

    # Keys ---

    def _who_wrote_last(self, files: Files) -> set[int]:
        """Base offsets of the batches by which producers are remembered at the end of what is compacted."""
        plan, last = self.plan, self.plan.sources[-1]
        segments = [Segment(each.base, each.size, each.end) for each in plan.sources]
        assert plan.snapshots is not None
        table, _ = rebuild_producers(
            files, self._folder, segments, plan.snapshots, last.end, plan.producer_expiry
        )
        known = table.snapshot(last.end, last.last_append_time).producers
        return {entry.base_offset for entries in known.values() for entry in entries}

    def _map(self, files: Files) -> Iterator[int]:
        """Fills the map from what is not compacted yet, and notes how far it reaches."""
        tally, room = self.tally, self.plan.keys_max
        for source in self.plan.sources:
            if source.end <= self.plan.point:
                continue
            try:
                for batch, header in _batches(files, self._folder, source):
                    if header.next_offset > self.plan.point:
                        if room <= 0:
                            return
                        room -= self._note(batch, header)
                        tally.reached = tally.point = header.next_offset
                    yield header.size
            except _Damaged:
                self._cap(source)
            tally.reached = tally.point = source.end

    def _note(self, batch: Buffer, header: BatchHeader) -> int:
        """Puts a batch's keys into the map; the memory that it took."""
        if header.is_control:
            return 0
        try:
            pieces = list(thinning.keys_of(batch, header))
        except (InvalidRecord, UnsupportedAttribute):
            return 0
        newest, offset, size = self._newest, header.base_offset, 0
        for keys in pieces:
            for key in keys:
                if key is not None:
                    shard = newest[hash(key) % SHARDS]
                    if key not in shard:
                        size += KEY_COST + len(key)
                    shard[key] = offset
                offset += 1
        return size

    # Segments ---

    def _compact(self, files: Files, source: Source) -> Iterator[int]:
        """One segment joins the new one, or stays as it is where there is damage in it."""
        writing = self._writing
        if writing is not None and not writing.has_room_for(source, self.plan.segment_size):
            yield from self._finish(files)
            writing = None
        if writing is None:
            writing = _Writing(files, self._folder, source.base, self.plan.index_interval)
        counted = (self.tally.removed, self.tally.tombstones)
        writing.begin()
        try:
            for batch, header in _batches(files, self._folder, source):
                self.tally.read += header.size
                self._keep(writing, batch, header)
                yield header.size
        except _Damaged:
            self.tally.removed, self.tally.tombstones = counted
            self._leave_alone(files, source)
            kept = writing.take_back()
            self._writing = writing if kept else None
            yield from self._finish(files)
            return
        writing.end(source)
        self._writing = writing

    def _keep(self, writing: _Writing, batch: Buffer, header: BatchHeader) -> None:
        """Writes what stays of a batch."""
        rows, removed = self._what_stays(batch, header)
        empty = rows is not None and all(row is None for row in rows)
        if empty and header.base_offset not in self._remembered:
            writing.leave_out(header, new=bool(removed))
        elif rows is None or not removed:
            writing.add(batch, header, new=False)
        else:
            thinned = thinning.thin(header, rows)
            writing.add(thinned, read_header(thinned), new=True)

    def _what_stays(
        self, batch: Buffer, header: BatchHeader
    ) -> tuple[list[thinning.KeyedRow | None] | None, int]:
        """The records of a batch, None for those that are gone or go, and how many go.

        No records where they are not to be looked at, or cannot be.
        """
        if header.is_control:
            return None, 0
        newest, graves, offset = self._newest, self.plan.graves, header.base_offset
        removed = tombstones = 0
        rows: list[thinning.KeyedRow | None] = []
        try:
            for piece in thinning.rows_of(batch, header):
                for at, row in enumerate(piece):
                    if row is not None and row.key is not None:
                        if newest[hash(row.key) % SHARDS].get(row.key, -1) > offset:
                            piece[at] = None
                            removed += 1
                        elif row.is_tombstone:
                            if offset < graves:
                                piece[at] = None
                                removed += 1
                            else:
                                tombstones += offset < self.tally.point
                    offset += 1
                rows += piece
        except (InvalidRecord, UnsupportedAttribute):
            return None, 0
        self.tally.removed += removed
        self.tally.tombstones += tombstones
        return rows, removed

    def _cap(self, source: Source) -> None:
        """Not all keys of a segment are known, or not all of it that is older went: from there it is not compacted."""
        self._capped = min(self._capped, max(source.base, self.plan.point))

    def _leave_alone(self, files: Files, source: Source) -> None:
        """A damaged segment stays as it is; what is damaged is told."""
        tally = self.tally
        self._cap(source)
        bounds = Bounds(source.base, limit=source.end)
        path = names.path(self._folder, source.base, names.LOG)
        for found in scan(files, path, 0, source.size, bounds, payloads=True):
            if isinstance(found, Gap):
                tally.damaged.append((found.first, found.next or source.end))

    def _finish(self, files: Files) -> Iterator[int]:
        """The new segment is complete."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        output = writing.finish(files)
        if output is not None:
            self.tally.written += output.row.size
            self.ready = output
        yield 0


class _Writing:
    """A new segment that is being written."""

    def __init__(self, files: Files, folder: str, base: int, interval: int) -> None:
        self._files, self._folder, self._base = files, folder, base
        self._path = names.path(folder, base, names.LOG) + names.TEMPORARY
        self._sources: list[Source] = []
        self._index = Index(base, interval)
        self._buffers: list[Buffer] = []
        self._buffered = self._size = 0
        self._end = base
        self._time = -1
        self._left_out: BatchHeader | None = None
        self._changed = False
        self.begin()
        files.write(self._path, 0, [])
        files.truncate(self._path, 0)

    def has_room_for(self, source: Source, segment_size: int) -> bool:
        """Whether another segment may join: what is small is joined even if it gets a little large by it."""
        return self._size + source.size <= segment_size or self._size <= segment_size // 4

    def begin(self) -> None:
        """A segment is about to be gone through."""
        self._before = (
            self._size, self._end, self._time, self._index.max_timestamp, self._changed, self._left_out,
        )  # fmt: skip

    def end(self, source: Source) -> None:
        """A segment was gone through."""
        self._sources.append(source)

    def take_back(self) -> bool:
        """Nothing of the segment counts; whether others are there."""
        self._write()
        self._size, self._end, self._time, latest, self._changed, self._left_out = self._before
        self._files.truncate(self._path, self._size)
        self._index.cut(self._size, latest)
        if not self._sources:
            self._files.remove(self._path)
        return bool(self._sources)

    def add(self, batch: Buffer, header: BatchHeader, *, new: bool) -> None:
        """A batch stays; `new` where it is not as it was."""
        if header.base_offset > self._end and not header.is_compacted:
            batch = bytearray(batch)
            thinning.mark(batch, header)
        self._changed = self._changed or new or self._left_out is not None
        self._left_out = None
        self._index.add(header.base_offset, self._size, header.size, header.latest_timestamp)
        self._buffers.append(batch)
        self._buffered += header.size
        self._size += header.size
        self._end = header.next_offset
        self._time = header.append_time
        if self._buffered >= WRITE_SIZE:
            self._write()

    def leave_out(self, header: BatchHeader, *, new: bool) -> None:
        """Nothing stays of a batch; `new` where something was in it until now."""
        self._changed = self._changed or new or self._left_out is not None
        self._left_out = header

    def finish(self, files: Files) -> Output | None:
        """The segment, flushed; None where it would be what is there already."""
        self._end_gap()
        self._write()
        if not self._changed and len(self._sources) == 1:
            files.remove(self._path)
            return None
        envelope.flush(files, self._folder, self._path)
        envelope.flush_folder(files, self._folder)
        index = self._index
        row = SegmentRow(self._base, self._size, self._time, index.max_timestamp)
        assert self._end == self._sources[-1].end
        return Output(row, [source.base for source in self._sources], self._end, index)

    def _end_gap(self) -> None:
        """The last batch is there, if without its records, so that the segment ends where it did."""
        header, self._left_out = self._left_out, None
        if header is not None:
            nothing = thinning.thin(header, [None] * header.span)
            self.add(nothing, read_header(nothing), new=False)

    def _write(self) -> None:
        if self._buffers:
            position = self._size - self._buffered
            self._files.write(self._path, position, self._buffers)
            self._buffers = []
            self._buffered = 0


class Slice(Request):
    """A part of a compaction, on a lane of its own."""

    work: Run

    def run(self, files: Files) -> None:
        """See `Run.step`."""
        self.work.step(files)


def _batches(files: Files, folder: str, source: Source) -> Iterator[tuple[memoryview, BatchHeader]]:
    """The batches of a segment, each looked at as a whole.

    Raises:
        _Damaged: something else stands there, or the segment does not end where it should.
    """
    path = names.path(folder, source.base, names.LOG)
    if files.size(path) < source.size:
        raise _Damaged
    bounds = Bounds(source.base, limit=source.end)
    data, start, position = b"", 0, 0
    while position < source.size:
        at = position - start
        if len(data) - at < HEADER_SIZE:
            data, start, at = _chunk(files, path, position, CHUNK, source.size), position, 0
        header = header_at(data, at, bounds, exact=True)
        if header is None or position + header.size > source.size:
            raise _Damaged
        if at + header.size > len(data):
            wanted = max(CHUNK, header.size)
            data, start, at = _chunk(files, path, position, wanted, source.size), position, 0
        if not payload_intact(data, at, header):
            raise _Damaged
        yield memoryview(data)[at : at + header.size], header
        bounds.accept(header)
        position += header.size
    if bounds.offset != source.end:
        raise _Damaged


def _chunk(files: Files, path: str, position: int, length: int, size: int) -> bytes:
    return read_leniently(files, path, position, min(length, size - position))
