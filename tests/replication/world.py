"""Replicas of one partition in one thread: simulated disks, a network that loses and delays, an oracle that appoints.

The oracle stands for the controller: its history of appointments is perfect, and every node learns of it late. All
else is the production core. What is true at every step is checked at every step; a failing seed replays.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from zbroker.log import names
from zbroker.log.events import Broken
from zbroker.log.log import Log
from zbroker.log.segment import Bounds, scan
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Completion
from zbroker.protocol.batch import (
    BatchHeader,
    Buffer,
    EncodedRecord,
    encode_batch,
    read_header,
    stamp,
)
from zbroker.protocol.peers import Append, Appended
from zbroker.replication.leader import LeaderSettings
from zbroker.replication.ports import LinkBudget
from zbroker.replication.replica import Appointment, Replica
from zbroker.testing.disk import PowerLost, SimulatedDisk, SimulatedStorage

FOLDER = "topics/t/0"
Identity = tuple[int, int, int]
"""What makes a batch the same batch: epoch, span, CRC."""


class Node:
    """One machine: its disk stays, its process comes and goes."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk = SimulatedDisk(world.rng)
        self.incarnation = 0
        self.up = False
        self.applied = 0
        self.own_since = 0
        self.replica: Replica
        self.storage: SimulatedStorage

    def start(self) -> None:
        world = self.world
        self.incarnation += 1
        self.up = True
        self.disk.off = False
        self.storage = SimulatedStorage(self.disk, world.rng, self.deliver)
        log = Log(FOLDER, world.settings(), self.storage)
        budgets: dict[str, LinkBudget] = {}
        self.replica = Replica(
            log,
            LeaderSettings(
                node=self.name,
                topic_id="t",
                flushed=world.flushed,
                min_insync=world.min_insync,
                lag_max=1000,
            ),
            send=lambda to, message, batches: world.network.send(self, to, message, batches),
            answer=lambda to, message: world.network.send(self, to, message, ()),
            budgets=lambda to: budgets.setdefault(to, LinkBudget(1 << 20)),
        )
        self.replica.open(world.now)
        self.applied = 0
        self.own_since = len(world.oracle.history)
        world.oracle.register(self)

    def stop(self, *, power: bool) -> None:
        self.up = False
        self.storage.forget()
        if power:
            self.disk.lose_power()

    def deliver(self, completion: Completion) -> None:
        event = self.replica.on_event(completion, self.world.now)
        assert not isinstance(event, Broken), event
        self.world.look(self)

    def apply_one(self) -> bool:
        """Learns of one more decision of the oracle's."""
        history = self.world.oracle.history
        if self.applied >= len(history):
            return False
        appointment = history[self.applied]
        self.applied += 1
        if appointment.leader == self.name and self.applied <= self.own_since:
            return True  # no node resumes what it led before it started
        self.replica.appoint(appointment, self.world.now)
        if self.replica.leader is not None:
            self.replica.leader.metadata_grew(self.world.now)
        self.world.look(self)
        return True

    def content(self) -> dict[int, Identity]:
        """The batches in its log as the files have them now, by base offset."""
        found: dict[int, Identity] = {}
        bases = sorted(
            int(name.partition(".")[0])
            for name in self.disk.list(FOLDER)
            if name.endswith(names.LOG)
        )
        for base in bases:
            path = names.path(FOLDER, base, names.LOG)
            for item in scan(
                self.disk, path, 0, self.disk.size(path), Bounds(base), payloads=False
            ):
                if isinstance(item, tuple) and isinstance(item[1], BatchHeader):
                    header = item[1]
                    found[header.base_offset] = (header.leader_epoch, header.span, header.crc)
        return found


