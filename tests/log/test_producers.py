"""Idempotence: what is new, what is a duplicate, what is out of order, and what a rollback leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker.errors import OutOfOrderSequence, ProducerFenced, UnknownProducer, ZBrokerError
from zbroker.log import Duplicate, ProducerTable
from zbroker.log import producers as snapshots
from zbroker.log.envelope import unseal
from zbroker.protocol.batch import MAGIC, BatchHeader


class Past:
    """A producer table and where its log is."""

    def __init__(self, expiry: int = 1000) -> None:
        self.table = ProducerTable(expiry)
        self.offset = 0

    def header(self, sequence: int, count: int = 1, *, pid: int = 1, epoch: int = 0,
               time: int = 0) -> BatchHeader:  # fmt: skip
        return BatchHeader(MAGIC, 1, 0, count, 1, 1, 0, 0, pid, sequence, epoch, 0,
                           self.offset, time, 7, 0, 0)  # fmt: skip

    def append(self, sequence: int, count: int = 1, **more: int) -> BatchHeader:
        header = self.header(sequence, count, **more)
        assert self.table.check(header) is None
        self.table.append(header)
        self.offset += count
        return header

    def check(self, sequence: int, count: int = 1, **more: int) -> Duplicate | None:
        return self.table.check(self.header(sequence, count, **more))


def test_a_batch_without_a_producer_is_always_new() -> None:
    past = Past()
    past.append(-1, pid=-1, epoch=-1)
    assert past.check(-1, pid=-1, epoch=-1) is None


def test_an_unknown_producer_begins_at_zero() -> None:
    with pytest.raises(UnknownProducer):
        Past().check(1)


def test_a_repeated_batch_is_a_duplicate_with_its_offset() -> None:
    past = Past()
    past.append(0, 3)
    past.append(3, 2, time=5)
    assert past.check(3, 2) == Duplicate(3, 5, 7)
    assert past.check(0, 3) == Duplicate(0, 0, 7)


@pytest.mark.parametrize(("sequence", "count"), [(0, 2), (1, 2), (3, 1), (6, 1), (4, 1)])
def test_what_neither_continues_nor_repeats_is_out_of_order(sequence: int, count: int) -> None:
    past = Past()
    past.append(0, 3)
    past.append(3, 2)
    with pytest.raises(OutOfOrderSequence) as error:
        past.check(sequence, count)
    assert error.value.details == {"expected": 5}


def test_an_older_epoch_is_fenced_and_a_newer_begins_at_zero() -> None:
    past = Past()
    past.append(0, epoch=2)
    with pytest.raises(ProducerFenced):
        past.check(1, epoch=1)
    with pytest.raises(OutOfOrderSequence):
        past.check(1, epoch=3)
    past.append(0, epoch=3)
    with pytest.raises(ProducerFenced):
        past.check(1, epoch=2)


def test_10_the_window_holds_five_written_batches_and_all_that_are_not() -> None:
    past = Past()
    for sequence in range(20):
        past.append(sequence)
    assert past.check(0) is not None, "nothing is written, so nothing may be forgotten"
    past.table.settled = 20
    past.append(20)
    assert past.check(16) == Duplicate(16, 0, 7)
    with pytest.raises(OutOfOrderSequence):
        past.check(14)


def test_a_rollback_knows_what_was_known_before() -> None:
    past = Past()
    for sequence in range(5):
        past.append(sequence)
    past.table.settled = 5
    for sequence in range(5, 12):
        past.append(sequence)
    past.append(0, epoch=1)
    past.append(0, pid=2)
    past.table.rollback(5, 0)
    past.offset = 5
    for sequence in range(5):
        assert past.check(sequence) == Duplicate(sequence, 0, 7)
    assert past.check(5) is None
    with pytest.raises(UnknownProducer):
        past.check(1, pid=2)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15)), min_size=1, max_size=300),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_a_rollback_as_far_back_as_is_promised_leads_to_what_the_headers_lead_to(
    whose: list[tuple[int, int]], saved: int, cut: int
) -> None:
    past, again = Past(expiry=40), ProducerTable(40)
    headers: list[BatchHeader] = []
    following = dict.fromkeys(range(3), 0)
    for at, (pid, wait) in enumerate(whose):
        time = max(past.table.time, 0) + (wait if wait > 12 else 0)
        try:
            past.check(following[pid], pid=pid)
        except UnknownProducer:
            following[pid] = 0
        past.table.settled = at
        headers.append(past.append(following[pid], pid=pid, time=time))
        following[pid] += 1
        if at == saved:
            past.table.snapshot(at + 1, time)
    end = max(past.table.exact_from, len(headers) - cut)
    assert end <= len(headers)
    for header in headers[:end]:
        again.settled = header.base_offset
        again.append(header)
    past.table.rollback(end, again.time)
    assert past.table.snapshot(end, again.time) == again.snapshot(end, again.time)


def test_a_producer_expires_by_append_time_along_the_log_only() -> None:
    past = Past(expiry=100)
    past.append(0, time=0)
    past.append(-1, pid=-1, epoch=-1, time=100)
    past.append(1, time=100)
    past.append(-1, pid=-1, epoch=-1, time=201)
    with pytest.raises(UnknownProducer):
        past.check(2)
    past.append(0, time=201)
    with pytest.raises(OutOfOrderSequence):
        past.check(1 - 1, 2)
    assert past.check(0) == Duplicate(4, 201, 7), "what it sent before it expired is forgotten"


def test_expiry_is_taken_back_with_the_batch_that_showed_it() -> None:
    past = Past(expiry=100)
    past.append(0, time=0)
    past.append(1, time=50)
    past.append(-1, pid=-1, epoch=-1, time=500)
    past.append(0, time=500)
    past.table.rollback(2, 50)
    past.offset = 2
    assert past.check(1) == Duplicate(1, 50, 7)


def test_a_producer_that_a_snapshot_let_go_cannot_be_taken_back() -> None:
    past = Past(expiry=100)
    past.append(0, time=0)
    past.append(-1, pid=-1, epoch=-1, time=500)
    assert past.table.exact_from == 0
    past.table.settled = 2
    past.table.snapshot(2, 500)
    assert past.table.exact_from == 2


def test_whom_a_snapshot_let_go_is_out_of_reach_however_much_is_forgotten_afterwards() -> None:
    past = Past(expiry=100)
    past.append(0, pid=9)
    for sequence in range(20):
        past.table.settled = past.offset
        past.append(sequence, time=500)
    past.table.settled = past.offset
    past.table.snapshot(past.offset, 500)
    let_go = past.table.exact_from
    assert let_go == past.offset
    for sequence in range(20, 20 + ProducerTable.UNDO):
        past.append(sequence, time=500)
        past.table.settled = past.offset
        assert past.table.exact_from >= let_go


def test_a_damaged_snapshot_is_none() -> None:
    past = Past()
    past.append(0)
    data = past.table.snapshot(1, 0).encode()
    body = unseal(snapshots.MAGIC, data, "x")
    assert body is not None
    assert snapshots.decode(body) == past.table.snapshot(1, 0)
    assert unseal(snapshots.MAGIC, data[:-1], "x") is None
    assert unseal(snapshots.MAGIC, data[:-1] + b"?", "x") is None
    assert snapshots.decode(b"\x93\x01\x02\xc0") is None


Step = tuple[int, int, int, int]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 60),
                          st.integers(0, 9)), max_size=60), st.integers(0, 60))  # fmt: skip
def test_snapshot_and_headers_lead_to_the_same_state_as_the_whole_log(
    steps: list[Step], cut: int
) -> None:
    live = ProducerTable(100)
    headers: list[BatchHeader] = []
    sequences: dict[int, tuple[int, int]] = {}
    time = offset = 0
    for pid, count, wait, chance in steps:
        time += wait
        epoch, sequence = sequences.get(pid, (0, 0))
        if chance == 0:
            epoch, sequence = epoch + 1, 0
        header = BatchHeader(MAGIC, 1, 0, count, 1, 1, 0, 0, pid, sequence, epoch, 0,
                             offset, time, 0, 0, 0)  # fmt: skip
        try:
            assert live.check(header) is None
        except ZBrokerError:
            header = msgspec_replace(header, base_sequence=0)
            assert live.check(header) is None
        sequences[pid] = (epoch, header.base_sequence + count)
        live.append(header)
        if chance > 4:
            live.settled = offset
        headers.append(header)
        offset += count
    kept = headers[:cut]
    end = kept[-1].next_offset if kept else 0
    at = kept[-1].append_time if kept else -1
    rebuilt = ProducerTable(100)
    middle = ProducerTable(100)
    for header in kept[: cut // 2]:
        middle.settled = header.base_offset
        middle.append(header)
    if kept[: cut // 2]:
        last = kept[: cut // 2][-1]
        rebuilt.restore(middle.snapshot(last.next_offset, last.append_time))
    for header in kept[cut // 2 :]:
        rebuilt.settled = header.base_offset
        rebuilt.append(header)
    reference = ProducerTable(100)
    for header in kept:
        reference.append(header)
    assert rebuilt.snapshot(end, at) == reference.snapshot(end, at)


def msgspec_replace(header: BatchHeader, **changes: int) -> BatchHeader:
    import msgspec

    return msgspec.structs.replace(header, **changes)
