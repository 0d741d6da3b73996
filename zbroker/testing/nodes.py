"""Real nodes as processes, for tests: start, kill, freeze, restart, and no process left behind.

Owns the choice of free ports and the nodes' lives: one node is a `NodeProcess`, a cluster of several a
`ClusterProcesses`. A test that uses them says what it needs and waits for conditions; it never sleeps for a while and
hopes. Whatever becomes of the test, its nodes end: each watches a pipe that the test's process holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zbroker import Admin

PORTS_A_NODE = 4
LOWEST_PORT, HIGHEST_PORT = 10_000, 30_000
"""Below the ephemeral range: a loopback port in it can be taken by anybody's own connecting socket."""

PORTS_FILE = Path(tempfile.gettempdir()) / "zbroker-test-ports.lock"
RESERVATIONS_MAX = 64
"""Choices that a process keeps from others; beyond that it lets the oldest go, whose nodes have long ended."""


def free_ports(count: int = PORTS_A_NODE, host: str = "127.0.0.1") -> int:
    """The first of `count` consecutive ports that could all be bound a moment ago.

    Whoever else asks on this machine, in whatever process, gets others for as long as this process lives and does not
    ask for very many more.
    """
    for _ in range(1000):
        base = random.randrange(LOWEST_PORT, HIGHEST_PORT - count)
        if not _reservations.take(base, count):
            continue
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    probe.bind((host, port))
            except OSError:
                continue
            return base
    raise RuntimeError(f"no {count} consecutive free ports were found from {LOWEST_PORT} on")


class _Reservations:
    """Ports that processes of this machine have chosen, and may not have bound yet: record locks in one file.

    The system drops them when their process ends. Within a process they do not count, so that it remembers its own.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self._taken: deque[tuple[int, int]] = deque()

    def take(self, base: int, count: int) -> bool:
        """Whether the ports were nobody's; they are this process's now."""
        if any(base < other + length and other < base + count for other, length in self._taken):
            return False
        try:
            import fcntl

            if self._file is None:
                self._file = os.open(PORTS_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            while len(self._taken) >= RESERVATIONS_MAX:
                oldest, length = self._taken.popleft()
                fcntl.lockf(self._file, fcntl.LOCK_UN, length, oldest)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, count, base)
        except BlockingIOError:
            return False
        except (ImportError, OSError):
            pass  # no locks here, or a file of somebody else's: the probe has to do
        self._taken.append((base, count))
        return True


_reservations = _Reservations()


def wait_for(condition: Callable[[], Any], timeout: float = 10.0, what: str = "") -> Any:
    """What `condition` returns once that is true.

    Raises:
        TimeoutError: it did not become true within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what or condition}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return result


