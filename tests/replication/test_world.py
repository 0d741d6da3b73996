"""Histories of a replicated partition, from seeds: nothing that was committed is lost or changed."""

from __future__ import annotations

import pytest
from replication.world import World

pytestmark = pytest.mark.slow  # the same decisions on every Python

SEEDS = 150


def history(seed: int, *, flushed: bool, steps: int = 400) -> World:
    """Faults first, then healing."""
    world = World(seed, flushed=flushed)
    rng = world.rng
    faults = rng.choice((0.0, 0.02, 0.05))
    for _ in range(steps):
        draw = rng.random()
        if draw < 0.10:
            node = world.nodes[rng.choice(world.names)]
            world.append(node, [rng.randint(1, 3) for _ in range(rng.randint(1, 4))])
        elif draw < 0.11:
            world.delete_records(world.nodes[rng.choice(world.names)])
        elif draw < 0.17:
            world.tick(rng.choice((10, 100, 400)))
        elif draw < 0.17 + faults:
            fault(world)
        else:
            for _ in range(rng.randint(1, 8)):
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


def fault(world: World) -> None:
    rng = world.rng
    node = world.nodes[rng.choice(world.names)]
    kind = rng.choice(
        (
            "kill", "power", "blackout", "start", "start", "fence", "break", "stale", "cut", "heal",
            "full", "room",
        )
    )  # fmt: skip
    if kind == "kill" and node.up:
        node.stop(power=False)
    elif kind == "power" and node.up:
        node.stop(power=world.flushed)
    elif kind == "blackout":
        for each in world.nodes.values():
            if each.up:
                each.stop(power=world.flushed)
    elif kind == "start" and not node.up:
        node.start()
    elif kind == "full":
        node.disk.budget = node.disk.used + rng.randrange(2000)
    elif kind == "room":
        node.disk.budget = None
    elif kind == "fence":
        world.oracle.fence(node.name)
    elif kind == "break":
        for link in sorted(world.network.links):
            if rng.random() < 0.4:
                world.network.break_link(link)
    elif kind == "stale":
        world.network.deliver_stale()
    elif kind == "cut":
        others = [name for name in world.names if name != node.name]
        world.network.cut.add((node.name, rng.choice(others)))
    elif kind == "heal":
        world.network.cut.clear()


@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_committed_is_lost(seed: int, flushed: bool) -> None:
    world = history(seed, flushed=flushed)
    world.check_healed()
