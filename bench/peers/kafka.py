"""Apache Kafka: combined KRaft nodes from the jars of Maven Central, the Java client and confluent-kafka.

As it ships: no flush before an answer, 1 GiB of heap. `fsync always` is `flush.messages=1`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bench.peers.base import FSYNC, Arena, Client, Errands, Servers, load_command, retry
from bench.peers.facts import footprint, missing, package
from bench.peers.installer import HOME, python_of
from zbroker.testing.nodes import free_ports

LIB = HOME / "kafka" / "lib"
CLUSTER_ID = "4L6g3nShT-eMCtK--X86sw"
HEAP = (
    "-Xmx1g", "-Xms1g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
)  # fmt: skip
JAVA = frozenset(
    {
        "produce", "produce_producers", "produce_partitions", "produce_compressed", "consume", "live",
        "latency_produce", "latency_consume",
    }
)  # fmt: skip
FLUSH = {"never": {}, "interval": {"flush.ms": "1000"}, "always": {"flush.messages": "1"}}


def java(main: str, *args: object, jvm: tuple[str, ...] = ()) -> list[str]:
    """What runs a class."""
    return ["java", *jvm, "-cp", f"{LIB}/*:{HOME}/kafka/classes", main, *map(str, args)]


class Kafka:
    """The driver."""

    name = "kafka"
    title = "Kafka"
    warm_with: tuple[str, ...] = ("java", "confluent-kafka")
    by_topic: frozenset[str] = frozenset(FSYNC)
    clients = (
        Client(
            "java",
            java("KafkaLoad", jvm=("-Xmx1g",)),
            JAVA | {"produce_topics"},
            told={"warm_ms": 1000},
        ),
        Client(
            "confluent-kafka",
            load_command("confluent", python_of("kafka")),
            JAVA | {"failover", "failover_read", "first", "again", "crowd"},
            python=True,
        ),
    )

    def why_not(self) -> str | None:
        """Whether it was installed."""
        return missing("kafka")

    def version(self) -> str:
        """Server and client."""
        jar = next(LIB.glob("kafka-clients-*.jar")).stem.removeprefix("kafka-clients-")
        return f"{jar}; {package('kafka', 'confluent-kafka')}"

    def start(self, folder: Path, arena: Arena, *, wait: bool = True) -> KafkaServers:
        """Nodes that broker and vote."""
        return KafkaServers(folder, arena, wait)

    def footprint(self) -> dict[str, float]:
        """The jars."""
        return footprint("kafka")


class KafkaServers(Servers):
    """Nodes 1 to n."""

    def __init__(self, folder: Path, arena: Arena, wait: bool) -> None:
        super().__init__(folder, arena)
        base = free_ports(2 * arena.nodes)
        self._ports = [(base + 2 * n, base + 2 * n + 1) for n in range(arena.nodes)]
        self.servers = ",".join(f"127.0.0.1:{port}" for port, _ in self._ports)
        self.addresses = self.servers.split(",")
        self._errands: Errands | None = None
        for number in range(1, arena.nodes + 1):
            self._configure(number)
        self._wait = wait

    def __enter__(self) -> KafkaServers:
        for number in range(1, self.arena.nodes + 1):
            command = java("kafka.Kafka", self._file(number), jvm=HEAP)
            self.serve(command, f"kafka{number}")
        if self._wait:
            retry(lambda: self._ask("brokers") == self.arena.nodes, 60, 0.2)
        return self

    def __exit__(self, *error: object) -> None:
        if self._errands is not None:
            self._errands.close()
        super().__exit__(*error)

    def _ask(self, op: str, **told: object) -> object:
        if self._errands is None:
            self._errands = Errands(python_of("kafka"), "confluent", servers=self.servers)
        return self._errands.ask(op, **told)

    def _file(self, number: int) -> Path:
        return self.folder / f"server{number}.properties"

    def _configure(self, number: int) -> None:
        nodes = self.arena.nodes
        broker, controller = self._ports[number - 1]
        voters = ",".join(f"{n + 1}@127.0.0.1:{port}" for n, (_, port) in enumerate(self._ports))
        self._file(number).write_text(
            "\n".join(
                [
                    "process.roles=broker,controller", f"node.id={number}",
                    f"controller.quorum.voters={voters}",
                    f"listeners=B://127.0.0.1:{broker},C://127.0.0.1:{controller}",
                    "controller.listener.names=C", "inter.broker.listener.name=B",
                    "listener.security.protocol.map=B:PLAINTEXT,C:PLAINTEXT",
                    f"log.dirs={self.folder}/data{number}", f"default.replication.factor={nodes}",
                    f"min.insync.replicas={min(2, nodes)}", f"offsets.topic.replication.factor={nodes}",
                    "message.max.bytes=4194304", "replica.fetch.max.bytes=4194304",
                ]
            ),
            encoding="utf-8",
        )  # fmt: skip
        formatted = HOME / "kafka" / f"formatted{nodes}-{number}"
        if not formatted.exists():
            subprocess.run(
                java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", self._file(number)),
                check=True, capture_output=True,
            )  # fmt: skip
            shutil.copytree(self.folder / f"data{number}", formatted)
        shutil.copytree(formatted, self.folder / f"data{number}", dirs_exist_ok=True)

    def create(self, topic: str, *, partitions: int = 1, topics: int = 1) -> None:
        """Made, led, and all replicas in sync."""
        names = [f"{topic}-{n}" for n in range(topics)] if topics > 1 else [topic]
        nodes = self.arena.nodes
        self._ask(
            "create",
            topics=names,
            partitions=partitions,
            replicas=nodes,
            config=FLUSH[self.arena.fsync],
        )
        retry(lambda: min(self._ask("leaders", topics=names, replicas=nodes)) > 0, 60)  # type: ignore[call-overload]

    def delete(self, topic: str, *, topics: int = 1) -> None:
        """Gone, or soon so."""
        self._ask(
            "delete", topics=[f"{topic}-{n}" for n in range(topics)] if topics > 1 else [topic]
        )

    def leader(self, topic: str) -> int:
        """Who leads it."""
        found = retry(lambda: self._ask("leaders", topics=[topic], replicas=self.arena.nodes), 30)
        return int(found[0]) - 1
