"""Groups at one broker: the internal topic, answers that wait for the disk, what is counted, what survives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from broker.world import World, batch

from zbroker.cluster import internal
from zbroker.groups.records import TOPIC
from zbroker.protocol.messages import (
    AlterTopic,
    CommitOffsets,
    CommitOffsetsReply,
    CreateTopic,
    DeleteGroup,
    DeleteGroupReply,
    DeleteRecords,
    DeleteTopic,
    DescribeGroup,
    ErrorReply,
    Fetch,
    FetchOffsets,
    FetchReply,
    FindCoordinator,
    FindCoordinatorReply,
    GroupHeartbeat,
    GroupHeartbeatReply,
    GroupOffset,
    ListGroups,
    Metadata,
    Produce,
    Status,
)
from zbroker.testing.group_invariants import plain


def find(world: World, group: str = "g") -> FindCoordinatorReply:
    """The coordinator, once there is one."""
    number = world.send(FindCoordinator(group=group))
    for _ in range(20):
        world.run()
        if world.answer(number) is not None:
            break
        world.tick()
    reply = world.answer(number)
    assert isinstance(reply, FindCoordinatorReply), reply
    return reply


def join(world: World, member: str = "m1", *topics: str, **fields: Any) -> GroupHeartbeatReply:
    """A member that is in."""
    number = world.send(
        GroupHeartbeat(group="g", member=member, topics=list(topics or ("t",)), **fields)
    )
    for _ in range(20):
        world.run()
        if world.answer(number) is not None:
            break
        world.tick()
    reply = world.answer(number)
    assert isinstance(reply, GroupHeartbeatReply), reply
    return reply


def commit(world: World, member: str, epoch: int, offsets: Sequence[int], topic: str = "t") -> Any:
    """A commit's reply; the positions of the first partitions."""
    positions = [
        GroupOffset(topic=topic, partition=number, offset=at) for number, at in enumerate(offsets)
    ]
    return world.ask(CommitOffsets(group="g", member=member, member_epoch=epoch, offsets=positions))


def committed(world: World) -> dict[int, int]:
    """Positions by partition."""
    reply = world.ask(FetchOffsets(group="g"))
    return {each.partition: each.offset for each in reply.offsets}


@pytest.fixture
def world() -> World:
    """A broker with a coordinator, and a topic `t` of four partitions."""
    made = World()
    made.start()
    made.create(partitions=4)
    find(made)
    return made


# The internal topic ---


def test_the_internal_topic_is_made_with_the_first_request_and_shown_when_asked_for() -> None:
    world = World()
    world.start()
    assert world.ask(ListGroups()).groups == []
    assert world.broker.metadata.topic_named(TOPIC) is None, "a list makes nothing"
    reply = find(world)
    assert (reply.node, reply.host, reply.port) == ("node1", "127.0.0.1", 5550)
    assert world.ask(Metadata()).topics == []
    assert [topic.name for topic in world.ask(Metadata(internal=True)).topics] == [TOPIC]
    (topic,) = world.ask(Metadata(topics=[TOPIC])).topics
    assert topic.settings["fsync"] == "always"
    assert topic.settings["retention"] == "forever"
    assert len(topic.partitions) == 6
    assert world.ask(Status()).topics == 0
    world.check_rest()


def test_any_request_of_a_group_makes_it() -> None:
    world = World()
    world.start()
    reply = world.ask(GroupHeartbeat(group="g", member="m", topics=["t"]))
    assert (reply.code, reply.hint) == ("not_ready", "retry")
    world.tick()
    world.run()
    assert world.broker.metadata.topic_named(TOPIC) is not None


