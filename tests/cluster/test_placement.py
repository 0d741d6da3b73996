"""Where copies go: evenly, over racks, the same each time; and how partitions are moved."""

from __future__ import annotations

from collections import Counter

import pytest
from cluster.states import apply, nodes, register, set_isr, set_target, shown, topic
from hypothesis import given
from hypothesis import strategies as st

from zbroker.cluster import controller, membership, moves
from zbroker.cluster.metadata import Metadata
from zbroker.cluster.placement import Load, place
from zbroker.cluster.records import MetadataRecord
from zbroker.errors import (
    InvalidRequest,
    NotEnoughReplicas,
    UnknownPartition,
    UnknownTopic,
    ZBrokerError,
)


def loads(names: str, racks: str = "") -> dict[str, Load]:
    return {name: Load(racks[at] if racks else None) for at, name in enumerate(names)}


@given(
    count=st.integers(1, 9), partitions=st.integers(1, 30), topics=st.integers(1, 4), data=st.data()
)
def test_copies_and_leaderships_are_spread_evenly(
    count: int, partitions: int, topics: int, data: st.DataObject
) -> None:
    names = "abcdefghi"[:count]
    replicas = data.draw(st.integers(1, min(3, count)))
    nodes = loads(names)
    for _ in range(topics):
        for each in place(nodes, partitions, replicas):
            assert len(set(each)) == replicas
    keeps = [load.keeps for load in nodes.values()]
    leads = [load.leads for load in nodes.values()]
    assert sum(keeps) == topics * partitions * replicas
    assert max(leads) - min(leads) <= 1
    assert max(keeps) - min(keeps) <= 1


@given(racks=st.text("xyz", min_size=2, max_size=8), partitions=st.integers(1, 20))
def test_copies_are_in_as_many_racks_as_there_are(racks: str, partitions: int) -> None:
    names = "abcdefgh"[: len(racks)]
    rack_of = dict(zip(names, racks, strict=True))
    replicas = min(3, len(racks))
    for each in place(loads(names, racks), partitions, replicas):
        assert len({rack_of[node] for node in each}) == min(replicas, len(set(racks)))


def test_leaderships_alternate_between_racks() -> None:
    placed = place(loads("abcd", "xxyy"), 4, 2)
    assert [each[0] for each in placed] == ["a", "c", "b", "d"]


def test_what_one_node_leads_is_copied_to_all_others() -> None:
    placed = place(loads("abcd"), 12, 2)
    assert Counter(each[1] for each in placed if each[0] == "a") == {"b": 1, "c": 1, "d": 1}


def test_what_nodes_have_already_counts() -> None:
    nodes = loads("abc")
    nodes["a"].leads, nodes["a"].keeps = 3, 9
    placed = place(nodes, 2, 2)
    assert placed == [["b", "c"], ["c", "b"]]


@given(
    before=st.lists(st.permutations("abcd").map(lambda order: order[:2]), min_size=1, max_size=20)
)
def test_what_is_spread_anew_moves_no_more_than_it_must(before: list[list[str]]) -> None:
    nodes = loads("abcde")
    placed = place(nodes, len(before), 2, kept=before)
    keeps = [load.keeps for load in nodes.values()]
    assert max(keeps) - min(keeps) <= 1
    assert all(len(set(each)) == 2 for each in placed)
    counts = Counter(node for each in before for node in each)
    moved = sum(node not in now for was, now in zip(before, placed, strict=True) for node in was)
    assert moved == sum(max(0, counts[node] - nodes[node].keeps) for node in "abcd")


def test_a_placement_that_is_even_stays() -> None:
    before = place(loads("abc"), 9, 2)
    assert place(loads("abc"), 9, 2, kept=before) == before


# In a cluster ---


def create(state: Metadata, name: str, **given_settings: int) -> list[list[str]]:
    apply(
        state,
        controller.create_topic(
            state, name=name, given=given_settings, defaults={}, topic_id=name, request_id=""
        ),
    )
    return [partition.replicas for partition in state.topics[name].partitions]


def test_topics_are_placed_beside_one_another() -> None:
    state = nodes("abc")
    leaders = Counter(create(state, f"t{number}", replicas=1)[0][0] for number in range(6))
    assert leaders == {"a": 2, "b": 2, "c": 2}


def test_a_topic_is_placed_over_racks() -> None:
    state = nodes("abcd", {"a": "x", "b": "x", "c": "y", "d": "y"})
    for replicas in create(state, "t", replicas=2, partitions=8):
        assert {node in "ab" for node in replicas} == {True, False}


