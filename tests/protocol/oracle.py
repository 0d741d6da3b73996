"""A second implementation of the batch, from the layout alone: what the code is measured against.

Owns nothing of zbroker's and imports nothing of it: `struct`, `msgpack` and ten lines of CRC-32C. It
is slow, and it checks everything.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import lz4.frame
import msgpack

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

# name, position, struct format: the table of the layout, typed in again.
FIELDS = [
    ("magic", 0, "4s"),
    ("version", 4, "B"),
    ("reserved", 5, "B"),
    ("attributes", 6, "H"),
    ("span", 8, "I"),
    ("payload_length", 12, "I"),
    ("uncompressed_length", 16, "I"),
    ("base_timestamp", 20, "q"),
    ("max_timestamp", 28, "q"),
    ("producer_id", 36, "q"),
    ("base_sequence", 44, "q"),
    ("producer_epoch", 52, "i"),
    ("crc", 56, "I"),
    ("base_offset", 60, "q"),
    ("append_time", 68, "q"),
    ("leader_epoch", 76, "i"),
    ("stamp_attributes", 80, "H"),
    ("stamp_reserved", 82, "H"),
    ("header_crc", 84, "I"),
]
HEADER = 88
NAMES = {0: "none", 1: "lz4", 2: "zstd"}


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, reflected 0x82F63B78) a byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def compress(codec: int, data: bytes) -> bytes:
    """One frame of a codec."""
    return {0: bytes, 1: lz4.frame.compress, 2: zstd.compress}[codec](data)


def decompress(codec: int, data: bytes) -> bytes:
    """What one frame of a codec holds."""
    return {0: bytes, 1: lz4.frame.decompress, 2: zstd.decompress}[codec](data)


def pack(header: dict[str, Any]) -> bytes:
    """A header's 88 bytes, each field put at its place."""
    out = bytearray(HEADER)
    for name, position, kind in FIELDS:
        struct.pack_into("<" + kind, out, position, header[name])
    return bytes(out)


def seal(header: dict[str, Any], payload: bytes, *, stamped: bool = False) -> bytes:
    """The batch of a header and a payload as they are, right or wrong, with the CRCs that fit them."""
    header["crc"] = crc32c(pack({**header, "crc": 0})[:56] + payload)
    header["header_crc"] = crc32c(pack({**header, "header_crc": 0})[:84]) if stamped else 0
    return pack(header) + payload


def build(
    records: list[Any], *, codec: int = 0, stamp: dict[str, int] | None = None, **given: Any
) -> bytes:
    """A batch of `[delta, key, value, headers]` or None each, stamped where a stamp is given."""
    plain = msgpack.packb(records, use_bin_type=True)
    payload = compress(codec, plain)
    header = {
        "magic": b"ZBAT", "version": 1, "reserved": 0, "attributes": codec, "span": len(records),
        "payload_length": len(payload), "uncompressed_length": len(plain), "base_timestamp": 0,
        "max_timestamp": 0, "producer_id": -1, "base_sequence": -1, "producer_epoch": -1, "crc": 0,
        "base_offset": 0, "append_time": 0, "leader_epoch": 0, "stamp_attributes": 0,
        "stamp_reserved": 0, "header_crc": 0, **given, **(stamp or {}),
    }  # fmt: skip
    return seal(header, payload, stamped=stamp is not None)


def parse(batch: bytes, *, stamped: bool = False) -> tuple[dict[str, Any], list[Any]]:
    """Header and records of a whole batch; `AssertionError` where it breaks the layout."""
    header = {
        name: struct.unpack_from("<" + kind, batch, position)[0] for name, position, kind in FIELDS
    }
    payload = batch[HEADER:]
    assert header["magic"] == b"ZBAT"
    assert header["version"] == 1
    assert header["payload_length"] == len(payload)
    assert header["crc"] == crc32c(batch[:56] + payload)
    if stamped:
        assert header["header_crc"] == crc32c(batch[:84])
    plain = decompress(header["attributes"] & 7, payload)
    assert header["uncompressed_length"] == len(plain)
    unpacker = msgpack.Unpacker(io.BytesIO(plain), raw=False, use_list=True)
    records = unpacker.unpack()
    assert unpacker.tell() == len(plain)
    assert header["span"] == len(records)
    return header, records
