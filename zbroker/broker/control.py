"""The controller's desk: takes requests that only the controller decides, and does what it owes the cluster by itself.

Owns who is taken for dead, and when. Works only while this node leads the metadata and is ready; every decision is made
on the draft, by the pure functions of `zbroker.cluster`, and answered once it is committed: a refusal too, for it may
go by what is not committed yet. Never acts on a decision: whoever is concerned does, once it has applied it.

Evidence of death, either is enough:

- gone: a majority of the voters, this node among them or not, says that the node's own port refuses its connects;
- silent: this node has led for a session timeout, and has not heard the other for one. The controller before it needs
  less: a majority had not heard it for an election timeout when it voted for another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from zbroker.broker.mesh import Mesh
from zbroker.broker.ports import BrokerSettings, FreshId, Report
from zbroker.cluster import controller, internal, membership, moves, recovery, voters
from zbroker.cluster.formation import Identity
from zbroker.cluster.metadata import Metadata
from zbroker.cluster.quorum import MetadataPartition
from zbroker.cluster.records import (
    FEATURE_LEVEL,
    LeaderRecovered,
    LogReported,
    MetadataRecord,
    RecoveryBegan,
    TopicAltered,
    TopicCreated,
)
from zbroker.errors import InvalidSetting, InvalidTopic, NotReady, UnsupportedVersion, ZBrokerError
from zbroker.protocol.messages import (
    AcceptLoss,
    AlterTopic,
    ChangeVoters,
    CreateTopic,
    DeleteTopic,
    DrainNode,
    MovePartitions,
)
from zbroker.protocol.peers import (
    ChangeIsr,
    ControllerRequest,
    ElectAnew,
    GrantProducerIds,
    Leave,
    LogExtent,
    MakeInternalTopic,
    Register,
    ReportLogs,
)
from zbroker.replication.commit import is_majority
from zbroker.units import format_size

GONE_MS = 500
"""How long the word of a node that another is gone counts; it is repeated while it is true."""
PREFER_MS = 5000
"""How often it is looked whether leaderships can go back to the preferred replicas."""
PREFER_STEP_MS, PREFER_SHARE = 100, 20
"""They go back in steps: of so many one at a time, so that clients follow a few and not all at once.

