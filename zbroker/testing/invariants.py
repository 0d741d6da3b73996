"""What must be true inside a simulated cluster at every step, whatever goes wrong.

Owns the ledger of what was ever committed, kept from what leaders expose and from what is truly on disks (`copies`),
and the comparison of everything that brokers say and do with it. Looks only at what changed. Never changes anything;
what is wrong is an `InvariantBroken`, with a sentence that names nodes, offsets and epochs.

The numbers are those of the list in `docs/testing.md`:

==== ==================================================================================================================
 9   all below a leader's high watermark is on every member of its ISR and pending ISR; the leader is in the ISR
10   one (offset, epoch) is one record, with one prefix; epochs never fall along a log
11   the high watermark advances only while all of ISR and pending ISR are in the leader's epoch
12   who joins the ISR has everything that is committed
13   nothing that is committed is truncated, but by a replica that is out of the ISR and rebuilds; no leader truncates
14   nothing at or above the high watermark is served or pushed, and what is served is what was committed
15   an elected leader exposes its high watermark only beyond the beginning of its epoch
16   one leader an epoch; a leader has everything committed; ballots are on disk before they are spoken of; a majority
     has what an elected leader commits
17   each partition has at most one owner in a group, and a position that was answered as committed stays
18   nothing is acknowledged before it is committed, as its topic's `fsync` counts; what was flushed survives
21   where all in-sync replicas may have lost what was not flushed, the longest log of the highest epoch leads
==== ==================================================================================================================
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from zbroker.broker.partition import folder as partition_folder
from zbroker.broker.ports import Conversation
from zbroker.cluster.ballot import MAGIC, NAME, Ballot
from zbroker.cluster.metadata import Metadata, PartitionState
from zbroker.cluster.quorum import FOLDER
from zbroker.log import envelope
from zbroker.protocol import frames as wire
from zbroker.protocol import peers
from zbroker.protocol.batch import Buffer, iter_batches
from zbroker.protocol.messages import FetchReply, OffsetsReply, Produce, ProduceReply, Push, Reply
from zbroker.replication.commit import is_majority
from zbroker.testing.broken import InvariantBroken
from zbroker.testing.cluster import Watch
from zbroker.testing.copies import Copy, Stored, stored
from zbroker.testing.group_invariants import GroupWatch

if TYPE_CHECKING:
    from zbroker.replication.leader import Leader
    from zbroker.testing.cluster import Machine, Process, SimulatedCluster


class Ledger:
    """What was committed of one log, ever.

    Attributes:
        batches: in order. `end`: the offset behind the last.
        known: every batch that any disk ever had, with the epoch of the one before it.
        leaders: who led each epoch.
        exposed: (node, incarnation, epoch) that have exposed a high watermark.
        powerless: nodes whose copy may have lost what was not flushed, where that counts as committed, and that have
            not joined the ISR since.
        holders: who was in sync, as far as the newest leader knew when it was last seen alive: disks by node name.
        given_up: a person is to accept a loss; to be set by who asks for that.
        recovered: epoch of the last unclean election: what leaders of older ones say is of the past.
        lost_from: what was committed from here on may have been lost in such an election; None where there was none.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.batches: list[Stored] = []
        self.end = 0
        self.known: dict[tuple[int, int], tuple[Stored, int | None]] = {}
        self.leaders: dict[int, tuple[str, int]] = {}
        self.exposed: set[tuple[str, int, int]] = set()
        self.powerless: set[str] = set()
        self.holders: dict[str, str] = {}
        self.given_up = False
        self.recovered = -1
        self.lost_from: int | None = None

    def recover(self, epoch: int, kept: list[Stored], end: int, lost_from: int) -> None:
        """After an unclean election: what its leader has is committed, and nothing else is."""
        self.recovered = epoch
        self.holders = {}
        self.batches, self.end = kept, end
        self.lost_from = lost_from if self.lost_from is None else min(self.lost_from, lost_from)

    def between(self, first: int, end: int) -> list[Stored]:
        """What was committed of a range."""
        at = bisect_left(self.batches, first, key=_base)
        behind = bisect_left(self.batches, end, lo=at, key=_base)
        return self.batches[at:behind]

    def find(self, base: int) -> Stored | None:
        """What was committed at an offset where a batch begins."""
        at = bisect_left(self.batches, base, key=_base)
        found = self.batches[at] if at < len(self.batches) else None
        return found if found is not None and found.base == base else None


def _base(batch: Stored) -> int:
    return batch.base


