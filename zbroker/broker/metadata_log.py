"""The metadata log as one node keeps it: replays it at start, appends what the controller decides, commits.

Owns the `Metadata` state and its log. The state is applied at append, so that the next decision sees the last; what
was decided takes effect outside, and is answered, only once it is committed. So far a single voter commits what its
own disk has flushed.

=========== =============== ============ =================================================================
state       on              next         effect
=========== =============== ============ =================================================================
opening     log Opened      replaying    reads the log from its start, chunk by chunk
replaying   log ReadDone    replaying    applies the records; at the end a new epoch is begun
replaying   log EpochBegun  ready        decisions are taken
ready       log AppendFailed replaying   what was not kept is answered; the state is built anew from the log
ready       stop            closing      the log is flushed and closed
closing     log Closed      closed
any         log Broken      failed       the node stops
=========== =============== ============ =================================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from zbroker.cluster.metadata import Metadata
from zbroker.cluster.records import MetadataRecord, TopicDeleted, decode, encode
from zbroker.errors import NotReady, StorageFailed, ZBrokerError
from zbroker.log.events import AppendFailed, Broken, Closed, EpochBegun, Opened, ReadDone
from zbroker.log.log import Log
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Completion, Storage
from zbroker.protocol.batch import decode_records, encode_batch, iter_batches, read_header, stamp

FOLDER = "metadata"
READ_BYTES = 1 << 20

State = Literal["opening", "replaying", "ready", "closing", "closed", "failed"]
OnCommit = Callable[[ZBrokerError | None], None]


class MetadataLog:
    """The metadata partition of a cluster with one voter."""

    def __init__(self, storage: Storage) -> None:
        settings = LogSettings(
            fsync="always", retention=None, retention_size=None, segment_age=None, lane="metadata"
        )
        self.log = Log(FOLDER, settings, storage)
        self.metadata = Metadata()
        self.state: State = "opening"
        self.error: ZBrokerError | None = None
        self.committed = -1
        """Offset of the last committed record: the version of the metadata."""
        self.deleted: list[str] = []
        """Ids of the topics whose deletion the replay met: their files may still be there."""
        self._replayed = 0
        self._waiting: deque[tuple[int, OnCommit]] = deque()

    def open(self) -> None:
        """Reads the log and builds the state from it."""
        self.log.open()

    def close(self) -> None:
        """Flushes and closes the log."""
        if self.log.state == "open":
            self.state = "closing"
            self.log.close()

    def propose(self, records: Sequence[MetadataRecord], on_commit: OnCommit, wall: int) -> None:
        """Appends a decision as one atomic batch; `on_commit` is told when it is committed, or why not.

        A decision without records is answered once everything before it is committed.
        """
        if self.state != "ready":
            raise NotReady("the metadata log is being read; try again in a moment")
        if records:
            log = self.log
            batch = encode_batch(
                [(0, None, encode(record), ()) for record in records],
                base_timestamp=wall,
                max_timestamp=wall,
            )
            stamp(
                batch,
                base_offset=log.end_offset,
                append_time=max(wall, log.last_append_time),
                leader_epoch=log.last_epoch,
            )
            log.append(batch, read_header(batch))
            for record in records:
                self.metadata.apply(record)
        self._waiting.append((self.log.end_offset, on_commit))
        self._commit()

    def on_event(self, completion: Completion, now: int) -> None:
        """A storage request of the metadata log is done."""
        match self.log.on_event(completion, now):
            case Opened():
                self.state = "replaying"
                self._replayed = self.log.start_offset
                self._replay()
            case ReadDone() as read:
                self._read_done(read)
            case EpochBegun():
                if self.state == "replaying":
                    self.committed = self.log.flushed_offset - 1
                    self.state = "ready"
            case AppendFailed() as failed:
                self._append_failed(failed.error)
            case Closed():
                self.state = "closed"
            case Broken() as broken:
                self._fail(broken.error)
        if self.state == "ready":
            self._commit()

    def on_tick(self, now: int) -> None:
        """Checkpoints, and a look for room on a full disk."""
        if self.log.state == "open":
            self.log.on_tick(now)

    def _commit(self) -> None:
        flushed = self.log.flushed_offset
        self.committed = max(self.committed, flushed - 1)
        while self._waiting and self._waiting[0][0] <= flushed:
            self._waiting.popleft()[1](None)

    def _replay(self) -> None:
        """Asks for the next chunk, or begins an epoch of this start where all is read."""
        if self._replayed < self.log.flushed_offset:
            self.log.read(None, self._replayed, READ_BYTES, self.log.flushed_offset)
        else:
            self.log.begin_epoch(self.log.last_epoch + 1)

    def _read_done(self, read: ReadDone) -> None:
        if read.error is not None:
            self._fail(read.error)
            return
        try:
            for at, header in iter_batches(read.chunk):
                if header.base_offset < self._replayed:
                    continue
                if not header.is_control:
                    for record in decode_records(read.chunk, at, header):
                        if record is not None:
                            self._apply(decode(record[2]))
                self._replayed = header.next_offset
        except ZBrokerError as error:
            self._fail(error)
            return
        assert self._replayed >= read.next, (self._replayed, read.next)
        self._replay()

    def _apply(self, record: MetadataRecord) -> None:
        self.metadata.apply(record)
        if isinstance(record, TopicDeleted):
            self.deleted.append(record.topic_id)

    def _append_failed(self, error: ZBrokerError) -> None:
        """What was applied at append and then not kept must go: the state is built anew from the log."""
        waiting, self._waiting = self._waiting, deque()
        for _, on_commit in waiting:
            on_commit(error)
        self.metadata = Metadata()
        self.deleted = []
        self.state = "replaying"
        self._replayed = self.log.start_offset
        self._replay()

    def _fail(self, error: ZBrokerError) -> None:
        self.state = "failed"
        self.error = error
        waiting, self._waiting = self._waiting, deque()
        for _, on_commit in waiting:
            on_commit(StorageFailed(f"the metadata log failed: {error}"))
