"""Decisions about nodes: by table, and by a state machine in which anything happens in any order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cluster.states import apply, nodes, register, set_isr, shown, topic
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zbroker.cluster import controller, membership, moves, recovery
from zbroker.cluster.metadata import Metadata, PartitionState
from zbroker.cluster.records import (
    FEATURE_LEVEL,
    IsrConfirmed,
    LeaderAppointed,
    LeaderRecovered,
    LogReported,
    MetadataRecord,
)
from zbroker.errors import InvalidRequest, NotLeader, StaleEpoch, ZBrokerError
from zbroker.topics import Fsync


def partition_of(
    replicas: str, leader: str | None, isr: str, *, fsync: Fsync = "always"
) -> Metadata:
    """One partition on nodes a, b, c; epoch 1."""
    state = nodes("abc")
    topic(state, replicas, fsync=fsync)
    set_isr(state, leader, isr)
    return state


# A node's end ---


@pytest.mark.parametrize(
    ("leader", "isr", "dead", "then"),
    [
        ("a", "abc", "a", ("b", "bc")),
        ("a", "abc", "b", ("a", "ac")),
        ("a", "ac", "a", ("c", "c")),
        ("a", "a", "a", (None, "a")),
        ("a", "a", "b", ("a", "a")),
    ],
)
def test_a_node_dies(leader: str, isr: str, dead: str, then: tuple[str | None, str]) -> None:
    state = partition_of("abc", leader, isr)
    apply(state, membership.fence_node(state, dead, "gone"))
    (partition,) = state.topics["t"].partitions
    assert shown(partition) == then
    assert partition.epoch == (2 if leader == dead else 1)
    assert not state.is_up(dead)
    assert membership.fence_node(state, dead, "gone") == [], "once"


def test_a_fail_over_leads_by_whom_is_up() -> None:
    state = partition_of("abc", "a", "abc")
    for node in "ba":
        apply(state, membership.fence_node(state, node, "silent"))
    assert shown(state.topics["t"].partitions[0]) == ("c", "c")
    apply(state, membership.fence_node(state, "c", "silent"))
    assert shown(state.topics["t"].partitions[0]) == (None, "c")
    register(state, "a", 2)
    register(state, "b", 2)
    assert shown(state.topics["t"].partitions[0]) == (None, "c"), "it alone has everything"
    register(state, "c", 2)
    assert shown(state.topics["t"].partitions[0]) == ("c", "c")


# A node's start ---


@pytest.mark.parametrize(
    ("leader", "isr", "fsync", "clean", "then", "epoch"),
    [
        ("b", "abc", "always", False, ("b", "abc"), 1),
        ("b", "abc", "interval", False, ("b", "bc"), 1),
        ("b", "abc", "interval", True, ("b", "abc"), 1),
        ("b", "abc", "never", False, ("b", "bc"), 1),
        ("b", "b", "never", False, ("b", "b"), 1),
        ("a", "abc", "always", False, ("b", "abc"), 2),
        ("a", "abc", "interval", False, ("b", "bc"), 2),
        ("a", "a", "always", False, ("a", "a"), 2),
        ("a", "a", "never", True, ("a", "a"), 2),
    ],
)
def test_a_node_starts_again(
    leader: str, isr: str, fsync: Fsync, clean: bool, then: tuple[str, str], epoch: int
) -> None:
    state = partition_of("abc", leader, isr, fsync=fsync)
    register(state, "a", 2, clean=clean)
    (partition,) = state.topics["t"].partitions
    assert (shown(partition), partition.epoch) == (then, epoch)


def test_the_same_start_twice_changes_nothing() -> None:
    state = partition_of("abc", "a", "abc", fsync="never")
    assert register(state, "a", 1) == []
    apply(state, membership.fence_node(state, "a", "silent"))
    apply(state, membership.fence_node(state, "b", "gone"))
    apply(state, membership.fence_node(state, "c", "gone"))
    assert register(state, "c", 1), "it was taken for dead, and lives"
    assert shown(state.topics["t"].partitions[0]) == ("c", "c")


def test_an_earlier_start_is_a_leftover() -> None:
    state = nodes("ab")
    register(state, "a", 7)
    with pytest.raises(InvalidRequest, match="leftover"):
        register(state, "a", 6)
    register(state, "a", 3, "another disk")
    register(state, "a", 8, "disk-a")
    assert state.nodes["a"].incarnation == 8


@pytest.mark.parametrize(
    ("leader", "isr", "then"),
    [
        ("b", "abc", ("b", "bc")),
        ("a", "abc", ("b", "bc")),
        ("b", "bc", ("b", "bc")),
        ("a", "a", (None, "a")),
    ],
)
def test_a_new_disk_is_in_sync_with_nothing(
    leader: str, isr: str, then: tuple[str | None, str]
) -> None:
    state = partition_of("abc", leader, isr)
    register(state, "a", 1, "new")
    (partition,) = state.topics["t"].partitions
    assert shown(partition) == then
    assert partition.disk == ("disk-a" if then[0] is None else None)


def test_what_only_a_lost_disk_has_waits_for_it() -> None:
    state = partition_of("abc", "a", "a")
    (partition,) = state.topics["t"].partitions
    for start, disk in ((5, "new"), (6, "new"), (2, "newer"), (7, "new")):
        register(state, "a", start, disk)
        assert (shown(partition), partition.disk) == ((None, "a"), "disk-a")
    register(state, "c", 2)
    assert shown(partition) == (None, "a"), "it is up, with nothing"
    apply(state, membership.fence_node(state, "a", "gone"))
    register(state, "b", 2)
    assert shown(partition) == (None, "a")
    register(state, "a", 2, "disk-a")
    assert (shown(partition), partition.disk) == (("a", "a"), None)


def test_a_new_disk_that_caught_up_counts_and_the_old_one_does_not() -> None:
    state = partition_of("abc", "b", "b")
    register(state, "a", 5, "new")
    set_isr(state, "b", "ab")
    apply(state, membership.fence_node(state, "b", "gone"))
    (partition,) = state.topics["t"].partitions
    assert shown(partition) == ("a", "a")
    register(state, "a", 9, "disk-a")
    assert (shown(partition), partition.disk) == ((None, "a"), "new")


# In-sync replicas ---


def propose(
    state: Metadata, isr: str, *, by: str = "a", epoch: int = 1, version: int = 2,
    starts: dict[str, int] | None = None, number: int = 0, topic_id: str = "t",
) -> list[MetadataRecord]:  # fmt: skip
    incarnations = {"a": 1, "b": 1, "c": 1} | (starts or {})
    return membership.change_isr(
        state, by, topic_id=topic_id, number=number, epoch=epoch, version=version, isr=list(isr),
        incarnations=incarnations,
    )  # fmt: skip


def test_an_isr_grows_and_shrinks() -> None:
    state = partition_of("abc", "a", "ab")
    (partition,) = state.topics["t"].partitions
    apply(state, propose(state, "cba"))
    assert (shown(partition), partition.version) == (("a", "abc"), 3)
    apply(state, propose(state, "a", version=3))
    assert (shown(partition), partition.version, partition.epoch) == (("a", "a"), 4, 1)


def test_a_proposal_that_was_accepted_is_accepted_again() -> None:
    state = partition_of("abc", "a", "ab")
    assert apply(state, propose(state, "abc"))
    assert propose(state, "abc") == []
    assert propose(state, "cab") == [], "in any order"
    with pytest.raises(StaleEpoch):
        propose(state, "a")
    assert apply(state, propose(state, "a", version=3))
    with pytest.raises(StaleEpoch):
        propose(state, "abc")
    assert propose(state, "a", version=4) == [], "it is so already"


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"by": "b"}, NotLeader, "a leads partition 0 of 't' under epoch 1, not b"),
        ({"epoch": 0}, NotLeader, "under 0"),
        ({"epoch": 2}, NotLeader, "under 2"),
        ({"version": 1}, StaleEpoch, "version 2, not 1"),
        ({"version": 3}, StaleEpoch, "version 2, not 3"),
        ({"number": 1}, NotLeader, "no partition 1"),
        ({"number": -1}, NotLeader, "no partition -1"),
        ({"topic_id": "u"}, NotLeader, "of topic u any more"),
        ({"isr": "bc"}, InvalidRequest, "cannot be in sync"),
        ({"isr": "abd"}, InvalidRequest, "cannot be in sync"),
        ({"isr": "", "version": 2}, InvalidRequest, "cannot be in sync"),
        ({"starts": {"c": 0}}, StaleEpoch, "not in the start"),
        ({"starts": {"c": 2}}, StaleEpoch, "not in the start"),
    ],
)
def test_proposals_that_are_refused(
    arguments: dict[str, object], error: type[ZBrokerError], said: str
) -> None:
    state = partition_of("abc", "a", "ab")
    with pytest.raises(error, match=said):
        propose(state, **{"isr": "abc", **arguments})  # type: ignore[arg-type]


def test_nobody_joins_who_is_down() -> None:
    state = partition_of("abc", "a", "ab")
    apply(state, membership.fence_node(state, "c", "silent"))
    with pytest.raises(StaleEpoch, match="c is not up"):
        propose(state, "abc")


# Other leaders ---


@pytest.mark.parametrize(
    ("isr", "down", "drained", "then"),
    [
        ("abc", "", "", "b"),
        ("abc", "", "b", "c"),
        ("abc", "", "bc", "b"),
        ("ac", "", "", "c"),
        ("a", "", "", "a"),
        ("ab", "b", "", "a"),
    ],
)
def test_a_leadership_is_handed_over(isr: str, down: str, drained: str, then: str) -> None:
    state = partition_of("abc", "a", isr)
    for node in down:
        apply(state, membership.fence_node(state, node, "gone"))
    for node in drained:
        apply(state, moves.drain_node(state, node, undo=False))
    (partition,) = state.topics["t"].partitions
    before = partition.epoch
    apply(state, membership.hand_over(state, "a"))
    assert partition.leader == then
    assert partition.epoch == before + (then != "a")
    assert membership.hand_over(state, "a") == [], "once"


def test_a_leader_that_cannot_go_on() -> None:
    state = partition_of("abc", "a", "abc")
    (partition,) = state.topics["t"].partitions
    assert membership.elect_anew(state, "a", topic_id="t", number=0, epoch=0) == [], "long over"
    assert membership.elect_anew(state, "a", topic_id="u", number=0, epoch=1) == []
    assert membership.elect_anew(state, "a", topic_id="t", number=1, epoch=1) == []
    assert membership.elect_anew(state, "b", topic_id="t", number=0, epoch=1) == [], "not b's"
    apply(state, membership.elect_anew(state, "a", topic_id="t", number=0, epoch=1))
    assert (shown(partition), partition.epoch) == (("b", "abc"), 2)
    set_isr(state, "a", "a")
    apply(state, membership.elect_anew(state, "a", topic_id="t", number=0, epoch=3))
    assert (shown(partition), partition.epoch) == (("a", "a"), 4), "nobody else can"


@pytest.mark.parametrize(
    ("leader", "isr", "drained", "then"),
    [
        ("b", "abc", "", "a"),
        ("b", "bc", "", "b"),
        ("a", "abc", "", "a"),
        ("b", "abc", "a", "b"),
        ("a", "abc", "a", "b"),
        ("a", "a", "a", "a"),
        ("a", "abc", "abc", "a"),
    ],
)
def test_the_first_replica_is_preferred(leader: str, isr: str, drained: str, then: str) -> None:
    state = partition_of("abc", leader, isr)
    for node in drained:
        state.drained[node] = None
    apply(state, membership.prefer(state))
    assert state.topics["t"].partitions[0].leader == then
    assert membership.prefer(state) == [], "once"


# Anything in any order ---

NODES = "abcde"
Decision = Callable[[], list[MetadataRecord]]


class AnythingHappens(RuleBasedStateMachine):
    """What must be true of partitions whatever nodes and people do."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Metadata()
        self.state.feature_level = FEATURE_LEVEL
        self.starts: dict[str, int] = {}
        self.disks: dict[str, str] = {}
        self.leaders: dict[tuple[str, int, int], str | None] = {}
        self.epochs: dict[tuple[str, int], int] = {}
        self.has: dict[tuple[str, int], set[tuple[str, str]]] = {}
        """Which disks have all that is committed, by (node, disk): what the metadata must never lose sight of."""
        self.lived: dict[tuple[str, int], set[tuple[str, str]]] = {}
        """Which disks were in sync when a leader last spoke, and those that joined since."""
        self.let_in: tuple[str, int] | None = None
        """The partition whose leader has just proposed an ISR: nobody else lets anybody in."""
        self.made = 0

    def decide(self, decision: Decision, *, of: tuple[str, int] | None = None) -> None:
        self.let_in = of
        try:
            records = decision()
        except ZBrokerError:
            return
        for record in records:
            if isinstance(record, LeaderRecovered):
                self.check_recovered(record)
            self.state.apply(record)
            if isinstance(record, IsrConfirmed):
                self.lived[record.topic_id, record.partition] = set(self.in_sync(record))
            if isinstance(record, LeaderAppointed | LeaderRecovered):
                key = (record.topic_id, record.partition, record.epoch)
                assert key not in self.leaders, "an epoch has one leader"
                self.leaders[key] = record.leader
        assert all(
            sorted(set(partition.isr)) == sorted(partition.isr)
            for _, partition in self.partitions()
        )

    def in_sync(self, record: IsrConfirmed | LeaderRecovered) -> list[tuple[str, str]]:
        partition = self.state.topics[record.topic_id].partitions[record.partition]
        return [(node, self.state.nodes[node].disk_id) for node in partition.isr]

    def check_recovered(self, record: LeaderRecovered) -> None:
        """Everyone whose disk may have most has said what it has, and nobody has more."""
        key = (record.topic_id, record.partition)
        state = self.state
        partition = state.topics[record.topic_id].partitions[record.partition]
        sizes = {}
        for node, disk in self.lived[key]:
            if node in partition.replicas and state.nodes[node].disk_id == disk:
                extent = partition.reports[node]
                assert extent.incarnation == state.nodes[node].incarnation, "of this very start"
                sizes[node] = (extent.last_epoch, extent.end)
        assert sizes[record.leader] == max(sizes.values())
        assert state.is_up(record.leader)
        self.has[key] = self.lived[key] = {(record.leader, state.nodes[record.leader].disk_id)}

    def partitions(self) -> list[tuple[tuple[str, int], PartitionState]]:
        return [
            ((topic_id, number), partition)
            for topic_id, topic in self.state.topics.items()
            for number, partition in enumerate(topic.partitions)
        ]

    def pick(self, data: st.DataObject) -> tuple[tuple[str, int], PartitionState]:
        return data.draw(st.sampled_from(self.partitions()))

    @initialize(count=st.integers(3, 5))
    def begin(self, count: int) -> None:
        for node in NODES[:count]:
            self.register(node, "same", True)

    @rule(
        node=st.sampled_from(NODES),
        disk=st.sampled_from(["same", "same", "same", "new", "first"]),
        clean=st.booleans(),
    )
    def register(self, node: str, disk: str, clean: bool) -> None:
        if node not in self.disks and disk != "same":
            return
        self.made += 1
        found = {"same": self.disks.get(node, f"{node}-0"), "new": f"{node}-{self.made}"}
        self.disks[node] = found.get(disk, f"{node}-0")
        self.starts[node] = self.made
        self.decide(
            lambda: membership.register_node(
                self.state, node, self.disks[node], self.made, "h", 1, None, clean=clean
            )
        )
        assert self.state.is_up(node)

    @rule(node=st.sampled_from(NODES), reason=st.sampled_from(["gone", "silent", "stopped"]))
    def fence(self, node: str, reason: membership.Reason) -> None:
        self.decide(lambda: membership.fence_node(self.state, node, reason))
        assert not self.state.is_up(node)

    @rule(node=st.sampled_from(NODES))
    def hand_over(self, node: str) -> None:
        self.decide(lambda: membership.hand_over(self.state, node))

    @rule(node=st.sampled_from(NODES), undo=st.booleans())
    def drain(self, node: str, undo: bool) -> None:
        self.decide(lambda: moves.drain_node(self.state, node, undo=undo))

    @rule()
    def prefer(self) -> None:
        self.decide(lambda: membership.prefer(self.state))

    @rule(
        partitions=st.integers(1, 3),
        replicas=st.integers(1, 3),
        fsync=st.sampled_from(["always", "never"]),
    )
    def create(self, partitions: int, replicas: int, fsync: str) -> None:
        self.made += 1
        name = f"t{self.made}"
        down = {node for node in self.state.nodes if not self.state.is_up(node)}
        self.decide(
            lambda: controller.create_topic(
                self.state, name=name, given={"partitions": partitions, "replicas": replicas, "fsync": fsync},
                defaults={}, topic_id=name, request_id="",
            )
        )  # fmt: skip
        for key, partition in self.partitions():
            if key[0] == name:
                assert not down & set(partition.replicas)
                self.has[key] = {(node, self.disks[node]) for node in partition.isr}
                self.lived[key] = set(self.has[key])

    @precondition(lambda self: self.state.topics)
    @rule(data=st.data())
    def change_isr(self, data: st.DataObject) -> None:
        (topic_id, number), partition = self.pick(data)
        wanted = data.draw(st.sets(st.sampled_from(partition.replicas), min_size=1))
        version = partition.version - data.draw(st.sampled_from([0, 0, 0, 1, 2]))
        self.decide(
            lambda: membership.change_isr(
                self.state, partition.leader or "a", topic_id=topic_id, number=number, epoch=partition.epoch,
                version=version, isr=sorted(wanted), incarnations=self.starts,
            ),
            of=(topic_id, number),
        )  # fmt: skip

    @precondition(lambda self: any(each.leader is None for _, each in self.partitions()))
    @rule(data=st.data(), end=st.integers(0, 3), finish=st.booleans())
    def report(self, data: st.DataObject, end: int, finish: bool) -> None:
        leaderless = [found for found in self.partitions() if found[1].leader is None]
        (topic_id, number), partition = data.draw(st.sampled_from(leaderless))
        node = data.draw(st.sampled_from(partition.replicas))
        start = self.starts[node] - data.draw(st.sampled_from([0, 0, 0, 1]))
        log = LogReported(topic_id, number, node, start, end, end % 2, end)
        self.decide(lambda: recovery.report_logs(self.state, node, start, [log]))
        if finish:
            self.decide(lambda: recovery.finish_recoveries(self.state))

    @precondition(lambda self: self.state.topics)
    @rule(data=st.data())
    def elect_anew(self, data: st.DataObject) -> None:
        (topic_id, number), partition = self.pick(data)
        self.decide(
            lambda: membership.elect_anew(
                self.state,
                partition.leader or "a",
                topic_id=topic_id,
                number=number,
                epoch=partition.epoch,
            )
        )

    @precondition(lambda self: self.state.topics)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        (topic_id, number), _ = self.pick(data)
        to = data.draw(st.lists(st.sampled_from(NODES), max_size=3, unique=True))
        one = data.draw(st.booleans())
        self.decide(
            lambda: moves.move_partitions(
                self.state, name=None, topic_id=topic_id, partition=number if one else None, to=to
            )
        )

    @rule()
    def finish_moves(self) -> None:
        self.decide(lambda: moves.finish_moves(self.state))
        for _, partition in self.partitions():
            if partition.target is not None and partition.leader is not None:
                assert not set(partition.target) <= set(partition.isr)

    @invariant()
    def holds(self) -> None:
        state = self.state
        for key, partition in self.partitions():
            assert partition.isr, key
            assert set(partition.isr) <= set(partition.replicas)
            assert len(set(partition.replicas)) == len(partition.replicas)
            assert partition.epoch >= self.epochs.get(key, 0)
            self.epochs[key] = partition.epoch
            if partition.recovering:
                assert partition.leader is None
                assert partition.isr == sorted(partition.last)
                assert state.topics[key[0]].settings.fsync != "always"
            elif partition.leader is None:
                for node in partition.isr:
                    here = None if not state.is_up(node) else state.nodes[node].disk_id
                    assert here is None or partition.disk not in (None, here), (key, partition)
            else:
                assert partition.disk is None
                assert partition.leader in partition.isr
                assert state.is_up(partition.leader)
            if partition.target is not None:
                assert set(partition.target) <= set(partition.replicas)
                assert len(partition.target) == state.topics[key[0]].settings.replicas
            else:
                assert len(partition.replicas) == state.topics[key[0]].settings.replicas
            self.follow(key, partition)

    def follow(self, key: tuple[str, int], partition: PartitionState) -> None:
        """Whoever is in sync has what was committed: it was in sync before, or a leader that has it let it in."""
        if partition.recovering:
            return
        disks = {node: self.state.nodes[node].disk_id for node in partition.isr}
        if partition.disk is not None:
            (node,) = partition.isr
            disks[node] = partition.disk
        now = set(disks.items())
        joined = now - self.has[key]
        assert not joined or key == self.let_in, f"{key}: {joined} may lack what was committed"
        self.has[key] = now
        self.lived[key] |= now
        self.lived[key] = {each for each in self.lived[key] if each[0] in partition.replicas}


AnythingHappens.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAnythingHappens = AnythingHappens.TestCase
