"""One partition that this node leads: appends, acknowledges, commits, serves and pushes.

Owns the high watermark and everyone who waits for it to move. Never touches the bytes of a batch but for the leader's
stamp, and never answers before what the answer promises is true.

================ ========================== ================ ===================================================
state            on                         next             effect
================ ========================== ================ ===================================================
opening          log Opened                 beginning        the appointment's epoch is made durable
opening          log Broken                 failed           the node stops
beginning        log EpochBegun             leading          the high watermark is exposed, requests are taken
leading          log AppendFailed           leading          what was not kept is answered `disk_full`
leading          stop                       stopping         new records are refused; what pends is finished
leading          delete                     deleting         everyone who waits is told that the topic is gone
stopping         nothing pends              closing          the log is flushed and closed
deleting         log Closed, nobody reads   deleted          the files go
closing          log Closed, nobody reads   closed
any              log Broken                 failed           everyone who waits is told; the node stops
================ ========================== ================ ===================================================
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from zbroker.broker.limits import Budget, ReadLedger
from zbroker.broker.ports import Conversation, Replier, Report, Transport
from zbroker.broker.readers import Readers
from zbroker.errors import (
    DataFolderError,
    DiskFull,
    InvalidRequest,
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
    EpochBegun,
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
    Buffer,
    check_ingest,
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
from zbroker.topics import TopicSettings

State = Literal[
    "opening",
    "beginning",
    "leading",
    "stopping",
    "closing",
    "closed",
    "deleting",
    "deleted",
    "failed",
]

TOPICS_FOLDER = "topics"
"""Where the topics' logs are, under the data folder."""

RATE_WEIGHT = 0.3
"""How much the latest second counts in the smoothed rates."""


class _Acknowledgement:
    """A producer that waits until all below `offset` is committed (or only written, for acks=leader)."""

    __slots__ = ("deadline", "offset", "reply", "to")

    def __init__(self, to: Conversation, reply: ProduceReply, offset: int, deadline: int) -> None:
        self.to, self.reply, self.offset, self.deadline = to, reply, offset, deadline


def log_settings(settings: TopicSettings) -> LogSettings:
    """What of a topic's settings concerns its logs."""
    return LogSettings(
        fsync=settings.fsync,
        fsync_interval=settings.fsync_interval,
        segment_size=settings.segment_size,
        segment_age=settings.segment_age,
        retention=settings.retention,
        retention_size=settings.retention_size,
    )


