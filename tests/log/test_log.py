"""What a log does while nothing goes wrong, over both kinds of files."""

from __future__ import annotations

import msgspec
import pytest
from log.world import FOLDER, SMALL, World

from zbroker.errors import InvalidRequest, NotReady, OffsetOutOfRange, UnknownProducer
from zbroker.log import (
    Closed,
    Duplicate,
    EpochBegun,
    Found,
    Log,
    LogSettings,
    Opened,
    ProducerTable,
    ReadDone,
    StartMoved,
    Truncated,
    delete_folder,
    reading,
)
from zbroker.log.requests import Upkeep, Write
from zbroker.log.storage import Completion, execute
from zbroker.protocol import batch as batches
from zbroker.protocol.batch import decode_records


def settings(**changes: object) -> LogSettings:
    return msgspec.structs.replace(SMALL, **changes)


# Appending ---


def test_what_is_appended_is_read_back(world: World) -> None:
    world.append(3)
    world.append(2)
    assert world.log.end_offset == 5
    assert world.log.written_offset == 0
    assert world.run() == []
    assert world.log.written_offset == world.log.flushed_offset == 5
    assert world.read_all() == (world.kept(), [])


def test_what_is_appended_during_a_write_goes_out_in_one_write_and_one_flush(
    simulated: World,
) -> None:
    world = simulated
    world.fill(1)
    world.append()
    for _ in range(5):
        world.append()
    flushes = world.disk.flushes
    waiting = [r for r in world.storage._waiting if isinstance(r, Write)]
    assert len(waiting) == 1
    world.run()
    assert world.disk.flushes - flushes == 2
    assert world.log.flushed_offset == 7


def test_a_segment_is_rolled_before_it_grows_beyond_its_size(world: World) -> None:
    world.fill(30)
    assert world.log.segment_count > 2
    assert all(world.files.size(world.path(name)) <= 2000 for name in world.names(".log"))
    assert world.read_all() == (world.kept(), [])


def test_a_batch_larger_than_a_segment_gets_one_of_its_own(world: World) -> None:
    world.fill(1)
    world.append(size=5000)
    world.run()
    world.fill(1)
    assert world.log.segment_count == 3
    assert world.read(1, max_bytes=10).next == 2
    assert world.read_all() == (world.kept(), [])


def test_one_write_covers_eight_mebibytes_at_most(simulated: World) -> None:
    simulated.open(settings(segment_size=1 << 30))
    simulated.append()
    for _ in range(5):
        simulated.append(size=3 << 20)
    sizes = [run.size for run in simulated.log._runs]
    assert max(sizes) <= 8 << 20
    assert len(sizes) == 3
    simulated.run()
    assert simulated.read_all() == (simulated.kept(), [])


def test_a_segment_is_rolled_once_it_spans_its_age_by_append_time(world: World) -> None:
    world.open(settings(segment_age=100))
    for time in (0, 50, 100, 101, 150):
        world.append(time=time)
        world.run()
    assert world.log.segment_count == 2


@pytest.mark.parametrize("fsync", ["interval", "never"])
def test_without_fsync_always_an_append_counts_as_written_first(world: World, fsync: str) -> None:
    world.open(settings(fsync=fsync))
    world.fill(2)
    assert world.log.written_offset == 2
    assert world.log.flushed_offset == 0
    world.tick(1000)
    assert world.log.flushed_offset == (2 if fsync == "interval" else 0)


def test_what_nobody_waits_for_is_flushed_many_batches_at_a_time(simulated: World) -> None:
    """It counts as flushed only once it is, and whatever somebody waits for takes all before it along."""
    world = simulated
    world.open(settings(segment_size=1 << 30))
    world.fill(1)
    flushes = world.disk.flushes
    for _ in range(8):
        world.append(size=50 << 10, lazily=True)
        world.run()
    assert (world.log.written_offset, world.log.flushed_offset) == (9, 1)
    assert world.disk.flushes == flushes
    for _ in range(3):
        world.append(size=50 << 10, lazily=True)
        world.run()
    assert (world.log.written_offset, world.log.flushed_offset) == (12, 12), (
        "half a mebibyte and more"
    )
    assert world.disk.flushes == flushes + 1
    world.append(lazily=True)
    world.run()
    world.tick(900)
    assert world.log.flushed_offset == 12
    world.tick(100)
    assert world.log.flushed_offset == 13, "a second has passed"
    world.append(lazily=True)
    world.run()
    world.append()
    world.run()
    assert world.log.flushed_offset == 15
    assert world.read_all() == (world.kept(), [])


