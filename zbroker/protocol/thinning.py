"""A batch of which compaction removes records: the one place where a batch is encoded again.

Owns the look at the keys of a batch, and what a thinned batch keeps of the whole one: its place (offsets, epoch, append
time), its producer and sequence, its compression, its `base_timestamp`, and every record that stays, byte for byte.
`max_timestamp` is the latest of those that stay, and both CRCs are made anew. Never decides which records stay.

A batch of many records is decoded and encoded in pieces, so that no single call keeps the interpreter for long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import msgspec

from zbroker.errors import InvalidBatch, InvalidRecord
from zbroker.protocol import compression
from zbroker.protocol.batch import (
    COMPACTED,
    COMPRESSION_MASK,
    HEADER_SIZE,
    MALFORMED,
    BatchHeader,
    Buffer,
    Int64,
    Row,
    array_length,
    check_attributes,
    finish_batch,
    stamp,
)

PIECE = 4096
"""Records that are decoded, or encoded, by one call."""

NIL = b"\xc0"


class KeyedRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """One record in a payload of which only the key matters; value and headers are as they stand there."""

    delta: Int64
    key: bytes | None
    value: msgspec.Raw
    headers: msgspec.Raw

    @property
    def is_tombstone(self) -> bool:
        """Whether the value is null."""
        return bytes(self.value) == NIL


class _Keyed(msgspec.Struct, array_like=True, gc=False):
    """The beginning of a record that has a key: what follows is passed over."""

    delta: Int64
    key: bytes


_decode_rows = msgspec.msgpack.Decoder(list[KeyedRow | None]).decode
_decode_whole = msgspec.msgpack.Decoder(list[Row | None]).decode
_decode_keyed = msgspec.msgpack.Decoder(list[_Keyed]).decode
_encode = msgspec.msgpack.Encoder().encode


def keys_of(batch: Buffer, header: BatchHeader) -> Iterator[list[bytes | None]]:
    """The keys of a batch's records, piece by piece; None also where a record was removed.

    The records are looked at as a reader does: of one that no reader gets the key is not known either.

    Raises:
        InvalidRecord, UnsupportedAttribute: as `decode_records`.
    """
    for piece in _pieces(batch, header):
        rows = _checked(header, _decode_whole, piece)
        yield [None if row is None else row.key for row in rows]


def rows_of(batch: Buffer, header: BatchHeader) -> Iterator[list[KeyedRow | None]]:
    """The records of a batch, piece by piece. Raises as `keys_of` does."""
    for piece in _pieces(batch, header):
        yield _checked(header, _decode_rows, piece)


def check_keys(batch: Buffer, header: BatchHeader) -> None:
    """That every record of a batch has a key, which is what a compacted topic goes by.

    Raises:
        InvalidRecord: one has none, or the batch is malformed inside.
    """
    payload = _payload(batch, header)
    try:
        _decode_keyed(payload)
    except MALFORMED as error:
        raise InvalidRecord(
            f"every record of a compacted topic has a key, and this batch is not so: {error}; "
            "nothing of it was taken"
        ) from None


def thin(header: BatchHeader, rows: Sequence[KeyedRow | None]) -> bytearray:
    """The batch with these records in it, None for each that is removed, stamped as it was."""
    assert len(rows) == header.span, (len(rows), header.span)
    deltas = [row.delta for row in rows if row is not None]
    latest = max(header.base_timestamp + max(deltas, default=0), header.base_timestamp)
    payload = _array(len(rows)) + b"".join(
        _encode(rows[at : at + PIECE])[len(_array(len(rows[at : at + PIECE]))) :]
        for at in range(0, len(rows), PIECE)
    )
    batch = finish_batch(
        bytearray(HEADER_SIZE) + payload,
        header.span,
        base_timestamp=header.base_timestamp,
        max_timestamp=min(latest, header.max_timestamp),
        codec=header.compression,
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
        attributes=header.attributes & ~COMPRESSION_MASK,
    )
    mark(batch, header)
    return batch


def mark(batch: bytearray, header: BatchHeader) -> None:
    """Stamps a batch as before, but as one that compaction has thinned, or before which it has removed others."""
    stamp(
        batch,
        base_offset=header.base_offset,
        append_time=header.append_time,
        leader_epoch=header.leader_epoch,
        stamp_attributes=header.stamp_attributes | COMPACTED,
    )


def _payload(batch: Buffer, header: BatchHeader) -> Buffer:
    body = memoryview(batch)[HEADER_SIZE : header.size]
    return compression.decompress(header.compression, body, header.uncompressed_length)


def _pieces(batch: Buffer, header: BatchHeader) -> Iterator[Buffer]:
    """The payload as arrays of a few thousand records."""
    check_attributes(header)
    try:
        payload = _payload(batch, header)
        if array_length(payload) != header.span:
            raise InvalidBatch("the payload's array is not as long as span says")
        if header.span <= PIECE:
            yield payload
            return
        unpacker = msgpack.Unpacker(max_buffer_size=len(payload))
        unpacker.feed(payload)
        begin = unpacker.read_array_header() and unpacker.tell()
        for at in range(0, header.span, PIECE):
            count = min(PIECE, header.span - at)
            for _ in range(count):
                unpacker.skip()
            end = unpacker.tell()
            yield _array(count) + bytes(memoryview(payload)[begin:end])
            begin = end
    except (InvalidBatch, ValueError, msgpack.UnpackException) as error:
        raise _malformed(header, error) from None


def _checked(header: BatchHeader, decode: Any, piece: Buffer) -> Any:
    try:
        return decode(piece)
    except MALFORMED as error:
        raise _malformed(header, error) from None


def _malformed(header: BatchHeader, error: Exception) -> InvalidRecord:
    return InvalidRecord(
        f"the records at offsets {header.base_offset} to {header.next_offset - 1} are malformed: {error}",
        first=header.base_offset, next=header.next_offset,
    )  # fmt: skip


def _array(length: int) -> bytes:
    """The head of a MessagePack array."""
    if length < 16:
        return bytes([0x90 | length])
    if length < 1 << 16:
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")
