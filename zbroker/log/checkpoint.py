"""The recovery checkpoint: what an opening may take on trust.

Owns the checkpoint file: all below `offset` was on disk, in these segments, the last of them up to `position`; the
log starts at `start`; and whether the log was closed in order. Lost or damaged, a checkpoint costs a full scan and
nothing else, but for offsets that were deleted inside the first segment, which are back.
"""

from __future__ import annotations

import msgspec

from zbroker.log import envelope, names
from zbroker.log.storage import Files

MAGIC = b"ZBCP"


class SegmentRow(msgspec.Struct, array_like=True, gc=False):
    """What the checkpoint knows of one segment; for the last one, up to the checkpoint's position."""

    base: int
    size: int
    last_append_time: int
    max_timestamp: int


class Checkpoint(msgspec.Struct, array_like=True):
    """The checkpoint's body.

    Attributes:
        clean: the log was closed in order, and nothing stands behind `offset`.
        start: log start offset.
        offset: all below it was on disk when this was written.
        last_append_time: append time of the last batch before `offset`.
        snapshot: offset of the producer snapshot that describes the state at `offset`, -1 for an empty state.
        segments: in order; empty for a log without segments.
        damaged: ranges of offsets that are known to be unreadable.
        unflushed: what is damaged from this offset on had never been known to be on disk; -1 where there is none such.
    """

    clean: bool
    start: int
    offset: int
    last_append_time: int
    snapshot: int
    segments: list[SegmentRow]
    damaged: list[tuple[int, int]]
    unflushed: int = -1

    def save(self, files: Files, folder: str) -> None:
        """Replaces the checkpoint file, durably (`envelope.save`)."""
        body = msgspec.msgpack.encode(self)
        envelope.save(files, folder, names.CHECKPOINT, envelope.seal(MAGIC, body))


_decode = msgspec.msgpack.Decoder(Checkpoint).decode


def load(files: Files, folder: str) -> Checkpoint | None:
    """The checkpoint, or None where it is missing or damaged.

    Raises:
        UnsupportedVersion: a newer version of zbroker wrote it.
    """
    body = envelope.load(files, f"{folder}/{names.CHECKPOINT}", MAGIC)
    if body is None:
        return None
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        return None
