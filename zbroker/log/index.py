"""A segment's sparse index: offset and running maximum timestamp to position.

Owns the entries of one segment, in memory and as bytes. It is a cache of what the segment's headers say: never
trusted further than the header that stands at the position it gives, and rebuilt when missing, corrupt or stale.

Entry i says: a batch that starts at `offsets[i]` stands at `positions[i]`, and all batches before it have
timestamps of at most `timestamps[i]`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right

from zbroker.log import envelope

MAGIC = b"ZBIX"
_BODY = struct.Struct("<qqqqI")


class Index:
    """The sparse index of one segment.

    Attributes:
        base: the segment's base offset.
        covered: bytes of the segment that the index has seen.
        max_timestamp: the latest timestamp in those, -1 where there is none.
    """

    __slots__ = (
        "_interval",
        "_next",
        "base",
        "covered",
        "max_timestamp",
        "offsets",
        "positions",
        "timestamps",
    )

    def __init__(self, base: int, interval: int) -> None:
        self.base = base
        self.covered = 0
        self.max_timestamp = -1
        self.offsets = array("q")
        self.positions = array("q")
        self.timestamps = array("q")
        self._interval = interval
        self._next = 0

    def add(self, offset: int, position: int, size: int, timestamp: int) -> None:
        """Takes note of the batch of `size` bytes at a position; batches come in order."""
        if position >= self._next:
            self.offsets.append(offset)
            self.positions.append(position)
            self.timestamps.append(self.max_timestamp)
            self._next = position + self._interval
        if timestamp > self.max_timestamp:
            self.max_timestamp = timestamp
        self.covered = position + size

    def skip(self, position: int) -> None:
        """What stands before a position is damaged: the batch there gets an entry, so that it is found."""
        self._next = position

    def find(self, offset: int) -> int:
        """A position at or before the batch that holds an offset: where to start looking."""
        at = bisect_right(self.offsets, offset) - 1
        return self.positions[at] if at >= 0 else 0

    def before(self, offset: int) -> tuple[int, int, int]:
        """Where a batch stands that is whole before an offset, its own offset, and the latest timestamp before it.

        The segment's beginning where the index knows of none.
        """
        at = bisect_right(self.offsets, offset) - 2
        if at < 0:
            return 0, self.base, -1
        return self.positions[at], self.offsets[at], self.timestamps[at]

    def find_time(self, timestamp: int) -> int:
        """A position before which all timestamps are earlier than the one asked for."""
        at = bisect_left(self.timestamps, timestamp) - 1
        return self.positions[at] if at >= 0 else 0

    def cut(self, position: int, max_timestamp: int) -> None:
        """Forgets everything from a position on; `max_timestamp` is the maximum before it."""
        keep = bisect_left(self.positions, position)
        del self.offsets[keep:], self.positions[keep:], self.timestamps[keep:]
        self.covered = min(self.covered, position)
        self.max_timestamp = max_timestamp
        self._next = self.positions[-1] + self._interval if self.positions else 0

    def copy(self) -> Index:
        """An index that later additions to this one do not change."""
        other = Index(self.base, self._interval)
        other.covered, other.max_timestamp, other._next = (
            self.covered,
            self.max_timestamp,
            self._next,
        )
        other.offsets, other.positions = self.offsets[:], self.positions[:]
        other.timestamps = self.timestamps[:]
        return other

    def encode(self) -> bytes:
        """The index file's bytes."""
        head = _BODY.pack(
            self.base, self.covered, self.max_timestamp, self._interval, len(self.offsets)
        )
        columns = (self.offsets, self.positions, self.timestamps)
        return envelope.seal(MAGIC, head + b"".join(_little_endian(column) for column in columns))


def decode(body: bytes) -> Index | None:
    """The index in an envelope's body, None where it makes no sense."""
    if len(body) < _BODY.size:
        return None
    base, covered, max_timestamp, interval, count = _BODY.unpack_from(body)
    if len(body) != _BODY.size + 24 * count or covered < 0 or interval < 1:
        return None
    index = Index(base, interval)
    index.covered, index.max_timestamp = covered, max_timestamp
    columns = (index.offsets, index.positions, index.timestamps)
    for number, column in enumerate(columns):
        start = _BODY.size + 8 * count * number
        column.frombytes(body[start : start + 8 * count])
        if sys.byteorder == "big":
            column.byteswap()
    if count:
        index._next = index.positions[-1] + interval
    return index


def _little_endian(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()
