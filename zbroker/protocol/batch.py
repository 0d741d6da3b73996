"""The record batch: one layout on the wire, on disk, between replicas and to subscribers.

Owns the header's two zones (what the producer says, what the leader stamps), the payload's encoding
and every check on both. Never reads a clock and never re-encodes: a stamp is a few bytes written in
place.

Layout, little-endian, 88 bytes of header and then the payload:

====== ====== ==================== =====================================================================
offset type   field                meaning
====== ====== ==================== =====================================================================
0      4 B    magic                `ZBAT`
4      u8     version              1
5      u8     reserved             0
6      u16    attributes           bits 0-2 compression (0 none, 1 lz4, 2 zstd), bit 4 control,
                                   bit 5 transactional; bits 0-7 are critical, 8-15 may be ignored
8      u32    span                 offsets that the batch spans, at least 1
12     u32    payload_length       bytes that follow the header
16     u32    uncompressed_length  bytes of the payload once decompressed
20     i64    base_timestamp       the first record's timestamp, ms since the epoch
28     i64    max_timestamp        the latest record's timestamp
36     i64    producer_id          -1: not idempotent
44     i64    base_sequence        the first record's sequence number, or -1
52     i32    producer_epoch       -1: not idempotent
56     u32    crc                  CRC-32C of bytes 0-55 and the payload
------ ------ -------------------- ---
60     i64    base_offset          the first record's offset
68     i64    append_time          the leader's clock, ms since the epoch, never falling along a partition
76     i32    leader_epoch         the epoch under which the leader appended it
80     u16    stamp_attributes     bit 0: the records' timestamps are the append time; bit 8: compacted;
                                   bits 0-7 are critical, 8-15 may be ignored
82     u16    reserved             0
84     u32    header_crc           CRC-32C of bytes 0-83, the first CRC included
====== ====== ==================== =====================================================================

The payload is a MessagePack array with one element an offset: `[timestamp delta, key, value,
headers]`, or nil where compaction removed the record. Key and value are bin or nil; headers are an
array of `[str, bin or nil]`. The stamp's bit *compacted* says that records of this batch were removed, or whole batches
before it: only there may offsets leave a gap.

Who writes reserved bytes writes zero; who reads them ignores them. A critical attribute that a
reader does not know makes the batch unreadable to it (`unsupported_attribute`); transactional is one
of those until transactions exist, since a reader that knows nothing of them must not hand over
records that may be aborted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeVar

import crc32c as _crc32c
import msgspec

from zbroker.errors import (
    CorruptBatch,
    InvalidBatch,
    InvalidRecord,
    MessageTooLarge,
    UnsupportedAttribute,
)
from zbroker.protocol import compression

Buffer = bytes | bytearray | memoryview
Headers = tuple[tuple[str, bytes | None], ...]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
EncodedRecord = tuple[Int64, bytes | None, bytes | None, Headers]
"""One record in a payload: timestamp delta in ms, key, value, headers."""

_Decoded = TypeVar("_Decoded")

MAGIC = b"ZBAT"
VERSION = 1
HEADER_SIZE = 88

COMPRESSION_MASK = 0x0007
CONTROL = 0x0010
TRANSACTIONAL = 0x0020
_KNOWN_CRITICAL = COMPRESSION_MASK | CONTROL
_CRITICAL = 0x00FF
APPEND_TIME = 0x0001
"""Stamp attribute: every record's timestamp is the batch's append time."""
COMPACTED = 0x0100
"""Stamp attribute: compaction removed records of the batch, or whole batches before it."""

NO_PRODUCER = -1
MAX_SPAN = 0x7FFFFFFF
MAX_INT64 = 2**63 - 1
MAX_UNCOMPRESSED = 1 << 30
"""Most bytes that a reader decompresses of one batch: the largest `max_batch` that a topic can have."""

_HEADER = struct.Struct("<4sBxHIIIqqqqiIqqiHxxI")
_PRODUCER_ZONE = struct.Struct("<4sBxHIIIqqqqi")
_STAMP = struct.Struct("<qqiHxx")
_CRC = struct.Struct("<I")
CRC_AT, STAMP_AT, HEADER_CRC_AT = 56, 60, 84
_NO_HEADER = bytes(HEADER_SIZE)

MALFORMED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, MemoryError, TypeError)
"""Whatever decoding hostile MessagePack may raise."""

crc32c = _crc32c.crc32c

_encode_payload_into = msgspec.msgpack.Encoder().encode_into


class Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """One record in a payload, as `EncodedRecord`: quicker to decode, and nothing that the collector has to visit."""

    delta: Int64
    key: bytes | None
    value: bytes | None
    headers: Headers


_decode_payload = msgspec.msgpack.Decoder(list[EncodedRecord | None]).decode
_decode_rows = msgspec.msgpack.Decoder(list[Row | None]).decode


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """A batch's header, field by field as laid out (see the module)."""

    magic: bytes
    version: int
    attributes: int
    span: int
    payload_length: int
    uncompressed_length: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    base_sequence: int
    producer_epoch: int
    crc: int
    base_offset: int
    append_time: int
    leader_epoch: int
    stamp_attributes: int
    header_crc: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return HEADER_SIZE + self.payload_length

    @property
    def next_offset(self) -> int:
        """The offset after the batch's last."""
        return self.base_offset + self.span

    @property
    def last_sequence(self) -> int:
        """The last record's sequence number."""
        return self.base_sequence + self.span - 1

    @property
    def compression(self) -> int:
        """The codec's number: 0 none, 1 lz4, 2 zstd."""
        return self.attributes & COMPRESSION_MASK

    @property
    def is_control(self) -> bool:
        """Whether the batch is the brokers' own; readers skip it."""
        return bool(self.attributes & CONTROL)

    @property
    def is_compacted(self) -> bool:
        """Whether compaction removed records of the batch, or batches before it: offsets may leave a gap there."""
        return bool(self.stamp_attributes & COMPACTED)

    def continues(self, offset: int) -> bool:
        """Whether the batch may stand where an offset is expected: there, or behind a gap that compaction left."""
        return self.base_offset == offset or (self.base_offset > offset and self.is_compacted)

    @property
    def latest_timestamp(self) -> int:
        """The latest timestamp that a reader sees in the batch, ms since the epoch."""
        return self.append_time if self.stamp_attributes & APPEND_TIME else self.max_timestamp


