"""One node: takes every message to the machine that owns it, and keeps those machines going.

Owns the node's life, and its limits on what clients may have in flight. Never knows a socket, a file or a clock: time
comes with each call (`now` monotonic and `wall` since the epoch, both in milliseconds).

========== ========================================= ========== ======================================================
state      on                                        next       effect
========== ========================================= ========== ======================================================
starting   the disk's cluster is known or formed     starting   takes part in the metadata
starting   the cluster is formed in the metadata     starting   asks the controller to register this start
starting   the registration is applied               starting   opens every partition that this node keeps
starting   every partition has taken up its role,    serving    requests are taken
           and none lacks its leader for want of
           this node's word
serving    it is fenced: it was silent for too long  serving    asks to be registered again
serving    stop                                      leaving    asks that others lead what it leads
leaving    others lead, or nobody answers            stopping   finishes what only it can lead, and says that it stops
stopping   that is committed, or nobody answers      closing    closes the partitions, then the metadata
closing    every log is closed                       stopped    the process may end
any        a log is broken beyond use                failed     the process must end; `error` says why
========== ========================================= ========== ======================================================

A node without others, and one that is not registered, goes from `stop` straight to `closing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from zbroker.broker.admin import AdminDesk
from zbroker.broker.control import Answer, ControllerDesk
from zbroker.broker.groups import GroupDesk
from zbroker.broker.keeper import Keeper
from zbroker.broker.mesh import Mesh, MetadataLanes
from zbroker.broker.partition import Partition
from zbroker.broker.petitions import Petitions
from zbroker.broker.ports import (
    BrokerSettings,
    Conversation,
    FreshId,
    PeerLinks,
    Report,
    Transport,
)
from zbroker.broker.reports import LogReports
from zbroker.cluster import controller
from zbroker.cluster.election import ElectionSettings
from zbroker.cluster.formation import Formation, LoadIdentity, SaveIdentity
from zbroker.cluster.metadata import Metadata as ClusterMetadata
from zbroker.cluster.quorum import FOLDER, MetadataPartition, PeerStart
from zbroker.cluster.records import FEATURE_LEVEL
from zbroker.errors import (
    ClusterMismatch,
    MalformedMessage,
    MessageTooLarge,
    NotLeader,
    NotReady,
    Overloaded,
    ShuttingDown,
    UnknownPartition,
    UnsupportedVersion,
    ZBrokerError,
)
from zbroker.log.storage import Completion, Storage
from zbroker.protocol import frames as wire
from zbroker.protocol.batch import Buffer
from zbroker.protocol.frames import Frame
from zbroker.protocol.messages import (
    PROTOCOL_VERSION,
    AcceptLoss,
    AlterTopic,
    ChangeVoters,
    ClusterChange,
    CommitOffsets,
    CreateTopic,
    DeleteGroup,
    DeleteRecords,
    DeleteTopic,
    DescribeGroup,
    DrainNode,
    Fetch,
    FetchOffsets,
    FindCoordinator,
    GroupHeartbeat,
    Hello,
    HelloReply,
    InitProducer,
    ListGroups,
    Metadata,
    MovePartitions,
    Offsets,
    Produce,
    Reply,
    Request,
    Stats,
    StatsReply,
    Status,
    StatusReply,
)
from zbroker.protocol.peers import (
    METADATA,
    Append,
    Appended,
    Decided,
    Form,
    Forward,
    Gone,
    Greeting,
    Leave,
    Register,
    SnapshotPart,
    SnapshotTaken,
    StandNow,
    Vote,
    VoteRequest,
)
from zbroker.topics import check_own, is_internal

State = Literal["starting", "serving", "leaving", "stopping", "closing", "stopped", "failed"]

TICK_MIN_MS = 80
"""How long after one full tick the next one may come: as soon as something wakes the node anyway."""
SECOND = 1000
WAITING_MS = 5000
"""How often a node that waits for others to start says for what."""
HAND_OVER_MS = 500
"""How long a controller that leaves waits for another to be elected."""
LEAVE_MS = 2000
"""How long each step of leaving waits for the controller."""


class Broker:
    """A node's decisions. See the module for its states."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        storage: Storage,
        transport: Transport,
        peers: PeerLinks,
        fresh_id: FreshId,
        random: Callable[[], float],
        report: Report,
    ) -> None:
        """
        Args:
            random: from 0 to 1, the latter excluded.
        """
        self.settings = settings
        self.state: State = "starting"
        self.error: ZBrokerError | None = None
        self.mesh = Mesh(settings, peers, changed=self._peer_changed)
        self.formation = Formation(
            settings.node, settings.disk_id, settings.voters, storage=storage,
            send=self.mesh.send, fresh_id=fresh_id,
        )  # fmt: skip
        self.keeper = Keeper(
            settings, storage=storage, transport=transport, mesh=self.mesh, reply=self.reply,
            report=report, changed=self._partition_changed,
            attach=lambda partition: self.groups.attach(partition),
        )  # fmt: skip
        self.quorum = MetadataPartition(
            settings.node, (), disk_id=settings.disk_id, storage=storage, peers=MetadataLanes(self.mesh),
            random=random, settings=ElectionSettings(settings.election_timeout),
            changed=lambda: None,
        )  # fmt: skip
        self.control = ControllerDesk(
            settings, self.quorum, self.mesh, fresh_id=fresh_id, report=report,
            identity=lambda: self.formation.identity,
        )  # fmt: skip
        self.petitions = Petitions(settings.node, self.quorum, self.control, self.mesh)
        self.admin = AdminDesk(
            settings.node, self.quorum, self.petitions, self.keeper, self.reply, fresh_id
        )
        self.groups = GroupDesk(
            settings, self.quorum, self.petitions, self.keeper, transport=transport,
            reply=self.reply, uncount=self._uncount, report=report,
        )  # fmt: skip
        self._reports = LogReports(settings.node, settings.incarnation)
        self._transport = transport
        self._report = report
        self._in_flight: dict[bytes, int] = {}
        """Unanswered requests by client."""
        self._in_flight_total = 0
        self._registering = False
        self._following = False
        """The metadata have this start registered and up: partitions are opened and appointed."""
        self._refollow: dict[str, None] = {}
        """Topics that could not be followed when they changed."""
        self._state = self.quorum.metadata
        self._seen: tuple[int, str | None, bool] = (-1, None, False)
        self._hand_over_by: int | None = None
        self._handed = False
        """Others lead what they can, as far as anybody answers: the node may go on with stopping."""
        self._leaving: Literal["", "asked", "left"] = ""
        self._started_at = self._now = self._wall = 0
        self._next_tick = self._next_beacon = self._next_second = self._next_word = 0
        self._handlers: dict[type[Any], Callable[..., None]] = {
            Produce: self._produce,
            Fetch: self._fetch,
            Offsets: self._offsets,
            DeleteRecords: self._delete_records,
            Hello: self._hello,
            Stats: self._stats,
            Status: self._status,
            Metadata: lambda to, request, _, __: self.admin.describe(to, request),
            InitProducer: self._ask_admin(self.admin.init_producer),
            CreateTopic: self._ask_admin(self.admin.create_topic),
            AlterTopic: self._ask_admin(self.admin.alter_topic),
            DeleteTopic: self._ask_admin(self.admin.delete_topic),
            MovePartitions: self._ask_admin(self.admin.move_partitions),
            DrainNode: self._ask_admin(self.admin.drain_node),
            ChangeVoters: self._ask_admin(self.admin.change_voters),
            AcceptLoss: self._ask_admin(self.admin.accept_loss),
            FindCoordinator: self._ask_admin(self.groups.find),
            GroupHeartbeat: self._ask_groups(self.groups.heartbeat),
            CommitOffsets: self._ask_groups(self.groups.commit),
            FetchOffsets: self._ask_groups(self.groups.fetch_offsets),
            DescribeGroup: self._ask_groups(self.groups.describe),
            DeleteGroup: self._ask_groups(self.groups.delete),
            ListGroups: lambda to, request, _, __: self.groups.list_groups(to, request),
        }

    # What others may know ---

    @property
    def metadata(self) -> ClusterMetadata:
        """The committed metadata, as far as they are applied here."""
        return self.quorum.metadata

    @property
    def partitions(self) -> dict[str, dict[int, Partition]]:
        """Partitions that this node keeps, by topic id and number."""
        return self.keeper.kept

    @property
    def stopped_well(self) -> bool:
        """Whether the next start may say that its last stop was in order.

        Not where the stop before this start was not, and the metadata never heard of it.
        """
        return self.state == "stopped" and (self._following or self.settings.clean)

    @property
    def due(self) -> int | None:
        """When `on_tick` is wanted before the usual 100 ms, monotonic ms."""
        return self.quorum.due

    # Life ---

    def start(self, now: int, wall: int) -> None:
        """Begins to read the logs; the state says when the node serves."""
        self._started_at, self._now, self._wall = now, now, wall
        self._next_word = now + 1000
        self.formation.open()

    def stop(self) -> None:
        """Begins to stop in order; the state says when all is flushed and closed."""
        if self.state not in ("starting", "serving"):
            return
        alone = not self.mesh.peers or not self._following
        if alone:
            self.state = "stopping"
            self._leaving = "left"
            self.keeper.stop(self.keeper, self._now)
        else:
            self.state = "leaving"
            leave = Leave(incarnation=self.settings.incarnation)
            self.petitions.ask(leave, self._handed_over, self._now, timeout=LEAVE_MS)
        self._settle()

    # Messages ---

    def on_message(self, client: bytes, frames: Sequence[Frame], now: int, wall: int) -> None:
        """A request from a client; whatever it holds, at most one reply comes of it."""
        self._now, self._wall = now, wall
        to = Conversation(client, False, 0)
        try:
            incoming = wire.split(frames)
            to = Conversation(client, incoming.delimited, 0)
            try:
                request = wire.decode_request(incoming.head)
            except ZBrokerError:
                to = Conversation(client, incoming.delimited, wire.request_id(incoming.head))
                raise
            to = Conversation(client, incoming.delimited, request.id)
            self._take(to, request, incoming.bodies, now)
        except ZBrokerError as error:
            self._transport.reply(to, wire.error_reply(error, to.id))

    def reply(self, to: Conversation, message: Reply, body: Buffer | None = None) -> None:
        """Answers a request that was counted as in flight."""
        self._uncount(to)
        self._transport.reply(to, message, body)

    def _uncount(self, to: Conversation) -> None:
        """A request is in flight no more."""
        self._in_flight_total -= 1
        left = self._in_flight[to.client] - 1
        if left > 0:
            self._in_flight[to.client] = left
        else:
            del self._in_flight[to.client]

    def on_subscribe(self, subject: bytes) -> None:
        """Somebody subscribed: a beacon at once saves the newcomer the wait for the next."""
        topic, _, number = subject.decode("utf-8", "replace").rstrip("/").rpartition("/")
        state = self.metadata.topic_named(topic)
        if state is not None and number.isascii() and number.isdigit() and len(number) <= 10:
            partition = self.partitions.get(state.topic_id, {}).get(int(number))
            if partition is not None:
                partition.beacon()

    def _take(self, to: Conversation, request: Request, bodies: Sequence[Frame], now: int) -> None:
        if self.state == "starting":
            raise NotReady("the node is starting; try again in a moment")
        if not self._following:  # it stops before it knew anything
            raise ShuttingDown("the node is stopping; another one answers")
        largest = max(map(len, bodies), default=0)
        if largest > self.settings.frame_max:
            raise MessageTooLarge(
                f"a frame has {largest} bytes, and this node takes {self.settings.frame_max} (limits: frame)",
                size=largest, limit=self.settings.frame_max,
            )  # fmt: skip
        wanted = isinstance(request, Produce)
        if len(bodies) != wanted:
            raise MalformedMessage(
                f"{len(bodies)} frames follow the head, expected {'one batch' if wanted else 'none'}"
            )
        unanswered = self._in_flight.get(to.client, 0)
        if unanswered >= self.settings.in_flight_max:
            raise Overloaded(
                f"this client has {unanswered} requests unanswered; a node takes no more at a time"
            )
        if self._in_flight_total >= self.settings.in_flight_total_max:
            raise Overloaded(f"{self._in_flight_total} requests are unanswered at this node")
        silent = isinstance(request, Produce) and request.acks == "none"
        if not silent:
            self._in_flight[to.client] = unanswered + 1
            self._in_flight_total += 1
        try:
            self._handlers[type(request)](to, request, bodies, now)
        except ZBrokerError as error:
            if not silent:
                self.reply(to, wire.error_reply(error, to.id))

    # Peers ---

    def on_peer(self, frames: Sequence[Frame], now: int, wall: int) -> None:
        """A message from another node."""
        self._now, self._wall = now, wall
        received = self.mesh.receive(frames, now)
        if received is None:
            return
        sender, incarnation, message, batches = received
        match message:
            case Append(topic_id=topic_id) if topic_id != METADATA:
                self.keeper.on_append(sender, message, batches, now)
                return
            case Appended(topic_id=topic_id) if topic_id != METADATA:
                self.keeper.on_appended(sender, incarnation, message, now)
                return
            case Append():
                self.quorum.on_append(sender, message, batches, now)
            case Appended():
                self.quorum.on_appended(sender, incarnation, message, now)
            case VoteRequest():
                self.quorum.on_vote_request(sender, message, now)
            case Vote():
                self.quorum.on_vote(sender, message, now)
            case StandNow():
                self.quorum.on_stand_now(sender, message, now)
            case SnapshotPart():
                self.quorum.on_snapshot_part(sender, message, batches, now)
            case SnapshotTaken():
                self.quorum.on_snapshot_taken(sender, incarnation, message, now)
            case Greeting():
                self.formation.on_greeting(sender, self.mesh.peers[sender].cluster, message)
            case Form():
                self.formation.on_form(sender, message)
            case Gone():
                self.control.on_gone(sender, message.nodes, now)
            case Forward():
                self.petitions.take(sender, incarnation, message, wall)
            case Decided():
                self.petitions.on_decided(message)
        self._settle()

    def on_link(self, node: str, event: Literal["gone", "up"], now: int) -> None:
        """A node's own port refused this node's connect (its process is gone), or takes one again."""
        self._now = now
        self.mesh.on_link(node, event)
        if event == "gone":
            self.quorum.on_gone(node, now)
            self._tell_gone()
        self._settle()

    def _peer_changed(self, node: str) -> None:
        """A peer is linked, or in another start."""
        starts = {
            name: PeerStart(peer.incarnation, peer.greeting.disk_id)
            for name, peer in self.mesh.peers.items()
            if peer.linked and peer.greeting is not None
        }
        self.quorum.set_peers(starts, self._now)
        self.quorum.on_back(node)

    def _tell_gone(self) -> None:
        """The controller hears, again and again, whose ports refuse this node's connects."""
        gone = {name: peer.incarnation for name, peer in self.mesh.peers.items() if peer.gone}
        leader = self.quorum.leader
        if not gone or leader is None:
            return
        if leader == self.settings.node:
            self.control.on_gone(leader, gone, self._now)
        else:
            self.mesh.send(leader, Gone(nodes=gone))

    # Events and time ---

    def on_event(self, completion: Completion, now: int) -> None:
        """A storage request is done."""
        self._now = now
        if self.keeper.on_event(completion, now):
            if self.keeper.error is not None:
                self._fail(self.keeper.error)
            if self._refollow or self.state != "serving":
                self._settle()
            return
        if isinstance(completion.request, LoadIdentity | SaveIdentity):
            self._identity_changed(completion)
        elif completion.request.owner == FOLDER:
            self.quorum.on_event(completion, now)
        elif completion.error is not None:
            self._report(
                "storage_request_failed",
                folder=completion.request.owner,
                error=str(completion.error),
            )
        self._settle()

    def on_tick(self, now: int, wall: int) -> None:
        """About every 100 ms, and when it is `due`."""
        self._now, self._wall = now, wall
        if self.formation.identity is not None:
            self.quorum.on_tick(now, wall)
        if now >= self._next_tick:
            self._next_tick = now + TICK_MIN_MS
            self._on_full_tick(now, wall)
        self._settle()

    def _on_full_tick(self, now: int, wall: int) -> None:
        self.mesh.on_tick(now)
        self._register_if_needed()  # an answer that came late may be of a registration that is over by now
        self.control.on_tick(now, wall)
        self.petitions.on_tick(now, wall)
        self._tell_gone()
        metadata = self.metadata
        eligible = [node for node in metadata.nodes if metadata.is_up(node)]
        self.groups.on_tick(now)
        self.keeper.on_tick(self.petitions, eligible, now, wall)
        if self._following:
            self._reports.look(metadata, self.keeper, self.petitions, now)
        self.admin.look(now)
        if self.state != "starting" and now >= self._next_beacon:
            self._next_beacon = now + self.settings.beacon_interval
            self.keeper.beacon()
            self._publish_change([])
        if now >= self._next_second:
            self._next_second = now + SECOND
            self.keeper.on_second(wall)
        if self.state == "starting" and now >= self._next_word:
            self._next_word = now + WAITING_MS
            self._say_what_is_missing()

    def _say_what_is_missing(self) -> None:
        """A node that does not serve yet says for what it waits."""
        disk = self.metadata.voters.get(self.settings.node, self.settings.disk_id)
        if self.formation.identity is None:
            waiting = "; ".join(self.formation.waiting_for) or "its disk"
        elif disk != self.settings.disk_id:
            waiting = (
                f"its replacement: this disk is empty, and the voter {self.settings.node} had another; "
                f"`zbroker cluster replace-voter {self.settings.node}` makes this disk the voter's"
            )
        elif self.quorum.leader is None:
            linked = [name for name, peer in self.mesh.peers.items() if peer.linked]
            heard = ", ".join(linked) or "nobody"
            waiting = f"a controller, which takes a majority of the voters; it hears {heard}"
        else:
            waiting = "its logs and the controller"
        self._report("waiting", waiting_for=waiting)

    # What follows from what happened ---

    def _identity_changed(self, completion: Completion) -> None:
        """It is known which cluster this disk belongs to: takes part in its metadata."""
        formation = self.formation
        formation.on_event(completion)
        if formation.error is not None:
            self._fail(formation.error)
        elif formation.identity is not None:
            opened = bool(self.mesh.cluster)
            self.mesh.cluster = formation.identity.cluster
            self.mesh.empty = formation.is_empty
            self.mesh.regreet()
            self.quorum.set_first_voters(formation.identity.voters)
            if not opened:
                self.quorum.open(self._now)

    def _settle(self) -> None:
        """Goes on with whatever can, after anything that may have changed the metadata or the node's own life."""
        quorum = self.quorum
        if quorum.error is not None:
            self._fail(quorum.error)
        if self.state in ("failed", "stopped"):
            return
        seen = (quorum.applied, quorum.leader, quorum.ready)
        while seen != self._seen or self._refollow:
            if seen[1:] != self._seen[1:]:
                self._tell_gone()  # another controller, which has not heard it yet
            self._seen = seen
            self._metadata_changed()
            seen = (quorum.applied, quorum.leader, quorum.ready)
        if self.state == "starting" and self._following and self.keeper.settled:
            self._serve()
        elif self.state not in ("starting", "serving"):
            self._go_on_stopping()

    def _serve(self) -> None:
        """Every partition has its role: requests are taken, once none lacks a leader for want of this node's word."""
        self._reports.look(self.metadata, self.keeper, self.petitions, self._now)
        if not self.keeper.holds_up(self.metadata):
            self.state = "serving"
            topics = len(self.metadata.topics)
            self._report("serving", topics=topics, partitions=len(self.keeper))

    def _metadata_changed(self) -> None:
        """The committed metadata grew, or their leader is another."""
        self.control.on_metadata(self._now, self._wall)
        self._register_if_needed()
        metadata = self.metadata
        if metadata is not self._state:
            # Another one, out of a snapshot: it does not say what it changed.
            self._state = metadata
            metadata.touched.update(dict.fromkeys(metadata.topics))
            metadata.nodes_touched = True
            self.keeper.set_aside(metadata, self._now)
        names: list[str] = []
        if self._following:
            touched = {**self._refollow, **metadata.touched}
            self._refollow = {}
            names = [metadata.topics[each].name for each in touched if each in metadata.topics]
            if metadata.nodes_touched:
                touched.update(dict.fromkeys(self.keeper.kept))
            changed = bool(metadata.touched) or metadata.nodes_touched
            self.groups.on_metadata(touched, nodes=metadata.nodes_touched)
            metadata.touched.clear()
            metadata.nodes_touched = False
            self.keeper.follow(metadata, touched, self.quorum.applied, self._now)
            if changed:
                self._publish_change(names)
        else:
            self._refollow = {}
        self.petitions.on_metadata(self._now)
        self.admin.look(self._now)
        self.groups.look(self._now)

    def _register_if_needed(self) -> None:
        """This start is to be registered and up, as the metadata have it; where it is, partitions are followed."""
        settings, metadata = self.settings, self.metadata
        mine = metadata.nodes.get(settings.node)
        current = (
            mine is not None
            and mine.incarnation == settings.incarnation
            and mine.disk_id == settings.disk_id
        )
        if current and not self._following and metadata.is_up(settings.node):
            self._following = True
            metadata.touched.update(dict.fromkeys(metadata.topics))
        if current and metadata.is_up(settings.node):
            return
        replaced = metadata.voters.get(settings.node, settings.disk_id) != settings.disk_id
        ready = metadata.cluster_id is not None and not replaced
        if self._registering or not ready or self.state not in ("starting", "serving"):
            return
        if self._following:
            self._report("fenced", reason=metadata.fenced.get(settings.node, ""))
        self._registering = True
        request = Register(
            disk_id=settings.disk_id, incarnation=settings.incarnation, host=settings.host,
            port=settings.port, rack=settings.rack, clean=settings.clean and not self._following,
            feature_level=FEATURE_LEVEL,
        )  # fmt: skip
        self.petitions.ask(request, self._registered, self._now)

    def _registered(self, answer: Answer) -> None:
        self._registering = False
        if answer.error is not None:
            self._fail(answer.error)

    def _partition_changed(self, topic_id: str) -> None:
        """A partition took up a role here, or ended; what waited for that goes on."""
        topic = self.metadata.topics.get(topic_id)
        if (
            topic is not None
            and self._following
            and len(self.keeper.kept.get(topic_id, {}))
            < sum(self.settings.node in state.replicas for state in topic.partitions)
        ):
            self._refollow[topic_id] = None
        self.admin.look(self._now)

    # Stopping ---

    def _handed_over(self, _: Answer) -> None:
        """The metadata say so; the partitions here are yet to follow them."""
        self._handed = True

    def _go_on_stopping(self) -> None:
        """Called when the partitions have followed the metadata: what is led here still, nobody else can lead."""
        nobody = all(peer.gone for peer in self.mesh.peers.values())
        if self.state == "leaving" and (self._handed or nobody):
            self.state = "stopping"
            self.keeper.stop([each for each in self.keeper if each.leads], self._now)
        if self.state == "stopping" and nobody and self._leaving == "asked":
            self._leaving = "left"
        finished = all(each.life != "stopping" for each in self.keeper)
        if self.state == "stopping" and not self._leaving and finished:
            self._leaving = "asked"
            leave = Leave(incarnation=self.settings.incarnation, stopped=True)
            self.petitions.ask(leave, self._left, self._now, timeout=LEAVE_MS)
        if self.state == "stopping" and self._leaving == "left":
            self.state = "closing"
            self.keeper.stop(self.keeper, self._now)
        if self.state == "closing" and self.keeper.closed:
            if self.quorum.state in ("closed", "failed") or self.formation.identity is None:
                self.state = "stopped"
            elif self.quorum.state != "closing" and self._controller_is_elsewhere():
                self.quorum.close()

    def _controller_is_elsewhere(self) -> bool:
        """Hands the metadata's leadership on before this node leaves; does not wait for long."""
        if self._hand_over_by is None:
            handing = self.quorum.hand_over(self._now)
            self._hand_over_by = self._now + HAND_OVER_MS if handing else self._now
        return self.quorum.leader != self.settings.node or self._now >= self._hand_over_by

    def _left(self, _: Answer) -> None:
        self._leaving = "left"

    def _fail(self, error: ZBrokerError) -> None:
        if self.state != "failed":
            self.state = "failed"
            self.error = error
            self._report("failed", error=str(error))

    def _publish_change(self, names: list[str]) -> None:
        if self._transport.wanted(wire.CLUSTER_SUBJECT):
            change = ClusterChange(
                cluster=self.metadata.cluster_id or "",
                version=self.quorum.applied - 1,
                node=self.settings.node,
                topics=names,
            )
            self._transport.publish(wire.CLUSTER_SUBJECT, change)

    # Requests ---

    def _ask_admin(self, handler: Callable[[Conversation, Any, int], None]) -> Callable[..., None]:
        return lambda to, request, _, now: handler(to, request, now)

    def _ask_groups(
        self, handler: Callable[[Conversation, Any, int, int], None]
    ) -> Callable[..., None]:
        return lambda to, request, _, now: handler(to, request, now, self._wall)

    def _hello(self, to: Conversation, request: Hello, _: Any, __: int) -> None:
        if PROTOCOL_VERSION not in request.versions:
            raise UnsupportedVersion(
                f"this node speaks protocol version {PROTOCOL_VERSION}, and the client offers "
                f"{request.versions[:10]}",
                versions=[PROTOCOL_VERSION],
            )
        cluster = self.metadata.cluster_id or ""
        if request.cluster is not None and request.cluster != cluster:
            raise ClusterMismatch(
                f"this node belongs to cluster {cluster}, not to {request.cluster[:40]!r}"
            )
        settings = self.settings
        reply = HelloReply(
            id=to.id, version=PROTOCOL_VERSION, cluster=cluster, node=settings.node,
            frame_max=settings.frame_max, in_flight_max=settings.in_flight_max,
            software=settings.software,
        )  # fmt: skip
        self.reply(to, reply)

    def _stats(self, to: Conversation, request: Stats, _: Any, __: int) -> None:
        topic = controller.find_topic(self.metadata, request.topic, request.topic_id)
        kept = sorted(self.partitions.get(topic.topic_id, {}).items())
        stats = [partition.stats() for _, partition in kept if partition.leads]
        self.reply(to, StatsReply(id=to.id, topic_id=topic.topic_id, partitions=stats))

    def _status(self, to: Conversation, _: Status, __: Any, now: int) -> None:
        partitions = list(self.keeper)
        reply = StatusReply(
            id=to.id, node=self.settings.node, software=self.settings.software,
            uptime=now - self._started_at, clients=self._transport.client_count(),
            topics=sum(not is_internal(topic.name) for topic in self.metadata.topics.values()),
            partitions=len(partitions),
            leading=sum(partition.leads for partition in partitions),
            under_replicated=self.keeper.under_replicated(),
            disk_full=any(partition.log.full for partition in partitions),
            size=sum(partition.log.size for partition in partitions) + self.quorum.replica.log.size,
        )  # fmt: skip
        self.reply(to, reply)

    # Records ---

    def _produce(
        self, to: Conversation, request: Produce, bodies: Sequence[Frame], now: int
    ) -> None:
        partition = self._partition(request)
        check_own(partition.topic)
        partition.produce(to, request, bodies[0], now, self._wall)

    def _fetch(self, to: Conversation, request: Fetch, _: Any, now: int) -> None:
        request.wait = min(request.wait, self.settings.wait_max)
        self._partition(request).fetch(to, request, now)

    def _offsets(self, to: Conversation, request: Offsets, _: Any, now: int) -> None:
        self._partition(request).offsets(to, request, now)

    def _delete_records(self, to: Conversation, request: DeleteRecords, _: Any, __: int) -> None:
        partition = self._partition(request)
        check_own(partition.topic)
        partition.delete_records(to, request)

    def _partition(self, request: Produce | Fetch | Offsets | DeleteRecords) -> Partition:
        """The partition that a request means, kept here.

        Raises:
            UnknownTopic, TopicChanged, UnknownPartition, NotLeader: with a sentence that says what is there.
        """
        partitions = self.keeper.kept.get(request.topic_id or "")
        if partitions is not None:
            partition = partitions.get(request.partition)
            if partition is not None:
                return partition
        topic = controller.find_topic(self.metadata, request.topic, request.topic_id)
        partition = self.keeper.find(topic.topic_id, request.partition)
        if partition is not None:
            return partition
        if request.partition >= len(topic.partitions):
            raise UnknownPartition(
                f"the topic has partitions 0 to {len(topic.partitions) - 1}, not {request.partition}",
                partitions=len(topic.partitions),
            )
        state = topic.partitions[request.partition]
        if state.leader == self.settings.node:
            raise NotReady("the partition is being opened; try again in a moment")
        who = "no node leads" if state.leader is None else f"node {state.leader!r} leads"
        raise NotLeader(
            f"{who} partition {request.partition} of topic {topic.name!r} now",
            leader=state.leader, epoch=state.epoch,
        )  # fmt: skip
