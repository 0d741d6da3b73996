"""All in-sync replicas stop uncleanly, under a topic that is not flushed at once: who leads then, by script."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mesh.mesh import Mesh

from zbroker.broker.partition import folder
from zbroker.errors import InvalidRequest
from zbroker.protocol.messages import AcceptLoss, Metadata, Partition
from zbroker.testing.clients import SimulatedConsumer
from zbroker.testing.cluster import Machine
from zbroker.testing.disk import SimulatedFolder
from zbroker.testing.rest import differences


def dark(mesh: Mesh) -> None:
    """The whole room."""
    for machine in mesh.cluster.machines.values():
        machine.lose_power()


def recovered(mesh: Mesh, after: int = -1) -> dict[str, tuple[int, int]]:
    """Waits until somebody leads again, in an epoch after one: the epoch and end of each log of the last known ISR."""
    place = folder(mesh.topic_id, 0)

    def leads() -> bool:
        return any(
            each.folder == place and each.epoch > after for each in mesh.invariants.recoveries
        )

    mesh.cluster.run_until(leads, 30, "somebody leads")
    (found,) = [
        each for each in mesh.invariants.recoveries if each.folder == place and each.epoch > after
    ]
    return found.extents


def made_equal(mesh: Mesh) -> None:
    """All are in sync again, take records, and have the same, byte for byte."""
    for machine in mesh.cluster.machines.values():
        mesh.serves(machine)
    mesh.cluster.run_until(mesh.in_sync, 30, "all in sync")
    mesh.takes()
    mesh.cluster.run(1)
    assert differences(mesh.cluster) == []
    for machine in mesh.cluster.machines.values():
        partition = machine.broker.keeper.find(mesh.topic_id, 0)
        assert partition is None or partition.log.damaged == []


def seen(mesh: Mesh) -> Partition:
    """The partition, as a client is told of it."""
    (topic,) = mesh.admin.call(Metadata(topics=["t"])).topics
    (partition,) = topic.partitions
    return partition


@pytest.mark.parametrize("fsync", ["interval", "never"])
@pytest.mark.parametrize("seed", range(4))
def test_all_lose_their_power_and_the_longest_log_is_kept(seed: int, fsync: str) -> None:
    mesh = Mesh(seed, fsync=fsync)
    producer = mesh.producer()
    for _ in range(3):
        mesh.acknowledged(60)
        epoch = mesh.state.epoch
        dark(mesh)
        mesh.cluster.run(0.5)
        mesh.cluster.start()
        said = recovered(mesh, epoch)
        most = max(said.values())
        assert len(said) == 3
        assert mesh.state.end == most[1]
        assert mesh.state.lost_from == min(end for _, end in said.values())
        mesh.cluster.run_until(mesh.in_sync, 30, "all in sync")
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 30, "every outcome is known")
    made_equal(mesh)
    assert mesh.invariants.checks["21 recoveries"] == 3


def keep_names(at: SimulatedFolder) -> None:
    """All files and folders are on the disk, whatever is in them."""
    at.flush()
    for below in at.cached.values():
        if isinstance(below, SimulatedFolder):
            keep_names(below)


def hole(mesh: Mesh, machine: Machine, lost: int) -> None:
    """The next power failure leaves everything that is in the log's file, but for one of the writes."""
    path = f"{folder(mesh.topic_id, 0)}/{0:020d}.log"
    keep_names(machine.disk._root)
    found = machine.disk._file(path)
    del found.changes[lost]
    for change in found.changes:
        position, data = change
        assert data is not None
        found.durable.extend(bytes(position + len(data) - len(found.durable)))
        found.durable[position : position + len(data)] = data
    found.changes.clear()


def with_holes(mesh: Mesh, *lost: int) -> None:
    """Six records, all machines dark, and one record lost on each."""
    for _ in range(6):
        mesh.takes()
    for machine, number in zip(mesh.cluster.machines.values(), lost, strict=False):
        hole(mesh, machine, number)
    dark(mesh)
    mesh.cluster.run(0.5)


def test_every_log_has_a_hole_and_is_cut_where_the_last_one_begins() -> None:
    mesh = Mesh(fsync="never")
    with_holes(mesh, 1, 3, 2)
    mesh.cluster.start()
    said = recovered(mesh)
    assert sorted(end for _, end in said.values()) == [1, 2, 3]
    assert (mesh.state.leader, mesh.state.end, mesh.state.lost_from) == ("n2", 3, 1)
    made_equal(mesh)
    assert mesh.end() == 4


def test_the_only_replica_is_not_cut_and_is_read_around_its_hole() -> None:
    mesh = Mesh(nodes=1, fsync="never", replicas=1, min_insync=1)
    with_holes(mesh, 2)
    mesh.cluster.start()
    recovered(mesh)
    assert (mesh.state.end, mesh.state.lost_from) == (6, 2)
    mesh.takes()
    assert mesh.end() == 7
    partition = mesh.leader.broker.keeper.find(mesh.topic_id, 0)
    assert partition is not None
    assert partition.log.damaged == [(2, 3)]


