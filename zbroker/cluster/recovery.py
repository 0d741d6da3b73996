"""Who leads a partition of which nobody is known to have everything: the longest log of the highest epoch.

Every function is pure, as in `controller`. A node that stopped uncleanly may lack what its topic's `fsync` let it
count before it was flushed, so it leaves the ISR. Where all in-sync replicas stopped so, who came back last need not
have most: the partition waits for the last known ISR, and whoever has most leads. Owns that wait and that choice, and
the choice where a person gives up what nobody has (`accept_loss`).

The last known ISR (`PartitionState.last`) is who was in sync when a leader was last known to live. Nodes that are
fenced or come back leave the ISR at once, and one after the other all may have left it with no leader alive in between;
so they stay in `last` until a leader says that it lives (`IsrConfirmed`), which whoever leads does at once.

========== ============================================== ========== ===================================================
partition  on                                             next       effect
========== ============================================== ========== ===================================================
led        its last in-sync replica is back, and had      recovering a new epoch without leader; `isr` is the last known
           stopped uncleanly                                         ISR, for people to see
led        the same, on an empty disk, and others are in  recovering the same
           the last known ISR
leaderless a replica says how far its log goes            leaderless it is noted, for whoever gives up what is missing
recovering the same                                       recovering it is noted
recovering everyone who counts has said so in its         led        `LeaderRecovered`: unclean, in sync alone; its log
           present start, and who has most is up                     is cut where a hole begins that a power loss left
recovering a node is in another start                     recovering what it said before does not count
recovering a node is on another disk                      recovering it does not count: its records are gone with its
                                                                     disk, unless that comes back
either     a person gives up what is missing              led        `LeaderRecovered`: the one that has most
========== ============================================== ========== ===================================================

A report holds for a whole start: without leader nothing is appended, and what was read from a disk is flushed before
it is told of. All of this is in the metadata log, and so goes on wherever the controller is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zbroker.cluster.metadata import Extent, Metadata, PartitionState, TopicState
from zbroker.cluster.records import (
    RECOVERY_LEVEL,
    LeaderAppointed,
    LeaderRecovered,
    LogReported,
    MetadataRecord,
    RecoveryBegan,
)
from zbroker.errors import InvalidRequest, NotReady

Kept = tuple[TopicState, int, PartitionState]


def may_lack(state: Metadata, topic: TopicState) -> bool:
    """Whether an unclean stop may cost a replica of the topic what counted as committed."""
    return state.feature_level >= RECOVERY_LEVEL and topic.settings.fsync != "always"


def begin(kept: Kept) -> list[MetadataRecord]:
    """All in-sync replicas have stopped uncleanly: the last known ones are waited for."""
    topic, number, partition = kept
    return [RecoveryBegan(topic.topic_id, number, partition.epoch + 1)]


def is_unconfirmed(state: Metadata, topic: TopicState, partition: PartitionState) -> bool:
    """Whether the leader is to say that it lives, so that nobody is waited for who is out of sync."""
    return (
        may_lack(state, topic) and partition.leader is not None and not _is_last(state, partition)
    )


def _is_last(state: Metadata, partition: PartitionState) -> bool:
    return partition.last == {node: state.nodes[node].disk_id for node in partition.isr}


# Reports ---


def report_logs(
    state: Metadata, node: str, incarnation: int, reports: Iterable[LogReported]
) -> list[MetadataRecord]:
    """How far logs of a node go; what is known already, or of something that is over, is passed over.

    Raises:
        InvalidRequest: a log knows an epoch that there has not been, or is whole beyond its end.
    """
    records: list[MetadataRecord] = []
    if state.feature_level < RECOVERY_LEVEL or not state.is_up(node):
        return records
    if state.nodes[node].incarnation != incarnation:
        return records
    for report in reports:
        topic = state.topics.get(report.topic_id)
        if topic is None or not 0 <= report.partition < len(topic.partitions):
            continue
        partition = topic.partitions[report.partition]
        if partition.leader is not None or node not in partition.replicas:
            continue
        if report.last_epoch > partition.epoch or report.end > report.tail:
            raise InvalidRequest(
                f"{node} says that partition {report.partition} of {topic.name!r} is whole up to {report.end} of "
                f"{report.tail} there, in epoch {report.last_epoch}; it is in epoch {partition.epoch}"
            )
        if extent_of(state, partition, node) is None:
            records.append(report)
    return records


def extent_of(state: Metadata, partition: PartitionState, node: str) -> Extent | None:
    """How far a replica's log goes, as it said in its present start; None where it has not said so."""
    extent = partition.reports.get(node)
    registered = state.nodes.get(node)
    if extent is None or registered is None or registered.incarnation != extent.incarnation:
        return None
    return extent


def _counts(state: Metadata, partition: PartitionState, node: str) -> bool:
    """Whether a member of the last known ISR is on the disk that it had then, as far as is known."""
    registered = state.nodes.get(node)
    return registered is not None and registered.disk_id == partition.last.get(node)


def waiting_for(state: Metadata, partition: PartitionState) -> list[str]:
    """The nodes without which the partition has no leader: those that are to report, or to be up."""
    if partition.leader is not None:
        return []
    if not partition.recovering:
        return list(partition.isr)
    counting = [node for node in partition.isr if _counts(state, partition, node)]
    silent = [node for node in counting if extent_of(state, partition, node) is None]
    if silent or not counting:
        return silent or list(partition.isr)
    return _with_most(state, partition, counting)


def hangs_on(state: Metadata, partition: PartitionState, node: str) -> bool:
    """Whether the partition is about to have a leader: only what this node says, or the decision on it, is missing."""
    return (
        partition.recovering
        and _counts(state, partition, node)
        and waiting_for(state, partition) == [node]
    )


