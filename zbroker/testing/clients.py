"""Clients of a simulated cluster: producers, readers, and one who asks whom it should not.

Owns how they are driven: `zbroker.client`'s own cores decide, this is the socket and the clock around them. What they
see goes into a `History`. `Prober` alone speaks the protocol itself, to any node, leader or not, as a client would
that has missed every change; and without sequences, so that each of its records may be there once or not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zbroker.client.accumulator import Accumulator
from zbroker.client.buffer import ConsumerSettings, Start
from zbroker.client.consuming import ConsumerCore
from zbroker.client.delivery import Batch
from zbroker.client.exchange import Call, Exchange, Outcome, Reopen, Subscription, Transmit
from zbroker.client.metadata import Cluster
from zbroker.client.producing import ProducerCore, ProducerSettings
from zbroker.client.records import RecordMetadata, TopicPartition
from zbroker.errors import Diverged, OffsetOutOfRange, TopicChanged, UnknownTopic, ZBrokerError
from zbroker.protocol import frames as wire
from zbroker.protocol import messages
from zbroker.protocol.batch import decode_records, encode_batch, iter_batches
from zbroker.testing.cluster import BASE_PORT
from zbroker.testing.history import Asked, History, Poll, Send
from zbroker.testing.timeline import MS, SECOND
from zbroker.units import Address

if TYPE_CHECKING:
    from zbroker.testing.cluster import SimulatedCluster

REQUEST_TIMEOUT = 1.5
"""Seconds that a node has to answer."""
DELIVERY_TIMEOUT = 8.0
"""Seconds after which a producer gives a record up."""
REREAD_BYTES = 20_000


class SimulatedClient:
    """A client's sockets and clock, around whatever decides.

    Attributes:
        exchange, metadata: as in every client.
        connections: how often the socket to each node was opened; what was sent over an earlier one is not answered.
    """

    def __init__(self, name: str, cluster: SimulatedCluster) -> None:
        self.name = name
        self.cluster = cluster
        self.rng = random.Random(f"{cluster.seed} {name}")
        self.exchange = Exchange()
        self.addresses = {
            machine.name: Address(machine.host, BASE_PORT) for machine in cluster.machines.values()
        }
        self.nodes = {address: node for node, address in self.addresses.items()}
        servers = self.rng.sample(list(self.nodes), len(self.nodes))
        self.metadata = Cluster(servers, self.exchange, self.rng.random)
        self.connections = dict.fromkeys(self.addresses, 0)
        self.stopped = False
        self._wanted: dict[str, dict[bytes, None]] = {}
        self._turn_at = -1
        cluster.clients[name] = self
        cluster.timeline.after(self.rng.randrange(20 * MS), self.turn)

    @property
    def now(self) -> float:
        """The client's clock, seconds."""
        return self.cluster.timeline.now / SECOND

    # The core's turn ---

    def decide(self) -> float | None:
        """What the core does now; when it wants to be called again."""
        return None

    def on_push(self, push: messages.Push, body: bytes | None) -> None:
        """A batch or a beacon was pushed."""

    def turn(self) -> None:
        """One turn of the client's thread."""
        if self.stopped:
            return
        self.exchange.tick(self.now)
        wanted = [self.decide(), self.metadata.step(self.now)]
        for effect in self.exchange.take_effects():
            self._carry_out(effect)
        wanted.append(self.exchange.next_deadline())
        times = [time for time in wanted if time is not None]
        if times:
            self._wake(max(int(min(times) * SECOND), self.cluster.timeline.now + 100))

    def soon(self) -> None:
        """Something came in: the core is to look."""
        self._wake(self.cluster.timeline.now + 10)

    def _wake(self, at: int) -> None:
        if self._turn_at < self.cluster.timeline.now or at < self._turn_at:
            self._turn_at = at
            self.cluster.timeline.at(at, lambda: self._woken(at))

    def _woken(self, at: int) -> None:
        if at == self._turn_at:
            self._turn_at = -1
            self.turn()

    def stop(self) -> None:
        """The client does nothing any more."""
        self.stopped = True

    # Sockets ---

    def _carry_out(self, effect: Transmit | Reopen | Subscription) -> None:
        node = self.nodes[effect.address]
        if isinstance(effect, Transmit):
            frames = [effect.head] if effect.body is None else [effect.head, bytes(effect.body)]
            self.send(node, frames)
            if effect.oneway:
                self.exchange.on_sent(effect.oneway, self.now)
        elif isinstance(effect, Reopen):
            self._reopen(node)
        else:
            subjects = self._wanted.setdefault(node, {})
            if effect.action == "add":
                subjects[effect.subject] = None
            elif effect.action == "drop":
                subjects.pop(effect.subject, None)
            self._subscribe(node, effect.subject, effect.action != "drop")

    def send(self, node: str, frames: list[bytes]) -> None:
        """A request on its way."""
        route = f"{self.name}#{self.connections[node]}".encode()
        self.cluster.network.send(
            self.name, node, "request", (route, frames), sum(map(len, frames))
        )

    def _reopen(self, node: str) -> None:
        self.connections[node] += 1
        self.cluster.network.forget_waiting(self.name, node)
        self.connection_made(node)

    def _subscribe(self, node: str, subject: bytes, wanted: bool) -> None:
        self.cluster.network.send(self.name, node, "subscribe", (subject, wanted))

    def connection_made(self, node: str) -> None:
        """See `cluster.Client`."""
        for subject in self._wanted.get(node, ()):
            self._subscribe(node, subject, True)

    def connection_lost(self, node: str) -> None:
        """See `cluster.Client`."""
        self.connections[node] += 1
        self.exchange.on_lost(self.addresses[node], "the connection was lost", self.now)
        self.soon()

    def receive(self, node: str, lane: str, content: Any) -> None:
        """See `cluster.Client`."""
        if self.stopped:
            return
        if lane == "reply":
            route, head, body = content
            if route == f"{self.name}#{self.connections[node]}".encode():
                self.answered(node, wire.decode_reply(head), body)
        else:
            subject, head, body = content
            if subject not in self._wanted.get(node, ()):
                return
            if subject == wire.CLUSTER_SUBJECT:
                self.metadata.on_change(wire.decode_change(head), self.now)
            else:
                self.on_push(wire.decode_push(head), body)
        self.soon()

    def answered(self, node: str, reply: messages.Reply, body: bytes | None) -> None:
        """A reply came."""
        self.exchange.on_reply(self.addresses[node], reply, body, self.now)


