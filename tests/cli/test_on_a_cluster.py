"""The commands for a cluster, on a real one of three nodes, and what its data folders look like afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zbroker import Consumer, Producer
from zbroker.testing.nodes import ClusterProcesses, wait_for

pytestmark = pytest.mark.slow

NAMES = ["node1", "node2", "node3"]


def run(cluster: ClusterProcesses, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zbroker", *arguments],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "ZBROKER_SERVERS": cluster.servers},
    )  # fmt: skip


def well(cluster: ClusterProcesses, *arguments: str) -> str:
    done = run(cluster, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    with ClusterProcesses(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def test_status_names_nodes_voters_and_controller(cluster: ClusterProcesses) -> None:
    text = well(cluster, "cluster", "status")
    assert "nodes             3 of 3 up\n" in text
    assert "voters            node1, node2, node3\n" in text
    controller = re.search(r"^controller +(node\d)$", text, re.MULTILINE)
    assert controller is not None
    assert re.search(rf"^{controller[1]} +controller ", text, re.MULTILINE)


def test_a_node_is_drained_and_leads_again(cluster: ClusterProcesses) -> None:
    well(cluster, "topic", "create", "drained", "--partitions", "6")
    cluster.wait_until_healed()
    assert "drained node2: it leads nothing" in well(cluster, "cluster", "drain", "node2")
    found = json.loads(well(cluster, "topic", "describe", "drained", "--json"))
    assert "node2" not in {part["leader"] for part in found["partitions"]}
    assert all("node2" in part["isr"] for part in found["partitions"])
    assert re.search(r"^node2 .* up, drained ", well(cluster, "cluster", "status"), re.MULTILINE)
    well(cluster, "cluster", "drain", "node2", "--undo")
    wait_for(
        lambda: "node2" in {part.leader for part in cluster.admin.describe_topic("drained").partitions},
        20, "node2 to lead again",
    )  # fmt: skip
    said = run(cluster, "cluster", "drain", "node9")
    assert said.returncode == 1
    assert "'node9'" in said.stderr


def test_a_partition_moves_while_it_is_written(cluster: ClusterProcesses) -> None:
    well(cluster, "topic", "create", "moved", "--replicas", "2")
    before = cluster.admin.describe_topic("moved").partitions[0].replicas
    (new,) = set(NAMES) - set(before)
    to = [new, before[1]]
    with Producer(cluster.servers) as producer:
        producer.send_many("moved", [b"%d" % number for number in range(1000)]).result(20)
        said = well(
            cluster, "topic", "move", "moved", "--partition", "0", "--to", ",".join(to), "--wait"
        )
        producer.send_many("moved", [b"%d" % number for number in range(1000, 2000)]).result(20)
    assert "partition 0 of moved has moved" in said
    found = cluster.admin.describe_topic("moved").partitions[0]
    assert list(found.replicas) == to
    assert set(found.isr) == set(to)
    with Consumer(cluster.servers, "moved", start="earliest", until_end=True) as consumer:
        assert [int(record.value) for record in consumer] == list(range(2000))
    assert "nothing to move" in well(
        cluster, "topic", "move", "moved", "--partition", "0", "--to", ",".join(to)
    )
    refused = run(cluster, "topic", "move", "moved", "--partition", "0", "--to", "node1")
    assert refused.returncode == 1
    assert "replicas" in refused.stderr


def test_who_is_missing_is_named(cluster: ClusterProcesses) -> None:
    well(cluster, "topic", "create", "lacking")
    cluster.wait_until_healed()
    leader = cluster.leader_of("lacking")
    other = next(name for name in NAMES if name != leader)
    cluster.kill(other)
    wait_for(lambda: other in cluster.admin.describe_topic("lacking").partitions[0].missing, 20)
    text = well(cluster, "cluster", "status")
    assert f"nodes             2 of 3 up; down: {other}\n" in text
    assert re.search(rf"^lacking/0 +{leader} .* {other} +under-replicated$", text, re.MULTILINE)
    text = well(cluster, "topic", "describe", "lacking")
    assert "1 partition under-replicated" in text
    assert text.rstrip().endswith(other)
    cluster.restart(other)
    cluster.wait_until_healed()
    assert "under-replicated  0 partitions\n" in well(cluster, "cluster", "status")


def test_a_voter_is_replaced_and_voters_change(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path, 4) as cluster:
        cluster.admin.create_topic("sales", partitions=4)
        cluster.wait_until_healed()
        with Producer(cluster.servers) as producer:
            producer.send_many("sales", [b"%d" % number for number in range(1000)]).result(20)

        def voters() -> list[str]:
            return [node.name for node in cluster.admin.cluster().nodes if node.voter]

        assert voters() == ["node1", "node2", "node3"]
        lost = cluster.nodes["node2"]
        lost.kill()
        shutil.rmtree(lost.data)
        lost.spawn()
        wait_for(lambda: "`zbroker cluster replace-voter node2`" in lost.said(), 20, "it to wait")
        assert "node2 votes" in well(cluster, "cluster", "replace-voter", "node2")
        lost.wait_until_serving()
        cluster.wait_until_healed()
        wait_for(lambda: voters() == ["node1", "node2", "node3"], 20, "it to vote again")

        assert "node4 votes; voters are node1, node2, node3, node4" in well(
            cluster, "cluster", "add-voter", "node4"
        )
        said = well(cluster, "cluster", "remove-voter", "node1")
        assert "node1 votes no more; voters are node2, node3, node4" in said
        wait_for(lambda: voters() == ["node2", "node3", "node4"], 20, "node1 to be none")
        cluster.kill("node1")
        wait_for(cluster.controller, 20, "a controller")
        with Consumer(cluster.servers, "sales", start="earliest", until_end=True) as consumer:
            assert len(list(consumer)) == 1000
        cluster.restart("node1")
        cluster.wait_until_healed()


def test_all_replicas_are_equal_when_all_have_stopped(tmp_path: Path) -> None:
    """Through a kill, a frozen leader and a restart of all."""
    with ClusterProcesses(tmp_path) as cluster:
        cluster.admin.create_topic("sales", partitions=3)
        cluster.wait_until_healed()
        with Producer(cluster.servers) as producer:
            for step in range(4):
                values = [b"%d/%d" % (step, number) for number in range(500)]
                deliveries = producer.send_many("sales", values)
                leader = cluster.leader_of("sales", step % 3)
                if step == 1 and leader is not None:
                    cluster.kill(leader)
                elif step == 2 and leader is not None:
                    cluster.freeze(leader)
                deliveries.result(60)
                for node in cluster.nodes.values():
                    if node.running:
                        node.thaw()
                cluster.start()
                cluster.wait_until_healed()
        folders = [str(node.data) for node in cluster.nodes.values()]
        for name in NAMES:
            assert cluster.stop(name) == 0
    done = subprocess.run(
        [sys.executable, "-m", "zbroker", "log", "verify", *folders],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(3):
        assert len(re.findall(rf"^sales/{number}: equal: ", done.stdout, re.MULTILINE)) == 3
