"""What clients hand to applications: records, where they are, and what the cluster looks like.

Plain values, all of which pickle and compare. Times are integers in milliseconds since the epoch, sizes are bytes.
Never holds a reference to a client.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

Headers = tuple[tuple[str, bytes | None], ...]


class TopicPartition(NamedTuple):
    """A partition of a topic; equal to the plain tuple `(topic, partition)`."""

    topic: str
    partition: int


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as a consumer gets it.

    `key` and `value` are bytes or None (or what the deserializers made of them); a `value` of None is a tombstone.
    `headers` is an ordered tuple of (name, bytes or None), names may repeat.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: Any
    value: Any
    headers: Headers


class RecordMetadata(msgspec.Struct, frozen=True, gc=False):
    """Where a record is.

    `offset` is -1 with `acks="none"`. `durability` is `"flushed"` (on disk, through fsync), `"written"` (in the
    operating system's cache) or `"none"` (handed to the socket).
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    durability: str


class NodeDescription(msgspec.Struct, frozen=True):
    """A node of the cluster, and its own state where it answered (None where it did not)."""

    name: str
    host: str
    port: int
    rack: str | None = None
    alive: bool = True
    """Whether the controller takes it to be up."""
    voter: bool = False
    """Whether it votes for the controller."""
    drained: bool = False
    """Whether it was told to lead nothing that another can lead."""
    software: str | None = None
    uptime: float | None = None
    """Seconds since it started."""
    clients: int | None = None
    partitions: int | None = None
    """Partitions kept there."""
    leading: int | None = None
    """Partitions led from there."""
    under_replicated: int | None = None
    size: int | None = None
    """Bytes of all its logs."""
    disk_full: bool | None = None


class UnhealthyPartition(msgspec.Struct, frozen=True):
    """A partition that wants an operator's eye, or is being moved."""

    topic: str
    partition: int
    leader: str | None
    """None: nobody takes or serves its records."""
    replicas: tuple[str, ...]
    missing: tuple[str, ...]
    """Replicas that are not in sync."""
    under_replicated: bool
    moving: bool
    """It has old and new replicas until the new ones are in sync."""
    unclean: bool
    """Its leader was elected out of the in-sync replicas: what was committed before may be missing."""
    waiting_for: tuple[str, ...] = ()
    """Nodes without which it has no leader, while it has none."""
    lost_from: int | None = None
    """What was committed from this offset on may be missing since an unclean election; None where nothing is."""


class ClusterDescription(msgspec.Struct, frozen=True):
    """The cluster as `Admin.cluster()` found it."""

    id: str
    name: str
    controller: str | None
    version: int
    """Offset in the metadata log; a larger one is newer."""
    nodes: tuple[NodeDescription, ...]
    unhealthy: tuple[UnhealthyPartition, ...] = ()
    """Partitions that are not as they should be, by topic and number."""


class PartitionDescription(msgspec.Struct, frozen=True):
    """A partition; what only its leader knows is None where the leader did not answer."""

    partition: int
    leader: str | None
    epoch: int
    replicas: tuple[str, ...]
    """Nodes that keep it, the preferred leader first; while it moves, the old and the new."""
    isr: tuple[str, ...]
    """Those of them that have all that is committed."""
    start_offset: int | None = None
    end_offset: int | None = None
    """Log end offset: the offset that the next record gets."""
    high_watermark: int | None = None
    """First offset that is not committed yet: consumers read up to here."""
    flushed_offset: int | None = None
    size: int | None = None
    """Bytes on disk."""
    segments: int | None = None
    records_rate: float | None = None
    """Records a second taken over the last seconds."""
    bytes_rate: float | None = None
    damaged: tuple[tuple[int, int], ...] = ()
    """Offset ranges that cannot be read."""
    unclean: bool = False
    """The leader was elected out of the in-sync replicas: what was committed before may be missing."""
    waiting_for: tuple[str, ...] = ()
    """Nodes without which it has no leader, while it has none."""
    lost_from: int | None = None
    """What was committed from this offset on may be missing since an unclean election; None where nothing is."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Replicas that are not in sync."""
        return tuple(node for node in self.replicas if node not in self.isr)


class TopicDescription(msgspec.Struct, frozen=True):
    """A topic with its settings, in the words in which people write them, and its partitions in order."""

    name: str
    id: str
    settings: dict[str, str | int]
    partitions: tuple[PartitionDescription, ...]


class GroupSummary(msgspec.Struct, frozen=True):
    """A consumer group in a list."""

    name: str
    state: str
    """`"empty"` (no members), `"stable"` (all have what they are to have) or `"assigning"` (partitions move)."""
    members: int


class MemberDescription(msgspec.Struct, frozen=True):
    """A member of a group."""

    id: str
    instance: str | None
    """A static member's name."""
    client: str
    """Its `client_id`."""
    epoch: int
    state: str
    """`"stable"`, `"releasing"` (it is to give some up), `"waiting"` (others are to), or `"away"` (a static member
    between two starts)."""
    topics: tuple[str, ...]
    """Names and patterns that it subscribes to."""
    assignment: tuple[TopicPartition, ...]
    """What it may read now."""
    target: tuple[TopicPartition, ...]
    """What it is to have in the end."""
    heard: float
    """Seconds since its last heartbeat."""


class GroupOffset(msgspec.Struct, frozen=True):
    """Where a group is in a partition."""

    topic: str
    partition: int
    offset: int | None
    """The first offset that is not done yet; None where none is committed."""
    high_watermark: int | None
    """First offset that is not committed yet by producers; None where the leader did not answer."""
    lag: int | None
    """Offsets that the group has before it; None where that is not known."""
    member: str | None = None
    """The id of the member that reads it."""
    time: int | None = None
    """When it was committed."""
    note: str = ""


class GroupDescription(msgspec.Struct, frozen=True):
    """A consumer group as `Admin.describe_group` found it."""

    name: str
    coordinator: str
    """The node that coordinates it."""
    state: str
    """As in `GroupSummary`."""
    epoch: int
    """Grows with each change of members, subscriptions or topics."""
    assignor: str
    rebalances: int
    """How often partitions were assigned anew since the coordinator took over."""
    members: tuple[MemberDescription, ...]
    offsets: tuple[GroupOffset, ...]
    """By topic and partition: what is committed, and what members read without a commit so far."""

    @property
    def lag(self) -> int:
        """Of all partitions of which it is known."""
        return sum(one.lag or 0 for one in self.offsets)


class OffsetChange(msgspec.Struct, frozen=True):
    """What a reset does to a group's offset in a partition; None where none is committed."""

    topic: str
    partition: int
    before: int | None
    after: int | None
