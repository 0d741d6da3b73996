"""Groups in a whole cluster by script: coordinators that are killed, cut off and deposed; members that freeze.

The numbers are those of the bugs that others had, in `docs/guarantees.md`; K is Kafka. Beside each promise stands the
mistake that breaks it, made in the running core.
"""

from __future__ import annotations

from typing import Any

import pytest
from mesh.mesh import Mesh

from zbroker.broker.coordinating import Coordinating
from zbroker.broker.waiting import Waiting
from zbroker.client.custody import Custody
from zbroker.groups import offsets, rebalance
from zbroker.groups.records import TOPIC, partition_of
from zbroker.protocol.messages import (
    DeleteTopic,
    FetchOffsets,
    FetchOffsetsReply,
    FindCoordinator,
    FindCoordinatorReply,
    TopicPartitions,
)
from zbroker.testing.clients import SimulatedAdmin
from zbroker.testing.cluster import Machine, SimulatedCluster
from zbroker.testing.group_invariants import differences
from zbroker.testing.invariants import InvariantBroken, Invariants
from zbroker.testing.simulated_members import Readership, SimulatedMember
from zbroker.testing.timeline import MS

pytestmark = pytest.mark.slow  # the same decisions on every Python

SESSION = 2.0


class Groups:
    """A cluster of three with a topic `t`, records in each partition, and a group `readers`."""

    def __init__(self, seed: int = 1, partitions: int = 4, **settings: Any) -> None:
        self.mesh = Mesh(seed, partitions=partitions)
        self.cluster, self.invariants = self.mesh.cluster, self.mesh.invariants
        self.partitions = partitions
        self.readership = Readership()
        found: list[Any] = []
        self.mesh.admin.ask(FindCoordinator(group="readers"), found.append)
        self.cluster.run_until(lambda: found, 10, "a coordinator")
        assert isinstance(found[0], FindCoordinatorReply)
        self.cluster.run_until(self.is_whole, 20, "all replicas of the internal topic")
        self.producer = self.mesh.producer()
        self.producer.topics = {"t": partitions}

    def is_whole(self) -> bool:
        """Whether the internal topic has all its replicas in sync."""
        topic = self.invariants.metadata.topic_named(TOPIC)
        return topic is not None and all(
            len(each.isr) == 3 and each.leader is not None for each in topic.partitions
        )

    def join(self, name: str, **fields: Any) -> SimulatedMember:
        """A member more."""
        fields.setdefault("session", SESSION)
        return SimulatedMember(name, self.cluster, self.readership, ("t",), **fields)

    @property
    def coordinator(self) -> Machine:
        """Who coordinates, as the newest metadata have it."""
        topic = self.invariants.metadata.topic_named(TOPIC)
        assert topic is not None
        leader = topic.partitions[partition_of("readers", len(topic.partitions))].leader
        assert leader is not None
        return self.cluster.machines[leader]

    def share(self, *members: SimulatedMember, seconds: float = 10.0) -> None:
        """Waits until these have everything, in even shares."""

        def shared() -> bool:
            held = sorted(place.partition for each in members for place in each.held)
            sizes = [len(each.held) for each in members]
            return held == list(range(self.partitions)) and max(sizes) - min(sizes) <= 1

        self.cluster.run_until(
            shared, seconds, f"even shares, not {[sorted(each.held) for each in members]}"
        )

    def drain(self, seconds: float = 20.0) -> None:
        """Everything that was produced is handed out and committed; every node has the same state."""
        self.producer.sending = False
        self.cluster.run_until(lambda: self.producer.idle, seconds, "every outcome is known")
        promised = self.invariants.groups.promised

        def done() -> bool:
            topic_id = self.mesh.topic_id
            for number in range(self.partitions):
                ends = [
                    partition.high_watermark
                    for machine in self.cluster.up
                    if (partition := machine.broker.keeper.find(topic_id, number))
                    and partition.serves
                ]
                if not ends or self.readership.missed(topic_id, number, 0, ends[0]):
                    return False
                if ends[0] and promised.get(("readers", topic_id, number), -1) < ends[0]:
                    return False
            return True

        self.cluster.run_until(done, seconds, "everything is handed out and committed")
        self.cluster.run_until(lambda: not differences(self.cluster), seconds, "equal states")


# Fail-over ---


