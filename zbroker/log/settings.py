"""A log's settings, as resolved for one partition. Owns the defaults; never reads configuration."""

from __future__ import annotations

from typing import Literal

import msgspec

from zbroker.log.storage import Lane

DAY_MS = 86_400_000


class LogSettings(msgspec.Struct, frozen=True):
    """What a topic's settings mean for one log. Sizes are bytes, times milliseconds.

    Attributes:
        fsync: whether an append counts once it is on disk (`always`), or flushes follow at an interval or never.
        fsync_interval: ms between flushes where `fsync` is `interval`.
        segment_size: a segment is rolled before it grows beyond this.
        segment_age: a segment is rolled once it spans this, by append time; None: never by age.
        retention: segments are removed this long after their last append; None: kept for ever.
        retention_size: bytes that a partition keeps at least, oldest segments removed first; None: no limit.
        index_interval: bytes of log between two sparse index entries.
        checkpoint_interval: ms between recovery checkpoints while much is written.
        producer_expiry: an idle producer is forgotten after this, in append time along the log.
        compact: only the newest record of each key is kept.
        min_dirty: percent of the sealed segments' bytes that are new when a compaction begins.
        tombstone_grace: a tombstone is kept so long after it was first compacted.
        lazy: appends that nobody waits for are written on while flushes are gathered. A power loss may then leave a
            hole in what was not flushed; a log whose holes cannot be filled from elsewhere must not have any.
        lane: `metadata` puts all requests of the log on the metadata log's lane.
    """

    fsync: Literal["always", "interval", "never"] = "always"
    fsync_interval: int = 1000
    segment_size: int = 128 << 20
    segment_age: int | None = 7 * DAY_MS
    retention: int | None = 7 * DAY_MS
    retention_size: int | None = None
    index_interval: int = 16384
    checkpoint_interval: int = 5000
    producer_expiry: int = 7 * DAY_MS
    compact: bool = False
    min_dirty: int = 50
    tombstone_grace: int = DAY_MS
    lazy: bool = True
    lane: Lane = "write"