def test_a_topic_is_placed_on_nodes_that_are_up() -> None:
    state = nodes("abc")
    apply(state, membership.fence_node(state, "b", "silent"))
    apply(state, moves.drain_node(state, "c", undo=False))
    said = r"found 2, and of the cluster's 3 nodes .* a \(b is down \(silent\), c is drained\)"
    with pytest.raises(NotEnoughReplicas, match=said) as caught:
        create(state, "t", replicas=2)
    assert not caught.value.outcome_unknown
    with pytest.raises(NotEnoughReplicas, match="found 3"):
        create(state, "t")
    assert create(state, "t", replicas=1, partitions=4) == [["a"]] * 4


def test_a_topic_that_grows_is_placed_on_nodes_that_are_up() -> None:
    state = nodes("abc")
    create(state, "t", replicas=2)
    apply(state, membership.fence_node(state, "a", "gone"))
    apply(state, controller.alter_topic(state, name="t", topic_id=None, given={"retention": "1h"}))
    apply(state, controller.alter_topic(state, name="t", topic_id=None, given={"partitions": 3}))
    assert [sorted(each.replicas) for each in state.topics["t"].partitions[1:]] == [["b", "c"]] * 2
    apply(state, membership.fence_node(state, "b", "gone"))
    with pytest.raises(NotEnoughReplicas, match="a is down"):
        controller.alter_topic(state, name="t", topic_id=None, given={"partitions": 4})
    assert controller.alter_topic(state, name="t", topic_id=None, given={"retention": "2h"})


# Moves ---


def move(state: Metadata, to: str, *, partition: int | None = 0) -> list[MetadataRecord]:
    return apply(
        state,
        moves.move_partitions(state, name="t", topic_id=None, partition=partition, to=list(to)),
    )


def test_a_partition_moves_in_two_steps() -> None:
    state = nodes("abcd")
    (partition,) = topic(state, "ab")
    move(state, "cd")
    assert (partition.replicas, partition.target) == ([*"abcd"], [*"cd"])
    assert shown(partition) == ("a", "ab")
    assert move(state, "cd") == [], "it is on its way"
    for isr in ("abc", "bacd"):
        assert moves.finish_moves(state) == []
        set_isr(state, "a", isr)
    epoch = partition.epoch
    apply(state, moves.finish_moves(state))
    assert (partition.replicas, partition.target) == ([*"cd"], None)
    assert (shown(partition), partition.epoch) == (("c", "cd"), epoch + 1)
    assert moves.finish_moves(state) == []


def test_a_leader_that_stays_goes_on_in_its_epoch() -> None:
    state = nodes("abc")
    (partition,) = topic(state, "ab")
    move(state, "ca")
    set_isr(state, "a", "abc")
    epoch = partition.epoch
    apply(state, moves.finish_moves(state))
    assert (partition.replicas, shown(partition), partition.epoch) == ([*"ca"], ("a", "ac"), epoch)


def test_a_move_ends_with_a_leader_that_is_not_drained() -> None:
    state = nodes("abcd")
    (partition,) = topic(state, "ab")
    move(state, "cd")
    set_isr(state, "a", "abcd")
    apply(state, moves.drain_node(state, "c", undo=False))
    apply(state, moves.finish_moves(state))
    assert partition.leader == "d"


def test_a_move_that_nobody_can_lead_waits() -> None:
    state = nodes("abc")
    (partition,) = topic(state, "a")
    set_target(state, "ab", "b")
    set_isr(state, "b", "b")
    apply(state, membership.fence_node(state, "b", "gone"))
    assert moves.finish_moves(state) == []
    register(state, "b", 2)
    apply(state, moves.finish_moves(state))
    assert (partition.replicas, shown(partition)) == (["b"], ("b", "b"))


def test_a_move_is_changed_or_taken_back() -> None:
    state = nodes("abcde")
    (partition,) = topic(state, "ab")
    move(state, "cd")
    set_isr(state, "a", "abc")
    move(state, "ce")
    assert (partition.replicas, partition.target) == ([*"abce"], [*"ce"])
    move(state, "ab")
    assert (partition.replicas, partition.target) == ([*"abc"], [*"ab"])
    apply(state, moves.finish_moves(state))
    assert (partition.replicas, partition.target, shown(partition)) == ([*"ab"], None, ("a", "ab"))


def test_another_order_is_a_move_too() -> None:
    state = nodes("ab")
    (partition,) = topic(state, "ab")
    move(state, "ba")
    apply(state, moves.finish_moves(state))
    assert (partition.replicas, partition.target) == ([*"ba"], None)