def test_a_killed_coordinator_is_replaced_and_nobody_loses_a_partition() -> None:
    groups = Groups()
    first, second = groups.join("m1"), groups.join("m2")
    groups.share(first, second)
    held = {each.name: dict(each.held) for each in (first, second)}
    groups.cluster.run(1.0)
    groups.coordinator.kill()
    groups.cluster.run(SESSION * 2)
    assert {each.name: dict(each.held) for each in (first, second)} == held
    assert not first.errors
    assert not second.errors
    groups.cluster.heal()
    groups.cluster.run_until(groups.is_whole, 20, "all replicas")
    groups.drain()


def test_08_a_partition_that_changes_hands_has_one_owner_through_a_fail_over() -> None:
    """K:cf90382fb92: revoked here and given there at once, when the coordinator changed in between."""
    groups = Groups()
    first = groups.join("m1")
    groups.share(first)
    first.freeze()  # it is asked for half of what it has, and does not hear it
    second = groups.join("m2")
    groups.cluster.run(0.4)
    groups.coordinator.kill()
    groups.cluster.run(0.6)
    assert not second.held, "nobody has released anything"
    first.thaw()
    groups.share(first, second)
    groups.cluster.heal()
    groups.drain()


def test_08_revoked_partitions_are_given_on_by_each_further_coordinator_only_once() -> None:
    """The same with members that come while coordinators go, again and again."""
    groups = Groups(seed=3, partitions=6)
    members = [groups.join("m0")]
    groups.share(*members)
    for number in range(1, 4):
        members.append(groups.join(f"m{number}"))
        groups.cluster.run(0.15 * number)
        victim = groups.coordinator
        victim.kill()
        groups.cluster.run(1.0)
        victim.start()
        groups.mesh.serves(victim)
    groups.share(*members, seconds=20.0)
    groups.drain()


def test_a_coordinator_that_is_cut_off_with_a_member_keeps_it_alive_no_longer() -> None:
    """It cannot know that it is one still, so it answers nobody; others get what the member had."""
    groups, first, second = cut_off_with_a_member()
    groups.share(second, seconds=15.0)
    groups.cluster.run(SESSION)
    groups.cluster.heal()
    groups.share(first, second, seconds=20.0)
    groups.drain()


def cut_off_with_a_member() -> tuple[Groups, SimulatedMember, SimulatedMember]:
    """The coordinator, and one of two members with it, is on the other side from everybody else.

    Nothing makes it append there: the member has nothing to commit, and the other's session is long. So there is
    nothing uncommitted that answers would wait for.
    """
    groups = Groups()
    first, second = groups.join("m1"), groups.join("m2", session=60.0)
    groups.share(first, second)
    groups.drain()
    groups.cluster.isolate(groups.coordinator.name, first.name)
    groups.producer = groups.mesh.producer("late")
    groups.producer.topics = {"t": groups.partitions}
    return groups, first, second


def test_without_confirmation_it_would_keep_the_member_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def advance(self: Waiting, now: int) -> None:
        while self._uncommitted and self._uncommitted[0].end <= self._leader.high_watermark:
            answer = self._uncommitted.popleft()
            self._give(answer.asked, answer.found)

    monkeypatch.setattr(Waiting, "advance", advance)
    groups, _, _ = cut_off_with_a_member()
    with pytest.raises(InvariantBroken, match="17"):
        groups.cluster.run(SESSION * 5)


