"""What `Admin` and `AsyncAdmin` do with consumer groups; see `flows`.

Pure. Offsets of a group are moved only while it has no members: who reads would go on elsewhere than where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from zbroker.client.administering import OfGroup, Task
from zbroker.client.exchange import Outcome
from zbroker.client.flows import Flow, describe_topic, good, metadata
from zbroker.client.parts import parts_of
from zbroker.client.records import (
    GroupDescription,
    GroupOffset,
    GroupSummary,
    MemberDescription,
    OffsetChange,
    TopicPartition,
)
from zbroker.errors import (
    GroupNotEmpty,
    InvalidRequest,
    ServersUnreachable,
    UnknownGroup,
    UnknownPartition,
    UnknownTopic,
    ZBrokerError,
    from_wire,
)
from zbroker.protocol import messages
from zbroker.units import Address

To = (
    Literal["earliest", "latest"]
    | int
    | tuple[Literal["time", "shift"], int]
    | Mapping[TopicPartition, int]
)
"""Where a group is put: an offset by its meaning, the same one everywhere, a time, so many further, or each its own."""
Places = Iterable[TopicPartition | str] | None

LIST_TIMEOUT = 1.0
"""Seconds that a node has to tell its groups before it is asked whether it is still there."""
LIST_ROUNDS = 5


def groups() -> Flow[list[GroupSummary]]:
    """Every group, by name: each node tells those that it coordinates."""
    found: dict[str, messages.GroupListing] = {}
    told: set[str] = set()
    problem: ZBrokerError | None = None
    for _ in range(LIST_ROUNDS):
        reply = yield from metadata([])
        asked = [node for node in reply.nodes if node.alive and node.name not in told]
        outcomes = yield [
            Task(
                messages.ListGroups(), Address(node.host, node.port), attempts=5,
                timeout=LIST_TIMEOUT,
            )
            for node in asked
        ]  # fmt: skip
        problem = None
        for node, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, messages.ListGroupsReply):
                told.add(node.name)
                found.update((listing.group, listing) for listing in outcome.groups)
            else:
                problem = _error(outcome)
        if problem is None:
            return [
                GroupSummary(name, one.state, one.members) for name, one in sorted(found.items())
            ]
    assert problem is not None
    raise problem


def describe_group(name: str) -> Flow[GroupDescription]:
    """A group, its members, and how far it is behind."""
    (where,) = yield [Task(messages.FindCoordinator(group=name))]
    coordinator = good(where, messages.FindCoordinatorReply).node
    (outcome,) = yield [Task(messages.DescribeGroup(group=name), OfGroup(name))]
    reply = good(outcome, messages.DescribeGroupReply)
    owners = {
        place: member.member for member in reply.members for place in _flat(member.assignment)
    }
    committed = {TopicPartition(one.topic, one.partition): one for one in reply.offsets}
    heads = yield from _heads({place.topic for place in (*owners, *committed)})
    offsets = []
    for place in sorted({*owners, *committed}):
        one = committed.get(place)
        offset = None if one is None or one.offset < 0 else one.offset
        head = heads.get(place)
        lag = None if head is None or offset is None else max(0, head - offset)
        offsets.append(
            GroupOffset(
                *place, offset, head, lag, member=owners.get(place),
                time=None if one is None or one.time < 0 else one.time,
                note="" if one is None else one.note,
            )
        )  # fmt: skip
    return GroupDescription(
        name, coordinator, reply.state, reply.epoch, reply.assignor, reply.rebalances,
        tuple(_member(member) for member in reply.members), tuple(offsets),
    )  # fmt: skip


def reset_group(name: str, to: To, topics: Places, dry_run: bool) -> Flow[list[OffsetChange]]:
    """Puts a group elsewhere, within what there is in each partition."""
    committed = yield from _committed_without_members(name, missing_ok=topics is not None)
    places = yield from _chosen(committed, topics, to)
    targets = yield from _targets(places, to, committed)
    changes = [
        OffsetChange(*place, committed.get(place), targets[place][0]) for place in sorted(targets)
    ]
    moved = [one for one in changes if one.before != one.after]
    if moved and not dry_run:
        yield from _commit(name, {
            TopicPartition(one.topic, one.partition): targets[TopicPartition(one.topic, one.partition)]
            for one in moved
        })  # fmt: skip
    return changes


def delete_offsets(name: str, topics: Places) -> Flow[list[OffsetChange]]:
    """Forgets a group's offsets in topics or partitions: it begins there as if it had never read them."""
    committed = yield from _committed_without_members(name, missing_ok=False)
    wanted = list(topics or ())
    if not wanted:
        raise InvalidRequest("name the topics or partitions whose offsets are to be forgotten")
    gone = {place: (-1, -1) for place in committed if place in wanted or place.topic in wanted}
    if gone:
        yield from _commit(name, gone)
    return [OffsetChange(*place, committed[place], None) for place in sorted(gone)]


def delete_group(name: str) -> Flow[None]:
    """Forgets a group without members, and its offsets."""
    (outcome,) = yield [Task(messages.DescribeGroup(group=name), OfGroup(name))]
    good(outcome, messages.DescribeGroupReply)
    (outcome,) = yield [Task(messages.DeleteGroup(group=name), OfGroup(name))]
    if not isinstance(
        outcome, UnknownGroup
    ):  # which an attempt that seemed to fail has brought about
        good(outcome, messages.DeleteGroupReply)


# Parts of these ---


def _heads(topics: Iterable[str]) -> Flow[dict[TopicPartition, int]]:
    """High watermarks, of partitions whose leaders answer."""
    found: dict[TopicPartition, int] = {}
    for topic in sorted(topics):
        try:
            description = yield from describe_topic(topic)
        except UnknownTopic:
            continue
        for part in description.partitions:
            if part.high_watermark is not None:
                found[TopicPartition(topic, part.partition)] = part.high_watermark
    return found