# Making a batch ---


def encode_batch(
    records: Sequence[EncodedRecord | None],
    *,
    base_timestamp: int,
    max_timestamp: int,
    codec: int = 0,
    producer_id: int = NO_PRODUCER,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    attributes: int = 0,
    size_hint: int = 0,
    with_crc: bool = True,
) -> bytearray:
    """A batch as a producer sends it, its stamp still zero.

    Args:
        records: tuples of (timestamp delta in ms, key, value, headers), the deltas relative to
            `base_timestamp`.
        base_timestamp: the first record's timestamp, ms since the epoch.
        max_timestamp: the latest record's timestamp.
        codec: compression number; a payload that would not shrink is left as it is.
        attributes: further attribute bits, such as `CONTROL`.
        size_hint: about how many bytes the payload needs.
        with_crc: False leaves the CRC to `set_producer`, which must follow.
    """
    # Straight behind the header: large temporaries cost more than encoding does.
    batch = bytearray(HEADER_SIZE + size_hint)
    _encode_payload_into(records, batch, HEADER_SIZE)
    return finish_batch(
        batch, len(records), base_timestamp=base_timestamp, max_timestamp=max_timestamp, codec=codec,
        producer_id=producer_id, producer_epoch=producer_epoch, base_sequence=base_sequence,
        attributes=attributes, with_crc=with_crc,
    )  # fmt: skip


