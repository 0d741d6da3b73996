"""One voter alone, by script: mistakes that random histories may miss, each as a test that fails when it is made."""

from __future__ import annotations

import random

import pytest

from zbroker.cluster.ballot import NAME, Ballot, LoadBallot, SaveBallot
from zbroker.cluster.election import EPOCH_FAR, EPOCHS_AHEAD_MAX, Election, ElectionSettings
from zbroker.errors import DataFolderError
from zbroker.protocol.peers import Vote, VoteRequest
from zbroker.testing.disk import SimulatedDisk

TIMEOUT = 1000


class Around:
    """Keeps what a voter says and saves; the test decides when a save is done."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, VoteRequest | Vote]] = []
        self.saving: list[Ballot] = []
        self.position = (1, 10)
        self.election: Election

    def send(self, node: str, message: VoteRequest | Vote) -> None:
        self.sent.append((node, message))

    def save(self, ballot: Ballot) -> None:
        self.saving.append(ballot)

    def log_position(self) -> tuple[int, int]:
        return self.position

    def random(self) -> float:
        return 0.5

    def saved(self) -> list[tuple[str, VoteRequest | Vote]]:
        """The disk is done; what is said then."""
        while self.saving:
            self.election.on_saved(self.saving.pop(0))
        return self.said()

    def said(self) -> list[tuple[str, VoteRequest | Vote]]:
        sent, self.sent = self.sent, []
        return sent


NEW = Ballot()


def voter(ballot: Ballot = NEW, *, now: int = 0, quiet: bool = True) -> tuple[Election, Around]:
    """Voter `a` of three; `quiet`: long after its start, with no leader heard."""
    around = Around()
    election = Election(
        "a", ["a", "b", "c"], ballot, around, ElectionSettings(TIMEOUT), changed=lambda: None, now=now
    )  # fmt: skip
    around.election = election
    if quiet:
        election._fresh_until = 0
        election._heard_at = -TIMEOUT
    return election, around


def ask(epoch: int, *, pre: bool = False, last_epoch: int = 1, end: int = 10) -> VoteRequest:
    return VoteRequest(epoch=epoch, last_epoch=last_epoch, end=end, pre=pre)


def test_a_vote_is_spoken_of_only_once_it_is_on_disk() -> None:
    election, around = voter()
    election.on_vote_request("b", ask(5), 1)
    assert around.said() == []
    assert around.saved() == [("b", Vote(epoch=5, granted=True))]


def test_a_candidate_asks_only_once_its_own_vote_is_on_disk() -> None:
    election, around = voter(Ballot(4))
    election.on_tick(5000)
    assert all(isinstance(message, VoteRequest) and message.pre for _, message in around.said())
    election.on_vote("b", Vote(epoch=5, granted=True, pre=True), 5001)
    assert around.said() == []
    assert around.saving == [Ballot(5, "a")]
    assert [(node, message.epoch) for node, message in around.saved()] == [("b", 5), ("c", 5)]


def test_a_vote_that_nobody_asked_for_does_not_count() -> None:
    election, around = voter(Ballot(4))
    election.on_tick(5000)
    election.on_vote("b", Vote(epoch=5, granted=True, pre=True), 5001)
    election.on_vote("b", Vote(epoch=5, granted=True), 5002)
    assert election.state == "candidate"
    assert [message.epoch for _, message in around.saved()] == [5, 5, 5, 5]
    assert election.state == "candidate"


def test_a_vote_survives_a_restart() -> None:
    election, around = voter()
    election.on_vote_request("b", ask(5), 1)
    (kept,) = around.saving
    around.saved()
    again, around = voter(kept)
    again.on_vote_request("c", ask(5), 1)
    assert around.saved() == [("c", Vote(epoch=5, granted=False))]
    again.on_vote_request("b", ask(5), 2)
    assert around.saved() == [("b", Vote(epoch=5, granted=True))]


def test_the_ballot_on_disk() -> None:
    disk = SimulatedDisk(random.Random(0))
    disk.make_folder("metadata")
    disk.flush_folder("")
    load = LoadBallot(owner="metadata", lane="metadata")
    assert load.run(disk) == Ballot()
    SaveBallot(owner="metadata", lane="metadata", ballot=Ballot(7, "b")).run(disk)
    disk.lose_power()
    disk.off = False
    assert load.run(disk) == Ballot(7, "b")
    size = disk.size(f"metadata/{NAME}")
    disk.write(f"metadata/{NAME}", size - 1, [b"\xff"])
    with pytest.raises(DataFolderError, match="may have voted"):
        load.run(disk)


def test_a_vote_of_an_older_candidacy_does_not_count() -> None:
    election, around = voter(Ballot(4))
    election.on_tick(5000)
    election.on_vote("b", Vote(epoch=5, granted=True, pre=True), 5001)
    around.saved()
    election.on_tick(9000)
    election.on_vote("b", Vote(epoch=6, granted=True, pre=True), 9001)
    assert election.state == "candidate"
    election.on_vote("c", Vote(epoch=5, granted=True), 9002)
    assert election.state == "candidate"
    around.saved()
    election.on_vote("c", Vote(epoch=5, granted=True), 9003)
    assert election.state == "candidate"
    election.on_vote("c", Vote(epoch=6, granted=True), 9004)
    assert (election.state, election.epoch, election.leader) == ("leader", 6, "a")


def test_the_same_voter_twice_is_no_majority() -> None:
    election, around = voter()
    five = Election(
        "a", ["a", "b", "c", "d", "e"], Ballot(), around, ElectionSettings(TIMEOUT),
        changed=lambda: None, now=0,
    )  # fmt: skip
    five._fresh_until = 0
    del election
    around.election = five
    five.on_tick(5000)
    for _ in range(3):
        five.on_vote("b", Vote(epoch=0, granted=True, pre=True), 5001)
    assert five.state == "prospect"
    five.on_vote("c", Vote(epoch=0, granted=True, pre=True), 5001)
    around.saved()
    for _ in range(3):
        five.on_vote("b", Vote(epoch=0, granted=True), 5002)
    assert five.state == "candidate"


def test_a_stranger_has_no_vote() -> None:
    election, _ = voter()
    election.on_tick(5000)
    election.on_vote("x", Vote(epoch=0, granted=True, pre=True), 5001)
    assert election.state == "prospect"


def test_a_stranger_may_be_voted_for() -> None:
    """It may have been added in a log that is longer than this voter's."""
    election, around = voter()
    election.on_vote_request("x", ask(9), 1)
    assert around.saved() == [("x", Vote(epoch=9, granted=True))]


