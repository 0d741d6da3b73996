"""One partition of `__groups` on one node: follows what is committed, and while it leads coordinates the groups in it.

Owns which state the decisions are made on, and when an answer may be given. Never decides anything about a group: a
`Coordinator` does.

============ ==================================== ============ =======================================================
state        on                                   next         effect
============ ==================================== ============ =======================================================
following    more is committed                    following    it is read, and applied
following    this node leads, and all that was    coordinating sessions begin anew; requests are taken
             in its log is committed and applied
following    what was applied is not in the log   following    the state is dropped; the log is read from its start
following    records are damaged                  following    it waits until they are mended; where nobody else can
                                                               lead, they are stepped over
coordinating a request                            coordinating what is decided is applied and appended at once, and
                                                               answered once it is committed
coordinating the node leads no more               following    who waits is told; what was applied and may not be
                                                               committed is dropped: the log is read from its start
coordinating an append is not kept                following    the same; it goes on when all is read
any          stop                                 stopped      who waits is told; nothing is taken any more
============ ==================================== ============ =======================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from zbroker.broker.ports import Report
from zbroker.broker.waiting import Asked, Found, Waiting
from zbroker.errors import (
    DataDamaged,
    DiskFull,
    GroupNotEmpty,
    MemberFenced,
    NotCoordinator,
    NotReady,
    OffsetOutOfRange,
    RequestTimedOut,
    ShuttingDown,
    UnknownGroup,
    UnsupportedVersion,
    ZBrokerError,
)
from zbroker.groups.catalog import Catalog
from zbroker.groups.coordinator import Coordinator
from zbroker.groups.records import Record, decode, encode
from zbroker.groups.state import State
from zbroker.log.events import ReadDone
from zbroker.protocol.batch import EncodedRecord, decode_records, iter_batches
from zbroker.replication.leader import Leader

if TYPE_CHECKING:
    from zbroker.broker.partition import Partition

READ_BYTES = 64 << 10
"""Bytes of the log that are applied in one go: a few ms of work."""
BATCH_BYTES = 256 << 10
"""Bytes of records that one batch has at most; a decision with more becomes several batches, in order."""
EXPIRE_MS = 60_000

OF_THE_STATE = (MemberFenced, UnknownGroup, GroupNotEmpty)
"""Errors that only a coordinator may give: they wait like any other answer."""

Decide = Callable[[Coordinator], None]


class Replaying(msgspec.Struct, frozen=True):
    """The token of a read of committed records."""

    generation: int


class Coordinating:
    """See the module.

    Attributes:
        state: of the groups, as far as it is applied: committed records, and while this node coordinates, all.
        coordinator: the decisions, while this node coordinates.
        reading: a read is under way, for which the partition stays.
    """

    def __init__(
        self,
        partition: Partition,
        *,
        catalog: Callable[[], Catalog],
        give: Callable[[Asked, Found], None],
        park: Callable[[Asked], None],
        taken_over: Callable[[int], None],
        report: Report,
        retention: int,
    ) -> None:
        """
        Args:
            give: sends an answer.
            park: a request is held: it does not count as in flight any more.
            taken_over: this node coordinates from now on.
            retention: ms that the positions of an empty group are kept.
        """
        self.partition = partition
        self.state = State()
        self.coordinator: Coordinator | None = None
        self.reading = False
        self._rebalances = 0
        self._catalog = catalog
        self._give = give
        self._park = park
        self._taken_over = taken_over
        self._report = report
        self._retention = retention
        self._leader: Leader | None = None
        self._waiting: Waiting | None = None
        self._applied = 0
        self._applied_epoch = -1
        self._generation = 0
        self._damaged_until = -1
        self._expire_at = 0
        self._stopped = False
        self._broken: ZBrokerError | None = None

    @property
    def rebalances(self) -> int:
        """Targets made here, by this coordinator and those before it."""
        now = 0 if self.coordinator is None else self.coordinator.targets.rebalances
        return self._rebalances + now

    @property
    def at_rest(self) -> bool:
        """Whether nothing is due by time: no group to watch over, nobody who waits, and nothing to be read."""
        if self.coordinator is not None:
            idle = not self.state.groups and self.coordinator.targets.idle
            return idle and not self._waiting
        leads = self._leader is not None
        return not (leads or self.reading or self._applied < self.partition.high_watermark)

    # Requests ---

    def take(self, asked: Asked, decide: Decide, now: int, wall: int) -> None:
        """Lets a request be decided; it is answered now or later.

        Raises:
            NotCoordinator, NotReady, ShuttingDown: nothing is decided here, or not yet.
        """
        coordinator = self._ready()
        self.partition.resting = False
        coordinator.outcome.refusal = self._refusal()
        error: ZBrokerError | None = None
        try:
            decide(coordinator)
        except ZBrokerError as refused:
            error = refused
        answered = self._settle(coordinator, now, wall)
        if isinstance(error, OF_THE_STATE):
            self._await(asked, error, now, appended=False)
        elif error is not None:
            raise error
        elif asked not in answered and asked.counted:
            self._park(asked)
        self._advance(now)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.coordinator is not None and not self._stopped

    def _ready(self) -> Coordinator:
        partition = self.partition
        if self._broken is not None:
            raise self._broken
        if self._stopped:
            raise ShuttingDown("the node is stopping; another coordinates its groups")
        partition.check_reading()
        if self.coordinator is None:
            raise NotReady(
                f"this node leads {partition.name} and is reading it, to know its groups; try again in a moment"
            )
        return self.coordinator

    def _refusal(self) -> ZBrokerError | None:
        """Why nothing can be appended now."""
        if self.partition.log.full:
            return DiskFull("the coordinator's disk is full; it goes on as soon as there is room")
        return self.partition.too_few()

    # What happens to the partition ---

    def on_change(self, now: int) -> None:
        """The partition's role, high watermark, or confirmations may be others."""
        leader = self.partition.leader
        if leader is not self._leader:
            if self._leader is not None:
                self._lose(now)
            self._leader = leader
        if self.coordinator is not None:
            self._advance(now)
        else:
            self._follow(now)

    def on_tick(self, now: int, wall: int) -> None:
        """About every 100 ms."""
        coordinator, waiting = self.coordinator, self._waiting
        if coordinator is None or waiting is None:
            self._step_over_damage()  # the replica has just looked whether another should lead
            self._follow(now)
            return
        coordinator.outcome.refusal = self._refusal()
        coordinator.on_tick(now, wall)
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_MS
            coordinator.expire(wall, self._retention)
        self._settle(coordinator, now, wall)
        waiting.ask_again(now)
        if coordinator.outcome.refusal is not None:
            for asked, appended in waiting.uncommitted():
                refusal = self._refusal() or coordinator.outcome.refusal
                refusal.outcome_unknown = appended
                self._give(asked, refusal)
        for asked, appended in waiting.late(now):
            late = RequestTimedOut(
                f"the replicas of {self.partition.name} did not answer in time",
                outcome_unknown=appended,
            )
            self._give(asked, late)
        self._advance(now)

    def on_catalog(self, catalog: Catalog, *, changed: bool, deleted: bool) -> None:
        """The topics are others, or only their leaders (not `changed`)."""
        if self.coordinator is not None:
            self.coordinator.targets.catalog = catalog
            if changed:
                self.partition.resting = False
                self.coordinator.targets.look_at_topics()
            if deleted:
                self._expire_at = 0

    def append_failed(self, error: ZBrokerError, now: int) -> None:
        """Something that was appended is not in the log: what was decided on it does not stand."""
        if self.coordinator is not None:
            self._lose(now, error)

    def stop(self) -> None:
        """The node is stopping, or the partition ends."""
        self._stopped = True
        self._refuse_all(
            lambda unknown: ShuttingDown(
                "the node is stopping; another coordinates its groups", outcome_unknown=unknown
            )
        )

    # Following ---

    def _follow(self, now: int) -> None:
        """Reads what is committed and not applied; at the end of it, a leader takes over."""
        partition = self.partition
        log, leader = partition.log, self._leader
        if self.reading or self._stopped or self._broken is not None or log.state != "open":
            return
        if self._applied > log.end_offset or (
            self._applied > log.start_offset
            and log.epoch_at(self._applied - 1) != self._applied_epoch
        ):
            self._drop()
        if self._applied < log.start_offset:
            self._drop()
            self._applied = log.start_offset
        if self._applied < partition.high_watermark:
            self.reading = True
            token = Replaying(self._generation)
            log.read(token, self._applied, READ_BYTES, partition.high_watermark)
        elif (
            leader is not None
            and leader.high_watermark >= leader.epoch_start
            and self._applied >= log.end_offset
        ):
            self._take_over(leader, now)

    def read_done(self, event: ReadDone, now: int) -> None:
        """The log has read some of what is committed."""
        self.reading = False
        if event.token.generation != self._generation or self.coordinator is not None:
            self._follow(now)
            return
        match event.error:
            case None if event.next <= self._applied:
                return  # it is not written yet
            case None:
                self._apply(event)
            case OffsetOutOfRange():
                self._drop()
            case DataDamaged(details={"next": int(following)}):
                self._damaged_until = following
                return
            case _:
                return  # tried again with the next tick
        self._follow(now)

    def _step_over_damage(self) -> None:
        """Where this node leads though records are damaged, no other has them: what there is is better than nothing."""
        following, self._damaged_until = self._damaged_until, -1
        if self._leader is not None and following > self._applied:
            self._note_applied(following)

    def _apply(self, event: ReadDone) -> None:
        try:
            for at, header in iter_batches(event.chunk):
                if header.is_control:
                    continue
                rows = decode_records(event.chunk, at, header)
                for offset, row in enumerate(rows, header.base_offset):
                    if row is not None and offset >= self._applied:
                        self.state.apply(decode(row[1], row[2]))
        except UnsupportedVersion as error:
            self._broken = error
            return
        self._note_applied(event.next)

    def _note_applied(self, offset: int) -> None:
        self._applied = offset
        self._applied_epoch = self.partition.log.epoch_at(offset - 1)

    def _drop(self) -> None:
        """The state begins anew."""
        self._generation += 1
        self.state = State()
        self._applied, self._applied_epoch = 0, -1

    def _take_over(self, leader: Leader, now: int) -> None:
        self._waiting = Waiting(leader, self._give)
        self.coordinator = Coordinator(self.state, self._catalog(), now)
        self._expire_at = now
        if self.state.groups:
            self._report(
                "coordinating", partition=self.partition.name, groups=len(self.state.groups)
            )
        self._taken_over(now)

    # Coordinating ---

    def _settle(self, coordinator: Coordinator, now: int, wall: int) -> set[Asked]:
        """Appends what was decided; who is answered by that."""
        records, answers = coordinator.outcome.take()
        for event, facts in coordinator.outcome.events:
            self._report(event, **facts)
        coordinator.outcome.events.clear()
        if records:
            self._append(records, wall)
        for asked, found in answers:
            self._await(asked, found, now, appended=bool(records))
        return {asked for asked, _ in answers}

    def _await(self, asked: Asked, found: Found, now: int, *, appended: bool) -> None:
        assert self._waiting is not None
        end = self.partition.log.end_offset
        self._waiting.add(asked, found, end=end, appended=appended, now=now)

    def _append(self, records: list[Record], wall: int) -> None:
        rows: list[EncodedRecord | None] = []
        size = 0
        for record in records:
            row = encode(record)
            length = len(row[1] or b"") + len(row[2] or b"")
            if rows and size + length > BATCH_BYTES:
                self.partition.append_own(rows, wall)
                rows, size = [], 0
            rows.append(row)
            size += length
        self.partition.append_own(rows, wall)
        self._note_applied(self.partition.log.end_offset)

    def _advance(self, now: int) -> None:
        if self._waiting is not None:
            self._waiting.advance(now)

    def _lose(self, now: int, failed: ZBrokerError | None = None) -> None:
        """This node does not coordinate any more, or begins anew: who waits is told, and the state is rebuilt.

        Args:
            failed: why what was appended is not in the log.
        """

        def error(appended: bool) -> ZBrokerError:
            if appended and failed is not None:
                return failed
            return NotCoordinator(
                f"this node does not lead {self.partition.name} any more", outcome_unknown=appended
            )

        led = self.coordinator is not None
        self._refuse_all(error)
        if led:
            self._drop()
            self._follow(now)

    def _refuse_all(self, error: Callable[[bool], ZBrokerError]) -> None:
        coordinator, waiting = self.coordinator, self._waiting
        self._rebalances = self.rebalances
        self.coordinator = self._waiting = None
        if coordinator is not None:
            for asked in coordinator.everyone():
                self._give(asked, error(False))
        if waiting is not None:
            for asked, appended in waiting.everyone():
                self._give(asked, error(appended))
