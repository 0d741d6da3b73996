"""zbroker itself: nodes as processes, by the tools that it ships for tests."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zbroker
from bench.peers.base import FSYNC, Arena, Client, Servers, load_command
from bench.worker import ROOT
from zbroker import Admin, ZBrokerError
from zbroker.testing.nodes import ClusterProcesses

LOAD = load_command("zb", sys.executable)
ACTIONS = frozenset(
    {
        "live", "latency_produce", "latency_consume", "failover", "failover_read", "first",
        "again", "crowd", "produce_topics",
    }
)  # fmt: skip

PRODUCE = frozenset({"produce", "produce_producers", "produce_partitions", "produce_compressed"})


class ZBroker:
    """The driver."""

    name = "zbroker"
    title = "zbroker"
    warm_with: tuple[str, ...] = ()
    by_topic: frozenset[str] = frozenset(FSYNC)
    clients = (
        Client("send", LOAD, ACTIONS | PRODUCE, python=True, told={"client": "send"}),
        Client("send_many", LOAD, PRODUCE | {"live"}, python=True, told={"client": "send_many"}),
        Client(
            "AsyncProducer.send", LOAD, frozenset({"produce_async"}), python=True,
            told={"client": "AsyncProducer.send"},
        ),
        Client(
            "AsyncProducer.send_many", LOAD, frozenset({"produce_async"}), python=True,
            told={"client": "AsyncProducer.send_many"},
        ),
        Client("Consumer", LOAD, frozenset({"consume"}), python=True, told={"client": "Consumer"}),
        Client(
            "AsyncConsumer", LOAD, frozenset({"consume_async"}), python=True,
            told={"client": "AsyncConsumer"},
        ),
    )  # fmt: skip

    def why_not(self) -> str | None:
        """It is always there."""
        return None

    def version(self) -> str:
        """zbroker's, and the libraries' that carry it."""
        libraries = ("pyzmq", "msgspec", "crc32c")
        return f"{zbroker.__version__}; " + ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in libraries
        )

    def start(self, folder: Path, arena: Arena, *, wait: bool = True) -> ZBrokerServers:
        """Nodes with everything else at its default."""
        return ZBrokerServers(folder, arena, wait)

    def footprint(self) -> dict[str, float]:
        """A fresh environment with the package in it; what an empty one has is not counted."""
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            empty = _size(Path(folder))
            start = time.monotonic()
            subprocess.run(
                [f"{folder}/bin/pip", "install", "-q", str(ROOT)], check=True, capture_output=True
            )
            took = time.monotonic() - start
            return {
                "install_mib": round((_size(Path(folder)) - empty) / (1 << 20), 1),
                "install_s": round(took, 1),
            }


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


class ZBrokerServers(Servers):
    """One node or several."""

    def __init__(self, folder: Path, arena: Arena, wait: bool) -> None:
        super().__init__(folder, arena)
        self._cluster = ClusterProcesses(folder, arena.nodes)
        self.servers = self._cluster.servers
        self.addresses = [node.servers for node in self._cluster.nodes.values()]
        self._wait = wait

    def __enter__(self) -> ZBrokerServers:
        if self._wait:
            self._cluster.start()
        else:
            for node in self._cluster.nodes.values():
                node.spawn()
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.close()

    @property
    def pids(self) -> list[int]:
        """The nodes' processes."""
        return [node.pid for node in self._cluster.nodes.values()]

    @property
    def data(self) -> list[Path]:
        """The nodes' data folders."""
        return [node.data for node in self._cluster.nodes.values()]

    def create(self, topic: str, *, partitions: int = 1, topics: int = 1) -> None:
        """Made, led, and all replicas in sync."""
        names = [f"{topic}-{n}" for n in range(topics)] if topics > 1 else [topic]
        for name in names:
            self._cluster.admin.create_topic(
                name, partitions=partitions, retention="forever", fsync=self.arena.fsync
            )
        self._cluster.wait_until_healed()

    def delete(self, topic: str, *, topics: int = 1) -> None:
        """Gone."""
        for name in [f"{topic}-{n}" for n in range(topics)] if topics > 1 else [topic]:
            with Admin(self.servers) as admin:
                try:
                    admin.delete_topic(name)
                except ZBrokerError as error:
                    raise RuntimeError(f"{name} stays: {error}") from error

    def leader(self, topic: str) -> int:
        """Who leads it."""
        name = self._cluster.leader_of(topic)
        return list(self._cluster.nodes).index(str(name))

    def signal(self, node: int, number: int) -> None:
        """Sends a signal to a node's process."""
        list(self._cluster.nodes.values())[node].send_signal(number)

    def kill(self) -> None:
        """Ends every node as a crash would."""
        for node in self._cluster.nodes.values():
            node.kill()

    def start_again(self) -> None:
        """Starts every node on its data, and does not wait."""
        for node in self._cluster.nodes.values():
            node.spawn()
