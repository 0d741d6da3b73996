"""Bugs that systems like this one have had, each as a cluster by script.

Who had them is said at each: K is Kafka, RP Redpanda, NS NATS. What needs one log or two replicas alone is in
`tests/log` and `tests/replication`.
"""

from __future__ import annotations

import pytest
from mesh.mesh import Mesh

from zbroker.errors import ZBrokerError
from zbroker.log import names
from zbroker.protocol.batch import iter_batches
from zbroker.protocol.messages import DeleteRecords, Metadata, MetadataReply, ProduceReply
from zbroker.testing.history import check


def test_last_replica_standing() -> None:
    """Jepsen on Kafka 2013, KIP-966: the ISR shrinks to one, which acknowledges and dies; nobody else may lead."""
    mesh = Mesh(nodes=5, voters=5, replicas=3, min_insync=1)
    last, others = mesh.leader, mesh.followers
    for other in others:
        other.freeze()
    mesh.cluster.run_until(lambda: mesh.in_sync(last.name), 10, "the ISR is one")
    alone = mesh.takes()
    last.kill()
    for other in others:
        other.thaw()
    mesh.cluster.run(5)
    assert mesh.state.leader is None
    assert mesh.state.isr == [last.name]
    last.start()
    mesh.cluster.run_until(mesh.in_sync, 20, "all in sync")
    assert alone.value in mesh.values()
    mesh.heal()


def test_fast_fail_overs_do_not_part_the_logs() -> None:
    """KIP-101 and KIP-279 (K:9679c44d2b5): leaders change again and again, with records that nobody committed."""
    mesh = Mesh(seed=7)
    producer = mesh.producer()
    for turn in range(6):
        mesh.cluster.run(0.3)
        leader = mesh.leader
        if turn % 2:
            leader.lose_power()
        else:
            leader.kill()
        mesh.another_leads(leader)
        leader.start()
        mesh.serves(leader)
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 20, "every outcome is known")
    mesh.heal()


def test_a_follower_of_an_older_epoch_does_not_move_the_high_watermark() -> None:
    """KIP-320: a deposed leader hears nobody, and whatever it was acknowledged before commits nothing now."""
    mesh = Mesh()
    old, followers = mesh.leader, mesh.followers
    mesh.cut(*((old, other) for other in followers))
    sent = mesh.prober.produce(old.name, mesh.place)
    mesh.prober.soon()
    mesh.another_leads(old)
    taken = mesh.takes()
    mesh.cluster.run(3)
    assert sent.outcome != "ok"
    mesh.heal()
    found = mesh.values()
    assert taken.value in found
    assert sent.value not in found


def test_a_topic_made_again_while_a_replica_was_away() -> None:
    """KIP-516: nothing of the old topic shows under its name, and its lower epoch is not ignored."""
    mesh = Mesh()
    old = mesh.takes()
    away = mesh.followers[0]
    away.kill()
    mesh.admin.delete_topic("t")
    mesh.topic_id = mesh.admin.create_topic("t", partitions=1, replicas=2)
    mesh.place = ("t", mesh.topic_id, 0)
    new = mesh.takes()
    away.start()
    mesh.serves(away)
    mesh.cluster.run(2)
    found = mesh.values()
    assert found == [new.value]
    assert old.value not in found
    assert list(away.broker.partitions) in ([], [mesh.topic_id])
    assert not [folder for folder in away.disk.list("topics") if folder != mesh.topic_id]


def test_a_retry_after_a_leader_was_killed_does_not_double() -> None:
    """RP#3039: the batch is in the followers' logs when its leader dies, and the producer sends it again."""
    mesh = Mesh(seed=3)
    producer = mesh.producer()
    for _ in range(5):
        mesh.cluster.run(0.2)
        leader = mesh.leader
        leader.kill()
        mesh.another_leads(leader)
        leader.start()
        mesh.cluster.run_until(mesh.in_sync, 20, "all in sync")
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 20, "every outcome is known")
    found = mesh.values()
    assert len(found) == len(set(found))
    mesh.heal()


