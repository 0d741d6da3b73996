"""One partition's log: a protocol machine over the storage port.

Owns the decisions: where a batch goes, when a segment is rolled, what is flushed and checkpointed when, what
retention may remove, what is true of each offset. Everything that touches a file is a request, of which at most one
write and one upkeep are outstanding; what is appended meanwhile goes out together: one write and, with
`fsync: always`, one flush. Never reads a clock and never waits.

Offsets, each at most the next: start_offset, flushed_offset, written_offset, end_offset.

========== ================= ==================================================================================
from       to                when
========== ================= ==================================================================================
closed     opening           `open()`
opening    open              recovery is done → `Opened`
opening    failed            recovery failed → `Broken`
open       closing           `close()`; or it was asked for while opening
open       failed            a flush or a write failed, but for a full disk → `Broken`: nothing is appended any more
closing    closed            all is written, flushed and checkpointed → `Closed`
closing    failed            as from open
failed     closed            `close()` → `Closed`; the next opening mends what it can
========== ================= ==================================================================================
"""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

import msgspec

from zbroker.errors import (
    DiskFull,
    InvalidRequest,
    NotReady,
    StorageFailed,
    ZBrokerError,
)
from zbroker.log.checkpoint import Checkpoint, SegmentRow
from zbroker.log.compacted import Compacted
from zbroker.log.compaction import Slice
from zbroker.log.compactor import Compactor
from zbroker.log.epochs import EpochTable
from zbroker.log.events import (
    AppendFailed,
    Broken,
    Closed,
    CompactionDone,
    EpochBegun,
    Event,
    Found,
    Opened,
    ReadDone,
    StartMoved,
    Truncated,
)
from zbroker.log.index import Index
from zbroker.log.producers import ProducerTable, Snapshot
from zbroker.log.reading import FindTime, Read
from zbroker.log.reads import Reads
from zbroker.log.rebuild import merge
from zbroker.log.recovery import State as Recovered
from zbroker.log.requests import (
    Cut,
    Probe,
    Purpose,
    Recover,
    Refuse,
    Restart,
    Settle,
    Truncate,
    Upkeep,
    Write,
)
from zbroker.log.segment import Segment
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Completion, Lane, Request, Storage
from zbroker.protocol.batch import HEADER_SIZE, BatchHeader, Buffer

__all__ = [
    "AppendFailed",
    "Broken",
    "Closed",
    "CompactionDone",
    "EpochBegun",
    "Event",
    "Found",
    "Log",
    "Opened",
    "ReadDone",
    "StartMoved",
    "Truncated",
]

State = Literal["closed", "opening", "open", "closing", "failed"]
TRANSITIONS: dict[State, tuple[State, ...]] = {
    "closed": ("opening",),
    "opening": ("open", "failed"),
    "open": ("closing", "failed"),
    "closing": ("closed", "failed"),
    "failed": ("closed",),
}

RUN_MAX = 8 << 20
"""Bytes that one write request covers at most, unless a batch alone is larger."""
UNFLUSHED_MAX = 16 << 20
"""Bytes beyond which a flush is started beside the writes, so that sealing a segment finds little left."""
LAZY_FLUSH = 512 << 10
"""Bytes that nobody waits for to be flushed, after which they are: in pieces that delay other flushes little."""
LAZY_MAX = 2 * LAZY_FLUSH
"""Such bytes that may be written beside a flush: what is not on disk yet does not grow without end."""
LAZY_MS = 1000
"""How long what nobody waits for stays unflushed where no more comes, ms."""
CHECKPOINT_BYTES = 64 << 20
CHECKPOINT_BATCHES = 50_000
"""What is written at most before a checkpoint: what a restart may have to scan."""
CHECKPOINT_SOON_BYTES = 4 << 20
PATIENCE = 12
"""How many checkpoint intervals a log that takes little may wait for one."""
INDEXES_LOADED = 8
PLACES_REMEMBERED = 64
PROBE_INTERVAL_MS = 1000


class Run(msgspec.Struct, eq=False):
    """Appended batches that one write request will cover, and what the log is like once they are written."""

    segment: Segment | None
    position: int = 0
    create: bool = False
    epoch: int = -1
    anyway: bool = True
    buffers: list[Buffer] = []
    lazy: bool = True
    size: int = 0
    batches: int = 0
    end_offset: int = 0
    last_append_time: int = -1
    max_timestamp: int = -1
    epoch_count: int = 0


