"""The records of the metadata log: everything that a cluster must remember, as typed structs.

Each is one record's value, a MessagePack map whose `kind` says which it is. A new kind is gated by the feature level
that the log records: a node that meets a kind it does not know stops rather than guess.
"""

from __future__ import annotations

import msgspec

from zbroker.errors import UnsupportedVersion
from zbroker.topics import TopicSettings

FEATURE_LEVEL = 2
"""The newest feature level that this version understands."""
RECOVERY_LEVEL = 2
"""From this level on, replicas report how far their logs go, and the longest leads where all stopped uncleanly."""


class ClusterFormed(msgspec.Struct, tag_field="kind", tag="cluster_formed", frozen=True):
    """The first record of all: the cluster's identity and its voters, each a node and its disk."""

    cluster_id: str
    name: str
    feature_level: int
    voters: dict[str, str]


class NodeRegistered(msgspec.Struct, tag_field="kind", tag="node_registered", frozen=True):
    """A process start of a node, which may lead and follow from now on. It ends what the node led before."""

    node: str
    disk_id: str
    incarnation: int
    host: str
    port: int
    rack: str | None = None


class NodeFenced(msgspec.Struct, tag_field="kind", tag="node_fenced", frozen=True):
    """A node is taken for dead, or has stopped: it leads nothing until it registers again.

    `reason` is `gone` (its port refused), `silent` (no heartbeat in time) or `stopped` (it left in order).
    """

    node: str
    incarnation: int
    reason: str


class TopicCreated(msgspec.Struct, tag_field="kind", tag="topic_created", frozen=True):
    """A topic, its resolved settings, and the replicas of each partition, the preferred leader first."""

    topic_id: str
    name: str
    settings: TopicSettings
    replicas: list[list[str]]
    request_id: str = ""


class TopicAltered(msgspec.Struct, tag_field="kind", tag="topic_altered", frozen=True):
    """A topic's new settings, and the replicas of the partitions that it gained."""

    topic_id: str
    settings: TopicSettings
    added_replicas: list[list[str]] = []


class TopicDeleted(msgspec.Struct, tag_field="kind", tag="topic_deleted", frozen=True):
    """A topic is gone; only this record lets its files go."""

    topic_id: str
    request_id: str = ""


class LeaderAppointed(msgspec.Struct, tag_field="kind", tag="leader_appointed", frozen=True):
    """Who leads a partition, under which epoch, and who is in sync; `unclean`: what was committed may be missing.

    `disk`: there is no leader, because the last in-sync replica came back on another disk; this one has the records.
    """

    topic_id: str
    partition: int
    leader: str | None
    epoch: int
    isr: list[str]
    unclean: bool = False
    disk: str | None = None


class IsrChanged(msgspec.Struct, tag_field="kind", tag="isr_changed", frozen=True):
    """Another set of in-sync replicas under the same leader and epoch."""

    topic_id: str
    partition: int
    isr: list[str]


class IsrConfirmed(msgspec.Struct, tag_field="kind", tag="isr_confirmed", frozen=True):
    """The partition's leader is known to have lived under these in-sync replicas: others have nothing that they lack.

    Of feature level 2, as are the next three.
    """

    topic_id: str
    partition: int


class RecoveryBegan(msgspec.Struct, tag_field="kind", tag="recovery_began", frozen=True):
    """All in-sync replicas have stopped uncleanly: nobody leads before the last ones known have said what they have."""

    topic_id: str
    partition: int
    epoch: int


class LogReported(msgspec.Struct, tag_field="kind", tag="log_reported", frozen=True):
    """How far a replica's log goes while the partition has no leader.

    `end`: all below it is whole, with `last_epoch` as the epoch of the record before it; `tail`: the log's end.
    """

    topic_id: str
    partition: int
    node: str
    incarnation: int
    end: int
    last_epoch: int
    tail: int


class LeaderRecovered(msgspec.Struct, tag_field="kind", tag="leader_recovered", frozen=True):
    """The replica with the longest log of the highest epoch leads, with its log up to `end`.

    What was committed from `lost_from` on may be missing: below it, all who said how far their logs go have the same.
    """

    topic_id: str
    partition: int
    leader: str
    epoch: int
    end: int
    lost_from: int


class FeatureLevelRaised(msgspec.Struct, tag_field="kind", tag="feature_level_raised", frozen=True):
    """Every node understands the records of a newer feature level: they may be written from now on."""

    level: int


class ReplicasChanged(msgspec.Struct, tag_field="kind", tag="replicas_changed", frozen=True):
    """Who keeps a partition; `target` who is to keep it once they all are in sync, None where that is so."""

    topic_id: str
    partition: int
    replicas: list[str]
    target: list[str] | None = None


class NodeDrained(msgspec.Struct, tag_field="kind", tag="node_drained", frozen=True):
    """A node is to lead nothing that another can lead, and gets no new replicas; or that is over."""

    node: str
    drained: bool


class VotersChanged(msgspec.Struct, tag_field="kind", tag="voters_changed", frozen=True):
    """Who votes from now on, disk ids by node name: one more than before, or one less.

    It is in force for a node as soon as it is in that node's log, committed or not.
    """

    voters: dict[str, str]


class VoterReplacing(msgspec.Struct, tag_field="kind", tag="voter_replacing", frozen=True):
    """A node votes again once its disk, whichever it is then, has caught up; None: nobody is waited for any more."""

    node: str | None


class ProducerIdsGranted(msgspec.Struct, tag_field="kind", tag="producer_ids_granted", frozen=True):
    """A block of producer ids, for one node to hand out."""

    node: str
    first: int
    count: int


MetadataRecord = (
    ClusterFormed
    | NodeRegistered
    | NodeFenced
    | TopicCreated
    | TopicAltered
    | TopicDeleted
    | LeaderAppointed
    | IsrChanged
    | IsrConfirmed
    | RecoveryBegan
    | LogReported
    | LeaderRecovered
    | FeatureLevelRaised
    | ReplicasChanged
    | NodeDrained
    | VotersChanged
    | VoterReplacing
    | ProducerIdsGranted
)

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MetadataRecord).decode


def decode(value: bytes | None) -> MetadataRecord:
    """The metadata record in a record's value.

    Raises:
        UnsupportedVersion: it is of a kind that this version does not know.
    """
    try:
        record: MetadataRecord = _decode(value or b"")
    except msgspec.MsgspecError as error:
        raise UnsupportedVersion(
            f"the metadata log has a record that this version does not understand ({error}); "
            "start the version that wrote it, or a newer one"
        ) from None
    return record
