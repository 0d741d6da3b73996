"""Restart: seconds from when a killed node's process is started again until it acknowledges a record.

The node has the given size in its log, in records of 1 KiB, and is killed (`kill -9`) while a producer is at work.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.doing import all_of, producers
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client, Unsupported

SIZE = 1024
IN_MEMORY_MAX = 1 << 30
RATE_GUESS = 100 << 20
FILL_MAX_S = 400.0


def measure(ground: Ground, client: Client) -> Figures:
    """Fills, kills, starts."""
    size = ground.plan.size
    if ground.system.name == "redis" and size > IN_MEMORY_MAX:
        raise Unsupported("Redis keeps its whole log in memory")
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ground.system.start(Path(folder), Arena(1, "never")) as running,
    ):
        running.create("t")
        filling = producers(
            ground, ground.filler, "t", size=SIZE, seconds=FILL_MAX_S, servers=running.servers
        )
        with all_of(filling):
            filling[0].ready().go()
            _wait_for_size(Path(folder), size)
            running.kill()
        with ground.worker(client, "again", topic="t", servers=running.servers) as worker:
            worker.ready()
            start = time.monotonic_ns()
            running.start_again()
            worker.go()
            return {"s": (worker.result(120)["end"] - start) / 1e9}


def _wait_for_size(folder: Path, size: int) -> None:
    """Until the files hold so much."""
    deadline = time.monotonic() + FILL_MAX_S
    while time.monotonic() < deadline:
        files = [path for path in folder.rglob("*") if path.is_file()]
        if sum(path.stat().st_blocks * 512 for path in files if path.exists()) >= size:
            return
        time.sleep(0.2)
    raise Unsupported(f"it did not take {size >> 20} MiB in {FILL_MAX_S:.0f} s")


def cases(plan: Plan) -> list[Case]:
    """One."""
    return [Case("restart", "kill -9", None, "again", measure, True)]
