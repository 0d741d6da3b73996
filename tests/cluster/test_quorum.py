"""The metadata partition: elections, and histories from seeds in which voters die, freeze and lose one another."""

from __future__ import annotations

import pytest
from cluster.world import TIMEOUT, World

from zbroker.cluster.records import ProducerIdsGranted
from zbroker.cluster.snapshots import SnapshotSettings

SEEDS = 150


def fault(world: World) -> None:
    rng = world.rng
    node = world.nodes[rng.choice(world.names)]
    kind = rng.choice((
        "kill", "power", "blackout", "start", "start", "start", "freeze", "thaw", "break", "late", "late",
        "cut", "cut one way", "heal", "gone", "hand over", "voters", "voters", "lose", "crash", "full",
    ))  # fmt: skip
    others = [name for name in world.names if name != node.name]
    if kind in ("kill", "power") and node.up:
        node.stop(power=kind == "power")
        if rng.random() < 0.5:
            world.notice_gone(node.name)
    elif kind == "blackout" and rng.random() < 0.3:
        for each in world.nodes.values():
            if each.up:
                each.stop(power=True)
    elif kind == "start" and not node.up:
        node.start()
    elif kind == "freeze":
        node.frozen = node.up
    elif kind == "thaw":
        node.frozen = False
    elif kind == "break":
        for link in sorted(world.network.links):
            if rng.random() < 0.4:
                world.network.break_link(link)
    elif kind == "late":
        world.network.deliver_late()
    elif kind == "cut":
        for other in others:
            world.network.cut |= {(node.name, other), (other, node.name)}
    elif kind == "cut one way":
        world.network.cut.add((node.name, rng.choice(others)))
    elif kind == "heal":
        world.network.cut.clear()
    elif kind == "gone" and not node.up:
        world.notice_gone(node.name)
    elif kind == "hand over" and world.controller is not None:
        world.controller.partition.hand_over(world.now)
    elif kind == "voters":
        world.change_voters(node.name, rng.choice(("add", "remove", "replace")))
    elif kind == "lose" and world.whole:
        world.lose_disk(node)
        world.noted["lost"] += 1
    elif kind == "crash" and node.up:
        node.disk.crash_at = node.disk.operations + rng.randint(1, 40)
    elif kind == "full":
        node.disk.budget = None if node.disk.budget else node.disk.used + rng.choice((0, 300))


def history(seed: int, steps: int = 500) -> World:
    world = World(seed, voters=3 if seed % 3 else 5, learners=seed % 2)
    rng = world.rng
    faults = rng.choice((0.0, 0.02, 0.06, 0.12))
    for _ in range(steps):
        draw = rng.random()
        if draw < 0.1:
            for _ in range(rng.choice((1, 1, 6))):
                world.propose(world.nodes[rng.choice(world.names)])
        elif draw < 0.25:
            world.tick(rng.choice((50, 100, 400, 1500)))
        elif draw < 0.25 + faults:
            fault(world)
        else:
            for _ in range(rng.randint(1, 10)):
                world.step()
    world.heal()
    return world


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_raft_promises(seed: int) -> None:
    world = history(seed)
    world.check_healed()


def test_the_first_election_and_a_decision() -> None:
    world = World(1)
    world.run(4 * TIMEOUT)
    node = world.controller
    assert node is not None
    assert world.propose(node)
    world.run(500)
    assert world.acknowledged == {0}
    assert {each.partition.leader for each in world.nodes.values()} == {node.name}
    assert {each.partition.metadata.next_producer_id for each in world.nodes.values()} == {1}


def test_one_voter_leads_at_once() -> None:
    world = World(1, voters=1)
    world.run(100)
    assert world.controller is not None


@pytest.mark.parametrize("seed", range(20))
def test_evidence_of_death_elects_in_milliseconds(seed: int) -> None:
    world = World(seed)
    world.run(4 * TIMEOUT)
    old = world.controller
    assert old is not None
    old.stop(power=False)
    world.notice_gone(old.name)
    world.run(200, step_ms=5)
    assert world.controller is not None
    assert world.controller is not old


@pytest.mark.parametrize("seed", range(10))
def test_silence_elects_in_about_the_timeout(seed: int) -> None:
    world = World(seed)
    world.run(4 * TIMEOUT)
    old = world.controller
    assert old is not None
    old.frozen = True
    world.run(TIMEOUT - 100)
    assert world.controller is None
    world.run(4 * TIMEOUT)
    assert world.controller is not None


@pytest.mark.parametrize("seed", range(10))
def test_a_voter_that_hears_nobody_deposes_nobody(seed: int) -> None:
    world = World(seed)
    world.run(4 * TIMEOUT)
    leader = world.controller
    assert leader is not None
    epoch = leader.partition.replica.epoch
    deaf = next(name for name in world.names if name != leader.name)
    for other in world.names:
        world.network.cut.add((other, deaf))
    world.run(10 * TIMEOUT)
    world.network.cut.clear()
    world.run(4 * TIMEOUT)
    assert world.controller is leader
    assert leader.partition.replica.epoch == epoch