def _with_most(state: Metadata, partition: PartitionState, nodes: Sequence[str]) -> list[str]:
    """Of nodes that have all reported, those with the longest log of the highest epoch."""
    extents = {node: extent_of(state, partition, node) for node in nodes}
    sizes = {
        node: (extent.last_epoch, extent.end)
        for node, extent in extents.items()
        if extent is not None
    }
    most = max(sizes.values(), default=None)
    return [node for node in partition.replicas if node in sizes and sizes[node] == most]


# Decisions ---


def finish_recoveries(state: Metadata) -> list[MetadataRecord]:
    """A leader for every partition of which everyone who counts has reported, and who has most is up."""
    return [
        record
        for topic in state.topics.values()
        for number, partition in enumerate(topic.partitions)
        if partition.recovering
        for record in finish(state, (topic, number, partition))
    ]


def finish(state: Metadata, kept: Kept) -> list[MetadataRecord]:
    """A leader for one partition, where it is known who that is to be."""
    _, _, partition = kept
    counting = [node for node in partition.isr if _counts(state, partition, node)]
    if any(extent_of(state, partition, node) is None for node in counting):
        return []
    leader = _first_up(state, _with_most(state, partition, counting))
    return [] if leader is None else [_recovered(state, kept, leader, counting)]


def _first_up(state: Metadata, nodes: Iterable[str]) -> str | None:
    up = [node for node in nodes if state.is_up(node)]
    return min(up, key=lambda node: node in state.drained, default=None)


def _recovered(state: Metadata, kept: Kept, leader: str, known: Iterable[str]) -> LeaderRecovered:
    """The appointment; what all of `known` have is not lost.

    One of them may have more than the others that was never committed, while what was committed in its place is gone:
    so what only some have may not be what was committed.
    """
    topic, number, partition = kept
    extents = {node: extent_of(state, partition, node) for node in known}
    extent = extents[leader]
    assert extent is not None
    # A hole blocks copying, not reading: where there is nobody to copy to, what lies behind it stays.
    end = extent.tail if len(partition.replicas) == 1 else extent.end
    lost_from = min(each.end for each in extents.values() if each is not None)
    return LeaderRecovered(topic.topic_id, number, leader, partition.epoch + 1, end, lost_from)


def accept_loss(
    state: Metadata, *, topic_id: str, number: int, node: str | None = None, epoch: int = -1
) -> list[LeaderAppointed | LeaderRecovered]:
    """A person gives up what nobody who is up has: a replica leads with what it has itself.

    Args:
        node: who is to lead; None: who has the longest log of the highest epoch, of those that are up and not on an
            empty disk in the place of a lost one.
        epoch: the partition's, when the person looked at it; -1: whatever it is. What was accepted under it is accepted
            again, since requests are repeated; and one that was long on its way does nothing to what happened since.

    Raises:
        InvalidRequest: the partition has a leader, or the node keeps no replica of it or is not up, or nobody is.
        NotReady: somebody who could lead has not said yet how far its log goes; ask again.
    """
    topic = state.topics.get(topic_id)
    if topic is None or not 0 <= number < len(topic.partitions):
        raise InvalidRequest(f"there is no partition {number} of topic {topic_id}")
    partition = topic.partitions[number]
    name = f"partition {number} of {topic.name!r}"
    if 0 <= epoch == partition.epoch - 1 and partition.unclean and partition.leader is not None:
        return []
    if partition.leader is not None:
        raise InvalidRequest(f"{name} has a leader, {partition.leader}: nothing has to be given up")
    if epoch not in (-1, partition.epoch):
        raise InvalidRequest(
            f"{name} is in epoch {partition.epoch}, and was in {epoch} when it was decided to give it up: look again"
        )
    if node is None:
        candidates = _candidates(state, partition, name)
    elif node in partition.replicas and state.is_up(node):
        candidates = [node]
    else:
        raise InvalidRequest(
            f"{node} cannot lead {name}: it has to be up, and one of {', '.join(partition.replicas)}"
        )
    if state.feature_level < RECOVERY_LEVEL:
        return [
            LeaderAppointed(
                topic_id, number, candidates[0], partition.epoch + 1, [candidates[0]], unclean=True
            )
        ]
    silent = [each for each in candidates if extent_of(state, partition, each) is None]
    if silent:
        raise NotReady(
            f"{', '.join(silent)} {'has' if len(silent) == 1 else 'have'} not said yet how much of {name} there is"
        )
    leader = _first_up(state, _with_most(state, partition, candidates))
    assert leader is not None
    return [_recovered(state, (topic, number, partition), leader, [leader])]


def _candidates(state: Metadata, partition: PartitionState, name: str) -> list[str]:
    """Who may lead where nobody has everything: an empty disk that led would empty all other replicas too."""
    emptied = [node for node in partition.replicas if _is_emptied(state, partition, node)]
    others = [node for node in partition.replicas if node not in emptied]
    up = [node for node in others or emptied if state.is_up(node)]
    if not up:
        waiting = f"start {' or '.join(others or emptied)}"
        raise InvalidRequest(
            f"no replica of {name} is up that could lead in the place of the lost one: {waiting}"
        )
    return sorted(up, key=lambda node: node in state.drained)


def _is_emptied(state: Metadata, partition: PartitionState, node: str) -> bool:
    """Whether a node that had everything, or most, is registered on another disk."""
    if state.feature_level < RECOVERY_LEVEL:
        return node in partition.isr
    registered = state.nodes.get(node)
    had = partition.last.get(node)
    return registered is not None and had is not None and registered.disk_id != had
