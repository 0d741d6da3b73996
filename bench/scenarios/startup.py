"""Start-up: seconds from when an empty node's process is started until a topic's first record is acknowledged.

The client is up before, and tries until it has its answer; what it takes to make the topic counts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client


def measure(ground: Ground, client: Client) -> Figures:
    """One start."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        running = ground.system.start(Path(folder), Arena(1, "never"), wait=False)
        with ground.worker(client, "first", topic="first", servers=running.servers) as worker:
            worker.ready()
            start = time.monotonic_ns()
            with running:
                worker.go()
                end = worker.result(120)["end"]
    return {"s": (end - start) / 1e9}


def cases(plan: Plan) -> list[Case]:
    """One node."""
    return [Case("startup", "one node", None, "first", measure, True)]