def test_a_log_that_was_to_be_cut_on_a_full_disk_is_cut_once_there_is_room() -> None:
    mesh = Mesh(fsync="never")
    with_holes(mesh, 1, 3, 2)
    mesh.cluster.start()
    leader = mesh.cluster.machines["n2"]
    mesh.cluster.run_until(lambda: len(mesh.state.reports) == 3, 30, "all have said what they have")
    leader.disk.budget = 0
    mesh.cluster.run(5)
    assert mesh.state.leader == "n2"
    leader.disk.budget = None
    made_equal(mesh)
    assert mesh.end() == 4


def test_the_leader_that_was_chosen_stops_before_it_has_cut_its_log() -> None:
    mesh = Mesh(fsync="never")
    with_holes(mesh, 1, 3, 2)
    mesh.cluster.start()
    leader = mesh.cluster.machines["n2"]
    mesh.cluster.run_until(lambda: mesh.state.unclean, 30, "somebody is to lead")
    leader.slowness = 1000.0
    leader.lose_power()
    epoch = mesh.state.epoch
    mesh.cluster.run(3)
    leader.slowness = 1.0
    leader.start()
    mesh.cluster.run_until(
        lambda: mesh.state.unclean and mesh.state.epoch > epoch, 30, "it leads after all"
    )
    assert (mesh.state.leader, mesh.state.end) == ("n2", 3)
    made_equal(mesh)
    assert mesh.end() == 4


def test_who_had_read_further_is_told_what_changed() -> None:
    mesh = Mesh(fsync="never")
    for _ in range(6):
        mesh.takes()
    reader = SimulatedConsumer("reader", mesh.cluster, mesh.history, ("t",))
    mesh.cluster.run_until(lambda: list(reader.positions.values()) == [6], 10, "all is read")
    for machine in mesh.cluster.machines.values():
        hole(mesh, machine, 4)
    dark(mesh)
    mesh.cluster.run(0.5)
    mesh.cluster.start()
    recovered(mesh)
    mesh.cluster.run_until(lambda: reader.diverged, 20, "the reader is told")
    details = reader.diverged[0].details
    assert (details["first"], details["next"]) == (4, 6)


def test_kills_lose_nothing_that_was_written() -> None:
    """Nobody can tell a kill from a power failure; what the system had is all there."""
    mesh = Mesh(fsync="never")
    producer = mesh.producer()
    for _ in range(3):
        mesh.acknowledged(30)
        for machine in mesh.cluster.machines.values():
            machine.kill()
        epoch = mesh.state.epoch
        mesh.cluster.start()
        recovered(mesh, epoch)
        mesh.cluster.run_until(mesh.in_sync, 30, "all in sync")
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 30, "every outcome is known")
    mesh.heal()


# Who is waited for ---


def test_one_that_stays_away_is_waited_for_and_can_be_given_up() -> None:
    mesh = Mesh(fsync="never", min_insync=1)
    for _ in range(3):
        mesh.takes()
    dark(mesh)
    mesh.cluster.run(0.5)
    mesh.cluster.start("n1", "n2")
    mesh.cluster.run_until(lambda: mesh.state.leader is None, 20, "nobody leads")
    mesh.cluster.run_until(lambda: len(mesh.state.reports) == 2, 20, "both say what they have")
    mesh.cluster.run(5)
    partition = seen(mesh)
    assert (partition.leader, partition.waiting_for) == (None, ["n3"])
    mesh.invariants.ledger(folder(mesh.topic_id, 0)).given_up = True
    said = {node: (each.last_epoch, each.end) for node, each in mesh.state.reports.items()}
    (found,) = mesh.admin.call(
        AcceptLoss(topic_id=mesh.topic_id, epoch=partition.epoch, request_id="1")
    ).topic.partitions
    assert found.unclean
    assert said[found.leader or ""] == max(said.values())
    assert found.lost_from == max(said.values())[1]
    with pytest.raises(InvalidRequest, match="has a leader"):
        mesh.admin.call(AcceptLoss(topic_id=mesh.topic_id, request_id="2"))
    mesh.cluster.start("n3")
    made_equal(mesh)


def test_a_disk_that_is_lost_in_the_power_failure_is_not_waited_for() -> None:
    mesh = Mesh(nodes=4, voters=1, replicas=3, fsync="never", min_insync=1)
    others = [machine for machine in mesh.followers if machine.name != "n1"]
    for _ in range(3):
        mesh.takes()
    dark(mesh)
    others[0].empty_disk()
    mesh.cluster.run(0.5)
    mesh.cluster.start()
    said = recovered(mesh)
    assert said[mesh.state.leader or ""] == max(said.values())
    made_equal(mesh)


def test_who_was_only_cut_off_has_everything() -> None:
    """The last in-sync replica did not stop: it comes back and leads, and nothing is missing."""
    mesh = Mesh(nodes=3, voters=["n3"], replicas=2, min_insync=1, fsync="never")
    mesh.takes()
    leader, (follower,) = mesh.leader, mesh.followers
    follower.lose_power()
    mesh.cluster.run_until(lambda: mesh.in_sync(leader.name), 10, "it is alone")
    mesh.takes()
    mesh.cluster.isolate(leader.name)
    mesh.cluster.run_until(lambda: mesh.state.leader is None, 20, "it is taken for dead")
    mesh.cluster.start(follower.name)
    mesh.cluster.run(3)
    assert (mesh.state.leader, mesh.state.recovering) == (None, False)
    assert seen(mesh).waiting_for == [leader.name]
    mesh.heal()
    assert (mesh.end(), mesh.state.unclean) == (2, False)


