"""Three real nodes under fire: killed, frozen, stopped and started again while real clients record what they see.

Whatever happens, the history is clean, everything acknowledged is read, and the copies on the three disks are equal
byte for byte.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from time import monotonic

import pytest
from mesh.recording import Workload, working

from zbroker.testing.nodes import ClusterProcesses, wait_for

pytestmark = pytest.mark.slow

SESSION = 1.0
"""Seconds of silence after which a node is taken for dead, by default."""
CHASES = 4
ROLES = {
    "leader": (True, False),
    "controller": (False, True),
    "leader-and-controller": (True, True),
    "follower": (False, False),
}
"""Whether the victim leads the partition, and whether it is the controller."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterProcesses]:
    """Three nodes with everything at its default."""
    with ClusterProcesses(tmp_path) as cluster:
        cluster.wait_until_healed()
        yield cluster


def create(cluster: ClusterProcesses, name: str, partitions: int = 1) -> str:
    """A topic with a replica on each node, as it is by default."""
    made = cluster.admin.create_topic(name, partitions=partitions)
    assert made.settings["replicas"] == 3
    assert made.settings["min_insync"] == 2
    assert made.settings["fsync"] == "always"
    cluster.wait_until_healed()
    return name


def topic_led_by_controller(cluster: ClusterProcesses, wanted: bool) -> str:
    """A topic of one partition whose leader is the controller, or is not: of three topics each leads one."""
    for number in range(2 * len(cluster.nodes)):
        topic = create(cluster, f"t{number}")
        if (cluster.leader_of(topic) == cluster.controller()) is wanted:
            return topic
    raise AssertionError("no such leader was appointed")


def judge(cluster: ClusterProcesses, work: Workload) -> None:
    """The cluster heals, the history is clean, and after an orderly stop all copies are whole and equal."""
    cluster.wait_until_healed()
    work.check()
    partitions = cluster.admin.describe_topic(work.topic).partitions
    for name in cluster.nodes:
        assert cluster.stop(name) == 0
    folders = [str(node.data) for node in cluster.nodes.values()]
    done = subprocess.run(
        [sys.executable, "-m", "zbroker", "log", "verify", "--json", *folders],
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    compared = json.loads(done.stdout)["comparisons"]
    for part in partitions:
        log = f"{work.topic}/{part.partition}"
        ranges = [(pair["first"], pair["next"]) for pair in compared if pair["log"] == log]
        assert ranges == [(0, part.high_watermark)] * 3, log


@pytest.mark.parametrize("role", ROLES)
def test_a_killed_node_is_replaced_and_comes_back(cluster: ClusterProcesses, role: str) -> None:
    leads, controls = ROLES[role]
    topic = topic_led_by_controller(cluster, leads and controls)
    leader, controller = cluster.leader_of(topic), cluster.controller()
    (victim, *_) = (
        name for name in cluster.nodes if (name == leader, name == controller) == (leads, controls)
    )
    with working(cluster.servers, topic, partitions=1) as work:
        killed = monotonic()
        cluster.kill(victim)
        work.wait_for_more()
        assert work.gap_since(killed).seconds < SESSION, "it was seen dead, not waited for"
        assert cluster.leader_of(topic) not in (None, victim)
        wait_for(lambda: cluster.controller() not in (None, victim), 5, "another controller")
        cluster.restart(victim)
        cluster.wait_until_healed()
        work.wait_for_more()
        judge(cluster, work)
        assert work.not_acknowledged() == []


def test_kills_that_chase_the_leader(cluster: ClusterProcesses) -> None:
    topic = create(cluster, "t", partitions=2)
    with working(cluster.servers, topic, producers=3, partitions=2) as work:
        for _ in range(CHASES):
            leader = wait_for(lambda: cluster.leader_of(topic), 10, "a leader")
            cluster.kill(leader)
            work.wait_for_more(20)
            cluster.restart(leader)
            cluster.wait_until_healed()
        judge(cluster, work)
        assert work.not_acknowledged() == []


def test_the_leader_and_then_its_successor_are_killed(cluster: ClusterProcesses) -> None:
    """One node of three is left: it takes nothing, and loses nothing; with the others back all goes on."""
    topic = create(cluster, "t")
    with working(cluster.servers, topic, partitions=1) as work:
        first = cluster.leader_of(topic)
        assert first is not None
        cluster.kill(first)
        second = wait_for(
            lambda: (found := cluster.leader_of(topic)) != first and found, 10, "a successor"
        )
        work.wait_for_more(5)
        cluster.kill(second)
        cluster.nodes[first].spawn()
        cluster.nodes[second].spawn()
        cluster.start()
        work.wait_for_more()
        judge(cluster, work)
        assert work.not_acknowledged() == []


def test_all_nodes_are_killed_at_the_same_instant(cluster: ClusterProcesses) -> None:
    topic = create(cluster, "t", partitions=2)
    with working(cluster.servers, topic, partitions=2) as work:
        for _ in range(2):
            for node in cluster.nodes.values():
                node.freeze()  # none sees another one die
            for name in cluster.nodes:
                cluster.kill(name)
            cluster.start()
            work.wait_for_more()
            cluster.wait_until_healed()
        judge(cluster, work)
        assert work.not_acknowledged() == []


def test_a_leader_and_controller_frozen_for_less_than_a_session_stays(tmp_path: Path) -> None:
    """With a long session, so that a busy machine does not end it."""
    with ClusterProcesses(tmp_path, session_timeout="5s") as cluster:
        cluster.wait_until_healed()
        topic = topic_led_by_controller(cluster, True)
        leader = cluster.leader_of(topic)
        assert leader is not None
        epoch = cluster.admin.describe_topic(topic).partitions[0].epoch
        with working(cluster.servers, topic, partitions=1) as work:
            cluster.freeze(leader)
            thaw = Timer(1, cluster.thaw, [leader])
            thaw.start()
            thaw.join()
            work.wait_for_more()
            assert cluster.controller() == leader
            assert cluster.admin.describe_topic(topic).partitions[0].epoch == epoch
            judge(cluster, work)
            assert work.not_acknowledged() == []


@pytest.mark.parametrize("controls", [True, False], ids=["and-controller", "only"])
def test_a_leader_frozen_for_longer_than_a_session_is_replaced(
    cluster: ClusterProcesses, controls: bool
) -> None:
    """And once it goes on, it neither acknowledges nor serves what it may not."""
    topic = topic_led_by_controller(cluster, controls)
    leader = cluster.leader_of(topic)
    assert leader is not None
    with working(cluster.servers, topic, partitions=1) as work:
        frozen = monotonic()
        cluster.freeze(leader)
        work.wait_for_more(timeout=20)
        gap = work.gap_since(frozen)
        cluster.thaw(leader)
        cluster.wait_until_healed()
        work.wait_for_more()
        judge(cluster, work)
        assert work.not_acknowledged() == []
        assert SESSION / 2 < gap.seconds < 4 * SESSION


def test_a_rolling_restart_is_no_event_for_clients(cluster: ClusterProcesses) -> None:
    topic = create(cluster, "t", partitions=3)
    with working(cluster.servers, topic, partitions=3, interval=0.005) as work:
        for name in cluster.nodes:
            stopped = monotonic()
            assert cluster.stop(name) == 0
            cluster.restart(name)
            cluster.wait_until_healed()
            work.wait_for_more(20)
            gap = work.gap_since(stopped)
            assert gap.seconds < SESSION, f"{name} was stopped, and waited for: {gap}"
        judge(cluster, work)
        assert work.not_acknowledged() == []
