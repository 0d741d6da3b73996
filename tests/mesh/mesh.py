"""Clusters of three for scenarios by script: who leads, who is in sync, and the wait until all is well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zbroker.cluster.metadata import PartitionState
from zbroker.protocol.batch import encode_batch
from zbroker.protocol.messages import Produce
from zbroker.testing.clients import Prober, SimulatedAdmin, SimulatedConsumer, SimulatedProducer
from zbroker.testing.cluster import Machine, SimulatedCluster
from zbroker.testing.history import History, check
from zbroker.testing.invariants import Invariants


class Mesh:
    """A formed cluster under `Invariants`, with one topic `t` of one partition unless told."""

    def __init__(
        self,
        seed: int = 1,
        nodes: int = 3,
        *,
        session_timeout: int = 1000,
        voters: Sequence[str] | int | None = None,
        **topic: Any,
    ) -> None:
        self.invariants = Invariants()
        self.cluster = SimulatedCluster(
            seed, nodes, watch=self.invariants, session_timeout=session_timeout,
            voters=[f"n{each + 1}" for each in range(voters)] if isinstance(voters, int) else voters,
        )  # fmt: skip
        self.cluster.form()
        self.admin = SimulatedAdmin("admin", self.cluster)
        self.history = History()
        self.prober = Prober("probe", self.cluster, self.history)
        self.topic_id = self.admin.create_topic("t", **{"partitions": 1, **topic})
        self.place = ("t", self.topic_id, 0)
        self.cluster.run_until(lambda: self.in_sync(), 10, "all in sync")

    # What there is ---

    @property
    def state(self) -> PartitionState:
        """The partition, as the newest metadata have it."""
        return self.invariants.metadata.topics[self.topic_id].partitions[0]

    @property
    def leader(self) -> Machine:
        """Who leads the partition."""
        assert self.state.leader is not None, "no leader"
        return self.cluster.machines[self.state.leader]

    @property
    def followers(self) -> list[Machine]:
        """The other replicas."""
        return [
            self.cluster.machines[name] for name in self.state.replicas if name != self.state.leader
        ]

    @property
    def controller(self) -> Machine | None:
        """Who is the controller."""
        ready = [machine for machine in self.cluster.up if machine.broker.quorum.ready]
        return max(ready, key=lambda machine: machine.broker.quorum.replica.epoch, default=None)

    def in_sync(self, *names: str) -> bool:
        """Whether the partition has a leader, and these replicas (or all) in sync."""
        state = self.state
        return state.leader is not None and set(state.isr) == set(names or state.replicas)

    def another_leads(self, than: Machine, seconds: float = 20.0) -> None:
        """Waits for another leader."""
        self.cluster.run_until(
            lambda: self.state.leader not in (None, than.name), seconds, "another leads"
        )

    def serves(self, machine: Machine, seconds: float = 20.0) -> None:
        """Waits until a machine's broker serves."""
        self.cluster.run_until(lambda: machine.broker.state == "serving", seconds, "it serves")

    def acknowledged(self, more: int, seconds: float = 20.0) -> None:
        """Waits until so many more records are acknowledged."""
        sends = self.history.sends
        wanted = sum(send.outcome == "ok" for send in sends) + more
        self.cluster.run_until(
            lambda: sum(send.outcome == "ok" for send in sends) >= wanted, seconds, "acknowledged"
        )

    # What happens ---

    def send(self, node: str | None = None, acks: str = "all", seconds: float = 5.0) -> Any:
        """One record to the leader, or to a node that takes itself for it; what became of it."""
        sent = self.prober.produce(node or self.leader.name, self.place, acks)
        self.prober.soon()
        self.cluster.run_until(
            lambda: sent.ended >= 0 or sent.outcome != "unknown", seconds, "an outcome"
        )
        return sent

    def produce(
        self, node: str, value: bytes, producer: tuple[int, int, int], seconds: float = 5.0
    ) -> Any:
        """One batch under a producer's id, epoch and sequence: the reply, or the error."""
        found: list[Any] = []
        data = encode_batch(
            [(0, None, value, ())], base_timestamp=1, max_timestamp=1,
            producer_id=producer[0], producer_epoch=producer[1], base_sequence=producer[2],
        )  # fmt: skip
        request = Produce(topic="t", topic_id=self.topic_id, timeout=2000)
        prober = self.prober
        prober.exchange.request(
            prober.addresses[node], request, lambda _call, outcome, _body, _at: found.append(outcome),
            now=prober.now, timeout=4.0, body=data,
        )  # fmt: skip
        prober.soon()
        self.cluster.run_until(lambda: found, seconds, "an answer")
        return found[0]

    def batch(self, records: int) -> int:
        """One batch of so many records, of which no history is kept; its first offset."""
        found: list[Any] = []
        data = encode_batch(
            [(0, None, b"of a batch %d" % number, ()) for number in range(records)],
            base_timestamp=1, max_timestamp=1,
        )  # fmt: skip
        request = Produce(topic="t", topic_id=self.topic_id, timeout=2000)
        prober = self.prober
        prober.exchange.request(
            prober.addresses[self.leader.name], request,
            lambda _call, outcome, _body, _at: found.append(outcome),
            now=prober.now, timeout=4.0, body=data,
        )  # fmt: skip
        prober.soon()
        self.cluster.run_until(lambda: found, 5, "an answer")
        offset: int = found[0].base_offset
        return offset

    def values(self) -> list[bytes]:
        """Everything that is read from the start, in order."""
        history = History()
        reader = SimulatedConsumer(
            f"reader{len(self.cluster.clients)}", self.cluster, history, ("t",)
        )
        self.cluster.run_until(
            lambda: list(reader.positions.values()) == [self.end()], 20, "everything is read"
        )
        reader.stop()
        return [value for poll in history.polls for _, value in poll.records]

    def cut(self, *pairs: tuple[Machine, Machine]) -> None:
        """Nothing passes between two machines, in either direction."""
        for a, b in pairs:
            self.cluster.network.cut(a.name, b.name)
            self.cluster.network.cut(b.name, a.name)

    def takes(self, seconds: float = 10.0) -> Any:
        """A record that is acknowledged by whoever leads, within so many seconds."""
        until = self.cluster.now + seconds
        while True:
            sent = None if self.state.leader is None else self.send()
            if sent is not None and sent.outcome == "ok":
                return sent
            assert self.cluster.now < until, sent
            self.cluster.run(0.1)

    def producer(self, name: str = "p") -> SimulatedProducer:
        """A producer at work."""
        return SimulatedProducer(name, self.cluster, self.history, {"t": 1})

    def heal(self, seconds: float = 20.0) -> None:
        """All faults are over; all replicas are in sync again; everything acknowledged is read by a new reader."""
        self.cluster.heal()
        self.prober.probing = False
        self.cluster.run_until(self.in_sync, seconds, "all replicas in sync")
        drain = SimulatedConsumer("drain", self.cluster, self.history, ("t",))
        self.cluster.run_until(
            lambda: list(drain.positions.values()) == [self.end()], seconds, "everything is read"
        )
        assert check(self.history, drained=True) == []
        assert not drain.errors

    def end(self) -> int:
        """The high watermark at the leader, -1 while it does not serve."""
        leader = self.leader
        partition = leader.broker.keeper.find(self.topic_id, 0) if leader.up else None
        return partition.high_watermark if partition is not None and partition.serves else -1
