"""The controller's decisions about nodes: who is up, who leads what, who is in sync.

Every function is pure, as in `controller`: the present metadata in, the records of one atomic batch out. Owns the rules
of appointment:

- a leader is in sync and up; where nobody in sync is up, there is no leader until somebody is;
- every appointment has a new epoch, and no node goes on with what it led before it started;
- a node that is drained leads only what nobody else can lead;
- the last in-sync replica stays in sync, dead or not: it alone is known to have everything that was committed;
- a start after an unclean stop is in sync only with what is `fsync: always`; where nobody else is, `recovery` begins;
- a new disk is in sync with nothing. Where nobody else is in sync, what was committed is on the old disk alone: the
  partition has no leader until that disk is back, or until a person gives it up (`recovery.accept_loss`, or by deleting
  the topic). An empty log that led would be taken for the whole, and would empty the other replicas too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from zbroker.cluster import recovery
from zbroker.cluster.metadata import Metadata, PartitionState, TopicState
from zbroker.cluster.records import (
    IsrChanged,
    IsrConfirmed,
    LeaderAppointed,
    MetadataRecord,
    NodeFenced,
    NodeRegistered,
)
from zbroker.errors import InvalidRequest, NotLeader, StaleEpoch

Reason = Literal["gone", "silent", "stopped"]
Kept = tuple[TopicState, int, PartitionState]


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
        incarnation: which start this is: larger for each one on a disk; those on two disks differ, in no order.
        clean: its last stop was in order: all that it had written is on disk.

    Raises:
        InvalidRequest: a later start on the same disk is registered: this one is a leftover.
    """
    before = state.nodes.get(node)
    same_disk = before is not None and before.disk_id == disk_id
    same_start = same_disk and before is not None and before.incarnation == incarnation
    if same_start and state.is_up(node):
        return []
    if same_disk and before is not None and incarnation < before.incarnation:
        raise InvalidRequest(
            f"start {incarnation} of node {node!r} comes after start {before.incarnation}: it is a leftover, "
            "or its data folder was put back from a copy; replace the node with an empty folder"
        )
    records: list[MetadataRecord] = [
        NodeRegistered(
            node=node, disk_id=disk_id, incarnation=incarnation, host=host, port=port, rack=rack
        )
    ]
    for kept in _kept_by(state, node):
        topic, _, partition = kept
        if partition.recovering:
            continue
        whole = before is None or same_start or clean or topic.settings.fsync == "always"
        had = before.disk_id if before is not None else disk_id
        if partition.disk is not None and node in partition.isr:
            had = partition.disk
        if had == disk_id:
            records += _returned(state, kept, node, whole=whole)
        else:
            records += _emptied(state, kept, node, had)
    return records


def _returned(state: Metadata, kept: Kept, node: str, *, whole: bool) -> list[MetadataRecord]:
    """One partition of a node that is up again, on the disk that it had."""
    topic, _, partition = kept
    isr = partition.isr
    if isr == [node] and not whole and recovery.may_lack(state, topic):
        return recovery.begin(kept)
    if node in isr and len(isr) > 1 and not whole:
        isr = _without(isr, node)
    if partition.leader not in (node, None):
        return _change_isr(kept, isr)
    up = [each for each in isr if each == node or _can_lead(state, partition, each)]
    if not up and isr == partition.isr and partition.leader is None:
        return []
    avoid = node if partition.leader == node else None
    return [_appoint(kept, _choose(state, partition, up, avoid=avoid), isr)]


def _emptied(state: Metadata, kept: Kept, node: str, had: str) -> list[MetadataRecord]:
    """One partition of a node that is up on another disk than the one that it `had`."""
    topic, _, partition = kept
    if node not in partition.isr or partition.disk is not None:
        return []
    if partition.isr == [node] and recovery.may_lack(state, topic) and len(partition.last) > 1:
        return recovery.begin(kept)
    if partition.isr == [node]:
        return [_appoint(kept, None, [node], disk=had)]
    isr = _without(partition.isr, node)
    if partition.leader not in (node, None):
        return _change_isr(kept, isr)
    up = [each for each in isr if _can_lead(state, partition, each)]
    return [_appoint(kept, _choose(state, partition, up), isr)]


def fence_node(state: Metadata, node: str, reason: Reason) -> list[MetadataRecord]:
    """A node's end: it leads nothing and is in sync with nothing, but where it is the last."""
    if not state.is_up(node):
        return []
    records: list[MetadataRecord] = [
        NodeFenced(node=node, incarnation=state.nodes[node].incarnation, reason=reason)
    ]
    for kept in _kept_by(state, node):
        _, _, partition = kept
        isr = _without(partition.isr, node) or partition.isr
        if partition.leader == node:
            up = [each for each in isr if each != node and _can_lead(state, partition, each)]
            records.append(_appoint(kept, _choose(state, partition, up), isr))
        elif partition.leader is not None:
            records += _change_isr(kept, isr)
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
    """What a leader proposes; definite either way. What was accepted is accepted again, since proposals are repeated.

    Args:
        version: of the partition, as the leader knew it.
        incarnations: under which start the leader knows each member.

    Raises:
        NotLeader: the proposer does not lead the partition, or there is none such.
        StaleEpoch: it does not know the newest of the partition or of a member.
        InvalidRequest: a member keeps no replica, or the leader is not among them.
    """
    topic = state.topics.get(topic_id)
    if topic is None or not 0 <= number < len(topic.partitions):
        raise NotLeader(f"there is no partition {number} of topic {topic_id} any more")
    partition = topic.partitions[number]
    if partition.leader != leader or partition.epoch != epoch:
        raise NotLeader(
            f"{partition.leader} leads partition {number} of {topic.name!r} under epoch {partition.epoch}, "
            f"not {leader} under {epoch}"
        )
    wanted = sorted(set(isr))
    kept = (topic, number, partition)
    if version in (partition.version, partition.version - 1) and wanted == sorted(partition.isr):
        return _confirm(state, kept, wanted)
    if version != partition.version:
        raise StaleEpoch(
            f"partition {number} of {topic.name!r} is at version {partition.version}, not {version}"
        )
    if leader not in wanted or not set(wanted) <= set(partition.replicas):
        raise InvalidRequest(f"{wanted} cannot be in sync: replicas are {partition.replicas}")
    for node in wanted:
        if not state.is_up(node) or state.nodes[node].incarnation != incarnations.get(node):
            raise StaleEpoch(f"{node} is not up, or not in the start that {leader} knows")
    return [*_change_isr(kept, wanted), *_confirm(state, kept, wanted)]