def test_nobody_else_writes_or_changes_it(world: World) -> None:
    for request in (
        CreateTopic(name=TOPIC),
        AlterTopic(name=TOPIC, settings={"partitions": 7}, request_id="1"),
        DeleteTopic(name=TOPIC, request_id="2"),
        DeleteRecords(topic=TOPIC, before=1),
    ):
        reply = world.ask(request)
        assert isinstance(reply, ErrorReply), request
        assert reply.code == "invalid_topic", request
    reply = world.ask(Produce(topic=TOPIC), batch([b"x"]))
    assert (reply.code, reply.hint) == ("invalid_topic", "give_up")
    join(world)
    reads = [world.ask(Fetch(topic=TOPIC, partition=number)) for number in range(6)]
    assert all(isinstance(each, FetchReply) for each in reads)
    assert sum(each.next > 0 for each in reads) == 1, "it can be read"


# Answers ---


def test_nothing_is_answered_before_it_is_on_disk(world: World) -> None:
    (topic,) = world.ask(Metadata(topics=[TOPIC])).topics
    kept = world.broker.partitions[topic.topic_id]
    number = world.send(GroupHeartbeat(group="g", member="m1", topics=["t"]))
    ends = {each: partition.log.end_offset for each, partition in kept.items()}
    assert any(
        partition.log.end_offset > partition.log.flushed_offset for partition in kept.values()
    )
    while world.answer(number) is None:
        assert any(kept[each].log.flushed_offset < end for each, end in ends.items())
        assert world.step()
    assert all(kept[each].log.flushed_offset == end for each, end in ends.items())
    world.check_rest()


def test_a_member_joins_stays_commits_and_leaves(world: World) -> None:
    first = join(world)
    assert sum(len(each.partitions) for each in first.assignment or []) == 4
    assert commit(world, "m1", first.member_epoch, [5, 6]).refused == []
    assert committed(world) == {0: 5, 1: 6}
    described = world.ask(DescribeGroup(group="g"))
    assert (described.state, [each.member for each in described.members]) == ("stable", ["m1"])
    assert [(each.group, each.members) for each in world.ask(ListGroups()).groups] == [("g", 1)]
    assert world.ask(DeleteGroup(group="g")).code == "group_not_empty"
    left = world.ask(GroupHeartbeat(group="g", member="m1", member_epoch=-1))
    assert left.member_epoch == -1
    assert isinstance(world.ask(DeleteGroup(group="g")), DeleteGroupReply)
    assert world.ask(DescribeGroup(group="g")).code == "unknown_group"
    world.check_rest()


def test_errors_are_coded(world: World) -> None:
    for request, code in (
        (GroupHeartbeat(member="m", topics=["t"]), "invalid_request"),
        (GroupHeartbeat(group="g", member="m", member_epoch=3), "member_fenced"),
        (CommitOffsets(group="g", member="m", member_epoch=3), "member_fenced"),
        (FetchOffsets(group=""), "invalid_request"),
        (FindCoordinator(), "invalid_request"),
        (DescribeGroup(group="no"), "unknown_group"),
        (DeleteGroup(group="no"), "unknown_group"),
    ):
        reply = world.ask(request)
        assert isinstance(reply, ErrorReply), request
        assert reply.code == code, request
    world.check_rest()


def test_held_heartbeats_are_not_counted_and_a_flood_is_bounded() -> None:
    world = World(in_flight_max=5)
    world.start()
    world.create(partitions=4)
    find(world)
    members = [f"m{number}" for number in range(20)]
    joins = []
    for member in members:
        joins.append(world.send(GroupHeartbeat(group="g", member=member, topics=["t"])))
    for _ in range(10):
        world.run()
        world.tick()
    assert all(isinstance(world.answer(each), GroupHeartbeatReply) for each in joins)
    held = []
    for member, number in zip(members, joins, strict=True):
        epoch = world.answer(number).member_epoch
        request = GroupHeartbeat(group="g", member=member, member_epoch=epoch, wait=2000)
        held.append(world.send(request))
        held.append(
            world.send(GroupHeartbeat(group="g", member=member, member_epoch=epoch, wait=2000))
        )
        world.run()
    waiting = [each for each in held if world.answer(each) is None]
    assert len(waiting) >= len(members) - 5
    assert not world.broker._in_flight
    # The same client has a limit for everything else still.
    fetches = [world.send(Fetch(topic="t", wait=60_000)) for _ in range(10)]
    world.run()
    assert sum(isinstance(world.answer(each), ErrorReply) for each in fetches) == 5
    for _ in range(30):
        world.tick()
        world.run()
    assert all(world.answer(each) is not None for each in held)


