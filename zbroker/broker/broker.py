"""One node: takes every message to the machine that owns it, and keeps those machines going.

Owns the node's life, its partitions and its limits on what clients may have in flight. Never knows a socket, a file or
a clock: time comes with each call (`now` monotonic and `wall` since the epoch, both in milliseconds).

========== ========================================= ========== ======================================================
state      on                                        next       effect
========== ========================================= ========== ======================================================
starting   the metadata log is ready                 starting   forms the cluster if there is none, registers the node
starting   the registration is committed             starting   opens every partition that this node keeps
starting   every partition leads                     serving    requests are taken
serving    stop                                      stopping   new records are refused, what pends is finished
stopping   every log is closed                       stopped    the process may end
any        a log is broken beyond use                failed     the process must end; `error` says why
========== ========================================= ========== ======================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from zbroker.broker.admin import AdminDesk
from zbroker.broker.limits import Budget, ReadLedger
from zbroker.broker.metadata_log import MetadataLog
from zbroker.broker.partition import TOPICS_FOLDER, Partition
from zbroker.broker.ports import BrokerSettings, Conversation, FreshId, Report, Transport
from zbroker.cluster import controller, membership
from zbroker.cluster.metadata import TopicState
from zbroker.errors import (
    ClusterMismatch,
    DataFolderError,
    InvalidRequest,
    MalformedMessage,
    MessageTooLarge,
    NotReady,
    Overloaded,
    UnknownPartition,
    UnsupportedVersion,
    ZBrokerError,
)
from zbroker.log.delete import delete_folder
from zbroker.log.storage import Completion, Storage
from zbroker.protocol import frames as wire
from zbroker.protocol.batch import Buffer
from zbroker.protocol.frames import Frame
from zbroker.protocol.messages import (
    PROTOCOL_VERSION,
    AlterTopic,
    ChangeVoters,
    ClusterChange,
    CreateTopic,
    DeleteRecords,
    DeleteTopic,
    DrainNode,
    Fetch,
    Hello,
    HelloReply,
    InitProducer,
    InitProducerReply,
    Message,
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

State = Literal["starting", "serving", "stopping", "stopped", "failed"]

SECOND = 1000


class Broker:
    """A node's decisions. See the module for its states."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        storage: Storage,
        transport: Transport,
        fresh_id: FreshId,
        report: Report,
    ) -> None:
        self.settings = settings
        self.state: State = "starting"
        self.error: ZBrokerError | None = None
        self.log = MetadataLog(storage)
        self.partitions: dict[str, dict[int, Partition]] = {}
        """Partitions that this node keeps, by topic id and number."""
        self._storage = storage
        self._transport = transport
        self._fresh_id = fresh_id
        self._report = report
        self._owners: dict[str, Partition] = {}
        """Partitions by their log's folder: where completions go."""
        self._budget = Budget(settings.memory_max // 2)
        self._ledger = ReadLedger(
            unread=transport.unread, per_client=settings.unread_max, total=settings.memory_max // 2
        )
        self._in_flight: dict[bytes, int] = {}
        """Unanswered requests by client."""
        self._in_flight_total = 0
        self._producer_ids = range(0)
        self._registered = False
        self._unopened = 0
        self._started_at = 0
        self._wall = 0
        self._next_beacon = 0
        self._next_second = 0
        self._admin = AdminDesk(
            self.log, settings, self.reply, self._decided, self._is_opening, fresh_id
        )
        self._handlers: dict[type[Any], Callable[..., None]] = {
            Produce: self._produce,
            Fetch: self._fetch,
            Offsets: self._offsets,
            DeleteRecords: self._delete_records,
            InitProducer: self._init_producer,
            Hello: self._hello,
            Metadata: self._metadata,
            Stats: self._stats,
            Status: self._status,
            CreateTopic: self._create_topic,
            AlterTopic: self._alter_topic,
            DeleteTopic: self._delete_topic,
            MovePartitions: self._of_several_nodes,
            DrainNode: self._of_several_nodes,
            ChangeVoters: self._of_several_nodes,
        }

    # Life ---

    def start(self, now: int, wall: int) -> None:
        """Begins to read the logs; the state says when the node serves."""
        self._started_at, self._wall = now, wall
        self.log.open()

    def stop(self) -> None:
        """Begins to stop in order; the state says when all is flushed and closed."""
        if self.state in ("starting", "serving"):
            self.state = "stopping"
            for partition in self._owners.values():
                partition.stop()
            self._settle()

    # Messages ---

    def on_message(self, client: bytes, frames: Sequence[Frame], now: int, wall: int) -> None:
        """A request from a client; whatever it holds, at most one reply comes of it."""
        self._wall = wall
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
        self._in_flight_total -= 1
        left = self._in_flight[to.client] - 1
        if left > 0:
            self._in_flight[to.client] = left
        else:
            del self._in_flight[to.client]
        self._transport.reply(to, message, body)

    def on_subscribe(self, subject: bytes) -> None:
        """Somebody subscribed: a beacon at once saves the newcomer the wait for the next."""
        topic, _, number = subject.decode("utf-8", "replace").rstrip("/").rpartition("/")
        state = self.log.metadata.topic_named(topic)
        if state is not None and number.isdigit():
            partition = self.partitions.get(state.topic_id, {}).get(int(number))
            if partition is not None:
                partition.beacon()

    def _take(self, to: Conversation, request: Request, bodies: Sequence[Frame], now: int) -> None:
        if self.state not in ("serving", "stopping"):
            raise NotReady("the node is starting; try again in a moment")
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

    # Events and time ---

    def on_event(self, completion: Completion, now: int) -> None:
        """A storage request is done."""
        owner = completion.request.owner
        partition = self._owners.get(owner)
        if partition is not None:
            before = partition.state
            partition.on_event(completion, now)
            if partition.state != before:
                self._partition_changed(partition)
        elif owner == self.log.log.folder:
            self.log.on_event(completion, now)
            self._metadata_changed()
        elif completion.error is not None:
            self._report("storage_request_failed", folder=owner, error=str(completion.error))

    def on_tick(self, now: int, wall: int) -> None:
        """About every 100 ms."""
        self._wall = wall
        self.log.on_tick(now)
        self._ledger.on_tick()
        for partition in self._owners.values():
            partition.on_tick(now)
        if self.state == "serving" and now >= self._next_beacon:
            self._next_beacon = now + self.settings.beacon_interval
            for partition in self._owners.values():
                partition.beacon()
            self._publish_change([])
        if now >= self._next_second:
            self._next_second = now + SECOND
            for partition in self._owners.values():
                partition.on_second(wall)

    # Starting and stopping ---

    def _metadata_changed(self) -> None:
        if self.log.state == "failed":
            self._fail(self.log.error)
        elif self.log.state == "ready" and not self._registered and self.state == "starting":
            self._registered = True
            self._register()
        self._settle()

    def _register(self) -> None:
        """Forms the cluster where there is none, and makes this start known."""
        settings, metadata = self.settings, self.log.metadata
        if metadata.cluster_id is None:
            voters = {settings.node: settings.disk_id}
            records = controller.form_cluster(self._fresh_id(), settings.cluster_name, voters)
            self.log.propose(records, lambda _: None, self._wall)
        elif metadata.voters.get(settings.node) != settings.disk_id:
            self._fail(
                DataFolderError(
                    f"the data folder's metadata are of {', '.join(sorted(metadata.voters))}, not of "
                    f"node {settings.node!r} and this disk; give each node a data folder of its own"
                )
            )
            return
        for topic_id in self.log.deleted:
            delete_folder(self._storage, f"{TOPICS_FOLDER}/{topic_id}")
        self.log.deleted.clear()
        records = membership.register_node(
            metadata, settings.node, settings.disk_id, settings.incarnation, settings.host,
            settings.port, settings.rack,
        )  # fmt: skip
        self.log.propose(records, self._registration_done, self._wall)

    def _registration_done(self, error: ZBrokerError | None) -> None:
        if error is not None:
            self._fail(error)
            return
        for topic in self.log.metadata.topics.values():
            self._open_partitions(topic)
        self._unopened = len(self._owners)
        self._serve_when_open()

    def _open_partitions(self, topic: TopicState) -> None:
        """Opens those partitions of a topic that this node keeps and has not opened yet."""
        kept = self.partitions.setdefault(topic.topic_id, {})
        for number, state in enumerate(topic.partitions):
            if number in kept or state.leader != self.settings.node:
                continue
            partition = Partition(
                topic_id=topic.topic_id, topic=topic.name, number=number, epoch=state.epoch,
                settings=topic.settings, storage=self._storage, transport=self._transport,
                reply=self.reply, report=self._report, budget=self._budget, ledger=self._ledger,
                fetch_max=self.settings.fetch_max,
            )  # fmt: skip
            kept[number] = partition
            self._owners[partition.log.folder] = partition
            partition.open()

    def _partition_changed(self, partition: Partition) -> None:
        if partition.state == "failed":
            self._fail(partition.error)
        elif partition.state == "deleted":
            del self._owners[partition.log.folder]
            delete_folder(self._storage, partition.log.folder)
            if not any(other.topic_id == partition.topic_id for other in self._owners.values()):
                delete_folder(self._storage, f"{TOPICS_FOLDER}/{partition.topic_id}")
        elif partition.state == "leading" and self.state == "starting":
            self._unopened -= 1
            self._serve_when_open()
        elif partition.state == "leading":
            self._admin.partition_opened(partition.topic_id)
        self._settle()

    def _serve_when_open(self) -> None:
        if self.state == "starting" and self._unopened == 0:
            self.state = "serving"
            self._report(
                "serving", topics=len(self.log.metadata.topics), partitions=len(self._owners)
            )

    def _settle(self) -> None:
        """Closes the metadata last, once every partition is closed."""
        if self.state != "stopping":
            return
        done = ("closed", "deleted", "failed")
        if all(partition.state in done for partition in self._owners.values()):
            if self.log.state in ("closed", "failed"):
                self.state = "stopped"
            else:
                self.log.close()

    def _fail(self, error: ZBrokerError | None) -> None:
        if self.state != "failed":
            self.state = "failed"
            self.error = error
            self._report("failed", error=str(error))

    # Metadata and administration ---

    def _create_topic(self, to: Conversation, request: CreateTopic, _: Any, __: int) -> None:
        self._admin.create_topic(to, request, self._wall)

    def _alter_topic(self, to: Conversation, request: AlterTopic, _: Any, __: int) -> None:
        self._admin.alter_topic(to, request, self._wall)

    def _delete_topic(self, to: Conversation, request: DeleteTopic, _: Any, __: int) -> None:
        self._admin.delete_topic(to, request, self._wall)

    def _of_several_nodes(self, _: Conversation, __: Message, ___: Any, ____: int) -> None:
        raise InvalidRequest("this cluster has one node: there is nowhere to move anything")

    def _metadata(self, to: Conversation, request: Metadata, _: Any, __: int) -> None:
        self._admin.describe(to, request)

    def _decided(self, topic_id: str, name: str) -> None:
        """A decision about a topic is committed: makes it so here, and tells those who listen."""
        topic = self.log.metadata.topics.get(topic_id)
        kept = self.partitions.get(topic_id, {})
        if topic is None:
            for partition in self.partitions.pop(topic_id, {}).values():
                partition.delete()
                if partition.state == "deleted":
                    self._partition_changed(partition)
        else:
            for partition in kept.values():
                partition.alter(topic.settings)
            self._open_partitions(topic)
        self._publish_change([name])

    def _is_opening(self, topic_id: str) -> bool:
        partitions = self.partitions.get(topic_id, {}).values()
        return any(partition.state in ("opening", "beginning") for partition in partitions)

    def _publish_change(self, names: list[str]) -> None:
        if self._transport.wanted(wire.CLUSTER_SUBJECT):
            change = ClusterChange(
                cluster=self.log.metadata.cluster_id or "",
                version=self.log.committed,
                node=self.settings.node,
                topics=names,
            )
            self._transport.publish(wire.CLUSTER_SUBJECT, change)

    def _hello(self, to: Conversation, request: Hello, _: Any, __: int) -> None:
        if PROTOCOL_VERSION not in request.versions:
            raise UnsupportedVersion(
                f"this node speaks protocol version {PROTOCOL_VERSION}, and the client offers "
                f"{request.versions[:10]}",
                versions=[PROTOCOL_VERSION],
            )
        cluster = self.log.metadata.cluster_id or ""
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
        topic = controller.find_topic(self.log.metadata, request.topic, request.topic_id)
        partitions = self.partitions.get(topic.topic_id, {})
        stats = [partitions[number].stats() for number in sorted(partitions)]
        self.reply(to, StatsReply(id=to.id, topic_id=topic.topic_id, partitions=stats))

    def _status(self, to: Conversation, _: Status, __: Any, now: int) -> None:
        partitions = self._owners.values()
        reply = StatusReply(
            id=to.id, node=self.settings.node, software=self.settings.software,
            uptime=now - self._started_at, clients=self._transport.client_count(),
            topics=len(self.log.metadata.topics), partitions=len(partitions),
            leading=sum(partition.state == "leading" for partition in partitions),
            disk_full=any(partition.log.full for partition in partitions),
            size=sum(partition.log.size for partition in partitions) + self.log.log.size,
        )  # fmt: skip
        self.reply(to, reply)

    # Records ---

    def _init_producer(self, to: Conversation, _: InitProducer, __: Any, ___: int) -> None:
        if self._producer_ids:
            producer_id, self._producer_ids = self._producer_ids[0], self._producer_ids[1:]
            self.reply(to, InitProducerReply(id=to.id, producer_id=producer_id, producer_epoch=0))
            return
        records = controller.grant_producer_ids(self.log.metadata, self.settings.node)
        first = self.log.metadata.next_producer_id

        def granted(error: ZBrokerError | None) -> None:
            if error is not None:
                self.reply(to, wire.error_reply(error, to.id))
                return
            block = range(first, first + controller.PRODUCER_ID_BLOCK)
            self.reply(to, InitProducerReply(id=to.id, producer_id=block[0], producer_epoch=0))
            self._producer_ids = self._producer_ids or block[1:]

        self.log.propose(records, granted, self._wall)

    def _produce(
        self, to: Conversation, request: Produce, bodies: Sequence[Frame], now: int
    ) -> None:
        self._partition(request).produce(to, request, bodies[0], now, self._wall)

    def _fetch(self, to: Conversation, request: Fetch, _: Any, now: int) -> None:
        request.wait = min(request.wait, self.settings.wait_max)
        self._partition(request).fetch(to, request, now)

    def _offsets(self, to: Conversation, request: Offsets, _: Any, __: int) -> None:
        self._partition(request).offsets(to, request)

    def _delete_records(self, to: Conversation, request: DeleteRecords, _: Any, __: int) -> None:
        self._partition(request).delete_records(to, request)

    def _partition(self, request: Produce | Fetch | Offsets | DeleteRecords) -> Partition:
        """The partition that a request means, led here.

        Raises:
            UnknownTopic, TopicChanged, UnknownPartition: with a sentence that says what is there.
        """
        partitions = self.partitions.get(request.topic_id or "")
        if partitions is None:
            topic = controller.find_topic(self.log.metadata, request.topic, request.topic_id)
            partitions = self.partitions.get(topic.topic_id, {})
        partition = partitions.get(request.partition)
        if partition is None and not partitions:
            raise NotReady("the topic is being made; try again in a moment")
        if partition is None:
            raise UnknownPartition(
                f"the topic has partitions 0 to {len(partitions) - 1}, not {request.partition}",
                partitions=len(partitions),
            )
        return partition
