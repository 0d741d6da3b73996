"""The batch as the code lays it out against the oracle's, field by field and both ways."""

from __future__ import annotations

import ast
import random
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol import oracle

from zbroker.protocol import batch as code
from zbroker.protocol.batch import (
    BatchHeader,
    check_ingest,
    decode_records,
    encode_batch,
    iter_batches,
    read_header,
    set_producer,
    stamp,
)

I64 = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(0, 2**63 - 1)
BYTES = st.none() | st.binary(max_size=40)
HEADERS = st.lists(st.tuples(st.text(max_size=8), BYTES), max_size=3).map(tuple)
RECORDS = st.lists(st.none() | st.tuples(I64, BYTES, BYTES, HEADERS), min_size=1, max_size=12)
CODECS = st.sampled_from((0, 1, 2))


def as_lists(records: list[Any]) -> list[Any]:
    """Records as MessagePack gives them without types."""
    return [
        None if record is None else [*record[:3], [list(header) for header in record[3]]]
        for record in records
    ]


def test_the_oracle_stands_alone() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text(encoding="utf-8"))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("zbroker") for name in names)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_of_both(data: bytes, crc: int) -> None:
    assert oracle.crc32c(data) == crc
    assert code.crc32c(data) == crc


def test_the_fields_lie_where_the_oracle_has_them() -> None:
    """Each field set alone to a value of its own shows up at its place and nowhere else."""
    names = [name for name in BatchHeader.__struct_fields__ if name not in ("magic", "version")]
    for number, name in enumerate(names, 1):
        header = dict.fromkeys((field for field, _, _ in oracle.FIELDS), 0)
        header |= {"magic": b"ZBAT", "version": 1, name: number}
        found = msgspec.structs.asdict(read_header(oracle.pack(header)))
        expected = dict.fromkeys(found, 0) | {"magic": b"ZBAT", "version": 1, name: number}
        assert found == expected


def test_the_layout_has_no_hole() -> None:
    position = 0
    for name, at, kind in oracle.FIELDS:
        assert at == position, name
        position += struct.calcsize("<" + kind)
    assert position == oracle.HEADER == code.HEADER_SIZE


@given(
    RECORDS,
    CODECS,
    TIMES,
    TIMES,
    st.integers(0, 2**62),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**62),
)
def test_what_the_code_builds_the_oracle_parses(
    records: list[Any], codec: int, base: int, latest: int, pid: int, epoch: int, sequence: int
) -> None:
    base, latest = sorted((base, latest))
    batch = encode_batch(
        records, base_timestamp=base, max_timestamp=latest, codec=codec, producer_id=pid,
        producer_epoch=epoch, base_sequence=sequence,
    )  # fmt: skip
    header, found = oracle.parse(bytes(batch))
    assert found == as_lists(records)
    assert header["attributes"] in (0, codec)
    assert (header["base_timestamp"], header["max_timestamp"]) == (base, latest)
    assert (header["producer_id"], header["producer_epoch"], header["base_sequence"]) == (
        pid, epoch, sequence,
    )  # fmt: skip
    assert batch[60:88] == bytes(28)
    assert header["reserved"] == 0
    assert check_ingest(batch, max_length=1 << 20).span == len(records)


@given(
    RECORDS, CODECS, TIMES, st.integers(0, 2**62), st.integers(0, 2**31 - 1), TIMES, st.booleans()
)
def test_what_the_oracle_builds_the_code_parses(
    records: list[Any], codec: int, latest: int, offset: int, epoch: int, time: int, appended: bool
) -> None:
    stamped = {
        "base_offset": offset, "append_time": time, "leader_epoch": epoch, "stamp_attributes": int(appended),
    }  # fmt: skip
    batch = oracle.build(records, codec=codec, max_timestamp=latest, stamp=stamped)
    [(at, header)] = iter_batches(batch)
    assert at == 0
    assert decode_records(batch, at, header) == records
    assert (header.base_offset, header.append_time, header.leader_epoch) == (offset, time, epoch)
    assert (header.next_offset, header.size) == (offset + len(records), len(batch))
    assert header.latest_timestamp == (time if appended else latest)