def test_a_node_that_stops_answers_those_who_wait(world: World) -> None:
    first = join(world)
    held = world.send(
        GroupHeartbeat(group="g", member="m1", member_epoch=first.member_epoch, owned=[], wait=2000)
    )
    held = world.send(
        GroupHeartbeat(group="g", member="m1", member_epoch=first.member_epoch, owned=[], wait=2000)
    )
    world.run()
    world.stop()
    reply = world.answer(held)
    assert isinstance(reply, ErrorReply)
    assert (reply.code, reply.hint, reply.outcome_unknown) == ("shutting_down", "refresh", False)


def test_a_full_disk_refuses_commits_and_loses_none(world: World) -> None:
    first = join(world)
    commit(world, "m1", first.member_epoch, [5])
    world.disk.budget = world.disk.used
    refusals = [commit(world, "m1", first.member_epoch, [number]) for number in range(6, 9)]
    assert {reply.code for reply in refusals} == {"disk_full"}
    world.disk.budget = None
    for _ in range(30):
        world.tick()
        world.run()
    assert committed(world) == {0: 5}
    again = join(world, "m1")
    assert isinstance(commit(world, "m1", again.member_epoch, [9]), CommitOffsetsReply)
    assert committed(world) == {0: 9}
    world.check_rest()


# What survives ---


def test_members_and_positions_survive_a_restart_and_sessions_begin_anew(world: World) -> None:
    first = join(world, session_timeout=5000)
    commit(world, "m1", first.member_epoch, [5, 6, 7, 8])
    for _ in range(40):
        world.tick()
    world.kill()
    world.start()
    for _ in range(40):
        world.tick()
        world.run()
    again = world.ask(GroupHeartbeat(group="g", member="m1", member_epoch=first.member_epoch))
    assert again.member_epoch == first.member_epoch
    assert again.assignment == first.assignment
    assert committed(world) == {0: 5, 1: 6, 2: 7, 3: 8}


def test_a_compacted_log_makes_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    small = msgspec.structs.replace(internal.SETTINGS[TOPIC], segment_size=2048, min_dirty=1)
    monkeypatch.setitem(internal.SETTINGS, TOPIC, small)
    world = World()
    world.start()
    world.create(partitions=4)
    find(world)
    first = join(world, session_timeout=60_000)
    for number in range(300):
        commit(world, "m1", first.member_epoch, [number, number + 1, number + 2, number + 3])
    for _ in range(50):
        world.tick()
        world.run()
    (topic,) = world.ask(Metadata(topics=[TOPIC])).topics
    (log,) = (
        each.log for each in world.broker.partitions[topic.topic_id].values() if each.log.end_offset
    )
    assert log.end_offset > 1200
    assert log.size < 20_000, "most of it is gone"
    before = {
        number: plain(each.coordinating.state)
        for number, each in world.broker.partitions[topic.topic_id].items()
        if each.coordinating is not None
    }
    world.kill()
    world.start()
    for _ in range(5):
        world.tick()
        world.run()
    after = {
        number: plain(each.coordinating.state)
        for number, each in world.broker.partitions[topic.topic_id].items()
        if each.coordinating is not None
    }
    assert after == before
    assert committed(world) == {0: 299, 1: 300, 2: 301, 3: 302}
    again = world.ask(GroupHeartbeat(group="g", member="m1", member_epoch=first.member_epoch))
    assert again.assignment == first.assignment
    world.check_rest()


