"""Opening a log after whatever happened to its files, over both kinds of files."""

from __future__ import annotations

import msgspec
import pytest
from log.world import FOLDER, SMALL, World

from zbroker.errors import DataDamaged, UnsupportedVersion
from zbroker.log import Broken, Log, names
from zbroker.log import checkpoint as checkpoints
from zbroker.log.envelope import seal
from zbroker.log.inspect import Damage, scan_segment, verify_folder
from zbroker.protocol import batch as batches


def checkpointed(world: World, count: int, **options: object) -> None:
    """Appends so many batches, all of them below the checkpoint, and leaves the log open."""
    world.fill(count, **options)
    world.close()
    world.open()


def test_a_kill_loses_nothing_that_was_written(world: World) -> None:
    world.fill(30)
    opened = world.crash()
    assert not opened.clean
    assert opened.torn_bytes == 0
    assert world.read_all() == (world.kept(), [])


@pytest.mark.parametrize("left", [1, 50, 87, 88, 100])
def test_a_torn_tail_is_cut_off_and_told(world: World, left: int) -> None:
    world.fill(4)
    path = world.segment(-1)
    size = world.files.size(path)
    last = world.appended[-1][0].size
    world.cut(path, size - last + left)
    assert world.crash().torn_bytes == left
    assert world.log.end_offset == 3
    assert world.files.size(path) == size - last
    world.appended.pop()
    world.append(epoch=1)
    world.run()
    assert world.read_all() == (world.kept(), [])


def test_garbage_behind_the_log_is_a_torn_tail(world: World) -> None:
    world.fill(3)
    path = world.segment(-1)
    world.files.write(path, world.files.size(path), [b"ZBAT" + bytes(500)])
    assert world.crash().torn_bytes == 504
    assert world.read_all() == (world.kept(), [])


@pytest.mark.parametrize("at", [2, 62, 90, 120], ids=["magic", "base offset", "payload", "late"])
def test_damage_before_a_valid_batch_is_kept_and_served_around(world: World, at: int) -> None:
    world.fill(8)
    path = world.segment(0)
    before = world.content(path)
    size = world.appended[0][0].size
    world.flip(path, 3 * size + at)
    assert world.crash().torn_bytes == 0
    assert world.log.damaged == [(3, 4)]
    assert len(world.content(path)) == len(before)
    assert world.log.end_offset == 8
    found, damaged = world.read_all()
    assert found == world.kept(0, 3) + world.kept(4)
    assert damaged == [(3, 4)]
    world.append()
    world.run()
    world.close()
    world.open()
    assert world.log.damaged == [(3, 4)]


def test_damage_in_the_first_batch_is_served_around(world: World) -> None:
    world.fill(4)
    world.flip(world.segment(0), 10)
    world.crash()
    assert world.read_all() == (world.kept(1), [(0, 1)])


def test_damage_below_the_checkpoint_is_found_by_the_reader(world: World) -> None:
    checkpointed(world, 40)
    size = world.appended[0][0].size
    world.flip(world.segment(0), 4 * size + 100)
    world.flip(world.segment(0), 5 * size + 3)
    world.open()
    assert world.log.damaged == []
    error = world.read(4).error
    assert isinstance(error, DataDamaged)
    found, damaged = world.read_all()
    assert damaged[-1][1] == 6
    assert found == world.kept(0, 4) + world.kept(6)
    assert world.log.damaged == [(4, 6)]
    assert world.read(5).error is not None
    assert world.read(3).next == 4


def test_a_tail_below_the_checkpoint_is_never_torn(world: World) -> None:
    checkpointed(world, 5)
    path = world.segment(-1)
    world.cut(path, 3 * world.appended[0][0].size + 20)
    world.open()
    assert world.log.end_offset == 5, "an offset that was acknowledged is never given twice"
    assert world.log.damaged == [(3, 5)]
    assert world.files.size(path) == 3 * world.appended[0][0].size + 20
    world.fill(3)
    assert world.read_all() == (world.kept(0, 3) + world.kept(5), [(3, 5)])
    world.crash()
    assert world.read_all() == (world.kept(0, 3) + world.kept(5), [(3, 5)])


