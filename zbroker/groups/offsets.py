"""The decisions about committed positions: who may commit what, what is answered, and when positions expire.

A member commits what it holds, released or not yet: a commit is refused where the partition was given at a later epoch
than the one that the member knows, or is not the member's. Others commit only while the group has no members.

Positions go with their topic (its id), with the group, and when the group has been empty for the retention, counted
from the moment that is recorded, whoever has coordinated it since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from zbroker.errors import (
    GroupNotEmpty,
    InvalidRequest,
    MemberFenced,
    NotOwned,
    StaleMemberEpoch,
    UnknownPartition,
    UnknownTopic,
)
from zbroker.groups.catalog import Catalog, TopicView
from zbroker.groups.records import (
    GroupKey,
    GroupRecord,
    GroupValue,
    OffsetKey,
    OffsetRecord,
    OffsetValue,
    Record,
)
from zbroker.groups.state import Group, Member, State
from zbroker.protocol.messages import CommitOffsets, GroupOffset, TopicPartitions

OFFSETS_MAX = 100_000
"""Positions of one group."""
ANSWER_MAX, POSITION_BYTES = 16 << 20, 64
"""Bytes of positions in one answer, where those that are wanted are named; and of one without its topic's names."""


def commit(
    group: Group | None, request: CommitOffsets, catalog: Catalog, wall: int
) -> tuple[list[Record], list[GroupOffset]]:
    """The records of what is committed, and what is refused, each with its error.

    Raises:
        MemberFenced: there is no such member, or it claims an epoch that it was never given.
        GroupNotEmpty: somebody who is no member commits, and the group has members.
        InvalidRequest: the group would have too many positions.
    """
    member = _committer(group, request)
    records: list[Record] = []
    refused: list[GroupOffset] = []
    if group is None or not group.known:
        records.append(
            GroupRecord(
                GroupKey(request.group),
                GroupValue(0 if group is None else group.epoch, empty_since=wall),
            )
        )
    _check_room(group, request)
    for position in request.offsets:
        topic, error = _look_up(position, catalog)
        if error is None and topic is not None and member is not None:
            error = _refusal(member, (topic.topic_id, position.partition), request.member_epoch)
        if error is not None or topic is None:
            refused.append(msgspec.structs.replace(position, error=error))
            continue
        key = OffsetKey(request.group, topic.topic_id, position.partition)
        if _is_overtaken(group, key, request):
            continue
        value = None
        if position.offset >= 0:
            said_by = request.member if request.number >= 0 else ""
            value = OffsetValue(
                position.offset, position.epoch, position.note, wall, said_by, request.number
            )
        records.append(OffsetRecord(key, value))
    return records, refused


def _is_overtaken(group: Group | None, key: OffsetKey, request: CommitOffsets) -> bool:
    """Whether a later commit of the same member stands: this one came by a connection that was given up since."""
    if group is None or not request.member or request.number < 0:
        return False
    stands = group.offsets.get(key.topic_id, {}).get(key.partition)
    return stands is not None and stands.member == request.member and stands.number > request.number


def _committer(group: Group | None, request: CommitOffsets) -> Member | None:
    """The member that commits; None for somebody else, who may."""
    if not request.member:
        if group is not None and group.members:
            raise GroupNotEmpty(
                f"group {request.group!r} has {len(group.members)} members, which alone commit; stop them first",
                members=len(group.members),
            )
        return None
    member = None if group is None else group.members.get(request.member)
    if member is None or request.member_epoch > member.epoch:
        raise MemberFenced(
            f"group {request.group!r} has no member {request.member!r} of epoch {request.member_epoch}: its session "
            "ended, or another took its name"
        )
    return member


def _check_room(group: Group | None, request: CommitOffsets) -> None:
    there = 0 if group is None else sum(map(len, group.offsets.values()))
    if there + len(request.offsets) <= OFFSETS_MAX:
        return
    known = {} if group is None else group.offsets
    new = sum(each.partition not in known.get(each.topic_id, {}) for each in request.offsets)
    if there + new > OFFSETS_MAX:
        raise InvalidRequest(
            f"group {request.group!r} has {there} positions, and takes at most {OFFSETS_MAX}"
        )