def test_a_topic_is_spread_over_nodes_that_joined() -> None:
    state = nodes("abc")
    partitions = topic(state, *["ab", "bc", "ca"] * 4)
    register(state, "d")
    move(state, "", partition=None)
    targets = [partition.target or partition.replicas for partition in partitions]
    assert Counter(node for each in targets for node in each) == dict.fromkeys("abcd", 6)
    leaders = Counter(each[0] for each in targets)
    assert max(leaders.values()) - min(leaders.values()) <= 1
    assert move(state, "", partition=None) == []


def test_a_topic_is_spread_over_the_nodes_that_are_named() -> None:
    state = nodes("abcd")
    partitions = topic(state, *["ab", "bc", "ca"])
    move(state, "bd", partition=None)
    assert [sorted(each.target or ()) for each in partitions] == [["b", "d"]] * 3


@pytest.mark.parametrize(
    ("to", "partition", "error", "said"),
    [
        ("ax", 0, InvalidRequest, "no node 'x'; the cluster has a, b, c, d, e"),
        ("aa", 0, InvalidRequest, "named twice"),
        ("abc", 0, InvalidRequest, "keeps 2 replicas of each partition, and 3"),
        ("a", 0, InvalidRequest, "and 1 nodes"),
        ("a", None, InvalidRequest, "and 1 nodes"),
        ("ad", 0, InvalidRequest, r"d is down \(gone\), and cannot take a copy"),
        ("ae", 0, InvalidRequest, "e is drained, and cannot take a copy"),
        ("ade", None, InvalidRequest, "d is down"),
        ("ab", 2, UnknownPartition, "partitions 0 to 1, found 2"),
        ("ab", -1, UnknownPartition, "found -1"),
    ],
)
def test_moves_that_are_refused(
    to: str, partition: int | None, error: type[ZBrokerError], said: str
) -> None:
    state = nodes("abcde")
    topic(state, "ab", "bc")
    apply(state, membership.fence_node(state, "d", "gone"))
    apply(state, moves.drain_node(state, "e", undo=False))
    with pytest.raises(error, match=said):
        move(state, to, partition=partition)


def test_a_replica_that_is_down_may_stay_one() -> None:
    state = nodes("abc")
    (partition,) = topic(state, "ab")
    apply(state, membership.fence_node(state, "b", "gone"))
    move(state, "cb")
    assert partition.target == [*"cb"]
    with pytest.raises(UnknownTopic):
        moves.move_partitions(state, name="u", topic_id=None, partition=0, to=["a"])
    apply(state, membership.fence_node(state, "c", "gone"))
    with pytest.raises(NotEnoughReplicas, match="b is down"):
        move(state, "", partition=None)


# Draining ---


def test_a_drained_node_leads_what_nobody_else_can_lead() -> None:
    state = nodes("abc")
    partitions = topic(state, "ab", "a", "ba")
    apply(state, moves.drain_node(state, "a", undo=False))
    assert [partition.leader for partition in partitions] == ["b", "a", "b"]
    assert moves.leading(state, "a") == 1
    assert moves.drain_node(state, "a", undo=False) == [], "once"
    register(state, "a", 2)
    assert "a" in state.drained, "a new start undoes nothing"
    apply(state, membership.fence_node(state, "b", "gone"))
    assert [partition.leader for partition in partitions] == ["a", "a", "a"]
    register(state, "b", 2)
    set_isr(state, "a", "ab")
    apply(state, moves.drain_node(state, "a", undo=False))
    assert partitions[0].leader == "b", "what can be led by another by now"
    apply(state, moves.drain_node(state, "a", undo=True))
    assert not state.drained
    assert moves.drain_node(state, "a", undo=True) == []
    apply(state, membership.prefer(state))
    assert partitions[0].leader == "a"


def test_draining_all_moves_nothing_between_them() -> None:
    state = nodes("ab")
    (partition,) = topic(state, "ab")
    apply(state, moves.drain_node(state, "b", undo=False))
    apply(state, moves.drain_node(state, "a", undo=False))
    assert partition.leader == "a"
    apply(state, membership.hand_over(state, "a"))
    assert partition.leader == "b", "who stops hands over all the same"


def test_a_node_that_is_not_there_is_not_drained() -> None:
    with pytest.raises(InvalidRequest, match="no node 'x'; the cluster has a"):
        moves.drain_node(nodes("a"), "x", undo=False)
