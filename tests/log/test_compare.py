"""Copies of a log compared offline: what is the same, and the first place where two part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from zbroker.log import names
from zbroker.log.compare import Copy, compare
from zbroker.node.files import RealFiles
from zbroker.protocol import thinning
from zbroker.protocol.batch import encode_batch, read_header, stamp


def batch(base: int, *values: bytes, epoch: int = 1, time: int = 1000) -> bytes:
    """A stamped batch from an offset on."""
    made = encode_batch(
        [(0, None, value, ()) for value in values], base_timestamp=time, max_timestamp=time,
        producer_id=-1, producer_epoch=-1, base_sequence=-1,
    )  # fmt: skip
    stamp(made, base_offset=base, append_time=time, leader_epoch=epoch)
    return bytes(made)


TEN = [batch(base, b"a%d" % base, b"b%d" % base) for base in range(0, 20, 2)]


def copy(
    folder: Path, batches: Sequence[bytes], *, per_segment: int = 100, start: int | None = None
) -> Copy:
    """A log of these batches, with segments of so many."""
    root = folder / str(len(list(folder.iterdir())))
    (root / "log").mkdir(parents=True)
    paths = []
    for at in range(0, len(batches), per_segment):
        part = batches[at : at + per_segment]
        path = names.path("log", read_header(part[0]).base_offset, names.LOG)
        (root / path).write_bytes(b"".join(part))
        paths.append(path)
    first = read_header(batches[0]).base_offset if batches else 0
    end = read_header(batches[-1]).next_offset if batches else 0
    return Copy(RealFiles(str(root), descriptors=4), paths, first if start is None else start, end)


@pytest.mark.parametrize("per_segment", [1, 3, 100])
def test_files_may_begin_and_end_anywhere(tmp_path: Path, per_segment: int) -> None:
    found = compare(copy(tmp_path, TEN), copy(tmp_path, TEN, per_segment=per_segment))
    assert (found.first, found.next, found.batches, found.difference) == (0, 20, 10, None)


@pytest.mark.parametrize(("start", "batches"), [(6, 7), (7, 6)])
def test_only_what_both_keep_is_compared(tmp_path: Path, start: int, batches: int) -> None:
    """A shorter copy, and one whose start lies higher, even inside a batch."""
    found = compare(copy(tmp_path, TEN[:9]), copy(tmp_path, TEN[3:], start=start))
    assert found.difference is None
    assert (found.first, found.next, found.batches) == (start, 18, batches - 1)
    other = [batch(0, b"older", b"x"), *TEN[1:]]  # before the later start nothing counts
    assert compare(copy(tmp_path, other), copy(tmp_path, TEN, start=2)).difference is None


def test_nothing_in_common(tmp_path: Path) -> None:
    found = compare(copy(tmp_path, TEN[:3]), copy(tmp_path, TEN[5:]))
    assert (found.first, found.next, found.batches) == (10, 10, 0)
    assert compare(copy(tmp_path, []), copy(tmp_path, TEN)).difference is None


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        (batch(6, b"a6", b"b6", epoch=2), ["leader_epoch", "header_crc"]),
        (batch(6, b"a6", b"b6", time=1001), None),
        (batch(6, b"a6", b"XX"), ["crc", "header_crc"]),
    ],
    ids=["epoch", "time", "value"],
)
def test_the_first_difference_is_told_with_both_batches(
    tmp_path: Path, other: bytes, fields: list[str] | None
) -> None:
    found = compare(copy(tmp_path, TEN), copy(tmp_path, [*TEN[:3], other, *TEN[4:]]))
    assert found.batches == 3
    assert found.difference is not None
    assert found.difference.offset == 6
    assert found.difference.left is not None
    assert found.difference.right is not None
    assert found.difference.right.header == read_header(other)
    if fields is not None:
        assert found.difference.fields == fields


def test_a_payload_that_alone_differs(tmp_path: Path) -> None:
    rotten = bytearray(TEN[4])
    rotten[-1] ^= 1
    found = compare(copy(tmp_path, TEN), copy(tmp_path, [*TEN[:4], bytes(rotten), *TEN[5:]]))
    assert found.difference is not None
    assert (found.difference.offset, found.difference.fields) == (8, ["payload"])
    assert found.difference.right is not None
    assert not found.difference.right.payload_intact


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_that_one_side_lacks(tmp_path: Path, side: str) -> None:
    whole, lacking = copy(tmp_path, TEN), copy(tmp_path, [*TEN[:2], *TEN[3:]])
    found = compare(lacking, whole) if side == "left" else compare(whole, lacking)
    assert found.difference is not None
    assert found.difference.offset == 4
    assert getattr(found.difference, side) is None
    assert found.difference.fields == []


def test_other_batches_over_the_same_offsets(tmp_path: Path) -> None:
    """Four records in one batch here, in two there."""
    joined = batch(4, b"a4", b"b4", b"a6", b"b6")
    found = compare(copy(tmp_path, TEN), copy(tmp_path, [*TEN[:2], joined, *TEN[4:]]))
    assert found.difference is not None
    assert (found.difference.offset, found.batches) == (4, 2)


def thinned(data: bytes, *stay: int) -> bytes:
    """A batch after compaction, with these of its records left."""
    header = read_header(data)
    (rows,) = thinning.rows_of(data, header)
    return bytes(
        thinning.thin(header, [row if at in stay else None for at, row in enumerate(rows)])
    )


def behind_a_gap(data: bytes) -> bytes:
    """A whole batch, before which compaction removed others."""
    marked = bytearray(data)
    thinning.mark(marked, read_header(data))
    return bytes(marked)


def test_each_copy_may_be_compacted_for_itself(tmp_path: Path) -> None:
    left = [TEN[0], thinned(TEN[3], 0), *TEN[4:7], thinned(TEN[9])]
    right = [thinned(TEN[0], 1), TEN[1], behind_a_gap(TEN[3]), *TEN[4:]]
    for one, other in ((left, right), (right, left), (left, TEN), (right, TEN)):
        found = compare(copy(tmp_path, one), copy(tmp_path, other))
        assert (found.next, found.difference) == (20, None)


def test_what_both_kept_is_the_same_in_compacted_copies(tmp_path: Path) -> None:
    other = batch(4, b"a4", b"another")
    for left, right, equal in (
        (thinned(TEN[2], 0), thinned(other, 1), True),
        (thinned(TEN[2], 1), thinned(other, 1), False),
        (thinned(TEN[2], 0), thinned(batch(4, b"a4", b"b4", epoch=2), 0), False),
    ):
        found = compare(copy(tmp_path, [left]), copy(tmp_path, [right]))
        assert (found.difference is None) == equal


def test_a_gap_that_nobody_marked_is_a_difference(tmp_path: Path) -> None:
    lacking = [TEN[0], *TEN[2:5], behind_a_gap(TEN[6]), *TEN[7:]]
    found = compare(copy(tmp_path, TEN), copy(tmp_path, lacking))
    assert found.difference is not None
    assert found.difference.offset == 2
