"""The coordinator's decisions, one at a time."""

from __future__ import annotations

import pytest
from groups.desk import Desk, parts
from groups.world import catalog

from zbroker.errors import (
    DiskFull,
    GroupNotEmpty,
    InvalidRequest,
    MemberFenced,
    Overloaded,
    UnknownGroup,
)
from zbroker.groups import coordinator as module
from zbroker.groups.coordinator import Coordinator
from zbroker.groups.sessions import STEP_MAX
from zbroker.protocol.messages import (
    CommitOffsetsReply,
    DeleteGroup,
    DescribeGroup,
    FetchOffsets,
    GroupHeartbeat,
    TopicPartitions,
)

# Joining and leaving ---


def test_the_first_member_gets_everything_with_the_answer_to_its_join() -> None:
    desk = Desk(a=3)
    reply = desk.beat("m1", 0, "a")
    assert (reply.member_epoch, reply.group_epoch) == (1, 1)
    assert parts(reply) == [("a", 0), ("a", 1), ("a", 2)]


def test_a_second_member_gets_its_share_once_the_first_has_released_it() -> None:
    desk = Desk(a=4)
    desk.beat("m1", 0, "a")
    waiting = desk.send("m1", 1, owned=[("a", n) for n in range(4)], wait=2500)
    joined = desk.beat("m2", 0, "a")
    assert parts(joined) == []
    revoked = desk.answers[waiting]
    assert parts(revoked) == [("a", 0), ("a", 1)]
    # It finishes what it reads, and says so: before, it still holds all four.
    news = desk.send("m2", joined.member_epoch, owned=[], wait=2500)
    desk.send("m1", revoked.member_epoch, owned=[("a", n) for n in range(4)], wait=2500)
    assert news not in desk.answers
    desk.send("m1", revoked.member_epoch, owned=[("a", 0), ("a", 1)], wait=2500)
    assert parts(desk.answers[news]) == [("a", 2), ("a", 3)]


def test_joins_that_come_together_make_one_target() -> None:
    desk = Desk(a=10)
    desk.beat("m0", 0, "a")
    desk.tick(1000)
    numbers = [desk.send(f"m{n}", 0, "a") for n in range(1, 10)]
    desk.tick(1000)
    assert all(number in desk.answers for number in numbers)
    # The first of the nine is let in at once, the others together.
    assert desk.coordinator.targets.rebalances == 3
    assert {reply.group_epoch for reply in (desk.answers[each] for each in numbers[1:])} == {3}


def test_a_join_that_is_repeated_is_answered_with_the_same_place() -> None:
    desk = Desk(a=2)
    first = desk.beat("m1", 0, "a", owned=[])
    again = desk.beat("m1", 0, "a", owned=[])
    assert parts(again) == parts(first)
    assert again.member_epoch == first.member_epoch
    assert desk.coordinator.targets.rebalances == 1


def test_of_two_joins_of_one_member_that_wait_the_later_is_answered_with_its_place() -> None:
    desk = Desk(a=2)
    desk.beat("m0", 0, "a")
    first, second = desk.send("m1", 0, "a"), desk.send("m1", 0, "a")
    desk.tick(1000)
    assert isinstance(desk.answers[first], Overloaded)
    assert desk.answers[second].member_epoch == 2


def test_who_leaves_makes_room_at_once_and_the_last_leaves_an_empty_group() -> None:
    desk = Desk(a=2)
    desk.beat("m1", 0, "a")
    joined = desk.beat("m2", 0, "a")
    waiting = desk.send("m2", joined.member_epoch, owned=[], wait=2500)
    assert desk.beat("m1", -1).member_epoch == -1
    desk.tick(500)
    assert parts(desk.answers[waiting])
    desk.send("m2", desk.answers[waiting].member_epoch, wait=2500)
    assert desk.owns("m2") == [("a", 0), ("a", 1)]
    desk.beat("m2", -1)
    group = desk.coordinator.state.groups["g"]
    assert not group.members
    assert group.empty_since == desk.wall
    assert desk.beat("m2", -1).member_epoch == -1, "leaving twice does no harm"


