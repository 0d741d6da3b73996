"""Every message as a typed struct: this file is the API.

A request is a MessagePack map with an `op` and an `id`; its reply carries the same `op` and `id`, or
`op: error`. Record batches never stand inside these maps: they travel as raw frames behind them.
Unknown fields are ignored, a missing field takes its default, and a wrong type is refused with the
field's name. Times are milliseconds, sizes bytes, ids strings of 32 hexadecimal digits.
`docs/protocol.md` has tables generated from here.

A field that has its default is left out of what is sent: a default is part of the protocol, and
never changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

PROTOCOL_VERSION = 1

Acks = Literal["all", "leader", "none"]
Durability = Literal["flushed", "written"]
Setting = str | int

Uint = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Epoch = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
PartitionNumber = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TopicName = Annotated[str, Meta(max_length=1000)]
Id = Annotated[str, Meta(max_length=64)]

ByName = Annotated[
    TopicName | None, Meta(description="topic by name; where both are given the id counts")
]
ById = Annotated[Id | None, Meta(description="topic by id, which is safer than by name")]
OfPartition = Annotated[PartitionNumber, Meta(description="partition number, from 0")]
TopicId = Annotated[str, Meta(description="the topic's id", max_length=64)]
RequestId = Annotated[
    str, Meta(description="chosen by the client, the same in each retry", max_length=255)
]
UnlessAgain = Annotated[Id | None, Meta(description="refused when the topic has another id by now")]
Settings = Annotated[dict[str, Setting], Meta(description="settings by name, as people write them")]
GroupName = Annotated[str, Meta(description="the group's name", max_length=255)]
HighWatermark = Annotated[int, Meta(description="first offset that is not committed yet")]
LogStart = Annotated[int, Meta(description="first offset that is kept")]
LeaderEpoch = Annotated[int, Meta(description="the partition's leader epoch")]


class Message(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What every request and reply has: `op` says which it is."""

    id: Annotated[Uint, Meta(description="correlation number, chosen by the client and echoed")] = 0


# Opening a conversation ---


class Hello(Message, tag_field="op", tag="hello"):
    """Opens a conversation; a client that leaves it out speaks version 1."""

    versions: Annotated[list[int], Meta(description="protocol versions spoken")] = msgspec.field(
        default_factory=lambda: [PROTOCOL_VERSION]
    )
    client: Annotated[
        str, Meta(description="name and version of the client, for the node's log")
    ] = ""
    cluster: Annotated[str | None, Meta(description="cluster id expected; another is refused")] = (
        None
    )
    features: Annotated[list[str], Meta(description="optional features that the client knows")] = []
    credentials: Annotated[
        dict[str, Any] | None, Meta(description="reserved for authentication")
    ] = None


class HelloReply(Message, tag_field="op", tag="hello"):
    """What the node speaks and allows."""

    version: Annotated[int, Meta(description="the version to speak")] = PROTOCOL_VERSION
    cluster: Annotated[str, Meta(description="cluster id")] = ""
    node: Annotated[str, Meta(description="the node's name")] = ""
    features: Annotated[list[str], Meta(description="features that both know")] = []
    frame_max: Annotated[int, Meta(description="largest frame the node takes, bytes")] = 0
    in_flight_max: Annotated[int, Meta(description="requests a client may have unanswered")] = 0
    software: Annotated[str, Meta(description="the node's software and version")] = ""


