"""Nodes that keep the metadata, in one thread: simulated disks and time, a network that loses, delays and divides.

All that decides is the production core. Voters die, freeze, lose one another and their disks, are added, removed and
replaced; the log's prefix goes for snapshots all the time. What Raft promises is checked at every step; a failing seed
replays.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from zbroker.cluster import voters
from zbroker.cluster.election import ElectionSettings
from zbroker.cluster.quorum import FOLDER, Message, MetadataPartition, PeerStart
from zbroker.cluster.records import ClusterFormed, MetadataRecord, ProducerIdsGranted
from zbroker.cluster.snapshots import SnapshotSettings
from zbroker.errors import NotReady, ZBrokerError
from zbroker.log import names
from zbroker.log.segment import Bounds, scan
from zbroker.protocol.batch import BatchHeader, Buffer
from zbroker.protocol.peers import (
    Append,
    Appended,
    SnapshotPart,
    SnapshotTaken,
    StandNow,
    Vote,
    VoteRequest,
)
from zbroker.testing.disk import PowerLost, SimulatedDisk, SimulatedStorage

TIMEOUT = 1000
SMALL = SnapshotSettings(bytes_max=2000, batches_max=5, segment_bytes=300)
Identity = tuple[int, int, int]


class Node:
    """One node: its disk stays until it is lost, its process comes and goes."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.incarnation = 0
        self.up = False
        self.frozen = False
        self.disks = 0
        self.partition: MetadataPartition
        self.storage: SimulatedStorage
        self.new_disk()

    def new_disk(self) -> None:
        """The disk is lost, and an empty one is in its place."""
        self.disk = SimulatedDisk(self.world.rng)
        self.disks += 1
        self.disk_id = f"{self.name}-disk{self.disks}"

    def start(self) -> None:
        world = self.world
        self.incarnation += 1
        self.up = True
        self.disk.off = False
        self.storage = SimulatedStorage(self.disk, world.rng, self.deliver)
        first = world.first_voters
        self.partition = MetadataPartition(
            self.name, first if first.get(self.name) == self.disk_id else {}, disk_id=self.disk_id,
            storage=self.storage, peers=Lines(self), random=world.rng.random,
            settings=ElectionSettings(TIMEOUT), changed=lambda: None, snapshots=world.snapshots,
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
    """What a node sends."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def send(self, node: str, message: Message, batches: Sequence[Buffer]) -> None:
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
        match message:
            case Append():
                partition.on_append(source, message, frames, now)
            case Appended():
                partition.on_appended(source, sent_in, message, now)
            case Vote():
                partition.on_vote(source, message, now)
            case VoteRequest():
                partition.on_vote_request(source, message, now)
            case StandNow():
                partition.on_stand_now(source, message, now)
            case SnapshotPart():
                partition.on_snapshot_part(source, message, frames, now)
            case SnapshotTaken():
                partition.on_snapshot_taken(source, sent_in, message, now)
        assert partition.error is None, partition.error
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
    """All nodes, and what must always be true of them."""

    def __init__(
        self, seed: int, voters: int = 3, learners: int = 0, snapshots: SnapshotSettings = SMALL
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 10_000
        self.snapshots = snapshots
        self.names = [f"v{number}" for number in range(voters + learners)]
        self.nodes: dict[str, Node] = {}
        self.network = Network(self)
        self.leaders: dict[int, tuple[str, int]] = {}
        """Who led each epoch, in which incarnation."""
        self.committed: dict[int, Identity] = {}
        self.checked: dict[tuple[str, int], int] = {}
        self.proposed = 0
        self.refusal: ZBrokerError | None = None
        self.noted: Counter[str] = Counter()
        """What has happened, for those who look whether histories are worth their time."""
        self.acknowledged: set[int] = set()
        self.states: dict[int, object] = {}
        """The state after each applied offset, as first seen."""
        for name in self.names:
            self.nodes[name] = Node(self, name)
        self.first_voters = {name: self.nodes[name].disk_id for name in self.names[:voters]}
        for node in self.nodes.values():
            node.start()

    def starts(self) -> dict[str, PeerStart]:
        return {
            node.name: PeerStart(node.incarnation, node.disk_id)
            for node in self.nodes.values()
            if node.incarnation
        }

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
        metadata, snapshots = partition.metadata, partition._snapshots
        state = (metadata.next_producer_id, dict(metadata.voters), metadata.replacing)
        known_state = self.states.setdefault(partition.applied, state)
        assert known_state == state, (node.name, partition.applied, state, known_state)
        if snapshots.state in ("idle", "saving"):
            assert partition.replica.log.start_offset <= snapshots.offset <= partition.applied

    def note_committed(self, node: Node, high_watermark: int) -> None:
        key = (node.name, node.incarnation)
        if self.checked.get(key, -1) >= high_watermark:
            return
        self.checked[key] = high_watermark
        # A majority of others commits, whatever the leader's own disk has by then.
        high_watermark = min(high_watermark, node.partition.replica.log.written_offset)
        content = node.content()
        begins = min(content, default=high_watermark)
        assert begins <= node.partition._snapshots.offset or begins >= high_watermark
        for base, identity in content.items():
            if begins <= base < high_watermark:
                known = self.committed.setdefault(base, identity)
                assert known == identity, (
                    f"offset {base} was committed as {known}, and is {identity} now"
                )
        for base, identity in self.committed.items():
            if begins <= base < high_watermark:
                assert content.get(base) == identity, (node.name, base, content.get(base), identity)

    # What happens ---

    def propose(self, node: Node) -> bool:
        """Somebody asks a node that takes itself for the controller."""
        if not node.up or node.frozen or not node.partition.ready:
            return False
        self.proposed += 1
        draft = node.partition.draft
        assert draft is not None
        first = draft.next_producer_id
        records: list[MetadataRecord] = [ProducerIdsGranted(node=node.name, first=first, count=1)]
        if draft.cluster_id is None:
            records = [ClusterFormed("c", "lab", 1, dict(self.first_voters)), *records]

        def decided(error: ZBrokerError | None) -> None:
            if error is None:
                assert first not in self.acknowledged, f"id {first} was granted twice"
                self.acknowledged.add(first)
                assert node.partition.metadata.next_producer_id > first
            else:
                assert isinstance(error, NotReady)

        node.partition.propose(records, decided, self.now)
        self.look(node)
        return True

    def change_voters(self, name: str, action: voters.Action) -> bool:
        """A person asks the controller for another voter; whether it was begun."""
        node = self.controller
        if node is None or node.partition.draft is None or not node.partition.draft.voters:
            return False
        partition = node.partition
        assert partition.draft is not None
        try:
            records = voters.change_voters(
                partition.draft, node=name, action=action, disks=partition.disks,
                caught_up=partition.caught_up,
            )  # fmt: skip
            partition.propose(records, lambda _: None, self.now)
        except ZBrokerError as error:
            self.refusal = error
            return False
        self.look(node)
        return True

    def go_on(self) -> None:
        """Every controller, or who takes itself for one, goes on with what was begun."""
        for node in self.nodes.values():
            partition = node.partition
            if node.up and not node.frozen and partition.ready and partition.draft is not None:
                records = voters.continue_voters(
                    partition.draft, partition.disks, partition.caught_up
                )
                if records:
                    partition.propose(records, lambda _: None, self.now)
                    self.look(node)

    @property
    def whole(self) -> bool:
        """Whether everyone names the same voters, at least three, all of which have their disks."""
        seen = [dict(node.partition.voters) for node in self.nodes.values()]
        there = {node.name: node.disk_id for node in self.nodes.values()}
        return (
            all(each == seen[0] for each in seen)
            and len(seen[0]) >= 3
            and seen[0].items() <= there.items()
        )

    def lose_disk(self, node: Node) -> None:
        """A machine is lost; another one under its name has an empty disk."""
        if node.up:
            node.stop(power=True)
        node.new_disk()
        for other in self.nodes.values():
            if other.up:
                other.partition.set_peers(
                    {name: start for name, start in self.starts().items() if name != node.name},
                    self.now,
                )

    def tick(self, ms: int) -> None:
        """Time passes, as far as the next thing that is due."""
        until = self.now + ms
        while self.now < until:
            self.now = min(until, self.now + 50)
            for node in self.nodes.values():
                if node.up and not node.frozen:
                    node.partition.on_tick(self.now, self.now)
                    self.look(node)
            self.go_on()

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
        """Everything is up and connected, and stays so; disks that were lost are replaced."""
        self.network.cut.clear()
        self.network.late.clear()
        for node in self.nodes.values():
            node.frozen = False
            node.disk.budget = node.disk.crash_at = None
            if not node.up:
                node.start()
        self.run(6 * TIMEOUT)
        for node in self.nodes.values():
            controller = self.controller
            assert controller is not None, "no controller after healing"
            if controller.partition.voters != controller.partition.metadata.voters:
                self.propose(controller)
                self.run(TIMEOUT)
            named = controller.partition.voters.get(node.name)
            if named not in (None, node.disk_id):
                assert self.change_voters(node.name, "replace"), self.refusal
            self.run(2 * TIMEOUT)
        self.run(2 * TIMEOUT)

    def check_healed(self) -> None:
        """One controller, equal logs, equal states, nothing acknowledged missing."""
        node = self.controller
        assert node is not None, "no controller after healing"
        assert self.propose(node)
        self.run(1000)
        partition = node.partition
        assert partition.metadata.replacing is None
        there = {each.name: each.disk_id for each in self.nodes.values()}
        assert partition.metadata.voters.items() <= there.items()
        logs = [each.partition.replica.log for each in self.nodes.values()]
        begins = max(log.start_offset for log in logs)
        contents = [
            {base: what for base, what in each.content().items() if base >= begins}
            for each in self.nodes.values()
        ]
        assert all(content == contents[0] for content in contents)
        for base, identity in self.committed.items():
            assert base < begins or contents[0].get(base) == identity
        assert len({log.end_offset for log in logs}) == 1
        for each in self.nodes.values():
            assert each.partition.applied == logs[0].end_offset, each.name
            assert each.partition.metadata.voters == partition.metadata.voters
        states = {each.partition.metadata.next_producer_id for each in self.nodes.values()}
        assert len(states) == 1, states
        assert self.acknowledged <= set(range(states.pop()))
