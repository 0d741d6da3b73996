"""Segments: what is known of one, and the scan that finds its batches and its damage.

Owns the judgement whether the bytes at a position are the batch that belongs there: magic, both lengths, the
header's CRC, the payload's, that the offset continues, and that epoch and append time do not fall. Never changes a
file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import msgspec

from zbroker.errors import InvalidBatch, UnsupportedAttribute, UnsupportedVersion
from zbroker.log.index import Index
from zbroker.log.storage import Files
from zbroker.protocol.batch import (
    HEADER_CRC_AT,
    HEADER_SIZE,
    MAGIC,
    BatchHeader,
    crc32c,
    header_intact,
    payload_intact,
    read_header,
)

CHUNK = 1 << 20
_SMALL = 4096
_PAGE = 4096


class Segment(msgspec.Struct, eq=False):
    """One segment as the log knows it, of what is written.

    Attributes:
        base: its base offset, which names the file.
        size: bytes.
        end: the offset after its last batch; the next segment's base where there is one.
        first_append_time, last_append_time: of its first and last batch, -1 where not known or empty.
        max_timestamp: the latest record timestamp in it, -1 where empty.
        index: None until somebody reads.
        indexed: bytes that the index on disk covers.
    """

    base: int
    size: int = 0
    end: int = 0
    first_append_time: int = -1
    last_append_time: int = -1
    max_timestamp: int = -1
    index: Index | None = None
    indexed: int = 0


class Gap(msgspec.Struct):
    """Bytes from `position` to `until` that are no batches; the offsets `first` to `next` are missing.

    `next` is None where no batch follows in the segment: until then it is open what is missing.
    """

    position: int
    until: int
    first: int
    next: int | None


class Bounds(msgspec.Struct):
    """What a scan expects next, moved on by every batch that it finds.

    Attributes:
        offset: base offset of the next batch.
        epoch, time: leader epoch and append time of the last one; the next may not have smaller ones.
        limit: no batch reaches beyond this offset: the next segment's base.
    """

    offset: int
    epoch: int = -1
    time: int = -1
    limit: int = 1 << 62

    def accept(self, header: BatchHeader) -> None:
        """Moves on past a batch."""
        self.offset = header.base_offset + header.span
        self.epoch = header.leader_epoch
        self.time = header.append_time


def scan(
    files: Files, path: str, start: int, end: int, bounds: Bounds, *, payloads: bool
) -> Iterator[tuple[int, BatchHeader] | Gap]:
    """Every batch between two positions of a segment, in order, with what is damaged in between.

    Args:
        start: position of the first batch.
        end: size of the file, or up to where it counts.
        bounds: what is expected at `start`; left as expected after the last batch.
        payloads: whether payloads are read and checked; without, lengths are trusted once the header's CRC holds.
    """
    window = Window(files, path, end)
    position, step = start, 0
    while position < end:
        header = window.batch(position, bounds, payloads=payloads, step=step)
        if header is None:
            gap = find_next(files, path, position, end, bounds)
            yield gap
            if gap.next is None:
                return
            position, bounds.offset = gap.until, gap.next
            continue
        bounds.accept(header)
        yield position, header
        step = HEADER_SIZE + header.payload_length
        position += step


class Window:
    """Batches of a file seen through chunks."""

    __slots__ = ("_data", "_end", "_files", "_path", "_start")

    def __init__(self, files: Files, path: str, end: int) -> None:
        self._files, self._path, self._end = files, path, end
        self._data = b""
        self._start = 0

    def batch(
        self, position: int, bounds: Bounds, *, payloads: bool, step: int = 0
    ) -> BatchHeader | None:
        """The header of the batch at a position, or None where what stands there is not what belongs there.

        Args:
            step: size of the batch before, a guess at how far ahead it is worth reading for headers alone.
        """
        at = position - self._start
        if not 0 <= at <= len(self._data) - HEADER_SIZE:
            ahead = CHUNK if payloads or step < _SMALL else _SMALL
            at = self._fill(position, ahead)
        header = header_at(self._data, at, bounds, exact=True)
        if header is None or position + header.size > self._end:
            return None
        if payloads:
            if at + header.size > len(self._data):
                at = self._fill(position, max(CHUNK, header.size))
            if not payload_intact(self._data, at, header):
                return None
        return header

    def _fill(self, position: int, length: int) -> int:
        length = min(length, self._end - position)
        self._data = read_leniently(self._files, self._path, position, length)
        self._start = position
        return 0


def header_at(data: bytes, at: int, bounds: Bounds, *, exact: bool) -> BatchHeader | None:
    """The header at a place in a buffer if it is one, is whole, and may stand here; else None.

    Args:
        exact: whether it must continue at `bounds.offset`, or say itself that compaction left a gap before it; else it
            may leave offsets out.

    Raises:
        UnsupportedVersion: a whole header of a newer batch version.
    """
    try:
        header = read_header(data, at)
    except InvalidBatch:
        return None
    except UnsupportedAttribute as error:
        zone = memoryview(data)[at : at + HEADER_CRC_AT]
        stored = int.from_bytes(data[at + HEADER_CRC_AT : at + HEADER_SIZE], "little")
        if crc32c(zone) == stored:
            raise UnsupportedVersion(
                f"{error}; start the newer version of zbroker that wrote it"
            ) from None
        return None
    offset = header.base_offset
    fits = header.continues(bounds.offset) if exact else offset >= bounds.offset
    if (
        fits
        and header.leader_epoch >= bounds.epoch
        and header.append_time >= bounds.time
        and header_intact(data, at, header)
        and offset + header.span <= bounds.limit
    ):
        return header
    return None


def find_next(files: Files, path: str, position: int, end: int, bounds: Bounds) -> Gap:
    """Steps over what is damaged at a position, to the next batch that is whole.

    Where the header at the position is itself whole, its length says where to go on; else the bytes are searched.
    What is found may stand inside a record that holds somebody else's log: a batch that continues a chain (the next
    one follows it, or the end) is believed, and one that stands alone before it only if the offsets leave it room.
    """
    head = read_leniently(files, path, position, min(HEADER_SIZE, end - position))
    own = header_at(head, 0, bounds, exact=True)
    begin = position + 1 if own is None else min(position + own.size, end)
    alone: Gap | None = None
    alone_behind = 0
    for candidate in _magics(files, path, begin, end):
        trial = Bounds(bounds.offset, bounds.epoch, bounds.time, bounds.limit)
        header = _whole(files, path, candidate, end, trial, exact=False)
        if header is None:
            continue
        trial.accept(header)
        after = candidate + header.size
        gap = Gap(position, candidate, bounds.offset, header.base_offset)
        if after == end or _whole(files, path, after, end, trial, exact=True) is not None:
            return gap if alone is None or alone_behind > header.base_offset else alone
        if alone is None:
            alone, alone_behind = gap, header.next_offset
    return alone or Gap(position, end, bounds.offset, None)


def _whole(
    files: Files, path: str, position: int, end: int, bounds: Bounds, *, exact: bool
) -> BatchHeader | None:
    """The header of a batch whose every byte is right, None where there is none."""
    if end - position < HEADER_SIZE:
        return None
    head = read_leniently(files, path, position, HEADER_SIZE)
    header = header_at(head, 0, bounds, exact=exact)
    if header is None or position + header.size > end:
        return None
    data = read_leniently(files, path, position, header.size)
    return header if payload_intact(data, 0, header) else None


def _magics(files: Files, path: str, position: int, end: int) -> Iterator[int]:
    """Positions at which the magic stands."""
    while end - position >= HEADER_SIZE:
        data = read_leniently(files, path, position, min(CHUNK, end - position))
        at = data.find(MAGIC)
        while at >= 0:
            yield position + at
            at = data.find(MAGIC, at + 1)
        if len(data) < len(MAGIC):
            return
        position += len(data) - len(MAGIC) + 1


def read_leniently(files: Files, path: str, position: int, length: int) -> bytes:
    """Reads where the disk may have bad blocks: what cannot be read is zeros, which no check takes for data."""
    try:
        return files.read(path, position, length)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    pages = []
    for at in range(position, position + length, _PAGE):
        size = min(_PAGE, position + length - at)
        try:
            pages.append(files.read(path, at, size))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            pages.append(bytes(size))
    return b"".join(pages)
