"""One broker over a simulated disk, with clients that remember everything they were told.

The world holds the broker's surroundings: a transport that keeps what is sent, a clock, a disk that may lose power.
Every request must be answered exactly once, unless its node ended first.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from zbroker.broker.broker import Broker
from zbroker.broker.ports import BrokerSettings, Conversation
from zbroker.protocol import frames as wire
from zbroker.protocol.batch import Buffer, decode_records, encode_batch, iter_batches
from zbroker.protocol.messages import (
    ClusterChange,
    CreateTopic,
    ErrorReply,
    Fetch,
    Message,
    Produce,
    Push,
    Reply,
)
from zbroker.testing.disk import PowerLost, SimulatedDisk, SimulatedStorage

NODE, DISK = "node1", "d" * 32


class Transport:
    """Keeps what the broker sends."""

    def __init__(self) -> None:
        self.replies: dict[tuple[bytes, int], list[tuple[Reply, bytes]]] = {}
        self.pushes: list[tuple[bytes, Push, bytes | None]] = []
        self.changes: list[ClusterChange] = []
        self.listening = True

    def reply(self, to: Conversation, message: Reply, body: Buffer | None = None) -> None:
        self.replies.setdefault((to.client, to.id), []).append((message, bytes(body or b"")))

    def publish(
        self, subject: bytes, head: Push | ClusterChange, batch: Buffer | None = None
    ) -> None:
        if isinstance(head, Push):
            copied = Push(
                topic_id=head.topic_id, partition=head.partition, epoch=head.epoch,
                high_watermark=head.high_watermark, log_start=head.log_start,
            )  # fmt: skip
            self.pushes.append((subject, copied, None if batch is None else bytes(batch)))
        else:
            self.changes.append(head)

    def wanted(self, subject: bytes) -> bool:
        return self.listening

    def unread(self, client: bytes | None) -> int:
        return 0

    def client_count(self) -> int:
        return 1


class NoPeers:
    """A cluster of one."""

    def send(self, node: str, lane: str, frames: Sequence[Buffer]) -> None:
        raise AssertionError(f"there is no {node}")

    def connect(self, node: str, host: str, port: int) -> None:
        raise AssertionError(f"there is no {node}")


class World:
    """A broker, its disk, and time."""

    def __init__(self, seed: int | None = None, **settings: Any) -> None:
        self.rng = random.Random(seed or 0)
        self.disk = SimulatedDisk(self.rng)
        self.now, self.wall = 1000, 1_790_000_000_000
        self.orderly = seed is None
        self.settings = BrokerSettings(
            node=NODE, cluster_name="test", disk_id=DISK, host="127.0.0.1", port=5550, voters=(NODE,), **settings
        )  # fmt: skip
        self.starts = 0
        self.ids = itertools.count(1)
        self.fresh = itertools.count(1)
        self.asked: set[tuple[bytes, int]] = set()
        self.reports: list[tuple[str, dict[str, Any]]] = []
        self.transport = Transport()
        self.storage: SimulatedStorage
        self.broker: Broker

    # Life ---

    def start(self, *, serve: bool = True) -> Broker:
        """A new process on the same disk."""
        self.disk.off = False
        self.starts += 1
        self.settings = msgspec.structs.replace(self.settings, incarnation=self.starts)
        self.transport = Transport()
        self.asked.clear()
        self.storage = SimulatedStorage(
            self.disk,
            None if self.orderly else self.rng,
            lambda done: self.broker.on_event(done, self.now),
        )
        self.broker = Broker(
            self.settings, storage=self.storage, transport=self.transport, peers=NoPeers(),
            random=self.rng.random, fresh_id=lambda: f"{next(self.fresh):032x}",
            report=lambda event, **facts: self.reports.append((event, facts)),
        )  # fmt: skip
        self.broker.start(self.now, self.wall)
        if serve:
            self.run()
            assert self.broker.state == "serving", (self.broker.state, self.broker.error)
        return self.broker

    def stop(self) -> None:
        """An orderly stop."""
        self.broker.stop()
        self.run()
        assert self.broker.state == "stopped", self.broker.state

    def kill(self) -> None:
        """The process is gone; the machine lives."""
        self.storage.forget()

    def lose_power(self) -> None:
        """The machine is off, and what was not flushed may be gone."""
        self.storage.forget()
        self.disk.lose_power()

    def run(self) -> None:
        """Everything that is under way, to its end."""
        self.storage.run_all()

    def step(self) -> bool:
        """One request of the disk's, or one completion; False where the power went or nothing is left."""
        try:
            return self.storage.step()
        except PowerLost:
            return False

    def tick(self, ms: int = 100) -> None:
        """Time passes."""
        self.now += ms
        self.wall += ms
        self.broker.on_tick(self.now, self.wall)

    # Requests ---

    def send(self, request: Message, *bodies: bytes | bytearray, client: bytes = b"c") -> int:
        """A request on its way; its number."""
        request.id = next(self.ids)
        self.asked.add((client, request.id))
        self.broker.on_message(client, [wire.encode(request), *bodies], self.now, self.wall)
        return request.id

    def raw(self, *frames: bytes, client: bytes = b"c") -> None:
        """Frames as they come."""
        self.broker.on_message(client, list(frames), self.now, self.wall)

    def answer(self, number: int, client: bytes = b"c") -> Any:
        """The one reply to a request, None while there is none."""
        found = self.transport.replies.get((client, number), [])
        assert len(found) <= 1, found
        return found[0][0] if found else None

    def chunk(self, number: int, client: bytes = b"c") -> bytes:
        """What followed the reply."""
        return self.transport.replies[client, number][0][1]

    def ask(self, request: Message, *bodies: bytes | bytearray, client: bytes = b"c") -> Any:
        """A request's reply, once everything is done."""
        number = self.send(request, *bodies, client=client)
        self.run()
        return self.answer(number, client)

    def create(self, name: str = "t", **settings: int | str) -> str:
        """A topic; its id."""
        reply = self.ask(CreateTopic(name=name, settings=settings, request_id=f"create {name}"))
        assert not isinstance(reply, ErrorReply), reply
        topic_id: str = reply.topic.topic_id
        return topic_id

    def produce(self, *values: bytes, **fields: Any) -> Any:
        """A batch of values; the reply."""
        producer = fields.pop("producer", None)
        return self.ask(Produce(**{"topic": "t", **fields}), batch(values, producer))

    def read(self, topic: str = "t", partition: int = 0) -> list[tuple[int, bytes | None]]:
        """All that is served: offsets and values."""
        found: list[tuple[int, bytes | None]] = []
        offset = 0
        while True:
            number = self.send(Fetch(topic=topic, partition=partition, offset=offset))
            self.run()
            reply = self.answer(number)
            if isinstance(reply, ErrorReply) and reply.code == "offset_out_of_range":
                offset = reply.details["start"]
                continue
            assert not isinstance(reply, ErrorReply), reply
            if reply.next == offset:
                return found
            found += [row for row in rows(self.chunk(number)) if row[0] >= offset]
            offset = reply.next

    # What must be true at rest ---

    def check_rest(self) -> None:
        """Nothing is under way: every request is answered once, and every budget is given back."""
        self.run()
        answered = {key for key, replies in self.transport.replies.items() if replies}
        assert self.asked <= answered, self.asked - answered
        assert all(len(replies) == 1 for replies in self.transport.replies.values())
        broker = self.broker
        budget, ledger = broker.keeper.budget, broker.keeper.ledger
        assert budget.used == 0, budget.used
        assert broker._in_flight_total == 0, broker._in_flight
        assert not broker._in_flight
        assert ledger.idle, vars(ledger)


def batch(values: Sequence[bytes], producer: tuple[int, int, int] | None = None) -> bytearray:
    """Values without keys; producer is (id, epoch, base sequence)."""
    number, epoch, sequence = producer or (-1, -1, -1)
    return encode_batch(
        [(0, None, value, ()) for value in values], base_timestamp=1000, max_timestamp=1000,
        producer_id=number, producer_epoch=epoch, base_sequence=sequence,
    )  # fmt: skip


def rows(chunk: bytes) -> list[tuple[int, bytes | None]]:
    """Offsets and values of a chunk."""
    found = []
    for at, header in iter_batches(chunk):
        for offset, record in enumerate(decode_records(chunk, at, header), header.base_offset):
            assert record is not None
            found.append((offset, record[2]))
    return found
