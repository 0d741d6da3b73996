"""The follower of one replicated log: takes what continues its log, and tells the leader how far it got.

Owns one session with one leader, and the high watermark as that leader told it. Never decides whom to follow (its
owner does, by epoch), and never truncates but at a session's beginning, below the high watermark only where that is
allowed: under an epoch that is recorded as an unclean election, or in a rebuild once the replica is out of the ISR.

=========== ======================================== =========== ======================================================
state       on                                       next        effect
=========== ======================================== =========== ======================================================
idle        a new session's probe agrees             following   acknowledged; epochs that begin here are made durable
idle        the same, and the log is longer          truncating  what is beyond the probe's base is discarded, fsynced
idle        the same, and an epoch begins at its end truncating  an epoch that led to nothing is forgotten
            that the leader does not know
idle        the probe disagrees                      idle        `behind` or `diverged`, from the epoch table
idle        the log knows a newer epoch              idle        `stale`
idle        it would discard what is committed       idle        `rebuild`, unless that is allowed
idle        tombstones are gone that it never had,   truncating  the log is begun anew where the leader's begins, if
            or what is compacted would be cut                    that is allowed; else `rebuild`
idle        the leader's log is compacted where      truncating  that is noted, fsynced
            this one is to go on
truncating  log Truncated                            following   acknowledged
truncating  a probe of a newer session               truncating  kept: looked at, as idle, once the log is cut
truncating  anything else                            truncating  dropped: the leader asks again
following   an append that continues the log         following   appended; acknowledged when written and when flushed
following   an append of what is there already       following   acknowledged again
following   an append behind a hole                  idle        `gap`
following   the leader compacted what is to come     idle        `gap`: the next probe tells
following   log AppendFailed                         idle        `full`
any         a probe of a newer session               as idle     the older session is over
any         an append of an older session            same        dropped: its leader has moved on
=========== ======================================== =========== ======================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from zbroker.errors import ZBrokerError
from zbroker.log.events import AppendFailed, EpochBegun, StartMoved, Truncated
from zbroker.log.log import Log
from zbroker.protocol.batch import BatchHeader, iter_batches
from zbroker.protocol.frames import Frame
from zbroker.protocol.peers import Append, Appended, Status
from zbroker.replication.ports import SendAppended

State = Literal["idle", "truncating", "following"]

WINDOW = 8 << 20
"""Bytes of batches that a leader may have on their way to one follower's disk."""