class Recovery(msgspec.Struct, frozen=True):
    """An unclean election: who won it with which epoch, and how far the logs of the last known ISR went.

    `extents`: by node, the epoch of the last record before a hole, and the offset behind it.
    """

    folder: str
    leader: str
    epoch: int
    extents: dict[str, tuple[int, int]]


class Invariants(Watch):
    """Looks at a whole cluster. See the module.

    Attributes:
        recoveries: the unclean elections that there were.
        groups: looks at consumer groups.
        metadata: the newest committed metadata that any node has applied.
        checks: how many comparisons were made: a check that never runs shows here.
    """

    def __init__(self) -> None:
        self.ledgers: dict[str, Ledger] = {}
        self.metadata = Metadata()
        self.checks: dict[str, int] = {}
        self.recoveries: list[Recovery] = []
        self._applied = -1
        self._waiting: dict[str, dict[str, str]] = {}
        """Whose logs partitions wait for: disks by node name, by folder."""
        self._seen: dict[Process, dict[str, tuple[int, int, list[str]]]] = {}
        """What each leader was like when it was last looked at, by process and folder."""
        self._votes: dict[tuple[str, int, int], str] = {}
        self._produces: dict[tuple[str, int, bytes, int], str] = {}
        self.groups = GroupWatch(
            lambda topic_id, number: self.ledger(partition_folder(topic_id, number)).lost_from,
            self._is_gone,
        )

    def ledger(self, folder: str) -> Ledger:
        """The ledger of a log, by its folder."""
        found = self.ledgers.get(folder)
        if found is None:
            found = self.ledgers[folder] = Ledger(folder)
        return found

    def _count(self, check: str) -> None:
        self.checks[check] = self.checks.get(check, 0) + 1

    # Disks ---

    def stored(self, process: Process, copy: Copy, added: list[Stored], cut: int) -> None:
        """See `Watch`."""
        if cut >= 0:
            self._check_cut(process, copy, cut)
        if added is copy.batches and copy.written < copy.promised:
            raise InvariantBroken(
                f"18: {process.name} had flushed {copy.folder} up to {copy.promised}, and recovered it up to "
                f"{copy.written}"
            )
        if added:
            self._check_records(process, copy, added)

    def _check_records(self, process: Process, copy: Copy, added: list[Stored]) -> None:
        known = self.ledger(copy.folder).known
        at = len(copy.batches) - len(added)
        before = copy.batches[at - 1] if at > 0 else None
        for batch in added:
            joined = before is not None and before.next == batch.base
            epoch = before.epoch if before is not None and joined else None
            if epoch is not None and epoch > batch.epoch:
                raise InvariantBroken(
                    f"10: {process.name} has {batch} in {copy.folder} behind epoch {epoch}"
                )
            if batch.compacted:
                before = None
                continue
            place = (batch.base, batch.epoch)
            first, prefix = known.setdefault(place, (batch, epoch))
            if first != batch or (prefix != epoch and None not in (prefix, epoch)):
                raise InvariantBroken(
                    f"10: {copy.folder} had {first} behind epoch {prefix}, and {process.name} has {batch} behind "
                    f"epoch {epoch}"
                )
            if prefix is None and epoch is not None:
                known[place] = (first, epoch)
            before = batch
        self._count("10 records")

    def _check_cut(self, process: Process, copy: Copy, cut: int) -> None:
        ledger = self.ledger(copy.folder)
        self._count("13 cuts")
        leader = self._leader_at(process, copy.folder)
        if leader is not None:
            raise InvariantBroken(
                f"13: {process.name} leads {copy.folder} in epoch {leader.epoch}, and cut it to {cut}"
            )
        if cut >= ledger.end:
            return
        state = self._state(copy.folder)
        if state is not None and process.name in state.isr and not state.unclean:
            raise InvariantBroken(
                f"13: {process.name} is in the ISR {state.isr} of {copy.folder}, of which all below {ledger.end} is "
                f"committed, and cut it to {cut}"
            )

    def _leader_at(self, process: Process, folder: str) -> Leader | None:
        broker = process.broker
        if folder == FOLDER:
            return broker.quorum.replica.leader
        for partition in broker.keeper:
            if partition.log.folder == folder:
                return partition.replica.leader
        return None

    def _state(self, folder: str) -> PartitionState | None:
        if folder == FOLDER:
            return None
        _, topic_id, number = folder.split("/")
        topic = self.metadata.topics.get(topic_id)
        if topic is None or int(number) >= len(topic.partitions):
            return None
        return topic.partitions[int(number)]

    def ended(self, process: Process, how: str) -> None:  # noqa: ARG002
        """See `Watch`."""
        self._note_lost(
            process.machine, [copy for copy in self._copies(process.machine) if copy.torn]
        )
        self._seen.pop(process, None)
        self._produces = {
            key: found for key, found in self._produces.items() if key[0] != process.name
        }

    def power_lost(self, machine: Machine) -> None:
        """See `Watch`."""
        self._note_lost(machine, self._copies(machine))

    def _copies(self, machine: Machine) -> list[Copy]:
        return list(machine.copies.by_folder.values())

    def _note_lost(self, machine: Machine, copies: list[Copy]) -> None:
        """Copies may have lost what was only written, where that counts."""
        for copy in copies:
            if self._fsync(copy.folder) != "always":
                self.ledger(copy.folder).powerless.add(machine.name)

    def _fsync(self, folder: str) -> str:
        topic = self.metadata.topics.get(folder.split("/")[1]) if folder != FOLDER else None
        return "always" if topic is None else topic.settings.fsync

    def _is_gone(self, process: Process, topic_id: str) -> bool:
        """Whether the newest metadata, a process's own or the newest of all, have a topic no more."""
        quorum = process.broker.quorum
        newest = quorum.metadata if quorum.applied > self._applied else self.metadata
        return topic_id not in newest.topics

    # Leaders ---

    def looked(self, process: Process) -> None:
        """See `Watch`."""
        broker = process.broker
        quorum = broker.quorum
        if quorum.applied > self._applied:
            self._applied, self.metadata = quorum.applied, quorum.metadata
            self._look_for_recoveries(process.cluster)
        leader = quorum.replica.leader
        if leader is not None:
            self._look_at(process, FOLDER, leader)
        for kept in broker.partitions.values():
            for partition in kept.values():
                leader = partition.replica.leader
                if leader is not None:
                    self._look_at(process, partition.log.folder, leader)

    def _look_for_recoveries(self, cluster: SimulatedCluster) -> None:
        for topic in self.metadata.topics.values():
            for number, state in enumerate(topic.partitions):
                path = partition_folder(topic.topic_id, number)
                if state.recovering:
                    self._waiting[path] = dict(state.last)
                elif state.unclean and state.epoch > self.ledger(path).recovered:
                    self._check_recovery(cluster, path, state, self._waiting.pop(path, None))

    def _check_recovery(
        self,
        cluster: SimulatedCluster,
        path: str,
        state: PartitionState,
        last: dict[str, str] | None,
    ) -> None:
        """Who leads has no less than anybody of the last known ISR, unless a person gave the others up."""
        assert state.leader is not None
        self._count("21 recoveries")
        ledger = self.ledger(path)
        found = cluster.machines[state.leader].copies.of(path)
        extents = {state.leader: _extent(found)}
        given_up = ledger.given_up or last is None
        ledger.given_up = False
        for name, disk in [] if given_up else [*(last or {}).items(), *ledger.holders.items()]:
            machine = cluster.machines[name]
            copy = machine.copies.by_folder.get(path)
            if machine.disk_id == disk and copy is not None:
                extents[name] = _extent(copy)
        self.recoveries.append(Recovery(path, state.leader, state.epoch, extents))
        most = max(extents, key=lambda name: extents[name])
        if extents[most] > extents[state.leader]:
            raise InvariantBroken(
                f"21: {state.leader} leads {path} in epoch {state.epoch} with {extents[state.leader]}, and {most} has "
                f"{extents[most]} (epoch, end)"
            )
        end = min(state.end, found.written)
        kept = [batch for batch in found.batches if batch.next <= end]
        ledger.recover(state.epoch, kept, end, state.lost_from)

    def _look_at(self, process: Process, folder: str, leader: Leader) -> None:
        seen = self._seen.get(process)
        if seen is None:
            seen = self._seen[process] = {}
        before = seen.get(folder)
        epoch, high_watermark, isr = leader.epoch, leader.high_watermark, leader.isr
        if (
            before is not None
            and before[1] == high_watermark
            and before[0] == epoch
            and before[2] == isr
        ):
            return
        seen[folder] = (epoch, high_watermark, list(isr))
        ledger = self.ledger(folder)
        if leader.epoch < ledger.recovered:
            return  # it does not know yet that it was given up
        if before is None or before[0] != leader.epoch:
            self._check_new_leader(process, ledger, leader)
            before = (leader.epoch, -1, [])
        if not leader.settings.quorum and leader.epoch == max(ledger.leaders):
            machines = process.cluster.machines
            ledger.holders = {member: machines[member].disk_id for member in isr}
        if leader.high_watermark < before[1]:
            raise InvariantBroken(
                f"the high watermark of {folder} at {process.name} went from {before[1]} back to "
                f"{leader.high_watermark} in epoch {leader.epoch}"
            )
        joined = sorted({*leader.isr} - {*before[2]})
        if before[2] and not leader.settings.quorum:
            ledger.powerless.difference_update(
                member for member in joined if _is_heard(process.cluster, leader, member)
            )
        if leader.high_watermark > before[1]:
            self._check_advance(process, ledger, leader)
        if not leader.settings.quorum and leader.high_watermark >= 0:
            for member in joined:
                self._check_member(process, ledger, leader, member, leader.high_watermark)
                self._count("12 joined")

    def _check_new_leader(self, process: Process, ledger: Ledger, leader: Leader) -> None:
        self._count("16 leaders")
        me = (process.name, process.incarnation)
        known = ledger.leaders.setdefault(leader.epoch, me)
        if known != me:
            raise InvariantBroken(
                f"16: two leaders of epoch {leader.epoch} of {ledger.folder}: {known[0]} in start {known[1]}, and "
                f"{me[0]} in start {me[1]}"
            )
        if process.name not in leader.isr:
            raise InvariantBroken(
                f"9: {process.name} leads {ledger.folder} and is not in its ISR {leader.isr}"
            )

    def _check_advance(self, process: Process, ledger: Ledger, leader: Leader) -> None:
        """A high watermark moved: what is below it is where it has to be."""
        to, settings = leader.high_watermark, leader.settings
        who = (process.name, process.incarnation, leader.epoch)
        if who not in ledger.exposed:
            ledger.exposed.add(who)
            self._check_complete(process, ledger, leader)
        if settings.quorum:
            if to <= leader.epoch_start:
                raise InvariantBroken(
                    f"15: {process.name} exposes {to} of {ledger.folder}, and its epoch {leader.epoch} begins at "
                    f"{leader.epoch_start}"
                )
            self._check_majority(process, ledger, leader)
        elif to > ledger.end:
            if len(leader.isr) < settings.min_insync:
                raise InvariantBroken(
                    f"9: {process.name} commits {ledger.folder} up to {to} with the ISR {leader.isr}"
                )
            members = sorted({*leader.isr, *leader.pending})
            for member in members:
                self._check_member(process, ledger, leader, member, to)
        self._take(process, ledger, to)

    def _check_member(
        self, process: Process, ledger: Ledger, leader: Leader, member: str, to: int
    ) -> None:
        """A member of the ISR has everything below an offset, in the leader's epoch."""
        machine = process.cluster.machines[member]
        copy = machine.copies.by_folder.get(ledger.folder)
        self._count("9 members")
        if copy is None and machine.disks > 1:
            return  # it answered, and then its disk was taken away
        if self._state(ledger.folder) is None:
            return  # the topic is deleted, and the member has heard of that first
        has = 0 if copy is None else copy.flushed if leader.settings.flushed else copy.written
        if copy is None or has < to:
            if not leader.settings.flushed and member in ledger.powerless:
                return  # it had it, and lost it
            raise InvariantBroken(
                f"9: {process.name} has {ledger.folder} committed up to {to} in epoch {leader.epoch}, and {member} of "
                f"its ISR {leader.isr} (pending {sorted(leader.pending)}) has all below {has}"
            )
        if copy.epoch < leader.epoch:
            raise InvariantBroken(
                f"11: {process.name} has {ledger.folder} committed up to {to} in epoch {leader.epoch}, and {member} "
                f"is in epoch {copy.epoch}"
            )
        own = process.machine.copies.of(ledger.folder)
        if own.harmed or copy.harmed:
            return
        first = max(min(ledger.end, to), own.comparable, copy.comparable)
        if own.between(first, to) != copy.between(first, to):
            raise InvariantBroken(
                f"9: {process.name} and {member} differ in {ledger.folder} between {first} and {to}: "
                f"{_difference(own.between(first, to), copy.between(first, to))}"
            )

    def _check_complete(self, process: Process, ledger: Ledger, leader: Leader) -> None:
        """A leader that exposes a high watermark has everything that was committed up to its epoch.

        More may be by then: what its last in-sync replica answered may be long on its way.
        """
        self._count("16 complete")
        own = process.machine.copies.of(ledger.folder)
        if own.harmed:
            return  # it will be found when somebody reads it
        if leader.settings.quorum:
            end = min(
                ledger.end, own.written
            )  # of its own last batches a majority of others may know more
        else:
            end = ledger.end
        first = own.comparable
        later = (each.base for each in ledger.between(first, end) if each.epoch > leader.epoch)
        end = next(later, end)
        had, has = ledger.between(first, end), own.between(first, end)
        if had != has:
            raise InvariantBroken(
                f"16: {process.name} leads {ledger.folder} in epoch {leader.epoch} without what was committed below "
                f"{ledger.end}: {_difference(had, has)}"
            )

    def _check_majority(self, process: Process, ledger: Ledger, leader: Leader) -> None:
        """A majority of the voters has on disk what an elected leader commits."""
        self._count("16 majorities")
        to = leader.high_watermark
        first = min(ledger.end, to)
        reference = self._reference(process.cluster, leader.isr, first, to)
        having = []
        for voter in leader.isr:
            copy = _copy_of_voter(process.cluster, voter)
            if copy is not None and copy.flushed >= to:
                begin = max(first, copy.start)
                wanted = [batch for batch in reference if batch.base >= begin]
                if copy.between(begin, to) == wanted:
                    having.append(voter)
        if not is_majority(having, leader.isr):
            raise InvariantBroken(
                f"16: {process.name} commits the metadata up to {to} in epoch {leader.epoch}, and of the voters "
                f"{leader.isr} only {having} have that on disk"
            )

    def _reference(
        self, cluster: SimulatedCluster, nodes: Sequence[str], first: int, to: int
    ) -> list[Stored]:
        """The batches of a range, from whoever has them on disk in the newest epoch."""
        found: list[Stored] = []
        for node in nodes:
            copy = _copy_of_voter(cluster, node)
            if copy is not None and copy.flushed >= to and copy.start <= first:
                batches = copy.between(first, to)
                if batches and (not found or batches[-1].epoch > found[-1].epoch):
                    found = batches
        return found

    def _take(self, process: Process, ledger: Ledger, to: int) -> None:
        """Notes what is committed by now."""
        if to <= ledger.end:
            return
        if ledger.folder == FOLDER:
            batches = self._reference(process.cluster, process.cluster.names, ledger.end, to)
        else:
            batches = process.machine.copies.of(ledger.folder).between(ledger.end, to)
        ledger.batches += batches
        ledger.end = to

    # What nodes say ---

    def sent(self, process: Process, node: str, lane: str, frames: Sequence[Buffer]) -> None:
        """See `Watch`."""
        if lane == "control" and b"vote" in bytes(frames[1]):
            message = peers.decode(bytes(frames[1]))
            if isinstance(message, peers.Vote) and message.granted and not message.pre:
                self._check_ballot(process, message.epoch, node)
            elif isinstance(message, peers.VoteRequest) and not message.pre:
                self._check_ballot(process, message.epoch, process.name)

    def _check_ballot(self, process: Process, epoch: int, candidate: str) -> None:
        self._count("16 ballots")
        voter = (process.name, process.machine.disks, epoch)
        before = self._votes.setdefault(voter, candidate)
        if before != candidate:
            raise InvariantBroken(
                f"16: {process.name} voted for {before} in epoch {epoch}, and votes for {candidate} now"
            )
        path = f"{FOLDER}/{NAME}"
        data = process.machine.disk.on_disk(path)
        body = None if data is None else envelope.unseal(MAGIC, data, path)
        ballot = Ballot() if body is None else _decode_ballot(body)
        if (ballot.epoch, ballot.voted_for) != (epoch, candidate) and ballot.epoch <= epoch:
            raise InvariantBroken(
                f"16: {process.name} speaks of its vote for {candidate} in epoch {epoch}, and its disk has {ballot}"
            )

    def asked(self, process: Process, route: bytes, head: bytes) -> None:
        """See `Watch`."""
        self.groups.asked(process, route, head)
        if b"produce" not in head:
            return
        try:
            request = wire.decode_request(head)
        except Exception:  # what is malformed is the broker's to refuse
            return
        if isinstance(request, Produce) and request.topic_id and request.acks == "all":
            key = (process.name, process.incarnation, route, request.id)
            self._produces[key] = partition_folder(request.topic_id, request.partition)

    def replied(
        self, process: Process, to: Conversation, message: Reply, body: Buffer | None
    ) -> None:
        """See `Watch`."""
        self.groups.replied(process, to, message, body)
        if isinstance(message, ProduceReply):
            key = (process.name, process.incarnation, to.client, to.id)
            folder = self._produces.pop(key, None)
            if folder is not None:
                self._check_acknowledged(process, folder, message.base_offset)
        elif isinstance(message, FetchReply):
            folder = partition_folder(message.topic_id, message.partition)
            self._check_served(process, folder, message.high_watermark, body, "serves")
            if message.next > max(self.ledger(folder).end, message.base):
                raise InvariantBroken(
                    f"14: {process.name} serves {folder} up to {message.next}, and all below "
                    f"{self.ledger(folder).end} is committed"
                )
        elif isinstance(message, OffsetsReply):
            folder = partition_folder(message.topic_id, message.partition)
            self._check_served(process, folder, message.high_watermark, None, "names the end of")

    def _brought_up_to(self, process: Process, folder: str, offset: int) -> Ledger:
        """The ledger; what the node has just committed, and speaks of already, is looked at first."""
        ledger = self.ledger(folder)
        if offset > ledger.end:
            leader = self._leader_at(process, folder)
            if leader is not None:
                self._look_at(process, folder, leader)
        return ledger

    def _check_acknowledged(self, process: Process, folder: str, offset: int) -> None:
        self._count("18 acknowledged")
        ledger = self._brought_up_to(process, folder, offset + 1)
        if offset >= ledger.end:
            raise InvariantBroken(
                f"18: {process.name} acknowledges offset {offset} of {folder}, and all below {ledger.end} is committed"
            )

    def published(self, process: Process, subject: bytes, head: Push, batch: Buffer | None) -> None:  # noqa: ARG002
        """See `Watch`."""
        folder = partition_folder(head.topic_id, head.partition)
        self._check_served(process, folder, head.high_watermark, batch, "pushes")

    def _check_served(
        self, process: Process, folder: str, high_watermark: int, chunk: Buffer | None, does: str
    ) -> None:
        ledger = self._brought_up_to(process, folder, high_watermark)
        self._count("14 served")
        if high_watermark > ledger.end:
            raise InvariantBroken(
                f"14: {process.name} {does} {folder} with a high watermark of {high_watermark}, and all below "
                f"{ledger.end} is committed"
            )
        if not chunk:
            return
        for _, header in iter_batches(chunk):
            if header.is_compacted:
                continue
            batch, committed = stored(header), ledger.find(header.base_offset)
            if batch != committed and header.base_offset < ledger.end:
                raise InvariantBroken(
                    f"14: {process.name} {does} {batch} of {folder}, and {committed} was committed there"
                )
            if header.base_offset >= ledger.end:
                raise InvariantBroken(
                    f"14: {process.name} {does} {batch} of {folder}, and all below {ledger.end} is committed"
                )


