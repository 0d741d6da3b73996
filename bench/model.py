"""What several machines carry, calculated from what one operation costs; checked against one, two and three nodes here.

    python -m bench.model [--costs bench/results/costs.json] [--check] [--json FILE]

A batch costs its leader, each follower and its producer CPU time that grows with its bytes (`bench.costs`); it crosses
the network once to its leader, once to each other replica and once to each live consumer, and is written once by every
replica. A cluster of N equal nodes whose partitions are spread evenly carries what the first of these allows:

    CPU      each node uses one core at most: its reactor is one thread, and the rest is left to the system
    network  what a node takes in, and what it sends out, each as fast as its card
    disk     what all replicas write, as fast as a disk flushes

The check runs nodes and producer on this machine's cores, where all CPU time comes out of one purse: it compares the
CPU time of a record, which other work hardly changes, and the rate, which it does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.costs import BATCH_SIZES, READERS, node_seconds
from bench.results import head, significant
from zbroker import Producer, __version__
from zbroker.testing.nodes import ClusterProcesses

BATCH = 512 << 10
"""Bytes of a producer's batch under load."""
OVERHEAD = 8
"""Bytes that a record takes in a batch besides its value."""
NETWORKS = {"1 Gbit/s": 118e6, "10 Gbit/s": 1180e6}
DISK = 400e6
CORES_A_NODE = 1.0
CONSUMERS = 2
CHECK_S = 2.0


@dataclass(frozen=True)
class Line:
    """CPU seconds of a batch: `fixed`, and `byte` for each of its bytes."""

    fixed: float
    byte: float

    def of(self, size: float) -> float:
        """Of a batch of so many bytes."""
        return self.fixed + self.byte * size


@dataclass(frozen=True)
class Costs:
    """CPU seconds, by role."""

    alone: Line
    leader: Line
    follower: Line
    listener: float
    client: Mapping[int, tuple[float, float]]
    """By a value's size, `send_many`: the application's thread a record, the client's threads a record."""


def line(points: Mapping[int, float]) -> Line:
    """The straight line that fits best (least squares), neither part below zero."""
    count, xs, ys = len(points), list(points), list(points.values())
    mean_x, mean_y = sum(xs) / count, sum(ys) / count
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points.items()) / sum(
        (x - mean_x) ** 2 for x in xs
    )
    slope = max(0.0, slope)
    return Line(max(0.0, mean_y - slope * mean_x), slope)


