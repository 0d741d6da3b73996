"""The controller's decisions that bring partitions to other nodes: moves in two steps, and nodes that are drained.

Every function is pure, as in `controller`. A move first gives a partition its new replicas beside the old ones; once
the new ones are all in sync, the old ones go, and with them, where it has to, the leadership. So a partition never has
fewer copies than before, and a move that cannot be finished harms nothing. Owns both steps; the copying itself is what
replicas always do.
"""

from __future__ import annotations

from collections.abc import Sequence

from zbroker.cluster.controller import count, find_topic, usable
from zbroker.cluster.membership import hand_over_one
from zbroker.cluster.metadata import Metadata, PartitionState, TopicState
from zbroker.cluster.placement import place
from zbroker.cluster.records import (
    IsrChanged,
    LeaderAppointed,
    MetadataRecord,
    NodeDrained,
    ReplicasChanged,
)
from zbroker.errors import InvalidRequest, UnknownPartition


def move_partitions(
    state: Metadata,
    *,
    name: str | None,
    topic_id: str | None,
    partition: int | None,
    to: Sequence[str],
) -> list[MetadataRecord]:
    """Other replicas for one partition, or for all of a topic's; nothing where they are right, or on their way.

    Args:
        partition: which; None: all, spread so that as few as possible move.
        to: one partition's replicas, the preferred leader first; or the nodes over which to spread. Empty: all that
            may keep replicas.

    Raises:
        UnknownTopic, TopicChanged, UnknownPartition: there is none such.
        InvalidRequest: a node that is not there, is named twice, or cannot take a copy; or too few or too many.
        NotEnoughReplicas: too few nodes are up.
    """
    topic = find_topic(state, name, topic_id)
    moving = topic.partitions
    if partition is not None:
        if not 0 <= partition < len(topic.partitions):
            raise UnknownPartition(
                f"topic {topic.name!r} has partitions 0 to {len(topic.partitions) - 1}, found {partition}"
            )
        moving = [topic.partitions[partition]]
    _check_nodes(state, topic, moving, to)
    if partition is not None and to:
        if len(to) != topic.settings.replicas:
            raise InvalidRequest(
                f"topic {topic.name!r} keeps {topic.settings.replicas} replicas of each partition, and {len(to)} "
                "nodes are named"
            )
        placed = [list(to)]
    else:
        placed = _spread(state, topic, moving, to)
    first = partition or 0
    return [
        record
        for number, (each, target) in enumerate(zip(moving, placed, strict=True), first)
        for record in _begin(topic, number, each, target)
    ]


def _check_nodes(
    state: Metadata, topic: TopicState, moving: Sequence[PartitionState], to: Sequence[str]
) -> None:
    """Whoever is to get a copy must be there, and be up; who has one already may be down."""
    if len(set(to)) != len(to):
        raise InvalidRequest(f"a node is named twice: {', '.join(to)}")
    for node in to:
        if node not in state.nodes:
            raise InvalidRequest(
                f"there is no node {node!r}; the cluster has {', '.join(sorted(state.nodes))}"
            )
        why = state.why_unusable(node)
        if why is not None and not all(node in partition.replicas for partition in moving):
            raise InvalidRequest(f"{node} {why}, and cannot take a copy of topic {topic.name!r}")


def _spread(
    state: Metadata, topic: TopicState, moving: Sequence[PartitionState], to: Sequence[str]
) -> list[list[str]]:
    replicas = topic.settings.replicas
    if to and len(to) < replicas:
        raise InvalidRequest(
            f"topic {topic.name!r} keeps {replicas} replicas of each partition, and {len(to)} nodes are named"
        )
    loads = usable(state, replicas, without=topic.topic_id)
    others = [each for each in topic.partitions if not any(each is one for one in moving)]
    for each in others:
        count(loads, each)
    if to:
        loads = {node: load for node, load in loads.items() if node in to}
        if len(loads) < replicas:
            reasons = (f"{node} {why}" for node in to if (why := state.why_unusable(node)))
            raise InvalidRequest(f"too few of these nodes are up: {', '.join(reasons)}")
    kept = [each.target or each.replicas for each in moving]
    return place(loads, len(moving), replicas, kept=kept)


def _begin(
    topic: TopicState, number: int, partition: PartitionState, target: list[str]
) -> list[MetadataRecord]:
    """The first step: old and new replicas. Who was to be one by an earlier move and was never in sync is left out."""
    if target == (partition.target or partition.replicas):
        return []
    staying = [
        node
        for node in partition.replicas
        if partition.target is None
        or node in partition.isr
        or node in partition.last
        or node in target
    ]
    replicas = staying + [node for node in target if node not in staying]
    return [ReplicasChanged(topic.topic_id, number, replicas, target)]


def finish_moves(state: Metadata) -> list[MetadataRecord]:
    """The second step, of all partitions whose new replicas are all in sync and of which one can lead."""
    return [
        record
        for topic in state.topics.values()
        for number, partition in enumerate(topic.partitions)
        if partition.target is not None and set(partition.target) <= set(partition.isr)
        for record in _finish(state, topic, number, partition, partition.target)
    ]


def _finish(
    state: Metadata, topic: TopicState, number: int, partition: PartitionState, target: list[str]
) -> list[MetadataRecord]:
    records: list[MetadataRecord] = []
    isr = [node for node in partition.isr if node in target]
    if partition.leader not in target:
        up = sorted(filter(state.is_up, target), key=lambda node: node in state.drained)
        if partition.leader is None or not up:
            return []
        records.append(LeaderAppointed(topic.topic_id, number, up[0], partition.epoch + 1, isr))
    elif isr != partition.isr:
        records.append(IsrChanged(topic.topic_id, number, isr))
    return [*records, ReplicasChanged(topic.topic_id, number, list(target))]


def drain_node(state: Metadata, node: str, *, undo: bool) -> list[MetadataRecord]:
    """Takes all leaderships from a node that another can lead, until that is undone; a new start undoes nothing.

    Raises:
        InvalidRequest: there is no such node.
    """
    if node not in state.nodes:
        raise InvalidRequest(
            f"there is no node {node!r}; the cluster has {', '.join(sorted(state.nodes))}"
        )
    if undo:
        return [NodeDrained(node, False)] if node in state.drained else []
    records: list[MetadataRecord] = [] if node in state.drained else [NodeDrained(node, True)]
    for topic in state.topics.values():
        for number, partition in enumerate(topic.partitions):
            kept = (topic, number, partition)
            records += hand_over_one(state, kept, node, drained_too=False)
    return records


def leading(state: Metadata, node: str) -> int:
    """How many partitions a node leads."""
    return sum(
        partition.leader == node
        for topic in state.topics.values()
        for partition in topic.partitions
    )
