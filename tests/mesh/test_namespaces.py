"""Nodes and clients on machines of their own: cables are pulled, cut in one direction or both, slow and lossy.

Whatever happens to the network, the history is clean and everything acknowledged is read once it is mended.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from mesh.recording import Workload

from zbroker.testing.lan import Lan, LanCluster, why_not
from zbroker.testing.nodes import wait_for

pytestmark = pytest.mark.slow

NODES = ("node1", "node2", "node3")
CLIENTS = ("client1", "client2")
REPLACED_WITHIN = 6.0
"""Seconds, at default settings, from a pulled cable to the first record that another leader acknowledged.

A busy machine's: it tells a missed heartbeat from the system's own time limits. `bench/failover.py` measures.
"""

STILL_COMING = 0.5
"""Seconds for which a leader may acknowledge what its followers had before they were cut off."""


@pytest.fixture(scope="module", autouse=True)
def _permitted() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def lan() -> Iterator[Lan]:
    """Five machines. The test itself is on the first client's."""
    with Lan([*NODES, *CLIENTS]) as lan, lan.inside("client1"):
        yield lan


@pytest.fixture
def cluster(lan: Lan, tmp_path: Path) -> Iterator[LanCluster]:
    """Three nodes with everything at its default, and topics whose leaders are spread over them."""
    with LanCluster(tmp_path, lan, NODES, log_format="json") as cluster:
        cluster.wait_until_healed()
        yield cluster


def topic_led_by_controller(cluster: LanCluster, wanted: bool) -> str:
    """A topic of one partition whose leader is the controller, or is not."""
    for number in range(2 * len(NODES)):
        topic = f"t{number}"
        cluster.admin.create_topic(topic, partitions=1)
        cluster.wait_until_healed()
        if (cluster.leader_of(topic) == cluster.controller()) is wanted:
            return topic
    raise AssertionError("no such leader was appointed")


def working(lan: Lan, cluster: LanCluster, topic: str) -> Workload:
    """A producer and a consumer on each client's machine, all at work."""
    work = Workload(cluster.servers, topic, partitions=1, producers=0, consumers=0)
    for client in CLIENTS:
        with lan.inside(client):
            work.add(producers=1, consumers=1)
    work.wait_for_more(10)
    return work


def appointed(cluster: LanCluster) -> int:
    """How often a node became the controller, as the nodes' own logs say."""
    return sum(
        node.log.read_text(encoding="utf-8").count('"controller"')
        for node in cluster.nodes.values()
    )


def judge(lan: Lan, cluster: LanCluster, work: Workload) -> None:
    """The network is mended, the cluster heals, and the history is clean."""
    lan.mend()
    cluster.wait_until_healed()
    work.wait_for_more()
    work.check()
    assert work.not_acknowledged() == []


@pytest.mark.parametrize("controls", [False, True], ids=["leader", "leader-and-controller"])
def test_an_isolated_leader_is_replaced(lan: Lan, cluster: LanCluster, controls: bool) -> None:
    topic = topic_led_by_controller(cluster, controls)
    leader = cluster.leader_of(topic)
    assert leader is not None
    with working(lan, cluster, topic) as work:
        pulled = monotonic()
        lan.unplug(leader)
        work.wait_for_more(20, timeout=20)
        gap = work.gap_since(pulled)
        assert gap.seconds < REPLACED_WITHIN
        judge(lan, cluster, work)


def test_an_isolated_controller_is_replaced(lan: Lan, cluster: LanCluster) -> None:
    topic = topic_led_by_controller(cluster, False)
    controller = cluster.controller()
    assert controller is not None
    with working(lan, cluster, topic) as work:
        pulled = monotonic()
        before = appointed(cluster)
        lan.unplug(controller)
        wait_for(lambda: appointed(cluster) > before, 20, "another controller")
        assert monotonic() - pulled < REPLACED_WITHIN
        judge(lan, cluster, work)


def test_halves(lan: Lan, cluster: LanCluster) -> None:
    """The leader is alone with one client: it acknowledges nothing there, while the other half goes on."""
    topic = topic_led_by_controller(cluster, True)
    leader = cluster.leader_of(topic)
    assert leader is not None
    others = [name for name in NODES if name != leader]
    with working(lan, cluster, topic) as work:
        cut = monotonic()
        lan.cut([leader, "client2"], [*others, "client1"])
        here = work.producer_names[0]
        work.wait_for_more(100, of=[here])
        assert work.acknowledged(since=cut + STILL_COMING, of=work.producer_names[1]) == 0
        judge(lan, cluster, work)


def test_two_that_do_not_hear_each_other_and_one_that_hears_both(
    lan: Lan, cluster: LanCluster
) -> None:
    """The controller and one follower are cut off from each other: the follower does not depose it again and again."""
    topic = topic_led_by_controller(cluster, True)
    controller = cluster.controller()
    assert controller is not None
    other = next(name for name in NODES if name != controller)
    with working(lan, cluster, topic) as work:
        before = appointed(cluster)
        lan.cut([controller], [other])
        wait_for(lambda: "node_fenced" in cluster.nodes[controller].said(), 20, "a session to end")
        work.wait_for_more(300)  # at 100 a second: for several sessions
        assert appointed(cluster) - before <= 1
        judge(lan, cluster, work)


@pytest.mark.parametrize("deaf", ["leader", "follower"])
def test_loss_in_one_direction(lan: Lan, cluster: LanCluster, deaf: str) -> None:
    """What the leader sends to others is lost, or what they send to it; clients hear everybody."""
    topic = topic_led_by_controller(cluster, False)
    leader = cluster.leader_of(topic)
    assert leader is not None
    with working(lan, cluster, topic) as work:
        before = appointed(cluster)
        for other in NODES:
            if other != leader:
                lan.lose(*((other, leader) if deaf == "leader" else (leader, other)))
        work.wait_for_more(200, timeout=30)
        assert appointed(cluster) == before, "the leader was not the controller"
        judge(lan, cluster, work)


def test_a_slow_and_lossy_network(lan: Lan, cluster: LanCluster) -> None:
    """50 ms of delay each way and 5 % of loss at every node: slower, and nothing else."""
    topic = topic_led_by_controller(cluster, False)
    with working(lan, cluster, topic) as work:
        before = appointed(cluster)
        for name in NODES:
            lan.slow_down(name, 0.05, 0.05)
        work.wait_for_more(200, timeout=60)
        assert appointed(cluster) - before <= 1, "a lost heartbeat is no death"
        judge(lan, cluster, work)
