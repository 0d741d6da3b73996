"""What a log does when its disk fails: full, failing its flushes, losing power, giving bad blocks.

Numbers in names are those of the list of real bugs that a broker must not repeat.
"""

from __future__ import annotations

import errno

import msgspec
import pytest
from log.world import FOLDER, SMALL, World

from zbroker.errors import DiskFull, StorageFailed, UnknownProducer
from zbroker.log import AppendFailed, Broken, EpochBegun, Log, StartMoved, Truncated, names
from zbroker.log.storage import Files, Request, execute
from zbroker.protocol.batch import HEADER_SIZE, read_header
from zbroker.testing.disk import PowerLost


def fail_at(world: World, kind: str, name: str, error: int) -> None:
    """The next operation of a kind on a file whose path ends so fails."""

    def hook(done: str, path: str) -> None:
        if done == kind and path.endswith(name):
            world.disk.hook = None
            raise OSError(error, "as told", path)

    world.disk.hook = hook


# Order: what is on disk before what counts ---


def order(world: World) -> list[str]:
    steps: list[str] = []
    world.disk.hook = lambda kind, path: steps.append(f"{kind} {path.rpartition('/')[2]}")
    return steps


def test_a_new_segment_counts_only_once_the_sealed_one_and_its_name_are_on_disk(
    simulated: World,
) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, fsync="never"))
    world.fill(10)
    world.log.alter(msgspec.structs.replace(SMALL, fsync="always", fsync_interval=1 << 40))
    world.storage.forget()
    world.log._upkeep = None
    steps = order(world)
    world.fill(1)
    first, second = names.path("", 0, ".log")[1:], names.path("", 10, ".log")[1:]
    mine = [step for step in steps if ".log" in step or step.startswith("flush_folder")]
    assert mine[:4] == [f"flush {first}", f"write {second}", f"flush {second}", "flush_folder 0"]


def test_the_names_of_a_new_log_and_its_folders_outlive_a_power_loss(simulated: World) -> None:
    for seed in range(30):
        world = World(None, seed)
        world.open()
        world.fill(1)
        assert world.log.flushed_offset == 1
        world.disk.lose_power()
        world.open()
        assert world.log.end_offset == 1, seed


def test_07_an_epoch_is_on_disk_before_its_first_record(simulated: World) -> None:
    world = simulated
    world.fill(1, epoch=1)
    steps = order(world)
    world.append(epoch=2)
    world.run()
    assert steps.index("flush epochs.tmp") < steps.index("rename epochs.tmp")
    log = next(step for step in steps if step.startswith("write") and step.endswith(".log"))
    assert steps[steps.index("rename epochs.tmp") + 1] == "flush_folder 0"
    assert steps.index("rename epochs.tmp") + 1 < steps.index(log)


def test_04_an_empty_epoch_is_on_disk_when_it_has_begun(simulated: World) -> None:
    for seed in range(20):
        world = World(None, seed)
        world.open(msgspec.structs.replace(SMALL, fsync="never"))
        world.log.begin_epoch(3)
        assert world.run() == [EpochBegun(3)]
        world.disk.lose_power()
        world.open()
        assert world.log.last_epoch == 3


def test_12_nothing_counts_as_flushed_before_its_flush(simulated: World) -> None:
    world = simulated
    world.fill(1)
    world.append()
    world.disk.crash_at = world.disk.operations + 2  # in the flush, after the write
    with pytest.raises(PowerLost):
        world.run()
    assert world.log.flushed_offset == 1
    assert world.log.written_offset == 1


def test_interval_flushes_cover_only_what_was_written_when_they_began(simulated: World) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, fsync="interval"))
    world.fill(2)
    world.now += 5000
    world.log.on_tick(world.now)
    world.append()
    flush = world.storage._waiting.pop(0)
    world.storage.run_all()
    assert world.log.written_offset == 3
    world.storage.submit(flush)
    world.storage.run_all()
    assert world.log.flushed_offset == 2


# A full disk ---


