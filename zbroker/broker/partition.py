"""One partition that this node keeps: as its leader it appends, acknowledges, commits, serves and pushes.

Owns everyone who waits for the high watermark to move, and ends their waiting when the leadership ends. The copy itself
and its role are a `Replica`'s. Never touches the bytes of a batch but for the leader's stamp, never answers before what
the answer promises is true, and serves nothing before the high watermark of its epoch is exposed.

========= ========================================== ========= =========================================================
life      on                                         next      effect
========= ========================================== ========= =========================================================
open      an appointment                             open      the replica's role changes; see `replication.replica`
open      the replica leads                          open      records are taken; read once the watermark is exposed
open      the replica leads no more                  open      who waits is told: outcome unknown, look elsewhere
open      log AppendFailed                           open      what was not kept is answered `disk_full`
open      the ISR falls below `min_insync`           open      who waits for commit is told: outcome unknown
open      stop                                       stopping  new records are refused; what pends is finished
open      delete                                     deleting  everyone who waits is told that the topic is gone
stopping  nothing pends, or it took too long         closing   the log is flushed and closed
deleting  log Closed, nobody reads                   deleted   the files go
closing   log Closed, nobody reads                   closed
any       log Broken                                 failed    everyone who waits is told; the node stops
========= ========================================== ========= =========================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from zbroker.broker.acknowledgements import Acknowledgements
from zbroker.broker.coordinating import Coordinating, Replaying
from zbroker.broker.limits import Budget, ReadLedger
from zbroker.broker.ports import Conversation, Replier, Report, Transport
from zbroker.broker.readers import Readers
from zbroker.errors import (
    DataFolderError,
    DiskFull,
    InvalidRequest,
    NotEnoughReplicas,
    NotLeader,
    NotReady,
    OffsetOutOfRange,
    Overloaded,
    RequestTimedOut,
    ShuttingDown,
    StorageFailed,
    UnknownTopic,
    ZBrokerError,
)
from zbroker.log.events import (
    AppendFailed,
    Broken,
    CompactionDone,
    Found,
    Opened,
    ReadDone,
    StartMoved,
)
from zbroker.log.log import Log
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Completion, Storage
from zbroker.protocol.batch import (
    APPEND_TIME,
    BatchHeader,
    EncodedRecord,
    check_ingest,
    encode_batch,
    read_header,
    stamp,
)
from zbroker.protocol.frames import Frame, error_reply, subject
from zbroker.protocol.messages import (
    DeleteRecords,
    DeleteRecordsReply,
    Fetch,
    Offsets,
    PartitionStats,
    Produce,
    ProduceReply,
    Push,
)
from zbroker.protocol.peers import Append, Appended
from zbroker.protocol.thinning import check_keys
from zbroker.replication.leader import Leader, LeaderSettings
from zbroker.replication.ports import LinkBudget, SendAppend
from zbroker.replication.replica import Appointment, Replica
from zbroker.topics import TopicSettings

Life = Literal["open", "stopping", "closing", "closed", "deleting", "deleted", "failed"]

TOPICS_FOLDER = "topics"
"""Where the topics' logs are, under the data folder."""

CONFIRM_MS = 5000
"""How long a leader waits for the in-sync replicas to confirm that it still leads."""
STOP_MS = 5000
"""How long a partition that stops waits for what pends: followers may be gone for good."""
ISR_LAG_SESSIONS = 1.5
"""How many session timeouts an in-sync replica may be behind."""

RATE_WEIGHT = 0.3
"""How much the latest second counts in the smoothed rates."""


def log_settings(settings: TopicSettings) -> LogSettings:
    """What of a topic's settings concerns its logs."""
    deletes = settings.deletes
    return LogSettings(
        fsync=settings.fsync,
        fsync_interval=settings.fsync_interval,
        segment_size=settings.segment_size,
        segment_age=settings.segment_age,
        retention=settings.retention if deletes else None,
        retention_size=settings.retention_size if deletes else None,
        compact=settings.compacts,
        min_dirty=settings.min_dirty,
        tombstone_grace=settings.tombstone_grace,
    )


