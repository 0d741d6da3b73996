"""`zbroker dev`: one node or a cluster of several, to try things out; what becomes of its processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import gone, is_there

from zbroker import Admin, Consumer, Producer
from zbroker.testing.nodes import free_ports, wait_for

pytestmark = pytest.mark.slow

SERVES = {1: "is serving", 2: "all 2 nodes serve", 3: "all 3 nodes serve"}
PROCESS = re.compile(r"zbroker: (node\d) is process (\d+); kill it")


class Dev:
    """A `zbroker dev` and what it says."""

    def __init__(self, folder: Path, nodes: int, *options: str, port: int | None = None) -> None:
        self.nodes = nodes
        self.port = port or free_ports(10 * nodes)
        self.data = folder / "data"
        self.log = folder / "dev.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "zbroker", "dev", "--nodes", str(nodes), "--port", str(self.port),
                    "--data", str(self.data), *options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def servers(self) -> str:
        return ",".join(f"127.0.0.1:{self.port + 10 * number}" for number in range(self.nodes))

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def pids(self) -> dict[str, int]:
        return {node: int(pid) for node, pid in PROCESS.findall(self.text)}

    def says(self, text: str) -> None:
        """Waits until it has said so."""

        def said() -> bool:
            return text in self.text or self.process.poll() is not None

        with contextlib.suppress(TimeoutError):
            wait_for(said, 40, text)
        assert text in self.text, self.text

    def ends(self, timeout: float = 30) -> int:
        return self.process.wait(timeout)


@contextlib.contextmanager
def dev(folder: Path, nodes: int, *options: str, port: int | None = None) -> Iterator[Dev]:
    running = Dev(folder, nodes, *options, port=port)
    try:
        yield running
    finally:
        pids = running.pids
        running.process.kill()
        running.process.wait()
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                if is_there(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_a_broker_of_so_many_nodes(tmp_path: Path, nodes: int) -> None:
    with dev(tmp_path, nodes) as running:
        running.says(SERVES[nodes])
        assert len(running.pids) == (0 if nodes == 1 else nodes)
        with Admin(running.servers) as admin:
            alive = {node.name for node in admin.cluster().nodes if node.alive}
            assert alive == {f"node{number}" for number in range(1, nodes + 1)}
            made = admin.create_topic("sales", partitions=nodes)
            assert {len(part.replicas) for part in made.partitions} == {nodes}
        with Producer(running.servers) as producer:
            producer.send_many("sales", [b"%d" % number for number in range(100)]).result(20)
        with Consumer(running.servers, "sales", start="earliest", until_end=True) as consumer:
            assert len(list(consumer)) == 100
        running.process.send_signal(signal.SIGTERM)
        assert running.ends() == 0
        wait_for(lambda: gone(running.pids.values()), 5, "the nodes to be gone")
        assert running.text.count("stopped: everything is on disk") == nodes
        assert all(
            (running.data / f"node{number}/node.json").exists() for number in range(1, nodes + 1)
        )


def test_a_node_that_is_killed_and_started_by_hand(tmp_path: Path) -> None:
    with dev(tmp_path, 2) as running:
        running.says(SERVES[2])
        os.kill(running.pids["node2"], signal.SIGKILL)
        again = f"zbroker run {running.data / 'node2.yaml'}"
        running.says(f"node2 was ended by SIGKILL; start it again with `{again}`")
        with (tmp_path / "by-hand.log").open("wb") as log:
            by_hand = subprocess.Popen(
                [sys.executable, "-m", *again.split()], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )  # fmt: skip
        try:
            wait_for(lambda: "is serving" in (tmp_path / "by-hand.log").read_text(), 30, "node2")
            assert running.process.poll() is None
            by_hand.send_signal(signal.SIGINT)
            assert by_hand.wait(30) == 0
        finally:
            by_hand.kill()
            by_hand.wait()
        running.process.send_signal(signal.SIGINT)
        assert running.ends() == 0


def test_nodes_do_not_outlive_their_parent(tmp_path: Path) -> None:
    with dev(tmp_path, 2) as running:
        running.says(SERVES[2])
        pids = running.pids
        running.process.kill()
        wait_for(lambda: gone(pids.values()), 20, "the nodes to be gone")
    for number in (1, 2):
        assert not (running.data / f"node{number}" / "lock").exists()  # they stopped in order


def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    with dev(tmp_path, 2) as running:
        running.says(SERVES[2])
        pids = running.pids
        os.kill(pids["node1"], signal.SIGSTOP)  # it would not stop in order
        running.process.send_signal(signal.SIGINT)
        running.says("stopping in order")
        running.process.send_signal(signal.SIGINT)
        assert running.ends(10) == 130
        wait_for(lambda: gone(pids.values()), 5, "the nodes to be gone")


def test_a_node_that_cannot_start_ends_all(tmp_path: Path) -> None:
    port = free_ports(20)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 10))
        taken.listen()
        with dev(tmp_path, 2, port=port) as running:
            assert running.ends() == 1
            assert re.search(r"node2 \| zbroker: error: .*in use", running.text), running.text
            assert "node2 ended with status 1" in running.text
            assert "not all nodes came to serve" in running.text
            assert gone(running.pids.values())


def test_json_lines_name_the_node(tmp_path: Path) -> None:
    with dev(tmp_path, 2, "--log-format", "json", "--log-level", "warning") as running:
        running.says(SERVES[2])
        os.kill(running.pids["node1"], signal.SIGTERM)
        running.says("node1 ended with status 0")
        assert '"level": "info"' not in running.text
    with dev(tmp_path, 2, "--log-format", "json") as running:
        running.says(SERVES[2])
        lines = [json.loads(line) for line in running.text.splitlines() if line.startswith("{")]
        assert {line["node"] for line in lines} == {"node1", "node2"}
        assert {"starting", "serving"} <= {line["event"] for line in lines}


def test_without_a_folder_nothing_is_left(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "zbroker", "dev", "--nodes", "2", "--port", str(free_ports(20))],
            stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    try:
        wait_for(lambda: SERVES[2] in (tmp_path / "log").read_text(), 40, "the nodes to serve")
        assert list(tmp_path.glob("zbroker-dev-*/node1.yaml"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not list(tmp_path.glob("zbroker-dev-*"))
    finally:
        process.kill()
        process.wait()