def test_14_a_full_disk_takes_nothing_back_that_was_written(simulated: World) -> None:
    world = simulated
    world.fill(5, epoch=1, producer=(-1, -1, -1))
    world.append(2, producer=(9, 0, 0))
    world.run()
    world.disk.budget = world.disk.used + 250
    world.append(2, producer=(9, 0, 2))
    world.append(2, producer=(9, 0, 4))
    world.append(epoch=2)
    (event,) = world.run()
    assert isinstance(event, AppendFailed)
    assert isinstance(event.error, DiskFull)
    first = event.from_offset
    assert first in (7, 9)
    log = world.log
    assert log.full
    assert log.end_offset == log.written_offset == log.flushed_offset == first
    assert log.last_epoch == 1
    assert log.pending_bytes == 0
    world.appended = [(h, data) for h, data in world.appended if h.base_offset < first]
    assert world.read_all() == (world.kept(), [])
    _, header = world.make(2, producer=(9, 0, first - 5))
    assert log.producers.check(header) is None
    world.tick(10_000)
    assert log.full, "there is no room yet"
    world.disk.budget = None
    world.tick(100)
    assert log.full, "one look a second"
    world.tick(1000)
    assert not log.full
    world.append(2, producer=(9, 0, first - 5))
    world.run()
    world.crash()
    assert world.read_all() == (world.kept(), [])


def test_14_a_full_disk_and_a_restart_lose_nothing(simulated: World) -> None:
    world = simulated
    world.fill(30)
    world.disk.budget = 0
    world.append()
    world.run()
    world.crash()
    assert world.read_all() == (world.kept(0, 30), [])
    world.close()
    world.open()
    assert world.read_all() == (world.kept(0, 30), [])


def test_a_batch_that_failed_is_not_back_after_a_power_loss(simulated: World) -> None:
    for seed in range(60):
        world = World(None, seed)
        world.open()
        world.fill(2)
        world.disk.budget = world.disk.used + 400
        for _ in range(4):
            world.append()
        events = world.run()
        failed = events[-1]
        assert isinstance(failed, AppendFailed)
        world.disk.lose_power()
        world.disk.budget = None
        world.open()
        assert world.log.end_offset == failed.from_offset


def test_a_full_disk_at_a_roll_leaves_no_segment_behind(simulated: World) -> None:
    world = simulated
    world.fill(10)
    world.disk.budget = world.disk.used + 30
    world.append(epoch=world.log.last_epoch)
    assert isinstance(world.run()[-1], AppendFailed)
    assert len(world.names(".log")) == world.log.segment_count
    world.disk.budget = None
    world.tick(2000)
    world.appended.pop()
    world.fill(12)
    world.crash()
    assert world.read_all() == (world.kept(), [])


def test_an_epoch_begins_once_a_full_disk_has_room(simulated: World) -> None:
    world = simulated
    world.fill(2)
    world.disk.budget = world.disk.used
    world.log.begin_epoch(5)
    assert not any(isinstance(event, EpochBegun) for event in world.run())
    world.disk.budget = None
    assert EpochBegun(5) in world.tick(2000)
    world.disk.lose_power()
    world.open()
    assert world.log.last_epoch == 5


def test_retention_frees_a_full_disk(simulated: World) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, retention_size=3000))
    world.fill(60)
    world.close()
    world.open()
    world.disk.budget = world.disk.used
    world.append()
    world.run()
    assert world.log.full
    size = world.log.size
    world.log.retain(60, 0)
    world.run()
    assert world.log.size < size


def test_delete_before_and_truncate_on_a_full_disk_say_so_and_change_nothing(
    simulated: World,
) -> None:
    world = simulated
    world.fill(5)
    world.checkpoint()  # or nothing but the segment knew of what is cut, which takes no room
    world.disk.budget = 0
    world.log.delete_before("token", 3)
    (moved,) = world.run()
    assert isinstance(moved, StartMoved)
    assert isinstance(moved.error, DiskFull)
    world.log.truncate("token", 2)
    (cut,) = world.run()
    assert isinstance(cut, Truncated)
    assert isinstance(cut.error, DiskFull)
    assert world.read_all() == (world.kept(), [])


def test_what_nothing_but_the_active_segment_knows_of_is_cut_for_the_price_of_a_flush(
    simulated: World,
) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20))
    world.fill(50)
    world.checkpoint()
    world.fill(50)
    steps = order(world)
    world.log.truncate("token", 97)
    assert world.run() == [Truncated("token", 97)]
    segment = names.path("", 0, ".log")[1:]
    assert [step for step in steps if not step.startswith("read")] == [
        f"truncate {segment}", f"flush {segment}",
    ]  # fmt: skip
    world.appended = world.appended[:97]
    world.disk.hook = None
    world.fill(2)
    world.disk.lose_power()
    world.open()
    assert world.log.end_offset == 99
    assert world.read_all() == (world.kept(), [])


