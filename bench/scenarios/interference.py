"""Interference: a producer alone, then beside a consumer that replays another topic and one that reads its own live.

Records of 100 B, one node, no fsync. `live` counts until the live consumer has everything.
"""

from __future__ import annotations

from bench.doing import all_of, listeners, produce, produced, producers
from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client
from bench.scenarios.replay import filled

SIZE = 100


def measure(ground: Ground, client: Client) -> Figures:
    """Both."""
    old, stored = filled(ground, SIZE)
    with ground.topic() as topic:
        alone = produce(ground, client, topic, size=SIZE)
    with (
        ground.topic() as topic,
        listeners(ground, client, topic, 1, size=SIZE) as live,
        all_of(
            [
                *producers(ground, client, topic, size=SIZE),
                ground.worker(
                    client, "consume", topic=old, size=SIZE, ring=ground.ring(SIZE), lanes=1,
                    counts=stored.counts[0],
                ),
            ]
        ) as (writer, reader),
    ):  # fmt: skip
        for worker in (writer, reader):
            worker.ready()
        reader.go()
        writer.go()
        sent = produced([writer.result()])
        end = live[0].go(sum(sent.counts)).result()["end"]
        read = reader.result()
    return {
        "alone records/s": alone.rate,
        "records/s": sent.rate,
        "replay records/s": read["records"] / (read["end"] - read["start"]) * 1e9,
        "live records/s": sum(sent.counts) / (end - sent.start) * 1e9,
    }


def cases(plan: Plan) -> list[Case]:
    """One."""
    paired = {"redis": "redis-py is bounded by itself here: see produce and fanout"}
    return [Case("interference", "100 B", Arena(1, "never"), "live", measure, unless=paired)]
