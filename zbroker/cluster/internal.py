"""The controller's decisions about the system's own topics: made when first needed, with more replicas as nodes join.

Every function is pure, as in `controller`. An internal topic has min(3, nodes) replicas of each partition, as a topic
that is made later would. Owns how it grows: first replicas are added beside those that there are, and only once they
are in sync do commits need them (`min_insync`), so that growing never stops what works.
"""

from __future__ import annotations

import msgspec

from zbroker import topics
from zbroker.cluster.controller import appoint, usable
from zbroker.cluster.metadata import Metadata, TopicState
from zbroker.cluster.placement import place
from zbroker.cluster.records import (
    MetadataRecord,
    ReplicasChanged,
    TopicAltered,
    TopicCreated,
)
from zbroker.topics import MIB, TopicSettings

REPLICAS_MAX = 3

SETTINGS: dict[str, TopicSettings] = {
    topics.GROUPS: TopicSettings(
        partitions=6,
        fsync="always",
        cleanup="compact",
        retention=None,
        segment_size=16 * MIB,
        max_batch=4 * MIB,
    )
}
"""What internal topics there are, and how each is made; replicas are added."""


def make_topic(state: Metadata, name: str, topic_id: str) -> list[MetadataRecord]:
    """An internal topic; nothing where it is there.

    Raises:
        NotEnoughReplicas: no node is up that may keep it.
    """
    if name in state.ids:
        return []
    replicas = max(1, _replicas_wanted(state))
    settings = _with_replicas(SETTINGS[name], replicas)
    placed = place(usable(state, replicas), settings.partitions, replicas)
    return [
        TopicCreated(topic_id=topic_id, name=name, settings=settings, replicas=placed),
        *appoint(topic_id, 0, placed),
    ]


def grow(state: Metadata) -> list[MetadataRecord]:
    """What internal topics lack for as many replicas as the nodes that are up can keep: the next step of one."""
    for name in SETTINGS:
        topic = state.topic_named(name)
        if topic is None or any(each.target is not None for each in topic.partitions):
            continue
        records = _add_replicas(state, topic) or _need_replicas(topic)
        if records:
            return records
    return []


def _replicas_wanted(state: Metadata) -> int:
    able = sum(state.why_unusable(node) is None for node in state.nodes)
    return min(REPLICAS_MAX, able)


def _with_replicas(settings: TopicSettings, replicas: int) -> TopicSettings:
    return msgspec.structs.replace(settings, replicas=replicas, min_insync=min(2, replicas))


def _add_replicas(state: Metadata, topic: TopicState) -> list[MetadataRecord]:
    """More replicas of each partition, beside those that there are."""
    wanted = _replicas_wanted(state)
    if wanted <= topic.settings.replicas:
        return []
    if not all(state.is_up(node) for each in topic.partitions for node in each.replicas):
        return []  # who is down keeps its copy, and is not a place for another
    loads = usable(state, wanted, without=topic.topic_id)
    kept = [each.replicas for each in topic.partitions]
    if not all(node in loads for replicas in kept for node in replicas):
        return []
    placed = place(loads, len(kept), wanted, kept=kept)
    settings = msgspec.structs.replace(topic.settings, replicas=wanted)
    records: list[MetadataRecord] = [TopicAltered(topic_id=topic.topic_id, settings=settings)]
    for number, (partition, target) in enumerate(zip(topic.partitions, placed, strict=True)):
        staying = partition.replicas
        replicas = staying + [node for node in target if node not in staying]
        records.append(ReplicasChanged(topic.topic_id, number, replicas, target))
    return records


def _need_replicas(topic: TopicState) -> list[MetadataRecord]:
    """Commits need two replicas in sync, as soon as every partition has them."""
    settings = topic.settings
    needed = min(2, settings.replicas)
    if needed <= settings.min_insync or any(len(each.isr) < needed for each in topic.partitions):
        return []
    changed = msgspec.structs.replace(settings, min_insync=needed)
    return [TopicAltered(topic_id=topic.topic_id, settings=changed)]