def test_answers_before_the_commit_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deposed coordinator that answers with what only its own log has."""

    def advance(self: Waiting, now: int) -> None:
        while self._uncommitted:
            answer = self._uncommitted.popleft()
            self._give(answer.asked, answer.found)

    monkeypatch.setattr(Waiting, "advance", advance)
    groups = Groups()
    first = groups.join("m1")
    groups.share(first)
    groups.cluster.run(1.0)
    first.freeze()
    groups.cluster.run(0.7)
    groups.cluster.isolate(groups.coordinator.name, first.name)
    first.thaw()  # it reads what there is, and commits: that is answered, and lost
    groups.cluster.run(SESSION)
    first.crash()
    groups.cluster.heal()
    groups.join("m2")  # it asks where the group is
    with pytest.raises(InvariantBroken, match="17"):
        groups.cluster.run(SESSION * 5)


@pytest.mark.parametrize("pace", [1.0, 1.25])
def test_giving_before_the_release_is_noticed(monkeypatch: pytest.MonkeyPatch, pace: float) -> None:
    """A fast clock excuses nothing before it has ended a session."""
    real = rebalance.next_step

    def next_step(group: Any, plan: Any, member: Any) -> Any:
        holders, group.holders = group.holders, {}
        try:
            return real(group, plan, member)
        finally:
            group.holders = holders

    monkeypatch.setattr(rebalance, "next_step", next_step)
    groups = Groups()
    first = groups.join("m1")
    groups.share(first)
    groups.coordinator.set_pace(pace)
    groups.join("m2")
    with pytest.raises(InvariantBroken, match="17"):
        groups.cluster.run(3.0)


# Members that freeze ---


def test_a_frozen_member_hands_out_nothing_once_its_session_is_over() -> None:
    groups = Groups()
    first, second = groups.join("m1"), groups.join("m2")
    groups.share(first, second)
    first.freeze()
    groups.share(second, seconds=SESSION + 5.0)
    first.thaw()  # its first call asks for records at once
    groups.share(first, second)
    assert [error.code for error in first.errors] == ["member_fenced"]
    groups.drain()


def test_without_its_own_count_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Custody, "suspended", lambda _self, _now: False)
    real = Custody.take
    monkeypatch.setattr(
        Custody, "take", lambda self, place, generation, _now, *, hand: real(self, place, generation, -1e9, hand=hand)
    )  # fmt: skip
    groups = Groups()
    first, second = groups.join("m1"), groups.join("m2", pace=(5 * MS, 10 * MS))
    groups.share(first, second)
    groups.cluster.run(0.5)

    def freeze_again_and_again() -> None:
        for _ in range(20):
            first.freeze()
            groups.share(second, seconds=SESSION + 5.0)
            first.thaw()
            groups.share(first, second)

    with pytest.raises(InvariantBroken, match="17"):
        freeze_again_and_again()


def test_who_leaves_has_given_up_everything_before_it_says_so() -> None:
    """Nobody answers it any more, and so it still names what is another's by now."""
    groups = Groups()
    first, second = groups.join("m1", session=20.0), groups.join("m2")
    groups.share(first, second)
    first.leave(seconds=15.0)
    groups.cluster.run_until(lambda: first.group.membership.state == "leaving", 5, "its last words")
    network = groups.cluster.network
    for name in groups.cluster.machines:
        network.cut(name, "m1")
    groups.share(second, seconds=10.0)
    assert first.group.membership.state == "leaving"
    assert first.group.membership.held
    assert not first.group.custody.owned
    assert not any(first.may_hand_out(*each) for each in first.group.membership.held.items())
    groups.drain()


def test_a_coordinator_whose_clock_is_fast_ends_a_session_that_the_member_still_counts() -> None:
    """Neither can know it: the member's commits are refused, and that is all that was promised."""
    groups = Groups()
    first, second = groups.join("m1"), groups.join("m2")
    groups.share(first, second)
    first.freeze()
    coordinator, since = groups.coordinator, groups.cluster.timeline.now
    coordinator.set_pace(2.0)
    groups.share(second, seconds=SESSION)
    groups.cluster.run(0.2)  # and reads
    assert first.now < first.group.membership.fence_at
    assert first.may_be_out
    assert not second.may_be_out
    coordinator.set_pace(1.0)
    assert coordinator.counted(since) == 2 * (groups.cluster.timeline.now - since)
    first.thaw()
    assert [error.code for error in first.errors] == []
    groups.share(first, second)
    assert [error.code for error in first.errors] == ["member_fenced"]
    assert not first.may_be_out
    groups.drain()


# State that is rebuilt ---


def test_08_positions_do_not_expire_because_the_coordinator_is_another() -> None:
    """K:44be5d2221c: committed offsets of a group went early, counted anew from the reload."""
    mesh = Mesh()
    for machine in mesh.cluster.machines.values():
        assert machine.broker.settings.offsets_retention == 7 * 86_400_000
    groups = Groups()
    first = groups.join("m1")
    groups.share(first)
    groups.cluster.run(2.0)
    first.leave()
    groups.cluster.run(2.0)
    promised = dict(groups.invariants.groups.promised)
    assert promised
    groups.producer.sending = False
    for _ in range(3):
        victim = groups.coordinator
        victim.kill()
        groups.cluster.run(2.0)
        victim.start()
        groups.mesh.serves(victim)
        for machine in groups.cluster.up:
            machine.wall_offset += 6 * 86_400_000 // 3  # six days in all
        groups.cluster.run(61.0)
    groups.producer.sending = True
    second = groups.join("m2")
    groups.share(second)
    groups.drain()
    assert not second.errors, "it went on where the group was"
    assert groups.invariants.groups.checks["17 positions"] > 0