_decode_ballot = msgspec.msgpack.Decoder(Ballot).decode


def _copy_of_voter(cluster: SimulatedCluster, voter: str) -> Copy | None:
    """A voter's copy of the metadata; a voter whose disk is another now is called by its name and that disk's id."""
    name, _, disk = voter.partition(" on ")
    machine = cluster.machines[name]
    return machine.copies.by_folder.get(FOLDER) if disk in ("", machine.disk_id) else None


def _difference(a: Sequence[Stored], b: Sequence[Stored]) -> str:
    """The first batch in which two lists differ."""
    for mine, other in zip(a, b, strict=False):
        if mine != other:
            return f"{mine} and {other}"
    longer: Iterator[Stored] = iter((*a[len(b) :], *b[len(a) :]))
    return f"{next(longer, None)} and nothing"


def _extent(copy: Copy) -> tuple[int, int]:
    """How far a copy is whole: the epoch of its last batch before a hole, and the offset behind it."""
    epoch, end = -1, copy.start
    for batch in copy.batches:
        if batch.base > end or 0 <= copy.hole <= batch.base:
            break
        epoch, end = batch.epoch, max(end, batch.next)
    return epoch, end


def _is_heard(cluster: SimulatedCluster, leader: Leader, member: str) -> bool:
    """Whether what a leader knows of a follower is of the process that is there now."""
    process, follower = cluster.machines[member].process, leader.followers.get(member)
    if process is None or follower is None:
        return False
    return process.incarnation == follower.incarnation