def cut_off_with_a_record(mesh: Mesh) -> object:
    """The leader alone has a batch of an idempotent producer; it is cut away, and the batch sent to it again."""
    old = mesh.leader
    mesh.takes()
    mesh.cut(*((old, other) for other in mesh.followers))
    lost = mesh.produce(old.name, b"once", (77, 0, 0))
    assert isinstance(lost, ZBrokerError)
    assert lost.outcome_unknown
    mesh.another_leads(old)
    mesh.takes()
    mesh.cluster.heal()
    mesh.cluster.run_until(mesh.in_sync, 20, "all in sync")
    mesh.cluster.run_until(
        lambda: mesh.state.leader == old.name and mesh.end() >= 0,
        20,
        "it leads again, as preferred",
    )
    (partition,) = old.broker.partitions[mesh.topic_id].values()
    mesh.cluster.run_until(lambda: partition.serves, 10, "it serves")
    return mesh.produce(old.name, b"once", (77, 0, 0))


def test_sequences_are_forgotten_with_the_records_that_were_cut() -> None:
    """A batch that was truncated is no duplicate when it comes again."""
    mesh = Mesh()
    again = cut_off_with_a_record(mesh)
    assert isinstance(again, ProduceReply)
    assert not again.duplicate
    assert mesh.values().count(b"once") == 1


def test_a_deposed_leader_names_no_end() -> None:
    """RP#2954: clients still reach it, and it does not know that another leads."""
    mesh = Mesh()
    old = mesh.leader
    mesh.takes()
    mesh.cut(*((old, other) for other in mesh.followers))
    mesh.another_leads(old)
    taken = mesh.takes()
    for _ in range(20):
        mesh.prober.ask_end(old.name, mesh.place)
        mesh.prober.soon()
        mesh.cluster.run(0.2)
    assert all(asked.offset > taken.offset for asked in mesh.history.asked)
    mesh.heal()


@pytest.mark.parametrize("seed", range(4))
def test_what_was_acknowledged_outlives_a_power_failure_of_all(seed: int) -> None:
    """NS#7564: every machine loses its power at the moment of an acknowledgement."""
    mesh = Mesh(seed)
    producer = mesh.producer()
    for _ in range(3):
        mesh.acknowledged(20)
        for machine in mesh.cluster.machines.values():
            machine.lose_power()
        mesh.cluster.start()
        mesh.cluster.run_until(mesh.in_sync, 30, "all in sync")
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 20, "every outcome is known")
    mesh.heal()


def test_one_power_failure_and_pauses_do_not_split_the_cluster() -> None:
    """NS#7567: one loses its power while another stands still; two never lead one epoch."""
    mesh = Mesh(seed=5)
    producer = mesh.producer()
    for turn in range(4):
        controller = mesh.controller or mesh.leader
        others = [machine for machine in mesh.cluster.up if machine is not controller]
        controller.freeze()
        others[turn % 2].lose_power()
        mesh.cluster.run(1.5)
        others[turn % 2].start()
        mesh.cluster.run(0.7)
        controller.thaw()
        mesh.cluster.run_until(mesh.in_sync, 30, "all in sync")
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 20, "every outcome is known")
    mesh.heal()


def test_cuts_and_a_kill_lose_nothing_that_was_acknowledged() -> None:
    """NS#7545: a minority is cut off, then one of the majority dies."""
    mesh = Mesh(nodes=5, replicas=3, seed=2)
    producer = mesh.producer()
    mesh.cluster.run(0.5)
    mesh.cluster.isolate(mesh.followers[0].name)
    mesh.cluster.run(2)
    mesh.leader.kill()
    mesh.cluster.run(2)
    mesh.cluster.heal()
    mesh.cluster.run_until(mesh.in_sync, 30, "all in sync")
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 20, "every outcome is known")
    mesh.heal()