def test_positions_go_with_their_topic_whoever_names_it_still() -> None:
    groups = Groups()
    first = groups.join("m1")
    groups.share(first)
    groups.cluster.run(1.0)
    groups.drain()
    asked = FetchOffsets(
        group="readers",
        partitions=[
            TopicPartitions(topic="t", topic_id=groups.mesh.topic_id, partitions=list(range(4)))
        ],
    )

    def committed() -> list[int]:
        found: list[Any] = []
        groups.mesh.admin.ask(asked, found.append, node=groups.coordinator.name)
        groups.cluster.run_until(lambda: found, 5, "positions")
        assert isinstance(found[0], FetchOffsetsReply)
        return [each.offset for each in found[0].offsets]

    assert min(committed()) >= 0
    assert max(committed()) > 0
    found: list[Any] = []
    groups.mesh.admin.ask(DeleteTopic(name="t", request_id="1"), found.append)
    groups.cluster.run_until(lambda: found, 10, "the topic is deleted")
    groups.cluster.run(1.0)
    assert committed() == [-1] * 4


def test_positions_that_go_while_their_topic_stands_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = Groups()
    first = groups.join("m1")
    groups.share(first)
    groups.cluster.run(1.0)
    groups.drain()
    real = offsets.fetch
    monkeypatch.setattr(
        offsets, "fetch", lambda group, wanted, catalog: real(None, wanted, catalog)
    )
    asked = FetchOffsets(
        group="readers",
        partitions=[TopicPartitions(topic="t", topic_id=groups.mesh.topic_id, partitions=[0])],
    )
    groups.mesh.admin.ask(asked, lambda _reply: None, node=groups.coordinator.name)
    with pytest.raises(InvariantBroken, match=r"17: n. says that group readers is at -1"):
        groups.cluster.run(1.0)


def test_a_deposed_coordinator_forgets_what_was_not_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = Groups()
    first = groups.join("m1")
    groups.share(first)
    old = groups.coordinator
    groups.cluster.isolate(old.name, first.name)
    groups.cluster.run(1.5)  # its commits are in the old one's log, and in no other
    groups.cluster.heal()
    groups.share(first, seconds=20.0)
    groups.drain()


def test_keeping_it_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Coordinating, "_drop", lambda _self: None)
    groups = Groups()
    first = groups.join("m1", pace=(5 * MS, 10 * MS))
    groups.share(first)

    def cut_off_again_and_again() -> None:
        for _ in range(4):
            groups.cluster.isolate(groups.coordinator.name, first.name)
            groups.cluster.run(1.5)
            groups.cluster.heal()
            groups.share(first, seconds=20.0)
        groups.drain(10.0)

    with pytest.raises(AssertionError):
        cut_off_again_and_again()


# The internal topic ---


def test_the_internal_topic_gains_replicas_as_nodes_join() -> None:
    invariants = Invariants()
    cluster = SimulatedCluster(5, 4, watch=invariants)
    cluster.form()
    for name in ("n2", "n3", "n4"):
        cluster.machines[name].stop()
    cluster.run_until(lambda: len(cluster.up) == 1, 10, "one is left")
    cluster.machines["n2"].start()  # with n1 a majority of the voters
    admin = SimulatedAdmin("admin", cluster)
    found: list[Any] = []
    cluster.run_until(lambda: len(cluster.serving) == 2, 20, "two serve")
    admin.ask(FindCoordinator(group="g"), found.append)
    cluster.run_until(lambda: found, 30, "a coordinator")

    def settings() -> tuple[int, int, set[int]]:
        topic = invariants.metadata.topic_named(TOPIC)
        assert topic is not None
        in_sync = {len(each.isr) for each in topic.partitions}
        return topic.settings.replicas, topic.settings.min_insync, in_sync

    cluster.run_until(lambda: settings() == (2, 2, {2}), 20, f"two replicas, not {settings()}")
    cluster.start("n3", "n4")
    cluster.run_until(lambda: settings() == (3, 2, {3}), 30, f"three replicas, not {settings()}")
    cluster.run(5.0)
    assert settings() == (3, 2, {3}), "and not more than three"
