"""Replay: records a second, read from the beginning of a log that was written before.

`warm`: the system has it in its cache; `cold`: its files were dropped from the cache first (what a server keeps itself
stays). Counted from the first piece that arrives until the last, so that who connects slowly does not read slowly.
zbroker's records arrive as `Record` objects.
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.doing import RATE, Produced, produce, read_back, verify
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client
from bench.scenarios.produce import SIZES


def filled(ground: Ground, size: int) -> tuple[str, Produced]:
    """A topic with records in it, the same for all cases on these servers."""
    key = ("replay", size)
    if key not in ground.memo:
        topic = ground.new_name()
        ground.servers.create(topic)
        sent = produce(ground, ground.filler, topic, size=size, seconds=ground.plan.seconds * 1.5)
        verify(ground, topic, sent, size=size)
        ground.memo[key] = topic, sent
    found: tuple[str, Produced] = ground.memo[key]
    return found


def drop_cache(folder: Path) -> None:
    """Has the system forget what it keeps of these files in memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def case(size: int, cold: bool) -> Case:
    """One size."""

    def measure(ground: Ground, client: Client) -> Figures:
        topic, sent = filled(ground, size)
        if cold:
            drop_cache(ground.servers.folder)
        found = read_back(ground, client, topic, sent, size=size, check="ends")
        return {RATE: found["records"] / (found["end"] - found["start"]) * 1e9}

    name = f"{SIZES[size]}, {'cold' if cold else 'warm'}"
    return Case("replay", name, Arena(1, "never"), "consume", measure, size == 100 and not cold)


def cases(plan: Plan) -> list[Case]:
    """100 B and 1 KiB, warm and cold."""
    return [case(size, cold) for size in (100, 1024) for cold in (False, True)]
