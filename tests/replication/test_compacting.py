"""Compacted copies: by script what a follower takes and refuses, and histories from seeds."""

from __future__ import annotations

import os
from typing import Any

import pytest
from log.keyed import keyed_batch
from replication.compacting import GRACE, CompactingWorld
from replication.test_follower import Bench
from replication.test_world import fault

from zbroker.protocol import thinning

CHOSEN = os.environ.get("ZBROKER_SEED")


def gap(base: int, epoch: int = 5, key: bytes = b"k") -> bytes:
    """A batch behind a gap."""
    batch, header = keyed_batch([(key, b"v")], offset=base, time=1, epoch=epoch)
    thinning.mark(batch, header)
    return bytes(batch)


def plain(base: int, epoch: int = 5) -> bytes:
    return bytes(keyed_batch([(b"k", b"v")], offset=base, time=1, epoch=epoch)[0])


def answers(bench: Bench) -> list[tuple[str, int]]:
    return [(said.status, said.end) for said in bench.run() if said.status != "ok" or said.end]


# A follower by script ---


def test_a_follower_goes_on_behind_a_gap_and_knows_the_epochs_in_it() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, thinned=40, epochs=[(1, 0)])
    bench.run()
    epochs = [(1, 0), (3, 20), (4, 25), (5, 30)]
    bench.hear(1, 0, gap(10, epoch=1), gap(27, epoch=4), gap(35), thinned=40, epochs=epochs)
    assert bench.run()[-1].written == 36
    log = bench.log
    assert [log.epoch_at(at) for at in (10, 19, 20, 24, 25, 29, 30, 35)] == [1, 1, 3, 3, 4, 4, 5, 5]
    assert log.end_of_epoch(3) == (3, 25)


def test_only_a_batch_that_says_so_stands_behind_a_gap() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, epochs=[(5, 0)])
    bench.hear(1, 0, plain(0), plain(2))
    assert answers(bench)[-1] == ("gap", 1)
    assert bench.log.end_offset == 1


def test_that_the_leader_is_compacted_is_on_disk_before_anything_is_taken() -> None:
    bench = Bench()
    bench.fill(3)
    bench.hear(1, 3, probe=True, prev_epoch=1, thinned=9, epochs=[(5, 3)])
    assert bench.said == []
    assert bench.run()[-1].written == 3
    assert bench.log.thinned_below == 9
    assert bench.disk.on_disk("p/compaction") is not None
    bench.hear(1, 3, plain(3), thinned=20)
    assert answers(bench) == [("gap", 3)], (
        "it has gone on being compacted: the next probe says how far"
    )
    bench.hear(2, 3, probe=True, prev_epoch=1, thinned=20, epochs=[(5, 3)])
    bench.run()
    assert bench.log.thinned_below == 20


@pytest.mark.parametrize("allowed", ["", "unclean", "rebuild"])
def test_what_is_compacted_is_not_cut(allowed: str) -> None:
    """What stayed there stayed because of what is behind it: the log is begun anew, or left."""
    bench = Bench(known=6, unclean=allowed == "unclean")
    bench.fill(6)
    bench.log.note_thinned("test", 6)
    bench.follower = None
    bench.run()
    bench.follow(known=6, unclean=allowed == "unclean")
    rebuild = allowed == "rebuild"
    bench.hear(1, 4, probe=True, prev_epoch=1, rebuild=rebuild, epochs=[])
    if not allowed:
        assert answers(bench) == [("rebuild", 4)]
        assert bench.log.end_offset == 6
        return
    assert answers(bench) == [("behind", 0)]
    bench.hear(1, 0, probe=True, begins=True, rebuild=rebuild, epochs=[(1, 0)], thinned=3)
    assert bench.run()[-1].status == "ok"
    assert (bench.log.end_offset, bench.log.thinned_below) == (0, 3)


def test_what_is_not_compacted_is_cut_as_ever() -> None:
    bench = Bench()
    bench.fill(6)
    bench.log.note_thinned("test", 4)
    bench.follower = None
    bench.run()
    bench.follow()
    bench.hear(1, 4, probe=True, prev_epoch=1, epochs=[(5, 4)])
    assert bench.run()[-1].status == "ok"
    assert bench.log.end_offset == 4


def test_a_replica_that_was_away_longer_than_the_grace_begins_anew() -> None:
    bench = Bench()
    bench.fill(6)
    ask: dict[str, Any] = {"probe": True, "prev_epoch": 1, "tombstones": 8, "thinned": 9}
    bench.hear(1, 6, **ask)
    assert answers(bench) == [("rebuild", 6)], "first out of the in-sync replicas"
    assert bench.log.end_offset == 6
    bench.hear(2, 6, **ask, rebuild=True)
    assert answers(bench) == [("behind", 0)], "then at the leader's beginning"
    bench.hear(2, 0, probe=True, begins=True, rebuild=True, tombstones=8, thinned=9)
    assert bench.run()[-1].status == "ok"
    assert (bench.log.end_offset, bench.log.tombstones_lost, bench.log.thinned_below) == (0, 8, 9)
    bench.hear(2, 0, gap(4), tombstones=8, thinned=9)
    assert bench.run()[-1].written == 5
    bench.hear(3, 5, probe=True, prev_epoch=5, tombstones=8, thinned=9)
    assert bench.run()[-1].status == "ok", "it goes on where it was"


