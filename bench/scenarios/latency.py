"""Latency: from when a record was due to be sent until a live consumer in another process has it.

The producer sends at a fixed rate, and each record says when it was due, so that one which is held up makes all that
wait behind it late (no coordinated omission). The first two seconds do not count, in a quick run one of three. Producer
and consumer are two processes of the same client.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bench.doing import all_of
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client
from bench.worker import Worker

SIZE = 100
FIGURES = ("p50", "p90", "p99", "p99.9", "worst")
ARENAS = {
    "one node, fsync interval": Arena(1, "interval"),
    "three nodes, fsync never": Arena(3, "never"),
}


def told_of(topic: str, rate: int, plan: Plan) -> dict[str, Any]:
    """What producer and consumer are told."""
    return {
        "topic": topic, "size": SIZE, "rate": rate, "seconds": 3 if plan.quick else 15,
        "skip": 1 if plan.quick else 2, "linger": 0 if rate <= 1000 else 1,
    }  # fmt: skip


@contextlib.contextmanager
def running(
    ground: Ground, client: Client, told: dict[str, Any]
) -> Iterator[tuple[Worker, Worker]]:
    """Consumer and producer at work."""
    reader = ground.worker(client, "latency_consume", **told)
    writer = ground.worker(client, "latency_produce", **told)
    with all_of((reader, writer)):
        reader.ready().go()
        writer.ready().go()
        yield reader, writer


def case(where: str, rate: int, plan: Plan) -> Case:
    """One rate on one kind of cluster."""

    def measure(ground: Ground, client: Client) -> Figures:
        with ground.topic() as topic:
            told = told_of(topic, rate, plan)
            with running(ground, client, told) as (reader, writer):
                writer.result()
                found = reader.result(30)
        return {f"{name} ms": found[name] for name in FIGURES}

    return Case(
        "latency", f"{rate:,}/s, {where}", ARENAS[where], "latency_consume", measure, rate == 1000
    )


def cases(plan: Plan) -> list[Case]:
    """1,000 and 10,000 records a second."""
    return [case(where, rate, plan) for where in ARENAS for rate in (1000, 10_000)]
