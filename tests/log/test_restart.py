"""A log that begins anew at an offset beyond its end: whole or not at all, whatever the crash."""

from __future__ import annotations

import pytest
from log.world import SMALL, World

from zbroker.errors import OffsetOutOfRange
from zbroker.log import Truncated
from zbroker.testing.disk import PowerLost


def test_a_log_begins_anew_beyond_its_end(world: World) -> None:
    world.open()
    world.fill(40, producer=(-1, -1, -1), epoch=3)
    world.log.restart("token", 500)
    assert world.run()[-1] == Truncated("token", 500)
    log = world.log
    offsets = (log.start_offset, log.flushed_offset, log.written_offset, log.end_offset)
    assert offsets == (500, 500, 500, 500)
    assert (log.first_offset, log.size, log.last_epoch) == (500, 0, -1)
    assert isinstance(world.read(12).error, OffsetOutOfRange)
    world.appended.clear()
    world.fill(5, epoch=4)
    world.crash()
    assert world.log.start_offset == 500
    assert world.log.end_of_epoch(4) == (4, 505)
    assert world.read_all() == (world.kept(), [])


def test_it_waits_for_what_is_being_written(world: World) -> None:
    world.open()
    for _ in range(10):
        world.append()
    world.log.restart("token", 100)
    events = world.run()
    assert events[-1] == Truncated("token", 100)
    assert world.names(".log") == []


@pytest.mark.parametrize("power", [True, False])
@pytest.mark.parametrize("crash_after", range(1, 11))
def test_a_crash_leaves_the_old_log_or_the_new_one(crash_after: int, power: bool) -> None:
    world = World(None, seed=crash_after)
    world.open(SMALL)
    world.fill(30, epoch=2)
    world.log.on_tick(10**6)
    world.run()
    whole = world.kept()
    world.log.restart("token", 500)
    world.disk.crash_at = world.disk.operations + crash_after
    with pytest.raises(PowerLost):
        world.run()
    world.disk.crash_at = None
    if power:
        world.disk.lose_power()
    world.disk.off = False
    world.crash()
    log = world.log
    if log.start_offset == 0:
        assert log.end_offset == 30
        assert world.read_all() == (whole, [])
    else:
        assert (log.start_offset, log.end_offset, log.size) == (500, 500, 0)
        assert [name for name in world.names(".log") if name < f"{500:020d}"] == []
        world.appended.clear()
        world.fill(3, epoch=3)
        assert world.read_all() == (world.kept(), [])
