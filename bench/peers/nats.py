"""NATS JetStream: the server and the Go client as Go modules, and nats-py.

Streams on files. `fsync never` is the server's default, which flushes every two minutes; `interval` every second;
`always` is `sync_interval: always`. A topic is a stream; it has no partitions.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from bench.peers.base import Arena, Client, Errands, Servers, load_command, retry, wait_port
from bench.peers.facts import footprint, missing, package
from bench.peers.installer import HOME, python_of
from zbroker.testing.nodes import free_ports

BIN = HOME / "nats" / "bin"
GO = (str(BIN / "natsload"),)
SYNC = {"never": "", "interval": ', sync_interval: "1s"', "always": ", sync_interval: always"}


class Nats:
    """The driver."""

    name = "nats"
    title = "NATS JetStream"
    warm_with: tuple[str, ...] = ()
    by_topic: frozenset[str] = frozenset()
    clients = (
        Client(
            "go, fast batches", GO,
            frozenset(
                {
                    "produce", "produce_producers", "consume", "live", "latency_produce", "latency_consume",
                }
            ),
            told={"client": "fast"},
        ),
        Client("go, async", GO, frozenset({"produce", "produce_topics"}), told={"client": "async"}),
        Client(
            "nats-py", load_command("nats_py", python_of("nats")),
            frozenset(
                {
                    "produce", "consume", "latency_produce", "latency_consume", "failover", "failover_read",
                    "first", "again", "crowd",
                }
            ),
            python=True,
        ),
    )  # fmt: skip

    def why_not(self) -> str | None:
        """Whether it was installed."""
        return missing("nats")

    def version(self) -> str:
        """Server and client."""
        said = subprocess.run(
            [BIN / "nats-server", "--version"], capture_output=True, text=True, check=False
        ).stdout.split()
        return f"{said[-1]}; {package('nats', 'nats-py')}"

    def start(self, folder: Path, arena: Arena, *, wait: bool = True) -> NatsServers:
        """Servers, in a cluster where there are several."""
        return NatsServers(folder, arena, wait)

    def footprint(self) -> dict[str, float]:
        """The server's program."""
        return footprint("nats")


class NatsServers(Servers):
    """Servers n0, n1, …"""

    def __init__(self, folder: Path, arena: Arena, wait: bool) -> None:
        super().__init__(folder, arena)
        self._wait = wait
        self._base = free_ports(2 * arena.nodes)
        self.servers = ",".join(f"127.0.0.1:{self._base + n}" for n in range(arena.nodes))
        self.addresses = self.servers.split(",")
        self._errands: Errands | None = None

    def _config(self, number: int) -> Path:
        nodes = self.arena.nodes
        routes = ", ".join(
            f'"nats-route://127.0.0.1:{self._base + nodes + n}"' for n in range(nodes)
        )
        text = (
            f'server_name: n{number}\nlisten: "127.0.0.1:{self._base + number}"\nmax_payload: 4MB\n'
            f'jetstream {{ store_dir: "{self.folder}/n{number}", max_file: 50GB, max_mem: 2GB'
            f"{SYNC[self.arena.fsync]} }}\n"
        )
        if nodes > 1:
            listen = f"127.0.0.1:{self._base + nodes + number}"
            text += f'cluster {{ name: c, listen: "{listen}", routes: [{routes}] }}\n'
        path = self.folder / f"n{number}.conf"
        path.write_text(text, encoding="utf-8")
        return path

    def __enter__(self) -> NatsServers:
        for number in range(self.arena.nodes):
            command = [BIN / "nats-server", "-c", self._config(number)]
            self.serve(command, f"n{number}")
        if self._wait:
            for number, process in enumerate(self.processes):
                wait_port(self._base + number, lambda process=process: process.poll() is None)  # type: ignore[misc]
        return self

    def __exit__(self, *error: object) -> None:
        if self._errands is not None:
            self._errands.close()
        super().__exit__(*error)

    def _ask(self, op: str, **told: object) -> object:
        if self._errands is None:
            self._errands = Errands(python_of("nats"), "nats_py", servers=self.servers)
        return self._errands.ask(op, **told)

    def _names(self, topic: str, topics: int) -> list[str]:
        return [f"{topic}-{n}" for n in range(topics)] if topics > 1 else [topic]

    def create(self, topic: str, *, partitions: int = 1, topics: int = 1) -> None:
        """Made, led, and all replicas current. Clients speak to its leader."""
        names, nodes = self._names(topic, topics), self.arena.nodes
        retry(lambda: self._ask("create", topics=names, replicas=nodes), 60, 0.2)
        found = retry(lambda: self._led(names), 60)
        if topics == 1 and nodes > 1:
            first = int(found[0][1:])
            ports = [first, *(n for n in range(nodes) if n != first)]
            self.servers = ",".join(f"127.0.0.1:{self._base + n}" for n in ports)

    def _led(self, names: list[str]) -> list[str]:
        found = self._ask("leaders", topics=names, replicas=self.arena.nodes)
        assert isinstance(found, list)
        return found if all(found) else []

    def delete(self, topic: str, *, topics: int = 1) -> None:
        """Gone."""
        self._ask("delete", topics=self._names(topic, topics))

    def leader(self, topic: str) -> int:
        """Who leads it."""
        return int(retry(lambda: self._led([topic]), 30)[0][1:])
