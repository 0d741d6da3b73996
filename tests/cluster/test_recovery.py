"""Who leads where all in-sync replicas stopped uncleanly, and where a person gives up what nobody has."""

from __future__ import annotations

import pytest
from cluster.states import apply, nodes, register, report, set_isr, shown, topic

from zbroker.cluster import controller, membership, moves, recovery, snapshot
from zbroker.cluster.metadata import Metadata, PartitionState
from zbroker.cluster.records import FEATURE_LEVEL, FeatureLevelRaised, IsrConfirmed
from zbroker.errors import InvalidRequest, NotReady, UnsupportedVersion
from zbroker.topics import Fsync


def partition_of(
    replicas: str, leader: str | None, isr: str, *, fsync: Fsync = "always"
) -> Metadata:
    """One partition on nodes a, b, c; epoch 1."""
    state = nodes("abc")
    topic(state, replicas, fsync=fsync)
    set_isr(state, leader, isr)
    return state


def dark(*back: str, replicas: str = "abc", isr: str = "abc") -> tuple[Metadata, PartitionState]:
    """All nodes lose their power at once, while all were in sync, and some are back, in this order."""
    state = partition_of(replicas, replicas[0], isr, fsync="interval")
    for node in back:
        register(state, node, 2)
    return state, state.topics["t"].partitions[0]


def finish(state: Metadata) -> None:
    apply(state, recovery.finish_recoveries(state))


# The last known ISR ---


@pytest.mark.parametrize("back", ["abc", "cba", "bac"])
def test_the_longest_log_leads_whoever_came_back_last(back: str) -> None:
    state, partition = dark(*back)
    assert (shown(partition), partition.recovering) == ((None, "abc"), True)
    epoch = partition.epoch
    for node, end in (("a", 5), ("b", 9)):
        report(state, node, end)
        finish(state)
        assert partition.leader is None, "c may have more"
    assert recovery.waiting_for(state, partition) == ["c"]
    report(state, "c", 7)
    finish(state)
    assert (shown(partition), partition.epoch) == (("b", "b"), epoch + 1)
    assert (partition.unclean, partition.end, partition.recovering) == (True, 9, False)
    assert partition.lost_from == 5, "of what only some have, who knows whether it was committed"
    assert recovery.waiting_for(state, partition) == []


def test_a_higher_epoch_counts_for_more_than_a_longer_log() -> None:
    state, partition = dark(*"abc")
    report(state, "a", 90, 0)
    report(state, "b", 50, 1)
    report(state, "c", 50, 0)
    finish(state)
    assert partition.leader == "b"


def test_of_equals_the_preferred_one_leads_unless_it_is_drained_or_down() -> None:
    for drained, down, leader in (("", "", "a"), ("a", "", "b"), ("", "a", "b"), ("b", "a", "c")):
        state, partition = dark(*"abc")
        for node in drained:
            state.drained[node] = None
        for node in "abc":
            report(state, node, 5)
        for node in down:
            apply(state, membership.fence_node(state, node, "gone"))
        finish(state)
        assert partition.leader == leader


def test_who_has_most_and_is_down_is_waited_for() -> None:
    state, partition = dark(*"abc")
    for node, end in (("a", 5), ("b", 9), ("c", 5)):
        report(state, node, end)
    apply(state, membership.fence_node(state, "b", "gone"))
    finish(state)
    assert partition.leader is None
    assert recovery.waiting_for(state, partition) == ["b"]
    register(state, "b", 2)
    finish(state)
    assert partition.leader == "b", "in the same start: what it said holds"


def test_what_was_said_in_another_start_does_not_count() -> None:
    state, partition = dark(*"abc")
    for node in "abc":
        report(state, node, 9 if node == "b" else 5)
    register(state, "b", 3)
    finish(state)
    assert partition.leader is None
    assert recovery.waiting_for(state, partition) == ["b"]
    report(state, "b", 4)
    finish(state)
    assert partition.leader == "a"


def test_the_last_in_sync_replica_is_waited_for_however_it_comes_back() -> None:
    """While one of them is away, it may have everything: perhaps it was only cut off."""
    state, partition = dark("a", "c")
    apply(state, membership.fence_node(state, "b", "silent"))
    assert shown(partition) == (None, "b")
    assert not partition.recovering
    assert recovery.waiting_for(state, partition) == ["b"]
    register(state, "b", 1)
    assert (shown(partition), partition.unclean) == (("b", "b"), False), "it never stopped"
    state, partition = dark("a", "c")
    register(state, "b", 2, clean=True)
    assert (shown(partition), partition.unclean) == (("b", "b"), False), "it lost nothing"