def _committed_without_members(name: str, *, missing_ok: bool) -> Flow[dict[TopicPartition, int]]:
    """What a group has committed; raises `GroupNotEmpty` while it has members."""
    (outcome,) = yield [Task(messages.DescribeGroup(group=name), OfGroup(name))]
    if isinstance(outcome, UnknownGroup) and missing_ok:
        return {}
    reply = good(outcome, messages.DescribeGroupReply)
    if reply.members:
        who = ", ".join(
            sorted({member.instance or member.client or member.member for member in reply.members})
        )
        raise GroupNotEmpty(
            f"group {name!r} has members ({who}), which would not notice: stop them first",
            members=len(reply.members),
        )
    return {
        TopicPartition(one.topic, one.partition): one.offset
        for one in reply.offsets
        if one.offset >= 0
    }


def _chosen(
    committed: dict[TopicPartition, int], topics: Places, to: To
) -> Flow[dict[TopicPartition, str]]:
    """The partitions that are meant, with their topics' ids; those of topics named are all of them."""
    wanted: list[TopicPartition | str] = list(committed) if topics is None else list(topics)
    if topics is None and isinstance(to, Mapping):
        wanted = [TopicPartition(*place) for place in to]
    names = dict.fromkeys(one if isinstance(one, str) else one[0] for one in wanted)
    if not names:
        raise InvalidRequest("the group has committed nothing: name the topics to set offsets in")
    reply = yield from metadata(list(names))
    counts = {topic.name: topic for topic in reply.topics if topic.error is None}
    found: dict[TopicPartition, str] = {}
    for one in wanted:
        name = one if isinstance(one, str) else one[0]
        topic = counts.get(name)
        if topic is None:
            if topics is None and not isinstance(to, Mapping):
                continue  # it was deleted since
            raise UnknownTopic(f"there is no topic {name!r}", topic=name)
        numbers = range(len(topic.partitions)) if isinstance(one, str) else [one[1]]
        for number in numbers:
            if not 0 <= number < len(topic.partitions):
                raise UnknownPartition(f"topic {name!r} has no partition {number}", topic=name)
            found[TopicPartition(name, number)] = topic.topic_id
    return found


def _targets(
    places: dict[TopicPartition, str], to: To, committed: dict[TopicPartition, int]
) -> Flow[dict[TopicPartition, tuple[int, int]]]:
    """Where each partition is put, with the leader epoch before it where that is known."""
    if isinstance(to, Mapping):
        by_place = {TopicPartition(*place): offset for place, offset in to.items()}
        places = {place: topic_id for place, topic_id in places.items() if place in by_place}
    if isinstance(to, tuple) and to[0] == "shift":
        places = {place: topic_id for place, topic_id in places.items() if place in committed}
        if not places:
            raise InvalidRequest("the group has committed nothing there that could be shifted")
    outcomes = yield [
        Task(
            messages.Offsets(
                topic=place.topic, topic_id=topic_id, partition=place.partition,
                at=to if to in ("earliest", "latest") else "time" if _is_time(to) else "latest",
                time=to[1] if isinstance(to, tuple) and _is_time(to) else 0,
            ),
            (place.topic, place.partition),
        )
        for place, topic_id in places.items()
    ]  # fmt: skip
    found: dict[TopicPartition, tuple[int, int]] = {}
    for place, outcome in zip(places, outcomes, strict=True):
        reply = good(outcome, messages.OffsetsReply)
        if isinstance(to, int):
            offset, epoch = to, -1
        elif isinstance(to, Mapping):
            offset, epoch = by_place[place], -1
        elif isinstance(to, tuple) and to[0] == "shift":
            offset, epoch = committed[place] + to[1], -1
        else:
            offset, epoch = reply.offset, reply.epoch
        within = min(max(offset, reply.log_start), reply.high_watermark)
        found[place] = (within, epoch if within == offset else -1)
    return found


def _is_time(to: To) -> bool:
    return isinstance(to, tuple) and to[0] == "time"


def _commit(name: str, offsets: dict[TopicPartition, tuple[int, int]]) -> Flow[None]:
    commits = [
        messages.CommitOffsets(
            group=name,
            offsets=[
                messages.GroupOffset(
                    topic=place.topic, partition=place.partition, offset=offset, epoch=epoch
                )
                for place, (offset, epoch) in part.items()
            ],
        )
        for part in parts_of(dict(sorted(offsets.items())))
    ]
    outcomes = yield [Task(message, OfGroup(name)) for message in commits]
    for outcome in outcomes:
        for one in good(outcome, messages.CommitOffsetsReply).refused:
            raise from_wire(
                one.error or "internal",
                f"offset {one.offset} of {one.topic}/{one.partition} was not committed ({one.error})",
                {"topic": one.topic, "partition": one.partition},
            )


def _member(member: messages.GroupMember) -> MemberDescription:
    return MemberDescription(
        member.member, member.instance, member.client, member.epoch, member.state,
        tuple(member.topics), _flat(member.assignment), _flat(member.target), member.heard / 1000,
    )  # fmt: skip


def _flat(topics: list[messages.TopicPartitions]) -> tuple[TopicPartition, ...]:
    return tuple(
        sorted(
            TopicPartition(topic.topic, partition)
            for topic in topics
            for partition in topic.partitions
        )
    )


def _error(outcome: Outcome) -> ZBrokerError:
    if isinstance(outcome, ZBrokerError):
        return outcome
    return ServersUnreachable(f"the server answered with {type(outcome).__name__}")