Each once until all are back: who gives one up at once has the time to mend that its replica needs, and holds up nobody.
"""

Decision = tuple[Sequence[MetadataRecord], dict[str, Any]]


class Answer(msgspec.Struct):
    """What the controller says: it stands once all metadata below `end` are applied."""

    end: int
    result: dict[str, Any] = {}
    error: ZBrokerError | None = None


OnAnswer = Callable[[Answer], None]


class ControllerDesk:
    """One node's desk; idle while another node is the controller."""

    def __init__(
        self,
        settings: BrokerSettings,
        metadata: MetadataPartition,
        mesh: Mesh,
        *,
        identity: Callable[[], Identity | None],
        fresh_id: FreshId,
        report: Report,
    ) -> None:
        self._settings = settings
        self._metadata = metadata
        self._mesh = mesh
        self._identity = identity
        self._fresh_id = fresh_id
        self._report = report
        self._ready_since: int | None = None
        self._before: str | None = None
        """Who was the controller before this node."""
        self._gone: dict[str, dict[str, tuple[int, int]]] = {}
        """Who says that a node is gone: by node and by who says so, its start and when that was said."""
        self._prefer_at = 0
        self._gone_back: set[tuple[str, int]] = set()
        """Partitions whose leaderships have gone back in the steps that are on."""
        self._now = self._wall = 0
        self._handlers: dict[type[Any], Callable[[Metadata, str, Any], Decision]] = {
            Register: self._register,
            ChangeIsr: self._change_isr,
            ElectAnew: self._elect_anew,
            Leave: self._leave,
            ReportLogs: self._report_logs,
            GrantProducerIds: self._grant_producer_ids,
            MakeInternalTopic: self._make_internal_topic,
            CreateTopic: self._create_topic,
            AlterTopic: self._alter_topic,
            DeleteTopic: self._delete_topic,
            MovePartitions: self._move_partitions,
            DrainNode: self._drain_node,
            ChangeVoters: self._change_voters,
            AcceptLoss: self._accept_loss,
        }

    # Requests ---

    def take(self, node: str, request: ControllerRequest, answer: OnAnswer, wall: int) -> None:
        """Decides a request that came to a node; answers once the decision, or what a refusal goes by, is committed."""
        self._wall = wall
        metadata = self._metadata
        if not metadata.ready or metadata.draft is None:
            answer(Answer(0, error=NotReady("this node is not the controller, or not yet")))
            return
        draft = metadata.draft
        records: Sequence[MetadataRecord] = ()
        result: dict[str, Any] = {}
        refusal: ZBrokerError | None = None
        try:
            records, result = self._handlers[type(request)](draft, node, request)
        except ZBrokerError as error:
            refusal = error

        def committed(error: ZBrokerError | None) -> None:
            answer(Answer(end, result, refusal if error is None else error))

        self._tell(records)
        end = metadata.replica.log.end_offset + len(records)
        try:
            metadata.propose(records, committed, wall)
        except NotReady as error:  # two changes of the voters do not overlap
            answer(Answer(0, error=error))
        if isinstance(request, ReportLogs):
            self._propose(recovery.finish_recoveries(draft))

    def _propose(self, records: Sequence[MetadataRecord]) -> None:
        if records:
            self._tell(records)
            with contextlib.suppress(
                NotReady
            ):  # tried again with the next tick, where it is still wanted
                self._metadata.propose(records, lambda _: None, self._wall)

    def _tell(self, records: Sequence[MetadataRecord]) -> None:
        """What an operator should know of the partitions that nobody is known to have whole."""
        draft = self._metadata.draft
        assert draft is not None
        for record in records:
            if not isinstance(record, RecoveryBegan | LeaderRecovered):
                continue
            topic = draft.topics[record.topic_id]
            facts = {"topic": topic.name, "partition": record.partition, "epoch": record.epoch}
            if isinstance(record, RecoveryBegan):
                waiting = sorted(topic.partitions[record.partition].last)
                self._report("recovery_began", **facts, waiting_for=waiting)
            else:
                self._report(
                    "leader_recovered", **facts, leader=record.leader, end=record.end,
                    lost_from=record.lost_from,
                )  # fmt: skip

    # Evidence and time ---

    def on_gone(self, reporter: str, nodes: Mapping[str, int], now: int) -> None:
        """A node says whose ports refuse its connects, each with the start in which it knew that node."""
        self._now = now
        known = self._metadata.metadata.nodes
        for node, incarnation in nodes.items():
            if node in known:
                self._gone.setdefault(node, {})[reporter] = (incarnation, now)
        self._fence_gone()

    def on_metadata(self, now: int, wall: int) -> None:
        """This node became the controller, or is it no more."""
        self._now, self._wall = now, wall
        metadata = self._metadata
        if not metadata.ready or metadata.draft is None:
            self._ready_since = None
            if metadata.leader not in (None, self._settings.node):
                self._before = metadata.leader
            return
        if self._ready_since is None:
            self._ready_since = now
            self._prefer_at = now + PREFER_MS
            self._gone_back.clear()
            self._report("controller", epoch=metadata.replica.epoch)
        identity = self._identity()
        if metadata.draft.cluster_id is None and identity is not None:
            self._propose(
                controller.form_cluster(
                    identity.cluster, self._settings.cluster_name, identity.voters
                )
            )
        self._fence_gone()

    def on_tick(self, now: int, wall: int) -> None:
        """About every 100 ms."""
        self.on_metadata(now, wall)
        metadata = self._metadata
        if self._ready_since is None or metadata.draft is None:
            return
        self._fence_silent()
        self._propose(controller.raise_feature_level(metadata.draft, self._understood()))
        self._propose(recovery.finish_recoveries(metadata.draft))
        self._propose(moves.finish_moves(metadata.draft))
        self._propose(internal.grow(metadata.draft))
        self._propose(voters.continue_voters(metadata.draft, metadata.disks, metadata.caught_up))
        if now >= self._prefer_at:
            self._prefer(metadata.draft, now)

    def _prefer(self, draft: Metadata, now: int) -> None:
        """One step of leaderships back to the preferred replicas."""
        back = [
            record
            for record in membership.prefer(draft)
            if (record.topic_id, record.partition) not in self._gone_back
        ]
        some = back[: -(-len(back) // PREFER_SHARE)]
        if len(some) == len(back):
            self._gone_back.clear()
            self._prefer_at = now + PREFER_MS
        else:
            self._gone_back |= {(record.topic_id, record.partition) for record in some}
            self._prefer_at = now + PREFER_STEP_MS
        self._propose(some)

    def _understood(self) -> dict[str, int]:
        """The newest feature level that each node that is linked understands."""
        return {self._settings.node: FEATURE_LEVEL} | {
            node: peer.greeting.feature_level
            for node, peer in self._mesh.peers.items()
            if peer.linked and peer.greeting is not None
        }

    def _fence_gone(self) -> None:
        draft = self._metadata.draft
        if draft is None or not self._metadata.ready:
            return
        for node in sorted(self._gone):
            words = self._gone[node]
            registered = draft.nodes.get(node)
            if registered is None or not draft.is_up(node):
                continue
            say_so = [
                reporter
                for reporter, (incarnation, at) in words.items()
                if incarnation == registered.incarnation and self._now - at <= GONE_MS
            ]
            if is_majority(say_so, list(draft.voters)):
                self._fence(draft, node, "gone")

    def _fence_silent(self) -> None:
        metadata, timeout = self._metadata, self._settings.session_timeout
        draft = metadata.draft
        assert draft is not None
        assert self._ready_since is not None
        for node in sorted(draft.nodes):
            if node == self._settings.node or not draft.is_up(node):
                continue
            heard = metadata.heard(node)
            since = self._ready_since if heard is None else max(heard, self._ready_since)
            if heard is None and node == self._before:
                since -= self._settings.election_timeout
            if self._now - since > timeout:
                self._fence(draft, node, "silent")

    def _fence(self, draft: Metadata, node: str, reason: membership.Reason) -> None:
        self._report("node_fenced", peer=node, reason=reason)
        self._gone.pop(node, None)
        self._propose(membership.fence_node(draft, node, reason))

    # Decisions ---

    def _register(self, draft: Metadata, node: str, request: Register) -> Decision:
        peer = self._mesh.peers.get(node)
        linked = None if peer is None or peer.greeting is None else peer.greeting.disk_id
        if peer is not None and (peer.incarnation, linked) != (
            request.incarnation,
            request.disk_id,
        ):
            raise NotReady(
                f"{node} asks for start {request.incarnation} to be registered, and its link is of {peer.incarnation}"
            )
        if draft.voters.get(node, request.disk_id) != request.disk_id:
            raise NotReady(f"{node} is a voter with another disk than this one; replace the voter")
        if request.feature_level < draft.feature_level:
            raise UnsupportedVersion(
                f"the cluster is at feature level {draft.feature_level}, and {node} understands "
                f"{request.feature_level}; start a newer version there"
            )
        self._gone.pop(node, None)
        records = membership.register_node(
            draft, node, request.disk_id, request.incarnation, request.host, request.port,
            request.rack, clean=request.clean,
        )  # fmt: skip
        return records, {}

    def _change_isr(self, draft: Metadata, node: str, request: ChangeIsr) -> Decision:
        records = membership.change_isr(
            draft, node, topic_id=request.topic_id, number=request.partition, epoch=request.epoch,
            version=request.version, isr=sorted(request.isr), incarnations=request.isr,
        )  # fmt: skip
        return records, {}

    def _elect_anew(self, draft: Metadata, node: str, request: ElectAnew) -> Decision:
        records = membership.elect_anew(
            draft, node, topic_id=request.topic_id, number=request.partition, epoch=request.epoch
        )
        return records, {}

    def _leave(self, draft: Metadata, node: str, request: Leave) -> Decision:
        registered = draft.nodes.get(node)
        if registered is None or registered.incarnation != request.incarnation:
            return (), {}
        if request.stopped:
            return membership.fence_node(draft, node, "stopped"), {}
        return membership.hand_over(draft, node), {}

    def _report_logs(self, draft: Metadata, node: str, request: ReportLogs) -> Decision:
        logs = [
            LogReported(
                log.topic_id, log.partition, node, request.incarnation, log.end, log.last_epoch, log.tail
            )
            for log in request.logs
            if _is_of(draft, log)
        ]  # fmt: skip
        return recovery.report_logs(draft, node, request.incarnation, logs), {}

    def _grant_producer_ids(self, draft: Metadata, node: str, _: GrantProducerIds) -> Decision:
        first = draft.next_producer_id
        records = controller.grant_producer_ids(draft, node)
        return records, {"first": first, "count": controller.PRODUCER_ID_BLOCK}

    def _make_internal_topic(self, draft: Metadata, _: str, request: MakeInternalTopic) -> Decision:
        if request.name not in internal.SETTINGS:
            raise InvalidTopic(f"this controller knows no internal topic {request.name[:60]!r}")
        return internal.make_topic(draft, request.name, self._fresh_id()), {}

    def _create_topic(self, draft: Metadata, _: str, request: CreateTopic) -> Decision:
        records = controller.create_topic(
            draft, name=request.name, given=request.settings,
            defaults=self._settings.topic_defaults, topic_id=self._fresh_id(),
            request_id=request.request_id,
        )  # fmt: skip
        self._check_fits(records)
        return records, {}

    def _alter_topic(self, draft: Metadata, _: str, request: AlterTopic) -> Decision:
        records = controller.alter_topic(
            draft, name=request.name, topic_id=request.topic_id, given=request.settings
        )
        self._check_fits(records)
        return records, {}

    def _delete_topic(self, draft: Metadata, _: str, request: DeleteTopic) -> Decision:
        records = controller.delete_topic(
            draft, name=request.name, topic_id=request.topic_id, request_id=request.request_id
        )
        if records:
            return records, {"topic_id": records[0].topic_id}
        return records, {"topic_id": draft.deletions[request.request_id]}

    def _move_partitions(self, draft: Metadata, _: str, request: MovePartitions) -> Decision:
        records = moves.move_partitions(
            draft, name=request.name, topic_id=request.topic_id, partition=request.partition,
            to=request.to,
        )  # fmt: skip
        return records, {}

    def _drain_node(self, draft: Metadata, _: str, request: DrainNode) -> Decision:
        return moves.drain_node(draft, request.node, undo=request.undo), {}

    def _change_voters(self, draft: Metadata, _: str, request: ChangeVoters) -> Decision:
        metadata = self._metadata
        records = voters.change_voters(
            draft, node=request.node, action=request.action, disks=self._disks_heard(),
            caught_up=metadata.caught_up,
        )  # fmt: skip
        return records, {}

    def _disks_heard(self) -> dict[str, str]:
        """The disk of each node that is heard: what a link remembers of a node that is gone is of the past."""
        since = self._now - self._settings.session_timeout
        return {
            node: disk
            for node, disk in self._metadata.disks.items()
            if node == self._settings.node or (self._metadata.heard(node) or 0) >= since
        }

    def _accept_loss(self, draft: Metadata, _: str, request: AcceptLoss) -> Decision:
        topic = controller.find_topic(draft, request.topic, request.topic_id)
        records = recovery.accept_loss(
            draft, topic_id=topic.topic_id, number=request.partition, node=request.node,
            epoch=request.epoch,
        )  # fmt: skip
        for record in records:
            self._report(
                "loss_accepted", topic=topic.name, partition=request.partition,
                leader=record.leader, epoch=record.epoch,
            )  # fmt: skip
        return records, {}

    def _check_fits(self, records: Sequence[MetadataRecord]) -> None:
        """That the batches of a topic fit into the frames that nodes take."""
        limit = self._settings.batch_max
        for record in records:
            if (
                isinstance(record, TopicCreated | TopicAltered)
                and record.settings.max_batch > limit
            ):
                raise InvalidSetting(
                    f"max_batch: found {format_size(record.settings.max_batch)}, expected at most "
                    f"{format_size(limit)}: a batch has to fit into a frame (limits: frame)",
                    setting="max_batch",
                )


def _is_of(state: Metadata, log: LogExtent) -> bool:
    """Whether a report is of the partition as it is now."""
    topic = state.topics.get(log.topic_id)
    if topic is None or log.partition >= len(topic.partitions):
        return False
    return topic.partitions[log.partition].epoch == log.epoch
