"""What the leader checks before it keeps a batch, and a reader before it hands records over: each once."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from protocol import oracle

from zbroker import errors
from zbroker.protocol import batch as code
from zbroker.protocol.batch import check_ingest, decode_records, iter_batches, read_header

LIMIT = 1 << 16
RECORD = [0, b"key", b"value" * 20, [["h", b"1"]]]
PLAIN = msgpack.packb([RECORD, RECORD], use_bin_type=True)


def wrong(codec: int = 0, payload: bytes | None = None, **fields: Any) -> bytes:
    """A good batch of two records but for the fields given; CRCs fit what is there."""
    body = oracle.compress(codec, PLAIN) if payload is None else payload
    header = oracle.parse(oracle.build([RECORD, RECORD]))[0]
    header |= {
        "attributes": codec, "payload_length": len(body), "uncompressed_length": len(PLAIN),
        "base_timestamp": 10, "max_timestamp": 10,
    }  # fmt: skip
    return oracle.seal(header | fields, body)


def refused(batch: bytes, kind: type[errors.ZBrokerError], *named: str) -> errors.ZBrokerError:
    with pytest.raises(errors.ZBrokerError) as caught:
        check_ingest(batch, max_length=LIMIT)
    assert type(caught.value) is kind, repr(caught.value)
    for name in named:
        assert name in str(caught.value)
    return caught.value


def test_a_good_batch_passes() -> None:
    for codec in (0, 1, 2):
        assert check_ingest(wrong(codec), max_length=LIMIT).span == 2
    idempotent = wrong(producer_id=0, producer_epoch=0, base_sequence=2**63 - 3)
    assert check_ingest(idempotent, max_length=LIMIT).last_sequence == 2**63 - 2


@pytest.mark.parametrize(
    ("fields", "kind", "named"),
    [
        ({"magic": b"ZBAD"}, errors.InvalidBatch, "ZBAD"),
        ({"version": 0}, errors.UnsupportedAttribute, "version 0"),
        ({"version": 2}, errors.UnsupportedAttribute, "version 2"),
        ({"attributes": 3}, errors.UnsupportedAttribute, "attributes are 0x0003"),
        ({"attributes": 7}, errors.UnsupportedAttribute, "compression"),
        ({"attributes": 0x08}, errors.UnsupportedAttribute, "attributes"),
        ({"attributes": 0x10}, errors.UnsupportedAttribute, "attributes"),
        ({"attributes": 0x20}, errors.UnsupportedAttribute, "attributes"),
        ({"attributes": 0x40}, errors.UnsupportedAttribute, "attributes"),
        ({"attributes": 0x80}, errors.UnsupportedAttribute, "attributes"),
        ({"attributes": 1}, errors.InvalidBatch, "LZ4"),
        ({"attributes": 2}, errors.InvalidBatch, "Zstandard"),
        ({"span": 0}, errors.InvalidBatch, "span is 0"),
        ({"span": 1}, errors.InvalidBatch, "span says 1"),
        ({"span": 3}, errors.InvalidBatch, "array of 2 records"),
        ({"span": 2**31}, errors.InvalidBatch, "span"),
        ({"span": 2**32 - 1}, errors.InvalidBatch, "span"),
        ({"payload_length": 0}, errors.InvalidBatch, "payload_length"),
        ({"payload_length": len(PLAIN) - 1}, errors.InvalidBatch, "payload_length"),
        ({"payload_length": len(PLAIN) + 1}, errors.InvalidBatch, "payload_length"),
        ({"payload_length": 2**32 - 1}, errors.InvalidBatch, "payload_length"),
        ({"uncompressed_length": 1}, errors.InvalidBatch, "span"),
        ({"uncompressed_length": len(PLAIN) - 1}, errors.InvalidBatch, "declares"),
        ({"uncompressed_length": LIMIT + 1}, errors.MessageTooLarge, "max_batch"),
        ({"uncompressed_length": 2**32 - 1}, errors.MessageTooLarge, "4294967295"),
        ({"base_timestamp": -1}, errors.InvalidBatch, "timestamps"),
        ({"base_timestamp": 11}, errors.InvalidBatch, "base 11"),
        ({"max_timestamp": 9}, errors.InvalidBatch, "max 9"),
        ({"producer_id": 0}, errors.InvalidBatch, "producer_id"),
        ({"producer_epoch": 0}, errors.InvalidBatch, "producer_epoch"),
        ({"base_sequence": 0}, errors.InvalidBatch, "base_sequence"),
        ({"producer_id": -2}, errors.InvalidBatch, "producer_id"),
        ({"producer_id": 1, "producer_epoch": 0, "base_sequence": 2**63 - 2}, errors.InvalidBatch,
         "base_sequence"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(
    fields: dict[str, Any], kind: type[errors.ZBrokerError], named: str
) -> None:
    refused(wrong(**fields), kind, named)


@pytest.mark.parametrize(
    "fields",
    [
        {"reserved": 255},
        {"attributes": 0xFF00},
        {"base_offset": -5},
        {"append_time": -5},
        {"leader_epoch": -5},
        {"stamp_attributes": 0xFFFF},
        {"stamp_reserved": 0xFFFF},
        {"header_crc": 5},
        {"max_timestamp": 2**63 - 1},
        {"base_timestamp": 0},
    ],
)
def test_what_says_nothing_to_the_leader_is_let_be(fields: dict[str, int]) -> None:
    assert check_ingest(wrong(**fields), max_length=LIMIT).span == 2


def test_a_control_batch_passes_among_nodes() -> None:
    assert check_ingest(wrong(attributes=0x10), max_length=LIMIT, allow_control=True).is_control
    with pytest.raises(errors.UnsupportedAttribute):
        check_ingest(wrong(attributes=0x20), max_length=LIMIT, allow_control=True)


@pytest.mark.parametrize("at", range(60))
def test_every_byte_of_the_producers_zone_is_covered_by_its_crc(at: int) -> None:
    batch = bytearray(wrong())
    batch[at] ^= 0x01
    with pytest.raises(errors.ZBrokerError):
        check_ingest(batch, max_length=LIMIT)


def test_every_byte_of_a_stamped_batch_is_covered() -> None:
    batch = bytearray(oracle.build([RECORD], stamp={"base_offset": 7}))
    for at in range(len(batch)):
        batch[at] ^= 0x10
        with pytest.raises(errors.ZBrokerError):
            list(iter_batches(bytes(batch) + bytes(200)))
        batch[at] ^= 0x10
    assert len(list(iter_batches(batch))) == 1


def test_damage_is_told_from_contradiction() -> None:
    batch = bytearray(wrong())
    batch[-1] ^= 1
    assert refused(bytes(batch), errors.CorruptBatch, "CRC-32C").retriable
    for length in range(88):
        refused(bytes(batch[:length]), errors.InvalidBatch, "88 bytes")


def test_a_batch_over_the_limit_is_refused_by_what_was_sent_too() -> None:
    payload = bytes(LIMIT)
    error = refused(wrong(payload=payload), errors.MessageTooLarge, "max_batch")
    assert error.details == {"size": LIMIT + 88, "limit": LIMIT}


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc0", b"\x80", b"\xdc", b"\xdc\x00", b"\xdd\x00\x00\x00", b"\xc4\x02ab", b"\xff"],
)
def test_a_payload_that_is_no_array_is_refused(payload: bytes) -> None:
    refused(wrong(payload=payload, span=1, uncompressed_length=len(payload)), errors.InvalidBatch)


@pytest.mark.parametrize("count", [1, 15, 16, 65535, 65536])
def test_arrays_of_every_width_are_counted(count: int) -> None:
    batch = oracle.build([None] * count)
    assert check_ingest(batch, max_length=1 << 20).span == count
    assert decode_records(batch, 0, read_header(batch)) == [None] * count


# Compressed frames that are not what they should be ---

SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


@pytest.mark.parametrize("codec", [1, 2])
@pytest.mark.parametrize(
    "twist",
    [
        pytest.param(lambda frame: frame + frame, id="two frames"),
        pytest.param(lambda frame: frame + SKIPPABLE, id="a skippable frame behind"),
        pytest.param(lambda frame: SKIPPABLE + frame, id="a skippable frame before"),
        pytest.param(lambda frame: SKIPPABLE, id="a skippable frame alone"),
        pytest.param(lambda frame: frame + b"\x00", id="a byte behind"),
        pytest.param(lambda frame: frame[:-1], id="a byte short"),
        pytest.param(lambda frame: frame[:10], id="the frame's header alone"),
        pytest.param(lambda frame: b"", id="nothing"),
        pytest.param(lambda frame: PLAIN, id="not compressed"),
    ],
)
def test_a_payload_is_one_whole_frame(codec: int, twist: Any) -> None:
    refused(wrong(codec, payload=twist(oracle.compress(codec, PLAIN))), errors.InvalidBatch)


@pytest.mark.parametrize("codec", [1, 2])
@pytest.mark.parametrize("declared", [2, 100, len(PLAIN) - 1, len(PLAIN) + 1, LIMIT])
def test_a_frame_that_holds_more_or_less_than_declared_is_refused(
    codec: int, declared: int
) -> None:
    refused(wrong(codec, uncompressed_length=declared), errors.InvalidBatch, "declare")


def test_a_nested_frame_is_no_array() -> None:
    for codec in (1, 2):
        inner = oracle.compress(codec, PLAIN)
        outer = oracle.compress(codec, inner)
        refused(
            wrong(codec, payload=outer, uncompressed_length=len(inner)),
            errors.InvalidBatch,
            "array",
        )


def test_a_zstandard_window_over_8_mib_is_refused() -> None:
    for log in range(10, 28):
        block = (1 | 0 << 1 | len(PLAIN) << 3).to_bytes(3, "little") + PLAIN
        frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + block
        batch = wrong(2, payload=frame)
        if log <= 23:
            assert check_ingest(batch, max_length=LIMIT).span == 2
        else:
            refused(batch, errors.InvalidBatch, "memory")


# Malformed inside: taken by the leader, stepped over by readers ---


@pytest.mark.parametrize(
    "element",
    [
        0,
        b"bin",
        {},
        [],
        [0, None, None],
        [0, None, None, [], None],
        [0.0, None, None, []],
        [True, None, None, []],
        [2**63, None, None, []],
        ["0", None, None, []],
        [None, None, None, []],
        [0, "text", None, []],
        [0, None, 5, []],
        [0, None, [], []],
        [0, None, None, None],
        [0, None, None, {}],
        [0, None, None, ["h"]],
        [0, None, None, [["h"]]],
        [0, None, None, [["h", "text"]]],
        [0, None, None, [[b"h", b""]]],
        [0, None, None, [[None, b""]]],
        [0, None, None, [["h", b"", b""]]],
        [0, None, msgpack.ExtType(1, b""), []],
        [0, None, msgpack.Timestamp(1), []],
        [float("nan"), None, None, []],
    ],
)
def test_a_record_that_is_malformed_inside_names_its_offsets(element: Any) -> None:
    batch = oracle.build([RECORD, element], stamp={"base_offset": 40})
    assert check_ingest(batch, max_length=LIMIT).span == 2
    unreadable(batch)


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"\x94\x00\xc0\xc0\x91\x92\xa1\xff\xc0", id="invalid UTF-8"),
        pytest.param(b"\x94\x00\xc0\xc6\xff\xff\xff\xffabc", id="a bin of 4 GiB"),
        pytest.param(b"\x94\x00\xc0\xc0\xdd\xff\xff\xff\xff", id="4 G headers"),
        pytest.param(b"\x94\x00\xc0\xc0\x91\x92\xdb\xff\xff\xff\xff", id="a str of 4 GiB"),
        pytest.param(b"\x94\x00\xc0\xdf\xff\xff\xff\xff", id="a map of 4 G"),
        pytest.param(b"\x91" * 5000 + b"\xc0", id="nested arrays"),
        pytest.param(b"\x81\xa1a" * 5000 + b"\xc0", id="nested maps"),
        pytest.param(b"\xc1", id="a byte that is never used"),
        pytest.param(b"", id="cut short"),
        pytest.param(b"\xc0\xc0", id="more behind the array"),
    ],
)
def test_hostile_records_name_their_offsets_too(tail: bytes) -> None:
    payload = b"\x92\xc0" + tail
    header = oracle.parse(oracle.build([None]))[0] | {
        "span": 2, "payload_length": len(payload), "uncompressed_length": len(payload),
        "base_offset": 40,
    }  # fmt: skip
    unreadable(oracle.seal(header, payload, stamped=True))


def unreadable(batch: bytes) -> None:
    [(at, header)] = iter_batches(batch)
    with pytest.raises(errors.InvalidRecord) as caught:
        decode_records(batch, at, header)
    assert caught.value.details == {"first": 40, "next": 42}
    assert "offsets 40 to 41" in str(caught.value)
    assert not caught.value.retriable


@pytest.mark.parametrize(
    "fields",
    [{"attributes": 0x08}, {"attributes": 0x20}, {"attributes": 0x40}, {"attributes": 0x03},
     {"stamp_attributes": 0x02}, {"stamp_attributes": 0x80}],
)  # fmt: skip
def test_a_reader_refuses_critical_attributes_and_can_step_over(fields: dict[str, int]) -> None:
    stamp = {"base_offset": 40} | {k: v for k, v in fields.items() if k == "stamp_attributes"}
    given = {k: v for k, v in fields.items() if k == "attributes"}
    batch = oracle.build([RECORD, None], stamp=stamp, **given)
    [(at, header)] = iter_batches(batch)
    with pytest.raises(errors.UnsupportedAttribute) as caught:
        decode_records(batch, at, header)
    assert caught.value.details == {"first": 40, "next": 42}


def test_a_reader_ignores_attributes_that_may_be_ignored() -> None:
    batch = oracle.build([None], attributes=0xFF00, stamp={"stamp_attributes": 0xFF01})
    [(at, header)] = iter_batches(batch)
    assert decode_records(batch, at, header) == [None]


@pytest.mark.parametrize(
    "stamp", [{"base_offset": -1}, {"base_offset": 2**63 - 1}, {"span": 0}, {"span": 2**31}]
)
def test_a_stamped_header_whose_offsets_cannot_be_is_refused(stamp: dict[str, int]) -> None:
    batch = oracle.build([None], stamp=stamp)
    with pytest.raises(errors.CorruptBatch):
        list(iter_batches(batch))


def test_a_reader_bounds_what_it_decompresses() -> None:
    plain = msgpack.packb([[0, None, bytes(1 << 20), []]], use_bin_type=True)
    for codec in (0, 1, 2):
        payload = oracle.compress(codec, plain)
        header = oracle.parse(oracle.build([None]))[0] | {
            "attributes": codec, "payload_length": len(payload), "uncompressed_length": len(plain),
        }  # fmt: skip
        batch = oracle.seal(header, payload, stamped=True)
        assert len(decode_records(batch, 0, read_header(batch))) == 1
        with pytest.raises(errors.InvalidRecord, match="more than 1000 bytes"):
            decode_records(batch, 0, read_header(batch), max_length=1000)
    assert code.MAX_UNCOMPRESSED == 1 << 30