def test_who_was_fenced_while_no_leader_lived_is_waited_for() -> None:
    """None of them is back when the new controller finds them silent, one after the other."""
    state, partition = dark()
    for node in "abc":
        apply(state, membership.fence_node(state, node, "silent"))
    assert shown(partition) == (None, "c")
    register(state, "c", 2)
    assert (partition.recovering, recovery.waiting_for(state, partition)) == (True, ["a", "b", "c"])


def test_who_left_while_a_leader_lived_is_not_waited_for() -> None:
    state, partition = dark()
    apply(state, membership.fence_node(state, "a", "gone"))
    assert shown(partition) == ("b", "bc")
    topic_state = state.topics["t"]
    assert recovery.is_unconfirmed(state, topic_state, partition)
    said = membership.change_isr(
        state, "b", topic_id="t", number=0, epoch=partition.epoch, version=partition.version,
        isr=["b", "c"], incarnations={"b": 1, "c": 1},
    )  # fmt: skip
    assert apply(state, said) == [IsrConfirmed("t", 0)]
    assert not recovery.is_unconfirmed(state, topic_state, partition)
    register(state, "b", 2)
    register(state, "c", 2)
    assert partition.isr == ["b", "c"]
    report(state, "b", 3)
    report(state, "c", 4)
    finish(state)
    assert partition.leader == "c"


def test_a_leader_that_shrinks_its_isr_lives() -> None:
    state, partition = dark()
    said = membership.change_isr(
        state, "a", topic_id="t", number=0, epoch=partition.epoch, version=partition.version,
        isr=["a"], incarnations={"a": 1},
    )  # fmt: skip
    apply(state, said)
    assert partition.last == {"a": "disk-a"}
    register(state, "a", 2)
    assert (partition.recovering, partition.isr) == (True, ["a"])


def test_an_isr_that_only_grew_needs_no_confirmation() -> None:
    state = partition_of("abc", "a", "ab", fsync="never")
    (partition,) = state.topics["t"].partitions
    partition.last = {"a": "disk-a", "b": "disk-b"}
    records = membership.change_isr(
        state, "a", topic_id="t", number=0, epoch=1, version=partition.version, isr=["a", "b", "c"],
        incarnations={"a": 1, "b": 1, "c": 1},
    )  # fmt: skip
    assert len(apply(state, records)) == 1
    assert sorted(partition.last) == ["a", "b", "c"]


# Disks that are lost ---


def test_a_lost_disk_does_not_count_until_it_is_back() -> None:
    state, partition = dark(*"abc")
    report(state, "a", 5)
    report(state, "b", 9)
    register(state, "c", 3, "new")
    finish(state)
    assert partition.leader == "b"

    state, partition = dark(*"abc")
    register(state, "c", 3, "new")
    report(state, "a", 5)
    register(state, "c", 3, "disk-c")
    report(state, "b", 9)
    finish(state)
    assert partition.leader is None, "its disk is back, and may have more"
    report(state, "c", 10)
    finish(state)
    assert partition.leader == "c"


def test_the_last_one_that_comes_back_on_an_empty_disk_lets_the_others_count() -> None:
    state, partition = dark("a", "c")
    register(state, "b", 2, "new")
    assert (partition.recovering, partition.isr) == (True, ["a", "b", "c"])
    report(state, "b", 0, -1)
    report(state, "a", 5)
    report(state, "c", 4)
    finish(state)
    assert partition.leader == "a"


def test_where_all_disks_are_lost_nobody_leads_with_nothing() -> None:
    state, partition = dark(*"abc")
    for node in "abc":
        register(state, node, 3, "new")
        report(state, node, 0, -1)
    finish(state)
    assert partition.leader is None
    assert recovery.waiting_for(state, partition) == ["a", "b", "c"]
    apply(state, recovery.accept_loss(state, topic_id="t", number=0))
    assert partition.leader == "a"


def test_a_disk_that_was_lost_before_does_not_count_with_nothing() -> None:
    """An empty disk that joined nothing yet is not one of the last known, whatever its node was before."""
    state = partition_of("ab", "a", "ab", fsync="never")
    (partition,) = state.topics["t"].partitions
    register(state, "a", 2, "new")
    assert shown(partition) == ("b", "b")
    register(state, "b", 2)
    assert (partition.recovering, partition.last) == (True, {"a": "disk-a", "b": "disk-b"})
    register(state, "b", 3, "new")
    report(state, "a", 0, -1)
    report(state, "b", 0, -1)
    finish(state)
    assert partition.leader is None


# What does not recover ---