def test_positions_expire_a_while_after_the_group_became_empty_not_after_a_reload() -> None:
    world = World(offsets_retention=10 * 60_000)
    world.start()
    world.create(partitions=1)
    find(world)
    first = join(world)
    commit(world, "m1", first.member_epoch, [5])
    world.ask(GroupHeartbeat(group="g", member="m1", member_epoch=-1))
    for minute in range(9):
        world.tick(60_000)
        world.run()
        if minute == 4:
            world.kill()
            world.start()
    assert committed(world) == {0: 5}
    for _ in range(3):
        world.tick(60_000)
        world.run()
    assert committed(world) == {}
    assert world.ask(ListGroups()).groups == []


def test_positions_go_with_their_topic_and_members_get_what_is_left(world: World) -> None:
    world.create("other", partitions=2)
    first = join(world, "m1", "t", "other")
    commit(world, "m1", first.member_epoch, [5])
    commit(world, "m1", first.member_epoch, [6], topic="other")
    waiting = world.send(
        GroupHeartbeat(
            group="g",
            member="m1",
            member_epoch=first.member_epoch,
            owned=first.assignment,
            wait=2000,
        )
    )
    world.ask(DeleteTopic(name="other", request_id="d"))
    for _ in range(5):
        world.tick()
        world.run()
    assert [each.topic for each in world.answer(waiting).assignment] == ["t"]
    assert [(each.topic, each.offset) for each in world.ask(FetchOffsets(group="g")).offsets] == [
        ("t", 5)
    ]


def test_new_partitions_reach_a_member_that_waits(world: World) -> None:
    first = join(world)
    waiting = world.send(
        GroupHeartbeat(
            group="g",
            member="m1",
            member_epoch=first.member_epoch,
            owned=first.assignment,
            wait=2000,
        )
    )
    world.ask(AlterTopic(name="t", settings={"partitions": 6}, request_id="a"))
    for _ in range(5):
        world.tick()
        world.run()
    assert [each.partitions for each in world.answer(waiting).assignment] == [list(range(6))]


@pytest.mark.parametrize("seed", range(30))
def test_what_was_answered_survives_power_failures(seed: int) -> None:
    """Commits and assignments that were answered are there after whatever the disk does (invariant 17)."""
    world = World(seed=seed + 1)
    world.start()
    rng = random.Random(seed)
    created = world.ask(CreateTopic(name="t", settings={"partitions": 4}, request_id="t"))
    assert not isinstance(created, ErrorReply), created
    find(world)
    epoch = join(world).member_epoch
    safe, tried = [-1] * 4, [{-1} for _ in range(4)]
    sent: list[tuple[int, int, int]] = []
    for step in range(150):
        what = rng.random()
        if what < 0.4:
            partition = rng.randrange(4)
            position = GroupOffset(topic="t", partition=partition, offset=step)
            number = world.send(
                CommitOffsets(group="g", member="m1", member_epoch=epoch, offsets=[position])
            )
            tried[partition].add(step)
            sent.append((number, partition, step))
        elif what < 0.9:
            world.step()
        elif what < 0.95:
            world.tick()
        else:
            _hear(world, sent, safe)
            world.lose_power()
            world.start()
            for _ in range(5):
                world.tick()
                world.run()
            sent = []
            found = committed(world)
            for partition in range(4):
                at = found.get(partition, -1)
                assert at >= safe[partition], "a committed position went back"
                assert at in tried[partition], "a position that nobody committed"
                safe[partition] = max(safe[partition], at)
            member = world.ask(GroupHeartbeat(group="g", member="m1", member_epoch=epoch))
            assert member.member_epoch == epoch
            assert sum(len(each.partitions) for each in member.assignment) == 4
        _hear(world, sent, safe)


def _hear(world: World, sent: list[tuple[int, int, int]], safe: list[int]) -> None:
    for number, partition, offset in list(sent):
        reply = world.answer(number)
        if reply is not None:
            sent.remove((number, partition, offset))
            if isinstance(reply, CommitOffsetsReply) and not reply.refused:
                safe[partition] = max(safe[partition], offset)
