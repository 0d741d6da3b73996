"""Produce: records a second from the first `send` until the last acknowledgement, `acks=all`.

Values are readable text; a producer sends records of one size as quickly as it is taken. `fsync never`: an answer
means that the record is in the operating system's cache; `always`: that it went through fsync. Everything that was
sent is read back and compared.
"""

from __future__ import annotations

from bench.doing import RATE, produce, verify
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client

SIZES = {10: "10 B", 100: "100 B", 1024: "1 KiB", 65536: "64 KiB"}


def measuring(
    size: int, producers: int = 1, partitions: int = 1, compression: str = "none"
) -> object:
    """One measurement."""

    def measure(ground: Ground, client: Client) -> Figures:
        with ground.topic(partitions=partitions) as topic:
            sent = produce(
                ground, client, topic, size=size, count=producers, lanes=partitions,
                compression=compression, fsync=int(ground.servers.arena.fsync == "always"),
            )  # fmt: skip
            verify(ground, topic, sent, size=size, lanes=partitions)
        return {RATE: sent.rate}

    return measure


def case(
    arena: Arena,
    size: int,
    producers: int = 1,
    partitions: int = 1,
    compression: str = "none",
    quick: bool = False,
    scenario: str = "produce",
) -> Case:
    """One case, called by what it differs in."""  # fmt: skip
    name, action = SIZES[size], "produce"
    if producers > 1:
        name, action = f"{name}, {producers} producers", "produce_producers"
    if partitions > 1:
        name, action = f"{name}, {partitions} partitions", "produce_partitions"
    if compression != "none":
        name, action = f"{name}, {compression}", "produce_compressed"
    if scenario == "produce":
        name = f"{name}, fsync {arena.fsync}"
    measure = measuring(size, producers, partitions, compression)
    return Case(scenario, name, arena, action, measure, quick)  # type: ignore[arg-type]


def cases(plan: Plan) -> list[Case]:
    """Sizes, producers, partitions, compression, fsync."""
    never, always = Arena(1, "never"), Arena(1, "always")
    found = [case(never, size, quick=size in (100, 1024)) for size in SIZES]
    found += [case(never, 100, producers=4), case(never, 1024, producers=4)]
    found += [case(never, 100, partitions=16), case(never, 100, producers=4, partitions=16)]
    found += [case(never, size, compression=c) for size in (100, 1024) for c in ("lz4", "zstd")]
    found += [case(always, size, quick=size in (100, 1024)) for size in SIZES]
    found += [case(always, 1024, producers=4)]
    return found
