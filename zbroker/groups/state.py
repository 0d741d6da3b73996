"""What the records of one partition of `__groups` make: its groups, their members and their positions.

Replicated state: `apply` is its only mutator, uses no clock and no randomness, and gives the same state to everyone who
applied the same records. A compacted log gives the same in the end, whatever is missing from it on the way: so a
record is made true by itself, and a group is there as soon as anything of it is.

============================== =====================================================================================
record                         what becomes true
============================== =====================================================================================
group, with a value            the group's epoch, its assignor, since when it is empty
group, without                 the group is gone, when neither members nor positions are left
member, with a value           what the member subscribed to, may read, and has to release; it is the holder of both
member, without                the member is out, and holds nothing
offset, with a value           the position
offset, without                no position
============================== =====================================================================================
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from zbroker.groups.records import (
    GroupRecord,
    MemberRecord,
    MemberValue,
    OffsetRecord,
    OffsetValue,
    Record,
)

V = TypeVar("V")

TopicPartition = tuple[str, int]
"""A topic's id, and a partition's number."""


class Member(msgspec.Struct):
    """A member as it is known.

    Attributes:
        about: its record.
        assigned: what it may read, with the epoch at which each was given.
        releasing: what it has to give back, with the epochs at which each was given and revoked.
    """

    member: str
    about: MemberValue
    assigned: dict[TopicPartition, int]
    releasing: dict[TopicPartition, tuple[int, int]]

    @property
    def epoch(self) -> int:
        """The group's epoch at which its partitions last changed."""
        return self.about.epoch


class Group(msgspec.Struct):
    """One group.

    Attributes:
        known: there is a record of the group itself.
        epoch, assignor, empty_since: as in its record.
        members: by id.
        instances: ids of static members, by the name of the instance.
        holders: who holds each partition, released ones not.
        offsets: positions, by topic id and partition.
    """

    name: str
    known: bool = False
    epoch: int = 0
    assignor: str = "sticky"
    empty_since: int | None = None
    members: dict[str, Member] = {}
    instances: dict[str, str] = {}
    holders: dict[TopicPartition, str] = {}
    offsets: dict[str, dict[int, OffsetValue]] = {}

    @property
    def is_gone(self) -> bool:
        """Whether nothing is known of it."""
        return not (self.known or self.members or self.offsets)


class State:
    """All groups of one partition. Read it freely; change it only through `apply`."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}

    def apply(self, record: Record) -> None:
        """Makes one record true."""
        group = self.groups.get(record.key.group)
        if group is None:
            if record.value is None:
                return
            group = self.groups[record.key.group] = Group(record.key.group)
        match record:
            case OffsetRecord():
                _apply_offset(group, record)
            case MemberRecord():
                _apply_member(group, record)
            case GroupRecord():
                _apply_group(group, record)
        if group.is_gone:
            del self.groups[group.name]


def _apply_group(group: Group, record: GroupRecord) -> None:
    value = record.value
    group.known = value is not None
    if value is not None:
        group.epoch, group.assignor = value.epoch, value.assignor
        group.empty_since = value.empty_since


def _apply_offset(group: Group, record: OffsetRecord) -> None:
    _, topic_id, partition = record.key
    if record.value is not None:
        group.offsets.setdefault(topic_id, {})[partition] = record.value
        return
    positions = group.offsets.get(topic_id, {})
    positions.pop(partition, None)
    if not positions:
        group.offsets.pop(topic_id, None)


def _apply_member(group: Group, record: MemberRecord) -> None:
    name, value = record.key.member, record.value
    before = group.members.pop(name, None)
    if value is None:
        after: dict[TopicPartition, None] = {}
    else:
        member = Member(name, value, _flat(value.assigned), _flat(value.releasing))
        group.members[name] = member
        after = dict.fromkeys([*member.assigned, *member.releasing])
    if before is not None:
        for partition in (*before.assigned, *before.releasing):
            if partition not in after and group.holders.get(partition) == name:
                del group.holders[partition]
        instance = before.about.instance
        if instance is not None and group.instances.get(instance) == name:
            del group.instances[instance]
    for partition in after:
        group.holders[partition] = name
    if value is not None and value.instance is not None:
        group.instances[value.instance] = name


def _flat(nested: dict[str, dict[int, V]]) -> dict[TopicPartition, V]:
    return {
        (topic_id, partition): value
        for topic_id, values in nested.items()
        for partition, value in values.items()
    }


def nested(flat: dict[TopicPartition, V]) -> dict[str, dict[int, V]]:
    """Partitions by topic id, in order: as they stand in a record."""
    found: dict[str, dict[int, V]] = {}
    for (topic_id, partition), value in sorted(flat.items(), key=lambda item: item[0]):
        found.setdefault(topic_id, {})[partition] = value
    return found