def test_a_log_that_may_have_no_holes_flushes_each_write(simulated: World) -> None:
    world = simulated
    world.open(settings(lazy=False))
    for number in range(4):
        world.append(lazily=True)
        world.run()
        assert world.log.flushed_offset == number + 1


def test_what_nobody_waits_for_and_is_not_flushed_does_not_grow_without_end(
    simulated: World,
) -> None:
    world = simulated
    world.open(settings(segment_size=1 << 30))
    world.fill(1)
    written = world.log.written_offset
    for _ in range(40):
        world.append(size=50 << 10, lazily=True)
        for request in [each for each in world.storage._waiting if isinstance(each, Write)]:
            world.storage._waiting.remove(request)
            world.deliver(execute(world.files, request))
    assert any(isinstance(each, Upkeep) for each in world.storage._waiting), "it takes its time"
    assert 20 < world.log.written_offset - written < 36
    world.run()
    assert world.log.written_offset - written == 40
    assert world.read_all() == (world.kept(), [])


def test_never_flushes_in_the_background_once_much_is_unflushed(simulated: World) -> None:
    simulated.open(settings(fsync="never", segment_size=1 << 30))
    for _ in range(17):
        simulated.append(size=1 << 20)
        simulated.run()
    assert simulated.log.flushed_offset >= 16


def test_altered_to_always_what_is_unflushed_is_flushed_at_once(world: World) -> None:
    world.open(settings(fsync="never"))
    world.fill(2)
    world.log.alter(settings(fsync="always"))
    world.run()
    assert world.log.flushed_offset == 2
    world.fill(1)
    assert world.log.flushed_offset == 3


@pytest.mark.parametrize(
    "wrong", [{"base_offset": 5}, {"leader_epoch": 1}, {"append_time": 4}], ids=str
)
def test_a_batch_that_does_not_continue_the_log_is_a_broken_invariant(
    world: World, wrong: dict[str, int]
) -> None:
    world.append(epoch=2, time=5)
    batch, _ = world.make()
    stamp = {"base_offset": 1, "append_time": 5, "leader_epoch": 2, **wrong}
    batches.stamp(batch, **stamp)
    with pytest.raises(AssertionError):
        world.log.append(batch, batches.read_header(batch))


def test_metadata_requests_all_use_their_own_lane(simulated: World) -> None:
    simulated.settings = settings(lane="metadata", fsync="never")
    lanes = set()
    submit = simulated.storage.submit
    simulated.storage.submit = lambda request: (lanes.add(request.lane), submit(request))
    simulated.open()
    simulated.fill(40)
    simulated.read_all()
    simulated.find(0)
    simulated.close()
    assert lanes == {"metadata"}


# Epochs ---


def test_an_epoch_without_records_survives(world: World) -> None:
    world.append(epoch=1)
    world.log.begin_epoch(4)
    assert EpochBegun(4) in world.run()
    world.crash()
    assert world.log.last_epoch == 4
    assert world.log.end_of_epoch(1) == (1, 1)
    assert world.log.end_of_epoch(3) == (1, 1)
    assert world.log.end_of_epoch(4) == (4, 1)


def test_epochs_name_each_record(world: World) -> None:
    for epoch in (0, 0, 3, 3, 7):
        world.append(epoch=epoch)
    world.run()
    assert [world.log.epoch_at(offset) for offset in range(-1, 6)] == [-1, 0, 0, 3, 3, 7, -1]
    assert [world.log.end_of_epoch(epoch) for epoch in (-1, 0, 2, 3, 9)] == [
        (-1, 0),
        (0, 2),
        (0, 2),
        (3, 4),
        (7, 5),
    ]


# Reading ---


def test_a_read_gives_whole_batches_from_the_one_that_holds_the_offset(world: World) -> None:
    for _ in range(10):
        world.append(3)
    world.run()
    done = world.read(4, max_bytes=1000)
    assert done.base == 3
    assert [h.base_offset for _, h in batches.iter_batches(done.chunk)] == [3, 6]
    assert done.next == 9


def test_a_read_stops_at_the_limit_and_at_the_log_end(world: World) -> None:
    world.fill(5)
    assert world.read(1, limit=3).next == 3
    assert world.read(3, limit=3) == ReadDone("token", 3, 3, b"")
    assert world.read(5) == ReadDone("token", 5, 5, b"")
    assert world.read(4, limit=99).next == 5


