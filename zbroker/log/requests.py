"""The file work of each operation that changes a log: append, flush, checkpoint, truncation, removal, recovery.

Owns the order of the steps on which durability hangs; each request says why its order is as it is. Decides nothing
beyond that: what to write where was decided by `Log` when it made the request.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import msgspec

from zbroker.errors import DiskFull, StorageFailed, ZBrokerError
from zbroker.log import envelope, names
from zbroker.log.checkpoint import Checkpoint
from zbroker.log.compacted import Compacted
from zbroker.log.epochs import EpochTable
from zbroker.log.index import Index
from zbroker.log.producers import ProducerTable, Snapshot
from zbroker.log.rebuild import UNSAVED, build_index, merge, newest_snapshot, rebuild_producers
from zbroker.log.recovery import State, recover
from zbroker.log.segment import Bounds, Gap, Segment, scan
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Files, Request, Storage
from zbroker.protocol.batch import Buffer

PROBE_SIZE = 1 << 20
QUICK_MAX = 16 << 10
"""Bytes up to which a write into the operating system's cache takes less than to hand it to a thread and back."""

Purpose = Literal["flush", "checkpoint", "mark", "move", "exchange", "close"]
"""Why the log asked for upkeep: to flush; to bound what a restart scans; to say on disk that it is in use, before
the first change; to move the log start; to put a compacted segment in place; to close."""


class Recover(Request):
    """Opens the folder (`recovery`)."""

    settings: LogSettings

    def run(self, files: Files) -> State:
        """The log as found and mended."""
        return recover(files, self.owner, self.settings)


class Write(Request):
    """One run of appended batches to one segment, with a new epoch's entry before them.

    The entry is on disk before a batch of its epoch can be. Where the run counts as flushed, sealed files come
    first, so that nothing in a new segment counts while the one before it may still lose its tail.

    Attributes:
        base: the segment's base offset, -1 where there is only an epoch to record.
        create: the segment's file is new.
        epochs: the epoch table's bytes, where it changed.
        flush: base offsets of the segments to flush, in order, this one last; empty: flushed later.
        flush_folder: whether names in the folder are not on disk yet.
    """

    base: int
    position: int
    buffers: list[Buffer]
    create: bool
    epochs: bytes | None
    flush: list[int]
    flush_folder: bool

    @property
    def quick(self) -> bool:
        """Whether it is a small run that is flushed later, to a segment that is there."""
        return (
            not self.flush and self.epochs is None and not self.create
            and sum(map(len, self.buffers)) <= QUICK_MAX
        )  # fmt: skip

    def attempt(self, files: Files) -> None:
        """Only writes: the same bytes at the same place, if it has to be done again."""
        if self.base >= 0:
            files.write(names.path(self.owner, self.base, names.LOG), self.position, self.buffers)

    def run(self, files: Files) -> None:
        """All or nothing: after a full disk the file is back where it was."""
        if self.epochs is not None:
            save(files, self.owner, names.EPOCHS, self.epochs)
        if self.base < 0:
            return
        path = names.path(self.owner, self.base, names.LOG)
        for base in self.flush[:-1]:
            envelope.flush(files, self.owner, names.path(self.owner, base, names.LOG))
        try:
            files.write(path, self.position, self.buffers)
        except OSError as error:
            raise self._undo(files, path, error) from error
        if self.flush:
            envelope.flush(files, self.owner, path)
            if self.flush_folder:
                envelope.flush_folder(files, self.owner)

    def _undo(self, files: Files, path: str, error: OSError) -> ZBrokerError:
        """Takes back what a full disk left of the run, durably: a batch that failed must not come back."""
        if error.errno not in envelope.FULL:
            return envelope.failed(files, self.owner, f"writing {path}", error)
        try:
            if self.create:
                with contextlib.suppress(FileNotFoundError):
                    files.remove(path)
                files.flush_folder(self.owner)
            else:
                files.truncate(path, self.position)
                files.flush(path)
        except OSError as second:
            return envelope.failed(files, self.owner, f"taking back a write to {path}", second)
        return full(path, error)


