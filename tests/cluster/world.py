"""Voters of the metadata partition in one thread: simulated disks, time and a network that loses, delays and divides.

All that decides is the production core. What Raft promises is checked at every step; a failing seed replays.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from zbroker.cluster.election import ElectionSettings
from zbroker.cluster.quorum import FOLDER, MetadataPartition, PeerStart
from zbroker.cluster.records import MetadataRecord, ProducerIdsGranted
from zbroker.errors import NotReady, ZBrokerError
from zbroker.log import names
from zbroker.log.segment import Bounds, scan
from zbroker.protocol.batch import BatchHeader, Buffer
from zbroker.protocol.peers import Append, Appended, Vote, VoteRequest
from zbroker.testing.disk import PowerLost, SimulatedDisk, SimulatedStorage

TIMEOUT = 1000
Identity = tuple[int, int, int]


class Node:
    """One voter: its disk stays, its process comes and goes."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.disk = SimulatedDisk(world.rng)
        self.incarnation = 0
        self.up = False
        self.frozen = False
        self.applied = 0
        self.partition: MetadataPartition
        self.storage: SimulatedStorage

    def start(self) -> None:
        world = self.world
        self.incarnation += 1
        self.up = True
        self.disk.off = False
        self.applied = 0
        self.storage = SimulatedStorage(self.disk, world.rng, self.deliver)
        self.partition = MetadataPartition(
            self.name, world.names, storage=self.storage, peers=Lines(self), random=world.rng.random,
            settings=ElectionSettings(TIMEOUT), changed=lambda: None,
        )  # fmt: skip
        self.partition.open(world.now)
        for node in world.nodes.values():
            if node.up:
                node.partition.set_peers(world.starts(), world.now)
                node.partition.on_back(self.name)

    def stop(self, *, power: bool) -> None:
        self.up = self.frozen = False
        self.storage.forget()
        if power:
            self.disk.lose_power()

    def deliver(self, completion: Any) -> None:
        self.partition.on_event(completion, self.world.now)
        assert self.partition.error is None, self.partition.error
        self.world.look(self)

    def content(self) -> dict[int, Identity]:
        """The batches of its log, as its files have them now."""
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


class Lines:
    """What a voter sends."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def send(
        self, node: str, message: Append | Appended | Vote | VoteRequest, batches: Sequence[Buffer]
    ) -> None:
        self.node.world.network.send(self.node, node, message, [bytes(batch) for batch in batches])


class Network:
    """Links that keep their order until they break."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.links: dict[tuple[str, str], deque[tuple[int, int, Any, list[bytes]]]] = {}
        self.late: list[tuple[str, str, tuple[int, int, Any, list[bytes]]]] = []
        self.cut: set[tuple[str, str]] = set()

    def send(self, sender: Node, to: str, message: Any, frames: list[bytes]) -> None:
        item = (sender.incarnation, self.world.nodes[to].incarnation, message, frames)
        self.links.setdefault((sender.name, to), deque()).append(item)

    def busy(self) -> list[tuple[str, str]]:
        nodes = self.world.nodes
        return [
            link
            for link, queue in self.links.items()
            if queue and link not in self.cut and not nodes[link[1]].frozen
        ]

    def deliver(self, link: tuple[str, str]) -> None:
        self.hand_over(*link, self.links[link].popleft())

    def hand_over(self, source: str, to: str, item: tuple[int, int, Any, list[bytes]]) -> None:
        sent_in, meant_for, message, frames = item
        receiver = self.world.nodes[to]
        if not receiver.up or receiver.incarnation != meant_for:
            return
        if self.world.nodes[source].incarnation != sent_in:
            return
        partition, now = receiver.partition, self.world.now
        if isinstance(message, Append):
            partition.on_append(source, message, frames, now)
        elif isinstance(message, Appended):
            partition.on_appended(source, sent_in, message, now)
        elif isinstance(message, Vote):
            partition.on_vote(source, message, now)
        else:
            partition.on_vote_request(source, message, now)
        self.world.look(receiver)

    def break_link(self, link: tuple[str, str]) -> None:
        queue = self.links.get(link)
        if queue:
            keep = self.world.rng.randrange(len(queue))
            lost = list(queue)[keep:]
            for _ in lost:
                queue.pop()
            self.late += [(*link, item) for item in lost if self.world.rng.random() < 0.4]

    def deliver_late(self) -> None:
        if self.late:
            self.hand_over(*self.late.pop(self.world.rng.randrange(len(self.late))))


