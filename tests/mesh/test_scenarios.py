"""What has gone wrong in clusters like this one, here and elsewhere, by script."""

from __future__ import annotations

import pytest
from mesh.mesh import Mesh

from zbroker.broker.control import Answer
from zbroker.errors import ZBrokerError
from zbroker.protocol.messages import DeleteRecords, Metadata, MetadataReply
from zbroker.testing.clients import SimulatedProducer
from zbroker.testing.cluster import SimulatedCluster
from zbroker.testing.timeline import MS


def test_a_replica_that_was_away_while_another_was_appointed_follows_again() -> None:
    """It learns of the appointment while it is not up for the metadata, and then that it is up again."""
    mesh = Mesh()
    leader, away = mesh.leader, mesh.followers[0]
    away.freeze()
    mesh.cluster.run_until(lambda: away.name not in mesh.state.isr, 10, "it leaves the ISR")
    leader.stop()  # hands over before it goes
    mesh.cluster.run_until(lambda: mesh.state.leader not in (None, leader.name), 20, "a leader")
    away.thaw()
    others = [machine.name for machine in (away, mesh.leader)]
    mesh.cluster.run_until(lambda: mesh.in_sync(*others), 10, "it is in sync again")
    mesh.takes()
    mesh.heal()


def test_a_node_that_stops_before_it_serves_knows_nothing_and_says_nothing() -> None:
    """It was asked to stop while it had not read its metadata: it must not deny the topics that there are."""
    mesh = Mesh()
    machine = mesh.followers[0]
    machine.kill()
    machine.slowness = 300.0
    machine.start()
    answers: list[object] = []
    mesh.cluster.run_until(lambda: machine.broker.mesh.cluster, 10, "its log is being opened")
    machine.stop()
    while machine.up:
        mesh.admin.ask(Metadata(topics=["t"]), answers.append, patience=0.0, node=machine.name)
        mesh.cluster.run(0.005)
    mesh.cluster.run(5)
    assert answers
    for answer in answers:
        assert isinstance(answer, ZBrokerError) or (
            isinstance(answer, MetadataReply) and answer.topics[0].error is None
        ), answer


def test_a_leader_with_too_few_in_sync_does_not_name_an_end_that_others_have_passed() -> None:
    """After its start it knows only a part of what is committed, and waits for the other replica to know the rest."""
    mesh = Mesh(nodes=5, replicas=2, min_insync=2)
    acknowledged = mesh.takes()
    leader, follower = mesh.leader, mesh.followers[0]
    follower.kill()
    mesh.cluster.run_until(lambda: mesh.in_sync(leader.name), 10, "it leaves the ISR")
    leader.kill()
    leader.start()
    mesh.cluster.run_until(lambda: mesh.state.leader == leader.name, 20, "it leads again")
    for _ in range(30):
        mesh.prober.ask_end(leader.name, mesh.place)
        mesh.prober.soon()
        mesh.cluster.run(0.1)
    assert not [asked for asked in mesh.history.asked if asked.offset <= acknowledged.offset]
    mesh.heal()
    mesh.prober.ask_end(mesh.leader.name, mesh.place)
    mesh.prober.soon()
    mesh.cluster.run(1)
    assert mesh.history.asked[-1].offset > acknowledged.offset


def test_a_replica_that_had_nothing_to_do_for_long_stays_in_sync() -> None:
    """A partition at rest is not told the time; its next record must not be taken for one that is long overdue."""
    mesh = Mesh()
    mesh.takes()
    kept = [machine.broker.partitions[mesh.topic_id][0] for machine in mesh.cluster.up]
    mesh.cluster.run_until(lambda: all(each.resting for each in kept), 120, "all are at rest")
    mesh.cluster.run(10)
    version = mesh.state.version
    sent = mesh.prober.produce(mesh.leader.name, mesh.place, "all")
    follower = mesh.followers[0]
    follower.freeze()
    mesh.cluster.run(0.4)
    assert sent.outcome == "unknown"
    follower.thaw()
    mesh.cluster.run_until(lambda: sent.outcome == "ok", 1, "it is acknowledged")
    assert mesh.in_sync()
    assert mesh.state.version == version
    mesh.heal()


def test_a_node_that_stops_does_not_spin() -> None:
    """While its metadata log is being closed, no election is due: its loop would not sleep."""
    cluster = SimulatedCluster(1)
    cluster.form()
    machine = cluster.machines["n2"]
    machine.slowness = 300.0
    machine.stop()
    for _ in range(1000):
        cluster.run(0.05)
        if not machine.up:
            break
        if machine.broker.state == "closing":
            assert machine.broker.due is None or machine.broker.quorum.state != "closing"
    assert not machine.up