class SimulatedProducer(SimulatedClient):
    """An application that sends unique values to every partition of its topics, with a real producer's core.

    Attributes:
        pace: least and most microseconds between two sends.
        sending: whether it goes on.
    """

    def __init__(
        self,
        name: str,
        cluster: SimulatedCluster,
        history: History,
        topics: dict[str, int],
        *,
        acks: str = "all",
        pace: tuple[int, int] = (5 * MS, 60 * MS),
        size: int = 60,
    ) -> None:
        """
        Args:
            topics: names, with how many partitions each has.
        """
        super().__init__(name, cluster)
        self.history = history
        self.topics = topics
        self.pace = pace
        self.size = size
        self.sending = True
        self.accumulator = Accumulator(
            batch_bytes=1500, buffer_bytes=1 << 20, linger=0.005, delivery_timeout=DELIVERY_TIMEOUT,
            record_max=1 << 20, clock=lambda: self.now, wall=lambda: 1_790_000_000 + self.now,
        )  # fmt: skip
        settings = ProducerSettings(acks=acks, codec=0, request_timeout=REQUEST_TIMEOUT)  # type: ignore[arg-type]
        self.core = ProducerCore(
            settings, self.accumulator, self.exchange, self.metadata, self.rng.random
        )
        self.accumulator.wake = lambda _by: self.soon()
        self._acks = acks
        self._order = 0
        self._sends: dict[bytes, Send] = {}
        cluster.timeline.after(self.rng.randrange(50 * MS), self._application)

    def _application(self) -> None:
        if not self.sending or self.stopped:
            return
        topic = self.rng.choice(sorted(self.topics))
        for _ in range(self.rng.choice((1, 1, 1, 2, 6))):
            self.put(topic, self.rng.randrange(self.topics[topic]))
        self.cluster.timeline.after(self.rng.randint(*self.pace), self._application)
        self.soon()

    def put(self, topic: str, partition: int) -> Send:
        """Sends one record."""
        self._order += 1
        value = f"{self.name}:{self._order}".encode().ljust(self.rng.randint(1, self.size), b".")
        sent = Send(
            self.name, "", value, self._order, self.now,
            idempotent=self._acks == "all", ordered=self._acks == "all",
        )  # fmt: skip
        self.history.sends.append(sent)
        try:
            self.accumulator.append(
                topic, value, None, partition, None, (),
                lambda metadata, error: self._delivered(sent, metadata, error), block=0,
            )  # fmt: skip
        except ZBrokerError as error:
            sent.outcome, sent.error, sent.ended = "fail", error.code, self.now
        return sent

    def _delivered(
        self, sent: Send, metadata: RecordMetadata | None, error: ZBrokerError | None
    ) -> None:
        sent.ended = self.now
        if metadata is not None:
            sent.outcome, sent.offset = "ok", metadata.offset
            stream = self.core.streams[metadata.topic, metadata.partition]
            sent.partition = f"{stream.topic_id}/{metadata.partition}"
        elif error is not None:
            sent.outcome = "unknown" if error.outcome_unknown else "fail"
            sent.error = error.code

    def decide(self) -> float | None:
        """See `SimulatedClient`."""
        wanted = self.core.step(self.now)
        finished = self.core.take_finished()
        self.accumulator.finish(finished)
        for batch in finished:
            self._tell(batch)
        return wanted

    def _tell(self, batch: Batch) -> None:
        for index, function in batch.callbacks or ():
            if batch.error is not None:
                function(None, batch.error)
            else:
                function(batch.metadata(index), None)

    @property
    def idle(self) -> bool:
        """Whether every record has its outcome."""
        return not self.accumulator.unfinished


