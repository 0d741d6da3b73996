"""One node's copy of one partition: its log, and the role in which the log is kept.

Owns the change of roles: one at a time, in the order of their epochs, and never while the log is being cut. Never
decides who leads: its owner hands it appointments, the controller's or its own election's.

========= ================================== ========= ================================================================
state     on                                 next      effect
========= ================================== ========= ================================================================
opening   log Opened                         idle      the newest appointment is taken up
idle      an appointment to follow           following a `Follower` of that epoch; so too once this node is up again
idle      an appointment to lead             beginning the epoch is begun in the log
idle      the same, and it has more than is to be  cutting   the log is cut: what lies behind a hole
cutting   log Truncated                      idle      the newest appointment is taken up; the cut again on a full disk
beginning log EpochBegun of that epoch       leading   a `Leader` of that epoch; followers are probed
leading   log AppendFailed, batches were sent idle     `resigned`: those offsets may not be given again in this epoch
idle      an appointment to lead, damaged    idle      `resigned`, where another in-sync replica is whole and up
leading   damage is found                    idle      the same
leading   an appointment of a newer epoch    idle      the role ends; what was not committed is the owner's to answer
following an appointment of a newer epoch    idle      the same, once a cut that is under way is done
any       close                              closing   the log is flushed and closed
closing   log Closed                         closed
any       log Broken                         failed    the node stops
========= ================================== ========= ================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from zbroker.log.events import (
    AppendFailed,
    Broken,
    Closed,
    EpochBegun,
    Event,
    Opened,
    ReadDone,
    StartMoved,
    Truncated,
)
from zbroker.log.log import Log
from zbroker.log.storage import Completion
from zbroker.protocol.batch import BatchHeader, Buffer
from zbroker.protocol.frames import Frame
from zbroker.protocol.peers import Append, Appended
from zbroker.replication.follower import Follower
from zbroker.replication.leader import CatchUp, Leader, LeaderSettings
from zbroker.replication.ports import LinkBudget, SendAppend

State = Literal[
    "opening", "idle", "cutting", "beginning", "leading", "following", "closing", "closed", "failed"
]


class Appointment(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads a partition, and who keeps it.

    Attributes:
        epoch: the leader epoch.
        leader: node name; None while there is none.
        isr: in-sync replicas, or the voters.
        replicas: those who keep a copy, each with the incarnation that is registered.
        metadata: offset of the metadata record that says so.
        unclean: the leader may lack what was committed.
        end: the leader discards what it has from this offset on before it leads; None where it discards nothing.
    """

    epoch: int
    leader: str | None
    isr: Sequence[str]
    replicas: Mapping[str, int]
    metadata: int = -1
    unclean: bool = False
    end: int | None = None