def _look_up(position: GroupOffset, catalog: Catalog) -> tuple[TopicView | None, str | None]:
    if position.topic_id:
        topic = catalog.by_id.get(position.topic_id)
    else:
        topic = catalog.by_name.get(position.topic)
    if topic is None:
        return None, UnknownTopic.code
    if position.partition >= len(topic.leaders):
        return topic, UnknownPartition.code
    return topic, None


def _refusal(member: Member, partition: tuple[str, int], epoch: int) -> str | None:
    """Why a member may not commit a partition at an epoch."""
    given = member.assigned.get(partition)
    if given is None:
        held = member.releasing.get(partition)
        if held is None:
            return NotOwned.code
        given = held[0]
    return StaleMemberEpoch.code if epoch < given else None


def fetch(
    group: Group | None, wanted: Sequence[TopicPartitions] | None, catalog: Catalog
) -> list[GroupOffset]:
    """The positions asked for, `offset: -1` where there is none; all that there are where nothing is named.

    Raises:
        InvalidRequest: more are named than an answer can hold.
    """
    if wanted is None:
        return [] if group is None else list(_all(group, catalog))
    size = sum(
        (len(each.topic) + len(each.topic_id) + POSITION_BYTES) * len(each.partitions)
        for each in wanted
    )
    if size > ANSWER_MAX:
        raise InvalidRequest(
            "the positions asked for are too many for one answer; ask for fewer at a time"
        )
    found: list[GroupOffset] = []
    for each in wanted:
        topic_id, name = each.topic_id, each.topic
        if not topic_id and name in catalog.by_name:
            topic_id = catalog.by_name[name].topic_id
        if topic_id in catalog.by_id:
            name = catalog.by_id[topic_id].name
        positions = {} if group is None else group.offsets.get(topic_id, {})
        for partition in each.partitions:
            found.append(_position(topic_id, name, partition, positions.get(partition)))
    return found


def _all(group: Group, catalog: Catalog) -> Iterator[GroupOffset]:
    named = [
        (catalog.by_id[topic_id].name, topic_id)
        for topic_id in group.offsets
        if topic_id in catalog.by_id
    ]
    for name, topic_id in sorted(named):
        for partition, value in sorted(group.offsets[topic_id].items()):
            yield _position(topic_id, name, partition, value)


def _position(topic_id: str, name: str, partition: int, value: OffsetValue | None) -> GroupOffset:
    if value is None:
        return GroupOffset(topic_id=topic_id, topic=name, partition=partition)
    return GroupOffset(
        topic_id=topic_id, topic=name, partition=partition, offset=value.offset, epoch=value.epoch,
        note=value.note, time=value.time,
    )  # fmt: skip


# What goes ---


def forget_group(group: Group) -> list[Record]:
    """The end of a group without members, and of its positions."""
    records: list[Record] = [
        OffsetRecord(OffsetKey(group.name, topic_id, partition), None)
        for topic_id, positions in group.offsets.items()
        for partition in positions
    ]
    return [*records, GroupRecord(GroupKey(group.name), None)]


def expired(state: State, catalog: Catalog, wall: int, retention: int) -> Iterator[list[Record]]:
    """What is not kept any longer, a group at a time: empty groups, and positions in topics that are gone."""
    for group in list(state.groups.values()):
        since = group.empty_since
        if not group.members and since is not None and wall - since >= retention:
            yield forget_group(group)
            continue
        gone = [topic_id for topic_id in group.offsets if topic_id not in catalog.by_id]
        if gone:
            yield [
                OffsetRecord(OffsetKey(group.name, topic_id, partition), None)
                for topic_id in gone
                for partition in group.offsets[topic_id]
            ]
