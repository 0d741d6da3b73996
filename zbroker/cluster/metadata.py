"""The state that the metadata log makes: nodes, topics, leaders, producer ids.

Replicated state: `apply` is its only mutator, uses no clock and no randomness, and gives the same state on every node
that applied the same records. Decisions stand in `controller`. What has changed is noted for a reader, who clears the
notes: they are no part of the state.
"""

from __future__ import annotations

from copy import copy

import msgspec

from zbroker.cluster.records import (
    FEATURE_LEVEL,
    ClusterFormed,
    IsrChanged,
    LeaderAppointed,
    MetadataRecord,
    NodeDrained,
    NodeFenced,
    NodeRegistered,
    ProducerIdsGranted,
    ReplicasChanged,
    TopicAltered,
    TopicCreated,
    TopicDeleted,
    VoterReplacing,
    VotersChanged,
)
from zbroker.errors import UnsupportedVersion
from zbroker.topics import TopicSettings

DELETIONS_REMEMBERED = 1000
"""How many requests that deleted a topic are known again when they are repeated."""


class PartitionState(msgspec.Struct):
    """Who keeps and leads one partition.

    Attributes:
        replicas: nodes that keep a copy, the preferred leader first.
        isr: those of them that have all that is committed; never empty once there was a leader.
        unclean: the leader may lack what was committed.
        version: counts the changes: who proposes one names the last that it knows.
        target: who is to keep it, while the partition moves.
        disk: the one disk that has all that is committed, while the only node in sync is up on another one.
    """

    replicas: list[str]
    leader: str | None = None
    epoch: int = -1
    isr: list[str] = []
    unclean: bool = False
    version: int = 0
    target: list[str] | None = None
    disk: str | None = None


class TopicState(msgspec.Struct):
    """One topic."""

    topic_id: str
    name: str
    settings: TopicSettings
    request_id: str
    partitions: list[PartitionState]


