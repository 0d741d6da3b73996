"""What one operation costs: CPU time, of the client a record and of a node a batch; the base of the model.

    python -m bench.costs [--runs 5] [--records 200000] [--json FILE] [--check FILE]

Real nodes and clients, and the public face alone. CPU time hardly depends on what else a machine does, and how quick
its cores are at the moment is measured beside every figure by a fixed loop of Python: `ratio` says how many of that
loop's rounds an operation takes. `--check` compares the ratios with a file's and exits with 1 where one has grown by
more than `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.results import head, significant
from bench.worker import BenchError
from zbroker import Consumer, Producer, __version__
from zbroker.testing.nodes import ClusterProcesses

TOLERANCE = 1.35
REFERENCE_ROUNDS = 200_000
BATCHES = 3000
READERS = 4
BATCH_SIZES = (100, 16 << 10, 256 << 10)
ONE_BATCH_A_RECORD = 1
"""As `batch_bytes`: every record is larger, and travels alone."""


@dataclass
class Cost:
    """One operation's CPU time; `ratio` is in rounds of the reference loop."""

    name: str
    what: str
    value: float
    unit: str
    ratio: float


class Spent:
    """CPU seconds of this process: of the calling thread, and of all the others."""

    def __init__(self) -> None:
        self._thread, self._process = time.thread_time(), time.process_time()

    def now(self) -> tuple[float, float]:
        """Since it was made."""
        mine = time.thread_time() - self._thread
        return mine, time.process_time() - self._process - mine