class Network:
    """Links that keep their order, until they break: then a tail is lost, or comes when nobody expects it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.links: dict[
            tuple[str, str], deque[tuple[int, int, Append | Appended, list[bytes]]]
        ] = {}
        self.stale: list[tuple[str, str, tuple[int, int, Append | Appended, list[bytes]]]] = []
        self.cut: set[tuple[str, str]] = set()

    def send(
        self, sender: Node, to: str, message: Append | Appended, batches: Sequence[Buffer]
    ) -> None:
        receiver = self.world.nodes[to]
        frames = [bytes(batch) for batch in batches]
        item = (sender.incarnation, receiver.incarnation, message, frames)
        self.links.setdefault((sender.name, to), deque()).append(item)

    def busy(self) -> list[tuple[str, str]]:
        return [link for link, queue in self.links.items() if queue and link not in self.cut]

    def deliver(self, link: tuple[str, str]) -> None:
        self._hand_over(*link, self.links[link].popleft())

    def _hand_over(
        self, source: str, to: str, item: tuple[int, int, Append | Appended, list[bytes]]
    ) -> None:
        sent_in, meant_for, message, frames = item
        receiver = self.world.nodes[to]
        if not receiver.up or receiver.incarnation != meant_for:
            return
        if self.world.nodes[source].incarnation != sent_in:
            return
        now = self.world.now
        if isinstance(message, Append):
            receiver.replica.on_append(source, message, frames, now)
        else:
            receiver.replica.on_appended(source, sent_in, message, now)
        self.world.look(receiver)

    def break_link(self, link: tuple[str, str]) -> None:
        """Loses a tail; parts of it may come late."""
        queue = self.links.get(link)
        if queue:
            keep = self.world.rng.randrange(len(queue))
            lost = list(queue)[keep:]
            for _ in lost:
                queue.pop()
            self.stale += [(*link, item) for item in lost if self.world.rng.random() < 0.3]

    def deliver_stale(self) -> None:
        if self.stale:
            at = self.world.rng.randrange(len(self.stale))
            self._hand_over(*self.stale.pop(at))


class Oracle:
    """The controller, as it should be: one history of appointments."""

    def __init__(self, world: World, names_: list[str]) -> None:
        self.world = world
        self.incarnations = dict.fromkeys(names_, 0)
        self.isr = list(names_)
        self.leader: str | None = names_[0]
        self.epoch = 0
        self.history: list[Appointment] = []
        self.version = 0
        self.ended_well: set[str] = set()

    def decide(self) -> None:
        self.version += 1
        self.history.append(
            Appointment(
                epoch=self.epoch, leader=self.leader, isr=sorted(self.isr),
                replicas=self.world.who_follows(self.incarnations), metadata=len(self.history),
            )
        )  # fmt: skip

    def register(self, node: Node) -> None:
        """A node's start: its leadership ends; what it wrote without fsync may be gone, so it leaves the ISR."""
        self.incarnations[node.name] = node.incarnation
        if not self.world.flushed and len(self.isr) > 1 and node.incarnation > 1:
            self.isr = [name for name in self.isr if name != node.name]
        if self.leader in (node.name, None):
            self.elect()
        self.decide()

    def fence(self, name: str) -> None:
        """A node is taken for dead, rightly or not."""
        if len(self.isr) > 1:
            self.isr = [other for other in self.isr if other != name]
        if self.leader == name:
            self.elect()
        self.decide()

    def elect(self) -> None:
        alive = [name for name in self.isr if self.world.nodes[name].up]
        self.leader = self.world.rng.choice(alive) if alive else None
        self.epoch += 1

    def change_isr(
        self, leader: str, epoch: int, version: int, isr: list[str], incarnations: dict[str, int]
    ) -> bool:
        """A leader's proposal."""
        if leader != self.leader or epoch != self.epoch or version != self.version:
            return False
        if any(self.incarnations[name] != incarnations.get(name) for name in isr):
            return False
        self.isr = list(isr)
        self.decide()
        return True


