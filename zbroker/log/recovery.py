"""Opening a log after whatever happened to it.

Owns the difference between a torn tail, which is cut off, and damage, which is kept and served around. All below
the checkpoint is taken on trust, all behind it is scanned; without a usable checkpoint everything is. What a
scan read may have come from the page cache, so it is flushed before it counts; after a failed flush it is copied
to new files first. Unknown files are never touched. Runs inside a request, on the storage's thread.

A tail is torn when it starts at or behind the checkpoint and no valid batch follows, in its segment or a later one.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise

import msgspec

from zbroker.log import checkpoint as checkpoints
from zbroker.log import compacted, envelope, epochs, names
from zbroker.log.checkpoint import Checkpoint, SegmentRow
from zbroker.log.compacted import Compacted
from zbroker.log.epochs import EpochTable
from zbroker.log.index import Index
from zbroker.log.producers import ProducerTable, Snapshot
from zbroker.log.rebuild import (
    UNSAVED,
    headers,
    index_until,
    load_snapshot,
    merge,
    newest_snapshot,
    rebuild_producers,
)
from zbroker.log.segment import CHUNK, Bounds, Gap, Segment, header_at, read_leniently, scan
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Files
from zbroker.protocol.batch import HEADER_SIZE


class State(msgspec.Struct):
    """A log as found in its folder, and as it goes on from there.

    Attributes:
        epochs_saved: there was room to save the epoch table as it is now.
        checkpointed: offset of the checkpoint on disk that says that the log is in use; -1 where there is none such.
    """

    epochs: EpochTable
    producers: ProducerTable
    segments: list[Segment] = []
    start: int = 0
    end: int = 0
    last_append_time: int = -1
    snapshots: list[int] = []
    snapshot: int = -1
    rolled: list[Snapshot] = []
    damaged: list[tuple[int, int]] = []
    unflushed: int = -1
    clean: bool = True
    in_use: bool = True
    epochs_saved: bool = True
    checkpointed: int = -1
    torn_bytes: int = 0
    scanned_bytes: int = 0
    compacted: Compacted = msgspec.field(default_factory=Compacted)

    def checkpoint(self, *, clean: bool) -> Checkpoint:
        """The checkpoint that says all this."""
        rows = [
            SegmentRow(s.base, s.size, s.last_append_time, s.max_timestamp) for s in self.segments
        ]
        return Checkpoint(
            clean, self.start, self.end, self.last_append_time, self.snapshot, rows, self.damaged,
            self.unflushed,
        )  # fmt: skip


class _Scanned(msgspec.Struct):
    """What a scan found in one segment: `valid` is the position after its last whole batch."""

    segment: Segment
    size: int
    start: int
    valid: int
    found: int = 0


def recover(files: Files, folder: str, settings: LogSettings) -> State:
    """Opens what is in a folder, mending what a crash left.

    Raises:
        UnsupportedVersion: a newer version wrote it; nothing has been touched.
        StorageFailed: a flush failed.
    """
    return _Recovery(files, folder, settings).run()


class _Recovery:
    """One opening, step by step."""

    def __init__(self, files: Files, folder: str, settings: LogSettings) -> None:
        self.files, self.folder, self.settings = files, folder, settings
        self.checkpoint = checkpoints.load(files, folder)
        self.compacted = compacted.load(files, folder)
        self._end_what_was_begun()
        self.listing = files.list(folder)
        self.table, self.epochs_known = self._load_epochs()
        self.bases = names.offsets(self.listing, names.LOG)
        self.marked = names.FSYNC_FAILED in self.listing
        self.state = State(self.table, ProducerTable(settings.producer_expiry))
        self.sizes: dict[int, int] = {}
        self.checkpointed = False
        self.leftovers: list[int] = []

    def run(self) -> State:
        state = self.state
        if self.checkpoint is None and not self.bases:
            self._begin()
        else:
            self._set_leftovers_aside()
            self.sizes = {base: self.files.size(self._path(base)) for base in self.bases}
            state.snapshots = names.offsets(self.listing, names.PRODUCERS)
            state.clean = self._is_clean()
            if state.clean and self.epochs_known:
                self._trust_all()
            else:
                self._mend()
            self._remove_leftovers()
        if state.segments:
            self._prepare_active(state.segments[-1])
        state.producers.settled = state.end
        self._take_over_compaction()
        return state

    # Compaction ---

    def _end_what_was_begun(self) -> None:
        """Segments that were being exchanged, or a log that was being begun anew: neither is left in the middle."""
        files, folder, known = self.files, self.folder, self.compacted
        if known is None:
            return
        if known.exchange is not None:
            known.exchange.finish(files, folder)
            if self.checkpoint is not None:
                known.exchange.apply(self.checkpoint)
        if known.anew >= 0:
            listing = files.list(folder)
            for suffix in (names.INDEX, names.LOG, names.PRODUCERS):
                for offset in names.offsets(listing, suffix):
                    self._remove(names.path(folder, offset, suffix))
            envelope.flush_folder(files, folder)
            self.checkpoint = Checkpoint(False, known.anew, known.anew, -1, -1, [], [])

    def _take_over_compaction(self) -> None:
        """What is known of compaction; where that was damaged, any tombstone may be gone."""
        known = self.compacted
        if known is None:
            end = self.state.end
            self.state.compacted = Compacted(thinned=end, tombstones=-1, lost=end)
            self._save_small(names.COMPACTION, self.state.compacted.encode())
            return
        self.state.compacted = known
        if known.anew >= 0 or known.exchange is not None:
            settled = msgspec.structs.replace(known, anew=-1, exchange=None)
            if self.checkpointed and self._save_small(names.COMPACTION, settled.encode()):
                self.state.compacted = settled

    # Nothing there yet ---

    def _begin(self) -> None:
        """A new log: the folder must itself outlive a power loss before anything in it counts."""
        if not self.listing:
            self.files.make_folder(self.folder)
            above = self.folder
            while above:
                above = names.parent(above)
                self.files.flush_folder(above)
        self.state.in_use = False
        self.table.clamp(0)
        if not self.epochs_known and names.EPOCHS in self.listing:
            self._save_small(names.EPOCHS, self.table.encode())

    # What may be taken on trust ---

    def _load_epochs(self) -> tuple[EpochTable, bool]:
        body = envelope.load(self.files, f"{self.folder}/{names.EPOCHS}", epochs.MAGIC)
        table = None if body is None else epochs.decode(body)
        return (EpochTable(), False) if table is None else (table, True)

    def _set_leftovers_aside(self) -> None:
        """Segments that retention had given up before the crash: not looked at, but for producers' headers."""
        start = 0 if self.checkpoint is None else self.checkpoint.start
        if self.checkpoint and not self.checkpoint.segments and max(self.bases, default=0) < start:
            # A checkpoint names the active segment, unless the log was beginning anew when it crashed.
            self.leftovers, self.bases = self.bases, []
            return
        while len(self.bases) > 1 and self.bases[1] <= start:
            self.leftovers.append(self.bases.pop(0))

    def _remove_leftovers(self) -> None:
        """Those segments, now that what they knew is on disk elsewhere, and half-written copies of ours."""
        for base in self.leftovers:
            for suffix in (names.INDEX, names.LOG):
                self._remove(names.path(self.folder, base, suffix))
        for name in self.listing:
            stem = name.removesuffix(names.TEMPORARY)
            if stem != name and names.offset_of(stem, names.LOG) is not None:
                self._remove(f"{self.folder}/{name}")

    def _is_clean(self) -> bool:
        """Whether the log was closed in order and is exactly as it was left."""
        known = self.checkpoint
        return (
            known is not None
            and known.clean
            and not self.marked
            and [row.base for row in known.segments] == self.bases
            and all(row.size == self.sizes[row.base] for row in known.segments)
        )

    def _trust_all(self) -> None:
        known, state = self.checkpoint, self.state
        state.in_use = False
        assert known is not None
        state.segments = _segments(known.segments, known.offset)
        state.start, state.end = known.start, known.offset
        state.last_append_time = known.last_append_time
        state.damaged, state.unflushed = list(known.damaged), known.unflushed
        self._restore_producers(known, known.offset)
        if state.snapshot != known.snapshot:
            self._save_snapshot()
            self._save_checkpoint(clean=True)

    # What must be looked at ---

    def _mend(self) -> None:
        state = self.state
        known = self._usable_checkpoint()
        if known is None:
            self._scan_everything()
        else:
            self._scan_behind(known)
        state.epochs.clamp(state.end)
        state.damaged = merge(
            [(max(first, state.start), behind) for first, behind in state.damaged]
        )
        state.unflushed = self._never_flushed()
        self._make_durable()

    def _never_flushed(self) -> int:
        """From where on what is damaged had never been known to be on disk: a power loss has left a hole."""
        if self.checkpoint is None:
            return -1
        known = self.checkpoint.unflushed
        floor = known if known >= 0 else self.checkpoint.offset
        return min((first for first, _ in self.state.damaged if first >= floor), default=-1)

    def _usable_checkpoint(self) -> Checkpoint | None:
        """The checkpoint, unless it contradicts the files: then it is stale, and everything is scanned."""
        known = self.checkpoint
        if known is None:
            return None
        rows = {row.base: row for row in known.segments}
        last = known.segments[-1].base if known.segments else known.offset
        strangers = [
            base for base in self.bases if base not in rows and base < max(last, known.offset)
        ]
        return None if strangers else known

    def _scan_behind(self, known: Checkpoint) -> None:
        state = self.state
        state.start, state.damaged = known.start, list(known.damaged)
        state.segments = self._trusted(known)
        if not self.epochs_known:
            rows = _segments(known.segments, known.offset)
            for header in headers(self.files, self.folder, rows, -1, known.offset):
                self.table.observe(header.leader_epoch, header.base_offset)
        bounds = Bounds(known.offset, self.table.epoch_at(known.offset - 1), known.last_append_time)
        last = known.segments[-1] if known.segments else None
        todo = [(base, 0) for base in self.bases if last is None or base > last.base]
        if last is not None and last.base in self.sizes:
            if self.sizes[last.base] >= last.size:
                todo.insert(0, (last.base, last.size))
                row = last
            else:  # the file has lost what had been on disk: only a look from its start tells how much
                todo.insert(0, (last.base, 0))
                bounds = Bounds(last.base)
                row = SegmentRow(last.base, 0, -1, -1)
            first = _segments([row], bounds.offset)[0]
        else:
            first = None
            if last is not None:
                state.damaged.append((last.base, known.offset))
        state.last_append_time = known.last_append_time
        self._restore_producers(known, min(known.offset, bounds.offset))
        self._scan(todo, first, bounds, known.offset)

    def _trusted(self, known: Checkpoint) -> list[Segment]:
        """The sealed segments of a checkpoint; where a file is missing or short, that is damage."""
        kept = []
        for segment in _segments(known.segments, known.offset)[:-1]:
            size = self.sizes.get(segment.base, -1)
            if size < 0:
                self.state.damaged.append((segment.base, segment.end))
                continue
            if size < segment.size:
                bounds = Bounds(segment.base, limit=segment.end)
                path = self._path(segment.base)
                for found in scan(self.files, path, 0, size, bounds, payloads=True):
                    if isinstance(found, Gap) and found.next is not None:
                        self.state.damaged.append((found.first, found.next))
                if bounds.offset < segment.end:
                    self.state.damaged.append((bounds.offset, segment.end))
                segment.size = size
            kept.append(segment)
        return kept

    def _scan_everything(self) -> None:
        state = self.state
        known = self.checkpoint
        first = self.bases[0] if self.bases else (known.offset if known else 0)
        state.start = max(first, known.start if known else 0)
        floor = known.offset if known else first
        snapshot = self._newest_snapshot(1 << 62)
        if snapshot is not None:
            state.producers.restore(snapshot)
            state.snapshot = snapshot.offset
        from_offset = -1 if snapshot is None else snapshot.offset
        self._scan([(base, 0) for base in self.bases], None, Bounds(first), floor, from_offset)
        if from_offset > state.end:
            self._rebuild_producers(state.end)

    def _scan(
        self,
        todo: list[tuple[int, int]],
        first: Segment | None,
        bounds: Bounds,
        floor: int,
        producers_from: int = -1,
    ) -> None:
        """Scans segments in order and keeps what is a log; `floor` is an end that had been on disk."""
        expected = bounds.offset
        scans: list[_Scanned] = []
        for number, (base, position) in enumerate(todo):
            size = self.sizes[base]
            segment = first if first is not None and base == first.base else Segment(base)
            segment.index = self._index_until(segment, position)
            bounds.offset = max(bounds.offset, base)
            if not position and bounds.offset >= producers_from:
                snapshot = self.state.producers.snapshot(base, self.state.last_append_time)
                self.state.rolled.append(snapshot)
            bounds.limit = todo[number + 1][0] if number + 1 < len(todo) else 1 << 62
            scanned = _Scanned(segment, size, position, position)
            self._scan_one(scanned, bounds, producers_from)
            segment.end = bounds.offset
            scans.append(scanned)
        self._settle(scans, expected, floor)

    def _scan_one(self, scanned: _Scanned, bounds: Bounds, producers_from: int) -> None:
        segment, state, index = scanned.segment, self.state, scanned.segment.index
        assert index is not None
        path, epoch = self._path(segment.base), None
        for found in scan(self.files, path, scanned.start, scanned.size, bounds, payloads=True):
            if isinstance(found, Gap):
                index.skip(found.until)
                if found.next is not None and found.next > found.first:
                    state.damaged.append((found.first, found.next))
                continue
            position, header = found
            index.add(header.base_offset, position, header.size, header.latest_timestamp)
            if header.leader_epoch != epoch:
                epoch = header.leader_epoch
                self.table.observe(epoch, header.base_offset)
            if header.base_offset >= producers_from:
                state.producers.settled = header.base_offset
                state.producers.append(header)
            scanned.found += 1
            scanned.valid = position + header.size
            state.last_append_time = segment.last_append_time = header.append_time
        segment.max_timestamp = index.max_timestamp
        state.scanned_bytes += max(0, scanned.size - scanned.start)

    def _settle(self, scans: list[_Scanned], expected: int, floor: int) -> None:
        """What the scans mean: where the log ends, what is damage, what is torn."""
        state = self.state
        holds_end = bool(scans) and scans[0].segment.base <= expected
        default = 0 if holds_end else -1
        last = max((n for n, scanned in enumerate(scans) if scanned.found), default=default)
        end, time = expected, -1
        for scanned in scans[: last + 1]:
            segment = scanned.segment
            if segment.base > end:
                state.damaged.append((end, segment.base))
            end = segment.end
            segment.size = scanned.size
            time = segment.last_append_time = max(time, segment.last_append_time)
            state.segments.append(segment)
        lost = end < floor
        if last >= 0 and not lost:
            self._cut(scans[last])
        if lost:
            state.damaged.append((end, floor))
            end = floor
        for scanned in scans[last + 1 :]:
            state.torn_bytes += scanned.size
            if scanned.segment.base == end and (
                not state.segments or end > state.segments[-1].base
            ):
                if scanned.size:
                    self.files.truncate(self._path(end), 0)
                state.segments.append(Segment(end, end=end, index=self._new_index(end)))
            else:
                self._remove(names.path(self.folder, scanned.segment.base, names.INDEX))
                self._remove(self._path(scanned.segment.base))
        if not state.segments or ((lost or last < 0) and state.segments[-1].base < end):
            self.files.write(self._path(end), 0, [])
            state.segments.append(Segment(end, end=end, index=self._new_index(end)))
        for segment, following in pairwise(state.segments):
            segment.end = following.base
        state.segments[-1].end = state.end = end

    def _cut(self, scanned: _Scanned) -> None:
        """Takes a torn tail off the last segment that holds something."""
        if scanned.size > scanned.valid:
            self.state.torn_bytes += scanned.size - scanned.valid
            self.files.truncate(self._path(scanned.segment.base), scanned.valid)
            scanned.segment.size = scanned.valid

    def _make_durable(self) -> None:
        """What was read may be in the page cache only; after a failed flush not even a new flush is proof."""
        state, files, folder = self.state, self.files, self.folder
        for segment in state.segments:
            if segment.index is None:
                continue  # sealed and flushed before the checkpoint
            path = self._path(segment.base)
            if self.marked:
                self._rewrite(path, segment.size)
            else:
                envelope.flush(files, folder, path)
        envelope.flush_folder(files, folder)
        state.epochs_saved = self._save_small(names.EPOCHS, state.epochs.encode())
        for offset in [offset for offset in state.snapshots if offset > state.end]:
            self._remove(names.path(folder, offset, names.PRODUCERS))
            state.snapshots.remove(offset)
        bases = {segment.base for segment in state.segments}
        for snapshot in state.rolled:
            if (snapshot.producers or state.snapshots) and snapshot.offset in bases:
                name = f"{snapshot.offset:020d}{names.PRODUCERS}"
                if self._save_small(name, snapshot.encode()) and name not in self.listing:
                    state.snapshots.append(snapshot.offset)
        self._save_snapshot()
        for segment in state.segments:
            if segment.index is not None:
                name = f"{segment.base:020d}{names.INDEX}"
                with contextlib.suppress(OSError):
                    envelope.save(files, folder, name, segment.index.encode(), durable=False)
        self.checkpointed = self._save_checkpoint(clean=False)
        state.checkpointed = state.end if self.checkpointed else -1
        if not self.checkpointed:
            self.leftovers.clear()  # the old checkpoint may need their headers once more
        elif self.marked:
            self._remove(f"{folder}/{names.FSYNC_FAILED}")
            envelope.flush_folder(files, folder)

    def _rewrite(self, path: str, size: int) -> None:
        """Copies a segment to a new file: pages that a failed flush left marked clean are never trusted."""
        temporary = path + names.TEMPORARY
        self.files.write(temporary, 0, [])
        self.files.truncate(temporary, 0)
        for position in range(0, size, CHUNK):
            data = read_leniently(self.files, path, position, min(CHUNK, size - position))
            self.files.write(temporary, position, [data])
        envelope.flush(self.files, self.folder, temporary)
        self.files.rename(temporary, path)

    # The parts ---

    def _restore_producers(self, known: Checkpoint, offset: int) -> None:
        """The producers' state at an offset at or before the checkpoint's."""
        state = self.state
        if offset == known.offset and known.snapshot == -1:
            state.producers.restore(Snapshot(offset, known.last_append_time, {}))
            return
        if offset == known.offset and (snapshot := self._load_snapshot(known.snapshot)) is not None:
            state.producers.restore(snapshot)
            state.producers.time = known.last_append_time
            state.snapshot = snapshot.offset
            return
        self._rebuild_producers(offset, _segments(known.segments, known.offset))

    def _rebuild_producers(self, offset: int, segments: list[Segment] | None = None) -> None:
        state = self.state
        table, at = rebuild_producers(
            self.files, self.folder, segments or state.segments, state.snapshots, offset,
            self.settings.producer_expiry,
        )  # fmt: skip
        state.producers, state.snapshot = table, at

    def _newest_snapshot(self, limit: int) -> Snapshot | None:
        return newest_snapshot(self.files, self.folder, self.state.snapshots, limit)

    def _load_snapshot(self, offset: int) -> Snapshot | None:
        return load_snapshot(self.files, self.folder, offset)

    def _save_snapshot(self) -> None:
        state = self.state
        snapshot = state.producers.snapshot(state.end, state.last_append_time)
        if not snapshot.producers:
            state.snapshot = -1
            return
        state.snapshot = UNSAVED
        name = f"{state.end:020d}{names.PRODUCERS}"
        if self._save_small(name, snapshot.encode()):
            state.snapshot = state.end
            if state.end not in state.snapshots:
                state.snapshots.append(state.end)

    def _save_checkpoint(self, *, clean: bool) -> bool:
        try:
            self.state.checkpoint(clean=clean).save(self.files, self.folder)
        except OSError as error:
            if error.errno not in envelope.FULL:
                raise
            return False
        return True

    def _save_small(self, name: str, data: bytes) -> bool:
        """A full disk must not keep a log from being opened and read."""
        try:
            envelope.save(self.files, self.folder, name, data)
        except OSError as error:
            if error.errno not in envelope.FULL:
                raise
            return False
        return True

    def _index_until(self, segment: Segment, position: int) -> Index:
        """A segment's index up to a position, from its file or from its headers."""
        if not position:
            return self._new_index(segment.base)
        return index_until(self.files, self.folder, segment, position, self.settings.index_interval)

    def _new_index(self, base: int) -> Index:
        return Index(base, self.settings.index_interval)

    def _prepare_active(self, segment: Segment) -> None:
        if segment.index is None:
            segment.index = self._index_until(segment, segment.size)
        if segment.size:
            head = read_leniently(self.files, self._path(segment.base), 0, HEADER_SIZE)
            header = header_at(head, 0, Bounds(segment.base), exact=True)
            segment.first_append_time = (
                segment.last_append_time if header is None else header.append_time
            )

    def _path(self, base: int) -> str:
        return names.path(self.folder, base, names.LOG)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.remove(path)


def _segments(rows: list[SegmentRow], end: int) -> list[Segment]:
    """The segments of a checkpoint; each ends where the next begins, the last at `end`."""
    ends = [*(row.base for row in rows[1:]), end][: len(rows)]
    return [
        Segment(row.base, row.size, behind, -1, row.last_append_time, row.max_timestamp)
        for row, behind in zip(rows, ends, strict=True)
    ]