class Upkeep(Request):
    """Flushes segments; then, where asked, saves a checkpoint that relies on it; then removes what that gave up.

    A checkpoint never says more than the flushes before it made true, and a segment goes only once the log start
    behind it is on disk. On a full disk the indexes of segments that go make room for the checkpoint.

    Attributes:
        purpose: why, which is the log's business.
        offset: all below it is on disk once this is done.
        flush: (base offset, size at submission) of the segments that are not flushed yet.
        flush_folder: whether names in the folder are not on disk yet; `creations` counts which.
        checkpoint: None for a flush alone.
        snapshots: producers' states to save: at rolls since the last time, and at the checkpoint's offset.
        indexes: indexes to save; they are not waited for, since they can be rebuilt.
        epochs: the epoch table's bytes where it was never saved.
        segments: base offsets of the segments to remove.
        obsolete: offsets of the producer snapshots to remove.
        compacted: what is written down, durably, before segments are exchanged: from there on a restart ends the
            exchange. It is not wanted any more once the checkpoint names the new segment.
        settled: that it is not wanted any more is on disk.
    """

    purpose: Purpose
    offset: int
    flush: list[tuple[int, int]]
    flush_folder: bool
    creations: int
    changes: int = -1
    checkpoint: Checkpoint | None = None
    snapshots: list[Snapshot] = msgspec.field(default_factory=list)
    indexes: list[Index] = msgspec.field(default_factory=list)
    epochs: bytes | None = None
    segments: list[int] = msgspec.field(default_factory=list)
    obsolete: list[int] = msgspec.field(default_factory=list)
    compacted: Compacted | None = None
    settled: bool = False

    def run(self, files: Files) -> bool:
        """Whether the checkpoint is saved; a full disk leaves the old one, and removes nothing that counts."""
        for base, _ in self.flush:
            envelope.flush(files, self.owner, names.path(self.owner, base, names.LOG))
        if self.flush_folder:
            envelope.flush_folder(files, self.owner)
        if self.compacted is not None:
            self._exchange(files, self.compacted)
        if self.checkpoint is None:
            return False
        for base in self.segments:
            _remove(files, names.path(self.owner, base, names.INDEX))
        try:
            self._save(files, self.checkpoint)
        except DiskFull:
            return False
        for base in self.segments:
            _remove(files, names.path(self.owner, base, names.LOG))
        for offset in self.obsolete:
            _remove(files, names.path(self.owner, offset, names.PRODUCERS))
        if self.compacted is not None:
            over = msgspec.structs.replace(self.compacted, exchange=None)
            with contextlib.suppress(DiskFull):
                save(files, self.owner, names.COMPACTION, over.encode())
                self.settled = True
        return True

    def _exchange(self, files: Files, compacted: Compacted) -> None:
        assert compacted.exchange is not None
        save(files, self.owner, names.COMPACTION, compacted.encode())
        compacted.exchange.finish(files, self.owner)

    def _save(self, files: Files, checkpoint: Checkpoint) -> None:
        if self.epochs is not None:
            save(files, self.owner, names.EPOCHS, self.epochs)
        for snapshot in self.snapshots:
            name = f"{snapshot.offset:020d}{names.PRODUCERS}"
            save(files, self.owner, name, snapshot.encode())
        for index in self.indexes:
            name = f"{index.base:020d}{names.INDEX}"
            with contextlib.suppress(OSError):
                envelope.save(files, self.owner, name, index.encode(), durable=False)
        save_checkpoint(files, self.owner, checkpoint)


class Place(msgspec.Struct, frozen=True, gc=False):
    """Behind a batch: its position and offset, that batch's append time, and the latest timestamp before it."""

    position: int
    end: int
    time: int
    timestamp: int


