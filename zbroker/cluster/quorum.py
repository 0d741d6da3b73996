"""The metadata partition: a log that a majority of voters keeps, and the state that it makes.

Joins an `Election` (who leads), a `Replica` (how the copies become equal) and the `Metadata` (what the records say).
Owns when a record is applied, and to which of two states. `metadata` has what is committed, on the leader as on all
others: readers see it, and effects go by it. `draft` has everything that is in the leader's log, so that its next
decision sees the last; it goes with the leadership. A decision is answered once `metadata` shows it. Never decides what
the records say: `controller` does.

========= ====================================== ========= =============================================================
state     on                                     next      effect
========= ====================================== ========= =============================================================
opening   ballot read, log open                  following the election begins
following an append of the epoch's leader        following taken by the replica; what is committed is applied
following elected                                replaying the rest of the log is read, committed or not
replaying all of it is read                      leading   the draft is made; a no-op is appended: its commit commits
                                                           all before it
leading   the no-op is committed and applied     leading   `ready`: decisions are taken
leading   not the leader any more                following decisions that wait are answered: outcome unknown
any       the log or the ballot fails            failed    the node stops
========= ====================================== ========= =============================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from zbroker.cluster import snapshot
from zbroker.cluster.ballot import Ballot, LoadBallot, SaveBallot
from zbroker.cluster.election import Election, ElectionSettings
from zbroker.cluster.metadata import Metadata
from zbroker.cluster.records import MetadataRecord, decode, encode
from zbroker.errors import NotReady, StorageFailed, ZBrokerError
from zbroker.log.events import AppendFailed, Broken, ReadDone
from zbroker.log.log import Log
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Completion, Storage
from zbroker.protocol.batch import (
    CONTROL,
    Buffer,
    EncodedRecord,
    decode_records,
    encode_batch,
    iter_batches,
    read_header,
    stamp,
)
from zbroker.protocol.frames import Frame
from zbroker.protocol.peers import Append, Appended, Vote, VoteRequest
from zbroker.replication.leader import LeaderSettings
from zbroker.replication.ports import LinkBudget
from zbroker.replication.replica import Appointment, Replica

FOLDER = "metadata"
READ_BYTES = 1 << 20
HEARTBEAT_MS = 100
"""How often a leader is heard by everyone who keeps the metadata."""

State = Literal["opening", "following", "replaying", "leading", "closing", "closed", "failed"]
OnCommit = Callable[[ZBrokerError | None], None]


class PeerStart(msgspec.Struct, frozen=True):
    """A node's start that is up: which one, and on which disk, as the link to it was checked."""

    incarnation: int
    disk_id: str


class Peers(Protocol):
    """How messages reach the other nodes; any of them may be lost."""

    def send(
        self, node: str, message: Append | Appended | Vote | VoteRequest, batches: Sequence[Buffer]
    ) -> None: ...