def test_topics_that_flush_always_lose_nothing_and_wait_for_nobody() -> None:
    state = partition_of("abc", "a", "abc", fsync="always")
    for node in "abc":
        register(state, node, 2)
    (partition,) = state.topics["t"].partitions
    assert not partition.recovering
    assert partition.leader is not None
    assert not partition.unclean


def test_one_replica_waits_for_itself_and_keeps_what_lies_behind_a_hole() -> None:
    state, partition = dark("a", replicas="a", isr="a")
    report(state, "a", 5, tail=9)
    finish(state)
    assert (shown(partition), partition.unclean, partition.lost_from) == (("a", "a"), True, 5)
    assert partition.end == 9


def test_reports_of_what_is_led_or_over_or_of_others_are_passed_over() -> None:
    state, _ = dark(*"ab")
    assert report(state, "a", 5) == [], "it has a leader, as far as is known"
    register(state, "c", 2)
    state.nodes["d"] = state.nodes["a"]
    assert report(state, "d", 5) == []
    assert report(state, "a", 5, number=1) == []
    assert report(state, "a", 5)
    assert report(state, "a", 6) == [], "it has said so"
    apply(state, membership.fence_node(state, "b", "gone"))
    assert report(state, "b", 5) == [], "it is to register first"


def test_a_report_that_cannot_be_is_refused() -> None:
    state, partition = dark(*"abc")
    with pytest.raises(InvalidRequest, match="it is in epoch"):
        report(state, "a", 5, partition.epoch + 1)
    log = recovery.LogReported("t", 0, "a", 2, 9, 0, 8)
    with pytest.raises(InvalidRequest, match="whole up to 9 of 8"):
        recovery.report_logs(state, "a", 2, [log])


def test_nothing_else_gives_a_partition_that_recovers_a_leader() -> None:
    state, partition = dark(*"abc")
    for node in "abc":
        apply(state, membership.fence_node(state, node, "silent"))
        register(state, node, 2)
        register(state, node, 3, clean=True)
    apply(state, membership.prefer(state))
    apply(state, membership.elect_anew(state, "a", topic_id="t", number=0, epoch=partition.epoch))
    apply(state, moves.finish_moves(state))
    apply(state, moves.drain_node(state, "a", undo=False))
    assert (shown(partition), partition.recovering) == ((None, "abc"), True)


def test_a_move_takes_no_copy_that_may_be_needed() -> None:
    state = nodes("abcd")
    (partition,) = topic(state, "ab", fsync="never")
    apply(state, moves.move_partitions(state, name="t", topic_id=None, partition=0, to=["c", "d"]))
    for node in "ab":
        register(state, node, 2)
    assert (partition.recovering, partition.replicas) == (True, [*"abcd"])
    apply(state, moves.move_partitions(state, name="t", topic_id=None, partition=0, to=["b", "d"]))
    assert set("ab") <= set(partition.replicas)


# Older versions ---


def test_below_its_feature_level_everything_is_as_it_was() -> None:
    state, partition = dark()
    state.feature_level = 1
    for node in "abc":
        register(state, node, 2)
    assert (shown(partition), partition.recovering) == (("c", "c"), False)
    assert report(state, "a", 5) == []
    apply(state, membership.fence_node(state, "c", "gone"))
    assert not recovery.is_unconfirmed(state, state.topics["t"], partition)
    (record,) = recovery.accept_loss(state, topic_id="t", number=0)
    apply(state, [record])
    assert (shown(partition), partition.unclean) == (("a", "a"), True)


def test_the_feature_level_rises_once_every_node_understands_it() -> None:
    state, partition = dark()
    state.feature_level = 1
    partition.last = {}
    level = FEATURE_LEVEL
    assert controller.raise_feature_level(state, {"a": level, "b": level}) == [], "c is not heard"
    assert controller.raise_feature_level(state, {"a": level, "b": level, "c": 1}) == []
    state.voters["d"] = "disk-d"
    assert controller.raise_feature_level(state, dict.fromkeys("abc", level)) == []
    understood = dict.fromkeys("abcd", level + 7)
    assert apply(state, controller.raise_feature_level(state, understood)) == [
        FeatureLevelRaised(level)
    ]
    assert sorted(partition.last) == ["a", "b", "c"]
    assert controller.raise_feature_level(state, understood) == [], "once"
    with pytest.raises(UnsupportedVersion, match="feature level 99"):
        state.apply(FeatureLevelRaised(99))


