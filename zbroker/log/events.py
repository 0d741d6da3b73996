"""What a log tells its owner, one event for what it was asked. Owns nothing but these words.

After every completion, with an event or without, the owner looks at the log's offsets: what was written and what
was flushed moves without events.
"""

from __future__ import annotations

from typing import Any

import msgspec

from zbroker.errors import ZBrokerError
from zbroker.protocol.batch import Buffer


class Opened(msgspec.Struct):
    """The log is open.

    Attributes:
        clean: it had been closed in order; a new log counts as clean.
        torn_bytes: bytes of a torn tail that were cut off.
        scanned_bytes: how much had to be read to find the end.
    """

    clean: bool = True
    torn_bytes: int = 0
    scanned_bytes: int = 0


class Broken(msgspec.Struct):
    """The log has failed for good: a flush failed, or it is of a newer version. The node stops, or drops it."""

    error: ZBrokerError


class AppendFailed(msgspec.Struct):
    """The disk is full: no batch at `from_offset` or later was kept, and `end_offset` is back there."""

    from_offset: int
    error: ZBrokerError


class EpochBegun(msgspec.Struct):
    """The epoch's entry is on disk."""

    epoch: int


class ReadDone(msgspec.Struct):
    """Batches back to back: offsets `base` to `next`; with an error, nothing."""

    token: Any
    base: int
    next: int
    chunk: Buffer
    error: ZBrokerError | None = None


class Found(msgspec.Struct):
    """The first record at or after the time; (limit, -1) where there is none."""

    token: Any
    offset: int
    timestamp: int
    error: ZBrokerError | None = None


class StartMoved(msgspec.Struct):
    """The log start offset is on disk."""

    token: Any
    start_offset: int
    error: ZBrokerError | None = None


class Truncated(msgspec.Struct):
    """The log ends at `end_offset`, on disk."""

    token: Any
    end_offset: int
    error: ZBrokerError | None = None


class CompactionDone(msgspec.Struct):
    """The log is compacted up to `point`, on disk.

    Attributes:
        read, written: bytes of segments gone through, and of the new ones.
        removed: records that are gone. `tombstones`: how many wait for the end of their grace.
    """

    point: int
    read: int
    written: int
    removed: int
    tombstones: int


class Closed(msgspec.Struct):
    """The log is closed; `clean` says whether the next opening can take everything on trust."""

    clean: bool = True


Event = (
    Opened
    | Broken
    | AppendFailed
    | EpochBegun
    | ReadDone
    | Found
    | StartMoved
    | Truncated
    | CompactionDone
    | Closed
)
