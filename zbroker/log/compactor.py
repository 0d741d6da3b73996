"""When a log is compacted, and how a compaction goes on beside everything else that happens to the log.

Owns the run that is under way and what is on disk of earlier ones (`Compacted`). `compaction` does the work on files,
one slice a request; every new segment is put in place by an upkeep of the log (`Upkeep`), so that no checkpoint, no
removal and no truncation runs beside it, and while that is on, whoever reads there waits. Never reads a clock.

========== ============================== ========== ===================================================================
state      on                             next       effect
========== ============================== ========== ===================================================================
idle       start                          working    slices run; where an exchange is over on disk, that is said first
working    a slice is done                working    the next one
working    a slice ends a new segment     waiting    new reads of the old segments are held back
waiting    the log's upkeep is free and   exchanging old segments out, new one in
           nobody reads there
exchanging the upkeep is done             working    who was held back reads
working    the run is done                settling   the point up to which the log is compacted is saved
settling   that is saved                  idle       `CompactionDone`
any        truncation, restart, segments  clearing   the run is given up; what is in place stays
           that go, `cleanup` without it
clearing   its slice is done              idle
any        closing, failure               idle       its temporary file goes at the next opening
========== ============================== ========== ===================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zbroker.errors import DiskFull, StorageFailed
from zbroker.log.compacted import Compacted, Exchange
from zbroker.log.compaction import KEYS_MAX, Output, Plan, Run, Slice, Source, Tally
from zbroker.log.events import CompactionDone, Event
from zbroker.log.rebuild import merge
from zbroker.log.requests import Settle, Upkeep
from zbroker.log.segment import Segment
from zbroker.log.storage import Completion, Request

if TYPE_CHECKING:
    from zbroker.log.log import Log

RETRY_MS = 60_000
"""How long after a compaction that could not go on, for want of room say, the next may begin."""


class Compactor:
    """The compactions of one log, one at a time.

    Attributes:
        state: as on disk, but that `thinned` and `lost` may be ahead of it.
        keys_max: bytes of memory for the map of keys.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self.keys_max = KEYS_MAX
        self.reset(Compacted())

    def reset(self, state: Compacted) -> None:
        """The log is opened."""
        self.state = state
        self._run: Run | None = None
        self._request: Request | None = None
        self._clearing = False
        self._done: CompactionDone | None = None
        self._wall = 0
        self._reached = state.point
        self._retry_at = 0
        self._stale = state.exchange is not None

    def begun_anew(self, state: Compacted) -> None:
        """The log is empty; what is left of a run is cleared away still."""
        self.state = state
        self._reached = state.point
        self._stale = False

    @property
    def running(self) -> bool:
        """Whether a compaction is under way."""
        return self._run is not None

    @property
    def busy(self) -> bool:
        """Whether a request of it is outstanding."""
        return self._request is not None

    # When ---

    def due(self, committed: int, wall: int, tombstones_below: int) -> float:
        """How dirty the log is where it is to be compacted, 0 where it is not: the part of its bytes that is new.

        Args:
            committed: nothing at or above it is compacted: the high watermark.
            wall: the time, ms since the epoch.
            tombstones_below: no tombstone at or above it may go yet.
        """
        log = self._log
        if not log.settings.compact or self.running or not self._may_go_on():
            return 0.0
        if wall < self._retry_at:
            return 0.0
        segments = self._segments(committed)
        total = sum(segment.size for segment in segments)
        if not total:
            return 0.0
        new = sum(segment.size for segment in segments if segment.end > self._reached)
        if new and new * 100 >= total * log.settings.min_dirty:
            return new / total
        return 1 / total if self._graves(wall, tombstones_below) > self.state.lost else 0.0

    def _segments(self, committed: int) -> list[Segment]:
        found = []
        for segment in self._log.segments[:-1]:
            if segment.end > committed:
                break
            found.append(segment)
        return found

    def _graves(self, wall: int, tombstones_below: int) -> int:
        """Below which offset tombstones may go."""
        ripe = self.state.removable(wall, self._log.settings.tombstone_grace)
        return min(ripe, tombstones_below)

    def start(self, committed: int, wall: int, tombstones_below: int) -> None:
        """Begins a compaction; the arguments are those of `due`. Waits for a checkpoint that knows all its segments."""
        log = self._log
        segments = self._segments(committed)
        if not segments or self.running or not self._may_go_on():
            return
        if self._stale or segments[-1].end > log.sealed_below:
            log.want_checkpoint()
            return
        graves = self._graves(wall, tombstones_below)
        state = self.state
        # Said before anything goes, so that no follower is told too late.
        self.state = msgspec.structs.replace(
            state, lost=max(state.lost, graves), thinned=max(state.thinned, segments[-1].end)
        )
        self._wall = wall
        self._run = Run(log.folder, self._plan(segments, graves))
        if state.exchange is not None:
            self._settle(msgspec.structs.replace(self.state, exchange=None))
        self.proceed()

    def _plan(self, segments: list[Segment], graves: int) -> Plan:
        log, settings = self._log, self._log.settings
        snapshots = log.saved_snapshots
        return Plan(
            sources=[Source(s.base, s.size, s.end, s.last_append_time) for s in segments],
            point=max(self.state.point, segments[0].base), graves=graves,
            snapshots=snapshots if snapshots or len(log.producers) else None,
            segment_size=settings.segment_size, index_interval=settings.index_interval,
            producer_expiry=settings.producer_expiry, keys_max=self.keys_max,
        )  # fmt: skip

    # How it goes on ---

    def _may_go_on(self) -> bool:
        return self._log.state == "open" and not self._log.cutting

    def proceed(self) -> None:
        """Sends the next slice on its way."""
        run = self._run
        if run is None or self.busy or run.ready is not None or not self._may_go_on():
            return
        self._request = self._log.submit("compaction", Slice, work=run)

    def give_up(self) -> None:
        """The run must not go on: what it was about is not there any more, or is not to be compacted."""
        if self._run is not None and not self._clearing:
            self._clearing = True
            self._run.give_up()
            if not self.busy:
                self._run.ready = None
            self._log.release_reads()
            self.proceed()

    def slice_done(self, completion: Completion) -> Event | None:
        """A part of the work is done, or could not be done."""
        self._request = None
        run, error = self._run, completion.error
        if run is None:
            return None
        if self._clearing:
            run.ready = None
        if isinstance(error, StorageFailed):
            return self._log.fail(error)
        if error is not None:
            self._retry_at = self._wall + RETRY_MS
            if self._clearing:
                self._end()
            else:
                self.give_up()
        elif run.done:
            if self._clearing:
                self._end()
            else:
                self._finish(run.tally)
        self.proceed()
        return None

    def _finish(self, tally: Tally) -> None:
        log = self._log
        log.damaged = merge([*log.damaged, *tally.damaged])
        self._reached = max(self._reached, tally.reached)
        self._done = CompactionDone(
            tally.point, tally.read, tally.written, tally.removed, tally.tombstones
        )
        self._settle(self.state.done(tally.point, tally.tombstones, self._wall))

    def _settle(self, state: Compacted) -> None:
        self._request = self._log.submit("compaction", Settle, state=state)

    def settled(self, completion: Completion) -> Event | None:
        """What was to be saved is, or there was no room."""
        request: Settle = completion.request  # type: ignore[assignment]
        self._request = None
        event, self._done = self._done, None
        if completion.error is None:
            self.state = request.state
        elif isinstance(completion.error, DiskFull):
            self._retry_at = self._wall + RETRY_MS
            if event is None:
                self.give_up()
        else:
            return self._log.fail(completion.error)
        if event is not None:
            self._end()
        self.proceed()
        return event if completion.error is None else None

    def _end(self) -> None:
        self._run = None
        self._clearing = False

    # Exchanges ---

    @property
    def wants_exchange(self) -> bool:
        """Whether a new segment waits to be put in place."""
        return self._output is not None and not self.busy

    @property
    def _output(self) -> Output | None:
        return None if self._run is None or self._clearing else self._run.ready

    @property
    def span(self) -> tuple[int, int]:
        """The offsets of the segments that are exchanged."""
        output = self._output
        assert output is not None
        return output.row.base, output.end

    def add_to(self, request: Upkeep) -> None:
        """Makes an upkeep put the new segment in place."""
        output = self._output
        assert output is not None
        request.compacted = msgspec.structs.replace(
            self.state, exchange=Exchange(output.row, output.sources)
        )
        request.indexes = [each for each in request.indexes if each.base not in output.sources]
        request.indexes.append(output.index)

    def exchanged(self, request: Upkeep, *, saved: bool) -> None:
        """The files are exchanged; `saved`: and the checkpoint knows it."""
        assert request.compacted is not None
        output, log = self._output, self._log
        exchange = request.compacted.exchange
        assert exchange is not None
        row, gone = exchange.row, {*exchange.sources}
        end = max(segment.end for segment in log.segments if segment.base in gone)
        new = Segment(row.base, row.size, end, -1, row.last_append_time, row.max_timestamp)
        log.replace_segments(gone, new)
        self.state = request.compacted
        if request.settled:
            self.state = msgspec.structs.replace(self.state, exchange=None)
        self._stale = not saved
        if output is not None and self._run is not None:
            self._run.placed()
        if self._stale:
            self.give_up()
            log.want_checkpoint()
        self.proceed()

    def not_exchanged(self) -> None:
        """There was no room to say what is exchanged: nothing was."""
        self._retry_at = self._wall + RETRY_MS
        self.give_up()

    def checkpointed(self) -> None:
        """The checkpoint on disk names the segments that there are."""
        self._stale = False
