"""Those who read one partition: fetches, fetches that wait for a record, and searches by time.

Owns who waits at the partition's end. Never serves anything at or above the high watermark, nor anything for a position
whose record was replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zbroker.broker.limits import ReadLedger
from zbroker.broker.ports import Conversation, Replier
from zbroker.errors import Diverged, OffsetOutOfRange, StaleEpoch, ZBrokerError
from zbroker.log.events import Found, ReadDone
from zbroker.protocol.batch import Buffer
from zbroker.protocol.frames import error_reply
from zbroker.protocol.messages import Fetch, FetchReply, Offsets, OffsetsReply

if TYPE_CHECKING:
    from zbroker.broker.partition import Partition


class Readers:
    """The readers of a partition that is led here."""

    def __init__(
        self, partition: Partition, reply: Replier, ledger: ReadLedger, fetch_max: int
    ) -> None:
        self._partition = partition
        self._reply = reply
        self._ledger = ledger
        self._fetch_max = fetch_max
        self._waiting: list[tuple[int, Conversation, Fetch]] = []
        """Fetches at the partition's end, with their deadlines."""
        self.reading = 0
        """Reads and searches that the log has yet to answer: the partition stays for them."""

    @property
    def waiting(self) -> bool:
        """Whether anybody waits for a record."""
        return bool(self._waiting)

    # Requests ---

    def fetch(self, to: Conversation, request: Fetch, now: int, *, may_wait: bool) -> None:
        """Answers with what is committed from the offset on, or waits for a record.

        Raises:
            OffsetOutOfRange, Diverged, StaleEpoch: with a sentence that says what is there.
        """
        self._check_position(request.offset, request.epoch)
        if request.offset < self._partition.high_watermark:
            self._read(to, request)
        elif request.wait and may_wait:
            self._waiting.append((now + request.wait, to, request))
        else:
            self._answer_empty(to, request)

    def offsets(self, to: Conversation, request: Offsets) -> None:
        """Answers with an offset by its meaning."""
        partition = self._partition
        if request.at == "time":
            self.reading += 1
            partition.log.find_time((to, request), request.time, partition.high_watermark)
        elif request.at == "earliest":
            self._answer_offset(to, partition.log.start_offset, -1)
        else:
            self._answer_offset(to, partition.high_watermark, -1)

    # Events and time ---

    def on_advance(self) -> None:
        """The high watermark moved: those who waited for a record get it."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for deadline, to, request in waiting:
                if request.offset < self._partition.high_watermark:
                    self._read_late(to, request)
                else:
                    self._waiting.append((deadline, to, request))

    def on_tick(self, now: int) -> None:
        """Those whose time is up are answered without a record."""
        if any(deadline <= now for deadline, _, _ in self._waiting):
            due = [waiter for waiter in self._waiting if waiter[0] <= now]
            self._waiting = [waiter for waiter in self._waiting if waiter[0] > now]
            for _, to, request in due:
                self._answer_empty(to, request)

    def release_all(self) -> None:
        """Answers everyone who waits, without a record: the node is stopping."""
        waiting, self._waiting = self._waiting, []
        for _, to, request in waiting:
            self._answer_empty(to, request)

    def refuse_all(self, error: ZBrokerError) -> None:
        """Answers everyone who waits with an error."""
        waiting, self._waiting = self._waiting, []
        for _, to, _ in waiting:
            self._refuse(to, error)

    def read_done(self, event: ReadDone) -> None:
        """The log has read a chunk for somebody."""
        self.reading -= 1
        to, request = event.token
        if event.error is not None:
            self._refuse(to, event.error)
        else:
            self._answer_chunk(to, event.base, event.next, event.chunk)
        self._ledger.done(to.client, request.max_bytes)

    def found(self, event: Found) -> None:
        """The log has found an offset by its time for somebody."""
        self.reading -= 1
        to, _ = event.token
        if event.error is not None:
            self._refuse(to, event.error)
        else:
            self._answer_offset(to, event.offset, event.timestamp)

    # Within ---

    def _check_position(self, offset: int, epoch: int) -> None:
        """That the log has, or will have next, the offset, and that what the reader read before it still stands."""
        partition = self._partition
        log, high_watermark = partition.log, partition.high_watermark
        if epoch >= 0 and offset > log.start_offset:
            self._check_epoch(offset, epoch)
        if not log.start_offset <= offset <= log.end_offset:
            if high_watermark > log.start_offset:
                there = f"holds offsets {log.start_offset} to {high_watermark - 1}"
            else:
                there = f"is empty and begins at offset {log.start_offset}"
            raise OffsetOutOfRange(
                f"{partition.name} {there}; offset {offset} is not there",
                start=log.start_offset,
                end=high_watermark,
            )

    def _check_epoch(self, offset: int, epoch: int) -> None:
        """That the record before the offset is of the epoch still: asked first, for another history has another end."""
        partition = self._partition
        log = partition.log
        if epoch > partition.epoch:
            raise StaleEpoch(
                f"{partition.name} is at leader epoch {partition.epoch} here, and the reader has "
                f"seen {epoch}"
            )
        found, end = log.end_of_epoch(epoch)
        if found != epoch or offset > end:
            raise Diverged(
                f"the record before offset {offset} of {partition.name} is not of epoch {epoch} any "
                f"more: that history ends with epoch {found} at offset {min(end, offset)}",
                epoch=found,
                end=min(end, offset),
            )

    def _read(self, to: Conversation, request: Fetch) -> None:
        size = request.max_bytes = max(1, min(request.max_bytes, self._fetch_max))
        self._ledger.ask(to.client, size, lambda: self._start_reading(to, request))

    def _start_reading(self, to: Conversation, request: Fetch) -> None:
        partition = self._partition
        try:
            partition.check_reading()  # its turn may have come late
        except ZBrokerError as error:
            self._refuse(to, error)
            self._ledger.done(to.client, request.max_bytes)
            return
        self.reading += 1
        token, limit = (to, request), partition.high_watermark
        partition.log.read(token, request.offset, request.max_bytes, limit)

    def _read_late(self, to: Conversation, request: Fetch) -> None:
        """Reads for somebody who waited: the log may have moved on from under the position."""
        try:
            self._check_position(request.offset, request.epoch)
            self._read(to, request)
        except ZBrokerError as error:
            self._refuse(to, error)

    def _answer_empty(self, to: Conversation, request: Fetch) -> None:
        self._answer_chunk(to, request.offset, request.offset, b"")

    def _answer_chunk(self, to: Conversation, base: int, following: int, chunk: Buffer) -> None:
        partition = self._partition
        log = partition.log
        reply = FetchReply(
            id=to.id,
            topic_id=partition.topic_id,
            partition=partition.number,
            epoch=partition.epoch,
            base=base,
            next=following,
            next_epoch=log.epoch_at(following - 1) if following > log.start_offset else -1,
            high_watermark=partition.high_watermark,
            log_start=log.start_offset,
        )
        self._reply(to, reply, chunk)

    def _answer_offset(self, to: Conversation, offset: int, timestamp: int) -> None:
        partition = self._partition
        log = partition.log
        reply = OffsetsReply(
            id=to.id,
            topic_id=partition.topic_id,
            partition=partition.number,
            offset=offset,
            timestamp=timestamp,
            epoch=log.epoch_at(offset - 1) if offset > log.start_offset else -1,
            leader_epoch=partition.epoch,
            high_watermark=partition.high_watermark,
            log_start=log.start_offset,
        )
        self._reply(to, reply)

    def _refuse(self, to: Conversation, error: ZBrokerError) -> None:
        self._reply(to, error_reply(error, to.id))