def test_a_member_that_does_not_release_is_put_out() -> None:
    desk = Desk(a=2)
    desk.beat("m1", 0, "a", release_timeout=5000, session_timeout=60_000)
    desk.beat("m2", 0, "a", session_timeout=60_000)
    everything = [("a", 0), ("a", 1)]
    desk.send("m1", 2, owned=everything)
    desk.tick(2000)
    assert desk.owns("m2") == []
    desk.send("m1", 2, owned=everything)
    desk.tick(1500)
    assert "m1" not in desk.coordinator.state.groups["g"].members
    desk.tick(1000)
    assert desk.owns("m2") == everything
    assert isinstance(desk.beat("m1", 2), MemberFenced)


def test_what_is_out_of_bounds_is_refused_with_the_name_of_the_field() -> None:
    desk = Desk(a=1)
    for said, request in (
        ("group name", GroupHeartbeat(member="m", topics=["a"])),
        ("group name", GroupHeartbeat(group="a\nb", member="m", topics=["a"])),
        ("member", GroupHeartbeat(group="g", topics=["a"])),
        ("topics", GroupHeartbeat(group="g", member="m")),
        ("topics", GroupHeartbeat(group="g", member="m", topics=[""])),
        ("topics", GroupHeartbeat(group="g", member="m", topics=["a"] * 1001)),
        ("topics", GroupHeartbeat(group="g", member="m", topics=["a" * 999] * 99)),
        ("instance", GroupHeartbeat(group="g", member="m", topics=["a"], instance="")),
        ("session_timeout", GroupHeartbeat(group="g", member="m", topics=["a"], session_timeout=1)),
        ("release_timeout", GroupHeartbeat(group="g", member="m", topics=["a"], release_timeout=2**40)),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest, match=said):
            desk.coordinator.heartbeat(1, request, desk.now, desk.wall)
    assert not desk.coordinator.state.groups


def test_members_and_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMBERS_MAX", 2)
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    desk.send("m2", 0, "a")
    assert isinstance(desk.answers[desk.send("m3", 0, "a")], Overloaded)
    monkeypatch.setattr(module, "GROUPS_MAX", 1)
    with pytest.raises(Overloaded):
        desk.coordinator.heartbeat(
            9, GroupHeartbeat(group="other", member="m", topics=["a"]), desk.now, desk.wall
        )


def test_a_group_that_is_refused_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    monkeypatch.setattr(module, "GROUPS_MAX", 2)
    for name, refused in (("g2", False), ("g3", True), ("g4", True), ("g2", False)):
        request = GroupHeartbeat(group=name, member=f"of {name}", topics=["a"])
        try:
            desk.coordinator.heartbeat(name, request, desk.now, desk.wall)
            assert not refused
        except Overloaded:
            assert refused
    assert set(desk.coordinator.targets.runs) == {"g", "g2"}


def test_a_member_that_waits_to_be_in_and_comes_back_as_a_static_one_has_one_seat() -> None:
    desk = Desk(a=1)
    desk.beat("s", 0, "a", instance="i")
    waiting = desk.send("x", 0, "a")
    taking = desk.send("x", 0, "a", instance="i")
    desk.tick(1000)
    assert isinstance(desk.answers[waiting], Overloaded)
    assert parts(desk.answers[taking]) == [("a", 0)]
    assert len(desk.coordinator.sessions) == 1
    desk.beat("x", -1)
    desk.tick(60_000)
    assert not desk.coordinator.state.groups["g"].members


def test_positions_that_no_answer_holds_are_not_collected() -> None:
    desk = Desk(a=1)
    many = [TopicPartitions(topic_id="x" * 64, partitions=[0] * 400_000)]
    with pytest.raises(InvalidRequest, match="fewer at a time"):
        desk.coordinator.fetch_offsets(1, FetchOffsets(group="g", partitions=many))


# Heartbeats ---


def test_a_heartbeat_without_news_is_held_and_the_next_one_answers_it() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    first = desk.send("m1", 1, owned=[("a", 0)], wait=2500)
    assert first not in desk.answers
    second = desk.send("m1", 1, wait=2500)
    assert desk.answers[first].assignment is None
    assert second not in desk.answers
    desk.tick(2400)
    assert second not in desk.answers
    desk.tick(200)
    assert desk.answers[second].assignment is None
    assert len(desk.records) == 2, "heartbeats need no records"


def test_without_wait_it_is_answered_at_once() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    number = desk.send("m1", 1, owned=[("a", 0)])
    assert desk.answers[number].assignment is None


