"""From the present owners to a new target, without a moment at which a partition has two owners.

A *target* says who is to have each partition in the end. Each member goes there by itself, and only its own record
changes with each step:

==================================== ===============================================================================
a partition of the member's          what its record says next
==================================== ===============================================================================
in its target, held by nobody        assigned, given at the group's present epoch
in its target, held by another       nothing yet: it is given when that one's release, or end, is in the log
assigned, not in its target          releasing, revoked at the group's present epoch: the member still holds it
releasing, in its target again       assigned, as it was given before
releasing, the member says that it   free, if the member said so at the epoch of the revocation or later: what it said
is released                          before that may have crossed a reply that gave the partition
==================================== ===============================================================================

A record that gives a partition comes behind the one that says it is free, so that every beginning of the log has at
most one holder of each. Nothing here is changed: these are functions from the state to records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import msgspec

from zbroker.groups.assignment import Candidate, assign
from zbroker.groups.catalog import Catalog
from zbroker.groups.records import MemberValue
from zbroker.groups.state import Group, Member, TopicPartition, nested


class Plan(msgspec.Struct):
    """A target.

    Attributes:
        assignor: how it was made.
        wanted: each member's partitions.
        owners: who is to have each partition.
        topics: the topics that the members' subscriptions meant, and how many partitions each had.
    """

    assignor: str
    wanted: dict[str, dict[TopicPartition, None]]
    owners: dict[TopicPartition, str]
    topics: dict[str, int]


def make_plan(
    group: Group | None, members: Mapping[str, MemberValue], before: Plan | None, catalog: Catalog
) -> Plan:
    """The target of a group whose members are these, joining ones among them."""
    candidates: dict[str, Candidate] = {}
    for name, about in members.items():
        candidates[name] = Candidate(
            topics=catalog.matching(about.topics),
            order=about.instance or name,
            rack=about.rack,
            before=_before(group, name, before),
        )
    assignor = choose_assignor(members)
    target = assign(assignor, candidates, catalog)
    return Plan(
        assignor=assignor,
        wanted={name: dict.fromkeys(partitions) for name, partitions in target.items()},
        owners={each: name for name, partitions in target.items() for each in partitions},
        topics=topics_meant(members, catalog),
    )


def _before(group: Group | None, name: str, before: Plan | None) -> Collection[TopicPartition]:
    """What a member was to have, or where no target is known, has: what it is releasing last."""
    if before is not None and name in before.wanted:
        return before.wanted[name]
    member = None if group is None else group.members.get(name)
    return () if member is None else [*member.assigned, *member.releasing]


def topics_meant(members: Mapping[str, MemberValue], catalog: Catalog) -> dict[str, int]:
    """The topics that subscriptions mean, with the number of partitions of each."""
    different = dict.fromkeys(tuple(about.topics) for about in members.values())
    return catalog.counts(
        dict.fromkeys(each for topics in different for each in catalog.matching(topics))
    )


def choose_assignor(members: Mapping[str, MemberValue]) -> str:
    """The one that most members name; `sticky` where as many name each."""
    counts = Counter(about.assignor for about in members.values())
    return min(counts, key=lambda name: (-counts[name], name != "sticky", name), default="sticky")


def is_reached(group: Group, plan: Plan) -> bool:
    """Whether everyone has its target, and holds nothing else."""
    return all(
        not member.releasing and member.assigned.keys() == plan.wanted.get(name, {}).keys()
        for name, member in group.members.items()
    )


def next_step(group: Group, plan: Plan, member: Member) -> MemberValue | None:
    """The member's record as it should be by now, at the group's present epoch; None where it is so."""
    wanted = plan.wanted.get(member.member, {})
    holders, epoch = group.holders, group.epoch
    assigned: dict[TopicPartition, int] = {}
    for partition in wanted:
        if partition in member.assigned:
            assigned[partition] = member.assigned[partition]
        elif partition in member.releasing:
            assigned[partition] = member.releasing[partition][0]
        elif partition not in holders:
            assigned[partition] = epoch
    releasing = {
        partition: epochs
        for partition, epochs in member.releasing.items()
        if partition not in wanted
    }
    for partition, given in member.assigned.items():
        if partition not in wanted:
            releasing[partition] = (given, epoch)
    if assigned == member.assigned and releasing == member.releasing:
        return None
    return msgspec.structs.replace(
        member.about, epoch=epoch, assigned=nested(assigned), releasing=nested(releasing)
    )


def released(
    member: Member, owned: Collection[TopicPartition], at_epoch: int
) -> list[TopicPartition]:
    """What a member has released, by what it says to own and the epoch that it knew when it said so."""
    return [
        partition
        for partition, (_, revoked) in member.releasing.items()
        if partition not in owned and at_epoch >= revoked
    ]


def without(member: Member, partitions: Collection[TopicPartition]) -> MemberValue:
    """The member's record once it has released some."""
    left = {each: epochs for each, epochs in member.releasing.items() if each not in partitions}
    return msgspec.structs.replace(member.about, releasing=nested(left))