class Partition:
    """The leader of one partition."""

    def __init__(
        self,
        *,
        topic_id: str,
        topic: str,
        number: int,
        epoch: int,
        settings: TopicSettings,
        storage: Storage,
        transport: Transport,
        reply: Replier,
        report: Report,
        budget: Budget,
        ledger: ReadLedger,
        fetch_max: int,
    ) -> None:
        self.topic_id = topic_id
        self.topic = topic
        self.number = number
        self.epoch = epoch
        self.settings = settings
        self.state: State = "opening"
        self.high_watermark = 0
        self.error: ZBrokerError | None = None
        self.log = Log(folder(topic_id, number), log_settings(settings), storage)
        self.records_in = 0
        self.bytes_in = 0
        self.records_rate = 0.0
        self.bytes_rate = 0.0
        self._counted = (0, 0)
        self._transport = transport
        self._reply = reply
        self._report = report
        self._budget = budget
        self._subject = subject(topic, number)
        self._head = Push(topic_id=topic_id, partition=number, epoch=epoch)
        self._uncommitted: deque[tuple[int, Buffer]] = deque()
        self._for_commit: deque[_Acknowledgement] = deque()
        self._for_write: deque[_Acknowledgement] = deque()
        self._readers = Readers(self, reply, ledger, fetch_max)

    # Life ---

    def open(self) -> None:
        """Reads the log; the partition takes requests once its epoch is on disk."""
        self.log.open()

    def stop(self) -> None:
        """Takes nothing new, finishes what pends, then closes the log in order."""
        self._readers.release_all()
        if self.state in ("leading", "beginning", "opening"):
            self.state = "stopping"
        self._close_when_idle()

    def delete(self) -> None:
        """The topic is gone: tells everyone who waits, and closes the log so that its files can go."""
        gone = UnknownTopic(f"topic {self.topic!r} was deleted", outcome_unknown=True)
        self._refuse_all(gone)
        opening = self.log.state == "opening"
        self.state = "deleting"
        if self.log.state == "open":
            self.log.close()
        assert opening or self.log.state in ("closing", "closed", "failed"), self.log.state
        self._finish()

    def alter(self, settings: TopicSettings) -> None:
        """The topic's settings changed."""
        self.settings = settings
        self.log.alter(log_settings(settings))

    # Requests: each answers now or later, or raises the error to answer with ---

    def produce(
        self, to: Conversation, request: Produce, batch: Frame, now: int, wall: int
    ) -> None:
        """Checks, stamps and appends one batch; answers when it is as safe as asked."""
        self._check_taking()
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
        header = check_ingest(batch, max_length=self.settings.max_batch)
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
                self._for_commit.append(_Acknowledgement(to, reply, end, deadline))
                self._acknowledge()
                return
        header = self._append(batch, header, wall)
        if request.acks == "none":
            return
        reply = ProduceReply(
            id=to.id, partition=self.number, base_offset=header.base_offset,
            append_time=header.append_time, epoch=self.epoch,
        )  # fmt: skip
        waiting = self._for_commit if request.acks == "all" else self._for_write
        waiting.append(_Acknowledgement(to, reply, header.next_offset, deadline))

    def fetch(self, to: Conversation, request: Fetch, now: int) -> None:
        """Answers with committed batches from the offset on, or waits until there are some."""
        self.check_reading()
        self._readers.fetch(to, request, now, may_wait=self.state == "leading")

    def offsets(self, to: Conversation, request: Offsets) -> None:
        """Answers with the offset of the first record kept, of the next to be committed, or by time."""
        self.check_reading()
        self._readers.offsets(to, request)

    def delete_records(self, to: Conversation, request: DeleteRecords) -> None:
        """Moves the log start up; answers when that is on disk."""
        self._check_taking()
        if request.before > self.high_watermark:
            raise OffsetOutOfRange(
                f"{self.name} holds offsets {self.log.start_offset} to {self.high_watermark - 1}; "
                f"records before {request.before} cannot be deleted yet",
                start=self.log.start_offset, end=self.high_watermark,
            )  # fmt: skip
        self.log.delete_before((to, request), request.before)

    @property
    def name(self) -> str:
        """The partition as a person would call it."""
        return f"partition {self.number} of topic {self.topic!r}"

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

    # Events and time ---

    def on_event(self, completion: Completion, now: int) -> None:
        """A storage request of this partition's log is done."""
        event = self.log.on_event(completion, now)
        if event is not None:
            self._handle(event)
            self._finish()
        if self.state in ("leading", "stopping"):
            self._advance()
            if self.state == "stopping":
                self._close_when_idle()

    def on_tick(self, now: int) -> None:
        """About every 100 ms: deadlines, flushes and checkpoints."""
        if self.log.state == "open":
            self.log.on_tick(now)
        if self.state == "leading":
            self._expire(now)

    def on_second(self, wall: int) -> None:
        """Once a second: retention and rates."""
        if self.state == "leading":
            self.log.retain(self.high_watermark, wall)
        records, size = self.records_in - self._counted[0], self.bytes_in - self._counted[1]
        self._counted = (self.records_in, self.bytes_in)
        self.records_rate += (records - self.records_rate) * RATE_WEIGHT
        self.bytes_rate += (size - self.bytes_rate) * RATE_WEIGHT

    def beacon(self) -> None:
        """Tells subscribers where the partition ends, so that a dropped tail is noticed."""
        if self.state in ("leading", "stopping") and self._transport.wanted(self._subject):
            self._transport.publish(self._subject, self._push_head())

    # Appending and committing ---

    def _append(self, batch: Frame, header: BatchHeader, wall: int) -> BatchHeader:
        """Stamps the batch, in place where its frame allows that, and hands it to the log."""
        log = self.log
        if isinstance(batch, memoryview) and not batch.readonly:
            stamped: bytearray | memoryview = batch
        else:
            stamped = bytearray(batch)
        stamp(
            stamped,
            base_offset=log.end_offset,
            append_time=max(wall, log.last_append_time),
            leader_epoch=self.epoch,
            stamp_attributes=APPEND_TIME if self.settings.timestamp == "append" else 0,
        )
        header = read_header(stamped)
        log.append(stamped, header)
        self._uncommitted.append((header.next_offset, stamped))
        self._budget.used += len(stamped)
        self.records_in += header.span
        self.bytes_in += len(stamped)
        return header

    def _advance(self) -> None:
        """Moves the high watermark to what is durable, pushes what that commits, answers who waited."""
        log = self.log
        durable = log.flushed_offset if self.settings.fsync == "always" else log.written_offset
        if durable > self.high_watermark:
            self.high_watermark = durable
            self._publish()
            self._readers.on_advance()
        if self._for_commit or self._for_write:
            self._acknowledge()

    def _publish(self) -> None:
        wanted = self._transport.wanted(self._subject)
        head = self._push_head() if wanted else None
        uncommitted, high_watermark = self._uncommitted, self.high_watermark
        while uncommitted and uncommitted[0][0] <= high_watermark:
            _, batch = uncommitted.popleft()
            self._budget.used -= len(batch)
            if head is not None:
                self._transport.publish(self._subject, head, batch)

    def _push_head(self) -> Push:
        head = self._head
        head.high_watermark = self.high_watermark
        head.log_start = self.log.start_offset
        return head

    def _acknowledge(self) -> None:
        """Answers every producer whose batch is as safe as it asked."""
        written = self.log.written_offset
        waiting = self._for_write
        while waiting and waiting[0].offset <= written:
            self._answer_produced(waiting.popleft(), flushed=False)
        waiting, high_watermark = self._for_commit, self.high_watermark
        flushed = self.settings.fsync == "always"
        while waiting and waiting[0].offset <= high_watermark:
            self._answer_produced(waiting.popleft(), flushed=flushed)

    def _answer_produced(self, waiter: _Acknowledgement, *, flushed: bool) -> None:
        if flushed or self.log.flushed_offset >= waiter.offset:
            waiter.reply.durability = "flushed"
        self._reply(waiter.to, waiter.reply)

    # What the log reports ---

    def _handle(self, event: object) -> None:
        match event:
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
            case Opened():
                self._opened(event)
            case EpochBegun():
                self.high_watermark = self.log.flushed_offset
                if self.state == "beginning":
                    self.state = "leading"
            case Broken():
                self._broken(event.error)

    def _finish(self) -> None:
        """Ends once the log is closed, and whoever was reading has been answered."""
        if self.log.state == "closed" and not self._readers.reading:
            if self.state == "deleting":
                self.state = "deleted"
            elif self.state == "closing":
                self.state = "closed"

    def _opened(self, event: Opened) -> None:
        if self.log.damaged:
            self._report("damage_found", partition=self.name, ranges=list(self.log.damaged))
        if event.torn_bytes:
            self._report("torn_tail_cut", partition=self.name, bytes=event.torn_bytes)
        if self.state in ("stopping", "deleting"):
            self.log.close()
        else:
            assert self.epoch > self.log.last_epoch, (self.epoch, self.log.last_epoch)
            self.state = "beginning"
            self.log.begin_epoch(self.epoch)

    def _append_failed(self, event: AppendFailed) -> None:
        """Nothing at or above the offset was kept; a full disk is survived, everything else breaks the log."""
        while self._uncommitted and self._uncommitted[-1][0] > event.from_offset:
            _, batch = self._uncommitted.pop()
            self._budget.used -= len(batch)
        for waiting in (self._for_commit, self._for_write):
            for waiter in [waiter for waiter in waiting if waiter.offset > event.from_offset]:
                waiting.remove(waiter)
                self._refuse(waiter.to, event.error)
        self._report("append_failed", partition=self.name, error=str(event.error))

    def _broken(self, error: ZBrokerError) -> None:
        self.error = error
        self.state = "failed"
        self._refuse_all(
            StorageFailed(f"the disk under {self.name} failed: {error}", outcome_unknown=True)
            if not isinstance(error, DataFolderError)
            else error
        )

    # Refusing and expiring ---

    def _check_taking(self) -> None:
        if self.state != "leading":
            self.check_reading()
            raise ShuttingDown(
                "the node is stopping and takes nothing new; another try finds it again"
            )

    def check_reading(self) -> None:
        """That the partition is led here and serves (`NotReady`, `UnknownTopic`, `StorageFailed`, `ShuttingDown`)."""
        if self.state in ("leading", "stopping"):
            return
        if self.state in ("opening", "beginning"):
            raise NotReady(f"{self.name} is being opened; try again in a moment")
        if self.state in ("deleting", "deleted"):
            raise UnknownTopic(f"topic {self.topic!r} was deleted")
        if self.state == "failed":
            raise StorageFailed(f"the disk under {self.name} failed: {self.error}")
        raise ShuttingDown("the node is stopping")

    def _refuse(self, to: Conversation, error: ZBrokerError) -> None:
        self._reply(to, error_reply(error, to.id))

    def _refuse_all(self, error: ZBrokerError) -> None:
        for waiting in (self._for_commit, self._for_write):
            while waiting:
                self._refuse(waiting.popleft().to, error)
        self._readers.refuse_all(error)
        self._budget.used -= sum(len(batch) for _, batch in self._uncommitted)
        self._uncommitted.clear()

    def _expire(self, now: int) -> None:
        """Answers those whose time is up: a fetch empty-handed, a producer with an unknown outcome."""
        self._readers.on_tick(now)
        for waiting in (self._for_commit, self._for_write):
            if any(waiter.deadline <= now for waiter in waiting):
                for waiter in [waiter for waiter in waiting if waiter.deadline <= now]:
                    waiting.remove(waiter)
                    self._refuse(
                        waiter.to,
                        RequestTimedOut(f"{self.name} did not commit the batch in the time asked"),
                    )

    def _close_when_idle(self) -> None:
        idle = not (self._uncommitted or self._for_commit or self._for_write)
        if self.state == "stopping" and idle and self.log.state == "open":
            self.state = "closing"
            self.log.close()


def folder(topic_id: str, number: int) -> str:
    """Where a partition's log is kept, under the data folder."""
    return f"{TOPICS_FOLDER}/{topic_id}/{number}"