class SimulatedConsumer(SimulatedClient):
    """An application that reads every partition of its topics, with a real consumer's core: fetches, pushes, splice.

    Attributes:
        positions: how far the application is, by topic and partition.
        errors: what it was told, but for what is to be expected.
        slow: how likely the application does not look this time.
    """

    def __init__(
        self,
        name: str,
        cluster: SimulatedCluster,
        history: History,
        topics: tuple[str, ...],
        *,
        start: Start = "earliest",
    ) -> None:
        super().__init__(name, cluster)
        self.history = history
        self.positions: dict[TopicPartition, int] = {}
        self.errors: list[ZBrokerError] = []
        self.slow = 0.0
        settings = ConsumerSettings(
            topics=topics, partitions=None, start=start, starts={}, on_out_of_range="earliest", fetch_bytes=4000,
            buffer_bytes=20_000, request_timeout=REQUEST_TIMEOUT, until_end=False,
        )  # fmt: skip
        self.core = ConsumerCore(settings, self.exchange, self.metadata, self.rng.random)
        self.core.begin(self.now)
        self._sessions: dict[TopicPartition, int] = {}
        self._pushed = False

    def decide(self) -> float | None:
        """See `SimulatedClient`."""
        wanted = self.core.step(self.now)
        if self.rng.random() >= self.slow:
            self._take()
        elif self.core.ready:
            again = self.now + 0.05
            wanted = again if wanted is None else min(wanted, again)
        return wanted

    def on_push(self, push: messages.Push, body: bytes | None) -> None:
        """See `SimulatedClient`."""
        self.core.on_push(push, body, self.now)

    def _take(self) -> None:
        """Takes what is ready, as `Consumer.poll` does."""
        core = self.core
        failed = False
        while core.ready:
            item = core.ready.popleft()
            reader = core.readers.get(item.place)
            if item.piece is not None:
                core.buffer.bytes_out += item.piece.header.size
                self._hand_over(item.place, item.piece, item.position)
            elif item.error is not None:
                failed = True
                self._told(item.place, item.error)
            elif reader is not None:
                self._moved(item.place, item.position)
        core.buffer.stalled = False
        if failed:
            core.go_on(self.now)
            self.soon()

    def _hand_over(self, place: TopicPartition, piece: Any, position: int) -> None:
        header, rows = piece.header, []
        for offset, record in enumerate(
            decode_records(piece.data, piece.at, header), header.base_offset
        ):
            if record is not None and offset >= piece.first:
                rows.append((offset, record[2] or b""))
        start = self.positions.get(place)
        if start is None:
            start = piece.first
        if piece.first > start:
            start = self._skipped(place, start, piece.first)
        self._poll(place, start, position, rows)

    def _moved(self, place: TopicPartition, position: int) -> None:
        start = self.positions.get(place, position)
        if position != start:
            self._poll(place, start, position, [])
        self.positions[place] = position

    def _skipped(self, place: TopicPartition, start: int, first: int) -> int:
        """Offsets without records lie between two batches: control batches, or the log's start moved."""
        self._poll(place, start, first, [])
        return first

    def _poll(
        self, place: TopicPartition, start: int, position: int, rows: list[tuple[int, bytes]]
    ) -> None:
        reader = self.core.readers[place]
        partition = f"{reader.topic_id}/{place.partition}"
        session = self._sessions.setdefault(place, 0)
        self.history.polls.append(
            Poll(self.name, partition, session, start, position, rows, self.now)
        )
        self.positions[place] = position

    def _told(self, place: TopicPartition, error: ZBrokerError) -> None:
        if place.partition >= 0:
            self._sessions[place] = self._sessions.get(place, 0) + 1
            self.positions.pop(place, None)
        self.cluster.trace.note(self.name, f"is told: {error}")
        if not isinstance(error, TopicChanged | UnknownTopic | OffsetOutOfRange):
            self.errors.append(error)

    @property
    def diverged(self) -> list[Diverged]:
        """Errors that say that what was read was replaced: never of what is committed and kept."""
        return [error for error in self.errors if isinstance(error, Diverged)]