class World:
    """All voters, and what must always be true of them."""

    def __init__(self, seed: int, voters: int = 3) -> None:
        self.rng = random.Random(seed)
        self.now = 10_000
        self.names = [f"v{number}" for number in range(voters)]
        self.nodes: dict[str, Node] = {}
        self.network = Network(self)
        self.leaders: dict[int, tuple[str, int]] = {}
        """Who led each epoch, in which incarnation."""
        self.committed: dict[int, Identity] = {}
        self.checked: dict[tuple[str, int], int] = {}
        self.proposed = 0
        self.acknowledged: set[int] = set()
        self.states: dict[int, int] = {}
        """The state after each applied offset, as first seen."""
        for name in self.names:
            self.nodes[name] = Node(self, name)
        for node in self.nodes.values():
            node.start()

    def starts(self) -> dict[str, PeerStart]:
        return {node.name: PeerStart(node.incarnation, "") for node in self.nodes.values()}

    # What must be true ---

    def look(self, node: Node) -> None:
        """After whatever happened to a node."""
        partition = node.partition
        election = partition.election
        if election is not None and election.state == "leader":
            who = (node.name, node.incarnation)
            known = self.leaders.setdefault(election.epoch, who)
            assert known == who, f"two leaders of epoch {election.epoch}: {known} and {who}"
        leader = partition.replica.leader
        if leader is not None and leader.high_watermark >= 0:
            self.note_committed(node, leader.high_watermark)
        assert partition.applied <= partition.committed or partition.applied <= node.applied
        node.applied = partition.applied
        granted = partition.metadata.next_producer_id
        known_state = self.states.setdefault(partition.applied, granted)
        assert known_state == granted, (node.name, partition.applied, granted, known_state)

    def note_committed(self, node: Node, high_watermark: int) -> None:
        key = (node.name, node.incarnation)
        if self.checked.get(key, -1) >= high_watermark:
            return
        self.checked[key] = high_watermark
        # A majority of others commits, whatever the leader's own disk has by then.
        high_watermark = min(high_watermark, node.partition.replica.log.written_offset)
        content = node.content()
        for base, identity in content.items():
            if base < high_watermark:
                known = self.committed.setdefault(base, identity)
                assert known == identity, (
                    f"offset {base} was committed as {known}, and is {identity} now"
                )
        for base, identity in self.committed.items():
            if base < high_watermark:
                assert content.get(base) == identity, (node.name, base, content.get(base), identity)

    # What happens ---

    def propose(self, node: Node) -> bool:
        """Somebody asks a node that takes itself for the controller."""
        if not node.up or node.frozen or not node.partition.ready:
            return False
        self.proposed += 1
        assert node.partition.draft is not None
        first = node.partition.draft.next_producer_id
        records: list[MetadataRecord] = [ProducerIdsGranted(node=node.name, first=first, count=1)]

        def decided(error: ZBrokerError | None) -> None:
            if error is None:
                assert first not in self.acknowledged, f"id {first} was granted twice"
                self.acknowledged.add(first)
            else:
                assert isinstance(error, NotReady)

        node.partition.propose(records, decided, self.now)
        self.look(node)
        return True

    def tick(self, ms: int) -> None:
        """Time passes, as far as the next thing that is due."""
        until = self.now + ms
        while self.now < until:
            self.now = min(until, self.now + 50)
            for node in self.nodes.values():
                if node.up and not node.frozen:
                    node.partition.on_tick(self.now, self.now)
                    self.look(node)

    def notice_gone(self, name: str) -> None:
        """Everyone who is up finds that a node's port refuses."""
        for node in self.nodes.values():
            if node.up and node.name != name:
                node.partition.on_gone(name, self.now)

    def step(self) -> bool:
        """One thing that is due, whichever; False when nothing is."""
        choices: list[Callable[[], object]] = [
            (lambda link=link: self.network.deliver(link))  # type: ignore[misc]
            for link in self.network.busy()
        ]
        choices += [
            (lambda node=node: self.run_storage(node))  # type: ignore[misc]
            for node in self.nodes.values()
            if node.up and not node.frozen and not node.storage.idle
        ]
        if not choices:
            return False
        self.rng.choice(choices)()
        return True

    def run_storage(self, node: Node) -> None:
        try:
            node.storage.step()
        except PowerLost:
            node.stop(power=True)

    def run(self, ms: int, step_ms: int = 50) -> None:
        """Time passes without faults."""
        for _ in range(ms // step_ms):
            while self.step():
                pass
            self.tick(step_ms)
        while self.step():
            pass

    @property
    def controller(self) -> Node | None:
        """Who is the controller, of those who are up."""
        ready = [
            node
            for node in self.nodes.values()
            if node.up and not node.frozen and node.partition.ready
        ]
        return max(ready, key=lambda node: node.partition.replica.epoch, default=None)

    def heal(self) -> None:
        """Everything is up and connected, and stays so."""
        self.network.cut.clear()
        self.network.late.clear()
        for node in self.nodes.values():
            node.frozen = False
            if not node.up:
                node.start()
        self.run(6 * TIMEOUT)

    def check_healed(self) -> None:
        """One controller, equal logs, equal states, nothing acknowledged missing."""
        node = self.controller
        assert node is not None, "no controller after healing"
        assert self.propose(node)
        self.run(1000)
        contents = [each.content() for each in self.nodes.values()]
        assert all(content == contents[0] for content in contents)
        for base, identity in self.committed.items():
            assert contents[0].get(base) == identity
        states = {each.partition.metadata.next_producer_id for each in self.nodes.values()}
        assert len(states) == 1, states
        assert self.acknowledged <= set(range(states.pop()))