class MetadataPartition:
    """One node's part in the metadata. See the module for its states.

    Attributes:
        metadata: the state that is committed, as far as it is applied. Another object after a snapshot was installed.
        applied: all below this offset is in it.
        draft: while this node leads, the state with everything that it has decided; None otherwise.
        ready: this node leads, and all that was committed before it is applied: it is the controller.
        error: why it failed.
    """

    def __init__(
        self,
        node: str,
        voters: Sequence[str],
        *,
        storage: Storage,
        peers: Peers,
        random: Callable[[], float],
        settings: ElectionSettings,
        changed: Callable[[], None],
        disk_id: str = "",
    ) -> None:
        """
        Args:
            voters: as the metadata, or at a first formation the configuration, name them.
            disk_id: this node's own disk.
            changed: told when the leader, the state or what is applied may have changed.
        """
        self.node = node
        self.voters = sorted(voters)
        self.disk_id = disk_id
        self.state: State = "opening"
        self.metadata = Metadata()
        self.applied = 0
        self.draft: Metadata | None = None
        self.error: ZBrokerError | None = None
        self.election: Election | None = None
        self._storage = storage
        self._peers = peers
        self._random = random
        self._settings = settings
        self._changed = changed
        self._starts: Mapping[str, PeerStart] = {}
        self._ballot: Ballot | None = None
        self._waiting: deque[tuple[int, OnCommit]] = deque()
        self._ahead: deque[tuple[int, Sequence[MetadataRecord]]] = deque()
        """Batches that are not applied yet: where each ends, and its records."""
        self._reading = False
        self._settling = False
        self._ready_at = -1
        self._led = -1
        self._beat_at = 0
        self._announced = (-1, -1)
        self._now = 0
        log_settings = LogSettings(
            fsync="always", retention=None, retention_size=None, segment_age=None, lane="metadata"
        )
        budget = LinkBudget(1 << 20)
        self.replica = Replica(
            Log(FOLDER, log_settings, storage),
            LeaderSettings(node=node, quorum=True),
            send=peers.send,
            answer=lambda to, message: peers.send(to, message, ()),
            budgets=lambda _: budget,
        )

    # What others may know ---

    @property
    def leader(self) -> str | None:
        """Who leads, as far as is known here."""
        return None if self.election is None else self.election.leader

    @property
    def ready(self) -> bool:
        """See the class."""
        return self.state == "leading" and 0 <= self._ready_at <= self.applied

    @property
    def committed(self) -> int:
        """All below this offset is committed, as far as is known here."""
        return max(self.replica.high_watermark, 0)

    @property
    def due(self) -> int | None:
        """When `on_tick` has something to do before the usual tick."""
        if self.election is None or self.state in ("closing", "closed", "failed"):
            return None
        return self.election.due

    # Life ---

    def open(self, now: int) -> None:
        """Reads the ballot and the log."""
        self._now = now
        self._storage.submit(LoadBallot(owner=FOLDER, lane="metadata"))
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
        self.voters = sorted(voters)
        if self.election is not None:
            self.election.voters = self.voters
            self._appoint()

    def hand_over(self, now: int) -> None:
        """The leader asks the most caught-up voter to lead in its place."""
        self._now = now

    def set_peers(self, peers: Mapping[str, PeerStart], now: int) -> None:
        """Which start of each other node is up: those are sent to and heard."""
        self._now = now
        self._starts = dict(peers)
        if self.replica.appointment is not None:
            self._appoint()

    def set_incarnations(self, incarnations: Mapping[str, int], now: int) -> None:
        """As `set_peers`, where the disks are not known."""
        self.set_peers({node: PeerStart(start, "") for node, start in incarnations.items()}, now)

    def heard(self, node: str) -> int | None:
        """When this leader last heard a node in its present start, monotonic ms; None where it never did."""
        leader = self.replica.leader
        follower = None if leader is None else leader.followers.get(node)
        return None if follower is None or not follower.answered else follower.heard_at

    # Decisions ---

    def propose(self, records: Sequence[MetadataRecord], on_commit: OnCommit, wall: int) -> None:
        """Appends a decision as one atomic batch; `on_commit` hears of its commit, or why it is not known.

        Raises:
            NotReady: this node is not the controller, or not yet.
        """
        if not self.ready:
            raise NotReady("this node is not the controller; ask again in a moment")
        if records:
            rows: list[EncodedRecord | None] = [(0, None, encode(record), ()) for record in records]
            assert self.draft is not None
            for record in records:
                self.draft.apply(record)
            self._append(rows, wall, attributes=0, records=records)
        self._waiting.append((self.replica.log.end_offset, on_commit))
        self._settle()

    def _append(
        self,
        rows: list[EncodedRecord | None],
        wall: int,
        *,
        attributes: int,
        records: Sequence[MetadataRecord] = (),
    ) -> None:
        log = self.replica.log
        batch = encode_batch(rows, base_timestamp=wall, max_timestamp=wall, attributes=attributes)
        stamp(
            batch,
            base_offset=log.end_offset,
            append_time=max(wall, log.last_append_time),
            leader_epoch=log.last_epoch,
        )
        self.replica.append(batch, read_header(batch))
        self._ahead.append((log.end_offset, records))

    # Messages ---

    def on_vote_request(self, sender: str, request: VoteRequest, now: int) -> None:
        """A candidate asks."""
        if self.election is not None and self.state not in ("closing", "closed", "failed"):
            self.election.on_vote_request(sender, request, now)

    def on_vote(self, sender: str, vote: Vote, now: int) -> None:
        """A voter answers."""
        if self.election is not None:
            self.election.on_vote(sender, vote, now)

    def on_append(self, sender: str, message: Append, batches: Sequence[Frame], now: int) -> None:
        """A leader sends."""
        self._now = now
        election = self.election
        if election is None or self.state in ("closing", "closed", "failed"):
            return
        if election.on_leader(sender, message.epoch, now) or message.epoch < election.epoch:
            self._appoint()
            self.replica.on_append(sender, message, batches, now)
            self._settle()

    def on_appended(self, sender: str, incarnation: int, answer: Appended, now: int) -> None:
        """A follower answers."""
        self._now = now
        self.replica.on_appended(sender, incarnation, answer, now)
        leader = self.replica.leader
        if leader is not None and leader.deposed >= 0 and self.election is not None:
            self.election.on_newer_epoch(leader.deposed, now)
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
        request = completion.request
        if isinstance(request, LoadBallot):
            self._ballot_loaded(completion)
        elif isinstance(request, SaveBallot):
            if completion.error is not None:
                self._fail(completion.error)
            elif self.election is not None:
                self.election.on_saved(completion.result)
        else:
            event = self.replica.on_event(completion, now)
            match event:
                case ReadDone():
                    self._read_done(event)
                case Broken():
                    self._fail(event.error)
                case AppendFailed() if self.state == "leading":
                    self._resign()
            if self.state == "closing" and self.replica.state == "closed":
                self.state = "closed"
            self._begin()
        self._settle()

    def on_tick(self, now: int, wall: int) -> None:
        """Time has passed: when `due`, and about every 100 ms."""
        self._now = now
        self._wall = wall
        if self.election is None or self.state in ("closing", "closed", "failed"):
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
        self._settle()

    # Within ---

    def _ballot_loaded(self, completion: Completion) -> None:
        if completion.error is not None:
            self._fail(completion.error)
            return
        self._ballot = completion.result
        self._begin()

    def _begin(self) -> None:
        """Both are read: takes part."""
        if self.state != "opening" or self._ballot is None or self.replica.log.state != "open":
            return
        log = self.replica.log
        ballot = self._ballot
        if log.last_epoch > ballot.epoch:
            ballot = Ballot(log.last_epoch, None)  # followed, without having been asked to vote
        self.state = "following"
        self.election = Election(
            self.node, self.voters, ballot, self, self._settings, changed=self._election_changed, now=self._now
        )  # fmt: skip
        self.election.on_tick(self._now)  # who votes alone need not wait
        self._changed()

    def _election_changed(self) -> None:
        """The epoch, its leader or this voter's role is another."""
        election = self.election
        assert election is not None
        if self.state in ("closing", "closed", "failed"):
            return
        led = self.replica.leader is not None or self.state in ("replaying", "leading")
        if led and (election.state != "leader" or election.epoch != self.replica.epoch):
            self._step_down()
        if election.state == "leader" and self.state == "following":
            self.state = "replaying"
            self._led = self._now
            self._read_on()
        self._appoint()
        self._changed()

    def _appoint(self) -> None:
        """Hands the replica the role that the election gives."""
        election = self.election
        assert election is not None
        if election.leader == self.node and self.state != "leading":
            return  # not before everything is applied
        if (
            election.leader is None
            and self.replica.epoch == election.epoch
            and self.replica.follower
        ):
            return  # the leader is silent, and still the only one whom this epoch can have
        starts = {node: peer.incarnation for node, peer in self._starts.items()}
        replicas = {self.node: 0, **dict.fromkeys(self.voters, 0), **starts}
        self.replica.appoint(
            Appointment(
                epoch=election.epoch, leader=election.leader, isr=self.voters, replicas=replicas
            ),
            self._now,
        )

    def _step_down(self) -> None:
        """Not the leader any more: what was decided ahead of its commit goes, and those who wait are told."""
        if self.state not in ("replaying", "leading"):
            return
        self.state = "following"
        self.draft = None
        self._ahead.clear()
        self._ready_at = -1
        waiting, self._waiting = self._waiting, deque()
        unknown = NotReady("the controller changed before this was committed", outcome_unknown=True)
        for _, on_commit in waiting:
            on_commit(unknown)

    def _resign(self) -> None:
        """A full disk: somebody else is to lead."""
        assert self.election is not None
        self.election.quorum_lost(self._now)

    def _settle(self) -> None:
        """Goes on with whatever can: applies, leads, answers. An answer may propose again."""
        if self._settling:
            return
        self._settling = True
        try:
            self._lead()
            while self._apply_next() or self._answer_next():
                pass
        finally:
            self._settling = False
        self._read_on()

    def _lead(self) -> None:
        """Begins an epoch with a no-op, whose commit commits all before it (Raft, section 5.4.2)."""
        leader = self.replica.leader
        if self.state != "leading" or leader is None:
            return
        if self._ready_at < 0:
            self._append([(0, None, None, ())], self._wall_or_last(), attributes=CONTROL)
            self._ready_at = self.replica.log.end_offset
            leader.advance()
        leader.committed_batches()
        news = (leader.epoch, leader.high_watermark)
        if news > self._announced:  # whom a decision concerns must not wait for the next heartbeat
            self._announced = news
            leader.announce(self._now)

    _wall = 0

    def _wall_or_last(self) -> int:
        return max(self._wall, self.replica.log.last_append_time, 0)

    def _apply_next(self) -> bool:
        """Applies a batch that is committed."""
        if not self._ahead or self._ahead[0][0] > self.committed:
            return False
        end, records = self._ahead.popleft()
        if not self._apply(self.metadata, records):
            return False
        self.applied = end
        self._changed()
        return True

    def _answer_next(self) -> bool:
        """Answers a decision that `metadata` shows."""
        if not self._waiting or self._waiting[0][0] > self.applied:
            return False
        self._waiting.popleft()[1](None)
        self._changed()
        return True

    def _read_on(self) -> None:
        """Reads what may be applied: what is committed, or everything where this node is about to lead."""
        log = self.replica.log
        if self.state not in ("following", "replaying") or self._reading or log.state != "open":
            return
        if self._read < self._limit():
            self._reading = True
            log.read(self, self._read, READ_BYTES, self._limit())
        elif self.state == "replaying" and self._read == log.end_offset:
            draft = snapshot.copy(self.metadata)
            if self._apply(draft, [record for _, records in self._ahead for record in records]):
                self.draft = draft
                self.state = "leading"
                self._appoint()

    def _apply(self, state: Metadata, records: Sequence[MetadataRecord]) -> bool:
        """Whether all of them could be applied; this node stops where not."""
        try:
            for record in records:
                state.apply(record)
        except ZBrokerError as error:
            self._fail(error)
            return False
        return True

    @property
    def _read(self) -> int:
        """All below it is applied, or read to be applied."""
        return self._ahead[-1][0] if self._ahead else self.applied

    def _limit(self) -> int:
        flushed = self.replica.log.flushed_offset
        return flushed if self.state == "replaying" else min(self.committed, flushed)

    def _read_done(self, read: ReadDone) -> None:
        self._reading = False
        if read.error is not None:
            if not isinstance(read.error, NotReady):
                self._fail(read.error)
            return
        try:
            for at, header in iter_batches(read.chunk):
                if header.base_offset != self._read or header.next_offset > self._limit():
                    continue  # read before this node stepped down
                records: list[MetadataRecord] = []
                if not header.is_control:
                    rows = decode_records(read.chunk, at, header)
                    records = [decode(row[2]) for row in rows if row is not None]
                self._ahead.append((header.next_offset, records))
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
        """Sends to a voter."""
        self._peers.send(node, message, ())

    def save(self, ballot: Ballot) -> None:
        """Saves the ballot, in the order of its changes."""
        self._storage.submit(SaveBallot(owner=FOLDER, lane="metadata", ballot=ballot))

    def log_position(self) -> tuple[int, int]:
        """See `Surroundings`."""
        log = self.replica.log
        end = log.flushed_offset
        return log.epoch_at(end - 1), end

    def random(self) -> float:
        """See `Surroundings`."""
        return self._random()