def test_two_disks_of_one_node_are_two_candidates() -> None:
    election, around = voter()
    election.on_vote_request("b", ask(9), 1, "old")
    election.on_vote_request("b", ask(9), 2, "new")
    assert [message.epoch * message.granted for _, message in around.saved()] == [9, 0]
    again, around = voter(Ballot(9, "b", "old"))
    again.on_vote_request("b", ask(9), 1, "new")
    again.on_vote_request("b", ask(9), 2, "old")
    assert [message.epoch * message.granted for _, message in around.saved()] == [0, 9]


def test_who_has_no_vote_gives_none_and_never_stands() -> None:
    election, around = voter()
    election.set_voters(["a", "b"], stands=False, votes=False, now=1)
    election.on_vote_request("b", ask(9), 2)
    election.on_tick(90_000)
    assert (around.saved(), election.due) == ([], None)
    election.set_voters(["a"], stands=True, votes=True, now=90_000)
    election.on_tick(90_000)
    around.saved()
    assert election.state == "leader", "who votes alone need not wait"


def test_a_candidate_that_loses_its_vote_stands_no_more() -> None:
    election, around = voter()
    election.on_tick(5000)
    election.on_vote("b", Vote(epoch=0, granted=True, pre=True), 5001)
    election.set_voters(["b", "c"], stands=False, votes=True, now=5002)
    around.saved()
    election.on_vote("b", Vote(epoch=0, granted=True), 5003)
    election.on_vote("c", Vote(epoch=0, granted=True), 5003)
    assert election.state == "follower"


def test_the_leader_asks_a_voter_to_stand() -> None:
    election, around = voter(Ballot(5))
    election.on_leader("b", 5, 1000)
    for sender, epoch in (("c", 5), ("b", 4), ("b", 6)):
        election.on_stand_now(sender, epoch, 1001)
        assert (election.state, around.saving) == ("follower", [])
    election.on_stand_now("b", 5, 1001)
    said = around.saved()
    assert [(node, message.epoch, message.handover) for node, message in said] == [
        ("b", 6, True),
        ("c", 6, True),
    ]


def test_a_leader_that_hands_over_is_not_protected() -> None:
    election, around = voter(Ballot(5))
    election.on_leader("b", 5, 1000)
    request = VoteRequest(epoch=6, last_epoch=1, end=10, handover=True)
    election.on_vote_request("c", request, 1001)
    assert around.saved() == [("c", Vote(epoch=6, granted=True))]


@pytest.mark.parametrize(
    ("last_epoch", "end", "granted"),
    [(1, 10, True), (1, 11, True), (2, 1, True), (1, 9, False), (0, 99, False)],
)
@pytest.mark.parametrize("pre", [True, False])
def test_only_a_complete_log_is_voted_for(
    last_epoch: int, end: int, granted: bool, pre: bool
) -> None:
    election, around = voter()
    election.on_vote_request("b", ask(5, pre=pre, last_epoch=last_epoch, end=end), 1)
    ((_, vote),) = around.saved()
    assert isinstance(vote, Vote)
    assert vote.granted is granted