class Partition:
    """One node's part in one partition. See the module for its life.

    Attributes:
        resting: nothing is due by time: `on_tick` is not wanted until something else has happened.
        replica: the copy of the log, and the role in which it is kept.
        version: of the partition's metadata, as they were last applied here.
        coordinating: who coordinates the groups of it, where it is one of `__groups`.
        unconfirmed: the metadata have a smaller ISR than a leader is known to have lived under.
    """

    def __init__(
        self,
        *,
        node: str,
        topic_id: str,
        topic: str,
        number: int,
        settings: TopicSettings,
        session_timeout: int,
        storage: Storage,
        transport: Transport,
        send: SendAppend,
        answer: Callable[[str, Appended], None],
        budgets: Callable[[str], LinkBudget],
        reply: Replier,
        report: Report,
        budget: Budget,
        ledger: ReadLedger,
        fetch_max: int,
    ) -> None:
        self.topic_id = topic_id
        self.topic = topic
        self.number = number
        self.settings = settings
        self.life: Life = "open"
        self.error: ZBrokerError | None = None
        self.log = Log(folder(topic_id, number), log_settings(settings), storage)
        self._node = node
        self._session_timeout = session_timeout
        self.replica = Replica(
            self.log, self._leader_settings(), send=send, answer=answer, budgets=budgets
        )
        self.version = -1
        self.resting = False
        self.coordinating: Coordinating | None = None
        self.unconfirmed = False
        self.records_in = 0
        self.bytes_in = 0
        self.records_rate = 0.0
        self.bytes_rate = 0.0
        self._leader: Leader | None = None
        self._committed = -1
        self._counted = (0, 0)
        self._now = 0
        self._stop_by: int | None = None
        self._transport = transport
        self._reply = reply
        self._report = report
        self._budget = budget
        self._held = 0
        """Bytes of uncommitted batches, counted in the budget."""
        self._subject = subject(topic, number)
        self._head = Push(topic_id=topic_id, partition=number)
        self._producers = Acknowledgements(reply)
        self._unconfirmed: deque[tuple[int, int, Conversation, Offsets]] = deque()
        """Who asked for the newest offset: the number to be confirmed, the deadline, whom to answer."""
        self._readers = Readers(self, reply, ledger, fetch_max)

    # What others may know ---

    @property
    def name(self) -> str:
        """The partition as a person would call it."""
        return f"partition {self.number} of topic {self.topic!r}"

    @property
    def epoch(self) -> int:
        """The leader epoch of the newest appointment."""
        return self.replica.epoch

    @property
    def high_watermark(self) -> int:
        """All below it is committed, as far as is known here."""
        return max(self.replica.high_watermark, 0)

    @property
    def leads(self) -> bool:
        """Whether this node leads the partition."""
        return self._leader is not None

    @property
    def serves(self) -> bool:
        """Whether this node leads the partition, and knows what is committed."""
        return self._leader is not None and self._leader.high_watermark >= 0

    @property
    def leader(self) -> Leader | None:
        """The leadership, while this node has it."""
        return self._leader

    @property
    def settled(self) -> bool:
        """Whether the newest appointment is carried out here, so far as it goes without others."""
        return self.replica.state in ("leading", "following", "idle", "failed")

    @property
    def isr_count(self) -> int:
        """How many replicas are in sync, where this node leads; else 0."""
        return 0 if self._leader is None else len(self._leader.isr)

    @property
    def under_replicated(self) -> bool:
        """Whether this node leads the partition and replicas are missing from its ISR."""
        return self._leader is not None and len(self._leader.isr) < self.settings.replicas

    def _leader_settings(self) -> LeaderSettings:
        return LeaderSettings(
            node=self._node, topic_id=self.topic_id, partition=self.number,
            flushed=self.settings.fsync == "always", min_insync=self.settings.min_insync,
            lag_max=int(self._session_timeout * ISR_LAG_SESSIONS),
        )  # fmt: skip

    # Life ---

    def open(self, now: int) -> None:
        """Reads the log; roles are taken up once that is done."""
        self._now = now
        self.replica.open(now)

    def appoint(self, appointment: Appointment, version: int, now: int) -> None:
        """What the newest metadata say of the partition."""
        self._wake(now)
        self.version = version
        if self.life == "open":
            self.replica.appoint(appointment, now)
            self._after()

    def stop(self, now: int) -> None:
        """Takes nothing new, finishes what pends, then closes the log in order."""
        self._wake(now)
        self._readers.release_all()
        if self.coordinating is not None:
            self.coordinating.stop()
        if self.life == "open":
            self.life = "stopping"
            self._stop_by = now + STOP_MS
        self._close_when_idle()

    def delete(self, now: int) -> None:
        """The topic is gone: tells everyone who waits, and closes the log so that its files can go."""
        self._wake(now)
        self.life = "deleting"
        if self.coordinating is not None:
            self.coordinating.stop()
        self._refuse_all(UnknownTopic(f"topic {self.topic!r} was deleted", outcome_unknown=True))
        self.replica.close()
        self._leader = None
        self._finish()

    def alter(self, settings: TopicSettings) -> None:
        """The topic's settings changed."""
        self.resting = False
        self.settings = settings
        self.log.alter(log_settings(settings))
        self.replica.settings = self._leader_settings()
        if self._leader is not None:
            self._leader.alter(self.replica.settings)

    # Requests: each answers now or later, or raises the error to answer with ---

    def produce(
        self, to: Conversation, request: Produce, batch: Frame, now: int, wall: int
    ) -> None:
        """Checks, stamps and appends one batch; answers when it is as safe as asked."""
        self._wake(now)
        leader = self._check_taking()
        log = self.log
        if log.full:
            raise DiskFull(
                "the node's disk is full; it takes records again as soon as there is room"
            )
        budget = self._budget
        if budget.used + len(batch) > budget.limit:
            raise Overloaded(
                f"{budget.used} bytes wait for the disk at this node, which takes {budget.limit} "
                "(limits: memory)"
            )
        if request.acks == "all" and len(leader.isr) < self.settings.min_insync:
            raise self._too_few(leader, outcome_unknown=False)
        header = check_ingest(batch, max_length=self.settings.max_batch)
        if self.settings.compacts:
            check_keys(batch, header)
        deadline = now + request.timeout
        if header.producer_id >= 0:
            if request.acks != "all":
                raise InvalidRequest(
                    f"an idempotent batch (producer_id {header.producer_id}) needs acks all, "
                    f"not {request.acks}"
                )
            duplicate = log.producers.check(header)
            if duplicate is not None:
                reply = ProduceReply(
                    id=to.id, partition=self.number, base_offset=duplicate.base_offset,
                    append_time=duplicate.append_time, epoch=duplicate.leader_epoch, duplicate=True,
                )  # fmt: skip
                end = duplicate.base_offset + header.span
                self._producers.add(to, reply, end, deadline, commit=True)
                self._acknowledge()
                return
        header = self._append(batch, header, wall)
        if request.acks == "none":
            return
        reply = ProduceReply(
            id=to.id, partition=self.number, base_offset=header.base_offset,
            append_time=header.append_time, epoch=leader.epoch,
        )  # fmt: skip
        commit = request.acks == "all"
        self._producers.add(to, reply, header.next_offset, deadline, commit=commit)

    def fetch(self, to: Conversation, request: Fetch, now: int) -> None:
        """Answers with committed batches from the offset on, or waits until there are some."""
        self._wake(now)
        self.check_reading()
        self._readers.fetch(to, request, now, may_wait=self.life == "open")

    def offsets(self, to: Conversation, request: Offsets, now: int) -> None:
        """Answers with the offset of the first record kept, of the next to be committed, or by time.

        Only from a leader that is sure to be one still: a deposed one could name an end that others have passed.
        """
        self._wake(now)
        self.check_reading()
        leader = self._leader
        assert leader is not None
        if leader.high_watermark < leader.epoch_start:
            # Of what lies before this epoch, more may be committed than is known here: too few are in sync to say.
            raise self._too_few(leader, outcome_unknown=False)
        number = leader.confirm(now)
        if leader.confirmed >= number:
            self._readers.offsets(to, request)
        else:
            self._unconfirmed.append((number, now + CONFIRM_MS, to, request))

    def delete_records(self, to: Conversation, request: DeleteRecords) -> None:
        """Moves the log start up; answers when that is on disk."""
        self.resting = False
        self._check_taking()
        if request.before > self.high_watermark:
            raise OffsetOutOfRange(
                f"{self.name} holds offsets {self.log.start_offset} to {self.high_watermark - 1}; "
                f"records before {request.before} cannot be deleted yet",
                start=self.log.start_offset, end=self.high_watermark,
            )  # fmt: skip
        self.log.delete_before((to, request), request.before)

    def stats(self) -> PartitionStats:
        """What is known of the log, for people."""
        log = self.log
        return PartitionStats(
            partition=self.number, epoch=self.epoch, start_offset=log.start_offset,
            high_watermark=self.high_watermark, end_offset=log.end_offset,
            flushed_offset=log.flushed_offset, size=log.size, segments=log.segment_count,
            records_in=self.records_in, bytes_in=self.bytes_in, records_rate=self.records_rate,
            bytes_rate=self.bytes_rate, damaged=list(log.damaged),
        )  # fmt: skip

    # Messages of peers ---

    def on_append(self, sender: str, message: Append, batches: Sequence[Frame], now: int) -> None:
        """The leader sends."""
        self._wake(now)
        self.replica.on_append(sender, message, batches, now)

    def on_appended(self, sender: str, incarnation: int, answer: Appended, now: int) -> None:
        """A follower answers."""
        self._wake(now)
        self.replica.on_appended(sender, incarnation, answer, now)
        self._after()

    # In-sync replicas ---

    def isr_to_propose(self, eligible: Collection[str], now: int) -> dict[str, int] | None:
        """The ISR to ask the controller for, each member with its start; None where there is nothing to ask."""
        leader = self._leader
        if leader is None or self.life not in ("open", "stopping"):
            return None
        wanted = leader.isr_to_propose(eligible, now)
        if wanted is None:
            return None
        starts = {node: follower.incarnation for node, follower in leader.followers.items()}
        return {node: starts.get(node, 0) for node in wanted}

    def isr_to_confirm(self) -> dict[str, int] | None:
        """The ISR as it is, for a leader that is to say that it lives under it; None where nobody asks for that."""
        leader, appointed = self._leader, self.replica.appointment
        if not self.unconfirmed or leader is None or leader.proposed is not None:
            return None
        if appointed is None or self.life not in ("open", "stopping"):
            return None
        starts = {node: follower.incarnation for node, follower in leader.followers.items()}
        return {node: starts.get(node, 0) for node in appointed.isr}

    def isr_answered(self, epoch: int) -> None:
        """The controller's answer is definite, and what it goes by is applied here: nothing pends any more."""
        leader = self._leader
        if leader is not None and leader.epoch == epoch and leader.proposed is not None:
            leader.isr_refused()
            self._after()

    # Events and time ---

    def on_event(self, completion: Completion, now: int) -> None:
        """A storage request of this partition's log is done."""
        self._wake(now)
        event = self.replica.on_event(completion, now)
        if event is not None:
            self._handle(event)
        self._after()
        if event is not None:
            self._finish()

    def on_tick(self, now: int, wall: int) -> None:
        """About every 100 ms: deadlines, flushes, checkpoints, and what followers have not answered."""
        self._now = now
        self.replica.on_tick(now)
        self._after()
        if self.coordinating is not None:
            self.coordinating.on_tick(now, wall)
        if self.life in ("open", "stopping") and self._leader is not None:
            self._expire(now)
            if self._unconfirmed:
                self._leader.confirm(now)  # the question, or its answer, may be lost
        if self._stop_by is not None:
            self._close_when_idle()
        self.resting = (
            self.life == "open"
            and self.replica.at_rest
            and not self.unconfirmed
            and not (self._producers or self._unconfirmed or self._readers.waiting)
            and (self.coordinating is None or self.coordinating.at_rest)
        )

    def _wake(self, now: int) -> None:
        """Something happens. To a partition at rest it happens as if it had been told the time until now."""
        self._now = now
        if self.resting:
            self.resting = False
            self.replica.on_tick(now)

    def on_second(self, wall: int) -> None:
        """Once a second: retention and rates."""
        if self.life == "open" and self.serves:
            self.log.retain(self.high_watermark, wall)
        elif self.life == "open" and self.settings.compacts and self.replica.follower is not None:
            self.log.roll(wall)
        self.resting = self.resting and self.log.at_rest
        records, size = self.records_in - self._counted[0], self.bytes_in - self._counted[1]
        self._counted = (self.records_in, self.bytes_in)
        self.records_rate += (records - self.records_rate) * RATE_WEIGHT
        self.bytes_rate += (size - self.bytes_rate) * RATE_WEIGHT

    def compaction_due(self, wall: int) -> float:
        """How urgently this copy is to be compacted, 0 where it is not: each replica does so for itself."""
        if self.life != "open" or not (self.serves or self.replica.follower is not None):
            return 0.0
        return self.log.compaction_due(self.high_watermark, wall, self.replica.has_all_below)

    def compact(self, wall: int) -> None:
        """Begins to compact this copy."""
        self.resting = False
        self.log.compact(self.high_watermark, wall, self.replica.has_all_below)

    def beacon(self) -> None:
        """Tells subscribers where the partition ends, so that a dropped tail is noticed."""
        if (
            self.serves
            and self.life in ("open", "stopping")
            and self._transport.wanted(self._subject)
        ):
            self._transport.publish(self._subject, self._push_head())

    # The role ---

    def _after(self) -> None:
        """Goes on from whatever happened to the replica: a new role, a higher watermark."""
        if self.replica.leader is not self._leader:
            self._role_changed()
        if self._leader is not None:
            self._advance(self._leader)
        if self.coordinating is not None:
            self.coordinating.on_change(self._now)
        if self.life == "stopping":
            self._close_when_idle()

    def _role_changed(self) -> None:
        if self._leader is not None:
            self._lose_leadership()
        self._leader = self.replica.leader
        self._committed = -1
        if self._leader is not None:
            self._head.epoch = self._leader.epoch

    def _lose_leadership(self) -> None:
        """Whoever waits has to ask the next leader; what was not committed may or may not be in its log."""
        self._refuse_all(self.not_leader(outcome_unknown=True))

    def not_leader(self, *, outcome_unknown: bool = False) -> ZBrokerError:
        """What is answered where another node leads, or none."""
        appointment = self.replica.appointment
        leader = None if appointment is None else appointment.leader
        if leader == self._node:
            return NotReady(
                f"this node is about to lead {self.name}; try again in a moment",
                outcome_unknown=outcome_unknown,
            )
        who = "no node leads" if leader is None else f"node {leader!r} leads"
        return NotLeader(
            f"{who} {self.name} now",
            outcome_unknown=outcome_unknown,
            leader=leader,
            epoch=self.epoch,
        )

    def _too_few(self, leader: Leader, *, outcome_unknown: bool) -> ZBrokerError:
        return NotEnoughReplicas(
            f"{self.name} has {len(leader.isr)} replicas in sync ({', '.join(leader.isr)}), and takes records for "
            f"acks all from {self.settings.min_insync} on (min_insync)",
            outcome_unknown=outcome_unknown,
        )

    def too_few(self) -> ZBrokerError | None:
        """Why nothing is committed for now, where too few replicas are in sync."""
        leader = self._leader
        if leader is None or len(leader.isr) >= self.settings.min_insync:
            return None
        return self._too_few(leader, outcome_unknown=False)

    # Appending and committing ---

    def append_own(self, records: Sequence[EncodedRecord | None], wall: int) -> None:
        """Appends a batch of the node's own, as the leader."""
        batch = encode_batch(records, base_timestamp=wall, max_timestamp=wall)
        self._append(memoryview(batch), read_header(batch), wall)

    def _append(self, batch: Frame, header: BatchHeader, wall: int) -> BatchHeader:
        """Stamps the batch, in place where its frame allows that, and hands it to the log; the header as stamped."""
        log = self.log
        if isinstance(batch, memoryview) and not batch.readonly:
            stamped: bytearray | memoryview = batch
        else:
            stamped = bytearray(batch)
        stamp(
            stamped,
            base_offset=log.end_offset,
            append_time=max(wall, log.last_append_time),
            leader_epoch=log.last_epoch,
            stamp_attributes=APPEND_TIME if self.settings.timestamp == "append" else 0,
        )
        header = read_header(stamped)
        self.replica.append(stamped, header)
        self._hold(len(stamped))
        self.records_in += header.span
        self.bytes_in += len(stamped)
        return header

    def _hold(self, size: int) -> None:
        self._held += size
        self._budget.used += size

    def _advance(self, leader: Leader) -> None:
        """Pushes what the high watermark has passed, answers who waited for it."""
        high_watermark = leader.high_watermark
        if high_watermark > self._committed:
            self._committed = high_watermark
            self._publish(leader)
            self._readers.on_advance()
        if self._producers:
            self._acknowledge()
        while self._unconfirmed and self._unconfirmed[0][0] <= leader.confirmed:
            _, _, to, request = self._unconfirmed.popleft()
            self._readers.offsets(to, request)

    def _publish(self, leader: Leader) -> None:
        passed = leader.committed_batches()
        head = None
        if passed and self._transport.wanted(self._subject):
            head = self._push_head()
        for _, batch in passed:
            self._hold(-len(batch))
            if head is not None:
                self._transport.publish(self._subject, head, batch)

    def _push_head(self) -> Push:
        head = self._head
        head.high_watermark = self.high_watermark
        head.log_start = self.log.start_offset
        return head

    def _acknowledge(self) -> None:
        """Answers every producer whose batch is as safe as it asked."""
        log = self.log
        self._producers.answer(
            written=log.written_offset, flushed=log.flushed_offset, committed=self._committed,
            always=self.settings.fsync == "always",
        )  # fmt: skip

    # What the log reports ---

    def _handle(self, event: object) -> None:
        match event:
            case ReadDone(token=Replaying()):
                assert self.coordinating is not None
                self.coordinating.read_done(event, self._now)
            case ReadDone():
                self._readers.read_done(event)
            case Found():
                self._readers.found(event)
            case AppendFailed():
                self._append_failed(event)
            case StartMoved(token=(to, _)):
                if event.error is not None:
                    self._refuse(to, event.error)
                else:
                    self._reply(to, DeleteRecordsReply(id=to.id, log_start=event.start_offset))
            case CompactionDone():
                self._compacted(event)
            case Opened():
                self._opened(event)
            case Broken():
                self._broken(event.error)

    def _finish(self) -> None:
        """Ends once the log is closed, and whoever was reading has been answered."""
        replaying = self.coordinating is not None and self.coordinating.reading
        if self.log.state == "closed" and not (self._readers.reading or replaying):
            if self.life == "deleting":
                self.life = "deleted"
            elif self.life == "closing":
                self.life = "closed"

    def _opened(self, event: Opened) -> None:
        if self.log.damaged:
            self._report("damage_found", partition=self.name, ranges=list(self.log.damaged))
        if event.torn_bytes:
            self._report("torn_tail_cut", partition=self.name, bytes=event.torn_bytes)
        if event.scanned_bytes and not event.clean:
            self._report("log_scanned", partition=self.name, bytes=event.scanned_bytes)

    def _compacted(self, event: CompactionDone) -> None:
        if event.removed:
            self._report(
                "compacted", partition=self.name, point=event.point, read=event.read,
                written=event.written, removed=event.removed, tombstones=event.tombstones,
            )  # fmt: skip

    def _append_failed(self, event: AppendFailed) -> None:
        """Nothing at or above the offset was kept; a full disk is survived, everything else breaks the log."""
        leader, error = self._leader, event.error
        if self.replica.resigned:
            error.outcome_unknown = True  # a follower may have it, and may lead next
        if leader is not None:
            self._hold(sum(len(batch) for _, _, batch in leader.uncommitted) - self._held)
        self._producers.refuse_beyond(event.from_offset, error)
        if self.coordinating is not None:
            self.coordinating.append_failed(error, self._now)
        self._report("append_failed", partition=self.name, error=str(error))

    def _broken(self, error: ZBrokerError) -> None:
        self.error = error
        self.life = "failed"
        if self.coordinating is not None:
            self.coordinating.stop()
        self._refuse_all(
            StorageFailed(f"the disk under {self.name} failed: {error}", outcome_unknown=True)
            if not isinstance(error, DataFolderError)
            else error
        )

    # Refusing and expiring ---

    def _check_taking(self) -> Leader:
        """The leadership under which records are taken here."""
        if self.life != "open":
            self.check_reading()
            raise ShuttingDown(
                "the node is stopping and takes nothing new; another try finds it again"
            )
        if self._leader is None:
            raise self._not_led()
        return self._leader

    def check_reading(self) -> None:
        """That the partition is led here and serves.

        Raises:
            NotReady, NotLeader, UnknownTopic, StorageFailed, ShuttingDown: with a sentence that says what to do.
        """
        if self.life in ("deleting", "deleted"):
            raise UnknownTopic(f"topic {self.topic!r} was deleted")
        if self.life == "failed":
            raise StorageFailed(f"the disk under {self.name} failed: {self.error}")
        if self.life in ("closing", "closed"):
            raise ShuttingDown("the node is stopping")
        if self._leader is None:
            raise self._not_led()
        if not self.serves:
            raise NotReady(
                f"this node leads {self.name}, and waits for the other replicas to say what is committed; try again "
                "in a moment"
            )

    def _not_led(self) -> ZBrokerError:
        if self.replica.state == "opening":
            return NotReady(f"{self.name} is being opened; try again in a moment")
        return self.not_leader()

    def _refuse(self, to: Conversation, error: ZBrokerError) -> None:
        self._reply(to, error_reply(error, to.id))

    def _refuse_all(self, error: ZBrokerError) -> None:
        self._producers.refuse_all(error)
        while self._unconfirmed:
            self._refuse(self._unconfirmed.popleft()[2], error)
        self._readers.refuse_all(error)
        self._hold(-self._held)

    def _expire(self, now: int) -> None:
        """Answers those whose time is up: a fetch empty-handed, a producer with an unknown outcome."""
        self._readers.on_tick(now)
        leader = self._leader
        if leader is not None and self._producers and len(leader.isr) < self.settings.min_insync:
            self._producers.refuse_commits(self._too_few(leader, outcome_unknown=True))
        if self._producers:
            late = RequestTimedOut(f"{self.name} did not commit the batch in the time asked")
            self._producers.refuse_late(now, late)
        while self._unconfirmed and self._unconfirmed[0][1] <= now:
            _, _, to, _ = self._unconfirmed.popleft()
            self._refuse(
                to,
                NotReady(
                    f"the other replicas do not confirm that this node still leads {self.name}"
                ),
            )

    def _close_when_idle(self) -> None:
        if self.life != "stopping":
            return
        leader = self._leader
        pending = leader is not None and leader.uncommitted
        idle = not (pending or self._producers)
        late = self._stop_by is not None and self._now >= self._stop_by
        if idle or late or self.log.state == "failed":
            self.life = "closing"
            if leader is not None:
                self._refuse_all(ShuttingDown("the node is stopping", outcome_unknown=True))
            self.replica.close()
            self._leader = None
            self._finish()


def folder(topic_id: str, number: int) -> str:
    """Where a partition's log is kept, under the data folder."""
    return f"{TOPICS_FOLDER}/{topic_id}/{number}"