def test_who_left_while_the_leader_lived_is_not_waited_for() -> None:
    """A leader whose in-sync replicas became fewer says that it lives: the others are behind, and do not matter."""
    mesh = Mesh(nodes=4, voters=1, replicas=3, min_insync=1, fsync="never")
    gone = next(each for each in mesh.followers if each.name != "n1")
    mesh.takes()
    gone.lose_power()
    rest = [each for each in mesh.state.replicas if each != gone.name]
    mesh.cluster.run_until(lambda: sorted(mesh.state.last) == sorted(rest), 10, "it is known to")
    mesh.takes()
    for name in {"n1", *rest}:
        mesh.cluster.machines[name].kill()
    mesh.cluster.run(0.5)
    mesh.cluster.start(*sorted({"n1", *rest}))
    said = recovered(mesh)
    assert sorted(said) == sorted(rest)
    assert mesh.state.end == 2


@pytest.mark.parametrize("thawed", [False, True])
def test_a_leader_that_was_replaced_by_one_that_lived_is_not_waited_for(*, thawed: bool) -> None:
    """Nothing was committed after it; nor does it count again that it hears late of what was copied under it."""
    mesh = Mesh(nodes=3, voters=["n3"], replicas=2, min_insync=2, fsync="never")
    mesh.takes()
    leader, (follower,) = mesh.leader, mesh.followers
    ledger = mesh.invariants.ledger(folder(mesh.topic_id, 0))
    mesh.cluster.network.delays[follower.name, leader.name] = 60_000
    mesh.prober.produce(leader.name, mesh.place)
    mesh.prober.soon()
    copy = follower.copies.of(ledger.folder)
    mesh.cluster.run_until(lambda: copy.written == 2, 5, "it is copied")
    leader.freeze()
    mesh.cluster.run_until(lambda: list(mesh.state.last) == [follower.name], 20, "another lives")
    assert ledger.end == 1
    if thawed:
        leader.thaw()
        assert ledger.end == 2
    leader.lose_power()
    follower.lose_power()
    mesh.cluster.run(0.5)
    mesh.cluster.start(follower.name)
    assert list(recovered(mesh)) == [follower.name]


def test_a_start_that_was_stopped_before_it_was_known_does_not_count_as_a_stop_in_order() -> None:
    """What its machine had lost before, nobody has heard of yet: its next start is to say so."""
    mesh = Mesh(fsync="never", min_insync=1)
    for _ in range(3):
        mesh.takes()
    dark(mesh)
    for machine in mesh.cluster.machines.values():
        for _ in range(2):
            machine.start()
            mesh.cluster.run(0.02)
            machine.stop()
            mesh.cluster.run_until(lambda machine=machine: not machine.up, 10, "it has stopped")
    mesh.cluster.start()
    recovered(mesh)
    made_equal(mesh)


# The controller changes ---


def began(mesh: Mesh) -> bool:
    return mesh.state.recovering


def one_has_said(mesh: Mesh) -> bool:
    return mesh.state.recovering and len(mesh.state.reports) == 1


def decided(mesh: Mesh) -> bool:
    return mesh.state.unclean


@pytest.mark.parametrize("step", [began, one_has_said, decided])
@pytest.mark.parametrize("apart", [True, False])
def test_the_controller_goes_at_every_step(step: Callable[[Mesh], bool], apart: bool) -> None:
    """What is waited for and what was said is in the metadata: the next controller goes on with it."""
    mesh = Mesh(3, nodes=5, voters=["n3", "n4", "n5"], replicas=2, fsync="never")
    assert mesh.state.replicas == ["n1", "n2"]
    for _ in range(6):
        mesh.takes()
    dark(mesh)
    mesh.cluster.run(0.5)
    mesh.cluster.start()
    mesh.cluster.machines["n2"].slowness = 100.0
    mesh.cluster.run_until(lambda: step(mesh), 30, "it came so far")
    controller = mesh.controller
    assert controller is not None
    if apart:
        mesh.cluster.isolate(controller.name)
    else:
        controller.kill()
    mesh.cluster.run_until(
        lambda: mesh.controller not in (None, controller), 20, "another controller"
    )
    recovered(mesh)
    mesh.cluster.heal()
    made_equal(mesh)


def test_the_feature_level_rises_by_itself() -> None:
    """A cluster that an older version formed writes the newer records once every node understands them."""
    mesh = Mesh(fsync="never")
    for machine in mesh.cluster.machines.values():
        machine.broker.metadata.feature_level = 1
        draft = machine.broker.quorum.draft
        if draft is not None:
            draft.feature_level = 1
    mesh.cluster.run(1)
    levels = {machine.broker.metadata.feature_level for machine in mesh.cluster.up}
    assert levels == {2}
