"""Who leads the metadata log: Raft's election, with pre-vote and check-quorum.

Owns one voter's part: its ballot, whom it hears, whom it asks. Never reads a clock or a die of its own, never touches
the log (it is told where the log ends), and says nothing that its ballot on disk does not back: whatever follows from
a new epoch or a vote waits in `_then` until the ballot is saved.

========= ================================================ ========= ==================================================
state     on                                               next      effect
========= ================================================ ========= ==================================================
follower  silence for the election timeout                 prospect  asks for pre-votes
follower  evidence that the leader's process is gone       prospect  the same, at once (the first in line) or soon
prospect  a majority would vote for it                     candidate a new epoch, voted for itself; asks for votes
prospect  no majority in time                              prospect  asks again, after a random pause
candidate a majority of votes                              leader    leads the epoch
candidate no majority in time                              prospect
any       an append of the present epoch                   follower  its sender leads
any       a message of a newer epoch                       follower  the epoch is saved without a vote
follower  the leader asks it to stand (`StandNow`)         candidate stands at once, without pre-votes
leader    no majority heard for the election timeout       follower  steps down (check-quorum); the epoch stays
========= ================================================ ========= ==================================================

A vote is given once an epoch, to a candidate whose log ends no earlier than the voter's own (by epoch, then offset).
Neither a vote nor a pre-vote is given while a leader was heard within the election timeout: so a voter that hears the
leader protects it from one that does not. A refused connect to the leader's own port waives that, for the voter that
saw it: the process is gone, while its machine lives. A candidate whom the leader itself asked to stand says so, which
waives it for all.

Who votes may change at any time (`set_voters`). A voter gives its vote to any candidate, whether it knows it for one
of the voters or not: the candidate's log may know better. Whose votes count is the candidate's to know (Ongaro's
dissertation, section 4.1).

Peers are believed, and an epoch that one names is taken over by all, for ever. So that one absurd epoch, out of a bug
or a flipped bit, does not leave the cluster without any to come, one beyond `EPOCH_FAR` is ignored, unless it is only a
few elections away from what is known here. No cluster comes near that by elections: one a second takes 34 years.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from zbroker.cluster.ballot import Ballot
from zbroker.protocol.peers import Vote, VoteRequest
from zbroker.replication.commit import is_majority

State = Literal["follower", "prospect", "candidate", "leader"]

STAGGER_MS = 20
"""How much later each voter in line stands than the one before it, once the leader is known to be gone."""
FIRST_MS = 50
"""How soon the first in line stands, and stands again, in a cluster that nobody has led yet."""
EVIDENCE_RETRY_MS = 15
"""How soon a pre-vote is asked for again while the leader is known to be gone: others may see it a moment later."""


EPOCH_FAR = 2**30
"""Epochs that anybody may name; half of those that there are."""
EPOCHS_AHEAD_MAX = 1000
"""How far beyond the own epoch one that is larger than those may be."""


class ElectionSettings(msgspec.Struct, frozen=True):
    """Times in milliseconds.

    Attributes:
        timeout: silence after which a voter takes its leader for gone, and within which it protects it. Each wait is
            this long and up to half as long again, at random.
    """

    timeout: int = 1000


class Surroundings(Protocol):
    """What an election needs."""

    def send(self, node: str, message: VoteRequest | Vote) -> None:
        """Sends to a voter; may be lost."""

    def save(self, ballot: Ballot) -> None:
        """Begins to save the ballot; `Election.on_saved` says when it is on disk."""

    def log_position(self) -> tuple[int, int]:
        """Epoch of the last record in the log's flushed part, and where that ends."""

    def random(self) -> float:
        """From 0 to 1, the latter excluded."""


