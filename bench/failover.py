"""How long a producer waits when the leader of its partition is gone: the gap between two acknowledgements.

    python -m bench.failover [--rounds 20] [--only kill,stop,freeze,cable]

Three nodes with everything at its default; a producer that sends a record every 2 ms, without lingering. In turn the
leader is a follower of the metadata and the controller itself. Four ways to go: `kill` (-9), `stop` (SIGTERM, with its
restart and return), `freeze` (SIGSTOP), `cable` (pulled; needs root, for network namespaces). Of each gap: when the
nodes' own logs say that there was a controller, and that the leader was taken for dead; milliseconds after the fault.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from zbroker import Producer, ZBrokerError
from zbroker.testing.lan import Lan, LanCluster, why_not
from zbroker.testing.nodes import ClusterProcesses, wait_for

NODES = ("node1", "node2", "node3")
TOPIC = "bench"
INTERVAL = 0.002
SETTLED = 0.5
WAYS = ("kill", "stop", "freeze", "cable")
TARGETS_MS = {"kill": (100, 300), "stop": (100, 100), "freeze": (2000, 2000), "cable": (2000, 2000)}
"""Median and worst that are aimed at."""


class Sender:
    """Sends to one partition at a time, and keeps when each acknowledgement came."""

    def __init__(self, servers: str) -> None:
        self.partition = 0
        self.came: list[tuple[float, int]] = []
        self.failed: list[ZBrokerError] = []
        self._servers = servers
        self._go_on = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with Producer(self._servers, linger_ms=0) as producer:
            for number in itertools.count():
                if not self._go_on:
                    return
                began = time.monotonic()
                where = self.partition
                producer.send(
                    TOPIC, b"%d" % number, partition=where,
                    on_delivery=lambda _, error, where=where: self._on_delivery(where, error),
                )  # fmt: skip
                time.sleep(max(0.0, began + INTERVAL - time.monotonic()))

    def _on_delivery(self, where: int, error: ZBrokerError | None) -> None:
        if error is None:
            self.came.append((time.monotonic(), where))
        else:
            self.failed.append(error)

    def send_to(self, partition: int) -> None:
        """Every record to that partition from now on."""
        self.partition = partition
        self.wait(time.monotonic())

    def wait(self, since: float) -> None:
        """Waits until acknowledgements have come for a while after a moment, and without a break."""

        def flows() -> bool:
            last = self.came[-100:]
            return (
                len(last) == 100 and last[0][0] > since + SETTLED and last[0][1] == self.partition
            )

        wait_for(flows, 60, "acknowledgements")

    def gap(self, since: float) -> tuple[float, float]:
        """The longest time between two acknowledgements after a moment, and when it ended; seconds."""
        times = [at for at, where in self.came if where == self.partition]
        gaps = [(b - a, b) for a, b in itertools.pairwise(times) if b > since]
        return max(gaps)

    def close(self) -> None:
        """Sends no more."""
        self._go_on = False
        self._thread.join()


class Round(NamedTuple):
    """One fault: whether the leader was the controller too, and milliseconds from the fault to what happened."""

    controlled: bool
    gap: float
    ended: float
    controller: float | None
    fenced: float | None

    def __str__(self) -> str:
        phases = [
            f"{name} {ms:.0f}"
            for name, ms in (("controller", self.controller), ("taken for dead", self.fenced))
            if ms is not None
        ]
        who = "leader and controller" if self.controlled else "leader"
        return (
            f"gap {self.gap:6.1f} ms   {who:22} {', '.join([*phases, f'goes on {self.ended:.0f}'])}"
        )


def prepare(cluster: ClusterProcesses) -> None:
    """A topic with a partition for each node to lead."""
    cluster.wait_until_healed()
    cluster.admin.create_topic(TOPIC, partitions=len(NODES))
    cluster.wait_until_healed()


def choose(cluster: ClusterProcesses, controls: bool) -> tuple[int, str]:
    """A partition whose leader is the controller, or is not; leaderships go back to where they belong in a while."""

    def found() -> tuple[int, str] | None:
        controller = cluster.controller()
        for part in cluster.admin.describe_topic(TOPIC).partitions:
            if part.leader and (part.leader == controller) is controls:
                return part.partition, part.leader
        return None

    found_one: tuple[int, str] = wait_for(found, 30, "such a leader")
    return found_one


def one_round(
    cluster: ClusterProcesses,
    sender: Sender,
    controls: bool,
    break_it: Callable[[str], None],
    mend_it: Callable[[str], None],
    *,
    with_return: bool,
) -> Round:
    """One fault, and back to where all is well."""
    cluster.wait_until_healed()
    partition, leader = choose(cluster, controls)
    sender.send_to(partition)
    ends = {name: node.log.stat().st_size for name, node in cluster.nodes.items()}
    began, wall = time.monotonic(), time.time()
    break_it(leader)
    if with_return:
        mend_it(leader)
        cluster.wait_until_healed()
        sender.wait(began)
        gap, ended = sender.gap(began)
    else:
        sender.wait(began)
        gap, ended = sender.gap(began)
        mend_it(leader)
    controller, fenced = told(cluster, ends, leader, wall)
    return Round(controls, 1000 * gap, 1000 * (ended - began), controller, fenced)


def told(
    cluster: ClusterProcesses, ends: dict[str, int], leader: str, since: float
) -> tuple[float | None, float | None]:
    """When the others' logs say that one of them became the controller, and took the leader for dead."""
    when: dict[str, list[float]] = {"controller": [], "node_fenced": []}
    for name, node in cluster.nodes.items():
        if name == leader:
            continue
        for line in node.log.read_bytes()[ends[name] :].splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                at = 1000 * (datetime.fromisoformat(event["time"]).timestamp() - since)
                if event["event"] == "controller" or event.get("peer") == leader:
                    when[event["event"]].append(at)
    return min(when["controller"], default=None), min(when["node_fenced"], default=None)


