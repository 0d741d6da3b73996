"""The metadata partition: a log that a majority of voters keeps, and the state that it makes.

Joins an `Election` (who leads), a `Replica` (how the copies become equal), the `Metadata` (what the records say) and
`Snapshots` (what the log may forget). Owns when a record is applied, and to which of two states. `metadata` has what is
committed, on the leader as on all others: readers see it, and effects go by it. `draft` has everything that is in the
leader's log, so that its next decision sees the last; it goes with the leadership. A decision is answered once
`metadata` shows it. Owns who votes: whoever the newest record in the log names, committed or not (Ongaro's
dissertation, section 4.1). Never decides what the records say: `controller` and its neighbours do.

========= ====================================== ========= =============================================================
state     on                                     next      effect
========= ====================================== ========= =============================================================
opening   ballot and snapshot read, log open     reading   the state is the snapshot's; the rest of the log is read
reading   all of it is read                      following who votes is known: the election begins
following an append of the epoch's leader        following taken by the replica; what is committed is applied
following a snapshot of the epoch's leader       following once it is complete it takes the log's place; meanwhile this
                                                           node neither votes nor follows
following elected                                leading   the draft is made; a no-op is appended: its commit commits
                                                           all before it
leading   the no-op is committed and applied     leading   `ready`: decisions are taken
leading   not the leader any more                following decisions that wait are answered: outcome unknown
leading   a record that takes its vote, committed following another voter is asked to stand
any       the log, the ballot, a snapshot fails  failed    the node stops
========= ====================================== ========= =============================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from zbroker.cluster import snapshot
from zbroker.cluster.ballot import NAME, Ballot, LoadBallot, SaveBallot
from zbroker.cluster.election import Election, ElectionSettings
from zbroker.cluster.electorate import Electorate, PeerStart
from zbroker.cluster.handover import Handover
from zbroker.cluster.metadata import Metadata
from zbroker.cluster.records import MetadataRecord, VotersChanged
from zbroker.cluster.snapshot import AdoptSnapshot, Kept, LoadSnapshot, SaveSnapshot
from zbroker.cluster.snapshots import Snapshots, SnapshotSettings
from zbroker.cluster.tail import Entry, Tail, decode_entry, encode_entry
from zbroker.cluster.transfer import Incoming, Outgoing
from zbroker.errors import (
    DataDamaged,
    DataFolderError,
    DiskFull,
    NotReady,
    StorageFailed,
    ZBrokerError,
)
from zbroker.log.events import AppendFailed, Broken, ReadDone
from zbroker.log.log import Log
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Completion, Storage
from zbroker.protocol.batch import Buffer, iter_batches, read_header
from zbroker.protocol.frames import Frame
from zbroker.protocol.peers import (
    Append,
    Appended,
    SnapshotPart,
    SnapshotTaken,
    StandNow,
    Vote,
    VoteRequest,
)
from zbroker.replication.leader import LeaderSettings
from zbroker.replication.ports import LinkBudget
from zbroker.replication.replica import Appointment, Replica

__all__ = ["FOLDER", "MetadataPartition", "PeerStart", "Peers"]

FOLDER = "metadata"
READ_BYTES = 1 << 20
HEARTBEAT_MS = 100
"""How often a leader is heard by everyone who keeps the metadata."""

State = Literal["opening", "reading", "following", "leading", "closing", "closed", "failed"]
OnCommit = Callable[[ZBrokerError | None], None]
Message = Append | Appended | Vote | VoteRequest | StandNow | SnapshotPart | SnapshotTaken


class Peers(Protocol):
    """How messages reach the other nodes; any of them may be lost."""

    def send(self, node: str, message: Message, batches: Sequence[Buffer]) -> None: ...


class MetadataPartition:
    """One node's part in the metadata. See the module for its states.

    Attributes:
        metadata: the state that is committed, as far as it is applied. Another object after a snapshot was installed.
        applied: all below this offset is in it.
        draft: while this node leads, the state with everything that it has decided; None otherwise.
        error: why it failed.
    """

    def __init__(
        self,
        node: str,
        voters: Mapping[str, str] | tuple[()],
        *,
        storage: Storage,
        peers: Peers,
        random: Callable[[], float],
        settings: ElectionSettings,
        changed: Callable[[], None],
        disk_id: str,
        snapshots: SnapshotSettings = SnapshotSettings(),  # noqa: B008
    ) -> None:
        """
        Args:
            voters: disk ids by node name, as a cluster's first formation named them: who votes while the log does not
                say so.
            disk_id: this node's own disk.
            changed: told when the leader, the state or what is applied may have changed.
        """
        self.node = node
        self.state: State = "opening"
        self.metadata = Metadata()
        self.applied = 0
        self.draft: Metadata | None = None
        self.error: ZBrokerError | None = None
        self.election: Election | None = None
        self._electorate = Electorate(node, disk_id)
        self._first_voters = dict(voters)
        self._storage = storage
        self._peers = peers
        self._random = random
        self._settings = settings
        self._changed = changed
        self._ballot: Ballot | None = None
        self._waiting: deque[tuple[int, OnCommit]] = deque()
        self._tail = Tail(0)
        self._reading = self._settling = False
        self._ready_at = -1
        self._announced = (-1, -1)
        self._led = -1
        self._beat_at = 0
        self._outgoing: Outgoing | None = None
        self._incoming = Incoming()
        self._handover = Handover(
            self._electorate,
            lambda voter, epoch: peers.send(voter, StandNow(epoch=epoch), ()),
            settings.timeout,
        )
        self._now = self._wall = 0
        log_settings = LogSettings(
            fsync="always", retention=None, retention_size=None, segment_age=None,
            segment_size=snapshots.segment_bytes, lazy=False, lane="metadata",
        )  # fmt: skip
        budget = self._budget = LinkBudget(1 << 20)
        self.replica = Replica(
            Log(FOLDER, log_settings, storage),
            LeaderSettings(node=node, quorum=True),
            send=peers.send,
            answer=lambda to, message: peers.send(to, message, ()),
            budgets=lambda _: budget,
        )
        self._snapshots = Snapshots(
            self.replica.log, storage, snapshots, installed=self._snapshot_installed
        )

    # What others may know ---

    @property
    def leader(self) -> str | None:
        """Who leads, as far as is known here."""
        return None if self.election is None else self.election.leader

    @property
    def ready(self) -> bool:
        """Whether this node leads, with all that was committed before it applied: it is the controller."""
        settled = 0 <= self._ready_at <= self.applied
        return self.state == "leading" and settled and self._handover.target is None

    @property
    def committed(self) -> int:
        """All below this offset is committed, as far as is known here."""
        return max(self.replica.high_watermark, self.applied)

    @property
    def due(self) -> int | None:
        """When `on_tick` has something to do before the usual tick: a leader's heartbeat, a voter's patience."""
        if self.election is None or self._is_deaf():
            return None
        due = self.election.due
        if self.replica.leader is None:
            return due
        beat = self._beat_at + HEARTBEAT_MS
        return beat if due is None else min(due, beat)

    @property
    def voters(self) -> Mapping[str, str]:
        """Who votes by the newest record in this node's log, committed or not: disk ids by node name."""
        return self._electorate.voters

    @property
    def caught_up(self) -> list[str]:
        """Nodes that have all that is committed on disk, voters or not, this one too; for decisions about voters.

        Empty where this node is not the controller, and while a change of the voters is not committed.
        """
        leader = self.replica.leader
        if not self.ready or leader is None or self._tail.voters is not None:
            return []
        since = self._now - self._settings.timeout
        return [self.node] + [
            node
            for node, follower in leader.followers.items()
            if follower.begun >= leader.epoch
            and follower.flushed >= leader.high_watermark
            and follower.answered
            and follower.heard_at >= since
        ]

    @property
    def disks(self) -> dict[str, str]:
        """The disk of each node that is linked, and this one's; for decisions about voters."""
        seen = self._electorate
        return {self.node: seen.disk_id} | {
            node: start.disk_id for node, start in seen.starts.items()
        }

    def heard(self, node: str) -> int | None:
        """When this leader last heard a node in its present start, monotonic ms; None where it never did."""
        leader = self.replica.leader
        follower = None if leader is None else leader.followers.get(node)
        return None if follower is None or not follower.answered else follower.heard_at

    # Life ---

    def open(self, now: int) -> None:
        """Reads the ballot, the snapshot and the log."""
        self._now = now
        self._storage.submit(LoadBallot(owner=FOLDER, lane="metadata"))
        self._snapshots.open()
        self.replica.open(now)

    def close(self) -> None:
        """Leads and votes no more, and closes the log in order."""
        self._step_down()
        self.state = "closing"
        self.replica.close()

    def set_first_voters(self, voters: Mapping[str, str]) -> None:
        """Who votes while the log does not say so: disk ids by name, from the cluster's formation.

        Before `open`, or where a disk that was not told of the voters at first is told of them now.
        """
        self._first_voters = dict(voters)
        self._configure()

    def set_peers(self, peers: Mapping[str, PeerStart], now: int) -> None:
        """Which start of each other node is up, and on which disk: those are sent to and heard."""
        self._now = now
        self._electorate.starts = {
            node: start for node, start in peers.items() if node != self.node
        }
        if self.replica.appointment is not None:
            self._appoint()

    def hand_over(self, now: int) -> bool:
        """The leader asks the voter that has most of its log to lead in its place, and decides nothing meanwhile.

        For an orderly stop: the others have a leader again without having to wait for a silence. Where nothing comes
        of it within the election timeout, this node goes on. Returns whether there is anybody to ask.
        """
        self._now = now
        leader = self.replica.leader
        if not self.ready or leader is None:
            return False
        if not self._handover.begin(leader, now):
            return False
        self._changed()
        self._settle()
        return True

    # Decisions ---

    def propose(self, records: Sequence[MetadataRecord], on_commit: OnCommit, wall: int) -> None:
        """Appends a decision as one atomic batch; `on_commit` hears of its commit, or why it is not known.

        Raises:
            NotReady: this node is not the controller, or not yet; or the voters change, and their last change is not
                committed.
        """
        if not self.ready or self.draft is None:
            raise NotReady("this node is not the controller; ask again in a moment")
        changes = [record for record in records if isinstance(record, VotersChanged)]
        if changes and self._tail.voters is not None:
            raise NotReady("the last change of the voters is not committed yet; ask again soon")
        for change in changes:
            moved = self._electorate.voters.items() ^ change.voters.items()
            assert len(moved) <= 1 == len(changes), "voters change one at a time"
        if records:
            for record in records:
                self.draft.apply(record)
            self._append(records, wall)
        self._waiting.append((self.replica.log.end_offset, on_commit))
        self._settle()

    def _append(self, records: Sequence[MetadataRecord], wall: int) -> None:
        """One batch; a no-op where there are no records."""
        log = self.replica.log
        base = log.end_offset
        time = max(wall, log.last_append_time)
        batch = encode_entry(records, base=base, epoch=log.last_epoch, wall=wall, append_time=time)
        self.replica.append(batch, read_header(batch))
        self._tail.add(Entry(base, log.end_offset, len(batch), records))
        self._configure()

    # Messages ---

    def _is_deaf(self) -> bool:
        return self.election is None or self.state in ("closing", "closed", "failed")

    def on_vote_request(self, sender: str, request: VoteRequest, now: int) -> None:
        """A candidate asks."""
        disk = self._electorate.disk(sender)
        if self.election is not None and not self._is_deaf() and disk is not None:
            self.election.on_vote_request(sender, request, now, disk)

    def on_vote(self, sender: str, vote: Vote, now: int) -> None:
        """A node answers; what it says counts if its disk is the voter's."""
        if self.election is not None and not self._is_deaf() and self._electorate.is_voter(sender):
            self.election.on_vote(sender, vote, now)

    def on_stand_now(self, sender: str, message: StandNow, now: int) -> None:
        """The leader is about to go."""
        if self.election is not None and not self._is_deaf():
            self.election.on_stand_now(sender, message.epoch, now)

    def on_append(self, sender: str, message: Append, batches: Sequence[Frame], now: int) -> None:
        """A leader sends."""
        self._now = now
        election = self.election
        if election is None or self._is_deaf():
            return
        if election.on_leader(sender, message.epoch, now) or message.epoch < election.epoch:
            if not self._follows(sender):
                self._appoint()
            end = self.replica.log.end_offset
            self.replica.on_append(sender, message, batches, now)
            if self.replica.log.end_offset > end:
                self._followed(batches, end)
            self._settle()

    def _follows(self, leader: str) -> bool:
        """Whether the replica follows this leader of the present epoch already."""
        follower, appointed = self.replica.follower, self.replica.appointment
        return (
            follower is not None
            and appointed is not None
            and self.election is not None
            and follower.epoch == appointed.epoch == self.election.epoch
            and appointed.leader == leader == self.election.leader
            and not self._snapshots.installing
        )

    def _followed(self, batches: Sequence[Frame], begin: int) -> None:
        """What the follower has just appended, of what it was sent."""
        end = self.replica.log.end_offset
        try:
            for chunk in batches:
                for at, header in iter_batches(chunk):
                    if begin <= header.base_offset < end:
                        self._tail.add(decode_entry(chunk, at, header))
        except ZBrokerError as error:
            self._fail(error)
        self._configure()

    def on_appended(self, sender: str, incarnation: int, answer: Appended, now: int) -> None:
        """A follower answers."""
        self._now = now
        self.replica.on_appended(sender, incarnation, answer, now)
        self._budget.admit()
        leader = self.replica.leader
        if leader is not None:
            self._deposed(leader.deposed)
        self._settle()

    def _deposed(self, epoch: int) -> None:
        """A follower may know of a newer epoch."""
        if self.election is not None and epoch > self.election.epoch:
            self.election.on_newer_epoch(epoch, self._now)

    def on_snapshot_part(
        self, sender: str, part: SnapshotPart, frames: Sequence[Frame], now: int
    ) -> None:
        """A leader sends a part of a snapshot, for the log here ends before the leader's begins."""
        self._now = now
        election = self.election
        if election is None or self._is_deaf():
            return
        answer = SnapshotTaken(epoch=part.epoch, session=part.session)
        if not election.on_leader(sender, part.epoch, now):
            if part.epoch < election.epoch:
                answer.log_epoch = election.epoch
                self._peers.send(sender, answer, ())
            return
        self._appoint()
        incoming = self._incoming
        answer.installed = self.applied >= part.offset
        if not answer.installed and not self._snapshots.installing:
            if not incoming.take(sender, part, frames[0] if frames else b""):
                return
            if incoming.complete:
                self._install(incoming.data())
        answer.position = part.total if answer.installed else incoming.position
        self._peers.send(sender, answer, ())

    def _install(self, data: bytes) -> None:
        """A leader's snapshot has arrived; unless something is under way here, for the leader will ask again."""
        follower = self.replica.follower
        if self._snapshots.state != "idle" or (follower and follower.state == "truncating"):
            return
        try:
            found, metadata = snapshot.unseal(data, "the leader's snapshot")
        except DataDamaged:
            self._incoming.clear()
            return
        except ZBrokerError as error:
            self._fail(error)
            return
        self._snapshots.install(Kept(found.offset, found.epoch, metadata), data)
        self._configure()
        self._appoint()

    def on_snapshot_taken(
        self, sender: str, incarnation: int, answer: SnapshotTaken, now: int
    ) -> None:
        """A node answers a part of a snapshot."""
        self._now = now
        leader, outgoing = self.replica.leader, self._outgoing
        if leader is None or outgoing is None:
            return
        follower = leader.followers.get(sender)
        if follower is None or follower.incarnation != incarnation:
            return
        self._deposed(answer.log_epoch)
        if self.replica.leader is not leader or answer.epoch != leader.epoch:
            return
        leader.answered(sender, now)
        offset = outgoing.on_taken(sender, answer, now)
        if offset is not None:
            leader.resume(sender, offset, now)
        self._settle()

    def on_gone(self, node: str, now: int) -> None:
        """A node's process is gone: its port refuses."""
        if self.election is not None:
            self.election.on_gone(node, now)

    def on_back(self, node: str) -> None:
        """A node answers again."""
        if self.election is not None:
            self.election.on_back(node)

    # Events and time ---

    def on_event(self, completion: Completion, now: int) -> None:
        """A storage request of the metadata's is done."""
        self._now = now
        match completion.request:
            case LoadBallot():
                if completion.error is not None:
                    self._fail(completion.error)
                self._ballot = completion.result
            case SaveBallot():
                if isinstance(completion.error, DiskFull) and self.election is not None:
                    self.election.on_not_saved()
                elif completion.error is not None:
                    self._fail(completion.error)
                elif self.election is not None:
                    self.election.on_saved(completion.result)
            case LoadSnapshot() | SaveSnapshot() | AdoptSnapshot():
                error = self._snapshots.on_event(completion)
                if error is not None:
                    self._fail(error)
                self._configure()
            case _:
                self._log_event(completion)
        self._begin()
        self._settle()

    def _log_event(self, completion: Completion) -> None:
        event = self.replica.on_event(completion, self._now)
        match event:
            case ReadDone():
                self._read_done(event)
            case Broken():
                self._fail(event.error)
            case AppendFailed() if self.state == "leading":
                self._resign()
        self._snapshots.on_log_event(event)
        if self._tail.end > self.replica.log.end_offset:
            self._tail.cut(self.replica.log.end_offset)
            self._configure()
        if self.state == "closing" and self.replica.state == "closed":
            self.state = "closed"

    def on_tick(self, now: int, wall: int) -> None:
        """Time has passed: when `due`, and about every 100 ms."""
        self._now = now
        self._wall = wall
        if self.election is None or self._is_deaf():
            return
        self.election.on_tick(now)
        leader = self.replica.leader
        if leader is not None and now - self._beat_at >= HEARTBEAT_MS:
            self._beat_at = now
            leader.heartbeat(now)
            since = now - self._settings.timeout
            if since > self._led and not leader.heard_majority_since(since):
                self.election.quorum_lost(now)
        self.replica.on_tick(now)
        self._snapshots.on_tick()
        if self._handover.is_over(now):
            self._handover.end()
            self._changed()
        self._settle()

    # Beginning ---

    def _begin(self) -> None:
        """Everything is read: the state is the snapshot's, and the rest of the log comes on top."""
        snapshots, log = self._snapshots, self.replica.log
        if self.state != "opening" or self._ballot is None or log.state != "open":
            return
        if snapshots.state == "loading":
            if not snapshots.loaded:
                return
            try:
                kept = snapshots.begin()
            except ZBrokerError as error:
                self._fail(error)
                return
            if kept is not None:
                self._restore(kept)
        if not snapshots.installing:
            self.state = "reading"

    def _restore(self, kept: Kept) -> None:
        """The state is a snapshot's from now on."""
        before, state = self.metadata, kept.metadata
        state.touched = before.touched | dict.fromkeys(before.topics) | dict.fromkeys(state.topics)
        state.deleted = before.deleted
        state.nodes_touched = True
        self.metadata = state
        self.applied = kept.offset
        self._tail.forward(kept.offset)
        self.replica.know_committed(kept.offset)

    def _snapshot_installed(self, kept: Kept) -> None:
        """A leader's snapshot has taken the log's place."""
        self._restore(kept)
        self._incoming.clear()
        if self.election is not None:
            self._configure()
            self._appoint()
        self._changed()

    def _take_part(self) -> None:
        """All of the log is read, so that who votes is known: takes part."""
        assert self._ballot is not None
        ballot = self._ballot
        last = max(self.replica.log.last_epoch, self._snapshots.epoch)
        if ballot.epoch < 0 <= last:
            self._fail(
                DataFolderError(
                    f"{FOLDER}/{NAME} is missing: this voter has voted, and does not know for whom; start it on an "
                    "empty folder, and replace the voter if it was one"
                )
            )
            return
        if last > ballot.epoch:
            ballot = Ballot(last)  # followed, without having been asked to vote
        self.state = "following"
        seen = self._electorate
        self.election = Election(
            self.node, (), ballot, self, self._settings, changed=self._election_changed, now=self._now,
            disk=seen.disk_id,
        )  # fmt: skip
        self._configure()
        self.election.on_tick(self._now)  # who votes alone need not wait
        self._changed()

    # Roles ---

    def _configure(self) -> None:
        """Who votes is what the newest record in the log says, else what is applied, else what was there at first."""
        seen = self._electorate
        before = dict(seen.voters)
        seen.voters = self._tail.voters or self.metadata.voters or self._first_voters
        election, still = self.election, not self._snapshots.installing
        if election is None:
            return
        election.set_voters(
            sorted(seen.voters), stands=seen.stands and still, votes=seen.votes and still, now=self._now
        )  # fmt: skip
        if seen.voters != before and self.replica.leader is not None:
            self._appoint()
            self.replica.leader.advance()

    def _election_changed(self) -> None:
        """The epoch, its leader or this voter's role is another."""
        election = self.election
        assert election is not None
        if self._is_deaf():
            return
        if election.state != "leader":
            self._step_down()
        if election.state == "leader" and self.state == "following":
            draft = self.metadata.copy()
            if self._apply(draft, self._tail.records()):
                self.draft = draft
                self.state = "leading"
                self._led = self._now
        self._appoint()
        self._changed()

    def _appoint(self) -> None:
        """Hands the replica the role that the election gives."""
        election = self.election
        if election is None or self._is_deaf():
            return
        leader = None if self._snapshots.installing else election.leader
        if (
            election.leader is None
            and self.replica.epoch == election.epoch
            and self.replica.follower
            and not self._snapshots.installing
        ):
            return  # the leader is silent, and still the only one whom this epoch can have
        seen = self._electorate
        starts = {node: start.incarnation for node, start in seen.starts.items()}
        self.replica.appoint(
            Appointment(
                epoch=election.epoch, leader=leader, isr=seen.counted(),
                replicas={**dict.fromkeys(seen.voters, 0), **starts, self.node: 0},
            ),
            self._now,
        )  # fmt: skip

    def _step_down(self) -> None:
        """Not the leader any more: what was decided ahead of its commit goes, and those who wait are told."""
        if self.state != "leading":
            return
        self.state = "following"
        self.draft = self._outgoing = None
        self._handover.end()
        self._ready_at = -1
        waiting, self._waiting = self._waiting, deque()
        unknown = NotReady("the controller changed before this was committed", outcome_unknown=True)
        for _, on_commit in waiting:
            on_commit(unknown)

    def _resign(self) -> None:
        """Somebody else is to lead."""
        assert self.election is not None
        self.election.quorum_lost(self._now)

    # Going on ---

    def _settle(self) -> None:
        """Goes on with whatever can: applies, leads, answers. An answer may propose again."""
        if self._settling:
            return
        self._settling = True
        try:
            self._lead()
            while self._apply_next() or self._answer_next():
                pass
            self._go_on_leading()
        finally:
            self._settling = False
        if self.state in ("following", "leading"):
            self._snapshots.save_if_due(self.metadata, self.applied)
        self._read_on()

    def _lead(self) -> None:
        """Begins an epoch with a no-op, whose commit commits all before it (Raft, section 5.4.2)."""
        leader = self.replica.leader
        if self.state != "leading" or leader is None:
            return
        if self._ready_at < 0:
            wall = max(self._wall, self.replica.log.last_append_time, 0)
            self._outgoing = Outgoing(leader.epoch, self._send_part, self._make_snapshot)
            self._append((), wall)
            self._ready_at = self.replica.log.end_offset
            leader.advance()
        leader.committed_batches()

    def _go_on_leading(self) -> None:
        """Tells what is committed, sends snapshots to those who lack the log, makes room for another leader."""
        leader = self.replica.leader
        if self.state != "leading" or leader is None:
            return
        news = (leader.epoch, leader.high_watermark)
        if news > self._announced:  # whom a decision concerns must not wait for the next heartbeat
            self._announced = news
            leader.announce(self._now)
        if self._outgoing is not None:
            self._outgoing.serve(leader.followers, self._now)
        self._handover.go_on(leader, self._now)
        voters, disk = self.metadata.voters, self._electorate.disk_id
        if self._tail.voters is None and voters and voters.get(self.node) != disk:
            self._handover.ask_once(leader)  # this node has no vote any more, as is committed
            self._resign()

    def _make_snapshot(self) -> tuple[int, bytes]:
        epoch = self._snapshots.epoch_before(self.applied)
        return self.applied, snapshot.seal(self.metadata, self.applied, epoch)

    def _send_part(self, node: str, part: SnapshotPart, data: Buffer) -> None:
        self._peers.send(node, part, [data] if len(data) else [])

    def _apply_next(self) -> bool:
        """Applies a batch that is committed."""
        entry = self._tail.take(self.committed)
        if entry is None or not self._apply(self.metadata, entry.records):
            return False
        self.applied = entry.end
        self._snapshots.applied(entry.size)
        self._changed()
        return True

    def _apply(self, state: Metadata, records: Sequence[MetadataRecord]) -> bool:
        """Whether all of them could be applied; this node stops where not."""
        try:
            for record in records:
                state.apply(record)
        except ZBrokerError as error:
            self._fail(error)
            return False
        return True

    def _answer_next(self) -> bool:
        """Answers a decision that `metadata` shows."""
        if not self._waiting or self._waiting[0][0] > self.applied:
            return False
        self._waiting.popleft()[1](None)
        self._changed()
        return True

    def _read_on(self) -> None:
        """Reads the log that was there at the start, to its end."""
        log = self.replica.log
        if self.state != "reading" or self._reading or log.state != "open":
            return
        if self._tail.end < log.flushed_offset:
            self._reading = True
            log.read(self, self._tail.end, READ_BYTES, log.flushed_offset)
        else:
            self._take_part()

    def _read_done(self, read: ReadDone) -> None:
        self._reading = False
        if read.error is not None:
            if isinstance(read.error, DataDamaged):
                self._fail(
                    DataFolderError(
                        f"the metadata log is damaged ({read.error}): what this node has promised to keep is lost; "
                        "start it on an empty folder, and replace the voter if it was one"
                    )
                )
            elif not isinstance(read.error, NotReady):
                self._fail(read.error)
            return
        try:
            for at, header in iter_batches(read.chunk):
                if header.base_offset >= self._tail.end:
                    self._tail.add(decode_entry(read.chunk, at, header))
        except ZBrokerError as error:
            self._fail(error)

    def _fail(self, error: OSError | ZBrokerError) -> None:
        if not isinstance(error, ZBrokerError):
            error = StorageFailed(f"the metadata could not be kept: {error}")
        self._step_down()
        self.state = "failed"
        self.error = error
        self._changed()

    # The election's surroundings ---

    def send(self, node: str, message: VoteRequest | Vote) -> None:
        """Sends to a voter; who is on another disk than the voter's is not asked."""
        if not isinstance(message, VoteRequest) or self._electorate.is_voter(node):
            self._peers.send(node, message, ())

    def save(self, ballot: Ballot) -> None:
        """Saves the ballot, in the order of its changes."""
        self._storage.submit(SaveBallot(owner=FOLDER, lane="metadata", ballot=ballot))

    def log_position(self) -> tuple[int, int]:
        """See `Surroundings`."""
        end = self.replica.log.flushed_offset
        return self._snapshots.epoch_before(end), end

    def random(self) -> float:
        """See `Surroundings`."""
        return self._random()