def test_a_member_that_did_not_get_its_answer_is_told_again() -> None:
    desk = Desk(a=2)
    desk.send("m1", 0, "a")  # its answer is lost
    reply = desk.beat("m1", 0, "a", owned=[])
    assert parts(reply) == [("a", 0), ("a", 1)]
    lost = desk.send("m1", 1, owned=[("a", 0)], wait=2500)  # it lacks something still
    assert parts(desk.answers[lost]) == [("a", 0), ("a", 1)]
    # The same again: it may be slow, and is not told in circles.
    again = desk.send("m1", 1, owned=[("a", 0)], wait=2500)
    assert again not in desk.answers
    desk.tick(2600)
    assert parts(desk.answers[again]) == [("a", 0), ("a", 1)]


def test_a_member_that_claims_what_is_not_its_own_is_told_at_once() -> None:
    desk = Desk(a=2, b=1)
    desk.beat("m1", 0, "a")
    claims = desk.send("m1", 1, owned=[("a", 0), ("a", 1), ("b", 0)], wait=2500)
    assert parts(desk.answers[claims]) == [("a", 0), ("a", 1)]


def test_an_epoch_that_was_never_given_is_fenced() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    assert isinstance(desk.beat("m1", 2), MemberFenced)
    assert isinstance(desk.beat("m2", 1), MemberFenced)


def test_a_release_that_crossed_another_assignment_does_not_count() -> None:
    """The member said so at an epoch before the revocation: it has been given the partition again since."""
    desk = Desk(a=2)
    desk.beat("m1", 0, "a")
    desk.beat("m2", 0, "a")
    assert desk.owns("m1") == [("a", 0)]
    desk.beat("m2", -1)
    desk.tick(500)
    assert desk.owns("m1") == [("a", 0), ("a", 1)]
    third = desk.beat("m3", 0, "a")
    assert desk.owns("m1") == [("a", 0)]
    desk.send("m1", 2, owned=[("a", 0)])  # sent when m2 came: late
    assert desk.owns("m3") == []
    desk.send("m1", third.group_epoch, owned=[("a", 0)])
    assert desk.owns("m3") == [("a", 1)]


def test_nothing_new_goes_to_disk_while_nothing_can_be_appended() -> None:
    desk = Desk(a=2)
    desk.beat("m1", 0, "a", session_timeout=1000)
    desk.coordinator.outcome.refusal = DiskFull("full")
    assert isinstance(desk.answers[desk.send("m2", 0, "a")], DiskFull)
    assert isinstance(desk.answers[desk.send("m1", -1)], DiskFull)
    assert isinstance(desk.commit("m1", 1, ("a", 0, 5)), DiskFull)
    kept = desk.send("m1", 1, owned=[("a", 0), ("a", 1)])
    assert desk.answers[kept].member_epoch == 1, "who is in stays in"
    before = len(desk.records)
    desk.tick(3000)
    assert len(desk.records) == before


# Sessions ---


def test_a_session_ends_not_before_its_time_and_soon_after() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a", session_timeout=5000)
    desk.tick(3000)
    desk.send("m1", 1, owned=[("a", 0)])
    desk.tick(4900)
    assert "m1" in desk.coordinator.state.groups["g"].members
    desk.tick(200)
    assert "m1" not in desk.coordinator.state.groups["g"].members


def test_a_held_heartbeat_of_a_member_that_is_out_is_answered() -> None:
    desk = Desk(a=2)
    desk.beat("m1", 0, "a", instance="i")
    held = desk.send("m1", 1, owned=[("a", 0), ("a", 1)], wait=5000)
    desk.beat("m2", 0, "a", instance="i")
    assert isinstance(desk.answers[held], MemberFenced)


def test_a_node_that_was_frozen_puts_nobody_out_for_it() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a", session_timeout=5000)
    desk.now += 60_000
    desk.coordinator.on_tick(desk.now, desk.wall)
    assert "m1" in desk.coordinator.state.groups["g"].members
    desk.tick(5000 - STEP_MAX - 200)
    assert "m1" in desk.coordinator.state.groups["g"].members


def test_sessions_begin_anew_at_another_coordinator() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a", session_timeout=5000)
    desk.tick(4500)
    desk.take_over()
    desk.tick(4500)
    assert "m1" in desk.coordinator.state.groups["g"].members
    desk.tick(600)
    assert "m1" not in desk.coordinator.state.groups["g"].members