class Cut(msgspec.Struct):
    """The log after a truncation: what `Log` takes over.

    Attributes:
        producers: None where the log takes its own state back.
        checkpointed: offset of the checkpoint on disk, -1 where it is not known.
        compacted: where the log was begun anew.
    """

    end: int
    segments: list[Segment]
    epochs: EpochTable
    epochs_saved: bool
    producers: ProducerTable | None
    last_append_time: int
    snapshots: list[int]
    checkpointed: int = -1
    compacted: Compacted | None = None


class Truncate(Request):
    """Discards all from an offset on.

    The order: a checkpoint that promises nothing from there on, and snapshots and indexes that know of it gone;
    then the files, the newest first; then the epochs. After a crash in between, recovery finds a whole log, longer
    or shorter.

    Usually little is cut, of which nothing but the file of the active segment knows: then that is all there is to
    do, and costs a flush, however large the segment is.

    Attributes:
        checkpoint: as of now, with what is in `flush` flushed; the request moves it back.
        checkpointed: offset of the checkpoint on disk, which says that the log is in use; -1 where it is not known.
        segments: copies, whose sizes are what is written; with their indexes, where they are known.
        flush: base offsets of the segments that are not flushed yet.
        flush_folder: whether names in the folder are not on disk yet.
        entries: the epoch table; `epochs_saved`: it is on disk.
        exact_from: to this offset or a later one, the log itself takes the producers' state back.
    """

    token: Any
    offset: int
    flush: list[int]
    flush_folder: bool
    checkpoint: Checkpoint
    checkpointed: int
    segments: list[Segment]
    snapshots: list[int]
    entries: list[tuple[int, int]]
    epochs_saved: bool
    exact_from: int
    settings: LogSettings

    def run(self, files: Files) -> Cut:
        """The state from which the log goes on.

        Raises:
            DiskFull: there was no room for the checkpoint; nothing has been discarded.
        """
        kept, place = self._find(files)
        end = place.end
        only_file = self._is_only_in_file(kept, end)
        for base in self.flush:
            if base <= end and not (only_file and base == kept[-1].base):
                envelope.flush(files, self.owner, names.path(self.owner, base, names.LOG))
        if not only_file:
            self._step_back(files, kept, place)
        for segment in reversed(self.segments[len(kept) :]):
            _remove(files, names.path(self.owner, segment.base, names.LOG))
            envelope.flush_folder(files, self.owner)  # or a crash might leave a hole before it
        if kept:
            self._cut_last(files, kept[-1], place)
        if self.flush_folder or not only_file:
            envelope.flush_folder(files, self.owner)
        table, saved = self._cut_epochs(files, end)
        snapshots = [offset for offset in self.snapshots if offset <= end]
        producers = None
        if end < self.exact_from:
            producers, _ = rebuild_producers(
                files, self.owner, kept, snapshots, end, self.settings.producer_expiry
            )
            producers.time = place.time
        checkpointed = self.checkpointed if only_file else end
        return Cut(end, kept, table, saved, producers, place.time, snapshots, checkpointed)

    def _find(self, files: Files) -> tuple[list[Segment], Place]:
        """The segments that stay, and where the last one then ends."""
        kept = [segment for segment in self.segments if segment.base <= self.offset]
        if not kept:
            return [], Place(0, self.offset, -1, -1)
        last = kept[-1]
        place = None
        if last.index is not None:
            place = self._scan(files, last, *last.index.before(self.offset))
        place = place or self._scan(files, last, 0, last.base, -1)
        if place is None:
            time = kept[-2].last_append_time if len(kept) > 1 else -1
            if time < 0:  # what came before was removed; a snapshot may still know how late it was
                snapshot = newest_snapshot(files, self.owner, self.snapshots, last.base)
                time = -1 if snapshot is None else snapshot.time
            place = Place(0, last.base, time, -1)
        return kept, place

    def _scan(
        self, files: Files, segment: Segment, position: int, first: int, timestamp: int
    ) -> Place | None:
        """Behind the last batch that stays, from one on; None where there is none, or that one is not there."""
        path = names.path(self.owner, segment.base, names.LOG)
        place = None
        for found in scan(files, path, position, segment.size, Bounds(first), payloads=False):
            if isinstance(found, Gap):
                if place is None and position:
                    return None  # the index is wrong, or what it leads to is damaged
                continue
            at, header = found
            if header.next_offset > self.offset:
                break
            timestamp = max(timestamp, header.latest_timestamp)
            place = Place(at + header.size, header.next_offset, header.append_time, timestamp)
        return place

    def _is_only_in_file(self, kept: list[Segment], end: int) -> bool:
        """Whether nothing on disk knows of what is cut but the last segment's file."""
        return (
            len(kept) == len(self.segments)
            and 0 <= self.checkpointed <= end
            and not self.checkpoint.damaged
            and all(offset <= end for offset in self.snapshots)
        )

    def _step_back(self, files: Files, kept: list[Segment], place: Place) -> None:
        checkpoint, end = self.checkpoint, place.end
        if checkpoint.offset > end:
            rows = checkpoint.segments[: len(kept)]
            if rows:
                rows[-1].size, rows[-1].last_append_time = place.position, place.time
            checkpoint.offset, checkpoint.last_append_time = end, place.time
            checkpoint.segments = rows
        checkpoint.damaged = merge(
            [(first, min(behind, end)) for first, behind in checkpoint.damaged]
        )
        checkpoint.clean = False
        checkpoint.start = min(checkpoint.start, end)
        checkpoint.snapshot = UNSAVED
        save_checkpoint(files, self.owner, checkpoint)
        for offset in self.snapshots:
            if offset > end:
                _remove(files, names.path(self.owner, offset, names.PRODUCERS))
        for segment in self.segments[max(len(kept) - 1, 0) :]:
            _remove(files, names.path(self.owner, segment.base, names.INDEX))
            segment.indexed = 0
        envelope.flush_folder(files, self.owner)

    def _cut_last(self, files: Files, segment: Segment, place: Place) -> None:
        path, position = names.path(self.owner, segment.base, names.LOG), place.position
        if segment.size > position:
            files.truncate(path, position)
        envelope.flush(files, self.owner, path)
        segment.size, segment.end, segment.last_append_time = position, place.end, place.time
        if segment.index is None:
            interval = self.settings.index_interval
            segment.index = build_index(files, self.owner, segment.base, position, interval)
        else:
            segment.index.cut(position, place.timestamp)
        segment.max_timestamp = segment.index.max_timestamp

    def _cut_epochs(self, files: Files, end: int) -> tuple[EpochTable, bool]:
        """The epochs that stay, and whether they are on disk."""
        table = EpochTable(list(self.entries))
        table.truncate(end)
        if self.epochs_saved and len(table.entries) == len(self.entries):
            return table, True
        try:
            envelope.save(files, self.owner, names.EPOCHS, table.encode())
        except OSError as error:
            if error.errno not in envelope.FULL:
                raise
            return table, False
        return table, True


