"""A cluster of nodes in simulated time: replicated partitions, leaders that move, nodes that die, freeze or linger.

Owns time, the network between clients and nodes, each node's log and what it believes of the cluster. Of replication
only the outcome is modelled: what each in-sync replica has is committed, a new epoch fences the one before, and a node
learns of either when its metadata arrive. The clients are the real cores; see `cluster_clients`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

import msgspec

from zbroker.errors import (
    Diverged,
    NotEnoughReplicas,
    NotLeader,
    NotReady,
    OffsetOutOfRange,
    StaleEpoch,
    ZBrokerError,
)
from zbroker.log.producers import ProducerTable
from zbroker.protocol import frames, messages
from zbroker.protocol.batch import BatchHeader, check_ingest, decode_records, read_header, stamp
from zbroker.protocol.messages import ClusterChange, Push
from zbroker.units import Address

TOPIC, TOPIC_ID = "t", "0" * 31 + "1"
BEACONS = 0.5
SESSION = 1.0
"""Seconds of silence after which a node counts as dead; a crash shows at once."""


class Seat(msgspec.Struct, frozen=True):
    """Who leads a partition, and who counts."""

    leader: str | None
    epoch: int
    isr: tuple[str, ...]


class Replica:
    """One node's copy of a partition."""

    def __init__(self) -> None:
        self.log: list[tuple[BatchHeader, bytes]] = []
        self.table = ProducerTable(10**12)
        self.high_watermark = 0
        self.acked: dict[str, int] = {}
        """As the leader: how far each follower is in this epoch."""
        self.began = -1
        """The epoch that this node leads."""
        self.waiters: list[tuple[int, Any, messages.ProduceReply]] = []
        self.readers: list[tuple[float, Any, messages.Fetch]] = []

    @property
    def end(self) -> int:
        return self.log[-1][0].next_offset if self.log else 0

    def append(self, header: BatchHeader, batch: bytes) -> None:
        self.log.append((header, batch))
        self.table.append(header)
        self.table.settled = header.next_offset

    def become(self, other: Replica) -> None:
        """Equal to the leader's log: cut where they part, and filled up."""
        mine, its = self.log, other.log
        if len(mine) > len(its) or (mine and mine[-1] is not its[len(mine) - 1]):
            self.log, self.table = [], ProducerTable(10**12)
        for header, batch in its[len(self.log) :]:
            self.append(header, batch)
        self.log[:] = its  # the very same batches: so the next comparison is one of identity
        self.high_watermark = min(self.high_watermark, self.end)

    def end_of_epoch(self, epoch: int) -> tuple[int, int]:
        """The newest epoch up to this one that has records, and where it ends."""
        found, end = -1, 0
        for header, _ in self.log:
            if header.leader_epoch <= epoch:
                found, end = header.leader_epoch, header.next_offset
        return found, end


class Node:
    """A node: whether it runs, what it believes, what it keeps."""

    def __init__(self, name: str, number: int, partitions: int) -> None:
        self.name = name
        self.address = Address(f"10.0.0.{number}", 5550)
        self.state = "up"
        """up; down: refuses; frozen: takes and does not answer; dark: a black hole; apart: cut off from the others."""
        self.version = 0
        self.seats: list[Seat] = []
        self.inbox: list[Callable[[], None]] = []
        self.replicas = [Replica() for _ in range(partitions)]

    @property
    def works(self) -> bool:
        return self.state in ("up", "apart")


