"""Every message between nodes as a typed struct: votes, replication, what goes to the controller.

`messages` is what clients speak; this is what peers speak, and no client needs to read it. A message is
`[envelope][head][batch]…`: the envelope says who speaks to whom in which incarnation, the head is one MessagePack map
whose `op` says which message it is. Only `append` carries batches; `snapshot_part` has its bytes in their place.

Lanes: `append` of data partitions with their batches, and parts of snapshots, travel on the data lane, all else on the
control lane.

The metadata partition is named by an empty topic id. Offsets, epochs and times are as in `messages`. A number out of
its range is malformed: what is behind the door need not look at it again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from zbroker.errors import MalformedMessage
from zbroker.protocol.batch import MALFORMED
from zbroker.protocol.frames import Frame
from zbroker.protocol.messages import (
    AcceptLoss,
    AlterTopic,
    ChangeVoters,
    CreateTopic,
    DeleteTopic,
    DrainNode,
    MovePartitions,
)

PEER_VERSION = 1
"""The version of what peers speak."""

METADATA = ""
"""The topic id of the metadata partition."""

Offset = Annotated[int, Meta(ge=0, le=2**62)]
"""An offset, a size or a count: so that what is added to it fits into 64 bits still."""
Unsure = Annotated[int, Meta(ge=-1, le=2**62)]
"""The same, or -1 where there is none."""
Limit = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A size that something was added to."""
Epoch = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Start = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""An incarnation, 0 where it is not known."""
Number = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Port = Annotated[int, Meta(ge=0, le=65532)]
"""A base port: the node has the three after it, too. 0 where it is not said."""


class Envelope(NamedTuple):
    """Who speaks to whom. A message whose envelope does not match is dropped, and counted.

    Attributes:
        version: of the peers' protocol.
        cluster: cluster id, empty before the cluster is formed.
        sender: the sending node's name.
        incarnation: which start of the sender this is.
        to: which start of the receiver it is meant for; 0 where the sender does not know yet, as in greetings.
    """

    version: Unsure
    cluster: str
    sender: str
    incarnation: Start
    to: Start


class PeerMessage(msgspec.Struct, omit_defaults=True, kw_only=True, tag_field="op"):
    """What every message between nodes is."""


# Links ---


class Greeting(PeerMessage, tag="greeting"):
    """Opens a link in one direction, and is repeated until the other side's names this incarnation in `seen`.

    Attributes:
        disk_id: the disk that the sender's logs are on.
        seen: the receiver's incarnation as the sender knows it, 0 where it does not.
        voters: the voters as the sender's configuration names them; compared at a cluster's first formation.
        empty: the sender's disk does not know who voted first: it has no cluster yet, or came to one that existed.
        host, port: where the sender is reached: a base port, for those whose configuration does not name it.
        feature_level: newest feature level that the sender understands.
    """

    disk_id: str
    seen: Start = 0
    voters: list[str] = []
    empty: bool = False
    host: str = ""
    port: Port = 0
    feature_level: Number = 1
    software: str = ""


class Form(PeerMessage, tag="form"):
    """The founder's word at a cluster's first formation, to a voter whose disk is empty: keep this, then vote.

    Attributes:
        cluster: the new cluster's id.
        voters: disk ids by node name, of all voters.
    """

    cluster: str
    voters: dict[str, str]


class Gone(PeerMessage, tag="gone"):
    """To the controller, again and again while it is true: these nodes' own ports refuse this one's connects.

    Attributes:
        nodes: by name, in the start in which each was last heard.
    """

    nodes: dict[str, Start]


# Election ---


class VoteRequest(PeerMessage, tag="vote_request"):
    """Asks for a vote, or (`pre`) whether one would be given.

    Attributes:
        epoch: the epoch that the candidate stands for.
        last_epoch: epoch of the candidate's last record, -1 where it has none.
        end: the candidate's log end offset.
        pre: a pre-vote: binds nobody, and nobody remembers it.
        handover: the leader itself asked the candidate to stand: it is not protected any more.
    """

    epoch: Epoch
    last_epoch: Epoch = -1
    end: Offset = 0
    pre: bool = False
    handover: bool = False


class Vote(PeerMessage, tag="vote"):
    """The answer: `epoch` is the voter's own where it refuses, the candidate's where it grants."""

    epoch: Epoch
    granted: bool = False
    pre: bool = False


class StandNow(PeerMessage, tag="stand_now"):
    """The leader, about to go, asks a voter that has its whole log to stand for election at once."""

    epoch: Epoch


# Snapshots of the metadata ---


class SnapshotPart(PeerMessage, tag="snapshot_part", kw_only=True):
    """The metadata leader to a node whose log ends before the leader's begins: a part of a snapshot, in one frame.

    Parts are sent in order, each once the one before it was answered; one without bytes asks how far the other is.

    Attributes:
        epoch: the leader's epoch.
        session: number of the transfer within the epoch; a later one ends those before it.
        offset: the snapshot has all below it.
        position: where in the snapshot's bytes the part begins.
        total: how many bytes the snapshot has.
    """

    epoch: Epoch
    session: Unsure
    offset: Offset
    position: Offset
    total: Offset


class SnapshotTaken(PeerMessage, tag="snapshot_taken", kw_only=True):
    """The answer.

    Attributes:
        epoch, session: of the part that is answered.
        position: how many bytes are there, without a gap.
        installed: all below the snapshot's offset is known here, on disk: appends may go on from there.
        log_epoch: a newer epoch that is known here, -1 where the leader's is the newest.
    """

    epoch: Epoch
    session: Unsure
    position: Offset = 0
    installed: bool = False
    log_epoch: Epoch = -1


# Replication ---

Status = Literal[
    "ok", "ready", "behind", "diverged", "gap", "not_ready", "stale", "full", "rebuild"
]


class Append(PeerMessage, tag="append", kw_only=True):
    """Leader to follower: batches that continue the follower's log, or a probe for where they would.

    Attributes:
        epoch: the leader's epoch.
        session: number of the session within (epoch, both incarnations); a later one ends those before it.
        base: offset at which the batches begin.
        prev_epoch: epoch of the record before `base`, -1 where there is none.
        probe: asks whether the follower's log has that record; carries no batches.
        begins: the leader's log begins at `base`: whatever the follower has before it need not agree.
        rebuild: the follower has left the ISR, and may discard what it knows as committed.
        high_watermark: as the leader exposes it, -1 while it does not.
        log_start: the leader's log start offset.
        thinned: below it the leader's log may be compacted. `tombstones`: below it tombstones may be gone: a follower
            whose log does not reach so far may have what they deleted.
        metadata: offset of the metadata record that appointed the leader.
        epochs: the leader's epochs that begin within the batches or at either end of them: (epoch, start offset).
        position: bytes of batches sent in this session before this message.
        stamp: a number that only grows, which the answer echoes: what it shows was true after this was sent.
    """

    topic_id: str = METADATA
    partition: Number = 0
    epoch: Epoch
    session: Unsure
    base: Offset
    prev_epoch: Epoch = -1
    probe: bool = False
    begins: bool = False
    rebuild: bool = False
    high_watermark: Unsure = -1
    log_start: Offset = 0
    thinned: Offset = 0
    tombstones: Offset = 0
    metadata: Unsure = -1
    epochs: list[tuple[Epoch, Offset]] = []
    position: Offset = 0
    stamp: Offset = 0


class Appended(PeerMessage, tag="appended", kw_only=True):
    """Follower to leader: how far it got in a session, or why it cannot follow.

    Attributes:
        epoch, session: of the append that is answered; anything but the present ones is stale.
        status: `ok`: all below `written` equals the leader's log; the answer to a
            probe says where the log ends (`end`). `behind`: the log ends at `end`, before the probe's
            base. `diverged`: the record before the base is another; the follower's newest epoch at or below the
            probe's is `log_epoch`, which ends at `end`. `gap`: messages were lost; the session is over. `not_ready`:
            the follower does not know of the appointment yet. `stale`: it knows a newer epoch, `log_epoch`. `full`:
            its disk is full. `rebuild`: it cannot go on without discarding records from `end` on that count as
            committed. `ready`: of no session; it knows of the appointment now.
        written: all below it is in the follower's log, `flushed` on its disk.
        begun: newest epoch whose beginning is on the follower's disk.
        limit: bytes of batches that the leader may have sent in this session, absolute.
        high_watermark: as the follower knows it.
        stamp: of the append that is answered.
    """

    topic_id: str = METADATA
    partition: Number = 0
    epoch: Epoch
    session: Unsure
    status: Status = "ok"
    written: Offset = 0
    flushed: Offset = 0
    begun: Epoch = -1
    limit: Limit = 0
    high_watermark: Unsure = 0
    log_epoch: Epoch = -1
    end: Offset = 0
    stamp: Offset = 0


# To the controller and back ---


class Register(PeerMessage, tag="register"):
    """A node's start: it may lead and follow once this is committed.

    Attributes:
        disk_id, incarnation: which disk, and which start on it.
        host, port, rack: where clients and peers reach it.
        clean: its last stop was in order: all that it had written is on disk.
        feature_level: newest feature level that it understands.
    """

    disk_id: str
    incarnation: Start
    host: str
    port: Port
    rack: str | None = None
    clean: bool = False
    feature_level: Number = 1


class ChangeIsr(PeerMessage, tag="change_isr"):
    """A leader's proposal of in-sync replicas.

    Attributes:
        epoch: the leader's own.
        version: of the partition's metadata, as the leader knows them.
        isr: the in-sync replicas to be, by node, each with the start in which the leader knows it.
    """

    topic_id: str
    partition: Number
    epoch: Epoch
    version: Unsure
    isr: dict[str, Start]


class ElectAnew(PeerMessage, tag="elect_anew"):
    """A leader cannot go on under its epoch."""

    topic_id: str
    partition: Number
    epoch: Epoch


class LogExtent(NamedTuple):
    """How far one log goes, of a partition without leader.

    Attributes:
        epoch: the partition's leader epoch, under which nobody leads.
        end: all below it is whole. `last_epoch`: of the record before it, -1 where there is none.
        tail: the log's end.
    """

    topic_id: str
    partition: Number
    epoch: Epoch
    end: Offset
    last_epoch: Epoch
    tail: Offset


class ReportLogs(PeerMessage, tag="report_logs"):
    """A node says how far its logs go, of partitions that have no leader.

    Attributes:
        incarnation: the sender's start, in which that holds.
    """

    incarnation: Start
    logs: list[LogExtent]


class Leave(PeerMessage, tag="leave"):
    """A node is about to stop: what it leads is handed over; `stopped` says that it leads and keeps nothing now."""

    incarnation: Start
    stopped: bool = False


class GrantProducerIds(PeerMessage, tag="grant_producer_ids"):
    """A node asks for a block of producer ids."""


class MakeInternalTopic(PeerMessage, tag="make_internal_topic"):
    """A node needs a topic of the system's own, which is made if it is not there."""

    name: str