class NodeProcess:
    """One node as a process of its own, on loopback and with a data folder of its own.

    Attributes:
        name: the node's name.
        port: its base port.
        servers: what clients connect to.
        config: its configuration file.
        data: its data folder.
        log: the file that takes its standard error.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        topics: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        http: bool = False,
        log_format: str = "human",
        name: str = "node1",
        cluster: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            topics: defaults for new topics, as in the configuration.
            http: whether it serves metrics and health, on the port behind its own four.
            cluster: the whole of `cluster:` in its configuration; a cluster of its own, if left out.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.port = port if port is not None else free_ports(PORTS_A_NODE + 1)
        self.http_port = self.port + PORTS_A_NODE if http else None
        self.servers = f"127.0.0.1:{self.port}"
        self.config = folder / f"{name}.yaml"
        self.data = folder / "data"
        self.log = folder / f"{name}.log"
        self._log_format = log_format
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begins = 0
        told = dict(cluster or {"name": "test", "nodes": {name: self.servers}})
        if topics:
            told["topics"] = dict(topics)
        config: dict[str, Any] = {"node": name, "data": str(self.data), "cluster": told}
        if self.http_port:
            config["http"] = f"127.0.0.1:{self.http_port}"
        if limits:
            config["limits"] = dict(limits)
        # JSON is YAML: no writer of YAML is needed for this.
        self.config.write_text(json.dumps(config, indent=1), encoding="utf-8")

    def start(self, timeout: float = 20.0) -> NodeProcess:
        """Starts the node and waits until it serves."""
        self.spawn()
        return self.wait_until_serving(timeout)

    def spawn(self) -> NodeProcess:
        """Starts the process, and does not wait: a cluster forms only once several nodes are there."""
        assert not self.running, "the node runs already"
        if self._process is not None:
            self._ended()
        self._log_begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "zbroker", "run", str(self.config), "--stop-with-stdin",
                    "--log-format", self._log_format,
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        return self

    def wait_until_serving(self, timeout: float = 20.0) -> NodeProcess:
        """Waits until the node says that it serves.

        Raises:
            RuntimeError: it ended instead; the message is what it said.
            TimeoutError: it does neither.
        """

        wait_for(self.serves, timeout, f"{self.name} to serve")
        return self

    def serves(self) -> bool:
        """Whether the node has said that it serves.

        Raises:
            RuntimeError: it has ended; the message is what it said.
        """
        if not self.running:
            raise RuntimeError(f"{self.name} ended: {self.said()}")
        return "is serving" in self.said()

    def said(self) -> str:
        """What the node has logged since it was last started."""
        with self.log.open("rb") as log:
            log.seek(self._log_begins)
            return log.read().decode(errors="replace")

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def send_signal(self, number: int) -> None:
        """Sends the process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stops the process where it is (SIGSTOP), as a machine that hangs: its connections stay, and say nothing."""
        self.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Lets a frozen process go on (SIGCONT)."""
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the process as a crash would (SIGKILL), frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def stop(self, timeout: float = 20.0) -> int:
        """Asks for an orderly stop and returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._ended(timeout)

    def _ended(self, timeout: float | None = None) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        status = self._process.wait(timeout)
        self._process.stdin.close()
        self._process = None
        return status


class ClusterProcesses:
    """Several nodes as processes of their own, one cluster of all, on loopback. A context manager.

    Nodes are called `node1`, `node2`, …; whatever takes a node takes its name.

    Attributes:
        nodes: each node's process, by name.
        servers: what clients connect to: all of them, with commas.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        *,
        topics: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
        voters: Sequence[str] | None = None,
        racks: Mapping[str, str] | None = None,
        session_timeout: str | None = None,
        http: bool = False,
        log_format: str = "human",
    ) -> None:
        """
        Args:
            folder: takes a folder of each node's, with its configuration, its data and its log.
            nodes: how many.
            topics, limits, voters, session_timeout: as in the configuration.
            racks: where nodes stand, by name.
            http: whether each serves metrics and health, on the port behind its own four.
        """
        base = free_ports((PORTS_A_NODE + 1) * nodes)
        ports = {f"node{number + 1}": base + (PORTS_A_NODE + 1) * number for number in range(nodes)}
        cluster: dict[str, Any] = {
            "name": "test",
            "nodes": {
                name: {
                    "address": f"127.0.0.1:{port}",
                    **({"rack": racks[name]} if racks and name in racks else {}),
                }
                for name, port in ports.items()
            },
        }
        if voters is not None:
            cluster["voters"] = list(voters)
        if session_timeout is not None:
            cluster["session_timeout"] = session_timeout
        self.nodes = {
            name: NodeProcess(
                folder / name, port=port, topics=topics, limits=limits, http=http, log_format=log_format,
                name=name, cluster=cluster,
            )
            for name, port in ports.items()
        }  # fmt: skip
        self.servers = ",".join(node.servers for node in self.nodes.values())
        self._admin: Admin | None = None

    def __enter__(self) -> ClusterProcesses:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, timeout: float = 40.0) -> ClusterProcesses:
        """Starts every node that does not run, and waits until all serve. Where one cannot, none is left running."""
        try:
            for node in self.nodes.values():
                if not node.running:
                    node.spawn()
            wait_for(self._all_serve, timeout, "all nodes to serve")
        except BaseException:
            self.close()
            raise
        return self

    def _all_serve(self) -> bool:
        serving = [
            node.serves() for node in self.nodes.values()
        ]  # each is asked: one may have ended
        return all(serving)

    def kill(self, name: str) -> None:
        """Ends a node as a crash would."""
        self.nodes[name].kill()

    def stop(self, name: str, timeout: float = 40.0) -> int:
        """Asks a node for an orderly stop and returns its exit status."""
        return self.nodes[name].stop(timeout)

    def restart(self, name: str, timeout: float = 40.0) -> None:
        """Starts a node anew on its data, killed before if it still runs, and waits until it serves."""
        self.nodes[name].kill()
        self.nodes[name].start(timeout)

    def freeze(self, name: str) -> None:
        """Stops a node's process where it is, as a machine that hangs."""
        self.nodes[name].freeze()

    def thaw(self, name: str) -> None:
        """Lets a frozen node go on."""
        self.nodes[name].thaw()

    @property
    def admin(self) -> Admin:
        """A client of the cluster's own, closed with it."""
        from zbroker import Admin

        if self._admin is None:
            self._admin = Admin(self.servers)
        return self._admin

    def leader_of(self, topic: str, partition: int = 0) -> str | None:
        """The name of the node that leads a partition, as far as the cluster knows; None while nobody does."""
        return self.admin.describe_topic(topic).partitions[partition].leader

    def controller(self) -> str | None:
        """The controller's name; None while there is none."""
        return self.admin.cluster().controller

    def wait_until_healed(self, timeout: float = 40.0) -> None:
        """Waits until every node is up, and every partition has a leader and all of its replicas in sync.

        Raises:
            TimeoutError: it did not come to that; the message says what is still wrong.
        """
        wrong: list[str] = ["nothing was found out yet"]

        def healed() -> bool:
            wrong[:] = self._what_is_wrong()
            return not wrong

        try:
            wait_for(healed, timeout, "the cluster to heal")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {'; '.join(wrong)}") from None

    def _what_is_wrong(self) -> list[str]:
        from zbroker import ZBrokerError

        try:
            found = self.admin.cluster()
        except ZBrokerError as error:
            return [str(error)]
        wrong = [] if found.controller else ["there is no controller"]
        up = {node.name for node in found.nodes if node.alive and node.uptime is not None}
        wrong += [f"{name} is not up" for name in self.nodes if name not in up]
        wrong += [
            f"{part.topic}/{part.partition} is led by {part.leader} and lacks {part.missing}"
            for part in found.unhealthy
            if part.leader is None or part.missing
        ]
        return wrong

    def close(self) -> None:
        """Ends every node at once, and the cluster's client."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        for node in self.nodes.values():
            node.kill()


@contextlib.contextmanager
def running_node(folder: Path, **settings: Any) -> Iterator[NodeProcess]:
    """A node that serves, killed at the end if it still runs. Settings as for `NodeProcess`."""
    node = NodeProcess(folder, **settings)
    try:
        yield node.start()
    finally:
        node.kill()
