"""Snapshots in place of the log's prefix: made, sent, installed, damaged, and interrupted at every step."""

from __future__ import annotations

import pytest
from cluster.world import SMALL, TIMEOUT, Node, World

from zbroker.cluster import transfer
from zbroker.cluster.quorum import FOLDER
from zbroker.cluster.snapshot import INCOMING, NAME
from zbroker.cluster.snapshots import SnapshotSettings
from zbroker.cluster.transfer import Incoming
from zbroker.protocol.peers import Append, SnapshotPart, Vote, VoteRequest

SNAPSHOT = f"{FOLDER}/{NAME}"
ONE_SEGMENT = SnapshotSettings(bytes_max=2000, batches_max=5, segment_bytes=1 << 20)


def decide(world: World, times: int) -> None:
    """So many decisions, each committed."""
    for _ in range(times):
        assert world.controller is not None
        assert world.propose(world.controller)
        world.run(150)


def running(
    seed: int = 1, voters: int = 3, snapshots: SnapshotSettings = SMALL
) -> tuple[World, Node]:
    world = World(seed, voters, snapshots=snapshots)
    world.run(4 * TIMEOUT)
    decide(world, 20)
    assert world.controller is not None
    return world, world.controller


def away(world: World, node: Node) -> None:
    """A node is away until the log has begun behind its end."""
    node.stop(power=False)
    world.run(TIMEOUT)
    end = node.partition.replica.log.end_offset
    while world.controller is None or world.controller.partition.replica.log.first_offset <= end:
        decide(world, 5)


def test_the_logs_prefix_goes_once_a_snapshot_has_it() -> None:
    world, leader = running()
    for node in world.nodes.values():
        log, snapshots = node.partition.replica.log, node.partition._snapshots
        assert 0 < log.first_offset <= log.start_offset == snapshots.offset
        assert node.disk.size(SNAPSHOT) > 0
        assert node.partition.applied - snapshots.offset < 10
    assert leader.partition.metadata.next_producer_id == 20


def test_nothing_goes_before_the_snapshot_is_on_disk() -> None:
    world = World(1, 1)
    world.run(200)
    node = world.nodes["v0"]
    steps: list[tuple[str, str]] = []
    node.disk.hook = lambda kind, path: steps.append((kind, path))
    decide(world, 40)
    kinds = [
        "snapshot" if (kind, path) == ("rename", f"{SNAPSHOT}.tmp") else "gone"
        for kind, path in steps
        if (kind, path) == ("rename", f"{SNAPSHOT}.tmp")
        or (kind == "remove" and path.endswith(".log"))
    ]
    assert kinds[0] == "snapshot"
    assert "gone" in kinds
    renamed = steps.index(("rename", f"{SNAPSHOT}.tmp"))
    assert ("flush", f"{SNAPSHOT}.tmp") in steps[:renamed]
    assert steps[renamed + 1] == ("flush_folder", FOLDER)


@pytest.mark.parametrize("seed", range(10))
def test_a_start_from_a_snapshot(seed: int) -> None:
    world, leader = running(seed)
    states = leader.partition.metadata.next_producer_id
    for node in world.nodes.values():
        node.stop(power=True)
    for node in world.nodes.values():
        node.start()
        assert node.partition.applied == 0
    for node in world.nodes.values():
        while node.partition.state in ("opening", "reading"):
            assert world.step()
        assert node.partition.applied >= node.partition._snapshots.offset > 0
        assert list(node.partition.metadata.nodes) == []
        assert node.partition.metadata.nodes_touched
    world.run(4 * TIMEOUT)
    assert world.controller is not None
    assert world.controller.partition.metadata.next_producer_id == states
    world.check_healed()