class Replica:
    """One node's copy of one partition. See the module for its roles.

    Attributes:
        high_watermark: all below it is committed, as far as is known here in any role.
        resigned: this leader must not go on under its epoch; the owner asks for another.
    """

    def __init__(
        self,
        log: Log,
        settings: LeaderSettings,
        *,
        send: SendAppend,
        answer: Callable[[str, Appended], None],
        budgets: Callable[[str], LinkBudget],
    ) -> None:
        self.log = log
        self.settings = settings
        self.state: State = "opening"
        self.leader: Leader | None = None
        self.follower: Follower | None = None
        self.appointment: Appointment | None = None
        self.resigned = False
        self._cut_again = False
        self._yielded_for: list[tuple[int, int]] = []
        self._high_watermark = 0
        self._send = send
        self._answer = answer
        self._budgets = budgets
        self._now = 0

    @property
    def high_watermark(self) -> int:
        """See the class."""
        if self.leader is not None:
            return max(self.leader.high_watermark, self._high_watermark)
        return self._high_watermark if self.follower is None else self.follower.high_watermark

    @property
    def epoch(self) -> int:
        """The newest epoch of which there was an appointment."""
        return -1 if self.appointment is None else self.appointment.epoch

    @property
    def has_all_below(self) -> int:
        """Below which offset everyone who follows this leader has everything: tombstones beyond are to be sent still.

        Whoever leads nobody knows of no one, and who was away is told what it missed (`Log.tombstones_lost`).
        """
        return 1 << 62 if self.leader is None else self.leader.everyone_has_below

    # Life ---

    def open(self, now: int) -> None:
        """Reads the log; the role is taken up once it is open."""
        self._now = now
        self.log.open()

    def close(self) -> None:
        """Ends the role, and closes the log in order."""
        self._end_role()
        if self.state not in ("closing", "closed", "failed"):
            self.state = "closing"
            self.log.close()

    def appoint(self, appointment: Appointment, now: int) -> None:
        """What the newest metadata, or the newest election, say of this partition."""
        self._now = now
        before = self.appointment
        if before is not None and appointment.epoch < before.epoch:
            return
        self.appointment = appointment
        same = before is not None and appointment.epoch == before.epoch
        if same and before is not None and appointment.leader == before.leader:
            if self.leader is not None:
                if sorted(appointment.isr) != self.leader.isr:
                    self.leader.isr_committed(appointment.isr)
                self._set_followers()
                self.leader.advance()
            elif self.state == "idle" and appointment.leader != self.settings.node:
                self._take_up()  # this node is up again, under the leader that there was
            return
        self.resigned = False
        self._take_up()

    def _take_up(self) -> None:
        """Enters the role that the newest appointment gives, unless something has to end first."""
        if self.state in ("opening", "closing", "closed", "failed"):
            return
        if self.state == "cutting" or (self.follower and self.follower.state == "truncating"):
            return
        self._end_role()
        self.state = "idle"
        appointed = self.appointment
        if appointed is None or appointed.leader is None:
            return
        if appointed.leader == self.settings.node and self._should_yield():
            self._yield()
        elif appointed.leader == self.settings.node and self._has_too_much():
            self._cut()
        elif appointed.leader == self.settings.node:
            self.state = "beginning"
            self.log.begin_epoch(appointed.epoch)
        elif self.settings.node in appointed.replicas:
            self.state = "following"
            leader = appointed.leader
            self.follower = Follower(
                self.log, topic_id=self.settings.topic_id, partition=self.settings.partition,
                epoch=appointed.epoch, send=lambda answer: self._answer(leader, answer),
                known=min(self._high_watermark, self.log.end_offset), unclean=appointed.unclean,
            )  # fmt: skip
            settings = self.settings
            ready = Appended(
                topic_id=settings.topic_id, partition=settings.partition, epoch=appointed.epoch,
                session=-1, status="ready",
            )  # fmt: skip
            self._answer(leader, ready)

    def _has_too_much(self) -> bool:
        """Whether the log goes on behind a hole, where it is to end under this appointment."""
        appointed, log = self.appointment, self.log
        return (
            appointed is not None
            and appointed.end is not None
            and log.last_epoch < appointed.epoch
            and log.start_offset <= appointed.end < log.end_offset
        )

    def _cut(self) -> None:
        assert self.appointment is not None
        assert self.appointment.end is not None
        self.state = "cutting"
        self._cut_again = False
        self._high_watermark = min(self._high_watermark, self.appointment.end)
        self.log.truncate(self, self.appointment.end)

    def _should_yield(self) -> bool:
        """Whether records are damaged here that another in-sync replica has: that one is to lead, and to mend this.

        Once for the same damage: who is appointed again all the same leads, for the others may be damaged too.
        """
        appointed, log = self.appointment, self.log
        return (
            not self.settings.quorum
            and appointed is not None
            and log.damaged != self._yielded_for
            and any(behind > log.start_offset for _, behind in log.damaged)
            and any(
                node != self.settings.node and node in appointed.replicas for node in appointed.isr
            )
        )

    def _yield(self) -> None:
        self.resigned = True
        self._yielded_for = list(self.log.damaged)

    def _end_role(self) -> None:
        self._high_watermark = self.high_watermark
        if self.leader is not None:
            self.leader.set_followers({}, self._now)
        self.leader = self.follower = None

    def _lead(self) -> None:
        appointed = self.appointment
        assert appointed is not None
        self.state = "leading"
        self.leader = Leader(
            self.log, self.settings, epoch=appointed.epoch, isr=appointed.isr,
            metadata=appointed.metadata, known=self._high_watermark, send=self._send,
            budgets=self._budgets, now=self._now,
        )  # fmt: skip
        self._set_followers()
        self.leader.advance()

    def _set_followers(self) -> None:
        assert self.leader is not None
        assert self.appointment is not None
        me = self.settings.node
        others = {node: at for node, at in self.appointment.replicas.items() if node != me}
        self.leader.set_followers(others, self._now)

    def know_committed(self, offset: int) -> None:
        """All below an offset is committed, as is known otherwise than by a leader's word; before it has a role."""
        assert self.leader is None
        assert self.follower is None
        self._high_watermark = max(self._high_watermark, offset)

    # Records ---

    def append(self, batch: Buffer, header: BatchHeader) -> None:
        """Appends a stamped batch as the leader."""
        assert self.leader is not None
        self.log.append(batch, header)
        self.leader.appended(header.base_offset, header.next_offset, batch)

    # Messages ---

    def on_append(self, sender: str, message: Append, batches: Sequence[Frame], now: int) -> None:
        """A leader sends; it is answered even where it is not the one to follow."""
        self._now = now
        appointed, follower = self.appointment, self.follower
        if message.epoch < self.epoch:
            self._answer_other(sender, message, stale=True)
        elif (
            follower is None
            or appointed is None
            or message.epoch != follower.epoch
            or sender != appointed.leader
        ):
            self._answer_other(sender, message, stale=False)
        else:
            follower.on_append(message, batches)

    def _answer_other(self, sender: str, message: Append, *, stale: bool) -> None:
        answer = Appended(
            topic_id=message.topic_id, partition=message.partition, epoch=message.epoch,
            session=message.session, status="stale" if stale else "not_ready", log_epoch=self.epoch,
        )  # fmt: skip
        self._answer(sender, answer)

    def on_appended(self, sender: str, incarnation: int, answer: Appended, now: int) -> None:
        """A follower answers."""
        self._now = now
        if self.leader is not None:
            self.leader.on_appended(sender, incarnation, answer, now)
            self.leader.advance()

    # Events and time ---

    def on_event(self, completion: Completion, now: int) -> Event | None:
        """A storage request of the log is done; the event is returned where it is the owner's."""
        self._now = now
        event = self.log.on_event(completion, now)
        match event:
            case Opened():
                self._opened()
            case EpochBegun():
                self._epoch_begun(event)
            case Truncated():
                self._truncated(event)
            case AppendFailed():
                self._append_failed(event)
            case StartMoved(token=Follower() as follower):
                follower.on_start_moved(event)
                event = None
            case ReadDone(token=CatchUp()):
                if self.leader is not None:
                    self.leader.on_read(event, now)
                event = None
            case Closed():
                if self.state == "closing":
                    self.state = "closed"
            case Broken():
                self._end_role()
                self.state = "failed"
        if self.follower is not None:
            self.follower.advance()
        if self.leader is not None:
            self.leader.advance()
        return event

    @property
    def at_rest(self) -> bool:
        """Whether `on_tick` has nothing to do, and will have nothing to do, until something else happens."""
        if self.resigned or not self.log.at_rest:
            return False
        return self.leader.at_rest if self.leader is not None else self.state == "following"

    def on_tick(self, now: int) -> None:
        """About every 100 ms."""
        self._now = now
        if self.log.state == "open":
            self.log.on_tick(now)
        if self.state == "cutting" and self._cut_again and self.log.state == "open":
            self.state = "idle"
            self._take_up()
        if self.leader is not None and self._should_yield():
            self._end_role()
            self.state = "idle"
            self._yield()
        if self.leader is not None:
            self.leader.on_tick(now)
            self.leader.advance()

    def _opened(self) -> None:
        if self.state == "closing":
            return
        self.state = "idle"
        log = self.log
        committed = max(log.start_offset, min(log.thinned_below, log.end_offset))
        self._high_watermark = max(self._high_watermark, committed)
        self._take_up()

    def _epoch_begun(self, event: EpochBegun) -> None:
        if self.state == "beginning" and event.epoch == self.epoch:
            self._lead()
        elif self.follower is not None:
            self.follower.on_epoch_begun(event)

    def _truncated(self, event: Truncated) -> None:
        if self.state == "cutting":
            self._cut_again = event.error is not None
            if not self._cut_again:
                self.state = "idle"
                self._take_up()
            return
        follower = self.follower
        if follower is None:
            return
        if follower.epoch == self.epoch:
            follower.on_truncated(event)
        else:  # what it was asked meanwhile, nobody may ask any more
            self._end_role()
            self._take_up()

    def _append_failed(self, event: AppendFailed) -> None:
        if self.leader is not None:
            sent = self.leader.sent_beyond
            self.leader.dropped(event.from_offset)
            if sent > event.from_offset:
                self._end_role()
                self.state = "idle"
                self.resigned = True
        elif self.follower is not None:
            self.follower.on_append_failed(event)