def test_a_controller_that_stops_lets_go_of_what_it_has_handed_over() -> None:
    """Its own request is answered before its partitions follow the answer: it must not finish what others lead."""
    mesh = Mesh()
    for number in range(3):
        mesh.admin.create_topic(f"t{number}", partitions=1)
    mesh.cluster.run_until(lambda: mesh.controller is not None, 10, "a controller")
    controller = mesh.controller
    assert controller is not None
    led = next(
        topic.name
        for topic in mesh.invariants.metadata.topics.values()
        if topic.partitions[0].leader == controller.name
    )
    SimulatedProducer("p", mesh.cluster, mesh.history, {led: 1}, pace=(MS, MS))  # one always waits
    mesh.cluster.run(1)
    stopped = mesh.cluster.now
    controller.stop()
    mesh.cluster.run_until(lambda: not controller.up, 20, "it has stopped")
    assert mesh.cluster.now - stopped < 1
    mesh.cluster.run(2)
    sends = [send for send in mesh.history.sends if send.began < mesh.cluster.now - 1]
    assert {send.outcome for send in sends} == {"ok"}
    assert max(send.ended - send.began for send in sends) < 0.5


@pytest.mark.parametrize("what", ["metadata", "records"])
def test_a_follower_that_waits_for_a_probe_is_probed_although_it_is_sent_heartbeats(
    what: str,
) -> None:
    """It missed something and said so, and that answer was lost: it ignores whatever is not a probe."""
    mesh = Mesh()
    controller = mesh.controller
    assert controller is not None
    machine = next(each for each in mesh.followers if each is not controller)
    (partition,) = machine.broker.partitions[mesh.topic_id].values()
    replica = machine.broker.quorum.replica if what == "metadata" else partition.replica
    assert replica.follower is not None
    replica.follower.state = "idle"
    mesh.takes()
    mesh.admin.create_topic("u")
    mesh.cluster.run(3)
    assert replica.follower is not None
    assert replica.follower.state == "following"
    assert machine.broker.metadata.topic_named("u") is not None
    assert machine.broker.metadata.is_up(machine.name)
    mesh.heal()


def test_a_replica_that_begins_behind_the_start_of_its_leaders_epoch_is_in_sync_again() -> None:
    """The records with which the epoch began are deleted, and it is never quiet: no new session says it again."""
    mesh = Mesh(segment_size="1KiB", max_batch="1KiB")
    away = mesh.followers[0]
    away.kill()
    mesh.cluster.run_until(lambda: away.name not in mesh.state.isr, 10, "it leaves the ISR")
    for _ in range(40):
        mesh.takes()
    request = DeleteRecords(
        topic="t", topic_id=mesh.topic_id, before=mesh.end(), request_id="delete"
    )
    mesh.admin.call(request, node=mesh.leader.name)
    (partition,) = mesh.leader.broker.partitions[mesh.topic_id].values()
    mesh.cluster.run_until(lambda: partition.log.first_offset > 1, 20, "segments are removed")
    SimulatedProducer("p", mesh.cluster, mesh.history, {"t": 1}, pace=(5 * MS, 20 * MS))
    away.start()
    mesh.cluster.run_until(mesh.in_sync, 10, "it is in sync again")


def test_a_node_that_was_taken_for_dead_while_it_registered_registers_again() -> None:
    """It learns that it is fenced while an older registration waits for its answer, and hears of nothing after that."""
    mesh = Mesh()
    machine = next(each for each in mesh.followers if each is not mesh.controller)
    broker = machine.broker
    broker._registering = True  # its answer is on its way
    machine.freeze()
    mesh.cluster.run_until(
        lambda: not mesh.invariants.metadata.is_up(machine.name), 10, "it is fenced"
    )
    machine.thaw()
    mesh.cluster.run_until(lambda: not broker.metadata.is_up(machine.name), 10, "it knows")
    mesh.cluster.run(1)
    broker._registered(Answer(0))
    mesh.cluster.run_until(lambda: mesh.invariants.metadata.is_up(machine.name), 5, "it is up")
    mesh.heal()


def test_leaderships_go_back_one_after_the_other() -> None:
    """Whoever reads them all pauses for one at a time."""
    mesh = Mesh(partitions=20)
    victim = mesh.cluster.machines["n1"]

    def led() -> int:
        topic = mesh.invariants.metadata.topics[mesh.topic_id]
        return sum(each.leader == victim.name for each in topic.partitions)

    topic = mesh.invariants.metadata.topics[mesh.topic_id]
    wanted = sum(each.replicas[0] == victim.name for each in topic.partitions)
    assert wanted >= 6
    victim.kill()
    mesh.cluster.run_until(lambda: not led(), 10, "others lead")
    victim.start()
    gained, before = [], 0
    while before < wanted:
        mesh.cluster.run(0.02)
        gained.append(led() - before)
        before = led()
        assert len(gained) < 1000, "twenty seconds"
    assert max(gained) == 1
    assert gained[-1] == 1
    mesh.cluster.run(2.0)
    assert led() == wanted
