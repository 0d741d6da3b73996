"""What each disk of a simulated cluster truly has of each log, as seen by watching the requests that run on it.

Owns a list of batches for each (node, log) and how far it is written and flushed, kept up to date by one look at each
request when it has run: so it shows what is on a disk, whatever the node believes. What a crash left is read from the
files once recovery has mended them. Never changes anything, and judges nothing but what can be seen in one copy.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from zbroker.log import envelope, names
from zbroker.log.epochs import MAGIC, decode
from zbroker.log.recovery import State
from zbroker.log.requests import (
    Cut,
    DeleteFolder,
    Recover,
    Restart,
    Settle,
    Truncate,
    Upkeep,
    Write,
)
from zbroker.log.segment import Bounds, scan
from zbroker.log.storage import Completion, Files
from zbroker.protocol.batch import BatchHeader, Buffer, read_header


class Stored(NamedTuple):
    """What makes a batch the same batch: its place, and a checksum over its header, payload and stamp."""

    base: int
    next: int
    epoch: int
    crc: int
    compacted: bool = False

    def __str__(self) -> str:
        return f"offsets {self.base} to {self.next - 1} of epoch {self.epoch} (checksum {self.crc:08x})"


class Copy:
    """One log on one disk.

    Attributes:
        batches: what is in its files, in order.
        start: log start offset.
        written: all below it is in the files. `flushed`: all below it is on the disk.
        promised: what was flushed when the log was last recovered, which should have found it.
        thinned: below it the copy may be compacted: what stands there is no measure for others.
        epoch: newest leader epoch that the epoch file on the disk has.
        whole: the files are as this says; not so between a power failure or a failed write and the next recovery.
        torn: something was done to it that may take away what was flushed: damage, a failed flush.
        harmed: it was damaged on purpose, and nobody need have noticed yet.
        hole: where, at the last recovery, damage began of which nothing was known to be flushed; -1 where none did.
        changes: rises with each change.
    """

    __slots__ = (
        "batches", "changes", "epoch", "flushed", "folder", "harmed", "hole", "promised", "start", "thinned", "torn",
        "whole",
        "written",
    )  # fmt: skip

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.batches: list[Stored] = []
        self.start = self.written = self.flushed = self.promised = self.thinned = 0
        self.epoch = self.hole = -1
        self.whole = False
        self.torn = False
        self.harmed = False
        self.changes = 0

    def between(self, first: int, end: int) -> list[Stored]:
        """The batches that begin within a range of offsets."""
        at = bisect_left(self.batches, first, key=_base)
        behind = bisect_left(self.batches, end, lo=at, key=_base)
        return self.batches[at:behind]

    @property
    def comparable(self) -> int:
        """From where on it has every batch as it was written."""
        return max(self.start, self.thinned)

    def cut(self, end: int) -> None:
        """Nothing from an offset on."""
        while self.batches and self.batches[-1].next > end:
            self.batches.pop()
        self.written = min(self.written, end)
        self.flushed = min(self.flushed, end)
        self.hole = self.hole if self.hole < end else -1


def _base(batch: Stored) -> int:
    return batch.base


class Copies:
    """All logs on one disk."""

    def __init__(self, files: Files) -> None:
        self.by_folder: dict[str, Copy] = {}
        self._files = files

    def of(self, folder: str) -> Copy:
        """A log's copy; an empty one where it was never opened."""
        found = self.by_folder.get(folder)
        if found is None:
            found = self.by_folder[folder] = Copy(folder)
        return found

    def lose_power(self) -> None:
        """What was not flushed may be gone: until recovery, only what was flushed is certain."""
        for copy in self.by_folder.values():
            copy.cut(copy.flushed)
            copy.whole = False
            copy.changes += 1

    # Watching ---

    def observe(self, done: Completion) -> tuple[Copy, list[Stored], int]:
        """Takes in a request that has run.

        Returns:
            The copy that it was about, the batches that joined its end, and where it was cut (-1: it was not).
        """
        request = done.request
        copy = self.of(request.owner)
        added: list[Stored] = []
        cut = -1
        if isinstance(request, Recover):
            if done.error is None:
                added = self._recovered(copy, done.result)
        elif done.error is not None:
            if isinstance(request, Write | Truncate | Restart | Upkeep):
                self._failed(copy, done)
        elif isinstance(request, Write):
            added = self._write(copy, request)
        elif isinstance(request, Truncate | Restart):
            cut = self._cut(copy, done.result)
        elif isinstance(request, Upkeep):
            self._upkeep(copy, request)
        elif isinstance(request, Settle):
            copy.thinned = request.state.thinned
        elif isinstance(request, DeleteFolder):
            self.by_folder.pop(request.owner, None)
        return copy, added, cut

    def _write(self, copy: Copy, request: Write) -> list[Stored]:
        if request.epochs is not None:
            copy.epoch = _last_epoch(request.epochs)
        added = [stored(read_header(buffer)) for buffer in request.buffers]
        if added:
            # Only a batch that is marked as compacted may leave a gap before it.
            assert added[0].base == copy.written or added[0].compacted or not copy.batches, (
                copy.folder,
                copy.written,
                added[0],
            )
            copy.batches += added
            copy.written = added[-1].next
            if request.flush:
                copy.flushed = copy.written
        copy.changes += 1
        return added

    def _cut(self, copy: Copy, result: Cut) -> int:
        copy.cut(result.end)
        if result.compacted is not None:
            copy.batches.clear()
            copy.start = result.end
            copy.thinned = result.compacted.thinned
        copy.written = copy.flushed = result.end
        copy.epoch = result.epochs.last_epoch
        copy.changes += 1
        return result.end

    def _upkeep(self, copy: Copy, request: Upkeep) -> None:
        copy.flushed = max(copy.flushed, min(request.offset, copy.written))
        checkpoint = request.checkpoint
        if checkpoint is not None and checkpoint.start > copy.start:
            copy.start = checkpoint.start
        if request.segments and checkpoint is not None:
            first = checkpoint.segments[0].base if checkpoint.segments else copy.start
            del copy.batches[: bisect_left(copy.batches, first, key=_base)]
        if request.compacted is not None:
            copy.thinned = request.compacted.thinned
            copy.batches = [
                batch for batch in self._read(copy.folder) if batch.next <= copy.written
            ]
        copy.changes += 1

    def _failed(self, copy: Copy, done: Completion) -> None:
        """A full disk leaves everything as it was; after any other error nothing is certain."""
        if getattr(done.error, "code", "") != "disk_full":
            copy.whole = False
            copy.torn = True
            copy.changes += 1

    def _recovered(self, copy: Copy, found: State) -> list[Stored]:
        copy.promised = 0 if copy.torn else copy.flushed
        copy.torn = False
        copy.batches = self._read(copy.folder)
        copy.start, copy.written, copy.flushed = found.start, found.end, found.end
        copy.epoch = found.epochs.last_epoch
        copy.hole = found.unflushed
        copy.thinned = found.compacted.thinned
        copy.whole = True
        copy.changes += 1
        return copy.batches

    def _read(self, folder: str) -> list[Stored]:
        found: list[Stored] = []
        files = self._files
        for base in names.offsets(files.list(folder), names.LOG):
            path = names.path(folder, base, names.LOG)
            for item in scan(files, path, 0, files.size(path), Bounds(base), payloads=False):
                if isinstance(item, tuple):
                    found.append(stored(item[1]))
        return found


def stored(header: BatchHeader) -> Stored:
    """A batch's identity, by its header as stamped."""
    return Stored(
        header.base_offset, header.next_offset, header.leader_epoch, header.header_crc, header.is_compacted
    )  # fmt: skip


def _last_epoch(data: Buffer) -> int:
    body = envelope.unseal(MAGIC, bytes(data), names.EPOCHS)
    table = None if body is None else decode(body)
    return -1 if table is None else table.last_epoch