def test_a_leader_that_is_heard_is_protected() -> None:
    election, around = voter(Ballot(5))
    assert election.on_leader("b", 5, 1000)
    for pre in (True, False):
        election.on_vote_request("c", ask(6, pre=pre), 1000 + TIMEOUT - 1)
    assert [message for _, message in around.saved()] == [Vote(epoch=5, granted=False, pre=True)]
    assert election.epoch == 5
    election.on_vote_request("c", ask(6, pre=True), 1000 + TIMEOUT)
    assert around.said() == [("c", Vote(epoch=6, granted=True, pre=True))]


def test_evidence_of_death_waives_that_for_the_voter_that_saw_it() -> None:
    election, around = voter(Ballot(5))
    election.on_leader("b", 5, 1000)
    election.on_gone("b", 1005)
    election.on_vote_request("c", ask(6, pre=True), 1006)
    assert around.said() == [("c", Vote(epoch=6, granted=True, pre=True))]
    election.on_leader("b", 5, 1010)
    election.on_vote_request("c", ask(6, pre=True), 1011)
    assert around.said() == [("c", Vote(epoch=5, granted=False, pre=True))]


def test_a_voter_that_has_just_started_protects_whom_it_may_have_answered() -> None:
    election, around = voter(Ballot(5), now=100, quiet=False)
    election.on_vote_request("c", ask(6), 100 + TIMEOUT - 1)
    assert around.saved() == []
    election.on_vote_request("c", ask(6), 100 + TIMEOUT)
    assert around.saved() == [("c", Vote(epoch=6, granted=True))]


def test_a_pre_vote_binds_nobody() -> None:
    election, around = voter(Ballot(5))
    for candidate in ("b", "c"):
        election.on_vote_request(candidate, ask(6, pre=True), 1)
    assert [message for _, message in around.said()] == [Vote(epoch=6, granted=True, pre=True)] * 2
    assert (around.saving, election.epoch) == ([], 5)


def test_a_newer_epoch_ends_a_leadership_before_it_is_on_disk() -> None:
    election, around = voter()
    election.on_tick(5000)
    election.on_vote("b", Vote(epoch=0, granted=True, pre=True), 5001)
    around.saved()
    election.on_vote("b", Vote(epoch=0, granted=True), 5002)
    assert election.state == "leader"
    election.on_newer_epoch(3, 5003)
    assert (election.state, election.leader) == ("follower", None)
    assert not election.on_leader("c", 3, 5004), "its epoch is not on disk here yet"
    around.saved()
    assert election.on_leader("c", 3, 5005)


def test_one_ballot_at_a_time_is_on_its_way() -> None:
    election, around = voter()
    election.on_newer_epoch(3, 1)
    election.on_newer_epoch(4, 2)
    election.on_newer_epoch(5, 3)
    assert around.saving == [Ballot(3)]
    around.saved()
    assert election.epoch == 5


def test_a_ballot_that_found_no_room_is_saved_later() -> None:
    election, around = voter()
    election.on_newer_epoch(3, 1)
    assert around.saving.pop() == Ballot(3)
    election.on_not_saved()
    assert not around.saving
    election.on_tick(2)
    assert around.saving == [Ballot(3)]
    around.saved()
    assert election.on_leader("b", 3, 3)


# Epochs that nobody can have reached ---

ABSURD = 2**31 - 1


@pytest.mark.parametrize("own", [4, EPOCH_FAR - 1, EPOCH_FAR + 7])
def test_an_absurd_epoch_is_ignored_whoever_names_it(own: int) -> None:
    """It would be the last: nobody could stand any more."""
    election, around = voter(Ballot(own))
    election.on_vote_request("b", ask(ABSURD), 1)
    election.on_vote_request("b", ask(ABSURD, pre=True), 1)
    election.on_vote("b", Vote(epoch=ABSURD), 1)
    election.on_newer_epoch(ABSURD, 1)
    assert not election.on_leader("b", ABSURD, 1)
    assert election.epoch == own
    assert not around.saving
    assert not around.said()
    election.on_vote_request("b", ask(own + 1), 1)
    assert around.saved() == [("b", Vote(epoch=own + 1, granted=True))]


def test_epochs_go_on_where_one_was_named_that_is_as_large_as_may_be() -> None:
    election, around = voter(Ballot(4))
    election.on_newer_epoch(EPOCH_FAR, 1)
    around.saved()
    assert election.epoch == EPOCH_FAR
    election.on_vote_request("b", ask(EPOCH_FAR + EPOCHS_AHEAD_MAX), 1)
    assert around.saved() == [("b", Vote(epoch=EPOCH_FAR + EPOCHS_AHEAD_MAX, granted=True))]