class Restart(Request):
    """Discards everything, and lets the log begin anew at an offset.

    The order: it is written down first, so that a restart goes on with it; then the files go; then a checkpoint says
    where the log begins.

    Attributes:
        segments, snapshots: the base offsets, and the offsets, of the files to remove.
        epoch: of the record before the offset, -1 where it is not known.
        compacted: what is known of the log that is copied from here on.
    """

    token: Any
    offset: int
    epoch: int
    segments: list[int]
    snapshots: list[int]
    settings: LogSettings
    compacted: Compacted = msgspec.field(default_factory=Compacted)

    def run(self, files: Files) -> Cut:
        """The state from which the log goes on.

        Raises:
            DiskFull: there was no room to write it down; nothing has been discarded.
            StorageFailed: what had been written down could not be carried out; the next opening goes on with it.
        """
        begun = msgspec.structs.replace(self.compacted, anew=self.offset)
        save(files, self.owner, names.COMPACTION, begun.encode())
        try:
            return self._begin_anew(files)
        except DiskFull as error:
            raise StorageFailed(f"{self.owner} could not be begun anew: {error}") from error

    def _begin_anew(self, files: Files) -> Cut:
        for base in self.segments:
            _remove(files, names.path(self.owner, base, names.INDEX))
            _remove(files, names.path(self.owner, base, names.LOG))
        for offset in self.snapshots:
            _remove(files, names.path(self.owner, offset, names.PRODUCERS))
        envelope.flush_folder(files, self.owner)
        save_checkpoint(
            files, self.owner, Checkpoint(False, self.offset, self.offset, -1, -1, [], [])
        )
        table = EpochTable([(self.epoch, self.offset - 1)] if self.epoch >= 0 else [])
        save(files, self.owner, names.EPOCHS, table.encode())
        save(files, self.owner, names.COMPACTION, self.compacted.encode())
        expiry = self.settings.producer_expiry
        return Cut(
            self.offset, [], table, True, ProducerTable(expiry), -1, [], compacted=self.compacted
        )