def test_the_epoch_of_a_gap_at_the_beginning_is_known() -> None:
    """A reader whose position is in it is not told that the log has another history."""
    bench = Bench()
    bench.hear(1, 4, probe=True, begins=True, prev_epoch=2, thinned=9)
    bench.hear(1, 4, gap(12), thinned=9, epochs=[(5, 10)])
    bench.run()
    bench.hear(1, 4, gap(12), thinned=9, epochs=[(5, 10)])
    bench.run()
    assert [bench.log.epoch_at(offset) for offset in (3, 4, 9, 10, 12)] == [2, 2, 2, 5, 5]


def test_one_that_has_every_tombstone_goes_on() -> None:
    bench = Bench()
    bench.fill(6)
    bench.hear(1, 6, probe=True, prev_epoch=1, tombstones=6, thinned=9)
    assert bench.run()[-1].status == "ok"
    assert bench.log.end_offset == 6


def test_a_copy_of_one_leader_does_not_go_on_under_another() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, begins=True, tombstones=8, thinned=9)
    assert bench.run()[-1].status == "ok"
    bench.hear(1, 0, gap(4), tombstones=8, thinned=9)
    bench.run()
    bench.follow(epoch=6)
    bench.hear(1, 5, probe=True, prev_epoch=5, tombstones=7, thinned=9)
    assert answers(bench) == [("rebuild", 5)]


def test_a_tombstone_that_goes_meanwhile_ends_the_copying() -> None:
    bench = Bench()
    bench.hear(1, 0, probe=True, begins=True, tombstones=8, thinned=9)
    bench.run()
    bench.hear(1, 0, gap(4), tombstones=9, thinned=9)
    assert answers(bench) == [("gap", 0)]
    bench.hear(2, 0, probe=True, begins=True, tombstones=9, thinned=9)
    bench.run()
    assert bench.log.tombstones_lost == 9


# Histories ---


def history(seed: int, *, flushed: bool, steps: int = 500) -> CompactingWorld:
    """Faults and compactions first, then healing."""
    world = CompactingWorld(seed, flushed=flushed)
    rng = world.rng
    faults = rng.choice((0.0, 0.02, 0.05))
    for _ in range(steps):
        draw = rng.random()
        if draw < 0.12:
            node = world.nodes[rng.choice(world.names)]
            world.append(node, [rng.randint(1, 3) for _ in range(rng.randint(1, 6))])
        elif draw < 0.125:
            world.delete_records(world.nodes[rng.choice(world.names)])
        elif draw < 0.20:
            world.tick(rng.choice((10, 100, 400)))
        elif draw < 0.28:
            world.compact(world.nodes[rng.choice(world.names)])
        elif draw < 0.28 + faults:
            fault(world)
        elif draw < 0.29 + faults and rng.random() < 0.2:
            be_away(world)
        else:
            for _ in range(rng.randint(1, 10)):
                world.step()
    for node in world.nodes.values():
        node.disk.budget = None
        if not node.up:
            node.start()
    if world.oracle.leader is None:
        world.oracle.elect()
        world.oracle.decide()
    world.settle()
    assert world.leader is not None
    assert world.append(world.leader, [1])
    world.settle(3000)
    return world


def be_away(world: CompactingWorld) -> None:
    """A node is away while the others write and compact, for longer than tombstones are kept."""
    rng = world.rng
    node = world.nodes[rng.choice(world.names)]
    if node.up:
        node.stop(power=world.flushed)
        world.oracle.fence(node.name)
    for _ in range(6):
        for other in world.nodes.values():
            world.append(other, [rng.randint(1, 3) for _ in range(4)])
        world.tick(GRACE // 2)
        for _ in range(120):
            world.step()
        for other in world.nodes.values():
            world.compact(other)
        for _ in range(60):
            world.step()


@pytest.mark.slow
@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("seed", [int(CHOSEN)] if CHOSEN else range(100))
def test_no_key_is_lost_and_no_deleted_one_comes_back(seed: int, flushed: bool) -> None:
    world = history(seed, flushed=flushed)
    world.check_healed()
    for _ in range(3):
        for node in world.nodes.values():
            world.compact(node)
        world.settle(GRACE)
    world.check_healed()


def test_the_histories_are_about_something() -> None:
    """Tombstones go while replicas are away, copies are begun anew, gaps are copied."""
    anew = lost = gaps = 0
    for seed in range(12):
        world = history(seed, flushed=True)
        logs = [node.replica.log for node in world.nodes.values()]
        anew += sum(log.copied_in_epoch >= 0 for log in logs)
        lost += sum(log.tombstones_lost > 0 for log in logs)
        gaps += sum(log.thinned_below > 0 for log in logs)
    assert anew
    assert lost > anew
    assert gaps > 12
