"""Targets: whole, balanced, sticky, near; and the same again from themselves."""

from __future__ import annotations

from collections import Counter

from groups.world import catalog
from hypothesis import given
from hypothesis import strategies as st

from zbroker.groups.assignment import Candidate, Target, assign
from zbroker.groups.catalog import Catalog, TopicView
from zbroker.groups.state import TopicPartition

NODES = ["n1", "n2", "n3"]
RACKS = {"n1": "left", "n2": "left", "n3": "right"}


@st.composite
def clusters(draw: st.DrawFn) -> Catalog:
    """Up to three topics, each partition led by some node or none."""
    leaders = st.lists(st.sampled_from([*NODES, None]), min_size=1, max_size=12)
    topics = draw(st.lists(leaders, min_size=1, max_size=3))
    return Catalog([TopicView(f"t{n}", f"t{n}", each) for n, each in enumerate(topics)], RACKS)


@st.composite
def groups(draw: st.DrawFn, *, equal: bool) -> tuple[dict[str, Candidate], Catalog]:
    """Members with whatever they had before, which may overlap and be out of date."""
    seen = draw(clusters())
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True))
    everything = sorted(seen.by_id)
    shared = tuple(everything)
    members = {}
    for name in names:
        topics = shared
        if not equal:
            topics = tuple(sorted(draw(st.sets(st.sampled_from(everything)))))
        before = draw(
            st.lists(
                st.tuples(st.sampled_from([*everything, "gone"]), st.integers(0, 12)), max_size=8
            )
        )
        rack = draw(st.sampled_from([None, *NODES, "left", "right"]))
        members[name] = Candidate(topics, rack=rack, before=before)
    return members, seen


def check_whole(target: Target, members: dict[str, Candidate], seen: Catalog) -> None:
    """Every partition that anybody wants is one member's that wants it."""
    assert target.keys() == members.keys()
    given_out = [each for partitions in target.values() for each in partitions]
    wanted = {topic for candidate in members.values() for topic in candidate.topics}
    assert sorted(given_out) == sorted(
        (topic, n) for topic in wanted for n in range(len(seen.by_id[topic].leaders))
    )
    for member, partitions in target.items():
        assert {topic for topic, _ in partitions} <= set(members[member].topics)


def again(target: Target, members: dict[str, Candidate]) -> dict[str, Candidate]:
    """The members, now that they have their target."""
    return {
        name: Candidate(each.topics, each.order, each.rack, target[name])
        for name, each in members.items()
    }


@given(groups(equal=True))
def test_equal_subscriptions_are_balanced_and_as_little_moves_as_can_be(
    case: tuple[dict[str, Candidate], Catalog],
) -> None:
    members, seen = case
    target = assign("sticky", members, seen)
    check_whole(target, members, seen)
    sizes = [len(partitions) for partitions in target.values()]
    assert max(sizes) - min(sizes) <= 1

    had: dict[str, set[TopicPartition]] = {}
    taken: set[TopicPartition] = set()
    for name in sorted(members):  # of two that claim a partition the first has it
        there = {
            each for each in members[name].before
            if each[0] in seen.by_id and each[1] < len(seen.by_id[each[0]].leaders) and each not in taken
        }  # fmt: skip
        taken |= there
        had[name] = there
    floor, more = divmod(sum(sizes), len(sizes))
    by_size = sorted((len(each) for each in had.values()), reverse=True)
    most = sum(min(size, floor + (place < more)) for place, size in enumerate(by_size))
    assert sum(len(had[name] & set(target[name])) for name in members) == most


@given(groups(equal=False))
def test_other_subscriptions_are_whole_and_no_single_move_would_balance_better(
    case: tuple[dict[str, Candidate], Catalog],
) -> None:
    members, seen = case
    target = assign("sticky", members, seen)
    check_whole(target, members, seen)
    for member, partitions in target.items():
        for topic, _ in partitions:
            for other in members:
                if topic in members[other].topics:
                    assert len(partitions) - len(target[other]) <= 1 or other == member


@given(groups(equal=False), st.sampled_from(["sticky", "range"]))
def test_who_has_its_target_keeps_it(
    case: tuple[dict[str, Candidate], Catalog], assignor: str
) -> None:
    members, seen = case
    target = assign(assignor, members, seen)
    repeated = assign(assignor, again(target, members), seen)
    assert {name: set(each) for name, each in repeated.items()} == {
        name: set(each) for name, each in target.items()
    }


@given(groups(equal=True), st.integers(0, 7))
def test_who_leaves_moves_only_what_it_had(
    case: tuple[dict[str, Candidate], Catalog], which: int
) -> None:
    members, seen = case
    target = assign("sticky", members, seen)
    left = again(target, members)
    gone = sorted(left)[which % len(left)]
    del left[gone]
    if not left:
        return
    after = assign("sticky", left, seen)
    for name in left:
        assert set(target[name]) <= set(after[name])


def test_free_partitions_go_near_their_leaders() -> None:
    leaders = ["n1", "n2", "n3"] * 4
    seen = Catalog([TopicView("t", "t", leaders)], RACKS)
    members = {name: Candidate(("t",), rack=rack) for name, rack in zip("abc", NODES, strict=True)}
    target = assign("sticky", members, seen)
    for name, node in zip("abc", NODES, strict=True):
        assert {leaders[number] for _, number in target[name]} == {node}
    members = {"a": Candidate(("t",), rack="left"), "b": Candidate(("t",), rack="right")}
    target = assign("sticky", members, seen)
    near = Counter(RACKS[leaders[number]] for _, number in target["a"])
    assert near == {"left": 6}, "balance comes first: it gets six of the eight"
    assert len(target["b"]) == 6


def test_range_gives_runs_in_the_order_of_instances_and_the_same_number_of_both_topics() -> None:
    members = {
        "z": Candidate(("id-a", "id-b"), order="i1"),
        "y": Candidate(("id-a", "id-b"), order="i2"),
        "x": Candidate(("id-a", "id-b"), order="i3"),
    }
    target = assign("range", members, catalog(a=7, b=7))
    runs = {"z": [0, 1, 2], "y": [3, 4], "x": [5, 6]}
    for name, numbers in runs.items():
        assert target[name] == [(topic, n) for topic in ("id-a", "id-b") for n in numbers]


def test_a_member_that_fits_no_topic_gets_nothing() -> None:
    members = {"a": Candidate(("id-a",)), "b": Candidate(())}
    assert assign("sticky", members, catalog(a=2)) == {"a": [("id-a", 0), ("id-a", 1)], "b": []}