class Metadata:
    """The cluster as the applied records describe it. Read it freely; change it only through `apply`."""

    def __init__(self) -> None:
        self.cluster_id: str | None = None
        self.cluster_name = ""
        self.feature_level = 0
        self.voters: dict[str, str] = {}
        """Who votes: disk ids by node name. A leader's log may know of a newer set, which is in force already."""
        self.replacing: str | None = None
        """The node that is to vote again once its new disk has caught up."""
        self.nodes: dict[str, NodeRegistered] = {}
        self.fenced: dict[str, str] = {}
        """Nodes that are taken for dead or have stopped, each with the reason."""
        self.drained: dict[str, None] = {}
        """Nodes that are to lead nothing that another can lead."""
        self.topics: dict[str, TopicState] = {}
        """Topics by id, in the order of their creation."""
        self.ids: dict[str, str] = {}
        """Topic ids by name."""
        self.folded: dict[str, str] = {}
        """Topic names by their case-folded form: two that differ only in case are refused."""
        self.next_producer_id = 0
        self.deletions: dict[str, str] = {}
        """Topic ids by the request that deleted them, the latest ones."""
        self.touched: dict[str, None] = {}
        """Ids of the topics that have changed, those that are deleted too, since a reader cleared this."""
        self.deleted: dict[str, None] = {}
        """Ids of the topics of whose deletion a record was applied: only that lets files go. A reader clears it."""
        self.nodes_touched = False
        """Whether nodes have come, gone or changed since a reader cleared this."""

    def copy(self) -> Metadata:
        """The same state, without notes for a reader; nothing is shared that changes (lists are never changed)."""
        same = Metadata()
        for name, value in vars(self).items():
            setattr(same, name, dict(value) if isinstance(value, dict) else value)
        same.topics = {
            topic_id: msgspec.structs.replace(topic, partitions=list(map(copy, topic.partitions)))
            for topic_id, topic in self.topics.items()
        }
        same.touched, same.deleted, same.nodes_touched = {}, {}, False
        return same

    def is_up(self, node: str) -> bool:
        """Whether a node is registered and not fenced."""
        return node in self.nodes and node not in self.fenced

    def why_unusable(self, node: str) -> str | None:
        """Why a node gets no new replicas, in words for people; None where it may."""
        if node not in self.nodes:
            return "is not a node of the cluster"
        if node in self.fenced:
            return f"is down ({self.fenced[node]})"
        return "is drained" if node in self.drained else None

    def topic_named(self, name: str) -> TopicState | None:
        """The topic of that name, if there is one."""
        topic_id = self.ids.get(name)
        return None if topic_id is None else self.topics[topic_id]

    def apply(self, record: MetadataRecord) -> None:
        """Makes one record true."""
        match record:
            case TopicCreated():
                self._topic_created(record)
            case TopicAltered():
                self._topic_altered(record)
            case TopicDeleted():
                self._topic_deleted(record)
            case LeaderAppointed():
                self._leader_appointed(record)
            case IsrChanged():
                self._isr_changed(record)
            case NodeRegistered():
                self.nodes[record.node] = record
                self.fenced.pop(record.node, None)
                self.nodes_touched = True
            case NodeFenced():
                assert self.nodes[record.node].incarnation == record.incarnation, record
                self.fenced[record.node] = record.reason
                self.nodes_touched = True
            case ReplicasChanged():
                self._replicas_changed(record)
            case NodeDrained():
                self.drained.pop(record.node, None)
                if record.drained:
                    self.drained[record.node] = None
                self.nodes_touched = True
            case VotersChanged():
                self.voters = dict(record.voters)
                if self.replacing in self.voters:
                    self.replacing = None
                self.nodes_touched = True
            case VoterReplacing():
                self.replacing = record.node
            case ProducerIdsGranted():
                self.next_producer_id = max(self.next_producer_id, record.first + record.count)
            case ClusterFormed():
                self._cluster_formed(record)

    def _cluster_formed(self, record: ClusterFormed) -> None:
        assert self.cluster_id is None, "a cluster is formed once"
        if record.feature_level > FEATURE_LEVEL:
            raise UnsupportedVersion(
                f"the cluster is at feature level {record.feature_level}, and this version knows "
                f"{FEATURE_LEVEL}; start the version that wrote it, or a newer one"
            )
        self.cluster_id = record.cluster_id
        self.cluster_name = record.name
        self.feature_level = record.feature_level
        self.voters = dict(record.voters)
        self.nodes_touched = True

    def _topic_created(self, record: TopicCreated) -> None:
        assert record.name.lower() not in self.folded, record.name
        self.topics[record.topic_id] = TopicState(
            topic_id=record.topic_id,
            name=record.name,
            settings=record.settings,
            request_id=record.request_id,
            partitions=[PartitionState(list(replicas)) for replicas in record.replicas],
        )
        self.ids[record.name] = record.topic_id
        self.folded[record.name.lower()] = record.name
        self.touched[record.topic_id] = None

    def _topic_altered(self, record: TopicAltered) -> None:
        topic = self.topics[record.topic_id]
        topic.settings = record.settings
        added = [PartitionState(list(replicas)) for replicas in record.added_replicas]
        topic.partitions = [*topic.partitions, *added]
        self.touched[record.topic_id] = None

    def _topic_deleted(self, record: TopicDeleted) -> None:
        topic = self.topics.pop(record.topic_id)
        del self.ids[topic.name]
        del self.folded[topic.name.lower()]
        self.touched[record.topic_id] = self.deleted[record.topic_id] = None
        if record.request_id:
            self.deletions[record.request_id] = record.topic_id
            if len(self.deletions) > DELETIONS_REMEMBERED:
                del self.deletions[next(iter(self.deletions))]

    def _leader_appointed(self, record: LeaderAppointed) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert record.epoch > partition.epoch, "leader epochs only grow"
        assert record.leader is None or record.leader in record.isr, "a leader is in sync"
        assert record.isr, "somebody has what is committed"
        assert set(record.isr) <= set(partition.replicas), record
        partition.leader = record.leader
        partition.epoch = record.epoch
        partition.isr = list(record.isr)
        partition.unclean = record.unclean
        partition.disk = record.disk
        partition.version += 1
        self.touched[record.topic_id] = None

    def _isr_changed(self, record: IsrChanged) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert partition.leader in record.isr, "a leader is in sync"
        assert set(record.isr) <= set(partition.replicas), record
        partition.isr = list(record.isr)
        partition.version += 1
        self.touched[record.topic_id] = None

    def _replicas_changed(self, record: ReplicasChanged) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert set(partition.isr) <= set(record.replicas), record
        partition.replicas = list(record.replicas)
        partition.target = None if record.target is None else list(record.target)
        partition.version += 1
        self.touched[record.topic_id] = None
