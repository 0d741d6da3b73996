"""Classic mistakes, each made in the running core: the simulation, or a directed test, has to notice.

A mistake that nobody notices means that a promise is not checked. Each is a patch of one method, for one test.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from mesh.mesh import Mesh
from mesh.test_known_bugs import cut_off_with_a_record

from zbroker.broker.partition import Partition
from zbroker.cluster import membership, recovery
from zbroker.cluster.ballot import Ballot, LoadBallot, SaveBallot
from zbroker.cluster.election import Election
from zbroker.cluster.metadata import Metadata
from zbroker.log.log import Log
from zbroker.log.producers import ProducerTable
from zbroker.log.requests import Truncate, Write
from zbroker.protocol.peers import VoteRequest
from zbroker.replication import leader as leader_module
from zbroker.replication.follower import Follower
from zbroker.replication.leader import Leader
from zbroker.testing.broken import InvariantBroken
from zbroker.testing.simulation import simulate

Patch = pytest.MonkeyPatch


def forget_votes(patch: Patch) -> None:
    """A vote is not on disk before it is spoken of: a restart may vote again."""
    patch.setattr(SaveBallot, "run", lambda self, _files: self.ballot)


def forget_votes_at_start(patch: Patch) -> None:
    """A voter that starts knows its epoch, and not whom it has voted for in it."""
    real = LoadBallot.run
    patch.setattr(LoadBallot, "run", lambda self, files: Ballot(real(self, files).epoch))


def vote_for_anyone(patch: Patch) -> None:
    """A vote goes to whoever asks, whatever its log has (Raft, section 5.4.1)."""
    patch.setattr(Election, "_is_complete", lambda _self, _request: True)


def commit_without_majority(patch: Patch) -> None:
    """One voter's disk is enough."""
    patch.setattr(leader_module, "majority_offset", lambda offsets, _voters: max(offsets.values()))


def commit_without_the_slowest(patch: Patch) -> None:
    """The high watermark follows the fastest in-sync replica, not the slowest."""
    patch.setattr(leader_module, "in_sync_offset", lambda offsets, _members: max(offsets.values()))


def count_before_the_epoch(patch: Patch) -> None:
    """A replica counts before it has acknowledged the beginning of the epoch (KIP-320)."""
    real = Leader._committed

    def committed(self: Leader) -> int:
        for follower in self.followers.values():
            follower.begun = max(follower.begun, self.epoch)
            follower.written = follower.flushed = max(follower.flushed, follower.next)
        return real(self)

    patch.setattr(Leader, "_committed", committed)


def commit_past_what_matched(patch: Patch) -> None:
    """What was sent counts as if it had arrived."""
    real = Leader._note

    def note(self: Leader, node: str, follower: Any, answer: Any) -> None:
        real(self, node, follower, answer)
        follower.written = follower.flushed = self.log.end_offset

    patch.setattr(Leader, "_note", note)


def ignore_pending(patch: Patch) -> None:
    """Who is about to join the ISR does not count yet: the controller may appoint it all the same."""
    real = Leader.isr_to_propose

    def propose(self: Leader, *args: Any) -> Any:
        wanted = real(self, *args)
        self.pending = set()
        return wanted

    patch.setattr(Leader, "isr_to_propose", propose)


def join_too_early(patch: Patch) -> None:
    """Anyone who follows joins the ISR, however far behind."""
    patch.setattr(Leader, "_may_join", lambda _self, follower: follower.state == "streaming")


def truncate_what_is_committed(patch: Patch) -> None:
    """A follower cuts its log to its high watermark, as it was before KIP-101, instead of asking its leader."""
    real = Follower._on_probe

    def on_probe(self: Follower, message: Any) -> None:
        if not self._agreed and self.log.end_offset > self.high_watermark >= self.log.first_offset:
            self._discard(message, self.high_watermark)
        else:
            real(self, message)

    patch.setattr(Follower, "_on_probe", on_probe)


def serve_what_is_not_committed(patch: Patch) -> None:
    """Reads go up to the log's end."""
    patch.setattr(Partition, "high_watermark", property(lambda self: self.log.written_offset))


def acknowledge_before_commit(patch: Patch) -> None:
    """The answer goes out with the leader's own write."""
    real = Partition._acknowledge

    def acknowledge(self: Partition) -> None:
        self._committed = max(self._committed, self.log.written_offset)
        real(self)

    patch.setattr(Partition, "_acknowledge", acknowledge)


def acknowledge_before_fsync(patch: Patch) -> None:
    """Writes count as flushed without a flush."""
    real = Write.run

    def run(self: Write, files: Any) -> None:
        kept = self.flush, self.flush_folder
        self.flush, self.flush_folder = [], False
        real(self, files)
        self.flush, self.flush_folder = kept

    patch.setattr(Write, "run", run)


def keep_sequences_of_what_was_cut(patch: Patch) -> None:
    """Truncation forgets the records and not the producers' sequences."""
    real = Log.on_event

    def on_event(self: Log, completion: Any, now: int) -> Any:
        if not isinstance(completion.request, Truncate):
            return real(self, completion, now)
        before = copy.deepcopy(self.producers)
        event = real(self, completion, now)
        if completion.error is None:
            self.producers = before
        return event

    patch.setattr(Log, "on_event", on_event)


def forget_sequences(patch: Patch) -> None:
    """No batch is known to be there already."""
    patch.setattr(ProducerTable, "check", lambda _self, _header: None)