@contextlib.contextmanager
def on_loopback(folder: Path) -> Iterator[tuple[ClusterProcesses, None]]:
    with ClusterProcesses(folder, log_format="json") as cluster:
        yield cluster, None


@contextlib.contextmanager
def on_a_lan(folder: Path) -> Iterator[tuple[ClusterProcesses, Lan]]:
    with (
        Lan([*NODES, "client"]) as lan,
        lan.inside("client"),
        LanCluster(folder, lan, NODES, log_format="json") as cluster,
    ):
        yield cluster, lan


def measure(way: str, rounds: int) -> None:
    """All rounds of one way to go, printed."""
    print(f"\n{way}:")
    found: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        where = on_a_lan if way == "cable" else on_loopback
        with where(Path(folder)) as (cluster, lan):
            prepare(cluster)
            sender = Sender(cluster.servers)
            do: dict[str, tuple[Callable[[str], None], Callable[[str], None]]] = {
                "kill": (cluster.kill, cluster.restart),
                "stop": (lambda name: (cluster.stop(name), None)[1], cluster.restart),
                "freeze": (cluster.freeze, cluster.thaw),
            }
            if lan is not None:
                do["cable"] = (lan.unplug, lan.plug)
            for number in range(rounds):
                result = one_round(
                    cluster, sender, number % 2 == 1, *do[way], with_return=way == "stop"
                )
                found.append(result)
                print(f"  {number + 1:3} {result}", flush=True)
            sender.close()
            assert not sender.failed, sender.failed[0]
    summarize(way, found)


def summarize(way: str, found: list[Round]) -> None:
    median_ms, worst_ms = TARGETS_MS[way]
    for title, some in (
        ("all", found),
        ("leader", [each for each in found if not each.controlled]),
        ("leader and controller", [each for each in found if each.controlled]),
    ):
        gaps = [each.gap for each in some]
        if gaps:
            print(f"  {title}: median {statistics.median(gaps):.0f} ms, worst {max(gaps):.0f} ms")
    print(f"  aimed at: median {median_ms} ms, worst {worst_ms} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default=",".join(WAYS))
    args = parser.parse_args()
    for way in args.only.split(","):
        reason = why_not() if way == "cable" else None
        if reason:
            print(f"\n{way}: left out: {reason}")
        else:
            measure(way, args.rounds)


if __name__ == "__main__":
    main()