def test_what_a_checkpoint_knows_of_is_cut_only_once_another_one_is_on_disk(
    simulated: World,
) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20))
    world.fill(50)
    world.checkpoint()
    steps = order(world)
    world.log.truncate("token", 48)
    world.run()
    segment = names.path("", 0, ".log")[1:]
    assert steps.index("rename checkpoint.tmp") < steps.index(f"truncate {segment}")
    world.log.truncate("token", 47)
    steps.clear()
    world.run()
    assert "rename checkpoint.tmp" in steps, "the checkpoint is at 48 now"


def test_an_index_that_a_truncation_removed_is_saved_with_the_next_checkpoint(
    simulated: World,
) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20))
    world.fill(50)
    world.checkpoint()
    world.log.truncate("token", 10)
    world.run()
    assert not world.names(".index")
    world.appended = world.appended[:10]
    world.fill(20)
    world.checkpoint()
    assert world.names(".index")


def test_a_checkpoint_without_room_leaves_no_index_of_what_is_cut_afterwards(
    simulated: World,
) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20))
    world.fill(10)
    world.checkpoint()
    world.fill(30)
    fail_at(world, "write", "checkpoint.tmp", errno.ENOSPC)
    world.checkpoint()
    world.log.truncate("token", 12)
    world.run()
    world.appended = world.appended[:12]
    world.fill(12, size=37, timestamps=[7])
    fail_at(world, "write", ".index.tmp", errno.ENOSPC)
    world.checkpoint()
    world.crash()
    index = world.log.segments[-1].index
    assert index is not None
    for offset, position in zip(index.offsets, index.positions, strict=True):
        data = world.files.read(world.segment(0), position, HEADER_SIZE)
        assert read_header(data).base_offset == offset
    assert world.read_all() == (world.kept(), [])


def test_a_checkpoint_without_room_leaves_no_producer_of_what_is_cut_afterwards(
    simulated: World,
) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20))
    world.fill(10)
    world.checkpoint()
    for sequence in range(10):
        world.append(producer=(7, 0, sequence))
    world.run()
    fail_at(world, "write", "checkpoint.tmp", errno.ENOSPC)
    world.checkpoint()
    world.log.truncate("token", 10)
    world.run()
    for sequence in range(20):
        world.append(producer=(8, 0, sequence))
    world.run()
    world.checkpoint()
    world.crash()
    world.log.truncate("token", 25)
    world.run()
    with pytest.raises(UnknownProducer):
        world.log.producers.check(world.make(producer=(7, 0, 10))[1])
    assert world.log.producers.check(world.make(producer=(8, 0, 15))[1]) is None


def test_epochs_that_recovery_had_no_room_for_are_saved_before_the_next_batch(
    simulated: World,
) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20, fsync="never"))
    world.fill(8, epoch=1)
    size = world.log.size
    world.fill(2, epoch=1)
    world.fill(5, epoch=2)
    world.cut(world.segment(0), size)
    fail_at(world, "write", "epochs.tmp", errno.ENOSPC)
    world.crash()
    assert world.log.end_offset == world.log.start_of_epoch(2) == 8
    world.fill(2, epoch=2)
    world.checkpoint()
    world.fill(2, epoch=2)
    world.crash()
    assert world.log.start_of_epoch(2) == 8


