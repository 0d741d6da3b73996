"""The controller's decisions: a request and the present metadata in, the records that carry it out.

Every function is pure: it reads the state, takes ids and names as arguments, and returns the records of one atomic
batch, in order; an empty list where the request is true already. Never applies what it decides: the log does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zbroker import topics
from zbroker.cluster.metadata import Metadata, TopicState
from zbroker.cluster.placement import place
from zbroker.cluster.records import (
    FEATURE_LEVEL,
    ClusterFormed,
    LeaderAppointed,
    MetadataRecord,
    ProducerIdsGranted,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
)
from zbroker.errors import InvalidSetting, TopicChanged, TopicExists, UnknownTopic

PRODUCER_ID_BLOCK = 1000
"""Producer ids that a node takes at a time: one commit for that many producers."""


def form_cluster(cluster_id: str, name: str, voters: Mapping[str, str]) -> list[MetadataRecord]:
    """The records that begin a cluster; `voters` are disk ids by node name."""
    return [
        ClusterFormed(
            cluster_id=cluster_id, name=name, feature_level=FEATURE_LEVEL, voters=dict(voters)
        )
    ]


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
    nodes = sorted(state.nodes)
    settings = topics.create(topics.parse(given), defaults, nodes=len(nodes))
    replicas = place(nodes, settings.partitions, settings.replicas, first=len(state.topics))
    return [
        TopicCreated(
            topic_id=topic_id,
            name=name,
            settings=settings,
            replicas=replicas,
            request_id=request_id,
        ),
        *_appoint(topic_id, 0, replicas),
    ]


def alter_topic(
    state: Metadata, *, name: str, topic_id: str | None, given: Mapping[str, int | str]
) -> list[MetadataRecord]:
    """A topic's changed settings, and replicas for the partitions that it gains.

    Raises:
        UnknownTopic, TopicChanged, InvalidSetting: with a sentence that says what to change.
    """
    topic = find_topic(state, name, topic_id)
    if not given:
        raise InvalidSetting(f"no setting of topic {name!r} was named to change")
    settings = topics.alter(topic.settings, topics.parse(given))
    if settings == topic.settings:
        return []
    present = len(topic.partitions)
    added = place(
        sorted(state.nodes), settings.partitions - present, settings.replicas, first=present
    )
    return [
        TopicAltered(topic_id=topic.topic_id, settings=settings, added_replicas=added),
        *_appoint(topic.topic_id, present, added),
    ]


def delete_topic(
    state: Metadata, *, name: str, topic_id: str | None, request_id: str
) -> list[MetadataRecord]:
    """A topic's end, or nothing where the same request ended it already.

    Raises:
        UnknownTopic, TopicChanged: there is none of that name, or it is another by now.
    """
    if request_id and request_id in state.deletions:
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
    """
    if topic_id is not None:
        topic = state.topics.get(topic_id)
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


def _appoint(topic_id: str, first: int, replicas: Sequence[Sequence[str]]) -> list[MetadataRecord]:
    """The first leaders of new partitions."""
    return [
        LeaderAppointed(
            topic_id=topic_id, partition=first + number, leader=nodes[0], epoch=0, isr=list(nodes)
        )
        for number, nodes in enumerate(replicas)
    ]