class Settle(Request):
    """Saves what compaction has done to the log, or to the one that it is a copy of."""

    state: Compacted
    token: Any = None

    def run(self, files: Files) -> None:
        """On a full disk nothing has changed."""
        save(files, self.owner, names.COMPACTION, self.state.encode())


class Probe(Request):
    """Whether the disk has room again: a small file is written and removed."""

    def run(self, files: Files) -> bool:
        """True where there was room."""
        path = f"{self.owner}/{names.PROBE}"
        try:
            files.write(path, 0, [bytes(PROBE_SIZE)])
        except OSError as error:
            if error.errno not in envelope.FULL:
                raise
            return False
        finally:
            _remove(files, path)
        return True


class Refuse(Request):
    """Nothing to do, or an error that is known beforehand: it comes back as any other completion does."""

    event: Any
    error: ZBrokerError | None = None

    def run(self, files: Files) -> None:  # noqa: ARG002
        """Raises the error if there is one."""
        if self.error is not None:
            raise self.error


class DeleteFolder(Request):
    """Removes a partition's folder, for an applied deletion of its topic.

    It is renamed first, so that what a crash leaves is not taken for a partition.
    """

    def run(self, files: Files) -> None:
        """Does nothing where the folder is gone already."""
        aside = self.owner + names.DELETED
        files.remove_folder(aside)
        try:
            files.rename(self.owner, aside)
        except FileNotFoundError:
            return
        # The folder above goes too once it holds no other partition, perhaps at this moment.
        with contextlib.suppress(FileNotFoundError):
            files.flush_folder(names.parent(self.owner))
        files.remove_folder(aside)


def delete_folder(storage: Storage, folder: str) -> None:
    """Deletes a closed log with all its files; the completion goes to the folder's name."""
    storage.submit(DeleteFolder(owner=folder, lane="flush"))


def save(files: Files, folder: str, name: str, data: bytes) -> None:
    """`envelope.save` whose errors are the log's: `DiskFull`, with nothing changed, or `StorageFailed`."""
    try:
        envelope.save(files, folder, name, data)
    except OSError as error:
        if error.errno in envelope.FULL:
            raise full(folder, error) from error
        raise envelope.failed(files, folder, f"saving {folder}/{name}", error) from error


def save_checkpoint(files: Files, folder: str, checkpoint: Checkpoint) -> None:
    """Saves a checkpoint under the same rule."""
    try:
        checkpoint.save(files, folder)
    except OSError as error:
        if error.errno in envelope.FULL:
            raise full(folder, error) from error
        raise envelope.failed(files, folder, "saving the checkpoint", error) from error


def full(path: str, error: OSError) -> DiskFull:
    """The error for a disk without room."""
    return DiskFull(
        f"the disk is full ({path}: {error.strerror}); free space or lower the retention"
    )


def _remove(files: Files, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        files.remove(path)
