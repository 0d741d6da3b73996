"""What other brokers have lost, doubled or made up, several faults at a time, by script.

Each scenario ends with every node up again and everything that was acknowledged read by a new reader.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mesh.mesh import Mesh

from zbroker.broker.partition import CONFIRM_MS, folder
from zbroker.errors import InvalidRequest
from zbroker.protocol.messages import (
    AcceptLoss,
    ChangeVoters,
    ChangeVotersReply,
    CreateTopic,
    DeleteTopic,
)
from zbroker.testing.clients import SimulatedConsumer
from zbroker.testing.cluster import Machine


def cut_off(mesh: Mesh, machine: Machine, *, hears: bool = False, is_heard: bool = False) -> None:
    """No other node reaches a machine, and it reaches none, unless told; clients do."""
    for name in mesh.cluster.names:
        if name != machine.name:
            if not is_heard:
                mesh.cluster.network.cut(machine.name, name)
            if not hears:
                mesh.cluster.network.cut(name, machine.name)


# A topic is deleted and made again while a replica is away (KIP-516) ---


def test_a_topic_made_again_while_a_replica_was_away_has_nothing_of_the_old_one() -> None:
    """Longer, and of a higher epoch, is what the replica has: it goes, and the lower epoch is followed."""
    mesh = Mesh(session_timeout=4000)
    for _ in range(3):  # epochs that the new topic will not reach
        leader = mesh.leader
        leader.kill()
        mesh.cluster.run_until(lambda: mesh.state.leader not in (None, leader.name), 10, "a leader")  # noqa: B023
        leader.start()
        mesh.cluster.run_until(mesh.in_sync, 10, "all in sync")
    for _ in range(10):
        mesh.takes()
    reader = SimulatedConsumer("reader", mesh.cluster, mesh.history, ("t",))
    mesh.cluster.run_until(lambda: list(reader.positions.values()) == [10], 10, "all is read")
    old_id, old_epoch, leader = mesh.topic_id, mesh.state.epoch, mesh.leader
    away = next(each for each in mesh.followers if each is not mesh.controller)
    away.lose_power()  # without a word: for a session it is taken for up, and gets its share of what is made
    mesh.admin.call(DeleteTopic(name="t", request_id="1"), node=leader.name)
    mesh.history.deleted[f"{old_id}/0"] = 10
    request = CreateTopic(name="t", settings={"partitions": 1}, request_id="2")
    mesh.topic_id = mesh.admin.call(request, node=leader.name).topic.topic_id
    mesh.place = ("t", mesh.topic_id, 0)
    assert away.name in mesh.state.replicas
    mesh.cluster.run_until(lambda: mesh.state.leader not in (None, away.name), 10, "a leader")
    for _ in range(2):
        mesh.takes()
    assert away.disk.list(folder(old_id, 0)), "the old log is there still"
    away.start()
    mesh.cluster.run_until(mesh.in_sync, 20, "all in sync")
    assert mesh.state.epoch < old_epoch
    mesh.cluster.run_until(lambda: not away.disk.list(folder(old_id, 0)), 5, "the old log goes")

    # It leads now, and has three records to give: to the reader of the old topic, and to a new one.
    mesh.takes()
    for machine in [each for each in mesh.cluster.machines.values() if each is not away]:
        machine.kill()
    mesh.cluster.start()
    mesh.cluster.run_until(lambda: mesh.state.leader == away.name, 20, "it leads")
    mesh.takes()
    mesh.cluster.run_until(lambda: list(reader.positions.values()) == [4], 20, "all is read")
    mesh.heal()


# A leader that was deposed, and does not know, is asked where the log ends ---


def does_not_pass(mesh: Mesh, leader: Machine) -> None:
    cut_off(mesh, leader)


def hears_nobody(mesh: Mesh, leader: Machine) -> None:
    cut_off(mesh, leader, is_heard=True)


def reaches_nobody(mesh: Mesh, leader: Machine) -> None:
    cut_off(mesh, leader, hears=True)


def stands_still(_mesh: Mesh, leader: Machine) -> None:
    leader.freeze()


@pytest.mark.parametrize("what", [does_not_pass, hears_nobody, reaches_nobody, stands_still])
def test_a_deposed_leader_names_no_end_that_others_have_passed(
    what: Callable[[Mesh, Machine], None],
) -> None:
    """It takes itself for the leader still; whoever asks it waits, or is told to ask somebody else."""
    mesh = Mesh()
    mesh.takes()
    old = mesh.leader
    mesh.prober.ask_end(old.name, mesh.place)
    mesh.prober.soon()
    mesh.cluster.run(0.2)
    assert [asked.offset for asked in mesh.history.asked] == [1], "a leader that leads does answer"
    what(mesh, old)
    mesh.cluster.run_until(lambda: mesh.state.leader not in (None, old.name), 20, "another leader")
    (partition,) = old.broker.partitions[mesh.topic_id].values()
    if what is not reaches_nobody:
        assert partition.serves, "it knows of nothing"
    for _ in range(10):
        mesh.takes()
        mesh.prober.ask_end(old.name, mesh.place)
        mesh.prober.soon()
        mesh.cluster.run(0.1)
    mesh.cluster.heal()
    mesh.cluster.run(CONFIRM_MS / 1000 + 1)
    assert [asked.offset for asked in mesh.history.asked if asked.node == old.name] == [1]
    mesh.heal()


# A cut, a kill and a voter that goes, all at once ---


@pytest.mark.parametrize("action", ["remove", "replace"])
@pytest.mark.parametrize("who", ["the one cut off", "the one killed", "one that is well"])
def test_a_cut_a_kill_and_a_voter_that_goes_lose_nothing(who: str, action: str) -> None:
    """Of five voters one is cut off and one is dead when a third change is asked for: whoever is left agrees."""
    mesh = Mesh(nodes=5, voters=["n1", "n2", "n3", "n4", "n5"], replicas=3, min_insync=2)
    producer = mesh.producer()
    mesh.cluster.run(1)
    cut, killed = mesh.leader, mesh.followers[0]
    well = next(each for each in mesh.cluster.machines.values() if each not in (cut, killed))
    chosen = {"the one cut off": cut, "the one killed": killed}.get(who, well)
    cut_off(mesh, cut)
    killed.kill()
    if action == "replace" and chosen is not cut:
        chosen.kill()
        chosen.empty_disk()
    answers: list[object] = []
    request = ChangeVoters(node=chosen.name, action=action, request_id="1")  # type: ignore[arg-type]
    mesh.admin.ask(request, answers.append)
    mesh.cluster.run(3)
    mesh.cluster.heal()
    mesh.cluster.run_until(lambda: answers, 60, "an answer")
    mesh.cluster.run_until(lambda: mesh.controller is not None, 20, "a controller")
    mesh.cluster.run_until(mesh.in_sync, 30, "all in sync")
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 30, "every outcome is known")
    assert {send.outcome for send in mesh.history.sends} == {"ok"}
    mesh.heal()


def test_a_replacement_may_be_asked_for_before_the_new_disk_is_there() -> None:
    """What is remembered of a link to a node that is gone does not say that its old disk is up."""
    mesh = Mesh()
    lost = next(each for each in mesh.followers if each is not mesh.controller)
    old = lost.disk_id
    lost.kill()
    mesh.cluster.run(3)
    answers: list[object] = []
    mesh.admin.ask(ChangeVoters(node=lost.name, action="replace", request_id="1"), answers.append)
    mesh.cluster.run_until(lambda: answers, 20, "an answer")
    assert isinstance(answers[0], ChangeVotersReply), answers[0]
    assert lost.name not in answers[0].voters
    lost.empty_disk()
    lost.start()
    mesh.cluster.run_until(
        lambda: mesh.invariants.metadata.voters.get(lost.name) == lost.disk_id != old,
        30,
        "its vote",
    )
    mesh.heal()


# A disk that is full while its node starts ---


def test_a_full_disk_at_a_start_wipes_nothing() -> None:
    """The last in-sync replica starts on it, and alone has what was acknowledged: nobody leads without that."""
    mesh = Mesh(replicas=2, min_insync=1)
    last, (behind,) = mesh.leader, mesh.followers
    mesh.takes()
    behind.kill()
    mesh.cluster.run_until(lambda: mesh.in_sync(last.name), 10, "it is the last")
    for _ in range(5):
        mesh.takes()
    place = folder(mesh.topic_id, 0)
    before = log_files(last, place)
    last.disk.budget = 0
    for _ in range(3):
        last.kill()
        mesh.cluster.start()
        mesh.cluster.run(3)
        assert mesh.state.leader in (None, last.name)
        assert log_files(last, place) == before
    mesh.heal()
    assert mesh.end() == 6


def log_files(machine: Machine, place: str) -> dict[str, bytes]:
    """The segments of a log, as they are on a disk."""
    names = [name for name in machine.disk.list(place) if name.endswith(".log")]
    return {name: machine.disk.read(f"{place}/{name}", 0, 1 << 30) for name in names}


# The last in-sync replica never comes back, and a person gives up what it had ---


def test_a_loss_is_accepted_and_whoever_had_read_further_is_told() -> None:
    """Another replica leads with what it has; the election counts as unclean, and nobody is left with what is gone."""
    mesh = Mesh(nodes=4, voters=["n1", "n2", "n3", "n4"], replicas=2, min_insync=1)
    last, (behind,) = mesh.leader, mesh.followers
    mesh.takes()
    behind.kill()
    mesh.cluster.run_until(lambda: mesh.in_sync(last.name), 10, "it is the last")
    for _ in range(3):
        mesh.takes()
    reader = SimulatedConsumer("reader", mesh.cluster, mesh.history, ("t",))
    mesh.cluster.run_until(lambda: list(reader.positions.values()) == [4], 10, "all is read")
    last.kill()
    mesh.cluster.start(behind.name)
    mesh.cluster.run_until(lambda: behind in mesh.cluster.serving, 20, "the other is back")
    mesh.cluster.run(1)
    assert mesh.state.leader is None, "it lacks what was acknowledged"

    mesh.history.excused[f"{mesh.topic_id}/0"] = "a person gave it up"
    epoch = mesh.state.epoch
    with pytest.raises(InvalidRequest, match="look again"):
        mesh.admin.call(AcceptLoss(topic_id=mesh.topic_id, epoch=epoch - 1, request_id="0"))
    request = AcceptLoss(topic="t", topic_id=mesh.topic_id, epoch=epoch, request_id="1")
    for _ in range(2):
        (found,) = mesh.admin.call(request).topic.partitions
        assert (found.leader, found.isr, found.unclean) == (behind.name, [behind.name], True)
        assert found.epoch == epoch + 1
    mesh.takes()
    mesh.cluster.run_until(lambda: reader.diverged, 10, "the reader is told")
    told = reader.diverged[0].details
    assert (told["first"], told["next"]) == (1, 4)
    mesh.cluster.start(
        last.name
    )  # its disk was not lost after all: it is made equal to the new leader's
    mesh.cluster.run_until(mesh.in_sync, 20, "both in sync")
    place = folder(mesh.topic_id, 0)
    last_copy, copy = (machine.copies.of(place) for machine in (last, behind))
    assert last_copy.batches == copy.batches
    assert len(copy.batches) == 2
    with pytest.raises(InvalidRequest, match="has a leader"):
        mesh.admin.call(AcceptLoss(topic="t", request_id="2"))


# All machines lose their power at once ---


@pytest.mark.parametrize("seed", range(3))
def test_a_power_failure_of_all_machines_loses_nothing_that_was_acknowledged(seed: int) -> None:
    """Again and again, under load: each acknowledgement stands for copies that are flushed."""
    mesh = Mesh(seed)
    producer = mesh.producer()
    for wanted in (20, 40, 60):
        mesh.cluster.run_until(
            lambda wanted=wanted: len(list(mesh.history.acknowledged())) > wanted, 30, "records"
        )
        for machine in mesh.cluster.machines.values():
            machine.lose_power()
        mesh.cluster.run(0.5)
        mesh.cluster.start()
    producer.sending = False
    mesh.cluster.run_until(lambda: producer.idle, 30, "every outcome is known")
    mesh.heal()


# A voter's metadata are harmed ---


@pytest.mark.parametrize("lost", ["ballot", "log"])
def test_a_voter_without_what_it_promised_stops_until_it_is_replaced(lost: str) -> None:
    """It has voted, and acknowledged: with neither on its disk it must not take part as the voter that it was."""
    mesh = Mesh()
    mesh.takes()
    voter = next(each for each in mesh.cluster.up if each is not mesh.controller)
    voter.kill()
    copy = voter.copies.of("metadata")
    copy.torn = copy.harmed = True
    if lost == "ballot":
        voter.disk.lose("metadata/ballot")
    else:
        (name,) = [each for each in voter.disk.list("metadata") if each.endswith(".log")]
        voter.disk.flip(f"metadata/{name}", 150)
    voter.start()
    mesh.cluster.run_until(lambda: not voter.up, 10, "it stops")
    assert "replace the voter" in str(voter.error)
    voter.empty_disk()
    voter.start()
    mesh.cluster.run(1)
    mesh.admin.call(ChangeVoters(node=voter.name, action="replace", request_id="1"))
    mesh.cluster.run_until(
        lambda: mesh.invariants.metadata.voters.get(voter.name) == voter.disk_id, 20, "it votes"
    )
    mesh.cluster.run_until(mesh.in_sync, 20, "all in sync")
    mesh.takes()
