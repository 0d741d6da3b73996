"""The state that the metadata log makes: nodes, topics, leaders, producer ids.

Replicated state: `apply` is its only mutator, uses no clock and no randomness, and gives the same state on every node
that applied the same records. Decisions stand in `controller`. What has changed is noted for a reader, who clears the
notes: they are no part of the state.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy

import msgspec

from zbroker.cluster.records import (
    FEATURE_LEVEL,
    RECOVERY_LEVEL,
    ClusterFormed,
    FeatureLevelRaised,
    IsrChanged,
    IsrConfirmed,
    LeaderAppointed,
    LeaderRecovered,
    LogReported,
    MetadataRecord,
    NodeDrained,
    NodeFenced,
    NodeRegistered,
    ProducerIdsGranted,
    RecoveryBegan,
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


class Extent(msgspec.Struct, frozen=True):
    """How far a replica's log goes, as it said in one of its starts; see `LogReported`."""

    incarnation: int
    end: int
    last_epoch: int
    tail: int


class PartitionState(msgspec.Struct):
    """Who keeps and leads one partition.

    Attributes:
        replicas: nodes that keep a copy, the preferred leader first.
        isr: those of them that have all that is committed; never empty once there was a leader.
        unclean: the leader may lack what was committed.
        version: counts the changes: who proposes one names the last that it knows.
        target: who is to keep it, while the partition moves.
        disk: the one disk that has all that is committed, while the only node in sync is up on another one.
        last: the last in-sync replicas under which a leader is known to have lived, and those that joined since; disks
            by node name. Kept from feature level 2 on.
        recovering: all in-sync replicas stopped uncleanly; `isr` is who was in sync then, and nobody leads.
        reports: how far logs go, by node, while nobody leads.
        end: where the log of who leads after an unclean election ends: the rest is cut; -1 after any other.
        lost_from: what lay from this offset on may be missing since the last unclean election; -1 where nothing does.
    """

    replicas: list[str]
    leader: str | None = None
    epoch: int = -1
    isr: list[str] = []
    unclean: bool = False
    version: int = 0
    target: list[str] | None = None
    disk: str | None = None
    last: dict[str, str] = {}
    recovering: bool = False
    reports: dict[str, Extent] = {}
    end: int = -1
    lost_from: int = -1


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
            case IsrConfirmed():
                self._isr_confirmed(record)
            case RecoveryBegan():
                self._recovery_began(record)
            case LogReported():
                self._log_reported(record)
            case LeaderRecovered():
                self._leader_recovered(record)
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
            case FeatureLevelRaised():
                self._feature_level_raised(record)

    def _cluster_formed(self, record: ClusterFormed) -> None:
        assert self.cluster_id is None, "a cluster is formed once"
        _check_level(record.feature_level)
        self.cluster_id = record.cluster_id
        self.cluster_name = record.name
        self.feature_level = record.feature_level
        self.voters = dict(record.voters)
        self.nodes_touched = True

    def _feature_level_raised(self, record: FeatureLevelRaised) -> None:
        _check_level(record.level)
        assert record.level > self.feature_level, "feature levels only grow"
        self.feature_level = record.level
        for topic in self.topics.values():
            for partition in topic.partitions:
                partition.last = self._disks(partition.isr)
            self.touched[topic.topic_id] = None

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
        assert record.leader is None or record.leader in record.isr, "a leader is in sync"
        assert record.isr, "somebody has what is committed"
        assert set(record.isr) <= set(partition.replicas), record
        self._begin_epoch(partition, record.leader, record.epoch, record.isr)
        partition.unclean = record.unclean
        partition.disk = record.disk
        if record.unclean:
            partition.last = {}
        self._count_in(partition)
        self.touched[record.topic_id] = None

    def _begin_epoch(
        self, partition: PartitionState, leader: str | None, epoch: int, isr: Iterable[str]
    ) -> None:
        assert epoch > partition.epoch, "leader epochs only grow"
        partition.leader = leader
        partition.epoch = epoch
        partition.isr = list(isr)
        partition.unclean = partition.recovering = False
        partition.disk = None
        partition.end = -1
        partition.reports = {}
        partition.version += 1

    def _disks(self, nodes: Iterable[str]) -> dict[str, str]:
        return {node: self.nodes[node].disk_id for node in nodes}

    def _count_in(self, partition: PartitionState) -> None:
        """Who is in sync now has been so since a leader was last known to live."""
        if self.feature_level >= RECOVERY_LEVEL:
            partition.last = self._disks(partition.isr) | partition.last

    def _isr_changed(self, record: IsrChanged) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert partition.leader in record.isr, "a leader is in sync"
        assert set(record.isr) <= set(partition.replicas), record
        partition.isr = list(record.isr)
        partition.version += 1
        self._count_in(partition)
        self.touched[record.topic_id] = None

    def _isr_confirmed(self, record: IsrConfirmed) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert partition.leader is not None, "a leader confirms"
        partition.last = self._disks(partition.isr)
        self.touched[record.topic_id] = None

    def _recovery_began(self, record: RecoveryBegan) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert set(partition.isr) <= set(partition.last) <= set(partition.replicas), partition
        self._begin_epoch(partition, None, record.epoch, sorted(partition.last))
        partition.recovering = True
        self.touched[record.topic_id] = None

    def _log_reported(self, record: LogReported) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert partition.leader is None, "a leader's log needs no report"
        extent = Extent(record.incarnation, record.end, record.last_epoch, record.tail)
        partition.reports = {**partition.reports, record.node: extent}
        self.touched[record.topic_id] = None

    def _leader_recovered(self, record: LeaderRecovered) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert record.leader in partition.replicas, record
        self._begin_epoch(partition, record.leader, record.epoch, [record.leader])
        partition.unclean = True
        partition.end = record.end
        partition.lost_from = record.lost_from
        partition.last = self._disks([record.leader])
        self.touched[record.topic_id] = None

    def _replicas_changed(self, record: ReplicasChanged) -> None:
        partition = self.topics[record.topic_id].partitions[record.partition]
        assert set(partition.isr) <= set(record.replicas), record
        partition.replicas = list(record.replicas)
        partition.last = {
            node: disk for node, disk in partition.last.items() if node in record.replicas
        }
        partition.target = None if record.target is None else list(record.target)
        partition.version += 1
        self.touched[record.topic_id] = None


def _check_level(level: int) -> None:
    if level > FEATURE_LEVEL:
        raise UnsupportedVersion(
            f"the cluster is at feature level {level}, and this version knows {FEATURE_LEVEL}; start the version "
            "that wrote it, or a newer one"
        )
