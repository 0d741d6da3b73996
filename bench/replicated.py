"""Three replicas beside one node, on this machine: what it costs that every acknowledged record is on several disks.

    python -m bench.replicated [--runs 3] [--records 2000000] [--partitions 1]

Each run measures one node and three, interleaved, with `acks=all` throughout; three nodes share the machine's cores and
its disk. The table gives medians and ratios. Every run reads back how much was committed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from zbroker import Admin, Producer
from zbroker.testing.nodes import ClusterProcesses

TOPIC = "bench"
CHUNK = 10_000


def produced(nodes: int, fsync: str, value_bytes: int, records: int, partitions: int) -> float:
    """Records a second through `send_many`, from the first call until all are acknowledged."""
    values = [os.urandom(value_bytes)] * CHUNK
    with (
        tempfile.TemporaryDirectory() as folder,
        ClusterProcesses(Path(folder), nodes) as cluster,
        Admin(cluster.servers) as admin,
    ):
        admin.create_topic(TOPIC, partitions=partitions, replicas=nodes, fsync=fsync)
        cluster.wait_until_healed()
        with Producer(cluster.servers) as producer:
            for partition in range(partitions):
                producer.send(TOPIC, b"first", partition=partition).result(10)
            start = time.perf_counter()
            for _ in range(records // CHUNK):
                last = producer.send_many(TOPIC, values)
            producer.flush()
            took = time.perf_counter() - start
            last.result(0)
        found = admin.describe_topic(TOPIC).partitions
        committed = sum(each.high_watermark or 0 for each in found) - partitions
        assert committed == records // CHUNK * CHUNK, f"{committed} records are committed"
    return records // CHUNK * CHUNK / took


def cases(records: int) -> Iterator[tuple[int, str, int, int]]:
    """Nodes, fsync, value size, records."""
    for size, count in ((100, records), (1024, records // 5)):
        for fsync in ("never", "always"):
            for nodes in (1, 3):
                yield nodes, fsync, size, count


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--partitions", type=int, default=1)
    told = parser.parse_args()
    found: dict[tuple[int, str, int], list[float]] = {}
    for run in range(told.runs):
        for nodes, fsync, size, count in cases(told.records):
            rate = produced(nodes, fsync, size, count, told.partitions)
            found.setdefault((nodes, fsync, size), []).append(rate)
            print(
                f"  run {run + 1}: {nodes} node(s), fsync {fsync}, {size} B: {rate:,.0f}/s",
                flush=True,
            )
    print(f"\n{'value':>7}  {'fsync':6}  {'one node':>11}  {'three':>11}  ratio")
    for nodes, fsync, size in found:
        if nodes == 3:
            one, three = (statistics.median(found[count, fsync, size]) for count in (1, 3))
            print(f"{size:>5} B  {fsync:6}  {one:>9,.0f}/s  {three:>9,.0f}/s  {three / one:.2f}")


if __name__ == "__main__":
    main()
