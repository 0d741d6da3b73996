"""Crashes during a compaction, at every operation that changes a file: the log is whole afterwards, old or new."""

from __future__ import annotations

import os
import random

import pytest
from log.keyed import COMPACT, Keyed, keyed_batch
from log.world import FOLDER, World
from msgspec.structs import replace

from zbroker.log import CompactionDone, Duplicate, StartMoved
from zbroker.log.inspect import verify_folder
from zbroker.testing.disk import PowerLost

pytestmark = pytest.mark.slow  # the same decisions on every Python


def written(seed: int) -> Keyed:
    """A log that was compacted once, and has much that was not, with tombstones whose grace is over."""
    keyed = Keyed(World(None, seed=seed))
    keyed.put((b"gone", b"1"), (b"k1", b"old"), producer=(8, 0, 0))
    keyed.put((b"gone", None), (b"k2", None))
    keyed.fill(20, keys=5)
    keyed.roll()
    keyed.compact(wall=0)
    for at in range(8):
        keyed.put((b"k%d" % (at % 3), b"x" * 60), producer=(9, 0, at))
    keyed.fill(30, keys=5)
    keyed.roll()
    keyed.fill(3, keys=5)
    keyed.log.want_checkpoint()
    keyed.world.run()
    return keyed


def operations() -> int:
    """How many operations of the disk a compaction of it is."""
    keyed = written(0)
    before = keyed.world.disk.operations
    keyed.log.compact(keyed.log.end_offset, 5000)
    assert any(isinstance(event, CompactionDone) for event in keyed.world.run())
    assert keyed.log.tombstones_lost
    return keyed.world.disk.operations - before


def problems(world: World) -> list[str]:
    """What does not fit in the folder, but for indexes, which are not waited for and are rebuilt."""
    found = verify_folder(world.files, FOLDER).problems
    return [problem for problem in found if "the index of" not in problem]


def check(keyed: Keyed, end: int) -> None:
    log = keyed.log
    assert (log.start_offset, log.end_offset, log.damaged) == (0, end, [])
    found = keyed.check()
    assert (b"gone", b"1") not in found.values() or (b"gone", None) in found.values()
    assert problems(keyed.world) == []
    _, last = keyed_batch([(b"k1", b"x")], offset=0, producer=(9, 0, 7))
    assert isinstance(log.producers.check(last), Duplicate)


@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize("crash_after", range(1, operations() + 1))
def test_a_crash_at_any_step_leaves_a_whole_log(crash_after: int, power: bool) -> None:
    for seed in range(6 if power else 1):
        keyed = written(seed)
        world, disk, end = keyed.world, keyed.world.disk, keyed.log.end_offset
        keyed.log.compact(end, 5000)
        disk.crash_at = disk.operations + crash_after
        with pytest.raises(PowerLost):
            world.run()
        disk.lose_power() if power else disk.restart()
        assert problems(world) == [], "as it is found offline"
        world.crash()
        check(keyed, end)
        assert world.names(".log.tmp") == []
        keyed.compact(wall=5000)
        check(keyed, end)
        if keyed.log.state == "open":
            world.close()
        world.open(COMPACT)
        check(keyed, end)


@pytest.mark.slow
@pytest.mark.parametrize("crash_after", range(1, operations() + 1, 3))
def test_a_crash_of_the_opening_after_the_crash(crash_after: int) -> None:
    for second in range(1, 40):
        keyed = written(second)
        world, disk, end = keyed.world, keyed.world.disk, keyed.log.end_offset
        keyed.log.compact(end, 5000)
        disk.crash_at = disk.operations + crash_after
        with pytest.raises(PowerLost):
            world.run()
        disk.lose_power()
        disk.crash_at = disk.operations + second
        try:
            world.crash()
        except PowerLost:
            disk.lose_power()
            world.crash()
        disk.crash_at = None
        check(keyed, end)


@pytest.mark.parametrize("name", ["compaction", "checkpoint", "epochs"])
@pytest.mark.parametrize("crash_after", range(1, operations() + 1))
def test_a_small_file_is_lost_as_well(crash_after: int, name: str) -> None:
    """Nothing that is acknowledged goes, also where what says what was going on is unreadable."""
    keyed = written(crash_after)
    world, disk, end = keyed.world, keyed.world.disk, keyed.log.end_offset
    keyed.log.compact(end, 5000)
    disk.crash_at = disk.operations + crash_after
    with pytest.raises(PowerLost):
        world.run()
    disk.restart()
    path = world.path(name)
    world.flip(path, world.files.size(path) - 1)
    world.crash()
    assert keyed.log.end_offset == end
    keyed.check()
    if name == "compaction":
        assert keyed.log.tombstones_lost == end
        assert keyed.log.thinned_below == end
    keyed.compact(wall=9000)
    keyed.check()


def test_a_failed_flush_ends_the_log_and_the_next_opening_finds_it_whole() -> None:
    total = operations()
    for at in range(total):
        keyed = written(at)
        world, disk, end = keyed.world, keyed.world.disk, keyed.log.end_offset
        keyed.log.compact(end, 5000)
        begin = disk.operations
        while disk.operations < begin + at and world.storage.step():
            pass
        disk.fail_flushes = 1
        world.run()
        disk.fail_flushes = 0
        world.crash()
        check(keyed, end)


CHOSEN = os.environ.get("ZBROKER_SEED")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [int(CHOSEN)] if CHOSEN else range(150))
def test_histories(seed: int) -> None:
    """Everything at once, in any order: writes, compactions, moves of the log start, kills and power failures."""
    try:
        live(random.Random(seed))
    except BaseException as error:
        replay = f"ZBROKER_SEED={seed} pytest -x tests/log/test_compaction_crashes.py -k histories"
        error.add_note(f"replay: {replay}")
        raise


def live(rng: random.Random) -> None:
    world = World(None, seed=rng.randrange(1 << 30))
    world.storage._rng = rng
    settings = replace(COMPACT, segment_size=rng.choice([400, 900, 3000]))
    keyed = Keyed(world, settings)
    wall = 0
    for _ in range(120):
        log = keyed.log
        match rng.randrange(12):
            case 0 | 1 | 2 | 3 | 4:
                keyed.fill(rng.choice([1, 3]), keys=rng.choice([2, 9]), codec=rng.randrange(3))
            case 5:
                keyed.put((b"k%d" % rng.randrange(9), None))
            case 6:
                keyed.roll()
            case 7 | 8:
                wall += rng.choice([0, 300, 2000])
                log.want_checkpoint()
                world.run()
                log.compact(log.flushed_offset, wall)
                for _ in range(rng.randrange(40)):
                    world.storage.step()
            case 9 if log.start_offset < log.flushed_offset:
                log.delete_before("token", rng.randint(log.start_offset, log.flushed_offset))
            case 10:
                world.disk.restart()
                world.crash()
            case 11:
                flushed = log.flushed_offset
                world.disk.crash_at = world.disk.operations + rng.randint(1, 12)
                try:
                    log.compact(log.flushed_offset, wall)
                    world.run()
                    world.disk.crash_at = None
                except PowerLost:
                    world.disk.lose_power()
                    world.crash()
                    assert keyed.log.end_offset >= flushed
                    for offset in [at for at in keyed.records if at >= keyed.log.end_offset]:
                        del keyed.records[offset]
        said = world.run()
        assert not any(
            getattr(event, "error", None) for event in said if isinstance(event, StartMoved)
        )
        assert keyed.log.damaged == []
        keyed.check()
    assert problems(world) == []