class Log:
    """One partition's log. See the module for its states, and `zbroker.log.events` for what it tells.

    Args:
        folder: the partition's folder under the data folder, which is also the key of its completions.
        settings: the partition's resolved settings.
        storage: where requests go.

    Attributes:
        start_offset: log start offset, the first that is kept.
        end_offset: what the next batch gets; includes what is not written yet.
        written_offset: all below it is in the operating system's cache.
        flushed_offset: all below it is on disk.
        last_append_time: ms; the next stamp must not be smaller.
        last_epoch: newest leader epoch, -1 where there is none.
        size: bytes written.
        damaged: ranges of offsets that are known to be unreadable, [first, next).
        pending_bytes: bytes appended and not written yet.
        full: the last write met a full disk; nothing is taken until `on_tick` has found room.
        producers: idempotence.
        sealed_below: the checkpoint on disk names all segments that end at or below it, and another one behind them.
    """

    def __init__(self, folder: str, settings: LogSettings, storage: Storage) -> None:
        self.folder = folder
        self.settings = settings
        self.state: State = "closed"
        self.producers = ProducerTable(settings.producer_expiry)
        self.start_offset = self.end_offset = self.written_offset = self.flushed_offset = 0
        self.last_append_time = self.last_epoch = -1
        self.size = self.pending_bytes = 0
        self.damaged: list[tuple[int, int]] = []
        self._never_flushed = -1
        self.full = False
        self._storage = storage
        self._epochs = EpochTable()
        self._reads = Reads(self)
        self._compactor = Compactor(self)
        self._reset()

    def _reset(self) -> None:
        # Appending: the tail as planned, and as written.
        self.segments: list[Segment] = []
        self._tail: Segment | None = None
        self._tail_size = 0
        self._runs: deque[Run] = deque()
        self._run: Run | None = None
        self._writing: Run | None = None
        self._written_time = -1
        self._epoch_count = 0
        self._epochs_unsaved = False
        # Flushing and checkpoints.
        self._upkeep: Request | None = None
        self._unflushed: dict[int, int] = {}
        self._unflushed_bytes = 0
        self._lazy = False
        self._creations = self._creations_flushed = 0
        self._marked = False
        self._snapshots: list[int] = []
        self._snapshot = -1
        self._snapshot_changes = -1
        self._checkpointed = -1
        self._rolled: list[Snapshot] = []
        self._bytes_since = self._batches_since = 0
        self._checkpoint_due = False
        self._now = 0
        self.sealed_below = -1
        self._flushed_at = self._checkpoint_at = self._probed_at = 0
        # What waits for its turn.
        self._moves: deque[tuple[Any, int]] = deque()
        self._truncation: tuple[Any, int] | None = None
        self._anew: Restart | None = None
        self._note: Settle | None = None
        self._close_wanted = False
        self._reads.reset()

    # Opening and closing ---

    @property
    def first_offset(self) -> int:
        """Where the first segment begins: at or before the log start offset, and between batches."""
        return self.segments[0].base if self.segments else self.written_offset

    @property
    def segment_count(self) -> int:
        """How many segments there are."""
        return len(self.segments)

    @property
    def hole(self) -> int:
        """Where damage begins of which nothing was ever known to be flushed, as a power loss leaves it; else -1."""
        floor = self._never_flushed
        return min((first for first, _ in self.damaged if 0 <= floor <= first), default=-1)

    def open(self) -> None:
        """Starts recovery; ends in `Opened` or `Broken`."""
        self._move("opening")
        self._reset()
        self.damaged = []
        self.full = False
        self.pending_bytes = 0
        self.submit("write", Recover, settings=self.settings)

    def close(self) -> None:
        """Writes, flushes and checkpoints what there is, then forgets it; ends in `Closed`."""
        if self.state == "open":
            self._compactor.give_up()
            self._move("closing")
            self._proceed()
        elif self.state == "opening":
            self._close_wanted = True
        elif self.state in ("closed", "failed"):
            self.submit("write", Refuse, event=Closed(clean=self.state == "closed"))

    def _opened(self, completion: Completion) -> Event:
        if completion.error is not None:
            return self._break(completion.error)
        found: Recovered = completion.result
        self._move("open")
        self.segments = found.segments
        self._epochs = found.epochs
        self.producers = found.producers
        self.producers.expiry = self.settings.producer_expiry
        self.damaged, self._never_flushed = found.damaged, found.unflushed
        self.start_offset = found.start
        self.end_offset = self.written_offset = self.flushed_offset = found.end
        self.last_append_time = self._written_time = found.last_append_time
        self.last_epoch = self._epochs.last_epoch
        self._epoch_count = len(self._epochs.entries)
        self._epochs_unsaved = not (self._epochs.entries and found.epochs_saved)
        self._snapshots, self._snapshot = sorted(found.snapshots), found.snapshot
        self._snapshot_changes = self.producers.changes if found.snapshot >= -1 else -1
        self._marked, self._checkpointed = found.in_use, found.checkpointed
        self.size = sum(segment.size for segment in self.segments)
        self._plan_from_written()
        self._compactor.reset(found.compacted)
        if self._close_wanted:
            self._move("closing")
        self._proceed()
        return Opened(found.clean, found.torn_bytes, found.scanned_bytes)

    # Appending ---

    def append(self, batch: Buffer, header: BatchHeader, *, lazily: bool = False) -> None:
        """Takes a stamped batch that continues the log; nobody changes its bytes from now on.

        Args:
            batch: the whole batch.
            header: its header, as stamped: base offset `end_offset`, or beyond it behind a gap that compaction left
                where it was copied from; epoch and append time not falling.
            lazily: nobody waits for its flush, in whatever mode: many such batches are flushed at a time, where the
                settings allow it.
        """
        offset, size, time = header.base_offset, len(batch), header.append_time
        assert self.state == "open", self.state
        assert not self.full, "a full log takes nothing"
        assert self._truncation is None, "a log that is being truncated takes nothing"
        assert header.continues(self.end_offset), (offset, self.end_offset)
        assert header.payload_length + HEADER_SIZE == size, (header.payload_length, size)
        assert time >= self.last_append_time, (time, self.last_append_time)
        if header.leader_epoch != self.last_epoch:
            self._assign_epoch(header.leader_epoch)
        segment, position = self._tail, self._tail_size
        if segment is None or (position and self._must_roll(segment, position + size, time)):
            segment, position = self._roll(), 0
        run = self._run
        if run is None or run.size + size > RUN_MAX:
            run = self._new_run(segment)
        if not position:
            segment.first_append_time = time
        index = segment.index
        assert index is not None
        index.add(offset, position, size, header.latest_timestamp)
        self.producers.append(header)
        run.buffers.append(batch)
        self._lazy = lazily and self.settings.lazy
        run.lazy = run.lazy and self._lazy
        run.size += size
        run.batches += 1
        run.end_offset = self.end_offset = offset + header.span
        run.last_append_time = self.last_append_time = time
        run.max_timestamp = index.max_timestamp
        self._tail_size = position + size
        self.pending_bytes += size
        if self._writing is None:
            self._write_next()

    def know_epochs(self, epochs: list[tuple[int, int]]) -> None:
        """Epochs (epoch, start offset) that begin in a gap before the batch that is appended next.

        They are on disk before it is, and where it is not kept they begin at the log's end at most.
        """
        for epoch, start in epochs:
            assert start > self.end_offset, (start, self.end_offset)
            self._assign_epoch(epoch, start)

    def begin_epoch(self, epoch: int, *, anyway: bool = True) -> None:
        """Lets an epoch begin at the log's end, on disk even if no record follows; ends in `EpochBegun`.

        Args:
            anyway: the epoch is one's own, and begins wherever the log ends once there is room, even if batches before
                it are not kept. A copy's begin where the leader's do, or not at all.
        """
        assert self.state == "open", self.state
        assert self._truncation is None, "a truncation is under way"
        if epoch != self.last_epoch:
            self._assign_epoch(epoch)
        self._queue_epoch(epoch, anyway)
        self._lazy = False
        self._proceed()

    def _queue_epoch(self, epoch: int, anyway: bool) -> None:
        self._runs.append(
            Run(
                None,
                epoch=epoch,
                anyway=anyway,
                end_offset=self.end_offset,
                last_append_time=self.last_append_time,
                epoch_count=len(self._epochs.entries),
            )
        )
        self._run = None

    def _assign_epoch(self, epoch: int, start: int | None = None) -> None:
        assert epoch > self.last_epoch, (epoch, self.last_epoch)
        self._epochs.assign(epoch, self.end_offset if start is None else start)
        self.last_epoch = epoch
        self._epochs_unsaved = True
        self._run = None  # so that the entry is on disk before the run that has its first batch

    def _must_roll(self, segment: Segment, size: int, time: int) -> bool:
        age = self.settings.segment_age
        return size > self.settings.segment_size or (
            age is not None and time - segment.first_append_time > age
        )

    def _roll(self) -> Segment:
        """Plans a new segment at the log's end; its file is made by its first run."""
        base = self.end_offset
        segment = Segment(base, end=base, index=Index(base, self.settings.index_interval))
        self._tail, self._tail_size = segment, 0
        self._new_run(segment).create = True
        return segment

    def _new_run(self, segment: Segment) -> Run:
        run = Run(
            segment,
            self._tail_size,
            buffers=[],
            end_offset=self.end_offset,
            last_append_time=self.last_append_time,
            epoch_count=len(self._epochs.entries),
        )
        self._runs.append(run)
        self._run = run
        return run

    def _write_next(self) -> None:
        """Sends the next run on its way, unless one is under way or something has to come first."""
        if self._writing is not None or not self._runs or self.full or not self._may_change():
            return
        run = self._runs[0]
        lazy = run.lazy and run.segment is not None and self.settings.fsync == "always"
        if lazy and self._upkeep is not None and self._unflushed_bytes >= LAZY_MAX:
            return
        self._runs.popleft()
        if run is self._run:
            self._run = None
        self._writing = run
        segment = run.segment
        flush: list[int] = []
        if segment is not None and self.settings.fsync == "always" and not lazy:
            flush = [base for base in self._unflushed if base != segment.base] + [segment.base]
        epochs = None
        if self._epochs_unsaved:
            epochs = EpochTable(self._epochs.entries[: run.epoch_count]).encode()
            self._epochs_unsaved = run.epoch_count < len(self._epochs.entries)
        self.submit(
            "write",
            Write,
            base=-1 if segment is None else segment.base,
            position=run.position,
            buffers=run.buffers,
            create=run.create,
            epochs=epochs,
            flush=flush,
            flush_folder=run.create or self._creations != self._creations_flushed,
        )

    def _may_change(self) -> bool:
        """Whether the checkpoint on disk says already that the log is in use."""
        if not self._marked and self._upkeep is None:
            self._start_upkeep("mark")
        return self._marked

    def _wrote(self, completion: Completion) -> Event | None:
        run, self._writing = self._writing, None
        assert run is not None
        if isinstance(completion.error, DiskFull):
            return self._roll_back([run, *self._runs], completion.error)
        if completion.error is not None:
            return self._break(completion.error)
        request: Write = completion.request  # type: ignore[assignment]
        self._epoch_count = run.epoch_count
        if run.segment is not None:
            self._account(run, run.segment, request)
        self._proceed()
        return EpochBegun(run.epoch) if run.epoch >= 0 else None

    def _account(self, run: Run, segment: Segment, request: Write) -> None:
        """A run is in its file."""
        assert segment.size == run.position
        if run.create:
            snapshot = self.producers.snapshot(segment.base, self._written_time)
            if snapshot.producers or self._snapshots or self._rolled:
                self._rolled.append(snapshot)  # nobody known is news, too, where somebody was
            self._checkpoint_due = self._checkpoint_due or bool(self.segments)
            self.segments.append(segment)
            self._creations += 1
        segment.size += run.size
        segment.end = self.written_offset = run.end_offset
        if run.size:
            segment.last_append_time = self._written_time = run.last_append_time
            segment.max_timestamp = max(segment.max_timestamp, run.max_timestamp)
        self.size += run.size
        self.pending_bytes -= run.size
        self.producers.settled = self.written_offset
        self._bytes_since += run.size
        self._batches_since += run.batches
        if request.flush:
            self._unflushed.clear()
            self._unflushed_bytes = 0
            self._creations_flushed = self._creations
            self.flushed_offset = self.written_offset
        else:
            self._unflushed[segment.base] = segment.size
            self._unflushed_bytes += run.size

    def _roll_back(self, runs: list[Run], error: ZBrokerError) -> Event:
        """None of these runs was kept, and they are all that is not written: the log is as it was before them."""
        self.full = True
        self._probed_at = self._now
        self._runs.clear()
        self.pending_bytes = 0
        self.end_offset = self.written_offset
        self.last_append_time = self._written_time
        del self._epochs.entries[self._epoch_count :]
        self.last_epoch = self._epochs.last_epoch
        self._epochs_unsaved = True
        self.producers.rollback(self.written_offset, self._written_time)
        self._plan_from_written()
        self._begin_again(runs)
        self._proceed()
        return AppendFailed(self.written_offset, error)

    def _begin_again(self, runs: list[Run]) -> None:
        """Epochs that were promised are written once there is room."""
        for run in runs:
            if run.epoch >= 0 and run.anyway:
                if run.epoch > self.last_epoch:
                    self._assign_epoch(run.epoch)
                self._queue_epoch(run.epoch, anyway=True)

    def _plan_from_written(self) -> None:
        """The tail as planned is the tail as written."""
        self._run = None
        self._tail = self.segments[-1] if self.segments else None
        if self._tail is not None:
            assert self._tail.index is not None
            self._tail_size = self._tail.size
            self._tail.index.cut(self._tail_size, self._tail.max_timestamp)
        else:
            self._tail_size = 0

    # Upkeep: flushes, checkpoints, the log start ---

    def delete_before(self, token: Any, offset: int) -> None:
        """Moves the log start offset; ends in `StartMoved` once that is on disk."""
        if self.state != "open" or offset > self.written_offset:
            self.refuse(
                lambda error: StartMoved(token, self.start_offset, error),
                InvalidRequest(f"the log ends at {self.written_offset}, before {offset}")
                if self.state == "open"
                else self.not_open(),
            )
            return
        self._moves.append((token, offset))
        self._proceed()

    def retain(self, high_watermark: int, wall: int) -> None:
        """Removes the segments that age or size gives up, and rolls the active one where it has to go by age.

        Args:
            high_watermark: nothing at or above it is removed.
            wall: the time, ms since the epoch, to which append times are compared.
        """
        if self.state != "open" or self._moves or self._truncation is not None:
            return
        settings, start = self.settings, self.start_offset
        excess = 0 if settings.retention_size is None else self.size - settings.retention_size
        for segment in self.segments[:-1]:
            excess -= segment.size
            by_size = settings.retention_size is not None and excess >= 0
            if segment.end > high_watermark or not (by_size or self._outlived(segment, wall)):
                break
            start = max(start, segment.end)
        if start > self.start_offset:
            self._moves.append((self, start))
        self._roll_by_age(high_watermark, wall)
        self._proceed()

    def _outlived(self, segment: Segment, wall: int) -> bool:
        kept = self.settings.retention
        return kept is not None and wall - segment.last_append_time > kept

    def _roll_by_age(self, high_watermark: int, wall: int) -> None:
        active = self.segments[-1] if self.segments else None
        if active is None or not active.size or self._runs or self._writing or self.full:
            return
        age = self.settings.segment_age
        expired = self._outlived(active, wall) and active.end <= high_watermark
        if expired or (age is not None and wall - active.first_append_time > age):
            self._roll()

    def roll(self, wall: int) -> None:
        """Rolls the active segment where it has to go by age: only what is sealed is compacted."""
        if self.state == "open" and not self.cutting:
            self._roll_by_age(-1, wall)
            self._proceed()

    def alter(self, settings: LogSettings) -> None:
        """New settings from now on; what `fsync: always` now asks for is flushed at once."""
        assert settings.lane == self.settings.lane
        self.settings = settings
        if not settings.compact:
            self._compactor.give_up()
        self.producers.expiry = settings.producer_expiry
        self._proceed()

    def on_tick(self, now: int) -> None:
        """Time has passed: flushes and checkpoints that are due, and a look whether a full disk has room.

        Args:
            now: monotonic, ms.
        """
        self._now = now
        self._proceed()

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way and nothing is due by time, until something is asked of the log."""
        return (
            self.state == "open"
            and not self.full
            and not self._bytes_since
            and not self._checkpoint_due
            and not self._unflushed
            and not self._runs
            and not self._moves
            and self._writing is None
            and self._upkeep is None
            and self._truncation is None
            and not self.compacting
        )

    def _proceed(self) -> None:
        """Starts whatever can go on: writes first, then upkeep, then what needs the log to be still."""
        if self.state not in ("open", "closing"):
            return
        self._write_next()
        self._compactor.proceed()
        if self._upkeep is not None:
            return
        still = self._writing is None and (not self._runs or self.full)
        still = still and not self._compactor.busy
        if self._truncation is not None:
            if still:
                self._start_truncation(*self._truncation)
        elif self._moves:
            self._start_upkeep("move")
        elif self._compactor.wants_exchange and self.state == "open":
            if self._reads.hold(*self._compactor.span):
                self._start_upkeep("exchange")
        elif self.state == "closing":
            if still and self._marked:
                self._start_upkeep("close")
            elif still:  # the checkpoint on disk says it all
                self._upkeep = self.submit("write", Refuse, event=Closed())
        elif self.full:
            if self._now - self._probed_at >= PROBE_INTERVAL_MS:
                self._probed_at = self._now
                self._upkeep = self.submit("flush", Probe)
        elif self._is_checkpoint_due():
            self._start_upkeep("checkpoint")
        elif self._is_flush_due():
            self._start_upkeep("flush")

    def _is_checkpoint_due(self) -> bool:
        if not self._bytes_since and not self._checkpoint_due:
            self._checkpoint_at = self._now
            return False
        if (
            self._checkpoint_due
            or self._bytes_since >= CHECKPOINT_BYTES
            or self._batches_since >= CHECKPOINT_BATCHES
        ):
            return True
        if self.settings.fsync == "never":
            return False
        waited = self._now - self._checkpoint_at
        interval = self.settings.checkpoint_interval
        much = self._bytes_since >= CHECKPOINT_SOON_BYTES
        return waited >= (interval if much else interval * PATIENCE)

    def _is_flush_due(self) -> bool:
        if not self._unflushed:
            self._flushed_at = self._now
            return False
        if self._unflushed_bytes >= UNFLUSHED_MAX:
            return True
        waited = self._now - self._flushed_at
        if self.settings.fsync == "always" and self._lazy:
            return self._unflushed_bytes >= LAZY_FLUSH or waited >= LAZY_MS
        if self.settings.fsync == "always":
            return self._writing is None
        due = waited >= self.settings.fsync_interval
        return self.settings.fsync == "interval" and due

    def want_checkpoint(self) -> None:
        """A checkpoint is to be saved soon."""
        self._checkpoint_due = True
        self._proceed()

    def _start_upkeep(self, purpose: Purpose) -> None:
        """One upkeep request, of all that is written now."""
        request = Upkeep(
            owner=self.folder,
            lane=self._lane("flush"),
            purpose=purpose,
            offset=self.written_offset,
            flush=list(self._unflushed.items()),
            flush_folder=self._creations != self._creations_flushed,
            creations=self._creations,
        )
        self._flushed_at = self._now
        self._unflushed_bytes = 0
        if purpose != "flush":
            self._add_checkpoint(request)
        self._upkeep = request
        self._storage.submit(request)

    def _add_checkpoint(self, request: Upkeep) -> None:
        start = self.start_offset
        if request.purpose == "move":
            start = max(start, min(self._moves[0][1], self.written_offset))
            request.segments = [s.base for s in self.segments[:-1] if s.end <= start]
            self._reads.going_below = start
            if request.segments:
                self._compactor.give_up()
        rows = [segment for segment in self.segments if segment.base not in request.segments]
        request.snapshots = list(self._rolled)
        changes = self.producers.changes
        if changes == self._snapshot_changes:
            at = self._snapshot
        else:
            snapshot = self.producers.snapshot(self.written_offset, self._written_time)
            at = self.written_offset if snapshot.producers else -1
            request.snapshots += [snapshot] if snapshot.producers else []
        request.changes = changes if self.written_offset == self.end_offset else -1
        request.obsolete = self._obsolete_snapshots(rows, at)
        request.indexes = [self._written_index(s) for s in rows if s.index and s.indexed < s.size]
        if request.purpose == "exchange":
            self._compactor.add_to(request)
        if request.purpose == "close" and self._epochs_unsaved:
            request.epochs = self._epochs.encode()
        request.checkpoint = Checkpoint(
            request.purpose == "close",
            start,
            self.written_offset,
            self._written_time,
            at,
            [SegmentRow(s.base, s.size, s.last_append_time, s.max_timestamp) for s in rows],
            self._damage_from(start),
            self._never_flushed,
        )
        if request.compacted is not None and request.compacted.exchange is not None:
            request.compacted.exchange.apply(request.checkpoint)
        self._bytes_since = self._batches_since = 0
        self._checkpoint_due = False
        self._checkpoint_at = self._now

    def _damage_from(self, start: int) -> list[tuple[int, int]]:
        return merge([(max(first, start), behind) for first, behind in self.damaged])

    def _written_index(self, segment: Segment) -> Index:
        assert segment.index is not None
        index = segment.index.copy()
        index.cut(segment.size, segment.max_timestamp)
        return index

    def _obsolete_snapshots(self, segments: list[Segment], newest: int) -> list[int]:
        """All but those at the base of a segment, which a truncation starts from, and the two newest."""
        kept = {newest, *self._snapshots[-2:], *(segment.base for segment in segments)}
        return [offset for offset in self._snapshots if offset not in kept]

    def _kept_up(self, completion: Completion) -> Event | None:
        request: Upkeep = completion.request  # type: ignore[assignment]
        self._upkeep = None
        if request.purpose == "exchange":
            if isinstance(completion.error, DiskFull):
                self._checkpoint_due = True
                self._compactor.not_exchanged()
                self._proceed()
                return None
            if completion.error is None:
                self._compactor.exchanged(request, saved=completion.result)
        if completion.error is not None:
            return self._break(completion.error)
        self.flushed_offset = max(self.flushed_offset, request.offset)
        self._creations_flushed = max(self._creations_flushed, request.creations)
        for base, size in request.flush:
            if self._unflushed.get(base) == size:
                del self._unflushed[base]
        saved: bool = completion.result
        if saved:
            self._saved(request)
        elif request.checkpoint is not None:
            self._not_saved(request)
        event: Event | None = None
        if request.purpose == "move":
            event = self._start_moved(request, saved)
        elif request.purpose == "close":
            self._move("closed")
            return Closed(clean=saved)
        if request.purpose == "mark" and not saved:
            return self._roll_back(list(self._runs), DiskFull("the disk is full"))
        self._proceed()
        return event

    def _saved(self, request: Upkeep) -> None:
        checkpoint = request.checkpoint
        assert checkpoint is not None
        self._marked, self._checkpointed = True, checkpoint.offset
        self.sealed_below = checkpoint.segments[-1].base if checkpoint.segments else -1
        self._compactor.checkpointed()
        self._snapshot, self._snapshot_changes = checkpoint.snapshot, request.changes
        saved = {snapshot.offset for snapshot in request.snapshots}
        self._snapshots = sorted({*self._snapshots, *saved} - {*request.obsolete})
        self._rolled = [snapshot for snapshot in self._rolled if snapshot.offset not in saved]
        covered = {index.base: index.covered for index in request.indexes}
        for segment in self.segments:
            segment.indexed = covered.get(segment.base, segment.indexed)

    def _not_saved(self, request: Upkeep) -> None:
        """The checkpoint on disk is the old one; what was to go with the new one may be there all the same."""
        self._checkpointed = -1
        found = {snapshot.offset for snapshot in request.snapshots}
        self._snapshots = sorted({*self._snapshots, *found})

    def _start_moved(self, request: Upkeep, saved: bool) -> Event | None:
        token, _ = self._moves.popleft()
        assert request.checkpoint is not None
        error = None
        if saved:
            gone = set(request.segments)
            self.start_offset = request.checkpoint.start
            self.size -= sum(s.size for s in self.segments if s.base in gone)
            self.segments = [s for s in self.segments if s.base not in gone]
            self.damaged = self._damage_from(self.start_offset)
            self._never_flushed = self.hole
            self._reads.forget(gone)
        else:
            error = DiskFull("the disk is full, and the log start offset could not be saved")
        self._reads.going_below = self.start_offset
        return None if token is self else StartMoved(token, self.start_offset, error)

    def _probed(self, completion: Completion) -> Event | None:
        self._upkeep = None
        if completion.error is not None:
            return self._break(completion.error)
        if completion.result:
            self.full = False
        self._proceed()
        return None

    # Truncation ---

    def truncate(self, token: Any, offset: int) -> None:
        """Discards all batches that reach beyond an offset, and the epochs that begin at it or later.

        Ends in `Truncated` once that is on disk; nothing may be appended until then.
        """
        assert self.state == "open", self.state
        assert self._truncation is None, "a truncation is under way"
        assert offset >= self.start_offset, (offset, self.start_offset)
        assert offset >= min(self.thinned_below, self.end_offset), "what is compacted is not cut"
        self._truncation = (token, offset)
        self._compactor.give_up()
        self._reads.invalidate()
        self._proceed()

    def note_thinned(self, token: Any, offset: int) -> None:
        """Keeps in mind that what will be appended comes from a log that is compacted below an offset.

        Ends in `Truncated`, with the log's end as it is, once that is on disk; nothing may be appended until then.
        """
        assert self.state == "open", self.state
        assert self._truncation is None, "a truncation is under way"
        known = self._compactor.state
        state = msgspec.structs.replace(known, thinned=max(known.thinned, offset))
        self._note = Settle(owner=self.folder, lane=self._lane("write"), state=state, token=token)
        self._truncation = (token, self.end_offset)
        self._compactor.give_up()
        self._proceed()

    def restart(
        self,
        token: Any,
        offset: int,
        epoch: int = -1,
        *,
        thinned: int = 0,
        lost: int = 0,
        source: int = -1,
    ) -> None:
        """Discards everything, and begins anew at an offset: a copy that was away for too long.

        Args:
            epoch: of the record before the offset, where that is known.
            thinned: what will be appended is copied from a log that is compacted below this offset,
            lost: and lacks tombstones below this one;
            source: the leader epoch of that log.

        Ends in `Truncated` once that is on disk; nothing may be appended until then.
        """
        assert self.state == "open", self.state
        assert self._truncation is None, "a truncation is under way"
        self._truncation = (token, offset)
        self._anew = Restart(
            owner=self.folder,
            lane=self._lane("write"),
            token=token,
            offset=offset,
            epoch=epoch,
            segments=[],
            snapshots=[],
            settings=self.settings,
            compacted=Compacted(thinned=thinned, lost=lost, source=source),
        )
        self._compactor.give_up()
        self._reads.invalidate()
        self._proceed()

    def _start_truncation(self, token: Any, offset: int) -> None:
        if self._note is not None:
            self._upkeep = self._note
            self._storage.submit(self._note)
            return
        if self._anew is not None:
            self._anew.segments = [segment.base for segment in self.segments]
            self._anew.snapshots = list(self._snapshots)
            self._upkeep = self._anew
            self._storage.submit(self._anew)
            return
        rows = [
            SegmentRow(s.base, s.size, s.last_append_time, s.max_timestamp) for s in self.segments
        ]
        checkpoint = Checkpoint(
            False,
            self.start_offset,
            self.written_offset,
            self._written_time,
            -1,
            rows,
            self.damaged,
            self._never_flushed,
        )
        segments = [
            Segment(s.base, s.size, s.end, s.first_append_time, s.last_append_time, s.max_timestamp)
            for s in self.segments
        ]
        if segments and segments[-1].base <= offset:  # else another one is the last that stays
            index = self.segments[-1].index
            segments[-1].index = None if index is None else index.copy()
            segments[-1].indexed = self.segments[-1].indexed
        self._upkeep = self.submit(
            "write",
            Truncate,
            token=token,
            offset=min(offset, self.written_offset),
            flush=list(self._unflushed),
            flush_folder=self._creations != self._creations_flushed,
            checkpoint=checkpoint,
            checkpointed=self._checkpointed if self._marked else -1,
            segments=segments,
            snapshots=list(self._snapshots),
            entries=list(self._epochs.entries),
            epochs_saved=not self._epochs_unsaved,
            exact_from=self.producers.exact_from,
            settings=self.settings,
        )

    def _noted(self, completion: Completion) -> Event:
        request: Settle = completion.request  # type: ignore[assignment]
        self._upkeep = self._truncation = self._note = None
        if completion.error is None:
            self._compactor.state = request.state
        elif not isinstance(completion.error, DiskFull):
            return self._break(completion.error)
        self._proceed()
        return Truncated(request.token, self.end_offset, completion.error)

    def _truncated(self, completion: Completion) -> Event:
        request: Truncate | Restart = completion.request  # type: ignore[assignment]
        self._upkeep = self._truncation = self._anew = None
        self._reads.invalidate()
        if isinstance(completion.error, DiskFull):
            self._proceed()
            return Truncated(request.token, self.end_offset, completion.error)
        if completion.error is not None:
            return self._break(completion.error)
        cut: Cut = completion.result
        self.segments, self._epochs = cut.segments, cut.epochs
        if cut.producers is None:
            self.producers.rollback(cut.end, cut.last_append_time)
        else:
            self.producers = cut.producers
        self.end_offset = self.written_offset = self.flushed_offset = cut.end
        if cut.compacted is not None:
            self.start_offset = cut.end
            self.damaged = []
            self._compactor.begun_anew(cut.compacted)
        self.start_offset = min(self.start_offset, cut.end)
        self.last_append_time = self._written_time = cut.last_append_time
        self.last_epoch = self._epochs.last_epoch
        self._epoch_count = len(self._epochs.entries)
        self._epochs_unsaved = not cut.epochs_saved
        self._snapshots, self._snapshot_changes = cut.snapshots, -1
        self._rolled = [snapshot for snapshot in self._rolled if snapshot.offset <= cut.end]
        self._marked = True
        self._checkpointed = cut.checkpointed
        self.sealed_below = -1
        self._unflushed.clear()
        self._unflushed_bytes = 0
        self._creations_flushed = self._creations
        self.size = sum(segment.size for segment in self.segments)
        self.damaged = merge([(first, min(behind, cut.end)) for first, behind in self.damaged])
        self._never_flushed = self.hole
        self._plan_from_written()
        waiting = list(self._runs)
        self._runs.clear()
        self._begin_again(waiting)
        self._proceed()
        return Truncated(request.token, cut.end)

    # Compaction: see `Compactor` ---

    @property
    def thinned_below(self) -> int:
        """What is below may be compacted: the log may not be cut there, only be begun anew."""
        return self._compactor.state.thinned

    @property
    def tombstones_lost(self) -> int:
        """Tombstones below it may be missing: a copy that does not reach so far has to be begun anew."""
        return self._compactor.state.lost

    @property
    def copied_in_epoch(self) -> int:
        """The leader epoch in which the log was begun anew, as a copy of one that lacked tombstones; else -1."""
        return self._compactor.state.source

    @property
    def compacting(self) -> bool:
        """Whether a compaction is under way."""
        return self._compactor.running

    def compaction_due(self, committed: int, wall: int, tombstones_below: int) -> float:
        """How urgently the log is to be compacted, 0 where it is not (`Compactor.due`)."""
        return self._compactor.due(committed, wall, tombstones_below)

    def compact(self, committed: int, wall: int, tombstones_below: int = 1 << 62) -> None:
        """Begins to compact the sealed segments; ends in `CompactionDone`, if nothing comes between.

        Args:
            committed: nothing at or above it is compacted: the high watermark.
            wall: the time, ms since the epoch, by which tombstones have their grace.
            tombstones_below: no tombstone at or above it may go: what followers have to get still.
        """
        self._compactor.start(committed, wall, tombstones_below)

    @property
    def cutting(self) -> bool:
        """Whether segments, or the log's end, are about to go."""
        return self._truncation is not None or bool(self._moves)

    @property
    def saved_snapshots(self) -> list[int]:
        """Offsets of the producer snapshots on disk."""
        return list(self._snapshots)

    def replace_segments(self, gone: set[int], new: Segment) -> None:
        """A compacted segment is in place of others."""
        at = next(at for at, segment in enumerate(self.segments) if segment.base in gone)
        self.segments = [segment for segment in self.segments if segment.base not in gone]
        self.segments.insert(at, new)
        self.size = sum(segment.size for segment in self.segments)
        self._reads.forget(gone)
        self.release_reads()

    def release_reads(self) -> None:
        """Who was held back may read."""
        self._reads.release()

    # Reading: see `Reads` ---

    def read(self, token: Any, offset: int, max_bytes: int, limit: int) -> None:
        """Reads whole, verified batches from the one that holds an offset on; ends in `ReadDone`.

        Args:
            offset: the first that is wanted; the chunk may begin before it.
            max_bytes: the chunk's size, but for the first batch, which comes however large it is.
            limit: nothing that reaches beyond it is served: the high watermark.
        """
        self._reads.read(token, offset, max_bytes, limit, self.start_offset)

    def read_copy(self, token: Any, offset: int, max_bytes: int) -> None:
        """Reads for a replica: committed or not, and from `first_offset` on, for batches are copied whole.

        Ends in `ReadDone`.
        """
        self._reads.read(token, offset, max_bytes, self.written_offset, self.first_offset)

    def find_time(self, token: Any, timestamp: int, limit: int) -> None:
        """Looks for the first record with a timestamp at or after the one asked for; ends in `Found`.

        Args:
            timestamp: ms since the epoch.
            limit: where to stop: the high watermark.
        """
        self._reads.find_time(token, timestamp, limit)

    # Epochs ---

    def epoch_at(self, offset: int) -> int:
        """The leader epoch of the record at an offset, -1 where there is none."""
        return self._epochs.epoch_at(offset) if 0 <= offset < self.end_offset else -1

    def know_epoch(self, offset: int, epoch: int) -> None:
        """The epoch of the record at an offset, known otherwise: where the log itself does not reach so far back."""
        assert self._writing is None, "before anything is appended"
        if epoch >= 0 and self.epoch_at(offset) < 0 <= offset:
            self._epochs.observe(epoch, offset)
            self._epoch_count = len(self._epochs.entries)
            self._epochs_unsaved = True

    def end_of_epoch(self, epoch: int) -> tuple[int, int]:
        """The largest epoch at or below one, and the offset at which it ends (KIP-101, KIP-320)."""
        return self._epochs.end_of(epoch, self.end_offset)

    def start_of_epoch(self, epoch: int) -> int:
        """The offset at which an epoch that the table has begins."""
        return dict(self._epochs.entries)[epoch]

    def epochs_between(self, first: int, last: int) -> list[tuple[int, int]]:
        """Epochs that begin at one offset or later, at another or earlier: (epoch, start offset)."""
        if not self._epochs.entries or self._epochs.entries[-1][1] < first:
            return []
        return [entry for entry in self._epochs.entries if first <= entry[1] <= last]

    # Completions ---

    def on_event(self, completion: Completion, now: int) -> Event | None:
        """A request of this log is done; whatever comes of it, look at the offsets afterwards.

        Args:
            now: monotonic, ms.
        """
        self._now = max(self._now, now)
        request = completion.request
        if isinstance(request, Read | FindTime):
            found = self._reads.done(completion)
            if self._compactor.wants_exchange:
                self._proceed()
            return found
        if isinstance(request, Refuse):
            return self._refused(request)
        if self.state in ("closed", "failed"):
            return None
        if isinstance(request, Write):
            return self._wrote(completion)
        if isinstance(request, Upkeep):
            return self._kept_up(completion)
        if isinstance(request, Truncate | Restart):
            return self._truncated(completion)
        if isinstance(request, Probe):
            return self._probed(completion)
        if isinstance(request, Slice | Settle):
            return self._compacted(completion)
        assert isinstance(request, Recover), request
        return self._opened(completion)

    def _compacted(self, completion: Completion) -> Event | None:
        if completion.request is self._note:
            return self._noted(completion)
        if isinstance(completion.request, Slice):
            event = self._compactor.slice_done(completion)
        else:
            event = self._compactor.settled(completion)
        self._proceed()
        return event

    def _refused(self, request: Refuse) -> Event:
        event: Event = request.event
        if isinstance(event, Closed) and self.state in ("closing", "failed"):
            self._move("closed")
        return event

    # Helpers ---

    def _move(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} → {state}"
        self.state = state

    def _break(self, error: OSError | ZBrokerError) -> Event:
        """The end of it: after an I/O error nothing is appended any more (K:bf55afecdab)."""
        self._move("failed")
        self._runs.clear()
        self._run = None
        self.release_reads()
        if isinstance(error, OSError):
            error = StorageFailed(f"the log in {self.folder} failed: {error}")
        return Broken(error)

    def _lane(self, lane: Lane) -> Lane:
        return "metadata" if self.settings.lane == "metadata" else lane

    def submit(self, lane: Lane, kind: type[Request], **fields: Any) -> Request:
        request = kind(owner=self.folder, lane=self._lane(lane), **fields)
        self._storage.submit(request)
        return request

    def fail(self, error: OSError | ZBrokerError) -> Event | None:
        """What compaction met is the end of the log."""
        return self._break(error) if self.state in ("opening", "open", "closing") else None

    def refuse(self, event: Any, error: ZBrokerError) -> None:
        self.submit("read", Refuse, event=event(error))

    def not_open(self) -> ZBrokerError:
        if self.state == "failed":
            return StorageFailed("the disk failed, and the log is not used any more")
        return NotReady(f"the log is {self.state}")