def test_what_is_decided_is_seen_once_it_is_committed() -> None:
    world = World(3)
    world.run(4 * TIMEOUT)
    leader = world.controller
    assert leader is not None
    partition = leader.partition
    assert partition.draft is not None
    seen: list[int] = []
    for number in range(2):
        record = ProducerIdsGranted(node=leader.name, first=number, count=1)
        partition.propose([record], lambda _: seen.append(partition.metadata.next_producer_id), 0)
        assert partition.draft.next_producer_id == number + 1, "the next decision sees the last"
        assert partition.metadata.next_producer_id == 0
    world.run(500)
    assert seen == [1, 2], "each answer finds its own decision, and none later"
    assert partition.applied == partition.committed == partition.replica.log.end_offset


def test_an_answer_may_propose() -> None:
    world = World(3, voters=1)
    world.run(100)
    assert world.controller is not None
    partition = world.controller.partition
    answers: list[object] = []

    def again(error: object) -> None:
        answers.append(error)
        if len(answers) < 5:
            partition.propose([ProducerIdsGranted(node="v0", first=0, count=1)], again, 0)

    partition.propose([], again, 0)
    world.run(100)
    assert answers == [None] * 5


def test_a_draft_goes_with_the_leadership() -> None:
    world = World(3)
    world.run(4 * TIMEOUT)
    leader = world.controller
    assert leader is not None
    assert world.propose(leader)
    world.run(500)
    for other in world.names:
        world.network.cut |= {(leader.name, other), (other, leader.name)}
    assert world.propose(leader)
    world.run(2 * TIMEOUT + 300)
    assert not leader.partition.ready
    assert leader.partition.draft is None
    assert leader.partition.metadata.next_producer_id == 1
    world.heal()
    world.check_healed()


def test_a_leader_without_a_majority_steps_down() -> None:
    world = World(2)
    world.run(4 * TIMEOUT)
    leader = world.controller
    assert leader is not None
    for other in world.names:
        world.network.cut |= {(leader.name, other), (other, leader.name)}
    world.run(2 * TIMEOUT + 300)
    assert not leader.partition.ready
    heard: list[object] = []
    assert not world.propose(leader)
    assert not heard
    assert world.controller is not None


def test_when_each_was_heard() -> None:
    world = World(2)
    world.run(4 * TIMEOUT)
    leader = world.controller
    assert leader is not None
    silent, other = (name for name in world.names if name != leader.name)
    world.nodes[silent].frozen = True
    since = world.now
    world.run(800)
    heard = leader.partition.heard
    at = heard(other)
    assert at is not None
    assert at >= world.now - 200
    at = heard(silent)
    assert at is not None
    assert at <= since
    world.nodes[silent].stop(power=False)
    world.nodes[silent].start()
    assert heard(silent) is None, "not in this start"
    assert world.nodes[other].partition.heard(silent) is None, "only the leader hears everyone"


@pytest.mark.parametrize("seed", range(10))
def test_the_leadership_is_handed_on(seed: int) -> None:
    world = World(seed)
    world.run(4 * TIMEOUT)
    old = world.controller
    assert old is not None
    assert world.propose(old)
    epoch = old.partition.replica.epoch
    assert old.partition.hand_over(world.now)
    assert not old.partition.ready, "nothing is decided meanwhile"
    world.run(50, step_ms=5)
    assert world.controller not in (None, old)
    assert old.partition.replica.epoch == epoch + 1
    world.run(500)
    assert world.acknowledged == {0}
    world.check_healed()


def test_a_leadership_that_nobody_takes_is_kept() -> None:
    world = World(1)
    world.run(4 * TIMEOUT)
    old = world.controller
    assert old is not None
    assert old.partition.hand_over(world.now)
    assert old.partition._handover.target is not None
    world.nodes[old.partition._handover.target].frozen = True
    world.run(TIMEOUT + 100)
    assert old.partition.ready
    assert world.controller is old


def test_who_votes_alone_has_nobody_to_hand_over_to() -> None:
    world = World(1, voters=1, learners=1)
    world.run(1000)
    assert world.controller is not None
    assert not world.controller.partition.hand_over(world.now)
    assert world.controller.partition.ready
    assert not world.nodes["v1"].partition.hand_over(world.now), (
        "who does not lead has nothing to hand over"
    )


def test_a_full_disk_costs_no_vote_for_ever() -> None:
    world = World(1)
    world.run(4 * TIMEOUT)
    old = world.controller
    assert old is not None
    for node in world.nodes.values():
        node.disk.budget = node.disk.used
    old.stop(power=False)
    world.run(4 * TIMEOUT)
    assert all(node.partition.error is None for node in world.nodes.values())
    for node in world.nodes.values():
        node.disk.budget = None
    world.run(6 * TIMEOUT)
    assert world.controller is not None


@pytest.mark.parametrize("seed", range(5))
def test_a_power_loss_leaves_no_hole_in_what_a_voter_catches_up(seed: int) -> None:
    """A voter cannot have a hole filled by others: it would have to be replaced."""
    world = World(seed, snapshots=SnapshotSettings())
    world.run(4 * TIMEOUT)
    leader = world.controller
    assert leader is not None
    away = next(node for node in world.nodes.values() if node is not leader)
    away.stop(power=False)
    for _ in range(20):
        assert world.propose(leader)
        world.run(50)
    end = leader.partition.replica.log.end_offset
    away.start()
    log = away.partition.replica.log
    while log.state != "open" or log.written_offset < end:
        if not world.step():
            world.tick(5)
        assert log.flushed_offset == log.written_offset, "one write at a time is not on disk yet"
    away.stop(power=True)
    away.start()
    world.run(4 * TIMEOUT)
    assert away.partition.error is None
    world.check_healed()