def test_a_snapshot_keeps_all_of_it() -> None:
    state, partition = dark(*"abc")
    report(state, "a", 5)
    _, again = snapshot.unseal(snapshot.seal(state, 9, 1), "a snapshot")
    assert again.topics["t"].partitions == [partition]


# A person gives up what nobody has ---


def test_of_those_that_are_up_the_longest_log_of_the_highest_epoch_leads() -> None:
    state = partition_of("abc", "a", "a")
    (partition,) = state.topics["t"].partitions
    apply(state, membership.fence_node(state, "a", "gone"))
    report(state, "b", 9, 0)
    with pytest.raises(NotReady, match="c has not said yet"):
        recovery.accept_loss(state, topic_id="t", number=0)
    report(state, "c", 7, 1)
    apply(state, recovery.accept_loss(state, topic_id="t", number=0))
    assert (shown(partition), partition.lost_from) == (("c", "c"), 7)


def test_who_does_not_come_back_is_given_up() -> None:
    state, partition = dark(*"abc")
    report(state, "a", 5)
    report(state, "b", 6)
    apply(state, membership.fence_node(state, "c", "gone"))
    finish(state)
    assert partition.leader is None
    apply(state, recovery.accept_loss(state, topic_id="t", number=0, epoch=partition.epoch))
    assert (shown(partition), partition.lost_from) == (("b", "b"), 6)
    register(state, "c", 3)
    assert shown(partition) == ("b", "b"), "it comes too late"


def test_a_person_gives_up_what_only_a_lost_disk_has() -> None:
    state = partition_of("abc", "a", "a")
    (partition,) = state.topics["t"].partitions
    with pytest.raises(InvalidRequest, match="has a leader"):
        recovery.accept_loss(state, topic_id="t", number=0, node="b")
    register(state, "a", 1, "new")
    with pytest.raises(InvalidRequest, match="one of a, b, c"):
        recovery.accept_loss(state, topic_id="t", number=0, node="x")
    with pytest.raises(InvalidRequest, match="no partition 7"):
        recovery.accept_loss(state, topic_id="t", number=7, node="b")
    with pytest.raises(NotReady, match="b has not said yet"):
        recovery.accept_loss(state, topic_id="t", number=0, node="b")
    report(state, "b", 5)
    apply(state, recovery.accept_loss(state, topic_id="t", number=0, node="b"))
    assert (shown(partition), partition.unclean, partition.disk) == (("b", "b"), True, None)
    register(state, "a", 9, "disk-a")
    assert shown(partition) == ("b", "b"), "it comes too late"


def test_a_loss_that_is_accepted_again_is_accepted_once() -> None:
    """The request is repeated until it is answered, and one that comes late does nothing."""
    state = partition_of("abc", "a", "a")
    (partition,) = state.topics["t"].partitions
    apply(state, membership.fence_node(state, "a", "gone"))
    seen = partition.epoch
    with pytest.raises(InvalidRequest, match="look again"):
        recovery.accept_loss(state, topic_id="t", number=0, epoch=seen - 1)
    report(state, "b", 5)
    report(state, "c", 5)
    apply(state, recovery.accept_loss(state, topic_id="t", number=0, epoch=seen))
    assert shown(partition) == ("b", "b")
    assert recovery.accept_loss(state, topic_id="t", number=0, epoch=seen) == []
    apply(state, membership.fence_node(state, "b", "gone"))
    assert shown(partition) == (None, "b")
    with pytest.raises(InvalidRequest, match="look again"):
        recovery.accept_loss(state, topic_id="t", number=0, epoch=seen)
    assert shown(partition) == (None, "b"), "what b has was not given up by anybody"


def test_an_empty_disk_leads_only_where_there_is_no_other_or_somebody_says_so() -> None:
    state = partition_of("abc", "a", "a")
    (partition,) = state.topics["t"].partitions
    register(state, "a", 1, "new")
    for node in "bc":
        apply(state, membership.fence_node(state, node, "gone"))
    with pytest.raises(InvalidRequest, match="start b or c"):
        recovery.accept_loss(state, topic_id="t", number=0)
    report(state, "a", 0, -1)
    (record,) = recovery.accept_loss(state, topic_id="t", number=0, node="a")
    assert record.leader == "a"
    register(state, "c", 7)
    report(state, "c", 0, -1)
    apply(state, recovery.accept_loss(state, topic_id="t", number=0))
    assert shown(partition) == ("c", "c")

    alone = partition_of("a", "a", "a")
    register(alone, "a", 1, "new")
    report(alone, "a", 0, -1)
    apply(alone, recovery.accept_loss(alone, topic_id="t", number=0))
    assert shown(alone.topics["t"].partitions[0]) == ("a", "a")
