"""Idle: resident memory of the nodes together, and what they take of a core.

Ten seconds after they are up, over ten seconds; in a quick run one and two.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client, cpu_seconds, resident


def case(nodes: int) -> Case:
    """So many nodes with one topic."""

    def measure(ground: Ground, client: Client) -> Figures:
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            ground.system.start(Path(folder), Arena(nodes, "never")) as running,
        ):
            running.create("idle")
            time.sleep(1 if ground.plan.quick else 10)
            pids, before, start = running.pids, 0.0, time.monotonic()
            before = sum(map(cpu_seconds, pids))
            time.sleep(2 if ground.plan.quick else 10)
            used = sum(map(cpu_seconds, pids)) - before
            return {
                "MiB": sum(map(resident, pids)),
                "% of a core": used / (time.monotonic() - start) * 100,
            }

    name = "one node" if nodes == 1 else "three nodes"
    return Case("idle", name, None, "first", measure, nodes == 1)


def cases(plan: Plan) -> list[Case]:
    """One node and three."""
    return [case(1), case(3)]
