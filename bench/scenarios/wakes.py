"""Wakes: what a record that travels alone costs, at 1,000 a second: threads that wake up for it, and processor time.

Of servers, producer and consumer together, over some seconds in the middle of `latency`'s work. A thread that wakes up
for a record has to wait for a core first, and for the kernel, which is most of such a record's latency; and what all of
them use of the cores is not there for others. A wake-up is a voluntary context switch, as Linux counts them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Client
from bench.scenarios.latency import ARENAS, running, told_of

RATE = 1000


class Used(NamedTuple):
    """What one thread has done since it began."""

    wakes: int
    nanoseconds: int


def used(pids: Iterable[int]) -> dict[int, Used]:
    """By thread."""
    found = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                words = (task / "status").read_text(encoding="ascii").split()
                wakes = int(words[words.index("voluntary_ctxt_switches:") + 1])
                ran = int((task / "schedstat").read_text(encoding="ascii").split()[0])
                found[int(task.name)] = Used(wakes, ran)
    return found


def case(where: str, plan: Plan) -> Case:
    """On one kind of cluster."""

    def measure(ground: Ground, client: Client) -> Figures:
        with ground.topic() as topic:
            told = told_of(topic, RATE, plan)
            with running(ground, client, told) as (reader, writer):
                pids = [*ground.servers.pids, reader.process.pid, writer.process.pid]
                time.sleep(told["skip"])
                start, before = time.monotonic(), used(pids)
                time.sleep(told["seconds"] - told["skip"] - 0.5)
                seconds, after = time.monotonic() - start, used(pids)
                writer.result()
                reader.result(30)
        records = seconds * RATE
        wakes = [(now.wakes - before[t].wakes) / records for t, now in after.items() if t in before]
        ran = sum(
            now.nanoseconds - before[t].nanoseconds for t, now in after.items() if t in before
        )
        return {
            "wake-ups a record": sum(wakes),
            "threads": sum(each >= 0.5 for each in wakes),
            "µs a record": ran / records / 1000,
        }

    return Case("wakes", f"1,000/s, {where}", ARENAS[where], "latency_consume", measure)


def cases(plan: Plan) -> list[Case]:
    """One node and three."""
    return [case(where, plan) for where in ARENAS]