def test_taking_over_a_group_that_is_well_changes_nothing() -> None:
    desk = Desk(a=5)
    desk.beat("m1", 0, "a")
    reply = desk.beat("m2", 0, "a")
    desk.send("m1", reply.group_epoch, owned=[("a", 0), ("a", 1), ("a", 2)])
    before = len(desk.records)
    desk.take_over()
    assert len(desk.records) == before
    told = desk.beat("m1", reply.group_epoch)
    assert parts(told) == [("a", 0), ("a", 1), ("a", 2)], (
        "it may not have heard what the last one said"
    )


def test_a_new_coordinator_looks_at_many_groups_in_slices() -> None:
    desk = Desk(a=1)
    for number in range(2500):
        request = GroupHeartbeat(group=f"g{number}", member="m", topics=["a"])
        desk.coordinator.heartbeat(-number, request, desk.now, desk.wall)
    desk._take()
    assert len(desk.coordinator.state.groups) == 2500
    desk.coordinator = Coordinator(
        desk.coordinator.state, desk.coordinator.targets.catalog, desk.now
    )
    left = []
    for _ in range(4):
        desk.tick()
        left.append(sum(map(desk.coordinator.targets.is_due, desk.coordinator.state.groups)))
    assert left == [1500, 500, 0, 0]


# Static members ---


def test_a_static_member_that_restarts_keeps_its_partitions_without_a_rebalance() -> None:
    desk = Desk(a=4)
    desk.beat("m1", 0, "a", instance="i1")
    reply = desk.beat("m2", 0, "a", instance="i2")
    desk.send("m1", reply.group_epoch, owned=[("a", 0), ("a", 1)])
    before = desk.coordinator.targets.rebalances
    desk.beat("m1", -2)
    desk.tick(3000)
    back = desk.beat("m3", 0, "a", instance="i1")
    assert parts(back) == [("a", 0), ("a", 1)]
    assert desk.coordinator.targets.rebalances == before
    assert isinstance(desk.beat("m1", 1), MemberFenced)
    assert desk.owns("m2") == [("a", 2), ("a", 3)]


def test_after_a_crash_too_and_what_it_was_releasing_is_free() -> None:
    desk = Desk(a=4)
    desk.beat("m1", 0, "a", instance="i1")
    desk.beat("m2", 0, "a")
    assert desk.owns("m2") == []
    back = desk.beat("m3", 0, "a", instance="i1")
    assert parts(back) == [("a", 0), ("a", 1)]
    assert desk.owns("m2") == [("a", 2), ("a", 3)]


def test_a_static_member_that_does_not_come_back_is_out_after_its_session() -> None:
    desk = Desk(a=2)
    desk.beat("m1", 0, "a", instance="i1", session_timeout=4000)
    desk.beat("m2", 0, "a", session_timeout=60_000)
    desk.beat("m1", -2)
    desk.tick(3900)
    assert desk.owns("m2") == [("a", 1)]
    desk.tick(1000)
    assert desk.owns("m2") == [("a", 0), ("a", 1)]


def test_one_without_an_instance_just_leaves() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    desk.beat("m1", -2)
    assert not desk.coordinator.state.groups["g"].members


# Subscriptions and topics ---


def test_a_member_that_subscribes_anew_gets_another_share() -> None:
    desk = Desk(a=1, b=1)
    desk.beat("m1", 0, "a")
    desk.beat("m1", 1, "a", "b")
    desk.tick(500)
    assert desk.owns("m1") == [("a", 0), ("b", 0)]
    desk.beat("m1", 2, owned=[("a", 0), ("b", 0)])
    desk.beat("m1", 2)
    assert desk.coordinator.state.groups["g"].members["m1"].about.topics == ["a", "b"]


def test_topics_that_come_and_go_and_grow_make_a_target() -> None:
    desk = Desk(sales_eu=1, other=1)
    desk.beat("m1", 0, "sales_*")
    desk.set_topics(catalog(sales_eu=2, sales_us=1, other=1))
    desk.tick(1000)
    assert desk.owns("m1") == [("sales_eu", 0), ("sales_eu", 1), ("sales_us", 0)]
    rebalances = desk.coordinator.targets.rebalances
    desk.set_topics(catalog(sales_eu=2, sales_us=1, other=5))
    desk.tick(1000)
    assert desk.coordinator.targets.rebalances == rebalances, "nobody subscribed to that"
    desk.set_topics(catalog(sales_eu=2))
    desk.tick(1000)
    assert desk.owns("m1") == [("sales_eu", 0), ("sales_eu", 1)]