def elect_who_is_out_of_sync(patch: Patch) -> None:
    """Where nobody in sync is up, whoever is up leads (an unclean election that nobody asked for)."""
    real = membership.fence_node

    def fence(state: Any, node: str, reason: Any) -> Any:
        records = real(state, node, reason)
        changed = []
        for record in records:
            if type(record).__name__ == "LeaderAppointed" and record.leader is None:
                partition = state.topics[record.topic_id].partitions[record.partition]
                up = [each for each in partition.replicas if each != node and state.is_up(each)]
                if up:
                    record = type(record)(
                        topic_id=record.topic_id, partition=record.partition, leader=up[0],
                        epoch=record.epoch, isr=[up[0]],
                    )  # fmt: skip
            changed.append(record)
        return changed

    patch.setattr(membership, "fence_node", fence)


def lead_on_after_a_restart(patch: Patch) -> None:
    """A leader that starts anew goes on under its old epoch: an offset of it may get another record."""
    real = membership.register_node

    def register(state: Any, node: str, *args: Any, **kwargs: Any) -> Any:
        return [
            record
            for record in real(state, node, *args, **kwargs)
            if getattr(record, "leader", None) != node
        ]

    patch.setattr(membership, "register_node", register)


def lead_whoever_is_back_last(patch: Patch) -> None:
    """Where all in-sync replicas stopped uncleanly, the last one to come back leads with what it has."""
    patch.setattr(recovery, "may_lack", lambda _state, _topic: False)


def wait_for_nobody(patch: Patch) -> None:
    """Whoever left the ISR is forgotten, although no leader has lived since."""
    real = Metadata._count_in

    def count_in(self: Metadata, partition: Any) -> None:
        partition.last = {}
        real(self, partition)

    patch.setattr(Metadata, "_count_in", count_in)


MISTAKES: list[tuple[Callable[[Patch], None], str, int]] = [
    (forget_votes, "process", 0),
    (vote_for_anyone, "mixed", 12),
    (commit_without_majority, "process", 0),
    (commit_without_the_slowest, "mixed", 0),
    (count_before_the_epoch, "mixed", 0),
    (commit_past_what_matched, "process", 0),
    (ignore_pending, "mixed", 20),
    (join_too_early, "mixed", 0),
    (truncate_what_is_committed, "mixed", 0),
    (serve_what_is_not_committed, "calm", 0),
    (acknowledge_before_commit, "calm", 0),
    (acknowledge_before_fsync, "disk", 0),
    (forget_sequences, "network", 0),
    (elect_who_is_out_of_sync, "process", 1),
    (lead_on_after_a_restart, "process", 2),
    (lead_whoever_is_back_last, "dark", 1),
    (wait_for_nobody, "dark", 1),
]
"""Each with a profile that meets it, and the seed to begin with: one that noticed when it was looked for."""
SEEDS = 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "profile", "first"), MISTAKES, ids=lambda each: getattr(each, "__name__", each)
)
def test_a_mistake_is_noticed(
    monkeypatch: Patch, mistake: Callable[[Patch], None], profile: str, first: int
) -> None:
    mistake(monkeypatch)
    for seed in range(first, first + SEEDS):
        if simulate(seed, profile, nodes=3).problems:
            return
    pytest.fail(f"nobody noticed in {SEEDS} seeds: {mistake.__doc__}")


def test_sequences_that_are_not_forgotten_are_noticed(monkeypatch: Patch) -> None:
    """The simulation rarely meets this one: it is noticed by script."""
    keep_sequences_of_what_was_cut(monkeypatch)
    mesh = Mesh()
    again = cut_off_with_a_record(mesh)
    assert getattr(again, "duplicate", True), again
    assert mesh.values().count(b"once") == 0


def vote_twice_around_a_restart() -> Mesh:
    """Whoever leads the metadata is voted for; then a voter starts anew, and another asks in the same epoch."""
    mesh = Mesh()
    chosen = mesh.controller
    assert chosen is not None
    epoch = chosen.broker.quorum.replica.epoch
    voter, other = (each for each in mesh.cluster.up if each is not chosen)
    mesh.cluster.network.cut(chosen.name, voter.name)
    mesh.cluster.network.cut(voter.name, chosen.name)
    voter.kill()
    voter.start()
    quorum = voter.broker.quorum
    mesh.cluster.run_until(
        lambda: quorum.election is not None and other.name in quorum.disks, 10, "it can be asked"
    )
    assert quorum.election is not None
    assert quorum.election.epoch == epoch
    asked = VoteRequest(epoch=epoch, last_epoch=epoch, end=1_000_000, handover=True)
    quorum.on_vote_request(other.name, asked, mesh.cluster.timeline.now)
    mesh.cluster.run(0.2)
    return mesh


def test_a_voter_that_starts_anew_does_not_vote_again() -> None:
    """The simulation meets this one too rarely to find it: a stale request has to come just then."""
    mesh = vote_twice_around_a_restart()
    assert mesh.invariants.checks["16 ballots"] > 0


def test_votes_that_are_forgotten_at_the_start_are_noticed(monkeypatch: Patch) -> None:
    forget_votes_at_start(monkeypatch)
    with pytest.raises(InvariantBroken, match=r"16: n. voted for n. in epoch"):
        vote_twice_around_a_restart()
