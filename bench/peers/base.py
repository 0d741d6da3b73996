"""What every driver is: how a system is started and stopped, which clients put it under load, what it cannot do.

Owns the words that drivers share. A driver never measures: it starts servers and load generators and says where they
are.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bench.worker import BenchError, Worker, die_with_parent

FSYNC = ("never", "interval", "always")


class Unsupported(Exception):
    """A system cannot do this work; the message is the sentence that says so."""


@dataclass(frozen=True)
class Client:
    """A load generator of one system.

    Attributes:
        name: as tables show it.
        command: what runs it.
        does: the actions that it knows.
        python: whether its users write Python.
        told: words that it is always told.
    """

    name: str
    command: Sequence[str]
    does: frozenset[str]
    python: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    pair: str = ""
    """The client that produces for its live readers: itself, unless another is quicker."""


@dataclass(frozen=True)
class Arena:
    """What servers run as: how many nodes, and when they flush."""

    nodes: int
    fsync: str

    def __str__(self) -> str:
        return f"{self.nodes} node{'s' * (self.nodes > 1)}, fsync {self.fsync}"


class Running(Protocol):
    """Servers that run, until the context ends; `arena` is what topics that are made now are for."""

    servers: str
    folder: Path
    arena: Arena

    @property
    def addresses(self) -> list[str]:
        """Where clients find each node, by its number."""

    @property
    def pids(self) -> list[int]:
        """The nodes' process numbers."""

    def create(self, topic: str, *, partitions: int = 1, topics: int = 1) -> None:
        """Makes a topic, or `topics` of them, called `topic-0`, …, on all nodes; returns once they are led."""

    def delete(self, topic: str, *, topics: int = 1) -> None:
        """Removes what `create` made."""

    def leader(self, topic: str) -> int:
        """The number of the node that leads the topic's only partition."""

    def signal(self, node: int, number: int) -> None:
        """Sends a signal to a node's process."""

    def kill(self) -> None:
        """Ends every node as a crash would."""

    def start_again(self) -> None:
        """Starts every node on its data, and does not wait."""

    def __enter__(self) -> Running: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...  # fmt: skip


class System(Protocol):
    """A broker that can be measured."""

    name: str
    title: str
    clients: tuple[Client, ...]
    warm_with: tuple[str, ...]
    """Clients that produce for a while before anything is measured."""
    by_topic: frozenset[str]
    """The ways to flush between which a topic chooses: for these, servers need not be started anew."""

    def why_not(self) -> str | None:
        """A sentence, where it is not installed."""

    def version(self) -> str:
        """What runs: server and clients."""

    def start(self, folder: Path, arena: Arena, *, wait: bool = True) -> Running:
        """Starts servers on an empty folder. `Unsupported` says what it cannot do.

        Args:
            wait: False returns before they serve.
        """

    def footprint(self) -> dict[str, float]:
        """`install_mib` and `install_s`, as far as they are known."""


class Servers:
    """Processes of one system, ended with the context; what `Running` has in common."""

    def __init__(self, folder: Path, arena: Arena) -> None:
        self.folder = folder
        self.arena = arena
        self.servers = ""
        self.addresses: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.other: list[subprocess.Popen[bytes]] = []
        self._commands: list[tuple[Sequence[object], str, dict[str, Any]]] = []

    @property
    def pids(self) -> list[int]:
        """The servers' process numbers."""
        return [process.pid for process in self.processes]

    def spawn(
        self, command: Sequence[object], name: str, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Starts a process that dies with this one; its output goes to a file."""
        with (self.folder / f"{name}.log").open("ab") as out:
            return subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=die_with_parent,
                **options,
            )

    def serve(self, command: Sequence[object], name: str, **options: Any) -> None:
        """Starts a server; `start_again` does so once more."""
        self._commands.append((command, name, options))
        self.processes.append(self.spawn(command, name, **options))

    def kill(self) -> None:
        """Ends every server as a crash would."""
        for process in self.processes:
            process.kill()
            process.wait()

    def start_again(self) -> None:
        """Starts every server on its data, and does not wait."""
        self.processes = [self.spawn(c, name, **options) for c, name, options in self._commands]

    def signal(self, node: int, number: int) -> None:
        """Sends a signal to a node's process."""
        self.processes[node].send_signal(number)

    def leader(self, topic: str) -> int:
        """With one node there is one leader."""
        return 0

    def __exit__(self, *_: object) -> None:
        for process in (*self.processes, *self.other):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in (*self.processes, *self.other):
            process.wait()


def wait_port(port: int, alive: Callable[[], bool], timeout: float = 60.0) -> None:
    """Waits until somebody listens on a loopback port.

    Raises:
        BenchError: the process ended, or time is up.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if not alive() or time.monotonic() > deadline:
                raise BenchError(f"nothing listens on port {port}") from None
            time.sleep(0.01)


def retry(what: Callable[[], Any], timeout: float = 30.0, pause: float = 0.1) -> Any:
    """What it returns once it returns something true and raises nothing.

    Raises:
        BenchError: it never did; the message is its last error.
    """
    deadline, last = time.monotonic() + timeout, "it said no"
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except Exception as error:
            last = repr(error)
        time.sleep(pause)
    raise BenchError(f"waited {timeout:.0f} s for {getattr(what, '__name__', what)}: {last}")


def load_command(module: str, python: Path | str) -> tuple[str, ...]:
    """What runs a generator in Python."""
    return (str(python), "-m", f"bench.peers.load.{module}")


class Errands:
    """A process with a peer's Python client that does a driver's errands."""

    def __init__(self, python: Path, module: str, **told: Any) -> None:
        self._worker = Worker(load_command(module, python), "admin", **told).ready()

    def ask(self, op: str, timeout: float = 60.0, **told: Any) -> Any:
        """Its answer.

        Raises:
            BenchError: the client raised something.
        """
        self._worker.go(json.dumps({"op": op, **told}))
        line = self._worker.line(timeout)
        while not line.startswith("{"):
            line = self._worker.line(timeout)
        found = json.loads(line)
        if "error" in found:
            raise BenchError(f"{op}: {found['error']}")
        return found["answer"]

    def close(self) -> None:
        """Ends it."""
        self._worker.close()


def resident(pid: int) -> float:
    """A process's resident memory, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def cpu_seconds(pid: int) -> float:
    """What a process's threads have used, user and kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
