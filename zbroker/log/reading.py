"""Reading: whole, verified batches from an offset on, and the first record at or after a time.

Owns what a reader may be given: every batch's both CRCs hold and its offset continues, or it is not served. Works
from positions that an index gives, and believes the headers, never the index. Runs inside requests on the read
lane, beside writes; what it must not see is bounded by the sizes and limits that the log put into the request.
"""

from __future__ import annotations

from typing import Any

import msgspec

from zbroker.errors import (
    DataDamaged,
    InvalidRecord,
    UnsupportedAttribute,
    ZBrokerError,
)
from zbroker.log import names
from zbroker.log.index import Index
from zbroker.log.rebuild import build_index, index_until
from zbroker.log.segment import Bounds, Gap, Segment, header_at, read_leniently, scan
from zbroker.log.storage import Files, Request
from zbroker.protocol.batch import (
    APPEND_TIME,
    HEADER_SIZE,
    BatchHeader,
    Buffer,
    decode_records,
    payload_intact,
)

_LOOKAHEAD = 4096
VIEW_MIN = 64 << 10
"""Bytes from which on a part of what was read is not copied out of it."""


class Place(msgspec.Struct):
    """A segment as a reader may see it: `size` bytes of it, offsets below `end`.

    Attributes:
        position: where to start looking; -1: the segment's index on disk is to say.
        follows: the batch there is the next one behind those that were read before.
    """

    base: int
    size: int
    end: int
    position: int = -1
    follows: bool = False


class Span(msgspec.Struct):
    """What a read found: `chunk` holds the batches from `base` to `next`, which end at `position` in the file.

    Where compaction left a gap at the offset that was asked for, that is `base`.
    """

    chunk: Buffer
    base: int
    next: int
    position: int
    index: Index | None = None


class Read(Request):
    """Reads batches from one segment (`Log.read`)."""

    token: Any
    place: Place | None
    offset: int
    limit: int
    max_bytes: int
    interval: int
    generation: int
    refusal: ZBrokerError | None = None

    def run(self, files: Files) -> Span:
        """The span, or what was refused when the request was made."""
        if self.refusal is not None:
            raise self.refusal
        if self.place is None:
            return Span(b"", self.offset, self.offset, -1)
        path = names.path(self.owner, self.place.base, names.LOG)
        index = None
        position = self.place.position
        if position < 0:
            index = _index(files, self.owner, self.place, self.interval)
            position = index.find(self.offset)
        span = self._read(files, path, position)
        if span is None:
            # The index led astray, or there is damage between its entry and the offset: one that is built now has
            # an entry behind each damage, so that the second try fails only at the damage itself.
            index = build_index(files, self.owner, self.place.base, self.place.size, self.interval)
            span = self._read(files, path, index.find(self.offset))
            if span is None:
                raise self._damage(files, path)
        span.index = index
        return span

    def _read(self, files: Files, path: str, start: int) -> Span | None:
        """Batches from the one that holds the offset on; None where it is not found from `start` on."""
        place = self.place
        assert place is not None
        ahead = _LOOKAHEAD if start == place.position else self.interval + _LOOKAHEAD
        data = _read_up_to(files, path, place, start, self.max_bytes + ahead)
        # What an index says may be wrong; behind the segment's beginning, or what was read before, nothing is missed.
        exact, at = not start or (place.follows and start == place.position), 0
        bounds = Bounds(self.offset if start else place.base, limit=place.end)
        bounds.offset = bounds.offset if exact else place.base
        while True:
            if at + HEADER_SIZE > len(data):
                start, at = start + at, 0
                data = _read_up_to(files, path, place, start, self.max_bytes + _LOOKAHEAD)
            header = header_at(data, at, bounds, exact=exact)
            if header is None or (header.base_offset > self.offset and not exact):
                return None
            if header.base_offset + header.span > self.offset:
                break  # it holds the offset, or it is the first behind a gap that has it
            bounds.accept(header)
            exact = True
            at += header.size
        if header.next_offset > self.limit:
            return Span(b"", self.offset, self.offset, -1)
        if at + header.size > len(data):
            start, at = start + at, 0
            data = _read_up_to(files, path, place, start, max(header.size, self.max_bytes))
        return self._collect(data, start, at, header, bounds)

    def _collect(
        self, data: bytes, start: int, first: int, header: BatchHeader | None, bounds: Bounds
    ) -> Span | None:
        """The whole batches in a buffer from one on, as far as they are right and asked for."""
        assert header is not None
        base, at = min(header.base_offset, self.offset), first
        room = min(len(data), first + max(self.max_bytes, header.size))
        while (
            header is not None
            and at + header.size <= room
            and header.base_offset + header.span <= self.limit
            and payload_intact(data, at, header)
        ):
            bounds.accept(header)
            at += header.size
            header = header_at(data, at, bounds, exact=True)
        if at == first:
            return None
        chunk: Buffer = data
        if first or at < len(data):
            # To keep a few bytes that nobody wants is less work than to copy many.
            chunk = data[first:at] if at - first < VIEW_MIN else memoryview(data)[first:at]
        return Span(chunk, base, bounds.offset, start + at)

    def _damage(self, files: Files, path: str) -> DataDamaged:
        """The range that cannot be read around the offset."""
        place = self.place
        assert place is not None
        bounds = Bounds(place.base, limit=place.end)
        for found in scan(files, path, 0, place.size, bounds, payloads=False):
            if not isinstance(found, Gap):
                if found[1].next_offset > self.offset:
                    return damaged(found[1].base_offset, found[1].next_offset)
            elif found.next is None or found.next > self.offset:
                return damaged(found.first, place.end if found.next is None else found.next)
        return damaged(bounds.offset, place.end)


