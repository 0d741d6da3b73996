"""The controller's decisions about nodes: who is up, who leads what, who is in sync.

Every function is pure, as in `controller`: the present metadata in, the records of one atomic batch out. Owns the rules
of appointment:

- a leader is in sync and up; where nobody in sync is up, there is no leader until somebody is;
- every appointment has a new epoch, and no node goes on with what it led before it started;
- the last in-sync replica stays in sync, dead or not: it alone is known to have everything that was committed;
- a new disk is in sync with nothing; a start after an unclean stop is in sync only with what is `fsync: always`, unless
  nobody else is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from zbroker.cluster.metadata import Metadata, PartitionState, TopicState
from zbroker.cluster.records import (
    IsrChanged,
    LeaderAppointed,
    MetadataRecord,
    NodeFenced,
    NodeRegistered,
)
from zbroker.errors import InvalidRequest, NotLeader, StaleEpoch

Reason = Literal["gone", "silent", "stopped"]


def register_node(
    state: Metadata,
    node: str,
    disk_id: str,
    incarnation: int,
    host: str,
    port: int,
    rack: str | None,
    *,
    clean: bool = False,
) -> list[MetadataRecord]:
    """A node's start; nothing where this start is registered already.

    Args:
        incarnation: which start on its disk this is.
        clean: its last stop was in order: all that it had written is on disk.

    Raises:
        InvalidRequest: a later start on the same disk is registered: this one is a leftover.
    """
    before = state.nodes.get(node)
    same_disk = before is not None and before.disk_id == disk_id
    if before is not None and same_disk and incarnation <= before.incarnation:
        if incarnation == before.incarnation and state.is_up(node):
            return []
        if incarnation < before.incarnation:
            raise InvalidRequest(
                f"start {incarnation} of node {node!r} comes after start {before.incarnation}: it is a leftover, "
                "or its data folder was put back from a copy; replace the node with an empty folder"
            )
    records: list[MetadataRecord] = [
        NodeRegistered(
            node=node, disk_id=disk_id, incarnation=incarnation, host=host, port=port, rack=rack
        )
    ]
    new_disk = before is not None and not same_disk
    for topic, number, partition in _kept_by(state, node):
        isr = list(partition.isr) or [node]
        lost = new_disk or (topic.settings.fsync != "always" and not clean and before is not None)
        if node in isr and lost and len(isr) > 1:
            isr.remove(node)
        up = [other for other in isr if other == node or state.is_up(other)]
        if partition.leader in (node, None):
            leader = _choose(partition, up, avoid=node if partition.leader == node else None)
            records.append(_appoint(topic, number, partition, leader, isr))
        elif isr != partition.isr:
            records.append(IsrChanged(topic_id=topic.topic_id, partition=number, isr=isr))
    return records


def fence_node(state: Metadata, node: str, reason: Reason) -> list[MetadataRecord]:
    """A node's end: it leads nothing and is in sync with nothing, but where it is the last."""
    if not state.is_up(node):
        return []
    records: list[MetadataRecord] = [
        NodeFenced(node=node, incarnation=state.nodes[node].incarnation, reason=reason)
    ]
    for topic, number, partition in _kept_by(state, node):
        isr = [other for other in partition.isr if other != node] or list(partition.isr)
        up = [other for other in isr if other != node and state.is_up(other)]
        if partition.leader == node:
            leader = _choose(partition, up)
            records.append(_appoint(topic, number, partition, leader, isr))
        elif isr != partition.isr:
            records.append(IsrChanged(topic_id=topic.topic_id, partition=number, isr=isr))
    return records


def change_isr(
    state: Metadata,
    leader: str,
    *,
    topic_id: str,
    number: int,
    epoch: int,
    version: int,
    isr: Sequence[str],
    incarnations: Mapping[str, int],
) -> list[MetadataRecord]:
    """What a leader proposes; definite either way.

    Args:
        version: of the partition, as the leader knew it.
        incarnations: under which start the leader knows each member.

    Raises:
        NotLeader: the proposer does not lead the partition, or there is none such.
        StaleEpoch: it does not know the newest of the partition or of a member.
        InvalidRequest: a member keeps no replica, or the leader is not among them.
    """
    topic = state.topics.get(topic_id)
    if topic is None or number >= len(topic.partitions):
        raise NotLeader(f"there is no partition {number} of topic {topic_id} any more")
    partition = topic.partitions[number]
    if partition.leader != leader or partition.epoch != epoch:
        raise NotLeader(
            f"{partition.leader} leads partition {number} of {topic.name!r} under epoch {partition.epoch}, "
            f"not {leader} under {epoch}"
        )
    if version != partition.version:
        raise StaleEpoch(
            f"partition {number} of {topic.name!r} is at version {partition.version}, not {version}"
        )
    if leader not in isr or not set(isr) <= set(partition.replicas):
        raise InvalidRequest(f"{sorted(isr)} cannot be in sync: replicas are {partition.replicas}")
    for node in isr:
        if not state.is_up(node) or state.nodes[node].incarnation != incarnations.get(node):
            raise StaleEpoch(f"{node} is not up, or not in the start that {leader} knows")
    if sorted(isr) == sorted(partition.isr):
        return []
    return [IsrChanged(topic_id=topic_id, partition=number, isr=sorted(isr))]


def hand_over(state: Metadata, node: str) -> list[MetadataRecord]:
    """Gives every leadership of a node to another in-sync replica, where there is one: before it stops."""
    records: list[MetadataRecord] = []
    for topic, number, partition in _kept_by(state, node):
        others = [other for other in partition.isr if other != node and state.is_up(other)]
        if partition.leader == node and others:
            leader = _choose(partition, others)
            records.append(_appoint(topic, number, partition, leader, list(partition.isr)))
    return records


def elect_anew(state: Metadata, *, topic_id: str, number: int, epoch: int) -> list[MetadataRecord]:
    """Another leader of one partition, since the present one cannot go on under its epoch."""
    topic = state.topics.get(topic_id)
    if topic is None or number >= len(topic.partitions):
        return []
    partition = topic.partitions[number]
    if partition.epoch != epoch or partition.leader is None:
        return []
    up = [node for node in partition.isr if state.is_up(node)]
    leader = _choose(partition, up, avoid=partition.leader)
    return [_appoint(topic, number, partition, leader, list(partition.isr))]


def prefer(state: Metadata) -> list[MetadataRecord]:
    """Leaderships back to the first replica of each partition, where it is in sync and up."""
    records: list[MetadataRecord] = []
    for topic in state.topics.values():
        for number, partition in enumerate(topic.partitions):
            first = partition.replicas[0]
            if partition.leader != first and first in partition.isr and state.is_up(first):
                records.append(_appoint(topic, number, partition, first, list(partition.isr)))
    return records


def _kept_by(state: Metadata, node: str) -> Iterator[tuple[TopicState, int, PartitionState]]:
    for topic in state.topics.values():
        for number, partition in enumerate(topic.partitions):
            if node in partition.replicas:
                yield topic, number, partition


def _choose(partition: PartitionState, up: Sequence[str], avoid: str | None = None) -> str | None:
    """The first replica, in their order, of those that may lead; `avoid` only where there is no other."""
    ranked = [node for node in partition.replicas if node in up]
    others = [node for node in ranked if node != avoid]
    return next(iter(others or ranked), None)


def _appoint(
    topic: TopicState, number: int, partition: PartitionState, leader: str | None, isr: list[str]
) -> LeaderAppointed:
    return LeaderAppointed(
        topic_id=topic.topic_id, partition=number, leader=leader, epoch=partition.epoch + 1, isr=isr
    )