def test_patterns_leave_the_systems_own_topics_out() -> None:
    seen = catalog(__groups=6, a=1)
    assert seen.matching(["*"]) == ("id-a",)
    assert seen.matching(["__*"]) == ()
    assert seen.matching(["__groups"]) == ("id-__groups",)


def test_the_assignor_that_most_name_is_used() -> None:
    desk = Desk(a=4, b=4)
    for name, assignor in (("m1", "range"), ("m2", "range"), ("m3", "sticky")):
        desk.send(name, 0, "a", "b", assignor=assignor)
    desk.tick(1000)
    assert desk.coordinator.state.groups["g"].assignor == "range"


# Positions ---


def test_a_member_commits_what_it_holds_and_nothing_else() -> None:
    desk = Desk(a=4)
    desk.beat("m1", 0, "a")
    joined = desk.beat("m2", 0, "a")
    assert desk.commit("m1", 1, ("a", 0, 5), ("a", 2, 7)) == CommitOffsetsReply(), (
        "not released yet"
    )
    assert desk.commit("m2", joined.member_epoch, ("a", 2, 1)).refused[0].error == "not_owned"
    desk.send("m1", joined.group_epoch, owned=[("a", 0), ("a", 1)])
    refused = desk.commit("m1", joined.group_epoch, ("a", 0, 6), ("a", 2, 8)).refused
    assert [(each.partition, each.error) for each in refused] == [(2, "not_owned")]
    desk.send("m2", joined.member_epoch, owned=[], wait=100)
    assert desk.commit("m2", joined.member_epoch, ("a", 2, 9)) == CommitOffsetsReply()
    positions = desk.coordinator.state.groups["g"].offsets["id-a"]
    assert {number: value.offset for number, value in positions.items()} == {0: 6, 2: 9}


def test_a_commit_that_a_later_one_has_overtaken_changes_nothing() -> None:
    """It was given up with its connection, and the broker still had it to read."""
    desk = Desk(a=2)
    desk.beat("m1", 0, "a")
    assert desk.commit("m1", 1, ("a", 0, 88), nth=1) == CommitOffsetsReply()
    assert desk.commit("m1", 1, ("a", 0, 19), ("a", 1, 4), nth=0) == CommitOffsetsReply()
    positions = desk.coordinator.state.groups["g"].offsets["id-a"]
    assert {number: value.offset for number, value in positions.items()} == {0: 88, 1: 4}
    assert desk.commit("m1", 1, ("a", 0, 20), nth=2) == CommitOffsetsReply(), "it may go back"
    assert positions[0].offset == 20
    desk.beat("m1", -1)
    assert desk.commit("", -1, ("a", 0, 7), nth=9) == CommitOffsetsReply()
    assert desk.commit("", -1, ("a", 0, 6), nth=8) == CommitOffsetsReply(), "it may be anybody's"
    assert positions[0].offset == 6
    joined = desk.beat("m2", 0, "a")
    assert desk.commit("m2", joined.member_epoch, ("a", 0, 8), nth=0) == CommitOffsetsReply()
    assert positions[0].offset == 8


def test_an_older_epoch_than_the_one_at_which_it_was_given_cannot_commit() -> None:
    desk = Desk(a=2)
    desk.beat("m1", 0, "a")
    desk.beat("m2", 0, "a")
    desk.send("m1", 2, owned=[("a", 0)])
    assert desk.commit("m1", 1, ("a", 0, 5)) == CommitOffsetsReply(), (
        "in flight while the epoch moved on"
    )
    desk.beat("m2", -1)
    desk.tick(500)
    assert desk.owns("m1") == [("a", 0), ("a", 1)]
    refused = desk.commit("m1", 2, ("a", 0, 6), ("a", 1, 6)).refused
    assert [(each.partition, each.error) for each in refused] == [(1, "stale_member_epoch")]
    assert isinstance(desk.commit("m1", 99, ("a", 0, 7)), MemberFenced)
    assert isinstance(desk.commit("m2", 2, ("a", 0, 7)), MemberFenced)