def finish_batch(
    batch: bytearray,
    count: int,
    *,
    base_timestamp: int,
    max_timestamp: int,
    codec: int = 0,
    producer_id: int = NO_PRODUCER,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    attributes: int = 0,
    with_crc: bool = True,
) -> bytearray:
    """The batch whose uncompressed payload of `count` records stands behind room for the header.

    Arguments as in `encode_batch`. What is not compressed is the same bytearray, filled in.
    """
    uncompressed = len(batch) - HEADER_SIZE
    if codec:
        smaller = compression.compress(codec, batch[HEADER_SIZE:])
        if len(smaller) < uncompressed:
            batch = bytearray().join((_NO_HEADER, smaller))
            attributes |= codec
    batch[:CRC_AT] = _PRODUCER_ZONE.pack(
        MAGIC, VERSION, attributes, count, len(batch) - HEADER_SIZE, uncompressed,
        base_timestamp, max_timestamp, producer_id, base_sequence, producer_epoch,
    )  # fmt: skip
    if with_crc:
        _set_crc(batch)
    return batch


def set_producer(
    batch: bytearray, producer_id: int, producer_epoch: int, base_sequence: int
) -> None:
    """Gives an encoded batch another producer identity in place, and its CRC again."""
    struct.pack_into("<qqi", batch, 36, producer_id, base_sequence, producer_epoch)
    _set_crc(batch)


def _set_crc(batch: bytearray) -> None:
    view = memoryview(batch)
    _CRC.pack_into(batch, CRC_AT, crc32c(view[HEADER_SIZE:], crc32c(view[:CRC_AT])))


def stamp(
    batch: bytearray | memoryview,
    *,
    base_offset: int,
    append_time: int,
    leader_epoch: int,
    stamp_attributes: int = 0,
) -> None:
    """Writes the leader's zone and the header's CRC in place."""
    _STAMP.pack_into(batch, STAMP_AT, base_offset, append_time, leader_epoch, stamp_attributes)
    _CRC.pack_into(batch, HEADER_CRC_AT, crc32c(memoryview(batch)[:HEADER_CRC_AT]))


# Reading and checking a header ---


def read_header(data: Buffer, at: int = 0) -> BatchHeader:
    """The header at a position, unchecked but for its length, magic and version.

    Raises:
        InvalidBatch: fewer than 88 bytes are there, or they do not begin with the magic.
        UnsupportedAttribute: the batch has another version.
    """
    if len(data) - at < HEADER_SIZE:
        raise InvalidBatch(
            f"a batch has a header of {HEADER_SIZE} bytes, and only {len(data) - at} are there"
        )
    header = BatchHeader(*_HEADER.unpack_from(data, at))
    if header.magic != MAGIC:
        raise InvalidBatch(f"a batch begins with {MAGIC!r}, not with {header.magic!r}")
    if header.version != VERSION:
        raise UnsupportedAttribute(
            f"batch version {header.version} is not known here, only {VERSION}"
        )
    return header


def check_ingest(batch: Buffer, *, max_length: int, allow_control: bool = False) -> BatchHeader:
    """Everything that the leader checks once, before it stamps and stores a producer's batch.

    What is inside the records is not looked at: a reader that finds it malformed gets an error that
    names the offsets, and steps over them.

    Args:
        batch: the whole batch, its stamp ignored.
        max_length: limit in bytes, on the batch as sent and on its payload once decompressed.
        allow_control: whether a control batch passes; only nodes send those.

    Raises:
        InvalidBatch, UnsupportedAttribute, CorruptBatch, MessageTooLarge: the sentence names the
            field.
    """
    header = read_header(batch)
    if header.size != len(batch):
        raise InvalidBatch(
            f"payload_length says {header.payload_length} bytes, "
            f"and {len(batch) - HEADER_SIZE} follow the header"
        )
    if header.size > max_length or header.uncompressed_length > max_length:
        largest = max(header.size, header.uncompressed_length)
        raise MessageTooLarge(
            f"the batch has {largest} bytes, "
            f"more than the {max_length} that the topic takes (max_batch)",
            size=largest, limit=max_length,
        )  # fmt: skip
    view = memoryview(batch)
    if crc32c(view[HEADER_SIZE:], crc32c(view[:CRC_AT])) != header.crc:
        raise CorruptBatch("the batch's CRC-32C (crc) does not match its bytes; send it again")
    _check_claims(header, allow_control)
    payload = compression.decompress(
        header.compression, view[HEADER_SIZE:], header.uncompressed_length
    )
    count = array_length(payload)
    if count != header.span:
        raise InvalidBatch(
            f"the payload is an array of {count} records, but span says {header.span}"
        )
    return header


