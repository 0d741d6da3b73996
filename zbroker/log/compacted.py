"""What compaction has done to one copy of a log, as it stands on disk.

Owns the file `compaction`: how far the log is compacted, since when tombstones wait, below which offset some are gone,
and the change of files that is under way, so that a crash at any point of it leaves the old segments or the new one.
A damaged file costs another compaction of everything, and says of every tombstone that it may be gone.
"""

from __future__ import annotations

import contextlib

import msgspec

from zbroker.log import envelope, names
from zbroker.log.checkpoint import Checkpoint, SegmentRow
from zbroker.log.storage import Files

MAGIC = b"ZBCM"
GRAVES_MAX = 16
"""How many compactions are remembered at most for the sake of their tombstones."""


class Grave(msgspec.Struct, array_like=True, frozen=True):
    """The tombstones below an offset had done their work at a time, ms since the epoch: their grace runs from there."""

    below: int
    since: int


class Exchange(msgspec.Struct, array_like=True, frozen=True):
    """Segments that one new segment takes the place of; it has the first one's base, and is flushed under a temporary
    name when this is written down."""

    row: SegmentRow
    sources: list[int]

    def finish(self, files: Files, folder: str) -> None:
        """Puts the new segment in place of the old ones, as far as that is not done yet.

        The order: indexes that know the old files; the new file under its name, which takes the first one's away; the
        others. Whatever a crash leaves, this again makes it whole.
        """
        for base in self.sources:
            _remove(files, names.path(folder, base, names.INDEX))
        path = names.path(folder, self.row.base, names.LOG)
        temporary = path + names.TEMPORARY
        if files.size(temporary) >= 0:
            files.rename(temporary, path)
        for base in self.sources:
            if base != self.row.base:
                _remove(files, names.path(folder, base, names.LOG))
        envelope.flush_folder(files, folder)

    def apply(self, checkpoint: Checkpoint) -> None:
        """Makes a checkpoint from before name the new segment."""
        gone = {*self.sources}
        kept = [row for row in checkpoint.segments if row.base not in gone]
        if len(kept) < len(checkpoint.segments):
            checkpoint.segments = sorted([*kept, self.row], key=lambda row: row.base)


class Compacted(msgspec.Struct, array_like=True):
    """The file's body.

    Attributes:
        point: all below it was compacted here.
        thinned: below it records may be missing that a later one took the place of: by a compaction here, or where this
            was copied from. Whoever cuts the log there takes away the later ones too, and has to begin it anew.
        tombstones: how many were left below `point`; -1: not known.
        graves: since when they wait, in order.
        lost: tombstones below it may be missing here: removed, or missing already where this copy came from.
        source: leader epoch in which this copy was begun anew, from one that lacked tombstones below `lost`; else -1.
        exchange: the change of files under way.
        anew: the offset at which the log is being begun anew; -1: it is not.
    """

    point: int = 0
    thinned: int = 0
    tombstones: int = 0
    graves: list[Grave] = []
    lost: int = 0
    source: int = -1
    exchange: Exchange | None = None
    anew: int = -1

    def removable(self, now: int, grace: int) -> int:
        """The offset below which tombstones have had their grace; at most what is lost already where there are none.

        >>> Compacted(tombstones=1, graves=[Grave(5, 100), Grave(9, 150)]).removable(now=210, grace=100)
        5
        """
        if not self.tombstones:
            return 0
        return max((grave.below for grave in self.graves if now - grave.since >= grace), default=0)

    def done(self, point: int, tombstones: int, now: int) -> Compacted:
        """The same once all below an offset is compacted again."""
        graves = [grave for grave in self.graves if self.lost < grave.below <= point]
        if not graves or graves[-1].below < point:
            graves.append(Grave(point, now))
        if len(graves) > GRAVES_MAX:
            del graves[-2]  # those tombstones wait for the newest
        return msgspec.structs.replace(self, point=point, tombstones=tombstones, graves=graves)

    def encode(self) -> bytes:
        """The file's bytes."""
        return envelope.seal(MAGIC, msgspec.msgpack.encode(self))


_decode = msgspec.msgpack.Decoder(Compacted).decode


def load(files: Files, folder: str) -> Compacted | None:
    """What the file says; as for a log that was never compacted where there is none; None where it is damaged.

    Raises:
        UnsupportedVersion: a newer version of zbroker wrote it.
    """
    path = f"{folder}/{names.COMPACTION}"
    if files.size(path) < 0:
        return Compacted()
    body = envelope.load(files, path, MAGIC)
    if body is None:
        return None
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        return None


def segment_paths(files: Files, folder: str) -> list[tuple[int, str]]:
    """Base offsets and paths of the segments that make up a log offline, also where an exchange was interrupted."""
    bases = names.offsets(files.list(folder), names.LOG)
    known = load(files, folder)
    exchange = None if known is None else known.exchange
    if exchange is None:
        return [(base, names.path(folder, base, names.LOG)) for base in bases]
    new = names.path(folder, exchange.row.base, names.LOG)
    if files.size(new + names.TEMPORARY) >= 0:
        new += names.TEMPORARY
    kept = [base for base in bases if base not in exchange.sources or base == exchange.row.base]
    return [
        (base, new if base == exchange.row.base else names.path(folder, base, names.LOG))
        for base in kept
    ]


def _remove(files: Files, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        files.remove(path)
