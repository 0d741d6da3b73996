"""A producer's core against a partition that behaves as the broker's, over a network and a clock of the test's own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from zbroker.client.accumulator import Accumulator
from zbroker.client.delivery import Delivery
from zbroker.client.exchange import Exchange, Reopen, Transmit
from zbroker.client.metadata import Cluster
from zbroker.client.producing import ProducerCore, ProducerSettings
from zbroker.errors import MessageTooLarge, ZBrokerError
from zbroker.log.producers import ProducerTable
from zbroker.protocol import frames, messages
from zbroker.protocol.batch import check_ingest, decode_records, read_header, stamp
from zbroker.units import Address

TOPIC, TOPIC_ID = "t", "0" * 31 + "1"
NODE = Address("10.0.0.1", 5550)


class BrokerPartition:
    """The log of one partition, with the broker's own producer table."""

    def __init__(self, batch_max: int = 1 << 20) -> None:
        self.table = ProducerTable(10**12)
        self.values: list[bytes | None] = []
        self.keys: list[bytes | None] = []
        self.batch_max = batch_max
        self.epoch = 0

    def produce(self, body: Any) -> messages.ProduceReply:
        header = check_ingest(bytes(body), max_length=self.batch_max)
        duplicate = self.table.check(header)
        if duplicate is not None:
            return messages.ProduceReply(
                base_offset=duplicate.base_offset, duplicate=True, durability="flushed"
            )
        base = len(self.values)
        batch = bytearray(body)
        stamp(batch, base_offset=base, append_time=base, leader_epoch=self.epoch)
        header = read_header(batch)
        self.table.append(header)
        self.table.settled = header.next_offset
        for record in decode_records(batch, 0, header):
            assert record is not None
            self.keys.append(record[1])
            self.values.append(record[2])
        return messages.ProduceReply(base_offset=base, durability="flushed", append_time=base)


