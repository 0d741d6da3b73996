"""What a node tells Prometheus and its health check: a snapshot, taken by the reactor and served by another thread.

Owns the metrics' names. Never reaches into the broker from a foreign thread: it reads the last snapshot only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from zbroker.broker.broker import Broker
from zbroker.broker.groups import Lag
from zbroker.node.links import Links
from zbroker.node.memory import resident_bytes
from zbroker.node.sockets import Sockets


class PartitionSample(msgspec.Struct, frozen=True):
    """One partition's numbers."""

    topic: str
    number: int
    start: int
    high_watermark: int
    end: int
    size: int
    records_in: int
    bytes_in: int
    leads: bool
    isr: int
    under_replicated: bool


class Snapshot(msgspec.Struct, frozen=True):
    """A node's numbers at one moment."""

    node: str
    state: str
    clients: int
    subscriptions: int
    partitions: tuple[PartitionSample, ...]
    counters: dict[str, int]
    disk_full: bool
    controller: bool
    epoch: int
    metadata_applied: int
    peers: dict[str, bool]
    leaderless: int
    nodes_down: int
    groups: int
    group_members: int
    group_rebalances: int
    group_commits: int
    lags: tuple[Lag, ...]


def take_snapshot(broker: Broker, sockets: Sockets, links: Links) -> Snapshot:
    """The present numbers; called by the reactor, about once a second."""
    partitions = [
        PartitionSample(
            partition.topic, number, partition.log.start_offset, partition.high_watermark,
            partition.log.end_offset, partition.log.size, partition.records_in, partition.bytes_in,
            partition.leads, partition.isr_count, partition.under_replicated,
        )
        for kept in broker.partitions.values()
        for number, partition in kept.items()
    ]  # fmt: skip
    metadata = broker.metadata
    groups, members, rebalances = broker.groups.count()
    return Snapshot(
        node=broker.settings.node, state=broker.state, clients=sockets.client_count(),
        subscriptions=sockets.subscription_count(), partitions=tuple(partitions),
        counters=dict(sockets.counters + links.counters + broker.mesh.counters),
        controller=broker.quorum.ready, epoch=broker.quorum.replica.epoch,
        metadata_applied=broker.quorum.applied,
        peers={name: peer.linked for name, peer in sorted(broker.mesh.peers.items())},
        disk_full=any(partition.log.full for kept in broker.partitions.values() for partition in kept.values()),
        leaderless=sum(state.leader is None for topic in metadata.topics.values() for state in topic.partitions),
        nodes_down=sum(not metadata.is_up(node) for node in metadata.nodes),
        groups=groups, group_members=members, group_rebalances=rebalances,
        group_commits=broker.groups.commits, lags=tuple(broker.groups.lags()),
    )  # fmt: skip


def exposition(snapshot: Snapshot) -> bytes:
    """The snapshot in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterator[Any]:
            return families(snapshot)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


def families(snapshot: Snapshot) -> Iterator[Any]:
    """The metric families, as prometheus-client wants them."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    yield GaugeMetricFamily(
        "zbroker_up", "1 while the node serves", value=float(snapshot.state == "serving")
    )
    yield GaugeMetricFamily("zbroker_clients", "clients that spoke lately", value=snapshot.clients)
    yield GaugeMetricFamily(
        "zbroker_subscriptions", "subscriptions of all clients", value=snapshot.subscriptions
    )
    yield GaugeMetricFamily(
        "zbroker_disk_full", "1 while a log has no room", value=float(snapshot.disk_full)
    )
    yield GaugeMetricFamily(
        "zbroker_resident_memory_bytes", "memory of the node's process", value=resident_bytes()
    )
    yield GaugeMetricFamily(
        "zbroker_controller", "1 while the node is the controller", value=float(snapshot.controller)
    )
    yield GaugeMetricFamily(
        "zbroker_controller_epoch", "epoch of the controller's election", value=snapshot.epoch
    )
    yield GaugeMetricFamily(
        "zbroker_metadata_applied", "metadata offset below which all is applied",
        value=snapshot.metadata_applied,
    )  # fmt: skip
    yield GaugeMetricFamily(
        "zbroker_leaderless_partitions", "partitions of the cluster that nobody leads",
        value=snapshot.leaderless,
    )  # fmt: skip
    yield GaugeMetricFamily(
        "zbroker_nodes_down",
        "nodes of the cluster that are taken for dead",
        value=snapshot.nodes_down,
    )
    yield from group_families(snapshot)
    linked = GaugeMetricFamily(
        "zbroker_peer_linked", "1 while the peer is linked", labels=("peer",)
    )
    for name, up in snapshot.peers.items():
        linked.add_metric((name,), float(up))
    yield linked
    labels = ("topic", "partition")
    gauges = {
        "log_start_offset": ("first offset kept", "start"),
        "high_watermark": ("first offset not committed", "high_watermark"),
        "log_end_offset": ("offset that the next record gets", "end"),
        "log_size_bytes": ("bytes on disk", "size"),
        "leader": ("1 where this node leads", "leads"),
        "in_sync_replicas": ("in-sync replicas, where this node leads, else 0", "isr"),
        "under_replicated": (
            "1 where this node leads and replicas are out of sync",
            "under_replicated",
        ),
    }
    for name, (text, field) in gauges.items():
        gauge = GaugeMetricFamily(f"zbroker_partition_{name}", text, labels=labels)
        for sample in snapshot.partitions:
            gauge.add_metric((sample.topic, str(sample.number)), float(getattr(sample, field)))
        yield gauge
    for name, text, field in (
        ("records_in", "records taken", "records_in"),
        ("bytes_in", "bytes of batches taken", "bytes_in"),
    ):
        counter = CounterMetricFamily(f"zbroker_partition_{name}", text, labels=labels)
        for sample in snapshot.partitions:
            counter.add_metric((sample.topic, str(sample.number)), getattr(sample, field))
        yield counter
    dropped = CounterMetricFamily(
        "zbroker_dropped", "replies, requests and clients turned away", labels=("reason",)
    )
    for reason, count in sorted(snapshot.counters.items()):
        dropped.add_metric((reason,), count)
    yield dropped


def group_families(snapshot: Snapshot) -> Iterator[Any]:
    """Those of consumer groups."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    yield GaugeMetricFamily(
        "zbroker_groups", "consumer groups coordinated here", value=snapshot.groups
    )
    yield GaugeMetricFamily(
        "zbroker_group_members", "members of those", value=snapshot.group_members
    )
    yield CounterMetricFamily(
        "zbroker_group_rebalances", "targets made", value=snapshot.group_rebalances
    )
    yield CounterMetricFamily(
        "zbroker_group_commits", "positions committed", value=snapshot.group_commits
    )
    lags = GaugeMetricFamily(
        "zbroker_group_lag",
        "records from the committed position to the high watermark",
        labels=("group", "topic", "partition"),
    )
    for lag in snapshot.lags:
        lags.add_metric((lag.group, lag.topic, str(lag.partition)), lag.lag)
    yield lags