class World:
    """Everything, and what must always be true of it."""

    def __init__(
        self, seed: int, *, nodes: int = 3, flushed: bool = True, min_insync: int = 2
    ) -> None:
        self.rng = random.Random(seed)
        self.flushed = flushed
        self.min_insync = min_insync
        self.segment_size = 3000
        self.now = 1000
        self.names = [f"n{number}" for number in range(nodes)]
        self.nodes: dict[str, Node] = {}
        self.network = Network(self)
        self.oracle = Oracle(self, self.names)
        self.committed: dict[int, Identity] = {}
        self.committed_end = 0
        self.values = 0
        self.deleted_below = 0
        self.exposed: set[tuple[str, int]] = set()
        for name in self.names:
            self.nodes[name] = Node(self, name)
        for node in self.nodes.values():
            node.up = True
        for node in self.nodes.values():
            node.start()

    def settings(self) -> LogSettings:
        """Of every copy."""
        return LogSettings(
            segment_size=self.segment_size,
            retention=None,
            fsync="always" if self.flushed else "never",
        )

    def who_follows(self, incarnations: dict[str, int]) -> dict[str, int]:
        """Who an appointment says is sent to: everybody, up or not."""
        return dict(incarnations)

    # What must be true ---

    def look(self, node: Node) -> None:
        """After whatever happened to a node."""
        leader = node.replica.leader
        if leader is None or leader.high_watermark < 0:
            return
        key = (node.name, leader.epoch)
        if key not in self.exposed:
            self.exposed.add(key)
            self.check_has_committed(node)
        for base, batch in leader.committed_batches():
            header = read_header(batch)
            identity = (header.leader_epoch, header.span, header.crc)
            known = self.committed.setdefault(base, identity)
            assert known == identity, (
                f"offset {base} was committed as {known}, and is {identity} now"
            )
            self.committed_end = max(self.committed_end, header.next_offset)
        assert leader.high_watermark <= (
            node.replica.log.flushed_offset if self.flushed else node.replica.log.written_offset
        )

    def check_has_committed(self, node: Node) -> None:
        """A leader that exposes its high watermark has all that was ever committed."""
        content = node.content()
        self.check_content(content)

    def check_content(self, content: dict[int, Identity]) -> None:
        """All that was committed is there, but for what was deleted."""
        for base, identity in self.committed.items():
            if base >= self.deleted_below or base in content:
                assert content.get(base) == identity, (base, identity, content.get(base))

    # What happens ---

    def delete_records(self, node: Node) -> None:
        """Whoever leads is told to give up its oldest records."""
        leader = node.replica.leader
        if node.up and leader is not None and leader.high_watermark > node.replica.log.start_offset:
            before = self.rng.randint(node.replica.log.start_offset, leader.high_watermark)
            self.deleted_below = max(self.deleted_below, before)
            node.replica.log.delete_before("user", before)

    def append(self, node: Node, spans: Sequence[int] = (1,)) -> bool:
        """The leader, or who takes itself for it, gets records from a client."""
        replica = node.replica
        if not node.up or replica.leader is None or replica.log.full:
            return False
        for span in spans:
            batch = encode_batch(self.records(node, span), base_timestamp=1, max_timestamp=1)
            stamp(
                batch, base_offset=replica.log.end_offset, append_time=max(self.now, replica.log.last_append_time),
                leader_epoch=replica.leader.epoch,
            )  # fmt: skip
            replica.append(batch, read_header(batch))
        self.look(node)
        return True

    def records(self, node: Node, span: int) -> list[EncodedRecord]:
        """What a client sends."""
        self.values += 1
        value = f"value {self.values} of {node.name}".encode() + b"." * self.rng.randrange(300)
        return [(0, None, value, ())] * span

    def tick(self, ms: int) -> None:
        self.now += ms
        for node in self.nodes.values():
            if node.up:
                node.replica.on_tick(self.now)
                self.propose(node)
                self.look(node)

    def propose(self, node: Node) -> None:
        leader = node.replica.leader
        if leader is None:
            if node.replica.resigned and self.oracle.leader == node.name:
                self.oracle.elect()
                self.oracle.decide()
            return
        leader.isr_to_propose(self.names, self.now)
        if leader.proposed is not None:
            incarnations = {name: known.incarnation for name, known in leader.followers.items()}
            incarnations[node.name] = node.incarnation
            version = node.applied  # one decision a version
            if not self.oracle.change_isr(
                node.name, leader.epoch, version, leader.proposed, incarnations
            ) and (node.applied >= len(self.oracle.history)):
                leader.isr_refused()

    def step(self) -> bool:
        """One thing that is due, whichever; False when nothing is."""
        choices: list[Callable[[], object]] = []
        for link in self.network.busy():
            choices.append(lambda link=link: self.network.deliver(link))
        for node in self.nodes.values():
            if node.up and not node.storage.idle:
                choices.append(lambda node=node: self.run_storage(node))
            if node.up and node.applied < len(self.oracle.history):
                choices.append(node.apply_one)
        if not choices:
            return False
        self.rng.choice(choices)()
        return True

    def run_storage(self, node: Node) -> None:
        try:
            node.storage.step()
        except PowerLost:
            node.stop(power=True)

    def settle(self, ms: int = 20_000) -> None:
        """Time passes without faults until nothing moves any more."""
        self.network.cut.clear()
        for _ in range(ms // 100):
            while self.step():
                pass
            self.tick(100)
        while self.step():
            pass

    @property
    def leader(self) -> Node | None:
        """The leader as the oracle sees it, once it leads."""
        if self.oracle.leader is None:
            return None
        node = self.nodes[self.oracle.leader]
        at_work = node.up and node.replica.leader is not None
        return node if at_work and node.replica.epoch == self.oracle.epoch else None

    def check_healed(self) -> None:
        """Every replica is in sync and equal, and nothing that was committed is missing."""
        leader = self.leader
        assert leader is not None
        assert leader.replica.leader is not None
        assert leader.replica.leader.isr == self.names, leader.replica.leader.isr
        content = leader.content()
        self.check_content(content)
        assert leader.replica.high_watermark == leader.replica.log.end_offset
        for node in self.nodes.values():
            first = max(node.replica.log.first_offset, leader.replica.log.first_offset)
            kept = {base: identity for base, identity in node.content().items() if base >= first}
            assert kept == {base: identity for base, identity in content.items() if base >= first}
            assert node.replica.log.end_offset == leader.replica.log.end_offset
