"""Which partition a key goes to: CRC-32 of the key, modulo the number of partitions.

The hash is the CRC-32 of zlib, gzip and PNG (polynomial 0x04C11DB7, reflected, initial value and final XOR
0xFFFFFFFF), as an unsigned number: every language's standard library has it, and it is librdkafka's `consistent`
partitioner. A str key is its UTF-8. An empty key is a key (its CRC is 0, so it goes to partition 0); a record without
a key has no place of its own and goes wherever a batch is open.

Test vectors, which other implementations must meet, stand in `VECTORS`.
"""

from __future__ import annotations

from zlib import crc32

VECTORS: tuple[tuple[bytes, int], ...] = (
    (b"", 0x00000000),
    (b"a", 0xE8B7BE43),
    (b"store-7", 0xDC8024BF),
    (b"123456789", 0xCBF43926),
    ("Zürich".encode(), 0xD30BA93E),
    (bytes(range(256)), 0x29058C73),
)
"""Keys and their hashes; the partition is the hash modulo the number of partitions."""


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, 0 to `partitions` - 1.

    >>> [partition_of(key, 4) for key in (b"", b"a", b"123456789")]
    [0, 3, 2]
    """
    return crc32(key) % partitions


__all__ = ["VECTORS", "crc32", "partition_of"]