class Prober(SimulatedClient):
    """Asks any node anything, at any time, whoever leads.

    Attributes:
        partitions: (topic, topic id, number) of what it asks about.
    """

    def __init__(
        self,
        name: str,
        cluster: SimulatedCluster,
        history: History,
        *,
        pace: tuple[int, int] = (10 * MS, 150 * MS),
    ) -> None:
        super().__init__(name, cluster)
        self.history = history
        self.pace = pace
        self.partitions: list[tuple[str, str, int]] = []
        self.probing = True
        self._order = 0
        self._reads: dict[str, tuple[int, int]] = {}
        cluster.timeline.after(self.rng.randint(*pace), self._application)

    def _application(self) -> None:
        if self.probing and not self.stopped:
            if self.partitions:
                self._probe()
            self.cluster.timeline.after(self.rng.randint(*self.pace), self._application)
            self.soon()

    def _probe(self) -> None:
        place = self.rng.choice(self.partitions)
        node = self.rng.choice(self.cluster.names)
        kind = self.rng.choice(("fetch", "fetch", "ends", "produce", "produce"))
        if kind == "produce":
            self.produce(node, place)
        elif kind == "ends":
            self.ask_end(node, place)
        else:
            self.fetch(node, place)

    def produce(self, node: str, place: tuple[str, str, int], acks: Any = "all") -> Send:
        """One record without a sequence, to a node that may not lead: it is there once, or not at all."""
        topic, topic_id, number = place
        self._order += 1
        value = f"{self.name}:{self._order}".encode()
        partition = f"{topic_id}/{number}"
        sent = Send(self.name, partition, value, self._order, self.now, ordered=False)
        self.history.sends.append(sent)
        now = int(self.now * 1000)
        data = encode_batch([(0, None, value, ())], base_timestamp=now, max_timestamp=now)

        def answered(_call: Call, outcome: Outcome, _body: Any, at: float) -> None:
            sent.ended = at
            if isinstance(outcome, messages.ProduceReply):
                sent.outcome, sent.offset = "ok", outcome.base_offset
            elif isinstance(outcome, ZBrokerError):
                sent.outcome = "unknown" if outcome.outcome_unknown else "fail"
                sent.error = outcome.code

        request = messages.Produce(
            topic=topic, topic_id=topic_id, partition=number, acks=acks, timeout=2000
        )
        self._request(node, request, answered, body=data)
        return sent

    def ask_end(self, node: str, place: tuple[str, str, int]) -> None:
        """Where the partition ends, which only its leader may say."""
        topic, topic_id, number = place
        began = self.now

        def answered(_call: Call, outcome: Outcome, _body: Any, at: float) -> None:
            if isinstance(outcome, messages.OffsetsReply):
                self.history.asked.append(
                    Asked(self.name, f"{topic_id}/{number}", node, began, at, outcome.offset)
                )

        request = messages.Offsets(topic=topic, topic_id=topic_id, partition=number, at="latest")
        self._request(node, request, answered)

    def fetch(self, node: str, place: tuple[str, str, int], offset: int | None = None) -> None:
        """Reads from somewhere, with what it knows of the epoch there."""
        topic, topic_id, number = place
        partition = f"{topic_id}/{number}"
        known, epoch = self._reads.get(partition, (0, -1))
        if offset is None:
            if self.rng.random() < 0.3:
                known, epoch = self.rng.randint(0, known + 1), -1
        else:
            known, epoch = offset, -1
        request = messages.Fetch(
            topic=topic,
            topic_id=topic_id,
            partition=number,
            offset=known,
            epoch=epoch,
            max_bytes=2000,
        )

        def answered(_call: Call, outcome: Outcome, body: Any, at: float) -> None:
            if isinstance(outcome, messages.FetchReply):
                self._read(partition, known, outcome, body or b"", at)

        self._request(node, request, answered)

    def _read(
        self, partition: str, offset: int, reply: messages.FetchReply, chunk: bytes, at: float
    ) -> None:
        rows = values(chunk, offset, reply.next)
        self._order += 1
        poll = Poll(self.name, partition, self._order, offset, max(reply.next, offset), rows, at)
        self.history.polls.append(poll)
        if reply.next > self._reads.get(partition, (0, -1))[0]:
            self._reads[partition] = (reply.next, reply.next_epoch)

    def _request(
        self, node: str, message: messages.Request, answered: Callable[..., None], body: Any = None
    ) -> None:
        self.exchange.request(
            self.addresses[node], message, answered, now=self.now, timeout=REQUEST_TIMEOUT + 1.0, body=body,
        )  # fmt: skip


