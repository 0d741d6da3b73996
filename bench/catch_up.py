"""A follower that was away while gigabytes were written: how quickly it catches up, and who notices.

    python -m bench.catch_up [--gib 2] [--others FOLDER] [--fsync always]

Three nodes, default settings. One is killed, the others take the records, and a producer of another topic measures the
latency of one `acks=all` record at a time: before the follower is back, while it catches up, and once it has (three
disks then have each record, not two). The disk's own speed is measured beside it, by writing as much and flushing.

All nodes share one disk here, and so what a live record waits for is the disk as well: what it alone makes of that is
measured too, by two threads that append and flush a record at a time, at rest and beside one that writes and flushes as
quickly as the follower did. With `--others /dev/shm` the follower has the disk to itself, as on a machine of its own;
`--fsync interval` is for live records that wait for no disk.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from zbroker import Admin, Producer
from zbroker.testing.nodes import ClusterProcesses

MIB = 1 << 20
BULK, LIVE = "bulk", "live"
AWAY = "node3"
PIECE = 512 << 10
PAUSE_S = 0.002
AT_REST_S = 8.0


class Latencies(threading.Thread):
    """One record at a time, each waited for; milliseconds."""

    def __init__(self, servers: str) -> None:
        super().__init__()
        self.servers = servers
        self.found: list[float] = []
        self.over = threading.Event()

    def run(self) -> None:
        with Producer(self.servers, linger_ms=0) as producer:
            while not self.over.is_set():
                start = time.perf_counter()
                producer.send(LIVE, b"x" * 100).result(30)
                self.found.append((time.perf_counter() - start) * 1000)
                time.sleep(PAUSE_S)

    def end(self) -> str:
        """The numbers, in words."""
        self.over.set()
        self.join()
        return in_words(self.found)


def in_words(latencies: list[float]) -> str:
    """Latencies in ms, as they are printed."""
    found = sorted(latencies)
    return (
        f"p50 {found[len(found) // 2]:.1f} ms, p99 {found[int(len(found) * 0.99)]:.1f} ms, "
        f"worst {found[-1]:.1f} ms of {len(found)}"
    )


def disk_speed(folder: Path, size: int) -> float:
    """MiB a second, written in pieces of 1 MiB and flushed at the end."""
    piece = os.urandom(MIB)
    start = time.perf_counter()
    with (folder / "speed").open("wb") as out:
        for _ in range(size // MIB):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    took = time.perf_counter() - start
    (folder / "speed").unlink()
    return size / MIB / took


def append_and_flush(folder: Path, beside: float) -> str:
    """How long the disk takes for a small append and its flush, beside a writer of so many MiB a second, in words."""
    over = threading.Event()
    found: list[float] = []

    def append(number: int) -> None:
        with (folder / f"small{number}").open("wb", buffering=0) as out:
            while not over.is_set():
                start = time.perf_counter()
                out.write(b"x" * 200)
                os.fdatasync(out.fileno())
                found.append((time.perf_counter() - start) * 1000)
                time.sleep(PAUSE_S)

    def write() -> None:
        piece = os.urandom(PIECE)
        with (folder / "large").open("wb", buffering=0) as out:
            next_at = time.perf_counter()
            while not over.is_set():
                out.write(piece)
                os.fdatasync(out.fileno())
                next_at += PIECE / MIB / beside
                time.sleep(max(0.0, next_at - time.perf_counter()))

    works: list[Callable[[], None]] = [lambda: append(1), lambda: append(2)]
    if beside:
        works.append(write)
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    time.sleep(AT_REST_S / 2)
    over.set()
    for thread in threads:
        thread.join()
    for name in ("small1", "small2", "large"):
        (folder / name).unlink(missing_ok=True)
    return in_words(found)


def fill(servers: str, size: int) -> float:
    """MiB a second that a producer brings to two replicas."""
    values = [os.urandom(1024)] * 1000
    start = time.perf_counter()
    with Producer(servers) as producer:
        for _ in range(size // (1000 * 1024)):
            producer.send_many(BULK, values)
        producer.flush()
    return size / MIB / (time.perf_counter() - start)


def at_rest(servers: str) -> str:
    """The latencies while nothing else goes on."""
    latencies = Latencies(servers)
    latencies.start()
    time.sleep(AT_REST_S)
    return latencies.end()


def topic_led_by_others(cluster: ClusterProcesses, admin: Admin, name: str, fsync: str) -> None:
    """A topic of one partition, made anew until the node that will be away does not lead it."""
    for _ in range(10):
        admin.create_topic(name, partitions=1, retention="forever", fsync=fsync)
        cluster.wait_until_healed()
        if cluster.leader_of(name) != AWAY:
            return
        admin.delete_topic(name)
    raise SystemExit(f"{AWAY} leads whatever is made")


def measure(folder: Path, size: int, others: Path | None, fsync: str) -> None:
    """The whole, said as it is found."""
    if others is not None:
        for name in ("node1", "node2"):
            (others / name).mkdir()
            (folder / name).symlink_to(others / name)
    with ClusterProcesses(folder) as cluster, Admin(cluster.servers) as admin:
        cluster.wait_until_healed()
        topic_led_by_others(cluster, admin, BULK, "always")
        topic_led_by_others(cluster, admin, LIVE, fsync)
        cluster.kill(AWAY)
        print(
            f"{AWAY} is away; written meanwhile at {fill(cluster.servers, size):.0f} MiB/s",
            flush=True,
        )
        print(f"live records without it: {at_rest(cluster.servers)}", flush=True)
        during = Latencies(cluster.servers)
        during.start()
        start = time.perf_counter()
        cluster.restart(AWAY)
        cluster.wait_until_healed(600)
        took = time.perf_counter() - start
        said = during.end()
        print(
            f"caught up in {took:.1f} s: {size / MIB / took:.0f} MiB/s, from its start on",
            flush=True,
        )
        print(f"live records meanwhile: {said}", flush=True)
        print(f"live records once it is in sync: {at_rest(cluster.servers)}", flush=True)
    print(f"the disk alone: {disk_speed(folder, size):.0f} MiB/s", flush=True)
    print(f"an append and its flush on it: {append_and_flush(folder, 0)}", flush=True)
    speed = size / MIB / took
    print(f"beside {speed:.0f} MiB/s: {append_and_flush(folder, speed)}", flush=True)


def main() -> None:
    """Measures in a temporary folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--others", type=Path, help="where the other two nodes keep their data")
    parser.add_argument(
        "--fsync", choices=["always", "interval", "never"], default="always", help="of the live records' topic"
    )  # fmt: skip
    told = parser.parse_args()
    size = int(told.gib * (1 << 30))
    with tempfile.TemporaryDirectory() as folder:
        if told.others is None:
            measure(Path(folder), size, None, told.fsync)
            return
        with tempfile.TemporaryDirectory(dir=told.others) as others:
            measure(Path(folder), size, Path(others), told.fsync)


if __name__ == "__main__":
    main()