class Node(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A node of the cluster and where it listens; its PUB port is `port + 1`."""

    name: Annotated[str, Meta(description="the node's name")]
    host: Annotated[str, Meta(description="where it listens: a host name or a numeric address")]
    port: Annotated[int, Meta(description="base port: ROUTER; the PUB port is one higher")]
    rack: Annotated[str | None, Meta(description="where it stands, for placing replicas")] = None
    alive: Annotated[bool, Meta(description="whether the controller takes it to be up")] = True
    voter: Annotated[bool, Meta(description="whether it votes for the controller")] = False
    drained: Annotated[bool, Meta(description="leads nothing that another can lead")] = False


class Partition(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Who leads and who keeps a partition."""

    partition: OfPartition
    leader: Annotated[
        str | None, Meta(description="the leader's node name, nil while there is none")
    ] = None
    epoch: Annotated[int, Meta(description="leader epoch")] = -1
    replicas: Annotated[list[str], Meta(description="nodes that keep it")] = []
    isr: Annotated[list[str], Meta(description="in-sync replicas")] = []
    unclean: Annotated[
        bool, Meta(description="the leader was not in sync: committed records may be missing")
    ] = False
    waiting_for: Annotated[
        list[str], Meta(description="nodes without which it has no leader, while it has none")
    ] = []
    lost_from: Annotated[
        int,
        Meta(description="committed records from this offset on may be missing; -1 where none are"),
    ] = -1


class Topic(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A topic as the metadata know it, or the code that says why it is not there."""

    name: Annotated[str, Meta(description="the topic's name")]
    topic_id: TopicId = ""
    partitions: Annotated[list[Partition], Meta(description="by number, from 0")] = []
    settings: Settings = {}
    error: Annotated[
        str | None, Meta(description="error code, when the topic could not be described")
    ] = None


class Metadata(Message, tag_field="op", tag="metadata"):
    """Asks which nodes, topics and leaders there are; any node answers."""

    topics: Annotated[list[TopicName] | None, Meta(description="names; nil asks for all")] = None
    internal: Annotated[
        bool, Meta(description="with nil: the system's own topics too, whose names begin with __")
    ] = False


class MetadataReply(Message, tag_field="op", tag="metadata"):
    """The cluster as the answering node knows it."""

    cluster: Annotated[str, Meta(description="cluster id")] = ""
    cluster_name: Annotated[str, Meta(description="the cluster's name, for people")] = ""
    version: Annotated[
        int, Meta(description="offset in the metadata log; a larger one is newer")
    ] = -1
    controller: Annotated[str | None, Meta(description="the controller's node name")] = None
    nodes: Annotated[list[Node], Meta(description="all nodes of the cluster")] = []
    topics: Annotated[list[Topic], Meta(description="the topics asked for, errors included")] = []


# Producing ---


class InitProducer(Message, tag_field="op", tag="init_producer"):
    """Asks for a producer id, without which a batch is not idempotent."""


class InitProducerReply(Message, tag_field="op", tag="init_producer"):
    """A producer id that nobody else has, and the epoch to begin with."""

    producer_id: Annotated[int, Meta(description="never given to anybody else")] = -1
    producer_epoch: Annotated[int, Meta(description="the epoch to begin with")] = 0


class Produce(Message, tag_field="op", tag="produce"):
    """Appends one batch, the frame behind the head, to a partition; only its leader takes it."""

    topic: ByName = None
    topic_id: ById = None
    partition: OfPartition = 0
    acks: Annotated[
        Acks,
        Meta(description="all: committed; leader: in the leader's log; none: no reply is sent"),
    ] = "all"
    timeout: Annotated[Uint, Meta(description="ms that the node may take to answer")] = 30_000


class ProduceReply(Message, tag_field="op", tag="produce"):
    """Where the batch is and how safe it is."""

    partition: OfPartition = 0
    base_offset: Annotated[int, Meta(description="the first record's offset")] = -1
    append_time: Annotated[int, Meta(description="the leader's clock when it appended, ms")] = -1
    epoch: Annotated[int, Meta(description="leader epoch of the batch")] = -1
    durability: Annotated[
        Durability,
        Meta(
            description="flushed: on disk, through fsync; written: in the operating system's cache"
        ),
    ] = "written"
    copies: Annotated[int, Meta(description="replicas that have reached that durability")] = 1
    duplicate: Annotated[
        bool, Meta(description="the batch was there already; this is its first place")
    ] = False


# Reading ---


class Fetch(Message, tag_field="op", tag="fetch"):
    """Reads committed batches from an offset on; a chunk of whole batches follows the reply."""

    topic: ByName = None
    topic_id: ById = None
    partition: OfPartition = 0
    offset: Annotated[Uint, Meta(description="the first offset wanted")] = 0
    epoch: Annotated[
        Epoch, Meta(description="leader epoch of the record before it, -1 if not known")
    ] = -1
    max_bytes: Annotated[
        Uint, Meta(description="about how large the chunk may be; one batch always fits")
    ] = 1 << 20
    wait: Annotated[Uint, Meta(description="ms to wait for a record where there is none yet")] = 0


class FetchReply(Message, tag_field="op", tag="fetch"):
    """The offsets that the chunk covers, and the partition's present ends."""

    topic_id: TopicId = ""
    partition: OfPartition = 0
    epoch: LeaderEpoch = -1
    base: Annotated[
        int, Meta(description="first offset that the chunk covers; may be before the one asked")
    ] = 0
    next: Annotated[int, Meta(description="offset to fetch next: all before it is covered")] = 0
    next_epoch: Annotated[
        int, Meta(description="leader epoch of the offset before `next`, or -1; to send with it")
    ] = -1
    high_watermark: HighWatermark = 0
    log_start: LogStart = 0


class Offsets(Message, tag_field="op", tag="offsets"):
    """Asks a partition's leader for an offset by its meaning."""

    topic: ByName = None
    topic_id: ById = None
    partition: OfPartition = 0
    at: Annotated[
        Literal["earliest", "latest", "time"],
        Meta(description="first kept; first not committed; first record not before `time`"),
    ] = "latest"
    time: Annotated[Uint, Meta(description="ms since the epoch, for `at: time`")] = 0


class OffsetsReply(Message, tag_field="op", tag="offsets"):
    """The offset, and the partition's ends."""

    topic_id: TopicId = ""
    partition: OfPartition = 0
    offset: Annotated[
        int, Meta(description="the offset; the high watermark where no record is as late")
    ] = 0
    timestamp: Annotated[int, Meta(description="the found record's timestamp, or -1")] = -1
    epoch: Annotated[
        int, Meta(description="leader epoch of the record before `offset`, or -1")
    ] = -1
    leader_epoch: LeaderEpoch = -1
    high_watermark: HighWatermark = 0
    log_start: LogStart = 0


# Groups ---


class TopicPartitions(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Partitions of one topic."""

    topic_id: TopicId
    topic: Annotated[TopicName, Meta(description="the topic's name")] = ""
    partitions: Annotated[list[PartitionNumber], Meta(description="partition numbers")] = []


class FindCoordinator(Message, tag_field="op", tag="find_coordinator"):
    """Asks which node coordinates a group; any node answers."""

    group: GroupName = ""


class FindCoordinatorReply(Message, tag_field="op", tag="find_coordinator"):
    """The leader of the group's partition of the internal topic."""

    node: Annotated[str, Meta(description="the coordinator's node name")] = ""
    host: Annotated[str, Meta(description="where it listens: a host name or a numeric address")] = (
        ""
    )
    port: Annotated[int, Meta(description="its base port")] = 0
    epoch: LeaderEpoch = -1


class GroupHeartbeat(Message, tag_field="op", tag="group_heartbeat"):
    """Joins a group, stays in it, says what is owned and released, or leaves; only the coordinator takes it.

    The coordinator holds the reply for `wait` ms while it has nothing new for the member. A second heartbeat of a
    member has the one before it answered at once. `topics` is sent to join and to subscribe anew, with `assignor`,
    `rack`, `client`, `instance` and the timeouts; a heartbeat without topics leaves all of them as they were. The
    heartbeat that follows a reply with an assignment has `owned`: that is how the coordinator knows that it came.
    """

    group: GroupName = ""
    member: Annotated[
        str,
        Meta(
            description="chosen by the member at random, 1 to 64 characters, for one joining",
            max_length=64,
        ),
    ] = ""
    member_epoch: Annotated[
        int,
        Meta(
            description="as last answered; 0 joins, -1 leaves, -2 leaves for a restart that keeps its partitions",
            ge=-2, le=2**31 - 1,
        ),
    ] = 0  # fmt: skip
    instance: Annotated[
        GroupName | None,
        Meta(description="a static member's name: a restart under it keeps its partitions"),
    ] = None
    topics: Annotated[
        list[TopicName],
        Meta(
            description="names, and patterns in which * stands for any characters; empty, but to join: as said before"
        ),
    ] = []
    owned: Annotated[
        list[TopicPartitions] | None,
        Meta(
            description="every partition held, revoked ones until released; after each assignment; nil: as said before"
        ),
    ] = None
    assignor: Annotated[
        Literal["sticky", "range"],
        Meta(description="how partitions are given; the one most members name"),
    ] = "sticky"
    rack: Annotated[
        str | None,
        Meta(
            description="node or rack that the member is near: partitions led there are preferred"
        ),
    ] = None
    session_timeout: Annotated[
        Uint, Meta(description="ms without a heartbeat after which it is out")
    ] = 10_000
    release_timeout: Annotated[
        Uint, Meta(description="ms that it may take to release a partition before it is out")
    ] = 300_000
    client: Annotated[str, Meta(description="for people: the client's name", max_length=255)] = ""
    wait: Annotated[
        Uint, Meta(description="ms that the answer may be held while nothing is new")
    ] = 0


class GroupHeartbeatReply(Message, tag_field="op", tag="group_heartbeat"):
    """Who the member is by now and what it is to own: it takes what it has not got of that, and releases the rest."""

    member_epoch: Annotated[
        int, Meta(description="to be sent with what follows; -1 once it has left")
    ] = -1
    group_epoch: Annotated[
        int, Meta(description="grows with each change of members, subscriptions or topics")
    ] = -1
    assignment: Annotated[
        list[TopicPartitions] | None,
        Meta(description="every partition that the member may read now; nil: as said before"),
    ] = None
    heartbeat_interval: Annotated[
        int, Meta(description="ms after which it should be heard again at most")
    ] = 2_500


class GroupOffset(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A position that a group has committed in one partition."""

    topic_id: TopicId = ""
    topic: Annotated[TopicName, Meta(description="the topic's name")] = ""
    partition: OfPartition = 0
    offset: Annotated[
        int,
        Meta(
            description="the first offset that is not done yet; -1: none is committed (to commit: forget it)",
            ge=-1, le=2**63 - 1,
        ),
    ] = -1  # fmt: skip
    epoch: Annotated[
        Epoch, Meta(description="leader epoch of the record before it, -1 if not known")
    ] = -1
    note: Annotated[str, Meta(description="the application's own words", max_length=4096)] = ""
    time: Annotated[
        int,
        Meta(description="ms since the epoch when it was committed; filled in by the coordinator"),
    ] = -1
    error: Annotated[str | None, Meta(description="error code, where this one was refused")] = None


class CommitOffsets(Message, tag_field="op", tag="commit_offsets"):
    """Commits positions of a group: for a member those of partitions that it owns, for others while it has none."""

    group: GroupName = ""
    member: Annotated[
        str, Meta(description="the member; empty: none, which only an empty group takes")
    ] = ""
    member_epoch: Annotated[Epoch, Meta(description="the member's epoch, as last answered")] = -1
    offsets: Annotated[list[GroupOffset], Meta(description="the positions")] = []
    number: Annotated[
        int,
        Meta(
            ge=-1,
            le=2**63 - 1,
            description="grows from commit to commit of a member, and stays for one that is repeated: where a later "
            "one of the same member stands, an earlier one changes nothing; -1: it counts as the latest",
        ),
    ] = -1


class CommitOffsetsReply(Message, tag_field="op", tag="commit_offsets"):
    """The positions are on the disks of the in-sync replicas, but for those with an error."""

    refused: Annotated[
        list[GroupOffset], Meta(description="positions that were not committed, with their errors")
    ] = []


class FetchOffsets(Message, tag_field="op", tag="fetch_offsets"):
    """Asks for committed positions of a group."""

    group: GroupName = ""
    partitions: Annotated[
        list[TopicPartitions] | None, Meta(description="which; nil asks for all that are committed")
    ] = None


class FetchOffsetsReply(Message, tag_field="op", tag="fetch_offsets"):
    """The committed positions; `offset: -1` where none is."""

    offsets: Annotated[list[GroupOffset], Meta(description="by topic and partition")] = []


class GroupMember(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A member as the coordinator knows it."""

    member: Annotated[str, Meta(description="the member's id")] = ""
    instance: Annotated[str | None, Meta(description="a static member's name")] = None
    client: Annotated[str, Meta(description="the client's name")] = ""
    epoch: Annotated[int, Meta(description="the member's epoch")] = -1
    state: Annotated[
        Literal["stable", "releasing", "waiting", "away"],
        Meta(
            description="has its target; is to release some; waits for others' release; a static member between starts"
        ),
    ] = "stable"
    topics: Annotated[list[str], Meta(description="names and patterns subscribed to")] = []
    assignment: Annotated[list[TopicPartitions], Meta(description="what it may read now")] = []
    target: Annotated[list[TopicPartitions], Meta(description="what it is to have in the end")] = []
    heard: Annotated[int, Meta(description="ms since its last heartbeat")] = 0


class DescribeGroup(Message, tag_field="op", tag="describe_group"):
    """Asks the coordinator for a group's members and positions."""

    group: GroupName = ""


class DescribeGroupReply(Message, tag_field="op", tag="describe_group"):
    """The group as it is now."""

    state: Annotated[
        Literal["empty", "stable", "assigning"],
        Meta(description="no members; all have their targets; partitions are on their way"),
    ] = "empty"
    epoch: Annotated[int, Meta(description="the group's epoch")] = -1
    assignor: Annotated[str, Meta(description="how partitions are given")] = "sticky"
    rebalances: Annotated[
        int, Meta(description="targets computed since the coordinator took over")
    ] = 0
    members: Annotated[list[GroupMember], Meta(description="by id")] = []
    offsets: Annotated[list[GroupOffset], Meta(description="committed positions")] = []


class GroupListing(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A group in a list."""

    group: GroupName = ""
    state: Annotated[
        Literal["empty", "stable", "assigning"], Meta(description="as in describe_group")
    ] = "empty"
    members: Annotated[int, Meta(description="how many members")] = 0


class ListGroups(Message, tag_field="op", tag="list_groups"):
    """Asks a node for the groups that it coordinates."""


class ListGroupsReply(Message, tag_field="op", tag="list_groups"):
    """The groups coordinated by the answering node."""

    groups: Annotated[list[GroupListing], Meta(description="by name")] = []


class DeleteGroup(Message, tag_field="op", tag="delete_group"):
    """Forgets a group without members, and its positions."""

    group: GroupName = ""


class DeleteGroupReply(Message, tag_field="op", tag="delete_group"):
    """The group is gone."""


# Administration ---


class CreateTopic(Message, tag_field="op", tag="create_topic"):
    """Makes a topic; the same `request_id` again finds it made."""

    name: Annotated[TopicName, Meta(description="the topic's name")] = ""
    request_id: RequestId = ""
    settings: Annotated[
        dict[str, Setting],
        Meta(description="partitions, replicas, min_insync, fsync, …; defaults are the cluster's"),
    ] = {}


class CreateTopicReply(Message, tag_field="op", tag="create_topic"):
    """The topic as it was made, every setting resolved."""

    topic: Annotated[Topic, Meta(description="the topic, every setting resolved")]


class AlterTopic(Message, tag_field="op", tag="alter_topic"):
    """Changes settings of a topic, or gives it more partitions."""

    name: Annotated[TopicName, Meta(description="the topic's name")] = ""
    topic_id: UnlessAgain = None
    request_id: RequestId = ""
    settings: Settings = {}


class AlterTopicReply(Message, tag_field="op", tag="alter_topic"):
    """The topic after the change."""

    topic: Annotated[Topic, Meta(description="the topic, every setting resolved")]


class DeleteTopic(Message, tag_field="op", tag="delete_topic"):
    """Deletes a topic and its records."""

    name: Annotated[TopicName, Meta(description="the topic's name")] = ""
    topic_id: UnlessAgain = None
    request_id: RequestId = ""


class DeleteTopicReply(Message, tag_field="op", tag="delete_topic"):
    """The topic is gone."""

    topic_id: TopicId = ""


class MovePartitions(Message, tag_field="op", tag="move_partitions"):
    """Gives partitions other replicas; they are copied first, and the old ones go once the new are in sync."""

    name: Annotated[TopicName, Meta(description="the topic's name")] = ""
    topic_id: UnlessAgain = None
    request_id: RequestId = ""
    partition: Annotated[
        PartitionNumber | None, Meta(description="which; nil spreads all of them over the nodes")
    ] = None
    to: Annotated[
        list[str],
        Meta(description="node names, one partition's preferred leader first; empty: all nodes"),
    ] = []


class MovePartitionsReply(Message, tag_field="op", tag="move_partitions"):
    """The topic, whose partitions are on their way: they have old and new replicas until those are in sync."""

    topic: Annotated[Topic, Meta(description="the topic, every setting resolved")]


class DrainNode(Message, tag_field="op", tag="drain_node"):
    """Takes all leaderships from a node that another can lead, and keeps them away until `undo`."""

    node: Annotated[str, Meta(description="the node's name")] = ""
    undo: Annotated[bool, Meta(description="the node may lead again")] = False
    request_id: RequestId = ""


class DrainNodeReply(Message, tag_field="op", tag="drain_node"):
    """The node is drained, but for partitions that nobody else can lead."""

    leading: Annotated[int, Meta(description="partitions that it still leads")] = 0


class ChangeVoters(Message, tag_field="op", tag="change_voters"):
    """Changes who elects the controller, one voter at a time."""

    node: Annotated[str, Meta(description="the node's name")] = ""
    action: Annotated[
        Literal["add", "remove", "replace"],
        Meta(description="replace: the voter's disk is another now, as after a machine was lost"),
    ] = "replace"
    request_id: RequestId = ""


class ChangeVotersReply(Message, tag_field="op", tag="change_voters"):
    """The change is committed."""

    voters: Annotated[list[str], Meta(description="names of the voters")] = []


class AcceptLoss(Message, tag_field="op", tag="accept_loss"):
    """Gives up what nobody who is up has: a replica that is not in sync leads with what it has itself."""

    topic: ByName = None
    topic_id: ById = None
    partition: OfPartition = 0
    epoch: Annotated[
        Epoch, Meta(description="refused when the partition has another leader epoch by now")
    ] = -1
    node: Annotated[
        str | None, Meta(description="who is to lead; nil: who has most of those that are up")
    ] = None
    request_id: RequestId = ""


class AcceptLossReply(Message, tag_field="op", tag="accept_loss"):
    """The topic, with the partition's new leader."""

    topic: Annotated[Topic, Meta(description="the topic, every setting resolved")]


class DeleteRecords(Message, tag_field="op", tag="delete_records"):
    """Moves a partition's log start up: records before `before` are gone."""

    topic: ByName = None
    topic_id: ById = None
    partition: OfPartition = 0
    before: Annotated[
        Uint, Meta(description="the new first offset, at most the high watermark")
    ] = 0
    request_id: RequestId = ""


class DeleteRecordsReply(Message, tag_field="op", tag="delete_records"):
    """The log start, on disk."""

    log_start: LogStart = 0


class PartitionStats(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a leader knows of one partition's log."""

    partition: OfPartition
    epoch: LeaderEpoch = -1
    start_offset: LogStart = 0
    high_watermark: HighWatermark = 0
    end_offset: Annotated[int, Meta(description="log end: the offset the next record gets")] = 0
    flushed_offset: Annotated[int, Meta(description="all before it is on disk")] = 0
    size: Annotated[int, Meta(description="bytes on disk")] = 0
    segments: Annotated[int, Meta(description="segment files")] = 0
    records_in: Annotated[int, Meta(description="records taken since the node started")] = 0
    bytes_in: Annotated[int, Meta(description="bytes taken since the node started")] = 0
    records_rate: Annotated[float, Meta(description="records a second, over the last seconds")] = (
        0.0
    )
    bytes_rate: Annotated[float, Meta(description="bytes a second, over the last seconds")] = 0.0
    damaged: Annotated[
        list[tuple[int, int]], Meta(description="offset ranges that cannot be read")
    ] = []


class Stats(Message, tag_field="op", tag="stats"):
    """Asks a node for the partitions of a topic that it leads."""

    topic: ByName = None
    topic_id: ById = None


class StatsReply(Message, tag_field="op", tag="stats"):
    """The partitions led by the answering node."""

    topic_id: TopicId = ""
    partitions: Annotated[list[PartitionStats], Meta(description="those led here")] = []


class Status(Message, tag_field="op", tag="status"):
    """Asks a node how it is."""


class StatusReply(Message, tag_field="op", tag="status"):
    """The answering node's own state."""

    node: Annotated[str, Meta(description="the node's name")] = ""
    software: Annotated[str, Meta(description="the node's software and version")] = ""
    uptime: Annotated[int, Meta(description="ms since it started")] = 0
    clients: Annotated[int, Meta(description="clients heard of lately")] = 0
    topics: Annotated[int, Meta(description="topics of the cluster")] = 0
    partitions: Annotated[int, Meta(description="partitions kept here")] = 0
    leading: Annotated[int, Meta(description="partitions led from here")] = 0
    under_replicated: Annotated[
        int, Meta(description="partitions led here that lack in-sync replicas")
    ] = 0
    disk_full: Annotated[bool, Meta(description="records are refused until there is room")] = False
    size: Annotated[int, Meta(description="bytes of all logs here")] = 0


# Errors ---


class ErrorReply(Message, tag_field="op", tag="error"):
    """A request that failed: `code` for programs, `message` for people."""

    code: Annotated[str, Meta(description="which error: see the table")] = "internal"
    message: Annotated[str, Meta(description="a sentence: what is wrong and what to do")] = ""
    hint: Annotated[
        Literal["retry", "refresh", "give_up"], Meta(description="what the client should do")
    ] = "give_up"
    outcome_unknown: Annotated[
        bool, Meta(description="the request may have taken effect all the same")
    ] = False
    details: Annotated[dict[str, Any], Meta(description="facts for programs")] = {}


# Push ---


class Push(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The head of a pushed batch, or of a beacon, which has none. Subject: `topic/partition/`."""

    v: Annotated[int, Meta(description="protocol version")] = PROTOCOL_VERSION
    topic_id: TopicId = ""
    partition: OfPartition = 0
    epoch: LeaderEpoch = -1
    high_watermark: HighWatermark = 0
    log_start: LogStart = 0


class ClusterChange(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Pushed when the metadata changed, and now and then as a beacon. Subject: `!cluster/`."""

    v: Annotated[int, Meta(description="protocol version")] = PROTOCOL_VERSION
    cluster: Annotated[str, Meta(description="cluster id")] = ""
    version: Annotated[int, Meta(description="offset in the metadata log")] = -1
    node: Annotated[str, Meta(description="the node that says so")] = ""
    topics: Annotated[list[str], Meta(description="names of the topics that changed")] = []


Request = (
    Hello | Metadata | InitProducer | Produce | Fetch | Offsets
    | CreateTopic | AlterTopic | DeleteTopic | MovePartitions | DrainNode | ChangeVoters
    | AcceptLoss | DeleteRecords | Stats | Status
    | FindCoordinator | GroupHeartbeat | CommitOffsets | FetchOffsets
    | DescribeGroup | ListGroups | DeleteGroup
)  # fmt: skip
Reply = (
    HelloReply | MetadataReply | InitProducerReply | ProduceReply | FetchReply | OffsetsReply
    | CreateTopicReply | AlterTopicReply | DeleteTopicReply | MovePartitionsReply
    | DrainNodeReply | ChangeVotersReply | AcceptLossReply | DeleteRecordsReply
    | StatsReply | StatusReply
    | FindCoordinatorReply | GroupHeartbeatReply | CommitOffsetsReply | FetchOffsetsReply
    | DescribeGroupReply | ListGroupsReply | DeleteGroupReply | ErrorReply
)  # fmt: skip