ControllerRequest = (
    Register
    | ChangeIsr
    | ElectAnew
    | Leave
    | ReportLogs
    | GrantProducerIds
    | MakeInternalTopic
    | CreateTopic
    | AlterTopic
    | DeleteTopic
    | MovePartitions
    | DrainNode
    | ChangeVoters
    | AcceptLoss
)
"""What only the controller decides: the nodes' own requests, and those of clients."""


class Forward(PeerMessage, tag="forward"):
    """A request that only the controller decides, from the node that it came to.

    Attributes:
        number: chosen by the sender, which repeats the request under it until it is answered.
    """

    number: Offset
    request: ControllerRequest


class Decided(PeerMessage, tag="decided"):
    """The controller's answer.

    Attributes:
        end: the answer stands once all metadata below this offset are applied: the decision's own, or those that a
            refusal goes by.
        result: what the reply is made of, such as a topic's id.
        code, message, details, outcome_unknown: of the error, where it was refused.
    """

    number: Offset
    end: Offset = 0
    result: dict[str, Any] = {}
    code: str = ""
    message: str = ""
    details: dict[str, Any] = {}
    outcome_unknown: bool = False


Peer = (
    Greeting
    | Form
    | Gone
    | VoteRequest
    | Vote
    | StandNow
    | SnapshotPart
    | SnapshotTaken
    | Append
    | Appended
    | Forward
    | Decided
)
"""Every message between nodes."""

encode = msgspec.msgpack.Encoder().encode
"""An envelope or a head as bytes."""

_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
_decode_head = msgspec.msgpack.Decoder(Peer).decode


def decode_envelope(frame: Frame) -> Envelope:
    """Who speaks to whom.

    Raises:
        MalformedMessage: the frame is no envelope.
    """
    try:
        return _decode_envelope(frame)
    except MALFORMED as error:
        raise MalformedMessage(f"a peer's envelope does not decode: {error}") from None


def decode(frame: Frame) -> Peer:
    """The message in a head.

    Raises:
        MalformedMessage: it is none that this version knows.
    """
    try:
        message: Peer = _decode_head(frame)
    except MALFORMED as error:
        raise MalformedMessage(f"a peer's message does not decode: {error}") from None
    return message