class Election:
    """One voter's part. See the module for its states.

    Attributes:
        epoch: the newest epoch that is on disk here.
        leader: who leads it, None where that is not known.
        state: see the module.
        voters: names of those who vote.
        changed: told after every change of epoch, leader or state.
    """

    def __init__(
        self,
        node: str,
        voters: Sequence[str],
        ballot: Ballot,
        surroundings: Surroundings,
        settings: ElectionSettings,
        *,
        changed: Callable[[], None],
        now: int,
        disk: str = "",
    ) -> None:
        """
        Args:
            voters: names of those who vote; this node is one of them if it is named, until `set_voters`.
            ballot: what is on disk.
            changed: told after every change of epoch, leader or state.
            disk: this node's own.
        """
        self.node = node
        self.voters = sorted(voters)
        self._disk = disk
        self._stands = node in self.voters
        self._votes = True
        self._handover = False
        self.state: State = "follower"
        self.leader: str | None = None
        self.changed = changed
        self._ballot = ballot
        self._saved = ballot
        self._saving = False
        self._then: list[Callable[[], None]] = []
        self._around = surroundings
        self._settings = settings
        self._now = now
        self._heard_at = now
        self._gone: set[str] = set()
        self._granted: set[str] = set()
        self._due = now if self.voters == [node] else now + self._pause()
        self._fresh_until = now + settings.timeout if ballot.epoch >= 0 else now

    @property
    def epoch(self) -> int:
        """See the class."""
        return self._saved.epoch

    @property
    def due(self) -> int | None:
        """When `on_tick` has something to do, monotonic ms."""
        return None if self.state == "leader" or not self._stands else self._due

    def set_voters(self, voters: Sequence[str], *, stands: bool, votes: bool, now: int) -> None:
        """Who votes from now on.

        Args:
            stands: this node is one of them, and may lead.
            votes: it may give its vote: it is one of them, or may be one by a log that is longer than its own.
        """
        self._now = now
        if stands and not self._stands:
            self._due = now if list(voters) == [self.node] else now + self._pause()
        self.voters = sorted(voters)
        self._stands, self._votes = stands, votes
        if not stands and self.state in ("prospect", "candidate"):
            self.state = "follower"
            self._granted = set()
            self.changed()

    # Messages ---

    def on_vote_request(self, sender: str, request: VoteRequest, now: int, disk: str = "") -> None:
        """Somebody stands for election, or asks whether it should.

        Args:
            disk: the sender's.
        """
        self._now = now
        if not self._votes or self._is_absurd(request.epoch):
            return
        if request.pre:
            willing = (
                request.epoch > self._ballot.epoch
                and not self._is_protected()
                and self._is_complete(request)
            )
            epoch = request.epoch if willing else self._ballot.epoch
            self._around.send(sender, Vote(epoch=epoch, granted=willing, pre=True))
            return
        protected = self._is_protected() and not request.handover
        if protected and request.epoch > self._ballot.epoch:
            return  # neither the vote nor the epoch: the leader that is heard goes on
        complete = self._is_complete(request)
        if request.epoch > self._ballot.epoch:
            vote = Ballot(request.epoch, sender, disk) if complete else Ballot(request.epoch)
            self._step_down(vote, None)
        mine = self._ballot
        granted = (
            request.epoch == mine.epoch
            and (mine.voted_for is None or (mine.voted_for, mine.disk) == (sender, disk))
            and complete
        )
        if granted and mine.voted_for is None:
            self._due = now + self._pause()
            self._write(Ballot(request.epoch, sender, disk))
        epoch = self._ballot.epoch
        self._when_saved(lambda: self._around.send(sender, Vote(epoch=epoch, granted=granted)))

    def on_vote(self, sender: str, vote: Vote, now: int) -> None:
        """A voter answers."""
        self._now = now
        if sender not in self.voters or self._is_absurd(vote.epoch):
            return
        if vote.epoch > self._ballot.epoch and not (vote.pre and vote.granted):
            self._step_down(Ballot(vote.epoch), None)
            return
        if not vote.granted:
            return
        if vote.pre and self.state == "prospect" and vote.epoch == self._ballot.epoch + 1:
            self._granted.add(sender)
            if is_majority(self._granted, self.voters):
                self._stand()
        elif (
            not vote.pre
            and self.state == "candidate"
            and vote.epoch == self._ballot.epoch
            and self._saved == self._ballot  # before that nobody was asked, whatever a peer says
        ):
            self._granted.add(sender)
            self._count()

    def on_leader(self, sender: str, epoch: int, now: int) -> bool:
        """A leader's append came; False where its epoch is over, or is not on disk here yet.

        No epoch has two leaders: whoever says that it leads this node's own is not believed.
        """
        self._now = now
        if epoch < self._ballot.epoch or (epoch == self._ballot.epoch and self.state == "leader"):
            return False
        if self._is_absurd(epoch):
            return False
        self._heard_at = now
        self._gone.discard(sender)
        self._due = now + self._pause()
        if epoch > self._ballot.epoch:
            self._step_down(Ballot(epoch), sender)
        elif self.leader != sender or self.state != "follower":
            self.state = "follower"
            self.leader = sender
            self.changed()
        return self._saved.epoch == epoch

    def on_newer_epoch(self, epoch: int, now: int) -> None:
        """Somebody answered with a newer epoch."""
        self._now = now
        if epoch > self._ballot.epoch and not self._is_absurd(epoch):
            self._step_down(Ballot(epoch), None)

    def on_stand_now(self, sender: str, epoch: int, now: int) -> None:
        """The leader asks this voter to lead in its place: stands at once, without pre-votes."""
        self._now = now
        current = epoch == self._ballot.epoch == self._saved.epoch
        if self._stands and current and sender == self.leader and self.state == "follower":
            self._stand(handover=True)

    # Evidence and time ---

    def on_gone(self, node: str, now: int) -> None:
        """This voter's own connect to a node was refused: its process is gone."""
        self._now = now
        self._gone.add(node)
        if node == self.leader and self.state == "follower" and self._stands:
            in_line = [voter for voter in self.voters if voter not in self._gone]
            self._due = now + STAGGER_MS * in_line.index(self.node)

    def on_back(self, node: str) -> None:
        """A node answers again."""
        self._gone.discard(node)

    def on_tick(self, now: int) -> None:
        """Time has passed."""
        self._now = now
        if self._ballot != self._saved and not self._saving:
            self._save()  # the disk was full
        due = self.due
        if due is not None and now >= due:
            self._ask()

    def quorum_lost(self, now: int) -> None:
        """The leader has not heard a majority for the election timeout: it may have been replaced."""
        self._now = now
        if self.state == "leader":
            self.state = "follower"
            self.leader = None
            self._due = now + self._pause()
            self.changed()

    def on_saved(self, ballot: Ballot) -> None:
        """A ballot is on disk; what waited for it goes out, unless a newer one is on its way."""
        self._saved = ballot
        self._saving = False
        if ballot != self._ballot:
            self._save()
        else:
            waiting, self._then = self._then, []
            for action in waiting:
                action()
            self.changed()

    def on_not_saved(self) -> None:
        """The disk is full, and the ballot is not on it: nothing is said, and it is tried again."""
        self._saving = False

    # Standing for election ---

    def _ask(self) -> None:
        """Asks everyone whether they would vote for this voter."""
        self.state = "prospect"
        known_gone = self.leader in self._gone
        if not known_gone:
            self.leader = None
        self._granted = {self.node}
        self._due = self._now + (EVIDENCE_RETRY_MS if known_gone else self._pause() // 2)
        if is_majority(self._granted, self.voters):
            self._stand()
            return
        self._request(self._ballot.epoch + 1, pre=True)

    def _stand(self, *, handover: bool = False) -> None:
        """Stands: nothing is said before the vote for itself is on disk."""
        self.state = "candidate"
        self._handover = handover
        self.leader = None
        self._granted = set()
        self._due = self._now + self._pause()
        self._write(Ballot(self._ballot.epoch + 1, self.node, self._disk))
        self._when_saved(self._campaign)

    def _campaign(self) -> None:
        if self.state != "candidate":
            return
        self._granted = {self.node}
        self._request(self._saved.epoch, pre=False)
        self._count()

    def _count(self) -> None:
        if self.state == "candidate" and is_majority(self._granted, self.voters):
            self.state = "leader"
            self.leader = self.node
            self._gone.clear()
            self.changed()

    def _request(self, epoch: int, *, pre: bool) -> None:
        last_epoch, end = self._around.log_position()
        for voter in self.voters:
            if voter != self.node:
                message = VoteRequest(
                    epoch=epoch, last_epoch=last_epoch, end=end, pre=pre,
                    handover=self._handover and not pre,
                )  # fmt: skip
                self._around.send(voter, message)

    # Within ---

    def _is_absurd(self, epoch: int) -> bool:
        """Whether no election can have led to an epoch."""
        return epoch > EPOCH_FAR and epoch > self._ballot.epoch + EPOCHS_AHEAD_MAX

    def _is_protected(self) -> bool:
        """Whether there is a leader to protect: this voter itself, or one that it has heard lately."""
        if self.state == "leader":
            return True
        if self._now < self._fresh_until and self.leader is None and not self._gone:
            return True  # this voter may have answered a leader just before it started anew
        heard = self._now - self._heard_at < self._settings.timeout
        return heard and self.leader is not None and self.leader not in self._gone

    def _is_complete(self, request: VoteRequest) -> bool:
        """Whether a candidate's log has all that this voter's has (Raft, section 5.4.1)."""
        return (request.last_epoch, request.end) >= self._around.log_position()

    def _step_down(self, ballot: Ballot, leader: str | None) -> None:
        """A newer epoch: nothing of an older one goes on."""
        self.state = "follower"
        self.leader = leader
        self._granted = set()
        self._due = self._now + self._pause()
        self._then.clear()
        self._write(ballot)
        self.changed()

    def _write(self, ballot: Ballot) -> None:
        self._ballot = ballot
        if not self._saving:
            self._save()

    def _save(self) -> None:
        """One ballot is on its way to the disk at a time, so that none overtakes a newer one."""
        self._saving = True
        self._around.save(self._ballot)

    def _when_saved(self, action: Callable[[], None]) -> None:
        if self._saved == self._ballot:
            action()
        else:
            self._then.append(action)

    def _pause(self) -> int:
        if self._ballot.epoch < 0 and self.voters[:1] == [self.node]:
            return FIRST_MS  # a cluster that nobody has led yet: the first in line need not wait for anybody
        return self._settings.timeout + int(self._settings.timeout * self._around.random() / 2)
