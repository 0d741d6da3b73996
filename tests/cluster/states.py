"""Metadata for tests of decisions: nodes by letter, each on its own disk, and topics with replicas as told."""

from __future__ import annotations

from collections.abc import Sequence

from zbroker.cluster import membership, recovery
from zbroker.cluster.metadata import Metadata, PartitionState
from zbroker.cluster.records import (
    FEATURE_LEVEL,
    LeaderAppointed,
    LogReported,
    MetadataRecord,
    ReplicasChanged,
    TopicCreated,
)
from zbroker.topics import Fsync, TopicSettings


def apply(state: Metadata, records: Sequence[MetadataRecord]) -> list[MetadataRecord]:
    for record in records:
        state.apply(record)
    return list(records)


def register(
    state: Metadata,
    node: str,
    start: int = 1,
    disk: str = "",
    *,
    clean: bool = False,
    rack: str | None = None,
) -> list[MetadataRecord]:
    return apply(
        state,
        membership.register_node(
            state, node, disk or f"disk-{node}", start, "10.0.0.1", 5550, rack, clean=clean
        ),
    )


def nodes(names: str, racks: dict[str, str] | None = None) -> Metadata:
    state = Metadata()
    state.feature_level = FEATURE_LEVEL
    for name in names:
        register(state, name, rack=(racks or {}).get(name))
    return state


def topic(
    state: Metadata, *replicas: str, name: str = "t", fsync: Fsync = "always"
) -> list[PartitionState]:
    """A topic with these replicas, a letter each; the first leads, all are in sync."""
    settings = TopicSettings(partitions=len(replicas), replicas=len(replicas[0]), fsync=fsync)
    state.apply(TopicCreated(name, name, settings, [list(each) for each in replicas]))
    for number, each in enumerate(replicas):
        state.apply(LeaderAppointed(name, number, each[0], 0, list(each)))
    return state.topics[name].partitions


def set_isr(
    state: Metadata, leader: str | None, isr: str, *, number: int = 0, name: str = "t"
) -> None:
    partition = state.topics[name].partitions[number]
    state.apply(LeaderAppointed(name, number, leader, partition.epoch + 1, list(isr)))


def set_target(state: Metadata, replicas: str, target: str, *, number: int = 0) -> None:
    state.apply(ReplicasChanged("t", number, list(replicas), list(target)))


def shown(partition: PartitionState) -> tuple[str | None, str]:
    """Leader and ISR."""
    return partition.leader, "".join(sorted(partition.isr))


def report(
    state: Metadata,
    node: str,
    end: int,
    epoch: int = 1,
    *,
    tail: int = -1,
    name: str = "t",
    number: int = 0,
) -> list[MetadataRecord]:
    """A node says how far its log goes."""
    start = state.nodes[node].incarnation
    log = LogReported(name, number, node, start, end, epoch, max(end, tail))
    return apply(state, recovery.report_logs(state, node, start, [log]))
