"""Real data through a cluster whose nodes are killed one after the other: nothing is lost, doubled or out of order.

    python -m bench.kill_each [--rounds 10]

Debian's package index (or data of its shape) goes through `zbroker produce` into a topic of four partitions with three
replicas, while each node in turn is ended with SIGKILL in the middle of it and started again, so many rounds; a
`zbroker consume` reads along all the while. Then each partition is compared with what went in, record by record and in
order, both as read along and as read afterwards, and `zbroker log verify` compares the copies on the three disks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from zbroker.testing.nodes import ClusterProcesses, wait_for
from zbroker.testing.real_data import as_input, packages

TOPIC = "packages"
PARTITIONS = 4
FORMAT = r"%p\t%o\t%k\t%v\0"
PATIENCE = 120.0

Records = list[tuple[bytes, bytes]]


def command(cluster: ClusterProcesses, *arguments: str) -> list[str]:
    """A client's command line."""
    return [sys.executable, "-m", "zbroker", *arguments, "--servers", cluster.servers]


def committed(cluster: ClusterProcesses) -> int:
    """How many records are committed."""
    partitions = cluster.admin.describe_topic(TOPIC).partitions
    return sum(partition.high_watermark or 0 for partition in partitions)


def feed(
    cluster: ClusterProcesses, producing: subprocess.Popen[bytes], data: bytes, rounds: int
) -> int:
    """Gives the producer its input in parts, and kills a node in the middle of each; returns how many were killed."""
    victims = [name for _ in range(rounds) for name in cluster.nodes]
    part = len(data) // (len(victims) + 1) + 1
    assert producing.stdin is not None
    for number in range(len(victims) + 1):
        writing = threading.Thread(
            target=producing.stdin.write, args=(data[number * part : (number + 1) * part],)
        )
        before = committed(cluster)
        writing.start()
        if number < len(victims):
            name = victims[number]
            wait_for(lambda: committed(cluster) > before, PATIENCE, "more to be committed")  # noqa: B023
            leader = [p.leader for p in cluster.admin.describe_topic(TOPIC).partitions].count(name)
            controls = " and is the controller" if cluster.controller() == name else ""
            cluster.kill(name)
            print(
                f"{number + 1:3}: {name}, which leads {leader}{controls}, is killed at {before} records",
                flush=True,
            )
            cluster.restart(name)
            cluster.wait_until_healed()
        writing.join(PATIENCE)
        assert not writing.is_alive(), "the producer takes no more"
        assert producing.poll() is None, "the producer has ended"
    producing.stdin.close()
    return len(victims)


def check(title: str, output: bytes, records: Records) -> None:
    """That each partition has exactly what was sent to it, in the order in which it was sent."""
    came: defaultdict[bytes, Records] = defaultdict(list)
    place: dict[bytes, bytes] = {}
    for line in output.removesuffix(b"\0").split(b"\0"):
        partition, offset, key, value = line.split(b"\t", 3)
        assert int(offset) == len(came[partition]), f"{title}: offset {offset!r} of {partition!r}"
        assert place.setdefault(key, partition) == partition, (
            f"{title}: {key!r} is in two partitions"
        )
        came[partition].append((key, value))
    went: defaultdict[bytes, Records] = defaultdict(list)
    for key, value in records:
        went[place[key]].append((key, value))
    assert came == went, f"{title}: {list(differences(came, went))}"
    counts = ", ".join(str(len(came[partition])) for partition in sorted(came))
    print(f"{title}: {len(records)} records, each once and in order ({counts} by partition)")


def differences(came: dict[bytes, Records], went: dict[bytes, Records]) -> Iterable[str]:
    """The first place where each partition differs."""
    for partition in sorted(went):
        for offset, (got, wanted) in enumerate(zip(came[partition], went[partition], strict=False)):
            if got != wanted:
                yield f"{partition!r} at {offset}: {got[0]!r}, expected {wanted[0]!r}"
                break
        else:
            yield f"{partition!r}: {len(came[partition])} of {len(went[partition])}"


def verify(cluster: ClusterProcesses) -> None:
    """After an orderly stop: every file is whole, and the copies are equal."""
    for name in cluster.nodes:
        assert cluster.stop(name) == 0, f"{name} did not stop in order"
    folders = [str(node.data) for node in cluster.nodes.values()]
    done = subprocess.run(
        [sys.executable, "-m", "zbroker", "log", "verify", "--json", *folders],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    pairs = [pair for pair in json.loads(done.stdout)["comparisons"] if pair["log"] != "metadata"]
    assert len(pairs) == PARTITIONS * 3
    assert all(pair["difference"] is None for pair in pairs)
    records = sum(pair["next"] - pair["first"] for pair in pairs) // 3
    print(
        f"log verify: {len(pairs)} pairs of copies, equal byte for byte, {records} records in each disk's"
    )


def run(cluster: ClusterProcesses, records: Records, rounds: int, folder: Path) -> None:
    """The whole of it."""
    cluster.wait_until_healed()
    cluster.admin.create_topic(TOPIC, partitions=PARTITIONS, replicas=3)
    cluster.wait_until_healed()
    data = as_input(records)
    print(f"{len(records)} records, {len(data) / 1e6:.0f} MB", flush=True)
    along = folder / "along"
    began = time.monotonic()
    with along.open("wb") as output:
        reading = subprocess.Popen(
            command(cluster, "consume", TOPIC, "--from", "earliest", "--max", str(len(records)), "--format", FORMAT),
            stdout=output,
        )  # fmt: skip
        producing = subprocess.Popen(
            command(cluster, "produce", TOPIC, "--null", "--key-separator", r"\t"),
            stdin=subprocess.PIPE,
        )
        try:
            killed = feed(cluster, producing, data, rounds)
            assert producing.wait(PATIENCE) == 0, "the producer failed"
            print(f"all acknowledged after {time.monotonic() - began:.0f} s and {killed} kills")
            assert reading.wait(PATIENCE) == 0, "the consumer failed"
        finally:
            for process in (producing, reading):
                process.kill()
                process.wait()
    check("read along", along.read_bytes(), records)
    afterwards = subprocess.run(
        command(cluster, "consume", TOPIC, "--from", "earliest", "--until-end", "--format", FORMAT),
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    check("read afterwards", afterwards.stdout, records)
    cluster.wait_until_healed()
    verify(cluster)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ClusterProcesses(Path(folder)) as cluster:
        run(cluster, packages(), args.rounds, Path(folder))


if __name__ == "__main__":
    main()