def test_a_read_outside_the_log_names_the_range(world: World) -> None:
    world.fill(3)
    world.log.delete_before("token", 2)
    world.run()
    for offset in (1, 4):
        error = world.read(offset).error
        assert isinstance(error, OffsetOutOfRange)
        assert error.details == {"start": 2, "end": 3}


def test_reading_on_never_reads_a_stretch_twice(simulated: World) -> None:
    simulated.open(settings(segment_size=1 << 20, index_interval=1 << 16))
    simulated.fill(100)
    reads = []
    read = simulated.disk.read
    simulated.disk.read = lambda path, at, n: (reads.append(at), read(path, at, n))[1]  # type: ignore[method-assign]
    offset = 0
    while offset < 100:
        offset = simulated.read(offset, max_bytes=1000).next
    assert reads == sorted(set(reads))


def test_reads_before_opening_are_refused_with_a_code(world: World) -> None:
    log = Log("t/1", SMALL, world.storage)
    world.log = log
    log.read("token", 0, 100, 1)
    log.find_time("token", 0, 1)
    log.delete_before("token", 0)
    errors = [event.error for event in world.run() if not isinstance(event, Opened | Closed)]
    assert [type(error) for error in errors] == [NotReady] * 3


# Time ---


def test_find_time_gives_the_first_record_at_or_after_it(world: World) -> None:
    world.append(3, timestamps=[100, 90, 120])
    world.append(2, timestamps=[95, 130])
    world.append(1, timestamps=[125])
    world.run()
    found = [(world.find(at).offset, world.find(at).timestamp) for at in (0, 100, 101, 121, 130)]
    assert found == [(0, 100), (0, 100), (2, 120), (4, 130), (4, 130)]
    assert world.find(131) == Found("token", 6, -1)


def test_find_time_agrees_with_a_look_at_every_record(world: World) -> None:
    records = []
    for _ in range(60):
        stamps = [world.rng.randrange(1000) for _ in range(world.rng.randint(1, 4))]
        header = world.append(len(stamps), timestamps=stamps)
        records += [(header.base_offset + n, at) for n, at in enumerate(stamps)]
    world.run()
    world.log.delete_before("token", 11)
    world.run()
    kept = [(offset, at) for offset, at in records if offset >= 11]
    for asked in range(0, 1100, 37):
        expected = next(((o, at) for o, at in kept if at >= asked), (world.log.end_offset, -1))
        found = world.find(asked)
        assert (found.offset, found.timestamp) == expected


def test_a_batch_that_claims_a_time_that_none_of_its_records_has_is_looked_into_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        world.append(2, timestamps=[10, 20], max_timestamp=10**6)
    world.append(1, timestamps=[500])
    world.run()
    decoded = []
    monkeypatch.setattr(
        reading, "decode_records", lambda *args: decoded.append(args) or decode_records(*args)
    )
    assert world.find(400).offset == 0
    assert len(decoded) == 1


def test_find_time_takes_the_append_time_where_that_is_the_timestamp(world: World) -> None:
    for time in (10, 20, 30):
        world.append(2, time=time, append_time=True, timestamps=[999, 999])
    world.run()
    assert (world.find(15).offset, world.find(15).timestamp) == (2, 20)


# Deleting, retention, truncation ---


def test_delete_before_moves_the_start_and_survives(world: World) -> None:
    world.fill(40)
    world.log.delete_before("token", 30)
    assert world.run() == [StartMoved("token", 30)]
    assert world.log.start_offset == 30
    assert world.read(30).base == 30
    segments = world.log.segment_count
    world.crash()
    assert world.log.start_offset == 30
    assert world.log.segment_count == segments
    world.close()
    world.open()
    assert world.log.start_offset == 30


def test_delete_before_beyond_the_end_is_refused(world: World) -> None:
    world.fill(3)
    world.log.delete_before("token", 4)
    (event,) = world.run()
    assert isinstance(event, StartMoved)
    assert isinstance(event.error, InvalidRequest)


def test_the_start_is_on_disk_before_a_file_goes(simulated: World) -> None:
    world = simulated
    world.fill(40)
    steps: list[str] = []
    world.disk.hook = lambda kind, path: steps.append(f"{kind} {path.rpartition('/')[2]}")
    world.log.delete_before("token", 30)
    world.run()
    gone = next(n for n, step in enumerate(steps) if step.startswith("remove") and ".log" in step)
    saved = steps.index("rename checkpoint.tmp")
    assert steps[saved + 1].startswith("flush_folder")
    assert saved + 1 < gone