def _read_up_to(files: Files, path: str, place: Place, position: int, length: int) -> bytes:
    return read_leniently(files, path, position, max(0, min(place.size - position, length)))


def damaged(first: int, behind: int) -> DataDamaged:
    """The error for a range of offsets that cannot be read."""
    return DataDamaged(
        f"the records at offsets {first} to {behind - 1} are damaged on disk; reading can go on at {behind}",
        first=first, next=behind,
    )  # fmt: skip


class FindTime(Request):
    """Looks for the first record with a timestamp (`Log.find_time`); segments that end too early are left out."""

    token: Any
    places: list[Place]
    start: int
    limit: int
    timestamp: int
    interval: int
    generation: int

    def run(self, files: Files) -> tuple[int, int]:
        """(offset, timestamp), or (limit, -1)."""
        for place in self.places:
            position = place.position
            if position < 0:
                position = _index(files, self.owner, place, self.interval).find_time(self.timestamp)
            if (found := self._search(files, place, position)) is not None:
                return found if found[0] < self.limit else (self.limit, -1)
        return self.limit, -1

    def _search(self, files: Files, place: Place, position: int) -> tuple[int, int] | None:
        path = names.path(self.owner, place.base, names.LOG)
        if files.size(path) < 0:
            return None
        offset = place.base
        if position:
            head = read_leniently(files, path, position, HEADER_SIZE)
            first = header_at(head, 0, Bounds(place.base, limit=place.end), exact=False)
            position, offset = (0, offset) if first is None else (position, first.base_offset)
        bounds = Bounds(offset, limit=place.end)
        for found in scan(files, path, position, place.size, bounds, payloads=False):
            if isinstance(found, Gap):
                continue
            at, header = found
            if header.base_offset >= self.limit:
                return self.limit, -1
            if header.latest_timestamp >= self.timestamp and header.next_offset > self.start:
                data = read_leniently(files, path, at, header.size)
                if (record := self._in_batch(data, header)) is not None:
                    return record
        return None

    def _in_batch(self, data: bytes, header: BatchHeader) -> tuple[int, int] | None:
        if header.is_control or not payload_intact(data, 0, header):
            return None
        begin = max(header.base_offset, self.start)
        stamped = bool(header.stamp_attributes & APPEND_TIME)
        if stamped and not header.is_compacted:
            return begin, header.append_time
        try:
            records = decode_records(data, 0, header)
        except (InvalidRecord, UnsupportedAttribute):
            return (
                begin,
                header.latest_timestamp,
            )  # whoever reads there is told what is wrong with it
        for number, record in enumerate(records):
            offset = header.base_offset + number
            if record is not None and offset >= begin:
                timestamp = header.append_time if stamped else header.base_timestamp + record[0]
                if timestamp >= self.timestamp:
                    return offset, timestamp
        if begin == header.base_offset and not header.is_compacted:
            return (
                begin,
                header.latest_timestamp,
            )  # it has no record of its own maximum: one such is enough to decode
        return None


def _index(files: Files, folder: str, place: Place, interval: int) -> Index:
    """A sealed segment's index: from its file where that fits the segment exactly, else from its headers."""
    segment = Segment(place.base, place.size, place.end)
    index = index_until(files, folder, segment, place.size, interval)
    if index.covered == place.size:
        return index
    return build_index(files, folder, place.base, place.size, interval)