def node_seconds(pid: int) -> float:
    """CPU seconds of a process, as fine as the scheduler counts them (Linux)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        except OSError:
            continue  # the thread has ended
    return total / 1e9


def reference() -> float:
    """Nanoseconds of CPU that a round of a fixed loop takes: what an interpreter does, no more."""
    table: dict[int, tuple[int, bytes, tuple[()]]] = {}
    value = b"x" * 100
    start = time.thread_time()
    for number in range(REFERENCE_ROUNDS):
        table[number & 1023] = (number, value, ())
    return (time.thread_time() - start) / REFERENCE_ROUNDS * 1e9


class Measuring:
    """The least of several runs of each operation, beside the least of as many of the reference loop."""

    def __init__(self, runs: int, say: Callable[[str], None]) -> None:
        self._runs = runs
        self._say = say
        self._found: dict[str, tuple[str, str, list[float], list[float]]] = {}

    def runs(self) -> Iterator[int]:
        """Every run, the collector of garbage being at rest."""
        for run in range(self._runs):
            gc.collect()
            yield run

    def add(self, name: str, what: str, value: float, unit: str) -> None:
        """A figure of one run, in nanoseconds or microseconds."""
        _, _, values, loops = self._found.setdefault(name, (what, unit, [], []))
        values.append(value)
        loops.append(reference())

    def costs(self) -> list[Cost]:
        """All of them."""
        loop = min(min(loops) for _, _, _, loops in self._found.values())
        scale = {"ns": 1.0, "µs": 1000.0}
        costs = [
            Cost(name, what, significant(min(values)), unit, significant(min(values) * scale[unit[:2]] / loop))
            for name, (what, unit, values, _) in self._found.items()
        ]  # fmt: skip
        for cost in costs:
            self._say(f"{cost.what:68} {cost.value:>10,.4g} {cost.unit:14} {cost.ratio:>10,.4g}")
        return costs


def client_costs(cluster: ClusterProcesses, measuring: Measuring, records: int) -> None:
    """A record's cost in the application's thread and in the client's, by `send`, `send_many` and `poll`."""
    for size in (100, 1024):
        count, value = (
            (records, os.urandom(size)) if size == 100 else (records // 4, os.urandom(size))
        )
        topic = f"client{size}"
        cluster.admin.create_topic(topic, partitions=1, fsync="never")
        for _ in measuring.runs():
            for name, work in (("send", _send), ("send_many", _send_many)):
                with Producer(cluster.servers) as producer:
                    producer.send(topic, value).result(10)
                    spent = Spent()
                    work(producer, topic, value, count)
                    mine, _ = spent.now()
                    producer.flush()
                    _, others = spent.now()
                for part, seconds in (("application's thread", mine), ("client's threads", others)):
                    measuring.add(
                        f"{name} {size} {part}",
                        f"`{name}`, {size} B, {part}",
                        seconds / count * 1e9,
                        "ns a record",
                    )
            with Consumer(cluster.servers, topic, start="earliest") as consumer:
                seen, spent = 0, Spent()
                while seen < 2 * count:
                    seen += len(consumer.poll(10, 5000)) or _nothing()
                for part, seconds in zip(
                    ("application's thread", "client's threads"), spent.now(), strict=True
                ):
                    measuring.add(
                        f"poll {size} {part}",
                        f"`poll`, {size} B, {part}",
                        seconds / seen * 1e9,
                        "ns a record",
                    )


def _nothing() -> int:
    raise BenchError("no records came")


def _send(producer: Producer, topic: str, value: bytes, count: int) -> None:
    send = producer.send
    for _ in range(count):
        send(topic, value)


def _send_many(producer: Producer, topic: str, value: bytes, count: int) -> None:
    values = [value] * 5000
    for _ in range(count // 5000):
        producer.send_many(topic, values)


def node_costs(cluster: ClusterProcesses, measuring: Measuring, fsync: str, batches: int) -> None:
    """A batch's cost in its leader and in each follower, by its size."""
    nodes = len(cluster.nodes)
    topic = f"node-{fsync}"
    cluster.admin.create_topic(topic, partitions=1, fsync=fsync, replicas=nodes, max_batch="1MiB")
    cluster.wait_until_healed()
    leader = cluster.leader_of(topic)
    for _ in measuring.runs():
        for size in BATCH_SIZES:
            count = batches if size < 65536 else batches // 4
            before = {name: node_seconds(node.pid) for name, node in cluster.nodes.items()}
            with Producer(cluster.servers, batch_bytes=ONE_BATCH_A_RECORD, linger_ms=0) as producer:
                _send(producer, topic, os.urandom(size), count)
                producer.flush()
            took = {
                name: (node_seconds(node.pid) - before[name]) / count * 1e6
                for name, node in cluster.nodes.items()
            }
            where = f"batch of {_size(size)}, fsync {fsync}"
            lead = f"the leader of {nodes}" if nodes > 1 else "a single node"
            measuring.add(
                f"lead {nodes} {fsync} {size}", f"{lead}, {where}", took[str(leader)], "µs a batch"
            )
            if nodes > 1:
                follow = min(value for name, value in took.items() if name != leader)
                measuring.add(
                    f"follow {nodes} {fsync} {size}", f"a follower, {where}", follow, "µs a batch"
                )


def push_costs(cluster: ClusterProcesses, measuring: Measuring, batches: int) -> None:
    """What live consumers add to a batch's cost in its leader; what reading stored batches costs a node."""
    topic, size = "pushed", 16 << 10
    cluster.admin.create_topic(topic, partitions=1, fsync="never")
    node = next(iter(cluster.nodes.values()))
    for _ in measuring.runs():
        for readers in (0, READERS):
            consumers = [Consumer(cluster.servers, topic, start="latest") for _ in range(readers)]
            for consumer in consumers:
                consumer.poll(0.5)
            before = node_seconds(node.pid)
            with Producer(cluster.servers, batch_bytes=ONE_BATCH_A_RECORD, linger_ms=0) as producer:
                _send(producer, topic, os.urandom(size), batches)
                producer.flush()
            for consumer in consumers:
                seen = 0
                while seen < batches:
                    seen += len(consumer.poll(10, 5000)) or _nothing()
            took = (node_seconds(node.pid) - before) / batches * 1e6
            for consumer in consumers:
                consumer.close()
            what = f"a single node with {readers} live consumers, batch of 16 KiB"
            measuring.add(f"push {readers}", what, took, "µs a batch")
        before = node_seconds(node.pid)
        with Consumer(cluster.servers, topic, start="earliest") as consumer:
            seen = 0
            while seen < batches:
                seen += len(consumer.poll(10, 5000)) or _nothing()
        measuring.add(
            "fetch", "replay, batch of 16 KiB, in the node",
            (node_seconds(node.pid) - before) / seen * 1e6, "µs a batch",
        )  # fmt: skip


def _size(size: int) -> str:
    return f"{size >> 10} KiB" if size >= 1024 else f"{size} B"


def measure(runs: int, records: int, say: Callable[[str], None]) -> list[Cost]:
    """Everything."""
    measuring, batches = Measuring(runs, say), max(200, records // 66)
    for nodes in (1, 3):
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            ClusterProcesses(Path(folder), nodes) as cluster,
        ):
            if nodes == 1:
                client_costs(cluster, measuring, records)
                push_costs(cluster, measuring, batches)
            for fsync in ("never", "always"):
                node_costs(cluster, measuring, fsync, batches)
    return measuring.costs()


def least(costs: Sequence[Cost], again: Sequence[Cost]) -> list[Cost]:
    """The smaller ratio of each: what a busy machine adds is not the operation's."""
    second = {cost.name: cost for cost in again}
    return [min(cost, second.get(cost.name, cost), key=lambda one: one.ratio) for cost in costs]


def grown(costs: Sequence[Cost], kept: Path) -> Iterator[str]:
    """What costs more than a file says, in rounds of the reference loop."""
    before = {row["name"]: row for row in json.loads(kept.read_text(encoding="utf-8"))["rows"]}
    for cost in costs:
        if cost.name in before and cost.ratio > before[cost.name]["ratio"] * TOLERANCE:
            yield f"{cost.what}: {cost.ratio:.4g} rounds of the reference loop, was {before[cost.name]['ratio']:.4g}"


def main() -> int:
    """Measures; 1 where something has become slower than `--check` allows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", type=Path)
    told = parser.parse_args()
    conditions = head(
        ["python -m bench.costs", *sys.argv[1:]], {"zbroker": __version__}, runs=told.runs
    )
    costs = measure(told.runs, told.records, lambda line: print(line, flush=True))
    if told.json:
        rows = ",\n  ".join(json.dumps(asdict(cost), ensure_ascii=False) for cost in costs)
        top = json.dumps(conditions, ensure_ascii=False)
        told.json.write_text(
            f'{{\n "head": {top},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8"
        )
    worse = list(grown(costs, told.check)) if told.check else []
    if worse:
        print("measured once more, before it is believed", flush=True)
        costs = least(costs, measure(told.runs, told.records, lambda line: print(line, flush=True)))
        worse = list(grown(costs, told.check))
    print("\n".join(worse))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
