"""One node's snapshots of the metadata: when one is made, what of the log goes then, how a leader's takes its place.

Owns the two files and the order of the steps on which durability hangs: the log's prefix goes only once the snapshot
that has it is on disk, and a log is discarded for a leader's snapshot only once that is on disk. Never looks into the
state, and never says what is committed: its owner hands it what is applied.

========== ======================================= ========== =======================================================
state      on                                      next       effect
========== ======================================= ========== =======================================================
loading    the files are read, the log is open     idle       the state from which the log is read on
loading    the same, and there is an incoming one  clearing   what a crash has interrupted goes on
idle       much was applied since the last one     saving     the state is written
saving     it is on disk                           idle       the log's start moves up to it
saving     the disk is full                        idle       the old one stays; tried again after as much again
idle       a leader's snapshot is complete         incoming   written beside the old one
incoming   it is on disk                           clearing   the log is cut down to its start
incoming   it is on disk, and the log has all that adopting   the log stays
           it has, the last record's epoch too
incoming   the disk is full                        idle       the leader will ask again
clearing   log Truncated                           restarting the log begins anew at the snapshot's offset
restarting log Truncated                           adopting   the incoming one takes the old one's name
adopting   that is on disk                         idle       `installed` is told
========== ======================================= ========== =======================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from zbroker.cluster import snapshot
from zbroker.cluster.metadata import Metadata
from zbroker.cluster.snapshot import AdoptSnapshot, Found, Kept, LoadSnapshot, SaveSnapshot
from zbroker.errors import DataFolderError, DiskFull, ZBrokerError
from zbroker.log.events import Event, Truncated
from zbroker.log.log import Log
from zbroker.log.storage import Completion, Storage

State = Literal["loading", "idle", "saving", "incoming", "clearing", "restarting", "adopting"]


class SnapshotSettings(msgspec.Struct, frozen=True):
    """How much is applied from the log before it is written as a snapshot: what a start has to read at most.

    Attributes:
        bytes_max: of batches.
        batches_max: how many.
        segment_bytes: the size of a segment of the log, whose prefix goes a segment at a time.
    """

    bytes_max: int = 4 << 20
    batches_max: int = 10_000
    segment_bytes: int = 1 << 20


class Snapshots:
    """One node's. See the module for its states.

    Attributes:
        offset: all below it is in the snapshot on disk; 0 where there is none. `epoch`: of the record before it.
        loaded: what the disk had is known.
    """

    def __init__(
        self,
        log: Log,
        storage: Storage,
        settings: SnapshotSettings,
        *,
        installed: Callable[[Kept], None],
    ) -> None:
        """
        Args:
            installed: told of a leader's snapshot, once the log here begins where it ends.
        """
        self.state: State = "loading"
        self.offset = 0
        self.epoch = -1
        self.loaded = False
        self._log = log
        self._storage = storage
        self._settings = settings
        self._installed = installed
        self._found: Found | None = None
        self._incoming: Kept | None = None
        self._bytes = self._batches = 0
        self._waits_for_room = False

    @property
    def installing(self) -> bool:
        """Whether the log is being discarded, or is about to be: this node can neither vote nor follow."""
        return self.state in ("incoming", "clearing", "restarting", "adopting")

    # Life ---

    def open(self) -> None:
        """Reads what the disk has."""
        self._storage.submit(LoadSnapshot(owner=self._log.folder, lane="metadata"))

    def begin(self) -> Kept | None:
        """The state from which the log is read on, None where the log has everything; the log is open by now.

        Raises:
            DataFolderError: neither the snapshot nor the log has everything: this node cannot go on.
        """
        found, log = self._found, self._log
        assert found is not None
        self._found = None
        if found.incoming is not None:
            self._incoming = found.incoming
            self._clear()
            return None
        self.state = "idle"
        kept = found.kept
        begins = 0 if kept is None else kept.offset
        if not log.start_offset <= begins <= log.end_offset:
            what = "is damaged" if found.damaged else f"ends at {begins}"
            raise DataFolderError(
                f"the metadata's snapshot {what}, and the log here has {log.start_offset} to {log.end_offset}: what "
                "this node has promised to keep is lost; start it on an empty folder, and replace the voter if it "
                "was one"
            )
        if kept is not None:
            self.offset, self.epoch = kept.offset, kept.epoch
            log.know_epoch(kept.offset - 1, kept.epoch)
        elif found.damaged:
            # The log has everything: the snapshot is written anew as soon as can be.
            self._bytes = self._settings.bytes_max
        return kept

    def epoch_before(self, offset: int) -> int:
        """The epoch of the record before an offset that is not below the snapshot's."""
        return self.epoch if offset <= self.offset else self._log.epoch_at(offset - 1)

    # Making one ---

    def applied(self, size: int) -> None:
        """A batch of so many bytes was applied."""
        self._bytes += size
        self._batches += 1

    def save_if_due(self, metadata: Metadata, applied: int) -> None:
        """Writes the state, where much was applied since the last time and this node's own disk has all of it."""
        settings = self._settings
        due = self._bytes >= settings.bytes_max or self._batches >= settings.batches_max
        if not due or self.state != "idle" or not self.offset < applied <= self._log.flushed_offset:
            return
        self.state = "saving"
        self._bytes = self._batches = 0
        epoch = self.epoch_before(applied)
        data = snapshot.seal(metadata, applied, epoch)
        self._save(snapshot.NAME, data, applied, epoch)

    # Taking a leader's ---

    def install(self, kept: Kept, data: bytes) -> None:
        """Begins to discard the log for a leader's snapshot, which has more than is applied here.

        Args:
            kept: what is in it.
            data: its bytes.
        """
        assert self.state == "idle", self.state
        self.state = "incoming"
        self._incoming = kept
        self._save(snapshot.INCOMING, data, kept.offset, kept.epoch)

    def _clear(self) -> None:
        """The first step of discarding: nothing is left of the log that reaches beyond where it will begin."""
        log, incoming = self._log, self._incoming
        assert incoming is not None
        offset = incoming.offset
        if log.start_offset <= offset <= log.end_offset and (
            log.epoch_at(offset - 1) == incoming.epoch or log.start_offset == log.end_offset
        ):
            self._adopt()
        elif log.end_offset > log.start_offset:
            self.state = "clearing"
            log.truncate(self, log.start_offset)
        else:
            self._restart()

    def _restart(self) -> None:
        assert self._incoming is not None
        self.state = "restarting"
        self._log.restart(self, self._incoming.offset, self._incoming.epoch)

    def _adopt(self) -> None:
        self.state = "adopting"
        self._storage.submit(AdoptSnapshot(owner=self._log.folder, lane="metadata"))

    # Events ---

    def on_event(self, completion: Completion) -> OSError | ZBrokerError | None:
        """A request is done; an error that nothing helps against is returned."""
        request, error = completion.request, completion.error
        if isinstance(request, SaveSnapshot) and isinstance(error, DiskFull):
            self.state = "idle"
            self._incoming = None
            return None
        if error is not None:
            return error
        if isinstance(request, LoadSnapshot):
            self.loaded = True
            self._found = completion.result
        elif isinstance(request, AdoptSnapshot):
            kept = self._incoming
            assert kept is not None
            self.state = "idle"
            self._incoming = None
            self._bytes = self._batches = 0
            self.offset, self.epoch = kept.offset, kept.epoch
            self._log.know_epoch(kept.offset - 1, kept.epoch)
            self._move_start()
            self._installed(kept)
        elif isinstance(request, SaveSnapshot) and self.state == "saving":
            self.state = "idle"
            self.offset, self.epoch = request.offset, request.epoch
            self._move_start()
        elif self._log.state == "open":
            self._clear()
        return None

    def on_log_event(self, event: Event | None) -> None:
        """The log has done something."""
        if not isinstance(event, Truncated) or event.token is not self:
            return
        if event.error is not None:
            self._waits_for_room = True
        elif self._log.state != "open":
            return  # the node stops; what was on its way is found by the next start
        elif self.state == "clearing":
            self._clear()
        else:
            self._adopt()

    def on_tick(self) -> None:
        """About every 100 ms: what a full disk stopped is tried again."""
        if self._waits_for_room and self._log.state == "open":
            self._waits_for_room = False
            self._clear()

    # Within ---

    def _save(self, name: str, data: bytes, offset: int, epoch: int) -> None:
        self._storage.submit(
            SaveSnapshot(
                owner=self._log.folder, lane="metadata", name=name, data=data, offset=offset, epoch=epoch
            )
        )  # fmt: skip

    def _move_start(self) -> None:
        if self._log.state == "open" and self.offset > self._log.start_offset:
            self._log.delete_before(self, self.offset)
