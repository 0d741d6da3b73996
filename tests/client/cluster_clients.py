"""A producer and a consumer of the simulated cluster: the real machines, a network and an application of the test's."""

from __future__ import annotations

import itertools
from typing import Any

from client.cluster_world import TOPIC, SimCluster

from zbroker.client.accumulator import Accumulator
from zbroker.client.admin import AdminMachine
from zbroker.client.administering import AdminCore, Task
from zbroker.client.buffer import ConsumerSettings
from zbroker.client.consuming import ConsumerCore
from zbroker.client.delivery import Delivery
from zbroker.client.driving import ConsumerMachine
from zbroker.client.exchange import Exchange, Outcome, Reopen, Transmit
from zbroker.client.metadata import Cluster
from zbroker.client.producer import ProducerMachine
from zbroker.client.producing import ProducerCore, ProducerSettings
from zbroker.client.records import TopicPartition
from zbroker.errors import Diverged, ZBrokerError
from zbroker.protocol import frames
from zbroker.protocol.batch import decode_records
from zbroker.units import Address


class SimClient:
    """A client's thread without threads and sockets."""

    def __init__(
        self, world: SimCluster, servers: list[Address] | None = None, *, follow: bool = True
    ) -> None:
        self.world = world
        self.exchange = Exchange()
        servers = servers or [node.address for node in world.nodes.values()]
        self.cluster = Cluster(servers, self.exchange, world.random.random, follow=follow)
        self.connections: dict[Address, int] = {}
        self.subjects: dict[Address, dict[bytes, None]] = {}
        self.transmitted: list[tuple[float, Address, Any]] = []
        world.clients.append(self)

    machine: Any

    def step(self) -> float | None:
        now = self.world.now
        self.exchange.tick(now)
        wanted = self.machine.step(now)
        for effect in self.exchange.take_effects():
            if isinstance(effect, Transmit):
                self.transmitted.append((now, effect.address, frames.decode_request(effect.head)))
                body = None if effect.body is None else bytes(effect.body)
                self.world.transmit(self, effect.address, effect.head, body)
            elif isinstance(effect, Reopen):
                self.connections[effect.address] = self.connections.get(effect.address, 0) + 1
            elif effect.action == "add":
                self.subjects.setdefault(effect.address, {})[effect.subject] = None
                self.world.subscribed(self, effect.address, effect.subject)
            else:
                self.subjects.get(effect.address, {}).pop(effect.subject, None)
        self.machine.after_step()
        times = [time for time in (wanted, self.exchange.next_deadline()) if time is not None]
        return min(times, default=None)

    def lost(self, address: Address, why: str, connection: int | None = None) -> None:
        if connection in (None, self.connections.get(address, 0)):
            self.connections[address] = self.connections.get(address, 0) + 1
            self.exchange.on_lost(address, why, self.world.now)

    def replied(self, address: Address, connection: int, reply: Any, body: Any) -> None:
        if connection == self.connections.get(address, 0):
            self.exchange.on_reply(address, reply, body, self.world.now)

    def pushed(self, address: Address, subject: bytes, head: Any, body: Any) -> None:
        if subject not in self.subjects.get(address, ()):
            return
        if subject == frames.CLUSTER_SUBJECT:
            self.machine.on_change(head, self.world.now)
        else:
            self.machine.on_push(address, head, body, self.world.now)

    def asked(self, kind: type, since: float = 0.0) -> list[float]:
        """When requests of a kind left."""
        return [
            at for at, _, request in self.transmitted if isinstance(request, kind) and at >= since
        ]