class SimCluster:
    """Nodes, time, and everything under way."""

    def __init__(
        self, seed: int = 0, *, nodes: int = 3, partitions: int = 1, min_insync: int = 1
    ) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.min_insync = min_insync
        self.nodes = {
            f"n{number}": Node(f"n{number}", number, partitions) for number in range(1, nodes + 1)
        }
        names = list(self.nodes)
        self.version = 1
        self.seats = [Seat(names[number % nodes], 1, tuple(names)) for number in range(partitions)]
        self.truth: list[list[tuple[BatchHeader, bytes]]] = [[] for _ in range(partitions)]
        """What is committed."""
        self.clients: list[Any] = []
        self.drop = 0.0
        """Share of what is pushed that is lost."""
        self.delay: Callable[[], float] = lambda: 0.0005
        self.metadata_lag: Callable[[], float] = lambda: 0.001
        self.detection: Callable[[], float] = lambda: 0.03
        self.announced: list[float] = []
        """When metadata changed."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._lines: dict[Any, float] = {}
        self._producer_ids = 100
        for node in self.nodes.values():
            node.version, node.seats = self.version, list(self.seats)
            self._begin(node)
        self.at(BEACONS, self._beacons)

    # Time ---

    def at(self, delay: float, action: Callable[[], None], line: Any = None) -> None:
        """Does something later; what travels on the same line keeps its order."""
        when = self.now + delay
        if line is not None:
            when = self._lines[line] = max(when, self._lines.get(line, 0.0))
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, action))

    def run(
        self, until: float = 1e9, done: Callable[[], bool] = lambda: False, steps: int = 200_000
    ) -> None:
        """Lets time pass to `until`, or until something is so."""
        for _ in range(steps):
            wanted = [client.step() for client in self.clients]
            if done():
                return
            times = [max(time, self.now) for time in wanted if time is not None]
            following = min([*times, self._heap[0][0]])
            if following > until:
                self.now = until
                return
            self.now = max(self.now, following)
            while self._heap and self._heap[0][0] <= self.now:
                heapq.heappop(self._heap)[2]()
        raise AssertionError("it goes round and round")

    def run_for(self, seconds: float) -> None:
        self.run(until=self.now + seconds)

    # Faults ---

    def kill(self, name: str) -> None:
        """A crash: connections break, and the others notice soon."""
        node = self.nodes[name]
        node.state = "down"
        node.inbox.clear()
        for client in self.clients:
            self.at(
                0.0002, lambda client=client: client.lost(node.address, "the connection was lost")
            )  # type: ignore[misc]
        for replica in node.replicas:
            replica.waiters.clear()
            replica.readers.clear()
            replica.began = -1
        self.at(self.detection(), lambda: self._fence(name))

    def freeze(self, name: str, state: str = "frozen") -> None:
        """It answers nothing (or, `apart`, without the others), which notice its silence."""
        self.nodes[name].state = state
        self.at(SESSION + self.detection(), lambda: self._fence(name))

    def heal(self, name: str) -> None:
        """It runs again, and soon knows what the others know."""
        node = self.nodes[name]
        if node.state == "up":
            return
        started, node.state = node.state == "down", "up"
        inbox, node.inbox = node.inbox, []
        for arrive in inbox:  # what was queued comes first, and meets what it believed
            arrive()
        if started:  # no leadership outlives a start
            for number, seat in enumerate(self.seats):
                if seat.leader == name:
                    self._seat(number, Seat(name, seat.epoch + 1, seat.isr))
            self._announce()
        self.at(self.metadata_lag(), lambda: self._learn(node))
        self.at(0.05, lambda: self._join(name))
        for number in range(len(self.seats)):
            self._replicate_later(number)

    def move(self, partition: int, to: str, *, unclean: bool = False) -> None:
        """Another leader is appointed."""
        seat = self.seats[partition]
        isr = (to,) if unclean else seat.isr
        if to in seat.isr or unclean:
            if unclean:
                self.truth[partition] = list(self.nodes[to].replicas[partition].log)
            self._seat(partition, Seat(to, seat.epoch + 1, isr))
            self._announce()

    def _fence(self, name: str) -> None:
        """The controller takes a node that is dead out of every ISR, and appoints leaders."""
        if self.nodes[name].state == "up":
            return
        changed = False
        for number, seat in enumerate(self.seats):
            if name not in seat.isr:
                continue
            isr = tuple(one for one in seat.isr if one != name) or seat.isr
            leader, epoch = seat.leader, seat.epoch
            if leader == name:
                alive = [one for one in isr if self.nodes[one].state == "up"]
                leader, epoch = (self.random.choice(alive) if alive else None), epoch + 1
            if (leader, epoch, isr) != (seat.leader, seat.epoch, seat.isr):
                self._seat(number, Seat(leader, epoch, isr))
                changed = True
        if changed:
            self._announce()

    def _join(self, name: str) -> None:
        """A node that is back catches up and is in sync again; a partition without a leader gets one."""
        node, changed = self.nodes[name], False
        if node.state != "up":
            return
        for number, seat in enumerate(self.seats):
            leader = self.nodes.get(seat.leader or "")
            if leader is None:
                alive = [one for one in seat.isr if self.nodes[one].state == "up"]
                if not alive:
                    continue
                seat = Seat(alive[0], seat.epoch + 1, tuple(alive))
                self._seat(number, seat)
                leader, changed = self.nodes[alive[0]], True
            if name not in seat.isr and leader.works:
                node.replicas[number].become(leader.replicas[number])
                self._seat(number, Seat(seat.leader, seat.epoch, (*seat.isr, name)))
                changed = True
        if changed:
            self._announce()
        self.at(0.1, lambda: self._join(name) if self._lacks(name) else None)

    def _lacks(self, name: str) -> bool:
        return any(name not in seat.isr or seat.leader is None for seat in self.seats)

    def _seat(self, partition: int, seat: Seat) -> None:
        self.seats[partition] = seat
        self._replicate_later(partition)

    # Metadata ---

    def _announce(self) -> None:
        self.version += 1
        self.announced.append(self.now)
        for node in self.nodes.values():
            self.at(self.metadata_lag(), lambda node=node: self._learn(node))  # type: ignore[misc]

    def _learn(self, node: Node) -> None:
        """A node's metadata catch up; it says so to whoever listens."""
        if node.state != "up" or node.version == self.version:
            return
        node.version, node.seats = self.version, list(self.seats)
        for number, replica in enumerate(node.replicas):
            seat = node.seats[number]
            if (seat.leader, seat.epoch) != (node.name, replica.began):
                self._resign(replica, seat)
        self._begin(node)
        self._push(node, frames.CLUSTER_SUBJECT, self._change(node))

    def _begin(self, node: Node) -> None:
        for number, seat in enumerate(node.seats):
            replica = node.replicas[number]
            if seat.leader == node.name and replica.began != seat.epoch:
                replica.began, replica.acked = seat.epoch, {}
                self._replicate_later(number)

    @staticmethod
    def _resign(replica: Replica, seat: Seat) -> None:
        replica.began = -1
        error = NotLeader(
            "another node leads it now", outcome_unknown=True, leader=seat.leader, epoch=seat.epoch
        )
        for _, answer, _ in replica.waiters:
            answer(error)
        for _, answer, _ in replica.readers:
            answer(NotLeader("another node leads it now"))
        replica.waiters, replica.readers = [], []

    def _change(self, node: Node) -> ClusterChange:
        return ClusterChange(cluster="c", version=node.version, node=node.name)

    # Replication ---

    def _replicate_later(self, partition: int) -> None:
        self.at(self.delay(), lambda: self._replicate(partition), ("replicas", partition))

    def _replicate(self, partition: int) -> None:
        """Every replica in sync that can be reached has what the leader has; what all have is committed."""
        seat = self.seats[partition]
        leader = self.nodes.get(seat.leader or "")
        if leader is None or leader.state != "up":
            return
        replica = leader.replicas[partition]
        if replica.began != seat.epoch:
            return
        for name in seat.isr:
            if name != leader.name and self.nodes[name].state == "up":
                self.nodes[name].replicas[partition].become(replica)
                replica.acked[name] = replica.end
        if len(seat.isr) < self.min_insync:
            waiters, replica.waiters = replica.waiters, []
            for _, answer, _ in waiters:
                answer(NotEnoughReplicas("too few are in sync"))
            return
        others = [replica.acked.get(name, -1) for name in seat.isr if name != leader.name]
        committed = min([replica.end, *others])
        if committed >= replica.high_watermark and committed >= 0:
            self._commit(partition, leader, committed)

    def _commit(self, partition: int, leader: Node, end: int) -> None:
        replica, truth = leader.replicas[partition], self.truth[partition]
        assert replica.log[: len(truth)] == truth, "the simulation lost what was committed"
        for header, batch in replica.log[len(truth) :]:
            if header.next_offset <= end:
                truth.append((header, batch))
                replica.high_watermark = header.next_offset
                self._push(
                    leader, frames.subject(TOPIC, partition), self._head(replica, partition), batch
                )
        replica.high_watermark = end
        waiting = replica.waiters
        replica.waiters = [waiter for waiter in waiting if waiter[0] > end]
        for needed, answer, reply in waiting:
            if needed <= end:
                answer(reply)
        readers, replica.readers = replica.readers, []
        for _, answer, request in readers:
            self._fetch(leader, request, answer)

    @staticmethod
    def _head(replica: Replica, partition: int) -> Push:
        return Push(
            topic_id=TOPIC_ID, partition=partition, epoch=replica.began, high_watermark=replica.high_watermark
        )  # fmt: skip

    # Push ---

    def _beacons(self) -> None:
        for node in self.nodes.values():
            if node.works:
                self._push(node, frames.CLUSTER_SUBJECT, self._change(node))
                for number, replica in enumerate(node.replicas):
                    if replica.began >= 0:
                        self._push(node, frames.subject(TOPIC, number), self._head(replica, number))
                        due = [waiter for waiter in replica.readers if waiter[0] <= self.now]
                        replica.readers = [one for one in replica.readers if one not in due]
                        for _, answer, request in due:
                            self._fetch(node, request, answer, may_wait=False)
        self.at(BEACONS, self._beacons)

    def _push(self, node: Node, subject: bytes, head: Any, body: bytes | None = None) -> None:
        for client in self.clients:
            if (
                subject in client.subjects.get(node.address, ())
                and self.random.random() >= self.drop
            ):
                head = msgspec.structs.replace(head)
                self.at(
                    self.delay(),
                    lambda client=client, head=head: client.pushed(
                        node.address, subject, head, body
                    ),  # type: ignore[misc]
                    (node.name, client, "push"),
                )

    def subscribed(self, client: Any, address: Address, subject: bytes) -> None:
        """A subscription arrives: a beacon at once."""
        node = self._at(address)
        if node is None or not node.works or subject == frames.CLUSTER_SUBJECT:
            return
        number = int(subject.split(b"/")[1])
        if node.replicas[number].began >= 0:
            self._push(node, subject, self._head(node.replicas[number], number))

    # Requests ---

    def _at(self, address: Address) -> Node | None:
        return next((node for node in self.nodes.values() if node.address == address), None)

    def transmit(self, client: Any, address: Address, head: bytes, body: bytes | None) -> None:
        """A request leaves a client."""
        node = self._at(address)
        connection = client.connections.get(address, 0)
        if node is None or node.state == "down":
            self.at(0.0003, lambda: client.lost(address, "the connection was refused", connection))
        elif node.state != "dark":
            self.at(
                self.delay(), lambda: self._arrive(node, client, connection, head, body), (client, address, "request"),
            )  # fmt: skip

    def _arrive(
        self, node: Node, client: Any, connection: int, head: bytes, body: bytes | None
    ) -> None:
        if node.state == "frozen":
            node.inbox.append(lambda: self._arrive(node, client, connection, head, body))
        if not node.works:
            return
        request = frames.decode_request(head)

        def answer(reply: Any, chunk: bytes | None = None) -> None:
            if not node.works:
                return
            if isinstance(reply, ZBrokerError):
                reply = frames.error_reply(reply, request.id)
            reply.id = request.id
            found = frames.decode_reply(frames.encode(reply))
            self.at(
                self.delay(),
                lambda: client.replied(node.address, connection, found, chunk),
                (node.name, client, "reply"),
            )

        try:
            self._handle(node, request, body, answer)
        except ZBrokerError as error:
            answer(error)

    def _handle(self, node: Node, request: Any, body: Any, answer: Any) -> None:
        if isinstance(request, messages.Metadata):
            answer(self._metadata(node))
        elif isinstance(request, messages.InitProducer):
            self._producer_ids += 1
            answer(messages.InitProducerReply(producer_id=self._producer_ids))
        elif isinstance(request, messages.Status):
            answer(messages.StatusReply(node=node.name, software="simulated"))
        elif isinstance(request, messages.CreateTopic):
            if node.name != self.controller:
                raise NotLeader("ask the controller", leader=self.controller)
            answer(messages.CreateTopicReply(topic=self._metadata(node).topics[0]))
        elif isinstance(request, messages.Stats):
            leading = [n for n, replica in enumerate(node.replicas) if replica.began >= 0]
            stats = [
                messages.PartitionStats(partition=n, end_offset=node.replicas[n].end)
                for n in leading
            ]
            answer(messages.StatsReply(topic_id=TOPIC_ID, partitions=stats))
        else:
            seat, replica = node.seats[request.partition], node.replicas[request.partition]
            if seat.leader != node.name:
                raise NotLeader("not here", leader=seat.leader, epoch=seat.epoch)
            if replica.began != seat.epoch:
                raise NotReady("it is about to lead")
            if isinstance(request, messages.Produce):
                self._produce(node, request, body, answer)
            elif isinstance(request, messages.Fetch):
                self._fetch(node, request, answer)
            else:
                assert isinstance(request, messages.Offsets)
                offset = 0 if request.at == "earliest" else replica.high_watermark
                epochs = [
                    header.leader_epoch for header, _ in replica.log if header.next_offset <= offset
                ]
                answer(messages.OffsetsReply(
                    offset=offset, epoch=max(epochs, default=-1), leader_epoch=replica.began,
                    high_watermark=replica.high_watermark,
                ))  # fmt: skip

    @property
    def controller(self) -> str | None:
        """The first node that runs."""
        return next((node.name for node in self.nodes.values() if node.state == "up"), None)

    def _metadata(self, node: Node) -> messages.MetadataReply:
        parts = [
            messages.Partition(
                partition=n, leader=seat.leader, epoch=seat.epoch, replicas=list(self.nodes), isr=list(seat.isr)
            )
            for n, seat in enumerate(node.seats)
        ]  # fmt: skip
        return messages.MetadataReply(
            cluster="c", version=node.version, controller=self.controller,
            nodes=[
                messages.Node(name=one.name, host=one.address.host, port=one.address.port)
                for one in self.nodes.values()
            ],
            topics=[messages.Topic(name=TOPIC, topic_id=TOPIC_ID, partitions=parts)],
        )  # fmt: skip

    def _produce(self, node: Node, request: messages.Produce, body: bytes, answer: Any) -> None:
        replica = node.replicas[request.partition]
        header = check_ingest(bytes(body), max_length=1 << 20)
        found = replica.table.check(header)
        if found is not None:
            reply = messages.ProduceReply(
                base_offset=found.base_offset, duplicate=True, durability="flushed"
            )
            end = found.base_offset + header.span
        else:
            batch = bytearray(body)
            stamp(
                batch, base_offset=replica.end, append_time=replica.end, leader_epoch=replica.began
            )
            stamped = read_header(batch)
            replica.append(stamped, bytes(batch))
            reply = messages.ProduceReply(base_offset=stamped.base_offset, durability="flushed")
            end = replica.end
        if end <= replica.high_watermark:
            answer(reply)
        else:
            replica.waiters.append((end, answer, reply))
            self._replicate_later(request.partition)

    def _fetch(
        self, node: Node, request: messages.Fetch, answer: Any, *, may_wait: bool = True
    ) -> None:
        replica = node.replicas[request.partition]
        try:
            self._check_position(replica, request)
        except ZBrokerError as error:
            answer(error)
            return
        if request.offset >= replica.high_watermark and request.wait and may_wait:
            replica.readers.append((self.now + request.wait / 1000, answer, request))
            return
        chunk, size, base, reached, epoch = [], 0, request.offset, request.offset, -1
        for header, batch in replica.log:
            if header.next_offset <= request.offset:
                epoch = header.leader_epoch
            elif header.next_offset <= replica.high_watermark and size <= request.max_bytes:
                base = header.base_offset if not chunk else base
                chunk.append(batch)
                size += len(batch)
                reached, epoch = header.next_offset, header.leader_epoch
        answer(
            messages.FetchReply(
                topic_id=TOPIC_ID, partition=request.partition, epoch=replica.began, base=base, next=reached,
                next_epoch=epoch, high_watermark=replica.high_watermark,
            ),
            b"".join(chunk),
        )  # fmt: skip

    @staticmethod
    def _check_position(replica: Replica, request: messages.Fetch) -> None:
        if request.offset > replica.end:
            raise OffsetOutOfRange("beyond the end", start=0, end=replica.high_watermark)
        if request.epoch < 0 or request.offset == 0:
            return
        if request.epoch > replica.began:
            raise StaleEpoch("this node is behind")
        found, end = replica.end_of_epoch(request.epoch)
        if found != request.epoch or request.offset > end:
            raise Diverged("another history", epoch=found, end=min(end, request.offset))

    def values(self, partition: int) -> list[bytes | None]:
        """What is committed of a partition."""
        found: list[bytes | None] = []
        for header, batch in self.truth[partition]:
            found += [row[2] for row in decode_records(batch, 0, header) if row is not None]
        return found