class Follower:
    """One log's follower, of one leader. See the module for what it does on what.

    Attributes:
        epoch: the leader's epoch.
        high_watermark: all below it is committed, as far as this follower was told.
        damaged_from: first offset that is known to be damaged here, -1 where none is.
    """

    def __init__(
        self,
        log: Log,
        *,
        topic_id: str,
        partition: int,
        epoch: int,
        send: SendAppended,
        known: int,
        unclean: bool = False,
    ) -> None:
        """A follower of the leader of an epoch.

        Args:
            send: reaches that leader.
            known: the high watermark as it was known here before.
            unclean: the epoch is of an unclean election: what was committed may be discarded.
        """
        self.log = log
        self.state: State = "idle"
        self.epoch = epoch
        self.high_watermark = known
        self._topic_id = topic_id
        self._partition = partition
        self._send = send
        self._unclean = unclean
        self._session = -1
        self._agreed = False
        self._begun = -1
        self._beginning = False
        self._received = 0
        self._probe: Append | None = None
        self._later: Append | None = None
        """The probe that came while the log is cut for another one: its session is the one that counts."""
        self._reported = (-1, -1, -1)
        self._stamp = 0
        self._moving_start = False
        self._log_start = 0
        """Where the leader's log begins, as it last said."""

    # Messages ---

    def on_append(self, message: Append, batches: Sequence[Frame]) -> None:
        """The leader sends, or asks."""
        assert message.epoch == self.epoch, (message.epoch, self.epoch)
        self._stamp = max(self._stamp, message.stamp)
        newest = self._session if self._later is None else self._later.session
        if message.session < newest:
            return
        if self.state == "truncating":
            if message.probe and message.session > newest:
                self._later = message
            return
        if message.probe:
            if message.session > self._session:
                self._begin_session(message)
            if self.state == "idle":
                self._on_probe(message)
        elif message.session == self._session and self.state == "following":
            self._on_batches(message, batches)

    def _begin_session(self, message: Append) -> None:
        self._session = message.session
        self._received = 0
        self._begun = -1
        self._beginning = False
        self.state = "idle"

    def _on_probe(self, message: Append) -> None:
        log, base = self.log, message.base
        end, first = log.end_offset, log.first_offset
        kept = min(first, log.start_offset)
        damaged_at = min((start for start, behind in log.damaged if behind > kept), default=-1)
        if log.last_epoch > self.epoch:
            # The metadata here are behind the log, as after a power failure: nobody of an older epoch may cut it.
            self._answer("stale", log_epoch=log.last_epoch)
        elif log.full:
            self._answer("full")
        elif damaged_at >= 0:
            if not message.rebuild:
                self._answer("rebuild", end=damaged_at)
            elif damaged_at < max(first, log.start_offset):
                # There is nothing whole to cut it down to: all of it is copied, from where the leader's log begins.
                self._begin_anew(message)
            else:
                self._discard(message, damaged_at)
        elif self._agreed and not (message.begins and base > end):
            # A log that agreed in this epoch is the leader's, only shorter: nothing of it is discarded again.
            self._agree(message)
        elif base > end and not message.begins:
            self._answer("behind", log_epoch=log.epoch_at(end - 1), end=end)
        elif not message.begins and base > 0 and log.epoch_at(base - 1) != message.prev_epoch:
            epoch, its_end = log.end_of_epoch(message.prev_epoch)
            self._answer("diverged", log_epoch=epoch, end=min(its_end, base))
        elif base == end and first <= base and self._epochs_agree(message):
            self._agree(message)
        elif base < self.high_watermark and not (self._unclean or message.rebuild):
            self._answer("rebuild", end=base)
        else:
            self._discard(message, base)

    def _epochs_agree(self, message: Append) -> bool:
        """Whether no epoch begins at the log's end of which the leader does not know: one that led to nothing."""
        end = self.log.end_offset
        return {*self.log.epochs_between(end, end)} <= {*message.epochs}

    def _discard(self, message: Append, base: int) -> None:
        """Cuts the log to a base, or begins it anew there; the session goes on once that is on disk."""
        log = self.log
        if not log.start_offset <= base <= log.end_offset:
            self._restart(message)
        elif base < min(log.end_offset, log.thinned_below):
            self._begin_anew(message)
        else:
            self._expect_cut(message, base)
            log.truncate(self, base)

    def _begin_anew(self, message: Append) -> None:
        """Discards everything, where that is allowed, once the leader asks where its own log begins."""
        log = self.log
        if not (message.rebuild or self._unclean or log.first_offset == log.end_offset):
            self._answer("rebuild", end=message.base)
        elif message.begins:
            self._restart(message)
        else:
            self._answer("behind", end=0)

    def _restart(self, message: Append) -> None:
        self._expect_cut(message, message.base)
        self.log.restart(
            self, message.base, message.prev_epoch,
            thinned=message.thinned, lost=message.tombstones, source=self.epoch,
        )  # fmt: skip

    def _expect_cut(self, message: Append, base: int) -> None:
        self._agreed = False
        self.high_watermark = min(self.high_watermark, base)
        self._wait_for_log(message)

    def _wait_for_log(self, message: Append) -> None:
        self._probe = message
        self.state = "truncating"

    def _lacks_tombstones(self, message: Append) -> bool:
        """Whether the leader's log lacks tombstones that this one never had: what they deleted may be here.

        Not so where all of it was copied from this leader since it said so; it removes no others meanwhile.
        """
        log = self.log
        copied = self.epoch == log.copied_in_epoch and message.tombstones <= log.tombstones_lost
        return message.tombstones > log.end_offset and not copied

    def _is_thinned(self, message: Append) -> bool:
        """Whether what follows is from a log that is compacted beyond what is noted here."""
        log = self.log
        return message.thinned > log.end_offset and message.thinned > log.thinned_below

    def _agree(self, message: Append) -> None:
        """The logs agree up to this one's end, which is where it goes on, if that is all there is to know."""
        if self._lacks_tombstones(message):
            self._begin_anew(message)
        elif self._is_thinned(message):
            self._agreed = True
            self._wait_for_log(message)
            self.log.note_thinned(self, message.thinned)
        else:
            self._accept(message)

    def _accept(self, message: Append) -> None:
        self.state = "following"
        self._agreed = True
        self._begin_epochs(message.epochs)
        self._make_epoch_durable()
        self._learn(message)
        self._answer("ok", end=self.log.end_offset)

    def _on_batches(self, message: Append, frames: Sequence[Frame]) -> None:
        log = self.log
        if message.base > log.end_offset or self._is_out_of_step(message):
            self._fall_idle("gap")
            return
        if log.full:
            self._fall_idle("full")
            return
        try:
            found = [
                (chunk[at : at + header.size], header)
                for chunk in frames
                for at, header in iter_batches(chunk)
            ]
        except ZBrokerError:
            self._fall_idle("gap")  # damaged on its way: sent again, it will be whole
            return
        end = log.end_offset
        self._received = max(self._received, message.position + sum(map(len, frames)))
        for batch, header in found:
            if header.base_offset < log.end_offset:
                continue
            if not self._continues(header):
                self._fall_idle("gap")
                return
            self._begin_epochs(message.epochs)
            self._know_epochs(message.epochs, header.base_offset)
            # What was committed without this replica waits for nobody's flush.
            log.append(batch, header, lazily=header.next_offset < message.high_watermark)
        self._begin_epochs(message.epochs)
        self._make_epoch_durable()
        self._learn(message)
        self.advance(always=log.end_offset == end)

    def _is_out_of_step(self, message: Append) -> bool:
        """Whether the leader has compacted what this log does not reach to yet, since the session began."""
        return self._is_thinned(message) or self._lacks_tombstones(message)

    def _continues(self, header: BatchHeader) -> bool:
        log = self.log
        return (
            header.continues(log.end_offset)
            and log.last_epoch <= header.leader_epoch <= self.epoch
            and header.append_time >= log.last_append_time
        )

    def _begin_epochs(self, epochs: list[tuple[int, int]]) -> None:
        """Epochs that begin at the log's end are kept, records or not."""
        for epoch, start in epochs:
            if start == self.log.end_offset and self.log.last_epoch < epoch <= self.epoch:
                self._beginning = epoch == self.epoch
                self.log.begin_epoch(epoch, anyway=False)

    def _know_epochs(self, epochs: list[tuple[int, int]], offset: int) -> None:
        """Epochs that begin in a gap, before the batch at an offset, are kept where they begin."""
        log = self.log
        between = [
            (epoch, start)
            for epoch, start in epochs
            if log.end_offset < start <= offset and log.last_epoch < epoch <= self.epoch
        ]
        log.know_epochs(between)

    def _make_epoch_durable(self) -> None:
        """The leader's own epoch is begun on disk, also where it began before the first record that is kept here."""
        if self.log.last_epoch == self.epoch and self._begun < self.epoch and not self._beginning:
            self._beginning = True
            self.log.begin_epoch(self.epoch, anyway=False)

    def _learn(self, message: Append) -> None:
        """What a leader whose log agrees says of high watermark and log start."""
        log = self.log
        self.high_watermark = max(self.high_watermark, min(message.high_watermark, log.end_offset))
        self._log_start = message.log_start
        self._move_start()

    def _move_start(self) -> None:
        """The log begins where the leader's does, as soon as it is written up to there."""
        log = self.log
        start = min(self._log_start, self.high_watermark, log.written_offset)
        if start > log.start_offset and not self._moving_start:
            self._moving_start = True
            log.delete_before(self, start)

    # Events ---

    def on_truncated(self, event: Truncated) -> None:
        """The log was cut, or begun anew."""
        assert self.state == "truncating"
        self.state = "idle"
        probe, self._probe = self._probe, None
        later, self._later = self._later, None
        assert probe is not None
        if later is not None:
            self._begin_session(later)
        if event.error is not None:
            self._answer("full")
        elif later is not None:
            self._on_probe(later)
        elif self._agreed or self.log.end_offset == probe.base:
            self._agree(probe)
        else:
            self._answer(
                "behind",
                log_epoch=self.log.epoch_at(self.log.end_offset - 1),
                end=self.log.end_offset,
            )

    def on_epoch_begun(self, event: EpochBegun) -> None:
        """An epoch is on disk."""
        self._begun = max(self._begun, event.epoch)

    def on_append_failed(self, _: AppendFailed) -> None:
        """The disk is full; what was not kept will be sent again."""
        if self.state == "following":
            self._fall_idle("full")

    def on_start_moved(self, event: StartMoved) -> None:
        """The log start is where the leader had it; where it could not be moved, the leader is to say it again."""
        self._moving_start = False
        if event.error is not None:
            self._log_start = 0

    def advance(self, *, always: bool = False) -> None:
        """Tells the leader what is written and flushed, where that is news. Called after every completion."""
        if self.state != "following":
            return
        self._move_start()
        news = (self.log.written_offset, self.log.flushed_offset, self._begun)
        if always or news != self._reported:
            self._answer("ok")

    # Answers ---

    def _fall_idle(self, status: Status) -> None:
        self.state = "idle"
        self._answer(status, end=self.log.end_offset)

    def _answer(self, status: Status, *, log_epoch: int = -1, end: int = 0) -> None:
        log = self.log
        self._reported = (log.written_offset, log.flushed_offset, self._begun)
        agreed = self.state == "following"
        self._send(
            Appended(
                topic_id=self._topic_id, partition=self._partition, epoch=self.epoch,
                session=self._session, status=status, log_epoch=log_epoch, end=end,
                written=log.written_offset if agreed else 0,
                flushed=log.flushed_offset if agreed else 0,
                begun=self._begun if agreed else -1,
                limit=self._received - log.pending_bytes + WINDOW,
                high_watermark=self.high_watermark, stamp=self._stamp,
            )
        )  # fmt: skip