def read_costs(path: Path, fsync: str = "never") -> Costs:
    """From the file that `bench.costs` writes."""
    found = {
        row["name"]: row["value"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
    }

    def fit(name: str) -> Line:
        return line({size: found[f"{name} {fsync} {size}"] / 1e6 for size in BATCH_SIZES})

    return Costs(
        fit("lead 1"),
        fit("lead 3"),
        fit("follow 3"),
        max(0.0, found[f"push {READERS}"] - found["push 0"]) / READERS / 1e6,
        {
            size: (
                found[f"send_many {size} application's thread"] / 1e9,
                found[f"send_many {size} client's threads"] / 1e9,
            )
            for size in (100, 1024)
        },
    )


def a_record(costs: Costs, replicas: int, size: int) -> tuple[float, float]:
    """CPU seconds of a record in its leader, and in each follower, in full batches."""
    share = (size + OVERHEAD) / BATCH
    if replicas == 1:
        return costs.alone.of(BATCH) * share, 0.0
    # What a leader of three does for two followers, it does for each by half.
    alone, three = costs.alone.of(BATCH), costs.leader.of(BATCH)
    lead = alone + (three - alone) * (replicas - 1) / 2
    return lead * share, costs.follower.of(BATCH) * share


@dataclass(frozen=True)
class Carried:
    """What a cluster carries."""

    nodes: int
    replicas: int
    size: int
    network: str
    records_s: float
    mb_s: float
    bound: str


def carried(costs: Costs, nodes: int, size: int, network: str) -> Carried:
    """Records a second of so many nodes, with as many replicas as up to three, and `CONSUMERS` of everything."""
    replicas = min(3, nodes)
    lead, follow = a_record(costs, replicas, size)
    listening = CONSUMERS * costs.listener * (size + OVERHEAD) / BATCH
    cpu = lead + listening + (replicas - 1) * follow
    stored = size + OVERHEAD
    bounds = {
        "CPU": nodes * CORES_A_NODE / cpu,
        "network in": nodes * NETWORKS[network] / (stored * replicas),
        "network out": nodes * NETWORKS[network] / (stored * (CONSUMERS + replicas - 1)),
        "disk": nodes * DISK / (stored * replicas),
    }
    bound = min(bounds, key=lambda name: bounds[name])
    rate = bounds[bound]
    return Carried(
        nodes,
        replicas,
        size,
        network,
        significant(rate, 3),
        significant(rate * size / 1e6, 3),
        bound,
    )


def predicted(costs: Costs, nodes: int, size: int, cores: int) -> float:
    """Records a second of one producer and `nodes` replicas on the cores of one machine."""
    lead, follow = a_record(costs, nodes, size)
    client = sum(costs.client[size])
    return min(1 / client, cores / (client + lead + (nodes - 1) * follow))


def measured(nodes: int, size: int) -> tuple[float, float]:
    """The same in truth, and the CPU seconds of a record in all processes together."""
    values = [os.urandom(size)] * 5000
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ClusterProcesses(Path(folder), nodes) as cluster,
    ):
        cluster.admin.create_topic("t", partitions=1, replicas=nodes, fsync="never")
        cluster.wait_until_healed()
        with Producer(cluster.servers) as producer:
            producer.send("t", values[0]).result(10)
            before, start, records = _spent(cluster), time.perf_counter(), 0
            while time.perf_counter() - start < CHECK_S:
                producer.send_many("t", values)
                records += len(values)
            producer.flush()
            took, cpu = time.perf_counter() - start, _spent(cluster) - before
        there = cluster.admin.describe_topic("t").partitions[0].high_watermark
        assert there == records + 1, f"{there} records are there, sent {records + 1}"
    return records / took, cpu / records


def _spent(cluster: ClusterProcesses) -> float:
    return time.process_time() + sum(node_seconds(node.pid) for node in cluster.nodes.values())


def checks(costs: Costs) -> Iterator[dict[str, Any]]:
    """One, two and three nodes here."""
    cores = os.cpu_count() or 1
    for size in (100, 1024):
        for nodes in (1, 2, 3):
            lead, follow = a_record(costs, nodes, size)
            cpu = sum(costs.client[size]) + lead + (nodes - 1) * follow
            rate, spent = measured(nodes, size)
            yield {
                "nodes": nodes, "size": size, "cpu_predicted_ns": significant(cpu * 1e9, 3),
                "cpu_measured_ns": significant(spent * 1e9, 3), "cpu_ratio": round(cpu / spent, 2),
                "predicted": significant(predicted(costs, nodes, size, cores), 3),
                "measured": significant(rate, 3),
            }  # fmt: skip


def main() -> None:
    """Calculates, checks where it is told to, and prints both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--costs", type=Path, default=Path(__file__).with_name("results") / "costs.json"
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    conditions = head(["python -m bench.model", *sys.argv[1:]], {"zbroker": __version__}, runs=1)
    costs = read_costs(told.costs)
    found = {
        "head": conditions,
        "checks": list(checks(costs)) if told.check else [],
        "carries": [
            asdict(carried(costs, nodes, size, network))
            for network in NETWORKS
            for size in (100, 1024)
            for nodes in (1, 3, 6, 12)
        ],
    }
    for row in (*found["checks"], *found["carries"]):
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    if told.json:
        told.json.write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
