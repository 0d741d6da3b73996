"""The test kit itself: clusters of real processes, which are killed, frozen and restarted, and none is left."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from processes import gone

from zbroker import Consumer, Producer
from zbroker.testing.nodes import ClusterProcesses, NodeProcess, free_ports, running_node, wait_for

pytestmark = pytest.mark.slow

NAMES = ["node1", "node2", "node3"]


def pids(cluster: ClusterProcesses) -> list[int]:
    return [node.pid for node in cluster.nodes.values() if node.running]


def test_a_leader_is_killed_and_comes_back(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path) as cluster:
        assert list(cluster.nodes) == NAMES
        assert cluster.controller() in NAMES
        cluster.admin.create_topic("sales", partitions=3)
        cluster.wait_until_healed()
        leader = cluster.leader_of("sales", 1)
        assert leader in NAMES
        with Producer(cluster.servers) as producer:
            producer.send("sales", b"before", partition=1).result(20)
            cluster.kill(leader)
            assert not cluster.nodes[leader].running
            wait_for(
                lambda: cluster.leader_of("sales", 1) not in (leader, None), 20, "a new leader"
            )
            producer.send("sales", b"after", partition=1).result(20)
        with pytest.raises(TimeoutError, match=f"{leader} is not up"):
            cluster.wait_until_healed(0.1)
        cluster.restart(leader)
        cluster.wait_until_healed()
        with Consumer(cluster.servers, "sales", start="earliest", until_end=True) as consumer:
            assert [record.value for record in consumer] == [b"before", b"after"]
        ended = pids(cluster)
        assert len(ended) == 3
    assert gone(ended)


def test_a_frozen_leader_is_replaced_and_thaws(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path, session_timeout="600ms") as cluster:
        cluster.admin.create_topic("sales")
        cluster.wait_until_healed()
        leader = cluster.leader_of("sales")
        assert leader is not None
        cluster.freeze(leader)
        assert cluster.nodes[leader].running
        wait_for(lambda: cluster.leader_of("sales") not in (leader, None), 20, "a new leader")
        cluster.thaw(leader)
        cluster.wait_until_healed()
        cluster.freeze(leader)  # and is ended all the same


def test_nodes_stop_in_order_one_after_another(tmp_path: Path) -> None:
    with ClusterProcesses(
        tmp_path, topics={"partitions": 4}, racks={"node2": "shelf-b"}
    ) as cluster:
        cluster.admin.create_topic("sales")
        cluster.wait_until_healed()
        for name in NAMES:
            assert cluster.stop(name) == 0
            cluster.restart(name)
            cluster.wait_until_healed()
        assert [node.rack for node in cluster.admin.cluster().nodes if node.name == "node2"] == [
            "shelf-b"
        ]


def test_a_test_that_fails_leaves_no_process(tmp_path: Path) -> None:
    seen: list[int] = []

    def failing() -> None:
        with ClusterProcesses(tmp_path / "cluster", 2) as cluster:
            seen.extend(pids(cluster))
            cluster.freeze("node1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert len(seen) == 2
    assert gone(seen)


def test_nodes_of_a_test_run_that_is_killed_end(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from zbroker.testing.nodes import ClusterProcesses, wait_for
        with ClusterProcesses(Path({str(tmp_path / "cluster")!r}), 2) as cluster:
            print(*[node.pid for node in cluster.nodes.values()], flush=True)
            wait_for(lambda: False, 600)
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )  # fmt: skip
    assert run.stdout is not None
    left = [int(pid) for pid in run.stdout.readline().split()]
    run.kill()
    run.communicate()
    assert len(left) == 2
    wait_for(lambda: gone(left), 40, "the nodes to end")


def test_a_cluster_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    cluster = ClusterProcesses(tmp_path, 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", cluster.nodes["node2"].port))
        taken.listen()
        with pytest.raises(RuntimeError, match=r"(?s)node2 ended: .*in use"):
            cluster.start()
    assert pids(cluster) == []


def test_a_lone_node_is_frozen_and_said_so(tmp_path: Path) -> None:
    with running_node(tmp_path, name="alone") as node:
        assert node.config.name == "alone.yaml"
        node.freeze()
        with socket.create_connection(("127.0.0.1", node.port), timeout=5) as peer:
            peer.settimeout(0.2)
            with pytest.raises(TimeoutError):
                peer.recv(1)
        node.thaw()
        assert "is serving" in node.said()
        assert node.stop() == 0
        node.start()
        assert node.said().count("is serving") == 1
        pid = node.pid
    assert gone([pid])


def test_a_node_that_cannot_start_says_why(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path, limits={"frame": "1KiB"})
    with pytest.raises(RuntimeError, match=r"(?s)node1 ended: .*1KiB"):
        node.start()
    node.kill()


def test_the_fixtures(tmp_path: Path) -> None:
    """In a run of pytest of their own, with warnings as errors, as a user's tests would have them."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["zbroker.testing.pytest_plugin"]\n')
    (tmp_path / "test_mine.py").write_text(
        textwrap.dedent(
            """
            import pytest
            from zbroker import Admin, Producer

            def test_one(zbroker_node):
                with Admin(zbroker_node.servers) as admin:
                    admin.create_topic("sales")
                with Producer(zbroker_node.servers) as producer:
                    assert producer.send("sales", b"x").result(10).offset == 0

            def test_three(zbroker_cluster):
                assert len(zbroker_cluster.admin.cluster().nodes) == 3

            @pytest.mark.parametrize("zbroker_cluster", [{"nodes": 2}], indirect=True)
            def test_two(zbroker_cluster):
                assert list(zbroker_cluster.nodes) == ["node1", "node2"]
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_without_asking_pytest_does_not_load_the_package(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\ndef test(): assert not [name for name in sys.modules if name.startswith('zbroker')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_ports_are_chosen_once_by_whichever_process() -> None:
    ours = free_ports(400)
    code = (
        "from zbroker.testing.nodes import free_ports; print(*[free_ports(20) for _ in range(50)])"
    )
    others = [
        int(base)
        for base in subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    ]
    assert len(others) == 50
    taken = [(ours, 400), *((base, 20) for base in others)]
    for (one, length), (other, width) in itertools.combinations(taken, 2):
        assert one + length <= other or other + width <= one


def test_a_signal_reaches_the_node(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.send_signal(signal.SIGTERM)
        wait_for(lambda: not node.running, 20, "the node to stop")