def test_a_segment_that_is_gone_is_damage(world: World) -> None:
    checkpointed(world, 60)
    bases = names.offsets(world.names(), names.LOG)
    world.remove(world.segment(1))
    world.open()
    assert world.log.damaged == [(bases[1], bases[2])]
    assert world.read_all()[0] == world.kept(0, bases[1]) + world.kept(bases[2])


def test_the_last_segment_gone_is_damage_and_its_offsets_are_not_given_again(world: World) -> None:
    checkpointed(world, 30)
    last = names.offsets(world.names(), names.LOG)[-1]
    world.remove(world.segment(-1))
    world.open()
    assert world.log.end_offset == 30
    world.fill(2)
    assert world.read_all() == (world.kept(0, last) + world.kept(30), [(last, 30)])


def test_a_sealed_segment_cut_short_is_damage(world: World) -> None:
    checkpointed(world, 60)
    bases = names.offsets(world.names(), names.LOG)
    world.cut(world.segment(1), world.appended[0][0].size + 5)
    world.open()
    assert world.log.damaged == [(bases[1] + 1, bases[2])]


def test_only_what_lies_behind_the_checkpoint_is_scanned(world: World) -> None:
    checkpointed(world, 60)
    world.fill(2)
    opened = world.crash()
    assert 0 < opened.scanned_bytes <= sum(header.size for header, _ in world.appended[-2:])


def test_rolling_checkpoints_so_that_a_scan_stays_short(world: World) -> None:
    world.fill(200)
    assert world.crash().scanned_bytes <= 2 * SMALL.segment_size