def test_retention_by_size_keeps_at_least_that_much(world: World) -> None:
    world.open(settings(retention_size=5000))
    world.fill(60)
    world.log.retain(60, 0)
    world.run()
    assert 5000 <= world.log.size < 7000
    assert world.log.start_offset > 0
    assert world.read_all() == (world.kept(world.log.start_offset), [])


def test_retention_never_passes_the_high_watermark(world: World) -> None:
    world.open(settings(retention_size=0, retention=1))
    world.fill(60)
    world.log.retain(0, 1 << 40)
    world.run()
    assert world.log.start_offset == 0
    world.log.retain(20, 1 << 40)
    world.run()
    assert 0 < world.log.start_offset <= 20


def test_retention_goes_by_append_time_and_not_by_the_records(world: World) -> None:
    world.open(settings(retention=1000))
    world.fill(30, time=5000, timestamps=[1])  # a robot that booted in 1970
    world.log.retain(30, 5500)
    world.run()
    assert world.log.start_offset == 0


def test_an_idle_partition_expires_too(world: World) -> None:
    world.open(settings(retention=1000))
    world.fill(3, time=10)
    for _ in range(2):
        world.log.retain(3, 2000)
        world.run()
    assert world.log.start_offset == 3
    assert world.log.size == 0
    world.crash()
    assert (world.log.start_offset, world.log.end_offset) == (3, 3)
    world.fill(2)
    assert world.read(3).next == 5


def test_retention_waits_for_the_high_watermark_before_it_rolls(world: World) -> None:
    world.open(settings(retention=1000))
    world.fill(3, time=10)
    world.log.retain(2, 2000)
    world.run()
    assert world.log.segment_count == 1


def test_truncation_discards_from_the_batch_that_reaches_beyond(world: World) -> None:
    for epoch in (1, 1, 2, 3):
        world.append(10, epoch=epoch)
    world.run()
    world.log.truncate("token", 25)
    assert world.run() == [Truncated("token", 20)]
    assert world.log.end_offset == world.log.flushed_offset == 20
    assert world.log.last_epoch == 1
    world.appended = world.appended[:2]
    world.append(epoch=5)
    world.run()
    assert world.read_all() == (world.kept(), [])
    world.crash()
    assert world.log.last_epoch == 5
    assert world.read_all() == (world.kept(), [])


def test_what_is_cut_with_the_batch_in_which_the_log_starts_moves_the_start_back(
    world: World,
) -> None:
    world.fill(5, records=4)
    world.log.delete_before("token", 6)
    world.log.truncate("token", 6)
    world.run()
    assert (world.log.start_offset, world.log.end_offset) == (4, 4)
    world.crash()
    assert (world.log.start_offset, world.log.end_offset) == (4, 4)
    world.appended = world.appended[:1]
    world.fill(1)
    assert world.read_all() == (world.kept(4), [])


def test_truncation_to_the_end_drops_epochs_that_begin_there(world: World) -> None:
    world.append(epoch=1)
    world.run()
    world.log.begin_epoch(7)
    world.run()
    world.log.truncate("token", 1)
    world.run()
    assert world.log.last_epoch == 1
    world.append(epoch=3)  # what the leader has there
    world.run()
    assert world.log.epoch_at(1) == 3


def test_truncation_takes_producers_back(world: World) -> None:
    for sequence in range(0, 60, 2):
        world.append(2, producer=(7, 0, sequence))
        world.run()
    world.log.truncate("token", 31)
    world.run()
    _, header = world.make(2, producer=(7, 0, 30))
    assert world.log.producers.check(header) is None


def test_what_a_truncation_makes_the_newest_is_a_duplicate_all_the_same(world: World) -> None:
    for sequence in range(100):
        world.append(producer=(7, 0, sequence))
        world.run()
    for end in (90, 20, 19):
        world.log.truncate("token", end)
        world.run()
        for sequence in range(end - ProducerTable.WINDOW, end):
            _, header = world.make(producer=(7, 0, sequence))
            assert world.log.producers.check(header) is not None, (end, sequence)
        assert world.log.producers.check(world.make(producer=(7, 0, end))[1]) is None


