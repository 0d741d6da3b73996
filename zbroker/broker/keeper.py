"""Every partition that this node keeps: opened, appointed, and ended as the committed metadata say.

Owns which partitions are open here, and their way to the disk and to the other nodes. Acts on metadata only while they
have this very start of this node registered and up: what they said before is of an earlier start. Never decides who
leads or keeps what.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from zbroker.broker.limits import Budget, ReadLedger
from zbroker.broker.mesh import Mesh
from zbroker.broker.partition import TOPICS_FOLDER, Partition, folder
from zbroker.broker.petitions import Petitions
from zbroker.broker.ports import BrokerSettings, Replier, Report, Transport
from zbroker.cluster import recovery
from zbroker.cluster.metadata import Metadata, PartitionState, TopicState
from zbroker.errors import ZBrokerError
from zbroker.log.delete import DeleteFolder, delete_folder
from zbroker.log.storage import Completion, Storage
from zbroker.protocol.batch import Buffer
from zbroker.protocol.frames import Frame
from zbroker.protocol.peers import Append, Appended, ChangeIsr, ElectAnew
from zbroker.replication.ports import LinkBudget
from zbroker.replication.replica import Appointment
from zbroker.topics import GROUPS

CATCH_UP_MAX = 1 << 20
"""Bytes of catch-up that may be on their way to one node."""


class Keeper:
    """The partitions of one node.

    Attributes:
        kept: by topic id and number.
        error: why one of them failed, which is the end of the node.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        storage: Storage,
        transport: Transport,
        mesh: Mesh,
        reply: Replier,
        report: Report,
        changed: Callable[[str], None],
        attach: Callable[[Partition], None],
    ) -> None:
        """
        Args:
            changed: told a topic's id when a partition of it has taken up a role here, or has ended.
            attach: given each partition of `__groups` before it is opened.
        """
        self.kept: dict[str, dict[int, Partition]] = {}
        self.budget = Budget(settings.memory_max // 2)
        self.ledger = ReadLedger(
            unread=transport.unread, per_client=settings.unread_max, total=settings.memory_max // 2
        )
        self.error: ZBrokerError | None = None
        self._owners: dict[str, Partition] = {}
        """Partitions by their log's folder: where completions go."""
        self._going: set[str] = set()
        """Folders that are being deleted: nothing is opened there before they are gone."""
        self._budgets: dict[str, LinkBudget] = {}
        self._asked: set[tuple[str, int, int]] = set()
        """Leaderships that cannot go on, for which another is asked for: topic id, partition, epoch."""
        self._confirming: set[tuple[str, int, int]] = set()
        """Leaderships whose ISR is being confirmed: topic id, partition, epoch."""
        self._settings = settings
        self._storage = storage
        self._transport = transport
        self._mesh = mesh
        self._reply = reply
        self._report = report
        self._changed = changed
        self._attach = attach

    def __iter__(self) -> Iterator[Partition]:
        return iter(list(self._owners.values()))

    def __len__(self) -> int:
        return len(self._owners)

    def find(self, topic_id: str, number: int) -> Partition | None:
        """The partition, where it is kept here."""
        return self.kept.get(topic_id, {}).get(number)

    @property
    def settled(self) -> bool:
        """Whether every partition has carried out its newest appointment."""
        return all(partition.settled for partition in self._owners.values())

    def holds_up(self, metadata: Metadata) -> bool:
        """Whether a partition has no leader only because what this node says of its log is not decided on yet."""
        node = self._settings.node
        return any(
            recovery.hangs_on(metadata, metadata.topics[topic_id].partitions[number], node)
            for topic_id, kept in self.kept.items()
            for number in kept
        )

    # Metadata ---

    def follow(self, metadata: Metadata, topic_ids: Iterable[str], applied: int, now: int) -> None:
        """Makes what is kept here be as the metadata say of some topics."""
        for topic_id in topic_ids:
            topic = metadata.topics.get(topic_id)
            if topic is None:
                self._delete(topic_id, now)
            else:
                self._follow_topic(metadata, topic, applied, now)

    def _follow_topic(self, metadata: Metadata, topic: TopicState, applied: int, now: int) -> None:
        kept = self.kept.setdefault(topic.topic_id, {})
        for number, state in enumerate(topic.partitions):
            partition = kept.get(number)
            if self._settings.node not in state.replicas:
                if partition is not None:  # moved elsewhere, and a committed record says so
                    del kept[number]
                    self._end(partition, now)
                continue
            if partition is None:
                if folder(topic.topic_id, number) in self._going:
                    continue  # followed again once that is gone
                partition = self._open(topic, number, now)
                kept[number] = partition
            elif partition.settings != topic.settings:
                partition.alter(topic.settings)
            partition.unconfirmed = recovery.is_unconfirmed(metadata, topic, state)
            partition.appoint(appointment(metadata, state, applied), state.version, now)

    def set_aside(self, metadata: Metadata, now: int) -> None:
        """Closes what the metadata do not mention, and leaves its files: only a deletion that is applied deletes."""
        for topic_id in [each for each in self.kept if each not in metadata.topics]:
            for partition in self.kept.pop(topic_id).values():
                self._report("set_aside", partition=partition.name, folder=partition.log.folder)
                partition.stop(now)
                self._look_at(partition)

    def _open(self, topic: TopicState, number: int, now: int) -> Partition:
        settings, mesh = self._settings, self._mesh

        def send(node: str, message: Append, batches: Sequence[Buffer]) -> None:
            mesh.send(node, message, batches, "data")

        def answer(node: str, message: Appended) -> None:
            mesh.send(node, message)

        partition = Partition(
            node=settings.node, topic_id=topic.topic_id, topic=topic.name, number=number,
            settings=topic.settings, session_timeout=settings.session_timeout,
            storage=self._storage, transport=self._transport, send=send, answer=answer,
            budgets=self._budget_of, reply=self._reply, report=self._report, budget=self.budget,
            ledger=self.ledger, fetch_max=settings.fetch_max,
        )  # fmt: skip
        if topic.name == GROUPS:
            self._attach(partition)
        self._owners[partition.log.folder] = partition
        partition.open(now)
        return partition

    def _budget_of(self, node: str) -> LinkBudget:
        return self._budgets.setdefault(node, LinkBudget(CATCH_UP_MAX))

    def _delete(self, topic_id: str, now: int) -> None:
        for partition in self.kept.pop(topic_id, {}).values():
            self._end(partition, now)
        if not any(partition.topic_id == topic_id for partition in self._owners.values()):
            self._remove(f"{TOPICS_FOLDER}/{topic_id}")

    def _remove(self, path: str) -> None:
        self._going.add(path)
        delete_folder(self._storage, path)

    def _end(self, partition: Partition, now: int) -> None:
        if partition.life == "open":
            self._going.add(partition.log.folder)
            partition.delete(now)
            self._look_at(partition)

    def stop(self, partitions: Iterable[Partition], now: int) -> None:
        """Partitions finish what pends, and close."""
        for partition in partitions:
            partition.stop(now)
            self._look_at(partition)

    @property
    def closed(self) -> bool:
        """Whether nothing is open any more."""
        return all(
            partition.life in ("closed", "deleted", "failed") for partition in self._owners.values()
        )

    def under_replicated(self) -> int:
        """How many partitions led here lack in-sync replicas."""
        return sum(partition.under_replicated for partition in self._owners.values())

    # Messages of peers ---

    def on_append(self, sender: str, message: Append, batches: Sequence[Frame], now: int) -> None:
        """A leader sends; where the partition is not kept here yet, it is told to try again."""
        partition = self.find(message.topic_id, message.partition)
        if partition is None:
            answer = Appended(
                topic_id=message.topic_id, partition=message.partition, epoch=message.epoch,
                session=message.session, status="not_ready",
            )  # fmt: skip
            self._mesh.send(sender, answer)
        elif partition.life == "open":
            partition.on_append(sender, message, batches, now)

    def on_appended(self, sender: str, incarnation: int, message: Appended, now: int) -> None:
        """A follower answers."""
        partition = self.find(message.topic_id, message.partition)
        if partition is not None:
            partition.on_appended(sender, incarnation, message, now)
            budget = self._budgets.get(sender)
            if budget is not None:
                budget.admit()

    # Events and time ---

    def on_event(self, completion: Completion, now: int) -> bool:
        """A storage request is done; whether it was of a partition's."""
        owner = completion.request.owner
        partition = self._owners.get(owner)
        if partition is None:
            if owner not in self._going:
                return False
            if not isinstance(completion.request, DeleteFolder):
                return True  # a read that came late: the folder is there still
            self._going.discard(owner)
            if completion.error is not None:
                self._report("storage_request_failed", folder=owner, error=str(completion.error))
            self._changed(owner.split("/")[1])
            return True
        before = (partition.life, partition.replica.state)
        partition.on_event(completion, now)
        if before != (partition.life, partition.replica.state):
            self._look_at(partition)
        return True

    def on_tick(self, petitions: Petitions, eligible: Collection[str], now: int, wall: int) -> None:
        """About every 100 ms."""
        self.ledger.on_tick()
        for budget in self._budgets.values():
            budget.admit()
        for partition in [each for each in self._owners.values() if not each.resting]:
            before = partition.life
            partition.on_tick(now, wall)
            if partition.life != before:
                self._look_at(partition)
            self._propose_isr(partition, petitions, eligible, now)
            if partition.replica.resigned:
                self._ask_for_another(partition, petitions, now)

    def beacon(self) -> None:
        """Every partition led here says where it ends."""
        for partition in self._owners.values():
            partition.beacon()

    def on_second(self, wall: int) -> None:
        """Once a second: retention, rates, and compaction."""
        for partition in self._owners.values():
            partition.on_second(wall)
        self._compact(wall)

    def _compact(self, wall: int) -> None:
        """One copy at a time is compacted, the dirtiest first: each takes memory for its keys."""
        if any(partition.log.compacting for partition in self._owners.values()):
            return
        due = [(partition.compaction_due(wall), partition) for partition in self._owners.values()]
        dirtiest, partition = max(due, key=lambda pair: pair[0], default=(0.0, None))
        if partition is not None and dirtiest > 0:
            partition.compact(wall)

    # Within ---

    def _propose_isr(
        self, partition: Partition, petitions: Petitions, eligible: Collection[str], now: int
    ) -> None:
        isr = partition.isr_to_propose(eligible, now)
        if isr is None:
            self._confirm_isr(partition, petitions, now)
            return
        epoch = partition.epoch
        isr[self._settings.node] = self._settings.incarnation
        request = ChangeIsr(
            topic_id=partition.topic_id, partition=partition.number, epoch=epoch,
            version=partition.version, isr=isr,
        )  # fmt: skip
        petitions.ask(request, lambda _: partition.isr_answered(epoch), now)

    def _confirm_isr(self, partition: Partition, petitions: Petitions, now: int) -> None:
        """The ISR became smaller without this leader's doing: it says that it lives, by proposing what is so."""
        key = (partition.topic_id, partition.number, partition.epoch)
        isr = partition.isr_to_confirm()
        if isr is None or key in self._confirming:
            return
        self._confirming.add(key)
        isr[self._settings.node] = self._settings.incarnation
        request = ChangeIsr(
            topic_id=partition.topic_id, partition=partition.number, epoch=partition.epoch,
            version=partition.version, isr=isr,
        )  # fmt: skip
        petitions.ask(request, lambda _: self._confirming.discard(key), now)

    def _ask_for_another(self, partition: Partition, petitions: Petitions, now: int) -> None:
        key = (partition.topic_id, partition.number, partition.epoch)
        if key in self._asked:
            return
        self._asked.add(key)
        request = ElectAnew(topic_id=key[0], partition=key[1], epoch=key[2])
        petitions.ask(request, lambda _: self._asked.discard(key), now)

    def _look_at(self, partition: Partition) -> None:
        """A partition changed: what follows from that for the node."""
        if partition.life == "failed":
            self.error = self.error or partition.error
        elif partition.life == "closed" and self.find(partition.topic_id, partition.number) is None:
            self._owners.pop(partition.log.folder, None)
        elif partition.life == "deleted":
            self._owners.pop(partition.log.folder, None)
            self._remove(partition.log.folder)
            topic_id = partition.topic_id
            others = any(other.topic_id == topic_id for other in self._owners.values())
            if not others and topic_id not in self.kept:
                self._remove(f"{TOPICS_FOLDER}/{topic_id}")
        self._changed(partition.topic_id)


def appointment(metadata: Metadata, state: PartitionState, applied: int) -> Appointment:
    """What the metadata say of a partition, as its replicas take it: only those that are up are sent to."""
    return Appointment(
        epoch=state.epoch,
        leader=state.leader,
        isr=state.isr,
        replicas={
            node: metadata.nodes[node].incarnation
            for node in state.replicas
            if metadata.is_up(node)
        },
        metadata=applied,
        unclean=state.unclean,
        end=state.end if state.end >= 0 else None,
    )
