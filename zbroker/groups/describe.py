"""A group as people see it: its members, where each stands on the way to its target, and its positions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from zbroker.groups import offsets
from zbroker.groups.catalog import Catalog
from zbroker.groups.rebalance import Plan, is_reached
from zbroker.groups.sessions import Seat, Sessions
from zbroker.groups.state import Group, Member, TopicPartition
from zbroker.protocol.messages import (
    DescribeGroupReply,
    GroupListing,
    GroupMember,
    TopicPartitions,
)

GroupState = Literal["empty", "stable", "assigning"]
MemberState = Literal["stable", "releasing", "waiting", "away"]


def state_of(group: Group, plan: Plan | None, *, pending: bool) -> GroupState:
    """Where a group stands; `pending`: a new target is due, so nobody can be said to have it."""
    if not group.members:
        return "assigning" if pending else "empty"
    reached = plan is not None and not pending and is_reached(group, plan)
    return "stable" if reached else "assigning"


def listing(group: Group, plan: Plan | None, *, pending: bool) -> GroupListing:
    """A group in a list."""
    state = state_of(group, plan, pending=pending)
    return GroupListing(group=group.name, state=state, members=len(group.members))


def describe(
    group: Group,
    plan: Plan | None,
    sessions: Sessions,
    catalog: Catalog,
    *,
    pending: bool,
    rebalances: int,
) -> DescribeGroupReply:
    """Everything of a group."""
    members = [
        _member(member, plan, sessions.find(group.name, name), sessions.clock, catalog)
        for name, member in sorted(group.members.items())
    ]
    return DescribeGroupReply(
        state=state_of(group, plan, pending=pending), epoch=group.epoch, assignor=group.assignor,
        rebalances=rebalances, members=members, offsets=offsets.fetch(group, None, catalog),
    )  # fmt: skip


def _member(
    member: Member, plan: Plan | None, seat: Seat | None, clock: int, catalog: Catalog
) -> GroupMember:
    about = member.about
    target = {} if plan is None else plan.wanted.get(member.member, {})
    return GroupMember(
        member=member.member, instance=about.instance, client=about.client, epoch=member.epoch,
        state=_state(member, target.keys(), seat), topics=about.topics,
        assignment=by_topic(member.assigned, catalog), target=by_topic(target, catalog),
        heard=0 if seat is None else clock - seat.heard,
    )  # fmt: skip


def _state(member: Member, target: Iterable[TopicPartition], seat: Seat | None) -> MemberState:
    if seat is not None and seat.away:
        return "away"
    if member.releasing:
        return "releasing"
    return "stable" if member.assigned.keys() == set(target) else "waiting"


def by_topic(partitions: Iterable[TopicPartition], catalog: Catalog) -> list[TopicPartitions]:
    """Partitions as they stand in messages: by topic, in order."""
    found: dict[str, list[int]] = {}
    for topic_id, number in sorted(partitions):
        found.setdefault(topic_id, []).append(number)
    return [
        TopicPartitions(
            topic_id=topic_id,
            topic=catalog.by_id[topic_id].name if topic_id in catalog.by_id else "",
            partitions=numbers,
        )
        for topic_id, numbers in found.items()
    ]