@pytest.mark.parametrize(
    "cuts",
    [(41,), (44, 33), (36,), (48,), (28,), (26,), (27, 27), (15, 4), (3,)],
    ids=["batch", "twice", "epoch", "end", "checkpoint", "segment", "below", "segments", "many"],
)
def test_wherever_the_power_goes_in_a_truncation_the_log_is_whole_and_longer_or_shorter(
    cuts: tuple[int, ...],
) -> None:
    last, size = cuts[-1] // 2 * 2, 400 if cuts == (3,) else 4000
    done, step = False, 0
    while not done:
        step += 1
        world = World(None, step)
        world.open(msgspec.structs.replace(SMALL, segment_size=size, fsync="never"))
        world.fill(18, records=2, epoch=1)
        world.log.begin_epoch(2)
        world.run()
        world.fill(6, records=2, epoch=2)
        world.log.begin_epoch(3)
        world.run()
        flushed = world.log.flushed_offset
        if size == 4000:
            assert (world.log.segments[-1].base, flushed, world.log.end_offset) == (26, 28, 48)
        ends = [48]
        world.disk.crash_at = world.disk.operations + step
        try:
            for cut in cuts:
                world.log.truncate("token", cut)
                ends += [event.end_offset for event in world.run() if isinstance(event, Truncated)]
            done = True
        except PowerLost:
            pass
        world.disk.lose_power()
        world.open()
        end = world.log.end_offset
        assert min(flushed, last) <= end <= ends[-1]
        damaged = world.read_all()[1]  # what was not flushed may be lost in the middle
        if len(ends) == 1:
            assert all(first >= flushed for first, _ in damaged)
        else:
            assert damaged == []
        if done:
            assert (end, world.log.last_epoch) == (last, 2 if last > 36 else 1)
        world.appended = [
            kept
            for kept in world.appended
            if kept[0].base_offset < end
            and not any(first <= kept[0].base_offset < behind for first, behind in damaged)
        ]
        assert world.read_all() == (world.kept(), damaged)
        world.fill(9, records=2, epoch=4, size=70)
        world.log.alter(msgspec.structs.replace(SMALL, fsync="always"))
        world.run()
        world.disk.lose_power()
        world.open()
        assert world.read_all() == (world.kept(), damaged)


def test_a_truncation_waits_for_a_checkpoint_that_is_being_saved(simulated: World) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20))
    world.fill(20)
    world.log.want_checkpoint()
    world.log.truncate("token", 10)
    world.run()
    world.appended = world.appended[:10]
    world.fill(3, size=70)
    world.disk.lose_power()
    world.open()
    assert world.log.end_offset == 13
    assert world.read_all() == (world.kept(), [])


@pytest.mark.parametrize("before", ["begun anew", "thinned", "deleted", "recovered", "closed"])
def test_the_newest_batches_are_cut_whatever_came_before(simulated: World, before: str) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=5000))
    world.fill(60, epoch=1)
    if before == "begun anew":
        world.log.restart("token", 200)
        world.run()
        world.appended.clear()
    elif before == "thinned":
        world.log.note_thinned("token", 60)
    elif before == "deleted":
        world.log.delete_before("token", 58)
    elif before == "recovered":
        world.disk.lose_power()
        world.open()
    else:
        world.close()
        world.open()
    world.run()
    world.fill(10, epoch=2, producer=(-1, -1, -1))
    world.checkpoint()
    for cut in (4, 2):
        end = world.log.end_offset
        world.fill(6, epoch=2)
        world.log.truncate("token", end + cut)
        assert world.run() == [Truncated("token", end + cut)]
        world.appended = world.appended[: len(world.appended) - 6 + cut]
        world.disk.lose_power()
        world.open()
        assert world.log.end_offset == end + cut
        assert world.read_all() == (world.kept(world.log.start_offset), [])


def test_an_index_of_another_time_is_not_back_after_a_crash(simulated: World) -> None:
    world = simulated
    for seed in range(20):
        world = World(None, seed)
        world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20))
        world.fill(10, timestamps=[5])
        world.close()
        world.open()
        world.append()
        world.disk.hook = lambda kind, path: stop(kind == "rename" and path.endswith(".index.tmp"))
        with pytest.raises(PowerLost):
            world.run()
        world.disk.hook = None
        world.disk.flush(world.path(names.path("", 0, ".index.tmp")[1:]))
        world.disk.flush_folder(FOLDER)
        world.open()
        world.log.truncate("token", 0)
        world.run()
        world.fill(10, timestamps=[900])
        world.log.want_checkpoint()
        world.run()
        world.disk.lose_power()
        world.open()
        assert world.find(900).offset == 0, seed
        assert world.log.segments[-1].max_timestamp == 900, seed


def stop(now: bool) -> None:
    if now:
        raise PowerLost


# Failed writes and flushes ---


@pytest.mark.parametrize("kind", ["write", "flush"])
def test_06_nothing_is_appended_after_an_error_of_the_disk(simulated: World, kind: str) -> None:
    world = simulated
    world.fill(3)
    world.append()
    world.append()
    fail_at(world, kind, ".log", errno.EIO)
    (event,) = world.run()
    assert isinstance(event, Broken)
    assert isinstance(event.error, StorageFailed)
    assert world.log.state == "failed"
    assert world.log.flushed_offset == 3
    assert "fsync-failed" in world.names()
    with pytest.raises(AssertionError):
        world.log.append(*world.make())
    world.close()
    world.disk.lose_power()
    world.open()
    assert world.log.end_offset >= 3
    assert world.read_all()[0][:3] == world.kept(0, 3)