@given(RECORDS, CODECS, st.integers(0, 2**62), I64, st.integers(0, 2**31 - 1))
def test_a_stamp_is_the_oracles(
    records: list[Any], codec: int, offset: int, time: int, epoch: int
) -> None:
    batch = encode_batch(records, base_timestamp=0, max_timestamp=0, codec=codec)
    before = bytes(batch)
    stamp(batch, base_offset=offset, append_time=time, leader_epoch=epoch, stamp_attributes=1)
    header, found = oracle.parse(bytes(batch), stamped=True)
    assert found == as_lists(records)
    assert (header["base_offset"], header["append_time"], header["leader_epoch"]) == (
        offset, time, epoch,
    )  # fmt: skip
    assert (header["stamp_attributes"], header["stamp_reserved"]) == (1, 0)
    assert (batch[:60], batch[88:]) == (before[:60], before[88:])


@given(RECORDS, CODECS, st.integers(0, 2**62), st.integers(0, 2**31 - 1), st.integers(0, 2**62))
def test_set_producer_is_the_same_as_having_encoded_so(
    records: list[Any], codec: int, pid: int, epoch: int, sequence: int
) -> None:
    batch = encode_batch(records, base_timestamp=5, max_timestamp=9, codec=codec)
    set_producer(batch, pid, epoch, sequence)
    assert batch == encode_batch(
        records, base_timestamp=5, max_timestamp=9, codec=codec, producer_id=pid,
        producer_epoch=epoch, base_sequence=sequence,
    )  # fmt: skip


def test_what_must_stay_apart_stays_apart() -> None:
    """Null and empty keys and values, header repeats and their order, negative and huge deltas."""
    records: list[Any] = [
        (0, None, b"no key", ()),
        (-5, b"", b"empty key", ()),
        (2**63 - 1, b"k", None, ()),
        (-(2**63), b"k", b"", (("a", b"1"), ("b", None), ("a", b""), ("a", b"1"), ("", b"x"))),
        None,
    ]
    for codec in (0, 1, 2):
        batch = encode_batch(records, base_timestamp=5, max_timestamp=5, codec=codec)
        assert oracle.parse(bytes(batch))[1] == as_lists(records)
        assert decode_records(batch, 0, read_header(batch)) == records


def test_a_large_batch_makes_the_round_trip() -> None:
    """Larger than any window: 20 MiB, half of them noise."""
    noise = random.Random(1).randbytes(5 << 20)
    records: list[Any] = [
        (0, None, noise + bytes(5 << 20), ()),
        (0, None, noise, ()),
        (0, None, noise, ()),
    ]
    for codec in (0, 1, 2):
        batch = encode_batch(records, base_timestamp=0, max_timestamp=0, codec=codec)
        assert check_ingest(batch, max_length=32 << 20).compression == codec
        assert decode_records(batch, 0, read_header(batch)) == records


def test_a_payload_that_would_not_shrink_is_left_as_it_is() -> None:
    for codec in (1, 2):
        batch = encode_batch([(0, None, b"x", ())], base_timestamp=0, max_timestamp=0, codec=codec)
        header = read_header(batch)
        assert (header.compression, header.payload_length) == (0, header.uncompressed_length)


def test_a_chunk_of_batches_ends_where_one_is_cut_short() -> None:
    first = oracle.build([None] * 3, stamp={"base_offset": 4})
    second = oracle.build([None] * 2, stamp={"base_offset": 9})  # a gap: compaction took 7 and 8
    chunk = first + second
    for length in range(len(chunk) + 1):
        found = [header.base_offset for _, header in iter_batches(chunk[:length])]
        assert found == [4, 9][: (length >= len(first)) + (length >= len(chunk))]


@pytest.mark.parametrize(
    "following",
    [
        {"base_offset": 5},
        {"base_offset": 7, "leader_epoch": 1},
        {"base_offset": 7, "append_time": 9},
    ],
)
def test_a_chunk_whose_batches_do_not_continue_is_refused(following: dict[str, int]) -> None:
    stamped = {"base_offset": 4, "leader_epoch": 2, "append_time": 10}
    first = oracle.build([None] * 3, stamp=stamped)
    second = oracle.build([None], stamp=stamped | following)
    batches = iter_batches(first + second)
    next(batches)
    with pytest.raises(code.CorruptBatch, match="does not continue"):
        next(batches)
