"""RabbitMQ Streams: Debian's server with its stream plugin, the Java stream client and rstream.

It never calls fsync: a confirmation means that the record is in the operating system's cache, of a majority of the
nodes where there are several. A topic is a stream; it has no partitions.
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.peers.base import (
    Arena,
    Client,
    Errands,
    Servers,
    Unsupported,
    load_command,
    retry,
    wait_port,
)
from bench.peers.facts import debian_version, footprint, missing, package
from bench.peers.installer import HOME, python_of
from zbroker.testing.nodes import free_ports

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
JAVA = (
    "java", "-Xmx1g", "-cp", f"{HOME}/rabbitmq/lib/*:{HOME}/rabbitmq/classes", "RabbitLoad",
)  # fmt: skip
READS = frozenset({"consume", "live", "latency_produce", "latency_consume"})
PRODUCES = frozenset({"produce", "produce_producers"})
WARM = {"warm_ms": 1000}


class RabbitMQ:
    """The driver."""

    name = "rabbitmq"
    title = "RabbitMQ Streams"
    warm_with: tuple[str, ...] = ("java",)
    by_topic: frozenset[str] = frozenset(("never", "interval"))
    clients = (
        Client("java", JAVA, PRODUCES | READS, told=WARM),
        Client("java, sub-entries of 100", JAVA, PRODUCES, told={**WARM, "sub": 100}),
        Client(
            "rstream", load_command("rstream_py", python_of("rabbitmq")),
            frozenset(
                {
                    "produce", "consume", "latency_produce", "latency_consume", "failover", "failover_read",
                    "first", "again",
                }
            ),
            python=True,
        ),
    )  # fmt: skip

    def why_not(self) -> str | None:
        """Whether it was installed."""
        return missing("rabbitmq")

    def version(self) -> str:
        """Server and clients."""
        jar = next((HOME / "rabbitmq" / "lib").glob("stream-client-*.jar")).stem
        return f"{debian_version('rabbitmq-server')}; {jar}, {package('rabbitmq', 'rstream')}"

    def start(self, folder: Path, arena: Arena, *, wait: bool = True) -> RabbitServers:
        """Nodes, in a cluster where there are several."""
        if arena.fsync == "always":
            raise Unsupported("RabbitMQ Streams never calls fsync")
        return RabbitServers(folder, arena, wait)

    def footprint(self) -> dict[str, float]:
        """The packages, Erlang's among them."""
        return footprint("rabbitmq")


class RabbitServers(Servers):
    """Nodes r1@localhost, r2@localhost, …, with a port mapper of their own."""

    def __init__(self, folder: Path, arena: Arena, wait: bool) -> None:
        super().__init__(folder, arena)
        self._wait = wait
        self._base = free_ports(3 * arena.nodes + 1)
        self.servers = ",".join(f"localhost:{self._stream(n)}" for n in range(arena.nodes))
        self.addresses = self.servers.split(",")
        self._errands: Errands | None = None

    def _stream(self, number: int) -> int:
        return self._base + 3 * number

    def __enter__(self) -> RabbitServers:
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text("BENCHBENCHBENCHBENCH", encoding="ascii")
        cookie.chmod(0o400)
        mapper = self._base + 3 * self.arena.nodes
        self.other.append(self.spawn(["epmd", "-address", "127.0.0.1", "-port", mapper], "epmd"))
        for number in range(self.arena.nodes):
            self._start(number, mapper)
            if self._wait and not number:
                self._up(0)  # the others join the first
        if self._wait:
            for number in range(1, self.arena.nodes):
                self._up(number)
            retry(lambda: self._ask("create", topics=["up"], replicas=1), 60, 0.2)
        return self

    def __exit__(self, *error: object) -> None:
        if self._errands is not None:
            self._errands.close()
        super().__exit__(*error)

    def _up(self, number: int) -> None:
        process = self.processes[number]
        wait_port(self._stream(number), lambda: process.poll() is None)

    def _start(self, number: int, mapper: int) -> None:
        home = self.folder / f"r{number + 1}"
        home.mkdir()
        port = self._stream(number)
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{port + 1}\n"
            f"stream.listeners.tcp.1 = 127.0.0.1:{port}\n"
            f"stream.advertised_host = localhost\nstream.advertised_port = {port}\n"
            "cluster_formation.peer_discovery_backend = classic_config\n"
            "cluster_formation.classic_config.nodes.1 = r1@localhost\n"
            "disk_free_limit.absolute = 100MB\nlog.console = false\nlog.file.level = warning\n",
            encoding="ascii",
        )
        (home / "plugins").write_text("[rabbitmq_stream].\n", encoding="ascii")
        environment = {
            **os.environ,
            "HOME": str(self.folder),
            "RUNNING_UNDER_SYSTEMD": "1",
            "ERL_EPMD_PORT": str(mapper),
            "RABBITMQ_NODENAME": f"r{number + 1}@localhost",
            "RABBITMQ_NODE_PORT": str(port + 1),
            "RABBITMQ_DIST_PORT": str(port + 2),
            "RABBITMQ_MNESIA_BASE": f"{home}/db",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/plugins",
            "RABBITMQ_PID_FILE": f"{home}/pid",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{home}/gen",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self.serve([SERVER], f"r{number + 1}", env=environment)

    def _ask(self, op: str, **told: object) -> object:
        if self._errands is None:
            self._errands = Errands(python_of("rabbitmq"), "rstream_py", servers=self.servers)
        return self._errands.ask(op, **told)

    def _names(self, topic: str, topics: int) -> list[str]:
        return [f"{topic}-{n}" for n in range(topics)] if topics > 1 else [topic]

    def create(self, topic: str, *, partitions: int = 1, topics: int = 1) -> None:
        """Made, led by the first node, all replicas there."""
        names, nodes = self._names(topic, topics), self.arena.nodes
        retry(lambda: self._ask("create", topics=names, replicas=nodes), 60, 0.5)
        retry(lambda: self._leads(names[-1], 0), 60, 0.2)

    def _leads(self, topic: str, through: int) -> object:
        return self._ask(
            "leader", topic=topic, replicas=self.arena.nodes, port=self._stream(through)
        )

    def delete(self, topic: str, *, topics: int = 1) -> None:
        """Gone."""
        self._ask("delete", topics=self._names(topic, topics))

    def leader(self, topic: str) -> int:
        """Who leads it."""
        return (int(str(retry(lambda: self._leads(topic, 0), 30))) - self._base) // 3
