"""A broker of a hundred lines in a thread: enough of one to try clients on, and to misbehave as a test asks it to.

Several are a cluster: they share their partitions, each of which one of them leads; see `FakeCluster`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from zbroker.errors import (
    NotLeader,
    OffsetOutOfRange,
    OutOfOrderSequence,
    UnknownProducer,
    UnknownTopic,
    ZBrokerError,
)
from zbroker.protocol import frames, messages
from zbroker.protocol.batch import iter_batches, read_header, stamp

Interceptor = Callable[["FakeBroker", Any, Any], Any]


def bind_base(context: Any) -> tuple[Any, Any, int]:
    """A ROUTER and an XPUB on neighbouring free ports below the ephemeral range."""
    import os
    import random

    picks = random.Random(os.getpid() * 1_000_003 + time.monotonic_ns())
    while True:
        port = picks.randrange(20000, 32000) & ~3
        router, pub = context.socket(zmq.ROUTER), context.socket(zmq.XPUB)
        router.linger = pub.linger = 0
        try:
            router.bind(f"tcp://127.0.0.1:{port}")
            pub.bind(f"tcp://127.0.0.1:{port + 1}")
        except zmq.ZMQError:
            router.close()
            pub.close()
            continue
        return router, pub, port


class FakePartition:
    """A log in memory."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, bytes]] = []
        self.start = 0
        self.end = 0
        self.producers: dict[int, tuple[int, int, list[tuple[int, int, int]]]] = {}
        self.epoch = 1

    def append(self, body: Any) -> messages.ProduceReply:
        header = read_header(body)
        if header.producer_id >= 0:
            epoch, last, recent = self.producers.get(header.producer_id, (-1, -1, []))
            if header.producer_epoch > epoch:
                last, recent = -1, []
                if header.base_sequence != 0:
                    raise (UnknownProducer if epoch < 0 else OutOfOrderSequence)("not from 0 on")
            for sequence, span, base in recent:
                if sequence == header.base_sequence and span == header.span:
                    return messages.ProduceReply(
                        base_offset=base, duplicate=True, durability="flushed"
                    )
            if header.base_sequence != last + 1:
                raise OutOfOrderSequence(f"expected {last + 1}, found {header.base_sequence}")
            recent = [*recent[-4:], (header.base_sequence, header.span, self.end)]
            self.producers[header.producer_id] = (
                header.producer_epoch,
                header.last_sequence,
                recent,
            )
        batch = bytearray(body)
        stamp(
            batch,
            base_offset=self.end,
            append_time=int(time.time() * 1000),
            leader_epoch=self.epoch,
        )
        reply = messages.ProduceReply(
            base_offset=self.end, epoch=self.epoch, durability="flushed", append_time=1
        )
        self.batches.append((self.end, self.end + header.span, bytes(batch)))
        self.end += header.span
        return reply


class FakeCluster:
    """Brokers `n1`, `n2`, … that share their partitions; all begin at `n1`."""

    def __init__(
        self, topics: dict[str, int], nodes: int, intercept: Interceptor | None = None
    ) -> None:
        self.topics = self.partitions_of(topics).topics
        self.leaders = {(name, n): "n1" for name, count in topics.items() for n in range(count)}
        self.version = 1
        self.brokers: dict[str, FakeBroker] = {}
        for number in range(1, nodes + 1):
            name = f"n{number}"
            self.brokers[name] = FakeBroker(topics, intercept, name=name, cluster=self)

    @classmethod
    def partitions_of(cls, topics: dict[str, int]) -> FakeCluster:
        """Empty partitions without brokers."""
        found = cls.__new__(cls)
        found.topics = {
            name: [FakePartition() for _ in range(count)] for name, count in topics.items()
        }
        return found

    @property
    def servers(self) -> str:
        return ",".join(broker.server for broker in self.brokers.values())

    def move(self, topic: str, number: int, to: str) -> None:
        """Another broker leads; those that run say so."""
        self.topics[topic][number].epoch += 1
        self.leaders[topic, number] = to
        self.version += 1

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for broker in self.brokers.values():
            broker.stop()


