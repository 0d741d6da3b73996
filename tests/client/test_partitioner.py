"""The documented hash, fixed for other languages by its vectors."""

from __future__ import annotations

import pytest

from zbroker.client.partitioner import VECTORS, partition_of


def crc32_in_five_lines(key: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in key:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(("key", "hashed"), VECTORS)
def test_vectors(key: bytes, hashed: int) -> None:
    assert crc32_in_five_lines(key) == hashed
    for partitions in (1, 2, 3, 4, 7, 100):
        assert partition_of(key, partitions) == hashed % partitions


def test_keys_spread_over_partitions() -> None:
    counts = [0] * 6
    for number in range(6000):
        counts[partition_of(b"sensor-%d" % number, 6)] += 1
    assert min(counts) > 800
    assert max(counts) < 1200