def test_a_partially_connected_voter_does_not_depose_leaders() -> None:
    """Pre-vote and check-quorum: a voter that cannot hear the controller, and can hear the others, changes nothing."""
    mesh = Mesh()
    controller = mesh.controller
    assert controller is not None
    apart = next(each for each in mesh.cluster.up if each is not controller)
    epoch = controller.broker.quorum.replica.epoch
    mesh.cut((controller, apart))
    mesh.cluster.run(15)
    assert mesh.controller is controller
    assert controller.broker.quorum.replica.epoch == epoch
    mesh.heal()


def test_metadata_are_the_same_from_every_node_after_a_fail_over() -> None:
    """etcd#15271: nobody is shown an older state than before."""
    mesh = Mesh(seed=9)
    versions: dict[str, int] = {}
    for _ in range(4):
        controller = mesh.controller
        assert controller is not None
        controller.kill()
        mesh.cluster.run_until(lambda: mesh.controller is not None, 20, "a controller")
        controller.start()
        mesh.cluster.run_until(mesh.in_sync, 20, "all in sync")
        for name in mesh.cluster.names:
            reply = mesh.admin.call(Metadata(topics=["t"]), node=name)
            assert isinstance(reply, MetadataReply)
            assert reply.version >= versions.get(name, -1)
            versions[name] = reply.version
            assert reply.topics[0].topic_id == mesh.topic_id
    assert check(mesh.history) == []


@pytest.mark.parametrize("seed", range(3))
def test_bits_flipped_on_a_minority_lose_nothing(seed: int) -> None:
    """NS#7549: who leads finds that its records are damaged; another replica has them, leads, and mends it."""
    mesh = Mesh(seed)
    sent = [mesh.takes() for _ in range(10)]
    leader = mesh.leader
    (partition,) = leader.broker.partitions[mesh.topic_id].values()
    path = names.path(partition.log.folder, 0, names.LOG)
    for machine in mesh.cluster.up:
        machine.kill()
    for machine in mesh.cluster.machines.values():
        machine.copies.of(partition.log.folder).harmed = machine is leader
    leader.disk.flip(path, leader.disk.size(path) // 2, 0xFF)
    mesh.cluster.start()
    mesh.cluster.run_until(mesh.in_sync, 20, "all in sync")
    mesh.takes()
    assert [value for value in mesh.values() if value in {send.value for send in sent}] == [
        send.value for send in sent
    ]
    mesh.cluster.run(8)  # the preferred leader leads again
    mesh.heal()


@pytest.mark.parametrize("seed", range(3))
def test_damage_in_a_batch_that_is_deleted_in_part_loses_nothing(seed: int) -> None:
    """The replica that is damaged has nothing whole to be cut down to, and must not begin at its leader's end."""
    mesh = Mesh(seed)
    sent = [mesh.takes() for _ in range(3)]
    number = mesh.batch(20)
    sent += [mesh.takes() for _ in range(10)]
    mesh.admin.call(
        DeleteRecords(topic="t", topic_id=mesh.topic_id, before=number + 10, request_id="delete"),
        node=mesh.leader.name,
    )
    machines = mesh.cluster.machines.values()
    logs = [
        partition.log
        for each in machines
        for partition in each.broker.partitions[mesh.topic_id].values()
    ]
    mesh.cluster.run_until(
        lambda: all(log.start_offset == number + 10 for log in logs), 20, "it moves"
    )
    before = mesh.values()
    assert [value for value in before if value in {send.value for send in sent}] == [
        send.value for send in sent[3:]
    ]
    leader = mesh.leader
    (partition,) = leader.broker.partitions[mesh.topic_id].values()
    log = partition.log
    leader.copies.of(log.folder).harmed = True
    path = names.path(log.folder, 0, names.LOG)
    at = next(
        at
        for at, header in iter_batches(leader.disk.read(path, 0, 1 << 20))
        if header.base_offset == number
    )
    leader.disk.flip(path, at + 200, 0xFF)
    assert mesh.values() == before, "another replica has it"
    assert leader is not mesh.leader
    mesh.cluster.run(8)  # it is mended, and leads again
    mesh.cluster.run_until(mesh.in_sync, 20, "all in sync")
    assert leader is mesh.leader
    assert mesh.values() == before