class SimulatedAdmin(SimulatedClient):
    """Somebody who makes, changes and deletes topics, and asks again until it is answered."""

    def __init__(self, name: str, cluster: SimulatedCluster) -> None:
        super().__init__(name, cluster)
        self._numbers = 0

    def ask(
        self,
        message: messages.Request,
        done: Callable[[messages.Reply | ZBrokerError], None],
        *,
        patience: float = 60.0,
        node: str | None = None,
    ) -> None:
        """Sends a request to one node after the other until one gives a definite answer.

        Args:
            done: told the reply, or the error that is definite, or the last one when patience is over.
            patience: seconds.
        """
        give_up = self.now + patience

        def answered(_call: Call, outcome: Outcome, _body: Any, at: float) -> None:
            again = isinstance(outcome, ZBrokerError) and (
                outcome.retriable or outcome.outcome_unknown
            )
            if again and at < give_up:
                self.cluster.timeline.after(100 * MS, attempt)
            else:
                done(outcome)

        def attempt() -> None:
            if not self.stopped:
                to = node or self.rng.choice(self.cluster.names)
                self.exchange.request(
                    self.addresses[to], message, answered, now=self.now, timeout=2 * REQUEST_TIMEOUT
                )
                self.soon()

        attempt()

    def call(
        self, message: messages.Request, seconds: float = 30.0, node: str | None = None
    ) -> Any:
        """The answer, once it is there; an error that is definite is raised."""
        found: list[Any] = []
        self.ask(message, found.append, patience=seconds, node=node)
        self.cluster.run_until(lambda: found, seconds + 5, f"an answer to {message}")
        if isinstance(found[0], ZBrokerError):
            raise found[0]
        return found[0]

    def create_topic(self, name: str, **settings: int | str) -> str:
        """Makes a topic; its id."""
        self._numbers += 1
        request = messages.CreateTopic(
            name=name, settings=settings, request_id=f"{self.name} {self._numbers}"
        )
        topic_id: str = self.call(request).topic.topic_id
        return topic_id

    def delete_topic(self, name: str) -> None:
        """Deletes a topic."""
        self._numbers += 1
        self.call(messages.DeleteTopic(name=name, request_id=f"{self.name} {self._numbers}"))


def values(chunk: bytes, first: int, end: int) -> list[tuple[int, bytes]]:
    """Offsets and values of a chunk, within a range."""
    found = []
    for at, header in iter_batches(chunk):
        if header.is_control:
            continue
        for offset, record in enumerate(decode_records(chunk, at, header), header.base_offset):
            if record is not None and first <= offset < end:
                found.append((offset, record[2] or b""))
    return found