def _check_claims(header: BatchHeader, allow_control: bool) -> None:
    """That the header's fields do not contradict each other or ask for what is not known here."""
    known = _KNOWN_CRITICAL if allow_control else COMPRESSION_MASK
    if header.attributes & _CRITICAL & ~known or header.compression >= len(compression.CODECS):
        raise UnsupportedAttribute(
            f"attributes are {header.attributes:#06x}; what is taken from producers is "
            "compression 0 none, 1 lz4 or 2 zstd in bits 0 to 2, and 0 in bits 3 to 7"
        )
    if not 1 <= header.span <= MAX_SPAN or header.span > header.uncompressed_length:
        raise InvalidBatch(
            f"span is {header.span}; it is at least 1 and at most the payload's bytes"
        )
    if not 0 <= header.base_timestamp <= header.max_timestamp:
        raise InvalidBatch(
            f"timestamps are 0 or later and the maximum is not before the first: "
            f"base {header.base_timestamp}, max {header.max_timestamp}"
        )
    names = (header.producer_id, header.producer_epoch, header.base_sequence)
    if min(names) < 0 and names != (-1, -1, -1):
        raise InvalidBatch(
            "producer_id, producer_epoch and base_sequence are all -1 or all 0 or more, not "
            f"{header.producer_id}, {header.producer_epoch} and {header.base_sequence}"
        )
    if header.base_sequence > MAX_INT64 - header.span:
        raise InvalidBatch(f"base_sequence is {header.base_sequence}; sequences end at 2^63 - 1")


def check_attributes(header: BatchHeader) -> None:
    """Refuses critical attributes that this version does not know (`UnsupportedAttribute`)."""
    unknown = header.attributes & _CRITICAL & ~_KNOWN_CRITICAL
    unknown_stamp = header.stamp_attributes & _CRITICAL & ~APPEND_TIME
    if unknown or unknown_stamp or header.compression >= len(compression.CODECS):
        raise UnsupportedAttribute(
            f"the batch at offset {header.base_offset} has critical attributes that are not known "
            f"here (attributes {header.attributes:#06x}, stamp {header.stamp_attributes:#06x})",
            first=header.base_offset, next=header.next_offset,
        )  # fmt: skip


def header_intact(data: Buffer, at: int, header: BatchHeader) -> bool:
    """Whether a stamped header's own CRC holds: cheap, and enough to trust lengths and offsets."""
    return (
        crc32c(memoryview(data)[at : at + HEADER_CRC_AT]) == header.header_crc
        and 1 <= header.span <= MAX_SPAN
        and 0 <= header.base_offset <= MAX_INT64 - header.span
    )


def payload_intact(data: Buffer, at: int, header: BatchHeader) -> bool:
    """Whether the producer's CRC holds over its zone and the payload; the whole batch must be in `data`."""
    view = memoryview(data)
    start = at + HEADER_SIZE
    payload = view[start : start + header.payload_length]
    return (
        len(payload) == header.payload_length
        and crc32c(payload, crc32c(view[at : at + CRC_AT])) == header.crc
    )