@pytest.mark.parametrize("seed", range(10))
def test_who_was_away_for_long_gets_a_snapshot(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", 50)
    world, leader = running(seed)
    node = next(each for each in world.nodes.values() if each is not leader)
    away(world, node)
    node.start()
    world.run(3 * TIMEOUT)
    assert world.controller is not None
    log = node.partition.replica.log
    assert log.end_offset == world.controller.partition.replica.log.end_offset
    assert log.first_offset > 0
    assert node.disk.size(f"{FOLDER}/{INCOMING}") == -1
    world.check_healed()


def test_a_snapshot_on_its_way_is_heard_as_the_leader_is() -> None:
    """Who gets one neither stands for election nor is taken for dead."""
    world, leader = running()
    node = next(each for each in world.nodes.values() if each is not leader)
    away(world, node)
    node.start()
    while leader.partition.heard(node.name) is None:
        if not world.step():
            world.tick(50)
    epoch = leader.partition.replica.epoch
    for _ in range(100):
        world.now += 100
        for each in world.nodes.values():
            each.partition.on_tick(world.now, world.now)
        for link in world.network.busy():
            while world.network.links[link]:
                world.network.deliver(link)
        for each in world.nodes.values():
            if each is not node:
                each.storage.run_all()
        heard = leader.partition.heard(node.name)
        assert heard is not None
        assert world.now - heard < TIMEOUT
    assert leader.partition.replica.epoch == epoch
    world.run(TIMEOUT)
    world.check_healed()


@pytest.mark.parametrize("seed", range(5))
def test_a_new_leader_begins_a_transfer_anew(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", 40)
    world, leader = running(seed)
    node = next(each for each in world.nodes.values() if each is not leader)
    away(world, node)
    leader = world.controller or leader
    node.start()
    while not node.partition._incoming.position >= 40:
        if not world.step():
            world.tick(50)
    assert not node.partition._incoming.complete
    other = next(each for each in world.nodes.values() if each not in (node, leader))
    leader.frozen = True
    world.run(6 * TIMEOUT)
    assert world.controller is other
    assert node.partition.replica.log.end_offset == other.partition.replica.log.end_offset
    leader.frozen = False
    world.run(2 * TIMEOUT)
    world.check_healed()


def test_parts_of_another_transfer_are_not_mixed() -> None:
    incoming = Incoming()

    def part(session: int, position: int, data: bytes, epoch: int = 1, sender: str = "a") -> bool:
        message = SnapshotPart(epoch=epoch, session=session, offset=9, position=position, total=6)
        return incoming.take(sender, message, data)

    assert part(1, 0, b"abc")
    assert part(1, 0, b"abc"), "again: it is where it was"
    assert incoming.position == 3
    assert part(1, 4, b"ef"), "a gap"
    assert incoming.position == 3
    assert part(2, 0, b"xy")
    assert not part(1, 3, b"def"), "of one that is over"
    assert (incoming.data(), incoming.complete) == (b"xy", False)
    assert part(1, 0, b"A", epoch=2)
    assert part(1, 1, b"BCDEF", epoch=2)
    assert (incoming.data(), incoming.complete) == (b"ABCDEF", True)
    assert part(1, 6, b"G", epoch=2)
    assert incoming.data() == b"ABCDEF", "no more than there is"


@pytest.mark.parametrize("power", [False, True])
def test_an_installation_that_is_interrupted_at_any_step(power: bool) -> None:
    step = 0
    while True:
        step += 1
        world, leader = running(3)
        node = next(each for each in world.nodes.values() if each is not leader)
        away(world, node)
        node.start()
        while not node.partition._snapshots.installing:
            if not world.step():
                world.tick(50)
        before = node.disk.operations
        node.disk.crash_at = before + step
        world.run(2 * TIMEOUT)
        crashed = not node.up
        if crashed:
            node.disk.restart()
            node.stop(power=power)
            node.start()
        node.disk.crash_at = None
        world.run(3 * TIMEOUT)
        world.check_healed()
        if not crashed:
            break
    assert step > 12, "there were steps"


@pytest.mark.parametrize("more", [8, 80])
def test_a_log_that_diverged_goes_for_a_snapshot(more: int) -> None:
    """Its tail was never committed, whether it ends before the snapshot or behind it."""
    world, leader = running(5, voters=5)
    for other in world.nodes.values():
        world.network.cut |= {(leader.name, other.name), (other.name, leader.name)}
    agreed = leader.partition.replica.log.end_offset
    for _ in range(more):
        assert world.propose(leader)
    leader.storage.run_all()
    end = leader.partition.replica.log.end_offset
    leader.frozen = True
    world.run(4 * TIMEOUT)
    while world.controller is None or world.controller.partition.replica.log.first_offset <= (
        agreed if more > 50 else end
    ):
        decide(world, 3)
    assert (world.controller.partition.applied < end) == (more > 50)
    for queue in world.network.links.values():
        queue.clear()
    leader.frozen = False
    world.network.cut.clear()
    world.run(4 * TIMEOUT)
    world.check_healed()


def until_installing(world: World, node: Node, state: str = "incoming") -> None:
    while node.partition._snapshots.state != state:
        if not world.step():
            world.tick(50)


def test_nobody_votes_while_the_log_is_being_discarded() -> None:
    """What is left of it says less than what was acknowledged."""
    world, leader = running()
    node, other = (each for each in world.nodes.values() if each is not leader)
    away(world, node)
    node.start()
    until_installing(world, node, "restarting")
    partition = node.partition
    last_epoch, end = partition.log_position()
    epoch = partition.replica.epoch + 1
    leader.stop(power=False)
    world.notice_gone(leader.name)
    for pre in (True, False):
        request = VoteRequest(epoch=epoch, last_epoch=last_epoch, end=end, pre=pre)
        partition.on_vote_request(other.name, request, world.now)
    while partition._snapshots.installing:
        assert node.storage.step()
    node.storage.run_all()
    said = [message for _, _, message, _ in world.network.links.get((node.name, other.name), ())]
    assert not any(isinstance(message, Vote) for message in said)


def test_a_leader_whose_own_disk_is_slow_writes_no_snapshot_ahead_of_its_log() -> None:
    world, leader = running()
    partition = leader.partition
    for _ in range(12):
        assert world.propose(leader)
    for _ in range(5):
        for link in world.network.busy():
            while world.network.links[link]:
                world.network.deliver(link)
        for node in world.nodes.values():
            if node is not leader:
                node.storage.run_all()
    assert partition.applied > partition.replica.log.flushed_offset
    assert partition._snapshots.state == "idle"
    world.run(500)
    assert partition._snapshots.offset > partition.applied - 6


def test_the_epoch_before_a_snapshot_is_known_even_if_the_epoch_table_is_lost() -> None:
    world, leader = running()
    node = next(each for each in world.nodes.values() if each is not leader)
    away(world, node)
    node.start()
    until_installing(world, node)
    world.network.cut |= {(one, two) for one in world.names for two in world.names}
    node.storage.run_all()
    position = node.partition.log_position()
    node.stop(power=False)
    node.disk.lose(f"{FOLDER}/epochs")
    node.start()
    node.storage.run_all()
    log = node.partition.replica.log
    assert (
        node.partition.log_position()
        == position
        == (log.epoch_at(log.end_offset - 1), log.end_offset)
    )


def restarted(node: Node) -> str:
    """Starts a node by itself; what it fails with."""
    world = node.world
    node.stop(power=False)
    node.deliver = lambda completion: node.partition.on_event(completion, world.now)  # type: ignore[method-assign]
    node.start()
    node.storage.run_all()
    return str(node.partition.error or "")


def test_a_damaged_snapshot_is_made_anew_where_the_log_has_everything() -> None:
    world = World(1, snapshots=SnapshotSettings())
    world.run(4 * TIMEOUT)
    decide(world, 5)
    node = world.nodes["v0"]
    node.stop(power=False)
    node.disk.write(SNAPSHOT, 0, [b"no snapshot"])
    node.start()
    world.run(4 * TIMEOUT)
    assert node.partition.error is None
    assert node.disk.size(SNAPSHOT) > 20
    assert node.partition._snapshots.offset > 0
    world.check_healed()


@pytest.mark.parametrize("how", ["flipped", "gone", "old"])
def test_a_damaged_snapshot_stops_a_node_whose_log_begins_later(how: str) -> None:
    world, leader = running()
    node = next(each for each in world.nodes.values() if each is not leader)
    if how == "flipped":
        node.disk.flip(SNAPSHOT, 30)
    elif how == "gone":
        node.disk.lose(SNAPSHOT)
    else:
        old = node.disk.read(SNAPSHOT, 0, 1 << 20)
        decide(world, 12)
        node.disk.write(SNAPSHOT, 0, [old])
        node.disk.truncate(SNAPSHOT, len(old))
    assert "replace the voter" in restarted(node)
    assert node.partition.state == "failed"


def test_a_damaged_incoming_snapshot_stops_a_node() -> None:
    world, leader = running()
    node = next(each for each in world.nodes.values() if each is not leader)
    node.stop(power=False)
    node.disk.write(f"{FOLDER}/{INCOMING}", 0, [b"half of it"])
    assert "replace the voter" in restarted(node)


def test_a_log_that_lost_what_the_snapshot_follows_stops_a_node() -> None:
    world, leader = running(snapshots=ONE_SEGMENT)
    node = next(each for each in world.nodes.values() if each is not leader)
    node.stop(power=False)
    for name in node.disk.list(FOLDER):
        if name not in ("ballot", NAME):
            node.disk.lose(f"{FOLDER}/{name}")
    assert "replace the voter" in restarted(node)


def test_a_full_disk_keeps_the_old_snapshot_and_the_log() -> None:
    world, leader = running()
    node = next(each for each in world.nodes.values() if each is not leader)
    before = node.partition._snapshots.offset
    node.disk.budget = node.disk.used
    decide(world, 10)
    assert node.partition.error is None
    assert node.partition._snapshots.offset == before == node.partition.replica.log.start_offset
    node.disk.budget = None
    world.run(4 * TIMEOUT)
    decide(world, 10)
    assert node.partition._snapshots.offset > before
    world.check_healed()


def test_where_a_vote_goes_by_a_log_that_is_empty_behind_a_snapshot() -> None:
    """The last record's epoch is the snapshot's, not that of an empty log."""
    world, leader = running()
    node = next(each for each in world.nodes.values() if each is not leader)
    away(world, node)
    node.start()
    while not node.partition._snapshots.installing:
        if not world.step():
            world.tick(50)
    world.network.cut |= {(one, two) for one in world.names for two in world.names}
    while node.storage.step():
        pass
    snapshots = node.partition._snapshots
    assert node.partition.replica.log.end_offset == snapshots.offset
    assert node.partition.log_position() == (snapshots.epoch, snapshots.offset)
    assert snapshots.epoch >= 0


def test_topics_that_a_snapshot_changed_are_noted() -> None:
    world, leader = running()
    node = next(each for each in world.nodes.values() if each is not leader)
    away(world, node)
    node.start()
    while node.partition.applied == 0:
        if not world.step():
            world.tick(50)
    node.partition.metadata.nodes_touched = False
    applied = node.partition.applied
    while not node.partition._snapshots.installing:
        if not world.step():
            world.tick(50)
    while node.partition.applied == applied:
        if not world.step():
            world.tick(50)
    assert node.partition.metadata.nodes_touched


def test_the_metadata_leader_probes_nothing_before_its_log() -> None:
    """A follower may not be told to begin anew where the leader's log begins: it would lack the state before."""
    world, leader = running()
    node = next(each for each in world.nodes.values() if each is not leader)
    away(world, node)
    node.start()
    world.run(100, step_ms=10)
    role = leader.partition.replica.leader
    assert role is not None
    first = role.log.first_offset
    for offset in (first, first - 1, 0):
        role.resume(node.name, offset, world.now)
        assert role.followers[node.name].lacks == (offset < first)
    seen = [
        message
        for queue in world.network.links.values()
        for _, _, message, _ in queue
        if isinstance(message, Append)
    ]
    assert any(message.probe and message.base == first for message in seen)
    assert not any(message.begins for message in seen)
    assert all(message.log_start == 0 for message in seen), "followers have snapshots of their own"
