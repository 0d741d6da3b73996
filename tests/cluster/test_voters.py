"""Who votes: the decisions by table, then whole clusters in which voters are added, removed and replaced."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cluster.states import apply, nodes
from cluster.world import TIMEOUT, Node, World

from zbroker.cluster import voters
from zbroker.cluster.metadata import Metadata
from zbroker.cluster.records import ClusterFormed, MetadataRecord, VoterReplacing, VotersChanged
from zbroker.errors import InvalidRequest, NotReady, ZBrokerError
from zbroker.protocol.peers import Vote, VoteRequest

DISKS = {"a": "d1", "b": "d2", "c": "d3", "x": "d9"}


def state_of(names: str, replacing: str | None = None) -> Metadata:
    state = nodes("abcdx")
    state.apply(ClusterFormed("c1", "lab", 1, {name: DISKS[name] for name in names}))
    state.apply(VoterReplacing(replacing))
    return state


def change(
    state: Metadata, node: str, action: voters.Action, caught_up: str, disks: dict[str, str]
) -> list[MetadataRecord]:
    return voters.change_voters(
        state, node=node, action=action, disks=DISKS | disks, caught_up=list(caught_up)
    )


@pytest.mark.parametrize(
    ("before", "node", "action", "caught_up", "disks", "then", "replacing"),
    [
        ("abc", "x", "add", "abcx", {}, "abcx", None),
        ("abc", "a", "add", "abc", {}, "abc", None),
        ("abc", "c", "remove", "ab", {}, "ab", None),
        ("abc", "x", "remove", "ab", {}, "abc", None),
        ("abc", "c", "replace", "ab", {"c": "new"}, "ab", "c"),
    ],
)
def test_a_change_of_voters(
    before: str, node: str, action: voters.Action, caught_up: str, disks: dict[str, str], then: str,
    replacing: str | None,
) -> None:  # fmt: skip
    state = state_of(before)
    records = apply(state, change(state, node, action, caught_up, disks))
    assert state.voters == {name: DISKS[name] for name in then}
    assert state.replacing == replacing
    assert bool(records) == (then != before)


@pytest.mark.parametrize(
    ("before", "node", "action", "caught_up", "disks", "error", "said"),
    [
        ("abc", "y", "add", "abc", {}, InvalidRequest, "no node 'y'; the voters are a, b, c"),
        ("abc", "x", "add", "abc", {}, NotReady, "x has not caught up"),
        ("abc", "d", "add", "abcd", {}, NotReady, "d has not caught up"),
        ("abc", "c", "add", "ab", {"c": "new"}, InvalidRequest, "another disk: replace"),
        ("a", "a", "remove", "a", {}, InvalidRequest, "the only voter"),
        ("a", "a", "replace", "", {"a": "new"}, InvalidRequest, "the only voter"),
        ("abc", "c", "replace", "abc", {}, InvalidRequest, "nothing to replace"),
        ("abc", "x", "replace", "abc", {}, InvalidRequest, "no voter: add it"),
        ("abc", "b", "remove", "ab", {}, NotReady, "a, c there would be no majority .* c is not"),
        ("abc", "c", "replace", "a", {"c": "new"}, NotReady, "b is not"),
    ],
)
def test_changes_that_are_refused(
    before: str, node: str, action: voters.Action, caught_up: str, disks: dict[str, str],
    error: type[ZBrokerError], said: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=said):
        change(state_of(before), node, action, caught_up, disks)


def test_a_replacement_goes_on_once_the_new_disk_has_caught_up() -> None:
    state = state_of("abc")
    new = {"c": "new"}
    apply(state, change(state, "c", "replace", "ab", new))
    assert change(state, "c", "replace", "ab", new) == [], "once"
    with pytest.raises(InvalidRequest, match="c is being replaced"):
        change(state, "x", "add", "abx", new)
    assert voters.continue_voters(state, DISKS | new, ["a", "b"]) == []
    assert voters.continue_voters(state, {"a": "d1", "b": "d2"}, ["a", "b", "c"]) == []
    assert voters.continue_voters(state, DISKS | new, ["c"]) == [], "no majority"
    apply(state, voters.continue_voters(state, DISKS | new, ["a", "b", "c"]))
    assert state.voters == {"a": "d1", "b": "d2", "c": "new"}
    assert state.replacing is None
    assert voters.continue_voters(state, DISKS | new, ["a", "b", "c"]) == []


def test_a_replacement_is_given_up() -> None:
    state = state_of("ab", replacing="c")
    apply(state, change(state, "c", "remove", "ab", {}))
    assert (state.replacing, list(state.voters)) == (None, ["a", "b"])
    apply(state, change(state, "x", "add", "abx", {}))
    assert list(state.voters) == ["a", "b", "x"]


# Whole clusters ---


def formed(seed: int = 1, voters: int = 3, learners: int = 0) -> tuple[World, Node]:
    """A cluster whose log names its voters, and its controller."""
    world = World(seed, voters, learners)
    world.run(4 * TIMEOUT)
    assert world.controller is not None
    assert world.propose(world.controller)
    world.run(500)
    return world, world.controller


def others(world: World, node: Node) -> list[Node]:
    return [each for each in world.nodes.values() if each is not node]


def cut_off(world: World, away: Sequence[Node]) -> None:
    """Two parts, each connected within."""
    names = {node.name for node in away}
    for one in world.names:
        for two in world.names:
            if (one in names) != (two in names):
                world.network.cut.add((one, two))


def test_an_empty_disk_under_a_voters_name_elects_nobody() -> None:
    """A disk that forgot its vote could elect a second leader of an epoch, and one that forgot records lose them."""
    world, leader = formed()
    one, two = others(world, leader)
    world.lose_disk(two)
    two.start()
    world.run(2 * TIMEOUT)
    assert two.partition.applied == leader.partition.applied, "it learns"
    cut_off(world, [leader])
    world.run(20 * TIMEOUT)
    assert world.controller is None
    assert one.partition.election is not None
    led = [start for name, start in world.leaders.values() if name == two.name]
    assert two.incarnation not in led, "it does not even stand"
    world.heal()
    world.check_healed()


def test_an_empty_disk_gives_no_vote_and_its_vote_does_not_count() -> None:
    world, leader = formed()
    one, two = others(world, leader)
    world.lose_disk(two)
    two.start()
    world.run(2 * TIMEOUT)
    leader.stop(power=False)
    epoch = leader.partition.replica.epoch
    while world.step():
        pass
    election = one.partition.election
    assert election is not None
    world.notice_gone(leader.name)
    world.tick(50)
    assert election.state == "prospect"
    asked = [
        item for link, queue in world.network.links.items() for item in queue if link[1] == two.name
    ]
    assert not any(isinstance(message, VoteRequest) for _, _, message, _ in asked)
    one.partition.on_vote(two.name, Vote(epoch=epoch + 1, granted=True, pre=True), world.now)
    assert election.state == "prospect"
    request = VoteRequest(epoch=epoch + 5, last_epoch=99, end=10_000)
    two.partition.on_vote_request(one.name, request, world.now + 10 * TIMEOUT)
    two.storage.run_all()
    said = [message for _, _, message, _ in world.network.links.get((two.name, one.name), ())]
    assert not any(isinstance(message, Vote) for message in said)


def test_an_empty_disk_under_a_voters_name_commits_nothing() -> None:
    world, leader = formed()
    one, two = others(world, leader)
    world.lose_disk(two)
    two.start()
    world.run(2 * TIMEOUT)
    cut_off(world, [one])
    assert world.propose(leader)
    committed = leader.partition.committed
    world.run(TIMEOUT // 2)
    assert leader.partition.committed == committed
    assert two.partition.replica.log.end_offset > committed, "it is sent everything all the same"
    world.run(2 * TIMEOUT)
    assert not leader.partition.ready, "and it is no reason to go on leading"


def test_a_node_without_a_vote_counts_for_nothing() -> None:
    world, leader = formed(learners=2)
    voters = [node for node in others(world, leader) if node.name in world.first_voters]
    cut_off(world, voters)
    assert world.propose(leader)
    committed = leader.partition.committed
    world.run(TIMEOUT // 2)
    assert leader.partition.committed == committed
    world.run(2 * TIMEOUT)
    assert not leader.partition.ready
    assert world.controller in voters


def test_a_voter_is_replaced() -> None:
    world, leader = formed()
    one, two = others(world, leader)
    world.lose_disk(two)
    two.start()
    world.run(TIMEOUT)
    assert world.change_voters(two.name, "replace")
    world.run(2 * TIMEOUT)
    for node in world.nodes.values():
        assert node.partition.metadata.voters[two.name] == two.disk_id
        assert node.partition.metadata.replacing is None
    one.stop(power=True)
    world.run(4 * TIMEOUT)
    assert world.controller is not None, "the new disk makes a majority"
    assert world.propose(world.controller)
    world.run(500)
    assert world.acknowledged == {0, 1}


def test_a_replacement_that_was_interrupted_is_gone_on_with_by_the_next_leader() -> None:
    world, leader = formed(voters=5)
    two = others(world, leader)[0]
    world.lose_disk(two)
    world.run(TIMEOUT)
    assert world.change_voters(two.name, "replace")
    world.run(500)
    assert leader.partition.metadata.replacing == two.name
    assert two.name not in leader.partition.metadata.voters
    leader.stop(power=True)
    two.start()
    world.run(6 * TIMEOUT)
    assert world.controller is not None
    assert world.controller.partition.metadata.voters[two.name] == two.disk_id
    world.heal()
    world.check_healed()


def test_a_node_is_added_and_another_removed() -> None:
    world, leader = formed(learners=1)
    assert world.change_voters("v3", "add")
    world.run(500)
    gone = next(node for node in others(world, leader) if node.name != "v3")
    assert world.change_voters(gone.name, "remove")
    world.run(500)
    left = {node.name for node in world.nodes.values()} - {gone.name}
    assert {*leader.partition.metadata.voters} == left
    epoch = leader.partition.replica.epoch
    world.run(20 * TIMEOUT)
    assert leader.partition.replica.epoch == epoch, "who has no vote any more disturbs nobody"
    world.check_healed()


def test_one_change_at_a_time() -> None:
    world, leader = formed(learners=2)
    cut_off(world, [leader])
    partition = leader.partition
    assert partition.draft is not None
    voters = dict(partition.draft.voters)
    first = VotersChanged({**voters, "v3": world.nodes["v3"].disk_id})
    partition.propose([first], lambda _: None, world.now)
    assert partition.caught_up == []
    second = VotersChanged({**first.voters, "v4": world.nodes["v4"].disk_id})
    with pytest.raises(NotReady, match="not committed yet"):
        partition.propose([second], lambda _: None, world.now)
    assert dict(partition.draft.voters) == first.voters


def test_voters_change_by_one_only() -> None:
    world, leader = formed(learners=2)
    partition = leader.partition
    assert partition.draft is not None
    more = {name: world.nodes[name].disk_id for name in ("v3", "v4")}
    with pytest.raises(AssertionError, match="one at a time"):
        partition.propose([VotersChanged({**partition.draft.voters, **more})], lambda _: None, 0)


def test_who_votes_is_what_the_log_says_committed_or_not() -> None:
    world, leader = formed(learners=1)
    one, two = [node for node in others(world, leader) if node.name != "v3"]
    cut_off(world, [leader, one])
    before = dict(leader.partition.voters)
    one.frozen = True
    assert world.change_voters("v3", "add")
    assert "v3" in leader.partition.voters, "at append"
    one.frozen = False
    while world.step():
        pass
    assert "v3" in one.partition.voters
    assert "v3" not in one.partition.metadata.voters, (
        "it is not committed: three of four are needed"
    )
    one.stop(power=False)
    one.start()
    while world.step():
        pass
    assert "v3" in one.partition.voters, "after a restart, before it takes part in anything"
    leader.stop(power=False)
    one.stop(power=False)
    assert dict(two.partition.voters) == before


def test_a_change_that_is_cut_from_the_log_is_no_more_in_force() -> None:
    world, leader = formed(seed=4, learners=1)
    before = dict(leader.partition.voters)
    cut_off(world, [leader])
    assert world.change_voters("v3", "add")
    assert "v3" in leader.partition.voters
    world.run(4 * TIMEOUT)
    assert world.controller is not None
    assert world.controller is not leader
    assert world.propose(world.controller)
    world.run(500)
    world.network.cut.clear()
    world.run(2 * TIMEOUT)
    assert dict(leader.partition.voters) == before
    world.check_healed()


@pytest.mark.parametrize("seed", range(5))
def test_a_leader_that_is_removed_leads_until_that_is_committed(seed: int) -> None:
    world, leader = formed(seed, voters=4)
    epoch = leader.partition.replica.epoch
    assert world.change_voters(leader.name, "remove")
    assert leader.partition.state == "leading"
    world.run(200, step_ms=10)
    assert world.controller not in (None, leader), "the next one was asked to stand"
    assert leader.name not in leader.partition.metadata.voters
    world.run(10 * TIMEOUT)
    assert leader.partition.election is not None
    assert leader.partition.election.due is None, "it never stands again"
    assert leader.partition.replica.epoch == epoch + 1
    world.check_healed()


def test_a_voter_that_does_not_know_yet_that_it_is_one_votes() -> None:
    """Two voters become three, and the leader dies with the change on its own disk and the new voter's alone."""
    world, leader = formed(voters=2, learners=1)
    (one,) = [node for node in others(world, leader) if node.name != "v2"]
    new = world.nodes["v2"]
    cut_off(world, [one])
    assert world.change_voters("v2", "add")
    world.run(200)
    assert "v2" in leader.partition.metadata.voters, "two of three"
    assert "v2" not in one.partition.voters
    leader.stop(power=True)
    world.network.cut.clear()
    world.run(6 * TIMEOUT)
    assert world.controller is new