class FakeBroker:
    """One node in a thread.

    `intercept(broker, request, body)` may return a reply, an error, "drop", or a function that is asked again and again
    until it returns one of these.
    """

    def __init__(
        self,
        topics: dict[str, int],
        intercept: Interceptor | None = None,
        *,
        name: str = "fake",
        cluster: FakeCluster | None = None,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self.frozen = False
        self.topics = (cluster or FakeCluster.partitions_of(topics)).topics
        self.ids = {name: f"{n:032x}" for n, name in enumerate(topics, 1)}
        self.intercept = intercept
        self.requests: list[Any] = []
        self.push_filter: Callable[[bytes], bool] = lambda _subject: True
        self._announced = 1
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._router, self._pub, self.port = bind_base(self._context)
        self._later: list[tuple[bytes, Any, Callable[[], Any]]] = []
        self._waiting: list[tuple[float, bytes, messages.Fetch]] = []
        self._next_producer = 0
        self._beacon_at = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> FakeBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._pub, zmq.POLLIN)
        while not self._stop.is_set():
            if self.frozen:
                self._stop.wait(0.01)
                continue
            self._announce()
            ready = dict(poller.poll(2 if self.cluster or self._later else 10))
            if self._pub in ready:
                self._pub.recv()
            if self._router in ready:
                while True:
                    try:
                        identity, head, *bodies = self._router.recv_multipart(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    self._take(identity, frames.decode_request(head), bodies[0] if bodies else None)
            self._answer_later()
            now = time.monotonic()
            for at, identity, fetch in list(self._waiting):
                try:
                    partition = self._partition(fetch)
                    if now < at and partition.end <= fetch.offset:
                        continue
                    answer = self._fetch(fetch, False)
                except ZBrokerError as error:
                    answer = frames.error_reply(error, fetch.id), None
                self._waiting.remove((at, identity, fetch))
                self._answer(identity, fetch, *answer)
            if now >= self._beacon_at:
                self._beacon_at = now + 0.1
                for topic, partitions in self.topics.items():
                    for number in range(len(partitions)):
                        if self._leads(topic, number):
                            self._push(topic, number, None)
        self._router.close()
        self._pub.close()
        self._context.term()

    @property
    def version(self) -> int:
        """Of the metadata."""
        return self.cluster.version if self.cluster else 1

    def _announce(self) -> None:
        if self._announced < self.version:
            self._announced = self.version
            change = messages.ClusterChange(cluster="c", version=self.version, node=self.name)
            self._pub.send_multipart([frames.CLUSTER_SUBJECT, frames.encode(change)])

    def _leader(self, topic: str, number: int) -> str:
        return self.name if self.cluster is None else self.cluster.leaders[topic, number]

    def _leads(self, topic: str, number: int) -> bool:
        return self._leader(topic, number) == self.name

    def _take(self, identity: bytes, request: Any, body: Any) -> None:
        self.requests.append(request)
        found = self.intercept(self, request, body) if self.intercept else None
        if callable(found):
            self._later.append((identity, request, found))
        else:
            self._finish(identity, request, body, found)

    def _answer_later(self) -> None:
        later, self._later = self._later, []
        for identity, request, ask in later:
            found = ask()
            if found is None:
                self._later.append((identity, request, ask))
            else:
                self._finish(identity, request, None, found)

    def _finish(self, identity: bytes, request: Any, body: Any, found: Any) -> None:
        if isinstance(found, str) and found == "drop":
            return
        chunk = None
        try:
            if isinstance(found, ZBrokerError):
                raise found
            reply, chunk = (
                (found, None) if found is not None else self._handle(identity, request, body)
            )
        except ZBrokerError as error:
            reply = frames.error_reply(error, request.id)
        if reply is not None and not (
            isinstance(request, messages.Produce) and request.acks == "none"
        ):
            self._answer(identity, request, reply, chunk)

    def _answer(self, identity: bytes, request: Any, reply: Any, chunk: Any = None) -> None:
        reply.id = request.id
        parts = [identity, frames.encode(reply)]
        if chunk is not None:
            parts.append(chunk)
        self._router.send_multipart(parts)

    def _partition(self, request: Any) -> FakePartition:
        names = {self.ids[name]: name for name in self.topics}
        name = names.get(request.topic_id, request.topic)
        if name not in self.topics:
            raise UnknownTopic(f"there is no topic {name!r}")
        if not self._leads(name, request.partition):
            raise NotLeader("another one leads it")
        return self.topics[name][request.partition]

    def _handle(self, identity: bytes, request: Any, body: Any) -> tuple[Any, Any]:
        match request:
            case messages.Hello():
                return messages.HelloReply(node="fake", in_flight_max=1000), None
            case messages.Metadata():
                return self._metadata(request), None
            case messages.InitProducer():
                self._next_producer += 1
                return messages.InitProducerReply(producer_id=self._next_producer), None
            case messages.Produce():
                partition = self._partition(request)
                before = partition.end
                reply = partition.append(body)
                if partition.end > before:
                    self._push(request.topic, request.partition, partition.batches[-1][2])
                return reply, None
            case messages.Fetch():
                partition = self._partition(request)
                if not partition.start <= request.offset <= partition.end:
                    raise OffsetOutOfRange(
                        f"offset {request.offset} is not in {partition.start} to {partition.end}",
                        start=partition.start, end=partition.end,
                    )  # fmt: skip
                if request.offset == partition.end and request.wait:
                    self._waiting.append(
                        (time.monotonic() + request.wait / 1000, identity, request)
                    )
                    return None, None
                return self._fetch(request, True)
            case messages.Offsets():
                partition = self._partition(request)
                offset = partition.start if request.at == "earliest" else partition.end
                if request.at == "time":
                    for base, _, batch in partition.batches:
                        if read_header(batch).max_timestamp >= request.time:
                            offset = base
                            break
                return messages.OffsetsReply(
                    offset=offset, high_watermark=partition.end, log_start=partition.start
                ), None
        raise ZBrokerError(f"the fake broker does not know {request}")

    def _metadata(self, request: messages.Metadata) -> messages.MetadataReply:
        topics = []
        for name in self.topics if request.topics is None else request.topics:
            if name not in self.topics:
                topics.append(messages.Topic(name=name, error="unknown_topic"))
                continue
            topics.append(
                messages.Topic(
                    name=name, topic_id=self.ids[name], settings={"max_batch": "1MiB"},
                    partitions=[
                        messages.Partition(partition=n, leader=self._leader(name, n), epoch=p.epoch)
                        for n, p in enumerate(self.topics[name])
                    ],
                )
            )  # fmt: skip
        brokers = self.cluster.brokers.values() if self.cluster else [self]
        nodes = [messages.Node(name=one.name, host="127.0.0.1", port=one.port) for one in brokers]
        return messages.MetadataReply(
            cluster="c", version=self.version, controller=self.name, nodes=nodes, topics=topics
        )

    def _fetch(self, request: messages.Fetch, _first: bool) -> tuple[Any, bytes]:
        partition = self._partition(request)
        chunk, size, reached, base = [], 0, request.offset, None
        for first, next_, batch in partition.batches:
            if next_ <= request.offset:
                continue
            if chunk and size + len(batch) > request.max_bytes:
                break
            base = first if base is None else base
            chunk.append(batch)
            size += len(batch)
            reached = next_
        return messages.FetchReply(
            topic_id=request.topic_id or "", partition=request.partition, epoch=partition.epoch,
            base=request.offset if base is None else base, next=reached, high_watermark=partition.end,
            next_epoch=partition.epoch if reached else -1,
            log_start=partition.start,
        ), b"".join(chunk)  # fmt: skip

    def _push(self, topic: str, number: int, batch: bytes | None) -> None:
        subject = frames.subject(topic, number)
        partition = self.topics[topic][number]
        head = messages.Push(
            topic_id=self.ids[topic], partition=number, epoch=partition.epoch,
            high_watermark=partition.end, log_start=partition.start,
        )  # fmt: skip
        if batch is None:
            self._pub.send_multipart([subject, frames.encode(head)])
        elif self.push_filter(subject):
            self._pub.send_multipart([subject, frames.encode(head), batch])

    def values(self, topic: str, partition: int) -> list[Any]:
        """Every value of a partition, in order."""
        from zbroker.protocol.batch import decode_records

        found = []
        for _, _, batch in self.topics[topic][partition].batches:
            for at, header in iter_batches(batch):
                found += [record[2] for record in decode_records(batch, at, header) if record]
        return found