class SimProducer(SimClient):
    """A producer and the records that it was given."""

    def __init__(
        self, world: SimCluster, *, acks: Any = "all", delivery_timeout: float = 60.0, request_timeout: float = 10.0,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(world, **options)
        self.accumulator = Accumulator(
            batch_bytes=2000, buffer_bytes=1 << 22, linger=0.0, delivery_timeout=delivery_timeout, record_max=1 << 20,
            clock=lambda: world.now, wall=lambda: 1_700_000_000 + world.now,
        )  # fmt: skip
        settings = ProducerSettings(acks=acks, codec=0, request_timeout=request_timeout)
        chance = world.random.random
        self.core = ProducerCore(settings, self.accumulator, self.exchange, self.cluster, chance)
        self.machine = ProducerMachine(self.core, self.cluster, self.exchange, self.accumulator)
        self.deliveries: list[tuple[bytes, Delivery]] = []
        self.acknowledged: list[float] = []
        """When each record was."""
        self._count = 0

    def send(
        self, size: int = 10, key: bytes | None = None, partition: int | None = None
    ) -> Delivery:
        """The next record: every value is another one."""
        value = b"%08d" % self._count + b"." * size
        self._count += 1
        delivery = self.accumulator.append(
            TOPIC, value, key, partition, None, (), lambda _data, error: self._told(error), block=0
        )
        self.deliveries.append((value, delivery))
        return delivery

    def _told(self, error: ZBrokerError | None) -> None:
        if error is None:
            self.acknowledged.append(self.world.now)

    def keep_sending(self, every: float = 0.002) -> None:
        """A record every so many seconds, from now on."""
        self.send()
        self.world.at(every, lambda: self.keep_sending(every))

    def flush(self) -> None:
        self.world.run(until=self.world.now + 200, done=lambda: not self.accumulator.unfinished)
        assert not self.accumulator.unfinished, "the producer is stuck"

    def gap_after(self, since: float) -> float:
        """The longest time without an acknowledgement, from shortly before `since` until now."""
        times = [at for at in self.acknowledged if at >= since - 0.01] + [self.world.now]
        return max(after - before for before, after in itertools.pairwise(times))

    def check(self) -> None:
        """Each acknowledged record is there once, where it was said to be, in order; what failed, as its error says."""
        for number in range(len(self.world.truth)):
            values = self.world.values(number)
            assert len(values) == len(set(values)), "a record is there twice"
            places = {value: offset for offset, value in enumerate(values)}
            offsets = []
            for value, delivery in self.deliveries:
                batch, _ = delivery._place()
                if not batch.done or batch.partition != number:
                    continue
                if batch.error is None:
                    offsets.append(delivery.result(0).offset)
                    assert places.get(value) == offsets[-1], (
                        value[:8],
                        places.get(value),
                        offsets[-1],
                    )
                elif not batch.error.outcome_unknown:
                    assert value not in places, (
                        f"{value[:8]!r} failed for certain, and is in the log"
                    )
            assert offsets == sorted(offsets), (
                "acknowledged records are not in the order in which they were sent"
            )


class SimConsumer(SimClient):
    """A consumer and what it was handed."""

    def __init__(self, world: SimCluster, *, start: Any = "earliest", **options: Any) -> None:
        super().__init__(world, **options)
        settings = ConsumerSettings(
            topics=(TOPIC,), partitions=None, start=start, starts={}, on_out_of_range="raise", fetch_bytes=3000,
            buffer_bytes=1 << 20, request_timeout=10.0, until_end=False,
        )  # fmt: skip
        self.core = ConsumerCore(settings, self.exchange, self.cluster, world.random.random)
        self.machine = ConsumerMachine(self.core, self.cluster, self.exchange)
        self.machine.signal = self._take
        self.got: dict[int, list[bytes | None]] = {n: [] for n in range(len(world.truth))}
        self.got_at: list[float] = []
        self.errors: list[ZBrokerError] = []
        self.core.begin(world.now)

    def _take(self) -> None:
        """The application: takes all, and checks that it continues what it has."""
        while self.core.ready:
            item = self.core.ready.popleft()
            got = self.got[item.place.partition]
            if item.error is not None:
                self.errors.append(item.error)
                if isinstance(item.error, Diverged):
                    assert item.error.details["next"] == len(got)
                    assert item.position == item.error.details["first"] < len(got)
                    del got[item.position :]
                self.core.go_on(self.world.now)
            if item.piece is None:
                continue
            self.core.buffer.bytes_out += item.piece.header.size
            assert item.piece.first == len(got), (item.place, item.piece.first, len(got))
            header = item.piece.header
            rows = decode_records(item.piece.data, item.piece.at, header)
            got += [row[2] for row in rows[item.piece.first - header.base_offset :] if row]
            self.got_at.append(self.world.now)

    def settle(self) -> None:
        """Waits until everything committed was handed over."""

        def all_there() -> bool:
            return all(len(got) == len(self.world.values(n)) for n, got in self.got.items())

        self.world.run(until=self.world.now + 100, done=all_there)
        for number, got in self.got.items():
            assert got == self.world.values(number), f"partition {number}"

    def live(self) -> bool:
        return all(reader.state == "live" for reader in self.core.readers.values())

    def reader(self, partition: int = 0) -> Any:
        return self.core.readers[TopicPartition(TOPIC, partition)]


class SimAdmin(SimClient):
    """An admin client that runs flows."""

    def __init__(self, world: SimCluster, **options: Any) -> None:
        super().__init__(world, follow=False, **options)
        self.core = AdminCore(self.exchange, self.cluster, world.random.random)
        self.machine = AdminMachine(self.core, self.cluster, self.exchange)

    def call(self, flow: Any, timeout: float = 10.0) -> Any:
        """Runs a flow as `Admin` does."""
        try:
            tasks: list[Task] = next(flow)
            while True:
                tasks = flow.send(self._outcomes(tasks, timeout))
        except StopIteration as end:
            return end.value

    def _outcomes(self, tasks: list[Task], timeout: float) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for index, task in enumerate(tasks):
            task.done = lambda outcome, index=index: outcomes.update({index: outcome})  # type: ignore[misc]
            self.core.submit(task, timeout, self.world.now)
        self.world.run(until=self.world.now + timeout + 1, done=lambda: len(outcomes) == len(tasks))
        return [outcomes[index] for index in range(len(tasks))]