def _confirm(state: Metadata, kept: Kept, isr: Sequence[str]) -> list[MetadataRecord]:
    """A leader that speaks for an ISR lives: whoever is not in it is not waited for."""
    topic, number, partition = kept
    now = {node: state.nodes[node].disk_id for node in isr}
    if not recovery.may_lack(state, topic) or now | partition.last == now:
        return []
    return [IsrConfirmed(topic.topic_id, number)]


def hand_over(state: Metadata, node: str) -> list[MetadataRecord]:
    """Gives every leadership of a node to another in-sync replica, where there is one: before it stops."""
    return [
        record
        for kept in _kept_by(state, node)
        for record in hand_over_one(state, kept, node, drained_too=True)
    ]


def hand_over_one(
    state: Metadata, kept: Kept, node: str, *, drained_too: bool
) -> list[LeaderAppointed]:
    """The same for one partition; `drained_too`: a drained node may take it."""
    _, _, partition = kept
    others = [
        each
        for each in partition.isr
        if each != node
        and _can_lead(state, partition, each)
        and (drained_too or each not in state.drained)
    ]
    if partition.leader != node or not others:
        return []
    return [_appoint(kept, _choose(state, partition, others), partition.isr)]


def elect_anew(
    state: Metadata, node: str, *, topic_id: str, number: int, epoch: int
) -> list[MetadataRecord]:
    """Another leader of one partition, since the present one, who says so, cannot go on under its epoch."""
    topic = state.topics.get(topic_id)
    if topic is None or not 0 <= number < len(topic.partitions):
        return []
    partition = topic.partitions[number]
    if partition.epoch != epoch or partition.leader != node:
        return []
    up = [node for node in partition.isr if _can_lead(state, partition, node)]
    leader = _choose(state, partition, up, avoid=partition.leader)
    return [_appoint((topic, number, partition), leader, partition.isr)]


def prefer(state: Metadata) -> list[LeaderAppointed]:
    """Leaderships back to the first replica of each partition, where that may lead; away from drained nodes."""
    records: list[LeaderAppointed] = []
    for kept in _all(state):
        _, _, partition = kept
        leader, first = partition.leader, partition.replicas[0]
        if leader is None:
            continue
        in_sync = first in partition.isr and _can_lead(state, partition, first)
        if leader != first and in_sync and first not in state.drained:
            records.append(_appoint(kept, first, partition.isr))
        elif leader in state.drained:
            records += hand_over_one(state, kept, leader, drained_too=False)
    return records


def _all(state: Metadata) -> Iterator[Kept]:
    for topic in state.topics.values():
        for number, partition in enumerate(topic.partitions):
            yield topic, number, partition


def _kept_by(state: Metadata, node: str) -> Iterator[Kept]:
    return (kept for kept in _all(state) if node in kept[2].replicas)


def _without(isr: Sequence[str], node: str) -> list[str]:
    return [each for each in isr if each != node]


def _can_lead(state: Metadata, partition: PartitionState, node: str) -> bool:
    """Whether an in-sync replica is up, on the disk that is in sync."""
    return state.is_up(node) and partition.disk in (None, state.nodes[node].disk_id)


def _choose(
    state: Metadata, partition: PartitionState, up: Sequence[str], avoid: str | None = None
) -> str | None:
    """The first replica, in their order, of those that may lead; `avoid`, and drained ones, only if nobody else may."""
    ranked = [node for node in partition.replicas if node in up]
    return min(ranked, key=lambda node: (node == avoid, node in state.drained), default=None)


def _appoint(
    kept: Kept,
    leader: str | None,
    isr: Sequence[str],
    *,
    unclean: bool = False,
    disk: str | None = None,
) -> LeaderAppointed:
    topic, number, partition = kept
    return LeaderAppointed(
        topic_id=topic.topic_id,
        partition=number,
        leader=leader,
        epoch=partition.epoch + 1,
        isr=list(isr),
        unclean=unclean,
        disk=disk,
    )


def _change_isr(kept: Kept, isr: Sequence[str]) -> list[MetadataRecord]:
    topic, number, partition = kept
    if sorted(isr) == sorted(partition.isr):
        return []
    return [IsrChanged(topic_id=topic.topic_id, partition=number, isr=sorted(isr))]