class World:
    """Time, a cluster of one node, and requests and replies under way.

    `fate(request)` says what happens to a request: "ok", "lost" (never arrives), "deaf" (arrives, the reply does not),
    "late" (arrives only when `release_late` is called) or an error to answer with.
    """

    def __init__(
        self, partitions: int = 1, *, seed: int = 0, acks: Any = "all", delivery_timeout: float = 30.0,
        batch_bytes: int = 2000, linger: float = 0.0, codec: int = 0, known: bool = True, request_timeout: float = 1.0,
        batch_max: int = 1 << 20, buffer_bytes: int = 1 << 20,
    ) -> None:  # fmt: skip
        self.now = 100.0
        self.random = random.Random(seed)
        self.partitions = [BrokerPartition(batch_max) for _ in range(partitions)]
        self.topic_id = TOPIC_ID
        self.exists = known
        self.leader: str | None = "n1"
        self.fate: Callable[[Any], Any] = lambda _request: "ok"
        self.delay: Callable[[], float] = lambda: 0.001
        self.accumulator = Accumulator(
            batch_bytes=batch_bytes, buffer_bytes=buffer_bytes, linger=linger, delivery_timeout=delivery_timeout,
            record_max=1 << 20, clock=lambda: self.now, wall=lambda: 1_700_000_000 + self.now,
        )  # fmt: skip
        self.exchange = Exchange()
        chance = self.random.random
        self.cluster = Cluster((NODE,), self.exchange, chance, follow=False)
        settings = ProducerSettings(acks=acks, codec=codec, request_timeout=request_timeout)
        self.core = ProducerCore(settings, self.accumulator, self.exchange, self.cluster, chance)
        self.under_way: list[tuple[float, int, str, Any]] = []
        self.late: list[tuple[bytes, Any]] = []
        self.sent: list[tuple[messages.Produce, bytes]] = []
        self.connection = 0
        self._number = 0
        self._producer_ids = 100
        self.deliveries: list[tuple[bytes, Delivery]] = []

    def send(self, value: bytes, key: bytes | None = None, **options: Any) -> Delivery:
        delivery = self.accumulator.append(
            TOPIC, value, key, options.get("partition"), options.get("timestamp"), options.get("headers", ()),
            options.get("on_delivery"), block=0,
        )  # fmt: skip
        self.deliveries.append((value, delivery))
        return delivery

    def step(self) -> float | None:
        """One turn of the client's thread, without the passing of time."""
        self.exchange.tick(self.now)
        wanted = self.core.step(self.now)
        asks = self.cluster.step(self.now)
        for effect in self.exchange.take_effects():
            if isinstance(effect, Transmit):
                self._transmit(effect)
            elif isinstance(effect, Reopen):
                self.connection += 1
        finished = self.core.take_finished()
        self.accumulator.finish(finished)
        for batch in finished:
            for index, function in batch.callbacks or ():
                if batch.error is not None:
                    function(None, batch.error)
                else:
                    function(batch.metadata(index), None)
        found = [t for t in (wanted, asks, self.exchange.next_deadline()) if t is not None]
        return min(found) if found else None

    def run(self, until: float = 1e9, steps: int = 100_000) -> None:
        """Lets time pass until nothing is left to do, or to `until`."""
        for _ in range(steps):
            wanted = self.step()
            if not self.accumulator.unfinished:
                return
            times = [event[0] for event in self.under_way]
            if wanted is not None:
                times.append(max(wanted, self.now))
            assert times, "nothing is under way and nothing is due: the producer is stuck"
            following = min(times)
            if following > until:
                self.now = until
                return
            self.now = max(self.now, following)
            self._arrivals()
        raise AssertionError("the producer goes round and round")

    def lose_connection(self) -> None:
        """The connection breaks: what is under way arrives or not, but no answer comes back."""
        self.connection += 1
        self.under_way = [event for event in self.under_way if event[2] == "request"]
        self.exchange.on_lost(NODE, "the connection was lost", self.now)

    def release_late(self) -> None:
        """What was held up on its way reaches the broker now; nobody hears the answers."""
        late, self.late = self.late, []
        for head, body in late:
            self._answer(frames.decode_request(head), body)

    def _transmit(self, effect: Transmit) -> None:
        request = frames.decode_request(effect.head)
        body = None if effect.body is None else bytes(effect.body)
        if effect.oneway:
            self.exchange.on_sent(effect.oneway, self.now)
        if isinstance(request, messages.Produce):
            assert body is not None
            self.sent.append((request, body))
        fate = self.fate(request)
        if fate == "lost":
            return
        if fate == "late":
            self.late.append((effect.head, body))
            return
        self._number += 1
        self.under_way.append(
            (
                self.now + self.delay(),
                self._number,
                "request",
                (effect.head, body, fate, self.connection),
            )
        )

    def _arrivals(self) -> None:
        while self.under_way:
            self.under_way.sort(key=lambda event: event[:2])
            at, _, kind, content = self.under_way[0]
            if at > self.now:
                return
            self.under_way.pop(0)
            if kind == "reply":
                reply, connection = content
                if connection == self.connection:
                    self.exchange.on_reply(NODE, reply, None, self.now)
                continue
            head, body, fate, connection = content
            reply = self._answer(frames.decode_request(head), body, fate)
            if fate != "deaf" and reply is not None:
                self._number += 1
                self.under_way.append(
                    (self.now + self.delay(), self._number, "reply", (reply, connection))
                )

    def _answer(self, request: Any, body: Any, fate: Any = "ok") -> Any:
        try:
            if isinstance(fate, ZBrokerError):
                raise fate
            reply = self._handle(request, body)
        except ZBrokerError as error:
            return frames.error_reply(error, request.id)
        reply.id = request.id
        if isinstance(request, messages.Produce) and request.acks == "none":
            return None
        return frames.decode_reply(frames.encode(reply))

    def _handle(self, request: Any, body: Any) -> Any:
        if isinstance(request, messages.Metadata):
            return self._metadata()
        if isinstance(request, messages.InitProducer):
            self._producer_ids += 1
            return messages.InitProducerReply(producer_id=self._producer_ids)
        assert isinstance(request, messages.Produce)
        if len(body) > self.partitions[request.partition].batch_max:
            raise MessageTooLarge("too large")
        return self.partitions[request.partition].produce(body)

    def _metadata(self) -> messages.MetadataReply:
        topic = messages.Topic(name=TOPIC, error="unknown_topic")
        if self.exists:
            topic = messages.Topic(
                name=TOPIC, topic_id=self.topic_id,
                partitions=[
                    messages.Partition(partition=n, leader=self.leader, epoch=p.epoch)
                    for n, p in enumerate(self.partitions)
                ],
            )  # fmt: skip
        return messages.MetadataReply(
            cluster="c",
            version=1,
            nodes=[messages.Node(name="n1", host=NODE.host, port=NODE.port)],
            topics=[topic],
        )

    def check(self) -> None:
        """Every acknowledged record is in the log once, at its offset, in order; a failed one as its error says."""
        for number, partition in enumerate(self.partitions):
            acknowledged = []
            for value, delivery in self.deliveries:
                batch, _ = delivery._place()
                if not batch.done or batch.partition != number:
                    continue
                count = partition.values.count(value)
                if batch.error is None:
                    metadata = delivery.result(0)
                    assert partition.values[metadata.offset] == value
                    assert count == 1, f"{value[:12]!r} is in the log {count} times"
                    acknowledged.append(metadata.offset)
                elif batch.error.outcome_unknown:
                    assert count <= 1, f"{value[:12]!r} is in the log {count} times"
                else:
                    assert count == 0, f"{value[:12]!r} failed for certain, and is in the log"
            assert acknowledged == sorted(acknowledged)
            assert len(partition.values) == len(set(partition.values))


def outcome(delivery: Delivery) -> Any:
    """The metadata or the error of a delivery that is done."""
    error = delivery.exception(0)
    return delivery.result(0) if error is None else error