def test_others_commit_only_while_the_group_has_no_members() -> None:
    desk = Desk(a=2)
    assert (
        desk.commit("", -1, ("a", 0, 5), ("a", 9, 1), ("x", 0, 1)).refused[0].error
        == "unknown_partition"
    )
    desk.beat("m1", 0, "a")
    assert isinstance(desk.commit("", -1, ("a", 0, 6)), GroupNotEmpty)
    desk.beat("m1", -1)
    assert desk.commit("", -1, ("a", 0, -1)) == CommitOffsetsReply()
    assert not desk.coordinator.state.groups["g"].offsets


def test_positions_are_answered_with_what_was_committed_and_minus_one() -> None:
    desk = Desk(a=2)
    desk.commit("", -1, ("a", 1, 5))
    wanted = [
        TopicPartitions(topic_id="id-a", partitions=[0, 1]),
        TopicPartitions(topic_id="no", partitions=[0]),
    ]
    desk.coordinator.fetch_offsets(1000, FetchOffsets(group="g", partitions=wanted))
    desk.coordinator.fetch_offsets(1001, FetchOffsets(group="g"))
    desk.coordinator.fetch_offsets(1002, FetchOffsets(group="unknown"))
    desk._take()
    found = [(each.topic, each.partition, each.offset) for each in desk.answers[1000].offsets]
    assert found == [("a", 0, -1), ("a", 1, 5), ("", 0, -1)]
    assert [each.offset for each in desk.answers[1001].offsets] == [5]
    assert desk.answers[1001].offsets[0].time == desk.wall
    assert desk.answers[1002].offsets == []


def test_a_group_is_deleted_with_its_positions_once_it_has_no_members() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    desk.commit("m1", 1, ("a", 0, 5))
    with pytest.raises(GroupNotEmpty):
        desk.coordinator.delete(1000, DeleteGroup(group="g"))
    desk.beat("m1", -1)
    desk.coordinator.delete(1001, DeleteGroup(group="g"))
    desk._take()
    assert desk.coordinator.state.groups == {}
    with pytest.raises(UnknownGroup):
        desk.coordinator.delete(1002, DeleteGroup(group="g"))


# Expiry ---

RETENTION = 7 * 86_400_000


def test_positions_of_a_group_with_members_never_expire() -> None:
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    desk.commit("m1", 1, ("a", 0, 5))
    desk.coordinator.expire(desk.wall + 100 * RETENTION, RETENTION)
    desk._take()
    assert desk.coordinator.state.groups["g"].offsets


def test_positions_go_when_the_group_was_empty_for_the_retention_whoever_coordinated_it() -> None:
    """Measured from the recorded moment, not from the reload, nor from the commit (KAFKA 44be5d2221c)."""
    desk = Desk(a=1)
    desk.beat("m1", 0, "a")
    desk.commit("m1", 1, ("a", 0, 5))
    desk.tick(1000)
    desk.beat("m1", -1)
    empty_since = desk.wall
    desk.take_over()
    desk.coordinator.expire(empty_since + RETENTION - 1, RETENTION)
    desk._take()
    assert desk.coordinator.state.groups["g"].offsets
    desk.coordinator.expire(empty_since + RETENTION, RETENTION)
    desk._take()
    assert desk.coordinator.state.groups == {}
    desk.take_over()
    assert desk.coordinator.state.groups == {}


def test_positions_go_with_their_topic() -> None:
    desk = Desk(a=1, b=1)
    desk.beat("m1", 0, "a", "b")
    desk.commit("m1", 1, ("a", 0, 5), ("b", 0, 6))
    desk.set_topics(catalog(a=1))
    desk.coordinator.expire(desk.wall, RETENTION)
    desk._take()
    assert list(desk.coordinator.state.groups["g"].offsets) == ["id-a"]


# For people ---


def test_a_group_is_described_on_its_way() -> None:
    desk = Desk(a=4)
    desk.beat("m1", 0, "a", client="first")
    joined = desk.beat("m2", 0, "a")

    def described(number: int) -> list[tuple[str, str]]:
        desk.coordinator.describe(number, DescribeGroup(group="g"), desk.now)
        desk._take()
        reply = desk.answers[number]
        return [(reply.state, "group")] + [(each.state, each.member) for each in reply.members]

    assert described(1000) == [("assigning", "group"), ("releasing", "m1"), ("waiting", "m2")]
    desk.send("m1", joined.group_epoch, owned=[("a", 0), ("a", 1)])
    assert described(1001) == [("stable", "group"), ("stable", "m1"), ("stable", "m2")]
    assert desk.coordinator.listings()[0].members == 2
