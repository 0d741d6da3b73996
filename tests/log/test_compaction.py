"""Compaction by key: what stays, what goes, and what everything else that a log does makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log.keyed import COMPACT, Keyed, keyed_batch, records_in
from log.world import FOLDER, World
from msgspec.structs import replace

from zbroker.log import Closed, CompactionDone, Duplicate, Found, ReadDone
from zbroker.log.inspect import verify_folder
from zbroker.log.settings import LogSettings
from zbroker.protocol import batch as batches
from zbroker.protocol import thinning
from zbroker.testing.disk import SimulatedDisk


@pytest.fixture
def keyed(world: World) -> Keyed:
    return Keyed(world)


def done(events: list[Any]) -> CompactionDone:
    (event,) = [event for event in events if isinstance(event, CompactionDone)]
    return event


def sealed(keyed: Keyed) -> int:
    return keyed.log.segments[-1].base


# What stays ---


def test_each_keys_newest_record_stays_and_offsets_stay(keyed: Keyed) -> None:
    keyed.fill(60, keys=7)
    before = keyed.log.size
    event = done(keyed.compact())
    end = sealed(keyed)
    found = keyed.check()
    newest = {offset for offset, _ in keyed.newest(limit=end).values()}
    assert {offset for offset in found if offset < end} == newest
    assert event.point == end
    assert event.removed == end - len(newest)
    assert keyed.log.size < before
    assert keyed.log.end_offset == 180


def test_the_active_segment_and_what_is_not_committed_stay_whole(keyed: Keyed) -> None:
    keyed.fill(60)
    committed = keyed.log.segments[2].end + 1
    event = done(keyed.compact(committed=committed))
    assert event.point == keyed.log.segments[1].base  # two segments became one
    found = keyed.read()
    assert all(offset in found for offset in range(event.point, keyed.log.end_offset))


def test_what_is_compacted_once_is_compacted_again_with_what_came_since(keyed: Keyed) -> None:
    for _ in range(5):
        keyed.fill(25, keys=5)
        keyed.roll()
        keyed.compact()
        assert len(keyed.check()) == 5
    assert keyed.log.segment_count == 2  # and what became small was joined


def test_a_segment_ends_where_it_ended_though_its_last_batch_goes(keyed: Keyed) -> None:
    """The next one begins there: between the two nothing is missing."""
    for at in range(12):
        keyed.put((b"own %d" % at, bytes(700)), (b"own %d, too" % at, bytes(700)))
        keyed.put((b"all", b"%d" % at))
    keyed.roll()
    bases = [segment.base for segment in keyed.log.segments]
    keyed.compact()
    assert [segment.base for segment in keyed.log.segments] == bases
    assert len(bases) > 10
    keyed.world.remove(keyed.world.path("checkpoint"))
    keyed.world.crash()
    assert keyed.log.damaged == []
    assert verify_folder(keyed.world.files, FOLDER).problems == []
    assert [value for key, value in keyed.check().values() if key == b"all"] == [b"11"]


def test_nothing_is_written_where_nothing_goes(keyed: Keyed) -> None:
    keyed.fill(30, keys=5)
    keyed.roll()
    keyed.compact()
    files = {
        name: keyed.world.content(keyed.world.path(name)) for name in keyed.world.names(".log")
    }
    event = done(keyed.compact())
    assert (event.removed, event.written) == (0, 0)
    assert files == {
        name: keyed.world.content(keyed.world.path(name)) for name in keyed.world.names(".log")
    }


def test_records_without_a_key_and_control_batches_stay(keyed: Keyed) -> None:
    keyed.put((None, b"no key"), (b"a", b"1"), (None, None))
    keyed.put((b"a", b"control"), attributes=batches.CONTROL)
    keyed.put((b"a", b"2"))
    keyed.roll()
    control = keyed.world.content(keyed.world.segment(0))
    keyed.compact()
    found = keyed.read()
    assert found == {0: (None, b"no key"), 2: (None, None), 4: (b"a", b"2")}
    headers = [header for _, header in batches.iter_batches(keyed.world.read(0).chunk)]
    assert [header.is_control for header in headers] == [False, True, False]
    assert control != keyed.world.content(keyed.world.segment(0))


def test_a_batch_that_is_malformed_inside_stays_as_it_is(keyed: Keyed) -> None:
    keyed.put((b"a", b"1"))
    batch = batches.finish_batch(
        bytearray(batches.HEADER_SIZE) + b"\x91\xa3odd", 1, base_timestamp=0, max_timestamp=0
    )
    batches.stamp(batch, base_offset=1, append_time=0, leader_epoch=0)
    keyed.log.append(batch, batches.read_header(batch))
    keyed.world.run()
    keyed.records[1] = (None, None)
    keyed.put((b"a", b"2"))
    keyed.roll()
    keyed.compact()
    chunk = keyed.world.read(0).chunk
    assert bytes(batch[: batches.CRC_AT]) in chunk
    assert [header.base_offset for _, header in batches.iter_batches(chunk)] == [1, 2]


def test_what_no_reader_gets_takes_nothings_place(keyed: Keyed) -> None:
    """A record with the key `a` whose value is text: the batch is malformed, and says nothing of `a`."""
    keyed.put((b"a", b"1"))
    batch = batches.finish_batch(
        bytearray(batches.HEADER_SIZE) + b"\x91\x94\x00\xc4\x01a\xa3odd\x90",
        1,
        base_timestamp=0,
        max_timestamp=0,
    )
    batches.stamp(batch, base_offset=1, append_time=0, leader_epoch=0)
    keyed.log.append(batch, batches.read_header(batch))
    keyed.world.run()
    keyed.roll()
    keyed.compact()
    chunk = keyed.world.read(0).chunk
    assert [header.base_offset for _, header in batches.iter_batches(chunk)] == [0, 1]


@pytest.mark.parametrize("codec", [0, 1, 2])
def test_a_thinned_batch_keeps_everything_but_its_records(keyed: Keyed, codec: int) -> None:
    filler = bytes(300)
    whole = keyed.put(
        (b"a", b"1" + filler), (b"b", b"2" + filler), (b"c", b"3" + filler), (b"d", b"4" + filler),
        time=5000, codec=codec, epoch=3, producer=(9, 1, 20), stamp_attributes=batches.APPEND_TIME,
    )  # fmt: skip
    keyed.put((b"a", b"5"), (b"d", b"6"))
    keyed.roll()
    keyed.compact()
    chunk = keyed.world.read(0).chunk
    at, thinned = next(batches.iter_batches(chunk))
    assert thinned.is_compacted
    same = {
        "span": 4, "base_timestamp": 5000, "max_timestamp": 5002, "producer_id": 9, "producer_epoch": 1,
        "base_sequence": 20, "base_offset": 0, "append_time": 5000, "leader_epoch": 3, "compression": codec,
        "stamp_attributes": whole.stamp_attributes | batches.COMPACTED,
    }  # fmt: skip
    assert {name: getattr(thinned, name) for name in same} == same
    rows = batches.decode_records(chunk, at, thinned)
    assert rows == [
        None,
        (1, b"b", b"2" + filler, (("n", b"1"),)),
        (2, b"c", b"3" + filler, (("n", b"2"),)),
        None,
    ]


def test_a_large_batch_is_thinned_in_pieces() -> None:
    count = thinning.PIECE * 2 + 5
    batch, header = keyed_batch([(b"k%d" % at, b"v") for at in range(count)], offset=7, codec=1)
    pieces = list(thinning.rows_of(batch, header))
    assert [len(piece) for piece in pieces] == [thinning.PIECE, thinning.PIECE, 5]
    rows = [row for piece in pieces for row in piece]
    rows[0] = rows[thinning.PIECE] = rows[-1] = None
    thinned = thinning.thin(header, rows)
    assert batches.payload_intact(thinned, 0, batches.read_header(thinned))
    offsets = [offset for offset, _ in records_in(bytes(thinned))]
    gone = {7, 7 + thinning.PIECE, 7 + count - 1}
    assert offsets == [offset for offset in range(7, 7 + count) if offset not in gone]


def test_the_map_of_keys_has_a_bound_and_the_rest_waits_for_the_next_time(keyed: Keyed) -> None:
    keyed.fill(80, keys=40)
    keyed.roll()
    keyed.log._compactor.keys_max = 10 * 160
    points = []
    while not points or points[-1] < sealed(keyed):
        points.append(done(keyed.compact()).point)
        keyed.check()
    assert len(points) > 5
    assert points == sorted({*points})
    assert len(keyed.check()) == 40


# Tombstones ---


def test_a_tombstone_stays_for_its_grace_and_then_goes(keyed: Keyed) -> None:
    keyed.put((b"a", b"1"), (b"b", b"1"))
    keyed.put((b"a", None), (b"c", b"1"))
    keyed.roll()
    assert done(keyed.compact(wall=5000)).tombstones == 1
    assert keyed.read() == {1: (b"b", b"1"), 2: (b"a", None), 3: (b"c", b"1")}
    assert keyed.log.compaction_due(4, 5999, 1 << 62) == 0
    assert done(keyed.compact(wall=5999)).tombstones == 1
    assert keyed.log.tombstones_lost == 0
    assert keyed.log.compaction_due(4, 6000, 1 << 62) > 0
    keyed.world.crash()  # the grace does not begin anew with the process
    assert done(keyed.compact(wall=6000)).tombstones == 0
    assert keyed.read() == {1: (b"b", b"1"), 3: (b"c", b"1")}
    assert keyed.log.tombstones_lost == 4
    assert keyed.log.compaction_due(4, 10**9, 1 << 62) == 0


def test_no_tombstone_goes_that_a_follower_has_to_get_still(keyed: Keyed) -> None:
    keyed.put((b"a", b"1"))
    keyed.put((b"a", None))
    keyed.put((b"b", None))
    keyed.roll()
    keyed.compact(wall=0)
    assert keyed.log.compaction_due(3, 5000, 0) == 0
    keyed.compact(wall=5000, below=2)
    assert keyed.read() == {2: (b"b", None)}
    assert keyed.log.tombstones_lost == 2


def test_a_key_that_was_deleted_is_there_again_when_it_is_written_again(keyed: Keyed) -> None:
    keyed.put((b"a", b"1"))
    keyed.put((b"a", None))
    keyed.roll()
    keyed.compact(wall=0)
    keyed.put((b"a", b"2"))
    keyed.roll()
    keyed.compact(wall=5000)
    assert keyed.read() == {2: (b"a", b"2")}


# Producers, time, epochs, indexes ---


def test_duplicates_are_known_over_what_is_compacted(keyed: Keyed) -> None:
    sent = [keyed.put((b"a", b"%d" % at), producer=(4, 0, at)) for at in range(12)]
    keyed.put((b"a", b"other"), producer=(5, 0, 0))
    keyed.fill(20, keys=1)
    keyed.roll()
    keyed.compact()
    for name in keyed.world.names(".producers"):
        keyed.world.remove(keyed.world.path(name))
    keyed.world.remove(keyed.world.path("checkpoint"))
    keyed.world.crash()  # nothing but the batches themselves tells who wrote last
    for header in sent[-5:]:
        again = keyed.log.producers.check(header)
        assert isinstance(again, Duplicate)
        assert again.base_offset == header.base_offset
    _, header = keyed_batch([(b"a", b"")], offset=0, producer=(4, 0, 12))
    assert keyed.log.producers.check(header) is None
    assert keyed.check().keys() == {12, keyed.log.end_offset - 1}
    keyed.compact()  # and again
    assert isinstance(keyed.log.producers.check(sent[-1]), Duplicate)


def test_a_producer_that_has_expired_leaves_nothing(keyed: Keyed) -> None:
    short = replace(COMPACT, producer_expiry=100)
    keyed.world.crash(short)
    keyed.put((b"a", b"1"), producer=(4, 0, 0), time=1000)
    keyed.put((b"a", b"2"), time=2000)
    keyed.roll()
    keyed.compact()
    headers = [header for _, header in batches.iter_batches(keyed.world.read(0).chunk)]
    assert [header.base_offset for header in headers] == [1]


def test_a_search_by_time_finds_what_is_there(keyed: Keyed) -> None:
    for at in range(40):
        keyed.put((b"k%d" % (at % 4), b"%d" % at + bytes(90)), time=1000 + 10 * at)
    keyed.roll()
    keyed.compact()
    assert keyed.world.find(1000) == Found("token", 36, 1360)
    assert keyed.world.find(1371) == Found("token", 38, 1380)
    keyed.world.crash()
    assert keyed.world.find(1385) == Found("token", 39, 1390)


def test_a_search_by_append_time_passes_over_what_is_gone(keyed: Keyed) -> None:
    stamped = batches.APPEND_TIME
    keyed.put((b"a", b"1"), (b"b", b"1"), time=1000, stamp_attributes=stamped)
    keyed.put((b"a", b"2"), time=2000, stamp_attributes=stamped)
    keyed.roll()
    keyed.compact()
    assert keyed.world.find(500) == Found("token", 1, 1000)


def test_epochs_stay_as_they_were(keyed: Keyed) -> None:
    for epoch in (1, 4, 5):
        keyed.log.begin_epoch(epoch)
        keyed.world.run()
        keyed.fill(10, keys=2, epoch=epoch)
    keyed.roll()
    before = [keyed.log.epoch_at(offset) for offset in range(90)]
    keyed.compact()
    assert [keyed.log.epoch_at(offset) for offset in range(90)] == before
    keyed.world.crash()
    assert [keyed.log.epoch_at(offset) for offset in range(90)] == before


def test_every_offset_can_be_read_from_with_and_without_indexes(keyed: Keyed) -> None:
    keyed.fill(80, keys=30)
    keyed.roll()
    keyed.compact()
    whole = keyed.check()
    for without in (False, True):
        if without:
            for name in keyed.world.names(".index"):
                keyed.world.remove(keyed.world.path(name))
            keyed.world.crash()
        for offset in range(keyed.log.end_offset):
            got = keyed.world.read(offset, 1)
            assert got.error is None, got.error
            first = next(records_in(got.chunk, offset), None)
            following = min((at for at in whole if at >= offset), default=None)
            if first is not None:
                assert first == (following, whole[following])  # type: ignore[index]


def test_a_stale_index_leads_nobody_past_a_record(keyed: Keyed) -> None:
    """An index of the old file whose entries happen to point at batches of the new one."""
    keyed.fill(80, keys=30)
    keyed.roll()
    keyed.compact()
    whole = keyed.read()
    base = keyed.log.segments[0].base
    from zbroker.log.index import Index

    lying = Index(base, 1)
    positions = [at for at, _ in batches.iter_batches(keyed.world.content(keyed.world.segment(0)))]
    for number, at in enumerate(positions):
        lying.add(base + number, at, 1, 0)
    lying.covered = keyed.log.segments[0].size
    keyed.world.write(keyed.world.path(f"{base:020d}.index"), lying.encode())
    keyed.world.crash()
    for offset in whole:
        got = keyed.world.read(offset, 1)
        assert offset in dict(records_in(got.chunk)), offset


# Beside everything else ---


def test_a_restart_finds_it_as_it_was(keyed: Keyed) -> None:
    keyed.fill(50)
    keyed.compact()
    found, end = keyed.check(), keyed.log.end_offset
    assert keyed.world.close() == Closed(clean=True)
    assert keyed.world.open(COMPACT).scanned_bytes == 0
    assert (keyed.check(), keyed.log.end_offset) == (found, end)
    keyed.world.crash()
    assert (keyed.check(), keyed.log.end_offset) == (found, end)
    keyed.world.remove(keyed.world.path("checkpoint"))
    keyed.world.crash()
    assert (keyed.check(), keyed.log.end_offset, keyed.log.damaged) == (found, end, [])
    assert verify_folder(keyed.world.files, FOLDER).problems == []


def test_a_damaged_segment_is_left_alone(keyed: Keyed) -> None:
    keyed.fill(60, keys=5)
    keyed.roll()
    bases = [segment.base for segment in keyed.log.segments]
    hurt = keyed.world.segment(2)
    keyed.world.flip(hurt, keyed.world.files.size(hurt) // 2)
    before = keyed.world.content(hurt)
    event = done(keyed.compact())
    assert keyed.world.content(hurt) == before
    assert event.point == bases[2]
    assert [segment.base for segment in keyed.log.segments][:3] == [0, bases[2], bases[3]]
    (lost,) = keyed.log.damaged
    for offset in range(*lost):
        keyed.records.pop(offset)
    keyed.check()


def test_a_tombstone_beyond_a_damaged_segment_stays(keyed: Keyed) -> None:
    """The damage may be healed by then, and an older value of its key is in there."""
    keyed.put((b"a", b"1" + bytes(1900)))
    keyed.fill(4, keys=1)
    keyed.roll()
    keyed.put((b"a", None))
    keyed.roll()
    hurt = keyed.world.segment(0)
    position = keyed.world.files.size(hurt) - 1
    keyed.world.flip(hurt, position)
    keyed.compact(wall=0)
    keyed.world.flip(hurt, position)
    keyed.log.damaged = []
    keyed.compact(wall=5000)
    assert all(key != b"a" or value is None for key, value in keyed.read().values())


def test_what_retention_takes_away_meanwhile_ends_it(keyed: Keyed) -> None:
    keyed.fill(60)
    keyed.log.want_checkpoint()
    keyed.world.run()
    keyed.log.compact(keyed.log.written_offset, 0)
    keyed.log.delete_before("token", keyed.log.segments[3].base)
    said = keyed.world.run()
    assert not any(isinstance(event, CompactionDone) for event in said)
    assert not keyed.log.compacting
    assert keyed.log.damaged == []
    assert keyed.world.names(".tmp") == []
    keyed.check()
    done(keyed.compact())
    keyed.check()


@pytest.mark.parametrize("steps", range(8))
def test_closing_restarting_and_altering_end_it(simulated: World, steps: int) -> None:
    for end in ("close", "restart", "alter"):
        simulated.storage.forget()
        fresh = World(None, seed=steps)
        keyed = Keyed(fresh)
        keyed.fill(60)
        keyed.log.want_checkpoint()
        fresh.run()
        keyed.log.compact(keyed.log.written_offset, 0)
        for _ in range(steps):
            fresh.storage.step()
        if end == "close":
            assert fresh.close() == Closed(clean=True)
            fresh.open(COMPACT)
            keyed.check()
        elif end == "restart":
            keyed.log.restart("token", 7)
            fresh.run()
            assert (keyed.log.start_offset, keyed.log.end_offset, keyed.log.size) == (7, 7, 0)
            assert fresh.names(".log") + fresh.names(".tmp") == []
        else:
            keyed.log.alter(replace(COMPACT, compact=False))
            fresh.run()
            assert fresh.names(".tmp") == []
            keyed.check()
        assert not keyed.log.compacting


def test_a_full_disk_leaves_everything_as_it_was(simulated: World) -> None:
    keyed = Keyed(simulated)
    keyed.fill(60)
    keyed.log.want_checkpoint()
    simulated.run()
    disk: SimulatedDisk = simulated.disk
    for room in range(0, 2400, 150):
        disk.budget = disk.used + room
        keyed.compact()
        keyed.check()
        assert not keyed.log.compacting
        disk.budget = None
        keyed.world.now += 100_000
        keyed.log.on_tick(keyed.world.now)
        simulated.run()
    done(keyed.compact())
    keyed.check()


def test_readers_see_each_keys_newest_value_at_every_step(simulated: World) -> None:
    """A reader goes through the log, another anywhere, while it is compacted step by step."""
    keyed = Keyed(simulated)
    keyed.fill(60, keys=9)
    keyed.log.want_checkpoint()
    simulated.run()
    keyed.log.compact(keyed.log.written_offset, 0)
    seen: dict[int, Any] = {}
    offset = steps = 0
    while keyed.log.compacting or offset < keyed.log.end_offset:
        keyed.log.read("walk", offset, 400, keyed.log.end_offset)
        keyed.log.read("jump", (offset * 7919) % keyed.log.end_offset, 400, keyed.log.end_offset)
        keyed.log.find_time("time", 0, keyed.log.end_offset)
        answers: list[Any] = []
        while not any(getattr(each, "token", None) == "walk" for each in answers):
            assert simulated.storage.step()
            steps += 1
            answers += simulated.events
            simulated.events.clear()
        for each in answers:
            assert getattr(each, "error", None) is None, each
            if isinstance(each, ReadDone):
                assert all(keyed.records[at] == pair for at, pair in records_in(each.chunk))
            if isinstance(each, ReadDone) and each.token == "walk":
                seen.update(records_in(each.chunk, offset))
                offset = each.next
        if offset >= keyed.log.end_offset and keyed.log.compacting:
            assert {k: v for k, v in keyed.newest().items() if v[0] not in seen} == {}
            seen, offset = {}, 0
    assert {k: v for k, v in keyed.newest().items() if v[0] not in seen} == {}
    assert steps > 50


def test_while_segments_are_exchanged_nobody_reads_in_them(simulated: World) -> None:
    """Without that, a position that was right in the old file may be that of a later batch in the new one."""
    keyed = Keyed(simulated)
    keyed.fill(60, keys=9)
    keyed.log.want_checkpoint()
    simulated.run()
    keyed.log.compact(keyed.log.written_offset, 0)
    storage, end = simulated.storage, keyed.log.end_offset
    while not keyed.log._compactor.wants_exchange:
        if not storage._waiting and storage._done[0].request.work.ready:
            keyed.log.read("early", 4, 100, end)
            storage.step()
        storage.step()
    keyed.log.read("late", 4, 100, end)
    keyed.log.read("elsewhere", keyed.log.segments[-1].base, 100, end)
    assert [request.token for request in storage._waiting] == ["elsewhere"]
    said = [event.token for event in simulated.run() if isinstance(event, ReadDone)]
    assert sorted(said) == ["early", "elsewhere", "late"]
    assert said[-1] == "late"
    keyed.check()


def test_it_waits_for_a_checkpoint_that_knows_its_segments(simulated: World) -> None:
    """A restart in the middle knows by it what was exchanged, and what had been on disk."""
    keyed = Keyed(simulated)
    keyed.fill(60)
    keyed.log.roll(1 << 60)
    while keyed.log.segments[-1].base < keyed.log.end_offset:
        simulated.storage.step()
    keyed.log.compact(keyed.log.written_offset, 0)
    assert not keyed.log.compacting
    simulated.run()
    keyed.log.compact(keyed.log.written_offset, 0)
    assert keyed.log.compacting
    simulated.run()
    keyed.check()


def test_when_it_is_due() -> None:
    world = World(None)
    keyed = Keyed(world, replace(COMPACT, min_dirty=60))
    log = keyed.log
    assert log.compaction_due(10**6, 0, 0) == 0
    keyed.fill(30)
    keyed.roll()
    assert log.compaction_due(log.end_offset, 0, 0) == 1
    assert log.compaction_due(0, 0, 0) == 0
    keyed.compact()
    assert log.compaction_due(log.end_offset, 0, 0) == 0
    clean = log.size
    while log.compaction_due(log.end_offset, 0, 0) == 0:
        keyed.fill(1)
        keyed.roll()
    assert log.size - clean > clean
    assert log.size < 4 * clean
    log.alter(replace(COMPACT, compact=False))
    assert log.compaction_due(log.end_offset, 0, 0) == 0


# A model ---

KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b""])
VALUES = st.one_of(st.none(), st.binary(max_size=60))
PUTS = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), PUTS, st.integers(0, 2), st.booleans()),
        st.tuples(st.just("compact"), st.integers(0, 900)),
        st.tuples(st.just("roll")),
        st.tuples(st.just("crash")),
        st.tuples(st.just("delete"), st.integers(0, 40)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", ["simulated", "real"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, room=st.sampled_from([1, 400, 1 << 20]), size=st.sampled_from([300, 900]))
def test_it_is_a_dict(
    tmp_path_factory: Any, kind: str, steps: list[Any], room: int, size: int
) -> None:
    """Whatever happens in whatever order: who reads everything has the dict that everything written makes."""
    root: Path | None = None if kind == "simulated" else tmp_path_factory.mktemp("log")
    world = World(root)
    keyed = Keyed(world, replace(COMPACT, segment_size=size))
    sequence = 0
    for step in steps:
        match step:
            case ("put", pairs, codec, idempotent):
                keyed.put(
                    *pairs, codec=codec, producer=(1, 0, sequence) if idempotent else (-1, -1, -1)
                )
                sequence += len(pairs) if idempotent else 0
            case ("compact", later):
                keyed.log._compactor.keys_max = room
                keyed.compact(wall=keyed.wall + later)
            case ("roll",):
                keyed.roll()
            case ("crash",):
                world.crash()
            case ("delete", offset):
                keyed.log.delete_before("token", min(offset, keyed.log.written_offset))
                world.run()
        keyed.check()
        state: dict[bytes, Any] = {}
        for _, (key, value) in sorted(keyed.read().items()):
            assert key is not None
            state[key] = value
        start = keyed.log.start_offset
        model = {k: v for k, (offset, v) in keyed.newest().items() if offset >= start}
        assert {k: v for k, v in state.items() if v is not None} == {
            k: v for k, v in model.items() if v is not None
        }
        assert keyed.log.damaged == []
    assert verify_folder(world.files, FOLDER).problems == []


def test_the_settings_of_a_log_that_is_not_compacted_leave_it_alone(keyed: Keyed) -> None:
    assert not LogSettings().compact
    keyed.world.crash(replace(COMPACT, compact=False))
    keyed.fill(40)
    assert keyed.log.compaction_due(keyed.log.end_offset, 0, 0) == 0