def test_06_an_index_that_cannot_be_saved_costs_no_offset(simulated: World) -> None:
    world = simulated
    world.fill(9)
    fail_at(world, "write", ".index.tmp", errno.ENOSPC)
    world.fill(40)
    fail_at(world, "rename", ".index.tmp", errno.EIO)
    world.fill(40)
    assert world.log.end_offset == 89
    assert world.read_all() == (world.kept(), [])


@pytest.mark.parametrize("name", ["checkpoint.tmp", "epochs.tmp", ".log"])
def test_17_any_failed_flush_stops_the_log(simulated: World, name: str) -> None:
    world = simulated
    world.fill(3)
    fail_at(world, "flush", name, errno.EIO)
    world.append(epoch=3)
    world.run()
    if world.log.state == "open":
        world.log.close()
        world.run()
    assert world.log.state in ("failed", "closed")
    assert "fsync-failed" in world.names()


def test_17_after_a_failed_flush_the_tail_is_rewritten_before_it_is_trusted(
    simulated: World,
) -> None:
    world = simulated
    world.fill(3)
    world.append()
    world.disk.fail_flushes = 1
    (event,) = world.run()
    assert isinstance(event, Broken)
    # The kernel marked the pages clean: only the cache has them, and a flush would now report success.
    assert len(world.disk.durable(world.segment(0))) < world.files.size(world.segment(0))
    world.open()
    assert world.log.flushed_offset == world.log.end_offset == 4
    assert world.disk.durable(world.segment(0)) == world.content(world.segment(0))
    assert "fsync-failed" not in world.names()
    world.disk.lose_power()
    world.open()
    assert world.read_all() == (world.kept(), [])


def test_a_clean_close_after_a_failed_flush_is_not_trusted(simulated: World) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, fsync="interval"))
    world.fill(3)
    world.disk.fail_flushes = 1
    assert any(isinstance(event, Broken) for event in world.tick(5000))
    world.close()
    assert not world.open().clean
    world.disk.lose_power()
    world.open()
    assert world.log.end_offset == 3


def test_a_failed_flush_during_recovery_breaks_the_log(simulated: World) -> None:
    world = simulated
    world.fill(3)
    world.disk.fail_flushes = 1
    world.log = Log(FOLDER, SMALL, world.storage)
    world.log.open()
    (event,) = world.run()
    assert isinstance(event, Broken)
    world.open()
    assert world.read_all() == (world.kept(), [])


def test_what_recovery_read_from_the_cache_is_flushed_before_it_counts(simulated: World) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, fsync="never"))
    world.fill(20)
    world.crash()
    assert world.log.flushed_offset == 20
    for _ in range(5):
        world.disk.lose_power()
        world.open()
        assert world.read_all() == (world.kept(), [])


def test_13_bad_blocks_are_damage_and_not_the_end(simulated: World) -> None:
    world = simulated
    world.open(msgspec.structs.replace(SMALL, segment_size=1 << 20))
    world.fill(8, size=9000)
    world.disk.spoil(world.segment(0), 20_000, 10)
    found, damaged = world.read_all()
    assert len(found) >= 6
    assert damaged
    assert found[-1] == world.appended[-1][1]
    world.crash()
    assert world.log.end_offset == 8


def test_13_a_flipped_bit_is_never_served(simulated: World) -> None:
    for seed in range(40):
        world = World(None, seed)
        world.open()
        world.fill(12)
        path = world.segment(0)
        world.disk.flip(path, world.rng.randrange(world.files.size(path)), 1 << seed % 8)
        found, damaged = world.read_all()
        assert set(found) <= set(world.kept())
        assert len(found) >= len(world.kept()) - 1
        assert len(damaged) <= 1


class Wrong(Request):
    """A request with a mistake in it."""

    def run(self, files: Files) -> None:
        raise ValueError("a mistake")


def test_whatever_a_request_raises_completes_it(world: World) -> None:
    done = execute(world.files, Wrong(owner="t/0", lane="write"))
    assert isinstance(done.error, StorageFailed)
    assert "Wrong of t/0 failed: ValueError('a mistake')" in str(done.error)