def iter_batches(chunk: Buffer) -> Iterator[tuple[int, BatchHeader]]:
    """Positions and headers of the whole batches in a chunk, checked.

    Stops before a batch that is cut short. Offsets may have gaps, where compaction removed batches,
    but never fall back; neither do leader epochs and append times.

    Raises:
        CorruptBatch: a header or a payload does not match its CRC, or what follows does not continue.
        InvalidBatch: something else than a batch stands where one should begin.
    """
    at, end = 0, len(chunk)
    last: BatchHeader | None = None
    while end - at >= HEADER_SIZE:
        header = read_header(chunk, at)
        if not header_intact(chunk, at, header):
            raise CorruptBatch(
                f"the batch header at byte {at} of the chunk does not match its CRC-32C"
            )
        if at + header.size > end:
            return
        if last is not None and not _continues(last, header):
            raise CorruptBatch(
                f"the batch at offset {header.base_offset} does not continue the one before it, "
                f"which ends at offset {last.next_offset}",
                first=header.base_offset, next=header.next_offset,
            )  # fmt: skip
        if not payload_intact(chunk, at, header):
            raise CorruptBatch(
                f"the batch at offset {header.base_offset} does not match its CRC-32C",
                first=header.base_offset, next=header.next_offset,
            )  # fmt: skip
        yield at, header
        at += header.size
        last = header


def _continues(last: BatchHeader, header: BatchHeader) -> bool:
    """Whether a stamped batch may stand behind another in one log."""
    return (
        header.base_offset >= last.next_offset
        and header.leader_epoch >= last.leader_epoch
        and header.append_time >= last.append_time
    )


# Records ---


def decode_records(
    chunk: Buffer, at: int, header: BatchHeader, *, max_length: int = MAX_UNCOMPRESSED
) -> list[EncodedRecord | None]:
    """The records of the batch at a position, one element an offset, nil ones as None.

    Args:
        max_length: limit in bytes on the payload once decompressed.

    Raises:
        UnsupportedAttribute: the batch carries a critical attribute that is not known here.
        InvalidRecord: it is malformed inside, or larger than `max_length`; details `first` and `next`
            give the offsets to step over.
    """
    return _records(_decode_payload, chunk, at, header, max_length)


def decode_rows(chunk: Buffer, at: int, header: BatchHeader) -> list[Row | None]:
    """The same as rows, which a consumer makes its records from. Raises as `decode_records` does."""
    return _records(_decode_rows, chunk, at, header, MAX_UNCOMPRESSED)


def _records(
    decode: Callable[[Buffer], list[_Decoded | None]],
    chunk: Buffer,
    at: int,
    header: BatchHeader,
    max_length: int,
) -> list[_Decoded | None]:
    check_attributes(header)
    start = at + HEADER_SIZE
    body = memoryview(chunk)[start : start + header.payload_length]
    try:
        if header.uncompressed_length > max_length:
            raise InvalidBatch(f"the payload has more than {max_length} bytes")
        payload = compression.decompress(header.compression, body, header.uncompressed_length)
        if array_length(payload) != header.span:
            raise InvalidBatch(
                f"the payload is an array of {array_length(payload)} records, "
                f"but span says {header.span}"
            )
        return decode(payload)
    except (InvalidBatch, *MALFORMED) as error:
        raise InvalidRecord(
            f"the records at offsets {header.base_offset} to {header.next_offset - 1} are "
            f"malformed: {error}",
            first=header.base_offset, next=header.next_offset,
        ) from None  # fmt: skip


def array_length(payload: Buffer) -> int:
    """How many elements the MessagePack array at the start of a payload declares."""
    if not payload:
        raise InvalidBatch("the payload is empty; it is a MessagePack array of records")
    kind = payload[0]
    if 0x90 <= kind <= 0x9F:
        return kind & 0x0F
    size = {0xDC: 2, 0xDD: 4}.get(kind)
    if size is None or len(payload) < 1 + size:
        raise InvalidBatch(
            f"the payload is a MessagePack array of records; its first byte is {kind:#04x}"
        )
    return int.from_bytes(payload[1 : 1 + size], "big")
