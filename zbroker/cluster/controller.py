"""The controller's decisions: a request and the present metadata in, the records that carry it out.

Every function is pure: it reads the state, takes ids and names as arguments, and returns the records of one atomic
batch, in order; an empty list where the request is true already. Never applies what it decides: the log does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zbroker import topics
from zbroker.cluster.metadata import Metadata, PartitionState, TopicState
from zbroker.cluster.placement import Load, place
from zbroker.cluster.records import (
    FEATURE_LEVEL,
    ClusterFormed,
    FeatureLevelRaised,
    LeaderAppointed,
    MetadataRecord,
    ProducerIdsGranted,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
)
from zbroker.errors import (
    InvalidRequest,
    InvalidSetting,
    NotEnoughReplicas,
    TopicChanged,
    TopicExists,
    UnknownTopic,
)

PRODUCER_ID_BLOCK = 1000
"""Producer ids that a node takes at a time: one commit for that many producers."""


def form_cluster(cluster_id: str, name: str, voters: Mapping[str, str]) -> list[MetadataRecord]:
    """The records that begin a cluster; `voters` are disk ids by node name."""
    return [
        ClusterFormed(
            cluster_id=cluster_id, name=name, feature_level=FEATURE_LEVEL, voters=dict(voters)
        )
    ]


def raise_feature_level(state: Metadata, understood: Mapping[str, int]) -> list[MetadataRecord]:
    """Lets newer records be written once every node understands them.

    Args:
        understood: the newest feature level that each node which is linked understands, this one too.
    """
    everyone = [*state.nodes, *state.voters]
    level = min((understood.get(node, 0) for node in everyone), default=0)
    level = min(level, FEATURE_LEVEL)
    return [FeatureLevelRaised(level)] if 0 < state.feature_level < level else []


def create_topic(
    state: Metadata,
    *,
    name: str,
    given: Mapping[str, int | str],
    defaults: Mapping[str, topics.Value],
    topic_id: str,
    request_id: str,
) -> list[MetadataRecord]:
    """A new topic, or nothing where the same request made it already.

    Raises:
        InvalidTopic, InvalidSetting, TopicExists: with a sentence that says what to change.
        NotEnoughReplicas: too few of the cluster's nodes are up; the sentence names those that are not.
    """
    topics.check_name(name)
    existing = state.folded.get(name.lower())
    if existing is not None:
        topic = state.topics[state.ids[existing]]
        if existing == name and request_id and topic.request_id == request_id:
            return []
        differs = (
            "" if existing == name else f" (as {existing!r}; names may not differ only in case)"
        )
        raise TopicExists(f"topic {name!r} exists{differs}")
    settings = topics.create(topics.parse(given), defaults, nodes=len(state.nodes))
    replicas = place(usable(state, settings.replicas), settings.partitions, settings.replicas)
    return [
        TopicCreated(
            topic_id=topic_id,
            name=name,
            settings=settings,
            replicas=replicas,
            request_id=request_id,
        ),
        *appoint(topic_id, 0, replicas),
    ]


def alter_topic(
    state: Metadata, *, name: str, topic_id: str | None, given: Mapping[str, int | str]
) -> list[MetadataRecord]:
    """A topic's changed settings, and replicas for the partitions that it gains.

    Raises:
        UnknownTopic, TopicChanged, InvalidSetting, InvalidTopic: with a sentence that says what to change.
        NotEnoughReplicas: as for a new topic.
    """
    topics.check_own(name)
    topic = find_topic(state, name, topic_id)
    if not given:
        raise InvalidSetting(f"no setting of topic {name!r} was named to change")
    settings = topics.alter(topic.settings, topics.parse(given))
    if settings == topic.settings:
        return []
    present = len(topic.partitions)
    more = settings.partitions - present
    added = place(usable(state, settings.replicas), more, settings.replicas) if more else []
    return [
        TopicAltered(topic_id=topic.topic_id, settings=settings, added_replicas=added),
        *appoint(topic.topic_id, present, added),
    ]


def delete_topic(
    state: Metadata, *, name: str, topic_id: str | None, request_id: str
) -> list[TopicDeleted]:
    """A topic's end, or nothing where the same request ended it already.

    Raises:
        UnknownTopic, TopicChanged: there is none of that name, or it is another by now.
        InvalidTopic: it is the system's own.
    """
    topics.check_own(name)
    deleted = state.deletions.get(request_id) if request_id else None
    if deleted is not None and topic_id in (None, deleted):
        return []
    topic = find_topic(state, name, topic_id)
    return [TopicDeleted(topic_id=topic.topic_id, request_id=request_id)]


def grant_producer_ids(state: Metadata, node: str) -> list[MetadataRecord]:
    """The next block of producer ids, for one node."""
    return [ProducerIdsGranted(node=node, first=state.next_producer_id, count=PRODUCER_ID_BLOCK)]


def find_topic(state: Metadata, name: str | None, topic_id: str | None) -> TopicState:
    """The topic that a request means.

    Raises:
        UnknownTopic: there is none of that name or id.
        TopicChanged: there is one of that name, with another id.
        InvalidRequest: there is one of that id, with another name.
    """
    if topic_id is not None:
        topic = state.topics.get(topic_id)
        if topic is not None and name not in (None, topic.name):
            raise InvalidRequest(
                f"the request names topic {(name or '')[:260]!r}, and its topic_id is that of {topic.name!r}"
            )
        if topic is not None:
            return topic
        if name is None:
            raise UnknownTopic(
                f"there is no topic with the id {topic_id[:40]!r}; it may be deleted"
            )
        if name in state.ids:
            raise TopicChanged(
                f"topic {name!r} was deleted and made again: its id is {state.ids[name]} now",
                topic_id=state.ids[name],
            )
    elif name is not None:
        named = state.topic_named(name)
        if named is not None:
            return named
    raise UnknownTopic(
        f"there is no topic {(name or '')[:260]!r}; topics are made by `zbroker topic create`, "
        "not by using them"
    )


def usable(state: Metadata, replicas: int, without: str | None = None) -> dict[str, Load]:
    """The nodes that may get new replicas, with what each keeps and leads by preference.

    Args:
        replicas: how many of them are needed.
        without: id of a topic that is not counted.

    Raises:
        NotEnoughReplicas: there are fewer.
    """
    unusable = {node: why for node in state.nodes if (why := state.why_unusable(node))}
    loads = {
        name: Load(node.rack) for name, node in sorted(state.nodes.items()) if name not in unusable
    }
    if len(loads) < replicas:
        reasons = ", ".join(f"{node} {why}" for node, why in sorted(unusable.items()))
        have = ", ".join(loads) if loads else "none"
        raise NotEnoughReplicas(
            f"replicas: found {replicas}, and of the cluster's {len(state.nodes)} nodes only these can keep new "
            f"ones: {have} ({reasons or 'no other is registered'})",
            outcome_unknown=False,
        )
    for topic in state.topics.values():
        for partition in topic.partitions if topic.topic_id != without else ():
            count(loads, partition)
    return loads


def count(loads: Mapping[str, Load], partition: PartitionState) -> None:
    """Adds one partition to what its nodes keep and lead."""
    replicas = partition.target or partition.replicas
    for node in replicas:
        if node in loads:
            loads[node].keeps += 1
    if replicas[0] in loads:
        loads[replicas[0]].leads += 1


def appoint(topic_id: str, first: int, replicas: Sequence[Sequence[str]]) -> list[MetadataRecord]:
    """The first leaders of new partitions."""
    return [
        LeaderAppointed(
            topic_id=topic_id, partition=first + number, leader=nodes[0], epoch=0, isr=list(nodes)
        )
        for number, nodes in enumerate(replicas)
    ]