@pytest.mark.parametrize("harm", ["missing", "corrupt", "empty"])
@pytest.mark.parametrize("what", ["checkpoint", "epochs", ".index", ".producers", "all"])
def test_what_can_be_rebuilt_may_be_lost(world: World, what: str, harm: str) -> None:
    for sequence in range(40):
        world.append(epoch=sequence // 10, producer=(sequence % 3, 0, sequence // 3))
        world.run()
    world.close()
    small = [n for n in world.names() if n.endswith(what) or (what == "all" and ".log" not in n)]
    assert small
    for name in small:
        if harm == "missing":
            world.remove(world.path(name))
        elif harm == "corrupt":
            world.flip(world.path(name), world.files.size(world.path(name)) - 1)
        else:
            world.write(world.path(name), b"")
    world.open()
    assert world.read_all() == (world.kept(), [])
    assert world.find(0).offset == 0
    assert [world.log.epoch_at(offset) for offset in (0, 9, 10, 39)] == [0, 0, 1, 3]
    assert world.log.end_of_epoch(2) == (2, 30)
    for producer, sequence in ((0, 14), (1, 13), (2, 13)):
        _, header = world.make(producer=(producer, 0, sequence))
        assert world.log.producers.check(header) is None
    world.fill(5)
    world.crash()
    assert world.read_all() == (world.kept(), [])


def test_a_stale_checkpoint_only_costs_a_longer_scan(world: World) -> None:
    checkpointed(world, 3)
    old = world.content(world.path("checkpoint"))
    world.fill(50)
    world.close()
    world.write(world.path("checkpoint"), old)
    world.open()
    assert world.read_all() == (world.kept(), [])


def test_a_stale_index_is_not_believed(world: World) -> None:
    checkpointed(world, 60)
    bases = names.offsets(world.names(), names.LOG)
    indexes = [world.path(name) for name in world.names(".index")]
    world.write(indexes[0], world.content(indexes[1]))
    world.open()
    assert world.read(bases[1] - 1).base == bases[1] - 1
    assert world.read_all() == (world.kept(), [])


def test_a_checkpoint_that_contradicts_the_files_is_not_believed(world: World) -> None:
    checkpointed(world, 40)
    known = checkpoints.load(world.files, FOLDER)
    assert known is not None
    known.segments = known.segments[1:]
    known.save(world.files, FOLDER)
    world.open()
    assert world.read_all() == (world.kept(), [])


@pytest.mark.parametrize("name", ["checkpoint", "epochs"])
def test_a_newer_format_is_left_untouched(world: World, name: str) -> None:
    world.fill(3)
    world.close()
    magic = {"checkpoint": b"ZBCP", "epochs": b"ZBEP"}[name]
    world.write(world.path(name), seal(magic, b"from the future", version=2))
    before = {name: world.content(world.path(name)) for name in world.names()}
    world.log = Log(FOLDER, SMALL, world.storage)
    world.log.open()
    (event,) = world.run()
    assert isinstance(event, Broken)
    assert isinstance(event.error, UnsupportedVersion)
    assert "version 2" in str(event.error)
    assert {name: world.content(world.path(name)) for name in world.names()} == before


def test_a_newer_batch_is_not_taken_for_a_torn_tail(world: World) -> None:
    world.fill(2)
    batch, _ = world.make()
    batch[4] = 2
    batches.stamp(batch, base_offset=2, append_time=0, leader_epoch=0)
    path = world.segment(0)
    size = world.files.size(path)
    world.files.write(path, size, [batch])
    world.log = Log(FOLDER, SMALL, world.storage)
    world.log.open()
    (event,) = world.run()
    assert isinstance(event, Broken)
    assert isinstance(event.error, UnsupportedVersion)
    assert world.files.size(path) == size + len(batch)


def test_unknown_files_are_left_alone(world: World) -> None:
    world.fill(3)
    strange = ["notes.txt", "42.log", "00000000000000000001.log.bak", "0000000000000000000x.log"]
    for name in strange:
        world.write(world.path(name), b"mine")
    world.crash()
    world.close()
    assert all(world.content(world.path(name)) == b"mine" for name in strange)
    assert verify_folder(world.files, FOLDER).others == sorted(strange)


def test_a_record_that_holds_a_log_is_not_taken_for_the_log(world: World) -> None:
    """A torn batch whose payload holds whole, plausible batches of somebody else's log is still torn."""
    world.fill(2)
    inner = bytearray()
    for offset in (5, 6):
        batch, _ = world.make()
        batches.stamp(batch, base_offset=offset, append_time=0, leader_epoch=0)
        inner += batch
    outer = batches.encode_batch([(0, None, bytes(inner), ())], base_timestamp=0, max_timestamp=0)
    batches.stamp(outer, base_offset=2, append_time=0, leader_epoch=0)
    world.files.write(world.segment(0), world.files.size(world.segment(0)), [outer[:-1]])
    assert world.crash().torn_bytes == len(outer) - 1
    assert world.log.end_offset == 2


def test_epochs_of_records_that_were_lost_are_kept_at_the_end(world: World) -> None:
    world.fill(3, epoch=1)
    world.fill(1, epoch=4)
    world.cut(world.segment(0), world.files.size(world.segment(0)) - 1)
    world.crash()
    assert world.log.end_offset == 3
    assert world.log.last_epoch == 4
    assert world.log.epoch_at(2) == 1


def test_an_empty_log_opens_again(world: World) -> None:
    world.close()
    assert world.open().clean
    assert world.log.end_offset == 0
    assert world.crash().clean
    world.fill(2)
    assert world.log.end_offset == 2


def test_a_scan_reports_batches_and_damage(world: World) -> None:
    world.fill(5)
    size = world.appended[0][0].size
    world.flip(world.segment(0), 2 * size)
    found = list(scan_segment(world.files, world.segment(0)))
    assert Damage(2 * size, 3 * size, 2, 3) in found
    assert len(found) == 5


def test_verification_finds_nothing_in_a_healthy_log_and_the_fault_in_another(world: World) -> None:
    world.fill(40)
    world.close()
    report = verify_folder(world.files, FOLDER)
    assert report.problems == []
    assert (report.start_offset, report.end_offset, report.clean) == (0, 40, True)
    assert sum(segment.records for segment in report.segments) == 40
    world.flip(world.segment(1), 100)
    world.flip(world.path("epochs"), 17)
    world.remove(world.segment(0))
    problems = "\n".join(verify_folder(world.files, FOLDER).problems)
    assert "damaged from byte 0" in problems
    assert "epochs is corrupt" in problems


def test_a_large_log_opens_without_being_read(world: World) -> None:
    world.fill(300)
    world.close()
    reads = []
    read = world.files.read
    world.files.read = lambda path, at, n: (reads.append(path), read(path, at, n))[1]  # type: ignore[method-assign]
    world.open(msgspec.structs.replace(SMALL, fsync="never"))
    assert sum(path.endswith(".log") for path in reads) <= 1
    assert sum(path.endswith(".index") for path in reads) <= 1