@pytest.mark.parametrize("clean", [True, False])
def test_a_truncation_knows_again_whom_a_checkpoint_knew_no_more(world: World, clean: bool) -> None:
    world.open(settings(producer_expiry=100))
    world.append(producer=(7, 0, 0), time=1)
    world.append(time=1)
    world.append(time=500)
    world.run()
    if clean:
        world.close()
        world.open()
    else:
        world.log.want_checkpoint()
        world.run()
        world.crash()
    world.log.truncate("token", 2)
    world.run()
    _, repeated = world.make(producer=(7, 0, 0), time=1)
    assert world.log.producers.check(repeated) == Duplicate(0, 1, 0)


def test_who_expired_in_what_is_removed_is_not_back_when_all_else_is_cut(world: World) -> None:
    world.open(settings(producer_expiry=100))
    world.append(producer=(7, 0, 0), time=1)
    world.fill(20, time=1)
    world.fill(20, time=500)
    first = world.log.segments[-1].base
    world.log.delete_before("token", first)
    world.run()
    world.append(producer=(7, 0, 0), time=501)
    world.log.truncate("token", first)
    world.run()
    assert world.log.last_append_time == 500
    with pytest.raises(UnknownProducer):
        world.log.producers.check(world.make(producer=(7, 0, 1))[1])


def test_a_truncation_takes_the_latest_timestamp_back(world: World) -> None:
    world.open(settings(segment_size=1 << 20))
    for time in range(100):
        world.append(timestamps=[10_000 if time >= 95 else time])
        world.run()
    world.log.truncate("token", 95)
    world.run()
    assert world.log.segments[-1].max_timestamp == 94
    assert world.find(95) == Found("token", 95, -1), "no record is as late as that"
    assert world.find(94) == Found("token", 94, 94)


def test_a_read_that_races_a_truncation_is_told_to_read_again(world: World) -> None:
    world.fill(5)
    world.log.read("token", 3, 1000, 5)
    world.log.truncate("cut", 2)
    done = next(event for event in world.run() if isinstance(event, ReadDone))
    assert isinstance(done.error, NotReady)


def test_a_read_that_races_retention_is_out_of_range(simulated: World) -> None:
    world = simulated
    world.fill(40)
    world.log.delete_before("cut", 30)
    read = next(r for r in world.storage._waiting if isinstance(r, Upkeep))
    world.log.read("token", 0, 1000, 40)
    assert world.storage._waiting[0] is read
    world.storage.step()
    done = next(event for event in world.run() if isinstance(event, ReadDone))
    assert isinstance(done.error, OffsetOutOfRange)


def test_a_deleted_folder_is_gone_with_all_its_files(world: World) -> None:
    world.fill(30)
    world.close()
    delete_folder(world.storage, FOLDER)
    world.run()
    assert world.files.list("topics/t") == []


def test_a_folder_that_goes_with_the_one_above_it_is_no_failure(simulated: World) -> None:
    """A topic's folder is removed once it holds no partition, while the last one's request may still be at work."""
    world = simulated
    world.fill(3)
    world.close()

    def hook(kind: str, path: str) -> None:
        if kind == "flush_folder":
            world.disk.hook = None
            world.disk.remove_folder(path)

    world.disk.hook = hook
    told: list[Completion] = []
    world.storage.deliver = told.append
    delete_folder(world.storage, FOLDER)
    world.storage.run_all()
    assert world.disk.hook is None
    assert [completion.error for completion in told] == [None]
    assert world.files.list("topics") == []


# Closing and opening ---


def test_a_log_closed_in_order_is_opened_without_a_scan(world: World) -> None:
    world.fill(30, producer=(-1, -1, -1))
    world.append(epoch=4)
    assert world.close() == Closed(clean=True)
    before = {name: world.content(world.path(name)) for name in world.names()}
    assert world.open() == Opened(clean=True, torn_bytes=0, scanned_bytes=0)
    assert {name: world.content(world.path(name)) for name in world.names()} == before
    assert world.read_all() == (world.kept(), [])
    assert world.close() == Closed(clean=True)


def test_close_waits_for_what_is_pending(world: World) -> None:
    for _ in range(20):
        world.append()
    world.close()
    world.open()
    assert world.log.end_offset == 20


def test_close_while_opening_closes_once_open(world: World) -> None:
    world.fill(3)
    world.log = Log(FOLDER, SMALL, world.storage)
    world.log.open()
    world.log.close()
    events = world.run()
    assert [type(event) for event in events] == [Opened, Closed]


def test_a_log_that_is_killed_in_use_is_not_clean(world: World) -> None:
    world.fill(1)
    world.close()
    world.open()
    world.fill(1)
    assert not world.crash().clean
    assert world.log.end_offset == 2
